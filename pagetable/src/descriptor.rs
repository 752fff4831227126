//! What the 64 bits of a stage-1 descriptor mean (DDI 0487 D8.3, "Translation table descriptor formats").
//!
//! [`Attributes`] is what a caller asks for, [`Descriptor`] what an entry says. EL0 is never given access: the firmware
//! has no user mode. Neighbours: [`crate::Mapper`] writes these, [`crate::walker`] reads the bits on its own.

use abi::{Gpa, Granule};

/// Bits \[1:0\]: a valid block (levels 1 and 2).
const TYPE_BLOCK: u64 = 0b01;
/// Bits \[1:0\]: a table (levels 0 to 2) or a page (level 3).
const TYPE_TABLE_OR_PAGE: u64 = 0b11;
const TYPE_MASK: u64 = 0b11;
/// AttrIndx\[2:0\], bits \[4:2\]: index into MAIR_EL1.
const ATTR_INDEX_SHIFT: u32 = 2;
const ATTR_INDEX_MASK: u64 = 0b111 << ATTR_INDEX_SHIFT;
/// AP\[2\], bit 7: read-only.
const AP_READ_ONLY: u64 = 1 << 7;
/// SH\[1:0\], bits \[9:8\]: inner shareable.
const SH_INNER: u64 = 0b11 << 8;
/// AF, bit 10: the access flag.
const AF: u64 = 1 << 10;
/// nG, bit 11: not global.
const NOT_GLOBAL: u64 = 1 << 11;
/// DBM, bit 51: the hardware may clear AP\[2\] (FEAT_HAFDBS).
const DBM: u64 = 1 << 51;
/// PXN, bit 53: never executed at EL1.
const PXN: u64 = 1 << 53;
/// UXN, bit 54: never executed at EL0.
const UXN: u64 = 1 << 54;
/// Output address: bits \[47:12\] at most; without FEAT_LPA and FEAT_LPA2 the bits below the granule are zero.
const ADDRESS_MASK: u64 = 0x0000_ffff_ffff_f000;

/// The kinds of memory in MAIR_EL1, in the order of its indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// Normal memory, inner and outer write-back, inner shareable. AttrIndx 0.
    Normal,
    /// Device-nGnRE. AttrIndx 1.
    Device,
}

impl MemoryType {
    /// Index into [`crate::MAIR_EL1`].
    pub const fn attr_index(self) -> u64 {
        match self {
            Self::Normal => 0,
            Self::Device => 1,
        }
    }
}

/// Whether EL1 may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// Read-only.
    No,
    /// Read and write.
    Yes,
    /// Read-only until the first write, which the hardware records by making the entry writable (DBM). Needs
    /// [`crate::HardwareUpdate::AccessFlagAndDirty`]; without it a write faults.
    Tracked,
}

/// Whether code may run from the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Execute {
    /// Never.
    No,
    /// At EL1.
    El1,
}

/// What a mapping allows, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// Memory type and cacheability.
    pub memory: MemoryType,
    /// Write permission.
    pub write: Write,
    /// Execute permission.
    pub execute: Execute,
    /// Whether TLB entries match in every address space.
    pub global: bool,
    /// The access flag's first value. With `false`, the first access faults or, with hardware updates on, sets it.
    pub accessed: bool,
}

impl Attributes {
    /// Normal memory, read and write, not executable.
    pub const DATA: Self =
        Self { memory: MemoryType::Normal, write: Write::Yes, execute: Execute::No, global: true, accessed: true };
    /// Normal memory, read-only, not executable.
    pub const CONSTANTS: Self = Self { write: Write::No, ..Self::DATA };
    /// Normal memory, read-only, executable at EL1.
    pub const TEXT: Self = Self { execute: Execute::El1, ..Self::CONSTANTS };
    /// Device registers, read and write, not executable.
    pub const DEVICE: Self = Self { memory: MemoryType::Device, ..Self::DATA };

    const fn bits(self) -> u64 {
        let mut bits = (self.memory.attr_index() << ATTR_INDEX_SHIFT) | UXN;
        if matches!(self.memory, MemoryType::Normal) {
            bits |= SH_INNER; // device memory is outer shareable whatever SH says (D8.6.2)
        }
        match self.write {
            Write::No => bits |= AP_READ_ONLY,
            Write::Yes => {}
            Write::Tracked => bits |= AP_READ_ONLY | DBM,
        }
        if matches!(self.execute, Execute::No) {
            bits |= PXN;
        }
        if !self.global {
            bits |= NOT_GLOBAL;
        }
        if self.accessed {
            bits |= AF;
        }
        bits
    }

    const fn from_bits(bits: u64) -> Option<Self> {
        let memory = match (bits & ATTR_INDEX_MASK) >> ATTR_INDEX_SHIFT {
            0 => MemoryType::Normal,
            1 => MemoryType::Device,
            _ => return None,
        };
        let attributes = Self {
            memory,
            // An entry with DBM that the hardware has made writable reads as `Yes`: that is what it allows now.
            write: match (bits & AP_READ_ONLY != 0, bits & DBM != 0) {
                (false, _) => Write::Yes,
                (true, true) => Write::Tracked,
                (true, false) => Write::No,
            },
            execute: if bits & PXN != 0 { Execute::No } else { Execute::El1 },
            global: bits & NOT_GLOBAL == 0,
            accessed: bits & AF != 0,
        };
        Some(attributes)
    }
}

