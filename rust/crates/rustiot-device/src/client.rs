//! The client of the update service: gives orders, and follows an install to its end.
//!
//! Knows only the D-Bus API (`docs/contracts/update-dbus.md`). Called by the commands below `rustiot update`.

use std::collections::HashMap;
use std::time::Duration;

use rustiot_update::{
    Check, Failure, HistoryEntry, Kind, Phase, PolicyNow, Progress, Transfer, Update1Proxy,
};
use serde::Serialize;
use zbus::Connection;
use zbus::proxy::CacheProperties;
use zbus::zvariant::Value;

use crate::args::Install;

/// How often a running install is looked at. Each question wakes the bus, the service and this command on a machine
/// that is at work.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row that may fail while the service restarts.
const LOST_LOOKS: u32 = 30;

/// Where an install got to when the command ends.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Transaction id.
    pub transaction: String,
    /// Phase of the service at the end.
    pub phase: String,
    /// Its line in the history, if it has ended.
    pub ended: Option<HistoryEntry>,
}

/// One look at the service.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Phase.
    pub phase: String,
    /// What it says.
    pub message: String,
    /// How far the write has come.
    pub progress: Progress,
}

/// The update service on `connection`.
pub struct Client {
    proxy: Update1Proxy<'static>,
}

impl Client {
    /// On the system bus.
    pub async fn system() -> Result<Self, Failure> {
        let connect = async { rustiot_update::system_bus()?.build().await };
        let connection = connect.await.map_err(|e: zbus::Error| {
            Failure::from_error(Kind::Unreachable, "the system bus does not answer", &e)
                .hint("this command works on a RustIoT device; is D-Bus running?")
        })?;
        Self::on(&connection, rustiot_update::NAME).await
    }

    async fn on(connection: &Connection, name: &'static str) -> Result<Self, Failure> {
        let built = async {
            Update1Proxy::builder(connection)
                .destination(name)?
                .cache_properties(CacheProperties::No)
                .build()
                .await
        };
        Ok(Self { proxy: built.await.map_err(|e| lost(&e))? })
    }

    /// Orders an install; returns the transaction's id.
    pub async fn install(&self, install: &Install) -> Result<String, Failure> {
        let mut options = HashMap::new();
        if let Some(hold) = install.hold {
            options.insert("hold", Value::from(hold.as_str()));
        }
        if install.repository {
            options.insert("repository", Value::from(true));
        }
        if let Some(release) = &install.release {
            options.insert("version", Value::from(release.as_str()));
        }
        if install.force {
            options.insert("force", Value::from(true));
        }
        self.proxy
            .install(&absolute(install.source.as_deref().unwrap_or_default()), options)
            .await
            .map_err(rustiot_update::Error::into_failure)
    }

    /// Looks into the repository.
    pub async fn check(&self) -> Result<Check, Failure> {
        let text = self.proxy.check().await.map_err(rustiot_update::Error::into_failure)?;
        read(&text)
    }

    /// Downloads what is available; returns the transaction's id.
    pub async fn download(&self) -> Result<String, Failure> {
        self.proxy.download().await.map_err(rustiot_update::Error::into_failure)
    }

    /// Holds the transaction before a stage.
    pub async fn hold(&self, stage: &str) -> Result<(), Failure> {
        self.proxy.set_hold(stage).await.map_err(rustiot_update::Error::into_failure)
    }

    /// Puts a stage off.
    pub async fn schedule(&self, stage: &str, not_before: u64) -> Result<(), Failure> {
        self.proxy.schedule(stage, not_before).await.map_err(rustiot_update::Error::into_failure)
    }

    /// Consents to what hawkBit wants, or refuses it.
    pub async fn consent(&self, yes: bool) -> Result<(), Failure> {
        self.proxy.consent(yes).await.map_err(rustiot_update::Error::into_failure)
    }

    /// What may happen by itself.
    pub async fn policy(&self) -> Result<PolicyNow, Failure> {
        let text = self.proxy.policy().await.map_err(rustiot_update::Error::into_failure)?;
        read(&text)
    }

    /// Takes the transaction back.
    pub async fn cancel(&self) -> Result<(), Failure> {
        self.proxy.cancel().await.map_err(rustiot_update::Error::into_failure)
    }

    /// Makes the next boot the trial.
    pub async fn activate(&self) -> Result<(), Failure> {
        self.proxy.activate().await.map_err(rustiot_update::Error::into_failure)
    }

    /// Restarts into the trial.
    pub async fn reboot(&self) -> Result<(), Failure> {
        self.proxy.reboot().await.map_err(rustiot_update::Error::into_failure)
    }

