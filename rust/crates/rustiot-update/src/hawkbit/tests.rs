//! The whole of it: our hawkBit over HTTP, the driver, the bus, and the engine against the real boot policy. RAUC, the
//! disk and the machine are the engine's fakes; time is real.

use std::cell::RefCell;

use rustiot_boot::{Event, ResetReason, Slot};
use rustiot_config::scalar;
use rustiot_hawkbit_server::Running;
use zbus::Guid;
use zbus::connection::{Builder, socket::channel::Channel};

use super::*;
use crate::dbus::{PATH, Update, Update1Proxy};
use crate::engine::tests::{W, World, engine, world};
use crate::status::{By, Phase};

const TOKEN: &str = "d41d8cd98f00b204";

struct Lab {
    hawkbit: Running,
    device: W,
    settings: RefCell<Settings>,
    dir: tempfile::TempDir,
    set: u64,
}

/// A hawkBit that knows `device-1` by [`TOKEN`], and its address.
fn hawkbit() -> (Running, Url) {
    let hawkbit = Running::start().unwrap();
    let url = hawkbit.url().parse().unwrap();
    hawkbit.world().knows("device-1", TOKEN);
    (hawkbit, url)
}

fn secret_file(path: &Path, text: &str, mode: u32) {
    rustiot_durable::atomic_write(path, text.as_bytes()).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn settings(url: &Url, token: &Path) -> Settings {
    let mut settings = Settings::default();
    settings.update.hawkbit = HawkbitSettings {
        url: Some(url.as_str().parse().unwrap()),
        allow_http: true,
        controller: Some("device-1".parse().unwrap()),
        target_token_file: Some(token.to_str().unwrap().parse().unwrap()),
        poll: Some(scalar::Duration::secs(1)),
        progress_per_minute: 60,
        ..HawkbitSettings::default()
    };
    settings
}

async fn lab() -> Lab {
    let (hawkbit, url) = hawkbit();
    let set = hawkbit.world().add_bundle("2.0.0", &[7; 3000]);
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    secret_file(&token, &format!("{TOKEN}\n"), 0o600);
    let settings = RefCell::new(settings(&url, &token));
    Lab { hawkbit, device: world(), settings, dir, set }
}

/// A person at the device.
struct Person {
    status: watch::Receiver<Status>,
    bus: Update1Proxy<'static>,
}

impl Person {
    async fn sees(&mut self, what: &str, found: impl FnMut(&Status) -> bool) -> Status {
        let waited = tokio::time::timeout(Duration::from_secs(60), self.status.wait_for(found)).await;
        waited.unwrap_or_else(|_| panic!("waited in vain: {what}")).unwrap().clone()
    }
}

impl Lab {
    /// Runs the service as it does after each start, while `scenario` goes on.
    async fn run<T>(&self, scenario: impl AsyncFnOnce(&Lab, Person) -> T) -> T {
        let (commands, orders) = mpsc::channel(8);
        let (ask, asks) = mpsc::channel(4);
        let (sender, status) = watch::channel(Status::default());
        let guid = Guid::generate();
        let (a, b) = Channel::pair();
        let served = Builder::authenticated_socket(a, guid.clone()).unwrap().p2p();
        let served = served.serve_at(PATH, Update::new(commands, ask, status.clone())).unwrap();
        let _served = served.build().await.unwrap();
        let client = Builder::authenticated_socket(b, guid).unwrap().p2p().build().await.unwrap();
        let bus = Update1Proxy::builder(&client)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await
            .unwrap();
        let device = Device { id: "00ff".into(), board: "rustiot-x".into(), version: "1.0.0".into() };
        let task = Task {
            device,
            state: self.dir.path().join("hawkbit.json"),
            status: sender.clone(),
            every: Duration::from_millis(50),
        };
        tokio::select! {
            () = engine(&self.device, sender).run(orders) => panic!("the engine ended"),
            () = task.run(asks, || self.settings.borrow().clone(), async || Ok(client.clone())) => panic!("ended"),
            result = scenario(self, Person { status, bus }) => result,
        }
    }

    fn assign(&self, kind: &str, window: Option<(u64, u64)>) -> u64 {
        self.hawkbit.world().assign("device-1", self.set, kind, window)
    }

    async fn ends(&self, action: u64, status: &str) {
        for _ in 0..600 {
            if self.hawkbit.status(action) == status {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("waited in vain: {status}, it is {}", self.hawkbit.status(action));
    }

    /// From the order to the restart, and the next start of the device in the new slot.
    async fn installs_and_restarts(&self, action: u64) -> Status {
        let seen = self
            .run(async |lab, mut person| {
                let seen = person.sees("the restart", |s| s.phase == Phase::Rebooting).await;
                while lab.device.phase() != "armed" || lab.device.reboots() == 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                seen
            })
            .await;
        assert_eq!(self.hawkbit.status(action), "running", "nothing is over before the trial");
        self.device.boots(Slot::B, ResetReason::Clean);
        seen
    }

    /// Every file that the service has written, but for the token's own.
    fn written(&self) -> String {
        let files = [self.dir.path(), self.device.state()]
            .into_iter()
            .flat_map(|dir| std::fs::read_dir(dir).unwrap());
        let files = files.map(|file| file.unwrap().path()).filter(|path| !path.ends_with("token"));
        files.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect()
    }
}

#[tokio::test]
async fn hawkbit_hears_of_success_after_the_commit_and_the_token_is_nowhere() {
    let lab = lab().await;
    let action = lab.assign("forced", None);
    let seen = lab.installs_and_restarts(action).await;
    let transaction = seen.transaction.clone().unwrap();
    let way = transaction.current_way().unwrap();
    assert_eq!((transaction.by, way.len, way.sha256.is_some()), (By::Server, Some(3000), true));
    let now = seen.hawkbit.clone().unwrap();
    assert_eq!(
        (now.controller.as_str(), now.action, now.problem),
        ("device-1", Some(action.to_string()), None)
    );
    assert!(now.answered.is_some());
    let shown = serde_json::to_string(&seen).unwrap() + &lab.written();
    assert!(shown.contains("os.raucb") && !shown.contains(TOKEN), "the token has been written down");
    lab.run(async |lab, mut person| {
        person.sees("the trial", |s| s.phase == Phase::Trial).await;
        lab.device.is_healthy();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(lab.hawkbit.status(action), "running", "reported before the commit");
        World::apply(&lab.device, Event::Commit { boot_id: lab.device.boot_id() }).unwrap();
        lab.ends(action, "finished").await;
        assert_eq!(lab.hawkbit.messages(action, "finished"), ["Release 2.0.0 runs and is committed."]);
        let attributes = lab.hawkbit.world().targets["device-1"].attributes.clone();
        assert_eq!((attributes["id"].as_str(), attributes["version"].as_str()), ("00ff", "1.0.0"));
    })
    .await;
}

#[tokio::test]
async fn hawkbit_hears_why_the_old_release_came_back() {
    let lab = lab().await;
    let action = lab.assign("forced", None);
    lab.installs_and_restarts(action).await;
    let (boot_id, log) = (lab.device.boot_id(), vec!["last line".to_owned()]);
    World::apply(&lab.device, Event::GateFailed { boot_id, reason: "no sshd".into(), log }).unwrap();
    lab.device.boots(Slot::A, ResetReason::Clean);
    lab.run(async |lab, _| lab.ends(action, "error").await).await;
    let told = lab.hawkbit.messages(action, "error");
    assert!(told[0].contains("no sshd") && told.contains(&"last line".to_owned()), "{told:?}");
}

#[tokio::test]
async fn a_maintenance_window_holds_what_is_downloaded_and_lets_it_go() {
    let lab = lab().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() % 86_400;
    let action = lab.assign("forced", Some(((now + 43_200) % 86_400, 60)));
    lab.run(async |lab, mut person| {
        person.sees("the download", |s| s.phase == Phase::Downloaded).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!((lab.device.phase(), lab.hawkbit.status(action).as_str()), ("idle", "running"));
        lab.hawkbit.world().actions.get_mut(&action).unwrap().open_now();
        person.sees("the restart", |s| s.phase == Phase::Rebooting).await;
    })
    .await;
}

#[tokio::test]
async fn a_soft_deployment_waits_for_the_devices_window_and_a_cancellation_takes_it_back() {
    let lab = lab().await;
    // Never open: a window of the past, by the device's clock of 1970.
    lab.device.only_in("23:00-23:01");
    let action = lab.assign("soft", None);
    lab.run(async |lab, mut person| {
        let seen = person.sees("the order", |s| s.phase == Phase::Available && s.transaction.is_some()).await;
        assert_eq!(seen.transaction.unwrap().by, By::Policy);
        assert!(seen.message.contains("waits for a window"), "{}", seen.message);
        lab.hawkbit.world().cancel(action, false);
        lab.ends(action, "canceled").await;
        person.sees("the end", |s| s.transaction.is_none() && !s.history.is_empty()).await;
    })
    .await;
}

#[tokio::test]
async fn a_person_consents_where_the_owner_wants_it() {
    let lab = lab().await;
    lab.settings.borrow_mut().update.hawkbit.consent = HawkbitConsent::Ask;
    lab.hawkbit.world().set_config("user.confirmation.flow.enabled", true.into());
    lab.run(async |lab, mut person| {
        person.sees("an answer", |s| s.hawkbit.as_ref().is_some_and(|h| h.answered.is_some())).await;
        assert_eq!(person.bus.consent(true).await.unwrap_err().into_failure().kind, Kind::NotNow);
        let action = lab.assign("forced", None);
        person.sees("the question", |s| s.hawkbit.as_ref().is_some_and(|h| h.asks.is_some())).await;
        assert!(person.bus.hawkbit().await.unwrap().contains(&format!("\"asks\":\"{action}\"")));
        assert_eq!(lab.hawkbit.status(action), "wait_for_confirmation");
        person.bus.consent(true).await.unwrap();
        person.sees("the order", |s| s.transaction.is_some()).await;
    })
    .await;
}

#[tokio::test]
async fn a_token_that_others_can_read_is_refused_until_they_cannot_and_no_hawkbit_is_off() {
    let lab = lab().await;
    let token = lab.dir.path().join("token");
    secret_file(&token, TOKEN, 0o644);
    let problem = |s: &Status| s.hawkbit.as_ref().and_then(|h| h.problem.clone());
    lab.run(async |lab, mut person| {
        let seen = person.sees("the problem", |s| problem(s).is_some()).await;
        assert!(problem(&seen).unwrap().contains("others than root can read"), "{:?}", problem(&seen));
        assert_eq!(person.bus.consent(true).await.unwrap_err().into_failure().kind, Kind::NotNow);
        assert!(lab.hawkbit.world().log.is_empty(), "asked all the same");
        secret_file(&token, "wrong", 0o600);
        let refused = |s: &Status| problem(s).is_some_and(|text| text.contains("401"));
        person.sees("hawkBit's refusal", refused).await;
        secret_file(&token, TOKEN, 0o600);
        person.sees("an answer", |s| s.hawkbit.as_ref().is_some_and(|h| h.answered.is_some())).await;
        lab.settings.borrow_mut().update.hawkbit.url = None;
        person.sees("silence", |s| s.hawkbit.is_none()).await;
        assert_eq!(person.bus.hawkbit().await.unwrap(), "");
    })
    .await;
}

#[tokio::test]
async fn files_are_fetched_with_the_token_from_its_own_server_only() {
    let ((_ours, url), (_other, other)) = (hawkbit(), hawkbit());
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    secret_file(&token, TOKEN, 0o600);
    let settings = settings(&url, &token);
    let get = async |server: &Url| {
        let file = server.join("/DEFAULT/controller/v1/device-1").unwrap();
        let http = crate::web::client_of(&settings, std::slice::from_ref(&file)).unwrap();
        http.get(&file).send_any().await.unwrap().status().as_u16()
    };
    assert_eq!((get(&url).await, get(&other).await), (200, 401));
    std::fs::remove_file(&token).unwrap();
    assert!(crate::web::client_of(&settings, &[url]).is_err());
    assert_eq!(get(&other).await, 401, "what does not need the token is fetched without");
}

#[test]
fn what_cannot_be_used_is_said_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    let of = |change: &dyn Fn(&mut HawkbitSettings, FilePath)| {
        let mut hawkbit =
            HawkbitSettings { url: Some("https://h/x".parse().unwrap()), ..HawkbitSettings::default() };
        change(&mut hawkbit, file.to_str().unwrap().parse().unwrap());
        Access::of(&hawkbit).map_err(|failure| failure.to_string())
    };
    let target = |s: &mut HawkbitSettings, f: FilePath| s.target_token_file = Some(f);
    let gateway = |s: &mut HawkbitSettings, f: FilePath| s.gateway_token_file = Some(f);
    let certificate = |s: &mut HawkbitSettings, f: FilePath| {
        (s.certificate, s.key) = (Some(f.clone()), Some(f));
    };
    let name = file.to_str().unwrap();
    for change in [&target as &dyn Fn(&mut HawkbitSettings, FilePath), &gateway, &certificate] {
        assert!(of(change).err().unwrap().contains(name), "it is not there");
    }
    assert!(of(&|_, _| {}).err().unwrap().contains("neither a token nor a certificate"));
    for text in ["", " \n", "two words", "ü", "two\nlines"] {
        secret_file(&file, text, 0o600);
        let error = of(&target).err().unwrap();
        assert!(error.contains("does not hold a token") && (text.trim().is_empty() || !error.contains(text)));
    }
    secret_file(&file, "abc\r\n", 0o600);
    assert!(of(&target).is_ok_and(|access| access.auth == Auth::TargetToken("abc".into())));
    assert!(of(&gateway).is_ok_and(|access| access.auth == Auth::GatewayToken("abc".into())));
    let before = of(&certificate).unwrap();
    secret_file(&file, "another key", 0o600);
    assert!(of(&certificate).is_ok_and(|access| access != before && access.identity == before.identity));
    secret_file(&file, "abc", 0o640);
    assert!(of(&certificate).is_err());
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let waits = |s: &mut HawkbitSettings, _: FilePath| s.ca = Some(pipe.to_str().unwrap().parse().unwrap());
    assert!(of(&waits).is_err(), "a pipe would be waited for");
}
