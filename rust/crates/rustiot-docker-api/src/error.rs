//! What an engine can refuse, as Docker's clients know it: each variant has one HTTP status and Docker's own text.
//!
//! Clients match on some of the texts (the command line takes exit codes 126 and 127 from them), so they are part of
//! the interface. Never carries a request's secrets. Made by implementations of [`crate::Engine`] and by this crate.

/// Why a call failed. `Display` is exactly the `message` that the client prints.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 404: no container of this name, id or prefix.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    /// 404: no image of this name or id.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// 404: no exec of this id.
    #[error("No such exec instance: {0}")]
    NoSuchExec(String),
    /// 404: no network of this name or id.
    #[error("network {0} not found")]
    NoSuchNetwork(String),
    /// 404: no volume of this name.
    #[error("get {0}: no such volume")]
    NoSuchVolume(String),
    /// 404: no such path in the container's file system (`cp`).
    #[error("Could not find the file {path} in container {container}")]
    NoSuchPath {
        /// The path as it was asked for.
        path: String,
        /// The container as it was asked for.
        container: String,
    },
    /// 404: anything else that is not there, with the whole message (a registry's refusal, say).
    #[error("{0}")]
    NotFound(String),
    /// 304: started already or stopped already. The client takes it for success.
    #[error("not modified")]
    Unchanged,
    /// 409: the name belongs to another container.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameInUse {
        /// The name, without the slash.
        name: String,
        /// Full id of the container that has it.
        id: String,
    },
    /// 409: the call needs a running container.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// 409: the call is refused in this state, with the whole message.
    #[error("{0}")]
    Conflict(String),
    /// 400: the request makes no sense, with the whole message.
    #[error("{0}")]
    Invalid(String),
    /// 400: more than one id begins with this prefix.
    #[error("Multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    /// 400: the container's process cannot be started. Say what the kernel said: the command line takes exit code 127
    /// from "executable file not found" or "no such file or directory", 126 from "permission denied" or "is a directory".
    #[error("{0}")]
    CannotRun(String),
    /// 401: the registry wants other credentials.
    #[error("{0}")]
    Unauthorized(String),
    /// 403: refused by policy (pre-defined networks, a plugin that is not there).
    #[error("{0}")]
    Forbidden(String),
    /// 413: a body or a header is larger than this server takes.
    #[error("{0}")]
    TooLarge(String),
    /// 501: Docker can do this, this engine cannot. Say what to do instead.
    #[error("{0}")]
    Unsupported(String),
    /// 503: cannot be answered just now (shutting down, too many connections).
    #[error("{0}")]
    Unavailable(String),
    /// 500: it should have worked. The message is shown, the source is for the log.
    #[error("{message}")]
    Failed {
        /// What, where, what to do.
        message: String,
        /// The cause.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// 500 with the text of an error and of all its causes, as `what: cause: cause`.
    pub fn failed(
        what: impl std::fmt::Display,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let mut message = what.to_string();
        let mut next: Option<&dyn std::error::Error> = Some(&cause);
        while let Some(error) = next {
            message.push_str(": ");
            message.push_str(&error.to_string());
            next = error.source();
        }
        Self::Failed { message, source: Some(Box::new(cause)) }
    }

    /// The HTTP status that Docker's clients expect.
    pub fn status(&self) -> u16 {
        match self {
            Self::Unchanged => 304,
            Self::Invalid(_) | Self::Ambiguous(_) | Self::CannotRun(_) => 400,
            Self::Unauthorized(_) => 401,
            Self::Forbidden(_) => 403,
            Self::NoSuchContainer(_)
            | Self::NoSuchImage(_)
            | Self::NoSuchExec(_)
            | Self::NoSuchNetwork(_)
            | Self::NoSuchVolume(_)
            | Self::NoSuchPath { .. }
            | Self::NotFound(_) => 404,
            Self::NameInUse { .. } | Self::NotRunning(_) | Self::Conflict(_) => 409,
            Self::TooLarge(_) => 413,
            Self::Failed { .. } => 500,
            Self::Unsupported(_) => 501,
            Self::Unavailable(_) => 503,
        }
    }
}
