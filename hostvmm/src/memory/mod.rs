//! Guest memory: memslots on a memfd, a file, or large pages ([`Backing`]), and the only owner of pointers into them.
//!
//! [`GuestMemory`] has one [`Slot`] for RAM and one for the shared region ([`SlotId`]). Everything else in hostvmm reads
//! and writes guest memory through the bounds-checked methods here: by GPA ([`GuestMemory::read`],
//! [`GuestMemory::write`], [`GuestMemory::read_obj`]), by slot and offset for the copy engine
//! ([`GuestMemory::copy_from_slot`], [`GuestMemory::pwrite_from_slot`]), and by atomics for words that a running guest
//! shares with the host ([`GuestMemory::load_u64`], [`GuestMemory::store_u64`]). None hands out a Rust reference:
//! the guest may write the bytes at any time.
//!
//! Mappings are made with MAP_NORESERVE and are not populated, so that 8 GiB of guest RAM costs what the guest touches.
//! What it never touched is a hole in the backing file, which [`GuestMemory::data_extents`] finds without reading it:
//! reading a hole through the mapping would allocate it.
//!
//! Memory on memfds moves to another process of the host without being copied: [`GuestMemory::files`],
//! [`GuestMemory::adopt`].
//!
//! Neighbours: [`crate::machine`] builds it, [`crate::backend`] hands its slots to the CPU, `dirty` and `pass` read it.

mod adoption;
mod backing;
mod mapping;
mod share;
mod slot;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use abi::{Gpa, GuestRange};
pub use adoption::AdoptionError;
pub use backing::{Backing, BackingUnavailable, Size};
pub use share::ShareFile;
pub use slot::{Slot, SlotId};
use vm_memory::{Bytes, GuestMemoryRegion as _, MemoryRegionAddress, VolatileSlice};
use zerocopy::{FromBytes, IntoBytes};

/// Why guest memory could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host lacks the backing asked for: skip, do not fail.
    #[error(transparent)]
    Lacks(BackingUnavailable),
    /// The host refused the backing memfd.
    #[error(
        "cannot make a memory file of {len_bytes} bytes for the {slot}: {source}; give the guest less memory or raise the host's limits"
    )]
    Backing {
        /// For which slot.
        slot: SlotId,
        /// Of what size.
        len_bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// The host refused the mapping.
    #[error("cannot map {len_bytes} bytes for the {slot}: {source}; give the guest less memory or raise `ulimit -v`")]
    Map {
        /// For which slot.
        slot: SlotId,
        /// Of what size.
        len_bytes: u64,
        /// Why.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// A slot that is empty, wraps, or is not made of whole host pages.
    #[error("the {slot} at {range} is not made of whole host pages of {host_page_bytes} bytes; choose multiples of it")]
    Shape {
        /// Which slot.
        slot: SlotId,
        /// Where it was to lie.
        range: GuestRange,
        /// The host's page.
        host_page_bytes: u64,
    },
    /// The file that is to back the region cannot be opened or cleared.
    #[error("cannot {what} the share file {path}: {source}", path = path.display())]
    Share {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file that is to back the region is a directory, device, pipe or socket.
    #[error("the share file {path} is {kind}, not a regular file; name a regular file of the region's size", path = path.display())]
    ShareKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The file that is to back the region is the memory of another VM.
    #[error("the share file {path} is the memory of a VM that runs; give each VM a file of its own, the two sides of a migration as well", path = path.display())]
    ShareInUse {
        /// The file.
        path: PathBuf,
    },
    /// The file that is to back the region has another size than the region.
    #[error("the share file {path} has {found_bytes} bytes but the region has {expected_bytes}; run `truncate -s {expected_bytes} {path}` or change --region-size", path = path.display())]
    ShareSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// The region's size.
        expected_bytes: u64,
    },
    /// An access that does not lie wholly in one slot.
    #[error("guest memory access of {len_bytes} bytes at {gpa} reaches outside every memslot")]
    OutOfBounds {
        /// First byte of the access.
        gpa: Gpa,
        /// Its length.
        len_bytes: u64,
    },
    /// An atomic access that is not naturally aligned.
    #[error("atomic access of {len_bytes} bytes at {gpa} is not aligned to its size")]
    Misaligned {
        /// First byte of the access.
        gpa: Gpa,
        /// Its length.
        len_bytes: u64,
    },
    /// An access past the end of a slot.
    #[error("access of {len_bytes} bytes at offset {offset:#x} reaches outside the {slot}")]
    OutOfSlot {
        /// Which slot.
        slot: SlotId,
        /// Offset of the first byte in the slot.
        offset: u64,
        /// Length of the access.
        len_bytes: u64,
    },
    /// The backing file could not be searched for holes, or the target of a copy not written.
    #[error("{what} {len_bytes} bytes at offset {offset:#x} of the {slot}: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// Which slot.
        slot: SlotId,
        /// Offset in the slot.
        offset: u64,
        /// Length of the access.
        len_bytes: u64,
        /// Why it failed.
        source: io::Error,
    },
}

