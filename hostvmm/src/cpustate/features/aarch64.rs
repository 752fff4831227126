//! The fields of AArch64's identification registers, of CTR_EL0 and PMCR_EL0, and of the firmware's pseudo-registers, with what they
//! promise (DDI 0487 D24.2; A2 for the FEAT_ names).

use super::{Field, Order, Rest, field};
use crate::cpustate::id::{self, firmware, services, sysreg};

/// The fields of the register of `id`, and what the bits are that they leave out.
pub(super) fn fields(id: u64) -> Option<(&'static [Field], Rest)> {
    let at = |crm, op2| sysreg(3, 0, 0, crm, op2);
    Some(match id {
        _ if id == at(4, 0) => (PFR0, Rest::Fields),
        _ if id == at(4, 1) => (PFR1, Rest::Fields),
        _ if id == at(4, 4) => (ZFR0, Rest::Fields),
        _ if id == at(5, 0) => (DFR0, Rest::Fields),
        _ if id == at(6, 0) => (ISAR0, Rest::Fields),
        _ if id == at(6, 1) => (ISAR1, Rest::Fields),
        _ if id == at(6, 2) => (ISAR2, Rest::Fields),
        _ if id == at(7, 0) => (MMFR0, Rest::Fields),
        _ if id == at(7, 1) => (MMFR1, Rest::Fields),
        _ if id == at(7, 2) => (MMFR2, Rest::Fields),
        _ if id == at(7, 3) => (MMFR3, Rest::Fields),
        // Implementation-defined: nothing to compare.
        _ if id == at(5, 4) || id == at(5, 5) => return None,
        _ if id::is_feature_space(id) && id >= at(4, 0) => (&[], Rest::Fields),
        id::CTR_EL0 => (CTR, Rest::Nothing),
        id::PMCR_EL0 => (PMCR, Rest::Nothing),
        _ if id == firmware(0) => (PSCI, Rest::Nothing),
        _ if id == firmware(1) || id == firmware(3) => (WORKAROUND, Rest::Nothing),
        _ if id == firmware(2) => (WORKAROUND_2, Rest::Nothing),
        _ if id == services(0) => (STD, Rest::Bits),
        _ if id == services(1) => (STD_HYP, Rest::Bits),
        _ if id == services(2) => (VENDOR_HYP, Rest::Bits),
        _ => return None,
    })
}

/// A field that says nothing at EL1: of EL2, EL3, stage 2 or the Secure state.
const fn silent(name: &'static str, low: u32) -> Field {
    field(name, low, &[]).order(Order::Silent)
}

const PFR0: &[Field] = &[
    field("EL0", 0, &[(1, "AArch64 at EL0"), (2, "AArch32 at EL0")]),
    silent("EL1", 4),
    silent("EL2", 8),
    silent("EL3", 12),
    field("FP", 16, &[(0, "FEAT_FP"), (1, "FEAT_FP16")]).order(Order::Signed),
    field("AdvSIMD", 20, &[(0, "FEAT_AdvSIMD"), (1, "FEAT_FP16")]).order(Order::Signed),
    field("GIC", 24, &[(1, "FEAT_GICv3"), (3, "FEAT_GICv4p1")]),
    field("RAS", 28, &[(1, "FEAT_RAS"), (2, "FEAT_RASv1p1"), (3, "FEAT_RASv2")]),
    field("SVE", 32, &[(1, "FEAT_SVE")]),
    silent("SEL2", 36),
    field("MPAM", 40, &[(1, "FEAT_MPAM")]),
    field("AMU", 44, &[(1, "FEAT_AMUv1"), (2, "FEAT_AMUv1p1")]),
    field("DIT", 48, &[(1, "FEAT_DIT")]),
    silent("RME", 52),
    field("CSV2", 56, &[(1, "FEAT_CSV2"), (2, "FEAT_CSV2_2"), (3, "FEAT_CSV2_3")]),
    field("CSV3", 60, &[(1, "FEAT_CSV3")]),
];

