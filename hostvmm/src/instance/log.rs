//! One dirty log for several who want it: [`SharedLog`].
//!
//! The accelerator's log runs while anybody uses it. What one user's harvest takes out of it is added to what every other
//! user has not taken yet, so that each sees every write exactly as if the log were its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::backend::{BackendError, VmHandle};
use crate::dirty::PageBitmap;
use crate::memory::{GuestMemory, SlotId};

/// Who uses the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum LogUser {
    /// Every page ever written: `--track-dirty`.
    History,
    /// The migration.
    Migration,
    /// The COLO pair.
    Colo,
    /// `calc-dirty-rate`.
    Rate,
}

/// Pages by slot.
pub(super) type Pages = [PageBitmap; SlotId::COUNT];

/// The accelerator's dirty log, shared.
pub(super) struct SharedLog {
    vm: VmHandle,
    clean: Pages,
    /// Its first harvest reports every page (KVM_DIRTY_LOG_INITIALLY_SET).
    initially_all_set: bool,
    /// Memory has huge pages, which a log dissolves.
    has_huge_pages: bool,
    /// What each user has not taken yet.
    users: Mutex<BTreeMap<LogUser, Pages>>,
}

impl SharedLog {
    /// The log of `vm`, which does not run; with `has_huge_pages` they come back once it has run.
    pub(super) fn new(vm: VmHandle, memory: &GuestMemory, initially_all_set: bool, has_huge_pages: bool) -> Self {
        let page_bytes = vm.log_page_bytes();
        let clean = SlotId::ALL.map(|slot| PageBitmap::covering(memory.slot(slot).range().len_bytes(), page_bytes));
        Self { vm, clean, initially_all_set, has_huge_pages, users: Mutex::default() }
    }

    /// No pages.
    pub(super) fn clean(&self) -> Pages {
        self.clean.clone()
    }

    /// `user` sees every write from now on.
    pub(super) fn start(&self, user: LogUser) -> Result<(), BackendError> {
        let mut users = self.lock();
        if users.is_empty() {
            self.vm.start_dirty_log(&SlotId::ALL)?;
            if self.initially_all_set {
                self.fetch(&mut users)?;
            }
        } else {
            self.fetch(&mut users)?;
        }
        users.insert(user, self.clean.clone());
        Ok(())
    }

    /// `user` needs the log no longer. It stops with the last one.
    pub(super) fn stop(&self, user: LogUser) -> Result<(), BackendError> {
        let mut users = self.lock();
        if users.remove(&user).is_none() {
            return Ok(());
        }
        if !users.is_empty() {
            return Ok(());
        }
        // KVM maps a block anew where a protected page of it is written. A guest that writes the same pages over and over has
        // them all writable, so each is protected once more.
        let protected = if self.has_huge_pages { self.fetch(&mut users) } else { Ok(()) };
        self.vm.stop_dirty_log()?;
        protected
    }

    /// `dirty` becomes what was written to `slot` since `user` took it last.
    pub(super) fn take(&self, user: LogUser, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), BackendError> {
        let mut users = self.lock();
        self.fetch_slot(&mut users, slot)?;
        dirty.clear_all();
        if let Some(pages) = users.get_mut(&user) {
            dirty.or(&pages[slot.index()]);
            pages[slot.index()].clear_all();
        }
        Ok(())
    }

    /// What was written since `user` started and was not taken; `None` where it has not started.
    pub(super) fn seen_by(&self, user: LogUser) -> Result<Option<Pages>, BackendError> {
        let mut users = self.lock();
        if users.contains_key(&user) {
            self.fetch(&mut users)?;
        }
        Ok(users.get(&user).cloned())
    }

    /// What `user` has not taken becomes `pages`; what was written until now is forgotten.
    pub(super) fn set(&self, user: LogUser, pages: Pages) -> Result<(), BackendError> {
        let mut users = self.lock();
        if users.contains_key(&user) {
            self.fetch(&mut users)?;
            users.insert(user, pages);
        }
        Ok(())
    }

    /// Adds `pages` of `slot` to what `user` has not taken.
    pub(super) fn add(&self, user: LogUser, slot: SlotId, pages: &PageBitmap) {
        if let Some(seen) = self.lock().get_mut(&user) {
            seen[slot.index()].or(pages);
        }
    }

    /// Whether the accelerator logs.
    pub(super) fn is_running(&self) -> bool {
        !self.lock().is_empty()
    }

    fn fetch(&self, users: &mut BTreeMap<LogUser, Pages>) -> Result<(), BackendError> {
        SlotId::ALL.into_iter().try_for_each(|slot| self.fetch_slot(users, slot))
    }

    fn fetch_slot(&self, users: &mut BTreeMap<LogUser, Pages>, slot: SlotId) -> Result<(), BackendError> {
        let mut dirty = self.clean[slot.index()].clone();
        dirty.fill_words(|words| self.vm.harvest_dirty(slot, words))?;
        for pages in users.values_mut() {
            pages[slot.index()].or(&dirty);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LogUser, Pages>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
