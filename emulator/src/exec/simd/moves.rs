//! Moves of elements, and between SIMD&FP and general registers: DUP, INS, UMOV, SMOV, FMOV.

use super::{Shape, element, inserted, replicated, set_v, v};
use crate::cpu::Cpu;
use crate::op::{Flow, Op, next};

/// DUP (general).
pub(crate) fn dup_general(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let shape = Shape::of(op);
    let value = cpu.x[usize::from(op.rn)];
    set_v(cpu, op.rd, shape.cut(replicated(value, shape.bits())));
    next(cpu, rest)
}

/// DUP (element), vector and scalar: the index is in `imm`.
pub(crate) fn dup_element(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let shape = Shape::of(op);
    let value = element(v(cpu, op.rn), op.imm as u32, shape.bits());
    set_v(cpu, op.rd, shape.cut(replicated(value, shape.bits())));
    next(cpu, rest)
}

/// INS (general), and FMOV to the upper doubleword: the index is in `imm`.
pub(crate) fn insert_general(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let result = inserted(v(cpu, op.rd), cpu.x[usize::from(op.rn)], op.imm as u32, Shape::of(op).bits());
    set_v(cpu, op.rd, result);
    next(cpu, rest)
}

/// INS (element): the destination's index is in `imm`, the source's in `aux`.
pub(crate) fn insert_element(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let bits = Shape::of(op).bits();
    let value = element(v(cpu, op.rn), u32::from(op.aux), bits);
    let result = inserted(v(cpu, op.rd), value, op.imm as u32, bits);
    set_v(cpu, op.rd, result);
    next(cpu, rest)
}

/// UMOV, and FMOV to a general register: the index is in `imm`.
pub(crate) fn to_general(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    cpu.x[usize::from(op.rd)] = element(v(cpu, op.rn), op.imm as u32, Shape::of(op).bits());
    next(cpu, rest)
}

/// SMOV to X (`WIDE`) or W: the index is in `imm`.
pub(crate) fn to_general_signed<const WIDE: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let bits = Shape::of(op).bits();
    let value = element(v(cpu, op.rn), op.imm as u32, bits);
    let value = ((value << (64 - bits)) as i64 >> (64 - bits)) as u64;
    cpu.x[usize::from(op.rd)] = if WIDE { value } else { value & 0xffff_ffff };
    next(cpu, rest)
}

/// FMOV from a general register, and between SIMD&FP registers as DUP of element 0 has it.
pub(crate) fn from_general(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = Shape::of(op).cut(u128::from(cpu.x[usize::from(op.rn)]));
    set_v(cpu, op.rd, value);
    next(cpu, rest)
}
