//! The lab: an arm64 Linux whose `/dev/kvm` is the kernel's own, under QEMU's translator, hence on any machine; hostvmm
//! and the firmware run in it as they would on an arm64 host.
//!
//! - [`cache`]: what has been fetched and built; [`apt`]: packages from the machine's Debian sources.
//! - [`kernel`]: the guest's kernel, [`cross`]: the programs for it, [`guest`]: the initramfs of both.
//! - [`qemu`]: the machine as a command line; [`run`]: boot it, and judge what comes back.
//! - [`outside`]: a shell on this machine for the guest; [`crossing`]: a guest that goes through it, from the lab's KVM to this machine's emulator.
//! - [`batch`]: several commands in one boot; [`matrix`]: guests by hosts by dirty logs.
//! - [`mod@bench`]: what KVM's dirty log costs, beside the kernel's own [`selftest`]; [`peer`]: QEMU, to measure migrations beside.
//! - [`progress`]: what is told while it works; [`cli`]: the command line. The guest's first program, and what both sides agree on, is crate `lab-init`.

mod apt;
mod batch;
mod bench;
mod cache;
pub mod cli;
mod command;
mod cross;
mod crossing;
mod error;
mod guest;
mod kernel;
mod matrix;
mod outside;
mod peer;
mod progress;
mod qemu;
mod run;
mod selftest;

pub use error::Error;
