//! The whole lab: boots Debian's kernel with `/dev/kvm` and runs hostvmm in it. Where QEMU, the kernel or the programs
//! for the guest are missing this reports "skipped: …", since fetching and cross-building take minutes; one
//! `scripts/lab run -- hostvmm probe` brings them.

use std::process::{Command, Output};

const UNAVAILABLE: i32 = 126;

/// Runs `script` in the guest; none if this machine has no lab.
fn guest(script: &str, timeout: &str, out: &std::path::Path) -> Option<Output> {
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
    lab.args(["run", "--no-build", "--quiet", "--timeout", timeout, "--out"]).arg(out).args(["--", "sh", "-c", script]);
    let output = lab.output().unwrap();
    if output.status.code() == Some(UNAVAILABLE) {
        print!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(output)
}

#[test]
fn hostvmm_runs_beside_a_real_kvm_and_its_exit_code_output_and_files_come_back() {
    let out = tempfile::tempdir().unwrap();
    let script = "test -c /dev/kvm || exit 9; hostvmm probe || exit; echo no >&2; echo text > kept; exit 3";
    let Some(output) = guest(script, "200", out.path()) else { return };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{stdout}{stderr}");
    assert!(stdout.starts_with("host: aarch64, Linux 6.12"), "{stdout}");
    assert_eq!(stderr, "no\n");
    assert_eq!(std::fs::read_to_string(out.path().join("kept")).unwrap(), "text\n");
}

#[test]
fn a_panic_fails_and_a_guest_that_hangs_is_ended() {
    let out = tempfile::tempdir().unwrap();
    let Some(output) = guest("echo c > /proc/sysrq-trigger", "200", out.path()) else { return };
    assert_eq!(output.status.code(), Some(125));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("Kernel panic"), "{stderr}");

    let Some(output) = guest("sleep 1000", "1", out.path()) else { return };
    assert_eq!(output.status.code(), Some(125));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("did not end within 1 s"), "{stderr}");
}
