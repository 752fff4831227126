//! A pass: one harvest, the copy of what it found, and the digests that prove the copy.
//!
//! - [`Lockstep`], [`Live`], [`Served`], [`HugePages`]: how passes follow each other; [`Session`]: what they share;
//! - [`Guest`]: what a pass needs of a running guest; [`Interference`]: faults planted between log and copy;
//! - [`copy_dirty`], [`copy_all`]: from a memslot to a [`CopyTarget`], run by run;
//! - [`region_digest`], [`first_difference`]: over anything that is a [`PageSource`];
//! - [`sum_r`]: what `sum -r` prints, for the original tests' criterion;
//! - [`Threads`]: how many threads a copy or a digest may use.

mod copy;
mod digest;
mod guest;
mod hugepages;
mod interference;
mod live;
mod lockstep;
#[cfg(test)]
mod scenario_tests;
mod served;
mod session;
mod source;
mod target;
mod threads;

pub use copy::{CopyStats, copy_all, copy_dirty};
pub use digest::{Difference, differing_pages, first_difference, region_digest};
pub use guest::{Guest, GuestError};
pub use hugepages::HugePages;
pub use interference::{Interference, InterferenceKind};
pub use live::Live;
pub(crate) use live::SELF_CHECK_STEPS;
pub use lockstep::Lockstep;
pub use served::Served;
pub use session::{PassError, Session};
pub use source::{PageSource, SlotView};
pub use target::{CopyTarget, TargetError, sum_r};
pub use threads::Threads;
