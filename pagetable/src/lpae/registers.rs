//! Register values that go with LPAE tables (DDI 0406 B4.1.153 TTBCR, B4.1.104 MAIR0 and MAIR1).

/// MAIR0: attribute 0 is Normal, inner and outer write-back non-transient, read and write allocate (0xff); attribute 1
/// is Device (0x04). The low half of [`crate::MAIR_EL1`].
pub const MAIR0: u32 = crate::MAIR_EL1 as u32;

/// MAIR1: attributes 4 to 7, none of which is used.
pub const MAIR1: u32 = 0;

/// TTBCR: EAE, and TTBR0 for all of the address space (T0SZ and T1SZ 0), inner shareable write-back walks.
pub const fn ttbcr() -> u32 {
    const EAE: u32 = 1 << 31;
    const IRGN0_WB: u32 = 0b01 << 8;
    const ORGN0_WB: u32 = 0b01 << 10;
    const SH0_INNER: u32 = 0b11 << 12;
    EAE | IRGN0_WB | ORGN0_WB | SH0_INNER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_values_are_golden() {
        assert_eq!((ttbcr(), MAIR0, MAIR1), (0x8000_3500, 0x04ff, 0));
    }
}
