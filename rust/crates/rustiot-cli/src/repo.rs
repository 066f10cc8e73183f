//! `repo`, `publish`, `rollout`: thin over the publisher of `rustiot-repository`.

use crate::build::text;
use crate::fail::{Done, Fail, Why};
use anyhow::anyhow;
use clap::{Args, Subcommand};
use rustiot_image::{BundleTools, Context, Plain, Toolbox};
use rustiot_repository::publish::keys::KeyPlace;
use rustiot_repository::publish::{
    self, Error, KeyEntry, Published, Rdelta, Repository, RoleName, Settings, Signing, parse_waves, sbom,
};
use rustiot_repository::{Rollout, State};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the repository is.
#[derive(Debug, Args)]
pub struct Place {
    /// The repository's directory
    #[arg(long, value_name = "DIR", default_value = "repo", global = true)]
    repo: PathBuf,
    /// For scripts: one JSON document on standard output
    #[arg(long, global = true)]
    json: bool,
}

/// `rustiot repo …`
#[derive(Debug, Subcommand)]
pub enum Repo {
    /// Make a repository with new keys
    #[command(after_help = "Examples:\n  rustiot repo init --repo repo\n  \
        rustiot repo init --repo repo --root-keys 3 --root-threshold 2 --targets-keys 2 --targets-threshold 2\n  \
        rustiot repo init --root-key 'pkcs11:token=root;object=root' --targets-key 'pkcs11:token=release;object=targets'\n\n\
        Then build images that trust it: repo/public/metadata/1.root.json")]
    Init {
        #[command(flatten)]
        place: Place,
        /// Root keys that are made
        #[arg(long, default_value_t = 1)]
        root_keys: u32,
        /// Signatures that a root needs
        #[arg(long, default_value_t = 1)]
        root_threshold: u32,
        /// A root key that is there, instead of new ones: a file or a PKCS#11 URI; may be repeated
        #[arg(long, value_name = "KEY", conflicts_with = "root_keys")]
        root_key: Vec<String>,
        /// A targets key that is there, instead of new ones; may be repeated
        #[arg(long, value_name = "KEY", conflicts_with = "targets_keys")]
        targets_key: Vec<String>,
        /// Targets keys that are made
        #[arg(long, default_value_t = 1)]
        targets_keys: u32,
        /// Signatures that an index needs
        #[arg(long, default_value_t = 1)]
        targets_threshold: u32,
    },
    /// Make one more key
    #[command(after_help = "Example:\n  rustiot repo keys --out keys/root-4.pem")]
    Keys {
        /// Its file; what is there is never overwritten
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Sign what waits for signatures, and publish what is complete
    #[command(after_help = "Examples:\n  rustiot repo sign --repo repo --key /media/stick/targets-2.pem\n  \
        rustiot repo sign --repo repo --key 'pkcs11:token=release;object=targets'")]
    Sign {
        #[command(flatten)]
        place: Place,
        /// A key that repo.toml does not reach: a file or a PKCS#11 URI; may be repeated
        #[arg(long)]
        key: Vec<String>,
    },
    /// Replace keys of a role, or renew the root's expiry
    #[command(
        after_help = "Examples:\n  rustiot repo rotate timestamp --add keys/timestamp-2.pem --remove 3fa1\n  \
        rustiot repo rotate root          renews its expiry\n\nThe ids of keys: rustiot repo status"
    )]
    Rotate {
        /// root, targets, rollout, snapshot or timestamp
        role: String,
        /// A new key: a file (relative to the repository) or a PKCS#11 URI; may be repeated
        #[arg(long)]
        add: Vec<String>,
        /// The beginning of the id of a key that is trusted no more; may be repeated
        #[arg(long, value_name = "ID")]
        remove: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Say once more that all is fresh: run it daily
    #[command(after_help = "Example, from a timer:\n  rustiot repo refresh --repo repo && \
        rsync -a repo/public/ web:/srv/updates/")]
    Refresh {
        #[command(flatten)]
        place: Place,
    },
    /// Show roles, keys, expiries and releases
    #[command(after_help = "Example:\n  rustiot repo status --repo repo --json")]
    Status {
        #[command(flatten)]
        place: Place,
    },
}

