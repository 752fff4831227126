//! One migration, measured: [`Migration`]. And a guest that is moved again and again ([`chain`]).

use std::fmt;
use std::hint::black_box;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Instant;

use hostvmm::control::ClientError;
use serde_json::Value;

use crate::guest::Guest;
use crate::vmm::{Kind, Program, Vm, Way};

/// Seconds of the guest's clock that it dirties at its full rate before it is moved.
const SETTLED_S: u64 = 2;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// QEMU is missing.
    #[error("cannot run {}: {source}", program.display())]
    NoQemu {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No place for sockets.
    #[error("cannot make a directory: {0}")]
    Directory(#[source] io::Error),
    /// A VMM does not start.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A VMM cannot be waited for.
    #[error("cannot wait for a VM: {0}")]
    Wait(#[source] io::Error),
    /// hostvmm wrote no devicetree for QEMU.
    #[error("hostvmm run --dump-dtb ended with {status}")]
    Devicetree {
        /// How.
        status: ExitStatus,
    },
    /// A VMM does not answer.
    #[error("{source} (it said: {said})")]
    Qmp {
        /// What it printed.
        said: String,
        /// Why.
        source: ClientError,
    },
    /// The guest's clock stands still.
    #[error("{kind}'s guest has not printed second {second} of its clock; the last line was {last:?}")]
    Silent {
        /// Whose.
        kind: Kind,
        /// The second waited for.
        second: u64,
        /// What was printed last.
        last: String,
    },
    /// A migration did not complete.
    #[error("{kind}'s migration did not complete: {info}")]
    Failed {
        /// Whose.
        kind: Kind,
        /// As `query-migrate` says it.
        info: Value,
    },
    /// There is no outlet for a pair.
    #[error("cannot open an outlet: {0}")]
    Outlet(String),
    /// A pair ended, or says what cannot be read.
    #[error("the pair is over: {0}")]
    Pair(String),
    /// Something did not come.
    #[error("waited in vain for {what}")]
    Vain {
        /// What.
        what: &'static str,
    },
    /// The file for the figures cannot be written.
    #[error("cannot write the figures as JSON: {0}")]
    Json(#[source] io::Error),
    /// hostvmm found something wrong in the end.
    #[error("hostvmm ended with {status}: {said}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// What it printed.
        said: String,
    },
}

/// What a migration took.
#[derive(Clone, Debug)]
pub(crate) struct Migration {
    /// Of which VMM.
    pub(crate) kind: Kind,
    /// How.
    pub(crate) way: Way,
    /// From the command to the end, in ms, as `query-migrate` says.
    pub(crate) total_ms: f64,
    /// The guest ran nowhere, in ms, likewise; hostvmm's to the microsecond.
    pub(crate) downtime_ms: f64,
    /// Bytes sent.
    pub(crate) bytes: u64,
    /// Harvests of the dirty log.
    pub(crate) syncs: u64,
    /// The larger of both processes' peaks of memory beyond the guest's, in bytes.
    pub(crate) overhead_bytes: u64,
    /// What downtime and passes consisted of, where the VMM tells.
    pub(crate) parts: Option<String>,
}

impl Migration {
    /// Starts two VMs of `program`, lets `guest` dirty its memory, moves it, and sees it go on.
    ///
    /// # Errors
    /// [`BenchError`].
    pub(crate) fn measure(program: &Program, guest: &Guest, way: Way, files: &Path) -> Result<Self, BenchError> {
        let socket = files.join("migration");
        let mut source = Vm::start(program, guest, None, "source", files)?;
        source.wait_clock(SETTLED_S)?;
        let destination = Vm::start(program, guest, Some((way, &socket)), "destination", files)?;
        warm(2 * (guest.memory_mib() << 20));
        let info = source.migrate(way, &socket)?;
        destination.wait_clock(SETTLED_S + 1)?;
        let overhead_bytes = source.overhead_bytes().max(destination.overhead_bytes());
        destination.quit()?;
        source.quit()?;
        // QEMU leaves its socket behind.
        let _may_be_gone = std::fs::remove_file(&socket);
        let number = |pointer: &str| info.pointer(pointer).and_then(Value::as_f64).unwrap_or_default();
        let exact_ns = number("/x-downtime/total-ns");
        Ok(Self {
            kind: program.kind,
            way,
            total_ms: number("/total-time"),
            downtime_ms: if exact_ns > 0.0 { exact_ns / 1e6 } else { number("/downtime") },
            bytes: number("/ram/transferred") as u64,
            syncs: number("/ram/dirty-sync-count") as u64,
            overhead_bytes,
            parts: parts(&info),
        })
    }
}

/// The parts of the downtime in ms, and the pages of each pass, of hostvmm's reply to `query-migrate`.
fn parts(info: &Value) -> Option<String> {
    let ms =
        |name: &str| Some(format!("{} {:.1}", name.trim_end_matches("-ns"), info["x-downtime"][name].as_f64()? / 1e6));
    let names = ["final-pass-ns", "state-ns", "transfer-ns", "load-ns", "digest-ns", "verify-ns", "resume-ns"].map(ms);
    let names: Option<Vec<String>> = names.into_iter().collect();
    let passes: Vec<String> = info["x-passes"].as_array()?.iter().map(|pass| pass["pages"].to_string()).collect();
    Some(format!("downtime in ms: {}; pages by pass: {}", names?.join(", "), passes.join(", ")))
}

/// Touches and frees twice as much of this machine's memory as the destination will fill. A machine that is virtual itself gives free
/// memory back to its host after seconds (free page reporting) and waits for each page that it touches again: whoever is
/// measured after an idle moment would pay for that.
fn warm(bytes: u64) {
    drop(black_box(vec![1_u8; usize::try_from(bytes).expect("a guest's memory fits in memory")]));
}

impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, way, total_ms, downtime_ms, bytes, syncs, overhead_bytes, parts: _ } = self;
        write!(
            f,
            "{kind:<8} {:<24} total {total_ms:>7.0} ms, downtime {downtime_ms:>7.2} ms, {:>5} MiB, {syncs} syncs, {} MiB beside the guest",
            way.name(),
            bytes >> 20,
            overhead_bytes >> 20,
        )
    }
}

