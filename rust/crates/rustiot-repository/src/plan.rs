//! What should this device do? The index, what is known of the device, and one answer: a plan with the cheapest way by
//! bytes and the next best after it, or a typed refusal that says when to look again.
//!
//! Pure and total. Called by `rustiot-update` after each check, and by `rustiot update plan` to show it.

use crate::digest::Digest;
use crate::index::{Content, File, Index, Release, Source, Way, WayKind};
use crate::rollout::{Turn, place};
use semver::Version;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What the device knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its identity (machine id): decides its place in each roll-out.
    pub identity: String,
    /// Its board.
    pub compatible: String,
    /// Its labels, for cohorts.
    pub labels: BTreeSet<String>,
    /// What runs.
    pub running: Running,
    /// The oldest version that it may run.
    pub floor: Option<Version>,
    /// Releases that failed here, by manifest hash.
    pub known_bad: BTreeSet<Digest>,
    /// Bytes of the partitions of a slot by image name (`root`, `boot`); those not named are not checked.
    pub partitions: BTreeMap<String, u64>,
    /// Whether the running slot can be read as the base of a delta.
    pub readable: bool,
    /// Room for files that are fetched; `None` where none is: the repository lies in a directory of this device.
    pub space: Option<Space>,
    /// The time, Unix seconds, as judged by [`crate::time`].
    pub now: u64,
    /// What a person asked for, if one did.
    pub wanted: Option<Wanted>,
}

/// Room for a file that is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that it may have.
    pub bytes: u64,
    /// Whether a file without room can go straight into the slot. A delta never can.
    pub streams: bool,
}

impl Space {
    /// Bytes that the file of a way must have at least.
    fn needed(self, way: &PlannedWay) -> u64 {
        match way.kind {
            WayKind::Full | WayKind::Bundle if self.streams => 0,
            // The bundle is made out of a delta in pieces, in whatever order RAUC asks for them, again after a cut.
            WayKind::Delta | WayKind::Full | WayKind::Bundle | WayKind::Unknown => way.file.len,
        }
    }
}

/// The running release, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Its version.
    pub version: Option<Version>,
    /// Its manifest hash, when it was installed from a bundle.
    pub manifest_hash: Option<Digest>,
    /// Root hash of its root image.
    pub root_hash: Option<Digest>,
}

/// What a person asked for: it stands above waves and pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// This version, which may be older than the running one; else the newest.
    pub version: Option<Version>,
    /// Also the running release, one that failed here, or one that was withdrawn.
    pub force: bool,
}

/// What to install, and how to get it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Its version.
    pub version: Version,
    /// Its manifest hash.
    pub manifest_hash: Digest,
    /// The bundle that every way produces.
    pub bundle: Content,
    /// The oldest version that the device may go back to afterwards.
    pub floor: Option<Version>,
    /// Version that runs now.
    pub from: Option<Version>,
    /// What is new.
    pub notes: String,
    /// File with package lists and differences.
    pub details: Option<File>,
    /// Bytes that will be written to the slot.
    pub written: u64,
    /// The device's place in this release, 0 to 999.
    pub place: u32,
    /// The wave that let it; `None` when a person asked.
    pub wave: Option<String>,
    /// The ways, cheapest first; when one fails the next is tried. Never empty.
    pub ways: Vec<PlannedWay>,
    /// Ways that would have been possible with more room, cheapest first.
    pub without_room: Vec<PlannedWay>,
}

/// One way of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedWay {
    /// Its kind.
    pub kind: WayKind,
    /// Bytes that will be fetched.
    pub bytes: u64,
    /// Whether `bytes` is the whole story: of a `bundle`, which RAUC reads in parts, it is the length of the file.
    pub exact: bool,
    /// What is fetched.
    pub file: File,
    /// Images of the running slot that it needs.
    pub sources: Vec<Source>,
}

/// When to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// At this time, Unix seconds; before it the answer is the same unless the repository changes.
    At(u64),
    /// With the next check: only the repository can change it.
    NextCheck,
    /// When something on the device changes (space, release), or a person asks otherwise.
    Device,
}

