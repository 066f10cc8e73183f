//! What this device does about hawkBit's wishes: a total function from (state, event) to (state, effects).
//!
//! Pure: no clock, no network, no bus. One action at a time. Success is reported when the installer says that the job
//! has ended well, and for the product that is after the commit. What must survive a restart is remembered before
//! anything is done about it: [`step`] itself puts [`Effect::Remember`] first whenever the durable part has changed.
//! Called by the driver.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ddi::{ActionId, Base, Execution, Feedback, Finished, Handling, Order, Unsupported};

/// Lines of one progress message; the oldest go first when there are more.
const BATCH_LINES: usize = 16;
/// After so many messages of one action the time between them doubles, up to an hour: hawkBit takes 1000 of an action
/// (`maxStatusEntriesPerAction`), and then not even the last word. A restart that is put off for weeks must leave room.
const BATCHES: u32 = 16;
/// Longest time between messages for which it doubles.
const BATCH_PAUSE: Duration = Duration::from_secs(3600);

/// Who consents to an action that waits for confirmation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consent {
    /// The device, at once.
    #[default]
    Automatic,
    /// A person at the device, or hawkBit's own operator.
    Ask,
}

/// What the owner has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who consents.
    pub consent: Consent,
    /// Shortest time between two progress messages of one action. Zero sends each by itself.
    pub progress_every: Duration,
    /// The installer can download and install apart from each other.
    pub download_alone: bool,
    /// Time between polls while a job is under way, at most what the server wishes.
    pub poll_working: Duration,
    /// The owner's time between polls, which counts more than the server's.
    pub poll_idle: Option<Duration>,
    /// Time to the next poll when there was no answer, or a report could not be delivered.
    pub retry: Duration,
}

/// The installer's name for a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The release runs and is the default (for the shim: it is installed).
    Success(Vec<String>),
    /// It does not; the reason first.
    Failure(Vec<String>),
    /// Somebody at the device took it back.
    Cancelled,
}

/// What the installer says of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// New lines for people; percent where there is one.
    Step {
        /// Newest last.
        lines: Vec<String>,
        /// 0 to 100.
        percent: Option<u8>,
    },
    /// Everything is on the device and verified; the install waits to be let go.
    Downloaded {
        /// For people.
        line: String,
    },
    /// It is over.
    Ended(End),
}

/// Why the installer did not take an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Something else is under way on the device; asked again at the next poll.
    Busy(String),
    /// It cannot be done; the reason first.
    Failed(Vec<String>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The process has started and loaded the state.
    Resume,
    /// The server answered a poll.
    Base(Base),
    /// The deployment that was asked for.
    Deployment(Result<Order, Unsupported>),
    /// The server wants this action stopped.
    Cancel(ActionId),
    /// A person consents, or does not.
    Consent(bool),
    /// The installer's answer to an order.
    Started(Result<JobId, Refusal>),
    /// The installer could not be told to go on with a held job; asked again at the next poll.
    StillHeld,
    /// The installer's answer to a cancellation: the reason when it is too late.
    Cancelled(Result<(), String>),
    /// News of the job under way.
    Job(News),
    /// The server has the final report, or does not want it any more.
    Delivered,
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the state durably before the next effect.
    Remember,
    /// Tell a person.
    Tell(Notice),
    /// Send the attributes.
    SendConfig,
    /// Fetch a deployment.
    FetchDeployment(ActionId),
    /// Fetch a cancellation.
    FetchCancel(ActionId),
    /// Give or refuse consent.
    Consent(ActionId, bool),
    /// Best effort: a lost one is not repeated.
    Progress(ActionId, Feedback),
    /// Deliver, and say `Delivered` when the server has taken it or the action is gone there.
    Report(Report),
    /// Answer a cancellation; the server asks again when it does not arrive.
    AnswerCancel(ActionId, Feedback),
    /// Order a job; `hold` stops before the install.
    Start(Order, bool),
    /// Let a held job go on, as eagerly as the server says now.
    Proceed(JobId, Handling),
    /// Take a job back.
    CancelJob(JobId),
}

