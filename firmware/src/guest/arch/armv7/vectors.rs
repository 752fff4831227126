//! All eight vectors: interrupts are handled, anything else is reported to the host with registers and backtrace.
//!
//! Code runs in System mode. Every vector stores its return state on Supervisor mode's stack (SRS) and goes on in that
//! mode: one good stack for all exceptions, whatever has become of the interrupted one, and abort, undefined and
//! interrupt modes need none. Neighbours: [`crate::guest::gic`] handles interrupts, [`crate::guest::exceptions`]
//! reports.
#![expect(unsafe_code, reason = "symbols that assembly jumps to have to keep their names; fault registers")]

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use abi::hypercall::ExceptionReport;
use zerocopy::little_endian::U64;

use crate::guest::{exceptions, gic, points};

/// Registers at an exception, as the vectors push them.
#[repr(C)]
struct Frame {
    /// r0 to r12.
    r: [u32; 13],
    /// SP of the interrupted mode.
    sp: u32,
    /// LR of the interrupted mode.
    lr: u32,
    /// Offset of the vector taken.
    vector: u32,
    /// Where to return to: the instruction that was not executed.
    pc: u32,
    /// CPSR at the exception.
    cpsr: u32,
}

const VECTOR_PREFETCH_ABORT: u32 = 0x0c;
const VECTOR_DATA_ABORT: u32 = 0x10;
const VECTOR_IRQ: u32 = 0x18;

/// Bytes of a frame that the vectors push; SRS has pushed the last two words.
const PUSHED_BYTES: usize = offset_of!(Frame, pc);

global_asm!(
    r#"
    // What LR is ahead of the instruction that was not executed, by kind of exception (DDI 0406 table B1-7).
    .macro VECTOR name, offset, ahead
\name:
        sub     lr, lr, #\ahead
        srsdb   sp!, #0x13
        cps     #0x13
        sub     sp, sp, #{pushed}
        stm     sp, {{r0-r12}}
        mov     r0, #\offset
        b       exception_common
    .endm

    .pushsection .text.vectors, "ax"
    .arm
    .balign 32
    .global exception_vectors
exception_vectors:
        b       vector_reset
        b       vector_undefined
        b       vector_svc
        b       vector_prefetch_abort
        b       vector_data_abort
        b       vector_hyp
        b       vector_irq
        b       vector_fiq

    VECTOR vector_reset, 0x00, 0
    VECTOR vector_undefined, 0x04, 4
    VECTOR vector_svc, 0x08, 4
    VECTOR vector_prefetch_abort, 0x0c, 4
    VECTOR vector_data_abort, 0x10, 8
    VECTOR vector_hyp, 0x14, 0
    VECTOR vector_irq, 0x18, 4
    VECTOR vector_fiq, 0x1c, 4

    .type exception_common, %function
exception_common:
        str     r0, [sp, #{vector}]
        ldr     r1, [sp, #{cpsr}]
        and     r1, r1, #0x1f
        cmp     r1, #0x13                   // in a handler, which runs in Supervisor mode too?
        addeq   r2, sp, #{frame_bytes}
        streq   r2, [sp, #{sp}]
        streq   lr, [sp, #{lr}]
        addne   r2, sp, #{sp}
        stmne   r2, {{sp, lr}}^             // System mode's
        mov     r0, sp
        mov     r4, sp
        bic     sp, sp, #7                  // AAPCS32 6.2.1.2; a handler may be interrupted anywhere
        mov     r11, #0
        mov     lr, #0
        bl      exception_entry
        mov     sp, r4
        clrex
        ldr     lr, [sp, #{lr}]             // Supervisor mode's, if that was interrupted
        ldm     sp, {{r0-r12}}
        add     sp, sp, #{pushed}
        rfeia   sp!
    .size exception_common, . - exception_common
    .popsection
    "#,
    pushed = const PUSHED_BYTES,
    frame_bytes = const size_of::<Frame>(),
    vector = const offset_of!(Frame, vector),
    cpsr = const offset_of!(Frame, cpsr),
    sp = const offset_of!(Frame, sp),
    lr = const offset_of!(Frame, lr),
);

#[unsafe(no_mangle)]
extern "C" fn exception_entry(frame: &mut Frame) {
    match frame.vector {
        VECTOR_IRQ => gic::handle_irq(),
        VECTOR_DATA_ABORT if points::handle_abort(fault_registers(VECTOR_DATA_ABORT).1.into()) => frame.pc += 4,
        _ => report(frame),
    }
}

fn report(frame: &Frame) -> ! {
    let (status, address) = fault_registers(frame.vector);
    let fill = |report: &mut ExceptionReport| {
        report.vector = u64::from(frame.vector).into();
        report.esr = u64::from(status).into();
        report.far = u64::from(address).into();
        report.elr = u64::from(frame.pc).into();
        report.spsr = u64::from(frame.cpsr).into();
        report.sp = u64::from(frame.sp).into();
        let registers = frame.r.iter().chain([&frame.sp, &frame.lr]);
        for (slot, &register) in report.x.iter_mut().zip(registers) {
            *slot = U64::new(u64::from(register));
        }
    };
    exceptions::report(fill, frame.r[11] as usize)
}

/// DFSR and DFAR of a data abort, IFSR and IFAR of a prefetch abort, zeroes otherwise.
fn fault_registers(vector: u32) -> (u32, u32) {
    let (status, address): (u32, u32);
    match vector {
        VECTOR_DATA_ABORT => {
            // SAFETY: reading DFSR and DFAR has no effect on anything else.
            unsafe {
                asm!("mrc p15, 0, {}, c5, c0, 0", "mrc p15, 0, {}, c6, c0, 0", out(reg) status, out(reg) address,
                    options(nomem, nostack, preserves_flags));
            }
        }
        VECTOR_PREFETCH_ABORT => {
            // SAFETY: reading IFSR and IFAR has no effect on anything else.
            unsafe {
                asm!("mrc p15, 0, {}, c5, c0, 1", "mrc p15, 0, {}, c6, c0, 2", out(reg) status, out(reg) address,
                    options(nomem, nostack, preserves_flags));
            }
        }
        _ => return (0, 0),
    }
    (status, address)
}
