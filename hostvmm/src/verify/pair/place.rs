//! Where the VMs of a scenario meet: a private directory, and an address for each migration ([`Place`], [`Way`]).

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::far::Far;

/// How a migration's bytes travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A unix socket.
    Unix,
    /// A free port of this host's loopback.
    Tcp,
    /// No bytes: the files that back memory are handed over on a unix socket.
    Fd,
    /// Two commands with a pair of pipes between them.
    Exec,
    /// A file, read once it is complete.
    File,
    /// This address, as given to both sides.
    Given(String),
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "unix" => Self::Unix,
            "tcp" => Self::Tcp,
            "fd" => Self::Fd,
            "exec" => Self::Exec,
            "file" => Self::File,
            uri if uri.contains(':') => Self::Given(uri.to_owned()),
            _ => {
                return Err(format!(
                    "{text:?} is no way to migrate; write unix, tcp, fd, exec, file, or an address like tcp:127.0.0.1:4321"
                ));
            }
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unix => "unix",
            Self::Tcp => "tcp",
            Self::Fd => "fd",
            Self::Exec => "exec",
            Self::File => "file",
            Self::Given(uri) => uri,
        })
    }
}

impl Way {
    /// Whether the destination reads what the source has left, rather than what it sends.
    pub(in crate::verify) fn is_file(&self) -> bool {
        matches!(self, Self::File) || matches!(self, Self::Given(uri) if uri.starts_with("file:"))
    }

    /// Whether the destination takes over the source's memory, rather than a copy.
    pub(in crate::verify) fn shares_memory(&self) -> bool {
        matches!(self, Self::Fd) || matches!(self, Self::Given(uri) if uri.starts_with("fd:"))
    }
}

/// The two ends of one migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::verify) struct Ends {
    /// For `migrate`.
    pub(in crate::verify) source: String,
    /// For `--incoming`.
    pub(in crate::verify) destination: String,
}

/// A directory that only this user may enter, removed with everything in it when this is dropped.
#[derive(Debug)]
pub(in crate::verify) struct Place {
    directory: tempfile::TempDir,
    far: Option<Far>,
}

impl Place {
    /// Makes one.
    pub(in crate::verify) fn new() -> io::Result<Self> {
        let owners = Permissions::from_mode(0o700);
        // Short: a socket's path has 107 bytes.
        Ok(Self { directory: tempfile::Builder::new().prefix("tdmk").permissions(owners).tempdir()?, far: None })
    }

    /// Makes one, with another on the host that the command `via` reaches, if one is given.
    pub(in crate::verify) fn with_far(via: Option<&str>) -> io::Result<Self> {
        Ok(Self { far: via.map(Far::new).transpose()?, ..Self::new()? })
    }

    /// The directory on the other host.
    pub(super) fn far(&self) -> Option<&Far> {
        self.far.as_ref()
    }

    /// Addresses for migration number `number` between a VM here and one on the other host, where there is one and just one of the two
    /// is `far`; else as [`Self::ends`].
    pub(in crate::verify) fn ends_between(&self, way: &Way, number: usize, far: [bool; 2]) -> io::Result<Ends> {
        match (&self.far, far) {
            (Some(place), [leaves, arrives]) if leaves != arrives => place.ends(number, leaves),
            _ => self.ends(way, number),
        }
    }

    /// A path in it.
    pub(in crate::verify) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Addresses for migration number `number`.
    pub(in crate::verify) fn ends(&self, way: &Way, number: usize) -> io::Result<Ends> {
        let file = |kind: &str| self.path(&format!("{kind}{number}"));
        let both = |address: String| Ends { source: address.clone(), destination: address };
        Ok(match way {
            Way::Given(uri) => both(uri.clone()),
            Way::Unix => both(format!("unix:{}", file("u").display())),
            Way::Fd => both(format!("fd:{}", file("f").display())),
            Way::File => both(format!("file:{}", file("m").display())),
            Way::Tcp => {
                // Nobody takes a port that was just given back: the kernel hands out others first.
                let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
                both(format!("tcp:127.0.0.1:{port}"))
            }
            Way::Exec => {
                let [up, down] = [file("up"), file("down")];
                for pipe in [&up, &down] {
                    mknodat(CWD, pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
                }
                Ends { source: relay(&up, &down), destination: relay(&down, &up) }
            }
        })
    }
}

/// A command between its standard streams and two pipes: what it is given goes to `out`, what it gives comes from `back`.
pub(super) fn relay(out: &Path, back: &Path) -> String {
    // A background command's standard input would be /dev/null (POSIX, 2.9.3.1), hence descriptor 3.
    format!("exec:exec 3<&0; cat <&3 >{} & exec cat {}", out.display(), back.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_two_ends_that_fit() {
        let place = Place::new().unwrap();
        for name in ["unix", "tcp", "fd", "exec", "file", "tcp:127.0.0.1:4321"] {
            let way: Way = name.parse().unwrap();
            assert_eq!(way.to_string(), name);
            let ends = place.ends(&way, 7).unwrap();
            assert!(ends.source.starts_with(name.split(':').next().unwrap()), "{ends:?}");
            assert_eq!(ends.source == ends.destination, way != Way::Exec, "{ends:?}");
        }
        assert!("carrier pigeon".parse::<Way>().is_err());
    }

    #[test]
    fn the_directory_is_its_owners_and_does_not_stay() {
        let place = Place::new().unwrap();
        let path = place.path("x");
        std::fs::write(&path, "x").unwrap();
        let mode = std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(place);
        assert!(!path.exists());
    }
}
