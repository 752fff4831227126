//! The primary's engine: [`protect`] gives a running VM a secondary, and drives the pair until it ends.
//!
//! One thread does it all and waits for nothing but its queue: it compares outputs and releases them, sends pages into the
//! cache piece by piece between other work, makes checkpoints, and claims the outlet. What it decides, [`PrimaryMachine`]
//! decides. A thread reads the channel, one beats; the guest's tap tells of output.

mod checkpoint;
mod meeting;
mod sending;
mod speaking;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use self::checkpoint::Current;
pub(super) use self::checkpoint::in_parts;
use self::meeting::{Met, Unmet, meet};
use super::compare::Compare;
use super::error::ColoError;
use super::faults::ColoBoundary;
use super::info::{Cause, ColoPhase, Divergence, ExitReason, Held};
use super::link::{Event, Farewell, Line, Peer, events, is_cancelled, listen, waker};
use super::monitor::{ColoMonitor, Ending};
use super::outlet::OutletError;
use super::output::Positions;
use super::pages::{self, DirtyPages};
use super::protocol::{PrimaryAction, PrimaryEvent, PrimaryMachine, PrimaryState};
use super::vm::ColoVm;
use super::voice::Voice;
use super::{Outcome, Side};
use crate::memory::SlotId;
use crate::migrate::digest::Leaves;
use crate::migrate::frames::FrameReader;
use crate::migrate::pages::Packer;
use crate::migrate::source::pieces::Pieces;
use crate::migrate::transport::CancelToken;
use crate::migrate::wire::{ColoMessage, ColoOffer, Message, SlotPass, Text};
use crate::migrate::{MigrateError, Moment};

/// How long a secondary that beats may take for an answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Checkpoints abandoned one after another before the secondary is given up.
const RETRIES: u32 = 8;
/// Least time between two claims of an outlet that cannot be reached.
const CLAIM_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait for something to happen.
const IDLE: Duration = Duration::from_secs(1);

/// Makes the running `vm` the primary of the secondary at `peer`, until the pair ends. What its guest emits goes to `voice`.
///
/// Whatever goes wrong, the outcome says whether this VM goes on.
pub fn protect(vm: &dyn ColoVm, peer: &Peer, voice: &mut Voice, monitor: &ColoMonitor) -> Outcome {
    let (sender, queue) = events();
    let cancel = match CancelToken::new() {
        Ok(cancel) => cancel,
        Err(source) => {
            let error = MigrateError::Host { what: "connect to a secondary", source };
            return unpaired(vm, monitor, (voice.epoch(), error.into()));
        }
    };
    let is_met = Arc::new(AtomicBool::new(false));
    monitor.begin(Side::Primary, voice.epoch(), waker(sender.clone(), cancel.clone(), Arc::clone(&is_met)));
    vm.output().start();
    let met = meet(vm, peer, voice, monitor, &cancel);
    is_met.store(true, Ordering::Release);
    let mut primary = match met.and_then(|met| Primary::new(vm, voice, monitor, met)) {
        Ok(primary) => primary,
        Err(unmet) => return unpaired(vm, monitor, unmet),
    };
    let reader = primary.reader.take();
    let looks = sender.clone();
    // A full queue is looked at soon enough.
    let _watch = vm.output().watch(move || drop(looks.try_send(Event::Look)));
    thread::scope(|scope| {
        let _farewell = Farewell(primary.line.handle());
        if let Some(reader) = reader {
            scope.spawn(move || listen(reader, &sender, |message, bytes, _| take(message, bytes)));
        }
        let outcome = primary.run(&queue);
        primary.line.hang_up();
        // Whoever waits for room in the queue finds it.
        while queue.try_recv().is_ok() {}
        drop(queue);
        outcome
    })
}

