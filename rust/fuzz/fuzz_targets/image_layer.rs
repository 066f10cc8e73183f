//! A layer's tar archive from a stranger, in an image whose digests fit: names, links, attributes, sparse files,
//! whiteouts, lengths. What is taken is whole and comes out of `save` to the byte; what is refused leaves nothing behind.
#![no_main]

#[path = "shared/mend.rs"]
mod mend;
#[path = "shared/store.rs"]
mod store;

use rustiot_images::{Depth, Digest, Platform, Progress};

/// A Docker archive of an image with this layer.
fn archive(layer: &[u8]) -> Vec<u8> {
    let platform = Platform::host();
    let config = serde_json::json!({
        "architecture": platform.architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(layer).to_string()]},
    });
    let manifest = serde_json::json!([{"Config": "config", "Layers": ["layer"], "RepoTags": ["a:b"]}]);
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("layer", layer),
        ("config", config.to_string().as_bytes()),
        ("manifest.json", manifest.to_string().as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).expect("an entry");
    }
    tar.into_inner().expect("an archive")
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let layer = &*mend::mend(bytes);
    let store = store::store();
    if let Ok(loaded) = store.load(&mut archive(layer).as_slice(), &Platform::host(), &Progress::none()) {
        let report = store.scrub(Depth::Full).expect("a scrub");
        assert!(report.bad.is_empty() && report.damaged.is_empty(), "{report:?}");
        let mut saved = Vec::new();
        store.save(&["a:b".to_owned()], &mut saved).expect("an archive");
        assert!(saved.windows(layer.len()).any(|part| part == layer), "the layer was changed");
        let id = loaded.first().expect("an image").id.to_string();
        store.remove(&id, true).expect("no image");
    }
    assert!(store.images().is_empty());
    assert_eq!(store.disk_usage().layers, 0);
});
