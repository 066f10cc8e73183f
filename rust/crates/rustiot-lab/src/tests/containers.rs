//! Containers on a device: driven by the stock client, held to their limits, kept over restarts and updates, and unable
//! to hurt the system or each other.

use super::update;
use crate::containers::{Engine, IMAGE, Registry, layer, noise};
use crate::ctx::Ctx;
use crate::device::Device;
use crate::fixtures::{A, B};
use crate::runner::{LabTest, Tag};
use anyhow::{Context as _, Result, bail, ensure};
use std::time::{Duration, Instant};
use testbed::Machine;

pub(super) const TESTS: &[LabTest] = &[
    LabTest {
        name: "a_hostile_container_hurts_neither_the_system_nor_its_neighbour",
        boards: &[],
        promise: "Whatever a container does with memory, processes, disk, log and processor, and whatever it tries to get out, the system answers, keeps its watchdog and a neighbouring container goes on.",
        tags: &[Tag::QuickOnFirst],
        run: a_hostile_container_hurts_neither_the_system_nor_its_neighbour,
    },
    LabTest {
        name: "containers_and_their_data_outlive_an_update",
        boards: &[],
        promise: "After an update of the system, containers run again as their restart policy says, with their images and volumes.",
        tags: &[Tag::QuickOnFirst],
        run: containers_and_their_data_outlive_an_update,
    },
    LabTest {
        name: "the_stock_docker_client_drives_the_engine",
        boards: &[],
        promise: "The stock Docker client at a workstation loads an image, runs, enters, reads and removes containers on the device.",
        tags: &[Tag::QuickOnFirst],
        run: the_stock_docker_client_drives_the_engine,
    },
    LabTest {
        name: "a_container_gets_no_more_than_its_limits",
        boards: &[],
        promise: "A container that wants more memory, processes or processor than it was given gets no more, and alone ends by it.",
        tags: &[Tag::QuickOnFirst],
        run: a_container_gets_no_more_than_its_limits,
    },
    LabTest {
        name: "containers_run_on_when_the_engine_dies",
        boards: &[],
        promise: "When the container engine is killed, containers run on, and the next engine has them again.",
        tags: &[Tag::QuickOnFirst],
        run: containers_run_on_when_the_engine_dies,
    },
    LabTest {
        name: "containers_talk_and_the_host_stays_closed",
        boards: &[],
        promise: "Containers of a network find each other by name and reach the outside, a published port is reached from outside with the true source, all else is closed; and it is so again after networkd, the rules or the engine went.",
        tags: &[Tag::QuickOnFirst],
        run: containers_talk_and_the_host_stays_closed,
    },
    LabTest {
        name: "a_hundred_containers_run_on_a_gigabyte",
        boards: &[],
        promise: "A hundred containers run on a device with 1 GB of memory, which stays healthy and answers.",
        tags: &[],
        run: a_hundred_containers_run_on_a_gigabyte,
    },
    LabTest {
        name: "a_new_version_of_an_image_is_pulled_by_its_difference",
        boards: &[],
        promise: "A device that has a version of an image pulls the next one from a stock registry by the published difference and runs it; where that is damaged it fetches the whole layer, and says so.",
        tags: &[],
        run: a_new_version_of_an_image_is_pulled_by_its_difference,
    },
];

/// How long something of a container may take to come about, emulated.
const SOON: Duration = Duration::from_secs(120);
/// The control groups of containers, by their ids.
const GROUPS: &str = "/sys/fs/cgroup/rustiot.slice/rustiot-apps.slice/rustiot-apps.service";
/// What an idle engine may have of memory, and the process beside each container: KiB of PSS.
const ENGINE_PSS: u64 = 10 << 10;
const SHIM_PSS: u64 = 1 << 10;

