//! `bench containers`: the device's container engine beside Docker Engine and podman of Debian, with the same images on
//! the same medium: what they need on disk and in memory, and how long they take, in turns.
//!
//! They live in a world of their own (mounts, processes, network) that goes when this ends, on the workstation or inside a
//! machine in QEMU. Ours is driven by the stock client, as Docker Engine is; podman is its own. Never touches a container
//! engine of the workstation.

use crate::args;
use crate::bench::{Target, aligned, mb, put, row, told};
use crate::bench_delta::machine;
use crate::bench_guest::{self, Guest};
use crate::fail::Done;
use anyhow::{Context as _, Result, ensure};
use rustiot_board::Arch;
use rustiot_image::{Context, Plain, Programs, Toolbox, other_engines};
use rustiot_scratch::Scratch;
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use testbed::writelog::Random;

/// The medium of all of them, bytes: sparse.
const MEDIUM: u64 = 16 << 30;
/// Where all pull from, inside.
const REGISTRY: &str = "127.0.0.1:5000";
/// The device's multi-call binary without the engine (docs/figures.md, sizes): what is more is the engine's.
const WITHOUT_ENGINE: u64 = 9_440_000;
/// How many containers run while their memory is looked at.
const TOGETHER: usize = 10;
/// No step takes longer.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

const ENGINES: [Engine; 3] = [Engine::Ours, Engine::Docker, Engine::Podman];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Ours,
    Docker,
    Podman,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Engine::Ours => "RustIoT",
            Engine::Docker => "Docker Engine",
            Engine::Podman => "podman",
        }
    }

    /// The client, as a shell has it.
    fn client(self) -> &'static str {
        match self {
            Engine::Ours => "docker -H unix:///run/docker.sock",
            Engine::Docker => "docker -H unix:///run/dockerd.sock",
            Engine::Podman => {
                "podman --log-level error --root /medium/podman --runroot /run/podman --cgroup-manager cgroupfs \
                 --events-backend file --runtime crun --storage-driver overlay"
            }
        }
    }

    /// Options of each container: a network only where it is asked for, and on a workstation no controller may be there
    /// that could count processes.
    fn options(self, networks: bool) -> &'static str {
        match (self, networks) {
            (Engine::Ours | Engine::Docker, false) => "--network none",
            (Engine::Podman, false) => "--network none --pids-limit=0",
            (Engine::Ours | Engine::Docker, true) => "",
            (Engine::Podman, true) => "--pids-limit=0",
        }
    }

    /// The processes that are there without a container, as the kernel cuts their names.
    fn daemons(self) -> &'static [&'static str] {
        match self {
            Engine::Ours => &["rustiot-engine"],
            Engine::Docker => &["dockerd", "containerd"],
            Engine::Podman => &[],
        }
    }

    /// The process beside each container.
    fn shim(self) -> &'static str {
        match self {
            Engine::Ours => "rustiot-shim",
            Engine::Docker => "containerd-shim",
            Engine::Podman => "conmon",
        }
    }

    /// Starts the daemons, if there are any. Ours gets the environment of its unit.
    fn start(self, networks: bool) -> Option<String> {
        match self {
            Engine::Ours => Some(format!(
                "mkdir -p /run/rustiot && for name in engine runtime; do \
                 ln -sf /programs/rustiot /run/rustiot/rustiot-$name; done && \
                 MALLOC_ARENA_MAX=1 exec /run/rustiot/rustiot-engine \
                 --data /medium/ours --run /run/ours --socket /run/docker.sock --cgroup rustiot-bench \
                 --shim /programs/rustiot-shim --runtime /run/rustiot/rustiot-runtime --insecure {REGISTRY}"
            )),
            Engine::Docker => {
                let off = if networks { "" } else { "--bridge=none --iptables=false --ip6tables=false" };
                Some(format!(
                    "exec dockerd --data-root /medium/docker --exec-root /run/docker -p /run/docker.pid {off} -l error \
                     -H unix:///run/dockerd.sock"
                ))
            }
            Engine::Podman => None,
        }
    }

    /// Debian's packages of it, without Docker's client.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Engine::Ours => &[],
            Engine::Docker => &["docker.io", "containerd", "runc"],
            Engine::Podman => &["podman", "crun", "netavark", "aardvark-dns"],
        }
    }
}

