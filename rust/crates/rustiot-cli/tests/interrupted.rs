//! What a command leaves that is told to stop in the middle of a build: nothing. The signal goes to the command alone,
//! as a supervisor sends it, and not to its tools.

#![expect(clippy::disallowed_methods, reason = "a test")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// All paths below `dir`.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.flat_map(|entry| [vec![entry.path()], tree(&entry.path())].concat()).collect()
}

#[test]
fn a_build_that_is_told_to_stop_leaves_no_process_and_no_directory() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: builds need root");
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        let (fifo, cache) = (dir.path().join("alive"), dir.path().join("cache"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(&bin).unwrap();
        // A tool that has begun its directory, whose own child is slow and deaf, and that holds the fifo open with it.
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\ntrap '' INT TERM\nexec 9>{}\n\
             for arg; do case $arg in {}/*) mkdir -p \"$arg/half\";; esac; done\nsleep 1000 & wait\n",
            fifo.display(),
            cache.display()
        );
        fs::write(bin.join("mmdebstrap"), script).unwrap();
        fs::set_permissions(bin.join("mmdebstrap"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rustiot-cli"))
            .args(["image", "build"])
            .env_clear()
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()))
            .env("HOME", dir.path())
            .env("RUSTIOT_ROOT", Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.."))
            .env("RUSTIOT_CACHE", &cache)
            .env("RUSTIOT_MIRROR", "http://127.0.0.1:9/debian")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Open for writing too, so that opening never waits for a tool that does not come.
        let held = fs::File::options().read(true).write(true).open(&fifo).unwrap();
        while !tree(&cache).iter().any(|path| path.ends_with("half")) {
            let ended = command.try_wait().unwrap();
            assert!(ended.is_none(), "it ended by itself: {ended:?}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }

        kill(Pid::from_raw(i32::try_from(command.id()).unwrap()), signal).unwrap();
        let status = command.wait().unwrap();
        let mut said = String::new();
        command.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(128 + signal as i32), "{said}");
        // The fifo ends where no tool has it any more; ours comes first.
        let mut reader = fs::File::open(&fifo).unwrap();
        drop(held);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        let left: Vec<_> =
            tree(&cache).into_iter().filter(|p| p.extension().is_none_or(|e| e != "lock")).collect();
        assert_eq!(left, [cache.join("toolbox")], "{said}");
        assert!(!said.contains("failed"), "the tool that was killed is no failure to tell: {said}");
    }
}
