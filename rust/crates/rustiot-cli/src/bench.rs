//! `bench`: measures what the product promises in figures, side by side with Debian's own ways, in one run. A figure
//! that misses its target is told as missed; nothing is told that was not measured.

use crate::args::{self, Section};
use crate::fail::Done;
use anyhow::{Context as _, Result};
use rustiot_board::Board;
use rustiot_image::{ArchiveSizes, Baseline, Context, Error, Generator, Image, Plain, archive_sizes};
use rustiot_lab::bench::{Bench, Boot, System, name};
use rustiot_lab::{A, Ctx, Fixtures, Lab, id, tests};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// rustiot-init must be this many times as fast as each of Debian's initramfs …
const FASTER: f64 = 4.0;
/// … and its initramfs this many times as small.
const SMALLER: f64 = 5.0;
/// All services together may have this share of memory, bytes.
const MEMORY: u64 = 30_000_000;
/// Of these the update service, which looks and waits.
const AGENT: (&str, u64) = ("rustiot-update", 10_000_000);
/// A release that fails may cost this many boots and this many watchdog periods.
const FALLBACK: u64 = 1;
/// The product's default of `health.settle`, seconds; the lab's is [`rustiot_lab::SETTLE_S`].
const SETTLE_S: u32 = 20;
/// Packages of the root that are named; the rest is summed up.
const PACKAGES: usize = 20;

/// What was measured of one subject.
#[derive(Debug, Serialize)]
struct Part {
    section: Section,
    title: &'static str,
    /// Everything as measured.
    figures: Value,
    /// The same for people: first row is the head.
    #[serde(skip)]
    table: Vec<Vec<String>>,
    targets: Vec<Target>,
    notes: Vec<String>,
}

/// A figure that has to be reached.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) figure: String,
    pub(crate) wanted: String,
    pub(crate) met: bool,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
struct Place {
    board: String,
    cpu: String,
    cores: usize,
    accelerator: &'static str,
    /// Processes that wanted to run when the measurement began (one minute's average).
    load: String,
    date: String,
    command: String,
}

/// `rustiot bench`.
pub fn run(context: &Context, args: &args::Bench) -> Done {
    let board = rustiot_image::board(context, &args.board.board)?;
    let lab = Lab::open(context.clone(), &Plain)?;
    let place = Place::here(&lab, &board)?;
    let fixtures = Fixtures::new(true);
    let path = context.repo().join("docs/figures.md");
    let page = || std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    if args.write {
        // Better now than after all the measuring.
        page()?;
    }
    let mut parts = measure(&lab, &board, &fixtures, args)?;
    parts.sort_by_key(|part| part.section);
    if args.json.json {
        println!("{}", json!({"place": place, "parts": parts}));
    } else {
        for part in &parts {
            println!("\n== {}\n\n{}", part.title, part.text(&place));
        }
    }
    if args.write {
        let mut page = page()?;
        for part in &parts {
            page = put(&page, &marker(part.section, &board.name), part.title, &part.text(&place));
        }
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("written to {}", path.display());
    }
    Ok(())
}

fn measure(lab: &Lab, board: &Board, fixtures: &Fixtures, args: &args::Bench) -> Result<Vec<Part>> {
    let wanted = |section: Section| args.only.is_empty() || args.only.contains(&section);
    let wanted: &dyn Fn(Section) -> bool = &wanted;
    let mut parts = Vec::new();
    let image = fixtures.image(lab, board, &A)?;
    if wanted(Section::Root) {
        parts.push(root(&image)?);
    }
    let compared = [Section::Init, Section::Size, Section::Boot].into_iter().any(wanted);
    let baseline = match compared.then(|| Baseline::ensure(&lab.context, &lab.toolbox, &image, &Plain)) {
        Some(Ok(baseline)) => Some(baseline),
        // It says what this workstation cannot do; all else can still be measured.
        Some(Err(why @ Error::Refused { .. })) => {
            eprintln!("not measured: {why}");
            None
        }
        Some(Err(why)) => return Err(why.into()),
        None => None,
    };
    if let Some(baseline) = &baseline
        && wanted(Section::Size)
    {
        parts.push(size(lab, &image, baseline)?);
    }
    let timed = baseline.filter(|_| wanted(Section::Init) || wanted(Section::Boot));
    if timed.is_some() || wanted(Section::Memory) {
        let ctx = Ctx::new(lab, board, fixtures)?;
        let bench = Bench::new(&ctx)?;
        if let Some(baseline) = &timed {
            parts.extend(boots(&bench, baseline, args.runs, wanted)?);
        }
        if wanted(Section::Memory) {
            parts.push(memory(&bench, &image)?);
        }
    }
    if wanted(Section::Fallback) {
        parts.push(fallback(&trials(lab, board, fixtures, args.report.as_deref())?));
    }
    Ok(parts)
}

