//! Every representative state against every event; the state diagram is drawn from what they do.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may stop at once")]

mod common;

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use common::{check, events, records};
use rustiot_boot::{Effect, Event, Record, ResetReason, step};

const DIAGRAM: &str = "../../../docs/contracts/boot-states.md";

/// What a person calls the state that `record` is in.
fn name(record: &Record) -> &'static str {
    if record.rescue.is_some() && record.phase.name() == "idle" { "rescue" } else { record.phase.name() }
}

#[test]
fn every_state_answers_every_event() {
    let mut answered = 0;
    for (_, record) in records() {
        for (_, event) in events() {
            let before = record.clone();
            match step(&record, event.clone()) {
                Ok((after, effects)) => {
                    check(&after);
                    decisions(&event, &effects);
                    answered += 1;
                }
                Err(refused) => {
                    assert!(!matches!(event, Event::Booted { .. }), "a boot is never refused");
                    assert!(refused.0.len() > 10, "a refusal says why: {refused}");
                }
            }
            assert_eq!(record, before);
        }
    }
    assert!(answered > 300, "{answered}");
}

/// A boot, and only a boot, says how it goes on; the loader is told first.
fn decisions(event: &Event, effects: &[Effect]) {
    let decides = |effect: &Effect| {
        matches!(effect, Effect::Continue(_) | Effect::Reboot { .. } | Effect::Rescue { .. })
    };
    let loader =
        |effect: &Effect| matches!(effect, Effect::SetDefault(_) | Effect::SetNext(_) | Effect::ClearNext);
    let wanted =
        usize::from(matches!(event, Event::Booted { .. } | Event::RootUnusable { .. } | Event::Retry));
    let trial_failed = usize::from(matches!(event, Event::GateFailed { .. }));
    let found = effects.iter().filter(|effect| decides(effect)).count();
    assert!(found >= wanted && found <= wanted + trial_failed, "{event:?}: {effects:?}");
    assert!(effects.iter().skip_while(|effect| loader(effect)).all(|effect| !loader(effect)));
    assert!(found == 0 || effects.last().is_some_and(decides));
}

/// Telling the same thing again does no harm: the effects of a lost process are repeated, not doubled.
#[test]
fn every_accepted_event_may_be_repeated() {
    for (state, record) in records() {
        for (label, event) in events() {
            let Ok((once, _)) = step(&record, event.clone()) else { continue };
            if let Ok((twice, _)) = step(&once, event) {
                assert_eq!(twice.committed, once.committed, "{state}, {label}");
                assert_eq!(twice.phase, once.phase, "{state}, {label}");
                assert_eq!(twice.selection(), once.selection(), "{state}, {label}");
                assert_eq!(twice.boots.len(), once.boots.len(), "{state}, {label}");
            }
        }
    }
}

#[test]
fn only_gate_and_soak_lead_to_a_new_default() {
    for (state, record) in records() {
        for (label, event) in events() {
            let Ok((after, _)) = step(&record, event) else { continue };
            if after.committed == record.committed {
                continue;
            }
            match label {
                "commit" | "soaked" => {
                    let boot = after.last_boot().unwrap();
                    assert!(boot.healthy && boot.stable && boot.slot == after.committed, "{state}, {label}");
                }
                "write started" => {
                    assert_eq!(state, "rescue", "only there may the other slot be the running one")
                }
                _ => panic!("{state}, {label}: the default changed"),
            }
        }
    }
}

fn diagram() -> String {
    let mut edges = BTreeSet::new();
    for (_, record) in records() {
        for (label, event) in events() {
            let ended = match &event {
                Event::Booted { reset: ResetReason::Power | ResetReason::Unknown, .. } => {
                    " after a power cut"
                }
                Event::Booted { reset: ResetReason::Clean, .. } => " after a clean reboot",
                Event::Booted { .. } => " after a crash",
                _ => "",
            };
            let Ok((after, _)) = step(&record, event) else { continue };
            if name(&record) != name(&after) {
                edges.insert((name(&record), name(&after), format!("{label}{ended}")));
            }
        }
    }
    // Boots that lead to the same place whatever ended the boot before need one label only.
    let mut merged: BTreeSet<(&str, &str, String)> = BTreeSet::new();
    for (from, to, label) in &edges {
        let stem = label.split(" after ").next().unwrap_or(label);
        let all = [" after a power cut", " after a clean reboot", " after a crash"]
            .iter()
            .all(|ended| edges.contains(&(*from, *to, format!("{stem}{ended}"))));
        merged.insert((*from, *to, if all { stem.to_owned() } else { label.clone() }));
    }
    let mut text = String::from(
        "# States of the boot policy\n\n\
         Drawn from the code by `rust/crates/rustiot-boot/tests/table.rs`, which compares it with this file\n\
         (`RUSTIOT_BLESS=1 cargo test -p rustiot-boot --test table` writes it anew). Slot A is committed throughout, B is\n\
         the other one; an edge says which event *may* lead there. Meaning: [boot.md](boot.md).\n\n\
         ```mermaid\nstateDiagram-v2\n    [*] --> idle\n",
    );
    let id = |name: &str| name.replace('-', "_");
    let mut last = None;
    let mut labels: Vec<String> = vec![];
    for (from, to, label) in merged.iter().map(Some).chain([None]).map(|edge| match edge {
        Some((from, to, label)) => (*from, *to, label.clone()),
        None => ("", "", String::new()),
    }) {
        if last != Some((from, to)) {
            if let Some((from, to)) = last {
                let _ = writeln!(text, "    {} --> {}: {}", id(from), id(to), labels.join(" / "));
            }
            labels.clear();
            last = Some((from, to));
        }
        labels.push(label);
    }
    text.push_str("```\n");
    text
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a source file, not state")]
fn the_diagram_is_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DIAGRAM);
    let drawn = diagram();
    if std::env::var_os("RUSTIOT_BLESS").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(committed, drawn, "docs/contracts/boot-states.md is out of date: see its head");
}
