//! `org.rustiot.Update1` on the system bus. Contract: `docs/contracts/update-dbus.md` and the XML beside it.
//!
//! A thin face: it checks arguments, hands orders to the engine and shows what the engine publishes. Who may call is
//! said by the bus policy (`conf/rootfs/usr/share/dbus-1/system.d/org.rustiot.Update1.conf`), not here.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot, watch};
use zbus::object_server::InterfaceRef;
use zbus::zvariant::OwnedValue;
use zbus::{Connection, DBusError, interface};

use crate::engine::Command;
use crate::failure::{Failure, Kind};
use crate::hawkbit::Ask;
use crate::status::{By, Hold, Request, Stage, Status};

/// Well-known name.
pub const NAME: &str = "org.rustiot.Update1";
/// Object path.
pub const PATH: &str = "/org/rustiot/Update1";

/// The system bus. zbus looks below `/var/run`, which on a device is a link that systemd makes late in the start.
///
/// # Errors
/// When an address in `DBUS_SYSTEM_BUS_ADDRESS` is none.
pub fn system_bus() -> zbus::Result<zbus::connection::Builder<'static>> {
    match std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS") {
        Some(_) => zbus::connection::Builder::system(),
        None => zbus::connection::Builder::address("unix:path=/run/dbus/system_bus_socket"),
    }
}

/// What the bus answers to those whom its policy does not let through.
const DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";

/// What a method answers when it does not do what was asked.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.rustiot.Update1.Error", impl_display = true)]
pub enum Error {
    /// D-Bus itself.
    #[zbus(error)]
    Bus(zbus::Error),
    /// An argument makes no sense.
    Usage(String),
    /// Not allowed in this phase.
    NotNow(String),
    /// What it was asked for is damaged, or signed by nobody whom this device trusts.
    Untrusted(String),
    /// Another transaction is under way.
    Busy(String),
    /// It was tried and failed.
    Failed(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let mut text = failure.message.clone();
        for cause in &failure.chain {
            // Many errors' own words end with their source's.
            if !text.ends_with(cause.as_str()) {
                text.push_str(": ");
                text.push_str(cause);
            }
        }
        if let Some(hint) = &failure.hint {
            text.push_str("\nhint: ");
            text.push_str(hint);
        }
        match failure.kind.exit_code() {
            2 => Self::Usage(text),
            3 => Self::NotNow(text),
            4 => Self::Busy(text),
            5 => Self::Untrusted(text),
            _ => Self::Failed(text),
        }
    }
}

impl Error {
    /// The failure that a client makes of a method's answer.
    #[must_use]
    pub fn into_failure(self) -> Failure {
        let (kind, text) = match self {
            Self::Usage(text) => (Kind::Usage, text),
            Self::NotNow(text) => (Kind::NotNow, text),
            Self::Untrusted(text) => (Kind::Untrusted, text),
            Self::Busy(text) => (Kind::Busy, text),
            Self::Failed(text) => (Kind::Installer, text),
            Self::Bus(zbus::Error::MethodError(name, ..)) if name.as_str() == DENIED => {
                return Failure::new(Kind::Denied, "you may not give orders to the update service")
                    .hint("use root, or a user in the group rustiot");
            }
            Self::Bus(error) => {
                return Failure::from_error(Kind::Unreachable, "the update service does not answer", &error)
                    .hint(
                        "`systemctl status rustiot-update.service`; orders need root or the group rustiot",
                    );
            }
        };
        match text.split_once("\nhint: ") {
            Some((message, hint)) => Failure::new(kind, message).hint(hint),
            None => Failure::new(kind, text),
        }
    }
}

/// The object.
#[derive(Debug)]
pub(crate) struct Update {
    commands: mpsc::Sender<Command>,
    hawkbit: mpsc::Sender<Ask>,
    status: watch::Receiver<Status>,
}

impl Update {
    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        hawkbit: mpsc::Sender<Ask>,
        status: watch::Receiver<Status>,
    ) -> Self {
        Self { commands, hawkbit, status }
    }

    async fn order<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Command,
    ) -> Result<T, Error> {
        let gone = || Error::Failed("the update service is shutting down".into());
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }
}

