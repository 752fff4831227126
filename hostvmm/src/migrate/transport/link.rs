//! The descriptors under a channel: [`Link`] reads and writes them, waits where they are not ready, and is shut down by
//! anybody who holds it.
//!
//! They are non-blocking; a call that cannot go on waits in poll(2) for the descriptor, the link's own token, the
//! migration's token and its time limit. So another thread's [`Link::shutdown`] ends it at once, whatever is underneath.
//! What is said after the migration was cancelled has a time of its own ([`Link::part`]).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, sockopt};

use super::cancel::{CancelToken, Waited, cancelled, is_cancelled, wait};
use super::exec::Child;

/// Socket buffers asked for. Large enough that neither side waits for the other's scheduling; what is in them when the guest
/// stops is part of its downtime.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// A time limit that is none.
const NEVER: u64 = u64::MAX;

/// One stream in both directions.
#[derive(Debug)]
pub(super) struct Link {
    input: OwnedFd,
    /// Where writing has a descriptor of its own, until it is finished. Only the writer locks it.
    output: Option<Mutex<Option<OwnedFd>>>,
    is_socket: bool,
    closed: CancelToken,
    cancel: CancelToken,
    /// The migration's token ends nothing any more: only last words are left to be said.
    is_parting: AtomicBool,
    read_timeout_ns: AtomicU64,
    write_timeout_ns: AtomicU64,
    /// When every call ends, whatever moves; in nanoseconds since `begun`.
    deadline_ns: AtomicU64,
    begun: Instant,
    /// When bytes last went or came, in nanoseconds since `begun`.
    moved_ns: AtomicU64,
    child: Option<Child>,
}

