//! Every pattern on every granule, in both modes, with one and several vCPUs: nothing missing, nothing extra, three
//! digests equal.

use serde_json::Value;
use tests::{Run, expect_exact, firmware_or_skip, run};

const PATTERNS: [&str; 15] = [
    "dirtyram:sleep_ms=0",
    "tstaeshm",
    "stream",
    "hotcold",
    "full",
    "unaligned",
    "pair",
    "exclusive",
    "lse",
    "dczva",
    "tablewalk",
    "code",
    "shared",
    "readonly",
    "mixed",
];
const TRANSLATIONS: [(&str, &str); 7] =
    [("4k", "39"), ("4k", "48"), ("16k", "36"), ("16k", "47"), ("16k", "48"), ("64k", "42"), ("64k", "48")];

fn verify(arguments: &[&str]) -> Option<Run> {
    let firmware = firmware_or_skip()?.to_str().unwrap();
    Some(run(["verify", "passes", "--firmware", firmware].iter().chain(arguments), true))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is a number"))
}

#[test]
fn every_pattern_is_exact_in_lockstep_on_every_granule() {
    for (index, (granule, bits)) in TRANSLATIONS.into_iter().enumerate() {
        for (number, pattern) in PATTERNS.into_iter().enumerate() {
            let vcpus = ["1", "2", "4"][(index + number) % 3];
            let clock = ["wall", "icount"][(index + number) % 2];
            let arguments = ["--granule", granule, "--va-bits", bits, "--workload", pattern, "--vcpus", vcpus];
            let tail = ["--clock", clock, "--passes", "2", "--seed", "11"];
            let Some(run) = verify(&[&arguments[..], &tail].concat()) else { return };
            println!("{granule}/{bits} {pattern} vcpus={vcpus} {clock}");
            expect_exact(&run, 2, true);
        }
    }
}

#[test]
fn every_pattern_is_exact_live() {
    for (number, pattern) in PATTERNS.into_iter().enumerate() {
        let vcpus = ["1", "2", "4"][number % 3];
        let (granule, bits) = TRANSLATIONS[number % TRANSLATIONS.len()];
        for clock in ["wall", "icount"] {
            let arguments = ["--mode", "live", "--clock", clock, "--workload", pattern, "--vcpus", vcpus];
            let tail = ["--granule", granule, "--va-bits", bits, "--passes", "4", "--interval-ms", "2"];
            let Some(run) = verify(&[&arguments[..], &tail].concat()) else { return };
            println!("{granule}/{bits} {pattern} vcpus={vcpus} {clock}");
            expect_exact(&run, 4, false);
        }
    }
}

#[test]
fn eight_vcpus_contend_and_nothing_is_lost() {
    for pattern in ["lse", "exclusive", "shared", "mixed"] {
        let Some(run) = verify(&["--workload", pattern, "--vcpus", "8", "--passes", "3", "--self-check", "every"])
        else {
            return;
        };
        expect_exact(&run, 3, true);
    }
}

#[test]
fn dirtyram_dirties_exactly_the_pages_of_a_step() {
    let arguments = ["--workload", "dirtyram:pages=2000,step=40,sleep_ms=1", "--passes", "3"];
    let Some(run) = verify(&arguments) else { return };
    expect_exact(&run, 3, true);
    let passes = run.ledger["passes"].as_array().unwrap();
    assert_eq!(number(&passes[0]["predicted"]), 2000);
    for pass in &passes[1..] {
        assert_eq!(
            (number(&pass["predicted"]), number(&pass["harvested"]), number(&pass["pages_copied"])),
            (40, 40, 40)
        );
    }
}

#[test]
fn a_guest_that_only_reads_dirties_nothing() {
    let Some(run) = verify(&["--workload", "readonly", "--passes", "3"]) else { return };
    expect_exact(&run, 3, true);
    for pass in &run.ledger["passes"].as_array().unwrap()[1..] {
        assert_eq!(number(&pass["harvested"]), 0, "{pass}");
    }
}

#[test]
fn larger_host_pages_are_predicted_exactly() {
    for host_page in ["16k", "64k"] {
        for granule in ["4k", "64k"] {
            let arguments = ["--host-page", host_page, "--granule", granule, "--workload", "mixed", "--passes", "3"];
            let Some(run) = verify(&arguments) else { return };
            expect_exact(&run, 3, true);
            let bytes = if host_page == "16k" { 16 << 10 } else { 64 << 10 };
            assert_eq!(number(&run.ledger["host_page"]), bytes);
        }
    }
}

