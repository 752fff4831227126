//! Data processing: one handler, generic over the operation, whether it sets flags, and the kind of its second operand.

use super::set;
use crate::cpu::Cpu;
use crate::exec::alu::add_with_carry;
use crate::op::{Flow, Handler, Op, next};

/// The operations, by opcode.
pub(in crate::a32) mod kind {
    pub(in crate::a32) const AND: u8 = 0;
    pub(in crate::a32) const EOR: u8 = 1;
    pub(in crate::a32) const SUB: u8 = 2;
    pub(in crate::a32) const RSB: u8 = 3;
    pub(in crate::a32) const ADD: u8 = 4;
    pub(in crate::a32) const ADC: u8 = 5;
    pub(in crate::a32) const SBC: u8 = 6;
    pub(in crate::a32) const RSC: u8 = 7;
    pub(in crate::a32) const TST: u8 = 8;
    pub(in crate::a32) const TEQ: u8 = 9;
    pub(in crate::a32) const CMP: u8 = 10;
    pub(in crate::a32) const CMN: u8 = 11;
    pub(in crate::a32) const ORR: u8 = 12;
    pub(in crate::a32) const MOV: u8 = 13;
    pub(in crate::a32) const BIC: u8 = 14;
    pub(in crate::a32) const MVN: u8 = 15;
}

/// The kinds of second operand. The register is in `rm`, the amount in `ra`.
pub(in crate::a32) mod operand {
    /// `imm`, whose top bit is the carry if `aux` is not zero.
    pub(in crate::a32) const IMMEDIATE: u8 = 0;
    pub(in crate::a32) const REGISTER: u8 = 1;
    pub(in crate::a32) const LSL: u8 = 2;
    pub(in crate::a32) const LSR: u8 = 3;
    pub(in crate::a32) const ASR: u8 = 4;
    pub(in crate::a32) const ROR: u8 = 5;
    pub(in crate::a32) const RRX: u8 = 6;
    /// The amount is in register `ra`, the kind of shift in `aux`.
    pub(in crate::a32) const BY_REGISTER: u8 = 7;
}

/// The handler of an operation.
pub(in crate::a32) fn handler(opcode: u8, flags: bool, operand: u8) -> Handler {
    match (opcode, flags) {
        (kind::AND, false) => with_operand::<{ kind::AND }, false>(operand),
        (kind::AND | kind::TST, _) => with_operand::<{ kind::AND }, true>(operand),
        (kind::EOR, false) => with_operand::<{ kind::EOR }, false>(operand),
        (kind::EOR | kind::TEQ, _) => with_operand::<{ kind::EOR }, true>(operand),
        (kind::SUB, false) => with_operand::<{ kind::SUB }, false>(operand),
        (kind::SUB | kind::CMP, _) => with_operand::<{ kind::SUB }, true>(operand),
        (kind::RSB, false) => with_operand::<{ kind::RSB }, false>(operand),
        (kind::RSB, true) => with_operand::<{ kind::RSB }, true>(operand),
        (kind::ADD, false) => with_operand::<{ kind::ADD }, false>(operand),
        (kind::ADD | kind::CMN, _) => with_operand::<{ kind::ADD }, true>(operand),
        (kind::ADC, false) => with_operand::<{ kind::ADC }, false>(operand),
        (kind::ADC, true) => with_operand::<{ kind::ADC }, true>(operand),
        (kind::SBC, false) => with_operand::<{ kind::SBC }, false>(operand),
        (kind::SBC, true) => with_operand::<{ kind::SBC }, true>(operand),
        (kind::RSC, false) => with_operand::<{ kind::RSC }, false>(operand),
        (kind::RSC, true) => with_operand::<{ kind::RSC }, true>(operand),
        (kind::ORR, false) => with_operand::<{ kind::ORR }, false>(operand),
        (kind::ORR, true) => with_operand::<{ kind::ORR }, true>(operand),
        (kind::MOV, false) => with_operand::<{ kind::MOV }, false>(operand),
        (kind::MOV, true) => with_operand::<{ kind::MOV }, true>(operand),
        (kind::BIC, false) => with_operand::<{ kind::BIC }, false>(operand),
        (kind::BIC, true) => with_operand::<{ kind::BIC }, true>(operand),
        (_, false) => with_operand::<{ kind::MVN }, false>(operand),
        (_, true) => with_operand::<{ kind::MVN }, true>(operand),
    }
}

