//! One store instruction to an address that is no multiple of its size: across cache lines and pages.
//!
//! STRH and STR may be unaligned, STRD and STM may not (DDI 0406 A3.2.1). For eight bytes that leaves a vector of bytes,
//! whose elements are always aligned.
#![expect(unsafe_code, reason = "stores to the region by assembly, since Rust has no unaligned volatile store")]

use core::arch::asm;

use crate::guest::pattern::{Place, word};

/// Stores the first `len` (2, 4 or 8) of `bytes` by a single instruction.
///
/// # Panics
/// If `len` is another: the plan is broken.
pub(crate) fn store(place: Place, len: u32, bytes: [u8; 16]) {
    let va = place.va();
    let value = word(bytes);
    let (low, high) = (value as u32, (value >> 32) as u32);
    match len {
        2 => {
            // SAFETY: `Place` says that the bytes lie in the region, which is mapped writable; SCTLR.A is clear.
            unsafe { asm!("strh {}, [{}]", in(reg) low, in(reg) va, options(nostack, preserves_flags)) }
        }
        4 => {
            // SAFETY: as above.
            unsafe { asm!("str {}, [{}]", in(reg) low, in(reg) va, options(nostack, preserves_flags)) }
        }
        8 => {
            // SAFETY: as above. The firmware's own code never uses vector registers.
            unsafe {
                asm!(".fpu neon", "vmov d0, {low}, {high}", "vst1.8 {{d0}}, [{va}]", low = in(reg) low,
                    high = in(reg) high, va = in(reg) va, options(nostack, preserves_flags));
            }
        }
        _ => panic!("no store instruction has {len} bytes"),
    }
}
