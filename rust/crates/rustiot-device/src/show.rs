//! Turns what the services know into text for people. Pure: no files, no bus, no clock.

use std::fmt::Write;
use std::time::Duration;

use rustiot_config::Severity;
use rustiot_health::{Status as Health, check::Verdict};
use rustiot_slots::{Phase, SlotState, Status as Slots};
use rustiot_update::{
    Check, Difference, Hawkbit, HistoryEntry, Outcome, Plan, PolicyNow, Progress, Status as Update,
    Transaction, Transfer, Why,
};
use serde::Serialize;
use serde_json::Value;

/// Everything for `rustiot status`; as JSON it is the contract of `docs/contracts/device-cli.md`.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// The host name in force.
    pub hostname: Option<String>,
    /// Version of the running release.
    pub version: Option<String>,
    /// The board.
    pub compatible: Option<String>,
    /// Seconds since the kernel started.
    pub uptime_s: Option<u64>,
    /// Slots and boot policy, as `rustiot slots --json` without the past.
    pub slots: Value,
    /// As `rustiot health --json`; null when health has said nothing yet.
    pub health: Option<Value>,
    /// Phase, message, the last refusal and the last end of an update; null when the service has said nothing yet.
    pub update: Option<Value>,
    /// Why the machine was reset before this boot.
    pub reset: Option<Value>,
    /// What provisioning has to say; null when it has not run.
    pub config: Option<Value>,
}

/// `1 d 2 h`, `3 min`, `40 s`: the two largest units.
pub fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units {
        let count = rest.checked_div(size).unwrap_or(0);
        rest = rest.checked_rem(size).unwrap_or(0);
        if count > 0 {
            parts.push(format!("{count} {unit}"));
        }
    }
    parts.truncate(2);
    if parts.is_empty() { "0 s".into() } else { parts.join(" ") }
}

/// Unix time in UTC, as `2026-11-23 20:15:00Z`.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "days of a u64 of seconds fit an i64 with room for all steps"
)]
pub fn time(unix: u64) -> String {
    // Civil date from days since 1970-01-01, proleptic Gregorian, eras of 400 years beginning on 1 March.
    let days = i64::try_from(unix / 86_400).unwrap_or(0) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let clock = unix % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", clock / 3_600, clock % 3_600 / 60, clock % 60)
}

/// `12.3 MB` and the like, decimal.
pub fn bytes(count: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    for (size, unit) in units {
        if count >= size {
            let tenths = u128::from(count).saturating_mul(10).checked_div(u128::from(size)).unwrap_or(0);
            let (whole, tenth) = (tenths.checked_div(10).unwrap_or(0), tenths.checked_rem(10).unwrap_or(0));
            return format!("{whole}.{tenth} {unit}");
        }
    }
    format!("{count} B")
}

fn short(hash: &str) -> &str {
    hash.get(..8).unwrap_or(hash)
}

fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

/// One screen.
pub fn overview(
    o: &Overview,
    slots: &Slots,
    health: Option<&Health>,
    update: Option<&Update>,
    config: Option<&rustiot_provision::Status>,
) -> String {
    let unknown = || "unknown".to_owned();
    let mut rows = vec![(
        "release",
        format!(
            "{} for {}",
            o.version.clone().unwrap_or_else(unknown),
            o.compatible.clone().unwrap_or_else(unknown)
        ),
    )];
    let mut slot = slots.running.map_or_else(unknown, |slot| slot.to_string());
    if let Some(kind) = &slots.kind {
        write(&mut slot, format_args!(", {} boot", word(kind)));
    }
    write(&mut slot, format_args!("{}", if slots.stable { ", stable" } else { ", not yet proved stable" }));
    rows.push(("slot", slot));
    if let Some(reason) = &slots.rescue {
        rows.push(("RESCUE", reason.clone()));
    }
    rows.push(("health", health.map_or_else(|| "not heard of yet".into(), health_line)));
    rows.push(("update", update.map_or_else(|| "the service has said nothing yet".into(), update_line)));
    if let Some(entry) = update.and_then(|u| u.history.last()) {
        rows.push(("last update", format!("{}, {}", ended(entry), time(entry.ended_at))));
    }
    let boot = slots.boots.last();
    rows.push((
        "last reset",
        boot.map_or_else(unknown, |b| format!("{} (boot {})", word(&b.reset), b.number)),
    ));
    rows.push(("configuration", config.map_or_else(|| "not read yet".into(), config_line)));
    rows.push(("up", o.uptime_s.map_or_else(unknown, duration)));
    let mut out = format!("{}\n", o.hostname.clone().unwrap_or_else(|| "this device".into()));
    for (name, value) in rows {
        write(&mut out, format_args!("  {name:<14} {value}\n"));
    }
    for message in config.iter().flat_map(|status| &status.messages) {
        write(&mut out, format_args!("  ! {message}\n"));
    }
    for complaint in &slots.complaints {
        write(&mut out, format_args!("  ! {complaint}\n"));
    }
    out
}

