//! What renderings show of a COLO pair: its checks, and its lines and tables for people.

use std::fmt::Write;

use super::ledger::{CheckpointEntry, ColoEntry};
use super::migration::time;
use super::text::{align_numbers, table};
use super::{Check, Ledger, Verdict, check, describe};

/// Checkpoints that the table has at most: the slowest ones, in their order.
const LISTED: usize = 8;

/// The checks of a ledger's pair; none in a ledger without one. What is wrong with a checkpoint is among its run's mismatches.
pub(super) fn checks(ledger: &Ledger) -> Vec<Check> {
    let Some(entry) = &ledger.colo else { return Vec::new() };
    let mut checks = Vec::new();
    for (index, kill) in entry.kills.iter().enumerate() {
        let of_it = |m: &&super::Mismatch| m.pass == index as u64 + 1 && m.check.starts_with("kill ");
        let wrong: Vec<String> = ledger.mismatches.iter().filter(of_it).map(describe).collect();
        let name = format!("{} of the {} at {}", kill.action, kill.side, kill.boundary);
        checks.push(match &kill.skipped {
            Some(why) => (name, Verdict::Skip, Some(why.clone())),
            None => check(name, (!wrong.is_empty()).then(|| wrong.join("; "))),
        });
    }
    checks
}

/// Whether one of [`checks`] tells of this mismatch.
pub(super) fn is_told(ledger: &Ledger, mismatch: &super::Mismatch) -> bool {
    let count = ledger.colo.as_ref().map_or(0, |entry| entry.kills.len() as u64);
    mismatch.check.starts_with("kill ") && (1..=count).contains(&mismatch.pass)
}

/// The pair in lines and a table.
pub(super) fn text(entry: &ColoEntry) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a String cannot fail");
    if !entry.side.is_empty() {
        let error = entry.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
        let causes: Vec<String> = entry.causes.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
        line(format!(
            "colo {} {}{error}: {} checkpoints ({}), {} abandoned, {}",
            entry.side,
            entry.phase,
            entry.checkpoints,
            causes.join(", "),
            entry.abandoned,
            if entry.exact { "all exact" } else { "NOT exact" }
        ));
        line(format!(
            "output: {} records compared equal, {} divergences, {} accepted by the outlet; at most {} records of {} bytes held",
            entry.compared, entry.divergences, entry.accepted, entry.held_most_records, entry.held_most_bytes
        ));
    }
    if let Some(output) = &entry.output {
        line(format!(
            "outlet: {} records of {} bytes, {} of them as the plan foretells, each once and in order; owned by {}",
            output.records,
            output.bytes,
            output.foretold,
            output.owners.join(", then ")
        ));
    }
    if let (Some(alone), Some(paired)) = (entry.steps_per_s_alone, entry.steps_per_s_paired) {
        let percent = paired * 100 / alone.max(1);
        line(format!("steps a second: {alone} alone, {paired} in the pair, {percent} %"));
    }
    if let Some(peak) = entry.secondary_peak_bytes {
        line(format!("the secondary had at most {} MiB resident", peak >> 20));
    }
    if !entry.rounds.is_empty() {
        line(stops(&entry.rounds));
        line(rounds(&entry.rounds));
    }
    if !entry.kills.is_empty() {
        let mut kills = table(&["kill", "side", "boundary", "survivor", "verified"]);
        for kill in &entry.kills {
            let verified = kill.skipped.clone().unwrap_or_else(|| if kill.verified { "yes" } else { "NO" }.to_owned());
            kills.add_row([&kill.action, &kill.side, &kill.boundary, &kill.survivor, &verified]);
        }
        line(kills.to_string());
    }
    out
}

/// The stop times, and what they were spent on.
fn stops(rounds: &[CheckpointEntry]) -> String {
    // The first one sends everything.
    let rounds = if rounds.len() > 1 { &rounds[1..] } else { rounds };
    let mut stops: Vec<u64> = rounds.iter().map(|round| round.stop_ns).collect();
    stops.sort_unstable();
    let mut parts = std::collections::BTreeMap::new();
    for (name, ns) in rounds.iter().flat_map(|round| &round.split_ns) {
        *parts.entry(name.as_str()).or_insert(0) += ns;
    }
    let parts: Vec<String> = parts
        .into_iter()
        .map(|(name, ns)| format!("{} {}", name.trim_end_matches("_ns"), time(ns / rounds.len() as u64)))
        .collect();
    format!(
        "stopped for {} (median), {} at most; on average {}",
        time(stops[stops.len() / 2]),
        time(stops[stops.len() - 1]),
        parts.join(", ")
    )
}

/// The checkpoints, or where they are many the first and those that took longest.
fn rounds(rounds: &[CheckpointEntry]) -> String {
    let mut shown: Vec<&CheckpointEntry> = rounds.iter().collect();
    shown.sort_by_key(|round| (round.n != 1, std::cmp::Reverse(round.stop_ns)));
    shown.truncate(LISTED);
    shown.sort_by_key(|round| round.n);
    let mut table = table(&["checkpoint", "cause", "primary", "secondary", "both", "flushed", "digests", "stop"]);
    for round in shown {
        table.add_row([
            round.n.to_string(),
            round.cause.clone(),
            round.primary_dirty.to_string(),
            round.secondary_dirty.to_string(),
            round.both_dirty.to_string(),
            round.flushed.to_string(),
            if round.digest_primary.is_empty() { "-" } else { if round.is_equal() { "equal ×3" } else { "DIFFER" } }
                .to_owned(),
            time(round.stop_ns),
        ]);
    }
    align_numbers(&mut table, 2);
    table.to_string()
}
