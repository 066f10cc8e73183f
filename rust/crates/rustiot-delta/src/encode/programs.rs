//! What moved how far in old programs: ELF files are looked for in the old data, and what refers to what in them is
//! compared with where it refers to in the target. Nothing here has to be right: a wrong guess costs corrections, and
//! whatever does not pay is left out. The decoder's side is `reference.rs`.

use super::{Made, Old, Stretch};
use crate::reference::{self, AREAS_MAX, Area, Fields, Kind, Move, Program, References, WINDOW};
use object::elf;
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{LittleEndian, elf::FileHeader64};

/// Files begin at multiples of this: blocks of a file system, or records of a tar archive …
const GRID: usize = 512;
/// … but a FIT is a device tree, whose contents begin at multiples of this.
const WORD: usize = 4;
/// Rounds of looking for what moved and comparing again with that in mind.
pub(crate) const ROUNDS: usize = 2;
/// So many references must agree that something moved.
const AGREE: usize = 4;
/// Moves of one program.
const MOVES_MAX: usize = 1 << 14;
/// What a correction costs in a delta, compared with a byte of what is told of a program: both are compressed.
const WORTH: usize = 1;

/// Programs of the old data that have changed, by address; each with its own list.
pub(crate) struct Programs {
    each: Vec<Known>,
}

/// A program and what is told of it.
pub(crate) struct Known {
    /// Where it lies in the old data, as far as it is known.
    start: u64,
    end: u64,
    /// It alone.
    pub(crate) references: References,
    /// How long its list is.
    pub(crate) size: usize,
}

/// A copy: address, place in the target, length.
#[derive(Clone, Copy)]
struct Copy {
    from: u64,
    to: u64,
    len: u64,
}

impl Copy {
    fn by(&self) -> i64 {
        self.to as i64 - self.from as i64
    }

    fn end(&self) -> u64 {
        self.from + self.len
    }
}

impl Programs {
    /// None.
    pub(crate) fn none() -> Self {
        Programs { each: Vec::new() }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.each.is_empty()
    }

    /// Learns from the stretches of a target.
    pub(crate) fn learn(target: &[u8], old: &Old, stretches: &[Stretch]) -> Self {
        let mut copies: Vec<Copy> = stretches.iter().filter_map(copy).collect();
        copies.sort_unstable_by_key(|copy| (copy.from, copy.to));
        // How far the copies up to each one reach: those that may reach into a program are found by halving.
        let mut reach = 0;
        let reach: Vec<u64> = copies
            .iter()
            .map(|copy| {
                reach = copy.end().max(reach);
                reach
            })
            .collect();
        let learner = |found: &Found| {
            let (start, end) = (found.areas.first().map_or(0, |area| area.start), found.end());
            let low = reach.partition_point(|reach| *reach <= start);
            let high = copies.partition_point(|copy| copy.from < end);
            let own: Vec<Copy> =
                copies[low..high.max(low)].iter().filter(|copy| copy.end() > start).copied().collect();
            let differs = |copy: &&Copy| {
                let (low, high) = (copy.from.max(start), copy.end().min(end));
                let to = (low as i64 + copy.by()) as usize;
                old.bytes[low as usize..high as usize] != target[to..to + (high - low) as usize]
            };
            let changed: Vec<Copy> = own.iter().filter(differs).copied().collect();
            let windows = windows(&changed, start, end);
            (!changed.is_empty()).then_some(Learner { target, old: &old.bytes, own, changed, windows })
        };
        let known = found(old).into_iter().filter_map(|found| {
            let learner = learner(&found)?;
            Some((found, learner))
        });
        let all: Vec<(Found, Learner<'_>)> = known.collect();
        // Modules use the types of their kernel: what moved there is asked of all together.
        let numbers = renumbered(&all);
        let each = all.into_iter().filter_map(|(found, learner)| learner.learn(found, &numbers)).collect();
        Programs { each }
    }

    /// Programs in old data from `address` on, by number.
    pub(crate) fn within(&self, address: usize, len: usize) -> std::ops::Range<usize> {
        let (start, end) = (address as u64, (address + len) as u64);
        let low = self.each.partition_point(|known| known.end <= start);
        low..self.each.partition_point(|known| known.start < end).max(low)
    }

    /// One of them.
    pub(crate) fn get(&self, number: usize) -> &Known {
        &self.each[number]
    }

    /// Whether one segment may tell of all these.
    pub(crate) fn fit(&self, numbers: impl Iterator<Item = usize>) -> bool {
        let (mut areas, mut moves) = (0, 0);
        for number in numbers {
            let references = &self.each[number].references;
            areas += references.areas.len();
            moves += references.moves.len();
        }
        areas <= AREAS_MAX && moves <= reference::MOVES_MAX
    }

    /// The lists of these together.
    pub(crate) fn together(&self, numbers: impl Iterator<Item = usize>) -> References {
        let mut all = References::default();
        for number in numbers {
            let one = &self.each[number].references;
            let (program, first) = (all.programs.len() as u32, all.moves.len());
            all.areas.extend(one.areas.iter().map(|area| Area { program, ..area.clone() }));
            all.moves.extend_from_slice(&one.moves);
            all.programs.extend(
                one.programs
                    .iter()
                    .map(|program| Program { moves: (first, all.moves.len()), ..program.clone() }),
            );
        }
        all
    }

    /// What old data becomes when it is copied to `by` further on.
    pub(crate) fn predicted(&self, old: &Old, address: usize, by: i64, len: usize) -> Vec<u8> {
        let mut part = old.bytes[address..address + len].to_vec();
        for number in self.within(address, len) {
            predict(&self.each[number].references, &old.bytes, address as u64, by, &mut part);
        }
        part
    }

    /// All old data as it becomes where most of it goes.
    pub(crate) fn all_predicted(&self, old: &Old, stretches: &[Stretch]) -> Old {
        let mut copies: Vec<Copy> = stretches.iter().filter_map(copy).collect();
        // Shorter ones first: longer ones come over them.
        copies.sort_unstable_by_key(|copy| (copy.len, copy.from, copy.to));
        let mut bytes = old.bytes.clone();
        for copy in copies {
            for number in self.within(copy.from as usize, copy.len as usize) {
                let known = &self.each[number];
                let (low, high) = (copy.from.max(known.start), copy.end().min(known.end));
                let part = &mut bytes[low as usize..high as usize];
                part.copy_from_slice(&old.bytes[low as usize..high as usize]);
                predict(&known.references, &old.bytes, low, copy.by(), part);
            }
        }
        Old { bytes, ranges: old.ranges.clone() }
    }
}

/// Corrections that predictions save, and what the stretches take all the same: corrections and new data, bytes.
pub(crate) fn weigh(target: &[u8], old: &Old, predicted: &Old, stretches: &[Stretch]) -> (usize, usize) {
    let (mut saved, mut takes) = (0usize, 0usize);
    for stretch in stretches {
        let to = &target[stretch.start..stretch.end];
        match stretch.made {
            Made::Copy(from) => {
                let wrong = differ(&predicted.bytes[from..from + to.len()], to);
                saved += differ(&old.bytes[from..from + to.len()], to).saturating_sub(wrong);
                takes += wrong;
            }
            Made::Extra => takes += to.len(),
            Made::Zero => {}
        }
    }
    (saved, takes)
}

fn copy(stretch: &Stretch) -> Option<Copy> {
    let Made::Copy(from) = stretch.made else { return None };
    Some(Copy { from: from as u64, to: stretch.start as u64, len: (stretch.end - stretch.start) as u64 })
}

fn predict(references: &References, old: &[u8], address: u64, by: i64, part: &mut [u8]) {
    let read = &mut |at: u64, window: &mut [u8]| {
        let from = old.get(at as usize..at as usize + window.len());
        from.inspect(|from| window.copy_from_slice(from));
        Ok(from.is_some())
    };
    // Reading from memory does not fail.
    let _ = references.predict(address, by, part, read);
}

/// A program before anything was learned.
struct Found {
    program: Program,
    areas: Vec<Area>,
    /// What its code is for.
    code: Kind,
    /// Whether it is a list of types, whose numbers are what refers to something.
    types: bool,
}

impl Found {
    fn end(&self) -> u64 {
        self.areas.last().map_or(0, |area| area.end)
    }