/// What people may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Nothing to do.
    NothingNew,
    /// A deployment to carry out.
    Found(Order),
    /// The server says: do not download yet.
    DownloadHeld(Order),
    /// The server says: do not install yet.
    InstallHeld(Order),
    /// Still held.
    StillHeld(Order),
    /// Held before, not any more.
    Continuing(Order),
    /// The server offers what is under way.
    AlreadyInProgress(ActionId),
    /// The server offers another action while one is under way.
    Queued(ActionId),
    /// A cancellation.
    CancelReceived(ActionId),
    /// A cancellation of something that this device never began.
    CancelUnknown(ActionId),
    /// A cancellation that came too late.
    CancelRejected(ActionId, String),
    /// Consent is needed.
    ConsentNeeded(ActionId),
    /// Refused before anything was done.
    Refused(ActionId, String),
    /// The device is busy with something else.
    Busy(ActionId, String),
}

/// Where a final report goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The deployment's feedback.
    Deployment,
    /// The cancellation's feedback.
    Cancel,
}

/// The last word about an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The action.
    pub action: ActionId,
    /// Where it goes.
    pub place: Place,
    /// What it says.
    pub feedback: Feedback,
}

/// Progress that has not been sent yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    lines: Vec<String>,
    percent: Option<u8>,
    sent: Option<Duration>,
    count: u32,
}

/// A job under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What was ordered.
    pub order: Order,
    /// The installer's name for it.
    pub id: JobId,
    /// The install waits for the server.
    pub held: bool,
    /// Everything is on the device.
    #[serde(skip)]
    pub downloaded: bool,
    /// A cancellation is being tried.
    #[serde(skip)]
    pub cancelling: bool,
    /// Progress that has not been sent.
    #[serde(skip)]
    pub batch: Batch,
}

/// Where this device stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing to do.
    #[default]
    Idle,
    /// An action waits for a person's consent.
    Asking(ActionId),
    /// A deployment is known that must not begin yet.
    Waiting(Order),
    /// The installer is being asked. Survives a restart: the installer finds a job that it has already begun.
    Starting(Order, bool),
    /// A job is under way.
    Working(Box<Job>),
    /// A job is over and the server does not know it yet.
    Ended(Report),
}

impl State {
    /// The part that must survive a restart. The rest is learned again with the next poll.
    #[must_use]
    pub fn durable(&self) -> Self {
        match self {
            Self::Idle | Self::Asking(_) | Self::Waiting(_) => Self::Idle,
            Self::Starting(..) | Self::Ended(_) => self.clone(),
            Self::Working(job) => Self::Working(Box::new(Job {
                downloaded: false,
                cancelling: false,
                batch: Batch::default(),
                ..Job::clone(job)
            })),
        }
    }

    /// Nothing happens before the server or a person says something.
    #[must_use]
    pub fn resting(&self) -> bool {
        match self {
            Self::Idle | Self::Asking(_) | Self::Waiting(_) => true,
            Self::Working(job) => job.held && job.downloaded,
            Self::Starting(..) | Self::Ended(_) => false,
        }
    }

    /// The job under way.
    #[must_use]
    pub fn job(&self) -> Option<&Job> {
        match self {
            Self::Working(job) => Some(job),
            _ => None,
        }
    }

    /// Progress waits until it may be sent.
    #[must_use]
    pub fn has_unsent(&self) -> bool {
        self.job().is_some_and(|job| !job.batch.lines.is_empty())
    }

    /// Time to the next poll, given what the server wished last.
    #[must_use]
    pub fn poll_in(&self, policy: &Policy, server: Option<Duration>) -> Duration {
        let idle = policy.poll_idle.or(server).unwrap_or(policy.retry).max(Duration::from_secs(1));
        match self {
            Self::Idle | Self::Asking(_) | Self::Waiting(_) => idle,
            Self::Working(job) if job.held && job.downloaded => idle,
            Self::Working(_) | Self::Starting(..) => idle.min(policy.poll_working),
            Self::Ended(_) => idle.min(policy.retry),
        }
    }
}

