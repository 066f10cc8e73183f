//! The update engine: one task that owns the transaction, from the request to commit or fallback.
//!
//! The boot ledger is the truth; the engine looks at it ([`settle`](Engine::settle)), does the next thing, and looks
//! again. It never writes a slot (RAUC does), never decides about a trial (the boot policy does) and never commits
//! (health does). Called by the daemon; everything outside comes through `ports`.

use std::time::Duration;

use rustiot_boot::{Event, Phase as BootPhase, Slot, SlotState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::bundle::{self, Device};
use crate::failure::{Failure, Kind, is_remote, refine};
use crate::ports::{Disk, Installer, Ledger, Machine, Order};
use crate::reconcile::{
    self, Here, INSTALL_TRIES, READ_TRIES, Situation, install_delay, situation, trial_delay,
};
use crate::status::{HistoryEntry, Hold, Outcome, Phase, Progress, Request, Status, Transaction, Why};
use crate::store::Store;

/// Time for RAUC to read a bundle's manifest: it bounds neither a silent server nor a slow one.
const CHECK_LIMIT: Duration = Duration::from_secs(300);
/// An install that writes nothing for so long is given up and started again.
const STALL_LIMIT: Duration = Duration::from_secs(900);
/// How often the written bytes are counted.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How often the ledger is looked at while others act on it (trial, soak, a running RAUC).
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Pause after an activation that failed.
const ACTIVATE_AGAIN: Duration = Duration::from_secs(600);
/// Longest path or URL that is taken.
const SOURCE_BYTES: usize = 4096;

/// An order to the engine; the answer comes through the channel in it.
#[derive(Debug)]
pub(crate) enum Command {
    /// Install a bundle; answered with the transaction id before anything is done.
    Install(Request, oneshot::Sender<Result<String, Failure>>),
    /// Take the transaction back.
    Cancel(oneshot::Sender<Result<(), Failure>>),
    /// Make the next boot the trial of what is installed.
    Activate(oneshot::Sender<Result<(), Failure>>),
    /// Restart into the trial now.
    Reboot(oneshot::Sender<Result<(), Failure>>),
}

/// What the configuration and the image say.
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
    Install,
    Activate,
    Reboot,
    Look,
}

/// See the module.
pub(crate) struct Engine<I, L, D, M> {
    pub installer: I,
    pub ledger: L,
    pub disk: D,
    pub machine: M,
    pub store: Store,
    pub here: Here,
    pub policy: Policy,
    status: watch::Sender<Status>,
    tx: Option<Transaction>,
    next: Option<(Instant, Job)>,
    /// A restart has been asked for; nothing is taken any more.
    leaving: bool,
}

/// How one attempt to install ended.
enum End {
    Done(Box<Transaction>),
    Failed { failure: Failure, announced: bool },
    Cancelled(oneshot::Sender<Result<(), Failure>>),
}

impl<I: Installer, L: Ledger, D: Disk, M: Machine> Engine<I, L, D, M> {
    /// An engine that has looked at nothing yet.
    #[expect(clippy::too_many_arguments, reason = "one call; each is a port or a fact of this boot")]
    pub(crate) fn new(
        installer: I,
        ledger: L,
        disk: D,
        machine: M,
        store: Store,
        here: Here,
        policy: Policy,
        status: watch::Sender<Status>,
    ) -> Self {
        let tx = store.transaction();
        let (why, history) = (store.why(), store.history());
        status.send_modify(|s| (s.why, s.history) = (why, history));
        Self { installer, ledger, disk, machine, store, here, policy, status, tx, next: None, leaving: false }
    }