    /// Leaves what lies in front of an address; gives what lies behind another one.
    fn cut(&mut self, start: u64, end: u64) -> Option<Self> {
        let behind = self.areas.iter().filter(|area| area.end > end).map(|area| {
            let cut = end.saturating_sub(area.start).next_multiple_of(8);
            Area { start: area.start + cut, place: area.place.wrapping_add(cut as u32), ..area.clone() }
        });
        let areas: Vec<Area> = behind.filter(|area| area.start < area.end).collect();
        self.areas.retain(|area| area.start < start);
        self.areas.iter_mut().for_each(|area| area.end = area.end.min(start));
        let rest = Found { program: self.program.clone(), areas, code: self.code, types: self.types };
        (!rest.areas.is_empty()).then_some(rest)
    }
}

/// All programs in the old data, by address.
fn found(old: &Old) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    for (low, high) in &old.ranges {
        for at in (*low..*high).step_by(WORD) {
            let file = &old.bytes[at..*high];
            let found = match at.is_multiple_of(GRID) && file.starts_with(&elf::ELFMAG) {
                true => program(file, at as u64),
                false => kernel(file, at as u64).or_else(|| types(file, at as u64)),
            };
            let Some(found) = found else { continue };
            // A file's last block may lie elsewhere (EROFS keeps it with the inode): the next file begins there. Types
            // lie within a program.
            let end = if found.types { found.end() } else { u64::MAX };
            let rest = all.last_mut().and_then(|last| last.cut(at as u64, end));
            all.push(found);
            all.extend(rest);
        }
    }
    all.retain(|found| !found.areas.is_empty());
    all
}

