//! The scenario `chain`: a guest moves from process to process, and what it dirtied since its start moves with it.
//!
//! ```text
//!  A ──▶ B ──▶ C ──▶ B ──▶ A ──▶ B …     each a new process; the last one verifies guest, model and dirty history
//! ```
//!
//! Every VM keeps the dirty history (`--track-dirty`): all that was harvested since step 1. A hop that lost a dirty bit, in the
//! log or on its way, leaves a page out of the history at the end, which must be exactly the plan's.

use super::Interrupt;
use super::migrate::{conclude, judge_end};
use super::pair::crossing::{Crossing, Outcome};
use super::pair::{Findings, MigrateSpec, PairError, Place, Watch};
use super::passes::RunError;
use crate::report::ledger::{HopEntry, MigrationEntry};
use crate::report::{Ledger, Progress};

/// Names of the hosts that the guest moves between, there and back.
const HOSTS: [&str; 4] = ["A", "B", "C", "B"];
/// Steps that every vCPU completes in each VM before it moves on.
const STEPS: u64 = 1;

/// Moves one guest `hops` times.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_chain(
    spec: &MigrateSpec,
    hops: u64,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Ledger, RunError> {
    let mut ledger = spec.blank_ledger();
    ledger.migration = Some(MigrationEntry::default());
    let watch = Watch::new(spec.timeout, interrupt);
    let result = drive(spec, hops, watch, progress, &mut ledger);
    conclude(&mut ledger, interrupt, result)?;
    if let Some(entry) = &mut ledger.migration {
        sum_up(entry);
    }
    Ok(ledger)
}

fn host(number: u64) -> &'static str {
    HOSTS[(number % HOSTS.len() as u64) as usize]
}

fn drive(
    spec: &MigrateSpec,
    hops: u64,
    watch: Watch<'_>,
    progress: &Progress,
    ledger: &mut Ledger,
) -> Result<(), PairError> {
    let place = Place::new().map_err(PairError::Place)?;
    let crossing = Crossing { spec, place: &place, watch };
    // A process of its own in every hop, so that names of hosts come again and those of processes do not.
    let name = |number: u64| format!("{}{number}", host(number));
    let options = ["--track-dirty".to_owned()];
    let prepare = |number: u64| {
        let ends = place.ends(&spec.way, number as usize).map_err(PairError::Place)?;
        let side = if spec.way.is_file() {
            None
        } else {
            Some(crossing.incoming(&name(number), &ends.destination, &options)?)
        };
        Ok::<_, PairError>((ends, side))
    };
    let mut source = crossing.first(&name(0), &options)?;
    // Its history begins with the second step: the first one touches all memory.
    source.wait_steps(&watch, 1)?;
    let mut next = Some(prepare(1)?);
    for hop in 1..=hops {
        let Some((ends, waiting)) = next.take() else { break };
        source.wait_steps(&watch, STEPS)?;
        watch.pass(spec.settle)?;
        crossing.begin(&mut source, &ends.source)?;
        // The next one starts while this migration is under way.
        next = if hop < hops { Some(prepare(hop + 1)?) } else { None };
        let mut waiting = waiting;
        let outcome = crossing.wait(&mut source, waiting.as_mut())?;
        let mut destination = match waiting {
            Some(side) => side,
            None => crossing.incoming(&name(hop), &ends.destination, &options)?,
        };
        let seen = MigrationEntry::from_query(&outcome.info);
        let completed = judge_hop(&mut Findings::numbered(ledger, "hop", hop as usize), &outcome, &seen);
        if completed {
            crossing.wait_running(&mut destination)?;
        }
        let history = destination.state().ok().and_then(|state| state.history?.get("region").copied());
        let entry = HopEntry {
            hop,
            from: host(hop - 1).to_owned(),
            to: host(hop).to_owned(),
            point: None,
            status: seen.status,
            total_ns: seen.total_ns,
            downtime_host_ns: seen.downtime_host_ns,
            transferred: seen.transferred,
            syncs: seen.syncs,
            history,
            registers: None,
        };
        let hops = &mut ledger.migration.get_or_insert_default().hops;
        let before = hops.last().and_then(|hop| hop.history);
        hops.push(entry);
        let mut findings = Findings::numbered(ledger, "hop", hop as usize);
        findings.check("history", history.is_some() && history >= before, "a dirty history that grows", || {
            format!("{history:?} after {before:?} pages")
        });
        if !completed {
            return Ok(());
        }
        let left = std::mem::replace(&mut source, destination).quit(&watch)?;
        judge_end(&mut Findings::numbered(ledger, "hop", hop as usize), &name(hop - 1), &left);
        progress.advance(format!("hop {hop}"));
    }
    source.wait_steps(&watch, STEPS)?;
    let end = source.quit(&watch)?;
    judge_end(&mut Findings::of_run(ledger), &name(hops), &end);
    if let Ok(of_side) = end.ledger {
        ledger.region = of_side.region;
    }
    Ok(())
}

/// What the hops come to together.
pub(super) fn sum_up(entry: &mut MigrationEntry) {
    let sum = |field: fn(&HopEntry) -> u64| entry.hops.iter().map(field).sum();
    (entry.total_ns, entry.downtime_host_ns) = (sum(|hop| hop.total_ns), sum(|hop| hop.downtime_host_ns));
    (entry.transferred, entry.syncs) = (sum(|hop| hop.transferred), sum(|hop| hop.syncs));
    if let Some(last) = entry.hops.iter().find(|hop| hop.status != "completed").or(entry.hops.last()) {
        entry.status.clone_from(&last.status);
    }
}

/// What a hop came to, as `seen` at its source. Whether it was completed.
pub(super) fn judge_hop(findings: &mut Findings<'_>, outcome: &Outcome, seen: &MigrationEntry) -> bool {
    findings.check("one-guest", !outcome.both_ran, "one side that runs the guest", || "both".to_owned());
    let completed = findings.check("status", outcome.status() == "completed", "completed", || {
        format!("{} {}", seen.status, seen.error.clone().unwrap_or_default())
    });
    let equal = seen.digests.iter().all(|slot| slot.equal);
    findings.check("digest", equal, "equal digests of all memory", || format!("{:?}", seen.digests));
    completed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_goes_there_and_back() {
        let route: Vec<&str> = (0..6).map(host).collect();
        assert_eq!(route, ["A", "B", "C", "B", "A", "B"]);
    }

    #[test]
    fn one_hop_that_fails_is_what_the_chain_came_to() {
        let hop = |status: &str| HopEntry { status: status.to_owned(), total_ns: 3, ..HopEntry::default() };
        let mut entry = MigrationEntry { hops: vec![hop("completed"), hop("failed")], ..MigrationEntry::default() };
        sum_up(&mut entry);
        assert_eq!((entry.status.as_str(), entry.total_ns), ("failed", 6));
    }
}
