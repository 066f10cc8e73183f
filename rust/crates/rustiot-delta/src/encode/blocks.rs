//! Block match: which stretches of the target lie in the old data as they are, at any offset. Old data is hashed in
//! blocks on a grid, the target by a rolling hash at every byte.

use super::{Made, Old, Stretch};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 1024;
/// Old blocks that are looked at when many have one hash.
const CANDIDATES: usize = 16;
/// Odd, so that no bit of the window is lost.
const BASE: u64 = 0x9E37_79B9_7F4A_7C15;

/// The old data's blocks by hash.
struct Blocks {
    /// (hash, address), sorted.
    sorted: Vec<(u64, u32)>,
    /// One bit for each value of the hash's upper bits.
    filter: Vec<u64>,
}

const FILTER_BITS: u32 = 24;

fn hash(block: &[u8]) -> u64 {
    block.iter().fold(0u64, |hash, byte| hash.wrapping_mul(BASE).wrapping_add(u64::from(*byte) + 1))
}

/// The upper bits of the product depend on all bytes.
fn spread(hash: u64) -> usize {
    ((hash ^ (hash >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> (64 - FILTER_BITS)) as usize
}

impl Blocks {
    fn new(old: &Old) -> Self {
        let mut sorted = Vec::new();
        let mut filter = vec![0u64; 1 << (FILTER_BITS - 6)];
        for (start, end) in &old.ranges {
            for address in (*start..*end).step_by(BLOCK) {
                let Some(block) = old.bytes.get(address..address + BLOCK).filter(|_| address + BLOCK <= *end)
                else {
                    break;
                };
                let hash = hash(block);
                sorted.push((hash, address as u32));
                let bit = spread(hash);
                filter[bit >> 6] |= 1 << (bit & 63);
            }
        }
        sorted.sort_unstable();
        Blocks { sorted, filter }
    }

    fn find(&self, hash: u64) -> &[(u64, u32)] {
        let bit = spread(hash);
        if self.filter[bit >> 6] & (1 << (bit & 63)) == 0 {
            return &[];
        }
        let start = self.sorted.partition_point(|(other, _)| *other < hash);
        let end = start + self.sorted[start..].partition_point(|(other, _)| *other == hash);
        &self.sorted[start..end]
    }
}

/// How many bytes are the same from here on.
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    let mut at = 0;
    while at + 32 <= len && a[at..at + 32] == b[at..at + 32] {
        at += 32;
    }
    at + a[at..].iter().zip(&b[at..]).take_while(|(a, b)| a == b).count()
}

fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count()
}

/// Finds matches and zeros in `target[from..to]`, in order, not overlapping.
pub(crate) fn matches(
    target: &[u8],
    holes: &[(usize, usize)],
    old: &Old,
    progress: &dyn Fn(f32),
) -> Vec<Stretch> {
    let blocks = Blocks::new(old);
    let mut found = Vec::new();
    let mut from = 0;
    for (start, end) in holes.iter().copied().chain([(target.len(), target.len())]) {
        scan(target, from, start, old, &blocks, &mut found, progress);
        if end > start {
            found.push(Stretch { start, end, made: Made::Zero });
        }
        from = end;
    }
    found
}

fn scan(
    target: &[u8],
    from: usize,
    to: usize,
    old: &Old,
    blocks: &Blocks,
    found: &mut Vec<Stretch>,
    progress: &dyn Fn(f32),
) {
    // What leaves the window has been multiplied this often.
    let leaving = (0..BLOCK).fold(1u64, |power, _| power.wrapping_mul(BASE));
    let zeros = hash(&[0; BLOCK]);
    let mut at = from;
    // Where the next match is expected when old data just goes on, as a distance.
    let mut expected: Option<(usize, usize)> = None;
    let mut done = from;
    let mut window: Option<u64> = None;
    while at + BLOCK <= to {
        let now = match window {
            Some(now) => now,
            None => hash(&target[at..at + BLOCK]),
        };
        if at & 0xF_FFFF == 0 {
            progress(at as f32 / target.len() as f32);
        }
        let best = match best(target, at, done, to, old, blocks.find(now), expected) {
            None if now == zeros && target[at..at + BLOCK].iter().all(|byte| *byte == 0) => {
                let len = target[at..to].iter().take_while(|byte| **byte == 0).count();
                Some(Stretch { start: at, end: at + len, made: Made::Zero })
            }
            best => best,
        };
        match best {
            Some(stretch) => {
                if let Made::Copy(address) = stretch.made {
                    expected = Some((stretch.start, address));
                }
                at = stretch.end;
                done = stretch.end;
                found.push(stretch);
                window = None;
            }
            None => {
                window = target.get(at + BLOCK).map(|next| {
                    now.wrapping_mul(BASE)
                        .wrapping_add(u64::from(*next) + 1)
                        .wrapping_sub((u64::from(target[at]) + 1).wrapping_mul(leaving))
                });
                at += 1;
            }
        }
    }
}

/// The best of the candidates, as far as it reaches both ways: the one that goes on where the last match was, else
/// the longest.
fn best(
    target: &[u8],
    at: usize,
    done: usize,
    to: usize,
    old: &Old,
    candidates: &[(u64, u32)],
    expected: Option<(usize, usize)>,
) -> Option<Stretch> {
    if candidates.is_empty() {
        return None;
    }
    let going_on = expected.map(|(start, address)| address + (at - start));
    let tried = going_on
        .filter(|address| candidates.binary_search_by_key(&(*address as u32), |(_, a)| *a).is_ok())
        .into_iter()
        .chain(nearest(candidates, going_on).iter().map(|(_, address)| *address as usize));
    let mut best: Option<Stretch> = None;
    for address in tried {
        let (low, high) = old.range(address);
        let forward = common_prefix(&target[at..to], &old.bytes[address..high]);
        if forward < BLOCK {
            continue;
        }
        let back = common_suffix(&target[done..at], &old.bytes[low..address]);
        let stretch = Stretch { start: at - back, end: at + forward, made: Made::Copy(address - back) };
        if going_on == Some(address) {
            return Some(stretch);
        }
        if best.is_none_or(|best| stretch.end - stretch.start > best.end - best.start) {
            best = Some(stretch);
        }
    }
    best
}

/// Those of many candidates that lie nearest behind and before where the match is expected.
fn nearest(candidates: &[(u64, u32)], going_on: Option<usize>) -> &[(u64, u32)] {
    let middle = candidates.partition_point(|(_, address)| (*address as usize) < going_on.unwrap_or(0));
    let start = middle.saturating_sub(CANDIDATES / 2).min(candidates.len().saturating_sub(CANDIDATES));
    &candidates[start..candidates.len().min(start + CANDIDATES)]
}