/// The ELF file at the front of `file`, which lies at `address`.
fn program(file: &[u8], address: u64) -> Option<Found> {
    let header = FileHeader64::<LittleEndian>::parse(file).ok()?;
    let endian = header.endian().ok()?;
    let code = match header.e_machine.get(endian) {
        elf::EM_X86_64 => Kind::X86,
        elf::EM_AARCH64 => Kind::Arm64,
        _ => return None,
    };
    if header.e_type.get(endian) == elf::ET_REL {
        let end = header.e_shoff(endian).min(file.len() as u64);
        return relocatable(file.get(..end as usize)?, address, code);
    }
    let headers = header.program_headers(endian, file).ok()?;
    let loads = || headers.iter().filter(|header| header.p_type(endian) == elf::PT_LOAD);
    // What lies too far from the rest is not referred to by distances (variables of each processor in a kernel).
    let top = loads().map(|load| load.p_vaddr(endian)).max()?;
    let loads = || loads().filter(|load| top - load.p_vaddr(endian) <= i32::MAX as u64 / 2);
    let lowest = loads().map(|load| load.p_vaddr(endian)).min()? & !0xfff;
    let highest = loads().map(|load| load.p_vaddr(endian).saturating_add(load.p_memsz(endian))).max()?;
    let span = u32::try_from(highest.checked_sub(lowest)?).ok().filter(|span| *span <= i32::MAX as u32)?;
    let code_of = |load: &&elf::ProgramHeader64<LittleEndian>| load.p_flags(endian) & elf::PF_X != 0;
    let code_low = loads().filter(code_of).map(|load| load.p_vaddr(endian)).min().unwrap_or(lowest);
    let code_high =
        loads().filter(code_of).map(|load| load.p_vaddr(endian).saturating_add(load.p_memsz(endian)));
    let code_high = code_high.max().unwrap_or(code_low);
    let table = headers.iter().find(|header| header.p_type(endian) == elf::PT_GNU_EH_FRAME);
    let mut areas: Vec<Area> = Vec::new();
    let mut add = |offset: u64, end: u64, virtually: u64, kind: Kind| {
        if offset >= end {
            return;
        }
        let (start, end) = (address + offset, address + end);
        let place = virtually.checked_sub(lowest).and_then(|place| u32::try_from(place).ok());
        let in_order = areas.last().is_none_or(|last| last.end <= start);
        if let Some(place) = place.filter(|place| *place < span && in_order) {
            areas.push(Area { start, end, kind, place, program: 0 });
        }
    };
    for (number, load) in loads().enumerate() {
        let (start, virtually) = (load.p_offset(endian), load.p_vaddr(endian));
        let end = start.checked_add(load.p_filesz(endian))?.min(file.len() as u64);
        let flags = load.p_flags(endian);
        let kind = match flags {
            flags if flags & elf::PF_X != 0 => code,
            flags if flags & elf::PF_W != 0 || number == 0 => Kind::Pointers,
            _ => Kind::Jumps,
        };
        let split = table.map(|table| (table.p_offset(endian), table.p_filesz(endian)));
        match split.filter(|(table, len)| start <= *table && table.saturating_add(*len) <= end) {
            Some((table, len)) => {
                let at = |offset: u64| virtually.wrapping_add(offset - start);
                add(start, table, virtually, kind);
                add(table, table + len, at(table), Kind::Table);
                let frames = (table + len).next_multiple_of(8).min(end);
                add(frames, end, at(frames), Kind::Frames);
            }
            None => add(start, end, virtually, kind),
        }
    }
    let place = |virtually: u64| (virtually - lowest).min(u64::from(span)) as u32;
    let program =
        Program { lowest, span, code: (place(code_low), place(code_high)), moved: 0, moves: (0, 0) };
    let areas = areas.into_iter().flat_map(|area| split(file, address, &program, area)).collect();
    Some(Found { program, areas, code, types: false })
}

/// An object that is not linked yet (a kernel module), as far as its sections' table. The table lies at its end, which
/// EROFS keeps elsewhere: what is what has to be seen from the bytes. Places are those of its code, which comes first.
fn relocatable(file: &[u8], address: u64, code: Kind) -> Option<Found> {
    let start = std::mem::size_of::<FileHeader64<LittleEndian>>() as u64;
    let span = u32::try_from(file.len()).ok()?.checked_sub(start as u32).filter(|span| *span > 0)?;
    let program = Program { lowest: 0, span, code: (0, span), moved: 0, moves: (0, 0) };
    let whole =
        Area { start: address + start, end: address + file.len() as u64, kind: code, place: 0, program: 0 };
    let areas = split(file, address, &program, whole);
    Some(Found { program, areas, code, types: false })
}

/// An arm64 kernel as it is booted (kernel documentation: arch/arm64/booting.rst): no ELF file, but as it will lie in
/// memory. Its header has the length with variables behind its end, and not where it is linked to; since all of it lies
/// in 2 GiB there, most of its pointers tell.
fn kernel(file: &[u8], address: u64) -> Option<Found> {
    let long = |at: usize| Some(u64::from_le_bytes(*file.get(at..)?.first_chunk()?));
    if file.get(56..60)? != b"ARM\x64" || (32..56).step_by(8).any(|at| long(at) != Some(0)) {
        return None;
    }
    let size = long(16)?;
    let span = u32::try_from(size).ok().filter(|span| (1 << 20..i32::MAX as u32).contains(span))?;
    let whole = file.get(..size.min(file.len() as u64) as usize)?;
    let mut bases: Vec<u64> = whole
        .as_chunks::<8>()
        .0
        .iter()
        .map(|long| u64::from_le_bytes(*long))
        .filter(|long| long.leading_ones() >= 16 && (long & KERNEL) < size)
        .map(|long| long & !KERNEL)
        .collect();
    bases.sort_unstable();
    let base = bases.chunk_by(|a, b| a == b).max_by_key(|same| same.len()).and_then(|same| same.first());
    let lowest = base.copied().unwrap_or_default().wrapping_add(long(8)?);
    let program = Program { lowest, span, code: (0, span), moved: 0, moves: (0, 0) };
    let end = address + whole.len() as u64;
    let whole = Area { start: address, end, kind: Kind::Arm64, place: 0, program: 0 };
    let areas = split(file, address, &program, whole);
    Some(Found { program, areas, code: Kind::Arm64, types: false })
}

