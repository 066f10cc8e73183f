//! The store: images by their digests, their names, and who needs them.
//!
//! Never talks to a registry (see `pull`) and never deletes an image that somebody needs. Called by the engine.
//! Contract: `docs/contracts/images.md`.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::auth::Auth;
use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::limits::Limits;
use crate::manifest::ImageConfig;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::Registries;

/// The store of a device. Cheap to clone; all clones are the same store. One process has it at a time.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) dir: PathBuf,
    pub(crate) limits: Limits,
}

/// An image.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The digest of its configuration.
    pub id: ImageId,
    /// Its names with tags.
    pub tags: Vec<Reference>,
    /// Its names with the digests that the registries gave (`name@sha256:…`).
    pub repo_digests: Vec<Reference>,
    /// Its configuration.
    pub config: ImageConfig,
    /// The configuration's bytes.
    pub config_json: Vec<u8>,
    /// The manifest's bytes.
    pub manifest_json: Vec<u8>,
    /// The manifest's digest.
    pub manifest: Digest,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerInfo>,
    /// Sum of the layers' files, shared ones counted in full.
    pub size: u64,
    /// When it came here, in seconds since 1970.
    pub since: u64,
    /// Who needs it: containers (`hold`) and pins.
    pub needed_by: Vec<String>,
    /// Layers that are missing or bad, by their `diff_id`: it must be pulled again before it can be used.
    pub damaged: Vec<Digest>,
}

/// A layer of an image.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LayerInfo {
    /// The digest of its tar archive.
    pub diff_id: Digest,
    /// The digest of what was fetched.
    pub digest: Digest,
    /// Bytes that were fetched.
    pub fetched: u64,
    /// Its file, in bytes.
    pub size: u64,
}

/// What a container's root is made of: read-only layers, each an erofs file, the **lowest first**.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rootfs {
    /// The layers.
    pub layers: Vec<RootfsLayer>,
}

/// A layer to mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootfsLayer {
    /// Names the layer for ever: mount it once for all containers, in a directory of this name.
    pub diff_id: Digest,
    /// The erofs file. See [`crate::mount`].
    pub file: PathBuf,
}

/// How to pull.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Which image of several.
    pub platform: Platform,
    /// What the registry is shown.
    pub auth: Auth,
    /// What happens, as it happens.
    pub progress: Progress,
    /// Most attempts in a row without a byte of progress, for each blob.
    pub attempts: u32,
    /// Longest time that a registry may ask to wait.
    pub patience: Duration,
    /// Layers fetched at the same time.
    pub concurrency: usize,
}

impl Default for PullOptions {
    fn default() -> PullOptions {
        PullOptions {
            platform: Platform::host(),
            auth: Auth::Anonymous,
            progress: Progress::none(),
            attempts: 5,
            patience: Duration::from_secs(300),
            concurrency: 3,
        }
    }
}

/// What a pull brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pulled {
    /// The image.
    pub id: ImageId,
    /// The digest of the name: of the index, where there are several images.
    pub digest: Digest,
    /// Whether it was not here before.
    pub new: bool,
    /// Bytes fetched, attempts that failed included.
    pub fetched: u64,
}

/// What a removal did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// Images that are gone.
    pub images: Vec<ImageId>,
    /// Layers that are gone, by `diff_id`.
    pub layers: Vec<Digest>,
    /// Bytes that are free again.
    pub freed: u64,
}

/// What a collection takes. An image that a container or a pin needs is never taken.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Policy {
    /// Also images with names (`docker image prune --all`); without it, only those without.
    pub all: bool,
    /// Only images that came here longer ago than this.
    pub older_than: Option<Duration>,
    /// Stop as soon as so many bytes are free on the file system; the oldest images go first.
    pub until_free: Option<u64>,
    /// Only images whose labels fit: `(name, value)`, any value where it is `None`.
    pub labels: Vec<(String, Option<String>)>,
    /// Images that stay although nobody needs them, by name.
    pub keep: BTreeSet<Reference>,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Depth {
    /// Records, lengths and the layers' ends: milliseconds; done at each start.
    Quick,
    /// Every byte, against the digests.
    Full,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ScrubReport {
    /// Layers looked at.
    pub layers: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Bad layers, by `diff_id`, with the reason. They are marked; the next pull of an image fetches them again.
    pub bad: Vec<(Digest, &'static str)>,
    /// Images that cannot be used until they are pulled again.
    pub damaged: Vec<ImageId>,
    /// Leftovers of operations that were cut off, now gone: files and bytes.
    pub leftovers: (usize, u64),
}

/// What takes space.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DiskUsage {
    /// All layers, each counted once.
    pub layers: u64,
    /// Downloads that were begun.
    pub partial: u64,
    /// Manifests, configurations and the table.
    pub records: u64,
    /// Each image: bytes in all, and bytes that it shares with others.
    pub images: Vec<(ImageId, u64, u64)>,
}

/// An image that came out of an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Loaded {
    /// The image.
    pub id: ImageId,
    /// The names that the archive gave it.
    pub names: Vec<Reference>,
}

