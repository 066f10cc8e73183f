//! The repository as the engine uses it: from the engine's question to the repository's facts, and from its plan or
//! refusal to ours.
//!
//! Decides nothing: what there is for this device is `rustiot_repository::plan`'s to say. Called by the engine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustiot_http::Url;
use rustiot_repository::client::{Client, Settings};
use rustiot_repository::time::Clock;
use rustiot_repository::{
    Digest, Facts, File, Plan as Planned, PlannedWay, Refusal, Retry, Running, Space, Wanted,
};

use crate::failure::{Failure, Kind};
use crate::plan::{DetailsFile, Plan, Way, WayKind};
use crate::ports::{Found, NoPlan, Place, Question, Repository};

/// The root metadata that the image trusts.
const ROOT: &str = "/usr/lib/rustiot/repository-root.json";
/// What the client remembers.
const DIR: &str = "/state/update/repository";
/// systemd-timesyncd's word that the clock has been set in this boot (systemd-timesyncd.service(8)).
pub(crate) const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// What never changes in a boot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Device {
    /// Machine id: decides the place in each roll-out and the instant of each look.
    pub identity: String,
    /// The board.
    pub compatible: String,
    /// Version of the running release.
    pub version: String,
    /// Root hash of the running root, hex, where the image says it.
    pub root_hash: Option<String>,
    /// When the image was built, Unix seconds.
    pub built: u64,
}

/// The repository of this device.
#[derive(Debug)]
pub(crate) struct Releases {
    device: Device,
}

impl Releases {
    pub(crate) fn new(device: Device) -> Self {
        Self { device }
    }
}

impl Repository for Releases {
    async fn check(&self, question: &Question) -> Result<Found, Failure> {
        let root = std::fs::read(ROOT).map_err(|e| {
            Failure::from_error(Kind::Untrusted, "this image trusts no repository", &e)
                .hint(format!("build the image with the repository's root.json as {ROOT}"))
        })?;
        // Made for one look: nothing of it stays in memory until the next.
        let mut client = Client::open(Settings {
            dir: PathBuf::from(DIR),
            root,
            urls: addresses(&question.place),
            compatible: self.device.compatible.clone(),
            built: self.device.built,
            http: crate::web::client()?,
        })
        .map_err(|e| failed(&e))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let clock = Clock { now, synchronised: Path::new(SYNCHRONISED).exists() };
        let checked = client.check(clock).await.map_err(|e| failed(&e))?;
        let answer =
            match rustiot_repository::plan(&checked.index, &facts(&self.device, question, checked.now)) {
                Ok(plan) => {
                    Ok(kept(&plan, |file| client.urls(file).iter().map(ToString::to_string).collect()))
                }
                Err(refusal) => Err(Box::new(told(&refusal))),
            };
        Ok(Found { bytes: checked.traffic.bytes, answer })
    }

    fn wait(&self, interval: Duration, now: Duration) -> Duration {
        rustiot_repository::poll::wait(&self.device.identity, interval, now)
    }
}

/// Where the client looks; a directory is an address as well. What is no address is left out.
fn addresses(place: &Place) -> Vec<Url> {
    match place {
        Place::Urls(urls) => urls.iter().filter_map(|url| url.parse().ok()).collect(),
        Place::Dir(dir) => Url::from_directory_path(dir).into_iter().collect(),
    }
}

fn failed(error: &rustiot_repository::client::Error) -> Failure {
    use rustiot_repository::client::Error;
    let kind = match error {
        Error::Fetch { .. } => Kind::Unreachable,
        Error::NoUrl | Error::NoIndex { .. } => Kind::NotFound,
        Error::Store(_) => Kind::State,
        _ => Kind::Untrusted,
    };
    Failure::from_error(kind, error.to_string(), error).hint(error.hint())
}

/// What the repository's decision needs. `now` is the time that the metadata was judged by.
pub(crate) fn facts(device: &Device, question: &Question, now: u64) -> Facts {
    let digest = |text: &String| text.to_ascii_lowercase().parse::<Digest>().ok();
    Facts {
        identity: device.identity.clone(),
        compatible: device.compatible.clone(),
        labels: question.labels.iter().cloned().collect(),
        running: Running {
            version: device.version.parse().ok(),
            manifest_hash: question.running.as_ref().and_then(digest),
            root_hash: device.root_hash.as_ref().and_then(digest),
        },
        floor: question.floor.as_ref().and_then(|text| text.parse().ok()),
        known_bad: question.known_bad.iter().filter_map(digest).collect::<BTreeSet<_>>(),
        partitions: question.partitions.iter().cloned().collect(),
        readable: true,
        space: question.room.map(|bytes| Space { bytes, streams: question.streams }),
        now,
        wanted: question.wanted.map(|force| Wanted { version: question.version.clone(), force }),
    }
}

