//! One store instruction to an address that is no multiple of its size: across cache lines and pages.
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
    match len {
        2 => {
            // SAFETY: `Place` says that the bytes lie in the region, which is mapped writable; SCTLR_EL1.A is clear.
            unsafe { asm!("strh {:w}, [{}]", in(reg) value, in(reg) va, options(nostack, preserves_flags)) }
        }
        4 => {
            // SAFETY: as above.
            unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) va, options(nostack, preserves_flags)) }
        }
        8 => {
            // SAFETY: as above.
            unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) va, options(nostack, preserves_flags)) }
        }
        _ => panic!("no store instruction has {len} bytes"),
    }
}
