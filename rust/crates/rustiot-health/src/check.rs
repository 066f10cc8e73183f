//! What a check is and what it can find.
//!
//! Pure. Called by everything here.

use rustiot_boot::BootKind;
use serde::{Deserialize, Serialize};

/// How much depends on a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// A boot is not healthy without it.
    Required,
    /// A new release is not healthy without it; in any other boot it is advice, because there the world may have
    /// changed and not the release.
    RequiredInTrial,
    /// A warning.
    Advisory,
}

impl Need {
    /// Whether it decides in a boot of this kind.
    #[must_use]
    pub fn decides(self, kind: BootKind) -> bool {
        match self {
            Need::Required => true,
            Need::RequiredInTrial => kind == BootKind::Trial,
            Need::Advisory => false,
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "detail")]
pub enum Verdict {
    /// Good.
    Pass,
    /// Good enough, but somebody should know.
    Warn(String),
    /// Not yet known, or on its way: not passed, and no failure before the deadline.
    Pending(String),
    /// Bad.
    Fail(String),
}

impl Verdict {
    /// Pass or warning.
    #[must_use]
    pub fn passed(&self) -> bool {
        matches!(self, Verdict::Pass | Verdict::Warn(_))
    }

    /// What is wrong, if something is.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        match self {
            Verdict::Pass => None,
            Verdict::Warn(text) | Verdict::Pending(text) | Verdict::Fail(text) => Some(text),
        }
    }
}

/// One check's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Which check.
    pub name: String,
    /// How much depends on it.
    pub need: Need,
    /// What it found.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The failure will not pass by itself: nothing that is under way can end it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub for_good: bool,
}

impl CheckResult {
    /// A result.
    #[must_use]
    pub fn new(name: &str, need: Need, verdict: Verdict) -> Self {
        Self { name: name.to_owned(), need, verdict, for_good: false }
    }

    /// The same, of a failure that will not pass by itself.
    #[must_use]
    pub fn for_good(self, for_good: bool) -> Self {
        Self { for_good, ..self }
    }
}

/// What keeps a boot of this kind from being healthy, as one line; none if nothing does.
#[must_use]
pub fn obstacle(kind: BootKind, results: &[CheckResult]) -> Option<String> {
    let bad: Vec<String> = results
        .iter()
        .filter(|r| r.need.decides(kind) && !r.verdict.passed())
        .map(|r| format!("{}: {}", r.name, r.verdict.detail().unwrap_or("failed")))
        .collect();
    if results.is_empty() {
        return Some("nothing was checked".into());
    }
    (!bad.is_empty()).then(|| bad.join("; "))
}

/// Whether something that decides in a boot of this kind has failed for good.
#[must_use]
pub fn failed_for_good(kind: BootKind, results: &[CheckResult]) -> bool {
    results.iter().any(|r| r.for_good && r.need.decides(kind) && !r.verdict.passed())
}
