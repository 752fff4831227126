//! Scalar floating point, as far as it only moves bits: FABS, FNEG, FCSEL and the expansion of immediates.
//!
//! Floating-point arithmetic is not modelled: no code for this machine computes with it.

use crate::cpu::Cpu;
use crate::exec::alu::holds;
use crate::exec::simd::{Shape, set_v, v};
use crate::op::{Flow, Op, next};

/// `VFPExpandImm` of the pseudocode, for 32 or 64 bits.
pub(crate) fn expand_immediate(imm8: u32, bits: u32) -> u64 {
    let imm = u64::from(imm8);
    let (sign, inverted, low) = (imm >> 7, imm >> 6 & 1 ^ 1, imm & 0x3f);
    let (exponent_bits, fraction_bits) = if bits == 64 { (11, 52) } else { (8, 23) };
    // The top of the exponent is NOT(imm8<6>), the bits between are imm8<6>, imm8<5:4> end it.
    let repeated = if inverted == 0 { (1 << (exponent_bits - 3)) - 1 } else { 0 };
    sign << (bits - 1) | inverted << (bits - 2) | repeated << (fraction_bits + 2) | low << (fraction_bits - 4)
}

/// FABS.
pub(crate) fn absolute(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let shape = Shape::of(op);
    let value = shape.cut(v(cpu, op.rn)) & !(1 << (shape.bits() - 1));
    set_v(cpu, op.rd, value);
    next(cpu, rest)
}

/// FNEG.
pub(crate) fn negate(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let shape = Shape::of(op);
    let value = shape.cut(v(cpu, op.rn)) ^ 1 << (shape.bits() - 1);
    set_v(cpu, op.rd, value);
    next(cpu, rest)
}

/// FCSEL: the condition is in `aux`.
pub(crate) fn select(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let source = if holds(cpu, op.aux as u8) { op.rn } else { op.rm };
    let value = Shape::of(op).cut(v(cpu, source));
    set_v(cpu, op.rd, value);
    next(cpu, rest)
}
