//! Last-level descriptors of the `tablewalk` pattern's live tables (DDI 0487 D8.3.2, VMSAv8-64 page descriptors).
//!
//! A descriptor is always valid and maps one granule of Normal memory, readable at EL1, never executable. What changes
//! is the pair of bits that the hardware manages (FEAT_HAFDBS): the access flag, and AP\[2\], which DBM makes the
//! dirty state: read-only means clean, and the first write makes it writable.

use abi::{Gpa, Granule};

/// Bits 1:0: a page descriptor.
const PAGE: u64 = 0b11;
/// Bits 4:2, AttrIndx: MAIR slot 0, which the guest sets to Normal, Write-Back.
const ATTR_NORMAL: u64 = 0 << 2;
/// Bits 9:8, SH: Inner Shareable.
const INNER_SHAREABLE: u64 = 0b11 << 8;
/// Bit 7, AP\[2\]: read-only; with [`DBM`], writable and clean.
pub const READ_ONLY: u64 = 1 << 7;
/// Bit 10: the access flag.
pub const ACCESS_FLAG: u64 = 1 << 10;
/// Bit 51, DBM: hardware may clear AP\[2\] on a write.
pub const DBM: u64 = 1 << 51;
/// Bit 53: not executable at EL1.
const PXN: u64 = 1 << 53;
/// Bit 54: not executable at EL0.
const UXN: u64 = 1 << 54;

/// What the hardware has noted about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// AF = 0, AP\[2\] = 1: never accessed.
    Fresh,
    /// AF = 1, AP\[2\] = 1: read, not written.
    Clean,
    /// AF = 1, AP\[2\] = 0: written.
    Dirty,
}

/// The descriptor of the page at `page` in `state`. Global (nG = 0), so that it fits under TTBR0 and TTBR1.
///
/// # Panics
/// If `page` is not aligned to the granule or lies at or above 2^48.
pub fn page_descriptor(granule: Granule, page: Gpa, state: State) -> u64 {
    assert!(page.is_aligned(granule.bytes()) && page.raw() >> 48 == 0, "{page} is no page's address");
    let managed = match state {
        State::Fresh => READ_ONLY,
        State::Clean => READ_ONLY | ACCESS_FLAG,
        State::Dirty => ACCESS_FLAG,
    };
    page.raw() | PAGE | ATTR_NORMAL | INNER_SHAREABLE | DBM | PXN | UXN | managed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_golden() {
        let page = Gpa::new(0x2000_4000);
        assert_eq!(page_descriptor(Granule::K16, page, State::Fresh), 0x0068_0000_2000_4383);
        assert_eq!(page_descriptor(Granule::K16, page, State::Clean), 0x0068_0000_2000_4783);
        assert_eq!(page_descriptor(Granule::K16, page, State::Dirty), 0x0068_0000_2000_4703);
    }

    #[test]
    fn access_flag_and_dirty_state_lie_in_different_bytes() {
        // A checker that judges byte by byte needs no rule for a descriptor of which one update is seen and not the other.
        assert_eq!((ACCESS_FLAG >> 8) & 0xff, 4);
        assert_eq!(READ_ONLY & 0xff, READ_ONLY);
    }
}
