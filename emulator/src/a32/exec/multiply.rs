//! Multiplications: `rd` = `rn` × `rm`, with `ra` as accumulator; of long results `rd` is the high half and `ra` the low one.

use super::{nz, reg, set};
use crate::cpu::Cpu;
use crate::op::{Flow, Op, next};

/// MUL and MLA. N and Z are set, C and V stay.
pub(in crate::a32) fn mla<const FLAGS: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let result = reg(cpu, op.rn).wrapping_mul(reg(cpu, op.rm)).wrapping_add(reg(cpu, op.ra));
    set(cpu, op.rd, result);
    if FLAGS {
        cpu.pstate.nzcv = nz(result) | cpu.pstate.nzcv & 3;
    }
    next(cpu, rest)
}

/// MLS.
pub(in crate::a32) fn mls(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let product = reg(cpu, op.rn).wrapping_mul(reg(cpu, op.rm));
    set(cpu, op.rd, reg(cpu, op.ra).wrapping_sub(product));
    next(cpu, rest)
}

#[inline(always)]
fn long_result(cpu: &Cpu, op: &Op) -> u64 {
    u64::from(reg(cpu, op.rd)) << 32 | u64::from(reg(cpu, op.ra))
}

#[inline(always)]
fn set_long(cpu: &mut Cpu, op: &Op, value: u64) {
    set(cpu, op.ra, value as u32);
    set(cpu, op.rd, (value >> 32) as u32);
}

/// UMULL, UMLAL, SMULL, SMLAL.
pub(in crate::a32) fn long<const SIGNED: bool, const ADD: bool, const FLAGS: bool>(
    cpu: &mut Cpu,
    op: &Op,
    rest: &[Op],
) -> Flow {
    let (a, b) = (reg(cpu, op.rn), reg(cpu, op.rm));
    let product =
        if SIGNED { i64::from(a as i32).wrapping_mul(i64::from(b as i32)) as u64 } else { u64::from(a) * u64::from(b) };
    let result = if ADD { product.wrapping_add(long_result(cpu, op)) } else { product };
    set_long(cpu, op, result);
    if FLAGS {
        cpu.pstate.nzcv = ((result >> 63) as u8) << 3 | u8::from(result == 0) << 2 | cpu.pstate.nzcv & 3;
    }
    next(cpu, rest)
}

/// UMAAL.
pub(in crate::a32) fn umaal(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let product = u64::from(reg(cpu, op.rn)) * u64::from(reg(cpu, op.rm));
    // The largest product and two of the largest addends just fit.
    let result = product + u64::from(reg(cpu, op.rd)) + u64::from(reg(cpu, op.ra));
    set_long(cpu, op, result);
    next(cpu, rest)
}

/// The lower or upper half of a word, as a number.
#[inline(always)]
fn half(value: u32, top: bool) -> i64 {
    if top { i64::from(value as i32 >> 16) } else { i64::from(value as i16) }
}

/// Adds the accumulator to a product; Q is set if the sum does not fit.
fn accumulate(cpu: &mut Cpu, op: &Op, value: i64) {
    let sum = value + i64::from(reg(cpu, op.ra) as i32);
    cpu.a32.cpsr.q |= sum != i64::from(sum as i32);
    set(cpu, op.rd, sum as u32);
}

/// SMULxy and SMLAxy: the upper half of `rn` if bit 0 of `aux` is set, of `rm` if bit 1 is.
pub(in crate::a32) fn halfword<const ADD: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let product = half(reg(cpu, op.rn), op.aux & 1 != 0) * half(reg(cpu, op.rm), op.aux & 2 != 0);
    if ADD {
        accumulate(cpu, op, product);
    } else {
        set(cpu, op.rd, product as u32);
    }
    next(cpu, rest)
}

/// SMLALxy.
pub(in crate::a32) fn halfword_long(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let product = half(reg(cpu, op.rn), op.aux & 1 != 0) * half(reg(cpu, op.rm), op.aux & 2 != 0);
    set_long(cpu, op, long_result(cpu, op).wrapping_add(product as u64));
    next(cpu, rest)
}

/// SMULWy and SMLAWy: the upper 32 of 48 bits.
pub(in crate::a32) fn word_by_halfword<const ADD: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let product = (i64::from(reg(cpu, op.rn) as i32) * half(reg(cpu, op.rm), op.aux & 2 != 0)) >> 16;
    if ADD {
        accumulate(cpu, op, product);
    } else {
        set(cpu, op.rd, product as u32);
    }
    next(cpu, rest)
}

/// The sum or difference of the two products of halves: exchanged if bit 0 of `aux` is set, subtracted if bit 1 is.
#[inline(always)]
fn two_products(cpu: &Cpu, op: &Op) -> i64 {
    let (a, b) = (reg(cpu, op.rn), reg(cpu, op.rm));
    let b = if op.aux & 1 != 0 { b.rotate_right(16) } else { b };
    let (low, high) = (half(a, false) * half(b, false), half(a, true) * half(b, true));
    if op.aux & 2 != 0 { low - high } else { low + high }
}

/// SMLAD, SMLSD, SMUAD, SMUSD.
pub(in crate::a32) fn dual(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let products = two_products(cpu, op);
    accumulate(cpu, op, products);
    next(cpu, rest)
}

/// SMLALD, SMLSLD.
pub(in crate::a32) fn dual_long(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let products = two_products(cpu, op);
    set_long(cpu, op, long_result(cpu, op).wrapping_add(products as u64));
    next(cpu, rest)
}

/// SMMUL, SMMLA, SMMLS: the upper half of the 64-bit result, rounded if `aux` is not zero.
pub(in crate::a32) fn most_significant<const SUB: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let product = i64::from(reg(cpu, op.rn) as i32) * i64::from(reg(cpu, op.rm) as i32);
    let addend = i64::from(reg(cpu, op.ra)) << 32;
    let result = if SUB { addend.wrapping_sub(product) } else { addend.wrapping_add(product) };
    let rounding = if op.aux & 0xff != 0 { 1 << 31 } else { 0 };
    set(cpu, op.rd, (result.wrapping_add(rounding) >> 32) as u32);
    next(cpu, rest)
}