/// The guest's memslots.
///
/// Cheap to clone: the slots are shared. The mappings live until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    slots: Arc<[Slot; SlotId::COUNT]>,
    backing: Backing,
    host_page_bytes: u64,
}

impl GuestMemory {
    /// Maps RAM on a memfd, and the region on a memfd or on `share`, which is cleared first.
    ///
    /// # Errors
    /// [`MemoryError::Shape`] for a slot that is not whole host pages, [`MemoryError::Backing`] and
    /// [`MemoryError::Map`] where the host refuses, the `Share…` variants for an unsuitable file.
    pub fn new(ram: GuestRange, region: GuestRange, share: Option<ShareFile>) -> Result<Self, MemoryError> {
        let region_slot = match share {
            Some(share) => Slot::on_file(SlotId::Region, region, share.cleared(region.len_bytes())?)?,
            None => Slot::new(SlotId::Region, region, Backing::Memfd)?,
        };
        Ok(Self::of([Slot::new(SlotId::Ram, ram, Backing::Memfd)?, region_slot], Backing::Memfd))
    }

    /// Maps RAM and the region on `backing`.
    ///
    /// # Errors
    /// [`MemoryError::Lacks`] where the host has no such memory, or not enough; else as [`Self::new`].
    pub fn on(backing: Backing, ram: GuestRange, region: GuestRange) -> Result<Self, MemoryError> {
        backing.check(&[ram.len_bytes(), region.len_bytes()]).map_err(MemoryError::Lacks)?;
        Ok(Self::of([Slot::new(SlotId::Ram, ram, backing)?, Slot::new(SlotId::Region, region, backing)?], backing))
    }

    fn of(slots: [Slot; SlotId::COUNT], backing: Backing) -> Self {
        Self { slots: Arc::new(slots), backing, host_page_bytes: host_page_bytes() }
    }

    /// What it is mapped on.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The slots, in the order of their [`SlotId`]s.
    pub fn slots(&self) -> &[Slot] {
        self.slots.as_slice()
    }

