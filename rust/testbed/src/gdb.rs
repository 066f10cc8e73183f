//! Hangs a running guest for real: over QEMU's gdb stub it puts two instructions (interrupts off, jump to self)
//! where each processor stands in the kernel, and lets it go on. They all spin with their interrupts masked, as
//! after a driver's deadlock; nothing in the guest takes part. The watchdog's clock goes on.
//! Protocol: GDB manual, appendix E, "Remote Serial Protocol". Called by `Machine::hang` only.

use crate::{Error, Result};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What of an architecture is needed to stop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arch {
    /// Where the program counter starts in the reply to `g`, in bytes.
    pc_offset: usize,
    /// Interrupts off; jump to self. Little-endian machine code.
    spin: &'static [u8],
}

impl Arch {
    /// x86-64: sixteen general registers of 8 bytes, then `rip`. `cli; jmp .`
    pub(crate) const X86_64: Arch = Arch { pc_offset: 16 * 8, spin: &[0xfa, 0xeb, 0xfe] };
    /// AArch64: `x0`–`x30` and `sp` of 8 bytes, then `pc`. `msr daifset, #0xf; b .`
    pub(crate) const AARCH64: Arch =
        Arch { pc_offset: 32 * 8, spin: &[0xdf, 0x4f, 0x03, 0xd5, 0x00, 0x00, 0x00, 0x14] };
}

/// How long the guest runs between two looks at its processors.
const GO_ON: Duration = Duration::from_millis(20);
/// Stops a guest that runs.
const INTERRUPT: u8 = 3;

/// How long the stub may take to answer one packet.
const REPLY_WITHIN: Duration = Duration::from_secs(30);

fn protocol(text: &str) -> Error {
    Error::Protocol { from: "QEMU's gdb stub", text: text.chars().take(200).collect() }
}

/// `$<body>#<checksum>`; the checksum is the sum of the body's bytes modulo 256.
fn packet(body: &str) -> String {
    let sum = body.bytes().fold(0u8, u8::wrapping_add);
    format!("${body}#{sum:02x}")
}

/// The program counter in a reply to `g`.
fn program_counter(registers: &str, arch: Arch) -> Result<u64> {
    let start = arch.pc_offset.saturating_mul(2);
    let hex = registers
        .get(start..start.saturating_add(16))
        .ok_or_else(|| protocol("a register list that is too short"))?;
    let value = u64::from_str_radix(hex, 16).map_err(|_| protocol(hex))?;
    Ok(value.swap_bytes()) // target byte order is little-endian
}

/// Kernel addresses are the upper half on both architectures.
fn in_kernel(pc: u64) -> bool {
    pc >> 63 == 1
}

struct Stub {
    stream: UnixStream,
}

impl Stub {
    fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(Error::io("connect to", path))?;
        stream.set_read_timeout(Some(REPLY_WITHIN)).map_err(Error::io("set the timeout of", path))?;
        Ok(Self { stream })
    }

    fn send(&mut self, body: &str) -> Result<()> {
        self.stream.write_all(packet(body).as_bytes()).map_err(Error::io("write to", "gdb stub"))
    }

    /// The next packet's body; acknowledges it.
    fn receive(&mut self) -> Result<String> {
        let mut byte = [0u8];
        let mut body = String::new();
        let mut inside = false;
        loop {
            self.stream.read_exact(&mut byte).map_err(Error::io("read from", "gdb stub"))?;
            match (byte, inside) {
                ([b'$'], false) => inside = true,
                ([b'#'], true) => break,
                ([c], true) => body.push(char::from(c)),
                _ => {} // acknowledgements between packets
            }
        }
        let mut checksum = [0u8; 2];
        self.stream.read_exact(&mut checksum).map_err(Error::io("read from", "gdb stub"))?;
        self.stream.write_all(b"+").map_err(Error::io("write to", "gdb stub"))?;
        Ok(body)
    }

    fn ask(&mut self, body: &str) -> Result<String> {
        self.send(body)?;
        self.receive()
    }

    /// A packet that is answered by `OK`.
    fn must(&mut self, body: &str) -> Result<()> {
        match self.ask(body)? {
            reply if reply == "OK" => Ok(()),
            reply => Err(protocol(&format!("{reply} to {body}"))),
        }
    }
}