/// Takes one step. `now` is any clock that only goes forward.
#[must_use]
pub fn step(policy: &Policy, state: State, event: Event, now: Duration) -> (State, Vec<Effect>) {
    let before = state.durable();
    let mut out = Vec::new();
    let state = next(policy, state, event, now, &mut out);
    if state.durable() != before {
        out.insert(0, Effect::Remember);
    }
    (state, out)
}

fn next(policy: &Policy, state: State, event: Event, now: Duration, out: &mut Vec<Effect>) -> State {
    match (state, event) {
        (state, Event::Base(base)) => polled(policy, state, &base, out),

        (State::Idle | State::Asking(_), Event::Deployment(found)) => begin(policy, found, None, out),
        (State::Waiting(old), Event::Deployment(found)) => begin(policy, found, Some(&old), out),
        (State::Working(job), Event::Deployment(found)) => let_go(job, found, out),

        (State::Idle | State::Asking(_) | State::Waiting(_), Event::Cancel(action)) => {
            forget(action, out);
            State::Idle
        }
        (State::Working(job), Event::Cancel(action)) => stop(job, action, out),
        // The server asks again, and by then it is clear what can be stopped.
        (state @ (State::Starting(..) | State::Ended(_)), Event::Cancel(_)) => state,

        (State::Asking(action), Event::Consent(yes)) => {
            out.push(Effect::Consent(action, yes));
            State::Idle
        }

        (State::Starting(order, held), Event::Started(answer)) => match answer {
            Ok(id) => State::Working(Box::new(Job {
                order,
                id,
                held,
                downloaded: false,
                cancelling: false,
                batch: Batch::default(),
            })),
            Err(Refusal::Busy(why)) => {
                let details = vec![format!("The device is busy: {why}")];
                out.push(Effect::Tell(Notice::Busy(order.action.clone(), why)));
                out.push(Effect::Progress(order.action.clone(), proceeding(details, None)));
                State::Waiting(order)
            }
            Err(Refusal::Failed(details)) => {
                let state = ended(order.action.clone(), failure(details.clone()), out);
                let why = details.into_iter().next().unwrap_or_default();
                out.push(Effect::Tell(Notice::Refused(order.action, why)));
                state
            }
        },
        (State::Starting(order, hold), Event::Resume) => {
            out.push(Effect::Start(order.clone(), hold));
            State::Starting(order, hold)
        }

        (State::Working(mut job), Event::StillHeld) => {
            job.held = true;
            State::Working(job)
        }
        (State::Working(job), Event::Cancelled(answer)) => stopped(job, answer, out),
        (State::Working(job), Event::Job(news)) => heard(policy, job, news, now, out),
        (State::Working(mut job), Event::Tick) => {
            flush(policy, &mut job, now, out);
            State::Working(job)
        }

        (State::Ended(report), Event::Resume) => {
            out.push(Effect::Report(report.clone()));
            State::Ended(report)
        }
        (State::Ended(_), Event::Delivered) => State::Idle,

        // What is left does not concern the state: late answers, and time that passes without anything to send.
        (
            state @ (State::Idle
            | State::Asking(_)
            | State::Waiting(_)
            | State::Starting(..)
            | State::Working(_)
            | State::Ended(_)),
            Event::Resume
            | Event::Deployment(_)
            | Event::Consent(_)
            | Event::Started(_)
            | Event::StillHeld
            | Event::Cancelled(_)
            | Event::Job(_)
            | Event::Delivered
            | Event::Tick,
        ) => state,
    }
}

fn proceeding(details: Vec<String>, percent: Option<u8>) -> Feedback {
    Feedback { execution: Execution::Proceeding, finished: Finished::None, percent, details }
}

fn failure(details: Vec<String>) -> Feedback {
    Feedback { execution: Execution::Closed, finished: Finished::Failure, percent: None, details }
}

fn success(execution: Execution, details: Vec<String>) -> Feedback {
    Feedback { execution, finished: Finished::Success, percent: None, details }
}

fn ended(action: ActionId, feedback: Feedback, out: &mut Vec<Effect>) -> State {
    let report = Report { action, place: Place::Deployment, feedback };
    out.push(Effect::Report(report.clone()));
    State::Ended(report)
}

