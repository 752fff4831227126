//! Several dirty logs of the same memory at once: [`SeveralLogs`].
//!
//! Their union is what is copied, so the copy is right if any log is; their difference is what is reported, so a log that
//! lies is found even where the union hides it. Sets are compared in pages of the largest log page among them.
//!
//! # What may differ
//! Logs are harvested one after the other, so with vCPUs running each has a window of its own. Let *E* be harvested before
//! *L*, and their windows in harvest *n* end at *e(n)* < *l(n)*:
//!
//! ```text
//!   time ──── e(n-1) ── l(n-1) ─────────── e(n) ── l(n) ───►
//!   E(n)        (─────────────────────────────]
//!   L(n)                  (────────────────────────────]
//! ```
//!
//! - a page in L(n) but not E(n) was written in (e(n), l(n)], so it must be in E(n+1);
//! - a page in E(n) but not L(n) was written in (e(n-1), l(n-1)], so it must be in L(n-1).
//!
//! Any other difference is a fault of one of the logs ([`Disagreement`]). With the vCPUs parked the gaps hold no
//! write and the sets must be equal. A first harvest that reports every page by rule ([`FirstHarvest::AllSet`]) is
//! not compared. Every log is compared with the first.

use std::time::Duration;

use super::{DirtyLog, DirtyLogError, DirtyLogKind, FirstHarvest, PageBitmap, check_size};
use crate::memory::{GuestMemory, SlotId};

/// A page on which two logs differ and no rule says why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disagreement {
    /// Which slot.
    pub slot: SlotId,
    /// Index of the page in the slot, in pages of [`SeveralLogs::page_bytes`].
    pub page: u64,
    /// Which harvest of the slot, counted from 0 at the start.
    pub harvest: u64,
    /// The log that reported the page.
    pub reported_by: DirtyLogKind,
    /// The log that should have.
    pub missing_from: DirtyLogKind,
}

/// Logs that run together.
pub struct SeveralLogs {
    logs: Vec<Box<dyn DirtyLog>>,
    memory: GuestMemory,
    parked: bool,
    history: Vec<(SlotId, History)>,
    disagreements: Vec<Disagreement>,
}

/// What a slot's last harvest leaves for the comparison with the next.
struct History {
    harvests: u64,
    /// Whether writes may lie between the logs' last harvests (or starts).
    raced: bool,
    /// For each log but the first: its last set, and what of it the first log still owes.
    later: Vec<(PageBitmap, PageBitmap)>,
}

impl SeveralLogs {
    /// The logs `logs` of `memory`, all stopped. With vCPUs assumed running until [`Self::set_parked`] says otherwise.
    ///
    /// # Panics
    /// If there is no log.
    pub fn new(memory: &GuestMemory, logs: Vec<Box<dyn DirtyLog>>) -> Self {
        assert!(!logs.is_empty(), "a set of logs has at least one");
        Self { logs, memory: memory.clone(), parked: false, history: Vec::new(), disagreements: Vec::new() }
    }

    /// The kinds of the logs, in the order in which they are harvested.
    pub fn kinds(&self) -> Vec<DirtyLogKind> {
        self.logs.iter().map(|log| log.kind()).collect()
    }

    /// Says whether nobody writes guest memory during the calls that follow: all vCPUs parked, no device at work.
    pub fn set_parked(&mut self, parked: bool) {
        self.parked = parked;
    }

    /// The differences found since this was last asked, in the order found.
    pub fn take_disagreements(&mut self) -> Vec<Disagreement> {
        std::mem::take(&mut self.disagreements)
    }

    fn len_bytes(&self, slot: SlotId) -> u64 {
        self.memory.slot(slot).range().len_bytes()
    }

