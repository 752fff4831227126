//! A counter: load, add, store. What the original tests do to every page they dirty.
#![expect(unsafe_code, reason = "loads from and stores to the region")]

use super::Place;

/// Adds `addend` to the word.
pub(super) fn add(place: Place, addend: u64) {
    let va = place.va();
    let word = va as *mut u64;
    // SAFETY: `Place` says that the word lies in the region, which is mapped; the plan aligns it.
    let value = unsafe { word.read_volatile() };
    // SAFETY: as above, and it is mapped writable.
    unsafe { word.write_volatile(value.wrapping_add(addend)) };
}
