//! Who may take a release, and when: waves, pause and halt. No server decides: each device finds its own place.
//!
//! Pure. A device's place in a release is a hash of its identity and the release, so that the same devices are not
//! always the first ones. The roll-out file is signed by a key of its own, which can only slow a release down or speed
//! it up, never change what is installed.

use crate::digest::Digest;
use crate::index::{self, Error, FORMAT, MAX_RELEASES, rule};
use serde::{Deserialize, Serialize};

/// Places of a release: a wave of this many permille holds every device.
pub const PLACES: u32 = 1000;
/// Most waves of one release.
pub const MAX_WAVES: usize = 32;
/// Most labels of one wave.
pub const MAX_LABELS: usize = 32;

/// The roll-outs of one board, as they are in its roll-out file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollouts {
    /// [`FORMAT`].
    pub format: u32,
    /// The board.
    pub compatible: String,
    /// One a release; a release without one is offered to nobody.
    pub rollouts: Vec<Named>,
}

/// The roll-out of one release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The release.
    pub manifest_hash: Digest,
    /// Its roll-out.
    #[serde(flatten)]
    pub rollout: Rollout,
}

/// Who may take a release, and when. The default is nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Whether it goes on.
    #[serde(default)]
    pub state: State,
    /// Why it does not, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The waves; a device may take the release as soon as one of them lets it.
    #[serde(default)]
    pub waves: Vec<Wave>,
}

/// Whether a roll-out goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// By its waves.
    #[default]
    Running,
    /// Nobody starts for now.
    Paused,
    /// Nobody starts, ever: the release is withdrawn. Devices that run it keep it.
    Halted,
    /// A state that is younger than this code: read as paused.
    #[serde(other)]
    Unknown,
}

/// A part of the fleet that may take the release from some time on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Devices whose place is below this are in it: 0 none, 1000 all.
    pub permille: u32,
    /// From when on, Unix seconds; 0 at once.
    #[serde(default)]
    pub not_before: u64,
    /// Only devices with one of these labels; all devices if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// What a roll-out says to one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It may take the release.
    Now {
        /// The wave that lets it.
        wave: String,
    },
    /// Its wave comes later.
    At {
        /// Unix seconds.
        time: u64,
        /// The wave.
        wave: String,
    },
    /// No wave so far holds it.
    NotYet,
    /// The roll-out is paused.
    Paused,
    /// The release is withdrawn.
    Halted,
}

/// The place of a device in a release: 0 to 999, the same whenever it is asked.
#[must_use]
pub fn place(identity: &str, manifest_hash: &Digest) -> u32 {
    scaled("rustiot place", &[identity.as_bytes(), manifest_hash.bytes()], u64::from(PLACES))
        .try_into()
        .unwrap_or(PLACES - 1)
}

/// Whether a device can carry this label: what `update.labels` of its configuration takes.
#[must_use]
pub fn is_label(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// A number in `0..range` from a hash of `parts`; 0 if `range` is 0.
pub(crate) fn scaled(purpose: &str, parts: &[&[u8]], range: u64) -> u64 {
    let mut text = Vec::new();
    for part in [purpose.as_bytes()].iter().chain(parts) {
        text.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        text.extend_from_slice(part);
    }
    let digest = Digest::of(&text);
    let (head, _) = digest.bytes().split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    let product = u128::from(u64::from_le_bytes(*head)) * u128::from(range);
    u64::try_from(product >> 64).unwrap_or(0)
}

impl Rollout {
    /// Everyone at once.
    #[must_use]
    pub fn everyone() -> Self {
        let wave = Wave { name: "everyone".into(), permille: PLACES, not_before: 0, labels: Vec::new() };
        Rollout { state: State::Running, reason: String::new(), waves: vec![wave] }
    }

    /// What it says to the device at `place` that carries `labels`, at the time `now` (Unix seconds).
    #[must_use]
    pub fn turn<'a>(&self, place: u32, labels: impl Fn(&str) -> bool + 'a, now: u64) -> Turn {
        match self.state {
            State::Halted => return Turn::Halted,
            State::Paused | State::Unknown => return Turn::Paused,
            State::Running => {}
        }
        let mine = |wave: &&Wave| {
            place < wave.permille && (wave.labels.is_empty() || wave.labels.iter().any(|label| labels(label)))
        };
        match self.waves.iter().filter(mine).min_by_key(|wave| wave.not_before) {
            None => Turn::NotYet,
            Some(wave) if wave.not_before <= now => Turn::Now { wave: wave.name.clone() },
            Some(wave) => Turn::At { time: wave.not_before, wave: wave.name.clone() },
        }
    }

    pub(crate) fn check(&self, place: &str) -> Result<(), Error> {
        if self.reason.len() > index::MAX_NOTES {
            return Err(rule(place, "the reason is too long"));
        }
        if self.waves.len() > MAX_WAVES {
            return Err(rule(place, "too many waves"));
        }
        for wave in &self.waves {
            if wave.name.len() > index::MAX_NAME {
                return Err(rule(place, "a wave's name is too long"));
            }
            if wave.permille > PLACES {
                return Err(rule(place, "a wave has more than 1000 permille"));
            }
            if wave.labels.len() > MAX_LABELS {
                return Err(rule(place, "a wave has too many labels"));
            }
            if wave.labels.iter().any(|label| label.is_empty() || label.len() > index::MAX_NAME) {
                return Err(rule(place, "a label has 1 to 128 bytes"));
            }
        }
        Ok(())
    }
}

