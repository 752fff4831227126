//! How one thread gets another thread's vCPU to look up: [`Signal`], a word of attention flags and a place to sleep.
//!
//! The run loop reads the flags once a block with a relaxed load. Whoever changes something a vCPU must see first makes
//! the change, then calls [`Signal::raise`]; the vCPU first takes the flags, then looks at what changed, so a change is
//! seen by this look or flagged for the next. A flag raised before a sleep ends the sleep at once: no wake-up is lost.
//!
//! Neighbours: `gic`, `psci`, `vm` (kick) and the safepoints raise; `exec` polls; `vcpu` takes and sleeps.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// The host wants the vCPU out of the run loop. Stays until `Vcpu::run` returns because of it.
pub const KICK: u32 = 1 << 0;
/// The vCPU's interrupt line may have changed.
pub const INTERRUPT: u32 = 1 << 1;
/// A safepoint is asked for: acknowledge it at the next instruction boundary.
pub const SAFEPOINT: u32 = 1 << 2;
/// The vCPU was turned on or off.
pub const POWER: u32 = 1 << 3;
/// SEV: ends a WFE.
pub const EVENT: u32 = 1 << 4;

/// One vCPU's attention flags. On a cache line of its own, for the run loop reads it once a block.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Signal {
    flags: AtomicU32,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Signal {
    /// Sets `flags` and wakes the vCPU if it sleeps. What the flags announce must have been stored before.
    pub fn raise(&self, flags: u32) {
        if self.flags.fetch_or(flags, Ordering::AcqRel) & flags == flags {
            // Whoever set them wakes the vCPU, or it has not yet taken them and cannot fall asleep.
            return;
        }
        drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }

    /// Whether any flag is set: one relaxed load. The caller then calls [`Signal::take`], which synchronises.
    #[inline(always)]
    pub fn any(&self) -> bool {
        self.flags.load(Ordering::Relaxed) != 0
    }

    /// Clears `flags` and returns those of them that were set.
    pub fn take(&self, flags: u32) -> u32 {
        self.flags.fetch_and(!flags, Ordering::AcqRel) & flags
    }

    /// Sleeps until a flag is set or until `deadline`; returns at once if one is set already.
    pub fn sleep(&self, deadline: Option<Instant>) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        while self.flags.load(Ordering::Acquire) == 0 {
            guard = match deadline {
                None => self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
                    else {
                        return;
                    };
                    self.wake.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn flag_raised_before_sleep_ends_it() {
        let signal = Signal::default();
        signal.raise(KICK);
        signal.sleep(None);
        assert_eq!(signal.take(KICK | INTERRUPT), KICK);
        assert!(!signal.any());
    }

    #[test]
    fn no_raise_is_lost_in_a_ping_pong() {
        const ROUNDS: u64 = 20_000;
        let pair = Arc::new((Signal::default(), Signal::default(), AtomicU64::new(0)));
        let other = Arc::clone(&pair);
        let thread = std::thread::spawn(move || {
            for round in 0..ROUNDS {
                while other.0.take(KICK) == 0 {
                    other.0.sleep(None);
                }
                assert_eq!(other.2.load(Ordering::Relaxed), round + 1);
                other.1.raise(INTERRUPT);
            }
        });
        for round in 0..ROUNDS {
            pair.2.store(round + 1, Ordering::Relaxed);
            pair.0.raise(KICK);
            while pair.1.take(INTERRUPT) == 0 {
                pair.1.sleep(None);
            }
        }
        thread.join().unwrap();
    }
}
