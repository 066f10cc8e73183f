//! Stages two and three: the fragments' keys merged, each with its place → settings in which every value is
//! valid.
//!
//! Pure. Never fails: a bad key falls back to its last good value, else to what the files below it or the image
//! say, and the message tells which. The known keys, their types and their texts all come from the types in
//! [`crate::settings`]: a key is checked by deserializing its section with that key alone.
//! Used by `rustiot-provision`, and by the workstation to check a file before it is put on a card.

use crate::fragment::{Content, Fragment, Node, NodeValue, parse};
use crate::message::{Message, Place, Severity};
use crate::scalar::{AttributeName, NetworkName};
use crate::settings::{NetworkKind, NetworkSettings, Settings};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// More messages than a person reads help nobody; the rest is counted.
const MAX_MESSAGES: usize = 100;
/// More entries than any list of ours has use for.
const MAX_ENTRIES: usize = 256;
/// More `[network.<name>]` sections than any device has interfaces.
const MAX_NETWORKS: usize = 64;
/// More attributes than hawkBit's operators can look at.
const MAX_ATTRIBUTES: usize = 64;
/// The one section besides `network` whose keys are the owner's own.
const ATTRIBUTES: &str = "update.hawkbit.attributes";

/// The values that were last in force, with where they came from: `/state/config/last-good.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastGood {
    /// Dotted key → its value.
    pub keys: BTreeMap<String, Good>,
}

/// A value that was valid when it was last seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Good {
    /// The value as it stands in the settings.
    pub value: Value,
    /// The file that gave it.
    #[serde(flatten)]
    pub place: Place,
}

/// Where a setting in force comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum Origin {
    /// A file of this boot.
    File(Place),
    /// The value that this key had before.
    LastGood(Place),
    /// The image's own defaults file.
    Image,
}

/// The configuration in force, and all there is to say about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Valid settings, always.
    pub settings: Settings,
    /// What the owner is told, in the order of the files.
    pub messages: Vec<Message>,
    /// What to keep for the next boot.
    pub last_good: LastGood,
    /// Dotted key → where its value comes from; a key that is not here has its built-in default.
    pub origins: BTreeMap<String, Origin>,
}

/// From files to settings. `image` is the image's own defaults file, `owner` what is on the config partition in
/// the order of precedence (the last one wins), `last_good` what the last boot kept.
///
/// A file of `owner` that is damaged (see [`Content`]) gives the whole statements that it has; keys that came
/// from it before keep their last good values. So does every key that is given but not valid.
pub fn resolve(image: Option<&Fragment>, owner: &[Fragment], last_good: &LastGood) -> Outcome {
    let mut merged = Merged::new(last_good);
    if let Some(image) = image {
        merged.add_image(image);
    }
    for fragment in owner {
        merged.add_owner(fragment);
    }
    merged.settle();
    merged.finish()
}

/// Any bytes as the owner's file, with any last good values: for fuzzing. Panics only if this crate has a bug.
pub fn fuzz(bytes: &[u8]) {
    let fragment = Fragment { file: "rustiot.toml".into(), content: Content::Bytes(bytes.to_vec()) };
    let first = resolve(None, std::slice::from_ref(&fragment), &LastGood::default());
    let _ = crate::render::all(&first.settings, "rustiot-00000000");
    // What was kept must be good: an empty file brings exactly the same settings back.
    let empty = Fragment { file: "rustiot.toml".into(), content: Content::Bytes(Vec::new()) };
    let second = resolve(None, &[empty], &first.last_good);
    assert_eq!(first.settings, second.settings, "last good values bring the same settings back");
}

#[derive(Debug, Clone)]
struct Entry {
    value: Value,
    origin: Origin,
}

/// Stage two: dotted key → value and origin, every value valid by itself.
struct Merged<'a> {
    last_good: &'a LastGood,
    image: BTreeMap<String, Entry>,
    entries: BTreeMap<String, Entry>,
    messages: Vec<Message>,
    dropped_messages: usize,
}

