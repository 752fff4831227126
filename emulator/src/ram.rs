//! The guest's RAM as the emulator sees it: a handful of slots of raw host memory.
//!
//! [`Ram`] turns a guest physical address into a host pointer and a slot number. It is the only place where an address
//! becomes a pointer; the software TLB caches what [`Ram::locate`] returns. No Rust reference to guest RAM ever exists:
//! the walker reads and updates descriptors by atomics made from the pointer ([`Ram::load_u64`],
//! [`Ram::compare_exchange_u64`]), everything else copies by relaxed byte or word atomics. Marking pages dirty is not done here: see
//! [`crate::dirty`].

#![expect(unsafe_code, reason = "the emulator's only conversion of guest physical addresses into host pointers")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use abi::addr::Gpa;

use crate::config::RamSlot;

/// Alignment in bytes of a slot's guest address, host address and length: the smallest page of guest and host.
pub const SLOT_ALIGN: u64 = 4096;

/// Why a list of slots is no guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RamError {
    /// An address or length that is not a multiple of [`SLOT_ALIGN`], or an empty slot.
    #[error("RAM slot {slot} at {gpa}: addresses and a non-zero length must be multiples of {SLOT_ALIGN} bytes")]
    Unaligned {
        /// Index in the list given.
        slot: usize,
        /// Its guest address.
        gpa: Gpa,
    },
    /// A slot that wraps past the end of the guest's or the host's address space.
    #[error("RAM slot {slot} at {gpa} wraps past the end of the address space")]
    Wraps {
        /// Index in the list given.
        slot: usize,
        /// Its guest address.
        gpa: Gpa,
    },
    /// Two slots that share a guest address.
    #[error("RAM slots {first} and {second} overlap at {gpa}")]
    Overlap {
        /// The one listed first.
        first: usize,
        /// The other.
        second: usize,
        /// Where the other starts.
        gpa: Gpa,
    },
}

/// A guest range that is not wholly inside one RAM slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest range {gpa} + {len_bytes} bytes is not inside one RAM slot")]
pub struct NotRam {
    /// Start of the range.
    pub gpa: Gpa,
    /// Its length.
    pub len_bytes: u64,
}

/// Where a guest physical address lies in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The host's pointer to that byte.
    pub host: NonNull<u8>,
    /// Index of the slot, as in the list given to [`Ram::new`].
    pub slot: usize,
    /// Bytes from the start of the slot.
    pub offset: u64,
}

/// All RAM slots of a machine.
#[derive(Debug)]
pub struct Ram {
    slots: Vec<RamSlot>,
}

// SAFETY: the pointers are plain addresses whose memory outlives the value (duty of `Ram::new`); every access through
// them is atomic, so sharing them between threads makes no data race.
unsafe impl Send for Ram {}
// SAFETY: as above; `Ram` itself is immutable after construction.
unsafe impl Sync for Ram {}

impl Ram {
    /// RAM made of `slots`, kept in that order: a slot's index is its number everywhere.
    ///
    /// # Errors
    /// [`RamError`] for a slot that is empty, misaligned, wraps, or overlaps another in the guest's address space.
    ///
    /// # Safety
    /// For as long as the value lives, each slot's `len_bytes` from `host` must be mapped readable and writable, and
    /// whoever else in this process touches that memory must do so by atomics, volatile accesses or system calls, never
    /// through a reference.
    pub unsafe fn new(slots: &[RamSlot]) -> Result<Self, RamError> {
        for (index, slot) in slots.iter().enumerate() {
            let host = slot.host.as_ptr() as u64;
            if !(slot.gpa.raw() | host | slot.len_bytes).is_multiple_of(SLOT_ALIGN) || slot.len_bytes == 0 {
                return Err(RamError::Unaligned { slot: index, gpa: slot.gpa });
            }
            if slot.gpa.checked_add(slot.len_bytes).is_none() || host.checked_add(slot.len_bytes).is_none() {
                return Err(RamError::Wraps { slot: index, gpa: slot.gpa });
            }
            for (other, earlier) in slots[..index].iter().enumerate() {
                let apart = slot.gpa.raw() >= earlier.gpa.raw() + earlier.len_bytes
                    || earlier.gpa.raw() >= slot.gpa.raw() + slot.len_bytes;
                if !apart {
                    return Err(RamError::Overlap { first: other, second: index, gpa: slot.gpa });
                }
            }
        }
        Ok(Self { slots: slots.to_vec() })
    }

    /// The slots, in order.
    pub fn slots(&self) -> &[RamSlot] {
        &self.slots
    }

