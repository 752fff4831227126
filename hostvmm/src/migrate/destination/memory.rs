//! Passes of pages, until the source says that its guest stands still and has sent everything.

use std::thread;
use std::time::{Duration, Instant};

use super::door::Door;
use super::pages::{Arrived, Pages};
use super::side::{self, Turnstile};
use super::{Incoming, Terms};
use crate::dirty::PageBitmap;
use crate::memory::SlotId;
use crate::migrate::digest::{SlotDigests, file_digest, memory_digest};
use crate::migrate::error::MigrateError;
use crate::migrate::faults::Boundary;
use crate::migrate::frames::FrameReader;
use crate::migrate::parameters::DigestMode;
use crate::migrate::phase::{Active, Device, Stage};
use crate::migrate::transport::Handle;
use crate::migrate::vm::Moment;
use crate::migrate::wire::{Incoming as Order, Message, PassEnd, Pending, Section, Sections, SlotPass};

/// Everything that the source has sent, not yet loaded.
pub(super) struct Everything {
    /// When the guest stopped, on the source's clock.
    pub(super) stopped: Moment,
    /// The state.
    pub(super) sections: Vec<Section>,
    /// What memory is at the source.
    pub(super) source: SlotDigests,
    /// What it is here.
    pub(super) ours: SlotDigests,
    /// How long that took to find out.
    pub(super) digest_time: Duration,
    /// When the last section was here.
    pub(super) at: Instant,
    /// Pages that will come while the guest runs, if any may; then there is no digest yet.
    pub(super) missing: Option<[PageBitmap; SlotId::COUNT]>,
}

/// Receives memory and state.
pub(super) fn receive<'m>(
    incoming: &mut Incoming<'_>,
    terms: &Terms,
    door: &Door,
    stage: Stage<'m, Active>,
) -> Result<(Stage<'m, Device>, Everything), MigrateError> {
    let channels = door.page_channels(terms.page_channels)?;
    let handles: Vec<Handle> = channels.iter().map(|channel| channel.handle()).collect();
    for handle in &handles {
        incoming.monitor.add_channel(handle.clone());
    }
    let (arrived, turnstile) = (Arrived::default(), Turnstile::default());
    let (memory, monitor, main) = (incoming.vm.memory(), incoming.monitor, incoming.handle.clone());
    let pages = || Pages::new(memory, &terms.leaves, &arrived, monitor, terms.agreement.geometry);
    thread::scope(|scope| {
        for (channel, index) in channels.into_iter().zip(1..) {
            let reader = FrameReader::new(channel.split().0);
            let order = Order::page_channel(index, terms.agreement);
            let (pages, turnstile, main) = (pages(), &turnstile, &main);
            scope.spawn(move || side::receive(reader, order, pages, turnstile, main));
        }
        let _ends = Ends { turnstile: &turnstile, channels: &handles };
        let mut moving = Moving { incoming, terms, arrived: &arrived, turnstile: &turnstile, pages: pages() };
        let result = moving.run(stage);
        // Where the main channel was only shut down because a page channel had failed, that is the reason.
        result.map_err(|error| turnstile.failure().unwrap_or(error))
    })
}

/// Ends the page channels' threads when it is dropped. They are waited for, so a panic has to end them as well.
struct Ends<'a> {
    turnstile: &'a Turnstile,
    channels: &'a [Handle],
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.turnstile.close();
        self.channels.iter().for_each(Handle::shutdown);
    }
}

struct Moving<'a, 'i> {
    incoming: &'a mut Incoming<'i>,
    terms: &'a Terms,
    arrived: &'a Arrived,
    turnstile: &'a Turnstile,
    pages: Pages<'a>,
}

