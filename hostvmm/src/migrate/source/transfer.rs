//! One pass: every page of a set, over the main channel or over page channels side by side.
//!
//! Page channels have a thread each for the length of a pass. They take pieces from one queue, so a slow channel takes fewer,
//! and each says when it is done, so that the destination applies no page of a pass before all of the one before it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Outgoing;
use super::connect::Peer;
use super::hold::Pages;
use super::pieces::Pieces;
use crate::dirty::PageBitmap;
use crate::memory::{GuestMemory, SlotId};
use crate::migrate::digest::Leaves;
use crate::migrate::error::MigrateError;
use crate::migrate::estimate::PassReport;
use crate::migrate::faults::Boundary;
use crate::migrate::frames::FrameWriter;
use crate::migrate::info::XbzrleInfo;
use crate::migrate::monitor::Monitor;
use crate::migrate::pages::{DeltaCache, DeltaStats, Packed, Packer};
use crate::migrate::transport::{CancelToken, Pacer};
use crate::migrate::wire::{Message, PageBatch, PassEnd, SlotPass};

/// What one thread has sent of a pass.
#[derive(Clone, Copy, Default, Debug)]
struct Sent {
    slots: [SlotPass; SlotId::COUNT],
    bytes: u64,
    zero: u64,
}

impl Sent {
    fn add(&mut self, batch: &PageBatch, payload: &[u8]) {
        let slot = &mut self.slots[batch.slot.index()];
        slot.pages += batch.pages();
        slot.digest = slot.digest.wrapping_add(batch.digest);
        self.bytes += payload.len() as u64;
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.slots.iter_mut().zip(other.slots) {
            mine.pages += theirs.pages;
            mine.digest = mine.digest.wrapping_add(theirs.digest);
        }
        self.bytes += other.bytes;
        self.zero += other.zero;
    }
}

