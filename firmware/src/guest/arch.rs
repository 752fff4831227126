//! What the architecture asks for: one directory for each, with the same modules and the same names in them.
//!
//! - `entry`: the first instructions of every vCPU; `vectors`: exceptions;
//! - `mmu`: translation tables, the layout of the address space and the registers; `cache`: maintenance;
//! - `cpu`: barriers, interrupts, waiting, calls to the hypervisor, device registers; `timer`: the virtual timer;
//!   `cycles`: the cycle counter;
//! - `features`: what the CPU can do; `pattern`: the writes that name instructions of their own; `points`: asking to be moved.
//!
//! Common code uses these names and no register. Neighbours: all of [`crate::guest`].

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "arm")]
mod armv7;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{cache, cpu, cycles, entry, features, mmu, pattern, points, timer};
#[cfg(target_arch = "arm")]
pub(crate) use armv7::{cache, cpu, cycles, entry, features, mmu, pattern, points, timer};
