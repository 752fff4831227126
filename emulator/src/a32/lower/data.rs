//! Lowering of data processing, MOVW, MOVT and CRC32.

use super::{ALWAYS, Insn, Lowered, destination, source};
use crate::a32::exec::alu::{self, kind, operand};
use crate::a32::exec::guard::RETURNS;
use crate::cpu::{REG_SINK, REG_ZERO};
use crate::exec::alu as shared;
use crate::op::{FUSES, Handler, Op};

/// `A32ExpandImm` of the pseudocode: the value, and whether it was rotated, so that its top bit is the carry.
fn expanded(insn: Insn) -> (u32, bool) {
    let rotation = 2 * insn.field(8, 4);
    (insn.field(0, 8).rotate_right(rotation), rotation != 0)
}

/// The operation, its first source and its destination: comparisons have none, moves have no first source.
fn processing(insn: Insn, operand: u8, op: Op) -> Lowered {
    let opcode = insn.field(21, 4) as u8;
    let compares = opcode & 0b1100 == 0b1000;
    let sets_flags = insn.bit(20);
    let moves = matches!(opcode, kind::MOV | kind::MVN);
    let op = Op {
        run: alu::handler(opcode, sets_flags, operand),
        rd: if compares { REG_SINK } else { destination(insn.reg(12)) },
        rn: if moves { REG_ZERO } else { source(insn.reg(16)) },
        ..op
    };
    if sets_flags && !compares && insn.reg(12) == 15 {
        // SUBS PC, LR and its kin: an exception return, which sets the flags from SPSR.
        return Lowered::Last(Op { run: alu::handler(opcode, false, operand), aux: op.aux | RETURNS, ..op });
    }
    Lowered::Op(fusible(insn, operand, op))
}

/// An addition or subtraction that sets flags, and has no condition, in the form that executes a branch behind it too.
fn fusible(insn: Insn, kind_of_operand: u8, op: Op) -> Op {
    let sub = match insn.field(21, 4) as u8 {
        kind::SUB | kind::CMP => true,
        kind::ADD | kind::CMN => false,
        _ => return op,
    };
    if !insn.bit(20) || insn.cond() != ALWAYS || insn.reg(12) == 15 || insn.reg(16) == 15 {
        return op;
    }
    match (kind_of_operand, sub) {
        (operand::IMMEDIATE, true) => Op {
            run: shared::adds_imm::<false, true>,
            then: shared::adds_imm_branch::<false, true>,
            imm: u64::from(!(op.imm as u32)),
            aux: FUSES,
            ..op
        },
        (operand::IMMEDIATE, false) => Op {
            run: shared::adds_imm::<false, false>,
            then: shared::adds_imm_branch::<false, false>,
            aux: FUSES,
            ..op
        },
        (operand::REGISTER, true) if insn.reg(0) != 15 => Op { then: shared::subs_branch::<false>, aux: FUSES, ..op },
        _ => op,
    }
}

/// Data processing with an immediate.
pub(in crate::a32) fn immediate(insn: Insn) -> Lowered {
    let (value, rotated) = expanded(insn);
    let op = Op { imm: u64::from(value), aux: u16::from(rotated), ..insn.op(alu::nothing) };
    processing(insn, operand::IMMEDIATE, op)
}

/// Data processing with a register, shifted by an immediate.
pub(in crate::a32) fn register(insn: Insn) -> Lowered {
    let (operand, amount) = shift(insn.field(5, 2), insn.field(7, 5));
    processing(insn, operand, Op { rm: source(insn.reg(0)), ra: amount, ..insn.op(alu::nothing) })
}

/// `DecodeImmShift` of the pseudocode.
pub(super) fn shift(kind: u32, amount: u32) -> (u8, u8) {
    match (kind, amount) {
        (0, 0) => (operand::REGISTER, 0),
        (0, _) => (operand::LSL, amount as u8),
        (1, 0) => (operand::LSR, 32),
        (1, _) => (operand::LSR, amount as u8),
        (2, 0) => (operand::ASR, 32),
        (2, _) => (operand::ASR, amount as u8),
        (_, 0) => (operand::RRX, 1),
        (_, _) => (operand::ROR, amount as u8),
    }
}

/// Data processing with a register, shifted by a register.
pub(in crate::a32) fn register_shifted(insn: Insn) -> Lowered {
    let opcode = insn.field(21, 4) as u8;
    let compares = opcode & 0b1100 == 0b1000;
    let moves = matches!(opcode, kind::MOV | kind::MVN);
    if insn.uses_pc(&[0, 8]) || !moves && insn.uses_pc(&[16]) || !compares && insn.uses_pc(&[12]) {
        return Lowered::Reserved;
    }
    let op = Op { rm: insn.reg(0), ra: insn.reg(8), aux: insn.field(5, 2) as u16, ..insn.op(alu::nothing) };
    processing(insn, operand::BY_REGISTER, op)
}

fn imm16(insn: Insn) -> u64 {
    u64::from(insn.field(16, 4) << 12 | insn.field(0, 12))
}

/// MOVW.
pub(in crate::a32) fn movw(insn: Insn) -> Lowered {
    if insn.uses_pc(&[12]) {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { rd: insn.reg(12), imm: imm16(insn), ..insn.op(shared::mov_imm) })
}

/// MOVT, which is MOVK of the upper half.
pub(in crate::a32) fn movt(insn: Insn) -> Lowered {
    if insn.uses_pc(&[12]) {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { rd: insn.reg(12), imm: imm16(insn) << 16, ra: 16, ..insn.op(shared::movk::<false>) })
}

/// CRC32 and CRC32C.
pub(in crate::a32) fn crc32(insn: Insn) -> Lowered {
    if insn.uses_pc(&[0, 12, 16]) || insn.cond() != ALWAYS {
        return Lowered::Reserved;
    }
    let run: Handler = match (insn.bit(9), insn.field(21, 2)) {
        (false, 0) => shared::crc32::<false, 1>,
        (false, 1) => shared::crc32::<false, 2>,
        (false, _) => shared::crc32::<false, 4>,
        (true, 0) => shared::crc32::<true, 1>,
        (true, 1) => shared::crc32::<true, 2>,
        (true, _) => shared::crc32::<true, 4>,
    };
    Lowered::Op(Op { rd: insn.reg(12), rn: insn.reg(16), rm: insn.reg(0), ..insn.op(run) })
}
