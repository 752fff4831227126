//! How pages are sent: [`Packer`] makes batches of them at the source, [`Unpacker`] opens and proves them at the destination.
//!
//! ```text
//! guest memory ─► one copy of each page ─► zero? ──────────────────────────► a run of zeroes
//!                  │ leaf, for the digest   └ delta against what was sent last? ─► a delta
//!                  │                          └ else ─────────────────────────────► the whole page
//!                  └──────────────────────────────────────────────── all of it: zstd, where that is shorter
//! ```
//!
//! - `zero`: zero pages and leaves at the speed of memory; `delta`: what differs, and the bounded cache of what was sent;
//!   `squeeze`: zstd, bounded on both ways; `pack` and `unpack`: batches.
//!
//! A page is copied out of guest memory once, and what is hashed is that copy: a guest that writes meanwhile may tear it,
//! but what the digest vouches for is what is sent. Nothing of a batch reaches guest memory before its digest is proven.
//!
//! Neighbours: [`super::wire`] has the batch's meta; the engine keeps the leaves ([`LeafTable`]) and sends the bytes.

mod delta;
mod pack;
mod squeeze;
mod unpack;
mod zero;

use super::wire::WireError;
use crate::memory::{MemoryError, SlotId};
pub use delta::{DeltaCache, DeltaError, DeltaStats, apply, encode};
pub use pack::{Packed, Packer, PageCounts};
pub use unpack::{Content, Unpacked, Unpacker};
pub use zero::{LEAF_PAGE, ZERO_LEAF, is_zero, leaf_of};

/// The leaves of all pages, as they were last sent or received, and the digests made of them.
pub trait LeafTable {
    /// The pages of `slot` from `first` on, counted in [`LEAF_PAGE`]s, have `leaves` in `pass`. Returns the digest in that
    /// pass of these pages.
    fn set(&self, slot: SlotId, first: u64, leaves: &[u64], pass: u32) -> u64;

    /// Whether the page of `slot`, counted in [`LEAF_PAGE`]s, was last sent or received as zeroes, or never.
    fn is_zero(&self, slot: SlotId, page: u64) -> bool;
}

/// Why a batch could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// A batch that cannot be.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Guest memory could not be read or written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A delta that is none.
    #[error("the delta of page {page} of the {slot} is refused: {source}")]
    Delta {
        /// Of which slot.
        slot: SlotId,
        /// Which wire page.
        page: u64,
        /// Why.
        source: DeltaError,
    },
    /// A delta where there is nothing that it could be applied to.
    #[error("page {page} of the {slot} came as a delta in post-copy, where only whole pages can be")]
    NoOldPage {
        /// Of which slot.
        slot: SlotId,
        /// Which wire page.
        page: u64,
    },
    /// A body that does not decompress to what it should.
    #[error("a batch of pages of the {slot} does not decompress to its {expected_bytes} bytes: {reason}")]
    Zstd {
        /// Of which slot.
        slot: SlotId,
        /// What it should be.
        expected_bytes: usize,
        /// In zstd's words.
        reason: String,
    },
    /// zstd cannot be had.
    #[error("zstd: {reason}; migrate without compression")]
    NoZstd {
        /// In its own words.
        reason: String,
    },
    /// Pages that are not those that were sent.
    #[error(
        "a batch of {pages} pages of the {slot} from page {first} in pass {pass} is not what was sent: digest {expected:#018x} was sent, {found:#018x} received"
    )]
    Digest {
        /// Of which slot.
        slot: SlotId,
        /// In which pass.
        pass: u32,
        /// First wire page of the batch.
        first: u64,
        /// How many wire pages.
        pages: u64,
        /// The sender's.
        expected: u64,
        /// Ours.
        found: u64,
    },
}

#[cfg(test)]
mod tests;
