//! The regular file that backs the region (`--share FILE`), checked before it is mapped and then cleared.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::MemoryError;

/// Bytes written at a time where holes cannot be punched.
const ZERO_CHUNK_BYTES: usize = 1 << 20;

/// A writable regular file.
#[derive(Debug)]
pub struct ShareFile {
    path: PathBuf,
    file: File,
    len_bytes: u64,
}

impl ShareFile {
    /// Opens `path` for reading and writing and checks that it is a regular file. It is not changed yet.
    ///
    /// # Errors
    /// [`MemoryError::Share`] where it cannot be opened, [`MemoryError::ShareKind`] where it is no regular file.
    pub fn open(path: &Path) -> Result<Self, MemoryError> {
        let failed = |what: &'static str| {
            let path = path.to_owned();
            move |source| MemoryError::Share { what, path, source }
        };
        // Looked at before it is opened: opening a FIFO or a device can block or have effects.
        let kind = kind_of(&std::fs::metadata(path).map_err(failed("open"))?);
        if let Some(kind) = kind {
            return Err(MemoryError::ShareKind { path: path.to_owned(), kind });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(failed("open for writing"))?;
        let len_bytes = file.metadata().map_err(failed("inspect"))?.len();
        Ok(Self { path: path.to_owned(), file, len_bytes })
    }

    /// The file's size.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Checks the size and that it is no other VM's memory, makes every byte zero and returns the file, locked (flock(2)) until
    /// its last descriptor is closed. A destination that names its source's file would clear the guest that is to come.
    ///
    /// # Errors
    /// [`MemoryError::ShareSize`] where the size is another, [`MemoryError::ShareInUse`], [`MemoryError::Share`] where clearing
    /// fails.
    pub(super) fn cleared(self, expected_bytes: u64) -> Result<File, MemoryError> {
        if self.len_bytes != expected_bytes {
            return Err(MemoryError::ShareSize { path: self.path, found_bytes: self.len_bytes, expected_bytes });
        }
        match self.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(MemoryError::ShareInUse { path: self.path }),
            // A file system without locks.
            Err(TryLockError::Error(error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(TryLockError::Error(source)) => {
                return Err(MemoryError::Share { what: "lock", path: self.path, source });
            }
        }
        match clear(&self.file, expected_bytes) {
            Ok(()) => Ok(self.file),
            Err(source) => Err(MemoryError::Share { what: "clear", path: self.path, source }),
        }
    }
}

fn kind_of(metadata: &std::fs::Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else {
        Some("a device")
    }
}

fn clear(file: &File, len_bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, len_bytes) {
        // Every block now: on a full file system the guest's first store would be a SIGBUS of ours.
        Ok(()) => match fallocate(file, FallocateFlags::empty(), 0, len_bytes) {
            Ok(()) => Ok(()),
            Err(error) => {
                // Give back what was found before the file system was full.
                let _ = fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, len_bytes);
                Err(error.into())
            }
        },
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => write_zeroes(file, len_bytes),
        Err(error) => Err(error.into()),
    }
}

fn write_zeroes(mut file: &File, len_bytes: u64) -> io::Result<()> {
    let zeroes = vec![0; ZERO_CHUNK_BYTES];
    let mut left = len_bytes;
    io::Seek::seek(&mut file, io::SeekFrom::Start(0))?;
    while left > 0 {
        let now = left.min(ZERO_CHUNK_BYTES as u64) as usize;
        file.write_all(&zeroes[..now])?;
        left -= now as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_file_is_cleared_by_holes_and_by_writing_alike() {
        for by_writing in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("share");
            std::fs::write(&path, vec![0xaa; 3 << 20]).unwrap();
            let share = ShareFile::open(&path).unwrap();
            assert_eq!(share.len_bytes(), 3 << 20);
            if by_writing {
                write_zeroes(&share.file, 3 << 20).unwrap();
            } else {
                share.cleared(3 << 20).unwrap();
            }
            let mut bytes = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len(), 3 << 20);
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn the_memory_of_one_vm_is_not_cleared_for_another() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let used = ShareFile::open(file.path()).unwrap().cleared(4096).unwrap();
        std::fs::write(file.path(), [7; 4096]).unwrap();
        let error = ShareFile::open(file.path()).unwrap().cleared(4096).unwrap_err();
        assert!(matches!(error, MemoryError::ShareInUse { .. }), "{error}");
        assert_eq!(std::fs::read(file.path()).unwrap(), [7; 4096]);
        drop(used);
        ShareFile::open(file.path()).unwrap().cleared(4096).unwrap();
    }

    #[test]
    fn unsuitable_files_are_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(ShareFile::open(dir.path()), Err(MemoryError::ShareKind { kind: "a directory", .. })));
        assert!(matches!(
            ShareFile::open(Path::new("/dev/zero")),
            Err(MemoryError::ShareKind { kind: "a device", .. })
        ));
        let missing = ShareFile::open(&dir.path().join("none"));
        assert!(matches!(missing, Err(MemoryError::Share { what: "open", .. })));
        let path = dir.path().join("short");
        std::fs::write(&path, b"precious").unwrap();
        let error = ShareFile::open(&path).unwrap().cleared(4096).unwrap_err();
        assert!(matches!(error, MemoryError::ShareSize { found_bytes: 8, expected_bytes: 4096, .. }));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
