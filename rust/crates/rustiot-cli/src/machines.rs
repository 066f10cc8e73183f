//! Machines that go on after the command that started them: their names, `ps` and `stop`. What is
//! known of one lies in its directory; a process is the right one only if it also started when the
//! file says, so a reused process id is never killed.

use crate::fail::{Done, Fail, Why};
use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustiot_image::Context;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use testbed::Machine;

/// How long a machine may take to go down by itself.
const GOES_DOWN: Duration = Duration::from_secs(90);
const FILE: &str = "machine.json";

/// A machine that was left running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub name: String,
    pub board: String,
    pub version: String,
    pub ssh_port: u16,
    pub pid: i32,
    /// When the process started, clock ticks since the host's boot (proc(5), stat, field 22).
    pub started: u64,
    /// Where its container engine is forwarded to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_socket: Option<PathBuf>,
}

fn shelf(context: &Context) -> PathBuf {
    context.cache().join("machines")
}

/// A directory for a new machine, under the first free name `board-1`, `board-2` ….
pub fn reserve(context: &Context, board: &str) -> Result<(String, PathBuf)> {
    let shelf = shelf(context);
    std::fs::create_dir_all(&shelf).with_context(|| format!("cannot make {}", shelf.display()))?;
    drop(all(context)?);
    for number in 1..1000u32 {
        let name = format!("{board}-{number}");
        match std::fs::create_dir(shelf.join(&name)) {
            Ok(()) => return Ok((name.clone(), shelf.join(name))),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                return Err(anyhow!(e).context(format!("cannot make a directory in {}", shelf.display())));
            }
        }
    }
    Err(anyhow!("a thousand machines run already"))
}

/// Notes what runs in `dir`.
pub fn note(
    dir: &Path,
    machine: &Machine,
    name: &str,
    board: &str,
    version: &str,
    engine_socket: Option<PathBuf>,
) -> Result<Running> {
    let pid = machine.pid();
    let running = Running {
        name: name.into(),
        board: board.into(),
        version: version.into(),
        ssh_port: machine.ssh_port(),
        pid,
        started: started(pid).context("the machine has ended")?,
        engine_socket,
    };
    std::fs::write(dir.join(FILE), serde_json::to_vec(&running)?).context("cannot note the machine")?;
    Ok(running)
}

fn started(pid: i32) -> Option<u64> {
    start_ticks(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of a `stat` file; the second one is a name in brackets with anything in it.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_whitespace().nth(19)?.parse().ok()
}

/// All machines that run. What is left of ones that ended is removed.
fn all(context: &Context) -> Result<Vec<Running>> {
    let mut running = Vec::new();
    for entry in std::fs::read_dir(shelf(context)).into_iter().flatten().flatten() {
        let known = std::fs::read(entry.path().join(FILE)).ok();
        let machine: Option<Running> = known.and_then(|text| serde_json::from_slice(&text).ok());
        match machine {
            Some(machine) if started(machine.pid) == Some(machine.started) => running.push(machine),
            // Not noted yet: another command is starting it right now.
            None if is_fresh(&entry.path()) => {}
            _ => {
                std::fs::remove_dir_all(entry.path()).context("cannot remove what a machine left")?;
            }
        }
    }
    running.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(running)
}

fn is_fresh(dir: &Path) -> bool {
    let modified = std::fs::metadata(dir).and_then(|meta| meta.modified());
    modified.ok().and_then(|time| time.elapsed().ok()).is_none_or(|age| age < Duration::from_secs(3600))
}

/// `rustiot ps`.
pub fn ps(context: &Context, json: bool) -> Done {
    let running = all(context)?;
    if json {
        println!("{}", serde_json::to_string(&running)?);
    } else if running.is_empty() {
        println!("no machine runs; start one with: rustiot run --detach");
    } else {
        for machine in running {
            let Running { name, version, ssh_port, pid, .. } = machine;
            println!("{name}  release {version}  ssh port {ssh_port}  process {pid}");
        }
    }
    Ok(())
}

/// `rustiot stop`.
pub fn stop(context: &Context, name: &str) -> Done {
    let running = all(context)?;
    let Some(machine) = running.iter().find(|machine| machine.name == name) else {
        let names: Vec<&str> = running.iter().map(|machine| &*machine.name).collect();
        let there = if names.is_empty() { "none runs".into() } else { names.join(", ") };
        return Err(Fail::refused(format!("no machine {name} runs ({there})")));
    };
    let dir = shelf(context).join(name);
    let went_down = testbed::power_off_detached(&dir, GOES_DOWN).is_ok();
    if !went_down && started(machine.pid) == Some(machine.started) {
        killpg(Pid::from_raw(machine.pid), Signal::SIGKILL)
            .map_err(|e| Fail::new(Why::Failed, anyhow!(e).context("cannot end the machine")))?;
    }
    std::fs::remove_dir_all(&dir).context("cannot remove the machine's directory")?;
    if let Some(socket) = &machine.engine_socket {
        // Its ssh ends with the machine, and leaves it.
        let _ = std::fs::remove_file(socket);
    }
    println!("{name} {}", if went_down { "went down" } else { "did not go down by itself and was killed" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_start_time_is_read_past_any_name() {
        let fields: Vec<String> = (3..=30).map(|n| n.to_string()).collect();
        let stat = format!("12 (a ) b) {}", fields.join(" "));
        assert_eq!(start_ticks(&stat), Some(22));
        assert!(started(std::process::id().cast_signed()).is_some());
    }

    #[test]
    fn a_machine_that_ended_is_forgotten() {
        let cache = tempfile::tempdir().unwrap();
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let context = Context::with_cache(&repo, cache.path()).unwrap();
        let (name, dir) = reserve(&context, "b").unwrap();
        let gone = Running {
            name: name.clone(),
            board: "b".into(),
            version: "1.0.0".into(),
            ssh_port: 1,
            pid: std::process::id().cast_signed(),
            started: 0,
            engine_socket: None,
        };
        std::fs::write(dir.join(FILE), serde_json::to_vec(&gone).unwrap()).unwrap();
        assert!(all(&context).unwrap().is_empty(), "a reused process id is not the machine");
        assert!(!dir.exists());
        assert_eq!(stop(&context, &name).unwrap_err().why(), Why::Refused);
    }

    proptest! {
        #[test]
        fn any_stat_is_read(text in ".*") {
            let _ = start_ticks(&text);
        }
    }
}
