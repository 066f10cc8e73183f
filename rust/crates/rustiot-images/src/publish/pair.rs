//! Which older layers a new one is made from.
//!
//! A guess, so that not every pair has to be encoded: what a layer has in common with another is counted in blocks of
//! 512 bytes, as tar archives are made of. A block counts if it is in the older layer to the byte, or if it belongs to a
//! file that has a namesake there. Pure over the archives that it reads. Called by the publisher.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufReader, Read, Seek};

/// Of a tar archive.
const BLOCK: usize = 512;
/// Most layers that a delta is made from, as in the codec and on the device.
pub(super) const SOURCES_MAX: usize = 16;
/// Most bytes of older layers that a delta is made from: the codec addresses 4 GiB, and the encoder takes about six times
/// as much memory as it is given.
pub(super) const SOURCES_BYTES: u64 = 2 << 30;
/// Up to so many bytes, old and new, it costs seconds to let the encoder decide.
const CHEAP: u64 = 64 << 20;

/// What is counted of a layer.
pub(super) struct Profile {
    pub length: u64,
    blocks: HashSet<u64>,
    files: HashSet<Vec<u8>>,
    /// Of a new layer: each block, and the number of the file that it belongs to.
    order: Vec<(u64, Option<usize>)>,
    names: Vec<Vec<u8>>,
}

impl Profile {
    /// Reads an archive. What is no tar to its end counts by its blocks alone.
    pub(super) fn of(archive: &mut File) -> io::Result<Profile> {
        let mut spans = Vec::new();
        let mut names = Vec::new();
        archive.rewind()?;
        let mut tar = tar::Archive::new(&mut *archive);
        if let Ok(entries) = tar.entries_with_seek() {
            for entry in entries.map_while(Result::ok) {
                if entry.header().entry_type().is_file() && entry.size() > 0 {
                    let start = entry.raw_file_position();
                    spans.push((start, start.saturating_add(entry.size())));
                    names.push(entry.path_bytes().into_owned());
                }
            }
        }
        archive.rewind()?;
        let mut from = BufReader::with_capacity(256 << 10, archive);
        let (mut at, mut next) = (0_u64, 0);
        let (mut blocks, mut order) = (HashSet::new(), Vec::new());
        let mut block = Vec::with_capacity(BLOCK);
        loop {
            block.clear();
            let read = (&mut from).take(BLOCK as u64).read_to_end(&mut block)?;
            if read == 0 {
                break;
            }
            while spans.get(next).is_some_and(|(_, end)| *end <= at) {
                next += 1;
            }
            let inside = spans.get(next).is_some_and(|(start, end)| (*start..*end).contains(&at));
            if block.iter().any(|byte| *byte != 0) {
                let mut hasher = DefaultHasher::new();
                block.hash(&mut hasher);
                let hash = hasher.finish();
                blocks.insert(hash);
                order.push((hash, inside.then_some(next)));
            }
            at += read as u64;
        }
        Ok(Profile { length: at, blocks, files: names.iter().cloned().collect(), order, names })
    }

    /// How many blocks of this layer the older one has something to offer for.
    fn alike(&self, older: &Profile) -> u64 {
        let known: Vec<bool> = self.names.iter().map(|name| older.files.contains(name)).collect();
        let counts = |(hash, file): &&(u64, Option<usize>)| {
            older.blocks.contains(hash) || file.is_some_and(|file| known.get(file) == Some(&true))
        };
        self.order.iter().filter(counts).count() as u64
    }
}

/// An older layer that a new one may be made from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Candidate {
    /// Its place in the image.
    number: usize,
    length: u64,
    /// Blocks in common.
    alike: u64,
}

/// Sets of older layers, by their places, of which the encoder shall try each. The first of a set is the likeliest.
pub(super) fn sets(number: usize, new: &Profile, old: &HashMap<usize, Profile>) -> Vec<Vec<usize>> {
    let candidates = old.iter().map(|(number, profile)| Candidate {
        number: *number,
        length: profile.length,
        alike: new.alike(profile),
    });
    choose(number, new.length, new.order.len() as u64, candidates.collect())
}

