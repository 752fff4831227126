//! Device accesses of crate `safe-mmio`, on which crate `arm-gic` rests: single loads and stores without writeback, whose
//! traps describe themselves to a hypervisor (ESR_EL2.ISV).
//!
//! The crate would make the same by itself, but ARMv7 has to bring its own, and cargo gives a dependency the same features
//! on all targets that it builds for at once.
#![expect(unsafe_code, reason = "device registers are accessed by given instructions")]

use core::arch::asm;

use safe_mmio::{MmioOps, set_mmio_ops};

/// Single loads and stores without writeback.
struct SingleAccesses;

set_mmio_ops!(SingleAccesses);

impl MmioOps for SingleAccesses {
    unsafe fn read_u8(src: *const u8) -> u8 {
        let value: u8;
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("ldrb {:w}, [{}]", out(reg) value, in(reg) src, options(nostack, preserves_flags)) };
        value
    }

    unsafe fn read_u16(src: *const u16) -> u16 {
        let value: u16;
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("ldrh {:w}, [{}]", out(reg) value, in(reg) src, options(nostack, preserves_flags)) };
        value
    }

    unsafe fn read_u32(src: *const u32) -> u32 {
        let value: u32;
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) src, options(nostack, preserves_flags)) };
        value
    }

    unsafe fn read_u64(src: *const u64) -> u64 {
        let value: u64;
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) src, options(nostack, preserves_flags)) };
        value
    }

    unsafe fn write_u8(dst: *mut u8, value: u8) {
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("strb {:w}, [{}]", in(reg) value, in(reg) dst, options(nostack, preserves_flags)) };
    }

    unsafe fn write_u16(dst: *mut u16, value: u16) {
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("strh {:w}, [{}]", in(reg) value, in(reg) dst, options(nostack, preserves_flags)) };
    }

    unsafe fn write_u32(dst: *mut u32, value: u32) {
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) dst, options(nostack, preserves_flags)) };
    }

    unsafe fn write_u64(dst: *mut u64, value: u64) {
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) dst, options(nostack, preserves_flags)) };
    }
}
