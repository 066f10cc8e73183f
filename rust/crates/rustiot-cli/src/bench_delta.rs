//! `bench delta`: bytes of every way to a release, side by side with what others make of the same files. Every delta is
//! applied by a program that does nothing else, built as the device's are, which tells its time and memory; a result
//! that is not the exact target ends the command.

use crate::args;
use crate::bench::{Target, aligned, mb, put, row, told};
use crate::bench_rauc::{self, Rauc};
use crate::fail::{Done, Fail};
use anyhow::{Context as _, Result, bail};
use rustiot_delta::{Options, Source, encode};
use rustiot_image::{Context, Plain, Releases, Toolbox};
use serde::Serialize;
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// An apply may take this much memory, bytes …
const MEMORY: u64 = 20_000_000;
/// … and must make this many bytes of target a second.
const SPEED: f64 = 100e6;

/// One way to the new release.
#[derive(Debug, Serialize)]
struct Way {
    name: &'static str,
    /// Bytes that travel; none when it was not measured.
    bytes: Option<u64>,
    /// Why not, or what has to be known about the figure.
    note: Option<String>,
    generate_s: Option<f64>,
    apply_s: Option<f64>,
    /// The same on the processor: what else the machine did is not in it.
    apply_cpu_s: Option<f64>,
    apply_peak_bytes: Option<u64>,
}

/// All ways of one pair.
#[derive(Debug, Serialize)]
struct Pair {
    name: String,
    title: String,
    old_bytes: u64,
    new_bytes: u64,
    ways: Vec<Way>,
}

/// What every pair is measured with.
struct Means<'a> {
    toolbox: &'a Toolbox,
    /// The program that applies a delta and does nothing else.
    applier: PathBuf,
    with_full: bool,
    tools: Option<Tools<'a>>,
    rauc: Option<Rauc>,
}

