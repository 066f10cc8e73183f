//! What the engine needs of the outside: RAUC, the boot ledger, the disk's counters, systemd.
//!
//! Narrow on purpose: each is replaced by a recording fake in the engine's tests. The real ones are in `rauc`,
//! `ledger` and `disk`.

use rustiot_boot::{Event, Record, Slot};

use crate::bundle::Manifest;
use crate::failure::Failure;

/// One install order to RAUC.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Path or URL.
    pub source: String,
    /// Transaction id.
    pub id: String,
    /// Manifest hash that the bundle must have.
    pub manifest_hash: String,
}

/// RAUC.
pub(crate) trait Installer {
    /// Verifies the signature and reads the manifest.
    async fn inspect(&self, source: &str) -> Result<Manifest, Failure>;
    /// Writes the other slot; returns when it is complete.
    async fn install(&self, order: &Order, progress: impl Fn(u8, &str)) -> Result<(), Failure>;
    /// Whether RAUC is installing at this moment.
    async fn busy(&self) -> Result<bool, Failure>;
    /// Manifest hash of the bundle that filled both partitions of `slot`, if both are complete.
    async fn written(&self, slot: Slot) -> Result<Option<String>, Failure>;
    /// Makes the next boot the trial of the other slot.
    async fn activate(&self) -> Result<(), Failure>;
    /// Stops whatever RAUC does; returns when it is gone.
    async fn abort(&self) -> Result<(), Failure>;
}

/// The boot ledger.
pub(crate) trait Ledger {
    /// What is remembered of the slots.
    fn record(&self) -> Result<Record, Failure>;
    /// Takes one step of the policy.
    fn apply(&self, event: Event) -> Result<(), Failure>;
}

/// The partitions of a slot, by their names.
pub(crate) trait Disk {
    /// Bytes that the partition holds.
    fn capacity(&self, label: &str) -> Option<u64>;
    /// Bytes written to the partition since boot.
    fn written(&self, label: &str) -> Option<u64>;
}

/// The machine.
pub(crate) trait Machine {
    /// Starts an orderly restart.
    async fn reboot(&self) -> Result<(), Failure>;
    /// The configuration says that the device restarts by itself into what is installed.
    fn reboots_itself(&self) -> bool;
    /// Unix time, seconds.
    fn now(&self) -> u64;
    /// First bytes of a local file, if it can be read.
    fn head(&self, path: &str) -> Option<[u8; 4]>;
}

impl<T: Installer> Installer for std::rc::Rc<T> {
    async fn inspect(&self, source: &str) -> Result<Manifest, Failure> {
        T::inspect(self, source).await
    }
    async fn install(&self, order: &Order, progress: impl Fn(u8, &str)) -> Result<(), Failure> {
        T::install(self, order, progress).await
    }
    async fn busy(&self) -> Result<bool, Failure> {
        T::busy(self).await
    }
    async fn written(&self, slot: Slot) -> Result<Option<String>, Failure> {
        T::written(self, slot).await
    }
    async fn activate(&self) -> Result<(), Failure> {
        T::activate(self).await
    }
    async fn abort(&self) -> Result<(), Failure> {
        T::abort(self).await
    }
}
