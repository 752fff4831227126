//! The matrix: every kind of translation tables × pattern × vCPU count × mode that the host can run, one verdict.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use abi::Tables;
use workload::Workload;

use super::interrupt::Interrupt;
use super::passes::{RunError, blank_ledger, run_with};
use super::{Mode, Spec};
use crate::report::{Ledger, Progress, Verdict};

/// What the matrix ranges over.
#[derive(Clone, Debug)]
pub struct Axes {
    /// Translation tables, each with the firmware that builds them.
    pub translations: Vec<(Tables, PathBuf)>,
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// vCPU counts.
    pub vcpus: Vec<usize>,
    /// Modes.
    pub modes: Vec<Mode>,
}

impl Axes {
    /// Every cell as a spec of its own. A workload that an architecture lacks has no cells there.
    pub fn cells(&self, spec: &Spec) -> Vec<Spec> {
        let mut cells = Vec::new();
        for (tables, firmware) in &self.translations {
            let exists = |workload: &&Workload| workload.pattern().exists_on(tables.arch());
            for workload in self.workloads.iter().filter(exists) {
                for &vcpus in &self.vcpus {
                    for &mode in &self.modes {
                        let mut cell = spec.clone();
                        cell.scenario = "passes";
                        cell.machine.tables = *tables;
                        cell.firmware.clone_from(firmware);
                        cell.workload = *workload;
                        (cell.machine.pattern, cell.machine.params) = workload.encode();
                        cell.machine.vcpus = vcpus;
                        cell.mode = mode;
                        cells.push(cell);
                    }
                }
            }
        }
        cells
    }
}

/// Runs every cell, as many side by side as the host has processors; the results are in the order of the cells. A cell
/// that cannot be run on this host is skipped with its reason, and does not end the matrix.
///
/// # Errors
/// [`RunError`] where a cell can be run nowhere: its input is bad.
pub fn run_matrix(spec: &Spec, axes: &Axes, interrupt: &Interrupt, progress: &Progress) -> Result<Ledger, RunError> {
    let cells = axes.cells(spec);
    let results: Vec<OnceLock<Result<Ledger, RunError>>> = cells.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        // Cells are taken in order, so that those which were run are the first of all, whoever ends the matrix.
        while !interrupt.is_raised() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(cell) = cells.get(index) else { break };
            let result = run_cell(cell, interrupt, progress);
            if result.is_err() {
                next.store(cells.len(), Ordering::Relaxed);
            }
            // Each index is taken by one thread only.
            let _ = results[index].set(result);
        }
    };
    // Files that are named serve one cell at a time.
    let files = spec.dest.is_some() || spec.machine.share.is_some();
    let workers = if files { 1 } else { thread::available_parallelism().map_or(1, NonZero::get).min(cells.len()) };
    thread::scope(|scope| {
        (1..workers).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let mut whole = blank_ledger(spec);
    whole.verdict = Verdict::Skip;
    for result in results.into_iter().filter_map(OnceLock::into_inner) {
        let mut ledger = result?;
        whole.verdict = whole.verdict.and(ledger.verdict);
        // The whole's mismatches are the cells'; a cell keeps its own.
        whole.mismatches.extend(ledger.mismatches.iter().take(1).cloned());
        ledger.cells.clear();
        whole.cells.push(ledger);
    }
    if interrupt.is_raised() {
        whole.verdict = Verdict::Fail;
        whole.reason = Some("interrupted".to_owned());
    }
    Ok(whole)
}

fn run_cell(cell: &Spec, interrupt: &Interrupt, progress: &Progress) -> Result<Ledger, RunError> {
    let ledger = match run_with(cell, None, interrupt, &Progress::hidden()) {
        Ok(ledger) => ledger,
        Err(error) if error.is_unavailable() => {
            let mut ledger = blank_ledger(cell);
            ledger.verdict = Verdict::Skip;
            ledger.reason = Some(error.to_string());
            ledger
        }
        Err(error) => return Err(error),
    };
    let name = format!("{} {} vcpus={}", cell.machine.tables, cell.workload, cell.machine.vcpus);
    if ledger.verdict == Verdict::Fail {
        progress.line(&format!("FAIL {name}: {}", ledger.reproduce));
    }
    progress.advance(name);
    Ok(ledger)
}
