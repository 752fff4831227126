//! A COLO pair in the ledger: [`ColoEntry`], as one of its sides saw it, and what `verify colo` adds.
//!
//! Durations are nanoseconds and sizes bytes; pages are those of the dirty log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::KillEntry;
use crate::colo::{Cause, CheckpointReport, ColoInfo, ColoMode};

/// A pair in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColoEntry {
    /// The part that the VM has, or had last: `primary`, `secondary`; `none` where there was no pair yet.
    pub side: String,
    /// Where it is at the end: `running`, `alone`, `fenced`, `discarded` and the like.
    pub phase: String,
    /// Why the pair ended, as QEMU has it: `none`, `request`, `error`, `processing`.
    pub reason: String,
    /// The epoch of the outlet that the VM belongs to.
    pub epoch: u64,
    /// Checkpoints that were committed.
    pub checkpoints: u64,
    /// Checkpoints that were abandoned and tried again.
    pub abandoned: u64,
    /// Divergences of output.
    pub divergences: u64,
    /// Records that were released because both guests emitted them.
    pub compared: u64,
    /// Records that the outlet has accepted, of all streams.
    pub accepted: u64,
    /// The most records of output that waited at once.
    pub held_most_records: u64,
    /// Their bytes, at most.
    pub held_most_bytes: u64,
    /// Whether all digests, pages and counts of all checkpoints were exact, as the side itself judged.
    pub exact: bool,
    /// Why the pair ended, or the last checkpoint was abandoned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// How many checkpoints were made for which cause.
    #[serde(default)]
    pub causes: BTreeMap<String, u64>,
    /// One entry a checkpoint, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rounds: Vec<CheckpointEntry>,
    /// Sides that were killed, stopped or cut off on purpose.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub kills: Vec<KillEntry>,
    /// Most memory that the secondary ever had resident, guest memory and cache included; in `verify colo`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secondary_peak_bytes: Option<u64>,
    /// Steps of all vCPUs a second before the pair; where that was measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub steps_per_s_alone: Option<u64>,
    /// The same in the pair.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub steps_per_s_paired: Option<u64>,
    /// What the outside world saw; in `verify colo`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output: Option<ColoOutputEntry>,
}

/// One committed checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointEntry {
    /// Its number, from 1.
    pub n: u64,
    /// `initial`, `interval`, `divergence`, `held-full`, `requested`, `retry`.
    pub cause: String,
    /// Of a divergence: in which stream.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stream: Option<u16>,
    /// Of a divergence: in which record of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sequence: Option<u64>,
    /// Of a divergence: at which byte.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offset: Option<u64>,
    /// Pages written at the primary since the checkpoint before.
    pub primary_dirty: u64,
    /// Pages written at the secondary since then.
    pub secondary_dirty: u64,
    /// Pages written on both.
    pub both_dirty: u64,
    /// Pages copied from the cache to the secondary's RAM.
    pub flushed: u64,
    /// Pages sent before the stop, some of them more than once.
    pub background_pages: u64,
    /// Pages sent during the stop.
    pub stop_pages: u64,
    /// Bytes sent for it.
    pub bytes: u64,
    /// Digests of the primary's RAM by memslot; empty where it was not digested.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub digest_primary: Vec<String>,
    /// Of the secondary's, after the flush.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub digest_secondary: Vec<String>,
    /// Of the secondary's RAM cache.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub digest_cache: Vec<String>,
    /// From the primary's guest stopping until it ran on.
    pub stop_ns: u64,
    /// Parts of it, by name.
    pub split_ns: BTreeMap<String, u64>,
    /// Since the checkpoint before was committed.
    pub since_last_ns: u64,
    /// Held records that it released.
    pub released_records: u64,
    /// Their bytes.
    pub released_bytes: u64,
}

/// What the outside world saw of a guest's output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColoOutputEntry {
    /// Records of all streams that the outlet accepted.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that the plan foretells, of those that were seen.
    pub foretold: u64,
    /// Who owned the outlet, one after the other.
    pub owners: Vec<String>,
}

impl CheckpointEntry {
    /// Pages written on either side: what must be flushed, and not one more.
    pub fn union(&self) -> u64 {
        (self.primary_dirty + self.secondary_dirty).saturating_sub(self.both_dirty)
    }

    /// Whether all three memories were digested and are equal.
    pub fn is_equal(&self) -> bool {
        !self.digest_primary.is_empty()
            && self.digest_primary == self.digest_cache
            && self.digest_primary == self.digest_secondary
    }

