//! The one virtual timer of each vCPU, for two purposes: it wakes a sleeper, and beats the heartbeat.
//!
//! ```text
//!   sleep ──▶ wake_at ─┐
//!                      ├─ the earlier one ──▶ timer ──▶ interrupt: what is due is done, the other one stays
//!   period ─▶ beat_at ─┘
//! ```
//!
//! Where the host asks for it a sleeper does not wait for the interrupt: it spins, and every look at the counter is a beat.
//! Neighbours: [`crate::guest::arch::timer`] has the registers, [`crate::guest::heartbeat`] files the beats.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::boot::FLAG_SPIN;
use abi::map::MAX_VCPUS;

use crate::guest::arch::{cpu, timer};
use crate::guest::{Machine, heartbeat};

/// Longest single wait: the host sets [`abi::hypercall::ProgressSlot::stop`] without an interrupt, so a sleeper has to
/// look.
const LOOK_INTERVAL_MS: u64 = 5;
/// A time of the counter that does not come.
const NEVER: u64 = u64::MAX;
const US_PER_S: u64 = 1_000_000;

/// What one vCPU's timer is to do, in ticks of the counter. Only this vCPU uses it.
struct Alarms {
    wake_at: AtomicU64,
    beat_at: AtomicU64,
    /// Zero: no heartbeat.
    period: AtomicU64,
    spins: AtomicBool,
    /// Interrupts taken.
    interrupts: AtomicU64,
}

static ALARMS: [Alarms; MAX_VCPUS] = [const {
    Alarms {
        wake_at: AtomicU64::new(NEVER),
        beat_at: AtomicU64::new(NEVER),
        period: AtomicU64::new(0),
        spins: AtomicBool::new(false),
        interrupts: AtomicU64::new(0),
    }
}; MAX_VCPUS];

impl Alarms {
    /// Sets the timer to what comes first. Interrupts are masked.
    fn arm(&self) {
        match self.wake_at.load(Ordering::Relaxed).min(self.beat_at.load(Ordering::Relaxed)) {
            NEVER => timer::stop(),
            at => timer::start(at),
        }
    }

    fn is_awake(&self) -> bool {
        self.wake_at.load(Ordering::Relaxed) == NEVER
    }
}

/// Turns this vCPU's timer off, whatever it was left at, and starts its heartbeat where the host asks for one. Interrupts
/// are masked.
pub(crate) fn init(machine: &Machine, vcpu: usize) {
    timer::stop();
    let period = timer::frequency() * u64::from(machine.boot.heartbeat_us) / US_PER_S;
    if period == 0 {
        return;
    }
    let alarms = &ALARMS[vcpu];
    alarms.period.store(period, Ordering::Relaxed);
    alarms.spins.store(machine.boot.flags & FLAG_SPIN != 0, Ordering::Relaxed);
    heartbeat::start(vcpu);
    alarms.beat_at.store(timer::now().saturating_add(period), Ordering::Relaxed);
    alarms.arm();
}

/// The timer's interrupt: it stays asserted until the timer is off, masked, or set to a later time.
pub(crate) fn handle_irq() {
    let vcpu = cpu::vcpu_index();
    let alarms = &ALARMS[vcpu];
    alarms.interrupts.store(alarms.interrupts.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    let now = timer::now();
    if now >= alarms.wake_at.load(Ordering::Relaxed) {
        alarms.wake_at.store(NEVER, Ordering::Relaxed);
    }
    let beat_at = alarms.beat_at.load(Ordering::Relaxed);
    if now >= beat_at {
        heartbeat::beat(vcpu);
        // On time again after a gap, and without the beats that were missed.
        let period = alarms.period.load(Ordering::Relaxed);
        let next = beat_at.saturating_add(period);
        alarms.beat_at.store(if next > now { next } else { now.saturating_add(period) }, Ordering::Relaxed);
    }
    alarms.arm();
}

/// Sleeps `duration_ms`, or until `stop` is not zero, and does `meanwhile` every few milliseconds.
pub(crate) fn sleep(duration_ms: u64, stop: &AtomicU64, mut meanwhile: impl FnMut()) {
    let alarms = &ALARMS[cpu::vcpu_index()];
    let ticks_per_ms = timer::frequency() / 1000;
    let end = timer::now().saturating_add(ticks_per_ms.saturating_mul(duration_ms));
    while timer::now() < end && stop.load(Ordering::Relaxed) == 0 {
        let deadline = end.min(timer::now().saturating_add(ticks_per_ms * LOOK_INTERVAL_MS));
        if alarms.spins.load(Ordering::Relaxed) {
            spin_until(deadline);
        } else {
            wait_until(alarms, deadline);
        }
        meanwhile();
    }
}

/// Waits for the timer's interrupt at `deadline`. Interrupts are masked from the check to the WFI, which wakes for a
/// masked interrupt too; so one that comes in between is not slept through.
fn wait_until(alarms: &Alarms, deadline: u64) {
    cpu::mask_irq();
    alarms.wake_at.store(deadline, Ordering::Relaxed);
    alarms.arm();
    wait_awake();
    cpu::unmask_irq();
}

/// Interrupts of its timer that this vCPU has taken.
pub(crate) fn interrupts() -> u64 {
    ALARMS[cpu::vcpu_index()].interrupts.load(Ordering::Relaxed)
}

/// Has the timer interrupt this vCPU, which has interrupts masked, after `duration_ms`.
pub(crate) fn wake_in(duration_ms: u64) {
    let alarms = &ALARMS[cpu::vcpu_index()];
    let ticks = (timer::frequency() / 1000).saturating_mul(duration_ms);
    alarms.wake_at.store(timer::now().saturating_add(ticks), Ordering::Relaxed);
    alarms.arm();
}

/// Waits until this vCPU, which has interrupts masked, has been woken as [`wake_in`] was told.
pub(crate) fn wait_awake() {
    let alarms = &ALARMS[cpu::vcpu_index()];
    while !alarms.is_awake() {
        cpu::wait_for_interrupt();
        cpu::unmask_irq(); // a pending interrupt is taken here at the latest
        cpu::mask_irq();
    }
}

/// Looks at the counter until `deadline`. The timer's own beats wait meanwhile: one beat must not interrupt another.
fn spin_until(deadline: u64) {
    let vcpu = cpu::vcpu_index();
    cpu::mask_irq();
    while timer::now() < deadline {
        heartbeat::beat(vcpu);
    }
    cpu::unmask_irq();
}
