//! Bad input: each gives one clear line and the right exit status, never a panic.

use std::fs;
use std::path::Path;

use tests::{Run, firmware_or_skip, run};

/// Runs `verify passes` with `arguments` on an empty file as firmware, which no check here gets as far as reading.
fn verify(arguments: &[&str]) -> Run {
    let directory = tempfile::tempdir().unwrap();
    let firmware = directory.path().join("firmware");
    fs::write(&firmware, "not an ELF file").unwrap();
    let firmware = firmware.to_str().unwrap();
    run(["verify", "passes", "--firmware", firmware].iter().chain(arguments), false)
}

fn verify_elf(contents: &[u8], word: &str) {
    let directory = tempfile::tempdir().unwrap();
    let firmware = directory.path().join("firmware");
    fs::write(&firmware, contents).unwrap();
    run(["verify", "passes", "--firmware", firmware.to_str().unwrap()], false).expect_refusal(2, word);
}

#[test]
fn unknown_subcommands_scenarios_and_options_are_usage_errors() {
    run(["frobnicate"], false).expect_refusal(2, "frobnicate");
    run(["verify", "frobnicate"], false).expect_refusal(2, "frobnicate");
    run(["verify", "--frobnicate"], false).expect_refusal(2, "--frobnicate");
}

#[test]
fn help_is_no_error_and_shows_an_example() {
    for command in ["probe", "run", "verify", "replicate", "report"] {
        let help = run([command, "--help"], false);
        help.expect_status(0);
        assert!(help.stdout.contains(&format!("hostvmm {command}")), "{}", help.stdout);
        assert!(help.stdout.contains("Example"), "{}", help.stdout);
    }
}

#[test]
fn a_firmware_that_is_none_is_refused() {
    run(["verify", "--firmware", "/nonexistent/elf"], false).expect_refusal(2, "/nonexistent/elf");
    run(["verify", "--firmware", "/"], false).expect_refusal(2, "not a regular file");
    verify_elf(b"", "ELF");
    verify_elf(b"hello, this is not an ELF file, but it is longer than a header would be: 64 bytes", "ELF");
}

#[test]
fn a_kernel_that_is_none_and_what_only_the_firmware_does_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, contents: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, contents).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let none = file("none", b"no kernel at all, but as long as the header of one would be, and longer");
    // Like a header in all but its size: 1 GiB of memory, and 256 MiB of RAM.
    let mut huge = [0_u8; 64];
    huge[16..20].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    huge[56..60].copy_from_slice(b"ARM\x64");
    let (huge, packed) = (file("huge", &huge), file("packed", b"\x1f\x8b and then no gzip"));
    for (kernel, word) in [
        ("/nonexistent/Image", "/nonexistent/Image"),
        ("/", "regular file"),
        (&none, "magic number"),
        (&huge, "--ram"),
        (&packed, "packed"),
    ] {
        run(["run", "--accel", "emulator", "--kernel", kernel], false).expect_refusal(2, word);
    }
    run(["run", "--initrd", &none], false).expect_refusal(2, "--kernel");
    run(["run", "--kernel", &none, "--append", &"x".repeat(2048)], false).expect_refusal(2, "--append");
    for more in [
        &["--workload", "mixed"][..],
        &["--heartbeat", "timer"],
        &["--clock", "icount"],
        &["--arch", "armv7"],
        &["--track-dirty"],
        &["--verify-guest"],
        &["--firmware", "elf"],
    ] {
        run(["run", "--kernel", &none].iter().chain(more), false).expect_refusal(2, more[0]);
    }
    run(["verify", "passes", "--kernel", &none], false).expect_refusal(2, "verify passes");
    run(["verify", "chain", "--kernel", &none], false).expect_refusal(2, "verify chain");
}

#[test]
fn a_truncated_or_foreign_elf_is_refused() {
    let host = fs::read(std::env::current_exe().unwrap()).unwrap();
    if cfg!(target_arch = "x86_64") {
        verify_elf(&host[..4096.min(host.len())], "AArch64");
    }
    let Some(firmware) = firmware_or_skip() else { return };
    let whole = fs::read(firmware).unwrap();
    for len in [1, 4, 16, 63, 64, 100, 200, 5000] {
        let run = {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("cut");
            fs::write(&path, &whole[..len]).unwrap();
            run(["verify", "--firmware", path.to_str().unwrap()], false)
        };
        run.expect_refusal(2, "firmware");
    }
}

#[test]
fn sizes_that_are_none_are_refused() {
    verify(&["--ram", "0"]).expect_refusal(2, "RAM");
    verify(&["--ram", "15M"]).expect_refusal(2, "16 MiB");
    verify(&["--ram", "16777217"]).expect_refusal(2, "16777217");
    verify(&["--ram", "-1"]).expect_refusal(2, "--ram");
    verify(&["--ram", "99999999999G"]).expect_refusal(2, "--ram");
    verify(&["--ram", "16000000G"]).expect_refusal(2, "RAM");
    verify(&["--ram", "lots"]).expect_refusal(2, "lots");
    verify(&["--region-size", "0"]).expect_refusal(2, "region");
    verify(&["--region-size", "4097"]).expect_refusal(2, "4097");
    verify(&["--region-size", "16000000G"]).expect_refusal(2, "region");
}

