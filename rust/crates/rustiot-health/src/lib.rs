//! The gate in front of boot-complete.target.
