//! What the host's CPU shows to a guest, as far as blocks depend on it: [`Features`].

use std::thread;

use emulator::sysreg::enc::*;

use super::super::isa::SYSREG;
use crate::backend::{Accelerator, BackendError, Vcpu, provenance};

/// Features of the host: what it lacks is not generated. The emulator has them all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Features {
    pub(super) crc32: bool,
    pub(super) lse: bool,
    pub(super) lor: bool,
    pub(super) rcpc: bool,
    pub(super) flagm: bool,
    pub(super) pan: bool,
    /// AT S1E1RP and S1E1WP.
    pub(super) pan2: bool,
    /// DC CVAP.
    pub(super) dpb: bool,
    /// Hardware sets the access flag.
    pub(super) access_flag: bool,
    /// Hardware manages dirty state.
    pub(super) dirty_state: bool,
    /// TCR_EL1.HPDn.
    pub(super) hpds: bool,
    /// TCR_EL1.AS.
    pub(super) asid16: bool,
    pub(super) granule16: bool,
    pub(super) granule64: bool,
    /// Largest TCR_EL1.IPS.
    pub(super) output_size: u64,
    /// DC ZVA zeroes what the emulator's does.
    pub(super) zeroes_64_bytes: bool,
    /// Misaligned atomics within 16 bytes work (FEAT_LSE2), which the emulator has not.
    pub(super) lse2: bool,
    /// EL0's accesses to ID registers are trapped and not UNDEFINED (FEAT_IDST), which the emulator has not.
    pub(super) idst: bool,
    /// The host's CPU is QEMU's, which knows no alignment of SP, among other things.
    pub(super) emulated: bool,
    /// It is, and has other CPUs beside it, for which QEMU executes atomics otherwise.
    pub(super) emulated_parallel: bool,
}

impl Features {
    /// Reads them from a vCPU of the host.
    ///
    /// # Errors
    /// [`BackendError::Register`].
    pub(super) fn of(vcpu: &mut dyn Vcpu) -> Result<Self, BackendError> {
        let mut field = |register: u16, low: u32| -> Result<u64, BackendError> {
            Ok(vcpu.get_reg(SYSREG | u64::from(register))? as u64 >> low & 15)
        };
        let emulated = provenance(Accelerator::Kvm) != Accelerator::Kvm.to_string();
        let parallel = thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        Ok(Self {
            crc32: field(ID_AA64ISAR0_EL1, 16)? >= 1,
            lse: field(ID_AA64ISAR0_EL1, 20)? >= 2,
            flagm: field(ID_AA64ISAR0_EL1, 52)? >= 1,
            dpb: field(ID_AA64ISAR1_EL1, 0)? >= 1,
            rcpc: field(ID_AA64ISAR1_EL1, 20)? >= 1,
            hpds: field(ID_AA64MMFR1_EL1, 12)? >= 1,
            lor: field(ID_AA64MMFR1_EL1, 16)? >= 1,
            pan: field(ID_AA64MMFR1_EL1, 20)? >= 1,
            pan2: field(ID_AA64MMFR1_EL1, 20)? >= 2,
            access_flag: field(ID_AA64MMFR1_EL1, 0)? >= 1,
            dirty_state: field(ID_AA64MMFR1_EL1, 0)? >= 2,
            asid16: field(ID_AA64MMFR0_EL1, 4)? == 2,
            granule16: matches!(field(ID_AA64MMFR0_EL1, 20)?, 1 | 2),
            granule64: field(ID_AA64MMFR0_EL1, 24)? == 0,
            output_size: field(ID_AA64MMFR0_EL1, 0)?.min(4),
            lse2: field(ID_AA64MMFR2_EL1, 32)? >= 1,
            idst: field(ID_AA64MMFR2_EL1, 36)? >= 1,
            emulated,
            emulated_parallel: emulated && parallel,
            // DCZID_EL0 is no register of KVM's: a guest must be asked.
            zeroes_64_bytes: false,
        })
    }

    /// Whether the feature called `name` in encodings.txt is there.
    pub(super) fn has(&self, name: &str) -> bool {
        match name {
            "crc32" => self.crc32,
            "lse" => self.lse,
            "lor" => self.lor,
            "rcpc" => self.rcpc,
            "flagm" => self.flagm,
            _ => true,
        }
    }

    /// Those of the emulator.
    #[cfg(test)]
    pub(super) const ALL: Self = Self {
        crc32: true,
        lse: true,
        lor: true,
        rcpc: true,
        flagm: true,
        pan: true,
        pan2: true,
        dpb: true,
        access_flag: true,
        dirty_state: true,
        hpds: true,
        asid16: true,
        granule16: true,
        granule64: true,
        output_size: 4,
        zeroes_64_bytes: true,
        lse2: false,
        idst: false,
        emulated: false,
        emulated_parallel: false,
    };
}
