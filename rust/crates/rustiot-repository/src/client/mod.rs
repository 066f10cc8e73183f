//! The device's client: brings the board's index here through TUF, over any number of mirrors, and remembers enough to
//! notice when somebody turns the clock or the repository back.
//!
//! `tough` does the TUF work on a scratch datastore that lives for one check, with its own expiry check switched off: it
//! asks the system clock, and it refuses to run once that clock has gone back, so a device whose clock was ahead for a
//! moment would be locked out. Expiry of every role is judged here instead, by [`crate::time`]. What must survive a
//! restart is in [`store`]. Never installs anything, never retries by itself. Used by `rustiot-update`.
//!
//! A check costs one conditional request for `timestamp.json` when nothing has changed. `N+1.root.json` is looked for
//! only when the timestamp is another one: the publisher's commands never change the root without a new timestamp, and
//! whoever can hide one from the device can hide the other.

mod error;
mod store;
mod transport;

pub use error::Error;
pub use store::StoreError;

use crate::digest::Digest;
use crate::index::{self, File, Index};
use crate::rollout::Rollouts;
use crate::time::{self, Clock, Doubt, Floor, Metadata};
use rustiot_http::{Http, Url, Validator};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use store::{Memory, Store};
use tough::schema::{RoleType, Root, Signed};
use tough::{ExpirationEnforcement, IntoVec, RepositoryLoader, TargetName};
use transport::{Origin, Transport};

/// The delegated role that signs roll-outs.
pub const ROLLOUT_ROLE: &str = "rollout";
/// Largest `timestamp.json`, bytes.
pub const MAX_TIMESTAMP: u64 = 64 << 10;
/// Largest of the other metadata files, bytes.
pub const MAX_METADATA: u64 = 1 << 20;
/// Most roots that one check goes forward.
pub const MAX_ROOTS: u64 = 256;

/// Name of the TUF target that is the index of a board.
#[must_use]
pub fn index_name(compatible: &str) -> String {
    format!("{compatible}.index.json")
}

/// Name of the TUF target that holds the roll-outs of a board.
#[must_use]
pub fn rollouts_name(compatible: &str) -> String {
    format!("{compatible}.rollout.json")
}

/// What a client needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its directory; made if missing. A few hundred kilobytes at most.
    pub dir: PathBuf,
    /// The root metadata that came with the image.
    pub root: Vec<u8>,
    /// Where the repository is, best first: `http(s)://…/` or `file:///…/`, the directory above `metadata/`.
    pub urls: Vec<Url>,
    /// The board.
    pub compatible: String,
    /// When the running image was built, Unix seconds.
    pub built: u64,
    /// For `http` and `https`.
    pub http: Http,
}

/// Versions of the metadata that was accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// `root.json`
    pub root: u64,
    /// `timestamp.json`
    pub timestamp: u64,
    /// `snapshot.json`
    pub snapshot: u64,
    /// Those that the snapshot names: `targets.json`, `rollout.json`.
    pub roles: BTreeMap<String, u64>,
}

/// What a check cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Requests.
    pub requests: u64,
    /// Bytes of bodies.
    pub bytes: u64,
}

/// A check that succeeded.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The board's index, with roll-outs.
    pub index: Index,
    /// Whether anything is new since the last check that succeeded.
    pub changed: bool,
    /// The time that was believed, Unix seconds: for [`crate::plan::Facts::now`].
    pub now: u64,
    /// The clock was not believed.
    pub doubt: Option<Doubt>,
    /// Versions of the metadata.
    pub versions: Versions,
    /// When the first of its roles expires, Unix seconds.
    pub expires: u64,
    /// What it cost.
    pub traffic: Traffic,
    /// The mirror that answered.
    pub url: Url,
    /// The result holds, but could not be kept on the disk.
    pub unsaved: Option<std::sync::Arc<StoreError>>,
}

