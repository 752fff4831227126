//! The secondary's engine: [`shadow`] waits for a primary, follows its checkpoints, and takes its place when it is lost.
//!
//! One thread drives the guest and decides with [`SecondaryMachine`]. The thread that reads the channel puts pages into the
//! cache as they come, whatever the other does; it hands everything else on in its order.

mod checkpoint;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::checkpoint::Incoming;
use super::backlog::Backlog;
use super::cache::RamCache;
use super::error::ColoError;
use super::faults::ColoBoundary;
use super::info::{ColoPhase, ExitReason};
use super::link::{Event, Farewell, Line, accept, events, is_cancelled, listen, waker};
use super::monitor::{ColoMonitor, Ending};
use super::outlet::OutletError;
use super::output::Positions;
use super::pages::{self, DirtyPages};
use super::primary::in_parts;
use super::protocol::{SecondaryAction, SecondaryEvent, SecondaryMachine, SecondaryState};
use super::vm::ColoVm;
use super::voice::Voice;
use super::{Outcome, Side};
use crate::migrate::MigrateError;
use crate::migrate::frames::{FrameReader, FrameWriter};
use crate::migrate::pages::Unpacker;
use crate::migrate::transport::{CancelToken, Listener};
use crate::migrate::wire::{ColoMessage, ColoOffer, Features, Message, Text};

/// Least time between two claims of an outlet that cannot be reached.
const CLAIM_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait for something to happen.
const IDLE: Duration = Duration::from_secs(1);
/// How long a primary that has connected may take for its offer.
const OFFER: Duration = Duration::from_secs(10);

/// Waits at `listener` for a primary, and makes `vm`, which has not run yet, its secondary, until the pair ends. What its guest
/// emits goes to `voice` if it takes over.
///
/// Whatever goes wrong, the outcome says whether this VM goes on.
pub fn shadow(vm: &dyn ColoVm, mut listener: Listener, voice: &mut Voice, monitor: &ColoMonitor) -> Outcome {
    let (sender, queue) = events();
    let is_met = Arc::new(AtomicBool::new(false));
    let met = CancelToken::new().map_err(|source| MigrateError::Host { what: "wait for a primary", source });
    let cancel = match met {
        Ok(cancel) => cancel,
        Err(error) => return discarded(monitor, error.into()),
    };
    monitor.begin(Side::Secondary, 0, waker(sender.clone(), cancel.clone(), Arc::clone(&is_met)));
    let mut secondary = match meet(vm, &mut listener, voice, monitor, &cancel, &is_met) {
        Ok(secondary) => secondary,
        Err(error) => return discarded(monitor, error),
    };
    // Nobody else may come.
    drop(listener);
    let reader = secondary.reader.take();
    let looks = sender.clone();
    // A full queue is looked at soon enough.
    let _watch = vm.output().watch(move || drop(looks.try_send(Event::Look)));
    thread::scope(|scope| {
        let _farewell = Farewell(secondary.line.handle());
        if let Some(reader) = reader {
            let mut arrivals = Arrivals {
                cache: Arc::clone(&secondary.cache),
                unpacker: Unpacker::new(secondary.offer.description.geometry()),
                payload: Vec::new(),
                accepted: Arc::clone(&secondary.accepted),
                pass: 0,
            };
            scope.spawn(move || {
                listen(reader, &sender, |message, bytes, reader| arrivals.take(message, bytes, reader));
            });
        }
        let outcome = secondary.run(&queue);
        secondary.line.hang_up();
        // Whoever waits for room in the queue finds it.
        while queue.try_recv().is_ok() {}
        drop(queue);
        outcome
    })
}

fn discarded(monitor: &ColoMonitor, error: ColoError) -> Outcome {
    let is_wished = matches!(&error, ColoError::Channel(error) if is_cancelled(error));
    monitor.show(|info| info.error = Some(error.to_string()));
    monitor.end(ColoPhase::Discarded, if is_wished { ExitReason::Request } else { ExitReason::Error });
    Outcome { ending: Ending::Discarded, error: Some(error) }
}

