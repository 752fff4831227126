//! What the 32 bits of a short descriptor mean (DDI 0406 B3.5.1, with SCTLR.AFE and SCTLR.TRE set).
//!
//! [`First`] is an entry of the first level, [`Second`] of the second. The same attributes lie at three different places
//! in a section, a large and a small page; [`Layout`] knows them. Neighbours: [`crate::short::Mapper`] writes these,
//! [`crate::short::walker`] reads the bits on its own.

use abi::Gpa;

use crate::descriptor::{Attributes, Execute, MemoryType, Write};

/// Where the attributes lie in an entry of one kind.
struct Layout {
    xn: u32,
    /// TEX\[0\]; C and B are bits 3 and 2 everywhere.
    tex0: u32,
    /// AP\[0\]: the access flag.
    access_flag: u32,
    /// AP\[1\]: access by PL0, which is never given.
    unprivileged: u32,
    /// AP\[2\]: read-only.
    read_only: u32,
    shareable: u32,
    not_global: u32,
    /// Bits that must be zero, or a field that the mapper never uses.
    foreign: u32,
}

const C: u32 = 1 << 3;
const B: u32 = 1 << 2;

/// Domain \[8:5\], bit 9, supersection (18) and NS (19) are zero; so are TEX\[2:1\] and PXN (0).
const SECTION: Layout = Layout {
    xn: 1 << 4,
    tex0: 1 << 12,
    access_flag: 1 << 10,
    unprivileged: 1 << 11,
    read_only: 1 << 15,
    shareable: 1 << 16,
    not_global: 1 << 17,
    foreign: 0xf << 5 | 1 << 9 | 0b11 << 13 | 0b11 << 18 | 1,
};
const LARGE: Layout = Layout {
    xn: 1 << 15,
    tex0: 1 << 12,
    access_flag: 1 << 4,
    unprivileged: 1 << 5,
    read_only: 1 << 9,
    shareable: 1 << 10,
    not_global: 1 << 11,
    foreign: 0b111 << 6 | 0b11 << 13,
};
const SMALL: Layout = Layout {
    xn: 1 << 0,
    tex0: 1 << 6,
    access_flag: 1 << 4,
    unprivileged: 1 << 5,
    read_only: 1 << 9,
    shareable: 1 << 10,
    not_global: 1 << 11,
    foreign: 0b11 << 7,
};

impl Layout {
    const fn bits(&self, attributes: Attributes) -> u32 {
        let mut bits = match attributes.memory {
            MemoryType::Normal => 0,
            MemoryType::Device => B,
        };
        // PRRR.DS1 makes device memory shareable by S too, so that it is the same with and without LPAE.
        bits |= self.shareable;
        if !matches!(attributes.write, Write::Yes) {
            bits |= self.read_only;
        }
        if matches!(attributes.execute, Execute::No) {
            bits |= self.xn;
        }
        if !attributes.global {
            bits |= self.not_global;
        }
        if attributes.accessed {
            bits |= self.access_flag;
        }
        bits
    }

    const fn attributes(&self, bits: u32) -> Option<Attributes> {
        let memory = match (bits & self.tex0 != 0, bits & (C | B)) {
            (false, 0) => MemoryType::Normal,
            (false, B) => MemoryType::Device,
            _ => return None,
        };
        if bits & (self.foreign | self.unprivileged) != 0 || bits & self.shareable == 0 {
            return None;
        }
        Some(Attributes {
            memory,
            write: if bits & self.read_only != 0 { Write::No } else { Write::Yes },
            execute: if bits & self.xn != 0 { Execute::No } else { Execute::El1 },
            global: bits & self.not_global == 0,
            accessed: bits & self.access_flag != 0,
        })
    }
}

/// The meaning of one entry of the first level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Faults.
    Invalid,
    /// Points to a second-level table, 1 KiB-aligned.
    Table(Gpa),
    /// 1 MiB.
    Section {
        /// First byte of the output.
        gpa: Gpa,
        /// What it allows.
        attributes: Attributes,
    },
    /// Valid, but not as [`crate::short::Mapper`] writes it.
    Foreign(u32),
}

impl First {
    /// The entry's bits. Addresses must be aligned and below 2^32; [`Write::Tracked`] becomes read-only.
    pub const fn encode(self) -> u32 {
        match self {
            Self::Invalid => 0,
            Self::Table(gpa) => gpa.raw() as u32 | 0b01,
            Self::Section { gpa, attributes } => gpa.raw() as u32 | SECTION.bits(attributes) | 0b10,
            Self::Foreign(bits) => bits,
        }
    }

