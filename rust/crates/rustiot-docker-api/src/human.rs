//! Docker's own wording: "Up 5 minutes (healthy)", "Exited (0) 3 days ago", commands in one line.
//!
//! Pure; the time is an argument. Used for lists.

use jiff::Timestamp;

use crate::types::{ContainerState, HealthStatus, Status};

/// How long, in words.
pub fn duration(seconds: i64) -> String {
    let minutes = seconds / 60;
    // Docker rounds hours and nothing else.
    let hours = (seconds.saturating_add(1800)) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// What a container does, in words.
pub fn status(state: &ContainerState, now: Timestamp) -> String {
    let since = |time: Option<Timestamp>| {
        duration(time.map_or(0, |time| now.as_second().saturating_sub(time.as_second())))
    };
    match state.status {
        Status::Paused => format!("Up {} (Paused)", since(state.started_at)),
        Status::Restarting => format!("Restarting ({}) {} ago", state.exit_code, since(state.finished_at)),
        Status::Running => match state.health.as_ref().map(|h| h.status) {
            Some(HealthStatus::Starting) => format!("Up {} (health: starting)", since(state.started_at)),
            Some(other) => format!("Up {} ({})", since(state.started_at), other.as_str()),
            None => format!("Up {}", since(state.started_at)),
        },
        Status::Removing => "Removal In Progress".to_owned(),
        Status::Dead => "Dead".to_owned(),
        Status::Created => "Created".to_owned(),
        Status::Exited => match state.finished_at {
            Some(time) => format!("Exited ({}) {} ago", state.exit_code, since(Some(time))),
            None => format!("Exited ({})", state.exit_code),
        },
    }
}

/// A command in one line.
pub fn command(words: &[String]) -> String {
    let words: Vec<String> =
        words.iter().map(|w| if w.contains(' ') { format!("'{w}'") } else { w.clone() }).collect();
    words.join(" ")
}

/// RFC 3339 with nine digits always, as log lines carry it.
pub fn log_time(time: Timestamp) -> String {
    let mut text = String::new();
    let printer = jiff::fmt::temporal::DateTimePrinter::new().precision(Some(9));
    // Writing to a string cannot fail.
    let _ = printer.print_timestamp(&time, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_dockers() {
        for (seconds, text) in [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5399, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86400, "2 weeks"),
            (60 * 86400, "2 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn log_times_have_nine_digits() {
        assert_eq!(log_time("2024-01-02T03:04:05Z".parse().unwrap()), "2024-01-02T03:04:05.000000000Z");
        assert_eq!(log_time("2024-01-02T03:04:05.12Z".parse().unwrap()), "2024-01-02T03:04:05.120000000Z");
    }
}
