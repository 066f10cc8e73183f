//! A stand-in for rauc-hawkbit-updater: its flags, configuration file, exit codes and lines over our DDI client.
//!
//! So that its test suite can be pointed at this client, and for those who run a plain RAUC system. The behaviour is
//! taken from its documentation and from what its suite expects.

pub mod config;
mod download;
pub mod keyfile;
pub mod log;
pub mod rauc;
pub mod voice;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustiot_http::{Http, Identity, Settings, Trust, Url};
use sd_notify::NotifyState;
use tokio::sync::mpsc;

use crate::client::{Client, Server};
use crate::driver::Driver;
use crate::machine::{Consent, Policy};
use crate::store::Store;
use config::Config;
use log::{Level, Log};

/// Only the low speed ends a download, not a silence of its own.
const SILENCE: Duration = Duration::from_secs(3600);

const HELP: &str = "Usage:
  rustiot-hawkbit-updater [OPTION…]

Takes releases from hawkBit and installs them with RAUC (stand-in for rauc-hawkbit-updater)

  -c, --config-file=FILE    Configuration file
  -v, --version             Version information
  -d, --debug               Enable debug output
  -r, --run-once            Check and install new software and exit
  -s, --output-systemd      Lines in systemd's form on standard error
  -h, --help                Show this text
";

/// The flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Args {
    config: Option<PathBuf>,
    version: bool,
    debug: bool,
    once: bool,
    systemd: bool,
    help: bool,
}

impl Args {
    fn parse(list: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut args = Self::default();
        let mut list = list.into_iter();
        while let Some(item) = list.next() {
            let text = item.to_string_lossy().into_owned();
            let (name, value) = match text.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (text.clone(), None),
            };
            let letters = match name.strip_prefix("--") {
                Some("config-file") => "c".to_owned(),
                Some("version") => "v".to_owned(),
                Some("debug") => "d".to_owned(),
                Some("run-once") => "r".to_owned(),
                Some("output-systemd") => "s".to_owned(),
                Some("help") => "h".to_owned(),
                Some(_) => return Err(format!("Unknown option {name}")),
                None => match name.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                    Some(letters) => letters.to_owned(),
                    None => return Err(format!("Unknown argument {name}")),
                },
            };
            for letter in letters.chars() {
                match letter {
                    'c' => {
                        let value = value.clone().map(OsString::from).or_else(|| list.next());
                        args.config = Some(value.ok_or(format!("Missing argument for {name}"))?.into());
                    }
                    'v' => args.version = true,
                    'd' => args.debug = true,
                    'r' => args.once = true,
                    's' => args.systemd = true,
                    'h' => args.help = true,
                    _ => return Err(format!("Unknown option -{letter}")),
                }
            }
        }
        Ok(args)
    }
}

/// Runs the shim; returns the exit code: 0 done, 1 failed, 2 no configuration named, 3 no such file, 4 unusable.
pub fn main(list: impl IntoIterator<Item = OsString>) -> u8 {
    let args = match Args::parse(list) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("option parsing failed: {why}");
            return 1;
        }
    };
    if args.help {
        print!("{HELP}");
        return 0;
    }
    if args.version {
        println!("Version {}", env!("CARGO_PKG_VERSION"));
        return 0;
    }
    let Some(path) = args.config else {
        eprintln!("No configuration file given");
        return 2;
    };
    if !path.exists() {
        eprintln!("No such configuration file: {}", path.display());
        return 3;
    }
    let (config, driver) = match prepare(&path) {
        Ok(prepared) => prepared,
        Err(why) => {
            eprintln!("Loading config file failed: {why}");
            return 4;
        }
    };
    let log = Log { level: if args.debug { Level::Debug } else { config.level }, systemd: args.systemd };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return 1;
        }
    };
    runtime.block_on(run(config, driver, log, args.once))
}

/// What is made of the configuration.
struct Parts {
    client: Client,
    downloads: Http,
}

fn prepare(path: &Path) -> Result<(Arc<Config>, Parts), String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let config = Config::parse(&bytes).map_err(|error| error.to_string())?;
    let url = config.url();
    let server = Server {
        url: Url::parse(&url).map_err(|error| format!("'hawkbit_server': {error}"))?,
        tenant: config.tenant.clone(),
        controller: config.target.clone(),
        auth: config.auth.clone(),
        timeout: if config.timeout.is_zero() { SILENCE } else { config.timeout },
    };
    let identity = config
        .ssl_files
        .as_ref()
        .map(|(certificate, key)| Identity { certificate: certificate.clone(), key: key.clone() });
    let mut settings = Settings {
        trust: if config.ssl_verify { Trust::System } else { Trust::Anybody },
        identity,
        connect_timeout: if config.connect_timeout.is_zero() { SILENCE } else { config.connect_timeout },
        idle_timeout: SILENCE,
        redirects: 8,
        ..Settings::default()
    };
    let build = |settings: &Settings| Http::new(settings).map_err(|error| error.to_string());
    let http = build(&settings)?;
    if !config.send_auth {
        settings.identity = None;
    }
    let downloads = build(&settings)?;
    Ok((Arc::new(config), Parts { client: Client::new(http, server), downloads }))
}

async fn run(config: Arc<Config>, parts: Parts, log: Log, once: bool) -> u8 {
    let policy = Policy {
        consent: Consent::Automatic,
        progress_every: Duration::ZERO,
        download_alone: !config.stream,
        poll_working: Duration::from_secs(5),
        poll_idle: None,
        retry: config.retry_wait,
    };
    let installer = rauc::Rauc::new(Arc::clone(&config), parts.downloads, log);
    let words = voice::Words::new(log, &config.auth);
    let mut driver =
        Driver::new(parts.client, installer, words, policy, config.device.clone(), Store::Nowhere);
    if config.reboot {
        driver = driver.with_end(restart);
    }
    notify(&[NotifyState::Ready, NotifyState::Status("Polling hawkBit for new software.")]);
    let good = if once {
        let good = driver.once().await;
        if !good && config.stream && driver.ended_badly() {
            log.say(Level::Warning, "Streaming installation failed");
        }
        good
    } else {
        let (commands, orders) = mpsc::channel(1);
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
        let terminated = async {
            match &mut terminate {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = driver.run(orders) => {}
            _ = terminated => {}
        }
        drop(commands);
        true
    };
    notify(&[NotifyState::Stopping]);
    u8::from(!good)
}

/// Restarts the machine in an orderly way.
fn restart() {
    if let Err(error) = std::process::Command::new("reboot").status() {
        eprintln!("Failed to reboot: {error}");
    }
}

/// Tells systemd, where it listens.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        eprintln!("cannot tell systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &[&str]) -> Result<Args, String> {
        Args::parse(list.iter().map(OsString::from))
    }

    #[test]
    fn flags_are_read_long_short_and_together() {
        let want = Args { config: Some("x".into()), once: true, debug: true, ..Args::default() };
        for list in [
            &["-c", "x", "-r", "-d"][..],
            &["-rdc", "x"],
            &["--config-file=x", "--run-once", "--debug"],
            &["--config-file", "x", "-dr"],
        ] {
            assert_eq!(parse(list), Ok(want.clone()), "{list:?}");
        }
    }

    #[test]
    fn unknown_flags_are_refused_by_name() {
        assert_eq!(parse(&["--invalidarg"]), Err("Unknown option --invalidarg".into()));
        assert_eq!(parse(&["-x"]), Err("Unknown option -x".into()));
        assert_eq!(parse(&["x"]), Err("Unknown argument x".into()));
        assert_eq!(parse(&["-c"]), Err("Missing argument for -c".into()));
    }
}
