//! What renderings show of a migration: its checks, and its tables for people.

use std::fmt::Write;

use super::ledger::{BytesEntry, GapBucket, GapsEntry, HopEntry, HugePagesAround, MigrationEntry};
use super::text::{align_numbers, table};
use super::{Check, Ledger, Mismatch, Verdict, check, describe};

/// Mismatches whose check begins with one of these words are of the hop, cancelled migration or kill that `pass` numbers
/// from 1.
const NUMBERED: [&str; 3] = ["hop", "cancel", "kill"];

/// What the `number`th hop, cancelled migration or kill (as `kind` says) found wrong.
fn wrong(ledger: &Ledger, kind: &str, number: usize) -> Option<String> {
    let of_it = |m: &&Mismatch| m.pass == number as u64 && m.check.split(' ').next() == Some(kind);
    let wrong: Vec<String> = ledger.mismatches.iter().filter(of_it).map(describe).collect();
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

/// Whether one of [`checks`] tells of this mismatch.
pub(super) fn is_told(ledger: &Ledger, mismatch: &Mismatch) -> bool {
    let Some(entry) = &ledger.migration else { return false };
    let counts = [entry.hops.len(), entry.cancels.len(), entry.kills.len()];
    NUMBERED.iter().zip(counts).any(|(kind, count)| {
        mismatch.check.split(' ').next() == Some(kind) && (1..=count as u64).contains(&mismatch.pass)
    })
}

/// The checks of a ledger's migration; none in a ledger without one.
pub(super) fn checks(ledger: &Ledger) -> Vec<Check> {
    let Some(entry) = &ledger.migration else { return Vec::new() };
    let mut checks = Vec::new();
    for digests in &entry.digests {
        let differ = || format!("source {}, destination {}", digests.source, digests.destination);
        checks.push(check(format!("digest of {}", digests.slot), (!digests.equal).then(differ)));
    }
    if let Some(clock) = &entry.clock {
        let off = || clock.disagreements.join("; ");
        checks.push(check("downtime of host and guest".to_owned(), (!clock.reconciled).then(off)));
        if clock.lines > 0 {
            let jumped = || format!("{} jumps in {} lines", clock.jumps, clock.lines);
            checks.push(check("clock lines".to_owned(), (clock.jumps > 0).then(jumped)));
        }
    }
    for (index, hop) in entry.hops.iter().enumerate() {
        let name = format!("hop {} {} to {}", hop.hop, hop.from, hop.to);
        checks.push(check(name, wrong(ledger, "hop", index + 1)));
    }
    for (index, cancel) in entry.cancels.iter().enumerate() {
        checks.push(check(format!("cancel at {}", cancel.at), wrong(ledger, "cancel", index + 1)));
    }
    for (index, kill) in entry.kills.iter().enumerate() {
        let name = format!("{} of the {} at {}", kill.action, kill.side, kill.boundary);
        checks.push(match &kill.skipped {
            Some(why) => (name, Verdict::Skip, Some(why.clone())),
            None => check(name, wrong(ledger, "kill", index + 1)),
        });
    }
    checks
}

/// The migration in lines and tables.
pub(super) fn text(entry: &MigrationEntry) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a String cannot fail");
    if !entry.status.is_empty() {
        let uri = entry.uri.as_ref().map_or(String::new(), |uri| format!(" to {uri}"));
        let error = entry.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
        line(format!(
            "migration{uri} {}{error}: total {}, set-up {}, {} bytes in {} syncs, {} pages, {} zero",
            entry.status,
            time(entry.total_ns),
            time(entry.setup_ns),
            entry.transferred,
            entry.syncs,
            entry.normal,
            entry.zero
        ));
    }
    if let Some(estimate) = &entry.estimate {
        let ends = if estimate.converges { "" } else { ", not by itself" };
        line(format!(
            "estimate: {} passes, {} bytes, downtime {}{ends}; it took {} passes, {} bytes, downtime {}",
            estimate.passes,
            estimate.bytes,
            time(estimate.downtime_ns),
            entry.syncs,
            entry.transferred,
            time(entry.downtime_host_ns)
        ));
    }
    if let Some(bytes) = &entry.bytes {
        line(format!("bytes: {}", kinds(bytes)));
    }
    if let Some(throttle) = &entry.throttle {
        line(format!("throttled {} times, to {} % at most", throttle.raises, throttle.most_percent));
    }
    if let Some(downtime) = &entry.downtime {
        let parts: Vec<String> =
            downtime.parts().into_iter().map(|(name, ns)| format!("{name} {}", time(ns))).collect();
        line(format!("downtime by the host {}: {}", time(entry.downtime_host_ns), parts.join(", ")));
    }
    if let Some(clock) = &entry.clock {
        let cycles = clock.gap_cycles.map_or(String::new(), |cycles| format!(", {cycles} cycles"));
        line(format!(
            "downtime by the guest {}{cycles}: {} ns beside the hosts'; counter {} and is off by {} ns ({:.1} ppm), known to {} ns",
            time(entry.downtime_guest_ns),
            clock.error_ns,
            clock.policy,
            clock.counter_error_ns,
            entry.counter_error_ppm,
            clock.counter_doubt_ns
        ));
        if clock.lines > 0 {
            line(format!("clock: {} lines, {} jumps", clock.lines, clock.jumps));
        }
    }
    for digests in &entry.digests {
        let both = if digests.equal {
            format!("{} ×2", digests.source)
        } else {
            format!("source {} destination {}", digests.source, digests.destination)
        };
        line(format!("digest of {}: {both}", digests.slot));
    }
    if let Some(registers) = &entry.registers {
        line(format!(
            "registers from {} to {}: {} written, rules {}",
            registers.from,
            registers.to,
            registers.written,
            time(registers.translate_ns)
        ));
        registers.notes.iter().for_each(|note| line(format!("  {note}")));
        registers.unheld.iter().for_each(|unheld| line(format!("  not held: {unheld}")));
    }
    if let Some(gaps) = &entry.gaps {
        line(gaps_table(gaps));
    }
    for part in [hops(entry), cancels(entry), kills(entry)].into_iter().flatten() {
        line(part);
    }
    out
}

