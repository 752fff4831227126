//! The scenario `cancel`: a migration that is called off at any moment leaves a source as healthy as before.
//!
//! At moments after the start: one guest, called off again and again, each time looked at. At boundaries between phases: the side
//! that reaches the boundary stops there (SIGSTOP), the source is told to cancel, the side goes on; each with a guest of its
//! own. In the end a migration that nobody calls off succeeds, and the guest is verified where it is then.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Interrupt;
use super::migrate::{conclude, judge_end};
use super::pair::crossing::{Crossing, PLANT, has_ended};
use super::pair::{Blocks, Findings, MigrateSpec, PairError, Place, Side, Watch};
use super::passes::RunError;
use crate::control::types::RunState;
use crate::migrate::{Action, Boundary, FaultPlan};
use crate::report::ledger::{CancelEntry, HugePagesAround, MigrationEntry};
use crate::report::{Ledger, Progress};

/// The guest completes at least so many steps before and after a migration.
const STEPS: u64 = 2;
/// How long the guest's speed is measured.
const SPEED: Duration = Duration::from_millis(250);
/// The guest must be at least so fast again, by how fast it was.
const LEAST_RATIO: f64 = 0.5;
/// What else the host does slows a guest down for a while: it is measured up to so often.
const SPEED_TRIES: u32 = 80;
/// Bytes a second of a migration that is called off by time: slow enough that it is still under way.
const SLOW: u64 = 4 << 20;

/// When a migration is called off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long after its start.
    After(Duration),
    /// When one of its sides reaches this boundary.
    At(Boundary),
}

impl Moment {
    /// The moments that are tried unless others are asked for: a few times, and one boundary of each phase.
    pub const SOME: [Self; 9] = [
        Self::After(Duration::ZERO),
        Self::After(Duration::from_millis(20)),
        Self::After(Duration::from_millis(150)),
        Self::At(Boundary::SourceSetup),
        Self::At(Boundary::SourcePass0),
        Self::At(Boundary::SourceStopped),
        Self::At(Boundary::SourceLoaded),
        Self::At(Boundary::DestinationPages),
        Self::At(Boundary::DestinationVerified),
    ];

    /// Every boundary, and the times.
    pub fn all() -> Vec<Self> {
        let times = Self::SOME.into_iter().filter(|moment| matches!(moment, Self::After(_)));
        times.chain(Boundary::ALL.into_iter().map(Self::At)).collect()
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(time) => write!(f, "{}", time.as_millis()),
            Self::At(boundary) => write!(f, "{boundary}"),
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ms) = text.parse::<u32>() {
            return Ok(Self::After(Duration::from_millis(ms.into())));
        }
        let boundary = Boundary::ALL.into_iter().find(|boundary| boundary.name() == text);
        boundary.map(Self::At).ok_or_else(|| {
            format!("{text:?} is neither milliseconds nor a boundary: {}", Boundary::ALL.map(Boundary::name).join(", "))
        })
    }
}

/// Calls migrations off at `moments`.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_cancel(
    spec: &MigrateSpec,
    moments: &[Moment],
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Ledger, RunError> {
    let mut ledger = spec.blank_ledger();
    ledger.migration = Some(MigrationEntry::default());
    let watch = Watch::new(spec.timeout, interrupt);
    let (times, boundaries): (Vec<Moment>, Vec<Moment>) =
        moments.iter().partition(|moment| matches!(moment, Moment::After(_)));
    let mut groups: Vec<&[Moment]> = boundaries.chunks(1).collect();
    if !times.is_empty() {
        groups.insert(0, &times);
    }
    for group in groups {
        let result = drive(spec, group, watch, progress, &mut ledger);
        let failed = result.is_err();
        conclude(&mut ledger, interrupt, result)?;
        if failed {
            break;
        }
    }
    Ok(ledger)
}

