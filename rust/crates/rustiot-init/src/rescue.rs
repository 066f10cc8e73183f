//! Rescue without a root: the device stays reachable. DHCP on every ethernet interface, one read-only page on port 80,
//! a line on the console every minute, the watchdog fed by this very loop, and one more chance for the slots after a
//! growing pause.
//!
//! Never changes anything on the device, never ends but by a reboot. Called by `main`.
//! Contract: `docs/contracts/init.md`.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use nix::libc::O_NONBLOCK;
use rustiot_boot::{Effect, Event, Record};
use serde::Serialize;

use crate::{
    boot::{Facts, Policy},
    dhcp::{Client, Lease},
    files, http, pstore,
    sys::Sys,
    watchdog::Watchdog,
};

/// Between two looks at sockets and clocks, in milliseconds.
const TICK_MS: u64 = 250;
/// Between two looks for new interfaces (a USB adapter may come late), in milliseconds.
const SCAN_MS: u64 = 5_000;
/// Between two console lines, in milliseconds.
const SAY_MS: u64 = 60_000;
/// Before the slots get another chance when no policy says otherwise, in seconds.
const PAUSE_S: u64 = 3600;
/// How long a client may take for each piece of its request, and for the answer; and how many pieces: together far less
/// than any watchdog's timeout, for nobody else feeds it.
const CLIENT: Duration = Duration::from_millis(500);
const PIECES: usize = 4;
/// Lines of the kernel log on the page, and bytes of each.
const LOG_LINES: usize = 60;
const LOG_BYTES: usize = 240;

/// What rescue asks of the network.
pub trait Net {
    /// Switches the interface on and makes it ready for DHCP.
    ///
    /// # Errors
    /// The kernel's.
    fn open(&mut self, interface: &str) -> io::Result<()>;

    /// Broadcasts a packet to port 67. A loss is repeated by the client anyway.
    fn send(&mut self, interface: &str, packet: &[u8]);

    /// A packet to port 68, if one has arrived.
    fn receive(&mut self, interface: &str) -> Option<Vec<u8>>;

    /// Gives the interface its address and route.
    ///
    /// # Errors
    /// The kernel's.
    fn apply(&mut self, interface: &str, lease: &Lease) -> io::Result<()>;
}

/// The interfaces that we asked addresses for.
#[derive(Debug, Default)]
pub struct Links {
    links: Vec<(String, Client)>,
    broken: Vec<String>,
}

impl Links {
    /// Takes in the interfaces that are new. Returns lines for the console.
    pub fn add(&mut self, net: &mut dyn Net, found: Vec<(String, [u8; 6])>, xid: u32) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, mac) in found {
            if self.links.iter().any(|(known, _)| *known == name) {
                continue;
            }
            match net.open(&name) {
                Ok(()) => {
                    self.broken.retain(|broken| *broken != name);
                    self.links.push((name, Client::new(mac, xid)));
                }
                // tried again at the next look, said once
                Err(error) if !self.broken.contains(&name) => {
                    lines.push(format!("rescue interface={name} error=\"{error}\""));
                    self.broken.push(name);
                }
                Err(_) => {}
            }
        }
        lines
    }

    /// Sends what is due and takes what has come. Returns lines for the console.
    pub fn tick(&mut self, net: &mut dyn Net, now: u64) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, client) in &mut self.links {
            while let Some(packet) = net.receive(name) {
                let before = client.address();
                let Some(lease) = client.receive(now, &packet) else { continue };
                match net.apply(name, &lease) {
                    Ok(()) if before == Some(lease.address) => {}
                    Ok(()) => lines.push(format!("rescue address={} interface={name}", lease.address)),
                    Err(error) => lines.push(format!("rescue interface={name} error=\"{error}\"")),
                }
            }
            if let Some(packet) = client.due(now) {
                net.send(name, &packet);
            }
        }
        lines
    }

    /// The addresses that hold.
    #[must_use]
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.links.iter().filter_map(|(_, client)| client.address()).collect()
    }
}

/// The page.
#[derive(Debug, Serialize)]
struct Page<'a> {
    rescue: u8,
    reason: &'a str,
    slot: Option<rustiot_boot::Slot>,
    boot_id: &'a str,
    reset: Option<rustiot_boot::ResetReason>,
    uptime_s: u64,
    retry_in_s: u64,
    pstore_tail: Vec<String>,
    kernel_log: Vec<String>,
    ledger: Option<&'a Record>,
}