fn the_stock_docker_client_drives_the_engine(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let engine = Engine::with_image(ctx, &machine)?;
    let versions = engine.ok(&["version", "--format", "{{.Server.APIVersion}} {{.Server.Os}}"])?;
    ensure!(versions.ends_with(" linux"), "version: {versions}");
    ensure!(engine.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"])? == IMAGE, "images");
    let run = |mode: &[&str]| engine.docker(&[&["run", "--rm", "--network", "none", IMAGE], mode].concat());
    ensure!(run(&["say", "hello"])?.stdout == "hello\n", "run --rm");
    ensure!(run(&["end", "7"])?.status == 7, "the exit code of run --rm");

    engine.start("one", &["-v", "store:/v", "-e", "KEY=value"], &["idle"])?;
    engine.wait_log("one", "begun", SOON)?;
    ensure!(engine.ok(&["ps", "--format", "{{.Names}} {{.Image}}"])? == format!("one {IMAGE}"), "ps");
    ensure!(engine.ok(&["exec", "one", "/app", "say", "inside"])? == "inside", "exec");
    engine.ok(&["exec", "one", "/app", "keep", "/v/file", "kept"])?;
    ensure!(engine.ok(&["exec", "one", "/app", "show", "/v/file"])? == "kept", "a volume");
    ensure!(engine.ok(&["top", "one"])?.contains("/app idle"), "top");
    let copy = ctx.dir().join("copied");
    engine.ok(&["cp", "one:/v/file", &copy.to_string_lossy()])?;
    ensure!(std::fs::read(&copy).context("cp copied nothing")? == b"kept", "cp out");
    engine.ok(&["cp", &copy.to_string_lossy(), "one:/tmp/back"])?;
    ensure!(engine.ok(&["exec", "one", "/app", "show", "/tmp/back"])? == "kept", "cp in");
    let stats = engine.ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}} {{.MemUsage}}"])?;
    ensure!(stats.starts_with("one 1 ") && !stats.contains(" 0B /"), "stats: {stats}");

    let pss = |pid: &str| -> Result<u64> {
        let read = format!("awk '/^Pss:/ {{ print $2 }}' /proc/$({pid})/smaps_rollup");
        machine.sh(&read)?.parse().context("no PSS")
    };
    let engine_pss = pss("systemctl show -P MainPID rustiot-engine.service")?;
    let shim_pss = pss(&format!("head -1 {GROUPS}/shims/cgroup.procs"))?;
    ctx.figures.note("engine_pss_kib", engine_pss);
    ctx.figures.note("shim_pss_kib", shim_pss);
    ensure!(engine_pss <= ENGINE_PSS, "the engine has {engine_pss} KiB of memory, more than {ENGINE_PSS}");
    ensure!(shim_pss <= SHIM_PSS, "a shim has {shim_pss} KiB of memory, more than {SHIM_PSS}");

    engine.ok(&["stop", "one"])?;
    ensure!(engine.inspect(".State.ExitCode", "one")? == "3", "stop");
    engine.ok(&["rm", "one"])?;
    engine.ok(&["volume", "rm", "store"])?;
    engine.ok(&["rmi", IMAGE])?;
    ensure!(
        engine.ok(&["system", "df", "--format", "{{.TotalCount}}"])? == "0\n0\n0\n0",
        "something is left"
    );

    // The device's own command line says the same things.
    let archive = crate::containers::image(ctx)?;
    machine.put("/data/app.tar", &std::fs::read(archive).context("cannot read the image")?, SOON)?;
    machine.sh("rustiot container load /data/app.tar && rm /data/app.tar")?;
    machine.sh(&format!("rustiot container run --name two --network none --volume store:/v {IMAGE} idle"))?;
    let list = machine.sh("rustiot container list")?;
    ensure!(list.lines().count() == 2 && list.contains("two "), "container list: {list}");
    engine.wait_log("two", "begun", SOON)?;
    ensure!(machine.sh("rustiot container logs two")? == "begun", "container logs");
    machine.sh("rustiot container stop two && rustiot container remove two")?;
    ensure!(machine.sh("rustiot container list --all --json")? == "[]", "container remove");
    ensure!(machine.run("rustiot container stop two", SOON)?.status == 1, "a container that is not there");
    nothing_failed(&machine)
}

fn a_container_gets_no_more_than_its_limits(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let engine = Engine::with_image(ctx, &machine)?;
    engine.start("neighbour", &["-v", "beat:/v"], &["beat", "/v/beat"])?;
    let group = |name: &str| -> Result<String> { Ok(format!("{GROUPS}/{}", engine.inspect(".Id", name)?)) };

    engine.start("hog", &["--memory", "32m", "--memory-swap", "32m"], &["hog"])?;
    engine.wait_for("hog", ".State.Status", "exited", SOON)?;
    ensure!(engine.inspect(".State.OOMKilled", "hog")? == "true", "hog: not for want of memory");
    ensure!(engine.inspect(".State.ExitCode", "hog")? == "137", "hog: exit code");
    let log = engine.ok(&["logs", "hog"])?;
    ensure!(!log.contains("48 MiB"), "32 MiB were not the end: {log}");

    engine.start("bomb", &["--pids-limit", "20"], &["bomb"])?;
    engine.wait_log("bomb", "refused: Resource temporarily unavailable", SOON)?;
    let pids: u64 = machine.sh(&format!("cat {}/pids.peak", group("bomb")?))?.parse().context("pids.peak")?;
    ensure!(pids <= 20, "{pids} processes");
    engine.ok(&["rm", "-f", "bomb"])?;

    engine.start("spinner", &["--cpus", "0.2"], &["spin", "2"])?;
    // The share of one processor over five seconds, of the kernel's own counters.
    let used = machine.sh(&format!(
        "cd {} && u() {{ awk '/^usage_usec/ {{ print $2 }}' cpu.stat; }}; n() {{ awk '{{ print $1 }}' /proc/uptime; }}; \
         a=$(u); s=$(n); sleep 5; b=$(u); e=$(n); echo $a $b $s $e | awk '{{ printf \"%d\", ($2-$1)/($4-$3)/10000 }}'",
        group("spinner")?
    ))?;
    let percent: u64 = used.parse().with_context(|| format!("no share: {used}"))?;
    ctx.figures.note("percent_of_a_processor_with_cpus_0_2", percent);
    ensure!(percent <= 25, "{percent} % of a processor instead of 20");
    engine.ok(&["rm", "-f", "spinner"])?;

    ensure!(engine.inspect(".State.Running", "neighbour")? == "true", "the neighbour ended");
    ensure!(engine.inspect(".RestartCount", "neighbour")? == "0", "the neighbour was started again");
    nothing_failed(&machine)
}

