//! One checkpoint from the primary's side: what is sent while both guests stand still, what the secondary says of it, and
//! the report.

use std::time::Instant;

use super::Primary;
use crate::colo::error::ColoError;
use crate::colo::faults::{ColoBoundary, Omission};
use crate::colo::info::{Cause, CheckpointReport, ColoPhase, Held, SlotDigests};
use crate::colo::output::Record;
use crate::colo::pages;
use crate::colo::protocol::PrimaryEvent;
use crate::memory::SlotId;
use crate::migrate::digest::memory_digest;
use crate::migrate::source::pieces::Pieces;
use crate::migrate::wire::{ColoMessage, Message, RECORDS_BYTES, Section, Text, VmstateLoaded, VmstateSize};
use crate::migrate::{DigestMode, Moment};

/// A checkpoint under way.
#[derive(Debug, Default)]
pub(super) struct Current {
    pub(super) report: CheckpointReport,
    /// When the guest stopped.
    pub(super) stopped: Moment,
    /// By this side's own clock.
    stopped_at: Option<Instant>,
    sent_at: Option<Instant>,
    loaded_at: Option<Instant>,
    size: Option<VmstateSize>,
    is_committed: bool,
}

impl Current {
    /// Checkpoint `n`, because of `cause`.
    pub(super) fn new(n: u64, cause: Cause) -> Self {
        Self { report: CheckpointReport { n, cause, ..CheckpointReport::default() }, ..Self::default() }
    }

    /// The guest stands still; stopping it `begun` then.
    pub(super) fn stop(&mut self, begun: Instant) {
        self.stopped_at = Some(begun);
        self.report.split.pause_ns = ns(begun);
    }
}

