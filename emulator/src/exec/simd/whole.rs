//! Logical operations and immediates: registers as a whole.

use super::{set_v, v};
use crate::cpu::Cpu;
use crate::op::{Flow, Op, next};

/// The logical operations of three registers, for the `OP` parameter, as opc2:U:size counts them.
pub(crate) mod logic {
    pub(crate) const AND: u8 = 0;
    pub(crate) const BIC: u8 = 1;
    pub(crate) const ORR: u8 = 2;
    pub(crate) const ORN: u8 = 3;
    pub(crate) const EOR: u8 = 4;
    pub(crate) const BSL: u8 = 5;
    pub(crate) const BIT: u8 = 6;
    pub(crate) const BIF: u8 = 7;
}

/// The lower half, or all, of a register.
fn cut<const FULL: bool>(value: u128) -> u128 {
    if FULL { value } else { value & u128::from(u64::MAX) }
}

/// AND, BIC, ORR, ORN, EOR, BSL, BIT, BIF of registers.
pub(crate) fn logical<const FULL: bool, const OP: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (n, m, d) = (v(cpu, op.rn), v(cpu, op.rm), v(cpu, op.rd));
    let result = match OP {
        logic::AND => n & m,
        logic::BIC => n & !m,
        logic::ORR => n | m,
        logic::ORN => n | !m,
        logic::EOR => n ^ m,
        logic::BSL => m ^ (m ^ n) & d,
        logic::BIT => d ^ (d ^ n) & m,
        _ => d ^ (d ^ n) & !m,
    };
    set_v(cpu, op.rd, cut::<FULL>(result));
    next(cpu, rest)
}

/// What an immediate does to its register, for the `OP` parameter.
pub(crate) mod immediate {
    pub(crate) const MOVE: u8 = 0;
    pub(crate) const ORR: u8 = 1;
    pub(crate) const BIC: u8 = 2;
}

/// MOVI, MVNI, FMOV (vector, immediate), ORR and BIC (vector, immediate): the doubleword is in `imm`.
pub(crate) fn with_immediate<const FULL: bool, const OP: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = u128::from(op.imm) << 64 | u128::from(op.imm);
    let result = match OP {
        immediate::MOVE => value,
        immediate::ORR => v(cpu, op.rd) | value,
        _ => v(cpu, op.rd) & !value,
    };
    set_v(cpu, op.rd, cut::<FULL>(result));
    next(cpu, rest)
}

/// FMOV (scalar, immediate): the register is `imm`.
pub(crate) fn scalar_immediate(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    set_v(cpu, op.rd, u128::from(op.imm));
    next(cpu, rest)
}
