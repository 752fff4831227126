//! The scenario `migrate`: a guest that dirties memory moves between two processes while it runs, and is whole.
//!
//! ```text
//!  A runs the guest ──migrate──▶ B runs it ──migrate, arrives stopped──▶ C: `sum -r` of B and C, then runs it
//!     └ measured                    └ clock, gaps, steps                    └ guest = host = model at the end
//! ```
//!
//! The second migration is the original test's: both memories stand still, so that their checksums can be compared. The first
//! is the one that is measured. A kernel's RAM is compared as a whole; it follows no plan, but says itself whether its memory is what it
//! wrote ([`GuestLines`]).

use std::thread;
use std::time::Duration;

use serde_json::json;

use super::Interrupt;
use super::pair::clock_lines::{HandOver, Stay, jumps};
use super::pair::crossing::{Crossing, Outcome};
use super::pair::{Ended, Findings, GuestLines, MigrateSpec, PairError, Place, Side, Watch, Way};
use super::passes::RunError;
use crate::machine::Heartbeat;
use crate::memory::SlotId;
use crate::report::ledger::MigrationEntry;
use crate::report::{Ledger, Progress, Verdict};

/// The guest must have dirtied memory in so many steps before it is moved, and must go on for as many after it.
const STEPS: u64 = 2;
/// How long a source whose guest has moved away is watched.
const STILL: Duration = Duration::from_millis(50);
/// Jumps of the guest's clock that are told.
const JUMPS_TOLD: usize = 3;

/// Migrates the guests of `specs`, all at once if they are to run `side_by_side`; one ledger, with a cell each if they are several.
///
/// # Errors
/// [`RunError`] where a run cannot be made; what checks find is in the ledger.
pub fn run_migrations(
    specs: &[MigrateSpec],
    side_by_side: bool,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Ledger, RunError> {
    let run = |spec: &MigrateSpec| {
        let result = run_one(spec, interrupt);
        progress.advance(spec.base.workload.to_string());
        result
    };
    let results: Vec<Result<Ledger, RunError>> = if side_by_side {
        thread::scope(|scope| {
            let threads: Vec<_> = specs.iter().map(|spec| scope.spawn(|| run(spec))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        })
    } else {
        specs.iter().map(run).collect()
    };
    let mut ledgers = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    if ledgers.len() == 1 {
        return Ok(ledgers.remove(0));
    }
    let mut whole = specs[0].blank_ledger();
    whole.verdict = Verdict::Skip;
    for ledger in &ledgers {
        whole.verdict = whole.verdict.and(ledger.verdict);
        whole.mismatches.extend(ledger.mismatches.iter().take(1).cloned());
    }
    whole.cells = ledgers;
    Ok(whole)
}

fn run_one(spec: &MigrateSpec, interrupt: &Interrupt) -> Result<Ledger, RunError> {
    let mut ledger = spec.blank_ledger();
    let watch = Watch::new(spec.timeout, interrupt);
    let result = drive(spec, watch, &mut ledger);
    conclude(&mut ledger, interrupt, result)?;
    Ok(ledger)
}

/// The verdict of a scenario that was driven to `result`.
///
/// # Errors
/// [`RunError::Pair`] where a VM could not be what was asked for: nothing has been proven.
pub(super) fn conclude(
    ledger: &mut Ledger,
    interrupt: &Interrupt,
    result: Result<(), PairError>,
) -> Result<(), RunError> {
    // Ctrl-C reaches the VMs as well, and whoever asks them next finds them gone.
    match result.map_err(|error| if interrupt.is_raised() { PairError::Interrupted } else { error }) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.exit_code(), Some(2 | 4)) => Err(error.into()),
        Err(error) => {
            ledger.verdict = Verdict::Fail;
            ledger.reason = Some(error.to_string());
            Ok(())
        }
    }
}

