//! What the store keeps on disk, and in which order it writes: the part that a power cut may hit.
//!
//! All files lie in one directory. The table names the images; what it does not name is not there, whatever lies in the
//! directory. So a pull, a tag and a removal become real by one replacement of one file, and everything that the table
//! names is durable before. Knows nothing of registries and archives. Called by the store; tested on the model disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rustiot_durable::{Dir, Storage, replace};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, ImageId};
use crate::reference::Reference;
use crate::store::LayerInfo;

/// The table's file.
pub(crate) const TABLE: &str = "table.json";
/// The version of all this.
pub(crate) const VERSION: u32 = 1;
/// Largest table that is read: thousands of images.
const TABLE_MAX: usize = 64 << 20;
/// Prefix of what is being written.
pub(crate) const TEMPORARY: &str = "tmp-";
/// Prefix of what is being downloaded.
pub(crate) const PARTIAL: &str = "partial-";

/// A directory that can also be listed.
pub(crate) trait Place: Storage {
    /// Names of its files.
    fn names(&self) -> io::Result<Vec<String>>;
}

impl Place for Dir {
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.path())?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

pub(crate) fn layer_name(diff_id: &Digest) -> String {
    format!("layer-{}.erofs", diff_id.hex())
}

pub(crate) fn record_name(id: &ImageId) -> String {
    format!("image-{}.json", id.0.hex())
}

pub(crate) fn partial_name(digest: &Digest) -> String {
    format!("{PARTIAL}{}", digest.hex())
}

/// What is known of an image without reading its record.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Known {
    pub manifest: Digest,
    pub layers: Vec<LayerInfo>,
    /// Seconds since 1970.
    pub since: u64,
    #[serde(default)]
    pub repo_digests: BTreeSet<Reference>,
    #[serde(default)]
    pub pins: BTreeSet<String>,
}

/// All images and names.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Table {
    pub version: u32,
    pub images: BTreeMap<ImageId, Known>,
    pub tags: BTreeMap<Reference, ImageId>,
    /// Layers that a scrub found bad, with the reason.
    #[serde(default)]
    pub bad: BTreeMap<Digest, String>,
}

/// A step failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub step: &'static str,
    pub name: String,
    pub source: io::Error,
}

fn failed(step: &'static str, name: &str) -> impl FnOnce(io::Error) -> Failed {
    let name = name.to_owned();
    move |source| Failed { step, name, source }
}

/// The table could not be read.
#[derive(Debug)]
pub(crate) enum LoadError {
    Failed(Failed),
    Version(u32),
}

impl Table {
    /// Reads the table; none is an empty one. One that is no table is an error: nothing is deleted then.
    pub fn load(place: &impl Place) -> Result<Table, LoadError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let read = place.read(TABLE, TABLE_MAX).map_err(failed("read", TABLE)).map_err(LoadError::Failed)?;
        let Some(bytes) = read else { return Ok(Table { version: VERSION, ..Table::default() }) };
        let malformed =
            |error: serde_json::Error| LoadError::Failed(failed("understand", TABLE)(error.into()));
        let head: Head = serde_json::from_slice(&bytes).map_err(malformed)?;
        if head.version != VERSION {
            return Err(LoadError::Version(head.version));
        }
        serde_json::from_slice(&bytes).map_err(malformed)
    }

    /// Replaces the table: the one moment at which a change becomes real.
    pub fn store(&self, place: &impl Place) -> Result<(), Failed> {
        let bytes = serde_json::to_vec(self).map_err(|error| failed("write", TABLE)(error.into()))?;
        replace(place, TABLE, &bytes, 0o600, true).map_err(|(step, source)| failed(step, TABLE)(source))
    }

    /// Files that the table needs.
    fn needed(&self) -> BTreeSet<String> {
        let layers = self
            .images
            .values()
            .flat_map(|known| known.layers.iter())
            .map(|layer| layer_name(&layer.diff_id));
        layers.chain(self.images.keys().map(record_name)).collect()
    }

    /// Images that need a layer.
    pub fn users<'a>(&'a self, diff_id: &'a Digest) -> impl Iterator<Item = &'a ImageId> {
        self.images
            .iter()
            .filter(|(_, known)| known.layers.iter().any(|layer| layer.diff_id == *diff_id))
            .map(|(id, _)| id)
    }
}

