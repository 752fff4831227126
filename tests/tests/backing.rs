//! What guest memory is mapped on: every kind that this host has works, and what it lacks is told.

use tests::{firmware_or_skip, run};

/// Exit status where the host lacks what was asked for.
const SKIPPED: i32 = 4;

#[test]
fn every_backing_delivers_every_byte_or_says_what_the_host_lacks() {
    let Some(firmware) = firmware_or_skip() else { return };
    let firmware = firmware.to_str().unwrap();
    for backing in ["memfd", "anon", "thp", "hugetlb"] {
        // A region that is no multiple of a huge page.
        let arguments = ["verify", "passes", "--accel", "emulator", "--firmware", firmware, "--backing", backing];
        let sizes = ["--ram", "16M", "--region-size", "3M", "--workload", "mixed", "--passes", "3"];
        let done = run(arguments.iter().chain(&sizes), true);
        if done.status == SKIPPED && ["thp", "hugetlb"].contains(&backing) {
            assert!(done.stderr.contains("run `echo") || done.stderr.contains("no "), "{}", done.stderr);
            println!("skipped: {}", done.stderr.trim());
            continue;
        }
        done.expect_status(0);
        assert_eq!(done.ledger["backing"], backing);
    }
}

#[test]
fn backings_that_are_none_are_usage_errors() {
    for backing in ["", "swap", "thp:2M", "hugetlb:", "hugetlb:3M", "hugetlb:1K", "hugetlb:-2M"] {
        run(["verify", "--backing", backing], false).expect_refusal(2, "--backing");
    }
    run(["verify", "--eager-split", "3M"], false).expect_refusal(2, "--eager-split");
}

#[test]
fn a_huge_page_size_that_no_host_has_is_skipped_with_the_sizes_there_are() {
    let Some(firmware) = firmware_or_skip() else { return };
    let firmware = firmware.to_str().unwrap();
    run(["verify", "--accel", "emulator", "--firmware", firmware, "--backing", "hugetlb:128K"], false)
        .expect_refusal(SKIPPED, "no huge pages of 128K; it has");
}

#[test]
fn a_shared_file_excludes_other_backings() {
    let Some(firmware) = firmware_or_skip() else { return };
    let firmware = firmware.to_str().unwrap();
    let share = tempfile::NamedTempFile::new().unwrap();
    let share = share.path().to_str().unwrap();
    run(["run", "--firmware", firmware, "--backing", "thp", "--share", share], false).expect_refusal(2, "--share");
}

#[test]
fn huge_pages_are_not_looked_for_on_the_emulator() {
    let Some(firmware) = firmware_or_skip() else { return };
    let hugepages = ["verify", "hugepages", "--firmware", firmware.to_str().unwrap(), "--accel", "emulator"];
    run(hugepages, false).expect_refusal(SKIPPED, "needs --accel kvm");
    run(hugepages.iter().chain(&["--mode", "live"]), false).expect_refusal(2, "lockstep");
    run(hugepages.iter().chain(&["--dirty-log", "pagemap-scan"]), false).expect_refusal(2, "pagemap-scan");
    let split = ["verify", "--firmware", firmware.to_str().unwrap(), "--accel", "emulator", "--eager-split", "2M"];
    run(split, false).expect_refusal(SKIPPED, "needs --accel kvm");
}