/// All times of boots, one system after the other in each round.
fn boots(
    bench: &Bench,
    baseline: &Baseline,
    runs: u64,
    wanted: &dyn Fn(Section) -> bool,
) -> Result<Vec<Part>> {
    let mut initramfs: Vec<(System, PathBuf, Vec<f64>)> = Vec::new();
    if wanted(Section::Init) {
        for system in [System::RustIot].into_iter().chain(Generator::ALL.map(System::Verity)) {
            let disk = bench.initramfs_disk(system, baseline);
            let disk = disk.with_context(|| format!("cannot make the disk of {}", name(system)))?;
            initramfs.push((system, disk, Vec::new()));
        }
    }
    let mut whole: Vec<(System, PathBuf, Vec<Boot>)> = Vec::new();
    if wanted(Section::Boot) {
        whole.push((System::RustIot, bench.our_disk()?, Vec::new()));
        let stock = bench.stock_disk(baseline).context("cannot make a stock Debian")?;
        whole.push((System::Stock, stock, Vec::new()));
    }
    for round in 1..=runs {
        for (system, disk, times) in &mut initramfs {
            let system = *system;
            let time = bench.initramfs(system, disk);
            let time = time.with_context(|| format!("initramfs {round} of {}", name(system)))?;
            eprintln!("  round {round} of {runs}: {:<15} {time:.0} ms to the real root", name(system));
            times.push(time);
        }
        for (system, disk, boots) in &mut whole {
            let system = *system;
            let boot =
                bench.boot(system, disk).with_context(|| format!("boot {round} of {}", name(system)))?;
            let healthy = boot.healthy.map(|ms| format!(", healthy {ms:.0} ms")).unwrap_or_default();
            let up = boot.multi_user;
            eprintln!("  round {round} of {runs}: {:<15} multi-user {up:.0} ms{healthy}", name(system));
            boots.push(boot);
        }
    }
    let mut parts = Vec::new();
    if !initramfs.is_empty() {
        parts.push(init_part(&|system| {
            let of = initramfs.iter().find(|(s, _, _)| *s == system);
            of.map(|(_, _, times)| times.clone()).unwrap_or_default()
        }));
    }
    if let [(_, _, ours), (_, _, stock)] = whole.as_slice() {
        let figures = [
            ours.iter().filter_map(|boot| boot.healthy).collect(),
            ours.iter().map(|boot| boot.multi_user).collect(),
            stock.iter().map(|boot| boot.multi_user).collect(),
        ];
        parts.push(boot_part(&figures, baseline));
    }
    Ok(parts)
}

fn init_part(of: &dyn Fn(System) -> Vec<f64>) -> Part {
    let ours = of(System::RustIot);
    let mut table = vec![row(["initramfs", "median", "least–most", "times rustiot-init's"])];
    table.push(row(["rustiot-init", &ms(median(&ours)), &range(&ours), ""]));
    let mut targets = Vec::new();
    let mut figures = vec![json!({"system": "rustiot-init", "ms": ours})];
    for generator in Generator::ALL {
        let theirs = of(System::Verity(generator));
        let ratio = median(&theirs) / median(&ours);
        table.push(row([title(generator), &ms(median(&theirs)), &range(&theirs), &times(ratio)]));
        targets.push(Target {
            what: format!("faster than {}", title(generator)),
            figure: times(ratio),
            wanted: format!("at least {FASTER}×"),
            met: ratio >= FASTER,
        });
        figures.push(json!({"system": name(System::Verity(generator)), "ms": theirs}));
    }
    Part {
        section: Section::Init,
        title: "Initramfs: exec of init to exec of the real init",
        figures: json!(figures),
        table,
        targets,
        notes: vec![
            "Same kernel, machine, disk and verity root; by the kernel's own time stamps of \"Run /init as init \
             process\" and of a line that the real root's init writes first of all. rustiot-init also takes the \
             watchdog, reads the ledger, and mounts state and data."
                .into(),
        ],
    }
}

