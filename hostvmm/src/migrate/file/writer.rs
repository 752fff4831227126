//! Saving: [`FileWriter`].

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use workload::PAGE_BYTES;

use super::layout::{Clock, Head, Layout, OFFER_AT, OFFER_MAX, SEAL_AT, Seal, block};
use super::{FileError, STATE_MAX_BYTES, failed, lock};
use crate::dirty::PageBitmap;
use crate::memory::SlotId;
use crate::migrate::pages::{LEAF_PAGE as PAGE, is_zero};
use crate::migrate::vm::Moment;
use crate::migrate::wire::{FrameEncoder, Message, Offer, Section};

/// A save that is under way. Dropped before [`Self::finish`], it leaves nothing that could be taken for a guest.
#[derive(Debug)]
pub struct FileWriter {
    target: Target,
    offset: u64,
    head: Head,
    layout: Layout,
    /// Pages of [`PAGE`] bytes that have data in the file: the others are holes.
    data: [PageBitmap; SlotId::COUNT],
    frames: FrameEncoder,
}

/// The file, and what it is called.
#[derive(Debug)]
struct Target {
    file: File,
    path: PathBuf,
    /// Its name until it is whole.
    partial: Option<PathBuf>,
    offset: u64,
    is_finished: bool,
}

/// What a file without offset is called until it is whole.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".partial");
    name.into()
}

impl FileWriter {
    /// Begins to save the guest that `offer` describes at `offset` of `path`. What is there at `offset` and after it is lost; without
    /// offset, a file at `path` is replaced when the save is whole and not before.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn create(path: &Path, offset: u64, offer: &Offer) -> Result<Self, FileError> {
        let too_large = || failed("save to", path)(io::ErrorKind::FileTooLarge.into());
        let layout = Layout::of(&offer.description).ok_or_else(too_large)?;
        let mut frames = FrameEncoder::new();
        let bytes = frames.frame(&Message::Offer(Box::new(offer.clone())));
        if bytes.len() as u64 > OFFER_MAX {
            return Err(too_large());
        }
        let target = Target::open(path, offset)?;
        let data = [offer.description.boot.ram, offer.description.boot.region]
            .map(|range| PageBitmap::covering(range.len_bytes(), PAGE_BYTES));
        let writer = Self { target, offset, head: Head::new(layout, &bytes), layout, data, frames };
        writer.put(0, &block(&writer.head))?;
        writer.put(OFFER_AT, &bytes)?;
        Ok(writer)
    }

    /// Writes `bytes`, whole pages of [`PAGE`] bytes, as those of `slot` from `at` on; pages of zeroes become holes. Returns how many bytes
    /// were written.
    ///
    /// # Errors
    /// [`FileError::Io`].
    ///
    /// # Panics
    /// If the bytes are no whole pages of the slot.
    pub fn write(&mut self, slot: SlotId, at: u64, bytes: &[u8]) -> Result<u64, FileError> {
        assert!(at.is_multiple_of(PAGE_BYTES) && bytes.len().is_multiple_of(PAGE), "whole pages");
        let mut written = 0;
        let mut rest = bytes;
        let mut page = at / PAGE_BYTES;
        while !rest.is_empty() {
            let zero = is_zero(&rest[..PAGE]);
            let count = rest.chunks(PAGE).take_while(|page| is_zero(page) == zero).count();
            let (run, after) = rest.split_at(count * PAGE);
            let pages = page..page + count as u64;
            if zero {
                self.clear(slot, pages.clone())?;
            } else {
                self.data[slot.index()].set_range(pages.clone());
                self.put(self.layout.slots[slot.index()] + pages.start * PAGE_BYTES, run)?;
                written += run.len() as u64;
            }
            (rest, page) = (after, pages.end);
        }
        Ok(written)
    }

    /// Makes `len_bytes` of `slot` from `at` on, whole pages, zeroes: those that were written become holes.
    ///
    /// # Errors
    /// [`FileError::Io`].
    ///
    /// # Panics
    /// If they are no whole pages of the slot.
    pub fn write_zeroes(&mut self, slot: SlotId, at: u64, len_bytes: u64) -> Result<(), FileError> {
        assert!(at.is_multiple_of(PAGE_BYTES) && len_bytes.is_multiple_of(PAGE_BYTES), "whole pages");
        self.clear(slot, at / PAGE_BYTES..(at + len_bytes) / PAGE_BYTES)
    }

    /// Waits until what was written is on the disk. Done after each pass, it leaves little to wait for at the end, when the
    /// guest stands still.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn sync(&self) -> Result<(), FileError> {
        self.target.file.sync_data().map_err(self.failed("flush"))
    }

    /// Ends the save: state, then, when all is on the disk, the seal, and the file's own name. `digests` are those of all memory,
    /// end to end with the offer's salt. Returns the file, unlocked.
    ///
    /// # Errors
    /// [`FileError`]; then the file is not whole and says so.
    pub fn finish(
        mut self,
        stopped: Moment,
        sections: &[Section],
        digests: [u64; SlotId::COUNT],
    ) -> Result<File, FileError> {
        let mut state = Vec::new();
        let mut add = |message: &Message| self.frames.encode(message, 0, &mut state);
        add(&Message::Stopped { at: stopped.at, counter: stopped.counter });
        sections.iter().flat_map(Section::parts).for_each(|part| add(&Message::Section(part)));
        add(&Message::Digest(Some(digests)));
        let found_bytes = state.len() as u64;
        if found_bytes > STATE_MAX_BYTES {
            return Err(FileError::StateTooLong { found_bytes, most_bytes: STATE_MAX_BYTES });
        }
        self.put(self.layout.state, &state)?;
        self.target.file.sync_all().map_err(self.failed("flush"))?;
        self.put(SEAL_AT, &block(&Seal::new(&self.head, &state, digests, this_clock())))?;
        self.target.file.sync_all().map_err(self.failed("flush"))?;
        let file = self.target.file.try_clone().map_err(self.failed("keep"))?;
        self.target.name()?;
        // The lock is of the open file, not of one descriptor of it: readers may come now.
        file.unlock().map_err(self.failed("unlock"))?;
        Ok(file)
    }

    /// Writes through another descriptor from now on.
    #[cfg(test)]
    pub(super) fn write_through(&mut self, file: File) {
        self.target.file = file;
    }

    /// Makes holes of those of `pages` that have data.
    fn clear(&mut self, slot: SlotId, pages: std::ops::Range<u64>) -> Result<(), FileError> {
        let mut page = pages.start;
        while page < pages.end {
            let start = page;
            while page < pages.end && self.data[slot.index()].test(page) {
                self.data[slot.index()].clear(page);
                page += 1;
            }
            if page > start {
                self.punch(self.layout.slots[slot.index()] + start * PAGE_BYTES, (page - start) * PAGE_BYTES)?;
            } else {
                page += 1;
            }
        }
        Ok(())
    }

    fn punch(&self, at: u64, len_bytes: u64) -> Result<(), FileError> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.target.file, how, self.offset + at, len_bytes) {
            Ok(()) => Ok(()),
            // A file system without holes: then it must be zeroes.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                (0..len_bytes / PAGE_BYTES).try_for_each(|page| self.put(at + page * PAGE_BYTES, &[0; PAGE]))
            }
            Err(error) => Err(self.failed("punch a hole into")(error.into())),
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.target.file.write_all_at(bytes, self.offset + at).map_err(self.failed("write"))
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> FileError {
        failed(what, &self.target.path)
    }
}

