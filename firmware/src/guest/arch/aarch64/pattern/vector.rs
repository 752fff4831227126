//! Stores of one and of two 128-bit vector registers.
//!
//! The firmware's own code never uses vector registers (its target is soft-float), so these need neither be saved in
//! exceptions nor declared as changed.
#![expect(unsafe_code, reason = "stores to the region by given instructions")]

use core::arch::asm;

use workload::Write;

use crate::guest::pattern::Place;

/// STR of a Q register.
pub(crate) fn store(place: Place, bytes: [u8; 16]) {
    let va = place.va();
    // SAFETY: reads the array; `Place` says that the stored bytes lie in the region, which is mapped writable.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "ldr q0, [{bytes}]", "str q0, [{va}]",
            bytes = in(reg) bytes.as_ptr(), va = in(reg) va, options(nostack, preserves_flags)
        );
    }
}

/// STP of two Q registers: the 32 bytes of `write`.
pub(crate) fn store_pair(place: Place, write: &Write) {
    let va = place.va();
    let mut bytes = [0; 32];
    write.fill(0, &mut bytes);
    // SAFETY: as in `store`.
    unsafe {
        asm!(
            ".arch_extension fp", ".arch_extension simd",
            "ldp q0, q1, [{bytes}]", "stp q0, q1, [{va}]",
            bytes = in(reg) bytes.as_ptr(), va = in(reg) va, options(nostack, preserves_flags)
        );
    }
}
