//! The replicator: keeps a copy equal to a region by way of the file protocol ([`replicate`]).
//!
//! ```text
//! copy all ──► ask ──► wait ──► copy what the bitmap says ──► sleep ──┐
//!               ▲                    │ clean: verify, finished        │
//!               └─────────────────────────────────────────────────────┘
//! ```
//!
//! As the original tests': it ends when the writers have stopped and a bitmap comes back clean; until then the two `sum -r`
//! differ, afterwards they are equal. The region is read by `pread` of its file, so a file that is cut short under it is an
//! error and no SIGBUS.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use abi::Gpa;
use thiserror::Error;
use workload::PAGE_BYTES;
use workload::digest::{RegionDigest, leaf};

use super::SumR;
use super::endpoint::Destination;
use super::file::{BitmapFile, BitmapFileError};
use super::peer::{Sender, verdict};
use super::server::POLL;
use super::wire::{Verdict, WireError};
use crate::memory::MemoryError;
use crate::pass::{CopyTarget, TargetError};

/// Bytes read at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// Why a replication failed.
#[derive(Debug, Error)]
pub enum ReplicateError {
    /// The shared file.
    #[error("cannot {what} the shared file {path}: {source}", path = path.display())]
    Share {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The shared file is no region.
    #[error("the shared file {path} has {len_bytes} bytes, which is no region of whole pages of {page_bytes}; start the VMM with --share first", path = path.display())]
    Region {
        /// The file.
        path: PathBuf,
        /// Its size.
        len_bytes: u64,
        /// The host's page.
        page_bytes: u64,
    },
    /// The bitmap file.
    #[error(transparent)]
    File(#[from] BitmapFileError),
    /// The destination.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The copy cannot be read back.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The VMM does not answer.
    #[error("the VMM has not answered through {path} for {waited_ms} ms in pass {pass}; is it running with --bitmap-file?", path = path.display())]
    NoAnswer {
        /// The bitmap file.
        path: PathBuf,
        /// How long it was waited for.
        waited_ms: u128,
        /// Which bitmap.
        pass: u64,
    },
    /// The connection to the peer.
    #[error("cannot {what} the peer: {source}")]
    Peer {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The peer breaks the protocol.
    #[error("the peer breaks the replication protocol: {0}")]
    Wire(#[from] WireError),
}

/// What a replicator is told.
#[derive(Clone, Debug)]
pub struct ReplicateOptions {
    /// The file that backs the region.
    pub share: PathBuf,
    /// The bitmap file.
    pub bitmap_file: PathBuf,
    /// Where the copy goes.
    pub dest: Destination,
    /// Time to sleep between two requests; the original tests' is 100 ms.
    pub interval: Duration,
    /// A VMM or peer that is silent for so long is gone.
    pub timeout: Duration,
}

/// What a replicator did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replicated {
    /// Bitmaps read, the last, clean one included; the full copy is none.
    pub passes: u64,
    /// Pages copied after the full copy.
    pub pages: u64,
    /// `sum -r` of the region when the clean bitmap had been read.
    pub sum_r_source: SumR,
    /// `sum -r` of the copy.
    pub sum_r_dest: SumR,
    /// Whether digest and checksum of both sides are the same.
    pub equal: bool,
}

/// Copies until a clean bitmap comes back, then verifies.
///
/// # Errors
/// [`ReplicateError`]. A copy that is not equal at the end is no error but [`Replicated::equal`].
pub fn replicate(options: &ReplicateOptions) -> Result<Replicated, ReplicateError> {
    let region = Region::open(&options.share)?;
    let file = BitmapFile::open(&options.bitmap_file, region.len_bytes, region.page_bytes)?;
    file.lock()?;
    let mut sink = match &options.dest {
        Destination::File(path) => {
            CopyTarget::check_not(path, &region.file)?;
            Sink::File(CopyTarget::file(path, region.len_bytes)?)
        }
        Destination::Peer(endpoint) => {
            let page_bytes = u32::try_from(region.page_bytes).unwrap_or(u32::MAX);
            Sink::Peer(Sender::connect(endpoint, region.len_bytes, page_bytes, options.timeout)?)
        }
    };
    region.copy(0..region.len_bytes, &mut sink)?;
    sink.pass_end()?;
    let (mut passes, mut pages) = (0, 0);
    loop {
        // p2r first: a VMM that sees r2r = 1 may answer at once, and this must not wipe the answer out.
        file.set_p2r(0)?;
        file.set_r2r(1)?;
        wait_for_answer(&file, options.timeout, passes)?;
        let dirty = file.read_set()?;
        passes += 1;
        if dirty.is_clean() {
            break;
        }
        pages += dirty.count();
        for run in dirty.runs() {
            let end = (run.end * region.page_bytes).min(region.len_bytes);
            region.copy(run.start * region.page_bytes..end, &mut sink)?;
        }
        sink.pass_end()?;
        thread::sleep(options.interval);
    }
    let (ours, sum_r_source) = region.verdict()?;
    let (theirs, sum_r_dest) = sink.finish(ours, region.len_bytes)?;
    Ok(Replicated { passes, pages, sum_r_source, sum_r_dest, equal: ours == theirs })
}

fn wait_for_answer(file: &BitmapFile, timeout: Duration, pass: u64) -> Result<(), ReplicateError> {
    let start = Instant::now();
    while file.header()?.p2r == 0 {
        if start.elapsed() >= timeout {
            let waited_ms = start.elapsed().as_millis();
            return Err(ReplicateError::NoAnswer { path: file.path().to_owned(), waited_ms, pass });
        }
        thread::sleep(POLL);
    }
    Ok(())
}

enum Sink {
    File(CopyTarget),
    Peer(Sender),
}

impl Sink {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ReplicateError> {
        match self {
            Self::File(target) => {
                target.write(offset, bytes);
                Ok(())
            }
            Self::Peer(sender) => sender.data(offset, bytes),
        }
    }

    fn zero(&mut self, offset: u64, len_bytes: u64) -> Result<(), ReplicateError> {
        match self {
            Self::File(target) => {
                target.zero(offset..offset + len_bytes);
                Ok(())
            }
            Self::Peer(sender) => sender.zero(offset, len_bytes),
        }
    }

    fn pass_end(&mut self) -> Result<(), ReplicateError> {
        match self {
            Self::File(_) => Ok(()),
            Self::Peer(sender) => sender.pass_end(),
        }
    }

    fn finish(self, ours: Verdict, len_bytes: u64) -> Result<(Verdict, SumR), ReplicateError> {
        match self {
            Self::File(target) => {
                target.sync()?;
                verdict(&target)
            }
            Self::Peer(sender) => {
                let theirs = sender.finish(ours)?;
                Ok((theirs, SumR::from_parts(theirs.sum, len_bytes)))
            }
        }
    }
}

/// The file that backs the region.
struct Region {
    file: File,
    path: PathBuf,
    len_bytes: u64,
    page_bytes: u64,
}

impl Region {
    fn open(path: &Path) -> Result<Self, ReplicateError> {
        let failed = |what| move |source| ReplicateError::Share { what, path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(failed("open"))?;
        let page_bytes = crate::memory::host_page_bytes();
        let len_bytes = if metadata.is_file() { metadata.len() } else { 0 };
        if len_bytes == 0 || !len_bytes.is_multiple_of(page_bytes) {
            return Err(ReplicateError::Region { path: path.to_owned(), len_bytes, page_bytes });
        }
        let file = File::open(path).map_err(failed("open"))?;
        Ok(Self { file, path: path.to_owned(), len_bytes, page_bytes })
    }

    /// Hands the bytes of `range` to `sink`, split into runs of zero pages and others.
    fn copy(&self, range: std::ops::Range<u64>, sink: &mut Sink) -> Result<(), ReplicateError> {
        self.chunks(range, |offset, bytes| {
            let mut start = 0;
            while start < bytes.len() {
                let zero = is_zero_page(bytes, start);
                let mut end = start;
                while end < bytes.len() && is_zero_page(bytes, end) == zero {
                    end = (end + PAGE_BYTES as usize).min(bytes.len());
                }
                let at = offset + start as u64;
                if zero {
                    sink.zero(at, (end - start) as u64)?;
                } else {
                    sink.data(at, &bytes[start..end])?;
                }
                start = end;
            }
            Ok(())
        })
    }

    fn verdict(&self) -> Result<(Verdict, SumR), ReplicateError> {
        let mut digest = RegionDigest::new(0);
        let mut sum = SumR::default();
        self.chunks(0..self.len_bytes, |offset, bytes| {
            for (page, at) in bytes.chunks(PAGE_BYTES as usize).zip((offset..).step_by(PAGE_BYTES as usize)) {
                digest.add_leaf(Gpa::new(at), leaf(page));
            }
            sum.update(bytes);
            Ok(())
        })?;
        Ok((Verdict { digest: digest.value(), sum: sum.checksum() }, sum))
    }

    fn chunks(
        &self,
        range: std::ops::Range<u64>,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), ReplicateError>,
    ) -> Result<(), ReplicateError> {
        let mut buffer = vec![0; CHUNK_BYTES.min(range.end - range.start) as usize];
        for offset in range.clone().step_by(CHUNK_BYTES as usize) {
            let bytes = &mut buffer[..CHUNK_BYTES.min(range.end - offset) as usize];
            self.file.read_exact_at(bytes, offset).map_err(|source| ReplicateError::Share {
                what: "read",
                path: self.path.clone(),
                source,
            })?;
            each(offset, bytes)?;
        }
        Ok(())
    }
}

fn is_zero_page(bytes: &[u8], start: usize) -> bool {
    let end = (start + PAGE_BYTES as usize).min(bytes.len());
    bytes[start..end].iter().all(|byte| *byte == 0)
}
