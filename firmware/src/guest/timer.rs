//! Sleeping by WFI until the virtual timer's interrupt. Neighbour: [`crate::guest::arch::timer`] has the registers.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::guest::arch::{cpu, timer};

/// Longest single wait: the host sets [`abi::hypercall::ProgressSlot::stop`] without an interrupt, so a sleeper has to
/// look.
const LOOK_INTERVAL_MS: u64 = 5;

/// Turns this vCPU's timer off, whatever it was left at.
pub(crate) fn init() {
    timer::stop();
}

/// The timer's interrupt: it stays asserted until the timer is off or masked.
pub(crate) fn handle_irq() {
    timer::stop();
}

/// Sleeps `duration_ms`, or until `stop` is not zero.
pub(crate) fn sleep(duration_ms: u64, stop: &AtomicU64) {
    let ticks_per_ms = timer::frequency() / 1000;
    let end = timer::now().saturating_add(ticks_per_ms.saturating_mul(duration_ms));
    while timer::now() < end && stop.load(Ordering::Relaxed) == 0 {
        wait_until(end.min(timer::now().saturating_add(ticks_per_ms * LOOK_INTERVAL_MS)));
    }
}

/// Waits for the timer's interrupt at `deadline`. Interrupts are masked from the check to the WFI, which wakes for a
/// masked interrupt too; so one that comes in between is not slept through.
fn wait_until(deadline: u64) {
    timer::start(deadline);
    while timer::is_on() {
        cpu::mask_irq();
        if timer::is_on() {
            cpu::wait_for_interrupt();
        }
        cpu::unmask_irq(); // a pending interrupt is taken here at the latest, and turns the timer off
    }
}
