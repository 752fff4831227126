//! Live migration, end to end: guests move between processes and are whole; migrations are called off, and sides killed.

use std::path::Path;

use serde_json::Value;
use tests::{Run, armv7_firmware_or_skip, firmware_or_skip, run};

/// A small machine.
const SMALL: [&str; 4] = ["--accel", "emulator", "--ram", "32M"];
/// What its guest writes without end, unless a test names something else.
const WORKLOAD: [&str; 2] = ["--workload", "dirtyram:pages=2048,step=64,sleep_ms=1"];

#[track_caller]
fn verify(firmware: &Path, scenario: &str, options: &[&str]) -> Run {
    let firmware = firmware.to_str().unwrap();
    let workload = if options.contains(&"--workload") { [].as_slice() } else { &WORKLOAD };
    let base = ["verify", scenario, "--firmware", firmware].into_iter().chain(SMALL).chain(workload.iter().copied());
    let run = run(base.chain(options.iter().copied()), true);
    run.expect_status(0);
    assert_eq!((&run.ledger["verdict"], &run.ledger["scenario"]), (&"pass".into(), &scenario.into()));
    run
}

/// The guest moved, with everything that is claimed of it.
#[track_caller]
fn expect_moved(ledger: &Value) {
    let migration = &ledger["migration"];
    assert_eq!(migration["status"], "completed");
    let digests = migration["digests"].as_array().unwrap();
    assert!(!digests.is_empty() && digests.iter().all(|slot| slot["equal"] == true), "{migration}");
    let region = &ledger["region"];
    assert!(region["sum_r_source"].is_u64(), "{region}");
    assert_eq!(region["sum_r_source"], region["sum_r_dest"]);
}

#[test]
fn a_guest_moves_while_it_runs_and_its_clock_goes_on() {
    let Some(firmware) = firmware_or_skip() else { return };
    let run = verify(firmware, "migrate", &["--vcpus", "2"]);
    expect_moved(&run.ledger);
    let migration = &run.ledger["migration"];
    assert_eq!(migration["clock"]["reconciled"], true, "{migration}");
    assert_eq!(migration["clock"]["jumps"], 0, "{migration}");
    assert!(migration["clock"]["lines"].as_u64().unwrap() >= 2, "{migration}");
    assert!(migration["downtime_guest_ns"].as_u64().unwrap() > 0, "{migration}");
    let rounds = migration["rounds"].as_array().unwrap();
    assert!(rounds.len() >= 2, "{migration}");
    let split = migration["downtime"].as_object().unwrap();
    let parts: u64 = split.values().map(|part| part.as_u64().unwrap()).sum();
    assert!(parts <= migration["downtime_host_ns"].as_u64().unwrap(), "{migration}");
    assert!(run.stdout.contains("PASS: the guest moved"), "{}", run.stdout);
}

#[test]
fn an_armv7_guest_moves_while_it_runs() {
    let Some(firmware) = armv7_firmware_or_skip() else { return };
    expect_moved(&verify(firmware, "migrate", &["--arch", "armv7", "--vcpus", "2", "--settle-ms", "100"]).ledger);
}

#[test]
fn guests_move_by_every_way_and_with_every_option() {
    let Some(firmware) = firmware_or_skip() else { return };
    for options in [
        ["--uri", "tcp"].as_slice(),
        &["--uri", "exec"],
        &["--uri", "fd"],
        &["--compress", "xbzrle", "--max-bandwidth", "8M"],
        &["--compress", "zstd", "--multifd-channels", "3"],
        &["--digest", "deferred", "--counter", "stops"],
        &["--auto-converge", "--downtime-limit", "1"],
        &["--postcopy", "--max-bandwidth", "8M"],
        &["--verify-guest", "--granule", "64k", "--va-bits", "42", "--vcpus", "4"],
        &["--workload", "mixed", "--vcpus", "8"],
    ] {
        let quick = ["--heartbeat", "off", "--settle-ms", "20"];
        let all: Vec<&str> = options.iter().chain(&quick).copied().collect();
        expect_moved(&verify(firmware, "migrate", &all).ledger);
    }
}

#[test]
fn several_guests_move_at_once() {
    let Some(firmware) = firmware_or_skip() else { return };
    let run = verify(firmware, "migrate", &["--pairs", "3", "--heartbeat", "off", "--settle-ms", "20"]);
    let cells = run.ledger["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 3);
    cells.iter().for_each(expect_moved);
}

#[test]
fn a_guest_survives_a_hundred_hops_with_its_dirty_history() {
    let Some(firmware) = firmware_or_skip() else { return };
    // Other pages in every step, so that every hop has something to add.
    let workload = ["--workload", "hotcold:writes=8,sleep_ms=20", "--region-size", "2M"];
    let run = verify(firmware, "chain", &[["--hops", "100"].as_slice(), &workload].concat());
    let hops = run.ledger["migration"]["hops"].as_array().unwrap();
    assert_eq!(hops.len(), 100);
    assert!(hops.iter().all(|hop| hop["status"] == "completed"));
    let history: Vec<u64> = hops.iter().map(|hop| hop["history"].as_u64().unwrap()).collect();
    assert!(history.is_sorted() && history[99] > history[0], "{history:?}");
}

#[test]
fn a_chain_of_armv7_guests_keeps_its_history() {
    let Some(firmware) = armv7_firmware_or_skip() else { return };
    let run = verify(firmware, "chain", &["--arch", "armv7", "--hops", "4", "--vcpus", "2"]);
    assert_eq!(run.ledger["migration"]["hops"].as_array().unwrap().len(), 4);
}

#[test]
fn a_cancelled_migration_leaves_a_healthy_source_at_any_moment() {
    let Some(firmware) = firmware_or_skip() else { return };
    let run = verify(firmware, "cancel", &[]);
    let cancels = run.ledger["migration"]["cancels"].as_array().unwrap();
    assert!(cancels.len() >= 9);
    assert!(cancels.iter().all(|cancel| cancel["verified"] == true && cancel["logging_off"] == true), "{cancels:?}");
    assert!(cancels.iter().filter(|cancel| cancel["status"] == "cancelled").count() >= 7, "{cancels:?}");
}

#[test]
fn exactly_one_side_has_the_guest_whatever_is_killed_at_every_boundary() {
    let Some(firmware) = firmware_or_skip() else { return };
    let run = verify(firmware, "cancel", &["--kills", "some"]);
    let kills = run.ledger["migration"]["kills"].as_array().unwrap();
    assert!(kills.len() >= 20);
    assert!(kills.iter().all(|kill| kill["verified"] == true), "{kills:?}");
    for survivor in ["source", "destination"] {
        assert!(kills.iter().any(|kill| kill["survivor"] == survivor), "{survivor}: {kills:?}");
    }
}
