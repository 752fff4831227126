//! Lowering of integer data processing.

use super::{Insn, Lowered, sink, stack};
use crate::exec::alu::{self, NO_SHIFT, logic, unary};
use crate::op::{FUSES, Handler, Op};

/// ADD, ADDS, SUB, SUBS (immediate).
pub(super) fn add_sub_imm(insn: Insn) -> Lowered {
    // With bit 23 set it is ADDG, SUBG or unallocated, though the decoder's mask lets it through.
    if insn.bit(23) {
        return Lowered::Reserved;
    }
    let (sub, flags) = (insn.bit(30), insn.bit(29));
    let imm = u64::from(insn.field(10, 12)) << if insn.bit(22) { 12 } else { 0 };
    let rn = stack(insn.rn());
    if flags {
        let (run, then): (Handler, Handler) = match (insn.is_64(), sub) {
            (false, false) => (alu::adds_imm::<false, false>, alu::adds_imm_branch::<false, false>),
            (false, true) => (alu::adds_imm::<false, true>, alu::adds_imm_branch::<false, true>),
            (true, false) => (alu::adds_imm::<true, false>, alu::adds_imm_branch::<true, false>),
            (true, true) => (alu::adds_imm::<true, true>, alu::adds_imm_branch::<true, true>),
        };
        return Lowered::Op(Op { then, aux: FUSES, rn, imm: if sub { !imm } else { imm }, ..insn.op(run) });
    }
    let run = if insn.is_64() { alu::add_imm::<true> } else { alu::add_imm::<false> };
    let imm = if sub { imm.wrapping_neg() } else { imm };
    Lowered::Op(Op { rd: stack(insn.rd()), rn, imm, ..insn.op(run) })
}

/// The handler for `sf`, `op` (subtract) and `S` (flags).
fn add_sub<const SHIFT: u8>(insn: Insn) -> Handler {
    match (insn.is_64(), insn.bit(30), insn.bit(29)) {
        (false, false, false) => alu::add_shifted::<false, false, false, SHIFT>,
        (false, false, true) => alu::add_shifted::<false, false, true, SHIFT>,
        (false, true, false) => alu::add_shifted::<false, true, false, SHIFT>,
        (false, true, true) => alu::add_shifted::<false, true, true, SHIFT>,
        (true, false, false) => alu::add_shifted::<true, false, false, SHIFT>,
        (true, false, true) => alu::add_shifted::<true, false, true, SHIFT>,
        (true, true, false) => alu::add_shifted::<true, true, false, SHIFT>,
        (true, true, true) => alu::add_shifted::<true, true, true, SHIFT>,
    }
}

/// ADD, ADDS, SUB, SUBS (shifted register).
pub(super) fn add_sub_shifted(insn: Insn) -> Lowered {
    let amount = insn.field(10, 6) as u8;
    if !insn.is_64() && amount >= 32 {
        return Lowered::Reserved;
    }
    let run = match (insn.field(22, 2), amount) {
        (3, _) => return Lowered::Reserved,
        (_, 0) => add_sub::<NO_SHIFT>(insn),
        (0, _) => add_sub::<0>(insn),
        (1, _) => add_sub::<1>(insn),
        _ => add_sub::<2>(insn),
    };
    let op = Op { ra: amount, ..insn.op(run) };
    let compares = insn.bit(30) && insn.bit(29) && amount == 0;
    let then: Handler = if insn.is_64() { alu::subs_branch::<true> } else { alu::subs_branch::<false> };
    Lowered::Op(if compares { Op { then, aux: FUSES, ..op } } else { op })
}