fn containers_run_on_when_the_engine_dies(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let engine = Engine::with_image(ctx, &machine)?;
    engine.start("stays", &["-v", "beat:/v"], &["beat", "/v/beat"])?;
    engine.start("ends", &[], &["idle"])?;
    engine.wait_log("stays", "late", SOON)?;
    let before = engine.inspect(".State.Pid", "stays")?;
    // While no engine is there, one container ends.
    let ends = engine.inspect(".State.Pid", "ends")?;
    let pid = "systemctl show -P MainPID rustiot-engine.service";
    machine.sh(&format!("kill -KILL $({pid}) && kill -TERM {ends}"))?;
    // The client's call waits at the socket, which is systemd's, until there is an engine again.
    ensure!(engine.inspect(".State.Pid", "stays")? == before, "the container is another one");
    ensure!(engine.ok(&["exec", "stays", "/app", "say", "inside"])? == "inside", "exec");
    engine.wait_for("ends", ".State.Status", "exited", SOON)?;
    ensure!(engine.inspect(".State.ExitCode", "ends")? == "3", "the exit code was lost");
    // An orderly restart, as a new version of the engine brings it.
    machine.sh("systemctl restart rustiot-engine.service")?;
    ensure!(engine.inspect(".State.Pid", "stays")? == before, "the container is another one");
    engine.ok(&["stop", "stays"])?;
    ensure!(engine.inspect(".State.ExitCode", "stays")? == "3", "stop");
    nothing_failed(&machine)
}

/// What is asked of networks, again and again: a machine with an engine, and what stands outside.
struct Net<'a> {
    machine: &'a Machine,
    engine: &'a Engine,
    /// The port of this side that leads to the device's published one.
    published: u16,
    /// A service outside, as the device names it.
    outside: u16,
}

/// The device's published port.
const PUBLISHED: u16 = 8080;
/// What stands outside says this to whoever comes.
const OUTSIDE: &str = "outside";