impl Outgoing<'_> {
    /// Sends `pages`, and `known_zero` pages by saying nothing of them, as the next pass. `is_stopped` is whether the guest
    /// stands still: then nothing is paced.
    pub(super) fn send_pass(
        &mut self,
        pages: &Pages,
        known_zero: u64,
        is_stopped: bool,
    ) -> Result<PassReport, MigrateError> {
        let start = Instant::now();
        if !is_stopped {
            self.peer.limit_writes(Some(self.monitor.parameters().silence_timeout()));
        }
        let before = self.sent();
        let count: u64 = pages.iter().map(PageBitmap::count).sum();
        self.monitor.pass(self.pass.into());
        let pieces = Pieces::new(pages);
        let sent = if self.peer.page_writers.is_empty() {
            self.send_here(pieces, is_stopped)?
        } else {
            self.send_side_by_side(pieces, is_stopped)?
        };
        self.peer.send(&Message::PassEnd(PassEnd { pass: self.pass, slots: sent.slots }))?;
        self.unacknowledged.push_back(sent.slots.map(|slot| slot.digest));
        let bytes = self.sent() - before;
        let report = PassReport {
            pass: self.pass.into(),
            stopped: is_stopped,
            pages: count + known_zero,
            zero_pages: sent.zero + known_zero,
            bytes,
            ns: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
        };
        self.pass += 1;
        self.last_pass_bytes = report.bytes;
        self.show_pass(&report, known_zero);
        Ok(report)
    }

    /// Bytes sent so far on all channels.
    pub(super) fn sent(&self) -> u64 {
        self.peer.sent() + self.peer.sent_on_page_channels()
    }

    /// Takes what the destination has said about passes meanwhile.
    pub(super) fn take_acknowledgements(&mut self) -> Result<(), MigrateError> {
        while let Some(message) = self.peer.poll()? {
            self.acknowledge(message)?;
        }
        Ok(())
    }

    /// Waits until the destination has all that was sent, for up to `patience`.
    pub(super) fn wait_for_acknowledgements(&mut self, patience: Duration) -> Result<(), MigrateError> {
        let deadline = Instant::now() + patience;
        while !self.unacknowledged.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.peer.receive("acknowledged a pass", left) {
                Ok(message) => self.acknowledge(message)?,
                Err(MigrateError::Silent { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until the destination has acknowledged every pass.
    pub(super) fn wait_for_every_pass(&mut self) -> Result<(), MigrateError> {
        while !self.unacknowledged.is_empty() {
            let patience = self.monitor.parameters().silence_timeout();
            let message = self.peer.receive("acknowledged a pass", patience)?;
            self.acknowledge(message)?;
        }
        Ok(())
    }

    /// The destination's account of a pass.
    pub(super) fn acknowledge(&mut self, message: Message) -> Result<(), MigrateError> {
        let Message::PassAck { pass, digests } = message else { return Err(self.peer.unexpected(&message)) };
        let sent = self.unacknowledged.pop_front().expect("the order lets only passes that were ended be acknowledged");
        self.acknowledged += 1;
        for slot in SlotId::ALL {
            let (sent, received) = (sent[slot.index()], digests[slot.index()]);
            if sent != received {
                return Err(MigrateError::PassDigest { pass, slot, sent, received });
            }
        }
        Ok(())
    }

    /// What sends the pages of this pass, over what, and what packs them for each channel.
    fn sender(&mut self, is_stopped: bool) -> (PassSender<'_>, &mut Peer, &mut [Packer]) {
        let sender = PassSender {
            monitor: self.monitor,
            cancel: self.cancel,
            pacer: (!is_stopped).then_some(&self.pacer),
            memory: self.hold.vm.memory(),
            leaves: &self.leaves,
            page_bytes: self.page_bytes,
            pass: self.pass,
        };
        (sender, &mut self.peer, &mut self.packers)
    }

    fn send_here(&mut self, mut pieces: Pieces, is_stopped: bool) -> Result<Sent, MigrateError> {
        let (sender, peer, packers) = self.sender(is_stopped);
        sender.run(&mut packers[0], || pieces.next(), |message, payload| peer.send_pages(message, payload))
    }

    fn send_side_by_side(&mut self, pieces: Pieces, is_stopped: bool) -> Result<Sent, MigrateError> {
        let (sender, peer, packers) = self.sender(is_stopped);
        let pieces = Mutex::new(pieces);
        let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
        let send = |writer: &mut FrameWriter, packer: &mut Packer| {
            let sent = sender.run(packer, next, |message, payload| writer.send_pages(message, payload))?;
            writer.send(&Message::Sync { pass: sender.pass })?;
            Ok(sent)
        };
        let results: Vec<Result<Sent, MigrateError>> = std::thread::scope(|scope| {
            let channels = peer.page_writers.iter_mut().zip(packers);
            let threads: Vec<_> = channels.map(|(writer, packer)| scope.spawn(|| send(writer, packer))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a sending thread does not panic")).collect()
        });
        let mut all = Sent::default();
        for result in results {
            all.merge(&result.map_err(|error| peer.explained(error))?);
        }
        Ok(all)
    }

    fn show_pass(&self, report: &PassReport, known_zero: u64) {
        let (transferred, multifd_bytes) = (self.sent(), self.peer.sent_on_page_channels());
        let seconds = Duration::from_nanos(report.ns.max(1)).as_secs_f64();
        let xbzrle = self.cache.as_ref().map(|cache| xbzrle(cache, self.page_bytes));
        self.monitor.show(|info| {
            info.passes.push(*report);
            info.xbzrle_cache = xbzrle;
            let ram = info.ram.get_or_insert_default();
            ram.transferred = transferred;
            ram.multifd_bytes = multifd_bytes;
            if report.stopped {
                ram.downtime_bytes += report.bytes;
            } else {
                ram.precopy_bytes += report.bytes;
            }
            ram.duplicate += known_zero;
            ram.remaining = ram.remaining.saturating_sub(known_zero * self.page_bytes);
            ram.mbps = report.bytes as f64 * 8.0 / 1e6 / seconds;
            ram.pages_per_second = (report.pages as f64 / seconds) as u64;
        });
    }
}

fn xbzrle(cache: &DeltaCache, page_bytes: u64) -> XbzrleInfo {
    let DeltaStats { pages, bytes, misses, overflows } = cache.stats();
    let looked_for = (pages + misses + overflows).max(1);
    XbzrleInfo {
        cache_size: cache.size_bytes(),
        bytes,
        pages,
        cache_miss: misses,
        cache_miss_rate: misses as f64 / looked_for as f64,
        encoding_rate: (pages * page_bytes) as f64 / bytes.max(1) as f64,
        overflow: overflows,
    }
}

/// One thread's part of a pass.
struct PassSender<'a> {
    monitor: &'a Monitor,
    cancel: &'a CancelToken,
    pacer: Option<&'a Pacer>,
    memory: &'a GuestMemory,
    leaves: &'a Leaves,
    page_bytes: u64,
    pass: u32,
}

impl PassSender<'_> {
    fn run(
        &self,
        packer: &mut Packer,
        mut next: impl FnMut() -> Option<(SlotId, Vec<Range<u64>>)>,
        mut write: impl FnMut(&Message, &[u8]) -> Result<(), MigrateError>,
    ) -> Result<Sent, MigrateError> {
        let mut all = Sent::default();
        while let Some((slot, piece)) = next() {
            packer.begin(slot, self.pass);
            for mut pages in piece {
                while !pages.is_empty() {
                    packer.add(self.memory, self.leaves, &mut pages)?;
                    if packer.is_full() {
                        self.send(packer, &mut all, &mut write)?;
                    }
                }
            }
            self.send(packer, &mut all, &mut write)?;
        }
        Ok(all)
    }

    fn send(
        &self,
        packer: &mut Packer,
        all: &mut Sent,
        write: &mut impl FnMut(&Message, &[u8]) -> Result<(), MigrateError>,
    ) -> Result<(), MigrateError> {
        self.monitor.check()?;
        let counts = packer.take_counts();
        all.zero += counts.zero;
        let is_first = self.pass == 0 && all.bytes == 0;
        let bytes = match packer.take() {
            Some(Packed { message, payload }) => {
                if let Some(pacer) = self.pacer {
                    pacer.acquire(payload.len() as u64, self.cancel).map_err(MigrateError::lost)?;
                }
                if let Message::Pages(batch) = &message {
                    all.add(batch, payload);
                }
                write(&message, payload)?;
                payload.len() as u64
            }
            None => 0,
        };
        self.monitor.show(|info| {
            let ram = info.ram.get_or_insert_default();
            ram.normal += counts.normal;
            ram.normal_bytes += counts.normal * self.page_bytes;
            ram.duplicate += counts.zero;
            ram.transferred += bytes;
            ram.remaining = ram.remaining.saturating_sub((counts.normal + counts.zero) * self.page_bytes);
        });
        if is_first && bytes > 0 {
            self.monitor.at(Boundary::SourcePass0)?;
        }
        Ok(())
    }
}
