//! Where a build reads from and keeps things, and how it tells what it is doing.

use crate::error::{At, Error, refused};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// The repository and the cache.
#[derive(Clone, Debug)]
pub struct Context {
    repo: PathBuf,
    cache: PathBuf,
}

impl Context {
    /// The repository at `repo`; the cache at `$RUSTIOT_CACHE` or `~/.cache/rustiot`.
    ///
    /// # Errors
    /// `repo` is no clone of RustIoT OS, or the cache cannot be made.
    pub fn new(repo: &Path) -> Result<Self, Error> {
        let cache = match std::env::var_os("RUSTIOT_CACHE") {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ => {
                let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
                Path::new(&home).join(".cache/rustiot")
            }
        };
        Context::with_cache(repo, &cache)
    }

    /// The repository at `repo` with the cache at `cache`.
    ///
    /// # Errors
    /// As for [`Context::new`].
    pub fn with_cache(repo: &Path, cache: &Path) -> Result<Self, Error> {
        if !repo.join("conf/layout.toml").is_file() {
            return Err(refused(
                format!("{} is no clone of RustIoT OS (conf/layout.toml is missing)", repo.display()),
                "run it inside one",
            ));
        }
        std::fs::create_dir_all(cache).at("create", cache)?;
        Ok(Context {
            repo: repo.canonicalize().at("find", repo)?,
            cache: cache.canonicalize().at("find", cache)?,
        })
    }

    /// The repository.
    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// The cache; everything in it can be built again.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// A file below `conf/`.
    pub fn conf(&self, name: &str) -> PathBuf {
        self.repo.join("conf").join(name)
    }
}

/// Is told what a build does. All methods may be called from one thread only.
pub trait Progress {
    /// A step begins that may take more than a moment.
    fn begin(&self, step: &str);
    /// A line of output of the running step, for those who want to see it.
    fn line(&self, text: &str);
    /// The step is done, or was found in the cache.
    fn end(&self, step: &str, took: Duration, cached: bool);
    /// The step failed; whoever asked for it is told why.
    fn gave_up(&self, _step: &str) {}
}

/// Says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn end(&self, _: &str, _: Duration, _: bool) {}
}

/// Writes to standard error. On a terminal the running step has a line that is written anew each second: how long it
/// has run and what its tool said last. Elsewhere a step has a line when it begins, each minute, and when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

/// Without a terminal: how often a step says that it still runs.
const STILL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_secs(1);
/// Back to the line's start, and all of it gone (ECMA-48, EL).
const CLEAR: &str = "\r\x1b[K";
/// Where a terminal does not say how wide it is.
const WIDTH: usize = 80;

struct Running {
    step: String,
    began: Instant,
    thread: ThreadId,
    /// The newest line of its tool.
    said: String,
    /// Minutes that it was told to be running.
    told: u64,
    /// Columns of the terminal.
    width: usize,
}

static RUNNING: Mutex<Vec<Running>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<Running>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress for Plain {
    fn begin(&self, step: &str) {
        let terminal = std::io::stderr().is_terminal();
        let width = if terminal { width() } else { WIDTH };
        let mut steps = running();
        steps.push(Running {
            step: step.into(),
            began: Instant::now(),
            thread: std::thread::current().id(),
            said: String::new(),
            told: 0,
            width,
        });
        if terminal {
            draw(&steps);
        } else {
            eprintln!("  … {step}");
        }
        drop(steps);
        static TICKER: Once = Once::new();
        TICKER.call_once(|| {
            std::thread::spawn(move || {
                loop {
                    std::thread::sleep(TICK);
                    tick(terminal);
                }
            });
        });
    }
    fn line(&self, text: &str) {
        let ours = std::thread::current().id();
        if let Some(step) = running().iter_mut().rfind(|step| step.thread == ours) {
            step.said = text.into();
        }
    }
    fn end(&self, step: &str, took: Duration, cached: bool) {
        let how = if cached { "from cache" } else { "built" };
        forget(step, &format!("  ✓ {step}: {how}, {:.1} s\n", took.as_secs_f64()));
    }
    fn gave_up(&self, step: &str) {
        forget(step, "");
    }
}

/// The step runs no more, and `last` is its last line.
fn forget(step: &str, last: &str) {
    let mut steps = running();
    if let Some(at) = steps.iter().rposition(|running| running.step == step) {
        steps.remove(at);
    }
    if std::io::stderr().is_terminal() {
        eprint!("{CLEAR}{last}");
        draw(&steps);
    } else {
        eprint!("{last}");
    }
}