const PFR1: &[Field] = &[
    field("BT", 0, &[(1, "FEAT_BTI")]),
    field("SSBS", 4, &[(1, "FEAT_SSBS"), (2, "FEAT_SSBS2")]),
    field("MTE", 8, &[(1, "FEAT_MTE"), (2, "FEAT_MTE2"), (3, "FEAT_MTE3")]),
    field("RAS_frac", 12, &[(1, "FEAT_RASv1p1")]),
    field("MPAM_frac", 16, &[(1, "FEAT_MPAMv0p1")]),
    field("SME", 24, &[(1, "FEAT_SME"), (2, "FEAT_SME2")]),
    field("RNDR_trap", 28, &[(1, "FEAT_RNG_TRAP")]),
    field("CSV2_frac", 32, &[(1, "FEAT_CSV2_1p1"), (2, "FEAT_CSV2_1p2")]),
    field("NMI", 36, &[(1, "FEAT_NMI")]),
    field("MTE_frac", 40, &[]).order(Order::Signed),
    field("GCS", 44, &[(1, "FEAT_GCS")]),
    field("THE", 48, &[(1, "FEAT_THE")]),
    field("MTEX", 52, &[(1, "FEAT_MTE_CANONICAL_TAGS")]),
    field("DF2", 56, &[(1, "FEAT_DoubleFault2")]),
    field("PFAR", 60, &[(1, "FEAT_PFAR")]),
];

const ZFR0: &[Field] = &[
    field("SVEver", 0, &[(1, "FEAT_SVE2"), (2, "FEAT_SVE2p1")]),
    field("AES", 4, &[(1, "FEAT_SVE_AES"), (2, "FEAT_SVE_PMULL128")]),
    field("BitPerm", 16, &[(1, "FEAT_SVE_BitPerm")]),
    field("BF16", 20, &[(1, "FEAT_BF16"), (2, "FEAT_EBF16")]),
    field("SHA3", 32, &[(1, "FEAT_SVE_SHA3")]),
    field("SM4", 40, &[(1, "FEAT_SVE_SM4")]),
    field("I8MM", 44, &[(1, "FEAT_I8MM")]),
    field("F32MM", 52, &[(1, "FEAT_F32MM")]),
    field("F64MM", 56, &[(1, "FEAT_F64MM")]),
];

const DFR0: &[Field] = &[
    field(
        "DebugVer",
        0,
        &[(8, "FEAT_Debugv8p2"), (9, "FEAT_Debugv8p4"), (10, "FEAT_Debugv8p8"), (11, "FEAT_Debugv8p9")],
    ),
    field("TraceVer", 4, &[(1, "trace registers")]),
    field(
        "PMUVer",
        8,
        &[
            (1, "FEAT_PMUv3"),
            (4, "FEAT_PMUv3p1"),
            (5, "FEAT_PMUv3p4"),
            (6, "FEAT_PMUv3p5"),
            (7, "FEAT_PMUv3p7"),
            (8, "FEAT_PMUv3p8"),
            (9, "FEAT_PMUv3p9"),
        ],
    )
    .order(Order::NoneAtTop),
    field("BRPs", 12, &[]),
    field("PMSS", 16, &[(1, "FEAT_PMUv3_SS")]),
    field("WRPs", 20, &[]),
    field("SEBEP", 24, &[(1, "FEAT_SEBEP")]),
    field("CTX_CMPs", 28, &[]),
    field("PMSVer", 32, &[(1, "FEAT_SPE"), (2, "FEAT_SPEv1p1"), (3, "FEAT_SPEv1p2"), (4, "FEAT_SPEv1p3")]),
    field("DoubleLock", 36, &[(0, "FEAT_DoubleLock")]).order(Order::Signed),
    field("TraceFilt", 40, &[(1, "FEAT_TRF")]),
    field("TraceBuffer", 44, &[(1, "FEAT_TRBE")]),
    field("MTPMU", 48, &[(1, "FEAT_MTPMU")]).order(Order::NoneAtTop),
    field("BRBE", 52, &[(1, "FEAT_BRBE"), (2, "FEAT_BRBEv1p1")]),
    silent("HPMN0", 60),
];

const ISAR0: &[Field] = &[
    field("AES", 4, &[(1, "FEAT_AES"), (2, "FEAT_PMULL")]),
    field("SHA1", 8, &[(1, "FEAT_SHA1")]),
    field("SHA2", 12, &[(1, "FEAT_SHA256"), (2, "FEAT_SHA512")]),
    field("CRC32", 16, &[(1, "FEAT_CRC32")]),
    field("Atomic", 20, &[(2, "FEAT_LSE"), (3, "FEAT_LSE128")]),
    field("TME", 24, &[(1, "FEAT_TME")]),
    field("RDM", 28, &[(1, "FEAT_RDM")]),
    field("SHA3", 32, &[(1, "FEAT_SHA3")]),
    field("SM3", 36, &[(1, "FEAT_SM3")]),
    field("SM4", 40, &[(1, "FEAT_SM4")]),
    field("DP", 44, &[(1, "FEAT_DotProd")]),
    field("FHM", 48, &[(1, "FEAT_FHM")]),
    field("TS", 52, &[(1, "FEAT_FlagM"), (2, "FEAT_FlagM2")]),
    field("TLB", 56, &[(1, "FEAT_TLBIOS"), (2, "FEAT_TLBIRANGE")]),
    field("RNDR", 60, &[(1, "FEAT_RNG")]),
];

