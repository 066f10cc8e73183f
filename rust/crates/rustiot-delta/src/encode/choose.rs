//! Which copies are worth it. What `diff` found is as long as it can be; here every copy, piece by piece, is compared
//! with the same bytes as new data, by what both will cost when they are compressed. Short copies and those that need
//! many corrections often lose: an address costs as much as many bytes of new data, and cuts it apart. Fewer operations
//! also are faster to apply, and a segment holds more of the target. Called by the encoder between `diff` and `pack`.

use super::blocks::common_prefix;
use super::diff::join;
use super::price::{BIT, Pricer, log2};
use super::threads::each;
use super::{EncodeError, Made, Old, Stretch};

/// A copy of so many bytes …
const SURE_LEN: usize = 1024;
/// … with at most one correction in so many bytes is kept without a calculation.
const SURE_FIXES: usize = 128;
/// Doubtful bytes that are looked at together. Their costs in [`BIT`]s have to fit into 32 bits.
const PART: usize = 16 << 20;
/// How often it is chosen: the price of new data depends on what else is new data.
const ROUNDS: usize = 2;
/// The length of an operation.
const OP: i64 = 7 * BIT as i64;
/// What new data costs on top of its bytes: less can be repeated where it is cut, and a segment is full sooner.
/// Measured, like the factor of corrections below, on real releases.
pub(crate) const CUT: i64 = 75 * BIT as i64;
/// The same between releases that have little in common: millions of short copies are slow to apply, and fewer of them
/// take hardly more bytes.
pub(crate) const CUT_FAR: i64 = 110 * BIT as i64;
/// An address but for its distance.
const SEEK: i64 = 6 * BIT as i64;
/// The first address of a part, whose distance is not known.
const FIRST_SEEK: i64 = 30 * BIT as i64;
/// A change between copy and new data within a copy.
const SWITCH: i64 = 20 * BIT as i64;
/// A correction whose price is not known.
const FIX: i64 = 12 * BIT as i64;
/// Corrections compress worse than [`Pricer`] thinks, in quarters: a gap and a value each.
const FIX_QUARTERS: u32 = 7;
/// A piece that saves more than this is kept: no address costs more.
const WORTH_IT: i64 = 160 * BIT as i64;
/// How many pieces back the last one that is kept is looked for.
const LOOK_BACK: usize = 24;
/// The longest hole between two pieces of one copy that is filled by copying on.
const BRIDGE: usize = 4096;

/// The stretches again, without the copies that are not worth it. `cut`: [`CUT`] or [`CUT_FAR`].
pub(crate) fn choose(
    target: &[u8],
    old: &Old,
    stretches: &[Stretch],
    cut: i64,
    progress: &(dyn Fn(f32) + Sync),
) -> Result<Vec<Stretch>, EncodeError> {
    let sure: Vec<bool> = stretches.iter().map(|stretch| is_sure(target, old, stretch)).collect();
    let parts = parts(stretches, &sure);
    let done = each(parts.len(), |number| {
        let (from, to) = parts[number];
        let chosen = Part::new(target, old, &stretches[from..to], &sure[from..to], cut).choose();
        progress(number as f32 / parts.len() as f32);
        chosen
    })?;
    Ok(join(done.into_iter().flatten().collect()))
}

fn is_sure(target: &[u8], old: &Old, stretch: &Stretch) -> bool {
    let Made::Copy(address) = stretch.made else { return false };
    let len = stretch.end - stretch.start;
    len >= SURE_LEN && fixes(target, old, stretch.start, stretch.end, address).count() <= len / SURE_FIXES
}

/// Ranges of stretches, by their content alone.
fn parts(stretches: &[Stretch], sure: &[bool]) -> Vec<(usize, usize)> {
    let mut parts = Vec::new();
    let (mut from, mut doubtful) = (0, 0);
    for (number, (stretch, sure)) in stretches.iter().zip(sure).enumerate() {
        let len = if *sure || stretch.made == Made::Zero { 0 } else { stretch.end - stretch.start };
        if doubtful > 0 && doubtful + len > PART {
            parts.push((from, number));
            (from, doubtful) = (number, 0);
        }
        doubtful += len;
    }
    parts.push((from, stretches.len()));
    parts
}

/// Where in `start..end` old data from `address` on differs, from `start` on.
fn fixes<'a>(
    target: &'a [u8],
    old: &'a Old,
    start: usize,
    end: usize,
    address: usize,
) -> impl Iterator<Item = u32> + 'a {
    let (from, to) = (&old.bytes[address..address + (end - start)], &target[start..end]);
    let mut at = 0;
    std::iter::from_fn(move || {
        at += common_prefix(&from[at..], &to[at..]) + 1;
        (at <= from.len()).then(|| (at - 1) as u32)
    })
}

