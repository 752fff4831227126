//! The RAM cache: [`RamCache`], a second memory of the secondary's that holds the primary's as last received, and is never
//! cleared; and the flush, which makes the secondary's RAM equal to it, page by page of a set and no other.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::Gpa;

use super::pages::{self, DirtyPages};
use crate::dirty::PageBitmap;
use crate::memory::{Backing, GuestMemory, MemoryError, SlotId};
use crate::migrate::digest::{Leaves, SlotDigests, memory_digest};
use crate::migrate::pages::{PageError, Unpacker};
use crate::migrate::wire::{PageBatch, SlotPass};
use crate::migrate::{DigestMode, MigrateError};
use crate::pass::Threads;

/// Bytes below which one thread copies faster than two can be started.
const WORTH_A_THREAD_BYTES: u64 = 4 << 20;

/// The primary's memory as last received.
#[derive(Debug)]
pub struct RamCache {
    memory: GuestMemory,
    leaves: Leaves,
    salt: u64,
    arrived: Mutex<Arrived>,
}

#[derive(Debug)]
struct Arrived {
    /// Pages that came since this was last taken.
    pages: DirtyPages,
    /// What came of the current pass.
    pass: [SlotPass; SlotId::COUNT],
}

impl RamCache {
    /// For a machine whose memory is `ram`, all zeroes as that is, with digests salted by `salt`. Its pages are those of
    /// `page_bytes`.
    ///
    /// # Errors
    /// [`MemoryError`] where the host has no room for a second memory.
    pub fn new(ram: &GuestMemory, page_bytes: u64, salt: u64) -> Result<Self, MemoryError> {
        let [first, second] = SlotId::ALL.map(|slot| ram.slot(slot).range());
        let memory = GuestMemory::on(Backing::Memfd, first, second)?;
        let leaves = Leaves::new(&memory, salt);
        let arrived = Arrived { pages: pages::clean(&memory, page_bytes), pass: Default::default() };
        Ok(Self { memory, leaves, salt, arrived: Mutex::new(arrived) })
    }

    /// Takes the pages of `batch`, whose bytes are `payload`.
    ///
    /// # Errors
    /// [`PageError`] where they are not what was sent; the cache is then of no use.
    pub fn receive(&self, unpacker: &mut Unpacker, batch: &PageBatch, payload: &[u8]) -> Result<(), PageError> {
        let unpacked = unpacker.unpack(batch, payload, Some(&self.memory), &self.leaves)?;
        // In the first pass everything comes, later on what the guest has written again.
        if batch.pass == 0 {
            unpacked.write(&self.memory)?;
        } else {
            unpacked.overwrite(&self.memory)?;
        }
        let mut arrived = self.arrived();
        let slot = &mut arrived.pass[batch.slot.index()];
        slot.pages = slot.pages.saturating_add(batch.pages());
        slot.digest = slot.digest.wrapping_add(batch.digest);
        for run in &batch.runs {
            arrived.pages[batch.slot.index()].set_range(run.first..run.first + u64::from(run.count));
        }
        Ok(())
    }

    /// Ends a pass, of which `sent` is the primary's account.
    ///
    /// # Errors
    /// [`MigrateError::PassPages`], [`MigrateError::PassDigest`].
    pub fn end_pass(&self, pass: u32, sent: [SlotPass; SlotId::COUNT]) -> Result<(), MigrateError> {
        let received = std::mem::take(&mut self.arrived().pass);
        for slot in SlotId::ALL {
            let (sent, received) = (sent[slot.index()], received[slot.index()]);
            if sent.pages != received.pages {
                return Err(MigrateError::PassPages { pass, slot, sent: sent.pages, received: received.pages });
            }
            if sent.digest != received.digest {
                let (sent, received) = (sent.digest, received.digest);
                return Err(MigrateError::PassDigest { pass, slot, sent, received });
            }
        }
        Ok(())
    }

    /// The pages that have come since the last checkpoint that was put in place.
    pub fn arrived_pages(&self) -> DirtyPages {
        self.arrived().pages.clone()
    }

    /// A checkpoint is in place: pages that come from now on are for the next.
    pub fn forget_arrived(&self) {
        self.arrived().pages.iter_mut().for_each(PageBitmap::clear_all);
    }

    /// Its digest: of its bytes, or of what was received.
    ///
    /// # Errors
    /// [`MemoryError::Io`] where it cannot be searched for holes.
    pub fn digest(&self, mode: DigestMode) -> Result<SlotDigests, MemoryError> {
        match mode {
            DigestMode::Full => memory_digest(&self.memory, self.salt),
            DigestMode::Deferred => Ok(self.leaves.digest()),
        }
    }

