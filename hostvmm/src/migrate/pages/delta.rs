//! Deltas: what differs in a page from what was sent of it before, and [`DeltaCache`], which remembers that.
//!
//! The encoding is QEMU's XBZRLE (docs/devel/migration/main, "XBZRLE"): in turn the length of a run of equal bytes and
//! the length of a run of differing ones, followed by the new bytes; lengths as LEB128. Equal bytes at the end are left
//! out, so an unchanged page has an empty delta. A delta that would not be shorter than the page is none (an overflow in
//! QEMU's statistics): the page is sent whole.
//!
//! The cache is bounded and direct-mapped as QEMU's: a page whose place another page holds that was sent in this pass or
//! the last one is not remembered, because pushing out what is hot makes all pages miss.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Equal bytes within a run of differing ones that are cheaper sent than told apart: two lengths cost two bytes.
const CHEAPER_SENT: usize = 2;

/// Longest LEB128 that a length in a page of 64 KiB can have.
const MAX_LENGTH_BYTES: usize = 3;

/// Passes for which a remembered page cannot be pushed out (QEMU's `CACHED_PAGE_LIFETIME`).
const LIFETIME_PASSES: u32 = 2;

/// Most locks of a cache.
const SHARDS: u64 = 64;

/// Bytes that are no delta of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeltaError {
    /// It ends in the middle of a length.
    #[error("a length at byte {at} is cut off or too large")]
    Length {
        /// Where in the delta.
        at: usize,
    },
    /// A run reaches past the page, or has no bytes.
    #[error("a run of {len_bytes} bytes at {offset} of the page is empty, or reaches past the page or the delta")]
    Run {
        /// Where in the page.
        offset: usize,
        /// How long.
        len_bytes: usize,
    },
}

/// Writes to `out`, which is cleared, how `new` differs from `old`; `false` if that takes more than `limit_bytes`.
///
/// # Panics
/// If the two are not of one length.
pub fn encode(old: &[u8], new: &[u8], limit_bytes: usize, out: &mut Vec<u8>) -> bool {
    assert_eq!(old.len(), new.len(), "a page has one size");
    out.clear();
    let mut done = 0;
    loop {
        let start = done + equal_bytes(&old[done..], &new[done..]);
        if start == new.len() {
            return true;
        }
        let end = end_of_difference(old, new, start);
        // Each length takes a byte at least.
        if out.len() + 2 + (end - start) > limit_bytes {
            return false;
        }
        put_length(out, start - done);
        put_length(out, end - start);
        out.extend_from_slice(&new[start..end]);
        if out.len() > limit_bytes {
            return false;
        }
        done = end;
    }
}

/// Makes of `page`, the old one, the new one. After an error the page is neither.
///
/// # Errors
/// [`DeltaError`] where `delta` is not what [`encode`] makes for such a page.
pub fn apply(delta: &[u8], page: &mut [u8]) -> Result<(), DeltaError> {
    let (mut at, mut offset) = (0, 0);
    while at < delta.len() {
        let equal = take_length(delta, &mut at)?;
        // Only a page that differs from its first byte on starts with an empty run.
        if equal == 0 && offset != 0 {
            return Err(DeltaError::Run { offset, len_bytes: 0 });
        }
        offset += equal;
        let len_bytes = take_length(delta, &mut at)?;
        let bytes = delta.get(at..).and_then(|rest| rest.get(..len_bytes));
        let place = page.get_mut(offset..).and_then(|rest| rest.get_mut(..len_bytes));
        match (bytes, place) {
            (Some(bytes), Some(place)) if len_bytes != 0 => place.copy_from_slice(bytes),
            _ => return Err(DeltaError::Run { offset, len_bytes }),
        }
        (at, offset) = (at + len_bytes, offset + len_bytes);
    }
    Ok(())
}

