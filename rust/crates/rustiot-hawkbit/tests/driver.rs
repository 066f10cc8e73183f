//! The driver against our hawkBit over real HTTP, with an update service on a private D-Bus.

#![allow(missing_docs, dead_code, reason = "a test")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustiot_hawkbit::client::{Auth, Client, Server};
use rustiot_hawkbit::driver::{Command, Driver};
use rustiot_hawkbit::machine::{Consent, Policy, State};
use rustiot_hawkbit::store::Store;
use rustiot_hawkbit::update1::{Soft, Update1};
use rustiot_hawkbit::voice::Journal;
use rustiot_hawkbit_server::{Fault, Running};
use rustiot_http::{Http, Settings, Url};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use zbus::connection::{Builder, socket::channel::Channel};
use zbus::zvariant::OwnedValue;
use zbus::{Connection, DBusError, Guid, interface};

#[derive(Debug, DBusError)]
#[zbus(prefix = "org.rustiot.Update1.Error", impl_display = true)]
enum Error {
    #[zbus(error)]
    Bus(zbus::Error),
    Usage(String),
    NotNow(String),
    Busy(String),
    Failed(String),
}

/// What the update service knows and was asked.
#[derive(Default)]
struct Service {
    orders: Vec<(String, HashMap<String, String>)>,
    /// What was held, and let go to this.
    holds: Vec<String>,
    cancelled: u32,
    phase: String,
    message: String,
    under_way: Option<Value>,
    history: Vec<String>,
    /// What the next methods answer instead.
    refuse_install: Vec<Error>,
    refuse_cancel: Option<Error>,
    refuse_hold: Option<Error>,
}

impl Service {
    fn phase(&mut self, phase: &str) {
        self.phase = phase.into();
        self.message = format!("now {phase}");
    }

    fn end(&mut self, result: &str, why: Value, log: &[&str]) {
        let id = self.under_way.take().map_or("t".into(), |transaction| transaction["id"].clone());
        let entry = json!({ "transaction": id, "result": result, "release": { "version": "2.0.0" }, "why": why, "log": log });
        self.history.push(entry.to_string());
        self.phase("idle");
    }
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Service>>);

impl Fake {
    fn get(&self) -> MutexGuard<'_, Service> {
        self.0.lock().unwrap()
    }
}

#[interface(name = "org.rustiot.Update1")]
impl Fake {
    fn install(&self, source: &str, options: HashMap<String, OwnedValue>) -> Result<String, Error> {
        let mut service = self.get();
        if let Some(error) = service.refuse_install.pop() {
            return Err(error);
        }
        if service.under_way.is_some() {
            return Err(Error::Busy("one at a time".into()));
        }
        let text =
            |value: &OwnedValue| <&str>::try_from(value).map_or_else(|_| format!("{value:?}"), str::to_owned);
        let options: HashMap<_, _> = options.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        let id = format!("t{}", service.orders.len());
        let hold = options.get("hold").cloned().unwrap_or_default();
        service.under_way = Some(json!({ "id": id, "source": source, "hold": hold, "more": 1 }));
        service.orders.push((source.to_owned(), options));
        service.phase("checking");
        Ok(id)
    }

    fn cancel(&self) -> Result<(), Error> {
        let mut service = self.get();
        if let Some(error) = service.refuse_cancel.take() {
            return Err(error);
        }
        service.cancelled += 1;
        service.end("cancelled", Value::Null, &[]);
        Ok(())
    }

    fn set_hold(&self, stage: String) -> Result<(), Error> {
        let mut service = self.get();
        if let Some(error) = service.refuse_hold.take() {
            return Err(error);
        }
        if let Some(under_way) = &mut service.under_way {
            under_way["hold"] = stage.clone().into();
        }
        service.holds.push(stage);
        service.phase("installing");
        Ok(())
    }

    #[zbus(property)]
    fn phase(&self) -> String {
        self.get().phase.clone()
    }

    #[zbus(property)]
    fn message(&self) -> String {
        self.get().message.clone()
    }

    #[zbus(property)]
    fn transaction(&self) -> String {
        self.get().under_way.as_ref().map(Value::to_string).unwrap_or_default()
    }

    #[zbus(property)]
    fn progress(&self) -> (u32, u64, u64, String) {
        (40, 4, 10, "step".into())
    }

    #[zbus(property)]
    fn history(&self) -> Vec<String> {
        self.get().history.clone()
    }
}

