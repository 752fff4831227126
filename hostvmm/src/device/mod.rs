//! The devices that hostvmm emulates, whatever runs the vCPUs.
//!
//! - [`doorbell`]: the register page through which a vCPU makes hypercalls;
//! - [`hypercall`]: what a request block in guest RAM means, checked; the line between the guest's claims and the host;
//! - [`pl011`]: the console;
//! - [`log_budget`]: how many lines a guest can make the host log.
//!
//! Neighbours: [`crate::vcpus`] routes exits here. The GIC and the timers belong to [`crate::backend`].

pub mod doorbell;
pub mod hypercall;
#[cfg(test)]
mod hypercall_tests;
pub mod log_budget;
pub mod pl011;
