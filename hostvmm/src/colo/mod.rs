//! COLO: a secondary runs beside the primary, checkpoints make it the same machine again, and either goes on alone when the
//! other is lost.
//!
//! - [`protect`] and [`shadow`]: the engines of the two sides, each of which ends with an [`Outcome`];
//! - [`ColoVm`]: what it needs of a machine; [`ColoMonitor`]: sees and steers it, with [`ColoParameters`] and [`ColoInfo`];
//! - [`protocol`]: who may do what when, without doing it; docs/colo.md;
//! - [`RamCache`]: the primary's memory as last received, and the flush; `pages`: sets of dirty pages;
//! - [`compare`]: what of it both sides have emitted; [`backlog`]: what a side may have to emit again;
//! - [`output`]: what the guest emits, taken as it emits it;
//! - [`outlet`]: where output goes, and who may send it there; [`Voice`]: a machine's way to it;
//! - [`ColoFault`], [`PlantedOmission`]: faults planted at the steps of both sides.

pub mod backlog;
mod cache;
pub mod compare;
mod error;
mod faults;
mod info;
mod link;
mod monitor;
pub mod outlet;
pub mod output;
mod pages;
mod parameters;
mod primary;
pub mod protocol;
mod secondary;
#[cfg(test)]
mod tests;
mod vm;
mod voice;

use std::fmt;

pub use cache::RamCache;
pub use error::ColoError;
pub use faults::{ColoBoundary, ColoFault, Omission, PlantedOmission};
pub use info::{
    Cause, CheckpointReport, ColoInfo, ColoMode, ColoPhase, ColoStatus, Digests, DirtyCounts, Divergence, ExitReason,
    Held, SlotDigests, StopSplit,
};
pub use link::Peer;
pub use monitor::{ColoMonitor, Ending, NoPair};
pub use outlet::OutletAddress;
pub use pages::{DirtyPages, take as take_dirty};
pub use parameters::ColoParameters;
pub use primary::protect;
pub use secondary::shadow;
pub use vm::ColoVm;
pub use voice::Voice;

/// What became of a pair, for one of its VMs.
#[derive(Debug)]
pub struct Outcome {
    /// Whether this VM goes on.
    pub ending: Ending,
    /// What ended the pair.
    pub error: Option<ColoError>,
}

/// Which of the two a process is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The one that the outside world hears.
    Primary,
    /// The one that runs beside it.
    Secondary,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        })
    }
}
