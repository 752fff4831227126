//! COLO, end to end: a guest runs in two processes, checkpoints make them equal, either is lost, and the outside world sees every
//! output once.

use std::path::Path;

use serde_json::Value;
use tests::{Run, armv7_firmware_or_skip, expect_exact_checkpoints, firmware_or_skip, run};

/// A small machine.
const SMALL: [&str; 6] = ["--accel", "emulator", "--ram", "16M", "--region-size", "2M"];
/// What its guest writes without end.
const WORKLOAD: [&str; 2] = ["--workload", "dirtyram:pages=512,step=16,sleep_ms=1"];

fn verify(firmware: &Path, options: &[&str]) -> Run {
    let firmware = firmware.to_str().unwrap();
    let workload = if options.contains(&"--workload") { [].as_slice() } else { &WORKLOAD };
    let base = ["verify", "colo", "--firmware", firmware].into_iter().chain(SMALL).chain(workload.iter().copied());
    run(base.chain(options.iter().copied()), true)
}

#[track_caller]
fn passes(firmware: &Path, options: &[&str]) -> Value {
    let run = verify(firmware, options);
    run.expect_status(0);
    assert_eq!((&run.ledger["verdict"], &run.ledger["scenario"]), (&"pass".into(), &"colo".into()));
    run.ledger["colo"].clone()
}

/// Every checkpoint is exact, judged once more from the ledger alone.
#[track_caller]
fn expect_exact(colo: &Value, checkpoints: usize) {
    let rounds = colo["rounds"].as_array().unwrap();
    assert!(rounds.len() >= checkpoints, "{} checkpoints", rounds.len());
    expect_exact_checkpoints(colo);
    let wrote = |round: &Value| round["secondary_dirty"].as_u64().unwrap() > 0;
    assert!(rounds.iter().skip(1).any(wrote), "the secondary ran as well");
}

#[test]
fn both_sides_are_equal_at_every_checkpoint_and_what_is_flushed_is_exactly_what_either_wrote() {
    let Some(firmware) = firmware_or_skip() else { return };
    for vcpus in ["1", "4"] {
        let colo = passes(firmware, &["--vcpus", vcpus, "--checkpoints", "30"]);
        expect_exact(&colo, 30);
        assert_eq!((&colo["side"], &colo["phase"]), (&"primary".into(), &"alone".into()));
    }
}

#[test]
fn an_armv7_guest_is_protected_as_well() {
    let Some(firmware) = armv7_firmware_or_skip() else { return };
    let colo = passes(firmware, &["--arch", "armv7", "--vcpus", "2", "--checkpoints", "10", "--failover", "primary"]);
    expect_exact(&colo, 10);
}

#[test]
fn whichever_side_is_lost_the_other_goes_on() {
    let Some(firmware) = firmware_or_skip() else { return };
    for (lost, side) in [("primary", "secondary"), ("secondary", "primary")] {
        let colo = passes(firmware, &["--checkpoints", "5", "--failover", lost]);
        expect_exact(&colo, 5);
        assert_eq!((&colo["side"], &colo["phase"]), (&side.into(), &"alone".into()));
        assert!(colo["output"]["foretold"].as_u64().unwrap() > 0, "{}", colo["output"]);
    }
}

#[test]
fn guests_that_diverge_are_made_equal_again() {
    let Some(firmware) = firmware_or_skip() else { return };
    for output in ["drift", "counter"] {
        let options = ["--guest-output", output, "--checkpoints", "10", "--interval", "1000", "--failover", "primary"];
        let colo = passes(firmware, &options);
        expect_exact(&colo, 10);
        assert!(colo["causes"]["divergence"].as_u64().unwrap_or(0) > 0, "{output}: {}", colo["causes"]);
    }
}

#[test]
fn every_lie_about_dirty_pages_is_found_and_told() {
    let Some(firmware) = firmware_or_skip() else { return };
    for omission in ["omit-primary", "omit-secondary", "omit-both", "flush-extra", "omit-flush"] {
        let planted = format!("{omission}@3");
        // Other pages in every step, so that what one side alone has written is to be found.
        let workload = ["--workload", "hotcold:writes=8,sleep_ms=1"];
        let run = verify(firmware, &[&workload[..], &["--checkpoints", "60", "--plant-colo-fault", &planted]].concat());
        run.expect_status(1);
        let found = run.ledger["mismatches"].to_string();
        assert!(found.contains("checkpoint"), "{omission}: {found}");
    }
}

#[test]
fn exactly_one_side_goes_on_whatever_is_lost_at_every_step_of_a_checkpoint() {
    let Some(firmware) = firmware_or_skip() else { return };
    let colo = passes(firmware, &["--kills", "some"]);
    let kills = colo["kills"].as_array().unwrap();
    assert!(kills.len() >= 20, "{}", kills.len());
    for kill in kills {
        assert!(["primary", "secondary"].contains(&kill["survivor"].as_str().unwrap()), "{kill}");
        assert_eq!(kill["verified"], true, "{kill}");
        if kill["action"] == "kill" {
            assert_ne!(kill["survivor"], kill["side"], "{kill}");
        }
    }
}
