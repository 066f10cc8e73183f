//! The process `rustiot-update`: the engine with the real RAUC, ledger, disk and machine, on the system bus.
//!
//! Only wiring. Started by `rustiot-update.service`; ends on SIGTERM, or with an error when the bus goes away (systemd
//! starts it again, and it finds everything in the ledger).

use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rustiot_boot::{Event, Record};
use rustiot_config::Settings;
use rustiot_liveness::{Client, Name};
use rustiot_slots::{LoaderConfig, Paths, SlotShell, read_record};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use crate::dbus::{self, NAME, PATH, Update};
use crate::disk::Partitions;
use crate::engine::{Engine, Policy, Ports};
use crate::failure::{Failure, Kind};
use crate::fetch::Fetch;
use crate::hawkbit;
use crate::ports::{Ledger, Machine, Rules};
use crate::rauc::Rauc;
use crate::reconcile::Here;
use crate::report::{self, Sender};
use crate::repository::{Device, Releases};
use crate::status::{Status, Veto};
use crate::store::Store;

/// Where the service keeps what it remembers.
const STATE: &str = "/state/update";
/// The same while there is no state partition.
const VOLATILE: &str = "/run/rustiot/update";
/// What the image says about itself.
pub(crate) const RELEASE: &str = "/usr/lib/rustiot/release.json";
/// What the image says about the board.
const BOARD: &str = "/usr/lib/rustiot/board.toml";
/// Where applications put off a restart.
const VETOES: &str = "/run/rustiot/update/vetoes";
/// What decides the device's place in roll-outs and the instant at which it looks.
const MACHINE_ID: &str = "/etc/machine-id";
/// The device's public identity.
const PUBLIC_KEY: &str = "/state/identity/device.pub";
/// Where the status is shown to those without a bus.
pub const STATUS_FILE: &str = "/run/rustiot/update.json";
/// Time between the announcement of a restart and the restart.
const GRACE: Duration = Duration::from_secs(5);

/// How often the configuration of hawkBit is looked at.
const RULES_EVERY: Duration = Duration::from_secs(20);
/// Longer silence of this process counts as hung. More than one write to a slow medium takes.
const ALIVE_WITHIN: Duration = Duration::from_secs(600);

/// `release.json` as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct ReleaseFile {
    #[serde(default)]
    version: String,
    compatible: String,
    #[serde(default)]
    pub(crate) build_epoch: u64,
    #[serde(default)]
    floor: Option<String>,
}

/// Root hash of the mounted root, from `rustiot-init`'s report: an image cannot name its own. By it a device that was
/// flashed, and so knows no bundle, finds the delta from what it runs.
fn root_hash(report: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Report {
        root_hash: String,
    }
    let text = std::fs::read(report).ok()?;
    serde_json::from_slice::<Report>(&text)
        .ok()
        .map(|report| report.root_hash)
        .filter(|hash| !hash.is_empty())
}

/// How this board's loader keeps its selector.
///
/// # Errors
/// When `board.toml` of the image cannot be read.
pub fn loader() -> anyhow::Result<LoaderConfig> {
    let board = rustiot_board::Board::load(Path::new(BOARD))?;
    let kind = board.boot.loader.name().parse().context(BOARD)?;
    let mut config = LoaderConfig::on_device(kind);
    if let (LoaderConfig::Uboot { layout, .. }, Some(uboot)) = (&mut config, &board.boot.uboot) {
        layout.size = uboot.env_size.try_into().context(BOARD)?;
        layout.offsets = uboot.env_offsets;
    }
    Ok(config)
}

/// The boot ledger of this device.
#[derive(Debug)]
struct Slots {
    paths: Paths,
    loader: LoaderConfig,
}

impl Slots {
    fn open(&self) -> Result<SlotShell, Failure> {
        SlotShell::open(self.paths.clone(), self.loader.clone().open()).map_err(|e| ledger_failure(&e))
    }
}

impl Ledger for Slots {
    fn record(&self) -> Result<Record, Failure> {
        // Without the lock, since it is asked every few seconds. Where there is no ledger, the shell knows what runs.
        match read_record(&self.paths.ledger).record {
            Some(record) => Ok(record),
            None => Ok(self.open()?.record().clone()),
        }
    }

    fn apply(&self, event: Event) -> Result<(), Failure> {
        self.open()?.apply(event).map(drop).map_err(|e| ledger_failure(&e))
    }
}

