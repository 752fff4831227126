//! What whole-system tests share: the built firmware, the built `hostvmm`, and running it.
//!
//! Both are built by the cargo that runs the tests, once a test program, so a test never sees a stale one. Where the
//! bare-metal target is not installed there is no firmware, and a test reports itself skipped ([`firmware_or_skip`]):
//! `cargo test` works before any set-up, and says what it left out. [`vm`] runs one in the background.

pub mod vm;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// Target triple of the AArch64 firmware.
pub const FIRMWARE_TARGET: &str = "aarch64-unknown-none-softfloat";
/// Target triple of the ARMv7 firmware.
pub const ARMV7_FIRMWARE_TARGET: &str = "armv7a-none-eabi";

type Built = OnceLock<Result<PathBuf, String>>;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests package lies in the workspace")
}

/// Builds `arguments` with cargo and returns the path of the one executable it reports.
fn build(arguments: &[&str]) -> Result<PathBuf, String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["build", "--quiet", "--message-format=json-render-diagnostics"])
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| format!("cargo build {arguments:?} made no executable"))
}

/// The firmware for `target`, built once into `built`; without that target, prints that the test is skipped and returns `None`.
///
/// # Panics
/// If the target is installed and the build fails all the same, or if set-up promised the target
/// (`TIDEMARK_REQUIRE_FIRMWARE` is set, as `scripts/test` does).
fn built_or_skip(built: &'static Built, target: &str) -> Option<&'static Path> {
    match built.get_or_init(|| build(&["--release", "-p", "firmware", "--target", target])) {
        Ok(path) => Some(path),
        Err(why) if std::env::var_os("TIDEMARK_REQUIRE_FIRMWARE").is_none() && why.contains("can't find crate") => {
            println!("skipped: the target {target} is not installed; run ./scripts/setup");
            None
        }
        Err(why) => panic!("the firmware for {target} does not build: {why}"),
    }
}

/// The AArch64 firmware, or `None` and a word that the test is skipped.
///
/// # Panics
/// As a test should where the firmware could be built and cannot.
pub fn firmware_or_skip() -> Option<&'static Path> {
    static FIRMWARE: Built = OnceLock::new();
    built_or_skip(&FIRMWARE, FIRMWARE_TARGET)
}

/// The ARMv7 firmware, likewise.
///
/// # Panics
/// As [`firmware_or_skip`].
pub fn armv7_firmware_or_skip() -> Option<&'static Path> {
    static FIRMWARE: Built = OnceLock::new();
    built_or_skip(&FIRMWARE, ARMV7_FIRMWARE_TARGET)
}

/// The built `hostvmm`.
///
/// # Panics
/// If it does not build.
pub fn hostvmm() -> &'static Path {
    static HOSTVMM: OnceLock<PathBuf> = OnceLock::new();
    HOSTVMM.get_or_init(|| build(&["-p", "hostvmm", "--bin", "hostvmm"]).expect("hostvmm builds"))
}

/// The built `lab`.
///
/// # Panics
/// If it does not build.
pub fn lab() -> &'static Path {
    static LAB: OnceLock<PathBuf> = OnceLock::new();
    LAB.get_or_init(|| build(&["-p", "lab"]).expect("the lab builds"))
}

/// What a run of `hostvmm` left behind.
pub struct Run {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The ledger, where one was written.
    pub ledger: Value,
}

impl Run {
    /// Fails the test with all that the run printed, unless it ended with `status`.
    ///
    /// # Panics
    /// If it ended otherwise.
    #[track_caller]
    pub fn expect_status(&self, status: i32) -> &Self {
        let Self { stdout, stderr, .. } = self;
        assert_eq!(self.status, status, "stdout:\n{stdout}\nstderr:\n{stderr}");
        self
    }

    /// The exit status is `status`, and standard error is one line that holds `word` and tells of no panic.
    ///
    /// # Panics
    /// If it is not so.
    #[track_caller]
    pub fn expect_refusal(&self, status: i32, word: &str) {
        self.expect_status(status);
        let line = self.stderr.trim();
        assert!(!line.is_empty() && !line.contains('\n'), "one line is wanted: {line:?}");
        assert!(line.to_lowercase().contains(&word.to_lowercase()), "{word:?} is missing in {line:?}");
        assert!(!line.contains("panicked"), "{line:?}");
    }
}

/// Runs `hostvmm` with `arguments`, with a ledger asked for where `with_ledger`.
///
/// # Panics
/// If the program cannot be started.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>, with_ledger: bool) -> Run {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let ledger = directory.path().join("ledger.json");
    let mut command = Command::new(hostvmm());
    command.args(arguments);
    if with_ledger {
        command.arg("--json").arg(&ledger);
    }
    let Output { status, stdout, stderr } = command.output().expect("hostvmm starts");
    Run {
        status: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        ledger: std::fs::read(&ledger).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null),
    }
}

/// The run of `verify passes` passed, and its ledger says so in every field that could say otherwise.
#[track_caller]
pub fn expect_exact(run: &Run, passes: usize, lockstep: bool) {
    run.expect_status(0);
    let ledger = &run.ledger;
    assert_eq!(ledger["verdict"], "pass");
    assert_eq!(ledger["region"]["equal"], true);
    assert_eq!(ledger["region"]["sum_r_source"], ledger["region"]["sum_r_dest"]);
    let entries = ledger["passes"].as_array().unwrap();
    assert_eq!(entries.len(), passes + 1);
    for (index, pass) in entries.iter().enumerate() {
        assert_eq!(pass["pass"], index as u64);
        assert_eq!(pass["missing"], 0, "{pass}");
        assert_eq!(pass["extra"], pass["extra_explained"], "{pass}");
        if lockstep || index == passes {
            assert!(pass["digest_model"].is_string(), "{pass}");
            assert_eq!(pass["digest_guest"], pass["digest_model"], "{pass}");
            assert_eq!(pass["digest_copy"], pass["digest_model"], "{pass}");
        }
    }
}

/// Every checkpoint of a pair is exact, judged from the ledger's entry `colo` alone, and so says the side itself.
///
/// # Panics
/// If one is not, or there is none.
#[track_caller]
pub fn expect_exact_checkpoints(colo: &Value) {
    let rounds = colo["rounds"].as_array().expect("the entry has checkpoints");
    assert!(!rounds.is_empty());
    let count = |round: &Value, name: &str| round[name].as_u64().expect("a count");
    for round in rounds {
        let union = count(round, "primary_dirty") + count(round, "secondary_dirty") - count(round, "both_dirty");
        assert_eq!(count(round, "flushed"), union, "{round}");
        let digests = ["digest_primary", "digest_secondary", "digest_cache"].map(|name| &round[name]);
        assert!(digests[0].as_array().is_some_and(|slots| slots.len() == 2), "{round}");
        assert!(digests[0] == digests[1] && digests[0] == digests[2], "{round}");
    }
    assert_eq!(colo["exact"], true);
}
