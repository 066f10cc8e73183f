//! A hawkBit for tests: the DDI API, and as much of the management API as test suites use.
//!
//! Behaves as the real server does where a device can see it: which links it gives, which feedback it takes, what an
//! action becomes, 401/404/410. In memory, one tenant, no passwords for the management: never more than a server for
//! tests. Faults on demand. Called by the tests of `rustiot-hawkbit` and `rustiot-update`, by the lab for machines in
//! QEMU, and by the example `hawkbit-server` for suites from outside.
#![expect(clippy::indexing_slicing, reason = "of JSON values, where it does not panic")]

mod running;
mod world;

pub use running::Running;
pub use world::{Action, Fault, HawkBit, Target, World};