fn ledger_failure(error: &rustiot_slots::Error) -> Failure {
    match error {
        rustiot_slots::Error::Refused(refused) => Failure::new(Kind::NotNow, refused.0.clone())
            .hint("`rustiot slots` shows what the boot policy knows"),
        rustiot_slots::Error::Busy { .. } => {
            Failure::from_error(Kind::Busy, "the boot ledger is busy", error)
        }
        _ => Failure::from_error(Kind::State, "the boot ledger cannot be used", error)
            .hint("is the state partition mounted and not full? `rustiot status`, `df /state`"),
    }
}

/// The running machine.
#[derive(Debug)]
struct Host(Rc<Rauc>);

impl Machine for Host {
    async fn reboot(&self) -> Result<(), Failure> {
        self.0.reboot().await
    }

    fn rules(&self) -> Rules {
        let settings = Settings::load_effective().unwrap_or_default();
        Rules { update: settings.update, zone: settings.time.timezone.to_string() }
    }

    fn vetoes(&self) -> Vec<Veto> {
        crate::veto::vetoes(Path::new(VETOES))
    }

    fn on_battery(&self) -> bool {
        crate::power::on_battery(Path::new(crate::power::SUPPLIES))
    }

    fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    fn head(&self, path: &str) -> Option<[u8; 4]> {
        let mut head = [0; 4];
        std::fs::File::open(path).ok()?.read_exact(&mut head).ok()?;
        Some(head)
    }

    fn is_dir(&self, path: &str) -> bool {
        Path::new(path).is_dir()
    }
}

/// Runs the service until SIGTERM.
///
/// # Errors
/// When the bus, the image's files or the boot's report cannot be used.
pub fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(serve());
    // A name that no resolver answers for holds its thread as long as libc is patient: a stop does not wait for that.
    runtime.shutdown_timeout(Duration::from_secs(2));
    ended
}

async fn serve() -> anyhow::Result<()> {
    let paths = Paths::default();
    let text = std::fs::read_to_string(RELEASE).context(RELEASE)?;
    let release: ReleaseFile = serde_json::from_str(&text).context(RELEASE)?;
    let ledger = Slots { paths: paths.clone(), loader: loader()? };
    let boot_id = std::fs::read_to_string(&paths.boot_id).context("boot id")?.trim().to_owned();
    let slot = rustiot_slots::status(&paths, None)
        .running
        .context("rustiot-init left no report of this boot, so nobody knows which slot runs")?;

    let (commands, orders) = mpsc::channel(8);
    let (ask, asks) = mpsc::channel(4);
    let (status_sender, status) = watch::channel(Status::default());
    let connection = dbus::system_bus()?
        .serve_at(PATH, Update::new(commands, ask, status.clone()))?
        .name(NAME)?
        .build()
        .await
        .context("system bus")?;
    let rauc = Rc::new(Rauc::new(&connection).await.context("RAUC on the system bus")?);
    let (store, directory) = match Store::open(STATE) {
        Ok(store) => (store, STATE),
        Err(failure) => {
            // Without state nothing can be installed, but the device must still be able to say so.
            eprintln!("{failure}; remembering only until the next restart");
            (Store::open(VOLATILE)?, VOLATILE)
        }
    };
    let store = Rc::new(store);
    let machine = Host(Rc::clone(&rauc));
    let sender = Sender {
        device: fingerprint(),
        hostname: read_line("/proc/sys/kernel/hostname"),
        compatible: release.compatible.clone(),
        running: release.version.clone(),
    };
    let ports = Ports {
        installer: rauc,
        ledger,
        disk: Partitions::below(Path::new("/")),
        machine,
        repository: Releases::new(Device {
            identity: read_line(MACHINE_ID),
            compatible: release.compatible.clone(),
            version: release.version.clone(),
            root_hash: root_hash(&paths.report),
            built: release.build_epoch,
        }),
        fetcher: Fetch::new(slot),
    };
    let hawkbit = hawkbit::Task {
        device: hawkbit::Device {
            id: sender.device.clone(),
            board: release.compatible.clone(),
            version: release.version.clone(),
        },
        state: Path::new(directory).join("hawkbit.json"),
        status: status_sender.clone(),
        every: RULES_EVERY,
    };
    let load = || Settings::load_effective().unwrap_or_default();
    // A connection of its own: it is a client like any other.
    let connect = async || dbus::system_bus()?.build().await;
    let policy = Policy { grace: GRACE, compatible: release.compatible, floor: release.floor };
    let engine = Engine::new(ports, Rc::clone(&store), Here { slot, boot_id }, policy, status_sender);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut bus = zbus::MessageStream::from(&connection);
    let lost = async {
        use futures_lite::StreamExt;
        while let Some(Ok(_)) = bus.next().await {}
    };
    tokio::select! {
        () = engine.run(orders) => Ok(()),
        result = dbus::announce(&connection, status.clone()) => result.context("system bus"),
        () = show(status) => Ok(()),
        () = live() => Ok(()),
        () = report::run(&store, &sender, report_target, tokio::time::sleep) => Ok(()),
        () = hawkbit.run(asks, load, connect) => Ok(()),
        () = lost => anyhow::bail!("the system bus is gone"),
        _ = terminate.recv() => Ok(()),
    }
}