/// `rustiot publish`
#[derive(Debug, Args)]
pub struct Publish {
    /// Signed bundles, in any order; NAME.spdx.json beside NAME.raucb tells their packages
    #[arg(required = true)]
    bundles: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// What is new: a text file
    #[arg(long, value_name = "FILE")]
    notes: Option<PathBuf>,
    /// What the bundles' signatures are checked against [default: the development CA]
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
}

/// `rustiot rollout`
#[derive(Debug, Args)]
pub struct RolloutArgs {
    /// What to change; nothing shows what is
    #[command(subcommand)]
    change: Option<Change>,
    #[command(flatten)]
    place: Place,
}

/// A change of a roll-out.
#[derive(Debug, Subcommand)]
enum Change {
    /// Set the waves
    #[command(
        after_help = "Example:\n  rustiot rollout set 1.2.0 canary:100%,5%+1d,50%+2d,100%+3d --repo repo"
    )]
    Set {
        /// The release
        version: String,
        /// Such as `canary:100%,5%+1d,50%+2d,100%+3d`: [label:]share[+delay from now]; a share of 0.1% is the least
        waves: String,
        /// The board, if there are several
        #[arg(long)]
        board: Option<String>,
    },
    /// Let nobody start for now
    #[command(
        after_help = "Example:\n  rustiot rollout pause 1.2.0 --reason 'a look at the reports' --repo repo"
    )]
    Pause {
        /// The release
        version: String,
        /// Why, for people
        #[arg(long, default_value = "")]
        reason: String,
        /// The board, if there are several
        #[arg(long)]
        board: Option<String>,
    },
    /// Withdraw the release
    #[command(after_help = "Example:\n  rustiot rollout halt 1.2.0 --reason 'eats batteries' --repo repo")]
    Halt {
        /// The release
        version: String,
        /// Why, for people
        #[arg(long, default_value = "")]
        reason: String,
        /// The board, if there are several
        #[arg(long)]
        board: Option<String>,
    },
    /// Go on by the waves
    #[command(after_help = "Example:\n  rustiot rollout resume 1.2.0 --repo repo")]
    Resume {
        /// The release
        version: String,
        /// The board, if there are several
        #[arg(long)]
        board: Option<String>,
    },
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn fail(error: Error) -> Fail {
    let why = match &error {
        Error::Refused { problem, .. } if problem.starts_with("somebody else") => Why::Busy,
        Error::Refused { .. } => Why::Refused,
        Error::Settings { .. } | Error::Request(_) => Why::Usage,
        Error::Bundle { .. } | Error::Sbom { .. } | Error::Metadata { .. } | Error::Index { .. } => {
            Why::Verification
        }
        _ => Why::Failed,
    };
    Fail::new(why, error)
}

