//! What the CPU can do, from its ID registers (DDI 0487 D24.2).

use aarch64_cpu::registers::{ID_AA64ISAR0_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64PFR0_EL1};
use abi::{Granule, Tables};
use pagetable::{HardwareUpdate, PaSize};
use tock_registers::interfaces::Readable;

use super::cache;

/// The CPU's features that matter here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    mmfr0: u64,
    /// FEAT_LSE.
    pub(crate) lse: bool,
    /// Advanced SIMD.
    pub(crate) simd: bool,
    /// FEAT_HAFDBS.
    pub(crate) hardware_update: HardwareUpdate,
    /// Bytes that DC ZVA clears, where it is permitted.
    pub(crate) zva_bytes: Option<u64>,
}

impl Features {
    /// Reads the ID registers of this vCPU; all are alike.
    pub(crate) fn detect() -> Self {
        let field = |register: u64, shift: u32| register >> shift & 0xf;
        Self {
            mmfr0: ID_AA64MMFR0_EL1.get(),
            lse: field(ID_AA64ISAR0_EL1.get(), 20) >= 2,
            simd: field(ID_AA64PFR0_EL1.get(), 20) != 0xf,
            hardware_update: match field(ID_AA64MMFR1_EL1.get(), 0) {
                0 => HardwareUpdate::None,
                1 => HardwareUpdate::AccessFlag,
                _ => HardwareUpdate::AccessFlagAndDirty,
            },
            zva_bytes: cache::zva_bytes(),
        }
    }

    /// Whether stage 1 can use `tables`: TGran4 and TGran64 are 0xf where not, TGran16 is 0.
    pub(crate) fn has_tables(&self, tables: Tables) -> bool {
        let Tables::V8(va) = tables else { return false };
        match va.granule() {
            Granule::K4 => self.mmfr0 >> 28 & 0xf != 0xf,
            Granule::K16 => self.mmfr0 >> 20 & 0xf != 0,
            Granule::K64 => self.mmfr0 >> 24 & 0xf != 0xf,
        }
    }

    /// Size of physical addresses.
    pub(crate) fn pa_size(&self) -> PaSize {
        PaSize::from_id_aa64mmfr0(self.mmfr0)
    }
}
