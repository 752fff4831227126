//! MRS and MSR (register): [`read`] and [`write()`], with the access rules of each register.
//!
//! At EL0 a register of the EL1 space is UNDEFINED; one of the EL0 space (op1 = 3) is allowed, or trapped to EL1 with class
//! 0x18, as the control bits of EL1 say. A register nobody knows is UNDEFINED and noted by name ([`Shared::note_unimplemented`](crate::shared::Shared::note_unimplemented)). [`get`] and [`set`] are the same
//! registers without the rules, for state in and out ([`crate::regs`]).

use super::enc::{self, *};
use super::{SysRegs, describe, id, id32};
use crate::config::ExecutionState;
use crate::cpu::{Cpu, Trap};
use crate::fault::FaultInfo;
use crate::{pmu, timer};

/// SCTLR_EL1 bits that open system registers and instructions to EL0.
pub(super) mod sctlr {
    pub(in crate::sysreg) const UMA: u64 = 1 << 9;
    pub(in crate::sysreg) const UCT: u64 = 1 << 15;
    pub(in crate::sysreg) const UCI: u64 = 1 << 26;
}

/// Which part of the emulator holds a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Timer,
    Pmu,
    Gic,
    Here,
}

/// Who holds `enc`.
const fn holder(enc: u16) -> Holder {
    let (op1, crn, crm) = (enc >> 11 & 7, enc >> 7 & 15, enc >> 3 & 15);
    match (enc >> 14, op1, crn, crm) {
        _ if enc == PMCCFILTR_EL0 => Holder::Pmu,
        (3, 3, 14, 0..=3) => Holder::Timer,
        (3, 3, 9, 12..=14) | (3, 0, 9, 14) => Holder::Pmu,
        (3, 0, 4, 6) | (3, 0, 12, 8..=12) => Holder::Gic,
        _ => Holder::Here,
    }
}

/// Sets the syndrome of a trapped access and says so. Rt stays 0: the executor, who knows it, fills it in.
pub(super) fn trapped(cpu: &mut Cpu, enc: u16, read: bool) -> Trap {
    cpu.fault = FaultInfo::sysreg(enc, 0, read);
    Trap::Exception
}

/// Judges an access at the current exception level.
fn check(cpu: &mut Cpu, enc: u16, read: bool) -> Result<(), Trap> {
    if matches!(enc, FPCR | FPSR) && !cpu.sys.fp_enabled(cpu.pstate.el) {
        cpu.fault = FaultInfo::FP_ACCESS;
        return Err(Trap::Exception);
    }
    if cpu.pstate.el != 0 {
        // The stack pointer in use is SP, not SP_EL0 (C5.2.23).
        return if enc == SP_EL0 && !cpu.pstate.sp_sel { Err(Trap::Undefined) } else { Ok(()) };
    }
    if enc >> 11 & 7 != 3 {
        return Err(Trap::Undefined);
    }
    let sctlr = cpu.sys.sctlr;
    let open = match holder(enc) {
        // CNTFRQ_EL0 and the counters are read-only at EL0: a write is UNDEFINED, not trapped.
        Holder::Timer if !read && matches!(enc, CNTFRQ_EL0 | CNTPCT_EL0 | CNTVCT_EL0) => return Err(Trap::Undefined),
        Holder::Timer => timer::el0_may_access(cpu.sys.cntkctl, enc),
        Holder::Pmu => pmu::el0_may_access(pmu::user_enable(cpu), enc, !read),
        Holder::Gic | Holder::Here => match enc {
            DAIF => sctlr & sctlr::UMA != 0,
            // Read-only at EL0: a write is UNDEFINED, not trapped.
            TPIDRRO_EL0 | CTR_EL0 if !read => return Err(Trap::Undefined),
            CTR_EL0 => sctlr & sctlr::UCT != 0,
            _ => true,
        },
    };
    if open { Ok(()) } else { Err(trapped(cpu, enc, read)) }
}

