//! DC ZVA: whole blocks zeroed without a store instruction.
#![expect(unsafe_code, reason = "zeroes blocks of the region")]

use core::arch::asm;

use crate::guest::pattern::Place;

/// Zeroes `len` bytes, block by block.
///
/// # Panics
/// If the range is not made of whole blocks: a block's neighbours must not be zeroed.
pub(super) fn zero(place: Place, len: u32, block_bytes: u64) {
    let va = place.va();
    let len = len as usize;
    let block_bytes = block_bytes as usize;
    assert!(va.is_multiple_of(block_bytes) && len.is_multiple_of(block_bytes), "the plan zeroes whole blocks");
    for block in (va..va + len).step_by(block_bytes) {
        // SAFETY: `Place` says that the range lies in the region, which is mapped writable; the block lies in the
        // range.
        unsafe { asm!("dc zva, {}", in(reg) block, options(nostack, preserves_flags)) };
    }
}
