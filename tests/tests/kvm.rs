//! The KVM tier: hostvmm on a real `/dev/kvm`, in the lab's guest with Debian's 6.12 (docs/lab.md). All tests share one
//! boot. Where QEMU, the kernel or the compiler for the guest is missing they report "skipped: …"; `scripts/test`
//! brings all that first, and then a skip is a failure (`TIDEMARK_REQUIRE_LAB`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;
use tests::lab;

/// The lab's exit status where this machine lacks something.
const UNAVAILABLE: i32 = 126;
/// Guests, with hostvmm's options for each.
const ARCHITECTURES: [(&str, &str); 3] =
    [("a64", ""), ("short", "--arch armv7 --tables short"), ("lpae", "--arch armv7 --tables lpae")];
/// Where the guest has the ARMv7 firmware; there is none if the compiler lacks its target.
const FIRMWARE_ARMV7: &str = "/target/armv7a-none-eabi/release/firmware";
/// Passes of a run, without pass 0.
const PASSES: usize = 4;
/// hostvmm's unit tests that meet KVM; the others need no other host than that of `cargo test`.
const UNIT_TESTS: &str = "backend:: cpustate:: dirty:: machine::state:: migrate::postcopy probe:: vcpus:: memory::";
/// Blocks that `verify cpu` runs for each architecture, from its default seed.
const CPU_BLOCKS: u64 = 4000;
/// The architectures of `verify cpu`.
const CPU_ARCHITECTURES: [&str; 2] = ["aarch64", "armv7"];
/// A small machine for migrations, on huge pages or not.
const SMALL: &str = "--accel kvm --ram 32M --vcpus 2";
/// What its guest writes without end. An AArch32 guest takes no interrupt, so neither sleeps nor has a heartbeat: QEMU's
/// translator loses SPSR_irq where an interrupt's handler traps to EL2 (docs/kvm.md).
const WRITES: &str = "--workload dirtyram:pages=1024,step=32,sleep_ms=5";
const WRITES_ARMV7: &str = "--arch armv7 --heartbeat off --workload dirtyram:pages=1024,step=32";
/// A smaller one for pairs, both of whose guests run on the one CPU.
const PAIR: &str = "--accel kvm --ram 16M --region-size 2M --interval 100";
const PAIR_WRITES: &str = "--workload dirtyram:pages=512,step=16,sleep_ms=1";
const PAIR_WRITES_ARMV7: &str = "--arch armv7 --heartbeat off --workload dirtyram:pages=512,step=16";
/// Checkpoints of a pair.
const CHECKPOINTS: usize = 8;
/// Where a side of a pair is lost, and how.
const LOST: &str = "primary-loaded=kill,secondary-received=stop,primary-requested=cut";
/// A small machine for moves between accelerators. The firmware uses nothing of what KVM shows and the emulator lacks.
const BETWEEN: &str = "--from kvm --to emulator --missing-features name --ram 32M --vcpus 2";
/// A Linux guest of Debian's own kernel, whose program writes and compares 16 MiB (docs/linux-guest.md).
const LINUX: &str = "--accel kvm --ram 128M --vcpus 2 --kernel /linux/Image --initrd /linux/initramfs.cpio \
    --append 'console=ttyAMA0 quiet panic=-1 -- pages=2048 step=64 sleep_ms=5'";
/// Where an AArch32 guest asks to be moved: it takes no interrupt, as above.
const POINTS_ARMV7: &str = "--points mmu-off,table-switch,handler,exclusives,workload";
/// A smaller one that goes to the emulator and back; of the features that KVM cannot hide it uses none.
const LINUX_BETWEEN: &str = "--from kvm --to emulator --cpu baseline --missing-features name --ram 96M \
    --kernel /linux/Image --initrd /linux/initramfs.cpio \
    --append 'console=ttyAMA0 quiet panic=-1 -- pages=512 step=16 sleep_ms=20'";
/// Seconds for everything in the guest: several times what it takes on two idle CPUs.
const TIMEOUT_SECONDS: &str = "900";

/// The files of the one boot; the reason why there was none.
fn boot() -> Result<&'static Path, &'static str> {
    static BOOT: OnceLock<Result<TempDir, String>> = OnceLock::new();
    let boot = BOOT.get_or_init(|| {
        let out = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(lab());
        command.args(["run", "--kernel", "6.12", "--linux", "6.12", "--no-fetch", "--quiet", "--unit-tests"]);
        command.args(["--timeout", TIMEOUT_SECONDS, "--out"]).arg(out.path());
        let output = command.args(["--", "sh", "-c", &script()]).output().expect("the lab starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => Ok(out),
            Some(UNAVAILABLE) => Err(stderr),
            _ => panic!("{}\n{stderr}{}", output.status, String::from_utf8_lossy(&output.stdout)),
        }
    });
    boot.as_ref().map(TempDir::path).map_err(String::as_str)
}

