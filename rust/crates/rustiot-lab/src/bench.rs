//! Times of boots, ours and Debian's own, on the same machine, one after the other so that what else the workstation
//! does hits all alike; and the memory of our services. What is compared with what: docs/figures.md.
//!
//! It only measures; `rustiot bench` says what the figures mean.

use crate::ctx::Ctx;
use crate::device::{Device, HEALTHY};
use crate::fixtures::{A, File, Release};
use anyhow::{Context as _, Result, bail, ensure};
use rustiot_image::{Baseline, Generator, Image};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use testbed::{Disk, Machine, Off, Scratch};

/// What the kernel is told in all measured boots: to say on the console what it does, with its time.
const TELLS: &[&str] = &["loglevel=7", "printk.time=1", "printk.devkmsg=on"];

/// Release A that tells.
const WHOLE: Release = Release { cmdline: TELLS, ..Release::new("tells", A.version) };

/// Release A whose systemd does nothing but say that it was started: the instant of `switch_root`, the same for every
/// initramfs, without the time that systemd takes until its own first words.
const MARKED: Release = Release {
    cmdline: TELLS,
    files: &[File::Built("usr/lib/systemd/systemd", "real-init.c")],
    ..Release::new("marked", A.version)
};

/// The partition that the firmware starts, and the one with the root.
const BOOT: &str = "boot-a";
const ROOT: &str = "root-a";

/// The last words of the firmware: what runs from here on is of the image.
const HAND_OVER: &str = "BdsDxe: starting Boot|Starting kernel";
/// The kernel's words before it starts the initramfs' program (Linux: init/main.c).
const INIT: &str = r"\[ *\d+\.\d+\] Run /init as init process";
/// The first words in the real root of [`MARKED`].
const SWITCHED: &str = r"\[ *\d+\.\d+\] rustiot-bench: the real init runs";

/// What is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// RustIoT OS, all of it.
    RustIot,
    /// Our root, opened by one of Debian's initramfs.
    Verity(Generator),
    /// Debian of the same packages, without anything of ours.
    Stock,
}

/// One boot, milliseconds since the firmware's last words.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Boot {
    /// Until `multi-user.target` and a running ssh server.
    pub multi_user: f64,
    /// Until all evidence of health is collected; RustIoT OS only.
    pub healthy: Option<f64>,
}

/// One of our services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its program.
    pub name: String,
    /// Its share of memory, bytes (`Pss` of `smaps_rollup`).
    pub pss: u64,
}

/// Machines that are ready to be timed.
pub struct Bench<'a> {
    ctx: &'a Ctx<'a>,
    /// A healthy machine that was shut down in good order: its disk, all of it, since the snapshot that it came from may
    /// leave the cache meanwhile.
    settled: PathBuf,
    /// The firmware's variables of that machine, where it has some.
    vars: PathBuf,
    dir: Scratch,
}

impl<'a> Bench<'a> {
    /// Brings up what all measurements start from.
    pub fn new(ctx: &'a Ctx<'a>) -> Result<Self> {
        let off = ctx.healthy()?.power_off(HEALTHY).context("cannot shut a healthy machine down")?;
        let dir = ctx.machine_dir()?;
        let settled = dir.file("settled.img");
        off.export_disk(&settled)?;
        Ok(Bench { ctx, settled, vars: off.vars(), dir })
    }

    fn image(&self, release: &Release) -> Result<Image> {
        self.ctx.fixtures.image(self.ctx.lab, self.ctx.board, release)
    }

    /// The disk for [`Bench::initramfs`] of `system`, never to be written: always the same but for the boot image.
    pub fn initramfs_disk(&self, system: System, baseline: &Baseline) -> Result<PathBuf> {
        let (lab, image) = (self.ctx.lab, self.image(&MARKED)?);
        let marked = self.dir.file("marked.qcow2");
        if !marked.exists() {
            Disk::overlay(&lab.tools(), &self.settled, &marked, None)?;
            self.put(&image.root, ROOT, &marked)?;
        }
        let boot = match system {
            System::RustIot => image.boot,
            System::Verity(generator) => {
                let boot = self.dir.file(&format!("{}.boot", name(system)));
                baseline.boot_image(&lab.context, &lab.toolbox, &image, generator, ROOT, &boot)?;
                boot
            }
            System::Stock => bail!("a stock Debian has no verity root"),
        };
        let disk = self.dir.file(&format!("{}.qcow2", name(system)));
        Disk::overlay(&lab.tools(), &marked, &disk, None)?;
        self.put(&boot, BOOT, &disk)?;
        Ok(disk)
    }

