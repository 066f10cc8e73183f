//! The client against a fake RAUC and a fake systemd on the other end of an in-memory connection: no bus, no root.
//! The fake answers in the shapes of RAUC 1.13 (`src/service.c`, `src/manifest.c`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use zbus::connection::{Builder, socket::channel::Channel};
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{OwnedValue, Value};
use zbus::{Guid, interface};

use super::*;

const HASH: &str = "abababababababababababababababababababababababababababababababab";

#[derive(Default)]
struct State {
    operation: String,
    last_error: String,
    progress: (i32, String, i32),
    calls: Vec<String>,
    /// Refuses `require-manifest-hash`, as RAUC before 1.14 does.
    old: bool,
    inspect_error: Option<String>,
    with_hook: bool,
    slots: Vec<SlotRow>,
    mark_error: Option<String>,
    /// `ActiveState` answers, first one first; the last one stays.
    active: Vec<&'static str>,
    unit_missing: bool,
}

type Shared = Arc<Mutex<State>>;
/// Slot, status, bundle hash.
type SlotRow = (&'static str, &'static str, &'static str);

#[derive(Clone)]
struct FakeRauc(Shared);

/// RAUC answers with `G_IO_ERROR_FAILED_HANDLED`, which GDBus spells like this.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark")]
enum GError {
    #[zbus(error)]
    Bus(zbus::Error),
    Code30(String),
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum SystemdError {
    #[zbus(error)]
    Bus(zbus::Error),
    NoSuchUnit(String),
}

fn twice(value: impl Into<Value<'static>>) -> OwnedValue {
    // g_variant_dict_insert(…, "v", …) puts a variant into the dictionary's own variant.
    Value::Value(Box::new(value.into())).try_to_owned().unwrap()
}

fn once(value: impl Into<Value<'static>>) -> OwnedValue {
    value.into().try_to_owned().unwrap()
}

#[interface(name = "de.pengutronix.rauc.Installer")]
impl FakeRauc {
    fn inspect_bundle(
        &self,
        source: &str,
        args: HashMap<String, OwnedValue>,
    ) -> Result<HashMap<String, OwnedValue>, GError> {
        let mut state = self.0.lock().unwrap();
        state.calls.push(format!("inspect {source} {}", args.len()));
        if let Some(text) = &state.inspect_error {
            return Err(GError::Code30(text.clone()));
        }
        let dict = |pairs: Vec<(&'static str, Value<'static>)>| HashMap::<&str, Value>::from_iter(pairs);
        let image = |class: &'static str, size: u64| {
            dict(vec![
                ("slot-class", class.into()),
                ("size", size.into()),
                ("hooks", Vec::<String>::new().into()),
            ])
        };
        let mut info = HashMap::from([
            ("manifest-hash".to_owned(), once(HASH)),
            (
                "update".to_owned(),
                twice(dict(vec![("compatible", "rustiot-x".into()), ("version", "1.2.3".into())])),
            ),
            (
                "bundle".to_owned(),
                twice(dict(vec![("format", "verity".into()), ("verity-size", 4096_u64.into())])),
            ),
            ("images".to_owned(), twice(vec![image("root", 7), image("boot", 5)])),
            ("meta".to_owned(), twice(HashMap::<String, HashMap<String, String>>::new())),
        ]);
        if state.with_hook {
            let hooks = dict(vec![
                ("filename", "hook.sh".into()),
                ("hooks", Value::Value(Box::new(vec!["install-check".to_owned()].into()))),
            ]);
            info.insert("hooks".into(), twice(hooks));
        }
        Ok(info)
    }

    fn install_bundle(&self, source: &str, args: HashMap<String, OwnedValue>) -> Result<(), GError> {
        let mut state = self.0.lock().unwrap();
        let mut keys: Vec<_> = args.keys().cloned().collect();
        keys.sort();
        state.calls.push(format!("install {source} {}", keys.join(",")));
        if state.operation == "installing" {
            return Err(GError::Code30("Already processing a different method".into()));
        }
        if state.old && args.contains_key("require-manifest-hash") {
            return Err(GError::Code30("Unsupported key: require-manifest-hash".into()));
        }
        state.operation = "installing".into();
        Ok(())
    }

    #[zbus(out_args("slot_name", "message"))]
    fn mark(&self, state: &str, slot: &str) -> Result<(String, String), GError> {
        let mut shared = self.0.lock().unwrap();
        shared.calls.push(format!("mark {state} {slot}"));
        match &shared.mark_error {
            Some(text) => Err(GError::Code30(text.clone())),
            None => Ok(("root.1".into(), "activated slot root.1".into())),
        }
    }

    fn get_slot_status(&self) -> Vec<(String, HashMap<String, OwnedValue>)> {
        let state = self.0.lock().unwrap();
        let slot = |(name, status, hash): &SlotRow| {
            let (class, _) = name.split_once('.').unwrap();
            let mut info = HashMap::from([
                ("class".to_owned(), once(class)),
                ("device".to_owned(), once("/dev/x")),
                ("type".to_owned(), once("raw")),
                ("state".to_owned(), once("inactive")),
                ("description".to_owned(), once("")),
                ("bundle.hash".to_owned(), once(*hash)),
            ]);
            if !status.is_empty() {
                info.insert("status".into(), once(*status));
            }
            ((*name).to_owned(), info)
        };
        state.slots.iter().map(slot).collect()
    }

    #[zbus(signal)]
    async fn completed(emitter: &SignalEmitter<'_>, result: i32) -> zbus::Result<()>;

    #[zbus(property)]
    fn operation(&self) -> String {
        self.0.lock().unwrap().operation.clone()
    }

    #[zbus(property)]
    fn last_error(&self) -> String {
        self.0.lock().unwrap().last_error.clone()
    }

    #[zbus(property)]
    fn progress(&self) -> (i32, String, i32) {
        self.0.lock().unwrap().progress.clone()
    }
}

#[derive(Clone)]
struct FakeSystemd(Shared);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl FakeSystemd {
    fn stop_unit(&self, name: &str, mode: &str) -> OwnedObjectPath {
        self.0.lock().unwrap().calls.push(format!("stop {name} {mode}"));
        OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/1").unwrap()
    }

    fn start_unit(&self, name: &str, mode: &str) -> OwnedObjectPath {
        self.0.lock().unwrap().calls.push(format!("start {name} {mode}"));
        OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/2").unwrap()
    }

    fn get_unit(&self, _name: &str) -> Result<OwnedObjectPath, SystemdError> {
        if self.0.lock().unwrap().unit_missing {
            return Err(SystemdError::NoSuchUnit("Unit rauc.service not loaded.".into()));
        }
        Ok(OwnedObjectPath::try_from("/org/freedesktop/systemd1/unit/rauc").unwrap())
    }
}

#[derive(Clone)]
struct FakeUnit(Shared);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl FakeUnit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        let mut state = self.0.lock().unwrap();
        state.calls.push("poll".into());
        if state.active.len() > 1 { state.active.remove(0) } else { state.active[0] }.to_owned()
    }
}