/// ADD, ADDS, SUB, SUBS (extended register).
pub(super) fn add_sub_extended(insn: Insn) -> Lowered {
    let amount = insn.field(10, 3) as u8;
    if amount > 4 || insn.field(22, 2) != 0 {
        return Lowered::Reserved;
    }
    let flags = insn.bit(29);
    let run = match (insn.is_64(), insn.bit(30), flags) {
        (false, false, false) => alu::add_extended::<false, false, false>,
        (false, false, true) => alu::add_extended::<false, false, true>,
        (false, true, false) => alu::add_extended::<false, true, false>,
        (false, true, true) => alu::add_extended::<false, true, true>,
        (true, false, false) => alu::add_extended::<true, false, false>,
        (true, false, true) => alu::add_extended::<true, false, true>,
        (true, true, false) => alu::add_extended::<true, true, false>,
        (true, true, true) => alu::add_extended::<true, true, true>,
    };
    let rd = if flags { sink(insn.rd()) } else { stack(insn.rd()) };
    let aux = insn.field(13, 3) as u16;
    Lowered::Op(Op { rd, rn: stack(insn.rn()), ra: amount, aux, ..insn.op(run) })
}

/// ADC, ADCS, SBC, SBCS.
pub(super) fn add_sub_carry(insn: Insn) -> Lowered {
    Lowered::Op(insn.op(match (insn.is_64(), insn.bit(30), insn.bit(29)) {
        (false, false, false) => alu::add_carry::<false, false, false>,
        (false, false, true) => alu::add_carry::<false, false, true>,
        (false, true, false) => alu::add_carry::<false, true, false>,
        (false, true, true) => alu::add_carry::<false, true, true>,
        (true, false, false) => alu::add_carry::<true, false, false>,
        (true, false, true) => alu::add_carry::<true, false, true>,
        (true, true, false) => alu::add_carry::<true, true, false>,
        (true, true, true) => alu::add_carry::<true, true, true>,
    }))
}

/// `DecodeBitMasks` of the pseudocode for an immediate: `None` where it is reserved.
pub(super) fn bitmask_immediate(n: u32, imms: u32, immr: u32, is_64: bool) -> Option<u64> {
    let combined = n << 6 | (!imms & 0x3f);
    // The element is 2^len bits; len 0 is reserved, and a 32-bit operation has no 64-bit element.
    let len = combined.checked_ilog2()?;
    if len == 0 || (n == 1 && !is_64) {
        return None;
    }
    let size = 1_u32 << len;
    let levels = size - 1;
    let (ones, rotation) = (imms & levels, immr & levels);
    if ones == levels {
        return None;
    }
    let all = if size == 64 { u64::MAX } else { (1 << size) - 1 };
    let element = (1_u64 << (ones + 1)) - 1;
    let rotated = if rotation == 0 { element } else { (element >> rotation | element << (size - rotation)) & all };
    let mut mask = 0;
    for copy in 0..64 / size {
        mask |= rotated << (copy * size);
    }
    Some(if is_64 { mask } else { mask & 0xffff_ffff })
}

/// AND, ORR, EOR, ANDS (immediate).
pub(super) fn logic_imm(insn: Insn) -> Lowered {
    let x = insn.is_64();
    let Some(imm) = bitmask_immediate(insn.field(22, 1), insn.field(10, 6), insn.field(16, 6), x) else {
        return Lowered::Reserved;
    };
    let opc = insn.field(29, 2);
    let rd = if opc == 3 { sink(insn.rd()) } else { stack(insn.rd()) };
    let run: Handler = match (opc, x) {
        (1, _) if insn.rn() == 31 => alu::mov_imm,
        (0, false) => alu::logic_imm::<false, { logic::AND }, false>,
        (0, true) => alu::logic_imm::<true, { logic::AND }, false>,
        (1, false) => alu::logic_imm::<false, { logic::ORR }, false>,
        (1, true) => alu::logic_imm::<true, { logic::ORR }, false>,
        (2, false) => alu::logic_imm::<false, { logic::EOR }, false>,
        (2, true) => alu::logic_imm::<true, { logic::EOR }, false>,
        (_, false) => alu::logic_imm::<false, { logic::AND }, true>,
        (_, true) => alu::logic_imm::<true, { logic::AND }, true>,
    };
    Lowered::Op(Op { rd, imm, ..insn.op(run) })
}

