//! The cycle counter, PMCCNTR (DDI 0487 G8.4), where it has 64 bits: PMUv3, on a CPU of ARMv8.
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

/// Cycles counted. Only after [`enable`] has found a counter.
pub(crate) fn now() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading PMCCNTR, which is there, has no effect on anything else.
    unsafe {
        asm!("mrrc p15, 0, {}, {}, c9", out(reg) low, out(reg) high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}
