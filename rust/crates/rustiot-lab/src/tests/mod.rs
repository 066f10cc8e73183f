//! The guarantees, one promise each. A test is added by writing it in the file of its subject and
//! naming it in [`all`].

mod damage;
mod firmware;
mod liveness;
mod owner;
mod power;
mod refusals;
mod trials;
mod updates;

use updates::update;

use crate::runner::LabTest;

/// Every test, in the order in which they run: the slowest first keeps both workers busy to the end.
pub fn all() -> Vec<LabTest> {
    [
        power::TESTS,
        trials::TESTS,
        firmware::TESTS,
        damage::TESTS,
        updates::TESTS,
        owner::TESTS,
        refusals::TESTS,
        liveness::TESTS,
    ]
    .concat()
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
}
