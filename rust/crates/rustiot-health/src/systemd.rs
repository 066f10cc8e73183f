//! The few questions to systemd's D-Bus API, over any connection: the bus, or a peer in tests.
//!
//! Only asks, except for [`Systemd::reboot`]. Called by [`crate::checks::units`] and [`crate::service`].

use futures_lite::StreamExt;
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Type};
use zbus::{Connection, MatchRule, MessageStream, message};

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// systemd at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Systemd {
    connection: Connection,
    /// None when the other end is systemd itself and there is no bus between.
    name: Option<&'static str>,
}

/// A unit as `ListUnits` shows it (org.freedesktop.systemd1(5)).
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, Type)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// `active`, `activating`, `failed`, …
    pub active: String,
    /// `running`, `exited`, `auto-restart`, …
    pub sub: String,
    following: String,
    /// Its object.
    pub path: OwnedObjectPath,
    job: u32,
    job_type: String,
    job_path: OwnedObjectPath,
}

/// The ends of one unit's jobs.
#[derive(Debug)]
pub struct Jobs(MessageStream);

impl Jobs {
    /// Returns when systemd is done with a job, well or not: a target is reached, or will not be. False when the
    /// connection is gone and nothing will be heard any more.
    pub async fn done(&mut self) -> bool {
        matches!(self.0.next().await, Some(Ok(_)))
    }
}

impl Systemd {
    /// On the system bus.
    #[must_use]
    pub fn on_bus(connection: Connection) -> Self {
        Self { connection, name: Some(NAME) }
    }

    /// Directly at the other end.
    #[must_use]
    #[cfg(test)]
    pub fn peer(connection: Connection) -> Self {
        Self { connection, name: None }
    }

    /// The named units, loaded if need be; one that does not exist comes back as `not-found`.
    ///
    /// # Errors
    /// D-Bus.
    pub async fn units(&self, names: &[String]) -> zbus::Result<Vec<Unit>> {
        self.manager("ListUnitsByNames", &(names,)).await
    }

    /// All units that failed.
    ///
    /// # Errors
    /// D-Bus.
    pub async fn failed_units(&self) -> zbus::Result<Vec<Unit>> {
        self.manager("ListUnitsFiltered", &(["failed"].as_slice(),)).await
    }

    /// All units that are on their way up and not there yet.
    ///
    /// # Errors
    /// D-Bus.
    pub async fn starting_units(&self) -> zbus::Result<Vec<Unit>> {
        self.manager("ListUnitsFiltered", &(["activating"].as_slice(),)).await
    }

    /// What a unit wants or requires.
    ///
    /// # Errors
    /// D-Bus.
    pub async fn dependencies(&self, unit: &Unit) -> zbus::Result<Vec<String>> {
        let interface = "org.freedesktop.systemd1.Unit";
        let mut names: Vec<String> = self.property(unit, interface, "Requires").await?;
        names.extend(self.property::<Vec<String>>(unit, interface, "Wants").await?);
        Ok(names)
    }

    /// Listens for the ends of `unit`'s jobs from now on: what ends before it is asked for is not lost.
    ///
    /// # Errors
    /// D-Bus.
    pub async fn jobs(&self, unit: &str) -> zbus::Result<Jobs> {
        let rule = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .interface(MANAGER)?
            .member("JobRemoved")?
            .arg(2, unit)?
            .build();
        let jobs = MessageStream::for_match_rule(rule, &self.connection, None).await?;
        // It sends signals only once it was asked to; asking twice is an error that changes nothing.
        let _: zbus::Result<()> = self.manager("Subscribe", &()).await;
        Ok(Jobs(jobs))
    }

    /// How often systemd has restarted a service by itself since it was started.
    ///
    /// # Errors
    /// D-Bus.
    pub async fn restarts(&self, unit: &Unit) -> zbus::Result<u32> {
        self.property(unit, "org.freedesktop.systemd1.Service", "NRestarts").await
    }

    /// An orderly reboot: all units are stopped first. (The manager's own `Reboot` stops none, see
    /// org.freedesktop.systemd1(5).)
    ///
    /// # Errors
    /// D-Bus.
    pub async fn reboot(&self) -> zbus::Result<()> {
        let job: OwnedObjectPath =
            self.manager("StartUnit", &("reboot.target", "replace-irreversibly")).await?;
        drop(job);
        Ok(())
    }

    async fn manager<B, R>(&self, method: &str, body: &B) -> zbus::Result<R>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
        R: for<'d> zbus::zvariant::DynamicDeserialize<'d>,
    {
        self.connection.call_method(self.name, PATH, Some(MANAGER), method, body).await?.body().deserialize()
    }

    async fn property<T>(&self, unit: &Unit, interface: &str, name: &str) -> zbus::Result<T>
    where
        T: TryFrom<OwnedValue>,
        T::Error: Into<zbus::Error>,
    {
        let properties = Some("org.freedesktop.DBus.Properties");
        let reply = self
            .connection
            .call_method(self.name, unit.path.as_ref(), properties, "Get", &(interface, name))
            .await?;
        let value: OwnedValue = reply.body().deserialize()?;
        T::try_from(value).map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeSystemd, serve};
    use std::sync::atomic::Ordering;
    use std::time::Duration;
    use tokio::time::timeout;
    use zbus::object_server::SignalEmitter;

    #[tokio::test]
    async fn a_reboot_stops_all_units_first() {
        let fake = FakeSystemd::new(&[], &[]);
        let reboots = fake.reboots.clone();
        let (_server, client) = serve(fake).await;
        Systemd::peer(client).reboot().await.unwrap();
        assert_eq!(reboots.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_end_of_a_units_job_is_heard_and_that_of_others_is_not() {
        let (server, client) = serve(FakeSystemd::new(&[], &[])).await;
        let systemd = Systemd::peer(client);
        let emitter = SignalEmitter::new(&server, PATH).unwrap();
        let say = async |unit: &str| {
            let job = OwnedObjectPath::try_from("/job").unwrap();
            FakeSystemd::job_removed(&emitter, 1, job, unit, "done").await.unwrap();
        };
        let mut jobs = systemd.jobs("multi-user.target").await.unwrap();
        say("multi-user.service").await;
        assert!(timeout(Duration::from_millis(200), jobs.done()).await.is_err());
        // While nobody waits, as between a look and the pause after it.
        say("multi-user.target").await;
        assert!(timeout(Duration::from_secs(30), jobs.done()).await.unwrap());
        drop(emitter);
        server.close().await.unwrap();
        assert!(!timeout(Duration::from_secs(30), jobs.done()).await.unwrap(), "the connection is gone");
    }
}
