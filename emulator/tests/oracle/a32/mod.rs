//! The oracle for A32: as its parent for A64, with [`state`] and [`replay`] of its own.

pub(crate) mod replay;
pub(crate) mod state;