/// Why there is nothing to install.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The index is another board's.
    #[error("the index is for the board {index:?}, this device is {device:?}")]
    WrongBoard {
        /// The index's board.
        index: String,
        /// The device's.
        device: String,
    },
    /// What runs is the newest.
    #[error("the newest release that is offered is the one that runs{}", of(.newest))]
    UpToDate {
        /// The newest release of the index.
        newest: Option<Version>,
    },
    /// The version that was asked for is not in the repository.
    #[error("the repository has no release {version} for this board")]
    NoSuchRelease {
        /// The version.
        version: Version,
    },
    /// It is the release that runs.
    #[error("{version} is the release that runs already")]
    AlreadyRunning {
        /// The version.
        version: Version,
    },
    /// It is older than this device may run.
    #[error("{version} is older than {floor}, the oldest release this device may run")]
    BelowFloor {
        /// The release.
        version: Version,
        /// The floor.
        floor: Version,
    },
    /// It failed here.
    #[error("{version} failed on this device before")]
    KnownBad {
        /// The release.
        version: Version,
    },
    /// The release was withdrawn.
    #[error("{version} has been withdrawn{}", because(.reason))]
    Halted {
        /// The release.
        version: Version,
        /// The publisher's words.
        reason: String,
    },
    /// The roll-out is paused.
    #[error("the roll-out of {version} is paused{}", because(.reason))]
    Paused {
        /// The release.
        version: Version,
        /// The publisher's words.
        reason: String,
    },
    /// The device's wave comes later.
    #[error(
        "{version} is for this device from {time} (Unix seconds) on: place {place} of 1000, wave {wave:?}"
    )]
    Later {
        /// The release.
        version: Version,
        /// Unix seconds.
        time: u64,
        /// The device's place.
        place: u32,
        /// Its wave.
        wave: String,
    },
    /// No wave holds the device so far.
    #[error("no wave of {version} holds this device yet: place {place} of 1000")]
    NotYet {
        /// The release.
        version: Version,
        /// The device's place.
        place: u32,
    },
    /// An image is larger than its partition.
    #[error("the {image} image of {version} has {need} bytes, its partition only {have}")]
    TooLarge {
        /// The release.
        version: Version,
        /// The image.
        image: String,
        /// Its bytes.
        need: u64,
        /// The partition's.
        have: u64,
    },
    /// No way fits into the space.
    #[error("{version} needs {need} bytes of free space, there are {have}")]
    NoSpace {
        /// The release.
        version: Version,
        /// Bytes of the smallest way.
        need: u64,
        /// Bytes free.
        have: u64,
    },
    /// No way starts from what runs here.
    #[error("the repository has no way to {version} from what runs here")]
    NoWay {
        /// The release.
        version: Version,
    },
}

fn of(version: &Option<Version>) -> String {
    version.as_ref().map(|version| format!(" ({version})")).unwrap_or_default()
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

impl Refusal {
    /// A word for scripts and the status file.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::WrongBoard { .. } => "wrong-board",
            Refusal::UpToDate { .. } => "up-to-date",
            Refusal::NoSuchRelease { .. } => "no-such-release",
            Refusal::AlreadyRunning { .. } => "already-running",
            Refusal::BelowFloor { .. } => "below-floor",
            Refusal::KnownBad { .. } => "known-bad",
            Refusal::Halted { .. } => "halted",
            Refusal::Paused { .. } => "paused",
            Refusal::Later { .. } => "later",
            Refusal::NotYet { .. } => "not-yet",
            Refusal::TooLarge { .. } => "too-large",
            Refusal::NoSpace { .. } => "no-space",
            Refusal::NoWay { .. } => "no-way",
        }
    }

    /// When to look again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Refusal::Later { time, .. } => Retry::At(*time),
            Refusal::NoSpace { .. } | Refusal::AlreadyRunning { .. } => Retry::Device,
            _ => Retry::NextCheck,
        }
    }

    /// What a person can do, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Refusal::WrongBoard { .. } => "set the repository of this board",
            Refusal::NoSuchRelease { .. } => "leave the version out to take the newest",
            Refusal::AlreadyRunning { .. } => "force installs it once more into the other slot",
            Refusal::BelowFloor { .. } => "publish a newer release; the floor only ever rises",
            Refusal::KnownBad { .. } => "publish a newer release, or force this one",
            Refusal::TooLarge { .. } => "the release was built for another disk layout",
            Refusal::NoSpace { .. } => {
                "make room on the data partition (`df /data`) or raise update.cache; a full way needs no room where \
                 update.rate_limit is 100000 bytes a second or more, or none"
            }
            Refusal::NoWay { .. } => "publish the release with its full way",
            Refusal::Later { .. } | Refusal::NotYet { .. } | Refusal::Paused { .. } => {
                "ask for the version by name to take it now"
            }
            Refusal::UpToDate { .. } | Refusal::Halted { .. } => return None,
        })
    }
}

