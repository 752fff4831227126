//! `file:`: a guest in a file, every page at its fixed place ([`FileWriter`], [`FileReader`]). docs/migration-file.md has the
//! format.
//!
//! ```text
//! offset  +0        +4 KiB   +8 KiB    +1 MiB           aligned to 1 MiB   aligned to 64 KiB
//!         head      seal     offer     RAM, sparse      region, sparse     state: frames of the wire
//! ```
//!
//! A page that is sent again is written again in its place, so the file is never longer than the guest, however often a
//! page changes; pages of zeroes are holes. Offer and state are frames as in [`super::wire`], with its checks.
//!
//! The seal is written last, when all else is on the disk. Without offset the file has another name ([`partial_path`])
//! until then; so what a save that was interrupted, or found the disk full, leaves behind has no seal and no name of its own.
//! The file is its owner's alone.

mod layout;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::reader::{FileReader, MemoryLoaded};
pub use self::writer::{FileWriter, partial_path};
use super::wire::{HEADER_BYTES, WireError};
use crate::memory::{MemoryError, SlotId};

/// The format's version.
pub const VERSION: u32 = 2;

/// Why a guest cannot be written to a file, or read from one.
#[derive(Debug, Error)]
pub enum FileError {
    /// The system says so: no space, no permission.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A directory, device, pipe or socket.
    #[error("{path} is no regular file", path = path.display())]
    NotAFile {
        /// Its path.
        path: PathBuf,
    },
    /// Another process writes it, or runs a guest that it has loaded from it.
    #[error("another process is saving a guest to {path}, or runs one that it has loaded from there", path = path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// Something else, or another offset.
    #[error("{path} holds no guest at offset {offset:#x}", path = path.display())]
    NoGuest {
        /// The file.
        path: PathBuf,
        /// Where it was looked for.
        offset: u64,
    },
    /// A version that is not known here.
    #[error("the guest in {path} was saved as version {found} of the format; this hostvmm reads {VERSION}", path = path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// No seal.
    #[error("the guest in {path} was not saved to the end: the save was interrupted", path = path.display())]
    Unfinished {
        /// The file.
        path: PathBuf,
    },
    /// A part that is not what was written.
    #[error("the {part} of the guest in {path} is damaged", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part.
        part: &'static str,
    },
    /// A frame in it that is not what was written.
    #[error("the {part} of the guest in {path} is damaged: {source}", path = path.display())]
    Frame {
        /// The file.
        path: PathBuf,
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        source: WireError,
    },
    /// Memory that is not what was saved.
    #[error("the {slot} in {path} is damaged: its digest is {found:016x}, that of the saved guest {expected:016x}", path = path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Which slot.
        slot: SlotId,
        /// As saved.
        expected: u64,
        /// As read.
        found: u64,
    },
    /// Memory of another size or at another place.
    #[error("the guest in {path} has another {slot} than this machine", path = path.display())]
    Geometry {
        /// The file.
        path: PathBuf,
        /// Which slot.
        slot: SlotId,
    },
    /// State that no file can hold.
    #[error("the machine's state has {found_bytes} bytes; a file holds at most {most_bytes}")]
    StateTooLong {
        /// How many.
        found_bytes: u64,
        /// The limit.
        most_bytes: u64,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Bytes of all state at most: what the wire allows, in frames.
const STATE_MAX_BYTES: u64 = super::wire::MAX_SECTIONS_BYTES + 1024 * (HEADER_BYTES as u64 + 64);

/// The error of `what` at `path`.
fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> FileError {
    move |source| FileError::Io { what, path: path.to_owned(), source }
}

/// Holds `file` against other writers until it is closed.
fn lock(file: &File, path: &Path) -> Result<(), FileError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(FileError::Busy { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("lock", path)(source)),
    }
}

/// Holds `file` against writers until it is closed, along with other readers.
fn lock_shared(file: &File, path: &Path) -> Result<(), FileError> {
    match file.try_lock_shared() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(FileError::Busy { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed("lock", path)(source)),
    }
}

/// Whether a process of this host has loaded a guest from `file`, which this one has saved, and still lives.
///
/// # Errors
/// What flock(2) says.
pub fn is_loaded(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(source),
    }
}