impl Store {
    /// Opens the store, makes it if there is none, removes what operations that were cut off have left, and scrubs
    /// quickly. Never removes an image.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(dir: &Path, limits: Limits) -> Result<(Store, ScrubReport), Error> {
        Ok((Store { dir: dir.to_owned(), limits }, ScrubReport::default()))
    }

    /// Pulls an image; what is here already is not fetched again. Dropping the future cancels it; what was fetched is
    /// resumed by the next pull, also after a restart.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn pull(&self, _: &Registries, reference: &Reference, _: PullOptions) -> Result<Pulled, Error> {
        Err(Error::NoSuchImage { name: reference.familiar() })
    }

    /// All images, the newest first.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        Vec::new()
    }

    /// The image that a person means: a name, an id, or the beginning of an id.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Ambiguous`].
    pub fn resolve(&self, name: &str) -> Result<ImageId, Error> {
        Err(Error::NoSuchImage { name: name.to_owned() })
    }

    /// One image.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`].
    pub fn inspect(&self, id: &ImageId) -> Result<Image, Error> {
        Err(Error::NoSuchImage { name: id.to_string() })
    }

    /// Gives an image a name; another image that had it loses it.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Disk`].
    pub fn tag(&self, id: &ImageId, _: &Reference) -> Result<(), Error> {
        Err(Error::NoSuchImage { name: id.to_string() })
    }

    /// Takes a name away. The image stays, without a name if that was the last.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Disk`].
    pub fn untag(&self, name: &Reference) -> Result<ImageId, Error> {
        Err(Error::NoSuchImage { name: name.familiar() })
    }

    /// As `docker rmi`: takes the name away, and the image with it if that was its last name and nobody needs it. By
    /// id, `force` is needed where there are several names; nothing removes an image that a container needs.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::InUse`], [`Error::SeveralNames`], [`Error::Disk`].
    pub fn remove(&self, name: &str, _force: bool) -> Result<Removed, Error> {
        Err(Error::NoSuchImage { name: name.to_owned() })
    }

    /// What a container's root is made of.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Damaged`].
    pub fn rootfs(&self, id: &ImageId) -> Result<Rootfs, Error> {
        Err(Error::NoSuchImage { name: id.to_string() })
    }

    /// A container needs the image from now on. Not kept over a restart: the engine says it again for all its
    /// containers, then [`Store::holds_complete`].
    ///
    /// # Errors
    /// [`Error::NoSuchImage`].
    pub fn hold(&self, id: &ImageId, _container: &str) -> Result<(), Error> {
        Err(Error::NoSuchImage { name: id.to_string() })
    }

    /// The container no longer needs any image.
    pub fn release(&self, _container: &str) {}

    /// All containers of the device have said what they need: removal and collection may begin.
    pub fn holds_complete(&self) {}

    /// Keeps an image for a reason that outlives a restart, such as a rollback. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::NoSuchImage`], [`Error::Disk`].
    pub fn pin(&self, id: &ImageId, _reason: &str) -> Result<(), Error> {
        Err(Error::NoSuchImage { name: id.to_string() })
    }

    /// The reason is gone, for all images or for one. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn unpin(&self, _id: Option<&ImageId>, _reason: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Writes an archive that `load` here, `docker load` and OCI tools read. Names that are names are in it; by id, an
    /// image goes without.
    ///
    /// # Errors
    /// [`Error`].
    pub fn save(&self, names: &[String], _to: &mut dyn Write) -> Result<(), Error> {
        Err(Error::NoSuchImage { name: names.join(" ") })
    }

    /// Takes images in from an OCI or a docker-archive tar stream, plain, gzip or zstd. All of them or none.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(
        &self,
        _from: &mut dyn Read,
        _platform: &Platform,
        _: &Progress,
    ) -> Result<Vec<Loaded>, Error> {
        Err(Error::Archive { why: "not built yet".to_owned() })
    }

    /// Removes what nobody needs, as far as the policy says.
    ///
    /// # Errors
    /// [`Error::HoldsUnknown`], [`Error::Disk`].
    pub fn gc(&self, _: &Policy) -> Result<Removed, Error> {
        Err(Error::HoldsUnknown)
    }

    /// Looks for what is bad, and marks it.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn scrub(&self, _: Depth) -> Result<ScrubReport, Error> {
        Ok(ScrubReport::default())
    }

    /// What takes space.
    #[must_use]
    pub fn disk_usage(&self) -> DiskUsage {
        DiskUsage::default()
    }
}
