//! What a digest or a comparison reads: [`PageSource`], over a memslot ([`SlotView`]), a copy, or plain bytes (the model).
//!
//! A source knows its holes. A hole reads as zeroes, and reading it through a shared mapping would allocate it, so
//! readers ask [`PageSource::data_extents`] first and never touch the rest.

use std::ops::Range;

use crate::memory::{GuestMemory, MemoryError, SlotId};

/// Memory that can be read a piece at a time, from several threads.
pub trait PageSource: Sync {
    /// Its size in bytes.
    fn len_bytes(&self) -> u64;

    /// Fills `bytes` from `offset`. What is written meanwhile may be read torn.
    ///
    /// # Panics
    /// If the range reaches past [`Self::len_bytes`].
    fn read(&self, offset: u64, bytes: &mut [u8]);

    /// The parts that may hold something else than zeroes, in order.
    ///
    /// # Errors
    /// [`MemoryError::Io`] where the backing file cannot be searched.
    fn data_extents(&self) -> Result<Vec<Range<u64>>, MemoryError> {
        Ok(std::iter::once(0..self.len_bytes()).collect())
    }
}

impl PageSource for [u8] {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let start = usize::try_from(offset).expect("an offset in memory fits usize");
        bytes.copy_from_slice(&self[start..start + bytes.len()]);
    }
}

/// One memslot as a [`PageSource`].
#[derive(Clone, Copy, Debug)]
pub struct SlotView<'a> {
    memory: &'a GuestMemory,
    slot: SlotId,
}

impl<'a> SlotView<'a> {
    /// The slot `slot` of `memory`.
    pub fn new(memory: &'a GuestMemory, slot: SlotId) -> Self {
        Self { memory, slot }
    }
}

impl PageSource for SlotView<'_> {
    fn len_bytes(&self) -> u64 {
        self.memory.slot(self.slot).range().len_bytes()
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.memory.copy_from_slot(self.slot, offset, bytes).expect("the caller stays within the slot");
    }

    fn data_extents(&self) -> Result<Vec<Range<u64>>, MemoryError> {
        self.memory.data_extents(self.slot, 0..self.len_bytes())
    }
}
