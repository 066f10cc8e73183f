//! Runs the state machine: time, requests, the installer, and a voice for people.
//!
//! One action at a time, one thread. Decides nothing that the machine can decide; adds the times between polls.
//! Called by the product's service and by the shim.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rustiot_http::Backoff;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Client, Error};
use crate::ddi::{ActionId, Execution, Feedback, Finished, Handling, Order};
use crate::machine::{Effect, End, Event, JobId, News, Notice, Place, Policy, Refusal, Report, State, step};
use crate::store::{SaveError, Store};

/// How often waiting progress is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often a single run tries to deliver a report.
const ONCE_TRIES: u32 = 10;
/// Shortest time to the next poll without an answer, with the backoff: the network of a device that has just started is
/// seldom there at the first.
const RETRY_BASE: Duration = Duration::from_secs(5);
/// Longest time between polls without an answer.
const RETRY_CAP: Duration = Duration::from_secs(3600);

/// What carries out an order on this device.
#[expect(async_fn_in_trait, reason = "everything runs on one thread")]
pub trait Installer {
    /// Begins a job, or finds the one that a former process began for the same order. With `hold` it stops before the
    /// install.
    async fn start(&mut self, order: &Order, hold: bool) -> Result<JobId, Refusal>;
    /// Lets a held job go on; nothing is to be done when it does already, or has ended.
    async fn proceed(&mut self, job: &JobId, update: Handling) -> Result<(), Refusal>;
    /// Takes a job back; returns when it is gone, or why it is too late (a clause that ends a sentence).
    async fn cancel(&mut self, job: &JobId) -> Result<(), String>;
    /// Waits for news of a job. May be dropped while it waits, without losing any.
    async fn news(&mut self, job: &JobId) -> News;
}

/// Tells people what happens.
pub trait Voice {
    /// A poll begins.
    fn polling(&mut self) {}
    /// The server answered it.
    fn answered(&mut self) {}
    /// Where it stands now.
    fn state(&mut self, _state: &State) {}
    /// The attributes are sent.
    fn sending_config(&mut self) {}
    /// Something of interest.
    fn notice(&mut self, notice: &Notice);
    /// This feedback is sent now.
    fn feedback(&mut self, feedback: &Feedback);
    /// A poll came to nothing.
    fn poll_failed(&mut self, error: &Error);
    /// Another request came to nothing; `what` names it.
    fn failed(&mut self, what: &str, error: &Error);
    /// The state could not be remembered.
    fn not_remembered(&mut self, error: &SaveError);
}

/// What a person may say while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Consent, or its refusal.
    Consent(bool),
    /// Poll now.
    Poll,
}

/// The machine with everything around it.
#[derive(Debug)]
pub struct Driver<I, V> {
    client: Client,
    installer: I,
    voice: V,
    policy: Policy,
    attributes: BTreeMap<String, String>,
    store: Store,
    state: State,
    began: Instant,
    /// What the server wished last.
    sleep: Option<Duration>,
    /// Grows with failed polls; without one they are repeated after `policy.retry` for ever.
    backoff: Option<Backoff>,
    /// Times to wait at least, as the server asked.
    asked: Option<Duration>,
    seed: u64,
    /// No failure so far, for a single run.
    good: bool,
    /// The last attempt to deliver a report failed.
    undelivered: bool,
    /// A job ended badly.
    ended_badly: bool,
    /// Called after a success was delivered.
    after_success: Option<fn()>,
}

impl<I: Installer, V: Voice> Driver<I, V> {
    /// Loads what was remembered; does nothing yet.
    pub fn new(
        client: Client,
        installer: I,
        voice: V,
        policy: Policy,
        attributes: BTreeMap<String, String>,
        store: Store,
    ) -> Self {
        let state = store.load();
        let seed = seed(&client.server().controller);
        Self {
            client,
            installer,
            voice,
            policy,
            attributes,
            state,
            store,
            began: Instant::now(),
            sleep: None,
            backoff: None,
            asked: None,
            seed,
            good: true,
            undelivered: false,
            ended_badly: false,
            after_success: None,
        }
    }

    /// Failed polls wait longer and longer, from seconds up to an hour, spread by the device's name.
    #[must_use]
    pub fn with_backoff(mut self) -> Self {
        self.backoff = Some(Backoff::seeded(RETRY_BASE, RETRY_CAP, self.seed));
        self
    }

    /// Calls `end` whenever the success of a deployment has been delivered.
    #[must_use]
    pub fn with_end(mut self, end: fn()) -> Self {
        self.after_success = Some(end);
        self
    }

    /// Whether a job has ended badly.
    pub fn ended_badly(&self) -> bool {
        self.ended_badly
    }

