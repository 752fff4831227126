//! Builds a machine: checks what is asked for, maps memory, loads the firmware, writes the devicetree, and makes the
//! accelerator's VM. The only module that names a concrete backend.
//!
//! - [`Machine`]: the result, at its first instruction;
//! - [`MachineConfig`] and [`Layout`]: what is asked for, and where it lies;
//! - [`Image`]: the firmware's ELF; [`Kernel`]: a Linux kernel in its place;
//! - [`devicetree`]: what the guest is told; [`Heartbeat`]: how it shows that it runs;
//! - [`state`]: everything of a machine but its memory, to go on elsewhere;
//! - [`Symbols`]: names for the firmware's addresses.

mod builder;
mod config;
mod cpu;
pub mod devicetree;
mod heartbeat;
mod kernel;
mod loader;
pub mod state;
mod symbols;
#[cfg(test)]
pub(crate) mod test_elf;

pub use builder::{BuildError, Machine, Start};
pub use config::{Clock, ConfigError, Layout, MachineConfig, PHYSICAL_ADDRESS_BITS, Transport, armv7_tables, va_bits};
pub use cpu::{CpuModel, other_side};
pub use heartbeat::{Heartbeat, HeartbeatError};
pub use kernel::{Kernel, KernelError, KernelFiles};
pub use loader::{Image, LoadError, MAX_FILE_BYTES, MAX_PROGRAM_HEADERS};
pub use symbols::{Frame, Symbols};
