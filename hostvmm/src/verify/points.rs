//! The scenario `cross --points`: a guest is moved between two accelerators, or two emulators, where it asks for it.
//!
//! ```text
//!  from ── mmu-off ──▶ to ── table-switch ──▶ from ── handler ──▶ to … ── workload ──▶ …     each a new process
//! ```
//!
//! The guest asks (`abi::points`), and stands still right behind the store that asks; at the one point where it waits for an interrupt it
//! is stopped until it is found waiting. It arrives stopped, and its vCPUs' registers are compared from outside as in [`super::cross`]. Then it
//! goes on, checks itself, and prints every register that it could read before and after: what differs must be what the table lets differ,
//! or named by the move. In the end it is checked as any guest is, by the plan.
//!
//! Neighbours: [`super::cross`] moves at moments of the host's choice; [`crate::cpustate`] judges.

use std::collections::BTreeMap;
use std::time::Instant;

use abi::points::Point;
use serde_json::json;

use super::chain::judge_hop;
use super::cross::lost;
use super::migrate::{conclude, judge_end};
use super::pair::crossing::Crossing;
use super::pair::point_lines::{PointLine, Reading, readings};
use super::pair::{Findings, PairError, Place, Side, Watch};
use super::passes::RunError;
use super::{CrossSpec, Interrupt};
use crate::control::types::RunState;
use crate::cpustate::unexplained_to_guest;
use crate::report::ledger::{HopEntry, MigrationEntry};
use crate::report::{Ledger, Progress};

/// Steps that every vCPU completes at the end.
const STEPS: u64 = 1;

/// Moves a guest at each of `points`, in the order in which it comes to them.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_points(
    spec: &CrossSpec,
    points: &[Point],
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Ledger, RunError> {
    let mut ledger = spec.blank_ledger();
    ledger.migration = Some(MigrationEntry::default());
    let watch = Watch::new(spec.from.timeout, interrupt);
    let result = drive(spec, points, watch, progress, &mut ledger);
    conclude(&mut ledger, interrupt, result)?;
    if let Some(entry) = &mut ledger.migration {
        super::chain::sum_up(entry);
    }
    Ok(ledger)
}

fn drive(
    spec: &CrossSpec,
    points: &[Point],
    watch: Watch<'_>,
    progress: &Progress,
    ledger: &mut Ledger,
) -> Result<(), PairError> {
    let place = Place::with_far(spec.to.via.as_deref()).map_err(PairError::Place)?;
    let side = |hop: usize| if hop.is_multiple_of(2) { &spec.from } else { &spec.to };
    let crossing = |hop: usize| Crossing { spec: side(hop), place: &place, watch };
    let name = |hop: usize| format!("{}{hop}", side(hop).base.machine.accelerator);
    let options = ["--track-dirty".to_owned(), "--paused".to_owned()];
    let mut source = crossing(0).first(&name(0), &options[..1])?;
    let mut printed: Vec<PointLine> = Vec::new();
    let mut said: BTreeMap<Point, Vec<String>> = BTreeMap::new();
    for (hop, &point) in (1..).zip(points) {
        let far = [hop - 1, hop].map(|hop| side(hop).via.is_some());
        let ends = place.ends_between(&spec.from.way, hop, far).map_err(PairError::Place)?;
        let mut destination = crossing(hop).incoming(&name(hop), &ends.destination, &options)?;
        stop_at(&mut source, &watch, point)?;
        let begun = Instant::now();
        crossing(hop - 1).begin(&mut source, &ends.source)?;
        let outcome = crossing(hop).wait(&mut source, Some(&mut destination))?;
        let seen = MigrationEntry::from_query(&outcome.info);
        let completed = judge_hop(&mut Findings::numbered(ledger, "hop", hop), &outcome, &seen);
        let mut entry = HopEntry {
            hop: hop as u64,
            from: name(hop - 1),
            to: name(hop),
            point: Some(point.name().to_owned()),
            status: seen.status,
            total_ns: begun.elapsed().as_nanos() as u64,
            downtime_host_ns: seen.downtime_host_ns,
            transferred: seen.transferred,
            syncs: seen.syncs,
            history: None,
            registers: None,
        };
        if !completed {
            ledger.migration.get_or_insert_default().hops.push(entry);
            return Ok(());
        }
        crossing(hop).wait_arrived(&mut destination)?;
        entry.registers = MigrationEntry::from_query(&destination.migration()?).registers;
        let lost = lost(&mut source, &mut destination, side(hop), entry.registers.as_ref())?;
        Findings::numbered(ledger, "hop", hop).check(
            "registers",
            lost.is_empty(),
            "registers that differ only as the table says",
            || lost.join("; "),
        );
        let lines = entry.registers.as_ref().map(|said| [&said.notes[..], &said.unheld[..]].concat());
        said.insert(point, lines.unwrap_or_default());
        ledger.migration.get_or_insert_default().hops.push(entry);
        destination.execute("cont", json!({}))?;
        let left = std::mem::replace(&mut source, destination).quit(&watch)?;
        judge_end(&mut Findings::numbered(ledger, "hop", hop), &name(hop - 1), &left);
        printed.extend(left.points);
        progress.advance(point.name().to_owned());
    }
    source.wait_steps(&watch, STEPS)?;
    let end = source.quit(&watch)?;
    judge_end(&mut Findings::of_run(ledger), &name(points.len()), &end);
    if let Ok(of_side) = &end.ledger {
        ledger.region.clone_from(&of_side.region);
    }
    printed.extend(end.points);
    judge_readings(spec, points, &readings(printed), &said, ledger);
    Ok(())
}