impl Target {
    fn open(path: &Path, offset: u64) -> Result<Self, FileError> {
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(FileError::NotAFile { path: path.to_owned() });
        }
        let partial = (offset == 0).then(|| partial_path(path));
        let opened = partial.as_deref().unwrap_or(path);
        // Guest memory is nobody else's to read. A link in place of our own file would be somebody's trick; the kernel waits for
        // nobody at the other end of a pipe.
        let flags = if partial.is_some() { libc::O_NOFOLLOW } else { 0 } | libc::O_NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(opened).map_err(failed("create", opened))?;
        let found = file.metadata().map_err(failed("look at", opened))?;
        if !found.is_file() {
            return Err(FileError::NotAFile { path: opened.to_owned() });
        }
        lock(&file, opened)?;
        // Another save may have given the file its name between the two calls.
        let is_still_there = fs::metadata(opened).is_ok_and(|now| now.ino() == found.ino() && now.dev() == found.dev());
        if !is_still_there {
            return Err(FileError::Busy { path: opened.to_owned() });
        }
        let target = Self { file, path: path.to_owned(), partial: partial.clone(), offset, is_finished: false };
        // What was there from the offset on goes first: a seal of another guest above all.
        target.file.set_len(offset).map_err(failed("clear", opened))?;
        if found.mode() & 0o077 != 0 && target.partial.is_some() {
            rustix::fs::fchmod(&target.file, rustix::fs::Mode::from_raw_mode(0o600))
                .map_err(|error| failed("protect", opened)(error.into()))?;
        }
        Ok(target)
    }

    /// Gives the file its own name, which lasts.
    fn name(&mut self) -> Result<(), FileError> {
        if let Some(partial) = &self.partial {
            fs::rename(partial, &self.path).map_err(failed("name", &self.path))?;
            let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let lasts = File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
            if let Err(source) = lasts {
                // Who is told that the save failed lets the guest run on: then it must not be here as well.
                let _ = fs::remove_file(&self.path);
                return Err(failed("name", &self.path)(source));
            }
        }
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // Best effort: what stays behind has no seal.
        let _ = match &self.partial {
            Some(partial) => fs::remove_file(partial),
            None => self.file.set_len(self.offset),
        };
    }
}

/// This host's clock and boot.
pub(super) fn this_clock() -> Clock {
    let ns = |id| {
        let now = clock_gettime(id);
        now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
    };
    let wall_less_monotonic_ns = ns(ClockId::Realtime).saturating_sub(ns(ClockId::Monotonic));
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let boot_id = u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes();
    Clock { wall_less_monotonic_ns, boot_id }
}
