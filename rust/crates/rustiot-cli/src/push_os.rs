//! `push-os`: a release from this workstation to one device, over ssh alone.
//!
//! Serves the signed files on this machine's loopback and lends the device that port through the ssh connection; the
//! device installs by its own `rustiot update install`, with its own checks. Never copies a file to the device, never
//! writes a slot, never says more than the device's own history does. A second run goes on with what the first began:
//! the device's end of the connection always has the same port.

use crate::args::{PushHold, PushOs};
use crate::fail::{Done, Fail, Why};
use anyhow::{Context as _, anyhow};
use rustiot_scratch::Scratch;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use testbed::FileServer;

/// The device's end. Not one that IANA has given to anybody.
const PORT: u16 = 47_190;
/// How often the device is asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two attempts to reach a device that restarts.
const REACH_EVERY: Duration = Duration::from_secs(3);

/// What is pushed.
#[derive(Debug, PartialEq, Eq)]
enum What {
    /// One file.
    Bundle(PathBuf),
    /// A release of a repository, or its newest.
    Release(PathBuf, Option<String>),
}

/// Checks what was typed, before anybody is called.
fn what(args: &PushOs) -> Result<What, Fail> {
    let typed = args.what.as_deref();
    if let Some(text) = typed {
        let path = Path::new(text);
        if path.is_file() {
            let path = path.canonicalize().with_context(|| format!("cannot find {text}"))?;
            return Ok(What::Bundle(path));
        }
        if text.contains('/') || text.ends_with(".raucb") {
            return Err(Fail::usage(format!("there is no bundle {text}")));
        }
        if semver(text).is_none() {
            return Err(Fail::usage(format!("{text:?} is neither a bundle nor a version such as 1.2.3")));
        }
    }
    // A publisher's directory, or what one uploads of it: a stick, a mirror.
    let public = args.repo.join("public");
    let dir = if public.join("metadata").is_dir() { public } else { args.repo.clone() };
    if !dir.join("metadata/timestamp.json").is_file() {
        return Err(Fail::usage(format!(
            "{} is no repository with a release: rustiot publish BUNDLE --repo DIR, or name a bundle",
            args.repo.display()
        )));
    }
    Ok(What::Release(dir, typed.map(str::to_owned)))
}

/// The text, if it is a semantic version as far as a typing mistake goes; the device reads it again.
fn semver(text: &str) -> Option<()> {
    let (numbers, _) = text.split_once(['-', '+']).unwrap_or((text, ""));
    let fine = numbers.split('.').filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())).count();
    (fine == 3 && numbers.split('.').count() == 3).then_some(())
}

/// A word for the device's shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The device's own command.
fn order(args: &PushOs, what: &What) -> Result<String, Fail> {
    let base = format!("http://127.0.0.1:{PORT}/");
    let mut words = vec!["rustiot".to_owned(), "update".into(), "install".into()];
    match what {
        What::Bundle(path) => {
            let name = path.file_name().and_then(|name| name.to_str()).filter(|name| plain(name));
            let name = name.ok_or_else(|| {
                Fail::usage(format!(
                    "{}: name the file with letters, digits and . _ + ~ - only",
                    path.display()
                ))
            })?;
            words.push(format!("{base}{name}"));
        }
        What::Release(_, version) => {
            words.extend([base, "--repository".into()]);
            if let Some(version) = version {
                words.extend(["--release".into(), quoted(version)]);
            }
        }
    }
    if let Some(hold) = args.hold {
        words.extend(["--hold".into(), hold.as_str().into()]);
    }
    if args.force {
        words.push("--force".into());
    }
    words.extend(["--no-wait".into(), "--json".into()]);
    Ok(words.join(" "))
}

fn plain(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b)) && !name.starts_with('.')
}

/// An ssh connection that others share; it ends with this value.
struct Link<'a> {
    args: &'a PushOs,
    socket: PathBuf,
    master: Child,
}