/// There is no secondary: the guest runs on alone, unless the outlet is another's.
fn unpaired(vm: &dyn ColoVm, monitor: &ColoMonitor, (epoch, error): Unmet) -> Outcome {
    let (ending, phase) = if matches!(error, ColoError::Outlet(OutletError::Fenced { .. })) {
        // This guest must not be heard any more.
        let _ = vm.pause();
        vm.fenced();
        (Ending::Fenced, ColoPhase::Fenced)
    } else {
        (Ending::Alone { epoch }, ColoPhase::Alone)
    };
    let is_wished = matches!(&error, ColoError::Channel(error) if is_cancelled(error));
    monitor.show(|info| info.error = Some(error.to_string()));
    monitor.end(phase, if is_wished { ExitReason::Request } else { ExitReason::Error });
    Outcome { ending, error: Some(error) }
}

/// What a secondary may say; its heartbeat is nothing to be told of.
fn take(message: Message, payload_bytes: u32) -> Result<Option<Message>, ColoError> {
    match message {
        Message::Colo(ColoMessage::SecondaryAlive) => Ok(None),
        message if payload_bytes == 0 => Ok(Some(message)),
        _ => Err(ColoError::Unexpected { tag: "with a payload" }),
    }
}

/// A pair, as its primary drives it.
struct Primary<'a> {
    vm: &'a dyn ColoVm,
    voice: &'a mut Voice,
    monitor: &'a ColoMonitor,
    line: Line,
    reader: Option<FrameReader>,
    offer: ColoOffer,
    accepted: Arc<Mutex<Positions>>,
    machine: PrimaryMachine,
    compare: Compare,
    leaves: Leaves,
    packer: Packer,
    /// Written since the last committed checkpoint.
    dirty: DirtyPages,
    /// Of those, the ones whose last content was not sent.
    unsent: DirtyPages,
    /// What of them is being sent in the background.
    pieces: Option<Pieces>,
    /// The pass that is being sent, and what was sent of it.
    pass: u32,
    sent: [SlotPass; SlotId::COUNT],
    background_pages: u64,
    /// How long the last pass of them took, or takes.
    background_took: Duration,
    /// Bytes sent when the last checkpoint was committed.
    sent_bytes: u64,
    committed_at: Instant,
    harvested_at: Instant,
    want: Option<Cause>,
    current: Current,
    is_paused: bool,
    abandoned: u32,
    /// The secondary owes an answer since then.
    asked_at: Option<Instant>,
    claim_at: Option<Instant>,
    /// An operator says that the secondary is lost.
    is_said: bool,
    reason: ExitReason,
    error: Option<ColoError>,
    ending: Option<Ending>,
}

impl<'a> Primary<'a> {
    fn new(vm: &'a dyn ColoVm, voice: &'a mut Voice, monitor: &'a ColoMonitor, met: Met) -> Result<Self, Unmet> {
        let Met { reader, line, offer, accepted } = met;
        let epoch = voice.epoch();
        let unmet = |error: ColoError| (epoch, error);
        let memory = vm.memory();
        let page_bytes = vm.log_page_bytes();
        let packer = Packer::new(offer.description.geometry(), None, None)
            .map_err(|error| unmet(MigrateError::from(error).into()))?;
        vm.start_log().map_err(|error| unmet(error.into()))?;
        let all = match pages::data(memory, page_bytes) {
            Ok(all) => all,
            Err(error) => {
                let _ = vm.stop_log();
                return Err(unmet(error.into()));
            }
        };
        monitor.enter(ColoPhase::Syncing);
        // What the guest has emitted and nobody has taken yet is held as well.
        let mut at = vm.output().positions();
        let untaken = vm.output().take();
        for record in untaken.iter().rev() {
            at.set(record.stream, record.sequence);
        }
        let mut compare = Compare::new(&at);
        for record in untaken {
            compare.push_own(record).map_err(|error| unmet(error.into()))?;
        }
        let now = Instant::now();
        Ok(Self {
            leaves: Leaves::new(memory, offer.salt),
            unsent: all.clone(),
            pieces: Some(Pieces::new(&all)),
            dirty: all,
            vm,
            voice,
            monitor,
            line,
            reader: Some(reader),
            offer,
            accepted,
            machine: PrimaryMachine::new(epoch),
            compare,
            packer,
            pass: 0,
            sent: Default::default(),
            background_pages: 0,
            background_took: Duration::ZERO,
            sent_bytes: 0,
            committed_at: now,
            harvested_at: now,
            want: None,
            current: Current::default(),
            is_paused: false,
            abandoned: 0,
            asked_at: None,
            claim_at: None,
            is_said: false,
            reason: ExitReason::Error,
            error: None,
            ending: None,
        })
    }

