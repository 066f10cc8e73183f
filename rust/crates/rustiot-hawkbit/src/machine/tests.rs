//! Every state with every event, what must never happen, and the ways that matter.

use proptest::prelude::*;

use super::*;
use crate::ddi::{Hashes, Window};

fn id(text: &str) -> ActionId {
    ActionId::new(text).unwrap()
}

fn order(action: &str) -> Order {
    Order {
        action: id(action),
        name: "system".into(),
        version: "1.0".into(),
        url: "http://h/a".into(),
        size: 3,
        hashes: Hashes { sha1: Some("a".repeat(40)), sha256: None },
        download: Handling::Forced,
        update: Handling::Forced,
        window: None,
    }
}

fn held(action: &str, window: Option<Window>) -> Order {
    Order { update: Handling::Skip, window, ..order(action) }
}

fn policy() -> Policy {
    Policy {
        consent: Consent::Automatic,
        progress_every: Duration::from_secs(20),
        download_alone: true,
        poll_working: Duration::from_secs(30),
        poll_idle: None,
        retry: Duration::from_secs(60),
    }
}

fn job(order: Order, held: bool) -> State {
    State::Working(Box::new(Job {
        order,
        id: JobId("j".into()),
        held,
        downloaded: false,
        cancelling: false,
        batch: Batch::default(),
    }))
}

fn cancelling(order: Order) -> State {
    let State::Working(mut inner) = job(order, false) else { unreachable!() };
    inner.cancelling = true;
    State::Working(inner)
}

fn report() -> Report {
    Report {
        action: id("1"),
        place: Place::Deployment,
        feedback: success(Execution::Closed, vec!["done".into()]),
    }
}

fn states() -> Vec<State> {
    vec![
        State::Idle,
        State::Asking(id("1")),
        State::Waiting(order("1")),
        State::Starting(order("1"), false),
        State::Starting(held("1", None), true),
        job(order("1"), false),
        job(held("1", None), true),
        job(held("1", Some(Window::Unavailable)), true),
        cancelling(order("1")),
        State::Ended(report()),
    ]
}

fn events() -> Vec<Event> {
    let mut events = vec![
        Event::Resume,
        Event::Tick,
        Event::Delivered,
        Event::Consent(true),
        Event::Consent(false),
        Event::StillHeld,
        Event::Cancelled(Ok(())),
        Event::Cancelled(Err("too late".into())),
        Event::Started(Ok(JobId("j".into()))),
        Event::Started(Err(Refusal::Busy("other".into()))),
        Event::Started(Err(Refusal::Failed(vec!["no".into()]))),
        Event::Job(News::Step { lines: vec!["a".into()], percent: Some(3) }),
        Event::Job(News::Downloaded { line: "here".into() }),
        Event::Job(News::Ended(End::Success(vec!["good".into()]))),
        Event::Job(News::Ended(End::Failure(vec!["bad".into()]))),
        Event::Job(News::Ended(End::Cancelled)),
        Event::Deployment(Err(Unsupported { action: id("1"), why: "no".into() })),
    ];
    for action in ["1", "2"] {
        events.push(Event::Cancel(id(action)));
        events.push(Event::Deployment(Ok(order(action))));
        events.push(Event::Deployment(Ok(held(action, Some(Window::Unavailable)))));
        events.push(Event::Deployment(Ok(Order { download: Handling::Skip, ..order(action) })));
        for part in 0..4 {
            let mut base = Base { wants_config: part == 0, ..Base::default() };
            match part {
                1 => base.deployment = Some(id(action)),
                2 => base.cancel = Some(id(action)),
                3 => base.confirmation = Some(id(action)),
                _ => {}
            }
            events.push(Event::Base(base));
        }
    }
    events
}

fn says_success(effect: &Effect) -> bool {
    matches!(effect, Effect::Report(Report { place: Place::Deployment, feedback, .. })
        if feedback.finished == Finished::Success && feedback.execution == Execution::Closed)
}

