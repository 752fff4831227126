//! The primary's judgement of two sides' output: [`Compare`].
//!
//! ```text
//!   own records ────▶ held ──┐
//!                            ├─ next of both equal ─▶ released
//!   secondary's ────▶ early ─┘  and different ──────▶ Difference: nothing more of this stream before a checkpoint
//!
//!   commit(positions): all own records before them are released; the secondary starts anew from there
//! ```
//!
//! Each stream is compared by itself. A record that is released is one that the secondary has emitted as well, in the state that
//! it is in, so it may be seen: whichever side goes on alone from its own state has emitted it. Pure: no input or output. Bounded:
//! at the bound [`Compare::is_full`] asks for a checkpoint. The secondary's records past it are counted and not kept, after which
//! their stream waits for the checkpoint. The caller takes no more of the guest's output while it is full, and the guest waits
//! at its [tap](super::output::Tap).
//!
//! Neighbour: `backlog`, what the secondary keeps meanwhile.

use std::collections::VecDeque;

use super::output::{Positions, Record, StreamId};

#[cfg(test)]
mod tests;

/// Bytes of either side's records at which a comparison is full.
const MAX_BYTES: usize = 8 << 20;
/// Records of either side at which a comparison is full.
const MAX_RECORDS: usize = 32 << 10;

/// Where two sides' output first differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// In which stream.
    pub stream: StreamId,
    /// In which record of it.
    pub sequence: u64,
    /// The first byte that differs; the shorter one's length where one begins with the other.
    pub byte: usize,
}

/// Records that do not continue their stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("record {found} of the {stream} where {expected} is the next one")]
pub struct OutOfSequence {
    /// Which stream.
    pub stream: StreamId,
    /// The next one.
    pub expected: u64,
    /// The one that came.
    pub found: u64,
}

/// Records that wait, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Waiting {
    /// How many.
    pub records: usize,
    /// Their bytes together.
    pub bytes: usize,
}

impl Waiting {
    fn add(&mut self, bytes: &[u8]) {
        self.records += 1;
        self.bytes += bytes.len();
    }

    fn remove(&mut self, bytes: &[u8]) {
        self.records -= 1;
        self.bytes -= bytes.len();
    }

    fn is_full(self) -> bool {
        self.records >= MAX_RECORDS || self.bytes >= MAX_BYTES
    }
}

/// One stream. The first of `own` and the first of `theirs` have one sequence number, `next`, which is the next to be released.
#[derive(Debug, Default)]
struct Lane {
    next: u64,
    own: VecDeque<Vec<u8>>,
    theirs: VecDeque<Vec<u8>>,
    /// The secondary's records past the bound, which were not kept.
    dropped: u64,
    differs: bool,
}

impl Lane {
    fn next_own(&self) -> u64 {
        self.next + self.own.len() as u64
    }

    fn next_theirs(&self) -> u64 {
        self.next + self.theirs.len() as u64 + self.dropped
    }
}

/// Compares two sides' records and says what may be released.
#[derive(Debug, Default)]
pub struct Compare {
    lanes: [Lane; StreamId::COUNT],
    held: Waiting,
    early: Waiting,
    released: Vec<Record>,
    difference: Option<Difference>,
}

impl Compare {
    /// Of two sides that are both at `positions`, with nothing to be released.
    pub fn new(positions: &Positions) -> Self {
        let mut compare = Self::default();
        for stream in StreamId::all() {
            compare.lanes[stream.index()].next = positions.get(stream);
        }
        compare
    }

    /// Holds a record of the primary's own until the secondary has emitted it.
    ///
    /// # Errors
    /// [`OutOfSequence`]: the record is not taken.
    pub fn push_own(&mut self, record: Record) -> Result<(), OutOfSequence> {
        let lane = &mut self.lanes[record.stream.index()];
        check(&record, lane.next_own())?;
        self.held.add(&record.bytes);
        lane.own.push_back(record.bytes);
        self.advance(record.stream);
        Ok(())
    }

    /// Takes a record of the secondary's.
    ///
    /// # Errors
    /// [`OutOfSequence`]: the secondary is not to be trusted.
    pub fn push_theirs(&mut self, record: Record) -> Result<(), OutOfSequence> {
        let lane = &mut self.lanes[record.stream.index()];
        check(&record, lane.next_theirs())?;
        if lane.dropped > 0 || self.early.is_full() {
            lane.dropped += 1;
            return Ok(());
        }
        self.early.add(&record.bytes);
        lane.theirs.push_back(record.bytes);
        self.advance(record.stream);
        Ok(())
    }

