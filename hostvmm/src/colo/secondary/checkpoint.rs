//! One checkpoint from the secondary's side: what comes, whether it is what was sent, flush and load, and their proof.

use std::time::Instant;

use super::{Secondary, learn};
use crate::colo::error::ColoError;
use crate::colo::faults::{ColoBoundary, Omission};
use crate::colo::info::{ColoPhase, SlotDigests};
use crate::colo::output::Record;
use crate::colo::pages::{self, DirtyPages};
use crate::colo::protocol::{SecondaryEvent, SecondaryState};
use crate::memory::SlotId;
use crate::migrate::digest::memory_digest;
use crate::migrate::wire::{ColoMessage, Message, Section, Sections, Text, VmstateLoaded, VmstateSize};
use crate::migrate::{DigestMode, Moment};

/// Most bytes of held output in a checkpoint: those that the primary may hold, and that wait for the outlet.
const MAX_HELD_BYTES: usize = 128 << 20;

/// A checkpoint as it comes.
#[derive(Debug)]
pub(super) struct Incoming {
    n: u64,
    stopped: Moment,
    /// The primary's pages.
    primary: DirtyPages,
    held: Vec<Record>,
    held_bytes: usize,
    sections: Sections,
    /// The cache's digests, once all pages are in it, and how long that took.
    cache: Option<(SlotDigests, u64)>,
    size: Option<VmstateSize>,
    /// The state, once it is whole.
    state: Vec<Section>,
    loaded: Option<VmstateLoaded>,
}

