//! Where a migration goes or comes from, as QEMU writes it: [`Uri`].
//!
//! | text | meaning |
//! |---|---|
//! | `tcp:HOST:PORT` | HOST empty or 0 is the loopback; every interface only as 0.0.0.0 or `[::]` |
//! | `unix:PATH` | a socket that only its owner may open |
//! | `fd:N` | the inherited descriptor N: one stream in both directions |
//! | `fd:PATH` | a unix socket over which guest memory itself is passed: no byte of RAM is copied |
//! | `exec:COMMAND` | the standard input and output of `/bin/sh -c COMMAND` |
//! | `file:PATH[,offset=N]` | a file with every page at its fixed place |

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// Longest path of a unix socket: `sun_path` without its final zero (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

/// What a file's offset is a multiple of: pages and holes stay whole at every host page size.
pub const FILE_OFFSET_ALIGN: u64 = 0x1_0000;

/// The other side of a migration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Uri {
    /// A TCP address.
    Tcp {
        /// A name or an address, IPv6 without brackets.
        host: String,
        /// The port; 0 lets a listener's host choose.
        port: u16,
    },
    /// The path of a unix socket.
    Unix(PathBuf),
    /// A descriptor, or a socket over which descriptors are passed.
    Fd(FdAddress),
    /// A command of the shell.
    Exec(String),
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Where in it the migration begins: a multiple of [`FILE_OFFSET_ALIGN`].
        offset: u64,
    },
}

/// What follows `fd:`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FdAddress {
    /// A descriptor that this process inherited.
    Inherited(u32),
    /// A unix socket over which guest memory is passed.
    Passing(PathBuf),
}

/// Text that is no [`Uri`].
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum UriError {
    /// No known kind before the first colon.
    #[error(
        "{text:?} is no migration URI; write tcp:HOST:PORT, unix:PATH, fd:N, fd:PATH, exec:COMMAND or file:PATH[,offset=N]"
    )]
    Kind {
        /// The text.
        text: String,
    },
    /// `tcp:` with one part only.
    #[error("{text:?} lacks a host or a port; write tcp:HOST:PORT, or tcp::PORT for the loopback")]
    NoHost {
        /// The text.
        text: String,
    },
    /// A host that is none.
    #[error("{host:?} in {text:?} is no host; write a name, an IPv4 address, or an IPv6 address in brackets")]
    Host {
        /// The text.
        text: String,
        /// The part that is wrong.
        host: String,
    },
    /// A port that is none.
    #[error("{port:?} in {text:?} is no port; write a number from 0 to 65535")]
    Port {
        /// The text.
        text: String,
        /// The part that is wrong.
        port: String,
    },
    /// Nothing after the colon.
    #[error("{text:?} names no {what}")]
    Empty {
        /// The text.
        text: String,
        /// What is missing.
        what: &'static str,
    },
    /// A path or a command with a zero byte.
    #[error("{text:?} holds a zero byte")]
    Zero {
        /// The text.
        text: String,
    },
    /// A path that the kernel takes for no socket's.
    #[error("the socket path in {text:?} has {len_bytes} bytes; the system takes at most {SOCKET_PATH_MAX}")]
    LongPath {
        /// The text.
        text: String,
        /// Its length.
        len_bytes: usize,
    },
    /// A descriptor that is none.
    #[error("{number:?} in {text:?} is no descriptor; write a number from 3 up, or fd:/PATH of a socket")]
    Descriptor {
        /// The text.
        text: String,
        /// The part that is wrong.
        number: String,
    },
    /// An offset that is none.
    #[error(
        "{offset:?} in {text:?} is no offset; write bytes, decimal or as 0x…, a multiple of {FILE_OFFSET_ALIGN:#x}"
    )]
    Offset {
        /// The text.
        text: String,
        /// The part that is wrong.
        offset: String,
    },
}

impl Uri {
    /// Whether more than one channel to the other side can be had.
    pub fn has_several_channels(&self) -> bool {
        matches!(self, Self::Tcp { .. } | Self::Unix(_) | Self::Fd(FdAddress::Passing(_)))
    }

    /// Whether the other side can be asked again after its connection broke.
    pub fn can_be_asked_again(&self) -> bool {
        self.has_several_channels()
    }

