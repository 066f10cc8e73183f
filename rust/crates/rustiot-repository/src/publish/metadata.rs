//! TUF metadata of a repository: made, signed, renewed, rotated. Sees to it that whatever is written fits together at
//! every instant, for whoever looks at the directory while it happens.

use super::keys::{self, KeyPlace};
use super::settings::{KeyEntry, RoleName, Settings};
use super::{At, Error};
use crate::client::{ROLLOUT_ROLE, SIGNED_AT};
use crate::digest::Digest;
use crate::index::{FORMAT, Index};
use crate::rollout::Rollouts;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use tough::TargetName;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::schema::{
    DelegatedRole, Delegations, Hashes, Metafile, PathPattern, PathSet, Role, RoleKeys, RoleType, Root,
    Signed, Snapshot, Target, Targets, Timestamp,
};
use tough::sign::Sign;

const SPEC: &str = "1.0.0";

/// Ids in the order of `repo.toml`, and the keys by id.
type NamedKeys = (Vec<Decoded<Hex>>, HashMap<Decoded<Hex>, Key>);

/// A repository in a directory. Only one at a time: it holds a lock.
#[derive(Debug)]
pub struct Repository {
    dir: PathBuf,
    settings: Settings,
    _alone: Alone,
}

/// What a signing run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Signing {
    /// Metadata files that were written, in this order.
    pub written: Vec<String>,
    /// Roles that wait for signatures: have and need.
    pub waiting: BTreeMap<String, (usize, u32)>,
}

/// What is known of one role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoleStatus {
    /// The role.
    pub role: String,
    /// Its version.
    pub version: u64,
    /// When it expires, Unix seconds.
    pub expires: u64,
    /// Ids of its keys.
    pub keys: Vec<String>,
    /// Signatures that it needs.
    pub threshold: u64,
    /// Keys of `repo.toml` that are at hand.
    pub at_hand: usize,
}

/// What is known of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its roles.
    pub roles: Vec<RoleStatus>,
    /// Boards with their releases, newest first.
    pub boards: BTreeMap<String, Vec<String>>,
    /// Whether `public/` says what `work/` says.
    pub signed: bool,
}