/// Decides what this device should do.
///
/// Without a wish, the newest release that the device may take now wins; if there is none, the refusal is about the
/// newest one.
///
/// # Errors
/// A [`Refusal`].
pub fn plan(index: &Index, facts: &Facts) -> Result<Plan, Refusal> {
    if index.compatible != facts.compatible {
        return Err(Refusal::WrongBoard {
            index: index.compatible.clone(),
            device: facts.compatible.clone(),
        });
    }
    let newest = || index.releases.iter().max_by(|a, b| a.version.cmp_precedence(&b.version));
    if let Some(Wanted { version, .. }) = &facts.wanted {
        let release = match version {
            Some(version) => index
                .releases
                .iter()
                .find(|release| release.version == *version)
                .ok_or_else(|| Refusal::NoSuchRelease { version: version.clone() })?,
            None => newest().ok_or(Refusal::UpToDate { newest: None })?,
        };
        return consider(release, facts);
    }
    let newer = |release: &&Release| match &facts.running.version {
        Some(running) => release.version.cmp_precedence(running).is_gt(),
        None => !runs(release, &facts.running),
    };
    let mut first = None;
    for release in index.releases.iter().filter(newer) {
        match consider(release, facts) {
            Ok(plan) => return Ok(plan),
            Err(refusal) => {
                first.get_or_insert(refusal);
            }
        }
    }
    let up_to_date = || Refusal::UpToDate { newest: newest().map(|release| release.version.clone()) };
    Err(first.unwrap_or_else(up_to_date))
}

/// May this device take this release, and how?
fn consider(release: &Release, facts: &Facts) -> Result<Plan, Refusal> {
    let version = || release.version.clone();
    let force = facts.wanted.as_ref().is_some_and(|wanted| wanted.force);
    if let Some(floor) = &facts.floor
        && release.version.cmp_precedence(floor).is_lt()
    {
        return Err(Refusal::BelowFloor { version: version(), floor: floor.clone() });
    }
    if !force && runs(release, &facts.running) {
        return Err(Refusal::AlreadyRunning { version: version() });
    }
    let place = place(&facts.identity, &release.manifest_hash);
    let reason = || release.rollout.reason.clone();
    let wave = match release.rollout.turn(place, |label| facts.labels.contains(label), facts.now) {
        Turn::Halted if !force => return Err(Refusal::Halted { version: version(), reason: reason() }),
        _ if facts.wanted.is_some() => None,
        Turn::Now { wave } => Some(wave),
        Turn::Paused => return Err(Refusal::Paused { version: version(), reason: reason() }),
        Turn::At { time, wave } => return Err(Refusal::Later { version: version(), time, place, wave }),
        Turn::NotYet => return Err(Refusal::NotYet { version: version(), place }),
        // Forced, and so wanted: not reached, and no reason to install by itself if it were.
        Turn::Halted => return Err(Refusal::Halted { version: version(), reason: reason() }),
    };
    if !force && facts.known_bad.contains(&release.manifest_hash) {
        return Err(Refusal::KnownBad { version: version() });
    }
    for image in &release.images {
        if let Some(have) = facts.partitions.get(&image.name)
            && image.len > *have
        {
            let image_name = image.name.clone();
            return Err(Refusal::TooLarge {
                version: version(),
                image: image_name,
                need: image.len,
                have: *have,
            });
        }
    }
    let (ways, without_room) = ways(release, facts)?;
    Ok(Plan {
        version: version(),
        manifest_hash: release.manifest_hash,
        bundle: release.bundle,
        floor: release.floor.clone(),
        from: facts.running.version.clone(),
        notes: release.notes.clone(),
        details: release.details.clone(),
        written: release.images.iter().fold(0, |sum, image| sum.saturating_add(image.len)),
        place,
        wave,
        ways,
        without_room,
    })
}

