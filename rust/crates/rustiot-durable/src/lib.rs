//! Durable files and the two-copy ledger.
