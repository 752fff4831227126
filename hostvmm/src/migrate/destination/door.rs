//! Who is let in: [`Door`], the destination's listener on a thread of its own, and [`Fate`], what it says about the guest.
//!
//! ```text
//! nobody yet ── main channel ─► one migration: its page channels, its queries; everybody else is refused
//! ```
//!
//! The door stays open until the source has said farewell. A source that has lost its main channel after the commit asks
//! here, and a door that was closed would tell it that nobody runs the guest. Hence a migration that has succeeded without
//! a farewell leaves its door open, on a thread that nobody waits for, for as long as the process lives.

use std::io::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::migrate::clock::HostTime;
use crate::migrate::digest::SlotDigests;
use crate::migrate::error::MigrateError;
use crate::migrate::frames::{FrameReader, FrameWriter};
use crate::migrate::transport::{CancelToken, Channel, Handle, Listener, TransportError};
use crate::migrate::wire::{
    GuestState, HELLO_BYTES, Hello, Incoming, Message, Refusal, RefusalCode, Reply, Role, Session, VersionRange,
    Welcome,
};

/// How long a peer that was let in may take for a word.
const WORD: Duration = Duration::from_secs(5);

/// What has become of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Fate {
    /// Nothing is decided: the source may still take it back.
    #[default]
    Open,
    /// The commit is here, the guest is about to run.
    Committed,
    /// It runs here.
    Running,
    /// It runs here, and all pages that were missing have come.
    Whole(SlotDigests),
    /// It never ran here and never will.
    Discarded,
    /// It ran here, was stopped for want of pages, and never will again.
    Lost,
}

#[derive(Debug, Default)]
struct Inside {
    session: Option<Session>,
    /// Page channels that may come.
    page_channels: u16,
    /// Those that have.
    come: Vec<u16>,
    fate: Fate,
    /// When the source asked first.
    asked: Option<Instant>,
    /// Of the main channel.
    main: Option<Handle>,
}

/// The listener of a migration.
#[derive(Debug)]
pub(super) struct Door {
    inside: Arc<Mutex<Inside>>,
    channels: Receiver<Result<(Role, Channel), TransportError>>,
    closed: CancelToken,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Opens it.
    pub(super) fn open(mut listener: Listener) -> Result<Self, MigrateError> {
        let host = |source| MigrateError::Host { what: "open the door to a migration", source };
        let closed = CancelToken::new().map_err(host)?;
        let inside = Arc::new(Mutex::new(Inside::default()));
        let (sender, channels) = channel();
        let (shared, token) = (Arc::clone(&inside), closed.clone());
        let serve = move || serve(&mut listener, &shared, &sender, &token);
        let thread = std::thread::Builder::new().name("migration door".to_owned()).spawn(serve).map_err(host)?;
        Ok(Self { inside, channels, closed, thread: Some(thread) })
    }

    /// What closes it, and every channel that came through it.
    pub(super) fn token(&self) -> CancelToken {
        self.closed.clone()
    }

    /// The main channel of the first migration to come, however long that takes.
    pub(super) fn main_channel(&self) -> Result<Channel, MigrateError> {
        match self.channels.recv() {
            Ok(Ok((_, channel))) => Ok(channel),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(TransportError::Cancelled.into()),
        }
    }

    /// The `count` page channels that the offer spoke of.
    pub(super) fn page_channels(&self, count: u16) -> Result<Vec<Channel>, MigrateError> {
        (0..count)
            .map(|_| match self.channels.recv_timeout(WORD) {
                Ok(Ok((_, channel))) => Ok(channel),
                Ok(Err(error)) => Err(error.into()),
                Err(RecvTimeoutError::Timeout) => {
                    Err(MigrateError::Silent { what: "opened its page channels", after: WORD })
                }
                Err(RecvTimeoutError::Disconnected) => Err(TransportError::Cancelled.into()),
            })
            .collect()
    }

    /// Lets `count` page channels in.
    pub(super) fn expect_page_channels(&self, count: u16) {
        lock(&self.inside).page_channels = count;
    }

    /// The guest is to run here. Fails if it was discarded: a source that asked was told so.
    pub(super) fn commit(&self) -> bool {
        let mut inside = lock(&self.inside);
        let is_open = inside.fate == Fate::Open;
        if is_open {
            inside.fate = Fate::Committed;
        }
        is_open
    }

    /// What has become of the guest.
    pub(super) fn decide(&self, fate: Fate) {
        lock(&self.inside).fate = fate;
    }

    /// Leaves it open for a source that asks, but ends the main channel: that tells the source to ask.
    pub(super) fn leave_open(self) {
        if let Some(main) = lock(&self.inside).main.take() {
            main.shutdown();
        }
    }

    /// Closes it, and with it every channel.
    pub(super) fn close(mut self) {
        self.closed.cancel();
        if let Some(thread) = self.thread.take() {
            // It only waits for the token.
            let _ = thread.join();
        }
    }
}

