//! Board files and the disk layout.
