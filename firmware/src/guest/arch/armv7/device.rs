//! Device accesses of crate `safe-mmio`, on which crate `arm-gic` rests.
//!
//! Left to itself the crate would make volatile accesses here, which the compiler turns into LDRD or
//! into accesses with writeback. Their traps do not describe themselves to a hypervisor (HSR.ISV), so KVM refuses them.
//! The crate lets the program bring its own. Registers of 64 bits are accessed by halves, which a GICv3 allows
//! (IHI 0069 12.1.3).
#![expect(unsafe_code, reason = "device registers are accessed by given instructions")]

use core::arch::asm;

use safe_mmio::{MmioOps, set_mmio_ops};

use super::cpu::{read_device, write_device};

/// Single loads and stores without writeback.
struct SingleAccesses;

set_mmio_ops!(SingleAccesses);

fn gpa<T>(pointer: *const T) -> abi::Gpa {
    abi::Gpa::new(pointer as u64)
}

impl MmioOps for SingleAccesses {
    unsafe fn read_u8(src: *const u8) -> u8 {
        let value: u8;
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("ldrb {}, [{}]", out(reg) value, in(reg) src, options(nostack, preserves_flags)) };
        value
    }

    unsafe fn read_u16(src: *const u16) -> u16 {
        let value: u16;
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("ldrh {}, [{}]", out(reg) value, in(reg) src, options(nostack, preserves_flags)) };
        value
    }

    unsafe fn read_u32(src: *const u32) -> u32 {
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { read_device(gpa(src)) }
    }

    unsafe fn read_u64(src: *const u64) -> u64 {
        let halves = src.cast::<u32>();
        // SAFETY: the caller's promise that a register is mapped there.
        let low = unsafe { read_device(gpa(halves)) };
        // SAFETY: as above; it has eight bytes.
        let high = unsafe { read_device(gpa(halves.wrapping_add(1))) };
        u64::from(high) << 32 | u64::from(low)
    }

    unsafe fn write_u8(dst: *mut u8, value: u8) {
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("strb {}, [{}]", in(reg) value, in(reg) dst, options(nostack, preserves_flags)) };
    }

    unsafe fn write_u16(dst: *mut u16, value: u16) {
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { asm!("strh {}, [{}]", in(reg) value, in(reg) dst, options(nostack, preserves_flags)) };
    }

    unsafe fn write_u32(dst: *mut u32, value: u32) {
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { write_device(gpa(dst), value) };
    }

    unsafe fn write_u64(dst: *mut u64, value: u64) {
        let halves = dst.cast::<u32>();
        // SAFETY: the caller's promise that a register is mapped there.
        unsafe { write_device(gpa(halves), value as u32) };
        // SAFETY: as above; it has eight bytes.
        unsafe { write_device(gpa(halves.wrapping_add(1)), (value >> 32) as u32) };
    }
}
