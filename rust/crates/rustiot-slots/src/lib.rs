//! Runs the boot policy on a device; RAUC's custom boot backend.
