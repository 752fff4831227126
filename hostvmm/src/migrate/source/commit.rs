//! The guest is given away: exactly one side runs it, whatever fails (docs/adr has the rule).
//!
//! ```text
//! ready ─ commit ─► resumed ─────────────────────────────────► farewell: it runs there
//!            │ connection lost, or nothing said in time
//!            └─► ask on a new connection ─ running ───────────► it runs there
//!                     │    │   ├ discarded, or nobody there ──► it runs on here
//!                     │    │   └ nobody there, but it ran there in memory that both sides have ─► it is lost
//!                     │    └ waiting ─► ask again
//!                     └ nobody answers, or cannot be asked ───► it stays paused here, for the operator to decide
//! ```

use std::time::Instant;

use super::Outgoing;
use super::connect::Address;
use super::stop::sum;
use crate::migrate::clock::HostTime;
use crate::migrate::digest::{SlotDigests, memory_digest};
use crate::migrate::error::MigrateError;
use crate::migrate::faults::Boundary;
use crate::migrate::parameters::DigestMode;
use crate::migrate::phase::{Device, Phase, Stage};
use crate::migrate::transport::CancelToken;
use crate::migrate::vm::Moment;
use crate::migrate::wire::{Features, GuestState, Message, Resumed, Text};

/// A destination that has everything and waits for the commit.
pub(super) struct Ready<'m> {
    pub(super) stage: Stage<'m, Device>,
    /// When the guest stopped.
    pub(super) moment: Moment,
    /// When the destination was known to be ready.
    pub(super) ready: HostTime,
    /// The digests of its memory.
    pub(super) received: SlotDigests,
}

/// What a destination that was asked says of a guest that was given away.
pub(super) enum Found {
    /// It runs there.
    Runs,
    /// It runs there with all the pages that post-copy owed it; the digests of its memory as it came.
    Whole(SlotDigests),
    /// It does not run there and will not, or nobody is there: how that is known.
    Gone(String),
    /// Nobody is there, but it ran there, in memory that both sides have.
    Torn(String),
    /// Nobody says: what was tried.
    Unknown(String),
}

