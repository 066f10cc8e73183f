//! The store that takes what strangers made, with bounds that keep one input small.

use std::sync::LazyLock;

use rustiot_images::{Limits, Store};

/// One for all inputs, in memory: a store syncs what it writes.
pub fn store() -> &'static Store {
    static STORE: LazyLock<(Store, tempfile::TempDir)> = LazyLock::new(|| {
        let limits = Limits {
            layer_size: 16 << 20,
            image_size: 16 << 20,
            ratio_from: 1 << 20,
            reserve_bytes: 0,
            reserve_inodes: 0,
            ..Limits::default()
        };
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        (Store::open(dir.path(), limits).expect("a store").0, dir)
    });
    &STORE.0
}
