//! The machine's time: [`Clock`], the system counter that every vCPU's timers compare against.
//!
//! In [`ClockMode::Wall`] the counter is the host's monotonic time since the machine was built. In
//! [`ClockMode::Icount`] it is the instructions that all vCPUs together have retired, plus the idle time skipped by
//! [`Clock::warp_to`]; nothing else moves it, so a run repeats bit for bit. Both are scaled to CNTFRQ by rounding down.
//! The virtual counter is the physical one less CNTVOFF, which is one value for the machine, as under KVM. A machine that
//! was saved elsewhere goes on from its own count: [`Clock::set_physical`], [`Clock::set_instructions`].
//!
//! Neighbours: `timer` compares against it, `vcpu` accounts instructions to it.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::ClockMode;

const NS_PER_S: u128 = 1_000_000_000;

/// The system counter.
#[derive(Debug)]
pub struct Clock {
    mode: ClockMode,
    cntfrq_hz: AtomicU32,
    epoch: Instant,
    /// Icount: instructions retired by all vCPUs up to the last slice's end, and instructions skipped while idle.
    instructions: AtomicU64,
    cntvoff: AtomicU64,
    /// Wall: nanoseconds that the counter is ahead of the time since `epoch`.
    lead_ns: AtomicI64,
}

impl Clock {
    /// A counter that starts from zero now. Frequency and instruction time are not zero (`Config::check`).
    pub fn new(mode: ClockMode, cntfrq_hz: u32) -> Self {
        let (instructions, cntvoff) = (AtomicU64::new(0), AtomicU64::new(0));
        let cntfrq_hz = AtomicU32::new(cntfrq_hz);
        Self { mode, cntfrq_hz, epoch: Instant::now(), instructions, cntvoff, lead_ns: AtomicI64::new(0) }
    }

    /// Source of time.
    pub fn mode(&self) -> ClockMode {
        self.mode
    }

    /// CNTFRQ_EL0, in Hz.
    pub fn cntfrq_hz(&self) -> u32 {
        self.cntfrq_hz.load(Ordering::Relaxed)
    }

    /// Makes the counter tick at `hz`, not zero, whatever it shows now: to restore a machine saved elsewhere, before its counters are set.
    pub fn set_cntfrq_hz(&self, hz: NonZeroU32) {
        self.cntfrq_hz.store(hz.get(), Ordering::Relaxed);
    }

    /// CNTVOFF in ticks.
    pub fn cntvoff(&self) -> u64 {
        self.cntvoff.load(Ordering::Relaxed)
    }

    /// Sets CNTVOFF, for all vCPUs.
    pub fn set_cntvoff(&self, ticks: u64) {
        self.cntvoff.store(ticks, Ordering::Relaxed);
    }

    /// Icount: instructions retired by all vCPUs and skipped, as of the last slice's end.
    pub fn instructions(&self) -> u64 {
        self.instructions.load(Ordering::Relaxed)
    }

    /// Icount: makes the total that of a machine saved elsewhere. No effect with the wall clock.
    pub fn set_instructions(&self, total: u64) {
        self.instructions.store(total, Ordering::Relaxed);
    }

    /// Wall: makes the physical counter read `ticks` now, the virtual one unchanged; `false` where that is more than 292
    /// years. No effect in icount mode, whose counter follows from its instructions.
    pub fn set_physical(&self, ticks: u64) -> bool {
        if self.mode != ClockMode::Wall {
            return true;
        }
        let ns = (u128::from(ticks) * NS_PER_S).div_ceil(u128::from(self.cntfrq_hz()));
        let (Ok(ns), Ok(elapsed)) = (i64::try_from(ns), i64::try_from(self.epoch.elapsed().as_nanos())) else {
            return false;
        };
        let before = self.now_ticks();
        self.lead_ns.store(ns - elapsed, Ordering::Relaxed);
        self.cntvoff.fetch_add(self.now_ticks().wrapping_sub(before), Ordering::Relaxed);
        true
    }

    /// Icount: accounts a slice that one vCPU has executed.
    pub(crate) fn advance(&self, instructions: u64) {
        self.instructions.fetch_add(instructions, Ordering::Relaxed);
    }

    /// Icount: skips idle time up to `ticks` of the physical counter; no effect if that has passed.
    pub(crate) fn warp_to(&self, ticks: u64) {
        if let Some(instructions) = self.instructions_at(ticks) {
            self.instructions.fetch_max(instructions, Ordering::Relaxed);
        }
    }

