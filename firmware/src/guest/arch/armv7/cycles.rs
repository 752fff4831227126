//! The cycle counter, PMCCNTR (DDI 0487 G8.4), of PMUv3, on a CPU of ARMv8.
#![expect(unsafe_code, reason = "coprocessor registers of a monitor that may not be there")]

use core::arch::asm;

/// PMCR.E and LC: count, and overflow after 64 bits.
const ENABLE_LONG: u32 = 1 << 0 | 1 << 6;
/// The cycle counter's bit in PMCNTENSET.
const CYCLES: u32 = 1 << 31;

/// Starts this vCPU's cycle counter. Whether there is one: without a performance monitor its registers are undefined.
pub(crate) fn enable() -> bool {
    let features: u32;
    // SAFETY: reading ID_DFR0 has no effect on anything else.
    unsafe { asm!("mrc p15, 0, {}, c0, c1, 2", out(reg) features, options(nomem, nostack, preserves_flags)) };
    // PerfMon: 3 is PMUv3, more its extensions, 0xf none of these.
    if !(3..0xf).contains(&(features >> 24 & 0xf)) {
        return false;
    }
    // SAFETY: PMUv3 is there; counting has no effect on anything else.
    unsafe { asm!("mcr p15, 0, {}, c14, c15, 7", in(reg) 0, options(nomem, nostack, preserves_flags)) };
    // SAFETY: as above.
    unsafe { asm!("mcr p15, 0, {}, c9, c12, 1", in(reg) CYCLES, options(nomem, nostack, preserves_flags)) };
    // SAFETY: as above.
    unsafe { asm!("mcr p15, 0, {}, c9, c12, 0", "isb", in(reg) ENABLE_LONG, options(nomem, nostack, preserves_flags)) };
    true
}

/// Cycles counted, continuing from `last`, what this vCPU read before. Only after [`enable`] has found a counter.
///
/// By the register of 32 bits, which every CPU with the monitor has: the access to all 64 by MRRC is undefined on some
/// emulated ones. The upper half is right if fewer than 2^32 cycles have passed.
pub(crate) fn now(last: u64) -> u64 {
    let low: u32;
    // SAFETY: reading PMCCNTR, which is there, has no effect on anything else.
    unsafe { asm!("mrc p15, 0, {}, c9, c13, 0", out(reg) low, options(nomem, nostack, preserves_flags)) };
    last.wrapping_add(u64::from(low.wrapping_sub(last as u32)))
}
