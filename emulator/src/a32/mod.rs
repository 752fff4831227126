//! AArch32: what a vCPU of a machine with [`ExecutionState::Aarch32`](crate::config::ExecutionState) has and does of its own.
//!
//! [`State`] is its state beside [`Cpu`](crate::cpu::Cpu)'s: while AArch32 runs, `Cpu::x[0..=14]` are R0 to R14 of the
//! current mode, `Cpu::pc` is R15, and `Cpu::pstate` holds NZCV, the masks A, I and F, IL and the exception level, so that
//! flags, interrupts and translation are shared with AArch64. [`mode`] has the modes and the banked registers, [`cpsr`] the
//! CPSR, [`exception`] the vectors and the way back, [`coprocessor`] CP14, CP15 and the system registers of VFP. [`decode()`] finds
//! the encoding of an instruction, `lower` makes an op of it, `exec` has the handlers.
//!
//! As under KVM there is EL1 and EL0 only: no Monitor and no Hyp mode, HVC goes to the host. Not implemented, and not
//! promised by the ID registers: T32, Jazelle, big-endian data, short vectors.

pub mod coprocessor;
pub mod cpsr;
mod decode;
pub mod exception;
mod exec;
mod lower;
pub mod mode;
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub use cpsr::Cpsr;
pub use decode::{Encoding, decode, encodings};
pub use lower::is_modelled;
pub(crate) use lower::lower;
pub use mode::Mode;

/// What an AArch32 vCPU has beside the state it shares with AArch64.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct State {
    /// The part of the CPSR that is not in `Cpu::pstate`.
    pub cpsr: Cpsr,
    /// The register file by AArch64 number ([`mode::slot`]); the entries of the current mode are stale.
    pub(crate) banks: [u32; 31],
    /// SPSR_abt, SPSR_und, SPSR_irq and SPSR_fiq; SPSR_svc is SPSR_EL1.
    pub(crate) spsr: [u32; 4],
}
