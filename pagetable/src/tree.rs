//! One tree of long descriptors: what the mappers of VMSAv8-64 and LPAE do alike.
//!
//! A [`Tree`] translates `[base, base + 2^n)` from one root; its [`Format`] says where the walk starts and what a
//! descriptor's bits mean. Neighbours: [`crate::Mapper`] has two trees, [`crate::lpae::Mapper`] one.

use abi::{Gpa, Granule};

use crate::descriptor::{Attributes, Descriptor};
use crate::error::MapError;
use crate::geometry::{DESCRIPTOR_BYTES, LAST_LEVEL, Va, entry_shift, has_blocks, table_entries};
use crate::mapper::{Sizes, TableMemory};

/// What tells the formats of 64-bit descriptors apart.
pub(crate) trait Format: Copy {
    /// Bytes of a page and of a table.
    fn granule(self) -> Granule;
    /// The level at which a walk starts.
    fn start_level(self) -> u32;
    /// Bits of a physical address.
    fn pa_bits(self) -> u32;
    /// A descriptor's bits in a table at `level`.
    fn encode(self, descriptor: Descriptor, level: u32) -> u64;
    /// What `bits` mean in a table at `level`.
    fn decode(self, bits: u64, level: u32) -> Descriptor;
}

/// A root, and the first address that it translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tree<F> {
    pub(crate) format: F,
    pub(crate) root: Gpa,
    pub(crate) base: u64,
}

impl<F: Format> Tree<F> {
    /// Maps `len_bytes` at `va`, which lie in the tree, to `gpa`.
    pub(crate) fn map(
        &self,
        memory: &mut impl TableMemory,
        va: Va,
        gpa: Gpa,
        len_bytes: u64,
        leaves: Leaves,
    ) -> Result<(), MapError> {
        check_output(va, gpa, len_bytes, self.format.granule().bytes(), self.format.pa_bits())?;
        let span = Span { offset: va.raw() - self.base, gpa: gpa.raw(), len_bytes };
        let level = self.format.start_level();
        self.check_free(memory, self.root, level, span)?;
        self.fill(memory, self.root, level, span, leaves)
    }

    /// Links `table`, a last-level table, so that it translates `va` onwards.
    pub(crate) fn hook_table(&self, memory: &mut impl TableMemory, va: Va, table: Gpa) -> Result<(), MapError> {
        let granule = self.format.granule();
        check_output(va, table, granule.bytes(), granule.bytes(), self.format.pa_bits())?;
        let offset = va.raw() - self.base;
        let mut at = self.root;
        for level in self.format.start_level()..LAST_LEVEL - 1 {
            at = self.child(memory, self.slot(at, level, offset), level, offset)?;
        }
        let slot = self.slot(at, LAST_LEVEL - 1, offset);
        if self.decode(memory, slot, LAST_LEVEL - 1) != Descriptor::Invalid {
            return Err(MapError::Overlap { va });
        }
        memory.write(slot, self.format.encode(Descriptor::Table(table), LAST_LEVEL - 1));
        Ok(())
    }

    fn at(&self, offset: u64) -> Va {
        Va::new(self.base + offset)
    }

    /// Address of the entry for `offset` in `table` at `level`.
    fn slot(&self, table: Gpa, level: u32, offset: u64) -> Gpa {
        let granule = self.format.granule();
        let index = (offset >> entry_shift(granule, level)) % table_entries(granule);
        Gpa::new(table.raw() + index * DESCRIPTOR_BYTES)
    }

    fn decode(&self, memory: &impl TableMemory, slot: Gpa, level: u32) -> Descriptor {
        self.format.decode(memory.read(slot), level)
    }

    /// Refuses `span` if any of it is mapped.
    fn check_free(&self, memory: &impl TableMemory, table: Gpa, level: u32, span: Span) -> Result<(), MapError> {
        for piece in span.pieces(entry_shift(self.format.granule(), level)) {
            match self.decode(memory, self.slot(table, level, piece.offset), level) {
                Descriptor::Invalid => {}
                Descriptor::Table(next) => self.check_free(memory, next, level + 1, piece)?,
                Descriptor::Leaf { .. } | Descriptor::Foreign(_) => {
                    return Err(MapError::Overlap { va: self.at(piece.offset) });
                }
            }
        }
        Ok(())
    }

