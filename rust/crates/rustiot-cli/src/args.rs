//! What can be typed. Only parsing: what it means is checked where it is done.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// RustIoT OS on the workstation.
#[derive(Debug, Parser)]
#[command(
    name = "rustiot",
    version,
    about = "Builds RustIoT OS, runs it in QEMU, flashes it, and tests what it promises",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong request, 3 refused in this state, 4 busy, \
        5 verification failed.\n\nStart with: rustiot run",
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a board in QEMU and give you its console
    #[command(after_help = "Examples:\n  rustiot run\n  rustiot run --board qemuarm64\n  \
        rustiot run --check --json     boot, wait for healthy, tell, power off\n  \
        rustiot run --detach           leave it running; prints its name and ssh port\n  \
        rustiot run --detach --engine-socket /tmp/device.sock\n                                 \
        then: docker -H unix:///tmp/device.sock ps\n  \
        rustiot run --image build/rustiot-qemux86-64-1.0.0.img   what `rustiot image build` made")]
    Run(Run),
    /// List the machines that run
    #[command(after_help = "Example:\n  rustiot ps --json")]
    Ps(Json),
    /// Switch off a machine that was started with `run --detach`
    #[command(after_help = "Example:\n  rustiot stop qemux86-64-1")]
    Stop {
        /// Its name, from `rustiot ps`
        name: String,
    },
    /// Build images
    #[command(subcommand, after_help = "Example:\n  rustiot image build --board qemuarm64")]
    Image(Image),
    /// Make a signed update of a release
    #[command(after_help = "Examples:\n  rustiot bundle --version 1.1.0\n  \
        rustiot bundle --board qemuarm64 --version 1.1.0 --overlay my-files --out release.raucb\n  \
        rustiot bundle --cert 'pkcs11:object=release' --key 'pkcs11:object=release' --keyring ca.pem")]
    Bundle(Bundle),
    /// Make the development keys that sign updates
    #[command(after_help = "Example:\n  rustiot keys --out keys")]
    Keys {
        /// Where they go; what is there is never overwritten
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        #[command(flatten)]
        json: Json,
    },
    /// Write an image to a card or disk, and read it back
    #[command(after_help = "Examples:\n  rustiot flash build/rustiot-qemux86-64-0.1.0.img /dev/sdX\n  \
        rustiot flash image.img /dev/mmcblk0 --yes --json\n\nA run that was cut short leaves the medium \
        without a partition table; run it again.")]
    Flash {
        /// The image, uncompressed
        image: PathBuf,
        /// The whole medium, or a file
        device: PathBuf,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Serve a directory of updates over HTTP, to this machine and the machines that run on it
    #[command(after_help = "Example:\n  rustiot serve build\n\nA machine in QEMU reaches it at 10.0.2.2.")]
    Serve {
        /// What to serve
        dir: PathBuf,
        /// The port; 0 takes a free one
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Test everything: code, then every promise on machines in QEMU
    #[command(after_help = "Examples:\n  rustiot test\n  rustiot test --list\n  \
        rustiot test --only updates_a_to_b\n  rustiot test --only qemux86-64/leaves --only qemux86-64/stays\n  rustiot test --only qemuarm64/")]
    Test(Test),
    /// Measure what is promised in figures, side by side with Debian's own ways
    #[command(after_help = "Examples:\n  rustiot bench\n  rustiot bench --only init,size --runs 9\n  \
        rustiot bench --write     put the tables into docs/figures.md\n  rustiot bench delta old.raucb new.raucb\n\nNothing else should run meanwhile.")]
    Bench(Bench),
    #[command(hide = true)]
    FetchInstall(FetchInstall),
    /// Longer experiments on machines in QEMU
    #[command(subcommand, after_help = "Example:\n  rustiot lab power-cut --runs 100")]
    Lab(Lab),
    /// Keep a repository of updates: keys, signatures, rotation
    #[command(
        subcommand,
        after_help = "Examples:\n  rustiot repo init --repo repo\n  rustiot repo status --repo repo\n\n\
            Then: rustiot publish, rustiot rollout. The whole way: docs/guide-rollout.md"
    )]
    Repo(crate::repo::Repo),
    /// Turn signed bundles into files for any web server
    #[command(after_help = "Examples:\n  rustiot publish build/*.raucb --repo repo\n  \
        rustiot publish release.raucb --repo repo --notes NEWS --keyring ca.pem\n\n\
        A second run changes nothing, a run that was cut short is finished by the next.")]
    Publish(crate::repo::Publish),
    /// Make deltas between two versions of a container image, for devices that have the older
    #[command(
        name = "image-delta",
        after_help = "Examples:\n  rustiot image-delta dir-1 dir-2 --out deltas\n  \
        rustiot image-delta app-1.tar app-2.tar --manifest app-2.json --out deltas --json\n\n\
        The whole way, with app:1 and app:2 in the registry:\n\
        skopeo copy docker://REGISTRY/app:1 dir:dir-1\n\
        skopeo copy docker://REGISTRY/app:2 dir:dir-2\n\
        rustiot image-delta dir-1 dir-2 --out deltas     it prints the tag\n\
        skopeo copy --all oci:deltas:TAG docker://REGISTRY/app:TAG\n\n\
        What others have put under that tag (signatures, deltas from other versions) must be in --out before: \
        skopeo copy --all docker://REGISTRY/app:TAG oci:deltas:TAG. It stays there. A second run changes nothing.\n\n\
        Exit codes: 0 there is something to copy, 1 failed, 2 wrong request, 3 no delta is worth it, 4 another process \
        writes --out, 5 an image is damaged"
    )]
    ImageDelta(ImageDelta),
    /// Update one device over ssh, from this machine
    #[command(
        name = "push-os",
        after_help = "Examples:\n  rustiot push-os root@192.0.2.7                         the newest release of ./repo\n  \
        rustiot push-os root@gateway.local 1.2.0 --repo repo\n  \
        rustiot push-os root@gateway.local build/rustiot-qemux86-64-1.2.0.raucb --json\n  \
        rustiot push-os ssh://root@127.0.0.1:2222 --ssh-option IdentityFile=key\n\n\
        Only ssh must reach the device; it fetches through that connection, the difference to what it runs if the \
        repository has it, and checks as always. A run that was cut short is taken up by the next; `rustiot update \
        cancel` on the device takes it back.\n\n\
        Exit codes: 0 committed (or waiting as asked by --hold), 1 failed or fell back, 2 wrong request, 3 refused \
        by the device, 4 busy, 5 not to be trusted"
    )]
    PushOs(PushOs),
    /// Show who gets a release when; set waves, pause, halt, resume
    #[command(after_help = "Examples:\n  rustiot rollout --repo repo\n  \
        rustiot rollout set 1.2.0 canary:100%,5%+1d,50%+2d,100%+3d --repo repo\n  \
        rustiot rollout halt 1.2.0 --reason 'eats batteries' --repo repo")]
    Rollout(crate::repo::RolloutArgs),
    /// See the story: update, bad update, power cut, hang
    #[command(
        after_help = "Examples:\n  rustiot demo\n  rustiot demo --board qemuarm64\n\nIt takes a quarter of an hour where the processor is emulated."
    )]
    Demo(BoardArg),
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Build a disk image
    #[command(after_help = "Examples:\n  rustiot image build\n  \
        rustiot image build --board qemuarm64 --version 1.2.0 --overlay my-files --out build")]
    Build(Build),
}