/// What has been verified, in memory.
#[derive(Clone, Debug)]
struct Held {
    index: Index,
    versions: Versions,
    signed: u64,
    expires: u64,
    role: &'static str,
    timestamp: Vec<u8>,
}

/// The client. One per process and directory.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    store: Store,
    memory: Memory,
    held: Option<Held>,
}

/// A set of metadata that verifies, not yet judged by the time.
struct Verified {
    held: Held,
    root: Vec<u8>,
    keys: Digest,
    files: BTreeMap<String, Vec<u8>>,
}

impl Client {
    /// Reads what an earlier client has left. A damaged file is dropped: the next check fetches it again, and the
    /// versions and times that must not fall are in a ledger of two copies.
    ///
    /// # Errors
    /// [`Error::TrustedRoot`], [`Error::NoUrl`], or [`Error::Store`] when the directory cannot be made.
    pub fn open(mut settings: Settings) -> Result<Self, Error> {
        let root: Signed<Root> = serde_json::from_slice(&settings.root)
            .map_err(|source| Error::TrustedRoot { source: Box::new(source) })?;
        root.signed.verify_role(&root).map_err(|source| Error::TrustedRoot { source: Box::new(source) })?;
        if settings.urls.is_empty() {
            return Err(Error::NoUrl);
        }
        for url in &mut settings.urls {
            if !url.path().ends_with('/') {
                url.set_path(&format!("{}/", url.path()));
            }
        }
        let store = Store::open(&settings.dir)?;
        let memory = store.load();
        Ok(Client { settings, store, memory, held: None })
    }

    /// The result of the last check that succeeded, without the network; `None` if there was none, or if it is damaged.
    /// Its age is not judged: this is for showing.
    pub async fn last(&mut self) -> Option<Index> {
        self.recall().await;
        self.held.as_ref().map(|held| held.index.clone())
    }

