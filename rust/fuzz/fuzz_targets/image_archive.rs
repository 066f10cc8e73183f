//! Archives of images, as `docker load` gets them: OCI and Docker form, plain and compressed. What is taken is whole by
//! its digests and can be saved and taken in again as the same image; what is refused leaves nothing behind.
#![no_main]

#[path = "shared/mend.rs"]
mod mend;

use std::sync::LazyLock;

use rustiot_images::{Depth, Limits, Platform, Progress, Store};

const LIMITS: fn() -> Limits = || Limits {
    layer_size: 16 << 20,
    image_size: 16 << 20,
    ratio_from: 1 << 20,
    reserve_bytes: 0,
    reserve_inodes: 0,
    ..Limits::default()
};

/// In memory: a store syncs what it writes.
static STORE: LazyLock<(Store, tempfile::TempDir)> = LazyLock::new(|| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    (Store::open(dir.path(), LIMITS()).expect("a store").0, dir)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let store = &STORE.0;
    let (platform, progress) = (Platform::host(), Progress::none());
    let load = |mut from: &[u8]| store.load(&mut from, &platform, &progress);
    if let Ok(loaded) = load(&mend::mend(bytes)) {
        let report = store.scrub(Depth::Full).expect("a scrub");
        assert!(report.bad.is_empty() && report.damaged.is_empty(), "{report:?}");
        for image in loaded {
            // Named twice in the archive, it went with the first.
            let Ok(_) = store.rootfs(&image.id) else { continue };
            let id = image.id.to_string();
            let mut saved = Vec::new();
            store.save(std::slice::from_ref(&id), &mut saved).expect("an archive");
            store.remove(&id, true).expect("no image");
            let again = load(&saved).expect("what was saved");
            assert_eq!(again.first().map(|image| image.id), Some(image.id));
            store.remove(&id, true).expect("no image");
        }
    }
    assert!(store.images().is_empty());
    assert_eq!(store.disk_usage().layers, 0);
});
