//! The scenario `colo --kills`: a side is killed, stopped or cut off at a step of a checkpoint, and exactly one side goes on,
//! its guest whole, and the outside world has seen every output once.
//!
//! Who it is is not foretold: after a cut both sides are alive and either may win the claim at the outlet. What must not
//! be is two that run, or none while one is alive and reaches the outlet. A side that is stopped (SIGSTOP) goes on later, and
//! must find out that it has been fenced before its guest executes anything that is heard.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::json;

use super::Interrupt;
use super::colo::{ColoSpec, PLANT, Pair, shown};
use super::migrate::{conclude, judge_end};
use super::pair::{Findings, PairError, Place, Side, Watch};
use super::passes::RunError;
use super::side_by_side::side_by_side;
use crate::colo::{ColoBoundary, ColoFault};
use crate::migrate::Action;
use crate::report::ledger::{ColoEntry, KillEntry};
use crate::report::{Ledger, Progress};

/// The guest completes so many steps at the survivor.
const STEPS: u64 = 1;
/// In which checkpoint: two were committed before.
const CHECKPOINT: u64 = 3;
/// How long a stopped side stands still beyond the other's patience.
const STOPPED: Duration = Duration::from_millis(300);
/// Silence after which a side is taken for lost, in ms, unless the command line says otherwise.
const PATIENCE_MS: u64 = 1500;

/// A fault to be planted, as `BOUNDARY=ACTION` or `BOUNDARY=ACTION@CHECKPOINT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColoKill(ColoFault);

impl ColoKill {
    const ACTIONS: [Action; 3] = [Action::Kill, Action::Stop, Action::Cut];

    /// Every action at every boundary.
    pub fn all() -> Vec<Self> {
        let at = |boundary| Self::ACTIONS.map(|action| Self(ColoFault { boundary, action, checkpoint: CHECKPOINT }));
        ColoBoundary::ALL.into_iter().flat_map(at).collect()
    }

    /// Every boundary once, the actions in turn.
    pub fn some() -> Vec<Self> {
        let each = ColoBoundary::ALL.into_iter().zip(Self::ACTIONS.into_iter().cycle());
        each.map(|(boundary, action)| Self(ColoFault { boundary, action, checkpoint: CHECKPOINT })).collect()
    }

    fn side(&self) -> &'static str {
        if self.0.boundary.is_primary() { "primary" } else { "secondary" }
    }
}

impl fmt::Display for ColoKill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.0.boundary, self.0.action)
    }
}

impl FromStr for ColoKill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = if text.contains('@') { text.to_owned() } else { format!("{text}@{CHECKPOINT}") };
        let fault: ColoFault = whole.parse()?;
        if !Self::ACTIONS.contains(&fault.action) {
            return Err(format!("{text:?}: a side of a pair is killed, stopped or cut off: kill, stop, cut"));
        }
        Ok(Self(fault))
    }
}

/// Makes a pair meet each of `kills`, a few side by side.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_colo_kills(
    spec: &ColoSpec,
    kills: &[ColoKill],
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Ledger, RunError> {
    let mut spec = spec.clone();
    spec.pair.parameters.entry("x-colo-heartbeat-limit").or_insert_with(|| json!(PATIENCE_MS));
    let spec = &spec;
    let mut ledger = spec.pair.blank_ledger();
    ledger.colo = Some(ColoEntry { kills: kills.iter().map(blank).collect(), ..ColoEntry::default() });
    let results = side_by_side(kills, interrupt, |index, kill| {
        let mut of_kill = spec.pair.blank_ledger();
        let result = drive(spec, *kill, index + 1, Watch::new(spec.pair.timeout, interrupt), &mut of_kill);
        progress.advance(kill.to_string());
        (result, of_kill)
    });
    let made = results.len();
    for (index, (result, of_kill)) in results {
        of_kill.mismatches.into_iter().for_each(|mismatch| ledger.fail(mismatch));
        match result {
            Ok(entry) => {
                if let Some(colo) = &mut ledger.colo {
                    colo.kills[index] = entry;
                }
            }
            Err(error) if matches!(error.exit_code(), Some(2 | 4)) => return Err(error.into()),
            Err(error) => {
                let mut findings = Findings::numbered(&mut ledger, "kill", index + 1);
                findings.fail("survivor", "one side that goes on", error.to_string());
            }
        }
    }
    if made < kills.len() {
        conclude(&mut ledger, interrupt, Err(PairError::Interrupted))?;
    }
    Ok(ledger)
}

fn blank(kill: &ColoKill) -> KillEntry {
    KillEntry {
        side: kill.side().to_owned(),
        boundary: kill.0.boundary.to_string(),
        action: kill.0.action.to_string(),
        ..KillEntry::default()
    }
}