    /// What may be seen, since this was last asked: of each stream in its order.
    pub fn take_released(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.released)
    }

    /// What [`Self::take_released`] would yield.
    pub fn to_release(&self) -> &[Record] {
        &self.released
    }

    /// Where the two sides first differed since the last commit. A reason for a checkpoint at once.
    pub fn difference(&self) -> Option<Difference> {
        self.difference
    }

    /// The primary's own records that wait to be released.
    pub fn held(&self) -> Waiting {
        self.held
    }

    /// The secondary's records that the primary has not emitted.
    pub fn early(&self) -> Waiting {
        self.early
    }

    /// Whether so much waits that there must be a checkpoint.
    pub fn is_full(&self) -> bool {
        self.held.is_full() || self.early.is_full() || self.lanes.iter().any(|lane| lane.dropped > 0)
    }

    /// How far the primary's own records are.
    pub fn own_positions(&self) -> Positions {
        self.positions(Lane::next_own)
    }

    /// How far what was released is.
    pub fn released_positions(&self) -> Positions {
        self.positions(|lane| lane.next)
    }

    /// The primary's own records that wait, of each stream in its order: what a secondary must have, as part of a checkpoint, to go on
    /// from it in place of a primary that dies before it has released them.
    pub fn held_records(&self) -> Vec<Record> {
        let lanes = StreamId::all().zip(&self.lanes);
        lanes
            .flat_map(|(stream, lane)| {
                (lane.next..).zip(&lane.own).map(move |(sequence, bytes)| Record {
                    stream,
                    sequence,
                    bytes: bytes.clone(),
                })
            })
            .collect()
    }

    /// Both sides are at `positions` now: the primary's own records before them are released, later ones are held, and the
    /// secondary's are forgotten.
    ///
    /// # Errors
    /// [`OutOfSequence`] where own records before `positions` have not been pushed, or later ones were released: nothing has
    /// changed.
    pub fn commit(&mut self, positions: &Positions) -> Result<(), OutOfSequence> {
        for (stream, lane) in StreamId::all().zip(&self.lanes) {
            let found = positions.get(stream);
            if found > lane.next_own() || found < lane.next {
                return Err(OutOfSequence { stream, expected: lane.next_own(), found });
            }
        }
        for (stream, lane) in StreamId::all().zip(&mut self.lanes) {
            while lane.next < positions.get(stream)
                && let Some(bytes) = lane.own.pop_front()
            {
                self.held.remove(&bytes);
                self.released.push(Record { stream, sequence: lane.next, bytes });
                lane.next += 1;
            }
            lane.theirs.clear();
            (lane.dropped, lane.differs) = (0, false);
        }
        self.early = Waiting::default();
        self.difference = None;
        Ok(())
    }

    /// Everything of the primary's own may be seen: there is nobody to compare it with any more.
    pub fn release_all(&mut self) {
        // Its own positions are never out of sequence.
        let _ = self.commit(&self.own_positions());
    }

    fn positions(&self, next: impl Fn(&Lane) -> u64) -> Positions {
        let mut positions = Positions::default();
        for (stream, lane) in StreamId::all().zip(&self.lanes) {
            positions.set(stream, next(lane));
        }
        positions
    }

    /// Releases what both sides have emitted, up to the first difference.
    fn advance(&mut self, stream: StreamId) {
        let lane = &mut self.lanes[stream.index()];
        while !lane.differs
            && let (Some(own), Some(theirs)) = (lane.own.front(), lane.theirs.front())
        {
            if own != theirs {
                lane.differs = true;
                let byte = own.iter().zip(theirs).take_while(|(own, theirs)| own == theirs).count();
                self.difference.get_or_insert(Difference { stream, sequence: lane.next, byte });
                return;
            }
            let bytes = lane.own.pop_front().unwrap_or_default();
            lane.theirs.pop_front();
            self.held.remove(&bytes);
            self.early.remove(&bytes);
            self.released.push(Record { stream, sequence: lane.next, bytes });
            lane.next += 1;
        }
    }
}

fn check(record: &Record, expected: u64) -> Result<(), OutOfSequence> {
    let (stream, found) = (record.stream, record.sequence);
    if found == expected { Ok(()) } else { Err(OutOfSequence { stream, expected, found }) }
}
