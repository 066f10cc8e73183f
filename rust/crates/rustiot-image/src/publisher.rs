//! What a publisher needs of a bundle, done by the toolbox: its signature checked as a device checks it, its images
//! unpacked. Called through the port of `rustiot-repository`'s publisher.

use crate::toolbox::Toolbox;
use rustiot_repository::publish::Tool;
use std::path::{Path, PathBuf};
use std::process::Command;

/// RAUC and squashfs-tools out of the toolbox.
#[derive(Clone, Debug)]
pub struct BundleTools {
    /// The toolbox.
    pub toolbox: Toolbox,
    /// Certificates that signatures are checked against.
    pub keyring: PathBuf,
}

impl BundleTools {
    fn run(&self, paths: [&Path; 2], program: &str, args: &[&std::ffi::OsStr]) -> Result<(), String> {
        let mut toolbox = self.toolbox.clone();
        for path in paths {
            if let Some(dir) = path.parent() {
                toolbox = toolbox.with_path(dir);
            }
        }
        let mut command: Command = toolbox.command(program);
        let out = command.args(args).output().map_err(|error| format!("cannot run {program}: {error}"))?;
        if out.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&out.stderr).into_owned();
        Err(words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned())
    }
}

impl Tool for BundleTools {
    #[expect(clippy::disallowed_methods, reason = "gone with its temporary directory")]
    fn verify(&self, bundle: &Path) -> Result<(), String> {
        let bundle = bundle.canonicalize().map_err(|error| error.to_string())?;
        // RAUC takes a relative one from the directory of its configuration.
        let keyring = self.keyring.canonicalize().map_err(|error| error.to_string())?;
        // As a device checks it (conf/rauc/system.conf.in): without this RAUC wants certificates for e-mail.
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let config = dir.path().join("system.conf");
        let text = format!(
            "[system]\ncompatible=any\nbootloader=noop\n\n[keyring]\npath={}\ncheck-purpose=codesign\n\
             allow-partial-chain=true\n",
            keyring.display()
        );
        std::fs::write(&config, text).map_err(|error| error.to_string())?;
        let conf = format!("--conf={}", config.display());
        self.run([&bundle, &keyring], "rauc", &[conf.as_ref(), "info".as_ref(), bundle.as_os_str()])
    }

    fn unpack(&self, bundle: &Path, to: &Path) -> Result<(), String> {
        let bundle = bundle.canonicalize().map_err(|error| error.to_string())?;
        let to = to.canonicalize().map_err(|error| error.to_string())?;
        let args =
            ["-no-progress".as_ref(), "-f".as_ref(), "-d".as_ref(), to.as_os_str(), bundle.as_os_str()];
        self.run([&bundle, &to], "unsquashfs", &args)
    }
}