/// MRS: reads register `enc` at the current exception level. The syndrome of a trap lacks Rt.
///
/// # Errors
/// [`Trap::Undefined`] for a register that does not exist here, or not at this level; [`Trap::Exception`] where EL1 traps it.
pub fn read(cpu: &mut Cpu, enc: u16) -> Result<u64, Trap> {
    check(cpu, enc, true)?;
    let value = match holder(enc) {
        Holder::Timer => timer::read(cpu, enc),
        Holder::Pmu => pmu::read(cpu, enc),
        Holder::Gic => cpu.shared.gic.cpu_read(cpu.index, enc),
        Holder::Here if matches!(enc, OSLAR_EL1 | OSDTRTX_EL1) || is_el2(enc) => None,
        Holder::Here => get(cpu, enc),
    };
    value.ok_or_else(|| refused(cpu, enc, "MRS of"))
}

/// MSR: writes `value` to register `enc` at the current exception level. The syndrome of a trap lacks Rt.
///
/// # Errors
/// As [`read`]; a read-only register is UNDEFINED.
pub fn write(cpu: &mut Cpu, enc: u16, value: u64) -> Result<(), Trap> {
    check(cpu, enc, false)?;
    let done = match holder(enc) {
        Holder::Timer => timer::write(cpu, enc, value),
        Holder::Pmu => pmu::write(cpu, enc, value),
        Holder::Gic => cpu.shared.gic.cpu_write(cpu.index, enc, value),
        Holder::Here if read_only(enc) || is_el2(enc) => None,
        Holder::Here => set(cpu, enc, value),
    };
    done.ok_or_else(|| refused(cpu, enc, "MSR to"))
}

/// Notes a refused register by name and makes the access UNDEFINED.
fn refused(cpu: &Cpu, enc: u16, what: &str) -> Trap {
    cpu.shared.note_unimplemented(&format!("{what} {}", describe(enc)));
    Trap::Undefined
}

/// Whether `enc` is EL2's: AArch32 state that is in the list of registers but that no MRS of EL1 reaches.
const fn is_el2(enc: u16) -> bool {
    enc >> 11 & 7 == 4
}

/// The value of an identification register that is the same on every vCPU of a machine in `state`, or `None`.
pub(crate) const fn constant(state: ExecutionState, enc: u16) -> Option<u64> {
    match state {
        ExecutionState::Aarch64 => id::constant(enc),
        ExecutionState::Aarch32 => id32::constant(enc),
    }
}

/// Whether MSR to `enc` is UNDEFINED although the register exists.
fn read_only(enc: u16) -> bool {
    id::constant(enc).is_some()
        || matches!(enc, MPIDR_EL1 | CCSIDR_EL1 | CURRENT_EL | ISR_EL1 | OSLSR_EL1 | MDRAR_EL1 | MDCCSR_EL0)
}

/// The plain register `enc` in `sys`, or `None` where it is not plain: identification, PSTATE, or held elsewhere.
fn plain(sys: &mut SysRegs, enc: u16) -> Option<&mut u64> {
    Some(match enc {
        SCTLR_EL1 => &mut sys.sctlr,
        ACTLR_EL1 => &mut sys.actlr,
        CPACR_EL1 => &mut sys.cpacr,
        TTBR0_EL1 => &mut sys.ttbr[0],
        TTBR1_EL1 => &mut sys.ttbr[1],
        TCR_EL1 => &mut sys.tcr,
        MAIR_EL1 => &mut sys.mair,
        AMAIR_EL1 => &mut sys.amair,
        VBAR_EL1 => &mut sys.vbar,
        ESR_EL1 => &mut sys.esr,
        FAR_EL1 => &mut sys.far,
        AFSR0_EL1 => &mut sys.afsr[0],
        AFSR1_EL1 => &mut sys.afsr[1],
        ELR_EL1 => &mut sys.elr,
        SPSR_EL1 => &mut sys.spsr,
        PAR_EL1 => &mut sys.par,
        CONTEXTIDR_EL1 => &mut sys.contextidr,
        TPIDR_EL0 => &mut sys.tpidr_el0,
        TPIDRRO_EL0 => &mut sys.tpidrro_el0,
        TPIDR_EL1 => &mut sys.tpidr_el1,
        CNTKCTL_EL1 => &mut sys.cntkctl,
        CSSELR_EL1 => &mut sys.csselr,
        MDSCR_EL1 => &mut sys.mdscr,
        MDCCINT_EL1 => &mut sys.mdccint,
        DACR32_EL2 => &mut sys.dacr,
        IFSR32_EL2 => &mut sys.ifsr,
        FPEXC32_EL2 => &mut sys.fpexc,
        DBGVCR32_EL2 => &mut sys.dbgvcr,
        _ => {
            let (kind, unit) = debug_unit(enc)?;
            &mut sys.debug[kind][unit]
        }
    })
}