impl Net<'_> {
    /// What a program in a container says and whether it ended well.
    fn inside(&self, container: &str, mode: &[&str]) -> Result<(bool, String)> {
        let output = self.engine.docker(&[&["exec", container, "/app"], mode].concat())?;
        Ok((output.ok(), output.stdout.trim_end().to_owned()))
    }

    fn open(&self, container: &str, host: &str, port: &str, says: &str) -> Result<()> {
        let (ok, said) = self.inside(container, &["ask", host, port])?;
        ensure!(
            ok && said.starts_with(says),
            "{container} asks {host}:{port}, and hears {said:?}, not {says:?}"
        );
        Ok(())
    }

    fn closed(&self, container: &str, host: &str, port: &str) -> Result<()> {
        let (ok, said) = self.inside(container, &["ask", host, port])?;
        ensure!(!ok && said.starts_with("closed: "), "{container} asks {host}:{port}, and hears {said:?}");
        Ok(())
    }

    fn address(&self, network: &str, container: &str) -> Result<String> {
        self.engine.inspect(&format!("(index .NetworkSettings.Networks {network:?}).IPAddress"), container)
    }

    /// What the published port says to this side of the machine.
    fn published_says(&self) -> Result<String> {
        use std::io::Read as _;
        let wait = Duration::from_secs(10);
        let address = (std::net::Ipv4Addr::LOCALHOST, self.published).into();
        let mut stream = std::net::TcpStream::connect_timeout(&address, wait).context("cannot connect")?;
        stream.set_read_timeout(Some(wait)).context("cannot set a time limit")?;
        let mut said = String::new();
        stream.read_to_string(&mut said).context("cannot read")?;
        Ok(said)
    }

    /// The published port is open, and shows where we come from.
    fn reached(&self) -> Result<()> {
        // QEMU's network shows this side as the machine's gateway: no address of the device's own.
        let said = self.published_says()?;
        ensure!(said == "you are 10.0.2.2\n", "the published port says {said:?}");
        Ok(())
    }

    /// Everything that is open and everything that is closed.
    fn check(&self) -> Result<()> {
        let web = self.address("shop", "web")?;
        let client = self.address("shop", "client")?;
        for name in ["web", "front", "web.shop", "WEB"] {
            ensure!(self.inside("client", &["resolve", name])? == (true, web.clone()), "the name {name}");
        }
        self.open("client", "web", "80", &format!("you are {client}"))?;
        let mut known = self.inside("client", &["resolve", "all"])?.1.lines().count();
        ensure!(known == 2, "{known} of two containers by one alias");
        known = self.inside("web", &["resolve", "all"])?.1.lines().count();
        ensure!(known == 2, "{known} of two containers by one alias");
        // Of another network: neither by name nor by address.
        ensure!(!self.inside("client", &["resolve", "single"])?.0, "a name of another network");
        ensure!(!self.inside("single", &["resolve", "web"])?.0, "a name of another network");
        self.closed("client", &self.address("bridge", "single")?, "80")?;
        self.closed("single", &web, "80")?;
        // Outside, from both networks.
        for container in ["client", "single"] {
            self.open(container, "10.0.2.2", &self.outside.to_string(), OUTSIDE)?;
        }
        // The device's ssh is open to us and to the network that was given it, and to no other.
        let gateway = |network: &str| {
            self.engine.ok(&["network", "inspect", "-f", "{{ (index .IPAM.Config 0).Gateway }}", network])
        };
        for (container, network) in [("client", "shop"), ("single", "bridge")] {
            self.closed(container, &gateway(network)?, "22")?;
            self.closed(container, "10.0.2.15", "22")?;
        }
        self.open("allowed", &gateway("ours")?, "22", "SSH-2.0")?;
        self.closed("allowed", "10.0.2.15", "22")?;
        self.reached()
    }

    /// Waits until the rules are there again; how long it took.
    fn repaired(&self) -> Result<Duration> {
        let began = Instant::now();
        while let Err(error) = self.reached() {
            ensure!(began.elapsed() < SOON, "the rules are not back: {error:#}");
        }
        Ok(began.elapsed())
    }
}

fn containers_talk_and_the_host_stays_closed(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let engine = Engine::with_image(ctx, &machine)?;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("cannot listen")?;
    let outside = listener.local_addr().context("no port")?.port();
    std::thread::spawn(move || {
        use std::io::Write as _;
        // Until the process ends. Whoever hangs up early is none of our concern.
        listener.incoming().flatten().for_each(|mut client| drop(client.write_all(OUTSIDE.as_bytes())));
    });
    let net = Net { machine: &machine, engine: &engine, published: machine.forward(PUBLISHED)?, outside };

    engine.ok(&["network", "create", "shop"])?;
    engine.ok(&["network", "create", "-o", "rustiot.host-ports=22/tcp", "ours"])?;
    let port = format!("{PUBLISHED}:80");
    let start = |name: &str, options: &[&str], mode: &[&str]| {
        engine.ok(&[&["run", "-d", "--name", name], options, &[IMAGE], mode].concat())
    };
    let alias = ["--network", "shop", "--network-alias", "all", "--network-alias"];
    start("web", &[&alias[..], &["front", "-p", &port]].concat(), &["serve", "80"])?;
    start("client", &[&alias[..], &["asker"]].concat(), &["idle"])?;
    start("single", &[], &["serve", "80"])?;
    start("allowed", &["--network", "ours"], &["idle"])?;
    engine.wait_log("web", "begun", SOON)?;
    engine.wait_log("single", "begun", SOON)?;
    net.check().context("at first")?;
    let log = engine.ok(&["logs", "web"])?;
    ensure!(log.lines().any(|line| line == "from 10.0.2.2"), "the container saw {log}");
    let taken = engine.docker(&["run", "--rm", "-p", &port, IMAGE, "say", "x"])?;
    ensure!(
        !taken.ok() && taken.stderr.contains("port is already allocated"),
        "a taken port: {}",
        taken.stderr
    );

    machine.sh("networkctl reload")?;
    net.check().context("after networkctl reload")?;
    machine.sh("systemctl restart systemd-networkd.service")?;
    net.check().context("after a restart of systemd-networkd")?;

    let flush = ["run", "--rm", "--network", "host", "--cap-add", "NET_ADMIN", IMAGE, "flush"];
    ensure!(engine.ok(&flush)? == "flushed", "the rules were not flushed");
    let repaired = net.repaired()?;
    ctx.figures.note("rules_back_after_ms", u64::try_from(repaired.as_millis()).unwrap_or(u64::MAX));
    net.check().context("after the rules were flushed")?;

    let before = net.address("shop", "web")?;
    machine.sh("systemctl kill -s KILL rustiot-engine.service")?;
    net.reached().context("while the engine is away")?;
    ensure!(net.address("shop", "web")? == before, "another address");
    net.check().context("after the engine was killed")?;

    // IPv6 where it is asked for: the kernel takes the rules, which come all at once, and the host gets there.
    engine.ok(&["network", "create", "--ipv6", "six"])?;
    start("both", &["--network", "six"], &["idle"])?;
    let address = engine.inspect(".NetworkSettings.Networks.six.GlobalIPv6Address", "both")?;
    ensure!(address.contains(':'), "no IPv6 address: {address:?}");
    machine.sh(&format!("ping -6 -c 1 -W 20 {address}"))?;
    machine.sh("nft list table inet rustiot-networks | grep -q 'ip6 saddr .* masquerade'")?;
    net.check().context("beside a network with IPv6")?;

    for name in ["web", "client", "single", "allowed", "both"] {
        engine.ok(&["rm", "-f", name])?;
    }
    ensure!(net.published_says().map_or(true, |said| said.is_empty()), "the port is still published");
    engine.ok(&["network", "rm", "shop", "ours", "six"])?;
    ensure!(
        engine.ok(&["network", "ls", "--format", "{{.Name}}"])? == "bridge\nhost\nnone",
        "networks are left"
    );
    let links = net.machine.sh("ip -o link | grep -c -e ' rib-' -e ' riv-'")?;
    ensure!(links == "1", "{links} links of ours are left, instead of the default bridge");
    nothing_failed(&machine)
}

