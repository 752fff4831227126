//! [`Unpacker`]: from a batch and its payload to pages whose digest is proven.

use std::ops::Range;

use super::delta::apply;
use super::squeeze::Expander;
use super::zero::{LEAF_PAGE, ZERO_LEAF, leaf_of};
use super::{LeafTable, PageError};
use crate::memory::{GuestMemory, MemoryError};
use crate::migrate::wire::{Body, Encoding, Geometry, MAX_PAYLOAD_BYTES, PageBatch};

/// Leaves set at a time where all are zero.
const ZEROES: [u64; 512] = [ZERO_LEAF; 512];

/// Opens batches. One for each channel; it holds a little more than twice a payload's limit, whatever comes.
pub struct Unpacker {
    geometry: Geometry,
    expander: Option<Expander>,
    /// The pages of deltas.
    patched: Vec<u8>,
    /// Wire pages that the batch says are zero, and that may hold something else.
    to_clear: Vec<Range<u64>>,
    leaves: Vec<u64>,
}

/// The pages of a batch, as they were at the source.
#[derive(Debug)]
pub struct Unpacked<'a> {
    batch: &'a PageBatch,
    page_bytes: usize,
    body: &'a [u8],
    patched: &'a [u8],
    to_clear: &'a [Range<u64>],
}

/// What adjacent pages hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content<'a> {
    /// Zeroes.
    Zero,
    /// These bytes.
    Bytes(&'a [u8]),
}

impl Unpacker {
    /// For the machine's pages.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, expander: None, patched: Vec::new(), to_clear: Vec::new(), leaves: Vec::new() }
    }

    /// Opens `batch` with its `payload`, sets its leaves in `table`, and proves that they are those that were sent. Deltas are
    /// applied to what `old` holds; in post-copy there is none, because reading it would wait for the very page.
    ///
    /// # Errors
    /// [`PageError`]; then `table` is of no use any more, and guest memory as it was. What [`PageBatch::check`] finds is a
    /// [`PageError::Wire`].
    pub fn unpack<'a>(
        &'a mut self,
        batch: &'a PageBatch,
        payload: &'a [u8],
        old: Option<&GuestMemory>,
        table: &impl LeafTable,
    ) -> Result<Unpacked<'a>, PageError> {
        batch.check(&self.geometry, u32::try_from(payload.len()).unwrap_or(u32::MAX))?;
        let page_bytes = self.geometry.page_bytes() as usize;
        let body = match batch.body {
            Body::Plain => payload,
            Body::Zstd => {
                let expected_bytes = batch.body_bytes(self.geometry.page_bytes()) as usize;
                let expander = match &mut self.expander {
                    Some(expander) => expander,
                    none => none.insert(Expander::new()?),
                };
                expander.expand(batch.slot, payload, expected_bytes)?
            }
        };
        self.to_clear.clear();
        patch(&mut self.patched, batch, body, page_bytes, old)?;
        let unpacked = Unpacked { batch, page_bytes, body, patched: &self.patched, to_clear: &[] };
        let mut digest = 0_u64;
        let per_page = page_bytes as u64 / LEAF_PAGE as u64;
        for (pages, content) in unpacked.runs() {
            let leaves = pages.start * per_page..pages.end * per_page;
            let sum = match content {
                Content::Bytes(bytes) => {
                    self.leaves.clear();
                    self.leaves.extend(bytes.chunks(LEAF_PAGE).map(leaf_of));
                    table.set(batch.slot, leaves.start, &self.leaves, batch.pass)
                }
                Content::Zero => {
                    let written = |page: u64| (0..per_page).any(|at| !table.is_zero(batch.slot, page * per_page + at));
                    pages.filter(|page| written(*page)).for_each(|page| push(&mut self.to_clear, page));
                    set_zeroes(table, batch, leaves)
                }
            };
            digest = digest.wrapping_add(sum);
        }
        if digest != batch.digest {
            return Err(PageError::Digest {
                slot: batch.slot,
                pass: batch.pass,
                first: batch.runs.first().map_or(0, |run| run.first),
                pages: batch.pages(),
                expected: batch.digest,
                found: digest,
            });
        }
        Ok(Unpacked { to_clear: &self.to_clear, ..unpacked })
    }
}

