//! What the target is made of: block matches first; what lies between them is compared byte by byte with old data
//! that no block match used (a suffix array, and the way of bsdiff to grow matches over single differences).

use super::blocks::{self, common_prefix};
use super::threads::each;
use super::{EncodeError, Made, Old, Stretch};
use crate::format::TreeInfo;
use std::cmp::Ordering;
use std::sync::atomic::{AtomicUsize, Ordering as Atomic};

/// Old data around what no block match used, bytes to each side.
const MARGIN: usize = 512;
/// A match must have so many more equal bytes than going on as before has (bsdiff's figure).
const BETTER: usize = 8;
/// Longer matches than this are not told apart while searching.
const COMPARED: usize = 1 << 16;

/// Everything as new data but for the trees.
pub(crate) fn full(len: usize, trees: &[TreeInfo]) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    let mut from = 0;
    for (start, end) in holes(trees).into_iter().chain([(len, len)]) {
        stretches.push(Stretch { start: from, end: start, made: Made::Extra });
        stretches.push(Stretch { start, end, made: Made::Zero });
        from = end;
    }
    stretches.retain(|stretch| stretch.end > stretch.start);
    stretches
}

/// Where trees lie, by start.
fn holes(trees: &[TreeInfo]) -> Vec<(usize, usize)> {
    let mut holes: Vec<(usize, usize)> =
        trees.iter().map(|tree| (tree.tree_start as usize, tree.tree_end() as usize)).collect();
    holes.sort_unstable();
    holes
}

/// The target's stretches from `old`.
pub(crate) fn diff(
    target: &[u8],
    trees: &[TreeInfo],
    old: &Old,
    progress: &(dyn Fn(f32) + Sync),
) -> Result<Vec<Stretch>, EncodeError> {
    let anchors = blocks::matches(target, &holes(trees), old, &|share| progress(0.3 * share));
    let unused = Unused::new(old, &anchors);
    progress(0.5);
    let gaps = gaps(target.len(), &anchors);
    let done = AtomicUsize::new(0);
    let parts = each(gaps.len(), |number| {
        let gap = &gaps[number];
        let part = scan(target, gap, old, &unused);
        let share = done.fetch_add(gap.end - gap.start, Atomic::Relaxed) as f32 / target.len() as f32;
        progress(0.5 + 0.5 * share);
        part
    })?;
    let mut stretches: Vec<Stretch> = anchors.into_iter().chain(parts.into_iter().flatten()).collect();
    stretches.sort_by_key(|stretch| stretch.start);
    Ok(join(stretches))
}

/// Joins neighbours that go on where the one before ended.
pub(super) fn join(stretches: Vec<Stretch>) -> Vec<Stretch> {
    let mut joined: Vec<Stretch> = Vec::new();
    for stretch in stretches {
        if let Some(last) = joined.last_mut()
            && match (last.made, stretch.made) {
                (Made::Copy(from), Made::Copy(to)) => from + (last.end - last.start) == to,
                (last, this) => last == this,
            }
        {
            last.end = stretch.end;
        } else {
            joined.push(stretch);
        }
    }
    joined
}

/// A stretch that no block match covers, with its neighbours' old addresses.
struct Gap {
    start: usize,
    end: usize,
    /// Where the old data goes on after the match before.
    before: Option<usize>,
    /// Where the match behind starts in the old data.
    behind: Option<usize>,
}

fn gaps(len: usize, anchors: &[Stretch]) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let (mut at, mut before) = (0, None);
    for anchor in anchors {
        let behind = match anchor.made {
            Made::Copy(address) => Some(address),
            _ => None,
        };
        if anchor.start > at {
            gaps.push(Gap { start: at, end: anchor.start, before, behind });
        }
        at = anchor.end;
        // Behind zeros old data still goes on from where it was before them.
        before = behind
            .or(before.filter(|_| anchor.made == Made::Zero))
            .map(|address| address + (anchor.end - anchor.start));
    }
    if len > at {
        gaps.push(Gap { start: at, end: len, before, behind: None });
    }
    gaps
}

