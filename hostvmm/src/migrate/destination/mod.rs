//! The destination of a migration: [`receive`] is the list of its phases.
//!
//! - `door`: who is let in, and what a source that has lost its connection is told;
//! - `memory`: passes of pages, while the guest runs at the source and then does not; `pages`: one channel's; `side`: channels
//!   side by side;
//! - `load`: the same from a file;
//! - `arrival`: the state is loaded, memory verified, and the guest runs once the source has given it away;
//! - `postcopy`: the guest runs before all of its memory is here.
//!
//! Before the commit whatever fails discards the guest, which runs on at the source. After it this side alone decides: the
//! guest runs, or it is discarded and the source, which asks, is told so.

mod arrival;
mod door;
mod load;
mod memory;
mod pages;
mod postcopy;
mod side;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::door::{Door, Fate};
use super::clock::ClockOffset;
use super::digest::Leaves;
use super::error::MigrateError;
use super::faults::Boundary;
use super::frames::{FrameReader, FrameWriter};
use super::info::{MigrationInfo, RamInfo};
use super::monitor::Monitor;
use super::parameters::{CounterPolicy, DigestMode};
use super::phase::{Setup, Stage};
use super::postcopy::MissingPages;
use super::transport::{Handle, Listener, TlsCreds, TransportError, Uri};
use super::vm::DestinationVm;
use super::wire::{Agreement, Features, Incoming as Order, Message, Mismatch, Offer, Role, Text, WireError};
use crate::memory::SlotId;

/// How long a source that is told of a failure may take to listen.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long a lost connection may take to say why it was lost.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time for the source's last word, which tells what it found when it digested its memory afterwards.
const FAREWELL: Duration = Duration::from_secs(30);

/// Where a guest comes from.
#[derive(Debug)]
pub enum Inbound {
    /// A source that connects.
    Listener(Listener),
    /// A file that it was saved to.
    File {
        /// Its path.
        path: PathBuf,
        /// Where in it.
        offset: u64,
    },
}

impl Inbound {
    /// Of `uri`, with `tls` only from a source that proves who it is.
    ///
    /// # Errors
    /// [`TransportError`] where nobody can come.
    pub fn open(uri: &Uri, tls: Option<&TlsCreds>) -> Result<Self, TransportError> {
        match uri {
            Uri::File { path, offset } => Ok(Self::File { path: path.clone(), offset: *offset }),
            _ => Listener::bind(uri, tls).map(Self::Listener),
        }
    }
}

impl From<Listener> for Inbound {
    fn from(listener: Listener) -> Self {
        Self::Listener(listener)
    }
}

/// Waits at `inbound` for a guest and runs it in `vm`. Returns when the source has said farewell, or is known not to; the
/// guest runs since the monitor says [completed](super::Phase::Completed). Returns what the monitor shows in the end.
///
/// # Errors
/// [`MigrateError`]. The guest does not run here, but where the monitor says [completed](super::Phase::Completed): then it does, and
/// something was found wrong afterwards.
pub fn receive(
    vm: &dyn DestinationVm,
    inbound: impl Into<Inbound>,
    monitor: &Monitor,
) -> Result<MigrationInfo, MigrateError> {
    let (stage, _) = monitor.begin()?;
    let _watched = monitor.watch_thread();
    let listener = match inbound.into() {
        Inbound::Listener(listener) => listener,
        Inbound::File { path, offset } => {
            return load::run(vm, &path, offset, stage).map_err(|error| monitor.fail(error));
        }
    };
    let door = match Door::open(listener) {
        Ok(door) => door,
        Err(error) => return Err(monitor.fail(error)),
    };
    let token = door.token();
    monitor.add_wake(move || token.cancel());
    let Arrival { door, result } = admit(vm, stage, door);
    match result {
        Ok(Farewell::Said) => {
            door.close();
            Ok(monitor.info())
        }
        Ok(Farewell::Missing) => {
            // The source may yet ask: the door stays open behind us.
            door.leave_open();
            Ok(monitor.info())
        }
        Err(error) => {
            door.close();
            Err(monitor.fail(error))
        }
    }
}

/// Why the guest of `offer` cannot run in `vm`; `None` where it can, as far as can be told before its state is here.
fn mismatch(vm: &dyn DestinationVm, offer: &Offer) -> Option<Mismatch> {
    let differs = vm.describe().mismatch(&offer.description);
    differs.or_else(|| vm.check_cpu(offer.description.accelerator, &offer.cpu).err().map(Mismatch::of_cpu))
}

/// Whether the source has had its last word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Farewell {
    Said,
    Missing,
}

/// How it ended, and the door to be closed or left open.
struct Arrival {
    door: Door,
    result: Result<Farewell, MigrateError>,
}

fn admit(vm: &dyn DestinationVm, stage: Stage<'_, Setup>, door: Door) -> Arrival {
    let monitor = stage.monitor();
    let mut incoming = match Incoming::greet(vm, monitor, &door) {
        Ok(incoming) => incoming,
        Err(error) => return Arrival { door, result: Err(error) },
    };
    let result = incoming.run(stage, &door).map_err(|error| incoming.explained(error));
    if let Err(error) = &result
        && monitor.phase().is_running()
    {
        door.decide(Fate::Discarded);
        incoming.tell_failure(error);
    }
    Arrival { door, result }
}

/// A migration on its way in.
struct Incoming<'a> {
    vm: &'a dyn DestinationVm,
    monitor: &'a Monitor,
    reader: FrameReader,
    /// Shared with the thread that asks for pages in post-copy.
    writer: Arc<Mutex<FrameWriter>>,
    order: Order,
    handle: Handle,
}

