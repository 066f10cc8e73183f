//! What bytes will cost when LZMA has compressed them, estimated: repeats are looked for in what came before, the rest
//! is priced by LZMA's own model of literals. Whole numbers only, so that it says the same everywhere.

use super::blocks::common_prefix;

/// Costs are counted in sixteenths of a bit.
pub(crate) const BIT: u32 = 16;
/// The most that a byte is taken to cost.
const BYTE_MAX: u32 = 12 * BIT;
/// What a byte costs about when it is no part of a repeat: what a repeat is measured by while it is looked for.
const BYTE: u32 = 5 * BIT;
/// What tells a literal from a repeat.
const LITERAL: u32 = 12;
/// A repeat from the same distance as the last one.
const SAME: u32 = 7 * BIT;
/// A repeat but for its distance.
const REPEAT: u32 = 10 * BIT;
/// The longest repeat of LZMA.
const REPEAT_MAX: usize = 273;
/// Bits of the tables of places by four and by eight bytes.
const SHORT: u32 = 16;
const LONG: u32 = 18;
/// A segment has about so much of a stream at the most.
const WINDOW: usize = 4 << 20;

/// Prices one stream.
pub(crate) struct Pricer {
    /// What the stream has so far.
    stream: Vec<u8>,
    /// Where four and where eight bytes were last, plus one.
    short: Vec<u32>,
    long: Vec<u32>,
    /// The last repeat's distance; 0 before the first.
    distance: usize,
    /// By the upper bits of the byte before: LZMA's tree of bits.
    literals: [[u16; 256]; 8],
    /// Cost of a bit by its probability, in 128ths.
    bits: [u32; 128],
    sums: Vec<u32>,
}

/// Sixteenths of log2, near enough.
pub(crate) fn log2(number: u64) -> u32 {
    let number = number.max(1);
    let whole = 63 - number.leading_zeros();
    let part = if whole >= 4 { number >> (whole - 4) } else { number << (4 - whole) };
    whole * BIT + (part & 15) as u32
}

fn hash(bytes: u64, bits: u32) -> usize {
    (bytes.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits)) as usize
}

/// The hashes of the first four and of the first eight bytes.
fn hashes(bytes: &[u8]) -> Option<(usize, usize)> {
    let eight = u64::from_le_bytes(*bytes.first_chunk()?);
    Some((hash(eight & u64::from(u32::MAX), SHORT), hash(eight, LONG)))
}

/// A repeat of what the stream has.
#[derive(Clone, Copy)]
struct Repeat {
    len: usize,
    cost: u32,
    distance: usize,
}

impl Pricer {
    pub(crate) fn new() -> Self {
        let mut bits = [0; 128];
        for (number, bit) in bits.iter_mut().enumerate() {
            // log2(128 / (number + 1/2)); squared four times, its whole part has the sixteenths.
            let mut power = 2 * number as u64 + 1;
            let mut log = 0;
            for _ in 0..4 {
                power *= power;
                log *= 2;
                while power >= 1 << 16 {
                    power >>= 1;
                    log += 1;
                }
            }
            *bit = 8 * BIT - (log + 63 - power.leading_zeros());
        }
        Pricer {
            stream: Vec::new(),
            short: vec![0; 1 << SHORT],
            long: vec![0; 1 << LONG],
            distance: 0,
            literals: [[1 << 10; 256]; 8],
            bits,
            sums: vec![0],
        }
    }

    /// Costs of all bytes that were priced, summed up: one more than bytes.
    pub(crate) fn into_sums(self) -> Vec<u32> {
        self.sums
    }

    /// How many bytes were priced.
    pub(crate) fn priced(&self) -> usize {
        self.sums.len() - 1
    }

