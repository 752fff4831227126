//! Operations that move elements about: EXT, ZIP, UZP, TRN, REV, TBL and TBX.

use super::{Shape, element, placed, set_v, v};
use crate::cpu::Cpu;
use crate::op::{Flow, Op, next};

/// EXT: the position in bytes is in `imm`.
pub(crate) fn ext(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (low, high) = (v(cpu, op.rn), v(cpu, op.rm));
    let shape = Shape::of(op);
    let lanes = shape.lanes();
    let result = (0..lanes).fold(0, |result, index| {
        let from = index + op.imm as u32;
        let byte = if from < lanes { element(low, from, 8) } else { element(high, from - lanes, 8) };
        result | placed(byte, index, 8)
    });
    set_v(cpu, op.rd, result);
    next(cpu, rest)
}

/// The permutations of two registers, for the `OP` parameter, as bits 13:12 of the encoding count them.
pub(crate) mod permutation {
    pub(crate) const UZP: u8 = 1;
    pub(crate) const TRN: u8 = 2;
    pub(crate) const ZIP: u8 = 3;
}

/// ZIP1, UZP1, TRN1, and with `imm` 1 ZIP2, UZP2, TRN2.
pub(crate) fn permute<const OP: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (n, m) = (v(cpu, op.rn), v(cpu, op.rm));
    let shape = Shape::of(op);
    let (lanes, bits, part) = (shape.lanes(), shape.bits(), op.imm as u32);
    let pick = |index: u32| if index < lanes { element(n, index, bits) } else { element(m, index - lanes, bits) };
    let result = (0..lanes).fold(0, |result, index| {
        let (pair, second) = (index / 2, index % 2);
        let from = match OP {
            permutation::UZP => 2 * index + part,
            permutation::TRN => 2 * pair + part + second * lanes,
            _ => pair + part * lanes / 2 + second * lanes,
        };
        result | placed(pick(from), index, bits)
    });
    set_v(cpu, op.rd, result);
    next(cpu, rest)
}

/// REV16, REV32, REV64: the container's width in bits is in `imm`.
pub(crate) fn reverse(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let n = v(cpu, op.rn);
    let shape = Shape::of(op);
    let bits = shape.bits();
    // An index within a container is reversed by inverting its bits.
    let flip = op.imm as u32 / bits - 1;
    let result =
        (0..shape.lanes()).fold(0, |result, index| result | placed(element(n, index ^ flip, bits), index, bits));
    set_v(cpu, op.rd, result);
    next(cpu, rest)
}

/// TBL and, with `KEEP`, TBX: the table is `imm` registers from `rn` on.
pub(crate) fn lookup<const KEEP: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (indices, old) = (v(cpu, op.rm), v(cpu, op.rd));
    let result = (0..Shape::of(op).lanes()).fold(0, |result, lane| {
        let index = element(indices, lane, 8);
        let byte = if index < 16 * op.imm {
            element(v(cpu, op.rn.wrapping_add((index / 16) as u8)), index as u32 % 16, 8)
        } else if KEEP {
            element(old, lane, 8)
        } else {
            0
        };
        result | placed(byte, lane, 8)
    });
    set_v(cpu, op.rd, result);
    next(cpu, rest)
}
