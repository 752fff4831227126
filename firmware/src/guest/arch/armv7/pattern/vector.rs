//! Stores of two and of four 64-bit vector registers: VST1, which has as many bytes as AArch64's STR and STP of Q
//! registers.
//!
//! The firmware's own code never uses vector registers (its target is soft-float), so these need neither be saved in
//! exceptions nor declared as changed.
#![expect(unsafe_code, reason = "stores to the region by given instructions")]

use core::arch::asm;

use workload::Write;

use crate::guest::pattern::Place;

/// VST1 of two registers.
pub(crate) fn store(place: Place, bytes: [u8; 16]) {
    // SAFETY: reads the array; `Place` says that the stored bytes lie in the region, which is mapped writable.
    unsafe {
        asm!(
            ".fpu neon",
            "vld1.8 {{d0, d1}}, [{bytes}]", "vst1.64 {{d0, d1}}, [{va}]",
            bytes = in(reg) bytes.as_ptr(), va = in(reg) place.va(), options(nostack, preserves_flags)
        );
    }
}

/// VST1 of four registers: the 32 bytes of `write`.
pub(crate) fn store_pair(place: Place, write: &Write) {
    let mut bytes = [0; 32];
    write.fill(0, &mut bytes);
    // SAFETY: as in `store`.
    unsafe {
        asm!(
            ".fpu neon",
            "vld1.8 {{d0, d1, d2, d3}}, [{bytes}]", "vst1.64 {{d0, d1, d2, d3}}, [{va}]",
            bytes = in(reg) bytes.as_ptr(), va = in(reg) place.va(), options(nostack, preserves_flags)
        );
    }
}
