//! The PL011 console: polled output. Before [`init`], and on a machine without one, output is dropped.
#![expect(unsafe_code, reason = "device registers")]

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use abi::Gpa;

/// Data register (DDI 0183 3.3.1).
const UARTDR: u64 = 0x00;
/// Flag register; bit 5: transmit FIFO full.
const UARTFR: u64 = 0x18;
const FIFO_FULL: u32 = 1 << 5;

/// Address of the UART, zero for none.
static BASE: AtomicU64 = AtomicU64::new(0);

/// Uses the UART at `base`, which is mapped as device memory.
pub(crate) fn init(base: Gpa) {
    BASE.store(base.raw(), Ordering::Relaxed);
}

/// Prints. Lines of several vCPUs may mix; only the primary speaks in a normal run.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    let base = BASE.load(Ordering::Relaxed);
    if base != 0 {
        // The console cannot fail; an error could only come from a Display that does.
        let _ = Pl011 { base }.write_fmt(text);
    }
}

struct Pl011 {
    base: u64,
}

impl Pl011 {
    fn put(&self, byte: u8) {
        let (data, flags) = ((self.base + UARTDR) as *mut u32, (self.base + UARTFR) as *const u32);
        // SAFETY: `init` was given the address of a UART's registers; reading the flags has no side effect.
        while unsafe { flags.read_volatile() } & FIFO_FULL != 0 {
            core::hint::spin_loop();
        }
        // SAFETY: as above; writing the data register sends the byte.
        unsafe { data.write_volatile(u32::from(byte)) };
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