/// A layer that is rebuilt in each version: many files that stay, a library whose every 64 KiB differ in a few bytes, and
/// the version. Half of it is noise, so that it compresses as programs do.
fn app(version: u64) -> Vec<(String, Vec<u8>)> {
    let half = |seed, length: usize| -> Vec<u8> {
        noise(seed, length / 2).chunks(8).flat_map(|noise| [noise, b"the same"].concat()).collect()
    };
    let mut library = half(1, 8 << 20);
    for (at, piece) in library.chunks_mut(64 << 10).enumerate() {
        let own = noise((version << 32) | at as u64, 12);
        piece.iter_mut().skip(30_000).zip(own).for_each(|(byte, own)| *byte = own);
    }
    let mut files: Vec<_> = (0..32).map(|n| (format!("data-{n}"), half(2 + n, 1 << 20))).collect();
    files.push(("library".to_owned(), library));
    files.push(("version".to_owned(), version.to_string().into_bytes()));
    files
}

/// What may go over the wire beside a delta: the image's manifest and configuration, the list, the artifact, and heads.
const BESIDE: u64 = 20_000;

fn a_new_version_of_an_image_is_pulled_by_its_difference(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let engine = Engine::of(ctx, &machine)?;
    let registry = Registry::empty(ctx)?;
    registry.allow(&machine)?;
    let base = layer(&[("base".to_owned(), noise(99, 200_000))])?;
    for version in [1, 2] {
        registry.push(&version.to_string(), &[base.clone(), layer(&app(version))?])?;
    }
    let (old, new) = (registry.name("1"), registry.name("2"));
    let runs = |image: &str, version: &str| -> Result<()> {
        let said = engine.ok(&["run", "--rm", "--network", "none", image, "show", "/version"])?;
        ensure!(said == version, "{image} says that it is version {said:?}");
        Ok(())
    };
    engine.pull(&machine, &registry, "1")?;
    runs(&old, "1")?;

    // Nothing is published yet.
    let whole = engine.pull(&machine, &registry, "2")?;
    ensure!(!whole.said.contains("Delta not used"), "{}", whole.said);
    engine.ok(&["rmi", &new])?;

    let published = registry.publish_deltas("1", "2")?;
    let [made] = &published.layers[..] else { bail!("deltas for {} layers", published.layers.len()) };
    let delta_bytes = made.delta_bytes.filter(|_| made.offered).context("no delta is offered")?;
    ensure!(delta_bytes * 100 < made.layer_bytes, "a delta of {delta_bytes} for {}", made.layer_bytes);
    ensure!(whole.wire > made.layer_bytes, "{} bytes for {}", whole.wire, made.layer_bytes);
    let by_delta = engine.pull(&machine, &registry, "2")?;
    let (said, wire) = (&by_delta.said, by_delta.wire);
    ensure!(!said.contains("Delta not used"), "{said}");
    ensure!(
        (delta_bytes..delta_bytes + BESIDE).contains(&wire),
        "{wire} bytes on the wire for a delta of {delta_bytes}: {said}"
    );
    runs(&new, "2")?;
    engine.ok(&["create", "--name", "copied", "--network", "none", &new])?;
    let copy = ctx.dir().join("library");
    engine.ok(&["cp", "copied:/library", &copy.to_string_lossy()])?;
    let (copied, pushed) = (std::fs::read(&copy).context("cp copied nothing")?, app(2));
    ensure!(pushed.iter().any(|(name, bytes)| name == "library" && *bytes == copied), "another library");
    engine.ok(&["rm", "copied"])?;
    engine.ok(&["rmi", &new])?;

    registry.spoil(&published)?;
    let rotten = engine.pull(&machine, &registry, "2")?;
    ensure!(rotten.wire > whole.wire && rotten.wire < whole.wire + delta_bytes + BESIDE, "{rotten:?}");
    let line = rotten.said.lines().find(|line| line.contains("Delta not used, fetching the whole layer"));
    ensure!(line.is_some(), "the client does not tell: {}", rotten.said);
    let log = machine.sh("journalctl --sync; journalctl -q -u rustiot-engine.service -o cat")?;
    let told = log.lines().find(|line| line.contains("Delta not used"));
    let told = told.with_context(|| format!("the engine's log does not tell: {log}"))?;
    ensure!(told.contains(&new) && told.contains("digest"), "{told}");
    runs(&new, "2")?;
    runs(&old, "1")?;

    for (names, cost) in [
        (["wire_bytes", "processor_ms", "took_ms", "peak_kib", "before_kib"], &by_delta),
        (
            ["whole_wire_bytes", "whole_processor_ms", "whole_took_ms", "whole_peak_kib", "whole_before_kib"],
            &whole,
        ),
    ] {
        let values = [cost.wire, cost.processor_ms, cost.took_ms, cost.peak_kib, cost.before_kib];
        names.into_iter().zip(values).for_each(|(name, value)| ctx.figures.note(name, value));
    }
    ctx.figures.note("delta_bytes", delta_bytes);
    nothing_failed(&machine)
}

