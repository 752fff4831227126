//! What tells an LPAE descriptor's bits from VMSAv8-64's (DDI 0406 B3.6.1 and B3.6.2).
//!
//! Neighbours: [`crate::descriptor`] has everything else; [`crate::lpae::Mapper`] writes these.

use abi::Granule;

use crate::descriptor::Descriptor;

/// PXN, bit 53: never executed at PL1.
const PXN: u64 = 1 << 53;
/// XN, bit 54: never executed at all. VMSAv8-64 has UXN there, which is about EL0 alone.
const XN: u64 = 1 << 54;
/// Bits \[51:40\]: above the physical address, SBZP.
const ABOVE_ADDRESS: u64 = 0xfff << 40;

/// The descriptor's bits in a table at `level` (1 to 3). The addresses must be aligned for the level and below 2^40;
/// [`crate::Write::Tracked`] has no encoding and becomes read-only.
pub const fn encode(descriptor: Descriptor, level: u32) -> u64 {
    let bits = descriptor.encode(level);
    match descriptor {
        // XN follows PXN: what the firmware executes, it executes at PL1, and PL0 has no access anyway.
        Descriptor::Leaf { .. } if bits & PXN != 0 => bits & !ABOVE_ADDRESS | XN,
        Descriptor::Leaf { .. } => bits & !ABOVE_ADDRESS & !XN,
        Descriptor::Invalid | Descriptor::Table(_) | Descriptor::Foreign(_) => bits,
    }
}

/// What `bits` mean in a table at `level` (1 to 3).
pub fn decode(bits: u64, level: u32) -> Descriptor {
    let valid = bits & 1 != 0;
    let table = bits & 0b11 == 0b11 && level < 3;
    // A leaf whose XN and PXN differ is none that the mapper writes.
    if valid && (bits & ABOVE_ADDRESS != 0 || (!table && (bits & XN == 0) != (bits & PXN == 0))) {
        return Descriptor::Foreign(bits);
    }
    match Descriptor::decode(bits, level, Granule::K4) {
        Descriptor::Foreign(_) => Descriptor::Foreign(bits),
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use abi::Gpa;

    use super::*;
    use crate::Attributes;

    #[test]
    fn encodings_are_golden() {
        let gpa = Gpa::new(0x4020_0000);
        let page = |attributes| encode(Descriptor::Leaf { gpa, attributes }, 3);
        assert_eq!(page(Attributes::DATA), 0x0060_0000_4020_0703);
        assert_eq!(page(Attributes::CONSTANTS), 0x0060_0000_4020_0783);
        assert_eq!(page(Attributes::TEXT), 0x0000_0000_4020_0783);
        assert_eq!(page(Attributes::DEVICE), 0x0060_0000_4020_0407);
        assert_eq!(encode(Descriptor::Leaf { gpa, attributes: Attributes::DATA }, 2), 0x0060_0000_4020_0701);
        assert_eq!(encode(Descriptor::Table(gpa), 1), 0x4020_0003);
    }

    #[test]
    fn descriptors_survive_encoding_and_strange_ones_are_foreign() {
        let gpa = Gpa::new(0xff_c000_0000);
        for level in [1, 2, 3] {
            for attributes in [Attributes::DATA, Attributes::CONSTANTS, Attributes::TEXT, Attributes::DEVICE] {
                let leaf = Descriptor::Leaf { gpa, attributes };
                let bits = encode(leaf, level);
                assert_eq!(decode(bits, level), leaf);
                assert_eq!(decode(bits ^ XN, level), Descriptor::Foreign(bits ^ XN));
                assert_eq!(decode(bits | 1 << 40, level), Descriptor::Foreign(bits | 1 << 40));
            }
            assert_eq!(decode(0, level), Descriptor::Invalid);
        }
        assert_eq!(decode(encode(Descriptor::Table(gpa), 1), 1), Descriptor::Table(gpa));
    }
}