#[derive(Debug, Args)]
pub struct BoardArg {
    /// The board: a file in conf/boards
    #[arg(long, default_value = "qemux86-64")]
    pub board: String,
}

/// `rustiot image-delta`
#[derive(Debug, Args)]
pub struct ImageDelta {
    /// The image that devices have: an OCI layout or archive, skopeo's dir:, or what docker save wrote
    pub old: PathBuf,
    /// The image that they shall get, as the registry has it
    pub new: PathBuf,
    /// The OCI layout that is written; what is in it stays
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The new image's manifest as the registry has it, if NEW is an archive with another one or none
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Only this platform, such as linux/arm64 [default: all that both images have]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    #[command(flatten)]
    pub json: Json,
}

/// `rustiot push-os`
#[derive(Debug, Args)]
pub struct PushOs {
    /// The device, as ssh knows it: [user@]host, ssh://user@host:port, or a name of ~/.ssh/config
    pub device: String,
    /// A signed bundle, or a version of the repository [default: the newest one]
    #[arg(value_name = "BUNDLE|RELEASE")]
    pub what: Option<String>,
    /// The repository: a publisher's directory, or a copy of its public/
    #[arg(long, value_name = "DIR", default_value = "repo")]
    pub repo: PathBuf,
    /// Stop before the release is activated, or before the restart
    #[arg(long, value_enum, value_name = "WHERE")]
    pub hold: Option<PushHold>,
    /// Install even what failed on the device before, or runs there already
    #[arg(long)]
    pub force: bool,
    /// How long to wait for the outcome, minutes
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    pub timeout: u64,
    /// An option for ssh, as behind its -o; may be repeated
    #[arg(long, value_name = "OPTION")]
    pub ssh_option: Vec<String>,
    #[command(flatten)]
    pub json: Json,
}

