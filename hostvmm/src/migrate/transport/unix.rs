//! Unix sockets that only their owner may open: [`bind`], [`SocketFile`], [`connect`].

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

use super::cancel::{CancelToken, cancelled};
use super::uri::{SOCKET_PATH_MAX, fits_socket};

/// Peers that wait to be accepted.
const BACKLOG: i32 = 32;

/// Time between two tries at a listener whose queue is full, for which there is no event.
const FULL: Duration = Duration::from_millis(20);

/// Why there is no socket at a path.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A process listens there.
    #[error("a process listens on {path} already; choose another path", path = path.display())]
    Live {
        /// The path.
        path: PathBuf,
    },
    /// There is something else.
    #[error("{path} exists and is no socket; choose another path or remove it", path = path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path is too long.
    #[error("{path} is no path of a socket: it must have 1 to {SOCKET_PATH_MAX} bytes", path = path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A listening socket's file: goes away with this, if it is still the same file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The file itself, held so that its inode number is nobody else's.
    file: OwnedFd,
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |found: &fs::Metadata| {
            rustix::fs::fstat(&self.file).is_ok_and(|own| found.dev() == own.st_dev && found.ino() == own.st_ino)
        };
        if fs::symlink_metadata(&self.path).is_ok_and(|found| is_ours(&found)) {
            // Best effort: nobody is left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, which only its owner may open. A socket there that nobody listens on is replaced.
///
/// # Errors
/// [`SocketError`]; never removes anything but a dead socket.
pub fn bind(path: &Path) -> Result<(OwnedFd, SocketFile), SocketError> {
    let failed = |what| move |error: Errno| SocketError::Io { what, path: path.to_owned(), source: error.into() };
    let address = address(path)?;
    let socket = new_socket().map_err(failed("make a socket for"))?;
    // The file gets the socket's own mode less the umask (unix_bind_bsd() in the kernel): there is no moment in which others
    // may open it, as there would be with chmod(2) afterwards.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("protect"))?;
    match rustix::net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            remove_dead(path, &address)?;
            rustix::net::bind(&socket, &address)
        }
        bound => bound,
    }
    .map_err(failed("listen on"))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("find"))?;
    let file = SocketFile { path: path.to_owned(), file: made };
    if rustix::fs::fstat(&file.file).map_err(failed("find"))?.st_mode & 0o077 != 0 {
        // A kernel or file system that does it otherwise: nobody can have connected, for it does not listen yet.
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR).map_err(failed("protect"))?;
    }
    rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
    Ok((socket, file))
}

/// Removes a socket at `path` that nobody listens on.
fn remove_dead(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let io = |what| move |source| SocketError::Io { what, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(SocketError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at")(error)),
    }
    let probe = new_socket().map_err(|error| io("make a socket for")(error.into()))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(io("remove the dead socket")),
        Err(Errno::NOENT) => Ok(()),
        // A full queue, or a socket of another's: it is alive.
        _ => Err(SocketError::Live { path: path.to_owned() }),
    }
}

/// A socket connected to the listener at `path`.
///
/// # Errors
/// What connect(2) says; `TimedOut`; cancelled.
pub fn connect(path: &Path, deadline: Instant, cancel: &CancelToken) -> io::Result<OwnedFd> {
    let address = address(path).map_err(io::Error::other)?;
    loop {
        cancel.check()?;
        let socket = new_socket()?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::AGAIN) if Instant::now() >= deadline => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the listener takes nobody"));
            }
            Err(Errno::AGAIN) => {
                if cancel.wait_until((Instant::now() + FULL).min(deadline)) {
                    return Err(cancelled());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn address(path: &Path) -> Result<SocketAddrUnix, SocketError> {
    let wrong = || SocketError::Path { path: path.to_owned() };
    if !fits_socket(path) {
        return Err(wrong());
    }
    SocketAddrUnix::new(path).map_err(|_| wrong())
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_its_owner_s_alone_and_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (_socket, file) = bind(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_and_other_files_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let held = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::Live { .. })));
        assert!(path.exists());
        drop(held);
        fs::write(&path, "text").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"text");
    }

    #[test]
    fn a_dead_socket_is_replaced_and_another_s_file_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (dead, file) = bind(&path).unwrap();
        drop(dead);
        let alive = bind(&path).unwrap();
        drop(file);
        assert!(path.exists(), "the file is the new listener's");
        drop(alive);
        assert!(!path.exists());
    }
}
