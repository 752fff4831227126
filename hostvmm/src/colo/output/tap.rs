//! Takes what the guest emits, as it emits it: [`Tap`].
//!
//! ```text
//!   off ── start() ──▶ on: capture() by the vCPU threads ─▶ queue ─▶ take() by the engine
//!    ▲                 │
//!    └──── stop() ─────┘   full: a vCPU that has left the guest does not enter it again until there is room
//! ```
//!
//! A vCPU's thread leaves its record and goes on: it waits for nobody. When the machine is paused the queue and
//! [`Tap::positions`] hold all that was emitted before. At the bound no record is dropped, for that would be lost output;
//! instead the vCPUs stay out of the guest, which is time lost and nothing else, and [`Tap::times_full`] tells of it. They can
//! be paused meanwhile.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Positions, Record, StreamId};

/// Records in the queue at which it is full.
const MAX_RECORDS: usize = 16 << 10;
/// Bytes in the queue at which it is full.
const MAX_BYTES: usize = 8 << 20;

#[derive(Debug, Default)]
struct Queue {
    on: bool,
    records: VecDeque<Record>,
    bytes: usize,
    positions: Positions,
    times_full: u64,
    looker: Looker,
    /// The looker was told since something was taken the last time.
    told: bool,
    /// Nobody waits for room: the machine is being paused or stopped.
    pausing: bool,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.on && (self.records.len() >= MAX_RECORDS || self.bytes >= MAX_BYTES)
    }
}

/// Whom a tap tells that there is something to take.
#[derive(Clone, Default)]
struct Looker(Option<Arc<dyn Fn() + Send + Sync>>);

impl fmt::Debug for Looker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Looker(..)" } else { "Looker(None)" })
    }
}

/// A looker is told until this is dropped.
#[derive(Debug)]
pub(in crate::colo) struct Watch<'a>(&'a Tap);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.lock().looker = Looker::default();
    }
}

/// Where a guest's output is taken. Off at first: then nothing is taken and nothing counted.
#[derive(Debug, Default)]
pub struct Tap {
    queue: Mutex<Queue>,
    arrived: Condvar,
    room: Condvar,
    /// [`Queue::is_full`], to be looked at on every exit.
    full: AtomicBool,
}

impl Tap {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on everything that the guest emits is taken, and goes nowhere else.
    pub fn start(&self) {
        self.lock().on = true;
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.lock().on
    }

    /// From now on output goes where it does without a tap. What was taken is left to [`Self::take`].
    pub fn stop(&self) {
        let mut queue = self.lock();
        queue.on = false;
        self.update(queue);
    }

    /// Everything taken and not fetched yet, in the order in which it was emitted.
    pub fn take(&self) -> Vec<Record> {
        let mut queue = self.lock();
        let records = std::mem::take(&mut queue.records);
        (queue.bytes, queue.told) = (0, false);
        self.update(queue);
        records.into()
    }

    /// Waits until there is something to take, at most for `timeout`; whether there is.
    pub fn wait(&self, timeout: Duration) -> bool {
        let waited = self.arrived.wait_timeout_while(self.lock(), timeout, |queue| queue.records.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).0.records.is_empty()
    }

