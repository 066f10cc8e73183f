//! System call filters: a profile of the OCI specification compiled to classic BPF, for the machine's own architecture
//! and the 32-bit one that it also runs.
//!
//! Pure. Never installs anything. Called when a container is created or entered.
//!
//! Numbers of the same verdict in a row become one range, so Docker's default profile is a few hundred instructions; the
//! kernel answers those that depend on no argument from a bitmap. What a profile says of x32 is refused with its default
//! action: nothing that ships for a device uses it.

use std::collections::BTreeMap;
use std::str::FromStr;

use libcontainer::oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator,
};

use crate::sys::Filter;

/// Why a profile cannot be compiled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Something that needs a listener.
    #[error("the profile's action {0} is not supported")]
    Action(String),
    /// Too many instructions.
    #[error("the profile needs {0} instructions, and the kernel takes 4096")]
    TooLong(usize),
    /// Too many conditions on one call.
    #[error("the profile has too many conditions on the call {0}")]
    Conditions(String),
    /// An argument's index.
    #[error("the call {0} has no argument {1}")]
    Argument(String, usize),
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RETURN: u16 = 0x06;

const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// A call for another architecture than the ones below: nothing can be said of its numbers.
const KILL: u32 = 0x8000_0000;
const X32_BIT: u32 = 0x4000_0000;

struct Architecture {
    audit: u32,
    scmp: Arch,
    number: fn(&str) -> Option<u32>,
}

fn number_of<S: FromStr>(name: &str, id: fn(&S) -> i32) -> Option<u32> {
    S::from_str(name).ok().and_then(|s| u32::try_from(id(&s)).ok())
}

const X86_64: Architecture = Architecture {
    audit: 0xc000_003e,
    scmp: Arch::ScmpArchX86_64,
    number: |name| number_of::<syscalls::x86_64::Sysno>(name, syscalls::x86_64::Sysno::id),
};
const X86: Architecture = Architecture {
    audit: 0x4000_0003,
    scmp: Arch::ScmpArchX86,
    number: |name| number_of::<syscalls::x86::Sysno>(name, syscalls::x86::Sysno::id),
};
const AARCH64: Architecture = Architecture {
    audit: 0xc000_00b7,
    scmp: Arch::ScmpArchAarch64,
    number: |name| number_of::<syscalls::aarch64::Sysno>(name, syscalls::aarch64::Sysno::id),
};
const ARM: Architecture = Architecture {
    audit: 0x4000_0028,
    scmp: Arch::ScmpArchArm,
    number: |name| number_of::<syscalls::arm::Sysno>(name, syscalls::arm::Sysno::id),
};

const RISCV64: Architecture = Architecture {
    audit: 0xc000_00f3,
    scmp: Arch::ScmpArchRiscv64,
    number: |name| number_of::<syscalls::riscv64::Sysno>(name, syscalls::riscv64::Sysno::id),
};

/// The machine's own first, then what else its kernel runs.
const NATIVE: &[Architecture] = if cfg!(target_arch = "aarch64") {
    &[AARCH64, ARM]
} else if cfg!(target_arch = "arm") {
    &[ARM]
} else if cfg!(target_arch = "riscv64") {
    &[RISCV64]
} else {
    &[X86_64, X86]
};

#[derive(Default)]
struct Call<'a> {
    name: &'a str,
    always: Option<u32>,
    rules: Vec<(u32, &'a [LinuxSeccompArg])>,
}

/// The program for this machine. Empty when the profile allows everything.
///
/// # Errors
/// [`Error`].
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<Filter>, Error> {
    compile_for(profile, NATIVE)
}

fn verdict(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    match action {
        LinuxSeccompAction::ScmpActNotify => Err(Error::Action(action.to_string())),
        // EPERM, as libseccomp's users have it.
        LinuxSeccompAction::ScmpActErrno => Ok(0x0005_0000 | (errno.unwrap_or(1) & 0xffff)),
        other => Ok(other.as_u32(errno)),
    }
}

fn compile_for(profile: &LinuxSeccomp, architectures: &[Architecture]) -> Result<Vec<Filter>, Error> {
    let default = verdict(profile.default_action(), profile.default_errno_ret())?;
    let mut code = vec![load(ARCH_AT)];
    for (index, architecture) in architectures.iter().enumerate() {
        let wanted = match profile.architectures() {
            // The first one is the machine's own.
            Some(list) if !list.is_empty() => {
                list.contains(&architecture.scmp) || (index == 0 && list.contains(&Arch::ScmpArchNative))
            }
            _ => index == 0,
        };
        if !wanted {
            continue;
        }
        let section = section(profile, architecture, default)?;
        // Jump over the section with an absolute offset: conditional ones reach 255 instructions only.
        code.push(jump(JEQ, architecture.audit, 1, 0));
        code.push(Filter { code: JA, jt: 0, jf: 0, k: u32::try_from(section.len()).unwrap_or(u32::MAX) });
        code.extend(section);
    }
    code.push(ret(KILL));
    if code.len() > 4096 { Err(Error::TooLong(code.len())) } else { Ok(code) }
}

