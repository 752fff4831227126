//! All sixteen vectors: interrupts are handled, anything else is reported to the host with registers and backtrace.
//!
//! Code runs on SP_EL0, handlers on SP_EL1 (see [`crate::guest::entry`]), so even a stack that has run into its guard
//! leaves a good one to report on. Neighbours: [`crate::guest::gic`] handles interrupts, [`crate::guest::hypercall`]
//! carries the report.
#![expect(unsafe_code, reason = "vectors, saved registers, and a walk of stack frames")]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};

use aarch64_cpu::registers::{DAIF, ESR_EL1, FAR_EL1, TPIDR_EL1};
use abi::hypercall::{BACKTRACE_FRAMES, ExceptionReport};
use abi::map::MAX_VCPUS;
use abi::{Gpa, GuestRange};
use tock_registers::interfaces::{ReadWriteable, Readable};
use zerocopy::little_endian::U64;

use crate::guest::{gic, hypercall, image};

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

/// Lets interrupts in.
pub(crate) fn unmask_irq() {
    DAIF.modify(DAIF::I::Unmasked);
}

/// Index of this vCPU, which the entry code left in TPIDR_EL1.
pub(crate) fn vcpu_index() -> usize {
    TPIDR_EL1.get() as usize % MAX_VCPUS
}

#[unsafe(no_mangle)]
extern "C" fn exception_entry(frame: &Frame) {
    match frame.vector {
        VECTOR_IRQ_SP0 | VECTOR_IRQ_SPX => gic::handle_irq(),
        _ => report(frame),
    }
}

/// A report for each vCPU, so that making one needs no memory that could be missing.
struct Reports(UnsafeCell<[ExceptionReport; MAX_VCPUS]>);

// SAFETY: vCPU i uses report i alone.
unsafe impl Sync for Reports {}

const BLANK: ExceptionReport = zerocopy::transmute!([0_u8; size_of::<ExceptionReport>()]);
static REPORTS: Reports = Reports(UnsafeCell::new([BLANK; MAX_VCPUS]));
/// Whether a vCPU is reporting already: an exception while it does must not start over.
static REPORTING: [AtomicBool; MAX_VCPUS] = [const { AtomicBool::new(false) }; MAX_VCPUS];

/// Reports the exception to the host; this vCPU is then parked.
fn report(frame: &Frame) -> ! {
    let vcpu = vcpu_index();
    // Load and store, no exchange: no other vCPU uses the flag.
    if REPORTING[vcpu].load(Ordering::Relaxed) {
        loop {
            aarch64_cpu::asm::wfi();
        }
    }
    REPORTING[vcpu].store(true, Ordering::Relaxed);

    let first = REPORTS.0.get().cast::<ExceptionReport>();
    // SAFETY: the index is below MAX_VCPUS.
    let slot = unsafe { first.add(vcpu) };
    // SAFETY: the report is this vCPU's, which comes here once.
    let report = unsafe { &mut *slot };
    report.vector = frame.vector.into();
    report.esr = ESR_EL1.get().into();
    report.far = FAR_EL1.get().into();
    report.elr = frame.elr.into();
    report.spsr = frame.spsr.into();
    report.sp = frame.sp.into();
    report.x = frame.x.map(U64::new);
    let mut frames = 0;
    for (slot, address) in report.backtrace.iter_mut().zip(backtrace(vcpu, frame.x[29])) {
        *slot = address.into();
        frames += 1;
    }
    report.frames = frames.into();
    hypercall::report_exception(vcpu, report)
}

/// Return addresses along the chain of frame records from `fp` (AAPCS64 6.4.6), innermost first. A record that does not
/// lie in a stack of `vcpu`, above the one before, ends it: after an exception nothing can be trusted.
fn backtrace(vcpu: usize, fp: u64) -> impl Iterator<Item = u64> {
    const RECORD_BYTES: u64 = 16;
    let stacks = [image::stack(vcpu), image::exception_stack(vcpu)];
    let mut fp = fp;
    core::iter::from_fn(move || {
        let record = GuestRange::new(Gpa::new(fp), RECORD_BYTES)?;
        if !record.start().is_aligned(8) || !stacks.iter().any(|stack| stack.contains_range(record)) {
            return None;
        }
        let pointer = fp as *const [u64; 2];
        // SAFETY: the record lies in a stack, which is mapped; any bytes are a valid pair.
        let [next, return_address] = unsafe { pointer.read() };
        fp = if next > fp { next } else { 0 };
        (return_address != 0).then_some(return_address)
    })
    .take(BACKTRACE_FRAMES)
}

/// Test hook: an unexpected exception a few calls deep.
pub(crate) fn plant() {
    planted::outer(planted::UNMAPPED);
}

/// Functions that stay functions, so that the planted exception has a backtrace to check.
mod planted {
    /// Nothing is mapped there: it lies above the doorbell and below the region.
    pub(super) const UNMAPPED: u64 = 0x0bad_0b08;

    #[inline(never)]
    pub(super) fn outer(address: u64) -> u64 {
        core::hint::black_box(middle(address)) + 1
    }

    #[inline(never)]
    fn middle(address: u64) -> u64 {
        core::hint::black_box(inner(address)) + 2
    }

    #[inline(never)]
    fn inner(address: u64) -> u64 {
        let pointer = address as *const u64;
        // SAFETY: the read cannot return: its translation fault is what the host asked for.
        unsafe { pointer.read_volatile() }
    }
}