impl Moving<'_, '_> {
    fn run<'m>(&mut self, stage: Stage<'m, Active>) -> Result<(Stage<'m, Device>, Everything), MigrateError> {
        let stopped = self.while_it_runs()?;
        let stage = stage.stop()?;
        self.incoming.monitor.at(Boundary::DestinationStopped)?;
        let everything = self.while_it_stands_still(stopped)?;
        self.incoming.monitor.at(Boundary::DestinationState)?;
        Ok((stage, everything))
    }

    fn while_it_runs(&mut self) -> Result<Moment, MigrateError> {
        let mut has_pages = false;
        loop {
            let (message, payload_bytes) = self.incoming.next()?;
            match message {
                Message::Pages(batch) => {
                    self.pages.receive(&batch, payload_bytes, &mut self.incoming.reader)?;
                    if !std::mem::replace(&mut has_pages, true) {
                        self.incoming.monitor.at(Boundary::DestinationPages)?;
                    }
                }
                Message::PassEnd(end) => self.end_pass(&end)?,
                Message::Stopped { at, counter } => return Ok(Moment { at, counter }),
                other => return Err(self.incoming.unexpected(&other)),
            }
        }
    }

    fn while_it_stands_still(&mut self, stopped: Moment) -> Result<Everything, MigrateError> {
        let mut sections = Sections::new();
        // Computed as soon as memory is complete, while the source is busy with its state and its own digest.
        let mut digests = None;
        let mut missing = None;
        let mut at = Instant::now();
        loop {
            let (message, payload_bytes) = self.incoming.next()?;
            match message {
                Message::Pages(batch) if digests.is_none() => {
                    self.pages.receive(&batch, payload_bytes, &mut self.incoming.reader)?;
                }
                Message::PassEnd(end) if digests.is_none() => {
                    self.end_pass(&end)?;
                    digests = Some(self.digests()?);
                }
                Message::Section(part) => {
                    sections.add(part)?;
                    at = Instant::now();
                }
                Message::Pending(pending) => {
                    self.note_missing(missing.get_or_insert_with(|| self.no_pages()), &pending);
                }
                Message::Digest(None) if missing.is_some() => {
                    let (sections, none) = (sections.finish()?, [0; SlotId::COUNT]);
                    let digest_time = Duration::ZERO;
                    return Ok(Everything { stopped, sections, source: none, ours: none, digest_time, at, missing });
                }
                Message::Digest(Some(source)) if missing.is_none() => {
                    let (ours, digest_time) = digests.map_or_else(|| self.digests(), Ok)?;
                    let sections = sections.finish()?;
                    return Ok(Everything { stopped, sections, source, ours, digest_time, at, missing });
                }
                other => return Err(self.incoming.unexpected(&other)),
            }
        }
    }

    fn no_pages(&self) -> [PageBitmap; SlotId::COUNT] {
        let vm = self.incoming.vm;
        SlotId::ALL.map(|slot| PageBitmap::covering(vm.memory().slot(slot).range().len_bytes(), vm.log_page_bytes()))
    }

    /// The order has judged that the slot has these pages.
    fn note_missing(&self, missing: &mut [PageBitmap; SlotId::COUNT], pending: &Pending) {
        let first = (pending.first / 64) as usize;
        missing[pending.slot.index()].fill_words(|words| {
            words.iter_mut().skip(first).zip(&pending.words).for_each(|(word, more)| *word |= more);
        });
    }

    /// All of a pass is here, or it is an error.
    fn end_pass(&mut self, end: &PassEnd) -> Result<(), MigrateError> {
        self.turnstile.wait_for_all(self.terms.page_channels.into())?;
        let received = self.arrived.take();
        for slot in SlotId::ALL {
            let (sent, received) = (end.slots[slot.index()], received[slot.index()]);
            compare(end.pass, slot, sent, received)?;
        }
        if end.pass == 0 {
            self.incoming.monitor.at(Boundary::DestinationPass0End)?;
        }
        self.incoming.monitor.show(|info| info.ram.get_or_insert_default().dirty_sync_count = u64::from(end.pass) + 1);
        self.incoming.send(&Message::PassAck { pass: end.pass, digests: received.map(|slot| slot.digest) })?;
        self.turnstile.next();
        Ok(())
    }

    fn digests(&self) -> Result<(SlotDigests, Duration), MigrateError> {
        let start = Instant::now();
        let memory = self.incoming.vm.memory();
        let digests = match (self.terms.digest, self.terms.is_shared()) {
            (DigestMode::Full, _) => memory_digest(memory, self.terms.salt)?,
            (DigestMode::Deferred, true) => file_digest(memory, self.terms.salt)?,
            (DigestMode::Deferred, false) => self.terms.leaves.digest(),
        };
        Ok((digests, start.elapsed()))
    }
}

pub(super) fn compare(pass: u32, slot: SlotId, sent: SlotPass, received: SlotPass) -> Result<(), MigrateError> {
    if sent.pages != received.pages {
        return Err(MigrateError::PassPages { pass, slot, sent: sent.pages, received: received.pages });
    }
    if sent.digest != received.digest {
        return Err(MigrateError::PassDigest { pass, slot, sent: sent.digest, received: received.digest });
    }
    Ok(())
}