/// Where a pushed release waits.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum PushHold {
    /// Installed, not activated
    Activate,
    /// Activated, not restarted
    Reboot,
}

#[derive(Debug, Args)]
pub struct Json {
    /// For scripts: one JSON document on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub board: BoardArg,
    /// Boot, wait until it is healthy, print what it says of itself, power off
    #[arg(long, conflicts_with = "detach")]
    pub check: bool,
    /// Return when it is healthy and leave it running
    #[arg(long)]
    pub detach: bool,
    /// Forward the device's container engine to this socket, for `docker -H unix://PATH`
    #[arg(long, value_name = "PATH", requires = "detach")]
    pub engine_socket: Option<PathBuf>,
    /// Boot this disk image of the board, which stays as it is, instead of the lab's own
    #[arg(long, value_name = "FILE", conflicts_with = "engine_socket")]
    pub image: Option<PathBuf>,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
pub struct Release {
    #[command(flatten)]
    pub board: BoardArg,
    /// Version of the release (semver)
    #[arg(long, default_value = "0.1.0")]
    pub version: String,
    /// The oldest version that a device with this release may go back to
    #[arg(long, value_name = "VERSION")]
    pub floor: Option<String>,
    /// When it was built, which devices with it know to have passed: a day (2026-11-27) or Unix seconds [default:
    /// SOURCE_DATE_EPOCH, else the day of the last commit]
    #[arg(long, value_name = "DATE")]
    pub build_date: Option<String>,
    /// A directory whose files are laid over the root
    #[arg(long, value_name = "DIR")]
    pub overlay: Option<PathBuf>,
    /// Leave out what only development needs: guest agent, root shell on the console
    #[arg(long)]
    pub production: bool,
    /// The certificates that devices check updates against [default: the development CA's]
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// Root metadata of the update repository that devices trust: repo/public/metadata/1.root.json
    #[arg(long, value_name = "FILE")]
    pub repository_root: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Build {
    #[command(flatten)]
    pub release: Release,
    /// A rustiot.toml for the config partition
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the image goes [default: build]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
pub struct Bundle {
    #[command(flatten)]
    pub release: Release,
    /// The signing certificate: a file or a PKCS#11 URI [default: the development one]
    #[arg(long, requires = "key", requires = "keyring")]
    pub cert: Option<String>,
    /// Its private key: a file or a PKCS#11 URI
    #[arg(long, requires = "cert")]
    pub key: Option<String>,
    /// A certificate between the signing one and the CA; may be repeated
    #[arg(long, value_name = "FILE")]
    pub intermediate: Vec<PathBuf>,
    /// The bundle's file [default: build/rustiot-BOARD-VERSION.raucb]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
pub struct Test {
    /// Only tell what there is
    #[arg(long)]
    pub list: bool,
    /// Only promises whose board/name contains this
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// The short run: what every change gets
    #[arg(long)]
    pub quick: bool,
    /// Machines at once [default: one a processor]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    #[command(flatten)]
    pub json: Json,
}

/// What `bench` measures, in the order in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// From init's start to the real root, against initramfs-tools and dracut
    Init,
    /// Size of the initramfs, against the same
    Size,
    /// From the firmware's hand-over to healthy, against a stock Debian
    Boot,
    /// What a release that fails costs, in boots and watchdog periods
    Fallback,
    /// Memory of the services, size of the programs
    Memory,
    /// Root image by package
    Root,
}

/// Subjects of `bench` with arguments of their own.
#[derive(Debug, Subcommand)]
pub enum BenchWhat {
    /// The container engine beside Docker Engine and podman: size, memory, run, start and pull
    #[command(
        after_help = "Examples:\n  rustiot bench containers\n  rustiot bench containers --rounds 15 --big 120 --write\n  \
        rustiot bench containers --guest --networks\n\n\
        All three take turns in one root with Debian's packages, on one medium; what they pull comes from Debian's \
        docker-registry beside them. Needs root, and loop devices or --guest."
    )]
    Containers(BenchContainers),
    /// Bytes of every way to a release, against what others make: two files, or real release pairs
    #[command(after_help = "Examples:\n  rustiot bench delta old.raucb new.raucb --json\n  \
        rustiot bench delta --only library,security\n  rustiot bench delta --only security --ours --no-full --rauc\n  \
        rustiot bench delta --write\n\n\
        Of bundles the images in the old one are the sources, as on a device.")]
    Delta(BenchDelta),
    /// A fleet that looks for updates on one static web server: requests a second, bytes a device
    #[command(after_help = "Examples:\n  rustiot bench herd --devices 1000 --seconds 30\n  \
        rustiot bench herd --write\n\nFour rounds of six hours, each in --seconds: the first look, nothing new, a daily \
        refresh, a new release. Needs root: what TLS costs is counted in a network of its own.")]
    Herd(BenchHerd),
    /// A new version of an image on a device, whole and by a delta: bytes, processor time and memory
    #[command(after_help = "Examples:\n  rustiot bench pull old.tar new.tar\n  \
        rustiot bench pull old.tar new.tar --rounds 5 --json\n\n\
        The device is a machine in QEMU, the registry Debian's. The two versions of the image differ in one layer: \
        tar --sort=name --owner=0 --group=0 --mtime=@0 -C DIR -cf old.tar .")]
    Pull(BenchPull),
    /// An update that is cut again and again: bytes against one that is left alone
    #[command(
        after_help = "Examples:\n  rustiot bench resume\n  rustiot bench resume --only power --cuts 50 --seed 3\n\n\
        A download and an install are cut at random points: the process is killed, the network goes, the power goes. \
        Needs root, and loop devices for the medium that loses power."
    )]
    Resume(BenchResume),
}