    /// Whether guest memory is passed as files and its pages are not sent.
    pub fn passes_memory(&self) -> bool {
        matches!(self, Self::Fd(FdAddress::Passing(_)))
    }

    /// Whether TLS can protect it.
    pub fn takes_tls(&self) -> bool {
        matches!(self, Self::Tcp { .. } | Self::Unix(_))
    }
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let owned = || text.to_owned();
        if text.contains('\0') {
            return Err(UriError::Zero { text: owned() });
        }
        let (kind, rest) = text.split_once(':').ok_or_else(|| UriError::Kind { text: owned() })?;
        let named = |what| if rest.is_empty() { Err(UriError::Empty { text: owned(), what }) } else { Ok(rest) };
        match kind {
            "tcp" => tcp(text, rest),
            "unix" => socket_path(text, named("socket path")?).map(Self::Unix),
            "fd" => fd(text, named("descriptor")?).map(Self::Fd),
            "exec" => Ok(Self::Exec(named("command")?.to_owned())),
            "file" => file(text, named("file")?),
            _ => Err(UriError::Kind { text: owned() }),
        }
    }
}

fn tcp(text: &str, rest: &str) -> Result<Uri, UriError> {
    let owned = || text.to_owned();
    let (host, port) = rest.rsplit_once(':').ok_or_else(|| UriError::NoHost { text: owned() })?;
    let wrong_host = || UriError::Host { text: owned(), host: host.to_owned() };
    let host = match host.strip_prefix('[') {
        Some(inner) => {
            let inner = inner.strip_suffix(']').ok_or_else(wrong_host)?;
            inner.parse::<Ipv6Addr>().map_err(|_| wrong_host())?.to_string()
        }
        None if host.is_empty() || host == "0" => Ipv4Addr::LOCALHOST.to_string(),
        None if host.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) => return Err(wrong_host()),
        None => host.to_owned(),
    };
    // `u16::from_str` takes a sign.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse().ok().filter(|_| digits);
    let port = port.ok_or_else(|| UriError::Port {
        text: owned(),
        port: rest[rest.rfind(':').map_or(0, |at| at + 1)..].to_owned(),
    })?;
    Ok(Uri::Tcp { host, port })
}

fn socket_path(text: &str, path: &str) -> Result<PathBuf, UriError> {
    match path.len() {
        len_bytes if len_bytes > SOCKET_PATH_MAX => Err(UriError::LongPath { text: text.to_owned(), len_bytes }),
        _ => Ok(path.into()),
    }
}

/// A number is an inherited descriptor, what has a slash is a path: a name alone may be a number misspelt.
fn fd(text: &str, rest: &str) -> Result<FdAddress, UriError> {
    if rest.contains('/') {
        return socket_path(text, rest).map(FdAddress::Passing);
    }
    let digits = rest.bytes().all(|byte| byte.is_ascii_digit());
    // Standard input, output and error are ours to talk to the user.
    rest.parse()
        .ok()
        .filter(|number| digits && (3..=i32::MAX as u32).contains(number))
        .map(FdAddress::Inherited)
        .ok_or_else(|| UriError::Descriptor { text: text.to_owned(), number: rest.to_owned() })
}

fn file(text: &str, rest: &str) -> Result<Uri, UriError> {
    let Some((path, offset)) = rest.rsplit_once(",offset=") else {
        return Ok(Uri::File { path: rest.into(), offset: 0 });
    };
    let parsed = match offset.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        None if offset.bytes().all(|byte| byte.is_ascii_digit()) => offset.parse().ok(),
        _ => None,
    };
    if path.is_empty() {
        return Err(UriError::Empty { text: text.to_owned(), what: "file" });
    }
    // Room for what follows: offsets of files are signed.
    let offset = parsed
        .filter(|offset| offset.is_multiple_of(FILE_OFFSET_ALIGN) && *offset <= i64::MAX as u64 / 2)
        .ok_or_else(|| UriError::Offset { text: text.to_owned(), offset: offset.to_owned() })?;
    Ok(Uri::File { path: path.into(), offset })
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Fd(FdAddress::Inherited(number)) => write!(f, "fd:{number}"),
            Self::Fd(FdAddress::Passing(path)) => write!(f, "fd:{}", path.display()),
            Self::Exec(command) => write!(f, "exec:{command}"),
            // A name that ends like an offset is read as one, unless one follows.
            Self::File { path, offset: 0 } if !path.to_string_lossy().contains(",offset=") => {
                write!(f, "file:{}", path.display())
            }
            Self::File { path, offset } => write!(f, "file:{},offset={offset:#x}", path.display()),
        }
    }
}

