//! An AArch64 or AArch32 machine in software: CPU, stage-1 MMU, exceptions, timer, GIC, and a dirty log at stage 2.
//!
//! The host builds a [`Machine`] from a [`Config`] and its RAM, takes its [`Vcpu`]s out and runs them until each [`Exit`].
//!
//! What is particular to AArch32 is in [`a32`]; everything else serves both states.
//!
//! The core decodes with `disarm64`, lowers each instruction once into an [`op::Op`] that carries its own handler
//! ([`lower`]), keeps those by page of code ([`code`]) and runs them in blocks ([`exec`]). Memory goes through a software
//! TLB ([`tlb`]) whose write tags are the dirty log's first line.

pub mod a32;
pub mod clock;
pub mod code;
pub mod config;
pub mod cpu;
pub mod dirty;
pub mod exception;
pub mod exec;
pub mod exit;
pub mod fault;
pub mod gic;
pub mod lower;
pub mod mmu;
pub mod op;
pub mod pmu;
pub mod psci;
pub mod ram;
pub mod regs;
pub mod safepoint;
pub mod shared;
pub mod signal;
pub mod sysreg;
pub mod timer;
pub mod tlb;
pub mod vcpu;
pub mod vm;

pub use config::{ClockMode, Config, ConfigError, ExecutionState, RamSlot};
pub use exit::{ErrorReason, Exit, VcpuError};
pub use vcpu::Vcpu;
pub use vm::Machine;
