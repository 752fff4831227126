//! When vCPUs left the guest and entered it again: the two [`Stamps`] between which a machine stood still.

use crate::migrate::HostTime;

/// The ends of the last pause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamps {
    /// When the last vCPU that still executed left the guest, or when the pause was asked for where none did.
    pub(super) last_exit: HostTime,
    /// When the first vCPU entered the guest after the machine was started or resumed; `None` until one has.
    pub(super) first_entry: Option<HostTime>,
}
