//! Branches with link, status registers, exception returns from memory, and coprocessor registers.
//!
//! As in A64, what may change translation, code or interrupt masks ends its block, so that the run loop looks again.

use super::block::{FALLS, RISES};
use super::guard::{branch_exchange, exception_return};
use super::{reg, set};
use crate::a32::Mode;
use crate::a32::coprocessor::{self, Mrc, Mrrc};
use crate::cpu::{Cpu, DAIF_I, Stop, Trap};
use crate::exec::leave;
use crate::exec::trap::{stop, synchronise, trap};
use crate::op::{Flow, Op, next};

/// BL: the target is in `imm`.
pub(in crate::a32) fn bl(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let behind = (cpu.op_pc(op) as u32).wrapping_add(4);
    set(cpu, 14, behind);
    leave(cpu, rest, op.imm)
}

/// BX, and BLX if `LINK`.
pub(in crate::a32) fn bx<const LINK: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let target = reg(cpu, op.rm);
    if LINK && target & 1 == 0 {
        let behind = (cpu.op_pc(op) as u32).wrapping_add(4);
        set(cpu, 14, behind);
    }
    branch_exchange(cpu, op, rest, target)
}

/// Ends the block after a change of the CPSR or of a register; unmasked interrupts stop the run so that pending ones are seen.
fn changed(cpu: &mut Cpu, op: &Op, rest: &[Op], daif_before: u8) -> Flow {
    if daif_before & !cpu.pstate.daif & DAIF_I != 0 {
        stop(cpu, op, rest, Stop::Attention)
    } else {
        synchronise(cpu, op, rest)
    }
}

/// Value and mask of MSR.
fn operand<const IMMEDIATE: bool>(cpu: &Cpu, op: &Op) -> (u32, u32) {
    (if IMMEDIATE { (op.imm >> 32) as u32 } else { reg(cpu, op.rn) }, op.imm as u32)
}

/// MSR to CPSR.
pub(in crate::a32) fn write_cpsr<const IMMEDIATE: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (value, mask) = operand::<IMMEDIATE>(cpu, op);
    let before = cpu.pstate.daif;
    cpu.write_cpsr(value, mask);
    if mask & 0xffff == 0 { next(cpu, rest) } else { changed(cpu, op, rest, before) }
}

/// MSR to SPSR. UNPREDICTABLE where there is none, and UNDEFINED here.
pub(in crate::a32) fn write_spsr<const IMMEDIATE: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (value, mask) = operand::<IMMEDIATE>(cpu, op);
    let Some(spsr) = cpu.spsr32() else { return trap(cpu, op, rest, Trap::Undefined) };
    cpu.set_spsr32(spsr & !mask | value & mask);
    synchronise(cpu, op, rest)
}

/// MRS of CPSR.
pub(in crate::a32) fn read_cpsr(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    set(cpu, op.rd, cpu.cpsr());
    next(cpu, rest)
}

/// MRS of SPSR. UNPREDICTABLE where there is none, and UNDEFINED here.
pub(in crate::a32) fn read_spsr(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let Some(spsr) = cpu.spsr32() else { return trap(cpu, op, rest, Trap::Undefined) };
    set(cpu, op.rd, spsr);
    next(cpu, rest)
}

/// A register that MRS (banked) or MSR (banked) names.
enum Banked {
    General(Mode, u8),
    Spsr(Mode),
}

/// The register that `R:SYSm` names in the current mode, or `None` where it may not be accessed (DDI 0487 F5.1.121): not from
/// User mode, not the current mode's own, nor those that are not banked.
fn banked(cpu: &Cpu, encoding: u16) -> Option<Banked> {
    let current = cpu.mode();
    let number = (encoding & 7) as u8;
    let (mode, spsr) = (encoding & 0x1f, encoding & 0x20 != 0);
    let of = match mode {
        0b0_0000..=0b0_0111 => Mode::User,
        0b0_1000..=0b0_1111 => Mode::Fiq,
        0b1_0000 | 0b1_0001 => Mode::Irq,
        0b1_0010 | 0b1_0011 => Mode::Supervisor,
        0b1_0100 | 0b1_0101 => Mode::Abort,
        0b1_0110 | 0b1_0111 => Mode::Undefined,
        // Monitor and Hyp do not exist here.
        _ => return None,
    };
    if current == Mode::User || current == of {
        return None;
    }
    if spsr {
        let exists = matches!(mode, 0b0_1110 | 0b1_0000 | 0b1_0010 | 0b1_0100 | 0b1_0110);
        return exists.then_some(Banked::Spsr(of));
    }
    match of {
        Mode::User if number == 7 || current == Mode::System => None,
        // R8 to R12 of User mode are its own in FIQ mode only.
        Mode::User if number < 5 && current != Mode::Fiq => None,
        Mode::User | Mode::Fiq if number < 7 => Some(Banked::General(of, 8 + number)),
        Mode::Fiq => None,
        _ => Some(Banked::General(of, if mode & 1 == 0 { 14 } else { 13 })),
    }
}

