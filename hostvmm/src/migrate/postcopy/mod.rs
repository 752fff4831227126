//! Post-copy: the guest runs at the destination while pages are still at the source. A touch of such a page waits until it
//! has come.
//!
//! - [`MissingPages`], the destination: pages that are not here are made to fault (userfaultfd), asked for, and placed as a
//!   whole, so that nobody sees half of one;
//! - [`PageQueue`], the source: what is to be sent next, pages that are waited for ahead of the others.
//!
//! ```text
//!  source                                              destination
//!  PageQueue ◀── request(slot, page) ◀── PageRequest ◀── a vCPU touches a missing page and waits
//!      │ next(): those asked for, then on from there                     ▲
//!      └──────── Pages ────────────────▶ place(): UFFDIO_COPY, ZEROPAGE ─┘ wakes it
//! ```
//!
//! What was never sent because it is zero on both sides is no missing page, but faults as well: it is filled at once.
//!
//! # When a side dies
//! From the moment the guest runs at the destination, memory is on both sides, and neither is whole. If the source, the
//! destination or the connection is lost now, the guest is lost: the source keeps its part, paused, and must not run it; the
//! destination stops the guest ([`MissingPages::abandon`]), paused as well. There is no `migrate-recover`. This is what
//! post-copy costs, and why it begins only when someone asks for it; before that, a failure costs nothing.
//!
//! # Threads
//! A host thread that touches a missing page waits as a vCPU does: whoever reads pages from the connection, and the thread
//! that takes the faults, must never touch guest memory, and touch no lock that one who waits may hold. Here they do not:
//! pages are placed from buffers, by the kernel.
//!
//! Neighbours: `source` and `destination` drive it, [`super::wire`] has the messages, [`crate::memory`] the mappings.

mod missing;
mod queue;
#[cfg(test)]
mod tests;
mod userfault;

pub use missing::{MissingPages, PostcopyReport, Request};
pub use queue::{PageQueue, Urgency};
pub use userfault::PostcopyUnavailable;

use crate::memory::{MemoryError, SlotId};

/// Why post-copy cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum PostcopyError {
    /// The host cannot do it: known before the guest is handed over.
    #[error(transparent)]
    Unavailable(#[from] PostcopyUnavailable),
    /// Guest memory could not be prepared.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel refused a page, or to tell of one.
    #[error("cannot {what} at offset {offset:#x} of the {slot}: {source}")]
    Userfault {
        /// What was tried.
        what: &'static str,
        /// In which slot.
        slot: SlotId,
        /// Where.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The host refused a thread or an event.
    #[error("cannot {what} for post-copy: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The peer names a page that there is none of.
    #[error("page {page} of the {slot} does not exist; it has {pages} pages")]
    NoPage {
        /// Of which slot.
        slot: SlotId,
        /// Which.
        page: u64,
        /// How many there are.
        pages: u64,
    },
    /// A page came that is here: what the guest has written to it since must not be overwritten.
    #[error("page {page} of the {slot} came again; the guest may have written it since")]
    Twice {
        /// Of which slot.
        slot: SlotId,
        /// Which.
        page: u64,
    },
    /// The end was declared while pages are missing.
    #[error("{left} pages have not come")]
    Incomplete {
        /// How many.
        left: u64,
    },
}
