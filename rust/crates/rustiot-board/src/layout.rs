//! The disk layout: partitions in order, their sizes and GUIDs, and the rule that nothing that boots is shared.

use crate::{Error, Finding, LoaderKind, Size, parse, read};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// `conf/layout.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// GUID of the partition table.
    pub disk_guid: Guid,
    /// Every partition starts at a multiple of this.
    pub alignment: Size,
    /// Partitions in their order on the medium.
    #[serde(rename = "partition")]
    pub partitions: Vec<Partition>,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// GPT name (`PARTNAME`), by which the device finds it.
    pub name: String,
    /// What it holds.
    pub content: Content,
    /// The slot it belongs to; absent for what both slots use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<SlotName>,
    /// GPT type.
    #[serde(rename = "type")]
    pub type_guid: Guid,
    /// The partition's own GUID (`PARTUUID`).
    pub guid: Guid,
    /// Size in the image.
    pub size: Size,
    /// Loaders whose boards have this partition; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loaders: Vec<LoaderKind>,
    /// Whether the device grows it to the end of the medium; the last partition only.
    #[serde(default)]
    pub grow: bool,
}

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// FAT with `rustiot.toml`, written by people.
    Config,
    /// Raw: the selector of U-Boot.
    UbootEnv,
    /// FAT with `autoboot.txt`, the selector of the Raspberry Pi's firmware.
    Autoboot,
    /// Kernel, initramfs and device trees of one slot.
    Boot,
    /// erofs and verity tree of one slot.
    Root,
    /// ext4: identity, ledger, last good configuration.
    State,
    /// ext4: applications' data.
    Data,
}

/// Name of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotName {
    /// Slot A.
    A,
    /// Slot B.
    B,
}

/// A GUID in its usual text form; equal whatever the case of its letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// The bytes in the order of the text (RFC 9562), not in the mixed order that GPT stores.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl FromStr for Guid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a GUID such as \"0fc63daf-8483-4772-8e79-3d69d8477de4\"");
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|g| g.len()).ne([8, 4, 4, 4, 12]) || !text.is_ascii() {
            return Err(wrong());
        }
        let number = u128::from_str_radix(&groups.concat(), 16).map_err(|_| wrong())?;
        if text.contains('+') {
            return Err(wrong());
        }
        Ok(Guid(number.to_be_bytes()))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = u128::from_be_bytes(self.0);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            n >> 96,
            (n >> 80) & 0xffff,
            (n >> 64) & 0xffff,
            (n >> 48) & 0xffff,
            n & 0xffff_ffff_ffff
        )
    }
}

impl<'de> Deserialize<'de> for Guid {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Guid {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl Layout {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, is malformed, has an unknown or missing key, or breaks a rule of the layout.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let (file, text) = read(path)?;
        Layout::parse(&file, &text)
    }

    /// Checks `text`, calling it `file` in messages.
    ///
    /// # Errors
    /// As for [`Layout::load`].
    pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
        parse(file, text, Layout::check)
    }

    /// The partitions that boards with `loader` have, in order.
    pub fn for_loader(&self, loader: LoaderKind) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(move |p| p.loaders.is_empty() || p.loaders.contains(&loader))
    }

    /// The partition with this content and slot.
    pub fn find(&self, content: Content, slot: Option<SlotName>) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.content == content && p.slot == slot)
    }

    fn check(&self) -> Result<(), Finding> {
        if !self.alignment.bytes().is_power_of_two() || self.alignment.bytes() < 4096 {
            return Err(Finding::new(
                "alignment",
                format!("{} is no power of two of at least 4 KiB", self.alignment),
                "use \"1 MiB\"",
            ));
        }
        let mut names = HashSet::new();
        let mut guids = HashSet::from([self.disk_guid]);
        for (i, p) in self.partitions.iter().enumerate() {
            let key = |field: &str| format!("partition `{}`.{field}", p.name);
            if !names.insert(&p.name) {
                return Err(Finding::new(
                    key("name"),
                    "is used twice",
                    "give each partition a name of its own",
                ));
            }
            if p.name.is_empty() || p.name.len() > 36 || !p.name.bytes().all(|c| c.is_ascii_graphic()) {
                return Err(Finding::new(
                    key("name"),
                    "is not usable as a GPT name",
                    "use 1 to 36 ASCII letters, digits and dashes",
                ));
            }
            if !guids.insert(p.guid) {
                return Err(Finding::new(
                    key("guid"),
                    format!("{} is used twice", p.guid),
                    "give each partition a GUID of its own",
                ));
            }
            if p.size.bytes() == 0 || !p.size.bytes().is_multiple_of(self.alignment.bytes()) {
                return Err(Finding::new(
                    key("size"),
                    format!("{} is no multiple of the alignment {}", p.size, self.alignment),
                    "round it up",
                ));
            }
            if p.grow && i + 1 != self.partitions.len() {
                return Err(Finding::new(
                    key("grow"),
                    "only the last partition can grow",
                    "move it to the end of the file",
                ));
            }
            self.check_slot(p)?;
        }
        for slot in [SlotName::A, SlotName::B] {
            for (content, name) in [(Content::Boot, "boot"), (Content::Root, "root")] {
                if self.find(content, Some(slot)).is_none() {
                    return Err(Finding::new(
                        "partition",
                        format!("slot {slot:?} has no {name} partition"),
                        "add it",
                    ));
                }
            }
        }
        for (content, name) in [(Content::Boot, "boot"), (Content::Root, "root")] {
            let sizes: HashSet<u64> =
                self.partitions.iter().filter(|p| p.content == content).map(|p| p.size.bytes()).collect();
            if sizes.len() > 1 {
                return Err(Finding::new(
                    "partition",
                    format!("the two {name} partitions differ in size"),
                    "make them equal: every release must fit both slots",
                ));
            }
        }
        for (content, name) in
            [(Content::Config, "config"), (Content::State, "state"), (Content::Data, "data")]
        {
            if self.find(content, None).is_none() {
                return Err(Finding::new("partition", format!("there is no {name} partition"), "add it"));
            }
        }
        Ok(())
    }

    /// Nothing that boots is shared between the slots.
    fn check_slot(&self, p: &Partition) -> Result<(), Finding> {
        let key = format!("partition `{}`.slot", p.name);
        match (p.content, p.slot) {
            (Content::Boot | Content::Root, None) => Err(Finding::new(
                key,
                "a kernel, initramfs or root would lie where both slots use it",
                "give each slot a boot and a root partition of its own",
            )),
            (Content::Boot | Content::Root, Some(slot)) => {
                let twins =
                    self.partitions.iter().filter(|q| q.content == p.content && q.slot == Some(slot)).count();
                if twins > 1 {
                    return Err(Finding::new(key, "the slot has two partitions of this content", "keep one"));
                }
                Ok(())
            }
            (_, Some(_)) => {
                Err(Finding::new(key, "only boot and root partitions belong to a slot", "remove the key"))
            }
            (_, None) => Ok(()),
        }
    }
}