/// Checks one step against everything that must never happen.
fn check(policy: &Policy, state: &State, event: &Event) -> (State, Vec<Effect>) {
    let (after, effects) = step(policy, state.clone(), event.clone(), Duration::from_secs(100));
    let place = format!("{state:?} × {event:?} → {after:?}, {effects:?}");
    // Success only when the installer said so, now or before a restart.
    if effects.iter().any(says_success) {
        let known = matches!(state, State::Ended(report) if says_success(&Effect::Report(report.clone())));
        assert!(known || matches!(event, Event::Job(News::Ended(End::Success(_)))), "{place}");
    }
    // What must survive is written first, and nothing is written without need.
    let remembered = effects.first() == Some(&Effect::Remember);
    assert_eq!(remembered, after.durable() != state.durable(), "{place}");
    assert!(!effects.iter().skip(1).any(|effect| *effect == Effect::Remember), "{place}");
    // One job at a time, and only from rest (or again after a restart).
    if effects.iter().any(|effect| matches!(effect, Effect::Start(..))) {
        assert!(matches!(after, State::Starting(..)), "{place}");
        assert!(!matches!(state, State::Working(_) | State::Ended(_)), "{place}");
    }
    // An end is never lost: it leaves only when the server has it.
    if matches!(state, State::Ended(_)) && !matches!(event, Event::Delivered) {
        assert_eq!(*state, after, "{place}");
    }
    // A job is left only with a report.
    if matches!(state, State::Working(_)) && !matches!(after, State::Working(_)) {
        assert!(matches!(after, State::Ended(_)), "{place}");
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Report(_))), "{place}");
    }
    // A held job is let go only by the server.
    if effects.iter().any(|effect| matches!(effect, Effect::Proceed(..))) {
        assert!(matches!(event, Event::Deployment(Ok(order)) if order.update != Handling::Skip), "{place}");
    }
    (after, effects)
}

#[test]
fn every_state_with_every_event_keeps_the_promises() {
    let mut seen = 0;
    for consent in [Consent::Automatic, Consent::Ask] {
        for download_alone in [true, false] {
            for progress_every in [Duration::ZERO, Duration::from_secs(20)] {
                let policy = Policy { consent, download_alone, progress_every, ..policy() };
                for state in states() {
                    for event in events() {
                        check(&policy, &state, &event);
                        seen += 1;
                    }
                }
            }
        }
    }
    assert_eq!(seen, 8 * states().len() * events().len());
}

fn run(policy: &Policy, events: Vec<Event>) -> (State, Vec<Effect>) {
    let mut state = State::Idle;
    let mut all = Vec::new();
    for event in events {
        let (after, effects) = check(policy, &state, &event);
        state = after;
        all.extend(effects);
    }
    (state, all)
}

fn base(deployment: &str) -> Event {
    Event::Base(Base { deployment: Some(id(deployment)), ..Base::default() })
}

fn started() -> Event {
    Event::Started(Ok(JobId("j".into())))
}

#[test]
fn a_deployment_is_followed_to_its_end() {
    let (state, effects) = run(
        &policy(),
        vec![
            base("1"),
            Event::Deployment(Ok(order("1"))),
            started(),
            Event::Job(News::Ended(End::Success(vec![]))),
        ],
    );
    assert!(matches!(state, State::Ended(_)));
    assert!(effects.contains(&Effect::FetchDeployment(id("1"))));
    assert!(effects.contains(&Effect::Start(order("1"), false)));
    assert_eq!(step(&policy(), state, Event::Delivered, Duration::ZERO).0, State::Idle);
}

#[test]
fn a_closed_window_lets_the_download_through_and_holds_the_install() {
    let closed = held("1", Some(Window::Unavailable));
    let (state, effects) = run(
        &policy(),
        vec![
            Event::Deployment(Ok(closed.clone())),
            started(),
            Event::Job(News::Downloaded { line: "here".into() }),
            base("1"),
            Event::Deployment(Ok(closed.clone())),
        ],
    );
    assert!(state.resting() && state.job().unwrap().held);
    assert!(effects.contains(&Effect::Start(closed, true)));
    let open = Order { window: Some(Window::Available), ..order("1") };
    let (state, effects) = check(&policy(), &state, &Event::Deployment(Ok(open)));
    let proceed = Effect::Proceed(JobId("j".into()), Handling::Forced);
    assert!(effects.contains(&proceed) && !state.resting());
    // The installer could not be told: held on, and tried again with the next poll.
    let (state, _) = check(&policy(), &state, &Event::StillHeld);
    assert!(state.job().unwrap().held);
    let (_, effects) = check(&policy(), &state, &base("1"));
    assert!(effects.contains(&Effect::FetchDeployment(id("1"))));
}