/// One guest, whose migrations are called off at `moments`, and then is not.
fn drive(
    spec: &MigrateSpec,
    moments: &[Moment],
    watch: Watch<'_>,
    progress: &Progress,
    ledger: &mut Ledger,
) -> Result<(), PairError> {
    let place = Place::new().map_err(PairError::Place)?;
    let crossing = Crossing { spec, place: &place, watch };
    // Without --track-dirty: no log is to run unless a migration does.
    let fault = |of_source: bool| match moments {
        [Moment::At(boundary)] if boundary.is_source() == of_source => {
            let plan = FaultPlan { boundary: *boundary, action: Action::Stop };
            vec![PLANT.to_owned(), plan.to_string()]
        }
        _ => Vec::new(),
    };
    let mut source = crossing.first("A", &fault(true))?;
    source.wait_steps(&watch, STEPS)?;
    let blocks = Blocks::of(spec);
    let mut before = source.speed(&watch, SPEED)?;
    for (index, moment) in moments.iter().enumerate() {
        let ends = place.ends(&spec.way, index + 1).map_err(PairError::Place)?;
        let mut destination = crossing.incoming(&format!("B{index}"), &ends.destination, &fault(false))?;
        let huge =
            blocks.as_ref().map(|blocks| HugePagesAround { before: blocks.count(&source), ..Default::default() });
        if matches!(moment, Moment::After(_)) {
            source.execute("migrate-set-parameters", json!({ "max-bandwidth": SLOW }))?;
        }
        match moment {
            // A source that stops on its way cannot say that it has begun.
            Moment::At(boundary) if boundary.is_source() => {
                source.leave("migrate", json!({ "uri": ends.source }))?;
            }
            _ => crossing.begin(&mut source, &ends.source)?,
        }
        wait_moment(&watch, *moment, &mut source, &mut destination)?;
        let logging = blocks.as_ref().and_then(|blocks| blocks.count(&source));
        let called_off = call_off(&mut source, &mut destination)?;
        let outcome = crossing.wait(&mut source, Some(&mut destination))?;
        let mut cancel = CancelEntry {
            at: match moment {
                Moment::After(time) => format!("{} ms", time.as_millis()),
                Moment::At(boundary) => boundary.to_string(),
            },
            status: outcome.status().to_owned(),
            steps_per_s_before: before,
            huge_pages: huge.map(|huge| HugePagesAround { logging, ..huge }),
            cancel_ns: u64::try_from(called_off.elapsed().as_nanos()).unwrap_or(u64::MAX),
            ..CancelEntry::default()
        };
        let number = ledger.migration.as_ref().map_or(0, |entry| entry.cancels.len()) + 1;
        let mut findings = Findings::numbered(ledger, "cancel", number);
        findings.check("one-guest", !outcome.both_ran, "one side that runs the guest", || "both".to_owned());
        let errors = findings.check("status", outcome.status() != "failed", "cancelled", || {
            format!("failed: {}", outcome.info["error-desc"].as_str().unwrap_or_default())
        });
        if outcome.status() == "completed" {
            // Too late, or refused: from the commit on a guest cannot be called back. The other side has it.
            crossing.wait_running(&mut destination)?;
            let left = std::mem::replace(&mut source, destination).quit(&watch)?;
            cancel.verified = judge_end(&mut Findings::numbered(ledger, "cancel", number), "A", &left);
        } else {
            dismiss(&mut destination);
            let refused = destination.wait(&watch)?;
            let mut findings = Findings::numbered(ledger, "cancel", number);
            let without_guest =
                findings.check("destination", refused.status.code() == Some(1), "exit status 1", || {
                    format!("{}: {}", refused.status, refused.lines.join(" | "))
                });
            cancel.verified = errors && without_guest;
        }
        let mut findings = Findings::numbered(ledger, "cancel", number);
        cancel.verified &= check_health(&watch, &mut source, &mut cancel, &mut findings)?;
        if let (Some(blocks), "cancelled") = (&blocks, outcome.status()) {
            wait_rebuilt(&watch, blocks, &source, &mut cancel)?;
        }
        before = cancel.steps_per_s_after;
        progress.advance(cancel.at.clone());
        ledger.migration.get_or_insert_default().cancels.push(cancel);
    }
    source.execute("migrate-set-parameters", json!({ "max-bandwidth": full_speed(spec) }))?;
    succeed(&crossing, source, moments.len() + 1, ledger)
}

fn full_speed(spec: &MigrateSpec) -> u64 {
    spec.parameters.get("max-bandwidth").and_then(Value::as_u64).unwrap_or(0)
}

/// Waits for the moment.
fn wait_moment(watch: &Watch<'_>, moment: Moment, source: &mut Side, destination: &mut Side) -> Result<(), PairError> {
    match moment {
        Moment::After(time) => watch.pass(time),
        Moment::At(boundary) => {
            let what = format!("the migration to reach {boundary}");
            watch.until(&what, || {
                if source.is_stopped() || destination.is_stopped() {
                    return Ok(Some(()));
                }
                // It may have failed before it came so far; the checks behind tell.
                let info = if boundary.is_source() { None } else { Some(source.migration()?) };
                let ended = info.is_some_and(|info| info["status"].as_str().is_some_and(has_ended));
                Ok(ended.then_some(()))
            })
        }
    }
}

