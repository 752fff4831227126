//! Why the lab could not do what it was asked for, and with which exit status that ends.

use std::io;
use std::path::{Path, PathBuf};

/// Exit status: what was asked for cannot be meant; clap's number.
pub(crate) const USAGE: u8 = 2;
/// Exit status: the lab itself failed, whatever the command would have said. The same number as `docker run`'s.
pub(crate) const FAILED: u8 = 125;
/// Exit status: something that the lab needs is not to be had on this machine.
pub(crate) const UNAVAILABLE: u8 = 126;

/// A failure of the lab; a command's own failure is an exit code instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that must be installed is not.
    #[error("{program} is not installed; on Debian: apt-get install {package}")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
    /// The machine's package sources do not have it.
    #[error("this machine's package sources have no {what}: name a kernel of your own with --kernel PATH")]
    NotInArchive {
        /// What was looked for.
        what: String,
    },
    /// Debian's packages could not be checked here.
    #[error("{path} is missing, by which Debian's packages are checked: apt-get install debian-archive-keyring")]
    NoKeyring {
        /// The keyring's place.
        path: &'static str,
    },
    /// Nothing fetched or built, where fetching was ruled out.
    #[error("{what} is not in the cache: run `scripts/lab {remedy}`")]
    NotCached {
        /// What was looked for.
        what: String,
        /// The subcommand that brings it.
        remedy: String,
    },
    /// The compiler has no libraries for the guest's programs.
    #[error("the compiler has no target {target}: run `scripts/lab prepare`")]
    NoTarget {
        /// The target.
        target: &'static str,
    },
    /// The package sources could not be read or a package not be downloaded.
    #[error("Debian's packages cannot be fetched here ({status}){}", indented(.output))]
    Offline {
        /// How apt ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The file named as a kernel is none.
    #[error("--kernel {path}: {why}", path = .path.display())]
    BadImage {
        /// The file.
        path: PathBuf,
        /// What it is instead, or why it cannot be read.
        why: String,
    },
    /// A benchmark's results are not whole.
    #[error("the benchmark has no result: {what}")]
    Bench {
        /// What is missing or wrong.
        what: String,
    },
    /// A file of the cache is not what was put there.
    #[error("{path} is not the file that was recorded: run `scripts/lab {remedy}` again")]
    Changed {
        /// The file.
        path: PathBuf,
        /// The subcommand that brings it.
        remedy: String,
    },
    /// A download is not what the signed package list says.
    #[error("the download of {package} does not have the package list's SHA-256")]
    BadDownload {
        /// The package.
        package: String,
    },
    /// A file could not be read, written or moved.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// read, write, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cache's manifest is not readable as such.
    #[error("{path} is no manifest of this version ({source}): remove it")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A program ended with a failure.
    #[error("{program} failed ({status}){}", indented(.output))]
    Program {
        /// The program, with its subcommand.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The guest did not power off in time.
    #[error("the guest did not end within {seconds} s{}", indented(.console))]
    TimedOut {
        /// The bound.
        seconds: u64,
        /// The end of the guest's console.
        console: String,
    },
    /// The guest ended without handing over the results.
    #[error("the guest ended early: {why}{}", indented(.console))]
    EndedEarly {
        /// What is missing.
        why: String,
        /// The end of the guest's console.
        console: String,
    },
}

impl Error {
    /// The exit status that this means.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::BadImage { .. } => USAGE,
            _ if self.is_unavailable() => UNAVAILABLE,
            _ => FAILED,
        }
    }

    /// Whether something that the lab needs is not to be had here.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::NoProgram { .. }
                | Self::NoKeyring { .. }
                | Self::NotInArchive { .. }
                | Self::NotCached { .. }
                | Self::NoTarget { .. }
                | Self::Offline { .. }
        )
    }

    /// For `map_err`: the `action` on `path` failed.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("\n  | {line}")).collect()
}
