//! Waiting for the other side: [`Listener`].
//!
//! ```text
//! connected ──► TLS handshake ──► opening bytes ──► admitted: a channel
//!      └────────────┴──────────────────┴── wrong, silent for too long, or too many: turned away
//! ```
//! All of it without blocking, for at most [`HALF_OPEN_MAX`] peers at once: a silent or hostile peer delays nobody, has cost a
//! few KiB until it is turned away, and the listener goes on listening for the right one. The oldest goes first when there
//! are too many, because the right one is done in a moment.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::cancel::{CancelToken, Waited, wait};
use super::channel::Channel;
use super::link::Link;
use super::tls::{Handshake, Role, Step, TlsCreds};
use super::unix::SocketFile;
use super::uri::{FdAddress, Uri, is_exposed};
use super::{TransportError, exec, inherited, tcp, unix};

/// Peers that have connected and not yet shown who they are.
pub const HALF_OPEN_MAX: usize = 8;

/// Time that a peer has for TLS handshake and opening bytes.
pub const OPENING_TIME: Duration = Duration::from_secs(5);

/// Peers turned away that are told of on standard error; more would let anybody fill a log.
const TOLD_MAX: u64 = 16;

/// Time that a listener's own name may take to be resolved.
const RESOLVE_TIME: Duration = Duration::from_secs(10);

/// What waits for the other side of a migration.
#[derive(Debug)]
pub struct Listener {
    uri: Uri,
    place: Place,
    tls: Option<TlsCreds>,
    half_open: Vec<HalfOpen>,
    turned_away: u64,
}

#[derive(Debug)]
enum Place {
    /// A socket, and its file where it has one.
    Socket { socket: OwnedFd, _file: Option<SocketFile> },
    /// One channel and no more; false once it was given.
    Single(bool),
}

/// A peer that has connected.
#[derive(Debug)]
struct HalfOpen {
    stage: Stage,
    opening: Vec<u8>,
    /// What it waits for.
    wants: Step,
    deadline: Instant,
}

#[derive(Debug)]
enum Stage {
    Handshake(Link, Handshake),
    Opening(Channel),
    /// Only while a stage is replaced.
    Gone,
}

