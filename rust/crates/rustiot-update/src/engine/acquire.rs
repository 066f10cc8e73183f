//! The engine's part before anything is written: looking at the repository, choosing what to begin, fetching, going
//! from one way to the next.

use rustiot_config::UpdatePolicy;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::plan::Way;
use crate::ports::{Found, Limits, NoPlan, Question};

/// How often the configuration is looked at while nothing is due.
const RULES_EVERY: Duration = Duration::from_secs(300);
/// A look that was missed (the device was off) is made up for within so long after the start.
const MADE_UP_WITHIN: Duration = Duration::from_secs(900);
/// Pause after a look that failed; doubled each time, up to the interval.
const FAILED_PAUSE: Duration = Duration::from_secs(300);
/// What an attempt has cost is written so often while it runs.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// Bytes a second below which nothing is streamed: the kernel may ask for megabytes at once and waits 300 s for each of
/// them.
const STREAM_RATE: u64 = 100_000;
/// A release that was begun by itself and failed is not begun again by itself for so long, seconds.
const BEGIN_AGAIN: u64 = 86_400;

/// When the repository is looked at.
pub(super) struct Polling {
    /// Repository and interval, as far as the device looks by itself.
    key: Option<(String, Duration)>,
    due: Option<Instant>,
    /// When the engine wakes next for it.
    pub wake: Instant,
}

impl Default for Polling {
    fn default() -> Self {
        Self { key: None, due: None, wake: Instant::now() }
    }
}

impl Polling {
    /// When the next look is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl<I: Installer, L: Ledger, D: Disk, M: Machine, R: Repository, F: Fetcher> Engine<I, L, D, M, R, F> {
    // --- the repository ---------------------------------------------------------------------------------------

    /// Follows the configuration: whether, where and when to look.
    pub(super) fn plan_check(&mut self) {
        let update = self.ports.machine.rules().update;
        let looks = update.policy != UpdatePolicy::Manual;
        let key = update.source.filter(|_| looks).map(|url| (url.to_string(), update.check_every.get()));
        if key != self.polling.key {
            self.polling.due = key.as_ref().map(|(source, every)| self.first_look(source, *every));
            self.polling.key = key;
        }
        let now = Instant::now();
        let wake = self.polling.due.unwrap_or(now + RULES_EVERY);
        self.polling.wake = wake.min(now + RULES_EVERY);
    }

    /// After a start: at the device's own instant, and soon if one was missed.
    fn first_look(&self, source: &str, every: Duration) -> Instant {
        let now = self.ports.machine.now();
        let fresh = self.status.borrow().check.as_ref().is_some_and(|last| {
            last.source == source && now >= last.at && now.saturating_sub(last.at) < every.as_secs()
        });
        self.own_instant(if fresh { every } else { every.min(MADE_UP_WITHIN) })
    }

    fn own_instant(&self, interval: Duration) -> Instant {
        let now = Duration::from_secs(self.ports.machine.now());
        Instant::now() + self.ports.repository.wait(interval, now)
    }

    /// Woken: looks if it is time, and if nothing is under way that a look could not change.
    pub(super) async fn poll(&mut self, commands: &mut mpsc::Receiver<Command>) {
        if self.polling.due.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let Some((_, every)) = self.polling.key.clone() else { return };
        if !self.may_change() || self.leaving {
            self.polling.due = Some(self.own_instant(every));
            return;
        }
        if let Err(failure) = self.look(None, None, commands).await {
            eprintln!("{failure}: {}", failure.chain.join(": "));
        }
    }

    /// Nothing is under way, or only something that waits to begin and that nobody asked for.
    fn may_change(&self) -> bool {
        match (&*self.tx.borrow(), self.phase()) {
            (None, Phase::Idle | Phase::Available | Phase::Checking) => true,
            (Some(tx), Phase::Available | Phase::Downloaded) => tx.by == By::Policy && tx.release.is_none(),
            _ => false,
        }
    }

