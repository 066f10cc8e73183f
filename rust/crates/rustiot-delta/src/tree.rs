//! dm-verity's hash tree as `veritysetup` and RAUC write it: SHA-256, blocks of 4096 bytes, salt in front (version 1),
//! no superblock, root's level first, each level filled up with zeros to whole blocks.

use crate::format::TreeInfo;
use sha2::{Digest, Sha256};

/// Bytes of a block, of data and of the tree.
pub(crate) const BLOCK: u64 = 4096;
const DIGEST: u64 = 32;
const PER_BLOCK: u64 = BLOCK / DIGEST;

impl TreeInfo {
    /// End of the hashed data in the target.
    pub(crate) fn data_end(&self) -> u64 {
        self.data_start.saturating_add(self.data_blocks.saturating_mul(BLOCK))
    }

    /// Length of the tree, bytes.
    pub(crate) fn len(&self) -> u64 {
        tree_len(self.data_blocks)
    }

    /// End of the tree in the target.
    pub(crate) fn tree_end(&self) -> u64 {
        self.tree_start.saturating_add(self.len())
    }
}

/// Bytes of the tree over so many blocks; one block has none.
pub(crate) fn tree_len(data_blocks: u64) -> u64 {
    let mut sum = 0u64;
    let mut below = data_blocks;
    while below > 1 {
        below = below.div_ceil(PER_BLOCK);
        sum = sum.saturating_add(below);
    }
    sum.saturating_mul(BLOCK)
}

/// Hashes the data as it comes by, in order, into the tree's own place: nothing is held twice.
pub(crate) struct TreeHasher {
    salted: Sha256,
    /// The block that is being filled.
    current: Sha256,
    filled: u64,
    blocks_left: u64,
    /// The whole tree, zeros where nothing was hashed yet.
    tree: Vec<u8>,
    /// Where the next digest of a block of data belongs.
    next: usize,
}

impl TreeHasher {
    /// `data_blocks` was checked: the tree is allocated here. Its memory is used as the data comes.
    pub(crate) fn new(data_blocks: u64, salt: &[u8]) -> Self {
        let salted = Sha256::new_with_prefix(salt);
        let tree = vec![0; usize::try_from(tree_len(data_blocks)).unwrap_or_default()];
        let next = tree.len().saturating_sub(level_len(data_blocks));
        TreeHasher { current: salted.clone(), salted, filled: 0, blocks_left: data_blocks, tree, next }
    }

    /// The next bytes of the data. What is beyond its end is not looked at.
    pub(crate) fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() && self.blocks_left > 0 {
            let (now, rest) = data.split_at(data.len().min((BLOCK - self.filled) as usize));
            self.current.update(now);
            self.filled += now.len() as u64;
            data = rest;
            if self.filled == BLOCK {
                let full = std::mem::replace(&mut self.current, self.salted.clone());
                put(&mut self.tree, &mut self.next, &full.finalize());
                self.filled = 0;
                self.blocks_left -= 1;
            }
        }
    }

    /// The whole tree, once all data came by.
    pub(crate) fn finish(mut self, data_blocks: u64) -> Vec<u8> {
        let mut below = self.tree.len();
        let mut blocks = data_blocks;
        loop {
            below = below.saturating_sub(level_len(blocks));
            if below == 0 {
                return self.tree;
            }
            blocks = blocks.div_ceil(PER_BLOCK);
            let (mut from, mut to) = (below, below.saturating_sub(level_len(blocks)));
            for _ in 0..blocks {
                let block = self.tree.get(from..from.saturating_add(BLOCK as usize)).unwrap_or_default();
                let digest = self.salted.clone().chain_update(block).finalize();
                put(&mut self.tree, &mut to, &digest);
                from = from.saturating_add(BLOCK as usize);
            }
        }
    }
}

/// Bytes of the level that has a digest for each of so many blocks.
fn level_len(blocks: u64) -> usize {
    usize::try_from(blocks.div_ceil(PER_BLOCK).saturating_mul(BLOCK)).unwrap_or(usize::MAX)
}

/// Writes a digest and goes on behind it. One block of data has no tree.
fn put(tree: &mut [u8], at: &mut usize, digest: &[u8]) {
    let end = at.saturating_add(digest.len());
    if let Some(place) = tree.get_mut(*at..end) {
        place.copy_from_slice(digest);
    }
    *at = end;
}

/// The whole tree over `data`, as it lies on the device; a last part that is no whole block is not hashed.
pub fn hash_tree(data: &[u8], salt: &[u8]) -> Vec<u8> {
    let blocks = data.len() as u64 / BLOCK;
    let mut hasher = TreeHasher::new(blocks, salt);
    hasher.update(data);
    hasher.finish(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `veritysetup format --no-superblock --salt=0102 --data-block-size=4096` (cryptsetup 2.7) on 200 blocks, block n
    /// filled with n: the SHA-256 of the hash device and the root hash.
    const TREE: &str = "cda43442d54a293dbbfc202d9015a2e0606c8eb6aa0d27b948b7ba742ff8dc55";
    const ROOT: &str = "bf88bea69670da2346d55d11f9582b96aac3cb6a36e513e47707a403c378e691";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn trees_are_those_of_the_real_tool() {
        let data: Vec<u8> = (0..200u8).flat_map(|n| [n; 4096]).collect();
        let tree = hash_tree(&data, &[1, 2]);
        assert_eq!(tree.len() as u64, tree_len(200));
        assert_eq!(hex(&Sha256::digest(&tree)), TREE);
        let root = Sha256::new_with_prefix([1, 2]).chain_update(&tree[..4096]).finalize();
        assert_eq!(hex(&root), ROOT);
    }

    #[test]
    fn levels_are_counted() {
        assert_eq!([0, 1, 2, 128, 129, 16385].map(tree_len), [0, 0, 4096, 4096, 3 * 4096, 132 * 4096]);
    }
}
