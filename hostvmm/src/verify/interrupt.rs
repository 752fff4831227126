//! A user's wish to end the run: [`Interrupt`], raised by a signal's thread, seen by whoever waits for the guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::vcpus::Interrupter;

/// Raised once, never lowered.
#[derive(Default)]
pub struct Interrupt {
    raised: AtomicBool,
    waiting: Mutex<Option<Interrupter>>,
}

impl Interrupt {
    /// Asks for the end of the run that is under way, and of every later one.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        if let Some(interrupter) = &*self.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupter.interrupt();
        }
    }

    /// Whether the end has been asked for.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// From now on [`Self::raise`] interrupts this guest's waits; at once if it was raised already.
    pub(super) fn attach(&self, interrupter: Interrupter) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_raised() {
            interrupter.interrupt();
        }
        *waiting = Some(interrupter);
    }

    /// No guest waits any more.
    pub(super) fn detach(&self) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
