//! The archive format of an initramfs ("newc"; Linux: Documentation/driver-api/early-userspace/buffer-format.rst),
//! written so that the same entries give the same bytes: no times, no owners, inodes counted.

use std::collections::BTreeSet;

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    count: u32,
    directories: BTreeSet<String>,
}

/// A path, or a file, that the format cannot hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot put `{0}` into an initramfs: too large")]
pub(crate) struct TooLarge(String);

impl Archive {
    /// A directory, with those above it.
    pub(crate) fn directory(&mut self, path: &str) -> Result<(), TooLarge> {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above)?;
        }
        if !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// A file with its permissions; directories above it are made.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<(), TooLarge> {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above)?;
        }
        self.entry(path, FILE | permissions, (0, 0), content)
    }

    /// A character device.
    pub(crate) fn device(
        &mut self,
        path: &str,
        permissions: u32,
        number: (u32, u32),
    ) -> Result<(), TooLarge> {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above)?;
        }
        self.entry(path, CHARACTER | permissions, number, &[])
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<(), TooLarge> {
        let too_large = || TooLarge(path.to_owned());
        let size = u32::try_from(content.len()).map_err(|_| too_large())?;
        let name = u32::try_from(path.len()).ok().and_then(|n| n.checked_add(1)).ok_or_else(too_large)?;
        self.count = self.count.checked_add(1).ok_or_else(too_large)?;
        // magic, inode, mode, uid, gid, links, time, size, device (2), special device (2), name's length, checksum
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        self.bytes.extend_from_slice(b"070701");
        for field in [self.count, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
        Ok(())
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// The archive. It may be followed by another one: the kernel unpacks one after the other.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>, TooLarge> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.pad(512);
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_as_the_format_says() {
        let mut archive = Archive::default();
        archive.file("a/b", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(
            &bytes[..110 + 2],
            format!(
                "070701{:08x}{:08x}{}{:08x}{}{:08x}{:08x}a\0",
                1,
                0o40755,
                "00000000".repeat(2),
                2,
                "00000000".repeat(6),
                2,
                0
            )
            .as_bytes()
        );
        let second = 110 + 2; // header and "a\0" are a multiple of four
        assert_eq!(&bytes[second..second + 6], b"070701");
        assert_eq!(&bytes[second + 54..second + 62], b"00000005");
        let data = second + 110 + 4 + 2;
        assert_eq!(&bytes[data..data + 8], b"hello\0\0\0");
        assert!(bytes.len().is_multiple_of(512));
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }

    #[test]
    fn a_directory_is_written_once() {
        let mut archive = Archive::default();
        archive.file("d/e/1", 0o644, b"").unwrap();
        archive.file("d/e/2", 0o644, b"").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.windows(4).filter(|w| *w == b"d/e\0").count(), 1);
    }
}
