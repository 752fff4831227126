//! The scenario `colo`: a guest runs in two processes at once, and the outside world cannot tell when one of them is lost.
//!
//! ```text
//!  A (primary) ──checkpoints──▶ B (secondary)          each checkpoint: three digests equal, flushed = A's ∪ B's dirty pages
//!       └───────┐         ┌──────────┘                 at the end: one of them alone, its guest verified
//!               ▼         ▼
//!             the outlet, in this process              each record once, in order, the packets as the plan foretells
//! ```
//!
//! [`run_colo`] lets the pair make its checkpoints and then ends it as [`Failover`] says; `colo_kills` kills, stops or cuts off
//! one side at each step of a checkpoint.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};

use super::Interrupt;
use super::migrate::{conclude, judge_end};
use super::pair::world::World;
use super::pair::{Ended, Findings, MigrateSpec, PairError, Place, Side, Watch};
use super::passes::RunError;
use crate::colo::{Omission, PlantedOmission};
use crate::report::ledger::{CheckpointEntry, ColoEntry};
use crate::report::{Ledger, Progress};

/// The guest completes so many steps before it is given a secondary, and once it is alone again.
const STEPS: u64 = 2;
/// What a secondary may have resident beside its RAM and its cache.
const BESIDE_BYTES: u64 = 64 << 20;
/// How long it is waited for a side's words once its pair is over.
const WORDS: Duration = Duration::from_secs(5);
/// How often it is looked for them.
const LOOK: Duration = Duration::from_millis(20);
/// The option of `hostvmm run` that plants a fault in its pairs.
pub(super) const PLANT: &str = "--plant-colo-fault";

/// How a pair ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Failover {
    /// The secondary is told to leave.
    #[default]
    None,
    /// The primary is killed.
    Primary,
    /// The secondary is killed.
    Secondary,
}

impl fmt::Display for Failover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        })
    }
}

impl FromStr for Failover {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::None, Self::Primary, Self::Secondary];
        all.into_iter()
            .find(|it| it.to_string() == text)
            .ok_or_else(|| format!("{text:?} cannot be lost; write primary, secondary or none"))
    }
}

/// A pair, as asked for.
#[derive(Clone, Debug)]
pub struct ColoSpec {
    /// Machine, guest, workload, way, parameters, patience.
    pub pair: MigrateSpec,
    /// Checkpoints before the pair ends.
    pub checkpoints: u64,
    /// How it ends.
    pub failover: Failover,
    /// A lie about dirty pages.
    pub omission: Option<PlantedOmission>,
}

/// Where a pair is, as one of its sides shows it, with the checkpoints after number `after`.
pub(super) fn shown(side: &mut Side, after: Option<u64>) -> Result<ColoEntry, PairError> {
    let arguments = after.map_or(json!({}), |after| json!({ "after": after }));
    let value = side.execute("x-tidemark-colo", arguments)?;
    serde_json::from_value(value).map_err(|error| PairError::Place(std::io::Error::other(error)))
}

/// A pair of VMs, and the outlet that both know.
pub(super) struct Pair<'a> {
    pub(super) watch: Watch<'a>,
    pub(super) world: World,
    pub(super) primary: Side,
    pub(super) secondary: Side,
    /// Steps a second before the pair, where that was measured.
    alone: Option<f64>,
}

impl<'a> Pair<'a> {
    /// Starts both, lets the guest run at the primary, and gives it the secondary.
    pub(super) fn begin(
        spec: &MigrateSpec,
        watch: Watch<'a>,
        place: &Place,
        extra: [&[String]; 2],
    ) -> Result<Self, PairError> {
        let world = World::start(place)?;
        let ends = place.ends(&spec.way, 1).map_err(PairError::Place)?;
        let options = |side: &str, extra: &[String]| {
            let mut options = spec.run_options();
            options.extend(["--colo".to_owned(), side.to_owned(), "--colo-outlet".to_owned(), world.address()]);
            options.extend_from_slice(extra);
            options
        };
        let mut primary = Side::start(place, "A", &options("primary", extra[0]))?;
        let mut waits = options("secondary", extra[1]);
        waits.extend(["--incoming".to_owned(), "defer".to_owned()]);
        let mut secondary = Side::start(place, "B", &waits)?;
        for side in [&mut primary, &mut secondary] {
            spec.tune(side)?;
        }
        secondary.execute("migrate-incoming", json!({ "uri": ends.destination }))?;
        primary.wait_steps(&watch, STEPS)?;
        let alone = if spec.settle.is_zero() { None } else { Some(primary.speed(&watch, spec.settle)?) };
        let on = json!({ "capabilities": [{ "capability": "x-colo", "state": true }] });
        primary.execute("migrate-set-capabilities", on)?;
        primary.execute("migrate", json!({ "uri": ends.source }))?;
        Ok(Self { watch, world, primary, secondary, alone })
    }

    /// Waits until `side` is the only one, and its guest runs.
    pub(super) fn wait_alone(watch: &Watch<'_>, side: &mut Side) -> Result<(), PairError> {
        let what = format!("VM {} to go on alone", side.name());
        watch.until(&what, || {
            let alone = shown(side, None)?.phase == "alone";
            Ok((alone && side.runs()?).then_some(()))
        })
    }
}

