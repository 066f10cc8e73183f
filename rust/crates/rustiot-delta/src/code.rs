//! Branches in machine code: where one goes is stored as a place instead of a distance, so that all branches to one
//! place look the same to the compressor. Takes back exactly what it did. Knows nothing of files: whatever looks like a
//! branch is one. Called by segments; forwards by the encoder alone.

/// What new data was changed by before it was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Nothing.
    Plain,
    /// x86-64: CALL and JMP with 32 bits, and Jcc.
    X86,
    /// AArch64: BL and ADRP.
    Arm64,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    #[cfg(any(test, feature = "encode"))]
    ToPlaces,
    ToDistances,
}

impl Code {
    /// All, by the byte that stands for them.
    pub(crate) const ALL: [Code; 3] = [Code::Plain, Code::X86, Code::Arm64];

    /// What the encoder does with new data.
    #[cfg(any(test, feature = "encode"))]
    pub(crate) fn apply(self, bytes: &mut [u8]) {
        self.change(bytes, Way::ToPlaces);
    }

    /// Takes it back.
    pub(crate) fn undo(self, bytes: &mut [u8]) {
        self.change(bytes, Way::ToDistances);
    }

    fn change(self, bytes: &mut [u8], way: Way) {
        match self {
            Code::Plain => {}
            Code::X86 => x86(bytes, way),
            Code::Arm64 => arm64(bytes, way),
        }
    }
}

/// A place instead of a distance or back, in a field of `bits` bits. An empty field, which a module that is not linked
/// yet has everywhere, stays empty; whatever would become empty takes the value that this leaves free.
fn moved(value: u32, at: usize, bits: u32, way: Way) -> u32 {
    let by = match way {
        #[cfg(any(test, feature = "encode"))]
        Way::ToPlaces => at as u32,
        Way::ToDistances => (at as u32).wrapping_neg(),
    };
    let mask = u32::MAX >> (32 - bits);
    let place = value.wrapping_add(by) & mask;
    match (value & mask, place) {
        (0, _) => 0,
        (_, 0) => by & mask,
        _ => place,
    }
}

/// Sign-extends a field of `bits` bits.
fn signed(value: u32, bits: u32) -> u32 {
    (((value << (32 - bits)) as i32) >> (32 - bits)) as u32
}

fn x86(bytes: &mut [u8], way: Way) {
    let mut at = 0;
    let mut before = 0u8;
    while let Some([first, operand @ ..]) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<5>()) {
        let branch = *first & 0xfe == 0xe8 || (before == 0x0f && *first & 0xf0 == 0x80);
        before = *first;
        at += 1;
        if !branch {
            continue;
        }
        let value = u32::from_le_bytes(*operand);
        // Near enough to be one: 24 bits and the sign, which stay what they are for whoever takes it back.
        if signed(value, 25) == value {
            *operand = signed(moved(value, at + 4, 25, way), 25).to_le_bytes();
        }
        // Passed over in either case: what was looked at must not be changed by the next one.
        at += 4;
        before = 0;
    }
}

fn arm64(bytes: &mut [u8], way: Way) {
    for (number, word) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let value = u32::from_le_bytes(*word);
        if value & 0xfc00_0000 == 0x9400_0000 {
            let place = moved(value & 0x03ff_ffff, number, 26, way);
            *word = (value & 0xfc00_0000 | place).to_le_bytes();
        } else if value & 0x9f00_0000 == 0x9000_0000 {
            // ADRP's 21 bits of pages lie in two pieces. Only what is within 512 MiB is taken for one.
            let pages = (value >> 29 & 3) | (value >> 3 & 0x1f_fffc);
            if signed(pages, 18) & 0x1f_ffff != pages {
                continue;
            }
            let place = signed(moved(pages, number >> 10, 18, way), 18);
            *word = (value & 0x9f00_001f | (place & 3) << 29 | (place & 0x1f_fffc) << 3).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_calls_of_one_function_look_the_same() {
        let call = |distance: i32| [&[0xe8][..], &distance.to_le_bytes()].concat();
        let mut code =
            [call(1000), vec![0x90; 3], call(992), [0x0f, 0x84].into(), 986i32.to_le_bytes().into()].concat();
        Code::X86.apply(&mut code);
        assert_eq!(code[1..5], code[9..13]);
        assert_eq!(code[1..5], code[15..19]);
    }

    #[test]
    fn a_call_on_arm_is_a_place_too() {
        let mut code: Vec<u8> =
            [0x9400_0010u32, 0xd503_201f, 0x9400_000e].iter().flat_map(|word| word.to_le_bytes()).collect();
        Code::Arm64.apply(&mut code);
        assert_eq!(code[0..4], code[8..12]);
    }

    /// Bytes among which branches are frequent.
    fn code() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            Just(0xe8u8),
            Just(0xe9),
            Just(0x0f),
            Just(0x84),
            Just(0),
            Just(0xff),
            Just(0x94),
            Just(0x90),
            any::<u8>()
        ];
        prop::collection::vec(byte, 0..5000)
    }

    proptest! {
        #[test]
        fn what_was_done_is_taken_back(bytes in code()) {
            for code in Code::ALL {
                let mut changed = bytes.clone();
                code.apply(&mut changed);
                code.undo(&mut changed);
                prop_assert_eq!(&changed, &bytes);
            }
        }
    }
}