/// The repository's plan as the service keeps it. `urls` says where a file is.
pub(crate) fn kept(plan: &Planned, urls: impl Fn(&File) -> Vec<String>) -> Plan {
    let kind = |way: &PlannedWay| match way.kind {
        rustiot_repository::WayKind::Delta => Some(WayKind::Delta),
        rustiot_repository::WayKind::Full => Some(WayKind::Full),
        rustiot_repository::WayKind::Bundle => Some(WayKind::Bundle),
        rustiot_repository::WayKind::Unknown => None,
    };
    let way = |way: &PlannedWay| {
        Some(Way {
            kind: kind(way)?,
            urls: urls(&way.file),
            bytes: way.bytes,
            exact: way.exact,
            len: Some(way.file.len),
            sha256: Some(way.file.sha256.to_string()),
            sources: way.sources.iter().map(|source| source.name.clone()).collect(),
        })
    };
    Plan {
        release: Some(rustiot_boot::Release {
            version: plan.version.to_string(),
            manifest_hash: plan.manifest_hash.to_string(),
        }),
        from: plan.from.as_ref().map(ToString::to_string),
        notes: plan.notes.clone(),
        bundle: plan.bundle.len,
        written: plan.written,
        floor: plan.floor.as_ref().map(ToString::to_string),
        wave: plan.wave.clone(),
        details: plan.details.as_ref().map(|file| DetailsFile {
            urls: urls(file),
            len: file.len,
            sha256: file.sha256.to_string(),
        }),
        ways: plan.ways.iter().filter_map(way).collect(),
        without_room: plan.without_room.iter().filter_map(way).collect(),
    }
}

