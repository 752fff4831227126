//! The heartbeat and the clock line: both architectures, one and four vCPUs, timer and spinning; and what is off stays off.

use std::collections::BTreeSet;

use serde_json::Value;
use tests::{Run, armv7_firmware_or_skip, firmware_or_skip, run};

/// Passes of a run.
const PASSES: &str = "5";
/// How long each lasts, for some beats and for some clock lines.
const BEATS_MS: &str = "60";
const LINES_MS: &str = "350";

/// Runs a guest for a while.
fn verify_live(arch: &str, interval_ms: &str, options: &[&str]) -> Option<Run> {
    verify(arch, &[&["--mode", "live", "--interval-ms", interval_ms], options].concat())
}

fn verify(arch: &str, options: &[&str]) -> Option<Run> {
    let firmware = if arch == "armv7" { armv7_firmware_or_skip()? } else { firmware_or_skip()? };
    let common = ["verify", "passes", "--arch", arch, "--firmware", firmware.to_str().unwrap(), "--passes", PASSES];
    Some(run(common.iter().chain(options), true))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is a number"))
}

/// Seconds, counter and number of every clock line.
fn clock_lines(run: &Run) -> Vec<[u64; 3]> {
    run.stderr
        .lines()
        .filter_map(|line| line.strip_prefix("guest: clock ")?.strip_suffix(')')?.split_once(" s, counter "))
        .map(|(second, rest)| {
            let (counter, number) = rest.split_once(" (line ").unwrap();
            [second, counter, number].map(|word| word.parse().unwrap())
        })
        .collect()
}

#[test]
fn every_vcpu_beats_on_both_architectures() {
    for arch in ["aarch64", "armv7"] {
        for vcpus in [1, 4] {
            for heartbeat in ["timer:2000", "spin:2000"] {
                let options = ["--vcpus", &vcpus.to_string(), "--heartbeat", heartbeat];
                let Some(run) = verify_live(arch, BEATS_MS, &options) else { return };
                run.expect_status(0);
                let entries = run.ledger["heartbeat"].as_array().unwrap();
                let found: BTreeSet<u64> = entries.iter().map(|entry| number(&entry["vcpu"])).collect();
                assert_eq!(found, (0..vcpus).collect(), "{arch} {heartbeat}");
                for entry in entries {
                    let gaps: u64 = entry["histogram"].as_array().unwrap().iter().map(number).sum();
                    assert_eq!(number(&entry["beats"]), gaps, "{entry}");
                    assert!(gaps > 10 && number(&entry["cycles"]) > 0, "{arch} {heartbeat}: {entry}");
                    assert!(number(&entry["longest_ns"]) >= 2_000_000, "the period is in it: {entry}");
                    // A spinning guest's typical gap is a look at the counter, not the period.
                    let short: u64 = entry["histogram"].as_array().unwrap().iter().take(17).map(number).sum();
                    assert_eq!(short > gaps / 2, heartbeat.starts_with("spin"), "{arch} {heartbeat}: {entry}");
                }
            }
        }
    }
}

#[test]
fn the_clock_line_counts_seconds_of_the_counter() {
    for (arch, heartbeat) in [("aarch64", "off"), ("armv7", "timer")] {
        let Some(run) = verify_live(arch, LINES_MS, &["--clock-line", "--heartbeat", heartbeat]) else { return };
        run.expect_status(0);
        let lines = clock_lines(&run);
        assert!(lines.len() >= 2, "{}", run.stderr);
        let [first, epoch, _] = lines[0];
        assert_eq!(first, 0);
        for (index, [second, counter, number]) in lines.iter().copied().enumerate() {
            assert_eq!(number, index as u64, "{}", run.stderr);
            assert_eq!((counter - epoch) / 62_500_000, second, "{}", run.stderr);
        }
        assert!(lines.is_sorted_by(|[before, ..], [after, ..]| before < after), "{}", run.stderr);
    }
}

#[test]
fn a_guest_that_is_asked_for_neither_shows_neither_and_repeats_bit_for_bit() {
    let icount = ["--clock", "icount", "--vcpus", "2", "--heartbeat", "off"];
    let Some(first) = verify("aarch64", &icount) else { return };
    first.expect_status(0);
    assert_eq!(first.ledger["heartbeat"], Value::Null);
    assert!(clock_lines(&first).is_empty());
    for options in [&icount[..], &["--clock", "icount", "--vcpus", "2", "--heartbeat", "timer:100", "--clock-line"]] {
        let (a, b) = (verify("aarch64", options).unwrap(), verify("aarch64", options).unwrap());
        let digests = |run: &Run| {
            run.ledger["passes"].as_array().unwrap().iter().map(|p| p["digest_copy"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(digests(&a), digests(&b));
        assert_eq!(a.ledger["heartbeat"], b.ledger["heartbeat"]);
    }
}

#[test]
fn a_heartbeat_that_cannot_be_is_refused() {
    let Some(run) = verify("aarch64", &["--heartbeat", "timer:5"]) else { return };
    run.expect_refusal(2, "timer[:US]");
}