/// Where outcomes are posted, and with which client. Made when something waits, and only then.
fn report_target() -> Option<(rustiot_http::Url, rustiot_http::Http)> {
    let url = Settings::load_effective().ok()?.update.report_url?.as_str().parse().ok()?;
    match crate::web::client_by_the_clock() {
        Ok(http) => Some((url, http)),
        Err(failure) => {
            eprintln!("{failure}: {}", failure.chain.join(": "));
            None
        }
    }
}

/// SHA-256 of the device's public key as it lies on the state partition, hex; empty when there is none.
fn fingerprint() -> String {
    use sha2::Digest;
    std::fs::read(PUBLIC_KEY).map_or_else(
        |_| String::new(),
        |key| sha2::Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect(),
    )
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Tells the watchdog that the one thread of this process still turns: everything here shares it.
async fn live() {
    let mut watchdog = Name::new("update").ok().map(|name| Client::new(name, ALIVE_WITHIN));
    loop {
        if let Some(watchdog) = &mut watchdog {
            watchdog.alive();
        }
        tokio::time::sleep(ALIVE_WITHIN / 6).await;
    }
}

/// Keeps the status file, for those without a bus. Not for each byte of progress.
async fn show(mut status: watch::Receiver<Status>) {
    let mut shown = None;
    loop {
        let now = {
            let status = status.borrow_and_update();
            Status { progress: crate::status::Progress::default(), ..status.clone() }
        };
        if shown.as_ref() != Some(&now) {
            let written = serde_json::to_vec(&now).map_err(|e| e.to_string()).and_then(|text| {
                rustiot_durable::atomic_write_volatile(Path::new(STATUS_FILE), &text)
                    .map_err(|e| e.to_string())
            });
            if let Err(error) = written {
                eprintln!("cannot show the status in {STATUS_FILE}: {error}");
            }
            shown = Some(now);
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_file_may_have_more_or_no_floor() {
        let text = r#"{"version":"1.0.0","compatible":"x","floor":null,"build_epoch":1}"#;
        let file: ReleaseFile = serde_json::from_str(text).unwrap();
        assert_eq!((file.compatible.as_str(), file.floor), ("x", None));
        let text = r#"{"compatible":"x","floor":"1.0.0","more":[]}"#;
        assert_eq!(serde_json::from_str::<ReleaseFile>(text).unwrap().floor.as_deref(), Some("1.0.0"));
    }

    #[test]
    fn the_running_root_is_known_by_the_report_of_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("boot.json");
        assert_eq!(root_hash(&report), None);
        for (text, hash) in
            [(r#"{"slot":"a","root_hash":"ab"}"#, Some("ab")), (r#"{"root_hash":""}"#, None), ("{", None)]
        {
            rustiot_durable::atomic_write_volatile(&report, text.as_bytes()).unwrap();
            assert_eq!(root_hash(&report).as_deref(), hash);
        }
    }

    #[test]
    fn the_policys_refusal_is_a_refusal_and_a_missing_ledger_is_not() {
        let refused = rustiot_slots::Error::Refused(rustiot_boot::Refused("no".into()));
        assert_eq!(ledger_failure(&refused).kind, Kind::NotNow);
        assert_eq!(ledger_failure(&rustiot_slots::Error::NoLedger).kind, Kind::State);
        assert_eq!(ledger_failure(&rustiot_slots::Error::Busy { path: "x".into() }).kind.exit_code(), 4);
    }
}