fn kinds(bytes: &BytesEntry) -> String {
    let some: Vec<String> = bytes
        .kinds()
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {bytes}"))
        .collect();
    if some.is_empty() { "none".to_owned() } else { some.join(", ") }
}

/// A duration in its natural unit.
pub(super) fn time(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{}.{} µs", ns / 1_000, ns % 1_000 / 100),
        1_000_000..1_000_000_000 => format!("{}.{} ms", ns / 1_000_000, ns % 1_000_000 / 100_000),
        _ => format!("{}.{:02} s", ns / 1_000_000_000, ns % 1_000_000_000 / 10_000_000),
    }
}

/// Every bucket that any of the three histograms has, with the three counts.
pub(super) fn buckets(gaps: &GapsEntry) -> Vec<(u64, [u64; 3])> {
    let all = [&gaps.before, &gaps.during, &gaps.after];
    let mut from: Vec<u64> = all.iter().flat_map(|part| part.iter().map(|bucket| bucket.from_ns)).collect();
    from.sort_unstable();
    from.dedup();
    let count = |part: &[GapBucket], from_ns| {
        part.iter().filter(|bucket| bucket.from_ns == from_ns).map(|bucket| bucket.count).sum::<u64>()
    };
    let row = |from_ns| (from_ns, all.map(|part| count(part, from_ns)));
    from.into_iter().map(row).filter(|(_, counts)| *counts != [0; 3]).collect()
}

fn gaps_table(gaps: &GapsEntry) -> String {
    let mut table = table(&["gap between heartbeats", "before", "during", "after"]);
    for (from_ns, counts) in buckets(gaps) {
        let [before, during, after] = counts.map(|count| count.to_string());
        table.add_row([format!("{} and more", time(from_ns)), before, during, after]);
    }
    align_numbers(&mut table, 1);
    table.to_string()
}

