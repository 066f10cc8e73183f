//! hawkBit as the source of releases: the driver of `rustiot-hawkbit` beside the engine, as `[update.hawkbit]` wants it.
//!
//! Decides nothing: the driver orders over D-Bus as any client does, and the engine does not know of it. The token is
//! read from its file for each client that is made; it is in no order, status, log or argument. A changed
//! configuration, or another token, ends the driver and makes a new one, which finds its job again. Started by the
//! daemon.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustiot_config::scalar::FilePath;
use rustiot_config::{HawkbitConsent, HawkbitSettings, HawkbitSoft, ProxySettings, Settings};
use rustiot_hawkbit::client::{Auth, Error, Server};
use rustiot_hawkbit::ddi::Feedback;
use rustiot_hawkbit::driver::{Command, Voice as Hears};
use rustiot_hawkbit::machine::{Consent, Notice, State};
use rustiot_hawkbit::service;
use rustiot_hawkbit::store::SaveError;
use rustiot_hawkbit::update1::Soft;
use rustiot_hawkbit::voice::Journal;
use rustiot_http::{Identity, Trust, Url};
use tokio::sync::{mpsc, oneshot, watch};
use zbus::Connection;

use crate::failure::{Failure, Kind};
use crate::status::{Hawkbit, Status};

/// Largest file with a token or key that is read.
const SECRET_MAX: u64 = 64 << 10;
/// Longest time for one request to hawkBit and its answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// A configuration that cannot be used is tried again so often, even unchanged.
const BROKEN_AGAIN: Duration = Duration::from_secs(300);

/// What somebody at the device wants of hawkBit.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Ask it now.
    Poll,
    /// Consent, or its refusal.
    Consent(bool, oneshot::Sender<Result<(), Failure>>),
}

/// What the device says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// SHA-256 of its public key, hex; empty when there is none.
    pub id: String,
    /// Its board.
    pub board: String,
    /// The release that runs.
    pub version: String,
}

/// The address of the server, where hawkBit is the source.
pub(crate) fn server(settings: &HawkbitSettings) -> Option<Url> {
    settings.url.as_ref()?.as_str().parse().ok()
}

/// By what hawkBit knows the device, and whom the device believes there. Equal as long as the files are the same.
#[derive(Clone, PartialEq)]
pub(crate) struct Access {
    /// The server.
    pub url: Url,
    /// The token.
    pub auth: Auth,
    /// Whose certificates are believed.
    pub trust: Trust,
    /// The client certificate.
    pub identity: Option<Identity>,
    /// What the files hold, as digests.
    files: Vec<[u8; 32]>,
}

