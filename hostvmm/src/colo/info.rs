//! What everybody may know of a pair: [`ColoStatus`], as QEMU tells it, [`ColoInfo`], and a [`CheckpointReport`] for each
//! checkpoint, as the ledger has it.

use std::fmt;

use serde::Serialize;

use super::Side;
use crate::memory::SlotId;

/// Which part a VM has (QEMU's `COLOMode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColoMode {
    /// It is alone.
    #[default]
    None,
    /// The one whose output is seen.
    Primary,
    /// The one that takes over.
    Secondary,
}

impl From<Side> for ColoMode {
    fn from(side: Side) -> Self {
        match side {
            Side::Primary => Self::Primary,
            Side::Secondary => Self::Secondary,
        }
    }
}

/// Why a VM is in no pair any more (QEMU's `COLOExitReason`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// It never was in one.
    #[default]
    None,
    /// An operator said `x-colo-lost-heartbeat`.
    Request,
    /// The other side is lost, or something failed.
    Error,
    /// It is in one, or on its way out of it.
    Processing,
}

/// The answer to `query-colo-status`, in QEMU's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ColoStatus {
    /// The part it has.
    pub mode: ColoMode,
    /// The part it had last.
    pub last_mode: ColoMode,
    /// Why it has it no more.
    pub reason: ExitReason,
}

/// Where a VM is in the life of its pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColoPhase {
    /// In no pair.
    #[default]
    None,
    /// Waiting for the other side, or greeting it.
    Setup,
    /// All memory is on its way into the secondary's cache.
    Syncing,
    /// Between two checkpoints.
    Running,
    /// In a checkpoint.
    Checkpoint,
    /// The other side is lost; the claim to go on alone is not decided yet, and the guest stands still.
    Claiming,
    /// It won: it is the only one.
    Alone,
    /// The other side goes on: this one never runs again.
    Fenced,
    /// A secondary whose primary was lost before the first checkpoint: there was nothing to take over.
    Discarded,
}

/// Why a checkpoint was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case", tag = "cause")]
pub enum Cause {
    /// It is the first.
    #[default]
    Initial,
    /// `x-checkpoint-delay` is over.
    Interval,
    /// The guests emitted different things.
    Divergence(Divergence),
    /// As much output is held as may be.
    HeldFull,
    /// Somebody asked for it.
    Requested,
    /// The one before was abandoned.
    Retry,
}

impl Cause {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Interval => "interval",
            Self::Divergence(_) => "divergence",
            Self::HeldFull => "held-full",
            Self::Requested => "requested",
            Self::Retry => "retry",
        }
    }
}

/// The first place in which two guests' outputs differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Divergence {
    /// In which stream.
    pub stream: u16,
    /// In which record of it.
    pub sequence: u64,
    /// The first byte that differs, or that only one of them has.
    pub offset: u64,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {}, record {}, byte {}", self.stream, self.sequence, self.offset)
    }
}

/// Output that waits at the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Held {
    /// Records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Digests of a memory, by slot.
pub type SlotDigests = [u64; SlotId::COUNT];

/// The three memories that are equal after a checkpoint. What was not digested is `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Digests {
    /// The primary's RAM as it stopped.
    pub primary: Option<SlotDigests>,
    /// The secondary's RAM after flush and load.
    pub secondary: Option<SlotDigests>,
    /// The secondary's RAM cache.
    pub cache: Option<SlotDigests>,
}

impl Digests {
    /// Whether all three are known and equal.
    pub fn are_equal(&self) -> bool {
        self.primary.is_some() && self.primary == self.cache && self.primary == self.secondary
    }
}

/// Pages that a checkpoint is about, of both slots together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct DirtyCounts {
    /// Written at the primary since the last checkpoint.
    pub primary_dirty: u64,
    /// Written at the secondary since then.
    pub secondary_dirty: u64,
    /// Written on both.
    pub both_dirty: u64,
    /// Copied from the cache to the secondary's RAM.
    pub flushed: u64,
}

impl DirtyCounts {
    /// Pages written on either side: what must be flushed, and not one more.
    pub fn union(&self) -> u64 {
        self.primary_dirty + self.secondary_dirty - self.both_dirty.min(self.primary_dirty)
    }
}

