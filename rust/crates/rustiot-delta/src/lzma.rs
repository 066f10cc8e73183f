//! LZMA's decoder, straight into the memory that the result stays in: the result is the dictionary too, so a segment
//! takes its own size and nothing more. Raw LZMA1: no header, no end mark, properties and length known. Any bytes are an
//! error or a result. Called by segments; the encoder's side is `lzma-rust2`.

use std::io::{self, Read};

/// Compressed bytes that are read at once.
const CHUNK: usize = 16 << 10;
/// Below this the range takes another byte.
const TOP: u32 = 1 << 24;
/// A bit that is as likely 0 as 1.
const EVEN: u16 = 1 << 10;
const STATES: usize = 12;
/// Distances below this have a model of their own for each low bit.
const FULL_DISTANCES: usize = 128;
const LITERAL: usize = 0x300;

/// Fills `out` from exactly `len` bytes of `input`. `props` as in the head of an `.lzma` file.
///
/// # Errors
/// `input` fails or ends, or what it says makes no sense.
pub(crate) fn decode(input: &mut dyn Read, len: u64, props: u8, out: &mut [u8]) -> io::Result<()> {
    let (lc, lp, pb) = (u32::from(props % 9), u32::from(props / 9 % 5), u32::from(props / 45));
    // More contexts take more memory than the format allows.
    if lc + lp > 4 || pb > 4 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut input = Input { input, left: len, buf: vec![0; CHUNK], at: 0, filled: 0, failed: None };
    let mut range = Range { range: u32::MAX, code: 0 };
    let first = input.byte();
    for _ in 0..4 {
        range.code = range.code << 8 | u32::from(input.byte());
    }
    let made = first == 0 && Model::new(lc, lp, pb).run(&mut input, &mut range, out);
    range.fill(&mut input);
    match input.failed {
        Some(error) => Err(error),
        None if made && input.left == 0 && input.at == input.filled => Ok(()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Compressed bytes. After a failure it gives zeros, so the loops need no way out for every bit.
struct Input<'a> {
    input: &'a mut dyn Read,
    left: u64,
    buf: Vec<u8>,
    at: usize,
    filled: usize,
    failed: Option<io::Error>,
}

impl Input<'_> {
    #[inline(always)]
    fn byte(&mut self) -> u8 {
        match self.buf.get(self.at).filter(|_| self.at < self.filled) {
            Some(byte) => {
                self.at += 1;
                *byte
            }
            None => self.refill(),
        }
    }

    #[cold]
    #[inline(never)]
    fn refill(&mut self) -> u8 {
        if self.failed.is_some() {
            return 0;
        }
        let now = self.buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = match self.buf.get_mut(..now) {
            Some(buf) if now > 0 => self.input.read_exact(buf),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        match read {
            Ok(()) => {
                self.left -= now as u64;
                self.filled = now;
                self.at = 1;
                self.buf.first().copied().unwrap_or_default()
            }
            Err(error) => {
                self.failed = Some(error);
                (self.at, self.filled) = (0, 0);
                0
            }
        }
    }
}

struct Range {
    range: u32,
    code: u32,
}

impl Range {
    #[inline(always)]
    fn fill(&mut self, input: &mut Input<'_>) {
        if self.range < TOP {
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(input.byte());
        }
    }

    /// A bit by the model at `index`; 0 where there is none, which no stream reaches.
    #[inline(always)]
    fn bit(&mut self, input: &mut Input<'_>, models: &mut [u16], index: usize) -> usize {
        let Some(model) = models.get_mut(index) else { return 0 };
        self.fill(input);
        let bound = (self.range >> 11) * u32::from(*model);
        // Without a branch: which way it goes is not to be foreseen.
        let one = self.code >= bound;
        let mask = 0u32.wrapping_sub(u32::from(one));
        self.range = (bound & !mask) | (self.range.wrapping_sub(bound) & mask);
        self.code = self.code.wrapping_sub(bound & mask);
        // A 32nd of the way: for a 0 up to 2048, rounded down, for a 1 down to 0, rounded up.
        let towards = (2048 - 31) & !mask as i32;
        *model = model.wrapping_sub(((i32::from(*model) - towards) >> 5) as u16);
        usize::from(one)
    }

    #[inline(always)]
    fn tree(&mut self, input: &mut Input<'_>, models: &mut [u16], bits: u32) -> usize {
        let mut symbol = 1;
        for _ in 0..bits {
            symbol = symbol << 1 | self.bit(input, models, symbol);
        }
        symbol - (1 << bits)
    }

    /// The same, the lowest bit first.
    #[inline(always)]
    fn reverse(&mut self, input: &mut Input<'_>, models: &mut [u16], bits: u32) -> usize {
        let (mut symbol, mut value) = (1, 0);
        for number in 0..bits {
            let bit = self.bit(input, models, symbol);
            symbol = symbol << 1 | bit;
            value |= bit << number;
        }
        value
    }

    /// Bits without a model.
    fn direct(&mut self, input: &mut Input<'_>, bits: u32) -> usize {
        let mut value = 0;
        for _ in 0..bits {
            self.fill(input);
            self.range >>= 1;
            let one = self.code >= self.range;
            if one {
                self.code -= self.range;
            }
            value = value << 1 | usize::from(one);
        }
        value
    }
}

/// Lengths of matches, less 2.
struct Lengths {
    choice: [u16; 2],
    low: [u16; 16 << 3],
    middle: [u16; 16 << 3],
    high: [u16; 256],
}

impl Lengths {
    fn new() -> Self {
        Lengths { choice: [EVEN; 2], low: [EVEN; 16 << 3], middle: [EVEN; 16 << 3], high: [EVEN; 256] }
    }

    fn next(&mut self, input: &mut Input<'_>, range: &mut Range, position: usize) -> usize {
        let own = position << 3;
        if range.bit(input, &mut self.choice, 0) == 0 {
            return range.tree(input, self.low.get_mut(own..own + 8).unwrap_or_default(), 3);
        }
        if range.bit(input, &mut self.choice, 1) == 0 {
            return 8 + range.tree(input, self.middle.get_mut(own..own + 8).unwrap_or_default(), 3);
        }
        16 + range.tree(input, &mut self.high, 8)
    }
}

/// Everything that is learned while decoding.
struct Model {
    lc: u32,
    literal_mask: usize,
    position_mask: usize,
    literals: Vec<u16>,
    is_match: [u16; STATES << 4],
    is_rep: [u16; STATES],
    is_rep_0: [u16; STATES],
    is_rep_1: [u16; STATES],
    is_rep_2: [u16; STATES],
    is_long_rep_0: [u16; STATES << 4],
    slots: [u16; 4 << 6],
    special: [u16; FULL_DISTANCES],
    align: [u16; 16],
    lengths: Lengths,
    rep_lengths: Lengths,
}

impl Model {
    fn new(lc: u32, lp: u32, pb: u32) -> Self {
        Model {
            lc,
            literal_mask: (1 << lp) - 1,
            position_mask: (1 << pb) - 1,
            literals: vec![EVEN; LITERAL << (lc + lp)],
            is_match: [EVEN; STATES << 4],
            is_rep: [EVEN; STATES],
            is_rep_0: [EVEN; STATES],
            is_rep_1: [EVEN; STATES],
            is_rep_2: [EVEN; STATES],
            is_long_rep_0: [EVEN; STATES << 4],
            slots: [EVEN; 4 << 6],
            special: [EVEN; FULL_DISTANCES],
            align: [EVEN; 16],
            lengths: Lengths::new(),
            rep_lengths: Lengths::new(),
        }
    }

    /// Fills `out`; false when a match leads nowhere.
    fn run(&mut self, input: &mut Input<'_>, range: &mut Range, out: &mut [u8]) -> bool {
        let mut range_now = Range { ..*range };
        let (mut at, mut state) = (0usize, 0usize);
        let mut reps = [0usize; 4];
        while at < out.len() {
            // One look for each symbol keeps a stream that broke off from going on for long.
            if input.failed.is_some() {
                return false;
            }
            let position = at & self.position_mask;
            let own = state << 4 | position;
            if range_now.bit(input, &mut self.is_match, own) == 0 {
                let byte = self.literal(input, &mut range_now, out, at, state, reps[0]);
                if let Some(place) = out.get_mut(at) {
                    *place = byte;
                }
                at += 1;
                state = match state {
                    0..4 => 0,
                    4..10 => state - 3,
                    _ => state - 6,
                };
                continue;
            }
            let len = if range_now.bit(input, &mut self.is_rep, state) == 0 {
                let len = self.lengths.next(input, &mut range_now, position);
                let distance = self.distance(input, &mut range_now, len);
                reps = [distance, reps[0], reps[1], reps[2]];
                state = if state < 7 { 7 } else { 10 };
                len + 2
            } else {
                let mut one = false;
                if range_now.bit(input, &mut self.is_rep_0, state) == 0 {
                    one = range_now.bit(input, &mut self.is_long_rep_0, own) == 0;
                } else if range_now.bit(input, &mut self.is_rep_1, state) == 0 {
                    reps = [reps[1], reps[0], reps[2], reps[3]];
                } else if range_now.bit(input, &mut self.is_rep_2, state) == 0 {
                    reps = [reps[2], reps[0], reps[1], reps[3]];
                } else {
                    reps = [reps[3], reps[0], reps[1], reps[2]];
                }
                if one {
                    state = if state < 7 { 9 } else { 11 };
                    1
                } else {
                    state = if state < 7 { 8 } else { 11 };
                    self.rep_lengths.next(input, &mut range_now, position) + 2
                }
            };
            if !repeat(out, at, reps[0], len) {
                return false;
            }
            at += len;
        }
        *range = range_now;
        true
    }

    #[inline(always)]
    fn literal(
        &mut self,
        input: &mut Input<'_>,
        range: &mut Range,
        out: &[u8],
        at: usize,
        state: usize,
        rep: usize,
    ) -> u8 {
        let before = at.checked_sub(1).and_then(|last| out.get(last)).copied().unwrap_or_default();
        let context = (at & self.literal_mask) << self.lc | usize::from(before) >> (8 - self.lc);
        let start = context * LITERAL;
        let models = self.literals.get_mut(start..start + LITERAL).unwrap_or_default();
        let mut symbol = 1usize;
        if state >= 7 {
            // Behind a match: the byte that would have gone on it is a context too, as long as its bits are the same.
            let mut expected = usize::from(
                at.checked_sub(rep + 1).and_then(|from| out.get(from)).copied().unwrap_or_default(),
            );
            let mut offset = 0x100;
            while symbol < 0x100 {
                expected <<= 1;
                let hint = expected & offset;
                let bit = range.bit(input, models, offset + hint + symbol);
                symbol = symbol << 1 | bit;
                offset &= if bit == 1 { expected } else { !expected };
            }
        } else {
            while symbol < 0x100 {
                symbol = symbol << 1 | range.bit(input, models, symbol);
            }
        }
        symbol as u8
    }

    /// The distance of a new match, less 1.
    fn distance(&mut self, input: &mut Input<'_>, range: &mut Range, len: usize) -> usize {
        let own = len.min(3) << 6;
        let slot = range.tree(input, self.slots.get_mut(own..own + 64).unwrap_or_default(), 6);
        if slot < 4 {
            return slot;
        }
        let bits = (slot >> 1) as u32 - 1;
        let distance = (2 | slot & 1) << bits;
        if slot < 14 {
            // The models of a slot lie where its distances do.
            return distance
                + range.reverse(input, self.special.get_mut(distance - slot..).unwrap_or_default(), bits);
        }
        let high = range.direct(input, bits - 4) << 4;
        distance + high + range.reverse(input, &mut self.align, 4)
    }
}

/// Repeats `len` bytes of `out` from `distance + 1` before `at`; false when they are not there or do not fit.
#[inline(always)]
fn repeat(out: &mut [u8], at: usize, distance: usize, len: usize) -> bool {
    let Some(from) = at.checked_sub(distance).and_then(|from| from.checked_sub(1)) else { return false };
    if len > out.len().saturating_sub(at) {
        return false;
    }
    if distance >= len {
        out.copy_within(from..from + len, at);
        return true;
    }
    // What is repeated overlaps itself: what is there already is repeated, then twice as much, and so on.
    let (mut at, mut left) = (at, len);
    while left > 0 {
        let now = left.min(at - from);
        out.copy_within(from..from + now, at);
        at += now;
        left -= now;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(bytes: &[u8], props: u8, len: usize) -> io::Result<Vec<u8>> {
        let mut out = vec![0; len];
        decode(&mut &*bytes, bytes.len() as u64, props, &mut out)?;
        Ok(out)
    }

    #[cfg(feature = "encode")]
    fn encoded(raw: &[u8], lc: u32, lp: u32, pb: u32) -> (u8, Vec<u8>) {
        use lzma_rust2::{EncodeMode, LzmaOptions, LzmaWriter, MfType};
        use std::io::Write as _;
        let options = LzmaOptions::new(1 << 20, lc, lp, pb, EncodeMode::Normal, 64, MfType::Bt4, 0);
        let mut writer = LzmaWriter::new_no_header(Vec::new(), &options, false).unwrap();
        writer.write_all(raw).unwrap();
        (options.get_props(), writer.finish().unwrap())
    }

    #[cfg(feature = "encode")]
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_another_encoder_made_comes_back(
            parts in prop::collection::vec((any::<u8>(), 0..40usize, 0..3000usize), 0..60),
            lc in 0..=4u32,
            pb in 0..=4u32,
        ) {
            // Runs, noise, and repeats from near and far.
            let mut raw: Vec<u8> = Vec::new();
            for (byte, len, back) in parts {
                match byte % 3 {
                    0 => raw.extend(std::iter::repeat_n(byte, len * 9)),
                    1 => raw.extend((0..len).map(|n| ((n * usize::from(byte) * 31) >> 3) as u8)),
                    _ => {
                        let from = raw.len().saturating_sub(back);
                        let piece: Vec<u8> = raw[from..].iter().take(len).copied().collect();
                        raw.extend(piece);
                    }
                }
            }
            let (props, bytes) = encoded(&raw, lc, 4 - lc, pb);
            prop_assert_eq!(&decoded(&bytes, props, raw.len()).unwrap(), &raw);
            if !raw.is_empty() {
                prop_assert!(decoded(&bytes[..bytes.len() - 1], props, raw.len()).is_err());
                let more = [bytes.as_slice(), &[0]].concat();
                prop_assert!(decoded(&more, props, raw.len()).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_result(bytes: Vec<u8>, props: u8, len in 0..5000usize) {
            let zero = [&[0][..], &bytes].concat();
            let _ = decoded(&zero, props, len);
        }
    }
}