/// As made, uncompressed, compressed.
fn sizes(archive: &ArchiveSizes) -> [String; 3] {
    [archive.unpacked, archive.uncompressed, archive.compressed].map(mb)
}

fn size(lab: &Lab, image: &Image, baseline: &Baseline) -> Result<Part> {
    let ours = archive_sizes(&lab.toolbox, &image.initramfs)?;
    let mut table =
        vec![row(["initramfs", "as made", "uncompressed", "zstd -9", "times ours, uncompressed"])];
    let [made, plain, zstd] = sizes(&ours);
    table.push(row(["RustIoT", &made, &plain, &zstd, ""]));
    let mut figures = vec![json!({"system": "rustiot", "sizes": ours})];
    let mut targets = Vec::new();
    for generator in Generator::ALL {
        let theirs = archive_sizes(&lab.toolbox, &baseline.initramfs(generator))?;
        let ratio = theirs.uncompressed as f64 / ours.uncompressed as f64;
        let [made, plain, zstd] = sizes(&theirs);
        table.push(row([title(generator), &made, &plain, &zstd, &times(ratio)]));
        targets.push(Target {
            what: format!("smaller than {}", title(generator)),
            figure: times(ratio),
            wanted: format!("at least {SMALLER}×"),
            met: ratio >= SMALLER,
        });
        figures.push(json!({"system": name(System::Verity(generator)), "sizes": theirs}));
    }
    let notes = vec![
        "All were asked for the same modules and nothing else. As made: what the kernel unpacks; in Debian's the modules \
         are .ko.xz. Uncompressed: those uncompressed, too, as ours always are. initramfs-tools: MODULES=list, BUSYBOX=auto, a hook for veritysetup. \
         dracut --no-hostonly --drivers: modules dash base rootfs-block udev-rules, dmsetup and a hook for veritysetup; with \
         systemd: systemd-initrd, dracut-systemd, systemd-veritysetup instead of the hook."
            .into(),
    ];
    let title = "Initramfs: size";
    Ok(Part { section: Section::Size, title, figures: json!(figures), table, targets, notes })
}

/// `figures`: ours until healthy, ours and the stock's until multi-user.
fn boot_part(figures: &[Vec<f64>; 3], baseline: &Baseline) -> Part {
    let [healthy, ours, stock] = figures;
    let ratio = median(healthy) / median(stock);
    let (settle, later) = (rustiot_lab::SETTLE_S, SETTLE_S.saturating_sub(rustiot_lab::SETTLE_S));
    let default_ratio = times((median(healthy) + 1000.0 * f64::from(later)) / median(stock));
    let mut table = vec![row(["system", "multi-user.target and ssh", "healthy", "least–most"])];
    table.push(row(["RustIoT", &ms(median(ours)), &ms(median(healthy)), &range(healthy)]));
    table.push(row(["stock Debian", &ms(median(stock)), "", &range(stock)]));
    let drift = match baseline.differ.as_slice() {
        [] => "all packages in the same versions".into(),
        differ => {
            format!("{} packages are not there in the same version: {}", differ.len(), differ.join(", "))
        }
    };
    Part {
        section: Section::Boot,
        title: "Firmware's hand-over to healthy",
        figures: json!({"healthy_ms": healthy, "multi_user_ms": ours, "stock_multi_user_ms": stock}),
        table,
        targets: vec![Target {
            what: "healthy, against multi-user.target and ssh of a stock Debian".into(),
            figure: times(ratio),
            wanted: "at most 1×".into(),
            met: ratio <= 1.0,
        }],
        notes: vec![format!(
            "Not a first boot. Stock Debian: the lab image's packages as their scripts configure them, ext4 root, own \
             initramfs (initramfs-tools, MODULES=list), same kernel, networkd and ssh up; {drift}. Healthy: all \
             evidence collected, and {settle} s of settling, the lab's `health.settle`. The product's default is {SETTLE_S} s, of \
             which the device works through none: by that clock healthy comes {later} s later, {default_ratio} of the \
             stock Debian."
        )],
    }
}

