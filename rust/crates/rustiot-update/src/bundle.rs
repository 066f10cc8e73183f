//! May this bundle be installed on this device? Looks at what RAUC verified and read, decides, touches nothing.
//!
//! Pure. Called by the engine between RAUC's `InspectBundle` and the announcement to the boot ledger.

use rustiot_boot::{Release, Slot};
use semver::Version;

use crate::failure::{Failure, Kind};

/// An image of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Slot class: `root` or `boot`.
    pub class: String,
    /// Bytes; 0 when the manifest does not say.
    pub size: u64,
}

/// What RAUC says about a bundle whose signature it has verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// SHA-256 of the manifest, hex.
    pub hash: String,
    /// The board it is for.
    pub compatible: String,
    /// The release's version.
    pub version: Option<String>,
    /// RAUC's bundle format: `plain`, `verity`, `crypt`.
    pub format: String,
    /// Its images.
    pub images: Vec<Image>,
    /// It carries a hook or a handler.
    pub has_code: bool,
}

impl Manifest {
    /// Bytes that an install writes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.images.iter().fold(0, |sum, image| sum.saturating_add(image.size))
    }
}

/// What the decision needs to know of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The board.
    pub compatible: String,
    /// Lowest version that may be installed.
    pub floor: Option<String>,
    /// Manifest hash of the running release, where it was installed from a bundle.
    pub running: Option<String>,
    /// The slot that would be written.
    pub target: Slot,
    /// Bytes that `root` and `boot` of that slot hold, where known.
    pub capacity: Vec<(String, u64)>,
}

/// Decides whether `manifest` may be installed.
///
/// # Errors
/// A [`Failure`] whose kind says why not.
pub fn check(source: &str, manifest: &Manifest, device: &Device, force: bool) -> Result<Release, Failure> {
    match manifest.format.as_str() {
        "verity" | "crypt" => {}
        "plain" => return Err(crate::failure::classify(source, "Bundle format 'plain' not allowed")),
        other => return Err(bad(format!("unknown bundle format {other:?}"))),
    }
    if manifest.compatible != device.compatible {
        return Err(Failure::new(
            Kind::WrongBoard,
            format!(
                "{source} is a release for {:?}, this device is {:?}",
                manifest.compatible, device.compatible
            ),
        )
        .hint("use the bundle of this board"));
    }
    if manifest.has_code {
        return Err(bad("it carries a hook or handler, which would run outside the slots".into()));
    }
    let mut classes: Vec<&str> = manifest.images.iter().map(|image| image.class.as_str()).collect();
    classes.sort_unstable();
    if classes != ["boot", "root"] {
        return Err(bad(format!("it holds the images [{}] instead of boot and root", classes.join(", "))));
    }
    if manifest.hash.len() != 64 || !manifest.hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad("RAUC gave no manifest hash for it".into()));
    }
    let Some(text) = &manifest.version else {
        return Err(bad("its manifest has no version".into()));
    };
    let version = Version::parse(text).map_err(|e| {
        bad(format!("its version {text:?} is not a semantic version such as 1.2.3")).because(e.to_string())
    })?;
    if let Some(floor) = &device.floor
        && let Ok(lowest) = Version::parse(floor)
        && version.cmp_precedence(&lowest).is_lt()
    {
        return Err(Failure::new(
            Kind::BelowFloor,
            format!("{version} is older than {lowest}, the oldest release this device may run"),
        )
        .hint("install a newer release; the floor only ever rises"));
    }
    for image in &manifest.images {
        let capacity =
            device.capacity.iter().find(|(class, _)| *class == image.class).map(|(_, bytes)| *bytes);
        if let Some(capacity) = capacity
            && image.size > capacity
        {
            return Err(Failure::new(
                Kind::TooLarge,
                format!(
                    "the {} image has {} bytes, its partition {}-{} only {capacity}",
                    image.class, image.size, image.class, device.target
                ),
            )
            .hint("the release was built for another disk layout"));
        }
    }
    if !force && device.running.as_deref() == Some(manifest.hash.as_str()) {
        return Err(Failure::new(
            Kind::AlreadyRunning,
            format!("{version} is the release that runs already"),
        )
        .hint("`--force` installs it once more into the other slot"));
    }
    Ok(Release { version: text.clone(), manifest_hash: manifest.hash.to_ascii_lowercase() })
}

