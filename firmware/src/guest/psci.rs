//! PSCI calls by the conduit that the devicetree names (DEN 0022). The calls themselves are crate `smccc`'s.

use smccc::psci::{self, Error};
use smccc::{Hvc, Smc};

use crate::guest::arch::cpu;

/// How the machine's PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduit {
    /// HVC.
    Hvc,
    /// SMC, where the guest was started with EL2, the hypervisor's level, of its own.
    Smc,
}

impl Conduit {
    /// Starts the CPU `mpidr` at `entry`, with `context` in its first register.
    pub(crate) fn cpu_on(self, mpidr: u64, entry: u64, context: u64) -> Result<(), Error> {
        match self {
            Self::Hvc => cpu::cpu_on::<Hvc>(mpidr, entry, context),
            Self::Smc => cpu::cpu_on::<Smc>(mpidr, entry, context),
        }
    }

    /// Ends this vCPU, or the whole machine if it is vCPU 0.
    pub(crate) fn off(self, vcpu: usize) -> ! {
        let refused = match (self, vcpu) {
            (Self::Hvc, 0) => psci::system_off::<Hvc>(),
            (Self::Smc, 0) => psci::system_off::<Smc>(),
            (Self::Hvc, _) => psci::cpu_off::<Hvc>(),
            (Self::Smc, _) => psci::cpu_off::<Smc>(),
        };
        panic!("PSCI did not turn vCPU {vcpu} off: {refused:?}");
    }
}
