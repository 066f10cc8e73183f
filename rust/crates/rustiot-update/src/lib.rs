//! Installs releases through RAUC and sees them through trial, commit or fallback.