/// The trials of releases that fail, or what an earlier `rustiot test --json` printed of them.
fn trials(lab: &Lab, board: &Board, fixtures: &Fixtures, earlier: Option<&Path>) -> Result<Vec<Value>> {
    let registry = tests::trials();
    let chosen: Vec<_> = registry.iter().map(|test| (test, board)).collect();
    if let Some(path) = earlier {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        return reported(&text, &chosen.iter().map(|(test, board)| id(test, board)).collect::<Vec<_>>())
            .with_context(|| format!("in {}", path.display()));
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let told = |report: &rustiot_lab::Report| eprintln!("  {}", report.line());
    let reports = rustiot_lab::run(lab, fixtures, &chosen, processors, false, &told);
    reports.iter().map(|report| serde_json::to_value(report).context("cannot keep a report")).collect()
}

/// The lines of a report that are about the tests `wanted`, in that order; each must be there.
fn reported(text: &str, wanted: &[String]) -> Result<Vec<Value>> {
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let find = |id: &String| {
        let line = lines.iter().rev().find(|line| line.get("id").and_then(Value::as_str) == Some(id));
        line.cloned()
            .with_context(|| format!("nothing about {id}: is it the output of `rustiot test --json`?"))
    };
    wanted.iter().map(find).collect()
}

fn fallback(reports: &[Value]) -> Part {
    let mut table = vec![row(["the new release …", "failed boots", "watchdog periods", "seconds", "test"])];
    let mut targets = Vec::new();
    for report in reports {
        let word = |name: &str| report.get(name).and_then(Value::as_str).unwrap_or("unknown");
        let class = class(word("id"));
        let figure = |name: &str| report.get("figures")?.get(name)?.as_u64();
        let text = |name: &str| figure(name).map_or("not measured".into(), |value| value.to_string());
        let (boots, periods) = (text("failed_boots"), text("watchdog_periods"));
        let within = |name: &str| figure(name).is_some_and(|value| value <= FALLBACK);
        table.push(row([&*class, &boots, &periods, &text("seconds"), word("outcome")]));
        targets.push(Target {
            what: class,
            figure: format!("{boots} boots, {periods} watchdog periods"),
            wanted: format!("at most {FALLBACK} of each"),
            met: within("failed_boots") && within("watchdog_periods"),
        });
    }
    Part {
        section: Section::Fallback,
        title: "Fallback of a release that fails",
        figures: json!(reports),
        table,
        targets,
        notes: vec![
            "Counted from QEMU's own events. Seconds: from the reset into the new release to the last one before the \
             old release was healthy again, emulated. A clean reboot and a boot without an init are no verdict: such a \
             release is tried three times, and the figures are of the first."
                .into(),
        ],
    }
}

/// `board/falls_back_when_the_kernel_panics` → `the kernel panics`.
fn class(id: &str) -> String {
    let name = id.rsplit('/').next().unwrap_or(id);
    name.split_once("_when_").map_or(name, |(_, class)| class).replace('_', " ")
}

fn memory(bench: &Bench, image: &Image) -> Result<Part> {
    let services = bench.services()?;
    let sum = services.iter().fold(0u64, |sum, service| sum.saturating_add(service.pss));
    let agent = services.iter().find(|service| service.name == AGENT.0);
    let agent = agent.with_context(|| format!("{} does not run", AGENT.0))?.pss;
    let programs =
        image.sizes.device_binary.saturating_add(image.sizes.init).saturating_add(image.sizes.shim);
    let mut table = vec![row(["what", "size"])];
    for service in &services {
        table.push(row([&format!("PSS of {}", service.name), &mb(service.pss)]));
    }
    table.push(row(["PSS of all services", &mb(sum)]));
    table.push(row(["multi-call binary, stripped", &mb(image.sizes.device_binary)]));
    table.push(row(["rustiot-init, stripped", &mb(image.sizes.init)]));
    table.push(row(["rustiot-shim, stripped", &mb(image.sizes.shim)]));
    let target = |what: &str, bytes: u64, limit: u64| Target {
        what: what.into(),
        figure: mb(bytes),
        wanted: format!("at most {}", mb(limit)),
        met: bytes <= limit,
    };
    Ok(Part {
        section: Section::Memory,
        title: "Memory and programs",
        figures: json!({"services": services, "device_binary": image.sizes.device_binary, "init": image.sizes.init,
            "shim": image.sizes.shim}),
        table,
        targets: vec![
            target("PSS of all services, idle", sum, MEMORY),
            target("PSS of the update service, idle", agent, AGENT.1),
            target("programs of the device", programs, image.board.sizes.device_binary.bytes()),
        ],
        notes: vec!["Pss of /proc/PID/smaps_rollup on a healthy, settled, idle device.".into()],
    })
}

fn root(image: &Image) -> Result<Part> {
    let packages = image.package_sizes()?;
    let sum =
        |list: &[rustiot_image::PackageSize]| list.iter().fold(0u64, |sum, p| sum.saturating_add(p.bytes));
    let (named, rest) = packages.split_at(packages.len().min(PACKAGES));
    let mut table = vec![row(["package", "version", "in the root"])];
    for package in named {
        table.push(row([&package.name, &package.version, &mb(package.bytes)]));
    }
    table.push(row([&format!("{} others", rest.len()), "", &mb(sum(rest))]));
    table.push(row(["all files", "", &mb(sum(&packages))]));
    table.push(row(["root image with its verity tree", "", &mb(image.sizes.root)]));
    let limit = image.board.sizes.root.bytes();
    Ok(Part {
        section: Section::Root,
        title: "Root image by package",
        figures: json!({"packages": packages, "image": image.sizes.root}),
        table,
        targets: vec![Target {
            what: "root image".into(),
            figure: mb(image.sizes.root),
            wanted: format!("at most {}", mb(limit)),
            met: image.sizes.root <= limit,
        }],
        notes: vec!["Files rounded up to blocks of 4096 bytes.".into()],
    })
}

fn title(generator: Generator) -> &'static str {
    match generator {
        Generator::InitramfsTools => "initramfs-tools",
        Generator::Dracut => "dracut without systemd",
        Generator::DracutSystemd => "dracut with systemd",
    }
}

