//! The channel of a pair: how the two sides meet ([`connect`], [`accept`]), and the [`Line`] that each holds then.
//!
//! A thread reads and hands messages on in their order, one beats so that a side that is busy is not taken for lost, and any
//! thread may send. Silence for longer than the heartbeat's limit ends the line, for whoever reads and whoever writes.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::ColoError;
use super::parameters::ColoParameters;
use crate::migrate::frames::{FrameReader, FrameWriter};
use crate::migrate::transport::{self, CancelToken, Channel, Handle, Listener, TlsCreds, TransportError, Uri};
use crate::migrate::wire::{
    ColoMessage, HELLO_BYTES, Hello, Message, REPLY_BYTES, Refusal, RefusalCode, Reply, Role, Session, VersionRange,
    Welcome,
};
use crate::migrate::{ClockOffset, HostTime, MigrateError};

/// How long connecting and the greeting may take.
const GREETING: Duration = Duration::from_secs(10);
/// Messages that wait for the thread that drives the pair.
const QUEUE: usize = 64;

/// Where a secondary waits.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub uri: Uri,
    /// With whose certificates.
    pub tls: Option<TlsCreds>,
}

/// What the thread that drives a pair waits for.
#[derive(Debug)]
pub(super) enum Event {
    /// The other side said this.
    Message(Box<Message>),
    /// Nothing more comes.
    Ended(ColoError),
    /// There is something to look at here: a wish, or output.
    Look,
}

/// Connects to a secondary. Returns the channel, and its clock less ours.
pub(super) fn connect(peer: &Peer, cancel: &CancelToken) -> Result<(Channel, ClockOffset), MigrateError> {
    let mut channel = transport::connect(&peer.uri, peer.tls.as_ref(), Instant::now() + GREETING, cancel)?;
    channel.set_timeouts(Some(GREETING), Some(GREETING));
    let session = Session::random().map_err(|source| MigrateError::Host { what: "get random bytes", source })?;
    let hello = Hello { versions: VersionRange::OURS, role: Role::Colo, session, sent_at: HostTime::now() };
    let bytes: [u8; HELLO_BYTES] = hello.encode();
    channel.write_all(&bytes).map_err(MigrateError::lost)?;
    let mut reply = [0; REPLY_BYTES];
    channel.read_exact(&mut reply).map_err(MigrateError::lost)?;
    let arrived = HostTime::now();
    match Reply::decode(&reply)? {
        Reply::Welcome(welcome) => Ok((channel, welcome.answers(&hello, arrived)?)),
        Reply::Refusal(refusal) => Err(MigrateError::NotWelcome(refusal)),
    }
}

/// Waits for a primary, however long that takes; others are told that they are wrong here.
pub(super) fn accept(listener: &mut Listener, cancel: &CancelToken) -> Result<Channel, MigrateError> {
    loop {
        let is_hello = |bytes: &[u8]| hello(bytes).map(drop).map_err(|error| error.to_string());
        let (mut channel, opening) = listener.accept_opening(HELLO_BYTES, is_hello, None, cancel)?;
        let received_at = HostTime::now();
        let hello = hello(&opening)?;
        channel.set_timeouts(Some(GREETING), Some(GREETING));
        let reply = match VersionRange::OURS.newest_common(hello.versions) {
            Err(error) => Reply::Refusal(Refusal::new(RefusalCode::Version, error)),
            Ok(_) if hello.role != Role::Colo => {
                let why = "this side waits for a COLO primary, not for a migration";
                Reply::Refusal(Refusal::new(RefusalCode::Session, why))
            }
            Ok(version) => {
                let session = hello.session;
                Reply::Welcome(Welcome { version, session, received_at, sent_at: HostTime::now() })
            }
        };
        // A peer that hangs up in the middle of its greeting is none.
        if channel.write_all(&reply.encode()).is_ok() && matches!(reply, Reply::Welcome(_)) {
            return Ok(channel);
        }
    }
}

fn hello(bytes: &[u8]) -> Result<Hello, MigrateError> {
    let bytes = bytes.try_into().map_err(|_| MigrateError::lost(std::io::ErrorKind::UnexpectedEof.into()))?;
    Ok(Hello::decode(bytes)?)
}

/// The queue of events of one side, made before there is a line.
pub(super) fn events() -> (SyncSender<Event>, Receiver<Event>) {
    sync_channel(QUEUE)
}

