//! The engine against the real boot policy, with RAUC, the disk and the machine as fakes. Time is tokio's, paused.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use rustiot_boot::{Effect, Record, ResetReason, step};

use super::*;
use crate::bundle::{Image, Manifest};
use crate::plan::Way;
use crate::ports::{Found, Limits, NoPlan, Place, Question, Rules};
use crate::reconcile::INSTALLER_DEATHS;
use crate::status::Veto;
use rustiot_config::scalar;
use rustiot_config::{UpdateDownload, UpdateOnBattery, UpdateSettings};

const URL: &str = "http://h/2.raucb";
const HASH: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// What RAUC does with the next install order.
#[derive(Clone)]
enum Write {
    Works,
    Fails(Kind),
    /// The kernel gives its device up after 300 s.
    TimesOut,
    /// Starts to write and never ends.
    Hangs,
    /// Refuses before it asks the backend.
    FailsBeforeWriting,
}

/// What becomes of a download.
#[derive(Clone)]
enum Get {
    Fails(Kind),
    Hangs,
}

pub(crate) struct World {
    record: RefCell<Record>,
    boot: Cell<u32>,
    manifest: RefCell<Result<Manifest, Failure>>,
    inspect_hangs: Cell<bool>,
    writes: RefCell<VecDeque<Write>>,
    installs: Cell<u32>,
    written_hash: RefCell<Option<String>>,
    busy: Cell<bool>,
    activate_fails: Cell<u32>,
    aborts: Cell<u32>,
    abort_fails: Cell<bool>,
    /// How long RAUC goes on once it has nothing to read, when that was, and whether it was at work when it was killed.
    ends_after: Cell<Duration>,
    ended: Cell<Option<Instant>>,
    aborted_busy: Cell<bool>,
    reboots: Cell<u32>,
    manual: Cell<bool>,
    head: Cell<Option<[u8; 4]>>,
    now: Cell<u64>,
    started: Cell<Instant>,
    rules: RefCell<UpdateSettings>,
    vetoes: RefCell<Vec<Veto>>,
    on_battery: Cell<bool>,
    /// What the repository answers; `None`: it never does.
    answer: RefCell<Option<Result<Found, Failure>>>,
    questions: RefCell<Vec<Question>>,
    /// What becomes of each download of a kind of way; missing: it works.
    fetches: RefCell<VecDeque<(WayKind, Get)>>,
    /// What was opened: kind, and whether it was downloaded.
    fetched: RefCell<Vec<(WayKind, bool)>>,
    room: Cell<u64>,
    /// The next way turns out not to work before RAUC is asked.
    unprepared: Cell<Option<Failure>>,
    forgotten: Cell<u32>,
    complaint: RefCell<Option<Failure>>,
    /// How long RAUC is being held.
    held: Cell<Duration>,
    /// What RAUC was told to install, in order, and when.
    sources: RefCell<Vec<String>>,
    opened: RefCell<Vec<u64>>,
    dir: tempfile::TempDir,
}

pub(crate) type W = Rc<World>;

fn manifest() -> Manifest {
    Manifest {
        hash: HASH.into(),
        compatible: "rustiot-x".into(),
        version: Some("2.0.0".into()),
        format: "verity".into(),
        images: vec![Image { class: "root".into(), size: 1000 }, Image { class: "boot".into(), size: 24 }],
        has_code: false,
    }
}

pub(crate) fn world() -> W {
    let world = World {
        record: RefCell::new(Record::fresh(Slot::A)),
        boot: Cell::new(0),
        manifest: RefCell::new(Ok(manifest())),
        inspect_hangs: Cell::new(false),
        writes: RefCell::default(),
        installs: Cell::new(0),
        written_hash: RefCell::new(Some(HASH.into())),
        busy: Cell::new(false),
        activate_fails: Cell::new(0),
        aborts: Cell::new(0),
        abort_fails: Cell::new(false),
        ends_after: Cell::default(),
        ended: Cell::default(),
        aborted_busy: Cell::default(),
        reboots: Cell::new(0),
        manual: Cell::new(false),
        head: Cell::new(None),
        now: Cell::new(1_000),
        started: Cell::new(Instant::now()),
        rules: RefCell::default(),
        vetoes: RefCell::default(),
        on_battery: Cell::default(),
        answer: RefCell::new(None),
        questions: RefCell::default(),
        fetches: RefCell::default(),
        fetched: RefCell::default(),
        room: Cell::new(1 << 30),
        unprepared: Cell::default(),
        forgotten: Cell::new(0),
        complaint: RefCell::default(),
        held: Cell::default(),
        sources: RefCell::default(),
        opened: RefCell::default(),
        dir: tempfile::tempdir().unwrap(),
    };
    world.boots(Slot::A, ResetReason::Clean);
    Rc::new(world)
}

impl World {
    pub(crate) fn apply(&self, event: Event) -> Result<Vec<Effect>, Failure> {
        let (next, effects) =
            step(&self.record.borrow(), event).map_err(|e| Failure::new(Kind::NotNow, e.to_string()))?;
        *self.record.borrow_mut() = next;
        Ok(effects)
    }

    pub(crate) fn boot_id(&self) -> String {
        format!("boot-{}", self.boot.get())
    }

    pub(crate) fn boots(&self, slot: Slot, reset: ResetReason) {
        self.boot.set(self.boot.get() + 1);
        self.apply(Event::Booted { slot, boot_id: self.boot_id(), reset, pstore_tail: vec![] }).unwrap();
    }

    /// The gate passes and the soak ends in this boot.
    pub(crate) fn is_healthy(&self) {
        self.apply(Event::GatePassed { boot_id: self.boot_id() }).unwrap();
        self.apply(Event::Soaked { boot_id: self.boot_id(), floor: None }).unwrap();
    }

    /// Restarts that were asked for.
    pub(crate) fn reboots(&self) -> u32 {
        self.reboots.get()
    }

    /// The directory of the store.
    pub(crate) fn state(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// What the device does by itself has this window.
    pub(crate) fn only_in(&self, window: &str) {
        self.rules.borrow_mut().windows = vec![window.parse().unwrap()];
    }

    /// Unix time; goes on as tokio's paused clock does.
    fn clock(&self) -> u64 {
        self.now.get() + self.started.get().elapsed().as_secs()
    }

    /// The running slot.
    fn slot(&self) -> Slot {
        self.record.borrow().last_boot().unwrap().slot
    }

    pub(crate) fn phase(&self) -> &'static str {
        self.record.borrow().phase.name()
    }
}

impl Installer for World {
    async fn inspect(&self, _: &str) -> Result<Manifest, Failure> {
        if self.inspect_hangs.get() {
            std::future::pending::<()>().await;
        }
        self.manifest.borrow().clone()
    }

    async fn install(&self, order: &Order, progress: impl Fn(u8, &str)) -> Result<(), Failure> {
        assert_eq!((order.source.is_empty(), order.manifest_hash.as_str()), (false, HASH));
        self.installs.set(self.installs.get() + 1);
        self.sources.borrow_mut().push(order.source.clone());
        self.opened.borrow_mut().push(self.clock());
        let write = self.writes.borrow_mut().pop_front().unwrap_or(Write::Works);
        if matches!(write, Write::FailsBeforeWriting) {
            return Err(Failure::new(Kind::Installer, "no"));
        }
        self.apply(Event::WriteStarted { slot: !self.slot() })?;
        progress(42, "Copying image to root.1");
        match write {
            Write::Works => Ok(()),
            Write::Fails(kind) => Err(Failure::new(kind, "it broke")),
            Write::TimesOut => {
                tokio::time::sleep(Duration::from_secs(300)).await;
                self.held.set(Duration::ZERO);
                Err(Failure::new(Kind::ReadFailed, "it broke"))
            }
            Write::Hangs | Write::FailsBeforeWriting => std::future::pending().await,
        }
    }

    async fn busy(&self) -> Result<bool, Failure> {
        let ended = self.ended.get().is_some_and(|at| at.elapsed() >= self.ends_after.get());
        Ok(self.busy.get() && !ended)
    }

    async fn written(&self, _: Slot) -> Result<Option<String>, Failure> {
        Ok(self.written_hash.borrow().clone())
    }

    async fn activate(&self) -> Result<(), Failure> {
        if self.activate_fails.get() > 0 {
            self.activate_fails.set(self.activate_fails.get() - 1);
            return Err(Failure::new(Kind::Installer, "the loader said no"));
        }
        self.apply(Event::Activate { slot: !self.slot() }).map(drop)
    }

    async fn abort(&self) -> Result<(), Failure> {
        self.aborts.set(self.aborts.get() + 1);
        self.aborted_busy.set(self.busy().await?);
        if self.abort_fails.get() { Err(Failure::new(Kind::Installer, "systemd is away")) } else { Ok(()) }
    }
}

impl Ledger for W {
    fn record(&self) -> Result<Record, Failure> {
        Ok(self.record.borrow().clone())
    }

    fn apply(&self, event: Event) -> Result<(), Failure> {
        World::apply(self, event).map(drop)
    }
}

impl Disk for W {
    fn capacity(&self, label: &str) -> Option<u64> {
        match label {
            "root-b" | "root-a" => Some(1000),
            "boot-b" | "boot-a" => Some(24),
            _ => None,
        }
    }

    fn written(&self, _: &str) -> Option<u64> {
        None
    }
}

impl Machine for W {
    async fn reboot(&self) -> Result<(), Failure> {
        self.reboots.set(self.reboots.get() + 1);
        Ok(())
    }

    fn rules(&self) -> Rules {
        let reboot = if self.manual.get() { UpdateReboot::Manual } else { UpdateReboot::Now };
        Rules { update: UpdateSettings { reboot, ..self.rules.borrow().clone() }, zone: "UTC".into() }
    }

    fn vetoes(&self) -> Vec<Veto> {
        self.vetoes.borrow().clone()
    }

    fn on_battery(&self) -> bool {
        self.on_battery.get()
    }

    fn now(&self) -> u64 {
        self.clock()
    }

    fn is_dir(&self, path: &str) -> bool {
        path.ends_with('/')
    }

    fn head(&self, _: &str) -> Option<[u8; 4]> {
        self.head.get()
    }
}

impl Repository for W {
    async fn check(&self, question: &Question) -> Result<Found, Failure> {
        self.questions.borrow_mut().push(question.clone());
        let answer = self.answer.borrow().clone();
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    fn wait(&self, interval: Duration, _: Duration) -> Duration {
        interval
    }
}

pub(crate) struct Job1 {
    world: W,
    way: Way,
}

impl Fetcher for W {
    type Session = Job1;

