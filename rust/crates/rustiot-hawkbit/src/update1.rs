//! The product's installer: orders to the update service and what it says of them.
//!
//! Only `org.rustiot.Update1` is spoken to; RAUC is the service's business. A job is a transaction, and it ends when
//! the service has it in its history: after commit, fallback, refusal or failure. The service's JSON is read
//! tolerantly, so that both can be updated apart. Contract: `docs/contracts/hawkbit.md`, `docs/contracts/update-dbus.md`.

use std::collections::HashMap;
use std::time::Duration;

use rustiot_http::Url;
use serde::Deserialize;
use tokio::time::Instant;
use zbus::proxy::CacheProperties;
use zbus::zvariant::Value;
use zbus::{Connection, proxy};

use crate::client::Client;
use crate::ddi::{Handling, Order};
use crate::driver::Installer;
use crate::machine::{End, JobId, News, Refusal};

/// How often the service is looked at while a job is under way.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks without a trace of the job, until it counts as lost: the service may be restarting.
const LOST_LOOKS: u32 = 150;
/// Lines of the failed boot's log that are reported.
const LOG_LINES: usize = 20;

/// The hold of what is downloaded and not installed yet.
const HELD: &str = "install";

/// The service's errors.
const BUSY: &str = "org.rustiot.Update1.Error.Busy";
const USAGE: &str = "org.rustiot.Update1.Error.Usage";

#[proxy(
    interface = "org.rustiot.Update1",
    default_service = "org.rustiot.Update1",
    default_path = "/org/rustiot/Update1"
)]
trait Update1 {
    fn install(&self, source: &str, options: HashMap<&str, Value<'_>>) -> zbus::Result<String>;
    fn cancel(&self) -> zbus::Result<()>;
    fn set_hold(&self, stage: &str) -> zbus::Result<()>;
    #[zbus(property)]
    fn phase(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn message(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn transaction(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn progress(&self) -> zbus::Result<(u32, u64, u64, String)>;
    #[zbus(property)]
    fn history(&self) -> zbus::Result<Vec<String>>;
}

/// What is left to a person after a soft deployment; a forced one leaves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Soft {
    /// Nothing: the device's own windows and vetoes count.
    #[default]
    None,
    /// The activation.
    Activate,
    /// The restart.
    Reboot,
}

/// The transaction under way, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Transaction {
    id: String,
    source: String,
    hold: String,
}

/// Why a transaction did not succeed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Why {
    kind: String,
    message: String,
    chain: Vec<String>,
    hint: Option<String>,
}

/// An ended transaction.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    transaction: String,
    result: String,
    release: Option<Release>,
    why: Option<Why>,
    log: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Release {
    version: String,
}

/// One look at the service.
#[derive(Debug, Default)]
struct Look {
    transaction: Transaction,
    phase: String,
    message: String,
    percent: u32,
    entry: Option<Entry>,
}

/// The update service as an installer.
#[derive(Debug)]
pub struct Update1 {
    service: Update1Proxy<'static>,
    client: Client,
    soft: Soft,
    /// The last line that was told of a job.
    told: String,
    downloaded: bool,
    lost: u32,
    every: Duration,
    /// When the service is looked at next: a wait that is interrupted does not begin anew.
    next: Instant,
}

impl Update1 {
    /// The service on this bus.
    ///
    /// # Errors
    /// When the bus cannot be used.
    pub async fn new(connection: &Connection, client: Client, soft: Soft) -> zbus::Result<Self> {
        let service = Update1Proxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
        let (told, next) = (String::new(), Instant::now());
        Ok(Self { service, client, soft, told, downloaded: false, lost: 0, every: LOOK_EVERY, next })
    }

    /// Looks at the service more often, for tests.
    #[must_use]
    pub fn looking_every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    async fn under_way(&self) -> zbus::Result<Transaction> {
        Ok(serde_json::from_str(&self.service.transaction().await?).unwrap_or_default())
    }

    async fn look(&self, job: &JobId) -> zbus::Result<Look> {
        // The history last: an end between the questions is then seen in it.
        let transaction = self.under_way().await?;
        let (phase, message) = (self.service.phase().await?, self.service.message().await?);
        let (percent, ..) = self.service.progress().await?;
        let history = self.service.history().await?;
        let mut entries = history.iter().rev().filter_map(|line| serde_json::from_str::<Entry>(line).ok());
        let entry = entries.find(|entry| entry.transaction == job.0);
        Ok(Look { transaction, phase, message, percent, entry })
    }

    /// Where an update stops that the server wants so eagerly.
    fn hold(&self, update: Handling) -> &'static str {
        match (update, self.soft) {
            (Handling::Skip, _) => HELD,
            (Handling::Forced, _) | (_, Soft::None) => "none",
            (_, Soft::Activate) => "activate",
            (_, Soft::Reboot) => "reboot",
        }
    }

    async fn order(&self, order: &Order, hold: bool, all: bool) -> zbus::Result<String> {
        let mut options =
            HashMap::from([("hold", Value::from(if hold { HELD } else { self.hold(order.update) }))]);
        if all {
            // What is only offered waits for the device's own windows. What hawkBit holds has windows of hawkBit's.
            let by = if !hold && order.update == Handling::Attempt { "policy" } else { "server" };
            options.insert("by", Value::from(by));
            options.insert("size", Value::from(order.size));
            if let Some(sha256) = &order.hashes.sha256 {
                options.insert("sha256", Value::from(sha256.as_str()));
            }
        }
        self.service.install(&order.url, options).await
    }

