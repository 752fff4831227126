//! Stage-1 translation tables, built in any memory. No `unsafe`, no allocation, no I/O.
//!
//! Here is VMSAv8-64, AArch64's format; [`short`] and [`lpae`] are ARMv7-A's two, made of the same parts:
//!
//! - [`Mapper`] writes tables through [`TableMemory`], which the firmware implements on its arena and tests on a `Vec`;
//! - [`Attributes`] and [`Descriptor`] are the meaning of a descriptor's 64 bits;
//! - [`tcr_el1`] and [`MAIR_EL1`] are the register values that go with the tables;
//! - [`walker`] translates like the hardware does. It shares no code with the mapper, so that each checks the other.
//!
//! Neighbours: `abi` names the seven granule and VA size pairs; the firmware loads the registers and does the
//! maintenance (barriers, TLBI) that no pure code can.
#![no_std]

#[cfg(test)]
extern crate std;

mod descriptor;
mod error;
mod geometry;
pub mod lpae;
mod mapper;
mod registers;
pub mod short;
mod tree;
pub mod walker;

pub use descriptor::{Attributes, Descriptor, Execute, MemoryType, Write};
pub use error::MapError;
pub use geometry::{Va, block_sizes};
pub use mapper::{Mapper, Sizes, TableMemory, tables_needed};
pub use registers::{HardwareUpdate, MAIR_EL1, PaSize, tcr_el1};
