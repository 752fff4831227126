//! Digests that prove a migration: of each pass as sent and received, and of all memory, end to end.
//!
//! Both are sums of [`node`]s as in [`workload::digest`], salted so that nobody can foretell them: by the migration's random
//! salt and the pass, or [`END_TO_END`] in its place. A page of zeroes has the leaf [`ZERO`]; in the sum over all memory it
//! has no term, so a hole costs nothing.
//!
//! [`Leaves`] keeps the leaf of every page as it was last sent or received. The sum over it moves with each page, so that
//! at the end both sides can compare what was sent with what was received at no cost ([`Leaves::digest`]), and what was sent
//! with what is in memory ([`memory_digest`]), which finds a page that the dirty log lost ([`Leaves::others`]).

use std::sync::atomic::{AtomicU64, Ordering};

use abi::Gpa;
use workload::PAGE_BYTES;
use workload::digest::node;

use super::error::MigrateError;
use super::pages::LeafTable;
pub(super) use super::pages::{LEAF_PAGE as PAGE, ZERO_LEAF as ZERO, leaf_of};
use crate::memory::{GuestMemory, MemoryError, SlotId};
use crate::pass::Threads;

/// Takes the place of the pass in digests of all memory.
pub(crate) const END_TO_END: u64 = u64::MAX;

/// Bytes read at a time: they stay in the second-level cache.
const PIECE: usize = 64 << 10;

/// Bytes below which one thread digests faster than two can be started.
const WORTH_A_THREAD_BYTES: u64 = 4 << 20;

/// A digest for each slot.
pub(crate) type SlotDigests = [u64; SlotId::COUNT];

/// The leaf of every page of both slots, as it was last sent or received, and the digest of them all.
#[derive(Debug)]
pub(crate) struct Leaves {
    slots: [SlotLeaves; SlotId::COUNT],
    salt: u64,
}

