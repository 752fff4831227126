//! Two VMs and a migration between them, as the scenarios `migrate`, `cancel` and `chain` drive them.
//!
//! Each VM is a `hostvmm run --qmp` of its own, so that what is proven is proven of processes that share nothing but a
//! stream: [`Side`] starts, commands and ends one, [`Place`] has the directory and the addresses, on another host too ([`far`]), [`Watch`] bounds every wait
//! and gives it a name, a [`Crossing`](crossing::Crossing) is one migration. [`MigrateSpec`] is what is asked for, [`Findings`] what was
//! wrong. What the guests print of their clocks goes through [`clock_lines`], what a guest without a plan says of itself through
//! [`GuestLines`]; [`Blocks`] are their huge pages.

mod blocks;
pub(super) mod clock_lines;
pub(super) mod crossing;
mod far;
mod findings;
mod guest_lines;
mod place;
pub(super) mod point_lines;
mod side;
mod watch;
pub(super) mod world;

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Spec;
use super::passes::{blank_ledger, machine_options};

pub(super) use blocks::Blocks;
pub(super) use findings::Findings;
pub(super) use guest_lines::GuestLines;
pub(super) use place::Place;
pub use place::Way;
pub use side::PairError;
pub(super) use side::{Ended, Side};
pub(super) use watch::Watch;

use crate::backend::Accelerator;
use crate::memory::host_page_bytes;
use crate::report::Ledger;

/// A scenario with migrations, as asked for.
#[derive(Clone, Debug)]
pub struct MigrateSpec {
    /// Machine, guest and workload of every VM.
    pub base: Spec,
    /// How VMs reach each other.
    pub way: Way,
    /// The command that executes a line of shell on the host of these VMs, where that is another one.
    pub via: Option<String>,
    /// Migration parameters by QEMU's names.
    pub parameters: Map<String, Value>,
    /// Migration capabilities by QEMU's names, to be switched on.
    pub capabilities: Vec<String>,
    /// Whether the guest is verified where it arrived before it goes on.
    pub verify_guest: bool,
    /// How long the guest runs before a migration and after it.
    pub settle: Duration,
    /// How long anything is waited for.
    pub timeout: Duration,
    /// More options of `hostvmm run` for every VM.
    pub options: Vec<String>,
    /// The options above as the command line has them, for the command that repeats the run.
    pub flags: String,
}

/// A word of a command line as a shell is to be given it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

impl MigrateSpec {
    /// Whether the guest is to be moved before all of its memory is.
    pub(super) fn is_postcopy(&self) -> bool {
        self.has("postcopy-ram")
    }

    /// Whether this capability is asked for.
    pub(super) fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|name| name == capability)
    }

    /// Options of `hostvmm run` for a VM of this spec, its sockets and files aside.
    pub(super) fn run_options(&self) -> Vec<String> {
        let mut options: Vec<String> = machine_options(&self.base).split_whitespace().map(str::to_owned).collect();
        match &self.base.machine.kernel {
            Some(files) => options.extend(files.options()),
            // Another host has its own, at the place where hostvmm looks for it.
            None if self.via.is_some() => {}
            None => options.extend(["--firmware".to_owned(), self.base.firmware.display().to_string()]),
        }
        // A dirty log has pages of this host's size here: an emulator elsewhere is told.
        let is_told = options.iter().any(|option| option == "--host-page");
        if self.via.is_some() && self.base.machine.accelerator == Accelerator::Emulator && !is_told {
            options.extend(["--host-page".to_owned(), format!("{}k", host_page_bytes() >> 10)]);
        }
        options.extend_from_slice(&self.options);
        options
    }

    /// The ledger of a run that has not begun.
    pub(super) fn blank_ledger(&self) -> Ledger {
        let mut ledger = blank_ledger(&self.base);
        "live".clone_into(&mut ledger.mode);
        let guest = match &self.base.machine.kernel {
            Some(files) => files.options().iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
            None => format!("--firmware {}", self.base.firmware.display()),
        };
        let (scenario, options) = (self.base.scenario, machine_options(&self.base));
        ledger.reproduce = format!("hostvmm verify {scenario} {guest} {options} {}", self.flags);
        ledger
    }

    /// Sets parameters and capabilities of `side`.
    pub(super) fn tune(&self, side: &mut Side) -> Result<(), PairError> {
        if !self.capabilities.is_empty() {
            let on = |name: &String| json!({ "capability": name, "state": true });
            let capabilities: Vec<Value> = self.capabilities.iter().map(on).collect();
            side.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
        }
        if !self.parameters.is_empty() {
            side.execute("migrate-set-parameters", Value::Object(self.parameters.clone()))?;
        }
        Ok(())
    }
}