/// Bank and index of DBGBVRn_EL1, DBGBCRn_EL1, DBGWVRn_EL1 or DBGWCRn_EL1 (op0 2, op1 0, CRn 0, CRm n, op2 4 to 7).
pub(super) const fn debug_unit(enc: u16) -> Option<(usize, usize)> {
    let (unit, op2) = ((enc >> 3 & 15) as usize, (enc & 7) as usize);
    if enc >> 7 == enc::enc(2, 0, 0, 0, 0) >> 7 && op2 >= 4 && unit < id::DEBUG_UNITS {
        Some((op2 - 4, unit))
    } else {
        None
    }
}

/// The value of `enc` whatever the exception level, or `None` if there is no such register here. Timer, PMU and GIC registers
/// are not here.
pub(crate) fn get(cpu: &mut Cpu, enc: u16) -> Option<u64> {
    if let Some(value) = constant(cpu.sys.execution_state, enc) {
        return Some(cpu.sys.shown.get(enc).unwrap_or(value));
    }
    let pstate = cpu.pstate;
    Some(match enc {
        MPIDR_EL1 => cpu.sys.mpidr,
        // Two level-1 caches; anything else that CSSELR_EL1 selects does not exist, and then the value is UNKNOWN.
        CCSIDR_EL1 => id::CCSIDR,
        CURRENT_EL => u64::from(pstate.el) << 2,
        SPSEL => u64::from(pstate.sp_sel),
        PAN => u64::from(pstate.pan) << 22,
        NZCV => u64::from(pstate.nzcv) << 28,
        DAIF => u64::from(pstate.daif) << 6,
        FPCR => cpu.fpcr.into(),
        FPSR => cpu.fpsr.into(),
        SP_EL0 => cpu.sp(0),
        // I is the only interrupt there is.
        ISR_EL1 => u64::from(cpu.shared.gic.irq_pending(cpu.index)) << 7,
        // OSLM says that the lock is implemented; OSLK that it is held.
        OSLSR_EL1 => 1 << 3 | u64::from(cpu.sys.os_lock) << 1,
        // No external debugger: its registers read as zero, as under KVM.
        MDRAR_EL1 | MDCCSR_EL0 | OSDTRRX_EL1 | OSDTRTX_EL1 | OSDLR_EL1 | DBGPRCR_EL1 => 0,
        _ => *plain(&mut cpu.sys, enc)?,
    })
}

/// FPCR bits that are implemented: AHP is kept although half precision is converted only, DN, FZ, RMode.
const FPCR_WRITABLE: u64 = 0x07c0_0000;
/// FPSR bits that are implemented: QC, IDC, IXC, UFC, OFC, DZC, IOC.
const FPSR_WRITABLE: u64 = 1 << 27 | 0x9f;
/// SPSR_EL1 bits that are implemented: NZCV, PAN, IL, DAIF, M\[4:0\]. SS and UAO are RES0.
const SPSR_WRITABLE: u64 = 0xf << 28 | 1 << 22 | 1 << 20 | 0x3df;

