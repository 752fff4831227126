//! Lowering of branches, exceptions, status and coprocessor registers, hints and barriers.

use super::{ALWAYS, Insn, Lowered, source};
use crate::a32::exec::block::{FALLS, RISES, STAYS};
use crate::a32::exec::{alu, system as run};
use crate::cpu::REG_ZERO;
use crate::exec::{atomic, branch, loadstore, system as shared, trap};
use crate::op::{CONDITIONAL, Handler, Op};

/// B and BL.
pub(in crate::a32) fn branch(insn: Insn) -> Lowered {
    let offset = ((insn.word << 8) as i32 >> 6) as u32;
    let imm = u64::from(insn.pc_read().wrapping_add(offset));
    let cond = insn.cond();
    if insn.bit(24) {
        return Lowered::Last(Op { imm, ..insn.op(run::bl) });
    }
    if cond == ALWAYS {
        return Lowered::Last(Op { imm, ..insn.op(branch::b) });
    }
    let run: Handler = match cond {
        0 => branch::b_cond::<0>,
        1 => branch::b_cond::<1>,
        2 => branch::b_cond::<2>,
        3 => branch::b_cond::<3>,
        4 => branch::b_cond::<4>,
        5 => branch::b_cond::<5>,
        6 => branch::b_cond::<6>,
        7 => branch::b_cond::<7>,
        8 => branch::b_cond::<8>,
        9 => branch::b_cond::<9>,
        10 => branch::b_cond::<10>,
        11 => branch::b_cond::<11>,
        12 => branch::b_cond::<12>,
        _ => branch::b_cond::<13>,
    };
    Lowered::Conditional(Op { imm, ra: cond as u8, aux: CONDITIONAL, ..insn.op(run) })
}

/// BX, and BXJ, which without Jazelle is BX.
pub(in crate::a32) fn bx(insn: Insn) -> Lowered {
    // BXJ of R15 is UNPREDICTABLE.
    if insn.bit(5) && insn.uses_pc(&[0]) {
        return Lowered::Reserved;
    }
    Lowered::Last(Op { rm: source(insn.reg(0)), ..insn.op(run::bx::<false>) })
}

/// BLX (register).
pub(in crate::a32) fn blx(insn: Insn) -> Lowered {
    if insn.uses_pc(&[0]) {
        return Lowered::Reserved;
    }
    Lowered::Last(Op { rm: insn.reg(0), ..insn.op(run::bx::<true>) })
}

/// SVC: the syndrome holds 16 bits of the number.
pub(in crate::a32) fn svc(insn: Insn) -> Lowered {
    Lowered::Last(Op { imm: u64::from(insn.field(0, 16)), ..insn.op(trap::svc) })
}

fn imm16(insn: Insn) -> u64 {
    u64::from(insn.field(8, 12) << 4 | insn.field(0, 4))
}

/// BKPT.
pub(in crate::a32) fn bkpt(insn: Insn) -> Lowered {
    if insn.cond() != ALWAYS {
        return Lowered::Reserved;
    }
    Lowered::Last(Op { imm: imm16(insn), ..insn.op(trap::brk) })
}

/// HVC.
pub(in crate::a32) fn hvc(insn: Insn) -> Lowered {
    if insn.cond() != ALWAYS {
        return Lowered::Reserved;
    }
    Lowered::Last(Op { imm: imm16(insn), ..insn.op(trap::hvc) })
}

/// The hint space: what is not YIELD, WFE, WFI, SEV or SEVL does nothing, as every hint may.
pub(in crate::a32) fn hint(insn: Insn) -> Lowered {
    match insn.field(0, 8) {
        2 => Lowered::Last(insn.op(shared::wfe)),
        3 => Lowered::Last(insn.op(shared::wfi)),
        4 => Lowered::Op(insn.op(shared::sev)),
        5 => Lowered::Op(insn.op(shared::sevl)),
        _ => Lowered::Op(insn.op(loadstore::nothing)),
    }
}