    /// Works until the other end of `commands` is gone.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.settle().await;
        loop {
            let at = self.next.map(|(at, _)| at);
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                () = due => match self.next.take() {
                    Some((_, Job::Install)) => self.install(&mut commands).await,
                    Some((_, Job::Activate)) => self.activate().await,
                    Some((_, Job::Reboot)) => self.reboot().await,
                    Some((_, Job::Look)) | None => self.settle().await,
                },
            }
        }
    }

    /// Looks at the ledger, publishes where things stand and plans the next step.
    async fn settle(&mut self) {
        let record = match self.ledger.record() {
            Ok(record) => record,
            Err(failure) => {
                self.refuse(failure);
                self.publish(Phase::Idle, "the boot ledger cannot be read; trying again");
                return self.after(Duration::from_secs(30), Job::Look);
            }
        };
        if self.tx.is_none() {
            self.tx = reconcile::adopt(&record, &self.here, self.machine.now());
        }
        self.next = None;
        match situation(&record, &self.here, self.tx.as_ref()) {
            Situation::Nothing => self.publish(Phase::Idle, ""),
            Situation::Writing => self.settle_writing(&record.phase).await,
            Situation::Ready => {
                if self.tx.as_ref().is_some_and(|tx| tx.approved || tx.request.hold != Hold::Activate) {
                    self.publish(Phase::Activating, "about to make the next boot the trial");
                    self.after(Duration::ZERO, Job::Activate);
                } else {
                    self.publish(Phase::Installed, "installed; waits for `rustiot update activate`");
                }
            }
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
            Situation::Armed => {
                let restart = self.machine.reboots_itself()
                    && self.tx.as_ref().is_none_or(|tx| tx.request.hold != Hold::Reboot);
                if restart {
                    self.plan_reboot();
                } else {
                    self.publish(Phase::Activated, "the next boot is the trial; waits for a restart");
                }
            }
            Situation::OnTrial => {
                self.publish(Phase::Trial, "this boot is the trial; committed after health checks and soak");
                self.after(LOOK_EVERY, Job::Look);
            }
            Situation::Ended { outcome, why, log } => self.end(outcome, why, log),
            Situation::LateFallback { from, reason } => self.late_fallback(from, &reason),
        }
    }

    async fn settle_writing(&mut self, phase: &BootPhase) {
        let Some(tx) = self.tx.clone() else { return self.publish(Phase::Idle, "") };
        let same_boot = tx.tried_boot.as_deref() == Some(self.here.boot_id.as_str());
        if same_boot && self.installer.busy().await.unwrap_or(false) {
            self.publish(Phase::Installing, "RAUC is writing");
            return self.after(LOOK_EVERY, Job::Look);
        }
        if matches!(phase, BootPhase::Announced(_) | BootPhase::Writing(_)) {
            // RAUC's slot status survives a restart of this service. It is not believed after a restart of the
            // machine: the status file and the partition are not ordered against each other in a power cut.
            let wanted = tx.release.as_ref().map(|r| r.manifest_hash.as_str());
            let complete = match (same_boot, tx.slot) {
                (true, Some(slot)) => {
                    matches!(self.installer.written(slot).await, Ok(Some(hash)) if Some(hash.as_str()) == wanted)
                }
                _ => false,
            };
            if let Err(failure) = self.ledger.apply(Event::WriteFinished { ok: complete }) {
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
        self.after(pause, Job::Install);
    }

    async fn command(&mut self, command: Command) {
        if self.leaving {
            return answer_no(command, &Failure::new(Kind::NotNow, "the device is restarting"));
        }
        match command {
            Command::Install(request, reply) => {
                if matches!(self.phase(), Phase::Idle | Phase::Trial | Phase::LateFallback) {
                    // Health may have committed since the last look: then the way is free.
                    self.settle().await;
                }
                drop(reply.send(self.accept(request)));
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
                    Phase::Activated | Phase::Rebooting => {
                        self.plan_reboot();
                        Ok(())
                    }
                    phase => Err(self.not_now("restart into a trial", phase)),
                };
                drop(reply.send(result));
            }
        }
    }

    fn accept(&mut self, request: Request) -> Result<String, Failure> {
        if let Some(tx) = &self.tx {
            let what = tx.release.as_ref().map_or(tx.request.source.as_str(), |r| r.version.as_str());
            return Err(Failure::new(
                Kind::Busy,
                format!("{what} is being installed ({})", self.phase().as_str()),
            )
            .hint("`rustiot update status` shows it, `rustiot update cancel` takes it back"));
        }
        let source = &request.source;
        if source.len() > SOURCE_BYTES || source.chars().any(char::is_control) {
            return Err(Failure::new(Kind::Usage, "the path or URL is too long or holds control characters"));
        }
        if !is_remote(source) && !source.starts_with('/') {
            return Err(Failure::new(
                Kind::Usage,
                format!("{source:?} is neither an absolute path nor an http(s) URL"),
            )
            .hint("give the full path of a .raucb file, or http://… or https://…"));
        }
        let id = request.id.clone();
        let tx = Transaction {
            request,
            release: None,
            slot: None,
            started_at: self.machine.now(),
            started_boot: self.here.boot_id.clone(),
            tries: 0,
            broken_reads: 0,
            tried_boot: None,
            install_seconds: None,
            approved: false,
        };
        self.store.set_transaction(Some(&tx))?;
        self.tx = Some(tx);
        self.status.send_modify(|s| s.progress = Progress::default());
        self.publish(Phase::Checking, "looking at the bundle");
        self.after(Duration::ZERO, Job::Install);
        Ok(id)
    }

    async fn approve(&mut self) -> Result<(), Failure> {
        let phase = self.phase();
        if phase == Phase::Idle {
            // Back to what the other slot holds, by hand: a trial like any other, if the policy allows it.
            self.installer.activate().await?;
            self.settle().await;
            return Ok(());
        }
        if !matches!(phase, Phase::Installed | Phase::WaitingToTryAgain | Phase::Activating) {
            return Err(self.not_now("activate", phase));
        }
        if let Some(tx) = &mut self.tx {
            tx.approved = true;
            self.store.set_transaction(Some(tx))?;
        }
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
            Phase::Trial => {
                return Err(Failure::new(Kind::NotNow, "the new release is running already")
                    .hint("restart the device to go back: an unfinished trial returns to the old release"));
            }
            _ => {}
        }
        if phase == Phase::Installing {
            self.installer.abort().await?;
        }
        self.forget_in_ledger()?;
        self.give_up(Outcome::Cancelled, Failure::new(Kind::Cancelled, "taken back"));
        Ok(())
    }

    /// Makes the ledger give the transaction up, from whatever phase it is in.
    fn forget_in_ledger(&self) -> Result<(), Failure> {
        match self.ledger.record()?.phase {
            BootPhase::Idle | BootPhase::LateFallback { .. } | BootPhase::Trial { .. } => Ok(()),
            _ => self.ledger.apply(Event::Cancel),
        }
    }

    async fn install(&mut self, commands: &mut mpsc::Receiver<Command>) {
        let Some(tx) = &mut self.tx else { return };
        tx.tries = tx.tries.saturating_add(1);
        tx.tried_boot = Some(self.here.boot_id.clone());
        if let Err(failure) = self.store.set_transaction(Some(tx)) {
            return self.give_up(Outcome::Failed, failure);
        }
        let tx = tx.clone();
        self.publish(Phase::Checking, "looking at the bundle");
        let end = {
            let attempt = self.attempt(tx.clone());
            tokio::pin!(attempt);
            loop {
                tokio::select! {
                    biased;
                    command = commands.recv() => match command {
                        Some(Command::Cancel(reply)) => break End::Cancelled(reply),
                        Some(other) => answer_no(other, &Failure::new(Kind::Busy, "an install is running")
                            .hint("`rustiot update status` shows it, `rustiot update cancel` takes it back")),
                        // The service ends; the next one finds RAUC at work, or starts over.
                        None => return,
                    },
                    end = &mut attempt => break end,
                }
            }
        };
        match end {
            End::Done(tx) => {
                let stored = self.store.set_transaction(Some(&tx));
                self.tx = Some(*tx);
                if let Err(failure) = stored {
                    self.refuse(failure);
                }
                self.settle().await;
            }
            End::Cancelled(reply) => {
                let result = match self.installer.abort().await {
                    Ok(()) => self.forget_in_ledger(),
                    Err(failure) => Err(failure),
                };
                match &result {
                    Ok(()) => self.give_up(Outcome::Cancelled, Failure::new(Kind::Cancelled, "taken back")),
                    // RAUC may still be writing: look, do not guess. The attempt knew more than we remember.
                    Err(_) => {
                        self.tx = self.store.transaction().or(self.tx.take());
                        self.after(Duration::ZERO, Job::Look);
                    }
                }
                drop(reply.send(result));
            }
            End::Failed { failure, announced } => {
                let mut tx = tx;
                if failure.kind == Kind::ReadFailed {
                    tx.broken_reads = tx.broken_reads.saturating_add(1);
                    if let Some(mine) = &mut self.tx {
                        // Stored with the next start.
                        mine.broken_reads = tx.broken_reads;
                    }
                    if tx.broken_reads >= READ_TRIES {
                        let failure = failure.hint(
                            "if the network is fine, the file on the server is damaged: compare its checksum with the original",
                        );
                        return self.give_up(Outcome::Failed, failure);
                    }
                }
                // A first look that fails is the caller's to repeat; a later one is ours.
                if failure.kind.is_transient() && (announced || tx.tries > 1) {
                    return self.retry_or_give_up(&tx, failure);
                }
                let refused = !announced && matches!(failure.kind.exit_code(), 3 | 5);
                self.give_up(if refused { Outcome::Refused } else { Outcome::Failed }, failure);
            }
        }
    }

    /// Checks, announces, writes, compares. Everything that it changes on the device is the ledger and RAUC's slot.
    async fn attempt(&self, mut tx: Transaction) -> End {
        let source = tx.request.source.clone();
        let early = |failure| End::Failed { failure, announced: false };
        let manifest = match tokio::time::timeout(CHECK_LIMIT, self.installer.inspect(&source)).await {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(failure)) => {
                let head = if is_remote(&source) { None } else { self.machine.head(&source) };
                return early(refine(failure, &source, head));
            }
            Err(_) => {
                let mut failure = Failure::new(
                    Kind::Unreachable,
                    format!("{source} could not be read within {} s", CHECK_LIMIT.as_secs()),
                )
                .hint("check the network and the server");
                if let Err(e) = self.installer.abort().await {
                    failure = failure.because(e.to_string());
                }
                return early(failure);
            }
        };
        let record = match self.ledger.record() {
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
                .filter_map(|class| Some(((*class).to_owned(), self.disk.capacity(&partition(class))?)))
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
        if let Err(failure) = self.ledger.apply(announce) {
            return early(failure);
        }
        tx.release = Some(release.clone());
        tx.slot = Some(target);
        let result = match self.store.set_transaction(Some(&tx)) {
            Ok(()) => self.write(&tx, &release.manifest_hash, manifest.total()).await,
            Err(failure) => Err(failure),
        };
        match (result, &mut tx) {
            (Ok(seconds), tx) => {
                tx.install_seconds = Some(seconds);
                match self.ledger.apply(Event::WriteFinished { ok: true }) {
                    Ok(()) => End::Done(Box::new(tx.clone())),
                    Err(failure) => End::Failed { failure, announced: true },
                }
            }
            (Err(mut failure), _) => {
                if let Err(e) = self.ledger.apply(Event::WriteFinished { ok: false }) {
                    failure = failure.because(e.to_string());
                }
                End::Failed { failure, announced: true }
            }
        }
    }

    /// Lets RAUC write and watches that it does. Seconds it took.
    async fn write(&self, tx: &Transaction, manifest_hash: &str, total: u64) -> Result<u64, Failure> {
        let slot = tx.slot.unwrap_or(!self.here.slot);
        let counter = || {
            let of = |class| self.disk.written(&format!("{class}-{slot}")).unwrap_or(0);
            u64::saturating_add(of("root"), of("boot"))
        };
        let before = counter();
        self.status.send_modify(|s| {
            s.transaction = Some(tx.clone());
            s.progress = Progress { total, ..Progress::default() };
        });
        self.publish(Phase::Installing, "RAUC is writing the other slot");
        let order = Order {
            source: tx.request.source.clone(),
            id: tx.request.id.clone(),
            manifest_hash: manifest_hash.to_owned(),
        };
        let started = Instant::now();
        let moved = std::cell::Cell::new(started);
        let install = self.installer.install(&order, |percent, step| {
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
                    if moved.get().elapsed() >= STALL_LIMIT {
                        let mut failure = Failure::new(
                            Kind::Stalled,
                            format!("nothing was written for {} minutes", STALL_LIMIT.as_secs() / 60),
                        ).hint("check the network and the server; the install is started again");
                        if let Err(e) = self.installer.abort().await {
                            failure = failure.because(e.to_string());
                        }
                        return Err(failure);
                    }
                }
            }
        }
        // The bundle was read twice, for the check and for the write: it must have been the same one.
        match self.installer.written(slot).await? {
            Some(hash) if hash.eq_ignore_ascii_case(manifest_hash) => Ok(started.elapsed().as_secs()),
            _ => Err(Failure::new(Kind::Corrupt, "RAUC wrote another release than the one that was checked")
                .hint("the file on the server changed in between; install it again")),
        }
    }

    async fn activate(&mut self) {
        self.publish(Phase::Activating, "telling the loader to try the new release next");
        match self.installer.activate().await {
            Ok(()) => {
                if let Some(tx) = &mut self.tx {
                    tx.approved = true;
                    // Only a convenience for the next start: an activated slot is in the ledger.
                    if let Err(failure) = self.store.set_transaction(Some(tx)) {
                        self.refuse(failure);
                    }
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
        let version =
            self.tx.as_ref().and_then(|tx| tx.release.as_ref()).map_or("the new release", |r| &r.version);
        let message = format!("restarts into {version} in {} s", self.policy.grace.as_secs());
        self.publish(Phase::Rebooting, &message);
        self.after(self.policy.grace, Job::Reboot);
    }

    async fn reboot(&mut self) {
        match self.machine.reboot().await {
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
            let now = self.machine.now();
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
        let Some(tx) = self.tx.take() else { return self.publish(Phase::Idle, "") };
        let what = tx.release.as_ref().map_or(tx.request.source.as_str(), |r| r.version.as_str()).to_owned();
        let message = match (&why, result) {
            (None, _) => format!("{what} is committed"),
            (Some(failure), Outcome::Cancelled) => format!("{what}: {failure}"),
            (Some(failure), _) => failure.to_string(),
        };
        let entry = HistoryEntry {
            transaction: tx.request.id,
            source: tx.request.source,
            release: tx.release,
            slot: tx.slot,
            result,
            why,
            log,
            started_at: tx.started_at,
            ended_at: self.machine.now(),
            started_boot: tx.started_boot,
            ended_boot: self.here.boot_id.clone(),
            install_tries: tx.tries,
            install_seconds: tx.install_seconds,
        };
        self.record_end(entry);
        // After the history: a power cut in between finds the same end once more, which the history ignores.
        if let Err(failure) = self.store.set_transaction(None) {
            self.refuse(failure);
        }
        self.publish(Phase::Idle, &message);
    }

    fn record_end(&mut self, entry: HistoryEntry) {
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
        let why = Why {
            transaction: self.tx.as_ref().map(|tx| tx.request.id.clone()).unwrap_or_default(),
            source: self.tx.as_ref().map(|tx| tx.request.source.clone()).unwrap_or_default(),
            version: self.tx.as_ref().and_then(|tx| tx.release.as_ref()).map(|r| r.version.clone()),
            at: self.machine.now(),
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
        let (phase_is_new, message_is_new) = {
            let status = self.status.borrow();
            (status.phase != phase, status.message != message)
        };
        if phase_is_new || message_is_new || self.status.borrow().transaction != self.tx {
            if phase_is_new || (message_is_new && !message.is_empty()) {
                eprintln!("{}{}{message}", phase.as_str(), if message.is_empty() { "" } else { ": " });
            }
            self.status.send_modify(|s| {
                (s.phase, s.message) = (phase, message.to_owned());
                // During an attempt the transaction's own copy is further than the engine's.
                if !matches!(phase, Phase::Installing) || s.transaction.is_none() {
                    s.transaction.clone_from(&self.tx);
                }
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
        Command::Cancel(reply) | Command::Activate(reply) | Command::Reboot(reply) => {
            drop(reply.send(Err(failure.clone())));
        }
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
mod tests;
