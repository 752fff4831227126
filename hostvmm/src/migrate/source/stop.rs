//! The guest stands still: the last pages, the state, the digests, until the destination has everything.
//!
//! The downtime limit holds: whether it will be kept is asked once more after the last harvest, and a guest that has written
//! too much in the meantime runs on.

use std::time::{Duration, Instant};

use super::Outgoing;
use super::commit::Ready;
use super::hold::Pages;
use crate::dirty::PageBitmap;
use crate::memory::SlotId;
use crate::migrate::clock::HostTime;
use crate::migrate::digest::{SlotDigests, file_digest, memory_digest_unless};
use crate::migrate::error::MigrateError;
use crate::migrate::faults::Boundary;
use crate::migrate::info::{DigestReport, DowntimeSplit};
use crate::migrate::lost::LostPages;
use crate::migrate::parameters::DigestMode;
use crate::migrate::phase::{Active, Cancelled, Device, Stage};
use crate::migrate::vm::Moment;
use crate::migrate::wire::{Features, Loaded, Message};

/// A guest that stands still.
pub(super) struct Stopped<'m> {
    pub(super) stage: Stage<'m, Device>,
    /// When its last vCPU left the guest.
    pub(super) moment: Moment,
    /// What is left to be sent.
    pub(super) dirty: Pages,
    /// It is to fetch that from the destination.
    pub(super) wants_postcopy: bool,
}

/// What came of stopping the guest.
pub(super) enum Attempt<'m> {
    /// It stands still.
    Stopped(Stage<'m, Device>, Moment),
    /// It had written too much, and runs on.
    TooMuch(Stage<'m, Active>),
}

/// Stops the guest, adds what it wrote last to `dirty`, and lets it run on if that is too much for `limit`.
pub(super) fn attempt<'m>(
    out: &mut Outgoing<'_>,
    stage: Stage<'m, Active>,
    dirty: &mut Pages,
    limit: Option<Duration>,
) -> Result<Attempt<'m>, MigrateError> {
    let stage = stage.stop()?;
    let moment = out.hold.pause()?;
    for (all, last) in dirty.iter_mut().zip(out.hold.harvest()?) {
        all.or(&last);
    }
    out.monitor.at(Boundary::SourceStopped)?;
    if limit.is_some_and(|limit| !out.is_within(limit, dirty)) {
        out.hold.resume();
        return Ok(Attempt::TooMuch(stage.resume()?));
    }
    Ok(Attempt::Stopped(stage, moment))
}

/// Stops a guest whose memory the destination has already.
pub(super) fn without_pages<'m>(out: &mut Outgoing<'_>, stage: Stage<'m, Active>) -> Result<Stopped<'m>, MigrateError> {
    let stage = stage.stop()?;
    let moment = out.hold.pause()?;
    out.monitor.at(Boundary::SourceStopped)?;
    let dirty = SlotId::ALL.map(|_| PageBitmap::new(0, out.page_bytes));
    Ok(Stopped { stage, moment, dirty, wants_postcopy: false })
}

/// Sends everything that is left, and waits until the destination has loaded and verified it.
pub(super) fn move_the_rest<'m>(out: &mut Outgoing<'_>, stopped: Stopped<'m>) -> Result<Ready<'m>, MigrateError> {
    let Stopped { stage, moment, dirty, .. } = stopped;
    // A destination that takes nothing must not keep a stopped guest waiting.
    let patience = out.monitor.parameters().switchover_timeout();
    out.peer.limit_writes(Some(patience));
    out.peer.send(&Message::Stopped { at: moment.at, counter: moment.counter })?;
    let has_pages = !out.features.has(Features::SHARED_MEMORY);
    if has_pages {
        out.send_pass(&dirty, 0, true)?;
    }
    let pages_sent = HostTime::now();
    out.monitor.at(Boundary::SourceFinalPass)?;
    let sections = out.hold.vm.save()?;
    let saved = HostTime::now();
    for part in sections.iter().flat_map(|section| section.parts()) {
        out.peer.send(&Message::Section(part))?;
    }
    out.monitor.at(Boundary::SourceState)?;
    let digesting = Instant::now();
    let digests = out.digests()?;
    let digest_time = digesting.elapsed();
    out.peer.send(&Message::Digest(Some(digests)))?;
    out.monitor.at(Boundary::SourceDigest)?;
    let digested = HostTime::now();
    let loaded = out.wait_for_loaded(patience).map_err(|error| out.or_lost(digests, error))?;
    let ready = HostTime::now();
    let received = loaded.digests.unwrap_or_default();
    out.compare(digests, received)?;
    if !out.unacknowledged.is_empty() {
        return Err(MigrateError::Silent { what: "acknowledged every pass", after: ready.since(digested) });
    }
    let split = split(&moment, [pages_sent, saved, digested, ready], &loaded, out.parameters.x_digest);
    let report = DigestReport {
        mode: out.parameters.x_digest,
        passes: out.acknowledged,
        source: sum(digests),
        destination: sum(received),
        equal: true,
        took: digest_time.max(Duration::from_nanos(loaded.digest_ns)),
    };
    out.monitor.show(|info| {
        info.downtime_split = Some(split);
        info.digest = Some(report);
    });
    out.monitor.at(Boundary::SourceLoaded)?;
    Ok(Ready { stage, moment, ready, received })
}

