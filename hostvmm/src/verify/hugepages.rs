//! The scenario `hugepages`: block mappings before logging, dissolved while the log is exact, rebuilt after.
//!
//! [`crate::pass::HugePages`] makes the phases and counts; here is judged what they come to. Two witnesses: the faults that the
//! vCPUs took, counted by KVM's statistics everywhere; and the stage-2 tables where the kernel prints them.

use super::Spec;
use super::interrupt::Interrupt;
use super::passes::{RunError, blank_ledger, execute};
use crate::backend::{Accelerator, Unavailable, why_no_eager_split, why_no_fault_counts, why_no_kvm};
use crate::dirty::{DirtyLogKind, FirstHarvest};
use crate::memory::{Size, host_page_bytes};
use crate::pass::HugePages;
use crate::report::ledger::{HugePagesEntry, HugePagesPhase, Phase};
use crate::report::{Ledger, Mismatch, Progress};

/// Faults that a touch by blocks may take beyond one a block: the host's interrupts and the guest's own RAM. A sixteenth
/// of the pages (and 16 at least) is far from both ends: a block has 512 pages or more.
const fn slack(pages: u64) -> u64 {
    if pages / 16 > 16 { pages / 16 } else { 16 }
}

/// Runs `spec` on huge pages; with `both` a second time with eager splitting, where the host offers it.
///
/// # Errors
/// [`RunError`] where the run cannot be made, also because this host cannot show what is asked for; what checks find is
/// in the ledger.
pub fn run_hugepages(spec: &Spec, both: bool, interrupt: &Interrupt, progress: &Progress) -> Result<Ledger, RunError> {
    let block_bytes = check_host(spec)?;
    let off = run_one(spec, block_bytes, interrupt, progress)?;
    if !both || interrupt.is_raised() {
        return Ok(off);
    }
    if let Some(reason) = why_no_eager_split(block_bytes) {
        progress.line(&format!("measured without eager splitting only: {reason}"));
        return Ok(off);
    }
    let mut eager = spec.clone();
    eager.machine.eager_split = Some(block_bytes);
    let on = run_one(&eager, block_bytes, interrupt, progress)?;
    let mut whole = blank_ledger(spec);
    whole.verdict = off.verdict.and(on.verdict);
    whole.mismatches.extend(off.mismatches.iter().chain(&on.mismatches).cloned());
    whole.cells = vec![off, on];
    Ok(whole)
}

/// Bytes of the blocks to be seen.
fn check_host(spec: &Spec) -> Result<u64, Unavailable> {
    let machine = &spec.machine;
    if machine.accelerator == Accelerator::Emulator {
        let reason = why_no_kvm().map_or_else(String::new, |reason| format!("; {reason}"));
        return Err(Unavailable::Emulated { what: "verify hugepages", reason });
    }
    why_no_fault_counts().map_or(Ok(()), Err)?;
    let block_bytes = machine.backing.block_bytes();
    if let Ok(layout) = machine.layout() {
        let region = layout.region();
        let whole = region.start().is_aligned(block_bytes) && region.len_bytes().is_multiple_of(block_bytes);
        if block_bytes == host_page_bytes() || !whole {
            return Err(Unavailable::NoWholeBlocks { region, block_bytes: block_bytes.max(host_page_bytes()) });
        }
    }
    Ok(block_bytes)
}

fn run_one(spec: &Spec, block_bytes: u64, interrupt: &Interrupt, progress: &Progress) -> Result<Ledger, RunError> {
    let mut ledger = execute(spec, None, interrupt, progress, |session, mut model, vm| {
        session.ledger.hugepages =
            Some(HugePagesEntry { block: block_bytes, eager_split: spec.machine.eager_split, phases: Vec::new() });
        let &Spec { passes, steps_per_pass, self_check, .. } = spec;
        HugePages { vm, block_bytes, passes, steps_per_pass, self_check }.run(session, &mut model)
    })?;
    // Initially all set, a log protects nothing before its first harvest.
    let first_protected = if spec.logs.iter().all(|log| first_harvest(*log) == FirstHarvest::Exact) { 0 } else { 1 };
    if let Some(huge) = ledger.hugepages.clone()
        && ledger.reason.is_none()
    {
        judge(&huge, first_protected).into_iter().for_each(|mismatch| ledger.fail(mismatch));
    }
    Ok(ledger)
}

fn first_harvest(log: DirtyLogKind) -> FirstHarvest {
    if log == DirtyLogKind::Initset { FirstHarvest::AllSet } else { FirstHarvest::Exact }
}