/// The types of a kernel or a module (kernel documentation: bpf/btf.rst), which refer to each other by their numbers and
/// to their names by offsets: a list of words like any other, once it is known.
fn types(file: &[u8], address: u64) -> Option<Found> {
    let (head, rest) = file.split_first_chunk::<{ Types::HEAD }>()?;
    if !head.starts_with(&[0x9f, 0xeb, 1, 0, Types::HEAD as u8, 0, 0, 0]) {
        return None;
    }
    let number = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let (from, len) = (number(8)?, number(12)?);
    if len == 0 || !len.is_multiple_of(4) || !from.is_multiple_of(4) {
        return None;
    }
    rest.get(from as usize..)?.get(..len as usize)?;
    let start = address + Types::HEAD as u64 + u64::from(from);
    let program = Program { lowest: 0, span: u32::MAX, code: (0, 0), moved: 0, moves: (0, 0) };
    // Its own place does not count; this way it is told in a byte.
    let place = u32::try_from(start).ok()?;
    let area = Area { start, end: start + u64::from(len), kind: Kind::Offsets, place, program: 0 };
    Some(Found { program, areas: vec![area], code: Kind::Offsets, types: true })
}

/// What words of a list of types are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Name,
    Number,
    Other,
}

/// A list of types.
struct Types;

impl Types {
    /// Length of the header.
    const HEAD: usize = 24;

    /// What each word is.
    fn roles(list: &[u8]) -> Vec<Role> {
        use Role::{Name, Number, Other};
        let words: Vec<u32> = list.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let mut roles = Vec::with_capacity(words.len());
        while let Some(info) = words.get(roles.len() + 1) {
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            // Pointer, typedef, volatile, const, restrict, function, its prototype, variable, two kinds of tags.
            let refers = matches!(kind, 2 | 8..=14 | 17 | 18);
            roles.extend([Name, Other, if refers { Number } else { Other }]);
            let (each, count): (&[Role], usize) = match kind {
                1 | 14 | 17 => (&[Other], 1),
                3 => (&[Number, Number, Other], 1),
                4 | 5 => (&[Name, Number, Other], count),
                6 => (&[Name, Other], count),
                13 => (&[Name, Number], count),
                15 => (&[Number, Other, Other], count),
                19 => (&[Name, Other, Other], count),
                _ => (&[], 0),
            };
            roles.extend(each.iter().cycle().take(each.len() * count));
        }
        roles.truncate(words.len());
        roles.resize(words.len(), Other);
        roles
    }
}

/// How far the numbers of types and the offsets of names moved, by all lists of types.
fn renumbered(all: &[(Found, Learner<'_>)]) -> Vec<Move> {
    let (mut numbers, mut names) = (Vec::new(), Vec::new());
    for (found, learner) in all.iter().filter(|(found, _)| found.types) {
        for area in &found.areas {
            let roles = Types::roles(&learner.old[area.start as usize..area.end as usize]);
            for piece in learner.pieces(area) {
                let roles = &roles[(piece.at - area.start) as usize / 4..];
                let words = piece.old.as_chunks::<4>().0.iter().zip(piece.new.as_chunks::<4>().0);
                for (role, (old, new)) in roles.iter().zip(words) {
                    let (old, new) = (u32::from_le_bytes(*old), u32::from_le_bytes(*new));
                    let vote = (old, new.wrapping_sub(old) as i32);
                    match role {
                        Role::Number => numbers.push(vote),
                        Role::Name => names.push(vote),
                        Role::Other => {}
                    }
                }
            }
        }
    }
    // A word does not tell what it is. Up to the last number of a type it is taken for one.
    let last = numbers.iter().map(|(number, _)| *number).max().unwrap_or_default();
    names.retain(|(name, _)| *name > last);
    numbers.extend(names);
    let end = numbers.iter().map(|(number, _)| number.saturating_add(1)).max().unwrap_or_default();
    let mut moves = counted(numbers);
    if moves.last().is_some_and(|last| last.by != 0) {
        moves.push(Move { place: end, by: 0 });
    }
    moves
}

/// The bits of a place in a kernel.
const KERNEL: u64 = (1 << 31) - 1;

/// An area by windows, those that look like a table apart: program headers do not tell of them.
fn split(file: &[u8], address: u64, program: &Program, area: Area) -> Vec<Area> {
    if !matches!(area.kind, Kind::X86 | Kind::Arm64 | Kind::Jumps) {
        return vec![area];
    }
    let mut areas: Vec<Area> = Vec::new();
    let mut at = area.start;
    while at < area.end {
        let place = area.place + (at - area.start) as u32;
        let end = border(at, place).min(area.end);
        let window = &file[(at - address) as usize..(end - address) as usize];
        let kind = looks(window, place, program).unwrap_or(area.kind);
        match areas.last_mut() {
            Some(last) if last.kind == kind => last.end = end,
            _ => areas.push(Area { start: at, end, kind, place, program: 0 }),
        }
        at = end;
    }
    areas
}

/// Where the next window begins, as far as its pointers lie at multiples of their length: a FIT may have a kernel
/// anywhere.
fn border(at: u64, place: u32) -> u64 {
    let border = (at / WINDOW + 1) * WINDOW;
    border + u64::from(place.wrapping_add((border - at) as u32).wrapping_neg() % 8)
}

/// What kind of table a window looks like.
fn looks(window: &[u8], place: u32, program: &Program) -> Option<Kind> {
    /// Smaller numbers may be anything.
    const FAR: i64 = 4096;
    let words = || window.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
    let longs = || window.as_chunks::<8>().0.iter().map(|long| u64::from_le_bytes(*long));
    let (start, end) = (i64::from(program.code.0), i64::from(program.code.1));
    let jumps = words().zip((i64::from(place)..).step_by(4)).filter(|(word, place)| {
        let distance = i64::from(*word as i32);
        distance.abs() >= FAR && (start..end).contains(&(place + distance))
    });
    if jumps.count() * 8 >= words().count() * 5 {
        return Some(Kind::Jumps);
    }
    let offsets = words().zip(words().skip(1)).filter(|(word, next)| word <= next && *next < program.span);
    if words().count() > 64
        && offsets.count() * 10 >= words().count() * 9
        && words().max() >= Some(FAR as u32)
    {
        return Some(Kind::Offsets);
    }
    // Relocations: where, a number of a kind with one of a symbol, and what is added.
    let kinds = longs()
        .filter(|long| (1..1 << 16).contains(&(long >> 32)) && (1..64).contains(&(long & 0xffff_ffff)));
    let pointers = longs().filter(|long| {
        let to = long.wrapping_sub(program.lowest);
        *long >= FAR as u64 && to < u64::from(program.span)
    });
    let tables = kinds.count() * 4 >= longs().count() || pointers.count() * 3 >= longs().count();
    tables.then_some(Kind::Pointers)
}

/// Finds out what is to be told of a program.
struct Learner<'a> {
    target: &'a [u8],
    old: &'a [u8],
    /// Copies from it.
    own: Vec<Copy>,
    /// Those among them that need corrections.
    changed: Vec<Copy>,
    /// The same, by the windows that they have bytes of: the first window's number, and
    /// from there on each one's.
    windows: (u64, Vec<Vec<Copy>>),
}

/// Old bytes of one window, at an address, and what is in the target where they are copied to.
struct Piece<'a> {
    at: u64,
    by: i64,
    old: &'a [u8],
    new: &'a [u8],
}

