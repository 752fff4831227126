//! What the vCPUs of a machine share.

use std::sync::atomic::AtomicU32;

/// What the vCPUs of a machine share.
pub struct Shared {
    /// By vCPU: not zero where it must leave its run loop.
    pub attention: Vec<AtomicU32>,
}
