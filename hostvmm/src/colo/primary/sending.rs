//! Pages on their way into the cache: piece by piece while the guests run, all that is left while they stand still.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::Primary;
use crate::colo::error::ColoError;
use crate::colo::protocol::PrimaryState;
use crate::colo::{ColoParameters, pages};
use crate::memory::SlotId;
use crate::migrate::MigrateError;
use crate::migrate::source::pieces::Pieces;
use crate::migrate::wire::{Message, PageBatch, PassEnd};

/// Of this much time one part goes to pages that are sent while the guests run.
const BACKGROUND_PART: u32 = 50;
/// Least time before a checkpoint in which its last pages are sent.
const LAST_PASS: Duration = Duration::from_millis(1);

impl Primary<'_> {
    /// One piece of pages, and now and then a harvest for more.
    pub(super) fn send_in_background(&mut self, parameters: &ColoParameters) -> Result<(), ColoError> {
        let begun = Instant::now();
        if let Some(pieces) = &mut self.pieces {
            if let Some((slot, piece)) = pieces.next() {
                self.background_pages += piece.iter().map(|run| run.end - run.start).sum::<u64>();
                self.send_piece(slot, &piece)?;
            } else {
                self.pieces = None;
                self.end_pass()?;
            }
            self.background_took += begun.elapsed();
            return Ok(());
        }
        if self.machine.state() == PrimaryState::Running && self.background_in(parameters) == Some(Duration::ZERO) {
            let mut fresh = pages::clean(self.vm.memory(), self.vm.log_page_bytes());
            pages::harvest(self.vm, &mut fresh)?;
            self.harvested_at = begun;
            pages::add(&mut self.dirty, &fresh);
            pages::add(&mut self.unsent, &fresh);
            if pages::count(&self.unsent) > 0 {
                self.pieces = Some(Pieces::new(&self.unsent));
            }
            self.background_took = begun.elapsed();
        }
        Ok(())
    }

    /// Time until the next harvest whose pages are sent while the guests run; `None` where there is none to come.
    pub(super) fn background_in(&self, parameters: &ColoParameters) -> Option<Duration> {
        let pause = parameters.background()?;
        let (harvested, committed) = (self.harvested_at.elapsed(), self.committed_at.elapsed());
        Some(until_harvest(pause, parameters.interval(), self.background_took, harvested, committed))
    }

    /// Sends `piece`, which was harvested; what is written from here on is dirty once more.
    pub(super) fn send_piece(&mut self, slot: SlotId, piece: &[Range<u64>]) -> Result<(), ColoError> {
        self.packer.begin(slot, self.pass);
        for run in piece {
            let mut run = run.clone();
            while !run.is_empty() {
                for page in run.clone() {
                    self.unsent[slot.index()].clear(page);
                }
                self.packer.add(self.vm.memory(), &self.leaves, &mut run).map_err(MigrateError::from)?;
                if self.packer.is_full() {
                    self.send_batch()?;
                }
            }
        }
        self.send_batch()
    }

    fn send_batch(&mut self) -> Result<(), ColoError> {
        if let Some(packed) = self.packer.take() {
            if let Message::Pages(PageBatch { slot, digest, runs, .. }) = &packed.message {
                let sent = &mut self.sent[slot.index()];
                sent.pages += runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
                sent.digest = sent.digest.wrapping_add(*digest);
            }
            self.line.send_pages(&packed.message, packed.payload)?;
        }
        Ok(())
    }

    pub(super) fn end_pass(&mut self) -> Result<(), ColoError> {
        let slots = std::mem::take(&mut self.sent);
        self.line.send_plain(&Message::PassEnd(PassEnd { pass: self.pass, slots }))?;
        self.pass = self.pass.wrapping_add(1);
        Ok(())
    }
}

/// Time until the next pass of pages in the background, where the last one took `took` and began `harvested` ago, and the last
/// checkpoint, of those that are due every `interval`, was committed `committed` ago.
///
/// A pass takes time of both guests' hosts, and a guest that writes the same pages again and again has them sent as often. So
/// there is one every `pause`, but for no more than a part of the time; and a last one that ends as the checkpoint is due,
/// for what is written after that has to be sent while the guests stand still.
fn until_harvest(
    pause: Duration,
    interval: Duration,
    took: Duration,
    harvested: Duration,
    committed: Duration,
) -> Duration {
    let rest = pause.max(took.saturating_mul(BACKGROUND_PART));
    let regular = rest.saturating_sub(harvested);
    let last = took.max(LAST_PASS);
    if interval < rest || harvested < 2 * last {
        return regular;
    }
    regular.min(interval.saturating_sub(committed).saturating_sub(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn background_passes_take_a_bounded_part_of_the_time() {
        let next = |took, harvested| until_harvest(ms(100), ms(20_000), took, harvested, ms(500));
        assert_eq!(next(ms(1), ms(0)), ms(100), "as often as is asked for");
        assert_eq!(next(ms(1), ms(100)), ms(0));
        assert_eq!(next(ms(16), ms(100)), ms(700), "less often where a pass takes long");
        assert_eq!(next(Duration::MAX, ms(100)), Duration::MAX - ms(100));
    }

    #[test]
    fn a_last_pass_ends_as_the_checkpoint_is_due_and_is_the_only_one() {
        let next = |harvested, committed| until_harvest(ms(100), ms(2000), ms(16), harvested, committed);
        assert_eq!(next(ms(400), ms(1500)), ms(400), "a regular one would be too late");
        assert_eq!(next(ms(400), ms(1984)), ms(0));
        assert_eq!(next(ms(16), ms(2000)), ms(784), "it has been");
        let often = |committed| until_harvest(ms(100), ms(20), ms(1), committed, committed);
        assert_eq!(often(ms(19)), ms(81), "none for an interval that is shorter than a pause");
    }
}
