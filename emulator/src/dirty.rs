//! The emulator's dirty log: one bitmap for each RAM slot.
//!
//! [`DirtyLog`] holds a bit for each page of each slot; the page is 4, 16 or 64 KiB, like the host page of a KVM host.
//! Two kinds of writer set bits. A vCPU's first store through a translation whose write tag is clean calls
//! [`DirtyLog::mark`], once, and remembers that in its TLB. The VMM calls [`DirtyLog::mark_range`] after it has written guest
//! memory itself. [`DirtyLog::harvest`] fetches and clears one slot's bitmap; a complete harvest is that and then a
//! round of [`crate::safepoint`] that makes every vCPU drop its write tags, and only then may the pages be copied.
//!
//! # Why no write is lost
//! *Invariant*: a vCPU's write tag for a page is valid only if the page's bit has been set since that vCPU last
//! acknowledged a drop of its write tags.
//!
//! A vCPU marks, sets its tag and stores within one instruction, and acknowledges only between instructions. A store made
//! before the acknowledgement is ordered before the copy by the acknowledgement (release, acquire), and its page's bit was
//! either in the bitmap that the harvest took (the page is copied now, store included) or set after it (the page is in
//! the next harvest). A store made after the acknowledgement takes the slow path, because its tag is gone. There `mark` may find the
//! bit set and skip the update: the acknowledgement also orders the harvest's swap before that load, so a bit seen set was
//! set after the swap and belongs to the next harvest. This is why relaxed accesses do in `mark`.
//!
//! The VMM's own threads take no part in the safepoint protocol. So `mark_range` always performs the update, with
//! release, after the write: if the harvest's swap (acquire) takes that bit, it sees the write too; if not, the bit is
//! there for the next harvest.
//!
//! # Planted faults
//! A checker that has never seen a fault is not trusted. [`DirtyLog::plant`] makes the log lie in one of three documented
//! ways ([`PlantedFault`]); nothing else in the emulator knows about it but the TLB, which asks
//! [`DirtyLog::keeps_stale_tag`] when it drops its write tags.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::addr::Gpa;

/// A deliberate defect, for proving that a checker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedFault {
    /// The bit of the page that holds `gpa` is lost in harvest number `harvest` of its slot: cleared, but not reported.
    DropAtHarvest {
        /// Any address in the page.
        gpa: Gpa,
        /// Which harvest of the slot, counted from 0 at the last [`DirtyLog::start`].
        harvest: u64,
    },
    /// The page that holds `gpa` is never marked, whoever writes it.
    NeverMark {
        /// Any address in the page.
        gpa: Gpa,
    },
    /// Write tags of the page that holds `gpa` survive the drop that follows harvest number `harvest` of its slot, so
    /// stores through them go unlogged until the next harvest.
    KeepStaleTag {
        /// Any address in the page.
        gpa: Gpa,
        /// Which harvest of the slot, counted from 0 at the last [`DirtyLog::start`].
        harvest: u64,
    },
}

/// A dirty log that cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DirtyLogError {
    /// A page size other than 4, 16 and 64 KiB.
    #[error("a dirty-log page of 2^{shift} bytes: must be 2^12, 2^14 or 2^16")]
    PageShift {
        /// log2 of the page size asked for.
        shift: u32,
    },
    /// A slot whose start is in the middle of a log page: its first bit would cover memory that is not the slot's.
    #[error("RAM slot {slot} at {gpa} does not start on a dirty-log page of 2^{shift} bytes")]
    SlotAlignment {
        /// Index of the slot.
        slot: usize,
        /// Its guest address.
        gpa: Gpa,
        /// log2 of the page size asked for.
        shift: u32,
    },
}

/// A harvest that cannot be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HarvestError {
    /// There is no such slot.
    #[error("harvest of RAM slot {slot}: there is no such slot")]
    NoSlot {
        /// Index asked for.
        slot: usize,
    },
    /// A buffer whose length is not that of the slot's bitmap.
    #[error("harvest of RAM slot {slot}: its bitmap has {expected} words, the buffer has {given}")]
    BufferLength {
        /// Index of the slot.
        slot: usize,
        /// [`DirtyLog::words`] of it.
        expected: usize,
        /// Length of the buffer.
        given: usize,
    },
}

#[derive(Debug)]
struct SlotLog {
    gpa: Gpa,
    len_bytes: u64,
    words: Vec<AtomicU64>,
    /// Harvests since the last start.
    harvests: AtomicU64,
}

/// The dirty bitmaps of a machine.
#[derive(Debug)]
pub struct DirtyLog {
    page_shift: u32,
    enabled: AtomicBool,
    slots: Vec<SlotLog>,
    /// Whether `faults` has anything in it: keeps the lock off every path of an honest log.
    faulty: AtomicBool,
    faults: Mutex<Vec<PlantedFault>>,
}