/// Old data that no block match used, with its suffix array.
struct Unused {
    text: Vec<u8>,
    /// Start in `text` and address of each piece.
    pieces: Vec<(usize, usize)>,
    sorted: Vec<i32>,
    /// Start in `sorted` of all suffixes that begin with these two bytes.
    buckets: Vec<u32>,
}

impl Unused {
    fn new(old: &Old, anchors: &[Stretch]) -> Self {
        let mut used: Vec<(usize, usize)> = anchors
            .iter()
            .filter_map(|anchor| match anchor.made {
                Made::Copy(address) => Some((address, address + (anchor.end - anchor.start))),
                _ => None,
            })
            .collect();
        used.sort_unstable();
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        for (low, high) in &old.ranges {
            let mut at = *low;
            let mut add = |from: usize, to: usize| {
                if to > from {
                    let (from, to) = (from.saturating_sub(MARGIN).max(*low), (to + MARGIN).min(*high));
                    match pieces.last_mut() {
                        Some(last) if last.1 >= from => last.1 = last.1.max(to),
                        _ => pieces.push((from, to)),
                    }
                }
            };
            for (start, end) in &used {
                if *start < *low || *start >= *high {
                    continue;
                }
                add(at, *start);
                at = at.max(*end);
            }
            add(at, *high);
        }
        let mut text = Vec::new();
        let mut starts = Vec::new();
        for (from, to) in pieces {
            starts.push((text.len(), from));
            text.extend_from_slice(&old.bytes[from..to]);
        }
        // The suffix array's index has 31 bits.
        text.truncate(i32::MAX as usize - 1);
        let mut sorted = vec![0i32; text.len()];
        divsufsort::sort_in_place(&text, &mut sorted);
        let mut buckets = vec![0u32; (1 << 16) + 1];
        for (number, byte) in text.iter().enumerate() {
            let second = text.get(number + 1).map_or(0, |byte| usize::from(*byte));
            buckets[((usize::from(*byte) << 8) | second) + 1] += 1;
        }
        for number in 0..1 << 16 {
            buckets[number + 1] += buckets[number];
        }
        Unused { text, pieces: starts, sorted, buckets }
    }

    /// The address of the longest match of `wanted`, and its length.
    fn longest(&self, wanted: &[u8], near: Option<usize>) -> (usize, usize) {
        let [first, second, ..] = *wanted else { return (0, 0) };
        let bucket = (usize::from(first) << 8) | usize::from(second);
        let (low, high) = (self.buckets[bucket] as usize, self.buckets[bucket + 1] as usize);
        let wanted = &wanted[..wanted.len().min(COMPARED)];
        let sorted = &self.sorted[low..high];
        let suffix = |entry: i32| &self.text[entry as usize..];
        let place = sorted.partition_point(|entry| compare(suffix(*entry), wanted) == Ordering::Less);
        let mut best = (0, 0);
        let mut distance = usize::MAX;
        // The longest are on both sides of where it would stand; of equal ones the nearest address is cheapest.
        let mut look = |entry: i32| {
            let (address, room) = self.address(entry as usize);
            let len = common_prefix(suffix(entry), wanted).min(room);
            let away = near.map_or(0, |near| near.abs_diff(address));
            if len > best.1 || (len == best.1 && away < distance) {
                best = (address, len);
                distance = away;
            }
        };
        for entry in sorted[place..].iter().take(4).chain(sorted[..place].iter().rev().take(4)) {
            look(*entry);
        }
        best
    }

    /// The old address of a place in the text, and how far its piece reaches.
    fn address(&self, at: usize) -> (usize, usize) {
        let number = self.pieces.partition_point(|(start, _)| *start <= at) - 1;
        let (start, address) = self.pieces[number];
        let end = self.pieces.get(number + 1).map_or(self.text.len(), |(start, _)| *start);
        (address + (at - start), end - at)
    }
}

