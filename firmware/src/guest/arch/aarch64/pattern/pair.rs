//! STP of two general registers.
#![expect(unsafe_code, reason = "stores to the region by a given instruction")]

use core::arch::asm;

use crate::guest::pattern::Place;

/// Stores sixteen bytes.
pub(crate) fn store(place: Place, bytes: [u8; 16]) {
    let va = place.va();
    let value = u128::from_le_bytes(bytes);
    let (low, high) = (value as u64, (value >> 64) as u64);
    // SAFETY: `Place` says that the bytes lie in the region, which is mapped writable.
    unsafe { asm!("stp {}, {}, [{}]", in(reg) low, in(reg) high, in(reg) va, options(nostack, preserves_flags)) }
}
