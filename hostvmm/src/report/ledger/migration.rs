//! A migration in the ledger: [`MigrationEntry`] and its parts.
//!
//! A side fills in what it knows; whoever drove both merges the two. Durations are nanoseconds and sizes bytes.

use serde::{Deserialize, Serialize};

/// A migration in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MigrationEntry {
    /// As QEMU's `query-migrate` names it.
    pub status: String,
    /// Start to end, in ns.
    pub total_ns: u64,
    /// Set-up, in ns.
    pub setup_ns: u64,
    /// Bytes sent.
    pub transferred: u64,
    /// Pages sent whole.
    pub normal: u64,
    /// Pages sent as zero.
    pub zero: u64,
    /// Harvests.
    pub syncs: u64,
    /// Downtime by the host's clock, in ns: last vCPU out of the source to first vCPU in at the destination.
    pub downtime_host_ns: u64,
    /// Downtime by the guest's counter, in ns: the longest gap between two heartbeats of a vCPU around the hand-over.
    pub downtime_guest_ns: u64,
    /// What the guest's counter moved beyond what it should have, in millionths of the downtime.
    pub counter_error_ppm: f64,
    /// Where it went, as given to `migrate`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uri: Option<String>,
    /// Why it did not complete.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// The host's downtime by what it was spent on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub downtime: Option<DowntimeEntry>,
    /// The guest's clock across the hand-over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock: Option<GuestClockEntry>,
    /// Digests of all memory with the vCPUs stopped, one entry a memslot.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub digests: Vec<SlotDigestsEntry>,
    /// What was predicted while memory was copied; what happened is `syncs`, `transferred` and `downtime_host_ns`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub estimate: Option<EstimateEntry>,
    /// One entry a pass over memory, pass 0 (which sends everything) first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rounds: Vec<RoundEntry>,
    /// Gaps between heartbeats.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gaps: Option<GapsEntry>,
    /// How far vCPUs were slowed down so that the migration converges; absent where they were not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub throttle: Option<ThrottleEntry>,
    /// Bytes sent, by kind.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<BytesEntry>,
    /// What became of the vCPUs' registers; absent where they were restored as they were.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub registers: Option<RegistersEntry>,
    /// The migrations of a chain, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub hops: Vec<HopEntry>,
    /// Migrations that were cancelled on purpose.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub cancels: Vec<CancelEntry>,
    /// Sides that were killed, stopped or cut off on purpose.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub kills: Vec<KillEntry>,
}

/// Registers that were translated, in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersEntry {
    /// The source's accelerator.
    pub from: String,
    /// The destination's.
    pub to: String,
    /// Registers of all vCPUs that were written.
    pub written: u64,
    /// Time that the rules took for all vCPUs, in ns.
    pub translate_ns: u64,
    /// What was not simply copied, register by register.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What the vCPUs, read back, do not hold of what was written.
    #[serde(default)]
    pub unheld: Vec<String>,
}

/// The host's downtime in the ledger; the parts add up to no more than the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DowntimeEntry {
    /// Harvesting and sending the pages that were still dirty.
    pub final_pass_ns: u64,
    /// Saving vCPUs, interrupt controller and devices.
    pub state_ns: u64,
    /// What was on its way: from the last byte's sending to its arrival.
    pub transfer_ns: u64,
    /// Loading the state at the destination.
    pub load_ns: u64,
    /// Digests of all memory on both sides, as far as the guest waited for them.
    pub digest_ns: u64,
    /// From the decision to the destination's first vCPU in the guest.
    pub resume_ns: u64,
}

impl DowntimeEntry {
    /// The parts with their names, in the order in which they happen.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("final pass", self.final_pass_ns),
            ("state", self.state_ns),
            ("transfer", self.transfer_ns),
            ("load", self.load_ns),
            ("digest", self.digest_ns),
            ("resume", self.resume_ns),
        ]
    }
}

/// The guest's clock across the hand-over, in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestClockEntry {
    /// `runs-on`: the guest's counter shows the downtime; `stops`: it does not.
    pub policy: String,
    /// Ticks of the guest's counter per second.
    pub counter_hz: u64,
    /// The usual time between two heartbeats: a gap is known no better than this, in ns.
    pub resolution_ns: u64,
    /// What the guest measured beyond what the host did, in ns; negative where it measured less.
    pub error_ns: i64,
    /// What the counter showed at the destination beyond what it should, as the host read it, in ns.
    #[serde(default)]
    pub counter_error_ns: i64,
    /// So much of that error may be the measurement's own, in ns: how long the counter was being read and set, and how
    /// well the hosts' clocks are known.
    #[serde(default)]
    pub counter_doubt_ns: u64,
    /// Whether everything fits together: the counter, and every vCPU's beats before and after.
    pub reconciled: bool,
    /// What does not, in words.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub disagreements: Vec<String>,
    /// The destination host's clock minus the source's, in ns, as measured on the channel.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_offset_ns: Option<i64>,
    /// Cycles by PMCCNTR in the longest gap; absent where the guest has no cycle counter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gap_cycles: Option<u64>,
    /// vCPU whose gap it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vcpu: Option<u32>,
    /// Lines `clock N s` that the guest printed, all sides taken together; 0 where it printed none.
    #[serde(default)]
    pub lines: u64,
    /// Of these, those that a clock which goes on does not print, and seconds that were due and are in no line.
    #[serde(default)]
    pub jumps: u64,
    /// What the counter showed as the last vCPU left the guest at the source, by the source's clock.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stopped: Option<CounterEntry>,
    /// What it showed at the destination before the first vCPU entered the guest there, by the destination's clock.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub arrived: Option<CounterEntry>,
}