    fn compare(&mut self, slot: SlotId, sets: &[PageBitmap]) {
        let all_set: Vec<bool> = self.logs.iter().map(|log| log.first_harvest() == FirstHarvest::AllSet).collect();
        let kinds = self.kinds();
        let (pages, page_bytes) = (sets[0].pages(), sets[0].page_bytes());
        if !self.history.iter().any(|(known, _)| *known == slot) {
            // Before the first harvest lies the start: what was written between the logs' starts is unknown.
            let mut everything = PageBitmap::new(pages, page_bytes);
            everything.set_all();
            let later = vec![(everything, PageBitmap::new(pages, page_bytes)); sets.len() - 1];
            self.history.push((slot, History { harvests: 0, raced: !self.parked, later }));
        }
        let Some((_, history)) = self.history.iter_mut().find(|(known, _)| *known == slot) else { return };
        let harvest = history.harvests;
        let found = &mut self.disagreements;
        let mut report = |pages: &PageBitmap, harvest, reported_by, missing_from| {
            found.extend(pages.iter().map(|page| Disagreement { slot, page, harvest, reported_by, missing_from }));
        };
        let earlier = &sets[0];
        for (index, (set, (last, owed))) in sets[1..].iter().zip(&mut history.later).enumerate() {
            let (first_kind, kind) = (kinds[0], kinds[index + 1]);
            let by_rule = harvest == 0 && (all_set[0] || all_set[index + 1]);
            report(&owed.without(earlier), harvest.saturating_sub(1), kind, first_kind);
            owed.clear_all();
            if !by_rule {
                let mut only_earlier = earlier.without(set);
                if history.raced {
                    only_earlier.and_not(last);
                }
                report(&only_earlier, harvest, first_kind, kind);
                let only_later = set.without(earlier);
                if self.parked {
                    report(&only_later, harvest, kind, first_kind);
                } else {
                    *owed = only_later;
                }
            }
            last.clone_from(set);
        }
        history.raced = !self.parked;
        history.harvests += 1;
    }
}

impl DirtyLog for SeveralLogs {
    /// The kind of the first log.
    fn kind(&self) -> DirtyLogKind {
        self.logs[0].kind()
    }

    fn page_bytes(&self) -> u64 {
        self.logs.iter().map(|log| log.page_bytes()).max().unwrap_or(1)
    }

