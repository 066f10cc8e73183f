//! Whole deltas: what is encoded decodes, what is damaged is an error.
#![cfg(feature = "encode")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

use proptest::prelude::*;
use rustiot_delta::{Delta, Error, Options, ReadAt, Source, Target, TreeHint, encode};

fn make(target: &[u8], sources: &[(&str, &[u8])], options: &Options) -> Vec<u8> {
    let sources: Vec<Source<'_>> = sources.iter().map(|(name, bytes)| Source { name, bytes }).collect();
    let mut delta = Vec::new();
    encode(target, &sources, options, &mut delta, &|_| {}).unwrap();
    delta
}

fn open<'a>(delta: &'a [u8], sources: &[(&str, &[u8])]) -> Result<Target<&'a [u8]>, Error> {
    let boxed = |bytes: &[u8]| Box::new(bytes.to_vec()) as Box<dyn ReadAt + Send>;
    Delta::open(delta)?.target(sources.iter().map(|(_, bytes)| boxed(bytes)).collect())
}

fn whole(target: &mut Target<&[u8]>) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    target.verify(&mut |part| {
        out.extend_from_slice(part);
        Ok(())
    })?;
    Ok(out)
}

/// Bytes that look like files: repeated pieces, zeros, noise.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len).map(|_| (next() >> 32) as u8 & 0x3f).collect()
}

/// How a new file comes from an old one.
#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Change(usize, u8),
    Move(usize, usize, usize),
    Zeros(usize, usize),
}

fn edited(old: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut new = old.to_vec();
    for edit in edits {
        let at = |at: usize, new: &[u8]| at % (new.len() + 1);
        match edit {
            Edit::Insert(place, bytes) => {
                let at = at(*place, &new);
                new.splice(at..at, bytes.iter().copied());
            }
            Edit::Remove(place, len) => {
                let at = at(*place, &new);
                let end = (at + len).min(new.len());
                new.drain(at..end);
            }
            Edit::Change(place, by) => {
                let at = at(*place, &new);
                if let Some(byte) = new.get_mut(at) {
                    *byte = byte.wrapping_add(*by);
                }
            }
            Edit::Move(from, to, len) => {
                let from = at(*from, &new);
                let piece: Vec<u8> = new.drain(from..(from + len).min(new.len())).collect();
                let to = at(*to, &new);
                new.splice(to..to, piece);
            }
            Edit::Zeros(place, len) => {
                let at = at(*place, &new);
                new.splice(at..at, std::iter::repeat_n(0, *len));
            }
        }
    }
    new
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        (any::<usize>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(a, b)| Edit::Insert(a, b)),
        (any::<usize>(), 0..5000usize).prop_map(|(a, b)| Edit::Remove(a, b)),
        (any::<usize>(), any::<u8>()).prop_map(|(a, b)| Edit::Change(a, b)),
        (any::<usize>(), any::<usize>(), 0..9000usize).prop_map(|(a, b, c)| Edit::Move(a, b, c)),
        (any::<usize>(), 0..9000usize).prop_map(|(a, b)| Edit::Zeros(a, b)),
    ];
    prop::collection::vec(edit, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_pair_comes_back(seed: u64, len in 0..40_000usize, edits in edits(), two: bool) {
        let old = noise(seed, len);
        let new = edited(&old, &edits);
        let (front, back) = old.split_at(if two { len / 3 } else { 0 });
        let sources: &[(&str, &[u8])] = if two { &[("root", front), ("boot", back)] } else { &[("root", &old)] };
        let delta = make(&new, sources, &Options::default());
        prop_assert_eq!(&whole(&mut open(&delta, sources).unwrap()).unwrap(), &new);
        prop_assert_eq!(&delta, &make(&new, sources, &Options::default()));
        let full = make(&new, &[], &Options::default());
        prop_assert_eq!(&whole(&mut open(&full, &[]).unwrap()).unwrap(), &new);
    }

    #[test]
    fn any_part_can_be_read_at_any_time(
        seed: u64,
        edits in edits(),
        reads in prop::collection::vec((any::<usize>(), 0..9000usize), 1..40),
    ) {
        let old = noise(seed, 50_000);
        let mut new = edited(&old, &edits);
        let options = with_tree(&mut new);
        let sources: &[(&str, &[u8])] = &[("root", &old)];
        let delta = make(&new, sources, &options);
        let mut target = open(&delta, sources).unwrap();
        for (at, len) in reads {
            let at = at % (new.len() + 1);
            let len = len.min(new.len() - at);
            let mut part = vec![0xaa; len];
            target.read_at(at as u64, &mut part).unwrap();
            prop_assert_eq!(&part, &new[at..at + len]);
        }
        prop_assert_eq!(&whole(&mut target).unwrap(), &new);
    }

    #[test]
    fn a_damaged_delta_is_an_error(seed: u64, edits in edits(), place: usize, by in 1..=255u8, cut: bool) {
        let old = noise(seed, 20_000);
        let new = edited(&old, &edits);
        let sources: &[(&str, &[u8])] = &[("root", &old)];
        let mut delta = make(&new, sources, &Options::default());
        let place = place % delta.len();
        if cut { delta.truncate(place) } else { delta[place] ^= by };
        let made = open(&delta, sources).and_then(|mut target| whole(&mut target));
        prop_assert!(made.is_err());
    }
}

