//! References in programs: a branch, a pointer or a table's entry says where something lies, so it changes when that
//! moves, in a place that has not changed otherwise. A segment tells what moved how far in a program; what copied bytes
//! refer to is predicted from that, and only wrong predictions need a correction. Knows nothing of file formats: a
//! segment says which bytes are what. Any segment's list is an error or a prediction. Called by segments; the encoder's
//! side is `encode/programs.rs`.

use crate::Error;
use crate::format::{Reader, unzigzag};
#[cfg(any(test, feature = "encode"))]
use crate::format::{put_number, zigzag};
use std::ops::Range;

/// Old data is looked at in pieces of so many bytes, at their multiples: a prediction depends on the address alone and
/// not on how much is read at once. A reference across their border is not seen.
pub(crate) const WINDOW: u64 = 4096;
/// No reference reaches further from its first byte: an ADRP and the 8 words behind it.
const REACH: usize = 36;
/// Areas in a segment …
pub(crate) const AREAS_MAX: usize = 1 << 13;
/// … and moves.
pub(crate) const MOVES_MAX: usize = 1 << 16;

/// Fills a buffer with old data from an address on; false where there is none.
type ReadOld<'a> = dyn FnMut(u64, &mut [u8]) -> Result<bool, Error> + 'a;

/// What the bytes of an area are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// x86-64 instructions: CALL and JMP with 32 bits, Jcc, and operands relative to the instruction.
    X86,
    /// AArch64 instructions: BL, B, and ADRP with what it is for.
    Arm64,
    /// Words of 4 bytes: the distance to something in the code, from the word (tables of jumps).
    Jumps,
    /// Words of 4 bytes as in `.eh_frame`: the distance to something in the code, from the word, or how far back
    /// something else lies.
    Frames,
    /// Words of 4 bytes: the distance from the area's start (`.eh_frame_hdr`).
    Table,
    /// Words of 8 bytes: virtual addresses.
    Pointers,
    /// Words of 4 bytes: places.
    Offsets,
}

impl Kind {
    /// All, by the byte that stands for them.
    pub(crate) const ALL: [Kind; 7] =
        [Kind::X86, Kind::Arm64, Kind::Jumps, Kind::Frames, Kind::Table, Kind::Pointers, Kind::Offsets];
}

/// An old program: an ELF file whose parts refer to each other. Places in it are virtual addresses less its lowest one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// The lowest virtual address.
    pub(crate) lowest: u64,
    /// Everything that can be referred to lies below this place.
    pub(crate) span: u32,
    /// Where its code lies.
    pub(crate) code: (u32, u32),
    /// How far the file moved from the old data to the target.
    pub(crate) moved: i64,
    /// Its moves in the list of all: first and last but one.
    pub(crate) moves: (usize, usize),
}

/// A stretch of old data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) kind: Kind,
    /// The place of its first byte.
    pub(crate) place: u32,
    /// Its program's number.
    pub(crate) program: u32,
}

/// From this place on, up to the next move's, everything moved so far within its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) place: u32,
    pub(crate) by: i32,
}

/// Everything that a segment says of references.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct References {
    pub(crate) programs: Vec<Program>,
    /// By address, not overlapping.
    pub(crate) areas: Vec<Area>,
    /// By program and place.
    pub(crate) moves: Vec<Move>,
}

