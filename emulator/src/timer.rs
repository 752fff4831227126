//! The generic timer of one vCPU: [`Timers`], the EL1 virtual and physical timers, and the counters' registers.
//!
//! A timer's output is a level: enabled, not masked, and the counter at or past the compare value (DDI 0487 D11.2.4). It
//! drives PPI 27 (virtual) or 30 (physical). [`Timers::poll`] moves the lines; the run loop calls it at each deadline in
//! icount mode, every quantum in wall mode, and after a write the writer's own attention flag makes it do so.
//!
//! Neighbours: `clock` gives the time, `gic` takes the levels, `sysreg` forwards accesses after [`el0_may_access`].

use abi::map;

use crate::clock::Clock;
use crate::config::ClockMode;
use crate::cpu::Cpu;
use crate::gic::Gic;
use crate::signal;
use crate::sysreg::enc;

/// A deadline that never comes.
pub const NEVER: u64 = u64::MAX;

/// One timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timer {
    /// CTL.ENABLE.
    pub enabled: bool,
    /// CTL.IMASK.
    pub masked: bool,
    /// CVAL, in ticks of the timer's own counter.
    pub compare: u64,
}

impl Timer {
    fn control(&self, count: u64) -> u64 {
        let status = self.enabled && count >= self.compare;
        u64::from(self.enabled) | u64::from(self.masked) << 1 | u64::from(status) << 2
    }

    fn set_control(&mut self, value: u64) {
        self.enabled = value & 1 != 0;
        self.masked = value & 2 != 0;
    }

    fn output(&self, count: u64) -> bool {
        self.enabled && !self.masked && count >= self.compare
    }

    /// Ticks until the output rises, [`NEVER`] if it is high or will not.
    fn remaining(&self, count: u64) -> u64 {
        if self.enabled && !self.masked && count < self.compare { self.compare - count } else { NEVER }
    }
}

/// The timers of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timers {
    /// CNTV_*.
    pub virtual_timer: Timer,
    /// CNTP_*.
    pub physical_timer: Timer,
    lines: [bool; 2],
    /// [`Gic::generation`] that `lines` were driven into.
    gic_generation: u64,
    /// Icount: what to add to the vCPU's own retired instructions to get the machine's total.
    base: u64,
}

impl Timers {
    /// Icount: `retired` of this vCPU now corresponds to the machine's total in `clock`. To be called before a slice and
    /// before registers are read or written from outside.
    pub(crate) fn synchronise(&mut self, clock: &Clock, retired: u64) {
        self.base = clock.instructions().wrapping_sub(retired);
    }

    /// The physical counter, with this vCPU at `retired`.
    pub fn physical_count(&self, clock: &Clock, retired: u64) -> u64 {
        clock.physical(self.base.wrapping_add(retired))
    }

    /// Icount: instructions that this vCPU, at `retired`, has to execute until the physical count is `deadline`; at
    /// least one.
    pub(crate) fn instructions_until(&self, clock: &Clock, retired: u64, deadline: u64) -> u64 {
        let now = self.base.wrapping_add(retired);
        clock.instructions_at(deadline).map_or(u64::MAX, |at| at.saturating_sub(now).max(1))
    }

    /// Drives both PPIs of `vcpu` to their levels at the physical count `now`.
    pub fn poll(&mut self, gic: &Gic, vcpu: usize, cntvoff: u64, now: u64) {
        let levels = [self.virtual_timer.output(now.wrapping_sub(cntvoff)), self.physical_timer.output(now)];
        let generation = gic.generation();
        let replaced = std::mem::replace(&mut self.gic_generation, generation) != generation;
        for (index, intid) in [map::VTIMER_INTID, map::PTIMER_INTID].into_iter().enumerate() {
            if replaced || self.lines[index] != levels[index] {
                self.lines[index] = levels[index];
                gic.set_ppi(vcpu, intid, levels[index]);
            }
        }
    }

    /// The physical count at which the next output rises, or [`NEVER`].
    pub fn deadline(&self, cntvoff: u64, now: u64) -> u64 {
        let remaining = self.virtual_timer.remaining(now.wrapping_sub(cntvoff)).min(self.physical_timer.remaining(now));
        now.saturating_add(remaining)
    }

