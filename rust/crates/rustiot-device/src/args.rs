//! What a person may type after `rustiot`. Only the shape: no defaults that depend on the device, no effects.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The device's own command line.
#[derive(Debug, Parser)]
#[command(
    name = "rustiot",
    version,
    about = "Look at this device and update it",
    after_help = "Examples:\n  \
        rustiot status                                     everything on one screen\n  \
        rustiot update install http://host/os-2.0.0.raucb  update over the network\n  \
        rustiot update why                                 why the last update did not come to stay\n  \
        rustiot boots                                      the last starts and why each came\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused in this state, 4 busy, 5 verification failed.\n\
        With --json the answer is one JSON value on standard output; its keys only ever get more."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Answer in JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// Read files below this directory instead of `/`.
    #[arg(long, global = true, hide = true, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Version, slot, health, last update and configuration on one screen.
    #[command(after_help = "Examples:\n  \
        rustiot status\n  \
        rustiot status --json   for programs")]
    Status,
    /// Install releases and see what became of them.
    #[command(subcommand)]
    Update(Update),
    /// First boot and configuration: file systems, identity, settings.
    #[command(subcommand)]
    Provision(Provision),
    /// The health checks and what they say now.
    #[command(after_help = "Examples:\n  \
        rustiot health\n  \
        rustiot health --json   for programs")]
    Health,
    /// Both slots: what they hold, which one runs, what the boot loader will do.
    #[command(after_help = "Examples:\n  \
        rustiot slots\n  \
        rustiot slots --json   the boot record and the loader, for programs")]
    Slots,
    /// The last starts of this device, with the reason of each reset.
    #[command(after_help = "Examples:\n  \
        rustiot boots\n  \
        rustiot boots --json   for programs")]
    Boots,
    /// Containers: start, look, stop. The stock `docker` client can do more, over the same socket.
    #[cfg(feature = "engine")]
    #[command(subcommand)]
    Container(Container),
    /// Run a part of the system in the foreground, as systemd does by the program's name.
    #[command(after_help = "Examples:\n  \
        rustiot daemon provision status\n  \
        rustiot daemon health         after `systemctl stop rustiot-health`")]
    Daemon {
        /// Which part.
        #[arg(value_name = "NAME")]
        name: Daemon,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Update {
    /// Look into the repository for a release for this device.
    #[command(after_help = "Examples:\n  \
        rustiot update check\n  \
        rustiot update check --json   for programs")]
    Check,
    /// What would be installed, by which way, and what it costs, before a byte is fetched.
    #[command(after_help = "Examples:\n  \
        rustiot update plan             of what the last look found, or of the update under way\n  \
        rustiot update plan --details   and which packages change: fetches the publisher's list\n  \
        rustiot update plan --json      for programs")]
    Plan {
        /// Fetch the publisher's list of packages, and show what changes.
        #[arg(long)]
        details: bool,
    },
    /// Download what is available, and hold it before the install.
    #[command(after_help = "Examples:\n  \
        rustiot update download\n  \
        rustiot update install    what was downloaded")]
    Download,
    /// Install a signed release into the other slot, try it, keep it if it is healthy.
    #[command(after_help = "Examples:\n  \
        rustiot update install                                  what is available in the repository\n  \
        rustiot update install /media/stick/repository          a repository in a directory\n  \
        rustiot update install /data/os-2.0.0.raucb\n  \
        rustiot update install https://host/os-2.0.0.raucb --hold reboot\n  \
        rustiot update install https://host/updates/ --repository --release 2.0.0\n\n\
        The install goes on when this command is interrupted; `rustiot update cancel` takes it back.")]
    Install(Install),
    /// What the update service is doing.
    #[command(after_help = "Examples:\n  \
        rustiot update status\n  \
        rustiot update status --json   for programs")]
    Status,
    /// The last refusal or failure: what, why, and what to do next.
    #[command(after_help = "Examples:\n  \
        rustiot update why\n  \
        rustiot update why --json   for programs")]
    Why,
    /// Take back what is being installed, is installed, or waits for its trial.
    #[command(after_help = "Example:\n  \
        rustiot update cancel")]
    Cancel,
    /// Make the next start the trial of what is installed (without an install: go back to the other slot's release).
    #[command(after_help = "Examples:\n  \
        rustiot update activate            tried at the next start, whenever that is\n  \
        rustiot update activate --reboot   tried now")]
    Activate {
        /// Restart at once.
        #[arg(long)]
        reboot: bool,
    },
    /// Restart into the trial, also while applications put it off.
    #[command(after_help = "Example:\n  \
        rustiot update reboot")]
    Reboot,
    /// Hold the update under way before a stage; `none` lets it go on.
    #[command(after_help = "Examples:\n  \
        rustiot update hold download    pauses a download; what came is kept\n  \
        rustiot update hold none")]
    Hold {
        /// Where it stops.
        #[arg(value_enum, value_name = "STAGE")]
        stage: HoldStage,
    },
    /// Put a stage of the update under way off until a time.
    #[command(after_help = "Examples:\n  \
        rustiot update schedule reboot 1795464900    not before this time (Unix seconds)\n  \
        rustiot update schedule reboot 0             no more")]
    Schedule {
        /// What is put off.
        #[arg(value_enum)]
        stage: Stage,
        /// Unix seconds; 0: not at all.
        #[arg(value_name = "TIME")]
        not_before: u64,
    },
    /// Consent to the update that hawkBit waits with (`consent = "ask"` in the configuration).
    #[command(after_help = "Examples:\n  \
        rustiot update consent\n  \
        rustiot update consent --refuse")]
    Consent {
        /// Refuse it.
        #[arg(long)]
        refuse: bool,
    },
    /// What the device may do by itself now: windows, limits, who puts off a restart.
    #[command(after_help = "Examples:\n  \
        rustiot update policy\n  \
        rustiot update policy --json   for programs")]
    Policy,
    /// Updates of the past: result, reason, log.
    #[command(after_help = "Examples:\n  \
        rustiot update history\n  \
        rustiot update history --json   for programs")]
    History,
}

#[derive(Debug, Args)]
pub struct Install {
    /// A .raucb file, its http(s) URL, or the directory of a repository. Without one: what is available.
    #[arg(value_name = "FILE|URL|DIR")]
    pub source: Option<String>,
    /// Stop before activating the release, or before the restart.
    #[arg(long, value_enum, value_name = "WHERE")]
    pub hold: Option<HoldAt>,
    /// The URL is that of a repository (metadata/, targets/), not of a bundle.
    #[arg(long, requires = "source")]
    pub repository: bool,
    /// This release of the repository, instead of the newest.
    #[arg(long, value_name = "VERSION")]
    pub release: Option<String>,
    /// Install even what failed here before, or runs already.
    #[arg(long)]
    pub force: bool,
    /// Return as soon as the service has taken the order.
    #[arg(long)]
    pub no_wait: bool,
}

/// Where an update under way is held.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum HoldStage {
    /// Nowhere.
    None,
    /// Before the download.
    Download,
    /// Before the install.
    Install,
    /// Installed, not activated.
    Activate,
    /// Activated, not restarted.
    Reboot,
}