    fn run(&mut self, queue: &Receiver<Event>) -> Outcome {
        while self.ending.is_none() {
            match queue.recv_timeout(self.patience()) {
                Ok(event) => self.hear(event),
                // This side holds a sender of its own, so nobody disconnects.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            while self.ending.is_none()
                && let Ok(event) = queue.try_recv()
            {
                self.hear(event);
            }
            self.obey();
            self.speak();
            self.tick();
        }
        // A log that cannot be stopped costs time and nothing else.
        let _ = self.vm.stop_log();
        let ending = self.ending.unwrap_or(Ending::Stopped);
        let phase = match ending {
            Ending::Alone { .. } => ColoPhase::Alone,
            Ending::Fenced => ColoPhase::Fenced,
            Ending::Discarded | Ending::Stopped => ColoPhase::Claiming,
        };
        let error = self.error.take();
        self.monitor.show(|info| {
            info.error = error.as_ref().map(ToString::to_string).or(info.error.take());
            info.held = Held::default();
        });
        self.monitor.end(phase, self.reason);
        Outcome { ending, error }
    }

    /// How long nothing needs to be done.
    fn patience(&self) -> Duration {
        let parameters = self.monitor.parameters();
        if self.machine.state() == PrimaryState::Claiming {
            return self.claim_at.map_or(IDLE, |at| at.saturating_duration_since(Instant::now())).min(IDLE);
        }
        if self.pieces.is_some() || (self.want.is_some() && self.machine.state() == PrimaryState::Running) {
            return Duration::ZERO;
        }
        let mut left = IDLE;
        if self.machine.state() == PrimaryState::Running {
            left = left.min(parameters.interval().saturating_sub(self.committed_at.elapsed()));
            left = left.min(self.background_in(&parameters).unwrap_or(IDLE));
        }
        if !self.voice.is_silent() {
            left = left.min(CLAIM_AGAIN);
        }
        left
    }

    fn hear(&mut self, event: Event) {
        let heard = match event {
            Event::Look => Ok(()),
            Event::Ended(error) => Err(error),
            Event::Message(message) => match *message {
                Message::Colo(message) => self.take(message),
                Message::Failure { text } => Err(ColoError::Peer { text }),
                _ => Err(ColoError::Unexpected { tag: "of a migration" }),
            },
        };
        if let Err(error) = heard {
            self.lose(error);
        }
    }

    /// The secondary's messages.
    fn take(&mut self, message: ColoMessage) -> Result<(), ColoError> {
        if matches!(self.machine.state(), PrimaryState::Claiming | PrimaryState::Alone | PrimaryState::Fenced) {
            // It was said before the channel was given up.
            return Ok(());
        }
        self.asked_at = None;
        match message {
            ColoMessage::CheckpointReady => {
                self.feed(PrimaryEvent::Ready);
                self.want = Some(Cause::Initial);
            }
            ColoMessage::CheckpointReply { n, dirty, .. } => {
                self.monitor.at(ColoBoundary::PrimaryReplied, n)?;
                self.current.report.pages.secondary_dirty = dirty;
                self.feed(PrimaryEvent::Reply(n));
            }
            ColoMessage::Output(records) => {
                if self.offer.compare {
                    records.into_iter().try_for_each(|record| self.compare.push_theirs(record))?;
                }
            }
            ColoMessage::VmstateReceived { n, cache, digest_ns: _ } => {
                self.received(n, cache)?;
                self.feed(PrimaryEvent::Received(n));
                self.asked_at = Some(Instant::now());
            }
            ColoMessage::VmstateLoaded(loaded) => {
                let n = loaded.n;
                if let Err(error) = self.loaded(&loaded) {
                    self.monitor.show(|info| info.exact = false);
                    let _ = self.line.send_plain(&Message::Abort { text: Text::new(&error) });
                    return Err(error);
                }
                self.monitor.at(ColoBoundary::PrimaryLoaded, n)?;
                self.feed(PrimaryEvent::Loaded(n));
            }
            ColoMessage::CheckpointFailed { n, text } => self.abandon(n, ColoError::Peer { text }),
            ColoMessage::Inexact { n, text } => {
                self.monitor.show(|info| info.exact = false);
                return Err(self.inexact(n, text));
            }
            other => return Err(ColoError::Unexpected { tag: other.tag().name() }),
        }
        Ok(())
    }

    /// The secondary could not have checkpoint `n`.
    fn abandon(&mut self, n: u64, error: ColoError) {
        self.abandoned += 1;
        self.monitor.show(|info| {
            info.abandoned += 1;
            info.error = Some(error.to_string());
        });
        if self.abandoned > RETRIES {
            return self.lose(error);
        }
        self.feed(PrimaryEvent::PeerFailed(n));
        self.want = Some(Cause::Retry);
    }

    /// What operators wish.
    fn obey(&mut self) {
        let wishes = self.monitor.take_wishes();
        if wishes.checkpoint {
            self.want.get_or_insert(Cause::Requested);
        }
        if wishes.lost_heartbeat {
            self.is_said = true;
            self.reason = ExitReason::Request;
            self.claim_at = Some(Instant::now());
            if self.machine.state() != PrimaryState::Claiming {
                self.lose(ColoError::Said);
            }
        }
        if wishes.stop && self.ending.is_none() {
            self.line.hang_up();
            self.pause_quietly();
            self.ending = Some(Ending::Stopped);
        }
    }

    /// What time brings.
    fn tick(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let parameters = self.monitor.parameters();
        match self.machine.state() {
            PrimaryState::Claiming => return self.claim(),
            PrimaryState::Running => {
                self.find_cause(&parameters);
                if self.want.is_some() && self.has_sent_all_of_pass_0() {
                    let n = self.machine.checkpoint() + 1;
                    self.current = Current::new(n, self.want.take().unwrap_or_default());
                    if let Err(error) = self.monitor.at(ColoBoundary::PrimaryRequest, n) {
                        return self.lose(error);
                    }
                    self.monitor.enter(ColoPhase::Checkpoint);
                    return self.feed(PrimaryEvent::Want);
                }
            }
            _ => {}
        }
        if let Some(asked) = self.asked_at
            && asked.elapsed() > ANSWER
        {
            return self.lose(ColoError::Silent { what: "answered", after: ANSWER });
        }
        if matches!(self.machine.state(), PrimaryState::Syncing | PrimaryState::Running | PrimaryState::Requested)
            && let Err(error) = self.send_in_background(&parameters)
        {
            self.lose(error);
        }
    }

    fn has_sent_all_of_pass_0(&self) -> bool {
        self.pass > 0
    }

    fn find_cause(&mut self, parameters: &super::ColoParameters) {
        if let Some(found) = self.compare.difference() {
            if !matches!(self.want, Some(Cause::Divergence(_))) {
                self.monitor.show(|info| info.divergences += 1);
            }
            let (stream, sequence, offset) = (found.stream.raw(), found.sequence, found.byte as u64);
            self.want = Some(Cause::Divergence(Divergence { stream, sequence, offset }));
        } else if self.want.is_none() {
            let (held, early) = (self.compare.held(), self.compare.early());
            let is_full = self.compare.is_full()
                || held.records.max(early.records) as u64 >= parameters.x_colo_held_records
                || held.bytes.max(early.bytes) as u64 >= parameters.x_colo_held_bytes;
            if is_full {
                self.want = Some(Cause::HeldFull);
            } else if self.committed_at.elapsed() >= parameters.interval() {
                self.want = Some(Cause::Interval);
            }
        }
    }

    /// The secondary is lost to this side.
    fn lose(&mut self, error: ColoError) {
        if self.ending.is_none() {
            self.error.get_or_insert(error);
            self.feed(PrimaryEvent::Lost);
        }
    }

    /// What the machine decides about `event`, carried out.
    fn feed(&mut self, event: PrimaryEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let actions = match self.machine.on(event) {
                Ok(actions) => actions,
                Err(error) => {
                    self.error.get_or_insert(error.into());
                    events.push_back(PrimaryEvent::Lost);
                    continue;
                }
            };
            for action in actions {
                if let Some(event) = self.perform(action) {
                    // What was to follow is overtaken by that.
                    events.push_back(event);
                    break;
                }
            }
        }
    }