    /// One look at phase, message and progress.
    pub async fn look(&self) -> zbus::Result<Look> {
        let (percent, bytes, total, step) = self.proxy.progress().await?;
        let percent = u8::try_from(percent).unwrap_or(100);
        let (fetched, reused, all, rate, eta) = self.proxy.transfer().await.unwrap_or_default();
        let transfer = Transfer { fetched, reused, total: all, rate, eta };
        Ok(Look {
            phase: self.proxy.phase().await?,
            message: self.proxy.message().await?,
            progress: Progress { percent, bytes, total, step, transfer },
        })
    }

    /// As much of it as a watcher of `phase` is shown.
    async fn glance(&self) -> zbus::Result<Look> {
        let mut look = Look { phase: self.proxy.phase().await?, ..Look::default() };
        if look.phase == Phase::Installing.as_str() {
            let (percent, bytes, total, step) = self.proxy.progress().await?;
            look.progress = Progress {
                percent: u8::try_from(percent).unwrap_or(100),
                bytes,
                total,
                step,
                ..Progress::default()
            };
        } else if look.phase == Phase::Downloading.as_str() {
            let (fetched, reused, total, rate, eta) = self.proxy.transfer().await?;
            look.progress.transfer = Transfer { fetched, reused, total, rate, eta };
        }
        if look.progress.total == 0 && look.progress.transfer.total == 0 {
            look.message = self.proxy.message().await?;
        }
        Ok(look)
    }

    async fn ended(&self, id: &str) -> zbus::Result<Option<HistoryEntry>> {
        let history = self.proxy.history().await?;
        Ok(history
            .iter()
            .rev()
            .filter_map(|line| serde_json::from_str::<HistoryEntry>(line).ok())
            .find(|e| e.transaction == id))
    }

    /// Restarts once the activation that was ordered before is done.
    pub async fn reboot_when_activated(&self) -> Result<(), Failure> {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            match self.look().await.map_err(|e| lost(&e))? {
                look if look.phase == Phase::Activating.as_str() => {}
                // By policy it restarts already.
                look if look.phase == Phase::Rebooting.as_str() => return Ok(()),
                _ => return self.reboot().await,
            }
        }
    }

    /// Waits until transaction `id` has ended, waits for a person, or restarts the device. `see` gets every look
    /// but the last of a transaction that has ended.
    pub async fn follow(&self, id: &str, mut see: impl FnMut(&Look)) -> Result<Report, Failure> {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        let mut lost_looks = 0_u32;
        let mut last = Look::default();
        loop {
            ticks.tick().await;
            let found = async {
                let look = self.glance().await?;
                // The history is long. A transaction does not end within a phase.
                let ended = match look.phase == last.phase && look.phase != Phase::Idle.as_str() {
                    true => None,
                    false => self.ended(id).await?,
                };
                Ok::<_, zbus::Error>((look, ended))
            };
            let (look, ended) = match found.await {
                Ok(found) => found,
                // The bus goes away in a restart of the device.
                Err(_) if last.phase == Phase::Rebooting.as_str() => {
                    return Ok(Report { transaction: id.into(), phase: last.phase, ended: None });
                }
                Err(error) => {
                    lost_looks = lost_looks.saturating_add(1);
                    if lost_looks >= LOST_LOOKS {
                        return Err(lost(&error));
                    }
                    continue;
                }
            };
            lost_looks = 0;
            if ended.is_none() {
                see(&look);
            }
            let resting =
                [Phase::Available, Phase::Downloaded, Phase::Installed, Phase::Activated, Phase::Rebooting]
                    .iter()
                    .any(|p| p.as_str() == look.phase);
            if ended.is_some() || resting {
                return Ok(Report { transaction: id.into(), phase: look.phase, ended });
            }
            last = look;
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|e| {
        Failure::from_error(Kind::State, "the update service's answer cannot be read", &e)
            .hint("command and service are of different releases: restart rustiot-update.service")
    })
}

/// The service knows no working directory: `os.raucb` becomes a full path, a URL stays as it is.
fn absolute(source: &str) -> String {
    if source.is_empty() || source.contains("://") {
        return source.to_owned();
    }
    match std::path::absolute(source) {
        Ok(path) => path.to_str().unwrap_or(source).to_owned(),
        Err(_) => source.to_owned(),
    }
}

