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
/// Twelve are used; with sixteen every index is in bounds by its mask.
const STATES: usize = 16;
/// Distances below this have a model of their own for each low bit.
const FULL_DISTANCES: usize = 128;
const LITERAL: usize = 0x300;
/// Bytes that a match is copied by at least where there is room.
const PIECE: usize = 16;

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
    let mut input = Input { input, left: len, failed: None };
    let mut buf = Box::new([0; CHUNK]);
    let wanted = out.len();
    let coder =
        Coder { range: u32::MAX, code: 0, at: 0, filled: 0, wanted, buf: &mut buf, input: &mut input };
    let made = Model::new(lc, lp, pb).run(coder, out);
    match input.failed {
        Some(error) => Err(error),
        None if made && input.left == 0 => Ok(()),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Where compressed bytes come from.
struct Input<'a> {
    input: &'a mut dyn Read,
    left: u64,
    failed: Option<io::Error>,
}

impl Input<'_> {
    /// Fills `buf`, the last time in part; returns how much, nothing after a failure.
    #[cold]
    #[inline(never)]
    fn refill(&mut self, buf: &mut [u8; CHUNK]) -> usize {
        let now = CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK));
        let read = match buf.get_mut(..now) {
            Some(buf) if now > 0 && self.failed.is_none() => self.input.read_exact(buf),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        if let Err(error) = read {
            self.failed.get_or_insert(error);
            return 0;
        }
        self.left -= now as u64;
        now
    }
}

/// Bits from compressed bytes. Everything is inlined into one loop and nothing refers to this: it lives in registers.
struct Coder<'a, 'b> {
    range: u32,
    code: u32,
    /// The next byte in `buf`, and where it ends.
    at: usize,
    filled: usize,
    /// How much is to be made; nothing any more once no bytes come, so that no bit needs a way out.
    wanted: usize,
    buf: &'a mut [u8; CHUNK],
    input: &'a mut Input<'b>,
}

impl Coder<'_, '_> {
    #[inline(always)]
    fn byte(&mut self) -> u8 {
        if self.at == self.filled {
            self.at = 0;
            self.filled = self.input.refill(self.buf);
            if self.filled == 0 {
                self.wanted = 0;
            }
        }
        let byte = self.buf.get(self.at % CHUNK).copied().unwrap_or_default();
        self.at += 1;
        byte
    }

    #[inline(always)]
    fn fill(&mut self) {
        if self.range < TOP {
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(self.byte());
        }
    }

    /// A bit that is mostly the same: with a branch, which the processor foresees.
    #[inline(always)]
    fn flag(&mut self, model: &mut u16) -> bool {
        self.fill();
        let bound = (self.range >> 11) * u32::from(*model);
        let one = self.code >= bound;
        if one {
            self.range -= bound;
            self.code -= bound;
            *model -= *model >> 5;
        } else {
            self.range = bound;
            *model += (2048 - *model) >> 5;
        }
        one
    }

    /// A bit that may as well be the other, without a branch: all ones or zeros, and what the model becomes.
    #[inline(always)]
    fn bit(&mut self, model: u16) -> (usize, u16) {
        self.fill();
        let bound = (self.range >> 11) * u32::from(model);
        let mask = 0u32.wrapping_sub(u32::from(self.code >= bound));
        self.range = (bound & !mask) | (self.range.wrapping_sub(bound) & mask);
        self.code = self.code.wrapping_sub(bound & mask);
        // A 32nd of the way: for a 0 up to 2048, rounded down, for a 1 down to 0, rounded up.
        let towards = (2048 - 31) & !mask as i32;
        let model = model.wrapping_sub(((i32::from(model) - towards) >> 5) as u16);
        (mask as i32 as usize, model)
    }

    /// As many bits as `models` has levels. Both models that may be next are read before it is known which one it is.
    #[inline(always)]
    fn tree<const SIZE: usize>(&mut self, models: &mut [u16; SIZE]) -> usize {
        let (mut symbol, mut model) = (1, models[1]);
        while let Some(&[zero, one]) = models.as_chunks::<2>().0.get(symbol) {
            let (mask, learned) = self.bit(model);
            set(models, symbol, learned);
            model = either(mask, zero, one);
            symbol = symbol << 1 | mask & 1;
        }
        let (mask, learned) = self.bit(model);
        set(models, symbol, learned);
        (symbol << 1 | mask & 1) - SIZE
    }

