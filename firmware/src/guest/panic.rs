//! A panic of the firmware: its text goes to the host, which ends the run.
#![expect(unsafe_code, reason = "each vCPU has a static text buffer of its own")]

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::panic::PanicInfo;

use abi::hypercall::PANIC_TEXT_MAX;
use abi::map::MAX_VCPUS;

use crate::guest::arch::cpu;
use crate::guest::hypercall;

/// A buffer for each vCPU: a panic must not need the heap or much stack.
struct Texts(UnsafeCell<[[u8; PANIC_TEXT_MAX as usize]; MAX_VCPUS]>);

// SAFETY: vCPU i uses buffer i alone.
unsafe impl Sync for Texts {}

static TEXTS: Texts = Texts(UnsafeCell::new([[0; PANIC_TEXT_MAX as usize]; MAX_VCPUS]));

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let vcpu = cpu::vcpu_index();
    let first = TEXTS.0.get().cast::<[u8; PANIC_TEXT_MAX as usize]>();
    // SAFETY: the index is below MAX_VCPUS, and right from the first instructions on.
    let buffer = unsafe { first.add(vcpu) };
    // SAFETY: the buffer is this vCPU's, which uses it here alone and does not come back.
    let buffer = unsafe { &mut *buffer };
    let mut text = Cut { buffer, len: 0 };
    // It is cut where it does not fit.
    let _ = write!(text, "{info}");
    let Cut { buffer, len } = text;
    let text = match core::str::from_utf8(&buffer[..len]) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&buffer[..error.valid_up_to()]).unwrap_or_default(),
    };
    hypercall::report_panic(vcpu, text)
}

/// Text that is cut at the buffer's end.
struct Cut<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.buffer[self.len..];
        let taken = text.len().min(room.len());
        room[..taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}
