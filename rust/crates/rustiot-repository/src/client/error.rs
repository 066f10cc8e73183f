//! Why a check failed. Every kind says what, where, and what to do; `tough`'s errors are sorted into them here.

use super::store::StoreError;
use super::transport::FetchError;
use crate::index;
use crate::time::Stale;
use std::error::Error as StdError;

type Boxed = Box<dyn StdError + Send + Sync>;

/// A check failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The root metadata of the image is of no use.
    #[error("the root metadata in the image is not valid")]
    TrustedRoot {
        /// Why.
        #[source]
        source: Boxed,
    },
    /// There is no usable address.
    #[error("no address of a repository is set")]
    NoUrl,
    /// A file cannot be fetched.
    #[error("cannot fetch {what} of the repository")]
    Fetch {
        /// The file.
        what: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// Not enough valid signatures.
    #[error("{role} metadata is not signed by enough of the keys that this device trusts")]
    Signature {
        /// The role.
        role: String,
        /// In `tough`'s words.
        #[source]
        source: Boxed,
    },
    /// Older than what was accepted before.
    #[error(
        "{role} metadata has version {offered}, this device has seen {have}: somebody offers an old repository"
    )]
    Rollback {
        /// The role.
        role: String,
        /// Seen before.
        have: u64,
        /// Offered now.
        offered: u64,
    },
    /// A file is not the one that the signed metadata names.
    #[error("{what} is not the file that the signed metadata names")]
    Mismatch {
        /// The file.
        what: String,
    },
    /// The metadata is stale.
    #[error("{role} metadata is stale")]
    Expired {
        /// The first role that expired.
        role: &'static str,
        /// When, and by which time.
        #[source]
        stale: Stale,
    },
    /// A file is larger than it may be.
    #[error("a file of the repository is larger than it may be")]
    TooLarge {
        /// In `tough`'s words.
        #[source]
        source: Boxed,
    },
    /// Not readable as metadata.
    #[error("{role} metadata cannot be read")]
    Malformed {
        /// The role.
        role: &'static str,
        /// Why, if known.
        #[source]
        source: Option<Boxed>,
    },
    /// The repository has nothing for this board.
    #[error("the repository has no index for the board {compatible:?}")]
    NoIndex {
        /// The board.
        compatible: String,
    },
    /// Index or roll-outs are signed, but not as they should be.
    #[error("{name} is signed, but cannot be used")]
    Index {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: index::Error,
    },
    /// The client's own directory.
    #[error("the update service's own files cannot be used")]
    Store(#[from] StoreError),
    /// Another rule of TUF is broken.
    #[error("the repository breaks a rule of TUF")]
    Tuf {
        /// In `tough`'s words.
        #[source]
        source: Boxed,
    },
}

