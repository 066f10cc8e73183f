//! The guarantees, one promise each. A test is added by writing it in the file of its subject and
//! naming it in [`all`].

mod access;
mod console;
mod containers;
mod damage;
mod firmware;
mod hawkbit;
mod image;
mod liveness;
mod offline;
mod ota;
mod owner;
mod power;
mod refusals;
mod signing;
mod trials;
mod updates;

use updates::update;

use crate::device::Device;
use crate::runner::LabTest;

/// Every test, in the order in which they run: the slowest first keeps both workers busy to the end. Tests that need a
/// snapshot which nobody has made yet do not follow each other: one of them would only wait.
pub fn all() -> Vec<LabTest> {
    [
        power::TESTS,
        trials::TESTS,
        firmware::TESTS,
        damage::TESTS,
        updates::TESTS,
        containers::TESTS,
        ota::TESTS,
        hawkbit::TESTS,
        offline::TESTS,
        owner::TESTS,
        refusals::TESTS,
        signing::TESTS,
        image::TESTS,
        liveness::TESTS,
        console::TESTS,
        access::TESTS,
    ]
    .concat()
}

/// Adds `text` to the device's `rustiot.toml`; it counts from now on.
fn add_configuration(machine: &testbed::Machine, text: &str) -> anyhow::Result<()> {
    machine.sh(&format!(
        "mount -o remount,rw /config && cat >> /config/rustiot.toml <<'END'\n{text}END\n\
         sync && mount -o remount,ro /config && rustiot provision apply"
    ))?;
    Ok(())
}

/// The tests of releases that fail their trial, one a failure class; each notes `failed_boots`, `watchdog_periods` and
/// `seconds`.
pub fn trials() -> Vec<LabTest> {
    trials::TESTS.to_vec()
}

#[cfg(test)]
mod names {
    use super::*;

    #[test]
    fn every_test_has_its_own_name_and_a_promise() {
        let mut names: Vec<&str> = all().iter().map(|test| test.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for test in all() {
            assert!(test.promise.ends_with('.'), "{}: a promise is a sentence", test.name);
            assert!(test.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
        }
    }

    #[test]
    fn the_page_of_guarantees_names_every_test_and_no_other() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/guarantees.md");
        let page = std::fs::read_to_string(page).unwrap();
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).collect();
        for test in all() {
            let name = format!("`{}`", test.name);
            assert!(rows.iter().any(|row| row.contains(&name)), "{name} is not in the page");
        }
        for row in rows {
            for name in row.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() > 2) {
                assert!(all().iter().any(|test| test.name == name), "there is no test `{name}`");
            }
        }
    }

    /// All `.rs` files below `dir`.
    fn sources(dir: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                sources(&path, text);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn the_page_of_scenarios_names_tests_that_there_are() {
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(here.join("../../../docs/scenarios.md")).unwrap();
        let mut code = String::new();
        sources(&here.join(".."), &mut code);
        let rows = page.lines().filter(|line| line.starts_with('|'));
        let names: Vec<&str> = rows
            .flat_map(|row| row.split('`').skip(1).step_by(2))
            .filter(|name| name.matches('_').count() > 2)
            .collect();
        assert!(names.len() > 50, "{} names", names.len());
        for name in names {
            assert!(code.contains(&format!("fn {name}(")), "there is no test `{name}`");
        }
    }
}
