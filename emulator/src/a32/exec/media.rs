//! Saturation, extension, packing and selection.

use super::{reg, set};
use crate::cpu::Cpu;
use crate::op::{Flow, Op, next};

/// Saturates to a signed number of `bits`; Q is set if that changes it.
fn saturated(cpu: &mut Cpu, value: i64, bits: u32) -> u32 {
    let limit = 1_i64 << (bits - 1);
    let result = value.clamp(-limit, limit - 1);
    cpu.a32.cpsr.q |= result != value;
    result as u32
}

/// Saturates to an unsigned number of `bits`; Q is set if that changes it.
fn saturated_unsigned(cpu: &mut Cpu, value: i64, bits: u32) -> u32 {
    let result = value.clamp(0, (1_i64 << bits) - 1);
    cpu.a32.cpsr.q |= result != value;
    result as u32
}

/// QADD, QSUB, QDADD, QDSUB: bit 0 of `aux` subtracts, bit 1 doubles the second operand first.
pub(in crate::a32) fn saturating_add(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (a, b) = (i64::from(reg(cpu, op.rm) as i32), i64::from(reg(cpu, op.rn) as i32));
    let b = if op.aux & 2 != 0 { i64::from(saturated(cpu, 2 * b, 32) as i32) } else { b };
    let result = saturated(cpu, if op.aux & 1 != 0 { a - b } else { a + b }, 32);
    set(cpu, op.rd, result);
    next(cpu, rest)
}

/// SSAT and USAT: bits in `aux`, a left shift by `ra`, or an arithmetic right shift if bit 7 of `aux` is set.
pub(in crate::a32) fn saturate<const SIGNED: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = i64::from(reg(cpu, op.rn) as i32);
    let right = op.aux & 0x80 != 0;
    // A left shift drops what leaves the word.
    let value = if right { value >> (op.ra & 63) } else { i64::from((value << (op.ra & 31)) as i32) };
    let bits = u32::from(op.aux & 0x3f);
    let result = if SIGNED { saturated(cpu, value, bits) } else { saturated_unsigned(cpu, value, bits) };
    set(cpu, op.rd, result);
    next(cpu, rest)
}

/// SSAT16 and USAT16.
pub(in crate::a32) fn saturate_halves<const SIGNED: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (value, bits) = (reg(cpu, op.rn), u32::from(op.aux & 0x3f));
    let mut one = |half: u32| {
        let half = i64::from(half as i16);
        if SIGNED { saturated(cpu, half, bits) } else { saturated_unsigned(cpu, half, bits) }
    };
    let (low, high) = (one(value), one(value >> 16));
    set(cpu, op.rd, high << 16 | low & 0xffff);
    next(cpu, rest)
}

pub(in crate::a32) const SXTB16: u8 = 0;
pub(in crate::a32) const SXTB: u8 = 2;
pub(in crate::a32) const SXTH: u8 = 3;
pub(in crate::a32) const UXTB16: u8 = 4;
pub(in crate::a32) const UXTB: u8 = 6;
pub(in crate::a32) const UXTH: u8 = 7;

/// SXTAB and its kin, by the opcode's number: `rm` rotated by `ra`, extended, added to `rn`.
pub(in crate::a32) fn extend<const KIND: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = reg(cpu, op.rm).rotate_right(u32::from(op.ra & 31));
    let addend = reg(cpu, op.rn);
    let result = match KIND {
        SXTB => addend.wrapping_add(value as i8 as u32),
        SXTH => addend.wrapping_add(value as i16 as u32),
        UXTB => addend.wrapping_add(value & 0xff),
        UXTH => addend.wrapping_add(value & 0xffff),
        kind => {
            let widen = |byte: u32| if kind == SXTB16 { byte as i8 as u32 } else { byte & 0xff };
            let low = addend.wrapping_add(widen(value)) & 0xffff;
            (addend >> 16).wrapping_add(widen(value >> 16)) << 16 | low
        }
    };
    set(cpu, op.rd, result);
    next(cpu, rest)
}

/// REVSH.
pub(in crate::a32) fn reverse_signed_half(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let half = (reg(cpu, op.rm) as u16).swap_bytes();
    set(cpu, op.rd, half as i16 as u32);
    next(cpu, rest)
}

/// PKHBT (`aux` 0): the lower half of `rn` and the upper of `rm` shifted left. PKHTB: the other halves, `rm` shifted right.
pub(in crate::a32) fn pack(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (n, m) = (reg(cpu, op.rn), reg(cpu, op.rm));
    let result = if op.aux & 1 == 0 {
        m << (op.ra & 31) & 0xffff_0000 | n & 0xffff
    } else {
        n & 0xffff_0000 | (i64::from(m as i32) >> (op.ra & 63)) as u32 & 0xffff
    };
    set(cpu, op.rd, result);
    next(cpu, rest)
}

/// SEL: by byte, from `rn` where GE is set, else from `rm`.
pub(in crate::a32) fn select(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let ge = u32::from(cpu.a32.cpsr.ge);
    let mask = (0..4).filter(|byte| ge >> byte & 1 != 0).fold(0, |mask, byte| mask | 0xff << (8 * byte));
    set(cpu, op.rd, reg(cpu, op.rn) & mask | reg(cpu, op.rm) & !mask);
    next(cpu, rest)
}

/// USAD8 and USADA8.
pub(in crate::a32) fn absolute_differences(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (a, b) = (reg(cpu, op.rn).to_le_bytes(), reg(cpu, op.rm).to_le_bytes());
    let sum: u32 = a.iter().zip(b).map(|(&a, b)| u32::from(a.abs_diff(b))).sum();
    set(cpu, op.rd, reg(cpu, op.ra).wrapping_add(sum));
    next(cpu, rest)
}