impl References {
    /// Reads the list; `None` when it makes no sense, `Some(Err)` when it is too long.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Result<Self, &'static str>> {
        let mut all = References::default();
        let mut reader = Reader::new(bytes);
        let mut at = 0u64;
        while reader.left() > 0 {
            let lowest = unzigzag(reader.number()?) as u64;
            let span = u32::try_from(reader.number()?).ok()?;
            let code_start = u32::try_from(reader.number()?).ok()?;
            let code_end = code_start.checked_add(u32::try_from(reader.number()?).ok()?)?;
            let moved = unzigzag(reader.number()?);
            let program = u32::try_from(all.programs.len()).ok()?;
            let areas = reader.number()?;
            if areas > AREAS_MAX.saturating_sub(all.areas.len()) as u64 {
                return Some(Err("the number of its areas"));
            }
            // Places follow the addresses of areas unless something was left out between them.
            let mut skew = 0u64;
            for _ in 0..areas {
                let kind = *Kind::ALL.get(usize::from(reader.byte()?))?;
                let start = at.checked_add(reader.number()?)?;
                at = start.checked_add(reader.number()?)?;
                skew = skew.wrapping_add(unzigzag(reader.number()?) as u64);
                let place = u32::try_from(start.wrapping_add(skew)).ok().filter(|place| *place < span)?;
                if at == start {
                    return None;
                }
                all.areas.push(Area { start, end: at, kind, place, program });
            }
            let first = all.moves.len();
            let moves = reader.number()?;
            if moves > MOVES_MAX.saturating_sub(first) as u64 {
                return Some(Err("the number of its moves"));
            }
            let (mut place, mut by) = (0u32, 0i32);
            for _ in 0..moves {
                place = place.checked_add(u32::try_from(reader.number()?).ok()?)?;
                by = by.checked_add(i32::try_from(unzigzag(reader.number()?)).ok()?)?;
                all.moves.push(Move { place, by });
            }
            let moves = (first, all.moves.len());
            all.programs.push(Program { lowest, span, code: (code_start, code_end), moved, moves });
        }
        Some(Ok(all))
    }

    /// The opposite of [`References::parse`].
    #[cfg(any(test, feature = "encode"))]
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        for (number, program) in self.programs.iter().enumerate() {
            put_number(&mut out, zigzag(program.lowest as i64));
            put_number(&mut out, u64::from(program.span));
            put_number(&mut out, u64::from(program.code.0));
            put_number(&mut out, u64::from(program.code.1.saturating_sub(program.code.0)));
            put_number(&mut out, zigzag(program.moved));
            let areas: Vec<&Area> =
                self.areas.iter().filter(|area| area.program as usize == number).collect();
            put_number(&mut out, areas.len() as u64);
            let mut skew = 0u64;
            for area in areas {
                out.push(Kind::ALL.iter().position(|kind| *kind == area.kind).unwrap_or_default() as u8);
                put_number(&mut out, area.start.saturating_sub(at));
                put_number(&mut out, area.end.saturating_sub(area.start));
                let now = u64::from(area.place).wrapping_sub(area.start);
                put_number(&mut out, zigzag(now.wrapping_sub(skew) as i64));
                (at, skew) = (area.end, now);
            }
            let moves = self.moves.get(program.moves.0..program.moves.1).unwrap_or_default();
            put_number(&mut out, moves.len() as u64);
            let mut last = Move { place: 0, by: 0 };
            for entry in moves {
                put_number(&mut out, u64::from(entry.place.saturating_sub(last.place)));
                put_number(&mut out, zigzag(i64::from(entry.by) - i64::from(last.by)));
                last = *entry;
            }
        }
        out
    }

    /// Predicts what `part`, copied from `address` to `by` further on, refers to. `read` gets old data around it, up to
    /// the borders of [`WINDOW`]; false where there is none.
    pub(crate) fn predict(
        &self,
        address: u64,
        by: i64,
        part: &mut [u8],
        read: &mut ReadOld<'_>,
    ) -> Result<(), Error> {
        let end = address.saturating_add(part.len() as u64);
        let first = self.areas.partition_point(|area| area.end <= address);
        for area in self.areas.iter().skip(first).take_while(|area| area.start < end) {
            let Some(program) = self.programs.get(area.program as usize) else { continue };
            let mut at = area.start.max(address / WINDOW * WINDOW);
            while at < area.end.min(end) {
                let border = (at / WINDOW + 1).saturating_mul(WINDOW).min(area.end);
                let len = usize::try_from(border - at).unwrap_or_default();
                let mut bounce = [0; WINDOW as usize];
                let within = at.checked_sub(address).and_then(|start| usize::try_from(start).ok());
                match within.and_then(|start| part.get_mut(start..)?.get_mut(..len)) {
                    Some(window) => self.rewrite(program, area, at, by, window),
                    // Only a piece of it is wanted.
                    None => {
                        let low = at.max(address);
                        let (from, to) = ((low - at) as usize, (low - address) as usize);
                        let last = usize::try_from(end - at).map_or(len, |last| last.min(len));
                        let Some(window) = bounce.get_mut(..len) else { return Ok(()) };
                        if read(at, window)? {
                            self.rewrite_part(program, area, at, by, window, from..last);
                            let wanted = part.get_mut(to..).unwrap_or_default();
                            let made = window.get(from..).unwrap_or_default();
                            wanted.iter_mut().zip(made).for_each(|(wanted, made)| *wanted = *made);
                        }
                    }
                }
                at = border;
            }
        }
        Ok(())
    }

    /// Writes predictions into a window of an area, which holds the old bytes at `address`.
    pub(crate) fn rewrite(&self, program: &Program, area: &Area, address: u64, by: i64, window: &mut [u8]) {
        let all = 0..window.len();
        self.rewrite_part(program, area, address, by, window, all);
    }

    /// The same where only a part of the window is wanted; the rest may stay as it is. A short copy needs a few bytes of
    /// a window with hundreds of references.
    fn rewrite_part(
        &self,
        program: &Program,
        area: &Area,
        address: u64,
        by: i64,
        window: &mut [u8],
        wanted: Range<usize>,
    ) {
        let own = by.wrapping_sub(program.moved);
        let moves = self.moves.get(program.moves.0..program.moves.1).unwrap_or_default();
        // A table's start moved by itself; whatever else is relative to something is so to itself.
        let from = if area.kind == Kind::Table { moved(moves, area.place) } else { own };
        let mut fields = Fields::new(program, area, address);
        while let Some(field) = fields.next(window).filter(|field| field.at < wanted.end) {
            if field.at.saturating_add(REACH) > wanted.start {
                field.write(window, moved(moves, field.to), from);
            }
        }
    }
}

