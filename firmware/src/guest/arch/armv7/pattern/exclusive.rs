//! LDREXD and STREXD until the store succeeds.
#![expect(unsafe_code, reason = "exclusive accesses to the region")]

use core::arch::asm;

use crate::guest::pattern::Place;

/// Adds `addend` to the word.
pub(crate) fn add(place: Place, addend: u64) {
    // SAFETY: `Place` says that the word lies in the region, which is mapped writable; the plan aligns it. Between the
    // two exclusives there is no other access (DDI 0406 A3.4.5).
    unsafe {
        asm!(
            "2:",
            "ldrexd r2, r3, [{va}]",
            "adds r2, r2, {low}",
            "adc r3, r3, {high}",
            "strexd {failed}, r2, r3, [{va}]",
            "teq {failed}, #0",
            "bne 2b",
            failed = out(reg) _, va = in(reg) place.va(), low = in(reg) addend as u32, high = in(reg) (addend >> 32) as u32,
            out("r2") _, out("r3") _, options(nostack)
        );
    }
}