impl<'a> Link<'a> {
    /// Connects, and asks whatever ssh has to ask on this terminal.
    fn open(args: &'a PushOs, dir: &Path, within: u64) -> Result<Self, Fail> {
        let socket = dir.join("ssh");
        let _ = std::fs::remove_file(&socket);
        let mut command = ssh(args, &socket);
        command
            .args(["-M", "-N", "-o", "ServerAliveInterval=15", "-o"])
            .arg(format!("ConnectTimeout={within}"));
        command.arg("--").arg(&args.device).stdin(Stdio::null()).stdout(Stdio::null());
        let master = command.spawn().context("cannot run ssh: is it installed?")?;
        let mut link = Link { args, socket, master };
        loop {
            if link.control("check")?.status.success() {
                return Ok(link);
            }
            if let Some(status) = link.master.try_wait().context("cannot wait for ssh")? {
                return Err(Fail::from(anyhow!("ssh cannot reach {} ({status})", link.args.device)));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn control(&self, what: &str) -> anyhow::Result<Output> {
        let mut command = ssh(self.args, &self.socket);
        command.args(["-O", what, "--"]).arg(&self.args.device);
        command.stdin(Stdio::null()).output().context("cannot run ssh")
    }

    /// Lends the device this machine's `port`.
    fn lend(&self, port: u16) -> Result<(), Fail> {
        let mut command = ssh(self.args, &self.socket);
        command.args(["-O", "forward", "-R"]).arg(format!("127.0.0.1:{PORT}:127.0.0.1:{port}"));
        command.arg("--").arg(&self.args.device);
        let output = command.stdin(Stdio::null()).output().context("cannot run ssh")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let text = format!(
            "the device does not lend port {PORT} of its loopback ({said}): is another push-os at work, or does its sshd \
             forbid AllowTcpForwarding?"
        );
        Err(Fail::new(Why::Busy, anyhow!(text)))
    }

    /// Runs a command on the device; `None` when the connection is gone.
    fn run(&self, script: &str) -> Result<Option<Output>, Fail> {
        let mut command = ssh(self.args, &self.socket);
        // Without the shared connection it fails; it must not make one of its own.
        command
            .args(["-o", "ControlMaster=no", "-o", "ProxyCommand=false", "--"])
            .arg(&self.args.device)
            .arg(script);
        let output = command.stdin(Stdio::null()).output().context("cannot run ssh")?;
        Ok(Some(output).filter(|output| output.status.code() != Some(255)))
    }

    /// The JSON that a command on the device prints; `None` when the connection is gone or it said nothing.
    fn ask(&self, script: &str) -> Result<Option<Value>, Fail> {
        let output = self.run(script)?;
        Ok(output.and_then(|output| serde_json::from_slice(&output.stdout).ok()))
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}

fn ssh(args: &PushOs, socket: &Path) -> Command {
    let mut command = Command::new("ssh");
    for option in &args.ssh_option {
        command.args(["-o", option]);
    }
    command.arg("-S").arg(socket);
    command
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// One line that changes on a terminal, a line for each step elsewhere, nothing for scripts.
struct Teller {
    quiet: bool,
    terminal: bool,
    last: String,
}

impl Teller {
    fn tell(&mut self, line: &str) {
        if self.quiet || self.last == line {
            return;
        }
        line.clone_into(&mut self.last);
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    fn end(&self) {
        if self.terminal && !self.quiet && !self.last.is_empty() {
            eprintln!();
        }
    }
}

/// What the device's status says, in a line.
fn line(status: &Value, terminal: bool) -> String {
    let phase = text(status, "/phase");
    let share = |part: u64, all: u64| {
        let percent = part.saturating_mul(100).checked_div(all).unwrap_or(0).min(100);
        if terminal { percent } else { percent / 10 * 10 }
    };
    let transfer = "/progress/transfer";
    let (fetched, total) =
        (number(status, &format!("{transfer}/fetched")), number(status, &format!("{transfer}/total")));
    match phase {
        "downloading" if total > 0 => format!("downloading: {} % of {total} bytes", share(fetched, total)),
        "installing" if number(status, "/progress/total") > 0 => format!(
            "installing: {} % of {} bytes",
            share(number(status, "/progress/bytes"), number(status, "/progress/total")),
            number(status, "/progress/total")
        ),
        _ if text(status, "/message").is_empty() => phase.to_owned(),
        _ => format!("{phase}: {}", text(status, "/message")),
    }
}

/// The entry of `id` in the device's history.
fn entry(history: &Value, id: &str) -> Option<Value> {
    history.as_array()?.iter().rev().find(|entry| text(entry, "/transaction") == id).cloned()
}

/// How it stands with a transaction.
enum Stand {
    Ended(Value),
    /// It waits for somebody; the device's phase and message, and whether the device says that it is somebody.
    Rests(String, String, bool),
    /// The connection is gone, or goes.
    Gone,
    Runs,
}

fn look(link: &Link<'_>, id: &str, teller: &mut Teller) -> Result<Stand, Fail> {
    let Some(status) = link.ask("rustiot update status --json")? else { return Ok(Stand::Gone) };
    if let Some(entry) = status.get("history").and_then(|history| entry(history, id)) {
        return Ok(Stand::Ended(entry));
    }
    teller.tell(&line(&status, teller.terminal));
    let phase = text(&status, "/phase");
    Ok(match phase {
        "available" | "downloaded" | "installed" | "activated" => rests(&status),
        "rebooting" => Stand::Gone,
        _ => Stand::Runs,
    })
}

/// A device that waits. What waits for a window, a time, power or applications goes on by itself.
fn rests(status: &Value) -> Stand {
    let (phase, message) = (text(status, "/phase").to_owned(), text(status, "/message").to_owned());
    match text(status, "/waits") {
        "conditions" | "applications" => Stand::Runs,
        waits => Stand::Rests(phase, message, waits == "person"),
    }
}

/// Begins it, or takes up what an earlier run began. The transaction's id.
fn begin(link: &Link<'_>, args: &PushOs, what: &What) -> Result<String, Fail> {
    let ours = format!("http://127.0.0.1:{PORT}/");
    let status = link.ask("rustiot update status --json")?;
    let status = status.ok_or_else(|| {
        Fail::refused(format!(
            "{} does not answer `rustiot update status`: is it a RustIoT device?",
            args.device
        ))
    })?;
    if text(&status, "/transaction/source").starts_with(&ours) {
        return Ok(text(&status, "/transaction/id").to_owned());
    }
    let output = link.run(&order(args, what)?)?.context("the connection broke off")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if !output.status.success() {
        let why = match output.status.code() {
            Some(2) => Why::Usage,
            Some(3) => Why::Refused,
            Some(4) => Why::Busy,
            Some(5) => Why::Verification,
            _ => Why::Failed,
        };
        return Err(Fail::new(why, anyhow!("{} says: {said}", args.device)));
    }
    let answer: Value = serde_json::from_slice(&output.stdout).context("the device's answer is no JSON")?;
    match text(&answer, "/transaction") {
        "" => Err(Fail::from(anyhow!("the device named no transaction: {answer}"))),
        id => Ok(id.to_owned()),
    }
}

/// The exit code of the device's reason.
fn why(kind: &str) -> Why {
    match kind {
        "not-a-bundle" | "truncated" | "oversized" | "signature" | "not-yet-valid" | "expired"
        | "plain-format" | "corrupt" | "untrusted" => Why::Verification,
        "denied" | "not-now" | "wrong-board" | "bad-manifest" | "below-floor" | "known-bad"
        | "already-running" | "too-large" | "nothing-new" | "not-offered" | "withdrawn" => Why::Refused,
        "busy" => Why::Busy,
        _ => Why::Failed,
    }
}

/// `rustiot push-os`.
pub fn run(args: &PushOs) -> Done {
    let what = what(args)?;
    let dir = Scratch::new(&std::env::temp_dir(), "rustiot-push")?;
    let served = match &what {
        What::Release(public, _) => public.clone(),
        What::Bundle(path) => {
            let www = dir.path().join("www");
            std::fs::create_dir_all(&www).context("cannot make a directory")?;
            let name = path.file_name().context("the bundle has no name")?;
            std::os::unix::fs::symlink(path, www.join(name)).context("cannot link the bundle")?;
            www
        }
    };
    order(args, &what)?;
    let server = FileServer::bind(&served, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut teller =
        Teller { quiet: args.json.json, terminal: std::io::stderr().is_terminal(), last: String::new() };
    let began = Instant::now();
    let mut link = Some(Link::open(args, dir.path(), 30)?);
    let (id, from) = match &link {
        Some(link) => {
            link.lend(server.address().port())?;
            let from = link.ask("cat /usr/lib/rustiot/release.json")?.unwrap_or_default();
            (begin(link, args, &what)?, text(&from, "/version").to_owned())
        }
        None => return Err(Fail::refused("no connection")),
    };
    let deadline = Duration::from_secs(args.timeout.saturating_mul(60));
    let ended = loop {
        let stand = match &link {
            Some(link) => look(link, &id, &mut teller)?,
            None => Stand::Gone,
        };
        match stand {
            Stand::Ended(entry) => break Ok(entry),
            Stand::Rests(phase, message, person) => break Err(Rest { phase, message, person }),
            Stand::Gone => {
                drop(link.take());
                teller.tell("waiting for the device to come back");
                if began.elapsed() > deadline {
                    teller.end();
                    let text = format!(
                        "{} has not told the outcome within {} min; the update goes on or falls back by itself: run this \
                         again, or `rustiot update history` there",
                        args.device, args.timeout
                    );
                    return Err(Fail::from(anyhow!(text)));
                }
                std::thread::sleep(REACH_EVERY);
                link = Link::open(args, dir.path(), 10).ok();
                if let Some(link) = &link {
                    // It may have been the network and not a restart: then it fetches on.
                    let _ = link.lend(server.address().port());
                }
            }
            Stand::Runs if began.elapsed() > deadline => {
                teller.end();
                let text = format!(
                    "not done within {} min ({}); the device goes on by itself: run this again to see how it ends",
                    args.timeout, teller.last
                );
                return Err(Fail::from(anyhow!(text)));
            }
            Stand::Runs => std::thread::sleep(LOOK_EVERY),
        }
    };
    teller.end();
    report(args, &id, &from, server.bytes(), began.elapsed(), ended)
}

/// Where a device waits, and whether for a person.
struct Rest {
    phase: String,
    message: String,
    person: bool,
}

fn report(
    args: &PushOs,
    id: &str,
    from: &str,
    served: u64,
    took: Duration,
    ended: Result<Value, Rest>,
) -> Done {
    let (result, entry) = match &ended {
        Ok(entry) => (text(entry, "/result").to_owned(), entry.clone()),
        Err(rest) => (rest.phase.clone(), Value::Null),
    };
    if args.json.json {
        let report = json!({
            "device": args.device, "transaction": id, "result": result, "from": from,
            "release": entry.get("release"), "way": entry.get("way"), "spent": entry.get("spent"),
            "why": entry.get("why"), "served": served, "seconds": took.as_secs(),
        });
        println!("{report}");
    }
    let version = text(&entry, "/release/version");
    match &ended {
        Ok(_) if result == "committed" => {
            if !args.json.json {
                let way = text(&entry, "/way");
                println!(
                    "{} runs {version} (was {from}): committed; {served} bytes over ssh, by {way}",
                    args.device
                );
            }
            Ok(())
        }
        Ok(_) => {
            let (message, hint) = (text(&entry, "/why/message"), text(&entry, "/why/hint"));
            let hint = if hint.is_empty() { String::new() } else { format!("; {hint}") };
            let text = format!("{} is back on {from}: {version} {result}: {message}{hint}", args.device);
            let text = match result.as_str() {
                "fell-back" => text,
                _ => format!("{}: {version} {result}: {message}{hint}", args.device),
            };
            Err(Fail::new(why(crate::push_os::text(&entry, "/why/kind")), anyhow!(text)))
        }
        // Nobody asked for it to stop there: it is not done, and will not be before somebody does something.
        Err(Rest { phase, message, person: true }) if args.hold.is_none() => {
            Err(Fail::refused(format!("{} is not done: {phase}: {message}", args.device)))
        }
        Err(Rest { phase, message, .. }) => {
            if !args.json.json {
                println!("{}: {phase}: {message}", args.device);
            }
            Ok(())
        }
    }
}

impl PushHold {
    fn as_str(self) -> &'static str {
        match self {
            PushHold::Activate => "activate",
            PushHold::Reboot => "reboot",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn args(words: &[&str]) -> PushOs {
        match Cli::try_parse_from([&["rustiot", "push-os"], words].concat()).unwrap().command {
            Command::PushOs(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_pushed_is_known_before_anybody_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("repo");
        std::fs::create_dir_all(repo.join("public/metadata")).unwrap();
        std::fs::write(repo.join("public/metadata/timestamp.json"), "{}").unwrap();
        let bundle = dir.path().join("a.raucb");
        std::fs::write(&bundle, "x").unwrap();
        let repo = repo.to_str().unwrap();
        let public = dir.path().join("repo/public");
        let of = |words: &[&str]| what(&args(words));
        assert_eq!(of(&["root@d", "--repo", repo]).unwrap(), What::Release(public.clone(), None));
        // What was uploaded, or lies on a stick, is a repository as well.
        let uploaded = public.to_str().unwrap();
        assert_eq!(
            of(&["d", "1.2.3", "--repo", uploaded]).unwrap(),
            What::Release(public, Some("1.2.3".into()))
        );
        let file = bundle.to_str().unwrap();
        assert_eq!(of(&["d", file]).unwrap(), What::Bundle(bundle.canonicalize().unwrap()));
        for wrong in [
            &["d", "nothing.raucb"][..],
            &["d", "./x"],
            &["d", "newest", "--repo", repo],
            &["d", "--repo", "/none"],
        ] {
            assert_eq!(of(wrong).unwrap_err().why(), Why::Usage, "{wrong:?}");
        }
    }

    #[test]
    fn the_device_gets_its_own_command_and_no_word_of_the_shells() {
        let release = |version: &str| What::Release("/r".into(), Some(version.into()));
        let said = order(&args(&["d", "--hold", "reboot", "--force"]), &release("1.0.0-rc.1")).unwrap();
        assert_eq!(
            said,
            "rustiot update install http://127.0.0.1:47190/ --repository --release '1.0.0-rc.1' --hold reboot --force \
             --no-wait --json"
        );
        assert!(
            order(&args(&["d"]), &release("1.0.0-';reboot;'")).unwrap().contains(r"'1.0.0-'\'';reboot;'\'''")
        );
        let bundle = |name: &str| order(&args(&["d"]), &What::Bundle(format!("/x/{name}").into()));
        assert!(bundle("os-1.raucb").unwrap().contains("http://127.0.0.1:47190/os-1.raucb --no-wait"));
        for name in ["a b.raucb", "$(reboot).raucb", ".x"] {
            assert_eq!(bundle(name).unwrap_err().why(), Why::Usage, "{name}");
        }
        assert!(Cli::try_parse_from(["rustiot", "push-os"]).is_err(), "a device must be named");
        assert!(
            Cli::try_parse_from(["rustiot", "push-os", "-oProxyCommand=x"]).is_err(),
            "an option is no device"
        );
    }

    #[test]
    fn the_history_has_the_last_word_and_its_reason_the_exit_code() {
        let history = json!([
            {"transaction": "a", "result": "failed"},
            {"transaction": "b", "result": "fell-back", "why": {"kind": "fell-back", "message": "unhealthy", "hint": "look"}},
        ]);
        assert!(entry(&history, "c").is_none() && entry(&Value::Null, "a").is_none());
        let told = |entry: Value| {
            let args = args(&["d", "--json"]);
            report(&args, "b", "1.0.0", 9, Duration::ZERO, Ok(entry))
        };
        let fail = told(entry(&history, "b").unwrap()).unwrap_err();
        assert_eq!(fail.why(), Why::Failed);
        assert!(
            fail.to_string().contains("back on 1.0.0") && fail.to_string().contains("unhealthy; look"),
            "{fail}"
        );
        let refused = json!({"result": "refused", "why": {"kind": "signature", "message": "no"}});
        assert_eq!(told(refused).unwrap_err().why(), Why::Verification);
        assert_eq!(
            told(json!({"result": "refused", "why": {"kind": "below-floor"}})).unwrap_err().why(),
            Why::Refused
        );
        told(json!({"result": "committed"})).unwrap();
    }

    #[test]
    fn what_goes_on_by_itself_is_waited_for_and_what_waits_for_a_person_is_not_done() {
        let status = |waits: &str| json!({"phase": "installed", "message": "m", "waits": waits});
        for waits in ["applications", "conditions"] {
            assert!(matches!(rests(&status(waits)), Stand::Runs), "{waits}");
        }
        // A device of before says nothing of it.
        assert!(matches!(rests(&json!({"phase": "activated"})), Stand::Rests(_, _, false)));
        let Stand::Rests(phase, message, person) = rests(&status("person")) else { panic!() };
        let rest = || Rest { phase: phase.clone(), message: message.clone(), person };
        let told = |words: &[&str]| report(&args(words), "b", "1.0.0", 9, Duration::ZERO, Err(rest()));
        let fail = told(&["d", "--json"]).unwrap_err();
        assert_eq!(fail.why(), Why::Refused);
        assert!(fail.to_string().contains("not done: installed: m"), "{fail}");
        told(&["d", "--json", "--hold", "activate"]).unwrap();
    }

    #[test]
    fn progress_is_told_in_tenths_where_nobody_watches() {
        let status = json!({"phase": "downloading", "progress": {"transfer": {"fetched": 37, "total": 100}}});
        assert_eq!(line(&status, true), "downloading: 37 % of 100 bytes");
        assert_eq!(line(&status, false), "downloading: 30 % of 100 bytes");
        assert_eq!(line(&json!({"phase": "trial", "message": "m"}), true), "trial: m");
        assert_eq!(line(&Value::Null, true), "");
    }
}