/// `rustiot repo`.
pub fn repo(command: Repo) -> Done {
    match command {
        Repo::Init {
            place,
            root_keys,
            root_threshold,
            root_key,
            targets_key,
            targets_keys,
            targets_threshold,
        } => {
            let mut settings = Settings::default();
            let given = |keys: &[String], made: u32| match u32::try_from(keys.len()) {
                Ok(0) | Err(_) => made,
                Ok(given) => given,
            };
            let (root_keys, targets_keys) = (given(&root_key, root_keys), given(&targets_key, targets_keys));
            for (role, keys) in [(RoleName::Root, root_key), (RoleName::Targets, targets_key)] {
                let entry = |key| KeyEntry { role, key, id: String::new() };
                settings.keys.extend(keys.into_iter().map(entry));
            }
            (settings.threshold.root, settings.threshold.targets) = (root_threshold, targets_threshold);
            for (name, keys, threshold) in
                [("root", root_keys, root_threshold), ("targets", targets_keys, targets_threshold)]
            {
                if threshold == 0 || threshold > keys {
                    return Err(Fail::usage(format!(
                        "{threshold} of {keys} {name} keys cannot be asked for"
                    )));
                }
            }
            settings.spare = [root_keys - root_threshold, targets_keys - targets_threshold];
            let repository = Repository::init(&place.repo, settings, now()).map_err(fail)?;
            if place.json {
                let status = repository.status().map_err(fail)?;
                println!("{}", json!({"repo": place.repo, "status": status}));
            } else {
                let dir = place.repo.display();
                println!("{dir}/public/metadata/1.root.json   put it into the image: devices trust it");
                println!("{dir}/keys/root-*.pem, targets-*.pem   take them off this machine (docs/keys.md)");
                println!("{dir}/public/   copy it to any web server; timestamp.json last");
                println!("Next: rustiot publish BUNDLE --repo {dir}");
            }
            Ok(())
        }
        Repo::Keys { out } => {
            publish::keys::generate(&out).map_err(fail)?;
            println!("{}", out.display());
            Ok(())
        }
        Repo::Sign { place, key } => {
            let repository = Repository::open(&place.repo).map_err(fail)?;
            let here = std::env::current_dir()?;
            let places: Vec<KeyPlace> = key.iter().map(|key| KeyPlace::parse(key, &here)).collect();
            if let Some(KeyPlace::File(missing)) =
                places.iter().find(|place| matches!(place, KeyPlace::File(path) if !path.is_file()))
            {
                return Err(Fail::usage(format!("there is no key {}", missing.display())));
            }
            told(&repository.add_signatures(&places, now()).map_err(fail)?, place.json)
        }
        Repo::Rotate { role, add, remove, place } => {
            let role = RoleName::ALL.into_iter().find(|name| name.as_str() == role).ok_or_else(|| {
                Fail::usage(format!("{role:?} is no role: root, targets, rollout, snapshot or timestamp"))
            })?;
            let mut repository = Repository::open(&place.repo).map_err(fail)?;
            told(&repository.rotate(role, &add, &remove, now()).map_err(fail)?, place.json)
        }
        Repo::Refresh { place } => {
            let repository = Repository::open(&place.repo).map_err(fail)?;
            told(&repository.sign(now(), true).map_err(fail)?, place.json)
        }
        Repo::Status { place } => {
            let status = Repository::open(&place.repo).and_then(|repo| repo.status()).map_err(fail)?;
            if place.json {
                println!("{}", serde_json::to_string(&status)?);
                return Ok(());
            }
            for role in &status.roles {
                let days = role.expires.saturating_sub(now()) / (24 * 3600);
                let keys: Vec<&str> = role.keys.iter().map(|id| id.get(..8).unwrap_or(id)).collect();
                println!(
                    "{:10} version {:<4} {days:4} days left   {} of {} keys sign ({}); at hand {}",
                    role.role,
                    role.version,
                    role.threshold,
                    role.keys.len(),
                    keys.join(" "),
                    role.at_hand
                );
            }
            for (board, releases) in &status.boards {
                println!("{board}: {}", releases.join(", "));
            }
            if !status.signed {
                println!("Not all of it is signed: rustiot repo sign");
            }
            Ok(())
        }
    }
}

/// What a signing run did.
fn told(done: &Signing, json: bool) -> Done {
    if json {
        println!("{}", serde_json::to_string(done)?);
        return Ok(());
    }
    for name in &done.written {
        println!("wrote {name}");
    }
    if done.written.is_empty() && done.waiting.is_empty() {
        println!("nothing to do");
    }
    for (role, (have, need)) in &done.waiting {
        println!("{role} has {have} of {need} signatures: rustiot repo sign --key FILE with the other keys");
    }
    Ok(())
}

/// The whole path of a keyring.
fn whole(keyring: &Path) -> Result<PathBuf, Fail> {
    let why = || format!("cannot find the keyring {}", keyring.display());
    keyring.canonicalize().map_err(|error| Fail::new(Why::Usage, anyhow!(error).context(why())))
}