    /// The disk of a RustIoT OS for [`Bench::boot`], never to be written.
    pub fn our_disk(&self) -> Result<PathBuf> {
        let disk = self.dir.file("whole.qcow2");
        Disk::overlay(&self.ctx.lab.tools(), &self.settled, &disk, None)?;
        self.put(&self.image(&WHOLE)?.boot, BOOT, &disk)?;
        Ok(disk)
    }

    /// The disk of a stock Debian for [`Bench::boot`], never to be written.
    pub fn stock_disk(&self, baseline: &Baseline) -> Result<PathBuf> {
        let lab = self.ctx.lab;
        let (disk, key) = (self.dir.file("stock.img"), lab.ssh_key()?.public);
        let (image, progress) = (self.image(&WHOLE)?, &rustiot_image::Plain);
        baseline.stock_disk(&lab.context, &lab.toolbox, &image, &key, &disk, progress)?;
        self.warm(&disk)
    }

    /// Writes the file `from` to `partition` of the qcow2 file `disk`.
    fn put(&self, from: &Path, partition: &str, disk: &Path) -> Result<()> {
        let at = self.ctx.partition(partition)?;
        let bytes = std::fs::metadata(from).context("cannot read an image")?.len().next_multiple_of(512);
        let command = format!("write -q -s {} {at} {bytes}", from.display());
        self.ctx.lab.tools().run("qemu-io", &["-f", "qcow2", "-c", &command, &disk.to_string_lossy()])?;
        Ok(())
    }

    /// Boots `disk` once and shuts it down, so that no measured boot is a first one.
    fn warm(&self, disk: &Path) -> Result<PathBuf> {
        let dir = self.ctx.machine_dir()?;
        let warmed = dir.file("disk.qcow2");
        let overlay = Disk::overlay(&self.ctx.lab.tools(), disk, &warmed, None)?;
        let machine = Off::new(self.ctx.lab.spec(self.ctx.board)?, overlay, dir)?.power_on()?;
        up(&machine, &["multi-user.target", "ssh.service"])?;
        machine.power_off(HEALTHY)?;
        Ok(warmed)
    }

    fn power_on(&self, system: System, disk: &Path) -> Result<Machine> {
        let dir = self.ctx.machine_dir()?;
        let overlay = Disk::overlay(&self.ctx.lab.tools(), disk, &dir.file("disk.qcow2"), None)?;
        let off = Off::new(self.ctx.lab.spec(self.ctx.board)?, overlay, dir)?;
        if system == System::RustIot && self.vars.is_file() {
            std::fs::copy(&self.vars, off.vars()).context("cannot copy the firmware's variables")?;
        }
        Ok(off.power_on()?)
    }

    /// Boots `disk` once, up to the real root: milliseconds from the start of the initramfs' `/init` to that of the real
    /// one, by the kernel's clock.
    pub fn initramfs(&self, system: System, disk: &Path) -> Result<f64> {
        let machine = self.power_on(system, disk)?;
        let init = stamp(&machine.console().expect(INIT, HEALTHY)?)?;
        let switched = stamp(&machine.console().expect(SWITCHED, HEALTHY)?)?;
        Ok(switched - init)
    }