    pub(super) async fn check_by_hand(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Check, Failure> {
        if self.tx.borrow().is_some() && !self.may_change() {
            return Err(self.not_now("look for updates", self.phase()));
        }
        self.look(None, None, commands).await
    }

    /// Looks at the configured repository, remembers what it says, and begins what the policy wants.
    async fn look(
        &mut self,
        wanted: Option<bool>,
        version: Option<semver::Version>,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Check, Failure> {
        let update = self.ports.machine.rules().update;
        let Some(source) = update.source.as_ref().map(ToString::to_string) else {
            if update.hawkbit.url.is_some() {
                return Err(Failure::new(
                    Kind::NothingNew,
                    "releases come from hawkBit, which is being asked",
                )
                .hint("`rustiot update status` shows what it wants"));
            }
            return Err(Failure::new(Kind::NothingNew, "the configuration names no repository to look in")
                .hint(
                    "set update.source in rustiot.toml, or name a file or URL: `rustiot update install …`",
                ));
        };
        let every = update.check_every.get();
        let mut urls = vec![source.clone()];
        urls.extend(update.mirrors.iter().map(ToString::to_string));
        let found = self.ask(Place::Urls(urls), wanted, version, commands).await;
        let now = self.ports.machine.now();
        let failures = self.status.borrow().check.as_ref().map_or(0, |last| last.failures);
        let mut check = Check {
            at: now,
            source: source.clone(),
            result: "failed".into(),
            version: None,
            message: String::new(),
            bytes: 0,
            failures: 0,
        };
        self.polling.due = self.polling.key.is_some().then(|| self.own_instant(every));
        let found = match found {
            Ok(found) => found,
            Err(failure) => {
                check.message = failure.to_string();
                check.failures = failures.saturating_add(1);
                if self.polling.key.is_some() && failure.kind != Kind::Cancelled {
                    let pause = FAILED_PAUSE.saturating_mul(1 << failures.min(10)).min(every);
                    self.polling.due = Some(self.own_instant(pause));
                }
                self.remember_check(check);
                self.settle().await;
                return Err(failure);
            }
        };
        check.bytes = found.bytes;
        match found.answer {
            Ok(plan) => {
                check.version = plan.version().map(str::to_owned);
                let version = check.version.clone().unwrap_or_default();
                (check.result, check.message) = ("available".into(), format!("{version} is available"));
                self.remember_check(check.clone());
                self.offered(plan, &source, wanted).await;
            }
            Err(no) => {
                let NoPlan { word, version, failure, retry_at } = *no;
                (check.result, check.version, check.message) = (word, version, failure.to_string());
                self.remember_check(check.clone());
                if let (Some(at), Some(due)) = (retry_at, self.polling.due) {
                    // Spread as any other look: a wave must not come at one instant.
                    let left = Duration::from_secs(at.saturating_sub(now));
                    let spread =
                        self.ports.repository.wait(every.min(MADE_UP_WITHIN), Duration::from_secs(at));
                    self.polling.due = Some(due.min(Instant::now() + left + spread));
                }
                self.not_offered(failure).await;
            }
        }
        Ok(check)
    }

    fn remember_check(&self, check: Check) {
        if let Err(failure) = self.store.set_check(&check) {
            eprintln!("{failure}: {}", failure.chain.join(": "));
        }
        self.status.send_modify(|s| s.check = Some(check));
    }

    /// Asks the repository, and answers orders meanwhile.
    async fn ask(
        &mut self,
        place: Place,
        wanted: Option<bool>,
        version: Option<semver::Version>,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Found, Failure> {
        let question = Question { version, ..self.question(place, wanted)? };
        self.publish(Phase::Checking, "looking for updates");
        let asking = tokio::time::timeout(CHECK_LIMIT, self.ports.repository.check(&question));
        tokio::pin!(asking);
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Cancel(reply)) => {
                        drop(reply.send(Ok(())));
                        return Err(Failure::new(Kind::Cancelled, "the look at the repository was stopped"));
                    }
                    Some(other) => self.meanwhile(other),
                    None => return Err(Failure::new(Kind::Interrupted, "the update service is shutting down")),
                },
                found = &mut asking => return match found {
                    Ok(found) => found,
                    Err(_) => Err(Failure::new(
                        Kind::Unreachable,
                        format!("the repository did not answer within {} s", CHECK_LIMIT.as_secs()),
                    )
                    .hint("check the network and the server")),
                },
            }
        }
    }

    fn question(&self, place: Place, wanted: Option<bool>) -> Result<Question, Failure> {
        let record = self.ports.ledger.record()?;
        let target = !self.here.slot;
        // What lies in a directory is read where it is.
        let room = matches!(place, Place::Urls(_)).then(|| self.room());
        Ok(Question {
            place,
            room,
            streams: !self.is_slow(),
            running: match record.slot(self.here.slot) {
                SlotState::Valid { release } => Some(release.manifest_hash.clone()),
                _ => None,
            },
            floor: higher(record.floor.as_deref(), self.policy.floor.as_deref()),
            known_bad: record.rejected.iter().map(|bad| bad.release.manifest_hash.clone()).collect(),
            partitions: ["root", "boot"]
                .iter()
                .filter_map(|class| {
                    let bytes = self.ports.disk.capacity(&format!("{class}-{target}"))?;
                    Some(((*class).to_owned(), bytes))
                })
                .collect(),
            labels: self.ports.machine.rules().update.labels.iter().map(ToString::to_string).collect(),
            wanted,
            version: None,
        })
    }

    /// There is a release for this device.
    async fn offered(&mut self, plan: Plan, source: &str, wanted: Option<bool>) {
        let hash = |plan: &Plan| plan.release.as_ref().map(|release| release.manifest_hash.clone());
        let waiting = self.tx().filter(|tx| tx.by == By::Policy && self.may_change_to(tx));
        if let Some(tx) = waiting
            && tx.plan.as_ref().and_then(hash) != hash(&plan)
        {
            let what = format!("{} was replaced by {}", tx.name(), plan.version().unwrap_or("another"));
            self.give_up(Outcome::Cancelled, Failure::new(Kind::Withdrawn, what));
        }
        let auto = self.ports.machine.rules().update.policy == UpdatePolicy::Auto;
        let begins = auto && wanted.is_none() && self.tx.borrow().is_none() && self.may_begin(&plan);
        self.offer = Some((plan.clone(), source.to_owned()));
        if !begins {
            return self.settle().await;
        }
        let request = Request { id: new_id(), source: source.to_owned(), ..Request::default() };
        if let Err(failure) = self.begin(request, Some(plan), By::Policy) {
            self.refuse(failure);
            self.rest("");
        }
    }

    fn may_change_to(&self, tx: &Transaction) -> bool {
        tx.release.is_none() && tx.plan.as_ref().is_some_and(|plan| plan.release.is_some())
    }

    /// There is none, or not any more.
    async fn not_offered(&mut self, failure: Failure) {
        self.offer = None;
        if let Some(tx) = self.tx().filter(|tx| tx.by == By::Policy && self.may_change_to(tx)) {
            let what = format!("{} is not offered any more: {failure}", tx.name());
            self.give_up(Outcome::Cancelled, Failure::new(Kind::Withdrawn, what));
        }
        self.settle().await;
    }

    /// Whether the device may begin with it by itself, after what has become of it before.
    fn may_begin(&self, plan: &Plan) -> bool {
        let now = self.ports.machine.now();
        let status = self.status.borrow();
        let last = status.history.iter().rev().find(|entry| entry.release == plan.release);
        last.is_none_or(|entry| match entry.result {
            // A person took it back: it is a person's to begin again.
            Outcome::Cancelled => entry.why.as_ref().is_some_and(|why| why.kind == Kind::Withdrawn),
            // It is not the release's fault that its medium was pulled out.
            Outcome::Failed if entry.why.as_ref().is_some_and(|why| why.kind == Kind::Removed) => true,
            Outcome::Failed | Outcome::Refused => now.saturating_sub(entry.ended_at) >= BEGIN_AGAIN,
            Outcome::Committed | Outcome::FellBack | Outcome::LateFallback => true,
        })
    }

    // --- orders -----------------------------------------------------------------------------------------------

    /// `Install` without a source: what is available, after a look if nothing is known or the order insists.
    pub(super) async fn accept_available(
        &mut self,
        request: Request,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<String, Failure> {
        let version = wanted_version(&request);
        if self.offer.is_none() || request.force || version.is_some() {
            let check = self.look(Some(request.force), version, commands).await?;
            if self.offer.is_none() {
                return Err(Failure::new(Kind::NothingNew, check.message));
            }
        }
        let Some((plan, source)) = self.offer.clone() else {
            return Err(Failure::new(Kind::NothingNew, "nothing is available"));
        };
        self.begin(Request { source, ..request }, Some(plan), By::Person)
    }

    /// `Install` of a repository that a person names: a directory, or a server that is not the configured one.
    pub(super) async fn accept_repository(
        &mut self,
        place: Place,
        request: Request,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<String, Failure> {
        let found = self.ask(place, Some(request.force), wanted_version(&request), commands).await;
        match found.map(|found| found.answer) {
            Ok(Ok(plan)) => self.begin(request, Some(plan), By::Person),
            Ok(Err(no)) => self.not_from_there(no.failure).await,
            Err(failure) => self.not_from_there(failure).await,
        }
    }

    async fn not_from_there(&mut self, failure: Failure) -> Result<String, Failure> {
        self.refuse(failure.clone());
        self.settle().await;
        Err(failure)
    }

    // --- media ------------------------------------------------------------------------------------------------

    /// A medium with a repository was plugged in: the same look as at the configured one, under the same policy.
    pub(super) async fn medium_is_there(
        &mut self,
        dir: &str,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Check, Failure> {
        if !is_on_medium(dir) {
            return Err(Failure::new(Kind::Usage, format!("{dir:?} is no directory below {MEDIA}")));
        }
        let update = self.ports.machine.rules().update;
        if !update.media {
            return Err(Failure::new(Kind::NotOffered, "media are not looked at (update.media is false)"));
        }
        let mut check = Check {
            at: self.ports.machine.now(),
            source: dir.to_owned(),
            result: "manual".into(),
            version: None,
            message: format!("it waits for `rustiot update install {dir}` (update.policy is manual)"),
            bytes: 0,
            failures: 0,
        };
        if update.policy == UpdatePolicy::Manual {
            return Ok(check);
        }
        if !self.may_change() || self.leaving {
            // Busy, not refused: who asks asks again, and the medium stays where it is.
            let what = format!("a look at {dir} has to wait: the phase is {}", self.phase().as_str());
            return Err(Failure::new(Kind::Busy, what));
        }
        let found = match self.ask(Place::Dir(dir.into()), None, None, commands).await {
            Ok(found) => found,
            Err(failure) => return self.not_from_there(failure).await.and(Ok(check)),
        };
        check.bytes = found.bytes;
        match found.answer {
            Ok(plan) => {
                let version = plan.version().unwrap_or_default().to_owned();
                (check.result, check.message) = ("available".into(), format!("{version} is on the medium"));
                check.version = Some(version.clone());
                if let Some(tx) =
                    self.tx().filter(|tx| self.may_change_to(tx) && !is_on_medium(&tx.request.source))
                {
                    // What waits for the network or its price is here for nothing now.
                    let what = format!("{} comes from a medium instead", tx.name());
                    self.give_up(Outcome::Cancelled, Failure::new(Kind::Withdrawn, what));
                }
                self.status.send_modify(|s| s.check = Some(check.clone()));
                self.offered(plan, dir, None).await;
            }
            Err(no) => {
                let NoPlan { word, version, failure, .. } = *no;
                (check.result, check.version, check.message) = (word, version, failure.to_string());
                if failure.kind != Kind::NothingNew {
                    self.refuse(failure);
                }
                self.status.send_modify(|s| s.check = Some(check.clone()));
                self.settle().await;
            }
        }
        Ok(check)
    }

    /// A medium was pulled out: what was only on offer from it is not any more. What is being read from it fails by
    /// itself, with the reader's reason.
    pub(super) async fn medium_is_gone(&mut self, dir: &str) -> Result<Check, Failure> {
        let message = format!("the medium at {dir} is gone");
        let waits =
            self.tx().filter(|tx| tx.by == By::Policy && tx.request.source == dir && self.may_change());
        if self.offer.as_ref().is_some_and(|(_, source)| source == dir) {
            self.offer = None;
        }
        if let Some(tx) = waits {
            let what = format!("{} was not begun: its medium was pulled out", tx.name());
            self.give_up(Outcome::Cancelled, Failure::new(Kind::Withdrawn, what));
        } else if self.tx.borrow().is_none() {
            self.settle().await;
        }
        let at = self.ports.machine.now();
        let result = "gone".into();
        Ok(Check { at, source: dir.to_owned(), result, version: None, message, bytes: 0, failures: 0 })
    }

    /// `Install` or `Download` while something waits: it goes on, and is the person's from now on.
    pub(super) fn take_over(&mut self, request: &Request) -> Result<String, Failure> {
        self.edit(|tx| {
            (tx.by, tx.request.hold) = (By::Person, request.hold);
            tx.not_before.remove(&Stage::Download);
            if request.hold != Hold::Install {
                tx.not_before.remove(&Stage::Install);
            }
        })?;
        self.publish(Phase::Checking, "going on");
        self.after(Duration::ZERO, Job::Step);
        Ok(self.tx().map(|tx| tx.request.id).unwrap_or_default())
    }

    // --- fetching ---------------------------------------------------------------------------------------------

    /// Bytes that downloads may take.
    fn room(&self) -> u64 {
        self.ports.machine.rules().update.cache.bytes().min(self.ports.fetcher.room())
    }

    fn limits(&self) -> Limits {
        let rate = self.ports.machine.rules().update.rate_limit.map(|rate| rate.bytes());
        Limits { rate, cache: self.room() }
    }

    /// Whether the file of the present way comes into the cache first, or straight into the slot.
    pub(super) fn first_stage(&self, tx: &Transaction) -> Stage {
        let Some(way) = tx.current_way() else { return Stage::Install };
        let fits = way.is_local() || way.len.is_some_and(|len| len <= self.room());
        let asked = matches!(tx.request.hold, Hold::Install | Hold::Download);
        // Whether it fits is found out on the way where nobody knows how long it is.
        let first = !way.is_local() && (fits || way.len.is_none()) && self.streams_badly(tx);
        match way.kind {
            WayKind::Delta => Stage::Download,
            WayKind::Full if fits => Stage::Download,
            WayKind::Bundle | WayKind::Plain if asked || first => Stage::Download,
            WayKind::Full | WayKind::Bundle | WayKind::Plain => Stage::Install,
        }
    }

    /// Whether RAUC might have to wait longer than the kernel does, by what the owner wants.
    fn streams_badly(&self, tx: &Transaction) -> bool {
        let update = self.ports.machine.rules().update;
        let windows = !update.windows.is_empty() && update.download == rustiot_config::UpdateDownload::Window;
        self.is_slow() || (windows && tx.by == By::Policy)
    }

    /// Whether the owner's limit is so low that nothing can be streamed.
    fn is_slow(&self) -> bool {
        self.ports.machine.rules().update.rate_limit.is_some_and(|rate| rate.bytes() < STREAM_RATE)
    }

    /// Refused before RAUC is asked: too slow to be streamed, and no room to fetch it first.
    pub(super) fn may_stream(&self, tx: &Transaction) -> Result<(), Failure> {
        let Some(way) = tx.current_way().filter(|way| !way.is_local()) else { return Ok(()) };
        let (need, have) = (way.len.unwrap_or(0), self.room());
        match self.limits().rate {
            Some(rate) if rate < STREAM_RATE && need > have => Err(Failure::new(
                Kind::NoSpace,
                format!(
                    "the {} has {need} bytes, downloads may take {have}, and at {rate} bytes a second it cannot be \
                     streamed",
                    way.kind.as_str()
                ),
            )
            .hint(format!(
                "make room on the data partition (`df /data`), raise update.cache, or update.rate_limit to {STREAM_RATE} \
                 bytes a second"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether the file of the present way, of `total` bytes if the servers said so, can be fetched before RAUC is asked
    /// again.
    pub(super) fn fills_the_cache(&self, tx: &Transaction, total: u64) -> bool {
        let Some(way) = tx.current_way() else { return false };
        let len = way.len.or((total > 0).then_some(total));
        !way.is_local() && len.is_some_and(|len| len <= self.room())
    }

    /// Refused before the first byte when it cannot fit.
    fn fits(&self, way: &Way) -> Result<(), Failure> {
        let (need, have) = (way.len.unwrap_or(0), self.room());
        if way.is_local() || need <= have {
            return Ok(());
        }
        Err(Failure::new(
            Kind::NoSpace,
            format!("the {} has {need} bytes, downloads may take {have}", way.kind.as_str()),
        )
        .hint("make room on the data partition (`df /data`), or raise update.cache"))
    }

    /// Goes the present way, if it leads over the proxy.
    pub(super) async fn open_session(&mut self, tx: &Transaction) -> Result<(), Failure> {
        self.session = None;
        if let Some(way) = tx.current_way() {
            self.session = Some(self.ports.fetcher.open(way, self.limits()).await?);
        }
        Ok(())
    }

    /// Brings the file of the present way into the cache.
    pub(super) async fn download(&mut self, commands: &mut mpsc::Receiver<Command>) {
        let Some(way) = self.tx().and_then(|tx| tx.current_way().cloned()) else {
            return self.install(commands).await;
        };
        if let Err(failure) = self.fits(&way) {
            return self.next_way(failure);
        }
        let (name, kind) = (self.tx().map(|tx| tx.name().to_owned()).unwrap_or_default(), way.kind.as_str());
        self.publish(Phase::Downloading, &format!("fetching the {kind} to {name}"));
        if let Err(failure) = self.edit(|tx| tx.fetch_tries = tx.fetch_tries.saturating_add(1)) {
            return self.give_up(Outcome::Failed, failure);
        }
        self.begin_count(Stage::Download);
        let limits = self.limits();
        let opened = self.ports.fetcher.open(&way, limits).await;
        let end = match opened {
            Err(failure) => Fetch::Ended(Err(failure)),
            Ok(session) => {
                self.session = Some(session);
                self.fetch(commands, limits).await
            }
        };
        self.end_count();
        self.session = None;
        match end {
            Fetch::Ended(Ok(())) => {
                if let Err(failure) = self.edit(|tx| tx.stage = Stage::Install) {
                    return self.give_up(Outcome::Failed, failure);
                }
                self.after(Duration::ZERO, Job::Step);
            }
            Fetch::Ended(Err(failure)) if failure.kind.is_transient() => {
                let tries = self.tx().map_or(1, |tx| tx.fetch_tries);
                let pause = install_delay(tries);
                let message = format!("{failure}; goes on in {} s", pause.as_secs());
                self.refuse(failure);
                self.publish(Phase::WaitingToRetry, &message);
                self.after(pause, Job::Step);
            }
            Fetch::Ended(Err(failure)) => self.next_way(failure),
            Fetch::Shut => self.after(Duration::ZERO, Job::Step),
            Fetch::Cancelled(reply) => {
                self.give_up(Outcome::Cancelled, Failure::new(Kind::Cancelled, "taken back"));
                drop(reply.send(Ok(())));
            }
            Fetch::Leaving => {}
        }
    }

    async fn fetch(&self, commands: &mut mpsc::Receiver<Command>, mut limits: Limits) -> Fetch {
        let Some(session) = &self.session else { return Fetch::Shut };
        let download = session.download();
        tokio::pin!(download);
        let mut count = tokio::time::interval(COUNT_EVERY);
        count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(GATE_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Cancel(reply)) => return Fetch::Cancelled(reply),
                    Some(other) => {
                        let changes = matches!(other, Command::SetHold(..) | Command::Schedule(..));
                        self.meanwhile(other);
                        if changes && !matches!(self.gate(Stage::Download), Gate::Open) {
                            return Fetch::Shut;
                        }
                    }
                    None => return Fetch::Leaving,
                },
                result = &mut download => return Fetch::Ended(result),
                _ = look.tick() => {
                    if !matches!(self.gate(Stage::Download), Gate::Open) {
                        return Fetch::Shut;
                    }
                    // Room shrinks by what the download itself has taken; only the rate follows the configuration.
                    let rate = self.limits().rate;
                    if rate != limits.rate {
                        limits.rate = rate;
                        session.limit(limits);
                    }
                }
                _ = count.tick() => {
                    self.show_transfer();
                    self.keep_count();
                    if let Some(met) = session.complaint() {
                        self.publish(Phase::Downloading, &format!("{met}; goes on by itself"));
                    }
                }
            }
        }
    }

    /// Publishes what the proxy has done; whether that is more than before.
    pub(super) fn show_transfer(&self) -> bool {
        let Some(now) = self.session.as_ref().map(Session::progress) else { return false };
        let before = self.status.borrow().progress.transfer;
        if now != before {
            self.status.send_modify(|s| s.progress.transfer = now);
        }
        (now.fetched, now.reused) != (before.fetched, before.reused)
    }

    /// What the transaction has cost before an attempt that begins now.
    pub(super) fn begin_count(&self, stage: Stage) {
        let now = Instant::now();
        let before = self.tx.borrow().as_ref().map(|tx| tx.spent).unwrap_or_default();
        self.count.set(Some(Count { stage, began: now, kept: now, before }));
    }

    /// Keeps what the attempt has cost so far, now and then: a power cut loses no more of the count than that.
    pub(super) fn keep_count(&self) {
        if let Some(count) = self.count.get().filter(|count| count.kept.elapsed() >= KEEP_EVERY) {
            self.count.set(Some(Count { kept: Instant::now(), ..count }));
            self.set_spent(count);
        }
    }

    /// The attempt is over.
    pub(super) fn end_count(&self) {
        let Some(count) = self.count.take() else { return };
        let transfer = self.transfer();
        self.status.send_modify(|s| s.progress.transfer = Transfer { rate: 0, eta: 0, ..transfer });
        self.set_spent(count);
    }

    fn transfer(&self) -> Transfer {
        self.session.as_ref().map(Session::progress).unwrap_or_default()
    }

    /// Adds what an attempt has cost to what was spent before it, durably.
    fn set_spent(&self, Count { stage, began, before, .. }: Count) {
        let transfer = self.transfer();
        let seconds = began.elapsed().as_secs();
        let written = if stage == Stage::Install { self.status.borrow().progress.bytes } else { 0 };
        let mut spent = Spent {
            fetched: before.fetched.saturating_add(transfer.fetched),
            reused: before.reused.saturating_add(transfer.reused),
            written: before.written.saturating_add(written),
            ..before
        };
        match stage {
            // Even a download that took no time was one.
            Stage::Download => spent.download_s = spent.download_s.saturating_add(seconds.max(1)),
            _ => spent.install_s = spent.install_s.saturating_add(seconds),
        }
        if self.tx.borrow().as_ref().is_none_or(|tx| tx.spent == spent) {
            return;
        }
        if let Err(failure) = self.edit(|tx| tx.spent = spent) {
            eprintln!("{failure}: {}", failure.chain.join(": "));
        }
    }

    /// The present way has failed for good: says so and goes the next one.
    pub(super) fn next_way(&mut self, failure: Failure) {
        let Some(mut tx) = self.tx() else { return };
        let Some(way) = tx.current_way().map(|way| way.kind.as_str().to_owned()) else {
            return self.give_up(Outcome::Failed, failure);
        };
        let counted = tx.failed_ways.iter().fold(0_u64, |sum, failed| sum.saturating_add(failed.fetched));
        let fetched = tx.spent.fetched.saturating_sub(counted);
        tx.failed_ways.push(crate::status::FailedWay { way: way.clone(), fetched, failure: failure.clone() });
        tx.way = tx.way.saturating_add(1);
        (tx.broken_reads, tx.fetch_tries) = (0, 0);
        let next = tx.current_way().map(|way| way.kind.as_str());
        let Some(next) = next else {
            // The last one: what is told is its own failure, and that there were others.
            let failed = tx.failed_ways.clone();
            let others = failed.len().saturating_sub(1);
            if let Err(failure) = self.edit(|tx| tx.failed_ways = failed) {
                eprintln!("{failure}");
            }
            let failure = match others {
                0 => failure,
                n => failure.because(format!("{n} other ways had failed before it")),
            };
            return self.give_up(Outcome::Failed, failure);
        };
        let message = format!("the {way} did not work ({failure}); going on with the {next}");
        tx.stage = self.first_stage(&tx);
        if let Err(failure) = self.edit(|mine| *mine = tx) {
            return self.give_up(Outcome::Failed, failure);
        }
        self.refuse(Failure { message: message.clone(), ..failure });
        self.publish(Phase::WaitingToRetry, &message);
        self.after(Duration::from_secs(1), Job::Step);
    }
}

/// An attempt, and what was spent before it.
#[derive(Clone, Copy)]
pub(super) struct Count {
    stage: Stage,
    began: Instant,
    /// When it was written last.
    kept: Instant,
    before: Spent,
}

/// Below here, and nowhere else, are media that were found by themselves (`rustiot-media@.service`).
const MEDIA: &str = "/run/rustiot/media/";

/// Whether it is a directory of a medium, and no way out of there.
fn is_on_medium(dir: &str) -> bool {
    let plain = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    dir.strip_prefix(MEDIA)
        .is_some_and(|rest| !rest.is_empty() && std::path::Path::new(rest).components().all(plain))
}

/// The medium that must stay: what is being read from it or would be. Empty: none.
pub(super) fn needed_medium(tx: Option<&Transaction>, offer: Option<&str>) -> String {
    let source = match tx {
        // Once it is written, it is needed no more.
        Some(tx) if tx.install_seconds.is_some() => None,
        Some(tx) => Some(tx.request.source.as_str()),
        None => offer,
    };
    source.filter(|source| is_on_medium(source)).unwrap_or_default().to_owned()
}

/// The release that a person named; its form was checked where it came in.
fn wanted_version(request: &Request) -> Option<semver::Version> {
    semver::Version::parse(request.version.as_deref()?).ok()
}

/// How a download ended.
enum Fetch {
    /// It has everything, or never will.
    Ended(Result<(), Failure>),
    /// It may not go on now.
    Shut,
    Cancelled(oneshot::Sender<Result<(), Failure>>),
    /// The service ends; the cache keeps what there is.
    Leaving,
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