/// How many containers must fit.
const MANY: usize = 100;
/// How long their start may take, emulated: a few seconds each.
const MANY_STARTED: Duration = Duration::from_secs(600);

fn a_hundred_containers_run_on_a_gigabyte(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let engine = Engine::with_image(ctx, &machine)?;
    let total: u64 = machine.sh("awk '/^MemTotal:/ { print $2 }' /proc/meminfo")?.parse()?;
    ensure!(total <= 1 << 20, "the machine has {total} KiB of memory, more than a gigabyte");
    let available =
        || -> Result<u64> { Ok(machine.sh("awk '/^MemAvailable:/ { print $2 }' /proc/meminfo")?.parse()?) };
    let before = available()?;
    let began = Instant::now();
    // On the device itself: the client's own time at the workstation is none of its.
    let start = format!(
        "i=0; while [ $i -lt {MANY} ]; do \
         rustiot container run --name many$i {IMAGE} idle > /dev/null || exit 1; i=$((i+1)); done"
    );
    let output = machine.run(&start, MANY_STARTED)?;
    ensure!(output.ok(), "not all were started: {}{}", output.stdout, output.stderr);
    ctx.figures.note("start_ms_each", u64::try_from(began.elapsed().as_millis())? / MANY as u64);
    let running = engine.ok(&["ps", "-q"])?.lines().count();
    ensure!(running == MANY, "{running} of {MANY} run");
    let pss: u64 = machine
        .sh(&format!(
            "for p in $(cat {GROUPS}/shims/cgroup.procs); do grep ^Pss: /proc/$p/smaps_rollup; done | \
             awk '{{ sum += $2 }} END {{ print sum }}'"
        ))?
        .parse()
        .context("no PSS of shims")?;
    let after = available()?;
    ctx.figures.note("shim_pss_kib", pss / MANY as u64);
    ctx.figures.note("memory_kib_each", before.saturating_sub(after) / MANY as u64);
    ctx.figures.note("memory_available_mib", after >> 10);
    ensure!(pss / MANY as u64 <= SHIM_PSS, "{pss} KiB of PSS for {MANY} shims");
    for name in ["many0", "many99"] {
        ensure!(engine.ok(&["exec", name, "/app", "say", "inside"])? == "inside", "exec in {name}");
    }
    machine.sh("systemctl restart rustiot-engine.service")?;
    let running = engine.ok(&["ps", "-q"])?.lines().count();
    ensure!(running == MANY, "{running} of {MANY} are found again");
    let all = engine.ok(&["ps", "-q"])?;
    let stop: Vec<&str> = ["rm", "-f"].into_iter().chain(all.lines()).collect();
    engine.ok(&stop)?;
    ensure!(engine.ok(&["ps", "-aq"])?.is_empty(), "containers are left");
    nothing_failed(&machine)
}