/// PLD, PLDW, PLI.
pub(in crate::a32) fn prefetch(insn: Insn) -> Lowered {
    Lowered::Op(insn.op(loadstore::nothing))
}

/// CLREX.
pub(in crate::a32) fn clear_exclusive(insn: Insn) -> Lowered {
    Lowered::Op(insn.op(atomic::clear_exclusive))
}

/// DMB and DSB.
pub(in crate::a32) fn barrier(insn: Insn) -> Lowered {
    Lowered::Op(insn.op(shared::barrier))
}

/// ISB.
pub(in crate::a32) fn isb(insn: Insn) -> Lowered {
    Lowered::Last(insn.op(trap::synchronise))
}

/// The bits of a PSR that the field mask in 19:16 selects: c, x, s, f.
fn psr_mask(insn: Insn) -> u32 {
    (0..4).filter(|byte| insn.bit(16 + byte)).fold(0, |mask, byte| mask | 0xff << (8 * byte))
}

/// MSR of `op`'s operand: the mask in the low half of `imm`.
fn msr(insn: Insn, op: Op, immediate: Option<u32>) -> Lowered {
    let (spsr, mask) = (insn.bit(22), psr_mask(insn));
    if mask == 0 {
        return Lowered::Reserved;
    }
    let run: Handler = match (spsr, immediate.is_some()) {
        (false, false) => run::write_cpsr::<false>,
        (false, true) => run::write_cpsr::<true>,
        (true, false) => run::write_spsr::<false>,
        (true, true) => run::write_spsr::<true>,
    };
    let imm = u64::from(immediate.unwrap_or(0)) << 32 | u64::from(mask);
    let op = Op { run, imm, ..op };
    // Flags alone are an ordinary result.
    if !spsr && mask & 0xffff == 0 { Lowered::Op(op) } else { Lowered::Last(op) }
}

/// MSR (immediate).
pub(in crate::a32) fn msr_immediate(insn: Insn) -> Lowered {
    let value = insn.field(0, 8).rotate_right(2 * insn.field(8, 4));
    msr(insn, insn.op(alu::nothing), Some(value))
}

/// MSR (register).
pub(in crate::a32) fn msr_register(insn: Insn) -> Lowered {
    if insn.uses_pc(&[0]) {
        return Lowered::Reserved;
    }
    msr(insn, Op { rn: insn.reg(0), ..insn.op(alu::nothing) }, None)
}

/// MRS.
pub(in crate::a32) fn mrs(insn: Insn) -> Lowered {
    if insn.uses_pc(&[12]) {
        return Lowered::Reserved;
    }
    let run: Handler = if insn.bit(22) { run::read_spsr } else { run::read_cpsr };
    Lowered::Op(Op { rd: insn.reg(12), ..insn.op(run) })
}

/// `R:SYSm`, which names a banked register.
fn banked(insn: Insn) -> u16 {
    (insn.field(22, 1) << 5 | insn.field(8, 1) << 4 | insn.field(16, 4)) as u16
}

/// MRS (banked register).
pub(in crate::a32) fn mrs_banked(insn: Insn) -> Lowered {
    if insn.uses_pc(&[12]) {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { rd: insn.reg(12), aux: banked(insn), ..insn.op(run::read_banked) })
}

/// MSR (banked register).
pub(in crate::a32) fn msr_banked(insn: Insn) -> Lowered {
    if insn.uses_pc(&[0]) {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { rn: insn.reg(0), aux: banked(insn), ..insn.op(run::write_banked) })
}

