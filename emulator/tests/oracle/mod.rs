//! Recorded executions of another implementation of AArch64, and how the emulator replays them.
//!
//! [`state`] makes a block's inputs from a seed and holds its outputs, [`file`] is the format of `tests/vectors/*.bin`,
//! [`replay`] executes blocks on the emulator. `examples/record_vectors.rs` writes the files, `tests/vectors.rs` replays them.

pub(crate) mod a32;
pub(crate) mod file;
pub(crate) mod replay;
pub(crate) mod state;
