//! The scenario `cross --skew`: emulators whose vCPUs list other registers than each other, so that each rule of the table is followed by a
//! running guest, on any host.
//!
//! A [`Case`] skews one side's list ([`Skew`]) and says what must come of the move: the guest arrives and something is named, or it is refused
//! by a word and runs on at the source. A refusal that needs no state must come before anything moves.

use serde_json::json;

use super::cross::lost;
use super::migrate::{conclude, judge_end};
use super::pair::crossing::{Crossing, Outcome};
use super::pair::{Findings, MigrateSpec, PairError, Place, Watch};
use super::passes::RunError;
use super::{CrossSpec, Interrupt};
use crate::backend::Skew;
use crate::report::ledger::{HopEntry, MigrationEntry};
use crate::report::{Ledger, Progress};

/// Steps that the guest makes before and after.
const STEPS: u64 = 1;
const IGNORE: &[&str] = &["--unknown-registers", "ignore"];
const IGNORE_ZERO: &[&str] = &["--unknown-registers", "ignore-zero"];
const NAME: &[&str] = &["--missing-features", "name"];

/// Whose list is skewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whose {
    Source,
    Destination,
}

/// What must come of a move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expected {
    /// It arrives, and a note begins like this.
    Named(&'static str),
    /// It arrives, and something is not held.
    NotHeld(&'static str),
    /// It is refused with this word before anything moves.
    RefusedAtOnce(&'static str),
    /// It is refused with this word when its state is there.
    Refused(&'static str),
}

/// One move between lists that differ.
#[derive(Clone, Copy, Debug)]
struct Case {
    skew: Skew,
    whose: Whose,
    policy: &'static [&'static str],
    expected: Expected,
}

const fn case(skew: Skew, whose: Whose, policy: &'static [&'static str], expected: Expected) -> Case {
    Case { skew, whose, policy, expected }
}

use Expected::{Named, NotHeld, Refused, RefusedAtOnce};
use Whose::{Destination, Source};

const UNKNOWN: &str = "register 0x603000000013ffff: unknown and left alone";

const CASES: [Case; 23] = [
    case(Skew::Added, Source, &[], RefusedAtOnce("is unknown")),
    case(Skew::Added, Source, IGNORE_ZERO, RefusedAtOnce("is unknown")),
    case(Skew::Added, Source, IGNORE, Named(UNKNOWN)),
    case(Skew::Added, Destination, &[], RefusedAtOnce("is unknown")),
    case(Skew::Added, Destination, IGNORE, Named(UNKNOWN)),
    case(Skew::AddedZero, Source, IGNORE_ZERO, Named(UNKNOWN)),
    case(Skew::AddedZero, Destination, IGNORE_ZERO, Named(UNKNOWN)),
    case(Skew::Missing, Source, &[], Named("TPIDRRO_EL0: the source has none, it gets its reset value")),
    case(Skew::Missing, Destination, &[], Named("TPIDRRO_EL0: 0x0 is left behind")),
    case(Skew::MissingInUse, Destination, &[], Refused("VBAR_EL1: the destination has none")),
    case(Skew::Renamed, Source, &[], RefusedAtOnce("is unknown")),
    case(Skew::Renamed, Source, IGNORE_ZERO, Named("TPIDRRO_EL0: the source has none")),
    case(Skew::Renamed, Destination, IGNORE_ZERO, Named("TPIDRRO_EL0: 0x0 is left behind")),
    case(Skew::ConstantDifferent, Source, &[], Named("MIDR_EL1: ")),
    case(Skew::ConstantDifferent, Destination, &[], Named("MIDR_EL1: ")),
    case(Skew::AffinityDifferent, Source, &[], RefusedAtOnce("MPIDR_EL1")),
    case(Skew::FeatureMore, Source, &[], RefusedAtOnce("the guest may rely on")),
    case(Skew::FeatureMore, Source, NAME, Named("ID_")),
    case(Skew::FeatureMore, Destination, &[], Named("ID_")),
    case(Skew::ViewAlone, Source, &[], Named("TTBR0_EL1: made of TTBR0")),
    case(Skew::ViewAlone, Destination, &[], Named("TTBR0_EL1: the destination has it as TTBR0")),
    case(Skew::MaskedBit, Source, &[], Named("CSSELR_EL1: bits 0x80000000 stay")),
    case(Skew::ReservedBit, Source, &[], NotHeld("SCTLR_EL1: ")),
];

/// All of them, or those of one skew.
fn cases(skew: Option<Skew>) -> Vec<Case> {
    CASES.into_iter().filter(|case| skew.is_none_or(|skew| skew == case.skew)).collect()
}

/// How many moves `skew` is, or all are.
pub fn skew_count(skew: Option<Skew>) -> u64 {
    cases(skew).len() as u64
}

/// Moves a guest between skewed lists, once a case: those of `skew`, or all.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_skews(
    spec: &CrossSpec,
    skew: Option<Skew>,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Ledger, RunError> {
    let mut ledger = spec.blank_ledger();
    ledger.migration = Some(MigrationEntry::default());
    let watch = Watch::new(spec.from.timeout, interrupt);
    for (number, case) in (1..).zip(cases(skew)) {
        let result = drive(&spec.from, case, number, watch, &mut ledger);
        let failed = result.is_err();
        conclude(&mut ledger, interrupt, result)?;
        progress.advance(case.skew.name().to_owned());
        if failed {
            break;
        }
    }
    Ok(ledger)
}

fn drive(
    spec: &MigrateSpec,
    case: Case,
    number: usize,
    watch: Watch<'_>,
    ledger: &mut Ledger,
) -> Result<(), PairError> {
    let place = Place::new().map_err(PairError::Place)?;
    let crossing = Crossing { spec, place: &place, watch };
    let ends = place.ends(&spec.way, number).map_err(PairError::Place)?;
    let own = ["--skew-registers".to_owned(), case.skew.name().to_owned()];
    let [of_source, of_destination] =
        [Source, Destination].map(|whose| if whose == case.whose { own.to_vec() } else { Vec::new() });
    let options =
        [of_destination, case.policy.iter().map(|word| (*word).to_owned()).collect(), vec!["--paused".to_owned()]];
    let mut source = crossing.first("A", &of_source)?;
    let mut destination = crossing.incoming("B", &ends.destination, &options.concat())?;
    source.wait_steps(&watch, STEPS)?;
    crossing.begin(&mut source, &ends.source)?;
    let outcome = crossing.wait(&mut source, Some(&mut destination))?;
    let seen = MigrationEntry::from_query(&outcome.info);
    let mut entry = HopEntry {
        hop: number as u64,
        from: if case.whose == Source { case.skew.name() } else { "plain" }.to_owned(),
        to: if case.whose == Destination { case.skew.name() } else { "plain" }.to_owned(),
        point: None,
        status: seen.status.clone(),
        total_ns: seen.total_ns,
        downtime_host_ns: seen.downtime_host_ns,
        transferred: seen.transferred,
        syncs: seen.syncs,
        history: None,
        registers: None,
    };
    let arrives = matches!(case.expected, Named(_) | NotHeld(_));
    let status = if arrives { "completed" } else { "failed" };
    let policy = case.policy.join(" ");
    let expected = format!("{status} with {policy}: {:?}", case.expected);
    let mut findings = Findings::numbered(ledger, "hop", number);
    let as_expected = findings.check("status", outcome.status() == status, &expected, || {
        format!("{} {}", seen.status, seen.error.clone().unwrap_or_default())
    });
    if !as_expected {
        ledger.migration.get_or_insert_default().hops.push(entry);
        return Ok(());
    }
    if arrives {
        crossing.wait_arrived(&mut destination)?;
        entry.registers = MigrationEntry::from_query(&destination.migration()?).registers;
        let said = entry.registers.clone().unwrap_or_default();
        let is_named = match case.expected {
            Named(start) => said.notes.iter().any(|note| note.starts_with(start)),
            NotHeld(start) => said.unheld.iter().any(|unheld| unheld.starts_with(start)),
            Refused(_) | RefusedAtOnce(_) => false,
        };
        findings.check("named", is_named, &expected, || format!("{said:?}"));
        let lost = lost(&mut source, &mut destination, spec, entry.registers.as_ref())?;
        findings
            .check("registers", lost.is_empty(), "registers that differ only as the table says", || lost.join("; "));
        destination.execute("cont", json!({}))?;
        destination.wait_steps(&watch, STEPS)?;
        judge_end(&mut findings, "A", &source.quit(&watch)?);
        judge_end(&mut findings, "B", &destination.quit(&watch)?);
    } else {
        judge_refusal(&mut findings, case.expected, &outcome, &expected);
        source.wait_steps(&watch, STEPS)?;
        // Its ledger tells of the refused migration, and that the guest is whole.
        judge_end(&mut findings, "A", &source.quit(&watch)?);
    }
    ledger.migration.get_or_insert_default().hops.push(entry);
    Ok(())
}

fn judge_refusal(findings: &mut Findings<'_>, wanted: Expected, outcome: &Outcome, expected: &str) {
    let error = outcome.info["error-desc"].as_str().unwrap_or_default();
    let moved = outcome.info["ram"]["transferred"].as_u64().unwrap_or(0);
    let holds = match wanted {
        RefusedAtOnce(word) => error.contains(word) && moved == 0,
        Refused(word) => error.contains(word) && moved > 0,
        Named(_) | NotHeld(_) => false,
    };
    findings.check("refused", holds, expected, || format!("{moved} bytes of memory sent, {error}"));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_skew_has_a_case() {
        let covered: BTreeSet<_> = cases(None).iter().map(|case| case.skew.name()).collect();
        assert_eq!(covered, Skew::ALL.iter().map(|(_, name)| *name).collect());
        assert_eq!(skew_count(Some(Skew::MaskedBit)), 1);
        assert!(Skew::ALL.iter().all(|(skew, _)| skew_count(Some(*skew)) > 0));
    }
}
