//! Parallel additions and subtractions of halves and bytes, and what they do to GE (DDI 0487 F5.1, SADD16 and its kin).

use super::{reg, set};
use crate::cpu::Cpu;
use crate::op::{Flow, Handler, Op, next};

/// How the lanes' results are treated, by bits 22:20 of the encoding. Those that set GE are the plain ones.
mod treatment {
    pub(super) const SIGNED: u32 = 1;
    pub(super) const SIGNED_SATURATING: u32 = 2;
    pub(super) const SIGNED_HALVING: u32 = 3;
    pub(super) const UNSIGNED: u32 = 5;
    pub(super) const UNSIGNED_SATURATING: u32 = 6;
    pub(super) const UNSIGNED_HALVING: u32 = 7;
}

/// The handler, or `None` where the encoding is reserved.
pub(in crate::a32) fn handler(treatment: u32, operation: u32) -> Option<Handler> {
    match treatment {
        treatment::SIGNED => of::<{ treatment::SIGNED }>(operation),
        treatment::SIGNED_SATURATING => of::<{ treatment::SIGNED_SATURATING }>(operation),
        treatment::SIGNED_HALVING => of::<{ treatment::SIGNED_HALVING }>(operation),
        treatment::UNSIGNED => of::<{ treatment::UNSIGNED }>(operation),
        treatment::UNSIGNED_SATURATING => of::<{ treatment::UNSIGNED_SATURATING }>(operation),
        treatment::UNSIGNED_HALVING => of::<{ treatment::UNSIGNED_HALVING }>(operation),
        _ => None,
    }
}

fn of<const TREATMENT: u32>(operation: u32) -> Option<Handler> {
    Some(match operation {
        0 => halves::<TREATMENT, false, false, false>,
        // ASX: the lower half is a difference, the upper a sum, of exchanged halves; SAX the other way round.
        1 => halves::<TREATMENT, true, false, true>,
        2 => halves::<TREATMENT, false, true, true>,
        3 => halves::<TREATMENT, true, true, false>,
        4 => bytes::<TREATMENT, false>,
        7 => bytes::<TREATMENT, true>,
        _ => return None,
    })
}

/// One lane of `bits`: the result, and whether GE is set.
#[inline(always)]
fn lane<const TREATMENT: u32>(a: u32, b: u32, bits: u32, subtract: bool) -> (u32, bool) {
    let signed = TREATMENT < 4;
    let widen = |value: u32| {
        let unused = 32 - bits;
        if signed { (value << unused) as i32 >> unused } else { (value << unused >> unused) as i32 }
    };
    let (a, b) = (widen(a), widen(b));
    let result = if subtract { a - b } else { a + b };
    let ge = if signed || subtract { result >= 0 } else { result >> bits != 0 };
    let treated = match TREATMENT {
        treatment::SIGNED_SATURATING => result.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        treatment::UNSIGNED_SATURATING => result.clamp(0, (1 << bits) - 1),
        treatment::SIGNED_HALVING | treatment::UNSIGNED_HALVING => result >> 1,
        _ => result,
    };
    (treated as u32 & ((1 << bits) - 1), ge)
}

fn halves<const TREATMENT: u32, const SUB_LOW: bool, const SUB_HIGH: bool, const EXCHANGE: bool>(
    cpu: &mut Cpu,
    op: &Op,
    rest: &[Op],
) -> Flow {
    let (a, b) = (reg(cpu, op.rn), reg(cpu, op.rm));
    let b = if EXCHANGE { b.rotate_right(16) } else { b };
    let (low, ge_low) = lane::<TREATMENT>(a, b, 16, SUB_LOW);
    let (high, ge_high) = lane::<TREATMENT>(a >> 16, b >> 16, 16, SUB_HIGH);
    set(cpu, op.rd, high << 16 | low);
    if matches!(TREATMENT, treatment::SIGNED | treatment::UNSIGNED) {
        cpu.a32.cpsr.ge = if ge_low { 0b0011 } else { 0 } | if ge_high { 0b1100 } else { 0 };
    }
    next(cpu, rest)
}

fn bytes<const TREATMENT: u32, const SUB: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (a, b) = (reg(cpu, op.rn), reg(cpu, op.rm));
    let (mut result, mut ge) = (0, 0);
    for byte in 0..4 {
        let (value, set) = lane::<TREATMENT>(a >> (8 * byte), b >> (8 * byte), 8, SUB);
        result |= value << (8 * byte);
        ge |= u8::from(set) << byte;
    }
    set(cpu, op.rd, result);
    if matches!(TREATMENT, treatment::SIGNED | treatment::UNSIGNED) {
        cpu.a32.cpsr.ge = ge;
    }
    next(cpu, rest)
}
