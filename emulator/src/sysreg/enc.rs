//! Encodings of the system registers and system instructions: op0:op1:CRn:CRm:op2 packed into 16 bits as in
//! `KVM_REG_ARM64_SYSREG` (2, 3, 4, 4 and 3 bits). Names are the manual's; where each is described: DDI 0487 D24 and C5.

/// Packs an encoding. Arguments above their width are a mistake in this crate and spill into the neighbour.
pub const fn enc(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

macro_rules! encodings {
    ($($name:ident = $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal;)*) => {
        $(#[doc = concat!("`", stringify!($name), "`")] pub const $name: u16 = enc($op0, $op1, $crn, $crm, $op2);)*

        /// The manual's name of `enc`, or `None` for an encoding that this emulator does not know.
        pub fn name(enc: u16) -> Option<&'static str> {
            match enc { $($name => Some(stringify!($name)),)* _ => None }
        }
    };
}

encodings! {
    // Debug (D24.3).
    OSDTRRX_EL1 = 2 0 0 0 2;
    MDCCINT_EL1 = 2 0 0 2 0;
    MDSCR_EL1 = 2 0 0 2 2;
    OSDTRTX_EL1 = 2 0 0 3 2;
    MDRAR_EL1 = 2 0 1 0 0;
    OSLAR_EL1 = 2 0 1 0 4;
    OSLSR_EL1 = 2 0 1 1 4;
    OSDLR_EL1 = 2 0 1 3 4;
    DBGPRCR_EL1 = 2 0 1 4 4;
    MDCCSR_EL0 = 2 3 0 1 0;
    // Identification.
    MIDR_EL1 = 3 0 0 0 0;
    MPIDR_EL1 = 3 0 0 0 5;
    REVIDR_EL1 = 3 0 0 0 6;
    ID_AA64PFR0_EL1 = 3 0 0 4 0;
    ID_AA64PFR1_EL1 = 3 0 0 4 1;
    ID_AA64DFR0_EL1 = 3 0 0 5 0;
    ID_AA64DFR1_EL1 = 3 0 0 5 1;
    ID_AA64ISAR0_EL1 = 3 0 0 6 0;
    ID_AA64ISAR1_EL1 = 3 0 0 6 1;
    ID_AA64MMFR0_EL1 = 3 0 0 7 0;
    ID_AA64MMFR1_EL1 = 3 0 0 7 1;
    ID_AA64MMFR2_EL1 = 3 0 0 7 2;
    CCSIDR_EL1 = 3 1 0 0 0;
    CLIDR_EL1 = 3 1 0 0 1;
    AIDR_EL1 = 3 1 0 0 7;
    CSSELR_EL1 = 3 2 0 0 0;
    CTR_EL0 = 3 3 0 0 1;
    DCZID_EL0 = 3 3 0 0 7;
    // Control, translation, exceptions.
    SCTLR_EL1 = 3 0 1 0 0;
    ACTLR_EL1 = 3 0 1 0 1;
    CPACR_EL1 = 3 0 1 0 2;
    TTBR0_EL1 = 3 0 2 0 0;
    TTBR1_EL1 = 3 0 2 0 1;
    TCR_EL1 = 3 0 2 0 2;
    SPSR_EL1 = 3 0 4 0 0;
    ELR_EL1 = 3 0 4 0 1;
    SP_EL0 = 3 0 4 1 0;
    SPSEL = 3 0 4 2 0;
    CURRENT_EL = 3 0 4 2 2;
    PAN = 3 0 4 2 3;
    ICC_PMR_EL1 = 3 0 4 6 0;
    AFSR0_EL1 = 3 0 5 1 0;
    AFSR1_EL1 = 3 0 5 1 1;
    ESR_EL1 = 3 0 5 2 0;
    FAR_EL1 = 3 0 6 0 0;
    PAR_EL1 = 3 0 7 4 0;
    MAIR_EL1 = 3 0 10 2 0;
    AMAIR_EL1 = 3 0 10 3 0;
    VBAR_EL1 = 3 0 12 0 0;
    ISR_EL1 = 3 0 12 1 0;
    ICC_SGI1R_EL1 = 3 0 12 11 5;
    ICC_ASGI1R_EL1 = 3 0 12 11 6;
    ICC_SGI0R_EL1 = 3 0 12 11 7;
    CONTEXTIDR_EL1 = 3 0 13 0 1;
    TPIDR_EL1 = 3 0 13 0 4;
    CNTKCTL_EL1 = 3 0 14 1 0;
    NZCV = 3 3 4 2 0;
    DAIF = 3 3 4 2 1;
    FPCR = 3 3 4 4 0;
    FPSR = 3 3 4 4 1;
    TPIDR_EL0 = 3 3 13 0 2;
    TPIDRRO_EL0 = 3 3 13 0 3;
    // AArch32's, as EL2 sees them; KVM's ids for state.
    DBGVCR32_EL2 = 2 4 0 7 0;
    DACR32_EL2 = 3 4 3 0 0;
    IFSR32_EL2 = 3 4 5 0 1;
    FPEXC32_EL2 = 3 4 5 3 0;
    // Performance monitors.
    PMINTENSET_EL1 = 3 0 9 14 1;
    PMINTENCLR_EL1 = 3 0 9 14 2;
    PMCR_EL0 = 3 3 9 12 0;
    PMCNTENSET_EL0 = 3 3 9 12 1;
    PMCNTENCLR_EL0 = 3 3 9 12 2;
    PMOVSCLR_EL0 = 3 3 9 12 3;
    PMSWINC_EL0 = 3 3 9 12 4;
    PMSELR_EL0 = 3 3 9 12 5;
    PMCEID0_EL0 = 3 3 9 12 6;
    PMCEID1_EL0 = 3 3 9 12 7;
    PMCCNTR_EL0 = 3 3 9 13 0;
    PMXEVTYPER_EL0 = 3 3 9 13 1;
    PMXEVCNTR_EL0 = 3 3 9 13 2;
    PMUSERENR_EL0 = 3 3 9 14 0;
    PMOVSSET_EL0 = 3 3 9 14 3;
    PMCCFILTR_EL0 = 3 3 14 15 7;
    // Generic timer.
    CNTFRQ_EL0 = 3 3 14 0 0;
    CNTPCT_EL0 = 3 3 14 0 1;
    CNTVCT_EL0 = 3 3 14 0 2;
    CNTP_TVAL_EL0 = 3 3 14 2 0;
    CNTP_CTL_EL0 = 3 3 14 2 1;
    CNTP_CVAL_EL0 = 3 3 14 2 2;
    CNTV_TVAL_EL0 = 3 3 14 3 0;
    CNTV_CTL_EL0 = 3 3 14 3 1;
    CNTV_CVAL_EL0 = 3 3 14 3 2;
    // Cache maintenance and zeroing (C5.3).
    IC_IALLUIS = 1 0 7 1 0;
    IC_IALLU = 1 0 7 5 0;
    IC_IVAU = 1 3 7 5 1;
    DC_IVAC = 1 0 7 6 1;
    DC_ISW = 1 0 7 6 2;
    DC_CSW = 1 0 7 10 2;
    DC_CISW = 1 0 7 14 2;
    DC_ZVA = 1 3 7 4 1;
    DC_CVAC = 1 3 7 10 1;
    DC_CVAU = 1 3 7 11 1;
    DC_CVAP = 1 3 7 12 1;
    DC_CIVAC = 1 3 7 14 1;
    // Address translation (C5.4).
    AT_S1E1R = 1 0 7 8 0;
    AT_S1E1W = 1 0 7 8 1;
    AT_S1E0R = 1 0 7 8 2;
    AT_S1E0W = 1 0 7 8 3;
    AT_S1E1RP = 1 0 7 9 0;
    AT_S1E1WP = 1 0 7 9 1;
    // TLB maintenance (C5.5).
    TLBI_VMALLE1IS = 1 0 8 3 0;
    TLBI_VAE1IS = 1 0 8 3 1;
    TLBI_ASIDE1IS = 1 0 8 3 2;
    TLBI_VAAE1IS = 1 0 8 3 3;
    TLBI_VALE1IS = 1 0 8 3 5;
    TLBI_VAALE1IS = 1 0 8 3 7;
    TLBI_VMALLE1 = 1 0 8 7 0;
    TLBI_VAE1 = 1 0 8 7 1;
    TLBI_ASIDE1 = 1 0 8 7 2;
    TLBI_VAAE1 = 1 0 8 7 3;
    TLBI_VALE1 = 1 0 8 7 5;
    TLBI_VAALE1 = 1 0 8 7 7;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_pack_as_kvm_packs_them() {
        // MPIDR_EL1 and CNTVCT_EL0 as in the kernel's headers: ARM64_SYS_REG(3,0,0,0,5), ARM64_SYS_REG(3,3,14,0,2)... the
        // low half of KVM_REG_ARM_TIMER_CNT 0x603000000013df1a and CVAL 0x603000000013df02.
        assert_eq!(MPIDR_EL1, 0xc005);
        assert_eq!(CNTV_CVAL_EL0, 0xdf1a);
        assert_eq!(CNTVCT_EL0, 0xdf02);
        assert_eq!(name(MPIDR_EL1), Some("MPIDR_EL1"));
        assert_eq!(name(0), None);
    }
}