struct Peer {
    rauc: Rauc,
    state: Shared,
    server: Connection,
    _client: Connection,
}

async fn peer(state: State) -> Peer {
    let state = Arc::new(Mutex::new(State { operation: "idle".into(), ..state }));
    let guid = Guid::generate();
    let (a, b) = Channel::pair();
    let server = Builder::authenticated_socket(a, guid.clone())
        .unwrap()
        .p2p()
        .unique_name(":1.1")
        .unwrap()
        .serve_at("/", FakeRauc(Arc::clone(&state)))
        .unwrap()
        .serve_at("/org/freedesktop/systemd1", FakeSystemd(Arc::clone(&state)))
        .unwrap()
        .serve_at("/org/freedesktop/systemd1/unit/rauc", FakeUnit(Arc::clone(&state)))
        .unwrap()
        .build()
        .await
        .unwrap();
    let client = Builder::authenticated_socket(b, guid).unwrap().p2p().build().await.unwrap();
    // Unique names, since there is no bus to resolve well-known ones.
    let rauc = Rauc::at(&client, ":1.1", ":1.1").await.unwrap();
    Peer { rauc, state, server, _client: client }
}

impl Peer {
    fn calls(&self) -> Vec<String> {
        self.state.lock().unwrap().calls.clone()
    }

