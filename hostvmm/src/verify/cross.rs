//! The scenario `cross`: a guest moves between accelerators, there and back.
//!
//! ```text
//!  from ──▶ from ──▶ to ──▶ from ──▶ to …     each a new process; the first hop changes nothing and is what the others' times stand beside
//!             └ arrives stopped: its vCPUs' registers are held against those that stayed behind, and what was said of them
//! ```
//!
//! A guest is moved at a moment of the host's choice, drawn from the seed. Every register of the vCPUs is read on both sides while the guest
//! stands still: what differs must be what the table of rules allows, and be named. The guest itself is checked as in `chain`: its
//! workload, its memory and its dirty history by the plan, at the end.
//!
//! Neighbours: [`super::chain`], which stays on one accelerator; [`super::skews`], where the lists of registers are skewed on purpose.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use workload::SplitMix64;

use super::Interrupt;
use super::chain::judge_hop;
use super::migrate::{checksum, conclude, judge_end};
use super::pair::crossing::Crossing;
use super::pair::{Findings, GuestLines, MigrateSpec, PairError, Place, Side, Watch};
use super::passes::RunError;
use crate::cpustate;
use crate::memory::SlotId;
use crate::report::ledger::{HopEntry, MigrationEntry, RegistersEntry};
use crate::report::{Ledger, Progress};

/// Steps that every vCPU completes on each accelerator before it is moved, at least.
const STEPS: u64 = 1;

/// A guest between two accelerators, as asked for.
#[derive(Clone, Debug)]
pub struct CrossSpec {
    /// Machine and guest where it starts.
    pub from: MigrateSpec,
    /// The same on the other accelerator.
    pub to: MigrateSpec,
    /// Moves between the two.
    pub moves: u64,
}

impl CrossSpec {
    /// The ledger of a run that has not begun.
    pub(super) fn blank_ledger(&self) -> Ledger {
        let mut ledger = self.from.blank_ledger();
        // --from and --to say what --accel and --dirty-log would.
        if let Some((command, options)) = ledger.reproduce.split_once("--accel ")
            && let Some((_, others)) = options.split_once("--dirty-log ").and_then(|(_, log)| log.split_once(' '))
        {
            ledger.reproduce = format!("{command}{others}");
        }
        ledger
    }

    /// Where the guest is after `hop` hops.
    fn place(&self, hop: u64) -> &MigrateSpec {
        if hop < 2 || hop % 2 == 1 { &self.from } else { &self.to }
    }
}

/// Moves a guest between two accelerators.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_cross(spec: &CrossSpec, interrupt: &Interrupt, progress: &Progress) -> Result<Ledger, RunError> {
    let mut ledger = spec.blank_ledger();
    ledger.migration = Some(MigrationEntry::default());
    let watch = Watch::new(spec.from.timeout, interrupt);
    let result = drive(spec, watch, progress, &mut ledger);
    conclude(&mut ledger, interrupt, result)?;
    if let Some(entry) = &mut ledger.migration {
        super::chain::sum_up(entry);
    }
    Ok(ledger)
}

/// What the vCPUs of a guest that stands still hold: KVM's ids and values, by vCPU.
pub(super) fn registers(side: &mut Side) -> Result<Vec<Vec<(u64, u128)>>, PairError> {
    let reply = side.execute("x-tidemark-registers", json!({}))?;
    let register = |pair: &Value| {
        let id = u64::from_str_radix(pair[0].as_str()?, 16).ok()?;
        Some((id, u128::from_str_radix(pair[1].as_str()?, 16).ok()?))
    };
    let vcpus = reply["vcpus"].as_array().into_iter().flatten();
    Ok(vcpus.map(|vcpu| vcpu.as_array().into_iter().flatten().filter_map(register).collect()).collect())
}

/// What the registers of `source`, whose guest has moved away, and `destination`, where it stands still, differ in without a word.
pub(super) fn lost(
    source: &mut Side,
    destination: &mut Side,
    spec: &MigrateSpec,
    said: Option<&RegistersEntry>,
) -> Result<Vec<String>, PairError> {
    let (before, after) = (registers(source)?, registers(destination)?);
    let arch = spec.base.machine.tables.arch();
    let lines: Vec<String> = said.map(|said| [&said.notes[..], &said.unheld[..]].concat()).unwrap_or_default();
    if before.len() != after.len() || before.iter().any(Vec::is_empty) {
        return Ok(vec![format!("{} vCPUs before, {} after", before.len(), after.len())]);
    }
    let of_vcpu = |(vcpu, (before, after)): (usize, (&Vec<_>, &Vec<_>))| {
        let lost = cpustate::unexplained(before, after, arch, &lines);
        lost.into_iter().map(|line| format!("vCPU {vcpu}: {line}")).collect::<Vec<_>>()
    };
    Ok(before.iter().zip(&after).enumerate().flat_map(of_vcpu).collect())
}

