//! What the processor says of itself in AArch32: identification registers as CP15 has them, in the encodings that AArch64 gives
//! them, for a machine that executes AArch32 (DDI 0487 G8.2; D24.2 for the encodings).
//!
//! Each value promises what the emulator implements: A32 without T32, Jazelle, SETEND, SWP, SMC and floating-point arithmetic.

use super::enc::{self, CTR_EL0, ID_AA64PFR0_EL1};
use super::id;

/// ID_PFR0: A32 only.
pub const PFR0: u64 = 1;
/// ID_PFR1: GICv3 system registers, generic timer, the programmers' model of Armv4; no Security Extensions, no virtualization.
pub const PFR1: u64 = 1 << 28 | 1 << 16 | 1;
/// ID_DFR0: PMUv3, Armv8 debug by CP14.
pub const DFR0: u64 = 3 << 24 | 6;
/// ID_MMFR0: inner and outer shareability, both coherent; auxiliary control and fault status; VMSAv7 with PXN and long descriptors.
pub const MMFR0: u64 = 1 << 28 | 2 << 20 | 1 << 12 | 1 << 8 | 5;
/// ID_MMFR1: the branch predictor needs no maintenance.
pub const MMFR1: u64 = 4 << 28;
/// ID_MMFR2: WFI stalls; DSB, ISB and DMB; TLB maintenance by address, ASID, all ASIDs and last level.
pub const MMFR2: u64 = 1 << 24 | 2 << 20 | 6 << 16;
/// ID_MMFR3: 40-bit addresses, supersections, coherent walks, broadcast maintenance, branch predictor by address, caches by
/// set/way and address. No PAN.
pub const MMFR3: u64 = 2 << 24 | 1 << 20 | 2 << 12 | 2 << 8 | 1 << 4 | 1;
/// ID_MMFR4: table attributes can be disabled (TTBCR2).
pub const MMFR4: u64 = 1 << 16;
/// ID_ISAR0: divide, BKPT, bit field, CLZ.
pub const ISAR0: u64 = 2 << 24 | 1 << 20 | 1 << 8 | 1 << 4;
/// ID_ISAR1: BXJ as BX, BX and BLX, MOVW, extensions, CPS with SRS and RFE, exception-returning LDM.
pub const ISAR1: u64 = 1 << 28 | 2 << 24 | 1 << 20 | 2 << 12 | 1 << 8 | 1 << 4;
/// ID_ISAR2: reversal, PSR access, long multiplications unsigned and signed, MLS, hints, LDRD with acquire and release.
pub const ISAR2: u64 = 2 << 28 | 1 << 24 | 2 << 20 | 3 << 16 | 2 << 12 | 4 << 4 | 2;
/// ID_ISAR3: NOP, LDREXB/H/D, SVC, parallel arithmetic, saturation.
pub const ISAR3: u64 = 1 << 24 | 2 << 12 | 1 << 8 | 3 << 4 | 1;
/// ID_ISAR4: barriers, writeback, shifts, unprivileged accesses.
pub const ISAR4: u64 = 1 << 16 | 1 << 8 | 4 << 4 | 2;
/// ID_ISAR5: CRC32, SEVL. No cryptography.
pub const ISAR5: u64 = 1 << 16 | 1;
/// MVFR0: 32 doubleword registers; no floating-point arithmetic.
pub const MVFR0: u64 = 2;
/// MVFR1: Advanced SIMD loads, stores and integers; of these, what is not modelled is UNDEFINED and named in the log.
pub const MVFR1: u64 = 1 << 12 | 1 << 8;
/// FPSID: software's implementer (0), VFPv3 register layout.
pub const FPSID: u64 = 3 << 16;
/// TLBTR: unified TLB.
pub const TLBTR: u64 = 0;
/// DBGDIDR: watchpoints and breakpoints as many as [`id::DEBUG_UNITS`], no context-aware one, Armv8 debug (G8.3.18).
pub const DBGDIDR: u64 = (id::DEBUG_UNITS as u64 - 1) << 28 | (id::DEBUG_UNITS as u64 - 1) << 24 | 6 << 16 | 1 << 15;

/// The value of an identification register of an AArch32 machine that is the same on every vCPU, or `None` if `enc` is no such
/// register.
pub const fn constant(enc: u16) -> Option<u64> {
    // CRm and op2 of the space op0 3, op1 0, CRn 0.
    let of_aarch32 = if id::is_feature_space(enc) { (enc >> 3 & 15, enc & 7) } else { (0, 0) };
    Some(match of_aarch32 {
        (1, 0) => PFR0,
        (1, 1) => PFR1,
        (1, 2) => DFR0,
        (1, 4) => MMFR0,
        (1, 5) => MMFR1,
        (1, 6) => MMFR2,
        (1, 7) => MMFR3,
        (2, 0) => ISAR0,
        (2, 1) => ISAR1,
        (2, 2) => ISAR2,
        (2, 3) => ISAR3,
        (2, 4) => ISAR4,
        (2, 5) => ISAR5,
        (2, 6) => MMFR4,
        (3, 0) => MVFR0,
        (3, 1) => MVFR1,
        // EL1 and EL0 in either state, as ID_AA64PFR0_EL1 says for those who look at the machine from outside.
        _ if enc == ID_AA64PFR0_EL1 => id::PFR0 + (1 << 4 | 1),
        // IDC and DIC are Armv8's too; bits 31:29 of CTR are the format (0b100) and CWG sits where it does in CTR_EL0.
        _ if enc == CTR_EL0 => id::CTR,
        _ => return id::constant(enc),
    })
}

/// The encoding of the feature register at CP15 `c0, c<crm>, <op2>`.
pub const fn feature(crm: u8, op2: u8) -> u16 {
    enc::enc(3, 0, 0, crm as u16, op2 as u16)
}