    /// Copies `pages` to `ram`, and nothing else. Returns the pages that it copied, as it went.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSlot`] where `ram` is not of the cache's shape.
    pub fn flush(&self, ram: &GuestMemory, pages: &DirtyPages) -> Result<DirtyPages, MemoryError> {
        let mut copied = pages::clean(ram, pages[0].page_bytes());
        for slot in SlotId::ALL {
            let pages = &pages[slot.index()];
            let threads = Threads::of_host();
            let worth = (pages.count() * pages.page_bytes() / WORTH_A_THREAD_BYTES).clamp(1, threads.count() as u64);
            for done in threads.run(&pages.shares(worth), |share| self.copy(ram, slot, pages, share.clone())) {
                copied[slot.index()].or(&done?);
            }
        }
        Ok(copied)
    }

    /// The first page of `slot` that is not the same in `ram`.
    ///
    /// # Errors
    /// [`MemoryError`] where one of the two cannot be read.
    pub fn first_difference(&self, ram: &GuestMemory, slot: SlotId) -> Result<Option<Gpa>, MemoryError> {
        pages::first_difference(&self.memory, ram, slot)
    }

    /// The cache itself.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// One thread's share. Each keeps its own account: of many short runs, one thread's of all would cost as much as the copy.
    fn copy(
        &self,
        ram: &GuestMemory,
        slot: SlotId,
        pages: &PageBitmap,
        share: Range<u64>,
    ) -> Result<PageBitmap, MemoryError> {
        let len_bytes = ram.slot(slot).range().len_bytes();
        let page_bytes = pages.page_bytes();
        let mut done = PageBitmap::covering(len_bytes, page_bytes);
        let (ours, theirs) = (self.memory.volatile_slice(slot, 0, len_bytes)?, ram.volatile_slice(slot, 0, len_bytes)?);
        for run in pages.runs_within(share) {
            let (offset, len_bytes) = (run.start * page_bytes, (run.end - run.start) * page_bytes);
            let outside = |_| MemoryError::OutOfSlot { slot, offset, len_bytes };
            let from = ours.subslice(offset as usize, len_bytes as usize).map_err(outside)?;
            let to = theirs.subslice(offset as usize, len_bytes as usize).map_err(outside)?;
            from.copy_to_volatile_slice(to);
            done.set_range(run);
        }
        Ok(done)
    }

    /// Each change is made as a whole.
    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use abi::{GuestRange, map};
    use proptest::prelude::*;

    use super::*;
    use crate::memory::host_page_bytes;

    const PAGES: u64 = 70;

    fn memory() -> GuestMemory {
        let range = |base| GuestRange::new(base, PAGES * host_page_bytes()).unwrap();
        GuestMemory::new(range(map::RAM_BASE), range(map::REGION_BASE), None).unwrap()
    }

    fn fill(memory: &GuestMemory, slot: usize, page: u64, byte: u8) {
        let page_bytes = host_page_bytes();
        memory.copy_to_slot(SlotId::ALL[slot], page * page_bytes, &vec![byte; page_bytes as usize]).unwrap();
    }

    fn first(memory: &GuestMemory, slot: usize, page: u64) -> u8 {
        let mut byte = [0];
        memory.copy_from_slot(SlotId::ALL[slot], page * host_page_bytes() + 77, &mut byte).unwrap();
        byte[0]
    }

    proptest! {
        /// The naive model: page by page.
        #[test]
        fn exactly_the_pages_of_the_set_are_flushed(
            set in prop::collection::btree_set((0..2_usize, 0..PAGES), 0..80),
        ) {
            let ram = memory();
            let cache = RamCache::new(&ram, host_page_bytes(), 5).unwrap();
            for (slot, page) in (0..2).flat_map(|slot| (0..PAGES).map(move |page| (slot, page))) {
                fill(&cache.memory, slot, page, 1 + page as u8);
                fill(&ram, slot, page, 200);
            }
            let mut pages = pages::clean(&ram, host_page_bytes());
            set.iter().for_each(|(slot, page)| pages[*slot].set(*page));
            prop_assert_eq!(cache.flush(&ram, &pages).unwrap(), pages);
            for (slot, page) in (0..2).flat_map(|slot| (0..PAGES).map(move |page| (slot, page))) {
                let expected = if set.contains(&(slot, page)) { 1 + page as u8 } else { 200 };
                prop_assert_eq!(first(&ram, slot, page), expected);
            }
        }
    }

    #[test]
    fn the_first_page_that_differs_is_named() {
        let ram = memory();
        let cache = RamCache::new(&ram, host_page_bytes(), 5).unwrap();
        assert_eq!(cache.first_difference(&ram, SlotId::Region).unwrap(), None);
        fill(&ram, 1, 9, 3);
        fill(&cache.memory, 1, 40, 3);
        let at = map::REGION_BASE.checked_add(9 * host_page_bytes());
        assert_eq!(cache.first_difference(&ram, SlotId::Region).unwrap(), at);
        assert_eq!(cache.first_difference(&ram, SlotId::Ram).unwrap(), None);
    }
}