impl HoldStage {
    /// Its name on the bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Download => "download",
            Self::Install => "install",
            Self::Activate => "activate",
            Self::Reboot => "reboot",
        }
    }
}

/// A stage that can be put off.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Stage {
    /// Bring the file into the cache.
    Download,
    /// Write the other slot.
    Install,
    /// Make the next start the trial.
    Activate,
    /// Restart into it.
    Reboot,
}

impl Stage {
    /// Its name on the bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Install => "install",
            Self::Activate => "activate",
            Self::Reboot => "reboot",
        }
    }
}

/// Where an update stops.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum HoldAt {
    /// Installed, not activated.
    Activate,
    /// Activated, not restarted.
    Reboot,
}

impl HoldAt {
    /// The option's value on the bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Activate => "activate",
            Self::Reboot => "reboot",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Provision {
    /// What provisioning did at this start, and all it has to say about the configuration.
    #[command(after_help = "Examples:\n  \
        rustiot provision status\n  \
        rustiot provision status --json   for programs")]
    Status,
    /// Read the configuration again and put it into force.
    #[command(after_help = "Example:\n  \
        rustiot provision apply   after /config/rustiot.toml was changed")]
    Apply,
}

/// What one does with containers where there is no `docker` client.
#[cfg(feature = "engine")]
#[derive(Debug, Subcommand)]
pub enum Container {
    /// The containers of this device.
    #[command(after_help = "Examples:\n  \
        rustiot container list           those that run\n  \
        rustiot container list --all     also those that do not\n  \
        rustiot container list --json    for programs")]
    List {
        /// Also those that do not run.
        #[arg(long)]
        all: bool,
    },
    /// The images of this device.
    #[command(after_help = "Examples:\n  \
        rustiot container images\n  \
        rustiot container images --json   for programs")]
    Images,
    /// Take in the images of an archive (`docker save`, an OCI archive), plain or compressed.
    #[command(after_help = "Example:\n  \
        rustiot container load /data/app.tar")]
    Load {
        /// The archive.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Fetch an image from its registry.
    #[command(after_help = "Examples:\n  \
        rustiot container pull registry.example/app:2\n  \
        rustiot container pull registry.example/app@sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae")]
    Pull {
        /// Name with a tag or a digest.
        #[arg(value_name = "IMAGE")]
        image: String,
    },
    /// Make a container and start it in the background.
    #[command(after_help = "Examples:\n  \
        rustiot container run --name web --restart always --publish 8080:80 web:1\n  \
        rustiot container run --volume store:/var/lib/app app:1 serve --verbose")]
    Run(Run),
    /// Start a container that is there.
    #[command(after_help = "Example:\n  \
        rustiot container start web")]
    Start {
        /// Name or id.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Ask a container to end; kill it if it does not.
    #[command(after_help = "Example:\n  \
        rustiot container stop web")]
    Stop {
        /// Name or id.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Stop it and start it.
    #[command(after_help = "Example:\n  \
        rustiot container restart web")]
    Restart {
        /// Name or id.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Remove a container with its files; named volumes stay.
    #[command(after_help = "Examples:\n  \
        rustiot container remove web\n  \
        rustiot container remove web --force   also while it runs")]
    Remove {
        /// Name or id.
        #[arg(value_name = "NAME")]
        name: String,
        /// Kill it first.
        #[arg(long)]
        force: bool,
    },
    /// Remove an image that no container needs.
    #[command(after_help = "Example:\n  \
        rustiot container remove-image web:1")]
    RemoveImage {
        /// Name or id.
        #[arg(value_name = "IMAGE")]
        image: String,
    },
    /// What a container wrote to its standard output and error.
    #[command(after_help = "Examples:\n  \
        rustiot container logs web --tail 100\n  \
        rustiot container logs web --follow     until it ends, or Ctrl-C")]
    Logs {
        /// Name or id.
        #[arg(value_name = "NAME")]
        name: String,
        /// Go on with what comes.
        #[arg(long)]
        follow: bool,
        /// Only so many of the last lines.
        #[arg(long, value_name = "LINES")]
        tail: Option<u32>,
    },
    /// Everything about a container, as JSON.
    #[command(after_help = "Example:\n  \
        rustiot container inspect web")]
    Inspect {
        /// Name or id.
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// A container to be made.
#[cfg(feature = "engine")]
#[derive(Debug, Args)]
pub struct Run {
    /// Its name; without one it gets one.
    #[arg(long)]
    pub name: Option<String>,
    /// When it is started again: `no`, `on-failure`, `always`, `unless-stopped`.
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: String,
    /// A volume or a directory of the device at a place of the container's; may be repeated.
    #[arg(long, value_name = "VOLUME:PATH")]
    pub volume: Vec<String>,
    /// A variable of its environment; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// A port of the device that leads to one of the container's; may be repeated.
    #[arg(long, value_name = "PORT:PORT")]
    pub publish: Vec<String>,
    /// Its network: `bridge`, `host`, `none`, or one that was made.
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// What the image's program is told.
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// The parts that run under a name of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Daemon {
    Provision,
    Watchdog,
    Health,
    Update,
    Media,
    RaucBackend,
    #[cfg(feature = "engine")]
    Engine,
    #[cfg(feature = "engine")]
    Runtime,
}

impl FromStr for Daemon {
    type Err = ();

    /// From a program's name.
    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "rustiot-provision" => Ok(Self::Provision),
            "rustiot-watchdog" => Ok(Self::Watchdog),
            "rustiot-health" => Ok(Self::Health),
            "rustiot-update" => Ok(Self::Update),
            "rustiot-media" => Ok(Self::Media),
            "rauc-backend" => Ok(Self::RaucBackend),
            #[cfg(feature = "engine")]
            "rustiot-engine" => Ok(Self::Engine),
            #[cfg(feature = "engine")]
            "rustiot-runtime" => Ok(Self::Runtime),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_and_they_are_right() {
        fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, String)>) {
            if !command.has_subcommands() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                found.push((path.to_owned(), help));
            }
            for sub in command.get_subcommands() {
                leaves(sub, &format!("{path} {}", sub.get_name()), found);
            }
        }
        let mut found = Vec::new();
        leaves(&<Cli as clap::CommandFactory>::command(), "rustiot", &mut found);
        assert!(found.len() > 15, "{found:?}");
        for (path, help) in found {
            let examples: Vec<&str> =
                help.lines().map(str::trim).filter(|line| line.starts_with("rustiot ")).collect();
            assert!(examples.iter().any(|example| example.starts_with(&path)), "{path} has no example");
            for example in examples {
                // What it does stands behind two spaces.
                let line = example.split("  ").next().unwrap_or_default();
                Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
    }

    #[test]
    fn a_programs_name_says_what_runs() {
        assert_eq!("rauc-backend".parse(), Ok(Daemon::RaucBackend));
        assert_eq!("rustiot-media".parse(), Ok(Daemon::Media));
        assert_eq!("rustiot-update".parse(), Ok(Daemon::Update));
        assert_eq!("rustiot".parse::<Daemon>(), Err(()));
        assert_eq!("".parse::<Daemon>(), Err(()));
    }
}