/// Waits until the guest of `side` stands at `point`. Where it goes on behind its store it is stopped, and let go on, until it is found
/// waiting for an interrupt.
fn stop_at(side: &mut Side, watch: &Watch<'_>, point: Point) -> Result<(), PairError> {
    let what = format!("VM {} to come to the point {}", side.name(), point.name());
    watch.until(&what, || {
        let state = side.state()?;
        let Some(at) = state.point.filter(|at| at.name == point.name()) else { return Ok(None) };
        if !point.goes_on() {
            return Ok((state.status == RunState::Paused).then_some(()));
        }
        side.execute("stop", json!({}))?;
        let vcpus = side.execute("x-tidemark-vcpus", json!({}))?;
        if vcpus["waiting"][at.vcpu] == true {
            return Ok(Some(()));
        }
        side.execute("cont", json!({})).map(|_| None)
    })
}

/// Compares what the guest read before and after each point.
fn judge_readings(
    spec: &CrossSpec,
    points: &[Point],
    readings: &BTreeMap<Point, Reading>,
    said: &BTreeMap<Point, Vec<String>>,
    ledger: &mut Ledger,
) {
    let arch = spec.from.base.machine.tables.arch();
    for (hop, point) in (1..).zip(points) {
        let mut findings = Findings::numbered(ledger, "hop", hop);
        let reading = readings.get(point).cloned().unwrap_or_default();
        let is_whole = reading.passed && !reading.before.is_empty() && reading.before.len() == reading.after.len();
        findings.check(
            "point-told",
            is_whole,
            "a guest that prints its registers before and after and goes on",
            || {
                let (before, after) = (reading.before.len(), reading.after.len());
                let end = if reading.passed { "went on" } else { "was not heard of again" };
                format!("{}: {before} registers before, {after} after, and it {end}", point.name())
            },
        );
        let lines = said.get(point).map_or(&[][..], Vec::as_slice);
        let found = unexplained_to_guest(&reading.before, &reading.after, arch, lines);
        findings.check(
            "point-registers",
            found.is_empty(),
            "registers that differ for the guest only as the table says",
            || format!("{}: {}", point.name(), found.join("; ")),
        );
    }
}