/// Prints something else while steps may be running: above the line that is written anew.
pub fn above_progress(print: impl FnOnce()) {
    let steps = running();
    let over = !steps.is_empty() && std::io::stderr().is_terminal();
    if over {
        eprint!("{CLEAR}");
    }
    print();
    if over {
        draw(&steps);
    }
}

/// A second has gone by.
fn tick(terminal: bool) {
    let mut steps = running();
    if steps.is_empty() {
        return;
    }
    if terminal {
        return draw(&steps);
    }
    for step in steps.iter_mut() {
        let minutes = step.began.elapsed().as_secs() / STILL.as_secs();
        if minutes > step.told {
            step.told = minutes;
            eprintln!("  … {}: {minutes} min", step.step);
        }
    }
}

fn draw(steps: &[Running]) {
    if let Some(Running { step, began, said, width, .. }) = steps.last() {
        eprint!("{CLEAR}{}", status(step, began.elapsed(), said, *width));
    }
}

/// The line of a running step, for a terminal of `width` columns: it never wraps, or it could not be written anew.
fn status(step: &str, runs: Duration, said: &str, width: usize) -> String {
    let mut line = format!("  … {step}, {} s", runs.as_secs());
    // A tool's own progress rewrites its line too; the newest is what counts.
    let said = said.trim_end().rsplit('\r').next().unwrap_or_default().trim();
    if !said.is_empty() {
        line.push_str(": ");
        line.push_str(said);
    }
    let line: Vec<char> = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let room = width.saturating_sub(1);
    match line.get(..room.saturating_sub(1)) {
        Some(cut) if line.len() > room => cut.iter().chain(['…'].iter()).collect(),
        _ => line.into_iter().collect(),
    }
}

/// The columns of the terminal at standard error, which `stty` knows without code of ours that is not safe.
fn width() -> usize {
    let ask = || {
        let terminal = std::io::stderr().as_fd().try_clone_to_owned().ok()?;
        let said = Command::new("stty").arg("size").stdin(terminal).stderr(Stdio::null()).output().ok()?;
        columns(&String::from_utf8_lossy(&said.stdout))
    };
    ask().unwrap_or(WIDTH)
}

/// The second word of `ROWS COLUMNS`.
fn columns(size: &str) -> Option<usize> {
    size.split_whitespace().nth(1)?.parse().ok().filter(|columns| *columns > 0)
}

/// Runs `work` as a step.
pub(crate) fn step<T>(
    progress: &dyn Progress,
    name: &str,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let start = Instant::now();
    progress.begin(name);
    let value = work().inspect_err(|_| progress.gave_up(name))?;
    progress.end(name, start.elapsed(), false);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: Duration = Duration::from_millis(75_900);

    #[test]
    fn a_running_step_shows_its_seconds_and_the_tools_newest_words() {
        assert_eq!(status("toolbox", RUNS, "", 80), "  … toolbox, 75 s");
        assert_eq!(status("toolbox", RUNS, "I: extracting\n", 80), "  … toolbox, 75 s: I: extracting");
        assert_eq!(status("toolbox", RUNS, " 10 %\r 20 %\r", 80), "  … toolbox, 75 s: 20 %");
        assert_eq!(
            status("t", RUNS, "a\tb\x1b[2Jc", 80),
            "  … t, 75 s: a b [2Jc",
            "nothing moves the cursor"
        );
    }

    #[test]
    fn a_line_never_wraps_whatever_the_tool_says() {
        for width in [0, 1, 2, 3, 10, 17, 18, 40] {
            let line = status("toolbox", RUNS, "Ünïcödé of a lengthy tool, on and on", width);
            assert!(line.chars().count() <= width.saturating_sub(1).max(1), "{width}: {line}");
        }
        assert_eq!(status("toolbox", RUNS, "lengthy", 20), "  … toolbox, 75 s:…");
    }

    #[test]
    fn a_terminals_size_is_read_or_not_believed() {
        assert_eq!(columns("24 132\n"), Some(132));
        for nonsense in ["", "24", "0 0", "a b"] {
            assert_eq!(columns(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_step_that_failed_or_ended_runs_no_more() {
        let runs = |name: &str| running().iter().any(|step| step.step == name);
        let _ = step(&Plain, "test: fails", || {
            assert!(runs("test: fails"));
            Plain.line("its newest words");
            assert!(running().iter().any(|step| step.said == "its newest words"));
            Err::<(), _>(refused("no", "yes"))
        });
        step(&Plain, "test: works", || Ok(())).unwrap();
        assert!(!runs("test: fails") && !runs("test: works"));
    }
}