impl<'a> Merged<'a> {
    fn new(last_good: &'a LastGood) -> Self {
        let (image, entries) = (BTreeMap::new(), BTreeMap::new());
        Self { last_good, image, entries, messages: Vec::new(), dropped_messages: 0 }
    }

    fn tell(&mut self, message: Message) {
        if self.messages.len() < MAX_MESSAGES {
            self.messages.push(message);
        } else {
            self.dropped_messages = self.dropped_messages.saturating_add(1);
        }
    }

    /// The image's defaults: its bad keys are left out (a test of the image keeps that from happening).
    fn add_image(&mut self, fragment: &Fragment) {
        let mut found = Found::default();
        let parsed = parse(fragment);
        found.messages.extend(parsed.messages);
        flatten_root(parsed.root, &mut found);
        for message in found.messages {
            self.tell(Message { now: "it is left out".into(), ..message });
        }
        let good = found.good.into_iter();
        self.image.extend(good.map(|(key, (_, value))| (key, Entry { value, origin: Origin::Image })));
        self.entries = self.image.clone();
    }

    fn add_owner(&mut self, fragment: &Fragment) {
        let mut found = Found::default();
        let parsed = parse(fragment);
        for mut message in parsed.messages {
            message.now = "keys that it does not give keep their last good values".into();
            self.tell(message);
        }
        flatten_root(parsed.root, &mut found);
        if parsed.damaged {
            for (key, good) in &self.last_good.keys {
                if good.place.file == fragment.file && is_valid(key, &good.value) {
                    let origin = Origin::LastGood(good.place.clone());
                    self.entries.insert(key.clone(), Entry { value: good.value.clone(), origin });
                }
            }
        }
        for key in &found.bad {
            self.fall_back_to_last_good(key);
        }
        for (key, (place, value)) in found.good {
            self.entries.insert(key, Entry { value, origin: Origin::File(place) });
        }
        for message in found.messages {
            self.tell(message);
        }
    }

    /// True when there was a last good value to take.
    fn fall_back_to_last_good(&mut self, key: &str) -> bool {
        let Some(good) = self.last_good.keys.get(key).filter(|good| is_valid(key, &good.value)) else {
            return false;
        };
        let origin = Origin::LastGood(good.place.clone());
        self.entries.insert(key.to_owned(), Entry { value: good.value.clone(), origin });
        true
    }

    fn settings(&self) -> Settings {
        assemble(&self.entries)
    }

    /// Stage three: rules between keys. The keys of a broken rule go to their last good values; if the rule is
    /// still broken, to what the image or the built-in default says.
    fn settle(&mut self) {
        for violation in violations(&self.settings()) {
            let keys: Vec<String> =
                self.entries.keys().filter(|key| violation.covers(key)).cloned().collect();
            let first = keys.iter().filter_map(|key| match self.entries.get(key).map(|e| &e.origin) {
                Some(Origin::File(place) | Origin::LastGood(place)) => Some((place.clone(), key.clone())),
                _ => None,
            });
            let (place, key) =
                first.min().unwrap_or_else(|| (Place::file("defaults"), violation.scope.to_string()));
            for key in &keys {
                if !self.fall_back_to_last_good(key) {
                    self.fall_back_to_image(key);
                }
            }
            let severity = Severity::Error;
            self.tell(Message { severity, place, key, what: violation.what, now: String::new() });
        }
        for violation in violations(&self.settings()) {
            let keys: Vec<String> =
                self.entries.keys().filter(|key| violation.covers(key)).cloned().collect();
            for key in keys {
                self.fall_back_to_image(&key);
            }
        }
        // An image whose own defaults break a rule gets the built-in ones.
        for violation in violations(&self.settings()) {
            self.entries.retain(|key, _| !violation.covers(key));
        }
    }

    fn fall_back_to_image(&mut self, key: &str) {
        match self.image.get(key) {
            Some(entry) => self.entries.insert(key.to_owned(), entry.clone()),
            None => self.entries.remove(key),
        };
    }

