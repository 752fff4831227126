//! System instructions: registers, PSTATE, barriers, hints, ERET, cache and TLB maintenance.
//!
//! Whatever may change translation, code or interrupt masks ends its block, so that the run loop looks again. MRS ends it
//! too: [`Cpu::retired`] is then exact for the counters.

use std::sync::atomic::{Ordering, fence};

use crate::cpu::{Cpu, DAIF_I, Stop, Trap};
use crate::exception;
use crate::exec::host::Word;
use crate::exec::trap::{exception_at, stop, synchronise, trap};
use crate::fault::{FaultInfo, ec};
use crate::op::{Flow, Op, next};
use crate::signal;
use crate::sysreg;

/// SCTLR_EL1 bits that let EL0 do something: UMA (DAIF), DZE (DC ZVA), nTWI, nTWE.
const SCTLR_UMA: u64 = 1 << 9;
const SCTLR_DZE: u64 = 1 << 14;
const SCTLR_NTWI: u64 = 1 << 16;
const SCTLR_NTWE: u64 = 1 << 18;

/// A trap out of the register file, which does not know the general register for the syndrome.
#[cold]
fn register_trap(cpu: &mut Cpu, op: &Op, rest: &[Op], cause: Trap) -> Flow {
    if cause == Trap::Exception && cpu.fault.ec == ec::SYSREG {
        cpu.fault.iss |= u32::from(op.ra & 31) << 5;
    }
    trap(cpu, op, rest, cause)
}

/// Whether the current exception level may do what bit `bit` of SCTLR_EL1 grants to EL0.
fn granted(cpu: &Cpu, bit: u64) -> bool {
    cpu.pstate.el != 0 || cpu.sys.sctlr & bit != 0
}

/// Ends the block after a change of PSTATE or a register; unmasked interrupts stop the run so that pending ones are seen.
fn changed(cpu: &mut Cpu, op: &Op, rest: &[Op], daif_before: u8) -> Flow {
    if daif_before & !cpu.pstate.daif & DAIF_I != 0 {
        stop(cpu, op, rest, Stop::Attention)
    } else {
        synchronise(cpu, op, rest)
    }
}

/// MRS: encoding in `imm`, architectural number of the register in `ra`.
pub(crate) fn mrs(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match sysreg::read(cpu, op.imm as u16) {
        Ok(value) => {
            cpu.x[usize::from(op.rd)] = value;
            synchronise(cpu, op, rest)
        }
        Err(cause) => register_trap(cpu, op, rest, cause),
    }
}

/// MSR (register).
pub(crate) fn msr(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let daif = cpu.pstate.daif;
    match sysreg::write(cpu, op.imm as u16, cpu.x[usize::from(op.rn)]) {
        Ok(()) => changed(cpu, op, rest, daif),
        Err(cause) => register_trap(cpu, op, rest, cause),
    }
}

/// SYS: cache, TLB and address translation maintenance.
pub(crate) fn sys(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match sysreg::sys_insn(cpu, op.imm as u16, cpu.x[usize::from(op.rn)]) {
        Ok(()) => synchronise(cpu, op, rest),
        Err(cause) => register_trap(cpu, op, rest, cause),
    }
}

/// The fields of PSTATE that MSR (immediate) sets, as `op1:op2`.
pub(crate) mod field {
    pub(crate) const PAN: u8 = 0b000_100;
    pub(crate) const SPSEL: u8 = 0b000_101;
    pub(crate) const DAIF_SET: u8 = 0b011_110;
    pub(crate) const DAIF_CLR: u8 = 0b011_111;
}

/// MSR (immediate): field in `ra`, value in `aux`.
pub(crate) fn msr_imm(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let before = cpu.pstate;
    let value = op.aux as u8 & 15;
    let mut after = before;
    match op.ra {
        field::DAIF_SET | field::DAIF_CLR => {
            if !granted(cpu, SCTLR_UMA) {
                return exception_at(cpu, op, rest, FaultInfo::sysreg(op.imm as u16, 31, false));
            }
            after.daif = if op.ra == field::DAIF_SET { before.daif | value } else { before.daif & !value };
        }
        _ if before.el == 0 => return trap(cpu, op, rest, Trap::Undefined),
        field::PAN => after.pan = value & 1 != 0,
        _ => after.sp_sel = value & 1 != 0,
    }
    cpu.set_pstate(after);
    changed(cpu, op, rest, before.daif)
}

/// ERET.
pub(crate) fn eret(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if cpu.pstate.el == 0 {
        return trap(cpu, op, rest, Trap::Undefined);
    }
    cpu.retired -= rest.len() as u64;
    exception::eret(cpu);
    if cpu.pstate.daif & DAIF_I == 0 {
        cpu.stop = Stop::Attention;
        return Flow::Stop;
    }
    Flow::Sync
}

/// DMB and DSB.
pub(crate) fn barrier(cpu: &mut Cpu, _op: &Op, rest: &[Op]) -> Flow {
    fence(Ordering::SeqCst);
    next(cpu, rest)
}

/// WFI.
pub(crate) fn wfi(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if granted(cpu, SCTLR_NTWI) {
        stop(cpu, op, rest, Stop::Wfi)
    } else {
        exception_at(cpu, op, rest, FaultInfo::wfx(false))
    }
}

/// WFE.
pub(crate) fn wfe(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if std::mem::take(&mut cpu.event) {
        return next(cpu, rest);
    }
    if granted(cpu, SCTLR_NTWE) {
        stop(cpu, op, rest, Stop::Wfe)
    } else {
        exception_at(cpu, op, rest, FaultInfo::wfx(true))
    }
}

/// SEV.
pub(crate) fn sev(cpu: &mut Cpu, _op: &Op, rest: &[Op]) -> Flow {
    cpu.event = true;
    for (index, signal) in cpu.shared.signals.iter().enumerate() {
        if index != cpu.index {
            signal.raise(signal::EVENT);
        }
    }
    next(cpu, rest)
}

/// SEVL.
pub(crate) fn sevl(cpu: &mut Cpu, _op: &Op, rest: &[Op]) -> Flow {
    cpu.event = true;
    next(cpu, rest)
}

/// DC ZVA: encoding in `imm`.
pub(crate) fn dc_zva(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if !granted(cpu, SCTLR_DZE) {
        return exception_at(cpu, op, rest, FaultInfo::sysreg(op.imm as u16, op.ra, false));
    }
    let va = cpu.x[usize::from(op.rn)];
    match cpu.zero_host(va) {
        Ok(block) => {
            for word in 0..8 {
                u64::store(block + 8 * word, 0);
            }
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}
