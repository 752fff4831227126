//! The outside world's end of a guest's output, and who may speak to it: [`Outlet`].
//!
//! An outlet belongs to one side of one pair at a time. Who owns it is a matter of its *epoch*: the owner of epoch e + 1 is
//! whoever claims it first while e is the current one, and from then on nothing of an earlier epoch is taken. Both sides of a
//! pair can ask for the next epoch, and exactly one of them gets it; the other is [fenced](OutletError::Fenced), must never run
//! its guest again, and could not be heard if it did. This is what prevents two guests that go on alone (docs/colo-outlet.md).
//!
//! - `arbiter`: who owns it and what it takes, without input or output; `wire`: the messages;
//! - [`OutletServer`]: an outlet at a socket, that lets records go to a [`Sink`]; [`OutletClient`]: a side's way to it;
//! - [`OwnOutlet`]: for a VM that has no other.

mod address;
mod arbiter;
mod client;
mod server;
mod sink;
#[cfg(test)]
mod tests;
pub mod wire;

use super::Side;
use super::output::{Positions, Record, StreamId};

pub use address::{BadOutletAddress, OutletAddress};
pub use arbiter::{Arbiter, Claimant, Judgement};
pub use client::{OutletClient, OwnOutlet};
pub use server::{OutletServer, OutletServerError};
pub use sink::{Accepted, JsonLines, Kept, Sink};

/// The request to own the outlet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The guest, by a number that its pair agreed on. An outlet serves the pair of its first claim and no other.
    pub pair: u128,
    /// The epoch asked for: one past that in which the pair runs. The first is 1.
    pub epoch: u64,
    /// Who asks.
    pub side: Side,
}

/// Why an outlet did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum OutletError {
    /// Another one owns the outlet, in this epoch: whoever is told so never runs its guest, nor emits, again.
    #[error("the outlet is at epoch {current}, which another one owns")]
    Fenced {
        /// The outlet's epoch.
        current: u64,
    },
    /// The claim is for an epoch that is not the next one, nor was it before. The outlet is not the claimer's, nor is it another
    /// one's by this claim.
    #[error("the outlet is at epoch {current}: {claimed} is not the next one")]
    Ahead {
        /// The epoch asked for.
        claimed: u64,
        /// The outlet's.
        current: u64,
    },
    /// The outlet serves another guest.
    #[error("the outlet serves another pair")]
    OtherPair,
    /// Records between what was accepted and this one are missing.
    #[error("record {found} of the {stream} where {expected} is the next one: output between them is missing")]
    Gap {
        /// Of which stream.
        stream: StreamId,
        /// The next one.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// A delivery before any claim.
    #[error("nothing is taken from whoever has not claimed the outlet")]
    NotClaimed,
    /// The outlet cannot be reached, or what it says cannot be understood. Whether it did what was asked for is unknown; the same
    /// request may be made again.
    #[error("the outlet cannot be reached: {0}")]
    Unreachable(#[source] std::io::Error),
}

/// The outside world's end of the output, as a side of the pair sees it.
pub trait Outlet: Send {
    /// Makes the caller the owner. Returns how many records of each stream were accepted so far, by whoever owned it: the new
    /// owner delivers from there on. To claim again what one owns already is granted again.
    ///
    /// # Errors
    /// [`OutletError`] but [`OutletError::Gap`]. Only a claim that was granted lets the caller go on alone.
    fn claim(&mut self, claim: Claim) -> Result<Positions, OutletError>;

    /// Delivers `records`, of each stream in the order of their sequence, as the owner of `epoch`. Those that were accepted before
    /// are dropped. Returns how many records of each stream were accepted in all. Once this returns they have been seen.
    ///
    /// # Errors
    /// [`OutletError`] but [`OutletError::Ahead`]; some of the records may have been accepted.
    fn deliver(&mut self, epoch: u64, records: &[Record]) -> Result<Positions, OutletError>;
}