    /// Prices `bytes` behind what the stream has, and adds them to it when `learn` is true.
    pub(crate) fn price(&mut self, bytes: &[u8], learn: bool) {
        let base = self.stream.len();
        let mut before = self.stream.last().copied().unwrap_or_default();
        if learn {
            self.stream.extend_from_slice(bytes);
        }
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let (len, cost) = match self.repeat(rest, base + at, if learn { usize::MAX } else { base }) {
                Some(repeat) => {
                    self.distance = repeat.distance;
                    (repeat.len, repeat.cost)
                }
                None => (1, self.literal(before, rest[0], learn).min(BYTE_MAX)),
            };
            let mut left = cost.min(BYTE_MAX * len as u32);
            for number in 0..len {
                let now = left / (len - number) as u32;
                left -= now;
                let sum = self.sums.last().map_or(0, |sum| sum.wrapping_add(now));
                self.sums.push(sum);
                if learn && let Some((short, long)) = hashes(&bytes[at + number..]) {
                    let place = (base + at + number + 1) as u32;
                    self.short[short] = place;
                    self.long[long] = place;
                }
            }
            at += len;
            before = bytes[at - 1];
        }
    }

    /// The repeat that saves the most for what comes at `here` of the stream; what it repeats lies before `end`.
    fn repeat(&self, wanted: &[u8], here: usize, end: usize) -> Option<Repeat> {
        let mut best: Option<(u32, Repeat)> = None;
        let same = here.checked_sub(self.distance).map(|from| (from, SAME));
        let found = hashes(wanted).map(|(short, long)| [self.long[long], self.short[short]]);
        let found = found.into_iter().flatten().filter_map(|place| (place as usize).checked_sub(1));
        let found = found.map(|from| (from, REPEAT + log2(here.saturating_sub(from) as u64)));
        for (from, cost) in same.into_iter().chain(found) {
            let distance = here - from.min(here);
            if distance == 0 || distance > WINDOW {
                continue;
            }
            let room = end.saturating_sub(from).min(REPEAT_MAX);
            let len = self
                .stream
                .get(from..)
                .map_or(0, |old| common_prefix(old, &wanted[..wanted.len().min(room)]));
            let saved = (len as u32 * BYTE).saturating_sub(cost);
            if saved > best.map_or(0, |(saved, _)| saved) {
                best = Some((saved, Repeat { len, cost, distance }));
            }
        }
        best.map(|(_, repeat)| repeat)
    }

    fn literal(&mut self, before: u8, byte: u8, learn: bool) -> u32 {
        let models = &mut self.literals[usize::from(before >> 5)];
        let mut cost = LITERAL;
        let mut symbol = 1;
        for number in (0..8).rev() {
            let one = byte >> number & 1 == 1;
            // How likely a 0 is, of 2048.
            let model = models[symbol];
            cost += self.bits[usize::from(if one { 2047 - model } else { model } >> 4)];
            if learn {
                models[symbol] = if one { model - (model >> 5) } else { model + ((2048 - model) >> 5) };
            }
            symbol = symbol << 1 | usize::from(one);
        }
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(bytes: &[u8]) -> u32 {
        let mut pricer = Pricer::new();
        pricer.price(bytes, true);
        let sums = pricer.into_sums();
        sums.last().unwrap() / BIT / 8
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 88172645463325252u64;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(step).collect()
    }

    #[test]
    fn noise_costs_its_length_and_its_repeat_next_to_nothing() {
        let noise = noise(10_000);
        let once = cost(&noise);
        assert!((10_000..12_000).contains(&once), "{once}");
        let twice = cost(&[noise.as_slice(), &noise].concat());
        assert!(twice - once < 250, "{once}, {twice}");
    }

    #[test]
    fn what_is_not_learned_is_no_help_later() {
        let noise = noise(1000);
        let mut pricer = Pricer::new();
        for _ in 0..2 {
            pricer.price(&noise, false);
        }
        let sums = pricer.into_sums();
        assert!(sums[2000] - sums[1000] > 900 * 8 * BIT);
    }

    #[test]
    fn text_costs_about_what_lzma_makes_of_it() {
        use lzma_rust2::{LzmaOptions, LzmaWriter};
        use std::io::Write as _;
        let text = include_bytes!("price.rs");
        let mut writer = LzmaWriter::new_no_header(Vec::new(), &LzmaOptions::with_preset(6), false).unwrap();
        writer.write_all(text).unwrap();
        let made = writer.finish().unwrap().len() as f64;
        let share = f64::from(cost(text)) / made;
        assert!((0.8..1.4).contains(&share), "{share}");
    }
}
