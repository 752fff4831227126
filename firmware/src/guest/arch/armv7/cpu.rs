//! Small things that take an instruction: barriers, interrupts, waiting, calls to the hypervisor, device registers.
#![expect(unsafe_code, reason = "instructions that the language has no words for")]

use core::arch::asm;

use abi::Gpa;
use abi::hypercall::HVC_FUNCTION_32;
use abi::map::MAX_VCPUS;
use smccc::psci::{self, Error};
use smccc::{Call, Hvc};

/// Orders all accesses before it against all after it, for every observer.
pub(crate) fn synchronize() {
    // SAFETY: a barrier only waits.
    unsafe { asm!("dsb", options(nostack, preserves_flags)) };
}

/// Waits for an interrupt, masked or not.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: WFI only waits.
    unsafe { asm!("wfi", options(nostack, preserves_flags)) };
}

/// Lets interrupts in. One that is pending is taken here at the latest.
pub(crate) fn unmask_irq() {
    // SAFETY: the vectors leave everything as they found it.
    unsafe { asm!("cpsie i", "isb", options(nostack, preserves_flags)) };
}

/// Keeps interrupts out.
pub(crate) fn mask_irq() {
    // SAFETY: interrupts are never needed for memory to be as the language expects.
    unsafe { asm!("cpsid i", options(nostack, preserves_flags)) };
}

/// Whether an interrupt is pending, masked or not.
pub(crate) fn is_irq_pending() -> bool {
    let pending: u32;
    // SAFETY: reading ISR has no effect on anything else.
    unsafe { asm!("mrc p15, 0, {}, c12, c1, 0", out(reg) pending, options(nomem, nostack, preserves_flags)) };
    pending & 1 << 7 != 0
}

/// Index of this vCPU, which the entry code left in TPIDRPRW.
pub(crate) fn vcpu_index() -> usize {
    let index: usize;
    // SAFETY: reading TPIDRPRW has no effect on anything else.
    unsafe { asm!("mrc p15, 0, {}, c13, c0, 4", out(reg) index, options(nomem, nostack, preserves_flags)) };
    index % MAX_VCPUS
}

/// Hands the request block at `block` to the host by HVC, with the 32-bit calling convention. The answer is in the block.
pub(crate) fn call_host(block: u64) {
    let _answer_is_in_the_block = Hvc::call32(HVC_FUNCTION_32, [block as u32, 0, 0, 0, 0, 0, 0]);
}

/// PSCI CPU_ON. All addresses lie below 4 GiB, and so does an affinity, whose fourth byte only AArch64 has.
pub(crate) fn cpu_on<C: Call>(mpidr: u64, entry: u64, context: u64) -> Result<(), Error> {
    psci::cpu_on_32::<C>(mpidr as u32, entry as u32, context as u32)
}

/// Reads the device register at `at` by a single LDR without writeback: the form of load whose trap describes itself to a
/// hypervisor (DDI 0487 G8.2.70, HSR.ISV). A volatile access could be compiled to any other.
///
/// # Safety
/// A device's register that may be read is mapped at `at`.
pub(crate) unsafe fn read_device(at: Gpa) -> u32 {
    let value: u32;
    // SAFETY: the caller's promise.
    unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) at.raw() as u32, options(nostack, preserves_flags)) };
    value
}

/// Writes the device register at `at`, by a store like [`read_device`]'s load. The device may write to any memory that
/// Rust does not own.
///
/// # Safety
/// A device's register that may be written is mapped at `at`.
pub(crate) unsafe fn write_device(at: Gpa, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) at.raw() as u32, options(nostack, preserves_flags)) };
}