/// `rustiot publish`.
pub fn publish(context: &Context, args: &Publish) -> Done {
    if let Some(missing) = args.bundles.iter().find(|path| !path.is_file()) {
        return Err(Fail::usage(format!("there is no bundle {}", missing.display())));
    }
    let notes = args.notes.as_deref().map(text).transpose()?;
    let named = args.keyring.as_deref().map(whole).transpose()?;
    let repository = Repository::open(&args.place.repo).map_err(fail)?;
    let toolbox = Toolbox::ensure(context, &Plain)?;
    let keyring = match named {
        Some(keyring) => keyring,
        None => whole(&rustiot_image::keys::development(&toolbox, &context.repo().join("keys"))?.keyring)?,
    };
    let tool = BundleTools { toolbox, keyring };
    let last = std::sync::Mutex::new((String::new(), 0));
    let progress = |what: &str, share: f32| {
        if let Ok(mut last) = last.lock()
            && let Some(line) = forward(&mut last, what, share)
        {
            eprintln!("{line}");
        }
    };
    let (published, signing) = repository
        .publish(&args.bundles, notes.as_deref(), &tool, &Rdelta, now(), &progress)
        .map_err(fail)?;
    if args.place.json {
        println!("{}", json!({"releases": published, "signing": signing}));
        return Ok(());
    }
    for release in &published {
        let known = if release.known { " (was there already)" } else { "" };
        println!("{} {} for {}{known}", release.version, release.manifest_hash, release.compatible);
        for way in &release.ways {
            let from = way.from.as_ref().map(|from| format!(" from {from}")).unwrap_or_default();
            println!("  {:>12} bytes  {}{from}", way.bytes, way.kind);
        }
        let beside = args.bundles.iter().find(|path| {
            publish::manifest(path).is_ok_and(|manifest| manifest.hash == release.manifest_hash)
        });
        for line in contents(release, beside.map(PathBuf::as_path), &args.place.repo) {
            println!("  {line}");
        }
    }
    if published.iter().any(|release| !release.known) {
        println!("who gets what once it is on the server (before that: rustiot rollout set):");
        show(&repository, false)?;
    }
    told(&signing, false)
}

/// How many packages of a difference are told; all of them are in a file.
const TOLD: usize = 20;

/// What is in a release and what differs, in lines.
fn contents(release: &Published, bundle: Option<&Path>, repo: &Path) -> Vec<String> {
    let Some(contents) = &release.contents else {
        let missing = bundle.map(|bundle| sbom::beside(bundle).display().to_string());
        return vec![format!(
            "no package list: there is no {}",
            missing.as_deref().unwrap_or("NAME.spdx.json beside the bundle")
        )];
    };
    let details = repo.join("public/targets").join(&contents.details);
    let mut lines = vec![format!("{} packages: {}", contents.packages, details.display())];
    for difference in &contents.differences {
        let (changed, added, removed) =
            (difference.changed.len(), difference.added.len(), difference.removed.len());
        let not_listed = match difference.more {
            0 => String::new(),
            more => format!(", {more} not listed"),
        };
        lines.push(match difference.count() {
            0 => format!("since {}: the same packages", difference.from_version),
            _ => format!(
                "since {}: {changed} changed, {added} added, {removed} removed{not_listed}",
                difference.from_version
            ),
        });
        let change = difference.changed.iter().map(|change| {
            let sbom::Change { name, from, to } = change;
            format!("  {name} {from} → {to}")
        });
        let added =
            difference.added.iter().map(|package| format!("  + {} {}", package.name, package.version));
        let removed =
            difference.removed.iter().map(|package| format!("  - {} {}", package.name, package.version));
        let mut told: Vec<String> = change.chain(added).chain(removed).take(TOLD).collect();
        let more = difference.count().saturating_sub(told.len());
        lines.append(&mut told);
        if more > 0 {
            lines.push(format!("  … and {more} more"));
        }
    }
    lines
}

/// The line for a step, if it is further than the last one. Several threads work and tell in any order: what is behind
/// is not told.
pub fn forward(last: &mut (String, u32), what: &str, share: f32) -> Option<String> {
    // A share of 0 to 1 in tenths.
    let tenths = (1..=10).filter(|tenth| share * 10.0 >= *tenth as f32).count();
    let tenths = u32::try_from(tenths).unwrap_or(10);
    if last.0 == what && tenths <= last.1 {
        return None;
    }
    *last = (what.to_owned(), tenths);
    Some(format!("  … {what}: {} %", tenths.saturating_mul(10)))
}

