//! The salted digest that guest, copy and model compute alike.
//!
//! ```text
//! leaf(page)   = XXH3-64(the page's 4096 bytes), default secret, seed 0
//! node         = XXH3-64(le64(leaf) ‖ le64(GPA) ‖ le64(pass))
//! digest       = sum of the nodes, modulo 2^64
//! ```
//!
//! The salt follows the leaf, so the bulk hash runs at XXH3's full rate and the leaf of an untouched page can be kept
//! from pass to pass. The sum has no order, hence threads may share the work; each term is bound to its place and pass,
//! so swapped or stale pages cannot cancel out.

use abi::Gpa;
use twox_hash::XxHash3_64;

use crate::PAGE_BYTES;

/// XXH3's default secret, aligned: a guest that is emulated reads it much faster than where a byte array happens to lie.
#[repr(align(64))]
struct Secret([u8; 192]);

#[rustfmt::skip]
static SECRET: Secret = Secret([
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
]);

/// Hash of one page's bytes, without its place.
pub fn leaf(page: &[u8]) -> u64 {
    let hash = XxHash3_64::oneshot_with_secret(&SECRET.0, page);
    hash.expect("the secret has more than the 136 bytes that a hash asks for")
}

/// One page's term of the sum: `leaf` bound to the page's address and the pass.
pub fn node(leaf: u64, gpa: Gpa, pass: u64) -> u64 {
    let mut salted = [0; 24];
    salted[..8].copy_from_slice(&leaf.to_le_bytes());
    salted[8..16].copy_from_slice(&gpa.raw().to_le_bytes());
    salted[16..].copy_from_slice(&pass.to_le_bytes());
    XxHash3_64::oneshot(&salted)
}

/// The digest of a set of pages in one pass, accumulated in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionDigest {
    pass: u64,
    sum: u64,
}

impl RegionDigest {
    /// The digest of no page, for `pass`.
    pub const fn new(pass: u64) -> Self {
        Self { pass, sum: 0 }
    }

    /// Adds the page at `gpa`, whose bytes are `page` ([`PAGE_BYTES`] long).
    pub fn add_page(&mut self, gpa: Gpa, page: &[u8]) {
        debug_assert_eq!(page.len() as u64, PAGE_BYTES, "a digest counts whole pages");
        self.add_leaf(gpa, leaf(page));
    }

    /// Adds the page at `gpa`, whose [`leaf`] is known.
    pub fn add_leaf(&mut self, gpa: Gpa, leaf: u64) {
        self.sum = self.sum.wrapping_add(node(leaf, gpa, self.pass));
    }

    /// Adds what another thread or vCPU has accumulated over other pages.
    ///
    /// # Panics
    /// If `other` is of another pass.
    pub fn merge(&mut self, other: Self) {
        assert_eq!(self.pass, other.pass, "digests of different passes do not add up");
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// The digest.
    pub const fn value(self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = PAGE_BYTES as usize;

    #[test]
    fn a_leaf_is_the_hash_with_the_default_secret() {
        let bytes: [u8; 2 * PAGE] = core::array::from_fn(|i| ((i * 7) >> 3) as u8);
        for start in [0, 1, 2048, PAGE] {
            let page = &bytes[start..start + PAGE];
            assert_eq!(leaf(page), XxHash3_64::oneshot(page));
        }
    }

    #[test]
    fn swapped_and_stale_pages_change_the_digest() {
        let (a, b) = ([1; PAGE], [2; PAGE]);
        let digest = |first: &[u8], second: &[u8], pass| {
            let mut digest = RegionDigest::new(pass);
            digest.add_page(Gpa::new(0x1000), first);
            digest.add_page(Gpa::new(0x2000), second);
            digest.value()
        };
        assert_ne!(digest(&a, &b, 0), digest(&b, &a, 0));
        assert_ne!(digest(&a, &b, 0), digest(&a, &b, 1));
        assert_ne!(digest(&a, &b, 0), digest(&a, &a, 0));
    }

    #[test]
    fn order_and_split_do_not_matter() {
        let mut forward = RegionDigest::new(3);
        let (mut left, mut right) = (RegionDigest::new(3), RegionDigest::new(3));
        for i in 0..8_u64 {
            forward.add_leaf(Gpa::new(i << 12), i);
            let half = if i % 2 == 0 { &mut left } else { &mut right };
            half.add_leaf(Gpa::new((7 - i) << 12), 7 - i);
        }
        right.merge(left);
        assert_eq!(forward, right);
    }
}
