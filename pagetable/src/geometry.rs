//! Levels, index bits and block sizes of each granule (DDI 0487 D8.2, without FEAT_LPA, FEAT_LPA2 and FEAT_LVA).
//!
//! Neighbours: [`crate::Mapper`] and [`crate::Descriptor`]. The walker has its own arithmetic.

use core::fmt;

use abi::{Granule, VaBits};

/// A virtual address. Like [`abi::Gpa`] it has no arithmetic operators.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Va(u64);

impl Va {
    /// The address `raw`, in bytes.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The address as a raw number.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Lowest address that TTBR1_EL1 translates in `va`: 2^64 − 2^bits.
    pub const fn high_base(va: VaBits) -> Self {
        Self(u64::MAX << va.bits())
    }
}

impl fmt::Display for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Va({:#x})", self.0)
    }
}

/// Bytes of one descriptor.
pub(crate) const DESCRIPTOR_BYTES: u64 = 8;
/// The level of pages; always the last.
pub(crate) const LAST_LEVEL: u32 = 3;

/// VA bits that index one table: a table is one granule of 8-byte descriptors.
const fn index_bits(granule: Granule) -> u32 {
    granule.shift() - 3
}

/// log2 of the bytes that one entry at `level` translates.
pub(crate) const fn entry_shift(granule: Granule, level: u32) -> u32 {
    granule.shift() + (LAST_LEVEL - level) * index_bits(granule)
}

/// Entries of a whole table.
pub(crate) const fn table_entries(granule: Granule) -> u64 {
    1 << index_bits(granule)
}

/// The level at which a walk starts.
pub(crate) const fn start_level(va: VaBits) -> u32 {
    let granule = va.granule();
    let levels = (va.bits() - granule.shift()).div_ceil(index_bits(granule));
    LAST_LEVEL + 1 - levels
}

/// Whether an entry at `level` may be a block: 1 GiB and 2 MiB, 32 MiB, 512 MiB. The larger ones of 16K and 64K (64 GiB,
/// 4 TiB) need FEAT_LPA2 or FEAT_LPA.
pub(crate) const fn has_blocks(granule: Granule, level: u32) -> bool {
    match granule {
        Granule::K4 => level == 1 || level == 2,
        Granule::K16 | Granule::K64 => level == 2,
    }
}

/// Sizes in bytes of the blocks that `granule` has, largest first.
pub fn block_sizes(granule: Granule) -> impl Iterator<Item = u64> {
    (0..LAST_LEVEL).filter(move |&level| has_blocks(granule, level)).map(move |level| 1 << entry_shift(granule, level))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn walks_start_where_the_architecture_says() {
        // DDI 0487 tables D8-19, D8-27 and D8-33: initial lookup level by TxSZ.
        let levels: Vec<u32> = VaBits::ALL.into_iter().map(start_level).collect();
        assert_eq!(levels, [1, 0, 2, 1, 0, 2, 1]);
    }

    #[test]
    fn block_sizes_are_those_without_large_address_extensions() {
        let sizes = |granule| block_sizes(granule).collect::<Vec<_>>();
        assert_eq!(sizes(Granule::K4), [1 << 30, 2 << 20]);
        assert_eq!(sizes(Granule::K16), [32 << 20]);
        assert_eq!(sizes(Granule::K64), [512 << 20]);
    }

    #[test]
    fn the_high_half_ends_at_the_top() {
        assert_eq!(Va::high_base(VaBits::new(Granule::K4, 39).unwrap()).raw(), 0xffff_ff80_0000_0000);
        assert_eq!(Va::high_base(VaBits::new(Granule::K64, 48).unwrap()).raw(), 0xffff_0000_0000_0000);
    }
}