/// MRS (banked register).
pub(in crate::a32) fn read_banked(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = match banked(cpu, op.aux) {
        Some(Banked::General(mode, register)) => Some(cpu.banked(mode, register)),
        Some(Banked::Spsr(mode)) => cpu.banked_spsr(mode),
        None => None,
    };
    let Some(value) = value else { return trap(cpu, op, rest, Trap::Undefined) };
    set(cpu, op.rd, value);
    next(cpu, rest)
}

/// MSR (banked register).
pub(in crate::a32) fn write_banked(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = reg(cpu, op.rn);
    match banked(cpu, op.aux) {
        Some(Banked::General(mode, register)) => cpu.set_banked(mode, register, value),
        Some(Banked::Spsr(mode)) => cpu.set_banked_spsr(mode, value),
        None => return trap(cpu, op, rest, Trap::Undefined),
    }
    next(cpu, rest)
}

/// CPS: nothing in User mode.
pub(in crate::a32) fn cps(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let before = cpu.pstate.daif;
    if cpu.mode() != Mode::User {
        cpu.write_cpsr((op.imm >> 32) as u32, op.imm as u32);
    }
    changed(cpu, op, rest, before)
}

/// The base of RFE and SRS after it.
fn moved(op: &Op, base: u32) -> u32 {
    match op.aux & 0xff {
        RISES => base.wrapping_add(8),
        FALLS => base.wrapping_sub(8),
        _ => base,
    }
}

/// SRS: LR and SPSR to the stack of the mode in `ra`.
pub(in crate::a32) fn srs(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (Some(spsr), Some(mode)) = (cpu.spsr32(), Mode::from_psr(op.ra.into())) else {
        return trap(cpu, op, rest, Trap::Undefined);
    };
    // UNPREDICTABLE: User mode's stack is System mode's by its name.
    if mode == Mode::User {
        return trap(cpu, op, rest, Trap::Undefined);
    }
    let base = cpu.banked(mode, 13);
    let va = base.wrapping_add((op.imm >> 32) as u32);
    match cpu.store_words(va.into(), &[reg(cpu, 14), spsr]) {
        Ok(()) => {
            cpu.set_banked(mode, 13, moved(op, base));
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// RFE: PC and CPSR from memory. UNDEFINED in User mode.
pub(in crate::a32) fn rfe(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if cpu.mode() == Mode::User {
        return trap(cpu, op, rest, Trap::Undefined);
    }
    let base = reg(cpu, op.rn);
    let mut words = [0; 2];
    match cpu.load_words(base.wrapping_add((op.imm >> 32) as u32).into(), &mut words) {
        Ok(()) => {
            set(cpu, op.rn, moved(op, base));
            exception_return(cpu, rest, words[0], words[1])
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// The register that a word of MRC or MCR names.
fn register(word: u32) -> Mrc {
    let field = |low: u32, len: u32| (word >> low & ((1 << len) - 1)) as u8;
    Mrc { coproc: field(8, 4), opc1: field(21, 3), crn: field(16, 4), crm: field(0, 4), opc2: field(5, 3) }
}

/// The register that a word of MRRC or MCRR names.
fn register_pair(word: u32) -> Mrrc {
    let field = |low: u32| (word >> low & 15) as u8;
    Mrrc { coproc: field(8), opc1: field(4), crm: field(0) }
}

/// MRC: the word itself is in `imm`. It ends its block: [`Cpu::retired`] is then exact for the counters.
pub(in crate::a32) fn mrc(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match coprocessor::read(cpu, register(op.imm as u32)) {
        Ok(value) => {
            set(cpu, op.rd, value);
            synchronise(cpu, op, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// MCR.
pub(in crate::a32) fn mcr(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let before = cpu.pstate.daif;
    match coprocessor::write(cpu, register(op.imm as u32), reg(cpu, op.rn)) {
        Ok(()) => changed(cpu, op, rest, before),
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// MRRC: the low half to `rd`, the high half to `ra`.
pub(in crate::a32) fn mrrc(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match coprocessor::read64(cpu, register_pair(op.imm as u32)) {
        Ok(value) => {
            set(cpu, op.rd, value as u32);
            set(cpu, op.ra, (value >> 32) as u32);
            synchronise(cpu, op, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// MCRR: the low half in `rn`, the high half in `rm`.
pub(in crate::a32) fn mcrr(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let before = cpu.pstate.daif;
    let value = u64::from(reg(cpu, op.rm)) << 32 | u64::from(reg(cpu, op.rn));
    match coprocessor::write64(cpu, register_pair(op.imm as u32), value) {
        Ok(()) => changed(cpu, op, rest, before),
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// VMSR: the number of the register in `ra`.
pub(in crate::a32) fn vmsr(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match coprocessor::write_fp(cpu, op.ra, reg(cpu, op.rn)) {
        Ok(()) => synchronise(cpu, op, rest),
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// VMRS: the number of the register in `ra`.
pub(in crate::a32) fn vmrs(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match coprocessor::read_fp(cpu, op.ra) {
        Ok(value) => {
            set(cpu, op.rd, value);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// VMRS APSR_nzcv, FPSCR.
pub(in crate::a32) fn vmrs_flags(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match coprocessor::read_fp(cpu, 1) {
        Ok(value) => {
            cpu.pstate.nzcv = (value >> 28) as u8;
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}