/// Whether this is the release that runs: by its manifest, or by its root image when it was flashed.
fn runs(release: &Release, running: &Running) -> bool {
    match (&running.manifest_hash, &running.root_hash) {
        (Some(hash), _) => *hash == release.manifest_hash,
        (None, Some(root)) => release.root_hash.as_ref() == Some(root),
        (None, None) => false,
    }
}

/// The ways that this device can go, cheapest first, and those that it could go with more room.
fn ways(release: &Release, facts: &Facts) -> Result<(Vec<PlannedWay>, Vec<PlannedWay>), Refusal> {
    let mut possible: Vec<PlannedWay> = release.ways.iter().filter_map(|way| possible(way, facts)).collect();
    if possible.is_empty() {
        return Err(Refusal::NoWay { version: release.version.clone() });
    }
    possible.sort_by_key(|way| (way.bytes, !way.exact, way.kind));
    // Two entries of an index may lead to the same file: once is enough.
    let mut seen = BTreeSet::new();
    possible.retain(|way| seen.insert(way.file.sha256));
    let Some(space) = facts.space else { return Ok((possible, Vec::new())) };
    let need = possible.iter().map(|way| space.needed(way)).min().unwrap_or(0);
    let (fit, rest): (Vec<_>, Vec<_>) =
        possible.into_iter().partition(|way| space.needed(way) <= space.bytes);
    if fit.is_empty() {
        return Err(Refusal::NoSpace { version: release.version.clone(), need, have: space.bytes });
    }
    Ok((fit, rest))
}

