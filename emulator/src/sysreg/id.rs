//! What the processor says of itself: identification registers, and the reset values and masks that follow from them.
//!
//! Each value promises exactly what the emulator implements. Layouts: DDI 0487 D24.2.

use super::enc::{self, *};
use crate::mmu::PA_BITS;

/// Pairs of breakpoint registers and of watchpoint registers: 2, the least the architecture allows.
pub const DEBUG_UNITS: usize = 2;

/// log2 of the bytes of every cache line, and of the DC ZVA block.
pub const CACHE_LINE_SHIFT: u32 = 6;

/// MIDR_EL1: implementer 0 ("reserved for software use"), architecture 0xf (by ID registers), part 0x7d1, r0p1.
pub const MIDR: u64 = 0xf << 16 | 0x7d1 << 4 | 1;
/// ID_AA64PFR0_EL1: EL0 and EL1 in AArch64 only; FP and AdvSIMD without half precision; GICv3 system registers.
pub const PFR0: u64 = 1 << 24 | 1 << 4 | 1;
/// ID_AA64DFR0_EL1: Armv8 debug, PMUv3, breakpoints and watchpoints as many as [`DEBUG_UNITS`].
pub const DFR0: u64 = (DEBUG_UNITS as u64 - 1) << 20 | (DEBUG_UNITS as u64 - 1) << 12 | 1 << 8 | 6;
/// ID_AA64ISAR0_EL1: LSE atomics, CRC32. No cryptography, no dot product.
pub const ISAR0: u64 = 2 << 20 | 1 << 16;
/// ID_AA64ISAR1_EL1: DC CVAP.
pub const ISAR1: u64 = 1;
/// ID_AA64MMFR0_EL1: 44-bit addresses, 16-bit ASIDs, granules of 4K, 16K and 64K (TGran64 and TGran4 say so with 0).
pub const MMFR0: u64 = 1 << 20 | 2 << 4 | 0b100;
/// ID_AA64MMFR1_EL1: HAFDBS with dirty state, HPDS, PAN with AT S1E1RP.
pub const MMFR1: u64 = 2 << 20 | 1 << 12 | 2;
/// ID_AA64MMFR2_EL1: none of it.
pub const MMFR2: u64 = 0;
/// CTR_EL0: 64-byte lines, PIPT; IDC set, since data reach instruction fetch without cleaning, DIC clear, since code must be
/// invalidated (IC IVAU tells the decoded-code cache).
pub const CTR: u64 = 1 << 31 | 1 << 28 | LINE_WORDS << 24 | LINE_WORDS << 20 | LINE_WORDS << 16 | 3 << 14 | LINE_WORDS;
/// DCZID_EL0: DC ZVA permitted, 64 bytes (log2 of words).
pub const DCZID: u64 = LINE_WORDS;
/// CLIDR_EL1: separate level-1 caches, coherent and unified at level 1.
pub const CLIDR: u64 = 1 << 27 | 1 << 24 | 1 << 21 | 3;
/// CCSIDR_EL1 of either level-1 cache: 32 KiB, 4 ways, 128 sets, 64-byte lines.
pub const CCSIDR: u64 = 127 << 13 | 3 << 3 | (CACHE_LINE_SHIFT as u64 - 4);

const LINE_WORDS: u64 = CACHE_LINE_SHIFT as u64 - 2;
const _: () = assert!(PA_BITS == 44, "PARange in ID_AA64MMFR0_EL1 must say what the walker checks");

