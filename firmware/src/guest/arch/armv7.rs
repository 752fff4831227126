//! ARMv7-A at PL1, in A32. On a host of ARMv8 it is AArch32 at EL1, which has all that ARMv7-A has.

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
