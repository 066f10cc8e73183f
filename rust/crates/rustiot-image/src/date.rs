//! When a release was built: the time that devices with it know to have passed, whatever their clock says.
//!
//! The date is an input of a build and not the moment of it: two builds of the same release have the same. Files in the
//! image do not bear it ([`crate::root`]), so that images of two days differ in two small files and not in every time
//! stamp. Called by the command line, which asks for a date, and by the root's builder, which writes it down.

use crate::error::{Error, wrong};
use crate::root::EPOCH;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Seconds of a day.
const DAY: u64 = 24 * 3600;
/// 2025-01-01: no release of this system is older.
const EARLIEST: u64 = 1_735_689_600;
/// How far a date may be ahead of this machine's clock, seconds: a date is one somewhere on earth.
const AHEAD: u64 = DAY;

/// When a release was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildDate(u64);

impl BuildDate {
    /// The time of every file in an image: what tests take, and a development build whose date nobody knows.
    pub const FIXED: BuildDate = BuildDate(EPOCH);

    /// Unix seconds.
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.0
    }

    /// Reads a day (2026-11-27, its beginning in UTC) or Unix seconds. `from` says where the text was found, `now` is this
    /// machine's clock.
    ///
    /// # Errors
    /// It is neither, before 2025, or later than now: a device would take today's certificates and metadata for expired.
    pub fn read(text: &str, from: &str, now: u64) -> Result<Self, Error> {
        let seconds = match text.parse::<u64>() {
            Ok(seconds) => Some(seconds),
            Err(_) => beginning_of_day(text),
        };
        let Some(seconds) = seconds else {
            return Err(wrong(
                format!("{from} is {text:?}, which is no date"),
                "write a day such as 2026-11-27, or Unix seconds",
            ));
        };
        BuildDate(seconds).within(from, now)
    }

    /// The day of the last commit of the clone at `repo`, in UTC; none where there is no clone, no commit or no git.
    ///
    /// # Errors
    /// The commit is dated in the future of `now`, or before 2025.
    pub fn of_last_commit(repo: &Path, now: u64) -> Result<Option<Self>, Error> {
        // A clone is often its user's and the build is root's: git would refuse to look into it.
        let safe = format!("safe.directory={}", repo.display());
        let mut git = Command::new("git");
        git.arg("-c").arg(safe).arg("-C").arg(repo).args([
            "log",
            "-1",
            "--no-show-signature",
            "--format=%ct",
        ]);
        // What was unpacked inside somebody's own repository has nothing to do with its commits.
        git.env("GIT_CEILING_DIRECTORIES", repo.parent().unwrap_or(repo)).env_remove("GIT_DIR");
        let said = git.stdin(Stdio::null()).stderr(Stdio::null()).output();
        let Ok(said) = said else { return Ok(None) };
        let seconds = String::from_utf8_lossy(&said.stdout).trim().parse::<u64>();
        let Some(seconds) = seconds.ok().filter(|_| said.status.success()) else { return Ok(None) };
        // By the day: a second commit of the same day builds nothing anew that it did not change.
        let day = seconds.saturating_sub(seconds % DAY);
        BuildDate(day).within("the date of the last commit", now).map(Some)
    }

    /// The date of a release: what was typed, else `SOURCE_DATE_EPOCH` (`variable`), else the last commit's day; none where
    /// none of the three is there.
    ///
    /// # Errors
    /// As for [`BuildDate::read`].
    pub fn choose(
        typed: Option<&str>,
        variable: Option<&OsStr>,
        repo: &Path,
        now: u64,
    ) -> Result<Option<Self>, Error> {
        if let Some(text) = typed {
            return BuildDate::read(text, "--build-date", now).map(Some);
        }
        if let Some(text) = variable.filter(|text| !text.is_empty()) {
            return BuildDate::read(&text.to_string_lossy(), "SOURCE_DATE_EPOCH", now).map(Some);
        }
        BuildDate::of_last_commit(repo, now)
    }

    /// Itself, if devices can live with it.
    fn within(self, from: &str, now: u64) -> Result<Self, Error> {
        if self.0 < EARLIEST {
            let remedy = "no release is older than 2025; name the day of this one with --build-date";
            return Err(wrong(format!("{from} is {self}"), remedy));
        }
        if self.0 > now.saturating_add(AHEAD) {
            let clock = BuildDate(now);
            return Err(wrong(
                format!("{from} is {self}, later than this machine's clock ({clock})"),
                "devices would take what is signed until then for expired: name another day with --build-date, or set the \
                 clock",
            ));
        }
        Ok(self)
    }
}

/// As people and RFC 3339 write it; Unix seconds where that is no time.
impl fmt::Display for BuildDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match i64::try_from(self.0).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok()) {
            Some(time) => time.fmt(f),
            None => write!(f, "{} s after 1970", self.0),
        }
    }
}

