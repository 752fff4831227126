//! Pages that hold live translation tables, which the hardware's walker updates: access flag and dirty state.
//!
//! The table lies in the region and is linked into the address space at this vCPU's window, so the walker reads it, and
//! with FEAT_HAFDBS writes it, on every access to a page of the window that is not in the TLB.
#![expect(unsafe_code, reason = "accesses by way of a table that is being changed")]

use core::arch::asm;

use abi::Granule;

use crate::guest::pattern::Place;

/// The page that one entry of the live table maps.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    va: u64,
}

impl Slot {
    /// The page of entry `slot` of the table whose window starts at `window`.
    ///
    /// # Panics
    /// If the table has no such entry.
    pub(super) fn new(window: u64, slot: u32, granule: Granule) -> Self {
        let entries = granule.bytes() / size_of::<u64>() as u64;
        assert!(u64::from(slot) < entries, "slot {slot} is past the live table's end");
        Self { va: window + u64::from(slot) * granule.bytes() }
    }
}

/// Stores a descriptor in the table at `place`, then drops the translation of the entry from this vCPU's TLB, so that
/// the next access walks. The plan changes access flag and AP\[2\] alone, which takes no break-before-make (DDI 0487
/// D8.16.1).
pub(super) fn store_descriptor(place: Place, descriptor: u64, slot: Slot) {
    let va = place.va();
    let entry = va as *mut u64;
    // SAFETY: `Place` says that the entry lies in the region, which is mapped writable; the plan aligns it. Nothing but
    // the window is translated by it.
    unsafe { entry.write_volatile(descriptor) };
    // TLBI takes VA[55:12], whatever the granule; the entry is global, so the ASID (0) does not matter. Only this vCPU
    // uses the window, so its own TLB is enough.
    let operand = slot.va >> 12 & ((1 << 44) - 1);
    // SAFETY: dropping a cached translation is always allowed.
    unsafe { asm!("dsb ishst", "tlbi vae1, {}", "dsb nsh", "isb", in(reg) operand, options(nostack, preserves_flags)) };
}

/// Reads through the slot: the walker sets the access flag.
pub(super) fn read(slot: Slot) {
    let word = slot.va as *const u64;
    // SAFETY: the plan has made the entry valid, mapping a page of the region.
    core::hint::black_box(unsafe { word.read_volatile() });
}

/// Writes the word `within` the slot's page: the walker sets the access flag and the dirty state first.
pub(super) fn write(slot: Slot, within: u64, value: u64) {
    let word = (slot.va + within) as *mut u64;
    // SAFETY: as in `read`; the entry has DBM, so it is writable or the hardware makes it so.
    unsafe { word.write_volatile(value) };
}
