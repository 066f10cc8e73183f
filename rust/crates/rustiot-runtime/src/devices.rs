//! Device rules of a container as a program of cgroup v2. The last rule that matches decides, nothing matched: no.
//!
//! Never opens a device. Called when a container is created.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::sys;

/// Access as the kernel hands it to the program.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

/// Puts the rules in force for the control group.
pub fn attach(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    let directory = File::open(cgroup)?;
    sys::attach_device_program(directory.as_fd(), &program(rules))
}

/// One instruction of eBPF: operation, registers, offset, immediate (little-endian layout of both architectures).
fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_le_bytes();
    let [i0, i1, i2, i3] = immediate.to_le_bytes();
    u64::from_ne_bytes([code, dst | src << 4, o0, o1, i0, i1, i2, i3])
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const RSH: u8 = 0x74;
const MOV_REG: u8 = 0xbc;
const MOV: u8 = 0xb4;
const JNE: u8 = 0x56;
const JSET: u8 = 0x46;
const EXIT: u8 = 0x95;

fn access_of(rule: &LinuxDeviceCgroup) -> u32 {
    let text = rule.access().as_deref().unwrap_or("rwm");
    text.chars().fold(0, |mask, letter| {
        mask | match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => 0,
        }
    })
}

/// The program: registers 2 to 5 hold type, access, major, minor.
fn program(rules: &[LinuxDeviceCgroup]) -> Vec<u64> {
    let mut code = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOV_REG, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(RSH, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Each condition jumps to the end of the rule when it does not hold; offsets are filled in afterwards.
        let mut conditions = Vec::new();
        match rule.typ() {
            Some(LinuxDeviceType::B) => conditions.push((JNE, 2, 1)),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => conditions.push((JNE, 2, 2)),
            _ => {}
        }
        let access = access_of(rule);
        let all = MKNOD | READ | WRITE;
        if access != all {
            if rule.allow() {
                // Something wanted that the rule does not give.
                conditions.push((JSET, 3, i32::try_from(all & !access).unwrap_or(0)));
            } else {
                // A refusal counts when any of what is wanted is refused.
                let skip = i32::try_from(access).unwrap_or(0);
                conditions.push((0, 3, skip));
            }
        }
        for (register, number) in [(4, rule.major()), (5, rule.minor())] {
            if let Some(number) = number.and_then(|n| i32::try_from(n).ok()).filter(|n| *n >= 0) {
                conditions.push((JNE, register, number));
            }
        }
        let always = conditions.is_empty();
        let mut body = Vec::new();
        for (code, register, value) in conditions {
            if code == 0 {
                // jset to the next condition, else out: two instructions.
                body.push((op(JSET, register, 0, 1, value), false));
                body.push((op(0x05, 0, 0, 0, 0), true));
            } else {
                body.push((op(code, register, 0, 0, value), true));
            }
        }
        let end = body.len() + 2;
        for (index, (instruction, jumps_out)) in body.into_iter().enumerate() {
            let offset = i16::try_from(end - index - 1).unwrap_or(i16::MAX);
            code.push(if jumps_out { with_offset(instruction, offset) } else { instruction });
        }
        code.push(op(MOV, 0, 0, 0, i32::from(rule.allow())));
        code.push(op(EXIT, 0, 0, 0, 0));
        if always {
            // The kernel takes no program with instructions that are never reached.
            return code;
        }
    }
    code.push(op(MOV, 0, 0, 0, 0));
    code.push(op(EXIT, 0, 0, 0, 0));
    code
}

fn with_offset(instruction: u64, offset: i16) -> u64 {
    let [code, registers, _, _, i0, i1, i2, i3] = instruction.to_ne_bytes();
    let [o0, o1] = offset.to_le_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: runs the program on (type, access, major, minor).
    fn answer(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let mut r = [0_u32; 11];
        let context = [access << 16 | kind, major, minor];
        let mut at = 0_usize;
        loop {
            let [code, registers, o0, o1, i0, i1, i2, i3] = program[at].to_ne_bytes();
            let (dst, src) = (usize::from(registers & 15), usize::from(registers >> 4));
            let offset = i16::from_le_bytes([o0, o1]);
            let value = i32::from_le_bytes([i0, i1, i2, i3]) as u32;
            let mut jump = false;
            match code {
                LOAD_WORD => r[dst] = context[usize::try_from(offset).unwrap() / 4],
                MOV_REG => r[dst] = r[src],
                MOV => r[dst] = value,
                AND => r[dst] &= value,
                RSH => r[dst] >>= value,
                JNE => jump = r[dst] != value,
                JSET => jump = r[dst] & value != 0,
                0x05 => jump = true,
                EXIT => return r[0],
                other => panic!("operation {other:#x}"),
            }
            at = if jump { at + 1 + usize::try_from(offset).unwrap() } else { at + 1 };
        }
    }

    fn rule(
        allow: bool,
        kind: LinuxDeviceType,
        major: Option<i64>,
        minor: Option<i64>,
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow);
        rule.set_typ(Some(kind));
        rule.set_major(major);
        rule.set_minor(minor);
        rule.set_access(Some(access.to_owned()));
        rule
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let program = program(&[
            rule(false, LinuxDeviceType::A, None, None, "rwm"),
            rule(true, LinuxDeviceType::C, None, None, "m"),
            rule(true, LinuxDeviceType::C, Some(1), Some(3), "rwm"),
            rule(true, LinuxDeviceType::C, Some(136), None, "rw"),
            rule(true, LinuxDeviceType::B, Some(8), None, "rwm"),
            rule(false, LinuxDeviceType::B, Some(8), Some(1), "w"),
        ]);
        assert_eq!(
            program.iter().filter(|i| i.to_ne_bytes()[0] == EXIT).count(),
            6,
            "nothing after the last word"
        );
        for (kind, access, major, minor, expected) in [
            (2, READ, 1, 3, 1),
            (2, READ | WRITE, 1, 3, 1),
            (2, MKNOD, 99, 0, 1),
            (2, READ, 99, 0, 0),
            (2, MKNOD | READ, 99, 0, 0),
            (2, READ | WRITE, 136, 7, 1),
            (2, READ | MKNOD, 136, 7, 0),
            (1, READ, 8, 1, 1),
            (1, READ | WRITE, 8, 1, 0),
            (1, READ | WRITE, 8, 2, 1),
            (1, MKNOD, 9, 0, 0),
        ] {
            assert_eq!(
                answer(&program, kind, access, major, minor),
                expected,
                "{kind} {access} {major}:{minor}"
            );
        }
    }

    #[test]
    fn no_rule_is_no_device() {
        assert_eq!(answer(&program(&[]), 2, READ, 1, 3), 0);
    }
}
