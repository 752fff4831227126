//! What the vCPUs of one machine share: [`Shared`].
//!
//! Neighbours: `vm` builds it; every vCPU, the GIC, PSCI and the safepoints reach each other through it.

use crate::config::Config;
use crate::signal::Signal;

/// The machine's shared parts. Every field is safe to use from any vCPU's thread.
#[derive(Debug)]
pub struct Shared {
    /// The checked configuration.
    pub config: Config,
    /// Attention flags, one per vCPU.
    pub signals: Box<[Signal]>,
}
