//! The few A32 instructions that the monitor and the blocks are written with, as words (DDI 0487 F4).

/// NOP.
pub(super) const NOP: u32 = 0xe320_f000;
/// ISB SY.
pub(super) const ISB: u32 = 0xf57f_f06f;
/// DSB ISH.
pub(super) const DSB: u32 = 0xf57f_f04b;
/// CLREX.
pub(super) const CLREX: u32 = 0xf57f_f01f;
/// UDF #0: what ends a block.
pub(super) const UDF: u32 = 0xe7f0_00f0;
/// MOVS PC, LR: return from an exception.
pub(super) const MOVS_PC_LR: u32 = 0xe1b0_f00e;
/// The condition that always holds.
pub(super) const ALWAYS: u32 = 14 << 28;

/// A register of CP15: opc1, CRn, CRm, opc2.
pub(super) type Register = (u32, u32, u32, u32);

/// MOVW and MOVT: `value` in `rd`.
pub(super) fn constant(rd: u32, value: u64) -> [u32; 2] {
    let half = |half: u32| (half & 0xf000) << 4 | half & 0xfff | rd << 12;
    [0xe300_0000 | half(value as u32 & 0xffff), 0xe340_0000 | half(value as u32 >> 16)]
}

/// `LDR Rt, [Rn, #offset]`.
pub(super) fn ldr(rt: u32, rn: u32, offset: u64) -> u32 {
    0xe590_0000 | rn << 16 | rt << 12 | offset as u32
}

/// `STR Rt, [Rn, #offset]`.
pub(super) fn str(rt: u32, rn: u32, offset: u64) -> u32 {
    0xe580_0000 | rn << 16 | rt << 12 | offset as u32
}

/// LDR Rt from `bytes` before the instruction.
pub(super) fn ldr_before(rt: u32, bytes: u64) -> u32 {
    0xe51f_0000 | rt << 12 | (bytes as u32 + 8)
}

/// ADD Rd, Rn, #imm, for what eight bits, rotated by `rotation` to the right, make.
pub(super) fn add(rd: u32, rn: u32, imm: u32, rotation: u32) -> u32 {
    0xe280_0000 | rn << 16 | rd << 12 | (rotation / 2) << 8 | imm
}

/// MOV Rd, #imm of eight bits.
pub(super) fn mov(rd: u32, imm: u32) -> u32 {
    0xe3a0_0000 | rd << 12 | imm
}

/// CMP Rn, Rm.
pub(super) fn cmp(rn: u32, rm: u32) -> u32 {
    0xe150_0000 | rn << 16 | rm
}

/// B to `to` from `from`, both in words.
pub(super) fn b(from: usize, to: usize) -> u32 {
    0xea00_0000 | branch(from, to)
}

/// BLO to `to` from `from`, both in words.
pub(super) fn b_lo(from: usize, to: usize) -> u32 {
    0x3a00_0000 | branch(from, to)
}

fn branch(from: usize, to: usize) -> u32 {
    (to as u32).wrapping_sub(from as u32).wrapping_sub(2) & 0x00ff_ffff
}

/// MRC p15 to Rt.
pub(super) fn mrc(rt: u32, register: Register) -> u32 {
    1 << 20 | mcr(register, rt)
}

/// MCR p15 from Rt.
pub(super) fn mcr((opc1, crn, crm, opc2): Register, rt: u32) -> u32 {
    0xee00_0f10 | opc1 << 21 | crn << 16 | rt << 12 | opc2 << 5 | crm
}

/// MRRC p15 to Rt and Rt2.
pub(super) fn mrrc(rt: u32, rt2: u32, opc1: u32, crm: u32) -> u32 {
    0xec50_0f00 | rt2 << 16 | rt << 12 | opc1 << 4 | crm
}

/// MCRR p15 from Rt and Rt2.
pub(super) fn mcrr(opc1: u32, crm: u32, rt: u32, rt2: u32) -> u32 {
    0xec40_0f00 | rt2 << 16 | rt << 12 | opc1 << 4 | crm
}

/// CPS #mode.
pub(super) fn cps(mode: u32) -> u32 {
    0xf102_0000 | mode
}

/// MRS Rd, SPSR.
pub(super) fn mrs_spsr(rd: u32) -> u32 {
    0xe14f_0000 | rd << 12
}

/// MSR SPSR_fsxc, Rn.
pub(super) fn msr_spsr(rn: u32) -> u32 {
    0xe16f_f000 | rn
}

/// MRS Rd, CPSR.
pub(super) fn mrs_cpsr(rd: u32) -> u32 {
    0xe10f_0000 | rd << 12
}

/// MSR CPSR_`fields`, Rn.
pub(super) fn msr_cpsr(fields: u32, rn: u32) -> u32 {
    0xe120_f000 | fields << 16 | rn
}

/// VMRS Rt of register 1 (FPSCR) or 8 (FPEXC).
pub(super) fn vmrs(rt: u32, register: u32) -> u32 {
    0xeef0_0a10 | register << 16 | rt << 12
}

/// VMSR of register 1 or 8 from Rt.
pub(super) fn vmsr(register: u32, rt: u32) -> u32 {
    0xeee0_0a10 | register << 16 | rt << 12
}

/// VSTMIA Rn!, {D`first` to the fifteenth behind it}.
pub(super) fn vstm16(rn: u32, first: u32) -> u32 {
    0xeca0_0b20 | (first >> 4) << 22 | rn << 16
}

/// VLDMIA Rn!, {D`first` to the fifteenth behind it}.
pub(super) fn vldm16(rn: u32, first: u32) -> u32 {
    1 << 20 | vstm16(rn, first)
}

/// BX Rm.
pub(super) fn bx(rm: u32) -> u32 {
    0xe12f_ff10 | rm
}
