//! The machine id of this boot: the persistent one, or a fresh one until provisioning has made it persistent.
//!
//! Never writes to the state partition. Called by [`crate::boot`]. Source: machine-id(5).

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

/// The id in `/state/identity/machine-id`, or a random one.
///
/// # Errors
/// The kernel gives no random bytes.
pub fn machine_id(root: &Path) -> io::Result<String> {
    let kept = fs::read(root.join("state/identity/machine-id")).ok().and_then(|bytes| parse(&bytes));
    match kept {
        Some(id) => Ok(id),
        None => {
            let mut bytes = [0; 16];
            // blocks until the kernel's generator is seeded, so that two devices cannot draw the same id (random(4))
            fs::File::open(root.join("dev/random"))?.read_exact(&mut bytes)?;
            Ok(format(bytes))
        }
    }
}

/// A machine id: 32 hex digits in lower case, not all zero, with or without a line end.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (text.len() == 32 && hex && text.bytes().any(|b| b != b'0')).then(|| text.to_string())
}

/// The random bytes as a version 4 UUID without dashes, which is what machine-id(5) asks of new ids.
fn format(mut bytes: [u8; 16]) -> String {
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
    *version = (*version & 0x0f) | 0x40;
    *variant = (*variant & 0x3f) | 0x80;
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sample::put;
    use proptest::prelude::*;

    #[test]
    fn takes_the_persistent_id_and_only_a_sound_one() {
        let root = tempfile::tempdir().unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        put(&root.path().join("dev/random"), "\u{0}123456789abcdef");
        put(&root.path().join("state/identity/machine-id"), &format!("{id}\n"));
        assert_eq!(machine_id(root.path()).unwrap(), id);
        for bad in ["", "uninitialized\n", &"0".repeat(32), &id.to_uppercase(), &id[1..]] {
            put(&root.path().join("state/identity/machine-id"), bad);
            assert_eq!(machine_id(root.path()).unwrap(), "0031323334354637b839616263646566", "{bad}");
        }
    }

    #[test]
    fn fails_without_randomness() {
        let root = tempfile::tempdir().unwrap();
        assert!(machine_id(root.path()).is_err());
    }

    proptest! {
        #[test]
        fn fresh_ids_are_sound_and_parsing_is_total(random: [u8; 16], bytes: Vec<u8>) {
            let id = format(random);
            prop_assert_eq!(parse(id.as_bytes()), Some(id.clone()));
            prop_assert_eq!(&id[12..13], "4");
            let _ = parse(&bytes);
        }
    }
}
