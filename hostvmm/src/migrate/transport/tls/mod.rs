//! TLS 1.3 in both directions, each side proving who it is: [`TlsCreds`], [`keygen()`], and the session under a channel.
//!
//! A rustls connection is one object for both directions, and here one thread reads while another writes. So it is locked
//! for encrypting and decrypting only, never while a socket is waited for: [`Incoming`] reads ciphertext first and then
//! locks, [`Outgoing`] encrypts under the lock and then writes. Only [`Outgoing`] writes to the socket, so records stay in
//! order. Sessions are not resumed and no ticket is sent.

mod credentials;
mod keygen;

use std::io::{self, IoSlice, Read as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::Connection;

pub use self::credentials::{CredentialsError, Role, TlsCreds};
pub use self::keygen::{KeygenError, keygen};
use super::link::Link;

/// Bytes that a peer may send before it has proven who it is: a chain of a few large certificates.
const HANDSHAKE_MAX: usize = 64 << 10;

/// Ciphertext read at a time: some records.
const READ_BYTES: usize = 256 << 10;

/// Plaintext encrypted at a time, at most.
const WRITE_BYTES: usize = 256 << 10;

/// A handshake that is under way; it never blocks.
#[derive(Debug)]
pub(super) struct Handshake {
    connection: Box<Connection>,
    unsent: Vec<u8>,
    received: usize,
}

/// What a handshake waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Nothing: it is done.
    Done,
    /// The peer's bytes.
    Read,
    /// Room for ours.
    Write,
}

impl Handshake {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection: Box::new(connection), unsent: Vec::new(), received: 0 }
    }

    /// Goes on as far as the descriptor lets it.
    ///
    /// # Errors
    /// The peer's fault or refusal, in words; `UnexpectedEof`.
    pub(super) fn step(&mut self, link: &Link) -> io::Result<Step> {
        loop {
            drain(&mut self.connection, &mut self.unsent)?;
            while !self.unsent.is_empty() {
                match link.try_write(&self.unsent) {
                    Ok(count) => drop(self.unsent.drain(..count)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Write),
                    Err(error) => return Err(error),
                }
            }
            if !self.connection.is_handshaking() {
                return Ok(Step::Done);
            }
            let mut bytes = [0; 4096];
            let count = match link.try_read(&mut bytes) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it left during the TLS handshake")),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Read),
                Err(error) => return Err(error),
            };
            self.received += count;
            if self.received > HANDSHAKE_MAX {
                let text = format!("more than {HANDSHAKE_MAX} bytes of TLS handshake");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            let mut fresh = &bytes[..count];
            while !fresh.is_empty() {
                self.connection.read_tls(&mut fresh)?;
                if let Err(error) = self.connection.process_new_packets() {
                    // The peer is told why, if it takes that at once.
                    let mut alert = Vec::new();
                    if drain(&mut self.connection, &mut alert).is_ok() {
                        let _ = link.try_write(&alert);
                    }
                    return Err(refusal(error));
                }
            }
        }
    }

    /// The session of a handshake that is done.
    pub(super) fn into_session(mut self) -> Session {
        self.connection.set_buffer_limit(Some(WRITE_BYTES));
        Session { connection: Arc::new(Mutex::new(*self.connection)) }
    }
}

/// An established session.
#[derive(Debug)]
pub(super) struct Session {
    connection: Arc<Mutex<Connection>>,
}

impl Session {
    pub(super) fn split(self) -> (Incoming, Outgoing) {
        let incoming = Incoming {
            connection: Arc::clone(&self.connection),
            ciphertext: vec![0; READ_BYTES].into(),
            start: 0,
            end: 0,
            has_received: false,
        };
        (incoming, Outgoing { connection: self.connection, ciphertext: Vec::new() })
    }
}

/// Decrypts what is read.
pub(super) struct Incoming {
    connection: Arc<Mutex<Connection>>,
    ciphertext: Box<[u8]>,
    /// What of it is not decrypted.
    start: usize,
    end: usize,
    /// Whether the peer has sent anything of its own: until then it may be refusing us.
    has_received: bool,
}

/// Encrypts what is written.
pub(super) struct Outgoing {
    connection: Arc<Mutex<Connection>>,
    ciphertext: Vec<u8>,
}

