//! The update engine: one task that owns the transaction, from the look at the repository to commit or fallback.
//!
//! The boot ledger is the truth; the engine looks at it ([`settle`](Engine::settle)), does the next thing, and looks
//! again. Before each stage it asks `gate` whether it may. It never writes a slot (RAUC does), never decides about a
//! trial (the boot policy does) and never commits (health does). Called by the daemon; everything outside comes
//! through `ports`. Looking at the repository and fetching are in `engine/acquire`.

mod acquire;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use rustiot_boot::{Event, Phase as BootPhase, Slot, SlotState};
use rustiot_config::{UpdateOnBattery, UpdatePolicy, UpdateReboot};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::bundle::{self, Device};
use crate::failure::{Failure, Kind, is_remote, refine};
use crate::gate::{self, Conditions, Gate};
use crate::plan::{Plan, WayKind};
use crate::ports::{Disk, Fetcher, Installer, Ledger, Machine, Order, Place, Repository, Session};
use crate::reconcile::{
    self, Here, INSTALL_TRIES, INSTALLER_DEATHS, READ_TRIES, Situation, install_delay, situation, trial_delay,
};
use crate::status::{
    By, Check, Expected, HistoryEntry, Hold, Outcome, Phase, PolicyNow, Progress, Request, Spent, Stage,
    Status, Transaction, Transfer, Waits, Why,
};
use crate::store::Store;
use crate::window;

/// Time for RAUC to read a bundle's manifest: it bounds neither a silent server nor a slow one.
const CHECK_LIMIT: Duration = Duration::from_secs(300);
/// Time for the first look at a URL that a person gave: long enough for a slow link, short enough to wait for.
const FIRST_LOOK_LIMIT: Duration = Duration::from_secs(20);
/// An install that writes nothing for so long is given up and started again.
const STALL_LIMIT: Duration = Duration::from_secs(900);
/// The kernel gives RAUC's device up when an answer has not come for 300 s. From here on RAUC's failure, if it comes, is
/// the outage's.
const HELD_LIMIT: Duration = Duration::from_secs(240);
/// How long after RAUC was held for so long its failure may come: what is left of the kernel's time, and RAUC's end.
const HELD_ECHO: Duration = Duration::from_secs(120);
/// How long RAUC may take to end by itself once it has nothing to read, and how often it is asked.
const END_LIMIT: Duration = Duration::from_secs(60);
const END_EVERY: Duration = Duration::from_millis(250);
/// How often the written bytes are counted.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How often the ledger is looked at while others act on it (trial, soak, a running RAUC).
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Pause after an activation that failed.
const ACTIVATE_AGAIN: Duration = Duration::from_secs(600);
/// Longest path or URL that is taken.
const SOURCE_BYTES: usize = 4096;
/// How often what stands in the way is looked at again: clock, configuration and windows may change.
const GATE_EVERY: Duration = Duration::from_secs(60);
/// How often vetoes are looked at.
const VETO_EVERY: Duration = Duration::from_secs(10);
/// Deferral that a restart of the service may forget.
const DEFERRAL_STORED_EVERY: u64 = 600;

/// An order to the engine; the answer comes through the channel in it.
#[derive(Debug)]
pub(crate) enum Command {
    /// Install a bundle; answered with the transaction id before anything is done.
    Install(Request, oneshot::Sender<Result<String, Failure>>),
    /// Take the transaction back, or stop a look at the repository.
    Cancel(oneshot::Sender<Result<(), Failure>>),
    /// Make the next boot the trial of what is installed.
    Activate(oneshot::Sender<Result<(), Failure>>),
    /// Restart into the trial now.
    Reboot(oneshot::Sender<Result<(), Failure>>),
    /// A medium has been mounted at this directory, or is gone.
    Medium(String, bool, oneshot::Sender<Result<Check, Failure>>),
    /// Look at the repository.
    Check(oneshot::Sender<Result<Check, Failure>>),
    /// Hold the transaction before a stage, or nowhere.
    SetHold(Hold, oneshot::Sender<Result<(), Failure>>),
    /// Put a stage off until a time (Unix seconds); 0: no more.
    Schedule(Stage, u64, oneshot::Sender<Result<(), Failure>>),
    /// What may happen by itself now.
    Policy(oneshot::Sender<Result<PolicyNow, Failure>>),
}

/// What the image says.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Pause before a restart, for people to read why and to cancel.
    pub grace: Duration,
    /// The board.
    pub compatible: String,
    /// Floor that the running image carries.
    pub floor: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// The next stage before anything is in the ledger: download or install.
    Step,
    Activate,
    Reboot,
    Look,
}

/// Everything outside.
pub(crate) struct Ports<I, L, D, M, R, F> {
    pub installer: I,
    pub ledger: L,
    pub disk: D,
    pub machine: M,
    pub repository: R,
    pub fetcher: F,
}

/// See the module.
pub(crate) struct Engine<I, L, D, M, R, F: Fetcher> {
    ports: Ports<I, L, D, M, R, F>,
    store: Rc<Store>,
    here: Here,
    policy: Policy,
    status: watch::Sender<Status>,
    /// Changed by an attempt and, while it runs, by orders.
    tx: RefCell<Option<Transaction>>,
    /// What the last look at the repository found, and where.
    offer: Option<(Plan, String)>,
    session: Option<F::Session>,
    /// When RAUC was last seen held for longer than `HELD_LIMIT`.
    overdue: Cell<Option<Instant>>,
    /// What the attempt that runs costs.
    count: Cell<Option<acquire::Count>>,
    next: Option<(Instant, Job)>,
    polling: acquire::Polling,
    /// When the last veto was seen, and seconds of deferral that are not stored yet.
    vetoed: Cell<Option<Instant>>,
    /// A restart has been asked for; nothing is taken any more.
    leaving: bool,
}

/// How one attempt to install ended.
enum End {
    Done,
    Failed { failure: Failure, announced: bool },
    Cancelled(oneshot::Sender<Result<(), Failure>>),
}

