//! What the engine says to systemd (sd_notify(3)): that it serves, and that it still turns.
//!
//! Never fails: without systemd nobody listens. Called by [`crate::run`].

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Sends one message.
pub fn say(text: &str) {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    if let (Ok(socket), Ok(address)) = (UnixDatagram::unbound(), address) {
        let _ = socket.send_to_addr(text.as_bytes(), &address);
    }
}

/// How often the unit's `WatchdogSec=` wants to hear: a third of it, so that one late beat is no death.
pub fn interval(microseconds: Option<&str>) -> Option<Duration> {
    let microseconds: u64 = microseconds?.parse().ok()?;
    (microseconds > 0).then(|| Duration::from_micros(microseconds.div_ceil(3)))
}

/// Beats for as long as tasks are run here; a scheduler that hangs beats no more, and systemd starts the engine anew.
pub async fn beat() {
    let Some(every) = interval(std::env::var("WATCHDOG_USEC").ok().as_deref()) else {
        return std::future::pending().await;
    };
    loop {
        say("WATCHDOG=1");
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_three_times_as_often_as_systemd_asks() {
        assert_eq!(interval(Some("60000000")), Some(Duration::from_secs(20)));
        assert_eq!(interval(Some("0")), None);
        assert_eq!(interval(Some("soon")), None);
        assert_eq!(interval(None), None);
    }
}
