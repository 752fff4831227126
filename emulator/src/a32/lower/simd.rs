//! Lowering of what VFP and Advanced SIMD have for moving bits: loads, stores, moves, bitwise operations, integer additions.
//!
//! Doublewords are numbered 0 to 31, and lie two in a register of `Cpu::v`; a quadword is named by its first doubleword, which
//! must be even. Floating-point arithmetic is not modelled: no code for this machine computes with it.

use super::{Insn, Lowered, source};
use crate::a32::exec::simd::{self as run, ASIDE, NO_INDEX, bitwise as logic, with};
use crate::cpu::REG_ZERO;
use crate::exec::fp::expand_immediate;
use crate::op::{Handler, Op};

/// The doubleword whose number's top bit is at `top` and the rest at `low`.
fn double(insn: Insn, top: u32, low: u32) -> u8 {
    (insn.field(top, 1) << 4 | insn.field(low, 4)) as u8
}

/// The singleword whose number's lowest bit is at `bottom` and the rest at `high`.
fn single_number(insn: Insn, high: u32, bottom: u32) -> u8 {
    (insn.field(high, 4) << 1 | insn.field(bottom, 1)) as u8
}

/// VLDR and VSTR.
pub(in crate::a32) fn single(insn: Insn) -> Lowered {
    let (wide, load, up) = (insn.bit(8), insn.bit(20), insn.bit(23));
    let offset = insn.field(0, 8) * 4;
    let signed = if up { offset } else { offset.wrapping_neg() };
    let first = if wide { double(insn, 22, 12) * 2 } else { single_number(insn, 12, 22) };
    let words = if wide { 2 } else { 1 };
    let run: Handler = if load { run::load_words } else { run::store_words };
    let literal = insn.reg(16) == 15;
    let (rn, offset) =
        if literal { (REG_ZERO, (insn.pc_read() & !3).wrapping_add(signed)) } else { (insn.reg(16), signed) };
    Lowered::Op(Op { rd: first, rn, ra: words, imm: u64::from(offset) << 32, ..insn.op(run) })
}

/// VLDM and VSTM: the offset of the lowest address in the high half of `imm`, what the base gains in the low half.
pub(in crate::a32) fn multiple(insn: Insn) -> Lowered {
    let (before, up, write_back, load) = (insn.bit(24), insn.bit(23), insn.bit(21), insn.bit(20));
    let wide = insn.bit(8);
    // An odd number of words in doublewords is FLDMX: the last word is skipped.
    let words = if wide { insn.field(0, 8) & !1 } else { insn.field(0, 8) };
    let first = if wide { double(insn, 22, 12) * 2 } else { single_number(insn, 12, 22) };
    let last = u32::from(first) + words;
    let addressed = matches!((before, up, write_back), (false, true, _) | (true, false, true));
    let exists = if wide { words <= 32 && last <= 64 } else { last <= 32 };
    if !addressed || words == 0 || !exists || insn.reg(16) == 15 && write_back {
        return Lowered::Reserved;
    }
    let len = 4 * insn.field(0, 8);
    let (offset, gain) = match (up, write_back) {
        (true, false) => (0, 0),
        (true, true) => (0, len),
        (false, _) => (len.wrapping_neg(), len.wrapping_neg()),
    };
    let run: Handler = if load { run::load_words } else { run::store_words };
    let imm = u64::from(offset) << 32 | u64::from(gain);
    Lowered::Op(Op { rd: first, rn: source(insn.reg(16)), ra: words as u8, imm, ..insn.op(run) })
}

/// VLD1 and VST1 of whole registers.
pub(in crate::a32) fn structures(insn: Insn) -> Lowered {
    let (count, align) = match (insn.field(8, 4), insn.field(4, 2)) {
        (0b0111, align @ 0..=1) => (1, align),
        (0b1010, align @ 0..=2) => (2, align),
        (0b0110, align @ 0..=1) => (3, align),
        (0b0010, align) => (4, align),
        _ => return Lowered::Reserved,
    };
    let first = double(insn, 22, 12);
    if first + count > 32 {
        return Lowered::Reserved;
    }
    let run: Handler = if insn.bit(21) { run::load_structures } else { run::store_structures };
    let align_shift = if align == 0 { 0 } else { 2 + align };
    structure(insn, Op { rd: first, ra: count, aux: with::pack(insn.field(6, 2), align_shift, 0), ..insn.op(run) })
}