impl Rollouts {
    /// Reads and checks a roll-out file.
    ///
    /// # Errors
    /// [`Error`]: too large, no JSON, of a newer format, or against a rule.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let rollouts: Rollouts = index::parse(bytes)?;
        rollouts.check()?;
        Ok(rollouts)
    }

    /// Checks the rules that the types cannot hold.
    ///
    /// # Errors
    /// [`Error::Rule`].
    pub fn check(&self) -> Result<(), Error> {
        if self.format != FORMAT {
            return Err(Error::Format { format: self.format });
        }
        index::name("compatible", &self.compatible)?;
        if self.rollouts.len() > MAX_RELEASES {
            return Err(rule("rollouts", "too many"));
        }
        for (number, named) in self.rollouts.iter().enumerate() {
            let place = format!("roll-out of {}", named.manifest_hash);
            if self.rollouts.iter().take(number).any(|other| other.manifest_hash == named.manifest_hash) {
                return Err(rule(&place, "named twice"));
            }
            named.rollout.check(&place)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::digest;
    use proptest::prelude::*;

    fn wave(permille: u32, not_before: u64, labels: &[&str]) -> Wave {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Wave { name: format!("{permille}"), permille, not_before, labels }
    }

    fn rollout(waves: &[Wave]) -> Rollout {
        Rollout { waves: waves.to_vec(), ..Rollout::default() }
    }

    /// Chi-square over 100 classes of 100,000 devices: 99 degrees of freedom, above 160 happens once in 10,000.
    #[test]
    fn places_are_uniform() {
        for release in ["1.0.0", "1.1.0", "9.9.9"] {
            let mut classes = [0u32; 100];
            for device in 0..100_000u32 {
                // Identities that differ in one digit are the hard case.
                let place = place(&format!("0123456789abcdef01234567{device:08x}"), &digest(release));
                classes[(place / 10) as usize] += 1;
            }
            let chi: f64 = classes.iter().map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi < 160.0, "{release}: chi-square {chi}");
        }
    }

    #[test]
    fn the_first_of_one_release_are_not_the_first_of_the_next() {
        let first = |release: &str| -> Vec<u32> {
            (0..10_000u32).filter(|id| place(&id.to_string(), &digest(release)) < 100).collect()
        };
        let (one, two) = (first("1.0.0"), first("1.1.0"));
        let both = one.iter().filter(|id| two.contains(id)).count();
        assert!((900..1100).contains(&one.len()), "{}", one.len());
        // A tenth of a tenth, 100 ± 10.
        assert!((50..150).contains(&both), "{both}");
    }

    #[test]
    fn the_place_is_part_of_the_contract() {
        // Changing it would shuffle every roll-out that is under way.
        let places = ["a", "b", "c"].map(|id| place(id, &digest("release")));
        assert_eq!(places, PINNED);
    }
    const PINNED: [u32; 3] = [617, 250, 687];

    #[test]
    fn a_device_goes_with_the_earliest_wave_that_holds_it() {
        let waves = rollout(&[wave(1000, 10, &["canary"]), wave(50, 100, &[]), wave(1000, 200, &[])]);
        let canary = |label: &str| label == "canary";
        let table: &[(u32, bool, u64, Turn)] = &[
            (700, true, 9, Turn::At { time: 10, wave: "1000".into() }),
            (700, true, 10, Turn::Now { wave: "1000".into() }),
            (49, false, 99, Turn::At { time: 100, wave: "50".into() }),
            (49, false, 100, Turn::Now { wave: "50".into() }),
            (50, false, 150, Turn::At { time: 200, wave: "1000".into() }),
            (999, false, 200, Turn::Now { wave: "1000".into() }),
        ];
        for (place, labelled, now, expected) in table {
            assert_eq!(waves.turn(*place, |label| *labelled && canary(label), *now), *expected);
        }
        assert_eq!(rollout(&[wave(50, 0, &[])]).turn(50, |_| false, u64::MAX), Turn::NotYet);
        assert_eq!(Rollout::default().turn(0, |_| true, u64::MAX), Turn::NotYet, "no wave, nobody");
        assert_eq!(Rollout::everyone().turn(999, |_| false, 0), Turn::Now { wave: "everyone".into() });
    }

    #[test]
    fn pause_and_halt_stand_above_the_waves() {
        for (state, expected) in
            [(State::Paused, Turn::Paused), (State::Halted, Turn::Halted), (State::Unknown, Turn::Paused)]
        {
            let rollout = Rollout { state, ..Rollout::everyone() };
            assert_eq!(rollout.turn(0, |_| true, u64::MAX), expected);
        }
        let read: Rollout = serde_json::from_str(r#"{"state": "on-holiday"}"#).unwrap();
        assert_eq!(read.state, State::Unknown);
    }

    #[test]
    fn a_roll_out_file_round_trips_and_keeps_its_rules() {
        let named = |release: &str| Named { manifest_hash: digest(release), rollout: Rollout::everyone() };
        let good = Rollouts {
            format: FORMAT,
            compatible: "rustiot-x".into(),
            rollouts: vec![named("1"), named("2")],
        };
        assert_eq!(Rollouts::parse(&serde_json::to_vec(&good).unwrap()).unwrap(), good);
        type Change = fn(&mut Rollouts);
        let table: &[(Change, &str)] = &[
            (|r| r.compatible = "/".into(), "compatible"),
            (|r| r.rollouts[1].manifest_hash = r.rollouts[0].manifest_hash, "twice"),
            (|r| r.rollouts[0].rollout.waves[0].permille = 1001, "1000 permille"),
            (|r| r.rollouts[0].rollout.waves[0].labels = vec![String::new()], "label"),
            (
                |r| r.rollouts[0].rollout.waves = vec![r.rollouts[0].rollout.waves[0].clone(); 33],
                "too many waves",
            ),
        ];
        for (number, (change, words)) in table.iter().enumerate() {
            let mut broken = good.clone();
            change(&mut broken);
            let error = Rollouts::parse(&serde_json::to_vec(&broken).unwrap()).unwrap_err().to_string();
            assert!(error.contains(words), "row {number}: {error}");
        }
    }

    proptest! {
        #[test]
        fn places_are_places(identity in ".{0,40}", release: [u8; 32]) {
            prop_assert!(place(&identity, &Digest(release)) < PLACES);
        }

        #[test]
        fn a_larger_wave_never_holds_fewer(identity in "[a-f0-9]{32}", release: [u8; 32], small in 0u32..=1000, more in 0u32..=1000) {
            let place = place(&identity, &Digest(release));
            let large = small.saturating_add(more).min(1000);
            let held = |permille| rollout(&[wave(permille, 0, &[])]).turn(place, |_| false, 0) != Turn::NotYet;
            prop_assert!(!held(small) || held(large));
        }

        #[test]
        fn time_only_opens(place in 0u32..1000, times in proptest::collection::vec(0u64..100, 0..5), now in 0u64..100) {
            let waves: Vec<Wave> = times.iter().map(|time| wave(500, *time, &[])).collect();
            let rollout = rollout(&waves);
            if matches!(rollout.turn(place, |_| false, now), Turn::Now { .. }) {
                let later = rollout.turn(place, |_| false, now + 1);
                let open = matches!(later, Turn::Now { .. });
                prop_assert!(open);
            }
        }
    }
}
