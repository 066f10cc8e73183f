//! Posts outcomes to the owner's URL: batched, over HTTPS, again and again until somebody takes them.
//!
//! The queue is a file of the state partition (`store`), written by the engine when a transaction has ended and never
//! before; a restart changes nothing. Decides nothing about updates. Started by the daemon as a task beside the engine.

use std::time::Duration;

use rustiot_http::{Backoff, Class, Http, Url};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::store::{REPORTS, Store};

/// How often the queue is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Pauses after a failure.
const BACKOFF_BASE: Duration = Duration::from_secs(30);
const BACKOFF_CAP: Duration = Duration::from_secs(6 * 3600);

/// What is posted.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Batch<'a> {
    /// Version of this form; keys are only ever added.
    pub format: u32,
    /// The device, by the SHA-256 of its public key (SPKI, PEM), hex.
    pub device: &'a str,
    /// Its host name.
    pub hostname: &'a str,
    /// Its board.
    pub compatible: &'a str,
    /// The release that runs now.
    pub running: &'a str,
    /// Ended transactions, oldest first, as in the history.
    pub outcomes: &'a [Value],
}

/// Who reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sender {
    /// See [`Batch`].
    pub device: String,
    /// See [`Batch`].
    pub hostname: String,
    /// See [`Batch`].
    pub compatible: String,
    /// See [`Batch`].
    pub running: String,
}

impl Sender {
    fn batch<'a>(&'a self, outcomes: &'a [Value]) -> Batch<'a> {
        let Sender { device, hostname, compatible, running } = self;
        Batch { format: 1, device, hostname, compatible, running, outcomes }
    }
}

/// Why nothing was posted.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{failure}: {}", .failure.chain.join(": "))]
    Store { failure: Failure },
    #[error("{answer}")]
    Post { answer: rustiot_http::Error, outcomes: usize },
}

/// Posts what waits, for as long as the service runs. `target` says where to and with which client, each time; `sleep`
/// is a pause.
pub(crate) async fn run(
    store: &Store,
    sender: &Sender,
    target: impl Fn() -> Option<(Url, Http)>,
    sleep: impl AsyncFn(Duration),
) {
    let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
    // How many go at once: fewer where the server refuses more, for it may be their size.
    let mut most = REPORTS;
    loop {
        let pause = match post(store, sender, &target, most).await {
            Ok(()) => {
                backoff.reset();
                most = most.saturating_mul(2).min(REPORTS);
                LOOK_EVERY
            }
            Err(error) => {
                let mut asked = None;
                if let Error::Post { answer, outcomes } = &error {
                    asked = answer.retry_after();
                    if answer.class() == Class::Refused {
                        most = outcomes.div_ceil(2);
                    }
                }
                let pause = backoff.after_answer(asked);
                eprintln!("outcomes are not posted: {error}; again in {} s", pause.as_secs());
                pause
            }
        };
        sleep(pause).await;
    }
}

