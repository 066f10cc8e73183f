//! What the product's service writes to the journal.
//!
//! One line each; progress is left to the update service, which writes its own. Used by the daemon.

use crate::client::Error;
use crate::ddi::{Feedback, Finished};
use crate::driver::Voice;
use crate::machine::Notice;
use crate::store::SaveError;

/// Lines on standard error, which systemd takes into the journal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Journal {
    /// The last poll failed, and that has been said.
    failing: bool,
}

impl Voice for Journal {
    fn notice(&mut self, notice: &Notice) {
        self.failing = false;
        if let Some(line) = line(notice) {
            eprintln!("{line}");
        }
    }

    fn feedback(&mut self, feedback: &Feedback) {
        let word = match feedback.finished {
            Finished::Success => "success",
            Finished::Failure => "failure",
            Finished::None => return,
        };
        eprintln!("reporting {word} to hawkBit: {}", feedback.details.first().map_or("", String::as_str));
    }

    fn poll_failed(&mut self, error: &Error) {
        // A server that is away for a night must not fill the journal.
        if !std::mem::replace(&mut self.failing, true) {
            eprintln!("{}", error.line());
            if error.status() == Some(401) {
                eprintln!("hint: is the token right, and its kind enabled in hawkBit's settings?");
            }
        }
    }

    fn failed(&mut self, what: &str, error: &Error) {
        eprintln!("{what}: {}", error.line());
    }

    fn not_remembered(&mut self, error: &SaveError) {
        eprintln!("{error}; a restart in the middle of an update may delay its report");
    }
}

/// A notice as a line; none for what happens with every poll.
fn line(notice: &Notice) -> Option<String> {
    Some(match notice {
        Notice::NothingNew | Notice::StillHeld(_) | Notice::AlreadyInProgress(_) => return None,
        Notice::Found(order) => {
            format!("hawkBit action {}: {} {}, {} bytes", order.action, order.name, order.version, order.size)
        }
        Notice::DownloadHeld(order) => format!("hawkBit action {}: not to be downloaded yet", order.action),
        Notice::InstallHeld(order) => format!("hawkBit action {}: not to be installed yet", order.action),
        Notice::Continuing(order) => format!("hawkBit action {}: may be installed now", order.action),
        Notice::Queued(action) => format!("hawkBit action {action} waits for the one under way"),
        Notice::CancelReceived(action) => format!("hawkBit wants action {action} cancelled"),
        Notice::CancelUnknown(action) => format!("hawkBit action {action} was never begun here"),
        Notice::CancelRejected(action, why) => format!("hawkBit action {action}: {why}"),
        Notice::ConsentNeeded(action) => format!("hawkBit action {action} waits for consent"),
        Notice::Refused(action, why) => format!("hawkBit action {action} refused: {why}"),
        Notice::Busy(action, why) => format!("hawkBit action {action} waits: {why}"),
    })
}
