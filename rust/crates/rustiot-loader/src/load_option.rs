//! UEFI boot entries (`EFI_LOAD_OPTION`) as bytes: parsing what firmware and other systems wrote, making our own.
//!
//! Pure. Any bytes may come, so nothing here panics; what is not understood is left out, never guessed. Called by
//! [`crate::UefiLoader`]. Source: UEFI specification 2.10, sections 3.1.3 (load options) and 10.3 (device paths).

use std::fmt;

/// `LOAD_OPTION_ACTIVE`.
const ACTIVE: u32 = 1;
/// Device path node: media, hard drive.
const HARD_DRIVE: (u8, u8) = (4, 1);
/// Device path node: media, file path.
const FILE_PATH: (u8, u8) = (4, 4);
/// Device path node: end of the entire path.
const END: (u8, u8) = (0x7f, 0xff);
/// Hard drive node: the partition table is a GPT, and the signature is a GUID.
const GPT_AND_GUID: [u8; 2] = [2, 2];

/// A GUID as it lies in tables and variables: the first three groups little-endian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

/// Order of the bytes in the text form.
const TEXT_ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, index) in TEXT_ORDER.into_iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0.get(index).copied().unwrap_or_default())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not a GUID in text form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a GUID")]
pub struct NotAGuid(
    /// What was given.
    pub String,
);

impl std::str::FromStr for Guid {
    type Err = NotAGuid;

    /// `8f4c5d0e-6b1a-4d3f-9d1e-00000000000a`, in upper or lower case.
    fn from_str(text: &str) -> Result<Guid, NotAGuid> {
        let bad = || NotAGuid(text.to_owned());
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) {
            return Err(bad());
        }
        let digits = groups.concat();
        let mut bytes = [0; 16];
        for (at, index) in TEXT_ORDER.into_iter().enumerate() {
            let from = at.saturating_mul(2);
            let pair = digits.get(from..from.saturating_add(2)).ok_or_else(bad)?;
            if !pair.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *bytes.get_mut(index).ok_or_else(bad)? = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Guid(bytes))
    }
}

/// A partition as a boot entry names it. Blocks are the disk's logical ones (512 bytes, as a rule).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootPartition {
    /// Number in the table, from 1.
    pub number: u32,
    /// First block.
    pub start: u64,
    /// Length in blocks.
    pub blocks: u64,
    /// The partition's unique GUID.
    pub guid: Guid,
}

/// What we understand of a boot entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOption {
    /// The firmware may boot it by itself.
    pub active: bool,
    /// Its name in menus.
    pub description: String,
    /// The partition, if the path names one by GUID.
    pub partition: Option<BootPartition>,
    /// The file on it.
    pub file: Option<String>,
}

/// Takes a boot entry apart; `None` if it is not one. Total: any bytes may come.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<LoadOption> {
    let (attributes, rest) = bytes.split_first_chunk::<4>()?;
    let (path_len, rest) = rest.split_first_chunk::<2>()?;
    let (description, rest) = utf16_until_nul(rest)?;
    let mut path = rest.get(..usize::from(u16::from_le_bytes(*path_len)))?;
    let mut option = LoadOption {
        active: u32::from_le_bytes(*attributes) & ACTIVE != 0,
        description,
        partition: None,
        file: None,
    };
    loop {
        let (head, _) = path.split_first_chunk::<4>()?;
        let [kind, subkind, len @ ..] = *head;
        let len = usize::from(u16::from_le_bytes(len));
        let body = path.get(4..len)?;
        match (kind, subkind) {
            END => return Some(option),
            HARD_DRIVE => option.partition = hard_drive(body),
            FILE_PATH => option.file = utf16_until_nul(body).map(|(file, _)| file),
            _ => {}
        }
        path = path.get(len..)?;
    }
}

fn hard_drive(body: &[u8]) -> Option<BootPartition> {
    let (number, rest) = body.split_first_chunk::<4>()?;
    let (start, rest) = rest.split_first_chunk::<8>()?;
    let (blocks, rest) = rest.split_first_chunk::<8>()?;
    let (guid, format) = rest.split_first_chunk::<16>()?;
    (format == GPT_AND_GUID).then_some(BootPartition {
        number: u32::from_le_bytes(*number),
        start: u64::from_le_bytes(*start),
        blocks: u64::from_le_bytes(*blocks),
        guid: Guid(*guid),
    })
}

/// The text before the first NUL, and what follows it.
fn utf16_until_nul(bytes: &[u8]) -> Option<(String, &[u8])> {
    let mut units = Vec::new();
    let mut rest = bytes;
    loop {
        let (unit, after) = rest.split_first_chunk::<2>()?;
        rest = after;
        match u16::from_le_bytes(*unit) {
            0 => return Some((String::from_utf16_lossy(&units), rest)),
            unit => units.push(unit),
        }
    }
}

