//! `max-bandwidth`: [`Pacer`] lets bytes go at a rate that can be changed at any time.
//!
//! A token bucket in whole numbers of bytes × nanoseconds: nothing is rounded, and who wakes late finds the tokens of the
//! time that it slept too long, so the rate holds over time whatever the sleeps are worth. Bytes may go while the bucket
//! is not in debt, in amounts of any size; what goes puts it into debt, which is waited for by the next. So within any
//! time t go at most rate × (t + [`BURST`]) bytes and one amount.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::cancel::{CancelToken, wait};

/// Time for which unused tokens are kept: longer than a host under load oversleeps, shorter than anybody notices.
pub const BURST: Duration = Duration::from_millis(20);

const NS: i128 = 1_000_000_000;

/// The tokens, by a clock that the caller reads.
#[derive(Clone, Debug)]
struct Bucket {
    /// 0 is no limit.
    bytes_per_s: u64,
    /// Bytes × 10⁹; below 0 is debt.
    tokens: i128,
    settled_ns: u64,
}

impl Bucket {
    fn new(bytes_per_s: u64, now_ns: u64) -> Self {
        let mut bucket = Self { bytes_per_s, tokens: 0, settled_ns: now_ns };
        bucket.tokens = bucket.capacity();
        bucket
    }

    /// Takes the tokens for `bytes`, or says when they are there.
    fn take(&mut self, bytes: u64, now_ns: u64) -> Result<(), u64> {
        if self.bytes_per_s == 0 {
            return Ok(());
        }
        self.settle(now_ns);
        if self.tokens < 0 {
            let rate = i128::from(self.bytes_per_s);
            let wait_ns = (-self.tokens + rate - 1) / rate;
            return Err(self.settled_ns.saturating_add(u64::try_from(wait_ns).unwrap_or(u64::MAX)));
        }
        self.tokens -= i128::from(bytes) * NS;
        Ok(())
    }

    /// The rate from now on. Debt stays, in bytes.
    fn set_rate(&mut self, bytes_per_s: u64, now_ns: u64) {
        self.settle(now_ns);
        self.bytes_per_s = bytes_per_s;
        self.tokens = self.tokens.min(self.capacity());
    }

    fn settle(&mut self, now_ns: u64) {
        let passed_ns = now_ns.saturating_sub(self.settled_ns);
        self.settled_ns += passed_ns;
        let earned = i128::from(passed_ns) * i128::from(self.bytes_per_s);
        self.tokens = self.tokens.saturating_add(earned).min(self.capacity());
    }

    fn capacity(&self) -> i128 {
        i128::from(self.bytes_per_s) * BURST.as_nanos() as i128
    }
}

/// Paces several threads together.
#[derive(Debug)]
pub struct Pacer {
    state: Mutex<State>,
    epoch: Instant,
}

#[derive(Debug)]
struct State {
    bucket: Bucket,
    /// Ends the waits that began under the present rate.
    changed: CancelToken,
}

