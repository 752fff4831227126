//! The guest is handed over while pages of it are still here ([`crate::migrate::postcopy`]).
//!
//! ```text
//! stopped ─ what is missing, the state ─► loaded ─ run ─► pages, those asked for first ─► all sent, digests equal ─► farewell
//!                                             │ connection lost                       │
//!                                             └─► ask: it has all its pages ──────────┴───────────────────► it runs there
//!                                                    └─ it has not: as after a commit, but lost if the guest was known to run
//! ```
//!
//! The source's memory does not change any more, so its digest, taken when all is sent, is that of the guest that stopped.

use std::time::Instant;

use super::Outgoing;
use super::commit::{Found, Ready};
use super::connect::Address;
use super::stop::{Stopped, sum};
use crate::memory::SlotId;
use crate::migrate::clock::HostTime;
use crate::migrate::digest::{SlotDigests, memory_digest};
use crate::migrate::error::MigrateError;
use crate::migrate::faults::Boundary;
use crate::migrate::info::{DigestReport, DowntimeSplit};
use crate::migrate::pages::Packed;
use crate::migrate::phase::{Phase, PostcopyActive, Stage};
use crate::migrate::postcopy::{PageQueue, Urgency};
use crate::migrate::wire::{MAX_PENDING_WORDS, Message, PassEnd, Pending, Resumed, SlotPass, Text};

/// Bytes sent in the background between two looks for requests.
const BACKGROUND_BYTES: u64 = 256 << 10;
/// Most that is heard of the destination between two times that something is sent to it: more requests than it has vCPUs are
/// none that anybody waits for.
const MOST_HEARD: usize = 64;

/// Says which pages are missing and sends the state, and waits until the destination has loaded it.
pub(super) fn move_the_state<'m>(
    out: &mut Outgoing<'_>,
    stopped: Stopped<'m>,
) -> Result<(Ready<'m>, PageQueue), MigrateError> {
    let Stopped { stage, moment, dirty, .. } = stopped;
    let patience = out.monitor.parameters().switchover_timeout();
    out.peer.limit_writes(Some(patience));
    out.peer.send(&Message::Stopped { at: moment.at, counter: moment.counter })?;
    for slot in SlotId::ALL {
        for (words, index) in dirty[slot.index()].words().chunks(MAX_PENDING_WORDS).zip(0_u64..) {
            let first = index * MAX_PENDING_WORDS as u64 * 64;
            out.peer.send(&Message::Pending(Pending { slot, first, words: words.to_vec() }))?;
        }
    }
    let pages_told = HostTime::now();
    out.monitor.at(Boundary::SourceFinalPass)?;
    let sections = out.hold.vm.save()?;
    let saved = HostTime::now();
    for part in sections.iter().flat_map(|section| section.parts()) {
        out.peer.send(&Message::Section(part))?;
    }
    out.monitor.at(Boundary::SourceState)?;
    out.peer.send(&Message::Digest(None))?;
    let sent = HostTime::now();
    let loaded = out.wait_for_loaded(patience)?;
    let ready = HostTime::now();
    if !out.unacknowledged.is_empty() {
        return Err(MigrateError::Silent { what: "acknowledged every pass", after: ready.since(sent) });
    }
    let ns = |from: HostTime, to: HostTime| to.ns().saturating_sub(from.ns());
    let load_ns = loaded.load_ns.min(ns(sent, ready));
    out.monitor.show(|info| {
        info.downtime_split = Some(DowntimeSplit {
            stopped_at: moment.at,
            final_pass_ns: ns(moment.at, pages_told),
            state_ns: ns(pages_told, saved),
            transfer_ns: ns(saved, ready) - load_ns,
            load_ns,
            ..DowntimeSplit::default()
        });
    });
    out.monitor.at(Boundary::SourceLoaded)?;
    Ok((Ready { stage, moment, ready, received: [0; SlotId::COUNT] }, PageQueue::new(dirty)))
}

/// Gives the guest away and sends what it still lacks.
pub(super) fn conclude(
    mut out: Outgoing<'_>,
    ready: Ready<'_>,
    queue: &PageQueue,
    address: &Address,
) -> Result<(), MigrateError> {
    let Ready { stage, moment, ready, .. } = ready;
    let stage = match stage.post_copy() {
        Ok(stage) => stage,
        Err(cancelled) => return Err(out.give_up(cancelled.into())),
    };
    // From here on the guest is not run here, unless the destination is known not to have run it.
    out.hold.give_away();
    let committed_at = HostTime::now();
    let mut serving = Serving { queue, resumed: None, loaded: None };
    let digests = match serving.run(&mut out) {
        Ok(digests) => Ok(digests),
        Err(error) => {
            serving.loaded = Some(out.find(&error, serving.resumed.is_some(), address, committed_at)?);
            memory_digest(out.hold.vm.memory(), out.salt).map_err(MigrateError::from)
        }
    };
    out.show_downtime(moment, ready, serving.resumed.as_ref());
    let verdict = digests.and_then(|ours| {
        let theirs = serving.loaded.unwrap_or_default();
        out.show_digest(ours, theirs);
        out.compare(ours, theirs)
    });
    let planted = out.monitor.at(Boundary::SourceResumed);
    out.hold.vm.moved();
    let verdict = planted.map_err(MigrateError::from).and(verdict);
    out.hold.end();
    let planted = out.monitor.at(Boundary::SourceFarewell);
    if planted.is_ok() {
        let fault = verdict.as_ref().err().map(Text::new);
        // A destination that does not hear it has the guest all the same.
        let _ = out.peer.farewell(&Message::Farewell { fault });
    }
    finish(stage, verdict)
}

