//! The few A64 instructions that the monitor and the blocks are written with, as words (DDI 0487 C4.1).

/// NOP.
pub(super) const NOP: u32 = 0xd503_201f;
/// ISB.
pub(super) const ISB: u32 = 0xd503_3fdf;
/// DSB ISH.
pub(super) const DSB: u32 = 0xd503_3b9f;
/// CLREX.
pub(super) const CLREX: u32 = 0xd503_3f5f;
/// ERET.
pub(super) const ERET: u32 = 0xd69f_03e0;
/// BRK #0.
pub(super) const BRK: u32 = 0xd420_0000;
/// The zero register, or the stack pointer as a base.
pub(super) const R31: u32 = 31;

/// MOVZ and three MOVK: `value` in `rd`.
pub(super) fn constant(rd: u32, value: u64) -> [u32; 4] {
    let half = |index: u32| (value >> (16 * index)) as u32 & 0xffff;
    let word = |base: u32, index: u32| base | index << 21 | half(index) << 5 | rd;
    [word(0xd280_0000, 0), word(0xf280_0000, 1), word(0xf280_0000, 2), word(0xf280_0000, 3)]
}

/// `LDR Xt, [Xn, #offset]`.
pub(super) fn ldr(rt: u32, rn: u32, offset: u64) -> u32 {
    0xf940_0000 | (offset as u32 / 8) << 10 | rn << 5 | rt
}

/// `STR Xt, [Xn, #offset]`.
pub(super) fn str(rt: u32, rn: u32, offset: u64) -> u32 {
    0xf900_0000 | (offset as u32 / 8) << 10 | rn << 5 | rt
}

/// `LDR Qt, [Xn, #offset]`.
pub(super) fn ldr_q(rt: u32, rn: u32, offset: u64) -> u32 {
    0x3dc0_0000 | (offset as u32 / 16) << 10 | rn << 5 | rt
}

/// `STR Qt, [Xn, #offset]`.
pub(super) fn str_q(rt: u32, rn: u32, offset: u64) -> u32 {
    0x3d80_0000 | (offset as u32 / 16) << 10 | rn << 5 | rt
}

/// MRS Xt, register, or SYSL.
pub(super) fn mrs(rt: u32, encoding: u16) -> u32 {
    0xd520_0000 | u32::from(encoding) << 5 | rt
}

/// MSR register, Xt; or, as `encoding` says, SYS.
pub(super) fn msr(encoding: u16, rt: u32) -> u32 {
    0xd500_0000 | u32::from(encoding) << 5 | rt
}

/// ADD Xd, Xn, #imm; 31 is SP.
pub(super) fn add(rd: u32, rn: u32, imm: u32) -> u32 {
    0x9100_0000 | imm << 10 | rn << 5 | rd
}

/// CMP Xn, Xm.
pub(super) fn cmp(rn: u32, rm: u32) -> u32 {
    0xeb00_001f | rm << 16 | rn << 5
}

/// B to `to` from `from`, both in words.
pub(super) fn b(from: usize, to: usize) -> u32 {
    0x1400_0000 | (to as u32).wrapping_sub(from as u32) & 0x03ff_ffff
}

/// B.LO to `to` from `from`, both in words.
pub(super) fn b_lo(from: usize, to: usize) -> u32 {
    0x5400_0003 | ((to as u32).wrapping_sub(from as u32) & 0x7_ffff) << 5
}

/// LDR Xt from `bytes` behind the instruction.
pub(super) fn ldr_literal(rt: u32, bytes: u64) -> u32 {
    0x5800_0000 | ((bytes as u32 / 4) & 0x7_ffff) << 5 | rt
}