impl Pacer {
    /// Lets `bytes_per_s` go; 0 is no limit.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn new(bytes_per_s: u64) -> io::Result<Self> {
        let state = State { bucket: Bucket::new(bytes_per_s, 0), changed: CancelToken::new()? };
        Ok(Self { state: Mutex::new(state), epoch: Instant::now() })
    }

    /// Waits until `bytes` may go.
    ///
    /// # Errors
    /// Cancelled.
    pub fn acquire(&self, bytes: u64, cancel: &CancelToken) -> io::Result<()> {
        loop {
            let (ready_ns, changed) = {
                let mut state = self.state();
                let now_ns = self.now_ns();
                match state.bucket.take(bytes, now_ns) {
                    Ok(()) => return cancel.check(),
                    Err(ready_ns) => (ready_ns, state.changed.clone()),
                }
            };
            let deadline = self.epoch.checked_add(Duration::from_nanos(ready_ns));
            wait(&mut [PollFd::new(&changed, PollFlags::IN)], &[cancel], deadline)?;
        }
    }

    /// Lets `bytes_per_s` go from now on, also for who waits already; 0 is no limit.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn set_rate(&self, bytes_per_s: u64) -> io::Result<()> {
        let fresh = CancelToken::new()?;
        let mut state = self.state();
        let now_ns = self.now_ns();
        state.bucket.set_rate(bytes_per_s, now_ns);
        std::mem::replace(&mut state.changed, fresh).cancel();
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Each change to the state is made as a whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Event {
        Sleep(u64),
        Send(u64),
        Rate(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            (0_u64..100_000_000).prop_map(Event::Sleep),
            (1_u64..2_000_000).prop_map(Event::Send),
            (1_u64..2_000_000_000).prop_map(Event::Rate),
        ];
        proptest::collection::vec(event, 1..60)
    }

    proptest! {
        /// The naive model: bytes per nanosecond by nanosecond of waiting, in rationals over 10⁹.
        #[test]
        fn no_more_than_the_rate_goes_and_no_wait_is_longer_than_needed(
            rate in 1_u64..2_000_000_000,
            events in events(),
        ) {
            let burst_ns = BURST.as_nanos() as i128;
            let (mut now, mut rate) = (0_u64, rate);
            let mut bucket = Bucket::new(rate, now);
            // What the model allows: earned tokens, held at the burst.
            let mut allowed = i128::from(rate) * burst_ns;
            let pass = |ns: u64, rate: u64, allowed: &mut i128| {
                *allowed = (*allowed + i128::from(ns) * i128::from(rate)).min(i128::from(rate) * burst_ns);
            };
            for event in events {
                match event {
                    Event::Sleep(ns) => {
                        now += ns;
                        pass(ns, rate, &mut allowed);
                    }
                    Event::Rate(new) => {
                        bucket.set_rate(new, now);
                        rate = new;
                        allowed = allowed.min(i128::from(new) * burst_ns);
                    }
                    Event::Send(bytes) => {
                        if let Err(ready) = bucket.take(bytes, now) {
                            prop_assert!(allowed < 0, "it waits while the model allows");
                            let ns = ready - now;
                            let mut before = allowed;
                            pass(ns - 1, rate, &mut before);
                            prop_assert!(before < 0, "a nanosecond less would have been enough");
                            now = ready;
                            pass(ns, rate, &mut allowed);
                            prop_assert_eq!(bucket.take(bytes, now), Ok(()));
                        }
                        prop_assert!(allowed >= 0, "it lets go while the model is in debt");
                        allowed -= i128::from(bytes) * NS;
                    }
                }
            }
        }

        /// Sleeps that are too long, by less than the burst, cost nothing over time.
        #[test]
        fn oversleeping_does_not_slow_it_down(late in proptest::collection::vec(0_u64..15_000_000, 200)) {
            const RATE: u64 = 100_000_000;
            const CHUNK: u64 = 1 << 20;
            let mut now = 0;
            let mut bucket = Bucket::new(RATE, now);
            for late in &late {
                while let Err(ready) = bucket.take(CHUNK, now) {
                    now = ready + late;
                }
            }
            let due_ns = late.len() as u64 * CHUNK * 10;
            prop_assert!(now <= due_ns + 15_000_000, "{now} ns for bytes that are due in {due_ns}");
            prop_assert!(now + 20_000_000 + CHUNK * 10 >= due_ns);
        }
    }

    #[test]
    fn no_limit_never_waits() {
        let pacer = Pacer::new(0).unwrap();
        let cancel = CancelToken::new().unwrap();
        (0..1000).for_each(|_| pacer.acquire(u64::MAX, &cancel).unwrap());
    }

    #[test]
    fn a_change_of_rate_and_cancel_end_a_wait() {
        let pacer = Pacer::new(1).unwrap();
        let cancel = CancelToken::new().unwrap();
        pacer.acquire(1 << 40, &cancel).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| pacer.acquire(1, &cancel));
            pacer.set_rate(0).unwrap();
            waiter.join().unwrap().unwrap();
            pacer.set_rate(1).unwrap();
            let waiter = scope.spawn(|| pacer.acquire(1, &cancel));
            cancel.cancel();
            assert!(super::super::cancel::is_cancelled(&waiter.join().unwrap().unwrap_err()));
        });
    }
}
