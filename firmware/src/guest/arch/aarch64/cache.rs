//! Cache maintenance by address, and what the cache ID registers say.
//!
//! Three places need it: what a secondary reads before its MMU is on, instructions that the `code` pattern writes, and
//! DC ZVA's block size.
#![expect(unsafe_code, reason = "cache maintenance instructions")]

use core::arch::asm;

use aarch64_cpu::asm::barrier::{self, ISH, SY};
use abi::GuestRange;

/// Smallest data cache line, in bytes.
fn line_bytes() -> u64 {
    let ctr: u64;
    // SAFETY: reading CTR_EL0 has no effect on anything else.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    4 << (ctr >> 16 & 0xf) // DminLine: log2 of the words
}

/// Starts of the lines that `range` touches.
fn lines(range: GuestRange) -> impl Iterator<Item = u64> {
    let line = line_bytes();
    (range.start().raw() & !(line - 1)..range.end().raw()).step_by(line as usize)
}

/// Writes what the caches hold of `range` to memory, for a reader with its MMU off.
pub(crate) fn clean(range: GuestRange) {
    for line in lines(range) {
        // SAFETY: cleaning changes no byte that anyone can see.
        unsafe { asm!("dc cvac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    barrier::dsb(SY);
}

/// Drops what the caches hold of `range`, which was written around them, for a reader with its MMU on. Nothing else lies in its lines.
pub(crate) fn invalidate(range: GuestRange) {
    for line in lines(range) {
        // SAFETY: the caller's promise that the caches hold nothing of these lines that memory has not.
        unsafe { asm!("dc ivac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    barrier::dsb(SY);
}

/// Makes instructions written through `data_va` visible to fetches through `code_va`. Both name the same 64 bytes at
/// most, not crossing a line of either cache (DDI 0487 B2.4.4).
pub(crate) fn publish_code(data_va: usize, code_va: usize) {
    // SAFETY: cleaning changes no byte that anyone can see.
    unsafe { asm!("dc cvau, {}", in(reg) data_va, options(nostack, preserves_flags)) };
    barrier::dsb(ISH);
    // SAFETY: dropping cached instructions makes the next fetch read memory, no more.
    unsafe { asm!("ic ivau, {}", in(reg) code_va, options(nostack, preserves_flags)) };
    barrier::dsb(ISH);
    barrier::isb(SY);
}

/// Bytes that DC ZVA clears, or `None` where it is prohibited.
pub(crate) fn zva_bytes() -> Option<u64> {
    let dczid: u64;
    // SAFETY: reading DCZID_EL0 has no effect on anything else.
    unsafe { asm!("mrs {}, dczid_el0", out(reg) dczid, options(nomem, nostack, preserves_flags)) };
    let prohibited = dczid & 1 << 4 != 0;
    (!prohibited).then_some(4 << (dczid & 0xf))
}
