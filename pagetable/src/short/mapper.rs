//! The short-descriptor mapper: from (virtual range, physical range, attributes) to tables.
//!
//! Like [`crate::Mapper`] it holds nothing but the root and only ever turns invalid entries into valid ones.
//! Neighbour: [`crate::short::walker`] reads the result back.

use abi::{Gpa, ShortPages};

use super::descriptor::{First, Second};
use crate::descriptor::{Attributes, Write};
use crate::error::MapError;
use crate::geometry::Va;
use crate::mapper::Sizes;
use crate::tree::{Span, check_output};

/// Bytes of the first-level table, and its alignment, with TTBCR.N 0.
pub const FIRST_TABLE_BYTES: u64 = 0x4000;
/// Bytes of a second-level table, and its alignment.
pub const SECOND_TABLE_BYTES: u64 = 0x400;

const ENTRY_BYTES: u64 = 4;
const SECTION_SHIFT: u32 = 20;
const LARGE_SHIFT: u32 = 16;
const SMALL_SHIFT: u32 = 12;
/// Entries of the second level that a large page takes.
const LARGE_ENTRIES: u64 = 1 << (LARGE_SHIFT - SMALL_SHIFT);
/// Bits of a virtual and of a physical address.
const ADDRESS_BITS: u32 = 32;

/// Memory that tables live in.
pub trait TableMemory {
    /// A zeroed table of `len_bytes` ([`FIRST_TABLE_BYTES`] or [`SECOND_TABLE_BYTES`]), aligned to its size, or `None`
    /// when there is no more.
    fn alloc_table(&mut self, len_bytes: u64) -> Option<Gpa>;
    /// The descriptor at `gpa`, which lies in a table that [`TableMemory::alloc_table`] gave.
    fn read(&self, gpa: Gpa) -> u32;
    /// Stores the descriptor at `gpa`, as above, in one 32-bit access.
    fn write(&mut self, gpa: Gpa, descriptor: u32);
}

/// The tables of a 32-bit address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapper {
    pages: ShortPages,
    root: Gpa,
}

impl Mapper {
    /// Empty tables: a first level. `pages` are what is mapped where no section is.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`] and [`MapError::BadTable`].
    pub fn new(pages: ShortPages, memory: &mut impl TableMemory) -> Result<Self, MapError> {
        Ok(Self { pages, root: alloc(memory, FIRST_TABLE_BYTES, Va::new(0))? })
    }

    /// The root; [`crate::short::ttbr0`] makes the register's value of it.
    pub const fn root(&self) -> Gpa {
        self.root
    }

    /// Bytes of a page: what every range is a multiple of.
    pub const fn page_bytes(&self) -> u64 {
        match self.pages {
            ShortPages::Small => 1 << SMALL_SHIFT,
            ShortPages::Large => 1 << LARGE_SHIFT,
        }
    }

    /// Maps `len_bytes` at `va` to `gpa`, all three multiples of the page, by pages or, with [`Sizes::Largest`], by
    /// sections of 1 MiB where they fit.
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
        if va.raw().checked_add(len_bytes).is_none_or(|end| end > 1 << ADDRESS_BITS) {
            return Err(MapError::OutsideVirtual { va, len_bytes, bits: ADDRESS_BITS });
        }
        if attributes.write == Write::Tracked {
            return Err(MapError::NoDirtyState { va });
        }
        check_output(va, gpa, len_bytes, self.page_bytes(), ADDRESS_BITS)?;
        let span = Span { offset: va.raw(), gpa: gpa.raw(), len_bytes };
        self.check_free(memory, span)?;
        self.fill(memory, span, attributes, sizes)
    }

    /// Refuses `span` if any of it is mapped.
    fn check_free(&self, memory: &impl TableMemory, span: Span) -> Result<(), MapError> {
        for piece in span.pieces(SECTION_SHIFT) {
            let table = match First::decode(memory.read(self.first_slot(piece.offset))) {
                First::Invalid => continue,
                First::Table(table) => table,
                First::Section { .. } | First::Foreign(_) => {
                    return Err(MapError::Overlap { va: Va::new(piece.offset) });
                }
            };
            for page in piece.pieces(SMALL_SHIFT) {
                if Second::decode(memory.read(second_slot(table, page.offset))) != Second::Invalid {
                    return Err(MapError::Overlap { va: Va::new(page.offset) });
                }
            }
        }
        Ok(())
    }

    /// Maps `span`, which is free.
    fn fill(
        &self,
        memory: &mut impl TableMemory,
        span: Span,
        attributes: Attributes,
        sizes: Sizes,
    ) -> Result<(), MapError> {
        const SECTION_BYTES: u64 = 1 << SECTION_SHIFT;
        for piece in span.pieces(SECTION_SHIFT) {
            let slot = self.first_slot(piece.offset);
            let whole = piece.len_bytes == SECTION_BYTES && piece.gpa.is_multiple_of(SECTION_BYTES);
            let table = match First::decode(memory.read(slot)) {
                First::Invalid if whole && sizes == Sizes::Largest => {
                    let section = First::Section { gpa: Gpa::new(piece.gpa), attributes };
                    memory.write(slot, section.encode());
                    continue;
                }
                First::Invalid => {
                    let table = alloc(memory, SECOND_TABLE_BYTES, Va::new(piece.offset))?;
                    memory.write(slot, First::Table(table).encode());
                    table
                }
                // A table may be there from earlier, smaller mappings; then pages are put together below it.
                First::Table(table) => table,
                First::Section { .. } | First::Foreign(_) => {
                    return Err(MapError::Overlap { va: Va::new(piece.offset) });
                }
            };
            self.fill_pages(memory, table, piece, attributes);
        }
        Ok(())
    }

    /// Maps `piece`, which does not reach past `table`.
    fn fill_pages(&self, memory: &mut impl TableMemory, table: Gpa, piece: Span, attributes: Attributes) {
        match self.pages {
            ShortPages::Small => {
                for page in piece.pieces(SMALL_SHIFT) {
                    let entry = Second::Small { gpa: Gpa::new(page.gpa), attributes };
                    memory.write(second_slot(table, page.offset), entry.encode());
                }
            }
            ShortPages::Large => {
                for page in piece.pieces(LARGE_SHIFT) {
                    let entry = Second::Large { gpa: Gpa::new(page.gpa), attributes };
                    let first = second_slot(table, page.offset);
                    for index in 0..LARGE_ENTRIES {
                        memory.write(Gpa::new(first.raw() + index * ENTRY_BYTES), entry.encode());
                    }
                }
            }
        }
    }

    /// Address of the first-level entry for `va`.
    const fn first_slot(&self, va: u64) -> Gpa {
        Gpa::new(self.root.raw() + (va >> SECTION_SHIFT) * ENTRY_BYTES)
    }
}

/// Address of the entry for `va` in the second-level `table`.
const fn second_slot(table: Gpa, va: u64) -> Gpa {
    Gpa::new(table.raw() + ((va >> SMALL_SHIFT) & 0xff) * ENTRY_BYTES)
}

fn alloc(memory: &mut impl TableMemory, len_bytes: u64, va: Va) -> Result<Gpa, MapError> {
    let gpa = memory.alloc_table(len_bytes).ok_or(MapError::OutOfTables { va })?;
    let fits = gpa.is_aligned(len_bytes) && gpa.raw() >> ADDRESS_BITS == 0;
    if fits { Ok(gpa) } else { Err(MapError::BadTable { gpa }) }
}
