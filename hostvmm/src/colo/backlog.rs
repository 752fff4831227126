//! What a side has emitted and the outlet may still lack: [`Backlog`].
//!
//! A secondary keeps its own records until it hears that they were seen, to emit them itself should it go on alone. A checkpoint
//! that it loads puts the primary's records in their place: those that were held when the primary stopped.

use std::collections::VecDeque;

use super::compare::OutOfSequence;
use super::output::{Positions, Record, StreamId};

/// Records that may be needed again, by stream.
#[derive(Debug, Default)]
pub struct Backlog {
    lanes: [VecDeque<Record>; StreamId::COUNT],
    next: Positions,
    bytes: usize,
}

impl Backlog {
    /// Of streams that are at `positions`, of which everything was seen.
    pub fn new(positions: &Positions) -> Self {
        Self { next: *positions, ..Self::default() }
    }

    /// How far its streams are.
    pub fn positions(&self) -> Positions {
        self.next
    }

    /// Bytes of the records kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a record.
    ///
    /// # Errors
    /// [`OutOfSequence`] where it is not its stream's next one.
    pub fn push(&mut self, record: Record) -> Result<(), OutOfSequence> {
        let (stream, found, expected) = (record.stream, record.sequence, self.next.get(record.stream));
        if found != expected {
            return Err(OutOfSequence { stream, expected, found });
        }
        self.next.advance(stream);
        self.bytes += record.bytes.len();
        self.lanes[stream.index()].push_back(record);
        Ok(())
    }

    /// Everything before `seen` was seen.
    pub fn forget(&mut self, seen: &Positions) {
        for lane in &mut self.lanes {
            while lane.front().is_some_and(|record| seen.has(record)) {
                self.bytes -= lane.pop_front().map_or(0, |record| record.bytes.len());
            }
        }
    }

    /// A checkpoint was loaded whose streams are at `positions`, and of which `held` was emitted and perhaps not seen.
    ///
    /// # Errors
    /// [`OutOfSequence`] where `held` does not end at `positions`: the backlog is as it was.
    pub fn replace(&mut self, held: Vec<Record>, positions: &Positions) -> Result<(), OutOfSequence> {
        let mut first = *positions;
        for record in held.iter().rev() {
            let (stream, found) = (record.stream, record.sequence);
            let expected = first.get(stream).wrapping_sub(1);
            if found != expected {
                return Err(OutOfSequence { stream, expected, found });
            }
            first.set(stream, found);
        }
        *self = Self::new(&first);
        held.into_iter().try_for_each(|record| self.push(record))
    }

    /// The records from `accepted` on, in the order of each stream: what whoever goes on alone has to emit first.
    ///
    /// # Errors
    /// [`OutOfSequence`] where there are some that nobody has any more.
    pub fn missing(&self, accepted: &Positions) -> Result<Vec<Record>, OutOfSequence> {
        let mut missing = Vec::new();
        for (stream, lane) in StreamId::all().zip(&self.lanes) {
            let (from, next) = (accepted.get(stream), self.next.get(stream));
            let first = lane.front().map_or(next, |record| record.sequence);
            if from < first {
                return Err(OutOfSequence { stream, expected: from, found: first });
            }
            missing.extend(lane.iter().filter(|record| record.sequence >= from).cloned());
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(vcpu: usize, sequence: u64) -> Record {
        Record { stream: StreamId::packets(vcpu).unwrap(), sequence, bytes: vec![vcpu as u8; 3] }
    }

    fn at(next: [u64; 2]) -> Positions {
        let mut positions = Positions::default();
        (0..2).for_each(|vcpu| positions.set(StreamId::packets(vcpu).unwrap(), next[vcpu]));
        positions
    }

    #[test]
    fn what_was_not_seen_is_there_to_be_emitted_again() {
        let mut backlog = Backlog::new(&at([4, 0]));
        (4..8).for_each(|sequence| backlog.push(record(0, sequence)).unwrap());
        backlog.push(record(1, 0)).unwrap();
        backlog.forget(&at([6, 0]));
        assert_eq!(backlog.bytes(), 9);
        assert_eq!(backlog.missing(&at([7, 1])), Ok(vec![record(0, 7)]));
        assert_eq!(backlog.missing(&at([6, 0])).map(|records| records.len()), Ok(3));
        assert_eq!(backlog.missing(&at([8, 1])), Ok(vec![]));
        assert!(backlog.missing(&at([5, 0])).is_err(), "a hole must not be hidden");
        assert!(backlog.push(record(0, 9)).is_err());
    }

    #[test]
    fn a_checkpoint_brings_the_records_that_the_primary_held() {
        let mut backlog = Backlog::default();
        backlog.push(record(0, 0)).unwrap();
        backlog.replace(vec![record(0, 2), record(0, 3), record(1, 0)], &at([4, 1])).unwrap();
        assert_eq!(backlog.positions(), at([4, 1]));
        assert_eq!(backlog.missing(&at([3, 0])), Ok(vec![record(0, 3), record(1, 0)]));
        let hole = backlog.replace(vec![record(0, 5)], &at([7, 0])).unwrap_err();
        assert_eq!((hole.expected, hole.found), (6, 5));
        assert_eq!(backlog.positions(), at([4, 1]));
    }
}
