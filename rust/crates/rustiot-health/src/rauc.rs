//! The two things that health wants of RAUC: that it answers, and that it marks the running slot good.
//!
//! Installs nothing. Called by [`crate::service`].

use zbus::Connection;
use zbus::zvariant::OwnedValue;

const NAME: &str = "de.pengutronix.rauc";
const INTERFACE: &str = "de.pengutronix.rauc.Installer";

/// RAUC at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Rauc {
    connection: Connection,
    name: Option<&'static str>,
}

impl Rauc {
    /// On the system bus, started by it when needed.
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

    /// The slot that RAUC believes to have booted.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn boot_slot(&self) -> zbus::Result<String> {
        let properties = Some("org.freedesktop.DBus.Properties");
        let reply =
            self.connection.call_method(self.name, "/", properties, "Get", &(INTERFACE, "BootSlot")).await?;
        let value: OwnedValue = reply.body().deserialize()?;
        Ok(String::try_from(value)?)
    }

    /// Marks the booted slot good: RAUC asks our boot backend, which commits if the policy allows it.
    ///
    /// # Errors
    /// It does not answer, or the backend refused.
    pub async fn mark_good(&self) -> zbus::Result<String> {
        let body = ("good", "booted");
        let reply = self.connection.call_method(self.name, "/", Some(INTERFACE), "Mark", &body).await?;
        let (_slot, message): (String, String) = reply.body().deserialize()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeRauc, pair};

    #[tokio::test]
    async fn marks_the_running_slot_and_passes_a_refusal_on() {
        let (_server, client) = pair("/", FakeRauc(Ok(()))).await;
        let rauc = Rauc::peer(client);
        assert_eq!(rauc.boot_slot().await.unwrap(), "A");
        assert_eq!(rauc.mark_good().await.unwrap(), "marked good");

        let (_server, client) = pair("/", FakeRauc(Err("refused: not soaked"))).await;
        let error = Rauc::peer(client).mark_good().await.unwrap_err().to_string();
        assert!(error.contains("refused: not soaked"), "{error}");
    }
}
