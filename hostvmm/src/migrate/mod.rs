//! Live migration: a guest moves to another process while it runs, and not one byte is lost.
//!
//! - [`Monitor`]: sees and steers migrations; [`Parameters`], [`Capabilities`], [`MigrationInfo`] by QEMU's names;
//! - [`Phase`] and [`Stage`]: where a migration is, and the moves that exist;
//! - [`Estimate`]: what the passes so far foretell; [`HostTime`], [`ClockOffset`]: moments on two hosts; [`CounterReading`]: a guest's counter beside them;
//! - [`SourceVm`], [`DestinationVm`]: what it needs of a machine;
//! - [`downtime`]: how long the guest did not run, by the hosts and by the guest itself;
//! - [`postcopy`]: the guest runs at the destination before its memory is all there;
//! - [`wire`]: the bytes between source and destination, without any input or output;
//! - [`transport`]: addresses, listeners, channels, TLS, pace; [`file`](mod@file): a guest in a file;
//! - [`pages`]: zero, whole and delta pages, compressed or not, and how they are proven;
//! - [`Boundary`], [`FaultPlan`]: faults planted at the steps of both sides.

mod clock;
mod converge;
mod destination;
pub(crate) mod digest;
pub mod downtime;
mod error;
mod estimate;
pub(crate) mod faults;
pub mod file;
pub(crate) mod frames;
mod info;
mod lost;
mod monitor;
pub mod pages;
mod parameters;
mod phase;
pub mod postcopy;
mod reading;
pub(crate) mod source;
#[cfg(test)]
mod tests;
pub mod transport;
mod vm;
pub mod wire;

pub use clock::{ClockOffset, HostTime};
pub use destination::{Inbound, receive};
pub use error::MigrateError;
pub use estimate::{Estimate, PassReport};
pub use faults::{Action, Boundary, FaultPlan};
pub use info::{DigestReport, DowntimeSplit, MigrationInfo, RamInfo, XbzrleInfo};
pub use lost::LostPages;
pub use monitor::{Change, Monitor, MonitorError, PlantedFailure};
pub use parameters::{Capabilities, Compression, CounterPolicy, DigestMode, ParameterError, Parameters};
pub use phase::{Cancelled, Phase, Stage};
pub use reading::CounterReading;
pub use source::send;
pub use vm::{DestinationVm, Moment, SourceVm, VmError};