    /// What `bits` mean.
    pub const fn decode(bits: u32) -> Self {
        match bits & 0b11 {
            0b00 => Self::Invalid,
            // Domain, NS, PXN and bit 9 are zero in the mapper's tables.
            0b01 if bits & 0x3fc == 0 => Self::Table(Gpa::new((bits & 0xffff_fc00) as u64)),
            0b10 => match SECTION.attributes(bits) {
                Some(attributes) => Self::Section { gpa: Gpa::new((bits & 0xfff0_0000) as u64), attributes },
                None => Self::Foreign(bits),
            },
            _ => Self::Foreign(bits),
        }
    }
}

/// The meaning of one entry of the second level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// Faults.
    Invalid,
    /// 64 KiB; the same entry stands sixteen times, from a multiple of sixteen on.
    Large {
        /// First byte of the output.
        gpa: Gpa,
        /// What it allows.
        attributes: Attributes,
    },
    /// 4 KiB.
    Small {
        /// First byte of the output.
        gpa: Gpa,
        /// What it allows.
        attributes: Attributes,
    },
    /// Valid, but not as [`crate::short::Mapper`] writes it.
    Foreign(u32),
}

impl Second {
    /// The entry's bits. Addresses must be aligned and below 2^32; [`Write::Tracked`] becomes read-only.
    pub const fn encode(self) -> u32 {
        match self {
            Self::Invalid => 0,
            Self::Large { gpa, attributes } => gpa.raw() as u32 | LARGE.bits(attributes) | 0b01,
            Self::Small { gpa, attributes } => gpa.raw() as u32 | SMALL.bits(attributes) | 0b10,
            Self::Foreign(bits) => bits,
        }
    }

    /// What `bits` mean.
    pub const fn decode(bits: u32) -> Self {
        let found = match bits & 0b11 {
            0b00 => return Self::Invalid,
            0b01 => match LARGE.attributes(bits) {
                Some(attributes) => Some(Self::Large { gpa: Gpa::new((bits & 0xffff_0000) as u64), attributes }),
                None => None,
            },
            _ => match SMALL.attributes(bits) {
                Some(attributes) => Some(Self::Small { gpa: Gpa::new((bits & 0xffff_f000) as u64), attributes }),
                None => None,
            },
        };
        match found {
            Some(entry) => entry,
            None => Self::Foreign(bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Put together by hand from figures B3-4 and B3-5 of DDI 0406.
    #[test]
    fn encodings_are_golden() {
        let gpa = Gpa::new(0x4020_0000);
        let section = |attributes| First::Section { gpa, attributes }.encode();
        assert_eq!(section(Attributes::DATA), 0x4021_0412);
        assert_eq!(section(Attributes::CONSTANTS), 0x4021_8412);
        assert_eq!(section(Attributes::TEXT), 0x4021_8402);
        assert_eq!(section(Attributes::DEVICE), 0x4021_0416);
        let large = |attributes| Second::Large { gpa, attributes }.encode();
        assert_eq!(large(Attributes::DATA), 0x4020_8411);
        assert_eq!(large(Attributes::TEXT), 0x4020_0611);
        let small = |attributes| Second::Small { gpa, attributes }.encode();
        assert_eq!(small(Attributes::DATA), 0x4020_0413);
        assert_eq!(small(Attributes::TEXT), 0x4020_0612);
        assert_eq!(small(Attributes::DEVICE), 0x4020_0417);
        assert_eq!(small(Attributes { global: false, accessed: false, ..Attributes::DATA }), 0x4020_0c03);
        assert_eq!(First::Table(Gpa::new(0x4020_0400)).encode(), 0x4020_0401);
    }

    #[test]
    fn every_attribute_survives_encoding() {
        let gpa = Gpa::new(0xfff0_0000);
        for memory in [MemoryType::Normal, MemoryType::Device] {
            for write in [Write::No, Write::Yes] {
                for execute in [Execute::No, Execute::El1] {
                    for (global, accessed) in [(false, false), (false, true), (true, false), (true, true)] {
                        let attributes = Attributes { memory, write, execute, global, accessed };
                        let section = First::Section { gpa, attributes };
                        assert_eq!(First::decode(section.encode()), section);
                        for page in [Second::Large { gpa, attributes }, Second::Small { gpa, attributes }] {
                            assert_eq!(Second::decode(page.encode()), page);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn entries_of_other_makers_are_foreign() {
        for bits in [0x4021_0432, 0x4025_0412, 0x4021_0413, 0x4020_0421, 0x4021_0c12] {
            assert_eq!(First::decode(bits), First::Foreign(bits));
        }
        for bits in [0x4020_0433, 0x4020_041b, 0x4020_0493, 0x4020_0013] {
            assert_eq!(Second::decode(bits), Second::Foreign(bits));
        }
    }
}