impl Listener {
    /// Listens at `uri`; with `tls` every peer must prove who it is. Warns on standard error where other machines can reach it
    /// without.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn bind(uri: &Uri, tls: Option<&TlsCreds>) -> Result<Self, TransportError> {
        if let Some(tls) = tls {
            if !uri.takes_tls() {
                return Err(TransportError::NoTls { uri: uri.clone() });
            }
            if tls.role() != Role::Server {
                return Err(TransportError::Role { uri: uri.clone() });
            }
        }
        let failed = |source| TransportError::Io { what: "listen at", uri: uri.clone(), source };
        let mut bound = uri.clone();
        let place = match uri {
            Uri::Tcp { host, port } => {
                let nobody = CancelToken::new().map_err(failed)?;
                let deadline = Instant::now() + RESOLVE_TIME;
                let (socket, address) = tcp::bind(host, *port, deadline, &nobody).map_err(failed)?;
                if is_exposed(address.ip()) && tls.is_none() {
                    let _ = writeln!(
                        io::stderr(),
                        "warning: {uri} can be reached from other machines, and without TLS anybody may send a guest or read one"
                    );
                }
                bound = Uri::Tcp { host: address.ip().to_string(), port: address.port() };
                Place::Socket { socket, _file: None }
            }
            Uri::Unix(path) | Uri::Fd(FdAddress::Passing(path)) => {
                let (socket, file) = unix::bind(path).map_err(TransportError::Socket)?;
                Place::Socket { socket, _file: Some(file) }
            }
            Uri::Fd(FdAddress::Inherited(_)) | Uri::Exec(_) => Place::Single(true),
            Uri::File { .. } => return Err(TransportError::File { uri: uri.clone() }),
        };
        Ok(Self { uri: bound, place, tls: tls.cloned(), half_open: Vec::new(), turned_away: 0 })
    }

    /// Where it listens: of port 0, the port that the host chose.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Peers that were turned away so far.
    pub fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// The next peer's channel; with TLS, one whose certificate was accepted.
    ///
    /// # Errors
    /// [`TransportError::Timeout`] at `deadline`, [`TransportError::Cancelled`], or that nobody can come any more.
    pub fn accept(&mut self, deadline: Option<Instant>, cancel: &CancelToken) -> Result<Channel, TransportError> {
        self.accept_opening(0, |_| Ok(()), deadline, cancel).map(|(channel, _)| channel)
    }

    /// The next peer whose first `opening_bytes` bytes `admit` accepts: its channel, and those bytes. Others are turned away
    /// with the reason that `admit` gives, which is told on standard error.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn accept_opening(
        &mut self,
        opening_bytes: usize,
        mut admit: impl FnMut(&[u8]) -> Result<(), String>,
        deadline: Option<Instant>,
        cancel: &CancelToken,
    ) -> Result<(Channel, Vec<u8>), TransportError> {
        loop {
            self.take_single(deadline, cancel)?;
            if let Some(admitted) = self.advance(opening_bytes, &mut admit)? {
                return Ok(admitted);
            }
            self.wait(deadline, cancel)?;
            self.take_waiting(cancel)?;
        }
    }

    /// Waits until somebody comes, or somebody half open can go on or has run out of time.
    fn wait(&mut self, deadline: Option<Instant>, cancel: &CancelToken) -> Result<(), TransportError> {
        let first = self.half_open.iter().map(|peer| peer.deadline).chain(deadline).min();
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(1 + self.half_open.len());
        for peer in &self.half_open {
            let event = if peer.wants == Step::Write { PollFlags::OUT } else { PollFlags::IN };
            if let Some(link) = peer.stage.link() {
                fds.push(PollFd::from_borrowed_fd(link.input(), event));
            }
        }
        if let Place::Socket { socket, .. } = &self.place {
            fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
        }
        let waited = wait(&mut fds, &[cancel], first);
        match waited {
            Ok(Waited::DeadlinePassed) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                Err(TransportError::Timeout { what: "nobody has come to", uri: self.uri.clone() })
            }
            Ok(_) => Ok(()),
            Err(source) => Err(TransportError::of("wait at", &self.uri, source)),
        }
    }

    /// Accepts who waits. Nobody may be there any more.
    fn take_waiting(&mut self, cancel: &CancelToken) -> Result<(), TransportError> {
        loop {
            let Place::Socket { socket, .. } = &self.place else { return Ok(()) };
            let failed = |source| TransportError::of("accept a peer at", &self.uri, source);
            let accepted = match rustix::net::accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(accepted) => accepted,
                Err(Errno::AGAIN) => return Ok(()),
                // Errors of the connection, not of the listener (accept(2)).
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::NETDOWN | Errno::HOSTUNREACH) => continue,
                Err(error) => return Err(failed(error.into())),
            };
            if matches!(self.uri, Uri::Tcp { .. }) {
                tcp::tune(&accepted).map_err(failed)?;
            }
            let link = Link::socket(accepted, cancel).map_err(failed)?;
            let stage = match &self.tls {
                Some(tls) => {
                    let connection = tls.connection(None).map_err(TransportError::Credentials)?;
                    Stage::Handshake(link, Handshake::new(connection))
                }
                None => Stage::Opening(Channel::plain(link)),
            };
            if self.half_open.len() >= HALF_OPEN_MAX {
                let oldest = self.half_open.remove(0);
                drop(oldest);
                self.turn_away("too many peers are connecting");
            }
            let deadline = Instant::now() + OPENING_TIME;
            self.half_open.push(HalfOpen { stage, opening: Vec::new(), wants: Step::Read, deadline });
        }
    }

    /// The one channel of a URI that has no more.
    fn take_single(&mut self, deadline: Option<Instant>, cancel: &CancelToken) -> Result<(), TransportError> {
        let Place::Single(is_left) = &mut self.place else { return Ok(()) };
        if !std::mem::take(is_left) {
            // Until it is admitted it is half open; then it is somebody's.
            let is_given = self.half_open.is_empty();
            return if is_given { Err(TransportError::Single { uri: self.uri.clone() }) } else { Ok(()) };
        }
        let link = open_single(&self.uri, cancel).map_err(|source| TransportError::of("open", &self.uri, source))?;
        let far = Instant::now() + Duration::from_secs(365 * 86_400);
        let stage = Stage::Opening(Channel::plain(link));
        let deadline = deadline.unwrap_or(far);
        self.half_open.push(HalfOpen { stage, opening: Vec::new(), wants: Step::Read, deadline });
        Ok(())
    }

    /// Lets everybody half open go on; the first that is admitted.
    fn advance(
        &mut self,
        opening_bytes: usize,
        admit: &mut impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Option<(Channel, Vec<u8>)>, TransportError> {
        let mut at = 0;
        while at < self.half_open.len() {
            let peer = &mut self.half_open[at];
            let refusal = match peer.advance(opening_bytes) {
                Ok(Step::Done) => match admit(&peer.opening) {
                    Ok(()) => {
                        let peer = self.half_open.remove(at);
                        if let Stage::Opening(channel) = peer.stage {
                            return Ok(Some((channel, peer.opening)));
                        }
                        continue;
                    }
                    Err(reason) => io::Error::new(io::ErrorKind::InvalidData, reason),
                },
                Ok(_) if Instant::now() < peer.deadline => {
                    at += 1;
                    continue;
                }
                Ok(_) => io::Error::new(io::ErrorKind::TimedOut, "it has been silent for too long"),
                Err(error) => error,
            };
            drop(self.half_open.remove(at));
            if matches!(self.place, Place::Single(_)) {
                return Err(TransportError::of("use", &self.uri, refusal));
            }
            self.turn_away(&refusal.to_string());
        }
        Ok(None)
    }

    fn turn_away(&mut self, reason: &str) {
        self.turned_away += 1;
        if self.turned_away <= TOLD_MAX {
            let last = if self.turned_away == TOLD_MAX { " (no more will be told of)" } else { "" };
            // Nobody may be left to tell.
            let _ = writeln!(io::stderr(), "{}: a peer was turned away: {reason}{last}", self.uri);
        }
    }
}