/// The boot's files, or `None` after saying that the test is skipped.
fn boot_or_skip() -> Option<&'static Path> {
    match boot() {
        Ok(out) => Some(out),
        Err(why) if std::env::var_os("TIDEMARK_REQUIRE_LAB").is_none() => {
            println!("skipped: {}", why.trim());
            None
        }
        Err(why) => panic!("the lab was promised and is not there: {why}"),
    }
}

/// A verification with its name: the stem of its files.
fn runs() -> Vec<(String, String)> {
    let mut runs = Vec::new();
    for log in ["bitmap", "manual", "initset", "ring"] {
        for (arch, options) in ARCHITECTURES {
            for vcpus in [1, 4] {
                let name = format!("passes-{log}-{arch}-{vcpus}");
                let options = format!("--dirty-log {log} --vcpus {vcpus} --workload mixed --passes {PASSES} {options}");
                runs.push((name, format!("passes --accel kvm {options}")));
            }
        }
    }
    runs
}

/// Migrations with their names: the stems of their files. `mixed` has guests whose table walker writes the region: on base
/// pages, since QEMU before 8.2 has KVM lose writes beside its own in a block (docs/kvm.md). On blocks other workloads move.
fn migrations() -> Vec<(&'static str, String)> {
    // A machine that is emulated may be slow: what is shown does not depend on it.
    let few = "--settle-ms 100 --downtime-limit 5000";
    let moments = "--at 20,150,source-setup,source-pass-0-end,source-stopped,source-loaded,destination-pages,\
                   destination-verified,destination-committed";
    vec![
        ("migrate-a64", format!("migrate {SMALL} {WRITES} {few}")),
        ("migrate-mixed", format!("migrate {SMALL} --workload mixed --backing memfd --digest deferred {few}")),
        ("migrate-stops", format!("migrate {SMALL} {WRITES} {few} --counter stops")),
        ("migrate-armv7", format!("migrate {SMALL} {WRITES_ARMV7} {few}")),
        (
            "postcopy-a64",
            format!("migrate {SMALL} {WRITES} --settle-ms 100 --downtime-limit 1 --max-bandwidth 8M --postcopy"),
        ),
        ("migrate-linux", format!("migrate {LINUX} {few}")),
        ("chain-a64", format!("chain {SMALL} {WRITES} --hops 3 --downtime-limit 5000")),
        ("chain-armv7", format!("chain {SMALL} {WRITES_ARMV7} --hops 2 --downtime-limit 5000")),
        ("cross-a64", format!("cross {BETWEEN} {WRITES} --moves 2 --downtime-limit 5000")),
        ("cross-armv7", format!("cross {BETWEEN} {WRITES_ARMV7} --moves 2 --downtime-limit 5000")),
        ("cross-points-a64", format!("cross {BETWEEN} {WRITES} --points all --downtime-limit 5000")),
        ("cross-points-armv7", format!("cross {BETWEEN} {WRITES_ARMV7} {POINTS_ARMV7} --downtime-limit 5000")),
        ("cross-linux", format!("cross {LINUX_BETWEEN} --moves 2 --downtime-limit 8000")),
        ("cancel-a64", format!("cancel {SMALL} {WRITES} {moments} --downtime-limit 5000")),
        ("cancel-armv7", format!("cancel {SMALL} {WRITES_ARMV7} --at 20,source-stopped --downtime-limit 5000")),
        (
            "cancel-hugetlb",
            format!("cancel {SMALL} {WRITES} --backing hugetlb:2M --at 20,source-pass-0-end --downtime-limit 5000"),
        ),
        (
            "cancel-thp",
            format!("cancel {SMALL} {WRITES} --backing thp --at 20,source-pass-0-end --downtime-limit 5000"),
        ),
    ]
}

/// COLO pairs with their names.
fn pairs() -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (arch, writes) in [("a64", PAIR_WRITES), ("armv7", PAIR_WRITES_ARMV7)] {
        for vcpus in [1, 4] {
            for lost in ["primary", "secondary"] {
                let options = format!("--vcpus {vcpus} --checkpoints {CHECKPOINTS} --failover {lost}");
                pairs.push((format!("colo-{arch}-{vcpus}-{lost}"), format!("colo {PAIR} {writes} {options}")));
            }
        }
    }
    pairs.push(("colo-kills".to_owned(), format!("colo {PAIR} {PAIR_WRITES} --vcpus 4 --kills {LOST}")));
    pairs
}

