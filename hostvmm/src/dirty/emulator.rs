//! The accelerator's own dirty log behind the trait: [`EmulatorLog`].
//!
//! It goes through [`crate::backend::Vm`], so it says nothing of how the emulator keeps write tags and log in step. The VMM's own writes are
//! logged too, by [`crate::backend::Vm::mark_dirty`].

use super::{DirtyLog, DirtyLogError, DirtyLogKind, FirstHarvest, PageBitmap, check_size};
use crate::backend::{BackendError, VmHandle};
use crate::memory::{GuestMemory, SlotId};

/// The dirty log of the emulator.
pub struct EmulatorLog {
    vm: VmHandle,
    /// The slots watched, each with its size in bytes.
    slots: Vec<(SlotId, u64)>,
    running: bool,
}

impl EmulatorLog {
    /// The log of `vm` for `slots` of its memory.
    pub fn new(vm: VmHandle, memory: &GuestMemory, slots: &[SlotId]) -> Self {
        let slots = slots.iter().map(|slot| (*slot, memory.slot(*slot).range().len_bytes())).collect();
        Self { vm, slots, running: false }
    }

    fn failed(source: BackendError) -> DirtyLogError {
        DirtyLogError::Backend { kind: DirtyLogKind::Emulator, source }
    }

    fn not_logging(slot: SlotId) -> DirtyLogError {
        DirtyLogError::NotLogging { kind: DirtyLogKind::Emulator, slot }
    }
}

impl DirtyLog for EmulatorLog {
    fn kind(&self) -> DirtyLogKind {
        DirtyLogKind::Emulator
    }

    fn page_bytes(&self) -> u64 {
        self.vm.log_page_bytes()
    }

    fn first_harvest(&self) -> FirstHarvest {
        FirstHarvest::Exact
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        if self.running {
            return Err(DirtyLogError::Running { kind: DirtyLogKind::Emulator });
        }
        self.vm.start_dirty_log().map_err(Self::failed)?;
        self.running = true;
        Ok(())
    }

    fn harvest(&mut self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), DirtyLogError> {
        let watched = self.slots.iter().find(|(watched, _)| self.running && *watched == slot);
        let (_, len_bytes) = watched.ok_or_else(|| Self::not_logging(slot))?;
        check_size(DirtyLogKind::Emulator, slot, *len_bytes, self.page_bytes(), dirty)?;
        let mut fresh = PageBitmap::new(dirty.pages(), dirty.page_bytes());
        fresh.fill_words(|words| self.vm.harvest_dirty(slot, words)).map_err(Self::failed)?;
        dirty.or(&fresh);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        if !self.running {
            let slot = self.slots.first().map_or(SlotId::Region, |(slot, _)| *slot);
            return Err(Self::not_logging(slot));
        }
        self.running = false;
        self.vm.stop_dirty_log().map_err(Self::failed)
    }
}

impl std::fmt::Debug for EmulatorLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmulatorLog")
            .field("slots", &self.slots)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}