/// How long the primary's guest stood still for a checkpoint, and for what. Each part in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct StopSplit {
    /// Stopping the vCPUs.
    pub pause_ns: u64,
    /// The last harvest.
    pub harvest_ns: u64,
    /// Sending the last pages.
    pub pages_ns: u64,
    /// Saving and sending the state and the held output.
    pub state_ns: u64,
    /// The primary's digest of its memory, beside the secondary's of its cache.
    pub digest_ns: u64,
    /// From then until the secondary has verified everything.
    pub verify_ns: u64,
    /// The secondary's flush.
    pub flush_ns: u64,
    /// The secondary's load.
    pub load_ns: u64,
    /// The secondary's digest of its RAM.
    pub check_ns: u64,
    /// From vmstate-loaded to the first vCPU of the primary running on.
    pub resume_ns: u64,
}

/// One committed checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct CheckpointReport {
    /// Its number, from 1.
    pub n: u64,
    /// Why it was made.
    #[serde(flatten)]
    pub cause: Cause,
    /// Its pages.
    #[serde(flatten)]
    pub pages: DirtyCounts,
    /// Pages that were sent before the stop, some of them more than once.
    pub background_pages: u64,
    /// Pages that were sent during the stop.
    pub stop_pages: u64,
    /// Bytes sent for it.
    pub bytes: u64,
    /// Digests by slot.
    pub digests: Digests,
    /// From the primary's guest stopping until it ran on, in nanoseconds.
    pub stop_ns: u64,
    /// What of.
    pub split: StopSplit,
    /// Time since the checkpoint before it was committed, in nanoseconds.
    pub since_last_ns: u64,
    /// Held output that it released.
    pub released: Held,
}

/// What a [`super::ColoMonitor`] shows.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ColoInfo {
    /// In QEMU's words.
    #[serde(flatten)]
    pub status: ColoStatus,
    /// Where it is.
    pub phase: ColoPhase,
    /// The epoch of the outlet that it belongs to.
    pub epoch: u64,
    /// The last checkpoint that was committed; 0 before the first.
    pub checkpoint: u64,
    /// Checkpoints that were abandoned and tried again.
    pub abandoned: u64,
    /// Divergences of output.
    pub divergences: u64,
    /// What of the primary's output waits now.
    pub held: Held,
    /// The most that ever waited.
    pub held_most: Held,
    /// Records that were released because both guests emitted them.
    pub compared: u64,
    /// How many records the outlet has accepted, of all streams.
    pub accepted: u64,
    /// Whether all digests, pages and counts of all checkpoints were exact.
    pub exact: bool,
    /// Why the pair ended, or the last checkpoint was abandoned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Every checkpoint, as far as they are kept.
    pub checkpoints: Vec<CheckpointReport>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_ledger_s_names() {
        let report = CheckpointReport {
            n: 3,
            cause: Cause::Divergence(Divergence { stream: 1, sequence: 2, offset: 4 }),
            pages: DirtyCounts { primary_dirty: 5, secondary_dirty: 4, both_dirty: 3, flushed: 6 },
            ..CheckpointReport::default()
        };
        assert_eq!(report.pages.union(), 6);
        let json = serde_json::to_value(&report).unwrap();
        for (name, value) in [("primary_dirty", 5), ("secondary_dirty", 4), ("both_dirty", 3), ("flushed", 6), ("n", 3)]
        {
            assert_eq!(json[name], value, "{name}");
        }
        assert_eq!((&json["cause"], &json["stream"]), (&"divergence".into(), &1.into()));
        let plain = serde_json::to_value(Cause::Interval).unwrap();
        assert_eq!(plain["cause"], "interval");
    }

    #[test]
    fn digests_that_are_not_known_are_not_equal() {
        assert!(!Digests::default().are_equal());
        let same = Some([1, 2]);
        assert!(Digests { primary: same, secondary: same, cache: same }.are_equal());
        assert!(!Digests { primary: same, secondary: same, cache: Some([1, 3]) }.are_equal());
    }
}
