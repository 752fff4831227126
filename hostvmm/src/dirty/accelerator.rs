//! The accelerator's own dirty log behind the trait: [`AcceleratorLog`].
//!
//! It goes through [`crate::backend::Vm`], so it says nothing of how the emulator keeps write tags and log in step, or of
//! which ioctls reset which of KVM's logs. The VMM's own writes are in it, too, by [`crate::backend::Vm::mark_dirty`].

use std::time::Duration;

use super::{DirtyLog, DirtyLogError, DirtyLogKind, FirstHarvest, PageBitmap, check_size};
use crate::backend::{BackendError, VmHandle};
use crate::memory::{GuestMemory, SlotId};

/// The dirty log of the emulator, or the one of KVM's that the machine was made with.
pub struct AcceleratorLog {
    kind: DirtyLogKind,
    vm: VmHandle,
    /// The slots watched, each with its size in bytes.
    slots: Vec<(SlotId, u64)>,
    running: bool,
}

impl AcceleratorLog {
    /// The log of `vm`, which is of `kind`, for `slots` of its memory.
    pub fn new(kind: DirtyLogKind, vm: VmHandle, memory: &GuestMemory, slots: &[SlotId]) -> Self {
        let slots = slots.iter().map(|slot| (*slot, memory.slot(*slot).range().len_bytes())).collect();
        Self { kind, vm, slots, running: false }
    }

    fn failed(&self, source: BackendError) -> DirtyLogError {
        DirtyLogError::Backend { kind: self.kind, source }
    }

    fn not_logging(&self, slot: SlotId) -> DirtyLogError {
        DirtyLogError::NotLogging { kind: self.kind, slot }
    }
}

impl DirtyLog for AcceleratorLog {
    fn kind(&self) -> DirtyLogKind {
        self.kind
    }

    fn page_bytes(&self) -> u64 {
        self.vm.log_page_bytes()
    }

    fn first_harvest(&self) -> FirstHarvest {
        if self.kind == DirtyLogKind::Initset { FirstHarvest::AllSet } else { FirstHarvest::Exact }
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        if self.running {
            return Err(DirtyLogError::Running { kind: self.kind });
        }
        let slots: Vec<SlotId> = self.slots.iter().map(|(slot, _)| *slot).collect();
        self.vm.start_dirty_log(&slots).map_err(|error| self.failed(error))?;
        self.running = true;
        Ok(())
    }

    fn harvest(&mut self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), DirtyLogError> {
        let watched = self.slots.iter().find(|(watched, _)| self.running && *watched == slot);
        let (_, len_bytes) = watched.ok_or_else(|| self.not_logging(slot))?;
        check_size(self.kind, slot, *len_bytes, self.page_bytes(), dirty)?;
        let vm = &self.vm;
        dirty.fill_words(|words| vm.harvest_dirty(slot, words)).map_err(|error| self.failed(error))?;
        Ok(())
    }

    fn last_reset(&self) -> Duration {
        self.vm.last_reset()
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        if !self.running {
            let slot = self.slots.first().map_or(SlotId::Region, |(slot, _)| *slot);
            return Err(self.not_logging(slot));
        }
        self.running = false;
        self.vm.stop_dirty_log().map_err(|error| self.failed(error))
    }
}

impl std::fmt::Debug for AcceleratorLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AcceleratorLog")
            .field("kind", &self.kind)
            .field("slots", &self.slots)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}
