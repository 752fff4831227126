//! The bench finds bugs: every planted fault is detected, by the right checker, at the right page and pass.

use tests::{firmware_or_skip, run};

#[test]
fn every_planted_fault_is_detected() {
    let Some(firmware) = firmware_or_skip() else { return };
    let run = run(["verify", "faults", "--firmware", firmware.to_str().unwrap()], true);
    run.expect_status(0);
    let faults = run.ledger["faults"].as_array().unwrap();
    let names: Vec<_> = faults.iter().map(|fault| fault["fault"].as_str().unwrap()).collect();
    for name in [
        "log-drops-bit",
        "log-skips-page",
        "tlb-keeps-stale-tag",
        "log-adds-page",
        "copier-skips-page",
        "copier-swaps-pages",
        "copier-flips-bit",
        "copier-leaves-tail",
        "write-behind-the-log",
    ] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    for fault in faults {
        assert_eq!(fault["detected"], true, "{fault}");
        assert!(!fault["by"].as_array().unwrap().is_empty(), "{fault}");
        assert!(fault["pass"].is_u64(), "{fault}");
    }
}
