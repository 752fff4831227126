//! The virtual timer's registers (DDI 0406 B8.1.5, CP15 c14).
#![expect(unsafe_code, reason = "coprocessor registers")]

use core::arch::asm;

/// Ticks of the counter in a second.
pub(crate) fn frequency() -> u64 {
    let frequency: u32;
    // SAFETY: reading CNTFRQ has no effect on anything else.
    unsafe { asm!("mrc p15, 0, {}, c14, c0, 0", out(reg) frequency, options(nomem, nostack, preserves_flags)) };
    u64::from(frequency)
}

/// The counter.
pub(crate) fn now() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading CNTVCT has no effect on anything else. Without the barrier it may be read ahead of the instructions
    // before it.
    unsafe { asm!("isb", "mrrc p15, 1, {}, {}, c14", out(reg) low, out(reg) high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Asserts the interrupt from `deadline` on.
pub(crate) fn start(deadline: u64) {
    // SAFETY: CNTV_CVAL; the timer's interrupt has a handler.
    unsafe {
        asm!("mcrr p15, 3, {}, {}, c14", in(reg) deadline as u32, in(reg) (deadline >> 32) as u32,
            options(nostack, preserves_flags));
    }
    set_control(1); // ENABLE, not masked
}

/// Turns the timer off, and its interrupt.
pub(crate) fn stop() {
    set_control(0);
}

fn set_control(value: u32) {
    // SAFETY: CNTV_CTL; the timer's interrupt has a handler.
    unsafe { asm!("mcr p15, 0, {}, c14, c3, 1", "isb", in(reg) value, options(nostack, preserves_flags)) };
}
