//! The bitmap file of the original tests, as bytes: [`BitmapFile`].
//!
//! ```text
//! 0             one word    r2r: the replicator asks
//! one word      one word    p2r: the VMM has answered
//! two words     pages / 8   bit j (least significant first) of byte i is page 8 i + j
//! ```
//!
//! A word is the host's `unsigned long` in the host's byte order. Words and bitmap are read and written by `pread` and
//! `pwrite`, which an outside process sees in order, whether it reads or maps the file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use crate::dirty::PageBitmap;

const WORD: usize = size_of::<usize>();
const HEADER: usize = 2 * WORD;

/// Why a bitmap file cannot be used.
#[derive(Debug, Error)]
pub enum BitmapFileError {
    /// It cannot be opened, read or written.
    #[error("cannot {what} the bitmap file {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It is not of the size that the region's bitmap has.
    #[error("the bitmap file {path} has {found_bytes} bytes and needs {expected_bytes}; run `truncate -s {expected_bytes} {path}`", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// What it needs: the header and one bit a page.
        expected_bytes: u64,
    },
    /// It is no regular file.
    #[error("the bitmap file {path} is not a regular file", path = path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Another replicator holds it.
    #[error("another replicator is using the bitmap file {path}; let it finish, or stop it", path = path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

/// The two words at the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Replicator to VMM: 1 asks.
    pub r2r: usize,
    /// VMM to replicator: not 0 means that the bitmap is there.
    pub p2r: usize,
}

/// An open bitmap file of a region.
#[derive(Debug)]
pub struct BitmapFile {
    file: File,
    path: PathBuf,
    pages: u64,
    page_bytes: u64,
}

impl BitmapFile {
    /// Opens the file for a region of `region_bytes` in host pages of `page_bytes`. It exists; one that is empty, as
    /// `> FILE` leaves it, is given its size.
    ///
    /// # Errors
    /// [`BitmapFileError`].
    pub fn open(path: &Path, region_bytes: u64, page_bytes: u64) -> Result<Self, BitmapFileError> {
        let failed = |what| move |source| BitmapFileError::Io { what, path: path.to_owned(), source };
        // Opening a pipe would wait for its other end: look before opening.
        if !std::fs::metadata(path).map_err(failed("open"))?.is_file() {
            return Err(BitmapFileError::Kind { path: path.to_owned() });
        }
        let file =
            OpenOptions::new().read(true).write(true).open(path).map_err(failed("open for reading and writing"))?;
        let pages = region_bytes.div_ceil(page_bytes);
        let expected_bytes = HEADER as u64 + pages.div_ceil(8);
        let found_bytes = file.metadata().map_err(failed("look at"))?.len();
        if found_bytes == 0 {
            file.set_len(expected_bytes).map_err(failed("size"))?;
        } else if found_bytes != expected_bytes {
            return Err(BitmapFileError::Size { path: path.to_owned(), found_bytes, expected_bytes });
        }
        Ok(Self { file, path: path.to_owned(), pages, page_bytes })
    }

    /// Takes the file for this replicator alone, until it is closed. Original replicators take no lock and are not stopped.
    ///
    /// # Errors
    /// [`BitmapFileError::Busy`] where another one has it.
    pub fn lock(&self) -> Result<(), BitmapFileError> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(BitmapFileError::Busy { path: self.path.clone() }),
            Err(error) => Err(self.failed("lock", error.into())),
        }
    }

    /// An empty set over the region's pages.
    pub fn empty_set(&self) -> PageBitmap {
        PageBitmap::new(self.pages, self.page_bytes)
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads both words.
    ///
    /// # Errors
    /// [`BitmapFileError::Io`].
    pub fn header(&self) -> Result<Header, BitmapFileError> {
        let mut bytes = [0; HEADER];
        self.file.read_exact_at(&mut bytes, 0).map_err(|source| self.failed("read", source))?;
        let word = |at: usize| usize::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        Ok(Header { r2r: word(0), p2r: word(WORD) })
    }

    /// Writes `r2r`.
    ///
    /// # Errors
    /// [`BitmapFileError::Io`].
    pub fn set_r2r(&self, value: usize) -> Result<(), BitmapFileError> {
        self.write(&value.to_ne_bytes(), 0)
    }

    /// Writes `p2r`.
    ///
    /// # Errors
    /// [`BitmapFileError::Io`].
    pub fn set_p2r(&self, value: usize) -> Result<(), BitmapFileError> {
        self.write(&value.to_ne_bytes(), WORD as u64)
    }

    /// Writes the bitmap.
    ///
    /// # Errors
    /// [`BitmapFileError::Io`].
    pub fn write_set(&self, set: &PageBitmap) -> Result<(), BitmapFileError> {
        self.write(&set.to_bytes(), HEADER as u64)
    }

    /// Reads the bitmap.
    ///
    /// # Errors
    /// [`BitmapFileError::Io`].
    pub fn read_set(&self) -> Result<PageBitmap, BitmapFileError> {
        let mut bytes = vec![0; self.empty_set().byte_len()];
        self.file.read_exact_at(&mut bytes, HEADER as u64).map_err(|source| self.failed("read", source))?;
        PageBitmap::from_bytes(&bytes, self.pages, self.page_bytes)
            .map_err(|error| self.failed("read", io::Error::other(error)))
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), BitmapFileError> {
        self.file.write_all_at(bytes, at).map_err(|source| self.failed("write", source))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> BitmapFileError {
        BitmapFileError::Io { what, path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dirty_bitmap");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    #[test]
    fn the_bytes_are_those_of_the_original_protocol() {
        let (_dir, path) = file(&[]);
        let bitmap = BitmapFile::open(&path, 20 * 4096, 4096).unwrap();
        let mut set = bitmap.empty_set();
        [0, 9, 19].into_iter().for_each(|page| set.set(page));
        bitmap.write_set(&set).unwrap();
        bitmap.set_r2r(1).unwrap();
        bitmap.set_p2r(2).unwrap();
        let mut expected = [1_usize.to_ne_bytes(), 2_usize.to_ne_bytes()].concat();
        expected.extend([0x01, 0x02, 0x08]);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
        assert_eq!(bitmap.header().unwrap(), Header { r2r: 1, p2r: 2 });
        assert_eq!(bitmap.read_set().unwrap(), set);
    }

    #[test]
    fn unsuitable_files_are_refused() {
        for len in [1, HEADER, HEADER + 2, HEADER + 4, 100_000] {
            let (_dir, path) = file(&vec![0; len]);
            let refused = BitmapFile::open(&path, 20 * 4096, 4096);
            assert!(matches!(refused, Err(BitmapFileError::Size { expected_bytes: 19, .. })), "{len}");
        }
        let (dir, path) = file(&[]);
        assert!(matches!(BitmapFile::open(dir.path(), 4096, 4096), Err(BitmapFileError::Kind { .. })));
        assert!(matches!(
            BitmapFile::open(&path.with_extension("gone"), 4096, 4096),
            Err(BitmapFileError::Io { what: "open", .. })
        ));
    }

    #[test]
    fn only_one_replicator_holds_the_lock() {
        let (_dir, path) = file(&[]);
        let first = BitmapFile::open(&path, 4096, 4096).unwrap();
        let second = BitmapFile::open(&path, 4096, 4096).unwrap();
        first.lock().unwrap();
        assert!(matches!(second.lock(), Err(BitmapFileError::Busy { .. })));
        drop(first);
        second.lock().unwrap();
    }
}
