//! Where copies go: [`CopyTarget`], a mapped file or anonymous memory of the region's size.
//!
//! A file gets all its blocks before the run, so a full disk is an error at the start and never a SIGBUS in the middle.
//! (A file that somebody else truncates during the run is beyond what a mapping can survive.) The target remembers
//! which pages may hold something else than zeroes; zeroing any other page touches nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use thiserror::Error;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory as _, VolatileSlice};
use workload::PAGE_BYTES;

use super::source::PageSource;
use crate::replicate::SumR;

/// Why a destination cannot take the copy.
#[derive(Debug, Error)]
pub enum TargetError {
    /// The file cannot be opened, sized, filled or synced.
    #[error("cannot {what} the destination {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is a directory, device, pipe or socket.
    #[error("the destination {path} is {kind}; name a regular file", path = path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The file has another size than the region.
    #[error("the destination {path} has {found_bytes} bytes and the region {expected_bytes}; run `truncate -s {expected_bytes} {path}`, or name a new file", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// The region's.
        expected_bytes: u64,
    },
    /// The destination is the source.
    #[error("the destination {path} is the shared file itself; name another", path = path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// The host refused the mapping.
    #[error("cannot map {len_bytes} bytes for the copy: {source}; raise `ulimit -v` or use a smaller region")]
    Map {
        /// Of what size.
        len_bytes: u64,
        /// Why.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The region is not whole pages.
    #[error("a copy of {len_bytes} bytes is not made of whole pages of {PAGE_BYTES}")]
    Partial {
        /// The size asked for.
        len_bytes: u64,
    },
}

/// A destination for copies.
#[derive(Debug)]
pub struct CopyTarget {
    mapping: MmapRegion<()>,
    file: Option<(PathBuf, File)>,
    /// One bit a page of [`PAGE_BYTES`]: set where the page may hold something else than zeroes.
    written: Vec<AtomicU64>,
}

impl CopyTarget {
    /// Zeroed anonymous memory.
    ///
    /// # Errors
    /// [`TargetError::Map`], [`TargetError::Partial`].
    pub fn anonymous(len_bytes: u64) -> Result<Self, TargetError> {
        let size = whole_pages(len_bytes)?;
        let mapping = MmapRegion::new(size).map_err(|source| TargetError::Map { len_bytes, source })?;
        Ok(Self::over(mapping, None))
    }

    /// The file `path`, made if it is not there, cleared and with all its blocks allocated. A file that exists is
    /// empty or has `len_bytes`.
    ///
    /// # Errors
    /// Every variant of [`TargetError`] but [`TargetError::SameFile`]; a full disk is a [`TargetError::Io`].
    pub fn file(path: &Path, len_bytes: u64) -> Result<Self, TargetError> {
        let size = whole_pages(len_bytes)?;
        let failed = |what| move |source| TargetError::Io { what, path: path.to_owned(), source };
        // Opening a pipe for writing would wait for its reader: look before opening.
        if let Ok(metadata) = std::fs::metadata(path) {
            check_file(path, &metadata, len_bytes)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed("open"))?;
        check_file(path, &file.metadata().map_err(failed("look at"))?, len_bytes)?;
        file.set_len(0).map_err(failed("clear"))?;
        if let Err(error) = preallocate(&file, len_bytes) {
            // Give back the blocks that were found before the disk was full.
            file.set_len(0).map_err(failed("clear"))?;
            return Err(failed("allocate")(error));
        }
        let again = file.try_clone().map_err(failed("open"))?;
        let mapping = MmapRegion::from_file(FileOffset::new(again, 0), size)
            .map_err(|source| TargetError::Map { len_bytes, source })?;
        Ok(Self::over(mapping, Some((path.to_owned(), file))))
    }