/// How far a place moved within its program.
pub(crate) fn moved(moves: &[Move], place: u32) -> i64 {
    let number = moves.partition_point(|entry| entry.place <= place);
    number.checked_sub(1).and_then(|number| moves.get(number)).map_or(0, |entry| i64::from(entry.by))
}

/// How a reference is written. Numbers are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// 4 bytes: how far on.
    On,
    /// 4 bytes: how far back.
    Back,
    /// 4 bytes: where.
    There,
    /// 8 bytes: where.
    Where,
    /// The low 26 bits of 4 bytes: how far on, in words.
    Branch,
    /// ADRP's pages, and the offset in the page in an instruction behind it: where that one lies, and the bits that it
    /// leaves out.
    Page(usize, u32),
}

/// A reference in a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// Offset in the window.
    at: usize,
    form: Form,
    /// Its own place.
    place: u32,
    /// The place that it refers to.
    pub(crate) to: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    let place = bytes.get_mut(at..).unwrap_or_default();
    place.iter_mut().zip(new).for_each(|(place, new)| *place = *new);
}

impl Field {
    /// Writes what it becomes when what it refers to moved by `to` and what it is relative to by `from`.
    fn write(&self, window: &mut [u8], to: i64, from: i64) {
        let by = to.wrapping_sub(from);
        let Some(old) = word(window, self.at) else { return };
        match self.form {
            Form::On => put(window, self.at, &old.wrapping_add(by as u32).to_le_bytes()),
            Form::Back => put(window, self.at, &old.wrapping_sub(by as u32).to_le_bytes()),
            Form::There => put(window, self.at, &old.wrapping_add(to as u32).to_le_bytes()),
            Form::Where => {
                let Some(old) = long(window, self.at) else { return };
                put(window, self.at, &old.wrapping_add(to as u64).to_le_bytes());
            }
            Form::Branch => {
                let words = old.wrapping_add((by >> 2) as u32) & BRANCH;
                put(window, self.at, &(old & !BRANCH | words).to_le_bytes());
            }
            Form::Page(offset_at, bits) => {
                let Some(offset) = word(window, offset_at) else { return };
                let to = i64::from(self.to).wrapping_add(to);
                let pages = (to >> 12).wrapping_sub(i64::from(self.place).wrapping_add(from) >> 12);
                put(window, self.at, &with_pages(old, pages as u32).to_le_bytes());
                let low = (to as u32 & 0xfff) >> bits << 10;
                put(window, offset_at, &(offset & !(0xfff << 10) | low).to_le_bytes());
            }
        }
    }

