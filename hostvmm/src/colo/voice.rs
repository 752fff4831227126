//! How a VM speaks to the outside world: [`Voice`] delivers what may be seen, in order, and claims the outlet.
//!
//! It belongs to the machine, not to a pair: the output of a VM that runs alone goes the same way before a pair is made and
//! after it has ended. What an outlet that cannot be reached did not take waits here; whoever takes output from the guest asks
//! [`Voice::is_full`] first, so that the guest waits at its tap rather than the host running out of memory.

use std::collections::VecDeque;

use super::Side;
use super::outlet::{Claim, Outlet, OutletError};
use super::output::{Positions, Record};

/// Bytes that may wait for the outlet.
const MAX_WAITING_BYTES: usize = 8 << 20;
/// Records delivered at a time.
const BATCH: usize = 1024;

/// One VM's way to the outlet.
pub struct Voice {
    outlet: Box<dyn Outlet>,
    pair: u128,
    epoch: u64,
    /// Whether the outlet decides between two sides: then a lost heartbeat alone lets a side claim. Without that an operator
    /// has to say so.
    is_arbiter: bool,
    waiting: VecDeque<Record>,
    waiting_bytes: usize,
    accepted: Positions,
}

impl std::fmt::Debug for Voice {
    /// The pair's number is nobody's business.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Voice")
            .field("epoch", &self.epoch)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Voice {
    /// Of pair `pair`, before any claim.
    pub fn new(outlet: Box<dyn Outlet>, is_arbiter: bool, pair: u128) -> Self {
        Self {
            outlet,
            pair,
            epoch: 0,
            is_arbiter,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            accepted: Positions::default(),
        }
    }

    /// The pair's number.
    pub fn pair(&self) -> u128 {
        self.pair
    }

    /// It belongs to another pair from now on, and owns nothing: a secondary that was told whose it is.
    pub(super) fn join(&mut self, pair: u128) {
        (self.pair, self.epoch) = (pair, 0);
    }

    /// The epoch that it owns; 0 before a claim was granted.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the outlet can decide between two sides.
    pub fn is_arbiter(&self) -> bool {
        self.is_arbiter
    }

    /// How many records of each stream the outlet has accepted, as far as is known.
    pub fn accepted(&self) -> Positions {
        self.accepted
    }

    /// What may be seen and was not accepted yet, in order.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Record> {
        self.waiting.iter()
    }

    /// Whether so much waits that no more should be taken from the guest.
    pub fn is_full(&self) -> bool {
        self.waiting_bytes >= MAX_WAITING_BYTES
    }

    /// Whether everything was delivered.
    pub fn is_silent(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Claims `epoch` as `side`, once.
    ///
    /// # Errors
    /// As [`Outlet::claim`].
    pub fn claim(&mut self, epoch: u64, side: Side) -> Result<(), OutletError> {
        let accepted = self.outlet.claim(Claim { pair: self.pair, epoch, side })?;
        self.epoch = epoch;
        self.accept(accepted);
        Ok(())
    }

    /// These records were accepted, says somebody else who knows.
    pub(super) fn accept(&mut self, accepted: Positions) {
        for stream in super::output::StreamId::all() {
            self.accepted.set(stream, self.accepted.get(stream).max(accepted.get(stream)));
        }
        let accepted = self.accepted;
        self.waiting.retain(|record| !accepted.has(record));
        self.waiting_bytes = self.waiting.iter().map(|record| record.bytes.len()).sum();
    }

    /// `records` may be seen. They are delivered now, or by [`Self::flush`].
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn say(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), OutletError> {
        let accepted = self.accepted;
        for record in records.into_iter().filter(|record| !accepted.has(record)) {
            self.waiting_bytes += record.bytes.len();
            self.waiting.push_back(record);
        }
        self.flush()
    }

    /// Delivers what waits. An outlet that cannot be reached is no error: it waits on.
    ///
    /// # Errors
    /// [`OutletError`] where the outlet does not want it: another side owns it.
    pub fn flush(&mut self) -> Result<(), OutletError> {
        while !self.waiting.is_empty() {
            let count = self.waiting.len().min(BATCH);
            let batch = &self.waiting.make_contiguous()[..count];
            match self.outlet.deliver(self.epoch, batch) {
                Ok(accepted) => {
                    let delivered: usize = self.waiting.drain(..count).map(|record| record.bytes.len()).sum();
                    self.waiting_bytes -= delivered;
                    self.accept(accepted);
                }
                Err(OutletError::Unreachable(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