impl Access {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// [`Kind::State`]: one cannot be read, or others can.
    pub(crate) fn of(settings: &HawkbitSettings) -> Result<Self, Failure> {
        let unusable = |what: &str| Failure::new(Kind::State, format!("update.hawkbit: {what}"));
        let url = server(settings).ok_or_else(|| unusable("url is not the address of a server"))?;
        let mut files = Vec::new();
        let (mut auth, mut identity) = (Auth::Certificate, None);
        match (
            &settings.target_token_file,
            &settings.gateway_token_file,
            &settings.certificate,
            &settings.key,
        ) {
            (Some(file), None, None, _) => auth = Auth::TargetToken(token(file)?),
            (None, Some(file), None, _) => auth = Auth::GatewayToken(token(file)?),
            (None, None, Some(certificate), Some(key)) => {
                files.push(digest(&read(certificate, false)?));
                files.push(digest(&read(key, true)?));
                let [certificate, key] = [certificate, key].map(|file| PathBuf::from(file.as_str()));
                identity = Some(Identity { certificate, key });
            }
            _ => return Err(unusable("neither a token nor a certificate")),
        }
        let mut trust = Trust::System;
        if let Some(ca) = &settings.ca {
            files.push(digest(&read(ca, false)?));
            trust = Trust::SystemAnd(vec![ca.as_str().into()]);
        }
        Ok(Self { url, auth, trust, identity, files })
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

/// A file, which only its owner may read if it is secret.
fn read(file: &FilePath, secret: bool) -> Result<Vec<u8>, Failure> {
    let failed = |e: std::io::Error| {
        Failure::from_error(Kind::State, format!("update.hawkbit: cannot read {file}"), &e)
            .hint("is the file there? beside rustiot.toml it is /config/NAME on the device")
    };
    // Before it is opened: opening a pipe would wait for somebody to write into it.
    let meta = std::fs::metadata(file.as_str()).map_err(failed)?;
    if !meta.is_file() {
        return Err(Failure::new(Kind::State, format!("update.hawkbit: {file} is not a file")));
    }
    if secret && meta.permissions().mode() & 0o077 != 0 {
        return Err(Failure::new(Kind::State, format!("update.hawkbit: others than root can read {file}"))
            .hint(format!("`chmod 600 {file}`; if others have read it, let hawkBit make a new token")));
    }
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file.as_str()).map_err(failed)?;
    opened.take(SECRET_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The one line of a token's file.
fn token(file: &FilePath) -> Result<String, Failure> {
    let text = String::from_utf8(read(file, true)?).unwrap_or_default();
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::new(Kind::State, format!("update.hawkbit: {file} does not hold a token"))
            .hint("one line, as hawkBit shows it under the target's (or the tenant's) security token"));
    }
    Ok(text.to_owned())
}

/// What the configuration asks for.
#[derive(Clone, PartialEq)]
enum Wanted {
    /// No hawkBit.
    Off,
    /// hawkBit, but it cannot be asked.
    Broken(Failure),
    On(Box<On>),
}

#[derive(Clone, PartialEq)]
struct On {
    access: Access,
    settings: HawkbitSettings,
    proxy: ProxySettings,
    controller: String,
}

impl Wanted {
    fn of(settings: &Settings, device: &Device) -> Self {
        let hawkbit = &settings.update.hawkbit;
        if hawkbit.url.is_none() {
            return Self::Off;
        }
        let access = match Access::of(hawkbit) {
            Ok(access) => access,
            Err(failure) => return Self::Broken(failure),
        };
        let controller =
            hawkbit.controller.as_ref().map_or(device.id.as_str(), |name| name.as_str()).to_owned();
        if controller.is_empty() {
            return Self::Broken(
                Failure::new(Kind::State, "the device has no identity to be known by at hawkBit")
                    .hint("`rustiot provision status` says why; or set update.hawkbit.controller"),
            );
        }
        let (settings, proxy) = (hawkbit.clone(), settings.proxy.clone());
        Self::On(Box::new(On { access, settings, proxy, controller }))
    }
}

impl On {
    fn service(&self, device: &Device, state: &Path) -> service::Settings {
        let own = [("id", &device.id), ("board", &device.board), ("version", &device.version)];
        let own = own.into_iter().filter(|(_, text)| !text.is_empty());
        let mut attributes: BTreeMap<String, String> =
            own.map(|(name, text)| (name.to_owned(), text.clone())).collect();
        let owners = self.settings.attributes.iter();
        attributes.extend(owners.map(|(name, text)| (name.to_string(), text.to_string())));
        service::Settings {
            server: Server {
                url: self.access.url.clone(),
                tenant: self.settings.tenant.to_string(),
                controller: self.controller.clone(),
                auth: self.access.auth.clone(),
                timeout: REQUEST_LIMIT,
            },
            consent: match self.settings.consent {
                HawkbitConsent::Automatic => Consent::Automatic,
                HawkbitConsent::Ask => Consent::Ask,
            },
            soft: match self.settings.soft {
                HawkbitSoft::None => Soft::None,
                HawkbitSoft::Activate => Soft::Activate,
                HawkbitSoft::Reboot => Soft::Reboot,
            },
            poll: self.settings.poll.map(|poll| poll.get()),
            progress_per_minute: self.settings.progress_per_minute,
            attributes,
            state: state.to_owned(),
        }
    }
}

/// The task beside the engine.
#[derive(Debug)]
pub(crate) struct Task {
    /// What hawkBit is told.
    pub device: Device,
    /// Where the driver keeps its state.
    pub state: PathBuf,
    /// Where it is shown what becomes of it.
    pub status: watch::Sender<Status>,
    /// How often the configuration is looked at.
    pub every: Duration,
}

impl Task {
    /// Runs for as long as the service does. `load` gives the settings in force, `connect` a connection to the bus on
    /// which the update service is.
    pub(crate) async fn run(
        &self,
        mut asks: mpsc::Receiver<Ask>,
        load: impl Fn() -> Settings,
        connect: impl AsyncFn() -> zbus::Result<Connection>,
    ) {
        let mut told = None;
        loop {
            let wanted = Wanted::of(&load(), &self.device);
            let changed = self.changed(&wanted, &load);
            let failure = match &wanted {
                Wanted::Off => {
                    self.status.send_if_modified(|s| s.hawkbit.take().is_some());
                    told = None;
                    tokio::select! {
                        () = changed => {}
                        () = refuse(&mut asks) => return,
                    }
                    continue;
                }
                Wanted::Broken(failure) => failure.clone(),
                Wanted::On(on) => {
                    self.show(on.settings.url.as_ref(), &on.controller, None);
                    match self.drive(on, &mut asks, &connect, changed).await {
                        Ok(()) => {
                            told = None;
                            continue;
                        }
                        Err(failure) => failure,
                    }
                }
            };
            let (url, controller) = match &wanted {
                Wanted::On(on) => (on.settings.url.clone(), on.controller.clone()),
                _ => (load().update.hawkbit.url, String::new()),
            };
            self.show(url.as_ref(), &controller, Some(&failure));
            if told.as_ref() != Some(&failure) {
                let hint = failure.hint.as_deref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
                eprintln!("hawkBit is not asked: {}{hint}", chain(&failure));
            }
            told = Some(failure);
            tokio::select! {
                () = self.changed(&wanted, &load) => {}
                () = tokio::time::sleep(BROKEN_AGAIN) => {}
                () = refuse(&mut asks) => return,
            }
        }
    }