fn hops(entry: &MigrationEntry) -> Option<String> {
    let mut table = table(&["hop", "from", "to", "status", "total", "downtime", "rules", "bytes", "syncs", "history"]);
    for hop in &entry.hops {
        table.add_row([
            hop.hop.to_string(),
            hop.from.clone(),
            hop.to.clone(),
            hop.status.clone(),
            time(hop.total_ns),
            time(hop.downtime_host_ns),
            hop.registers.as_ref().map_or_else(|| "-".to_owned(), |registers| time(registers.translate_ns)),
            hop.transferred.to_string(),
            hop.syncs.to_string(),
            hop.history.map_or_else(|| "-".to_owned(), |pages| pages.to_string()),
        ]);
    }
    align_numbers(&mut table, 4);
    (!entry.hops.is_empty()).then(|| match beside(&entry.hops) {
        Some(beside) => format!("{table}\n{beside}"),
        None => table.to_string(),
    })
}

/// The downtime of hops whose registers were translated beside that of the others, where there are both.
fn beside(hops: &[HopEntry]) -> Option<String> {
    let median = |translated: bool| {
        let completed = hops.iter().filter(|hop| hop.status == "completed" && hop.registers.is_some() == translated);
        let mut downtimes: Vec<u64> = completed.map(|hop| hop.downtime_host_ns).collect();
        downtimes.sort_unstable();
        Some((*downtimes.get(downtimes.len() / 2)?, downtimes.len()))
    };
    let ((same, of_same), (other, of_other)) = (median(false)?, median(true)?);
    let ratio = other as f64 / same.max(1) as f64;
    Some(format!(
        "downtime, median: {} with the same registers (of {of_same}), {} translated (of {of_other}), {ratio:.2} times",
        time(same),
        time(other)
    ))
}

fn cancels(entry: &MigrationEntry) -> Option<String> {
    let heads = ["cancelled at", "status", "log", "verified", "huge pages", "took", "steps/s before", "after", "ratio"];
    let mut table = table(&heads);
    for cancel in &entry.cancels {
        table.add_row([
            cancel.at.clone(),
            cancel.status.clone(),
            if cancel.logging_off { "off" } else { "ON" }.to_owned(),
            if cancel.verified { "yes" } else { "NO" }.to_owned(),
            cancel.huge_pages.as_ref().map_or_else(|| "-".to_owned(), huge_pages),
            time(cancel.cancel_ns),
            format!("{:.0}", cancel.steps_per_s_before),
            format!("{:.0}", cancel.steps_per_s_after),
            format!("{:.2}", cancel.ratio()),
        ]);
    }
    align_numbers(&mut table, 5);
    (!entry.cancels.is_empty()).then(|| table.to_string())
}

/// Blocks before, while logging and after.
fn huge_pages(around: &HugePagesAround) -> String {
    let Some(before) = around.before else { return "not shown here".to_owned() };
    let count = |count: Option<u64>| count.map_or_else(|| "?".to_owned(), |count| count.to_string());
    format!("{before}, {}, {}", count(around.logging), count(around.after))
}