/// A device and its hawkBit.
struct Lab {
    hawkbit: Running,
    service: Fake,
    client: Connection,
    _server: Connection,
    url: Url,
    dir: tempfile::TempDir,
    set: u64,
}

async fn lab() -> Lab {
    let hawkbit = Running::start().unwrap();
    let url = Url::parse(&hawkbit.url()).unwrap();
    let set = {
        let mut world = hawkbit.world();
        world.sleep = Some("00:00:01".into());
        world.knows("device-1", "secret");
        world.add_bundle("2.0.0", &[7; 3000])
    };
    let service = Fake::default();
    let guid = Guid::generate();
    let (a, b) = Channel::pair();
    let served = Builder::authenticated_socket(a, guid.clone()).unwrap().p2p();
    let served = served.serve_at("/org/rustiot/Update1", service.clone()).unwrap().build().await.unwrap();
    let client = Builder::authenticated_socket(b, guid).unwrap().p2p().build().await.unwrap();
    Lab { hawkbit, service, client, _server: served, url, dir: tempfile::tempdir().unwrap(), set }
}

fn policy() -> Policy {
    Policy {
        consent: Consent::Automatic,
        progress_every: Duration::from_millis(200),
        download_alone: true,
        poll_working: Duration::from_millis(100),
        poll_idle: Some(Duration::from_secs(1)),
        retry: Duration::from_millis(50),
    }
}

impl Lab {
    async fn driver(&self, policy: Policy) -> Driver<Update1, Journal> {
        let server = Server {
            url: self.url.clone(),
            tenant: "DEFAULT".into(),
            controller: "device-1".into(),
            auth: Auth::TargetToken("secret".into()),
            timeout: Duration::from_millis(500),
        };
        let client = Client::new(Http::new(&Settings::default()).unwrap(), server);
        let installer = Update1::new(&self.client, client.clone(), Soft::Reboot).await.unwrap();
        let installer = installer.looking_every(Duration::from_millis(10));
        let attributes = BTreeMap::from([("serial".to_owned(), "42".to_owned())]);
        let store = Store::File(self.dir.path().join("hawkbit.json"));
        Driver::new(client, installer, Journal::default(), policy, attributes, store)
    }

    /// Runs the driver beside the script.
    async fn run(&self, policy: Policy, script: impl AsyncFnOnce(&Lab, mpsc::Sender<Command>)) -> State {
        let mut driver = self.driver(policy).await;
        let (commands, orders) = mpsc::channel(4);
        tokio::select! {
            () = driver.run(orders) => panic!("the driver ended"),
            () = script(self, commands) => {}
        }
        driver.state().clone()
    }

    fn assign(&self, kind: &str) -> u64 {
        self.hawkbit.world().assign("device-1", self.set, kind, None)
    }