/// A layer that was written under a temporary name gets its own. It is not durable as a name before [`publish`].
pub(crate) fn settle_layer(place: &impl Place, temporary: &str, diff_id: &Digest) -> Result<(), Failed> {
    place.sync(temporary).map_err(failed("sync", temporary))?;
    let name = layer_name(diff_id);
    place.rename(temporary, &name).map_err(failed("name", &name))
}

/// Makes an image real: its record and all names so far are made durable, then the table is replaced.
pub(crate) fn publish(
    place: &impl Place,
    records: &[(ImageId, Vec<u8>)],
    table: &Table,
) -> Result<(), Failed> {
    for (id, record) in records {
        let (name, temporary) = (record_name(id), format!("{TEMPORARY}{}", record_name(id)));
        place.write(&temporary, record, 0o600).map_err(failed("write", &name))?;
        place.sync(&temporary).map_err(failed("sync", &name))?;
        place.rename(&temporary, &name).map_err(failed("name", &name))?;
    }
    place.sync_dir().map_err(failed("sync the directory of", TABLE))?;
    table.store(place)
}

/// Removes files that the table does not need, other than downloads and what is in the making. Safe at any moment:
/// the table has been replaced before.
pub(crate) fn sweep(
    place: &impl Place,
    table: &Table,
    in_the_making: &BTreeSet<String>,
    temporary_too: bool,
) -> Result<Vec<String>, Failed> {
    let needed = table.needed();
    let mut gone = Vec::new();
    for name in place.names().map_err(failed("list", "."))? {
        let ours = name.starts_with("layer-") || name.starts_with("image-");
        let leftover = ours && !needed.contains(&name) && !in_the_making.contains(&name);
        let temporary = temporary_too && name.starts_with(TEMPORARY) && !in_the_making.contains(&name);
        if leftover || temporary {
            place.remove(&name).map_err(failed("remove", &name))?;
            gone.push(name);
        }
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use rustiot_durable::model::{ModelDisk, Remount};

    use super::*;

    impl Place for ModelDisk {
        fn names(&self) -> io::Result<Vec<String>> {
            Ok(ModelDisk::names(self))
        }
    }

    fn layer(text: &str) -> LayerInfo {
        let diff_id = Digest::of(text.as_bytes());
        LayerInfo { diff_id, digest: diff_id, fetched: 1, size: text.len() as u64 }
    }

    /// Makes the layers that are not there, and publishes an image of them under `tag`.
    fn pull(disk: &ModelDisk, table: &mut Table, tag: &str, texts: &[&str]) -> Result<ImageId, Failed> {
        for text in texts {
            let name = layer_name(&Digest::of(text.as_bytes()));
            if disk.read(&name, 1).unwrap().is_none() {
                disk.write("tmp-layer", text.as_bytes(), 0).map_err(failed("write", &name))?;
                settle_layer(disk, "tmp-layer", &Digest::of(text.as_bytes()))?;
            }
        }
        let record = format!("record of {texts:?}").into_bytes();
        let id = ImageId(Digest::of(&record));
        let known = Known {
            manifest: id.0,
            layers: texts.iter().map(|text| layer(text)).collect(),
            since: 0,
            repo_digests: BTreeSet::new(),
            pins: BTreeSet::new(),
        };
        let mut next = table.clone();
        next.images.insert(id, known);
        next.tags.insert(tag.parse().unwrap(), id);
        publish(disk, &[(id, record)], &next)?;
        *table = next;
        Ok(id)
    }

    fn remove(disk: &ModelDisk, table: &mut Table, id: ImageId) -> Result<(), Failed> {
        let mut next = table.clone();
        next.images.remove(&id);
        next.tags.retain(|_, of| *of != id);
        next.store(disk)?;
        *table = next;
        sweep(disk, table, &BTreeSet::new(), false).map(drop)
    }

    /// Everything that the table names is there, to the last byte.
    fn whole(disk: &ModelDisk, table: &Table) {
        for (id, known) in &table.images {
            let record = disk.read(&record_name(id), 1000).unwrap().expect("a record");
            assert_eq!(Digest::of(&record), id.0);
            for layer in &known.layers {
                let bytes = disk.read(&layer_name(&layer.diff_id), 1000).unwrap().expect("a layer");
                assert_eq!(Digest::of(&bytes), layer.diff_id);
            }
        }
        for id in table.tags.values() {
            assert!(table.images.contains_key(id));
        }
    }

    /// One history: pull, pull a newer one over the same tag, remove the old one. Gives what is visible afterwards.
    fn history(disk: &ModelDisk) -> Result<(), Failed> {
        let mut table = match Table::load(disk) {
            Ok(table) => table,
            Err(error) => panic!("{error:?}"),
        };
        let old = pull(disk, &mut table, "app", &["base", "old"])?;
        pull(disk, &mut table, "app", &["base", "new", "newer"])?;
        remove(disk, &mut table, old)
    }

    #[test]
    fn a_power_cut_at_any_operation_leaves_only_whole_images() {
        let total = {
            let disk = ModelDisk::default();
            history(&disk).unwrap();
            disk.operations()
        };
        assert!(total > 20, "{total}");
        for cut in 0..=total {
            for remount in Remount::some(48) {
                let disk = ModelDisk::default();
                disk.cut_after(cut);
                let finished = history(&disk).is_ok();
                disk.remount(remount);
                let table = Table::load(&disk).expect("a table can always be read");
                whole(&disk, &table);
                // What was reported is there.
                assert!(!finished || table.images.len() == 1, "cut {cut}, {remount:?}");
                // The next start cleans up and the same history runs to its end.
                sweep(&disk, &table, &BTreeSet::new(), true).unwrap();
                whole(&disk, &table);
                history(&disk).unwrap();
                let table = Table::load(&disk).unwrap();
                whole(&disk, &table);
                assert_eq!((table.images.len(), table.tags.len()), (1, 1));
                // Three layers, one record, the table.
                assert_eq!(ModelDisk::names(&disk).len(), 5, "{:?}", ModelDisk::names(&disk));
            }
        }
    }

    /// The test can fail: naming a layer before its contents are synced is caught.
    #[test]
    fn the_model_catches_a_layer_that_is_not_synced() {
        let torn = Remount::some(32).any(|remount| {
            let disk = ModelDisk::default();
            let mut table = Table { version: VERSION, ..Table::default() };
            disk.write("tmp-layer", b"base", 0).unwrap();
            disk.rename("tmp-layer", &layer_name(&Digest::of(b"base"))).unwrap();
            pull(&disk, &mut table, "app", &["base"]).unwrap();
            disk.remount(remount);
            disk.read(&layer_name(&Digest::of(b"base")), 10).unwrap().as_deref() != Some(b"base")
        });
        assert!(torn);
    }

    #[test]
    fn a_table_of_another_version_or_kind_is_not_touched() {
        let disk = ModelDisk::default();
        disk.write(TABLE, br#"{"version": 2, "images": []}"#, 0).unwrap();
        assert!(matches!(Table::load(&disk), Err(LoadError::Version(2))));
        disk.write(TABLE, b"\0\0\0", 0).unwrap();
        assert!(matches!(Table::load(&disk), Err(LoadError::Failed(_))));
    }
}
