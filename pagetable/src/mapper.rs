//! The VMSAv8-64 mapper: from (virtual range, physical range, attributes) to tables.
//!
//! [`Mapper`] holds nothing but the two roots; the tables live behind [`TableMemory`]. It only ever turns invalid
//! entries into valid ones, so no break-before-make is needed; the caller owes a `DSB ISHST` and `ISB` before use.
//! Neighbours: `tree` does the work; [`crate::walker`] reads the result back; [`tables_needed`] sizes the arena.

use abi::{Gpa, Granule, VaBits};

use crate::descriptor::{Attributes, Descriptor};
use crate::error::MapError;
use crate::geometry::{LAST_LEVEL, Va, entry_shift, start_level};
use crate::tree::{Format, Leaves, Span, Tree, alloc};

/// VMSAv8-64 with one of its granules and VA sizes, without FEAT_LPA and FEAT_LPA2.
impl Format for VaBits {
    fn granule(self) -> Granule {
        VaBits::granule(self)
    }

    fn start_level(self) -> u32 {
        start_level(self)
    }

    fn pa_bits(self) -> u32 {
        48
    }

    fn encode(self, descriptor: Descriptor, level: u32) -> u64 {
        descriptor.encode(level)
    }

    fn decode(self, bits: u64, level: u32) -> Descriptor {
        Descriptor::decode(bits, level, VaBits::granule(self))
    }
}

/// Memory that tables live in.
pub trait TableMemory {
    /// A zeroed table of one granule, aligned to its size, or `None` when there is no more.
    fn alloc_table(&mut self) -> Option<Gpa>;
    /// The descriptor at `gpa`, which lies in a table that [`TableMemory::alloc_table`] gave or
    /// [`Mapper::hook_table`] was given.
    fn read(&self, gpa: Gpa) -> u64;
    /// Stores the descriptor at `gpa`, as above, in one 64-bit access.
    fn write(&mut self, gpa: Gpa, descriptor: u64);
}

/// Which sizes of mapping may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Pages only.
    Pages,
    /// The largest blocks that alignment and length allow, pages at the edges.
    Largest,
}

/// Two trees of tables, one for each half of the virtual address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapper {
    va: VaBits,
    low: Tree<VaBits>,
    high: Tree<VaBits>,
}

impl Mapper {
    /// Empty tables for both halves: two roots of one granule each.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`] and [`MapError::BadTable`].
    pub fn new(va: VaBits, memory: &mut impl TableMemory) -> Result<Self, MapError> {
        let mut half = |base: Va| Ok(Tree { format: va, root: alloc(va, memory, base)?, base: base.raw() });
        Ok(Self { va, low: half(Va::new(0))?, high: half(Va::high_base(va))? })
    }

    /// The granule and VA size.
    pub const fn va_bits(&self) -> VaBits {
        self.va
    }

    /// Root of the low half, for TTBR0_EL1.
    pub const fn ttbr0(&self) -> Gpa {
        self.low.root
    }

    /// Root of the high half, for TTBR1_EL1.
    pub const fn ttbr1(&self) -> Gpa {
        self.high.root
    }

    /// Maps `len_bytes` at `va` to `gpa`. All three are multiples of the granule; the range lies in one half.
    ///
    /// # Errors
    /// Every variant of [`MapError`] but [`MapError::NoDirtyState`]. All but [`MapError::OutOfTables`] and
    /// [`MapError::BadTable`] leave the tables as they were.
    pub fn map(
        &self,
        memory: &mut impl TableMemory,
        va: Va,
        gpa: Gpa,
        len_bytes: u64,
        attributes: Attributes,
        sizes: Sizes,
    ) -> Result<(), MapError> {
        self.half(va, len_bytes)?.map(memory, va, gpa, len_bytes, Leaves { attributes, sizes })
    }

    /// Links `table`, a last-level table that the caller keeps, so that it translates `va` onwards. `va` is a multiple of
    /// what such a table spans: the granule times its entries (2 MiB, 32 MiB or 512 MiB).
    ///
    /// The table's entries are the caller's: the mapper reads them only to refuse overlaps.
    ///
    /// # Errors
    /// As [`Mapper::map`].
    pub fn hook_table(&self, memory: &mut impl TableMemory, va: Va, table: Gpa) -> Result<(), MapError> {
        let span_bytes = 1 << entry_shift(self.va.granule(), LAST_LEVEL - 1);
        let half = self.half(va, span_bytes)?;
        if !va.raw().is_multiple_of(span_bytes) {
            return Err(MapError::Misaligned { va, gpa: table, len_bytes: span_bytes, align_bytes: span_bytes });
        }
        half.hook_table(memory, va, table)
    }

    /// The half that `[va, va + len_bytes)` lies in.
    fn half(&self, va: Va, len_bytes: u64) -> Result<&Tree<VaBits>, MapError> {
        if len_bytes == 0 {
            return Err(MapError::Empty { va });
        }
        let outside = MapError::OutsideVirtual { va, len_bytes, bits: self.va.bits() };
        let half = if va >= Va::high_base(self.va) { &self.high } else { &self.low };
        // Counted from the half's base, since the end of the high half is 2^64.
        let end = (va.raw() - half.base).checked_add(len_bytes).ok_or(outside)?;
        if end > 1 << self.va.bits() { Err(outside) } else { Ok(half) }
    }
}

/// Tables that mapping `len_bytes` at `va` to `gpa` takes in an empty half, the root not counted. A mapping beside others
/// takes as many or fewer; one table is one granule.
pub fn tables_needed(space: VaBits, va: Va, gpa: Gpa, len_bytes: u64, sizes: Sizes) -> u64 {
    fn below(granule: Granule, level: u32, span: Span, leaves: Leaves) -> u64 {
        if level == LAST_LEVEL {
            return 0;
        }
        span.pieces(entry_shift(granule, level))
            .filter(|&piece| !leaves.fit(granule, level, piece))
            .map(|piece| 1 + below(granule, level + 1, piece, leaves))
            .sum()
    }
    let offset = va.raw() & !(u64::MAX << space.bits());
    let span = Span { offset, gpa: gpa.raw(), len_bytes };
    below(space.granule(), start_level(space), span, Leaves { attributes: Attributes::DATA, sizes })
}
