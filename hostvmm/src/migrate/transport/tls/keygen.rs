//! `hostvmm tls-keygen`: a directory of credentials for tests and single machines.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use thiserror::Error;

use super::credentials::{CA_CERT, Role};

/// Names and addresses that every server's certificate has.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Years for which the certificates are valid.
const YEARS: i32 = 2;

/// Why no credentials were made.
#[derive(Debug, Error)]
pub enum KeygenError {
    /// There is something already.
    #[error("{path} exists already; remove it or choose another directory", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name that no certificate can have, or no random numbers.
    #[error("cannot make certificates: {0}")]
    Generate(#[from] rcgen::Error),
}

/// Makes `directory` with a certificate authority's certificate, and certificate and key of a server (valid for the local names and `hosts`) and
/// of a client. Keys have mode 0600. The authority's own key is thrown away: nobody can add to what it has signed.
///
/// # Errors
/// [`KeygenError`]; nothing that exists is overwritten.
pub fn keygen(directory: &Path, hosts: &[String]) -> Result<(), KeygenError> {
    let files = [Role::Server, Role::Client].map(|role| [role.cert_file(), role.key_file()]);
    for name in files.iter().flatten().chain([&CA_CERT]) {
        let path = directory.join(name);
        if path.symlink_metadata().is_ok() {
            return Err(KeygenError::Exists { path });
        }
    }
    let mut ca = params(Vec::new(), "Tidemark test authority")?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| KeygenError::Write { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
    let write = |name: &str, mode: u32, text: &str| {
        let path = directory.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed(&path))
    };
    write(CA_CERT, 0o644, &ca.pem())?;
    for role in [Role::Server, Role::Client] {
        let (names, common_name, usage) = match role {
            Role::Server => {
                let names = LOCAL.map(str::to_owned).into_iter().chain(hosts.iter().cloned()).collect();
                (names, "Tidemark test server", ExtendedKeyUsagePurpose::ServerAuth)
            }
            Role::Client => (Vec::new(), "Tidemark test client", ExtendedKeyUsagePurpose::ClientAuth),
        };
        let mut params = params(names, common_name)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &ca)?;
        write(role.key_file(), 0o600, &key.serialize_pem())?;
        write(role.cert_file(), 0o644, &certificate.pem())?;
    }
    Ok(())
}

fn params(names: Vec<String>, common_name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    let year = this_year();
    // From the year's first day, for the clocks of two hosts differ.
    params.not_before = rcgen::date_time_ymd(year, 1, 1);
    params.not_after = rcgen::date_time_ymd(year + YEARS, 12, 31);
    Ok(params)
}

/// The year by the host's clock, to a day: 365.2425 days have 31,556,952 seconds.
fn this_year() -> i32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    1970 + i32::try_from(seconds / 31_556_952).unwrap_or(0)
}
