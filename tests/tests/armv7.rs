//! The ARMv7 guest on the emulator: every pattern that it has, on each format of its tables, in both modes; planted faults;
//! what the ELF decides; refusals.

use serde_json::Value;
use tests::{Run, armv7_firmware_or_skip, firmware_or_skip, run};

const PATTERNS: [&str; 12] = [
    "dirtyram:sleep_ms=0",
    "tstaeshm",
    "stream",
    "hotcold",
    "full",
    "unaligned",
    "pair",
    "exclusive",
    "code",
    "shared",
    "readonly",
    "mixed",
];
const TABLES: [(&str, &str); 3] = [("short", "4k"), ("short", "64k"), ("lpae", "4k")];

/// Runs `scenario` on the ARMv7 firmware, whose ELF alone says what it is.
fn hostvmm(scenario: &[&str], arguments: &[&str]) -> Option<Run> {
    let firmware = armv7_firmware_or_skip()?.to_str().unwrap();
    let tail = ["--accel", "emulator", "--firmware", firmware];
    Some(run(scenario.iter().chain(arguments).chain(&tail), true))
}

fn verify(arguments: &[&str]) -> Option<Run> {
    hostvmm(&["verify", "passes"], arguments)
}

/// As [`tests::expect_exact`], of an ARMv7 guest.
#[track_caller]
fn expect_exact(run: &Run, passes: usize, lockstep: bool) {
    tests::expect_exact(run, passes, lockstep);
    assert_eq!(run.ledger["arch"], "armv7");
}

#[test]
fn every_pattern_is_exact_in_lockstep_on_every_format_of_tables() {
    for (index, (tables, granule)) in TABLES.into_iter().enumerate() {
        for (number, pattern) in PATTERNS.into_iter().enumerate() {
            let vcpus = ["1", "2", "4"][(index + number) % 3];
            let clock = ["wall", "icount"][(index + number) % 2];
            let arguments = ["--tables", tables, "--granule", granule, "--workload", pattern, "--vcpus", vcpus];
            let Some(run) = verify(&[&arguments[..], &["--clock", clock, "--passes", "2"]].concat()) else { return };
            println!("{tables}/{granule} {pattern} vcpus={vcpus} {clock}");
            expect_exact(&run, 2, true);
            assert_eq!((&run.ledger["tables"], &run.ledger["va_bits"]), (&tables.into(), &32.into()));
        }
    }
}

#[test]
fn ram_may_reach_to_the_end_of_the_address_space() {
    let Some(run) = verify(&["--ram", "3G", "--passes", "1"]) else { return };
    expect_exact(&run, 1, true);
}

#[test]
fn every_pattern_is_exact_live() {
    for (number, pattern) in PATTERNS.into_iter().enumerate() {
        let (tables, granule) = TABLES[number % TABLES.len()];
        let vcpus = ["4", "1", "2"][number % 3];
        let arguments = ["--mode", "live", "--tables", tables, "--granule", granule, "--workload", pattern];
        let tail = ["--vcpus", vcpus, "--passes", "4", "--interval-ms", "2"];
        let Some(run) = verify(&[&arguments[..], &tail].concat()) else { return };
        println!("{tables}/{granule} {pattern} vcpus={vcpus}");
        expect_exact(&run, 4, false);
    }
}

#[test]
fn eight_vcpus_check_themselves_and_call_by_hvc() {
    for tables in ["short", "lpae"] {
        let arguments = ["--tables", tables, "--workload", "mixed:runs=11", "--vcpus", "8", "--hypercall", "hvc"];
        let Some(run) = verify(&[&arguments[..], &["--passes", "3", "--self-check", "every"]].concat()) else { return };
        expect_exact(&run, 3, true);
    }
}

#[test]
fn sections_and_blocks_are_logged_page_by_page() {
    for tables in ["short", "lpae"] {
        let arguments = ["--tables", tables, "--region-map", "blocks", "--workload", "hotcold", "--passes", "3"];
        let Some(run) = verify(&arguments) else { return };
        expect_exact(&run, 3, true);
    }
}

#[test]
fn two_runs_by_instruction_count_are_identical() {
    let ledger = || {
        let arguments = ["--clock", "icount", "--workload", "mixed:sleep_ms=1", "--vcpus", "4", "--passes", "4"];
        let mut run = verify(&[&arguments[..], &["--seed", "5", "--mode", "live"]].concat())?;
        expect_exact(&run, 4, false);
        for pass in run.ledger["passes"].as_array_mut().unwrap() {
            let timings: Vec<String> =
                pass.as_object().unwrap().keys().filter(|name| name.ends_with("_ns")).cloned().collect();
            for timing in timings {
                pass[timing.as_str()] = Value::Null;
            }
        }
        Some(run.ledger)
    };
    let Some(first) = ledger() else { return };
    assert_eq!(Some(first), ledger());
}

#[test]
fn every_planted_fault_is_detected() {
    let Some(run) = hostvmm(&["verify", "faults"], &["--arch", "armv7"]) else { return };
    run.expect_status(0);
    for fault in run.ledger["faults"].as_array().unwrap() {
        assert_eq!(fault["detected"], true, "{fault}");
    }
}

#[test]
fn a_matrix_of_an_armv7_firmware_has_its_tables_and_its_patterns() {
    let arguments = ["--workload", "full", "--vcpus", "1", "--mode", "lockstep", "--passes", "1"];
    let Some(run) = hostvmm(&["verify", "matrix"], &arguments) else { return };
    run.expect_status(0);
    let cells = run.ledger["cells"].as_array().unwrap();
    let tables: Vec<_> =
        cells.iter().map(|cell| (cell["tables"].as_str().unwrap(), cell["granule"].as_str().unwrap())).collect();
    assert_eq!(tables, TABLES);
}

#[test]
fn an_unexpected_exception_is_reported_with_a_backtrace_and_ends_the_run() {
    let Some(run) = hostvmm(&["run"], &["--plant-exception"]) else { return };
    run.expect_status(1);
    for word in ["data abort", "FSR", "FAR", "PC", "  r14", "firmware::"] {
        assert!(run.stderr.contains(word), "{word} is missing in {}", run.stderr);
    }
}

#[test]
fn what_the_firmware_is_for_is_known_from_its_elf() {
    let Some(armv7) = armv7_firmware_or_skip() else { return };
    let armv7 = armv7.to_str().unwrap();
    run(["verify", "--arch", "aarch64", "--firmware", armv7], false).expect_refusal(2, "is for armv7");
    run(["verify", "--workload", "lse", "--firmware", armv7], false).expect_refusal(2, "use one of dirtyram");
    let Some(aarch64) = firmware_or_skip() else { return };
    run(["verify", "--arch", "armv7", "--firmware", aarch64.to_str().unwrap()], false)
        .expect_refusal(2, "is for aarch64");
}