    async fn until(&self, what: &str, mut found: impl FnMut(&Lab) -> bool) {
        for _ in 0..1500 {
            if found(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain: {what}; log {:?}", self.hawkbit.world().log);
    }

    async fn ordered(&self, count: usize) {
        self.until("an order", |lab| lab.service.get().orders.len() == count).await;
    }

    async fn ends(&self, action: u64, status: &str) {
        self.until(status, |lab| lab.hawkbit.status(action) == status).await;
    }
}

#[tokio::test]
async fn success_is_reported_after_the_commit_and_not_before() {
    let lab = lab().await;
    let action = lab.assign("forced");
    lab.run(policy(), async |lab, _keep| {
        lab.ordered(1).await;
        let (source, options) = lab.service.get().orders[0].clone();
        assert!(source.starts_with(lab.url.as_str()) && source.ends_with("/os.raucb"), "{source}");
        assert_eq!(options["hold"], "none");
        assert!(!format!("{options:?}").contains("secret"), "the token goes over the bus");
        assert_eq!(options["by"], "server");
        assert_eq!(options["sha256"].len(), 64);
        assert!(options.contains_key("size"));
        for phase in ["installing", "activated", "rebooting", "trial"] {
            lab.service.get().phase(phase);
            let line = format!("now {phase}");
            lab.until(phase, |lab| lab.hawkbit.messages(action, "running").contains(&line)).await;
            assert_eq!(lab.hawkbit.status(action), "running", "{phase}");
        }
        lab.service.get().end("committed", Value::Null, &[]);
        lab.ends(action, "finished").await;
        assert_eq!(lab.hawkbit.messages(action, "finished"), ["Release 2.0.0 runs and is committed."]);
        assert_eq!(lab.hawkbit.world().targets["device-1"].attributes["serial"], "42");
    })
    .await;
}

#[tokio::test]
async fn a_fallback_is_reported_with_its_reason_and_log() {
    let lab = lab().await;
    let action = lab.assign("soft");
    lab.run(policy(), async |lab, _keep| {
        lab.ordered(1).await;
        let options = lab.service.get().orders[0].1.clone();
        assert_eq!(options["hold"], "reboot", "a soft one leaves what the owner says");
        assert_eq!(options["by"], "policy", "a soft one waits for the device's windows");
        let why =
            json!({ "kind": "fell-back", "message": "unhealthy", "chain": ["nginx failed"], "hint": "look" });
        lab.service.get().end("fell-back", why, &["last line"]);
        lab.ends(action, "error").await;
        let want = ["fell-back: unhealthy", "nginx failed", "hint: look", "last line"];
        assert_eq!(lab.hawkbit.messages(action, "error"), want);
    })
    .await;
}

#[tokio::test]
async fn what_runs_already_is_a_success() {
    let lab = lab().await;
    let action = lab.assign("forced");
    lab.run(policy(), async |lab, _keep| {
        lab.ordered(1).await;
        lab.service.get().end("refused", json!({ "kind": "already-running", "message": "m" }), &[]);
        lab.ends(action, "finished").await;
    })
    .await;
}

#[tokio::test]
async fn a_cancellation_before_the_order_is_acknowledged() {
    let lab = lab().await;
    let action = lab.assign("forced");
    assert_eq!(lab.hawkbit.world().cancel(action, false), 204);
    lab.run(policy(), async |lab, _keep| {
        lab.ends(action, "canceled").await;
        assert!(lab.service.get().orders.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_cancellation_in_time_takes_the_transaction_back() {
    let lab = lab().await;
    let action = lab.assign("forced");
    lab.run(policy(), async |lab, _keep| {
        lab.ordered(1).await;
        lab.hawkbit.world().cancel(action, false);
        lab.ends(action, "canceled").await;
        assert_eq!(lab.service.get().cancelled, 1);
        assert_eq!(lab.hawkbit.messages(action, "canceled"), ["Action canceled."]);
    })
    .await;
}

#[tokio::test]
async fn a_cancellation_that_comes_too_late_is_rejected_and_the_update_goes_on() {
    let lab = lab().await;
    let action = lab.assign("forced");
    lab.run(policy(), async |lab, _keep| {
        lab.ordered(1).await;
        lab.service.get().refuse_cancel = Some(Error::NotNow("the new release is running".into()));
        lab.hawkbit.world().cancel(action, false);
        lab.until("a rejection", |lab| !lab.hawkbit.messages(action, "cancel_rejected").is_empty()).await;
        assert!(lab.hawkbit.messages(action, "cancel_rejected")[0].contains("the new release is running"));
        lab.service.get().end("committed", Value::Null, &[]);
        lab.ends(action, "finished").await;
    })
    .await;
}

#[tokio::test]
async fn consent_is_given_by_itself_or_by_a_person() {
    for ask in [false, true] {
        let lab = lab().await;
        lab.hawkbit.world().set_config("user.confirmation.flow.enabled", true.into());
        let action = lab.assign("forced");
        let consent = if ask { Consent::Ask } else { Consent::Automatic };
        lab.run(Policy { consent, ..policy() }, async |lab, commands| {
            if ask {
                lab.until("polls", |lab| lab.hawkbit.world().log.len() > 2).await;
                assert_eq!(lab.hawkbit.status(action), "wait_for_confirmation");
                commands.send(Command::Consent(true)).await.unwrap();
            }
            lab.ordered(1).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_closed_window_holds_the_install_until_it_opens() {
    let lab = lab().await;
    // Open twelve hours from now at the earliest.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() % 86_400;
    let later = (now + 43_200) % 86_400;
    let action = lab.hawkbit.world().assign("device-1", lab.set, "forced", Some((later, 60)));
    lab.run(policy(), async |lab, _keep| {
        lab.ordered(1).await;
        assert_eq!(lab.service.get().orders[0].1["hold"], "install");
        lab.service.get().phase("downloaded");
        lab.until("the download", |lab| {
            lab.hawkbit.messages(action, "running").contains(&"now downloaded".into())
        })
        .await;
        assert!(lab.service.get().holds.is_empty());
        // A service that is away in this moment is asked again.
        lab.service.get().refuse_hold = Some(Error::Busy("wait".into()));
        lab.hawkbit.world().actions.get_mut(&action).unwrap().open_now();
        lab.until("it goes on", |lab| lab.service.get().holds == ["none"]).await;
        lab.service.get().end("committed", Value::Null, &[]);
        lab.ends(action, "finished").await;
    })
    .await;
}

#[tokio::test]
async fn a_download_only_action_ends_with_the_download_and_the_next_one_takes_it_up() {
    let lab = lab().await;
    let action = lab.assign("downloadonly");
    lab.run(policy(), async |lab, _keep| {
        lab.ordered(1).await;
        lab.service.get().phase("downloaded");
        lab.ends(action, "downloaded").await;
        let action = lab.assign("forced");
        lab.until("it goes on", |lab| lab.service.get().holds == ["none"]).await;
        assert_eq!(lab.service.get().orders.len(), 1, "not fetched again");
        lab.service.get().end("committed", Value::Null, &[]);
        lab.ends(action, "finished").await;
    })
    .await;
}

#[tokio::test]
async fn what_a_person_let_go_is_not_disturbed_and_reported_when_it_is_committed() {
    let lab = lab().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() % 86_400;
    let later = (now + 43_200) % 86_400;
    let action = lab.hawkbit.world().assign("device-1", lab.set, "soft", Some((later, 60)));
    lab.run(policy(), async |lab, _keep| {
        lab.ordered(1).await;
        lab.service.get().phase("downloaded");
        lab.until("the download", |lab| {
            lab.hawkbit.messages(action, "running").contains(&"now downloaded".into())
        })
        .await;
        // By hand, and it is on trial by the time the window opens.
        lab.service.get().under_way.as_mut().unwrap()["hold"] = "none".into();
        lab.service.get().phase("trial");
        lab.service.get().refuse_hold = Some(Error::NotNow("the new release is running".into()));
        let polls = lab.hawkbit.world().log.len();
        lab.hawkbit.world().actions.get_mut(&action).unwrap().open_now();
        lab.until("polls", |lab| lab.hawkbit.world().log.len() > polls + 6).await;
        assert_eq!(lab.hawkbit.status(action), "running");
        lab.service.get().end("committed", Value::Null, &[]);
        lab.ends(action, "finished").await;
    })
    .await;
}

#[tokio::test]
async fn a_restart_in_the_middle_finds_its_transaction_again() {
    let lab = lab().await;
    let action = lab.assign("forced");
    let state = lab.run(policy(), async |lab, _keep| lab.ordered(1).await).await;
    assert!(matches!(state, State::Working(_) | State::Starting(..)), "{state:?}");
    // The device restarts into the trial, and it is committed before this process comes back.
    lab.service.get().end("committed", Value::Null, &[]);
    lab.run(policy(), async |lab, _keep| lab.ends(action, "finished").await).await;
    assert_eq!(lab.service.get().orders.len(), 1);
}

#[tokio::test]
async fn a_report_is_repeated_until_the_server_has_it_even_after_a_restart() {
    let lab = lab().await;
    let action = lab.assign("forced");
    let faults = |count: usize| {
        let mut world = lab.hawkbit.world();
        world.faults.extend((0..count).map(|_| ("feedback".to_owned(), Fault::Status(503))));
    };
    let state = lab
        .run(policy(), async |lab, _keep| {
            lab.ordered(1).await;
            faults(1000);
            lab.service.get().end("committed", Value::Null, &[]);
            lab.until("attempts", |lab| lab.hawkbit.world().faults.len() < 995).await;
        })
        .await;
    assert!(matches!(state, State::Ended(_)), "{state:?}");
    lab.hawkbit.world().faults.clear();
    faults(2);
    lab.run(policy(), async |lab, _keep| lab.ends(action, "finished").await).await;
}

#[tokio::test]
async fn an_action_that_is_gone_is_let_go() {
    let lab = lab().await;
    let action = lab.assign("forced");
    lab.run(policy(), async |lab, _keep| {
        lab.ordered(1).await;
        for force in [false, true] {
            lab.hawkbit.world().cancel(action, force);
        }
        lab.service.get().end("committed", Value::Null, &[]);
        let next = lab.assign("forced");
        lab.ordered(2).await;
        lab.service.get().end("committed", Value::Null, &[]);
        lab.ends(next, "finished").await;
    })
    .await;
    assert_eq!(lab.hawkbit.status(action), "canceled");
}

#[tokio::test]
async fn a_busy_device_is_asked_again() {
    let lab = lab().await;
    lab.assign("forced");
    lab.service.get().refuse_install.push(Error::Busy("somebody installs by hand".into()));
    lab.run(policy(), async |lab, _keep| lab.ordered(1).await).await;
}

#[tokio::test]
async fn an_order_that_is_refused_is_a_failure() {
    let lab = lab().await;
    let action = lab.assign("forced");
    let refusal = || Error::Usage("no such option\nhint: none".into());
    lab.service.get().refuse_install.extend([refusal(), refusal()]);
    lab.run(policy(), async |lab, _keep| lab.ends(action, "error").await).await;
    assert_eq!(lab.hawkbit.messages(action, "error")[0], "no such option");
}

#[tokio::test]
async fn a_server_that_misbehaves_is_asked_again() {
    let huge = format!("{{\"_links\":{{}},\"x\":\"{}\"}}", "y".repeat(2 << 20)).into_bytes();
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(401),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Busy(429, 1),
        Fault::Body(b"<html>log in here</html>".to_vec()),
        Fault::Body(b"{\"_links\":{\"deploymentBase\":{\"href\":\"https://h/../..\"}}}".to_vec()),
        Fault::Body(b"{\"id\":\"1\",\"deployment\":7".to_vec()),
        Fault::Body(huge),
        Fault::Silence,
    ] {
        for place in ["GET ", "GET deploymentBase"] {
            let lab = lab().await;
            lab.assign("forced");
            lab.hawkbit.world().faults.push_back((place.into(), fault.clone()));
            let policy = Policy { poll_idle: Some(Duration::from_millis(1)), ..policy() };
            lab.run(policy, async |lab, _keep| lab.ordered(1).await).await;
            assert!(lab.hawkbit.world().faults.is_empty());
        }
    }
}

/// Runs the shim once with RAUC absent; returns its exit code.
async fn shim(lab: &Lab, more: &str) -> u8 {
    let config = lab.dir.path().join("shim.conf");
    let bundle = lab.dir.path().join("bundle.raucb");
    let text = format!(
        "[client]\nhawkbit_server = {}\nssl = false\ntarget_name = device-1\nauth_token = secret\n\
         bundle_download_location = {}\nlog_level = debug\nlow_speed_time = 5\n{more}\n[device]\na = b\n",
        lab.url.authority(),
        bundle.display()
    );
    rustiot_durable::atomic_write(Path::new(&config), text.as_bytes()).unwrap();
    let args = ["-r", "-c"].map(std::ffi::OsString::from).into_iter().chain([config.into()]);
    let args: Vec<_> = args.collect();
    tokio::task::spawn_blocking(move || rustiot_hawkbit::shim::main(args)).await.unwrap()
}

#[tokio::test]
async fn the_shim_refuses_what_does_not_match_its_checksums() {
    let lab = lab().await;
    lab.hawkbit.world().lie = true;
    let action = lab.assign("downloadonly");
    assert_eq!(shim(&lab, "").await, 1);
    assert_eq!(lab.hawkbit.status(action), "error");
    assert!(lab.hawkbit.messages(action, "error")[0].contains("Invalid checksum"));
    assert!(!lab.dir.path().join("bundle.raucb").exists());
}

#[tokio::test]
async fn the_shim_resumes_a_download_that_breaks_off_where_it_may() {
    for (resume, code, status) in [(false, 1, "error"), (true, 0, "downloaded")] {
        let lab = lab().await;
        lab.hawkbit.world().truncate = Some(1000);
        let action = lab.assign("downloadonly");
        assert_eq!(shim(&lab, &format!("resume_downloads = {resume}")).await, code);
        assert_eq!(lab.hawkbit.status(action), status);
        assert!(
            resume
                || lab.hawkbit.messages(action, "error")[0] == "Download failed: Transferred a partial file"
        );
    }
}

#[tokio::test]
async fn the_shim_says_what_it_cannot_do() {
    let lab = lab().await;
    assert_eq!(shim(&lab, "").await, 0, "nothing to do");
    lab.hawkbit.world().faults.push_back(("GET ".into(), Fault::Status(401)));
    assert_eq!(shim(&lab, "").await, 1);
    assert_eq!(shim(&lab, "timeout = 1").await, 4);
}