/// Sets `enc` to what of `value` is implemented, whatever the exception level, and does what follows from it. `None` if there is no such
/// register here or it is constant.
pub(crate) fn set(cpu: &mut Cpu, enc: u16, value: u64) -> Option<()> {
    let mut pstate = cpu.pstate;
    match enc {
        SPSEL => pstate.sp_sel = value & 1 != 0,
        PAN => pstate.pan = value >> 22 & 1 != 0,
        NZCV => pstate.nzcv = (value >> 28 & 15) as u8,
        DAIF => pstate.daif = (value >> 6 & 15) as u8,
        FPCR => cpu.fpcr = (value & FPCR_WRITABLE) as u32,
        // In AArch32 the flags of FPSCR are kept here too.
        FPSR if cpu.is_aarch32() => cpu.fpsr = (value & (FPSR_WRITABLE | 0xf << 28)) as u32,
        FPSR => cpu.fpsr = (value & FPSR_WRITABLE) as u32,
        SP_EL0 => cpu.set_sp(0, value),
        OSLAR_EL1 => cpu.sys.os_lock = value & 1 != 0,
        OSDTRRX_EL1 | OSDTRTX_EL1 | OSDLR_EL1 | DBGPRCR_EL1 => {}
        _ => {
            let kept = match cpu.sys.execution_state {
                ExecutionState::Aarch64 => writable(enc, value),
                ExecutionState::Aarch32 => writable32(enc, value),
            };
            let register = plain(&mut cpu.sys, enc)?;
            let changed = *register != kept;
            *register = kept;
            // With short descriptors CONTEXTIDR holds the ASID; the software TLB has none and forgets everything instead.
            let regime = matches!(enc, SCTLR_EL1 | TCR_EL1 | TTBR0_EL1 | TTBR1_EL1 | MAIR_EL1)
                || cpu.is_aarch32() && matches!(enc, DACR32_EL2 | CONTEXTIDR_EL1);
            if changed && regime {
                cpu.translation_changed();
            }
        }
    }
    if pstate != cpu.pstate {
        cpu.set_pstate(pstate);
    }
    Some(())
}

/// `value` with the bits of `enc` that are RES0 or RES1 as they read.
fn writable(enc: u16, value: u64) -> u64 {
    match enc {
        SCTLR_EL1 => value & id::SCTLR_WRITABLE | id::SCTLR_RES1,
        TCR_EL1 => value & id::TCR_WRITABLE,
        CPACR_EL1 => value & (3 << 20 | 1 << 28),
        VBAR_EL1 => value & !0x7ff,
        SPSR_EL1 => value & SPSR_WRITABLE,
        CNTKCTL_EL1 => value & 0x3ff,
        // One level, instruction or data.
        CSSELR_EL1 => value & 0xf,
        ESR_EL1 | CONTEXTIDR_EL1 | DACR32_EL2 | IFSR32_EL2 | FPEXC32_EL2 | DBGVCR32_EL2 => value & 0xffff_ffff,
        ACTLR_EL1 | AMAIR_EL1 | AFSR0_EL1 | AFSR1_EL1 => 0,
        _ => value,
    }
}

/// As [`writable`], for the AArch32 registers that are mapped to `enc`.
fn writable32(enc: u16, value: u64) -> u64 {
    match enc {
        SCTLR_EL1 => value & id::SCTLR32_WRITABLE | id::SCTLR32_RES1,
        TCR_EL1 => value & id::TTBCR_WRITABLE,
        // cp10 and cp11. D32DIS and ASEDIS are RES0, for the registers and Advanced SIMD come together.
        CPACR_EL1 => value & 0xf << 20,
        VBAR_EL1 => value & 0xffff_ffe0,
        SPSR_EL1 => value & 0xffff_ffff,
        FPEXC32_EL2 => value & id::FPEXC_WRITABLE | id::FPEXC_RESET,
        _ => writable(enc, value),
    }
}
