//! The cycle counter, PMCCNTR_EL0 (DDI 0487 D13).
#![expect(unsafe_code, reason = "system registers of a monitor that may not be there")]

use core::arch::asm;

use aarch64_cpu::asm::barrier::{self, SY};
use aarch64_cpu::registers::ID_AA64DFR0_EL1;
use tock_registers::interfaces::Readable;

/// PMCR_EL0.E and LC: count, and overflow after 64 bits.
const ENABLE_LONG: u64 = 1 << 0 | 1 << 6;
/// The cycle counter's bit in PMCNTENSET_EL0.
const CYCLES: u64 = 1 << 31;

/// Starts this vCPU's cycle counter. Whether there is one: without a performance monitor its registers are undefined.
pub(crate) fn enable() -> bool {
    // PMUVer: zero for none, 0xf for one that is not PMUv3.
    let version = ID_AA64DFR0_EL1.get() >> 8 & 0xf;
    if version == 0 || version == 0xf {
        return false;
    }
    // SAFETY: PMUv3 is there; counting has no effect on anything else.
    unsafe { asm!("msr pmccfiltr_el0, xzr", options(nomem, nostack, preserves_flags)) };
    // SAFETY: as above.
    unsafe { asm!("msr pmcntenset_el0, {}", in(reg) CYCLES, options(nomem, nostack, preserves_flags)) };
    // SAFETY: as above.
    unsafe { asm!("msr pmcr_el0, {}", in(reg) ENABLE_LONG, options(nomem, nostack, preserves_flags)) };
    barrier::isb(SY);
    true
}

/// Cycles counted, whatever was read before: it has 64 bits. Only after [`enable`] has found a counter.
pub(crate) fn now(_last: u64) -> u64 {
    let cycles: u64;
    // SAFETY: reading PMCCNTR_EL0, which is there, has no effect on anything else.
    unsafe { asm!("mrs {}, pmccntr_el0", out(reg) cycles, options(nomem, nostack, preserves_flags)) };
    cycles
}
