//! STP of two general registers.
#![expect(unsafe_code, reason = "stores to the region by a given instruction")]

use core::arch::asm;

use super::Place;

/// Stores sixteen bytes.
pub(super) fn store(Place(va): Place, bytes: [u8; 16]) {
    let value = u128::from_le_bytes(bytes);
    let (low, high) = (value as u64, (value >> 64) as u64);
    // SAFETY: `Place` says that the bytes lie in the region, which is mapped writable.
    unsafe { asm!("stp {}, {}, [{}]", in(reg) low, in(reg) high, in(reg) va, options(nostack, preserves_flags)) }
}