/// Of a repository without a release.
const NOTHING: &str = "nothing is published yet: rustiot publish BUNDLE";

/// `rustiot rollout`.
pub fn rollout(args: &RolloutArgs) -> Done {
    let now = now();
    // What was typed comes first.
    let waves = match &args.change {
        Some(Change::Set { waves, .. }) => parse_waves(waves, now).map_err(Fail::usage)?,
        _ => Vec::new(),
    };
    let repository = Repository::open(&args.place.repo).map_err(fail)?;
    let Some(change) = &args.change else { return show(&repository, args.place.json) };
    let (version, board) = match change {
        Change::Set { version, board, .. }
        | Change::Pause { version, board, .. }
        | Change::Halt { version, board, .. }
        | Change::Resume { version, board } => (version, board),
    };
    let version =
        version.parse().map_err(|error| Fail::usage(format!("{version:?} is no version: {error}")))?;
    let boards = repository.boards().map_err(fail)?;
    let board = match (board, boards.as_slice()) {
        (Some(board), _) => board.clone(),
        (None, [board]) => board.clone(),
        (None, []) => return Err(Fail::refused(NOTHING)),
        (None, _) => return Err(Fail::usage(format!("say which --board: {}", boards.join(", ")))),
    };
    let apply = |rollout: &mut Rollout| match change {
        Change::Set { .. } => rollout.waves = waves.clone(),
        Change::Pause { reason, .. } => (rollout.state, rollout.reason) = (State::Paused, reason.clone()),
        Change::Halt { reason, .. } => (rollout.state, rollout.reason) = (State::Halted, reason.clone()),
        Change::Resume { .. } => (rollout.state, rollout.reason) = (State::Running, String::new()),
    };
    let (rollout, signing) = repository.change_rollout(&board, &version, &apply, now).map_err(fail)?;
    if args.place.json {
        println!(
            "{}",
            json!({"compatible": board, "version": version, "rollout": rollout, "signing": signing})
        );
        return Ok(());
    }
    line(&version.to_string(), &rollout);
    told(&signing, false)
}

fn show(repository: &Repository, json: bool) -> Done {
    let mut all = Vec::new();
    let boards = repository.boards().map_err(fail)?;
    for board in &boards {
        let rollouts = repository.rollouts(board).map_err(fail)?;
        let index = repository.index(board).map_err(fail)?.with(&rollouts);
        if !json {
            println!("{board}");
        }
        for release in index.releases {
            if json {
                let (version, rollout) = (&release.version, &release.rollout);
                all.push(json!({"compatible": board, "version": version, "rollout": rollout}));
            } else {
                line(&release.version.to_string(), &release.rollout);
            }
        }
    }
    if json {
        println!("{}", serde_json::Value::from(all));
    } else if boards.is_empty() {
        eprintln!("rustiot: {NOTHING}");
    }
    Ok(())
}