/// VLD1 and VST1 of one lane.
pub(in crate::a32) fn one_lane(insn: Insn) -> Lowered {
    let (size, position) = (insn.field(10, 2), insn.field(4, 4));
    let (index, align_shift) = match (size, position) {
        (0, _) if position & 1 == 0 => (position >> 1, 0),
        (1, _) if position & 2 == 0 => (position >> 2, position & 1),
        (2, _) if position & 7 == 0 => (position >> 3, 0),
        (2, _) if position & 7 == 3 => (position >> 3, 2),
        _ => return Lowered::Reserved,
    };
    let run: Handler = if insn.bit(21) { run::load_lane } else { run::store_lane };
    let rd = double(insn, 22, 12);
    structure(insn, Op { rd, ra: index as u8, aux: with::pack(size, align_shift, 0), ..insn.op(run) })
}

/// VLD1 to all lanes of one or two registers.
pub(in crate::a32) fn all_lanes(insn: Insn) -> Lowered {
    let (size, aligned) = (insn.field(6, 2), insn.bit(4));
    let (first, count) = (double(insn, 22, 12), 1 + insn.field(5, 1) as u8);
    if size == 3 || size == 0 && aligned || first + count > 32 {
        return Lowered::Reserved;
    }
    let align_shift = if aligned { size } else { 0 };
    structure(insn, Op { rd: first, ra: count, aux: with::pack(size, align_shift, 0), ..insn.op(run::load_all_lanes) })
}

/// The base, and what it gains: nothing (Rm 15), the bytes accessed (13), or a register.
fn structure(insn: Insn, op: Op) -> Lowered {
    if insn.uses_pc(&[16]) {
        return Lowered::Reserved;
    }
    let rm = match insn.reg(0) {
        15 => NO_INDEX,
        13 => ASIDE,
        register => register,
    };
    Lowered::Op(Op { rn: insn.reg(16), rm, ..op })
}

/// VMOV between a general-purpose register and a singleword.
pub(in crate::a32) fn move_single(insn: Insn) -> Lowered {
    if insn.uses_pc(&[12]) {
        return Lowered::Reserved;
    }
    let number = single_number(insn, 16, 7);
    scalar(insn, number / 2, 2, number & 1, insn.bit(20), false)
}

/// VMOV between two general-purpose registers and two singlewords.
pub(in crate::a32) fn move_two_singles(insn: Insn) -> Lowered {
    let number = single_number(insn, 0, 5);
    if number == 31 { Lowered::Reserved } else { move_two_words(insn, number) }
}

/// VMOV between two general-purpose registers and a doubleword.
pub(in crate::a32) fn move_double(insn: Insn) -> Lowered {
    move_two_words(insn, double(insn, 5, 0) * 2)
}

/// The number of the first word goes to `rm`.
fn move_two_words(insn: Insn, first: u8) -> Lowered {
    let (rt, rt2, to_general) = (insn.reg(12), insn.reg(16), insn.bit(20));
    if insn.uses_pc(&[12, 16]) || to_general && rt == rt2 {
        return Lowered::Reserved;
    }
    let run: Handler = if to_general { run::two_words_to_general } else { run::two_words_from_general };
    Lowered::Op(Op { rd: rt, ra: rt2, rm: first, ..insn.op(run) })
}

/// A move between the general-purpose register at 15:12 and element `index`, of `8 << size` bits, of a doubleword.
fn scalar(insn: Insn, double: u8, size: u32, index: u8, to_general: bool, signed: bool) -> Lowered {
    let run: Handler = if to_general { run::scalar_to_general } else { run::general_to_scalar };
    let aux = with::pack(size, 0, u32::from(signed));
    Lowered::Op(Op { rd: insn.reg(12), rm: double, ra: index, aux, ..insn.op(run) })
}

