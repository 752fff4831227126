//! Sixteen bytes from general registers: two STRD or one STM of four registers, by turns.
#![expect(unsafe_code, reason = "stores to the region by given instructions")]

use core::arch::asm;

use crate::guest::pattern::Place;

/// Stores sixteen bytes; the place is a multiple of 16, and bit 4 of it chooses the instruction.
pub(crate) fn store(place: Place, bytes: [u8; 16]) {
    let va = place.va();
    let value = u128::from_le_bytes(bytes);
    let word = |index: u32| (value >> (32 * index)) as u32;
    if va & 16 == 0 {
        // SAFETY: `Place` says that the bytes lie in the region, which is mapped writable; STRD takes words' alignment.
        unsafe {
            asm!("strd r0, r1, [{va}]", "strd r2, r3, [{va}, #8]", va = in(reg) va,
                in("r0") word(0), in("r1") word(1), in("r2") word(2), in("r3") word(3), options(nostack, preserves_flags));
        }
    } else {
        // SAFETY: as above, and so does STM.
        unsafe {
            asm!("stm {va}, {{r0, r1, r2, r3}}", va = in(reg) va,
                in("r0") word(0), in("r1") word(1), in("r2") word(2), in("r3") word(3), options(nostack, preserves_flags));
        }
    }
}