#[derive(Debug, Args)]
pub struct BenchContainers {
    /// How often each engine has its turn
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub rounds: u16,
    /// How often each pulls
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub pulls: u16,
    /// Megabytes of the large image, unpacked
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=4000))]
    pub big: u64,
    /// Inside a machine in QEMU, beside the other services of a RustIoT OS, not on this one
    #[arg(long)]
    pub guest: bool,
    /// Each container is on the default network of its engine; needs nftables in the kernel
    #[arg(long)]
    pub networks: bool,
    /// Put the table into docs/figures.md
    #[arg(long)]
    pub write: bool,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
pub struct BenchPull {
    /// The layer that devices have: a tar archive, not compressed
    pub old: PathBuf,
    /// The layer in its place
    pub new: PathBuf,
    /// How often each is pulled; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub rounds: u16,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
pub struct BenchResume {
    /// How many cuts of each update
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub cuts: u16,
    /// What chooses the points
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only these
    #[arg(long, value_name = "CUT", value_delimiter = ',')]
    pub only: Vec<Cut>,
    /// Only the delta, not the bundle as it is
    #[arg(long)]
    pub delta: bool,
    /// Put the table into docs/figures.md
    #[arg(long)]
    pub write: bool,
    #[command(flatten)]
    pub json: Json,
}

/// What `bench resume` cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// The process
    Process,
    /// The network
    Network,
    /// The power
    Power,
    /// All three in turn
    All,
}

impl Cut {
    pub const ALL: [Cut; 4] = [Cut::Process, Cut::Network, Cut::Power, Cut::All];

    pub fn words(self) -> &'static str {
        match self {
            Cut::Process => "the process",
            Cut::Network => "the network",
            Cut::Power => "the power",
            Cut::All => "all three",
        }
    }
}

/// What `bench resume` runs in a process of its own, to kill it.
#[derive(Debug, Args)]
pub struct FetchInstall {
    /// Where the file is
    pub url: String,
    /// Its length
    pub len: u64,
    /// Its SHA-256
    pub sha256: String,
    /// The proxy's directory
    pub cache: PathBuf,
    /// Where the bundle is put
    pub out: PathBuf,
    /// The old image: the file is a delta
    #[arg(long)]
    pub old: Option<PathBuf>,
    /// Without a cache and a download of its own
    #[arg(long)]
    pub stream: bool,
}

