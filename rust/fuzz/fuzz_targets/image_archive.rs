//! Archives of images, as `docker load` gets them: OCI and Docker form, plain and compressed. What is taken is whole by
//! its digests and can be saved and taken in again as the same image; what is refused leaves nothing behind.
#![no_main]

#[path = "shared/mend.rs"]
mod mend;
#[path = "shared/store.rs"]
mod store;

use rustiot_images::{Depth, Platform, Progress};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let store = store::store();
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
