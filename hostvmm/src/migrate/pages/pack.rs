//! [`Packer`]: from dirty runs of guest memory to batches that fit a frame.

use std::ops::Range;
use std::sync::Arc;

use super::delta::{DeltaCache, Outcome};
use super::squeeze::Squeezer;
use super::zero::{LEAF_PAGE, ZERO_LEAF, leaf_of};
use super::{LeafTable, PageError};
use crate::memory::{GuestMemory, SlotId};
use crate::migrate::wire::{Body, Encoding, Geometry, Message, PageBatch, Run};

/// Most bytes of guest memory in a batch: they stay in the second-level cache while they are looked at, hashed and sent.
const PIECE_BYTES: usize = 256 << 10;

/// Most runs of a batch: with this many single zero pages it is sent, so that its meta stays well below a frame's limit.
const MAX_RUNS: usize = 8192;

/// The leaves of the largest zero page.
const ZEROES: [u64; 16] = [ZERO_LEAF; 16];

/// A batch as it is to be sent.
#[derive(Debug)]
pub struct Packed<'a> {
    /// [`Message::Pages`].
    pub message: Message,
    /// The frame's payload.
    pub payload: &'a [u8],
}

/// Wire pages by what they were found to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageCounts {
    /// Zero, sent or known to be zero at the destination.
    pub zero: u64,
    /// Not zero, sent in whatever encoding.
    pub normal: u64,
}

/// Makes batches of one slot in one pass after another. One for each channel.
///
/// [`Self::begin`], then [`Self::add`] and [`Self::add_zeroes`] until [`Self::is_full`] or all is added, then [`Self::take`].
pub struct Packer {
    geometry: Geometry,
    delta: Option<Arc<DeltaCache>>,
    squeezer: Option<Squeezer>,
    slot: SlotId,
    pass: u32,
    runs: Vec<Run>,
    digest: u64,
    /// Pages and deltas, [`Self::used`] bytes of them.
    body: Vec<u8>,
    used: usize,
    /// Bytes of the pages that the body stands for.
    unpacked_bytes: usize,
    difference: Vec<u8>,
    leaves: Vec<u64>,
    counts: PageCounts,
    /// The destination waits for every page, one that it knows to be zero as well.
    is_postcopy: bool,
}

impl Packer {
    /// For the machine's pages; with deltas against `delta`, and compressed at zstd's level where one is given.
    ///
    /// # Errors
    /// [`PageError::NoZstd`].
    pub fn new(geometry: Geometry, delta: Option<Arc<DeltaCache>>, zstd_level: Option<i32>) -> Result<Self, PageError> {
        Ok(Self {
            geometry,
            delta,
            squeezer: zstd_level.map(Squeezer::new).transpose()?,
            slot: SlotId::Ram,
            pass: 0,
            runs: Vec::new(),
            digest: 0,
            body: vec![0; PIECE_BYTES],
            used: 0,
            unpacked_bytes: 0,
            difference: Vec::new(),
            leaves: Vec::new(),
            counts: PageCounts::default(),
            is_postcopy: false,
        })
    }

    /// What is added from here on is of `slot` in `pass`.
    ///
    /// # Panics
    /// If something was added that has not been taken.
    pub fn begin(&mut self, slot: SlotId, pass: u32) {
        assert!(self.runs.is_empty(), "a batch is of one slot and one pass");
        (self.slot, self.pass) = (slot, pass);
    }

    /// From here on the destination runs the guest: every page is sent, and none as a delta.
    ///
    /// # Panics
    /// As [`Self::begin`].
    pub fn enter_postcopy(&mut self) {
        assert!(self.runs.is_empty(), "a batch is of one phase");
        self.is_postcopy = true;
        self.delta = None;
    }

    /// Pages that were added since this was last asked.
    pub fn take_counts(&mut self) -> PageCounts {
        std::mem::take(&mut self.counts)
    }

    /// Whether there is nothing to take: nothing was added, or nothing that the destination does not know.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether the batch is to be taken before more is added.
    pub fn is_full(&self) -> bool {
        self.unpacked_bytes + self.page_bytes() > PIECE_BYTES || self.runs.len() >= MAX_RUNS
    }

    /// Adds wire pages from the front of `pages`, in ascending order of calls, until none is left or the batch is full.
    ///
    /// The guest may be writing them: then the copy that is sent is torn, and the dirty log has the page once more.
    ///
    /// # Errors
    /// [`PageError::Memory`] where the slot does not have the pages.
    pub fn add(
        &mut self,
        memory: &GuestMemory,
        table: &impl LeafTable,
        pages: &mut Range<u64>,
    ) -> Result<(), PageError> {
        while !pages.is_empty() && !self.is_full() {
            self.add_page(memory, table, pages.start)?;
            pages.start += 1;
        }
        Ok(())
    }

