//! `outside LINE`: executes a line of shell outside the guest, where the lab runs, with the standard streams and the exit status of
//! this program ([`lab_init::outside`]). 125: there is no outside, or no channel to it is free.
//!
//! It is two processes: one that the caller sees, and may kill with all of its group; and in a group of its own one that has the
//! channel, and tells the lab when the other is gone.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lab_init::outside::{CHANNELS, FIRST_PORT, Kind, receive, send, send_all};

/// The lab's status for what it cannot do itself.
const FAILED: u8 = 125;
/// The first argument of the process that holds the channel.
const HOLD: &str = "--hold";
/// How often it looks for the one that the caller sees.
const LOOK: Duration = Duration::from_millis(20);
/// How long a channel that was given back may be open yet.
const GIVEN_BACK: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let ended = match &arguments[..] {
        [line] => guarded(line),
        [flag, line] if flag == HOLD => execute(line.as_bytes()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "usage: outside LINE")),
    };
    match ended {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("outside: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Has the line executed by the process that holds the channel.
fn guarded(line: &OsStr) -> io::Result<u8> {
    let mut holder = Command::new(std::env::current_exe()?);
    let status = holder.arg(HOLD).arg(line).process_group(0).status()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED))
}

fn execute(line: &[u8]) -> io::Result<u8> {
    let parent = parent_id();
    let (mut channel, lock) = channel()?;
    send(&mut channel, Kind::Line, line)?;
    let up = Arc::new(Mutex::new(channel.try_clone()?));
    let input = Arc::clone(&up);
    std::thread::spawn(move || {
        let frame = |bytes: &[u8]| send(&mut *input.lock().unwrap_or_else(PoisonError::into_inner), Kind::Input, bytes);
        // A channel that is gone is noticed below.
        let _ = send_all(&mut io::stdin().lock(), frame).and_then(|()| frame(&[]));
    });
    let gone = Arc::clone(&up);
    std::thread::spawn(move || {
        while parent_id() == parent {
            std::thread::sleep(LOOK);
        }
        let _ = send(&mut *gone.lock().unwrap_or_else(PoisonError::into_inner), Kind::Hangup, &[]);
    });
    let status = loop {
        match receive(&mut channel)? {
            // What nobody reads is let go, as the line's own pipe would not: its status counts all the same.
            Some((Kind::Output, bytes)) => drop(io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush())),
            Some((Kind::Error, bytes)) => drop(io::stderr().write_all(&bytes)),
            Some((Kind::Exit, bytes)) => break bytes.first().copied().unwrap_or(FAILED),
            Some((kind, _)) => return Err(io::Error::other(format!("the lab says {kind:?}"))),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    // Held to the end, so that nothing follows.
    let mut up = up.lock().unwrap_or_else(PoisonError::into_inner);
    send(&mut *up, Kind::End, &[])?;
    std::fs::remove_file(lock)?;
    std::process::exit(status.into())
}

/// A channel that nobody uses, with the file that keeps others from it.
fn channel() -> io::Result<(File, String)> {
    for port in FIRST_PORT..FIRST_PORT + CHANNELS {
        let lock = format!("/tmp/outside{port}");
        match OpenOptions::new().write(true).create_new(true).open(&lock) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        }
        // Whoever had it last gives it back a moment before its end.
        let begun = Instant::now();
        return loop {
            match File::options().read(true).write(true).open(format!("/dev/vport0p{port}")) {
                Ok(channel) => break Ok((channel, lock)),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < GIVEN_BACK => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    std::fs::remove_file(&lock)?;
                    break Err(error);
                }
            }
        };
    }
    Err(io::Error::other("every channel is in use"))
}