fn containers_and_their_data_outlive_an_update(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let server = ctx.serve(&[&A, &B])?;
    let engine = Engine::with_image(ctx, &machine)?;
    engine.start("always", &["--restart", "always", "-v", "store:/v"], &["idle"])?;
    engine.start("stopped", &["--restart", "unless-stopped"], &["idle"])?;
    engine.start("once", &[], &["idle"])?;
    engine.ok(&["exec", "always", "/app", "keep", "/v/file", "kept"])?;
    engine.ok(&["exec", "always", "/app", "keep", "/tmp/own", "own"])?;
    engine.ok(&["stop", "stopped"])?;
    drop(engine);
    update(&machine, &server, &B)?;
    let engine = Engine::of(ctx, &machine)?;
    engine.wait_for("always", ".State.Running", "true", SOON)?;
    ensure!(engine.ok(&["exec", "always", "/app", "show", "/v/file"])? == "kept", "the volume");
    ensure!(
        engine.ok(&["exec", "always", "/app", "show", "/tmp/own"])? == "own",
        "the container's own files"
    );
    for name in ["stopped", "once"] {
        ensure!(engine.inspect(".State.Running", name)? == "false", "{name} was started");
    }
    // The shutdown asked it to end and waited: it is not taken for killed.
    ensure!(engine.inspect(".State.ExitCode", "once")? == "3", "the shutdown killed a container");
    ensure!(engine.ok(&["run", "--rm", "--network", "none", IMAGE, "say", "new"])? == "new", "the image");
    nothing_failed(&machine)
}

/// One attack: what it is called, options, the program's mode, and how long it goes on.
struct Attack {
    name: &'static str,
    options: &'static [&'static str],
    mode: &'static [&'static str],
}

/// Without limits of their own: what holds them is what holds for all containers.
const ATTACKS: [Attack; 7] = [
    Attack { name: "memory", options: &["--restart", "always"], mode: &["hog"] },
    Attack { name: "processes", options: &[], mode: &["bomb"] },
    Attack { name: "disk", options: &[], mode: &["fill", "/tmp/large"] },
    Attack { name: "log", options: &[], mode: &["flood"] },
    Attack { name: "processor", options: &[], mode: &["spin", "8"] },
    Attack { name: "crashes", options: &["--restart", "always"], mode: &["end", "1"] },
    Attack { name: "kernel_log", options: &[], mode: &["faults"] },
];
/// How long each of them goes on.
const UNDER_ATTACK: Duration = Duration::from_secs(20);
/// How long a command on the device, and a call of the engine, may take meanwhile, emulated.
const ANSWERS: Duration = Duration::from_secs(30);
/// How late a step of the neighbour may be, milliseconds, emulated.
const LATE: u64 = 10_000;
/// More than a container may keep of its log on the medium: three files of 4 MiB, and what is being written.
const LOG_BYTES: u64 = 13 << 20;

