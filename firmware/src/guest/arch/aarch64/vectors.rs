//! All sixteen vectors: interrupts are handled, anything else is reported to the host with registers and backtrace.
//!
//! Code runs on SP_EL0, handlers on SP_EL1 (see [`super::entry`]), so even a stack that has run into its guard leaves a
//! good one to report on. Neighbours: [`crate::guest::gic`] handles interrupts, [`crate::guest::exceptions`] reports.
#![expect(unsafe_code, reason = "symbols that assembly jumps to have to keep their names")]

use core::arch::global_asm;
use core::mem::offset_of;

use aarch64_cpu::registers::{ESR_EL1, FAR_EL1};
use abi::hypercall::ExceptionReport;
use tock_registers::interfaces::Readable;
use zerocopy::little_endian::U64;

use crate::guest::{exceptions, gic, points};

/// Registers at an exception, as the vectors push them.
#[repr(C)]
struct Frame {
    x: [u64; 31],
    /// SP at the exception, of whichever stack it was on.
    sp: u64,
    elr: u64,
    spsr: u64,
    /// Offset of the vector taken.
    vector: u64,
    reserved: u64,
}

const _: () = assert!(size_of::<Frame>().is_multiple_of(16), "SP stays aligned");

/// Offsets of the two vectors that are expected: IRQ from EL1t and from EL1h.
/// Synchronous exceptions from EL1t.
const VECTOR_SYNC_SP0: u64 = 0x000;
const VECTOR_IRQ_SP0: u64 = 0x080;
const VECTOR_IRQ_SPX: u64 = 0x280;

global_asm!(
    r#"
    .macro VECTOR offset
        .balign 0x80
        sub     sp, sp, #{frame_bytes}
        stp     x0, x1, [sp]
        mov     x0, #\offset
        .if \offset < 0x200
        mrs     x1, sp_el0
        .else
        add     x1, sp, #{frame_bytes}
        .endif
        stp     x0, xzr, [sp, #{frame_vector}]
        str     x1, [sp, #{frame_sp}]
        b       exception_common
    .endm

    .pushsection .text.vectors, "ax"
    .balign 0x800
    .global exception_vectors
exception_vectors:
    .irp offset, 0x000, 0x080, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0x480, 0x500, 0x580, 0x600, 0x680, 0x700, 0x780
        VECTOR \offset
    .endr
    .balign 0x80

    .type exception_common, %function
exception_common:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    str     x30, [sp, #240]
    mrs     x0, elr_el1
    mrs     x1, spsr_el1
    stp     x0, x1, [sp, #{frame_elr}]
    mov     x0, sp
    mov     x29, xzr
    mov     x30, xzr
    bl      exception_entry
    ldp     x0, x1, [sp, #{frame_elr}]
    msr     elr_el1, x0
    msr     spsr_el1, x1
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp]
    add     sp, sp, #{frame_bytes}
    eret
    .size exception_common, . - exception_common
    .popsection
    "#,
    frame_bytes = const size_of::<Frame>(),
    frame_sp = const offset_of!(Frame, sp),
    frame_elr = const offset_of!(Frame, elr),
    frame_vector = const offset_of!(Frame, vector),
);

#[unsafe(no_mangle)]
extern "C" fn exception_entry(frame: &mut Frame) {
    match frame.vector {
        VECTOR_IRQ_SP0 | VECTOR_IRQ_SPX => gic::handle_irq(),
        VECTOR_SYNC_SP0 if is_data_abort() && points::handle_abort(FAR_EL1.get()) => frame.elr += 4,
        _ => report(frame),
    }
}

/// ESR_EL1.EC: a data abort taken from EL1.
fn is_data_abort() -> bool {
    ESR_EL1.get() >> 26 & 0x3f == 0x25
}

fn report(frame: &Frame) -> ! {
    let fill = |report: &mut ExceptionReport| {
        report.vector = frame.vector.into();
        report.esr = ESR_EL1.get().into();
        report.far = FAR_EL1.get().into();
        report.elr = frame.elr.into();
        report.spsr = frame.spsr.into();
        report.sp = frame.sp.into();
        report.x = frame.x.map(U64::new);
    };
    exceptions::report(fill, frame.x[29] as usize)
}