    /// Adds wire pages that are known to be zero, such as a hole, without reading them. Those that are zero at the destination
    /// as well cost nothing.
    pub fn add_zeroes(&mut self, table: &impl LeafTable, pages: Range<u64>) {
        for page in pages {
            self.add_zero(table, page);
        }
    }

    /// The batch; `None` where nothing was added. What is added next is in a new one, of the same slot and pass.
    pub fn take(&mut self) -> Option<Packed<'_>> {
        if self.runs.is_empty() {
            return None;
        }
        let runs = std::mem::take(&mut self.runs);
        let digest = std::mem::take(&mut self.digest);
        let plain = &self.body[..std::mem::take(&mut self.used)];
        self.unpacked_bytes = 0;
        let squeezed = self.squeezer.as_mut().and_then(|squeezer| squeezer.squeeze(plain));
        let (body, payload) = squeezed.map_or((Body::Plain, plain), |squeezed| (Body::Zstd, squeezed));
        let batch = PageBatch { slot: self.slot, pass: self.pass, body, digest, runs };
        Some(Packed { message: Message::Pages(batch), payload })
    }

    fn add_page(&mut self, memory: &GuestMemory, table: &impl LeafTable, page: u64) -> Result<(), PageError> {
        let page_bytes = self.page_bytes();
        // A delta takes less room than the page it stands for, so this fits as long as the batch is not full.
        let copy = &mut self.body[self.used..self.used + page_bytes];
        memory.copy_from_slot(self.slot, page * page_bytes as u64, copy)?;
        self.leaves.clear();
        self.leaves.extend(copy.chunks(LEAF_PAGE).map(leaf_of));
        if self.leaves.iter().all(|leaf| *leaf == ZERO_LEAF) {
            self.add_zero(table, page);
            return Ok(());
        }
        self.counts.normal += 1;
        let first = page * self.leaves.len() as u64;
        let digest = table.set(self.slot, first, &self.leaves, self.pass);
        self.digest = self.digest.wrapping_add(digest);
        // Pass 0 sends everything for the first time: it would only push out of the cache what it has just put in.
        let cache = self.delta.as_ref().filter(|_| self.pass > 0);
        let (mut encoding, mut len_bytes) = (Encoding::Whole, page_bytes);
        if let Some(cache) = cache {
            let copy = &self.body[self.used..self.used + page_bytes];
            let outcome = cache.exchange(self.key(page), self.pass, copy, &mut self.difference);
            if let (Outcome::Delta, Ok(delta_bytes)) = (outcome, u16::try_from(self.difference.len())) {
                (encoding, len_bytes) = (Encoding::Delta { len_bytes: delta_bytes }, self.difference.len());
                self.body[self.used..self.used + len_bytes].copy_from_slice(&self.difference);
            }
        }
        self.push(page, encoding);
        self.used += len_bytes;
        self.unpacked_bytes += page_bytes;
        Ok(())
    }

    fn add_zero(&mut self, table: &impl LeafTable, page: u64) {
        self.counts.zero += 1;
        let count = (self.page_bytes() / LEAF_PAGE) as u64;
        let first = page * count;
        if !self.is_postcopy && (first..first + count).all(|leaf| table.is_zero(self.slot, leaf)) {
            return;
        }
        let digest = table.set(self.slot, first, &ZEROES[..count as usize], self.pass);
        self.digest = self.digest.wrapping_add(digest);
        if let Some(cache) = &self.delta {
            cache.zero(self.key(page), self.pass);
        }
        self.push(page, Encoding::Zero);
    }

    /// Adds to the last run, or a new one.
    fn push(&mut self, first: u64, encoding: Encoding) {
        let joins = !matches!(encoding, Encoding::Delta { .. });
        match self.runs.last_mut() {
            Some(last)
                if joins
                    && last.encoding == encoding
                    && last.first + u64::from(last.count) == first
                    && last.count < u32::MAX =>
            {
                last.count += 1;
            }
            _ => self.runs.push(Run { first, count: 1, encoding }),
        }
    }

    /// The page's number among all pages of the address space.
    fn key(&self, page: u64) -> u64 {
        self.geometry.base(self.slot).raw() / u64::from(self.geometry.page_bytes()) + page
    }

    fn page_bytes(&self) -> usize {
        self.geometry.page_bytes() as usize
    }
}