/// The element that `opc1:opc2` names: log2 of its bytes, and its index.
fn element(insn: Insn) -> Option<(u32, u8)> {
    let opcode = insn.field(21, 2) << 2 | insn.field(5, 2);
    let (size, index) = match opcode {
        0b1000..=0b1111 => (0, opcode & 7),
        _ if opcode & 1 != 0 => (1, opcode >> 1 & 3),
        _ if opcode & 3 == 0 => (2, opcode >> 2 & 1),
        _ => return None,
    };
    Some((size, index as u8))
}

/// VMOV from a general-purpose register to a scalar.
pub(in crate::a32) fn general_to_scalar(insn: Insn) -> Lowered {
    match element(insn) {
        Some((size, index)) if !insn.uses_pc(&[12]) => scalar(insn, double(insn, 7, 16), size, index, false, false),
        _ => Lowered::Reserved,
    }
}

/// VMOV from a scalar to a general-purpose register.
pub(in crate::a32) fn scalar_to_general(insn: Insn) -> Lowered {
    let unsigned = insn.bit(23);
    match element(insn) {
        Some((2, _)) if unsigned => Lowered::Reserved,
        Some((size, index)) if !insn.uses_pc(&[12]) => scalar(insn, double(insn, 7, 16), size, index, true, !unsigned),
        _ => Lowered::Reserved,
    }
}

/// Marks an op on quadwords in `aux`; `None` if one of its registers is odd.
fn quad(insn: Insn, op: Op, registers: &[u8]) -> Option<Op> {
    let quad = insn.bit(6);
    let odd = registers.iter().any(|&register| register & 1 != 0);
    (!(quad && odd)).then_some(Op { aux: op.aux | if quad { with::QUAD } else { 0 }, ..op })
}

fn reserved_if_none(op: Option<Op>) -> Lowered {
    op.map_or(Lowered::Reserved, Lowered::Op)
}

/// The three doublewords of most operations.
fn three(insn: Insn, run: Handler, ra: u8) -> Lowered {
    let (rd, rn, rm) = (double(insn, 22, 12), double(insn, 7, 16), double(insn, 5, 0));
    reserved_if_none(quad(insn, Op { rd, rn, rm, ra, ..insn.op(run) }, &[rd, rn, rm]))
}

/// VAND, VBIC, VORR, VORN, VEOR, VBSL, VBIT, VBIF.
pub(in crate::a32) fn bitwise(insn: Insn) -> Lowered {
    let run: Handler = match (insn.bit(24), insn.field(20, 2)) {
        (false, 0) => run::bitwise::<{ logic::AND }>,
        (false, 1) => run::bitwise::<{ logic::BIC }>,
        (false, 2) => run::bitwise::<{ logic::ORR }>,
        (false, _) => run::bitwise::<{ logic::ORN }>,
        (true, 0) => run::bitwise::<{ logic::EOR }>,
        (true, 1) => run::bitwise::<{ logic::BSL }>,
        (true, 2) => run::bitwise::<{ logic::BIT }>,
        (true, _) => run::bitwise::<{ logic::BIF }>,
    };
    three(insn, run, 0)
}

/// VADD and VSUB of integers: the size in `ra`.
pub(in crate::a32) fn add(insn: Insn) -> Lowered {
    let run: Handler = if insn.bit(24) { run::add::<true> } else { run::add::<false> };
    three(insn, run, insn.field(20, 2) as u8)
}

/// `AdvSIMDExpandImm` of the pseudocode, for one doubleword.
fn expanded(cmode: u32, op: bool, imm8: u64) -> u64 {
    let words = |value: u64| value << 32 | value;
    match cmode >> 1 {
        place @ 0..=3 => words(imm8 << (8 * place)),
        place @ 4..=5 => (imm8 << (8 * (place - 4))) * 0x0001_0001_0001_0001,
        6 if cmode & 1 == 0 => words(imm8 << 8 | 0xff),
        6 => words(imm8 << 16 | 0xffff),
        _ if cmode & 1 != 0 => words(expand_immediate(imm8 as u32, 32)),
        _ if op => (0..8).filter(|bit| imm8 >> bit & 1 != 0).fold(0, |value, bit| value | 0xff << (8 * bit)),
        _ => imm8 * 0x0101_0101_0101_0101,
    }
}

