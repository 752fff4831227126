//! A whole migration driven by QEMU's own QMP client for Python (`tests/qmp/migrate.py`). Where the client is not installed
//! the test reports "skipped: …"; `scripts/test` installs it first, and then a skip is a failure (`TIDEMARK_REQUIRE_QMP`).

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::{armv7_firmware_or_skip, firmware_or_skip, hostvmm};

/// The Python of `scripts/setup --with-qmp`, or `None` after saying that the test is skipped.
fn python_or_skip() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests package lies in the workspace");
    let python = workspace.join(".tidemark/qmp/bin/python");
    if python.exists() {
        return Some(python);
    }
    assert!(std::env::var_os("TIDEMARK_REQUIRE_QMP").is_none(), "{} was promised and is not there", python.display());
    println!("skipped: qemu.qmp is not installed; run ./scripts/setup --with-qmp");
    None
}

#[track_caller]
fn drive(firmware: &Path, options: &[&str]) {
    let Some(python) = python_or_skip() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("qmp/migrate.py");
    let mut command = Command::new(python);
    command.arg(script).arg(hostvmm()).arg(firmware).args(["--accel", "emulator", "--ram", "32M"]).args(options);
    let output = command.output().expect("Python starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "stdout:\n{}\nstderr:\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("verified at the destination"), "{}", text(&output.stdout));
}

#[test]
fn qemus_own_client_drives_a_whole_migration() {
    let Some(firmware) = firmware_or_skip() else { return };
    drive(firmware, &["--workload", "dirtyram:pages=2048,step=64,sleep_ms=1"]);
}

#[test]
fn qemus_own_client_drives_a_migration_of_an_armv7_guest() {
    let Some(firmware) = armv7_firmware_or_skip() else { return };
    drive(firmware, &["--workload", "dirtyram:pages=2048,step=64,sleep_ms=1", "--arch", "armv7"]);
}