fn drive(
    spec: &ColoSpec,
    kill: ColoKill,
    number: usize,
    watch: Watch<'_>,
    ledger: &mut Ledger,
) -> Result<KillEntry, PairError> {
    let place = Place::new().map_err(PairError::Place)?;
    let words = vec![PLANT.to_owned(), kill.0.to_string()];
    let none = Vec::new();
    let extra: [&[String]; 2] = if kill.0.boundary.is_primary() { [&words, &none] } else { [&none, &words] };
    let pair = Pair::begin(&spec.pair, watch, &place, extra)?;
    let Pair { world, primary, secondary, .. } = pair;
    let (hit, other) = if kill.0.boundary.is_primary() { (primary, secondary) } else { (secondary, primary) };
    let mut sides = [Some(hit), Some(other)];
    if kill.0.action == Action::Stop {
        let side = sides[0].as_ref();
        watch.until("the stop that was planted", || Ok(side.is_some_and(Side::is_stopped).then_some(())))?;
        let patience = spec.pair.parameters.get("x-colo-heartbeat-limit").and_then(serde_json::Value::as_u64);
        watch.pass(Duration::from_millis(patience.unwrap_or(0)) + STOPPED)?;
        if let Some(side) = side {
            side.go_on();
        }
    }
    let mut findings = Findings::numbered(ledger, "kill", number);
    let what = format!("one side to go on alone after {kill}");
    let mut entry = blank(&kill);
    let survivor = match watch.until(&what, || alone(&mut sides)) {
        Err(PairError::TimedOut { .. }) => {
            findings.fail("survivor", "one side that goes on", describe(&mut sides));
            "neither".clone_into(&mut entry.survivor);
            return Ok(entry);
        }
        survivor => survivor?,
    };
    let names = if kill.0.boundary.is_primary() { ["primary", "secondary"] } else { ["secondary", "primary"] };
    names[survivor].clone_into(&mut entry.survivor);
    let [first, second] = sides;
    let (stays, goes) = if survivor == 0 { (first, second) } else { (second, first) };
    let mut stays = stays.ok_or(PairError::Interrupted)?;
    stays.wait_steps(&watch, STEPS)?;
    if let Some(goes) = goes
        && !ends_fenced(goes, &watch)?
    {
        findings.fail("one guest", "the other side fenced, or ended", "it goes on as well");
        "both".clone_into(&mut entry.survivor);
    }
    let name = stays.name().to_owned();
    let end = stays.quit(&watch)?;
    entry.verified = judge_end(&mut findings, &name, &end);
    world.judge(&spec.pair.base, &mut findings)?;
    Ok(entry)
}

/// Which side is alone and runs, if one is; a side whose process has ended is taken out.
fn alone(sides: &mut [Option<Side>; 2]) -> Result<Option<usize>, PairError> {
    for (index, slot) in sides.iter_mut().enumerate() {
        let Some(side) = slot else { continue };
        match shown(side, None) {
            Ok(info) if info.phase == "alone" && side.runs()? => return Ok(Some(index)),
            Ok(_) => {}
            Err(_) if side.ended().is_some() => *slot = None,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether a side whose pair went on without it comes to stand still for good. Until it has noticed, its guest may execute what
/// nobody hears; going on alone is what it must not.
fn ends_fenced(mut side: Side, watch: &Watch<'_>) -> Result<bool, PairError> {
    let what = format!("VM {} to notice that the other one goes on", side.name());
    let fenced = watch.until(&what, || match shown(&mut side, None) {
        Ok(info) if info.phase == "alone" => Ok(Some(false)),
        Ok(info) => {
            let stands = ["fenced", "discarded", "claiming"].contains(&info.phase.as_str()) && !side.runs()?;
            Ok(stands.then_some(true))
        }
        Err(_) if side.ended().is_some() => Ok(Some(true)),
        Err(error) => Err(error),
    });
    match fenced {
        Err(PairError::TimedOut { .. }) => Ok(false),
        fenced => fenced,
    }
}

/// Where both sides are.
fn describe(sides: &mut [Option<Side>; 2]) -> String {
    let state = |side: &mut Side| match shown(side, None) {
        Ok(info) => format!(
            "VM {} is {}{}; it said: {}",
            side.name(),
            info.phase,
            info.error.map_or(String::new(), |error| format!(" ({error})")),
            side.lines().join(" | ")
        ),
        Err(error) => error.to_string(),
    };
    let states: Vec<String> = sides.iter_mut().flatten().map(state).collect();
    if states.is_empty() { "no side".to_owned() } else { states.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_read_back_and_cover_every_boundary() {
        let (all, some) = (ColoKill::all(), ColoKill::some());
        assert_eq!((all.len(), some.len()), (3 * ColoBoundary::ALL.len(), ColoBoundary::ALL.len()));
        for kill in all {
            assert_eq!(kill.to_string().parse(), Ok(kill));
        }
        assert!("primary-sent=fail".parse::<ColoKill>().is_err());
        assert!("nowhere=cut".parse::<ColoKill>().is_err());
    }
}