/// CPS: the bits to change in the low half of `imm`, their values in the high half.
pub(in crate::a32) fn cps(insn: Insn) -> Lowered {
    let (change, mode_too) = (insn.field(18, 2), insn.bit(17));
    let masks = insn.field(6, 3) << 6;
    let consistent = match change {
        0 => mode_too && masks == 0,
        1 => false,
        _ => masks != 0,
    };
    if !consistent || !mode_too && insn.field(0, 5) != 0 {
        return Lowered::Reserved;
    }
    let mask = masks | if mode_too { 0x1f } else { 0 };
    let value = if change == 3 { masks } else { 0 } | insn.field(0, 5);
    Lowered::Last(Op { imm: u64::from(value) << 32 | u64::from(mask), ..insn.op(run::cps) })
}

/// How RFE and SRS address two words: the offset of the lower in the high half of `imm`, writeback in `aux`.
fn two_words(insn: Insn, run: Handler) -> Op {
    let (before, up, write_back) = (insn.bit(24), insn.bit(23), insn.bit(21));
    let offset: i32 = match (before, up) {
        (false, true) => 0,
        (true, true) => 4,
        (false, false) => -4,
        (true, false) => -8,
    };
    let moved = match (write_back, up) {
        (false, _) => STAYS,
        (true, true) => RISES,
        (true, false) => FALLS,
    };
    Op { imm: u64::from(offset as u32) << 32, aux: moved, ..insn.op(run) }
}

/// SRS: the mode whose stack it is in `ra`.
pub(in crate::a32) fn srs(insn: Insn) -> Lowered {
    Lowered::Op(Op { ra: insn.field(0, 5) as u8, ..two_words(insn, run::srs) })
}

/// RFE.
pub(in crate::a32) fn rfe(insn: Insn) -> Lowered {
    if insn.uses_pc(&[16]) {
        return Lowered::Reserved;
    }
    Lowered::Last(Op { rn: insn.reg(16), ..two_words(insn, run::rfe) })
}

/// MCR and MRC: the word itself in `imm`, as it names the register. Only CP14 and CP15 exist.
pub(in crate::a32) fn transfer(insn: Insn) -> Lowered {
    let read = insn.bit(20);
    // A destination of 15 is APSR_nzcv, which only debug registers have a use for.
    if insn.reg(8) < 14 || insn.uses_pc(&[12]) {
        return Lowered::Reserved;
    }
    let rt = insn.reg(12);
    let imm = u64::from(insn.word);
    Lowered::Last(if read { Op { rd: rt, imm, ..insn.op(run::mrc) } } else { Op { rn: rt, imm, ..insn.op(run::mcr) } })
}

/// MCRR and MRRC.
pub(in crate::a32) fn transfer_two(insn: Insn) -> Lowered {
    let (rt, rt2, read) = (insn.reg(12), insn.reg(16), insn.bit(20));
    if insn.reg(8) < 14 || insn.uses_pc(&[12, 16]) || read && rt == rt2 {
        return Lowered::Reserved;
    }
    let imm = u64::from(insn.word);
    Lowered::Last(if read {
        Op { rd: rt, ra: rt2, rn: REG_ZERO, imm, ..insn.op(run::mrrc) }
    } else {
        Op { rn: rt, rm: rt2, imm, ..insn.op(run::mcrr) }
    })
}

/// VMSR and VMRS are system registers too, but of the coprocessor of Advanced SIMD.
pub(in crate::a32) fn vmsr(insn: Insn) -> Lowered {
    if insn.uses_pc(&[12]) {
        return Lowered::Reserved;
    }
    Lowered::Last(Op { rn: insn.reg(12), ra: insn.reg(16), ..insn.op(run::vmsr) })
}

/// VMRS: of FPSCR to R15 are its flags to the processor's.
pub(in crate::a32) fn vmrs(insn: Insn) -> Lowered {
    let (rt, register) = (insn.reg(12), insn.reg(16));
    match rt {
        15 if register == 1 => Lowered::Op(insn.op(run::vmrs_flags)),
        15 => Lowered::Reserved,
        _ => Lowered::Op(Op { rd: rt, ra: register, ..insn.op(run::vmrs) }),
    }
}
