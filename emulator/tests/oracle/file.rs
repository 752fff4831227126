//! The format of a vector file: [`Vectors`]. All integers are little-endian.
//!
//! ```text
//! "TMVECTOR"  u32 version (1)  u32 sections  u64 seed
//! sections of: u32 words per block, u32 blocks, then per block its words (u32 each) and its digest (three u32)
//! ```
//!
//! Blocks are numbered through all sections, from 0.

use super::state::Digest;

/// The first bytes of a file.
pub(crate) const MAGIC: &[u8; 8] = b"TMVECTOR";
/// The version in the header.
pub(crate) const VERSION: u32 = 1;

/// A block and the digest of its outputs.
pub(crate) struct Block {
    pub(crate) words: Vec<u32>,
    pub(crate) digest: Digest,
}

/// What a file holds.
pub(crate) struct Vectors {
    pub(crate) seed: u64,
    pub(crate) blocks: Vec<Block>,
}

impl Vectors {
    /// Parses a file.
    ///
    /// # Panics
    /// If it is damaged or of another version.
    pub(crate) fn parse(mut bytes: &[u8]) -> Self {
        let mut take = |len: usize| {
            let (head, tail) = bytes.split_at_checked(len).expect("the vector file is cut off");
            bytes = tail;
            head
        };
        assert_eq!(take(8), MAGIC, "not a vector file");
        let mut u32_at = || u32::from_le_bytes(take(4).try_into().expect("four bytes"));
        assert_eq!(u32_at(), VERSION, "a vector file of another version");
        let sections = u32_at();
        let seed = u64::from(u32_at()) | u64::from(u32_at()) << 32;
        let mut blocks = Vec::new();
        for _ in 0..sections {
            let (words, count) = (u32_at(), u32_at());
            for _ in 0..count {
                let words = (0..words).map(|_| u32_at()).collect();
                let digest = Digest { general: u32_at(), vectors: u32_at(), window: u32_at() };
                blocks.push(Block { words, digest });
            }
        }
        assert!(bytes.is_empty(), "bytes behind the last section");
        Self { seed, blocks }
    }
}