    /// Where the `len_bytes` from `gpa` lie, or `None` where they are not wholly inside one slot.
    pub fn locate(&self, gpa: Gpa, len_bytes: u64) -> Option<Located> {
        self.slots.iter().enumerate().find_map(|(slot, s)| {
            let offset = gpa.checked_offset_from(s.gpa)?;
            let room = s.len_bytes.checked_sub(offset)?;
            if len_bytes > room || room == 0 {
                return None;
            }
            let bytes = usize::try_from(offset).ok()?;
            // SAFETY: offset < len_bytes, and the slot is mapped for its whole length (duty of `Ram::new`).
            let host = unsafe { s.host.add(bytes) };
            Some(Located { host, slot, offset })
        })
    }

    /// Loads the aligned little-endian doubleword at `gpa` (acquire), or `None` where it is misaligned or not RAM.
    pub fn load_u64(&self, gpa: Gpa) -> Option<u64> {
        Some(u64::from_le(self.atomic_u64(gpa)?.load(Ordering::Acquire)))
    }

    /// Replaces the aligned little-endian doubleword at `gpa` by `new` if it is `old`: `Ok(old)`, or `Err(what it was)`.
    /// `None` where it is misaligned or not RAM. The caller marks the page dirty.
    pub fn compare_exchange_u64(&self, gpa: Gpa, old: u64, new: u64) -> Option<Result<u64, u64>> {
        let cell = self.atomic_u64(gpa)?;
        let outcome = cell.compare_exchange(old.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire);
        Some(outcome.map(u64::from_le).map_err(u64::from_le))
    }

    /// Loads the aligned little-endian word at `gpa` (acquire), or `None` where it is misaligned or not RAM.
    pub fn load_u32(&self, gpa: Gpa) -> Option<u32> {
        Some(u32::from_le(self.atomic_u32(gpa)?.load(Ordering::Acquire)))
    }

    /// As [`Self::compare_exchange_u64`], for a word.
    pub fn compare_exchange_u32(&self, gpa: Gpa, old: u32, new: u32) -> Option<Result<u32, u32>> {
        let cell = self.atomic_u32(gpa)?;
        let outcome = cell.compare_exchange(old.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire);
        Some(outcome.map(u32::from_le).map_err(u32::from_le))
    }