    async fn fake(&self) -> zbus::object_server::InterfaceRef<FakeRauc> {
        self.server.object_server().interface("/").await.unwrap()
    }

    /// RAUC reports one step, as its progress callback does.
    async fn steps(&self, percent: i32, step: &str) {
        self.state.lock().unwrap().progress = (percent, step.into(), 1);
        let fake = self.fake().await;
        fake.get().await.progress_changed(fake.signal_emitter()).await.unwrap();
    }

    /// RAUC ends the install.
    async fn ends(&self, code: i32, error: &str) {
        {
            let mut state = self.state.lock().unwrap();
            (state.last_error, state.operation) = (error.into(), "idle".into());
        }
        FakeRauc::completed(self.fake().await.signal_emitter(), code).await.unwrap();
    }

    async fn until_installing(&self) {
        while self.state.lock().unwrap().operation != "installing" {
            tokio::task::yield_now().await;
        }
    }
}

fn order() -> Order {
    Order { source: "http://h/x".into(), id: "id".into(), manifest_hash: HASH.into() }
}

#[tokio::test]
async fn a_manifest_is_read_as_rauc_sends_it() {
    let p = peer(State::default()).await;
    let manifest = p.rauc.inspect("/x").await.unwrap();
    assert_eq!(
        (manifest.hash.as_str(), manifest.compatible.as_str(), manifest.format.as_str()),
        (HASH, "rustiot-x", "verity")
    );
    assert_eq!(
        (manifest.version.as_deref(), manifest.total(), manifest.has_code),
        (Some("1.2.3"), 12, false)
    );
    assert_eq!(p.calls(), ["inspect /x 0"]);
}

#[tokio::test]
async fn a_bundle_with_a_hook_never_passes_as_one_without() {
    let p = peer(State { with_hook: true, ..State::default() }).await;
    match p.rauc.inspect("/x").await {
        Ok(manifest) => assert!(manifest.has_code),
        Err(failure) => assert_eq!(failure.kind, Kind::BadManifest, "{failure:?}"),
    }
}

#[tokio::test]
async fn raucs_refusal_becomes_a_kind() {
    let text = "signature verification failed: Verify error: self-signed certificate in certificate chain";
    let p = peer(State { inspect_error: Some(text.into()), ..State::default() }).await;
    let failure = p.rauc.inspect("/x").await.unwrap_err();
    assert_eq!(failure.kind, Kind::Signature);
    assert_eq!(failure.chain.last().unwrap(), "self-signed certificate in certificate chain");
}

#[tokio::test]
async fn an_install_reports_its_steps_and_its_end() {
    for old in [true, false] {
        let p = peer(State { old, ..State::default() }).await;
        let seen = Mutex::new(Vec::new());
        let order = order();
        let install =
            p.rauc.install(&order, |percent, step| seen.lock().unwrap().push((percent, step.to_owned())));
        let script = async {
            p.until_installing().await;
            p.steps(40, "Copying image to root.1").await;
            while !seen.lock().unwrap().iter().any(|(percent, _)| *percent == 40) {
                tokio::task::yield_now().await;
            }
            p.ends(0, "").await;
        };
        let (result, ()) = tokio::join!(install, script);
        result.unwrap();
        let all = "install http://h/x require-manifest-hash,transaction-id".to_owned();
        let without = "install http://h/x transaction-id".to_owned();
        assert_eq!(p.calls(), if old { vec![all, without] } else { vec![all] });
    }
}