    fn finish(mut self) -> Outcome {
        let settings = self.settings();
        let effective = serde_json::to_value(&settings).unwrap_or_default();
        for message in self.messages.iter_mut().filter(|message| message.now.is_empty()) {
            message.now = now(&message.key, self.entries.get(&message.key), &effective);
        }
        if self.dropped_messages > 0 {
            self.messages.push(Message {
                severity: Severity::Warning,
                place: Place::file("configuration"),
                key: String::new(),
                what: format!("{} more messages", self.dropped_messages),
                now: "they are not shown".into(),
            });
        }
        let mut last_good = LastGood::default();
        let mut origins = BTreeMap::new();
        for (key, Entry { value, origin }) in self.entries {
            if let Origin::File(place) | Origin::LastGood(place) = &origin {
                last_good.keys.insert(key.clone(), Good { value, place: place.clone() });
            }
            origins.insert(key, origin);
        }
        Outcome { settings, messages: self.messages, last_good, origins }
    }
}

/// What happens now with a key whose file value is not in force.
fn now(key: &str, entry: Option<&Entry>, effective: &Value) -> String {
    let pointer = format!("/{}", key.replace('.', "/"));
    let value = match effective.pointer(&pointer) {
        _ if is_secret(key) => "what it was".to_owned(),
        None | Some(Value::Null) => "unset".to_owned(),
        Some(Value::Array(items)) if items.len() == 1 => "a list of 1 entry".to_owned(),
        Some(Value::Array(items)) => format!("a list of {} entries", items.len()),
        Some(value) => value.to_string(),
    };
    match entry.map(|entry| &entry.origin) {
        Some(Origin::LastGood(_)) => format!("{key} stays {value} (last good value)"),
        Some(Origin::File(place)) => format!("{key} is {value} (from {place})"),
        Some(Origin::Image) => format!("{key} is {value} (the image's default)"),
        None if is_secret(key) => format!("{key} is unset"),
        None => format!("{key} is {value} (default)"),
    }
}

/// Keys whose values are in no message.
fn is_secret(key: &str) -> bool {
    key.ends_with(".psk")
}

/// What one file gives, by dotted key.
#[derive(Default)]
struct Found {
    good: BTreeMap<String, (Place, Value)>,
    bad: BTreeSet<String>,
    messages: Vec<Message>,
    networks: usize,
}

impl Found {
    /// The key is given, but not valid: its last good value is wanted.
    fn bad(&mut self, key: String, place: &Place, what: String) {
        self.bad.insert(key.clone());
        self.tell(Severity::Error, key, place, what, String::new());
    }

    fn tell(&mut self, severity: Severity, key: String, place: &Place, what: String, now: String) {
        // One more than is shown is enough to say that there are more.
        if self.messages.len() <= MAX_MESSAGES.saturating_mul(2) {
            self.messages.push(Message { severity, place: place.clone(), key, what, now });
        }
    }
}

/// Every key there is, with its default: a settings value that shows its own shape.
fn template() -> Value {
    serde_json::to_value(Settings::default()).unwrap_or_default()
}

/// The shape of one `[network.<name>]` section.
fn network_template() -> Value {
    serde_json::to_value(NetworkSettings::default()).unwrap_or_default()
}

fn flatten_root(root: BTreeMap<String, (Place, Node)>, found: &mut Found) {
    if let Value::Object(template) = template() {
        flatten("", root, &template, found);
    }
}