/// The answer to a poll.
fn polled(policy: &Policy, state: State, base: &Base, out: &mut Vec<Effect>) -> State {
    if base.wants_config {
        out.push(Effect::SendConfig);
    }
    if let State::Ended(report) = &state {
        // First the server must know this end; what it wants besides comes with the next poll.
        out.push(Effect::Report(report.clone()));
        return state;
    }
    if let Some(action) = &base.cancel {
        out.push(Effect::FetchCancel(action.clone()));
    }
    match state {
        State::Idle | State::Asking(_) | State::Waiting(_) => {
            if let Some(action) = &base.deployment {
                out.push(Effect::FetchDeployment(action.clone()));
                return match state {
                    State::Waiting(order) if order.action == *action => State::Waiting(order),
                    _ => State::Idle,
                };
            }
            match (&base.confirmation, policy.consent) {
                (Some(action), Consent::Automatic) => {
                    out.push(Effect::Consent(action.clone(), true));
                    State::Idle
                }
                (Some(action), Consent::Ask) => {
                    if state != State::Asking(action.clone()) {
                        out.push(Effect::Tell(Notice::ConsentNeeded(action.clone())));
                    }
                    State::Asking(action.clone())
                }
                (None, _) => {
                    out.push(Effect::Tell(Notice::NothingNew));
                    State::Idle
                }
            }
        }
        State::Working(job) => {
            match &base.deployment {
                Some(action) if *action != job.order.action => {
                    out.push(Effect::Tell(Notice::Queued(action.clone())));
                }
                Some(action) if job.held => out.push(Effect::FetchDeployment(action.clone())),
                Some(action) => out.push(Effect::Tell(Notice::AlreadyInProgress(action.clone()))),
                None => out.push(Effect::Tell(Notice::NothingNew)),
            }
            State::Working(job)
        }
        state @ (State::Starting(..) | State::Ended(_)) => state,
    }
}

/// A deployment, while nothing is under way.
fn begin(
    policy: &Policy,
    found: Result<Order, Unsupported>,
    known: Option<&Order>,
    out: &mut Vec<Effect>,
) -> State {
    let order = match found {
        Ok(order) => order,
        Err(unsupported) => {
            let text = unsupported.to_string();
            let state = ended(unsupported.action.clone(), failure(vec![text.clone()]), out);
            out.push(Effect::Tell(Notice::Refused(unsupported.action, text)));
            return state;
        }
    };
    let known = known.is_some_and(|known| known.action == order.action);
    let held = order.update == Handling::Skip;
    if order.download == Handling::Skip || (held && !policy.download_alone) {
        out.push(Effect::Tell(match (known, order.download) {
            (true, _) => Notice::StillHeld(order.clone()),
            (false, Handling::Skip) => Notice::DownloadHeld(order.clone()),
            (false, _) => Notice::InstallHeld(order.clone()),
        }));
        return State::Waiting(order);
    }
    if held {
        out.push(Effect::Tell(Notice::InstallHeld(order.clone())));
    }
    if known {
        out.push(Effect::Tell(Notice::Continuing(order.clone())));
    }
    out.push(Effect::Tell(Notice::Found(order.clone())));
    out.push(Effect::Start(order.clone(), held));
    State::Starting(order, held)
}

/// The deployment of the job under way, fetched again because it is held.
fn let_go(mut job: Box<Job>, found: Result<Order, Unsupported>, out: &mut Vec<Effect>) -> State {
    if let Ok(order) = found
        && order.action == job.order.action
        && job.held
    {
        if order.update == Handling::Skip {
            out.push(Effect::Tell(Notice::StillHeld(order)));
        } else {
            job.held = false;
            job.order.update = order.update;
            job.order.window = order.window;
            out.push(Effect::Tell(Notice::Continuing(order)));
            out.push(Effect::Proceed(job.id.clone(), job.order.update));
        }
    }
    State::Working(job)
}

/// A cancellation of what was never begun.
fn forget(action: ActionId, out: &mut Vec<Effect>) {
    out.push(Effect::Tell(Notice::CancelReceived(action.clone())));
    out.push(Effect::Tell(Notice::CancelUnknown(action.clone())));
    out.push(Effect::AnswerCancel(action, success(Execution::Closed, vec![CANCELED.into()])));
}

