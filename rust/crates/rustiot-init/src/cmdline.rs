//! What the boot loader says: the kernel command line (which boot partition on U-Boot boards, and the faults that a lab
//! image may ask for), a UEFI variable, a property of the device tree.
//!
//! Pure. Called by [`crate::boot`].

use rustiot_loader::Guid;

/// A fault that a test asks init to have. Honoured in lab images only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Stop for ever before the root is opened; the watchdog must end it.
    Hang,
    /// A Rust panic; the panic hook must reboot.
    Panic,
    /// PID 1 exits; the kernel panics and must reboot.
    Exit,
}

/// What init reads from the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// `rustiot.boot=<PARTUUID>` of the partition that the boot script loaded this kernel from.
    pub boot: Option<Guid>,
    /// `rustiot.fault=init-hang|init-panic|init-exit`.
    pub fault: Option<Fault>,
}

impl Cmdline {
    /// Parses `/proc/cmdline`. The last of two equal keys counts, as for the kernel itself. Unknown words and
    /// unknown faults are ignored.
    #[must_use]
    pub fn parse(text: &str) -> Cmdline {
        let mut out = Cmdline::default();
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("rustiot.boot", uuid)) => out.boot = uuid.parse().ok(),
                Some(("rustiot.fault", "init-hang")) => out.fault = Some(Fault::Hang),
                Some(("rustiot.fault", "init-panic")) => out.fault = Some(Fault::Panic),
                Some(("rustiot.fault", "init-exit")) => out.fault = Some(Fault::Exit),
                _ => {}
            }
        }
        out
    }
}

/// A property of the device tree that is one number: a cell, big-endian.
#[must_use]
pub fn cell(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// The value of a UEFI variable file that holds a UUID as UTF-16 text: four bytes of attributes, then the text,
/// with or without a closing NUL (Boot Loader Interface: `LoaderDevicePartUUID`).
#[must_use]
pub fn uuid_variable(bytes: &[u8]) -> Option<Guid> {
    let text = bytes.get(4..)?;
    if text.len() > 256 || !text.len().is_multiple_of(2) {
        return None;
    }
    let units: Vec<u16> = text
        .as_chunks::<2>()
        .0
        .iter()
        .map(|pair| u16::from_le_bytes(*pair))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16(&units).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: &str = "1f2e3d4c-0000-4000-8000-abcdefabcdef";

    #[test]
    fn finds_its_words_among_others() {
        let line = Cmdline::parse(&format!(
            "quiet rustiot.boot={} ro rustiot.fault=init-hang\n",
            UUID.to_uppercase()
        ));
        assert_eq!(line, Cmdline { boot: UUID.parse().ok(), fault: Some(Fault::Hang) });
        assert_eq!(Cmdline::parse("rustiot.fault=unheard-of rustiot.boot=sda1"), Cmdline::default());
    }

    #[test]
    fn a_cell_has_four_bytes() {
        assert_eq!(cell(&[0, 0, 1, 2]), Some(258));
        assert_eq!((cell(&[0, 0, 1]), cell(&[0; 8])), (None, None));
    }

    #[test]
    fn reads_the_loaders_variable() {
        let mut bytes = vec![6, 0, 0, 0];
        bytes.extend(UUID.to_uppercase().encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
        assert_eq!(uuid_variable(&bytes), UUID.parse().ok());
        bytes.truncate(bytes.len() - 2);
        assert_eq!(uuid_variable(&bytes), UUID.parse().ok(), "without the NUL");
        bytes.pop();
        assert_eq!(uuid_variable(&bytes), None, "half a character");
        assert_eq!(uuid_variable(&[6, 0]), None);
    }

    proptest! {
        #[test]
        fn parsers_are_total(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Cmdline::parse(&String::from_utf8_lossy(&bytes));
            let _ = uuid_variable(&bytes);
        }
    }
}
