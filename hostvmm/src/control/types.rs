//! What replies and events carry, under QEMU's names (qapi/run-state.json, qapi/migration.json); what is about
//! migrations alone is `migrate`'s.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::heartbeat::HeartbeatEntry;

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
    /// Stopped for a checkpoint of its COLO pair.
    Colo,
    /// The guest has moved away, or the other side of its COLO pair goes on.
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
            Self::Colo => "colo",
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

/// One capability in `migrate-set-capabilities` and in the reply of `query-migrate-capabilities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityStatus {
    /// Its name.
    pub capability: String,
    /// Whether it is on.
    pub state: bool,
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
    /// What the guest's heartbeat has recorded, by vCPU; where it has one.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub heartbeat: Vec<HeartbeatEntry>,
    /// The guest's own check after it arrived; with `--verify-guest`, once made.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verified: Option<Verification>,
    /// Where the guest asked to be moved: it stands there, or at a point that it tells of and goes on from, it has not been moved since.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub point: Option<PointStatus>,
    /// The VM's process.
    pub pid: u32,
}

/// Where a guest asked to be moved, in [`TidemarkStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PointStatus {
    /// The vCPU that asked.
    pub vcpu: usize,
    /// The point's name.
    pub name: String,
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
