//! Step: the owner's files → settings in force, below `/run`.
//!
//! Everything it decides is in `rustiot-config`; this reads, writes and tells. Run at every start and by
//! `rustiot provision apply`.

use crate::os::Os;
use crate::status::{Outcome, Status};
use crate::storage::Result;
use rustiot_config::{Content, Fragment, LastGood, MAX_FILE, Message, Place, Settings, Severity, render};
use std::io;
use std::path::Path;

const LAST_GOOD: &str = "/state/config/last-good.json";
const MAIN: &str = "/config/rustiot.toml";
const EXTRA: &str = "/config/rustiot.d";
const IMAGE: &str = "/usr/lib/rustiot/defaults.toml";
const ZONES: &str = "/usr/share/zoneinfo";

/// What changed below `/run`, so that who reads it can be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Paths below `/run`.
    pub files: Vec<String>,
    /// `[engine]` or `[proxy]` says something else than before.
    pub engine: bool,
}

impl Changed {
    /// Whether a file in this directory (below `/run`) changed.
    pub fn within(&self, directory: &str) -> bool {
        self.files.iter().any(|file| file.starts_with(directory))
    }
}

fn fragment(os: &impl Os, file: &str) -> Fragment {
    let path = Path::new(file);
    let content = match os.length(path) {
        Some(length) if length > MAX_FILE => Content::TooLarge(length),
        _ => match os.read(path, MAX_FILE) {
            Ok(Some(bytes)) => Content::Bytes(bytes),
            Ok(None) => Content::Missing,
            Err(error) => Content::Unreadable(error.to_string()),
        },
    };
    Fragment { file: file.into(), content }
}

/// Writes a file below `/run` unless it already says so. True when it was written.
fn render_file(os: &impl Os, path: &str, text: &str, mode: u32) -> io::Result<bool> {
    let path = format!("/run/{path}");
    let path = Path::new(&path);
    if os.read(path, 4 * MAX_FILE).is_ok_and(|known| known.as_deref() == Some(text.as_bytes())) {
        return Ok(false);
    }
    if let Some(parent) = path.parent() {
        os.make_dir(parent, 0o755)?;
    }
    os.write(path, text.as_bytes(), mode, false).map(|()| true)
}

/// Reads, resolves, renders. The status gets the messages and the host name; the step never fails for what is in
/// the owner's files.
pub(crate) fn configuration(os: &impl Os, default_hostname: &str, status: &mut Status) -> (Result, Changed) {
    let known = os.read(Path::new(LAST_GOOD), 4 * MAX_FILE).ok().flatten();
    let last_good: LastGood =
        known.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();

    let image = Some(fragment(os, IMAGE)).filter(|image| image.content != Content::Missing);
    let mut owner = vec![fragment(os, MAIN)];
    let extra = os.list(Path::new(EXTRA)).unwrap_or_default();
    // Editors and file managers leave files that start with a dot.
    let extra = extra.iter().filter(|name| name.ends_with(".toml") && !name.starts_with('.'));
    owner.extend(extra.map(|name| fragment(os, &format!("{EXTRA}/{name}"))));
    if !matches!(os.mounted("/config"), Ok(Some(_))) {
        // A partition that cannot be mounted has lost none of its files.
        let mut lost: Vec<&str> = last_good.keys.values().map(|good| good.place.file.as_str()).collect();
        lost.sort_unstable();
        lost.dedup();
        lost.retain(|file| *file != MAIN);
        owner.extend(lost.iter().map(|file| Fragment { file: (*file).into(), content: Content::Missing }));
    }

    let mut resolved = rustiot_config::resolve(image.as_ref(), &owner, &last_good);
    let zone = resolved.settings.time.timezone.to_string();
    let zone_exists = os.length(Path::new(&format!("{ZONES}/{zone}"))).is_some();
    if !zone_exists && zone != "UTC" {
        resolved.messages.push(Message {
            severity: Severity::Error,
            place: match resolved.last_good.keys.get("time.timezone") {
                Some(good) => good.place.clone(),
                None => Place::file(IMAGE),
            },
            key: "time.timezone".into(),
            what: format!("expected a time zone that this image knows; {zone:?} is none"),
            now: "times are shown in UTC".into(),
        });
    }

    let mut changed = Changed::default();
    let mut problems: Vec<String> = Vec::new();
    let mut note = |what: &str, result: io::Result<bool>| match result {
        Ok(true) => changed.files.push(what.to_owned()),
        Ok(false) => {}
        Err(error) => problems.push(format!("/run/{what} cannot be written: {error}")),
    };
    let files = render::all(&resolved.settings, default_hostname);
    for file in &files {
        note(&file.path, render_file(os, &file.path, &file.text, file.mode));
    }
    for (directory, whole) in render::OWNED {
        for name in os.list(Path::new(&format!("/run/{directory}"))).unwrap_or_default() {
            let path = format!("{directory}/{name}");
            let ours = *whole || name.starts_with(render::PREFIX);
            if ours && !files.iter().any(|file| file.path == path) {
                note(&path, os.remove(Path::new(&format!("/run/{path}"))).map(|()| true));
            }
        }
    }
    let before = os.read(Path::new(rustiot_config::EFFECTIVE), 4 * MAX_FILE).ok().flatten();
    let before: Option<Settings> = before.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    changed.engine = before.is_some_and(|before| {
        before.engine != resolved.settings.engine || before.proxy != resolved.settings.proxy
    });
    let settings = serde_json::to_string(&resolved.settings.clone().without_secrets()).unwrap_or_default();
    note("rustiot/settings.json", render_file(os, "rustiot/settings.json", &settings, 0o644));
    let zone = if zone_exists { zone } else { "UTC".into() };
    note(
        "rustiot/localtime",
        os.link(&format!("{ZONES}/{zone}"), Path::new("/run/rustiot/localtime")).map(|()| false),
    );
    let hostname = render::hostname(&resolved.settings, default_hostname).to_owned();
    note("rustiot/hostname", os.set_hostname(&hostname).map(|()| false));

    let kept = serde_json::to_vec(&resolved.last_good).unwrap_or_default();
    if known.as_deref() != Some(&kept) {
        let wrote = os
            .make_dir(Path::new("/state/config"), 0o700)
            .and_then(|()| os.write(Path::new(LAST_GOOD), &kept, 0o600, true));
        if let Err(error) = wrote {
            problems.push(format!("the last good values cannot be kept: {error}"));
        }
    }

    status.hostname = hostname;
    status.origins = resolved.origins;
    status.messages = resolved.messages;
    let errors = status.messages.iter().filter(|message| message.severity == Severity::Error).count();
    let outcome = match (problems.is_empty(), errors, changed.files.is_empty()) {
        (false, ..) => Outcome::Failed,
        (true, 1.., _) => Outcome::Degraded,
        (true, 0, false) => Outcome::Done,
        (true, 0, true) => Outcome::Unchanged,
    };
    if errors > 0 {
        problems.push(format!("{errors} error(s) in the configuration, see messages"));
    }
    if outcome == Outcome::Done {
        problems.push(format!("{} files rendered", changed.files.len()));
    }
    ((outcome, problems.join("; ")), changed)
}