const ISAR1: &[Field] = &[
    field("DPB", 0, &[(1, "FEAT_DPB"), (2, "FEAT_DPB2")]),
    field("APA", 4, &[(1, "FEAT_PACQARMA5")]),
    field("API", 8, &[(1, "FEAT_PACIMP")]),
    field("JSCVT", 12, &[(1, "FEAT_JSCVT")]),
    field("FCMA", 16, &[(1, "FEAT_FCMA")]),
    field("LRCPC", 20, &[(1, "FEAT_LRCPC"), (2, "FEAT_LRCPC2"), (3, "FEAT_LRCPC3")]),
    field("GPA", 24, &[(1, "FEAT_PACQARMA5")]),
    field("GPI", 28, &[(1, "FEAT_PACIMP")]),
    field("FRINTTS", 32, &[(1, "FEAT_FRINTTS")]),
    field("SB", 36, &[(1, "FEAT_SB")]),
    field("SPECRES", 40, &[(1, "FEAT_SPECRES"), (2, "FEAT_SPECRES2")]),
    field("BF16", 44, &[(1, "FEAT_BF16"), (2, "FEAT_EBF16")]),
    field("DGH", 48, &[(1, "FEAT_DGH")]),
    field("I8MM", 52, &[(1, "FEAT_I8MM")]),
    field("XS", 56, &[(1, "FEAT_XS")]),
    field("LS64", 60, &[(1, "FEAT_LS64"), (2, "FEAT_LS64_V"), (3, "FEAT_LS64_ACCDATA")]),
];

const ISAR2: &[Field] = &[
    field("WFxT", 0, &[(2, "FEAT_WFxT")]),
    field("RPRES", 4, &[(1, "FEAT_RPRES")]),
    field("GPA3", 8, &[(1, "FEAT_PACQARMA3")]),
    field("APA3", 12, &[(1, "FEAT_PACQARMA3")]),
    field("MOPS", 16, &[(1, "FEAT_MOPS")]),
    field("BC", 20, &[(1, "FEAT_HBC")]),
    field("PAC_frac", 24, &[(1, "FEAT_CONSTPACFIELD")]),
    field("CLRBHB", 28, &[(1, "FEAT_CLRBHB")]),
    field("SYSREG_128", 32, &[(1, "FEAT_SYSREG128")]),
    field("SYSINSTR_128", 36, &[(1, "FEAT_SYSINSTR128")]),
    field("PRFMSLC", 40, &[(1, "FEAT_PRFMSLC")]),
    field("RPRFM", 48, &[(1, "FEAT_RPRFM")]),
    field("CSSC", 52, &[(1, "FEAT_CSSC")]),
    field("LUT", 56, &[(1, "FEAT_LUT")]),
    field("ATS1A", 60, &[(1, "FEAT_ATS1A")]),
];

const MMFR0: &[Field] = &[
    field(
        "PARange",
        0,
        &[
            (1, "36-bit addresses"),
            (2, "40-bit addresses"),
            (3, "42-bit addresses"),
            (4, "44-bit addresses"),
            (5, "48-bit addresses"),
            (6, "52-bit addresses"),
        ],
    ),
    field("ASIDBits", 4, &[(2, "16-bit ASIDs")]),
    field("BigEnd", 8, &[(1, "FEAT_MixedEnd")]),
    silent("SNSMem", 12),
    field("BigEndEL0", 16, &[(1, "FEAT_MixedEndEL0")]),
    field("TGran16", 20, &[(1, "the 16K granule"), (2, "FEAT_LPA2")]),
    field("TGran64", 24, &[(0, "the 64K granule")]).order(Order::Signed),
    field("TGran4", 28, &[(0, "the 4K granule"), (1, "FEAT_LPA2")]).order(Order::Signed),
    silent("TGran16_2", 32),
    silent("TGran64_2", 36),
    silent("TGran4_2", 40),
    field("ExS", 44, &[(1, "FEAT_ExS")]),
    silent("FGT", 56),
    field("ECV", 60, &[(1, "FEAT_ECV")]),
];

