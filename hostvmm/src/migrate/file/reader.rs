//! Loading: [`FileReader`]. The file is as little to be trusted as a peer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use workload::PAGE_BYTES;
use workload::digest::node;

use super::layout::{BLOCK, Clock, Head, Layout, OFFER_AT, OFFER_MAX, SEAL_AT, Seal, Wrong};
use super::writer::this_clock;
use super::{FileError, STATE_MAX_BYTES, failed, lock_shared};
use crate::memory::{GuestMemory, SlotId};
use crate::migrate::clock::ClockOffset;
use crate::migrate::digest::{END_TO_END, PAGE, ZERO, leaf_of};
use crate::migrate::vm::Moment;
use crate::migrate::wire::{FrameDecoder, HEADER_BYTES, Message, Offer, Section, Sections, WireError};

/// Bytes read at a time: they stay in the second-level cache.
const PIECE: usize = 256 << 10;

/// By how much the wall clocks of two hosts may differ that are kept right.
const WALL_UNCERTAINTY_NS: u64 = 1_000_000_000;

/// A whole guest in a file: everything but memory has been read and checked.
#[derive(Debug)]
pub struct FileReader {
    file: File,
    path: PathBuf,
    offset: u64,
    layout: Layout,
    offer: Offer,
    stopped: Moment,
    sections: Vec<Section>,
    digests: [u64; SlotId::COUNT],
    clock: Clock,
}

/// What [`FileReader::load_memory`] has read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryLoaded {
    /// Pages of 4 KiB that are not zero.
    pub pages: u64,
    /// Digests by slot: those of the saved guest.
    pub digests: [u64; SlotId::COUNT],
}

impl FileReader {
    /// Opens the guest at `offset` of `path`.
    ///
    /// # Errors
    /// [`FileError`]: no guest, one that was not saved to the end, or one that is damaged.
    pub fn open(path: &Path, offset: u64) -> Result<Self, FileError> {
        let cannot = |what| failed(what, path);
        // Without O_NONBLOCK a pipe would wait for somebody to write it.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(cannot("open"))?;
        let found = file.metadata().map_err(cannot("look at"))?;
        if !found.is_file() {
            return Err(FileError::NotAFile { path: path.to_owned() });
        }
        lock_shared(&file, path)?;
        let len_bytes = found.len().saturating_sub(offset);
        let no_guest = || FileError::NoGuest { path: path.to_owned(), offset };
        let damaged = |part| move || FileError::Damaged { path: path.to_owned(), part };
        let wrong = |part: &'static str| {
            move |wrong| match wrong {
                Wrong::Magic => no_guest(),
                Wrong::Version(found) => FileError::Version { path: path.to_owned(), found },
                Wrong::Damaged => damaged(part)(),
            }
        };
        if len_bytes < OFFER_AT {
            return Err(no_guest());
        }
        let mut block = [0; BLOCK];
        file.read_exact_at(&mut block, offset).map_err(cannot("read"))?;
        let head = Head::decode(&block).map_err(wrong("head"))?;
        file.read_exact_at(&mut block, offset + SEAL_AT).map_err(cannot("read"))?;
        let seal = Seal::decode(&block, &head).map_err(wrong("seal"))?;
        let seal = seal.ok_or_else(|| FileError::Unfinished { path: path.to_owned() })?;