/// Whether a listener at `host` can be reached from other machines: anything but an address of the loopback.
pub(super) fn is_exposed(address: IpAddr) -> bool {
    !address.is_loopback()
}

/// Whether the path fits a socket's address.
pub(super) fn fits_socket(path: &Path) -> bool {
    let bytes = OsStr::as_bytes(path.as_os_str());
    !bytes.is_empty() && bytes.len() <= SOCKET_PATH_MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16) -> Result<Uri, UriError> {
        Ok(Uri::Tcp { host: host.to_owned(), port })
    }

    #[test]
    fn uris_are_read_as_qemu_writes_them() {
        assert_eq!("tcp:0:4321".parse(), tcp("127.0.0.1", 4321));
        assert_eq!("tcp::4321".parse(), tcp("127.0.0.1", 4321));
        assert_eq!("tcp:0.0.0.0:1".parse(), tcp("0.0.0.0", 1));
        assert_eq!("tcp:[::]:1".parse(), tcp("::", 1));
        assert_eq!("tcp:node-b.example:65535".parse(), tcp("node-b.example", 65535));
        assert_eq!("unix:/a:b".parse(), Ok(Uri::Unix("/a:b".into())));
        assert_eq!("fd:7".parse(), Ok(Uri::Fd(FdAddress::Inherited(7))));
        assert_eq!("fd:./7".parse(), Ok(Uri::Fd(FdAddress::Passing("./7".into()))));
        assert_eq!("exec:nc -U a:b".parse(), Ok(Uri::Exec("nc -U a:b".to_owned())));
        assert_eq!("file:a,b".parse(), Ok(Uri::File { path: "a,b".into(), offset: 0 }));
        assert_eq!("file:a,offset=0x20000".parse(), Ok(Uri::File { path: "a".into(), offset: 0x2_0000 }));
        assert_eq!("file:a,offset=65536".parse(), Ok(Uri::File { path: "a".into(), offset: 0x1_0000 }));
        let odd = Uri::File { path: "a,offset=b".into(), offset: 0 };
        assert_eq!("file:a,offset=b,offset=0x0".parse(), Ok(odd.clone()));
        assert_eq!(odd.to_string().parse(), Ok(odd), "what is shown is read back");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<Uri>().unwrap_err().to_string();
        for (text, part) in [
            ("", "no migration URI"),
            ("4321", "no migration URI"),
            ("rdma:a:1", "no migration URI"),
            ("tcp:4321", "write tcp:HOST:PORT"),
            ("tcp:a:", "\"\" in"),
            ("tcp:a:+1", "\"+1\" in"),
            ("tcp:a:65536", "\"65536\" in"),
            ("tcp:a:1,ipv4=on", "\"1,ipv4=on\" in"),
            ("tcp:::1:5", "in brackets"),
            ("tcp:[::1:5", "in brackets"),
            ("tcp:[a]:5", "in brackets"),
            ("tcp:a b:5", "no host"),
            ("unix:", "names no socket path"),
            ("fd:", "names no descriptor"),
            ("fd:2", "from 3 up"),
            ("fd:migration", "from 3 up"),
            ("fd:99999999999", "from 3 up"),
            ("exec:", "names no command"),
            ("exec:a\0b", "zero byte"),
            ("file:", "names no file"),
            ("file:,offset=0", "names no file"),
            ("file:a,offset=12", "multiple of 0x10000"),
            ("file:a,offset=-0", "is no offset"),
            ("file:a,offset=0xffffffffffff0000", "is no offset"),
        ] {
            assert!(error(text).contains(part), "{text:?}: {}", error(text));
        }
        assert!(error(&format!("unix:/{}", "x".repeat(107))).contains("108 bytes"));
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back_as_the_same(text in "(tcp|unix|fd|exec|file):[a-z0-9:/.,=\\[\\]]{0,24}") {
            if let Ok(uri) = text.parse::<Uri>() {
                prop_assert_eq!(uri.to_string().parse(), Ok(uri));
            }
        }
    }
}