fn a_hostile_container_hurts_neither_the_system_nor_its_neighbour(ctx: &mut Ctx) -> Result<()> {
    let machine = ctx.healthy()?;
    let engine = Engine::with_image(ctx, &machine)?;
    let before = machine.boot()?;
    engine.start("neighbour", &["-v", "beat:/v"], &["beat", "/v/beat"])?;
    engine.wait_log("neighbour", "late", SOON)?;

    let (mut slowest, mut latest) = (Duration::ZERO, 0);
    for attack in &ATTACKS {
        let name = attack.name;
        let since = machine.sh("date +%s")?;
        engine.start(name, attack.options, attack.mode)?;
        let began = Instant::now();
        while began.elapsed() < UNDER_ATTACK {
            let asked = Instant::now();
            machine
                .sh("rustiot status > /dev/null && systemctl is-active --quiet rustiot-watchdog.service")?;
            let answered = asked.elapsed();
            engine.ok(&["exec", "neighbour", "/app", "say", "here"])?;
            let entered = asked.elapsed().saturating_sub(answered);
            slowest = slowest.max(answered).max(entered);
            ensure!(answered < ANSWERS, "{name}: a command on the device took {answered:?}");
            ensure!(entered < ANSWERS, "{name}: a call of the engine took {entered:?}");
        }
        if name == "log" {
            let id = engine.inspect(".Id", name)?;
            let kept = machine.sh(&format!("cat /data/engine/containers/{id}/container.log* | wc -c"))?;
            ensure!(kept.parse::<u64>()? <= LOG_BYTES, "{kept} bytes of log are kept");
        }
        if name == "crashes" {
            let count: u64 = engine.inspect(".RestartCount", name)?.parse()?;
            ensure!((1..20).contains(&count), "started {count} times: no backoff, or no restart");
        }
        engine.ok(&["rm", "-f", name])?;
        let log = engine.ok(&["logs", "--since", &since, "neighbour"])?;
        let late = log.lines().filter_map(|l| l.strip_prefix("late ")?.parse::<u64>().ok()).max();
        let late = late.with_context(|| format!("{name}: the neighbour said nothing: {log}"))?;
        latest = latest.max(late);
        ensure!(late < LATE, "{name}: the neighbour was {late} ms late");
        if name == "disk" {
            // Room is for all; whoever fills the medium takes it from the others. The system's own state is elsewhere.
            machine.sh("touch /state/written && rm /state/written")?;
        } else {
            ensure!(!log.contains("cannot write"), "{name}: the neighbour cannot write: {log}");
        }
        let marker = format!("after-{name}");
        machine.sh(&format!(
            "echo {marker} | systemd-cat -t rustiot-test; journalctl -q --sync; \
             journalctl -q -t rustiot-test | grep -q {marker}"
        ))?;
    }
    ctx.figures.note("slowest_answer_ms", u64::try_from(slowest.as_millis()).unwrap_or(u64::MAX));
    ctx.figures.note("neighbour_late_ms", latest);

    escapes(&engine)?;
    races(ctx, &machine, &engine)?;

    ensure!(engine.inspect(".State.Running", "neighbour")? == "true", "the neighbour ended");
    ensure!(engine.inspect(".RestartCount", "neighbour")? == "0", "the neighbour was started again");
    let log = engine.ok(&["logs", "--tail", "2", "neighbour"])?;
    ensure!(!log.contains("cannot write"), "the neighbour still cannot write: {log}");
    ensure!(machine.boot()?.boot_id == before.boot_id, "the device restarted");
    let key = ctx.lab.ssh_key()?.private;
    ensure!(machine.ssh(&key, "true")?.ok(), "ssh does not answer");
    nothing_failed(&machine)
}

/// Whatever a container may do without having been given more, it does not get out.
fn escapes(engine: &Engine) -> Result<()> {
    // With the host's processes in sight there is more to try.
    let all: [&[&str]; 3] = [&[], &["--user", "1000:1000"], &["--pid", "host"]];
    for options in all {
        let run = [&["run", "--rm", "--network", "none"], options, &[IMAGE, "escape"]].concat();
        let output = engine.docker(&run)?;
        let tried = output.stdout.lines().filter(|line| line.contains(": refused: ")).count();
        ensure!(output.ok() && tried > 30, "escape as {options:?}: {}{}", output.stdout, output.stderr);
    }
    Ok(())
}

/// Names that change while the engine copies: a directory that is a link at the next instant.
fn races(ctx: &Ctx, machine: &Machine, engine: &Engine) -> Result<()> {
    machine.sh("mkdir -p /data/owner && echo secret > /data/owner/secret")?;
    engine.start("racer", &["-v", "race:/v"], &["race", "/v", "/data/owner"])?;
    engine.wait_log("racer", "begun", SOON)?;
    let file = ctx.dir().join("planted");
    std::fs::write(&file, "planted").context("cannot write a file")?;
    for _ in 0..8 {
        // Both may fail: what is there changes all the time.
        engine.docker(&["cp", &file.to_string_lossy(), "racer:/v/a/planted"])?;
        let got = ctx.dir().join("got");
        let _ = std::fs::remove_file(&got);
        engine.docker(&["cp", "racer:/v/a/secret", &got.to_string_lossy()])?;
        ensure!(!got.exists(), "a file of the host was copied out");
    }
    let there = machine.sh("ls /data/owner && cat /data/owner/secret")?;
    ensure!(there == "secret\nsecret", "the host's directory was written to: {there}");
    // A volume whose place is a link in another volume is made inside, wherever the link leads. The race ended with a link
    // there or a directory, as chance would have it.
    engine.ok(&["rm", "-f", "racer"])?;
    let over = ["-v", "race:/v", "-v", "inner:/v/b/x"];
    engine.ok(&[&["run", "--rm", "--network", "none"], &over[..], &[IMAGE, "say", "in"]].concat())?;
    ensure!(machine.sh("ls /data/owner")? == "secret", "a mount was made in the host's directory");
    Ok(())
}

/// No unit failed, the hardware watchdog never fired, the device is healthy.
fn nothing_failed(machine: &Machine) -> Result<()> {
    let failed = machine.sh("systemctl list-units --state=failed --no-legend --plain")?;
    ensure!(failed.is_empty(), "failed units: {failed}");
    ensure!(machine.watchdog_resets() == 0, "the watchdog fired {} times", machine.watchdog_resets());
    let health = machine.sh("rustiot health")?;
    machine.sh("systemctl is-active --quiet boot-complete.target").context(health)?;
    Ok(())
}