impl Page<'_> {
    fn text(&self) -> String {
        let slot = self.slot.map_or("unknown".to_string(), |slot| slot.to_string());
        let reset = self.reset.map_or("unknown".to_string(), |reset| crate::boot::word(&reset));
        let mut out = format!(
            "RustIoT OS is in rescue: no root could be opened.\n\n\
             reason:      {}\nslot:        {slot}\nreset:       {reset}\nboot id:     {}\nuptime:      {} s\n\
             next try in: {} s\n",
            self.reason, self.boot_id, self.uptime_s, self.retry_in_s
        );
        for (title, lines) in
            [("last kernel lines of the boot before", &self.pstore_tail), ("kernel log", &self.kernel_log)]
        {
            if !lines.is_empty() {
                out.push_str(&format!("\n{title}:\n{}\n", lines.join("\n")));
            }
        }
        out.push_str("\nThe boot ledger is in /status.json.\n");
        out
    }

    fn json(&self) -> String {
        serde_json::to_string(self).map(|json| json + "\n").unwrap_or_default()
    }
}

/// All that rescue works with.
pub struct Rescue<'a> {
    /// Why there is no root.
    pub reason: String,
    /// What is known of the boot.
    pub facts: &'a Facts,
    /// The policy, if it could be opened.
    pub policy: Option<Box<dyn Policy>>,
    /// The watchdog.
    pub watchdog: &'a Watchdog,
}

impl Rescue<'_> {
    /// Stays until the slots get another chance. Returns the reason for the reboot.
    pub fn run(mut self, sys: &mut dyn Sys, net: &mut dyn Net, root: &Path) -> String {
        let start = sys.now_ms();
        let pause = self.policy.as_ref().map_or(PAUSE_S, |policy| policy.record().rescue_pause_s());
        let retry_at = start.saturating_add(pause.saturating_mul(1000));
        let xid = random(root);
        let mut links = Links::default();
        let mut listener = None;
        let (mut scan_at, mut say_at) = (start, start);
        loop {
            self.watchdog.feed_in_rescue();
            let now = sys.now_ms();
            if now >= retry_at {
                return self.retry();
            }
            let mut lines = Vec::new();
            if now >= scan_at {
                scan_at = now.saturating_add(SCAN_MS);
                lines.extend(links.add(net, interfaces(root), xid));
                if listener.is_none() {
                    listener = listen().inspect_err(|error| lines.push(format!("rescue http: {error}"))).ok();
                }
            }
            lines.extend(links.tick(net, now));
            if now >= say_at {
                say_at = now.saturating_add(SAY_MS);
                let addresses: Vec<String> = links.addresses().iter().map(ToString::to_string).collect();
                lines.push(format!(
                    "rescue level=2 address={} retry_in_s={} reason=\"{}\"",
                    if addresses.is_empty() { "none".to_string() } else { addresses.join(",") },
                    retry_at.saturating_sub(now) / 1000,
                    self.reason
                ));
            }
            for line in lines {
                sys.say(&line);
            }
            if let Some((stream, _)) =
                listener.as_ref().and_then(|listener: &TcpListener| listener.accept().ok())
            {
                // a client that misbehaves is its own problem
                let _ = self.answer(stream, now, retry_at, root);
            } else {
                sys.pause(TICK_MS);
            }
        }
    }

    fn retry(&mut self) -> String {
        let effects = self.policy.as_mut().map(|policy| policy.tell(Event::Retry));
        let reason =
            effects.and_then(Result::ok).into_iter().flat_map(|applied| applied.effects).find_map(|effect| {
                match effect {
                    Effect::Reboot { reason } => Some(reason),
                    _ => None,
                }
            });
        reason.unwrap_or_else(|| "another try after rescue".to_string())
    }

    fn answer(&self, stream: TcpStream, now: u64, retry_at: u64, root: &Path) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(CLIENT))?;
        stream.set_write_timeout(Some(CLIENT))?;
        let page = Page {
            rescue: 2,
            reason: &self.reason,
            slot: self.facts.slot,
            boot_id: &self.facts.boot_id,
            reset: self.facts.reset,
            uptime_s: now / 1000,
            retry_in_s: retry_at.saturating_sub(now) / 1000,
            pstore_tail: self.facts.crash.tail(),
            kernel_log: kernel_log(root),
            ledger: self.policy.as_ref().map(|policy| policy.record()),
        };
        serve(stream, &page)
    }
}