/// Waits for a primary whose machine is like this one.
fn meet<'a>(
    vm: &'a dyn ColoVm,
    listener: &mut Listener,
    voice: &'a mut Voice,
    monitor: &'a ColoMonitor,
    cancel: &CancelToken,
    is_met: &AtomicBool,
) -> Result<Secondary<'a>, ColoError> {
    let channel = accept(listener, cancel)?;
    channel.set_timeouts(Some(OFFER), Some(OFFER));
    let handle = channel.handle();
    monitor.set_cut({
        let handle = handle.clone();
        move || handle.shutdown()
    });
    let (reader, writer) = channel.split();
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let offer = match reader.next()? {
        (Message::Colo(ColoMessage::Offer(offer)), 0) => *offer,
        _ => return Err(ColoError::Unexpected { tag: "in place of an offer" }),
    };
    if let Some(mismatch) = vm.describe().mismatch_of_pair(&offer.description) {
        writer.send(&Message::Refuse(mismatch.clone()))?;
        return Err(ColoError::Refused(mismatch));
    }
    let cache = RamCache::new(vm.memory(), vm.log_page_bytes(), offer.salt);
    let cache = match cache {
        Ok(cache) => cache,
        Err(error) => {
            writer.send(&Message::Failure { text: Text::new(&error) })?;
            return Err(error.into());
        }
    };
    writer.send(&Message::Accept { features: Features::NONE })?;
    is_met.store(true, Ordering::Release);
    let parameters = monitor.parameters();
    let line = Line::new(writer, handle, &parameters, || ColoMessage::SecondaryAlive)?;
    voice.join(offer.pair);
    vm.output().start();
    monitor.show(|info| info.epoch = offer.epoch);
    monitor.enter(ColoPhase::Syncing);
    Ok(Secondary {
        machine: SecondaryMachine::new(offer.epoch),
        dirty: pages::clean(vm.memory(), vm.log_page_bytes()),
        cache: Arc::new(cache),
        vm,
        voice,
        monitor,
        line,
        reader: Some(reader),
        offer,
        accepted: Arc::default(),
        backlog: Backlog::default(),
        incoming: None,
        is_logging: false,
        is_running: false,
        claim_at: None,
        is_said: false,
        reason: ExitReason::Error,
        error: None,
        ending: None,
    })
}

/// What the thread that reads does itself.
struct Arrivals {
    cache: Arc<RamCache>,
    unpacker: Unpacker,
    payload: Vec<u8>,
    accepted: Arc<Mutex<Positions>>,
    pass: u32,
}

impl Arrivals {
    fn take(
        &mut self,
        message: Message,
        payload_bytes: u32,
        reader: &mut FrameReader,
    ) -> Result<Option<Message>, ColoError> {
        match message {
            Message::Pages(batch) => {
                // Never shorter again: growing clears.
                let most = self.payload.len().max(payload_bytes as usize);
                self.payload.resize(most, 0);
                reader.payload(&mut self.payload[..payload_bytes as usize])?;
                self.check_pass(batch.pass)?;
                let payload = &self.payload[..payload_bytes as usize];
                self.cache.receive(&mut self.unpacker, &batch, payload).map_err(MigrateError::from)?;
                Ok(None)
            }
            Message::PassEnd(end) => {
                self.check_pass(end.pass)?;
                self.pass = self.pass.wrapping_add(1);
                self.cache.end_pass(end.pass, end.slots)?;
                Ok(Some(Message::PassEnd(end)))
            }
            Message::Colo(ColoMessage::PrimaryAlive { accepted }) => {
                learn(&self.accepted, &accepted);
                Ok(None)
            }
            message if payload_bytes == 0 => Ok(Some(message)),
            _ => Err(ColoError::Unexpected { tag: "with a payload" }),
        }
    }

    fn check_pass(&self, found: u32) -> Result<(), ColoError> {
        if found == self.pass { Ok(()) } else { Err(ColoError::Pass { expected: self.pass, found }) }
    }
}

/// The outlet has `accepted` so much, if not more.
fn learn(known: &Mutex<Positions>, accepted: &Positions) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    for stream in super::output::StreamId::all() {
        let most = known.get(stream).max(accepted.get(stream));
        known.set(stream, most);
    }
}

/// A pair, as its secondary drives it.
struct Secondary<'a> {
    vm: &'a dyn ColoVm,
    voice: &'a mut Voice,
    monitor: &'a ColoMonitor,
    line: Line,
    reader: Option<FrameReader>,
    offer: ColoOffer,
    machine: SecondaryMachine,
    cache: Arc<RamCache>,
    /// What the outlet has accepted, says the primary.
    accepted: Arc<Mutex<Positions>>,
    /// What this guest emitted and the outlet may lack.
    backlog: Backlog,
    /// Written here since the last checkpoint that was put in place.
    dirty: DirtyPages,
    incoming: Option<Incoming>,
    is_logging: bool,
    is_running: bool,
    claim_at: Option<Instant>,
    /// An operator says that the primary is lost.
    is_said: bool,
    reason: ExitReason,
    error: Option<ColoError>,
    ending: Option<Ending>,
}