    /// The same for a literal behind a match. The byte that would have gone on the match is a context too, as long as
    /// its bits are the same.
    #[inline(always)]
    fn matched(&mut self, models: &mut [u16; LITERAL], expected: u8) -> usize {
        let (mut symbol, mut offset, mut expected) = (1, 0x100, usize::from(expected));
        while symbol < 0x100 {
            expected <<= 1;
            let place = offset + (expected & offset) + symbol;
            let Some(model) = models.get_mut(place) else { return 0 };
            let (mask, learned) = self.bit(*model);
            *model = learned;
            symbol = symbol << 1 | mask & 1;
            offset &= !(expected ^ mask);
        }
        symbol
    }

    /// The lowest bit first; models from `start` on.
    #[inline(always)]
    fn reverse<const SIZE: usize>(&mut self, models: &mut [u16; SIZE], start: usize, bits: u32) -> usize {
        let (mut symbol, mut value) = (1, 0);
        for number in 0..bits {
            let Some(model) = models.get_mut((start + symbol) % SIZE) else { return 0 };
            let (mask, learned) = self.bit(*model);
            *model = learned;
            symbol = symbol << 1 | mask & 1;
            value |= (mask & 1) << number;
        }
        value
    }

    /// Bits without a model.
    #[inline(always)]
    fn direct(&mut self, bits: u32) -> usize {
        let mut value = 0;
        for _ in 0..bits {
            self.fill();
            self.range >>= 1;
            let one = self.code >= self.range;
            self.code -= self.range & 0u32.wrapping_sub(u32::from(one));
            value = value << 1 | usize::from(one);
        }
        value
    }
}

/// Puts back what a model became.
#[inline(always)]
fn set(models: &mut [u16], place: usize, learned: u16) {
    if let Some(model) = models.get_mut(place) {
        *model = learned;
    }
}

/// One of two, without a branch.
#[inline(always)]
fn either(mask: usize, zero: u16, one: u16) -> u16 {
    zero ^ (zero ^ one) & mask as u16
}

/// Lengths of matches, less 2.
struct Lengths {
    choice: [u16; 2],
    low: [[u16; 8]; 16],
    middle: [[u16; 8]; 16],
    high: [u16; 256],
}

impl Lengths {
    fn new() -> Self {
        Lengths { choice: [EVEN; 2], low: [[EVEN; 8]; 16], middle: [[EVEN; 8]; 16], high: [EVEN; 256] }
    }

    #[inline(always)]
    fn next(&mut self, coder: &mut Coder<'_, '_>, position: usize) -> usize {
        let [short, shorter] = &mut self.choice;
        let own = position % 16;
        let (base, models) = if !coder.flag(short) {
            (0, &mut self.low)
        } else if !coder.flag(shorter) {
            (8, &mut self.middle)
        } else {
            return 16 + coder.tree(&mut self.high);
        };
        let Some(models) = models.get_mut(own) else { return 0 };
        base + coder.tree(models)
    }
}

/// Everything that is learned while decoding.
struct Model {
    lc: u32,
    literal_mask: usize,
    position_mask: usize,
    literals: Vec<[u16; LITERAL]>,
    states: [State; STATES],
    slots: [[u16; 64]; 4],
    special: [u16; FULL_DISTANCES],
    align: [u16; 16],
    lengths: Lengths,
    rep_lengths: Lengths,
}

/// What kind of symbol comes next, by the kinds of the last ones.
#[derive(Clone, Copy)]
struct State {
    is_match: [u16; 16],
    is_rep: u16,
    is_rep_0: u16,
    is_rep_1: u16,
    is_rep_2: u16,
    is_long_rep_0: [u16; 16],
}

impl Model {
    fn new(lc: u32, lp: u32, pb: u32) -> Self {
        let state = State {
            is_match: [EVEN; 16],
            is_rep: EVEN,
            is_rep_0: EVEN,
            is_rep_1: EVEN,
            is_rep_2: EVEN,
            is_long_rep_0: [EVEN; 16],
        };
        Model {
            lc,
            literal_mask: (1 << lp) - 1,
            position_mask: (1 << pb) - 1,
            literals: vec![[EVEN; LITERAL]; 1 << (lc + lp)],
            states: [state; STATES],
            slots: [[EVEN; 64]; 4],
            special: [EVEN; FULL_DISTANCES],
            align: [EVEN; 16],
            lengths: Lengths::new(),
            rep_lengths: Lengths::new(),
        }
    }

