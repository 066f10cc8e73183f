//! Owner of the hardware watchdog and the liveness tree.
pub mod budget;
pub mod clock;
pub mod protocol;
pub mod tree;
