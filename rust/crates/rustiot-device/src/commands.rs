//! Runs one command: gathers, asks the services, prints once. Decides nothing about the device.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::Instant;

use rustiot_update::{Failure, Kind, Outcome, Plan, Transaction};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::{Cli, Command, Daemon, Install, Provision, Update};
use crate::client::{Client, Look};
use crate::files::Files;
use crate::show::{self, Meter, Overview};

/// What a command answers.
pub struct Answer {
    pub text: String,
    pub json: Value,
    pub code: u8,
}

impl Answer {
    /// An answer of a command that did what it was asked.
    pub fn new(text: impl Into<String>, json: impl Serialize) -> Self {
        // What is shown has only string keys, the one thing that could go wrong here.
        Self { text: text.into(), json: serde_json::to_value(json).unwrap_or_default(), code: 0 }
    }
}

/// Runs one part of the system until it ends.
pub fn daemon(daemon: Daemon, arguments: Vec<String>) -> ExitCode {
    let code = match daemon {
        Daemon::Provision => rustiot_provision::main(arguments),
        Daemon::Watchdog => rustiot_watchdog::main(),
        Daemon::Health => rustiot_health::main(&arguments),
        Daemon::Update => match rustiot_update::main() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("rustiot-update: {error:#}");
                1
            }
        },
        Daemon::Media => rustiot_media::main(&arguments),
        #[cfg(feature = "engine")]
        Daemon::Engine => rustiot_engine::main(&arguments),
        #[cfg(feature = "engine")]
        Daemon::Runtime => rustiot_runtime::main(&arguments),
        Daemon::RaucBackend => match rustiot_update::loader() {
            Ok(loader) => {
                rustiot_slots::rauc_backend::main(&arguments, rustiot_slots::Paths::default(), loader.open())
            }
            Err(error) => {
                eprintln!("rauc-backend: {error:#}");
                1
            }
        },
    };
    ExitCode::from(code)
}

/// Runs one command of a person.
pub fn run(cli: Cli) -> ExitCode {
    let files = Files::below(&cli.root);
    let answer = match cli.command {
        Command::Daemon { name, arguments } => return daemon(name, arguments),
        Command::Status => Ok(overview(&files)),
        Command::Slots => Ok(slots(&files)),
        Command::Boots => Ok(boots(&files)),
        Command::Health => health(&files),
        Command::Provision(Provision::Status) => provision(files.provision()),
        Command::Provision(Provision::Apply) => provision(Some(rustiot_provision::apply())),
        #[cfg(feature = "engine")]
        Command::Container(order) => {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(crate::containers::run(order, &files, cli.json)),
                Err(error) => Err(Failure::from_error(Kind::State, "cannot start", &error)),
            }
        }
        Command::Update(update) => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self::update(update, &files, cli.json)),
            Err(error) => Err(Failure::from_error(Kind::State, "cannot start", &error)),
        },
    };
    match answer {
        Ok(answer) => print(&answer, cli.json),
        Err(failure) => {
            complain(&failure);
            if cli.json {
                print(
                    &Answer {
                        text: String::new(),
                        json: json!({ "error": failure }),
                        code: failure.kind.exit_code(),
                    },
                    true,
                )
            } else {
                ExitCode::from(failure.kind.exit_code())
            }
        }
    }
}

/// Prints the answer in one write. A reader that has gone (`rustiot boots | head -1`) is no failure.
fn print(answer: &Answer, as_json: bool) -> ExitCode {
    let text = if as_json { format!("{:#}\n", answer.json) } else { answer.text.clone() };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::from(answer.code),
    }
}

fn complain(failure: &Failure) {
    let mut text = format!("rustiot: {}", failure.message);
    for cause in &failure.chain {
        text.push_str(": ");
        text.push_str(cause);
    }
    if let Some(hint) = &failure.hint {
        text.push_str("\nhint: ");
        text.push_str(hint);
    }
    note(&text);
}

/// One line for people, beside the answer. Nobody listening is no failure.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn slot_status(files: &Files) -> rustiot_slots::Status {
    // The selector is root's to read; others get the rest without a complaint.
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    let mut loader =
        if files.are_live() && root { rustiot_update::loader().ok().map(|l| l.open()) } else { None };
    rustiot_slots::status(&files.slots(), loader.as_deref_mut().map(|l| l as _))
}

