//! The JSON ledger: everything a run measured and decided, under stable names.
//!
//! Field names and their meaning are a contract with outside checkers (docs/ledger.md); a change of meaning is a new
//! [`SCHEMA`]. Digests are hexadecimal strings, since a JSON number cannot carry 64 bits everywhere.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::heartbeat::HeartbeatEntry;

mod colo;
mod migration;
mod query;

pub use colo::{CheckpointEntry, ColoEntry, ColoOutputEntry};

pub use migration::{
    BytesEntry, CancelEntry, CounterEntry, DowntimeEntry, EstimateEntry, GapBucket, GapsEntry, GuestClockEntry,
    HopEntry, HugePagesAround, KillEntry, MigrationEntry, RegistersEntry, RoundEntry, SlotDigestsEntry, ThrottleEntry,
};

/// The tables that there were when ledgers did not name them.
fn only_tables() -> String {
    "v8".to_owned()
}

/// Value of the field `schema`.
pub const SCHEMA: &str = "tidemark-ledger/1";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every check that was asked for was made and held.
    Pass,
    /// A check failed, or the run ended before all checks were made.
    Fail,
    /// The host lacks what was asked for; nothing was proven.
    Skip,
}

impl Verdict {
    /// The exit status that goes with the verdict, as the kernel's selftests number them.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::Skip => 4,
        }
    }

    /// The verdict of two runs taken together: the worse one, where a failure is worst and a pass outweighs a skip.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Fail, _) | (_, Self::Fail) => Self::Fail,
            (Self::Pass, _) | (_, Self::Pass) => Self::Pass,
            (Self::Skip, Self::Skip) => Self::Skip,
        }
    }

    /// The verdict's name as the ledger spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

/// One run of one scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ledger {
    /// [`SCHEMA`].
    pub schema: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it did not pass; absent where it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Name of the scenario: `run`, `passes`, `matrix`, `faults`, `hugepages`, `cpu`, `migrate`, `cancel`, `chain`,
    /// `colo`.
    pub scenario: String,
    /// `emulator` or `kvm`.
    pub accelerator: String,
    /// Where the numbers were taken: `emulator`, `kvm`, `kvm (nested in emulation)`.
    pub provenance: String,
    /// `aarch64` or `armv7`.
    pub arch: String,
    /// The guest's stage-1 page size: `4k`, `16k` or `64k`.
    pub granule: String,
    /// Virtual address bits of the guest.
    pub va_bits: u32,
    /// Format of the guest's translation tables: `v8`, or on ARMv7 `short` or `lpae`. Ledgers written before there was a
    /// choice have none.
    #[serde(default = "only_tables")]
    pub tables: String,
    /// Bytes that one dirty bit stands for.
    pub host_page: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Dirty log, or several joined by commas.
    pub dirty_log: String,
    /// What memory is mapped on: `memfd`, `anon`, `thp`, `hugetlb`, `hugetlb:SIZE`.
    #[serde(default)]
    pub backing: String,
    /// The workload with all its parameters.
    pub workload: String,
    /// Seed of the plan.
    pub seed: u64,
    /// `lockstep` or `live`.
    pub mode: String,
    /// `wall` or `icount`.
    pub clock: String,
    /// The region and its checksums after the last pass.
    pub region: RegionEntry,
    /// One entry a pass, in order, pass 0 first.
    pub passes: Vec<PassEntry>,
    /// What a migration measured; null in scenarios without one.
    pub migration: Option<MigrationEntry>,
    /// What is known of a COLO pair; absent in scenarios without one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub colo: Option<ColoEntry>,
    /// One entry a planted fault.
    pub faults: Vec<FaultEntry>,
    /// What stage 2 was made of; absent in scenarios that do not look.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hugepages: Option<HugePagesEntry>,
    /// Blocks of instructions that were compared, by group; empty in scenarios other than `cpu`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub groups: Vec<GroupEntry>,
    /// The heartbeat of each vCPU at the end; empty without `--heartbeat`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub heartbeat: Vec<HeartbeatEntry>,
    /// Every check that failed, in order, at most [`MAX_MISMATCHES`].
    pub mismatches: Vec<Mismatch>,
    /// The ledgers of a scenario made of many runs; empty in a single run.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub cells: Vec<Ledger>,
    /// Command that repeats the run.
    pub reproduce: String,
}

/// Most entries of [`Ledger::mismatches`]; a broken log would otherwise list a million pages.
pub const MAX_MISMATCHES: usize = 64;

/// Stands for the workload of a guest that is a kernel of its own: it follows no plan, and the region in the ledger is its RAM.
pub const KERNEL: &str = "kernel";

/// The region in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionEntry {
    /// Its guest physical address.
    pub gpa: u64,
    /// Its length in bytes.
    pub size: u64,
    /// BSD checksum (`sum -r`) of the guest's memory after the last pass; null if the run did not come so far.
    pub sum_r_source: Option<u16>,
    /// BSD checksum of the copy.
    pub sum_r_dest: Option<u16>,
    /// Whether the two memories are equal, byte for byte.
    pub equal: Option<bool>,
}