    /// The slot `id`.
    pub fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[id.index()]
    }

    /// The host's page size in bytes: the unit of a dirty bit.
    pub fn host_page_bytes(&self) -> u64 {
        self.host_page_bytes
    }

    /// The slot that holds every byte of `[gpa, gpa + len_bytes)`, with the offset of `gpa` in it.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] where no slot does, or the range wraps.
    pub fn locate(&self, gpa: Gpa, len_bytes: u64) -> Result<(SlotId, u64), MemoryError> {
        GuestRange::new(gpa, len_bytes)
            .and_then(|range| {
                let slot = self.slots.iter().find(|slot| slot.range().contains_range(range))?;
                Some((slot.id(), gpa.checked_offset_from(slot.range().start())?))
            })
            .ok_or(MemoryError::OutOfBounds { gpa, len_bytes })
    }

    /// Fills `bytes` from guest memory at `gpa`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] where the access does not lie wholly in one slot.
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let (slot, offset) = self.locate(gpa, bytes.len() as u64)?;
        self.copy_from_slot(slot, offset, bytes)
    }

    /// Writes `bytes` to guest memory at `gpa`.
    ///
    /// The caller tells the dirty log ([`crate::backend::Vm::mark_dirty`]) if one is running.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] where the access does not lie wholly in one slot.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        let (slot, offset) = self.locate(gpa, bytes.len() as u64)?;
        let len_bytes = bytes.len() as u64;
        self.slot(slot).mapping().write_slice(bytes, MemoryRegionAddress(offset)).map_err(|_| MemoryError::OutOfSlot {
            slot,
            offset,
            len_bytes,
        })
    }

    /// Reads a `T` at `gpa`; no alignment is needed.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] where the access does not lie wholly in one slot.
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, gpa: Gpa) -> Result<T, MemoryError> {
        let mut object = T::new_zeroed();
        self.read(gpa, object.as_mut_bytes())?;
        Ok(object)
    }

    /// Fills `bytes` from `slot` at `offset`, at memcpy speed.
    ///
    /// A guest that runs meanwhile may write the bytes: what is read may be torn, never undefined.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSlot`] where the access reaches past the slot.
    pub fn copy_from_slot(&self, slot: SlotId, offset: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let len_bytes = bytes.len() as u64;
        self.slot(slot).check(offset, len_bytes)?;
        self.slot(slot).mapping().read_slice(bytes, MemoryRegionAddress(offset)).map_err(|_| MemoryError::OutOfSlot {
            slot,
            offset,
            len_bytes,
        })
    }

    /// Writes `bytes` to `slot` at `offset`, at memcpy speed.
    ///
    /// The caller tells the dirty log ([`crate::backend::Vm::mark_dirty`]) if one is running.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSlot`] where the access reaches past the slot.
    pub fn copy_to_slot(&self, slot: SlotId, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let memory = self.volatile_slice(slot, offset, bytes.len() as u64)?;
        if !self.slot(slot).write_file(offset, bytes) {
            memory.copy_from(bytes);
        }
        Ok(())
    }

    /// `[offset, offset + len_bytes)` of `slot` for the copier, which reads a run of pages in one go.
    ///
    /// A [`VolatileSlice`] is bounds and no reference: what it copies may be torn, never undefined.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSlot`] where the range reaches past the slot.
    pub fn volatile_slice(&self, slot: SlotId, offset: u64, len_bytes: u64) -> Result<VolatileSlice<'_>, MemoryError> {
        self.slot(slot).check(offset, len_bytes)?;
        self.slot(slot)
            .mapping()
            .get_slice(MemoryRegionAddress(offset), len_bytes as usize)
            .map_err(|_| MemoryError::OutOfSlot { slot, offset, len_bytes })
    }

    /// Makes `[within.start, within.end)` of `slot`, whole host pages, a hole: it reads as zeroes and takes no memory.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSlot`] where the range reaches past the slot, [`MemoryError::Io`] where the host refuses.
    pub fn punch(&self, slot: SlotId, within: Range<u64>) -> Result<(), MemoryError> {
        let len_bytes = within.end.saturating_sub(within.start);
        self.slot(slot).check(within.start, len_bytes)?;
        self.slot(slot).punch(within.start..within.start + len_bytes).map_err(|source| MemoryError::Io {
            what: "cannot punch a hole into",
            slot,
            offset: within.start,
            len_bytes,
            source,
        })
    }

    /// Writes `len_bytes` of `slot` from `offset` to `target` at `at`, without a copy on the way.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSlot`] where the access reaches past the slot, [`MemoryError::Io`] where the write fails.
    pub fn pwrite_from_slot(
        &self,
        slot: SlotId,
        offset: u64,
        len_bytes: u64,
        target: &File,
        at: u64,
    ) -> Result<(), MemoryError> {
        self.slot(slot).check(offset, len_bytes)?;
        self.slot(slot).pwrite(offset, len_bytes, target, at).map_err(|source| MemoryError::Io {
            what: "cannot write out",
            slot,
            offset,
            len_bytes,
            source,
        })
    }

    /// Loads the little-endian `u64` at `gpa` with acquire semantics.
    ///
    /// # Errors
    /// [`MemoryError::Misaligned`] and [`MemoryError::OutOfBounds`].
    pub fn load_u64(&self, gpa: Gpa) -> Result<u64, MemoryError> {
        let (slot, offset) = self.locate_u64(gpa)?;
        self.slot(slot)
            .mapping()
            .load::<u64>(MemoryRegionAddress(offset), std::sync::atomic::Ordering::Acquire)
            .map(u64::from_le)
            .map_err(|_| MemoryError::OutOfSlot { slot, offset, len_bytes: 8 })
    }

    /// Stores `value` as a little-endian `u64` at `gpa` with release semantics.
    ///
    /// # Errors
    /// [`MemoryError::Misaligned`] and [`MemoryError::OutOfBounds`].
    pub fn store_u64(&self, gpa: Gpa, value: u64) -> Result<(), MemoryError> {
        let (slot, offset) = self.locate_u64(gpa)?;
        self.slot(slot)
            .mapping()
            .store(value.to_le(), MemoryRegionAddress(offset), std::sync::atomic::Ordering::Release)
            .map_err(|_| MemoryError::OutOfSlot { slot, offset, len_bytes: 8 })
    }

    /// The parts of `within` (offsets in `slot`) that may hold something else than zeroes, in order, found by
    /// SEEK_DATA and SEEK_HOLE on the backing file, or in this process's page tables for anonymous memory. Everything
    /// between them is a hole and reads as zeroes.
    ///
    /// A backing file system that knows no holes reports one extent: all of `within`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSlot`] where `within` reaches past the slot, [`MemoryError::Io`] where seeking fails.
    pub fn data_extents(&self, slot: SlotId, within: Range<u64>) -> Result<Vec<Range<u64>>, MemoryError> {
        let len_bytes = within.end.saturating_sub(within.start);
        self.slot(slot).check(within.start, len_bytes)?;
        self.slot(slot).data_extents(within.clone()).map_err(|source| MemoryError::Io {
            what: "cannot look for holes in",
            slot,
            offset: within.start,
            len_bytes,
            source,
        })
    }

    fn locate_u64(&self, gpa: Gpa) -> Result<(SlotId, u64), MemoryError> {
        if !gpa.is_aligned(8) {
            return Err(MemoryError::Misaligned { gpa, len_bytes: 8 });
        }
        self.locate(gpa, 8)
    }
}

