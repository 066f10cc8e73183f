//! Is a window open now, and when does that change? Days, times and time zones of `update.windows`.
//!
//! Pure but for the system's time zone database. Called by the gates before each look, and to show the policy.

use jiff::civil::{Date, DateTime};
use jiff::tz::{Disambiguation, TimeZone};
use jiff::{Timestamp, ToSpan};
use rustiot_config::scalar::Window;

/// Days that are looked ahead: a window opens at least once a week, and the day over which midnight goes comes first.
const DAYS_AHEAD: i64 = 9;

/// The windows at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// One of them is open, or there are none.
    pub open: bool,
    /// When that changes next, Unix seconds. None: never, as far as one can see.
    pub changes: Option<u64>,
}

/// Where things stand at `now` (Unix seconds). A window without a zone has `zone`, and a zone that the system does not
/// know counts as UTC: a window at a wrong hour is better than an update at any hour, or never.
#[must_use]
pub fn state(windows: &[Window], zone: &str, now: u64) -> State {
    if windows.is_empty() {
        return State { open: true, changes: None };
    }
    let spans: Vec<(u64, u64)> = windows.iter().flat_map(|window| spans(window, zone, now)).collect();
    // Windows may touch or overlap: follow them to the end.
    let mut end = now;
    while let Some(later) =
        spans.iter().filter(|(from, to)| *from <= end && end < *to).map(|(_, to)| *to).max()
    {
        end = later;
    }
    if end > now {
        return State { open: true, changes: Some(end) };
    }
    State { open: false, changes: spans.iter().map(|(from, _)| *from).filter(|from| *from > now).min() }
}

/// Names of zones that the system does not know.
#[must_use]
pub fn unknown_zones(windows: &[Window], zone: &str) -> Vec<String> {
    let mut names: Vec<String> = windows
        .iter()
        .map(|window| window.zone().map_or(zone, |zone| zone.as_str()).to_owned())
        .filter(|name| find(name).is_none())
        .collect();
    names.sort();
    names.dedup();
    names
}

fn find(name: &str) -> Option<TimeZone> {
    if matches!(name, "UTC" | "Etc/UTC") { Some(TimeZone::UTC) } else { TimeZone::get(name).ok() }
}

/// When `window` is open around and after `now`: from, to (Unix seconds).
fn spans(window: &Window, zone: &str, now: u64) -> Vec<(u64, u64)> {
    let name = window.zone().map_or(zone, |zone| zone.as_str());
    let zone = find(name).unwrap_or(TimeZone::UTC);
    let Some(today) = i64::try_from(now)
        .ok()
        .and_then(|now| Timestamp::from_second(now).ok())
        .map(|now| now.to_zoned(zone.clone()).date())
    else {
        return Vec::new();
    };
    (-1..=DAYS_AHEAD)
        .filter_map(|days| span_on(window, &zone, today.checked_add(days.days()).ok()?))
        .collect()
}

/// The window that opens on `day`, if one does.
fn span_on(window: &Window, zone: &TimeZone, day: Date) -> Option<(u64, u64)> {
    let number = usize::try_from(day.weekday().to_monday_zero_offset()).ok()?;
    if !*window.days().get(number)? {
        return None;
    }
    let last = if window.to() <= window.from() { day.tomorrow().ok()? } else { day };
    // A time that does not exist is taken before the gap for the start and after it for the end, and of one that
    // exists twice the first and the last: no window is ever shorter than it says.
    let from = instant(zone, at(day, window.from())?, Disambiguation::Earlier)?;
    let to = instant(zone, at(last, window.to())?, Disambiguation::Later)?;
    (from < to).then_some((from, to))
}

/// `minutes` after midnight of `day`; 1440 is the next midnight.
fn at(day: Date, minutes: u16) -> Option<DateTime> {
    let day = if minutes >= 1440 { day.tomorrow().ok()? } else { day };
    let minutes = i8::try_from(minutes % 60).ok().zip(i8::try_from(minutes / 60 % 24).ok());
    minutes.map(|(minute, hour)| day.at(hour, minute, 0, 0))
}

