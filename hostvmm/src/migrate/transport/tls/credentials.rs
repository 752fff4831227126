//! Who we are and whom we trust: [`TlsCreds`], from a directory as QEMU's tls-creds-x509 has it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use thiserror::Error;

/// Whom we trust.
pub(super) const CA_CERT: &str = "ca-cert.pem";

/// Bytes of a file at most.
const FILE_MAX: u64 = 1 << 20;

/// Name that a server's certificate must have where the address has none.
const LOCAL_NAME: &str = "localhost";

/// Which side we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The one that connects: the source of a migration.
    Client,
    /// The one that listens: its destination.
    Server,
}

impl Role {
    /// The file of the certificate chain.
    pub(super) const fn cert_file(self) -> &'static str {
        match self {
            Self::Client => "client-cert.pem",
            Self::Server => "server-cert.pem",
        }
    }

    /// The file of the private key.
    pub(super) const fn key_file(self) -> &'static str {
        match self {
            Self::Client => "client-key.pem",
            Self::Server => "server-key.pem",
        }
    }
}

/// Why a directory's credentials cannot be used.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}; `hostvmm tls-keygen DIR` makes such a directory", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key that others can read.
    #[error("others than its owner can open the private key {path} (mode {mode:04o}); run `chmod 600 {path}`", path = path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file that is too long.
    #[error("{path} has more than {FILE_MAX} bytes and is no certificate", path = path.display())]
    Long {
        /// The file.
        path: PathBuf,
    },
    /// A file that holds something else.
    #[error("{path} holds no {what} in PEM form", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Certificates and key that do not fit, or that TLS refuses.
    #[error("the credentials in {directory} cannot be used: {reason}", directory = directory.display())]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// Why.
        reason: String,
    },
    /// A host name that is none.
    #[error("{name:?} is no host name to check a certificate against (tls-hostname)")]
    Hostname {
        /// The name.
        name: String,
    },
}

/// The credentials of one side. Its debug form names the directory and nothing in it.
#[derive(Clone)]
pub struct TlsCreds {
    directory: PathBuf,
    config: Config,
    hostname: Option<String>,
}

#[derive(Clone)]
enum Config {
    Client(Arc<ClientConfig>),
    Server(Arc<ServerConfig>),
}

impl fmt::Debug for TlsCreds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsCreds")
            .field("directory", &self.directory)
            .field("role", &self.role())
            .finish_non_exhaustive()
    }
}

impl TlsCreds {
    /// Reads `ca-cert.pem` and the side's certificate and key (`server-cert.pem`, `server-key.pem`, or `client-…`).
    ///
    /// # Errors
    /// [`CredentialsError`]: a file that is missing or wrong, a key that others can read.
    pub fn load(directory: &Path, role: Role) -> Result<Self, CredentialsError> {
        let unusable = |reason: String| CredentialsError::Unusable { directory: directory.to_owned(), reason };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&directory.join(CA_CERT))? {
            roots.add(certificate).map_err(|error| unusable(format!("{CA_CERT}: {error}")))?;
        }
        let chain = certificates(&directory.join(role.cert_file()))?;
        let key = private_key(&directory.join(role.key_file()))?;
        let provider = Arc::new(ring::default_provider());
        let wrong = |error: rustls::Error| unusable(format!("{} and {}: {error}", role.cert_file(), role.key_file()));
        let config = match role {
            Role::Client => {
                let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
                let builder = builder.map_err(wrong)?.with_root_certificates(roots);
                let mut config = builder.with_client_auth_cert(chain, key).map_err(wrong)?;
                config.resumption = Resumption::disabled();
                Config::Client(Arc::new(config))
            }
            Role::Server => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
                let verifier = verifier.build().map_err(|error| unusable(format!("{CA_CERT}: {error}")))?;
                let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
                let builder = builder.map_err(wrong)?.with_client_cert_verifier(verifier);
                let mut config = builder.with_single_cert(chain, key).map_err(wrong)?;
                config.send_tls13_tickets = 0;
                Config::Server(Arc::new(config))
            }
        };
        Ok(Self { directory: directory.to_owned(), config, hostname: None })
    }

    /// Checks the server's certificate against `name` in place of the address's host; empty for the address's host.
    ///
    /// # Errors
    /// [`CredentialsError::Hostname`].
    pub fn with_hostname(mut self, name: &str) -> Result<Self, CredentialsError> {
        self.hostname = (!name.is_empty()).then(|| name.to_owned());
        self.hostname.as_deref().map_or(Ok(()), |name| server_name(name).map(drop))?;
        Ok(self)
    }

    /// Which side they are for.
    pub fn role(&self) -> Role {
        match self.config {
            Config::Client(_) => Role::Client,
            Config::Server(_) => Role::Server,
        }
    }

    /// A connection before its handshake. `host` is the address's.
    pub(in super::super) fn connection(&self, host: Option<&str>) -> Result<Connection, CredentialsError> {
        let unusable = |error: rustls::Error| CredentialsError::Unusable {
            directory: self.directory.clone(),
            reason: error.to_string(),
        };
        match &self.config {
            Config::Client(config) => {
                let name = server_name(self.hostname.as_deref().or(host).unwrap_or(LOCAL_NAME))?;
                ClientConnection::new(Arc::clone(config), name).map(Connection::from).map_err(unusable)
            }
            Config::Server(config) => ServerConnection::new(Arc::clone(config)).map(Connection::from).map_err(unusable),
        }
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, CredentialsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| CredentialsError::Hostname { name: name.to_owned() })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let wrong = || CredentialsError::Pem { path: path.to_owned(), what: "certificate" };
    let pem = read(path, |_| Ok(()))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(wrong)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let pem = read(path, |mode| {
        if mode & 0o077 == 0 { Ok(()) } else { Err(CredentialsError::Mode { path: path.to_owned(), mode }) }
    })?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| CredentialsError::Pem { path: path.to_owned(), what: "private key" })
}

/// The file's bytes, if `check` accepts its permissions; those of the file that is read, not of the name.
fn read(path: &Path, check: impl FnOnce(u32) -> Result<(), CredentialsError>) -> Result<Vec<u8>, CredentialsError> {
    let failed = |source| CredentialsError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    check(file.metadata().map_err(failed)?.mode() & 0o7777)?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX { Err(CredentialsError::Long { path: path.to_owned() }) } else { Ok(bytes) }
}