/// Cancels; returns when that was.
fn call_off(source: &mut Side, destination: &mut Side) -> Result<Instant, PairError> {
    let begun = Instant::now();
    if source.is_stopped() {
        source.leave("migrate_cancel", json!({}))?;
    } else {
        // Refused from the commit on, or because it is over: what it came to shows which.
        match source.execute("migrate_cancel", json!({})) {
            Ok(_) | Err(PairError::Command { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    source.go_on();
    destination.go_on();
    Ok(begun)
}

/// A source that was called off before it had connected has told nobody: who waits for it waits on until it is told.
fn dismiss(destination: &mut Side) {
    // One that has ended, or is about to, needs no telling.
    if destination.migration().is_ok_and(|info| info["status"] == "setup") {
        let _ = destination.execute("migrate_cancel", json!({}));
    }
}

/// The guest runs as before, and nothing logs what it writes.
fn check_health(
    watch: &Watch<'_>,
    source: &mut Side,
    cancel: &mut CancelEntry,
    findings: &mut Findings<'_>,
) -> Result<bool, PairError> {
    let state = source.state()?;
    cancel.logging_off = !state.logging;
    let runs = findings.check("runs", state.status == RunState::Running, "running", || state.status.name().to_owned());
    let off = findings.check("logging", cancel.logging_off, "no dirty log", || "it runs".to_owned());
    source.wait_steps(watch, STEPS)?;
    for _ in 0..SPEED_TRIES {
        cancel.steps_per_s_after = source.speed(watch, SPEED)?;
        if cancel.ratio() >= LEAST_RATIO {
            break;
        }
    }
    let ratio = cancel.ratio();
    let fast =
        findings.check("speed", ratio >= LEAST_RATIO, &format!("{LEAST_RATIO} of the speed before or more"), || {
            format!("{ratio:.2}")
        });
    Ok(runs && off && fast)
}

/// Waits until the guest's memory is mapped by as many blocks as before, which its writes bring about where no log runs.
fn wait_rebuilt(watch: &Watch<'_>, blocks: &Blocks, source: &Side, cancel: &mut CancelEntry) -> Result<(), PairError> {
    let Some(huge) = &mut cancel.huge_pages else { return Ok(()) };
    let Some(before) = huge.before else { return Ok(()) };
    let what = format!("the region to be mapped by {before} huge pages again");
    huge.after = Some(watch.until(&what, || Ok(blocks.count(source).filter(|after| *after >= before)))?);
    Ok(())
}

/// A migration that nobody calls off, and the guest's verification.
fn succeed(crossing: &Crossing<'_>, mut source: Side, number: usize, ledger: &mut Ledger) -> Result<(), PairError> {
    let ends = crossing.place.ends(&crossing.spec.way, number).map_err(PairError::Place)?;
    let mut last = crossing.incoming("Z", &ends.destination, &[])?;
    if source.migration()?["status"] == "cancelled" {
        // It may stop at its boundary once more, before it can say that it has begun.
        source.leave("migrate", json!({ "uri": ends.source }))?;
        let _awake = source.keep_awake();
        crossing.watch.until("the second migration to begin", || {
            Ok((source.migration()?["status"] != "cancelled").then_some(()))
        })?;
    } else {
        crossing.begin(&mut source, &ends.source)?;
    }
    let outcome = crossing.wait(&mut source, Some(&mut last))?;
    let mut findings = Findings::of_run(ledger);
    let completed = findings.check("second migration", outcome.status() == "completed", "completed", || {
        format!("{} {}", outcome.status(), outcome.info["error-desc"].as_str().unwrap_or_default())
    });
    if completed {
        crossing.wait_running(&mut last)?;
        last.wait_steps(&crossing.watch, STEPS)?;
        let end = last.quit(&crossing.watch)?;
        judge_end(&mut Findings::of_run(ledger), "Z", &end);
        if let Ok(of_side) = end.ledger {
            ledger.region = of_side.region;
        }
    }
    let end = source.quit(&crossing.watch)?;
    judge_end(&mut Findings::of_run(ledger), "A", &end);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_they_are_shown() {
        for moment in Moment::all() {
            assert_eq!(moment.to_string().parse(), Ok(moment));
        }
        assert!("soon".parse::<Moment>().unwrap_err().contains("source-setup"));
    }
}