#[derive(Debug)]
struct SlotLeaves {
    base: Gpa,
    leaves: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Leaves {
    /// Of memory that is all zeroes.
    pub(crate) fn new(memory: &GuestMemory, salt: u64) -> Self {
        let slots = SlotId::ALL.map(|id| {
            let range = memory.slot(id).range();
            let pages = range.len_bytes() / PAGE_BYTES;
            SlotLeaves {
                base: range.start(),
                leaves: (0..pages).map(|_| AtomicU64::new(ZERO)).collect(),
                sum: AtomicU64::new(0),
            }
        });
        Self { slots, salt }
    }

    /// The pages from `first` on, counted in [`PAGE`]s, have `leaves` in `pass`. Returns their digest of the pass.
    ///
    /// Two threads must not set the same page at a time: the sum would be neither's.
    ///
    /// # Panics
    /// If a page is past the slot's end.
    pub(crate) fn set(&self, slot: SlotId, first: u64, leaves: &[u64], pass: u64) -> u64 {
        let SlotLeaves { base, leaves: table, sum } = &self.slots[slot.index()];
        let (mut change, mut digest) = (0_u64, 0_u64);
        for (new, page) in leaves.iter().zip(first..) {
            let gpa = gpa(*base, page);
            digest = digest.wrapping_add(node(*new, gpa, self.salt ^ pass));
            let place = usize::try_from(page).expect("a page's number fits usize");
            let old = table[place].swap(*new, Ordering::Relaxed);
            if old != *new {
                change = change.wrapping_add(self.term(*new, gpa)).wrapping_sub(self.term(old, gpa));
            }
        }
        sum.fetch_add(change, Ordering::Relaxed);
        digest
    }

    /// Whether `page` of `slot` is known to be zero.
    pub(crate) fn is_zero(&self, slot: SlotId, page: u64) -> bool {
        let place = usize::try_from(page).expect("a page's number fits usize");
        self.slots[slot.index()].leaves[place].load(Ordering::Relaxed) == ZERO
    }

    /// The digest of all memory, if it is as it was sent or received.
    pub(crate) fn digest(&self) -> SlotDigests {
        SlotId::ALL.map(|slot| self.slots[slot.index()].sum.load(Ordering::Acquire))
    }

    /// The pages of `slot` that are not in memory as they were last sent or received, in ascending order.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSlot`] if the memory is another than that these are of.
    pub(crate) fn others(&self, memory: &GuestMemory, slot: SlotId) -> Result<Vec<Gpa>, MemoryError> {
        let SlotLeaves { base, leaves, .. } = &self.slots[slot.index()];
        let (mut others, mut page) = (Vec::new(), [0; PAGE]);
        for (known, index) in leaves.iter().zip(0_u64..) {
            memory.copy_from_slot(slot, index * PAGE_BYTES, &mut page)?;
            if leaf_of(&page) != known.load(Ordering::Relaxed) {
                others.push(gpa(*base, index));
            }
        }
        Ok(others)
    }

    fn term(&self, leaf: u64, gpa: Gpa) -> u64 {
        if leaf == ZERO { 0 } else { node(leaf, gpa, self.salt ^ END_TO_END) }
    }
}

/// The digest of all memory as it is, by as many threads as the host runs at once. Nobody may be writing it.
///
/// # Errors
/// [`MemoryError::Io`] where memory cannot be searched for holes.
pub(crate) fn memory_digest(memory: &GuestMemory, salt: u64) -> Result<SlotDigests, MemoryError> {
    memory_digest_unless(memory, salt, &|| false).map(|digests| digests.expect("nobody ends it"))
}

/// As [`memory_digest`]; `None` as soon as `is_over`, which is asked all the time.
///
/// # Errors
/// As there.
pub(crate) fn memory_digest_unless(
    memory: &GuestMemory,
    salt: u64,
    is_over: &(impl Fn() -> bool + Sync),
) -> Result<Option<SlotDigests>, MemoryError> {
    let mut digests = [0; SlotId::COUNT];
    for slot in SlotId::ALL {
        let Some(digest) = slot_digest(memory, slot, salt, is_over)? else { return Ok(None) };
        digests[slot.index()] = digest;
    }
    Ok(Some(digests))
}

fn slot_digest(
    memory: &GuestMemory,
    slot: SlotId,
    salt: u64,
    is_over: &(impl Fn() -> bool + Sync),
) -> Result<Option<u64>, MemoryError> {
    let range = memory.slot(slot).range();
    let len_bytes = range.len_bytes();
    let extents: Vec<_> = memory
        .data_extents(slot, 0..len_bytes)?
        .into_iter()
        .map(|data| data.start / PAGE_BYTES * PAGE_BYTES..data.end.next_multiple_of(PAGE_BYTES).min(len_bytes))
        .collect();
    let threads = Threads::of_host();
    let shares = threads.share_out(&extents, PAGE_BYTES, WORTH_A_THREAD_BYTES);
    let sums = threads.run(&shares, |share| {
        let mut piece = vec![0; PIECE];
        let mut sum = 0_u64;
        for extent in share {
            let mut at = extent.start;
            while at < extent.end {
                if is_over() {
                    return Ok(None);
                }
                let len = (extent.end - at).min(PIECE as u64);
                let bytes = &mut piece[..len as usize];
                memory.copy_from_slot(slot, at, bytes)?;
                for (page, index) in bytes.chunks(PAGE).zip(at / PAGE_BYTES..) {
                    let leaf = leaf_of(page);
                    if leaf != ZERO {
                        sum = sum.wrapping_add(node(leaf, gpa(range.start(), index), salt ^ END_TO_END));
                    }
                }
                at += len;
            }
        }
        Ok(Some(sum))
    });
    sums.into_iter().try_fold(Some(0_u64), |all, sum| Ok(all.zip(sum?).map(|(all, sum)| all.wrapping_add(sum))))
}

/// What stands for memory that was handed over as files: which files they are. Two processes that have the same files have
/// the same memory.
///
/// # Errors
/// Where memory is on no file, or the host does not say which.
pub(super) fn file_digest(memory: &GuestMemory, salt: u64) -> Result<SlotDigests, MigrateError> {
    let host =
        |source: rustix::io::Errno| MigrateError::Host { what: "look at guest memory's files", source: source.into() };
    let files = memory.files()?;
    let mut digests = [0; SlotId::COUNT];
    for (digest, file) in digests.iter_mut().zip(files) {
        let stat = rustix::fs::fstat(file).map_err(host)?;
        *digest = node(stat.st_dev, Gpa::new(stat.st_ino), salt ^ END_TO_END);
    }
    Ok(digests)
}

fn gpa(base: Gpa, page: u64) -> Gpa {
    base.checked_add(page * PAGE_BYTES).expect("a slot does not wrap")
}

impl LeafTable for Leaves {
    fn set(&self, slot: SlotId, first: u64, leaves: &[u64], pass: u32) -> u64 {
        Self::set(self, slot, first, leaves, pass.into())
    }

