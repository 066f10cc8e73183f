//! Lines in the form that scripts around rauc-hawkbit-updater read: `LEVEL: text`, warnings on standard error.

use std::io::Write;

/// How important a line is, most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It cannot go on.
    Error,
    /// A mistake in the program.
    Critical,
    /// Something failed.
    Warning,
    /// What a person wants to see.
    Message,
    /// More of it.
    Info,
    /// Everything.
    Debug,
}

impl Level {
    /// Reads the value of `log_level`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "error" | "fatal" => Self::Error,
            "critical" => Self::Critical,
            "warning" => Self::Warning,
            "message" => Self::Message,
            "info" => Self::Info,
            "debug" => Self::Debug,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
            Self::Warning => "WARNING",
            Self::Message => "MESSAGE",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
        }
    }

    /// The number that systemd reads at the start of a line (sd-daemon(3)).
    fn priority(self) -> u8 {
        match self {
            Self::Critical => 2,
            Self::Error => 3,
            Self::Warning => 4,
            Self::Message => 5,
            Self::Info => 6,
            Self::Debug => 7,
        }
    }
}

/// Where lines go.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// The least important level that is printed.
    pub level: Level,
    /// In systemd's form, all on standard error.
    pub systemd: bool,
}

impl Log {
    /// Prints a line, if it is important enough. A closed pipe is nobody who reads.
    pub fn say(self, level: Level, text: &str) {
        if level > self.level {
            return;
        }
        let _ = if self.systemd {
            writeln!(std::io::stderr(), "<{}>{text}", level.priority())
        } else if level <= Level::Warning {
            writeln!(std::io::stderr(), "{}: {text}", level.name())
        } else {
            writeln!(std::io::stdout(), "{}: {text}", level.name())
        };
    }
}