/// The host's page size in bytes.
pub fn host_page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use abi::map;

    use super::*;

    fn memory() -> GuestMemory {
        let ram = GuestRange::new(map::RAM_BASE, 1 << 20).unwrap();
        let region = GuestRange::new(map::REGION_BASE, 512 << 10).unwrap();
        GuestMemory::new(ram, region, None).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back_through_every_path() {
        let memory = memory();
        let gpa = Gpa::new(map::REGION_BASE.raw() + 0x1ffd);
        memory.write(gpa, &[1, 2, 3, 4, 5]).unwrap();
        let mut bytes = [0; 5];
        memory.read(gpa, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4, 5]);
        memory.copy_from_slot(SlotId::Region, 0x1ffd, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4, 5]);
        assert_eq!(memory.read_obj::<u16>(gpa).unwrap().to_le(), 0x0201);
        let target = tempfile::tempfile().unwrap();
        memory.pwrite_from_slot(SlotId::Region, 0x1000, 0x2000, &target, 0x10).unwrap();
        let mut out = vec![0; 0x2010];
        std::os::unix::fs::FileExt::read_exact_at(&target, &mut out, 0).unwrap();
        assert_eq!(&out[0x100d..0x1012], [1, 2, 3, 4, 5]);
    }

    #[test]
    fn atomics_reach_the_same_bytes() {
        let memory = memory();
        memory.store_u64(map::RAM_BASE, 0x1122_3344_5566_7788).unwrap();
        assert_eq!(memory.load_u64(map::RAM_BASE).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(memory.read_obj::<[u8; 2]>(map::RAM_BASE).unwrap(), [0x88, 0x77]);
        let odd = Gpa::new(map::RAM_BASE.raw() + 4);
        assert!(matches!(memory.load_u64(odd), Err(MemoryError::Misaligned { len_bytes: 8, .. })));
    }

    #[test]
    fn accesses_that_leave_their_slot_are_refused_with_address_and_length() {
        let memory = memory();
        let end = memory.slot(SlotId::Ram).range().end();
        let mut bytes = [0; 8];
        for gpa in
            [Gpa::new(end.raw() - 7), end, Gpa::new(0), Gpa::new(u64::MAX - 3), Gpa::new(map::RAM_BASE.raw() - 1)]
        {
            match memory.read(gpa, &mut bytes) {
                Err(MemoryError::OutOfBounds { gpa: at, len_bytes: 8 }) => assert_eq!(at, gpa),
                other => panic!("{gpa}: {other:?}"),
            }
            assert!(memory.write(gpa, &bytes).is_err());
        }
        assert!(matches!(
            memory.copy_from_slot(SlotId::Region, u64::MAX - 2, &mut bytes),
            Err(MemoryError::OutOfSlot { .. })
        ));
    }

    #[test]
    fn untouched_memory_is_a_hole() {
        let memory = memory();
        let page = memory.host_page_bytes();
        memory.write(Gpa::new(map::REGION_BASE.raw() + 3 * page), &[9]).unwrap();
        memory.write(Gpa::new(map::REGION_BASE.raw() + 7 * page), &[9]).unwrap();
        let all = memory.data_extents(SlotId::Region, 0..8 * page).unwrap();
        assert_eq!(all, [3 * page..4 * page, 7 * page..8 * page]);
        let part = memory.data_extents(SlotId::Region, 3 * page + 8..7 * page).unwrap();
        assert_eq!(part.first(), Some(&(3 * page + 8..4 * page)));
        assert_eq!(part.len(), 1);
    }

    #[test]
    fn every_backing_reads_back_what_is_written_and_knows_what_is_data() {
        let ram = GuestRange::new(map::RAM_BASE, 4 << 20).unwrap();
        let page = host_page_bytes();
        for backing in [Backing::Memfd, Backing::Anonymous, Backing::Thp, Backing::Hugetlb { page_bytes: None }] {
            // Neither a multiple of the block nor at one.
            let region = GuestRange::new(Gpa::new(map::REGION_BASE.raw() + page), 37 * page).unwrap();
            let memory = match GuestMemory::on(backing, ram, region) {
                Ok(memory) => memory,
                Err(MemoryError::Lacks(reason)) => {
                    println!("skipped: {reason}");
                    continue;
                }
                Err(error) => panic!("{backing}: {error}"),
            };
            for slot in memory.slots() {
                let block = backing.block_bytes();
                let host = slot.host_base().addr().get() as u64;
                assert_eq!(host % block, slot.range().start().raw() % block, "{backing}: {}", slot.id());
            }
            let at = Gpa::new(region.start().raw() + 5 * page + 7);
            memory.write(at, &[1, 2, 3]).unwrap();
            let mut bytes = [0; 3];
            memory.read(at, &mut bytes).unwrap();
            assert_eq!(bytes, [1, 2, 3], "{backing}");
            let extents = memory.data_extents(SlotId::Region, 0..37 * page).unwrap();
            assert!(extents.iter().any(|data| data.contains(&(5 * page + 7))), "{backing}: {extents:?}");
            assert!(extents.iter().all(|data| data.end <= 37 * page), "{backing}: {extents:?}");
            assert!(memory.data_extents(SlotId::Ram, 0..4 << 20).unwrap().len() <= 1, "{backing}");
        }
    }

    #[test]
    fn untouched_anonymous_memory_is_a_hole() {
        let page = host_page_bytes();
        let ram = GuestRange::new(map::RAM_BASE, page).unwrap();
        // Less than a block, so that the host's THP policy has no say.
        let region = GuestRange::new(map::REGION_BASE, 64 * page).unwrap();
        let memory = GuestMemory::on(Backing::Anonymous, ram, region).unwrap();
        memory.write(Gpa::new(map::REGION_BASE.raw() + 3 * page), &[9]).unwrap();
        memory.write(Gpa::new(map::REGION_BASE.raw() + 4 * page), &[9]).unwrap();
        let all = memory.data_extents(SlotId::Region, 0..64 * page).unwrap();
        assert_eq!(all, [Range { start: 3 * page, end: 5 * page }]);
        let part = memory.data_extents(SlotId::Region, 4 * page + 8..40 * page).unwrap();
        assert_eq!(part, [Range { start: 4 * page + 8, end: 5 * page }]);
    }

    #[test]
    fn slots_that_are_not_whole_host_pages_are_refused() {
        let ram = GuestRange::new(map::RAM_BASE, 1 << 20).unwrap();
        for (base, len) in
            [(map::REGION_BASE.raw(), 4095), (map::REGION_BASE.raw() + 8, 4096), (map::REGION_BASE.raw(), 0)]
        {
            let region = GuestRange::new(Gpa::new(base), len).unwrap();
            assert!(matches!(
                GuestMemory::new(ram, region, None),
                Err(MemoryError::Shape { slot: SlotId::Region, .. })
            ));
        }
    }

    #[test]
    fn memory_beyond_the_host_s_means_is_an_error_that_says_what_to_do() {
        let ram = GuestRange::new(map::RAM_BASE, 1 << 62).unwrap();
        let region = GuestRange::new(map::REGION_BASE, host_page_bytes()).unwrap();
        let error = GuestMemory::new(ram, region, None).unwrap_err();
        assert!(error.to_string().contains("give the guest less memory"), "{error}");
    }

    #[test]
    fn eight_gib_cost_nothing_until_touched() {
        let ram = GuestRange::new(map::RAM_BASE, 8 << 30).unwrap();
        let region = GuestRange::new(map::REGION_BASE, host_page_bytes()).unwrap();
        let memory = GuestMemory::new(ram, region, None).unwrap();
        memory.write(Gpa::new(ram.end().raw() - 1), &[7]).unwrap();
        let extents = memory.data_extents(SlotId::Ram, 0..8 << 30).unwrap();
        assert_eq!(extents.iter().map(|e| e.end - e.start).sum::<u64>(), memory.host_page_bytes());
    }
}