    /// Copies guest memory from `gpa` into `out`, byte by byte and atomically per byte.
    ///
    /// # Errors
    /// [`NotRam`] where the range is not wholly inside one slot; nothing was copied.
    pub fn read_bytes(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), NotRam> {
        let len_bytes = out.len() as u64;
        let at = self.locate(gpa, len_bytes).ok_or(NotRam { gpa, len_bytes })?;
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = Self::byte(at, i).load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies `data` into guest memory at `gpa`, byte by byte and atomically per byte. The caller marks the pages dirty,
    /// after this returns (see [`crate::dirty::DirtyLog::mark_range`]).
    ///
    /// # Errors
    /// [`NotRam`] where the range is not wholly inside one slot; nothing was copied.
    pub fn write_bytes(&self, gpa: Gpa, data: &[u8]) -> Result<(), NotRam> {
        let len_bytes = data.len() as u64;
        let at = self.locate(gpa, len_bytes).ok_or(NotRam { gpa, len_bytes })?;
        for (i, byte) in data.iter().enumerate() {
            Self::byte(at, i).store(*byte, Ordering::Relaxed);
        }
        Ok(())
    }

    fn byte<'a>(at: Located, index: usize) -> &'a AtomicU8 {
        // SAFETY: callers pass an index below the length that `locate` has checked.
        let byte = unsafe { at.host.add(index) };
        // SAFETY: mapped for the life of the slot, a byte is always aligned, and everyone else's accesses are atomic.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }

    fn atomic_u64(&self, gpa: Gpa) -> Option<&AtomicU64> {
        if !gpa.is_aligned(8) {
            return None;
        }
        let at = self.locate(gpa, 8)?;
        // SAFETY: eight mapped bytes, aligned because slot and address both are; all other accesses are atomic.
        Some(unsafe { AtomicU64::from_ptr(at.host.as_ptr().cast()) })
    }

    fn atomic_u32(&self, gpa: Gpa) -> Option<&AtomicU32> {
        if !gpa.is_aligned(4) {
            return None;
        }
        let at = self.locate(gpa, 4)?;
        // SAFETY: four mapped bytes, aligned because slot and address both are; all other accesses are atomic.
        Some(unsafe { AtomicU32::from_ptr(at.host.as_ptr().cast()) })
    }
}

/// Memory for tests: page-aligned, zeroed, freed on drop.
#[cfg(test)]
pub(crate) mod testing {
    use super::{RamSlot, SLOT_ALIGN};
    use abi::addr::Gpa;
    use core::ptr::NonNull;
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    /// Host memory behind one slot.
    #[derive(Debug)]
    pub(crate) struct HostPages {
        host: NonNull<u8>,
        layout: Layout,
    }

    // SAFETY: an allocation may be freed by any thread.
    unsafe impl Send for HostPages {}

    impl HostPages {
        pub(crate) fn new(len_bytes: u64) -> Self {
            let layout = Layout::from_size_align(len_bytes as usize, SLOT_ALIGN as usize).expect("a valid layout");
            // SAFETY: every test asks for at least one byte.
            let host = unsafe { alloc_zeroed(layout) };
            Self { host: NonNull::new(host).expect("memory for the test"), layout }
        }

        pub(crate) fn slot(&self, gpa: u64) -> RamSlot {
            RamSlot { gpa: Gpa::new(gpa), len_bytes: self.layout.size() as u64, host: self.host }
        }
    }

    impl Drop for HostPages {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout, freed once.
            unsafe { dealloc(self.host.as_ptr(), self.layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::HostPages;
    use super::*;

    fn ram(slots: &[RamSlot]) -> Result<Ram, RamError> {
        // SAFETY: each test keeps its `HostPages` alive beyond the `Ram` and uses no references to them.
        unsafe { Ram::new(slots) }
    }

    #[test]
    fn an_address_is_found_in_its_slot_and_nowhere_else() {
        let (a, b) = (HostPages::new(0x2000), HostPages::new(0x1000));
        let ram = ram(&[a.slot(0x8000), b.slot(0x4000)]).expect("two good slots");
        assert_eq!(ram.locate(Gpa::new(0x9ff8), 8).map(|l| (l.slot, l.offset)), Some((0, 0x1ff8)));
        assert_eq!(ram.locate(Gpa::new(0x4000), 0x1000).map(|l| (l.slot, l.offset)), Some((1, 0)));
        for (gpa, len) in
            [(0x9ff9, 8), (0xa000, 1), (0xa000, 0), (0x3fff, 2), (0x5000, 1), (0x4000, 0x1001), (u64::MAX, 8)]
        {
            assert_eq!(ram.locate(Gpa::new(gpa), len), None, "{gpa:#x}+{len}");
        }
    }

    #[test]
    fn bad_slots_are_refused() {
        let a = HostPages::new(0x2000);
        let good = a.slot(0x8000);
        assert_eq!(
            ram(&[good, RamSlot { gpa: Gpa::new(0x9000), ..good }]).err(),
            Some(RamError::Overlap { first: 0, second: 1, gpa: Gpa::new(0x9000) })
        );
        assert!(matches!(ram(&[RamSlot { gpa: Gpa::new(0x8001), ..good }]), Err(RamError::Unaligned { slot: 0, .. })));
        assert!(matches!(ram(&[RamSlot { len_bytes: 0, ..good }]), Err(RamError::Unaligned { slot: 0, .. })));
        let high = RamSlot { gpa: Gpa::new(0u64.wrapping_sub(0x1000)), ..good };
        assert!(matches!(ram(&[high]), Err(RamError::Wraps { slot: 0, .. })));
    }

    #[test]
    fn words_and_bytes_read_back_little_endian() {
        let a = HostPages::new(0x1000);
        let ram = ram(&[a.slot(0x8000)]).expect("a good slot");
        let at = Gpa::new(0x8010);
        ram.write_bytes(at, &[1, 2, 3, 4, 5, 6, 7, 8]).expect("inside the slot");
        assert_eq!(ram.load_u64(at), Some(0x0807_0605_0403_0201));
        assert_eq!(ram.load_u32(Gpa::new(0x8014)), Some(0x0807_0605));
        assert_eq!(ram.load_u64(Gpa::new(0x8014)), None, "misaligned");
        assert_eq!(ram.compare_exchange_u64(at, 0, 9), Some(Err(0x0807_0605_0403_0201)));
        assert_eq!(ram.compare_exchange_u64(at, 0x0807_0605_0403_0201, 9), Some(Ok(0x0807_0605_0403_0201)));
        assert_eq!(ram.compare_exchange_u32(at, 9, 10), Some(Ok(9)));
        let mut back = [0; 8];
        ram.read_bytes(at, &mut back).expect("inside the slot");
        assert_eq!(back, [10, 0, 0, 0, 0, 0, 0, 0]);
        assert!(ram.read_bytes(Gpa::new(0x8ffc), &mut back).is_err());
        assert!(ram.write_bytes(Gpa::new(0x8ffc), &back).is_err());
    }
}
