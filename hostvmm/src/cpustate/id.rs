//! KVM's register ids by their parts (the kernel's `arch/arm64/include/uapi/asm/kvm.h`): bits 63:60 the architecture, 59:52 the
//! size, 31:16 the kind, 15:0 which. Neighbours: the table names every id with these.

const ARM: u64 = 0x4 << 60;
const ARM64: u64 = 0x6 << 60;
const U32: u64 = 2 << 52;
const U64: u64 = 3 << 52;
const U128: u64 = 4 << 52;
/// KVM_REG_ARM_CORE: an offset in `struct kvm_regs`, in words of 32 bits.
const CORE: u64 = 0x10 << 16;
/// KVM_REG_ARM_DEMUX: CCSIDR by the value of CSSELR.
const DEMUX: u64 = 0x11 << 16;
/// KVM_REG_ARM64_SYSREG: a system register by its encoding.
const SYSREG: u64 = 0x13 << 16;
/// KVM_REG_ARM_FW: the firmware's versions and levels.
const FIRMWARE: u64 = 0x14 << 16;
/// KVM_REG_ARM64_SVE.
const SVE: u64 = 0x15 << 16;
/// KVM_REG_ARM_FW_FEAT_BMAP: the firmware's services.
const SERVICES: u64 = 0x16 << 16;

/// SP_EL0.
pub(super) const SP_EL0: u64 = core(31);
/// The program counter.
pub(super) const PC: u64 = core(32);
/// PSTATE; of an AArch32 guest the CPSR.
pub(super) const PSTATE: u64 = core(33);
/// SP_EL1.
pub(super) const SP_EL1: u64 = core(34);
/// ELR_EL1.
pub(super) const ELR_EL1: u64 = core(35);
/// FPSR: behind 32 vector registers that begin at byte 336.
pub(super) const FPSR: u64 = ARM64 | U32 | CORE | ((336 + 32 * 16) / 4);
/// FPCR.
pub(super) const FPCR: u64 = FPSR + 1;
/// The virtual counter: the *encoding* of CNTV_CVAL_EL0. KVM's ids of it and of the compare value are swapped against the
/// encodings, by an accident that became ABI.
pub(super) const TIMER_CNT: u64 = sysreg(3, 3, 14, 3, 2);
/// The virtual timer's compare value: the *encoding* of CNTVCT_EL0.
pub(super) const TIMER_CVAL: u64 = sysreg(3, 3, 14, 0, 2);
/// The virtual timer's control.
pub(super) const TIMER_CTL: u64 = sysreg(3, 3, 14, 3, 1);
/// The physical counter.
pub(super) const PTIMER_CNT: u64 = sysreg(3, 3, 14, 0, 1);
/// The physical timer's compare value.
pub(super) const PTIMER_CVAL: u64 = sysreg(3, 3, 14, 2, 2);
/// The physical timer's control.
pub(super) const PTIMER_CTL: u64 = sysreg(3, 3, 14, 2, 1);
/// CPACR_EL1.
pub(super) const CPACR_EL1: u64 = sysreg(3, 0, 1, 0, 2);
/// ID_AA64PFR0_EL1.
pub(super) const ID_AA64PFR0_EL1: u64 = sysreg(3, 0, 0, 4, 0);
/// CTR_EL0.
pub(super) const CTR_EL0: u64 = sysreg(3, 3, 0, 0, 1);
/// PMCR_EL0.
pub(super) const PMCR_EL0: u64 = sysreg(3, 3, 9, 12, 0);
/// PMCNTENSET_EL0.
pub(super) const PMCNTENSET_EL0: u64 = sysreg(3, 3, 9, 12, 1);
/// KVM_REG_ARM64_SVE_VLS, the vector lengths.
pub(super) const SVE_VLS: u64 = ARM64 | 6 << 52 | SVE | 0xffff;

/// 64-bit word `word` of `struct kvm_regs`: X0 to X30 are 0 to 30, spsr\[5\] is 36 to 40.
pub(super) const fn core(word: u64) -> u64 {
    ARM64 | U64 | CORE | (2 * word)
}