impl DirtyLog {
    /// A clean, stopped log with pages of 2^`page_shift` bytes for slots given as (start, length in bytes).
    ///
    /// # Errors
    /// [`DirtyLogError`] for a page size other than 4, 16, 64 KiB or a slot that does not start on such a page.
    pub fn new(page_shift: u32, slots: impl IntoIterator<Item = (Gpa, u64)>) -> Result<Self, DirtyLogError> {
        if ![12, 14, 16].contains(&page_shift) {
            return Err(DirtyLogError::PageShift { shift: page_shift });
        }
        let slots = slots.into_iter().enumerate().map(|(slot, (gpa, len_bytes))| {
            if !gpa.is_aligned(1 << page_shift) {
                return Err(DirtyLogError::SlotAlignment { slot, gpa, shift: page_shift });
            }
            let words = len_bytes.div_ceil(1 << page_shift).div_ceil(64);
            Ok(SlotLog {
                gpa,
                len_bytes,
                words: (0..words).map(|_| AtomicU64::new(0)).collect(),
                harvests: AtomicU64::new(0),
            })
        });
        Ok(Self {
            page_shift,
            enabled: AtomicBool::new(false),
            slots: slots.collect::<Result<_, _>>()?,
            faulty: AtomicBool::new(false),
            faults: Mutex::new(Vec::new()),
        })
    }