/// The way as this device would go it.
fn possible(way: &Way, facts: &Facts) -> Option<PlannedWay> {
    let from_running = match (&facts.running.manifest_hash, &facts.running.root_hash) {
        (Some(hash), _) => way.from.as_ref() == Some(hash),
        (None, Some(root)) => way.from_root_hash.as_ref() == Some(root),
        (None, None) => false,
    };
    let exact = match way.kind {
        WayKind::Full => true,
        WayKind::Delta => {
            let fits =
                |source: &Source| facts.partitions.get(&source.name).is_none_or(|len| source.len <= *len);
            if !from_running || !facts.readable || !way.sources.iter().all(fits) {
                return None;
            }
            true
        }
        WayKind::Bundle => false,
        WayKind::Unknown => return None,
    };
    let (file, sources) = (way.file.clone(), way.sources.clone());
    Some(PlannedWay { kind: way.kind, bytes: file.len, exact, file, sources })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::{digest, file_of, index, release};
    use crate::rollout::{Rollout, State, Wave};
    use proptest::prelude::*;

    fn facts() -> Facts {
        Facts {
            identity: "0123456789abcdef0123456789abcdef".into(),
            compatible: "rustiot-x".into(),
            running: Running {
                version: Some(Version::new(1, 0, 0)),
                manifest_hash: Some(digest("1.0.0")),
                root_hash: Some(digest("root hash 1.0.0")),
            },
            partitions: [("root".to_owned(), 256 << 20), ("boot".to_owned(), 96 << 20)].into(),
            readable: true,
            now: 1_700_000_100,
            ..Facts::default()
        }
    }

    fn kinds(plan: &Plan) -> Vec<WayKind> {
        plan.ways.iter().map(|way| way.kind).collect()
    }

    fn refusal(index: &Index, facts: &Facts) -> &'static str {
        plan(index, facts).unwrap_err().kind()
    }

    #[test]
    fn the_delta_from_the_running_release_comes_first_and_the_full_way_after_it() {
        let plan = plan(&index(), &facts()).unwrap();
        assert_eq!(plan.version, Version::new(1, 2, 0));
        assert_eq!(kinds(&plan), [WayKind::Delta, WayKind::Full]);
        assert_eq!((plan.ways[0].bytes, plan.ways[0].exact), (700_000, true));
        assert_eq!(plan.ways[0].sources[0].sha256, digest("root 1.0.0"));
        assert_eq!(plan.written, 140_000_000);
    }

    #[test]
    fn a_flashed_device_finds_its_delta_by_its_root_hash() {
        let mut facts = facts();
        facts.running.manifest_hash = None;
        assert_eq!(kinds(&plan(&index(), &facts).unwrap()), [WayKind::Delta, WayKind::Full]);
        facts.running.root_hash = Some(digest("home-made"));
        assert_eq!(kinds(&plan(&index(), &facts).unwrap()), [WayKind::Full]);
        facts.running = Running::default();
        assert_eq!(kinds(&plan(&index(), &facts).unwrap()), [WayKind::Full]);
    }

    #[test]
    fn a_slot_that_cannot_be_read_or_is_too_short_is_no_base() {
        let mut unreadable = facts();
        unreadable.readable = false;
        assert_eq!(kinds(&plan(&index(), &unreadable).unwrap()), [WayKind::Full]);
        let mut index = index();
        index.releases[0].ways[2].sources[0].len = 300 << 20;
        assert_eq!(kinds(&plan(&index, &facts()).unwrap()), [WayKind::Full]);
    }

    #[test]
    fn the_fewest_bytes_win_whatever_the_kind() {
        let mut index = index();
        index.releases[0].ways[2].file.len = 60_000_001;
        assert_eq!(kinds(&plan(&index, &facts()).unwrap()), [WayKind::Full, WayKind::Delta]);
        let bundle = index.releases[0].bundle;
        let way = Way {
            kind: WayKind::Bundle,
            file: File { name: "1.2.0.raucb".into(), len: bundle.len, sha256: bundle.sha256 },
            from: None,
            from_root_hash: None,
            from_version: None,
            sources: Vec::new(),
        };
        // Twice the same file is one way.
        index.releases[0].ways.extend([way.clone(), way]);
        let plan = plan(&index, &facts()).unwrap();
        assert_eq!(kinds(&plan), [WayKind::Full, WayKind::Delta, WayKind::Bundle]);
        assert_eq!(plan.ways.iter().map(|way| way.exact).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn a_delta_of_another_release_and_an_unknown_way_are_never_used() {
        let mut other = facts();
        other.running.manifest_hash = Some(digest("0.9.0"));
        assert_eq!(kinds(&plan(&index(), &other).unwrap()), [WayKind::Full]);
        let mut index = index();
        index.releases.truncate(1);
        index.releases[0].ways[0].kind = WayKind::Unknown;
        assert_eq!(refusal(&index, &other), "no-way");
    }

    #[test]
    fn each_refusal_is_told_for_what_it_is() {
        type Change = fn(&mut Index, &mut Facts);
        let table: &[(Change, &str, Retry)] = &[
            (|i, _| i.compatible = "rustiot-y".into(), "wrong-board", Retry::NextCheck),
            (|_, f| f.running.version = Some(Version::new(1, 2, 0)), "up-to-date", Retry::NextCheck),
            (|_, f| f.running.version = Some(Version::new(2, 0, 0)), "up-to-date", Retry::NextCheck),
            (|i, _| i.releases.clear(), "up-to-date", Retry::NextCheck),
            (|_, f| f.floor = Some(Version::new(2, 0, 0)), "below-floor", Retry::NextCheck),
            (
                |i, f| f.known_bad = i.releases.iter().map(|r| r.manifest_hash).collect(),
                "known-bad",
                Retry::NextCheck,
            ),
            (|i, _| each(i, |r| r.state = State::Halted), "halted", Retry::NextCheck),
            (|i, _| each(i, |r| r.state = State::Paused), "paused", Retry::NextCheck),
            (|i, _| each(i, |r| r.waves.clear()), "not-yet", Retry::NextCheck),
            (|i, _| each(i, |r| r.waves[0].not_before = 1_800_000_000), "later", Retry::At(1_800_000_000)),
            (|_, f| f.partitions = [("root".to_owned(), 1)].into(), "too-large", Retry::NextCheck),
            (|_, f| f.space = Some(Space { bytes: 1, streams: false }), "no-space", Retry::Device),
            (|i, _| i.releases.iter_mut().for_each(|r| r.ways.clear()), "no-way", Retry::NextCheck),
        ];
        for (number, (change, kind, retry)) in table.iter().enumerate() {
            let (mut index, mut facts) = (index(), facts());
            change(&mut index, &mut facts);
            let refusal = plan(&index, &facts).unwrap_err();
            assert_eq!((refusal.kind(), refusal.retry()), (*kind, *retry), "row {number}: {refusal}");
        }
    }

    fn each(index: &mut Index, change: fn(&mut Rollout)) {
        index.releases.iter_mut().for_each(|release| change(&mut release.rollout));
    }

    #[test]
    fn a_release_that_may_not_be_taken_does_not_hide_an_older_one_that_may() {
        for change in [
            |r: &mut Release| r.rollout.state = State::Halted,
            |r: &mut Release| r.rollout.state = State::Paused,
            |r: &mut Release| r.rollout.waves[0].permille = 0,
            |r: &mut Release| r.ways.clear(),
        ] {
            let mut index = index();
            change(&mut index.releases[0]);
            assert_eq!(plan(&index, &facts()).unwrap().version, Version::new(1, 1, 0));
        }
        let mut bad_here = facts();
        bad_here.known_bad.insert(digest("1.2.0"));
        assert_eq!(plan(&index(), &bad_here).unwrap().version, Version::new(1, 1, 0));
    }

    #[test]
    fn a_wish_stands_above_waves_and_pause_but_not_above_floor_and_halt() {
        let mut index = index();
        each(&mut index, |r| (r.state, r.waves) = (State::Paused, Vec::new()));
        let mut facts = facts();
        facts.running.version = Some(Version::new(1, 2, 0));
        facts.running.manifest_hash = Some(digest("1.2.0"));
        facts.wanted = Some(Wanted { version: Some(Version::new(1, 1, 0)), force: false });
        let wished = plan(&index, &facts).unwrap();
        assert_eq!((wished.version, wished.wave), (Version::new(1, 1, 0), None), "an older one by name");
        facts.floor = Some(Version::new(1, 2, 0));
        assert_eq!(refusal(&index, &facts), "below-floor");
        facts.floor = None;
        facts.wanted = Some(Wanted { version: Some(Version::new(3, 0, 0)), force: true });
        assert_eq!(refusal(&index, &facts), "no-such-release");
        facts.wanted = Some(Wanted { version: None, force: false });
        assert_eq!(refusal(&index, &facts), "already-running");
        facts.wanted = Some(Wanted { version: None, force: true });
        each(&mut index, |r| r.state = State::Halted);
        facts.known_bad.insert(digest("1.2.0"));
        assert_eq!(plan(&index, &facts).unwrap().version, Version::new(1, 2, 0), "force lifts all three");
        facts.wanted = Some(Wanted { version: Some(Version::new(1, 1, 0)), force: false });
        assert_eq!(refusal(&index, &facts), "halted");
    }

    #[test]
    fn what_is_fetched_as_a_whole_must_fit() {
        let planned = |bytes, streams| {
            let space = Some(Space { bytes, streams });
            plan(&index(), &Facts { space, ..facts() })
        };
        let without = |plan: &Plan| plan.without_room.iter().map(|way| way.kind).collect::<Vec<_>>();
        // All of it fits: nothing is left out.
        let whole = planned(60_000_000, false).unwrap();
        assert_eq!((kinds(&whole), without(&whole)), (vec![WayKind::Delta, WayKind::Full], vec![]));
        // A delta needs its own length; whether a full one needs any depends on how fast it may be fetched.
        let slow = planned(700_000, false).unwrap();
        assert_eq!((kinds(&slow), without(&slow)), (vec![WayKind::Delta], vec![WayKind::Full]));
        let streamed = planned(699_999, true).unwrap();
        assert_eq!((kinds(&streamed), without(&streamed)), (vec![WayKind::Full], vec![WayKind::Delta]));
        assert_eq!(kinds(&planned(0, true).unwrap()), [WayKind::Full]);
        let none = planned(699_999, false).unwrap_err();
        assert!(matches!(none, Refusal::NoSpace { need: 700_000, have: 699_999, .. }), "{none}");
        assert!(none.hint().unwrap().contains("update.cache"));
        // Where there is only a delta, streaming does not help.
        let mut deltas = index();
        deltas.releases.iter_mut().for_each(|r| r.ways.retain(|way| way.kind == WayKind::Delta));
        let space = Some(Space { bytes: 0, streams: true });
        assert_eq!(refusal(&deltas, &Facts { space, ..facts() }), "no-space");
    }

    #[test]
    fn words_say_what_and_why() {
        let mut index = index();
        each(&mut index, |r| (r.state, r.reason) = (State::Halted, "eats batteries".into()));
        assert_eq!(
            plan(&index, &facts()).unwrap_err().to_string(),
            "1.2.0 has been withdrawn: eats batteries"
        );
        let newest = Refusal::UpToDate { newest: Some(Version::new(1, 2, 0)) };
        assert_eq!(newest.to_string(), "the newest release that is offered is the one that runs (1.2.0)");
    }

    fn arbitrary_release() -> impl Strategy<Value = Release> {
        let way = (0u8..4, "[01]\\.0\\.0", 0u64..1 << 40);
        let wave = (0u32..1100, 0u64..3, proptest::collection::vec("[ab]", 0..2));
        let parts = (
            (0u64..3, 0u64..3),
            proptest::collection::vec(way, 0..6),
            proptest::collection::vec(wave, 0..4),
            0u8..4,
        );
        parts.prop_map(|((major, minor), ways, waves, state)| {
            let mut release = release(&format!("{major}.{minor}.0"), &[]);
            release.ways = ways
                .into_iter()
                .map(|(kind, from, len)| Way {
                    kind: [WayKind::Full, WayKind::Delta, WayKind::Bundle, WayKind::Unknown]
                        [usize::from(kind)],
                    file: file_of(&format!("{len}"), len),
                    from: Some(digest(&from)),
                    from_root_hash: None,
                    from_version: None,
                    sources: release.images.clone(),
                })
                .collect();
            release.rollout = Rollout {
                state: [State::Running, State::Paused, State::Halted, State::Unknown][usize::from(state)],
                reason: String::new(),
                waves: waves
                    .into_iter()
                    .map(|(permille, not_before, labels)| Wave {
                        name: String::new(),
                        permille,
                        not_before,
                        labels,
                    })
                    .collect(),
            };
            release
        })
    }

    proptest! {
        #[test]
        fn every_plan_keeps_the_promises(
            mut releases in proptest::collection::vec(arbitrary_release(), 0..5),
            identity in "[a-f0-9]{8}", now in 0u64..3, space in proptest::option::of((0u64..1 << 40, proptest::bool::ANY)),
            readable: bool, bad: bool, floor in proptest::option::of(0u64..3), wish: bool,
        ) {
            releases.sort_by(|a, b| b.version.cmp(&a.version));
            releases.dedup_by(|a, b| a.version == b.version);
            let index = Index { releases, ..index() };
            let space = space.map(|(bytes, streams)| Space { bytes, streams });
            let mut facts = Facts { identity, now, space, readable, ..facts() };
            facts.floor = floor.map(|major| Version::new(major, 0, 0));
            if bad {
                facts.known_bad.extend(index.releases.first().map(|release| release.manifest_hash));
            }
            facts.wanted = wish.then_some(Wanted { version: None, force: false });
            match plan(&index, &facts) {
                Ok(plan) => {
                    let release = index.releases.iter().find(|r| r.manifest_hash == plan.manifest_hash).unwrap();
                    prop_assert!(release.rollout.state != State::Halted);
                    prop_assert!(facts.floor.as_ref().is_none_or(|floor| plan.version >= *floor));
                    prop_assert!(!facts.known_bad.contains(&plan.manifest_hash));
                    prop_assert!(wish || plan.version > Version::new(1, 0, 0));
                    prop_assert!(!plan.ways.is_empty());
                    prop_assert!(plan.ways.windows(2).all(|pair| pair[0].bytes <= pair[1].bytes));
                    prop_assert!(plan.ways.iter().all(|way| readable || way.kind != WayKind::Delta));
                    let room = |way: &PlannedWay| space.is_none_or(|space| space.needed(way) <= space.bytes);
                    prop_assert!(plan.ways.iter().all(room) && !plan.without_room.iter().any(room));
                }
                Err(refusal) => {
                    prop_assert!(!refusal.to_string().is_empty());
                    if let Retry::At(time) = refusal.retry() {
                        prop_assert!(time > now, "it never says: look again in the past");
                    }
                }
            }
        }
    }
}
