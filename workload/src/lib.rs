//! The plan: what the guest writes, as pure functions of (seed, pattern, parameters, vCPU, step).
//!
//! The guest executes the plan; the host replays it into a model. So for any pass the host knows the exact set of pages
//! that must be dirty and every byte of the region. Nothing here does I/O, allocates, or is `unsafe`.
//!
//! - [`Workload`]: a [`Pattern`] with its parameters, as the command line and the boot block carry it;
//! - [`Plan`]: a workload bound to a seed and a [`Geometry`]; yields every [`Write`] of a step;
//! - [`Write`]: where, how many bytes, which bytes, and by what instruction;
//! - [`descriptor`]: the descriptors of the `tablewalk` pattern's live tables;
//! - [`digest`]: the salted digest that guest, copy and model compute alike.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod descriptor;
pub mod digest;
mod part;
mod pattern;
mod plan;
mod random;
mod text;
mod write;

pub use pattern::{Key, Pattern};
pub use plan::{Geometry, Plan, PlanError, TableLayout};
pub use random::SplitMix64;
pub use text::{DecodeError, Workload, WorkloadError};
pub use write::{Data, How, Write};

/// Bytes of a workload page: the unit in which patterns count, whatever the guest's granule or the host's page.
///
/// The original tests count 4 KiB pages ("409600 2048 50" is 1.6 GiB), so a command line means the same bytes on
/// every granule.
pub const PAGE_BYTES: u64 = 4096;