/// Whether code of `length` bytes fits at each counter without touching that at another one.
fn apart(counters: &[u64], length: usize) -> bool {
    let near = |a: u64, b: u64| a != b && a.abs_diff(b) < u64::try_from(length).unwrap_or(u64::MAX);
    counters.iter().all(|a| counters.iter().all(|b| !near(*a, *b)))
}

/// The thread ids (one a processor) in the replies to `qfThreadInfo` and `qsThreadInfo`.
fn threads(reply: &str) -> Vec<String> {
    let list = reply.strip_prefix('m').unwrap_or_default();
    list.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

/// Hangs the guest behind the stub at `socket` (which is stopped as long as we are connected): all
/// its processors, at an instant at which all of them are in the kernel.
///
/// # Errors
/// When the stub does not answer, or that instant does not come within `within`.
pub(crate) fn hang(socket: &Path, arch: Arch, within: Duration) -> Result<()> {
    let end = Instant::now().checked_add(within);
    let mut stub = Stub::connect(socket)?;
    stub.ask("?")?;
    let mut processors = threads(&stub.ask("qfThreadInfo")?);
    loop {
        let more = threads(&stub.ask("qsThreadInfo")?);
        if more.is_empty() {
            break;
        }
        processors.extend(more);
    }
    if processors.is_empty() {
        return Err(protocol("no processors"));
    }
    loop {
        let mut counters = Vec::new();
        for id in &processors {
            stub.must(&format!("Hg{id}"))?;
            counters.push(program_counter(&stub.ask("g")?, arch)?);
        }
        if counters.iter().all(|pc| in_kernel(*pc)) && apart(&counters, arch.spin.len()) {
            let code: String = arch.spin.iter().map(|b| format!("{b:02x}")).collect();
            for (id, pc) in processors.iter().zip(&counters) {
                stub.must(&format!("Hg{id}"))?;
                stub.must(&format!("M{pc:x},{:x}:{code}", arch.spin.len()))?;
            }
            // Detach: the guest goes on, into the trap.
            return stub.must("D");
        }
        if end.is_none_or(|end| Instant::now() >= end) {
            return Err(Error::Timeout {
                what: "all processors inside the kernel".into(),
                waited: within,
                tail: format!("program counters: {counters:x?}"),
            });
        }
        // Busy in user space or in the firmware: a little further and look again.
        stub.send("c")?;
        std::thread::sleep(GO_ON);
        stub.stream.write_all(&[INTERRUPT]).map_err(Error::io("write to", "gdb stub"))?;
        stub.receive()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_carry_their_checksum() {
        assert_eq!(packet("g"), "$g#67");
        assert_eq!(packet("OK"), "$OK#9a");
    }

    #[test]
    fn the_program_counter_is_little_endian_behind_the_general_registers() {
        for arch in [Arch::X86_64, Arch::AARCH64] {
            let mut registers = "00".repeat(arch.pc_offset);
            registers.push_str("f0debc9a785634ffff");
            assert_eq!(program_counter(&registers, arch).unwrap(), 0xff34_5678_9abc_def0);
            assert!(in_kernel(0xff34_5678_9abc_def0));
            assert!(!in_kernel(0x0000_7fff_0000_1000));
        }
    }

    #[test]
    fn code_for_one_processor_does_not_touch_that_of_another() {
        assert!(apart(&[100, 100, 103], 3));
        assert!(!apart(&[100, 102], 3));
    }

    #[test]
    fn processors_are_listed() {
        assert_eq!(threads("m01,02"), ["01", "02"]);
        assert_eq!(threads("mp01.01"), ["p01.01"]);
        assert!(threads("l").is_empty() && threads("").is_empty());
    }

    #[test]
    fn a_short_register_list_is_an_error() {
        assert!(program_counter("00ff", Arch::X86_64).is_err());
        assert!(program_counter(&"zz".repeat(200), Arch::X86_64).is_err());
    }
}