    /// Where it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Runs until `commands` is closed.
    pub async fn run(&mut self, mut commands: mpsc::Receiver<Command>) {
        self.feed(Event::Resume).await;
        let mut poll = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let job = self.state.job().map(|job| job.id.clone());
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Consent(yes)) => {
                        self.feed(Event::Consent(yes)).await;
                        poll = Instant::now();
                    }
                    Some(Command::Poll) => poll = Instant::now(),
                    None => return,
                },
                news = news(&mut self.installer, job.as_ref()) => self.feed(Event::Job(news)).await,
                () = tokio::time::sleep_until(poll) => {
                    let answered = self.poll().await;
                    let delay = self.delay(answered);
                    poll = Instant::now().checked_add(delay).unwrap_or(poll);
                }
                // Only then: it interrupts the wait for news.
                _ = tick.tick(), if self.state.has_unsent() => self.feed(Event::Tick).await,
            }
        }
    }

    /// Polls once and waits until what it began has ended. Whether all went well.
    pub async fn once(&mut self) -> bool {
        self.feed(Event::Resume).await;
        self.good &= self.poll().await;
        let mut tries = 0_u32;
        while !self.state.resting() {
            if self.undelivered {
                tries = tries.saturating_add(1);
                if tries > ONCE_TRIES {
                    return false;
                }
                tokio::time::sleep(TICK).await;
                self.feed(Event::Resume).await;
                continue;
            }
            let job = self.state.job().map(|job| job.id.clone());
            let event = tokio::select! {
                news = news(&mut self.installer, job.as_ref()) => Event::Job(news),
                () = tokio::time::sleep(TICK) => Event::Tick,
            };
            self.feed(event).await;
        }
        self.good
    }

    /// Time to the next poll.
    fn delay(&mut self, answered: bool) -> Duration {
        let asked = self.asked.take();
        if answered {
            if let Some(backoff) = &mut self.backoff {
                backoff.reset();
            }
            let delay = self.state.poll_in(&self.policy, self.sleep);
            return self.spread(delay);
        }
        match &mut self.backoff {
            Some(backoff) => backoff.after_answer(asked),
            None => self.policy.retry.max(asked.unwrap_or_default()),
        }
    }

    /// A tenth more or less, so that devices that started together do not stay together. Only where there are many:
    /// with the backoff.
    fn spread(&mut self, delay: Duration) -> Duration {
        if self.backoff.is_none() {
            return delay;
        }
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let per_mille = 900_u32.saturating_add(u32::try_from(self.seed >> 33).unwrap_or(0) % 201);
        delay.saturating_mul(per_mille).checked_div(1000).unwrap_or(delay)
    }

    async fn poll(&mut self) -> bool {
        self.voice.polling();
        match self.client.poll().await {
            Ok(base) => {
                self.voice.answered();
                self.sleep = base.sleep;
                self.feed(Event::Base(base)).await;
                true
            }
            Err(error) => {
                if let Error::Http(http) = &error {
                    self.asked = http.retry_after();
                }
                self.voice.poll_failed(&error);
                false
            }
        }
    }

    /// Takes a step and everything that follows from it.
    async fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let state = std::mem::take(&mut self.state);
            let (state, effects) = step(&self.policy, state, event, self.began.elapsed());
            self.state = state;
            for effect in effects {
                events.extend(self.carry_out(effect).await);
            }
            self.voice.state(&self.state);
        }
    }

    async fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Remember => {
                if let Err(error) = self.store.save(&self.state) {
                    self.voice.not_remembered(&error);
                }
                None
            }
            Effect::Tell(notice) => {
                self.voice.notice(&notice);
                None
            }
            Effect::SendConfig => {
                self.voice.sending_config();
                let sent = self.client.config(&self.attributes).await;
                self.heard("the device's attributes", sent);
                None
            }
            Effect::FetchDeployment(action) => {
                let answer = self.client.deployment(&action).await;
                self.good &= answer.is_ok();
                self.heard("the deployment", answer).map(Event::Deployment)
            }
            Effect::FetchCancel(action) => {
                let answer = self.client.cancellation(&action).await;
                self.good &= answer.is_ok();
                self.heard("the cancellation", answer).map(Event::Cancel)
            }
            Effect::Consent(action, yes) => {
                let sent = self.client.consent(&action, yes).await;
                self.heard("the consent", sent);
                None
            }
            Effect::Progress(action, feedback) => {
                self.say(Place::Deployment, &action, &feedback, "progress").await;
                None
            }
            Effect::AnswerCancel(action, feedback) => {
                self.say(Place::Cancel, &action, &feedback, "the answer to a cancellation").await;
                None
            }
            Effect::Report(report) => self.report(&report).await,
            Effect::Start(order, hold) => Some(Event::Started(self.installer.start(&order, hold).await)),
            Effect::Proceed(job, update) => match self.installer.proceed(&job, update).await {
                Ok(()) => None,
                Err(Refusal::Busy(_)) => Some(Event::StillHeld),
                Err(Refusal::Failed(why)) => Some(Event::Job(News::Ended(End::Failure(why)))),
            },
            Effect::CancelJob(job) => Some(Event::Cancelled(self.installer.cancel(&job).await)),
        }
    }

    /// What must not be lost: stays until the server has it.
    async fn report(&mut self, report: &Report) -> Option<Event> {
        self.good &= report.feedback.finished != Finished::Failure;
        self.voice.feedback(&report.feedback);
        let sent = self.client.feedback(report.place, &report.action, &report.feedback).await;
        let done = match sent {
            Ok(()) => true,
            Err(error) => {
                self.voice.failed("the report", &error);
                error.final_for_a_report()
            }
        };
        self.undelivered = !done;
        let feedback = &report.feedback;
        self.ended_badly |= feedback.finished == Finished::Failure;
        let success = (report.place, feedback.finished, feedback.execution)
            == (Place::Deployment, Finished::Success, Execution::Closed);
        if let Some(end) = self.after_success.filter(|_| done && success) {
            end();
        }
        done.then_some(Event::Delivered)
    }

    async fn say(&mut self, place: Place, action: &ActionId, feedback: &Feedback, what: &str) {
        self.voice.feedback(feedback);
        let sent = self.client.feedback(place, action, feedback).await;
        self.heard(what, sent);
    }

    fn heard<T>(&mut self, what: &str, answer: Result<T, Error>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.voice.failed(what, &error);
                None
            }
        }
    }
}