impl Repository {
    /// Makes a repository with new keys in `keys/`: `settings.keys` is filled in.
    ///
    /// # Errors
    /// There is one already, or the directory cannot be written.
    pub fn init(dir: &Path, mut settings: Settings, now: u64) -> Result<Self, Error> {
        if dir.join("repo.toml").exists() {
            return Err(Error::Refused {
                problem: format!("{} holds a repository already", dir.display()),
                hint: "use another directory; devices trust the root that they were built with",
            });
        }
        for sub in ["keys", "work", "public/metadata", "public/targets"] {
            let sub = dir.join(sub);
            std::fs::create_dir_all(&sub).at("make", &sub)?;
        }
        let private = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
        std::fs::set_permissions(dir.join("keys"), private).at("set the mode of", dir.join("keys"))?;
        if RoleName::ALL.iter().any(|role| settings.keys_of(*role).next().is_none()) {
            for role in RoleName::ALL {
                // Keys that are there already, on a token.
                if settings.keys_of(role).next().is_some() {
                    continue;
                }
                let spare = match role {
                    RoleName::Root => settings.spare[0],
                    RoleName::Targets => settings.spare[1],
                    _ => 0,
                };
                for number in 1..=settings.threshold(role).saturating_add(spare) {
                    let key = format!("keys/{}-{number}.pem", role.as_str());
                    // Left by a run that was cut short.
                    if !dir.join(&key).exists() {
                        keys::generate(&dir.join(&key))?;
                    }
                    settings.keys.push(KeyEntry { role, key, id: String::new() });
                }
            }
        }
        for entry in &mut settings.keys {
            entry.id = key_id(dir, &entry.key)?;
        }
        let alone = alone(dir)?;
        let repository = Repository { dir: dir.to_owned(), settings, _alone: alone };
        let root = repository.new_root(1, None, now)?;
        let mut signed = Signed { signed: root, signatures: Vec::new() };
        let signers = repository.signers(RoleName::Root)?;
        keys::sign(&mut signed, &signers.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
        signed.signed.verify_role(&signed).map_err(|error| Error::Metadata { why: error.to_string() })?;
        repository.write("1.root.json", &signed)?;
        repository.settings.save(&dir.join("repo.toml"))?;
        repository.sign(now, true)?;
        Ok(repository)
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// There is none, or somebody else is at work in it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let settings = Settings::load(&dir.join("repo.toml"))?;
        let alone = alone(dir)?;
        Ok(Repository { dir: dir.to_owned(), settings, _alone: alone })
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the published targets are.
    #[must_use]
    pub fn targets_dir(&self) -> PathBuf {
        self.dir.join("public/targets")
    }

    /// The root metadata that devices are built with: the newest.
    ///
    /// # Errors
    /// There is none that can be read.
    pub fn root(&self) -> Result<Signed<Root>, Error> {
        let mut newest: Option<Signed<Root>> = None;
        for version in 1.. {
            match self.read::<Signed<Root>>(&format!("public/metadata/{version}.root.json"))? {
                Some(root) => newest = Some(root),
                None => break,
            }
        }
        newest.ok_or_else(|| Error::Metadata { why: "there is no 1.root.json".to_owned() })
    }

    /// The index of a board as it should be published; an empty one if there is none.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn index(&self, compatible: &str) -> Result<Index, Error> {
        let path = self.dir.join("work").join(crate::client::index_name(compatible));
        if !path.exists() {
            return Ok(Index {
                format: FORMAT,
                compatible: compatible.to_owned(),
                published: 0,
                releases: Vec::new(),
            });
        }
        Index::parse(&std::fs::read(&path).at("read", &path)?).map_err(|source| Error::Index { path, source })
    }

    /// Writes what the index of a board should be.
    ///
    /// # Errors
    /// It breaks a rule, or cannot be written.
    pub fn set_index(&self, index: &Index) -> Result<(), Error> {
        let path = self.dir.join("work").join(crate::client::index_name(&index.compatible));
        index.check().map_err(|source| Error::Index { path: path.clone(), source })?;
        self.write_work(&path, index)
    }

    /// The roll-outs of a board as they should be published.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn rollouts(&self, compatible: &str) -> Result<Rollouts, Error> {
        let path = self.dir.join("work").join(crate::client::rollouts_name(compatible));
        if !path.exists() {
            return Ok(Rollouts { format: FORMAT, compatible: compatible.to_owned(), rollouts: Vec::new() });
        }
        Rollouts::parse(&std::fs::read(&path).at("read", &path)?)
            .map_err(|source| Error::Index { path, source })
    }

    /// Writes what the roll-outs of a board should be.
    ///
    /// # Errors
    /// They break a rule, or cannot be written.
    pub fn set_rollouts(&self, rollouts: &Rollouts) -> Result<(), Error> {
        let path = self.dir.join("work").join(crate::client::rollouts_name(&rollouts.compatible));
        rollouts.check().map_err(|source| Error::Index { path: path.clone(), source })?;
        self.write_work(&path, rollouts)
    }

