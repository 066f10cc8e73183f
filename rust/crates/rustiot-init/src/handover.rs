//! Frees the memory of the initramfs before the real root takes over.
//!
//! Only ever removes files of the file system that `/` itself is on, and only when that is no disk. Called by `main`.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// Removes everything on the file system of `root`, which must live in memory; mount points stay.
pub fn empty_initramfs(root: &Path) {
    let Ok(meta) = fs::symlink_metadata(root) else { return };
    // a file system without a block device has major number 0 (proc(5): anonymous devices)
    if nix::libc::major(meta.dev()) == 0 {
        empty(root, meta.dev());
    }
}

fn empty(directory: &Path, device: u64) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.dev() != device {
            continue;
        }
        // what stays only costs memory
        let _ = if meta.is_dir() {
            empty(&path, device);
            fs::remove_dir(&path)
        } else {
            fs::remove_file(&path)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sample::put;

    #[test]
    fn removes_files_and_links_but_not_what_links_point_to() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(&outside.path().join("keep"), "x");
        put(&root.path().join("a/b/c"), "x");
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        let device = fs::symlink_metadata(root.path()).unwrap().dev();
        empty(root.path(), device);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        assert!(outside.path().join("keep").exists());
    }

    #[test]
    fn another_file_system_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        put(&root.path().join("a/b"), "x");
        let device = fs::symlink_metadata(root.path()).unwrap().dev();
        empty(root.path(), device.wrapping_add(1));
        assert!(root.path().join("a/b").exists());
    }
}
