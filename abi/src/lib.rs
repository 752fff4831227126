//! The contract between the firmware and hostvmm. Pure data: no I/O, no `unsafe`, no allocation.
//!
//! - [`addr`]: address and page-size newtypes that everything else speaks in;
//! - [`tables`]: the guest's architecture and the format of its translation tables;
//! - [`aliases`]: where an ARMv7 guest has room to map the region once more;
//! - [`map`]: where RAM, the region and the devices lie in the guest's physical space;
//! - [`boot`]: the boot block, handed over in the devicetree;
//! - [`hypercall`]: the doorbell, the request block, the commands a vCPU is given and the outcomes it returns;
//! - [`heartbeat`]: the beats of a vCPU and the gaps between them, which show how long it did not run;
//! - [`packet`]: what the firmware sends on its virtual link;
//! - [`points`]: where a guest asks to be moved to another machine.
//!
//! Neighbours: `workload` and `pagetable` build on the address types; the firmware is one end of the contract,
//! `hostvmm::device` the other. The prose version is docs/hypercall-abi.md; a change of bytes is a new version there.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod aliases;
pub mod boot;
pub mod heartbeat;
pub mod hypercall;
pub mod map;
pub mod packet;
pub mod points;
pub mod tables;

pub use addr::{Gpa, Granule, GuestRange, VaBits};
pub use aliases::Armv7Aliases;
pub use tables::{Arch, ShortPages, Tables};