fn finish(stage: Stage<'_, PostcopyActive>, verdict: Result<(), MigrateError>) -> Result<(), MigrateError> {
    match verdict {
        Ok(()) => {
            stage.complete();
            Ok(())
        }
        Err(error) => {
            stage.monitor().end(Phase::Completed, Some(error.to_string()));
            Err(error)
        }
    }
}

fn lost(why: String) -> MigrateError {
    MigrateError::PostcopyLost { why }
}

/// The pages that the guest lacks, and what the destination has said since it was given away.
struct Serving<'q> {
    queue: &'q PageQueue,
    resumed: Option<Resumed>,
    loaded: Option<SlotDigests>,
}

impl Serving<'_> {
    /// Until the destination has every page and its digests. Returns ours.
    fn run(&mut self, out: &mut Outgoing<'_>) -> Result<SlotDigests, MigrateError> {
        out.peer.send(&Message::PostcopyRun)?;
        out.monitor.at(Boundary::SourceCommitted)?;
        out.monitor.pass(out.pass.into());
        out.packers[0].enter_postcopy();
        let most = (BACKGROUND_BYTES / out.page_bytes).max(1);
        let mut sent = [SlotPass::default(); SlotId::COUNT];
        loop {
            for _ in 0..MOST_HEARD {
                let Some(message) = out.peer.poll()? else { break };
                self.take(out, message)?;
            }
            let Some((slot, pages, urgency)) = self.queue.next(most) else { break };
            self.send(out, slot, pages, urgency, &mut sent)?;
        }
        out.peer.send(&Message::PassEnd(PassEnd { pass: out.pass, slots: sent }))?;
        out.unacknowledged.push_back(sent.map(|slot| slot.digest));
        out.pass += 1;
        let digests = memory_digest(out.hold.vm.memory(), out.salt)?;
        out.peer.send(&Message::Digest(Some(digests)))?;
        out.monitor.at(Boundary::SourceDigest)?;
        let patience = out.monitor.parameters().switchover_timeout();
        let sent = Instant::now();
        while self.loaded.is_none() || self.resumed.is_none() || !out.unacknowledged.is_empty() {
            // Requests for pages that are on their way are none of these.
            let left = patience.saturating_sub(sent.elapsed());
            let message = out.peer.receive("said that it has every page", left);
            let message = message.map_err(|error| match error {
                MigrateError::Silent { what, .. } => MigrateError::Silent { what, after: patience },
                error => error,
            })?;
            self.take(out, message)?;
        }
        Ok(digests)
    }

    fn take(&mut self, out: &mut Outgoing<'_>, message: Message) -> Result<(), MigrateError> {
        match message {
            Message::PageRequest { slot, page } => {
                self.queue.request(slot, page)?;
                out.monitor.show(|info| info.ram.get_or_insert_default().postcopy_requests += 1);
            }
            Message::Resumed(resumed) => self.resumed = Some(resumed),
            Message::Loaded(loaded) => self.loaded = Some(loaded.digests.unwrap_or_default()),
            message => out.acknowledge(message)?,
        }
        Ok(())
    }

    fn send(
        &self,
        out: &mut Outgoing<'_>,
        slot: SlotId,
        mut pages: std::ops::Range<u64>,
        urgency: Urgency,
        sent: &mut [SlotPass; SlotId::COUNT],
    ) -> Result<(), MigrateError> {
        let packer = &mut out.packers[0];
        packer.begin(slot, out.pass);
        while !pages.is_empty() {
            packer.add(out.hold.vm.memory(), &out.leaves, &mut pages)?;
            let counts = packer.take_counts();
            let Some(Packed { message, payload }) = packer.take() else { continue };
            if let Message::Pages(batch) = &message {
                let slot = &mut sent[batch.slot.index()];
                slot.pages += batch.pages();
                slot.digest = slot.digest.wrapping_add(batch.digest);
            }
            if urgency == Urgency::Background {
                out.pacer.acquire(payload.len() as u64, out.cancel).map_err(MigrateError::lost)?;
            }
            out.peer.send_pages(&message, payload)?;
            let (page_bytes, bytes) = (out.page_bytes, payload.len() as u64);
            out.monitor.show(|info| {
                let ram = info.ram.get_or_insert_default();
                ram.normal += counts.normal;
                ram.normal_bytes += counts.normal * page_bytes;
                ram.duplicate += counts.zero;
                ram.transferred += bytes;
                ram.postcopy_bytes += bytes;
                ram.remaining = ram.remaining.saturating_sub((counts.normal + counts.zero) * page_bytes);
            });
        }
        Ok(())
    }
}

impl Outgoing<'_> {
    /// The digests of a guest that runs at the destination with all its pages, which is asked for them after `error`.
    fn find(
        &mut self,
        error: &MigrateError,
        is_known_to_run: bool,
        address: &Address,
        committed_at: HostTime,
    ) -> Result<SlotDigests, MigrateError> {
        Err(match (self.inquire(error, address), is_known_to_run) {
            (Found::Whole(digests), _) => return Ok(digests),
            // It has not said that the guest runs: what holds after a commit holds here, as memory here is still whole.
            (Found::Gone(why), false) => self.take_back(why),
            (Found::Unknown(why), false) => MigrateError::InDoubt { committed_at, why },
            (Found::Runs, _) => lost(error.to_string()),
            (Found::Gone(why) | Found::Unknown(why), true) | (Found::Torn(why), _) => lost(why),
        })
    }

    fn show_digest(&self, ours: SlotDigests, theirs: SlotDigests) {
        let report = DigestReport {
            mode: self.parameters.x_digest,
            passes: self.acknowledged,
            source: sum(ours),
            destination: sum(theirs),
            equal: ours == theirs,
            took: std::time::Duration::ZERO,
        };
        self.monitor.show(|info| info.digest = Some(report));
    }
}
