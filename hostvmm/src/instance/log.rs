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

    /// `user` sees every write from now on. On an error it is no user, and the log runs only if it did before.
    pub(super) fn start(&self, user: LogUser) -> Result<(), BackendError> {
        let mut users = self.lock();
        if users.is_empty() {
            self.vm.start_dirty_log(&SlotId::ALL)?;
            if self.initially_all_set
                && let Err(error) = self.fetch(&mut users)
            {
                // Nobody is left who would stop it. Why it could not be used says more than a stop that fails as well.
                let _ = self.vm.stop_dirty_log();
                return Err(error);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use abi::{GuestRange, map};

    use super::*;
    use crate::backend::{Accelerator, GicState, PlantedFault, Vcpu, Vm};

    const PAGE: u64 = 4096;

    /// A log of which the first harvest is every page, and whose harvests fail on command.
    #[derive(Default)]
    struct Failing {
        runs: AtomicBool,
        fails: AtomicBool,
    }

    fn refused() -> BackendError {
        BackendError::DirtyLog { accelerator: Accelerator::Emulator, reason: "planted".to_owned() }
    }

    impl Vm for Failing {
        fn accelerator(&self) -> Accelerator {
            Accelerator::Emulator
        }
        fn take_vcpu(&self, _: usize) -> Option<Box<dyn Vcpu>> {
            None
        }
        fn kick(&self, _: usize) {}
        fn set_irq_line(&self, _: u32, _: bool) {}
        fn save_gic(&self) -> Result<GicState, BackendError> {
            unreachable!("a log saves nothing")
        }
        fn restore_gic(&self, _: &GicState) -> Result<(), BackendError> {
            unreachable!("a log restores nothing")
        }
        fn mark_dirty(&self, _: GuestRange) {}
        fn log_page_bytes(&self) -> u64 {
            PAGE
        }
        fn start_dirty_log(&self, _: &[SlotId]) -> Result<(), BackendError> {
            if self.runs.swap(true, Ordering::SeqCst) { Err(refused()) } else { Ok(()) }
        }
        fn stop_dirty_log(&self) -> Result<(), BackendError> {
            if self.runs.swap(false, Ordering::SeqCst) { Ok(()) } else { Err(refused()) }
        }
        fn harvest_dirty(&self, _: SlotId, bitmap: &mut [u64]) -> Result<(), BackendError> {
            if self.fails.load(Ordering::SeqCst) {
                return Err(refused());
            }
            bitmap.fill(0);
            Ok(())
        }
        fn plant(&self, _: PlantedFault) -> Result<(), BackendError> {
            unreachable!("nobody plants faults here")
        }
        fn now_ticks(&self) -> u64 {
            0
        }
        fn ticks_per_second(&self) -> u64 {
            1
        }
        fn warp_to_next_deadline(&self) -> Result<bool, BackendError> {
            Ok(false)
        }
    }

    fn shared(vm: &Arc<Failing>) -> SharedLog {
        let range = |start| GuestRange::new(start, 16 * PAGE).unwrap();
        let memory = GuestMemory::new(range(map::RAM_BASE), range(map::REGION_BASE), None).unwrap();
        SharedLog::new(Arc::<Failing>::clone(vm), &memory, true, false)
    }

    #[test]
    fn a_log_whose_first_harvest_fails_is_off_and_can_be_started_again() {
        let vm = Arc::new(Failing::default());
        let log = shared(&vm);
        vm.fails.store(true, Ordering::SeqCst);
        log.start(LogUser::Migration).unwrap_err();
        assert!(!vm.runs.load(Ordering::SeqCst) && !log.is_running());
        vm.fails.store(false, Ordering::SeqCst);
        log.start(LogUser::Migration).unwrap();
        assert!(vm.runs.load(Ordering::SeqCst) && log.is_running());
    }

    #[test]
    fn a_user_that_cannot_begin_leaves_the_log_to_those_before() {
        let vm = Arc::new(Failing::default());
        let log = shared(&vm);
        log.start(LogUser::History).unwrap();
        vm.fails.store(true, Ordering::SeqCst);
        log.start(LogUser::Migration).unwrap_err();
        assert!(vm.runs.load(Ordering::SeqCst) && log.is_running());
        log.stop(LogUser::History).unwrap();
        assert!(!vm.runs.load(Ordering::SeqCst));
    }
}