fn ns(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Secondary<'_> {
    /// The primary's messages.
    pub(super) fn take(&mut self, message: Message) -> Result<(), ColoError> {
        let is_over = matches!(
            self.machine.state(),
            SecondaryState::Claiming | SecondaryState::Alone | SecondaryState::Fenced | SecondaryState::Discarded
        );
        if is_over {
            // It was said before the channel was given up.
            return Ok(());
        }
        match message {
            Message::PassEnd(end) if end.pass == 0 => self.line.send(ColoMessage::CheckpointReady)?,
            Message::PassEnd(_) => self.digest_cache()?,
            Message::Section(part) => {
                if let Some(incoming) = &mut self.incoming {
                    incoming.sections.add(part)?;
                }
            }
            Message::Abort { text } => {
                self.error.get_or_insert(ColoError::Peer { text });
                self.feed(SecondaryEvent::Dismissed);
            }
            Message::Colo(message) => self.take_colo(message)?,
            _ => return Err(ColoError::Unexpected { tag: "of a migration" }),
        }
        Ok(())
    }

    fn take_colo(&mut self, message: ColoMessage) -> Result<(), ColoError> {
        match message {
            ColoMessage::CheckpointRequest { n } => {
                self.monitor.at(ColoBoundary::SecondaryRequested, n)?;
                self.monitor.enter(ColoPhase::Checkpoint);
                self.feed(SecondaryEvent::Request(n));
            }
            ColoMessage::VmstateSend { n, stopped } => {
                if self.machine.state() == SecondaryState::Stopped && self.machine.checkpoint() == n {
                    self.incoming = Some(Incoming {
                        n,
                        stopped,
                        primary: pages::clean(self.vm.memory(), self.vm.log_page_bytes()),
                        held: Vec::new(),
                        held_bytes: 0,
                        sections: Sections::new(),
                        cache: None,
                        size: None,
                        state: Vec::new(),
                        loaded: None,
                    });
                }
            }
            ColoMessage::Dirty { slot, first, words } => {
                if let Some(incoming) = &mut self.incoming {
                    pages::take(&mut incoming.primary, slot, first, &words)?;
                }
            }
            ColoMessage::Held(records) => {
                if let Some(incoming) = &mut self.incoming {
                    incoming.held_bytes += records.iter().map(Record::encoded_bytes).sum::<usize>();
                    if incoming.held_bytes > MAX_HELD_BYTES {
                        return Err(ColoError::Unexpected { tag: "with more held output than may be" });
                    }
                    incoming.held.extend(records);
                }
            }
            ColoMessage::VmstateSize(size) => {
                if let Some(incoming) = &mut self.incoming {
                    incoming.size = Some(size);
                }
                self.monitor.at(ColoBoundary::SecondaryArrived, size.n)?;
                self.feed(SecondaryEvent::Size(size.n));
            }
            ColoMessage::CheckpointAbort { n, text } => {
                self.incoming = None;
                self.monitor.show(|info| {
                    info.abandoned += 1;
                    info.error = Some(text.to_string());
                });
                self.feed(SecondaryEvent::Abort(n));
            }
            ColoMessage::CheckpointCommit { n } => {
                self.monitor.at(ColoBoundary::SecondaryCommitted, n)?;
                self.monitor.show(|info| info.checkpoint = n);
                self.feed(SecondaryEvent::Commit(n));
            }
            other => return Err(ColoError::Unexpected { tag: other.tag().name() }),
        }
        Ok(())
    }

    /// Tells the primary that the guest stands still, after all that it emitted.
    pub(super) fn reply(&mut self, n: u64) -> Result<(), ColoError> {
        self.monitor.at(ColoBoundary::SecondaryStopped, n)?;
        self.tell_output()?;
        let (positions, dirty) = (self.vm.output().positions(), pages::count(&self.dirty));
        self.line.send(ColoMessage::CheckpointReply { n, positions, dirty })?;
        self.monitor.at(ColoBoundary::SecondaryReplied, n)
    }

    /// The last pages of a checkpoint are here: while the primary saves its state, the cache is digested.
    fn digest_cache(&mut self) -> Result<(), ColoError> {
        if let Some(incoming) = &mut self.incoming
            && incoming.cache.is_none()
        {
            let begun = Instant::now();
            let digests = self.cache.digest(self.offer.digest)?;
            incoming.cache = Some((digests, ns(begun)));
        }
        Ok(())
    }

    /// Whether everything is what was sent.
    pub(super) fn verify(&mut self, n: u64) -> SecondaryEvent {
        let checked = self.check(n).and_then(|()| self.monitor.at(ColoBoundary::SecondaryVerified, n));
        match checked {
            Ok(()) => SecondaryEvent::Verified,
            Err(error @ (ColoError::Cache { .. } | ColoError::Sent { .. })) => self.inexact(n, error),
            // The channel's end is heard of soon enough; here it is the checkpoint that cannot be used.
            Err(error) => {
                self.error.get_or_insert(error);
                SecondaryEvent::Failed
            }
        }
    }

    fn check(&mut self, n: u64) -> Result<(), ColoError> {
        self.digest_cache()?;
        let nothing = ColoError::Unexpected { tag: "vmstate-size without a vmstate-send" };
        let Some(incoming) = &mut self.incoming else { return Err(nothing) };
        let (Some(size), Some((cache, _)), true) = (incoming.size, incoming.cache, incoming.n == n) else {
            return Err(nothing);
        };
        incoming.state = std::mem::take(&mut incoming.sections).finish()?;
        let bytes: u64 = incoming.state.iter().map(|section| section.bytes.len() as u64).sum();
        if bytes != size.bytes {
            return Err(ColoError::Unexpected { tag: "vmstate-size of another size than the state" });
        }
        if let Some(slot) = SlotId::ALL.into_iter().find(|slot| cache[slot.index()] != size.digests[slot.index()]) {
            let (primary, cache) = (size.digests[slot.index()], cache[slot.index()]);
            return Err(ColoError::Cache { n, slot, primary, cache, page: None });
        }
        // A page that came and is not in the primary's set would be in the cache and never be flushed.
        let beyond = pages::count(&pages::without(&self.cache.arrived_pages(), &incoming.primary));
        let primary = pages::count(&incoming.primary);
        if beyond > 0 || primary != size.dirty {
            return Err(ColoError::Sent { n, primary: size.dirty, secondary: primary + beyond });
        }
        Ok(())
    }

    /// Memories that should be equal are not: the primary is told, and this guest is nobody's.
    fn inexact(&mut self, n: u64, error: ColoError) -> SecondaryEvent {
        self.monitor.show(|info| info.exact = false);
        // If it cannot be told it will find out by the silence.
        let _ = self.line.send(ColoMessage::Inexact { n, text: Text::new(&error) });
        self.error = Some(error);
        SecondaryEvent::Broken
    }

    pub(super) fn tell_received(&mut self, n: u64) -> Result<(), ColoError> {
        let (cache, digest_ns) = self.incoming.as_ref().and_then(|incoming| incoming.cache).unwrap_or_default();
        self.line.send(ColoMessage::VmstateReceived { n, cache, digest_ns })?;
        self.monitor.at(ColoBoundary::SecondaryReceived, n)
    }

    /// Flushes and loads, and proves it.
    pub(super) fn place(&mut self, n: u64) -> SecondaryEvent {
        let Some(mut incoming) = self.incoming.take() else { return SecondaryEvent::Broken };
        match self.put_in_place(&mut incoming) {
            Ok(loaded) => {
                incoming.loaded = Some(loaded);
                self.incoming = Some(incoming);
                SecondaryEvent::Placed
            }
            Err(error) => self.inexact(n, error),
        }
    }

    fn put_in_place(&mut self, incoming: &mut Incoming) -> Result<VmstateLoaded, ColoError> {
        let n = incoming.n;
        let (ram, primary) = (self.vm.memory(), &incoming.primary);
        self.forget_one(n, primary);
        let dirty = pages::union(primary, &self.dirty);

        let begun = Instant::now();
        let flushed = self.cache.flush(ram, &self.planted_flush(n, &dirty))?;
        let flush_ns = ns(begun);
        self.monitor.at(ColoBoundary::SecondaryFlushed, n)?;

        let begun = Instant::now();
        self.vm.load(&incoming.state, incoming.stopped, self.offer.clock.reversed())?;
        let positions = incoming.size.map(|size| size.positions).unwrap_or_default();
        self.vm.output().set_positions(positions);
        // What the primary did not hold any more was seen.
        let mut seen = positions;
        incoming.held.iter().rev().for_each(|record| seen.set(record.stream, record.sequence));
        learn(&self.accepted, &seen);
        self.backlog.replace(std::mem::take(&mut incoming.held), &positions)?;
        let load_ns = ns(begun);

        let begun = Instant::now();
        let cache = incoming.cache.map(|(digests, _)| digests).unwrap_or_default();
        let digests = match self.offer.digest {
            DigestMode::Full => Some(memory_digest(ram, self.offer.salt)?),
            DigestMode::Deferred => None,
        };
        if let Some(found) = digests
            && let Some(slot) = SlotId::ALL.into_iter().find(|slot| found[slot.index()] != cache[slot.index()])
        {
            let page = self.cache.first_difference(ram, slot)?;
            let (cache, secondary) = (cache[slot.index()], found[slot.index()]);
            return Err(ColoError::Flush { n, slot, cache, secondary, page });
        }
        let counts = pages::counts(primary, &self.dirty, &flushed);
        let needless = pages::first(&pages::without(&flushed, &dirty), ram).map(|(_, _, page)| page);
        if needless.is_some() || counts.flushed != counts.union() {
            return Err(ColoError::Pages { n, counts, page: needless });
        }
        let check_ns = ns(begun);

        // From here on what is written, is written by the guest.
        if self.is_logging {
            let mut ours = pages::clean(ram, self.vm.log_page_bytes());
            pages::harvest(self.vm, &mut ours)?;
        } else if self.offer.compare {
            self.vm.start_log()?;
            self.is_logging = true;
        }
        self.dirty.iter_mut().for_each(crate::dirty::PageBitmap::clear_all);
        self.cache.forget_arrived();
        self.monitor.at(ColoBoundary::SecondaryLoaded, n)?;
        Ok(VmstateLoaded {
            n,
            primary_dirty: counts.primary_dirty,
            secondary_dirty: counts.secondary_dirty,
            both_dirty: counts.both_dirty,
            flushed: counts.flushed,
            ram: digests,
            flush_ns,
            load_ns,
            check_ns,
        })
    }

    pub(super) fn tell_loaded(&mut self, n: u64) -> Result<(), ColoError> {
        if let Some(loaded) = self.incoming.take().and_then(|incoming| incoming.loaded) {
            self.line.send(ColoMessage::VmstateLoaded(loaded))?;
        }
        self.monitor.at(ColoBoundary::SecondaryTold, n)
    }

    /// Planted: a page of this side's is forgotten, that the primary does not have either.
    fn forget_one(&mut self, n: u64, primary: &DirtyPages) {
        let is_planted = [Omission::Secondary, Omission::Both].into_iter().any(|it| self.monitor.is_to_plant(it, n));
        let alone = pages::without(&self.dirty, primary);
        if is_planted && let Some((slot, page, _)) = pages::first(&alone, self.vm.memory()) {
            self.dirty[slot.index()].clear(page);
            self.monitor.planted();
        }
    }

    /// Planted: what is flushed instead of `pages`.
    fn planted_flush(&self, n: u64, pages: &DirtyPages) -> DirtyPages {
        let mut planted = pages.clone();
        let ram = self.vm.memory();
        if self.monitor.is_to_plant(Omission::Extra, n) {
            let mut others = pages::clean(ram, pages[0].page_bytes());
            others.iter_mut().for_each(crate::dirty::PageBitmap::set_all);
            if let Some((slot, page, _)) = pages::first(&pages::without(&others, pages), ram) {
                planted[slot.index()].set(page);
                self.monitor.planted();
            }
        }
        if self.monitor.is_to_plant(Omission::Flush, n)
            && let Some((slot, page, _)) = pages::first(pages, ram)
        {
            planted[slot.index()].clear(page);
            self.monitor.planted();
        }
        planted
    }
}