#[test]
fn a_region_over_something_else_is_refused() {
    verify(&["--region-base", "0x40000000"]).expect_refusal(2, "RAM");
    verify(&["--region-base", "0x08000000"]).expect_refusal(2, "GIC");
    verify(&["--region-base", "0x09000000"]).expect_refusal(2, "PL011");
    verify(&["--region-base", "0xfffffffffffff000"]).expect_refusal(2, "region");
    verify(&["--region-base", "0x20000001"]).expect_refusal(2, "0x20000001");
    verify(&["--region-base", "here"]).expect_refusal(2, "here");
}

#[test]
fn translation_regimes_that_the_architecture_lacks_are_refused() {
    for (granule, bits) in [("4k", "42"), ("4k", "47"), ("16k", "39"), ("64k", "39"), ("64k", "36"), ("16k", "0")] {
        verify(&["--granule", granule, "--va-bits", bits]).expect_refusal(2, bits);
    }
    verify(&["--granule", "8k"]).expect_refusal(2, "8k");
}

#[test]
fn workloads_that_are_none_or_do_not_fit_are_refused() {
    verify(&["--workload", "frobnicate"]).expect_refusal(2, "frobnicate");
    verify(&["--workload", ""]).expect_refusal(2, "--workload");
    verify(&["--workload", "dirtyram:colour=red"]).expect_refusal(2, "colour");
    verify(&["--workload", "dirtyram:pages="]).expect_refusal(2, "pages");
    verify(&["--workload", "dirtyram:pages=0"]).expect_refusal(2, "pages");
    verify(&["--workload", "dirtyram:pages=10,pages=10"]).expect_refusal(2, "pages");
    verify(&["--workload", "dirtyram:pages=99999999999999999999999"]).expect_refusal(2, "pages");
    verify(&["--workload", "dirtyram:pages=409600"]).expect_refusal(2, "region");
    verify(&["--workload", "dirtyram:pages=10,step=11"]).expect_refusal(2, "step");
}

#[test]
fn numbers_of_vcpus_that_no_machine_has_are_refused() {
    for vcpus in ["0", "9", "1000000", "-1", "two"] {
        verify(&["--vcpus", vcpus]).expect_refusal(2, "vcpus");
    }
}

#[test]
fn what_this_host_lacks_is_skipped_with_a_reason() {
    if !Path::new("/dev/kvm").exists() || !cfg!(target_arch = "aarch64") {
        verify(&["--accel", "kvm"]).expect_refusal(4, "kvm");
    }
    verify(&["--accel", "emulator", "--dirty-log", "ring"]).expect_refusal(4, "ring");
}

#[test]
fn armv7_guests_are_told_what_they_lack() {
    for pattern in ["lse", "dczva", "tablewalk"] {
        verify(&["--arch", "armv7", "--workload", pattern]).expect_refusal(2, "exclusive, code, shared");
    }
    for (option, value, word) in [
        ("--granule", "16k", "short with 4k or 64k"),
        ("--va-bits", "48", "32 VA bits"),
        ("--ram", "4G", "below 4 GiB"),
        ("--region-base", "0xffff0000", "below 4 GiB"),
        ("--workload", "mixed:runs=12", "not in 1 to 11"),
    ] {
        verify(&["--arch", "armv7", option, value]).expect_refusal(2, word);
    }
    verify(&["--tables", "lpae", "--granule", "64k"]).expect_refusal(2, "lpae with 4k");
    verify(&["--tables", "short", "--arch", "aarch64"]).expect_refusal(2, "--tables");
}

#[test]
fn an_architecture_that_contradicts_the_firmware_is_refused() {
    let Some(firmware) = firmware_or_skip() else { return };
    let firmware = firmware.to_str().unwrap();
    run(["verify", "--arch", "armv7", "--firmware", firmware], false).expect_refusal(2, "is for aarch64");
    run(["verify", "--tables", "lpae", "--firmware", firmware], false).expect_refusal(2, "this one is aarch64");
}

#[test]
fn backing_files_of_the_wrong_kind_or_size_are_refused() {
    let Some(firmware) = firmware_or_skip() else { return };
    let firmware = firmware.to_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, len: u64| {
        let path = directory.path().join(name);
        fs::File::create(&path).unwrap().set_len(len).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let short = file("short", 4096);
    let right = file("right", 8 << 20);
    let base = ["verify", "--firmware", firmware, "--workload", "stream:pages=64", "--passes", "1"];
    let refused = |option: &str, value: &str, word: &str| {
        run(base.iter().chain(&[option, value]), false).expect_refusal(2, word);
    };
    refused("--share", &short, "short");
    refused("--share", "/nonexistent/share", "/nonexistent/share");
    refused("--share", directory.path().to_str().unwrap(), "not a regular file");
    refused("--dest", &short, "short");
    refused("--dest", "/dev/full", "/dev/full");
    refused("--dest", "/nonexistent/dest", "/nonexistent/dest");
    refused("--dest", directory.path().to_str().unwrap(), directory.path().to_str().unwrap());
    run(base.iter().chain(&["--share", right.as_str(), "--dest", right.as_str()]), false).expect_refusal(2, "right");
}

#[test]
fn places_that_a_ledger_or_report_cannot_go_to_are_refused_before_the_run() {
    verify(&["--json", "/nonexistent/ledger.json"]).expect_refusal(2, "/nonexistent/ledger.json");
    verify(&["--json", "/"]).expect_refusal(2, "ledger");
    verify(&["--report", "/dev/null"]).expect_refusal(2, "/dev/null");
    run(["probe", "--json", "/nonexistent/probe.json"], false).expect_refusal(2, "/nonexistent/probe.json");
}

#[test]
fn numbers_of_passes_that_nobody_lives_to_see_are_refused() {
    verify(&["--passes", "18446744073709551615"]).expect_refusal(2, "passes");
}