    /// Boots `disk` once, until everything runs.
    pub fn boot(&self, system: System, disk: &Path) -> Result<Boot> {
        let machine = self.power_on(system, disk)?;
        machine.console().expect(HAND_OVER, HEALTHY)?;
        let handed = Instant::now();
        let init = stamp(&machine.console().expect(INIT, HEALTHY)?)?;
        // So long after the hand-over the kernel's clock says `init`.
        let started = handed.elapsed().as_secs_f64() * 1e3;
        let since_hand_over = |at: f64| at - init + started;
        let multi_user = since_hand_over(up(&machine, &["multi-user.target", "ssh.service"])?);
        let healthy = match system {
            System::RustIot => Some(since_hand_over(up(&machine, &["boot-complete.target"])?)),
            _ => None,
        };
        let said = machine.ssh(&self.ctx.lab.ssh_key()?.private, "true")?;
        ensure!(said.ok(), "{} cannot be reached by ssh: {}", name(system), said.stderr);
        Ok(Boot { multi_user, healthy })
    }

    /// Memory of our services on a healthy machine that has nothing to do.
    pub fn services(&self) -> Result<Vec<Service>> {
        let machine = self.ctx.healthy()?;
        machine.wait_settled()?;
        let found = services_of(&machine.sh(PSS)?);
        ensure!(!found.is_empty(), "no service of ours runs");
        Ok(found)
    }
}

/// For people and file names.
pub fn name(system: System) -> &'static str {
    match system {
        System::RustIot => "rustiot",
        System::Verity(Generator::InitramfsTools) => "initramfs-tools",
        System::Verity(Generator::Dracut) => "dracut",
        System::Verity(Generator::DracutSystemd) => "dracut-systemd",
        System::Stock => "stock",
    }
}

/// Waits until all of `units` are active; when the last of them became so, milliseconds of the kernel's clock.
fn up(machine: &Machine, units: &[&str]) -> Result<f64> {
    let units = units.join(" ");
    let script = format!(
        "for unit in {units}; do until systemctl is-active --quiet $unit; do sleep 1; done; done\n\
         systemctl show --value --property=ActiveEnterTimestampMonotonic {units}"
    );
    machine.wait_agent(HEALTHY)?;
    let said = machine.run(&script, HEALTHY)?;
    ensure!(said.ok(), "waiting for {units} ended with {}: {}", said.status, said.stderr);
    let microseconds = said.stdout.split_whitespace().filter_map(|word| word.parse::<f64>().ok());
    microseconds.reduce(f64::max).map(|us| us / 1e3).with_context(|| format!("no time in {}", said.stdout))
}

/// Milliseconds in a kernel's line such as `[    2.345678] Run /init`.
fn stamp(line: &str) -> Result<f64> {
    let seconds = line.trim_start_matches('[').split(']').next().map(str::trim);
    let seconds: f64 = seconds.unwrap_or_default().parse().with_context(|| format!("no time in {line}"))?;
    Ok(seconds * 1e3)
}

/// Our processes: share of memory in kB and command line, one a line.
const PSS: &str = r#"for dir in /proc/[0-9]*; do
  [ "$(readlink "$dir/exe")" = /usr/bin/rustiot ] || continue
  echo "$(sed -n 's/^Pss: *\([0-9]*\) kB$/\1/p' "$dir/smaps_rollup") $(tr '\0' ' ' < "$dir/cmdline")"
done"#;

fn services_of(lines: &str) -> Vec<Service> {
    let service = |line: &str| {
        let (kilobytes, command) = line.split_once(' ')?;
        let program = command.split_whitespace().next()?;
        let name = program.rsplit('/').next().unwrap_or(program).to_string();
        // proc(5): these kB are 1024 bytes.
        Some(Service { name, pss: kilobytes.parse::<u64>().ok()?.saturating_mul(1024) })
    };
    let mut services: Vec<Service> = lines.lines().filter_map(service).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_line_has_its_time() {
        assert_eq!(stamp("[    2.345678] Run /init as init process").unwrap(), 2345.678);
        assert!(stamp("Run /init").is_err());
    }

    #[test]
    fn services_are_told_by_name_and_share() {
        let text =
            "2048 /usr/lib/rustiot/rustiot-update \n1024 /usr/lib/rustiot/rustiot-health --x \n gone\n";
        let wanted = [("rustiot-health", 1 << 20), ("rustiot-update", 2 << 20)];
        let found = services_of(text);
        assert_eq!(found.iter().map(|s| (&*s.name, s.pss)).collect::<Vec<_>>(), wanted);
    }
}