impl Secondary<'_> {
    fn run(&mut self, queue: &Receiver<Event>) -> Outcome {
        while self.ending.is_none() {
            match queue.recv_timeout(self.patience()) {
                Ok(event) => self.hear(event),
                // This side holds a sender of its own, so nobody disconnects.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.obey();
            if self.ending.is_none()
                && let Err(error) = self.tell_output()
            {
                self.lose(error);
            }
            if self.ending.is_none() && self.machine.state() == SecondaryState::Claiming {
                self.claim();
            }
        }
        if std::mem::take(&mut self.is_logging) {
            let _ = self.vm.stop_log();
        }
        let ending = self.ending.unwrap_or(Ending::Stopped);
        let phase = match ending {
            Ending::Alone { .. } => ColoPhase::Alone,
            Ending::Fenced => ColoPhase::Fenced,
            Ending::Discarded => ColoPhase::Discarded,
            Ending::Stopped => ColoPhase::Claiming,
        };
        let error = self.error.take();
        self.monitor.show(|info| info.error = error.as_ref().map(ToString::to_string).or(info.error.take()));
        self.monitor.end(phase, self.reason);
        Outcome { ending, error }
    }

    fn patience(&self) -> Duration {
        if self.machine.state() == SecondaryState::Claiming {
            return self.claim_at.map_or(IDLE, |at| at.saturating_duration_since(Instant::now())).min(IDLE);
        }
        IDLE
    }

    fn hear(&mut self, event: Event) {
        let heard = match event {
            Event::Look => Ok(()),
            Event::Ended(error) => Err(error),
            Event::Message(message) => self.take(*message),
        };
        if let Err(error) = heard {
            self.lose(error);
        }
    }

    /// What operators wish.
    fn obey(&mut self) {
        let wishes = self.monitor.take_wishes();
        if wishes.lost_heartbeat {
            self.is_said = true;
            self.reason = ExitReason::Request;
            self.claim_at = Some(Instant::now());
            if self.machine.state() != SecondaryState::Claiming {
                self.lose(ColoError::Said);
            }
        }
        if wishes.stop && self.ending.is_none() {
            self.line.hang_up();
            self.stop_quietly();
            self.ending = Some(Ending::Stopped);
        }
    }

    /// Tells the primary what the guest emitted, and keeps it until the outlet has it.
    fn tell_output(&mut self) -> Result<(), ColoError> {
        let accepted = *self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        self.backlog.forget(&accepted);
        let records = self.vm.output().take();
        for record in &records {
            self.backlog.push(record.clone())?;
        }
        if matches!(self.machine.state(), SecondaryState::Running | SecondaryState::Stopped) {
            for records in in_parts(records) {
                self.line.send(ColoMessage::Output(records))?;
            }
        }
        Ok(())
    }

    /// The primary is lost to this side.
    fn lose(&mut self, error: ColoError) {
        if self.ending.is_none() {
            self.error.get_or_insert(error);
            self.feed(SecondaryEvent::Lost);
        }
    }

    /// What the machine decides about `event`, carried out.
    fn feed(&mut self, event: SecondaryEvent) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let actions = match self.machine.on(event) {
                Ok(actions) => actions,
                Err(error) => {
                    self.error.get_or_insert(error.into());
                    events.push_back(SecondaryEvent::Lost);
                    continue;
                }
            };
            for action in actions {
                if let Some(event) = self.perform(action) {
                    events.push_back(event);
                    // A checkpoint that was verified is put in place whatever becomes of the channel.
                    if !matches!(action, SecondaryAction::Received(_)) {
                        break;
                    }
                }
            }
        }
    }

    /// What comes of it is returned, never fed: it overtakes the actions that were to follow this one.
    fn perform(&mut self, action: SecondaryAction) -> Option<SecondaryEvent> {
        match action {
            SecondaryAction::Stop => self.stop().err().map(|error| self.failed(error)),
            SecondaryAction::Reply(n) => {
                let sent = self.reply(n);
                self.lost_if(sent)
            }
            SecondaryAction::Verify(n) => Some(self.verify(n)),
            SecondaryAction::Received(n) => {
                let sent = self.tell_received(n);
                self.lost_if(sent)
            }
            SecondaryAction::Place(n) => Some(self.place(n)),
            SecondaryAction::Loaded(n) => {
                let sent = self.tell_loaded(n);
                self.lost_if(sent)
            }
            SecondaryAction::PeerFailed(n) => {
                self.incoming = None;
                let text = self.error.take().map_or_else(Text::default, Text::new);
                let sent = self.line.send(ColoMessage::CheckpointFailed { n, text }).map_err(ColoError::from);
                self.lost_if(sent)
            }
            SecondaryAction::Resume => {
                self.resume();
                None
            }
            SecondaryAction::HangUp => {
                self.line.hang_up();
                None
            }
            SecondaryAction::Claim(epoch) => {
                self.monitor.show(|info| info.epoch = epoch);
                self.monitor.enter(ColoPhase::Claiming);
                // Where nobody can judge, an operator has to.
                self.claim_at = (self.voice.is_arbiter() || self.is_said).then(Instant::now);
                None
            }
            SecondaryAction::Survive(epoch) => self.survive(epoch),
            SecondaryAction::Fence => {
                self.vm.fenced();
                self.ending = Some(Ending::Fenced);
                None
            }
            SecondaryAction::Discard => {
                self.vm.fenced();
                self.ending = Some(Ending::Discarded);
                None
            }
        }
    }

    /// Stops the guest, and learns what it wrote and emitted until then.
    fn stop(&mut self) -> Result<(), ColoError> {
        if self.is_running {
            self.vm.pause()?;
            self.is_running = false;
        }
        if self.is_logging {
            let mut fresh = pages::clean(self.vm.memory(), self.vm.log_page_bytes());
            pages::harvest(self.vm, &mut fresh)?;
            pages::add(&mut self.dirty, &fresh);
        }
        Ok(())
    }

    fn stop_quietly(&mut self) {
        if let Err(error) = self.stop() {
            self.error.get_or_insert(error);
        }
    }

    /// Lets the guest run on: beside the primary only where outputs are compared.
    fn resume(&mut self) {
        if self.ending.is_some() || self.offer.compare {
            self.is_running = true;
            self.vm.resume();
        }
        let n = self.machine.checkpoint();
        if self.ending.is_none() {
            self.monitor.enter(ColoPhase::Running);
            if let Err(error) = self.monitor.at(ColoBoundary::SecondaryResumed, n) {
                self.error.get_or_insert(error);
            }
        }
    }

    /// Claims the outlet, if it is time to.
    fn claim(&mut self) {
        if self.claim_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        match self.voice.claim(self.machine.epoch(), Side::Secondary) {
            Ok(()) => self.feed(SecondaryEvent::Granted),
            Err(OutletError::Unreachable(_) | OutletError::Ahead { .. }) => {
                let pause = self.monitor.parameters().heartbeat().max(CLAIM_AGAIN);
                self.claim_at = Some(Instant::now() + pause);
            }
            Err(error) => {
                self.error = Some(error.into());
                self.feed(SecondaryEvent::Fenced);
            }
        }
    }

    /// The only one: what the outlet lacks of this guest's output is delivered.
    fn survive(&mut self, epoch: u64) -> Option<SecondaryEvent> {
        if !self.voice.is_arbiter() {
            // Where nobody counts, what the primary said last is the best that is known.
            self.voice.accept(*self.accepted.lock().unwrap_or_else(PoisonError::into_inner));
        }
        let said = self
            .take_the_rest()
            .and_then(|()| Ok(self.backlog.missing(&self.voice.accepted())?))
            .and_then(|missing| Ok(self.voice.say(missing)?));
        if let Err(error) = said {
            self.error = Some(error);
            return Some(SecondaryEvent::Fenced);
        }
        let accepted = self.voice.accepted().total();
        self.monitor.show(|info| (info.epoch, info.accepted) = (epoch, accepted));
        self.vm.survive(Side::Secondary);
        self.ending = Some(Ending::Alone { epoch });
        None
    }

    fn take_the_rest(&mut self) -> Result<(), ColoError> {
        for record in self.vm.output().take() {
            self.backlog.push(record)?;
        }
        Ok(())
    }

    /// This side could not do its part of a checkpoint.
    fn failed(&mut self, error: ColoError) -> SecondaryEvent {
        let is_open = matches!(self.machine.state(), SecondaryState::Stopped | SecondaryState::Verifying);
        let event = if is_open && !error.is_loss() { SecondaryEvent::Failed } else { SecondaryEvent::Lost };
        self.error.get_or_insert(error);
        event
    }

    fn lost_if(&mut self, result: Result<(), ColoError>) -> Option<SecondaryEvent> {
        let error = result.err()?;
        self.error.get_or_insert(error);
        Some(SecondaryEvent::Lost)
    }
}
