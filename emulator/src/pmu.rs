//! The performance monitor of one vCPU: [`Pmu`], PMUv3 with the cycle counter alone.
//!
//! The cycle counter counts retired instructions, so that it is reproducible in icount mode. There are no event counters
//! (`PMCR_EL0.N` = 0) and no filtering (`PMCCFILTR_EL0` reads as zero). `PMCR_EL0.LC` is one: the counter overflows after
//! 2^64 instructions, so an overflow bit is set by software only; its interrupt is PPI 23.
//!
//! Neighbours: `sysreg` forwards accesses after [`el0_may_access`].

use abi::map;

use crate::cpu::Cpu;
use crate::sysreg::enc;

/// The cycle counter's bit in PMCNTENSET, PMOVS and PMINTEN.
const CYCLES: u64 = 1 << 31;
/// PMCR_EL0.LC.
const LONG: u64 = 1 << 6;
/// PMCR_EL0 bits that software sets: E, D, X, DP.
const PMCR_WRITABLE: u64 = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 5;
/// CPU_CYCLES, the one common event.
const PMCEID0: u64 = 1 << 0x11;

/// The performance monitor's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pmu {
    control: u64,
    counting: bool,
    overflow: bool,
    interrupt: bool,
    user: u64,
    select: u64,
    /// Counter value when stopped; when running, what to add to the retired instructions.
    cycles: u64,
    line: bool,
}

impl Pmu {
    fn runs(&self) -> bool {
        self.control & 1 != 0 && self.counting
    }

    fn cycles(&self, retired: u64) -> u64 {
        if self.runs() { self.cycles.wrapping_add(retired) } else { self.cycles }
    }

    fn set_cycles(&mut self, retired: u64, value: u64) {
        self.cycles = if self.runs() { value.wrapping_sub(retired) } else { value };
    }

    /// Applies `change`, which may start or stop the counter, and keeps the count.
    fn keeping_count(&mut self, retired: u64, change: impl FnOnce(&mut Self)) {
        let cycles = self.cycles(retired);
        change(self);
        self.set_cycles(retired, cycles);
    }
}

/// Whether PMUSERENR_EL0 lets EL0 access the PMU register `enc` (DDI 0487 D24.5.16); if not, the access is trapped to EL1.
pub const fn el0_may_access(userenr: u64, enc: u16, write: bool) -> bool {
    let (all, software, cycles, events) = (userenr & 1 != 0, userenr & 2 != 0, userenr & 4 != 0, userenr & 8 != 0);
    match enc {
        enc::PMUSERENR_EL0 => !write,
        enc::PMINTENSET_EL1 | enc::PMINTENCLR_EL1 => false,
        enc::PMCCNTR_EL0 => all || (cycles && !write),
        enc::PMSWINC_EL0 => all || software,
        enc::PMSELR_EL0 => all || events,
        _ => all,
    }
}

/// PMUSERENR_EL0, for [`el0_may_access`].
pub fn user_enable(cpu: &Cpu) -> u64 {
    cpu.pmu.user
}

/// Reads the PMU register `enc`, whatever the exception level; `None` if it is none.
pub fn read(cpu: &Cpu, enc: u16) -> Option<u64> {
    let pmu = &cpu.pmu;
    let flag = |set: bool| if set { CYCLES } else { 0 };
    Some(match enc {
        enc::PMCR_EL0 => pmu.control | LONG,
        enc::PMCNTENSET_EL0 | enc::PMCNTENCLR_EL0 => flag(pmu.counting),
        enc::PMOVSCLR_EL0 | enc::PMOVSSET_EL0 => flag(pmu.overflow),
        enc::PMINTENSET_EL1 | enc::PMINTENCLR_EL1 => flag(pmu.interrupt),
        enc::PMUSERENR_EL0 => pmu.user,
        enc::PMSELR_EL0 => pmu.select,
        enc::PMCCNTR_EL0 => pmu.cycles(cpu.retired),
        enc::PMCEID0_EL0 => PMCEID0,
        enc::PMCEID1_EL0 | enc::PMCCFILTR_EL0 | enc::PMXEVTYPER_EL0 | enc::PMXEVCNTR_EL0 => 0,
        _ => return None,
    })
}