/// Appends a hash tree over the front of `data` and says where it is.
fn with_tree(data: &mut Vec<u8>) -> Options {
    data.resize(data.len().next_multiple_of(4096), 7);
    let hint = TreeHint {
        data_start: 0,
        data_blocks: data.len() as u64 / 4096,
        tree_start: data.len() as u64,
        salt: vec![1, 2, 3],
    };
    let tree = rustiot_delta::hash_tree(data, &hint.salt);
    data.extend_from_slice(&tree);
    data.extend_from_slice(b"what is behind it");
    Options { trees: vec![hint], ..Options::default() }
}

#[test]
fn a_tree_costs_nothing() {
    let old = noise(3, 2_000_000);
    let mut new = old.clone();
    new[1_000_000] ^= 1;
    let options = with_tree(&mut new);
    let sources: &[(&str, &[u8])] = &[("root", &old)];
    let delta = make(&new, sources, &options);
    assert!(delta.len() < 400, "{} bytes", delta.len());
    // The tree alone needs everything that it hashes.
    let opened = Delta::open(delta.as_slice()).unwrap();
    assert_eq!(opened.needs(2_003_000..2_003_001).len(), 1);
    let mut target = open(&delta, sources).unwrap();
    let mut last = [0];
    target.read_at(new.len() as u64 - 20, &mut last).unwrap();
    assert_eq!(last[0], new[new.len() - 20]);
    assert_eq!(whole(&mut target).unwrap(), new);
}

#[test]
fn no_copy_leads_from_one_source_into_the_next() {
    // Where images are whole blocks long, as ours are, the second begins where the first ends; else there is a hole of
    // zeros between them.
    for len in [8192, 8092] {
        let (root, boot) = (noise(1, len), noise(2, 8192));
        let hole = vec![0; len.next_multiple_of(4096) - len];
        let sources: [(&str, &[u8]); 2] = [("root", &root), ("boot", &boot)];
        for target in
            [[root.as_slice(), &hole, &boot].concat(), [root.as_slice(), &hole, &boot[..100]].concat()]
        {
            let delta = make(&target, &sources, &Options::default());
            assert_eq!(whole(&mut open(&delta, &sources).unwrap()).unwrap(), target);
            assert!(delta.len() < 700, "{} bytes for {len}", delta.len());
        }
    }
}

#[test]
fn other_sources_are_told() {
    let old = noise(5, 100_000);
    let sources: &[(&str, &[u8])] = &[("root", &old)];
    let delta = make(&edited(&old, &[Edit::Change(5, 5)]), sources, &Options::default());
    assert!(matches!(open(&delta, &[]).map(drop), Err(Error::Sources { wanted: 1, given: 0 })));
    let short: &[(&str, &[u8])] = &[("root", &old[1..])];
    assert!(matches!(open(&delta, short).map(drop), Err(Error::SourceLength { .. })));
    let other = noise(6, 100_000);
    let other: &[(&str, &[u8])] = &[("root", &other)];
    assert!(matches!(open(&delta, other).and_then(|mut t| whole(&mut t)), Err(Error::Mismatch)));
}

#[test]
fn a_longer_partition_serves_as_the_image() {
    let old = noise(5, 100_000);
    let new = edited(&old, &[Edit::Change(5, 5)]);
    let delta = make(&new, &[("root", &old)], &Options::default());
    let mut longer = old.clone();
    longer.extend_from_slice(&[9; 5000]);
    assert_eq!(whole(&mut open(&delta, &[("root", &longer)]).unwrap()).unwrap(), new);
}

#[test]
fn a_full_delta_is_needed_in_parts() {
    let new = noise(9, 9 << 20);
    let delta = make(&new, &[], &Options::default());
    let opened = Delta::open(delta.as_slice()).unwrap();
    let one = opened.needs(0..1);
    assert_eq!(one.len(), 1);
    let bytes: u64 = one.iter().map(|range| range.end - range.start).sum();
    assert!(bytes < delta.len() as u64 * 9 / 10);
    let all = opened.needs(0..new.len() as u64);
    assert_eq!(all.len(), 1, "neighbours are joined");
    assert_eq!(all[0].end, delta.len() as u64);
}

