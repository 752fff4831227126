//! Unexpected exceptions: reported to the host with registers and backtrace, whatever the architecture.
//!
//! Neighbours: the architecture's vectors take exceptions, [`crate::guest::hypercall`] carries the report.
#![expect(unsafe_code, reason = "a report for each vCPU, and a walk of stack frames")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use abi::hypercall::{BACKTRACE_FRAMES, ExceptionReport};
use abi::map::MAX_VCPUS;
use abi::{Gpa, GuestRange};

use crate::guest::arch::cpu;
use crate::guest::{hypercall, image};

/// A report for each vCPU, so that making one needs no memory that could be missing.
struct Reports(UnsafeCell<[ExceptionReport; MAX_VCPUS]>);

// SAFETY: vCPU i uses report i alone.
unsafe impl Sync for Reports {}

const BLANK: ExceptionReport = zerocopy::transmute!([0_u8; size_of::<ExceptionReport>()]);
static REPORTS: Reports = Reports(UnsafeCell::new([BLANK; MAX_VCPUS]));
/// Whether a vCPU is reporting already: an exception while it does must not start over.
static REPORTING: [AtomicBool; MAX_VCPUS] = [const { AtomicBool::new(false) }; MAX_VCPUS];

/// Reports an exception to the host; this vCPU is then parked. `fill` writes the registers, `frame_pointer` is where the
/// backtrace starts.
pub(crate) fn report(fill: impl FnOnce(&mut ExceptionReport), frame_pointer: usize) -> ! {
    let vcpu = cpu::vcpu_index();
    // Load and store, no exchange: no other vCPU uses the flag.
    if REPORTING[vcpu].load(Ordering::Relaxed) {
        loop {
            cpu::wait_for_interrupt();
        }
    }
    REPORTING[vcpu].store(true, Ordering::Relaxed);

    let first = REPORTS.0.get().cast::<ExceptionReport>();
    // SAFETY: the index is below MAX_VCPUS.
    let slot = unsafe { first.add(vcpu) };
    // SAFETY: the report is this vCPU's, which comes here once.
    let report = unsafe { &mut *slot };
    fill(report);
    let mut frames = 0;
    for (slot, address) in report.backtrace.iter_mut().zip(backtrace(vcpu, frame_pointer)) {
        *slot = (address as u64).into();
        frames += 1;
    }
    report.frames = frames.into();
    hypercall::report_exception(vcpu, report)
}

/// Return addresses along the chain of frame records from `frame_pointer` on, innermost first. A record is a pair of
/// words: the next record's address, and the return address (AAPCS64 6.4.6; AAPCS32 6.2.1.4, which the compiler keeps
/// with r11). One that does not lie in a stack of `vcpu`, above the one before, ends the chain: after an exception
/// nothing can be trusted.
fn backtrace(vcpu: usize, frame_pointer: usize) -> impl Iterator<Item = usize> {
    const RECORD_BYTES: u64 = size_of::<[usize; 2]>() as u64;
    let stacks = [image::stack(vcpu), image::exception_stack(vcpu)];
    let mut at = frame_pointer;
    core::iter::from_fn(move || {
        let record = GuestRange::new(Gpa::new(at as u64), RECORD_BYTES)?;
        let aligned = record.start().is_aligned(size_of::<usize>() as u64);
        if !aligned || !stacks.iter().any(|stack| stack.contains_range(record)) {
            return None;
        }
        let pointer = at as *const [usize; 2];
        // SAFETY: the record lies in a stack, which is mapped; any bytes are a valid pair.
        let [next, return_address] = unsafe { pointer.read() };
        at = if next > at { next } else { 0 };
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