/// What is wrong with the phases; of the passes those from `first_protected` on are looked at.
fn judge(huge: &HugePagesEntry, first_protected: u64) -> Vec<Mismatch> {
    let last = huge.phases.iter().filter_map(|phase| phase.pass).max().unwrap_or(0);
    let mut wrong = Vec::new();
    for phase in &huge.phases {
        let pass = phase.pass.unwrap_or(if phase.phase == Phase::After { last + 1 } else { 0 });
        let mut fail = |check: &str, expected: String, found: String| {
            wrong.push(Mismatch { check: check.to_owned(), pass, page: None, gpa: None, expected, found });
        };
        match phase.phase {
            Phase::Before => judge_blocks("blocks-before", huge, phase, &mut fail),
            Phase::After => judge_blocks("blocks-after", huge, phase, &mut fail),
            Phase::Logging if pass < first_protected => {}
            Phase::Logging => {
                if phase.faults < phase.pages {
                    let expected = format!("a fault or more for each of {} pages", phase.pages);
                    fail("dissolved", expected, format!("{} faults: blocks were written without one", phase.faults));
                }
                if let Some(blocks) = phase.table_blocks.filter(|blocks| *blocks > 0) {
                    let expected = format!("no block mapping in the {} written blocks' stage-2 tables", phase.blocks);
                    fail("dissolved", expected, format!("{blocks}"));
                }
            }
        }
    }
    wrong
}

/// Every block that the phase wrote must be mapped as one.
fn judge_blocks(
    check: &str,
    huge: &HugePagesEntry,
    phase: &HugePagesPhase,
    fail: &mut dyn FnMut(&str, String, String),
) {
    let HugePagesPhase { pages, blocks, faults, .. } = *phase;
    let most = blocks + slack(pages);
    if faults < blocks || faults > most {
        let expected =
            format!("{blocks} to {most} faults for {pages} pages in {blocks} blocks of {}", Size(huge.block));
        let why = if faults > most { ": no blocks" } else { ": pages stayed mapped as they were" };
        fail(check, expected, format!("{faults}{why}"));
    }
    if let Some(found) = phase.table_blocks.filter(|found| *found != blocks) {
        let pages = phase.table_pages.unwrap_or(0);
        fail(check, format!("{blocks} block mappings in the stage-2 tables"), format!("{found}, and {pages} pages"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(phase: Phase, pass: Option<u64>, pages: u64, blocks: u64, faults: u64) -> HugePagesPhase {
        HugePagesPhase { phase, pass, pages, blocks, faults, read_faults: None, table_blocks: None, table_pages: None }
    }

    /// What a host with blocks comes to: 32 MiB, of which each step writes every second page.
    fn sound() -> HugePagesEntry {
        let phases = vec![
            phase(Phase::Before, None, 8192, 16, 22),
            phase(Phase::Logging, Some(0), 4096, 16, 4130),
            phase(Phase::Logging, Some(1), 4096, 16, 4101),
            phase(Phase::After, None, 4096, 16, 19),
        ];
        HugePagesEntry { block: 2 << 20, eager_split: None, phases }
    }

    fn checks(huge: &HugePagesEntry, first_protected: u64) -> Vec<(String, u64)> {
        judge(huge, first_protected).into_iter().map(|mismatch| (mismatch.check, mismatch.pass)).collect()
    }

    #[test]
    fn blocks_that_come_go_and_return_pass() {
        assert_eq!(checks(&sound(), 0), []);
    }

    #[test]
    fn a_guest_without_huge_pages_has_no_blocks_before_and_none_after() {
        let mut huge = sound();
        huge.phases[0].faults = 8230;
        huge.phases[3].faults = 4110;
        assert_eq!(checks(&huge, 0), [("blocks-before".to_owned(), 0), ("blocks-after".to_owned(), 2)]);
        let text = judge(&huge, 0)[0].found.clone();
        assert_eq!(text, "8230: no blocks");
    }

    #[test]
    fn blocks_that_a_log_leaves_whole_are_found() {
        let mut huge = sound();
        huge.phases[2].faults = 20;
        assert_eq!(checks(&huge, 0), [("dissolved".to_owned(), 1)]);
        assert_eq!(checks(&huge, 1), [("dissolved".to_owned(), 1)]);
        huge.phases[2].faults = 4096;
        huge.phases[1].faults = 3;
        assert_eq!(checks(&huge, 1), [], "an initially set log protects nothing before its first harvest");
    }

    #[test]
    fn pages_that_stay_writable_after_the_log_are_no_blocks() {
        let mut huge = sound();
        huge.phases[3].faults = 7;
        assert_eq!(checks(&huge, 0), [("blocks-after".to_owned(), 2)]);
    }

    #[test]
    fn the_tables_are_a_witness_of_their_own() {
        let with = |phase: usize, table_blocks| {
            let mut huge = sound();
            huge.phases[phase].table_blocks = Some(table_blocks);
            checks(&huge, 0)
        };
        assert_eq!(with(0, 16), []);
        assert_eq!(with(0, 15), [("blocks-before".to_owned(), 0)]);
        assert_eq!(with(2, 0), []);
        assert_eq!(with(2, 1), [("dissolved".to_owned(), 1)]);
        assert_eq!(with(3, 0), [("blocks-after".to_owned(), 2)]);
    }
}