    /// Calls `look` when there is something to take, and then not again before something was taken: at once if there is already, else
    /// from the thread of the vCPU that emits it. So `look` is to return soon, and a thread that waits for other things as well is
    /// woken by nobody in between.
    pub(in crate::colo) fn watch(&self, look: impl Fn() + Send + Sync + 'static) -> Watch<'_> {
        let look: Arc<dyn Fn() + Send + Sync> = Arc::new(look);
        let mut queue = self.lock();
        queue.looker = Looker(Some(Arc::clone(&look)));
        queue.told = !queue.records.is_empty();
        let is_told = queue.told;
        drop(queue);
        if is_told {
            look();
        }
        Watch(self)
    }

    /// How far each stream is, what was not fetched yet included.
    pub fn positions(&self) -> Positions {
        self.lock().positions
    }

    /// The streams are at `positions` now, as after a checkpoint was loaded: what was not fetched belongs to a past that did
    /// not happen, and is dropped. The machine is paused.
    pub fn set_positions(&self, positions: Positions) {
        let mut queue = self.lock();
        queue.records.clear();
        (queue.bytes, queue.told) = (0, false);
        queue.positions = positions;
        self.update(queue);
    }

    /// Whether so much waits to be fetched that the vCPUs are kept out of the guest.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// How often [`Self::is_full`] has become true.
    pub fn times_full(&self) -> u64 {
        self.lock().times_full
    }

    /// Takes the next record of `stream`; gives the bytes back where the tap is off. Called by the thread of the vCPU that
    /// emitted them. What several vCPUs write to one stream is captured under a lock of the caller's.
    pub(crate) fn capture(&self, stream: StreamId, bytes: Vec<u8>) -> Result<(), Vec<u8>> {
        let mut queue = self.lock();
        if !queue.on {
            return Err(bytes);
        }
        let sequence = queue.positions.advance(stream);
        queue.bytes += bytes.len();
        queue.records.push_back(Record { stream, sequence, bytes });
        if queue.is_full() && !self.full.swap(true, Ordering::AcqRel) {
            queue.times_full += 1;
        }
        let looker = if std::mem::replace(&mut queue.told, true) { Looker::default() } else { queue.looker.clone() };
        drop(queue);
        self.arrived.notify_all();
        if let Looker(Some(look)) = looker {
            look();
        }
        Ok(())
    }

    /// Waits until there is room for more, or the machine is to be paused. Called by a vCPU's thread outside the guest.
    pub(crate) fn wait_room(&self) {
        if self.full.load(Ordering::Acquire) {
            let stuck = |queue: &mut Queue| queue.is_full() && !queue.pausing;
            drop(self.room.wait_while(self.lock(), stuck).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Nobody waits for room while `pausing`: whoever pauses the machine waits for every vCPU.
    pub(crate) fn set_pausing(&self, pausing: bool) {
        let mut queue = self.lock();
        queue.pausing = pausing;
        self.update(queue);
    }

    fn update(&self, queue: MutexGuard<'_, Queue>) {
        self.full.store(queue.is_full(), Ordering::Release);
        drop(queue);
        self.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const LINK: StreamId = match StreamId::packets(0) {
        Some(stream) => stream,
        None => unreachable!(),
    };

    #[test]
    fn nothing_is_taken_or_counted_before_the_start() {
        let tap = Tap::default();
        assert_eq!(tap.capture(LINK, vec![1]), Err(vec![1]));
        tap.start();
        assert_eq!(tap.capture(LINK, vec![2]), Ok(()));
        assert_eq!(tap.capture(StreamId::CONSOLE, vec![3]), Ok(()));
        assert_eq!(tap.capture(LINK, vec![4]), Ok(()));
        assert!(tap.wait(Duration::ZERO));
        let taken: Vec<_> = tap.take().into_iter().map(|r| (r.stream.raw(), r.sequence, r.bytes)).collect();
        assert_eq!(taken, [(1, 0, vec![2]), (0, 0, vec![3]), (1, 1, vec![4])]);
        assert!(!tap.wait(Duration::ZERO));
        assert_eq!(tap.positions().get(LINK), 2);
        tap.stop();
        assert_eq!(tap.capture(LINK, vec![5]), Err(vec![5]));
    }

    #[test]
    fn a_checkpoint_drops_what_was_emitted_past_it() {
        let tap = Tap::default();
        tap.start();
        (0..5).for_each(|byte| tap.capture(LINK, vec![byte]).unwrap());
        let mut positions = Positions::default();
        positions.set(LINK, 3);
        tap.set_positions(positions);
        assert!(tap.take().is_empty());
        tap.capture(LINK, vec![9]).unwrap();
        assert_eq!(tap.take(), [Record { stream: LINK, sequence: 3, bytes: vec![9] }]);
    }

    #[test]
    fn a_full_tap_keeps_every_record_and_holds_the_vcpu_until_there_is_room() {
        let tap = Arc::new(Tap::default());
        tap.start();
        for _ in 0..MAX_RECORDS {
            tap.wait_room();
            tap.capture(LINK, vec![0]).unwrap();
        }
        assert!(tap.is_full());
        let waiting = Arc::clone(&tap);
        let vcpu = std::thread::spawn(move || {
            waiting.wait_room();
            waiting.capture(LINK, vec![1]).unwrap();
        });
        assert_eq!(tap.take().len(), MAX_RECORDS);
        vcpu.join().unwrap();
        assert_eq!(tap.take().len(), 1);
        assert_eq!((tap.is_full(), tap.times_full()), (false, 1));
    }

    #[test]
    fn whoever_pauses_is_not_kept_waiting_by_a_full_tap() {
        let tap = Arc::new(Tap::default());
        tap.start();
        tap.capture(LINK, vec![0; MAX_BYTES]).unwrap();
        let waiting = Arc::clone(&tap);
        let vcpu = std::thread::spawn(move || waiting.wait_room());
        tap.set_pausing(true);
        vcpu.join().unwrap();
        assert!(tap.is_full());
    }

    #[test]
    fn a_looker_is_told_once_until_something_was_taken() {
        let tap = Tap::default();
        tap.start();
        tap.capture(LINK, vec![1]).unwrap();
        let told = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&told);
        let watch = tap.watch(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let told = || told.load(Ordering::Relaxed);
        assert_eq!(told(), 1, "of what there was");
        tap.capture(LINK, vec![2]).unwrap();
        assert_eq!((told(), tap.take().len()), (1, 2));
        tap.capture(LINK, vec![3]).unwrap();
        assert_eq!(told(), 2);
        tap.set_positions(Positions::default());
        tap.capture(LINK, vec![4]).unwrap();
        assert_eq!(told(), 3, "what it was told of is gone");
        drop(watch);
        tap.take();
        tap.capture(LINK, vec![5]).unwrap();
        assert_eq!(told(), 3);
    }
}
