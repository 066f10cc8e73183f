//! The clock: not before the image was built, and synchronised if the owner insists.
//!
//! A wrong clock alone is a warning: a device without a battery clock and without a network has one, and no release
//! is to blame.

use crate::check::Verdict;

/// Judges the calendar time `now` (seconds since 1970) against the time at which the image was built. `synchronised`
/// is what the kernel says; `must` is the owner's wish.
#[must_use]
pub fn judge(now: u64, built: Option<u64>, synchronised: bool, must: bool) -> Verdict {
    let early = built.is_some_and(|built| now < built);
    match (early, synchronised, must) {
        (_, false, true) => Verdict::Pending("the clock is not synchronised".into()),
        (true, _, _) => Verdict::Warn("the clock is earlier than this image".into()),
        (false, false, false) => Verdict::Warn("the clock is not synchronised".into()),
        (false, true, _) => Verdict::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_a_warning_unless_the_owner_insists() {
        let pending = Verdict::Pending("the clock is not synchronised".into());
        for (now, synchronised, must, passes, expected) in [
            (200, true, false, true, Some(Verdict::Pass)),
            (200, false, false, true, None),
            (50, true, false, true, None),
            (200, true, true, true, Some(Verdict::Pass)),
            (200, false, true, false, Some(pending.clone())),
            (50, false, true, false, Some(pending)),
        ] {
            let verdict = judge(now, Some(100), synchronised, must);
            assert_eq!(verdict.passed(), passes, "{now} {synchronised} {must}");
            assert!(expected.is_none_or(|e| e == verdict));
        }
        assert_eq!(
            judge(0, None, true, false),
            Verdict::Pass,
            "an image that does not say when it was built"
        );
    }
}
