//! The durable part of the state: one small file, replaced as a whole.
//!
//! Read leniently: what cannot be parsed is as good as nothing, since the server repeats what it wants. Decides
//! nothing. Used by the driver.

use std::path::PathBuf;

use crate::machine::State;

/// Longest file that is read.
const MOST: u64 = 1 << 20;

/// Where the state is kept.
#[derive(Clone, Debug)]
pub enum Store {
    /// In this file, with mode 0600: links may carry signatures.
    File(PathBuf),
    /// Nowhere (the shim: its original remembers nothing either).
    Nowhere,
}

impl Store {
    /// What was remembered last.
    #[must_use]
    pub fn load(&self) -> State {
        let Self::File(path) = self else { return State::Idle };
        let read = || {
            use std::io::Read;
            let mut text = Vec::new();
            std::fs::File::open(path).ok()?.take(MOST).read_to_end(&mut text).ok()?;
            serde_json::from_slice(&text).ok()
        };
        read().unwrap_or_default()
    }

    /// Remembers.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, state: &State) -> Result<(), SaveError> {
        let Self::File(path) = self else { return Ok(()) };
        let text = serde_json::to_vec(&state.durable()).map_err(SaveError::Encode)?;
        rustiot_durable::atomic_write_private(path, &text)
            .map_err(|source| SaveError::Write { path: path.clone(), source })
    }
}

/// The state could not be remembered.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Not on the disk.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustiot_durable::Error,
    },
    /// Not as JSON.
    #[error("cannot encode the state")]
    Encode(#[source] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ddi::ActionId;

    #[test]
    fn only_what_must_survive_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::File(dir.path().join("hawkbit.json"));
        assert_eq!(store.load(), State::Idle);
        store.save(&State::Asking(ActionId::new("1").unwrap())).unwrap();
        assert_eq!(store.load(), State::Idle);
        Store::Nowhere.save(&State::Idle).unwrap();
        assert!(Store::File(dir.path().join("none/x")).save(&State::Idle).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_state(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("s");
            rustiot_durable::atomic_write(&path, &bytes).unwrap();
            let _ = Store::File(path).load();
        }
    }
}
