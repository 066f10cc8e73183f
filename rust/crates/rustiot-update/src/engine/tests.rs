//! The engine against the real boot policy, with RAUC, the disk and the machine as fakes. Time is tokio's, paused.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use rustiot_boot::{Effect, Record, ResetReason, step};

use super::*;
use crate::bundle::{Image, Manifest};

const URL: &str = "http://h/2.raucb";
const HASH: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// What RAUC does with the next install order.
#[derive(Clone)]
enum Write {
    Works,
    Fails(Kind),
    /// Starts to write and never ends.
    Hangs,
    /// Refuses before it asks the backend.
    FailsBeforeWriting,
}

struct World {
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
    reboots: Cell<u32>,
    manual: Cell<bool>,
    head: Cell<Option<[u8; 4]>>,
    dir: tempfile::TempDir,
}

type W = Rc<World>;

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

fn world() -> W {
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
        reboots: Cell::new(0),
        manual: Cell::new(false),
        head: Cell::new(None),
        dir: tempfile::tempdir().unwrap(),
    };
    world.boots(Slot::A, ResetReason::Clean);
    Rc::new(world)
}

impl World {
    fn apply(&self, event: Event) -> Result<Vec<Effect>, Failure> {
        let (next, effects) =
            step(&self.record.borrow(), event).map_err(|e| Failure::new(Kind::NotNow, e.to_string()))?;
        *self.record.borrow_mut() = next;
        Ok(effects)
    }

    fn boot_id(&self) -> String {
        format!("boot-{}", self.boot.get())
    }

    fn boots(&self, slot: Slot, reset: ResetReason) {
        self.boot.set(self.boot.get() + 1);
        self.apply(Event::Booted { slot, boot_id: self.boot_id(), reset, pstore_tail: vec![] }).unwrap();
    }

    /// The gate passes and the soak ends in this boot.
    fn is_healthy(&self) {
        self.apply(Event::GatePassed { boot_id: self.boot_id() }).unwrap();
        self.apply(Event::Soaked { boot_id: self.boot_id(), floor: None }).unwrap();
    }

    /// The running slot.
    fn slot(&self) -> Slot {
        self.record.borrow().last_boot().unwrap().slot
    }

    fn phase(&self) -> &'static str {
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
        let write = self.writes.borrow_mut().pop_front().unwrap_or(Write::Works);
        if matches!(write, Write::FailsBeforeWriting) {
            return Err(Failure::new(Kind::Installer, "no"));
        }
        self.apply(Event::WriteStarted { slot: !self.slot() })?;
        progress(42, "Copying image to root.1");
        match write {
            Write::Works => Ok(()),
            Write::Fails(kind) => Err(Failure::new(kind, "it broke")),
            Write::Hangs | Write::FailsBeforeWriting => std::future::pending().await,
        }
    }

    async fn busy(&self) -> Result<bool, Failure> {
        Ok(self.busy.get())
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

    fn reboots_itself(&self) -> bool {
        !self.manual.get()
    }

    fn now(&self) -> u64 {
        1_000
    }

    fn head(&self, _: &str) -> Option<[u8; 4]> {
        self.head.get()
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
        let request = Request { id: "id-1".into(), source: URL.into(), hold, force };
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
    let here = Here { slot: world.slot(), boot_id: world.boot_id() };
    let policy =
        Policy { grace: Duration::from_secs(5), compatible: "rustiot-x".into(), floor: Some("0.5.0".into()) };
    let store = Store::open(world.dir.path()).unwrap();
    let w = || Rc::clone(world);
    let engine = Engine::new(w(), w(), w(), w(), store, here, policy, sender);
    tokio::select! {
        () = engine.run(receiver) => panic!("the engine ended"),
        result = scenario(Client { commands, status }) => result,
    }
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
async fn a_cancel_that_cannot_stop_rauc_lets_it_finish() {
    let w = world();
    w.writes.borrow_mut().push_back(Write::Hangs);
    w.abort_fails.set(true);
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
            let request =
                Request { id: "i".into(), source: "/x.raucb".into(), hold: Hold::None, force: false };
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
        for source in ["", "x.raucb", "ftp://h/x", "file:///x", "/a\nb", &format!("/{}", "x".repeat(5000))] {
            let request = Request { id: "i".into(), source: source.into(), hold: Hold::None, force: false };
            let answer = c.order(|reply| Command::Install(request, reply)).await;
            assert_eq!(answer.unwrap_err().kind, Kind::Usage, "{source}");
        }
        assert_eq!(c.status.borrow().phase, Phase::Idle);
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