impl<I: Installer, L: Ledger, D: Disk, M: Machine, R: Repository, F: Fetcher> Engine<I, L, D, M, R, F> {
    /// An engine that has looked at nothing yet.
    pub(crate) fn new(
        ports: Ports<I, L, D, M, R, F>,
        store: Rc<Store>,
        here: Here,
        policy: Policy,
        status: watch::Sender<Status>,
    ) -> Self {
        let tx = store.transaction();
        let history = store.history().unwrap_or_else(|failure| {
            // None is shown; what there is stays where it is.
            eprintln!("{failure}: {}", failure.chain.join(": "));
            Vec::new()
        });
        let (why, check) = (store.why(), store.check());
        status.send_modify(|s| (s.why, s.history, s.check) = (why, history, check));
        Self {
            ports,
            store,
            here,
            policy,
            status,
            tx: RefCell::new(tx),
            offer: None,
            session: None,
            overdue: Cell::default(),
            count: Cell::default(),
            next: None,
            polling: acquire::Polling::default(),
            vetoed: Cell::new(None),
            leaving: false,
        }
    }

    /// Works until the other end of `commands` is gone.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.settle().await;
        loop {
            self.plan_check();
            let at = self.next.map(|(at, _)| at);
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let wake = self.polling.wake;
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.command(command, &mut commands).await,
                    None => return,
                },
                () = due => match self.next.take() {
                    Some((_, Job::Step)) => self.step(&mut commands).await,
                    Some((_, Job::Activate)) => self.activate().await,
                    Some((_, Job::Reboot)) => self.reboot().await,
                    Some((_, Job::Look)) | None => self.settle().await,
                },
                () = tokio::time::sleep_until(wake) => self.poll(&mut commands).await,
            }
        }
    }

    fn tx(&self) -> Option<Transaction> {
        self.tx.borrow().clone()
    }

    /// Changes the transaction, durably.
    fn edit(&self, change: impl FnOnce(&mut Transaction)) -> Result<(), Failure> {
        let changed = {
            let mut tx = self.tx.borrow_mut();
            let Some(tx) = tx.as_mut() else { return Ok(()) };
            change(tx);
            tx.clone()
        };
        let stored = self.store.set_transaction(Some(&changed));
        self.status.send_modify(|s| s.transaction = Some(changed));
        stored
    }

    /// Whether `stage` may begin, and until when that answer holds.
    fn gate(&self, stage: Stage) -> Gate {
        let Some(tx) = self.tx() else { return Gate::Open };
        let rules = self.ports.machine.rules();
        let vetoes = self.ports.machine.vetoes();
        let now = self.ports.machine.now();
        let conditions = Conditions {
            now,
            window: window::state(&rules.update.windows, &rules.zone, now),
            download_in_window: rules.update.download == rustiot_config::UpdateDownload::Window,
            metered_limit: rules.update.metered.then(|| rules.update.metered_limit.bytes()),
            battery: rules.update.on_battery == UpdateOnBattery::Wait && self.ports.machine.on_battery(),
            restarts: rules.update.reboot == UpdateReboot::Now,
            vetoes: &vetoes,
            max_deferral_s: rules.update.max_deferral.as_secs(),
        };
        let answer = gate::gate(stage, &tx, &conditions);
        match &answer {
            Gate::Vetoed(_) => self.count_deferral(),
            Gate::Overrides(names) => {
                self.vetoed.set(None);
                eprintln!("restarting over the heads of {}", names.join(", "));
                let names = names.clone();
                if let Err(failure) = self.edit(|tx| tx.overridden = names) {
                    eprintln!("{failure}");
                }
            }
            _ => self.vetoed.set(None),
        }
        answer
    }

    /// Applications use up their patience only while nothing else stands in the way.
    fn count_deferral(&self) {
        let now = Instant::now();
        let since = self.vetoed.replace(Some(now)).map_or(Duration::ZERO, |then| now - then).as_secs();
        let Some(before) = self.tx.borrow().as_ref().map(|tx| tx.deferred_s) else { return };
        let after = before.saturating_add(since);
        if before / DEFERRAL_STORED_EVERY != after / DEFERRAL_STORED_EVERY {
            if let Err(failure) = self.edit(|tx| tx.deferred_s = after) {
                eprintln!("{failure}");
            }
        } else if let Some(tx) = self.tx.borrow_mut().as_mut() {
            tx.deferred_s = after;
        }
    }

    /// Says why a stage does not begin, and when it is looked at again.
    fn wait_at(&mut self, phase: Phase, gate: Gate, then: Job) {
        let name = self.tx().map(|tx| tx.name().to_owned()).unwrap_or_default();
        let (why, pause, waits) = match gate {
            Gate::Open | Gate::Overrides(_) => (String::new(), Duration::ZERO, None),
            Gate::Held(why) => (why, GATE_EVERY, Some(Waits::Person)),
            Gate::Vetoed(why) => (why, VETO_EVERY, Some(Waits::Applications)),
            Gate::Later { why, at } => {
                let left = at.map(|at| Duration::from_secs(at.saturating_sub(self.ports.machine.now())));
                let pause = left.unwrap_or(GATE_EVERY).clamp(Duration::from_secs(1), GATE_EVERY);
                (why, pause, Some(Waits::Conditions))
            }
        };
        self.publish_waiting(phase, &format!("{name} {why}"), waits);
        self.after(pause, then);
    }

    /// Looks at the ledger, publishes where things stand and plans the next step.
    async fn settle(&mut self) {
        let record = match self.ports.ledger.record() {
            Ok(record) => record,
            Err(failure) => {
                self.refuse(failure);
                self.publish(Phase::Idle, "the boot ledger cannot be read; trying again");
                return self.after(Duration::from_secs(30), Job::Look);
            }
        };
        if self.tx.borrow().is_none() {
            *self.tx.borrow_mut() = reconcile::adopt(&record, &self.here, self.ports.machine.now());
        }
        self.next = None;
        let tx = self.tx();
        match situation(&record, &self.here, tx.as_ref()) {
            Situation::Nothing => self.rest(""),
            Situation::Writing => self.settle_writing(&record.phase).await,
            Situation::Ready => match self.gate(Stage::Activate) {
                Gate::Open | Gate::Overrides(_) if tx.is_some() => {
                    self.publish(Phase::Activating, "about to make the next boot the trial");
                    self.after(Duration::ZERO, Job::Activate);
                }
                shut => self.wait_at(Phase::Installed, shut, Job::Look),
            },
            Situation::Interrupted { attempts, stable: true } => {
                let pause = trial_delay(attempts);
                self.publish(
                    Phase::WaitingToTryAgain,
                    &format!("trial {attempts} was interrupted; tried again in {} s", pause.as_secs()),
                );
                self.after(pause, Job::Activate);
            }
            Situation::Interrupted { attempts, stable: false } => {
                self.publish(
                    Phase::WaitingToTryAgain,
                    &format!(
                        "trial {attempts} was interrupted; tried again when this boot has proved stable"
                    ),
                );
                self.after(LOOK_EVERY, Job::Look);
            }
            Situation::Armed => match self.gate(Stage::Reboot) {
                Gate::Open | Gate::Overrides(_) => self.plan_reboot(),
                shut => self.wait_at(Phase::Activated, shut, Job::Look),
            },
            Situation::OnTrial => {
                self.publish(Phase::Trial, "this boot is the trial; committed after health checks and soak");
                self.after(LOOK_EVERY, Job::Look);
            }
            Situation::Ended { outcome, why, log } => self.end(outcome, why, log),
            Situation::LateFallback { from, reason } => self.late_fallback(from, &reason),
        }
    }

    async fn settle_writing(&mut self, phase: &BootPhase) {
        let Some(tx) = self.tx() else { return self.rest("") };
        if *phase == BootPhase::Idle && (tx.stage == Stage::Download || tx.tries == 0) {
            // Nothing was begun that could have been cut off, or what was goes on from the cache.
            return self.after(Duration::ZERO, Job::Step);
        }
        if tx.cancelled {
            if let Err(failure) = self.take_back().await {
                self.refuse(failure);
            }
            return;
        }
        let same_boot = tx.tried_boot.as_deref() == Some(self.here.boot_id.as_str());
        if same_boot && self.ports.installer.busy().await.unwrap_or(false) {
            self.publish(Phase::Installing, "RAUC is writing");
            return self.after(LOOK_EVERY, Job::Look);
        }
        if matches!(phase, BootPhase::Announced(_) | BootPhase::Writing(_)) {
            // RAUC's slot status survives a restart of this service. It is not believed after a restart of the
            // machine: the status file and the partition are not ordered against each other in a power cut.
            let wanted = tx.release.as_ref().map(|r| r.manifest_hash.as_str());
            let complete = match (same_boot, tx.slot) {
                (true, Some(slot)) => {
                    matches!(self.ports.installer.written(slot).await, Ok(Some(hash)) if Some(hash.as_str()) == wanted)
                }
                _ => false,
            };
            if let Err(failure) = self.ports.ledger.apply(Event::WriteFinished { ok: complete }) {
                return self.give_up(Outcome::Failed, failure);
            }
            if complete {
                return self.after(Duration::ZERO, Job::Look);
            }
        }
        self.retry_or_give_up(
            &tx,
            Failure::new(Kind::Interrupted, "the install was interrupted (power cut or restart)"),
        );
    }

    /// Nothing is under way: says what is available, if anything is.
    fn rest(&mut self, message: &str) {
        match self.offer.as_ref().and_then(|(plan, _)| plan.version()) {
            Some(version) if message.is_empty() => {
                let message =
                    format!("{version} is available: `rustiot update plan`, `rustiot update install`");
                self.publish(Phase::Available, &message);
            }
            Some(_) => self.publish(Phase::Available, message),
            None => self.publish(Phase::Idle, message),
        }
    }

    fn retry_or_give_up(&mut self, tx: &Transaction, failure: Failure) {
        if tx.request.source.is_empty() || tx.tries >= INSTALL_TRIES {
            return self.give_up(Outcome::Failed, failure.hint("install it again"));
        }
        let pause = install_delay(tx.tries);
        let message = format!(
            "{failure}; started again in {} s (start {} of {INSTALL_TRIES})",
            pause.as_secs(),
            tx.tries.saturating_add(1)
        );
        self.refuse(failure);
        self.publish(Phase::WaitingToRetry, &message);
        self.after(pause, Job::Step);
    }

    async fn command(&mut self, command: Command, commands: &mut mpsc::Receiver<Command>) {
        if self.leaving {
            return answer_no(command, &Failure::new(Kind::NotNow, "the device is restarting"));
        }
        match command {
            Command::Install(request, reply) => {
                if matches!(self.phase(), Phase::Idle | Phase::Available | Phase::Trial | Phase::LateFallback)
                {
                    // Health may have committed since the last look: then the way is free.
                    self.settle().await;
                }
                let answer = self.accept(request, commands).await;
                drop(reply.send(answer));
            }
            Command::Cancel(reply) => {
                let result = self.cancel().await;
                drop(reply.send(result));
            }
            Command::Activate(reply) => {
                let result = self.approve().await;
                drop(reply.send(result));
            }
            Command::Reboot(reply) => {
                let result = match self.phase() {
                    Phase::Activated | Phase::Rebooting => self.reboot_at_once(),
                    phase => Err(self.not_now("restart into a trial", phase)),
                };
                drop(reply.send(result));
            }
            Command::Medium(dir, present, reply) => {
                let answer = match present {
                    true => self.medium_is_there(&dir, commands).await,
                    false => self.medium_is_gone(&dir).await,
                };
                drop(reply.send(answer));
            }
            Command::Check(reply) => {
                let answer = self.check_by_hand(commands).await;
                drop(reply.send(answer));
            }
            Command::SetHold(..) | Command::Schedule(..) | Command::Policy(_) => {
                let changes = !matches!(command, Command::Policy(_));
                self.meanwhile(command);
                match self.phase() {
                    Phase::Available | Phase::Downloaded if changes && self.tx.borrow().is_some() => {
                        self.after(Duration::ZERO, Job::Step);
                    }
                    Phase::Installed | Phase::Activated | Phase::Rebooting if changes => self.settle().await,
                    _ => {}
                }
            }
        }
    }

    /// What can be answered at any time, also while something is going on.
    fn meanwhile(&self, command: Command) {
        match command {
            Command::SetHold(hold, reply) => {
                let answer = self.change("hold", |tx| tx.request.hold = hold);
                drop(reply.send(answer));
            }
            Command::Schedule(stage, at, reply) => {
                let answer = self.change("put off", |tx| {
                    match at {
                        0 => tx.not_before.remove(&stage),
                        at => tx.not_before.insert(stage, at),
                    };
                });
                drop(reply.send(answer));
            }
            Command::Policy(reply) => drop(reply.send(Ok(self.policy_now()))),
            other => answer_no(
                other,
                &Failure::new(Kind::Busy, format!("busy: the phase is {}", self.phase().as_str()))
                    .hint("`rustiot update status` shows it, `rustiot update cancel` takes it back"),
            ),
        }
    }

    fn change(&self, what: &str, change: impl FnOnce(&mut Transaction)) -> Result<(), Failure> {
        match self.phase() {
            Phase::Trial | Phase::LateFallback => Err(self.not_now(what, self.phase())),
            _ if self.tx.borrow().is_none() => Err(Failure::new(Kind::NotNow, "nothing is being installed")
                .hint("`rustiot update install` begins with what is available")),
            _ => self.edit(change),
        }
    }

    fn policy_now(&self) -> PolicyNow {
        let rules = self.ports.machine.rules();
        let update = &rules.update;
        let now = self.ports.machine.now();
        let window = window::state(&update.windows, &rules.zone, now);
        let unknown = window::unknown_zones(&update.windows, &rules.zone);
        PolicyNow {
            policy: match update.policy {
                UpdatePolicy::Auto => "auto",
                UpdatePolicy::Check => "check",
                UpdatePolicy::Manual => "manual",
            }
            .into(),
            source: update.source.as_ref().map(ToString::to_string),
            window_open: window.open,
            window_changes: window.changes,
            windows: update.windows.iter().map(ToString::to_string).collect(),
            complaints: unknown
                .iter()
                .map(|name| format!("unknown time zone {name}: taken as UTC"))
                .collect(),
            metered: update.metered,
            on_battery: self.ports.machine.on_battery(),
            rate_limit: update.rate_limit.map(|rate| rate.bytes()),
            vetoes: self.ports.machine.vetoes(),
            max_deferral_s: update.max_deferral.as_secs(),
            next_check: self
                .polling
                .due()
                .map(|at| now.saturating_add(at.saturating_duration_since(Instant::now()).as_secs())),
            reports_waiting: self.store.reports().map_or(0, |waiting| waiting.len()),
        }
    }

    /// A person's word stands above windows and vetoes; whose veto it was is kept.
    fn reboot_at_once(&mut self) -> Result<(), Failure> {
        let vetoes = self.ports.machine.vetoes();
        let names = vetoes.iter().map(|veto| format!("{} ({})", veto.who, veto.why)).collect();
        if self.tx.borrow().is_some() {
            self.edit(|tx| (tx.by, tx.overridden) = (By::Person, names))?;
        }
        self.plan_reboot();
        Ok(())
    }

    async fn accept(
        &mut self,
        request: Request,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<String, Failure> {
        let source = request.source.clone();
        if source.len() > SOURCE_BYTES || source.chars().any(char::is_control) {
            return Err(Failure::new(Kind::Usage, "the path or URL is too long or holds control characters"));
        }
        if !is_remote(&source) && request.file != Expected::default() {
            return Err(Failure::new(Kind::Usage, "size and sha256 go with an http(s) URL")
                .hint("a file of this device is held to its signature"));
        }
        let of_a_repository = source.is_empty() || request.repository || self.ports.machine.is_dir(&source);
        if request.version.is_some() && !of_a_repository {
            return Err(Failure::new(
                Kind::Usage,
                "a bundle is one release: a version goes with a repository",
            ));
        }
        if let Some(tx) = self.tx() {
            let waits = matches!(self.phase(), Phase::Available | Phase::Downloaded | Phase::WaitingToRetry);
            if source.is_empty() && waits {
                return self.take_over(&request);
            }
            return Err(Failure::new(
                Kind::Busy,
                format!("{} is being installed ({})", tx.name(), self.phase().as_str()),
            )
            .hint("`rustiot update status` shows it, `rustiot update cancel` takes it back"));
        }
        if source.is_empty() {
            return self.accept_available(request, commands).await;
        }
        if !is_remote(&source) && !source.starts_with('/') {
            return Err(Failure::new(
                Kind::Usage,
                format!("{source:?} is neither an absolute path nor an http(s) URL"),
            )
            .hint("give the full path of a .raucb file or of a repository's directory, or http://… or https://…"));
        }
        if !is_remote(&source) && self.ports.machine.is_dir(&source) {
            let place = Place::Dir(source.into());
            return self.accept_repository(place, request, commands).await;
        }
        if is_remote(&source) && request.repository {
            let place = Place::Urls(vec![source]);
            return self.accept_repository(place, request, commands).await;
        }
        let plan = is_remote(&source).then(|| Plan::plain(&source, &request.file));
        let by = request.by;
        self.begin(request, plan, by)
    }

    /// Starts a transaction; answers with its id.
    fn begin(&mut self, request: Request, plan: Option<Plan>, by: By) -> Result<String, Failure> {
        let id = request.id.clone();
        let mut tx = Transaction::new(request, self.ports.machine.now(), &self.here.boot_id);
        (tx.by, tx.plan) = (by, plan);
        tx.stage = self.first_stage(&tx);
        self.store.set_transaction(Some(&tx))?;
        *self.tx.borrow_mut() = Some(tx);
        self.status.send_modify(|s| s.progress = Progress::default());
        self.publish(Phase::Checking, "looking at what there is to do");
        self.after(Duration::ZERO, Job::Step);
        Ok(id)
    }

    /// The next stage before anything is written.
    async fn step(&mut self, commands: &mut mpsc::Receiver<Command>) {
        let Some(tx) = self.tx() else { return self.settle().await };
        match (self.gate(tx.stage), tx.stage) {
            (Gate::Open | Gate::Overrides(_), Stage::Download) => self.download(commands).await,
            (Gate::Open | Gate::Overrides(_), _) => self.install(commands).await,
            (shut, stage) => {
                self.session = None;
                let fetched = stage == Stage::Install && tx.spent.download_s > 0;
                let phase = if fetched { Phase::Downloaded } else { Phase::Available };
                self.wait_at(phase, shut, Job::Step);
            }
        }
    }

    async fn approve(&mut self) -> Result<(), Failure> {
        let phase = self.phase();
        if matches!(phase, Phase::Idle | Phase::Available) && self.tx.borrow().is_none() {
            // Back to what the other slot holds, by hand: a trial like any other, if the policy allows it.
            self.ports.installer.activate().await?;
            self.settle().await;
            return Ok(());
        }
        if !matches!(phase, Phase::Installed | Phase::WaitingToTryAgain | Phase::Activating) {
            return Err(self.not_now("activate", phase));
        }
        // A person's word stands above windows. The restart that follows is still the applications' to put off.
        self.edit(|tx| {
            (tx.approved, tx.by) = (true, By::Person);
            tx.not_before.remove(&Stage::Activate);
        })?;
        self.publish(Phase::Activating, "about to make the next boot the trial");
        self.after(Duration::ZERO, Job::Activate);
        Ok(())
    }

    async fn cancel(&mut self) -> Result<(), Failure> {
        let phase = self.phase();
        match phase {
            Phase::Idle | Phase::LateFallback => {
                return Err(Failure::new(Kind::NotNow, "nothing is being installed"));
            }
            _ if self.tx.borrow().is_none() => {
                return Err(Failure::new(Kind::NotNow, "nothing is being installed"));
            }
            Phase::Trial => {
                return Err(Failure::new(Kind::NotNow, "the new release is running already")
                    .hint("restart the device to go back: an unfinished trial returns to the old release"));
            }
            _ => {}
        }
        if phase == Phase::Installing {
            return self.take_back().await;
        }
        self.forget_in_ledger()?;
        self.give_up(Outcome::Cancelled, Failure::new(Kind::Cancelled, "taken back"));
        Ok(())
    }

    /// Takes back what RAUC is at work on. The wish outlives a restart in between; where RAUC cannot be stopped it does not,
    /// since what is written then is whole.
    async fn take_back(&mut self) -> Result<(), Failure> {
        // A wish that cannot be stored is followed all the same.
        if let Err(failure) = self.edit(|tx| tx.cancelled = true) {
            self.refuse(failure);
        }
        self.publish(self.phase(), "is being taken back; RAUC stops");
        let taken = match self.stop_rauc().await {
            Ok(()) => self.forget_in_ledger(),
            Err(failure) => Err(failure),
        };
        match &taken {
            Ok(()) => self.give_up(Outcome::Cancelled, Failure::new(Kind::Cancelled, "taken back")),
            // RAUC may still be writing: look, do not guess.
            Err(_) => {
                if let Err(failure) = self.edit(|tx| tx.cancelled = false) {
                    self.refuse(failure);
                }
                self.after(Duration::ZERO, Job::Look);
            }
        }
        taken
    }

    /// Stops RAUC. It cannot be told to; but when nothing comes for it to read any more, it ends the install by itself,
    /// and takes its mounts and devices down, which it does not when it is killed.
    async fn stop_rauc(&self) -> Result<(), Failure> {
        let mut ended = false;
        if self.session.as_ref().is_some_and(Session::end) {
            let until = Instant::now() + END_LIMIT;
            while !ended && Instant::now() < until {
                match self.ports.installer.busy().await {
                    Ok(true) => tokio::time::sleep(END_EVERY).await,
                    Ok(false) => ended = true,
                    Err(_) => break,
                }
            }
        }
        match self.ports.installer.abort().await {
            // It writes nothing any more, whatever becomes of its process.
            Err(_) if ended => Ok(()),
            stopped => stopped,
        }
    }

    /// Makes the ledger give the transaction up, from whatever phase it is in.
    fn forget_in_ledger(&self) -> Result<(), Failure> {
        match self.ports.ledger.record()?.phase {
            BootPhase::Idle | BootPhase::LateFallback { .. } | BootPhase::Trial { .. } => Ok(()),
            _ => self.ports.ledger.apply(Event::Cancel),
        }
    }

    async fn install(&mut self, commands: &mut mpsc::Receiver<Command>) {
        let started = self.edit(|tx| {
            tx.tries = tx.tries.saturating_add(1);
            tx.tried_boot = Some(self.here.boot_id.clone());
        });
        let Some(tx) = self.tx() else { return };
        if let Err(failure) = started {
            return self.give_up(Outcome::Failed, failure);
        }
        self.publish(Phase::Checking, "looking at the bundle");
        self.begin_count(Stage::Install);
        self.overdue.set(None);
        let begun = match self.may_stream(&tx) {
            Ok(()) => self.open_session(&tx).await,
            refused => refused,
        };
        let end = match begun {
            Err(failure) => End::Failed { failure, announced: false },
            Ok(()) => {
                let attempt = self.attempt(tx.clone());
                tokio::pin!(attempt);
                loop {
                    tokio::select! {
                        biased;
                        command = commands.recv() => match command {
                            Some(Command::Cancel(reply)) => break End::Cancelled(reply),
                            Some(other) => self.meanwhile(other),
                            // The service ends; the next one finds RAUC at work, or starts over.
                            None => {
                                self.end_count();
                                return;
                            }
                        },
                        end = &mut attempt => break end,
                    }
                }
            }
        };
        self.end_count();
        match end {
            End::Done => {
                self.session = None;
                self.ports.fetcher.forget();
                self.settle().await;
            }
            End::Cancelled(reply) => {
                let result = self.take_back().await;
                drop(reply.send(result));
            }
            End::Failed { failure, announced } => self.install_failed(failure, announced),
        }
    }

    fn install_failed(&mut self, failure: Failure, announced: bool) {
        // While the network is away nothing is held against the way or counted. The proxy may be in the middle of one
        // more try, with nothing to complain of, when the kernel's patience ends.
        let met = self.session.as_ref().and_then(Session::complaint);
        let overdue = self.overdue.take().is_some_and(|at| at.elapsed() < HELD_ECHO);
        let outage = overdue || met.is_some_and(|met| met.kind.is_transient());
        let total = self.session.as_ref().map_or(0, |session| session.progress().total);
        self.session = None;
        let broken = failure.kind == Kind::ReadFailed && !outage;
        // Stored with the next start.
        if let Some(tx) = self.tx.borrow_mut().as_mut() {
            if broken {
                tx.broken_reads = tx.broken_reads.saturating_add(1);
            }
            if failure.kind == Kind::Interrupted {
                tx.deaths = tx.deaths.saturating_add(1);
            }
            if outage && (announced || tx.tries > 1) {
                tx.tries = tx.tries.saturating_sub(1).max(1);
            }
        }
        let Some(tx) = self.tx() else { return };
        let gives_up = tx.broken_reads >= READ_TRIES || !failure.kind.is_transient();
        if failure.kind.is_of_the_way()
            && gives_up
            && tx.plan.as_ref().is_some_and(|p| tx.way + 1 < p.ways.len())
        {
            return self.next_way(failure);
        }
        if failure.kind == Kind::ReadFailed && tx.broken_reads >= READ_TRIES {
            let failure = failure.hint(
                "if the network is fine, the file on the server is damaged: compare its checksum with the original",
            );
            return self.give_up(Outcome::Failed, failure);
        }
        if tx.deaths >= INSTALLER_DEATHS {
            let times = format!("RAUC died {} times while it installed {}", tx.deaths, tx.request.source);
            let failure = Failure::new(Kind::Installer, times).because(failure.message).hint(
                "the bundle may be malformed: build it again, and see `journalctl -u rauc` for what killed RAUC",
            );
            return self.give_up(Outcome::Failed, failure);
        }
        // A first look that fails is the caller's to repeat; a later one, or one that nobody waits for, is ours.
        let ours = announced || tx.tries > 1 || tx.by != By::Person;
        if failure.kind.is_transient() && ours {
            if outage && announced && self.fills_the_cache(&tx, total) {
                // RAUC would be asked again and again, and write the slot anew each time. What comes first waits for
                // ever and writes nothing twice.
                if let Err(failure) = self.edit(|tx| tx.stage = Stage::Download) {
                    return self.give_up(Outcome::Failed, failure);
                }
            }
            return self.retry_or_give_up(&tx, failure);
        }
        let refused = !announced && matches!(failure.kind.exit_code(), 3 | 5);
        self.give_up(if refused { Outcome::Refused } else { Outcome::Failed }, failure);
    }

    /// Checks, announces, writes, compares. Everything that it changes on the device is the ledger and RAUC's slot.
    async fn attempt(&self, tx: Transaction) -> End {
        let source = tx.request.source.clone();
        let bundle = self.session.as_ref().map_or_else(|| source.clone(), Session::url);
        let early = |failure| End::Failed { failure, announced: false };
        if let Some(session) = &self.session {
            // Somebody waits for the answer to the first look at a URL; everything else has time.
            let plain = tx.current_way().is_some_and(|way| way.kind == WayKind::Plain);
            let first = plain && tx.tries <= 1 && tx.by == By::Person;
            let limit = if first { FIRST_LOOK_LIMIT } else { CHECK_LIMIT };
            match tokio::time::timeout(limit, session.prepare()).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => return early(failure),
                Err(_) => {
                    let met = session.complaint().unwrap_or_else(|| {
                        Failure::new(
                            Kind::Unreachable,
                            format!("{source} could not be read within {} s", limit.as_secs()),
                        )
                        .hint("check the network and the server")
                    });
                    return early(met);
                }
            }
        }
        let inspect = self.ports.installer.inspect(&bundle);
        let manifest = match tokio::time::timeout(CHECK_LIMIT, inspect).await {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(failure)) => {
                let head = if is_remote(&bundle) { None } else { self.ports.machine.head(&source) };
                return early(self.told(refine(failure, &source, head), &bundle, &source));
            }
            Err(_) => {
                let mut failure = Failure::new(
                    Kind::Unreachable,
                    format!("{source} could not be read within {} s", CHECK_LIMIT.as_secs()),
                )
                .hint("check the network and the server");
                if let Err(e) = self.ports.installer.abort().await {
                    failure = failure.because(e.to_string());
                }
                return early(self.told(failure, &bundle, &source));
            }
        };
        let promised = tx.plan.as_ref().and_then(|plan| plan.release.as_ref());
        if let Some(promised) = promised
            && !manifest.hash.eq_ignore_ascii_case(&promised.manifest_hash)
        {
            return early(
                Failure::new(
                    Kind::Corrupt,
                    format!("what came is another bundle than the {} of the repository", promised.version),
                )
                .hint("publish the release again"),
            );
        }
        let record = match self.ports.ledger.record() {
            Ok(record) => record,
            Err(failure) => return early(failure),
        };
        let target = !self.here.slot;
        let running = match record.slot(self.here.slot) {
            SlotState::Valid { release } => Some(release.manifest_hash.clone()),
            _ => None,
        };
        let partition = |class: &str| format!("{class}-{target}");
        let device = Device {
            compatible: self.policy.compatible.clone(),
            floor: higher(record.floor.as_deref(), self.policy.floor.as_deref()),
            running,
            target,
            capacity: ["root", "boot"]
                .iter()
                .filter_map(|class| Some(((*class).to_owned(), self.ports.disk.capacity(&partition(class))?)))
                .collect(),
        };
        let release = match bundle::check(&source, &manifest, &device, tx.request.force) {
            Ok(release) => release,
            Err(failure) => return early(failure),
        };
        if let Some(bad) = record.rejection(&release.manifest_hash)
            && !tx.request.force
        {
            return early(
                Failure::new(
                    Kind::KnownBad,
                    format!("{} failed on this device before: {}", release.version, bad.reason),
                )
                .hint("install a newer release; `--force` tries this one again"),
            );
        }
        let announce =
            Event::Announce { id: tx.request.id.clone(), release: release.clone(), force: tx.request.force };
        if let Err(failure) = self.ports.ledger.apply(announce) {
            return early(failure);
        }
        let stored = self.edit(|tx| (tx.release, tx.slot) = (Some(release.clone()), Some(target)));
        let order = Order {
            source: bundle.clone(),
            id: tx.request.id.clone(),
            manifest_hash: release.manifest_hash.clone(),
        };
        let result = match stored {
            Ok(()) => self.write(&order, target, manifest.total()).await,
            Err(failure) => Err(failure),
        };
        let failure = match result {
            Ok(seconds) => {
                let complete = self.ports.ledger.apply(Event::WriteFinished { ok: true });
                match complete.and_then(|()| self.edit(|tx| tx.install_seconds = Some(seconds))) {
                    Ok(()) => return End::Done,
                    Err(failure) => return End::Failed { failure, announced: true },
                }
            }
            Err(failure) => self.told(failure, &bundle, &source),
        };
        let failure = match self.ports.ledger.apply(Event::WriteFinished { ok: false }) {
            Ok(()) => failure,
            Err(e) => failure.because(e.to_string()),
        };
        End::Failed { failure, announced: true }
    }

    /// What people are told of a failure behind the proxy: the bundle's own address, and what the proxy met, which is
    /// nearer to the cause than RAUC's words about a server on this device.
    fn told(&self, mut failure: Failure, bundle: &str, source: &str) -> Failure {
        let Some(session) = &self.session else { return failure };
        failure.message = failure.message.replace(bundle, source);
        failure.chain.iter_mut().for_each(|cause| *cause = cause.replace(bundle, source));
        let about_reading = failure.kind.is_of_the_way()
            || failure.kind.is_transient()
            || matches!(failure.kind, Kind::Installer | Kind::BadManifest);
        match session.complaint() {
            Some(mut met) if about_reading => {
                met.chain.push(failure.message);
                met.chain.append(&mut failure.chain);
                met
            }
            _ => failure,
        }
    }

    /// Lets RAUC write and watches that it does. Seconds it took.
    async fn write(&self, order: &Order, slot: Slot, total: u64) -> Result<u64, Failure> {
        let counter = || {
            let of = |class| self.ports.disk.written(&format!("{class}-{slot}")).unwrap_or(0);
            u64::saturating_add(of("root"), of("boot"))
        };
        let before = counter();
        self.status.send_modify(|s| {
            s.progress = Progress { total, transfer: s.progress.transfer, ..Progress::default() };
        });
        self.publish(Phase::Installing, "RAUC is writing the other slot");
        let started = Instant::now();
        let moved = std::cell::Cell::new(started);
        let install = self.ports.installer.install(order, |percent, step| {
            moved.set(Instant::now());
            self.status.send_modify(|s| (s.progress.percent, s.progress.step) = (percent, step.to_owned()));
        });
        tokio::pin!(install);
        let mut count = tokio::time::interval(COUNT_EVERY);
        count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                result = &mut install => {
                    result?;
                    break;
                }
                _ = count.tick() => {
                    let bytes = counter().saturating_sub(before);
                    if self.status.borrow().progress.bytes != bytes {
                        moved.set(Instant::now());
                        self.status.send_modify(|s| s.progress.bytes = bytes);
                    }
                    if self.show_transfer() {
                        moved.set(Instant::now());
                    }
                    self.keep_count();
                    self.watch_the_hold();
                    if moved.get().elapsed() >= STALL_LIMIT {
                        // An outage is the proxy's business, and it ends by itself.
                        let met = self.session.as_ref().and_then(Session::complaint);
                        if let Some(met) = met.filter(|met| met.kind.is_transient()) {
                            self.publish(Phase::Installing, &format!("{met}; goes on when the network does"));
                            moved.set(Instant::now());
                            continue;
                        }
                        let mut failure = Failure::new(
                            Kind::Stalled,
                            format!("nothing was written for {} minutes", STALL_LIMIT.as_secs() / 60),
                        ).hint("check the network and the server; the install is started again");
                        if let Err(e) = self.stop_rauc().await {
                            failure = failure.because(e.to_string());
                        }
                        return Err(failure);
                    }
                }
            }
        }
        // The bundle was read twice, for the check and for the write: it must have been the same one.
        match self.ports.installer.written(slot).await? {
            Some(hash) if hash.eq_ignore_ascii_case(&order.manifest_hash) => Ok(started.elapsed().as_secs()),
            _ => Err(Failure::new(Kind::Corrupt, "RAUC wrote another release than the one that was checked")
                .hint("the file on the server changed in between; install it again")),
        }
    }

    /// RAUC is about to see its own limit: says whose fault it is and what comes of it.
    fn watch_the_hold(&self) {
        let Some(session) = self.session.as_ref().filter(|session| session.held() >= HELD_LIMIT) else {
            return;
        };
        self.overdue.set(Some(Instant::now()));
        let met =
            session.complaint().map_or_else(|| "the server does not answer".into(), |met| met.to_string());
        self.publish(
            Phase::Installing,
            &format!("{met}; RAUC will give up, and what is missing is fetched first"),
        );
    }

    async fn activate(&mut self) {
        match self.gate(Stage::Activate) {
            Gate::Open | Gate::Overrides(_) => {}
            shut => return self.wait_at(Phase::Installed, shut, Job::Look),
        }
        self.publish(Phase::Activating, "telling the loader to try the new release next");
        match self.ports.installer.activate().await {
            Ok(()) => {
                // Only a convenience for the next start: an activated slot is in the ledger.
                if let Err(failure) = self.edit(|tx| tx.approved = true) {
                    self.refuse(failure);
                }
                self.settle().await;
            }
            Err(failure) => {
                let message = format!("{failure}; tried again in {} s", ACTIVATE_AGAIN.as_secs());
                self.refuse(failure);
                self.publish(Phase::Installed, &message);
                self.after(ACTIVATE_AGAIN, Job::Activate);
            }
        }
    }

    fn plan_reboot(&mut self) {
        let version = self.tx().and_then(|tx| Some(tx.known_release()?.version.clone()));
        let version = version.unwrap_or_else(|| "the new release".into());
        let message = format!("restarts into {version} in {} s", self.policy.grace.as_secs());
        self.publish(Phase::Rebooting, &message);
        self.after(self.policy.grace, Job::Reboot);
    }

    async fn reboot(&mut self) {
        match self.ports.machine.reboot().await {
            Ok(()) => self.leaving = true,
            Err(failure) => {
                let message = format!("{failure}; waits for a restart");
                self.refuse(failure);
                self.publish(Phase::Activated, &message);
            }
        }
    }

    fn late_fallback(&mut self, from: Slot, reason: &str) {
        let message = format!("slot {from} stopped booting ({reason}); this boot runs the other slot");
        let known = |e: &HistoryEntry| e.result == Outcome::LateFallback && e.ended_boot == self.here.boot_id;
        if !self.status.borrow().history.iter().any(known) {
            let now = self.ports.machine.now();
            let entry = HistoryEntry {
                transaction: String::new(),
                source: String::new(),
                release: None,
                slot: Some(from),
                result: Outcome::LateFallback,
                why: Some(Failure::new(Kind::FellBack, message.clone())),
                log: Vec::new(),
                started_at: now,
                ended_at: now,
                started_boot: self.here.boot_id.clone(),
                ended_boot: self.here.boot_id.clone(),
                install_tries: 0,
                install_seconds: None,
                by: By::Policy,
                way: None,
                failed_ways: Vec::new(),
                spent: Default::default(),
                overridden: Vec::new(),
            };
            self.record_end(entry);
        }
        self.publish(Phase::LateFallback, &message);
        self.after(LOOK_EVERY, Job::Look);
    }

    fn give_up(&mut self, outcome: Outcome, failure: Failure) {
        self.end(outcome, Some(failure), Vec::new());
    }

    fn end(&mut self, result: Outcome, why: Option<Failure>, log: Vec<String>) {
        self.next = None;
        match &why {
            Some(failure) => self.refuse(failure.clone()),
            None => self.set_why(None),
        }
        self.session = None;
        self.vetoed.set(None);
        let Some(tx) = self.tx.take() else { return self.rest("") };
        if tx.plan.is_some() {
            self.ports.fetcher.forget();
        }
        let what = tx.name().to_owned();
        if self.offer.as_ref().is_some_and(|(plan, _)| plan.release.as_ref() == tx.known_release()) {
            // What has just been installed, refused or taken back is no news any more.
            self.offer = None;
        }
        let message = match (&why, result) {
            (None, _) => format!("{what} is committed"),
            (Some(failure), Outcome::Cancelled) => format!("{what}: {failure}"),
            (Some(failure), _) => failure.to_string(),
        };
        let way = tx.current_way().map(|way| way.kind.as_str().to_owned());
        let entry = HistoryEntry {
            release: tx.known_release().cloned(),
            transaction: tx.request.id,
            source: tx.request.source,
            slot: tx.slot,
            result,
            why,
            log,
            started_at: tx.started_at,
            ended_at: self.ports.machine.now(),
            started_boot: tx.started_boot,
            ended_boot: self.here.boot_id.clone(),
            install_tries: tx.tries,
            install_seconds: tx.install_seconds,
            by: tx.by,
            way,
            failed_ways: tx.failed_ways,
            spent: tx.spent,
            overridden: tx.overridden,
        };
        self.record_end(entry);
        // After the history: a power cut in between finds the same end once more, which the history ignores.
        if let Err(failure) = self.store.set_transaction(None) {
            self.refuse(failure);
        }
        self.rest(&message);
    }

    fn record_end(&mut self, entry: HistoryEntry) {
        if self.ports.machine.rules().update.report_url.is_some() {
            let report = serde_json::to_value(&entry).unwrap_or_default();
            if let Err(failure) = self.store.add_report(report) {
                eprintln!("{failure}: {}", failure.chain.join(": "));
            }
        }
        match self.store.append(entry.clone()) {
            Ok(history) => self.status.send_modify(|s| s.history = history),
            Err(failure) => {
                self.status.send_modify(|s| s.history.push(entry));
                self.refuse(failure);
            }
        }
    }

    /// Publishes a refusal or failure and remembers it.
    fn refuse(&self, failure: Failure) {
        let tx = self.tx();
        let why = Why {
            transaction: tx.as_ref().map(|tx| tx.request.id.clone()).unwrap_or_default(),
            source: tx.as_ref().map(|tx| tx.request.source.clone()).unwrap_or_default(),
            version: tx.as_ref().and_then(|tx| Some(tx.known_release()?.version.clone())),
            at: self.ports.machine.now(),
            failure,
        };
        self.set_why(Some(why));
    }

    fn set_why(&self, why: Option<Why>) {
        if let Err(failure) = self.store.set_why(why.as_ref()) {
            // It is published all the same; only a restart of the service forgets it.
            eprintln!("{failure}: {}", failure.chain.join(": "));
        }
        self.status.send_modify(|s| s.why = why);
    }

    fn publish(&self, phase: Phase, message: &str) {
        self.publish_waiting(phase, message, None);
    }

    fn publish_waiting(&self, phase: Phase, message: &str, waits: Option<Waits>) {
        let (phase_is_new, message_is_new) = {
            let status = self.status.borrow();
            (status.phase != phase, status.message != message)
        };
        let tx = self.tx();
        let plan = match &tx {
            Some(tx) => tx.plan.clone(),
            None => self.offer.as_ref().map(|(plan, _)| plan.clone()),
        };
        let medium =
            acquire::needed_medium(tx.as_ref(), self.offer.as_ref().map(|(_, source)| source.as_str()));
        let others_are_new = {
            let status = self.status.borrow();
            status.transaction != tx
                || status.plan != plan
                || status.medium != medium
                || status.waits != waits
        };
        if phase_is_new || message_is_new || others_are_new {
            if phase_is_new || (message_is_new && !message.is_empty()) {
                eprintln!("{}{}{message}", phase.as_str(), if message.is_empty() { "" } else { ": " });
            }
            self.status.send_modify(|s| {
                (s.phase, s.message, s.transaction, s.plan) = (phase, message.to_owned(), tx, plan);
                (s.medium, s.waits) = (medium, waits);
            });
        }
    }

    fn phase(&self) -> Phase {
        self.status.borrow().phase
    }

    fn not_now(&self, what: &str, phase: Phase) -> Failure {
        Failure::new(Kind::NotNow, format!("cannot {what} now: the phase is {}", phase.as_str()))
            .hint("`rustiot update status` shows what is going on")
    }

    fn after(&mut self, pause: Duration, job: Job) {
        self.next = Some((Instant::now() + pause, job));
    }
}

fn answer_no(command: Command, failure: &Failure) {
    match command {
        Command::Install(_, reply) => drop(reply.send(Err(failure.clone()))),
        Command::Cancel(reply)
        | Command::Activate(reply)
        | Command::Reboot(reply)
        | Command::SetHold(_, reply)
        | Command::Schedule(_, _, reply) => drop(reply.send(Err(failure.clone()))),
        Command::Check(reply) | Command::Medium(_, _, reply) => drop(reply.send(Err(failure.clone()))),
        Command::Policy(reply) => drop(reply.send(Err(failure.clone()))),
    }
}

fn higher(a: Option<&str>, b: Option<&str>) -> Option<String> {
    let parse = |text: Option<&str>| text.and_then(|t| semver::Version::parse(t).ok());
    match (parse(a), parse(b)) {
        (Some(a), Some(b)) => Some(if a.cmp_precedence(&b).is_lt() { b } else { a }.to_string()),
        (a, b) => a.or(b).map(|v| v.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