/// Reads the options of `Install`: an unknown one is refused, not ignored.
fn request(source: &str, options: &HashMap<String, OwnedValue>) -> Result<Request, Error> {
    let id = uuid::Uuid::new_v4().to_string();
    let mut request = Request { id, source: source.to_owned(), ..Request::default() };
    let usage = |text: &str| Error::Usage(text.into());
    for (name, value) in options {
        match name.as_str() {
            "hold" => {
                request.hold = <&str>::try_from(value).ok().and_then(Hold::parse).ok_or_else(|| {
                    usage("option `hold` is one of the strings none, download, install, activate, reboot")
                })?;
            }
            "force" => {
                request.force = bool::try_from(value).map_err(|_| usage("option `force` is a boolean"))?;
            }
            "by" => {
                request.by = <&str>::try_from(value)
                    .ok()
                    .and_then(By::parse)
                    .ok_or_else(|| usage("option `by` is one of the strings person, server, policy"))?;
            }
            "size" => {
                let size = u64::try_from(value).ok().filter(|size| *size > 0);
                request.file.size = Some(size.ok_or_else(|| usage("option `size` is a number of bytes"))?);
            }
            "sha256" => {
                let text = <&str>::try_from(value).ok();
                let text = text.filter(|t| t.len() == 64 && t.bytes().all(|b| b.is_ascii_hexdigit()));
                let text = text.ok_or_else(|| usage("option `sha256` is a text of 64 hexadecimal digits"))?;
                request.file.sha256 = Some(text.to_ascii_lowercase());
            }
            "repository" => {
                request.repository =
                    bool::try_from(value).map_err(|_| usage("option `repository` is a boolean"))?;
            }
            "version" => {
                let text = <&str>::try_from(value).ok().filter(|text| semver::Version::parse(text).is_ok());
                let text = text.ok_or_else(|| usage("option `version` is a semantic version, as 1.2.3"))?;
                request.version = Some(text.to_owned());
            }
            other => {
                return Err(Error::Usage(format!(
                    "unknown option {other:?}: there are `hold`, `force`, `by`, `size`, `sha256`, `repository` \
                     and `version`"
                )));
            }
        }
    }
    Ok(request)
}

fn json(value: &impl serde::Serialize) -> String {
    // These types have no maps with other keys than strings, the only thing that JSON cannot say.
    serde_json::to_string(value).unwrap_or_default()
}

#[interface(name = "org.rustiot.Update1")]
impl Update {
    /// Installs the bundle at `source`; returns the transaction's id at once.
    #[zbus(out_args("transaction"))]
    async fn install(&self, source: String, options: HashMap<String, OwnedValue>) -> Result<String, Error> {
        let request = request(&source, &options)?;
        self.order(|reply| Command::Install(request, reply)).await
    }

    /// Looks at the configured repository; what it found, as JSON. hawkBit, where that is the source, is asked as well.
    #[zbus(out_args("check"))]
    async fn check(&self) -> Result<String, Error> {
        // When it has no room for the question, it is about to be asked anyway.
        drop(self.hawkbit.try_send(Ask::Poll));
        self.order(Command::Check).await.map(|check| json(&check))
    }

    /// A medium with a repository has been mounted, or is gone; what a look at it found, as JSON.
    #[zbus(out_args("check"))]
    async fn medium(&self, directory: String, present: bool) -> Result<String, Error> {
        self.order(|reply| Command::Medium(directory, present, reply)).await.map(|check| json(&check))
    }

    /// Downloads what is available and holds it before the install; returns the transaction's id at once.
    #[zbus(out_args("transaction"))]
    async fn download(&self) -> Result<String, Error> {
        let request = Request { hold: Hold::Install, ..request("", &HashMap::new())? };
        self.order(|reply| Command::Install(request, reply)).await
    }

    /// Holds the transaction before a stage: `none`, `download`, `install`, `activate`, `reboot`.
    async fn set_hold(&self, stage: String) -> Result<(), Error> {
        let hold = Hold::parse(&stage).ok_or_else(|| {
            Error::Usage("a hold is one of none, download, install, activate, reboot".into())
        })?;
        self.order(|reply| Command::SetHold(hold, reply)).await
    }

    /// Puts a stage off until a time (Unix seconds); 0 takes that back.
    async fn schedule(&self, stage: String, not_before: u64) -> Result<(), Error> {
        let stage = Stage::parse(&stage)
            .ok_or_else(|| Error::Usage("a stage is one of download, install, activate, reboot".into()))?;
        self.order(|reply| Command::Schedule(stage, not_before, reply)).await
    }

