//! The host's reading of a guest's heartbeat: [`GuestHeartbeat`] finds a vCPU's block in guest RAM, [`Reading`] is what it
//! said at one moment, [`Histogram`] its gaps by length.
//!
//! The guest's pointers and numbers are claims: the block must lie in RAM, and what is read is only ever compared and
//! subtracted with care. It writes while the host reads; a reading that is torn says so. Neighbours: `abi::heartbeat` has the
//! layout, [`crate::vcpus`] knows where a vCPU's progress slot is, which names the block.

mod histogram;
#[cfg(test)]
mod tests;

use std::sync::atomic::{Ordering, fence};

use abi::heartbeat::{
    FLAG_CYCLES, GapRecord, HEARTBEAT_ALIGN, HEARTBEAT_MARK, HEARTBEAT_RESET, HeartbeatBlock, ticks_to_ns,
};
use abi::hypercall::PROGRESS_HEARTBEAT;
use abi::{Gpa, GuestRange};

use crate::backend::Vm;
use crate::memory::{GuestMemory, MemoryError, SlotId};
pub use histogram::Histogram;

/// How often a block that the guest writes at the same time is read again. A guest's beat is some hundred instructions.
const TRIES: u32 = 10_000;

/// Why a heartbeat cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The guest names a place where none can be.
    #[error("the guest's heartbeat block at {gpa} is not in RAM, or not aligned to {HEARTBEAT_ALIGN} bytes")]
    Claim {
        /// What it named.
        gpa: Gpa,
    },
    /// Guest memory refused.
    #[error("the guest's heartbeat block: {0}")]
    Memory(#[from] MemoryError),
}

/// One vCPU's heartbeat block, where it has one.
#[derive(Clone, Debug)]
pub struct GuestHeartbeat {
    memory: GuestMemory,
    block: Gpa,
}

/// The time between two beats that followed one another, by the guest's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Gap {
    /// The virtual counter at the beat before it, in ticks.
    pub start: u64,
    /// The virtual counter at the beat after it, in ticks. Below `start` where the counter went back.
    pub end: u64,
    /// Cycles counted in between; `None` without a cycle counter.
    pub cycles: Option<u64>,
}

impl Gap {
    /// Its length in ticks, zero where the counter went back.
    pub const fn ticks(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Its length in ns at `frequency_hz`, zero where the counter went back.
    pub const fn ns(&self, frequency_hz: u64) -> u64 {
        ticks_to_ns(self.ticks(), frequency_hz)
    }

    /// Whether the counter value `at` lies in it.
    pub const fn spans(&self, at: u64) -> bool {
        self.start <= at && at <= self.end
    }
}

/// What a vCPU's heartbeat said at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The virtual counter at the last beat, in ticks.
    pub last: u64,
    /// The cycle counter at the last beat; `None` without one.
    pub cycles: Option<u64>,
    /// Beats so far.
    pub beats: u64,
    /// The counter's frequency in Hz, by CNTFRQ.
    pub frequency_hz: u64,
    /// All gaps by their length.
    pub histogram: Histogram,
    /// The largest gaps since [`GuestHeartbeat::reset`], the largest first; at most [`abi::heartbeat::LARGEST`].
    pub largest: Vec<Gap>,
    /// The gap in which the host last set the mark, with its number.
    pub marked: Option<(u64, Gap)>,
    /// The guest was stopped, or kept being stopped, in the middle of a beat: numbers of that beat and of the one before may
    /// stand side by side.
    pub is_torn: bool,
}

impl GuestHeartbeat {
    /// The heartbeat of the vCPU whose progress slot is at `progress`; `None` where the guest has none.
    ///
    /// # Errors
    /// [`ReadError`] for a claim that cannot be.
    pub fn find(memory: &GuestMemory, progress: Gpa) -> Result<Option<Self>, ReadError> {
        let word = progress.checked_add(PROGRESS_HEARTBEAT).ok_or(ReadError::Claim { gpa: progress })?;
        let block = Gpa::new(memory.load_u64(word)?);
        if block.raw() == 0 {
            return Ok(None);
        }
        let in_ram = GuestRange::new(block, size_of::<HeartbeatBlock>() as u64)
            .is_some_and(|range| memory.slot(SlotId::Ram).range().contains_range(range));
        if !in_ram || !block.is_aligned(HEARTBEAT_ALIGN) {
            return Err(ReadError::Claim { gpa: block });
        }
        Ok(Some(Self { memory: memory.clone(), block }))
    }