fn bad(what: String) -> Failure {
    Failure::new(Kind::BadManifest, format!("not a RustIoT OS release: {what}"))
        .hint("an OS bundle has a version and exactly the images root and boot, no hooks")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest() -> Manifest {
        Manifest {
            hash: "ab".repeat(32),
            compatible: "rustiot-x".into(),
            version: Some("1.2.3".into()),
            format: "verity".into(),
            images: vec![Image { class: "root".into(), size: 100 }, Image { class: "boot".into(), size: 10 }],
            has_code: false,
        }
    }

    fn device() -> Device {
        Device {
            compatible: "rustiot-x".into(),
            floor: None,
            running: None,
            target: Slot::B,
            capacity: vec![("root".into(), 100), ("boot".into(), 10)],
        }
    }

    fn kind(manifest: &Manifest, device: &Device) -> Option<Kind> {
        check("x", manifest, device, false).err().map(|f| f.kind)
    }

    #[test]
    fn a_good_bundle_is_a_release() {
        let release = check("x", &manifest(), &device(), false).unwrap();
        assert_eq!((release.version.as_str(), release.manifest_hash), ("1.2.3", "ab".repeat(32)));
    }

    #[test]
    fn each_flaw_is_refused_for_what_it_is() {
        type Change = fn(&mut Manifest, &mut Device);
        let table: &[(Change, Kind)] = &[
            (|m, _| m.format = "plain".into(), Kind::PlainFormat),
            (|m, _| m.format = "zip".into(), Kind::BadManifest),
            (|m, _| m.compatible = "rustiot-y".into(), Kind::WrongBoard),
            (|m, _| m.has_code = true, Kind::BadManifest),
            (|m, _| drop(m.images.pop()), Kind::BadManifest),
            (|m, _| m.images.push(Image { class: "root".into(), size: 1 }), Kind::BadManifest),
            (|m, _| m.images.clear(), Kind::BadManifest),
            (|m, _| m.hash.clear(), Kind::BadManifest),
            (|m, _| m.version = None, Kind::BadManifest),
            (|m, _| m.version = Some("tuesday".into()), Kind::BadManifest),
            (|_, d| d.floor = Some("1.2.4".into()), Kind::BelowFloor),
            (
                |m, d| (m.version, d.floor) = (Some("1.2.3-rc1".into()), Some("1.2.3".into())),
                Kind::BelowFloor,
            ),
            (|_, d| d.running = Some("ab".repeat(32)), Kind::AlreadyRunning),
            (|m, _| m.images[0].size = 101, Kind::TooLarge),
            (|m, _| m.images[1].size = u64::MAX, Kind::TooLarge),
        ];
        for (number, (change, expected)) in table.iter().enumerate() {
            let (mut m, mut d) = (manifest(), device());
            change(&mut m, &mut d);
            assert_eq!(kind(&m, &d), Some(*expected), "row {number}");
        }
    }

    #[test]
    fn force_lifts_already_running_and_nothing_else() {
        let mut d = device();
        d.running = Some("ab".repeat(32));
        assert!(check("x", &manifest(), &d, true).is_ok());
        d.floor = Some("2.0.0".into());
        assert_eq!(check("x", &manifest(), &d, true).unwrap_err().kind, Kind::BelowFloor);
    }

    #[test]
    fn the_floor_itself_may_be_installed_and_build_metadata_does_not_count() {
        let mut d = device();
        for floor in ["1.2.3", "1.2.3+zzz", "1.2.3-rc9"] {
            d.floor = Some(floor.into());
            assert_eq!(kind(&manifest(), &d), None, "{floor}");
        }
    }

    proptest! {
        #[test]
        fn no_manifest_panics_and_none_larger_than_its_partition_passes(
            hash in ".{0,70}", version in proptest::option::of(".{0,12}"), format in "verity|crypt|plain|.{0,5}",
            sizes in proptest::collection::vec(any::<u64>(), 0..4), cap in any::<u64>(),
        ) {
            let images = sizes.iter().zip(["root", "boot", "root", "x"])
                .map(|(size, class)| Image { class: class.into(), size: *size }).collect();
            let m = Manifest { hash, compatible: "rustiot-x".into(), version, format, images, has_code: false };
            let mut d = device();
            d.capacity = vec![("root".into(), cap), ("boot".into(), cap)];
            if check("x", &m, &d, false).is_ok() {
                prop_assert!(m.images.iter().all(|i| i.size <= cap));
            }
            let _ = m.total();
        }
    }
}
