//! How bytes get to the other side: addresses ([`Uri`]), [`connect`], [`Listener`], and the [`Channel`] that both give.
//!
//! - [`uri`]: addresses as QEMU writes them; `tcp`, `unix`, `inherited`, `exec`, `passing`: what each of them is;
//! - [`channel`]: reading and writing; `link`: the descriptors below; [`cancel`]: how a blocked call is ended;
//! - [`listener`]: who is let in; [`tls`]: how both sides prove who they are;
//! - [`pace`]: how fast bytes may go.
//!
//! Nothing here knows what the bytes mean: that is `wire`'s. `file:` is no channel: pages have their places there.

pub mod cancel;
pub mod channel;
mod exec;
mod inherited;
mod link;
pub mod listener;
pub mod pace;
mod passing;
mod tcp;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod unix;
pub mod uri;

use std::io;
use std::time::Instant;

use rustix::event::PollFlags;
use thiserror::Error;

pub use self::cancel::CancelToken;
pub use self::channel::{Channel, Handle, Reader, Writer};
pub use self::exec::CommandFailed;
use self::link::Link;
pub use self::listener::Listener;
pub use self::pace::Pacer;
pub use self::passing::FILES_MAX;
pub use self::tls::TlsCreds;
use self::tls::{CredentialsError, Handshake, Role, Step};
use self::unix::SocketError;
pub use self::uri::{FdAddress, Uri, UriError};

/// Why there is no channel.
#[derive(Debug, Error)]
pub enum TransportError {
    /// Nobody listens: the address is right and no process is there.
    #[error("nobody listens at {uri}: {source}")]
    Nobody {
        /// The address.
        uri: Uri,
        /// What the system said.
        source: io::Error,
    },
    /// No answer in time: nobody knows whether somebody is there.
    #[error("{what} {uri} in time")]
    Timeout {
        /// What did not happen.
        what: &'static str,
        /// The address.
        uri: Uri,
    },
    /// The caller's own wish.
    #[error("cancelled")]
    Cancelled,
    /// The socket's path.
    #[error(transparent)]
    Socket(SocketError),
    /// The credentials.
    #[error(transparent)]
    Credentials(CredentialsError),
    /// The other side was not convinced, or did not convince.
    #[error("no TLS with {uri}: {source}")]
    Tls {
        /// The address.
        uri: Uri,
        /// Why.
        source: io::Error,
    },
    /// TLS where it cannot be.
    #[error("{uri} cannot be used with TLS credentials; only tcp: and unix: can")]
    NoTls {
        /// The address.
        uri: Uri,
    },
    /// A server's credentials for a client, or a client's for a server.
    #[error("the credentials are of the wrong side for {uri}")]
    Role {
        /// The address.
        uri: Uri,
    },
    /// A second channel where there is but one.
    #[error("{uri} gives one channel only, and it is in use")]
    Single {
        /// The address.
        uri: Uri,
    },
    /// A file is no channel.
    #[error("{uri} is a file, not a channel")]
    File {
        /// The address.
        uri: Uri,
    },
    /// Anything else that the system says.
    #[error("cannot {what} {uri}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The address.
        uri: Uri,
        /// Why it failed.
        source: io::Error,
    },
}

impl TransportError {
    /// The error of what was tried at `uri`.
    fn of(what: &'static str, uri: &Uri, source: io::Error) -> Self {
        match source.kind() {
            _ if cancel::is_cancelled(&source) => Self::Cancelled,
            io::ErrorKind::TimedOut => Self::Timeout { what: "no answer from", uri: uri.clone() },
            _ => Self::Io { what, uri: uri.clone(), source },
        }
    }

    /// Whether it is certain that no process is at the address: none listens there.
    pub fn is_nobody(&self) -> bool {
        matches!(self, Self::Nobody { .. })
    }
}

/// Connects to `uri`, with `tls` only to a side that proves who it is.
///
/// # Errors
/// [`TransportError`]: [`TransportError::Timeout`] at `deadline`, [`TransportError::Cancelled`] as soon as `cancel` is. A
/// server that does not accept this side's certificate says so only afterwards, to the first read.
pub fn connect(
    uri: &Uri,
    tls: Option<&TlsCreds>,
    deadline: Instant,
    cancel: &CancelToken,
) -> Result<Channel, TransportError> {
    if let Some(tls) = tls {
        if !uri.takes_tls() {
            return Err(TransportError::NoTls { uri: uri.clone() });
        }
        if tls.role() != Role::Client {
            return Err(TransportError::Role { uri: uri.clone() });
        }
    }
    let link = match uri {
        Uri::Tcp { host, port } => tcp::connect(host, *port, deadline, cancel),
        Uri::Unix(path) | Uri::Fd(FdAddress::Passing(path)) => unix::connect(path, deadline, cancel),
        Uri::Fd(FdAddress::Inherited(_)) | Uri::Exec(_) => {
            let link = listener::open_single(uri, cancel);
            return link.map(Channel::plain).map_err(|source| TransportError::of("open", uri, source));
        }
        Uri::File { .. } => return Err(TransportError::File { uri: uri.clone() }),
    }
    .and_then(|socket| Link::socket(socket, cancel))
    .map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            TransportError::Nobody { uri: uri.clone(), source }
        }
        _ => TransportError::of("connect to", uri, source),
    })?;
    let Some(tls) = tls else { return Ok(Channel::plain(link)) };
    let host = if let Uri::Tcp { host, .. } = uri { Some(host.as_str()) } else { None };
    let mut handshake = Handshake::new(tls.connection(host).map_err(TransportError::Credentials)?);
    let failed = |source: io::Error| match source.kind() {
        _ if cancel::is_cancelled(&source) => TransportError::Cancelled,
        _ => TransportError::Tls { uri: uri.clone(), source },
    };
    loop {
        let event = match handshake.step(&link).map_err(failed)? {
            Step::Done => return Ok(Channel::encrypted(link, handshake.into_session())),
            Step::Read => PollFlags::IN,
            Step::Write => PollFlags::OUT,
        };
        // A peer that sends a byte now and then is always ready.
        let is_late = Instant::now() >= deadline;
        if is_late || link.wait(link.input(), event, Some(deadline)).map_err(failed)? == cancel::Waited::DeadlinePassed
        {
            return Err(TransportError::Timeout { what: "no TLS handshake with", uri: uri.clone() });
        }
    }
}
