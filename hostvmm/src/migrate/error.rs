//! Why a migration did not come to its end, or not to a good one: [`MigrateError`].

use std::io;
use std::time::Duration;

use super::clock::HostTime;
use super::file::FileError;
use super::lost::LostPages;
use super::monitor::{MonitorError, PlantedFailure};
use super::pages::PageError;
use super::phase::Cancelled;
use super::postcopy::PostcopyError;
use super::transport::TransportError;
use super::vm::VmError;
use super::wire::{Mismatch, Refusal, Text, WireError};
use crate::memory::{AdoptionError, MemoryError, SlotId};

/// Why a migration failed. Unless it says otherwise the guest runs on at the source.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// One is under way.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// Someone has cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// No connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The peer's bytes make no sense.
    #[error("the other side of the migration: {0}")]
    Wire(#[from] WireError),
    /// The connection ended where it must not.
    #[error("the connection to the other side was lost: {source}")]
    Lost {
        /// How.
        source: io::Error,
    },
    /// The destination did not open a channel.
    #[error(transparent)]
    NotWelcome(Refusal),
    /// The machines differ.
    #[error("the destination does not fit the guest: {0}")]
    Refused(Mismatch),
    /// The destination says that it failed.
    #[error("the destination failed: {text}")]
    Destination {
        /// In its words.
        text: Text,
    },
    /// The source says that it gave up.
    #[error("the source gave up: {text}")]
    Source {
        /// In its words.
        text: Text,
    },
    /// The destination received something else than was sent.
    #[error("pass {pass}, {slot}: the pages received have digest {received:#x}, those sent {sent:#x}")]
    PassDigest {
        /// In which pass.
        pass: u32,
        /// In which slot.
        slot: SlotId,
        /// Of what was sent.
        sent: u64,
        /// Of what was received.
        received: u64,
    },
    /// A batch could not be made or opened, or is not what was sent.
    #[error(transparent)]
    Pages(#[from] PageError),
    /// Pages that were still at the source could not be asked for or placed.
    #[error(transparent)]
    Postcopy(#[from] PostcopyError),
    /// Memory was on both sides, and one is lost: the guest is whole on neither, and stands still on both.
    #[error(
        "the guest is lost: {why}, while its memory was on both sides; the source keeps it paused as it was when it was handed over, and `cont` there takes that back if the destination is known to be gone"
    )]
    PostcopyLost {
        /// How.
        why: String,
    },
    /// The file that holds the guest, or is to hold it.
    #[error(transparent)]
    File(#[from] FileError),
    /// Memory files could not be handed over.
    #[error(transparent)]
    Adoption(#[from] AdoptionError),
    /// Pages of a pass did not arrive.
    #[error("pass {pass}, {slot}: {received} pages arrived, {sent} were sent")]
    PassPages {
        /// Which pass.
        pass: u32,
        /// Which slot.
        slot: SlotId,
        /// As the source says.
        sent: u64,
        /// As counted here.
        received: u64,
    },
    /// The two memories differ.
    #[error(
        "the {slot} differs: its digest is {source_has:#x} at the source and {destination_has:#x} at the destination{}",
        lost.as_ref().map_or(String::new(), |lost| format!("; {lost}"))
    )]
    MemoryDigest {
        /// Which slot.
        slot: SlotId,
        /// The source's digest.
        source_has: u64,
        /// The destination's digest.
        destination_has: u64,
        /// The pages that are not in the source's memory as they were last sent, where the source looked.
        lost: Option<Box<LostPages>>,
    },
    /// A machine could not do its part.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Guest memory could not be read or written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host could not do its part.
    #[error("cannot {what}: {source}")]
    Host {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The peer owes an answer.
    #[error("the other side has not {what} within {after:?}")]
    Silent {
        /// What it owes.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The source has asked, and was told that the guest does not run here.
    #[error(
        "the commit came too late: the source had asked what became of the guest, and was told that it does not run here"
    )]
    TooLate,
    /// The destination cannot do what the URI asks for.
    #[error("{what}")]
    Unsupported {
        /// What does not go together.
        what: &'static str,
    },
    /// A planted fault.
    #[error(transparent)]
    Planted(#[from] PlantedFailure),
    /// The guest was handed over, and nobody says whether it runs there. It stays paused here.
    #[error(
        "the destination was told to run the guest at {committed_at} and does not say whether it does ({why}); the guest stays \
         paused here: `cont` takes it back if the destination is known to be gone"
    )]
    InDoubt {
        /// When it was told.
        committed_at: HostTime,
        /// What was tried.
        why: String,
    },
    /// The guest was handed over with its memory, which the destination has changed, and that is gone.
    #[error(
        "the guest is lost: it ran at the destination in the memory that both sides share, and {why}; what is here of it is older than its \
         memory, and stays paused"
    )]
    SharedLost {
        /// How that is known.
        why: String,
    },
    /// The guest was handed over, and the destination did not run it.
    #[error("the destination was told to run the guest and did not ({why}); it runs on here")]
    TakenBack {
        /// How that is known.
        why: String,
    },
}

impl MigrateError {
    pub(crate) fn lost(source: io::Error) -> Self {
        Self::Lost { source }
    }

    /// Whether it is only that the connection is gone: why may be told by something that came before.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}