/// The one in the middle, or the middle of the two that are; 0 of nothing.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |n: usize| sorted.get(n).copied().unwrap_or_default();
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(at(half.saturating_sub(1)), at(half))
    } else {
        at(half)
    }
}

fn ms(value: f64) -> String {
    format!("{value:.0} ms")
}

fn range(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{least:.0}–{most:.0}")
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2}×")
}

pub(crate) fn mb(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

impl Part {
    /// Markdown that is readable as it is.
    fn text(&self, place: &Place) -> String {
        let mut text = aligned(&self.table);
        text.push('\n');
        text.push_str(&told(&self.targets, &self.notes));
        text.push_str(&format!("\n{}\n", place.line()));
        text
    }
}

/// Targets and notes as Markdown.
pub(crate) fn told(targets: &[Target], notes: &[String]) -> String {
    let mut text = String::new();
    for target in targets {
        let word = if target.met { "met" } else { "**MISSED**" };
        text.push_str(&format!("* {}: {} (wanted: {}): {word}\n", target.what, target.figure, target.wanted));
    }
    for note in notes {
        text.push_str(&format!("\n{note}\n"));
    }
    text
}

/// A Markdown table whose columns stand below each other.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let cell = |row: &Vec<String>, n: usize| row.get(n).cloned().unwrap_or_default();
    let width =
        |n: usize| rows.iter().map(|row| cell(row, n).chars().count()).max().unwrap_or_default().max(3);
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for n in 0..columns {
            let (cell, width) = (cell(row, n), width(n));
            text.push_str(&format!("| {cell:<width$} "));
        }
        text.push_str("|\n");
        if number == 0 {
            for n in 0..columns {
                text.push_str(&format!("|{}", "-".repeat(width(n).saturating_add(2))));
            }
            text.push_str("|\n");
        }
    }
    text
}

impl Place {
    fn here(lab: &Lab, board: &Board) -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let date = Command::new("date").args(["-u", "+%F"]).output().context("cannot run date")?;
        let words: Vec<String> = std::env::args().skip(1).collect();
        Ok(Place {
            board: board.name.clone(),
            cpu: cpu.map_or("unknown CPU".into(), |(_, model)| model.trim().to_string()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            accelerator: if lab.spec(board)?.accel == "kvm" { "KVM" } else { "emulated (TCG)" },
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_string(),
            date: String::from_utf8_lossy(&date.stdout).trim().to_string(),
            command: format!("./rustiot {}", words.join(" ")),
        })
    }