#[test]
fn the_hvc_transport_serves_as_well_as_the_doorbell() {
    let Some(run) = verify(&["--hypercall", "hvc", "--workload", "mixed", "--vcpus", "2", "--passes", "2"]) else {
        return;
    };
    expect_exact(&run, 2, true);
}

#[test]
fn a_region_above_ram_works_and_is_reported_there() {
    let arguments =
        ["--ram", "64M", "--region-size", "768M", "--workload", "dirtyram:pages=196608,step=512,sleep_ms=0"];
    let Some(run) = verify(&[&arguments[..], &["--passes", "1", "--self-check", "off"]].concat()) else { return };
    expect_exact(&run, 1, true);
    assert_eq!(number(&run.ledger["region"]["gpa"]), 0x8000_0000);
}

#[test]
fn two_runs_of_a_seed_by_instruction_count_are_identical() {
    for mode in ["lockstep", "live"] {
        let ledger = || {
            let arguments = ["--clock", "icount", "--workload", "mixed:sleep_ms=1", "--vcpus", "4", "--passes", "4"];
            let mut run = verify(&[&arguments[..], &["--seed", "5", "--mode", mode]].concat())?;
            expect_exact(&run, 4, mode == "lockstep");
            for pass in run.ledger["passes"].as_array_mut().unwrap() {
                for timing in ["harvest_ns", "copy_ns", "digest_ns"] {
                    pass[timing] = Value::Null;
                }
            }
            Some(run.ledger)
        };
        let Some(first) = ledger() else { return };
        assert_eq!(Some(first), ledger(), "{mode}");
    }
}

#[test]
fn another_seed_writes_something_else() {
    let digest = |seed| {
        let run = verify(&["--workload", "full", "--passes", "1", "--seed", seed])?;
        expect_exact(&run, 1, true);
        Some(run.ledger["passes"][1]["digest_model"].clone())
    };
    let Some(one) = digest("1") else { return };
    assert_ne!(Some(one), digest("2"));
}

#[test]
fn two_dirty_logs_agree_page_by_page() {
    for mode in ["lockstep", "live"] {
        let arguments = ["--dirty-log", "emulator,pagemap-scan", "--workload", "mixed", "--vcpus", "2", "--mode", mode];
        let Some(run) = verify(&[&arguments[..], &["--passes", "4"]].concat()) else { return };
        if run.status == 4 {
            println!("skipped: {}", run.stderr);
            return;
        }
        expect_exact(&run, 4, mode == "lockstep");
        assert_eq!(run.ledger["dirty_log"], "emulator,pagemap-scan");
    }
}

#[test]
fn pagemap_scan_alone_is_exact_after_its_first_harvest() {
    let Some(run) = verify(&["--dirty-log", "pagemap-scan", "--workload", "hotcold", "--passes", "3"]) else { return };
    if run.status == 4 {
        println!("skipped: {}", run.stderr);
        return;
    }
    expect_exact(&run, 3, true);
    for pass in &run.ledger["passes"].as_array().unwrap()[1..] {
        assert_eq!(number(&pass["extra"]), 0, "{pass}");
    }
}

#[test]
fn share_and_dest_are_equal_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let [share, dest] = ["share", "dest"].map(|name| {
        let path = directory.path().join(name);
        std::fs::write(&path, vec![0xa5; 8 << 20]).unwrap();
        path
    });
    let files = ["--share", share.to_str().unwrap(), "--dest", dest.to_str().unwrap()];
    let Some(run) = verify(&[&files[..], &["--workload", "mixed", "--passes", "3"]].concat()) else { return };
    expect_exact(&run, 3, true);
    let [share, dest] = [share, dest].map(|path| std::fs::read(path).unwrap());
    assert!(share.iter().any(|&byte| byte != 0), "the guest wrote something");
    assert!(share == dest, "the files differ");
}

#[test]
fn an_unexpected_exception_is_reported_with_a_backtrace_and_ends_the_run() {
    let Some(firmware) = firmware_or_skip() else { return };
    let run = run(["run", "--plant-exception", "--firmware", firmware.to_str().unwrap()], true);
    run.expect_status(1);
    for word in ["ESR", "FAR", "ELR", "firmware::"] {
        assert!(run.stderr.contains(word), "{word} is missing in {}", run.stderr);
    }
    assert_eq!(run.ledger["verdict"], "fail");
}
