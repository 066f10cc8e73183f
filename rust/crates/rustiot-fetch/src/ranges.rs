//! A set of byte ranges: sorted, half open, none empty, none touching another.
//!
//! Pure. Called by the cache (what is there) and the fetcher (what is wanted).

use std::ops::Range;

/// A set of byte ranges.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RangeSet(Vec<Range<u64>>);

impl RangeSet {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let first = self.0.partition_point(|have| have.end < range.start);
        let after = self.0.partition_point(|have| have.start <= range.end);
        let merged = match self.0.get(first..after) {
            Some([one, .., other]) => one.start.min(range.start)..other.end.max(range.end),
            Some([one]) => one.start.min(range.start)..one.end.max(range.end),
            _ => range,
        };
        self.0.splice(first..after.max(first), [merged]);
    }

    /// Whether all of `range` is in the set.
    #[must_use]
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.start >= range.end || self.missing(range.clone()).is_empty()
    }

    /// What of `range` is not in the set.
    #[must_use]
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        let first = self.0.partition_point(|have| have.end <= range.start);
        for have in self.0.iter().skip(first).take_while(|have| have.start < range.end) {
            if at < have.start {
                gaps.push(at..have.start);
            }
            at = at.max(have.end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// How many bytes are in the set.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().fold(0, |sum, range| sum.saturating_add(range.end.saturating_sub(range.start)))
    }

    /// The ranges, in order.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a set of single bytes.
        #[test]
        fn like_a_set_of_bytes(ranges in prop::collection::vec((0u64..60, 0u64..20), 0..20), ask in (0u64..70, 0u64..30)) {
            let mut set = RangeSet::default();
            let mut bytes = std::collections::BTreeSet::new();
            for (start, len) in ranges {
                set.insert(start..start + len);
                bytes.extend(start..start + len);
                prop_assert_eq!(set.bytes(), bytes.len() as u64);
                for pair in set.0.windows(2) {
                    prop_assert!(pair[0].end < pair[1].start);
                }
            }
            let asked = ask.0..ask.0 + ask.1;
            let missing: Vec<u64> = set.missing(asked.clone()).into_iter().flatten().collect();
            let expected: Vec<u64> = asked.clone().filter(|byte| !bytes.contains(byte)).collect();
            prop_assert_eq!(set.contains(&asked), expected.is_empty());
            prop_assert_eq!(missing, expected);
        }
    }
}
