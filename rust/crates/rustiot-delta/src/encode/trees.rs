//! Finds dm-verity hash trees in a target: whatever is found is computed and compared before it is left out.

use crate::format::{TREES_MAX, TreeInfo};
use crate::tree::{BLOCK, TreeHasher, tree_len};

/// Where a hash tree is thought to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHint {
    /// Start of the hashed data in the target.
    pub data_start: u64,
    /// Blocks of 4096 bytes that are hashed.
    pub data_blocks: u64,
    /// Start of the tree in the target.
    pub tree_start: u64,
    /// What each block is hashed with.
    pub salt: Vec<u8>,
}

/// The trees that are really there, in the order of their places.
pub(crate) fn find(target: &[u8], hints: &[TreeHint]) -> Vec<TreeInfo> {
    let mut found: Vec<TreeInfo> = Vec::new();
    let mut all = hints.to_vec();
    all.extend(images(target));
    all.extend(bundle(target));
    all.sort_by_key(|hint| hint.tree_start);
    for hint in all {
        let tree = TreeInfo {
            data_start: hint.data_start,
            data_blocks: hint.data_blocks,
            tree_start: hint.tree_start,
            salt: hint.salt,
        };
        let sum: u64 = found.iter().map(TreeInfo::len).sum();
        let last = found.last().map_or(0, TreeInfo::tree_end);
        let fits = tree.tree_start >= tree.data_end()
            && tree.tree_start >= last
            && tree.salt.len() <= 256
            && tree.len() > 0
            && sum.saturating_add(tree.len()) <= TREES_MAX
            && found.len() < 4
            && found.iter().all(|other| {
                other.tree_end() <= tree.data_start
                    || other.tree_start >= tree.data_end()
                    || (other.tree_start >= tree.data_start && other.tree_end() <= tree.data_end())
            });
        if fits && is_there(target, &tree) {
            found.push(tree);
        }
    }
    found
}

fn is_there(target: &[u8], tree: &TreeInfo) -> bool {
    let data = target.get(tree.data_start as usize..tree.data_end() as usize);
    let bytes = target.get(tree.tree_start as usize..tree.tree_end() as usize);
    let (Some(data), Some(bytes)) = (data, bytes) else { return false };
    let mut hasher = TreeHasher::new(tree.data_blocks, &tree.salt);
    hasher.update(data);
    hasher.finish(tree.data_blocks) == bytes
}

/// The tree of a RAUC bundle in format `verity`: image, tree, signature (with the manifest in it), and the signature's
/// length in eight bytes, big-endian.
fn bundle(target: &[u8]) -> Option<TreeHint> {
    let (rest, size) = target.split_last_chunk::<8>()?;
    let size = usize::try_from(u64::from_be_bytes(*size)).ok()?;
    let signature_start = rest.len().checked_sub(size)?;
    let signature = String::from_utf8_lossy(rest.get(signature_start..)?);
    let value = |key: &str| {
        let line = signature.split(['\n', '\r']).find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_start_matches('=').trim().to_owned())
    };
    let tree_size = value("verity-size=")?.parse::<u64>().ok()?;
    let tree_start = (signature_start as u64).checked_sub(tree_size)?;
    let data_blocks = tree_start / BLOCK;
    (tree_len(data_blocks) == tree_size).then_some(())?;
    Some(TreeHint { data_start: 0, data_blocks, tree_start, salt: hex(&value("verity-salt=")?)? })
}

/// The trees behind root images (erofs): what the initramfs says of them (`verity.json`, `docs/contracts/image.md`)
/// stands uncompressed in the boot image.
fn images(target: &[u8]) -> Vec<TreeHint> {
    let mut hints = Vec::new();
    let starts: Vec<usize> = positions(target, &0xE0F5_E1E2u32.to_le_bytes())
        .filter_map(|magic| magic.checked_sub(1024))
        .filter(|start| target.get(*start..).is_some_and(|rest| rest.len() > 4096))
        .collect();
    for at in positions(target, b"\"root_hash\"") {
        let start = target[..at].iter().rposition(|byte| *byte == b'{');
        let end = target[at..].iter().take(4096).position(|byte| *byte == b'}');
        let (Some(start), Some(end)) = (start, end) else { continue };
        let text =
            String::from_utf8_lossy(&target[start.max(at.saturating_sub(4096))..at + end + 1]).into_owned();
        let number = |key: &str| value_of(&text, key)?.parse::<u64>().ok();
        let (Some(blocks), Some(first)) = (number("data_blocks"), number("hash_start_block")) else {
            continue;
        };
        let Some(salt) = value_of(&text, "salt").and_then(hex) else { continue };
        for start in &starts {
            let start = *start as u64;
            let Some(offset) = first.checked_mul(BLOCK) else { continue };
            hints.push(TreeHint {
                data_start: start,
                data_blocks: blocks,
                tree_start: start.saturating_add(offset),
                salt: salt.clone(),
            });
        }
    }
    hints.dedup();
    hints.truncate(64);
    hints
}

/// A value in flat JSON, without quotes.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let rest = text.split_once(&format!("\"{key}\""))?.1.trim_start().strip_prefix(':')?.trim_start();
    let end = rest.find([',', '}', '\n']).unwrap_or(rest.len());
    Some(rest[..end].trim().trim_matches('"'))
}

fn positions<'a>(text: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = wanted.first().copied().unwrap_or_default();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let found = at + text.get(at..)?.iter().position(|byte| *byte == first)?;
            at = found + 1;
            if text[found..].starts_with(wanted) {
                return Some(found);
            }
        }
    })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).ok()).collect()
}
