//! Planted faults: every kind of bug that the bench is to find, planted once, and which checker found it.
//!
//! A run without a fault comes first: a bench that cries wolf proves nothing. A fault counts as detected only if the
//! first mismatch names the page and the pass in which it was planted.

use abi::Gpa;
use workload::Workload;

use super::interrupt::Interrupt;
use super::model::Model;
use super::passes::{Plant, RunError, blank_ledger, plan, run_with};
use super::{Mode, SelfCheck, Spec};
use crate::backend::{Accelerator, PlantedFault};
use crate::machine::Clock;
use crate::pass::{Interference, InterferenceKind};
use crate::report::{FaultEntry, Ledger, Progress, Verdict};

/// The pass in which faults strike: late enough for copies and tags to be there, and odd, since the guest writes through
/// the same alias of the region, hence the same TLB entries, in an odd step and the even one before it.
const STRIKE: u64 = 3;
/// Writes the same pages in every step, so that a tag that survives a harvest is used again.
const SAME_PAGES: &str = "dirtyram:pages=512,step=32,sleep_ms=0";
/// Writes whole pages of random bytes, so that any two differ.
const OTHER_BYTES: &str = "full:writes=16";

/// A fault to plant.
struct Fault {
    name: &'static str,
    workload: &'static str,
    /// Makes the plant from the first pages that the striking pass writes, and one that it does not.
    plant: fn(&Pages) -> Plant,
}

/// Pages to strike.
struct Pages {
    /// Two pages that the striking pass writes.
    written: [u64; 2],
    /// A page that it does not write.
    clean: u64,
    /// Address of the region.
    base: Gpa,
    page_bytes: u64,
}

impl Pages {
    /// Address of a written page.
    fn gpa(&self, index: usize) -> Gpa {
        self.base.checked_add(self.written[index] * self.page_bytes).expect("a region does not wrap")
    }

    /// The page that `plant` strikes.
    fn struck_by(&self, plant: &Plant) -> u64 {
        let gpa = match *plant {
            Plant::Vmm(Interference { page, .. }) => return page,
            Plant::Log { fault: PlantedFault::SkipPage { gpa }, .. }
            | Plant::Log { fault: PlantedFault::StaleTag { gpa, .. }, .. }
            | Plant::Log { fault: PlantedFault::DropBit { gpa, .. }, .. } => gpa,
        };
        gpa.checked_offset_from(self.base).expect("faults strike the region") / self.page_bytes
    }
}

fn interference(page: u64, kind: InterferenceKind) -> Plant {
    Plant::Vmm(Interference { pass: STRIKE, page, kind })
}

const FAULTS: [Fault; 10] = [
    Fault {
        name: "log-drops-bit",
        workload: OTHER_BYTES,
        plant: |pages| Plant::Log {
            before_pass: STRIKE,
            fault: PlantedFault::DropBit { gpa: pages.gpa(0), harvest: STRIKE },
        },
    },
    Fault {
        name: "log-skips-page",
        workload: OTHER_BYTES,
        plant: |pages| Plant::Log { before_pass: STRIKE, fault: PlantedFault::SkipPage { gpa: pages.gpa(0) } },
    },
    Fault {
        name: "tlb-keeps-stale-tag",
        workload: SAME_PAGES,
        // The harvest of the pass before leaves the tag; the write through it is lost in the striking pass.
        plant: |pages| {
            let fault = PlantedFault::StaleTag { gpa: pages.gpa(1), harvest: STRIKE - 1 };
            Plant::Log { before_pass: STRIKE - 1, fault }
        },
    },
    Fault {
        name: "harvest-loses-bit",
        workload: OTHER_BYTES,
        plant: |pages| interference(pages.written[0], InterferenceKind::LoseBit),
    },
    Fault {
        name: "log-adds-page",
        workload: OTHER_BYTES,
        plant: |pages| interference(pages.clean, InterferenceKind::AddBit),
    },
    Fault {
        name: "copier-skips-page",
        workload: OTHER_BYTES,
        plant: |pages| interference(pages.written[0], InterferenceKind::SkipPage),
    },
    Fault {
        name: "copier-swaps-pages",
        workload: OTHER_BYTES,
        plant: |pages| interference(pages.written[0], InterferenceKind::SwapPages { other: pages.written[1] }),
    },
    Fault {
        name: "copier-flips-bit",
        workload: OTHER_BYTES,
        plant: |pages| interference(pages.written[0], InterferenceKind::FlipBit),
    },
    Fault {
        name: "copier-leaves-tail",
        workload: OTHER_BYTES,
        plant: |pages| interference(pages.written[0], InterferenceKind::LeaveTail),
    },
    Fault {
        name: "write-behind-the-log",
        workload: OTHER_BYTES,
        plant: |pages| interference(pages.clean, InterferenceKind::WriteBehindTheLog),
    },
];

