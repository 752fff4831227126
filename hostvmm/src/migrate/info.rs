//! What a migration shows of itself while it is under way and when it has ended: [`MigrationInfo`], which serialises as
//! QEMU's answer to `query-migrate`; the fields that QEMU has not begin with `x-`.

use std::time::Duration;

use serde::Serialize;

use super::clock::{ClockOffset, HostTime};
use super::estimate::{Estimate, PassReport};
use super::parameters::DigestMode;
use super::phase::Phase;
use crate::machine::state::RegistersReport;

/// A migration, seen from one side; serialises as `query-migrate` answers.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// Where it is.
    pub status: Phase,
    /// Milliseconds since it was asked for, until it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_time: Option<u64>,
    /// Milliseconds until both sides had agreed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_time: Option<u64>,
    /// Milliseconds that the guest stood still; once it has moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<u64>,
    /// Milliseconds that it would stand still if it were stopped now; while it has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_downtime: Option<u64>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram: Option<RamInfo>,
    /// Delta encoding, with the capability `xbzrle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xbzrle_cache: Option<XbzrleInfo>,
    /// How much of their time is taken from the vCPUs, while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_percentage: Option<u8>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
    /// What was foreseen after pass 0.
    #[serde(rename = "x-estimate", skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// What happened, pass by pass.
    #[serde(rename = "x-passes", skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<PassReport>,
    /// The downtime in its parts.
    #[serde(rename = "x-downtime", skip_serializing_if = "Option::is_none")]
    pub downtime_split: Option<DowntimeSplit>,
    /// How memory was compared.
    #[serde(rename = "x-digest", skip_serializing_if = "Option::is_none")]
    pub digest: Option<DigestReport>,
    /// Milliseconds since the peer has last sent or taken anything, while the migration is under way.
    #[serde(rename = "x-silent", skip_serializing_if = "Option::is_none")]
    pub silent: Option<u64>,
    /// What became of the vCPUs' registers, at the destination, where they were not its own anyway.
    #[serde(rename = "x-registers", skip_serializing_if = "Option::is_none")]
    pub registers: Option<RegistersReport>,
    /// The peer's clock.
    #[serde(rename = "x-clock", skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockOffset>,
}

/// Memory moved, in QEMU's terms. The source counts what it sends, the destination what it receives.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RamInfo {
    /// Bytes on the wire, with headers and answers.
    pub transferred: u64,
    /// Bytes still to be moved.
    pub remaining: u64,
    /// Bytes of guest memory.
    pub total: u64,
    /// Pages of zeroes, holes included.
    pub duplicate: u64,
    /// Pages whose bytes were sent.
    pub normal: u64,
    /// Bytes of these.
    pub normal_bytes: u64,
    /// Pages dirtied a second, in the last pass.
    pub dirty_pages_rate: u64,
    /// Megabits a second, in the last pass.
    pub mbps: f64,
    /// Harvests of the log.
    pub dirty_sync_count: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// Pages moved a second, in the last pass.
    pub pages_per_second: u64,
    /// Bytes sent while the guest ran at the source.
    pub precopy_bytes: u64,
    /// Bytes sent while it stood still.
    pub downtime_bytes: u64,
    /// Bytes sent while it ran at the destination.
    pub postcopy_bytes: u64,
    /// Pages that the destination asked for.
    pub postcopy_requests: u64,
    /// Bytes sent over page channels.
    pub multifd_bytes: u64,
}

/// Delta encoding, in QEMU's terms.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct XbzrleInfo {
    /// Bytes of the cache.
    pub cache_size: u64,
    /// Bytes sent of pages sent as what changed in them.
    pub bytes: u64,
    /// Such pages.
    pub pages: u64,
    /// Pages that were not in the cache.
    pub cache_miss: u64,
    /// Of all looked for.
    pub cache_miss_rate: f64,
    /// Bytes of such pages for each byte sent of them.
    pub encoding_rate: f64,
    /// Pages in which too much had changed.
    pub overflow: u64,
}

/// The downtime, from the last vCPU out of the guest at the source to the first in it at the destination, in the parts
/// that follow each other. All in nanoseconds of the source's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DowntimeSplit {
    /// The source's last vCPU left the guest.
    pub stopped_at: HostTime,
    /// The destination's first vCPU entered it, on the source's clock.
    pub resumed_at: HostTime,
    /// From one to the other.
    pub total_ns: u64,
    /// By how much the two clocks may disagree.
    pub uncertainty_ns: u64,
    /// Until the last pages were handed to the host's kernel: the last harvest included.
    pub final_pass_ns: u64,
    /// Until the state was read from the machine.
    pub state_ns: u64,
    /// What the source digested of its memory.
    pub digest_ns: u64,
    /// Until the destination had all of it: what is not in the other parts.
    pub transfer_ns: u64,
    /// The destination's verification of memory, as far as it was not meanwhile.
    pub verify_ns: u64,
    /// Loading the state.
    pub load_ns: u64,
    /// From there over the commit to the first vCPU's entry.
    pub resume_ns: u64,
}

/// How the memories of both sides were compared.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DigestReport {
    /// When all of memory was digested.
    pub mode: DigestMode,
    /// Passes whose digests both sides have alike.
    pub passes: u64,
    /// Sum of the slots' digests of all memory at the source.
    pub source: u64,
    /// The same at the destination, of the moment before the guest resumed.
    pub destination: u64,
    /// Whether they are the same, slot by slot.
    pub equal: bool,
    /// How long the slower side took to digest all memory.
    #[serde(rename = "ns", serialize_with = "as_ns")]
    pub took: Duration,
}

fn as_ns<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
