//! Pages on their way into the cache: piece by piece while the guests run, all that is left while they stand still.

use std::ops::Range;
use std::time::Instant;

use super::Primary;
use crate::colo::error::ColoError;
use crate::colo::protocol::PrimaryState;
use crate::colo::{ColoParameters, pages};
use crate::memory::SlotId;
use crate::migrate::MigrateError;
use crate::migrate::source::pieces::Pieces;
use crate::migrate::wire::{Message, PageBatch, PassEnd};

impl Primary<'_> {
    /// One piece of pages, and now and then a harvest for more.
    pub(super) fn send_in_background(&mut self, parameters: &ColoParameters) -> Result<(), ColoError> {
        if let Some(pieces) = &mut self.pieces {
            if let Some((slot, piece)) = pieces.next() {
                self.background_pages += piece.iter().map(|run| run.end - run.start).sum::<u64>();
                return self.send_piece(slot, &piece);
            }
            self.pieces = None;
            return self.end_pass();
        }
        let is_due = parameters.background().is_some_and(|pause| self.harvested_at.elapsed() >= pause);
        if is_due && self.machine.state() == PrimaryState::Running {
            let mut fresh = pages::clean(self.vm.memory(), self.vm.log_page_bytes());
            pages::harvest(self.vm, &mut fresh)?;
            self.harvested_at = Instant::now();
            pages::add(&mut self.dirty, &fresh);
            pages::add(&mut self.unsent, &fresh);
            if pages::count(&self.unsent) > 0 {
                self.pieces = Some(Pieces::new(&self.unsent));
            }
        }
        Ok(())
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