/// `rustiot bench delta`.
pub fn run(context: &Context, args: &args::BenchDelta) -> Done {
    let toolbox = Toolbox::ensure(context, &Plain)?;
    let releases = Releases::load(context)?;
    let tools = match args.ours {
        true => None,
        false => {
            let chroot = releases.tools(context, &toolbox, &Plain)?;
            Some(Tools { chroot, patience: args.patience, without: &args.without })
        }
    };
    let rauc = args.rauc.then(|| Rauc::open(context)).transpose()?;
    let means =
        Means { toolbox: &toolbox, applier: applier(context)?, with_full: !args.no_full, tools, rauc };
    let mut measured = Vec::new();
    let mut targets = Vec::new();
    if let (Some(old), Some(new)) = (&args.old, &args.new) {
        measured.push(means.measure("files", "the two files", old, new)?);
    }
    if let Some(unknown) = args.only.iter().find(|name| releases.pair.iter().all(|pair| pair.name != **name))
    {
        return Err(Fail::usage(format!("there is no pair {unknown} in conf/bench/releases.toml")));
    }
    let chosen = releases.pair.iter().filter(|pair| args.only.is_empty() || args.only.contains(&pair.name));
    // What needs the network first: a package that is gone ends the command before hours of work and not behind them.
    let mut images = Vec::new();
    for pair in chosen.filter(|_| args.old.is_none()) {
        images.push((pair, releases.images(context, &toolbox, pair, &Plain)?));
    }
    for (pair, (old, new)) in images {
        let done = means.measure(&pair.name, &pair.title, &old, &new)?;
        judge(&done, pair.wanted, pair.blocks, &mut targets);
        measured.push(done);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if args.json.json {
        println!("{}", json!({"pairs": measured, "targets": targets}));
        return Ok(());
    }
    let place = format!("{}; `./rustiot {}`", machine(), words.join(" "));
    let text = format!("{}\n{place}\n", text(&measured, &targets));
    println!("{text}");
    if args.write {
        let path = context.repo().join("docs/figures.md");
        let page =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        std::fs::write(&path, put(&page, "bench delta", "Deltas: bytes of every way", &text))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The program that applies a delta and does nothing else.
fn applier(context: &Context) -> Result<PathBuf> {
    let target = context.cache().join("target/delta-apply");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--release", "--locked", "-p", "rustiot-delta", "--example", "apply"]);
    cargo.env("CARGO_TARGET_DIR", &target).current_dir(context.repo().join("rust"));
    let done = cargo.stdin(Stdio::null()).output().context("cannot run cargo")?;
    if !done.status.success() {
        bail!("the program that applies does not build: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(target.join("release/examples/apply"))
}

impl Means<'_> {
    fn measure(&self, name: &str, title: &str, old: &Path, new: &Path) -> Result<Pair> {
        eprintln!("  … {title}");
        let work = testbed::Scratch::new(&std::env::temp_dir(), "rustiot-delta")?;
        let len = |path: &Path| -> Result<u64> {
            Ok(std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len())
        };
        let (old, new) =
            (old.canonicalize().context("no old file")?, new.canonicalize().context("no new file")?);
        let sources = sources(self.toolbox, &old, work.path())?;
        let mut ways = Vec::new();
        if self.with_full {
            ways.push(ours("full (.rdelta)", &self.applier, &new, &[], work.path())?);
        }
        ways.push(ours("delta (.rdelta)", &self.applier, &new, &sources, work.path())?);
        if let Some(tools) = &self.tools {
            let dirs = [&old, &new].into_iter().filter_map(|path| path.parent());
            let chroot = tools.chroot.clone().with_path(work.path());
            let chroot = dirs.fold(chroot, |chroot, dir| chroot.with_path(dir));
            ways.extend(others(&Tools { chroot, ..*tools }, &old, &new, work.path()));
        }
        if let Some(rauc) = &self.rauc {
            ways.extend(by_rauc(rauc, &old, &new, work.path()));
        }
        for way in &ways {
            let bytes = way.bytes.map_or("not measured".into(), mb);
            eprintln!("    {:<28} {bytes}", way.name);
        }
        Ok(Pair {
            name: name.into(),
            title: title.into(),
            old_bytes: len(&old)?,
            new_bytes: len(&new)?,
            ways,
        })
    }
}

/// What a device has of `old`: the images in a bundle, or the file itself.
fn sources(toolbox: &Toolbox, old: &Path, work: &Path) -> Result<Vec<(String, PathBuf)>> {
    if old.extension().is_none_or(|ending| ending != "raucb") {
        return Ok(vec![("root".into(), old.into())]);
    }
    let out = work.join("old");
    let dir = old.parent().unwrap_or(Path::new("/"));
    let mut command = toolbox.clone().with_path(dir).with_path(work).command("unsquashfs");
    command.args(["-q", "-n", "-d"]).arg(&out).arg(old).args(["root.img", "boot.img"]);
    let done = command.stdin(Stdio::null()).output().context("cannot run unsquashfs")?;
    if !done.status.success() {
        bail!("{} cannot be unpacked: {}", old.display(), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(["root", "boot"].map(|name| (name.to_owned(), out.join(format!("{name}.img")))).to_vec())
}

/// Encodes, then applies in a process of its own.
fn ours(
    name: &'static str,
    applier: &Path,
    new: &Path,
    sources: &[(String, PathBuf)],
    work: &Path,
) -> Result<Way> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let target = read(new)?;
    let bytes = sources.iter().map(|(_, path)| read(path)).collect::<Result<Vec<_>>>()?;
    let named = sources.iter().zip(&bytes).map(|((name, _), bytes)| Source { name, bytes });
    let named: Vec<Source<'_>> = named.collect();
    let path = work.join("delta");
    let mut out = File::create(&path).context("cannot write the delta")?;
    let started = Instant::now();
    let made = encode(&target, &named, &Options::default(), &mut out, &|_| {})?;
    let generate = started.elapsed().as_secs_f64();
    let mut command = Command::new(applier);
    command.arg(&path).args(sources.iter().map(|(_, path)| path));
    let done = command.stderr(Stdio::inherit()).output().context("cannot run the apply")?;
    if !done.status.success() {
        bail!("the delta does not make the new file");
    }
    let told: serde_json::Value = serde_json::from_slice(&done.stdout).context("the apply told nothing")?;
    Ok(Way {
        name,
        bytes: Some(made.len),
        note: None,
        generate_s: Some(generate),
        apply_s: told.get("seconds").and_then(serde_json::Value::as_f64),
        apply_cpu_s: told.get("cpu_seconds").and_then(serde_json::Value::as_f64),
        apply_peak_bytes: told.get("peak_bytes").and_then(serde_json::Value::as_u64),
    })
}

/// Where the other tools are, and what is asked of them.
struct Tools<'a> {
    chroot: Toolbox,
    /// Seconds for one step.
    patience: u64,
    /// Beginnings of the names of those that are left out.
    without: &'a [String],
}

/// Another tool's commands: how it makes OUT from OLD and NEW, how it makes BACK again.
struct Tool {
    name: &'static str,
    make: &'static str,
    back: &'static str,
    /// Prints the bytes that travel; OUT's size when empty.
    size: &'static str,
    note: Option<&'static str>,
}

const TOOLS: [Tool; 5] = [
    Tool {
        name: "zstd -19 --long",
        make: "zstd -q -f -19 --long=27 \"$NEW\" -o \"$OUT\"",
        back: "zstd -q -f -d --long=27 \"$OUT\" -o \"$BACK\"",
        size: "",
        note: None,
    },
    Tool {
        name: "zstd -19 --patch-from",
        make: "zstd -q -f -19 --long=31 --patch-from=\"$OLD\" \"$NEW\" -o \"$OUT\"",
        back: "zstd -q -f -d --long=31 --patch-from=\"$OLD\" \"$OUT\" -o \"$BACK\"",
        size: "",
        note: None,
    },
    Tool {
        name: "xdelta3 -9 -S lzma",
        make: "xdelta3 -f -e -9 -S lzma -B 1073741824 -W 8388608 -s \"$OLD\" \"$NEW\" \"$OUT\"",
        back: "xdelta3 -f -d -B 1073741824 -s \"$OLD\" \"$OUT\" \"$BACK\"",
        size: "",
        note: None,
    },
    Tool {
        name: "bsdiff",
        make: "bsdiff \"$OLD\" \"$NEW\" \"$OUT\"",
        back: "bspatch \"$OLD\" \"$BACK\" \"$OUT\"",
        size: "",
        note: None,
    },
    Tool {
        name: "casync",
        make: "casync --store=\"$OUT.old\" make \"$OUT.old.caibx\" \"$OLD\" > /dev/null && \
               casync --store=\"$OUT.new\" make \"$OUT\" \"$NEW\" > /dev/null",
        back: "casync --store=\"$OUT.new\" extract \"$OUT\" \"$BACK\"",
        size: "{ stat -c %s \"$OUT\"; cd \"$OUT.new\"; find . -name '*.cacnk' | while read -r f; do \
               [ -e \"$OUT.old/$f\" ] || stat -c %s \"$f\"; done; } | awk '{ sum += $1 } END { printf \"%d\", sum }'",
        note: Some("chunks that the old image does not have, and the index"),
    },
];

fn others(tools: &Tools<'_>, old: &Path, new: &Path, work: &Path) -> Vec<Way> {
    let mut ways: Vec<Way> = TOOLS.iter().map(|tool| other(tools, tool, old, new, work)).collect();
    ways.push(match blocks(&tools.chroot, old, new, work) {
        Ok(way) => way,
        Err(why) => unmeasured("RAUC block-hash-index", format!("{why:#}")),
    });
    ways
}

/// What RAUC itself fetches, bundles made in each of the ways that are told.
fn by_rauc(rauc: &Rauc, old: &Path, new: &Path, work: &Path) -> Vec<Way> {
    match rauc.measure(old, new, work) {
        Ok(installs) => installs
            .into_iter()
            .map(|install| Way {
                bytes: Some(install.bytes),
                note: Some(format!("installed by {}", install.said())),
                ..unmeasured(install.name, String::new())
            })
            .collect(),
        Err(why) => vec![unmeasured(bench_rauc::NAME, format!("{why:#}"))],
    }
}

fn unmeasured(name: &'static str, note: String) -> Way {
    Way {
        name,
        bytes: None,
        note: Some(note),
        generate_s: None,
        apply_s: None,
        apply_cpu_s: None,
        apply_peak_bytes: None,
    }
}

fn other(tools: &Tools<'_>, tool: &Tool, old: &Path, new: &Path, work: &Path) -> Way {
    if tools.without.iter().any(|name| tool.name == name || tool.name.starts_with(&format!("{name} "))) {
        return unmeasured(tool.name, "left out".into());
    }
    match try_other(tools, tool, old, new, work) {
        Ok(way) => way,
        Err(why) => unmeasured(tool.name, format!("{why:#}")),
    }
}

fn try_other(tools: &Tools<'_>, tool: &Tool, old: &Path, new: &Path, work: &Path) -> Result<Way> {
    let patience = tools.patience;
    let dir = tempfile::Builder::new().prefix("tool-").tempdir_in(work)?;
    let out = dir.path().join(if tool.name == "casync" { "out.caibx" } else { "out" });
    let back = dir.path().join("back");
    let run = |script: &str| -> Result<String> {
        let mut command = tools.chroot.command("env");
        for (name, path) in [("OLD", old), ("NEW", new), ("OUT", &out), ("BACK", &back)] {
            command.arg(format!("{name}={}", path.display()));
        }
        command.args([
            "timeout",
            &patience.to_string(),
            "time",
            "-f",
            "measured %e %U %S %M",
            "bash",
            "-c",
            script,
        ]);
        let done = command.stdin(Stdio::null()).output().context("cannot run it")?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        if done.status.code() == Some(124) {
            bail!("took longer than {patience} s");
        }
        if !done.status.success() {
            bail!("{}", said.lines().last().unwrap_or("failed"));
        }
        Ok(format!("{}\n{said}", String::from_utf8_lossy(&done.stdout)))
    };
    let figures = |said: &str| -> Option<(f64, f64, u64)> {
        let mut words = said.lines().rev().find_map(|line| line.strip_prefix("measured "))?.split(' ');
        let mut seconds = || words.next()?.parse::<f64>().ok();
        let (wall, processor) = (seconds()?, seconds()? + seconds()?);
        Some((wall, processor, words.next()?.parse::<u64>().ok()?.saturating_mul(1024)))
    };
    let made = figures(&run(tool.make)?);
    let size = match tool.size {
        "" => std::fs::metadata(&out)?.len(),
        script => {
            run(script)?.split_whitespace().next().and_then(|word| word.parse().ok()).context("no size")?
        }
    };
    let applied = figures(&run(tool.back)?);
    if !same(new, &back)? {
        bail!("what it makes is not the new file");
    }
    Ok(Way {
        name: tool.name,
        bytes: Some(size),
        note: tool.note.map(String::from),
        generate_s: made.map(|(seconds, ..)| seconds),
        apply_s: applied.map(|(seconds, ..)| seconds),
        apply_cpu_s: applied.map(|(_, processor, _)| processor),
        apply_peak_bytes: applied.map(|(.., peak)| peak),
    })
}

/// What RAUC's adaptive update would fetch, computed: the index (32 bytes a block) and the blocks of 4096 bytes that the
/// old image has nowhere, compressed together (kinder than RAUC, which fetches them from a bundle in ranges).
fn blocks(tools: &Toolbox, old: &Path, new: &Path, work: &Path) -> Result<Way> {
    let (old, new) = (std::fs::read(old)?, std::fs::read(new)?);
    let known: std::collections::HashSet<&[u8]> = old.chunks(4096).collect();
    let missing: Vec<u8> =
        new.chunks(4096).filter(|block| !known.contains(block)).flatten().copied().collect();
    let path = work.join("blocks");
    std::fs::write(&path, &missing)?;
    let done =
        tools.command("zstd").args(["-q", "-f", "-19"]).arg(&path).output().context("cannot run zstd")?;
    if !done.status.success() {
        bail!("zstd failed");
    }
    let index = (new.len() as u64).div_ceil(4096).saturating_mul(32);
    let bytes = std::fs::metadata(work.join("blocks.zst"))?.len().saturating_add(index);
    Ok(Way {
        name: "RAUC block-hash-index",
        bytes: Some(bytes),
        note: Some("computed, not run: index and missing blocks of 4096 bytes, these as one zstd -19".into()),
        generate_s: None,
        apply_s: None,
        apply_cpu_s: None,
        apply_peak_bytes: None,
    })
}

fn same(a: &Path, b: &Path) -> Result<bool> {
    use std::io::Read as _;
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut first, mut second) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let len = a.read(&mut first)?;
        let (Some(first), Some(second)) = (first.get(..len), second.get_mut(..len.max(1))) else {
            return Ok(false);
        };
        if len == 0 {
            return Ok(b.read(second)? == 0);
        }
        if b.read_exact(second).is_err() || first != second {
            return Ok(false);
        }
    }
}

impl Pair {
    fn bytes(&self, name: &str) -> Option<u64> {
        self.ways.iter().find(|way| way.name == name)?.bytes
    }

    fn ours(&self) -> Option<&Way> {
        self.ways.iter().find(|way| way.name == "delta (.rdelta)")
    }
}

/// Adds what this pair has to reach.
fn judge(pair: &Pair, wanted: f64, blocks: Option<f64>, targets: &mut Vec<Target>) {
    let Some(ours) = pair.ours() else { return };
    let bytes = ours.bytes.unwrap_or(u64::MAX);
    let mut ratio = |what: String, other: Option<u64>, wanted: f64| {
        if let Some(other) = other {
            let ratio = other as f64 / bytes as f64;
            let wanted_text = format!("at least {wanted}×");
            targets.push(Target {
                what,
                figure: format!("{ratio:.1}×"),
                wanted: wanted_text,
                met: ratio >= wanted,
            });
        }
    };
    ratio(format!("{}: against zstd -19 --long", pair.title), pair.bytes("zstd -19 --long"), wanted);
    if let Some(wanted) = blocks {
        let rauc = pair.ways.iter().map(|way| way.name).filter(|name| name.starts_with(bench_rauc::NAME));
        for other in ["casync", "RAUC block-hash-index"].into_iter().chain(rauc) {
            ratio(format!("{}: against {other}", pair.title), pair.bytes(other), wanted);
        }
    }
    let best = pair.ways.iter().filter(|way| !way.name.contains(".rdelta")).filter_map(|way| way.bytes).min();
    ratio(format!("{}: against the best of the others", pair.title), best, 1.0);
    if let (Some(full), Some(other)) = (pair.bytes("full (.rdelta)"), pair.bytes("zstd -19 --long")) {
        let ratio = full as f64 / other as f64;
        targets.push(Target {
            what: format!("{}: the full way against zstd -19 --long", pair.title),
            figure: format!("{ratio:.3}×"),
            wanted: "at most 1×".into(),
            met: ratio <= 1.0,
        });
    }
    for way in pair.ways.iter().filter(|way| way.name.contains(".rdelta")) {
        let (Some(seconds), Some(peak)) = (way.apply_cpu_s, way.apply_peak_bytes) else { continue };
        let speed = pair.new_bytes as f64 / seconds;
        targets.push(Target {
            what: format!("{}: apply of {}", pair.title, way.name),
            figure: format!("{:.0} MB/s, {}", speed / 1e6, mb(peak)),
            wanted: format!("at least {:.0} MB/s on one processor, at most {}", SPEED / 1e6, mb(MEMORY)),
            met: speed >= SPEED && peak <= MEMORY,
        });
    }
}

/// Table, targets and notes as Markdown.
fn text(pairs: &[Pair], targets: &[Target]) -> String {
    let mut table = vec![row([
        "pair",
        "way",
        "bytes",
        "of zstd -19 --long",
        "made in",
        "applied in, of the processor",
        "memory of apply",
    ])];
    let mut notes = Vec::new();
    for pair in pairs {
        let full = pair.bytes("zstd -19 --long");
        for way in &pair.ways {
            let seconds = |value: Option<f64>| value.map(|value| format!("{value:.1} s")).unwrap_or_default();
            let share = way.bytes.zip(full).map(|(way, full)| format!("1/{:.1}", full as f64 / way as f64));
            table.push(row([
                &pair.title,
                way.name,
                &way.bytes.map_or("not measured".into(), |bytes| format!("{:.3} MB", bytes as f64 / 1e6)),
                &share.unwrap_or_default(),
                &seconds(way.generate_s),
                &seconds(way.apply_cpu_s),
                &way.apply_peak_bytes.map(mb).unwrap_or_default(),
            ]));
            if let Some(note) = &way.note {
                let note = format!("{}: {note}.", way.name);
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
        }
    }
    format!("{}\n{}", aligned(&table), told(targets, &notes))
}

pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let date = Command::new("date").args(["-u", "+%F"]).output().map(|out| out.stdout).unwrap_or_default();
    format!(
        "{}, {cores} cores, load before {}; {}",
        cpu.map_or("unknown CPU", |(_, model)| model.trim()),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        String::from_utf8_lossy(&date).trim()
    )
}
