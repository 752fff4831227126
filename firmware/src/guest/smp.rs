//! Starts the secondary vCPUs by PSCI. Neighbour: [`crate::guest::arch::entry`] has their first instructions.

use abi::{Gpa, GuestRange};
use alloc::boxed::Box;

use crate::guest::arch::cache;
use crate::guest::arch::entry::secondary_start_address;
use crate::guest::arch::mmu::TranslationRegisters;
use crate::guest::{Machine, image};

/// What a secondary needs before it can run Rust. It is read with the MMU off: whoever writes it cleans it to memory.
#[repr(C)]
pub(crate) struct SecondaryContext {
    /// Index of the vCPU.
    pub(crate) vcpu: usize,
    /// Top of its stack.
    pub(crate) stack_top: usize,
    /// Top of its exception stack.
    pub(crate) exception_stack_top: usize,
    /// The translation that all vCPUs share.
    pub(crate) registers: TranslationRegisters,
    /// The [`crate::guest::Machine`].
    pub(crate) machine: *const Machine,
}

/// Starts vCPUs 1 and up. Each goes to [`crate::guest::start`] on its own; none is waited for.
///
/// # Panics
/// If PSCI refuses, or the devicetree has fewer CPUs than the boot block.
pub(crate) fn start_secondaries(machine: &'static Machine) {
    for vcpu in 1..machine.boot.vcpus as usize {
        let context = Box::leak(Box::new(SecondaryContext {
            vcpu,
            stack_top: image::stack(vcpu).end().raw() as usize,
            exception_stack_top: image::exception_stack(vcpu).end().raw() as usize,
            registers: machine.space.registers(),
            machine: core::ptr::from_ref(machine),
        }));
        let address = core::ptr::from_ref(context) as u64;
        let bytes =
            GuestRange::new(Gpa::new(address), size_of::<SecondaryContext>() as u64).expect("an object cannot wrap");
        cache::clean(bytes);
        let mpidr = machine.devices.mpidr(vcpu).expect("the devicetree has a CPU for every vCPU of the boot block");
        machine
            .devices
            .psci
            .cpu_on(mpidr, secondary_start_address(), address)
            .unwrap_or_else(|error| panic!("PSCI did not turn vCPU {vcpu} on: {error:?}"));
    }
}
