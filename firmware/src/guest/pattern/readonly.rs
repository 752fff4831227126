//! Loads, after which nothing may be dirty.
#![expect(unsafe_code, reason = "loads from the region")]

use super::Place;

/// Loads the word.
pub(super) fn read(place: Place) {
    let va = place.va();
    let word = va as *const u64;
    // SAFETY: `Place` says that the word lies in the region, which is mapped; the plan aligns it.
    core::hint::black_box(unsafe { word.read_volatile() });
}
