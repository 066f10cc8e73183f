//! Platforms: what a device runs, and which image of several it takes.
//!
//! Pure. Called by the pull and by `load`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor, in the words of Go and OCI.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, `arm` …
    #[serde(default)]
    pub architecture: String,
    /// `v7` …; empty where there is none.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "crate::manifest::null_default"
    )]
    pub variant: String,
}

/// Not a platform.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no platform: {text:?} (expected os/architecture or os/architecture/variant, such as linux/arm64)")]
pub struct PlatformError {
    /// What was typed.
    pub text: String,
}

impl Platform {
    /// That of this program.
    #[must_use]
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            other => (other, ""),
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// The same in the usual words: `x86_64` is `amd64`, `aarch64` is `arm64`, and so on.
    #[must_use]
    pub fn normalised(&self) -> Platform {
        let lower = |text: &str| text.to_ascii_lowercase();
        let (architecture, variant) = (lower(&self.architecture), lower(&self.variant));
        let (architecture, variant) = match (&*architecture, &*variant) {
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i686", _) => ("386", ""),
            ("aarch64", "") | ("arm64", "" | "8") => ("arm64", "v8"),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            (architecture, variant) => (architecture, variant),
        };
        Platform {
            os: if self.os.is_empty() { "linux".to_owned() } else { lower(&self.os) },
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// How well an image for `offered` fits: lower is better, `None` not at all. An older variant of ARM fits a newer
    /// one, 32-bit ARM does not stand in for 64-bit.
    #[must_use]
    pub fn rank(&self, offered: &Platform) -> Option<u32> {
        let (wanted, offered) = (self.normalised(), offered.normalised());
        if wanted.os != offered.os || wanted.architecture != offered.architecture {
            return None;
        }
        if wanted.variant == offered.variant {
            return Some(0);
        }
        let number = |variant: &str| match variant {
            "" => Some(0),
            variant => variant.strip_prefix('v').and_then(|number| number.parse::<u32>().ok()),
        };
        number(&wanted.variant)?.checked_sub(number(&offered.variant)?)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match *parts {
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] => (os, architecture, variant),
            _ => return Err(PlatformError { text: text.chars().take(80).collect() }),
        };
        if !parts.iter().all(word) {
            return Err(PlatformError { text: text.chars().take(80).collect() });
        }
        let platform = Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        };
        Ok(platform.normalised())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn takes_the_best_that_fits() {
        let best = |wanted: &str, offered: &[&str]| {
            let wanted = platform(wanted);
            let ranked = offered.iter().filter_map(|text| Some((wanted.rank(&platform(text))?, *text)));
            ranked.min().map(|(_, text)| text.to_owned())
        };
        let all = ["linux/amd64", "linux/arm/v5", "linux/arm/v7", "linux/arm64", "linux/386"];
        assert_eq!(best("linux/x86_64", &all).unwrap(), "linux/amd64");
        assert_eq!(best("linux/arm64/v8", &all).unwrap(), "linux/arm64");
        assert_eq!(best("linux/arm/v7", &all).unwrap(), "linux/arm/v7");
        assert_eq!(best("linux/arm/v6", &all).unwrap(), "linux/arm/v5");
        assert_eq!(best("linux/riscv64", &all), None);
        assert_eq!(best("windows/amd64", &all), None);
        assert_eq!(best("linux/arm/v5", &["linux/arm/v6"]), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "linux", "linux/", "/arm", "linux/arm/v7/x", "linux/ar m"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }
}