/// News of `job`; never, when there is none.
async fn news<I: Installer>(installer: &mut I, job: Option<&JobId>) -> News {
    match job {
        Some(job) => installer.news(job).await,
        None => std::future::pending().await,
    }
}

/// FNV-1a: the same for a device always, different between devices.
fn seed(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Auth, Server};
    use crate::machine::Consent;
    use crate::voice::Journal;
    use rustiot_http::{Http, Settings, Url};

    struct Nobody;

    impl Installer for Nobody {
        async fn start(&mut self, _: &Order, _: bool) -> Result<JobId, Refusal> {
            Err(Refusal::Busy(String::new()))
        }
        async fn proceed(&mut self, _: &JobId, _: Handling) -> Result<(), Refusal> {
            Ok(())
        }
        async fn cancel(&mut self, _: &JobId) -> Result<(), String> {
            Ok(())
        }
        async fn news(&mut self, _: &JobId) -> News {
            std::future::pending().await
        }
    }

    fn driver(controller: &str) -> Driver<Nobody, Journal> {
        let secs = Duration::from_secs;
        let server = Server {
            url: Url::parse("http://127.0.0.1:1/").unwrap(),
            tenant: "DEFAULT".into(),
            controller: controller.into(),
            auth: Auth::TargetToken("secret".into()),
            timeout: secs(1),
        };
        let policy = Policy {
            consent: Consent::Automatic,
            progress_every: secs(1),
            download_alone: true,
            poll_working: secs(30),
            poll_idle: None,
            retry: secs(60),
        };
        let client = Client::new(Http::new(&Settings::default()).unwrap(), server);
        let (attributes, store) = (BTreeMap::new(), Store::Nowhere);
        Driver::new(client, Nobody, Journal::default(), policy, attributes, store).with_backoff()
    }

    #[test]
    fn a_poll_without_an_answer_is_repeated_soon_then_seldom_and_as_the_server_asks() {
        for controller in 0..20 {
            let mut driver = driver(&format!("device-{controller}"));
            let first = driver.delay(false);
            assert!((RETRY_BASE..=RETRY_BASE * 3).contains(&first), "{first:?}");
            let later: Vec<_> = (0..400).map(|_| driver.delay(false)).collect();
            assert!(later.iter().all(|delay| (RETRY_BASE..=RETRY_CAP).contains(delay)), "{later:?}");
            let late = later.iter().skip(200);
            assert!(late.sum::<Duration>() / 200 > Duration::from_secs(300), "{later:?}");
            driver.asked = Some(RETRY_CAP * 2);
            assert!(driver.delay(false) >= RETRY_CAP * 2);
            assert!(driver.delay(true) >= Duration::from_secs(54), "answered: as the policy says");
            assert!(driver.delay(false) <= RETRY_BASE * 3, "the next failure begins anew");
        }
    }
}