/// Copies by the windows that they have bytes of, between two addresses.
fn windows(copies: &[Copy], start: u64, end: u64) -> (u64, Vec<Vec<Copy>>) {
    let first = start / WINDOW;
    let mut windows = vec![Vec::new(); (end.div_ceil(WINDOW) - first) as usize];
    for copy in copies {
        for number in copy.from.max(start) / WINDOW..copy.end().min(end).div_ceil(WINDOW) {
            windows[(number - first) as usize].push(*copy);
        }
    }
    (first, windows)
}

impl Learner<'_> {
    fn learn(&self, found: Found, numbers: &[Move]) -> Option<Known> {
        let Found { mut program, areas, code, types } = found;
        let start = areas.first()?.start;
        // The file moved as its head did.
        let head = self.own.iter().filter(|copy| copy.from <= start && copy.end() > start);
        let head = head.max_by_key(|copy| copy.len).or(self.own.iter().max_by_key(|copy| copy.len));
        // A number says nothing of where it lies.
        program.moved = if types { 0 } else { head?.by() };
        let used = if types { self.used(&areas, numbers) } else { Vec::new() };
        let moves = |program: &Program, areas: &[Area]| match types {
            true => used.clone(),
            false => self.moves(program, areas),
        };
        let first = moves(&program, &areas);
        let mut references = References { areas, moves: first, programs: vec![program] };
        self.trim(&mut references);
        let areas = self.kinds(&references, code);
        let program = references.programs.pop()?;
        let moves = moves(&program, &areas);
        let mut references = References { areas, moves, programs: vec![program] };
        self.trim(&mut references);
        let saved = self.saved(&self.changed, &references);
        let list = references.to_bytes();
        let size = list.len();
        // Of a program whose headers lie there may be things to tell that no list can say.
        if References::parse(&list).and_then(Result::ok).as_ref() != Some(&references) {
            return None;
        }
        let (start, end) = (references.areas.first()?.start, references.areas.last()?.end);
        (saved > WORTH * size).then_some(Known { start, end, references, size })
    }

    /// Keeps the list's length allowed and its numbers right.
    fn trim(&self, references: &mut References) {
        references.moves.truncate(MOVES_MAX);
        let moves = (0, references.moves.len());
        references.programs.iter_mut().for_each(|program| program.moves = moves);
    }

    /// What moved how far, by what the references say in the target.
    fn moves(&self, program: &Program, areas: &[Area]) -> Vec<Move> {
        let mut votes: Vec<(u32, i32)> = Vec::new();
        for area in areas {
            // Where a table's start goes is where it was copied to.
            let table = self.own.iter().filter(|copy| copy.from <= area.start && area.start < copy.end());
            let table = table.max_by_key(|copy| copy.len).map(|copy| copy.by() - program.moved);
            if let (Kind::Table, Some(by)) = (area.kind, table)
                && let Ok(by) = i32::try_from(by)
            {
                votes.extend([(area.place, by); 2 * AGREE]);
            }
            for piece in self.pieces(area) {
                let own = piece.by - program.moved;
                let from = match area.kind {
                    Kind::Table => table.unwrap_or(own),
                    _ => own,
                };
                let mut fields = Fields::new(program, area, piece.at);
                while let Some(field) = fields.next(piece.old) {
                    let by = field.moved_by(piece.old, piece.new, from);
                    votes.extend(by.and_then(|by| Some((field.to, i32::try_from(by).ok()?))));
                }
            }
        }
        counted(votes)
    }

    /// Those moves that lists of types have to do with.
    fn used(&self, areas: &[Area], moves: &[Move]) -> Vec<Move> {
        let mut words: Vec<u32> = Vec::new();
        for area in areas {
            let list = &self.old[area.start as usize..area.end as usize];
            let refers = list.as_chunks::<4>().0.iter().zip(Types::roles(list));
            let refers = refers.filter(|(_, role)| *role != Role::Other);
            words.extend(refers.map(|(word, _)| u32::from_le_bytes(*word)));
        }
        // What is no reference is larger than all.
        words.push(u32::MAX);
        words.sort_unstable();
        words.dedup();
        let mut used: Vec<Move> = Vec::new();
        for word in words {
            let number = moves.partition_point(|entry| entry.place <= word);
            let Some(entry) = number.checked_sub(1).and_then(|number| moves.get(number)) else { continue };
            if used.last().map_or(0, |last| last.by) != entry.by {
                used.push(*entry);
            }
        }
        used
    }

    /// What copies that need corrections have of an area, window by window.
    fn pieces(&self, area: &Area) -> impl Iterator<Item = Piece<'_>> {
        let (start, end) = (area.start, area.end);
        let (first, windows) = &self.windows;
        let numbers = start / WINDOW..end.div_ceil(WINDOW);
        numbers.filter_map(move |number| Some((number, windows.get((number - first) as usize)?))).flat_map(
            move |(number, copies)| {
                copies.iter().filter_map(move |copy| {
                    // Only what the copy has: references that it cuts are not looked at.
                    let low = (number * WINDOW).max(start);
                    let low = if low < copy.from { copy.from.next_multiple_of(8) } else { low };
                    let high = ((number + 1) * WINDOW).min(end).min(copy.end());
                    let old = self.old.get(low as usize..high as usize)?;
                    let to = (low as i64 + copy.by()) as usize;
                    Some(Piece { at: low, by: copy.by(), old, new: self.target.get(to..to + old.len())? })
                })
            },
        )
    }

    /// The areas again, each window of the kind that leaves the fewest corrections; without those where none helps.
    fn kinds(&self, references: &References, code: Kind) -> Vec<Area> {
        let Some(program) = references.programs.first() else { return Vec::new() };
        let mut areas: Vec<Area> = Vec::new();
        for area in &references.areas {
            let kinds = [area.kind, code, Kind::Jumps, Kind::Frames, Kind::Pointers, Kind::Offsets];
            let mut part = area.clone();
            let mut last: Option<Kind> = Some(area.kind);
            let mut add = |part: &Area, kind: Option<Kind>| {
                let Some(kind) = kind else { return };
                match areas.last_mut() {
                    Some(last) if last.kind == kind && last.end == part.start => last.end = part.end,
                    _ => areas.push(Area { kind, ..part.clone() }),
                }
            };
            if area.kind == Kind::Table {
                add(&part, last);
                continue;
            }
            while part.start < area.end {
                part.end = border(part.start, part.place).min(area.end);
                let plain = self.wrong(references, program, &part, false);
                if plain > 0 {
                    let tried = kinds.iter().map(|kind| {
                        let part = Area { kind: *kind, ..part.clone() };
                        (self.wrong(references, program, &part, true), *kind)
                    });
                    let best = tried.min_by_key(|(wrong, kind)| (*wrong, Some(*kind) != last));
                    last = best.filter(|(wrong, _)| *wrong < plain).map(|(_, kind)| kind);
                }
                add(&part, last);
                part.place = part.place.wrapping_add((part.end - part.start) as u32);
                part.start = part.end;
            }
        }
        areas
    }

    /// Bytes of an area that need a correction, predicted or not.
    fn wrong(&self, references: &References, program: &Program, area: &Area, predicted: bool) -> usize {
        let mut wrong = 0;
        let mut window = Vec::new();
        for piece in self.pieces(area) {
            window.clear();
            window.extend_from_slice(piece.old);
            let plain = differ(piece.old, piece.new);
            let mut best = plain;
            if predicted {
                references.rewrite(program, area, piece.at, piece.by, &mut window);
                best = best.min(differ(&window, piece.new));
            }
            wrong += best;
        }
        wrong
    }

    /// Corrections that are saved.
    fn saved(&self, changed: &[Copy], references: &References) -> usize {
        let mut saved = 0usize;
        let (Some(first), Some(last)) = (references.areas.first(), references.areas.last()) else { return 0 };
        for copy in changed {
            let (low, high) = (copy.from.max(first.start), copy.end().min(last.end));
            if low >= high {
                continue;
            }
            let to = (low as i64 + copy.by()) as usize;
            let old = &self.old[low as usize..high as usize];
            let new = &self.target[to..to + old.len()];
            let mut part = old.to_vec();
            predict(references, self.old, low, copy.by(), &mut part);
            saved += differ(old, new).saturating_sub(differ(&part, new));
        }
        saved
    }
}