/// V0 to V31.
pub(super) const fn vector(number: u64) -> u64 {
    ARM64 | U128 | CORE | ((336 + 16 * number) / 4)
}

/// The system register of this encoding.
pub(super) const fn sysreg(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    ARM64 | U64 | SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// PMEVTYPERn_EL0.
pub(super) const fn event_type(counter: u8) -> u64 {
    let counter = counter as u64;
    sysreg(3, 3, 14, 12 + (counter >> 3), counter & 7)
}

/// CCSIDR as CSSELR = `select` shows it.
pub(super) const fn cache(select: u64) -> u64 {
    ARM64 | U32 | DEMUX | select
}

/// KVM_REG_ARM_FW_REG.
pub(super) const fn firmware(number: u64) -> u64 {
    ARM64 | U64 | FIRMWARE | number
}

/// KVM_REG_ARM_FW_FEAT_BMAP_REG.
pub(super) const fn services(number: u64) -> u64 {
    ARM64 | U64 | SERVICES | number
}

/// Z0 to Z31, their first 2048 bits.
pub(super) const fn sve_z(number: u64) -> u64 {
    ARM64 | 8 << 52 | SVE | number << 5
}

/// P0 to P15, and as 16 FFR: their first 256 bits.
pub(super) const fn sve_p(number: u64) -> u64 {
    ARM64 | 5 << 52 | SVE | 0x400 | number << 5
}

/// A 32-bit register of CP15, as KVM on 32-bit hosts names it (KVM_REG_ARM, `__ARM_CP15_REG`).
pub(super) const fn cp15(opc1: u64, crn: u64, crm: u64, opc2: u64) -> u64 {
    ARM | U32 | 15 << 16 | crn << 11 | crm << 7 | opc1 << 3 | opc2
}

/// A 64-bit register of CP15.
pub(super) const fn cp15_wide(opc1: u64, crm: u64) -> u64 {
    ARM | U64 | 15 << 16 | crm << 7 | opc1 << 3
}

/// Whether the id is in the space of feature registers: op0 3, op1 0, CRn 0, CRm 1 to 7.
pub(super) const fn is_feature_space(id: u64) -> bool {
    id >= sysreg(3, 0, 0, 1, 0) && id <= sysreg(3, 0, 0, 7, 7)
}

/// The bits that a register of this id has: as many as its size, 128 at most.
pub(super) const fn bits(id: u64) -> u128 {
    match id >> 52 & 0xff {
        size @ 0..=3 => (1 << (8 << size)) - 1,
        _ => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_kernels() {
        let ids = [
            (core(0), 0x6030_0000_0010_0000),
            (PSTATE, 0x6030_0000_0010_0042),
            (vector(31), 0x6040_0000_0010_00d0),
            (FPCR, 0x6020_0000_0010_00d5),
            (TIMER_CNT, 0x6030_0000_0013_df1a),
            (TIMER_CVAL, 0x6030_0000_0013_df02),
            (cache(13), 0x6020_0000_0011_000d),
            (firmware(3), 0x6030_0000_0014_0003),
            (services(2), 0x6030_0000_0016_0002),
            (sve_z(31), 0x6080_0000_0015_03e0),
            (sve_p(16), 0x6050_0000_0015_0600),
            (SVE_VLS, 0x6060_0000_0015_ffff),
            // SCTLR and TTBR0 of CP15, as a Cortex-A15's KVM lists them.
            (cp15(0, 1, 0, 0), 0x4020_0000_000f_0800),
            (cp15_wide(0, 2), 0x4030_0000_000f_0100),
        ];
        for (found, expected) in ids {
            assert_eq!(found, expected, "{found:#x}, {expected:#x}");
        }
        assert_eq!((bits(FPCR), bits(PC), bits(sve_z(0))), (0xffff_ffff, u128::from(u64::MAX), u128::MAX));
    }
}
