//! Small things that take an instruction: barriers, interrupts, waiting, calls to the hypervisor, device registers.
#![expect(unsafe_code, reason = "device registers are accessed by given instructions")]

use core::arch::asm;

use aarch64_cpu::asm::barrier::{self, SY};
use aarch64_cpu::registers::{DAIF, TPIDR_EL1};
use abi::Gpa;
use abi::hypercall::HVC_FUNCTION;
use abi::map::MAX_VCPUS;
use smccc::psci::{self, Error};
use smccc::{Call, Hvc};
use tock_registers::interfaces::{ReadWriteable, Readable};

/// Orders all accesses before it against all after it, for every observer.
pub(crate) fn synchronize() {
    barrier::dsb(SY);
}

/// Waits for an interrupt, masked or not.
pub(crate) fn wait_for_interrupt() {
    aarch64_cpu::asm::wfi();
}

/// Lets interrupts in. One that is pending is taken here at the latest.
pub(crate) fn unmask_irq() {
    DAIF.modify(DAIF::I::Unmasked);
    barrier::isb(SY);
}

/// Keeps interrupts out.
pub(crate) fn mask_irq() {
    DAIF.modify(DAIF::I::Masked);
}

/// Whether an interrupt is pending, masked or not.
pub(crate) fn is_irq_pending() -> bool {
    let pending: u64;
    // SAFETY: reading ISR_EL1 has no effect on anything else.
    unsafe { asm!("mrs {}, isr_el1", out(reg) pending, options(nomem, nostack, preserves_flags)) };
    pending & 1 << 7 != 0
}

/// Index of this vCPU, which the entry code left in TPIDR_EL1.
pub(crate) fn vcpu_index() -> usize {
    TPIDR_EL1.get() as usize % MAX_VCPUS
}

/// Hands the request block at `block` to the host by HVC. The answer is in the block.
pub(crate) fn call_host(block: u64) {
    let mut registers = [0; 17];
    registers[0] = block;
    let _answer_is_in_the_block = Hvc::call64(HVC_FUNCTION, registers);
}

/// PSCI CPU_ON.
pub(crate) fn cpu_on<C: Call>(mpidr: u64, entry: u64, context: u64) -> Result<(), Error> {
    psci::cpu_on::<C>(mpidr, entry, context)
}

/// Reads the device register at `at`, by the form of load whose trap describes itself to a hypervisor (ESR_EL2.ISV).
///
/// # Safety
/// A device's register that may be read is mapped at `at`.
pub(crate) unsafe fn read_device(at: Gpa) -> u32 {
    let value: u32;
    // SAFETY: the caller's promise.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) at.raw(), options(nostack, preserves_flags)) };
    value
}

/// Writes the device register at `at`, by a store like [`read_device`]'s load. The device may write to any memory that
/// Rust does not own.
///
/// # Safety
/// A device's register that may be written is mapped at `at`.
pub(crate) unsafe fn write_device(at: Gpa, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) at.raw(), options(nostack, preserves_flags)) };
}