/// Stretches that are chosen from together.
struct Part<'a> {
    target: &'a [u8],
    old: &'a Old,
    stretches: &'a [Stretch],
    sure: &'a [bool],
    cut: i64,
    /// Corrections of all copies, each from the start of its stretch; and where each stretch's begin.
    fixes: Vec<u32>,
    fixes_at: Vec<usize>,
}

/// What a part's bytes cost, as running sums: the difference of two is what lies between.
struct Prices {
    /// Doubtful bytes as new data, and where in them each stretch is. Sure copies and zeros are left out.
    data: Vec<u32>,
    data_at: Vec<usize>,
    /// Corrections.
    fixes: Vec<u32>,
}

/// A piece of a copy.
#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    end: usize,
    address: usize,
    /// What its corrections cost.
    fixes: i64,
    /// Where it lies in [`Prices::data`].
    data: (usize, usize),
    /// What it saves; without end for what is sure.
    saves: i64,
}

impl Piece {
    /// Where old data goes on behind it.
    fn old_end(&self) -> usize {
        self.address + (self.end - self.start)
    }
}

/// The cheapest way that ends with a piece.
#[derive(Clone, Copy)]
struct Way {
    cost: i64,
    /// The piece that is kept before it, and whether the copy goes on between them.
    before: Option<(usize, bool)>,
}

impl<'a> Part<'a> {
    fn new(target: &'a [u8], old: &'a Old, stretches: &'a [Stretch], sure: &'a [bool], cut: i64) -> Self {
        let mut all = Vec::new();
        let mut fixes_at = vec![0];
        for stretch in stretches {
            if let Made::Copy(address) = stretch.made {
                all.extend(fixes(target, old, stretch.start, stretch.end, address));
            }
            fixes_at.push(all.len());
        }
        Part { target, old, stretches, sure, cut, fixes: all, fixes_at }
    }

    fn choose(&self) -> Vec<Stretch> {
        let mut chosen = self.stretches.to_vec();
        for _ in 0..ROUNDS {
            let prices = self.prices(&chosen);
            let pieces = self.pieces(&prices);
            chosen = self.stretches_of(&pieces, &self.cheapest(&pieces, &prices));
        }
        chosen
    }

    /// Prices everything both ways; what has been chosen is what can be repeated.
    fn prices(&self, chosen: &[Stretch]) -> Prices {
        let (mut data, mut values, mut gaps) = (Pricer::new(), Pricer::new(), Pricer::new());
        let mut data_at = Vec::new();
        let mut chosen = chosen.iter().peekable();
        for (number, stretch) in self.stretches.iter().enumerate() {
            data_at.push(data.priced());
            if stretch.made == Made::Zero {
                continue;
            }
            let (mut at, mut last) = (stretch.start, stretch.start);
            let mut fixes = &self.fixes[self.fixes_at[number]..self.fixes_at[number + 1]];
            while at < stretch.end {
                while chosen.next_if(|chosen| chosen.end <= at).is_some() {}
                let Some(now) = chosen.peek() else { break };
                let end = now.end.min(stretch.end);
                let new = now.made == Made::Extra;
                if !self.sure[number] {
                    data.price(&self.target[at..end], new);
                }
                if let Made::Copy(address) = stretch.made {
                    let here = fixes.partition_point(|fix| stretch.start + (*fix as usize) < end);
                    let (mut value, mut gap) = (Vec::new(), Vec::new());
                    for fix in &fixes[..here] {
                        let fix = *fix as usize;
                        let place = stretch.start + fix;
                        value.push(self.target[place].wrapping_sub(self.old.bytes[address + fix]));
                        gap.push((place - last).min(255) as u8);
                        last = place + 1;
                    }
                    values.price(&value, !new);
                    gaps.price(&gap, !new);
                    fixes = &fixes[here..];
                }
                at = end;
            }
        }
        let (values, gaps) = (values.into_sums(), gaps.into_sums());
        let mut sum = 0u32;
        let mut fixes = vec![0];
        for (value, gap) in values.windows(2).zip(gaps.windows(2)) {
            let both = value[1].wrapping_sub(value[0]) + gap[1].wrapping_sub(gap[0]);
            sum = sum.wrapping_add(both * FIX_QUARTERS / 4);
            fixes.push(sum);
        }
        Prices { data: data.into_sums(), data_at, fixes }
    }

