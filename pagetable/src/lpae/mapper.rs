//! The LPAE mapper: one tree for all 4 GiB, by TTBR0.
//!
//! Neighbours: `tree` does the work, as for VMSAv8-64; [`crate::lpae::walker`] reads the result back.

use abi::{Gpa, Granule};

use crate::descriptor::{Attributes, Descriptor, Write};
use crate::error::MapError;
use crate::geometry::Va;
use crate::mapper::{Sizes, TableMemory};
use crate::tree::{Format, Leaves, Tree, alloc};

/// Bits of a virtual address.
const VA_BITS: u32 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lpae;

impl Format for Lpae {
    fn granule(self) -> Granule {
        Granule::K4
    }

    fn start_level(self) -> u32 {
        1
    }

    fn pa_bits(self) -> u32 {
        40
    }

    fn encode(self, descriptor: Descriptor, level: u32) -> u64 {
        super::encode(descriptor, level)
    }

    fn decode(self, bits: u64, level: u32) -> Descriptor {
        super::decode(bits, level)
    }
}

/// The tables of a 32-bit address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapper {
    tree: Tree<Lpae>,
}

impl Mapper {
    /// Empty tables: a root of one granule, of which four entries are in use.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`] and [`MapError::BadTable`].
    pub fn new(memory: &mut impl TableMemory) -> Result<Self, MapError> {
        let root = alloc(Lpae, memory, Va::new(0))?;
        Ok(Self { tree: Tree { format: Lpae, root, base: 0 } })
    }

    /// The root, for TTBR0.
    pub const fn ttbr0(&self) -> Gpa {
        self.tree.root
    }

    /// Maps `len_bytes` at `va` to `gpa`, all three multiples of 4 KiB, by pages or by blocks of 2 MiB and 1 GiB.
    ///
    /// # Errors
    /// Every variant of [`MapError`]. All but [`MapError::OutOfTables`] and [`MapError::BadTable`] leave the tables as
    /// they were.
    pub fn map(
        &self,
        memory: &mut impl TableMemory,
        va: Va,
        gpa: Gpa,
        len_bytes: u64,
        attributes: Attributes,
        sizes: Sizes,
    ) -> Result<(), MapError> {
        if len_bytes == 0 {
            return Err(MapError::Empty { va });
        }
        if va.raw().checked_add(len_bytes).is_none_or(|end| end > 1 << VA_BITS) {
            return Err(MapError::OutsideVirtual { va, len_bytes, bits: VA_BITS });
        }
        if attributes.write == Write::Tracked {
            return Err(MapError::NoDirtyState { va });
        }
        self.tree.map(memory, va, gpa, len_bytes, Leaves { attributes, sizes })
    }
}
