//! What happened: to everybody who listens, and the last of it to who asks later.
//!
//! A reader that is too slow loses events, never the engine its memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use rustiot_docker_api::Timestamp;
use rustiot_docker_api::types::{Event, EventKind, Items};
use tokio::sync::broadcast;

const KEPT: usize = 256;

/// See the module.
pub struct Events {
    past: Mutex<VecDeque<Event>>,
    now: broadcast::Sender<Event>,
}

impl Events {
    pub fn new() -> Events {
        Events { past: Mutex::default(), now: broadcast::channel(KEPT).0 }
    }

    pub fn say(&self, kind: EventKind, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        let event =
            Event { kind, action: action.to_owned(), id: id.to_owned(), attributes, time: Timestamp::now() };
        // Both under the lock, so that a new listener neither misses one nor hears it twice.
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.push_back(event.clone());
        if past.len() > KEPT {
            past.pop_front();
        }
        let _ = self.now.send(event);
    }

    pub fn listen(&self, since: Option<Timestamp>) -> Items<Event> {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let from = self.now.subscribe();
        let old: VecDeque<Event> = match since {
            Some(since) => past.iter().filter(|e| e.time >= since).cloned().collect(),
            None => VecDeque::new(),
        };
        drop(past);
        Box::pin(futures_util::stream::unfold((old, from), |(mut old, mut from)| async move {
            if let Some(event) = old.pop_front() {
                return Some((Ok(event), (old, from)));
            }
            loop {
                match from.recv().await {
                    Ok(event) => return Some((Ok(event), (old, from))),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        }))
    }
}