/// Gives the guest away and sees that it arrives.
pub(super) fn conclude(mut out: Outgoing<'_>, ready: Ready<'_>, address: &Address) -> Result<(), MigrateError> {
    let Ready { stage, moment, ready, received } = ready;
    if out.features.has(Features::SHARED_MEMORY)
        && let Err(error) = out.hold.vm.memory().note_run(false)
    {
        return Err(out.give_up(error.into()));
    }
    let stage = match stage.commit() {
        Ok(stage) => stage,
        Err(cancelled) => return Err(out.give_up(cancelled.into())),
    };
    // From here on the guest is not run here, unless the destination is known not to run it.
    out.hold.give_away();
    let committed_at = HostTime::now();
    match out.commit() {
        Ok(resumed) => out.show_downtime(moment, ready, Some(&resumed)),
        Err(error) => {
            out.resolve(&error, address, committed_at)?;
            out.show_downtime(moment, ready, None);
        }
    }
    // It runs there, and whatever fails now changes nothing about that.
    let planted = out.monitor.at(Boundary::SourceResumed);
    out.hold.vm.moved();
    let verdict = planted.map_err(MigrateError::from).and_then(|()| out.compare_afterwards(received));
    out.hold.end();
    let planted = out.monitor.at(Boundary::SourceFarewell);
    let fault = verdict.as_ref().err().map(Text::new);
    if planted.is_ok() {
        // A destination that does not hear it has the guest all the same.
        let _ = out.peer.farewell(&Message::Farewell { fault });
    }
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

impl Outgoing<'_> {
    fn commit(&mut self) -> Result<Resumed, MigrateError> {
        self.peer.send(&Message::Commit)?;
        self.monitor.at(Boundary::SourceCommitted)?;
        match self.peer.receive("said that the guest runs", self.monitor.parameters().switchover_timeout())? {
            Message::Resumed(resumed) => Ok(resumed),
            other => Err(self.peer.unexpected(&other)),
        }
    }

    /// What has become of a guest that was given away, after `error`. It runs there if this is `Ok`.
    fn resolve(&mut self, error: &MigrateError, address: &Address, committed_at: HostTime) -> Result<(), MigrateError> {
        match self.inquire(error, address) {
            Found::Runs | Found::Whole(_) => Ok(()),
            Found::Gone(why) => Err(self.take_back(why)),
            Found::Torn(why) => Err(MigrateError::SharedLost { why }),
            Found::Unknown(why) => Err(MigrateError::InDoubt { committed_at, why }),
        }
    }

    /// Asks the destination, on new connections, what has become of a guest that was given away, after `error`.
    pub(super) fn inquire(&self, error: &MigrateError, address: &Address) -> Found {
        // A destination that says it failed has not run it and will not.
        if let MigrateError::Destination { text } = error {
            return Found::Gone(text.to_string());
        }
        // Whatever may still be on its way is not to be waited for.
        self.peer.hang_up();
        if !address.can_be_asked() {
            return Found::Unknown(format!("{error}; this kind of connection cannot be made again to ask"));
        }
        let cancel = match CancelToken::new() {
            Ok(cancel) => cancel,
            Err(source) => return Found::Unknown(source.to_string()),
        };
        let deadline = Instant::now() + self.monitor.parameters().switchover_timeout();
        let mut pause = std::time::Duration::from_millis(1);
        loop {
            let why = match address.ask(deadline, &cancel) {
                Ok(GuestState::Running) => return Found::Runs,
                Ok(GuestState::Whole { digests }) => return Found::Whole(digests),
                Ok(GuestState::Discarded) => return Found::Gone(format!("{error}; it has discarded the guest")),
                Ok(GuestState::Lost) => return Found::Gone(format!("{error}; it has stopped the guest")),
                Ok(GuestState::Waiting) => format!("{error}; it is still deciding"),
                Err(MigrateError::Transport(gone)) if gone.is_nobody() => {
                    let why = format!("{error}; {gone}");
                    return if self.may_be_torn() { Found::Torn(why) } else { Found::Gone(why) };
                }
                Err(unanswered) => format!("{error}; {unanswered}"),
            };
            if Instant::now() >= deadline {
                return Found::Unknown(why);
            }
            cancel.wait_until(Instant::now() + pause);
            pause = (pause * 2).min(std::time::Duration::from_millis(250));
        }
    }

    /// Whether the guest's memory may be newer than its state here: the destination has the same memory, and has let it run.
    fn may_be_torn(&self) -> bool {
        self.features.has(Features::SHARED_MEMORY) && self.hold.vm.memory().has_run().unwrap_or(true)
    }

    pub(super) fn take_back(&mut self, why: String) -> MigrateError {
        self.hold.take_back();
        MigrateError::TakenBack { why }
    }

    pub(super) fn show_downtime(&self, moment: Moment, ready: HostTime, resumed: Option<&Resumed>) {
        // What the destination's clock said, on ours.
        let resumed_at = resumed.map(|resumed| self.peer.clock.to_ours(resumed.at));
        let uncertainty_ns = self.peer.clock.uncertainty_ns;
        self.monitor.show(|info| {
            let (Some(split), Some(resumed_at)) = (&mut info.downtime_split, resumed_at) else { return };
            split.resumed_at = resumed_at;
            split.uncertainty_ns = uncertainty_ns;
            split.resume_ns = resumed_at.ns().saturating_sub(ready.ns());
            let total = resumed_at.since(moment.at);
            split.total_ns = u64::try_from(total.as_nanos()).unwrap_or(u64::MAX);
            info.downtime = Some(u64::try_from(total.as_millis()).unwrap_or(u64::MAX));
        });
    }

    /// In deferred mode: all of memory, which has not changed since the guest stopped, against what the destination had.
    fn compare_afterwards(&self, received: SlotDigests) -> Result<(), MigrateError> {
        if self.parameters.x_digest != DigestMode::Deferred || self.features.has(Features::SHARED_MEMORY) {
            return Ok(());
        }
        let start = Instant::now();
        let digests = memory_digest(self.hold.vm.memory(), self.salt)?;
        let verdict = self.compare(digests, received);
        self.monitor.show(|info| {
            if let Some(report) = &mut info.digest {
                report.source = sum(digests);
                report.equal = verdict.is_ok();
                report.took = start.elapsed();
            }
        });
        verdict
    }
}