    /// How far what it refers to moved, from what it became in `new`: the opposite of [`Field::write`].
    #[cfg(any(test, feature = "encode"))]
    pub(crate) fn moved_by(&self, old: &[u8], new: &[u8], from: i64) -> Option<i64> {
        let (was, is) = (word(old, self.at)?, word(new, self.at)?);
        let by = i64::from(is.wrapping_sub(was) as i32);
        Some(match self.form {
            Form::On => by.wrapping_add(from),
            Form::Back => from.wrapping_sub(by),
            Form::There => by,
            Form::Where => long(new, self.at)?.wrapping_sub(long(old, self.at)?) as i64,
            Form::Branch if (was ^ is) & !BRANCH == 0 => i64::from((is << 6) as i32 >> 4)
                .wrapping_sub(i64::from((was << 6) as i32 >> 4))
                .wrapping_add(from),
            Form::Page(offset_at, bits) if (was ^ is) & !PAGES == 0 => {
                let low = word(new, offset_at)? >> 10 & 0xfff;
                let page = (i64::from(self.place).wrapping_add(from) >> 12).wrapping_add(pages(is));
                (page << 12).wrapping_add(i64::from(low << bits)).wrapping_sub(i64::from(self.to))
            }
            Form::Branch | Form::Page(..) => return None,
        })
    }
}

/// The bits of B and BL that say how far.
const BRANCH: u32 = 0x03ff_ffff;
/// The bits of ADRP that do, in two pieces.
const PAGES: u32 = 0x60ff_ffe0;

/// ADRP's pages.
fn pages(word: u32) -> i64 {
    let value = word >> 29 & 3 | word >> 3 & 0x1f_fffc;
    i64::from((value << 11) as i32 >> 11)
}

/// ADRP with other pages.
fn with_pages(word: u32, pages: u32) -> u32 {
    word & !PAGES | (pages & 3) << 29 | (pages & 0x1f_fffc) << 3
}

/// Finds the references in a window, one behind the other: what has been passed may be written.
pub(crate) struct Fields<'a> {
    program: &'a Program,
    area: &'a Area,
    /// The place of the window's first byte.
    place: u32,
    at: usize,
    /// The byte in front, where nothing was written.
    before: u8,
}

impl<'a> Fields<'a> {
    /// Of the window at `address`.
    pub(crate) fn new(program: &'a Program, area: &'a Area, address: u64) -> Self {
        let offset = address.saturating_sub(area.start);
        let place = area.place.wrapping_add(offset as u32);
        // Words lie at multiples of their length from the area's start on.
        let align = match area.kind {
            Kind::X86 => 1,
            Kind::Arm64 | Kind::Jumps | Kind::Frames | Kind::Table | Kind::Offsets => 4,
            Kind::Pointers => 8,
        };
        let at = (offset.wrapping_neg() % align) as usize;
        Fields { program, area, place, at, before: 0 }
    }

    /// The next reference; `window` holds old bytes from the last one on.
    pub(crate) fn next(&mut self, window: &[u8]) -> Option<Field> {
        match self.area.kind {
            Kind::X86 => self.x86(window),
            Kind::Arm64 => self.arm64(window),
            Kind::Jumps | Kind::Frames | Kind::Table | Kind::Offsets => self.words(window),
            Kind::Pointers => self.pointers(window),
        }
    }

    /// A place so far from another, if it is one that can be referred to.
    fn place(&self, from: u32, distance: i64) -> Option<u32> {
        let place = u32::try_from(i64::from(from).checked_add(distance)?).ok()?;
        (place < self.program.span).then_some(place)
    }

