//! The VMM: builds a machine, runs it, logs dirty pages, copies them and verifies every pass.
//!
//! - [`machine`]: checks what is asked for and builds it;
//! - [`memory`]: memslots on memfd or a file; the only owner of pointers into guest RAM;
//! - [`device`]: doorbell, hypercalls, console;
//! - [`backend`]: the traits [`backend::Vm`] and [`backend::Vcpu`], and what implements them;
//! - [`report`]: the JSON ledger and what is rendered from it; [`cli`]: the command line.

pub mod backend;
pub mod cli;
pub mod device;
pub mod machine;
pub mod memory;
pub mod report;
