//! The checks that come with the image: executables in `/usr/lib/rustiot/health.d/{required,advisory}`.
//!
//! Exit code 0 passes; anything else, or taking too long, does not; the last line that it printed is the reason. They
//! are looked for in the verified image only: a directory on a writable partition would let whoever can write there
//! run as root at every boot, and decide about every update. Called by [`crate::service`].

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::check::{CheckResult, Need, Verdict};

/// Where they are.
pub const DIRECTORY: &str = "/usr/lib/rustiot/health.d";
/// Most that is read of what one prints, in bytes; the rest goes nowhere.
const MAX_OUTPUT: u64 = 4096;
/// Longest reason, in characters.
const MAX_REASON: usize = 200;

/// Runs all, one after another, each limited to `limit`.
pub async fn run_all(directory: PathBuf, limit: Duration) -> Vec<CheckResult> {
    let mut results = Vec::new();
    for (part, need) in [("required", Need::RequiredInTrial), ("advisory", Need::Advisory)] {
        for path in executables(&directory.join(part)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let verdict = run(&path, limit).await;
            results.push(CheckResult::new(&format!("script {name}"), need, verdict));
        }
    }
    results
}

fn executables(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let runs = |p: &PathBuf| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(runs).collect();
    paths.sort();
    paths
}

async fn run(path: &Path, limit: Duration) -> Verdict {
    // A pipe of its own for both streams would need two readers; standard error goes to the journal instead.
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Verdict::Fail(format!("cannot be run: {error}")),
    };
    let Some(mut stdout) = child.stdout.take() else { return Verdict::Fail("has no output".into()) };
    let work = async {
        let mut bytes = Vec::new();
        let _ = (&mut stdout).take(MAX_OUTPUT).read_to_end(&mut bytes).await;
        // Read on, so that one that prints much is not stopped by a full pipe.
        let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
        (child.wait().await, bytes)
    };
    match tokio::time::timeout(limit, work).await {
        Err(_) => Verdict::Fail(format!("took longer than {} s", limit.as_secs())),
        Ok((Ok(status), _)) if status.success() => Verdict::Pass,
        Ok((Ok(status), bytes)) => Verdict::Fail(last_line(&bytes).unwrap_or_else(|| status.to_string())),
        Ok((Err(error), _)) => Verdict::Fail(error.to_string()),
    }
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn script(directory: &Path, name: &str, text: &str, mode: u32) {
        fs::create_dir_all(directory).unwrap();
        let path = directory.join(name);
        fs::File::create(&path).unwrap().write_all(format!("#!/bin/sh\n{text}\n").as_bytes()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn exit_codes_and_last_lines_are_verdicts() {
        let dir = tempfile::tempdir().unwrap();
        let (required, advisory) = (dir.path().join("required"), dir.path().join("advisory"));
        script(&required, "10-good", "echo fine", 0o755);
        script(&required, "20-bad", "echo first; echo; echo 'no sensor\u{7}'; exit 3", 0o755);
        script(&required, "30-silent", "exit 4", 0o755);
        script(&required, "README", "exit 1", 0o644);
        script(
            &advisory,
            "10-loud",
            "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 0",
            0o755,
        );
        let results = run_all(dir.path().to_owned(), Duration::from_secs(600)).await;
        assert_eq!(
            results,
            [
                CheckResult::new("script 10-good", Need::RequiredInTrial, Verdict::Pass),
                CheckResult::new("script 20-bad", Need::RequiredInTrial, Verdict::Fail("no sensor".into())),
                CheckResult::new(
                    "script 30-silent",
                    Need::RequiredInTrial,
                    Verdict::Fail("exit status: 4".into())
                ),
                CheckResult::new("script 10-loud", Need::Advisory, Verdict::Pass),
            ]
        );
        assert_eq!(run_all(dir.path().join("none"), Duration::ZERO).await, []);

        // One that hangs is ended. (In one test: a script that is being written while another test forks is busy.)
        script(dir.path(), "hang", "exec sleep 600", 0o755);
        let verdict = run(&dir.path().join("hang"), Duration::ZERO).await;
        assert_eq!(verdict, Verdict::Fail("took longer than 0 s".into()));
    }

    proptest! {
        #[test]
        fn a_reason_is_one_short_line_of_what_was_printed(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..600),
                "([a-z \u{7}\u{9b}\r\n]{0,9}\n?){0,9}".prop_map(String::into_bytes),
            ],
        ) {
            let text = String::from_utf8_lossy(&bytes);
            match last_line(&bytes) {
                None => prop_assert!(text.trim().is_empty()),
                Some(line) => {
                    prop_assert!(!line.chars().any(char::is_control));
                    prop_assert!(line.chars().count() <= MAX_REASON);
                    let clean: String = text.chars().filter(|c| !c.is_control()).collect();
                    prop_assert!(clean.contains(&line));
                }
            }
        }
    }
}
