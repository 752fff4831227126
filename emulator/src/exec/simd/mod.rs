//! SIMD on integers: the operands of one element operation ([`Lane`]), the registers' elements, and the handlers by file.
//!
//! [`elements`] executes what the tables of [`table`] describe, element by element with the functions of [`lane`];
//! [`whole`] operates on registers as a whole, [`permute`] moves elements about, [`moves`] moves them to and from general
//! registers, [`structures`] loads and stores them. `lower::simd` chooses among them.

pub(crate) mod elements;
pub(crate) mod lane;
pub(crate) mod moves;
pub(crate) mod permute;
pub(crate) mod structures;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod whole;

use crate::cpu::Cpu;
use crate::op::Op;

/// FPSR.QC: a saturating operation has saturated.
const FPSR_QC: u32 = 1 << 27;

/// The low `bits` of a doubleword; 64 is all of them.
pub(crate) const fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// `Elem[vector, index, bits]` of the pseudocode.
pub(crate) const fn element(vector: u128, index: u32, bits: u32) -> u64 {
    (vector >> (index * bits)) as u64 & mask(bits)
}

/// `value` as element `index` of a register that is zero otherwise.
pub(crate) const fn placed(value: u64, index: u32, bits: u32) -> u128 {
    ((value & mask(bits)) as u128) << (index * bits)
}

/// `vector` with element `index` replaced.
pub(crate) const fn inserted(vector: u128, value: u64, index: u32, bits: u32) -> u128 {
    vector & !placed(u64::MAX, index, bits) | placed(value, index, bits)
}

/// `Replicate` of the pseudocode: `value` in every element of `bits`.
pub(crate) const fn replicated(value: u64, bits: u32) -> u128 {
    let mut result = placed(value, 0, bits);
    let mut width = bits;
    while width < 128 {
        result |= result << width;
        width *= 2;
    }
    result
}

/// The arrangement of an operation's elements, as `lower::simd` packs it into [`Op::ra`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// log2 of the bytes of an element; for operations that widen or narrow, of the narrow one.
    pub(crate) size: u32,
    /// Whether it is 128 bits; for operations that widen or narrow, whether the narrow side is the upper half.
    pub(crate) full: bool,
    /// Whether only the lowest element takes part.
    pub(crate) scalar: bool,
}

impl Shape {
    /// For [`Op::ra`].
    pub(crate) fn pack(self) -> u8 {
        self.size as u8 | u8::from(self.full) << 2 | u8::from(self.scalar) << 3
    }

    /// From [`Op::ra`].
    pub(crate) fn of(op: &Op) -> Self {
        Self { size: u32::from(op.ra & 3), full: op.ra & 4 != 0, scalar: op.ra & 8 != 0 }
    }

    /// Bits of an element.
    pub(crate) fn bits(self) -> u32 {
        8 << self.size
    }

    /// Bits of the register that the result fills.
    pub(crate) fn register_bits(self) -> u32 {
        match (self.scalar, self.full) {
            (true, _) => self.bits(),
            (false, true) => 128,
            (false, false) => 64,
        }
    }

    /// Elements that take part.
    pub(crate) fn lanes(self) -> u32 {
        self.register_bits() / self.bits()
    }

    /// Clears what lies above the result.
    pub(crate) fn cut(self, vector: u128) -> u128 {
        let bits = self.register_bits();
        if bits == 128 { vector } else { vector & u128::from(mask(bits)) }
    }
}

/// The operands of one element operation, zero-extended, and their widths. The result is cut to its width by the caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lane {
    /// From the first source.
    pub(crate) a: u64,
    /// Bits of `a`.
    pub(crate) a_bits: u32,
    /// From the second source, or an immediate.
    pub(crate) b: u64,
    /// Bits of `b`.
    pub(crate) b_bits: u32,
    /// The destination before the operation.
    pub(crate) d: u64,
    /// Bits of `d` and of the result.
    pub(crate) bits: u32,
    /// Set when the result is saturated.
    pub(crate) saturated: bool,
}

fn signed(value: u64, bits: u32) -> i128 {
    i128::from((value << (64 - bits)) as i64 >> (64 - bits))
}

impl Lane {
    /// `UInt(a)`.
    pub(crate) fn ua(&self) -> i128 {
        i128::from(self.a)
    }

    /// `SInt(a)`.
    pub(crate) fn sa(&self) -> i128 {
        signed(self.a, self.a_bits)
    }

    /// `UInt(b)`.
    pub(crate) fn ub(&self) -> i128 {
        i128::from(self.b)
    }

    /// `SInt(b)`.
    pub(crate) fn sb(&self) -> i128 {
        signed(self.b, self.b_bits)
    }

    /// `UInt(d)`.
    pub(crate) fn ud(&self) -> i128 {
        i128::from(self.d)
    }

    /// `SInt(d)`.
    pub(crate) fn sd(&self) -> i128 {
        signed(self.d, self.bits)
    }

    /// `SignedSatQ` of the pseudocode.
    pub(crate) fn signed_sat(&mut self, value: i128) -> u64 {
        let limit = 1_i128 << (self.bits - 1);
        let clamped = value.clamp(-limit, limit - 1);
        self.saturated |= clamped != value;
        clamped as u64
    }

    /// `UnsignedSatQ` of the pseudocode.
    pub(crate) fn unsigned_sat(&mut self, value: i128) -> u64 {
        let clamped = value.clamp(0, (1 << self.bits) - 1);
        self.saturated |= clamped != value;
        clamped as u64
    }
}

/// A SIMD&FP register.
#[inline(always)]
pub(crate) fn v(cpu: &Cpu, index: u8) -> u128 {
    cpu.v[usize::from(index & 31)]
}

/// Writes a SIMD&FP register, all of it.
#[inline(always)]
pub(crate) fn set_v(cpu: &mut Cpu, index: u8, value: u128) {
    cpu.v[usize::from(index & 31)] = value;
}
