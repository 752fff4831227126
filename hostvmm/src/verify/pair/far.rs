//! Another host, on which a scenario has VMs too: [`Far`].
//!
//! It is reached by a command of the user's that executes a line of shell there, its standard streams and exit status those of the line:
//! `ssh HOST`. Everything goes through it: VMs are started by it, their control sockets are spoken to by a `hostvmm relay` there, their
//! ledgers are fetched, and a guest moves through a pair of pipes there, which the VM here opens from afar.
//!
//! Neighbours: [`super::Place`] has one beside its own directory; [`super::Side`] is a VM on either host, with an [`Afar`] on that one.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::place::{Ends, relay};
use crate::control::address::Stream;
use crate::control::{Address, Client, ClientError};

/// What a name of a directory may consist of, so that it needs no quotes in anybody's shell.
const PLAIN: &str = "/._-";
/// Longest name of a directory: a socket's path has 107 bytes.
const MAX_DIRECTORY: usize = 60;

/// A directory on another host, and the way there; the directory is removed with the last clone of this.
#[derive(Clone, Debug)]
pub(in crate::verify) struct Far {
    via: String,
    directory: Arc<Directory>,
}

#[derive(Debug)]
struct Directory {
    via: String,
    path: String,
}

impl Far {
    /// Makes a directory on the host that `via` reaches.
    ///
    /// # Errors
    /// Where the command fails, or answers with no directory; its own words are on standard error.
    pub(in crate::verify) fn new(via: &str) -> io::Result<Self> {
        let answer = output(via, "mktemp -d /tmp/tdmkXXXXXX")?;
        let directory = answer.trim_end_matches('\n').to_owned();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || PLAIN.contains(char::from(byte));
        if directory.starts_with('/') && directory.len() <= MAX_DIRECTORY && directory.bytes().all(is_plain) {
            let directory = Arc::new(Directory { via: via.to_owned(), path: directory });
            return Ok(Self { via: via.to_owned(), directory });
        }
        let shown: String = directory.chars().take(MAX_DIRECTORY).collect();
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{via}: mktemp answers {shown:?}, which is no directory"),
        ))
    }

    /// `hostvmm run` there, as VM `name`.
    pub(super) fn run(&self, name: &str, options: &[String]) -> Command {
        let mut line = "exec hostvmm run".to_owned();
        for option in options {
            line += &format!(" {}", quoted(option));
        }
        line += &format!(" --qmp unix:{} --json {}", self.path(name, "qmp"), self.path(name, "json"));
        command(&self.via, &line)
    }

    /// Addresses of migration `number` between a VM here and one there, which is the source if `leaves`.
    ///
    /// # Errors
    /// Where no pipes are to be had there.
    pub(super) fn ends(&self, number: usize, leaves: bool) -> io::Result<Ends> {
        let pipe = |kind: &str| self.path(&format!("{kind}{number}"), "pipe");
        let [up, down] = [pipe("up"), pipe("down")];
        output(&self.via, &format!("exec mkfifo -m 600 {up} {down}"))?;
        let there = relay(up.as_ref(), down.as_ref());
        let line = relay(down.as_ref(), up.as_ref());
        let here = format!("exec:{} {}", self.via, quoted(line.trim_start_matches("exec:")));
        Ok(if leaves { Ends { source: there, destination: here } } else { Ends { source: here, destination: there } })
    }

    fn path(&self, name: &str, kind: &str) -> String {
        format!("{}/{name}.{kind}", self.directory.path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A host that cannot be reached any more keeps it.
        let _ = output(&self.via, &format!("exec rm -rf {}", self.path));
    }
}

/// The way to one VM there.
#[derive(Debug)]
pub(super) struct Afar {
    far: Far,
    /// Keeps up the connection to its control socket.
    relay: Option<Child>,
}

impl Afar {
    /// A VM that is about to be there.
    pub(super) fn new(far: &Far) -> Self {
        Self { far: far.clone(), relay: None }
    }

