//! How a command ends: the exit codes that scripts may rely on, and the one place that prints an
//! error with all its causes.

use std::process::ExitCode;

/// Why a command ends, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was tried and failed.
    Failed = 1,
    /// The request itself is wrong.
    Usage = 2,
    /// The request is right, but not in this state.
    Refused = 3,
    /// Somebody else has it.
    Busy = 4,
    /// It was done, but what is there is not what should be.
    Verification = 5,
}

/// A command's failure.
#[derive(Debug)]
pub struct Fail {
    why: Why,
    error: anyhow::Error,
}

/// What every command returns.
pub type Done = Result<(), Fail>;

impl Fail {
    /// A failure of another kind than plain [`Why::Failed`].
    pub fn new(why: Why, error: impl Into<anyhow::Error>) -> Self {
        Fail { why, error: error.into() }
    }

    /// A refusal in words.
    pub fn refused(text: impl Into<String>) -> Self {
        Fail::new(Why::Refused, anyhow::anyhow!(text.into()))
    }

    /// A wrong request in words.
    pub fn usage(text: impl Into<String>) -> Self {
        Fail::new(Why::Usage, anyhow::anyhow!(text.into()))
    }

    /// Its kind.
    #[cfg(test)]
    pub fn why(&self) -> Why {
        self.why
    }

    /// Prints the error and its causes, once each, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        eprintln!("rustiot: {:#}", self.error);
        ExitCode::from(self.why as u8)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Fail {
    fn from(error: E) -> Self {
        let error = error.into();
        let why = match error.downcast_ref::<rustiot_image::Error>() {
            Some(rustiot_image::Error::Refused { .. }) => Why::Refused,
            Some(rustiot_image::Error::Board(_) | rustiot_image::Error::Request { .. }) => Why::Usage,
            _ => match error.downcast_ref::<testbed::Error>() {
                Some(testbed::Error::Missing { .. }) => Why::Refused,
                _ => Why::Failed,
            },
        };
        Fail { why, error }
    }
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_program_that_is_lacking_is_a_refusal_however_deep_it_was_found() {
        let missing = || testbed::Error::Missing { program: "qemu".into(), remedy: "install it".into() };
        assert_eq!(Fail::from(missing()).why(), Why::Refused);
        let deep = Err::<(), _>(missing()).context("cannot wake the machine").unwrap_err();
        let fail = Fail::from(deep);
        assert_eq!(fail.why(), Why::Refused);
        assert!(fail.to_string().ends_with("there is no program qemu: install it"), "{fail}");
    }
}
