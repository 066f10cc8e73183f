//! What Docker's clients send beside JSON bodies: filters, credentials, queries, paths. Nothing panics, paths stay inside.
#![no_main]

use rustiot_docker_api::filters::{Filters, path_match};
use rustiot_docker_api::query::{Query, go_duration, unix_time};
use rustiot_docker_api::{auth, path};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(filters) = Filters::parse(Some(text), &["label", "name", "dangling"]) {
        let _ = filters.flag("dangling");
        let _ = filters.patterns("name").accept(text);
    }
    let _ = auth::registry_auth(text.as_bytes());
    let query = Query::parse(text);
    let _ = (query.time("since"), query.number::<u16>("h"), query.is("all"));
    let _ = (go_duration(text), unix_time(text));
    if let Some((pattern, name)) = text.split_once('\n') {
        let _ = path_match(pattern, name);
    }
    if let Ok(clean) = path::clean(text) {
        // A last dot stays: it says that a directory's contents are meant.
        let inner = clean.strip_suffix("/.").unwrap_or(&clean);
        assert!(clean.starts_with('/') && inner.split('/').all(|part| part != ".." && part != "."));
        assert_eq!(path::clean(&clean).ok().as_deref(), Some(clean.as_str()));
    }
});