/// What the offer said and both sides hold to.
struct Terms {
    agreement: Agreement,
    page_channels: u16,
    digest: DigestMode,
    counter: CounterPolicy,
    salt: u64,
    /// The source's clock less ours.
    clock: ClockOffset,
    leaves: Leaves,
}

impl Terms {
    fn is_shared(&self) -> bool {
        self.agreement.features.has(Features::SHARED_MEMORY)
    }
}

impl<'a> Incoming<'a> {
    /// Waits for a source.
    fn greet(vm: &'a dyn DestinationVm, monitor: &'a Monitor, door: &Door) -> Result<Self, MigrateError> {
        let channel = door.main_channel()?;
        monitor.restart_clock();
        let handle = channel.handle();
        monitor.add_channel(handle.clone());
        let (reader, writer) = channel.split();
        Ok(Self {
            vm,
            monitor,
            reader: FrameReader::new(reader),
            writer: Arc::new(Mutex::new(FrameWriter::new(writer))),
            order: Order::new(Role::Main),
            handle,
        })
    }

    fn run(&mut self, stage: Stage<'_, Setup>, door: &Door) -> Result<Farewell, MigrateError> {
        self.monitor.at(Boundary::DestinationConnected)?;
        let terms = self.agree(door)?;
        let stage = stage.activate()?;
        self.monitor.at(Boundary::DestinationAccepted)?;
        let (stage, mut everything) = memory::receive(self, &terms, door, stage)?;
        if let Some(missing) = everything.missing.take() {
            return postcopy::take_over(self, &terms, everything, &missing, stage, door);
        }
        let stopped = arrival::load(self, &terms, everything)?;
        arrival::take_over(self, &terms, stopped, stage, door)
    }

    /// The offer, and our answer to it.
    fn agree(&mut self, door: &Door) -> Result<Terms, MigrateError> {
        let message = self.next()?.0;
        let Message::Offer(offer) = message else { return Err(self.unexpected(&message)) };
        self.monitor.at(Boundary::DestinationOffered)?;
        if let Some(mismatch) = mismatch(self.vm, &offer) {
            self.send(&Message::Refuse(mismatch.clone()))?;
            return Err(MigrateError::Refused(mismatch));
        }
        let mut known = Features::DELTA.or(Features::ZSTD);
        if self.vm.memory().files().is_ok() {
            known = known.or(Features::SHARED_MEMORY);
        }
        let description = self.vm.describe();
        if offer.features.has(Features::POSTCOPY)
            && MissingPages::check(self.vm.memory(), description.accelerator).is_ok()
        {
            known = known.or(Features::POSTCOPY);
        }
        let features = offer.features.and(known);
        door.expect_page_channels(offer.page_channels);
        self.send(&Message::Accept { features })?;
        if features.has(Features::SHARED_MEMORY) {
            let files = self.reader.receive_files(SlotId::COUNT)?;
            let files: [_; SlotId::COUNT] =
                files.try_into().map_err(|_| MigrateError::lost(std::io::ErrorKind::InvalidData.into()))?;
            self.vm.memory().adopt(files.map(Into::into))?;
        }
        let memory = self.vm.memory();
        let total = memory.slots().iter().map(|slot| slot.range().len_bytes()).sum();
        let page_size = offer.description.page_bytes.into();
        let clock = offer.clock.reversed();
        self.monitor.show(|info| {
            info.clock = Some(clock);
            info.ram = Some(RamInfo { total, page_size, ..RamInfo::default() });
        });
        Ok(Terms {
            agreement: self.order.agreement().expect("this side has accepted"),
            page_channels: offer.page_channels,
            digest: offer.digest,
            counter: offer.counter,
            salt: offer.salt,
            clock,
            leaves: Leaves::new(memory, offer.salt),
        })
    }

    /// The source's next message, and the bytes of its payload.
    fn next(&mut self) -> Result<(Message, u32), MigrateError> {
        let (message, payload_bytes) = self.reader.next()?;
        self.order.accept(&message, payload_bytes)?;
        match message {
            Message::Abort { text } => Err(MigrateError::Source { text }),
            message => Ok((message, payload_bytes)),
        }
    }

    /// `error`, or what the source has said about it: a connection that is lost in answering may have been given up for a
    /// reason that is waiting to be read.
    fn explained(&mut self, error: MigrateError) -> MigrateError {
        if !error.is_lost() {
            return error;
        }
        let deadline = Instant::now() + LAST_WORDS;
        self.handle.set_deadline(Some(deadline));
        let mut payload = Vec::new();
        while Instant::now() < deadline {
            match self.reader.next() {
                Ok((Message::Abort { text }, _)) => return MigrateError::Source { text },
                Ok((_, payload_bytes)) => {
                    payload.resize(payload_bytes as usize, 0);
                    if self.reader.payload(&mut payload).is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        error
    }

    /// The source's last word, for which it has some time. Whatever goes wrong, it has none.
    fn farewell(&mut self) -> Option<Message> {
        self.handle.set_deadline(Some(Instant::now() + FAREWELL));
        self.next().ok().map(|(message, _)| message)
    }

    fn send(&mut self, message: &Message) -> Result<(), MigrateError> {
        self.order.sent(message)?;
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).send(message)
    }

    fn unexpected(&self, message: &Message) -> MigrateError {
        WireError::Order { tag: message.tag(), state: "expecting something else" }.into()
    }

    /// Tells the source why, if it is still there and does not know.
    fn tell_failure(&mut self, error: &MigrateError) {
        if matches!(error, MigrateError::Source { .. } | MigrateError::Refused(_)) {
            return;
        }
        self.handle.part(GOODBYE);
        let _ = self.send(&Message::Failure { text: Text::new(error) });
    }
}