    /// What comes of it is returned, never fed: it overtakes the actions that were to follow this one.
    fn perform(&mut self, action: PrimaryAction) -> Option<PrimaryEvent> {
        match action {
            PrimaryAction::Request(n) => {
                self.asked_at = Some(Instant::now());
                let sent = self.line.send(ColoMessage::CheckpointRequest { n }).map_err(ColoError::from);
                self.lost_if(sent.and_then(|()| self.monitor.at(ColoBoundary::PrimaryRequested, n)))
            }
            PrimaryAction::Stop => match self.stop() {
                Ok(moment) => {
                    self.current.stopped = moment;
                    None
                }
                Err(error) => self.failed(error),
            },
            PrimaryAction::Transfer(n) => match self.transfer(n) {
                Ok(()) => Some(PrimaryEvent::Transferred),
                Err(error) => self.failed(error),
            },
            PrimaryAction::Size(n) => {
                self.asked_at = Some(Instant::now());
                let sent = self.send_size();
                self.lost_if(sent.and_then(|()| self.monitor.at(ColoBoundary::PrimarySent, n)))
            }
            PrimaryAction::Abort(n) => {
                let text = self.error.take().map_or_else(Text::default, Text::new);
                self.want = Some(Cause::Retry);
                let sent = self.line.send(ColoMessage::CheckpointAbort { n, text }).map_err(ColoError::from);
                self.lost_if(sent)
            }
            PrimaryAction::Commit(n) => {
                self.abandoned = 0;
                let sent = self.line.send(ColoMessage::CheckpointCommit { n }).map_err(ColoError::from);
                self.lost_if(sent.and_then(|()| self.monitor.at(ColoBoundary::PrimaryCommitted, n)))
            }
            PrimaryAction::Release => self.commit(),
            PrimaryAction::Resume => {
                self.resume();
                None
            }
            PrimaryAction::HangUp => {
                self.line.hang_up();
                None
            }
            PrimaryAction::Claim(epoch) => {
                self.monitor.show(|info| info.epoch = epoch);
                self.monitor.enter(ColoPhase::Claiming);
                self.pieces = None;
                // Where nobody can judge, an operator has to.
                self.claim_at = (self.voice.is_arbiter() || self.is_said).then(Instant::now);
                None
            }
            PrimaryAction::Survive(epoch) => self.survive(epoch),
            PrimaryAction::Fence => {
                self.vm.fenced();
                self.ending = Some(Ending::Fenced);
                None
            }
        }
    }

