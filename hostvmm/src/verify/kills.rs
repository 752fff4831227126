//! The scenario `cancel --kills`: a side is killed, stopped, cut off or fails at a boundary between phases, and exactly one side
//! has the guest, whole, when the dust has settled.
//!
//! ```text
//!                 before the commit              from the commit on
//!  source         its guest ends with it         the destination has it
//!  destination    the source runs on             the source asks; runs on if the destination is gone
//! ```
//!
//! A side that is stopped (SIGSTOP) goes on a while later, and must not run a guest that has moved on without it. A process
//! that is killed while the guest is its own takes the guest with it: then nobody may have it, not even an old copy.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::json;

use super::Interrupt;
use super::migrate::{conclude, judge_end};
use super::pair::crossing::{Crossing, PLANT, has_ended};
use super::pair::{Findings, MigrateSpec, PairError, Place, Side, Watch};
use super::passes::RunError;
use super::side_by_side::side_by_side;
use crate::migrate::{Action, Boundary, FaultPlan};
use crate::report::ledger::{KillEntry, MigrationEntry};
use crate::report::{Ledger, Progress};

/// The guest completes so many steps before a migration, and at the survivor.
const STEPS: u64 = 1;
/// How long a stopped side stands still: the other one notices, or does not, and both must do.
const STOPPED: Duration = Duration::from_millis(300);
/// How long it is watched that two sides do not both run the guest, once one of them does.
const ALONE: Duration = Duration::from_millis(100);

/// A fault to be planted, as `BOUNDARY=ACTION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill(FaultPlan);

impl Kill {
    /// Every action at every boundary where it can happen.
    pub fn all() -> Vec<Self> {
        let at = |boundary| Action::ALL.into_iter().map(move |action| Self(FaultPlan { boundary, action }));
        Boundary::ALL.into_iter().flat_map(at).filter(Self::can_happen).collect()
    }

    /// Every boundary once, the actions in turn.
    pub fn some() -> Vec<Self> {
        let some = Boundary::ALL.into_iter().enumerate();
        some.map(|(index, boundary)| Self(FaultPlan { boundary, action: Action::ALL[index % 3] })).collect()
    }

    /// Nothing can fail where all is done, and disks fill only where something is written.
    fn can_happen(&self) -> bool {
        let FaultPlan { boundary, action } = self.0;
        let over = matches!(boundary, Boundary::SourceFarewell | Boundary::DestinationTold);
        !(matches!(action, Action::Fail | Action::DiskFull) && (over || boundary.is_committed()))
    }

    fn side(&self) -> &'static str {
        if self.0.boundary.is_source() { "source" } else { "destination" }
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Kill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self)
    }
}

/// Makes every migration of `kills` meet its fault, a few side by side.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_kills(
    spec: &MigrateSpec,
    kills: &[Kill],
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Ledger, RunError> {
    let mut ledger = spec.blank_ledger();
    ledger.migration = Some(MigrationEntry { kills: kills.iter().map(blank).collect(), ..MigrationEntry::default() });
    let results = side_by_side(kills, interrupt, |index, kill| {
        let mut of_kill = spec.blank_ledger();
        let result = drive(spec, *kill, index + 1, Watch::new(spec.timeout, interrupt), &mut of_kill);
        progress.advance(kill.to_string());
        (result, of_kill)
    });
    for (index, (result, of_kill)) in results {
        of_kill.mismatches.into_iter().for_each(|mismatch| ledger.fail(mismatch));
        match result {
            Ok(entry) => ledger.migration.get_or_insert_default().kills[index] = entry,
            Err(error) if error.exit_code().is_some() || matches!(error, PairError::Interrupted) => {
                conclude(&mut ledger, interrupt, Err(error))?;
            }
            Err(error) => {
                Findings::numbered(&mut ledger, "kill", index + 1).fail("run", "an end", error.to_string());
            }
        }
    }
    if interrupt.is_raised() {
        conclude(&mut ledger, interrupt, Err(PairError::Interrupted))?;
    }
    Ok(ledger)
}

fn blank(kill: &Kill) -> KillEntry {
    KillEntry {
        side: kill.side().to_owned(),
        boundary: kill.0.boundary.to_string(),
        action: kill.0.action.to_string(),
        survivor: "unknown".to_owned(),
        ..KillEntry::default()
    }
}

