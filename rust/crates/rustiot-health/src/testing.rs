//! systemd and RAUC on the other end of a socket pair: no bus, no root.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::UnixStream;
use zbus::connection::Builder;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::zvariant::{ObjectPath, OwnedObjectPath};
use zbus::{Connection, fdo, interface};

type Row = (&'static str, &'static str, &'static str, &'static str);
type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// A systemd with a fixed table of units.
pub struct FakeSystemd {
    units: Vec<Row>,
    wants: Vec<String>,
    restarts: Arc<AtomicU32>,
    /// Orderly reboots that were ordered.
    pub reboots: Arc<AtomicU32>,
}

struct FakeUnit(Vec<String>);
struct FakeService(Arc<AtomicU32>);

impl FakeSystemd {
    pub fn new(units: &[Row], wants: &[&str]) -> Self {
        Self {
            units: units.to_vec(),
            wants: wants.iter().map(|s| (*s).to_owned()).collect(),
            restarts: Arc::default(),
            reboots: Arc::default(),
        }
    }

    pub fn restarts(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.restarts)
    }
}

fn path(text: &str) -> OwnedObjectPath {
    ObjectPath::try_from(text.to_owned()).unwrap().into()
}

fn listed(name: &str, load: &str, active: &str, sub: &str) -> Listed {
    let (s, none) = (str::to_owned, path("/"));
    (s(name), s("x"), s(load), s(active), s(sub), s(""), path("/unit"), 0, s(""), none)
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl FakeSystemd {
    fn list_units_by_names(&self, names: Vec<String>) -> Vec<Listed> {
        let find = |name: &String| match self.units.iter().find(|u| u.0 == name) {
            Some((name, load, active, sub)) => listed(name, load, active, sub),
            None => listed(name, "not-found", "inactive", "dead"),
        };
        names.iter().map(find).collect()
    }

    fn list_units_filtered(&self, states: Vec<String>) -> Vec<Listed> {
        let wanted = |u: &&Row| states.iter().any(|s| s == u.2);
        self.units.iter().filter(wanted).map(|u| listed(u.0, u.1, u.2, u.3)).collect()
    }

    fn subscribe(&self) {}

    /// A job is done.
    #[zbus(signal)]
    pub async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;

    fn start_unit(&self, name: String, mode: String) -> OwnedObjectPath {
        if (name.as_str(), mode.as_str()) == ("reboot.target", "replace-irreversibly") {
            self.reboots.fetch_add(1, Ordering::Relaxed);
        }
        path("/org/freedesktop/systemd1/job/1")
    }
}

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl FakeUnit {
    #[zbus(property)]
    fn wants(&self) -> Vec<String> {
        self.0.clone()
    }

    #[zbus(property)]
    fn requires(&self) -> Vec<String> {
        Vec::new()
    }
}

#[interface(name = "org.freedesktop.systemd1.Service")]
impl FakeService {
    #[zbus(property, name = "NRestarts")]
    fn restarts(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A RAUC that marks, or refuses to.
pub struct FakeRauc(pub Result<(), &'static str>);

#[interface(name = "de.pengutronix.rauc.Installer")]
impl FakeRauc {
    fn mark(&self, state: String, slot: String) -> fdo::Result<(String, String)> {
        match self.0 {
            Ok(()) => Ok((slot, format!("marked {state}"))),
            Err(why) => Err(fdo::Error::Failed(why.to_owned())),
        }
    }

    #[zbus(property)]
    fn boot_slot(&self) -> String {
        "A".into()
    }
}

/// Both ends of a connection with systemd at the first one.
pub async fn serve(systemd: FakeSystemd) -> (Connection, Connection) {
    let (unit, service) = (FakeUnit(systemd.wants.clone()), FakeService(systemd.restarts()));
    let (server, client) = pair("/org/freedesktop/systemd1", systemd).await;
    server.object_server().at("/unit", unit).await.unwrap();
    server.object_server().at("/unit", service).await.unwrap();
    (server, client)
}

/// Both ends of a connection with `interface` at `path` of the first one.
pub async fn pair(path: &str, interface: impl Interface) -> (Connection, Connection) {
    let (a, b) = UnixStream::pair().unwrap();
    let guid = zbus::Guid::generate();
    let server =
        Builder::unix_stream(a).server(guid).unwrap().p2p().serve_at(path, interface).unwrap().build();
    let client = Builder::unix_stream(b).p2p().build();
    let (server, client) = tokio::join!(server, client);
    (server.unwrap(), client.unwrap())
}