#[tokio::test]
async fn a_failed_install_carries_raucs_last_error() {
    let p = peer(State::default()).await;
    let order = order();
    let install = p.rauc.install(&order, |_, _| ());
    let script = async {
        p.until_installing().await;
        p.ends(1, "Installation error: Failed updating slot root.1: Failed to copy data: Input/output error")
            .await;
    };
    let (result, ()) = tokio::join!(install, script);
    assert_eq!(result.unwrap_err().kind, Kind::ReadFailed);
}

#[tokio::test]
async fn a_rauc_that_dies_in_the_middle_is_noticed() {
    let p = peer(State::default()).await;
    let order = order();
    let install = p.rauc.install(&order, |_, _| ());
    let script = async {
        p.until_installing().await;
        // Its successor knows nothing of an install.
        p.state.lock().unwrap().operation = "idle".into();
    };
    let (result, ()) = tokio::join!(install, script);
    assert_eq!(result.unwrap_err().kind, Kind::Interrupted);
}

#[tokio::test]
async fn a_busy_rauc_is_busy() {
    let p = peer(State::default()).await;
    p.state.lock().unwrap().operation = "installing".into();
    assert!(p.rauc.busy().await.unwrap());
    assert_eq!(p.rauc.install(&order(), |_, _| ()).await.unwrap_err().kind, Kind::Busy);
}

#[tokio::test]
async fn a_slot_is_complete_when_both_partitions_are_of_the_same_bundle() {
    let table: &[(&[SlotRow], Option<&str>)] = &[
        (&[("root.1", "ok", HASH), ("boot.1", "ok", HASH)], Some(HASH)),
        (&[("root.1", "ok", HASH), ("boot.1", "pending", HASH)], None),
        (&[("root.1", "ok", HASH), ("boot.1", "failed", HASH)], None),
        (&[("root.1", "ok", HASH), ("boot.1", "ok", "cdcd")], None),
        (&[("root.1", "", HASH), ("boot.1", "", HASH)], None),
        (&[("root.0", "ok", HASH), ("boot.0", "ok", HASH)], None),
        (&[], None),
    ];
    for (slots, expected) in table {
        let p = peer(State { slots: slots.to_vec(), ..State::default() }).await;
        assert_eq!(p.rauc.written(Slot::B).await.unwrap().as_deref(), *expected);
    }
}

#[tokio::test]
async fn activation_marks_the_other_slot() {
    let p = peer(State::default()).await;
    p.rauc.activate().await.unwrap();
    assert_eq!(p.calls(), ["mark active other"]);
    let p = peer(State { mark_error: Some("failed to activate slot root.1: x".into()), ..State::default() })
        .await;
    let failure = p.rauc.activate().await.unwrap_err();
    assert_eq!(failure.message, "RAUC could not activate the new release");
    assert_eq!(failure.chain, ["failed to activate slot root.1", "x"]);
}

#[tokio::test]
async fn stopping_rauc_waits_until_it_is_gone() {
    let p = peer(State { active: vec!["deactivating", "inactive"], ..State::default() }).await;
    p.rauc.abort().await.unwrap();
    assert_eq!(p.calls(), ["stop rauc.service replace", "poll", "poll"]);
    let p = peer(State { unit_missing: true, ..State::default() }).await;
    p.rauc.abort().await.unwrap();
    assert!(p.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_rauc_that_does_not_stop_is_a_failure() {
    let p = peer(State { active: vec!["deactivating"], ..State::default() }).await;
    assert_eq!(p.rauc.abort().await.unwrap_err().message, "RAUC does not stop");
}

#[tokio::test]
async fn a_restart_is_systemds() {
    let p = peer(State::default()).await;
    p.rauc.reboot().await.unwrap();
    assert_eq!(p.calls(), ["start reboot.target replace-irreversibly"]);
}

#[tokio::test]
async fn a_peer_that_is_gone_is_a_failure_and_no_panic() {
    let p = peer(State::default()).await;
    p.server.clone().close().await.unwrap();
    assert!(p.rauc.busy().await.is_err());
    assert!(p.rauc.inspect("/x").await.is_err());
    assert!(p.rauc.abort().await.is_err(), "RAUC may still be writing");
}