    /// Boards that have an index.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn boards(&self) -> Result<Vec<String>, Error> {
        let work = self.dir.join("work");
        let mut boards = Vec::new();
        for entry in std::fs::read_dir(&work).at("read", &work)? {
            let name = entry.at("read", &work)?.file_name().to_string_lossy().into_owned();
            if let Some(board) = name.strip_suffix(".index.json") {
                boards.push(board.to_owned());
            }
        }
        boards.sort();
        Ok(boards)
    }

    /// Makes `public/` say what `work/` says, with the keys that are at hand. `refresh` makes a new timestamp even if
    /// nothing else is new. A second run changes nothing; what lacks signatures waits in `work/`, and everything else
    /// goes on without it.
    ///
    /// # Errors
    /// An online key is not at hand, or a file cannot be used.
    pub fn sign(&self, now: u64, refresh: bool) -> Result<Signing, Error> {
        let mut done = Signing::default();
        let root = self.sign_root(&mut done)?;
        let targets = self.sign_targets(&root, now, &mut done)?;
        let rollout = self.sign_rollout(&targets, now, &mut done)?;
        let snapshot = self.sign_snapshot(
            &root,
            [("targets.json", &targets), ("rollout.json", &rollout)],
            now,
            &mut done,
        )?;
        self.sign_timestamp(&root, &snapshot, now, refresh, &mut done)?;
        Ok(done)
    }

    /// Adds the signatures of `places` to whatever waits for them: for a machine that holds nothing but the repository's
    /// `work/` and `public/metadata/`, and a key. Then publishes what is complete, if the online keys are at hand.
    ///
    /// # Errors
    /// A key cannot be used.
    pub fn add_signatures(&self, places: &[KeyPlace], now: u64) -> Result<Signing, Error> {
        let mut signers = Vec::new();
        for place in places {
            signers.extend(place.open()?);
        }
        let refs: Vec<&dyn Sign> = signers.iter().map(AsRef::as_ref).collect();
        let root = self.root()?.signed;
        if let Some(mut staged) = self.read::<Signed<Root>>("work/staged.root.json")? {
            let mine: Vec<&dyn Sign> = refs
                .iter()
                .copied()
                .filter(|s| holds(&root, RoleType::Root, *s) || holds(&staged.signed, RoleType::Root, *s))
                .collect();
            keys::sign(&mut staged, &mine)?;
            self.write_work(&self.dir.join("work/staged.root.json"), &staged)?;
        }
        if let Some(mut staged) = self.read::<Signed<Targets>>("work/staged.targets.json")? {
            let mine: Vec<&dyn Sign> =
                refs.iter().copied().filter(|s| holds(&root, RoleType::Targets, *s)).collect();
            keys::sign(&mut staged, &mine)?;
            self.write_work(&self.dir.join("work/staged.targets.json"), &staged)?;
        }
        let online = [RoleName::Rollout, RoleName::Snapshot, RoleName::Timestamp];
        if online.into_iter().all(|role| self.signers(role).is_ok_and(|signers| !signers.is_empty())) {
            return self.sign(now, false);
        }
        let mut done = Signing::default();
        for (role, file) in
            [(RoleName::Root, "work/staged.root.json"), (RoleName::Targets, "work/staged.targets.json")]
        {
            if let Some(value) = self.read::<serde_json::Value>(file)? {
                let have = value.get("signatures").and_then(|s| s.as_array()).map_or(0, Vec::len);
                done.waiting.insert(role.as_str().to_owned(), (have, self.settings.threshold(role)));
            }
        }
        Ok(done)
    }

    /// Replaces keys of a role: makes a new root (for `rollout`, a new delegation) that trusts `add` and no longer
    /// `remove` (ids), and signs it with the keys that are at hand, old ones and new ones. With neither, renews the root's
    /// expiry.
    ///
    /// # Errors
    /// A key is unknown or not at hand, or the role would be left without enough keys.
    pub fn rotate(
        &mut self,
        role: RoleName,
        add: &[String],
        remove: &[String],
        now: u64,
    ) -> Result<Signing, Error> {
        let old = self.root()?;
        let old_signers = self.signers(RoleName::Root)?;
        let mut settings = self.settings.clone();
        for id in remove {
            let found = settings
                .keys
                .iter()
                .position(|entry| entry.role == role && entry.id.starts_with(id.as_str()) && !id.is_empty());
            let Some(found) = found else {
                return Err(Error::Refused {
                    problem: format!("{id} is no key of the role {}", role.as_str()),
                    hint: "see the ids with: rustiot repo status",
                });
            };
            settings.keys.remove(found);
        }
        for key in add {
            let id = key_id(&self.dir, key)?;
            if settings.keys_of(role).any(|entry| entry.id == id) {
                continue;
            }
            settings.keys.push(KeyEntry { role, key: key.clone(), id });
        }
        let have = settings.keys_of(role).count();
        if have < usize::try_from(settings.threshold(role)).unwrap_or(usize::MAX) {
            return Err(Error::Refused {
                problem: format!(
                    "{} would have {have} keys and needs {}",
                    role.as_str(),
                    settings.threshold(role)
                ),
                hint: "add a key in the same command: --add FILE",
            });
        }
        self.settings = settings;
        if role != RoleName::Rollout {
            let version = old.signed.version.get().saturating_add(1);
            let root = self.new_root(version, Some(&old.signed), now)?;
            let mut signed = Signed { signed: root, signatures: Vec::new() };
            let new_signers = self.signers(RoleName::Root)?;
            let signers: Vec<&dyn Sign> = old_signers.iter().chain(&new_signers).map(AsRef::as_ref).collect();
            keys::sign(&mut signed, &signers)?;
            self.write_work(&self.dir.join("work/staged.root.json"), &signed)?;
        }
        self.settings.save(&self.dir.join("repo.toml"))?;
        self.sign(now, true)
    }

    /// What there is.
    ///
    /// # Errors
    /// A file is damaged.
    pub fn status(&self) -> Result<Status, Error> {
        let root = self.root()?.signed;
        let mut roles = Vec::new();
        let targets: Option<Signed<Targets>> = self.current("targets.json")?;
        let delegation = targets.as_ref().and_then(|t| t.signed.delegations.clone()).unwrap_or_default();
        for role in RoleName::ALL {
            let (version, expires) = match role {
                RoleName::Root => Some((root.version.get(), root.expires.as_second())),
                RoleName::Targets => {
                    targets.as_ref().map(|t| (t.signed.version.get(), t.signed.expires.as_second()))
                }
                RoleName::Rollout => self
                    .current::<Targets>("rollout.json")?
                    .map(|t| (t.signed.version.get(), t.signed.expires.as_second())),
                RoleName::Snapshot => {
                    self.snapshot()?.map(|t| (t.signed.version.get(), t.signed.expires.as_second()))
                }
                RoleName::Timestamp => self
                    .read::<Signed<Timestamp>>("public/metadata/timestamp.json")?
                    .map(|t| (t.signed.version.get(), t.signed.expires.as_second())),
            }
            .unwrap_or((0, 0));
            let trusted = match tuf(role) {
                Some(tuf) => root.roles.get(&tuf).cloned(),
                None => delegation.roles.iter().find(|d| d.name == ROLLOUT_ROLE).map(DelegatedRole::keys),
            };
            roles.push(RoleStatus {
                role: role.as_str().to_owned(),
                version,
                expires: u64::try_from(expires).unwrap_or(0),
                keys: trusted.iter().flat_map(|keys| &keys.keyids).map(|id| keys::hex(id)).collect(),
                threshold: trusted.map_or(0, |keys| keys.threshold.get()),
                at_hand: self.signers(role)?.len(),
            });
        }
        let mut boards = BTreeMap::new();
        for board in self.boards()? {
            let releases = self.index(&board)?.releases;
            boards.insert(board, releases.iter().map(|release| release.version.to_string()).collect());
        }
        let current: Option<Signed<Targets>> = self.current("targets.json")?;
        let rollout: Option<Signed<Targets>> = self.current("rollout.json")?;
        let same = |current: Option<Signed<Targets>>, suffix: &str| -> Result<bool, Error> {
            let desired = self.desired(suffix)?;
            Ok(current.is_some_and(|current| current.signed.targets == desired))
        };
        let signed = same(current, ".index.json")? && same(rollout, ".rollout.json")?;
        Ok(Status { roles, boards, signed })
    }

    fn sign_root(&self, done: &mut Signing) -> Result<Root, Error> {
        let old = self.root()?.signed;
        let Some(mut staged) = self.read::<Signed<Root>>("work/staged.root.json")? else { return Ok(old) };
        let signers = self.signers(RoleName::Root)?;
        keys::sign(&mut staged, &signers.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
        let path = self.dir.join("work/staged.root.json");
        if staged.signed.version <= old.version {
            // Published by a run that was cut short after it.
            std::fs::remove_file(&path).at("remove", &path)?;
            return Ok(old);
        }
        if old.verify_role(&staged).is_err() || staged.signed.verify_role(&staged).is_err() {
            self.write_work(&path, &staged)?;
            let need = old.roles.get(&RoleType::Root).map_or(1, |keys| keys.threshold.get());
            done.waiting.insert(
                "root".to_owned(),
                (staged.signatures.len(), u32::try_from(need).unwrap_or(u32::MAX)),
            );
            return Ok(old);
        }
        let name = format!("{}.root.json", staged.signed.version);
        self.write(&name, &staged)?;
        done.written.push(name);
        std::fs::remove_file(&path).at("remove", &path)?;
        Ok(staged.signed)
    }

    fn sign_targets(&self, root: &Root, now: u64, done: &mut Signing) -> Result<Signed<Targets>, Error> {
        let mut desired =
            Targets::new(SPEC.to_owned(), NonZeroU64::MIN, self.expiry(RoleName::Targets, now)?);
        desired.targets = self.desired(".index.json")?;
        desired.delegations = Some(self.delegations()?);
        let current: Option<Signed<Targets>> = self.current("targets.json")?;
        let staged_path = self.dir.join("work/staged.targets.json");
        if let Some(current) = &current
            && current.signed.targets == desired.targets
            && current.signed.delegations == desired.delegations
            && root.verify_role(current).is_ok()
            && !self.due(RoleName::Targets, &current.signed, now)
        {
            if staged_path.exists() {
                std::fs::remove_file(&staged_path).at("remove", &staged_path)?;
            }
            return Ok(current.clone());
        }
        let version =
            current.as_ref().map_or(0, |c| c.signed.version.get()).max(self.newest("targets.json")?);
        desired.version = NonZeroU64::MIN.saturating_add(version);
        let staged: Option<Signed<Targets>> = self.read("work/staged.targets.json")?;
        let mut staged = staged
            .filter(|s| {
                s.signed.targets == desired.targets
                    && s.signed.delegations == desired.delegations
                    && s.signed.version == desired.version
            })
            .unwrap_or(Signed { signed: desired, signatures: Vec::new() });
        let signers = self.signers(RoleName::Targets)?;
        keys::sign(&mut staged, &signers.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
        if root.verify_role(&staged).is_err() {
            self.write_work(&staged_path, &staged)?;
            done.waiting
                .insert("targets".to_owned(), (staged.signatures.len(), self.settings.threshold.targets));
            return current.ok_or_else(|| Error::Refused {
                problem: "the first targets metadata needs more signatures".to_owned(),
                hint: "sign with the other keys: rustiot repo sign --repo DIR --key FILE",
            });
        }
        self.put_versioned("targets.json", &staged, done)?;
        Ok(staged)
    }

    fn sign_rollout(
        &self,
        targets: &Signed<Targets>,
        now: u64,
        done: &mut Signing,
    ) -> Result<Signed<Targets>, Error> {
        let mut desired =
            Targets::new(SPEC.to_owned(), NonZeroU64::MIN, self.expiry(RoleName::Rollout, now)?);
        desired.targets = self.desired(".rollout.json")?;
        desired.delegations = None;
        let delegations = targets.signed.delegations.clone().unwrap_or_default();
        let verifies = |signed: &Signed<Targets>| verify_delegated(&delegations, signed);
        let current: Option<Signed<Targets>> = self.current("rollout.json")?;
        if let Some(current) = &current
            && current.signed.targets == desired.targets
            && verifies(current)
            && !self.due(RoleName::Rollout, &current.signed, now)
        {
            return Ok(current.clone());
        }
        let version =
            current.as_ref().map_or(0, |c| c.signed.version.get()).max(self.newest("rollout.json")?);
        desired.version = NonZeroU64::MIN.saturating_add(version);
        let mut signed = Signed { signed: desired, signatures: Vec::new() };
        self.sign_online(RoleName::Rollout, &mut signed)?;
        if !verifies(&signed) {
            // Its new key waits for a targets signature: the old one goes on as long as it lives.
            return current.filter(|current| verifies(current)).ok_or_else(|| Error::Refused {
                problem: "the roll-out key at hand is not the one that the signed targets metadata trusts"
                    .to_owned(),
                hint: "sign the targets metadata first: rustiot repo sign --repo DIR --key FILE",
            });
        }
        self.put_versioned("rollout.json", &signed, done)?;
        Ok(signed)
    }

    fn sign_snapshot(
        &self,
        root: &Root,
        parts: [(&str, &Signed<Targets>); 2],
        now: u64,
        done: &mut Signing,
    ) -> Result<Signed<Snapshot>, Error> {
        let mut meta = HashMap::new();
        for (name, signed) in parts {
            let file = format!("{}.{name}", signed.signed.version);
            let bytes = self.bytes(&format!("public/metadata/{file}"))?;
            meta.insert(name.to_owned(), metafile(&bytes, signed.signed.version));
        }
        let current = self.snapshot()?;
        if let Some(current) = &current
            && current.signed.meta == meta
            && root.verify_role(current).is_ok()
            && !self.due(RoleName::Snapshot, &current.signed, now)
        {
            return Ok(current.clone());
        }
        let version =
            current.as_ref().map_or(0, |c| c.signed.version.get()).max(self.newest("snapshot.json")?);
        let version = NonZeroU64::MIN.saturating_add(version);
        let mut snapshot = Snapshot::new(SPEC.to_owned(), version, self.expiry(RoleName::Snapshot, now)?);
        snapshot.meta = meta;
        let mut signed = Signed { signed: snapshot, signatures: Vec::new() };
        self.sign_online(RoleName::Snapshot, &mut signed)?;
        self.trusted(root, &signed, RoleName::Snapshot)?;
        let name = format!("{version}.snapshot.json");
        self.write(&name, &signed)?;
        done.written.push(name);
        Ok(signed)
    }

    fn sign_timestamp(
        &self,
        root: &Root,
        snapshot: &Signed<Snapshot>,
        now: u64,
        refresh: bool,
        done: &mut Signing,
    ) -> Result<(), Error> {
        let bytes = self.bytes(&format!("public/metadata/{}.snapshot.json", snapshot.signed.version))?;
        let meta: HashMap<String, Metafile> =
            [("snapshot.json".to_owned(), metafile(&bytes, snapshot.signed.version))].into();
        let current: Option<Signed<Timestamp>> = self.read("public/metadata/timestamp.json")?;
        if let Some(current) = &current
            && !refresh
            && current.signed.meta == meta
            && root.verify_role(current).is_ok()
            && !self.due(RoleName::Timestamp, &current.signed, now)
        {
            return Ok(());
        }
        let version = NonZeroU64::MIN.saturating_add(current.map_or(0, |c| c.signed.version.get()));
        let mut timestamp = Timestamp::new(SPEC.to_owned(), version, self.expiry(RoleName::Timestamp, now)?);
        timestamp.meta = meta;
        timestamp._extra.insert(SIGNED_AT.to_owned(), now.into());
        let mut signed = Signed { signed: timestamp, signatures: Vec::new() };
        self.sign_online(RoleName::Timestamp, &mut signed)?;
        self.trusted(root, &signed, RoleName::Timestamp)?;
        self.write("timestamp.json", &signed)?;
        done.written.push("timestamp.json".to_owned());
        Ok(())
    }

    fn trusted<T: Role>(&self, root: &Root, signed: &Signed<T>, role: RoleName) -> Result<(), Error> {
        root.verify_role(signed).map_err(|_| Error::Refused {
            problem: format!("the {} key at hand is not the one that the root trusts", role.as_str()),
            hint: "finish the rotation with: rustiot repo sign --repo DIR --key FILE",
        })
    }

    fn sign_online<T: Role>(&self, role: RoleName, signed: &mut Signed<T>) -> Result<(), Error> {
        let signers = self.signers(role)?;
        if signers.is_empty() {
            return Err(Error::Refused {
                problem: format!("no {} key is at hand", role.as_str()),
                hint: "bring its file to the place that repo.toml names",
            });
        }
        keys::sign(signed, &signers.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    }

    /// The keys of a role that are at hand.
    fn signers(&self, role: RoleName) -> Result<Vec<Box<dyn Sign>>, Error> {
        let mut signers = Vec::new();
        for entry in self.settings.keys_of(role) {
            // A token that is not plugged in is a key that is not at hand.
            match KeyPlace::parse(&entry.key, &self.dir).open() {
                Ok(signer) => signers.extend(signer),
                Err(_) if entry.key.starts_with("pkcs11:") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(signers)
    }

    /// What `work/` wants of the targets whose names end so; puts the files in place.
    fn desired(&self, suffix: &str) -> Result<HashMap<TargetName, Target>, Error> {
        let mut targets = HashMap::new();
        for board in self.boards()? {
            let name = format!("{board}{suffix}");
            let path = self.dir.join("work").join(&name);
            if !path.exists() {
                continue;
            }
            let bytes = std::fs::read(&path).at("read", &path)?;
            let digest = Digest::of(&bytes);
            let published = self.targets_dir().join(format!("{digest}.{name}"));
            if !published.exists() {
                rustiot_durable::atomic_write(&published, &bytes)?;
            }
            let hashes = Hashes { sha256: digest.bytes().to_vec().into(), _extra: HashMap::new() };
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let name = TargetName::new(name).map_err(|error| Error::Metadata { why: error.to_string() })?;
            targets.insert(name, Target { length, hashes, custom: HashMap::new(), _extra: HashMap::new() });
        }
        Ok(targets)
    }

    fn delegations(&self) -> Result<Delegations, Error> {
        let wrong = |error: tough::schema::Error| Error::Metadata { why: error.to_string() };
        let mut known = self
            .current::<Targets>("targets.json")?
            .and_then(|targets| targets.signed.delegations)
            .map(|delegations| delegations.keys)
            .unwrap_or_default();
        for signer in self.signers(RoleName::Rollout)? {
            known.insert(keys::id(&signer.tuf_key())?, signer.tuf_key());
        }
        let (keyids, keys) = self.named_keys(RoleName::Rollout, &known)?;
        Ok(Delegations {
            keys,
            roles: vec![DelegatedRole {
                name: ROLLOUT_ROLE.to_owned(),
                keyids,
                threshold: NonZeroU64::MIN,
                paths: PathSet::Paths(vec![PathPattern::new("*.rollout.json").map_err(wrong)?]),
                terminating: true,
                targets: None,
            }],
        })
    }

    /// A root that trusts the keys of `repo.toml`; public keys that are not at hand are taken from the old root.
    fn new_root(&self, version: u64, old: Option<&Root>, now: u64) -> Result<Root, Error> {
        let mut known: HashMap<Decoded<Hex>, Key> = old.map(|root| root.keys.clone()).unwrap_or_default();
        for role in RoleName::ALL {
            for signer in self.signers(role)? {
                known.insert(keys::id(&signer.tuf_key())?, signer.tuf_key());
            }
        }
        let mut root = Root {
            spec_version: SPEC.to_owned(),
            consistent_snapshot: true,
            version: NonZeroU64::new(version).unwrap_or(NonZeroU64::MIN),
            expires: self.expiry(RoleName::Root, now)?,
            keys: HashMap::new(),
            roles: HashMap::new(),
            _extra: HashMap::new(),
        };
        for role in RoleName::ALL {
            let Some(tuf) = tuf(role) else { continue };
            let (keyids, keys) = self.named_keys(role, &known)?;
            root.keys.extend(keys);
            let threshold = NonZeroU64::new(self.settings.threshold(role).into()).unwrap_or(NonZeroU64::MIN);
            root.roles.insert(tuf, RoleKeys { keyids, threshold, _extra: HashMap::new() });
        }
        Ok(root)
    }

    fn named_keys(&self, role: RoleName, known: &HashMap<Decoded<Hex>, Key>) -> Result<NamedKeys, Error> {
        let (mut ids, mut keys) = (Vec::new(), HashMap::new());
        for entry in self.settings.keys_of(role) {
            let found = known.iter().find(|(id, _)| keys::hex(id) == entry.id);
            let (id, key) = found.ok_or_else(|| Error::Key {
                key: entry.key.clone(),
                why: format!("key {} of {} is neither at hand nor in the root", entry.id, role.as_str()),
            })?;
            ids.push(id.clone());
            keys.insert(id.clone(), key.clone());
        }
        Ok((ids, keys))
    }

    fn expiry(&self, role: RoleName, now: u64) -> Result<jiff::Timestamp, Error> {
        let seconds = now.saturating_add(u64::from(self.settings.days.of(role)) * 24 * 3600);
        i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()).ok_or_else(
            || Error::Metadata { why: format!("the expiry of {} is beyond all calendars", role.as_str()) },
        )
    }

    /// Less than half of its life is left: time for a new one.
    fn due<T: Role>(&self, role: RoleName, signed: &T, now: u64) -> bool {
        let expires = u64::try_from(signed.expires().as_second()).unwrap_or(0);
        expires < now.saturating_add(u64::from(self.settings.days.of(role)) * 12 * 3600)
    }

    fn put_versioned(&self, name: &str, signed: &Signed<Targets>, done: &mut Signing) -> Result<(), Error> {
        let file = format!("{}.{name}", signed.signed.version);
        self.write(&file, signed)?;
        done.written.push(file);
        Ok(())
    }

    /// The `targets.json` or `rollout.json` that is in force: the one that the snapshot names; of a run that was cut
    /// short before the snapshot, the newest.
    fn current<T: Role + DeserializeOwned>(&self, name: &str) -> Result<Option<Signed<T>>, Error> {
        let version = self.newest(name)?;
        if version == 0 { Ok(None) } else { self.read(&format!("public/metadata/{version}.{name}")) }
    }

    fn snapshot(&self) -> Result<Option<Signed<Snapshot>>, Error> {
        self.current("snapshot.json")
    }

    /// The highest version of a metadata file; 0 if there is none.
    fn newest(&self, name: &str) -> Result<u64, Error> {
        let dir = self.dir.join("public/metadata");
        let mut newest = 0;
        for entry in std::fs::read_dir(&dir).at("read", &dir)? {
            let file = entry.at("read", &dir)?.file_name().to_string_lossy().into_owned();
            if let Some(version) =
                file.strip_suffix(&format!(".{name}")).and_then(|version| version.parse().ok())
            {
                newest = newest.max(version);
            }
        }
        Ok(newest)
    }

    fn bytes(&self, file: &str) -> Result<Vec<u8>, Error> {
        let path = self.dir.join(file);
        std::fs::read(&path).at("read", &path)
    }

    fn read<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>, Error> {
        let path = self.dir.join(file);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Error::Metadata { why: format!("{}: {error}", path.display()) }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { what: "read", path, source }),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Error> {
        self.write_work(&self.dir.join("public/metadata").join(name), value)
    }

    fn write_work<T: Serialize>(&self, path: &Path, value: &T) -> Result<(), Error> {
        let bytes = serde_json::to_vec(value)
            .map_err(|error| Error::Metadata { why: format!("{}: {error}", path.display()) })?;
        if std::fs::read(path).ok().as_ref() == Some(&bytes) {
            return Ok(());
        }
        Ok(rustiot_durable::atomic_write(path, &bytes)?)
    }
}

/// Keeps others out while it lives.
#[derive(Debug)]
struct Alone(File);

impl Drop for Alone {
    /// Lets go by itself: a program that is being started by another thread has this file open until it runs, and would
    /// keep the lock for that long if the file were only closed.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

fn alone(dir: &Path) -> Result<Alone, Error> {
    let path = dir.join("work/.lock");
    let lock = File::create(&path).at("create", &path)?;
    match lock.try_lock() {
        Ok(()) => Ok(Alone(lock)),
        Err(_) => Err(Error::Refused {
            problem: format!("somebody else is at work in {}", dir.display()),
            hint: "wait until it has ended",
        }),
    }
}

fn key_id(dir: &Path, key: &str) -> Result<String, Error> {
    let signer = KeyPlace::parse(key, dir).open()?.ok_or_else(|| Error::Key {
        key: key.to_owned(),
        why: "there is no such file; a new key must be at hand when it is added".to_owned(),
    })?;
    Ok(keys::hex(&keys::id(&signer.tuf_key())?))
}

fn tuf(role: RoleName) -> Option<RoleType> {
    Some(match role {
        RoleName::Root => RoleType::Root,
        RoleName::Targets => RoleType::Targets,
        RoleName::Snapshot => RoleType::Snapshot,
        RoleName::Timestamp => RoleType::Timestamp,
        RoleName::Rollout => return None,
    })
}

fn holds(root: &Root, role: RoleType, signer: &dyn Sign) -> bool {
    root.key_id(signer).is_some_and(|id| root.roles.get(&role).is_some_and(|keys| keys.keyids.contains(&id)))
}

/// `tough` checks a delegated role only while it loads a repository; the same rule here, through a root that trusts the
/// delegation's keys.
fn verify_delegated(delegations: &Delegations, signed: &Signed<Targets>) -> bool {
    let Some(role) = delegations.roles.iter().find(|role| role.name == ROLLOUT_ROLE) else { return false };
    let root = Root {
        spec_version: SPEC.to_owned(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires: jiff::Timestamp::UNIX_EPOCH,
        keys: delegations.keys.clone(),
        roles: [(RoleType::Targets, role.keys())].into(),
        _extra: HashMap::new(),
    };
    root.verify_role(signed).is_ok()
}

fn metafile(bytes: &[u8], version: NonZeroU64) -> Metafile {
    Metafile {
        length: Some(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
        hashes: Some(Hashes { sha256: Digest::of(bytes).bytes().to_vec().into(), _extra: HashMap::new() }),
        version,
        _extra: HashMap::new(),
    }
}