impl<'a> Unpacked<'a> {
    /// Each run's wire pages and what they hold, in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, Content<'a>)> + use<'a> {
        let (mut body, mut patched, page_bytes) = (self.body, self.patched, self.page_bytes);
        self.batch.runs.iter().map(move |run| {
            let pages = run.first..run.first + u64::from(run.count);
            let content = match run.encoding {
                Encoding::Zero => Content::Zero,
                Encoding::Whole => Content::Bytes(split(&mut body, run.count as usize * page_bytes)),
                Encoding::Delta { len_bytes } => {
                    split(&mut body, len_bytes.into());
                    Content::Bytes(split(&mut patched, page_bytes))
                }
            };
            (pages, content)
        })
    }

    /// Writes the pages to guest memory, which no vCPU runs in. Zero pages that were never anything else are left alone,
    /// so that a hole stays one.
    ///
    /// # Errors
    /// [`MemoryError::OutOfSlot`] where memory is not of the geometry that the batch was checked against.
    pub fn write(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        self.put(|offset, bytes| memory.copy_to_slot(self.batch.slot, offset, bytes))
    }

    /// As [`Self::write`], of pages that mostly were written before: those are there and mapped, and writing them there takes half
    /// the time of a system call for each.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(crate) fn overwrite(&self, memory: &GuestMemory) -> Result<(), MemoryError> {
        self.put(|offset, bytes| {
            memory.volatile_slice(self.batch.slot, offset, bytes.len() as u64)?.copy_from(bytes);
            Ok(())
        })
    }

    fn put(&self, mut write: impl FnMut(u64, &[u8]) -> Result<(), MemoryError>) -> Result<(), MemoryError> {
        let offset = |page: u64| page * self.page_bytes as u64;
        for (pages, content) in self.runs() {
            if let Content::Bytes(bytes) = content {
                write(offset(pages.start), bytes)?;
            }
        }
        for page in self.to_clear.iter().cloned().flatten() {
            for piece in (offset(page)..offset(page + 1)).step_by(LEAF_PAGE) {
                write(piece, &[0; LEAF_PAGE])?;
            }
        }
        Ok(())
    }
}

/// Makes the pages of the batch's deltas, one after another.
fn patch(
    patched: &mut Vec<u8>,
    batch: &PageBatch,
    body: &[u8],
    page_bytes: usize,
    old: Option<&GuestMemory>,
) -> Result<(), PageError> {
    patched.clear();
    let mut rest = body;
    for run in &batch.runs {
        let bytes = split(&mut rest, run.body_bytes(page_bytes as u32) as usize);
        if let Encoding::Delta { .. } = run.encoding {
            let (slot, page) = (batch.slot, run.first);
            let old = old.ok_or(PageError::NoOldPage { slot, page })?;
            let start = patched.len();
            debug_assert!(start < MAX_PAYLOAD_BYTES as usize, "the check bounds what a batch unpacks to");
            patched.resize(start + page_bytes, 0);
            old.copy_from_slot(slot, page * page_bytes as u64, &mut patched[start..])?;
            apply(bytes, &mut patched[start..]).map_err(|source| PageError::Delta { slot, page, source })?;
        }
    }
    Ok(())
}

fn set_zeroes(table: &impl LeafTable, batch: &PageBatch, leaves: Range<u64>) -> u64 {
    let mut sum = 0_u64;
    let mut at = leaves.start;
    while at < leaves.end {
        let count = (leaves.end - at).min(ZEROES.len() as u64);
        sum = sum.wrapping_add(table.set(batch.slot, at, &ZEROES[..count as usize], batch.pass));
        at += count;
    }
    sum
}

/// Takes `len_bytes` from the front: all there is where that is less, which the check before rules out.
fn split<'a>(bytes: &mut &'a [u8], len_bytes: usize) -> &'a [u8] {
    let (front, rest) = bytes.split_at(len_bytes.min(bytes.len()));
    *bytes = rest;
    front
}

/// Adds `page`, which comes after all that are there.
fn push(ranges: &mut Vec<Range<u64>>, page: u64) {
    match ranges.last_mut() {
        Some(last) if last.end == page => last.end += 1,
        _ => ranges.push(page..page + 1),
    }
}