/// One migration that meets its fault, with whoever has the guest then verified.
fn drive(
    spec: &MigrateSpec,
    kill: Kill,
    number: usize,
    watch: Watch<'_>,
    ledger: &mut Ledger,
) -> Result<KillEntry, PairError> {
    let place = Place::new().map_err(PairError::Place)?;
    let crossing = Crossing { spec, place: &place, watch };
    let options = |of_source: bool| {
        let mut options = vec!["--track-dirty".to_owned()];
        if kill.0.boundary.is_source() == of_source {
            options.extend([PLANT.to_owned(), kill.to_string()]);
        }
        options
    };
    let ends = place.ends(&spec.way, 1).map_err(PairError::Place)?;
    let mut source = crossing.first("A", &options(true))?;
    let mut destination = crossing.incoming("B", &ends.destination, &options(false))?;
    source.wait_steps(&watch, STEPS)?;
    // A source that is stopped or killed on its way cannot say that it has begun.
    match source.leave("migrate", json!({ "uri": ends.source })) {
        Ok(()) | Err(PairError::Ended { .. } | PairError::Command { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut sides = Sides { source: &mut source, destination: &mut destination, kill, both: false };
    let survivor = sides.settle(&watch)?;
    let both = sides.both;
    let mut entry = blank(&kill);
    let mut findings = Findings::numbered(ledger, "kill", number);
    findings.check("one-guest", !both, "one side that runs the guest", || "both".to_owned());
    entry.survivor = if both { "both" } else { survivor.name() }.to_owned();
    let end = match survivor {
        Survivor::Source => {
            source.wait_steps(&watch, STEPS)?;
            Some(("A", source.quit(&watch)?))
        }
        Survivor::Destination => {
            destination.wait_steps(&watch, STEPS)?;
            Some(("B", destination.quit(&watch)?))
        }
        Survivor::None => None,
    };
    entry.verified = !both;
    match end {
        Some((name, end)) => entry.verified &= judge_end(&mut findings, name, &end),
        None => {
            entry.verified &=
                findings.check("guest", may_be_lost(kill), "a side that has the guest", || "neither".to_owned());
        }
    }
    Ok(entry)
}

/// Whether the process that is killed has the guest alone.
fn may_be_lost(kill: Kill) -> bool {
    let boundary = kill.0.boundary;
    let owns = if boundary.is_source() { !boundary.is_committed() } else { boundary == Boundary::DestinationTold };
    kill.0.action == Action::Kill && owns
}

/// Who has the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Survivor {
    Source,
    Destination,
    None,
}

impl Survivor {
    const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::None => "none",
        }
    }
}

/// The two sides of a migration that meets a fault.
struct Sides<'a> {
    source: &'a mut Side,
    destination: &'a mut Side,
    kill: Kill,
    both: bool,
}

impl Sides<'_> {
    /// Waits until the fault has struck and both sides have come to an end with it.
    fn settle(&mut self, watch: &Watch<'_>) -> Result<Survivor, PairError> {
        let what = format!("the {} to reach {}", self.kill.side(), self.kill.0.boundary);
        match self.kill.0.action {
            Action::Stop => {
                watch.until(&what, || Ok(self.victim().is_stopped().then_some(())))?;
                watch.pass(STOPPED)?;
            }
            Action::Kill => {
                watch.until(&what, || Ok(self.victim().ended()))?;
            }
            Action::Cut | Action::Fail | Action::DiskFull => {}
        }
        let _awake = [self.source.keep_awake(), self.destination.keep_awake()];
        let what = format!("one side to have the guest after {}", self.kill);
        let survivor = watch.until(&what, || self.survivor())?;
        // An old copy that comes to life does so soon.
        let begun = std::time::Instant::now();
        while begun.elapsed() < ALONE {
            self.look()?;
            watch.pass(Duration::from_millis(10))?;
        }
        Ok(survivor)
    }

    fn victim(&mut self) -> &mut Side {
        if self.kill.0.boundary.is_source() { self.source } else { self.destination }
    }

    /// Whether the source runs the guest, and whether the destination does.
    fn look(&mut self) -> Result<[bool; 2], PairError> {
        // The destination first: once it runs the guest, the source may do so only if the destination's process has ended.
        let there = self.destination.runs()?;
        let here = self.source.runs()?;
        let there = there && self.destination.ended().is_none();
        self.both |= here && there;
        Ok([here, there])
    }

    /// Who has the guest; nobody knows while the migration goes on.
    fn survivor(&mut self) -> Result<Option<Survivor>, PairError> {
        let [here, there] = self.look()?;
        let gone = [self.source.ended().is_some(), self.destination.ended().is_some()];
        Ok(match (gone, here, there) {
            ([true, true], ..) => Some(Survivor::None),
            ([true, false], _, true) => Some(Survivor::Destination),
            // Nobody has ever connected there: it waits on, without a guest.
            ([true, false], ..) if self.kill.0.boundary == Boundary::SourceSetup => Some(Survivor::None),
            ([false, true], true, _) => Some(Survivor::Source),
            ([false, _], ..) => {
                let info = self.source.migration()?;
                let status = info["status"].as_str().unwrap_or("none");
                match (has_ended(status), gone[1]) {
                    (true, _) if here => Some(Survivor::Source),
                    (true, _) if there => Some(Survivor::Destination),
                    // It was told that the destination runs the guest, and then the destination ended.
                    (true, true) if status == "completed" => Some(Survivor::None),
                    _ => None,
                }
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_boundary_is_among_the_few() {
        let some = Kill::some();
        assert!(Boundary::ALL.into_iter().all(|boundary| some.iter().any(|kill| kill.0.boundary == boundary)));
        assert!(some.iter().all(Kill::can_happen));
        assert!(Kill::all().len() > 3 * Boundary::ALL.len());
    }

    #[test]
    fn a_guest_is_lost_only_with_the_process_that_has_it() {
        let lost: Vec<String> =
            Kill::all().into_iter().filter(|kill| may_be_lost(*kill)).map(|kill| kill.to_string()).collect();
        assert!(lost.contains(&"source-loaded=kill".to_owned()));
        assert!(lost.contains(&"destination-told=kill".to_owned()));
        assert!(lost.iter().all(|kill| kill.ends_with("=kill")));
        assert!(
            !lost.iter().any(|kill| kill.starts_with("source-committed") || kill.starts_with("destination-resumed"))
        );
    }
}