    fn stop(&mut self) -> Result<Moment, ColoError> {
        if self.is_paused {
            return Ok(self.current.stopped);
        }
        let begun = Instant::now();
        let moment = self.vm.pause()?;
        self.is_paused = true;
        self.current.stop(begun);
        Ok(moment)
    }

    fn pause_quietly(&mut self) {
        if let Err(error) = self.stop() {
            self.error.get_or_insert(error);
        }
    }

    fn resume(&mut self) {
        if std::mem::take(&mut self.is_paused) {
            self.vm.resume();
            self.report();
        }
    }

    /// This side could not do its part of a checkpoint.
    fn failed(&mut self, error: ColoError) -> Option<PrimaryEvent> {
        let event = if error.is_loss() || self.machine.state() != PrimaryState::Sending {
            PrimaryEvent::Lost
        } else {
            self.abandoned += 1;
            self.monitor.show(|info| info.abandoned += 1);
            if self.abandoned > RETRIES { PrimaryEvent::Lost } else { PrimaryEvent::Failed }
        };
        self.error.get_or_insert(error);
        Some(event)
    }

    fn lost_if(&mut self, result: Result<(), ColoError>) -> Option<PrimaryEvent> {
        let error = result.err()?;
        self.error.get_or_insert(error);
        Some(PrimaryEvent::Lost)
    }
}