fn line(version: &str, rollout: &Rollout) {
    let state = match rollout.state {
        State::Running => "running",
        State::Paused | State::Unknown => "paused",
        State::Halted => "halted",
    };
    let reason = if rollout.reason.is_empty() { String::new() } else { format!(" ({})", rollout.reason) };
    println!("  {version:12} {state}{reason}");
    let now = now();
    for wave in &rollout.waves {
        let when = match wave.not_before.checked_sub(now) {
            None | Some(0) => "open".to_owned(),
            Some(left) if left < 3600 => format!("opens in {} min", left.div_ceil(60)),
            Some(left) => format!("opens in {} h", left.div_ceil(3600)),
        };
        let labels =
            if wave.labels.is_empty() { String::new() } else { format!(" of {}", wave.labels.join(", ")) };
        let share = format!("{}.{}", wave.permille / 10, wave.permille % 10);
        println!("    {share:>5} %{labels}: {when}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_made_shown_refreshed_and_never_made_twice() {
        let dir = tempfile::tempdir().unwrap();
        let place = || Place { repo: dir.path().join("repo"), json: true };
        let init = || Repo::Init {
            place: place(),
            root_keys: 3,
            root_threshold: 2,
            root_key: vec![],
            targets_key: vec![],
            targets_keys: 1,
            targets_threshold: 1,
        };
        repo(init()).unwrap();
        assert!(dir.path().join("repo/keys/root-3.pem").is_file());
        assert_eq!(repo(init()).unwrap_err().why(), Why::Refused);
        repo(Repo::Status { place: place() }).unwrap();
        repo(Repo::Refresh { place: place() }).unwrap();
        let none = RolloutArgs { change: None, place: place() };
        rollout(&none).unwrap();
        let role = Repo::Rotate { role: "king".into(), add: vec![], remove: vec![], place: place() };
        assert_eq!(repo(role).unwrap_err().why(), Why::Usage);
    }

    #[test]
    fn what_is_in_a_release_is_told_briefly() {
        let mut release = Published {
            compatible: "rustiot-x".into(),
            version: "1.1.0".into(),
            manifest_hash: rustiot_repository::Digest::of(b"1.1.0"),
            known: false,
            ways: vec![],
            contents: None,
        };
        let told =
            |release: &Published| contents(release, Some(Path::new("b/1.1.0.raucb")), Path::new("repo"));
        assert_eq!(told(&release), ["no package list: there is no b/1.1.0.spdx.json"]);
        let package = |number: usize| sbom::Package { name: format!("p{number}"), version: "1".into() };
        let difference = |changed, added: usize| sbom::Difference {
            from: rustiot_repository::Digest::of(b"1.0.0"),
            from_version: "1.0.0".parse().unwrap(),
            changed,
            added: (0..added).map(package).collect(),
            removed: vec![package(99)],
            more: 5,
        };
        let change = sbom::Change { name: "libssl".into(), from: "3.5.1".into(), to: "3.5.4".into() };
        let mut same = difference(vec![], 0);
        (same.removed, same.more) = (vec![], 0);
        release.contents = Some(publish::Contents {
            packages: 312,
            details: "ff.x.details.json".into(),
            sbom: "ff.x.spdx.json".into(),
            differences: vec![same, difference(vec![change.clone()], 1), difference(vec![change], 30)],
        });
        let lines = told(&release);
        let begin = [
            "312 packages: repo/public/targets/ff.x.details.json",
            "since 1.0.0: the same packages",
            "since 1.0.0: 1 changed, 1 added, 1 removed, 5 not listed",
            "  libssl 3.5.1 → 3.5.4",
            "  + p0 1",
            "  - p99 1",
            "  … and 5 more",
            "since 1.0.0: 1 changed, 30 added, 1 removed, 5 not listed",
        ];
        assert_eq!(lines[..begin.len()], begin);
        assert_eq!(lines.last().unwrap(), "  … and 17 more", "20 of 37 are told");
        assert_eq!(lines.len(), begin.len() + 21);
    }

    #[test]
    fn progress_never_goes_back_within_a_step() {
        let mut last = Default::default();
        let mut told = |what, share| forward(&mut last, what, share);
        let shares = [0.0, 0.31, 0.25, 0.39, 0.4, 0.1, 1.0, 0.95];
        let lines: Vec<String> = shares.iter().filter_map(|share| told("a", *share)).collect();
        assert_eq!(lines, ["  … a: 0 %", "  … a: 30 %", "  … a: 40 %", "  … a: 100 %"]);
        assert_eq!(told("b", 0.0).as_deref(), Some("  … b: 0 %"), "another step begins anew");
    }

    #[test]
    fn more_signatures_than_keys_are_a_wrong_request() {
        let place = Place { repo: "nowhere".into(), json: false };
        let init = Repo::Init {
            place,
            root_keys: 1,
            root_threshold: 2,
            root_key: vec![],
            targets_key: vec![],
            targets_keys: 1,
            targets_threshold: 1,
        };
        assert_eq!(repo(init).unwrap_err().why(), Why::Usage);
    }
}
