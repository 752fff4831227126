//! A shell for the guest on the lab's own machine: [`Outside`] executes the lines that `lab-outside` sends.
//!
//! A channel is a virtio-serial port whose other end is a socket here, one line at a time ([`lab_init::outside`]). What a line has
//! started ends with the boot: each is a process group, which is killed when its channel's socket closes.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use lab_init::outside::{CHANNELS, FIRST_PORT, Kind, receive, send, send_all};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::Error;

/// Serves every channel until it is dropped.
#[derive(Debug)]
pub(crate) struct Outside {
    directory: PathBuf,
    channels: Vec<JoinHandle<()>>,
}

/// The ports of a guest that has channels.
pub(crate) fn ports() -> impl Iterator<Item = u8> {
    FIRST_PORT..FIRST_PORT + CHANNELS
}

/// The socket of a port in a work directory.
pub(crate) fn socket(directory: &Path, port: u8) -> PathBuf {
    directory.join(format!("outside{port}"))
}

impl Outside {
    /// Listens in `directory`; lines find programs in `path` before they look elsewhere.
    ///
    /// # Errors
    /// Where there are no sockets to be had.
    pub(crate) fn listen(directory: &Path, path: &Path) -> Result<Self, Error> {
        let mut channels = Vec::new();
        for port in ports() {
            let socket = socket(directory, port);
            let listener = UnixListener::bind(&socket).map_err(Error::file("listen at", &socket))?;
            let path = search_path(path);
            channels.push(thread::spawn(move || {
                // A channel that breaks ends with what it executes; the guest sees that its line did not.
                let _ = listener.accept().and_then(|(channel, _)| serve(&channel, &path));
            }));
        }
        Ok(Self { directory: directory.to_owned(), channels })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        for port in ports() {
            // QEMU may never have come.
            let _ = UnixStream::connect(socket(&self.directory, port));
        }
        for channel in self.channels.drain(..) {
            // It does not panic.
            let _ = channel.join();
        }
    }
}

/// `first`, then what this process searches.
fn search_path(first: &Path) -> OsString {
    let mut path = first.as_os_str().to_owned();
    if let Some(own) = std::env::var_os("PATH") {
        path.push(":");
        path.push(own);
    }
    path
}

/// Executes one line after the other.
fn serve(channel: &UnixStream, path: &OsString) -> io::Result<()> {
    let mut down = channel;
    while let Some((kind, bytes)) = receive(&mut down)? {
        let (Kind::Line, Ok(line)) = (kind, String::from_utf8(bytes)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no line to execute"));
        };
        let mut child = Command::new("/bin/sh")
            .args(["-c", &line])
            .env("PATH", path)
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let served = relay(&mut child, channel);
        if served.is_err() {
            kill(&mut child);
        }
        served?;
    }
    Ok(())
}

/// Carries the streams of a line, up to the guest's last word.
fn relay(child: &mut Child, channel: &UnixStream) -> io::Result<()> {
    let up = Arc::new(Mutex::new(channel.try_clone()?));
    let mut input = child.stdin.take();
    let streams = (child.stdout.take(), child.stderr.take());
    let (Some(mut output), Some(mut error)) = streams else { return Err(io::ErrorKind::BrokenPipe.into()) };
    let id = child.id();
    thread::scope(|scope| {
        let guest = scope.spawn(move || {
            let heard = hear(channel, &mut input, id);
            if heard.is_err() {
                kill_group(id);
            }
            heard
        });
        let frame = |kind| {
            let up = Arc::clone(&up);
            move |bytes: &[u8]| send(&mut *up.lock().unwrap_or_else(PoisonError::into_inner), kind, bytes)
        };
        let errors = scope.spawn({
            let frame = frame(Kind::Error);
            move || send_all(&mut error, frame)
        });
        let sent = send_all(&mut output, frame(Kind::Output));
        let sent = errors.join().expect("copying does not panic").and(sent);
        let status = child.wait()?;
        frame(Kind::Exit)(&[exit_code(status)])?;
        guest.join().expect("listening does not panic").and(sent)
    })
}