    fn new(report: &CheckpointReport) -> Self {
        let hex = |digests: Option<[u64; crate::memory::SlotId::COUNT]>| {
            digests.iter().flatten().map(|digest| format!("{digest:#018x}")).collect()
        };
        let difference = match report.cause {
            Cause::Divergence(difference) => Some(difference),
            _ => None,
        };
        let split = serde_json::to_value(report.split).and_then(serde_json::from_value).unwrap_or_default();
        Self {
            n: report.n,
            cause: report.cause.name().to_owned(),
            stream: difference.map(|it| it.stream),
            sequence: difference.map(|it| it.sequence),
            offset: difference.map(|it| it.offset),
            primary_dirty: report.pages.primary_dirty,
            secondary_dirty: report.pages.secondary_dirty,
            both_dirty: report.pages.both_dirty,
            flushed: report.pages.flushed,
            background_pages: report.background_pages,
            stop_pages: report.stop_pages,
            bytes: report.bytes,
            digest_primary: hex(report.digests.primary),
            digest_secondary: hex(report.digests.secondary),
            digest_cache: hex(report.digests.cache),
            stop_ns: report.stop_ns,
            split_ns: split,
            since_last_ns: report.since_last_ns,
            released_records: report.released.records,
            released_bytes: report.released.bytes,
        }
    }
}

impl ColoEntry {
    /// What a side shows of its pair.
    pub fn new(info: &ColoInfo) -> Self {
        let word = |value: serde_json::Result<serde_json::Value>| {
            value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
        };
        let side = if info.status.mode == ColoMode::None { info.status.last_mode } else { info.status.mode };
        let mut entry = Self {
            side: word(serde_json::to_value(side)),
            phase: word(serde_json::to_value(info.phase)),
            reason: word(serde_json::to_value(info.status.reason)),
            epoch: info.epoch,
            checkpoints: info.checkpoint,
            abandoned: info.abandoned,
            divergences: info.divergences,
            compared: info.compared,
            accepted: info.accepted,
            held_most_records: info.held_most.records,
            held_most_bytes: info.held_most.bytes,
            exact: info.exact,
            error: info.error.clone(),
            causes: BTreeMap::new(),
            rounds: info.checkpoints.iter().map(CheckpointEntry::new).collect(),
            kills: Vec::new(),
            secondary_peak_bytes: None,
            steps_per_s_alone: None,
            steps_per_s_paired: None,
            output: None,
        };
        entry.count_causes();
        entry
    }

    /// Counts the causes of the checkpoints that it has.
    pub fn count_causes(&mut self) {
        self.causes.clear();
        for round in &self.rounds {
            *self.causes.entry(round.cause.clone()).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::colo::{ColoPhase, ColoStatus, Digests, DirtyCounts, Divergence, ExitReason};

    #[test]
    fn a_pair_is_entered_under_the_ledger_s_names_and_read_back() {
        let same = Some([1, 2]);
        let report = CheckpointReport {
            n: 2,
            cause: Cause::Divergence(Divergence { stream: 1, sequence: 9, offset: 3 }),
            pages: DirtyCounts { primary_dirty: 5, secondary_dirty: 4, both_dirty: 3, flushed: 6 },
            digests: Digests { primary: same, secondary: same, cache: same },
            ..CheckpointReport::default()
        };
        let info = ColoInfo {
            status: ColoStatus { mode: ColoMode::None, last_mode: ColoMode::Secondary, reason: ExitReason::Error },
            phase: ColoPhase::Alone,
            checkpoint: 2,
            exact: true,
            checkpoints: vec![CheckpointReport::default(), report],
            ..ColoInfo::default()
        };
        let entry = ColoEntry::new(&info);
        assert_eq!((entry.side.as_str(), entry.phase.as_str(), entry.reason.as_str()), ("secondary", "alone", "error"));
        assert_eq!(
            entry.causes.iter().map(|(cause, count)| (cause.as_str(), *count)).collect::<Vec<_>>(),
            [("divergence", 1), ("initial", 1)]
        );
        let round = &entry.rounds[1];
        assert_eq!((round.union(), round.flushed, round.is_equal()), (6, 6, true));
        assert!(!entry.rounds[0].is_equal(), "what was not digested is not known to be equal");
        assert_eq!((round.stream, round.sequence, round.offset), (Some(1), Some(9), Some(3)));
        assert!(round.split_ns.contains_key("flush_ns"), "{:?}", round.split_ns);
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<ColoEntry>(&text).unwrap(), entry);
    }
}
