//! `bench delta --rauc`: what the real RAUC fetches of a release by its adaptive update (`block-hash-index`), installed on
//! a machine in QEMU from a plain web server, every byte of the connection counted.
//!
//! RAUC streams through the kernel's nbd, dm-verity and squashfs, so it needs a machine: one of the lab, with the old
//! root on a disk of its own as the booted slot and an empty disk for each bundle as the other. The device's own RAUC and
//! update service are stopped; what runs is the same `rauc` of Debian with a configuration of this file and debug output.
//! Never touches the machine's own slots. Called by `bench_delta`.

use anyhow::{Context as _, Result, bail, ensure};
use rustiot_board::Board;
use rustiot_image::keys::Signer;
use rustiot_image::{Context, Plain};
use rustiot_lab::{Device as _, Fixtures, Lab};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use testbed::relay::Link;
use testbed::{Disk, FileServer, Machine, Off};

/// What the names of all of these ways begin with.
pub(crate) const NAME: &str = "RAUC adaptive";
/// What RAUC calls its blocks (`include/hash_index.h`).
const BLOCK: u64 = 4096;
/// One install, emulated.
const INSTALL: Duration = Duration::from_secs(3600);
/// The machine that plays the device.
const BOARD: &str = "qemux86-64";
const COMPATIBLE: &str = "rustiot-bench";

/// How a bundle's squashfs is made.
const BUNDLES: [(&str, &str); 3] = [
    ("RAUC adaptive, as `rauc bundle` makes it", ""),
    // What RAUC's manual advises for adaptive updates.
    ("RAUC adaptive, blocks of 64 KiB", "-b 64k"),
    // The kindest that it can be told: nothing is fetched but the block that is missing.
    ("RAUC adaptive, blocks of 4 KiB, zstd -19", "-b 4k -comp zstd -Xcompression-level 19"),
];

/// What plays the device, and who signs.
pub(crate) struct Rauc {
    lab: Lab,
    board: Board,
    fixtures: Fixtures,
    signer: Signer,
}

/// One install, its result compared with the new image.
#[derive(Debug)]
pub(crate) struct Install {
    pub(crate) name: &'static str,
    /// Bytes of the connection, both ways, with the heads of requests and answers.
    pub(crate) bytes: u64,
    /// The bundle that they are a part of, bytes.
    bundle: u64,
    requests: u64,
    /// Blocks that RAUC took out of the bundle …
    fetched: u64,
    /// … of this many in the image.
    blocks: u64,
    /// What `rauc --version` says.
    version: String,
}

impl Install {
    /// For people.
    pub(crate) fn said(&self) -> String {
        format!(
            "{} from a plain web server in a machine in QEMU, first adaptive update, other slot empty: {} requests, \
             {} of {} blocks out of a bundle of {} bytes; both ways with the heads of HTTP, without TLS",
            self.version, self.requests, self.fetched, self.blocks, self.bundle
        )
    }
}

impl Rauc {
    /// The lab's machine; what is missing is built.
    ///
    /// # Errors
    /// The lab cannot be opened.
    pub(crate) fn open(context: &Context) -> Result<Rauc> {
        let board = rustiot_image::board(context, BOARD)?;
        let lab = Lab::open(context.clone(), &Plain)?;
        let fixtures = Fixtures::new(true);
        let signer = fixtures.signer(&lab)?;
        Ok(Rauc { lab, board, fixtures, signer })
    }

    /// Installs the image `new` over the network on a machine that runs `old`, once for each of [`BUNDLES`].
    ///
    /// # Errors
    /// A bundle cannot be made or installed, RAUC did not do it by the index, or the slot does not hold `new`.
    pub(crate) fn measure(&self, old: &Path, new: &Path, work: &Path) -> Result<Vec<Install>> {
        let bytes = File::open(new)?.metadata()?.len();
        ensure!(bytes % BLOCK == 0, "RAUC's index wants an image of whole blocks of {BLOCK} bytes");
        let www = work.join("www");
        std::fs::create_dir_all(&www).context("cannot make the server's directory")?;
        let mut slots = Vec::new();
        for (at, (name, squashfs)) in BUNDLES.iter().enumerate() {
            eprintln!("    … bundle: {name}");
            self.bundle(new, squashfs, &www.join(format!("{at}.raucb")), work)?;
            let slot = work.join(format!("slot-{at}.img"));
            File::create(&slot).and_then(|file| file.set_len(bytes)).context("cannot make a slot")?;
            slots.push(slot);
        }
        let machine = self.machine(old, &slots, work)?;
        let mut installs = Vec::new();
        for (at, (name, _)) in BUNDLES.iter().enumerate() {
            eprintln!("    … install: {name}");
            let done = install(&machine, &www, at, name);
            installs.push(done.with_context(|| format!("{name} on {BOARD}"))?);
        }
        drop(machine.power_off(rustiot_lab::HEALTHY)?);
        for (slot, (name, _)) in slots.iter().zip(BUNDLES) {
            ensure!(same(new, slot)?, "{name}: the slot does not hold the new image");
        }
        Ok(installs)
    }