/// A guest's counter as a host read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterEntry {
    /// The counter, in ticks.
    pub ticks: u64,
    /// When, by the host's CLOCK_MONOTONIC, in ns.
    pub at_ns: u64,
    /// By how much that may be wrong, in ns.
    pub uncertainty_ns: u64,
}

/// Digests of one memslot in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotDigestsEntry {
    /// `ram` or `region`.
    pub slot: String,
    /// Digest at the source, vCPUs stopped.
    pub source: String,
    /// Digest at the destination, before the guest resumed.
    pub destination: String,
    /// Whether they are equal.
    pub equal: bool,
}

/// A convergence estimate in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EstimateEntry {
    /// Passes over memory.
    pub passes: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Downtime in ns.
    pub downtime_ns: u64,
    /// Whether it was expected to end by itself.
    pub converges: bool,
}

/// One pass of a migration over memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundEntry {
    /// Its number.
    pub pass: u64,
    /// Wire pages that were to be sent.
    pub dirty: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Time it took, in ns.
    pub ns: u64,
}

/// Gaps between heartbeats of all vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapsEntry {
    /// Before the migration began.
    pub before: Vec<GapBucket>,
    /// While it was under way, the hand-over included.
    pub during: Vec<GapBucket>,
    /// After the guest resumed at the destination.
    pub after: Vec<GapBucket>,
}

/// How many gaps were so long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapBucket {
    /// Shortest gap counted here, in ns; the next bucket begins at its double.
    pub from_ns: u64,
    /// Gaps.
    pub count: u64,
}

/// How far vCPUs were slowed down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleEntry {
    /// Most of a vCPU's time that was taken from it, in percent.
    pub most_percent: u8,
    /// How often it was raised.
    pub raises: u64,
}

/// Bytes sent, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BytesEntry {
    /// Pages as they are.
    pub normal: u64,
    /// Runs of zero pages.
    pub zero: u64,
    /// Pages as differences from what was sent before.
    pub delta: u64,
    /// Pages that were compressed.
    pub compressed: u64,
    /// vCPUs, interrupt controller, devices.
    pub state: u64,
    /// Pages that the destination asked for after the guest had resumed there.
    pub postcopy: u64,
    /// Everything else of the protocol: headers, digests, acknowledgements.
    pub protocol: u64,
}

impl BytesEntry {
    /// The kinds with their names.
    pub fn kinds(&self) -> [(&'static str, u64); 7] {
        [
            ("normal", self.normal),
            ("zero", self.zero),
            ("delta", self.delta),
            ("compressed", self.compressed),
            ("state", self.state),
            ("postcopy", self.postcopy),
            ("protocol", self.protocol),
        ]
    }
}

/// One migration of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopEntry {
    /// Its number, from 1.
    pub hop: u64,
    /// Who had the guest, and who has it now: `A`, `B`, ….
    pub from: String,
    /// See `from`.
    pub to: String,
    /// The point at which the guest asked for it; absent where it did not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub point: Option<String>,
    /// As `query-migrate` names it.
    pub status: String,
    /// Start to end, in ns.
    pub total_ns: u64,
    /// Downtime by the host's clock, in ns.
    pub downtime_host_ns: u64,
    /// Bytes sent.
    pub transferred: u64,
    /// Harvests.
    pub syncs: u64,
    /// Pages of the region in the dirty history that arrived; null where none is kept.
    pub history: Option<u64>,
    /// What became of the vCPUs' registers; absent where they were restored as they were.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub registers: Option<RegistersEntry>,
}

/// A migration that was cancelled on purpose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CancelEntry {
    /// When: a boundary between phases, or so long after the start.
    pub at: String,
    /// What it came to, as `query-migrate` names it; `completed` where the migration was faster than the cancelling.
    pub status: String,
    /// Whether no dirty log ran afterwards.
    pub logging_off: bool,
    /// Steps of the workload that all vCPUs completed per second before the migration.
    pub steps_per_s_before: f64,
    /// The same after it was cancelled.
    pub steps_per_s_after: f64,
    /// From the command to the last word of the migration, in ns.
    pub cancel_ns: u64,
    /// Whether the guest was whole afterwards.
    pub verified: bool,
    /// Blocks by which the region was mapped; absent where its memory has no huge pages.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub huge_pages: Option<HugePagesAround>,
}

/// Block mappings of the region at stage 2, as the kernel shows them; null where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePagesAround {
    /// Before the migration.
    pub before: Option<u64>,
    /// When it was cancelled.
    pub logging: Option<u64>,
    /// After it was cancelled and the guest had written its memory again.
    pub after: Option<u64>,
}

impl CancelEntry {
    /// Speed after the cancelled migration by that before; 1 where there was nothing to compare.
    pub fn ratio(&self) -> f64 {
        if self.steps_per_s_before > 0.0 { self.steps_per_s_after / self.steps_per_s_before } else { 1.0 }
    }
}

/// A side that was killed, stopped or cut off on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillEntry {
    /// `source` or `destination`.
    pub side: String,
    /// Boundary between phases at which it happened.
    pub boundary: String,
    /// `kill`, `stop`, `cut`, `fail` or `disk-full`.
    pub action: String,
    /// Who had the guest in the end: `source` or `destination`; `both` and `neither` are what must not be.
    pub survivor: String,
    /// Whether the survivor's guest was whole: its own check, the model, the dirty history.
    pub verified: bool,
    /// Why it could not be made; absent where it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub skipped: Option<String>,
}