fn flatten(
    prefix: &str,
    level: BTreeMap<String, (Place, Node)>,
    template: &Map<String, Value>,
    found: &mut Found,
) {
    for (name, (place, node)) in level {
        let key = format!("{prefix}{name}");
        match (template.get(&name), node.value) {
            (None, _) => {
                let what = match closest(&name, template.keys()) {
                    Some(known) => format!("unknown key; did you mean {known:?}?"),
                    None => format!("unknown key; {}", known_keys(template)),
                };
                let key = format!("{prefix}{}", printable(&name));
                found.tell(Severity::Warning, key, &place, what, "it is ignored".into());
            }
            (Some(Value::Object(_)), NodeValue::Table(table)) if key == "network" => {
                flatten_networks(table, found);
            }
            (Some(Value::Object(_)), NodeValue::Table(table)) if key == ATTRIBUTES => {
                flatten_attributes(table, found);
            }
            (Some(Value::Object(shape)), NodeValue::Table(table)) => {
                flatten(&format!("{key}."), table, shape, found);
            }
            (Some(Value::Object(shape)), _) => {
                for name in shape.keys() {
                    found.bad.insert(format!("{key}.{name}"));
                }
                let what = format!("expected a section [{key}]");
                found.tell(
                    Severity::Error,
                    key,
                    &node.place,
                    what,
                    "its keys keep their last good values".into(),
                );
            }
            (Some(shape), value) => leaf(key, node.place, value, shape, found),
        }
    }
}

fn flatten_networks(table: BTreeMap<String, (Place, Node)>, found: &mut Found) {
    let Value::Object(shape) = network_template() else { return };
    for (name, (place, node)) in table {
        let key = format!("network.{}", printable(&name));
        let ignored = "the section is left out".to_owned();
        if name.parse::<NetworkName>().is_err() {
            let what = format!("expected {}", NetworkName::EXPECTED);
            found.tell(Severity::Error, key, &place, what, ignored);
            continue;
        }
        found.networks = found.networks.saturating_add(1);
        if found.networks > MAX_NETWORKS {
            let what = format!("expected at most {MAX_NETWORKS} networks");
            found.tell(Severity::Error, key, &place, what, ignored);
            continue;
        }
        match node.value {
            NodeValue::Table(keys) => flatten(&format!("{key}."), keys, &shape, found),
            _ => {
                found.bad.extend(shape.keys().map(|name| format!("{key}.{name}")));
                let what = format!("expected a section [{key}]");
                let now = "its keys keep their last good values".into();
                found.tell(Severity::Error, key, &node.place, what, now);
            }
        }
    }
}

fn flatten_attributes(table: BTreeMap<String, (Place, Node)>, found: &mut Found) {
    for (count, (name, (place, node))) in table.into_iter().enumerate() {
        let key = format!("{ATTRIBUTES}.{}", printable(&name));
        let what = if name.parse::<AttributeName>().is_err() {
            format!("expected {}", AttributeName::EXPECTED)
        } else if count >= MAX_ATTRIBUTES {
            format!("expected at most {MAX_ATTRIBUTES} attributes")
        } else {
            leaf(key, node.place, node.value, &Value::Null, found);
            continue;
        };
        found.tell(Severity::Error, key, &place, what, "the attribute is left out".into());
    }
}

/// One setting. In a list each element stands for itself: a bad one is left out, the others are used.
fn leaf(key: String, place: Place, value: NodeValue, shape: &Value, found: &mut Found) {
    let items = match (value, shape) {
        (NodeValue::List(items), Value::Array(_)) => items,
        // A list of one is often written without brackets, and there is only one thing that it can mean.
        (value @ NodeValue::Scalar(_), Value::Array(_)) => vec![Node { place: place.clone(), value }],
        (NodeValue::Scalar(value), _) => {
            match check(&key, &value) {
                Ok(value) => {
                    found.good.insert(key, (place, value));
                }
                Err(what) => found.bad(key, &place, what),
            }
            return;
        }
        (value, shape) => {
            let what = format!("expected {}, found {}", shape_text(&key, shape), kind_text(&value));
            found.bad(key, &place, what);
            return;
        }
    };
    let mut good = Vec::new();
    let mut bad = Vec::new();
    if let Some(first) = items.get(MAX_ENTRIES) {
        let what = format!("expected at most {MAX_ENTRIES} entries, found {}", items.len());
        found.tell(Severity::Error, key.clone(), &first.place, what, "the others are left out".into());
    }
    for item in items.into_iter().take(MAX_ENTRIES) {
        match item.value {
            NodeValue::Scalar(value) => match check(&key, &Value::Array(vec![value])) {
                Ok(Value::Array(value)) => good.extend(value),
                Ok(_) => {}
                Err(what) => bad.push((item.place, what)),
            },
            value => bad.push((item.place, format!("expected a text, found {}", kind_text(&value)))),
        }
    }
    // Not one good entry: as for any other bad value, the last good one is wanted.
    let lost = good.is_empty() && !bad.is_empty();
    for (place, what) in bad {
        let now = if lost { "" } else { "this entry is left out" };
        found.tell(Severity::Error, key.clone(), &place, what, now.into());
    }
    if lost {
        found.bad.insert(key);
    } else {
        found.good.insert(key, (place, Value::Array(good)));
    }
}