async fn post(
    store: &Store,
    sender: &Sender,
    target: &impl Fn() -> Option<(Url, Http)>,
    most: usize,
) -> Result<(), Error> {
    let mut waiting = store.reports().map_err(|failure| Error::Store { failure })?;
    waiting.truncate(most);
    if waiting.is_empty() {
        return Ok(());
    }
    // No address any more: what waits stays, in case one comes back.
    let Some((url, http)) = target() else { return Ok(()) };
    let sent = http.post_json(&url, &sender.batch(&waiting)).send().await;
    sent.map_err(|answer| Error::Post { answer, outcomes: waiting.len() })?;
    if let Err(failure) = store.remove_reports(&waiting) {
        // They are posted once more then; the transaction's id tells the receiver.
        eprintln!("{failure}: {}", failure.chain.join(": "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustiot_http::faulty::{Fault, Server, nobody};
    use serde_json::json;
    use std::cell::RefCell;
    use tokio::sync::Notify;

    /// A device with outcomes that wait, and a server; the loop runs as often as a test wants. In the place of the clock
    /// is the test: a pause is written down and is over at once.
    struct World {
        dir: tempfile::TempDir,
        server: Server,
        http: Http,
    }

    impl World {
        async fn new(waiting: std::ops::Range<usize>) -> World {
            let patience = Duration::from_millis(300);
            let settings = rustiot_http::Settings { idle_timeout: patience, ..Default::default() };
            let http = Http::new(&settings).unwrap();
            let world =
                World { dir: tempfile::tempdir().unwrap(), server: Server::start(Vec::new()).await, http };
            waiting.for_each(|id| world.add(id));
            world
        }

        /// As a service that has just begun opens it.
        fn store(&self) -> Store {
            Store::open(self.dir.path()).unwrap()
        }

        fn add(&self, id: usize) {
            self.store().add_report(outcome(id)).unwrap();
        }

        fn target(&self) -> Option<(Url, Http)> {
            Some((self.server.url(), self.http.clone()))
        }

        fn waiting(&self) -> Vec<usize> {
            ids(&self.store().reports().unwrap())
        }

        /// The outcomes of each request so far.
        fn posted(&self) -> Vec<Vec<usize>> {
            let outcomes = |body: &Vec<u8>| {
                let batch: Value = serde_json::from_slice(body).unwrap();
                ids(batch["outcomes"].as_array().unwrap())
            };
            self.server.bodies().iter().map(outcomes).collect()
        }

        /// A service that posts to the server up to its pause number `count`; see [`run_to`].
        async fn run(&self, count: usize, then: impl Fn(usize)) -> Vec<u64> {
            run_to(&self.store(), count, || self.target(), then).await
        }
    }

    fn outcome(id: usize) -> Value {
        json!({ "transaction": id })
    }

    fn ids(outcomes: &[Value]) -> Vec<usize> {
        outcomes.iter().map(|o| usize::try_from(o["transaction"].as_u64().unwrap()).unwrap()).collect()
    }

    /// Runs the loop up to its pause number `count` and ends it there, as a restart does. At each pause (from 1 on)
    /// `then` may change the world. Returns the pauses, seconds.
    async fn run_to(
        store: &Store,
        count: usize,
        target: impl Fn() -> Option<(Url, Http)>,
        then: impl Fn(usize),
    ) -> Vec<u64> {
        let (pauses, enough) = (RefCell::new(Vec::new()), Notify::new());
        let pause = async |pause: Duration| {
            let number = {
                let mut pauses = pauses.borrow_mut();
                pauses.push(pause.as_secs());
                pauses.len()
            };
            then(number);
            if number == count {
                enough.notify_one();
                std::future::pending::<()>().await;
            }
        };
        let sender = Sender { device: "d".into(), ..Sender::default() };
        tokio::select! {
            () = run(store, &sender, target, pause) => unreachable!("it never ends"),
            () = enough.notified() => {}
        }
        pauses.into_inner()
    }

    const LOOK: u64 = LOOK_EVERY.as_secs();
    const BASE: u64 = BACKOFF_BASE.as_secs();
    const CAP: u64 = BACKOFF_CAP.as_secs();

    #[tokio::test]
    async fn what_waits_is_posted_together_and_forgotten_only_when_it_was_taken() {
        let world = World::new(0..0).await;
        assert_eq!(world.run(3, |_| ()).await, [LOOK; 3]);
        assert!(world.server.requests().is_empty(), "nothing waits, nobody is asked");
        (1..4).for_each(|id| world.add(id));
        world.server.set(Fault::Status(503, None));
        let pauses = world.run(3, |number| {
            if number == 2 {
                assert_eq!(world.waiting(), [1, 2, 3], "forgotten although nobody took it");
                world.add(4);
                world.server.set(Fault::None);
            }
        });
        assert_eq!(pauses.await[2], LOOK);
        assert_eq!(world.posted(), [vec![1, 2, 3], vec![1, 2, 3], vec![1, 2, 3, 4]]);
        assert!(world.waiting().is_empty());
        assert_eq!(world.run(2, |_| ()).await, [LOOK; 2]);
        assert_eq!(world.posted().len(), 3, "posted again");
        let batch: Value = serde_json::from_slice(&world.server.bodies()[0]).unwrap();
        assert_eq!((batch["device"].as_str(), batch["format"].as_u64()), (Some("d"), Some(1)));
    }

    #[tokio::test]
    async fn pauses_grow_by_chance_up_to_six_hours_and_start_over_when_something_was_taken() {
        let world = World::new(0..1).await;
        world.server.set(Fault::Status(503, None));
        let pauses = world.run(100, |_| ()).await;
        let mut before = BASE;
        for pause in &pauses {
            assert!((BASE..=CAP).contains(pause) && *pause < 3 * (before + 1), "{pauses:?}");
            before = *pause;
        }
        assert!(pauses.iter().any(|pause| *pause > 10 * BASE), "they do not grow: {pauses:?}");
        assert_eq!(world.posted().len(), 100);
        // One that is taken, and then another one that is not.
        let pauses = world.run(40, |number| match number {
            30 => world.server.set(Fault::None),
            31 => {
                world.add(1);
                world.server.set(Fault::Status(500, None));
            }
            _ => {}
        });
        let pauses = pauses.await;
        assert_eq!(pauses[30], LOOK);
        assert!((BASE..=3 * BASE).contains(&pauses[31]), "it goes on where it was: {pauses:?}");
        assert_eq!(world.waiting(), [1]);
    }

    #[tokio::test]
    async fn a_server_that_asks_for_a_pause_gets_it_up_to_a_day() {
        let world = World::new(0..1).await;
        let asked = [(429, 7200), (503, 20_000), (503, 40_000_000)];
        world.server.set(Fault::Status(asked[0].0, Some(asked[0].1)));
        let pauses = world.run(4, |number| {
            let (status, after) = *asked.get(number).unwrap_or(&(503, 0));
            world.server.set(Fault::Status(status, Some(after)));
        });
        let pauses = pauses.await;
        // A tenth on top at the most, so that not all come back at once.
        for (pause, asked) in pauses.iter().zip([7200, 20_000, 24 * 3600]) {
            assert!((asked..=asked + asked / 10).contains(pause), "{pauses:?}");
        }
        assert!((BASE..=81 * BASE).contains(&pauses[3]), "what was asked for once goes on: {pauses:?}");
    }

    #[tokio::test]
    async fn no_failure_of_the_way_there_ends_it_or_loses_anything() {
        let world = World::new(0..2).await;
        let elsewhere = Server::start(b"a page".to_vec()).await;
        let nobody = nobody().await;
        let faults = [
            Fault::HangUp,
            Fault::Silent,
            Fault::RedirectLoop,
            // A POST that is sent on so becomes a GET without what it carried.
            Fault::RedirectTo(elsewhere.url().to_string()),
            Fault::Status(408, None),
            Fault::Status(502, None),
        ];
        for fault in faults {
            let before = world.server.requests().len();
            world.server.set(fault.clone());
            let pauses = world.run(2, |_| ()).await;
            assert!(pauses.iter().all(|pause| *pause >= BASE), "{fault:?}: {pauses:?}");
            assert_eq!(world.waiting(), [0, 1], "{fault:?}");
            assert!(world.server.requests().len() >= before + 2, "{fault:?}");
        }
        assert!(elsewhere.requests().is_empty(), "{:?}", elsewhere.requests());
        let gone = || Some((nobody.clone(), world.http.clone()));
        assert!(run_to(&world.store(), 2, gone, |_| ()).await.iter().all(|pause| *pause >= BASE));
        world.server.set(Fault::None);
        let before = world.posted().len();
        assert_eq!(world.run(2, |_| ()).await, [LOOK; 2]);
        assert_eq!(world.posted()[before..], [vec![0, 1]]);
    }

    #[tokio::test]
    async fn without_an_address_it_waits_and_goes_on_when_there_is_one() {
        let world = World::new(0..1).await;
        let address = RefCell::new(None);
        let store = world.store();
        let pauses = run_to(
            &store,
            4,
            || address.borrow().clone(),
            |number| {
                if number == 2 {
                    assert_eq!(world.waiting(), [0]);
                    *address.borrow_mut() = world.target();
                }
            },
        );
        assert_eq!(pauses.await, [LOOK; 4], "no address is no failure");
        assert_eq!(world.posted(), [vec![0]]);
    }

    #[tokio::test]
    async fn what_ends_while_a_batch_is_on_its_way_goes_with_the_next() {
        let world = World::new(0..2).await;
        // The batch is made before the address is asked for.
        let target = || {
            if world.server.requests().is_empty() {
                world.add(2);
            }
            world.target()
        };
        assert_eq!(run_to(&world.store(), 2, target, |_| ()).await, [LOOK; 2]);
        assert_eq!(world.posted(), [vec![0, 1], vec![2]]);
        assert!(world.waiting().is_empty());
    }

    #[tokio::test]
    async fn a_restart_in_the_middle_of_a_request_loses_nothing() {
        let world = World::new(0..2).await;
        world.server.set(Fault::Silent);
        let store = world.store();
        let asked = async {
            while world.server.requests().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            _ = run_to(&store, 2, || world.target(), |_| ()) => unreachable!("nobody answered"),
            () = asked => {}
        }
        drop(store);
        world.server.set(Fault::None);
        assert_eq!(world.run(1, |_| ()).await, [LOOK]);
        assert_eq!(world.posted(), [vec![0, 1], vec![0, 1]]);
        assert!(world.waiting().is_empty());
    }

    #[tokio::test]
    async fn what_was_taken_but_cannot_be_forgotten_is_posted_once_more_at_the_next_look() {
        let world = World::new(0..1).await;
        let file = world.dir.path().join("reports.jsonl");
        let hidden = world.dir.path().join("hidden");
        // A directory in its place, for as long as the first request takes.
        let target = || {
            if world.server.requests().is_empty() {
                std::fs::hard_link(&file, &hidden).unwrap();
                std::fs::remove_file(&file).unwrap();
                std::fs::create_dir(&file).unwrap();
            }
            world.target()
        };
        let store = world.store();
        let pauses = run_to(&store, 2, target, |number| {
            if number == 1 {
                std::fs::remove_dir(&file).unwrap();
                std::fs::hard_link(&hidden, &file).unwrap();
            }
        });
        assert_eq!(pauses.await, [LOOK; 2], "the server is not to blame");
        assert_eq!(world.posted(), [vec![0], vec![0]]);
        assert!(world.waiting().is_empty());
    }

    #[tokio::test]
    async fn a_list_that_cannot_be_read_is_told_and_tried_again() {
        let world = World::new(0..1).await;
        let file = world.dir.path().join("reports.jsonl");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        let pauses = world.run(2, |number| {
            if number == 1 {
                std::fs::remove_dir(&file).unwrap();
                world.add(7);
            }
        });
        let pauses = pauses.await;
        assert!(pauses[0] >= BASE && pauses[1] == LOOK, "{pauses:?}");
        assert_eq!(world.posted(), [vec![7]]);
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        let error =
            post(&world.store(), &Sender::default(), &|| None, REPORTS).await.unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("reports.jsonl: "), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_never_takes_them_is_asked_seldom_and_the_newest_are_kept() {
        for status in [400, 401, 403, 404, 410, 413, 422] {
            let world = World::new(0..2).await;
            world.server.set(Fault::Status(status, None));
            let pauses = world.run(REPORTS + 8, |number| world.add(1 + number)).await;
            assert!(pauses.iter().all(|pause| (BASE..=CAP).contains(pause)), "{status}: {pauses:?}");
            assert_eq!(world.waiting(), (10..10 + REPORTS).collect::<Vec<_>>(), "{status}");
            world.server.set(Fault::None);
            world.run(1, |_| ()).await;
            assert_eq!(world.posted().last().unwrap().len(), REPORTS, "{status}: all in one");
            assert!(world.waiting().is_empty());
        }
    }

    #[tokio::test]
    async fn a_batch_that_is_too_large_is_halved_until_it_is_taken() {
        let world = World::new(0..REPORTS).await;
        let body = |most: usize| {
            let outcomes: Vec<Value> = (0..most).map(outcome).collect();
            let sender = Sender { device: "d".into(), ..Sender::default() };
            serde_json::to_vec(&sender.batch(&outcomes)).unwrap().len() as u64
        };
        world.server.set(Fault::TooLarge(body(10)));
        let pauses = world.run(9, |_| ()).await;
        let refused: Vec<bool> = pauses.iter().map(|pause| *pause != LOOK).collect();
        let sizes: Vec<usize> = world.posted().iter().map(Vec::len).collect();
        assert_eq!(sizes, [32, 16, 8, 16, 8, 16, 8, 8], "{pauses:?}");
        assert_eq!(refused, [true, true, false, true, false, true, false, false, false], "{sizes:?}");
        let taken = world.posted().into_iter().filter(|batch| batch.len() == 8);
        assert_eq!(
            taken.flatten().collect::<Vec<_>>(),
            (0..REPORTS).collect::<Vec<_>>(),
            "each once, in order"
        );
        assert!(world.waiting().is_empty());
        // One that it never takes is tried alone until newer ones push it out; nothing is thrown away for it before.
        world.server.set(Fault::TooLarge(1));
        world.add(99);
        let pauses = world.run(3, |_| ()).await;
        assert!(pauses.iter().all(|pause| *pause >= BASE), "{pauses:?}");
        assert_eq!((world.posted().pop().unwrap(), world.waiting()), (vec![99], vec![99]));
    }
}
