//! Where an ARMv7 guest has room for aliases of the region: [`Armv7Aliases`]. The guest places them by it; hostvmm finds out by it,
//! before anything is built, that there is no room.

use crate::addr::GuestRange;
use crate::map::RAM_BASE;

/// First address above the devices that nothing is mapped to.
const START: u64 = 0x0c00_0000;
/// End of what 32 bits of virtual address reach.
const END: u64 = 1 << 32;
/// An alias has the alignment of what it maps up to this, so that sections and blocks fit it as they fit the original.
const ALIGN: u64 = 2 << 20;

/// The virtual addresses of one alias of the region after the other, for as long as there is room: devices and RAM are mapped at
/// their physical addresses, so aliases lie below and above RAM.
#[derive(Clone, Debug)]
pub struct Armv7Aliases {
    /// Start and end of what is left.
    rooms: [(u64, u64); 2],
    region: GuestRange,
}

impl Armv7Aliases {
    /// The aliases of `region` beside `ram`, or the part of it that is mapped.
    pub const fn new(ram: GuestRange, region: GuestRange) -> Self {
        Self { rooms: [(START, RAM_BASE.raw()), (ram.end().raw(), END)], region }
    }
}

impl Iterator for Armv7Aliases {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let within = self.region.start().raw() % ALIGN;
        self.rooms.iter_mut().find_map(|(start, end)| {
            let at = start.next_multiple_of(ALIGN) + within;
            let alias_end = at + self.region.len_bytes();
            (alias_end <= *end).then(|| {
                *start = alias_end;
                at
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::addr::Gpa;
    use crate::map::{REGION_BASE, REGION_SIZE};

    #[test]
    fn aliases_lie_aligned_as_the_region_and_overlap_nothing() {
        let ram = GuestRange::new(RAM_BASE, 256 << 20).unwrap();
        let region = GuestRange::new(Gpa::new(REGION_BASE.raw() + 0x1000), REGION_SIZE).unwrap();
        let aliases: Vec<u64> = Armv7Aliases::new(ram, region).collect();
        assert_eq!(aliases[0], START + 0x1000);
        assert!(aliases.windows(2).all(|pair| pair[0] + region.len_bytes() <= pair[1]));
        for at in aliases {
            assert_eq!(at % ALIGN, 0x1000);
            assert!(at + region.len_bytes() <= RAM_BASE.raw() || at >= ram.end().raw());
            assert!(at + region.len_bytes() <= END);
        }
    }

    #[test]
    fn a_region_that_fits_once_has_one_alias() {
        let ram = GuestRange::new(RAM_BASE, 256 << 20).unwrap();
        let region = GuestRange::new(Gpa::new(0x8000_0000), 1600 << 20).unwrap();
        assert_eq!(Armv7Aliases::new(ram, region).collect::<Vec<_>>(), [ram.end().raw()]);
    }
}