    /// The place `at` in the window.
    fn own(&self, at: usize) -> u32 {
        self.place.wrapping_add(at as u32)
    }

    fn x86(&mut self, window: &[u8]) -> Option<Field> {
        while let Some([first, operand @ ..]) = window.get(self.at..)?.first_chunk::<5>() {
            let jump = self.before == 0x0f && *first & 0xf0 == 0x80;
            // 0xc7 leaves mod and r/m of a ModRM byte: relative to RIP.
            let reference = *first & 0xfe == 0xe8 || *first & 0xc7 == 0x05 || jump;
            self.before = *first;
            self.at += 1;
            if !reference {
                continue;
            }
            let at = self.at;
            let place = self.own(at);
            let distance = i64::from(i32::from_le_bytes(*operand));
            if let Some(to) = self.place(place, distance.wrapping_add(4)) {
                self.at += 4;
                self.before = 0;
                return Some(Field { at, form: Form::On, place, to });
            }
        }
        None
    }

    fn arm64(&mut self, window: &[u8]) -> Option<Field> {
        while let Some(first) = word(window, self.at) {
            let at = self.at;
            let place = self.own(at);
            self.at += 4;
            if first & 0x7c00_0000 == 0x1400_0000 {
                let distance = i64::from((first << 6) as i32 >> 4);
                if let Some(to) = self.place(place, distance) {
                    return Some(Field { at, form: Form::Branch, place, to });
                }
            } else if first & 0x9f00_0000 == 0x9000_0000 {
                let page = self.place(place & !0xfff, pages(first) << 12);
                if let Some((offset_at, offset, bits)) = offset(window, self.at, first & 31)
                    && let Some(to) = page.and_then(|page| self.place(page, i64::from(offset)))
                {
                    return Some(Field { at, form: Form::Page(offset_at, bits), place, to });
                }
            }
        }
        None
    }

    fn words(&mut self, window: &[u8]) -> Option<Field> {
        while let Some(value) = word(window, self.at) {
            let at = self.at;
            let place = self.own(at);
            self.at += 4;
            let distance = i64::from(value as i32);
            let (form, to) = match self.area.kind {
                Kind::Table => (Form::On, self.place(self.area.place, distance)),
                Kind::Offsets => (Form::There, (value < self.program.span).then_some(value)),
                kind => {
                    let (start, end) = self.program.code;
                    let to = self.place(place, distance).filter(|to| (start..end).contains(to));
                    match kind {
                        Kind::Frames if to.is_none() => {
                            let back = self.place(place, distance.wrapping_neg());
                            (Form::Back, back.filter(|_| distance > 0))
                        }
                        _ => (Form::On, to),
                    }
                }
            };
            // Nothing is as far as nowhere.
            if let Some(to) = to.filter(|_| value != 0) {
                return Some(Field { at, form, place, to });
            }
        }
        None
    }

    fn pointers(&mut self, window: &[u8]) -> Option<Field> {
        while let Some(value) = long(window, self.at) {
            let at = self.at;
            self.at += 8;
            let to = value.wrapping_sub(self.program.lowest);
            // Small numbers are lengths and kinds.
            if value >= SMALL && to < u64::from(self.program.span) {
                return Some(Field { at, form: Form::Where, place: self.own(at), to: to as u32 });
            }
        }
        None
    }
}

/// Below this a word is no address.
const SMALL: u64 = 64;
/// Instructions behind ADRP in which its offset is looked for.
const NEAR: usize = 8;

