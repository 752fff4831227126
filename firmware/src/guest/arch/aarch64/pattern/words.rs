//! Runs of 64-bit words: STR of an X register each.
#![expect(unsafe_code, reason = "stores to the region")]

use crate::guest::pattern::Place;

/// Stores `len` bytes, a multiple of 8, of the words that `next` gives. The place is a multiple of 8.
#[inline(always)]
pub(crate) fn store(place: Place, len: usize, next: &mut impl FnMut() -> u64) {
    for at in (place.va()..place.va() + len).step_by(8) {
        let word = at as *mut u64;
        // SAFETY: `Place` says that the bytes lie in the region, which is mapped writable and is no Rust object.
        unsafe { word.write_volatile(next()) };
    }
}