/// Plants every fault in a run of its own on the machine of `spec`.
///
/// # Errors
/// [`RunError`] where a run cannot be made; a fault that is not detected is in the ledger.
pub fn run_faults(spec: &Spec, interrupt: &Interrupt, progress: &Progress) -> Result<Ledger, RunError> {
    let mut ledger = blank_ledger(spec);
    let sound = run_with(&spec_of(spec, OTHER_BYTES), None, interrupt, &Progress::hidden())?;
    if sound.verdict != Verdict::Pass {
        ledger.verdict = sound.verdict;
        let why = sound.reason.map_or_else(String::new, |reason| format!(": {reason}"));
        ledger.reason = Some(format!("the run without a fault does not pass{why}"));
        ledger.mismatches = sound.mismatches;
        return Ok(ledger);
    }
    for fault in FAULTS {
        let spec = spec_of(spec, fault.workload);
        let pages = pages_to_strike(&spec)?;
        let plant = (fault.plant)(&pages);
        let page = pages.struck_by(&plant);
        if spec.machine.accelerator == Accelerator::Kvm && matches!(plant, Plant::Log { .. }) {
            progress.advance(fault.name.to_owned());
            ledger.faults.push(FaultEntry {
                fault: fault.name.to_owned(),
                planted: "nowhere".to_owned(),
                skipped: Some("a fault cannot be planted in the kernel's dirty log; use --accel emulator".to_owned()),
                ..FaultEntry::default()
            });
            continue;
        }
        let run = run_with(&spec, Some(plant), interrupt, &Progress::hidden())?;
        if interrupt.is_raised() {
            ledger.verdict = Verdict::Fail;
            ledger.reason = Some(format!("interrupted after {} of {} faults", ledger.faults.len(), fault_count()));
            return Ok(ledger);
        }
        let found = run.mismatches.iter().find(|mismatch| mismatch.page.is_some());
        let detected = found.is_some_and(|found| found.pass == STRIKE && found.page == Some(page));
        let mut by: Vec<String> = Vec::new();
        for mismatch in run.mismatches.iter().filter(|mismatch| mismatch.pass >= STRIKE) {
            if !by.contains(&mismatch.check) {
                by.push(mismatch.check.clone());
            }
        }
        let entry = FaultEntry {
            fault: fault.name.to_owned(),
            planted: format!("pass {STRIKE}, page {page}"),
            detected,
            by,
            pass: run.mismatches.first().map(|mismatch| mismatch.pass),
            skipped: None,
        };
        if !detected {
            ledger.verdict = Verdict::Fail;
            ledger.reason = Some(format!("the fault {} was not detected where it was planted", fault.name));
        }
        progress.advance(fault.name.to_owned());
        ledger.faults.push(entry);
    }
    Ok(ledger)
}

/// How many faults [`run_faults`] plants.
pub const fn fault_count() -> u64 {
    FAULTS.len() as u64
}

/// A short lockstep run of `workload`, reproducible, on the machine of `spec`.
fn spec_of(spec: &Spec, workload: &str) -> Spec {
    let mut spec = spec.clone();
    spec.workload = Workload::parse(workload).expect("the workloads of this table parse");
    (spec.machine.pattern, spec.machine.params) = spec.workload.encode();
    if spec.machine.accelerator == Accelerator::Emulator {
        spec.machine.clock = Clock::Icount;
    }
    spec.passes = STRIKE + 1;
    spec.steps_per_pass = 1;
    spec.mode = Mode::Lockstep;
    spec.self_check = SelfCheck::Off;
    spec.machine.share = None;
    spec.dest = None;
    spec
}

fn pages_to_strike(spec: &Spec) -> Result<Pages, RunError> {
    let page_bytes = spec.machine.layout()?.log_page_bytes();
    let mut model = Model::new(plan(spec)?);
    model.advance_all(STRIKE, page_bytes);
    let written = model.advance_all(STRIKE + 1, page_bytes);
    let mut in_order = written.iter();
    let (Some(first), Some(second)) = (in_order.next(), in_order.next()) else {
        unreachable!("the workloads of this table write many pages a step")
    };
    let clean = (0..written.pages()).find(|&page| !written.test(page)).expect("and leave most pages alone");
    Ok(Pages { written: [first, second], clean, base: model.base(), page_bytes })
}
