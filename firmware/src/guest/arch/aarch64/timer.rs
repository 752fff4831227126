//! The virtual timer's registers.

use aarch64_cpu::asm::barrier::{self, SY};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0};
use tock_registers::interfaces::{Readable, Writeable};

/// Ticks of the counter in a second.
pub(crate) fn frequency() -> u64 {
    CNTFRQ_EL0.get()
}

/// The counter.
pub(crate) fn now() -> u64 {
    // Without the barrier the counter may be read ahead of the instructions before it (DDI 0487 D12.2.2).
    barrier::isb(SY);
    CNTVCT_EL0.get()
}

/// Asserts the interrupt from `deadline` on.
pub(crate) fn start(deadline: u64) {
    CNTV_CVAL_EL0.set(deadline);
    CNTV_CTL_EL0.set(1); // ENABLE, not masked
    barrier::isb(SY);
}

/// Turns the timer off, and its interrupt.
pub(crate) fn stop() {
    CNTV_CTL_EL0.set(0);
    barrier::isb(SY);
}