/// What came out of one engine.
#[derive(Debug, Default, Serialize)]
struct Seen {
    name: &'static str,
    /// Bytes on disk.
    disk: u64,
    /// KiB of PSS: the daemons idle, and what is beside each container.
    idle: u64,
    each: u64,
    /// Milliseconds, one by one.
    run: Vec<f64>,
    start: Vec<f64>,
    /// The same, of ours by the device's own command.
    own_start: Vec<f64>,
    pull_layers: Vec<f64>,
    pull_big: Vec<f64>,
    /// KiB at most while the large image is pulled: daemons, or the command.
    peak: u64,
}

/// `rustiot bench containers`.
pub fn run(context: &Context, args: &args::BenchContainers) -> Done {
    let toolbox = Toolbox::ensure(context, &Plain)?;
    let programs = Programs::build(context, &toolbox, Arch::Amd64, &Plain)?;
    let root = other_engines(context, &Plain)?;
    let dir = Scratch::new(&std::env::temp_dir(), "rustiot-containers")?;
    let medium = dir.file("medium.img");
    File::create(&medium).and_then(|file| file.set_len(MEDIUM)).context("cannot make a medium")?;
    let mut world = World::start(context, &root, &medium, &programs, args.guest)?;
    let mut seen = ENGINES.map(|engine| Seen { name: engine.name(), ..Seen::default() });
    sizes(&world, &programs, &mut seen)?;
    let busybox = std::fs::read(root.join("usr/bin/busybox")).context("no busybox")?;
    images(&mut world, &busybox, args.big)?;
    measure(&mut world, args, &mut seen)?;

    let targets = targets(&seen);
    if args.json.json {
        println!("{}", json!({"engines": seen, "targets": targets}));
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let place = format!("{}; `./rustiot {}`", machine(), words.join(" "));
    let text = format!("{}\n{place}\n", text(&seen, &targets, args, &world.described()));
    println!("{text}");
    if args.write {
        let path = context.repo().join("docs/figures.md");
        let page =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        std::fs::write(&path, put(&page, &marked(args), &title(args), &text))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Which table of the page it is.
fn marked(args: &args::BenchContainers) -> String {
    let guest = if args.guest { " --guest" } else { "" };
    format!("bench containers{guest}{}", if args.networks { " --networks" } else { "" })
}

fn title(args: &args::BenchContainers) -> String {
    let guest = if args.guest { ", in a machine in QEMU" } else { "" };
    let networks = if args.networks { ", on their default networks" } else { "" };
    format!("Containers beside Docker Engine and podman{guest}{networks}")
}

fn measure(world: &mut World, args: &args::BenchContainers, seen: &mut [Seen; 3]) -> Result<()> {
    for (engine, seen) in ENGINES.into_iter().zip(seen.iter_mut()) {
        let name = engine.name();
        eprintln!("  … {name}: memory");
        if let Some(start) = engine.start(args.networks) {
            world.daemon(&start)?;
        }
        let (client, options) = (engine.client(), engine.options(args.networks));
        until(&format!("{name} answers"), || world.sh(&format!("{client} version")))?;
        world.sh(&format!("{client} load -q -i /medium/small.tar"))?;
        // What a load needed is given back, and what a daemon does after its start is done.
        std::thread::sleep(Duration::from_secs(5));
        seen.idle = engine.daemons().iter().map(|name| world.pss(name)).sum::<Result<u64>>()?;
        for n in 0..TOGETHER {
            world.sh(&format!("{client} run -d {options} --name idle{n} small:1 /busybox sleep 3600"))?;
        }
        seen.each = world.pss(engine.shim())? / TOGETHER as u64;
        let names: Vec<String> = (0..TOGETHER).map(|n| format!("idle{n}")).collect();
        world.sh(&format!("{client} rm -f {}", names.join(" ")))?;
    }
    for round in 0..usize::from(args.rounds) {
        eprintln!("  … run and start, round {}", round.saturating_add(1));
        for n in turn(round) {
            let (Some(&engine), Some(seen)) = (ENGINES.get(n), seen.get_mut(n)) else { continue };
            let (client, options) = (engine.client(), engine.options(args.networks));
            seen.run.push(world.time(&format!("{client} run --rm {options} small:1 /busybox true"))?);
            world.sh(&format!("{client} create {options} --name one small:1 /busybox sleep 3600"))?;
            seen.start.push(world.time(&format!("{client} start one"))?);
            world.sh(&format!("{client} rm -f one"))?;
            if engine == Engine::Ours {
                world.sh(&format!("{client} create {options} --name own small:1 /busybox sleep 3600"))?;
                seen.own_start.push(world.time("/programs/rustiot container start own")?);
                world.sh(&format!("{client} rm -f own"))?;
            }
        }
    }
    for round in 0..usize::from(args.pulls) {
        for n in turn(round) {
            let (Some(&engine), Some(seen)) = (ENGINES.get(n), seen.get_mut(n)) else { continue };
            let client = engine.client();
            eprintln!("  … {}: pull, round {}", engine.name(), round.saturating_add(1));
            let (before, of) = match engine {
                Engine::Podman => ("/usr/bin/time -f %M -o /tmp/peak ", "--tls-verify=false "),
                Engine::Ours | Engine::Docker => ("", ""),
            };
            for (image, times) in [("layers", &mut seen.pull_layers), ("big", &mut seen.pull_big)] {
                engine.daemons().iter().try_for_each(|name| world.forget_peak(name))?;
                let reference = format!("{REGISTRY}/{image}:1");
                times.push(world.time(&format!("{before}{client} pull {of}{reference} && sync -f /medium"))?);
                let peak = match engine {
                    Engine::Podman => world.sh("cat /tmp/peak")?.trim().parse().context("no peak")?,
                    Engine::Ours | Engine::Docker => {
                        engine.daemons().iter().map(|name| world.peak(name)).sum::<Result<u64>>()?
                    }
                };
                seen.peak = seen.peak.max(peak);
                world.sh(&format!("{client} rmi {reference} && sync -f /medium"))?;
            }
        }
    }
    Ok(())
}

/// Who is first changes from round to round.
fn turn(round: usize) -> impl Iterator<Item = usize> {
    (0..ENGINES.len()).map(move |n| n.wrapping_add(round) % ENGINES.len())
}

fn until(what: &str, mut is: impl FnMut() -> Result<String>) -> Result<()> {
    let began = Instant::now();
    while let Err(error) = is() {
        ensure!(began.elapsed() < PATIENCE, "{what}: not within {} s: {error:#}", PATIENCE.as_secs());
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Mounts, processes and a network of their own, with other engines' root and the medium at `/medium`.
struct World {
    /// Ends, and everything inside with it, when its input is closed.
    holder: Child,
    inside: String,
    /// Registry and daemons. They go with the world.
    daemons: Vec<Child>,
    /// Where it is, if not here. Goes last.
    guest: Option<Guest>,
}

impl World {
    fn start(
        context: &Context,
        root: &Path,
        medium: &Path,
        programs: &Programs,
        guest: bool,
    ) -> Result<World> {
        let script = context.conf("bench/containers-world.sh");
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(medium).status();
        ensure!(made.context("cannot run mkfs.ext4")?.success(), "mkfs.ext4 failed");
        let guest = guest.then(|| Guest::start(context, root, medium, &script)).transpose()?;
        let programs = programs.device.parent().context("no programs")?;
        let here = [&*script, root, medium, programs].map(|path| path.to_string_lossy().into_owned());
        let [script, root, medium, programs] = match guest {
            Some(_) => [bench_guest::SCRIPT, bench_guest::ROOT, bench_guest::MEDIUM, bench_guest::PROGRAMS]
                .map(str::to_owned),
            None => here,
        };
        let holds = "echo $$ && exec unshare --mount --propagation private --pid --fork --kill-child --net --ipc --uts \
                     sh \"$@\"";
        let words = ["sh", "-c", holds, "sh", &script, &root, &medium, &programs];
        let mut command = outside(guest.as_ref(), &words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().context("cannot run unshare")?;
        let mut said = BufReader::new(holder.stdout.take().context("no output")?).lines();
        let mut next = || said.next().transpose().context("cannot read").map(Option::unwrap_or_default);
        let (id, ready) = (next()?, next()?);
        let mut world = World { holder, inside: String::new(), daemons: Vec::new(), guest };
        ensure!(
            ready == "ready",
            "the world of the engines was not made: root, and loop devices or --guest, are needed"
        );
        let children =
            outside(world.guest.as_ref(), &["cat", &format!("/proc/{id}/task/{id}/children")]).output();
        world.inside = String::from_utf8_lossy(&children.context("no process")?.stdout).trim().to_owned();
        Ok(world)
    }

    /// A shell inside.
    fn command(&self, script: &str) -> Command {
        let mut words =
            vec!["nsenter", "-t", &self.inside, "-m", "-p", "-n", "-i", "-u", "--", "env", "-i", "-C", "/"];
        words.extend([
            "HOME=/tmp",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C.UTF-8",
            "bash",
            "-c",
            script,
        ]);
        let mut command = outside(self.guest.as_ref(), &words);
        command.stdin(Stdio::null());
        command
    }

    /// Where the world is.
    fn described(&self) -> String {
        self.guest.as_ref().map_or_else(|| "the kernel of this machine".to_owned(), Guest::described)
    }

    fn sh(&self, script: &str) -> Result<String> {
        let output = self.command(script).output().context("cannot run nsenter")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{script}` ended with {}: {}", output.status, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a daemon.
    fn daemon(&mut self, script: &str) -> Result<()> {
        let mut command = self.command(script);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.daemons.push(command.spawn().context("cannot run nsenter")?);
        Ok(())
    }

    /// Milliseconds, by the clock inside.
    fn time(&self, script: &str) -> Result<f64> {
        let clock = "${EPOCHREALTIME/[^0-9]/}";
        let said =
            self.sh(&format!("began={clock}; {{ {script}; }} > /tmp/said && echo $(({clock} - began))"))?;
        let microseconds: u64 = said.trim().parse().with_context(|| format!("no time: {said}"))?;
        Ok(microseconds as f64 / 1e3)
    }

    /// The processes of a name: their ids as the kernel cuts the name.
    fn each(&self, name: &str, script: &str) -> Result<u64> {
        let script = format!(
            "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" = {name} ] && {{ {script}; }}; done; true"
        );
        let said = self.sh(&script)?;
        said.split_ascii_whitespace().try_fold(0_u64, |sum, word| {
            Ok(sum.saturating_add(word.parse::<u64>().with_context(|| format!("no number: {word}"))?))
        })
    }

    /// KiB of PSS of all processes of a name.
    fn pss(&self, name: &str) -> Result<u64> {
        let pss = self.each(name, "awk '/^Pss:/ { print $2 }' $p/smaps_rollup")?;
        ensure!(pss > 0, "no process {name}");
        Ok(pss)
    }

    fn forget_peak(&self, name: &str) -> Result<()> {
        self.each(name, "echo 5 > $p/clear_refs").map(drop)
    }

    fn peak(&self, name: &str) -> Result<u64> {
        self.each(name, "awk '/^VmHWM:/ { print $2 }' $p/status")
    }
}

/// A command where the world is, outside of it.
fn outside(guest: Option<&Guest>, words: &[&str]) -> Command {
    if let Some(guest) = guest {
        return guest.command(words);
    }
    let mut words = words.iter();
    let mut command = Command::new(words.next().copied().unwrap_or_default());
    command.args(words);
    command
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        for daemon in &mut self.daemons {
            let _ = daemon.wait();
        }
    }
}

/// What each needs on disk: ours by its files, others by Debian's packages with what they depend on beyond the base.
fn sizes(world: &World, programs: &Programs, seen: &mut [Seen; 3]) -> Result<()> {
    let bytes = |path: &Path| std::fs::metadata(path).map(|meta| meta.len()).context("no program");
    let listed = world.sh(
        "dpkg-query -W -f '${Package}\\t${Installed-Size}\\t${Depends}, ${Pre-Depends}\\t${Provides}\\t${Essential}\\n'",
    )?;
    let all = Packages::parse(&listed);
    let base: Vec<&str> =
        all.essential.iter().map(String::as_str).chain(["iproute2", "ca-certificates"]).collect();
    let base = all.closure(&base);
    for (engine, seen) in ENGINES.into_iter().zip(seen) {
        seen.disk = match engine {
            Engine::Ours => {
                let device = bytes(&programs.device)?;
                device.saturating_sub(WITHOUT_ENGINE).saturating_add(bytes(&programs.shim)?)
            }
            Engine::Docker | Engine::Podman => {
                let more = all.closure(engine.packages());
                more.difference(&base).filter_map(|name| Some(all.packages.get(name)?.0)).sum::<u64>() << 10
            }
        };
    }
    Ok(())
}

/// dpkg's own list.
#[derive(Default)]
struct Packages {
    /// KiB and what it depends on, each with its alternatives.
    packages: BTreeMap<String, (u64, Vec<Vec<String>>)>,
    provided: BTreeMap<String, String>,
    essential: Vec<String>,
}

impl Packages {
    fn parse(text: &str) -> Packages {
        let word = |text: &str| -> String {
            text.split_ascii_whitespace()
                .next()
                .unwrap_or_default()
                .split(':')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let mut all = Packages::default();
        for line in text.lines() {
            let mut fields = line.split('\t');
            let mut next = || fields.next().unwrap_or_default();
            let (name, size, depends, provides, essential) = (next(), next(), next(), next(), next());
            let depends = depends.split(',').map(|one| one.split('|').map(word).collect()).collect();
            all.packages.insert(name.to_owned(), (size.parse().unwrap_or_default(), depends));
            all.provided.extend(provides.split(',').map(|one| (word(one), name.to_owned())));
            if essential == "yes" {
                all.essential.push(name.to_owned());
            }
        }
        all
    }

    /// These and all that they need.
    fn closure(&self, of: &[&str]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut left: Vec<String> = of.iter().map(|name| (*name).to_owned()).collect();
        while let Some(name) = left.pop() {
            let Some((_, depends)) = self.packages.get(&name) else { continue };
            if found.insert(name) {
                left.extend(depends.iter().filter_map(|one| {
                    let there = |name: &&String| self.packages.contains_key(*name);
                    one.iter()
                        .find(there)
                        .or_else(|| one.iter().find_map(|name| self.provided.get(name)))
                        .cloned()
                }));
            }
        }
        found
    }
}

/// The small image, and two in the registry: 50 layers, and a large one.
fn images(world: &mut World, busybox: &[u8], big: u64) -> Result<()> {
    eprintln!("  … images");
    let config = format!(
        "version: 0.1\\nstorage:\\n  filesystem:\\n    rootdirectory: /medium/registry\\nhttp:\\n  addr: {REGISTRY}\\n"
    );
    world.sh(&format!("printf '{config}' > /tmp/registry.yml"))?;
    world.daemon("exec docker-registry serve /tmp/registry.yml")?;
    let mut random = Random(7);
    let base = [("busybox".to_owned(), busybox.to_vec())];
    let mut layers = |count: u64, files: u64, bytes: usize| -> Vec<Vec<(String, Vec<u8>)>> {
        (0..count)
            .map(|layer| {
                (0..files).map(|n| (format!("d{layer}/f{n}"), content(&mut random, bytes))).collect()
            })
            .collect()
    };
    let many = layers(49, 10, 50_000);
    // Layers of 20 MB with files of 100 kB.
    let large = layers(big.div_ceil(20), 200, 100_000);
    for (name, above) in [("small", Vec::new()), ("layers", many), ("big", large)] {
        let mut write = world
            .command(&format!("cat > /medium/{name}.tar"))
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run nsenter")?;
        let mut pipe = write.stdin.take().context("no input")?;
        pipe.write_all(&archive(&format!("{name}:1"), &base, &above)?).context("cannot write an image")?;
        drop(pipe);
        ensure!(write.wait().context("cannot wait")?.success(), "cannot write an image");
        if name != "small" {
            let push = format!(
                "skopeo --insecure-policy copy -q --dest-tls-verify=false --dest-compress docker-archive:/medium/{name}.tar \
                 docker://{REGISTRY}/{name}:1"
            );
            until("the registry takes an image", || world.sh(&push))?;
        }
    }
    Ok(())
}

/// Compresses to about half, as programs do.
fn content(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.saturating_add(16));
    while out.len() < bytes {
        out.extend_from_slice(&random.next().to_le_bytes());
        out.extend_from_slice(b"the same");
    }
    out.truncate(bytes);
    out
}

/// A Docker archive of an image.
fn archive(name: &str, base: &[(String, Vec<u8>)], above: &[Vec<(String, Vec<u8>)>]) -> Result<Vec<u8>> {
    let add = |tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(u64::try_from(bytes.len())?);
        tar.append_data(&mut header, name, bytes).with_context(|| format!("cannot add {name}"))
    };
    let mut all = tar::Builder::new(Vec::new());
    let (mut ids, mut names) = (Vec::new(), Vec::new());
    for (number, files) in std::iter::once(base).chain(above.iter().map(Vec::as_slice)).enumerate() {
        let mut layer = tar::Builder::new(Vec::new());
        files.iter().try_for_each(|(name, bytes)| add(&mut layer, name, bytes))?;
        let layer = layer.into_inner().context("cannot make a layer")?;
        ids.push(format!("sha256:{}", rustiot_repository::Digest::of(&layer)));
        names.push(format!("{number}.tar"));
        add(&mut all, &format!("{number}.tar"), &layer)?;
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/busybox"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
    add(&mut all, "config.json", config.to_string().as_bytes())?;
    add(&mut all, "manifest.json", manifest.to_string().as_bytes())?;
    all.into_inner().context("cannot make an archive")
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn targets(seen: &[Seen; 3]) -> Vec<Target> {
    let [ours, docker, podman] = seen;
    let most = |what: &str, figure: u64, wanted: u64| Target {
        what: what.to_owned(),
        figure: mb(figure),
        wanted: format!("at most {}", mb(wanted)),
        met: figure <= wanted && figure > 0,
    };
    let mut all = vec![
        most("engine on disk", ours.disk, 12_000_000),
        most("idle PSS of the engine", ours.idle << 10, 10_000_000),
        most("PSS beside each container", ours.each << 10, 1_000_000),
        most("peak memory of a pull", ours.peak << 10, 48_000_000),
    ];
    let mut faster = |what: &str, of: fn(&Seen) -> &[f64], podman_times: f64| {
        for (other, wanted) in [(podman, podman_times), (docker, 1.0)] {
            let ratio = median(of(other)) / median(of(ours));
            all.push(Target {
                what: format!("{what}, {} against ours", other.name),
                figure: format!("{ratio:.2}×"),
                wanted: format!("at least {wanted}×"),
                met: ratio >= wanted,
            });
        }
    };
    faster("`run --rm … true`", |seen| &seen.run, 2.0);
    faster("start of a created container", |seen| &seen.start, 2.0);
    let ratio = median(&podman.start) / median(&ours.own_start);
    let own = Target {
        what: "the same, podman against ours by the device's own command".to_owned(),
        figure: format!("{ratio:.2}×"),
        wanted: "at least 2×".to_owned(),
        met: ratio >= 2.0,
    };
    faster("pull of 50 layers", |seen| &seen.pull_layers, 1.0);
    faster("pull of the large image", |seen| &seen.pull_big, 1.0);
    all.insert(7, own);
    all
}

fn text(seen: &[Seen; 3], targets: &[Target], args: &args::BenchContainers, place: &str) -> String {
    let [ours, ..] = seen;
    let mut table = vec![row(["what", "RustIoT", "Docker Engine", "podman"])];
    let mut line = |what: String, cell: &dyn Fn(&Seen) -> String| {
        table.push(std::iter::once(what).chain(seen.iter().map(cell)).collect());
    };
    line("on disk".to_owned(), &|seen| mb(seen.disk));
    line("PSS of the daemons, idle".to_owned(), &|seen| mb(seen.idle << 10));
    line("PSS beside each container".to_owned(), &|seen| mb(seen.each << 10));
    line("peak memory of a pull".to_owned(), &|seen| mb(seen.peak << 10));
    let mut timed = |what: &str, of: fn(&Seen) -> &[f64]| {
        line(what.to_owned(), &|seen| {
            let (one, all) = (median(of(seen)), of(seen));
            if all.is_empty() {
                return String::new();
            }
            let (least, most) =
                (all.iter().copied().fold(f64::MAX, f64::min), all.iter().copied().fold(0.0, f64::max));
            format!("{one:.0} ms ({least:.0}–{most:.0}), {:.2}×", one / median(of(ours)))
        });
    };
    timed("`run --rm … true`", |seen| &seen.run);
    timed("start of a created container", |seen| &seen.start);
    timed("… by the device's own command", |seen| &seen.own_start);
    timed("pull of 50 layers", |seen| &seen.pull_layers);
    timed("pull of the large image", |seen| &seen.pull_big);
    let networks = if args.networks {
        "each container on its engine's default network"
    } else {
        "no network of containers"
    };
    let notes = [format!(
        "Debian's packages in one root with our programs, data on one ext4; {place}; {networks}. Times: median of {} \
         rounds ({} for pulls), least and most, times ours; the engines took turns. RustIoT and Docker Engine are driven by the same stock client, podman has none. \
         50 layers: half a megabyte each; the large image: {} MB; both compress to about half, come from \
         docker-registry beside them, and the pull ends with `sync -f` of the medium. On disk: ours is what the device's \
         binary grew by ({} MB without) and the shim; others are Debian's packages without Docker's client, with what \
         they depend on beyond essential packages, iproute2 and ca-certificates. PSS idle: five seconds after an image \
         was loaded; ours maps no page of its program that it has not used since 3 s after the last client, the pages \
         stay in the system's cache. Peak: VmHWM of the daemons, or of the podman process.",
        args.rounds,
        args.pulls,
        args.big,
        WITHOUT_ENGINE as f64 / 1e6
    )];
    aligned(&table) + "\n" + &told(targets, &notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_counted_with_what_they_need_and_once() {
        let text = "a\t10\tb (>= 1), c | d, \t\t\nb\t20\tx\t\t\nd\t30\t, base\t\t\ny\t40\t\tx (= 1)\t\nbase\t50\t\t\tyes\n";
        let all = Packages::parse(text);
        let names = |of: &[&str]| all.closure(of).into_iter().collect::<Vec<_>>();
        assert_eq!(names(&["a"]), ["a", "b", "base", "d", "y"]);
        assert_eq!(all.essential, ["base"]);
        assert_eq!(names(&["none"]), Vec::<String>::new());
    }

    #[test]
    fn ours_has_the_environment_of_its_unit() {
        let unit = include_str!("../../../../conf/rootfs/usr/lib/systemd/system/rustiot-engine.service");
        let set: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("Environment=")).collect();
        assert!(!set.is_empty());
        let start = Engine::Ours.start(false).unwrap();
        assert!(set.iter().all(|set| start.contains(&format!("{set} "))), "{set:?} in {start}");
    }

    #[test]
    fn each_engine_is_first_in_its_turn() {
        assert_eq!(turn(0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(turn(2).collect::<Vec<_>>(), [2, 0, 1]);
    }

    #[test]
    fn the_median_is_one_of_what_was_seen() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }
}
