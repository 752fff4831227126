//! LPAE: ARMv7-A's long descriptors, 64 bits each (DDI 0406 B3.6; DDI 0487 G5.5).
//!
//! The format is VMSAv8-64's with 4K granules in a 32-bit address space: with T0SZ 0 a walk starts at level 1, in a
//! table of four entries of 1 GiB. Physical addresses have 40 bits. What differs is bit 54, XN, which forbids execution
//! at every level of privilege, and that the hardware has no dirty state.
//!
//! - [`Mapper`] writes tables; [`encode`] and [`decode`] are the meaning of a descriptor's bits;
//! - [`ttbcr`], [`MAIR0`] and [`MAIR1`] are the register values that go with the tables;
//! - [`walker`] translates like the hardware does and shares no code with the mapper.

mod descriptor;
mod mapper;
mod registers;
pub mod walker;

pub use descriptor::{decode, encode};
pub use mapper::Mapper;
pub use registers::{MAIR0, MAIR1, ttbcr};