impl RegionEntry {
    /// A region of `size` bytes at `gpa` whose memory has not been compared yet.
    pub const fn unmeasured(gpa: u64, size: u64) -> Self {
        Self { gpa, size, sum_r_source: None, sum_r_dest: None, equal: None }
    }
}

/// One pass in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassEntry {
    /// Number of the pass.
    pub pass: u64,
    /// Host pages that the plan dirties in the pass. In live mode: pages surely dirtied between the two harvests.
    pub predicted: u64,
    /// Host pages that the log reported.
    pub harvested: u64,
    /// Pages dirtied but not reported: always an error.
    pub missing: u64,
    /// Pages reported but not dirtied.
    pub extra: u64,
    /// Extra pages that a named rule explains.
    pub extra_explained: u64,
    /// Name of the rule, where extra pages were explained.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub extra_rule: Option<String>,
    /// Host pages copied to the destination.
    pub pages_copied: u64,
    /// Bytes copied to the destination.
    pub bytes_copied: u64,
    /// Digest computed by the guest; null in a live pass, where the guest is not stopped.
    pub digest_guest: Option<String>,
    /// Digest computed over the destination.
    pub digest_copy: Option<String>,
    /// Digest computed from the plan; null in a live pass.
    pub digest_model: Option<String>,
    /// In lockstep: from telling the vCPUs to run the pass's steps until all have parked again, in ns of the guest's own
    /// counter; 0 in live mode.
    #[serde(default)]
    pub run_ns: u64,
    /// Time to fetch and reset the log, in ns.
    pub harvest_ns: u64,
    /// Of `harvest_ns`, the time in calls that only reset (KVM_CLEAR_DIRTY_LOG, KVM_RESET_DIRTY_RINGS).
    #[serde(default)]
    pub reset_ns: u64,
    /// Time to copy, in ns.
    pub copy_ns: u64,
    /// Time to digest the destination, in ns.
    pub digest_ns: u64,
}

/// What the scenario `hugepages` counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePagesEntry {
    /// Bytes of the blocks looked for.
    pub block: u64,
    /// Bytes of the chunks in which blocks were split as the log started; null without eager splitting.
    pub eager_split: Option<u64>,
    /// One entry a touch of the region, in order.
    pub phases: Vec<HugePagesPhase>,
}

/// One touch of the region in [`HugePagesEntry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePagesPhase {
    /// When.
    pub phase: Phase,
    /// The pass of a touch while logging.
    pub pass: Option<u64>,
    /// Host pages that the touch wrote.
    pub pages: u64,
    /// Blocks that these lie in.
    pub blocks: u64,
    /// Stage-2 faults that it took, from the vCPUs' start of its first step to the last one's parking after it; host
    /// interrupts of that time are counted as well.
    pub faults: u64,
    /// Stage-2 faults of the guest's digest after it, which reads the whole region; null without a pass.
    pub read_faults: Option<u64>,
    /// Block mappings in these blocks' stage-2 tables after the touch; null where the kernel does not show them.
    pub table_blocks: Option<u64>,
    /// Page mappings there.
    pub table_pages: Option<u64>,
}

/// When a touch of the region was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Before the log was started.
    Before,
    /// While it ran.
    Logging,
    /// After it was stopped.
    After,
}

/// A planted fault in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultEntry {
    /// Kind of fault.
    pub fault: String,
    /// Where and when it was planted, for a reader.
    pub planted: String,
    /// Whether a checker found it.
    pub detected: bool,
    /// Which checkers found it.
    pub by: Vec<String>,
    /// Pass of the first finding.
    pub pass: Option<u64>,
    /// Why it could not be planted; absent where it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub skipped: Option<String>,
}

/// A group of blocks of instructions in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupEntry {
    /// Its name.
    pub group: String,
    /// Blocks compared.
    pub blocks: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Blocks that disagreed.
    pub disagreements: u64,
}

impl GroupEntry {
    /// A group called `name` of which nothing has been compared yet.
    pub fn named(name: &str) -> Self {
        Self { group: name.to_owned(), ..Self::default() }
    }
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Which checker found it.
    pub check: String,
    /// In which pass.
    pub pass: u64,
    /// Host page within the region, where the check is about one.
    pub page: Option<u64>,
    /// Guest physical address, where the check is about one.
    pub gpa: Option<u64>,
    /// What should have been.
    pub expected: String,
    /// What was.
    pub found: String,
}

/// The ledger could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Writing failed.
    #[error("cannot write the ledger {path}: {source}; choose another place with --json")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading failed.
    #[error("cannot read the ledger {path}: {source}")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a ledger.
    #[error("{path} is not a Tidemark ledger: {source}")]
    Parse {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A ledger of another version.
    #[error("{path} has schema {found:?}, this hostvmm reads {SCHEMA:?}")]
    Schema {
        /// Where.
        path: PathBuf,
        /// What it says.
        found: String,
    },
}