/// Silence after which a side is taken for lost, in ms, unless the command line says otherwise: no side is lost here but by an
/// end that its connection tells of, and a busy host is none.
const PATIENCE_MS: u64 = 30_000;

/// Runs a pair.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_colo(spec: &ColoSpec, interrupt: &Interrupt, progress: &Progress) -> Result<Ledger, RunError> {
    let mut spec = spec.clone();
    spec.pair.parameters.entry("x-colo-heartbeat-limit").or_insert_with(|| json!(PATIENCE_MS));
    let spec = &spec;
    let mut ledger = spec.pair.blank_ledger();
    let result = drive(spec, Watch::new(spec.pair.timeout, interrupt), progress, &mut ledger);
    conclude(&mut ledger, interrupt, result)?;
    Ok(ledger)
}

fn drive(spec: &ColoSpec, watch: Watch<'_>, progress: &Progress, ledger: &mut Ledger) -> Result<(), PairError> {
    let place = Place::new().map_err(PairError::Place)?;
    let plants = plants(spec.omission);
    let mut pair = Pair::begin(&spec.pair, watch, &place, [&plants[0], &plants[1]])?;
    // A page that the secondary alone has written is sure to be there where the primary's guest stands still meanwhile.
    let halts = spec.omission.is_some_and(|planted| planted.omission == Omission::Secondary);
    let rounds = match wait_checkpoints(&mut pair, spec.checkpoints, halts, progress)? {
        Ok(rounds) => rounds,
        Err(error) => {
            Findings::of_run(ledger).fail("checkpoint", format!("{} exact checkpoints", spec.checkpoints), error);
            return Ok(());
        }
    };
    let paired = match pair.alone {
        Some(_) => Some(pair.primary.speed(&watch, spec.pair.settle)?),
        None => None,
    };
    let peak = pair.secondary.peak_bytes();
    let Pair { world, primary, secondary, alone, .. } = pair;
    let (mut survivor, name, other) = match spec.failover {
        Failover::None => {
            let left = secondary.quit(&watch)?;
            judge_end(&mut Findings::of_run(ledger), "B", &left);
            (primary, "A", None)
        }
        Failover::Secondary => {
            drop(secondary);
            (primary, "A", None)
        }
        Failover::Primary => (secondary, "B", Some(primary)),
    };
    // Killed, as every side is that is dropped.
    drop(other);
    Pair::wait_alone(&watch, &mut survivor)?;
    survivor.wait_steps(&watch, STEPS)?;
    let end = survivor.quit(&watch)?;
    judge_end(&mut Findings::of_run(ledger), name, &end);
    let mut entry = entry_of(end);
    if entry.rounds.is_empty() {
        // The secondary knows but of its own part; these are the primary's.
        (entry.rounds, entry.checkpoints) = (rounds, entry.checkpoints.max(spec.checkpoints));
        entry.count_causes();
    }
    let digested = spec.pair.parameters.get("x-colo-digest").and_then(Value::as_str) != Some("deferred");
    judge_rounds(&mut Findings::of_run(ledger), spec.checkpoints, digested, &entry);
    let seen = world.judge(&spec.pair.base, &mut Findings::of_run(ledger))?;
    entry.output = Some(seen);
    entry.secondary_peak_bytes = peak;
    (entry.steps_per_s_alone, entry.steps_per_s_paired) = (alone.map(|it| it as u64), paired.map(|it| it as u64));
    let machine = &spec.pair.base.machine;
    let most = 2 * (machine.ram_bytes + machine.region_bytes) + BESIDE_BYTES;
    Findings::of_run(ledger).check(
        "memory",
        peak.is_none_or(|peak| peak <= most),
        &format!("at most {most} bytes"),
        || format!("{} bytes resident at the secondary", peak.unwrap_or_default()),
    );
    ledger.colo = Some(entry);
    Ok(())
}

/// Options that plant an omission at the side that tells the lie.
fn plants(omission: Option<PlantedOmission>) -> [Vec<String>; 2] {
    let Some(planted) = omission else { return Default::default() };
    let words = vec![PLANT.to_owned(), planted.to_string()];
    match planted.omission {
        Omission::Primary => [words, Vec::new()],
        Omission::Secondary | Omission::Extra | Omission::Flush => [Vec::new(), words],
        Omission::Both => [words.clone(), words],
    }
}

/// Phases of a pair that goes on.
const PAIRED: [&str; 4] = ["setup", "syncing", "running", "checkpoint"];

