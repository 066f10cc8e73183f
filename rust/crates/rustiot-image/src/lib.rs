//! Builds the lab image, bundles and keys.

pub mod fit;
