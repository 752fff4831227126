//! Handlers of A32, beside those of A64 in [`crate::exec`] that serve both: [`alu`], [`multiply`], [`media`], [`parallel`],
//! [`loadstore`], [`block`], [`system`], [`simd`], and the checks around them in [`guard`].
//!
//! Registers are the low halves of [`Cpu::x`]; every handler keeps the upper halves zero, so that a base register is an address.

pub(super) mod alu;
pub(super) mod block;
pub(super) mod guard;
pub(super) mod loadstore;
pub(super) mod media;
pub(super) mod multiply;
pub(super) mod parallel;
pub(super) mod simd;
pub(super) mod system;
#[cfg(test)]
mod tests;

use crate::cpu::Cpu;

/// A register's value.
#[inline(always)]
fn reg(cpu: &Cpu, index: u8) -> u32 {
    cpu.x[usize::from(index)] as u32
}

/// Sets a register.
#[inline(always)]
fn set(cpu: &mut Cpu, index: u8, value: u32) {
    cpu.x[usize::from(index)] = u64::from(value);
}

/// N and Z of a result.
#[inline(always)]
fn nz(value: u32) -> u8 {
    ((value >> 31) as u8) << 3 | u8::from(value == 0) << 2
}