/// The handler for `sf`, `opc` and `N`.
fn logic<const SHIFT: u8>(insn: Insn) -> Handler {
    match (insn.is_64(), insn.field(29, 2), insn.bit(21)) {
        (false, 0, false) => alu::logic_shifted::<false, { logic::AND }, false, SHIFT>,
        (false, 0, true) => alu::logic_shifted::<false, { logic::BIC }, false, SHIFT>,
        (false, 1, false) => alu::logic_shifted::<false, { logic::ORR }, false, SHIFT>,
        (false, 1, true) => alu::logic_shifted::<false, { logic::ORN }, false, SHIFT>,
        (false, 2, false) => alu::logic_shifted::<false, { logic::EOR }, false, SHIFT>,
        (false, 2, true) => alu::logic_shifted::<false, { logic::EON }, false, SHIFT>,
        (false, _, false) => alu::logic_shifted::<false, { logic::AND }, true, SHIFT>,
        (false, _, true) => alu::logic_shifted::<false, { logic::BIC }, true, SHIFT>,
        (true, 0, false) => alu::logic_shifted::<true, { logic::AND }, false, SHIFT>,
        (true, 0, true) => alu::logic_shifted::<true, { logic::BIC }, false, SHIFT>,
        (true, 1, false) => alu::logic_shifted::<true, { logic::ORR }, false, SHIFT>,
        (true, 1, true) => alu::logic_shifted::<true, { logic::ORN }, false, SHIFT>,
        (true, 2, false) => alu::logic_shifted::<true, { logic::EOR }, false, SHIFT>,
        (true, 2, true) => alu::logic_shifted::<true, { logic::EON }, false, SHIFT>,
        (true, _, false) => alu::logic_shifted::<true, { logic::AND }, true, SHIFT>,
        (true, _, true) => alu::logic_shifted::<true, { logic::BIC }, true, SHIFT>,
    }
}

/// The logical operations (shifted register).
pub(super) fn logic_shifted(insn: Insn) -> Lowered {
    let amount = insn.field(10, 6) as u8;
    if !insn.is_64() && amount >= 32 {
        return Lowered::Reserved;
    }
    let moves = insn.field(29, 2) == 1 && !insn.bit(21) && insn.rn() == 31;
    let run = match (insn.field(22, 2), amount) {
        (_, 0) if moves && insn.is_64() => alu::mov_reg::<true>,
        (_, 0) if moves => alu::mov_reg::<false>,
        (_, 0) => logic::<NO_SHIFT>(insn),
        (0, _) => logic::<0>(insn),
        (1, _) => logic::<1>(insn),
        (2, _) => logic::<2>(insn),
        _ => logic::<3>(insn),
    };
    Lowered::Op(Op { ra: amount, ..insn.op(run) })
}

/// MOVN, MOVZ, MOVK.
pub(super) fn move_wide(insn: Insn) -> Lowered {
    let x = insn.is_64();
    let shift = insn.field(21, 2) * 16;
    if !x && shift >= 32 {
        return Lowered::Reserved;
    }
    let value = u64::from(insn.field(5, 16)) << shift;
    let (run, imm): (Handler, u64) = match (insn.field(29, 2), x) {
        (0, true) => (alu::mov_imm, !value),
        (0, false) => (alu::mov_imm, alu::cut::<false>(!value)),
        (2, _) => (alu::mov_imm, value),
        (3, true) => (alu::movk::<true>, value),
        (3, false) => (alu::movk::<false>, value),
        _ => return Lowered::Reserved,
    };
    Lowered::Op(Op { imm, ra: shift as u8, ..insn.op(run) })
}