/// Bytes at the start that are equal.
fn equal_bytes(left: &[u8], right: &[u8]) -> usize {
    let words = left.as_chunks::<8>().0.iter().zip(right.as_chunks::<8>().0);
    let mut at = 0;
    for (left, right) in words {
        let differing = u64::from_le_bytes(*left) ^ u64::from_le_bytes(*right);
        if differing != 0 {
            return at + differing.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    at + left[at..].iter().zip(&right[at..]).take_while(|(left, right)| left == right).count()
}

/// Where the run of differing bytes that starts at `start` ends: at more equal bytes than are cheaper sent, or the last
/// byte that differs.
fn end_of_difference(old: &[u8], new: &[u8], start: usize) -> usize {
    let mut end = start + 1;
    let mut at = end;
    while at < new.len() && at - end <= CHEAPER_SENT {
        at += 1;
        if old[at - 1] != new[at - 1] {
            end = at;
        }
    }
    end
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let mut rest = length;
    while rest > 0x7f {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn take_length(delta: &[u8], at: &mut usize) -> Result<usize, DeltaError> {
    let start = *at;
    let mut length = 0;
    for (byte, shift) in delta[start..].iter().take(MAX_LENGTH_BYTES).zip((0..).step_by(7)) {
        length |= usize::from(byte & 0x7f) << shift;
        *at += 1;
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(DeltaError::Length { at: start })
}

/// What came of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// The delta was written.
    Delta,
    /// Nothing was remembered of the page, or its delta is too long: send it whole.
    Whole,
}

/// What a cache has done, by QEMU's names in `query-migrate`'s `xbzrle-cache`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeltaStats {
    /// Pages sent as deltas.
    pub pages: u64,
    /// Bytes of these deltas.
    pub bytes: u64,
    /// Pages of which nothing was remembered.
    pub misses: u64,
    /// Pages whose delta was too long.
    pub overflows: u64,
}

/// The pages that were sent last, as many as fit. Shared by all channels: a page may go by another one in each pass.
#[derive(Debug)]
pub struct DeltaCache {
    shards: Box<[Mutex<Shard>]>,
    places: u64,
    page_bytes: usize,
    pages: AtomicU64,
    bytes: AtomicU64,
    misses: AtomicU64,
    overflows: AtomicU64,
}

/// Every so-many-th place, so that neighbours have different locks.
type Shard = Box<[Option<Entry>]>;

#[derive(Debug)]
struct Entry {
    /// Address of the page, in pages.
    key: u64,
    /// The pass in which it was sent.
    pass: u32,
    bytes: Box<[u8]>,
}

impl DeltaCache {
    /// A cache of at most `size_bytes` of pages of `page_bytes`, at least one; their number is rounded down to a power of two.
    pub fn new(size_bytes: u64, page_bytes: u32) -> Self {
        let most = (size_bytes / u64::from(page_bytes)).max(1);
        let places = 1 << most.ilog2();
        let shards = SHARDS.min(places);
        let shard = || (0..places / shards).map(|_| None).collect();
        Self {
            shards: (0..shards).map(|_| Mutex::new(shard())).collect(),
            places,
            page_bytes: page_bytes as usize,
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
        }
    }

    /// Most bytes of pages that it holds.
    pub fn size_bytes(&self) -> u64 {
        self.places * self.page_bytes as u64
    }

    /// What it has done.
    pub fn stats(&self) -> DeltaStats {
        DeltaStats {
            pages: self.pages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            overflows: self.overflows.load(Ordering::Relaxed),
        }
    }

    /// The page `key` is sent in `pass` with the bytes `new`: as a delta, written to `out`, or whole. Remembers it.
    pub(super) fn exchange(&self, key: u64, pass: u32, new: &[u8], out: &mut Vec<u8>) -> Outcome {
        self.with_place(key, |place| match place {
            Some(entry) if entry.key == key => {
                let fits = encode(&entry.bytes, new, self.page_bytes - 1, out);
                entry.bytes.copy_from_slice(new);
                entry.pass = pass;
                if !fits {
                    self.overflows.fetch_add(1, Ordering::Relaxed);
                    return Outcome::Whole;
                }
                self.pages.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
                Outcome::Delta
            }
            Some(entry) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                if pass >= entry.pass.saturating_add(LIFETIME_PASSES) {
                    entry.bytes.copy_from_slice(new);
                    (entry.key, entry.pass) = (key, pass);
                }
                Outcome::Whole
            }
            None => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                *place = Some(Entry { key, pass, bytes: new.into() });
                Outcome::Whole
            }
        })
    }

    /// The page `key` is sent as zeroes in `pass`.
    pub(super) fn zero(&self, key: u64, pass: u32) {
        self.with_place(key, |place| {
            if let Some(entry) = place
                && entry.key == key
            {
                entry.bytes.fill(0);
                entry.pass = pass;
            }
        });
    }

    fn with_place<R>(&self, key: u64, f: impl FnOnce(&mut Option<Entry>) -> R) -> R {
        let place = key % self.places;
        let shards = self.shards.len() as u64;
        let mut shard =
            self.shards[(place % shards) as usize].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        f(&mut shard[(place / shards) as usize])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = 4096;

    fn delta(old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        encode(old, new, PAGE - 1, &mut out).then_some(out)
    }

    #[test]
    fn the_encoding_is_qemu_s() {
        let old = [0; PAGE];
        let mut new = old;
        assert_eq!(delta(&old, &new).unwrap(), b"");
        new[300] = 7;
        // 300 equal bytes as LEB128, one that differs; what follows is equal.
        assert_eq!(delta(&old, &new).unwrap(), [0xac, 0x02, 1, 7]);
        new[0] = 9;
        assert_eq!(delta(&old, &new).unwrap(), [0, 1, 9, 0xab, 0x02, 1, 7]);
        new[302] = 8;
        assert_eq!(delta(&old, &new).unwrap(), [0, 1, 9, 0xab, 0x02, 3, 7, 0, 8]);
        new[306] = 5;
        assert_eq!(delta(&old, &new).unwrap(), [0, 1, 9, 0xab, 0x02, 3, 7, 0, 8, 3, 1, 5]);
    }

    #[test]
    fn a_delta_that_is_no_shorter_than_the_page_overflows() {
        let old = [0; PAGE];
        assert_eq!(delta(&old, &[1; PAGE]), None);
        let alternating: [u8; PAGE] = std::array::from_fn(|at| u8::from(at % 4 == 0));
        assert!(delta(&old, &alternating).is_some_and(|delta| delta.len() < PAGE));
        let mut almost = [1; PAGE];
        almost[..4].fill(0);
        assert_eq!(delta(&old, &almost).unwrap().len(), 1 + 2 + PAGE - 4);
    }

    #[test]
    fn what_is_no_delta_is_refused() {
        let mut page = [0; 16];
        for bad in [
            &[0x80][..],
            &[0xff, 0xff, 0xff, 1],
            &[3],
            &[3, 0],
            &[3, 2, 1],
            &[16, 1, 1],
            &[15, 2, 1, 1],
            &[1, 1, 5, 0, 1, 5],
            &[0xff, 0xff, 0x7f, 1, 1],
        ] {
            assert!(apply(bad, &mut page).is_err(), "{bad:?}");
        }
        assert_eq!(apply(&[0, 1, 7, 14, 1, 9], &mut page), Ok(()));
        assert_eq!((page[0], page[15]), (7, 9));
    }

    #[test]
    fn the_cache_keeps_what_is_hot_and_stays_within_its_bounds() {
        let cache = DeltaCache::new(5 * PAGE as u64, PAGE as u32);
        assert_eq!(cache.size_bytes(), 4 * PAGE as u64);
        let mut out = Vec::new();
        let (first, second) = ([1; PAGE], [2; PAGE]);
        assert_eq!(cache.exchange(1, 1, &first, &mut out), Outcome::Whole);
        // Page 5 has the same place: not before page 1 has been left alone for two passes.
        assert_eq!(cache.exchange(5, 2, &second, &mut out), Outcome::Whole);
        assert_eq!(cache.exchange(1, 2, &first, &mut out), Outcome::Delta);
        assert!(out.is_empty());
        assert_eq!(cache.exchange(5, 4, &second, &mut out), Outcome::Whole);
        assert_eq!(cache.exchange(5, 5, &second, &mut out), Outcome::Delta);
        assert_eq!(cache.exchange(5, 6, &first, &mut out), Outcome::Whole);
        let stats = DeltaStats { pages: 2, bytes: 0, misses: 3, overflows: 1 };
        assert_eq!(cache.stats(), stats);
        cache.zero(5, 7);
        let mut after = [0; PAGE];
        after[9] = 4;
        assert_eq!(cache.exchange(5, 8, &after, &mut out), Outcome::Delta);
        assert_eq!(out, [9, 1, 4]);
    }

    proptest! {
        #[test]
        fn a_delta_makes_the_new_page_of_the_old(
            old in prop::collection::vec(any::<u8>(), 300),
            changes in prop::collection::vec((0_usize..300, any::<u8>()), 0..40),
        ) {
            let mut new = old.clone();
            changes.iter().for_each(|(at, byte)| new[*at] = *byte);
            let mut out = Vec::new();
            if encode(&old, &new, 299, &mut out) {
                let mut page = old.clone();
                prop_assert_eq!(apply(&out, &mut page), Ok(()));
                prop_assert_eq!(page, new);
            } else {
                prop_assert!(out.len() + 300 > 299);
            }
        }

        #[test]
        fn any_bytes_leave_the_rest_of_memory_alone(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut page = [0; 64];
            // Slices are bounds-checked; what must hold is that it ends.
            let _ = apply(&bytes, &mut page);
        }
    }
}