fn load(offset: u32) -> Filter {
    Filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn ret(value: u32) -> Filter {
    Filter { code: RETURN, jt: 0, jf: 0, k: value }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Filter {
    Filter { code, jt, jf, k }
}

fn section(profile: &LinuxSeccomp, architecture: &Architecture, default: u32) -> Result<Vec<Filter>, Error> {
    let mut calls: BTreeMap<u32, Call<'_>> = BTreeMap::new();
    for entry in profile.syscalls().as_deref().unwrap_or_default() {
        let verdict = verdict(entry.action(), entry.errno_ret())?;
        for name in entry.names() {
            let Some(number) = (architecture.number)(name) else { continue };
            let call = calls.entry(number).or_insert(Call { name, ..Call::default() });
            match entry.args().as_deref() {
                Some(arguments) if !arguments.is_empty() => call.rules.push((verdict, arguments)),
                _ => call.always = Some(verdict),
            }
        }
    }
    let mut code = vec![load(NUMBER_AT)];
    if architecture.audit == X86_64.audit {
        code.push(jump(JGE, X32_BIT, 0, 1));
        code.push(ret(default));
    }
    let mut range: Option<(u32, u32, u32)> = None;
    for (&number, call) in &calls {
        if call.rules.is_empty() {
            let always = call.always.unwrap_or(default);
            range = match range {
                Some((first, last, same)) if last.checked_add(1) == Some(number) && same == always => {
                    Some((first, number, same))
                }
                other => {
                    push_range(&mut code, other);
                    Some((number, number, always))
                }
            };
        } else {
            push_range(&mut code, range.take());
            let block = conditions(call, default)?;
            let skip = u8::try_from(block.len()).map_err(|_| Error::Conditions(call.name.to_owned()))?;
            code.push(jump(JEQ, number, 0, skip));
            code.extend(block);
        }
    }
    push_range(&mut code, range);
    code.push(ret(default));
    Ok(code)
}

fn push_range(code: &mut Vec<Filter>, range: Option<(u32, u32, u32)>) {
    let Some((first, last, value)) = range else { return };
    if first == last {
        code.push(jump(JEQ, first, 0, 1));
    } else {
        code.push(jump(JGE, first, 0, 2));
        code.push(jump(JGT, last, 1, 0));
    }
    code.push(ret(value));
}

/// What happens once the number is known to be this call's: the first rule whose conditions all hold decides.
fn conditions(call: &Call<'_>, default: u32) -> Result<Vec<Filter>, Error> {
    let mut code = Vec::new();
    for (value, arguments) in &call.rules {
        let mut rule = Vec::new();
        for argument in *arguments {
            rule.extend(condition(call.name, argument)?);
        }
        // A condition that fails jumps to the end of its rule.
        let length = rule.len() + 1;
        for (index, step) in rule.into_iter().enumerate() {
            let out =
                u8::try_from(length - index - 1).map_err(|_| Error::Conditions(call.name.to_owned()))?;
            code.push(step.place(out));
        }
        code.push(ret(*value));
    }
    code.push(ret(call.always.unwrap_or(default)));
    Ok(code)
}

/// Where a jump of a condition goes: on by a number of instructions, or out of the rule.
#[derive(Clone, Copy)]
enum To {
    Next(u8),
    Out,
}

enum Step {
    Plain(Filter),
    Jump(u16, u32, To, To),
}

impl Step {
    fn place(self, out: u8) -> Filter {
        let target = |to| match to {
            To::Next(n) => n,
            To::Out => out,
        };
        match self {
            Step::Plain(filter) => filter,
            Step::Jump(code, k, yes, no) => jump(code, k, target(yes), target(no)),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of an argument")]
fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

fn condition(name: &str, argument: &LinuxSeccompArg) -> Result<Vec<Step>, Error> {
    let index = u32::try_from(argument.index()).unwrap_or(u32::MAX);
    if index > 5 {
        return Err(Error::Argument(name.to_owned(), argument.index()));
    }
    let low_at = ARGUMENTS_AT + 8 * index;
    let (low, high) = (Step::Plain(load(low_at)), Step::Plain(load(low_at + 4)));
    let (value_high, value_low) = halves(argument.value());
    let next = To::Next(0);
    Ok(match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => vec![
            high,
            Step::Jump(JEQ, value_high, next, To::Out),
            low,
            Step::Jump(JEQ, value_low, next, To::Out),
        ],
        LinuxSeccompOperator::ScmpCmpNe => vec![
            high,
            Step::Jump(JEQ, value_high, next, To::Next(2)),
            low,
            Step::Jump(JEQ, value_low, To::Out, next),
        ],
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (wanted_high, wanted_low) = halves(argument.value_two().unwrap_or(0));
            let and = |k| Step::Plain(Filter { code: AND, jt: 0, jf: 0, k });
            vec![
                high,
                and(value_high),
                Step::Jump(JEQ, wanted_high, next, To::Out),
                low,
                and(value_low),
                Step::Jump(JEQ, wanted_low, next, To::Out),
            ]
        }
        // Greater: the high half decides unless it is equal.
        LinuxSeccompOperator::ScmpCmpGt => vec![
            high,
            Step::Jump(JGT, value_high, To::Next(3), next),
            Step::Jump(JEQ, value_high, next, To::Out),
            low,
            Step::Jump(JGT, value_low, next, To::Out),
        ],
        LinuxSeccompOperator::ScmpCmpGe => vec![
            high,
            Step::Jump(JGT, value_high, To::Next(3), next),
            Step::Jump(JEQ, value_high, next, To::Out),
            low,
            Step::Jump(JGE, value_low, next, To::Out),
        ],
        LinuxSeccompOperator::ScmpCmpLt => vec![
            high,
            Step::Jump(JGT, value_high, To::Out, next),
            Step::Jump(JEQ, value_high, next, To::Next(2)),
            low,
            Step::Jump(JGE, value_low, To::Out, next),
        ],
        LinuxSeccompOperator::ScmpCmpLe => vec![
            high,
            Step::Jump(JGT, value_high, To::Out, next),
            Step::Jump(JEQ, value_high, next, To::Next(2)),
            low,
            Step::Jump(JGT, value_low, To::Out, next),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer.
    fn answer(program: &[Filter], audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER_AT => number,
            ARCH_AT => audit,
            _ => {
                let (high, low) = halves(arguments[(offset as usize - 16) / 8]);
                if offset.is_multiple_of(8) { low } else { high }
            }
        };
        let (mut accumulator, mut at) = (0_u32, 0_usize);
        loop {
            let i = program[at];
            let branch = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
            at += 1;
            match i.code {
                LOAD => accumulator = word(i.k),
                AND => accumulator &= i.k,
                JA => at += i.k as usize,
                JEQ => at += branch(accumulator == i.k),
                JGT => at += branch(accumulator > i.k),
                JGE => at += branch(accumulator >= i.k),
                RETURN => return i.k,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn profile(json: &str) -> LinuxSeccomp {
        serde_json::from_str(json).unwrap()
    }

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", "write", "open", "close", "stat", "exit_group", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}
        ]}"#;

    #[test]
    fn a_profile_decides_as_it_says() {
        let program = compile_for(&profile(PROFILE), &[X86_64, X86]).unwrap();
        let ask = |number, first: u64| answer(&program, X86_64.audit, number, [first, 0, 0, 0, 0, 0]);
        for number in [0, 1, 2, 3, 4, 231] {
            assert_eq!(ask(number, 0), ALLOW, "{number}");
        }
        assert_eq!(ask(5, 0), EPERM, "fstat is not in the profile");
        assert_eq!(ask(165, 0), EPERM, "mount");
        assert_eq!(ask(435, 0), 0x0005_0026, "clone3 does not exist");
        assert_eq!(ask(56, 17), ALLOW, "clone: a process");
        assert_eq!(ask(56, 0x1000_0000), EPERM, "clone: a user namespace");
        assert_eq!(ask(135, 8), ALLOW);
        assert_eq!(ask(135, 9), EPERM);
        assert_eq!(ask(135, 8 | 1 << 32), EPERM, "the high half counts");
        assert_eq!(ask(41, 2), ALLOW);
        assert_eq!(ask(41, 40), EPERM, "vsock");
        assert_eq!(ask(X32_BIT, 0), EPERM, "x32");
        // 32-bit programs by their own numbers: 3 is read, 5 open, 21 mount.
        assert_eq!(answer(&program, X86.audit, 3, [0; 6]), ALLOW);
        assert_eq!(answer(&program, X86.audit, 5, [0; 6]), ALLOW);
        assert_eq!(answer(&program, X86.audit, 21, [0; 6]), EPERM);
        assert_eq!(answer(&program, AARCH64.audit, 63, [0; 6]), KILL);
    }

    #[test]
    fn every_comparison_compares_as_64_bit() {
        let values = [
            0,
            1,
            4,
            5,
            6,
            u64::from(u32::MAX),
            1 << 32,
            (1 << 32) + 5,
            (5 << 32) + 5,
            (5 << 32) + 6,
            u64::MAX,
        ];
        for against in values {
            for (op, holds) in [
                ("EQ", (|a, b| a == b) as fn(u64, u64) -> bool),
                ("NE", |a, b| a != b),
                ("GT", |a, b| a > b),
                ("GE", |a, b| a >= b),
                ("LT", |a, b| a < b),
                ("LE", |a, b| a <= b),
            ] {
                let text = format!(
                    r#"{{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
                        {{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                          "args": [{{"index": 1, "value": {against}, "op": "SCMP_CMP_{op}"}}]}}]}}"#
                );
                let program = compile_for(&profile(&text), &[X86_64]).unwrap();
                for value in values {
                    let verdict = answer(&program, X86_64.audit, 0, [7, value, 0, 0, 0, 0]);
                    assert_eq!(verdict == ALLOW, holds(value, against), "{value} {op} {against}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        let notify = r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#;
        assert!(matches!(compile(&profile(notify)), Err(Error::Action(_))));
        let argument = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#;
        assert_eq!(compile(&profile(argument)), Err(Error::Argument("read".to_owned(), 6)));
    }
}