/// Checks one value by deserializing the settings with this key alone. Returns it as the settings write it.
fn check(key: &str, value: &Value) -> Result<Value, String> {
    let settings: Settings =
        serde_json::from_value(nest(key, value.clone())).map_err(|error| explain(key, &error.to_string()))?;
    let written = serde_json::to_value(&settings).unwrap_or_default();
    let pointer = format!("/{}", key.replace('.', "/"));
    range(key, &settings)?;
    written.pointer(&pointer).cloned().ok_or_else(|| "expected a setting".to_owned())
}

fn is_valid(key: &str, value: &Value) -> bool {
    // A key that this release no longer knows deserializes (unknown keys do), but has no place in the result; a
    // section is no key.
    check(key, value).is_ok_and(|value| !value.is_object())
}

/// Serde's text, without the value of a secret.
fn explain(key: &str, error: &str) -> String {
    if is_secret(key) {
        return format!("expected {}", crate::scalar::Passphrase::EXPECTED);
    }
    error.to_owned()
}

/// `a.b.c` and a value → `{"a":{"b":{"c":value}}}`.
fn nest(key: &str, value: Value) -> Value {
    key.rsplit('.').fold(value, |inner, name| Value::Object(Map::from_iter([(name.to_owned(), inner)])))
}

fn assemble(entries: &BTreeMap<String, Entry>) -> Settings {
    let mut root = Value::Object(Map::new());
    for (key, entry) in entries {
        let mut level = &mut root;
        for name in key.split('.') {
            if !level.is_object() {
                *level = Value::Object(Map::new());
            }
            let Value::Object(map) = level else { break };
            level = map.entry(name.to_owned()).or_insert(Value::Null);
        }
        *level = entry.value.clone();
    }
    // Every value passed `check`, and keys do not depend on each other: this cannot fail.
    serde_json::from_value(root).unwrap_or_default()
}