    /// A person's consent to what hawkBit wants, or its refusal.
    async fn consent(&self, yes: bool) -> Result<(), Error> {
        let gone = || Error::Failed("the update service is shutting down".into());
        let (reply, answer) = oneshot::channel();
        self.hawkbit.send(Ask::Consent(yes, reply)).await.map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }

    /// What may happen by itself now, as JSON.
    #[zbus(out_args("policy"))]
    async fn policy(&self) -> Result<String, Error> {
        self.order(Command::Policy).await.map(|policy| json(&policy))
    }

    /// Takes the transaction back; returns when RAUC has stopped.
    async fn cancel(&self) -> Result<(), Error> {
        self.order(Command::Cancel).await
    }

    /// Makes the next boot the trial of what is installed in the other slot.
    async fn activate(&self) -> Result<(), Error> {
        self.order(Command::Activate).await
    }

    /// Restarts into the trial.
    async fn reboot(&self) -> Result<(), Error> {
        self.order(Command::Reboot).await
    }

    /// Where it stands.
    #[zbus(property)]
    fn phase(&self) -> String {
        self.status.borrow().phase.as_str().to_owned()
    }

    /// What is happening or waited for, for people.
    #[zbus(property)]
    fn message(&self) -> String {
        self.status.borrow().message.clone()
    }

    /// The directory of the medium that is needed, because what is on offer or being installed lies on it; or empty.
    #[zbus(property)]
    fn needs_medium(&self) -> String {
        self.status.borrow().medium.clone()
    }

    /// What is or would be installed and how, as JSON; empty when there is nothing.
    #[zbus(property)]
    fn plan(&self) -> String {
        self.status.borrow().plan.as_ref().map(json).unwrap_or_default()
    }

    /// Version that could be installed; empty when there is none, or while something is under way.
    #[zbus(property)]
    fn available(&self) -> String {
        let status = self.status.borrow();
        let plan = status.plan.as_ref().filter(|_| status.transaction.is_none());
        plan.and_then(|plan| plan.version()).unwrap_or_default().to_owned()
    }

    /// The last look at the repository as JSON; empty when there was none.
    #[zbus(property)]
    fn last_check(&self) -> String {
        self.status.borrow().check.as_ref().map(json).unwrap_or_default()
    }

    /// Bytes fetched, reused, in all; bytes a second; seconds left.
    #[zbus(property)]
    fn transfer(&self) -> (u64, u64, u64, u64, u64) {
        let t = self.status.borrow().progress.transfer;
        (t.fetched, t.reused, t.total, t.rate, t.eta)
    }

    /// The transaction under way as JSON; empty when there is none.
    #[zbus(property)]
    fn transaction(&self) -> String {
        self.status.borrow().transaction.as_ref().map(json).unwrap_or_default()
    }

    /// Version of the release under way; empty when not known.
    #[zbus(property)]
    fn release(&self) -> String {
        let status = self.status.borrow();
        let release = status.transaction.as_ref().and_then(|tx| tx.release.as_ref());
        release.map(|r| r.version.clone()).unwrap_or_default()
    }

    /// Percent by RAUC's steps, bytes written, bytes in all, RAUC's step.
    #[zbus(property)]
    fn progress(&self) -> (u32, u64, u64, String) {
        let progress = self.status.borrow().progress.clone();
        (progress.percent.into(), progress.bytes, progress.total, progress.step)
    }

    /// The last refusal or failure as JSON; empty when there is none.
    #[zbus(property)]
    fn why(&self) -> String {
        self.status.borrow().why.as_ref().map(json).unwrap_or_default()
    }

    /// hawkBit as JSON; empty where it is not the source of releases.
    #[zbus(property)]
    fn hawkbit(&self) -> String {
        self.status.borrow().hawkbit.as_ref().map(json).unwrap_or_default()
    }

    /// Ended transactions as JSON, newest last.
    #[zbus(property)]
    fn history(&self) -> Vec<String> {
        self.status.borrow().history.iter().map(json).collect()
    }
}

