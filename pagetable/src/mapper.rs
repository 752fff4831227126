//! The mapper: from (virtual range, physical range, attributes) to tables.
//!
//! [`Mapper`] holds nothing but the two roots; the tables live behind [`TableMemory`]. It only ever turns invalid
//! entries into valid ones, so no break-before-make is needed; the caller owes a `DSB ISHST` and `ISB` before use.
//! Neighbours: [`crate::walker`] reads the result back; [`tables_needed`] sizes the arena.

use abi::{Gpa, Granule, VaBits};

use crate::descriptor::{Attributes, Descriptor};
use crate::geometry::{DESCRIPTOR_BYTES, LAST_LEVEL, Va, entry_shift, has_blocks, start_level, table_entries};

/// First physical address past what a descriptor holds without FEAT_LPA and FEAT_LPA2.
const PA_LIMIT: u64 = 1 << 48;

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

/// Why a mapping was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The range is empty.
    #[error("mapping at {va} is empty")]
    Empty {
        /// Start of the range.
        va: Va,
    },
    /// An address or the length is no multiple of what it must be.
    #[error("mapping of {va} to {gpa}, {len_bytes:#x} bytes, is not aligned to {align_bytes:#x}")]
    Misaligned {
        /// Start of the virtual range.
        va: Va,
        /// Start of the physical range.
        gpa: Gpa,
        /// Length.
        len_bytes: u64,
        /// What all three must be multiples of.
        align_bytes: u64,
    },
    /// The range is not inside one half of the virtual address space.
    #[error("{len_bytes:#x} bytes at {va} lie outside the {bits}-bit virtual address space")]
    OutsideVirtual {
        /// Start of the range.
        va: Va,
        /// Length.
        len_bytes: u64,
        /// Size of each half.
        bits: u32,
    },
    /// The physical range ends above 2^48.
    #[error("{len_bytes:#x} bytes at {gpa} reach past the 48-bit physical address space")]
    OutsidePhysical {
        /// Start of the range.
        gpa: Gpa,
        /// Length.
        len_bytes: u64,
    },
    /// Something is mapped there already.
    #[error("{va} is mapped already")]
    Overlap {
        /// First address of the range that is mapped.
        va: Va,
    },
    /// There is no more memory for tables. What was mapped below `va` stays.
    #[error("out of table memory at {va}")]
    OutOfTables {
        /// First address that could not be mapped.
        va: Va,
    },
    /// [`TableMemory::alloc_table`] gave a table that is not aligned to the granule or lies above 2^48.
    #[error("table memory gave a table at {gpa}, which no descriptor can hold")]
    BadTable {
        /// The table's address.
        gpa: Gpa,
    },
}

/// Two trees of tables, one for each half of the virtual address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapper {
    va: VaBits,
    low: Gpa,
    high: Gpa,
}

impl Mapper {
    /// Empty tables for both halves: two roots of one granule each.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`] and [`MapError::BadTable`].
    pub fn new(va: VaBits, memory: &mut impl TableMemory) -> Result<Self, MapError> {
        let low = alloc(va.granule(), memory, Va::new(0))?;
        let high = alloc(va.granule(), memory, Va::high_base(va))?;
        Ok(Self { va, low, high })
    }

    /// The granule and VA size.
    pub const fn va_bits(&self) -> VaBits {
        self.va
    }

    /// Root of the low half, for TTBR0_EL1.
    pub const fn ttbr0(&self) -> Gpa {
        self.low
    }

    /// Root of the high half, for TTBR1_EL1.
    pub const fn ttbr1(&self) -> Gpa {
        self.high
    }