    /// Timers after a reset, of `vcpu`, with both PPIs low.
    pub(crate) fn reset(&mut self, gic: &Gic, vcpu: usize) {
        *self = Self { base: self.base, ..Self::default() };
        gic.set_ppi(vcpu, map::VTIMER_INTID, false);
        gic.set_ppi(vcpu, map::PTIMER_INTID, false);
    }
}

/// Whether CNTKCTL_EL1 lets EL0 access the timer register `enc` (DDI 0487 D24.10.15); if not, the access is trapped to EL1.
pub fn el0_may_access(cntkctl: u64, enc: u16) -> bool {
    let bit = |n: u32| cntkctl >> n & 1 != 0;
    match enc {
        enc::CNTPCT_EL0 => bit(0),
        enc::CNTVCT_EL0 => bit(1),
        enc::CNTFRQ_EL0 => bit(0) || bit(1),
        enc::CNTV_CTL_EL0 | enc::CNTV_CVAL_EL0 | enc::CNTV_TVAL_EL0 => bit(8),
        enc::CNTP_CTL_EL0 | enc::CNTP_CVAL_EL0 | enc::CNTP_TVAL_EL0 => bit(9),
        _ => false,
    }
}

/// Reads the timer register `enc`, whatever the exception level; `None` if it is none.
pub fn read(cpu: &Cpu, enc: u16) -> Option<u64> {
    let clock = &cpu.shared.clock;
    let physical = cpu.timers.physical_count(clock, cpu.retired);
    let count = physical.wrapping_sub(clock.cntvoff());
    let (virt, phys) = (&cpu.timers.virtual_timer, &cpu.timers.physical_timer);
    Some(match enc {
        enc::CNTFRQ_EL0 => u64::from(clock.cntfrq_hz()),
        enc::CNTPCT_EL0 => physical,
        enc::CNTVCT_EL0 => count,
        enc::CNTV_CTL_EL0 => virt.control(count),
        enc::CNTV_CVAL_EL0 => virt.compare,
        enc::CNTV_TVAL_EL0 => virt.compare.wrapping_sub(count) & 0xffff_ffff,
        enc::CNTP_CTL_EL0 => phys.control(physical),
        enc::CNTP_CVAL_EL0 => phys.compare,
        enc::CNTP_TVAL_EL0 => phys.compare.wrapping_sub(physical) & 0xffff_ffff,
        _ => return None,
    })
}

/// Writes the timer register `enc`, whatever the exception level; `None` if it is none or is read-only.
pub fn write(cpu: &mut Cpu, enc: u16, value: u64) -> Option<()> {
    let shared = std::sync::Arc::clone(&cpu.shared);
    let cntvoff = shared.clock.cntvoff();
    let physical = cpu.timers.physical_count(&shared.clock, cpu.retired);
    let count = physical.wrapping_sub(cntvoff);
    // TimerValue is a signed 32-bit distance from now.
    let distance = i64::from(value as u32 as i32) as u64;
    let timers = &mut cpu.timers;
    match enc {
        enc::CNTV_CTL_EL0 => timers.virtual_timer.set_control(value),
        enc::CNTV_CVAL_EL0 => timers.virtual_timer.compare = value,
        enc::CNTV_TVAL_EL0 => timers.virtual_timer.compare = count.wrapping_add(distance),
        enc::CNTP_CTL_EL0 => timers.physical_timer.set_control(value),
        enc::CNTP_CVAL_EL0 => timers.physical_timer.compare = value,
        enc::CNTP_TVAL_EL0 => timers.physical_timer.compare = physical.wrapping_add(distance),
        _ => return None,
    }
    timers.poll(&shared.gic, cpu.index, cntvoff, physical);
    if matches!(shared.clock.mode(), ClockMode::Icount { .. }) {
        // The deadline may have come closer than the run loop's present budget.
        shared.signals[cpu.index].raise(signal::INTERRUPT);
    }
    Some(())
}

