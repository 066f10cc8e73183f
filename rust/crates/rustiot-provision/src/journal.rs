//! `/state/provision/journal.json`: what provisioning has finished, over all starts.
//!
//! Its use: work whose result cannot change by itself is not looked at on every start. Truth stays with the thing
//! itself: without a journal, or with a damaged one, every step looks for itself and comes to the same end.

use crate::os::Os;
use serde::{Deserialize, Serialize};
use std::path::Path;

pub(crate) const PATH: &str = "/state/provision/journal.json";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Journal {
    /// Length of the medium for which the partition table is known to be right.
    pub table_for: u64,
    /// Length of the `data` partition that its file system fills.
    pub data_filled: u64,
    /// The first start has come to its end.
    pub first_boot_done: bool,
}

impl Journal {
    pub fn load(os: &impl Os) -> Self {
        let bytes = os.read(Path::new(PATH), 1 << 16).ok().flatten().unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Changes the journal, durably, when there is a change.
    pub fn update(&mut self, os: &impl Os, change: impl FnOnce(&mut Self)) -> std::io::Result<()> {
        let before = self.clone();
        change(self);
        if *self == before {
            return Ok(());
        }
        let text = serde_json::to_vec(self).unwrap_or_default();
        os.make_dir(Path::new("/state/provision"), 0o755)?;
        os.write(Path::new(PATH), &text, 0o644, true)
    }
}
