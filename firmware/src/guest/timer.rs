//! The virtual timer: time, and sleeping by WFI until its interrupt.

use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm;
use aarch64_cpu::asm::barrier::{self, SY};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0, DAIF};
use tock_registers::interfaces::{ReadWriteable, Readable, Writeable};

/// Longest single wait: the host sets [`abi::hypercall::ProgressSlot::stop`] without an interrupt, so a sleeper has to
/// look.
const LOOK_INTERVAL_MS: u64 = 5;

/// Turns this vCPU's timer off, whatever it was left at.
pub(crate) fn init() {
    CNTV_CTL_EL0.set(0);
    barrier::isb(SY);
}

/// The timer's interrupt: it stays asserted until the timer is off or masked.
pub(crate) fn handle_irq() {
    CNTV_CTL_EL0.set(0);
    barrier::isb(SY);
}

/// Sleeps `duration_ms`, or until `stop` is not zero.
pub(crate) fn sleep(duration_ms: u64, stop: &AtomicU64) {
    let ticks_per_ms = CNTFRQ_EL0.get() / 1000;
    let end = now().saturating_add(ticks_per_ms.saturating_mul(duration_ms));
    while now() < end && stop.load(Ordering::Relaxed) == 0 {
        wait_until(end.min(now().saturating_add(ticks_per_ms * LOOK_INTERVAL_MS)));
    }
}

fn now() -> u64 {
    // Without the barrier the counter may be read ahead of the instructions before it (DDI 0487 D12.2.2).
    barrier::isb(SY);
    CNTVCT_EL0.get()
}

/// Waits for the timer's interrupt at `deadline`. Interrupts are masked from the check to the WFI, which wakes for a
/// masked interrupt too; so one that comes in between is not slept through.
fn wait_until(deadline: u64) {
    CNTV_CVAL_EL0.set(deadline);
    CNTV_CTL_EL0.set(1); // ENABLE, not masked
    barrier::isb(SY);
    while CNTV_CTL_EL0.get() & 1 != 0 {
        DAIF.modify(DAIF::I::Masked);
        if CNTV_CTL_EL0.get() & 1 != 0 {
            asm::wfi();
        }
        DAIF.modify(DAIF::I::Unmasked);
        barrier::isb(SY); // a pending interrupt is taken here at the latest, and turns the timer off
    }
}