impl HalfOpen {
    /// Goes on as far as possible without waiting.
    fn advance(&mut self, opening_bytes: usize) -> io::Result<Step> {
        if let Stage::Handshake(link, handshake) = &mut self.stage {
            self.wants = handshake.step(link)?;
            if self.wants != Step::Done {
                return Ok(self.wants);
            }
        }
        self.stage = match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Handshake(link, handshake) => Stage::Opening(Channel::encrypted(link, handshake.into_session())),
            stage => stage,
        };
        let Stage::Opening(channel) = &mut self.stage else { return Err(io::ErrorKind::NotConnected.into()) };
        self.wants = Step::Read;
        let mut filled = self.opening.len();
        self.opening.resize(opening_bytes.max(filled), 0);
        let result = loop {
            if filled >= opening_bytes {
                break Ok(Step::Done);
            }
            match channel.try_read(&mut self.opening[filled..]) {
                Ok(0) => break Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it left without a word")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(Step::Read),
                Err(error) => break Err(error),
            }
        };
        self.opening.truncate(filled);
        result
    }
}

impl Stage {
    fn link(&self) -> Option<&Link> {
        match self {
            Self::Handshake(link, _) => Some(link),
            Self::Opening(channel) => Some(channel.link()),
            Self::Gone => None,
        }
    }
}

/// The link of a URI that has only one.
pub(super) fn open_single(uri: &Uri, cancel: &CancelToken) -> io::Result<Link> {
    match uri {
        Uri::Exec(command) => exec::start(command, cancel),
        Uri::Fd(FdAddress::Inherited(number)) => Link::inherited(inherited::take(*number)?, cancel),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