/// A program of so many functions, which call each other and are called by a table of pointers: an ELF file of three
/// loads. `sizes` are the functions' own; names of what they are do not change with where they lie.
fn program(sizes: &[usize], elf: bool) -> Vec<u8> {
    let (code, mut starts) = (0x1000usize, Vec::new());
    let mut at = code;
    for size in sizes {
        starts.push(at);
        at += size + 5 * CALLS;
    }
    let (code_end, data) = (at, at.next_multiple_of(0x1000));
    let mut file = vec![0; data];
    for (number, (start, size)) in starts.iter().zip(sizes).enumerate() {
        let body = noise(number as u64 + 1, *size);
        file[*start..start + size].copy_from_slice(&body);
        for call in 0..CALLS {
            let place = start + size + 5 * call;
            let to = starts[(number * 7 + call * 31 + 3) % starts.len()];
            file[place] = 0xe8;
            file[place + 1..place + 5].copy_from_slice(&(to as i32 - place as i32 - 5).to_le_bytes());
        }
    }
    for start in &starts {
        file.extend_from_slice(&(*start as u64).to_le_bytes());
    }
    let end = file.len();
    // ELF header and program headers: a shared object for x86-64 (psABI, chapter 4; gABI, chapters 4 and 5).
    let magic: &[u8] = if elf { b"\x7fELF" } else { b"none" };
    file[..4].copy_from_slice(magic);
    file[4..7].copy_from_slice(&[2, 1, 1]);
    for (at, value) in [(16, 3u16), (18, 62), (52, 64), (54, 56), (56, 3)] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    file[32] = 64;
    file[20] = 1;
    for (number, (flags, from, to)) in
        [(4u32, 0, 0x200), (5, code, code_end), (6, data, end)].iter().enumerate()
    {
        let header = 64 + 56 * number;
        file[header..header + 4].copy_from_slice(&1u32.to_le_bytes());
        file[header + 4..header + 8].copy_from_slice(&flags.to_le_bytes());
        for (field, value) in [(8, *from), (16, *from), (32, to - from), (40, to - from)] {
            file[header + field..header + field + 8].copy_from_slice(&(value as u64).to_le_bytes());
        }
    }
    file
}

const CALLS: usize = 20;

#[test]
fn what_moved_in_a_program_need_not_be_told_by_who_refers_to_it() {
    let old: Vec<usize> = (0..400).map(|number| 100 + number * 13 % 90).collect();
    let mut new = old.clone();
    // Three functions became longer: nearly every call and pointer is another one.
    for number in [40, 200, 300] {
        new[number] += 16;
    }
    let place = |file: Vec<u8>| [vec![7; 4096], file, vec![9; 5000]].concat();
    let delta = |elf| {
        let (old, new) = (place(program(&old, elf)), place(program(&new, elf)));
        let sources: [(&str, &[u8]); 1] = [("root", &old)];
        let delta = make(&new, &sources, &Options::default());
        assert_eq!(whole(&mut open(&delta, &sources).unwrap()).unwrap(), new);
        // Any range, not only the whole.
        let mut target = open(&delta, &sources).unwrap();
        for at in (0..new.len() - 100).rev().step_by(3001) {
            let mut part = [0; 100];
            target.read_at(at as u64, &mut part).unwrap();
            assert_eq!(part, new[at..at + 100]);
        }
        delta.len()
    };
    let (with, without) = (delta(true), delta(false));
    assert!(with * 4 < without, "{with} bytes, {without} when it is no program");
}

/// From a program whose first bytes were changed, and that was cut off, to the next version of it.
fn from_a_program_that_lies(changes: &[(usize, u8)], cut: usize) {
    let old: Vec<usize> = (0..60).map(|number| 100 + number * 13 % 90).collect();
    let mut new = old.clone();
    new[20] += 32;
    let (mut old, new) = (program(&old, true), program(&new, true));
    for (at, value) in changes {
        old[*at] = *value;
    }
    old.truncate(cut.max(100));
    let sources: [(&str, &[u8]); 1] = [("root", &old)];
    let delta = make(&new, &sources, &Options::default());
    assert_eq!(whole(&mut open(&delta, &sources).unwrap()).unwrap(), new);
}

/// The third load is none, and the first one is longer in the file than in memory: places that are beyond the program.
#[test]
fn a_program_that_is_longer_than_its_memory_is_a_file_like_others() {
    from_a_program_that_lies(&[(176, 0), (97, 255)], 20_664);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Headers that lie: the encoder takes them for what they are worth.
    #[test]
    fn a_program_with_any_head_is_a_file_like_others(
        changes in prop::collection::vec((0..300usize, prop_oneof![Just(0u8), Just(0xff), any::<u8>()]), 0..12),
        cut in 0..40_000usize,
    ) {
        from_a_program_that_lies(&changes, cut);
    }
}
