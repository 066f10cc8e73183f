//! The machine's notices in the words that rauc-hawkbit-updater's test suite reads.

use crate::client::{Auth, Error};
use crate::ddi::{Feedback, Finished, Order};
use crate::driver::Voice;
use crate::machine::Notice;
use crate::shim::log::{Level, Log};
use crate::store::SaveError;

/// Prints notices.
#[derive(Clone, Debug)]
pub struct Words {
    log: Log,
    auth: &'static str,
}

impl Words {
    /// On this log; `auth` names the key that a refused login is about.
    #[must_use]
    pub fn new(log: Log, auth: &Auth) -> Self {
        let auth = match auth {
            Auth::TargetToken(_) => "auth_token is",
            Auth::GatewayToken(_) => "gateway_token is",
            Auth::Certificate => "ssl_key/ssl_cert are",
        };
        Self { log, auth }
    }
}

fn window(order: &Order) -> String {
    order.window.map(|window| format!(" (maintenance window is '{}')", window.as_str())).unwrap_or_default()
}

impl Voice for Words {
    fn polling(&mut self) {
        self.log.say(Level::Message, "Checking for new software...");
    }

    fn sending_config(&mut self) {
        self.log.say(Level::Debug, "Providing meta information to hawkbit server");
    }

    fn notice(&mut self, notice: &Notice) {
        let (level, text) = match notice {
            Notice::NothingNew => (Level::Message, "No new software.".into()),
            Notice::Found(o) => (
                Level::Message,
                format!(
                    "New software ready for download (Name: {}, Version: {}, Size: {} bytes, URL: {})",
                    o.name, o.version, o.size, o.url
                ),
            ),
            Notice::DownloadHeld(o) => (
                Level::Message,
                format!("hawkBit requested to skip download, not downloading yet{}.", window(o)),
            ),
            Notice::InstallHeld(o) => (
                Level::Message,
                format!("hawkBit requested to skip installation, not invoking RAUC yet{}.", window(o)),
            ),
            Notice::StillHeld(o) => {
                (Level::Debug, format!("Deployment {} is still waiting{}.", o.action, window(o)))
            }
            Notice::Continuing(o) => {
                (Level::Debug, format!("Continuing scheduled deployment {}{}.", o.action, window(o)))
            }
            Notice::AlreadyInProgress(a) => (Level::Debug, format!("Deployment {a} is already in progress.")),
            Notice::Queued(a) => (Level::Debug, format!("Deployment {a} waits for the one in progress.")),
            Notice::CancelReceived(a) => (Level::Message, format!("Received cancelation for action {a}")),
            Notice::CancelUnknown(a) => {
                (Level::Debug, format!("Received cancelation for unprocessed action {a}, acknowledging."))
            }
            Notice::CancelRejected(_, why) | Notice::Refused(_, why) | Notice::Busy(_, why) => {
                (Level::Warning, why.clone())
            }
            Notice::ConsentNeeded(a) => (Level::Message, format!("Action {a} waits for confirmation.")),
        };
        self.log.say(level, &text);
    }

    fn feedback(&mut self, feedback: &Feedback) {
        let level = if feedback.finished == Finished::Failure { Level::Warning } else { Level::Message };
        if let Some(line) = feedback.details.first() {
            self.log.say(level, line);
        }
        for line in feedback.details.iter().skip(1) {
            self.log.say(Level::Debug, line);
        }
    }

    fn poll_failed(&mut self, error: &Error) {
        let text = match error.status() {
            Some(401) => format!("Failed to authenticate. Check if {} correct?", self.auth),
            _ => format!("Scheduled check for new software failed: {}", error.line()),
        };
        self.log.say(Level::Warning, &text);
    }

    fn failed(&mut self, what: &str, error: &Error) {
        self.log.say(Level::Warning, &format!("Failed to exchange {what} with hawkBit: {}", error.line()));
    }

    fn not_remembered(&mut self, error: &SaveError) {
        self.log.say(Level::Warning, &error.to_string());
    }
}
