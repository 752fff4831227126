//! The salted digest of a region or of its copy, and the first byte at which two memories differ.
//!
//! The digest is `workload::digest`'s, so guest, copy and model agree by construction. Here it is computed over memory that a
//! guest may be writing: each page goes through a buffer of one page that stays in the first-level cache, because a hash
//! wants a slice and no Rust reference to guest memory may exist. Holes and zero pages share one leaf, computed once.
//! Pages are shared out to threads, as the sum has no order.

use std::ops::Range;
use std::sync::LazyLock;

use abi::Gpa;
use workload::PAGE_BYTES;
use workload::digest::{RegionDigest, leaf};

use super::source::PageSource;
use super::threads::Threads;
use crate::memory::MemoryError;

const PAGE: usize = PAGE_BYTES as usize;

/// Bytes below which one thread digests faster than two can be started: at 20 GB/s, 2 MiB take 100 µs, and a thread
/// costs some 30 µs.
const WORTH_A_THREAD_BYTES: u64 = 2 << 20;

static ZERO_LEAF: LazyLock<u64> = LazyLock::new(|| leaf(&[0; PAGE]));

/// The digest in `pass` of all of `source`, whose first byte lies at `base`.
///
/// # Errors
/// [`MemoryError::Io`] where the source cannot be searched for holes.
///
/// # Panics
/// If the source is not made of whole pages of [`PAGE_BYTES`], or its addresses wrap.
pub fn region_digest(
    source: &(impl PageSource + ?Sized),
    base: Gpa,
    pass: u64,
    threads: Threads,
) -> Result<u64, MemoryError> {
    let len_bytes = source.len_bytes();
    assert_eq!(len_bytes % PAGE_BYTES, 0, "a region is whole pages");
    let extents = page_extents(&source.data_extents()?, len_bytes);
    let mut digest = RegionDigest::new(pass);
    let mut next = 0;
    for extent in &extents {
        add_zeroes(&mut digest, base, next..extent.start);
        next = extent.end;
    }
    add_zeroes(&mut digest, base, next..len_bytes);
    let shares = threads.share_out(&extents, PAGE_BYTES, WORTH_A_THREAD_BYTES);
    let parts = threads.run(&shares, |share| {
        let mut part = RegionDigest::new(pass);
        share.iter().for_each(|extent| add_pages(&mut part, source, base, extent.clone()));
        part
    });
    parts.into_iter().for_each(|part| digest.merge(part));
    Ok(digest.value())
}

/// Where two memories first differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Index of the page, in pages of [`PAGE_BYTES`].
    pub page: u64,
    /// Address of the byte.
    pub gpa: Gpa,
    /// Offset of the byte in its page.
    pub offset: u64,
    /// The byte that was expected.
    pub expected: u8,
    /// The byte that was found.
    pub found: u8,
}

/// The first byte in which `found` differs from `expected`; both start at `base`.
///
/// # Panics
/// If the two have different sizes.
pub fn first_difference(
    expected: &(impl PageSource + ?Sized),
    found: &(impl PageSource + ?Sized),
    base: Gpa,
) -> Option<Difference> {
    differing_pages(expected, found, base).next()
}

/// The first differing byte of every page in which `found` differs from `expected`, in order.
///
/// # Panics
/// If the two have different sizes.
pub fn differing_pages<'a>(
    expected: &'a (impl PageSource + ?Sized),
    found: &'a (impl PageSource + ?Sized),
    base: Gpa,
) -> impl Iterator<Item = Difference> + 'a {
    assert_eq!(expected.len_bytes(), found.len_bytes(), "memories of different sizes");
    let (mut left, mut right) = ([0; PAGE], [0; PAGE]);
    (0..expected.len_bytes() / PAGE_BYTES).filter_map(move |page| {
        expected.read(page * PAGE_BYTES, &mut left);
        found.read(page * PAGE_BYTES, &mut right);
        if left == right {
            return None;
        }
        let at = left.iter().zip(&right).position(|(left, right)| left != right)?;
        let gpa = base.checked_add(page * PAGE_BYTES + at as u64).expect("a region does not wrap");
        Some(Difference { page, gpa, offset: at as u64, expected: left[at], found: right[at] })
    })
}