    /// The signed bundle of `new`, with an index.
    fn bundle(&self, new: &Path, squashfs: &str, out: &Path, work: &Path) -> Result<()> {
        let content = tempfile::Builder::new().prefix("content-").tempdir_in(work)?;
        let image = content.path().join("root.img");
        if std::fs::hard_link(new, &image).is_err() {
            std::fs::copy(new, &image).context("cannot copy the image")?;
        }
        let manifest = format!(
            "[update]\ncompatible={COMPATIBLE}\nversion=2\n\n[bundle]\nformat=verity\n\n\
             [image.root]\nfilename=root.img\nadaptive=block-hash-index\n"
        );
        std::fs::write(content.path().join("manifest.raucm"), manifest)
            .context("cannot write the manifest")?;
        let mut toolbox = self.lab.toolbox.clone();
        for file in [Path::new(&self.signer.cert), Path::new(&self.signer.key), &self.signer.keyring] {
            toolbox = file.parent().into_iter().fold(toolbox, rustiot_image::Toolbox::with_path);
        }
        let keyring = self.signer.keyring.display();
        let config = work.join("bundle.conf");
        let text = format!(
            "[system]\ncompatible={COMPATIBLE}\nbootloader=noop\n\n[keyring]\npath={keyring}\ncheck-purpose=codesign\n"
        );
        std::fs::write(&config, text).context("cannot write RAUC's configuration")?;
        let mut command = toolbox.with_path(work).command("rauc");
        command.arg("bundle").arg(format!("--conf={}", config.display()));
        command.arg(format!("--cert={}", self.signer.cert)).arg(format!("--key={}", self.signer.key));
        command.arg(format!("--signing-keyring={keyring}"));
        if !squashfs.is_empty() {
            command.arg(format!("--mksquashfs-args={squashfs}"));
        }
        let done = command.arg(content.path()).arg(out).stdin(Stdio::null()).output();
        let done = done.context("cannot run rauc")?;
        if !done.status.success() {
            bail!("rauc bundle: {}", String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(())
    }

    /// A healthy machine with further disks: `old`, called so, and the empty slots, `slot0` and so on. Its own RAUC is off.
    fn machine(&self, old: &Path, slots: &[PathBuf], work: &Path) -> Result<Machine> {
        let base = self.fixtures.base(&self.lab, &self.board)?;
        let dir = self.lab.scratch("rauc")?;
        let lab = [old, work]
            .into_iter()
            .filter_map(Path::parent)
            .fold(self.lab.clone(), |lab, path| Lab { toolbox: lab.toolbox.with_path(path), ..lab });
        let path = dir.file("disk.qcow2");
        let disk = Disk::overlay(&lab.tools(), &base, &path, Some(self.fixtures.medium()))?;
        let mut spec = lab.spec(&self.board)?;
        spec.add_disk("old", old, true);
        for (at, slot) in slots.iter().enumerate() {
            spec.add_disk(&format!("slot{at}"), slot, false);
        }
        let machine = Off::new(spec, disk, dir)?.power_on()?;
        machine.wait_healthy()?;
        machine.wait_settled()?;
        machine.sh("systemctl mask --runtime --now rustiot-update rauc")?;
        Ok(machine)
    }
}

/// Lets RAUC install bundle `at` of `www` into the slot of that number.
fn install(machine: &Machine, www: &Path, at: usize, name: &'static str) -> Result<Install> {
    let config = format!(
        "[system]\ncompatible={COMPATIBLE}\nbootloader=noop\nbundle-formats=-plain\nactivate-installed=false\n\
         data-directory=/data/bench-{at}\nmountprefix=/run/bench-{at}\n\n\
         [keyring]\npath=/usr/lib/rustiot/keyring.pem\ncheck-purpose=codesign\n\n\
         [streaming]\nsandbox-user=rustiot-stream\n\n\
         [slot.root.0]\ndevice=/dev/disk/by-id/virtio-old\ntype=raw\nbootname=A\n\n\
         [slot.root.1]\ndevice=/dev/disk/by-id/virtio-slot{at}\ntype=raw\nbootname=B\n"
    );
    machine.put(&format!("/run/bench-{at}.conf"), config.as_bytes(), rustiot_lab::COMMAND)?;
    // What the kernel kept of the old root would hide nothing that travels, but each install begins alike.
    machine.sh(&format!(
        "mkdir -p /data/bench-{at} && sync && echo 3 > /proc/sys/vm/drop_caches && \
         systemd-run --quiet --unit=bench-rauc-{at} --property=Type=dbus --property=BusName=de.pengutronix.rauc \
         rauc --conf=/run/bench-{at}.conf --override-boot-slot=A service"
    ))?;
    let server = FileServer::start(www)?;
    let link = Link::new(server.address(), None)?;
    let url = format!("http://10.0.2.2:{}/{at}.raucb", link.relay().address().port());
    let done = machine.run(&format!("rauc install {url}"), INSTALL)?;
    let log = machine.sh(&format!("journalctl -b -o cat --no-pager -u bench-rauc-{at}"))?;
    ensure!(done.ok(), "rauc install: {}{}\n{log}", done.stdout, done.stderr);
    ensure!(!log.contains("Continuing after adaptive mode error"), "RAUC gave the index up: {log}");
    let (bytes, requests) = (link.relay().bytes(), server.requests());
    machine.sh(&format!("systemctl stop bench-rauc-{at} && sync"))?;
    let bundle = std::fs::metadata(www.join(format!("{at}.raucb"))).context("no bundle")?.len();
    let version = machine.sh("rauc --version")?;
    // How often each source was asked for a block, and how often it had it. Only the adaptive way tells it.
    let (_, fetched) =
        access(&log, "source_image").with_context(|| format!("no word of the index in {log}"))?;
    let (blocks, _) = access(&log, "target_slot_written").context("RAUC does not tell what it wrote")?;
    let zero = access(&log, "zero chunk").map_or(0, |(count, _)| count);
    Ok(Install { name, bytes, bundle, requests, fetched, blocks: blocks.saturating_add(zero), version })
}

/// Of RAUC's line "access stats for LABEL: count=N sum=M.000 …" N and M.
fn access(log: &str, label: &str) -> Option<(u64, u64)> {
    let line = log.lines().find_map(|line| line.split_once("access stats for ")?.1.strip_prefix(label))?;
    let number = |key: &str| -> Option<u64> {
        let digits = line.split_once(key)?.1;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let count = number("count=")?;
    // Where nothing was counted RAUC leaves the sum out.
    Some((count, number("sum=").unwrap_or_default()))
}

/// Whether `slot` begins with all of `image`.
fn same(image: &Path, slot: &Path) -> Result<bool> {
    let mut image = File::open(image).context("cannot read the image")?;
    let mut slot = File::open(slot).context("cannot read the slot")?;
    let (mut wanted, mut got) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let len = image.read(&mut wanted).context("cannot read the image")?;
        let (Some(wanted), Some(got)) = (wanted.get(..len), got.get_mut(..len)) else { return Ok(false) };
        if len == 0 {
            return Ok(true);
        }
        if slot.read_exact(got).is_err() || wanted != got {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "Building new hash index for active_slot with 103748 chunks\n\
        access stats for zero chunk: count=12 sum=12.000 min=1.000 max=1.000 avg=1.000 recent-avg=1.000\n\
        access stats for target_slot_written (reusing source_image): count=103739 sum=400.000 min=0.000\n\
        access stats for active_slot: count=103339 sum=101111.000 min=0.000 max=1.000\n\
        access stats for source_image: count=2228 sum=2228.000 min=1.000 max=1.000\n";

    #[test]
    fn what_rauc_says_of_its_sources_is_read() {
        assert_eq!(access(LOG, "source_image"), Some((2228, 2228)));
        assert_eq!(access(LOG, "target_slot_written"), Some((103_739, 400)));
        assert_eq!(access(LOG, "zero chunk"), Some((12, 12)));
        assert_eq!(access("access stats for source_image: count=0\n", "source_image"), Some((0, 0)));
        assert_eq!(access("installing", "source_image"), None);
    }

    #[test]
    fn a_slot_is_compared_to_the_end_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let (image, slot) = (dir.path().join("image"), dir.path().join("slot"));
        std::fs::write(&image, vec![7; 3_000_000]).unwrap();
        std::fs::write(&slot, vec![7; 3_000_001]).unwrap();
        assert!(same(&image, &slot).unwrap());
        std::fs::write(&slot, vec![7; 2_999_999]).unwrap();
        assert!(!same(&image, &slot).unwrap());
        let mut other = vec![7; 3_000_000];
        other[2_999_999] = 8;
        std::fs::write(&slot, other).unwrap();
        assert!(!same(&image, &slot).unwrap());
    }
}
