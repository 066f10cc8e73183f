//! Owner of the hardware watchdog and the liveness tree.