fn drive(spec: &CrossSpec, watch: Watch<'_>, progress: &Progress, ledger: &mut Ledger) -> Result<(), PairError> {
    let place = Place::with_far(spec.to.via.as_deref()).map_err(PairError::Place)?;
    let crossing = |hop: u64| Crossing { spec: spec.place(hop), place: &place, watch };
    let name = |hop: u64| format!("{}{hop}", spec.place(hop).base.machine.accelerator);
    let is_kernel = spec.from.base.machine.kernel.is_some();
    // A history is judged by the plan, which a kernel does not follow; it says itself how its memory is.
    let history: &[String] = if is_kernel { &[] } else { &["--track-dirty".to_owned()] };
    let options = [history, &["--paused".to_owned()]].concat();
    let mut said = Vec::new();
    let mut moments = SplitMix64::new(spec.from.base.machine.seed);
    let mut source = crossing(0).first(&name(0), history)?;
    for hop in 1..=spec.moves + 1 {
        let far = [hop - 1, hop].map(|hop| spec.place(hop).via.is_some());
        let ends = place.ends_between(&spec.from.way, hop as usize, far).map_err(PairError::Place)?;
        let mut destination = crossing(hop).incoming(&name(hop), &ends.destination, &options)?;
        source.wait_steps(&watch, STEPS)?;
        watch.pass(moment(&mut moments, spec.from.settle))?;
        let begun = Instant::now();
        crossing(hop - 1).begin(&mut source, &ends.source)?;
        let outcome = crossing(hop).wait(&mut source, Some(&mut destination))?;
        let seen = MigrationEntry::from_query(&outcome.info);
        let completed = judge_hop(&mut Findings::numbered(ledger, "hop", hop as usize), &outcome, &seen);
        let mut entry = HopEntry {
            hop,
            from: name(hop - 1),
            to: name(hop),
            point: None,
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
        let lost = lost(&mut source, &mut destination, spec.place(hop), entry.registers.as_ref())?;
        let mut findings = Findings::numbered(ledger, "hop", hop as usize);
        findings
            .check("registers", lost.is_empty(), "registers that differ only as the table says", || lost.join("; "));
        let is_told = entry.registers.is_some()
            == (spec.place(hop).base.machine.accelerator != spec.place(hop - 1).base.machine.accelerator);
        findings.check("translated", is_told, "a translation between accelerators and none otherwise", || {
            format!("{:?}", entry.registers)
        });
        if is_kernel {
            compare_ram(&mut source, &mut destination, hop, ledger)?;
        }
        destination.execute("cont", json!({}))?;
        crossing(hop).wait_running(&mut destination)?;
        entry.history = destination.state()?.history.and_then(|history| history.get("region").copied());
        ledger.migration.get_or_insert_default().hops.push(entry);
        let left = std::mem::replace(&mut source, destination).quit(&watch)?;
        judge_end(&mut Findings::numbered(ledger, "hop", hop as usize), &name(hop - 1), &left);
        said.push((name(hop - 1), left.guest));
        progress.advance(format!("move {hop}"));
    }
    source.wait_steps(&watch, STEPS)?;
    let end = source.quit(&watch)?;
    judge_end(&mut Findings::of_run(ledger), &name(spec.moves + 1), &end);
    said.push((name(spec.moves + 1), end.guest));
    if is_kernel {
        let said = said.iter().map(|(name, lines)| (name.as_str(), lines));
        GuestLines::judge(&mut Findings::of_run(ledger), said);
    } else if let Ok(of_side) = end.ledger {
        ledger.region = of_side.region;
    }
    Ok(())
}

/// Compares `sum -r` of all RAM of a guest that stands still, where it came from and where it is.
fn compare_ram(source: &mut Side, destination: &mut Side, hop: u64, ledger: &mut Ledger) -> Result<(), PairError> {
    let [here, there] = [checksum(source, SlotId::Ram)?, checksum(destination, SlotId::Ram)?];
    (ledger.region.sum_r_source, ledger.region.sum_r_dest) = (here, there);
    let mut findings = Findings::numbered(ledger, "hop", hop as usize);
    let equal = here.is_some() && here == there;
    findings.check("sum -r", equal, "equal checksums of RAM", || format!("{here:?} and {there:?}"));
    Ok(())
}

/// A moment before `most`.
fn moment(random: &mut SplitMix64, most: Duration) -> Duration {
    let most = most.as_micros() as u64;
    Duration::from_micros(random.next_u64() % most.max(1))
}