/// VMOV, VMVN, VORR and VBIC of an immediate.
pub(in crate::a32) fn modified_immediate(insn: Insn) -> Lowered {
    let (cmode, op) = (insn.field(8, 4), insn.bit(5));
    let imm8 = insn.field(24, 1) << 7 | insn.field(16, 3) << 4 | insn.field(0, 4);
    if cmode == 15 && op {
        return Lowered::Reserved;
    }
    let value = expanded(cmode, op, imm8.into());
    let combines = cmode & 1 != 0 && cmode < 12;
    let (run, imm): (Handler, u64) = match (combines, op) {
        (false, true) if cmode < 14 => (run::set_immediate, !value),
        (false, _) => (run::set_immediate, value),
        (true, false) => (run::or_immediate, value),
        (true, true) => (run::clear_immediate, value),
    };
    let rd = double(insn, 22, 12);
    reserved_if_none(quad(insn, Op { rd, imm, ..insn.op(run) }, &[rd]))
}

/// VDUP of a scalar: log2 of the element's bytes and its index as the lowest set bit of the immediate says.
pub(in crate::a32) fn duplicate_scalar(insn: Insn) -> Lowered {
    let imm4 = insn.field(16, 4);
    let size = imm4.trailing_zeros();
    if size > 2 {
        return Lowered::Reserved;
    }
    let (rd, rm) = (double(insn, 22, 12), double(insn, 5, 0));
    let index = (imm4 >> (size + 1)) as u8;
    let op = Op { rd, rm, ra: index, aux: with::pack(size, 0, 0), ..insn.op(run::duplicate_scalar) };
    reserved_if_none(quad(insn, op, &[rd]))
}

/// VDUP of a general-purpose register.
pub(in crate::a32) fn duplicate_general(insn: Insn) -> Lowered {
    let size = match (insn.bit(22), insn.bit(5)) {
        (false, false) => 2,
        (false, true) => 1,
        (true, false) => 0,
        (true, true) => return Lowered::Reserved,
    };
    let (rd, quad) = (double(insn, 7, 16), insn.bit(21));
    if insn.uses_pc(&[12]) || quad && rd & 1 != 0 {
        return Lowered::Reserved;
    }
    let aux = with::pack(size, 0, 0) | if quad { with::QUAD } else { 0 };
    Lowered::Op(Op { rd, rn: insn.reg(12), aux, ..insn.op(run::duplicate_general) })
}

/// VMOV of a floating-point immediate.
pub(in crate::a32) fn float_immediate(insn: Insn) -> Lowered {
    let imm8 = insn.field(16, 4) << 4 | insn.field(0, 4);
    Lowered::Op(if insn.bit(8) {
        Op { rd: double(insn, 22, 12), imm: expand_immediate(imm8, 64), ..insn.op(run::set_immediate) }
    } else {
        let rd = single_number(insn, 12, 22);
        Op { rd, imm: expand_immediate(imm8, 32), ..insn.op(run::set_word_immediate) }
    })
}

/// VMOV, VABS and VNEG of floating-point registers: the bits to clear and to invert in the halves of `imm`, for the top word.
pub(in crate::a32) fn float_move(insn: Insn) -> Lowered {
    let sign = 1_u64 << 31;
    let imm = match (insn.bit(16), insn.bit(7)) {
        (false, true) => sign << 32,
        (true, _) => sign,
        (false, false) => 0,
    };
    Lowered::Op(if insn.bit(8) {
        Op { rd: double(insn, 22, 12), rm: double(insn, 5, 0), imm, ..insn.op(run::float_move::<true>) }
    } else {
        let (rd, rm) = (single_number(insn, 12, 22), single_number(insn, 0, 5));
        Op { rd, rm, imm, ..insn.op(run::float_move::<false>) }
    })
}