/// SCTLR_EL1 bits that read as one in this implementation: 29, 28, 22 (no ExS), 20, 11, 7 (no AArch32 IT), 8.
pub const SCTLR_RES1: u64 = 1 << 29 | 1 << 28 | 1 << 22 | 1 << 20 | 1 << 11 | 1 << 8 | 1 << 7;
/// SCTLR_EL1 bits that software may write: M A C SA SA0 UMA I DZE UCT nTWI nTWE WXN SPAN UCI. EE and E0E are RES0
/// because ID_AA64MMFR0_EL1 promises no big-endian support.
pub const SCTLR_WRITABLE: u64 = 1
    | 1 << 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 9
    | 1 << 12
    | 1 << 14
    | 1 << 15
    | 1 << 16
    | 1 << 18
    | 1 << 19
    | 1 << 23
    | 1 << 26;
/// SCTLR of AArch32: bits that read as one (DDI 0487 G8.2.126): 23 (no PAN), 22, 11 (branch prediction), 8 (no SETEND), 5 (CP15
/// barriers work), 4 and 3 (no FEAT_LSMAOC).
pub const SCTLR32_RES1: u64 = 1 << 23 | 1 << 22 | 1 << 11 | 1 << 8 | 1 << 5 | 1 << 4 | 1 << 3;
/// SCTLR of AArch32: bits that software may write: M A C I V nTWI nTWE WXN UWXN TRE AFE. TE and EE are zero, for there is neither
/// T32 nor big-endian data.
pub const SCTLR32_WRITABLE: u64 =
    1 | 1 << 1 | 1 << 2 | 1 << 12 | 1 << 13 | 1 << 16 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 28 | 1 << 29;
/// SCTLR of AArch32 after a reset: EL0's WFI and WFE are not trapped (nTWI, nTWE).
pub const SCTLR32_RESET: u64 = SCTLR32_RES1 | 1 << 18 | 1 << 16;
/// TTBCR and, in the high half, TTBCR2 bits that are implemented: the fields of either format; HPD0 and HPD1.
pub const TTBCR_WRITABLE: u64 = 0xbfc7_3ff7 | 3 << 41;
/// FPEXC after a reset, as KVM has it: bits 10:8 were VECITR of VFPv2 and read as one.
pub const FPEXC_RESET: u64 = 0x700;
/// FPEXC bits that software may write: EN.
pub const FPEXC_WRITABLE: u64 = 1 << 30;
/// TCR_EL1 bits that are implemented: all up to HPD1 except the RES0 bits 6 and 35.
pub const TCR_WRITABLE: u64 = ((1 << 43) - 1) & !(1 << 6 | 1 << 35);

/// MPIDR_EL1 of vCPU `index`: RES1 bit 31, Aff0.
pub const fn mpidr(index: usize) -> u64 {
    1 << 31 | index as u64
}

/// The value of an identification register that is the same on every vCPU, or `None` if `enc` is no such register. The space
/// op0 = 3, op1 = 0, CRn = 0, CRm = 1..=7 is identification registers throughout; what is not allocated, or belongs to AArch32,
/// reads as zero (D24.2, "reserved, RAZ").
pub const fn constant(enc: u16) -> Option<u64> {
    Some(match enc {
        MIDR_EL1 => MIDR,
        REVIDR_EL1 | AIDR_EL1 => 0,
        ID_AA64PFR0_EL1 => PFR0,
        ID_AA64DFR0_EL1 => DFR0,
        ID_AA64ISAR0_EL1 => ISAR0,
        ID_AA64ISAR1_EL1 => ISAR1,
        ID_AA64MMFR0_EL1 => MMFR0,
        ID_AA64MMFR1_EL1 => MMFR1,
        ID_AA64MMFR2_EL1 => MMFR2,
        CTR_EL0 => CTR,
        DCZID_EL0 => DCZID,
        CLIDR_EL1 => CLIDR,
        _ if is_feature_space(enc) => 0,
        _ => return None,
    })
}

/// Whether `enc` is in the space of feature registers (op0 = 3, op1 = 0, CRn = 0, CRm = 1..=7).
pub const fn is_feature_space(enc: u16) -> bool {
    enc >= enc::enc(3, 0, 0, 1, 0) && enc <= enc::enc(3, 0, 0, 7, 7)
}