#[derive(Debug, Args)]
pub struct BenchHerd {
    /// How many devices
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub devices: u64,
    /// What the six hours of a round take here, seconds
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Put the table into docs/figures.md
    #[arg(long)]
    pub write: bool,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
pub struct BenchDelta {
    /// The old image or bundle
    #[arg(requires = "new")]
    pub old: Option<PathBuf>,
    /// The new one
    pub new: Option<PathBuf>,
    /// Only these pairs of conf/bench/releases.toml
    #[arg(long, value_name = "PAIR", value_delimiter = ',', conflicts_with = "old")]
    pub only: Vec<String>,
    /// Leave out what others make
    #[arg(long)]
    pub ours: bool,
    /// Let the real RAUC install it too, by its block-hash-index, in a machine in QEMU: half an hour a pair, emulated
    #[arg(long)]
    pub rauc: bool,
    /// Leave out the full way, which takes longest to make
    #[arg(long)]
    pub no_full: bool,
    /// Leave out these of the other tools: bsdiff, for one, takes 17 times the image's size of memory
    #[arg(long, value_name = "TOOL", value_delimiter = ',', conflicts_with = "ours")]
    pub without: Vec<String>,
    /// What another tool may take for one step, seconds
    #[arg(long, default_value_t = 1800)]
    pub patience: u64,
    /// Put the table into docs/figures.md
    #[arg(long, conflicts_with = "old")]
    pub write: bool,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    #[command(subcommand)]
    pub what: Option<BenchWhat>,
    #[command(flatten)]
    pub board: BoardArg,
    /// Boots of each system; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub runs: u64,
    /// Only these
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub only: Vec<Section>,
    /// Take the fallback's figures from this output of `rustiot test --json` instead of trying it all again
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Put the tables into docs/figures.md
    #[arg(long)]
    pub write: bool,
    #[command(flatten)]
    pub json: Json,
}

#[derive(Debug, Subcommand)]
pub enum Lab {
    /// Cut the power at random instants of an update
    #[command(
        name = "power-cut",
        after_help = "Example:\n  rustiot lab power-cut --runs 100 --seed 7 --json"
    )]
    PowerCut {
        #[command(flatten)]
        board: BoardArg,
        /// How many cuts
        #[arg(long, default_value_t = 25)]
        runs: usize,
        /// What chooses the instants and the fate of unflushed writes
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        json: Json,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// All commands below `command` that help shows, by their whole names.
    fn all(command: &clap::Command, name: &str) -> Vec<(String, clap::Command)> {
        let seen = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
        seen.flat_map(|sub| {
            let name = format!("{name} {}", sub.get_name());
            [vec![(name.clone(), sub.clone())], all(sub, &name)].concat()
        })
        .collect()
    }

    #[test]
    fn the_definition_is_sound_and_every_command_has_an_example_that_parses() {
        Cli::command().debug_assert();
        let commands = all(&Cli::command(), "rustiot");
        assert!(commands.iter().any(|(name, _)| name == "rustiot repo rotate"), "all levels are walked");
        for (name, command) in commands {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help
                .lines()
                .filter_map(|line| line.strip_prefix("  "))
                .filter(|l| l.starts_with(&name))
                .collect();
            assert!(!examples.is_empty(), "{name} has no example");
            for example in examples {
                // What follows several blanks says what the example does; a shell would take quotes away.
                let words = example.split("   ").next().and_then(|words| words.split(" &&").next());
                let words = words.unwrap_or_default().split_whitespace().map(|word| word.trim_matches('\''));
                let quoted_words = example.contains("--reason '");
                assert!(quoted_words || Cli::try_parse_from(words).is_ok(), "{example} is no command");
            }
        }
    }

    #[test]
    fn an_unknown_flag_is_a_wrong_request() {
        let error = Cli::try_parse_from(["rustiot", "run", "--bord", "x"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--board"), "it guesses what was meant");
    }

    #[test]
    fn the_engine_is_forwarded_of_machines_that_stay() {
        assert!(Cli::try_parse_from(["rustiot", "run", "--detach", "--engine-socket", "s"]).is_ok());
        assert!(Cli::try_parse_from(["rustiot", "run", "--engine-socket", "s"]).is_err());
    }

    #[test]
    fn check_and_detach_exclude_each_other() {
        assert!(Cli::try_parse_from(["rustiot", "run", "--check", "--detach"]).is_err());
    }
}