fn drive(spec: &MigrateSpec, watch: Watch<'_>, ledger: &mut Ledger) -> Result<(), PairError> {
    let place = Place::new().map_err(PairError::Place)?;
    let crossing = Crossing { spec, place: &place, watch };
    let mut source = crossing.first("A", &[])?;
    let ends = place.ends(&spec.way, 1).map_err(PairError::Place)?;
    let waiting = if spec.way.is_file() { None } else { Some(crossing.incoming("B", &ends.destination, &[])?) };
    source.wait_steps(&watch, STEPS)?;
    watch.pass(spec.settle)?;

    crossing.begin(&mut source, &ends.source)?;
    let (outcome, mut destination) = match waiting {
        Some(mut destination) => (crossing.wait(&mut source, Some(&mut destination))?, destination),
        None => (crossing.wait(&mut source, None)?, crossing.incoming("B", &ends.destination, &[])?),
    };
    let mut entry = MigrationEntry::from_query(&outcome.info);
    entry.uri = Some(ends.source);
    let completed = judge_outcome(&mut Findings::of_run(ledger), &outcome, &entry);
    ledger.migration = Some(entry.clone());
    if !completed {
        return Ok(());
    }
    crossing.wait_running(&mut destination)?;
    if !crossing.stands_still(&mut source, STILL)? {
        Findings::of_run(ledger).fail("one guest", "the source stands still", "it executes steps");
    }
    watch.pass(spec.settle)?;
    // After that time: these steps show that the guest has printed what was due in it.
    destination.wait_steps(&watch, STEPS)?;

    let last = compare(&crossing, &mut destination, ledger)?;
    let ends = [("A", source.quit(&watch)?), ("B", destination.quit(&watch)?), ("C", last.quit(&watch)?)];
    for (name, end) in &ends {
        judge_end(&mut Findings::of_run(ledger), name, end);
    }
    if spec.base.machine.kernel.is_some() {
        GuestLines::judge(&mut Findings::of_run(ledger), ends.iter().map(|(name, end)| (*name, &end.guest)));
    }
    let [_, (_, arrived), (_, last)] = &ends;
    let hand_overs = [arrived, last].map(|end| HandOver::told(of_arrival(end)?.clock.as_ref()?));
    // B measured how the guest came there; B's own last migration is the one to C.
    if let Some(of_arrival) = of_arrival(arrived).cloned() {
        (entry.clock, entry.gaps) = (of_arrival.clock, of_arrival.gaps);
        (entry.downtime_guest_ns, entry.counter_error_ppm) =
            (of_arrival.downtime_guest_ns, of_arrival.counter_error_ppm);
    }
    judge_downtime(&mut Findings::of_run(ledger), spec, &entry, &arrived.lines);
    let stays = ends.map(|(vm, end)| Stay { vm, lines: end.clock, due: end.due });
    judge_lines(&mut Findings::of_run(ledger), &mut entry, &stays, &hand_overs);
    ledger.migration = Some(entry);
    Ok(())
}

/// What a VM's ledger says of how the guest came there.
fn of_arrival(end: &Ended) -> Option<&MigrationEntry> {
    end.ledger.as_ref().ok()?.migration.as_ref()
}

/// Whether a migration completed, with every check that was made of it.
fn judge_outcome(findings: &mut Findings<'_>, outcome: &Outcome, entry: &MigrationEntry) -> bool {
    findings.check("one guest", !outcome.both_ran, "one side that runs the guest", || "both".to_owned());
    let error = entry.error.clone().unwrap_or_default();
    let completed =
        findings.check("status", outcome.status() == "completed", "completed", || format!("{} {error}", entry.status));
    if completed {
        let equal = !entry.digests.is_empty() && entry.digests.iter().all(|slot| slot.equal);
        findings.check("digest", equal, "equal digests of all memory", || format!("{:?}", entry.digests));
    }
    completed
}

/// Moves the guest once more, to where it arrives stopped, and compares both memories as the original test did; returns the
/// VM that runs it now.
fn compare(crossing: &Crossing<'_>, source: &mut Side, ledger: &mut Ledger) -> Result<Side, PairError> {
    let ends = crossing.place.ends(&Way::Unix, 2).map_err(PairError::Place)?;
    let mut last = crossing.incoming("C", &ends.destination, &["--paused".to_owned()])?;
    crossing.begin(source, &ends.source)?;
    let outcome = crossing.wait(source, Some(&mut last))?;
    crossing.wait_arrived(&mut last)?;
    let entry = MigrationEntry::from_query(&outcome.info);
    if judge_outcome(&mut Findings::of_run(ledger), &outcome, &entry) {
        let slot = checked_slot(crossing.spec);
        let [here, there] = [checksum(source, slot)?, checksum(&mut last, slot)?];
        (ledger.region.sum_r_source, ledger.region.sum_r_dest) = (here, there);
        let mut findings = Findings::of_run(ledger);
        let expected = format!("equal checksums of the {slot}");
        findings.check("sum -r", here.is_some() && here == there, &expected, || format!("{here:?} and {there:?}"));
    }
    last.execute("cont", json!({}))?;
    last.wait_steps(&crossing.watch, STEPS)?;
    Ok(last)
}