    async fn open(&self, way: &Way, limits: Limits) -> Result<Job1, Failure> {
        assert!(limits.cache <= self.room.get());
        self.fetched.borrow_mut().push((way.kind, false));
        Ok(Job1 { world: Rc::clone(self), way: way.clone() })
    }

    fn room(&self) -> u64 {
        self.room.get()
    }

    fn forget(&self) {
        self.forgotten.set(self.forgotten.get() + 1);
    }
}

impl Session for Job1 {
    fn url(&self) -> String {
        format!("http://127.0.0.1:1/{}", self.way.kind.as_str())
    }

    async fn prepare(&self) -> Result<(), Failure> {
        match self.world.unprepared.take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    async fn download(&self) -> Result<(), Failure> {
        let next = {
            let mut fetches = self.world.fetches.borrow_mut();
            match fetches.front() {
                Some((kind, _)) if *kind == self.way.kind => fetches.pop_front().map(|(_, get)| get),
                _ => None,
            }
        };
        match next {
            None => {
                tokio::time::sleep(Duration::from_secs(10)).await;
                self.world.fetched.borrow_mut().push((self.way.kind, true));
                Ok(())
            }
            Some(Get::Fails(kind)) => Err(Failure::new(kind, "it broke")),
            Some(Get::Hangs) => std::future::pending().await,
        }
    }

    fn progress(&self) -> Transfer {
        Transfer { fetched: 7, reused: 3, total: 10, rate: 1, eta: 3 }
    }

    fn limit(&self, _: Limits) {}

    fn held(&self) -> Duration {
        self.world.held.get()
    }

    fn complaint(&self) -> Option<Failure> {
        self.world.complaint.borrow().clone()
    }

    fn end(&self) -> bool {
        self.world.ended.set(Some(Instant::now()));
        true
    }
}

struct Client {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
}

impl Client {
    async fn order<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Command,
    ) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(make(reply)).await.unwrap();
        answer.await.unwrap()
    }

    async fn install(&self, hold: Hold, force: bool) -> Result<String, Failure> {
        let request = Request { id: "id-1".into(), source: URL.into(), hold, force, ..Request::default() };
        self.order(|reply| Command::Install(request, reply)).await
    }

    async fn phase(&mut self, phase: Phase) -> Status {
        self.status.wait_for(|s| s.phase == phase).await.unwrap().clone()
    }

    /// Waits until the transaction has ended, and returns its line of the history.
    async fn end(&mut self) -> HistoryEntry {
        self.status
            .wait_for(|s| s.phase == Phase::Idle && s.transaction.is_none() && !s.history.is_empty())
            .await
            .unwrap()
            .history
            .last()
            .unwrap()
            .clone()
    }
}

/// Runs an engine (as the service does after each start) while `scenario` goes on.
async fn run<T>(world: &W, scenario: impl AsyncFnOnce(Client) -> T) -> T {
    let (commands, receiver) = mpsc::channel(4);
    let (sender, status) = watch::channel(Status::default());
    let engine = engine(world, sender);
    tokio::select! {
        () = engine.run(receiver) => panic!("the engine ended"),
        result = scenario(Client { commands, status }) => result,
    }
}

/// The engine of a service that has just been started.
pub(crate) fn engine(world: &W, sender: watch::Sender<Status>) -> Engine<W, W, W, W, W, W> {
    let here = Here { slot: world.slot(), boot_id: world.boot_id() };
    let policy =
        Policy { grace: Duration::from_secs(5), compatible: "rustiot-x".into(), floor: Some("0.5.0".into()) };
    let store = Store::open(world.dir.path()).unwrap();
    let w = || Rc::clone(world);
    let ports = Ports { installer: w(), ledger: w(), disk: w(), machine: w(), repository: w(), fetcher: w() };
    Engine::new(ports, Rc::new(store), here, policy, sender)
}

/// Installs with default options up to the restart.
async fn install_to_restart(world: &W) {
    run(world, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.phase(Phase::Rebooting).await;
        tokio::time::sleep(Duration::from_secs(6)).await;
    })
    .await;
    assert_eq!((world.phase(), world.reboots.get()), ("armed", 1));
}