fn instant(zone: &TimeZone, time: DateTime, which: Disambiguation) -> Option<u64> {
    let ambiguous = zone.to_ambiguous_timestamp(time);
    u64::try_from(ambiguous.disambiguate(which).ok()?.as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn windows(texts: &[&str]) -> Vec<Window> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn unix(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_second()).unwrap()
    }

    fn at(texts: &[&str], zone: &str, now: &str) -> (bool, Option<String>) {
        let state = state(&windows(texts), zone, unix(now));
        let text = |at: u64| Timestamp::from_second(i64::try_from(at).unwrap()).unwrap().to_string();
        (state.open, state.changes.map(text))
    }

    fn answer(open: bool, changes: &str) -> (bool, Option<String>) {
        (open, Some(changes.to_owned()))
    }

    #[test]
    fn without_windows_it_is_always_open() {
        assert_eq!(at(&[], "UTC", "2026-01-01T00:00:00Z"), (true, None));
    }

    #[test]
    fn days_and_midnight() {
        assert_eq!(jiff::civil::Weekday::Monday.to_monday_zero_offset(), 0);
        let every = &["02:00-05:00"];
        assert_eq!(at(every, "UTC", "2026-01-01T01:59:59Z"), answer(false, "2026-01-01T02:00:00Z"));
        assert_eq!(at(every, "UTC", "2026-01-01T02:00:00Z"), answer(true, "2026-01-01T05:00:00Z"));
        assert_eq!(at(every, "UTC", "2026-01-01T05:00:00Z"), answer(false, "2026-01-02T02:00:00Z"));
        // Friday 2026-01-02 at 22:00 until Saturday 04:00, and no more until Monday.
        let nights = &["mon-fri 22:00-04:00"];
        assert_eq!(at(nights, "UTC", "2026-01-03T03:00:00Z"), answer(true, "2026-01-03T04:00:00Z"));
        assert_eq!(at(nights, "UTC", "2026-01-03T22:30:00Z"), answer(false, "2026-01-05T22:00:00Z"));
        // Over the end of the week.
        let weekend = &["sun 22:00-04:00"];
        assert_eq!(at(weekend, "UTC", "2026-01-05T01:00:00Z"), answer(true, "2026-01-05T04:00:00Z"));
        assert_eq!(
            at(&["sat 00:00-24:00"], "UTC", "2026-01-03T12:00:00Z"),
            answer(true, "2026-01-04T00:00:00Z")
        );
    }

    #[test]
    fn windows_that_touch_are_one() {
        let both = &["fri 20:00-24:00", "sat 00:00-06:00"];
        assert_eq!(at(both, "UTC", "2026-01-02T21:00:00Z"), answer(true, "2026-01-03T06:00:00Z"));
    }

    #[test]
    fn zones_are_those_of_the_window_else_of_the_device() {
        assert_eq!(
            at(&["02:00-05:00 Asia/Tokyo"], "UTC", "2026-01-01T17:00:00Z"),
            answer(true, "2026-01-01T20:00:00Z")
        );
        assert_eq!(
            at(&["02:00-05:00"], "America/New_York", "2026-01-01T06:59:59Z"),
            answer(false, "2026-01-01T07:00:00Z")
        );
        assert_eq!(unknown_zones(&windows(&["02:00-05:00 Mars/Base"]), "UTC"), ["Mars/Base"]);
        assert_eq!(
            at(&["02:00-05:00 Mars/Base"], "UTC", "2026-01-01T02:00:00Z"),
            answer(true, "2026-01-01T05:00:00Z")
        );
    }

    #[test]
    fn the_clock_is_put_forward_and_back() {
        let berlin = "Europe/Berlin";
        // 2026-03-29: 02:00 becomes 03:00 (01:00 UTC). A window of the missing hour is an hour before it.
        assert_eq!(
            at(&["02:00-03:00"], berlin, "2026-03-29T00:00:00Z"),
            answer(true, "2026-03-29T01:00:00Z")
        );
        assert_eq!(
            at(&["02:30-04:00"], berlin, "2026-03-29T00:30:00Z"),
            answer(true, "2026-03-29T02:00:00Z")
        );
        // 2026-10-25: 03:00 becomes 02:00 (01:00 UTC). The doubled hour counts twice.
        assert_eq!(
            at(&["02:00-03:00"], berlin, "2026-10-25T00:00:00Z"),
            answer(true, "2026-10-25T02:00:00Z")
        );
        assert_eq!(
            at(&["02:00-03:00"], berlin, "2026-10-25T01:30:00Z"),
            answer(true, "2026-10-25T02:00:00Z")
        );
        // The day after is as ever.
        assert_eq!(
            at(&["02:00-03:00"], berlin, "2026-10-26T00:59:59Z"),
            answer(false, "2026-10-26T01:00:00Z")
        );
    }

    proptest! {
        /// What it says of the next change is true: nothing changes before it, and it changes then.
        #[test]
        fn the_next_change_is_the_next_change(
            now in 1_700_000_000_u64..1_900_000_000, step in 1_u64..86_400,
            from in 0_u16..1440, to in 1_u16..=1440, day in 0_usize..7,
            zone in proptest::sample::select(vec!["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"]),
        ) {
            prop_assume!(from != to);
            let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
            let time = |m: u16| format!("{:02}:{:02}", m / 60, m % 60);
            let text = format!("{},wed {}-{}", days[day], time(from), time(to));
            let windows = windows(&[&text]);
            let first = state(&windows, zone, now);
            let changes = first.changes.unwrap();
            prop_assert!(changes > now && changes - now < 9 * 86_400);
            prop_assert_eq!(state(&windows, zone, changes).open, !first.open);
            let between = (now + step).min(changes - 1);
            prop_assert_eq!(state(&windows, zone, between).open, first.open);
        }

        #[test]
        fn no_instant_panics(now: u64) {
            let _ = state(&windows(&["mon 22:00-24:00", "02:00-01:00 Asia/Tokyo"]), "UTC", now);
        }
    }
}
