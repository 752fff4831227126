//! The whole lab: boots Debian's kernel with `/dev/kvm` and runs hostvmm in it. Where QEMU, the kernel or the programs
//! for the guest are missing this reports "skipped: …", since fetching and cross-building take minutes; one
//! `scripts/lab prepare` brings them. `scripts/test` does that first, and then a skip is a failure
//! (`TIDEMARK_REQUIRE_LAB`).

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const UNAVAILABLE: i32 = 126;
/// The lab failed, whatever the command would have said.
const FAILED: i32 = 125;

/// What the lab prints, for a guest that runs `script` with `options`; none if this machine has no lab.
fn lab(options: &[&str], script: &str) -> Option<Output> {
    let mut lab = Command::new(env!("CARGO_BIN_EXE_lab"));
    lab.args(["run", "--no-build", "--quiet"]).args(options).args(["--", "sh", "-c", script]);
    let output = lab.output().unwrap();
    if output.status.code() == Some(UNAVAILABLE) {
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(std::env::var_os("TIDEMARK_REQUIRE_LAB").is_none(), "the lab was promised and is not there: {why}");
        println!("skipped: {}", why.trim());
        return None;
    }
    Some(output)
}

/// The lab fails within `timeout` seconds and a boot's time, and says `word`.
fn expect_failure(timeout: &str, script: &str, word: &str) {
    let Some(output) = lab(&["--timeout", timeout], script) else { return };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(FAILED), "{stderr}");
    assert!(stderr.contains(word), "{word:?} is missing in {stderr}");
}

#[test]
fn hostvmm_runs_beside_a_real_kvm_and_its_exit_code_output_and_files_come_back() {
    let out = tempfile::tempdir().unwrap();
    let script = "test -c /dev/kvm || exit 9; hostvmm probe || exit; echo no >&2; echo text > kept; exit 3";
    let Some(output) = lab(&["--timeout", "200", "--out", out.path().to_str().unwrap()], script) else { return };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{stdout}{stderr}");
    assert!(stdout.starts_with("host: aarch64, Linux 6.12"), "{stdout}");
    assert_eq!(stderr, "no\n");
    assert_eq!(std::fs::read_to_string(out.path().join("kept")).unwrap(), "text\n");
}

#[test]
fn a_panic_is_a_failure() {
    expect_failure("200", "echo c > /proc/sysrq-trigger; sleep 100", "Kernel panic");
}

#[test]
fn a_guest_that_hangs_is_ended() {
    expect_failure("1", "sleep 1000", "did not end within 1 s");
}

#[test]
fn power_off_before_the_command_has_ended_is_a_failure() {
    expect_failure("200", "echo o > /proc/sysrq-trigger; sleep 100", "no end marker");
}

#[test]
fn an_end_marker_that_is_not_the_labs_is_a_failure() {
    let script = "echo 'lab-init: the end' > /dev/console; echo o > /proc/sysrq-trigger; sleep 100";
    expect_failure("200", script, "breaks off");
}

#[test]
fn a_signal_to_the_guests_first_program_changes_nothing() {
    let Some(output) = lab(&["--timeout", "200"], "kill -9 1; kill -15 1; exit 5") else { return };
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_kernel_that_is_none_is_refused_before_anything_else_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("Image");
    std::fs::write(&garbage, [0xa5; 4096]).unwrap();
    for (path, word) in [(garbage.as_path(), "no arm64 Image"), (Path::new("/nonexistent/Image"), "No such file")] {
        // Without QEMU that is said first.
        let Some(output) = lab(&["--kernel", path.to_str().unwrap()], "true") else { return };
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(word) && stderr.contains("--kernel"), "{stderr}");
    }
}

#[test]
fn the_shell_takes_commands_on_a_terminal_and_ends() {
    // Says whether there is a lab at all.
    if lab(&["--timeout", "200"], "true").is_none() {
        return;
    }
    // script(1) is the terminal, timeout(1) the bound.
    let mut shell = Command::new("timeout")
        .args(["--signal=KILL", "200", "script", "--quiet", "--return", "--command"])
        .arg(format!("{} shell --no-build --quiet", env!("CARGO_BIN_EXE_lab")))
        .arg("/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keyboard, mut screen) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
    let mut shown = String::new();
    let mut expect = |text: &str| {
        let mut bytes = [0; 1024];
        while !shown.contains(text) {
            let len = screen.read(&mut bytes).unwrap();
            assert_ne!(len, 0, "the shell ended before {text:?}: {shown}");
            shown += &String::from_utf8_lossy(&bytes[..len]);
        }
    };
    expect("/out # ");
    keyboard.write_all(b"hostvmm --version && test -t 0 && echo terminal $((6 * 7))\n").unwrap();
    expect("terminal 42");
    keyboard.write_all(b"exit\n").unwrap();
    let mut rest = String::new();
    screen.read_to_string(&mut rest).unwrap();
    assert!(shell.wait().unwrap().success(), "{shown}{rest}");
}