    /// Looks for something new, on the first mirror that gives an answer which verifies.
    ///
    /// # Errors
    /// [`Error`]: of several mirrors, the first one's.
    pub async fn check(&mut self, clock: Clock) -> Result<Checked, Error> {
        self.recall().await;
        let mut first = None;
        for url in self.settings.urls.clone() {
            match self.check_at(&url, clock).await {
                Ok(checked) => return Ok(checked),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or(Error::NoUrl))
    }

    /// Where a file of the repository is, on every mirror.
    #[must_use]
    pub fn urls(&self, file: &File) -> Vec<Url> {
        let path = format!("targets/{}", file.path());
        self.settings.urls.iter().filter_map(|url| url.join(&path).ok()).collect()
    }

    /// Fetches a small file of the repository (details, package lists) and checks it.
    ///
    /// # Errors
    /// [`Error::Fetch`], or [`Error::Mismatch`] when it is another file.
    pub async fn fetch(&self, file: &File, limit: u64) -> Result<Vec<u8>, Error> {
        let mut first = None;
        for url in self.urls(file) {
            match transport::get(&self.settings.http, &url, file.len.min(limit)).await {
                Ok(bytes) if Digest::of(&bytes) == file.sha256 => return Ok(bytes),
                Ok(_) => drop(first.get_or_insert(Error::Mismatch { what: file.path() })),
                Err(source) => drop(first.get_or_insert(Error::Fetch { what: file.path(), source })),
            }
        }
        Err(first.unwrap_or(Error::NoUrl))
    }

    /// Verifies what is on the disk once, so that an answer "not modified" means something.
    async fn recall(&mut self) {
        let Some(timestamp) =
            self.memory.files.get("timestamp.json").cloned().filter(|_| self.held.is_none())
        else {
            return;
        };
        let Some(url) = self.settings.urls.first().cloned() else { return };
        let origin = Origin::Disk;
        match self.verify(&url, timestamp, origin, &mut Traffic::default()).await {
            Ok(verified) => self.held = Some(verified.held),
            // Damaged, or of a root that is gone: fetched again.
            Err(_) => self.memory.forget_files(),
        }
    }

    async fn check_at(&mut self, url: &Url, clock: Clock) -> Result<Checked, Error> {
        let mut traffic = Traffic { requests: 1, bytes: 0 };
        let path = url.join("metadata/timestamp.json").map_err(|_| Error::NoUrl)?;
        let known = self.memory.validators.get(url.as_str()).filter(|_| self.held.is_some()).cloned();
        let have = known.clone().unwrap_or_default();
        let answer = transport::get_if_changed(&self.settings.http, &path, &have, MAX_TIMESTAMP);
        let fetched =
            answer.await.map_err(|source| Error::Fetch { what: "timestamp.json".to_owned(), source })?;
        let (bytes, validator) = match (fetched, &self.held) {
            (None, Some(held)) => (held.timestamp.clone(), known.unwrap_or_default()),
            (None, None) => return Err(Error::Malformed { role: "timestamp", source: None }),
            (Some((bytes, validator)), _) => {
                traffic.bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                (bytes, validator)
            }
        };
        if let Some(held) = self.held.clone().filter(|held| held.timestamp == bytes) {
            // The same as before: only time has passed.
            let metadata = Metadata { signed: held.signed, expires: held.expires, newer: false };
            let fresh = self.judge(clock, metadata, held.role)?;
            let mut checked = checked(held, false, fresh, traffic, url);
            if !validator.is_empty() && self.memory.validators.get(url.as_str()) != Some(&validator) {
                self.memory.validators.insert(url.to_string(), validator);
                checked.unsaved = self.store.save(&self.memory, &BTreeMap::new()).err().map(Into::into);
            }
            return Ok(checked);
        }
        let verified = match self.verify(url, bytes.clone(), Origin::Network, &mut traffic).await {
            // Files of the last check may be damaged, or the repository was made anew: all of it from the network.
            Err(Error::Mismatch { .. }) if !self.memory.files.is_empty() => {
                self.verify(url, bytes, Origin::OnlyNetwork, &mut traffic).await?
            }
            verified => verified?,
        };
        let held = verified.held.clone();
        self.refuse_older(&held, &verified.keys)?;
        let metadata = Metadata {
            signed: held.signed,
            expires: held.expires,
            newer: held.versions.timestamp > self.memory.versions.timestamp
                || self.memory.keys != Some(verified.keys),
        };
        let fresh = self.judge(clock, metadata, held.role)?;
        let floor = self.floor();
        self.memory = Memory {
            versions: held.versions.clone(),
            keys: Some(verified.keys),
            signed: time::remember(clock, floor, metadata),
            validators: [(url.to_string(), validator)].into(),
            root: Some(verified.root),
            files: self.memory.files.clone(),
            hashes: BTreeMap::new(),
        };
        let changed = self.memory.replace_files(verified.files);
        let unsaved = self.store.save(&self.memory, &changed).err();
        self.held = Some(held.clone());
        let mut checked = checked(held, true, fresh, traffic, url);
        checked.unsaved = unsaved.map(Into::into);
        Ok(checked)
    }

    fn floor(&self) -> Floor {
        Floor { built: self.settings.built, signed: self.memory.signed }
    }

    fn judge(&self, clock: Clock, metadata: Metadata, role: &'static str) -> Result<time::Fresh, Error> {
        time::judge(clock, self.floor(), metadata).map_err(|stale| Error::Expired { role, stale })
    }

    /// The ledger's word against the repository's. `tough` has compared with the files of the last check; they may be
    /// damaged or gone, the ledger is not. With other keys for timestamp or snapshot the count starts anew: that is how
    /// TUF recovers from a stolen key that signed absurdly high versions.
    fn refuse_older(&self, held: &Held, keys: &Digest) -> Result<(), Error> {
        let older = |role: &str, have: u64, offered: u64| {
            if offered < have {
                Err(Error::Rollback { role: role.to_owned(), have, offered })
            } else {
                Ok(())
            }
        };
        let (old, new) = (&self.memory.versions, &held.versions);
        older("root", old.root, new.root)?;
        if self.memory.keys.as_ref() != Some(keys) {
            return Ok(());
        }
        older("timestamp", old.timestamp, new.timestamp)?;
        older("snapshot", old.snapshot, new.snapshot)?;
        old.roles
            .iter()
            .try_for_each(|(role, have)| older(role, *have, new.roles.get(role).copied().unwrap_or(0)))
    }

    /// Runs TUF's workflow from the trusted root to the board's index and roll-outs.
    async fn verify(
        &mut self,
        url: &Url,
        timestamp: Vec<u8>,
        origin: Origin,
        traffic: &mut Traffic,
    ) -> Result<Verified, Error> {
        let scratch = tempfile::tempdir().map_err(|source| {
            Error::Store(StoreError {
                what: "make a directory for temporary files in",
                path: std::env::temp_dir(),
                source,
            })
        })?;
        for name in ["timestamp.json", "snapshot.json"] {
            if let Some(bytes) = self.memory.files.get(name) {
                let path = scratch.path().join(name);
                write(&path, bytes)
                    .map_err(|source| Error::Store(StoreError { what: "write", path, source }))?;
            }
        }
        let root = self.trusted_root();
        let transport =
            Transport::new(self.settings.http.clone(), origin, timestamp.clone(), self.memory.files.clone());
        let (metadata, targets) = (
            url.join("metadata/").map_err(|_| Error::NoUrl)?,
            url.join("targets/").map_err(|_| Error::NoUrl)?,
        );
        let loader = RepositoryLoader::new(&root, metadata, targets)
            .transport(transport.clone())
            .datastore(scratch.path())
            .limits(tough::Limits {
                max_root_size: MAX_METADATA,
                max_targets_size: MAX_METADATA,
                max_timestamp_size: MAX_TIMESTAMP,
                max_snapshot_size: MAX_METADATA,
                max_root_updates: MAX_ROOTS,
            })
            .expiration_enforcement(ExpirationEnforcement::Unsafe);
        let loaded = loader.load().await;
        transport.add_to(traffic);
        let repository = match loaded {
            Ok(repository) => repository,
            Err(error) => {
                // The roots that did verify stay trusted: an attacker who breaks what follows cannot hold them back.
                self.keep_root(scratch.path());
                return Err(Error::from_tough(error));
            }
        };
        self.keep_root(scratch.path());
        let compatible = self.settings.compatible.clone();
        let mut files = transport.seen();
        let mut small = BTreeMap::new();
        for (name, optional) in [(index_name(&compatible), false), (rollouts_name(&compatible), true)] {
            let target = TargetName::new(&name).map_err(Error::from_tough)?;
            let stream = repository.read_target(&target).await.map_err(Error::from_tough)?;
            match stream {
                Some(stream) => {
                    let bytes = stream.into_vec().await.map_err(Error::from_tough)?;
                    small.insert(name, bytes);
                }
                None if optional => {}
                None => return Err(Error::NoIndex { compatible: compatible.clone() }),
            }
        }
        transport.add_to(traffic);
        let bad = |name: &str| {
            let name = name.to_owned();
            move |source: index::Error| Error::Index { name, source }
        };
        let empty = Vec::new();
        let (index_file, rollouts_file) = (index_name(&compatible), rollouts_name(&compatible));
        let index = Index::parse(small.get(&index_file).unwrap_or(&empty)).map_err(bad(&index_file))?;
        if index.compatible != compatible {
            return Err(Error::NoIndex { compatible });
        }
        let index = match small.get(&rollouts_file) {
            Some(bytes) => index.with(&Rollouts::parse(bytes).map_err(bad(&rollouts_file))?),
            None => index,
        };
        let signed = repository.timestamp().signed._extra.get(SIGNED_AT).and_then(serde_json::Value::as_u64);
        let expiries = [
            ("root", repository.root().signed.expires),
            ("timestamp", repository.timestamp().signed.expires),
            ("snapshot", repository.snapshot().signed.expires),
            ("targets", repository.targets().signed.expires),
        ];
        let delegated = repository
            .delegated_role(ROLLOUT_ROLE)
            .and_then(|role| role.targets.as_ref())
            .map(|t| t.signed.expires);
        let expiries = expiries.into_iter().chain(delegated.map(|expires| ("rollout", expires)));
        let (role, expires) = expiries
            .map(|(role, expires)| (role, u64::try_from(expires.as_second()).unwrap_or(0)))
            .min_by_key(|(_, expires)| *expires)
            .unwrap_or(("root", 0));
        let snapshot = &repository.snapshot().signed;
        let versions = Versions {
            root: repository.root().signed.version.get(),
            timestamp: repository.timestamp().signed.version.get(),
            snapshot: snapshot.version.get(),
            roles: snapshot.meta.iter().map(|(name, meta)| (name.clone(), meta.version.get())).collect(),
        };
        files.extend(small);
        files.insert("timestamp.json".to_owned(), timestamp.clone());
        let root = serde_json::to_vec(repository.root())
            .map_err(|source| Error::Malformed { role: "root", source: Some(Box::new(source)) })?;
        Ok(Verified {
            keys: keys(&repository.root().signed),
            held: Held { index, versions, signed: signed.unwrap_or(0), expires, role, timestamp },
            root,
            files,
        })
    }

    /// The newest root that is known: the image's or the one of the last check.
    fn trusted_root(&self) -> Vec<u8> {
        let version = |bytes: &[u8]| {
            let root: Signed<Root> = serde_json::from_slice(bytes).ok()?;
            root.signed.verify_role(&root).ok()?;
            Some(root.signed.version.get())
        };
        let newest = [Some(&self.settings.root), self.memory.root.as_ref()];
        newest.into_iter().flatten().max_by_key(|bytes| version(bytes)).cloned().unwrap_or_default()
    }

    /// Keeps the newest root that `tough` has verified on the way.
    fn keep_root(&mut self, scratch: &std::path::Path) {
        let Ok(bytes) = std::fs::read(scratch.join("root.json")) else { return };
        let Ok(root) = serde_json::from_slice::<Signed<Root>>(&bytes) else { return };
        let version = root.signed.version.get();
        if version > self.memory.versions.root && root.signed.verify_role(&root).is_ok() {
            self.memory.versions.root = version;
            self.memory.root = Some(bytes);
            // Not fatal: the next check goes the same way again.
            let _ = self.store.save(&self.memory, &BTreeMap::new());
        }
    }
}

/// Key of `timestamp.json` that says when it was signed, Unix seconds. Unknown keys are part of what TUF signs.
pub const SIGNED_AT: &str = "x-rustiot-signed";

fn checked(held: Held, changed: bool, fresh: time::Fresh, traffic: Traffic, url: &Url) -> Checked {
    Checked {
        index: held.index,
        changed,
        now: fresh.now,
        doubt: fresh.doubt,
        versions: held.versions,
        expires: held.expires,
        traffic,
        url: url.clone(),
        unsaved: None,
    }
}

/// What the versions of timestamp and snapshot belong to: the keys of these roles.
fn keys(root: &Root) -> Digest {
    let mut ids = Vec::new();
    for role in [RoleType::Timestamp, RoleType::Snapshot] {
        let mut keys: Vec<String> = root
            .roles
            .get(&role)
            .map(|keys| keys.keyids.iter().map(|id| Digest::of(id).to_string()).collect())
            .unwrap_or_default();
        keys.sort();
        ids.push(format!("{role}:{}", keys.join(",")));
    }
    Digest::of(ids.join(";").as_bytes())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a directory that lives for one check, and is in memory on a device"
)]
fn write(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::write(path, bytes)
}

/// What a mirror said about its timestamp.
pub(crate) type Answer = Option<(Vec<u8>, Validator)>;