/// Limits of single keys that their types do not hold: a device must not be configured into a reset loop.
fn range(key: &str, settings: &Settings) -> Result<(), String> {
    let secs = |value: crate::scalar::Duration, low: u64, high: u64| {
        if (low..=high).contains(&value.as_secs()) {
            return Ok(());
        }
        let (low, high) = (crate::scalar::Duration::secs(low), crate::scalar::Duration::secs(high));
        Err(format!("expected a duration from {low} to {high}"))
    };
    let (watchdog, health) = (&settings.watchdog, &settings.health);
    match key {
        "watchdog.timeout" => secs(watchdog.timeout, 10, 600),
        "watchdog.interval" => secs(watchdog.interval, 1, 300),
        "watchdog.pid1_timeout" => secs(watchdog.pid1_timeout, 10, 3600),
        "watchdog.disk_timeout" => secs(watchdog.disk_timeout, 10, 3600),
        "watchdog.restart_window" => secs(watchdog.restart_window, 10, 86_400),
        "watchdog.reboot_window" => secs(watchdog.reboot_window, 600, 30 * 86_400),
        "watchdog.trial_margin" => secs(watchdog.trial_margin, 10, 3600),
        "watchdog.restarts" if !(1..=100).contains(&watchdog.restarts) => {
            Err("expected a number from 1 to 100".into())
        }
        "watchdog.reboots" if !(1..=100).contains(&watchdog.reboots) => {
            Err("expected a number from 1 to 100".into())
        }
        "health.settle" => secs(health.settle, 0, 3600),
        "health.soak" => secs(health.soak, 0, 86_400),
        "health.deadline" => secs(health.deadline, 10, 86_400),
        "health.interval" => secs(health.interval, 1, 600),
        "health.check_timeout" => secs(health.check_timeout, 1, 600),
        "health.script_timeout" => secs(health.script_timeout, 1, 3600),
        "health.memory_pressure" if health.memory_pressure > 100 => {
            Err("expected a percentage from 0 to 100".into())
        }
        "update.check_every" => secs(settings.update.check_every, 60, 30 * 86_400),
        "update.max_deferral" => secs(settings.update.max_deferral, 0, 30 * 86_400),
        "update.rate_limit" if settings.update.rate_limit.is_some_and(|rate| rate.bytes() < 1 << 10) => {
            Err("expected a size of at least 1K (bytes a second)".into())
        }
        "update.hawkbit.url"
            if settings.update.hawkbit.url.as_ref().is_some_and(|url| url.as_str().contains('@')) =>
        {
            Err("expected an address without credentials: a token has a file of its own".into())
        }
        "update.hawkbit.poll" => {
            settings.update.hawkbit.poll.map_or(Ok(()), |poll| secs(poll, 10, 7 * 86_400))
        }
        "update.hawkbit.progress_per_minute"
            if !(1..=60).contains(&settings.update.hawkbit.progress_per_minute) =>
        {
            Err("expected a number from 1 to 60".into())
        }
        "update.report_url"
            if settings
                .update
                .report_url
                .as_ref()
                .is_some_and(|url| !url.as_str().starts_with("https://")) =>
        {
            Err("expected an https:// address".into())
        }
        "engine.log_size" if settings.engine.log_size.bytes() < 64 << 10 => {
            Err("expected a size of at least 64K".into())
        }
        "engine.log_files" if !(1..=100).contains(&settings.engine.log_files) => {
            Err("expected a number from 1 to 100".into())
        }
        "engine.image_share" if settings.engine.image_share > 95 => {
            Err("expected a percentage from 1 to 95, or 0 to let none go".into())
        }
        "log.rate" if !(10..=1_000_000).contains(&settings.log.rate) => {
            Err("expected a number from 10 to 1000000".into())
        }
        "log.max_size" if settings.log.max_size.bytes() < 8 << 20 => {
            Err("expected a size of at least 8M".into())
        }
        "log.max_memory" if settings.log.max_memory.bytes() < 1 << 20 => {
            Err("expected a size of at least 1M".into())
        }
        "log.max_age" => secs(settings.log.max_age, 3600, 366 * 86_400),
        _ => Ok(()),
    }
}

/// A rule between keys that does not hold.
struct Violation {
    /// The section (with a trailing dot) or the keys that take part.
    scope: Scope,
    what: String,
}

enum Scope {
    Keys(&'static [&'static str]),
    Section(String),
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Keys(keys) => f.write_str(keys.first().unwrap_or(&"")),
            Self::Section(section) => f.write_str(section),
        }
    }
}

impl Violation {
    fn covers(&self, key: &str) -> bool {
        match &self.scope {
            Scope::Keys(keys) => keys.contains(&key),
            Scope::Section(section) => key.starts_with(section.as_str()),
        }
    }
}