/// One request, one answer. The request may come in a few pieces only, so that nobody holds the loop for long.
fn serve(mut stream: impl Read + Write, page: &Page) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    for _ in 0..PIECES {
        let n = stream.read(&mut buffer)?;
        request.extend_from_slice(buffer.get(..n).unwrap_or_default());
        let Some(parsed) = http::parse(&request) else {
            if n == 0 {
                break;
            }
            continue;
        };
        let body = match parsed.request {
            http::Request::Json => page.json(),
            _ => page.text(),
        };
        return stream.write_all(&http::answer(parsed, &body));
    }
    Ok(())
}

fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Wired ethernet interfaces with their addresses.
fn interfaces(root: &Path) -> Vec<(String, [u8; 6])> {
    files::entries(&root.join("sys/class/net"))
        .into_iter()
        .filter_map(|path| {
            // ARPHRD_ETHER; Wi-Fi says so too and has a phy80211
            let ethernet = fs::read_to_string(path.join("type")).ok()?.trim() == "1";
            let wired = ethernet && path.join("device").exists() && !path.join("phy80211").exists();
            let mac = mac(fs::read_to_string(path.join("address")).ok()?.trim())?;
            wired.then_some((path.file_name()?.to_str()?.to_string(), mac))
        })
        .collect()
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// A transaction id that two devices do not share.
fn random(root: &Path) -> u32 {
    let mut bytes = [0; 4];
    let _ = fs::File::open(root.join("dev/urandom")).and_then(|mut file| file.read_exact(&mut bytes));
    u32::from_ne_bytes(bytes)
}

/// The last lines of the kernel log.
fn kernel_log(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let path = root.join("dev/kmsg");
    let Ok(mut log) = fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path) else {
        return lines;
    };
    let mut record = [0; 8192];
    // bounded: the log can grow while it is read
    for _ in 0..100_000 {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(n) => lines.extend(kmsg_line(record.get(..n).unwrap_or_default())),
            // EPIPE: overwritten meanwhile, the next read goes on behind the gap (Documentation/ABI/testing/dev-kmsg)
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(_) => break,
        }
    }
    let surplus = lines.len().saturating_sub(LOG_LINES);
    lines.split_off(surplus)
}

