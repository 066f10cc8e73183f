//! Paths that `cp` names in a container, and file modes as Go numbers them.
//!
//! Pure. What a link in the path points to is the engine's to resolve; here a path only becomes absolute and clean.
//! Public for the fuzz target.

use crate::Error;

/// Absolute and clean: no `.`, no `..`, no empty component; a trailing `/` or `/.` is kept, because it says that the
/// path must be a directory, and `/.` that its contents are meant: the names in the archive begin with `./` then.
///
/// # Errors
/// [`Error::Invalid`] for nothing, a zero byte, and more than the kernel takes.
pub fn clean(path: &str) -> Result<String, Error> {
    if path.is_empty() {
        return Err(Error::Invalid("bad parameter: 'path' cannot be empty".to_owned()));
    }
    if path.contains('\0') {
        return Err(Error::Invalid("bad parameter: 'path' contains a zero byte".to_owned()));
    }
    if path.len() > 4096 {
        return Err(Error::Invalid("bad parameter: 'path' is longer than 4096 bytes".to_owned()));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if clean != "/" && (path.ends_with('/') || path.ends_with("/.")) {
        clean.push('/');
    }
    if path.ends_with("/.") {
        clean.push('.');
    }
    Ok(clean)
}

/// `st_mode` of Linux as Go's `os.FileMode`.
pub fn go_mode(mode: u32) -> u32 {
    let kind = match mode & 0o170_000 {
        0o040_000 => 1 << 31,
        0o120_000 => 1 << 27,
        0o060_000 => 1 << 26,
        0o020_000 => 1 << 26 | 1 << 21,
        0o010_000 => 1 << 25,
        0o140_000 => 1 << 24,
        _ => 0,
    };
    let bit = |linux: u32, go: u32| if mode & linux == 0 { 0 } else { 1 << go };
    (mode & 0o777) | kind | bit(0o4000, 23) | bit(0o2000, 22) | bit(0o1000, 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_absolute_and_keep_their_directory_mark() {
        for (path, expected) in [
            ("etc/hosts", "/etc/hosts"),
            ("/etc//./hosts", "/etc/hosts"),
            ("/etc/", "/etc/"),
            ("/etc/.", "/etc/."),
            ("/./.", "/."),
            ("../../etc/passwd", "/etc/passwd"),
            ("/a/../../b/..", "/"),
            (".", "/"),
            ("/", "/"),
            ("/a/..b", "/a/..b"),
        ] {
            assert_eq!(clean(path).unwrap(), expected, "{path}");
        }
        assert!(clean("").is_err() && clean("a\0b").is_err() && clean(&"a/".repeat(3000)).is_err());
    }

    proptest! {
        #[test]
        fn a_clean_path_never_climbs_and_stays_as_it_is(path in "[a./\\PC]{1,60}") {
            if let Ok(once) = clean(&path) {
                prop_assert!(once.starts_with('/'));
                let inner = once.strip_suffix("/.").unwrap_or(&once);
                prop_assert!(inner.split('/').all(|part| part != ".." && part != "."));
                prop_assert_eq!(clean(&once).unwrap(), once);
            }
        }
    }

    #[test]
    fn modes_are_gos() {
        assert_eq!(go_mode(0o100_644), 0o644);
        assert_eq!(go_mode(0o041_777), 1 << 31 | 1 << 20 | 0o777);
        assert_eq!(go_mode(0o120_777), 1 << 27 | 0o777);
        assert_eq!(go_mode(0o020_666), 1 << 26 | 1 << 21 | 0o666);
        assert_eq!(go_mode(0o104_755), 1 << 23 | 0o755);
    }
}