    /// Refuses `path` where it is `source` under another name. To be asked before [`Self::file`], which clears it.
    ///
    /// # Errors
    /// [`TargetError::SameFile`].
    pub fn check_not(path: &Path, source: &File) -> Result<(), TargetError> {
        match (std::fs::metadata(path), source.metadata()) {
            (Ok(target), Ok(source)) if (target.dev(), target.ino()) == (source.dev(), source.ino()) => {
                Err(TargetError::SameFile { path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.slice(offset, bytes.len() as u64).copy_from(bytes);
        self.mark(offset..offset + bytes.len() as u64);
    }

    /// Writes all of `from` at `offset`.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub(crate) fn write_from(&self, offset: u64, from: &VolatileSlice<'_>) {
        let len_bytes = from.len() as u64;
        from.copy_to_volatile_slice(self.slice(offset, len_bytes));
        self.mark(offset..offset + len_bytes);
    }

    /// Makes `range`, whole pages, zero; touches only pages that may be something else.
    ///
    /// # Panics
    /// If the range reaches past the end.
    pub fn zero(&self, range: Range<u64>) {
        for offset in range.step_by(PAGE_BYTES as usize) {
            let (word, bit) = place(offset);
            if self.written[word].load(Ordering::Relaxed) & bit != 0 {
                self.slice(offset, PAGE_BYTES).copy_from(&[0; PAGE_BYTES as usize]);
                self.written[word].fetch_and(!bit, Ordering::Relaxed);
            }
        }
    }

    /// Brings a file's bytes to its disk; nothing to do for memory.
    ///
    /// # Errors
    /// [`TargetError::Io`].
    pub fn sync(&self) -> Result<(), TargetError> {
        match &self.file {
            // On Linux fsync writes back pages dirtied through a shared mapping too.
            Some((path, file)) => {
                file.sync_all().map_err(|source| TargetError::Io { what: "sync", path: path.clone(), source })
            }
            None => Ok(()),
        }
    }

    fn over(mapping: MmapRegion<()>, file: Option<(PathBuf, File)>) -> Self {
        let words = (mapping.size() as u64 / PAGE_BYTES).div_ceil(64);
        Self { mapping, file, written: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    fn slice(&self, offset: u64, len_bytes: u64) -> VolatileSlice<'_> {
        self.mapping.get_slice(offset as usize, len_bytes as usize).expect("the caller stays within the destination")
    }

    fn mark(&self, range: Range<u64>) {
        let mut page = range.start / PAGE_BYTES;
        let end = range.end.div_ceil(PAGE_BYTES);
        while page < end {
            let count = (64 - page % 64).min(end - page);
            let bits = (u64::MAX >> (64 - count)) << (page % 64);
            let word = &self.written[(page / 64) as usize];
            if word.load(Ordering::Relaxed) & bits != bits {
                word.fetch_or(bits, Ordering::Relaxed);
            }
            page += count;
        }
    }
}

impl PageSource for CopyTarget {
    fn len_bytes(&self) -> u64 {
        self.mapping.size() as u64
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.slice(offset, bytes.len() as u64).copy_to(bytes);
    }
}

/// The checksum of `sum -r` over all of `source`.
///
/// # Errors
/// [`crate::memory::MemoryError::Io`] where the source cannot be searched for holes.
pub fn sum_r(source: &(impl PageSource + ?Sized)) -> Result<SumR, crate::memory::MemoryError> {
    let mut sum = SumR::default();
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    for extent in source.data_extents()? {
        sum.update_zeros(extent.start - at);
        for offset in extent.clone().step_by(buffer.len()) {
            let len = (extent.end - offset).min(buffer.len() as u64) as usize;
            source.read(offset, &mut buffer[..len]);
            sum.update(&buffer[..len]);
        }
        at = extent.end;
    }
    sum.update_zeros(source.len_bytes() - at);
    Ok(sum)
}

fn place(offset: u64) -> (usize, u64) {
    let page = offset / PAGE_BYTES;
    ((page / 64) as usize, 1 << (page % 64))
}

fn whole_pages(len_bytes: u64) -> Result<usize, TargetError> {
    match usize::try_from(len_bytes) {
        Ok(size) if size > 0 && len_bytes.is_multiple_of(PAGE_BYTES) => Ok(size),
        _ => Err(TargetError::Partial { len_bytes }),
    }
}

fn check_file(path: &Path, metadata: &std::fs::Metadata, expected_bytes: u64) -> Result<(), TargetError> {
    let file_type = metadata.file_type();
    let kind = if file_type.is_file() {
        return match metadata.len() {
            found_bytes if found_bytes != 0 && found_bytes != expected_bytes => {
                Err(TargetError::Size { path: path.to_owned(), found_bytes, expected_bytes })
            }
            _ => Ok(()),
        };
    } else if file_type.is_dir() {
        "a directory"
    } else if file_type.is_fifo() {
        "a pipe"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(TargetError::Kind { path: path.to_owned(), kind })
}

/// Allocates every block; writes zeroes where the file system cannot allocate without writing.
fn preallocate(file: &File, len_bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, len_bytes) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            let zeroes = vec![0; 1 << 20];
            let mut left = len_bytes;
            let mut writer = file;
            while left > 0 {
                let len = left.min(zeroes.len() as u64) as usize;
                io::Write::write_all(&mut writer, &zeroes[..len])?;
                left -= len as u64;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_what_was_written_when_the_mapping_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let target = CopyTarget::file(&path, 3 * 4096).unwrap();
        target.write(4096 + 5, b"tide");
        target.write(8192, &[7; 4096]);
        target.zero(8192..12288);
        target.sync().unwrap();
        let sum = sum_r(&target).unwrap();
        drop(target);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3 * 4096);
        assert_eq!(&bytes[4096 + 5..4096 + 9], b"tide");
        assert!(bytes[8192..].iter().all(|byte| *byte == 0));
        assert_eq!(sum, SumR::of_bytes(&bytes));
    }

    #[test]
    fn stale_bytes_of_an_older_copy_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        std::fs::write(&path, [9; 8192]).unwrap();
        drop(CopyTarget::file(&path, 8192).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), [0; 8192]);
    }

    #[test]
    fn unsuitable_destinations_are_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(CopyTarget::file(dir.path(), 4096), Err(TargetError::Kind { kind: "a directory", .. })));
        let path = dir.path().join("small");
        std::fs::write(&path, b"kept").unwrap();
        let found = CopyTarget::file(&path, 4096);
        assert!(matches!(found, Err(TargetError::Size { found_bytes: 4, expected_bytes: 4096, .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
        assert!(matches!(CopyTarget::file(&path, 100), Err(TargetError::Partial { len_bytes: 100 })));
        let missing = dir.path().join("no/such");
        assert!(matches!(CopyTarget::file(&missing, 4096), Err(TargetError::Io { what: "open", .. })));
        let file = File::open(&path).unwrap();
        assert!(matches!(CopyTarget::check_not(&path, &file), Err(TargetError::SameFile { .. })));
        assert!(CopyTarget::check_not(&missing, &file).is_ok());
    }

    #[test]
    fn a_full_disk_is_found_before_the_run() {
        // No file system holds 2^62 bytes: the allocation fails as on a full disk.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        assert!(preallocate(&file, 1 << 62).is_err());
    }
}