/// The bytes of an active boot entry for `file` on `partition`. The path is in its short form, which starts at the
/// partition: the firmware looks for the GUID on all disks.
#[must_use]
pub fn build(description: &str, partition: &BootPartition, file: &str) -> Vec<u8> {
    let mut drive = Vec::new();
    drive.extend(partition.number.to_le_bytes());
    drive.extend(partition.start.to_le_bytes());
    drive.extend(partition.blocks.to_le_bytes());
    drive.extend(partition.guid.0);
    drive.extend(GPT_AND_GUID);
    let mut path = node(HARD_DRIVE, &drive);
    path.extend(node(FILE_PATH, &utf16(file)));
    path.extend(node(END, &[]));

    let mut bytes = ACTIVE.to_le_bytes().to_vec();
    bytes.extend(u16::try_from(path.len()).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(utf16(description));
    bytes.extend(path);
    bytes
}

fn node((kind, subkind): (u8, u8), body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len().saturating_add(4)).unwrap_or(u16::MAX);
    let mut bytes = vec![kind, subkind];
    bytes.extend(len.to_le_bytes());
    bytes.extend(body);
    bytes
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition() -> BootPartition {
        BootPartition {
            number: 2,
            start: 67584,
            blocks: 196_608,
            guid: "8f4c5d0e-6b1a-4d3f-9d1e-00000000000a".parse().unwrap(),
        }
    }

    /// Laid out by hand from the specification.
    #[test]
    fn an_entry_has_the_bytes_of_the_specification() {
        let mut expected = vec![1, 0, 0, 0, 42 + 4 + 6 + 4, 0];
        expected.extend(b"A\0\0\0");
        expected.extend([4, 1, 42, 0, 2, 0, 0, 0]);
        expected.extend([0, 8, 1, 0, 0, 0, 0, 0]);
        expected.extend([0, 0, 3, 0, 0, 0, 0, 0]);
        expected
            .extend([0x0e, 0x5d, 0x4c, 0x8f, 0x1a, 0x6b, 0x3f, 0x4d, 0x9d, 0x1e, 0, 0, 0, 0, 0, 0x0a, 2, 2]);
        expected.extend([4, 4, 10, 0]);
        expected.extend(b"\\\0F\0\0\0");
        expected.extend([0x7f, 0xff, 4, 0]);
        assert_eq!(build("A", &partition(), "\\F"), expected);
    }

    #[test]
    fn a_guid_reads_as_it_prints() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let guid: Guid = text.to_uppercase().parse().unwrap();
        assert_eq!(guid.0[..4], [0x33, 0x22, 0x11, 0x00]);
        assert_eq!(guid.to_string(), text);
        for bad in
            ["", "00112233", "0011223-44455-6677-8899-aabbccddeeff", "+0112233-4455-6677-8899-aabbccddeeff"]
        {
            assert!(bad.parse::<Guid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn foreign_nodes_are_skipped_and_nonsense_is_refused() {
        let mut path = node((2, 1), &[0; 8]);
        path.extend(node(HARD_DRIVE, &[7; 3]));
        path.extend(node(END, &[]));
        let mut bytes = vec![0, 0, 0, 0, u8::try_from(path.len()).unwrap(), 0];
        bytes.extend(utf16("Foreign"));
        bytes.extend(&path);
        let option = parse(&bytes).unwrap();
        assert_eq!((option.active, option.description.as_str()), (false, "Foreign"));
        assert_eq!((option.partition, option.file), (None, None));
        // A node of length 0 must not be an endless loop.
        assert_eq!(parse(&[1, 0, 0, 0, 4, 0, 0, 0, 4, 1, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn an_entry_survives_the_round_trip(
            description in "[^\0]{0,40}", number: u32, start: u64, blocks: u64, guid: [u8; 16], file in "[^\0]{0,40}"
        ) {
            let partition = BootPartition { number, start, blocks, guid: Guid(guid) };
            let option = parse(&build(&description, &partition, &file)).unwrap();
            prop_assert_eq!(option, LoadOption { active: true, description, partition: Some(partition), file: Some(file) });
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_damaged_entry_never_panics(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut bytes = build("RustIoT A", &partition(), "\\EFI\\BOOT\\BOOTX64.EFI");
            let index = at.index(bytes.len());
            bytes[index] = byte;
            bytes.truncate(cut.index(bytes.len() + 1));
            let _ = parse(&bytes);
        }
    }
}