    /// log2 of the bytes that one bit stands for.
    pub fn page_shift(&self) -> u32 {
        self.page_shift
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Length in 64-bit words of a slot's bitmap, or `None` for no such slot. Bit `i` of word `w` is page `64 w + i`.
    pub fn words(&self, slot: usize) -> Option<usize> {
        self.slots.get(slot).map(|s| s.words.len())
    }

    /// Whether writes are being logged.
    pub fn is_on(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Clears every bitmap, counts harvests from 0 and starts logging. The log is complete only for writes made after a
    /// following drop of all write tags (the caller's duty, by a safepoint round): tags set while it was off had no bit.
    pub fn start(&self) {
        for slot in &self.slots {
            slot.harvests.store(0, Ordering::Relaxed);
            for word in &slot.words {
                word.store(0, Ordering::Relaxed);
            }
        }
        self.enabled.store(true, Ordering::Release);
    }

    /// Stops logging. What is in the bitmaps stays there for a last harvest.
    pub fn stop(&self) {
        self.enabled.store(false, Ordering::Release);
    }

    /// Marks the page of `gpa` dirty, on a vCPU's slow path: between safepoints, before the store. No effect outside RAM
    /// or while the log is off.
    #[inline]
    pub fn mark(&self, gpa: Gpa) {
        if let Some((word, bit)) = self.bit_to_mark(gpa)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Marks every page of `len_bytes` from `gpa` dirty, for a write by the VMM; call it *after* the write. Parts outside
    /// RAM are ignored. No effect while the log is off.
    pub fn mark_range(&self, gpa: Gpa, len_bytes: u64) {
        let Some(last) = len_bytes.checked_sub(1) else { return };
        let last = gpa.raw().saturating_add(last);
        for slot in &self.slots {
            // Clipping to the slot bounds the loop by real pages whatever the range claims.
            let first = gpa.raw().max(slot.gpa.raw());
            let end = last.min(slot.gpa.raw() + (slot.len_bytes - 1));
            if first > end {
                continue;
            }
            for page in first >> self.page_shift..=end >> self.page_shift {
                let gpa = Gpa::new((page << self.page_shift).max(first));
                if let Some((word, bit)) = self.bit_to_mark(gpa) {
                    word.fetch_or(bit, Ordering::Release);
                }
            }
        }
    }

    /// Whether the bit of `gpa`'s page is set; `false` outside RAM.
    pub fn is_marked(&self, gpa: Gpa) -> bool {
        self.bit(gpa).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Moves `slot`'s bitmap into `out` (overwriting it) and clears it. The pages may be copied only after a following
    /// drop of all write tags has been acknowledged. A clean word costs one load: a clean GiB of 4 KiB pages, microseconds.
    ///
    /// # Errors
    /// [`HarvestError`] for no such slot or a buffer whose length is not [`Self::words`]; nothing was cleared.
    pub fn harvest(&self, slot: usize, out: &mut [u64]) -> Result<(), HarvestError> {
        let log = self.slots.get(slot).ok_or(HarvestError::NoSlot { slot })?;
        if out.len() != log.words.len() {
            return Err(HarvestError::BufferLength { slot, expected: log.words.len(), given: out.len() });
        }
        for (out, word) in out.iter_mut().zip(&log.words) {
            *out = match word.load(Ordering::Relaxed) {
                0 => 0,
                _ => word.swap(0, Ordering::AcqRel),
            };
        }
        let number = log.harvests.fetch_add(1, Ordering::Relaxed);
        if self.faulty.load(Ordering::Relaxed) {
            self.drop_planted_bits(slot, number, out);
        }
        Ok(())
    }

    /// Plants a fault. Faults add up until [`Self::clear_faults`].
    pub fn plant(&self, fault: PlantedFault) {
        self.faults().push(fault);
        self.faulty.store(true, Ordering::Release);
    }

    /// Makes the log honest again.
    pub fn clear_faults(&self) {
        self.faults().clear();
        self.faulty.store(false, Ordering::Release);
    }

    /// Whether a TLB that drops its write tags must, by a planted fault, keep those of `gpa`'s page. A TLB asks
    /// [`Self::has_stale_tag_fault`] first.
    pub fn keeps_stale_tag(&self, gpa: Gpa) -> bool {
        let Some((slot, page)) = self.locate(gpa) else { return false };
        let harvested = self.slots[slot].harvests.load(Ordering::Relaxed);
        self.has_stale_tag_fault()
            && self.faults().iter().any(|fault| {
                matches!(fault, PlantedFault::KeepStaleTag { gpa, harvest }
                    if self.locate(*gpa) == Some((slot, page)) && harvested == harvest + 1)
            })
    }

    /// Whether any planted fault concerns write tags: the cheap question before [`Self::keeps_stale_tag`].
    pub fn has_stale_tag_fault(&self) -> bool {
        self.faulty.load(Ordering::Relaxed)
            && self.faults().iter().any(|fault| matches!(fault, PlantedFault::KeepStaleTag { .. }))
    }

    fn faults(&self) -> MutexGuard<'_, Vec<PlantedFault>> {
        // A list of plain values cannot be left half-changed by a panic elsewhere.
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_planted_bits(&self, slot: usize, number: u64, out: &mut [u64]) {
        for fault in self.faults().iter() {
            if let PlantedFault::DropAtHarvest { gpa, harvest } = *fault
                && harvest == number
                && let Some((at, page)) = self.locate(gpa)
                && at == slot
            {
                out[page / 64] &= !(1 << (page % 64));
            }
        }
    }

    /// Slot and page number within it.
    fn locate(&self, gpa: Gpa) -> Option<(usize, usize)> {
        self.slots.iter().enumerate().find_map(|(index, slot)| {
            let offset = gpa.checked_offset_from(slot.gpa)?;
            (offset < slot.len_bytes).then_some((index, (offset >> self.page_shift) as usize))
        })
    }

    fn bit(&self, gpa: Gpa) -> Option<(&AtomicU64, u64)> {
        let (slot, page) = self.locate(gpa)?;
        Some((&self.slots[slot].words[page / 64], 1 << (page % 64)))
    }

    #[inline]
    fn bit_to_mark(&self, gpa: Gpa) -> Option<(&AtomicU64, u64)> {
        if !self.is_on() {
            return None;
        }
        if self.faulty.load(Ordering::Relaxed) {
            let page = self.locate(gpa)?;
            let never = |fault: &PlantedFault| matches!(fault, PlantedFault::NeverMark { gpa } if self.locate(*gpa) == Some(page));
            if self.faults().iter().any(never) {
                return None;
            }
        }
        self.bit(gpa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const BASE: u64 = 0x4000_0000;

    fn log(shift: u32, len_bytes: u64) -> DirtyLog {
        let log = DirtyLog::new(shift, [(Gpa::new(BASE), len_bytes)]).expect("a good slot");
        log.start();
        log
    }

    fn pages(log: &DirtyLog, slot: usize) -> Vec<usize> {
        let mut words = vec![u64::MAX; log.words(slot).expect("a slot")];
        log.harvest(slot, &mut words).expect("a buffer of the right length");
        (0..words.len() * 64).filter(|page| words[page / 64] >> (page % 64) & 1 == 1).collect()
    }

    #[test]
    fn a_stopped_log_stays_clean_and_keeps_its_last_bits() {
        let log = DirtyLog::new(12, [(Gpa::new(BASE), 1 << 20)]).expect("a good slot");
        log.mark(Gpa::new(BASE));
        log.mark_range(Gpa::new(BASE), 4096);
        assert_eq!(pages(&log, 0), [0_usize; 0]);
        log.start();
        log.mark(Gpa::new(BASE + 0x5000));
        log.stop();
        log.mark(Gpa::new(BASE + 0x6000));
        assert_eq!(pages(&log, 0), [5]);
    }

    #[test]
    fn a_harvest_takes_each_bit_once() {
        let log = log(12, 1 << 20);
        log.mark(Gpa::new(BASE + 0xfff));
        log.mark(Gpa::new(BASE + 0xf_f000));
        assert!(log.is_marked(Gpa::new(BASE)));
        assert_eq!(pages(&log, 0), [0, 255]);
        assert_eq!(pages(&log, 0), [0_usize; 0]);
    }

    #[test]
    fn a_bit_stands_for_the_configured_page() {
        let log = log(16, 0x2_1000);
        log.mark(Gpa::new(BASE + 0x1_3000));
        log.mark(Gpa::new(BASE + 0x2_0fff));
        log.mark(Gpa::new(BASE + 0x2_1000));
        assert_eq!(pages(&log, 0), [1, 2], "the last, partial page has a bit; memory beyond it has none");
        assert!(matches!(DirtyLog::new(13, []), Err(DirtyLogError::PageShift { shift: 13 })));
        assert!(matches!(
            DirtyLog::new(16, [(Gpa::new(0x1000), 4096)]),
            Err(DirtyLogError::SlotAlignment { slot: 0, .. })
        ));
    }

    #[test]
    fn a_range_that_claims_the_whole_address_space_marks_only_ram() {
        let log = log(12, 0x3000);
        log.mark_range(Gpa::new(0), u64::MAX);
        assert_eq!(pages(&log, 0), [0, 1, 2]);
        log.mark_range(Gpa::new(u64::MAX), 2);
        log.mark_range(Gpa::new(BASE), 0);
        assert_eq!(pages(&log, 0), [0_usize; 0]);
    }

    #[test]
    fn a_buffer_of_the_wrong_length_loses_nothing() {
        let log = log(12, 1 << 20);
        log.mark(Gpa::new(BASE));
        assert_eq!(log.harvest(0, &mut [0; 3]), Err(HarvestError::BufferLength { slot: 0, expected: 4, given: 3 }));
        assert_eq!(log.harvest(1, &mut [0; 4]), Err(HarvestError::NoSlot { slot: 1 }));
        assert_eq!(pages(&log, 0), [0]);
    }

    #[test]
    fn planted_faults_do_what_they_say_and_no_more() {
        let log = log(12, 1 << 20);
        let at = |page: u64| Gpa::new(BASE + (page << 12));
        let mark = |list: &[u64]| list.iter().for_each(|page| log.mark(at(*page)));
        log.plant(PlantedFault::DropAtHarvest { gpa: at(3), harvest: 1 });
        log.plant(PlantedFault::NeverMark { gpa: at(4) });
        log.plant(PlantedFault::KeepStaleTag { gpa: at(5), harvest: 0 });
        mark(&[3, 4, 5]);
        log.mark_range(at(4), 1);
        assert!(!log.keeps_stale_tag(at(5)), "before harvest 0");
        assert_eq!(pages(&log, 0), [3, 5]);
        assert!(log.keeps_stale_tag(at(5)));
        assert!(!log.keeps_stale_tag(at(6)));
        mark(&[2, 3, 4, 5]);
        assert_eq!(pages(&log, 0), [2, 5], "page 3 lost in harvest 1");
        assert!(!log.keeps_stale_tag(at(5)), "after harvest 1");
        mark(&[3, 4]);
        assert_eq!(pages(&log, 0), [3]);
        log.clear_faults();
        mark(&[4]);
        assert_eq!(pages(&log, 0), [4]);
        assert!(!log.has_stale_tag_fault());
    }

    proptest! {
        #[test]
        fn marks_agree_with_a_set_of_pages(
            shift in prop::sample::select(vec![12u32, 14, 16]),
            writes in prop::collection::vec((0u64..0x30_0000, 0u64..0x2_0000), 0..40),
        ) {
            let slots = [(Gpa::new(BASE), 0x10_0000u64), (Gpa::new(BASE + 0x20_0000), 0x8_1000)];
            let log = DirtyLog::new(shift, slots).expect("good slots");
            log.start();
            let mut model = [BTreeSet::new(), BTreeSet::new()];
            for (offset, len) in writes {
                log.mark_range(Gpa::new(BASE + offset), len);
                for byte in (offset..offset + len).step_by(512).chain((len > 0).then(|| offset + len - 1)) {
                    for (slot, (gpa, bytes)) in slots.iter().enumerate() {
                        if let Some(inside) = (BASE + byte).checked_sub(gpa.raw()).filter(|o| o < bytes) {
                            model[slot].insert((inside >> shift) as usize);
                        }
                    }
                }
            }
            for (slot, expected) in model.iter().enumerate() {
                prop_assert_eq!(pages(&log, slot), expected.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