/// Emits `PropertiesChanged` for what changed, until the engine is gone.
pub(crate) async fn announce(
    connection: &Connection,
    mut status: watch::Receiver<Status>,
) -> zbus::Result<()> {
    let object: InterfaceRef<Update> = connection.object_server().interface(PATH).await?;
    let mut old = status.borrow_and_update().clone();
    while status.changed().await.is_ok() {
        let new = status.borrow_and_update().clone();
        let (update, emitter) = (object.get().await, object.signal_emitter());
        if new.transaction != old.transaction {
            update.transaction_changed(emitter).await?;
            update.release_changed(emitter).await?;
        }
        if new.plan != old.plan || new.transaction.is_some() != old.transaction.is_some() {
            update.plan_changed(emitter).await?;
            update.available_changed(emitter).await?;
        }
        if new.medium != old.medium {
            update.needs_medium_changed(emitter).await?;
        }
        if new.check != old.check {
            update.last_check_changed(emitter).await?;
        }
        if new.progress.transfer != old.progress.transfer {
            update.transfer_changed(emitter).await?;
        }
        if (new.progress.percent, new.progress.bytes, new.progress.total, &new.progress.step)
            != (old.progress.percent, old.progress.bytes, old.progress.total, &old.progress.step)
        {
            update.progress_changed(emitter).await?;
        }
        if new.why != old.why {
            update.why_changed(emitter).await?;
        }
        if new.history != old.history {
            update.history_changed(emitter).await?;
        }
        if new.hawkbit != old.hawkbit {
            update.hawkbit_changed(emitter).await?;
        }
        if new.message != old.message {
            update.message_changed(emitter).await?;
        }
        // Last: who waits for a phase finds everything else in place.
        if new.phase != old.phase {
            update.phase_changed(emitter).await?;
        }
        drop(update);
        old = new;
    }
    Ok(())
}

/// The service as clients see it.
#[zbus::proxy(
    interface = "org.rustiot.Update1",
    default_service = "org.rustiot.Update1",
    default_path = "/org/rustiot/Update1"
)]
pub trait Update1 {
    /// See the contract.
    fn install(
        &self,
        source: &str,
        options: HashMap<&str, zbus::zvariant::Value<'_>>,
    ) -> Result<String, Error>;
    /// See the contract.
    fn check(&self) -> Result<String, Error>;
    /// See the contract.
    fn medium(&self, directory: &str, present: bool) -> Result<String, Error>;
    /// See the contract.
    fn download(&self) -> Result<String, Error>;
    /// See the contract.
    fn set_hold(&self, stage: &str) -> Result<(), Error>;
    /// See the contract.
    fn schedule(&self, stage: &str, not_before: u64) -> Result<(), Error>;
    /// See the contract.
    fn consent(&self, yes: bool) -> Result<(), Error>;
    /// See the contract.
    fn policy(&self) -> Result<String, Error>;
    /// See the contract.
    fn cancel(&self) -> Result<(), Error>;
    /// See the contract.
    fn activate(&self) -> Result<(), Error>;
    /// See the contract.
    fn reboot(&self) -> Result<(), Error>;
    /// See the contract.
    #[zbus(property)]
    fn phase(&self) -> zbus::Result<String>;
    /// See the contract.
    #[zbus(property)]
    fn message(&self) -> zbus::Result<String>;
    /// See the contract.
    #[zbus(property)]
    fn needs_medium(&self) -> zbus::Result<String>;
    /// See the contract.
    #[zbus(property)]
    fn plan(&self) -> zbus::Result<String>;
    /// See the contract.
    #[zbus(property)]
    fn available(&self) -> zbus::Result<String>;
    /// See the contract.
    #[zbus(property)]
    fn last_check(&self) -> zbus::Result<String>;
    /// See the contract.
    #[zbus(property)]
    fn transfer(&self) -> zbus::Result<(u64, u64, u64, u64, u64)>;
    /// See the contract.
    #[zbus(property)]
    fn transaction(&self) -> zbus::Result<String>;
    /// See the contract.
    #[zbus(property)]
    fn release(&self) -> zbus::Result<String>;
    /// See the contract.
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<(u32, u64, u64, String)>;
    /// See the contract.
    #[zbus(property)]
    fn why(&self) -> zbus::Result<String>;
    /// See the contract.
    #[zbus(property)]
    fn history(&self) -> zbus::Result<Vec<String>>;
    /// See the contract.
    #[zbus(property)]
    fn hawkbit(&self) -> zbus::Result<String>;
}

#[cfg(test)]
mod tests;
