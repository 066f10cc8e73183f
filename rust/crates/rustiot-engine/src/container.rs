//! One container as the engine sees it now: its record and what is of this moment only.
//!
//! Called by `lifecycle` and `engine`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustiot_docker_api::types::{AttachOptions, ContainerState, Health, NetworkSettings, Status};
use tokio::sync::{Notify, oneshot, watch};

use crate::record::Record;
use crate::shim::Shim;

/// How often it has ended, and how the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    pub count: u64,
    pub code: i32,
    pub removed: bool,
}

/// Who attached before there was anything to attach to.
pub struct Waiting {
    pub options: AttachOptions,
    pub connected: oneshot::Sender<Shim>,
}

/// Of this moment.
#[derive(Default)]
pub struct Live {
    pub status: Status,
    pub pid: i32,
    pub health: Option<Health>,
    /// Its places in networks while it runs.
    pub network: Option<NetworkSettings>,
    /// The address that it had last in each network: it gets the same again if it is free.
    pub addresses: BTreeMap<String, (Ipv4Addr, Option<Ipv6Addr>)>,
    pub waiting: Vec<Waiting>,
    /// The pause before the next restart.
    pub backoff: Duration,
    /// Somebody stops it: the restart policy has no say.
    pub stopping: bool,
}

/// See the module.
pub struct Container {
    pub id: String,
    record: Mutex<Record>,
    live: Mutex<Live>,
    /// One change of state at a time.
    pub change: tokio::sync::Mutex<()>,
    /// One record on its way to the medium at a time.
    pub keeping: tokio::sync::Mutex<()>,
    pub ends: watch::Sender<Ends>,
    /// The pause before a restart is over.
    pub no_restart: Notify,
}

impl Container {
    pub fn new(record: Record) -> Container {
        let never = record.last.started.is_none();
        let live = Live { status: if never { Status::Created } else { Status::Exited }, ..Live::default() };
        let ends = Ends { code: record.last.code, ..Ends::default() };
        Container {
            id: record.id.clone(),
            record: Mutex::new(record),
            live: Mutex::new(live),
            change: tokio::sync::Mutex::default(),
            keeping: tokio::sync::Mutex::default(),
            ends: watch::channel(ends).0,
            no_restart: Notify::new(),
        }
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn name(&self) -> String {
        self.record().name.clone()
    }

    /// Its program runs, frozen or not.
    pub fn runs(&self) -> bool {
        matches!(self.live().status, Status::Running | Status::Paused)
    }

    /// As `inspect` has it.
    pub fn state(&self) -> ContainerState {
        let record = self.record();
        let live = self.live();
        let runs = matches!(live.status, Status::Running | Status::Paused);
        ContainerState {
            status: live.status,
            oom_killed: record.last.oom && !runs,
            pid: if runs { u32::try_from(live.pid).unwrap_or(0) } else { 0 },
            exit_code: if runs { 0 } else { record.last.code },
            error: record.last.error.clone(),
            started_at: record.last.started,
            finished_at: record.last.finished,
            health: live.health.clone(),
        }
    }
}