/// Gives the line of process group `id` its input, up to the guest's last word.
fn hear(mut channel: &UnixStream, input: &mut Option<ChildStdin>, id: u32) -> io::Result<()> {
    loop {
        match receive(&mut channel)? {
            Some((Kind::Input, bytes)) if bytes.is_empty() => *input = None,
            Some((Kind::Input, bytes)) => {
                // A line may end, or close its input, before the guest knows.
                if input.as_mut().is_some_and(|input| input.write_all(&bytes).is_err()) {
                    *input = None;
                }
            }
            Some((Kind::Hangup, _)) => kill_group(id),
            Some((Kind::End, _)) => return Ok(()),
            Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame out of turn")),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Kills what has not been waited for: after that its number may be another's.
fn kill(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        kill_group(child.id());
        let _ = child.wait();
    }
}

fn kill_group(id: u32) {
    if let Some(group) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // Gone already is as good.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// As shells do.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest on one channel is told by a line, given `input`: output, errors, exit status.
    fn execute(channel: &mut UnixStream, line: &str, input: &[u8]) -> (Vec<u8>, Vec<u8>, u8) {
        send(channel, Kind::Line, line.as_bytes()).unwrap();
        send(channel, Kind::Input, input).unwrap();
        send(channel, Kind::Input, &[]).unwrap();
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        loop {
            match receive(channel).unwrap().unwrap() {
                (Kind::Output, bytes) => output.extend(bytes),
                (Kind::Error, bytes) => errors.extend(bytes),
                (Kind::Exit, bytes) => {
                    send(channel, Kind::End, &[]).unwrap();
                    return (output, errors, bytes[0]);
                }
                (kind, _) => panic!("{kind:?}"),
            }
        }
    }

    #[test]
    fn lines_are_executed_one_after_the_other_with_their_streams_and_statuses() {
        let directory = tempfile::tempdir().unwrap();
        let outside = Outside::listen(directory.path(), Path::new("/first")).unwrap();
        let mut channel = UnixStream::connect(socket(directory.path(), FIRST_PORT)).unwrap();
        for input in [&b"some"[..], b"more"] {
            assert_eq!(execute(&mut channel, "cat; echo e >&2; exit 3", input), (input.to_vec(), b"e\n".to_vec(), 3));
        }
        let (path, _, status) = execute(&mut channel, "echo \"$PATH\"; kill -KILL $$", b"unread");
        assert!(path.starts_with(b"/first:") && status == 128 + 9, "{path:?} {status}");
        drop(channel);
        drop(outside);
    }

    #[test]
    fn a_line_that_nobody_waits_for_is_killed_and_its_channel_free() {
        let directory = tempfile::tempdir().unwrap();
        let outside = Outside::listen(directory.path(), Path::new("/first")).unwrap();
        let mut channel = UnixStream::connect(socket(directory.path(), FIRST_PORT)).unwrap();
        send(&mut channel, Kind::Line, b"sleep 3600 & sleep 3600").unwrap();
        send(&mut channel, Kind::Hangup, &[]).unwrap();
        assert_eq!(receive(&mut channel).unwrap(), Some((Kind::Exit, vec![128 + 9])));
        send(&mut channel, Kind::End, &[]).unwrap();
        assert_eq!(execute(&mut channel, "cat", b"again"), (b"again".to_vec(), Vec::new(), 0));
        drop(channel);
        drop(outside);
    }

    #[test]
    fn what_a_guest_has_started_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let outside = Outside::listen(directory.path(), Path::new("/first")).unwrap();
        let mut channel = UnixStream::connect(socket(directory.path(), FIRST_PORT)).unwrap();
        send(&mut channel, Kind::Line, b"echo $$; sleep 3600 & sleep 3600").unwrap();
        let Some((Kind::Output, id)) = receive(&mut channel).unwrap() else { panic!("no process id") };
        drop(channel);
        // Returns once the channel has, whose line would last an hour.
        drop(outside);
        let id = String::from_utf8(id).unwrap();
        assert!(!Path::new("/proc").join(id.trim()).exists());
    }
}
