//! What the lab and its guest agree on: names in the initramfs, ports, and the archive that carries results.
//!
//! The program beside this library is the guest's PID 1; crate `lab` builds the initramfs, boots it, and judges what
//! comes back. Archives both ways are [`newc`].

pub mod newc;
pub mod outside;

/// The command and its arguments, each ended by a NUL byte; empty: an interactive shell on the console.
pub const COMMAND: &str = "lab/command";
/// Kernel modules, inserted in the order of their names.
pub const MODULES: &str = "lab/modules";
/// Where the command starts; what it leaves here is brought back.
pub const OUT: &str = "out";
/// The entry of the results archive that holds the command's exit code in decimal.
pub const EXIT_CODE: &str = "exit-code";
/// The last line that the console shows when everything has been handed over.
pub const END_MARKER: &str = "lab-init: the end";

/// A virtio-serial port by its number on the bus, which is also in the name of its device in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Port {
    /// The command's standard output. Port 0 is reserved for a console, hence from 1.
    Stdout = 1,
    /// The command's standard error.
    Stderr = 2,
    /// The results archive.
    Results = 3,
}

impl Port {
    /// All ports.
    pub const ALL: [Self; 3] = [Self::Stdout, Self::Stderr, Self::Results];

    /// The port's number on the bus.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The port's device in the guest. There is one virtio-serial bus, hence number 0.
    #[must_use]
    pub fn device(self) -> String {
        format!("/dev/vport0p{}", self.number())
    }
}