impl Incoming {
    /// Reads plaintext, taking ciphertext from `fill`.
    ///
    /// # Errors
    /// Those of `fill`; `InvalidData` for what is no TLS; `UnexpectedEof` where the stream was cut.
    pub(super) fn read(
        &mut self,
        bytes: &mut [u8],
        mut fill: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut is_at_end = false;
        loop {
            {
                let mut connection = lock(&self.connection);
                loop {
                    match connection.reader().read(bytes) {
                        Ok(count) => {
                            self.has_received |= count > 0;
                            return Ok(count);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(self.lost(error)),
                    }
                    if self.start == self.end && !is_at_end {
                        break;
                    }
                    self.start += connection.read_tls(&mut &self.ciphertext[self.start..self.end])?;
                    connection.process_new_packets().map_err(refusal)?;
                }
            }
            let count = fill(&mut self.ciphertext).map_err(|error| self.lost(error))?;
            (self.start, self.end) = (0, count);
            // An empty read tells rustls of the end, and its reader then says whether it was announced.
            is_at_end = count == 0;
        }
    }

    /// A peer that refuses our certificate closes the connection; the reason may be lost on the way.
    fn lost(&self, error: io::Error) -> io::Error {
        let is_lost = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        if !is_lost || self.has_received {
            return error;
        }
        let text = "the other side ended the TLS connection without a word; it may not accept this side's certificate";
        io::Error::new(error.kind(), text)
    }
}

impl Outgoing {
    /// Encrypts and writes some of `bytes`.
    pub(super) fn write_vectored(&mut self, bytes: &[IoSlice<'_>], link: &Link) -> io::Result<usize> {
        let count = {
            let mut connection = lock(&self.connection);
            let count = connection.writer().write_vectored(bytes)?;
            drain(&mut connection, &mut self.ciphertext)?;
            count
        };
        self.send(link)?;
        Ok(count)
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn finish(&mut self, link: &Link) -> io::Result<()> {
        {
            let mut connection = lock(&self.connection);
            connection.send_close_notify();
            drain(&mut connection, &mut self.ciphertext)?;
        }
        self.send(link)
    }

    fn send(&mut self, link: &Link) -> io::Result<()> {
        let mut sent = 0;
        while sent < self.ciphertext.len() {
            match link.write_vectored(&[IoSlice::new(&self.ciphertext[sent..])]) {
                Ok(count) => sent += count,
                Err(error) => {
                    // Part of a record is on its way: what follows would make no sense to the peer.
                    link.shutdown();
                    return Err(error);
                }
            }
        }
        self.ciphertext.clear();
        Ok(())
    }
}

fn drain(connection: &mut Connection, into: &mut Vec<u8>) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(into)?;
    }
    Ok(())
}

/// A panic elsewhere leaves a connection that answers with errors at worst.
fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// rustls's error in words for who reads it: whose certificate, and what is the matter.
fn refusal(error: rustls::Error) -> io::Error {
    use rustls::{AlertDescription, Error};
    let text = match &error {
        Error::NoCertificatesPresented => "it has no certificate".to_owned(),
        Error::InvalidCertificate(reason) => format!("its certificate is not accepted: {reason}"),
        Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        Error::AlertReceived(
            alert @ (AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::DecryptError),
        ) => format!("the other side does not accept this side's certificate ({alert:?})"),
        error => error.to_string(),
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

// The state of a connection holds keys: its derived form would tell more than anybody needs.
impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    use super::*;

    #[test]
    fn keys_are_private_and_nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let pki = directory.path().join("pki");
        keygen(&pki, &["node-b".to_owned(), "192.0.2.1".to_owned()]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&pki), 0o700);
        for name in ["server-key.pem", "client-key.pem"] {
            assert_eq!(mode(&pki.join(name)), 0o600);
        }
        let before = fs::read(pki.join("server-key.pem")).unwrap();
        fs::remove_file(pki.join("ca-cert.pem")).unwrap();
        assert!(matches!(keygen(&pki, &[]), Err(KeygenError::Exists { .. })));
        assert_eq!(fs::read(pki.join("server-key.pem")).unwrap(), before);
        assert!(!pki.join("ca-cert.pem").exists());
    }

    #[test]
    fn wrong_directories_are_refused_with_the_file_and_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let pki = directory.path();
        let error = |role| TlsCreds::load(pki, role).unwrap_err().to_string();
        assert!(error(Role::Client).contains("ca-cert.pem") && error(Role::Client).contains("tls-keygen"));
        keygen(pki, &[]).unwrap();
        let key = pki.join("client-key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(error(Role::Client).contains("(mode 0640); run `chmod 600 "), "{}", error(Role::Client));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::copy(pki.join("server-key.pem"), &key).unwrap();
        assert!(error(Role::Client).contains("client-cert.pem and client-key.pem"), "the key of another certificate");
        fs::write(&key, "no key").unwrap();
        assert!(error(Role::Client).contains("holds no private key"));
        fs::write(pki.join("server-cert.pem"), vec![b'x'; (1 << 20) + 1]).unwrap();
        assert!(error(Role::Server).contains("more than"));
        fs::write(pki.join("ca-cert.pem"), "").unwrap();
        assert!(error(Role::Server).contains("holds no certificate"));
    }

    #[test]
    fn debug_forms_hold_no_secret() {
        let directory = tempfile::tempdir().unwrap();
        keygen(directory.path(), &[]).unwrap();
        let credentials = TlsCreds::load(directory.path(), Role::Server).unwrap();
        let text = format!("{credentials:?}");
        assert!(text.len() < 200 && text.contains("Server"), "{text}");
    }
}