        let part = |at: u64, count: u64, most: u64, part: &'static str| {
            let end = at.checked_add(count).filter(|end| *end <= len_bytes && count <= most);
            end.ok_or_else(damaged(part))?;
            // Both limits fit any address space.
            let mut bytes = vec![0; count as usize];
            file.read_exact_at(&mut bytes, offset + at).map_err(cannot("read"))?;
            Ok::<_, FileError>(bytes)
        };
        let mut frames = Frames { decoder: FrameDecoder::new(), path };
        let bytes = part(OFFER_AT, head.offer_bytes(), OFFER_MAX, "offer")?;
        if !head.has_offer(&bytes) {
            return Err(damaged("offer")());
        }
        let (message, rest) = frames.next(&bytes, "offer")?;
        let Message::Offer(offer) = message else { return Err(damaged("offer")()) };
        let layout = Layout::of(&offer.description).filter(|layout| rest.is_empty() && *layout == head.layout());
        let layout = layout.ok_or_else(damaged("head"))?;

        let state = part(layout.state, seal.state_bytes(), STATE_MAX_BYTES, "state")?;
        if !seal.has_state(&state) || layout.state + seal.state_bytes() != len_bytes {
            return Err(damaged("state")());
        }
        let (stopped, sections) = frames.state(&state, seal.digests())?;
        let (digests, clock) = (seal.digests(), seal.clock());
        Ok(Self { file, path: path.to_owned(), offset, layout, offer: *offer, stopped, sections, digests, clock })
    }

    /// The file with this reader's lock on it. Whoever runs the guest keeps it: so a process that has saved the guest and is told to
    /// run it on can tell that it runs elsewhere ([`super::is_loaded`]).
    pub fn into_file(self) -> File {
        self.file
    }

    /// The guest, and how it was saved.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// When it was stopped, by the clock of the host that saved it.
    pub fn stopped(&self) -> Moment {
        self.stopped
    }

    /// How that host's clock relates to ours: the same if it is the same boot of the same host, else by the wall clocks, which
    /// two hosts must keep right.
    pub fn source_clock(&self) -> ClockOffset {
        let ours = this_clock();
        if ours.boot_id == self.clock.boot_id && ours.boot_id != [0; 16] {
            return ClockOffset::SAME;
        }
        let offset_ns = ours.wall_less_monotonic_ns.saturating_sub(self.clock.wall_less_monotonic_ns);
        ClockOffset { offset_ns, uncertainty_ns: WALL_UNCERTAINTY_NS }
    }

    /// Its state beside memory.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Fills `memory`, which is all zeroes, and checks every byte by the digests of the saved guest. Holes stay holes.
    ///
    /// # Errors
    /// [`FileError::Geometry`] where the machine is another, [`FileError::Digest`] where memory is not what was saved.
    pub fn load_memory(&self, memory: &GuestMemory) -> Result<MemoryLoaded, FileError> {
        let mut loaded = MemoryLoaded::default();
        for (slot, saved) in
            SlotId::ALL.into_iter().zip([self.offer.description.boot.ram, self.offer.description.boot.region])
        {
            if memory.slot(slot).range() != saved {
                return Err(FileError::Geometry { path: self.path.clone(), slot });
            }
            let (found, pages) = self.load_slot(memory, slot)?;
            let expected = self.digests[slot.index()];
            if found != expected {
                return Err(FileError::Digest { path: self.path.clone(), slot, expected, found });
            }
            loaded.pages += pages;
            loaded.digests[slot.index()] = found;
        }
        Ok(loaded)
    }

    fn load_slot(&self, memory: &GuestMemory, slot: SlotId) -> Result<(u64, u64), FileError> {
        let range = memory.slot(slot).range();
        let base = self.offset + self.layout.slots[slot.index()];
        let (mut sum, mut pages) = (0_u64, 0);
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while let Some(data) = self.next_data(base, at, range.len_bytes())? {
            let len = (range.len_bytes() - data).min(PIECE as u64);
            let bytes = &mut piece[..len as usize];
            self.file.read_exact_at(bytes, base + data).map_err(failed("read", &self.path))?;
            for (page, index) in bytes.chunks(PAGE).zip(0_u64..) {
                let leaf = leaf_of(page);
                if leaf != ZERO {
                    let gpa = range.start().checked_add(data + index * PAGE_BYTES).expect("a slot does not wrap");
                    memory.write(gpa, page)?;
                    sum = sum.wrapping_add(node(leaf, gpa, self.offer.salt ^ END_TO_END));
                    pages += 1;
                }
            }
            at = data + len;
        }
        Ok((sum, pages))
    }

    /// The first page at or after `at` of a slot of `len_bytes` that may have data.
    fn next_data(&self, base: u64, at: u64, len_bytes: u64) -> Result<Option<u64>, FileError> {
        if at >= len_bytes {
            return Ok(None);
        }
        match seek(&self.file, SeekFrom::Data(base + at)) {
            Ok(found) => {
                let data = (found - base) / PAGE_BYTES * PAGE_BYTES;
                Ok(Some(data.max(at)).filter(|data| *data < len_bytes))
            }
            Err(Errno::NXIO) => Ok(None),
            // A file system that knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at)),
            Err(error) => Err(failed("look for holes in", &self.path)(error.into())),
        }
    }
}

/// Reads frames one after another.
struct Frames<'a> {
    decoder: FrameDecoder,
    path: &'a Path,
}

impl Frames<'_> {
    /// The first message of `bytes`, and what follows it.
    fn next<'b>(&mut self, bytes: &'b [u8], part: &'static str) -> Result<(Message, &'b [u8]), FileError> {
        let wrong = |source| FileError::Frame { path: self.path.to_owned(), part, source };
        let short =
            || FileError::Frame { path: self.path.to_owned(), part, source: WireError::Short { what: "frame" } };
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(short)?;
        let header = self.decoder.header(header).map_err(wrong)?;
        let (meta, rest) = rest.split_at_checked(header.meta_bytes()).ok_or_else(short)?;
        let message = self.decoder.message(&header, meta).map_err(wrong)?;
        // Pages have their own place.
        if header.payload_bytes() != 0 { Err(short()) } else { Ok((message, rest)) }
    }

    /// Stopped, sections, digest, and nothing else.
    fn state(&mut self, mut bytes: &[u8], digests: [u64; SlotId::COUNT]) -> Result<(Moment, Vec<Section>), FileError> {
        const PART: &str = "state";
        let damaged = FileError::Damaged { path: self.path.to_owned(), part: PART };
        let (message, rest) = self.next(bytes, PART)?;
        let Message::Stopped { at, counter } = message else { return Err(damaged) };
        let mut sections = Sections::new();
        bytes = rest;
        loop {
            let (message, rest) = self.next(bytes, PART)?;
            bytes = rest;
            let wrong = |source| FileError::Frame { path: self.path.to_owned(), part: PART, source };
            match message {
                Message::Section(part) => sections.add(part).map_err(wrong)?,
                Message::Digest(Some(found)) if found == digests && bytes.is_empty() => {
                    return Ok((Moment { at, counter }, sections.finish().map_err(wrong)?));
                }
                _ => return Err(damaged),
            }
        }
    }
}