impl Link {
    /// Over a connected socket.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub(super) fn socket(socket: OwnedFd, cancel: &CancelToken) -> io::Result<Self> {
        let has_size = sockopt::set_socket_send_buffer_size_force(&socket, SOCKET_BUFFER_BYTES)
            .and_then(|()| sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES));
        // Without the right to that, the host's limits apply; those of TCP's own sizing are larger than those of the option,
        // which would end it. Smaller buffers are slower and nothing else.
        if has_size.is_err() && sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX) {
            let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
            let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
        }
        Self::new(socket, None, true, None, cancel)
    }

    /// Over an inherited descriptor: a socket, a pipe's end or a file.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub(super) fn inherited(fd: OwnedFd, cancel: &CancelToken) -> io::Result<Self> {
        let is_socket = sockopt::socket_type(&fd).is_ok();
        Self::new(fd, None, is_socket, None, cancel)
    }

    /// Over a child's standard input and output.
    ///
    /// # Errors
    /// What fcntl(2) says.
    pub(super) fn child(child: Child, input: OwnedFd, output: OwnedFd, cancel: &CancelToken) -> io::Result<Self> {
        Self::new(input, Some(output), false, Some(child), cancel)
    }

    fn new(
        input: OwnedFd,
        output: Option<OwnedFd>,
        is_socket: bool,
        child: Option<Child>,
        cancel: &CancelToken,
    ) -> io::Result<Self> {
        for fd in [Some(&input), output.as_ref()].into_iter().flatten() {
            let flags = rustix::fs::fcntl_getfl(fd)?;
            rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
        }
        let (read_timeout_ns, write_timeout_ns) = (AtomicU64::new(NEVER), AtomicU64::new(NEVER));
        let (closed, cancel) = (CancelToken::new()?, cancel.clone());
        let output = output.map(|fd| Mutex::new(Some(fd)));
        Ok(Self {
            input,
            output,
            is_socket,
            closed,
            cancel,
            is_parting: AtomicBool::new(false),
            read_timeout_ns,
            write_timeout_ns,
            deadline_ns: AtomicU64::new(NEVER),
            begun: Instant::now(),
            moved_ns: AtomicU64::new(0),
            child,
        })
    }

    /// Reads what is there, at least one byte; 0 is the end.
    pub(super) fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let count =
            self.retry(&self.input, PollFlags::IN, &self.read_timeout_ns, |fd| rustix::io::read(fd, &mut *bytes))?;
        if count == 0 && !bytes.is_empty() {
            self.check_child()?;
        }
        Ok(count)
    }

    /// As [`Self::read`], but where nothing is there `WouldBlock`.
    pub(super) fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        Ok(rustix::io::retry_on_intr(|| rustix::io::read(&self.input, &mut *bytes))?)
    }

    /// As [`Self::write_vectored`], but where nothing can be written `WouldBlock`.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        Ok(rustix::io::retry_on_intr(|| rustix::io::write(&self.input, bytes))?)
    }

    /// Writes some of `bytes`, at least one.
    pub(super) fn write_vectored(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = self.retry_send(|fd| rustix::io::writev(fd, bytes));
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.check_child()?;
                Err(error)
            }
            written => written,
        }
    }

    /// Does `operation` on `fd` as soon as it has `event`, for at most `timeout_ns` without any progress.
    fn retry<T>(
        &self,
        fd: &OwnedFd,
        event: PollFlags,
        timeout_ns: &AtomicU64,
        mut operation: impl FnMut(&OwnedFd) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        let mut deadline = None;
        loop {
            self.check()?;
            let last = self.deadline()?;
            match operation(fd) {
                Ok(value) => {
                    self.moved_ns.store(self.age_ns(), Ordering::Relaxed);
                    return Ok(value);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let timeout_ns = timeout_ns.load(Ordering::Relaxed);
                    if timeout_ns != NEVER && deadline.is_none() {
                        deadline = Instant::now().checked_add(Duration::from_nanos(timeout_ns));
                    }
                    let first = deadline.into_iter().chain(last).min();
                    if self.wait(fd, event, first)? == Waited::DeadlinePassed {
                        self.deadline()?;
                        let what = if event == PollFlags::IN { "sent nothing" } else { "took nothing" };
                        let silence = Duration::from_nanos(timeout_ns);
                        let text = format!("the other side has {what} for {silence:?}");
                        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                    }
                }
                Err(error) => {
                    // A peer that is gone because we shut the socket down ourselves is our doing.
                    self.check()?;
                    return Err(error.into());
                }
            }
        }
    }

    /// Does `operation` on what is written as soon as there is room.
    pub(super) fn retry_send<T>(&self, operation: impl FnMut(&OwnedFd) -> rustix::io::Result<T>) -> io::Result<T> {
        let Some(output) = &self.output else {
            return self.retry(&self.input, PollFlags::OUT, &self.write_timeout_ns, operation);
        };
        match &*output.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(fd) => self.retry(fd, PollFlags::OUT, &self.write_timeout_ns, operation),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Does `operation` on what is read as soon as there is something.
    pub(super) fn retry_receive<T>(&self, operation: impl FnMut(&OwnedFd) -> rustix::io::Result<T>) -> io::Result<T> {
        self.retry(&self.input, PollFlags::IN, &self.read_timeout_ns, operation)
    }

    /// Waits for `event` on the descriptor until `deadline`.
    pub(super) fn wait(&self, fd: impl AsFd, event: PollFlags, deadline: Option<Instant>) -> io::Result<Waited> {
        let mut polled = [PollFd::from_borrowed_fd(fd.as_fd(), event)];
        if self.is_parting.load(Ordering::Relaxed) {
            return wait(&mut polled, &[&self.closed], deadline);
        }
        let waited = wait(&mut polled, &[&self.closed, &self.cancel], deadline);
        match waited {
            // It may have begun to part meanwhile.
            Err(error) if is_cancelled(&error) => self.check().map(|()| Waited::Ready),
            waited => waited,
        }
    }

    /// An error once shut down or cancelled.
    pub(super) fn check(&self) -> io::Result<()> {
        let is_cancelled = self.cancel.is_cancelled() && !self.is_parting.load(Ordering::Relaxed);
        if self.closed.is_cancelled() || is_cancelled { Err(cancelled()) } else { Ok(()) }
    }

    /// The deadline, if there is one and it has not passed.
    fn deadline(&self) -> io::Result<Option<Instant>> {
        let deadline_ns = self.deadline_ns.load(Ordering::Relaxed);
        if deadline_ns == NEVER {
            return Ok(None);
        }
        if self.age_ns() >= deadline_ns {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the other side took too long"));
        }
        Ok(self.begun.checked_add(Duration::from_nanos(deadline_ns)))
    }

    /// Ends every call on the link, on both sides, now and later.
    pub(super) fn shutdown(&self) {
        self.closed.cancel();
        if self.is_socket {
            // It may be disconnected already.
            let _ = rustix::net::shutdown(&self.input, Shutdown::Both);
        }
        if let Some(child) = &self.child {
            child.kill();
        }
    }

    /// Tells the other side that nothing more comes, and waits for a child's end.
    pub(super) fn finish_writing(&self, deadline: Instant) -> io::Result<()> {
        if self.is_socket {
            rustix::net::shutdown(&self.input, Shutdown::Write)?;
        }
        if let Some(output) = &self.output {
            *output.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        match &self.child {
            Some(child) => child.finish(deadline, &[&self.closed, &self.cancel]),
            None => Ok(()),
        }
    }

    /// How long nothing has gone or come.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_nanos(self.age_ns().saturating_sub(self.moved_ns.load(Ordering::Relaxed)))
    }

    fn age_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long a peer may be silent, and how long it may take nothing.
    pub(super) fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) {
        let ns = |timeout: Option<Duration>| {
            timeout.map_or(NEVER, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(NEVER))
        };
        self.read_timeout_ns.store(ns(read), Ordering::Relaxed);
        self.write_timeout_ns.store(ns(write), Ordering::Relaxed);
    }

    /// When every call ends, however much moves: a peer that sends a byte now and then is not waited for. `None` is never.
    pub(super) fn set_deadline(&self, deadline: Option<Instant>) {
        let ns = |deadline: Instant| u64::try_from(deadline.saturating_duration_since(self.begun).as_nanos());
        let deadline_ns = deadline.map_or(NEVER, |deadline| ns(deadline).unwrap_or(NEVER));
        self.deadline_ns.store(deadline_ns, Ordering::Relaxed);
    }

    /// Lets calls go on for `limit` although the migration was cancelled.
    pub(super) fn part(&self, limit: Duration) {
        self.set_deadline(Some(Instant::now() + limit));
        self.is_parting.store(true, Ordering::Relaxed);
    }

    /// The descriptor that is read.
    pub(super) fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// A stream that ended because its command failed is the command's failure.
    fn check_child(&self) -> io::Result<()> {
        self.child.as_ref().map_or(Ok(()), |child| child.check_ended(&[&self.closed, &self.cancel]))
    }
}