    fn is_zero(&self, slot: SlotId, page: u64) -> bool {
        Self::is_zero(self, slot, page)
    }
}

#[cfg(test)]
mod tests {
    use abi::{GuestRange, map};
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 64;

    fn memory() -> GuestMemory {
        let range = |base| GuestRange::new(base, PAGES * PAGE_BYTES).unwrap();
        GuestMemory::new(range(map::RAM_BASE), range(map::REGION_BASE), None).unwrap()
    }

    fn fill(memory: &GuestMemory, slot: SlotId, page: u64, byte: u8) {
        memory.write(gpa(memory.slot(slot).range().start(), page), &[byte; PAGE]).unwrap();
    }

    proptest! {
        #[test]
        fn the_sum_over_leaves_is_the_digest_of_memory(
            writes in prop::collection::vec((0..2_usize, 0..PAGES, 0..4_u8), 0..100),
            salt: u64,
        ) {
            let memory = memory();
            let leaves = Leaves::new(&memory, salt);
            prop_assert_eq!(leaves.digest(), memory_digest(&memory, salt).unwrap());
            for ((slot, page, byte), pass) in writes.into_iter().zip(0..) {
                let slot = SlotId::ALL[slot];
                fill(&memory, slot, page, byte);
                leaves.set(slot, page, &[leaf_of(&[byte; PAGE])], pass);
            }
            prop_assert_eq!(leaves.digest(), memory_digest(&memory, salt).unwrap());
            prop_assert_eq!(leaves.others(&memory, SlotId::Ram).unwrap(), []);
        }
    }

    #[test]
    fn pages_that_were_not_sent_are_found() {
        let memory = memory();
        let leaves = Leaves::new(&memory, 7);
        fill(&memory, SlotId::Region, 9, 1);
        fill(&memory, SlotId::Region, 11, 1);
        assert_ne!(leaves.digest(), memory_digest(&memory, 7).unwrap());
        let found = leaves.others(&memory, SlotId::Region).unwrap();
        assert_eq!(found, [9, 11].map(|page| gpa(map::REGION_BASE, page)));
    }

    #[test]
    fn a_digest_that_is_called_off_reads_no_further() {
        let memory = memory();
        fill(&memory, SlotId::Ram, 1, 1);
        let asked = AtomicU64::new(0);
        let is_over = || {
            asked.fetch_add(1, Ordering::Relaxed);
            true
        };
        assert_eq!(memory_digest_unless(&memory, 7, &is_over).unwrap(), None);
        assert_eq!(asked.into_inner(), 1);
        assert_eq!(memory_digest_unless(&memory, 7, &|| false).unwrap(), Some(memory_digest(&memory, 7).unwrap()));
    }

    #[test]
    fn a_digest_of_a_pass_is_bound_to_place_pass_and_salt() {
        let memory = memory();
        let digest = |salt, page, pass| Leaves::new(&memory, salt).set(SlotId::Ram, page, &[5], pass);
        assert_eq!(digest(1, 2, 3), digest(1, 2, 3));
        assert_ne!(digest(1, 2, 3), digest(2, 2, 3));
        assert_ne!(digest(1, 2, 3), digest(1, 3, 3));
        assert_ne!(digest(1, 2, 3), digest(1, 2, 4));
    }
}
