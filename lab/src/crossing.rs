//! A guest between two machines: from KVM in the lab to the emulator on this machine, and back.
//!
//! `hostvmm verify cross` runs in the lab's guest and has the VMs of `--to` started outside, where it reaches them, and they the guest
//! that moves, by [`crate::outside`]. What it finds is its own verdict; this is only its command line.

use std::ffi::{OsStr, OsString};

use crate::guest::OUTSIDE;

/// Where the command leaves its ledger.
pub(crate) const LEDGER: &str = "cross.json";
/// Longest that the moves may take; many times what they do.
pub(crate) const SECONDS: u64 = 600;
/// Least memory of the lab's machine: every port has buffers of pages, which on 64K hosts leave too little of 1 GiB.
pub(crate) const MEMORY_MIB: u32 = 2048;
/// What the guest writes. An AArch32 guest takes no interrupt: QEMU's translator loses SPSR_irq (docs/kvm.md).
const WRITES: &str = "dirtyram:pages=1024,step=32,sleep_ms=5";
const WRITES_ARMV7: &str = "dirtyram:pages=1024,step=32";
/// Options that are added where the caller gives no others: a small guest, and time for a machine that is translated.
const DEFAULTS: [[&str; 2]; 5] = [
    ["--missing-features", "name"],
    ["--moves", "4"],
    ["--ram", "32M"],
    ["--vcpus", "2"],
    ["--downtime-limit", "5000"],
];

/// What the guest runs, with the caller's options of `hostvmm verify cross`.
pub(crate) fn command(arguments: &[OsString]) -> Vec<OsString> {
    let via = format!("/{OUTSIDE}");
    let fixed = ["hostvmm", "verify", "cross", "--from", "kvm", "--to", "emulator", "--to-via", &via, "--json", LEDGER];
    let mut command: Vec<OsString> = fixed.map(OsString::from).to_vec();
    command.extend(arguments.iter().cloned());
    let mut default = |option: &str, value: &str| {
        if !gives(arguments, option) {
            command.extend([option, value].map(OsString::from));
        }
    };
    for [option, value] in DEFAULTS {
        // A guest that asks to be moved says itself how often.
        if option != "--moves" || !gives(arguments, "--points") {
            default(option, value);
        }
    }
    if is_armv7(arguments) {
        default("--heartbeat", "off");
        default("--workload", WRITES_ARMV7);
    } else {
        default("--workload", WRITES);
    }
    command
}

/// Whether the option is there, with its value in the same argument or in the next.
fn gives(arguments: &[OsString], option: &str) -> bool {
    arguments.iter().any(|argument| {
        let rest = argument.to_str().and_then(|argument| argument.strip_prefix(option));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

fn is_armv7(arguments: &[OsString]) -> bool {
    let pair = |pair: &[OsString]| pair == [OsStr::new("--arch"), OsStr::new("armv7")];
    arguments.windows(2).any(pair) || arguments.iter().any(|argument| argument == "--arch=armv7")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &[&str]) -> String {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        command(&arguments).join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn options_of_the_caller_take_the_place_of_those_that_are_added() {
        let line = line(&["--moves", "7", "--ram=64M", "--workload", "mixed"]);
        assert!(line.contains("--moves 7") && line.contains("--ram=64M") && line.contains("--vcpus 2"), "{line}");
        assert!(!line.contains("--moves 4") && !line.contains("32M") && !line.contains("dirtyram"), "{line}");
    }

    #[test]
    fn an_armv7_guest_takes_no_interrupts() {
        for arguments in [&["--arch", "armv7"][..], &["--arch=armv7"]] {
            let line = line(arguments);
            assert!(line.contains("--heartbeat off") && line.ends_with(WRITES_ARMV7), "{line}");
        }
        assert!(!line(&[]).contains("--heartbeat") && line(&[]).contains("--moves 4"));
        assert!(!line(&["--points", "all"]).contains("--moves"));
    }
}