    async fn begin(&self, order: &Order, hold: bool) -> Result<JobId, Refusal> {
        match self.order(order, hold, true).await {
            // A service that does not know these options; the signature is what counts.
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == USAGE => {
                self.order(order, hold, false).await
            }
            other => other,
        }
        .map(JobId)
        .map_err(refusal)
    }

    /// A deployment of this device's hawkBit that waits to be let go, and never will be: another one has come.
    fn superseded(&self, transaction: &Transaction) -> bool {
        let ours = Url::parse(&transaction.source)
            .is_ok_and(|url| url.origin() == self.client.server().url.origin());
        transaction.hold == HELD && ours
    }
}

impl Installer for Update1 {
    async fn start(&mut self, order: &Order, hold: bool) -> Result<JobId, Refusal> {
        (self.told, self.downloaded, self.lost) = (String::new(), false, 0);
        let under_way = self.under_way().await.map_err(refusal)?;
        if under_way.source == order.url && !under_way.id.is_empty() {
            // Begun before a restart of this process, or downloaded by an action that wanted no more.
            let job = JobId(under_way.id.clone());
            if !hold {
                self.proceed(&job, order.update).await?;
            }
            return Ok(job);
        }
        match self.begin(order, hold).await {
            Err(Refusal::Busy(_)) if self.superseded(&under_way) => {
                self.service.cancel().await.map_err(refusal)?;
                self.begin(order, hold).await
            }
            other => other,
        }
    }

    async fn proceed(&mut self, job: &JobId, update: Handling) -> Result<(), Refusal> {
        let under_way = self.under_way().await.map_err(refusal)?;
        if under_way.id != job.0 || under_way.hold != HELD {
            // A person let it go already, or it has ended: then the history says how.
            return Ok(());
        }
        self.service.set_hold(self.hold(update)).await.map_err(refusal)
    }

    async fn cancel(&mut self, job: &JobId) -> Result<(), String> {
        let other = |transaction: &Transaction| transaction.id != job.0;
        match self.under_way().await {
            // Whatever runs there, it must not be hit by a cancellation that is meant for something else.
            Ok(transaction) if other(&transaction) => Err("the update has ended already.".into()),
            Ok(_) => {
                self.service.cancel().await.map_err(|error| format!("the device says: {}", text(&error)))
            }
            Err(error) => Err(format!("the update service does not answer: {}", text(&error))),
        }
    }

    async fn news(&mut self, job: &JobId) -> News {
        loop {
            tokio::time::sleep_until(self.next).await;
            let look = self.look(job).await.unwrap_or_default();
            self.next = Instant::now().checked_add(self.every).unwrap_or(self.next);
            if let Some(entry) = look.entry {
                return News::Ended(end(&entry));
            }
            if look.transaction.id != job.0 {
                self.lost = self.lost.saturating_add(1);
                if self.lost >= LOST_LOOKS {
                    let line = "The device no longer knows of this update, and not how it ended.";
                    return News::Ended(End::Failure(vec![line.into()]));
                }
                continue;
            }
            self.lost = 0;
            let line = if look.message.is_empty() { look.phase.clone() } else { look.message };
            if look.phase == "downloaded" && !self.downloaded {
                (self.downloaded, self.told) = (true, line.clone());
                return News::Downloaded { line };
            }
            if line != self.told {
                self.told.clone_from(&line);
                let percent = u8::try_from(look.percent.min(100)).ok();
                return News::Step { lines: vec![line], percent };
            }
        }
    }
}

/// How a transaction ended, in words for the server's users.
fn end(entry: &Entry) -> End {
    let release = match &entry.release {
        Some(release) => format!("Release {}", release.version),
        None => "The release".to_owned(),
    };
    let why = entry.why.as_ref();
    match entry.result.as_str() {
        "committed" => End::Success(vec![format!("{release} runs and is committed.")]),
        "refused" if why.is_some_and(|why| why.kind == "already-running") => {
            End::Success(vec![format!("{release} runs already.")])
        }
        "cancelled" => End::Cancelled,
        result => {
            let mut lines = match why {
                Some(why) => vec![format!("{result}: {}", why.message)],
                None => vec![format!("The update ended as {result:?}.")],
            };
            if let Some(why) = why {
                lines.extend(why.chain.iter().cloned());
                lines.extend(why.hint.iter().map(|hint| format!("hint: {hint}")));
            }
            let from = entry.log.len().saturating_sub(LOG_LINES);
            lines.extend(entry.log.iter().skip(from).cloned());
            End::Failure(lines)
        }
    }
}

fn refusal(error: zbus::Error) -> Refusal {
    match &error {
        zbus::Error::MethodError(name, ..) if name.as_str() == BUSY => Refusal::Busy(text(&error)),
        // The service is not there yet, or is being restarted: not the deployment's fault.
        zbus::Error::MethodError(name, ..) if name.as_str().starts_with("org.freedesktop.DBus.Error.") => {
            Refusal::Busy(text(&error))
        }
        zbus::Error::MethodError(..) => Refusal::Failed(text(&error).lines().map(str::to_owned).collect()),
        _ => Refusal::Busy(text(&error)),
    }
}

/// What the service said, without D-Bus' own words around it.
fn text(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(_, Some(text), _) => text.clone(),
        other => other.to_string(),
    }
}