/// Waits for so many checkpoints, and returns them; or what ended the pair before. With `halts` the primary's guest is stopped
/// and let run in turns.
fn wait_checkpoints(
    pair: &mut Pair<'_>,
    checkpoints: u64,
    halts: bool,
    progress: &Progress,
) -> Result<Result<Vec<CheckpointEntry>, String>, PairError> {
    let what = format!("{checkpoints} checkpoints");
    let mut rounds: Vec<CheckpointEntry> = Vec::new();
    let Pair { watch, primary, secondary, .. } = pair;
    // A pair that makes checkpoints is not stuck, however many they are.
    while (rounds.len() as u64) < checkpoints {
        let seen = rounds.len() as u64;
        let mut here = watch.until(&what, || {
            let here = shown(primary, Some(seen))?;
            let goes_on = PAIRED.contains(&here.phase.as_str()) && here.exact;
            Ok((!goes_on || !here.rounds.is_empty()).then_some(here))
        })?;
        if here.rounds.is_empty() {
            return why_over(*watch, primary, secondary, seen).map(Err);
        }
        if halts && seen > 0 {
            primary.execute(if seen.is_multiple_of(2) { "stop" } else { "cont" }, json!({}))?;
        }
        here.rounds.iter().for_each(|_| progress.advance(String::new()));
        rounds.append(&mut here.rounds);
    }
    Ok(Ok(rounds))
}

/// What a pair that has made `made` checkpoints says of its end: whichever side has found something, and has the words for it.
fn why_over(watch: Watch<'_>, primary: &mut Side, secondary: &mut Side, made: u64) -> Result<String, PairError> {
    let mut phase = String::new();
    let mut found = None;
    let begun = std::time::Instant::now();
    while found.is_none() && begun.elapsed() < WORDS {
        for side in [&mut *primary, &mut *secondary] {
            // A side that has ended has said so.
            let Ok(entry) = shown(side, None) else { continue };
            phase = entry.phase;
            let error = entry.error.map(|error| (error.contains("checkpoint "), error));
            // A lost connection is how one side notices what the other has found.
            found = found.max(error);
        }
        watch.pass(LOOK)?;
    }
    let why = found.map_or("without a word".to_owned(), |(_, error)| error);
    Ok(format!("the pair ended after {made}, {phase}: {why}"))
}

/// What a side that has ended knows of its pair.
pub(super) fn entry_of(end: Ended) -> ColoEntry {
    end.ledger.ok().and_then(|ledger| ledger.colo).unwrap_or_default()
}

/// Every checkpoint was exact.
fn judge_rounds(findings: &mut Findings<'_>, checkpoints: u64, digested: bool, entry: &ColoEntry) {
    findings.check("exact", entry.exact, "a pair that found nothing wrong", || entry.error.clone().unwrap_or_default());
    let enough = entry.rounds.len() as u64 >= checkpoints;
    findings.check("checkpoints", enough, &format!("{checkpoints} checkpoints"), || entry.rounds.len().to_string());
    for (round, expected) in entry.rounds.iter().zip(1..) {
        let name = format!("checkpoint {}", round.n);
        findings.check(&name, round.n == expected, &format!("checkpoint {expected}"), || round.n.to_string());
        let union = round.union();
        findings.check(&name, round.flushed == union, &format!("{union} pages flushed"), || round.flushed.to_string());
        findings.check(&name, !digested || round.is_equal(), "three equal digests", || {
            format!("{:?}, {:?}, {:?}", round.digest_primary, round.digest_secondary, round.digest_cache)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_omission_is_planted_where_it_can_be_told() {
        for (text, sides) in [
            ("omit-primary@2", [true, false]),
            ("omit-secondary@2", [false, true]),
            ("omit-both@2", [true, true]),
            ("flush-extra@2", [false, true]),
            ("omit-flush@2", [false, true]),
        ] {
            let plants = plants(Some(text.parse().unwrap()));
            assert_eq!(plants.map(|words| !words.is_empty()), sides, "{text}");
        }
    }

    fn judged(rounds: Vec<CheckpointEntry>) -> usize {
        let mut ledger = crate::report::sample_ledger();
        let entry = ColoEntry { exact: true, rounds, ..ColoEntry::default() };
        judge_rounds(&mut Findings::of_run(&mut ledger), 2, true, &entry);
        ledger.mismatches.len()
    }

    #[test]
    fn a_checkpoint_that_flushes_one_page_more_or_less_or_is_not_equal_is_found() {
        let digests = vec!["0x1".to_owned(), "0x2".to_owned()];
        let good = |n| CheckpointEntry {
            n,
            primary_dirty: 3,
            secondary_dirty: 2,
            both_dirty: 1,
            flushed: 4,
            digest_primary: digests.clone(),
            digest_secondary: digests.clone(),
            digest_cache: digests.clone(),
            ..CheckpointEntry::default()
        };
        assert_eq!(judged(vec![good(1), good(2)]), 0);
        assert_eq!(judged(vec![good(1)]), 1, "too few");
        assert_eq!(judged(vec![good(1), good(3)]), 1, "one is missing");
        assert_eq!(judged(vec![good(1), CheckpointEntry { flushed: 5, ..good(2) }]), 1);
        assert_eq!(judged(vec![good(1), CheckpointEntry { flushed: 3, ..good(2) }]), 1);
        let differs = vec!["0x1".to_owned(), "0x3".to_owned()];
        assert_eq!(judged(vec![good(1), CheckpointEntry { digest_cache: differs, ..good(2) }]), 1);
        assert_eq!(judged(vec![good(1), CheckpointEntry { digest_primary: Vec::new(), ..good(2) }]), 1);
    }
}