const MMFR1: &[Field] = &[
    field(
        "HAFDBS",
        0,
        &[(1, "the access flag of FEAT_HAFDBS"), (2, "the dirty state of FEAT_HAFDBS"), (3, "FEAT_HAFT")],
    ),
    silent("VMIDBits", 4),
    silent("VH", 8),
    field("HPDS", 12, &[(1, "FEAT_HPDS"), (2, "FEAT_HPDS2")]),
    field("LO", 16, &[(1, "FEAT_LOR")]),
    field("PAN", 20, &[(1, "FEAT_PAN"), (2, "FEAT_PAN2"), (3, "FEAT_PAN3")]),
    // Whether speculation raises SError: a burden, not an offer.
    silent("SpecSEI", 24),
    silent("XNX", 28),
    silent("TWED", 32),
    field("ETS", 36, &[(2, "FEAT_ETS2"), (3, "FEAT_ETS3")]),
    silent("HCX", 40),
    field("AFP", 44, &[(1, "FEAT_AFP")]),
    field("nTLBPA", 48, &[(1, "FEAT_nTLBPA")]),
    field("TIDCP1", 52, &[(1, "FEAT_TIDCP1")]),
    field("CMOW", 56, &[(1, "FEAT_CMOW")]),
    field("ECBHB", 60, &[(1, "FEAT_ECBHB")]),
];

const MMFR2: &[Field] = &[
    field("CnP", 0, &[(1, "FEAT_TTCNP")]),
    field("UAO", 4, &[(1, "FEAT_UAO")]),
    field("LSM", 8, &[(1, "FEAT_LSMAOC")]),
    field("IESB", 12, &[(1, "FEAT_IESB")]),
    field("VARange", 16, &[(1, "FEAT_LVA"), (2, "FEAT_LVA3")]),
    field("CCIDX", 20, &[(1, "FEAT_CCIDX")]),
    silent("NV", 24),
    field("ST", 28, &[(1, "FEAT_TTST")]),
    field("AT", 32, &[(1, "FEAT_LSE2")]),
    field("IDS", 36, &[(1, "FEAT_IDST")]),
    silent("FWB", 40),
    field("TTL", 48, &[(1, "FEAT_TTL")]),
    field("BBM", 52, &[(1, "level 1 of FEAT_BBM"), (2, "level 2 of FEAT_BBM")]),
    silent("EVT", 56),
    field("E0PD", 60, &[(1, "FEAT_E0PD")]),
];

const MMFR3: &[Field] = &[
    field("TCRX", 0, &[(1, "FEAT_TCR2")]),
    field("SCTLRX", 4, &[(1, "FEAT_SCTLR2")]),
    field("S1PIE", 8, &[(1, "FEAT_S1PIE")]),
    silent("S2PIE", 12),
    field("S1POE", 16, &[(1, "FEAT_S1POE")]),
    silent("S2POE", 20),
    field("AIE", 24, &[(1, "FEAT_AIE")]),
    field("D128", 32, &[(1, "FEAT_D128")]),
];

/// Lines: a guest that maintains by steps of the source's line must meet each of the destination's, so those may be longer. Granules
/// to keep apart: the destination's may be smaller.
const CTR: &[Field] = &[
    field("IminLine", 0, &[]),
    field("L1Ip", 14, &[(3, "PIPT instruction caches")]).width(2),
    field("DminLine", 16, &[]),
    field("ERG", 20, &[]).order(Order::Least),
    field("CWG", 24, &[]).order(Order::Least),
    field("IDC", 28, &[(1, "instruction fetch without cleaning of data")]).width(1),
    field("DIC", 29, &[(1, "instruction fetch without invalidation")]).width(1),
];

const PMCR: &[Field] = &[field("N", 11, &[]).width(5)];

const PSCI: &[Field] = &[field("version", 0, &[]).width(32)];
const WORKAROUND: &[Field] = &[field("level", 0, &[(1, "the workaround"), (2, "needing no workaround")])];
/// 1 is "unknown", as good as none.
const WORKAROUND_2: &[Field] = &[field("level", 0, &[(2, "the workaround"), (3, "needing no workaround")])];
/// Each service is a bit of its own.
const STD: &[Field] = &[field("TRNG_V1_0", 0, &[(1, "random numbers by SMCCC TRNG")]).width(1)];
const STD_HYP: &[Field] = &[field("PV_TIME", 0, &[(1, "stolen time by PV_TIME")]).width(1)];
const VENDOR_HYP: &[Field] = &[
    field("FUNC_FEAT", 0, &[(1, "KVM's list of its services")]).width(1),
    field("PTP", 1, &[(1, "the host's clock by KVM's PTP service")]).width(1),
];
