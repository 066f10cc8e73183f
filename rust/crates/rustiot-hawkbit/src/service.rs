//! hawkBit as the product's source of releases: plain settings in, a driver out.
//!
//! The update service reads `[update.hawkbit]` of `rustiot.toml` and fills [`Settings`]. Only wiring.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rustiot_http::Http;
use zbus::Connection;

use crate::client::{Client, Server};
use crate::driver::{Driver, Voice};
use crate::machine::{Consent, Policy};
use crate::store::Store;
use crate::update1::{Soft, Update1};

/// Progress messages of one action that a minute may bring, at most (`progress_per_minute`).
const MOST_PER_MINUTE: u32 = 60;

/// What the owner has chosen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whom to ask, and as whom.
    pub server: Server,
    /// Who consents where hawkBit wants confirmation.
    pub consent: Consent,
    /// What a soft deployment leaves to a person.
    pub soft: Soft,
    /// The owner's time between polls; hawkBit's when there is none.
    pub poll: Option<Duration>,
    /// Progress messages per minute, 1 to 60.
    pub progress_per_minute: u32,
    /// What hawkBit is told about this device.
    pub attributes: BTreeMap<String, String>,
    /// Where the state is kept.
    pub state: PathBuf,
}

impl Settings {
    /// The machine's part of it.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let rate = self.progress_per_minute.clamp(1, MOST_PER_MINUTE);
        Policy {
            consent: self.consent,
            progress_every: Duration::from_secs(60).checked_div(rate).unwrap_or(Duration::from_secs(60)),
            download_alone: true,
            poll_working: Duration::from_secs(30),
            poll_idle: self.poll,
            retry: Duration::from_secs(60),
        }
    }
}

/// A driver that gives its orders to the update service on `connection`.
///
/// # Errors
/// When the bus cannot be used.
pub async fn driver<V: Voice>(
    settings: Settings,
    http: Http,
    connection: &Connection,
    voice: V,
) -> zbus::Result<Driver<Update1, V>> {
    let policy = settings.policy();
    let client = Client::new(http, settings.server);
    let installer = Update1::new(connection, client.clone(), settings.soft).await?;
    let store = Store::File(settings.state);
    Ok(Driver::new(client, installer, voice, policy, settings.attributes, store).with_backoff())
}
