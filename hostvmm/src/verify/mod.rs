//! Scenarios: what is run, what is checked, and what it proves.
//!
//! - [`Spec`]: one run as the command line asks for it;
//! - [`run_passes`], [`run_served`], [`run_matrix`], [`run_faults`], [`run_hugepages`]: the scenarios, each yielding a [`crate::report::Ledger`];
//! - [`run_migrations`], [`run_cancel`], [`run_kills`], [`run_chain`]: the same of a [`MigrateSpec`], in processes of their own ([`pair`]);
//! - [`run_cross`], [`run_points`], [`run_skews`]: a guest between accelerators, where it asks for it, and between lists of registers, of a [`CrossSpec`];
//! - [`run_colo`], [`run_colo_kills`]: pairs that run the same guest, of a [`ColoSpec`];
//! - [`cpu`]: KVM and the emulator compared, instruction by instruction;
//! - [`model`], [`oracle`]: what memory and the dirty log must be, from the plan alone;
//!
//! Scenarios see the traits of [`crate::backend`] and [`crate::dirty`], never a concrete backend.

mod cancel;
mod chain;
mod colo;
mod colo_kills;
pub mod cpu;
mod cross;
mod faults;
mod hugepages;
mod interrupt;
mod kills;
mod matrix;
mod migrate;
pub mod model;
pub mod oracle;
mod pair;
pub(crate) mod passes;
mod points;
pub(crate) mod running;
mod served;
mod side_by_side;
mod skews;
pub(crate) mod stage2;

use std::path::PathBuf;
use std::time::Duration;

use workload::Workload;

use crate::dirty::DirtyLogKind;
use crate::machine::MachineConfig;

pub use cancel::{Moment, run_cancel};
pub use chain::run_chain;
pub use colo::{ColoSpec, Failover, run_colo};
pub use colo_kills::{ColoKill, run_colo_kills};
pub use cross::{CrossSpec, run_cross};
pub use faults::{fault_count, run_faults};
pub use hugepages::run_hugepages;
pub use interrupt::Interrupt;
pub use kills::{Kill, run_kills};
pub use matrix::{Axes, run_matrix};
pub use migrate::run_migrations;
pub use pair::{MigrateSpec, PairError, Way};
pub use passes::{RunError, run_passes};
pub use points::run_points;
pub use served::run_served;
pub use skews::{run_skews, skew_count};

/// One run as asked for: machine, guest, workload, log, passes, destination.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name of the scenario in the ledger.
    pub scenario: &'static str,
    /// The machine.
    pub machine: MachineConfig,
    /// The guest's ELF file.
    pub firmware: PathBuf,
    /// What the guest writes.
    pub workload: Workload,
    /// Dirty logs; the sets of several are compared.
    pub logs: Vec<DirtyLogKind>,
    /// Passes after pass 0.
    pub passes: u64,
    /// Steps that each vCPU executes in a lockstep pass.
    pub steps_per_pass: u64,
    /// Barrier each pass, or not.
    pub mode: Mode,
    /// In live mode: how long the guest runs between two harvests.
    pub interval: Duration,
    /// When the guest checks its own memory.
    pub self_check: SelfCheck,
    /// File that receives the copy; anonymous memory without one.
    pub dest: Option<PathBuf>,
}

/// Whether the guest stands still while a pass is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All vCPUs park at a barrier each pass; everything is checked exactly.
    Lockstep,
    /// The guest runs on; staleness is bounded, and the final pass is exact.
    Live,
}

impl Mode {
    /// The mode's name on the command line and in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::Live => "live",
        }
    }
}

/// When the guest compares its own memory with the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfCheck {
    /// After every lockstep pass.
    Every,
    /// After the last pass.
    Final,
    /// Never.
    Off,
}