fn with_operand<const KIND: u8, const FLAGS: bool>(operand: u8) -> Handler {
    match operand {
        operand::IMMEDIATE => process::<KIND, FLAGS, { operand::IMMEDIATE }>,
        operand::REGISTER => process::<KIND, FLAGS, { operand::REGISTER }>,
        operand::LSL => process::<KIND, FLAGS, { operand::LSL }>,
        operand::LSR => process::<KIND, FLAGS, { operand::LSR }>,
        operand::ASR => process::<KIND, FLAGS, { operand::ASR }>,
        operand::ROR => process::<KIND, FLAGS, { operand::ROR }>,
        operand::RRX => process::<KIND, FLAGS, { operand::RRX }>,
        _ => process::<KIND, FLAGS, { operand::BY_REGISTER }>,
    }
}

/// The second operand and the shifter's carry (DDI 0487 F1.8, `Shift_C`). A 64-bit intermediate gives shifts by 32 for free.
#[inline(always)]
fn second<const OPERAND: u8>(cpu: &Cpu, op: &Op) -> (u32, bool) {
    let carry = cpu.pstate.nzcv & 2 != 0;
    if OPERAND == operand::IMMEDIATE {
        let value = op.imm as u32;
        return (value, if op.aux & 0xff != 0 { value >> 31 != 0 } else { carry });
    }
    let value = cpu.x[usize::from(op.rm)] as u32;
    match OPERAND {
        operand::REGISTER => (value, carry),
        operand::BY_REGISTER => shifted_by_register(value, op.aux as u8, cpu.x[usize::from(op.ra)] as u8, carry),
        _ => shifted::<OPERAND>(value, u32::from(op.ra & 63), carry),
    }
}

/// A shift by an immediate, which is from 1 to 32.
#[inline(always)]
fn shifted<const OPERAND: u8>(value: u32, amount: u32, carry: bool) -> (u32, bool) {
    let wide = u64::from(value);
    match OPERAND {
        operand::LSL => ((wide << amount) as u32, wide << amount >> 32 & 1 != 0),
        operand::LSR => ((wide >> amount) as u32, wide >> (amount - 1) & 1 != 0),
        operand::ASR => {
            let signed = i64::from(value as i32);
            ((signed >> amount) as u32, signed >> (amount - 1) & 1 != 0)
        }
        operand::ROR => {
            let value = value.rotate_right(amount);
            (value, value >> 31 != 0)
        }
        _ => (value >> 1 | u32::from(carry) << 31, value & 1 != 0),
    }
}

/// A shift by the low byte of a register: by 0 it changes nothing, by more than 32 it has shifted everything out.
#[inline(always)]
pub(in crate::a32) fn shifted_by_register(value: u32, shift: u8, amount: u8, carry: bool) -> (u32, bool) {
    let amount = u32::from(amount);
    if amount == 0 {
        return (value, carry);
    }
    match shift & 3 {
        0 if amount > 32 => (0, false),
        0 => shifted::<{ operand::LSL }>(value, amount, carry),
        1 if amount > 32 => (0, false),
        1 => shifted::<{ operand::LSR }>(value, amount, carry),
        2 => shifted::<{ operand::ASR }>(value, amount.min(32), carry),
        _ => shifted::<{ operand::ROR }>(value, amount & 31, carry),
    }
}

fn process<const KIND: u8, const FLAGS: bool, const OPERAND: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (b, shifter_carry) = second::<OPERAND>(cpu, op);
    let a = cpu.x[usize::from(op.rn)] as u32;
    let logical = match KIND {
        kind::AND => Some(a & b),
        kind::EOR => Some(a ^ b),
        kind::ORR => Some(a | b),
        kind::MOV => Some(b),
        kind::BIC => Some(a & !b),
        kind::MVN => Some(!b),
        _ => None,
    };
    if let Some(result) = logical {
        set(cpu, op.rd, result);
        if FLAGS {
            let overflow = cpu.pstate.nzcv & 1;
            cpu.pstate.nzcv = super::nz(result) | u8::from(shifter_carry) << 1 | overflow;
        }
        return next(cpu, rest);
    }
    let carry = cpu.pstate.nzcv & 2 != 0;
    let (a, b, carry) = match KIND {
        kind::SUB => (a, !b, true),
        kind::RSB => (!a, b, true),
        kind::ADD => (a, b, false),
        kind::ADC => (a, b, carry),
        kind::SBC => (a, !b, carry),
        _ => (!a, b, carry),
    };
    if FLAGS {
        let (sum, nzcv) = add_with_carry::<false>(u64::from(a), u64::from(b), carry);
        cpu.x[usize::from(op.rd)] = sum;
        cpu.pstate.nzcv = nzcv;
    } else {
        set(cpu, op.rd, a.wrapping_add(b).wrapping_add(u32::from(carry)));
    }
    next(cpu, rest)
}

/// Nothing: the handler of an op that is not complete yet, and of hints.
pub(in crate::a32) fn nothing(cpu: &mut Cpu, _op: &Op, rest: &[Op]) -> Flow {
    next(cpu, rest)
}