/// Where the guest writes: a kernel knows of RAM alone.
fn checked_slot(spec: &MigrateSpec) -> SlotId {
    if spec.base.machine.kernel.is_some() { SlotId::Ram } else { SlotId::Region }
}

/// `sum -r` of a slot of a VM whose guest stands still.
pub(super) fn checksum(side: &mut Side, slot: SlotId) -> Result<Option<u16>, PairError> {
    let sums = side.execute("x-tidemark-checksum", json!({}))?;
    Ok(sums[slot.to_string()]["sum-r"].as_u64().and_then(|sum| u16::try_from(sum).ok()))
}

/// A VM has ended as it should, and verified the guest if it had it.
pub(super) fn judge_end(findings: &mut Findings<'_>, name: &str, end: &Ended) -> bool {
    match &end.ledger {
        Ok(ledger) => {
            let why = || {
                let first = ledger.mismatches.first().map(|mismatch| format!("{mismatch:?}"));
                format!("{:?}: {}", ledger.verdict, ledger.reason.clone().or(first).unwrap_or_default())
            };
            let expected = format!("VM {name} verified");
            findings.check("verified", ledger.verdict == Verdict::Pass && end.status.success(), &expected, why)
        }
        Err(error) => {
            findings.fail("verified", format!("a ledger of VM {name}"), format!("{error}: {}", end.lines.join(" | ")));
            false
        }
    }
}

/// The downtime that the guest felt is the hosts'.
fn judge_downtime(findings: &mut Findings<'_>, spec: &MigrateSpec, entry: &MigrationEntry, said: &[String]) {
    // A guest in a file stands still for as long as nobody reads it.
    if spec.base.machine.heartbeat == Heartbeat::Off || spec.way.is_file() {
        return;
    }
    let reconciled = entry.clock.as_ref().is_some_and(|clock| clock.reconciled);
    findings.check("downtime", reconciled, "guest and hosts that agree", || {
        let (host, guest) = (entry.downtime_host_ns, entry.downtime_guest_ns);
        format!("{host} ns by the hosts, {guest} ns by the guest: {}", said.join(" | "))
    });
}

/// The guest's clock went on.
fn judge_lines(
    findings: &mut Findings<'_>,
    entry: &mut MigrationEntry,
    stays: &[Stay],
    hand_overs: &[Option<HandOver>],
) {
    let jumps = jumps(stays, hand_overs);
    findings.check("clock", jumps.is_empty(), "lines of a clock that goes on", || {
        let told: Vec<String> = jumps.iter().take(JUMPS_TOLD).map(ToString::to_string).collect();
        format!("{} jumps: {}", jumps.len(), told.join("; "))
    });
    if let Some(clock) = &mut entry.clock {
        let lines: usize = stays.iter().map(|stay| stay.lines.len()).sum();
        (clock.lines, clock.jumps) = (lines as u64, jumps.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample_ledger;

    #[test]
    fn a_vm_that_is_gone_is_no_finding_of_a_run_that_the_user_ended() {
        let ended = || PairError::TimedOut { what: "a VM".to_owned(), waited: Duration::ZERO, found: Vec::new() };
        let interrupt = Interrupt::default();
        let reason = |interrupt| {
            let mut ledger = sample_ledger();
            conclude(&mut ledger, interrupt, Err(ended())).unwrap();
            assert_eq!(ledger.verdict, Verdict::Fail);
            ledger.reason
        };
        assert_eq!(reason(&interrupt), Some(ended().to_string()));
        interrupt.raise();
        assert_eq!(reason(&interrupt).as_deref(), Some("interrupted"));
    }
}
