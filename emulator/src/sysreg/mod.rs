//! System registers and system instructions.
//!
//! [`SysRegs`] is the state; [`read`] and [`write()`] are MRS and MSR with their access rules; [`sys_insn`] is the rest of the
//! SYS space; [`enc`] names the encodings, [`id`] holds what the processor says of itself, [`id32`] what it says in AArch32.
//! AArch32's coprocessor registers ([`crate::a32::coprocessor`]) are these too, by another name. Registers of the timers, the PMU
//! and the GIC's CPU interface are forwarded to [`crate::timer`], [`crate::pmu`] and [`crate::gic`]. State in and out by KVM's
//! register ids is [`crate::regs`].

mod access;
pub mod enc;
pub mod id;
pub mod id32;
mod maintenance;
pub mod shown;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use access::{constant, get, set};
pub use access::{read, write};
pub use maintenance::sys_insn;

use crate::config::ExecutionState;
use crate::mmu::{Format, Regime};

/// The manual's name of `enc` with the generic one, `S<op0>_<op1>_C<n>_C<m>_<op2>`, or the generic one alone.
fn describe(enc: u16) -> String {
    let generic = format!("S{}_{}_C{}_C{}_{}", enc >> 14, enc >> 11 & 7, enc >> 7 & 15, enc >> 3 & 15, enc & 7);
    match enc::name(enc) {
        Some(name) => format!("{name} ({generic})"),
        None => generic,
    }
}

/// The system registers of one vCPU that are plain state. PSTATE, SP and FPCR are in [`crate::cpu::Cpu`]; timers, PMU and
/// the GIC's CPU interface keep their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysRegs {
    /// What the vCPU executes; it never changes.
    pub execution_state: ExecutionState,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// ACTLR_EL1.
    pub actlr: u64,
    /// CPACR_EL1.
    pub cpacr: u64,
    /// TTBR0_EL1 and TTBR1_EL1.
    pub ttbr: [u64; 2],
    /// TCR_EL1.
    pub tcr: u64,
    /// MAIR_EL1.
    pub mair: u64,
    /// AMAIR_EL1.
    pub amair: u64,
    /// VBAR_EL1.
    pub vbar: u64,
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// AFSR0_EL1 and AFSR1_EL1.
    pub afsr: [u64; 2],
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// PAR_EL1.
    pub par: u64,
    /// CONTEXTIDR_EL1.
    pub contextidr: u64,
    /// TPIDR_EL0.
    pub tpidr_el0: u64,
    /// TPIDRRO_EL0.
    pub tpidrro_el0: u64,
    /// TPIDR_EL1.
    pub tpidr_el1: u64,
    /// CNTKCTL_EL1.
    pub cntkctl: u64,
    /// CSSELR_EL1.
    pub csselr: u64,
    /// MDSCR_EL1.
    pub mdscr: u64,
    /// MDCCINT_EL1.
    pub mdccint: u64,
    /// Whether the OS lock is held (OSLSR_EL1.OSLK).
    pub os_lock: bool,
    /// DBGBVRn_EL1, DBGBCRn_EL1, DBGWVRn_EL1, DBGWCRn_EL1: held, never acted upon.
    pub debug: [[u64; id::DEBUG_UNITS]; 4],
    /// MPIDR_EL1.
    pub mpidr: u64,
    /// DACR32_EL2: AArch32's DACR.
    pub dacr: u64,
    /// IFSR32_EL2: AArch32's IFSR.
    pub ifsr: u64,
    /// FPEXC32_EL2: AArch32's FPEXC.
    pub fpexc: u64,
    /// DBGVCR32_EL2: AArch32's DBGVCR, held, never acted upon.
    pub dbgvcr: u64,
    /// What of the processor is hidden; a reset does not change it.
    pub shown: shown::Shown,
}

impl SysRegs {
    /// The reset state of vCPU `index`.
    pub fn new(index: usize, execution_state: ExecutionState) -> Self {
        Self {
            execution_state,
            sctlr: match execution_state {
                ExecutionState::Aarch64 => id::SCTLR_RES1,
                ExecutionState::Aarch32 => id::SCTLR32_RESET,
            },
            actlr: 0,
            cpacr: 0,
            ttbr: [0; 2],
            tcr: 0,
            mair: 0,
            amair: 0,
            vbar: 0,
            esr: 0,
            far: 0,
            afsr: [0; 2],
            elr: 0,
            spsr: 0,
            par: 0,
            contextidr: 0,
            tpidr_el0: 0,
            tpidrro_el0: 0,
            tpidr_el1: 0,
            cntkctl: 0,
            csselr: 0,
            mdscr: 0,
            mdccint: 0,
            // Held after a cold reset (D24.3.24); KVM's vCPUs start the same.
            os_lock: true,
            debug: [[0; id::DEBUG_UNITS]; 4],
            mpidr: id::mpidr(index),
            dacr: 0,
            ifsr: 0,
            fpexc: id::FPEXC_RESET,
            shown: shown::Shown::default(),
            dbgvcr: 0,
        }
    }

    /// Whether CPACR_EL1.FPEN permits SIMD&FP at `el` (D24.2.33): 0b11 at both levels, 0b01 at EL1 alone.
    pub const fn fp_enabled(&self, el: u8) -> bool {
        match self.cpacr >> 20 & 3 {
            0b11 => true,
            0b01 => el != 0,
            _ => false,
        }
    }

    /// AArch32: whether translation tables have long descriptors (TTBCR.EAE).
    pub const fn long_descriptors(&self) -> bool {
        self.tcr >> 31 & 1 != 0
    }

    /// What translation depends on.
    pub const fn regime(&self) -> Regime {
        let format = match self.execution_state {
            ExecutionState::Aarch64 => Format::V8,
            ExecutionState::Aarch32 if self.long_descriptors() => Format::Long,
            ExecutionState::Aarch32 => Format::Short,
        };
        let &Self { sctlr, tcr, ttbr, mair, dacr, contextidr, .. } = self;
        Regime { format, sctlr, tcr, ttbr, mair, dacr, contextidr }
    }
}
