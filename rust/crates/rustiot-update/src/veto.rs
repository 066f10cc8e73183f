//! Who puts off a restart: applications that hold a lock on a file in `/run/rustiot/update/vetoes`.
//!
//! The file's name says who, its first line why; the lock is `flock(2)`, so a veto ends with the process that holds it,
//! however that ends, and outlives a restart of this service. Only looks: it takes each lock for an instant, shared,
//! so that two lookers do not see each other. Called by the engine through `ports::Machine`.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::Path;

use crate::status::Veto;

/// Vetoes that are looked at, bytes of a name or reason that are kept.
const MOST: usize = 32;
const TEXT: usize = 120;

/// Vetoes in `dir`, by name.
#[must_use]
pub fn vetoes(dir: &Path) -> Vec<Veto> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<Veto> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .take(MOST)
        .filter_map(|entry| held(&entry.path(), &entry.file_name().to_string_lossy()))
        .collect();
    found.sort_by(|a, b| a.who.cmp(&b.who));
    found
}

fn held(path: &Path, name: &str) -> Option<Veto> {
    let file = File::open(path).ok()?;
    // What cannot be judged is no veto: it would be one for ever.
    let Err(TryLockError::WouldBlock) = file.try_lock_shared() else { return None };
    let mut bytes = Vec::new();
    let _ = file.take(1024).read_to_end(&mut bytes);
    Some(parse(name, &bytes))
}

/// What a veto's name and the start of its file say.
fn parse(name: &str, bytes: &[u8]) -> Veto {
    let text = String::from_utf8_lossy(bytes);
    let why = clean(text.lines().next().unwrap_or_default());
    Veto { who: clean(name), why: if why.is_empty() { "gives no reason".into() } else { why } }
}

fn clean(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_veto_is_a_lock_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(vetoes(&dir.path().join("none")), []);
        let path = dir.path().join("pump");
        rustiot_durable::atomic_write(&path, b"is\trunning\nmore").unwrap();
        rustiot_durable::atomic_write(&dir.path().join("stale"), b"old").unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        assert_eq!(vetoes(dir.path()), []);
        let file = File::open(&path).unwrap();
        file.lock().unwrap();
        assert_eq!(vetoes(dir.path()), [Veto { who: "pump".into(), why: "isrunning".into() }]);
        drop(file);
        assert_eq!(vetoes(dir.path()), []);
    }

    proptest! {
        #[test]
        fn whatever_an_application_writes_is_one_short_line(
            name in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..1024), text in "[\\r\\n\u{1b}a ]{0,300}",
        ) {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                let veto = parse(&name, bytes);
                prop_assert!(!veto.why.is_empty());
                for said in [&veto.who, &veto.why] {
                    prop_assert!(!said.chars().any(char::is_control) && said.chars().count() <= TEXT, "{said:?}");
                }
            }
        }
    }
}