fn overview(files: &Files) -> Answer {
    let slots = slot_status(files);
    let release = files.release();
    let of_release = |key: &str| release.as_ref().and_then(|r| r.get(key)?.as_str().map(str::to_owned));
    let (update, config, health) = (files.update(), files.provision(), files.health());
    let mut slots_json = serde_json::to_value(&slots).unwrap_or_default();
    if let Some(map) = slots_json.as_object_mut() {
        map.remove("boots");
        map.remove("rejected");
    }
    let overview = Overview {
        hostname: files.hostname(),
        version: of_release("version"),
        compatible: of_release("compatible"),
        uptime_s: files.uptime(),
        slots: slots_json,
        health: health.as_ref().and_then(|h| serde_json::to_value(h).ok()),
        update: update.as_ref().map(
            |u| json!({ "phase": u.phase, "message": u.message, "why": u.why, "last": u.history.last() }),
        ),
        reset: files.boot().and_then(|boot| boot.get("reset").cloned()),
        config: config.as_ref().map(|c| json!({ "ok": c.ok, "messages": c.messages, "steps": c.steps })),
    };
    let text = show::overview(&overview, &slots, health.as_ref(), update.as_ref(), config.as_ref());
    Answer::new(text, &overview)
}

fn slots(files: &Files) -> Answer {
    let slots = slot_status(files);
    Answer::new(show::slots(&slots), &slots)
}

fn boots(files: &Files) -> Answer {
    let slots = slot_status(files);
    Answer::new(show::boots(&slots), &slots.boots)
}

fn health(files: &Files) -> Result<Answer, Failure> {
    let health = files.health().ok_or_else(|| {
        Failure::new(Kind::NotNow, "health has not said anything in this boot yet")
            .hint("`systemctl status rustiot-health.service`")
    })?;
    Ok(Answer::new(show::health(&health), &health))
}

fn provision(status: Option<rustiot_provision::Status>) -> Result<Answer, Failure> {
    let status = status.ok_or_else(|| {
        Failure::new(Kind::NotNow, "this start has not been provisioned yet")
            .hint("`systemctl status 'rustiot-provision*'`")
    })?;
    let failed = status.steps.iter().any(|step| step.outcome == rustiot_provision::Outcome::Failed);
    Ok(Answer { code: u8::from(failed), ..Answer::new(status.text(), &status) })
}

async fn update(update: Update, files: &Files, as_json: bool) -> Result<Answer, Failure> {
    let done = |what: &str| Answer::new(format!("{what}\n"), json!({ "done": true }));
    match update {
        Update::Install(order) => install(&order, as_json).await,
        Update::Check => {
            let check = Client::system().await?.check().await?;
            Ok(Answer::new(show::check(&check), &check))
        }
        Update::Plan { details } => {
            let status = files.update().ok_or_else(silent)?;
            match &status.plan {
                Some(plan) => plan_answer(plan, status.transaction.as_ref(), details).await,
                None => Err(Failure::new(
                    Kind::NothingNew,
                    status.check.as_ref().map_or("there is no plan", |check| check.message.as_str()),
                )
                .hint("`rustiot update check` looks into the repository")),
            }
        }
        Update::Download => follow(Client::system().await?.download().await?, false, as_json).await,
        Update::Hold { stage } => {
            let client = Client::system().await?;
            client.hold(stage.as_str()).await.map(|()| done(&format!("held before: {}", stage.as_str())))
        }
        Update::Schedule { stage, not_before } => {
            let client = Client::system().await?;
            client.schedule(stage.as_str(), not_before).await.map(|()| match not_before {
                0 => done(&format!("{} is not put off", stage.as_str())),
                at => done(&format!("{} not before {}", stage.as_str(), show::time(at))),
            })
        }
        Update::Consent { refuse } => {
            let said = if refuse { "refused" } else { "consented" };
            Client::system().await?.consent(!refuse).await.map(|()| done(said))
        }
        Update::Policy => {
            let policy = Client::system().await?.policy().await?;
            Ok(Answer::new(show::policy(&policy), &policy))
        }
        Update::Cancel => Client::system().await?.cancel().await.map(|()| done("taken back")),
        Update::Activate { reboot } => {
            let client = Client::system().await?;
            client.activate().await?;
            if reboot {
                client.reboot_when_activated().await?;
            }
            Ok(done("the next start is the trial"))
        }
        Update::Reboot => Client::system().await?.reboot().await.map(|()| done("restarting")),
        Update::Status => {
            let mut status = files.update().ok_or_else(silent)?;
            // The file leaves the running count out; the bus has it.
            if files.are_live()
                && let Ok(client) = Client::system().await
                && let Ok(look) = client.look().await
            {
                status.progress = look.progress;
            }
            Ok(Answer::new(show::update(&status), &status))
        }
        Update::Why => {
            let status = files.update().ok_or_else(silent)?;
            // Where nothing was refused, the repository's last word says why nothing happens.
            let looked = status.check.as_ref().filter(|check| check.result != "available").map(show::check);
            match status.why {
                Some(why) => Ok(Answer::new(show::why(&why) + &looked.unwrap_or_default(), &why)),
                None => Ok(Answer::new(
                    looked.unwrap_or_else(|| {
                        "nothing was refused and nothing failed since the last commit\n".to_owned()
                    }),
                    Value::Null,
                )),
            }
        }
        Update::History => {
            let history = files.update().ok_or_else(silent)?.history;
            Ok(Answer::new(show::history(&history), &history))
        }
    }
}

