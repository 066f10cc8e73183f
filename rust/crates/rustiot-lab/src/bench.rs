//! Times of boots, ours and Debian's own, on the same machine, one after the other so that what else the workstation
//! does hits all alike; and the memory of our services. What is compared with what: docs/figures.md.
//!
//! It only measures; `rustiot bench` says what the figures mean.

use crate::ctx::Ctx;
use crate::device::{Device, HEALTHY};
use crate::fixtures::{A, Release};
use anyhow::{Context as _, Result, anyhow, ensure};
use rustiot_image::{Baseline, Generator, Image};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;
use testbed::{Disk, Machine, Off, Scratch};

/// Release A, whose kernel tells on the console when init is started and when systemd is.
const TELLS: Release = Release {
    cmdline: &["loglevel=7", "printk.time=1", "printk.devkmsg=on"],
    ..Release::new("tells", A.version)
};

/// The partition that the firmware starts, and the one with the root.
const BOOT: &str = "boot-a";
const ROOT: &str = "root-a";

/// The last words of the firmware: what runs from here on is of the image.
const HAND_OVER: &str = "BdsDxe: starting Boot|Starting kernel";
/// The kernel's words before it starts the initramfs' program (Linux: init/main.c).
const INIT: &str = r"\[ *\d+\.\d+\] Run /init as init process";
/// systemd's first words (systemd: src/core/main.c).
const SYSTEMD: &str = r"\[ *\d+\.\d+\] systemd\[1\]: systemd \S+ running in system mode";

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

/// One boot, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Boot {
    /// From the start of `/init` of the initramfs to systemd's first words in the real root, by the kernel's clock.
    pub init: f64,
    /// From the firmware's last words to `multi-user.target` and a running ssh server, where that was waited for.
    pub multi_user: Option<f64>,
    /// From there to all evidence of health collected; RustIoT OS only.
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
    image: Image,
    /// A healthy machine that was shut down in good order.
    settled: Off,
    dir: Scratch,
}

impl<'a> Bench<'a> {
    /// Brings up what all measurements start from.
    pub fn new(ctx: &'a Ctx<'a>) -> Result<Self> {
        let image = ctx.fixtures.image(ctx.lab, ctx.board, &TELLS)?;
        let settled = ctx.healthy()?.power_off(HEALTHY).context("cannot shut a healthy machine down")?;
        Ok(Bench { ctx, image, settled, dir: ctx.machine_dir()? })
    }

    /// The image of ours that is measured.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The disk that `system` boots from, never to be written. `baseline` makes those of Debian.
    pub fn disk(&self, system: System, baseline: Option<&Baseline>) -> Result<PathBuf> {
        let lab = self.ctx.lab;
        let baseline = || baseline.ok_or_else(|| anyhow!("there is no baseline for this board"));
        let boot = match system {
            System::RustIot => self.image.boot.clone(),
            System::Verity(generator) => {
                let boot = self.dir.file(&format!("{generator:?}.boot"));
                baseline()?.boot_image(&lab.context, &lab.toolbox, &self.image, generator, ROOT, &boot)?;
                boot
            }
            System::Stock => {
                let disk = self.dir.file("stock.img");
                let key = lab.ssh_key()?.public;
                let progress = &rustiot_image::Plain;
                baseline()?.stock_disk(&lab.context, &lab.toolbox, &self.image, &key, &disk, progress)?;
                return self.warm(&disk);
            }
        };
        let disk = self.dir.file(&format!("{}.qcow2", name(system)));
        Disk::overlay(&lab.tools(), self.settled.disk.path(), &disk, None)?;
        self.put(&boot, self.ctx.partition(BOOT)?, &disk)?;
        Ok(disk)
    }

    /// Writes the file `from` to byte `at` of the qcow2 file `disk`.
    fn put(&self, from: &Path, at: u64, disk: &Path) -> Result<()> {
        let bytes = std::fs::metadata(from).context("cannot read a boot image")?.len().next_multiple_of(512);
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

    /// Boots `disk` once. `whole` waits until everything runs, otherwise the power is cut at systemd's first words.
    pub fn boot(&self, system: System, disk: &Path, whole: bool) -> Result<Boot> {
        let dir = self.ctx.machine_dir()?;
        let overlay = Disk::overlay(&self.ctx.lab.tools(), disk, &dir.file("disk.qcow2"), None)?;
        let off = Off::new(self.ctx.lab.spec(self.ctx.board)?, overlay, dir)?;
        if system == System::RustIot && self.settled.vars().is_file() {
            std::fs::copy(self.settled.vars(), off.vars()).context("cannot copy the firmware's variables")?;
        }
        let machine = off.power_on()?;
        let console = machine.console();
        console.expect(HAND_OVER, HEALTHY)?;
        let handed = Instant::now();
        let init = stamp(&console.expect(INIT, HEALTHY)?)?;
        // By now this much later than the hand-over, the kernel's clock says `init`.
        let started = handed.elapsed().as_secs_f64() * 1e3;
        if system == System::Verity(Generator::DracutSystemd) {
            // The systemd of the initramfs itself.
            console.expect(SYSTEMD, HEALTHY)?;
        }
        let systemd = stamp(&console.expect(SYSTEMD, HEALTHY)?)?;
        let mut boot = Boot { init: systemd - init, multi_user: None, healthy: None };
        if whole {
            let since_hand_over = |at: f64| at - init + started;
            boot.multi_user = Some(since_hand_over(up(&machine, &["multi-user.target", "ssh.service"])?));
            if system == System::RustIot {
                boot.healthy = Some(since_hand_over(up(&machine, &["boot-complete.target"])?));
            }
            let said = machine.ssh(&self.ctx.lab.ssh_key()?.private, "true")?;
            ensure!(said.ok(), "{} cannot be reached by ssh: {}", name(system), said.stderr);
        }
        drop(machine.power_cut());
        Ok(boot)
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