/// What a guest that was moved again and again came to.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// Migrations asked for.
    pub(crate) hops: usize,
    /// Migrations completed.
    pub(crate) completed: usize,
    /// Checks that failed.
    pub(crate) mismatches: usize,
    /// How the run ended: `pass` is what it should be.
    pub(crate) verdict: String,
    /// How long all took, in s.
    pub(crate) seconds: f64,
}

/// Moves a small guest `hops` times; every memory is compared at every hop, and the dirty history in the end.
///
/// # Errors
/// [`BenchError::Start`]; what went wrong with a migration is in the result.
pub(crate) fn chain(program: &Program, hops: usize, files: &Path) -> Result<Chain, BenchError> {
    let path = files.join("chain.json");
    let began = Instant::now();
    let mut command = program.hostvmm_command(&["verify", "chain"], Guest::SMALL.options());
    command.args(["--hops", &hops.to_string(), "--heartbeat", "off", "--json"]).arg(&path);
    let output = command.output().map_err(|source| BenchError::Start { program: "hostvmm".into(), source })?;
    let ledger: Value =
        std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let entries = ledger.pointer("/migration/hops").and_then(Value::as_array).cloned().unwrap_or_default();
    let verdict = ledger["verdict"].as_str().map_or_else(
        || String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        |verdict| format!("{verdict}{}", ledger["reason"].as_str().map(|why| format!(": {why}")).unwrap_or_default()),
    );
    Ok(Chain {
        hops,
        completed: entries.iter().filter(|hop| hop["status"] == "completed").count(),
        mismatches: ledger["mismatches"].as_array().map_or(0, Vec::len),
        verdict,
        seconds: began.elapsed().as_secs_f64(),
    })
}
