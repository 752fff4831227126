//! The source's hold on its guest while it migrates: [`Hold`].
//!
//! Dropped, it ends what was begun, whatever happened: the guest runs on unless it was given away, dirty bits that nobody made
//! use of are given back, the log is stopped, nobody is throttled.

use crate::dirty::PageBitmap;
use crate::memory::SlotId;
use crate::migrate::error::MigrateError;
use crate::migrate::monitor::Monitor;
use crate::migrate::vm::{Moment, SourceVm};

/// Pages by slot.
pub(super) type Pages = [PageBitmap; SlotId::COUNT];

/// Whose the guest is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Guest {
    /// It runs here.
    Running,
    /// It stands still here.
    Paused,
    /// It was given away, and is not to be run here.
    GivenAway,
}

/// A guest that is about to move.
pub(super) struct Hold<'a> {
    pub(super) vm: &'a dyn SourceVm,
    monitor: &'a Monitor,
    page_bytes: u64,
    /// What was harvested and is not yet at a destination that runs the guest.
    harvested: Pages,
    guest: Guest,
    is_logging: bool,
}

impl<'a> Hold<'a> {
    pub(super) fn new(vm: &'a dyn SourceVm, monitor: &'a Monitor) -> Self {
        let page_bytes = vm.log_page_bytes();
        let mut hold = Self {
            vm,
            monitor,
            page_bytes,
            harvested: clean(0, 0, page_bytes),
            guest: Guest::Running,
            is_logging: false,
        };
        hold.harvested = hold.clean();
        hold
    }

    /// No page.
    pub(super) fn clean(&self) -> Pages {
        let [ram, region] = SlotId::ALL.map(|slot| self.vm.memory().slot(slot).range().len_bytes());
        clean(ram, region, self.page_bytes)
    }

    /// Every page that is not a hole, and how many are.
    pub(super) fn everything(&self) -> Result<(Pages, u64), MigrateError> {
        let memory = self.vm.memory();
        let (mut all, mut holes) = (self.clean(), 0);
        for slot in SlotId::ALL {
            let pages = &mut all[slot.index()];
            for data in memory.data_extents(slot, 0..memory.slot(slot).range().len_bytes())? {
                pages.set_bytes(data.start, data.end - data.start);
            }
            holes += pages.pages() - pages.count();
        }
        Ok((all, holes))
    }

    pub(super) fn start_log(&mut self) -> Result<(), MigrateError> {
        self.vm.start_log()?;
        self.is_logging = true;
        Ok(())
    }

    /// What was written since the last harvest.
    pub(super) fn harvest(&mut self) -> Result<Pages, MigrateError> {
        let mut dirty = self.clean();
        for slot in SlotId::ALL {
            self.vm.harvest(slot, &mut dirty[slot.index()])?;
            self.harvested[slot.index()].or(&dirty[slot.index()]);
        }
        self.monitor.show(|info| info.ram.get_or_insert_default().dirty_sync_count += 1);
        Ok(dirty)
    }

    pub(super) fn pause(&mut self) -> Result<Moment, MigrateError> {
        let moment = self.vm.pause()?;
        self.guest = Guest::Paused;
        Ok(moment)
    }

    /// The guest runs on here after all, for now.
    pub(super) fn resume(&mut self) {
        self.vm.resume();
        self.guest = Guest::Running;
    }

    /// The guest is not to be run here, unless it is [taken back](Self::take_back).
    pub(super) fn give_away(&mut self) {
        self.guest = Guest::GivenAway;
    }

    /// The guest that was given away does not run elsewhere.
    pub(super) fn take_back(&mut self) {
        self.guest = Guest::Paused;
    }

    /// Ends what was begun. The guest runs on if it is here.
    pub(super) fn end(&mut self) {
        if self.guest == Guest::Paused {
            self.resume();
        }
        self.vm.throttle(0);
        if std::mem::take(&mut self.is_logging)
            && let Err(error) = self.vm.stop_log()
        {
            self.monitor.show(|info| info.error_desc = Some(error.to_string()));
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.guest != Guest::GivenAway {
            for slot in SlotId::ALL {
                self.vm.redirty(slot, &self.harvested[slot.index()]);
            }
        }
        self.end();
    }
}

fn clean(ram_bytes: u64, region_bytes: u64, page_bytes: u64) -> Pages {
    [ram_bytes, region_bytes].map(|len_bytes| PageBitmap::covering(len_bytes, page_bytes))
}

/// Bytes of `pages`.
pub(super) fn bytes(pages: &Pages) -> u64 {
    pages.iter().map(|pages| pages.count() * pages.page_bytes()).sum()
}