    fn line(&self) -> String {
        let Place { board, cpu, cores, accelerator, load, date, command } = self;
        format!("{board} on {cpu}, {cores} cores, {accelerator}, load before {load}; {date}; `{command}`")
    }
}

fn marker(section: Section, board: &str) -> String {
    format!("bench {} {board}", format!("{section:?}").to_lowercase())
}

/// Puts `text` between the markers of `name` in `page`; where there are none, at its end under `title`.
pub(crate) fn put(page: &str, name: &str, title: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
    let found = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    match found {
        Some((before, after)) => format!("{before}{begin}{text}{end}{after}"),
        None => format!("{}\n\n## {title}\n\n{begin}{text}{end}", page.trim_end()),
    }
}

#[cfg(test)]
mod unit {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn columns_stand_below_each_other() {
        let table = aligned(&[row(["what", "size"]), row(["a", "1×"])]);
        assert_eq!(table, "| what | size |\n|------|------|\n| a    | 1×   |\n");
    }

    #[test]
    fn a_class_is_told_in_words() {
        assert_eq!(class("b/falls_back_when_init_is_missing"), "init is missing");
        assert_eq!(class("b/does_not_commit_when_the_gate_is_deleted"), "the gate is deleted");
    }

    #[test]
    fn the_products_settling_is_the_documented_default() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/configuration.md");
        let page = std::fs::read_to_string(page).unwrap();
        assert!(page.contains(&format!("\nsettle = \"{SETTLE_S}s\"")), "see health.settle there");
    }

    #[test]
    fn an_earlier_report_counts_as_what_was_tried() {
        let text = r#"
            {"id":"b/falls_back_when_x_hangs","outcome":"failed","figures":{"failed_boots":3}}
            {"id":"b/falls_back_when_x_hangs","outcome":"passed","figures":{"failed_boots":1,"watchdog_periods":1}}
            {"id":"b/boots","outcome":"passed"}
            {"id":"b/falls_back_when_y_panics","outcome":"failed","why":"no boot"}
            not ours
            {"passed":2,"failed":1,"skipped":0}"#;
        let wanted = ["b/falls_back_when_x_hangs", "b/falls_back_when_y_panics"].map(String::from);
        let part = fallback(&reported(text, &wanted).unwrap());
        let expected = [
            ["the new release …", "failed boots", "watchdog periods", "seconds", "test"],
            ["x hangs", "1", "1", "not measured", "passed"],
            ["y panics", "not measured", "not measured", "not measured", "failed"],
        ];
        assert_eq!(part.table, expected.map(row));
        assert_eq!(part.targets.iter().map(|target| target.met).collect::<Vec<_>>(), [true, false]);
        let error = reported(text, &["b/other".into()]).unwrap_err();
        assert!(error.to_string().contains("nothing about b/other"), "{error}");
    }

    #[test]
    fn a_missed_target_is_told() {
        let target = |met| Target { what: "x".into(), figure: "3×".into(), wanted: "4×".into(), met };
        let part = Part {
            section: Section::Init,
            title: "t",
            figures: Value::Null,
            table: vec![row(["a"])],
            targets: vec![target(true), target(false)],
            notes: vec!["n".into()],
        };
        let place = Place {
            board: "b".into(),
            cpu: "c".into(),
            cores: 2,
            accelerator: "KVM",
            load: "0.1".into(),
            date: "2026-01-01".into(),
            command: "./rustiot bench".into(),
        };
        assert_eq!(
            part.text(&place),
            "| a   |\n|-----|\n\n* x: 3× (wanted: 4×): met\n* x: 3× (wanted: 4×): **MISSED**\n\nn\n\n\
             b on c, 2 cores, KVM, load before 0.1; 2026-01-01; `./rustiot bench`\n"
        );
    }

    proptest! {
        #[test]
        fn what_was_put_is_replaced_and_the_rest_stays(page in "[a-z \n]{0,40}", one in "[a-z]{0,9}\n", two in "[a-z]{0,9}\n") {
            let once = put(&page, "bench x b", "t", &one);
            let replaced = put(&once, "bench x b", "t", &two);
            prop_assert_eq!(&replaced, &put(&page, "bench x b", "t", &two));
            prop_assert!(replaced.starts_with(page.trim_end()));
        }
    }
}