/// Sets CNTVOFF so that the virtual counter of the whole machine reads `value` now: KVM_REG_ARM_TIMER_CNT.
pub fn set_virtual_counter(cpu: &Cpu, value: u64) {
    let clock = &cpu.shared.clock;
    clock.set_cntvoff(cpu.timers.physical_count(clock, cpu.retired).wrapping_sub(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testing::{machine, machine_with};

    const ICOUNT: ClockMode = ClockMode::Icount { ns_per_instruction: 16 };

    /// One tick is one instruction with 16 ns at 62.5 MHz.
    fn poll(cpu: &mut Cpu) {
        let shared = std::sync::Arc::clone(&cpu.shared);
        let now = cpu.timers.physical_count(&shared.clock, cpu.retired);
        cpu.timers.poll(&shared.gic, cpu.index, shared.clock.cntvoff(), now);
    }

    fn ppi(cpu: &Cpu, intid: u32) -> bool {
        cpu.shared.gic.save().private[cpu.index][intid as usize].line
    }

    #[test]
    fn counter_is_the_instruction_count_in_icount_mode() {
        let (machine, _ram) = machine_with(1, ICOUNT);
        let mut vcpu = machine.take_vcpu(0).unwrap();
        let cpu = vcpu.cpu();
        cpu.retired += 1000;
        assert_eq!(read(cpu, enc::CNTPCT_EL0), Some(1000));
        set_virtual_counter(cpu, 5);
        assert_eq!(read(cpu, enc::CNTVCT_EL0), Some(5));
        assert_eq!(read(cpu, enc::CNTFRQ_EL0), Some(62_500_000));
        assert_eq!(write(cpu, enc::CNTVCT_EL0, 0), None);
    }

    #[test]
    fn line_is_a_level_that_follows_compare_and_mask() {
        let (machine, _ram) = machine_with(1, ICOUNT);
        let mut vcpu = machine.take_vcpu(0).unwrap();
        let cpu = vcpu.cpu();
        write(cpu, enc::CNTV_TVAL_EL0, 10).unwrap();
        write(cpu, enc::CNTV_CTL_EL0, 1).unwrap();
        assert_eq!(cpu.timers.deadline(0, 0), 10);
        cpu.retired += 9;
        poll(cpu);
        assert!(!ppi(cpu, 27));
        assert_eq!(read(cpu, enc::CNTV_CTL_EL0), Some(1));
        cpu.retired += 1;
        poll(cpu);
        assert!(ppi(cpu, 27));
        assert_eq!(read(cpu, enc::CNTV_CTL_EL0), Some(5));
        assert_eq!(cpu.timers.deadline(0, 10), NEVER);
        write(cpu, enc::CNTV_CTL_EL0, 3).unwrap();
        assert!(!ppi(cpu, 27), "masked");
        assert_eq!(read(cpu, enc::CNTV_CTL_EL0), Some(7));
        write(cpu, enc::CNTV_CTL_EL0, 1).unwrap();
        assert!(ppi(cpu, 27));
        write(cpu, enc::CNTV_CVAL_EL0, 100).unwrap();
        assert!(!ppi(cpu, 27), "in the future again");
        cpu.retired += 5;
        assert_eq!(read(cpu, enc::CNTV_TVAL_EL0), Some(85));
        write(cpu, enc::CNTP_TVAL_EL0, u64::from(-3_i32 as u32)).unwrap();
        write(cpu, enc::CNTP_CTL_EL0, 1).unwrap();
        assert!(ppi(cpu, 30), "a negative TVAL has passed");
        assert_eq!(read(cpu, enc::CNTP_TVAL_EL0), Some(0xffff_fffd));
    }

    #[test]
    fn restored_interrupt_controller_gets_its_lines_back() {
        let (machine, _ram) = machine(1);
        let mut vcpu = machine.take_vcpu(0).unwrap();
        let before = machine.gic_state();
        let cpu = vcpu.cpu();
        write(cpu, enc::CNTP_CTL_EL0, 1).unwrap();
        assert!(ppi(cpu, 30));
        machine.set_gic_state(&before).unwrap();
        assert!(!ppi(cpu, 30));
        poll(cpu);
        assert!(ppi(cpu, 30));
    }

    #[test]
    fn el0_gets_what_cntkctl_grants() {
        assert!(!el0_may_access(0, enc::CNTVCT_EL0));
        assert!(el0_may_access(0b10, enc::CNTVCT_EL0) && el0_may_access(0b10, enc::CNTFRQ_EL0));
        assert!(!el0_may_access(0b10, enc::CNTPCT_EL0));
        assert!(el0_may_access(1 << 8, enc::CNTV_CTL_EL0) && !el0_may_access(1 << 8, enc::CNTP_CTL_EL0));
        assert!(el0_may_access(1 << 9, enc::CNTP_CVAL_EL0));
    }
}