fn kills(entry: &MigrationEntry) -> Option<String> {
    let mut table = table(&["side", "boundary", "action", "survivor", "verified"]);
    for kill in &entry.kills {
        let verified = match &kill.skipped {
            Some(why) => format!("skipped: {why}"),
            None => if kill.verified { "yes" } else { "NO" }.to_owned(),
        };
        table.add_row([&kill.side, &kill.boundary, &kill.action, &kill.survivor, &verified]);
    }
    (!entry.kills.is_empty()).then(|| table.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::ledger::{CancelEntry, GuestClockEntry, KillEntry, RoundEntry, SlotDigestsEntry};
    use super::*;
    use crate::report::sample_ledger;

    /// A ledger of a migration with something of everything.
    pub(crate) fn migrated() -> Ledger {
        let bucket = |from_ns, count| GapBucket { from_ns, count };
        let mut ledger = sample_ledger();
        ledger.scenario = "migrate".to_owned();
        ledger.migration = Some(MigrationEntry {
            status: "completed".to_owned(),
            total_ns: 1_234_567_890,
            transferred: 9_000_000,
            syncs: 3,
            downtime_host_ns: 4_200_000,
            downtime_guest_ns: 4_200_100,
            digests: vec![SlotDigestsEntry {
                slot: "ram".to_owned(),
                source: "0x1".to_owned(),
                destination: "0x1".to_owned(),
                equal: true,
            }],
            clock: Some(GuestClockEntry { reconciled: true, lines: 4, ..GuestClockEntry::default() }),
            rounds: vec![
                RoundEntry { pass: 0, dirty: 2048, bytes: 8 << 20, ns: 2_000_000 },
                RoundEntry { pass: 1, dirty: 80, bytes: 80 << 12, ns: 40_000 },
            ],
            gaps: Some(GapsEntry {
                before: vec![bucket(1024, 7)],
                during: vec![bucket(1024, 5), bucket(4_194_304, 1)],
                after: vec![bucket(2048, 0)],
            }),
            hops: vec![HopEntry { hop: 1, from: "A".to_owned(), to: "B".to_owned(), ..HopEntry::default() }],
            cancels: vec![CancelEntry {
                at: "source-pass-0".to_owned(),
                verified: true,
                huge_pages: Some(HugePagesAround { before: Some(4), logging: Some(1), after: Some(4) }),
                ..CancelEntry::default()
            }],
            kills: vec![
                KillEntry {
                    boundary: "source-setup".to_owned(),
                    survivor: "source".to_owned(),
                    ..KillEntry::default()
                },
                KillEntry { skipped: Some("no such boundary here".to_owned()), ..KillEntry::default() },
            ],
            ..MigrationEntry::default()
        });
        ledger
    }

    fn mismatch(check: &str, number: u64) -> Mismatch {
        let (expected, found) = ("one".to_owned(), "two".to_owned());
        Mismatch { check: check.to_owned(), pass: number, page: None, gpa: None, expected, found }
    }

    #[test]
    fn each_hop_cancel_and_kill_is_a_check_of_its_own() {
        let mut ledger = migrated();
        ledger.fail(mismatch("kill survivor", 1));
        ledger.fail(mismatch("model", 0));
        let checks = super::super::checks(&ledger);
        let failed: Vec<&str> =
            checks.iter().filter(|(_, verdict, _)| *verdict == Verdict::Fail).map(|(name, ..)| name.as_str()).collect();
        assert_eq!(failed, [" of the  at source-setup", "run"], "{checks:?}");
        assert_eq!(checks.iter().filter(|(_, verdict, _)| *verdict == Verdict::Skip).count(), 1);
        assert_eq!(checks.iter().filter(|(_, verdict, _)| *verdict == Verdict::Pass).count(), 5);
    }

    #[test]
    fn the_text_has_every_part() {
        let text = text(migrated().migration.as_ref().unwrap());
        for part in [
            "total 1.23 s",
            "4.2 ms",
            "digest of ram: 0x1 ×2",
            "4.1 ms and more",
            "source-pass-0",
            "4, 1, 4",
            "skipped: no",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn buckets_are_those_that_count_something_anywhere() {
        let ledger = migrated();
        let gaps = ledger.migration.unwrap().gaps.unwrap();
        assert_eq!(buckets(&gaps), [(1024, [7, 5, 0]), (4_194_304, [0, 1, 0])]);
    }

    #[test]
    fn moves_that_translate_registers_stand_beside_those_that_do_not() {
        use super::super::ledger::RegistersEntry;
        let hop = |downtime_ms: u64, translated: bool| HopEntry {
            status: "completed".to_owned(),
            downtime_host_ns: downtime_ms * 1_000_000,
            registers: translated.then(|| RegistersEntry { translate_ns: 150_000, ..RegistersEntry::default() }),
            ..HopEntry::default()
        };
        let failed = HopEntry { status: "failed".to_owned(), ..hop(999, true) };
        let entry = |hops| MigrationEntry { hops, ..MigrationEntry::default() };
        let told = hops(&entry(vec![hop(40, false), hop(50, true), hop(70, true), hop(60, true), failed])).unwrap();
        assert!(told.contains("150"), "{told}");
        assert!(told.contains("(of 1)") && told.contains("(of 3), 1.50 times"), "{told}");
        assert!(!hops(&entry(vec![hop(40, false)])).unwrap().contains("times"));
    }
}