/// SBFM, BFM, UBFM.
pub(super) fn bitfield(insn: Insn) -> Lowered {
    let x = insn.is_64();
    let (r, s) = (insn.field(16, 6), insn.field(10, 6));
    if insn.bit(22) != x || (!x && (r | s) >= 32) {
        return Lowered::Reserved;
    }
    let width = if x { 64 } else { 32 };
    // The field ends up at the bottom (s >= r: bits s..=r) or r bits below the top (bits s..=0).
    let ones = |count: u32| u64::MAX >> (64 - count);
    let mask = if s >= r { ones(s - r + 1) } else { ones(s + 1) << (width - r) };
    let op = match (insn.field(29, 2), x) {
        (0, _) => {
            let up = width - 1 - s;
            let down = if s >= r { up + r } else { r - 1 - s };
            let run = if x { alu::sbfm::<true> } else { alu::sbfm::<false> };
            Op { ra: up as u8, aux: down as u16, ..insn.op(run) }
        }
        (1, true) => Op { ra: r as u8, imm: mask, ..insn.op(alu::bfm::<true>) },
        (1, false) => Op { ra: r as u8, imm: mask, ..insn.op(alu::bfm::<false>) },
        (2, true) => Op { ra: r as u8, imm: mask, ..insn.op(alu::ubfm::<true>) },
        (2, false) => Op { ra: r as u8, imm: mask, ..insn.op(alu::ubfm::<false>) },
        _ => return Lowered::Reserved,
    };
    Lowered::Op(op)
}

/// EXTR.
pub(super) fn extract(insn: Insn) -> Lowered {
    let x = insn.is_64();
    let lsb = insn.field(10, 6);
    if insn.bit(22) != x || (!x && lsb >= 32) {
        return Lowered::Reserved;
    }
    let run = if x { alu::extr::<true> } else { alu::extr::<false> };
    Lowered::Op(Op { ra: lsb as u8, ..insn.op(run) })
}

/// ADR, ADRP.
pub(super) fn pc_relative(insn: Insn) -> Lowered {
    let offset = insn.signed(5, 19) << 2 | i64::from(insn.field(29, 2));
    let imm = if insn.bit(31) { (insn.pc & !0xfff).wrapping_add((offset << 12) as u64) } else { insn.target(offset) };
    Lowered::Op(Op { imm, ..insn.op(alu::mov_imm) })
}

/// CSEL, CSINC, CSINV, CSNEG.
pub(super) fn conditional_select(insn: Insn) -> Lowered {
    let run = match (insn.is_64(), insn.bit(30), insn.bit(10)) {
        (false, false, false) => alu::csel::<false, false, false>,
        (false, false, true) => alu::csel::<false, false, true>,
        (false, true, false) => alu::csel::<false, true, false>,
        (false, true, true) => alu::csel::<false, true, true>,
        (true, false, false) => alu::csel::<true, false, false>,
        (true, false, true) => alu::csel::<true, false, true>,
        (true, true, false) => alu::csel::<true, true, false>,
        (true, true, true) => alu::csel::<true, true, true>,
    };
    Lowered::Op(Op { ra: insn.field(12, 4) as u8, ..insn.op(run) })
}

/// CCMN, CCMP.
pub(super) fn conditional_compare(insn: Insn) -> Lowered {
    let run = match (insn.is_64(), insn.bit(30), insn.bit(11)) {
        (false, false, false) => alu::ccmp::<false, false, false>,
        (false, false, true) => alu::ccmp::<false, false, true>,
        (false, true, false) => alu::ccmp::<false, true, false>,
        (false, true, true) => alu::ccmp::<false, true, true>,
        (true, false, false) => alu::ccmp::<true, false, false>,
        (true, false, true) => alu::ccmp::<true, false, true>,
        (true, true, false) => alu::ccmp::<true, true, false>,
        (true, true, true) => alu::ccmp::<true, true, true>,
    };
    let imm = u64::from(insn.rm());
    Lowered::Op(Op { ra: insn.field(12, 4) as u8, aux: insn.field(0, 4) as u16, imm, ..insn.op(run) })
}