fn violations(settings: &Settings) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut rule = |broken: bool, scope: Scope, what: &str| {
        if broken {
            found.push(Violation { scope, what: what.to_owned() });
        }
    };
    let (watchdog, health) = (&settings.watchdog, &settings.health);
    rule(
        watchdog.interval.get().saturating_mul(2) >= watchdog.timeout.get(),
        Scope::Keys(&["watchdog.interval", "watchdog.timeout"]),
        "expected watchdog.interval to be less than half of watchdog.timeout",
    );
    rule(
        health.settle.get() >= health.deadline.get(),
        Scope::Keys(&["health.settle", "health.deadline"]),
        "expected health.settle to be shorter than health.deadline",
    );
    let update = &settings.update;
    rule(
        !update.mirrors.is_empty() && update.source.is_none(),
        Scope::Keys(&["update.mirrors", "update.source"]),
        "expected update.source, as there are mirrors of it",
    );
    let hawkbit = &update.hawkbit;
    rule(
        update.source.is_some() && hawkbit.url.is_some(),
        Scope::Keys(&["update.hawkbit.url", "update.source"]),
        "expected update.source or update.hawkbit.url, not both: one of them decides about releases",
    );
    let section = || Scope::Section("update.hawkbit.".to_owned());
    let plain = hawkbit.url.as_ref().is_some_and(|url| !url.as_str().starts_with("https://"));
    rule(
        plain && !hawkbit.allow_http,
        section(),
        "expected an https:// address, or allow_http = true for a laboratory",
    );
    rule(
        hawkbit.certificate.is_some() != hawkbit.key.is_some(),
        section(),
        "expected certificate and key, as one of them is given",
    );
    let ways = [&hawkbit.target_token_file, &hawkbit.gateway_token_file, &hawkbit.certificate];
    rule(
        hawkbit.url.is_some() && ways.iter().filter(|way| way.is_some()).count() != 1,
        section(),
        "expected one of target_token_file, gateway_token_file and certificate, by which hawkBit knows the device",
    );
    let engine = &settings.engine;
    rule(
        engine.mirrors.iter().any(|mirror| {
            mirror.parts().1.starts_with("http://")
                && !engine.insecure_registries.iter().any(|registry| registry.as_str() == mirror.host())
        }),
        Scope::Keys(&["engine.mirrors", "engine.insecure_registries"]),
        "expected https:// for mirrors, or the mirror's host (with its port) in engine.insecure_registries",
    );
    for (name, network) in &settings.network {
        let section = || Scope::Section(format!("network.{name}."));
        let wifi = network.kind == NetworkKind::Wifi;
        rule(wifi && network.ssid.is_none(), section(), "expected an ssid, as the type is \"wifi\"");
        rule(
            !wifi && (network.ssid.is_some() || network.psk.is_some()),
            section(),
            "expected type = \"wifi\", as there is an ssid or a psk",
        );
        rule(!network.dhcp && network.addresses.is_empty(), section(), "expected addresses, as dhcp is off");
        for v6 in [false, true] {
            let gateways = network.gateway.iter().filter(|ip| ip.as_str().contains(':') == v6).count();
            rule(gateways > 1, section(), "expected at most one gateway for IPv4 and one for IPv6");
        }
    }
    found
}

fn shape_text(key: &str, shape: &Value) -> &'static str {
    match shape {
        Value::Array(_) => "a list such as [\"…\"]",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        _ if is_secret(key) => crate::scalar::Passphrase::EXPECTED,
        _ => "a text in quotes",
    }
}

fn kind_text(value: &NodeValue) -> &'static str {
    match value {
        NodeValue::Scalar(Value::String(_)) => "a text",
        NodeValue::Scalar(Value::Bool(_)) => "true or false",
        NodeValue::Scalar(_) => "a number",
        NodeValue::Unfit(kind) => kind,
        NodeValue::List(_) => "a list",
        NodeValue::Table(_) => "a section",
    }
}

/// The known name that is nearest to a mistyped one, if one is near.
fn closest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let short: String = name.chars().take(64).collect();
    let near = known.map(|known| (strsim::damerau_levenshtein(&short, known), known)).min()?;
    (near.0 <= 1.max(near.1.len() / 3)).then_some(near.1)
}

fn known_keys(template: &Map<String, Value>) -> String {
    let names: Vec<&str> = template.keys().map(String::as_str).collect();
    format!("expected one of {}", names.join(", "))
}

/// A name from a file, safe and short enough for a terminal.
fn printable(name: &str) -> String {
    let mut short: String =
        name.chars().take(64).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if name.chars().nth(64).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests;