fn lost(error: &zbus::Error) -> Failure {
    Failure::from_error(Kind::Unreachable, "the update service does not answer", error)
        .hint("`systemctl status rustiot-update.service`")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use zbus::connection::{Builder, socket::channel::Channel};
    use zbus::{Guid, interface};

    use super::*;

    /// A service that shows one phase a look, and then its history.
    #[derive(Clone, Default)]
    struct Fake {
        phases: Arc<Mutex<Vec<&'static str>>>,
        history: Vec<String>,
    }

    #[interface(name = "org.rustiot.Update1")]
    impl Fake {
        fn install(&self, source: &str, options: HashMap<String, zbus::zvariant::OwnedValue>) -> String {
            let mut keys: Vec<_> = options.into_keys().collect();
            keys.sort();
            format!("{source} {}", keys.join(","))
        }

        #[zbus(property)]
        fn phase(&self) -> String {
            let mut phases = self.phases.lock().unwrap();
            if phases.len() > 1 { phases.remove(0) } else { phases[0] }.to_owned()
        }

        #[zbus(property)]
        fn message(&self) -> String {
            String::new()
        }

        #[zbus(property)]
        fn progress(&self) -> (u32, u64, u64, String) {
            (3, 4, 5, "x".into())
        }

        #[zbus(property)]
        fn history(&self) -> Vec<String> {
            if self.phases.lock().unwrap().len() > 1 { Vec::new() } else { self.history.clone() }
        }
    }

    async fn client(fake: Fake) -> (Client, [Connection; 2]) {
        let guid = Guid::generate();
        let (a, b) = Channel::pair();
        let server = Builder::authenticated_socket(a, guid.clone())
            .unwrap()
            .p2p()
            .serve_at(rustiot_update::PATH, fake)
            .unwrap()
            .build()
            .await
            .unwrap();
        let client = Builder::authenticated_socket(b, guid).unwrap().p2p().build().await.unwrap();
        (Client::on(&client, ":1.1").await.unwrap(), [server, client])
    }

    fn phases(list: &[&'static str]) -> Arc<Mutex<Vec<&'static str>>> {
        Arc::new(Mutex::new(list.to_vec()))
    }

    const ENTRY: &str = r#"{"transaction":"t","source":"/x","release":null,"slot":null,"result":"refused",
        "why":{"kind":"signature","message":"no"},"log":[],"started_at":1,"ended_at":2,"started_boot":"b",
        "ended_boot":"b","install_tries":1,"install_seconds":null}"#;

    #[test]
    fn a_file_is_named_by_its_full_path() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute("os.raucb"), here.join("os.raucb").to_str().unwrap());
        for same in ["/data/os.raucb", "https://h/os.raucb", ""] {
            assert_eq!(absolute(same), same);
        }
    }

    #[tokio::test]
    async fn options_are_sent_only_when_given() {
        let (client, _keep) = client(Fake { phases: phases(&["idle"]), ..Fake::default() }).await;
        let mut install = Install {
            source: Some("/x".into()),
            hold: None,
            repository: false,
            release: None,
            force: false,
            no_wait: true,
        };
        assert_eq!(client.install(&install).await.unwrap(), "/x ");
        (install.hold, install.force) = (Some(crate::args::HoldAt::Reboot), true);
        assert_eq!(client.install(&install).await.unwrap(), "/x force,hold");
        (install.repository, install.release) = (true, Some("1.0.0".into()));
        assert_eq!(client.install(&install).await.unwrap(), "/x force,hold,repository,version");
    }

    #[tokio::test(start_paused = true)]
    async fn an_install_is_followed_to_its_end() {
        let fake = Fake {
            phases: phases(&["checking", "installing", "idle", "idle"]),
            history: vec!["{".into(), ENTRY.into()],
        };
        let (client, _keep) = client(fake).await;
        let mut seen = Vec::new();
        let report = client.follow("t", |look| seen.push(look.phase.clone())).await.unwrap();
        assert_eq!(seen, ["checking", "installing"]);
        assert_eq!(report.ended.unwrap().why.unwrap().kind.exit_code(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_or_restarting_install_is_not_waited_for() {
        for phase in ["installed", "activated", "rebooting"] {
            let (client, _keep) =
                client(Fake { phases: phases(&["installing", phase]), ..Fake::default() }).await;
            let report = client.follow("t", |_| ()).await.unwrap();
            assert_eq!((report.phase.as_str(), report.ended), (phase, None));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_stays_away_is_a_failure() {
        let (client, [server, _keep]) =
            client(Fake { phases: phases(&["installing"]), ..Fake::default() }).await;
        server.close().await.unwrap();
        assert_eq!(client.follow("t", |_| ()).await.unwrap_err().kind, Kind::Unreachable);
    }
}
