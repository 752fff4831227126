//! The fields of AArch32's identification registers, with what they promise (DDI 0487 G8.2).

use super::{Field, Order, Rest, field};
use crate::cpustate::id::{self, sysreg};

/// The fields of the register of `id`, and what the bits are that they leave out.
pub(super) fn fields(id: u64) -> Option<(&'static [Field], Rest)> {
    let at = |crm, op2| sysreg(3, 0, 0, crm, op2);
    // ID_AFR0 is implementation-defined.
    if !id::is_feature_space(id) || id >= at(4, 0) || id == at(1, 3) {
        return None;
    }
    let fields = match (id >> 3 & 15, id & 7) {
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
        (2, 7) => ISAR6,
        (3, 0) => MVFR0,
        (3, 1) => MVFR1,
        (3, 2) => MVFR2,
        (3, 4) => PFR2,
        (3, 6) => MMFR5,
        _ => &[],
    };
    Some((fields, Rest::Fields))
}

const fn silent(name: &'static str, low: u32) -> Field {
    field(name, low, &[]).order(Order::Silent)
}

const PFR0: &[Field] = &[
    field("State0", 0, &[(1, "A32")]),
    field("State1", 4, &[(1, "T32"), (3, "Thumb-2")]),
    // A trivial Jazelle, whose BXJ is BX, is what every Armv8 has, whether it says so or not.
    silent("State2", 8),
    field("State3", 12, &[(1, "T32EE")]),
    field("CSV2", 16, &[(1, "FEAT_CSV2")]),
    field("AMU", 20, &[(1, "FEAT_AMUv1")]),
    field("DIT", 24, &[(1, "FEAT_DIT")]),
    field("RAS", 28, &[(1, "FEAT_RAS")]),
];

const PFR1: &[Field] = &[
    field("ProgMod", 0, &[]),
    silent("Security", 4),
    field("MProgMod", 8, &[]),
    silent("Virtualization", 12),
    field("GenTimer", 16, &[(1, "the generic timer"), (2, "FEAT_ECV")]),
    silent("Sec_frac", 20),
    silent("Virt_frac", 24),
    field("GIC", 28, &[(1, "FEAT_GICv3")]),
];

const PFR2: &[Field] = &[field("CSV3", 0, &[(1, "FEAT_CSV3")]), field("SSBS", 4, &[(1, "FEAT_SSBS")])];

const DFR0: &[Field] = &[
    field("CopDbg", 0, &[(8, "FEAT_Debugv8p2"), (9, "FEAT_Debugv8p4")]),
    silent("CopSDbg", 4),
    field("MMapDbg", 8, &[]),
    field("CopTrc", 12, &[(1, "trace registers")]),
    field("MMapTrc", 16, &[]),
    field("MProfDbg", 20, &[]),
    field("PerfMon", 24, &[(3, "FEAT_PMUv3"), (4, "FEAT_PMUv3p1"), (5, "FEAT_PMUv3p4"), (6, "FEAT_PMUv3p5")])
        .order(Order::NoneAtTop),
    field("TraceFilt", 28, &[(1, "FEAT_TRF")]),
];

const MMFR0: &[Field] = &[
    field("VMSA", 0, &[(3, "VMSAv7"), (4, "PXN"), (5, "long descriptors")]),
    field("PMSA", 4, &[]),
    field("OuterShr", 8, &[]).order(Order::NoneAtTop),
    field("ShareLvl", 12, &[(1, "two levels of shareability")]),
    field("TCM", 16, &[]),
    field("AuxReg", 20, &[]),
    field("FCSE", 24, &[]),
    field("InnerShr", 28, &[]).order(Order::NoneAtTop),
];

const MMFR1: &[Field] = &[
    field("L1HvdVA", 0, &[]),
    field("L1UniVA", 4, &[]),
    field("L1HvdSW", 8, &[]),
    field("L1UniSW", 12, &[]),
    field("L1Hvd", 16, &[]),
    field("L1Uni", 20, &[]),
    field("L1TstCln", 24, &[]),
    field("BPred", 28, &[(4, "a branch predictor without maintenance")]),
];

const MMFR2: &[Field] = &[
    field("L1HvdFG", 0, &[]),
    field("L1HvdBG", 4, &[]),
    field("L1HvdRng", 8, &[]),
    field("HvdTLB", 12, &[]),
    field("UniTLB", 16, &[]),
    field("MemBarr", 20, &[]),
    field("WFIStall", 24, &[]),
    field("HWAccFlg", 28, &[]),
];

const MMFR3: &[Field] = &[
    field("CMaintVA", 0, &[]),
    field("CMaintSW", 4, &[]),
    field("BPMaint", 8, &[]),
    field("MaintBcst", 12, &[]),
    field("PAN", 16, &[(1, "FEAT_PAN"), (2, "FEAT_PAN2")]),
    field("CohWalk", 20, &[]),
    field("CMemSz", 24, &[(1, "36-bit addresses"), (2, "40-bit addresses")]),
    field("Supersec", 28, &[(0, "supersections")]).order(Order::Signed),
];

const MMFR4: &[Field] = &[
    silent("SpecSEI", 0),
    field("AC2", 4, &[]),
    silent("XNX", 8),
    field("CnP", 12, &[(1, "FEAT_TTCNP")]),
    field("HPDS", 16, &[(1, "FEAT_AA32HPD"), (2, "FEAT_HPDS2")]),
    field("LSM", 20, &[(1, "FEAT_LSMAOC")]),
    field("CCIDX", 24, &[(1, "FEAT_CCIDX")]),
    silent("EVT", 28),
];