/// The repository's refusal as the service tells it.
pub(crate) fn told(refusal: &Refusal) -> NoPlan {
    let kind = match refusal {
        Refusal::WrongBoard { .. } => Kind::WrongBoard,
        Refusal::UpToDate { .. } | Refusal::NoSuchRelease { .. } => Kind::NothingNew,
        Refusal::AlreadyRunning { .. } => Kind::AlreadyRunning,
        Refusal::BelowFloor { .. } => Kind::BelowFloor,
        Refusal::KnownBad { .. } => Kind::KnownBad,
        Refusal::Halted { .. } | Refusal::Paused { .. } | Refusal::Later { .. } | Refusal::NotYet { .. } => {
            Kind::NotOffered
        }
        Refusal::TooLarge { .. } => Kind::TooLarge,
        Refusal::NoSpace { .. } => Kind::NoSpace,
        Refusal::NoWay { .. } => Kind::NoWay,
    };
    let version = match refusal {
        Refusal::WrongBoard { .. } => None,
        Refusal::UpToDate { newest } => newest.clone(),
        Refusal::NoSuchRelease { version }
        | Refusal::AlreadyRunning { version }
        | Refusal::BelowFloor { version, .. }
        | Refusal::KnownBad { version }
        | Refusal::Halted { version, .. }
        | Refusal::Paused { version, .. }
        | Refusal::Later { version, .. }
        | Refusal::NotYet { version, .. }
        | Refusal::TooLarge { version, .. }
        | Refusal::NoSpace { version, .. }
        | Refusal::NoWay { version } => Some(version.clone()),
    };
    let mut failure = Failure::new(kind, refusal.to_string());
    failure.hint = refusal.hint().map(str::to_owned);
    NoPlan {
        word: refusal.kind().to_owned(),
        version: version.map(|version| version.to_string()),
        failure,
        retry_at: match refusal.retry() {
            Retry::At(time) => Some(time),
            Retry::NextCheck | Retry::Device => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Place;

    #[test]
    fn a_roll_out_names_the_labels_that_a_configuration_takes_and_no_others() {
        let texts = ('\0'..'\u{180}').map(String::from).chain([0, 2, 64, 65].map(|len| "x".repeat(len)));
        for text in texts {
            let taken = text.parse::<rustiot_config::scalar::Label>().is_ok();
            assert_eq!(rustiot_repository::rollout::is_label(&text), taken, "{text:?}");
        }
    }

    #[test]
    fn what_the_device_knows_becomes_facts_and_damaged_parts_are_left_out() {
        let device = Device { version: "1.2.3".into(), root_hash: Some("odd".into()), ..Device::default() };
        let question = Question {
            place: Place::Dir("/x".into()),
            running: Some("AB".repeat(32)),
            floor: Some("tuesday".into()),
            known_bad: ["cd".repeat(32), "odd".into()].into(),
            partitions: vec![("root".into(), 7)],
            labels: vec!["canary".into()],
            room: Some(8),
            streams: true,
            wanted: Some(true),
            version: Some("1.0.0".parse().unwrap()),
        };
        let facts = facts(&device, &question, 9);
        assert_eq!(facts.running.manifest_hash, Some(Digest([0xab; 32])));
        assert_eq!((facts.running.root_hash, facts.floor, facts.now), (None, None, 9));
        assert_eq!(facts.known_bad, [Digest([0xcd; 32])].into());
        assert_eq!(facts.space, Some(Space { bytes: 8, streams: true }));
        let wanted = facts.wanted.unwrap();
        assert!(wanted.force && wanted.version == "1.0.0".parse().ok());
    }

    #[test]
    fn a_plan_is_kept_with_its_ways_in_order() {
        let digest = Digest([0xab; 32]);
        let way = |kind, len| PlannedWay {
            kind,
            bytes: len,
            exact: true,
            file: rustiot_repository::File { name: "x".into(), len, sha256: digest },
            sources: Vec::new(),
        };
        let planned = Planned {
            version: "2.0.0".parse().unwrap(),
            manifest_hash: digest,
            bundle: rustiot_repository::index::Content { len: 9, sha256: digest },
            floor: None,
            from: None,
            notes: "n".into(),
            details: Some(rustiot_repository::File { name: "d".into(), len: 3, sha256: digest }),
            written: 7,
            place: 1,
            wave: Some("w".into()),
            ways: vec![
                way(rustiot_repository::WayKind::Delta, 1),
                way(rustiot_repository::WayKind::Unknown, 2),
                way(rustiot_repository::WayKind::Full, 3),
            ],
            without_room: vec![way(rustiot_repository::WayKind::Bundle, 4)],
        };
        let plan = kept(&planned, |file| vec![format!("https://h/{}", file.path())]);
        let kinds: Vec<WayKind> = plan.ways.iter().map(|way| way.kind).collect();
        assert_eq!(kinds, [WayKind::Delta, WayKind::Full]);
        assert_eq!((plan.without_room.len(), plan.without_room[0].kind), (1, WayKind::Bundle));
        assert_eq!((plan.version(), plan.bundle, plan.written), (Some("2.0.0"), 9, 7));
        let details = plan.details.as_ref().unwrap();
        assert!(details.len == 3 && details.urls[0].ends_with(".d") && details.sha256 == "ab".repeat(32));
        assert!(plan.ways[0].urls[0].ends_with(".x") && plan.ways[0].sha256 == Some("ab".repeat(32)));
    }

    #[test]
    fn a_directory_is_an_address() {
        let text = |place| addresses(&place).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(Place::Dir("/media/my stick".into())), ["file:///media/my%20stick/"]);
        assert_eq!(text(Place::Urls(vec!["https://h/r".into(), "::".into()])), ["https://h/r"]);
    }

    #[test]
    fn a_refusal_keeps_its_word_and_says_when_to_look_again() {
        let version: semver::Version = "2.0.0".parse().unwrap();
        let later = Refusal::Later { version: version.clone(), time: 5, place: 1, wave: "w".into() };
        let told = |refusal| super::told(&refusal);
        let no = told(later);
        assert_eq!((no.word.as_str(), no.version.as_deref(), no.retry_at), ("later", Some("2.0.0"), Some(5)));
        assert_eq!(no.failure.kind, Kind::NotOffered);
        let full = told(Refusal::NoSpace { version: version.clone(), need: 9, have: 8 });
        assert_eq!((full.word.as_str(), full.failure.kind, full.retry_at), ("no-space", Kind::NoSpace, None));
        assert!(full.failure.hint.unwrap().contains("df /data"));
        let newest = told(Refusal::UpToDate { newest: Some(version) });
        assert_eq!((newest.failure.kind, newest.retry_at), (Kind::NothingNew, None));
    }
}
