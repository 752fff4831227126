//! COLO: a secondary runs beside the primary, checkpoints make it the same machine again, and either goes on alone when the
//! other is lost.
//!
//! - [`output`]: what the guest emits, taken as it emits it;
//! - [`outlet`]: where output goes, and who may send it there.

pub mod outlet;
pub mod output;

use std::fmt;

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
