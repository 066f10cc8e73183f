//! What the engine says to systemd: that it serves, and that it still turns.
//!
//! Never fails: without systemd nobody listens. Called by [`crate::run`].

use sd_notify::{NotifyState, notify, watchdog_enabled};

/// That it serves.
pub fn ready() {
    let _ = notify(&[NotifyState::Ready]);
}

/// Beats for as long as tasks are run here; a scheduler that hangs beats no more, and systemd starts the engine anew.
/// Three times as often as the unit's `WatchdogSec=` asks, so that one late beat is no death.
pub async fn beat() {
    let Some(limit) = watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return std::future::pending().await;
    };
    loop {
        let _ = notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(limit / 3).await;
    }
}
