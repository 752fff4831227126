//! Cache maintenance by address (CP15 c7), and what the cache type register says.
//!
//! Two places need it: what a secondary reads before its MMU is on, and instructions that the `code` pattern writes.
#![expect(unsafe_code, reason = "cache maintenance instructions")]

use core::arch::asm;

use abi::GuestRange;

/// Smallest data cache line, in bytes.
fn line_bytes() -> usize {
    let ctr: u32;
    // SAFETY: reading CTR has no effect on anything else.
    unsafe { asm!("mrc p15, 0, {}, c0, c0, 1", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    4 << (ctr >> 16 & 0xf) // DminLine: log2 of the words
}

/// Writes what the caches hold of `range` to memory, for a reader with its MMU off.
pub(crate) fn clean(range: GuestRange) {
    let line = line_bytes();
    for at in (range.start().raw() as usize & !(line - 1)..range.end().raw() as usize).step_by(line) {
        // SAFETY: cleaning (DCCMVAC) changes no byte that anyone can see.
        unsafe { asm!("mcr p15, 0, {}, c7, c10, 1", in(reg) at, options(nostack, preserves_flags)) };
    }
    super::cpu::synchronize();
}

/// Drops what the caches hold of `range`, which was written around them, for a reader with its MMU on. Nothing else lies in its lines.
pub(crate) fn invalidate(range: GuestRange) {
    let line = line_bytes();
    for at in (range.start().raw() as usize & !(line - 1)..range.end().raw() as usize).step_by(line) {
        // SAFETY: the caller's promise (DCIMVAC) that the caches hold nothing of these lines that memory has not.
        unsafe { asm!("mcr p15, 0, {}, c7, c6, 1", in(reg) at, options(nostack, preserves_flags)) };
    }
    super::cpu::synchronize();
}

/// Makes instructions written through `data_va` visible to fetches through `code_va`. Both name the same 64 bytes at
/// most, not crossing a line of either cache (DDI 0406 A3.8.3).
pub(crate) fn publish_code(data_va: usize, code_va: usize) {
    // SAFETY: DCCMVAU, ICIMVAU and BPIALL: cleaning changes no byte that anyone can see, and dropping cached
    // instructions and predictions makes the next fetch read memory, no more.
    unsafe {
        asm!(
            "mcr p15, 0, {data}, c7, c11, 1",
            "dsb",
            "mcr p15, 0, {code}, c7, c5, 1",
            "mcr p15, 0, {code}, c7, c5, 6",
            "dsb",
            "isb",
            data = in(reg) data_va, code = in(reg) code_va, options(nostack, preserves_flags)
        );
    }
}