    /// What it says now. A guest that is stopped in the middle of a beat makes it a torn reading, not an endless one.
    ///
    /// # Errors
    /// [`ReadError::Memory`], which a block that was found does not cause.
    pub fn read(&self) -> Result<Reading, ReadError> {
        let mut tries = 0;
        loop {
            let before = self.memory.load_u64(self.block)?;
            let block: HeartbeatBlock = self.memory.read_obj(self.block)?;
            fence(Ordering::Acquire);
            let is_torn = before % 2 != 0 || self.memory.load_u64(self.block)? != before;
            tries += 1;
            if !is_torn || tries == TRIES {
                return Ok(Reading::of(&block, is_torn));
            }
            std::hint::spin_loop();
        }
    }

    /// Has the gap in which the vCPU is now filed as [`Reading::marked`] under `number`, which is not zero and another one
    /// than before. The vCPU must not be running.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn mark(&self, vm: &dyn Vm, number: u64) -> Result<(), ReadError> {
        self.store(vm, HEARTBEAT_MARK, number)
    }

    /// Starts the list of the largest gaps anew with the vCPU's next beat; `number` is another one than before.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn reset(&self, vm: &dyn Vm, number: u64) -> Result<(), ReadError> {
        self.store(vm, HEARTBEAT_RESET, number)
    }

    fn store(&self, vm: &dyn Vm, offset: u64, value: u64) -> Result<(), ReadError> {
        let word = self.block.checked_add(offset).ok_or(ReadError::Claim { gpa: self.block })?;
        self.memory.store_u64(word, value)?;
        if let Some(range) = GuestRange::new(word, size_of::<u64>() as u64) {
            vm.mark_dirty(range);
        }
        Ok(())
    }
}

/// One vCPU's heartbeat in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HeartbeatEntry {
    /// Which vCPU.
    pub vcpu: usize,
    /// Beats so far.
    pub beats: u64,
    /// The counter's frequency in Hz.
    pub frequency_hz: u64,
    /// The cycle counter at the last beat; null without one.
    pub cycles: Option<u64>,
    /// The longest gap between two beats, in ns.
    pub longest_ns: u64,
    /// Number of gaps of `[2^b, 2^(b+1))` ns, for each `b` from 0 on.
    pub histogram: Histogram,
}

impl HeartbeatEntry {
    /// The entry of what the heartbeat of `vcpu` said.
    pub fn new(vcpu: usize, reading: &Reading) -> Self {
        Self {
            vcpu,
            beats: reading.beats,
            frequency_hz: reading.frequency_hz,
            cycles: reading.cycles,
            longest_ns: reading.largest.first().map_or(0, |gap| gap.ns(reading.frequency_hz)),
            histogram: reading.histogram.clone(),
        }
    }
}

impl Reading {
    fn of(block: &HeartbeatBlock, is_torn: bool) -> Self {
        let has_cycles = block.flags.get() & FLAG_CYCLES != 0;
        let cycles = |cycles: u64| has_cycles.then_some(cycles);
        let gap = |record: &GapRecord| Gap {
            start: record.start.get(),
            end: record.end.get(),
            cycles: cycles(record.cycles.get()),
        };
        let mut largest: Vec<Gap> = block.largest.iter().filter(|record| record.end.get() != 0).map(gap).collect();
        largest.sort_by_key(|gap| std::cmp::Reverse(gap.end.wrapping_sub(gap.start)));
        let mark = block.marked.number.get();
        Self {
            last: block.last.get(),
            cycles: cycles(block.cycles.get()),
            beats: block.beats.get(),
            frequency_hz: block.frequency_hz.get(),
            histogram: Histogram::new(block.histogram.map(|count| count.get())),
            largest,
            marked: (mark != 0).then(|| (mark, gap(&block.marked))),
            is_torn,
        }
    }

    /// The gap that was filed under `number`, if that was the last mark.
    pub fn marked_as(&self, number: u64) -> Option<Gap> {
        self.marked.filter(|(mark, _)| *mark == number).map(|(_, gap)| gap)
    }
}