    /// All copies, in pieces: without stretches whose corrections cost more than their bytes.
    fn pieces(&self, prices: &Prices) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (number, stretch) in self.stretches.iter().enumerate() {
            let Made::Copy(address) = stretch.made else { continue };
            let at = prices.data_at[number];
            if self.sure[number] {
                let Stretch { start, end, .. } = *stretch;
                pieces.push(Piece { start, end, address, fixes: 0, data: (at, at), saves: i64::MAX });
                continue;
            }
            let range = self.fixes_at[number]..self.fixes_at[number + 1];
            let is_new = |number: Option<usize>| {
                number.and_then(|n| self.stretches.get(n)).is_some_and(|s| s.made == Made::Extra)
            };
            let copy = Copied {
                stretch: *stretch,
                address,
                at,
                data: &prices.data[at..=at + (stretch.end - stretch.start)],
                fixes: &self.fixes[range.clone()],
                costs: &prices.fixes[range.start..=range.end],
                beside_new: (is_new(number.checked_sub(1)), is_new(number.checked_add(1))),
            };
            copy.split(&mut pieces);
        }
        pieces
    }

    /// The pieces that are kept, in order, and for each whether the copy before goes on up to it.
    fn cheapest(&self, pieces: &[Piece], prices: &Prices) -> Vec<(usize, bool)> {
        let data = |from: usize, to: usize| i64::from(prices.data[to].wrapping_sub(prices.data[from]));
        let mut ways: Vec<Way> = Vec::with_capacity(pieces.len());
        // The last piece that is kept whatever comes; nothing before it needs to be looked at.
        let mut kept: Option<usize> = None;
        for (number, piece) in pieces.iter().enumerate() {
            let own = piece.fixes + OP;
            let mut best = Way { cost: i64::MAX, before: None };
            if kept.is_none() && number <= LOOK_BACK {
                best.cost = own + FIRST_SEEK + data(0, piece.data.0);
            }
            for other in (kept.unwrap_or(0).max(number.saturating_sub(LOOK_BACK))..number).rev() {
                let (between, bridge) = self.between(&pieces[other], piece, &data);
                let cost = ways[other].cost + own + between;
                if cost < best.cost {
                    best = Way { cost, before: Some((other, bridge)) };
                }
            }
            ways.push(best);
            if piece.saves > WORTH_IT {
                kept = Some(number);
            }
        }
        let all = prices.data.len() - 1;
        let behind = |number: usize| ways[number].cost + data(pieces[number].data.1, all);
        let last =
            (kept.unwrap_or(pieces.len().saturating_sub(LOOK_BACK))..pieces.len()).min_by_key(|n| behind(*n));
        // Not one may be worth it.
        let mut at = last.filter(|last| kept.is_some() || behind(*last) < data(0, all));
        let mut chosen = Vec::new();
        while let Some(number) = at {
            let before = ways[number].before;
            chosen.push((number, before.is_some_and(|(_, bridge)| bridge)));
            at = before.map(|(before, _)| before);
        }
        chosen.reverse();
        chosen
    }

    /// What it costs to come from one kept piece to the next, and whether by copying on.
    fn between(&self, before: &Piece, piece: &Piece, data: &dyn Fn(usize, usize) -> i64) -> (i64, bool) {
        let hole = piece.start - before.end;
        let from = before.old_end();
        let away = piece.address.abs_diff(from);
        if away == 0 && hole == 0 {
            return (-OP, false);
        }
        let seek = if away == 0 { OP / 2 } else { SEEK + i64::from(log2(away as u64)) };
        if hole == 0 {
            return (seek, false);
        }
        let new = seek + data(before.data.1, piece.data.0) + OP + self.cut;
        if piece.address.checked_sub(from) == Some(hole) && hole <= BRIDGE {
            let fixes = fixes(self.target, self.old, before.end, piece.start, from).count() as i64;
            let on = fixes * FIX - OP;
            if on < new && !self.zeros(before.end, piece.start) {
                return (on, true);
            }
        }
        (new, false)
    }

    /// Whether there is a stretch of zeros.
    fn zeros(&self, from: usize, to: usize) -> bool {
        let first = self.stretches.partition_point(|stretch| stretch.end <= from);
        let within = self.stretches[first..].iter().take_while(|stretch| stretch.start < to);
        within.into_iter().any(|stretch| stretch.made == Made::Zero)
    }

    fn stretches_of(&self, pieces: &[Piece], chosen: &[(usize, bool)]) -> Vec<Stretch> {
        let mut made: Vec<Stretch> =
            self.stretches.iter().filter(|stretch| stretch.made == Made::Zero).copied().collect();
        let mut before: Option<Piece> = None;
        for (number, bridge) in chosen {
            let piece = pieces[*number];
            if let Some(before) = before.filter(|_| *bridge) {
                let copy = Made::Copy(before.old_end());
                made.push(Stretch { start: before.end, end: piece.start, made: copy });
            }
            made.push(Stretch { start: piece.start, end: piece.end, made: Made::Copy(piece.address) });
            before = Some(piece);
        }
        made.sort_unstable_by_key(|stretch| stretch.start);
        // Everything else is new data.
        let (Some(first), Some(last)) = (self.stretches.first(), self.stretches.last()) else { return made };
        let mut all = Vec::with_capacity(2 * made.len() + 1);
        let mut at = first.start;
        let end = Stretch { start: last.end, end: last.end, made: Made::Extra };
        for stretch in made.into_iter().chain([end]) {
            if stretch.start > at {
                all.push(Stretch { start: at, end: stretch.start, made: Made::Extra });
            }
            at = stretch.end;
            all.push(stretch);
        }
        all.retain(|stretch| stretch.end > stretch.start);
        join(all)
    }
}

