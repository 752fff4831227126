//! Register values that go with short-descriptor tables (DDI 0406 B4.1.127 PRRR, B4.1.111 NMRR, B4.1.154 TTBR0,
//! B4.1.43 DACR). SCTLR.AFE and SCTLR.TRE must be set.

use abi::Gpa;

/// PRRR: type 0 is Normal, type 1 Device. S makes both shareable (NS1, DS1), type 0 inner shareable (NOS0).
pub const PRRR: u32 = 0b10 | 0b01 << 2 | 1 << 17 | 1 << 19 | 1 << 24;

/// NMRR: type 0 is write-back, write-allocate, inner and outer.
pub const NMRR: u32 = 0b01 | 0b01 << 16;

/// TTBCR: short descriptors, TTBR0 for all of the address space (N 0).
pub const TTBCR: u32 = 0;

/// DACR: domain 0 is checked ("client"), all others fault.
pub const DACR: u32 = 0b01;

/// TTBR0 for tables whose first level lies at `root`: inner shareable write-back walks (S, NOS, RGN and IRGN 0b01; the
/// layout with the Multiprocessing Extensions).
pub const fn ttbr0(root: Gpa) -> u32 {
    const SHAREABLE: u32 = 1 << 1;
    const RGN_WB: u32 = 0b01 << 3;
    const NOT_OUTER: u32 = 1 << 5;
    const IRGN_WB: u32 = 1 << 6;
    root.raw() as u32 | SHAREABLE | RGN_WB | NOT_OUTER | IRGN_WB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_values_are_golden() {
        assert_eq!(ttbr0(Gpa::new(0x4030_0000)), 0x4030_006a);
        assert_eq!((PRRR, NMRR, DACR, TTBCR), (0x010a_0006, 0x0001_0001, 1, 0));
    }
}
