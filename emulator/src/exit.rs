//! Why a vCPU came back to the host: [`Exit`] and, for a vCPU that cannot go on, [`VcpuError`].
//!
//! Neighbours: `vcpu` produces these; hostvmm's emulator backend turns them into its own.

use abi::Gpa;
use thiserror::Error;

/// Why `Vcpu::run` or `Vcpu::run_for` returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A load from an address that is neither RAM nor GIC. Answer with `Vcpu::complete_mmio`, then run again.
    MmioRead {
        /// Address read.
        gpa: Gpa,
        /// 1, 2, 4 or 8.
        len_bytes: u8,
    },
    /// A store to an address that is neither RAM nor GIC. Answer with `Vcpu::complete_mmio(0)`, then run again.
    MmioWrite {
        /// Address written.
        gpa: Gpa,
        /// 1, 2, 4 or 8.
        len_bytes: u8,
        /// The value, in the low bytes.
        data: u64,
    },
    /// An HVC outside the ranges served here (PSCI, SMCCC's own). Answer with `Vcpu::complete_hvc`, then run again.
    Hvc {
        /// Function identifier: w0.
        function: u32,
        /// x1 to x7.
        args: [u64; 7],
    },
    /// Somebody called `Machine::kick` for this vCPU.
    Kicked,
    /// `Vcpu::run_for` executed all its instructions.
    Budget,
    /// Icount only: nothing to execute until an interrupt, or until `Machine::warp_to_next_deadline`.
    Idle,
    /// The guest called PSCI SYSTEM_OFF. All vCPUs are off.
    SystemOff,
    /// The guest called PSCI SYSTEM_RESET. All vCPUs are off.
    SystemReset,
    /// The guest turned this vCPU off. Running it again waits for PSCI CPU_ON.
    CpuOff,
    /// The vCPU cannot go on.
    Error(VcpuError),
}

/// A vCPU that cannot go on, where, and why.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("vCPU {vcpu} at pc {pc:#x}: {reason}")]
pub struct VcpuError {
    /// Which vCPU.
    pub vcpu: usize,
    /// Its program counter.
    pub pc: u64,
    /// What is wrong.
    pub reason: ErrorReason,
}

/// What is wrong with a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ErrorReason {
    /// An MMIO exit or hypercall was not answered before the vCPU was run again.
    #[error("the pending {what} was not answered before the vCPU was run again")]
    Unanswered {
        /// `MMIO access` or `hypercall`.
        what: &'static str,
    },
    /// `run` in icount mode or `run_for` in wall mode.
    #[error("{call} does not fit the machine's clock")]
    WrongClock {
        /// The method called.
        call: &'static str,
    },
    /// The registers describe a state that the architecture does not have here.
    #[error("impossible state: {what}")]
    State {
        /// What is impossible.
        what: String,
    },
}