#[tokio::test(start_paused = true)]
async fn an_update_goes_from_request_to_commit_and_success_is_reported_only_then() {
    let w = world();
    install_to_restart(&w).await;
    w.boots(Slot::B, ResetReason::Clean);
    let entry = run(&w, async |mut c| {
        let status = c.phase(Phase::Trial).await;
        assert!(status.history.is_empty(), "reported before the commit");
        w.is_healthy();
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert!(c.status.borrow().history.is_empty(), "reported after the soak, before the commit");
        World::apply(&w, Event::Commit { boot_id: w.boot_id() }).unwrap();
        c.end().await
    })
    .await;
    assert_eq!((entry.result, entry.why, entry.slot), (Outcome::Committed, None, Some(Slot::B)));
    assert_eq!(
        (entry.transaction.as_str(), entry.started_boot.as_str(), entry.ended_boot.as_str()),
        ("id-1", "boot-1", "boot-2")
    );
    // And the next start of the service has nothing left to do.
    run(&w, async |mut c| assert_eq!(c.phase(Phase::Idle).await.history.len(), 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_trial_is_reported_with_its_reason_and_the_release_is_not_taken_again() {
    let w = world();
    install_to_restart(&w).await;
    w.boots(Slot::B, ResetReason::Clean);
    World::apply(
        &w,
        Event::GateFailed { boot_id: w.boot_id(), reason: "sshd".into(), log: vec!["last".into()] },
    )
    .unwrap();
    w.boots(Slot::A, ResetReason::Clean);
    run(&w, async |mut c| {
        let entry = c.end().await;
        assert_eq!((entry.result, entry.log), (Outcome::FellBack, vec!["last".to_owned()]));
        assert!(entry.why.unwrap().message.contains("sshd"));
        c.install(Hold::None, false).await.unwrap();
        let status = c.status.wait_for(|s| s.history.len() == 2).await.unwrap().clone();
        let again = status.history.last().unwrap();
        assert_eq!((again.result, again.why.as_ref().unwrap().kind), (Outcome::Refused, Kind::KnownBad));
        assert_eq!(w.installs.get(), 1, "RAUC was asked to write a known bad release");
        c.install(Hold::Activate, true).await.unwrap();
        c.phase(Phase::Installed).await;
    })
    .await;
    assert_eq!(w.phase(), "ready");
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_trial_is_repeated_once_the_old_slot_is_stable() {
    let w = world();
    install_to_restart(&w).await;
    w.boots(Slot::B, ResetReason::Clean);
    w.boots(Slot::A, ResetReason::Power);
    run(&w, async |mut c| {
        c.phase(Phase::WaitingToTryAgain).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(w.phase(), "ready", "armed before the old slot was stable");
        w.is_healthy();
        c.phase(Phase::Rebooting).await;
        assert_eq!(w.phase(), "armed");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn trials_without_a_verdict_are_repeated_until_the_policy_has_enough() {
    let w = world();
    install_to_restart(&w).await;
    let mut trials = 0;
    let result = loop {
        trials += 1;
        assert!(trials < 20, "tried for ever");
        // The new release reboots cleanly, over and over.
        w.boots(Slot::B, ResetReason::Clean);
        w.boots(Slot::A, ResetReason::Clean);
        w.is_healthy();
        let rejected = !w.record.borrow().rejected.is_empty();
        let end = run(&w, async |mut c| {
            if rejected {
                return Some(c.end().await);
            }
            c.phase(Phase::Rebooting).await;
            None
        })
        .await;
        if let Some(entry) = end {
            break entry.result;
        }
    };
    assert_eq!((result, trials), (Outcome::FellBack, rustiot_boot::ATTEMPTS_MAX));
}

#[tokio::test(start_paused = true)]
async fn what_is_held_waits_for_a_person() {
    let w = world();
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        c.phase(Phase::Installed).await;
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(w.phase(), "ready");
        assert_eq!(c.order(Command::Reboot).await.unwrap_err().kind, Kind::NotNow);
        c.order(Command::Activate).await.unwrap();
        c.phase(Phase::Rebooting).await;
    })
    .await;
    let w = world();
    run(&w, async |mut c| {
        c.install(Hold::Reboot, false).await.unwrap();
        c.phase(Phase::Activated).await;
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!((w.phase(), w.reboots.get()), ("armed", 0));
        c.order(Command::Reboot).await.unwrap();
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(w.reboots.get(), 1);
        assert_eq!(c.order(Command::Cancel).await.unwrap_err().kind, Kind::NotNow);
    })
    .await;
    let w = world();
    w.manual.set(true);
    run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.phase(Phase::Activated).await;
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(w.reboots.get(), 0, "the configuration says that a person restarts");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hold_outlives_a_power_cut() {
    let w = world();
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        c.phase(Phase::Installed).await;
    })
    .await;
    w.boots(Slot::A, ResetReason::Power);
    run(&w, async |mut c| {
        c.phase(Phase::Installed).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(w.phase(), "ready");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn cancel_works_in_each_phase_that_has_a_way_back() {
    // Nothing to cancel.
    let w = world();
    run(&w, async |c| assert_eq!(c.order(Command::Cancel).await.unwrap_err().kind, Kind::NotNow)).await;

    // While RAUC looks at the bundle.
    w.inspect_hangs.set(true);
    run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.phase(Phase::Checking).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        c.order(Command::Cancel).await.unwrap();
        assert_eq!(c.end().await.result, Outcome::Cancelled);
    })
    .await;
    assert_eq!((w.phase(), w.aborts.get()), ("idle", 1));

    // While RAUC writes: RAUC is stopped and the slot stays invalid.
    let w = world();
    w.writes.borrow_mut().push_back(Write::Hangs);
    run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.status.wait_for(|s| s.progress.percent == 42).await.unwrap();
        c.order(Command::Cancel).await.unwrap();
        assert_eq!(c.end().await.result, Outcome::Cancelled);
    })
    .await;
    assert_eq!((w.phase(), w.aborts.get()), ("idle", 1));
    assert_eq!(*w.record.borrow().slot(Slot::B), SlotState::Invalid);

    // Installed and held; activated; in the grace before the restart.
    for (hold, phase) in
        [(Hold::Activate, Phase::Installed), (Hold::Reboot, Phase::Activated), (Hold::None, Phase::Rebooting)]
    {
        let w = world();
        run(&w, async |mut c| {
            c.install(hold, false).await.unwrap();
            c.phase(phase).await;
            c.order(Command::Cancel).await.unwrap();
            assert_eq!(c.end().await.result, Outcome::Cancelled);
            tokio::time::sleep(Duration::from_secs(60)).await;
        })
        .await;
        assert_eq!((w.phase(), w.reboots.get()), ("idle", 0), "{phase:?}");
        assert_eq!(
            w.record.borrow().selection().next,
            None,
            "{phase:?}: the loader still tries the new slot"
        );
    }

    // On trial.
    let w = world();
    install_to_restart(&w).await;
    w.boots(Slot::B, ResetReason::Clean);
    run(&w, async |mut c| {
        c.phase(Phase::Trial).await;
        assert_eq!(c.order(Command::Cancel).await.unwrap_err().kind, Kind::NotNow);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_rauc_is_killed_only_where_it_does_not_end_by_itself() {
    for (ends_after, killed) in [(Duration::from_secs(3), false), (Duration::MAX, true)] {
        let w = world();
        w.writes.borrow_mut().push_back(Write::Hangs);
        w.ends_after.set(ends_after);
        run(&w, async |mut c| {
            let request = Request { id: "id-1".into(), source: "https://h/x".into(), ..Request::default() };
            c.order(|reply| Command::Install(request, reply)).await.unwrap();
            c.status.wait_for(|s| s.progress.percent == 42).await.unwrap();
            w.busy.set(true);
            let began = Instant::now();
            c.order(Command::Cancel).await.unwrap();
            assert!(began.elapsed() < Duration::from_secs(if killed { 70 } else { 4 }));
            assert_eq!(c.end().await.result, Outcome::Cancelled);
        })
        .await;
        assert_eq!((w.phase(), w.aborts.get(), w.aborted_busy.get()), ("idle", 1, killed));
        assert!(w.ended.get().is_some(), "RAUC reads on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rauc_that_ended_by_itself_is_stopped_whatever_systemd_says() {
    let w = world();
    w.writes.borrow_mut().push_back(Write::Hangs);
    w.abort_fails.set(true);
    w.ends_after.set(Duration::from_secs(3));
    run(&w, async |mut c| {
        let request = Request { id: "id-1".into(), source: "https://h/x".into(), ..Request::default() };
        c.order(|reply| Command::Install(request, reply)).await.unwrap();
        c.status.wait_for(|s| s.progress.percent == 42).await.unwrap();
        w.busy.set(true);
        c.order(Command::Cancel).await.unwrap();
        assert_eq!(c.end().await.result, Outcome::Cancelled);
    })
    .await;
    assert_eq!((w.phase(), w.aborts.get()), ("idle", 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_is_cut_off_is_finished_by_the_next_start() {
    for power_cut in [true, false] {
        let w = world();
        w.writes.borrow_mut().push_back(Write::Hangs);
        w.ends_after.set(Duration::MAX);
        run(&w, async |mut c| {
            c.install(Hold::None, false).await.unwrap();
            c.status.wait_for(|s| s.progress.percent == 42).await.unwrap();
            w.busy.set(true);
            let (reply, _answer) = oneshot::channel();
            c.commands.send(Command::Cancel(reply)).await.unwrap();
            c.status.wait_for(|s| s.message.contains("taken back")).await.unwrap();
        })
        .await;
        assert_eq!((w.phase(), w.aborts.get()), ("writing", 0), "too late for the test");
        if power_cut {
            w.busy.set(false);
            w.boots(Slot::A, ResetReason::Unknown);
        }
        let entry = run(&w, async |mut c| c.end().await).await;
        assert_eq!((entry.result, w.phase()), (Outcome::Cancelled, "idle"));
        assert_eq!((w.installs.get(), w.aborts.get()), (1, 1), "installed what a person took back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_cannot_stop_rauc_lets_it_finish() {
    let w = world();
    w.writes.borrow_mut().push_back(Write::Hangs);
    w.abort_fails.set(true);
    w.ends_after.set(Duration::MAX);
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        c.status.wait_for(|s| s.progress.percent == 42).await.unwrap();
        w.busy.set(true);
        assert!(c.order(Command::Cancel).await.is_err());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(w.phase(), "writing", "the slot was given up although RAUC writes to it");
        w.busy.set(false);
        c.phase(Phase::Installed).await;
    })
    .await;
    assert_eq!(w.installs.get(), 1, "what RAUC had finished was written again");
}

#[tokio::test(start_paused = true)]
async fn a_refused_bundle_changes_nothing() {
    type Change = fn(&World);
    let table: &[(Change, Kind)] = &[
        (|w| *w.manifest.borrow_mut() = Err(Failure::new(Kind::Signature, "x")), Kind::Signature),
        (|w| *w.manifest.borrow_mut() = Err(Failure::new(Kind::PlainFormat, "x")), Kind::PlainFormat),
        (|w| w.manifest.borrow_mut().as_mut().unwrap().compatible = "y".into(), Kind::WrongBoard),
        (|w| w.manifest.borrow_mut().as_mut().unwrap().images[0].size = 1001, Kind::TooLarge),
        (|w| w.manifest.borrow_mut().as_mut().unwrap().version = Some("0.4.9".into()), Kind::BelowFloor),
        (|w| w.manifest.borrow_mut().as_mut().unwrap().has_code = true, Kind::BadManifest),
    ];
    for (change, kind) in table {
        let w = world();
        change(&w);
        let before = w.record.borrow().clone();
        let entry = run(&w, async |mut c| {
            c.install(Hold::None, false).await.unwrap();
            c.end().await
        })
        .await;
        assert_eq!((entry.result, entry.why.unwrap().kind), (Outcome::Refused, *kind));
        assert_eq!((before, w.installs.get()), (w.record.borrow().clone(), 0), "{kind:?}");
        assert_eq!(Store::open(w.dir.path()).unwrap().transaction(), None, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_file_is_told_from_other_files() {
    for (head, kind) in [(Some(*b"hsqs"), Kind::Truncated), (Some(*b"PK\x03\x04"), Kind::NotABundle)] {
        let w = world();
        *w.manifest.borrow_mut() = Err(Failure::new(Kind::NotABundle, "x"));
        w.head.set(head);
        let entry = run(&w, async |mut c| {
            let request = Request { id: "i".into(), source: "/x.raucb".into(), ..Request::default() };
            c.order(|reply| Command::Install(request, reply)).await.unwrap();
            c.end().await
        })
        .await;
        assert_eq!(entry.why.unwrap().kind, kind);
    }
}

#[tokio::test(start_paused = true)]
async fn senseless_sources_are_refused_at_once() {
    let w = world();
    run(&w, async |c| {
        for source in ["x.raucb", "ftp://h/x", "file:///x", "/a\nb", &format!("/{}", "x".repeat(5000))] {
            let request = Request { id: "i".into(), source: source.into(), ..Request::default() };
            let answer = c.order(|reply| Command::Install(request, reply)).await;
            assert_eq!(answer.unwrap_err().kind, Kind::Usage, "{source}");
        }
        assert_eq!(c.status.borrow().phase, Phase::Idle);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_servers_order_outlives_an_outage_at_its_first_look_and_a_persons_is_answered() {
    for (by, ends) in [(By::Person, true), (By::Server, false), (By::Policy, false)] {
        let w = world();
        w.unprepared.set(Some(Failure::new(Kind::Unreachable, "no network")));
        run(&w, async |mut c| {
            let request = Request { id: "i".into(), source: URL.into(), by, ..Request::default() };
            c.order(|reply| Command::Install(request, reply)).await.unwrap();
            if ends {
                assert_eq!(c.end().await.result, Outcome::Failed);
                return;
            }
            c.phase(Phase::WaitingToRetry).await;
            c.phase(Phase::Rebooting).await;
            assert_eq!(c.status.borrow().transaction.as_ref().unwrap().by, by);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_file_must_have_is_the_plans_and_goes_with_urls_only() {
    let w = world();
    run(&w, async |mut c| {
        let file = Expected { size: Some(2000), sha256: Some("ab".repeat(32)) };
        let order = |source: &str| {
            let (source, file) = (source.to_owned(), file.clone());
            Request { id: "i".into(), source, file, hold: Hold::Install, ..Request::default() }
        };
        for source in ["/x.raucb", "/repository/", ""] {
            let answer = c.order(|reply| Command::Install(order(source), reply)).await;
            assert_eq!(answer.unwrap_err().kind, Kind::Usage, "{source}");
        }
        w.room.set(1999);
        c.order(|reply| Command::Install(order(URL), reply)).await.unwrap();
        assert_eq!(c.end().await.why.unwrap().kind, Kind::NoSpace, "refused before a byte is fetched");
        w.room.set(2000);
        c.order(|reply| Command::Install(order(URL), reply)).await.unwrap();
        let plan = c.phase(Phase::Downloaded).await.plan.unwrap();
        assert_eq!((plan.ways[0].len, &plan.ways[0].sha256), (Some(2000), &file.sha256));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_second_install_is_refused_while_one_is_under_way() {
    let w = world();
    w.writes.borrow_mut().push_back(Write::Hangs);
    run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.phase(Phase::Installing).await;
        assert_eq!(c.install(Hold::None, false).await.unwrap_err().kind, Kind::Busy);
    })
    .await;
    let w = world();
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        c.phase(Phase::Installed).await;
        assert_eq!(c.install(Hold::None, false).await.unwrap_err().kind, Kind::Busy);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_next_install_is_taken_as_soon_as_the_last_one_is_committed() {
    let w = world();
    install_to_restart(&w).await;
    w.boots(Slot::B, ResetReason::Clean);
    run(&w, async |mut c| {
        c.phase(Phase::Trial).await;
        assert_eq!(c.install(Hold::None, true).await.unwrap_err().kind, Kind::Busy);
        w.is_healthy();
        World::apply(&w, Event::Commit { boot_id: w.boot_id() }).unwrap();
        // Without waiting for the engine's next look.
        c.install(Hold::None, true).await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_install_cut_by_power_starts_over_by_itself() {
    let w = world();
    w.writes.borrow_mut().push_back(Write::Hangs);
    run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.status.wait_for(|s| s.progress.percent == 42).await.unwrap();
    })
    .await;
    assert_eq!(w.phase(), "writing");
    w.boots(Slot::A, ResetReason::Power);
    run(&w, async |mut c| {
        let status = c.phase(Phase::WaitingToRetry).await;
        assert_eq!(status.why.unwrap().failure.kind, Kind::Interrupted);
        c.phase(Phase::Rebooting).await;
    })
    .await;
    assert_eq!((w.phase(), w.installs.get()), ("armed", 2));
}

#[tokio::test(start_paused = true)]
async fn a_check_cut_by_power_is_repeated_even_if_the_network_is_not_up_at_first() {
    let w = world();
    w.inspect_hangs.set(true);
    run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.phase(Phase::Checking).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    })
    .await;
    w.boots(Slot::A, ResetReason::Power);
    w.inspect_hangs.set(false);
    *w.manifest.borrow_mut() = Err(Failure::new(Kind::Unreachable, "no network yet"));
    run(&w, async |mut c| {
        c.status
            .wait_for(|s| s.why.as_ref().is_some_and(|w| w.failure.kind == Kind::Unreachable))
            .await
            .unwrap();
        *w.manifest.borrow_mut() = Ok(manifest());
        c.phase(Phase::Rebooting).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn power_cuts_without_end_are_given_up() {
    let w = world();
    w.writes.borrow_mut().extend(vec![Write::Hangs; 100]);
    run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.phase(Phase::Installing).await;
    })
    .await;
    for _ in 1..INSTALL_TRIES {
        w.boots(Slot::A, ResetReason::Power);
        // So many cuts before any soak make the policy doubt the slot; they are not what is tested here.
        w.is_healthy();
        run(&w, async |mut c| drop(c.phase(Phase::Installing).await)).await;
    }
    w.boots(Slot::A, ResetReason::Power);
    let entry = run(&w, async |mut c| c.end().await).await;
    assert_eq!(
        (entry.result, entry.install_tries, w.installs.get()),
        (Outcome::Failed, INSTALL_TRIES, INSTALL_TRIES)
    );
    assert_eq!(w.phase(), "idle");
}

#[tokio::test(start_paused = true)]
async fn a_broken_download_is_repeated_and_other_failures_are_not() {
    let w = world();
    w.writes.borrow_mut().extend([Write::Fails(Kind::ReadFailed), Write::Fails(Kind::Interrupted)]);
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        c.phase(Phase::Installed).await;
    })
    .await;
    assert_eq!(w.installs.get(), 3);

    // A file that is damaged on the server breaks off each time.
    let w = world();
    w.writes.borrow_mut().extend(vec![Write::Fails(Kind::ReadFailed); 100]);
    let entry = run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.end().await
    })
    .await;
    assert_eq!((entry.result, w.installs.get()), (Outcome::Failed, reconcile::READ_TRIES));
    assert!(entry.why.unwrap().hint.unwrap().contains("checksum"));

    // And a bundle that RAUC does not survive kills it each time.
    let w = world();
    w.writes.borrow_mut().extend(vec![Write::Fails(Kind::Interrupted); 100]);
    let entry = run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.end().await
    })
    .await;
    assert_eq!((entry.result, w.phase(), w.installs.get()), (Outcome::Failed, "idle", INSTALLER_DEATHS));
    assert!(entry.why.unwrap().hint.unwrap().contains("malformed"));

    for write in [Write::Fails(Kind::NoSpace), Write::Fails(Kind::Corrupt), Write::FailsBeforeWriting] {
        let w = world();
        w.writes.borrow_mut().push_back(write);
        let entry = run(&w, async |mut c| {
            c.install(Hold::None, false).await.unwrap();
            c.end().await
        })
        .await;
        assert_eq!((entry.result, w.phase(), w.installs.get()), (Outcome::Failed, "idle", 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_install_that_stands_still_is_stopped_and_repeated() {
    let w = world();
    w.writes.borrow_mut().push_back(Write::Hangs);
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        let status = c.phase(Phase::WaitingToRetry).await;
        assert_eq!((status.why.unwrap().failure.kind, w.aborts.get()), (Kind::Stalled, 1));
        c.phase(Phase::Installed).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_ends_the_check() {
    let w = world();
    w.inspect_hangs.set(true);
    let entry = run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        c.end().await
    })
    .await;
    assert_eq!((entry.why.unwrap().kind, w.aborts.get()), (Kind::Unreachable, 1));
}

#[tokio::test(start_paused = true)]
async fn another_release_than_the_checked_one_is_never_tried() {
    for written in [Some("f".repeat(64)), None] {
        let w = world();
        *w.written_hash.borrow_mut() = written;
        let entry = run(&w, async |mut c| {
            c.install(Hold::None, false).await.unwrap();
            c.end().await
        })
        .await;
        assert_eq!((entry.why.unwrap().kind, w.phase()), (Kind::Corrupt, "idle"));
        assert_eq!(*w.record.borrow().slot(Slot::B), SlotState::Invalid);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_service_waits_for_the_rauc_it_left_running() {
    let w = world();
    w.writes.borrow_mut().push_back(Write::Hangs);
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        c.status.wait_for(|s| s.progress.percent == 42).await.unwrap();
    })
    .await;
    w.busy.set(true);
    run(&w, async |mut c| {
        c.phase(Phase::Installing).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(w.phase(), "writing");
        w.busy.set(false);
        c.phase(Phase::Installed).await;
    })
    .await;
    assert_eq!(w.installs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn raucs_word_for_a_complete_slot_is_not_believed_after_a_power_cut() {
    let w = world();
    w.writes.borrow_mut().push_back(Write::Hangs);
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        c.status.wait_for(|s| s.progress.percent == 42).await.unwrap();
    })
    .await;
    // RAUC's status file says the slot holds this very release, as it does after a second install of the same one.
    w.boots(Slot::A, ResetReason::Power);
    run(&w, async |mut c| {
        c.phase(Phase::WaitingToRetry).await;
        c.phase(Phase::Installed).await;
    })
    .await;
    assert_eq!(w.installs.get(), 2, "the slot was taken for complete");
}

#[tokio::test(start_paused = true)]
async fn an_activation_that_fails_is_told_and_repeated() {
    let w = world();
    w.activate_fails.set(1);
    run(&w, async |mut c| {
        c.install(Hold::None, false).await.unwrap();
        let status = c.phase(Phase::Installed).await;
        assert!(status.why.unwrap().failure.message.contains("loader"));
        c.phase(Phase::Rebooting).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn going_back_by_hand_is_a_trial_like_any_other() {
    let w = world();
    run(&w, async |c| {
        // The factory image's other slot holds nothing that is known.
        assert!(c.order(Command::Activate).await.is_err());
    })
    .await;
    install_to_restart(&w).await;
    w.boots(Slot::B, ResetReason::Clean);
    w.is_healthy();
    World::apply(&w, Event::Commit { boot_id: w.boot_id() }).unwrap();
    *w.manifest.borrow_mut() = Ok(Manifest { version: Some("3.0.0".into()), ..manifest() });
    run(&w, async |mut c| {
        c.end().await;
        c.install(Hold::None, true).await.unwrap();
        c.phase(Phase::Rebooting).await;
    })
    .await;
    w.boots(Slot::A, ResetReason::Clean);
    w.is_healthy();
    World::apply(&w, Event::Commit { boot_id: w.boot_id() }).unwrap();
    run(&w, async |mut c| {
        c.end().await;
        c.order(Command::Activate).await.unwrap();
        c.phase(Phase::Rebooting).await;
    })
    .await;
    assert_eq!(w.record.borrow().selection().next, Some(Slot::B));
}

#[tokio::test(start_paused = true)]
async fn a_late_fallback_is_reported_once_a_boot() {
    let w = world();
    w.record.borrow_mut().phase =
        BootPhase::LateFallback { from: Slot::B, reason: "rot".into(), attempts: 0 };
    for _ in 0..2 {
        run(&w, async |mut c| {
            c.phase(Phase::LateFallback).await;
            tokio::time::sleep(LOOK_EVERY * 3).await;
            let history = c.status.borrow().history.clone();
            assert_eq!(history.iter().map(|e| e.result).collect::<Vec<_>>(), [Outcome::LateFallback]);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_memory_does_not_lose_the_trial() {
    let w = world();
    install_to_restart(&w).await;
    std::fs::remove_file(w.dir.path().join("transaction.json")).unwrap();
    w.boots(Slot::B, ResetReason::Clean);
    run(&w, async |mut c| {
        assert_eq!(c.phase(Phase::Trial).await.transaction.unwrap().request.id, "id-1");
        w.is_healthy();
        World::apply(&w, Event::Commit { boot_id: w.boot_id() }).unwrap();
        assert_eq!(c.end().await.result, Outcome::Committed);
    })
    .await;
}

#[test]
fn the_higher_floor_counts() {
    let of = |a, b| higher(a, b);
    assert_eq!(of(Some("1.0.0"), Some("2.0.0")).as_deref(), Some("2.0.0"));
    assert_eq!(of(Some("2.0.0"), Some("1.0.0")).as_deref(), Some("2.0.0"));
    assert_eq!(of(None, Some("1.0.0")).as_deref(), Some("1.0.0"));
    assert_eq!(of(Some("odd"), None), None);
}

// --- from the repository on -----------------------------------------------------------------------------------

fn way(kind: WayKind, bytes: u64) -> Way {
    Way {
        kind,
        urls: vec![format!("https://r/{}", kind.as_str())],
        bytes,
        exact: true,
        len: Some(bytes),
        sha256: None,
        sources: Vec::new(),
    }
}

fn plan_of(version: &str) -> Plan {
    let hash = if version == "2.0.0" { HASH.to_owned() } else { "3".repeat(64) };
    Plan {
        release: Some(rustiot_boot::Release { version: version.into(), manifest_hash: hash }),
        ways: vec![way(WayKind::Delta, 100), way(WayKind::Full, 10_000)],
        ..Plan::plain("", &Expected::default())
    }
}

fn offers(plan: Plan) -> Option<Result<Found, Failure>> {
    Some(Ok(Found { bytes: 900, answer: Ok(plan) }))
}

fn nothing(word: &str) -> Option<Result<Found, Failure>> {
    let failure = Failure::new(Kind::NotOffered, word);
    Some(Ok(Found {
        bytes: 900,
        answer: Err(Box::new(NoPlan { word: word.into(), version: None, failure, retry_at: None })),
    }))
}

/// A device with a repository and this policy.
fn subscribed(policy: UpdatePolicy) -> W {
    let w = world();
    {
        let mut rules = w.rules.borrow_mut();
        rules.source = "https://r".parse().ok();
        rules.policy = policy;
        rules.check_every = scalar::Duration::secs(3600);
    }
    *w.answer.borrow_mut() = offers(plan_of("2.0.0"));
    w
}

/// Windows of the fake clock, which starts at 1970-01-01 00:16:40 UTC.
fn windows(w: &W, texts: &[&str]) {
    w.rules.borrow_mut().windows = texts.iter().map(|text| text.parse().unwrap()).collect();
}

#[tokio::test(start_paused = true)]
async fn an_automatic_device_goes_from_the_look_to_the_restart_by_itself() {
    let w = subscribed(UpdatePolicy::Auto);
    run(&w, async |mut c| {
        assert_eq!(c.phase(Phase::Downloading).await.plan.unwrap().version(), Some("2.0.0"));
        let status = c.phase(Phase::Rebooting).await;
        let tx = status.transaction.unwrap();
        assert_eq!((tx.by, tx.spent.fetched, tx.spent.reused), (By::Policy, 14, 6));
        assert_eq!(status.check.unwrap().result, "available");
    })
    .await;
    assert_eq!(
        *w.fetched.borrow(),
        [(WayKind::Delta, false), (WayKind::Delta, true), (WayKind::Delta, false)]
    );
    assert_eq!(*w.sources.borrow(), ["http://127.0.0.1:1/delta"], "RAUC reads from the proxy");
    assert_eq!(w.phase(), "armed");
    assert!(w.forgotten.get() > 0, "the cache is kept for nothing");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_only_looks_says_what_there_is_and_waits() {
    let w = subscribed(UpdatePolicy::Check);
    run(&w, async |mut c| {
        let status = c.phase(Phase::Available).await;
        assert!(status.message.contains("2.0.0") && status.transaction.is_none());
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(w.installs.get(), 0);
        assert!(w.questions.borrow().len() >= 24, "it looks every hour");
        assert_eq!(c.order(Command::Cancel).await.unwrap_err().kind, Kind::NotNow);
        // Download, and no more.
        let request = Request { id: "d".into(), hold: Hold::Install, ..Request::default() };
        c.order(|reply| Command::Install(request, reply)).await.unwrap();
        c.phase(Phase::Downloaded).await;
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!((w.installs.get(), c.status.borrow().phase), (0, Phase::Downloaded));
        // Install, and no more.
        let request = Request { id: "i".into(), hold: Hold::Activate, ..Request::default() };
        assert_eq!(c.order(|reply| Command::Install(request, reply)).await.unwrap(), "d");
        c.phase(Phase::Installed).await;
        assert_eq!(w.phase(), "ready");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_manual_device_looks_only_when_it_is_told_to() {
    let w = subscribed(UpdatePolicy::Manual);
    run(&w, async |mut c| {
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(w.questions.borrow().len(), 0);
        assert_eq!(c.order(Command::Check).await.unwrap().version.as_deref(), Some("2.0.0"));
        c.phase(Phase::Available).await;
        *w.answer.borrow_mut() = nothing("up-to-date");
        assert_eq!(c.order(Command::Check).await.unwrap().result, "up-to-date");
        c.phase(Phase::Idle).await;
        // Without a look before: one order does both, and waves do not bind a person.
        *w.answer.borrow_mut() = offers(plan_of("2.0.0"));
        let request = Request { id: "i".into(), ..Request::default() };
        c.order(|reply| Command::Install(request, reply)).await.unwrap();
        assert_eq!(w.questions.borrow().last().unwrap().wanted, Some(false));
        c.phase(Phase::Rebooting).await;
    })
    .await;
    // And without a repository there is nothing to look at.
    let w = world();
    run(&w, async |c| {
        assert_eq!(c.order(Command::Check).await.unwrap_err().kind, Kind::NothingNew);
        let request = Request { id: "i".into(), ..Request::default() };
        assert!(c.order(|reply| Command::Install(request, reply)).await.is_err());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_way_that_fails_is_followed_by_the_next_one_and_that_is_said() {
    // In the download.
    let w = subscribed(UpdatePolicy::Auto);
    w.fetches.borrow_mut().push_back((WayKind::Delta, Get::Fails(Kind::Corrupt)));
    run(&w, async |mut c| {
        let status =
            c.status.wait_for(|s| s.message.contains("going on with the full")).await.unwrap().clone();
        assert_eq!(status.why.unwrap().failure.kind, Kind::Corrupt);
        let tx = c.phase(Phase::Rebooting).await.transaction.unwrap();
        assert_eq!((tx.way, tx.failed_ways[0].way.as_str()), (1, "delta"));
    })
    .await;
    assert_eq!(*w.sources.borrow(), ["http://127.0.0.1:1/full"]);

    // While RAUC writes.
    let w = subscribed(UpdatePolicy::Auto);
    w.writes.borrow_mut().push_back(Write::Fails(Kind::Corrupt));
    run(&w, async |mut c| drop(c.phase(Phase::Rebooting).await)).await;
    assert_eq!(*w.sources.borrow(), ["http://127.0.0.1:1/delta", "http://127.0.0.1:1/full"]);

    // Before RAUC is asked: the running slot is not what the delta was made from.
    let w = subscribed(UpdatePolicy::Auto);
    w.unprepared.set(Some(Failure::new(Kind::Corrupt, "another root")));
    run(&w, async |mut c| drop(c.phase(Phase::Rebooting).await)).await;
    assert_eq!(*w.sources.borrow(), ["http://127.0.0.1:1/full"]);

    // All of them.
    let w = subscribed(UpdatePolicy::Auto);
    let failing = [(WayKind::Delta, Get::Fails(Kind::Corrupt)), (WayKind::Full, Get::Fails(Kind::NotFound))];
    w.fetches.borrow_mut().extend(failing);
    run(&w, async |mut c| {
        let entry = c.end().await;
        assert_eq!((entry.result, entry.failed_ways.len()), (Outcome::Failed, 2));
        assert_eq!(entry.release.unwrap().version, "2.0.0");
        // Not again and again: once a day.
        tokio::time::sleep(Duration::from_secs(43_200)).await;
        assert_eq!(c.status.borrow().history.len(), 1);
        c.phase(Phase::Rebooting).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_not_fetched() {
    // The delta does not, the full one goes straight into the slot.
    let w = subscribed(UpdatePolicy::Auto);
    w.room.set(99);
    run(&w, async |mut c| {
        let status = c.status.wait_for(|s| s.why.is_some()).await.unwrap().clone();
        assert_eq!(status.why.unwrap().failure.kind, Kind::NoSpace);
        c.phase(Phase::Rebooting).await;
    })
    .await;
    assert_eq!(*w.fetched.borrow(), [(WayKind::Full, false)]);
}

/// What the repository answers to `question`, by its own decision: one release, with these ways.
fn decided(question: &Question, ways: &str) -> Result<Found, Failure> {
    let file = |sha: &str, len: u32| format!(r#""file":{{"name":"x","len":{len},"sha256":"{sha}"}}"#);
    let source = format!(r#"{{"name":"root","len":1,"sha256":"{}"}}"#, "d".repeat(64));
    let delta = format!(
        r#"{{"kind":"delta",{},"from":"{}","sources":[{source}]}}"#,
        file(&"a".repeat(64), 100),
        "4".repeat(64)
    );
    let full = format!(r#"{{"kind":"full",{}}}"#, file(&"b".repeat(64), 10_000));
    let ways: Vec<&str> = [("delta", &delta), ("full", &full)]
        .into_iter()
        .filter(|(kind, _)| ways.contains(kind))
        .map(|(_, way)| way.as_str())
        .collect();
    let index = format!(
        r#"{{"format":1,"compatible":"x","published":1,"releases":[{{"version":"2.0.0","manifest_hash":"{HASH}",
            "root_hash":null,"floor":null,"build_epoch":1,"notes":"","images":[],
            "bundle":{{"len":10000,"sha256":"{}"}},"ways":[{}]}}]}}"#,
        "c".repeat(64),
        ways.join(",")
    );
    let mut index = rustiot_repository::Index::parse(index.as_bytes()).unwrap();
    index.releases[0].rollout = rustiot_repository::Rollout::everyone();
    let device =
        crate::repository::Device { compatible: "x".into(), version: "1.0.0".into(), ..Default::default() };
    let mut question = question.clone();
    question.running = Some("4".repeat(64));
    let answer = match rustiot_repository::plan(&index, &crate::repository::facts(&device, &question, 1)) {
        Ok(plan) => Ok(crate::repository::kept(&plan, |file| vec![format!("https://r/{}", file.path())])),
        Err(refusal) => Err(Box::new(crate::repository::told(&refusal))),
    };
    Ok(Found { bytes: 900, answer })
}

#[tokio::test(start_paused = true)]
async fn the_repository_is_told_how_much_room_there_is_and_refuses_what_has_none() {
    let ask = async |room: u64, rate: Option<&str>, cache: &str, ways: &str| {
        let w = subscribed(UpdatePolicy::Manual);
        w.room.set(room);
        {
            let mut rules = w.rules.borrow_mut();
            rules.cache = cache.parse().unwrap();
            rules.rate_limit = rate.map(|rate| rate.parse().unwrap());
        }
        *w.answer.borrow_mut() = nothing("up-to-date");
        run(&w, async |c| {
            c.order(Command::Check).await.unwrap();
            // The same look again, answered by the repository's own decision.
            let question = w.questions.borrow().last().unwrap().clone();
            *w.answer.borrow_mut() = Some(decided(&question, ways));
            let check = c.order(Command::Check).await.unwrap();
            let plan = c.status.borrow().plan.clone();
            let kinds = |ways: &[Way]| ways.iter().map(|way| way.kind).collect::<Vec<_>>();
            (check.result, plan.map(|plan| (kinds(&plan.ways), kinds(&plan.without_room))))
        })
        .await
    };
    let both = (vec![WayKind::Delta, WayKind::Full], vec![]);
    assert_eq!(ask(1 << 30, None, "512M", "delta full").await, ("available".into(), Some(both)));
    // Neither the disk nor the owner has room for the delta: the whole release is streamed, if that may be fast enough.
    let full = Some((vec![WayKind::Full], vec![WayKind::Delta]));
    for (room, cache) in [(99, "512M"), (1 << 30, "0")] {
        assert_eq!(ask(room, None, cache, "delta full").await, ("available".into(), full.clone()));
        assert_eq!(ask(room, Some("100000"), cache, "delta full").await, ("available".into(), full.clone()));
        assert_eq!(ask(room, Some("99999"), cache, "delta full").await, ("no-space".into(), None));
        assert_eq!(ask(room, None, cache, "delta").await, ("no-space".into(), None));
    }
    let delta = Some((vec![WayKind::Delta], vec![WayKind::Full]));
    assert_eq!(ask(100, Some("99999"), "512M", "delta full").await, ("available".into(), delta));
}

#[tokio::test(start_paused = true)]
async fn what_lies_in_a_directory_needs_no_room() {
    let w = world();
    w.room.set(0);
    *w.answer.borrow_mut() = offers(plan_of("2.0.0"));
    run(&w, async |mut c| {
        let request = Request { id: "i".into(), source: "/media/stick/".into(), ..Request::default() };
        c.order(|reply| Command::Install(request, reply)).await.unwrap();
        c.phase(Phase::Rebooting).await;
    })
    .await;
    assert_eq!(w.questions.borrow().last().unwrap().room, None);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_fails_is_repeated_later_and_later_and_a_network_error_in_a_download_without_end() {
    let w = subscribed(UpdatePolicy::Auto);
    *w.answer.borrow_mut() = Some(Err(Failure::new(Kind::Unreachable, "no network")));
    run(&w, async |mut c| {
        c.status.wait_for(|s| s.check.as_ref().is_some_and(|c| c.failures == 3)).await.unwrap();
        *w.answer.borrow_mut() = offers(plan_of("2.0.0"));
        w.fetches.borrow_mut().extend(vec![(WayKind::Delta, Get::Fails(Kind::Unreachable)); 50]);
        c.phase(Phase::Rebooting).await;
    })
    .await;
    assert_eq!(w.fetched.borrow().iter().filter(|(kind, _)| *kind == WayKind::Full).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn windows_bind_what_the_device_does_by_itself() {
    let w = subscribed(UpdatePolicy::Auto);
    windows(&w, &["05:00-06:00"]);
    run(&w, async |mut c| {
        // The download is not bound unless the configuration says so.
        let status = c.phase(Phase::Downloaded).await;
        assert!(status.message.contains("window, which opens at 1970-01-01T05:00:00Z"), "{}", status.message);
        c.phase(Phase::Rebooting).await;
        assert!((18_000..21_600).contains(&w.now()), "{}", w.now());
    })
    .await;

    let w = subscribed(UpdatePolicy::Auto);
    windows(&w, &["05:00-06:00"]);
    w.rules.borrow_mut().download = UpdateDownload::Window;
    run(&w, async |mut c| {
        c.phase(Phase::Available).await;
        assert_eq!(w.fetched.borrow().len(), 0);
        // A person is above them.
        let request = Request { id: "i".into(), ..Request::default() };
        c.order(|reply| Command::Install(request, reply)).await.unwrap();
        c.phase(Phase::Rebooting).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn on_a_metered_link_a_large_download_waits_for_a_person_and_a_small_one_does_not() {
    for (limit, waits) in [("99", true), ("100", false)] {
        let w = subscribed(UpdatePolicy::Auto);
        {
            let mut rules = w.rules.borrow_mut();
            rules.metered = true;
            rules.metered_limit = limit.parse().unwrap();
        }
        run(&w, async |mut c| {
            if waits {
                let status = c.phase(Phase::Available).await;
                assert!(status.message.contains("metered link"), "{}", status.message);
                tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
                assert_eq!(w.fetched.borrow().len(), 0, "fetched by itself");
                let request = Request { id: "i".into(), ..Request::default() };
                c.order(|reply| Command::Install(request, reply)).await.unwrap();
            }
            c.phase(Phase::Rebooting).await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn on_a_battery_the_install_waits_for_external_power_where_the_owner_says_so() {
    let w = subscribed(UpdatePolicy::Auto);
    w.on_battery.set(true);
    w.rules.borrow_mut().on_battery = UpdateOnBattery::Wait;
    run(&w, async |mut c| {
        let status = c.phase(Phase::Downloaded).await;
        assert!(status.message.contains("external power"), "{}", status.message);
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(w.installs.get(), 0);
        w.on_battery.set(false);
        c.phase(Phase::Rebooting).await;
    })
    .await;

    let w = subscribed(UpdatePolicy::Auto);
    w.on_battery.set(true);
    run(&w, async |mut c| {
        c.phase(Phase::Rebooting).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_download_is_paused_when_its_window_closes_and_goes_on_in_the_next() {
    let w = subscribed(UpdatePolicy::Auto);
    windows(&w, &["00:00-02:00"]);
    w.rules.borrow_mut().download = UpdateDownload::Window;
    w.fetches.borrow_mut().push_back((WayKind::Delta, Get::Hangs));
    run(&w, async |mut c| {
        c.phase(Phase::Downloading).await;
        c.phase(Phase::Available).await;
        assert!(w.now() >= 7_200);
        c.phase(Phase::Downloading).await;
        assert!(w.now() >= 86_400);
        c.phase(Phase::Rebooting).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn applications_put_a_restart_off_for_so_long_and_are_named_when_it_is_over() {
    let w = subscribed(UpdatePolicy::Auto);
    w.vetoes.borrow_mut().push(Veto { who: "pump".into(), why: "is running".into() });
    w.rules.borrow_mut().max_deferral = scalar::Duration::secs(7_200);
    run(&w, async |mut c| {
        let status = c.phase(Phase::Installed).await;
        assert!(status.message.contains("pump (is running)"), "{}", status.message);
        assert_eq!(status.waits, Some(Waits::Applications), "so that others know that it goes on by itself");
        assert_eq!(w.phase(), "ready", "armed while it may not restart");
        let status = c.phase(Phase::Rebooting).await;
        assert_eq!(status.transaction.unwrap().overridden, ["pump (is running)"]);
        assert!(w.now() > 8_000);
    })
    .await;

    let w = subscribed(UpdatePolicy::Auto);
    w.vetoes.borrow_mut().push(Veto { who: "pump".into(), why: "is running".into() });
    run(&w, async |mut c| {
        c.phase(Phase::Installed).await;
        w.vetoes.borrow_mut().clear();
        c.phase(Phase::Rebooting).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn each_stage_can_be_held_put_off_and_cancelled_by_itself() {
    let w = subscribed(UpdatePolicy::Auto);
    w.fetches.borrow_mut().push_back((WayKind::Delta, Get::Hangs));
    run(&w, async |mut c| {
        c.phase(Phase::Downloading).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        c.order(|reply| Command::SetHold(Hold::Download, reply)).await.unwrap();
        c.phase(Phase::Available).await;
        let at = w.now() + 5_000;
        c.order(|reply| Command::Schedule(Stage::Install, at, reply)).await.unwrap();
        c.order(|reply| Command::SetHold(Hold::Reboot, reply)).await.unwrap();
        let status = c.phase(Phase::Downloaded).await;
        assert_eq!(status.waits, Some(Waits::Conditions));
        let status = c.phase(Phase::Activated).await;
        assert_eq!(status.waits, Some(Waits::Person));
        assert!(w.now() >= at);
        c.order(|reply| Command::SetHold(Hold::None, reply)).await.unwrap();
        c.phase(Phase::Rebooting).await;
        c.order(|reply| Command::SetHold(Hold::Reboot, reply)).await.unwrap();
        c.phase(Phase::Activated).await;
        tokio::time::sleep(Duration::from_secs(86_400)).await;
        assert_eq!(w.reboots.get(), 0);
    })
    .await;

    // Cancel: the look, the download, what waits for its install. Not begun again by itself afterwards.
    let w = subscribed(UpdatePolicy::Manual);
    *w.answer.borrow_mut() = None;
    run(&w, async |mut c| {
        let check = c.order(Command::Check);
        let cancel = async {
            c.status.clone().wait_for(|s| s.phase == Phase::Checking).await.unwrap();
            c.order(Command::Cancel).await.unwrap();
        };
        let (check, ()) = tokio::join!(check, cancel);
        assert_eq!(check.unwrap_err().kind, Kind::Cancelled);
        c.phase(Phase::Idle).await;
    })
    .await;
    for hold in [Hold::Download, Hold::Install, Hold::None] {
        let w = subscribed(UpdatePolicy::Auto);
        w.fetches.borrow_mut().push_back((WayKind::Delta, Get::Hangs));
        run(&w, async |mut c| {
            c.phase(Phase::Downloading).await;
            match hold {
                Hold::None => {}
                Hold::Download => {
                    c.order(|reply| Command::SetHold(hold, reply)).await.unwrap();
                    c.phase(Phase::Available).await;
                }
                _ => {
                    c.order(|reply| Command::SetHold(Hold::Download, reply)).await.unwrap();
                    c.phase(Phase::Available).await;
                    c.order(|reply| Command::SetHold(hold, reply)).await.unwrap();
                    c.phase(Phase::Downloaded).await;
                }
            }
            c.order(Command::Cancel).await.unwrap();
            let status = c.status.wait_for(|s| s.history.len() == 1).await.unwrap().clone();
            assert_eq!(status.history[0].result, Outcome::Cancelled);
            tokio::time::sleep(Duration::from_secs(3 * 86_400)).await;
            assert_eq!((c.status.borrow().history.len(), w.installs.get()), (1, 0), "{hold:?}: begun again");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_withdrawn_or_replaced_while_it_waits_is_not_installed() {
    let w = subscribed(UpdatePolicy::Auto);
    windows(&w, &["12:00-13:00"]);
    run(&w, async |mut c| {
        c.phase(Phase::Downloaded).await;
        *w.answer.borrow_mut() = nothing("halted");
        let entry = c.end().await;
        assert_eq!((entry.result, entry.why.unwrap().kind), (Outcome::Cancelled, Kind::Withdrawn));
        *w.answer.borrow_mut() = offers(plan_of("3.0.0"));
        c.phase(Phase::Downloaded).await;
        *w.answer.borrow_mut() = offers(plan_of("2.0.0"));
        c.status.wait_for(|s| s.history.len() == 2).await.unwrap();
        let tx = c.phase(Phase::Rebooting).await.transaction.unwrap();
        assert_eq!(tx.known_release().unwrap().version, "2.0.0");
    })
    .await;
    assert_eq!(w.installs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn power_cuts_in_the_new_phases_lose_nothing() {
    // In the download: it goes on from the cache, at once, and counts nothing against it.
    let w = subscribed(UpdatePolicy::Auto);
    for _ in 0..30 {
        w.fetches.borrow_mut().push_back((WayKind::Delta, Get::Hangs));
        run(&w, async |mut c| drop(c.phase(Phase::Downloading).await)).await;
        w.boots(Slot::A, ResetReason::Power);
        w.is_healthy();
    }
    run(&w, async |mut c| drop(c.phase(Phase::Rebooting).await)).await;
    assert_eq!(w.forgotten.get(), 1, "the cache was emptied in between");

    // Waiting for a person before the download, and before the install; after the step to the next way.
    for (hold, phase) in [(Hold::Download, Phase::Available), (Hold::Install, Phase::Downloaded)] {
        let w = subscribed(UpdatePolicy::Check);
        w.fetches.borrow_mut().push_back((WayKind::Delta, Get::Fails(Kind::Corrupt)));
        run(&w, async |mut c| {
            c.phase(Phase::Available).await;
            let request = Request { id: "i".into(), hold, ..Request::default() };
            c.order(|reply| Command::Install(request, reply)).await.unwrap();
            c.status.wait_for(|s| s.phase == phase && s.transaction.is_some()).await.unwrap();
        })
        .await;
        w.boots(Slot::A, ResetReason::Power);
        *w.answer.borrow_mut() = nothing("up-to-date");
        run(&w, async |mut c| {
            c.status.wait_for(|s| s.phase == phase && s.transaction.is_some()).await.unwrap();
            tokio::time::sleep(Duration::from_secs(86_400)).await;
            assert_eq!((w.installs.get(), c.status.borrow().phase), (0, phase));
            let request = Request { id: "x".into(), ..Request::default() };
            assert_eq!(c.order(|reply| Command::Install(request, reply)).await.unwrap(), "i");
            c.phase(Phase::Rebooting).await;
        })
        .await;
        assert_eq!(*w.sources.borrow(), ["http://127.0.0.1:1/full"], "{hold:?}");
    }

    // In the look: the next start looks again.
    let w = subscribed(UpdatePolicy::Auto);
    *w.answer.borrow_mut() = None;
    run(&w, async |mut c| drop(c.phase(Phase::Checking).await)).await;
    w.boots(Slot::A, ResetReason::Power);
    *w.answer.borrow_mut() = offers(plan_of("2.0.0"));
    run(&w, async |mut c| drop(c.phase(Phase::Rebooting).await)).await;

    // While RAUC writes: over again, from the same way.
    let w = subscribed(UpdatePolicy::Auto);
    w.writes.borrow_mut().push_back(Write::Hangs);
    run(&w, async |mut c| {
        c.status.wait_for(|s| s.progress.percent == 42).await.unwrap();
    })
    .await;
    w.boots(Slot::A, ResetReason::Power);
    run(&w, async |mut c| drop(c.phase(Phase::Rebooting).await)).await;
    assert_eq!(*w.sources.borrow(), ["http://127.0.0.1:1/delta", "http://127.0.0.1:1/delta"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_spent_before_a_power_cut_is_counted() {
    let w = subscribed(UpdatePolicy::Auto);
    for (seconds, kept) in [(10, 0), (70, 7), (130, 14)] {
        w.fetches.borrow_mut().push_back((WayKind::Delta, Get::Hangs));
        run(&w, async |mut c| {
            let before = c.phase(Phase::Downloading).await.transaction.unwrap().spent;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            assert_eq!(c.status.borrow().transaction.as_ref().unwrap().spent.fetched, kept);
            assert!(before.fetched + 7 >= kept, "counted twice");
        })
        .await;
        w.boots(Slot::A, ResetReason::Power);
        w.is_healthy();
    }
    run(&w, async |mut c| {
        let spent = c.phase(Phase::Rebooting).await.transaction.unwrap().spent;
        // Twice kept, then the download and the install that went through.
        assert_eq!(spent.fetched, 14 + 14);
        assert!(spent.download_s >= 120, "{spent:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_in_the_middle_of_a_streamed_install_is_waited_out() {
    let w = world();
    w.room.set(0);
    w.writes.borrow_mut().extend(vec![Write::Fails(Kind::ReadFailed); 30]);
    *w.complaint.borrow_mut() = Some(Failure::new(Kind::Unreachable, "the network is away"));
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        let status = c.phase(Phase::WaitingToRetry).await;
        assert!(status.message.contains("the network is away"), "{}", status.message);
        c.phase(Phase::Installed).await;
    })
    .await;
    assert_eq!(w.installs.get(), 31);
    assert!(!w.fetched.borrow().contains(&(WayKind::Plain, true)), "there was no room to fetch it");
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_gave_up_is_fetched_before_rauc_is_asked_again() {
    // The proxy was in the middle of one more try, with nothing to complain of, each time.
    let w = world();
    w.writes.borrow_mut().extend([Write::TimesOut, Write::TimesOut]);
    w.held.set(Duration::from_secs(250));
    run(&w, async |mut c| {
        c.install(Hold::Activate, false).await.unwrap();
        c.status.wait_for(|s| s.message.contains("is fetched first")).await.unwrap();
        c.phase(Phase::WaitingToRetry).await;
        c.phase(Phase::Downloading).await;
        w.held.set(Duration::from_secs(250));
        let status = c.phase(Phase::Installed).await;
        let tx = status.transaction.unwrap();
        assert_eq!((tx.broken_reads, tx.failed_ways.len()), (0, 0), "an outage was held against the way");
    })
    .await;
    assert_eq!(w.installs.get(), 3);
    let plain = |downloaded| (WayKind::Plain, downloaded);
    assert_eq!(w.fetched.borrow()[..3], [plain(false), plain(false), plain(true)]);
}

#[tokio::test(start_paused = true)]
async fn what_would_keep_rauc_waiting_is_fetched_first_or_refused() {
    let bundle = || Plan { ways: vec![way(WayKind::Bundle, 10_000)], ..plan_of("2.0.0") };
    let first = |w: &W| w.fetched.borrow().contains(&(WayKind::Bundle, true));
    let goes = async |w: &W| {
        *w.answer.borrow_mut() = offers(bundle());
        run(w, async |mut c| drop(c.phase(Phase::Rebooting).await)).await;
    };
    let slow = |w: &W, rate: &str| w.rules.borrow_mut().rate_limit = Some(rate.parse().unwrap());
    // A device that is quick enough streams.
    let w = subscribed(UpdatePolicy::Auto);
    slow(&w, "100000");
    goes(&w).await;
    assert!(!first(&w));
    // A low limit, and a window that might close in the middle, do not let RAUC wait.
    let w = subscribed(UpdatePolicy::Auto);
    slow(&w, "99999");
    goes(&w).await;
    assert!(first(&w));
    let w = subscribed(UpdatePolicy::Auto);
    windows(&w, &["00:00-23:59"]);
    w.rules.borrow_mut().download = UpdateDownload::Window;
    goes(&w).await;
    assert!(first(&w));
    // Where it fits nowhere it is refused, with what to do, before RAUC is asked.
    let w = subscribed(UpdatePolicy::Auto);
    slow(&w, "99999");
    w.room.set(9_999);
    *w.answer.borrow_mut() = offers(bundle());
    let why = run(&w, async |mut c| c.end().await).await.why.unwrap();
    assert_eq!((why.kind, w.installs.get()), (Kind::NoSpace, 0), "{why}");
    let hint = why.hint.unwrap();
    assert!(hint.contains("update.cache") && hint.contains("update.rate_limit to 100000"), "{hint}");
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_a_repository() {
    let w = world();
    *w.answer.borrow_mut() = nothing("below-floor");
    run(&w, async |mut c| {
        let request = || Request { id: "i".into(), source: "/media/stick/".into(), ..Request::default() };
        assert_eq!(c.order(|r| Command::Install(request(), r)).await.unwrap_err().message, "below-floor");
        *w.answer.borrow_mut() = offers(plan_of("2.0.0"));
        c.order(|r| Command::Install(request(), r)).await.unwrap();
        assert_eq!(w.questions.borrow().last().unwrap().place, Place::Dir("/media/stick/".into()));
        c.phase(Phase::Rebooting).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_queued_after_the_end_and_never_before() {
    let w = subscribed(UpdatePolicy::Auto);
    w.rules.borrow_mut().report_url = "https://fleet/report".parse().ok();
    run(&w, async |mut c| drop(c.phase(Phase::Rebooting).await)).await;
    let store = Store::open(w.dir.path()).unwrap();
    assert_eq!(store.reports().unwrap().len(), 0);
    w.boots(Slot::B, ResetReason::Clean);
    w.is_healthy();
    run(&w, async |mut c| {
        c.phase(Phase::Trial).await;
        assert_eq!(store.reports().unwrap().len(), 0, "reported before the commit");
        World::apply(&w, Event::Commit { boot_id: w.boot_id() }).unwrap();
        c.end().await;
    })
    .await;
    let report = store.reports().unwrap().pop().unwrap();
    assert_eq!((report["result"].as_str(), report["way"].as_str()), (Some("committed"), Some("delta")));
    assert_eq!(report["release"]["manifest_hash"], HASH);
    assert_eq!(report["spent"]["fetched"], 14);
}

#[tokio::test(start_paused = true)]
async fn what_arrives_must_be_what_the_repository_promised() {
    let w = subscribed(UpdatePolicy::Auto);
    *w.answer.borrow_mut() = offers(plan_of("3.0.0"));
    let entry = run(&w, async |mut c| c.end().await).await;
    assert_eq!(
        (entry.result, entry.why.unwrap().kind, w.installs.get()),
        (Outcome::Refused, Kind::Corrupt, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn the_policy_says_what_may_happen_when() {
    let w = subscribed(UpdatePolicy::Auto);
    windows(&w, &["05:00-06:00 Mars/Base"]);
    w.vetoes.borrow_mut().push(Veto { who: "pump".into(), why: "x".into() });
    run(&w, async |c| {
        let policy = c.order(Command::Policy).await.unwrap();
        assert_eq!(
            (policy.policy.as_str(), policy.window_open, policy.window_changes),
            ("auto", false, Some(18_000))
        );
        assert_eq!((policy.complaints.len(), policy.vetoes.len()), (1, 1));
    })
    .await;
}

mod random {
    //! Any orders, failures, restarts and power cuts in any order.

    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u32),
        Order(u8),
        SetHold(u8),
        Restart,
        PowerCut,
        Breaks(u8),
        Veto(bool),
        Offer(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1_u32..20_000).prop_map(Step::Wait),
            2 => (0_u8..4).prop_map(Step::Order),
            1 => (0_u8..5).prop_map(Step::SetHold),
            1 => Just(Step::Restart),
            1 => Just(Step::PowerCut),
            1 => (0_u8..6).prop_map(Step::Breaks),
            1 => any::<bool>().prop_map(Step::Veto),
            1 => (0_u8..3).prop_map(Step::Offer),
        ];
        proptest::collection::vec(step, 1..25)
    }

    fn hold(n: u8) -> Hold {
        [Hold::None, Hold::Download, Hold::Install, Hold::Activate, Hold::Reboot][usize::from(n % 5)]
    }

    async fn order(c: &Client, n: u8) {
        let (reply, answer) = oneshot::channel();
        let command = match n {
            0 => Command::Check(drop_into(reply)),
            1 => {
                let (reply, _) = oneshot::channel();
                Command::Cancel(reply)
            }
            2 => {
                let (reply, _) = oneshot::channel();
                Command::Activate(reply)
            }
            _ => {
                let (reply, _) = oneshot::channel();
                Command::Reboot(reply)
            }
        };
        c.commands.send(command).await.unwrap();
        drop(answer);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    fn drop_into<T>(_: oneshot::Sender<Result<(), Failure>>) -> oneshot::Sender<Result<T, Failure>> {
        oneshot::channel().0
    }

    fn act(w: &W, step: &Step) {
        match step {
            Step::Breaks(n) => {
                let kind = [Kind::Corrupt, Kind::Unreachable, Kind::ReadFailed][usize::from(n % 3)];
                if *n < 3 {
                    w.writes.borrow_mut().push_back(Write::Fails(kind));
                } else {
                    w.fetches.borrow_mut().push_back((WayKind::Delta, Get::Fails(kind)));
                }
            }
            Step::Veto(true) => w.vetoes.borrow_mut().push(Veto { who: "a".into(), why: "b".into() }),
            Step::Veto(false) => w.vetoes.borrow_mut().clear(),
            Step::Offer(n) => {
                *w.answer.borrow_mut() = match n {
                    0 => offers(plan_of("2.0.0")),
                    1 => nothing("halted"),
                    _ => Some(Err(Failure::new(Kind::Unreachable, "x"))),
                };
            }
            _ => {}
        }
    }

    /// Runs the engine over the steps; every start is a start of the service.
    async fn live(steps: &[Step]) -> W {
        let w = subscribed(UpdatePolicy::Auto);
        windows(&w, &["05:00-09:00"]);
        let mut rest = steps;
        // Activate and Reboot by hand are a person's; so is what they touch.
        let mut person = false;
        loop {
            let used = run(&w, async |c| {
                for (n, step) in rest.iter().enumerate() {
                    let before = w.installs.get();
                    match step {
                        Step::Wait(s) => {
                            for _ in 0..s.div_ceil(600) {
                                tokio::time::sleep(Duration::from_secs(600)).await;
                            }
                        }
                        Step::Order(n) => {
                            person = person || *n >= 2;
                            order(&c, *n).await;
                        }
                        Step::SetHold(n) => {
                            let (reply, _) = oneshot::channel();
                            c.commands.send(Command::SetHold(hold(*n), reply)).await.unwrap();
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                        Step::Restart | Step::PowerCut => return n + 1,
                        other => act(&w, other),
                    }
                    if w.installs.get() > before && !person {
                        let opened = w.opened.borrow();
                        for at in opened.iter() {
                            assert!(
                                (5 * 3600..9 * 3600).contains(&(at % 86_400)),
                                "wrote outside the window: {at}"
                            );
                        }
                    }
                    let early = c.status.borrow().history.iter().any(|e| e.result == Outcome::Committed);
                    assert!(!early, "success without a commit");
                    if w.reboots.get() > 0 {
                        return rest.len();
                    }
                }
                rest.len()
            })
            .await;
            let cut = matches!(rest.get(used.saturating_sub(1)), Some(Step::PowerCut));
            rest = &rest[used..];
            if rest.is_empty() || w.reboots.get() > 0 {
                return w;
            }
            if cut {
                let next = w.record.borrow().selection().next;
                w.boots(next.unwrap_or(Slot::A), ResetReason::Power);
                if w.slot() == Slot::B {
                    return w;
                }
                w.is_healthy();
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn it_never_writes_outside_a_window_never_boasts_and_always_ends(steps in steps()) {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let w = live(&steps).await;
                if w.slot() == Slot::B || w.reboots.get() > 0 {
                    return;
                }
                // Nothing stands in the way any more: it comes to an end, whatever went before.
                w.vetoes.borrow_mut().clear();
                w.writes.borrow_mut().clear();
                w.fetches.borrow_mut().clear();
                *w.answer.borrow_mut() = offers(plan_of("2.0.0"));
                run(&w, async |c| {
                    let (reply, _) = oneshot::channel();
                    c.commands.send(Command::SetHold(Hold::None, reply)).await.unwrap();
                    for _ in 0..1_000 {
                        tokio::time::sleep(Duration::from_secs(600)).await;
                        let status = c.status.borrow().clone();
                        let taken_back = status.history.iter().any(|e| {
                            e.result == Outcome::Cancelled
                                && e.why.as_ref().is_some_and(|why| why.kind == Kind::Cancelled)
                        });
                        if w.reboots.get() > 0 || (taken_back && status.transaction.is_none()) {
                            return;
                        }
                    }
                    panic!("it never ended: {:?} {}", c.status.borrow().phase, c.status.borrow().message);
                })
                .await;
            });
        }
    }
}

const STICK: &str = "/run/rustiot/media/sda1/rustiot-repository";

/// The plan of a release on the stick.
fn on_stick() -> Plan {
    let mut plan = plan_of("2.0.0");
    for way in &mut plan.ways {
        way.urls = vec![format!("file://{STICK}/targets/{}", way.kind.as_str())];
    }
    plan
}

async fn plug(c: &Client, present: bool) -> Result<Check, Failure> {
    c.order(|reply| Command::Medium(STICK.into(), present, reply)).await
}

#[tokio::test(start_paused = true)]
async fn a_medium_is_looked_at_under_the_policy_and_needed_until_it_is_written() {
    let w = world();
    w.rules.borrow_mut().policy = UpdatePolicy::Auto;
    *w.answer.borrow_mut() = offers(on_stick());
    // Nothing of it goes into the cache.
    w.room.set(0);
    run(&w, async |mut c| {
        assert_eq!(plug(&c, true).await.unwrap().result, "available");
        let question = w.questions.borrow().last().unwrap().clone();
        assert_eq!((question.place, question.wanted), (Place::Dir(STICK.into()), None));
        let status = c.phase(Phase::Downloading).await;
        assert_eq!((status.medium.as_str(), status.transaction.unwrap().by), (STICK, By::Policy));
        assert_eq!(c.phase(Phase::Rebooting).await.medium, "", "it is written: the medium can go");
    })
    .await;
    assert_eq!(w.fetched.borrow()[1], (WayKind::Delta, true), "compared before it is written");
}

#[tokio::test(start_paused = true)]
async fn a_medium_is_only_named_where_a_person_decides_and_refused_where_it_is_off() {
    let w = world();
    *w.answer.borrow_mut() = offers(on_stick());
    run(&w, async |mut c| {
        let check = plug(&c, true).await.unwrap();
        assert_eq!((check.result.as_str(), w.questions.borrow().len()), ("manual", 0));
        assert!(check.message.contains(STICK), "{check:?}");
        w.rules.borrow_mut().policy = UpdatePolicy::Check;
        assert_eq!(plug(&c, true).await.unwrap().version.as_deref(), Some("2.0.0"));
        assert_eq!(c.phase(Phase::Available).await.medium, STICK);
        plug(&c, false).await.unwrap();
        assert_eq!(c.phase(Phase::Idle).await.medium, "");
        w.rules.borrow_mut().media = false;
        assert_eq!(plug(&c, true).await.unwrap_err().kind, Kind::NotOffered);
        for outside in ["/data/x", "/run/rustiot/media/", "/run/rustiot/media/../x", "relative"] {
            let answer = c.order(|reply| Command::Medium(outside.into(), true, reply)).await;
            assert_eq!(answer.unwrap_err().kind, Kind::Usage, "{outside}");
        }
    })
    .await;
    assert_eq!(w.installs.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_medium_that_is_pulled_out_ends_it_with_the_reason_and_begins_again_when_it_is_back() {
    let w = world();
    w.rules.borrow_mut().policy = UpdatePolicy::Auto;
    *w.answer.borrow_mut() = offers(on_stick());
    w.writes.borrow_mut().push_back(Write::Fails(Kind::Installer));
    *w.complaint.borrow_mut() = Some(Failure::new(Kind::Removed, "it was pulled out"));
    run(&w, async |mut c| {
        plug(&c, true).await.unwrap();
        let entry = c.end().await;
        assert_eq!((entry.result, entry.why.unwrap().kind), (Outcome::Failed, Kind::Removed));
        assert!(entry.failed_ways.is_empty(), "no other way of the same medium is tried");
        assert_eq!(w.phase(), "idle");
        *w.complaint.borrow_mut() = None;
        plug(&c, true).await.unwrap();
        c.phase(Phase::Rebooting).await;
    })
    .await;
    assert_eq!((w.installs.get(), w.phase()), (2, "armed"));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_network_comes_from_the_medium_and_what_a_person_began_is_not_disturbed() {
    let w = subscribed(UpdatePolicy::Auto);
    w.rules.borrow_mut().metered = true;
    w.rules.borrow_mut().metered_limit = "1K".parse().unwrap();
    let mut dear = plan_of("2.0.0");
    dear.ways[0].bytes = 1 << 20;
    *w.answer.borrow_mut() = offers(dear);
    run(&w, async |mut c| {
        c.phase(Phase::Available).await;
        *w.answer.borrow_mut() = offers(on_stick());
        plug(&c, true).await.unwrap();
        c.phase(Phase::Downloading).await;
        assert_eq!(plug(&c, true).await.unwrap_err().kind, Kind::Busy);
        c.phase(Phase::Rebooting).await;
    })
    .await;
    let store = Store::open(w.dir.path()).unwrap();
    let history = store.history().unwrap();
    assert_eq!(history[0].why.as_ref().unwrap().kind, Kind::Withdrawn);
}

#[tokio::test(start_paused = true)]
async fn a_person_names_another_repository_and_a_version_of_it() {
    let w = world();
    *w.answer.borrow_mut() = offers(plan_of("2.0.0"));
    run(&w, async |mut c| {
        let request = |source: &str, repository| Request {
            id: "i".into(),
            source: source.into(),
            repository,
            version: Some("2.0.0".into()),
            ..Request::default()
        };
        let bundle = c.order(|r| Command::Install(request(URL, false), r)).await.unwrap_err();
        assert_eq!(bundle.kind, Kind::Usage, "{bundle}");
        c.order(|r| Command::Install(request("http://127.0.0.1:1/", true), r)).await.unwrap();
        let question = w.questions.borrow().last().unwrap().clone();
        assert_eq!(question.place, Place::Urls(vec!["http://127.0.0.1:1/".into()]));
        assert_eq!((question.wanted, question.version), (Some(false), "2.0.0".parse().ok()));
        c.phase(Phase::Rebooting).await;
    })
    .await;
}
