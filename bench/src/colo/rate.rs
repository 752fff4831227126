//! Checkpoints, one after the other: [`Rate`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use hostvmm::report::ledger::CheckpointEntry;
use serde::Serialize;
use serde_json::json;

use super::pair::{Guest, checkpoints, wait};
use crate::measure::BenchError;
use crate::vmm::Program;

/// The guest's memory, all of it touched: 256 MiB.
const RAM_MIB: u64 = 16;
const REGION_MIB: u64 = 240;
const PAGE_BYTES: u64 = 4096;
/// Percent of its memory for which a guest is given a millisecond between two checkpoints, at least one: it writes faster.
const SHARE_A_MS: u64 = 2;
/// Checkpoints at first that are not counted: the guest's memory has been sent, and what comes next is as it stays.
const WARM: u64 = 5;

/// Parts of a stop, in the order in which they come.
pub(super) const PARTS: [&str; 10] =
    ["pause", "harvest", "pages", "state", "digest", "verify", "flush", "load", "check", "resume"];

/// What checkpoints of one guest came to; medians.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Rate {
    /// Percent of the guest's memory that it writes again and again.
    pub(crate) share: u64,
    /// Milliseconds for which it runs between two.
    pub(crate) interval_ms: u64,
    /// What is digested: `full` or `deferred`.
    pub(crate) digest: String,
    /// How many were counted.
    pub(crate) checkpoints: usize,
    /// A second.
    pub(crate) per_s: f64,
    /// Pages that the primary wrote from one to the next.
    pub(crate) primary_dirty: u64,
    /// Pages that were flushed.
    pub(crate) flushed: u64,
    /// How long the primary's guest stood still.
    pub(crate) stop_us: f64,
    /// The longest.
    pub(crate) stop_most_us: f64,
    /// Parts of the stop.
    pub(crate) split_us: BTreeMap<String, f64>,
    /// Most bytes that the secondary ever had resident.
    pub(crate) secondary_peak_bytes: u64,
    /// Bytes that it has resident in the end, its share of what is shared.
    pub(crate) secondary_pss_bytes: u64,
    /// Bytes that it may have.
    pub(crate) secondary_most_bytes: u64,
    /// Checkpoints whose flushed pages are not the union, or whose digests were taken and are not equal.
    pub(crate) inexact: usize,
}

/// Bytes that a secondary may have resident beside its RAM and its cache.
const BESIDE_BYTES: u64 = 64 << 20;

/// Makes at least `count` checkpoints of a guest that writes `share` percent of its memory between two.
///
/// # Errors
/// [`BenchError`].
pub(super) fn measure(
    program: &Program,
    share: u64,
    digest: &str,
    count: u64,
    files: &Path,
) -> Result<Rate, BenchError> {
    let pages = (REGION_MIB << 20) / PAGE_BYTES;
    let step = ((RAM_MIB + REGION_MIB) << 20) / PAGE_BYTES * share / 100;
    let options = [
        "--ram",
        &format!("{RAM_MIB}M"),
        "--region-size",
        &format!("{REGION_MIB}M"),
        "--workload",
        &format!("dirtyram:pages={pages},step={step},sleep_ms=0"),
    ]
    .map(str::to_owned);
    let name = format!("rate-{share}-{digest}");
    let mut guest = Guest::start(program, &options, &name, files)?;
    let interval_ms = (share / SHARE_A_MS).max(1);
    let parameters = json!({ "x-checkpoint-delay": interval_ms, "x-colo-digest": digest });
    let secondary = guest.protect(&parameters)?;
    let mut rounds: Vec<CheckpointEntry> = Vec::new();
    wait(&mut guest.vm, "checkpoints", |vm| {
        rounds.append(&mut checkpoints(vm, rounds.last().map_or(0, |round| round.n))?);
        Ok((rounds.len() as u64 >= WARM + count).then_some(()))
    })?;
    let (secondary_peak_bytes, secondary_pss_bytes) = (secondary.peak_bytes(), secondary.pss_bytes());
    guest.leave(secondary)?;
    guest.vm.quit()?;
    rounds.drain(..WARM as usize);
    let us = |of: fn(&CheckpointEntry) -> u64| median(rounds.iter().map(of)) / 1e3;
    let part = |name: &str| {
        let of = |round: &CheckpointEntry| round.split_ns.get(&format!("{name}_ns")).copied().unwrap_or_default();
        (name.to_owned(), median(rounds.iter().map(of)) / 1e3)
    };
    let seconds: f64 = rounds.iter().map(|round| round.since_last_ns as f64 / 1e9).sum();
    let is_exact = |round: &&CheckpointEntry| round.flushed == round.union() && (digest != "full" || round.is_equal());
    Ok(Rate {
        share,
        interval_ms,
        digest: digest.to_owned(),
        checkpoints: rounds.len(),
        per_s: rounds.len() as f64 / seconds,
        primary_dirty: median(rounds.iter().map(|round| round.primary_dirty)) as u64,
        flushed: median(rounds.iter().map(|round| round.flushed)) as u64,
        stop_us: us(|round| round.stop_ns),
        stop_most_us: rounds.iter().map(|round| round.stop_ns).max().unwrap_or_default() as f64 / 1e3,
        split_us: PARTS.into_iter().map(part).collect(),
        secondary_peak_bytes,
        secondary_pss_bytes,
        secondary_most_bytes: 2 * ((RAM_MIB + REGION_MIB) << 20) + BESIDE_BYTES,
        inexact: rounds.iter().filter(|round| !is_exact(round)).count(),
    })
}

fn median(values: impl Iterator<Item = u64>) -> f64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default() as f64
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { checkpoints, per_s, primary_dirty, stop_us, .. } = self;
        write!(
            f,
            "{checkpoints} checkpoints, {per_s:.1} a second, of {primary_dirty} pages; the guest stood still for {:.2} ms",
            stop_us / 1e3
        )
    }
}
