//! `tcp:`: names to addresses, connecting and listening.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::cancel::{CancelToken, Waited, is_cancelled, wait};

/// Peers that wait to be accepted.
const BACKLOG: i32 = 32;

// A peer whose machine is gone is noticed after 10 + 3 × 5 seconds without a byte.
const KEEP_IDLE: Duration = Duration::from_secs(10);
const KEEP_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_COUNT: u32 = 3;

/// The addresses of `host`. A name is looked up by a thread of its own, which is left behind when the caller cannot wait
/// for it: getaddrinfo(3) cannot be interrupted.
///
/// # Errors
/// Where there is none; `TimedOut`; cancelled.
pub(super) fn resolve(host: &str, port: u16, deadline: Instant, cancel: &CancelToken) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (found, addresses) = mpsc::channel();
    let done = CancelToken::new()?;
    let (name, finished) = (host.to_owned(), done.clone());
    std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
        let result = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        // Nobody may wait for it any more.
        let _ = found.send(result);
        finished.cancel();
    })?;
    match wait(&mut [PollFd::new(&done, PollFlags::IN)], &[cancel], Some(deadline))? {
        Waited::Ready => match addresses.recv() {
            Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
            Ok(Err(error)) => Err(error),
            _ => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address")),
        },
        Waited::DeadlinePassed => Err(io::Error::new(io::ErrorKind::TimedOut, "its name was not resolved in time")),
    }
}

/// A socket connected to the first of `host`'s addresses that answers.
///
/// # Errors
/// That of the last address; `TimedOut`; cancelled.
pub(super) fn connect(host: &str, port: u16, deadline: Instant, cancel: &CancelToken) -> io::Result<OwnedFd> {
    let mut last = None;
    for address in resolve(host, port, deadline, cancel)? {
        match connect_to(address, deadline, cancel) {
            Err(error) if !is_cancelled(&error) && Instant::now() < deadline => last = Some(error),
            ended => return ended,
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::TimedOut.into()))
}

fn connect_to(address: SocketAddr, deadline: Instant, cancel: &CancelToken) -> io::Result<OwnedFd> {
    let socket = socket(address)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => {
            if wait(&mut [PollFd::new(&socket, PollFlags::OUT)], &[cancel], Some(deadline))? == Waited::DeadlinePassed {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
            }
            sockopt::socket_error(&socket)??;
        }
        Err(error) => return Err(error.into()),
    }
    tune(&socket)?;
    Ok(socket)
}

/// A listening socket on the first of `host`'s addresses that can be had.
///
/// # Errors
/// That of the last address.
pub(super) fn bind(
    host: &str,
    port: u16,
    deadline: Instant,
    cancel: &CancelToken,
) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in resolve(host, port, deadline, cancel)? {
        match bind_to(address) {
            Ok(socket) => {
                let bound = rustix::net::getsockname(&socket)?.try_into().map_err(io::Error::from)?;
                return Ok((socket, bound));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_to(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(address)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// No delay for small messages, and notice of a peer that has vanished.
pub(super) fn tune(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEP_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEP_COUNT)?;
    Ok(())
}
