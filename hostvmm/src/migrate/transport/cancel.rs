//! How a blocked call is ended from another thread at once: [`CancelToken`], and [`wait`], the one place that blocks.
//!
//! Everything that waits here waits in poll(2) for what it wants *or* for the token's eventfd, so nothing polls in a loop
//! and no signal is needed. A token once cancelled stays so.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use thiserror::Error;

/// What a cancelled call's [`io::Error`] holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Ends whatever waits on it. Clones are the same token.
#[derive(Clone, Debug)]
pub struct CancelToken {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    is_cancelled: AtomicBool,
    event: OwnedFd,
}

impl CancelToken {
    /// A token that is not cancelled.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { is_cancelled: AtomicBool::new(false), event }) })
    }

    /// Ends every call that waits on the token, and every later one.
    pub fn cancel(&self) {
        self.shared.is_cancelled.store(true, Ordering::Release);
        // It can fail only when the counter is full: then the event is readable already.
        let _ = rustix::io::write(&self.shared.event, &1_u64.to_ne_bytes());
    }

    /// Whether it has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.shared.is_cancelled.load(Ordering::Acquire)
    }

    /// [`Cancelled`] as an [`io::Error`] if it has been cancelled.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> io::Result<()> {
        if self.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// Waits until cancelled or `deadline`: true if cancelled.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        loop {
            match wait(&mut [], &[self], Some(deadline)) {
                Err(error) if is_cancelled(&error) => return true,
                Ok(Waited::DeadlinePassed) => return self.is_cancelled(),
                // Nothing else is waited for; a failing poll(2) is no reason to go on early.
                Ok(Waited::Ready) | Err(_) => {}
            }
        }
    }
}

impl AsFd for CancelToken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

/// The error of a cancelled call. Its kind is not `Interrupted`, which `read_exact` would try again.
pub(crate) fn cancelled() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, Cancelled)
}

/// Whether `error` is that of a cancelled call.
pub fn is_cancelled(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Cancelled>())
}

/// Why [`wait`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waited {
    /// At least one descriptor has an event.
    Ready,
    /// None has one.
    DeadlinePassed,
}

/// Waits for an event on one of `fds`; their `revents` say which.
///
/// # Errors
/// [`Cancelled`] as soon as one of `tokens` is, else what poll(2) says.
pub(crate) fn wait<'a>(
    fds: &mut [PollFd<'a>],
    tokens: &[&'a CancelToken],
    deadline: Option<Instant>,
) -> io::Result<Waited> {
    loop {
        tokens.iter().try_for_each(|token| token.check())?;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let all = fds.iter().map(PollFd::clone);
        let mut all: Vec<PollFd<'a>> =
            all.chain(tokens.iter().map(|token| PollFd::new(*token, PollFlags::IN))).collect();
        match poll(&mut all, left.map(timespec).as_ref()) {
            Ok(0) => return Ok(Waited::DeadlinePassed),
            Ok(_) => {
                tokens.iter().try_for_each(|token| token.check())?;
                let mut is_ready = false;
                for (fd, polled) in fds.iter_mut().zip(&all) {
                    is_ready |= !polled.revents().is_empty();
                    *fd = polled.clone();
                }
                if is_ready {
                    return Ok(Waited::Ready);
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), tv_nsec: duration.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_wakes_when_another_thread_cancels() {
        let token = CancelToken::new().unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&mut [], &[&token], None));
            token.clone().cancel();
            let error = waiter.join().unwrap().unwrap_err();
            assert!(is_cancelled(&error) && error.kind() != io::ErrorKind::Interrupted);
        });
        assert!(token.wait_until(Instant::now()), "it stays cancelled");
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let token = CancelToken::new().unwrap();
        assert_eq!(wait(&mut [], &[&token], Some(Instant::now())).unwrap(), Waited::DeadlinePassed);
        assert!(!token.wait_until(Instant::now()));
    }
}
