//! `rustiot-init`, PID 1 of the initramfs: watchdog first, then disk, slot, policy and a verified root; rescue where
//! no root can be opened.
//!
//! Everything decidable is pure or works on a directory and a port ([`sys::Sys`]) that tests replace. Never parses
//! what a person wrote, never formats or repairs anything, never commits. Only `main` calls this.
//! Contract: `docs/contracts/init.md`.

pub mod boot;
pub mod cmdline;
pub mod config;
pub mod dhcp;
pub mod disk;
pub mod dm;
pub mod files;
pub mod gpt;
pub mod handover;
pub mod http;
pub mod identity;
pub mod policy;
pub mod pstore;
pub mod report;
pub mod rescue;
pub mod sys;
pub mod watchdog;