    /// Maps `len_bytes` at `va` to `gpa`. All three are multiples of the granule; the range lies in one half.
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
        let half = self.half(va, len_bytes)?;
        check_output(va, gpa, len_bytes, self.va.granule().bytes())?;
        let span = Span { offset: va.raw() - half.base, gpa: gpa.raw(), len_bytes };
        let level = start_level(self.va);
        self.check_free(memory, &half, half.root, level, span)?;
        self.fill(memory, &half, half.root, level, span, Leaves { attributes, sizes })
    }

    /// Links `table`, a last-level table that the caller keeps, so that it translates `va` onwards. `va` is a multiple of
    /// what such a table spans: the granule times its entries (2 MiB, 32 MiB or 512 MiB).
    ///
    /// The table's entries are the caller's: the mapper reads them only to refuse overlaps.
    ///
    /// # Errors
    /// As [`Mapper::map`].
    pub fn hook_table(&self, memory: &mut impl TableMemory, va: Va, table: Gpa) -> Result<(), MapError> {
        let granule = self.va.granule();
        let span_bytes = 1 << entry_shift(granule, LAST_LEVEL - 1);
        let half = self.half(va, span_bytes)?;
        if !va.raw().is_multiple_of(span_bytes) {
            return Err(MapError::Misaligned { va, gpa: table, len_bytes: span_bytes, align_bytes: span_bytes });
        }
        check_output(va, table, granule.bytes(), granule.bytes())?;
        let offset = va.raw() - half.base;
        let mut at = half.root;
        for level in start_level(self.va)..LAST_LEVEL - 1 {
            at = self.child(memory, &half, self.slot(at, level, offset), level, offset)?;
        }
        let slot = self.slot(at, LAST_LEVEL - 1, offset);
        if self.decode(memory, slot, LAST_LEVEL - 1) != Descriptor::Invalid {
            return Err(MapError::Overlap { va });
        }
        memory.write(slot, Descriptor::Table(table).encode(LAST_LEVEL - 1));
        Ok(())
    }

    /// The half that `[va, va + len_bytes)` lies in.
    fn half(&self, va: Va, len_bytes: u64) -> Result<Half, MapError> {
        if len_bytes == 0 {
            return Err(MapError::Empty { va });
        }
        let outside = MapError::OutsideVirtual { va, len_bytes, bits: self.va.bits() };
        let half = if va >= Va::high_base(self.va) {
            Half { root: self.high, base: Va::high_base(self.va).raw() }
        } else {
            Half { root: self.low, base: 0 }
        };
        // Counted from the half's base, since the end of the high half is 2^64.
        let end = (va.raw() - half.base).checked_add(len_bytes).ok_or(outside)?;
        if end > 1 << self.va.bits() { Err(outside) } else { Ok(half) }
    }

    /// Address of the entry for `offset` in `table` at `level`.
    fn slot(&self, table: Gpa, level: u32, offset: u64) -> Gpa {
        let granule = self.va.granule();
        let index = (offset >> entry_shift(granule, level)) % table_entries(granule);
        Gpa::new(table.raw() + index * DESCRIPTOR_BYTES)
    }

    fn decode(&self, memory: &impl TableMemory, slot: Gpa, level: u32) -> Descriptor {
        Descriptor::decode(memory.read(slot), level, self.va.granule())
    }

    /// Refuses `span` if any of it is mapped.
    fn check_free(
        &self,
        memory: &impl TableMemory,
        half: &Half,
        table: Gpa,
        level: u32,
        span: Span,
    ) -> Result<(), MapError> {
        for piece in span.pieces(entry_shift(self.va.granule(), level)) {
            match self.decode(memory, self.slot(table, level, piece.offset), level) {
                Descriptor::Invalid => {}
                Descriptor::Table(next) => self.check_free(memory, half, next, level + 1, piece)?,
                Descriptor::Leaf { .. } | Descriptor::Foreign(_) => {
                    return Err(MapError::Overlap { va: half.at(piece.offset) });
                }
            }
        }
        Ok(())
    }

    /// Maps `span`, which is free, in `table` and below.
    fn fill(
        &self,
        memory: &mut impl TableMemory,
        half: &Half,
        table: Gpa,
        level: u32,
        span: Span,
        leaves: Leaves,
    ) -> Result<(), MapError> {
        let granule = self.va.granule();
        for piece in span.pieces(entry_shift(granule, level)) {
            let slot = self.slot(table, level, piece.offset);
            // A table may be there from earlier, smaller mappings; then the block is put together below it.
            if leaves.fit(granule, level, piece)
                && (level == LAST_LEVEL || self.decode(memory, slot, level) == Descriptor::Invalid)
            {
                let leaf = Descriptor::Leaf { gpa: Gpa::new(piece.gpa), attributes: leaves.attributes };
                memory.write(slot, leaf.encode(level));
            } else {
                let next = self.child(memory, half, slot, level, piece.offset)?;
                self.fill(memory, half, next, level + 1, piece, leaves)?;
            }
        }
        Ok(())
    }

    /// The table that the entry at `slot` points to, made if there is none.
    fn child(
        &self,
        memory: &mut impl TableMemory,
        half: &Half,
        slot: Gpa,
        level: u32,
        offset: u64,
    ) -> Result<Gpa, MapError> {
        match self.decode(memory, slot, level) {
            Descriptor::Table(next) => Ok(next),
            Descriptor::Invalid => {
                let next = alloc(self.va.granule(), memory, half.at(offset))?;
                memory.write(slot, Descriptor::Table(next).encode(level));
                Ok(next)
            }
            Descriptor::Leaf { .. } | Descriptor::Foreign(_) => Err(MapError::Overlap { va: half.at(offset) }),
        }
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

fn alloc(granule: Granule, memory: &mut impl TableMemory, va: Va) -> Result<Gpa, MapError> {
    let gpa = memory.alloc_table().ok_or(MapError::OutOfTables { va })?;
    if gpa.is_aligned(granule.bytes()) && gpa.raw() < PA_LIMIT { Ok(gpa) } else { Err(MapError::BadTable { gpa }) }
}

fn check_output(va: Va, gpa: Gpa, len_bytes: u64, align_bytes: u64) -> Result<(), MapError> {
    if !(va.raw() | gpa.raw() | len_bytes).is_multiple_of(align_bytes) {
        return Err(MapError::Misaligned { va, gpa, len_bytes, align_bytes });
    }
    match gpa.checked_add(len_bytes) {
        Some(end) if end.raw() <= PA_LIMIT => Ok(()),
        _ => Err(MapError::OutsidePhysical { gpa, len_bytes }),
    }
}

/// One half of the virtual address space.
struct Half {
    root: Gpa,
    base: u64,
}

impl Half {
    fn at(&self, offset: u64) -> Va {
        Va::new(self.base + offset)
    }
}

/// What to write at the leaves.
#[derive(Clone, Copy)]
struct Leaves {
    attributes: Attributes,
    sizes: Sizes,
}

impl Leaves {
    /// Whether one entry at `level` can map `piece`, which does not reach past that entry.
    fn fit(self, granule: Granule, level: u32, piece: Span) -> bool {
        let entry_bytes = 1 << entry_shift(granule, level);
        level == LAST_LEVEL
            || (self.sizes == Sizes::Largest
                && has_blocks(granule, level)
                && piece.len_bytes == entry_bytes
                && piece.gpa.is_multiple_of(entry_bytes))
    }
}

/// Part of a mapping: bytes from the half's base, and where they go.
#[derive(Clone, Copy)]
struct Span {
    offset: u64,
    gpa: u64,
    len_bytes: u64,
}

impl Span {
    /// The span cut at multiples of `2^shift`.
    fn pieces(self, shift: u32) -> impl Iterator<Item = Self> {
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