    /// Maps `span`, which is free, in `table` and below.
    fn fill(
        &self,
        memory: &mut impl TableMemory,
        table: Gpa,
        level: u32,
        span: Span,
        leaves: Leaves,
    ) -> Result<(), MapError> {
        let granule = self.format.granule();
        for piece in span.pieces(entry_shift(granule, level)) {
            let slot = self.slot(table, level, piece.offset);
            // A table may be there from earlier, smaller mappings; then the block is put together below it.
            if leaves.fit(granule, level, piece)
                && (level == LAST_LEVEL || self.decode(memory, slot, level) == Descriptor::Invalid)
            {
                let leaf = Descriptor::Leaf { gpa: Gpa::new(piece.gpa), attributes: leaves.attributes };
                memory.write(slot, self.format.encode(leaf, level));
            } else {
                let next = self.child(memory, slot, level, piece.offset)?;
                self.fill(memory, next, level + 1, piece, leaves)?;
            }
        }
        Ok(())
    }

    /// The table that the entry at `slot` points to, made if there is none.
    fn child(&self, memory: &mut impl TableMemory, slot: Gpa, level: u32, offset: u64) -> Result<Gpa, MapError> {
        match self.decode(memory, slot, level) {
            Descriptor::Table(next) => Ok(next),
            Descriptor::Invalid => {
                let next = alloc(self.format, memory, self.at(offset))?;
                memory.write(slot, self.format.encode(Descriptor::Table(next), level));
                Ok(next)
            }
            Descriptor::Leaf { .. } | Descriptor::Foreign(_) => Err(MapError::Overlap { va: self.at(offset) }),
        }
    }
}

/// A table for `va`.
pub(crate) fn alloc(format: impl Format, memory: &mut impl TableMemory, va: Va) -> Result<Gpa, MapError> {
    let gpa = memory.alloc_table().ok_or(MapError::OutOfTables { va })?;
    let fits = gpa.is_aligned(format.granule().bytes()) && gpa.raw() >> format.pa_bits() == 0;
    if fits { Ok(gpa) } else { Err(MapError::BadTable { gpa }) }
}

/// Refuses what is not aligned to `align_bytes` or ends past `2^pa_bits`.
pub(crate) fn check_output(va: Va, gpa: Gpa, len_bytes: u64, align_bytes: u64, pa_bits: u32) -> Result<(), MapError> {
    if !(va.raw() | gpa.raw() | len_bytes).is_multiple_of(align_bytes) {
        return Err(MapError::Misaligned { va, gpa, len_bytes, align_bytes });
    }
    match gpa.checked_add(len_bytes) {
        Some(end) if end.raw() <= 1 << pa_bits => Ok(()),
        _ => Err(MapError::OutsidePhysical { gpa, len_bytes, bits: pa_bits }),
    }
}

/// What to write at the leaves.
#[derive(Clone, Copy)]
pub(crate) struct Leaves {
    pub(crate) attributes: Attributes,
    pub(crate) sizes: Sizes,
}

impl Leaves {
    /// Whether one entry at `level` can map `piece`, which does not reach past that entry.
    pub(crate) fn fit(self, granule: Granule, level: u32, piece: Span) -> bool {
        let entry_bytes = 1 << entry_shift(granule, level);
        level == LAST_LEVEL
            || (self.sizes == Sizes::Largest
                && has_blocks(granule, level)
                && piece.len_bytes == entry_bytes
                && piece.gpa.is_multiple_of(entry_bytes))
    }
}

/// Part of a mapping: bytes from the tree's base, and where they go.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) gpa: u64,
    pub(crate) len_bytes: u64,
}

impl Span {
    /// The span cut at multiples of `2^shift`.
    pub(crate) fn pieces(self, shift: u32) -> impl Iterator<Item = Self> {
        let end = self.offset + self.len_bytes;
        let mut offset = self.offset;
        core::iter::from_fn(move || {
            if offset == end {
                return None;
            }
            let next = end.min(((offset >> shift) + 1) << shift);
            let piece = Self { offset, gpa: self.gpa + (offset - self.offset), len_bytes: next - offset };
            offset = next;
            Some(piece)
        })
    }
}