fn write(out: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = out.write_fmt(what);
}

fn update_line(update: &Update) -> String {
    match (update.phase.as_str(), update.message.as_str()) {
        ("idle", _) => "nothing under way".into(),
        (phase, "") => phase.into(),
        (phase, message) => format!("{phase}: {message}"),
    }
}

fn config_line(status: &rustiot_provision::Status) -> String {
    let count = |severity| status.messages.iter().filter(|m| m.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let bad = status.steps.iter().filter(|s| {
        matches!(s.outcome, rustiot_provision::Outcome::Failed | rustiot_provision::Outcome::Degraded)
    });
    let mut parts = Vec::new();
    if errors > 0 {
        parts.push(format!("{errors} errors"));
    }
    if warnings > 0 {
        parts.push(format!("{warnings} warnings"));
    }
    parts.extend(bad.map(|step| format!("{}: {}", step.name, step.detail)));
    if parts.is_empty() { "in force, nothing to complain of".into() } else { parts.join(", ") }
}

fn health_line(health: &Health) -> String {
    let state = serde_json::to_value(health.gate).ok();
    let state = state.as_ref().and_then(|gate| gate.get("state")?.as_str()).unwrap_or("unknown");
    let passing = health.checks.iter().filter(|check| check.verdict.passed()).count();
    let mut line = format!("{state}, {passing} of {} checks pass", health.checks.len());
    if let Some(seconds) = health.soak_left_s.filter(|_| health.open && !health.stable) {
        write(&mut line, format_args!(", stable in {}", duration(seconds)));
    }
    for reason in [&health.obstacle, &health.failure].into_iter().flatten() {
        write(&mut line, format_args!("; {reason}"));
    }
    line
}

/// `rustiot health`.
pub fn health(health: &Health) -> String {
    let mut out = format!("{}\n", health_line(health));
    for check in &health.checks {
        let (verdict, detail) = match &check.verdict {
            Verdict::Pass => ("pass", ""),
            Verdict::Warn(detail) => ("warn", detail.as_str()),
            Verdict::Pending(detail) => ("pending", detail.as_str()),
            Verdict::Fail(detail) => ("FAIL", detail.as_str()),
        };
        let line = format!("  {:<20} {verdict:<8} {:<18} {detail}", check.name, word(&check.need));
        write(&mut out, format_args!("{}\n", line.trim_end()));
    }
    out
}

/// `rustiot slots`.
pub fn slots(status: &Slots) -> String {
    let mut out = String::new();
    for slot in &status.slots {
        let mut marks = Vec::new();
        if slot.running {
            marks.push("running");
        }
        if slot.committed {
            marks.push("committed");
        }
        let state = match &slot.state {
            // No update wrote it: what runs was flashed, and the other one is empty most often.
            SlotState::Unknown if slot.running => "as flashed".to_owned(),
            SlotState::Unknown => "nothing installed, as far as is remembered".to_owned(),
            SlotState::Valid { release } => {
                format!("{} ({})", release.version, short(&release.manifest_hash))
            }
            SlotState::Invalid => "invalid: a write was not finished".to_owned(),
            SlotState::Bad { reason } => format!("bad: {reason}"),
        };
        write(&mut out, format_args!("  {} {:<20} {state}\n", slot.slot, marks.join(", ")));
    }
    if let Some(phase) = &status.phase {
        write(&mut out, format_args!("  phase      {}\n", phase_line(phase)));
    }
    if let Some(loader) = &status.loader {
        let name =
            |slot: Option<rustiot_slots::Slot>| slot.map_or_else(|| "nothing".to_owned(), |s| s.to_string());
        write(
            &mut out,
            format_args!("  loader     boots {}, once: {}\n", name(loader.default), name(loader.next)),
        );
    }
    if let Some(floor) = &status.floor {
        write(&mut out, format_args!("  floor      {floor}: nothing older is installed\n"));
    }
    if let Some(reason) = &status.rescue {
        write(&mut out, format_args!("  RESCUE     {reason}\n"));
    }
    for bad in &status.rejected {
        write(
            &mut out,
            format_args!(
                "  known bad  {} ({}): {}\n",
                bad.release.version,
                short(&bad.release.manifest_hash),
                bad.reason
            ),
        );
    }
    for complaint in &status.complaints {
        write(&mut out, format_args!("  ! {complaint}\n"));
    }
    out
}

fn phase_line(phase: &Phase) -> String {
    match (phase, phase.transaction()) {
        (Phase::LateFallback { from, reason, .. }, _) => format!("late fallback from {from}: {reason}"),
        (_, Some(tx)) => format!(
            "{}: {} in slot {}, {} trials so far",
            phase.name(),
            tx.release.version,
            tx.slot,
            tx.attempts
        ),
        (_, None) => phase.name().to_owned(),
    }
}

/// `rustiot boots`, newest first.
pub fn boots(status: &Slots) -> String {
    let mut out = format!("  {:>6}  slot  {:<14} {:<9} {:<10} ended\n", "boot", "kind", "reset by", "proved");
    for (age, boot) in status.boots.iter().rev().enumerate() {
        let proved = match (boot.stable, boot.healthy) {
            (true, _) => "stable",
            (false, true) => "healthy",
            (false, false) => "-",
        };
        let ended = match (age, boot.clean) {
            (0, _) => "runs",
            (_, true) => "in order",
            (_, false) => "cut off",
        };
        write(
            &mut out,
            format_args!(
                "  {:>6}  {:<4}  {:<14} {:<9} {proved:<10} {ended}\n",
                boot.number,
                boot.slot.letter(),
                word(&boot.kind),
                word(&boot.reset),
            ),
        );
        for line in &boot.pstore_tail {
            write(&mut out, format_args!("          | {line}\n"));
        }
    }
    out
}

fn ended(entry: &HistoryEntry) -> String {
    let what = entry.release.as_ref().map_or(entry.source.as_str(), |r| r.version.as_str());
    let why = entry.why.as_ref().map(|f| f.message.as_str()).unwrap_or_default();
    match entry.result {
        Outcome::Committed => format!("{what} committed"),
        Outcome::Cancelled => format!("{what} cancelled"),
        Outcome::FellBack => format!("fell back: {why}"),
        Outcome::Failed => format!("failed: {why}"),
        Outcome::Refused => format!("refused: {why}"),
        Outcome::LateFallback => why.to_owned(),
    }
}

/// `rustiot update status`.
pub fn update(status: &Update) -> String {
    let mut out = format!("  phase        {}\n", status.phase.as_str());
    if !status.message.is_empty() {
        write(&mut out, format_args!("  now          {}\n", status.message));
    }
    if let Some(tx) = &status.transaction {
        write(&mut out, format_args!("  transaction  {}\n", tx.request.id));
        write(&mut out, format_args!("  from         {}\n", tx.request.source));
        if let (Some(release), Some(slot)) = (&tx.release, tx.slot) {
            write(&mut out, format_args!("  release      {} → slot {slot}\n", release.version));
        }
    }
    if let Some(way) = status.transaction.as_ref().and_then(Transaction::current_way) {
        let spent = status.transaction.as_ref().map(|tx| tx.spent).unwrap_or_default();
        write(
            &mut out,
            format_args!("  way          {}, {} fetched\n", way.kind.as_str(), bytes(spent.fetched)),
        );
    }
    if status.progress.transfer.total > 0 {
        write(&mut out, format_args!("  transfer     {}\n", transfer(&status.progress.transfer)));
    }
    if status.progress.total > 0 {
        write(&mut out, format_args!("  written      {}\n", progress(&status.progress)));
    }
    if let Some(entry) = status.history.last() {
        write(&mut out, format_args!("  last         {}, {}\n", ended(entry), time(entry.ended_at)));
    }
    if let Some(now) = &status.hawkbit {
        hawkbit(&mut out, now);
    }
    out
}

fn hawkbit(out: &mut String, now: &Hawkbit) {
    write(out, format_args!("  hawkBit      {} as {}\n", now.server, now.controller));
    match (&now.problem, now.answered) {
        (Some(problem), _) => write(out, format_args!("  …            {problem}\n")),
        (None, Some(at)) => write(out, format_args!("  …            answered {}\n", time(at))),
        (None, None) => write(out, format_args!("  …            not asked yet\n")),
    }
    if let Some(action) = &now.action {
        write(out, format_args!("  …            action {action}\n"));
    }
    if let Some(action) = &now.asks {
        write(
            out,
            format_args!(
                "  …            action {action} waits for consent: `rustiot update consent [--refuse]`\n"
            ),
        );
    }
}

fn progress(p: &Progress) -> String {
    format!("{} of {} ({} %)", bytes(p.bytes.min(p.total)), bytes(p.total), p.percent)
}

/// Bytes that come over the network.
pub fn transfer(t: &Transfer) -> String {
    let mut line = bytes(t.fetched);
    if t.total > 0 {
        write(&mut line, format_args!(" of {}", bytes(t.total)));
    }
    if t.reused > 0 {
        write(&mut line, format_args!(", {} were here", bytes(t.reused)));
    }
    if t.rate > 0 {
        write(&mut line, format_args!(", {}/s", bytes(t.rate)));
    }
    if t.eta > 0 {
        write(&mut line, format_args!(", {} left", duration(t.eta)));
    }
    line
}

/// `rustiot update check`.
pub fn check(check: &Check) -> String {
    let mut out = format!("{}\n", check.message);
    write(
        &mut out,
        format_args!("  looked       {}, {} in {}\n", time(check.at), bytes(check.bytes), check.source),
    );
    if check.failures > 1 {
        write(&mut out, format_args!("  failed       {} times in a row\n", check.failures));
    }
    out
}

/// Bytes a second that an estimate of time is made with: a slow 3G link, and flash of a small board.
const LINK: u64 = 125_000;
const FLASH: u64 = 10_000_000;

/// `rustiot update plan`.
pub fn plan(plan: &Plan, tx: Option<&Transaction>) -> String {
    let version = plan.version().unwrap_or("a bundle of which nothing is known yet");
    let from = plan.from.as_ref().map(|from| format!(" (from {from})")).unwrap_or_default();
    let mut out = format!("{version}{from}\n");
    let present = tx.map_or(0, |tx| tx.way);
    for (number, way) in plan.ways.iter().enumerate() {
        let mark = match number {
            n if n < present => "failed",
            n if n == present => "first",
            _ => "else",
        };
        let cost = match (way.bytes, way.exact) {
            (0, _) => "an unknown number of bytes".to_owned(),
            (n, true) => bytes(n),
            (n, false) => format!("about {}", bytes(n)),
        };
        write(&mut out, format_args!("  {mark:<12} {}: {cost}\n", way.kind.as_str()));
    }
    for way in &plan.without_room {
        let need = way.len.unwrap_or(way.bytes);
        write(
            &mut out,
            format_args!("  {:<12} {}: no room for its {}\n", "left out", way.kind.as_str(), bytes(need)),
        );
    }
    if let Some(way) = plan.ways.get(present).filter(|way| way.bytes > 0) {
        let seconds = way.bytes.div_ceil(LINK).saturating_add(plan.written.div_ceil(FLASH));
        write(&mut out, format_args!("  time         about {} at 1 Mbit/s\n", duration(seconds)));
        if let Some(len) = way.len {
            write(
                &mut out,
                format_args!("  room         {} on the data partition, if it is stored\n", bytes(len)),
            );
        }
    }
    if plan.written > 0 {
        write(&mut out, format_args!("  written      {} to the other slot\n", bytes(plan.written)));
    }
    if let Some(floor) = &plan.floor {
        write(&mut out, format_args!("  floor        nothing older than {floor} afterwards\n"));
    }
    if let Some(wave) = &plan.wave {
        write(&mut out, format_args!("  wave         {wave}\n"));
    }
    if let Some(details) = &plan.details {
        write(
            &mut out,
            format_args!("  packages     `--details` fetches the list: {}\n", bytes(details.len)),
        );
    }
    for line in plan.notes.lines().take(40) {
        write(&mut out, format_args!("  | {}\n", printable(line)));
    }
    out
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// What `rustiot update plan --details` adds.
pub fn contents(packages: usize, from: Option<&str>, difference: Option<&Difference>) -> String {
    let from = from.unwrap_or("what runs");
    let Some(difference) = difference else {
        return format!("  contents     {packages} packages; no difference to {from} was published\n");
    };
    let (changed, added, removed) = (&difference.changed, &difference.added, &difference.removed);
    let mut out = format!(
        "  contents     {packages} packages; since {from}: {} changed, {} came, {} went\n",
        changed.len(),
        added.len(),
        removed.len()
    );
    for change in changed {
        let [name, from, to] = [&change.name, &change.from, &change.to].map(|text| printable(text));
        write(&mut out, format_args!("    {name} {from} → {to}\n"));
    }
    for (sign, list) in [('+', added), ('-', removed)] {
        for package in list {
            write(
                &mut out,
                format_args!("  {sign} {} {}\n", printable(&package.name), printable(&package.version)),
            );
        }
    }
    if difference.more > 0 {
        write(&mut out, format_args!("    and {} more\n", difference.more));
    }
    out
}

/// `rustiot update policy`.
pub fn policy(p: &PolicyNow) -> String {
    let mut out = format!("  policy       {}\n", p.policy);
    write(&mut out, format_args!("  repository   {}\n", p.source.as_deref().unwrap_or("none")));
    if let Some(at) = p.next_check {
        write(&mut out, format_args!("  next look    {}\n", time(at)));
    }
    if !p.windows.is_empty() {
        let change = p.window_changes.map(time).unwrap_or_else(|| "never".into());
        let now = if p.window_open { "open until" } else { "closed until" };
        write(&mut out, format_args!("  windows      {}: {now} {change}\n", p.windows.join("; ")));
    }
    if p.metered {
        write(&mut out, format_args!("  metered      large downloads wait for a person\n"));
    }
    if p.on_battery {
        write(&mut out, format_args!("  power        on its battery\n"));
    }
    if let Some(rate) = p.rate_limit {
        write(&mut out, format_args!("  rate         at most {}/s\n", bytes(rate)));
    }
    for veto in &p.vetoes {
        write(&mut out, format_args!("  puts off     {}: {}\n", veto.who, veto.why));
    }
    if p.reports_waiting > 0 {
        write(&mut out, format_args!("  reports      {} wait to be posted\n", p.reports_waiting));
    }
    for complaint in &p.complaints {
        write(&mut out, format_args!("  ! {complaint}\n"));
    }
    out
}

/// `rustiot update why`.
pub fn why(why: &Why) -> String {
    let failure = &why.failure;
    let mut out = format!("{}\n", failure.message);
    write(&mut out, format_args!("  when         {}\n", time(why.at)));
    if !why.source.is_empty() {
        write(&mut out, format_args!("  from         {}\n", why.source));
    }
    if let Some(version) = &why.version {
        write(&mut out, format_args!("  release      {version}\n"));
    }
    for cause in &failure.chain {
        write(&mut out, format_args!("  because      {cause}\n"));
    }
    if let Some(hint) = &failure.hint {
        write(&mut out, format_args!("  what to do   {hint}\n"));
    }
    out
}

/// `rustiot update history`, newest first.
pub fn history(entries: &[HistoryEntry]) -> String {
    let mut out = String::new();
    for entry in entries.iter().rev() {
        write(&mut out, format_args!("{}  {}\n", time(entry.ended_at), ended(entry)));
        if let Some(seconds) = entry.install_seconds {
            write(
                &mut out,
                format_args!("    written in {}, {} starts\n", duration(seconds), entry.install_tries),
            );
        }
        if entry.spent.fetched > 0 {
            let way = entry.way.as_deref().unwrap_or("bundle");
            write(
                &mut out,
                format_args!(
                    "    by the {way}: {} fetched, {} were here\n",
                    bytes(entry.spent.fetched),
                    bytes(entry.spent.reused)
                ),
            );
        }
        for failed in &entry.failed_ways {
            write(&mut out, format_args!("    the {} did not work: {}\n", failed.way, failed.failure));
        }
        if let Some(hint) = entry.why.as_ref().and_then(|f| f.hint.as_ref()) {
            write(&mut out, format_args!("    {hint}\n"));
        }
        for line in &entry.log {
            write(&mut out, format_args!("    | {line}\n"));
        }
    }
    if out.is_empty() { "no updates yet\n".into() } else { out }
}

/// Bytes, rate and time left while RAUC writes.
#[derive(Debug, Default)]
pub struct Meter {
    /// First sample with bytes: when, and how many.
    first: Option<(Duration, u64)>,
}

impl Meter {
    /// One line for `progress` at `now` (any clock that only goes forward).
    pub fn line(&mut self, now: Duration, p: &Progress) -> String {
        let mut line = progress(p);
        if p.bytes == 0 {
            self.first = None;
            return line;
        }
        let (since, before) = *self.first.get_or_insert((now, p.bytes));
        let millis = now.saturating_sub(since).as_millis();
        let written = u128::from(p.bytes.saturating_sub(before));
        let Some(rate) = written.saturating_mul(1000).checked_div(millis).filter(|rate| *rate > 0) else {
            return line;
        };
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let left = p.total.saturating_sub(p.bytes).checked_div(rate).unwrap_or(0);
        write(&mut line, format_args!(", {}/s, {} left", bytes(rate), duration(left)));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustiot_update::{Expected, Way, WayKind};

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_661, "1 h 1 min"), (90_061, "1 d 1 h")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn hawkbit_is_shown_with_what_it_wants_and_what_keeps_it() {
        let mut now =
            Hawkbit { server: "https://h".into(), controller: "kitchen-1".into(), ..Hawkbit::default() };
        let shown = |now: &Hawkbit| update(&Update { hawkbit: Some(now.clone()), ..Update::default() });
        assert!(!update(&Update::default()).contains("hawkBit"));
        assert!(shown(&now).contains("hawkBit      https://h as kitchen-1\n  …            not asked yet\n"));
        (now.answered, now.action, now.asks) = (Some(0), Some("7".into()), Some("8".into()));
        let text = shown(&now);
        assert!(text.contains("answered 1970-01-01") && text.contains("action 7\n"), "{text}");
        assert!(text.contains("action 8 waits for consent"), "{text}");
        now.problem = Some("no answer".into());
        assert!(shown(&now).contains("…            no answer\n"));
    }

    #[test]
    fn a_plan_names_what_has_no_room() {
        let mut planned = Plan::plain("https://h/x", &Expected { size: Some(50_000_000), sha256: None });
        assert!(!plan(&planned, None).contains("left out"));
        planned.without_room =
            vec![Way { kind: WayKind::Delta, len: Some(700_000), ..planned.ways[0].clone() }];
        let text = plan(&planned, None);
        assert!(text.contains("  left out     delta: no room for its 700.0 kB\n"), "{text}");
    }

    #[test]
    fn a_slot_that_no_update_wrote_is_no_factory_image_unless_it_runs() {
        let paths = rustiot_slots::Paths::below(std::path::Path::new("/nonexistent"));
        let mut status = rustiot_slots::status(&paths, None);
        status.slots[0].running = true;
        let text = slots(&status);
        let lines: Vec<&str> = text.lines().take(2).map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "a running              as flashed",
                "b                      nothing installed, as far as is remembered"
            ]
        );
    }

    #[test]
    fn times_are_those_of_date() {
        for (unix, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_709_251_199, "2024-02-29 23:59:59Z"),
            (1_795_464_900, "2026-11-23 20:15:00Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(time(unix), text);
        }
        let _ = time(u64::MAX);
    }

    #[test]
    fn bytes_are_decimal() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (12_345_678, "12.3 MB"),
            (u64::MAX, "18446744073.7 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn the_rate_counts_from_the_first_byte() {
        let mut meter = Meter::default();
        let at = |bytes, percent| Progress { percent, bytes, total: 100_000_000, ..Progress::default() };
        let s = Duration::from_secs;
        assert_eq!(meter.line(s(0), &at(0, 20)), "0 B of 100.0 MB (20 %)");
        assert_eq!(meter.line(s(60), &at(10_000_000, 30)), "10.0 MB of 100.0 MB (30 %)");
        assert_eq!(
            meter.line(s(70), &at(20_000_000, 40)),
            "20.0 MB of 100.0 MB (40 %), 1.0 MB/s, 1 min 20 s left"
        );
        // The write starts over.
        assert_eq!(meter.line(s(71), &at(0, 0)), "0 B of 100.0 MB (0 %)");
        assert_eq!(meter.line(s(72), &at(5, 0)), "5 B of 100.0 MB (0 %)");
    }
}