/// What the guest runs; each command leaves its output and its exit code.
fn script() -> String {
    let mut script = "test -c /dev/kvm || exit 1\n\
        test -f FIRMWARE_ARMV7 || touch no-armv7\n\
        echo 48 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages\n\
        job() { name=$1; shift; \"$@\" >\"$name.txt\" 2>&1; echo $? >\"$name.code\"; }\n"
        .replace("FIRMWARE_ARMV7", FIRMWARE_ARMV7);
    for (name, arguments) in runs() {
        script += &format!("job {name} timeout -s KILL 120 hostvmm verify {arguments} --json {name}.json\n");
    }
    for (name, arguments) in migrations() {
        script += &format!("job {name} timeout -s KILL 180 hostvmm verify {arguments} --json {name}.json\n");
    }
    for (name, arguments) in pairs() {
        script += &format!("job {name} timeout -s KILL 120 hostvmm verify {arguments} --json {name}.json\n");
    }
    for arch in CPU_ARCHITECTURES {
        let options = format!("--arch {arch} --count {CPU_BLOCKS} --json cpu-{arch}.json");
        script += &format!("job cpu-{arch} timeout -s KILL 300 hostvmm verify cpu {options}\n");
    }
    script + &format!("job unit timeout -s KILL 600 /files/hostvmm-tests --test-threads=2 --show-output {UNIT_TESTS}\n")
}

/// Moves a guest between KVM in a boot of its own and the emulator on this machine: the ledger, or `None` after saying that the test
/// is skipped.
fn cross_or_skip(options: &[&str]) -> Option<Value> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let json = directory.path().join("cross.json");
    let mut command = Command::new(lab());
    command.args(["cross", "--kernel", "6.12", "--no-fetch", "--quiet", "--json"]).arg(&json).arg("--").args(options);
    let output = command.output().expect("the lab starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => Some(serde_json::from_slice(&fs::read(&json).unwrap()).unwrap()),
        Some(UNAVAILABLE) if std::env::var_os("TIDEMARK_REQUIRE_LAB").is_none() => {
            println!("skipped: {}", stderr.trim());
            None
        }
        _ => panic!("{}\n{stderr}{stdout}", output.status),
    }
}

/// The exit code and the output of a job.
fn job(out: &Path, name: &str) -> (i32, String) {
    let read = |suffix: &str| fs::read_to_string(PathBuf::from(out).join(format!("{name}.{suffix}")));
    let code = read("code").unwrap_or_else(|error| panic!("{name} was not run: {error}"));
    (code.trim().parse().expect("an exit code"), read("txt").unwrap_or_default())
}

/// The ledger of `hostvmm verify ARGUMENTS`, which ended as it should; `None`, said on standard output, where there is no
/// firmware for it.
fn ledger(out: &Path, name: &str, arguments: &str) -> Option<Value> {
    if arguments.contains("armv7") && out.join("no-armv7").exists() {
        println!("skipped: {name}: the compiler has no target armv7a-none-eabi");
        return None;
    }
    let (code, output) = job(out, name);
    assert_eq!(code, 0, "{name}:\n{output}");
    let text = fs::read(out.join(format!("{name}.json"))).unwrap();
    let ledger: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!((&ledger["verdict"], &ledger["accelerator"]), (&"pass".into(), &"kvm".into()), "{name}");
    Some(ledger)
}

#[test]
fn passes_are_exact_on_kvm_with_every_log_both_architectures_and_one_and_four_vcpus() {
    let Some(out) = boot_or_skip() else { return };
    for (name, arguments) in runs() {
        let Some(ledger) = ledger(out, &name, &arguments) else { continue };
        assert_eq!(ledger["provenance"], "kvm (nested in emulation)", "{name}");
        let log = ledger["dirty_log"].as_str().unwrap();
        assert!(name.contains(&format!("-{log}-")), "{name}: {log}");
        let passes = ledger["passes"].as_array().unwrap();
        assert_eq!(passes.len(), PASSES + 1, "{name}");
        assert!(passes.iter().skip(1).all(|pass| pass["harvested"].as_u64().unwrap() > 0), "{name}");
    }
}