/// What the server is told of a cancellation that was carried out.
const CANCELED: &str = "Action canceled.";

/// A cancellation while a job is under way.
fn stop(mut job: Box<Job>, action: ActionId, out: &mut Vec<Effect>) -> State {
    if job.order.action != action {
        forget(action, out);
    } else if !job.cancelling {
        job.cancelling = true;
        out.push(Effect::Tell(Notice::CancelReceived(action)));
        out.push(Effect::CancelJob(job.id.clone()));
    }
    State::Working(job)
}

/// The installer's answer to a cancellation.
fn stopped(mut job: Box<Job>, answer: Result<(), String>, out: &mut Vec<Effect>) -> State {
    if !job.cancelling {
        return State::Working(job);
    }
    match answer {
        Ok(()) => {
            let report = Report {
                action: job.order.action,
                place: Place::Cancel,
                feedback: success(Execution::Closed, vec![CANCELED.into()]),
            };
            out.push(Effect::Report(report.clone()));
            State::Ended(report)
        }
        Err(why) => {
            job.cancelling = false;
            let action = job.order.action.clone();
            let text = format!("Cancelation impossible, {why}");
            // Of a request to stop, `rejected` is the answer; its own result is that it was answered.
            out.push(Effect::AnswerCancel(action.clone(), success(Execution::Rejected, vec![text.clone()])));
            out.push(Effect::Tell(Notice::CancelRejected(action, text)));
            State::Working(job)
        }
    }
}

/// News of the job under way.
fn heard(policy: &Policy, mut job: Box<Job>, news: News, now: Duration, out: &mut Vec<Effect>) -> State {
    match news {
        News::Step { lines, percent } => {
            job.batch.percent = percent.or(job.batch.percent);
            if policy.progress_every.is_zero() {
                for line in lines {
                    out.push(Effect::Progress(job.order.action.clone(), proceeding(vec![line], percent)));
                }
                return State::Working(job);
            }
            for line in lines {
                if job.batch.lines.last() != Some(&line) {
                    job.batch.lines.push(line);
                }
            }
            let over = job.batch.lines.len().saturating_sub(BATCH_LINES);
            job.batch.lines.drain(..over);
            flush(policy, &mut job, now, out);
            State::Working(job)
        }
        News::Downloaded { line } => {
            job.downloaded = true;
            // Without a window there is nothing to wait for: the server wants the download only.
            if job.held && job.order.window.is_none() {
                return ended(job.order.action, success(Execution::Downloaded, vec![line]), out);
            }
            heard(policy, job, News::Step { lines: vec![line], percent: None }, now, out)
        }
        News::Ended(End::Success(details)) => {
            ended(job.order.action, success(Execution::Closed, details), out)
        }
        News::Ended(End::Failure(details)) => ended(job.order.action, failure(details), out),
        // The installer's own answer to the cancellation comes as well, and it decides.
        News::Ended(End::Cancelled) if job.cancelling => stopped(job, Ok(()), out),
        News::Ended(End::Cancelled) => {
            ended(job.order.action, failure(vec!["The update was cancelled on the device.".into()]), out)
        }
    }
}

/// Sends the batch when there is one and the last is long enough ago.
fn flush(policy: &Policy, job: &mut Job, now: Duration, out: &mut Vec<Effect>) {
    let doubled = 1_u32 << job.batch.count.checked_div(BATCHES).unwrap_or(0).min(16);
    let pause = policy.progress_every.saturating_mul(doubled).min(BATCH_PAUSE.max(policy.progress_every));
    let due = job.batch.sent.is_none_or(|sent| now.saturating_sub(sent) >= pause);
    if job.batch.lines.is_empty() || !due {
        return;
    }
    let lines = std::mem::take(&mut job.batch.lines);
    out.push(Effect::Progress(job.order.action.clone(), proceeding(lines, job.batch.percent)));
    (job.batch.sent, job.batch.count) = (Some(now), job.batch.count.saturating_add(1));
}

#[cfg(test)]
mod tests;
