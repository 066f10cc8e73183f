//! Builds the lab image, bundles and keys.
