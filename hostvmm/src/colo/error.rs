//! Why a pair ended, or a checkpoint was not exact: [`ColoError`].

use std::time::Duration;

use abi::Gpa;

use super::compare::OutOfSequence;
use super::info::DirtyCounts;
use super::outlet::OutletError;
use super::protocol::OutOfOrder;
use crate::memory::{MemoryError, SlotId};
use crate::migrate::wire::{Mismatch, Text, WireError};
use crate::migrate::{MigrateError, VmError};

/// What ended a pair, or could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ColoError {
    /// The channel, the greeting, the pages: as in a migration.
    #[error(transparent)]
    Channel(#[from] MigrateError),
    /// The other side's bytes make no sense.
    #[error("the other side of the pair: {0}")]
    Wire(#[from] WireError),
    /// A machine could not do its part.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Guest memory or the cache could not be made, read or written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The outlet refused.
    #[error(transparent)]
    Outlet(#[from] OutletError),
    /// The other side says that it failed.
    #[error("the other side of the pair failed: {text}")]
    Peer {
        /// In its words.
        text: Text,
    },
    /// The cache is not what the primary's memory is.
    #[error(
        "checkpoint {n}: the {slot} differs between primary and cache: {primary:#x} and {cache:#x}{}",
        page.map_or(String::new(), |page| format!("; the first page that was written and not sent is at {page}"))
    )]
    Cache {
        /// Which checkpoint.
        n: u64,
        /// In which slot.
        slot: SlotId,
        /// The primary's digest.
        primary: u64,
        /// The cache's.
        cache: u64,
        /// The first page of the primary's that is not as it was last sent.
        page: Option<Gpa>,
    },
    /// The cache is not what the primary's memory is, because the primary's log lost a write.
    #[error("checkpoint {n}: the first page that was written and not sent is at {page}, in the {slot}; {text}")]
    Unlogged {
        /// Which checkpoint.
        n: u64,
        /// In which slot.
        slot: SlotId,
        /// The page.
        page: Gpa,
        /// What the secondary found.
        text: Text,
    },
    /// After the flush the secondary's RAM is not what the cache is.
    #[error(
        "checkpoint {n}: the {slot} differs between cache and secondary: {cache:#x} and {secondary:#x}{}",
        page.map_or(String::new(), |page| format!("; the first page that differs is at {page}"))
    )]
    Flush {
        /// Which checkpoint.
        n: u64,
        /// In which slot.
        slot: SlotId,
        /// The cache's digest.
        cache: u64,
        /// The digest of the secondary's RAM.
        secondary: u64,
        /// The first page that differs.
        page: Option<Gpa>,
    },
    /// The flushed pages are not exactly those that are dirty on either side.
    #[error("checkpoint {n}: {} pages are dirty on either side and {} were flushed{}",
        counts.union(), counts.flushed,
        page.map_or(String::new(), |page| format!("; the first page that was flushed without need is at {page}")))]
    Pages {
        /// Which checkpoint.
        n: u64,
        /// What was counted.
        counts: DirtyCounts,
        /// The first page that was flushed and should not have been.
        page: Option<Gpa>,
    },
    /// The primary's pages are not those that the secondary has received.
    #[error(
        "checkpoint {n}: the primary says that {primary} of its pages were dirty, the secondary was sent {secondary}"
    )]
    Sent {
        /// Which checkpoint.
        n: u64,
        /// By the primary.
        primary: u64,
        /// By the secondary.
        secondary: u64,
    },
    /// One side, or the engine, does not keep to the protocol.
    #[error(transparent)]
    Order(#[from] OutOfOrder),
    /// A message that has no place in a pair.
    #[error("a frame {tag} that has no place here")]
    Unexpected {
        /// Which.
        tag: &'static str,
    },
    /// Pages of another pass.
    #[error("pages of pass {found} in pass {expected}")]
    Pass {
        /// The current one.
        expected: u32,
        /// The one that came.
        found: u32,
    },
    /// Output that does not continue its stream.
    #[error(transparent)]
    Output(#[from] OutOfSequence),
    /// The machines differ.
    #[error("the secondary does not fit the guest: {0}")]
    Refused(Mismatch),
    /// The other side is there and does not answer.
    #[error("the other side has not {what} within {after:?}")]
    Silent {
        /// What it owes.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// An operator has said so.
    #[error("an operator says that the other side is lost")]
    Said,
    /// Something planted.
    #[error("planted at {boundary}")]
    Planted {
        /// Where.
        boundary: super::ColoBoundary,
    },
}

impl ColoError {
    /// Whether it is the other side, or the way to it, that is gone or of no use; else it is a matter of this side.
    pub(super) fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Channel(_)
                | Self::Wire(_)
                | Self::Order(_)
                | Self::Unexpected { .. }
                | Self::Output(_)
                | Self::Pass { .. }
        )
    }
}
