//! Writes a function's instructions, then runs them through the executable alias.
#![expect(unsafe_code, reason = "writes instructions and calls them")]

use super::Place;
use crate::guest::arch::cache;

/// Writes the function's sixteen bytes, makes them visible to instruction fetch, calls it at `code_va`, and gives what
/// it returns.
pub(super) fn write_and_call(place: Place, code_va: usize, instructions: [u8; 16]) -> u64 {
    let va = place.va();
    let (words, _none) = instructions.as_chunks::<4>();
    for (at, word) in (va..).step_by(4).zip(words) {
        let target = at as *mut u32;
        // SAFETY: `Place` says that the bytes lie in the region, which is mapped writable; the plan aligns them.
        unsafe { target.write_volatile(u32::from_le_bytes(*word)) };
    }
    cache::publish_code(va, code_va);
    let code = code_va as *const ();
    // SAFETY: the plan's bytes are a function without arguments that changes its result's registers alone; they are in place, visible to
    // fetches, and `code_va` is their address in the executable alias.
    let function = unsafe { core::mem::transmute::<*const (), extern "C" fn() -> u64>(code) };
    function()
}
