//! What a step has written, read back from memory for the packet that tells of it.
//!
//! Every write counts by its place, and by the first eight bytes that memory has there afterwards, so that a page that is not
//! the guest's own shows in what it sends. Left out are bytes that are not [private](workload::How::is_private).
#![expect(unsafe_code, reason = "loads from the region")]

use abi::packet::StepDigest;
use workload::Write;

use super::Place;

/// Adds `write`, which has been performed at `place`, to `digest`.
pub(super) fn add(digest: &mut StepDigest, place: Place, write: &Write) {
    digest.add(write.offset);
    digest.add(u64::from(write.len));
    if write.how.is_private() {
        digest.add(first_bytes(place, write.len.min(8) as usize));
    }
}

/// The first `len` bytes, at most eight, of any alignment.
fn first_bytes(place: Place, len: usize) -> u64 {
    let va = place.va();
    if len == 8 && va.is_multiple_of(8) {
        let word = va as *const u64;
        // SAFETY: `Place` says that the bytes lie in the region, which is mapped; the word is aligned.
        return u64::from_le(unsafe { word.read_volatile() });
    }
    (0..len).fold(0, |word, at| {
        let byte = (va + at) as *const u8;
        // SAFETY: as above; a byte is always aligned.
        word | u64::from(unsafe { byte.read_volatile() }) << (8 * at)
    })
}
