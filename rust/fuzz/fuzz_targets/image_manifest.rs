//! What a registry says of an image: manifests, indexes and configurations of any media type. Nothing panics, and what
//! is taken stays within the device's bounds.
#![no_main]

use rustiot_images::manifest::{Document, ImageConfig, media};
use rustiot_images::{Limits, Platform};

const SAID: [&str; 6] = [
    "",
    "application/json",
    media::OCI_INDEX,
    media::OCI_MANIFEST,
    media::DOCKER_LIST,
    media::DOCKER_MANIFEST,
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [first, text @ ..] = bytes else { return };
    let limits = Limits::default();
    match Document::parse(text, SAID[usize::from(*first) % SAID.len()]) {
        Ok(Document::Manifest(manifest)) => {
            if manifest.check(limits.layers).is_ok() {
                assert!(manifest.layers.len() <= limits.layers);
            }
            let again = serde_json::to_vec(&manifest).expect("JSON");
            let again = Document::parse(&again, media::OCI_MANIFEST);
            assert!(matches!(again, Ok(Document::Manifest(same)) if same == manifest));
        }
        Ok(Document::Index(index)) => {
            if let Ok(chosen) = index.select(&Platform::host()) {
                assert!(index.manifests.contains(chosen));
            }
        }
        Err(error) => assert!(error.to_string().len() < 4096),
    }
    if let Ok(config) = ImageConfig::parse(text, usize::from(*first)) {
        assert_eq!(config.rootfs.diff_ids.len(), usize::from(*first));
        let _ = config.platform().normalised();
    }
});
