//! `exec:COMMAND`: a channel over the standard input and output of `/bin/sh -c COMMAND` ([`Child`]).
//!
//! The command's standard error is ours. It runs in a process group of its own, which is killed as a whole when the channel
//! is shut down or dropped, and it is always waited for: nothing of it stays behind.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use thiserror::Error;

use super::cancel::{CancelToken, Waited, cancelled, wait};
use super::link::Link;

/// How long a command whose stream has ended may take to end itself before its status is of no interest.
const END: Duration = Duration::from_secs(2);

/// How a command failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the command {command:?} {}", ended(*.status))]
pub struct CommandFailed {
    /// The command.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(127), _) => "was not found (exit status 127)".to_owned(),
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => format!("ended: {status}"),
    }
}

/// A running command.
#[derive(Debug)]
pub(super) struct Child {
    command: String,
    pid: Pid,
    /// Readable once it has ended.
    exit: OwnedFd,
    process: Mutex<Process>,
}

#[derive(Debug)]
struct Process {
    child: std::process::Child,
    /// Its end, once waited for: its process number is nobody's from then on.
    status: Option<ExitStatus>,
}

/// Starts `command` and gives the link to it.
///
/// # Errors
/// Where the shell cannot be started.
pub(super) fn start(command: &str, cancel: &CancelToken) -> io::Result<Link> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .process_group(0)
        .spawn()?;
    let pid = Pid::from_child(&child);
    let pipes = child.stdout.take().zip(child.stdin.take());
    let opened = pidfd_open(pid, PidfdFlags::empty());
    let process = Mutex::new(Process { child, status: None });
    let kill = |process: &Mutex<Process>| kill(pid, &mut lock(process));
    let exit = opened.inspect_err(|_| kill(&process))?;
    let child = Child { command: command.to_owned(), pid, exit, process };
    let (output, input) = pipes.ok_or(io::ErrorKind::BrokenPipe)?;
    Link::child(child, output.into(), input.into(), cancel)
}

/// Kills the group of a process that has not been waited for, and waits for it.
fn kill(pid: Pid, process: &mut Process) {
    if process.status.is_none() {
        // The group may be gone already.
        let _ = kill_process_group(pid, Signal::KILL);
        process.status = process.child.wait().ok();
    }
}

/// A status is a value that is whole at any time.
fn lock(process: &Mutex<Process>) -> MutexGuard<'_, Process> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Child {
    /// Kills the command and what it started, and waits for it.
    pub(super) fn kill(&self) {
        kill(self.pid, &mut lock(&self.process));
    }

    /// Waits for the end of a command whose standard input is closed; past `deadline` it is killed.
    ///
    /// # Errors
    /// [`CommandFailed`] unless its status is 0; `TimedOut`; cancelled.
    pub(super) fn finish(&self, deadline: Instant, tokens: &[&CancelToken]) -> io::Result<()> {
        let waited = wait(&mut [PollFd::new(&self.exit, PollFlags::IN)], tokens, Some(deadline));
        match waited {
            Ok(Waited::Ready) => self.status().map_or(Ok(()), |status| self.judge(status)),
            Ok(Waited::DeadlinePassed) => {
                self.kill();
                let text = format!("the command {:?} did not end after its input ended, and was killed", self.command);
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Err(error) => {
                self.kill();
                Err(error)
            }
        }
    }

    /// Whether the command has failed, now that its stream has ended. Once one of `tokens` is cancelled it is not asked.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub(super) fn check_ended(&self, tokens: &[&CancelToken]) -> io::Result<()> {
        match wait(&mut [PollFd::new(&self.exit, PollFlags::IN)], tokens, Some(Instant::now() + END)) {
            Ok(Waited::Ready) => match self.status() {
                Some(status) => self.judge(status),
                None => Err(cancelled()),
            },
            _ => Ok(()),
        }
    }

    /// How it ended; it has, so this does not block.
    fn status(&self) -> Option<ExitStatus> {
        let mut process = lock(&self.process);
        if process.status.is_none() {
            process.status = process.child.wait().ok();
        }
        process.status
    }

    fn judge(&self, status: ExitStatus) -> io::Result<()> {
        if status.success() {
            return Ok(());
        }
        Err(io::Error::other(CommandFailed { command: self.command.clone(), status }))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
