//! Where an outlet is: [`OutletAddress`], `unix:PATH`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::migrate::transport::uri::SOCKET_PATH_MAX;

/// The socket of an outlet. Only its owner may open it: whoever reaches an outlet can claim it, so there is no other kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutletAddress(PathBuf);

/// Text that is no such address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no outlet's socket; write unix:PATH with a path of at most {SOCKET_PATH_MAX} bytes")]
pub struct BadOutletAddress {
    text: String,
}

impl OutletAddress {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for OutletAddress {
    type Err = BadOutletAddress;

    fn from_str(text: &str) -> Result<Self, BadOutletAddress> {
        match text.strip_prefix("unix:") {
            Some(path) if (1..=SOCKET_PATH_MAX).contains(&path.len()) && !path.contains('\0') => Ok(Self(path.into())),
            _ => Err(BadOutletAddress { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for OutletAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_s_path_is_an_address() {
        let address: OutletAddress = "unix:/run/outlet".parse().unwrap();
        assert_eq!((address.path(), address.to_string().as_str()), (Path::new("/run/outlet"), "unix:/run/outlet"));
        let long = format!("unix:{}", "a".repeat(SOCKET_PATH_MAX + 1));
        for bad in ["", "unix:", "/run/outlet", "tcp:127.0.0.1:4321", "unix:a\0b", &long] {
            assert!(bad.parse::<OutletAddress>().is_err(), "{bad:?}");
        }
    }
}
