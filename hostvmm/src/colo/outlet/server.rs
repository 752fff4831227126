//! An outlet that sides reach by its socket: [`OutletServer`], an [`Arbiter`] and a [`Sink`] behind threads.
//!
//! One thread accepts, each connection has one. They hold nothing that outlives them: a side that comes back on another connection
//! is the same side. With as many connections as there may be the oldest makes room, for a side that stands still must not keep
//! the other one out.

use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::address::OutletAddress;
use super::arbiter::{Arbiter, Claimant, Judgement};
use super::sink::{Accepted, Sink};
use super::wire::{Answer, Request, write};
use super::{OutletError, Record};
use crate::colo::Side;
use crate::colo::output::Positions;
use crate::migrate::transport::unix::{SocketError, SocketFile, bind};

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 16;
/// How long a side may leave an answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The outlet cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OutletServerError {
    /// There is no socket to be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The host refused a thread or a pipe.
    #[error("cannot start the outlet at {address}: {source}")]
    Start {
        /// Where.
        address: OutletAddress,
        /// Why.
        source: io::Error,
    },
}

/// What the outlet knows, and where it lets records go.
struct Core {
    arbiter: Arbiter,
    sink: Box<dyn Sink>,
}

impl Core {
    fn serve(&mut self, request: Request) -> Result<Positions, OutletError> {
        match request {
            Request::Claim(claimant, claim) => self.arbiter.claim(claimant, claim),
            Request::Deliver { claimant, epoch, records } => self.deliver(claimant, epoch, records),
        }
    }

    fn deliver(&mut self, claimant: Claimant, epoch: u64, records: Vec<Record>) -> Result<Positions, OutletError> {
        self.arbiter.admit(claimant, epoch)?;
        let side = self.arbiter.owner().ok_or(OutletError::NotClaimed)?;
        let mut next = self.arbiter.clone();
        let mut accepted = Vec::new();
        let mut gap = None;
        for record in records {
            match next.judge(&record) {
                Ok(Judgement::Duplicate) => {}
                Ok(Judgement::New) => {
                    next.accept(&record);
                    accepted.push(Accepted { epoch, side, record });
                }
                Err(error) => {
                    gap = Some(error);
                    break;
                }
            }
        }
        if !accepted.is_empty() {
            self.sink.take(accepted).map_err(OutletError::Unreachable)?;
        }
        self.arbiter = next;
        gap.map_or(Ok(self.arbiter.accepted()), Err)
    }
}

struct Shared {
    core: Mutex<Core>,
    closing: AtomicBool,
    /// The oldest first.
    connections: Mutex<Vec<(u64, UnixStream)>>,
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, Vec<(u64, UnixStream)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An outlet at a socket; closed and removed when this is dropped.
pub struct OutletServer {
    shared: Arc<Shared>,
    wake: UnixStream,
    accepting: Option<JoinHandle<()>>,
}

impl OutletServer {
    /// Opens an outlet at `address`, nobody's yet, that lets records go to `sink`.
    ///
    /// # Errors
    /// [`OutletServerError`].
    pub fn start(address: &OutletAddress, sink: Box<dyn Sink>) -> Result<Self, OutletServerError> {
        let failed = |source| OutletServerError::Start { address: address.clone(), source };
        let (socket, file) = bind(address.path())?;
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true).map_err(failed)?;
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let shared = Arc::new(Shared {
            core: Mutex::new(Core { arbiter: Arbiter::default(), sink }),
            closing: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accept = Accept { listener, _file: file, woken, shared: Arc::clone(&shared) };
        let accepting =
            std::thread::Builder::new().name("outlet".to_owned()).spawn(move || accept.run()).map_err(failed)?;
        Ok(Self { shared, wake, accepting: Some(accepting) })
    }

    /// The current epoch; 0 before the first claim.
    pub fn epoch(&self) -> u64 {
        self.shared.core().arbiter.epoch()
    }

    /// The side that owns the outlet.
    pub fn owner(&self) -> Option<Side> {
        self.shared.core().arbiter.owner()
    }

    /// How many records of each stream were accepted.
    pub fn accepted(&self) -> Positions {
        self.shared.core().arbiter.accepted()
    }
}

impl Drop for OutletServer {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // A peer that is gone already is as good.
        let _ = self.wake.shutdown(std::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            // It does not panic; if it did, there would be nobody to tell.
            let _ = accepting.join();
        }
    }
}

struct Accept {
    listener: UnixListener,
    _file: SocketFile,
    woken: UnixStream,
    shared: Arc<Shared>,
}

impl Accept {
    fn run(self) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        let mut ids = 0..;
        while !self.shared.closing.load(Ordering::SeqCst) {
            let mut waiting = [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.woken, PollFlags::IN)];
            if poll(&mut waiting, None).is_err() || !waiting[0].revents().contains(PollFlags::IN) {
                continue;
            }
            match self.listener.accept() {
                Ok((stream, _)) => threads.extend(ids.next().and_then(|id| self.welcome(stream, id))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // No descriptor left: the others go on.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
            threads.retain(|thread| !thread.is_finished());
        }
        for (_, stream) in self.shared.connections().drain(..) {
            shut(&stream);
        }
        for thread in threads {
            // As above.
            let _ = thread.join();
        }
    }

    /// What the system refuses here is this one connection.
    fn welcome(&self, stream: UnixStream, id: u64) -> Option<JoinHandle<()>> {
        stream.set_nonblocking(false).ok()?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT)).ok()?;
        let ours = stream.try_clone().ok()?;
        let mut connections = self.shared.connections();
        if connections.len() >= MAX_CONNECTIONS {
            let (_, oldest) = connections.remove(0);
            shut(&oldest);
        }
        connections.push((id, ours));
        drop(connections);
        let shared = Arc::clone(&self.shared);
        let spawned = std::thread::Builder::new().name("outlet-side".to_owned()).spawn(move || {
            converse(&shared, &stream);
            shut(&stream);
            shared.connections().retain(|(other, _)| *other != id);
        });
        if spawned.is_err() {
            self.shared.connections().retain(|(other, _)| *other != id);
        }
        spawned.ok()
    }
}

/// Answers until the side leaves, or says what cannot be understood.
fn converse(shared: &Shared, mut stream: &UnixStream) {
    let Ok(reader) = stream.try_clone() else { return };
    let mut reader = BufReader::new(reader);
    while let Ok(Some(request)) = Request::read(&mut reader) {
        let answer = Answer::of(shared.core().serve(request));
        if write(&mut stream, &answer.encode()).is_err() {
            return;
        }
    }
}

fn shut(stream: &UnixStream) {
    // A connection that is gone already is as good.
    let _ = stream.shutdown(std::net::Shutdown::Both);
}