const MMFR5: &[Field] =
    &[field("ETS", 0, &[(2, "FEAT_ETS2"), (3, "FEAT_ETS3")]), field("nTLBPA", 4, &[(1, "FEAT_nTLBPA")])];

const ISAR0: &[Field] = &[
    field("Swap", 0, &[(1, "SWP")]),
    field("BitCount", 4, &[(1, "CLZ")]),
    field("BitField", 8, &[(1, "BFC, BFI, SBFX, UBFX")]),
    field("CmpBranch", 12, &[(1, "CBZ, CBNZ")]),
    field("Coproc", 16, &[]),
    field("Debug", 20, &[(1, "BKPT")]),
    field("Divide", 24, &[(1, "SDIV, UDIV in T32"), (2, "SDIV, UDIV in A32")]),
];

const ISAR1: &[Field] = &[
    field("Endian", 0, &[(1, "SETEND")]),
    field("Except", 4, &[]),
    field("Except_AR", 8, &[]),
    field("Extend", 12, &[]),
    field("IfThen", 16, &[(1, "IT")]),
    field("Immediate", 20, &[(1, "MOVW, MOVT")]),
    field("Interwork", 24, &[]),
    silent("Jazelle", 28),
];

const ISAR2: &[Field] = &[
    field("LoadStore", 0, &[(1, "LDRD, STRD"), (2, "LDA, STL")]),
    field("MemHint", 4, &[]),
    field("MultiAccessInt", 8, &[]),
    field("Mult", 12, &[]),
    field("MultS", 16, &[]),
    field("MultU", 20, &[]),
    field("PSR_AR", 24, &[]),
    field("Reversal", 28, &[]),
];

const ISAR3: &[Field] = &[
    field("Saturate", 0, &[]),
    field("SIMD", 4, &[]),
    field("SVC", 8, &[]),
    field("SynchPrim", 12, &[]),
    field("TabBranch", 16, &[(1, "TBB, TBH")]),
    field("T32Copy", 20, &[]),
    field("TrueNOP", 24, &[]),
    field("T32EE", 28, &[]),
];

const ISAR4: &[Field] = &[
    field("Unpriv", 0, &[]),
    field("WithShifts", 4, &[]),
    field("Writeback", 8, &[]),
    // Guests have no EL3 to call.
    silent("SMC", 12),
    field("Barrier", 16, &[(1, "DMB, DSB, ISB")]),
    field("SynchPrim_frac", 20, &[]),
    field("PSR_M", 24, &[]),
    field("SWP_frac", 28, &[]),
];

const ISAR5: &[Field] = &[
    field("SEVL", 0, &[(1, "SEVL")]),
    field("AES", 4, &[(1, "FEAT_AES"), (2, "FEAT_PMULL")]),
    field("SHA1", 8, &[(1, "FEAT_SHA1")]),
    field("SHA2", 12, &[(1, "FEAT_SHA256")]),
    field("CRC32", 16, &[(1, "FEAT_CRC32")]),
    field("RDM", 24, &[(1, "FEAT_RDM")]),
    field("VCMA", 28, &[(1, "FEAT_FCMA")]),
];

const ISAR6: &[Field] = &[
    field("JSCVT", 0, &[(1, "FEAT_JSCVT")]),
    field("DP", 4, &[(1, "FEAT_DotProd")]),
    field("FHM", 8, &[(1, "FEAT_FHM")]),
    field("SB", 12, &[(1, "FEAT_SB")]),
    field("SPECRES", 16, &[(1, "FEAT_SPECRES")]),
    field("BF16", 20, &[(1, "FEAT_AA32BF16")]),
    field("I8MM", 24, &[(1, "FEAT_AA32I8MM")]),
    field("CLRBHB", 28, &[(1, "FEAT_CLRBHB")]),
];

const MVFR0: &[Field] = &[
    field("SIMDReg", 0, &[(1, "16 SIMD registers"), (2, "32 SIMD registers")]),
    field("FPSP", 4, &[(1, "VFPv2's single precision"), (2, "VFPv3's single precision")]),
    field("FPDP", 8, &[(1, "VFPv2's double precision"), (2, "VFPv3's double precision")]),
    field("FPTrap", 12, &[]),
    field("FPDivide", 16, &[(1, "VDIV")]),
    field("FPSqrt", 20, &[(1, "VSQRT")]),
    field("FPShVec", 24, &[]),
    field("FPRound", 28, &[]),
];

const MVFR1: &[Field] = &[
    field("FPFtZ", 0, &[]),
    field("FPDNaN", 4, &[]),
    field("SIMDLS", 8, &[(1, "SIMD loads and stores")]),
    field("SIMDInt", 12, &[(1, "SIMD integer instructions")]),
    field("SIMDSP", 16, &[(1, "SIMD single precision")]),
    field("SIMDHP", 20, &[(1, "SIMD half precision"), (2, "FEAT_FP16")]),
    field("FPHP", 24, &[(1, "half precision"), (3, "FEAT_FP16")]),
    field("SIMDFMAC", 28, &[(1, "fused multiply-add")]),
];

const MVFR2: &[Field] = &[field("SIMDMisc", 0, &[]), field("FPMisc", 4, &[])];