#[test]
fn a_download_only_action_ends_when_the_download_does() {
    let (state, _) = run(
        &policy(),
        vec![
            Event::Deployment(Ok(held("1", None))),
            started(),
            Event::Job(News::Downloaded { line: "here".into() }),
        ],
    );
    let State::Ended(report) = state else { panic!("{state:?}") };
    assert_eq!(report.feedback, success(Execution::Downloaded, vec!["here".into()]));
}

#[test]
fn a_streaming_installer_waits_for_the_window() {
    let policy = Policy { download_alone: false, ..policy() };
    let closed = held("1", Some(Window::Unavailable));
    let (state, effects) = run(&policy, vec![Event::Deployment(Ok(closed.clone()))]);
    assert_eq!(state, State::Waiting(closed.clone()));
    assert_eq!(effects, [Effect::Tell(Notice::InstallHeld(closed))]);
    let (state, _) = check(&policy, &state, &Event::Deployment(Ok(order("1"))));
    assert_eq!(state, State::Starting(order("1"), false));
}

#[test]
fn a_cancellation_is_answered_truthfully() {
    let canceled = |execution, text: &str| success(execution, vec![text.into()]);
    // Never begun.
    let (state, effects) = check(&policy(), &State::Idle, &Event::Cancel(id("1")));
    assert_eq!(state, State::Idle);
    assert!(effects.contains(&Effect::AnswerCancel(id("1"), canceled(Execution::Closed, CANCELED))));
    // In time.
    let (state, effects) = check(&policy(), &job(order("1"), false), &Event::Cancel(id("1")));
    assert!(effects.contains(&Effect::CancelJob(JobId("j".into()))));
    assert!(!effects.iter().any(|e| matches!(e, Effect::AnswerCancel(..))), "not before it is known");
    let (again, effects) = check(&policy(), &state, &Event::Cancel(id("1")));
    assert!(effects.is_empty(), "asked once");
    let (state, _) = check(&policy(), &again, &Event::Cancelled(Ok(())));
    assert!(matches!(state, State::Ended(Report { place: Place::Cancel, .. })));
    // Too late.
    let (state, effects) = check(&policy(), &again, &Event::Cancelled(Err("it runs already.".into())));
    let text = "Cancelation impossible, it runs already.";
    assert!(effects.contains(&Effect::AnswerCancel(id("1"), canceled(Execution::Rejected, text))));
    assert_eq!(state, job(order("1"), false));
    // Of something else.
    let (state, effects) = check(&policy(), &job(order("1"), false), &Event::Cancel(id("2")));
    assert_eq!(state, job(order("1"), false));
    assert!(effects.contains(&Effect::AnswerCancel(id("2"), canceled(Execution::Closed, CANCELED))));
}

#[test]
fn taken_back_at_the_device_is_a_failure_for_the_server() {
    let (state, _) = check(&policy(), &job(order("1"), false), &Event::Job(News::Ended(End::Cancelled)));
    let State::Ended(report) = state else { panic!("{state:?}") };
    assert_eq!((report.place, report.feedback.finished), (Place::Deployment, Finished::Failure));
}

#[test]
fn consent_is_given_by_the_device_or_by_a_person() {
    let asked = Event::Base(Base { confirmation: Some(id("1")), ..Base::default() });
    let (state, effects) = check(&policy(), &State::Idle, &asked);
    assert_eq!((state, effects), (State::Idle, vec![Effect::Consent(id("1"), true)]));
    let ask = Policy { consent: Consent::Ask, ..policy() };
    let (state, effects) = check(&ask, &State::Idle, &asked);
    assert_eq!(effects, [Effect::Tell(Notice::ConsentNeeded(id("1")))]);
    assert!(check(&ask, &state, &asked).1.is_empty(), "told once");
    let (state, effects) = check(&ask, &state, &Event::Consent(false));
    assert_eq!((state, effects), (State::Idle, vec![Effect::Consent(id("1"), false)]));
}