/// Writes the PMU register `enc`, whatever the exception level; `None` if it is none or is read-only.
pub fn write(cpu: &mut Cpu, enc: u16, value: u64) -> Option<()> {
    let retired = cpu.retired;
    let pmu = &mut cpu.pmu;
    let chosen = value & CYCLES != 0;
    match enc {
        enc::PMCR_EL0 => {
            pmu.keeping_count(retired, |pmu| pmu.control = value & PMCR_WRITABLE);
            if value & 1 << 2 != 0 {
                pmu.set_cycles(retired, 0);
            }
        }
        enc::PMCNTENSET_EL0 if chosen => pmu.keeping_count(retired, |pmu| pmu.counting = true),
        enc::PMCNTENCLR_EL0 if chosen => pmu.keeping_count(retired, |pmu| pmu.counting = false),
        enc::PMOVSSET_EL0 => pmu.overflow |= chosen,
        enc::PMOVSCLR_EL0 => pmu.overflow &= !chosen,
        enc::PMINTENSET_EL1 => pmu.interrupt |= chosen,
        enc::PMINTENCLR_EL1 => pmu.interrupt &= !chosen,
        enc::PMUSERENR_EL0 => pmu.user = value & 0xf,
        enc::PMSELR_EL0 => pmu.select = value & 0x1f,
        enc::PMCCNTR_EL0 => pmu.set_cycles(retired, value),
        // Only the cycle counter exists, and it is not filtered.
        enc::PMCNTENSET_EL0 | enc::PMCNTENCLR_EL0 | enc::PMSWINC_EL0 => {}
        enc::PMCCFILTR_EL0 | enc::PMXEVTYPER_EL0 | enc::PMXEVCNTR_EL0 => {}
        _ => return None,
    }
    let level = pmu.control & 1 != 0 && pmu.overflow && pmu.interrupt;
    if level != pmu.line {
        pmu.line = level;
        cpu.shared.gic.set_ppi(cpu.index, map::PMU_INTID, level);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testing::machine;

    #[test]
    fn cycle_counter_counts_instructions_while_enabled() {
        let (machine, _ram) = machine(1);
        let mut vcpu = machine.take_vcpu(0).unwrap();
        let cpu = vcpu.cpu();
        cpu.retired = 100;
        write(cpu, enc::PMCNTENSET_EL0, CYCLES).unwrap();
        write(cpu, enc::PMCR_EL0, 0b101).unwrap();
        cpu.retired = 142;
        assert_eq!(read(cpu, enc::PMCCNTR_EL0), Some(42));
        write(cpu, enc::PMCR_EL0, 0).unwrap();
        cpu.retired = 150;
        assert_eq!(read(cpu, enc::PMCCNTR_EL0), Some(42), "stopped");
        write(cpu, enc::PMCCNTR_EL0, 7).unwrap();
        write(cpu, enc::PMCR_EL0, 1).unwrap();
        cpu.retired = 151;
        assert_eq!(read(cpu, enc::PMCCNTR_EL0), Some(8));
        assert_eq!(read(cpu, enc::PMCR_EL0), Some(LONG | 1));
        assert_eq!(read(cpu, enc::CNTVCT_EL0), None);
    }

    #[test]
    fn el0_gets_what_pmuserenr_grants() {
        assert!(el0_may_access(0, enc::PMUSERENR_EL0, false));
        assert!(!el0_may_access(0xf, enc::PMUSERENR_EL0, true));
        assert!(el0_may_access(4, enc::PMCCNTR_EL0, false) && !el0_may_access(4, enc::PMCCNTR_EL0, true));
        assert!(el0_may_access(1, enc::PMCR_EL0, true) && !el0_may_access(0xe, enc::PMCR_EL0, false));
        assert!(!el0_may_access(0xf, enc::PMINTENSET_EL1, false));
    }
}
