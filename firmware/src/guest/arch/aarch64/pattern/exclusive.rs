//! LDXR and STXR until the store succeeds.
#![expect(unsafe_code, reason = "exclusive accesses to the region")]

use core::arch::asm;

use crate::guest::pattern::Place;

/// Adds `addend` to the word.
pub(crate) fn add(place: Place, addend: u64) {
    let va = place.va();
    // SAFETY: `Place` says that the word lies in the region, which is mapped writable; the plan aligns it. Between the
    // two exclusives there is no other access (DDI 0487 B2.12.5).
    unsafe {
        asm!(
            "2:",
            "ldxr {value}, [{va}]",
            "add {value}, {value}, {addend}",
            "stxr {failed:w}, {value}, [{va}]",
            "cbnz {failed:w}, 2b",
            value = out(reg) _, failed = out(reg) _, addend = in(reg) addend, va = in(reg) va,
            options(nostack, preserves_flags)
        );
    }
}
