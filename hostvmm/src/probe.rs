//! `hostvmm probe`: what this host offers, and why it does not offer the rest.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use abi::Arch;
use serde::Serialize;

use crate::backend::{try_log_with_walker, why_no_kvm, why_no_kvm_guest, why_no_kvm_log};
use crate::dirty::{DirtyLogKind, PagemapScanLog};
use crate::memory::{Backing, host_page_bytes};
use crate::report::Verdict;

/// Value of the field `schema` of the JSON form.
const SCHEMA: &str = "tidemark-probe/1";

/// The findings could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}; choose another place with --json", path = path.display())]
pub struct ProbeError {
    path: PathBuf,
    source: std::io::Error,
}

/// What the host offers.
#[derive(Debug, Serialize)]
struct Findings {
    schema: &'static str,
    arch: &'static str,
    kernel: String,
    cpus: usize,
    host_page: u64,
    accelerators: Vec<Offer>,
    /// Architectures of guests that KVM runs; the emulator runs them all.
    kvm_guests: Vec<Offer>,
    dirty_logs: Vec<Offer>,
    backings: Vec<Offer>,
    /// Logs of KVM's that lose no write on huge pages whose guest's table walker writes; those that could be tried.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs_on_blocks: Vec<Offer>,
}

/// Something that a run may ask for.
#[derive(Debug, Serialize)]
struct Offer {
    name: &'static str,
    available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Offer {
    fn new(name: &'static str, missing: Option<String>) -> Self {
        Self { name, available: missing.is_none(), reason: missing }
    }
}

/// Probes the host, prints what was found, and writes it to `json` if asked to.
///
/// # Errors
/// [`ProbeError`] where the file cannot be written.
pub fn run(json: Option<&Path>) -> Result<Verdict, ProbeError> {
    let findings = Findings::probe();
    if let Some(path) = json {
        let at = |source| ProbeError { path: path.to_owned(), source };
        let text = serde_json::to_vec_pretty(&findings).map_err(|error| at(error.into()))?;
        std::fs::write(path, text).map_err(at)?;
    }
    // A reader that closed the pipe early has seen what it wanted.
    let _ = write!(std::io::stdout(), "{findings}");
    Ok(Verdict::Pass)
}

impl Findings {
    fn probe() -> Self {
        let no_kvm = why_no_kvm().map(|reason| reason.to_string());
        let log = |kind: DirtyLogKind| {
            let missing = match kind.kvm_log() {
                Some(log) => why_no_kvm_log(log).map(|reason| reason.to_string()),
                None if kind == DirtyLogKind::PagemapScan => {
                    PagemapScanLog::probe().err().map(|error| error.to_string())
                }
                None => None,
            };
            Offer::new(kind.name(), missing)
        };
        let guest = |arch: Arch| Offer::new(arch.name(), why_no_kvm_guest(arch).map(|reason| reason.to_string()));
        let backing = |(name, backing): (&'static str, Backing)| {
            // One page each for RAM and region: whether there are enough depends on the run.
            Offer::new(name, backing.check(&[1, 1]).err().map(|reason| reason.to_string()))
        };
        let backings = [
            ("memfd", Backing::Memfd),
            ("anon", Backing::Anonymous),
            ("thp", Backing::Thp),
            ("hugetlb", Backing::Hugetlb { page_bytes: None }),
        ];
        let on_blocks = |kind: DirtyLogKind| {
            let log = kind.kvm_log().filter(|log| why_no_kvm_log(*log).is_none())?;
            let tried = try_log_with_walker(log)?;
            Some(Offer::new(kind.name(), tried.err().map(|flaw| flaw.to_string())))
        };
        let has_thp = Backing::Thp.check(&[1, 1]).is_ok();
        Self {
            schema: SCHEMA,
            arch: std::env::consts::ARCH,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            host_page: host_page_bytes(),
            accelerators: vec![Offer::new("kvm", no_kvm), Offer::new("emulator", None)],
            kvm_guests: [Arch::Aarch64, Arch::Armv7].map(guest).into(),
            dirty_logs: DirtyLogKind::ALL.into_iter().map(log).collect(),
            backings: backings.into_iter().map(backing).collect(),
            logs_on_blocks: DirtyLogKind::ALL.into_iter().filter(|_| has_thp).filter_map(on_blocks).collect(),
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { arch, kernel, cpus, host_page, .. } = self;
        writeln!(f, "host: {arch}, Linux {kernel}, {cpus} CPUs, pages of {host_page} bytes")?;
        for (what, offers) in [
            ("accelerators", &self.accelerators),
            ("guests on kvm", &self.kvm_guests),
            ("dirty logs", &self.dirty_logs),
            ("memory", &self.backings),
            ("dirty logs that lose no write to thp", &self.logs_on_blocks),
        ] {
            if offers.is_empty() {
                continue;
            }
            writeln!(f, "{what}:")?;
            for Offer { name, available, reason } in offers {
                let mark = if *available { "yes" } else { "no" };
                let reason = reason.as_deref().map_or(String::new(), |reason| format!("  ({reason})"));
                writeln!(f, "  {name:<14}{mark}{reason}")?;
            }
        }
        Ok(())
    }
}