#[test]
fn guests_move_between_machines_on_kvm_and_cancelled_migrations_leave_no_trace() {
    let Some(out) = boot_or_skip() else { return };
    for (name, arguments) in migrations() {
        let Some(ledger) = ledger(out, name, &arguments) else { continue };
        let migration = &ledger["migration"];
        match name.split_once('-').unwrap().0 {
            "migrate" | "postcopy" => {
                assert_eq!(migration["status"], "completed", "{name}: {migration}");
                let clock = &migration["clock"];
                let is_linux = arguments.contains("--kernel");
                let has_heartbeat = !is_linux && !arguments.contains("--heartbeat off");
                assert!(!has_heartbeat || clock["reconciled"] == true, "{name}: {migration}");
                let moved_late = migration["bytes"]["postcopy"].as_u64().unwrap_or(0) > 0;
                assert_eq!(moved_late, arguments.contains("--postcopy"), "{name}: {migration}");
                let sums = [&ledger["region"]["sum_r_source"], &ledger["region"]["sum_r_dest"]];
                assert!(sums[0].is_u64() && sums[0] == sums[1], "{name}: {sums:?}");
                assert_eq!(ledger["workload"] == "kernel", is_linux, "{name}");
            }
            "chain" | "cross" => {
                let hops = migration["hops"].as_array().unwrap();
                assert!(hops.iter().all(|hop| hop["status"] == "completed"), "{name}: {migration}");
            }
            _ => {
                let cancels = migration["cancels"].as_array().unwrap();
                let whole = |cancel: &Value| cancel["verified"] == true && cancel["logging_off"] == true;
                assert!(cancels.iter().all(whole), "{name}: {migration}");
                assert!(cancels.iter().any(|cancel| cancel["status"] == "cancelled"), "{name}: {migration}");
                // This kernel does not show stage 2, and the ledger says so.
                let huge = arguments.contains("--backing");
                let unseen = |cancel: &Value| {
                    cancel.get("huge_pages").map(|around| around["before"].is_null()) == huge.then_some(true)
                };
                assert!(cancels.iter().all(unseen), "{name}: {migration}");
            }
        }
    }
}

#[test]
fn a_guest_moves_from_kvm_to_the_emulator_on_a_machine_of_another_architecture_and_back() {
    let Some(ledger) = cross_or_skip(&["--moves", "2"]) else { return };
    assert_eq!(ledger["verdict"], "pass");
    let hops = ledger["migration"]["hops"].as_array().unwrap();
    let names: Vec<_> = hops.iter().map(|hop| hop["to"].as_str().unwrap()).collect();
    assert_eq!(names, ["kvm1", "emulator2", "kvm3"]);
    assert!(hops.iter().all(|hop| hop["status"] == "completed"), "{hops:?}");
    // Between the two every register was looked at, and something said of those that differ.
    assert!(hops[1..].iter().all(|hop| !hop["registers"]["notes"].as_array().unwrap().is_empty()), "{hops:?}");
}

#[test]
fn pairs_on_kvm_are_exact_and_either_side_goes_on_alone() {
    let Some(out) = boot_or_skip() else { return };
    for (name, arguments) in pairs() {
        let Some(ledger) = ledger(out, &name, &arguments) else { continue };
        let colo = &ledger["colo"];
        if arguments.contains("--kills") {
            let kills = colo["kills"].as_array().unwrap();
            assert_eq!(kills.len(), LOST.split(',').count(), "{name}: {colo}");
            assert!(kills.iter().all(|kill| kill["verified"] == true), "{name}: {colo}");
        } else {
            let survivor = if name.ends_with("-primary") { "secondary" } else { "primary" };
            assert_eq!((&colo["side"], &colo["phase"]), (&survivor.into(), &"alone".into()), "{name}: {colo}");
            assert!(colo["rounds"].as_array().unwrap().len() >= CHECKPOINTS, "{name}: {colo}");
        }
    }
}

#[test]
fn the_emulators_cpu_and_the_hosts_agree_on_every_block() {
    let Some(out) = boot_or_skip() else { return };
    for arch in CPU_ARCHITECTURES {
        let (code, output) = job(out, &format!("cpu-{arch}"));
        assert_eq!(code, 0, "{output}");
        let text = fs::read(out.join(format!("cpu-{arch}.json"))).unwrap();
        let ledger: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&ledger["verdict"], &ledger["scenario"]), (&"pass".into(), &"cpu".into()));
        let groups = ledger["groups"].as_array().unwrap();
        let blocks: u64 = groups.iter().map(|group| group["blocks"].as_u64().unwrap()).sum();
        assert_eq!(blocks, CPU_BLOCKS, "{arch}");
    }
}

#[test]
fn unit_and_conformance_tests_hold_on_kvm() {
    let Some(out) = boot_or_skip() else { return };
    let (code, output) = job(out, "unit");
    assert_eq!(code, 0, "{output}");
    for suite in ["backend::kvm::tests::", "backend::conformance::", "dirty::conformance::"] {
        assert!(output.contains(suite), "{suite} was not run:\n{output}");
    }
    // scripts/test counts such lines.
    output.lines().filter(|line| line.starts_with("skipped: ")).for_each(|line| println!("{line} (in the lab)"));
}
