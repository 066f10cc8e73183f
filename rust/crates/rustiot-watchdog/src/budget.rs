//! How often the watchdog may reboot a committed release: a pause that doubles with every reboot and decays
//! with every day that goes well. It is never used up: at worst there is one reboot a day.
//!
//! Pure. Counts running time, not the calendar: a device without a battery clock wakes up in 1970.
//! A trial boot is not limited; there is an old slot to return to.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Pause before the second reboot; each further one waits twice as long.
pub const FIRST_PAUSE: Duration = Duration::from_secs(10 * 60);
/// Longest pause.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// Levels are not counted further than this: the pause no longer grows, and some good days clear them.
pub const HIGHEST_LEVEL: u32 = 12;

/// What is remembered between boots, in `/state/watchdog/budget.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Reboots that were ordered and have not decayed.
    pub level: u32,
    /// Running time without trouble towards the next decay, in seconds.
    pub good_s: u64,
    /// Why the last reboot was ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reason: Option<String>,
}

impl Budget {
    /// How long this boot must have run before the watchdog may end it.
    #[must_use]
    pub fn pause(&self) -> Duration {
        match self.level.min(HIGHEST_LEVEL).checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE),
        }
    }

    /// The budget after a reboot for `reason`.
    #[must_use]
    pub fn spend(&self, reason: &str) -> Self {
        Self {
            level: self.level.saturating_add(1).min(HIGHEST_LEVEL),
            good_s: 0,
            last_reason: Some(reason.to_owned()),
        }
    }

    /// The budget after `span` of running without trouble; every `decay` of that takes one level back.
    #[must_use]
    pub fn earn(&self, span: Duration, decay: Duration) -> Self {
        if self.level == 0 {
            return self.clone();
        }
        let good = self.good_s.saturating_add(span.as_secs());
        if good < decay.as_secs() {
            return Self { good_s: good, ..self.clone() };
        }
        Self { level: self.level.saturating_sub(1), good_s: 0, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn the_pause_doubles_up_to_a_day_and_never_ends() {
        let mut budget = Budget::default();
        let mut minutes = Vec::new();
        for _ in 0..14 {
            minutes.push(budget.pause().as_secs() / 60);
            budget = budget.spend("x");
        }
        assert_eq!(minutes, [0, 10, 20, 40, 80, 160, 320, 640, 1280, 1440, 1440, 1440, 1440, 1440]);
        assert_eq!(budget.level, HIGHEST_LEVEL);
    }

    #[test]
    fn a_good_day_takes_one_level_back_and_parts_of_days_add_up() {
        let mut budget = Budget::default().spend("x").spend("y");
        for _ in 0..23 {
            budget = budget.earn(Duration::from_secs(3600), DAY);
        }
        assert_eq!(budget.level, 2);
        budget = budget.earn(Duration::from_secs(3600), DAY);
        assert_eq!((budget.level, budget.good_s, budget.last_reason.as_deref()), (1, 0, Some("y")));
        assert_eq!(budget.earn(DAY, DAY).pause(), Duration::ZERO);
        assert_eq!(Budget::default().earn(DAY, DAY), Budget::default(), "nothing to earn at level 0");
    }

    #[test]
    fn a_level_from_outside_is_bounded() {
        let wild: Budget =
            serde_json::from_str(r#"{"level":4294967295,"good_s":18446744073709551615}"#).unwrap();
        assert_eq!(wild.pause(), LONGEST_PAUSE);
        assert_eq!(wild.spend("x").level, HIGHEST_LEVEL);
        assert_eq!(wild.clone().earn(DAY, DAY).level, u32::MAX - 1);
    }
}
