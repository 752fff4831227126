//! The VMM: builds a machine, runs it, logs dirty pages, copies them and verifies every pass.
//!
//! - [`machine`]: checks what is asked for and builds it;
//! - [`memory`]: memslots on memfd or a file; the only owner of pointers into guest RAM;
//! - [`device`]: doorbell, hypercalls, console;
//! - [`backend`]: the traits [`backend::Vm`] and [`backend::Vcpu`], and what implements them;
//! - [`cpustate`]: what becomes of each register between kernels and accelerators; CPU compatibility;
//! - [`dirty`]: dirty logs; [`pass`]: harvest, copy and digest; [`replicate`]: a region kept equal to a file or a peer;
//! - [`migrate`]: a guest moves to another process while it runs;
//! - [`colo`]: a guest on two hosts at once, either of which goes on alone;
//! - [`heartbeat`]: what the guest leaves in its RAM about when it ran;
//! - [`vcpus`]: executes vCPUs and is their remote control;
//! - [`control`]: the QMP socket that controls a running VM, and its client;
//! - [`verify`]: scenarios, the oracle, planted faults; [`probe`]: what this host offers;
//! - [`report`]: the JSON ledger and what is rendered from it; [`cli`]: the command line.

pub mod backend;
pub mod cli;
pub mod colo;
pub mod control;
pub mod cpustate;
pub mod device;
pub mod dirty;
pub mod heartbeat;
pub mod instance;
pub mod machine;
pub mod memory;
pub mod migrate;
pub mod pass;
pub mod probe;
pub mod replicate;
pub mod report;
pub mod vcpus;
pub mod verify;
