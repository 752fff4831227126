//! The PL011 console: polled output. Before [`init`], and on a machine without one, output is dropped.
#![expect(unsafe_code, reason = "device registers")]

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};

use abi::Gpa;

use crate::guest::arch::cpu;

/// Data register (DDI 0183 3.3.1).
const UARTDR: u64 = 0x00;
/// Flag register; bit 5: transmit FIFO full.
const UARTFR: u64 = 0x18;
const FIFO_FULL: u32 = 1 << 5;

/// Address of the UART, zero for none.
static BASE: AtomicUsize = AtomicUsize::new(0);

/// Uses the UART at `base`, which is mapped as device memory.
pub(crate) fn init(base: Gpa) {
    BASE.store(base.raw() as usize, Ordering::Relaxed);
}

/// Prints. Lines of several vCPUs may mix; only the primary speaks in a normal run.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    let base = BASE.load(Ordering::Relaxed);
    if base != 0 {
        // The console cannot fail; an error could only come from a Display that does.
        let _ = Pl011 { base: base as u64 }.write_fmt(text);
    }
}

struct Pl011 {
    base: u64,
}

impl Pl011 {
    fn put(&self, byte: u8) {
        let (data, flags) = (Gpa::new(self.base + UARTDR), Gpa::new(self.base + UARTFR));
        // SAFETY: `init` was given the address of a UART's registers; reading the flags has no side effect.
        while unsafe { cpu::read_device(flags) } & FIFO_FULL != 0 {
            core::hint::spin_loop();
        }
        // SAFETY: as above; writing the data register sends the byte.
        unsafe { cpu::write_device(data, u32::from(byte)) };
    }
}

impl Write for Pl011 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}
