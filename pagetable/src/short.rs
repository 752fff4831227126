//! ARMv7-A's short descriptors, 32 bits each (DDI 0406 B3.5; DDI 0487 G5.4).
//!
//! ```text
//!   TTBR0 ─▶ first level: 4096 entries, 16 KiB ─┬─▶ section, 1 MiB
//!                                               └─▶ second level: 256 entries, 1 KiB ─┬─▶ small page, 4 KiB
//!                                                                                     └─▶ large page, 64 KiB: 16 entries alike
//! ```
//!
//! TTBCR.N is 0: TTBR0 translates all 4 GiB. Access permissions are AP\[2:1\] with AP\[0\] as the access flag (SCTLR.AFE),
//! not the classic AP\[2:0\]: that is the long descriptors' model, so one [`crate::Attributes`] says the same thing in every
//! format, the access flag included. Memory types are remapped (SCTLR.TRE), for the same reason: {TEX\[0\], C, B} is an
//! index like AttrIndx. Everything lies in domain 0, whose permissions are checked ("client").
//!
//! - [`Mapper`] writes tables through [`TableMemory`]; [`First`] and [`Second`] are the meaning of a descriptor's bits;
//! - [`ttbr0`], [`TTBCR`], [`PRRR`], [`NMRR`], [`DACR`] are the register values that go with the tables;
//! - [`walker`] translates like the hardware does and shares no code with the mapper.

mod descriptor;
mod mapper;
mod registers;
pub mod walker;

pub use descriptor::{First, Second};
pub use mapper::{FIRST_TABLE_BYTES, Mapper, SECOND_TABLE_BYTES, TableMemory};
pub use registers::{DACR, NMRR, PRRR, TTBCR, ttbr0};
