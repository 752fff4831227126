//! Tidemark's bare-metal guest: it dirties pages by the plan, digests and checks memory, and does what hostvmm tells
//! it.
//!
//! All of it is for bare metal and lives in `guest`. Built for a host, this package is a program that says how to
//! build the guest, so that whole-workspace commands need no bare-metal toolchain.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod guest;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "the firmware runs in a virtual machine; build and run it with\n    \
         cargo run -p firmware --target aarch64-unknown-none-softfloat -- --passes 5\n    \
         cargo run -p firmware --target armv7a-none-eabi -- --passes 5"
    );
    std::process::ExitCode::from(2)
}
