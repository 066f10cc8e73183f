//! What a repository says beyond TUF: releases and roll-outs, and the plan that a device makes of them.
#![no_main]

use rustiot_repository::{Facts, Index, Rollouts, Running, Space, Wanted, plan};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Rollouts::parse(bytes);
    let Ok(index) = Index::parse(bytes) else { return };
    let oldest = index.releases.last();
    let running = Running {
        version: oldest.map(|release| release.version.clone()),
        manifest_hash: oldest.map(|release| release.manifest_hash),
        root_hash: oldest.and_then(|release| release.root_hash),
    };
    let mut facts = Facts {
        compatible: index.compatible.clone(),
        readable: true,
        now: 1_800_000_000,
        ..Facts::default()
    };
    let _ = plan(&index, &facts);
    facts.running = running;
    facts.space = Some(Space { bytes: 1 << 20, streams: true });
    let _ = plan(&index, &facts);
    facts.wanted = Some(Wanted { version: oldest.map(|release| release.version.clone()), force: true });
    let _ = plan(&index, &facts);
});
