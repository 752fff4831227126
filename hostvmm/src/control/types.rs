//! What replies and events carry, under QEMU's names (qapi/run-state.json, qapi/migration.json). Times are in ms and
//! bandwidths in bytes a second unless a field's name says otherwise.
//!
//! Fields that begin with `x-` are Tidemark's own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a VM is doing: QEMU's RunState.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Started with `--paused`; `cont` starts the guest.
    Prelaunch,
    /// Waits for a guest to arrive, or receives one.
    Inmigrate,
    /// The guest runs.
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Stopped for the last pass of a migration.
    FinishMigrate,
    /// The guest has moved away.
    Postmigrate,
    /// The guest has turned itself off.
    Shutdown,
    /// The guest or its accelerator failed; it cannot be run on.
    InternalError,
}

impl RunState {
    /// The state's name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Inmigrate => "inmigrate",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::FinishMigrate => "finish-migrate",
            Self::Postmigrate => "postmigrate",
            Self::Shutdown => "shutdown",
            Self::InternalError => "internal-error",
        }
    }
}

/// Reply of `query-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    /// Whether vCPUs may execute.
    pub running: bool,
    /// What the VM is doing.
    pub status: RunState,
}

/// Arguments of `migrate-set-parameters`, where what is absent stays, and reply of `query-migrate-parameters`, where
/// nothing is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MigrationParameters {
    /// Longest downtime that is aimed at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// Most bytes a second that are sent while the guest runs; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// Streams for pages, with the capability `multifd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u8>,
    /// `none` or `zstd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_compression: Option<String>,
    /// Bytes of old pages that deltas are made against, with the capability `xbzrle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xbzrle_cache_size: Option<u64>,
    /// First share of time, in percent, that `auto-converge` takes from vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial: Option<u8>,
    /// By how much it grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment: Option<u8>,
    /// How far it grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpu_throttle: Option<u8>,
    /// Directory of certificates; empty is no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    /// Name that the destination's certificate must have; empty is the host connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_hostname: Option<String>,
    /// End-to-end digest: `full` or `deferred`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_digest: Option<String>,
    /// Whether the guest's counter `runs-on` during downtime or `stops`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_counter: Option<String>,
}

/// One capability in `migrate-set-capabilities` and in the reply of `query-migrate-capabilities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityStatus {
    /// Its name.
    pub capability: String,
    /// Whether it is on.
    pub state: bool,
}

/// Reply of `query-migrate`. Empty where there has been no migration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// `setup`, `active`, `postcopy-active`, `device`, `completed`, `cancelling`, `cancelled` or `failed`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<String>,
    /// Memory sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ram: Option<MigrationRam>,
    /// Deltas, where they are used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub xbzrle_cache: Option<XbzrleCache>,
    /// Since its start, until now or its end.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total_time: Option<u64>,
    /// What the downtime would be if the guest were stopped now; while it is under way.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expected_downtime: Option<u64>,
    /// What it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub downtime: Option<u64>,
    /// From its start to the first page.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub setup_time: Option<u64>,
    /// Share of time, in percent, that `auto-converge` takes from vCPUs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_throttle_percentage: Option<u64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error_desc: Option<String>,
    /// More than QEMU tells.
    #[serde(rename = "x-tidemark", skip_serializing_if = "Option::is_none", default)]
    pub tidemark: Option<serde_json::Value>,
}

/// Memory in [`MigrationInfo`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationRam {
    /// Bytes sent.
    pub transferred: u64,
    /// Bytes still to be sent.
    pub remaining: u64,
    /// Bytes of the guest's memory.
    pub total: u64,
    /// Pages sent as zero.
    pub duplicate: u64,
    /// Pages sent whole.
    pub normal: u64,
    /// Their bytes.
    pub normal_bytes: u64,
    /// Pages that the guest dirties a second.
    pub dirty_pages_rate: u64,
    /// Throughput in Mbit/s.
    pub mbps: f64,
    /// Harvests of the dirty log.
    pub dirty_sync_count: u64,
    /// Pages that the destination asked for.
    pub postcopy_requests: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// Bytes sent over several streams.
    pub multifd_bytes: u64,
    /// Pages sent a second.
    pub pages_per_second: u64,
    /// Bytes sent while the guest ran at the source.
    pub precopy_bytes: u64,
    /// Bytes sent while it ran nowhere.
    pub downtime_bytes: u64,
    /// Bytes sent while it ran at the destination.
    pub postcopy_bytes: u64,
}

/// Deltas in [`MigrationInfo`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct XbzrleCache {
    /// Bytes of the cache.
    pub cache_size: u64,
    /// Bytes sent as deltas.
    pub bytes: u64,
    /// Pages sent as deltas.
    pub pages: u64,
    /// Pages that were not in the cache.
    pub cache_miss: u64,
    /// Their share of the pages looked for.
    pub cache_miss_rate: f64,
    /// How many times smaller deltas were than pages.
    pub encoding_rate: f64,
    /// Deltas that would have been larger than the page.
    pub overflow: u64,
}

/// Reply of `query-dirty-rate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirtyRateInfo {
    /// In MiB a second; once measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dirty_rate: Option<u64>,
    /// `unstarted`, `measuring` or `measured`.
    pub status: String,
    /// Seconds since the VM's start.
    pub start_time: u64,
    /// How long it measures, in `calc-time-unit`.
    pub calc_time: u64,
    /// `second` or `millisecond`.
    pub calc_time_unit: TimeUnit,
    /// Pages sampled: none, the log is exact.
    pub sample_pages: u64,
    /// `dirty-bitmap`.
    pub mode: String,
}

/// Unit of a time in `calc-dirty-rate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeUnit {
    /// Seconds.
    #[default]
    Second,
    /// Milliseconds.
    Millisecond,
}

/// Reply of `x-tidemark-status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TidemarkStatus {
    /// As `query-status`.
    pub status: RunState,
    /// One entry a vCPU, in order.
    pub vcpus: Vec<VcpuStatus>,
    /// Whether the accelerator's dirty log runs.
    pub logging: bool,
    /// Bytes of the log's page.
    pub log_page: u64,
    /// Pages that were ever dirty, by slot; with `--track-dirty`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub history: Option<BTreeMap<String, u64>>,
    /// What the guest's heartbeat has recorded; where it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heartbeat: Option<serde_json::Value>,
    /// The guest's own check after it arrived; with `--verify-guest`, once made.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verified: Option<Verification>,
    /// The VM's process.
    pub pid: u32,
}

/// A vCPU in [`TidemarkStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VcpuStatus {
    /// Steps begun.
    pub started: u64,
    /// Steps completed.
    pub completed: u64,
}

/// What a check of guest, host and model found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verification {
    /// Whether everything held.
    pub passed: bool,
    /// Steps that every vCPU had completed.
    pub steps: u64,
    /// What did not hold.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Digests of the region, in hexadecimal.
    pub digest_guest: Option<String>,
    /// Of the host's view of it.
    pub digest_host: Option<String>,
    /// Of the plan.
    pub digest_model: Option<String>,
}

/// An event as a client receives it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct EventMessage {
    /// Its name.
    pub event: String,
    /// What it says.
    #[serde(default)]
    pub data: serde_json::Value,
    /// When, by the server's clock.
    pub timestamp: Timestamp,
}

/// Wall-clock time of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Timestamp {
    /// Since 1970.
    pub seconds: u64,
    /// Within the second.
    pub microseconds: u32,
}