#[test]
fn progress_is_bounded_in_messages_and_lines() {
    let policy = policy();
    let mut state = job(order("1"), false);
    let mut sent = Vec::new();
    for second in 0..600_u64 {
        let news = News::Step { lines: vec![format!("line {second}")], percent: Some(1) };
        let (after, effects) = step(&policy, state, Event::Job(news), Duration::from_secs(second));
        state = after;
        sent.extend(effects);
    }
    assert!(sent.len() <= 3 * 10, "{} messages in ten minutes", sent.len());
    for effect in sent {
        let Effect::Progress(_, feedback) = effect else { panic!("{effect:?}") };
        assert!(feedback.details.len() <= BATCH_LINES);
    }
    // What is left goes with the next tick that is due.
    let (_, effects) = step(&policy, state, Event::Tick, Duration::from_secs(700));
    assert!(matches!(effects.as_slice(), [Effect::Progress(..)]));
}

#[test]
fn weeks_of_news_leave_room_for_the_last_word() {
    let policy = policy();
    let mut state = job(order("1"), false);
    let mut sent = 0;
    // A restart that is put off for 30 days, with another line every ten seconds.
    for at in (0..30 * 86_400_u64).step_by(10) {
        let news = News::Step { lines: vec![format!("{at} s more")], percent: None };
        let (after, effects) = step(&policy, state, Event::Job(news), Duration::from_secs(at));
        state = after;
        sent += effects.len();
    }
    assert!(sent < 900, "{sent} messages of the 1000 that hawkBit takes");
}

#[test]
fn a_busy_device_tries_again_with_the_next_poll() {
    let busy = Event::Started(Err(Refusal::Busy("by hand".into())));
    let (state, _) = run(&policy(), vec![Event::Deployment(Ok(order("1"))), busy]);
    assert_eq!(state, State::Waiting(order("1")));
    let (_, effects) = check(&policy(), &state, &base("1"));
    assert_eq!(effects, [Effect::FetchDeployment(id("1"))]);
}

#[test]
fn a_restart_takes_up_what_was_under_way() {
    for state in states() {
        let text = serde_json::to_string(&state.durable()).unwrap();
        let loaded: State = serde_json::from_str(&text).unwrap();
        assert_eq!(loaded, state.durable());
        let (_, effects) = check(&policy(), &loaded, &Event::Resume);
        match loaded {
            State::Starting(order, hold) => assert_eq!(effects, [Effect::Start(order, hold)]),
            State::Ended(report) => assert_eq!(effects, [Effect::Report(report)]),
            _ => assert!(effects.is_empty()),
        }
    }
}

#[test]
fn polls_come_sooner_while_something_is_under_way_and_the_owner_counts_more() {
    let secs = Duration::from_secs;
    let server = Some(secs(300));
    assert_eq!(State::Idle.poll_in(&policy(), server), secs(300));
    assert_eq!(State::Idle.poll_in(&policy(), None), secs(60));
    assert_eq!(job(order("1"), false).poll_in(&policy(), server), secs(30));
    assert_eq!(State::Ended(report()).poll_in(&policy(), server), secs(60));
    let owner = Policy { poll_idle: Some(secs(3600)), ..policy() };
    assert_eq!(State::Idle.poll_in(&owner, server), secs(3600));
    assert_eq!(State::Idle.poll_in(&policy(), Some(Duration::ZERO)), secs(1));
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_a_promise(picks in proptest::collection::vec(0..events().len(), 0..60), ask in any::<bool>()) {
        let policy = Policy { consent: if ask { Consent::Ask } else { Consent::Automatic }, ..policy() };
        let events = events();
        run(&policy, picks.into_iter().map(|at| events[at].clone()).collect());
    }
}