/// The first second of a day that is written as 2026-11-27.
fn beginning_of_day(text: &str) -> Option<u64> {
    // The parser would also take a time behind it and leave that out.
    if text.len() != "2026-11-27".len() {
        return None;
    }
    let day: jiff::civil::Date = text.parse().ok()?;
    let zoned = day.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    u64::try_from(zoned.timestamp().as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-27T12:00:00Z
    const NOW: u64 = 1_795_780_800;
    const TODAY: u64 = NOW - 12 * 3600;

    fn commit(repo: &Path, time: &str) {
        let git = |args: &[&str]| {
            let mut git = Command::new("git");
            git.args(["-c", "user.name=x", "-c", "user.email=x@example.org", "-C"]).arg(repo).args(args);
            git.env("GIT_COMMITTER_DATE", time).env("GIT_AUTHOR_DATE", time);
            assert!(git.output().unwrap().status.success(), "{args:?}");
        };
        git(&["init", "--quiet"]);
        git(&["commit", "--allow-empty", "--quiet", "-m", "x"]);
    }

    #[test]
    fn a_day_and_seconds_are_read() {
        for (text, seconds) in [
            ("2026-11-27", TODAY),
            ("2025-01-01", EARLIEST),
            ("1750000000", EPOCH),
            // A day ahead: it may be that day already where the release is made.
            ("2026-11-28", TODAY + DAY),
        ] {
            assert_eq!(BuildDate::read(text, "x", NOW).unwrap().seconds(), seconds, "{text}");
        }
        assert_eq!(BuildDate(TODAY).to_string(), "2026-11-27T00:00:00Z");
        assert_eq!(BuildDate(u64::MAX).to_string(), "18446744073709551615 s after 1970");
    }

    #[test]
    fn a_bad_date_is_refused_with_where_it_came_from_and_what_to_write() {
        for (text, words) in [
            ("-1", "no date; write a day such as"),
            ("", "no date; write a day such as"),
            ("tomorrow", "no date; write a day such as"),
            ("2026-02-30", "no date; write a day such as"),
            ("2026-11-27T12:00", "no date; write a day such as"),
            ("20261127", "1970-08-23T12:05:27Z; no release is older than 2025"),
            ("0", "1970-01-01T00:00:00Z; no release is older than 2025"),
            ("2024-12-31", "2024-12-31T00:00:00Z; no release is older than 2025"),
            ("2026-11-29", "later than this machine's clock (2026-11-27T12:00:00Z); devices would"),
            ("2099-01-01", "later than this machine's clock (2026-11-27T12:00:00Z); devices would"),
            ("18446744073709551615", "later than this machine's clock"),
        ] {
            let error = BuildDate::read(text, "--build-date", NOW).unwrap_err();
            assert!(matches!(error, Error::Request { .. }), "{text}");
            let error = error.to_string();
            assert!(error.starts_with("--build-date is ") && error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn what_was_typed_goes_before_the_variable_and_that_before_the_last_commit() {
        let dir = tempfile::tempdir().unwrap();
        let choose = |typed, variable: Option<&str>| {
            let found = BuildDate::choose(typed, variable.map(OsStr::new), dir.path(), NOW)?;
            Ok::<_, Error>(found.map(BuildDate::seconds))
        };
        assert_eq!(choose(None, None).unwrap(), None, "no clone");
        commit(dir.path(), "2026-11-20T15:16:17Z");
        let week_ago = TODAY - 7 * DAY;
        assert_eq!(choose(None, None).unwrap(), Some(week_ago), "the day of the commit");
        assert_eq!(choose(None, Some("")).unwrap(), Some(week_ago), "an empty variable is none");
        assert_eq!(choose(None, Some("1764201600")).unwrap(), Some(1_764_201_600));
        assert_eq!(choose(Some("2026-11-01"), Some("0")).unwrap(), Some(TODAY - 26 * DAY));
        let error = choose(None, Some("0")).unwrap_err().to_string();
        assert!(error.starts_with("SOURCE_DATE_EPOCH is 1970"), "{error}");
        // Two commits of a day are one date; so is what is not committed.
        commit(dir.path(), "2026-11-20T23:59:59Z");
        assert_eq!(choose(None, None).unwrap(), Some(week_ago));
        commit(dir.path(), "2026-12-24T00:00:00Z");
        let error = choose(None, None).unwrap_err().to_string();
        assert!(error.contains("the date of the last commit is 2026-12-24"), "{error}");
    }

    #[test]
    fn somebody_elses_repository_around_it_dates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        commit(dir.path(), "2026-11-20T15:16:17Z");
        let inside = dir.path().join("unpacked");
        std::fs::create_dir(&inside).unwrap();
        assert_eq!(BuildDate::of_last_commit(&inside, NOW).unwrap(), None);
        // A repository without a commit.
        std::fs::create_dir(inside.join(".git")).unwrap();
        assert_eq!(BuildDate::of_last_commit(&inside, NOW).unwrap(), None);
    }
}
