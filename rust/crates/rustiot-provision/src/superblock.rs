//! What the first bytes of a partition say about what lies there: an ext4, nothing, or something else.
//!
//! Pure: the answer decides whether a partition is formatted, so all that is not surely blank is *something*. Source:
//! Documentation/filesystems/ext4, "super block". Used by [`crate::storage`].

/// How much of a partition is looked at to call it blank.
pub const PROBE: usize = 128 * 1024;

/// Where ext4 keeps its superblock, and in it the magic number, the state and the label; the second bit of the state
/// says that the kernel found errors.
const SUPERBLOCK: usize = 1024;
const MAGIC_AT: usize = 56;
const STATE_AT: usize = 58;
const LABEL_AT: usize = 120;
const MAGIC: u16 = 0xef53;
const ERROR_FS: u16 = 2;
/// A file system has this at the end of its label until it is whole: a broken one that says so held nothing.
pub const UNFINISHED: &str = "-new";

/// What a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// An ext4.
    Ext4 {
        /// The kernel has found errors in it.
        errors: bool,
        /// It was being made and never finished.
        unfinished: bool,
    },
    /// Nothing: all zeros, or all ones as flash is when erased.
    Blank,
    /// Something else.
    Other,
}

/// Looks at the first [`PROBE`] bytes of a partition, or at all of a smaller one.
#[must_use]
pub fn look(bytes: &[u8]) -> Found {
    let superblock = bytes.get(SUPERBLOCK..).unwrap_or(&[]);
    let field =
        |at: usize| superblock.get(at..).and_then(<[u8]>::first_chunk).map(|b| u16::from_le_bytes(*b));
    if field(MAGIC_AT) == Some(MAGIC) {
        let label =
            superblock.get(LABEL_AT..).and_then(<[u8]>::first_chunk::<16>).copied().unwrap_or_default();
        let end = label.iter().position(|byte| *byte == 0).unwrap_or(label.len());
        let unfinished = label.get(..end).is_some_and(|label| label.ends_with(UNFINISHED.as_bytes()));
        return Found::Ext4 { errors: field(STATE_AT).unwrap_or(0) & ERROR_FS != 0, unfinished };
    }
    let blank = [0, 0xff].iter().any(|fill| bytes.iter().all(|byte| byte == fill));
    if blank { Found::Blank } else { Found::Other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ext4(state: u16, label: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[SUPERBLOCK + MAGIC_AT..][..2].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[SUPERBLOCK + STATE_AT..][..2].copy_from_slice(&state.to_le_bytes());
        bytes[SUPERBLOCK + LABEL_AT..][..label.len()].copy_from_slice(label);
        bytes
    }

    #[test]
    fn state_and_label_are_read_and_the_rest_is_blank_or_something() {
        let found = |errors, unfinished| Found::Ext4 { errors, unfinished };
        assert_eq!(look(&ext4(1, b"data")), found(false, false));
        assert_eq!(look(&ext4(3, b"data-new")), found(true, true));
        assert_eq!(look(&ext4(1, b"a-label-of-1-new")), found(false, true));
        assert_eq!(look(&ext4(1, b"data\0-new")), found(false, false), "behind the label's end");
        assert_eq!(look(&ext4(1, b"data")[..SUPERBLOCK + STATE_AT]), found(false, false));
        assert_eq!((look(&[0; 4096]), look(&[0xff; 4096])), (Found::Blank, Found::Blank));
        assert_eq!(look(&[&[0; 4095][..], &[0xff]].concat()), Found::Other);
    }

    proptest! {
        #[test]
        fn what_is_there_is_never_called_blank(
            fill in prop_oneof![Just(0u8), Just(0xff)], length in 1usize..4096, at: prop::sample::Index, byte: u8,
        ) {
            let mut bytes = vec![fill; length];
            bytes[at.index(length)] = byte;
            let blank = byte == fill || (length == 1 && [0, 0xff].contains(&byte));
            prop_assert_eq!(look(&bytes) == Found::Blank, blank);
        }

        #[test]
        fn only_the_superblock_makes_an_ext4(bytes in proptest::collection::vec(any::<u8>(), 0..2048), magic: bool) {
            let mut bytes = bytes;
            if magic && let Some(field) = bytes.get_mut(SUPERBLOCK + MAGIC_AT..SUPERBLOCK + MAGIC_AT + 2) {
                field.copy_from_slice(&MAGIC.to_le_bytes());
            }
            let found = look(&bytes);
            let mut other = bytes.clone();
            other.iter_mut().take(SUPERBLOCK).for_each(|byte| *byte = !*byte);
            prop_assert_eq!(matches!(found, Found::Ext4 { .. }), matches!(look(&other), Found::Ext4 { .. }));
            if matches!(found, Found::Ext4 { .. }) {
                prop_assert_eq!(found, look(&other));
            }
        }
    }
}
