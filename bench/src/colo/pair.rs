//! Two processes made a pair: a [`Guest`] that is given a secondary, with the outlet that both know; and what a side shows of it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use hostvmm::colo::outlet::{Accepted, OutletServer, Sink};
use hostvmm::report::ledger::{CheckpointEntry, ColoEntry};
use serde_json::{Value, json};

use crate::measure::BenchError;
use crate::vmm::{Program, Vm};

/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether something has come; looking takes time of the one that is measured.
const LOOK: Duration = Duration::from_millis(50);
/// Silence after which a side is taken for lost, in ms: on a busy machine none is lost.
const SILENCE_MS: u64 = 60_000;

/// Sees output and forgets it.
struct Unseen;

impl Sink for Unseen {
    fn take(&mut self, _: Vec<Accepted>) -> io::Result<()> {
        Ok(())
    }
}

/// An outlet in this process at `path`.
pub(super) fn outlet(path: &Path) -> Result<OutletServer, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Outlet(error.to_string());
    let address = format!("unix:{}", path.display()).parse().map_err(|error| failed(&error))?;
    OutletServer::start(&address, Box::new(Unseen)).map_err(|error| failed(&error))
}

/// A guest that runs, and can be given a secondary.
pub(super) struct Guest<'a> {
    program: &'a Program,
    options: &'a [String],
    files: &'a Path,
    name: &'a str,
    pub(super) vm: Vm,
    _outlet: OutletServer,
}

impl<'a> Guest<'a> {
    /// Starts a guest with `options` as VM `name`, and lets it touch all its memory.
    pub(super) fn start(
        program: &'a Program,
        options: &'a [String],
        name: &'a str,
        files: &'a Path,
    ) -> Result<Self, BenchError> {
        let path = files.join(format!("{name}.outlet"));
        let outlet = outlet(&path)?;
        let mut vm = start(program, options, name, files, &path, &["--colo", "primary"])?;
        wait(&mut vm, "the first steps", |vm| Ok((steps(vm)? >= 2).then_some(())))?;
        Ok(Self { program, options, files, name, vm, _outlet: outlet })
    }

    /// Gives it a secondary, and waits for the first checkpoint. `parameters` are set at both.
    pub(super) fn protect(&mut self, parameters: &Value) -> Result<Vm, BenchError> {
        let socket = self.files.join(format!("{}.pair", self.name));
        let uri = format!("unix:{}", socket.display());
        let outlet = self.files.join(format!("{}.outlet", self.name));
        let name = format!("{}-secondary", self.name);
        let waits = ["--colo", "secondary", "--incoming", &uri];
        let mut secondary = start(self.program, self.options, &name, self.files, &outlet, &waits)?;
        let mut all = parameters.clone();
        all["x-colo-heartbeat-limit"] = json!(SILENCE_MS);
        for vm in [&mut self.vm, &mut secondary] {
            vm.execute("migrate-set-parameters", all.clone())?;
        }
        let on = json!({ "capabilities": [{ "capability": "x-colo", "state": true }] });
        self.vm.execute("migrate-set-capabilities", on)?;
        self.vm.execute("migrate", json!({ "uri": uri }))?;
        wait(&mut self.vm, "the first checkpoint", |vm| {
            let shown = shown(vm, None)?;
            ok(&shown)?;
            Ok((shown.checkpoints > 0).then_some(()))
        })?;
        Ok(secondary)
    }

    /// Sends the secondary away, and waits until the guest is alone.
    pub(super) fn leave(&mut self, secondary: Vm) -> Result<(), BenchError> {
        secondary.quit()?;
        wait(&mut self.vm, "the end of the pair", |vm| {
            let shown = shown(vm, None)?;
            if !shown.exact {
                ok(&shown)?;
            }
            Ok((shown.phase == "alone").then_some(()))
        })
    }
}

fn start(
    program: &Program,
    options: &[String],
    name: &str,
    files: &Path,
    outlet: &Path,
    more: &[&str],
) -> Result<Vm, BenchError> {
    let mut command = program.hostvmm_command(&["run"], options.to_vec());
    let qmp = files.join(format!("{name}.qmp"));
    command.arg("--qmp").arg(format!("unix:{}", qmp.display())).args(more);
    command.arg("--colo-outlet").arg(format!("unix:{}", outlet.display()));
    Vm::spawn(program, command, qmp)
}

/// Waits until `look` has found something.
pub(super) fn wait<T>(
    vm: &mut Vm,
    what: &'static str,
    mut look: impl FnMut(&mut Vm) -> Result<Option<T>, BenchError>,
) -> Result<T, BenchError> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look(vm)? {
            return Ok(found);
        }
        if begun.elapsed() > PATIENCE {
            return Err(BenchError::Vain { what });
        }
        std::thread::sleep(LOOK);
    }
}

/// Steps that the guest has completed, of all vCPUs.
pub(super) fn steps(vm: &mut Vm) -> Result<u64, BenchError> {
    let status = vm.execute("x-tidemark-status", json!({}))?;
    let vcpus = status["vcpus"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(vcpus.iter().filter_map(|vcpu| vcpu["completed"].as_u64()).sum())
}

/// What a side shows of its pair, with the first checkpoints after number `after`.
pub(super) fn shown(vm: &mut Vm, after: Option<u64>) -> Result<ColoEntry, BenchError> {
    let arguments = after.map_or(json!({}), |after| json!({ "after": after }));
    let value = vm.execute("x-tidemark-colo", arguments)?;
    serde_json::from_value(value.clone()).map_err(|_| BenchError::Pair(value.to_string()))
}

/// All checkpoints after number `after`.
pub(super) fn checkpoints(vm: &mut Vm, after: u64) -> Result<Vec<CheckpointEntry>, BenchError> {
    let mut all = Vec::new();
    loop {
        let last = all.last().map_or(after, |round: &CheckpointEntry| round.n);
        let mut more = shown(vm, Some(last))?;
        ok(&more)?;
        if more.rounds.is_empty() {
            return Ok(all);
        }
        all.append(&mut more.rounds);
    }
}

/// The pair goes on, and every checkpoint was exact.
fn ok(shown: &ColoEntry) -> Result<(), BenchError> {
    let goes_on = ["setup", "syncing", "running", "checkpoint"].contains(&shown.phase.as_str());
    if goes_on && shown.exact {
        return Ok(());
    }
    let error = shown.error.clone().unwrap_or_default();
    Err(BenchError::Pair(format!("{} after {} checkpoints: {error}", shown.phase, shown.checkpoints)))
}