fn add_pages(digest: &mut RegionDigest, source: &(impl PageSource + ?Sized), base: Gpa, extent: Range<u64>) {
    let mut page = [0; PAGE];
    for offset in extent.step_by(PAGE) {
        source.read(offset, &mut page);
        let gpa = base.checked_add(offset).expect("a region does not wrap");
        digest.add_leaf(gpa, if is_zero(&page) { *ZERO_LEAF } else { leaf(&page) });
    }
}

fn add_zeroes(digest: &mut RegionDigest, base: Gpa, extent: Range<u64>) {
    for offset in extent.step_by(PAGE) {
        digest.add_leaf(base.checked_add(offset).expect("a region does not wrap"), *ZERO_LEAF);
    }
}

/// Whether all bytes are zero; ends at the first 64 that are not.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

/// `extents` rounded out to whole pages, bounded by `len_bytes`, disjoint.
fn page_extents(extents: &[Range<u64>], len_bytes: u64) -> Vec<Range<u64>> {
    let mut pages: Vec<Range<u64>> = Vec::with_capacity(extents.len());
    for extent in extents {
        let start = extent.start / PAGE_BYTES * PAGE_BYTES;
        let end = extent.end.next_multiple_of(PAGE_BYTES).min(len_bytes);
        match pages.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => pages.push(start..end),
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Sparse(Vec<u8>, Vec<Range<u64>>);

    impl PageSource for Sparse {
        fn len_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, offset: u64, bytes: &mut [u8]) {
            self.0.as_slice().read(offset, bytes);
        }

        fn data_extents(&self) -> Result<Vec<Range<u64>>, MemoryError> {
            Ok(self.1.clone())
        }
    }

    fn naive(bytes: &[u8], base: Gpa, pass: u64) -> u64 {
        let mut digest = RegionDigest::new(pass);
        for (page, i) in bytes.chunks(PAGE).zip(0_u64..) {
            digest.add_page(base.checked_add(i * PAGE_BYTES).unwrap(), page);
        }
        digest.value()
    }

    #[test]
    fn holes_zeroes_and_threads_do_not_change_the_digest() {
        let base = Gpa::new(0x2000_0000);
        let mut bytes = vec![0; 1700 * PAGE];
        for page in [3, 4, 700, 701, 1699] {
            bytes[page * PAGE + 77..][..50].fill(page as u8 | 1);
        }
        let expected = naive(&bytes, base, 9);
        for threads in 1..5 {
            let threads = Threads::new(threads);
            assert_eq!(region_digest(bytes.as_slice(), base, 9, threads).unwrap(), expected);
            let page = PAGE_BYTES;
            let extents = vec![3 * page + 70..5 * page, 700 * page..1000 * page, 1699 * page..1700 * page];
            assert_eq!(region_digest(&Sparse(bytes.clone(), extents), base, 9, threads).unwrap(), expected);
        }
    }

    proptest! {
        #[test]
        fn the_first_difference_is_the_first(at in 0..8 * PAGE, also in 0..8 * PAGE) {
            let left = vec![5; 8 * PAGE];
            let mut right = left.clone();
            right[at] = 6;
            right[also] = 6;
            let first = at.min(also);
            let base = Gpa::new(0x1000);
            prop_assert_eq!(first_difference(left.as_slice(), right.as_slice(), base), Some(Difference {
                page: (first / PAGE) as u64,
                gpa: Gpa::new(0x1000 + first as u64),
                offset: (first % PAGE) as u64,
                expected: 5,
                found: 6,
            }));
            prop_assert_eq!(first_difference(left.as_slice(), left.as_slice(), base), None);
        }
    }
}