fn ns(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Primary<'_> {
    /// Sends everything of checkpoint `n` but its last message.
    pub(super) fn transfer(&mut self, n: u64) -> Result<(), ColoError> {
        self.monitor.at(ColoBoundary::PrimaryStopped, n)?;
        self.take_output()?;
        self.line.send(ColoMessage::VmstateSend { n, stopped: self.current.stopped })?;

        let begun = Instant::now();
        let mut fresh = pages::clean(self.vm.memory(), self.vm.log_page_bytes());
        pages::harvest(self.vm, &mut fresh)?;
        self.harvested_at = begun;
        self.forget_one(n, &mut fresh);
        pages::add(&mut self.dirty, &fresh);
        pages::add(&mut self.unsent, &fresh);
        self.current.report.split.harvest_ns = ns(begun);

        let begun = Instant::now();
        self.current.report.stop_pages = pages::count(&self.unsent);
        self.pieces = None;
        for (slot, piece) in Pieces::new(&self.unsent) {
            self.send_piece(slot, &piece)?;
        }
        self.end_pass()?;
        self.current.report.split.pages_ns = ns(begun);
        self.monitor.at(ColoBoundary::PrimaryPages, n)?;

        let begun = Instant::now();
        for message in pages::messages(&self.dirty) {
            self.line.send(message)?;
        }
        for records in in_parts(self.unseen()) {
            self.line.send(ColoMessage::Held(records))?;
        }
        let sections = self.vm.save()?;
        for part in sections.iter().flat_map(Section::parts) {
            self.line.send_plain(&Message::Section(part))?;
        }
        self.current.report.split.state_ns = ns(begun);

        let begun = Instant::now();
        let digests = match self.offer.digest {
            DigestMode::Full => memory_digest(self.vm.memory(), self.offer.salt)?,
            DigestMode::Deferred => self.leaves.digest(),
        };
        self.current.report.digests.primary = Some(digests);
        self.current.report.split.digest_ns = ns(begun);
        let bytes = sections.iter().map(|section| section.bytes.len() as u64).sum();
        let positions = self.compare.own_positions();
        self.current.size = Some(VmstateSize { n, bytes, digests, dirty: pages::count(&self.dirty), positions });
        Ok(())
    }

    /// Sends the last message: from here on the secondary may go on from the checkpoint.
    pub(super) fn send_size(&mut self) -> Result<(), ColoError> {
        self.current.sent_at = Some(Instant::now());
        match self.current.size {
            Some(size) => Ok(self.line.send(ColoMessage::VmstateSize(size))?),
            None => Ok(()),
        }
    }

    /// The secondary has checkpoint `n`, and its cache has digests `cache`.
    pub(super) fn received(&mut self, n: u64, cache: SlotDigests) -> Result<(), ColoError> {
        let report = &mut self.current.report;
        report.split.verify_ns = self.current.sent_at.map_or(0, ns);
        report.digests.cache = Some(cache);
        self.monitor.at(ColoBoundary::PrimaryReceived, n)
    }

    /// Whether what the secondary says about its flush and its memory is exact.
    pub(super) fn loaded(&mut self, loaded: &VmstateLoaded) -> Result<(), ColoError> {
        self.current.loaded_at = Some(Instant::now());
        let report = &mut self.current.report;
        let n = report.n;
        report.pages.primary_dirty = loaded.primary_dirty;
        report.pages.secondary_dirty = loaded.secondary_dirty;
        report.pages.both_dirty = loaded.both_dirty;
        report.pages.flushed = loaded.flushed;
        report.split.flush_ns = loaded.flush_ns;
        report.split.load_ns = loaded.load_ns;
        report.split.check_ns = loaded.check_ns;
        report.digests.secondary = loaded.ram;
        let primary = pages::count(&self.dirty);
        if loaded.primary_dirty != primary {
            return Err(ColoError::Sent { n, primary, secondary: loaded.primary_dirty });
        }
        if loaded.flushed != report.pages.union() {
            return Err(ColoError::Pages { n, counts: report.pages, page: None });
        }
        if let (Some(ram), Some(cache)) = (loaded.ram, report.digests.cache)
            && let Some(slot) = SlotId::ALL.into_iter().find(|slot| ram[slot.index()] != cache[slot.index()])
        {
            let (cache, secondary) = (cache[slot.index()], ram[slot.index()]);
            return Err(ColoError::Flush { n, slot, cache, secondary, page: None });
        }
        Ok(())
    }

    /// What the secondary found wrong with checkpoint `n`, and what this side can say about it.
    pub(super) fn inexact(&self, n: u64, text: Text) -> ColoError {
        let lost = SlotId::ALL.into_iter().find_map(|slot| {
            let pages = self.leaves.others(self.vm.memory(), slot).unwrap_or_default();
            pages.first().filter(|_| self.is_paused).map(|page| (slot, *page))
        });
        match lost {
            Some((slot, page)) => ColoError::Unlogged { n, slot, page, text },
            None => ColoError::Peer { text },
        }
    }

    /// The checkpoint holds: what was emitted before it may be seen.
    pub(super) fn commit(&mut self) -> Option<PrimaryEvent> {
        self.dirty.iter_mut().for_each(crate::dirty::PageBitmap::clear_all);
        let held = self.compare.held();
        self.current.report.released = Held { records: held.records as u64, bytes: held.bytes as u64 };
        self.current.is_committed = true;
        let n = self.current.report.n;
        if let Some(size) = self.current.size
            && let Err(error) = self.compare.commit(&size.positions)
        {
            self.error.get_or_insert(error.into());
            return Some(PrimaryEvent::Lost);
        }
        let released = self.compare.take_released();
        if let Some(event) = self.release(released) {
            return Some(event);
        }
        self.lost_if(self.monitor.at(ColoBoundary::PrimaryReleased, n))
    }

    /// The guest runs on: that was the checkpoint.
    pub(super) fn report(&mut self) {
        if self.monitor.phase() == ColoPhase::Checkpoint {
            self.monitor.enter(ColoPhase::Running);
        }
        if !std::mem::take(&mut self.current.is_committed) {
            return;
        }
        let mut report = std::mem::take(&mut self.current).report_at_resume();
        let sent = self.line.sent();
        report.bytes = sent - std::mem::replace(&mut self.sent_bytes, sent);
        report.background_pages = std::mem::take(&mut self.background_pages);
        report.since_last_ns = ns(self.committed_at);
        self.committed_at = Instant::now();
        self.monitor.report(report);
    }

    /// What was emitted and nobody has seen, of each stream in its order.
    fn unseen(&self) -> Vec<Record> {
        let compared = self.compare.to_release().iter().cloned();
        self.voice.waiting().cloned().chain(compared).chain(self.compare.held_records()).collect()
    }

    /// Planted: a page is forgotten.
    fn forget_one(&self, n: u64, fresh: &mut pages::DirtyPages) {
        let is_planted = [Omission::Primary, Omission::Both].into_iter().any(|it| self.monitor.is_to_plant(it, n));
        if is_planted && let Some((slot, page, _)) = pages::first(fresh, self.vm.memory()) {
            fresh[slot.index()].clear(page);
            self.monitor.planted();
        }
    }
}

impl Current {
    fn report_at_resume(self) -> CheckpointReport {
        let mut report = self.report;
        report.stop_ns = self.stopped_at.map_or(0, ns);
        report.split.resume_ns = self.loaded_at.map_or(0, ns);
        report
    }
}

/// `records` in parts that a message carries.
pub(in crate::colo) fn in_parts(records: Vec<Record>) -> impl Iterator<Item = Vec<Record>> {
    let mut rest = records.into_iter().peekable();
    std::iter::from_fn(move || {
        rest.peek()?;
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < RECORDS_BYTES
            && let Some(record) = rest.next()
        {
            bytes += record.encoded_bytes();
            part.push(record);
        }
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::colo::output::StreamId;

    #[test]
    fn records_are_sent_in_parts_that_fit() {
        let record = |sequence| Record { stream: StreamId::CONSOLE, sequence, bytes: vec![7; 1000] };
        let all: Vec<_> = (0..1000).map(record).collect();
        let parts: Vec<_> = in_parts(all.clone()).collect();
        assert!(parts.len() > 3);
        let most = RECORDS_BYTES + 2048;
        assert!(parts.iter().all(|part| part.iter().map(Record::encoded_bytes).sum::<usize>() < most));
        assert_eq!(parts.concat(), all);
        assert_eq!(in_parts(Vec::new()).count(), 0);
    }
}