impl Error {
    /// A word for scripts and the status file.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Error::TrustedRoot { .. } => "trusted-root",
            Error::NoUrl => "no-url",
            Error::Fetch { .. } => "unreachable",
            Error::Signature { .. } => "signature",
            Error::Rollback { .. } => "rollback",
            Error::Mismatch { .. } => "mismatch",
            Error::Expired { .. } => "expired",
            Error::TooLarge { .. } => "oversized",
            Error::Malformed { .. } => "malformed",
            Error::NoIndex { .. } => "no-index",
            Error::Index { .. } => "index",
            Error::Store(_) => "state",
            Error::Tuf { .. } => "tuf",
        }
    }

    /// Whether what came is not to be trusted (exit code 5), as opposed to not there.
    #[must_use]
    pub fn is_verification(&self) -> bool {
        !matches!(self, Error::Fetch { .. } | Error::NoUrl | Error::NoIndex { .. } | Error::Store(_))
    }

    /// What a person can do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Error::TrustedRoot { .. } => "build the image with the repository's root.json",
            Error::NoUrl => "set update.repository in rustiot.toml",
            Error::Fetch { .. } => "check the network (`rustiot health`), the address and the server",
            Error::Signature { .. } => {
                "the repository's keys changed without a chain of roots, or it is another repository"
            }
            Error::Rollback { .. } => {
                "an old copy or mirror is being served; if the repository was restored from a backup, \
                                       run `rustiot repo refresh` until its versions are higher"
            }
            Error::Mismatch { .. } => {
                "the copy on the server is incomplete: upload targets first, timestamp.json last, \
                                       and see to it that caches do not keep timestamp.json"
            }
            Error::Expired { stale, .. } if stale.certain => {
                "the publisher must run `rustiot repo refresh`, or the server shows an old copy"
            }
            Error::Expired { .. } => {
                "set the device's clock (time servers), or run `rustiot repo refresh` at the publisher's"
            }
            Error::TooLarge { .. } => "it is not our repository, or somebody is in between",
            Error::Malformed { .. } => {
                "a captive portal or another page is in between, or the upload was cut off"
            }
            Error::NoIndex { .. } => "publish a release for this board, or set the right repository",
            Error::Index { .. } => "publish again with tools that fit this device's release",
            Error::Store(_) => "check the state partition (`rustiot status`)",
            Error::Tuf { .. } => "check the repository with `rustiot repo status`",
        }
    }

    pub(super) fn from_tough(error: tough::error::Error) -> Self {
        use tough::error::Error as T;
        if let Some(found) = find::<FetchError>(&error) {
            let what = match &error {
                T::Transport { url, .. } => {
                    url.path_segments().and_then(|mut s| s.next_back()).unwrap_or("a file")
                }
                _ => "a file",
            };
            return Error::Fetch { what: what.to_owned(), source: found.clone() };
        }
        // The adapters that count and hash wrap what they find into a transport error.
        match find::<T>(&error).filter(|inner| !std::ptr::eq(*inner, &raw const error)) {
            Some(T::HashMismatch { context, .. }) => {
                let name = context.rsplit('/').next().unwrap_or(context);
                return Error::Mismatch { what: name.to_owned() };
            }
            Some(T::MaxSizeExceeded { .. }) => return Error::TooLarge { source: Box::new(error) },
            _ => {}
        }
        match error {
            T::HashMismatch { context, .. } => {
                Error::Mismatch { what: context.rsplit('/').next().unwrap_or(&context).to_owned() }
            }
            T::MaxSizeExceeded { .. } => Error::TooLarge { source: Box::new(error) },
            T::VersionMismatch { role, .. } => Error::Mismatch { what: format!("{role}.json") },
            T::VerifyMetadata { role, .. } => {
                Error::Signature { role: role.to_string(), source: Box::new(error) }
            }
            T::VerifyTrustedMetadata { .. } | T::ParseTrustedMetadata { .. } => {
                Error::TrustedRoot { source: Box::new(error) }
            }
            T::OlderMetadata { role, current_version, new_version, .. } => {
                Error::Rollback { role: role.to_string(), have: current_version, offered: new_version }
            }
            T::OlderSnapshotInTimestamp { snapshot_new, snapshot_old, .. } => {
                Error::Rollback { role: "snapshot".to_owned(), have: snapshot_old, offered: snapshot_new }
            }
            T::SnapshotRoleRollback { role, old_role_version, new_role_version, .. } => {
                Error::Rollback { role, have: old_role_version, offered: new_role_version }
            }
            T::ParseMetadata { role, .. } => {
                let role = match role {
                    tough::schema::RoleType::Root => "root",
                    tough::schema::RoleType::Snapshot => "snapshot",
                    tough::schema::RoleType::Timestamp => "timestamp",
                    _ => "targets",
                };
                Error::Malformed { role, source: Some(Box::new(error)) }
            }
            other => Error::Tuf { source: Box::new(other) },
        }
    }
}

/// The first error of this type in the chain, the error itself included.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    let mut last = None;
    while let Some(error) = next {
        last = error.downcast_ref::<E>().or(last);
        next = error.source();
    }
    last
}
