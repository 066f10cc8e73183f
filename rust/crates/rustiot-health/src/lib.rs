//! Health.
pub mod check;
pub mod gate;
