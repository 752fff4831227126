//! Guests between lists of registers that differ, end to end, on any host; between KVM and the emulator it is the KVM tier that moves them.

use std::path::Path;

use serde_json::Value;
use tests::{Run, armv7_firmware_or_skip, firmware_or_skip, hostvmm, run};

/// A small machine, and what its guest writes without end.
const SMALL: [&str; 4] = ["--ram", "32M", "--workload", "dirtyram:pages=512,step=20,sleep_ms=1"];

#[track_caller]
fn cross(firmware: &Path, options: &[&str]) -> Run {
    let firmware = firmware.to_str().unwrap();
    let base = ["verify", "cross", "--firmware", firmware].into_iter().chain(SMALL);
    let run = run(base.chain(options.iter().copied()), true);
    run.expect_status(0);
    assert_eq!((&run.ledger["verdict"], &run.ledger["scenario"]), (&"pass".into(), &"cross".into()));
    run
}

fn hops(run: &Run) -> &Vec<Value> {
    run.ledger["migration"]["hops"].as_array().unwrap()
}

#[test]
fn every_rule_for_registers_is_followed_by_a_running_guest() {
    let Some(firmware) = firmware_or_skip() else { return };
    let run = cross(firmware, &["--skew", "all"]);
    let hops = hops(&run);
    assert!(hops.len() > 20, "{hops:?}");
    // Those that arrived say what became of their registers.
    let arrived = hops.iter().filter(|hop| hop["status"] == "completed");
    assert!(arrived.clone().count() > 10 && arrived.clone().all(|hop| hop["registers"].is_object()), "{hops:?}");
    assert!(hops.iter().filter(|hop| hop["status"] == "failed").count() > 5, "{hops:?}");
}

#[test]
fn an_armv7_guest_crosses_by_views_and_is_refused_a_missing_feature() {
    let Some(firmware) = armv7_firmware_or_skip() else { return };
    assert_eq!(hops(&cross(firmware, &["--arch", "armv7", "--skew", "view-alone"])).len(), 2);
    assert_eq!(hops(&cross(firmware, &["--arch", "armv7", "--skew", "feature-more"])).len(), 3);
}

#[test]
fn a_baseline_guest_moves_back_and_forth() {
    let Some(firmware) = firmware_or_skip() else { return };
    let run = cross(
        firmware,
        &["--from", "emulator", "--to", "emulator", "--moves", "2", "--cpu", "baseline", "--vcpus", "2"],
    );
    let hops = hops(&run);
    // Vessels and guests show the same: nothing is translated.
    assert_eq!(hops.len(), 3);
    assert!(hops.iter().all(|hop| hop["status"] == "completed" && hop.get("registers").is_none()), "{hops:?}");
}

#[test]
fn guests_are_moved_where_they_ask_for_it() {
    let guests = [
        (firmware_or_skip(), &["--vcpus", "2"][..]),
        (armv7_firmware_or_skip(), &["--arch", "armv7", "--tables", "short"]),
        (armv7_firmware_or_skip(), &["--arch", "armv7", "--tables", "lpae", "--vcpus", "2"]),
    ];
    for (firmware, options) in guests {
        let Some(firmware) = firmware else { continue };
        let run = cross(firmware, &[&["--from", "emulator", "--to", "emulator", "--points", "all"], options].concat());
        let visited: Vec<_> = hops(&run).iter().map(|hop| hop["point"].as_str().unwrap()).collect();
        let all = ["mmu-off", "table-switch", "handler", "pending", "exclusives", "wfi", "workload"];
        assert_eq!(visited, all, "{options:?}");
    }
}

#[test]
fn a_guest_moves_to_another_host_and_back() {
    let Some(firmware) = firmware_or_skip() else { return };
    // Another host that is this one: hostvmm is where the command looks for it, the firmware where hostvmm does.
    let programs = hostvmm().parent().unwrap().to_str().unwrap();
    let via = format!("env PATH={programs}:/usr/bin:/bin /bin/sh -c");
    let options = ["--from", "emulator", "--to", "emulator", "--to-via", &via, "--moves", "2", "--vcpus", "2"];
    let run = cross(firmware, &options);
    let hops = hops(&run);
    assert_eq!(hops.len(), 3);
    assert!(hops.iter().all(|hop| hop["status"] == "completed" && hop["history"].as_u64() > Some(0)), "{hops:?}");
}

#[test]
fn a_host_that_cannot_be_reached_is_named() {
    let Some(firmware) = firmware_or_skip() else { return };
    let options =
        ["verify", "cross", "--firmware", firmware.to_str().unwrap(), "--to", "emulator", "--to-via", "false"];
    let run = run(options.into_iter().chain(SMALL), false);
    run.expect_status(1);
    assert!(run.stdout.contains("false 'mktemp"), "{}", run.stdout);
}

#[test]
fn a_register_that_only_the_guest_sees_change_is_found() {
    let Some(firmware) = firmware_or_skip() else { return };
    let firmware = firmware.to_str().unwrap();
    let base = ["verify", "cross", "--firmware", firmware, "--from", "emulator", "--to", "emulator"];
    let planted = ["--points", "handler,exclusives", "--plant-unfaithful"];
    let run = run(base.into_iter().chain(SMALL).chain(planted), true);
    run.expect_status(1);
    for (point, change) in [("handler", "0x0 before, 0x5eed after"), ("exclusives", "0x5eed before, 0x0 after")] {
        let words = format!("found {point}: TPIDRRO_EL0: {change}");
        assert!(run.stdout.contains(&words), "{words}: {}", run.stdout);
    }
    // What its lists say holds, and its memory is the plan's.
    assert_eq!(run.stdout.matches("MISMATCH").count(), 2, "{}", run.stdout);
}

#[test]
fn options_that_cannot_be_meant_are_refused() {
    for (options, word) in [
        (&["--skew", "sideways"][..], "view-alone"),
        (&["--skew", "unfaithful"], "--points"),
        (&["--plant-unfaithful"], "--points"),
        (&["--skew", "all", "--moves", "2"], "--moves"),
        (&["--points", "handler", "--moves", "2"], "--moves"),
        (&["--points", "nowhere"], "table-switch"),
        (&["--accel", "emulator"], "--from"),
    ] {
        run(["verify", "cross"].iter().chain(options), false).expect_refusal(2, word);
    }
    run(["run", "--points", "all"], false).expect_refusal(2, "--qmp");
    run(["verify", "chain", "--cpu", "baseline"], false).expect_refusal(2, "verify cross");
}