/// The instruction that takes a page's address from `register`: where it is, the offset, and the bits that it leaves
/// out.
fn offset(window: &[u8], from: usize, register: u32) -> Option<(usize, u32, u32)> {
    for at in (from..).step_by(4).take(NEAR) {
        let word = word(window, at)?;
        if word & 0x9f00_001f == 0x9000_0000 | register {
            return None;
        }
        if word >> 5 & 31 != register {
            continue;
        }
        let offset = word >> 10 & 0xfff;
        // ADD of 64 bits without a shift.
        if word & 0xffc0_0000 == 0x9100_0000 {
            return Some((at, offset, 0));
        }
        // Loads and stores with an offset in units of what they move: 1, 2, 4, 8 or 16 bytes.
        if word & 0x3b00_0000 == 0x3900_0000 {
            let bits = if word & 0x0480_0000 == 0x0480_0000 { 4 } else { word >> 30 };
            return Some((at, offset << bits, bits));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Code at 0x3000, and one area of this kind at the place that its address is.
    fn references(kind: Kind, moves: &[(u32, i32)]) -> References {
        let program =
            Program { lowest: 0, span: 1 << 20, code: (0x3000, 0x9000), moved: 0, moves: (0, moves.len()) };
        let area = Area { start: 0x1000, end: 0x9000, kind, place: 0x1000, program: 0 };
        let moves = moves.iter().map(|&(place, by)| Move { place, by }).collect();
        References { programs: vec![program], areas: vec![area], moves }
    }

    /// What these bytes, which lie at 0x2000, become when they move by `by`.
    fn predicted(references: &References, bytes: &[u8], by: i64) -> Vec<u8> {
        let mut part = bytes.to_vec();
        let mut read = |at: u64, window: &mut [u8]| {
            window.fill(0xaa);
            let from = at as i64 - 0x2000;
            for (number, byte) in window.iter_mut().enumerate() {
                let place = usize::try_from(from + number as i64).ok();
                *byte = place.and_then(|place| bytes.get(place)).copied().unwrap_or(0xaa);
            }
            Ok(true)
        };
        references.predict(0x2000, by, &mut part, &mut read).unwrap();
        part
    }

    #[test]
    fn a_call_of_what_moved_is_foreseen() {
        // To 0x4000 from 0x2000, whose code moved by 16, and what it calls by 48.
        let call = |from: i32, to: i32| [&[0xe8][..], &(to - from - 5).to_le_bytes(), &[0x90; 8]].concat();
        let references = references(Kind::X86, &[(0x3000, 48)]);
        assert_eq!(predicted(&references, &call(0x2000, 0x4000), 16), call(0x2010, 0x4030));
        // Not what lies in front of the move.
        assert_eq!(predicted(&references, &call(0x2000, 0x2800), 16), call(0x2010, 0x2800));
    }

    #[test]
    fn an_operand_relative_to_the_instruction_and_a_conditional_jump_are_foreseen() {
        let code = |by: i32| {
            let lea = [&[0x48, 0x8d, 0x05][..], &(0x2000 + by).to_le_bytes()].concat();
            [lea, vec![0x0f, 0x84], (0x2100 + by).to_le_bytes().to_vec(), vec![0xc3; 8]].concat()
        };
        assert_eq!(predicted(&references(Kind::X86, &[(0x3000, 32)]), &code(0), 0), code(32));
    }

    #[test]
    fn on_arm_a_branch_and_a_page_with_its_offset_are_foreseen() {
        let code = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        // bl 0x4000; adrp x1, 0x4000; nop; add x1, x1, #0xff8 (0x4ff8) … and 16 bytes further on 0x5008.
        let old = code(&[0x9400_0800, 0xd000_0001, 0xd503_201f, 0x913f_e021]);
        let new = code(&[0x9400_0804, 0xf000_0001, 0xd503_201f, 0x9100_2021]);
        assert_eq!(predicted(&references(Kind::Arm64, &[(0x3000, 16)]), &old, 0), new);
        // ldr x2, [x1, #0xff8]: its offset counts in 8 bytes.
        let old = code(&[0xd000_0001, 0xf947_fc22]);
        let new = code(&[0xf000_0001, 0xf940_0422]);
        assert_eq!(predicted(&references(Kind::Arm64, &[(0x3000, 16)]), &old, 0), new);
    }

    #[test]
    fn words_in_tables_are_foreseen() {
        let words = |words: &[i32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        // A distance into the code, and 16 bytes back, in front of which nothing moved.
        let frames = references(Kind::Frames, &[(0x3000, 8)]);
        assert_eq!(predicted(&frames, &words(&[0x1800, 16]), 24), words(&[0x1800 + 8 - 24, 16 + 24]));
        assert_eq!(
            predicted(&references(Kind::Jumps, &[(0x3000, 8)]), &words(&[0x1800, 16]), 0),
            words(&[0x1808, 16])
        );
        // From the area's start, which moved by 4.
        let table = references(Kind::Table, &[(0x1000, 4), (0x3000, 8)]);
        assert_eq!(predicted(&table, &words(&[0x3000, 0x100]), 24), words(&[0x3004, 0x100]));
        let offsets = references(Kind::Offsets, &[(0x3000, 12)]);
        assert_eq!(predicted(&offsets, &words(&[0x4000, 0x2000, -1]), 24), words(&[0x400c, 0x2000, -1]));
        let pointers = references(Kind::Pointers, &[(0x3000, -8)]);
        assert_eq!(predicted(&pointers, &words(&[0x4000, 0, 5, 0]), 24), words(&[0x3ff8, 0, 5, 0]));
    }

    fn any_references() -> impl Strategy<Value = References> {
        let area = (0..7usize, 1..300u64, 1..9000u64);
        let entry = (1..5000u32, any::<i16>());
        let program = (prop::collection::vec(area, 1..4), prop::collection::vec(entry, 0..5), any::<i32>());
        prop::collection::vec(program, 0..3).prop_map(|programs| {
            let mut all = References::default();
            let mut at = 0;
            for (number, (areas, moves, moved)) in programs.into_iter().enumerate() {
                let first = all.moves.len();
                let mut place = 0;
                for (step, by) in moves {
                    place += step;
                    all.moves.push(Move { place, by: i32::from(by) });
                }
                for (kind, gap, len) in areas {
                    let (start, kind) = (at + gap, Kind::ALL[kind]);
                    at = start + len;
                    let place = start as u32 / 2;
                    all.areas.push(Area { start, end: at, kind, place, program: number as u32 });
                }
                all.programs.push(Program {
                    lowest: 0xffff_ffff_8100_0000 * (number as u64 % 2),
                    span: 1 << 20,
                    code: (0x100, 0x8000),
                    moved: i64::from(moved),
                    moves: (first, all.moves.len()),
                });
            }
            all
        })
    }

    proptest! {
        #[test]
        fn references_come_back(references in any_references()) {
            prop_assert_eq!(References::parse(&references.to_bytes()), Some(Ok(references)));
        }

        #[test]
        fn any_bytes_are_an_error_or_references(bytes: Vec<u8>, from: u16, part: [u8; 64]) {
            if let Some(Ok(references)) = References::parse(&bytes) {
                let mut part = part;
                references.predict(u64::from(from), 5, &mut part, &mut |_, _| Ok(true)).unwrap();
            }
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// However it is read: in one piece or in many.
        #[test]
        fn a_prediction_depends_on_the_address_alone(
            references in any_references(),
            old in prop::collection::vec(prop_oneof![Just(0xe8u8), Just(0), Just(0x94), Just(0x90), Just(0x91), any::<u8>()], 10_000),
            by in -5000i64..5000,
            cuts in prop::collection::vec(prop_oneof![1..60usize, 1..9000usize], 0..12),
        ) {
            let read = |at: u64, window: &mut [u8]| {
                let from = old.get(at as usize..at as usize + window.len());
                from.inspect(|from| window.copy_from_slice(from));
                Ok(from.is_some())
            };
            let mut whole = old.clone();
            references.predict(0, by, &mut whole, &mut { read }).unwrap();
            let mut at = 0;
            for cut in cuts.into_iter().chain([old.len()]) {
                let end = (at + cut).min(old.len());
                let mut part = old[at..end].to_vec();
                references.predict(at as u64, by, &mut part, &mut { read }).unwrap();
                prop_assert_eq!(&part, &whole[at..end]);
                at = end;
            }
        }
    }
}
