//! Takes releases from Eclipse hawkBit and reports back what became of them.
//!
//! An alternative to the signed repository for those who run hawkBit. It never touches RAUC on a device: it orders from
//! `org.rustiot.Update1`, which verifies, installs, tries and commits as always, and success is reported after the
//! commit. The feature `shim` adds the stand-in for rauc-hawkbit-updater, which does talk to RAUC and is not part of a
//! device's image. Contract: `docs/contracts/hawkbit.md`.

pub mod client;
pub mod ddi;
pub mod driver;
pub mod machine;
pub mod service;
#[cfg(feature = "shim")]
pub mod shim;
pub mod store;
pub mod update1;
pub mod voice;
