//! What the image builder tells init: `/rustiot/init.json` and `/rustiot/verity.json` in the initramfs.
//!
//! Parses and checks values only. Never touches a device. Called by [`crate::boot`].

use serde::Deserialize;

/// The boot loader family of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoaderKind {
    /// UEFI firmware; the slot is known by the variable `LoaderDevicePartUUID`.
    Uefi,
    /// U-Boot; the slot is known by `rustiot.boot=` on the kernel command line.
    Uboot,
    /// The Raspberry Pi's firmware; the slot is known by the partition that it names in the device tree.
    Tryboot,
}

/// The hardware watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WatchdogConfig {
    /// Device node.
    pub device: String,
    /// Time without food after which the hardware resets, in seconds.
    pub timeout_s: u32,
    /// Time since exec after which init never feeds again, in seconds.
    pub deadline_s: u32,
}

/// Memory that keeps the kernel log over a warm reset, where no device tree describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Ramoops {
    /// Physical address in bytes.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
}

impl Ramoops {
    /// Parameters of the `ramoops` kernel module (Linux: Documentation/admin-guide/ramoops.rst). The whole area
    /// goes to crash records: a quarter each, so that a long crash fits and a second one does not erase it.
    #[must_use]
    pub fn params(&self) -> String {
        let record = self.size.checked_div(4).unwrap_or(0).max(4096);
        format!(
            "mem_address={:#x} mem_size={:#x} record_size={record:#x} console_size=0 pmsg_size=0 ftrace_size=0",
            self.address, self.size
        )
    }
}

/// `/rustiot/init.json`. Unknown keys are ignored, so that an older init reads a newer file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InitConfig {
    /// Board name, for people.
    pub board: String,
    /// Boot loader family.
    pub loader: LoaderKind,
    /// Kernel modules in load order: watchdog first, then what the disk and the root need.
    #[serde(default)]
    pub modules: Vec<String>,
    /// The watchdog, or nothing on a board without one.
    #[serde(default)]
    pub watchdog: Option<WatchdogConfig>,
    /// Modules that only the rescue network needs, in load order.
    #[serde(default)]
    pub network_modules: Vec<String>,
    /// Parameters for the `ramoops` module.
    #[serde(default)]
    pub ramoops: Option<Ramoops>,
    /// Lab image: `rustiot.fault=` on the kernel command line is honoured. Production images leave it out.
    #[serde(default)]
    pub lab: bool,
}

impl InitConfig {
    /// Parses the file.
    ///
    /// # Errors
    /// [`ConfigError`] with line and column when it is not what this page describes.
    pub fn parse(bytes: &[u8]) -> Result<InitConfig, ConfigError> {
        serde_json::from_slice(bytes).map_err(|source| ConfigError::Parse { file: "init.json", source })
    }
}

/// `/rustiot/verity.json`: where the hash tree of the root is, and the hash that everything hangs on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Verity {
    /// Bytes per data block.
    pub data_block_size: u32,
    /// Bytes per hash block.
    pub hash_block_size: u32,
    /// Data blocks that the tree covers.
    pub data_blocks: u64,
    /// First block of the tree, in hash blocks from the start of the partition (no superblock).
    pub hash_start_block: u64,
    /// Hash algorithm as the kernel's crypto API names it.
    pub algorithm: String,
    /// Root hash in hex.
    pub root_hash: String,
    /// Salt in hex; may be empty.
    pub salt: String,
}

impl Verity {
    /// Parses the file and checks all that can be checked without the partition. Every text field ends up in a
    /// line for the kernel, so nothing but hex and algorithm names passes.
    ///
    /// # Errors
    /// [`ConfigError`] naming the field.
    pub fn parse(bytes: &[u8]) -> Result<Verity, ConfigError> {
        let verity: Verity = serde_json::from_slice(bytes)
            .map_err(|source| ConfigError::Parse { file: "verity.json", source })?;
        let field = |field, ok| if ok { Ok(()) } else { Err(ConfigError::Verity { field }) };
        let block = |size: u32| size.is_power_of_two() && (512..=65536).contains(&size);
        field("data_block_size", block(verity.data_block_size))?;
        field("hash_block_size", block(verity.hash_block_size))?;
        field("data_blocks", verity.data_blocks > 0)?;
        field(
            "algorithm",
            !verity.algorithm.is_empty()
                && verity.algorithm.len() <= 32
                && verity.algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
        )?;
        field("root_hash", is_hex(&verity.root_hash) && (40..=128).contains(&verity.root_hash.len()))?;
        field("salt", is_hex(&verity.salt) && verity.salt.len() <= 512)?;
        Ok(verity)
    }
}

fn is_hex(text: &str) -> bool {
    text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A file in the initramfs is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the JSON that was expected.
    #[error("cannot parse /rustiot/{file}")]
    Parse {
        /// File name.
        file: &'static str,
        /// Line, column and what was expected.
        #[source]
        source: serde_json::Error,
    },
    /// A value that can not be right.
    #[error("/rustiot/verity.json: {field} is out of range")]
    Verity {
        /// The key.
        field: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INIT: &str = r#"{"board":"qemux86-64","loader":"uefi","modules":["/lib/modules/a.ko"],
        "watchdog":{"device":"/dev/watchdog","timeout_s":60,"deadline_s":180},
        "network_modules":["/lib/modules/net.ko"],"ramoops":null,"from_the_future":1}"#;

    #[test]
    fn reads_the_contracts_example_and_is_not_a_lab_image_by_default() {
        let config = InitConfig::parse(INIT.as_bytes()).unwrap();
        assert_eq!(config.loader, LoaderKind::Uefi);
        assert_eq!(config.modules, ["/lib/modules/a.ko"]);
        assert_eq!(config.watchdog.unwrap().deadline_s, 180);
        assert!(!config.lab);
    }

    #[test]
    fn gives_all_of_ramoops_to_crash_records() {
        let ramoops = Ramoops { address: 0x4000_0000, size: 0x10_0000 };
        assert!(
            ramoops.params().starts_with("mem_address=0x40000000 mem_size=0x100000 record_size=0x40000 ")
        );
    }

    fn verity(change: impl Fn(&mut serde_json::Value)) -> Result<Verity, ConfigError> {
        let mut value = serde_json::json!({"data_block_size":4096,"hash_block_size":4096,"data_blocks":100,
            "hash_start_block":100,"algorithm":"sha256","root_hash":"ab".repeat(32),"salt":""});
        change(&mut value);
        Verity::parse(value.to_string().as_bytes())
    }

    #[test]
    fn refuses_verity_values_that_the_kernel_must_not_see() {
        assert!(verity(|_| ()).is_ok());
        for (key, bad) in [
            ("data_block_size", serde_json::json!(4095)),
            ("hash_block_size", serde_json::json!(0)),
            ("data_blocks", serde_json::json!(0)),
            ("algorithm", serde_json::json!("sha256 x")),
            ("root_hash", serde_json::json!("zz".repeat(32))),
            ("root_hash", serde_json::json!("")),
            ("salt", serde_json::json!("abc")),
        ] {
            let error = verity(|v| v[key] = bad.clone()).unwrap_err();
            assert!(matches!(error, ConfigError::Verity { field } if field == key), "{key}: {error}");
        }
    }

    proptest! {
        #[test]
        fn parsers_are_total(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = InitConfig::parse(&bytes);
            let _ = Verity::parse(&bytes);
        }
    }
}