/// The meaning of one entry of a table at a known level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Faults.
    Invalid,
    /// Points to the next level's table.
    Table(Gpa),
    /// A block (levels 1 and 2) or a page (level 3).
    Leaf {
        /// First byte of the output.
        gpa: Gpa,
        /// What it allows.
        attributes: Attributes,
    },
    /// Valid, but not as [`crate::Mapper`] writes it: a reserved type or an unknown memory type.
    Foreign(u64),
}

impl Descriptor {
    /// The entry's bits in a table at `level` (0 to 3). The addresses must be aligned for the level and below 2^48.
    pub const fn encode(self, level: u32) -> u64 {
        match self {
            Self::Invalid => 0,
            Self::Table(gpa) => gpa.raw() | TYPE_TABLE_OR_PAGE,
            Self::Leaf { gpa, attributes } => {
                gpa.raw() | attributes.bits() | if level == 3 { TYPE_TABLE_OR_PAGE } else { TYPE_BLOCK }
            }
            Self::Foreign(bits) => bits,
        }
    }

    /// What `bits` mean in a table at `level` (0 to 3) of `granule`.
    pub fn decode(bits: u64, level: u32, granule: Granule) -> Self {
        let address = bits & ADDRESS_MASK & !(granule.bytes() - 1);
        let leaf = match (bits & TYPE_MASK, level) {
            (0b00 | 0b10, _) => return Self::Invalid, // bit 0 clear: invalid whatever bit 1 says
            (TYPE_TABLE_OR_PAGE, 0..=2) => return Self::Table(Gpa::new(address)),
            (TYPE_TABLE_OR_PAGE, _) => true,
            _ => crate::geometry::has_blocks(granule, level),
        };
        match Attributes::from_bits(bits) {
            Some(attributes) if leaf => Self::Leaf { gpa: Gpa::new(address), attributes },
            _ => Self::Foreign(bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries as a Linux arm64 kernel prints them for its own mappings, or put together by hand from D8.3's figures.
    #[test]
    fn encodings_are_golden() {
        let gpa = Gpa::new(0x4020_0000);
        let page = |attributes| Descriptor::Leaf { gpa, attributes }.encode(3);
        assert_eq!(page(Attributes::DATA), 0x0060_0000_4020_0703);
        assert_eq!(page(Attributes::CONSTANTS), 0x0060_0000_4020_0783);
        assert_eq!(page(Attributes::TEXT), 0x0040_0000_4020_0783);
        assert_eq!(page(Attributes::DEVICE), 0x0060_0000_4020_0407);
        assert_eq!(page(Attributes { global: false, ..Attributes::DATA }), 0x0060_0000_4020_0f03);
        let tracked = Attributes { write: Write::Tracked, accessed: false, ..Attributes::DATA };
        assert_eq!(page(tracked), 0x0068_0000_4020_0383);
        assert_eq!(Descriptor::Leaf { gpa, attributes: Attributes::DATA }.encode(2), 0x0060_0000_4020_0701);
        assert_eq!(Descriptor::Table(gpa).encode(0), 0x4020_0003);
        assert_eq!(Descriptor::Invalid.encode(3), 0);
    }

    #[test]
    fn every_attribute_survives_encoding() {
        for level in [1, 2, 3] {
            for memory in [MemoryType::Normal, MemoryType::Device] {
                for write in [Write::No, Write::Yes, Write::Tracked] {
                    for execute in [Execute::No, Execute::El1] {
                        for (global, accessed) in [(false, false), (false, true), (true, false), (true, true)] {
                            let leaf = Descriptor::Leaf {
                                gpa: Gpa::new(0xffff_c000_0000),
                                attributes: Attributes { memory, write, execute, global, accessed },
                            };
                            assert_eq!(Descriptor::decode(leaf.encode(level), level, Granule::K4), leaf);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_entry_made_writable_by_the_hardware_reads_as_writable() {
        let tracked = Attributes { write: Write::Tracked, ..Attributes::DATA };
        let before = Descriptor::Leaf { gpa: Gpa::new(0x1000), attributes: tracked }.encode(3);
        let after = Descriptor::decode(before & !AP_READ_ONLY, 3, Granule::K4);
        assert_eq!(after, Descriptor::Leaf { gpa: Gpa::new(0x1000), attributes: Attributes::DATA });
    }

    #[test]
    fn blocks_where_the_granule_has_none_are_foreign() {
        let block = Descriptor::Leaf { gpa: Gpa::new(0), attributes: Attributes::DATA }.encode(1);
        assert!(matches!(Descriptor::decode(block, 1, Granule::K4), Descriptor::Leaf { .. }));
        for (level, granule) in [(0, Granule::K4), (1, Granule::K16), (1, Granule::K64), (3, Granule::K4)] {
            assert_eq!(Descriptor::decode(block, level, granule), Descriptor::Foreign(block));
        }
    }
}