    /// A connection to the control socket of VM `name`, which errors call `address`; each reply may take as long as `reply`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(super) fn connect(&mut self, name: &str, address: &Address, reply: Duration) -> Result<Client, ClientError> {
        self.hang_up();
        let failed = |source| ClientError::Connect { address: address.clone(), source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let line = format!("exec hostvmm relay unix:{}", self.far.path(name, "qmp"));
        let output = OwnedFd::from(theirs.try_clone().map_err(failed)?);
        let mut relay = command(&self.far.via, &line);
        relay.stdin(OwnedFd::from(theirs)).stdout(output).stderr(Stdio::null());
        self.relay = Some(relay.spawn().map_err(failed)?);
        // Its own ends of the streams go with it: the connection closes where the relay ends.
        drop(relay);
        let mut client = Client::over(Stream::Unix(ours), address)?;
        client.set_timeout(reply);
        Ok(client)
    }

    /// The ledger that VM `name` has left.
    ///
    /// # Errors
    /// Where there is none.
    pub(super) fn ledger(&self, name: &str) -> io::Result<String> {
        output(&self.far.via, &format!("exec cat {}", self.far.path(name, "json")))
    }

    fn hang_up(&mut self) {
        if let Some(mut relay) = self.relay.take() {
            // It may have ended.
            let _ = relay.kill();
            let _ = relay.wait();
        }
    }
}

impl Drop for Afar {
    fn drop(&mut self) {
        self.hang_up();
    }
}

/// `line` on the host that `via` reaches.
fn command(via: &str, line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("exec {via} {}", quoted(line))]);
    command
}

/// What `line` prints there.
fn output(via: &str, line: &str) -> io::Result<String> {
    let output = command(via, line).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{via} {}: {}", quoted(line), output.status)));
    }
    String::from_utf8(output.stdout).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// `text` as one word of a shell's (POSIX, 2.2.2).
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Another host that is this one.
    const VIA: &str = "/bin/sh -c";

    #[test]
    fn words_stay_one_word_in_a_shell() {
        for text in ["plain", "two words", "it's", "$HOME `x` \"y\" \\", ""] {
            assert_eq!(output(VIA, &format!("printf %s {}", quoted(text))).unwrap(), text);
        }
    }

    #[test]
    fn the_directory_is_there_until_it_is_dropped() {
        let far = Far::new(VIA).unwrap();
        let directory = far.directory.path.clone();
        assert!(Path::new(&directory).is_dir());
        fs::write(far.path("a", "json"), "{}").unwrap();
        let afar = Afar::new(&far);
        assert_eq!(afar.ledger("a").unwrap(), "{}");
        assert!(afar.ledger("b").is_err());
        drop((far, afar));
        assert!(!Path::new(&directory).exists());
    }

    #[test]
    fn what_one_end_of_a_migration_is_given_comes_from_the_other() {
        use std::io::{Read as _, Write as _};
        let far = Far::new(VIA).unwrap();
        for (number, leaves) in [(1, false), (2, true)] {
            let ends = far.ends(number, leaves).unwrap();
            let start = |uri: &str| {
                let line = uri.strip_prefix("exec:").unwrap();
                let mut command = Command::new("/bin/sh");
                command.args(["-c", line]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
            };
            let mut sides = [start(&ends.source), start(&ends.destination)];
            for from in [0, 1] {
                let text = format!("from {from}");
                sides[from].stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
                let mut found = String::new();
                sides[1 - from].stdout.take().unwrap().read_to_string(&mut found).unwrap();
                assert_eq!(found, text, "{ends:?}");
            }
            for mut side in sides {
                assert!(side.wait().unwrap().success());
            }
        }
    }

    #[test]
    fn a_host_that_cannot_be_reached_or_answers_nonsense_is_named() {
        for via in ["false", "echo x; :", "echo '/tmp/a b'; :", "/nonexistent"] {
            let error = Far::new(via).unwrap_err();
            assert!(error.to_string().contains(via), "{error}");
        }
    }
}