fn choose(number: usize, length: u64, blocks: u64, mut candidates: Vec<Candidate>) -> Vec<Vec<usize>> {
    candidates.retain(|candidate| candidate.length > 0 && candidate.length <= SOURCES_BYTES);
    candidates
        .sort_by_key(|it| (u64::MAX - it.alike, it.number != number, it.length.abs_diff(length), it.number));
    let Some(best) = candidates.first().copied() else { return Vec::new() };
    let all: u64 = candidates.iter().map(|candidate| candidate.length).sum();
    let cheap = all.saturating_add(length) <= CHEAP;
    let mut several = vec![best.number];
    let mut sum = best.length;
    for other in candidates.iter().skip(1) {
        // A twentieth of the new layer is worth an encoder's memory and time.
        let worth = cheap || other.alike.saturating_mul(20) >= blocks.max(1);
        if worth && several.len() < SOURCES_MAX && sum.saturating_add(other.length) <= SOURCES_BYTES {
            several.push(other.number);
            sum += other.length;
        }
    }
    let mut sets = vec![several];
    if cheap {
        let alike = candidates.iter().min_by_key(|it| (it.length.abs_diff(length), it.number));
        let place = candidates.iter().find(|it| it.number == number);
        let single = [Some(&best), place, alike].into_iter().flatten().map(|it| vec![it.number]);
        sets.extend(single);
    }
    let mut known = BTreeSet::new();
    sets.retain(|set| known.insert(set.clone()));
    // Fewer sources first: of two deltas of one size the first is kept.
    sets.sort_by_key(Vec::len);
    sets
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn profile(files: &[(&str, &[u8])]) -> Profile {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *data).unwrap();
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&builder.into_inner().unwrap()).unwrap();
        Profile::of(&mut file).unwrap()
    }

    fn bytes(seed: u8, length: usize) -> Vec<u8> {
        (0..length).map(|at| (at as u8).wrapping_mul(seed) ^ (at >> 8) as u8).collect()
    }

    #[test]
    fn a_layer_is_found_by_its_contents_and_by_its_names() {
        let (app, data) = (bytes(3, 40_000), bytes(5, 60_000));
        let old: HashMap<usize, Profile> = [
            (0, profile(&[("etc/passwd", b"root"), ("etc/motd", &bytes(7, 9000))])),
            (1, profile(&[("data/old", &data)])),
            (2, profile(&[("opt/app", &app)])),
        ]
        .into();
        // The same bytes under another name, at another place.
        let moved = profile(&[("data/new", &data)]);
        assert_eq!(sets(2, &moved, &old).first().unwrap(), &[1]);
        // Other bytes under the same name, at another place and of another length.
        let rebuilt = profile(&[("opt/app", &bytes(11, 9000))]);
        assert_eq!(sets(0, &rebuilt, &old).first().unwrap(), &[2]);
        // Nothing in common: the place decides.
        let foreign = profile(&[("x", &bytes(13, 100))]);
        assert_eq!(sets(1, &foreign, &old).first().unwrap(), &[1]);
        // From two layers.
        let both = profile(&[("data/new", &data), ("opt/app", &app)]);
        assert!(sets(0, &both, &old).iter().any(|set| set.get(..2) == Some(&[1, 2])));
    }

    #[test]
    fn what_is_large_is_encoded_once() {
        let large = |number, alike| Candidate { number, length: 40 << 20, alike };
        let chosen = |candidates| choose(0, 40 << 20, 1000, candidates);
        assert_eq!(chosen(vec![large(0, 0), large(1, 900), large(2, 49), large(3, 50)]), [vec![1, 3]]);
        assert_eq!(chosen(vec![]), Vec::<Vec<usize>>::new());
        assert_eq!(
            chosen(vec![Candidate { number: 0, length: 3 << 30, alike: 9 }]),
            Vec::<Vec<usize>>::new()
        );
        let many: Vec<Candidate> = (0..40).map(|number| large(number, 900)).collect();
        assert_eq!(chosen(many).first().map(Vec::len), Some(SOURCES_MAX));
    }

    #[test]
    fn what_is_no_archive_counts_by_its_blocks() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes(3, 5000)).unwrap();
        let odd = Profile::of(&mut file).unwrap();
        assert_eq!((odd.length, odd.names.len()), (5000, 0));
        assert!(odd.alike(&odd) > 0);
    }
}