/// Whether `path` means standard output.
pub fn is_stdout(path: &Path) -> bool {
    [Path::new("-"), Path::new("/dev/stdout")].contains(&path)
}

/// Whether `path` can be replaced by a rename: it is not there, or a regular file and no link.
fn is_replaceable(path: &Path) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.is_file(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// A new file in the directory of `path`, with the permissions that any new file gets there.
fn file_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    tempfile::Builder::new()
        .prefix(".tidemark-ledger")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)
        .map_err(|error| io::Error::new(error.kind(), format!("in {}: {}", directory.display(), error.kind())))
}

/// Whether a ledger can be written to `path`, found out without changing what is there.
///
/// # Errors
/// [`LedgerError::Write`].
pub fn check_writable(path: &Path) -> Result<(), LedgerError> {
    let at = |source| LedgerError::Write { path: path.to_owned(), source };
    if is_stdout(path) {
        return Ok(());
    }
    if is_replaceable(path) {
        return file_beside(path).map(|_| ()).map_err(at);
    }
    // Opening a pipe would wait for its reader; there is no more to find out about one.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(at(io::ErrorKind::IsADirectory.into())),
        Ok(_) => Ok(()),
        Err(error) => Err(at(error)),
    }
}

impl Ledger {
    /// Whether the guest is a kernel of its own.
    pub fn is_of_kernel(&self) -> bool {
        self.workload == KERNEL
    }

    /// Writes the ledger to `path`: to a file beside it first, then renamed, so that a reader never sees half of it.
    ///
    /// # Errors
    /// [`LedgerError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), LedgerError> {
        let at = |source| LedgerError::Write { path: path.to_owned(), source };
        if is_stdout(path) {
            // Not by its name: that would write over what was printed before.
            return self.write_to(io::stdout()).map_err(at);
        }
        if is_replaceable(path) {
            let mut file = file_beside(path).map_err(at)?;
            self.write_to(&mut file).map_err(at)?;
            file.persist(path).map_err(|error| at(error.error))?;
            return Ok(());
        }
        // A pipe, or a link like /dev/stdout, must not be replaced by a rename: what it leads to is written.
        let file = File::options().write(true).create(true).truncate(true).open(path).map_err(at)?;
        self.write_to(file).map_err(at)
    }

    fn write_to(&self, file: impl Write) -> io::Result<()> {
        let mut out = BufWriter::new(file);
        serde_json::to_writer_pretty(&mut out, self)?;
        out.write_all(b"\n")?;
        out.flush()
    }

    /// Reads a ledger back.
    ///
    /// # Errors
    /// [`LedgerError`] by what is wrong with the file.
    pub fn load(path: &Path) -> Result<Self, LedgerError> {
        let text = std::fs::read(path).map_err(|source| LedgerError::Read { path: path.to_owned(), source })?;
        let ledger: Self =
            serde_json::from_slice(&text).map_err(|source| LedgerError::Parse { path: path.to_owned(), source })?;
        if ledger.schema != SCHEMA {
            return Err(LedgerError::Schema { path: path.to_owned(), found: ledger.schema });
        }
        Ok(ledger)
    }

    /// Records a failed check and makes the verdict a failure.
    pub fn fail(&mut self, mismatch: Mismatch) {
        self.verdict = Verdict::Fail;
        if self.mismatches.len() < MAX_MISMATCHES {
            self.mismatches.push(mismatch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_outweighs_everything_and_a_pass_outweighs_a_skip() {
        use Verdict::{Fail, Pass, Skip};
        assert_eq!(Pass.and(Fail), Fail);
        assert_eq!(Skip.and(Fail), Fail);
        assert_eq!(Skip.and(Pass), Pass);
        assert_eq!(Skip.and(Skip), Skip);
    }

    #[test]
    fn places_that_cannot_be_written_are_known_before_the_run() {
        let directory = tempfile::tempdir().unwrap();
        assert!(check_writable(directory.path()).is_err());
        assert!(check_writable(&directory.path().join("no/such")).is_err());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("no/such"), &link).unwrap();
        assert!(check_writable(&link).is_err());
        let file = directory.path().join("ledger.json");
        assert!(check_writable(&file).is_ok());
        assert!(!file.exists(), "nothing is left behind");
    }

    #[test]
    fn a_link_is_written_through_and_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| directory.path().join(name));
        std::fs::write(&file, vec![b'x'; 100_000]).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        crate::report::tests::sample().save(&link).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(Ledger::load(&file).unwrap().seed, 7);
    }

    #[test]
    fn verdicts_exit_like_the_kernels_selftests() {
        assert_eq!([Verdict::Pass, Verdict::Fail, Verdict::Skip].map(Verdict::exit_code), [0, 1, 4]);
    }
}
