//! A user's wish to end the run: [`Interrupt`], raised by a signal's thread, seen by whoever waits for a guest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::vcpus::Interrupter;

/// Raised once, never lowered.
#[derive(Default)]
pub struct Interrupt {
    raised: AtomicBool,
    waiting: Mutex<Vec<(u64, Interrupter)>>,
    attached: AtomicU64,
}

/// A guest's waits, which an [`Interrupt`] reaches until this is dropped.
pub(super) struct Attached<'a> {
    interrupt: &'a Interrupt,
    id: u64,
}

impl Interrupt {
    /// Asks for the end of the run that is under way, and of every later one.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        for (_, interrupter) in &*self.waiting() {
            interrupter.interrupt();
        }
    }

    /// Whether the end has been asked for.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// From now on [`Self::raise`] interrupts this guest's waits, too; at once if it was raised already.
    pub(super) fn attach(&self, interrupter: Interrupter) -> Attached<'_> {
        let mut waiting = self.waiting();
        if self.is_raised() {
            interrupter.interrupt();
        }
        let id = self.attached.fetch_add(1, Ordering::Relaxed);
        waiting.push((id, interrupter));
        Attached { interrupt: self, id }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(u64, Interrupter)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.interrupt.waiting().retain(|(id, _)| *id != self.id);
    }
}
