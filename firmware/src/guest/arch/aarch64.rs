//! AArch64 at EL1.

pub(crate) mod cache;
pub(crate) mod cpu;
pub(crate) mod cycles;
mod device;
pub(crate) mod entry;
pub(crate) mod features;
pub(crate) mod mmu;
pub(crate) mod pattern;
pub(crate) mod points;
pub(crate) mod timer;
mod vectors;