impl Outgoing<'_> {
    /// What memory is to be at the destination.
    fn digests(&self) -> Result<SlotDigests, MigrateError> {
        let memory = self.hold.vm.memory();
        match (self.parameters.x_digest, self.features.has(Features::SHARED_MEMORY)) {
            (DigestMode::Full, _) => {
                let digests = memory_digest_unless(memory, self.salt, &|| self.cancel.is_cancelled())?;
                Ok(digests.ok_or(Cancelled)?)
            }
            (DigestMode::Deferred, true) => file_digest(memory, self.salt),
            (DigestMode::Deferred, false) => Ok(self.leaves.digest()),
        }
    }

    /// The destination's message that it has everything; those before it tell of passes.
    pub(super) fn wait_for_loaded(&mut self, patience: Duration) -> Result<Loaded, MigrateError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.peer.receive("loaded the guest", left) {
                Ok(Message::Loaded(loaded)) => return Ok(loaded),
                Ok(message) => self.acknowledge(message)?,
                Err(MigrateError::Silent { what, .. }) => return Err(MigrateError::Silent { what, after: patience }),
                Err(error) => return Err(error),
            }
        }
    }

    /// The pages of `slot` that were written and not sent. The guest stands still.
    fn lost(&self, slot: SlotId) -> Result<Option<LostPages>, MigrateError> {
        let vm = self.hold.vm;
        let others = self.leaves.others(vm.memory(), slot)?;
        if others.is_empty() {
            return Ok(None);
        }
        Ok(LostPages::of(others, vm.memory().backing().block_bytes(), vm.log_name(), vm.log_flaw()))
    }

    /// The destination has refused for `error`, where memory has `digests`: that pages were never sent, if so.
    fn or_lost(&self, digests: SlotDigests, error: MigrateError) -> MigrateError {
        let sends_all = self.parameters.x_digest == DigestMode::Full && !self.features.has(Features::SHARED_MEMORY);
        match self.compare(digests, self.leaves.digest()) {
            Err(lost @ MigrateError::MemoryDigest { .. }) if sends_all => lost,
            _ => error,
        }
    }

    /// The destination's digests must be ours.
    pub(super) fn compare(&self, ours: SlotDigests, theirs: SlotDigests) -> Result<(), MigrateError> {
        for slot in SlotId::ALL {
            let (source_has, destination_has) = (ours[slot.index()], theirs[slot.index()]);
            if source_has != destination_has {
                let is_shared = self.features.has(Features::SHARED_MEMORY);
                let lost = if is_shared { None } else { self.lost(slot)?.map(Box::new) };
                return Err(MigrateError::MemoryDigest { slot, source_has, destination_has, lost });
            }
        }
        Ok(())
    }
}

/// One number for both slots.
pub(super) fn sum(digests: SlotDigests) -> u64 {
    digests.into_iter().fold(0, u64::wrapping_add)
}

/// What is known of the downtime before the commit.
fn split(
    moment: &Moment,
    [pages_sent, saved, digested, ready]: [HostTime; 4],
    loaded: &Loaded,
    mode: DigestMode,
) -> DowntimeSplit {
    let ns = |from: HostTime, to: HostTime| to.ns().saturating_sub(from.ns());
    let waited_ns = ns(digested, ready);
    let load_ns = loaded.load_ns.min(waited_ns);
    // The destination digests its memory while the source saves and digests: only what is left then is waited for.
    let meanwhile_ns = ns(pages_sent, digested);
    let verify_ns = match mode {
        DigestMode::Full => loaded.digest_ns.saturating_sub(meanwhile_ns).min(waited_ns - load_ns),
        DigestMode::Deferred => 0,
    };
    DowntimeSplit {
        stopped_at: moment.at,
        final_pass_ns: ns(moment.at, pages_sent),
        state_ns: ns(pages_sent, saved),
        digest_ns: ns(saved, digested),
        transfer_ns: waited_ns - load_ns - verify_ns,
        verify_ns,
        load_ns,
        ..DowntimeSplit::default()
    }
}