/// A doubtful copy and all prices of it.
struct Copied<'a> {
    stretch: Stretch,
    address: usize,
    /// Where it lies in [`Prices::data`].
    at: usize,
    data: &'a [u32],
    /// Its corrections, and the running sums of what they cost.
    fixes: &'a [u32],
    costs: &'a [u32],
    /// Whether new data is on both sides already.
    beside_new: (bool, bool),
}

impl Copied<'_> {
    /// Adds the pieces in which a copy is cheaper than new data; the whole when there are none. Two ways run along the
    /// corrections, one that copies here and one that does not.
    fn split(&self, pieces: &mut Vec<Piece>) {
        let len = self.stretch.end - self.stretch.start;
        let side = |new: bool| if new { 0 } else { OP };
        let (mut copy, mut new) = (0, side(self.beside_new.0));
        // For each unit, an equal run or a correction: its start, and whether the two ways came from the other one.
        let mut units: Vec<(usize, bool, bool)> = Vec::new();
        let mut unit = |start: usize, end: usize, cost: i64| {
            let first = units.is_empty();
            let (to_copy, to_new) = (!first && new + SWITCH < copy, !first && copy + SWITCH < new);
            let price = i64::from(self.data[end].wrapping_sub(self.data[start]));
            (copy, new) = (
                if to_copy { new + SWITCH } else { copy } + cost,
                if to_new { copy + SWITCH } else { new } + price,
            );
            units.push((start, to_copy, to_new));
        };
        let mut at = 0;
        for (number, fix) in self.fixes.iter().enumerate() {
            let fix = *fix as usize;
            if fix > at {
                unit(at, fix, 0);
            }
            unit(fix, fix + 1, self.cost(number, number + 1));
            at = fix + 1;
        }
        if at < len {
            unit(at, len, 0);
        }
        let mut copying = copy <= new + side(self.beside_new.1);
        let first = pieces.len();
        let mut end = len;
        for (number, (start, to_copy, to_new)) in units.iter().enumerate().rev() {
            let before = if copying { !to_copy } else { *to_new };
            if before != copying || number == 0 {
                if copying {
                    pieces.push(self.piece(*start, end));
                }
                end = *start;
            }
            copying = before;
        }
        if pieces.len() == first {
            pieces.push(self.piece(0, len));
        }
        pieces[first..].reverse();
    }

    /// What some corrections cost.
    fn cost(&self, from: usize, to: usize) -> i64 {
        i64::from(self.costs[to].wrapping_sub(self.costs[from]))
    }

    fn piece(&self, from: usize, to: usize) -> Piece {
        let first = self.fixes.partition_point(|fix| (*fix as usize) < from);
        let last = self.fixes.partition_point(|fix| (*fix as usize) < to);
        let fixes = self.cost(first, last);
        Piece {
            start: self.stretch.start + from,
            end: self.stretch.start + to,
            address: self.address + from,
            fixes,
            data: (self.at + from, self.at + to),
            saves: i64::from(self.data[to].wrapping_sub(self.data[from])) - fixes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;
    use proptest::prelude::*;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len + 8).map(step).skip(8).collect()
    }

    fn chosen(target: &[u8], old: &[u8], stretches: &[Stretch]) -> Vec<Stretch> {
        let old = Old::new(&[Source { name: "root", bytes: old }]).unwrap();
        choose(target, &old, stretches, CUT, &|_| ()).unwrap()
    }

    fn stretch(start: usize, end: usize, made: Made) -> Stretch {
        Stretch { start, end, made }
    }

    #[test]
    fn a_short_copy_amid_new_data_is_not_worth_its_address() {
        let old = noise(1, 100_000);
        let mut target = noise(2, 4000);
        target[2000..2012].copy_from_slice(&old[70_000..70_012]);
        target[3000..3900].copy_from_slice(&old[50_000..50_900]);
        let found = [
            stretch(0, 2000, Made::Extra),
            stretch(2000, 2012, Made::Copy(70_000)),
            stretch(2012, 3000, Made::Extra),
            stretch(3000, 3900, Made::Copy(50_000)),
            stretch(3900, 4000, Made::Extra),
        ];
        let wanted = [stretch(0, 3000, Made::Extra), found[3], found[4]];
        assert_eq!(chosen(&target, &old, &found), wanted);
    }

    #[test]
    fn nothing_is_left_of_a_copy_that_is_all_corrections() {
        let (old, target) = (noise(1, 10_000), noise(2, 10_000));
        let found = [stretch(0, 10_000, Made::Copy(0))];
        assert_eq!(chosen(&target, &old, &found), [stretch(0, 10_000, Made::Extra)]);
    }

    #[test]
    fn a_wrong_stretch_within_a_copy_becomes_new_data() {
        let old = noise(1, 10_000);
        let mut target = old.clone();
        target[4000..5000].copy_from_slice(&noise(2, 1000));
        let made = chosen(&target, &old, &[stretch(0, 10_000, Made::Copy(0))]);
        let [first, new, last] = made.as_slice() else { panic!("{made:?}") };
        assert_eq!((first.made, new.made), (Made::Copy(0), Made::Extra));
        assert_eq!(last.made, Made::Copy(last.start));
        assert!(new.start.abs_diff(4000) < 20 && new.end.abs_diff(5000) < 20, "{made:?}");
    }

    #[test]
    fn a_copy_goes_on_over_a_copy_from_elsewhere_that_is_not_worth_it() {
        let old = noise(1, 10_000);
        let mut target = old[..2000].to_vec();
        target[1000..1003].copy_from_slice(&old[7000..7003]);
        let found = [
            stretch(0, 1000, Made::Copy(0)),
            stretch(1000, 1003, Made::Copy(7000)),
            stretch(1003, 2000, Made::Copy(1003)),
        ];
        assert_eq!(chosen(&target, &old, &found), [stretch(0, 2000, Made::Copy(0))]);
    }

    proptest! {
        #[test]
        fn the_target_stays_whole_and_zeros_stay_zeros(
            found in prop::collection::vec((0..3u8, 1..400usize, 0..5000usize), 0..80),
            seed: u64,
            values in 1..5u8,
        ) {
            let old: Vec<u8> = noise(seed, 6000).into_iter().map(|byte| byte % values).collect();
            let mut target = Vec::new();
            let mut stretches = Vec::new();
            for (kind, len, from) in found {
                let start = target.len();
                let made = match kind {
                    0 => Made::Copy(from),
                    1 => Made::Extra,
                    _ => Made::Zero,
                };
                match made {
                    Made::Zero => target.resize(start + len, 0),
                    // Near enough to what is copied.
                    _ => target.extend(old[from..from + len].iter().zip(0u8..).map(|(byte, n)| byte ^ u8::from(n % 61 == 7))),
                }
                stretches.push(stretch(start, start + len, made));
            }
            let made = chosen(&target, &old, &stretches);
            let mut at = 0;
            for stretch in &made {
                prop_assert_eq!(stretch.start, at);
                prop_assert!(stretch.end > stretch.start);
                at = stretch.end;
                if let Made::Copy(address) = stretch.made {
                    prop_assert!(address + (stretch.end - stretch.start) <= old.len());
                }
            }
            prop_assert_eq!(at, target.len());
            let zeros = |stretches: &[Stretch]| {
                let zeros = join(stretches.iter().filter(|stretch| stretch.made == Made::Zero).copied().collect());
                zeros.iter().map(|stretch| (stretch.start, stretch.end)).collect::<Vec<_>>()
            };
            let covered = |zeros: Vec<(usize, usize)>| zeros.iter().map(|(start, end)| end - start).sum::<usize>();
            prop_assert_eq!(covered(zeros(&made)), covered(zeros(&stretches)));
        }
    }
}