/// What wakes a side from any thread: it ends the waiting for the other side, or, once both have met, has this one look. A full
/// queue wakes as well.
pub(super) fn waker(
    events: SyncSender<Event>,
    cancel: CancelToken,
    is_met: Arc<AtomicBool>,
) -> impl Fn() + Send + Sync + 'static {
    move || {
        if is_met.load(Ordering::Acquire) {
            let _ = events.try_send(Event::Look);
        } else {
            cancel.cancel();
        }
    }
}

/// One side's end of the channel, once both have agreed.
#[derive(Debug)]
pub(super) struct Line {
    writer: Arc<Mutex<FrameWriter>>,
    handle: Handle,
    beat: Arc<Beat>,
}

/// Ends the thread that beats.
#[derive(Debug, Default)]
struct Beat {
    is_over: Mutex<bool>,
    changed: Condvar,
}

impl Line {
    /// Over `writer`, whose other half is read elsewhere. `beat` is what is said every so often.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub(super) fn new(
        writer: FrameWriter,
        handle: Handle,
        parameters: &ColoParameters,
        beat: impl Fn() -> ColoMessage + Send + 'static,
    ) -> Result<Self, MigrateError> {
        handle.set_timeouts(Some(parameters.patience()), Some(parameters.patience()));
        let line = Self { writer: Arc::new(Mutex::new(writer)), handle, beat: Arc::default() };
        let (writer, state, pause) = (Arc::clone(&line.writer), Arc::clone(&line.beat), parameters.heartbeat());
        let run = move || {
            loop {
                let over = state.is_over.lock().unwrap_or_else(PoisonError::into_inner);
                let waited = state.changed.wait_timeout_while(over, pause, |is_over| !*is_over);
                if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                    return;
                }
                // What goes wrong here goes wrong for the other threads of the line as well.
                let _ = lock(&writer).send(&Message::Colo(beat()));
            }
        };
        let spawned = std::thread::Builder::new().name("colo heartbeat".to_owned()).spawn(run);
        spawned.map_err(|source| MigrateError::Host { what: "start a thread for the heartbeat", source })?;
        Ok(line)
    }

    /// Says `message`.
    pub(super) fn send(&self, message: ColoMessage) -> Result<(), MigrateError> {
        self.send_plain(&Message::Colo(message))
    }

    /// Says a message that migrations have as well.
    pub(super) fn send_plain(&self, message: &Message) -> Result<(), MigrateError> {
        lock(&self.writer).send(message)
    }

    /// Sends pages.
    pub(super) fn send_pages(&self, message: &Message, payload: &[u8]) -> Result<(), MigrateError> {
        lock(&self.writer).send_pages(message, payload)
    }

    /// Bytes sent so far.
    pub(super) fn sent(&self) -> u64 {
        lock(&self.writer).sent()
    }

    /// Shuts the channel down from any thread.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends it for all threads of both sides.
    pub(super) fn hang_up(&self) {
        *self.beat.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.beat.changed.notify_all();
        self.handle.shutdown();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// Ends the thread that reads a channel when it is dropped. That thread is waited for, so a side that panics has to end it as well.
pub(super) struct Farewell(pub(super) Handle);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}

/// A frame that was begun is ended whatever happens, or the channel with it.
fn lock(writer: &Mutex<FrameWriter>) -> MutexGuard<'_, FrameWriter> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads messages and hands them on, but for those that `take` keeps; until the end, which is handed on as well.
pub(super) fn listen(
    mut reader: FrameReader,
    events: &SyncSender<Event>,
    mut take: impl FnMut(Message, u32, &mut FrameReader) -> Result<Option<Message>, ColoError>,
) {
    loop {
        let next = reader.next().map_err(ColoError::from);
        let taken = next.and_then(|(message, payload_bytes)| take(message, payload_bytes, &mut reader));
        let (event, is_last) = match taken {
            Ok(None) => continue,
            Ok(Some(message)) => (Event::Message(Box::new(message)), false),
            Err(error) => (Event::Ended(error), true),
        };
        if events.send(event).is_err() || is_last {
            return;
        }
    }
}

/// The error of a greeting that somebody has ended.
pub(super) fn is_cancelled(error: &MigrateError) -> bool {
    match error {
        MigrateError::Transport(TransportError::Cancelled) => true,
        MigrateError::Lost { source } => transport::cancel::is_cancelled(source),
        _ => false,
    }
}
