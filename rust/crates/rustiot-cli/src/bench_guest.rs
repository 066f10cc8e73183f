//! The machine in QEMU that `bench containers --guest` runs on: a healthy RustIoT OS whose own engine is off, with other
//! engines' root and the common medium as further disks, and processes inside by one ssh connection.
//!
//! Measures nothing. Called by `bench_containers`.

use anyhow::{Context as _, Result, ensure};
use rustiot_image::{Context, Plain};
use rustiot_lab::{Device as _, Fixtures, HEALTHY, Lab};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testbed::{Disk, Machine, Off, ssh_options};

/// The machine that plays the device.
const BOARD: &str = "qemux86-64";
/// Room for Docker Engine while it unpacks, and for all three at once, MiB.
const MEMORY: u32 = 3072;
const CPUS: u32 = 2;
/// How long the connection may take to be there, emulated.
const CONNECTED: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Where the world's script finds things, inside.
pub(crate) const SCRIPT: &str = "/run/bench/world.sh";
pub(crate) const ROOT: &str = "/run/bench/root";
pub(crate) const MEDIUM: &str = "/dev/disk/by-id/virtio-medium";
pub(crate) const PROGRAMS: &str = "/run/bench/programs";

/// A machine that runs. It goes, with all that is on it, when its value does.
pub(crate) struct Guest {
    /// Ends before the machine does.
    connection: Child,
    control: PathBuf,
    machine: Machine,
}

impl Guest {
    /// Boots it with the directory `root` as the disk that [`ROOT`] is mounted from, and the raw image `medium`.
    ///
    /// # Errors
    /// It does not become healthy, or does not take a connection.
    pub(crate) fn start(context: &Context, root: &Path, medium: &Path, script: &Path) -> Result<Guest> {
        let board = rustiot_image::board(context, BOARD)?;
        let work = medium.parent().context("a medium without a directory")?;
        let mut lab = Lab::open(context.clone(), &Plain)?;
        lab.toolbox = lab.toolbox.with_path(work).with_path(root);
        let engines = work.join("engines.img");
        eprintln!("  … the other engines' disk");
        let made = lab
            .toolbox
            .command("mkfs.ext4")
            .args(["-q", "-F", "-d"])
            .arg(root)
            .arg(&engines)
            .arg("2G")
            .output();
        let made = made.context("cannot run mkfs.ext4")?;
        ensure!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr).trim());
        let fixtures = Fixtures::new(true);
        let base = fixtures.base(&lab, &board)?;
        let dir = lab.scratch("bench")?;
        let disk = Disk::overlay(&lab.tools(), &base, &dir.file("disk.qcow2"), Some(fixtures.medium()))?;
        let mut spec = lab.spec(&board)?;
        (spec.memory_mib, spec.cpus) = (MEMORY, CPUS);
        spec.add_disk("engines", &engines, false);
        spec.add_disk("medium", medium, false);
        eprintln!("  … the machine");
        let machine = Off::new(spec, disk, dir)?.power_on()?;
        machine.wait_healthy()?;
        machine.wait_settled()?;
        // Our programs are the very files that the other services map, as on any device.
        machine.sh(&format!(
            "systemctl mask --runtime --now rustiot-engine.socket rustiot-engine.service && \
             mkdir -p {ROOT} {PROGRAMS} && mount /dev/disk/by-id/virtio-engines {ROOT} && \
             for name in /usr/bin/rustiot /usr/lib/rustiot/rustiot-shim; do \
             : > {PROGRAMS}/${{name##*/}} && mount --bind $name {PROGRAMS}/${{name##*/}}; done"
        ))?;
        let text = std::fs::read(script).with_context(|| format!("cannot read {}", script.display()))?;
        machine.put(SCRIPT, &text, HEALTHY)?;

        let control = machine.dir().join("ssh");
        let mut ssh = Command::new("ssh");
        ssh.args(ssh_options(&lab.ssh_key()?.private, machine.ssh_port()));
        ssh.args(["-M", "-N", "-S"]).arg(&control).arg("root@127.0.0.1").stdin(Stdio::null());
        let mut guest =
            Guest { connection: testbed::spawn(ssh).context("cannot run ssh")?, control, machine };
        let began = Instant::now();
        while !guest.control.exists() {
            let ended = guest.connection.try_wait().context("cannot ask for ssh")?;
            ensure!(ended.is_none(), "ssh does not reach the machine");
            ensure!(
                began.elapsed() < CONNECTED,
                "ssh did not reach the machine in {} s",
                CONNECTED.as_secs()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(guest)
    }

    /// A command inside; its streams are this one's.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-S").arg(&self.control).args(["-o", "BatchMode=yes", "root@127.0.0.1"]);
        ssh.arg(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
        ssh
    }

    /// What it is, for the page.
    pub(crate) fn described(&self) -> String {
        let kernel = self.machine.sh("uname -r").unwrap_or_default();
        format!("RustIoT OS on {BOARD} in QEMU, {CPUS} processors, {MEMORY} MiB, Linux {kernel}")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.connection.kill();
        let _ = self.connection.wait();
    }
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        for word in ["a", "", "it's", "a b; c $d `e` \"f\" \\", "'", "''"] {
            let said =
                Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), word);
        }
    }
}
