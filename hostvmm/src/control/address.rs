//! Where a control socket is: [`Address`], `unix:PATH`, or `tcp:HOST:PORT` on this host.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// The address of a control socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A socket in the file system; only its owner may open it.
    Unix(PathBuf),
    /// A port of this host's loopback: there is no authentication, so no other address is taken.
    Tcp(SocketAddr),
}

/// Text that is no such address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// Neither of the two kinds.
    #[error("{text:?} is no control socket; write unix:PATH, or tcp:127.0.0.1:PORT")]
    Kind {
        /// What was given.
        text: String,
    },
    /// Not a loopback address.
    #[error(
        "{text:?}: whoever reaches a control socket owns the VM, so it is unix:PATH or a loopback address, like tcp:127.0.0.1:4444"
    )]
    NotLoopback {
        /// What was given.
        text: String,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let kind = || AddressError::Kind { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            // QEMU's own spelling has options behind the path; those that ask for what is done anyway are taken.
            let path = [",server=on,wait=off", ",server,nowait"]
                .into_iter()
                .find_map(|options| path.strip_suffix(options))
                .unwrap_or(path);
            return if path.is_empty() { Err(kind()) } else { Ok(Self::Unix(path.into())) };
        }
        let rest = text.strip_prefix("tcp:").ok_or_else(kind)?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(kind)?;
        let port: u16 = port.parse().map_err(|_| kind())?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = if host == "localhost" { "127.0.0.1" } else { host };
        let host: IpAddr = host.parse().map_err(|_| AddressError::NotLoopback { text: text.to_owned() })?;
        if host.is_loopback() {
            Ok(Self::Tcp(SocketAddr::new(host, port)))
        } else {
            Err(AddressError::NotLoopback { text: text.to_owned() })
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Accepts control connections; a socket file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlListener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl ControlListener {
    /// Listens at `address`. A socket file that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::AddrInUse`] where somebody listens there, or where the file is no socket.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let (socket, address) = match address {
            Address::Unix(path) => (Socket::Unix(bind_unix(path)?), address.clone()),
            Address::Tcp(at) => {
                let listener = TcpListener::bind(at)?;
                let at = listener.local_addr()?;
                (Socket::Tcp(listener), Address::Tcp(at))
            }
        };
        Ok(Self { socket, address })
    }

    /// Where it listens; a port of 0 has become the one that was free.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// The system's.
    pub fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Socket::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
        }
    }
}

impl std::os::fd::AsFd for ControlListener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(listener) => listener.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "there is a file of that name, and it is no socket"));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
        Err(_) => {}
    }
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file is made with the socket's own mode (unix(7), net/unix/af_unix.c): at no time can others open it.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// A control connection.
#[derive(Debug)]
pub enum Stream {
    /// Over a socket file.
    Unix(UnixStream),
    /// Over loopback.
    Tcp(TcpStream),
}

/// Does the same with either kind of stream.
macro_rules! either {
    ($stream:expr, $name:ident => $do:expr) => {
        match $stream {
            Stream::Unix($name) => $do,
            Stream::Tcp($name) => $do,
        }
    };
}

impl Stream {
    /// Connects to `address`.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Address::Tcp(at) => Self::Tcp(TcpStream::connect(at)?),
        })
    }

    /// The same connection once more.
    ///
    /// # Errors
    /// The system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// Bounds the wait for bytes; `None` waits for ever.
    ///
    /// # Errors
    /// The system's.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        either!(self, stream => stream.set_read_timeout(timeout))
    }

    /// Bounds the wait for a peer that does not read.
    ///
    /// # Errors
    /// The system's.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        either!(self, stream => stream.set_write_timeout(timeout))
    }

    /// Whoever reads from the connection finds its end; what is to be written is written.
    pub fn shutdown_read(&self) {
        // A connection that is gone already is as good.
        let _ = either!(self, stream => stream.shutdown(std::net::Shutdown::Read));
    }

    /// Ends the connection; whoever reads from it returns.
    pub fn shutdown(&self) {
        // A connection that is gone already is as good.
        let _ = either!(self, stream => stream.shutdown(std::net::Shutdown::Both));
    }
}

impl io::Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => stream.read(bytes))
    }
}

impl io::Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, stream => stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        either!(self, stream => stream.flush())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_what_others_cannot_reach_is_an_address() {
        let unix = |path: &str| Ok(Address::Unix(path.into()));
        assert_eq!("unix:/run/a".parse(), unix("/run/a"));
        assert_eq!("unix:/run/a,server=on,wait=off".parse(), unix("/run/a"));
        assert_eq!("tcp:localhost:4444".parse::<Address>().unwrap().to_string(), "tcp:127.0.0.1:4444");
        assert!("tcp:[::1]:4444".parse::<Address>().is_ok());
        for bad in ["", "unix:", "/run/a", "tcp:4444", "tcp:127.0.0.1:x", "tcp:127.0.0.1:70000"] {
            assert!(matches!(bad.parse::<Address>(), Err(AddressError::Kind { .. })), "{bad}");
        }
        for bad in ["tcp:0.0.0.0:1", "tcp::1", "tcp:192.168.0.1:1", "tcp:example.org:1"] {
            assert!(matches!(bad.parse::<Address>(), Err(AddressError::NotLoopback { .. })), "{bad}");
        }
    }

    #[test]
    fn a_socket_is_its_owners_alone_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let address = Address::Unix(path.clone());
        let listener = ControlListener::bind(&address).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ControlListener::bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        ControlListener::bind(&address).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(ControlListener::bind(&address).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
