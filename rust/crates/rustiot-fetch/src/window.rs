//! What is kept of a download when there is no cache: the last of it, in memory.
//!
//! Pure. Called by the store.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use rustiot_http::Bytes;

/// Pieces of a file; the oldest go first.
#[derive(Debug)]
pub(crate) struct Window {
    /// Most bytes that are kept.
    most: usize,
    pieces: BTreeMap<u64, Bytes>,
    order: VecDeque<u64>,
    bytes: usize,
}

impl Window {
    /// Of so many bytes at the most.
    pub fn new(most: usize) -> Window {
        Window { most, pieces: BTreeMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    /// Keeps a piece, and forgets old ones.
    pub fn insert(&mut self, offset: u64, piece: Bytes) {
        self.bytes = self.bytes.saturating_add(piece.len());
        if let Some(old) = self.pieces.insert(offset, piece) {
            self.bytes = self.bytes.saturating_sub(old.len());
            self.order.retain(|at| *at != offset);
        }
        self.order.push_back(offset);
        while self.bytes > self.most {
            let Some(old) = self.order.pop_front().and_then(|at| self.pieces.remove(&at)) else { break };
            self.bytes = self.bytes.saturating_sub(old.len());
        }
    }

    /// The first stretch of `range` that is not here.
    pub fn missing(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut at = range.start;
        while at < range.end {
            match self.piece(at) {
                Some((_, end)) => at = end,
                None => {
                    let next = self.pieces.range(at..).next().map_or(range.end, |(start, _)| *start);
                    return Some(at..next.min(range.end).max(at.saturating_add(1)));
                }
            }
        }
        None
    }

    /// Fills `buf` if all of it is here.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let Some((bytes, _)) = self.piece(at) else { return false };
            let count = bytes.len().min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            if let Some(bytes) = bytes.get(..count) {
                now.copy_from_slice(bytes);
            }
            at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            rest = later;
        }
        true
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Window::new(self.most);
    }

    /// What is here from `at` on in one piece, never empty, and where that ends.
    fn piece(&self, at: u64) -> Option<(&[u8], u64)> {
        let (start, bytes) = self.pieces.range(..=at).next_back()?;
        let skip = usize::try_from(at.checked_sub(*start)?).ok()?;
        let rest = bytes.get(skip..).filter(|rest| !rest.is_empty())?;
        Some((rest, at.checked_add(u64::try_from(rest.len()).ok()?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_across_pieces_and_forgets_the_oldest() {
        let mut window = Window::new(4 << 20);
        window.insert(10, Bytes::from_static(b"abc"));
        window.insert(13, Bytes::from_static(b"def"));
        let mut buf = [0; 4];
        assert!(window.read(11, &mut buf));
        assert_eq!(&buf, b"bcde");
        assert!(!window.read(13, &mut buf));
        assert_eq!(window.missing(10..16), None);
        assert_eq!(window.missing(8..16), Some(8..10));
        assert_eq!(window.missing(12..20), Some(16..20));
        for at in 0..8 {
            window.insert(1000 + at * (1 << 20), Bytes::from(vec![1; 1 << 20]));
        }
        assert!(window.bytes <= 4 << 20);
        assert_eq!(window.missing(10..16), Some(10..16));
        let last = 1000 + 7 * (1 << 20);
        assert_eq!(window.missing(last..last + 5), None);
        window.clear();
        assert_eq!(window.missing(last..last + 5), Some(last..last + 5));
    }
}