impl Drop for Door {
    /// A migration whose thread panics is not taken further: its source sees the connection's end, and can ask.
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(main) = lock(&self.inside).main.take()
        {
            main.shutdown();
        }
    }
}

fn lock(inside: &Mutex<Inside>) -> MutexGuard<'_, Inside> {
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(
    listener: &mut Listener,
    inside: &Mutex<Inside>,
    channels: &Sender<Result<(Role, Channel), TransportError>>,
    closed: &CancelToken,
) {
    loop {
        let is_hello = |bytes: &[u8]| hello(bytes).map(|_| ()).map_err(|error| error.to_string());
        let (channel, opening) = match listener.accept_opening(HELLO_BYTES, is_hello, None, closed) {
            Ok(admitted) => admitted,
            Err(error) => {
                let _ = channels.send(Err(error));
                return;
            }
        };
        let Ok(hello) = hello(&opening) else { continue };
        // A peer that hangs up in the middle of its greeting is none.
        if let Ok(Some(channel)) = greet(channel, &hello, inside)
            && channels.send(Ok((hello.role, channel))).is_err()
        {
            // The migration is over; queries are still answered.
            lock(inside).page_channels = 0;
        }
    }
}

fn hello(bytes: &[u8]) -> Result<Hello, MigrateError> {
    let bytes = bytes.try_into().map_err(|_| MigrateError::lost(std::io::ErrorKind::UnexpectedEof.into()))?;
    Ok(Hello::decode(bytes)?)
}

/// Answers a hello. The channel, if it is one for the migration.
fn greet(mut channel: Channel, hello: &Hello, inside: &Mutex<Inside>) -> Result<Option<Channel>, MigrateError> {
    let received_at = HostTime::now();
    channel.set_deadline(Some(Instant::now() + WORD));
    let version = match admit(hello, inside, &channel) {
        Ok(version) => version,
        Err(refusal) => {
            channel.write_all(&Reply::Refusal(refusal).encode()).map_err(MigrateError::lost)?;
            return Ok(None);
        }
    };
    let welcome = Welcome { version, session: hello.session, received_at, sent_at: HostTime::now() };
    channel.write_all(&Reply::Welcome(welcome).encode()).map_err(MigrateError::lost)?;
    if hello.role == Role::Query {
        answer(channel, inside)?;
        return Ok(None);
    }
    channel.set_deadline(None);
    Ok(Some(channel))
}

/// The version to be spoken with a peer that may come in.
fn admit(hello: &Hello, inside: &Mutex<Inside>, channel: &Channel) -> Result<u16, Refusal> {
    let version =
        VersionRange::OURS.newest_common(hello.versions).map_err(|error| Refusal::new(RefusalCode::Version, error))?;
    let mut inside = lock(inside);
    match (hello.role, inside.session) {
        (Role::Main, None) => {
            inside.session = Some(hello.session);
            inside.main = Some(channel.handle());
        }
        (Role::Main, Some(_)) => {
            return Err(Refusal::new(RefusalCode::Busy, "another migration has come first"));
        }
        (Role::Pages(index), Some(session)) if session == hello.session => {
            if index == 0 || index > inside.page_channels || inside.come.contains(&index) {
                return Err(Refusal::new(RefusalCode::Session, "no such page channel is expected"));
            }
            inside.come.push(index);
        }
        (Role::Query, Some(session)) if session == hello.session => {}
        (Role::Colo, _) => {
            return Err(Refusal::new(RefusalCode::Session, "this side waits for a migration, not for a COLO primary"));
        }
        (Role::Pages(_) | Role::Query, _) => {
            return Err(Refusal::new(RefusalCode::Session, "no such migration is known here"));
        }
    }
    Ok(version)
}

/// Answers a query. Who asks has given its main channel up, so what is not decided is decided now: a commit that is still
/// on its way comes too late.
fn answer(channel: Channel, inside: &Mutex<Inside>) -> Result<(), MigrateError> {
    let (reader, writer) = channel.split();
    let mut order = Incoming::new(Role::Query);
    let (query, payload_bytes) = FrameReader::new(reader).next()?;
    order.accept(&query, payload_bytes)?;
    let state = {
        let mut inside = lock(inside);
        let first = *inside.asked.get_or_insert_with(Instant::now);
        // Pages that are on their way may be all that is missing. Where the network does not tell that no more come, this does.
        let is_late = inside.fate == Fate::Committed && first.elapsed() >= WORD;
        if inside.fate == Fate::Open {
            inside.fate = Fate::Discarded;
        }
        if (is_late || inside.fate == Fate::Discarded)
            && let Some(main) = inside.main.take()
        {
            main.shutdown();
        }
        match inside.fate {
            Fate::Open | Fate::Discarded => GuestState::Discarded,
            Fate::Committed => GuestState::Waiting,
            Fate::Running => GuestState::Running,
            Fate::Whole(digests) => GuestState::Whole { digests },
            Fate::Lost => GuestState::Lost,
        }
    };
    let answer = Message::Answer(state);
    order.sent(&answer)?;
    let mut writer = FrameWriter::new(writer);
    writer.send(&answer)
}
