//! Where a copy goes or comes from: a file, or a peer at a TCP or unix address ([`Endpoint`]), and the sockets for it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// A peer's address: `tcp:PORT` (on the loopback), `tcp:HOST:PORT` or `unix:PATH`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// Host and port.
    Tcp(String, u16),
    /// Path of a socket.
    Unix(PathBuf),
}

/// Text that is no [`Endpoint`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{text:?} is no address; write tcp:PORT, tcp:HOST:PORT or unix:PATH")]
pub struct EndpointError {
    /// The text.
    pub text: String,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = || EndpointError { text: text.to_owned() };
        match text.split_once(':').ok_or_else(wrong)? {
            ("unix", path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            ("tcp", rest) => {
                let (host, port) = rest.rsplit_once(':').unwrap_or(("", rest));
                let host =
                    if host.is_empty() { IpAddr::from(Ipv4Addr::LOCALHOST).to_string() } else { host.to_owned() };
                Ok(Self::Tcp(host, port.parse().map_err(|_| wrong())?))
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A destination: a file, or a peer that listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// A file of the region's size.
    File(PathBuf),
    /// A peer.
    Peer(Endpoint),
}

impl FromStr for Destination {
    type Err = EndpointError;

    /// Text that starts with `tcp:` or `unix:` is a peer, anything else a file.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.starts_with("tcp:") || text.starts_with("unix:") {
            text.parse().map(Self::Peer)
        } else {
            Ok(Self::File(text.into()))
        }
    }
}

/// A connection, of either kind.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(super) fn connect(endpoint: &Endpoint, timeout: Duration) -> io::Result<Self> {
        let stream = match endpoint {
            Endpoint::Tcp(host, port) => {
                let stream = TcpStream::connect_timeout(&resolve(host, *port)?, timeout)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
            Endpoint::Unix(path) => Self::Unix(UnixStream::connect(path)?),
        };
        stream.set_timeout(timeout)?;
        Ok(stream)
    }

    /// A peer that is silent for `timeout` is gone.
    fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(timeout)).and(stream.set_write_timeout(Some(timeout))),
            Self::Unix(stream) => stream.set_read_timeout(Some(timeout)).and(stream.set_write_timeout(Some(timeout))),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
        }
    }
}

/// A bound socket that waits for one peer. A unix socket's file goes away with it.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    pub(super) fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(host, port) => TcpListener::bind(resolve(host, *port)?).map(Self::Tcp),
            Endpoint::Unix(path) => Ok(Self::Unix(UnixListener::bind(path)?, path.clone())),
        }
    }

    /// The address bound: of port 0, the port that the host chose.
    pub(super) fn endpoint(&self) -> io::Result<Endpoint> {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map(|address| Endpoint::Tcp(address.ip().to_string(), address.port()))
            }
            Self::Unix(_, path) => Ok(Endpoint::Unix(path.clone())),
        }
    }

    pub(super) fn accept(&self, timeout: Duration) -> io::Result<Stream> {
        let stream = match self {
            Self::Tcp(listener) => Stream::Tcp(listener.accept()?.0),
            Self::Unix(listener, _) => Stream::Unix(listener.accept()?.0),
        };
        stream.set_timeout(timeout)?;
        Ok(stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Best effort: the socket's file may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let none = || io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    (host, port).to_socket_addrs()?.next().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let tcp = |host: &str, port| Ok(Endpoint::Tcp(host.to_owned(), port));
        assert_eq!("tcp:4321".parse(), tcp("127.0.0.1", 4321));
        assert_eq!("tcp::4321".parse(), tcp("127.0.0.1", 4321));
        assert_eq!("tcp:example:1".parse(), tcp("example", 1));
        assert_eq!("tcp:[::1]:1".parse(), tcp("[::1]", 1));
        assert_eq!("unix:/a:b".parse(), Ok(Endpoint::Unix("/a:b".into())));
        for wrong in ["", "tcp:", "tcp:host:", "tcp:70000", "unix:", "udp:1", "4321"] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
        assert_eq!("copy".parse(), Ok(Destination::File("copy".into())));
        assert_eq!("tcp:1".parse(), Ok(Destination::Peer(Endpoint::Tcp("127.0.0.1".to_owned(), 1))));
    }
}