fn compare(suffix: &[u8], wanted: &[u8]) -> Ordering {
    let common = common_prefix(suffix, wanted);
    match (suffix.get(common), wanted.get(common)) {
        (Some(a), Some(b)) => a.cmp(b),
        // A suffix that begins with what is wanted counts as not less.
        (_, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
    }
}

/// Compares one gap. Follows bsdiff: a match that is better than going on at the old distance starts a new copy; both
/// copies are grown towards each other as long as more bytes are equal than not.
fn scan(target: &[u8], gap: &Gap, old: &Old, unused: &Unused) -> Vec<Stretch> {
    let mut out = Vec::new();
    let end = gap.end;
    let mut grown = Grown { at: gap.start, old: gap.before };
    // Whether a byte at the old distance is equal.
    let equal = |at: usize, grown: &Grown| {
        grown.old.is_some_and(|address| {
            old.bytes.get(address + (at - grown.at)).is_some_and(|byte| *byte == target[at])
        })
    };
    let (mut at, mut len) = (gap.start, 0usize);
    while at < end {
        let mut score = 0usize;
        at += len;
        let mut counted = at;
        let mut address = 0;
        len = 0;
        while at < end {
            let near = grown.old.map(|old| old + (at - grown.at));
            (address, len) = unused.longest(&target[at..end], near);
            while counted < at + len {
                score += usize::from(equal(counted, &grown));
                counted += 1;
            }
            if (len == score && len != 0) || len > score + BETTER {
                break;
            }
            score = score.saturating_sub(usize::from(equal(at, &grown)));
            at += 1;
        }
        if at < end && len != score {
            grown = grow(target, old, &grown, at, Some(address), &mut out);
        }
        if at >= end {
            break;
        }
    }
    grow(target, old, &grown, end, gap.behind, &mut out);
    out
}

/// A copy that may still grow: from `at` on, old data from `old` on.
struct Grown {
    at: usize,
    old: Option<usize>,
}

/// Ends the copy in `grown` where the one that has its match at `at` (old data at `next`) begins.
fn grow(
    target: &[u8],
    old: &Old,
    grown: &Grown,
    at: usize,
    next: Option<usize>,
    out: &mut Vec<Stretch>,
) -> Grown {
    let room = at - grown.at;
    let forward = grown.old.map_or(0, |address| {
        let (_, high) = old.range(address);
        grow_forward(&target[grown.at..at], &old.bytes[address.min(high)..high])
    });
    let mut back = next.map_or(0, |address| {
        let (low, _) = old.range(address);
        grow_back(&target[grown.at..at], &old.bytes[low..address])
    });
    let mut forward = forward;
    if let (Some(before), Some(next)) = (grown.old, next)
        && forward + back > room
    {
        // Where they overlap the border goes where most bytes are equal.
        let overlap = forward + back - room;
        let (mut score, mut best, mut border) = (0i64, 0i64, 0);
        for number in 0..overlap {
            let place = grown.at + forward - overlap + number;
            let first = old.bytes[before + (place - grown.at)] == target[place];
            let second = old.bytes[next - (at - place)] == target[place];
            score += i64::from(first) - i64::from(second);
            if score > best {
                (best, border) = (score, number + 1);
            }
        }
        forward = forward - overlap + border;
        back -= border;
    }
    if forward > 0 {
        let made = Made::Copy(grown.old.unwrap_or(0));
        out.push(Stretch { start: grown.at, end: grown.at + forward, made });
    }
    if grown.at + forward < at - back {
        out.push(Stretch { start: grown.at + forward, end: at - back, made: Made::Extra });
    }
    let start = at - back;
    // A match behind the gap is there already; what was grown to its front is added here.
    match next {
        Some(next) => {
            if back > 0 {
                out.push(Stretch { start, end: at, made: Made::Copy(next - back) });
            }
            Grown { at, old: Some(next) }
        }
        None => Grown { at, old: None },
    }
}

fn grow_forward(target: &[u8], old: &[u8]) -> usize {
    let (mut score, mut best, mut len) = (0i64, 0i64, 0);
    for (number, (a, b)) in target.iter().zip(old).enumerate() {
        score += if a == b { 1 } else { -1 };
        if score > best {
            (best, len) = (score, number + 1);
        }
    }
    len
}

fn grow_back(target: &[u8], old: &[u8]) -> usize {
    let (mut score, mut best, mut len) = (0i64, 0i64, 0);
    for (number, (a, b)) in target.iter().rev().zip(old.iter().rev()).enumerate() {
        score += if a == b { 1 } else { -1 };
        if score > best {
            (best, len) = (score, number + 1);
        }
    }
    len
}
