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

/// Hash of one page's bytes, without its place.
pub fn leaf(page: &[u8]) -> u64 {
    XxHash3_64::oneshot(page)
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
