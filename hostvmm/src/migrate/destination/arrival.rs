//! The state is loaded and memory verified; then the guest runs here, once the source has given it away.
//!
//! ```text
//! open ── commit ─► committed ── run ─► running ── farewell, or none
//!  │                    │ it cannot run
//!  │ connection lost,   ▼
//!  └ or the source ─► discarded
//!    asks first
//! ```

use std::time::Instant;

use super::door::{Door, Fate};
use super::memory::Everything;
use super::{Farewell, Incoming, Terms};
use crate::memory::SlotId;
use crate::migrate::error::MigrateError;
use crate::migrate::faults::Boundary;
use crate::migrate::info::DigestReport;
use crate::migrate::parameters::DigestMode;
use crate::migrate::phase::{Device, Stage};
use crate::migrate::vm::Moment;
use crate::migrate::wire::{Loaded, Message, Resumed};

/// Loads the state, verifies memory, and tells the source. Returns when the guest stopped there.
pub(super) fn load(incoming: &mut Incoming<'_>, terms: &Terms, all: Everything) -> Result<Moment, MigrateError> {
    let Everything { stopped, sections, source, ours, digest_time, at, .. } = all;
    incoming.vm.load(&sections)?;
    incoming.monitor.at(Boundary::DestinationLoaded)?;
    let load_ns = ns(at);
    for slot in SlotId::ALL {
        let (source_has, destination_has) = (source[slot.index()], ours[slot.index()]);
        if source_has != destination_has {
            return Err(MigrateError::MemoryDigest { slot, source_has, destination_has, lost: None });
        }
    }
    let digest_ns = u64::try_from(digest_time.as_nanos()).unwrap_or(u64::MAX);
    let sum = |digests: [u64; SlotId::COUNT]| digests.into_iter().fold(0, u64::wrapping_add);
    incoming.monitor.show(|info| {
        info.digest = Some(DigestReport {
            mode: terms.digest,
            passes: info.ram.as_ref().map_or(0, |ram| ram.dirty_sync_count),
            source: sum(source),
            destination: sum(ours),
            equal: true,
            took: digest_time,
        });
    });
    incoming.monitor.at(Boundary::DestinationVerified)?;
    incoming.send(&Message::Loaded(Loaded { digests: Some(ours), load_ns, digest_ns }))?;
    Ok(stopped)
}

/// Waits for the commit, runs the guest, and waits for the source's last word.
pub(super) fn take_over(
    incoming: &mut Incoming<'_>,
    terms: &Terms,
    stopped: Moment,
    stage: Stage<'_, Device>,
    door: &Door,
) -> Result<Farewell, MigrateError> {
    let message = incoming.next()?.0;
    let Message::Commit = message else { return Err(incoming.unexpected(&message)) };
    let committed = Instant::now();
    if !door.commit() {
        // The source lost patience and has asked: it was told that the guest does not run here.
        return Err(MigrateError::TooLate);
    }
    let stage = stage.commit()?;
    incoming.monitor.at(Boundary::DestinationCommitted)?;
    if terms.is_shared() {
        // The source has the same memory, and may take the guest back only while that is as it was.
        incoming.vm.memory().note_run(true)?;
    }
    let resumed = incoming.vm.run(terms.counter, stopped, terms.clock)?;
    door.decide(Fate::Running);
    // Whatever fails from here on, it runs.
    let downtime = resumed.at.since(terms.clock.to_ours(stopped.at));
    incoming.monitor.show(|info| info.downtime = Some(u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX)));
    let is_told = incoming.monitor.at(Boundary::DestinationResumed).is_ok() && {
        let told = Message::Resumed(Resumed { at: resumed.at, counter: resumed.counter, resume_ns: ns(committed) });
        incoming.send(&told).is_ok()
    };
    stage.complete();
    if !is_told || incoming.monitor.at(Boundary::DestinationTold).is_err() {
        return Ok(Farewell::Missing);
    }
    match incoming.farewell() {
        Some(Message::Farewell { fault: None }) => Ok(Farewell::Said),
        Some(Message::Farewell { fault: Some(text) }) => {
            incoming.monitor.show(|info| {
                info.error_desc = Some(text.to_string());
                if let (Some(report), DigestMode::Deferred) = (&mut info.digest, terms.digest) {
                    report.equal = false;
                }
            });
            Err(MigrateError::Source { text })
        }
        _ => Ok(Farewell::Missing),
    }
}

fn ns(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
