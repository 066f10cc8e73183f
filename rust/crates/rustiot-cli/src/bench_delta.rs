//! `bench delta`: bytes of every way to a release, side by side with what others make of the same files. Every delta is
//! applied by a program that does nothing else, built as the device's are, which tells its time and memory. What comes
//! out is written to a file and its SHA-256 compared here with the new file's, whatever the codec says of it; a result
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
use sha2::{Digest as _, Sha256};
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
    /// That what comes out was compared with the new file here, and is it; none where nothing came out.
    exact: Option<bool>,
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
        let wanted = sha256(&new)?;
        let mut ways = Vec::new();
        if self.with_full {
            ways.push(ours("full (.rdelta)", &self.applier, &new, &wanted, &[], work.path())?);
        }
        ways.push(ours("delta (.rdelta)", &self.applier, &new, &wanted, &sources, work.path())?);
        if let Some(tools) = &self.tools {
            let dirs = [&old, &new].into_iter().filter_map(|path| path.parent());
            let chroot = tools.chroot.clone().with_path(work.path());
            let chroot = dirs.fold(chroot, |chroot, dir| chroot.with_path(dir));
            ways.extend(others(&Tools { chroot, ..*tools }, &old, &new, &wanted, work.path()));
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

/// Encodes, then applies in a process of its own: once for the figures, and once more for what comes out.
fn ours(
    name: &'static str,
    applier: &Path,
    new: &Path,
    wanted: &Sum,
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
    let told = applied(applier, &path, sources, None)?;
    let back = work.join("made");
    applied(applier, &path, sources, Some(&back))?;
    exactly(&back, wanted)?;
    std::fs::remove_file(&back).context("cannot remove what the delta made")?;
    Ok(Way {
        name,
        bytes: Some(made.len),
        note: None,
        generate_s: Some(generate),
        apply_s: told.get("seconds").and_then(serde_json::Value::as_f64),
        apply_cpu_s: told.get("cpu_seconds").and_then(serde_json::Value::as_f64),
        apply_peak_bytes: told.get("peak_bytes").and_then(serde_json::Value::as_u64),
        exact: Some(true),
    })
}

/// Runs the program that applies, which may write what comes out; what it tells.
fn applied(
    applier: &Path,
    delta: &Path,
    sources: &[(String, PathBuf)],
    to: Option<&Path>,
) -> Result<serde_json::Value> {
    let mut command = Command::new(applier);
    if let Some(to) = to {
        command.arg("--to").arg(to);
    }
    command.arg(delta).args(sources.iter().map(|(_, path)| path));
    let done = command.stderr(Stdio::inherit()).output().context("cannot run the apply")?;
    if !done.status.success() {
        bail!("the delta does not make the new file");
    }
    serde_json::from_slice(&done.stdout).context("the apply told nothing")
}

/// A SHA-256.
type Sum = [u8; 32];

fn sha256(path: &Path) -> Result<Sum> {
    let read = || format!("cannot read {}", path.display());
    let mut sum = Sha256::new();
    std::io::copy(&mut File::open(path).with_context(read)?, &mut sum).with_context(read)?;
    Ok(sum.finalize().into())
}

/// Whether a way made exactly the new file.
fn exactly(made: &Path, wanted: &Sum) -> Result<()> {
    if sha256(made)? != *wanted {
        bail!("what it makes is not the new file: it has another SHA-256");
    }
    Ok(())
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

fn others(tools: &Tools<'_>, old: &Path, new: &Path, wanted: &Sum, work: &Path) -> Vec<Way> {
    let mut ways: Vec<Way> = TOOLS.iter().map(|tool| other(tools, tool, (old, new, wanted), work)).collect();
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
                // The slot was read back.
                exact: Some(true),
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
        exact: None,
    }
}

fn other(tools: &Tools<'_>, tool: &Tool, files: (&Path, &Path, &Sum), work: &Path) -> Way {
    if tools.without.iter().any(|name| tool.name == name || tool.name.starts_with(&format!("{name} "))) {
        return unmeasured(tool.name, "left out".into());
    }
    match try_other(tools, tool, files, work) {
        Ok(way) => way,
        Err(why) => unmeasured(tool.name, format!("{why:#}")),
    }
}

fn try_other(
    tools: &Tools<'_>,
    tool: &Tool,
    (old, new, wanted): (&Path, &Path, &Sum),
    work: &Path,
) -> Result<Way> {
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
    exactly(&back, wanted)?;
    Ok(Way {
        name: tool.name,
        bytes: Some(size),
        note: tool.note.map(String::from),
        generate_s: made.map(|(seconds, ..)| seconds),
        apply_s: applied.map(|(seconds, ..)| seconds),
        apply_cpu_s: applied.map(|(_, processor, _)| processor),
        apply_peak_bytes: applied.map(|(.., peak)| peak),
        exact: Some(true),
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
        exact: None,
    })
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
        "exact",
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
                way.exact.map_or("", |exact| if exact { "yes" } else { "NO" }),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that says it applied a delta, and may write `made` for what came out.
    fn applier(dir: &Path, made: &Path) -> PathBuf {
        let path = dir.join("apply");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --to ] && cp {} \"$2\"\n\
             echo '{{\"seconds\": 2.5, \"cpu_seconds\": 0.5, \"peak_bytes\": 4096, \"sha256\": \"whatever is wanted\"}}'\n",
            made.display()
        );
        // Never open for writing here: a program that another test begins just then would hold it open.
        let text = dir.join("apply.sh");
        std::fs::write(&text, script).unwrap();
        assert!(Command::new("install").args(["-m", "755"]).args([&text, &path]).status().unwrap().success());
        path
    }

    #[test]
    fn what_comes_out_is_compared_with_the_new_file_whatever_the_codec_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let new = file("new", b"the new file");
        let sources = [("root".to_owned(), file("old", b"the old file"))];
        let wanted = sha256(&new).unwrap();
        let measured = |made: &Path| {
            ours("delta (.rdelta)", &applier(dir.path(), made), &new, &wanted, &sources, dir.path())
        };
        let way = measured(&file("same", b"the new file")).unwrap();
        let figures = (way.apply_s, way.apply_cpu_s, way.apply_peak_bytes, way.exact);
        assert_eq!(figures, (Some(2.5), Some(0.5), Some(4096), Some(true)));
        assert_eq!(way.bytes, Some(std::fs::metadata(dir.path().join("delta")).unwrap().len()));
        for wrong in [&b"the new fi1e"[..], b"the new file ", b"the new fil", b""] {
            let why = measured(&file("wrong", wrong)).unwrap_err().to_string();
            assert!(why.contains("not the new file"), "{why}");
        }
        assert!(measured(Path::new("/nowhere")).is_err(), "nothing came out");
    }

    fn way(name: &'static str, bytes: u64) -> Way {
        Way { bytes: Some(bytes), ..unmeasured(name, String::new()) }
    }

    /// One of ours, with its time on the processor and its memory.
    fn applied_in(name: &'static str, bytes: u64, cpu: f64, peak: u64) -> Way {
        Way { apply_cpu_s: Some(cpu), apply_peak_bytes: Some(peak), ..way(name, bytes) }
    }

    /// What is judged of these ways to a file of 400 MB, in words, and whether it is met.
    fn judged(ways: Vec<Way>, wanted: f64, blocks: Option<f64>) -> Vec<(String, bool)> {
        let pair = Pair { name: "p".into(), title: "p".into(), old_bytes: 1, new_bytes: 400_000_000, ways };
        let mut targets = Vec::new();
        judge(&pair, wanted, blocks, &mut targets);
        targets.into_iter().map(|t| (format!("{} {} {}", t.what, t.figure, t.wanted), t.met)).collect()
    }

    #[test]
    fn a_delta_must_be_so_many_times_smaller_than_each_of_the_others() {
        const ZSTD: &str = "zstd -19 --long";
        const BLOCKS: &str = "RAUC block-hash-index";
        let ratio = |other: &str, figure: &str, wanted: &str, met| {
            (format!("p: against {other} {figure}× at least {wanted}×"), met)
        };
        for (bytes, met) in [(1000, true), (1001, false)] {
            // The full download is 10 times as much, or just not.
            let told = judged(vec![way("delta (.rdelta)", bytes), way(ZSTD, 10_000)], 10.0, None);
            assert_eq!(told[0], ratio(ZSTD, "10.0", "10", met));
            assert_eq!(told[1], ratio("the best of the others", "10.0", "1", true));
            assert_eq!(told.len(), 2, "{told:?}");
            // Those that compare blocks, where the pair wants it; each that was measured.
            let others =
                [way("casync", 5000), way(BLOCKS, 5000), way("RAUC adaptive, blocks of 64 KiB", 5000)];
            let all = [way("delta (.rdelta)", bytes)].into_iter().chain(others).collect();
            let told = judged(all, 10.0, Some(5.0));
            let figure = "5.0";
            let wanted = [
                ratio("casync", figure, "5", met),
                ratio(BLOCKS, figure, "5", met),
                ratio("RAUC adaptive, blocks of 64 KiB", figure, "5", met),
                ratio("the best of the others", figure, "1", true),
            ];
            assert_eq!(told, wanted);
        }
        // The best of the others is not the full way, which is ours too.
        for (best, figure, met) in [(1000, "1.0", true), (999, "1.0", false), (500, "0.5", false)] {
            let ways = vec![
                way("full (.rdelta)", 10),
                way("delta (.rdelta)", 1000),
                way("bsdiff", best),
                way("xdelta3 -9 -S lzma", 1500),
            ];
            let told = judged(ways, 10.0, None);
            assert_eq!(told, [ratio("the best of the others", figure, "1", met)]);
        }
    }

    #[test]
    fn the_full_way_must_not_be_longer_than_the_best_full_download() {
        for (full, figure, met) in
            [(10_000, "1.000", true), (10_001, "1.000", false), (12_000, "1.200", false)]
        {
            let ways =
                vec![way("full (.rdelta)", full), way("delta (.rdelta)", 1), way("zstd -19 --long", 10_000)];
            let told = judged(ways, 1.0, None);
            let wanted = format!("p: the full way against zstd -19 --long {figure}× at most 1×");
            assert!(told.contains(&(wanted, met)), "{told:?}");
        }
    }

    #[test]
    fn an_apply_must_be_fast_and_small_both() {
        for (cpu, peak, met) in [
            (4.0, 20_000_000, true),
            (4.01, 20_000_000, false),
            (4.0, 20_000_001, false),
            (0.5, 300_000_000, false),
            (60.0, 1_000_000, false),
        ] {
            for name in ["delta (.rdelta)", "full (.rdelta)"] {
                let mut ways = vec![applied_in(name, 1000, cpu, peak)];
                if name.starts_with("full") {
                    ways.push(way("delta (.rdelta)", 1000));
                }
                let told = judged(ways, 10.0, None);
                let [(what, is_met)] = told.as_slice() else { panic!("{told:?}") };
                assert!(what.starts_with(&format!("p: apply of {name} ")), "{what}");
                assert!(what.ends_with("at least 100 MB/s on one processor, at most 20.00 MB"), "{what}");
                assert_eq!(*is_met, met, "{what}");
            }
        }
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let nothing = || unmeasured("zstd -19 --long", "took too long".into());
        assert_eq!(judged(vec![nothing()], 10.0, Some(5.0)), []);
        assert_eq!(judged(vec![way("delta (.rdelta)", 1000), nothing()], 10.0, Some(5.0)), []);
    }

    #[test]
    fn the_table_says_of_each_way_whether_it_was_exact() {
        let exact = Way { exact: Some(true), ..way("delta (.rdelta)", 1000) };
        let pair = Pair {
            name: "p".into(),
            title: "p".into(),
            old_bytes: 1,
            new_bytes: 2,
            ways: vec![exact, way("RAUC block-hash-index", 5)],
        };
        let last = |line: &str| line.trim_matches('|').rsplit('|').next().map(|cell| cell.trim().to_owned());
        let text = text(std::slice::from_ref(&pair), &[]);
        let cells: Vec<_> = text.lines().take(4).filter_map(last).collect();
        assert_eq!((cells[0].as_str(), cells[2].as_str(), cells[3].as_str()), ("exact", "yes", ""), "{text}");
        let json = json!(pair);
        assert_eq!((&json["ways"][0]["exact"], &json["ways"][1]["exact"]), (&json!(true), &json!(null)));
    }
}
