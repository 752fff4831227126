//! Setup: the channels of a migration, and what both sides agree on ([`Peer`]).
//!
//! What the destination says is read by a thread of its own and waits in a queue ([`Peer::receive`]), so that the source can
//! wait for it with a time limit, look for it between two batches, and never stands in the way of the destination's answers
//! while it sends.

use std::io::{Read as _, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::migrate::clock::{ClockOffset, HostTime};
use crate::migrate::error::MigrateError;
use crate::migrate::frames::{FrameReader, FrameWriter};
use crate::migrate::monitor::Monitor;
use crate::migrate::phase::Cancelled;
use crate::migrate::transport::tls::Role as TlsRole;
use crate::migrate::transport::{self, CancelToken, Channel, Handle, Reader, TlsCreds, TransportError, Uri};
use crate::migrate::wire::{
    Agreement, GuestState, HELLO_BYTES, Hello, Message, Offer, REPLY_BYTES, Reply, Return, Role, Session, VersionRange,
};

/// How long connecting, and then the greeting, may take.
const GREETING: Duration = Duration::from_secs(10);
/// How long someone who is told goodbye may take to listen.
const GOODBYE: Duration = Duration::from_millis(100);
/// How long a lost connection may take to say why it was lost.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Messages of the destination's that wait.
const QUEUE: usize = 64;

/// Where a destination is, and how to get there.
#[derive(Debug)]
pub(super) struct Address {
    uri: Uri,
    tls: Option<TlsCreds>,
    session: Session,
}

impl Address {
    /// Of `uri`, with the monitor's credentials.
    pub(super) fn new(uri: &Uri, monitor: &Monitor) -> Result<Self, MigrateError> {
        let parameters = monitor.parameters();
        let tls = parameters
            .tls_creds
            .map(|directory| TlsCreds::load(&directory, TlsRole::Client))
            .transpose()
            .map_err(TransportError::Credentials)?;
        let session = Session::random().map_err(|source| MigrateError::Host { what: "get random bytes", source })?;
        Ok(Self { uri: uri.clone(), tls, session })
    }

    /// A new channel to the destination, greeted by `deadline`.
    pub(super) fn open(
        &self,
        role: Role,
        deadline: Instant,
        cancel: &CancelToken,
    ) -> Result<(Channel, ClockOffset), MigrateError> {
        let mut channel = transport::connect(&self.uri, self.tls.as_ref(), deadline, cancel)?;
        channel.set_deadline(Some(deadline));
        let hello = Hello { versions: VersionRange::OURS, role, session: self.session, sent_at: HostTime::now() };
        let bytes: [u8; HELLO_BYTES] = hello.encode();
        channel.write_all(&bytes).map_err(MigrateError::lost)?;
        let mut reply = [0; REPLY_BYTES];
        channel.read_exact(&mut reply).map_err(MigrateError::lost)?;
        let arrived = HostTime::now();
        let clock = match Reply::decode(&reply)? {
            Reply::Welcome(welcome) => welcome.answers(&hello, arrived)?,
            Reply::Refusal(refusal) => return Err(MigrateError::NotWelcome(refusal)),
        };
        channel.set_deadline(None);
        Ok((channel, clock))
    }

    /// Asks what has become of the guest. Who must know by `deadline` has a moment at least.
    pub(super) fn ask(&self, deadline: Instant, cancel: &CancelToken) -> Result<GuestState, MigrateError> {
        let now = Instant::now();
        let deadline = deadline.clamp(now + LAST_WORDS, now + GREETING);
        let (channel, _) = self.open(Role::Query, deadline, cancel)?;
        channel.set_deadline(Some(deadline));
        let (reader, writer) = channel.split();
        let mut order = Return::new(Role::Query);
        order.sent(&Message::Query)?;
        FrameWriter::new(writer).send(&Message::Query)?;
        let (answer, _) = FrameReader::new(reader).next()?;
        order.accept(&answer)?;
        match answer {
            Message::Answer(state) => Ok(state),
            Message::Failure { text } => Err(MigrateError::Destination { text }),
            // The order lets nothing else pass.
            _ => Ok(GuestState::Waiting),
        }
    }

    pub(super) fn can_be_asked(&self) -> bool {
        matches!(self.uri, Uri::Tcp { .. } | Uri::Unix(_) | Uri::Fd(transport::FdAddress::Passing(_)))
    }
}

/// What the thread that reads has to tell.
#[derive(Debug)]
enum Event {
    Message(Message),
    Ended(MigrateError),
    /// Someone has cancelled.
    Cancelled,
}

/// The destination, as the source sees it.
#[derive(Debug)]
pub(super) struct Peer {
    writer: FrameWriter,
    events: Receiver<Event>,
    order: Return,
    /// The destination will say nothing more.
    has_ended: bool,
    /// Page channels, if there are any.
    pub(super) page_writers: Vec<FrameWriter>,
    handles: Handles,
    /// The destination's clock less ours.
    pub(super) clock: ClockOffset,
    /// From a question to its answer.
    pub(super) round_trip: Duration,
}

impl Peer {
    /// Greets the destination at `address`.
    pub(super) fn connect(address: &Address, monitor: &Monitor, cancel: &CancelToken) -> Result<Self, MigrateError> {
        let asked = Instant::now();
        let (channel, clock) = address.open(Role::Main, asked + GREETING, cancel)?;
        let round_trip = asked.elapsed();
        let handle = channel.handle();
        monitor.add_channel(handle.clone());
        let (reader, writer) = channel.split();
        let (sender, events) = sync_channel(QUEUE);
        monitor.add_wake({
            let sender = sender.clone();
            // A full queue wakes as well.
            move || drop(sender.try_send(Event::Cancelled))
        });
        let listener = thread::Builder::new().name("migrate peer".to_owned());
        listener
            .spawn(move || listen(reader, &sender))
            .map_err(|source| MigrateError::Host { what: "start a thread for the destination's answers", source })?;
        Ok(Self {
            writer: FrameWriter::new(writer),
            events,
            order: Return::new(Role::Main),
            has_ended: false,
            page_writers: Vec::new(),
            handles: Handles(vec![handle]),
            clock,
            round_trip,
        })
    }

    /// Makes the offer, and opens the page channels that it speaks of.
    pub(super) fn agree(
        &mut self,
        offer: Offer,
        address: &Address,
        monitor: &Monitor,
        cancel: &CancelToken,
    ) -> Result<Agreement, MigrateError> {
        let page_channels = offer.page_channels;
        self.send(&Message::Offer(Box::new(offer)))?;
        match self.receive("accepted the guest", GREETING)? {
            Message::Accept { .. } => {}
            Message::Refuse(mismatch) => return Err(MigrateError::Refused(mismatch)),
            other => return Err(self.unexpected(&other)),
        }
        for index in 1..=page_channels {
            let (channel, _) = address.open(Role::Pages(index), Instant::now() + GREETING, cancel)?;
            let handle = channel.handle();
            self.handles.0.push(handle.clone());
            monitor.add_channel(handle);
            self.page_writers.push(FrameWriter::new(channel.split().1));
        }
        Ok(self.order.agreement().expect("the destination has accepted"))
    }

    /// Sends a message on the main channel.
    pub(super) fn send(&mut self, message: &Message) -> Result<(), MigrateError> {
        self.order.sent(message)?;
        let sent = self.writer.send(message);
        sent.map_err(|error| self.explained(error))
    }

    /// Sends pages on the main channel.
    pub(super) fn send_pages(&mut self, message: &Message, payload: &[u8]) -> Result<(), MigrateError> {
        let sent = self.writer.send_pages(message, payload);
        sent.map_err(|error| self.explained(error))
    }

    /// Hands over descriptors, at the place where the destination waits for them.
    pub(super) fn send_files(&mut self, files: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), MigrateError> {
        self.writer.send_files(files)
    }

    /// The destination's next message, which it owes.
    ///
    /// # Errors
    /// [`MigrateError::Silent`] after `limit`, [`MigrateError::Destination`] where it has failed, [`MigrateError::Cancelled`].
    pub(super) fn receive(&mut self, what: &'static str, limit: Duration) -> Result<Message, MigrateError> {
        match self.events.recv_timeout(limit) {
            Ok(event) => self.judge(event),
            Err(RecvTimeoutError::Timeout) => Err(MigrateError::Silent { what, after: limit }),
            Err(RecvTimeoutError::Disconnected) => Err(MigrateError::lost(std::io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// The destination's next message, if there is one.
    pub(super) fn poll(&mut self) -> Result<Option<Message>, MigrateError> {
        match self.events.try_recv() {
            Ok(event) => self.judge(event).map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(MigrateError::lost(std::io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Bytes sent on the main channel.
    pub(super) fn sent(&self) -> u64 {
        self.writer.sent()
    }

    /// Bytes sent on page channels.
    pub(super) fn sent_on_page_channels(&self) -> u64 {
        self.page_writers.iter().map(FrameWriter::sent).sum()
    }

    /// Tells the destination that there will be no guest, if it listens.
    pub(super) fn abort(&mut self, why: &MigrateError) {
        self.handles.0.iter().for_each(|handle| handle.part(GOODBYE));
        let abort = Message::Abort { text: crate::migrate::wire::Text::new(why) };
        if self.order.sent(&abort).is_ok() {
            // A destination that does not hear it sees the connection's end.
            let _ = self.writer.send(&abort);
        }
    }

    /// Says the last word, and waits until it is on its way: a command that carries it may take its time.
    pub(super) fn farewell(&mut self, message: &Message) -> Result<(), MigrateError> {
        self.limit_writes(Some(GREETING));
        self.send(message)?;
        self.writer.finish(Instant::now() + GREETING)
    }

    /// Shuts all channels down.
    pub(super) fn hang_up(&self) {
        self.handles.0.iter().for_each(Handle::shutdown);
    }

    /// How long the destination may take nothing of what it is sent.
    pub(super) fn limit_writes(&self, limit: Option<Duration>) {
        self.handles.0.iter().for_each(|handle| handle.set_timeouts(None, limit));
    }

    /// That `message` makes no sense where it came.
    pub(super) fn unexpected(&self, message: &Message) -> MigrateError {
        crate::migrate::wire::WireError::Order { tag: message.tag(), state: "expecting something else" }.into()
    }

    /// `error`, or what the destination has said about it: a connection that is lost in sending may have failed for a
    /// reason that is waiting to be read.
    pub(super) fn explained(&mut self, error: MigrateError) -> MigrateError {
        if !error.is_lost() || self.has_ended {
            return error;
        }
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left).map(|event| self.judge(event)) {
                Ok(Err(said)) if !said.is_lost() => return said,
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return error,
            }
        }
    }

    fn judge(&mut self, event: Event) -> Result<Message, MigrateError> {
        match event {
            Event::Cancelled => Err(Cancelled.into()),
            Event::Ended(error) => {
                self.has_ended = true;
                Err(error)
            }
            Event::Message(message) => {
                self.order.accept(&message)?;
                match message {
                    Message::Failure { text } => Err(MigrateError::Destination { text }),
                    message => Ok(message),
                }
            }
        }
    }
}

/// The channels' handles. They are shut down in the end, which ends the thread that reads.
#[derive(Debug)]
struct Handles(Vec<Handle>);

impl Drop for Handles {
    fn drop(&mut self) {
        self.0.iter().for_each(Handle::shutdown);
    }
}

fn listen(reader: Reader, events: &SyncSender<Event>) {
    let mut reader = FrameReader::new(reader);
    loop {
        let (event, is_last) = match reader.next() {
            Ok((message, _)) => (Event::Message(message), false),
            Err(error) => (Event::Ended(error), true),
        };
        if events.send(event).is_err() || is_last {
            return;
        }
    }
}