    /// The physical counter in ticks; in icount mode, with `instructions` as the machine's total.
    #[inline]
    pub fn physical(&self, instructions: u64) -> u64 {
        let ns = match self.mode {
            ClockMode::Wall => {
                let lead = i128::from(self.lead_ns.load(Ordering::Relaxed));
                (self.epoch.elapsed().as_nanos() as i128 + lead).max(0) as u128
            }
            ClockMode::Icount { ns_per_instruction } => u128::from(instructions) * u128::from(ns_per_instruction),
        };
        (ns * u128::from(self.cntfrq_hz()) / NS_PER_S) as u64
    }

    /// The physical counter now, in ticks; in icount mode as of the last slice's end.
    pub fn now_ticks(&self) -> u64 {
        self.physical(self.instructions())
    }

    /// Icount: the smallest total of instructions at which the physical counter reaches `ticks`. `None` in wall mode
    /// or beyond 2^64.
    pub(crate) fn instructions_at(&self, ticks: u64) -> Option<u64> {
        let ClockMode::Icount { ns_per_instruction } = self.mode else { return None };
        let scale = u128::from(ns_per_instruction) * u128::from(self.cntfrq_hz());
        u64::try_from((u128::from(ticks) * NS_PER_S).div_ceil(scale)).ok()
    }

    /// Wall: when the physical counter reaches `ticks`. `None` in icount mode or where the host cannot say.
    pub(crate) fn instant_at(&self, ticks: u64) -> Option<Instant> {
        if self.mode != ClockMode::Wall {
            return None;
        }
        let ns = (u128::from(ticks) * NS_PER_S).div_ceil(u128::from(self.cntfrq_hz()));
        let since_epoch = i128::try_from(ns).ok()? - i128::from(self.lead_ns.load(Ordering::Relaxed));
        self.epoch.checked_add(Duration::from_nanos(u64::try_from(since_epoch.max(0)).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wall_clock_moves_forward_and_its_instants_agree() {
        let clock = Clock::new(ClockMode::Wall, 62_500_000);
        let first = clock.now_ticks();
        let at = clock.instant_at(first + 1).unwrap();
        while Instant::now() < at {
            std::hint::spin_loop();
        }
        assert!(clock.now_ticks() > first);
        assert_eq!(clock.instructions_at(1), None);
    }

    #[test]
    fn wall_clock_goes_on_from_another_machine_s_count() {
        let clock = Clock::new(ClockMode::Wall, 62_500_000);
        clock.set_cntvoff(5);
        for ticks in [1 << 40, 0] {
            let ahead = clock.now_ticks().wrapping_sub(clock.cntvoff());
            assert!(clock.set_physical(ticks));
            let now = clock.now_ticks();
            // Less than a minute.
            assert!((ticks..ticks + (60 << 30)).contains(&now), "{now}");
            assert!(now.wrapping_sub(clock.cntvoff()).wrapping_sub(ahead) < 60 << 30, "the virtual count is as it was");
            assert!(clock.instant_at(now + 1).unwrap() <= Instant::now() + Duration::from_secs(60));
        }
        let before = clock.now_ticks();
        assert!(!clock.set_physical(u64::MAX));
        assert!(clock.now_ticks() >= before && clock.now_ticks() < 1 << 40);
    }

    #[test]
    fn warping_never_goes_back() {
        let clock = Clock::new(ClockMode::Icount { ns_per_instruction: 1 }, 62_500_000);
        clock.warp_to(100);
        assert_eq!((clock.now_ticks(), clock.instructions()), (100, 1600));
        clock.warp_to(50);
        assert_eq!(clock.instructions(), 1600);
        assert_eq!(clock.instant_at(1), None);
    }

    proptest! {
        #[test]
        fn deadline_is_the_first_instruction_that_reaches_it(
            ticks in 1_u64..1 << 40, freq in 1_u32..2_000_000_000, ns in 1_u32..1000,
        ) {
            let clock = Clock::new(ClockMode::Icount { ns_per_instruction: ns }, freq);
            if let Some(at) = clock.instructions_at(ticks) {
                prop_assert!(clock.physical(at) >= ticks);
                prop_assert!(clock.physical(at - 1) < ticks);
            }
        }
    }
}
