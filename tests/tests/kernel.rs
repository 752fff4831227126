//! A kernel in the firmware's place, on any machine: one of a few instructions, which prints what Linux's program prints
//! (docs/linux-guest.md). Linux itself is in the KVM tier.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;
use tests::{Run, run};

/// PSCI (DEN 0022 5): what turns the machine off, and what resets it.
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;

/// The instructions behind the header: print the counter's upper bits as a number of steps, call PSCI if there is a call to make,
/// else wait until the counter's bit 20 changes, and begin anew.
#[rustfmt::skip]
const CODE: [u32; 33] = [
    0xd2a12009, // mov x9, #0x9000000
    0x1000052b, // adr x11, scratch
    0x10000401, // again: adr x1, before
    0x94000019, // bl print
    0xd53be042, // mrs x2, cntvct_el0
    0xd350fc42, // lsr x2, x2, #16
    0xd2800143, // mov x3, #0xa
    0x91007d61, // add x1, x11, #0x1f
    0x3900003f, // strb wzr, [x1]
    0x9ac30844, // digit: udiv x4, x2, x3
    0x9b038885, // msub x5, x4, x3, x2
    0x1100c0a5, // add w5, w5, #0x30
    0x381ffc25, // strb w5, [x1, #-1]!
    0xaa0403e2, // mov x2, x4
    0xb5ffff62, // cbnz x2, digit
    0x9400000d, // bl print
    0x70000281, // adr x1, after
    0x9400000b, // bl print
    0x180001e0, // ldr w0, call
    0x34000040, // cbz w0, wait
    0xd4000002, // hvc #0x0
    0xd53be042, // wait: mrs x2, cntvct_el0
    0xd354fc42, // lsr x2, x2, #20
    0xd53be043, // turn: mrs x3, cntvct_el0
    0xd354fc63, // lsr x3, x3, #20
    0xeb03005f, // cmp x2, x3
    0x54ffffa0, // b.eq turn
    0x17ffffe7, // b again
    0x38401422, // print: ldrb w2, [x1], #1
    0x34000062, // cbz w2, done
    0xb9000122, // str w2, [x9]
    0x17fffffd, // b print
    0xd65f03c0, // done: ret
];
/// Where the words and texts behind the code are: `call`, `before`, `after`, and 32 bytes to make a number in.
const CALL: usize = 0xc4;
const BEFORE: usize = 0xc8;
const AFTER: usize = 0xd3;
const IMAGE_BYTES: usize = 0x108;

/// An Image that calls PSCI's `call` after its first line, or with 0 goes on; it says that so many pages are wrong, of one digit.
fn image(directory: &TempDir, call: u32, wrong: u8) -> PathBuf {
    let mut bytes = vec![0; IMAGE_BYTES];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    // b 0x40; image_size; flags: 4K pages, anywhere; magic.
    put(0, &0x1400_0010_u32.to_le_bytes());
    put(16, &0x1_0000_u64.to_le_bytes());
    put(24, &0xa_u64.to_le_bytes());
    put(56, b"ARM\x64");
    for (at, word) in (0x40..).step_by(4).zip(CODE) {
        put(at, &word.to_le_bytes());
    }
    put(CALL, &call.to_le_bytes());
    put(BEFORE, b"dirtyram: \0");
    put(AFTER, format!(" steps, {wrong} wrong\n\0").as_bytes());
    let path = directory.path().join("Image");
    fs::write(&path, bytes).unwrap();
    path
}

/// Runs hostvmm with `command`, the kernel and a small machine on the emulator.
fn run_kernel(command: &str, call: u32, wrong: u8) -> Run {
    let directory = tempfile::tempdir().unwrap();
    let image = image(&directory, call, wrong);
    let options = ["--kernel", image.to_str().unwrap(), "--ram", "16M"];
    run(command.split_whitespace().chain(options), true)
}

#[test]
fn a_kernel_that_turns_the_machine_off_has_ended_well_and_one_that_resets_it_has_not() {
    let off = run_kernel("run --accel emulator", SYSTEM_OFF, 0);
    off.expect_status(0);
    assert!(off.stderr.contains("guest: dirtyram: ") && off.stderr.contains(" steps, 0 wrong"), "{}", off.stderr);
    assert!(off.stdout.contains("turned the machine off"), "{}", off.stdout);
    let reset = run_kernel("run --accel emulator", SYSTEM_RESET, 0);
    reset.expect_status(1);
    assert!(reset.stdout.contains("reset the machine"), "{}", reset.stdout);
}

#[test]
fn a_kernel_moves_and_all_of_its_memory_is_compared() {
    for command in [
        "verify migrate --accel emulator --settle-ms 20 --downtime-limit 5000",
        "verify cross --from emulator --to emulator --moves 1 --downtime-limit 5000",
    ] {
        let moved = run_kernel(command, 0, 0);
        moved.expect_status(0);
        let region = &moved.ledger["region"];
        assert_eq!(
            (&moved.ledger["workload"], &region["size"]),
            (&"kernel".into(), &Value::from(16 << 20)),
            "{command}"
        );
        let sums = [&region["sum_r_source"], &region["sum_r_dest"]];
        assert!(sums[0].is_u64() && sums[0] == sums[1], "{command}: {sums:?}");
    }
}

#[test]
fn a_kernel_that_finds_its_memory_wrong_fails_the_migration() {
    let moved = run_kernel("verify migrate --accel emulator --settle-ms 20 --downtime-limit 5000", 0, 3);
    moved.expect_status(1);
    let mismatches = moved.ledger["mismatches"].as_array().unwrap();
    let told = |mismatch: &Value| mismatch["check"] == "guest" && mismatch["found"] == "3 pages wrong";
    assert!(!mismatches.is_empty() && mismatches.iter().all(told), "{mismatches:?}");
}