/// How many bytes differ.
pub(crate) fn differ(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

/// Moves from votes: what most say of each place, without what only a few say.
fn counted(mut votes: Vec<(u32, i32)>) -> Vec<Move> {
    votes.sort_unstable();
    // Move and how many agree.
    let mut runs: Vec<(Move, usize)> = Vec::new();
    let push = |runs: &mut Vec<(Move, usize)>, next: (Move, usize)| match runs.last_mut() {
        Some((last, count)) if last.by == next.0.by => *count += next.1,
        _ => runs.push(next),
    };
    for place in votes.chunk_by(|a, b| a.0 == b.0) {
        let most = place.chunk_by(|a, b| a == b).max_by_key(|same| same.len()).unwrap_or_default();
        if let Some((place, by)) = most.first() {
            push(&mut runs, (Move { place: *place, by: *by }, most.len()));
        }
    }
    for few in 1..AGREE {
        let mut kept = Vec::new();
        runs.into_iter().filter(|(_, count)| *count > few).for_each(|run| push(&mut kept, run));
        runs = kept;
    }
    let mut moves: Vec<Move> = runs.into_iter().map(|(entry, _)| entry).collect();
    // Nothing moved is what is assumed in front of the first one.
    if moves.first().is_some_and(|first| first.by == 0) {
        moves.remove(0);
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of so many areas of 8 bytes each, from an address on.
    fn known(start: u64, areas: usize) -> Known {
        let program = Program { lowest: 0, span: 1 << 20, code: (0, 0), moved: 0, moves: (0, 0) };
        let areas = (0..areas as u64)
            .map(|number| {
                let start = start + 16 * number;
                Area { start, end: start + 8, kind: Kind::Pointers, place: 0, program: 0 }
            })
            .collect();
        let references = References { areas, moves: Vec::new(), programs: vec![program] };
        Known {
            start,
            end: references.areas.last().unwrap().end,
            size: references.to_bytes().len(),
            references,
        }
    }

    /// A window of calls to the places in front of it, for a processor. What they call moved by so much, they did not.
    fn calls(code: Kind, moved: i32) -> Vec<u8> {
        let mut file = vec![0; 2 * WINDOW as usize];
        let (step, low) = if code == Kind::Arm64 { (4, WINDOW as usize) } else { (5, WINDOW as usize) };
        for (number, at) in (low..file.len() - step).step_by(step).enumerate() {
            let to = 16 * (number as i32 % 200) + moved;
            let word = match code {
                Kind::Arm64 => 0x9400_0000 | ((to - at as i32) >> 2) as u32 & 0x03ff_ffff,
                _ => (to - at as i32 - 5) as u32,
            };
            let operand = at + step - 4;
            file[operand..operand + 4].copy_from_slice(&word.to_le_bytes());
            if step == 5 {
                file[at] = 0xe8;
            }
        }
        file
    }

    #[test]
    fn code_within_data_is_looked_for_as_that_of_the_programs_processor() {
        for code in [Kind::X86, Kind::Arm64] {
            let (old, new) = (calls(code, 0), calls(code, 256));
            let program = Program {
                lowest: 0,
                span: 2 * WINDOW as u32,
                code: (0, WINDOW as u32),
                moved: 0,
                moves: (0, 1),
            };
            let data = Area {
                start: WINDOW,
                end: 2 * WINDOW,
                kind: Kind::Pointers,
                place: WINDOW as u32,
                program: 0,
            };
            let references = References {
                areas: vec![data],
                moves: vec![Move { place: 0, by: 256 }],
                programs: vec![program],
            };
            let own = [Copy { from: 0, to: 0, len: old.len() as u64 }];
            let windows = windows(&own, 0, old.len() as u64);
            let learner =
                Learner { target: &new, old: &old, own: own.to_vec(), changed: own.to_vec(), windows };
            let kinds: Vec<Kind> =
                learner.kinds(&references, code).into_iter().map(|area| area.kind).collect();
            assert_eq!(kinds, [code]);
        }
    }

    #[test]
    fn what_a_copy_to_another_program_becomes_does_not_count_against_a_prediction() {
        // The window's own copy has moved; two others, which have not, need one correction each.
        let (old, moved) = (calls(Kind::X86, 0), calls(Kind::X86, 256));
        let mut still = old.clone();
        still[WINDOW as usize] ^= 1;
        let new = [moved, still.clone(), still].concat();
        let len = old.len() as u64;
        let program =
            Program { lowest: 0, span: 2 * WINDOW as u32, code: (0, WINDOW as u32), moved: 0, moves: (0, 1) };
        let code = Area { start: WINDOW, end: 2 * WINDOW, kind: Kind::X86, place: WINDOW as u32, program: 0 };
        let references = References {
            areas: vec![code],
            moves: vec![Move { place: 0, by: 256 }],
            programs: vec![program],
        };
        let own: Vec<Copy> = [0, len, 2 * len].map(|to| Copy { from: 0, to, len }).to_vec();
        let windows = windows(&own, 0, len);
        let learner = Learner { target: &new, old: &old, own: own.clone(), changed: own, windows };
        assert_eq!(learner.kinds(&references, Kind::X86), references.areas);
    }

    /// An arm64 kernel of 2 MiB: branches, then pointers to what it has at 1 MiB.
    fn arm64_kernel(base: u64) -> Vec<u8> {
        let mut file = vec![0; 2 << 20];
        file[16..24].copy_from_slice(&(3u64 << 20).to_le_bytes());
        file[56..60].copy_from_slice(b"ARM\x64");
        for at in (64..1 << 20).step_by(4) {
            file[at..at + 4].copy_from_slice(&(0x9400_0000 | (at as u32 / 64)).to_le_bytes());
        }
        for at in (1 << 20..2 << 20).step_by(8) {
            file[at..at + 8].copy_from_slice(&(base + at as u64 / 8).to_le_bytes());
        }
        file
    }

    fn old(bytes: Vec<u8>) -> Old {
        let ranges = vec![(0, bytes.len())];
        Old { bytes, ranges }
    }

    #[test]
    fn an_arm64_kernel_is_found_where_a_fit_has_it() {
        let base = 0xffff_8000_8000_0000;
        let bytes = [vec![0xd0; 1028], arm64_kernel(base)].concat();
        let all = found(&old(bytes));
        let [found] = all.as_slice() else { panic!("{} programs", all.len()) };
        assert_eq!((found.program.lowest, found.program.span, found.code), (base, 3 << 20, Kind::Arm64));
        let kinds: Vec<Kind> = found.areas.iter().map(|area| area.kind).collect();
        assert_eq!(kinds.first(), Some(&Kind::Arm64));
        assert_eq!(kinds.last(), Some(&Kind::Pointers));
        assert!(found.areas.iter().all(|area| area.start == 1028 + u64::from(area.place)));
        assert_eq!((found.areas[0].place, found.end()), (0, 1028 + (2 << 20)));
    }

    /// Structures that name and use each other, as a kernel lists its types: from this number on, and from this offset
    /// of names on, everything moved so far.
    fn list_of_types(first: u32, numbers: i32, first_name: u32, names: i32) -> Vec<u8> {
        let number = |number: u32| number.wrapping_add_signed(if number < first { 0 } else { numbers });
        let name = |name: u32| name.wrapping_add_signed(if name < first_name { 0 } else { names });
        let mut words = vec![];
        for at in 0..1000 {
            // A structure of two members, a pointer, a prototype of one parameter, an array.
            words.extend([name(90_000 + at * 9), 0x0400_0002, 16]);
            words.extend([name(91_000 + at * 9), number(30_000 + at * 7), 0]);
            words.extend([name(92_000 + at * 9), number(30_000 + at * 5), 64]);
            words.extend([0, 0x0200_0000, number(30_000 + at * 3)]);
            words.extend([0, 0x0d00_0001, number(30_000 + at * 11), name(90_000 + at), number(31_000 + at)]);
            words.extend([0, 0x0300_0000, 0, number(32_000 + at), number(33_000 + at), at]);
        }
        let head = [0x0001_eb9f, 24, 0, words.len() as u32 * 4, words.len() as u32 * 4, 0];
        head.into_iter().chain(words).flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn a_list_of_types_lies_within_a_program() {
        let mut file = arm64_kernel(0xffff_8000_8000_0000);
        let list = list_of_types(0, 0, 0, 0);
        let (start, end) = (0x8004, 0x8004 + list.len());
        file[start..end].copy_from_slice(&list);
        let all = found(&old(file));
        let [front, types, behind] = all.as_slice() else { panic!("{} programs", all.len()) };
        assert_eq!((front.types, types.types, behind.types), (false, true, false));
        assert_eq!(front.end(), start as u64);
        assert_eq!((types.areas[0].start, types.end()), (start as u64 + 24, end as u64));
        let first = &behind.areas[0];
        assert!(first.start >= end as u64 && first.start - end as u64 <= 8, "{first:?}");
        assert!(first.place.is_multiple_of(8) && behind.areas.iter().all(|a| u64::from(a.place) == a.start));
    }

    #[test]
    fn types_of_other_numbers_and_names_elsewhere_are_foreseen() {
        let list = |number, name| list_of_types(31_500, number, 95_000, name);
        // Two modules.
        let (from, target) = (old([list(0, 0), list(0, 0)].concat()), [list(-2, 40), list(-2, 40)].concat());
        let stretches = [Stretch { start: 0, end: target.len(), made: Made::Copy(0) }];
        let known = Programs::learn(&target, &from, &stretches);
        assert_eq!(known.each.len(), 2);
        let moves: Vec<i32> = known.each[0].references.moves.iter().map(|entry| entry.by).collect();
        assert_eq!(moves, [-2, 0, 40, 0]);
        let predicted = known.predicted(&from, 0, 0, target.len());
        assert!(differ(&from.bytes, &target) > 5000);
        assert_eq!(differ(&predicted, &target), 0);
    }

    #[test]
    fn words_of_a_list_of_types_are_known_by_its_kinds() {
        use Role::{Name, Number, Other};
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let list = [1, 0x0100_0000, 4, 32, 1, 0x0800_0000, 1, 1, 0x0600_0001, 4, 9, 0];
        let roles = [Name, Other, Other, Other, Name, Other, Number, Name, Other, Other, Name, Other];
        assert!(Types::roles(&words(&list)) == roles);
        // Cut short: nothing behind the end.
        assert!(Types::roles(&words(&list[..11])) == roles[..11]);
        assert!(Types::roles(&words(&[1])) == [Other]);
    }

    #[test]
    fn no_segment_tells_of_more_than_a_decoder_takes() {
        let programs = Programs { each: vec![known(0, AREAS_MAX), known(1 << 20, 1)] };
        assert!(programs.fit(0..1) && programs.fit(1..2) && !programs.fit(0..2));
        let parsed = |numbers| References::parse(&programs.together(numbers).to_bytes()).unwrap();
        assert!(parsed(0..1).is_ok() && parsed(0..2).is_err());
    }
}
