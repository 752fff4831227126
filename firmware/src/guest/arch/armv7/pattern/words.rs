//! Runs of 64-bit words: STM of four registers, STRD at the end.
#![expect(unsafe_code, reason = "stores to the region by given instructions")]

use core::arch::asm;

use crate::guest::pattern::Place;

/// Stores `len` bytes, a multiple of 8, of the words that `next` gives. The place is a multiple of 8.
#[inline(always)]
pub(crate) fn store(place: Place, len: usize, next: &mut impl FnMut() -> u64) {
    let halves = |word: u64| (word as u32, (word >> 32) as u32);
    let twos = len & !15;
    for at in (place.va()..place.va() + twos).step_by(16) {
        let ((a, b), (c, d)) = (halves(next()), halves(next()));
        // SAFETY: `Place` says that the bytes lie in the region, which is mapped writable and is no Rust object.
        unsafe {
            asm!("stm {at}, {{r0, r1, r2, r3}}", at = in(reg) at, in("r0") a, in("r1") b, in("r2") c, in("r3") d,
                options(nostack, preserves_flags));
        }
    }
    if twos != len {
        let (low, high) = halves(next());
        // SAFETY: as above.
        unsafe {
            asm!("strd r0, r1, [{at}]", at = in(reg) place.va() + twos, in("r0") low, in("r1") high,
                options(nostack, preserves_flags));
        }
    }
}