async fn plan_answer(plan: &Plan, tx: Option<&Transaction>, details: bool) -> Result<Answer, Failure> {
    let text = show::plan(plan, tx);
    if !details {
        return Ok(Answer::new(text, plan));
    }
    let file = plan.details.as_ref().ok_or_else(|| {
        Failure::new(Kind::NotFound, "the publisher says nothing about what is in this release")
            .hint("a list is published with a bundle that has NAME.spdx.json beside it")
    })?;
    let details = rustiot_update::details(file).await?;
    let from = plan.from.as_ref().and_then(|from| from.parse().ok());
    let difference = from.as_ref().and_then(|from| details.since(from));
    let mut json = serde_json::to_value(plan).unwrap_or_default();
    if let Some(object) = json.as_object_mut() {
        object.insert("contents".into(), json!({ "packages": details.packages, "difference": difference }));
    }
    let text = text + &show::contents(details.packages.len(), plan.from.as_deref(), difference);
    Ok(Answer { text, json, code: 0 })
}

fn silent() -> Failure {
    Failure::new(Kind::NotNow, "the update service has not said anything in this boot yet")
        .hint("`systemctl status rustiot-update.service`")
}

async fn install(order: &Install, as_json: bool) -> Result<Answer, Failure> {
    let id = Client::system().await?.install(order).await?;
    follow(id, order.no_wait, as_json).await
}

/// Waits until transaction `id` has ended, waits for a person, or restarts the device.
async fn follow(id: String, no_wait: bool, as_json: bool) -> Result<Answer, Failure> {
    if no_wait {
        return Ok(Answer::new(
            format!("{id}\n"),
            json!({ "transaction": id, "phase": "checking", "ended": null }),
        ));
    }
    let client = Client::system().await?;
    let mut teller = Teller::new(as_json);
    let report = tokio::select! {
        report = client.follow(&id, |look| teller.tell(look)) => report?,
        _ = tokio::signal::ctrl_c() => {
            teller.end();
            return Err(Failure::new(Kind::Interrupted, "not waiting any longer; the install goes on")
                .hint("`rustiot update status` shows it, `rustiot update cancel` takes it back"));
        }
    };
    teller.end();
    let json = serde_json::to_value(&report).unwrap_or_default();
    let (text, code) = match &report.ended {
        None => (report.phase.clone(), 0),
        Some(entry) if entry.result == Outcome::Committed => ("committed".into(), 0),
        Some(entry) => match &entry.why {
            Some(failure) => {
                complain(failure);
                (String::new(), failure.kind.exit_code())
            }
            None => ("ended".into(), 1),
        },
    };
    let text = match text.as_str() {
        "" => text,
        "rebooting" => "installed; restarting into the trial\n".into(),
        "activated" => "installed; the next start is the trial\n".into(),
        "available" => "it waits: `rustiot update status` says for what\n".into(),
        "downloaded" => "downloaded; `rustiot update install` installs it\n".into(),
        "installed" => "installed; `rustiot update activate` makes the next start its trial\n".into(),
        other => format!("{other}\n"),
    };
    Ok(Answer { text, json, code })
}

/// Shows an install as it goes: one changing line on a terminal, a line for each step elsewhere.
struct Teller {
    started: Instant,
    terminal: bool,
    quiet: bool,
    meter: Meter,
    last: String,
    open_line: bool,
}

impl Teller {
    fn new(as_json: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            started: Instant::now(),
            terminal,
            quiet: as_json && !terminal,
            meter: Meter::default(),
            last: String::new(),
            open_line: false,
        }
    }

    fn tell(&mut self, look: &Look) {
        if self.quiet {
            return;
        }
        let writing = look.phase == "installing" && look.progress.total > 0;
        let fetching = look.phase == "downloading" && look.progress.transfer.total > 0;
        let line = if fetching {
            format!("{}: {}", look.phase, show::transfer(&look.progress.transfer))
        } else if writing {
            format!("{}: {}", look.phase, self.meter.line(self.started.elapsed(), &look.progress))
        } else if look.message.is_empty() {
            look.phase.clone()
        } else {
            format!("{}: {}", look.phase, look.message)
        };
        // Elsewhere than on a terminal each tenth of the way is enough.
        let step = if fetching && !self.terminal {
            let t = &look.progress.transfer;
            let tenth = t.fetched.saturating_mul(10).checked_div(t.total).unwrap_or(0);
            format!("{} {tenth}", look.phase)
        } else if writing && !self.terminal {
            format!("{} {}", look.phase, look.progress.percent.checked_div(10).unwrap_or(0))
        } else {
            line.clone()
        };
        if step == self.last {
            return;
        }
        self.last = step;
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
            self.open_line = true;
        } else {
            note(&line);
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open_line) {
            note("");
        }
    }
}