    /// Fills `out`; false when a match leads nowhere, or `coder` has other bytes than it takes.
    fn run(&mut self, mut coder: Coder<'_, '_>, out: &mut [u8]) -> bool {
        if coder.byte() != 0 {
            return false;
        }
        for _ in 0..4 {
            coder.code = coder.code << 8 | u32::from(coder.byte());
        }
        let (mut at, mut state) = (0usize, 0usize);
        let (mut rep_0, mut rep_1, mut rep_2, mut rep_3) = (0usize, 0usize, 0usize, 0usize);
        while at < coder.wanted {
            let position = at & self.position_mask;
            let Some(models) = self.states.get_mut(state % STATES) else { return false };
            let Some(is_match) = models.is_match.get_mut(position % 16) else { return false };
            if !coder.flag(is_match) {
                let byte = self.literal(&mut coder, out, at, state, rep_0);
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
            let after_literal = state < 7;
            let len = if !coder.flag(&mut models.is_rep) {
                let len = self.lengths.next(&mut coder, position);
                (rep_3, rep_2, rep_1) = (rep_2, rep_1, rep_0);
                rep_0 = self.distance(&mut coder, len);
                state = if after_literal { 7 } else { 10 };
                len + 2
            } else {
                let mut one = false;
                if !coder.flag(&mut models.is_rep_0) {
                    let Some(model) = models.is_long_rep_0.get_mut(position % 16) else { return false };
                    one = !coder.flag(model);
                } else if !coder.flag(&mut models.is_rep_1) {
                    (rep_0, rep_1) = (rep_1, rep_0);
                } else if !coder.flag(&mut models.is_rep_2) {
                    (rep_0, rep_1, rep_2) = (rep_2, rep_0, rep_1);
                } else {
                    (rep_0, rep_1, rep_2, rep_3) = (rep_3, rep_0, rep_1, rep_2);
                }
                if one {
                    state = if after_literal { 9 } else { 11 };
                    1
                } else {
                    state = if after_literal { 8 } else { 11 };
                    self.rep_lengths.next(&mut coder, position) + 2
                }
            };
            if !repeat(out, at, rep_0, len) {
                return false;
            }
            at += len;
        }
        coder.fill();
        coder.at == coder.filled
    }

    #[inline(always)]
    fn literal(&mut self, coder: &mut Coder<'_, '_>, out: &[u8], at: usize, state: usize, rep: usize) -> u8 {
        let before = out.get(at.wrapping_sub(1)).copied().unwrap_or_default();
        let context = (at & self.literal_mask) << self.lc | usize::from(before) >> (8 - self.lc);
        let Some(models) = self.literals.get_mut(context) else { return 0 };
        if state < 7 {
            let Some(models) = models.first_chunk_mut::<0x100>() else { return 0 };
            return coder.tree(models) as u8;
        }
        let expected = out.get(at.wrapping_sub(rep).wrapping_sub(1)).copied().unwrap_or_default();
        coder.matched(models, expected) as u8
    }

    /// The distance of a new match, less 1.
    #[inline(always)]
    fn distance(&mut self, coder: &mut Coder<'_, '_>, len: usize) -> usize {
        let Some(models) = self.slots.get_mut(len.min(3)) else { return 0 };
        let slot = coder.tree(models);
        if slot < 4 {
            return slot;
        }
        let bits = (slot >> 1) as u32 - 1;
        let distance = (2 | slot & 1) << bits;
        if slot < 14 {
            // The models of a slot lie where its distances do.
            return distance + coder.reverse(&mut self.special, distance - slot, bits);
        }
        let high = coder.direct(bits - 4) << 4;
        distance + high + coder.reverse(&mut self.align, 0, 4)
    }
}

/// Repeats `len` bytes of `out` from `distance + 1` before `at`; false when they are not there or do not fit.
#[inline(always)]
fn repeat(out: &mut [u8], at: usize, distance: usize, len: usize) -> bool {
    let Some(from) = at.checked_sub(distance).and_then(|from| from.checked_sub(1)) else { return false };
    if len > out.len().saturating_sub(at) {
        return false;
    }
    // Most are short: whole pieces without a call. What they write behind the match is written again.
    if distance + 1 >= PIECE && len <= 4 * PIECE && out.len() - at >= 4 * PIECE {
        for done in (0..len).step_by(PIECE) {
            let piece = out.get(from + done..).and_then(|out| out.first_chunk::<PIECE>()).copied();
            let place = out.get_mut(at + done..).and_then(|out| out.first_chunk_mut::<PIECE>());
            if let (Some(piece), Some(place)) = (piece, place) {
                *place = piece;
            }
        }
        return true;
    }
    // What is repeated may overlap itself: what is there already is repeated, then twice as much, and so on.
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