    /// Returns when the configuration, or a file that it names, is another one.
    async fn changed(&self, wanted: &Wanted, load: &impl Fn() -> Settings) {
        loop {
            tokio::time::sleep(self.every).await;
            if Wanted::of(&load(), &self.device) != *wanted {
                return;
            }
        }
    }

    /// Runs a driver until `changed`.
    async fn drive(
        &self,
        on: &On,
        asks: &mut mpsc::Receiver<Ask>,
        connect: &impl AsyncFn() -> zbus::Result<Connection>,
        changed: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let http = crate::web::build(&on.proxy, Some(&on.access))?;
        let bus = |e: zbus::Error| Failure::from_error(Kind::State, "the system bus does not answer", &e);
        let connection = connect().await.map_err(bus)?;
        let voice = Voice { journal: Journal::default(), status: self.status.clone() };
        let settings = on.service(&self.device, &self.state);
        let mut driver = service::driver(settings, http, &connection, voice).await.map_err(bus)?;
        let (commands, orders) = mpsc::channel(4);
        tokio::select! {
            // As a power cut would end it: what must not be lost is in its file.
            () = changed => Ok(()),
            () = driver.run(orders) => Ok(()),
            () = pass_on(asks, &commands, &self.status) => Ok(()),
        }
    }

    fn show(&self, url: Option<&rustiot_config::scalar::Url>, controller: &str, problem: Option<&Failure>) {
        let server = url.and_then(|url| url.as_str().parse::<Url>().ok());
        let server = server.map_or_else(String::new, |url| url.origin().ascii_serialization());
        self.status.send_modify(|s| {
            let now = s.hawkbit.get_or_insert_default();
            (now.server, now.controller) = (server, controller.to_owned());
            now.problem = problem.map(chain);
        });
    }
}

fn chain(failure: &Failure) -> String {
    failure.chain.iter().fold(failure.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Answers those who want something of a hawkBit that is not there; returns when nobody is left.
async fn refuse(asks: &mut mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        if let Ask::Consent(_, reply) = ask {
            let failure = Failure::new(Kind::NotNow, "hawkBit is not asked for releases")
                .hint("`rustiot update status` says why; [update.hawkbit] of rustiot.toml says where it is");
            drop(reply.send(Err(failure)));
        }
    }
}

/// Hands what somebody wants to the driver; returns when nobody is left.
async fn pass_on(
    asks: &mut mpsc::Receiver<Ask>,
    commands: &mpsc::Sender<Command>,
    status: &watch::Sender<Status>,
) {
    while let Some(ask) = asks.recv().await {
        match ask {
            // A driver that has no room for the order is at work already.
            Ask::Poll => drop(commands.try_send(Command::Poll)),
            Ask::Consent(yes, reply) => {
                let asked = status.borrow().hawkbit.as_ref().is_some_and(|now| now.asks.is_some());
                let answer = match asked && commands.send(Command::Consent(yes)).await.is_ok() {
                    true => Ok(()),
                    false => Err(Failure::new(Kind::NotNow, "hawkBit waits for no consent")
                        .hint("`rustiot update status` shows what it wants")),
                };
                drop(reply.send(answer));
            }
        }
    }
}

/// Writes to the journal and shows the rest in the status.
struct Voice {
    journal: Journal,
    status: watch::Sender<Status>,
}

impl Voice {
    fn show(&self, change: impl FnOnce(&mut Hawkbit)) {
        self.status.send_if_modified(|s| {
            let before = s.hawkbit.clone();
            change(s.hawkbit.get_or_insert_default());
            s.hawkbit != before
        });
    }
}

impl Hears for Voice {
    fn answered(&mut self) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        self.show(|s| (s.answered, s.problem) = (now.ok().map(|since| since.as_secs()), None));
    }

    fn state(&mut self, state: &State) {
        let asks = match state {
            State::Asking(action) => Some(action.to_string()),
            _ => None,
        };
        let action = match state {
            State::Idle | State::Asking(_) => None,
            State::Waiting(order) | State::Starting(order, _) => Some(&order.action),
            State::Working(job) => Some(&job.order.action),
            State::Ended(report) => Some(&report.action),
        };
        self.show(|s| (s.action, s.asks) = (action.map(ToString::to_string), asks));
    }

    fn notice(&mut self, notice: &Notice) {
        self.journal.notice(notice);
    }

    fn feedback(&mut self, feedback: &Feedback) {
        self.journal.feedback(feedback);
    }

    fn poll_failed(&mut self, error: &Error) {
        self.journal.poll_failed(error);
        self.show(|s| s.problem = Some(error.line()));
    }

    fn failed(&mut self, what: &str, error: &Error) {
        self.journal.failed(what, error);
    }

    fn not_remembered(&mut self, error: &SaveError) {
        self.journal.not_remembered(error);
    }
}

#[cfg(test)]
mod tests;
