//! Builds what goes onto a device: the toolbox that does it, the device's programs, the lab image's root, initramfs and
//! boot image, disk images, signed bundles and development keys.
//!
//! ```text
//! Context, Progress ─► Toolbox::ensure ─► image::build ─┬─► disk::disk      what is flashed once
//!                                                       └─► bundle::bundle  what updates a device
//! ```
//!
//! Every step is kept in the cache under the key of its inputs and published in one rename: the second build takes a
//! moment, an interrupted one leaves nothing wrong. The same inputs give the same root hash. It runs as root on a
//! workstation and never touches a device; the CLI and the testbed call it.

mod accounts;
mod apt;
mod base;
mod baseline;
mod boot;
mod bundle;
mod cache;
mod context;
mod cpio;
mod date;
mod disk;
mod engines;
mod error;
pub mod fit;
pub mod guard;
mod image;
mod initramfs;
pub mod keys;
mod module_file;
mod modules;
mod packages;
mod programs;
mod publisher;
mod releases;
mod root;
mod sbom;
mod toolbox;

pub use apt::Mirror;
pub use base::Package;
pub use baseline::{ArchiveSizes, Baseline, Generator, archive_sizes};
pub use bundle::{BundleRequest, bundle};
pub use context::{Context, Plain, Progress, Silent, above_progress};
pub use date::BuildDate;
pub use disk::{DiskRequest, Place, disk, lint, places};
pub use engines::{other_engines, registry_tools};
pub use error::{Error, output_dir, output_file};
pub use image::{Image, Request, Sizes, board, boards, build, check, verify, write_manifest};
pub use initramfs::Init;
pub use programs::Programs;
pub use publisher::BundleTools;
pub use releases::{ReleasePair, Releases};
pub use root::{PackageSize, Verity};
pub use toolbox::Toolbox;