/// RBIT, REV16, REV32, REV, CLZ, CLS.
pub(super) fn one_source(insn: Insn) -> Lowered {
    Lowered::Op(insn.op(match (insn.field(10, 6), insn.is_64()) {
        (0, false) => alu::one_source::<false, { unary::RBIT }>,
        (0, true) => alu::one_source::<true, { unary::RBIT }>,
        (1, false) => alu::one_source::<false, { unary::REV16 }>,
        (1, true) => alu::one_source::<true, { unary::REV16 }>,
        (2, false) => alu::one_source::<false, { unary::REV32 }>,
        (2, true) => alu::one_source::<true, { unary::REV32 }>,
        (3, true) => alu::one_source::<true, { unary::REV64 }>,
        (4, false) => alu::one_source::<false, { unary::CLZ }>,
        (4, true) => alu::one_source::<true, { unary::CLZ }>,
        (5, false) => alu::one_source::<false, { unary::CLS }>,
        (5, true) => alu::one_source::<true, { unary::CLS }>,
        _ => return Lowered::Reserved,
    }))
}

/// UDIV, SDIV, LSLV, LSRV, ASRV, RORV.
pub(super) fn two_sources(insn: Insn) -> Lowered {
    Lowered::Op(insn.op(match (insn.field(10, 6), insn.is_64()) {
        (2, false) => alu::div::<false, false>,
        (2, true) => alu::div::<true, false>,
        (3, false) => alu::div::<false, true>,
        (3, true) => alu::div::<true, true>,
        (8, false) => alu::shift_var::<false, 0>,
        (8, true) => alu::shift_var::<true, 0>,
        (9, false) => alu::shift_var::<false, 1>,
        (9, true) => alu::shift_var::<true, 1>,
        (10, false) => alu::shift_var::<false, 2>,
        (10, true) => alu::shift_var::<true, 2>,
        (11, false) => alu::shift_var::<false, 3>,
        (11, true) => alu::shift_var::<true, 3>,
        _ => return Lowered::Reserved,
    }))
}

/// CRC32 and CRC32C: the doubleword forms, and only they, have `sf`.
pub(super) fn crc32(insn: Insn) -> Lowered {
    let size = insn.field(10, 2);
    if (size == 3) != insn.is_64() {
        return Lowered::Reserved;
    }
    Lowered::Op(insn.op(match (insn.bit(12), size) {
        (false, 0) => alu::crc32::<false, 1>,
        (false, 1) => alu::crc32::<false, 2>,
        (false, 2) => alu::crc32::<false, 4>,
        (false, _) => alu::crc32::<false, 8>,
        (true, 0) => alu::crc32::<true, 1>,
        (true, 1) => alu::crc32::<true, 2>,
        (true, 2) => alu::crc32::<true, 4>,
        (true, _) => alu::crc32::<true, 8>,
    }))
}

/// MADD, MSUB and the widening multiplications.
pub(super) fn three_sources(insn: Insn) -> Lowered {
    let run: Handler = match (insn.is_64(), insn.field(21, 3), insn.bit(15)) {
        (false, 0, false) => alu::madd::<false, false>,
        (false, 0, true) => alu::madd::<false, true>,
        (true, 0, false) => alu::madd::<true, false>,
        (true, 0, true) => alu::madd::<true, true>,
        (true, 1, false) => alu::maddl::<true, false>,
        (true, 1, true) => alu::maddl::<true, true>,
        (true, 2, false) => alu::mulh::<true>,
        (true, 5, false) => alu::maddl::<false, false>,
        (true, 5, true) => alu::maddl::<false, true>,
        (true, 6, false) => alu::mulh::<false>,
        _ => return Lowered::Reserved,
    };
    Lowered::Op(Op { ra: insn.ra(), ..insn.op(run) })
}
