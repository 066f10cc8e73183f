//! The owner's rustiot.toml.
