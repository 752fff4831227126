//! Register values that go with the tables (DDI 0487 D24.2: TCR_EL1, MAIR_EL1).

use abi::{Granule, VaBits};

/// MAIR_EL1: attribute 0 is Normal, inner and outer write-back non-transient, read and write allocate (0xff);
/// attribute 1 is Device-nGnRE (0x04).
pub const MAIR_EL1: u64 = 0x04ff;

/// Physical address sizes, as `ID_AA64MMFR0_EL1.PARange` and `TCR_EL1.IPS` encode them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum PaSize {
    /// 4 GiB.
    Bits32 = 0,
    /// 64 GiB.
    Bits36 = 1,
    /// 1 TiB.
    Bits40 = 2,
    /// 4 TiB.
    Bits42 = 3,
    /// 16 TiB.
    Bits44 = 4,
    /// 256 TiB.
    Bits48 = 5,
}

impl PaSize {
    /// The size to use on a CPU whose `ID_AA64MMFR0_EL1` is `value`. Larger ones than 48 bits are used as 48, since
    /// descriptors here have no room for more.
    pub const fn from_id_aa64mmfr0(value: u64) -> Self {
        match value & 0xf {
            0 => Self::Bits32,
            1 => Self::Bits36,
            2 => Self::Bits40,
            3 => Self::Bits42,
            4 => Self::Bits44,
            _ => Self::Bits48,
        }
    }
}

/// What the hardware may change in descriptors (FEAT_HAFDBS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardwareUpdate {
    /// Nothing: a clear access flag faults.
    None,
    /// HA: the walker sets the access flag.
    AccessFlag,
    /// HA and HD: it also makes [`crate::Write::Tracked`] entries writable.
    AccessFlagAndDirty,
}

/// TCR_EL1 for tables of `va` in both halves: same size and granule, inner shareable write-back walks, 8-bit ASIDs from
/// TTBR0_EL1, no address tags.
pub const fn tcr_el1(va: VaBits, pa: PaSize, update: HardwareUpdate) -> u64 {
    const IRGN_WB: u64 = 0b01 << 8;
    const ORGN_WB: u64 = 0b01 << 10;
    const SH_INNER: u64 = 0b11 << 12;
    let txsz = 64 - va.bits() as u64;
    // TG0 and TG1 encode the same three sizes differently.
    let (tg0, tg1) = match va.granule() {
        Granule::K4 => (0b00, 0b10),
        Granule::K16 => (0b10, 0b01),
        Granule::K64 => (0b01, 0b11),
    };
    let half = txsz | IRGN_WB | ORGN_WB | SH_INNER;
    let (ha, hd) = match update {
        HardwareUpdate::None => (0, 0),
        HardwareUpdate::AccessFlag => (1, 0),
        HardwareUpdate::AccessFlagAndDirty => (1, 1),
    };
    half | half << 16 | tg0 << 14 | tg1 << 30 | (pa as u64) << 32 | ha << 39 | hd << 40
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcr_values_are_golden() {
        let tcr = |granule, bits, update| tcr_el1(VaBits::new(granule, bits).unwrap(), PaSize::Bits40, update);
        assert_eq!(tcr(Granule::K4, 48, HardwareUpdate::None), 0x0002_b510_3510);
        assert_eq!(tcr(Granule::K4, 39, HardwareUpdate::AccessFlag), 0x0082_b519_3519);
        assert_eq!(tcr(Granule::K16, 36, HardwareUpdate::None), 0x0002_751c_b51c);
        assert_eq!(tcr(Granule::K64, 42, HardwareUpdate::AccessFlagAndDirty), 0x0182_f516_7516);
    }

    #[test]
    fn larger_physical_addresses_than_48_bits_are_used_as_48() {
        assert_eq!(PaSize::from_id_aa64mmfr0(0x1122), PaSize::Bits40);
        assert_eq!(PaSize::from_id_aa64mmfr0(6), PaSize::Bits48);
    }
}
