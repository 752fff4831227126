//! Starts the secondary vCPUs by PSCI. Neighbour: [`crate::guest::entry`] has their first instructions.

use abi::{Gpa, GuestRange};
use alloc::boxed::Box;

use crate::guest::entry::{SecondaryContext, secondary_start_address};
use crate::guest::{Machine, cache, image};

/// Starts vCPUs 1 and up. Each goes to [`crate::guest::start`] on its own; none is waited for.
///
/// # Panics
/// If PSCI refuses, or the devicetree has fewer CPUs than the boot block.
pub(crate) fn start_secondaries(machine: &'static Machine) {
    for vcpu in 1..machine.boot.vcpus as usize {
        let context = Box::leak(Box::new(SecondaryContext {
            vcpu: vcpu as u64,
            stack_top: image::stack(vcpu).end().raw(),
            exception_stack_top: image::exception_stack(vcpu).end().raw(),
            registers: machine.space.registers(),
            machine: core::ptr::from_ref(machine) as u64,
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