/// The text of a `/dev/kmsg` record: `prefix;text`, then lines of properties.
#[must_use]
pub fn kmsg_line(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let (prefix, text) = record.split_once(';')?;
    let micros: u64 = prefix.split(',').nth(2)?.parse().ok()?;
    let text = text.lines().next().unwrap_or_default();
    let line = format!("[{:5}.{:06}] {text}", micros / 1_000_000, micros % 1_000_000);
    Some(pstore::printable(&line, LOG_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{disk::sample::put, sys::fake::FakeSys};
    use proptest::prelude::*;

    #[derive(Default)]
    struct FakeNet {
        calls: Vec<String>,
        inbox: Vec<Vec<u8>>,
        broken: bool,
    }

    impl Net for FakeNet {
        fn open(&mut self, interface: &str) -> io::Result<()> {
            self.calls.push(format!("open {interface}"));
            if self.broken { Err(io::Error::other("no link")) } else { Ok(()) }
        }
        fn send(&mut self, interface: &str, packet: &[u8]) {
            // a server that offers and confirms at once
            let kind = if packet[242] == 1 { 2 } else { 5 };
            self.calls.push(format!("send {interface} {}", packet[242]));
            let mut reply = packet[..240].to_vec();
            reply[0] = 2;
            reply[16..20].copy_from_slice(&[10, 0, 2, 15]);
            reply.extend([53, 1, kind, 54, 4, 10, 0, 2, 2, 255]);
            self.inbox.push(reply);
        }
        fn receive(&mut self, _interface: &str) -> Option<Vec<u8>> {
            self.inbox.pop()
        }
        fn apply(&mut self, interface: &str, lease: &Lease) -> io::Result<()> {
            self.calls.push(format!("apply {interface} {}", lease.address));
            Ok(())
        }
    }

    #[test]
    fn brings_an_interface_up_once_and_says_its_address() {
        let (mut net, mut links) = (FakeNet::default(), Links::default());
        let found = vec![("eth0".to_string(), [2, 0, 0, 0, 0, 1])];
        assert!(links.add(&mut net, found.clone(), 7).is_empty());
        assert!(links.add(&mut net, found, 7).is_empty());
        let lines: Vec<String> = (0..4).flat_map(|now| links.tick(&mut net, now)).collect();
        assert_eq!(lines, ["rescue address=10.0.2.15 interface=eth0"]);
        assert_eq!(net.calls, ["open eth0", "send eth0 1", "send eth0 3", "apply eth0 10.0.2.15"]);
        assert_eq!(links.addresses(), [Ipv4Addr::new(10, 0, 2, 15)]);
    }

    #[test]
    fn a_broken_interface_is_tried_again_and_reported_once() {
        let (mut net, mut links) = (FakeNet { broken: true, ..FakeNet::default() }, Links::default());
        let found = vec![("eth0".to_string(), [0; 6])];
        assert_eq!(links.add(&mut net, found.clone(), 7), ["rescue interface=eth0 error=\"no link\""]);
        assert!(links.add(&mut net, found.clone(), 7).is_empty());
        net.broken = false;
        links.add(&mut net, found, 7);
        assert_eq!(links.links.len(), 1);
    }

    #[test]
    fn gives_the_slots_another_chance_after_the_pause() {
        let root = tempfile::tempdir().unwrap();
        let mut sys = FakeSys::new();
        let facts = Facts::default();
        let watchdog = Watchdog::default();
        let rescue = Rescue { reason: "no disk".into(), facts: &facts, policy: None, watchdog: &watchdog };
        let start = sys.now_ms();
        let reason = rescue.run(&mut sys, &mut FakeNet::default(), root.path());
        assert_eq!(reason, "another try after rescue");
        assert!(sys.now_ms() - start >= PAUSE_S * 1000);
        let said: Vec<_> = sys.said.iter().filter(|line| line.starts_with("rescue level=2")).collect();
        assert_eq!(said[0], "rescue level=2 address=none retry_in_s=3600 reason=\"no disk\"");
        assert_eq!(said.len(), 60);
    }

    #[test]
    fn finds_wired_interfaces_only() {
        let root = tempfile::tempdir().unwrap();
        let net = root.path().join("sys/class/net");
        for (name, kind, extra) in [
            ("eth0", "1\n", "device/x"),
            ("wlan0", "1\n", "phy80211/x"),
            ("lo", "772\n", "y"),
            ("br0", "1\n", "y"),
        ] {
            put(&net.join(name).join("type"), kind);
            put(&net.join(name).join("address"), "02:00:00:00:00:0a\n");
            put(&net.join(name).join(extra), "");
        }
        put(&net.join("wlan0/device/x"), "");
        assert_eq!(interfaces(root.path()), [("eth0".to_string(), [2, 0, 0, 0, 0, 10])]);
        assert_eq!(mac("02:00:00:00:00"), None);
    }

    struct Stream(io::Cursor<Vec<u8>>, Vec<u8>);
    impl Read for Stream {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = buffer.len().min(20);
            self.0.read(&mut buffer[..n])
        }
    }
    impl Write for Stream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn ask(request: &str) -> String {
        let record = Record::fresh(rustiot_boot::Slot::A);
        let page = Page {
            rescue: 2,
            reason: "both roots are broken",
            slot: Some(rustiot_boot::Slot::B),
            boot_id: "id",
            reset: Some(rustiot_boot::ResetReason::Verity),
            uptime_s: 5,
            retry_in_s: 6,
            pstore_tail: vec!["panic".into()],
            kernel_log: vec!["[line]".into()],
            ledger: Some(&record),
        };
        let mut stream = Stream(io::Cursor::new(request.as_bytes().to_vec()), Vec::new());
        serve(&mut stream, &page).unwrap();
        String::from_utf8(stream.1).unwrap()
    }

    #[test]
    fn shows_reason_ledger_and_logs() {
        let text = ask("GET / HTTP/1.0\r\n\r\n");
        for part in ["both roots are broken", "slot:        b", "reset:       verity", "panic", "[line]"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let json = ask("GET /status.json HTTP/1.0\r\n\r\n");
        let (_, body) = json.split_once("\r\n\r\n").unwrap();
        let value: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&value["slot"], &value["retry_in_s"]), (&"b".into(), &6.into()));
        assert_eq!(value["ledger"]["committed"], "a");
        assert_eq!(ask("GET / HT"), "", "closed before it had asked");
        assert_eq!(ask(&format!("GET / HTTP/1.0\r\n{}", "x: y\r\n".repeat(100))), "", "too many pieces");
    }

    #[test]
    fn reads_a_kernel_log_record() {
        let record = b"6,1,12000034,-;hello \x1b world\n SUBSYSTEM=pci\n";
        assert_eq!(kmsg_line(record).unwrap(), "[   12.000034] hello   world");
    }

    proptest! {
        #[test]
        fn kernel_log_records_are_total(bytes: Vec<u8>, text in ".{0,30}[,;]?[0-9]{0,22};?.{0,9}") {
            let _ = kmsg_line(&bytes);
            let _ = kmsg_line(text.as_bytes());
            let _ = mac(&text);
        }
    }
}