    fn first_harvest(&self) -> FirstHarvest {
        let any = self.logs.iter().any(|log| log.first_harvest() == FirstHarvest::AllSet);
        if any { FirstHarvest::AllSet } else { FirstHarvest::Exact }
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.history.clear();
        for index in 0..self.logs.len() {
            if let Err(error) = self.logs[index].start() {
                // All or none: a log that did not start leaves nothing running.
                self.logs[..index].iter_mut().try_for_each(|log| log.stop())?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn harvest(&mut self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), DirtyLogError> {
        let (len_bytes, page_bytes) = (self.len_bytes(slot), self.page_bytes());
        check_size(self.kind(), slot, len_bytes, page_bytes, dirty)?;
        if let [log] = &mut self.logs[..] {
            // Nothing to compare with.
            return log.harvest(slot, dirty);
        }
        let mut sets = Vec::with_capacity(self.logs.len());
        for log in &mut self.logs {
            let mut set = PageBitmap::covering(len_bytes, log.page_bytes());
            log.harvest(slot, &mut set)?;
            sets.push(if log.page_bytes() == page_bytes { set } else { set.rescaled(page_bytes, len_bytes) });
        }
        dirty.clear_all();
        sets.iter().for_each(|set| dirty.or(set));
        self.compare(slot, &sets);
        Ok(())
    }

    fn last_reset(&self) -> Duration {
        self.logs.iter().map(|log| log.last_reset()).sum()
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        // Every log is stopped, also after one has failed.
        let mut result = Ok(());
        for log in &mut self.logs {
            result = result.and(log.stop());
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use abi::{GuestRange, map};

    use super::*;

    const PAGES: u64 = 16;

    /// A log that reports what it was told beforehand.
    struct Scripted(DirtyLogKind, VecDeque<Vec<u64>>);

    impl DirtyLog for Scripted {
        fn kind(&self) -> DirtyLogKind {
            self.0
        }
        fn page_bytes(&self) -> u64 {
            4096
        }
        fn first_harvest(&self) -> FirstHarvest {
            if self.0 == DirtyLogKind::PagemapScan { FirstHarvest::AllSet } else { FirstHarvest::Exact }
        }
        fn start(&mut self) -> Result<(), DirtyLogError> {
            Ok(())
        }
        fn harvest(&mut self, _: SlotId, dirty: &mut PageBitmap) -> Result<(), DirtyLogError> {
            self.1.pop_front().unwrap().into_iter().for_each(|page| dirty.set(page));
            Ok(())
        }
        fn stop(&mut self) -> Result<(), DirtyLogError> {
            Ok(())
        }
    }

    /// What is reported for these harvests, the last one parked: (page, harvest, missing from).
    fn disagreements(
        second: DirtyLogKind,
        parked: &[bool],
        e: &[&[u64]],
        l: &[&[u64]],
    ) -> Vec<(u64, u64, DirtyLogKind)> {
        let ram = GuestRange::new(map::RAM_BASE, 64 << 10).unwrap();
        let memory = GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, PAGES * 4096).unwrap(), None).unwrap();
        let script = |sets: &[&[u64]]| sets.iter().map(|set| set.to_vec()).collect();
        let logs: Vec<Box<dyn DirtyLog>> =
            vec![Box::new(Scripted(DirtyLogKind::Emulator, script(e))), Box::new(Scripted(second, script(l)))];
        let mut several = SeveralLogs::new(&memory, logs);
        several.set_parked(parked[0]);
        several.start().unwrap();
        for (index, parked) in parked.iter().enumerate() {
            several.set_parked(*parked);
            let mut dirty = PageBitmap::new(PAGES, 4096);
            several.harvest(SlotId::Region, &mut dirty).unwrap();
            assert!(e[index].iter().chain(l[index]).all(|page| dirty.test(*page)), "the union is what is copied");
        }
        several.take_disagreements().into_iter().map(|found| (found.page, found.harvest, found.missing_from)).collect()
    }

    #[test]
    fn parked_sets_must_be_equal() {
        use DirtyLogKind::{Bitmap, Emulator};
        assert!(disagreements(Bitmap, &[true; 2], &[&[1, 2], &[3]], &[&[1, 2], &[3]]).is_empty());
        let found = disagreements(Bitmap, &[true; 2], &[&[1, 2], &[3]], &[&[1], &[3, 4]]);
        assert_eq!(found, [(2, 0, Bitmap), (4, 1, Emulator)]);
    }

    #[test]
    fn a_first_harvest_of_every_page_is_explained_by_its_rule() {
        let all: Vec<u64> = (0..PAGES).collect();
        let found = disagreements(DirtyLogKind::PagemapScan, &[true; 2], &[&[1], &[3]], &[&all, &[3, 5]]);
        assert_eq!(found, [(5, 1, DirtyLogKind::Emulator)]);
    }

    #[test]
    fn running_vcpus_may_write_between_two_harvests_but_not_vanish() {
        use DirtyLogKind::{Bitmap, Emulator};
        let modes = [true, false, false, true];
        // Page 4 was written between the two harvests 1: the earlier log has it one harvest later.
        assert!(disagreements(Bitmap, &modes, &[&[], &[3], &[4], &[]], &[&[], &[3, 4], &[], &[]]).is_empty());
        // The earlier log never has page 4.
        let found = disagreements(Bitmap, &modes, &[&[], &[3], &[], &[]], &[&[], &[3, 4], &[], &[]]);
        assert_eq!(found, [(4, 1, Emulator)]);
        // The later log never has page 5.
        let found = disagreements(Bitmap, &modes, &[&[], &[3], &[5], &[]], &[&[], &[3], &[], &[]]);
        assert_eq!(found, [(5, 2, Bitmap)]);
        // In the final, parked harvest a page may be owed from before, and nothing is owed afterwards.
        let found = disagreements(Bitmap, &modes, &[&[], &[], &[], &[6]], &[&[], &[], &[6], &[7]]);
        assert_eq!(found, [(7, 3, Emulator)]);
    }
}
