//! Judging a log and a copy while the guest runs on.
//!
//! The host reads the vCPUs' progress three times in a pass k: `completed` before the harvest (a), `started` after
//! the harvest (h), and `started` after the copy (b). For a vCPU, then, steps below a were over before the harvest,
//! and steps from h on had not begun when it ended:
//!
//! ```text
//!   steps    …  a(k-1)        h(k-1)              a(k)         h(k)         b(k)  …
//!   in H(k)     └──── perhaps ──┴───── surely ─────┴─ perhaps ──┘
//!   in copy k   ──────────────────── surely ───────┴───────── perhaps ───────┘
//! ```
//!
//! **Sets.** A write of a step in [h(k-1), a(k)) must be in H(k). A write of a step that a harvest cut in two must be in some
//! harvest from the first during which it may have run to the first before which it was complete: for a step in
//! [a(k-1), h(k-1)), in H(k-1) ∪ H(k). A page in H(k) that no step in [a(k-1), h(k)) writes is extra.
//!
//! **Bytes.** After the copy, *every* page of the copy is that of the model at a(k) plus some of the writes of steps in
//! [a(k), b(k)), byte by byte; a word that is added to lies between the model's value and that plus all such
//! addends. For a page of H(k) that is what copying after the harvest gives, torn or not. For another page it holds because
//! a write that its last copy missed came after that harvest, so it would be in a later one, and the page would have been
//! copied again. So this one invariant says, too, that whatever a copy showed in part is harvested again by the time its
//! step is complete. Bytes are judged singly since neither the guest's stores to different places nor a copier's loads have
//! an order that the other side could rely on.
//!
//! When the guest stands still, a = h = b, and the judgement is exact.

use std::collections::HashMap;
use std::ops::Range;

use thiserror::Error;
use workload::{Data, PAGE_BYTES, Write};

use super::{Circumstances, Mismatch, PAGE, SetVerdict, first_difference, judge_bounds, mismatch};
use crate::dirty::PageBitmap;
use crate::memory::MemoryError;
use crate::pass::PageSource;
use crate::verify::model::Model;

/// Regions up to this size are compared whole after every pass: 64 MiB take some 10 ms. Of larger ones the pages that
/// were harvested or whose steps were completed are compared, and all of them once the guest stands still.
const WHOLE_CHECK_BYTES: u64 = 64 << 20;

/// Pages that differ from the model are judged so many at a time, some 8 KiB each.
const BATCH_PAGES: usize = 4096;

/// Most steps of one vCPU in one pass. The guest's word is only a claim, and replaying takes the host's time.
pub const MAX_STEPS_PER_PASS: u64 = 1 << 26;

/// Observations that cannot be judged.
#[derive(Debug, Error)]
pub enum LiveError {
    /// A vCPU's progress ran backwards, or ahead of what a guest can do.
    #[error(
        "vCPU {vcpu} reports impossible progress: {completed} steps completed before the harvest, {started_harvest} \
         started by its end, {started_copy} by the copy's end, after {known_completed} and {known_started} a pass earlier"
    )]
    Progress {
        /// The vCPU.
        vcpu: usize,
        /// Steps completed before the harvest.
        completed: u64,
        /// Steps started when the harvest ended.
        started_harvest: u64,
        /// Steps started when the copy ended.
        started_copy: u64,
        /// Steps completed before the harvest of the pass before.
        known_completed: u64,
        /// Steps started when that harvest ended.
        known_started: u64,
    },
    /// The copy could not be read.
    #[error("the copy cannot be read")]
    Copy(#[from] MemoryError),
}

/// What the host saw of one pass.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a, C: ?Sized> {
    /// The pass.
    pub pass: u64,
    /// Each vCPU's `completed`, read before the harvest began.
    pub completed: &'a [u64],
    /// Each vCPU's `started`, read after the harvest had ended.
    pub started_harvest: &'a [u64],
    /// Each vCPU's `started`, read after the copy had ended.
    pub started_copy: &'a [u64],
    /// The harvested set, in host pages.
    pub harvested: &'a PageBitmap,
    /// The whole copy, not written to any more in this pass.
    pub copy: &'a C,
    /// What may explain extra pages.
    pub circumstances: Circumstances<'a>,
}

/// A page that had to be harvested and was not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MissingPage {
    /// Index of the page in the region, in host pages.
    pub page: u64,
    /// The vCPU that wrote it.
    pub vcpu: u32,
    /// The step in which it did.
    pub step: u64,
}

/// The judgement of one pass.
#[derive(Clone, Debug)]
pub struct LiveVerdict {
    /// Pages written surely between the last two harvests.
    pub surely_written: PageBitmap,
    /// Missing and extra pages.
    pub sets: SetVerdict,
    /// The first missing page that was found, with its write.
    pub first_missing: Option<MissingPage>,
    /// The first byte of the copy that is neither the model's nor that of a write under way.
    pub mismatch: Option<Mismatch>,
    /// Pages of the copy that hold writes under way: of steps not completed before the harvest.
    pub pages_ahead: u64,
}

impl LiveVerdict {
    /// Whether all is as it may be.
    pub fn is_clean(&self) -> bool {
        self.sets.is_exact() && self.mismatch.is_none()
    }
}

/// Steps of a vCPU that a harvest cut in two, or may have.
#[derive(Clone, Debug)]
struct OpenSteps {
    steps: Range<u64>,
    /// Union of the harvests during which they may have run.
    seen: PageBitmap,
}

/// Judges pass after pass while the guest runs.
#[derive(Clone, Debug)]
pub struct LiveOracle {
    /// At a of the last pass.
    model: Model,
    /// h of the last pass.
    started: Vec<u64>,
    /// Per vCPU; the steps are in order, from a of the last pass on.
    open: Vec<Vec<OpenSteps>>,
    whole_check_bytes: u64,
}

impl LiveOracle {
    /// An oracle that takes over from a pass in which the guest stood still at the model's frontier, and copy and model
    /// were equal.
    pub fn new(model: Model) -> Self {
        let started = model.frontier().to_vec();
        Self { open: vec![Vec::new(); started.len()], started, model, whole_check_bytes: WHOLE_CHECK_BYTES }
    }

    /// Treats the region as one too large to be compared whole.
    #[cfg(test)]
    pub(super) fn judging_only_what_moved(self) -> Self {
        Self { whole_check_bytes: 0, ..self }
    }

    /// The model at the last pass's `completed`.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model, for its digest, once the guest stands still.
    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    /// Judges one pass.
    ///
    /// # Errors
    /// [`LiveError`]: progress that no guest makes, or a copy that cannot be read.
    ///
    /// # Panics
    /// If the observation has another number of vCPUs or other sizes than the plan.
    pub fn observe<C: PageSource + ?Sized>(&mut self, seen: &Observation<'_, C>) -> Result<LiveVerdict, LiveError> {
        self.check_progress(seen)?;
        let harvested = seen.harvested;
        let empty = || PageBitmap::new(harvested.pages(), harvested.page_bytes());
        let (mut surely, mut perhaps, mut missing) = (empty(), empty(), empty());
        let mut changed = PageBitmap::covering(self.model.len_bytes(), PAGE_BYTES);
        let mut first_missing = None;
        self.open.iter_mut().flatten().for_each(|open| open.seen.or(harvested));
        let Self { model, started, open, .. } = self;
        model.advance(seen.completed, |vcpu, step, write| {
            changed.set_bytes(write.offset, u64::from(write.len));
            perhaps.set_bytes(write.offset, u64::from(write.len));
            let union = if step >= started[vcpu as usize] {
                surely.set_bytes(write.offset, u64::from(write.len));
                harvested
            } else {
                let open = open[vcpu as usize].iter().find(|open| open.steps.contains(&step));
                &open.expect("a started step is open until it is replayed").seen
            };
            for page in pages_of(write, harvested.page_bytes()) {
                if !union.test(page) {
                    missing.set(page);
                    first_missing.get_or_insert(MissingPage { page, vcpu, step });
                }
            }
        });
        for (vcpu, (&from, &to)) in (0..).zip(seen.completed.iter().zip(seen.started_harvest)) {
            for step in from..to {
                let mut note = |write: Write| perhaps.set_bytes(write.offset, u64::from(write.len));
                self.model.plan().for_each_write(vcpu, step, &mut note);
            }
        }
        let ahead = self.pages_ahead(seen, changed)?;
        let mismatch = self.first_mismatch(seen, &ahead);
        let mut sets = judge_bounds(&surely, &perhaps, harvested, &seen.circumstances);
        sets.missing.or(&missing);
        self.open_steps(seen);
        Ok(LiveVerdict { surely_written: surely, sets, first_missing, mismatch, pages_ahead: ahead.count() })
    }

    fn check_progress<C: ?Sized>(&self, seen: &Observation<'_, C>) -> Result<(), LiveError> {
        let vcpus = self.started.len();
        let lengths = [seen.completed.len(), seen.started_harvest.len(), seen.started_copy.len()];
        assert_eq!(lengths, [vcpus; 3], "an observation has an entry for each vCPU");
        for vcpu in 0..vcpus {
            let (known_completed, known_started) = (self.model.frontier()[vcpu], self.started[vcpu]);
            let (completed, started_harvest, started_copy) =
                (seen.completed[vcpu], seen.started_harvest[vcpu], seen.started_copy[vcpu]);
            let in_order = known_completed <= completed
                && known_started <= started_harvest
                && completed <= started_harvest
                && started_harvest <= started_copy;
            if !in_order || started_copy - known_completed > MAX_STEPS_PER_PASS {
                return Err(LiveError::Progress {
                    vcpu,
                    completed,
                    started_harvest,
                    started_copy,
                    known_completed,
                    known_started,
                });
            }
        }
        Ok(())
    }

    /// The workload pages of the copy that differ from the model, among those that may: `changed`, where the model moved
    /// on, and what was copied.
    fn pages_ahead<C: PageSource + ?Sized>(
        &self,
        seen: &Observation<'_, C>,
        changed: PageBitmap,
    ) -> Result<PageBitmap, LiveError> {
        let len_bytes = self.model.len_bytes();
        assert_eq!(seen.copy.len_bytes(), len_bytes, "a copy has the region's size");
        let mut pages = changed;
        if len_bytes <= self.whole_check_bytes {
            pages.set_all();
        } else if seen.completed == seen.started_copy {
            for extent in self.model.data_extents()?.into_iter().chain(seen.copy.data_extents()?) {
                pages.set_bytes(extent.start, extent.end - extent.start);
            }
        } else {
            pages.or(&seen.harvested.rescaled(PAGE_BYTES, len_bytes));
        }
        let mut ahead = PageBitmap::covering(len_bytes, PAGE_BYTES);
        let mut found = [0; PAGE];
        for page in pages.iter() {
            seen.copy.read(page * PAGE_BYTES, &mut found);
            if self.model.page(page) != found {
                ahead.set(page);
            }
        }
        Ok(ahead)
    }

    /// The first byte of the pages `ahead` that no write under way explains. The pages are judged in batches, so that
    /// a copy that is wrong everywhere does not take all memory to say so.
    fn first_mismatch<C: PageSource + ?Sized>(
        &self,
        seen: &Observation<'_, C>,
        ahead: &PageBitmap,
    ) -> Option<Mismatch> {
        let pages: Vec<u64> = ahead.iter().collect();
        pages.chunks(BATCH_PAGES).find_map(|batch| {
            let mut judged: HashMap<u64, PageAhead> = HashMap::new();
            for &page in batch {
                let mut found = [0; PAGE];
                seen.copy.read(page * PAGE_BYTES, &mut found);
                judged.insert(page, PageAhead::new(found));
            }
            for (vcpu, (&from, &to)) in (0..).zip(seen.completed.iter().zip(seen.started_copy)) {
                for step in from..to {
                    self.model.plan().for_each_write(vcpu, step, |write| {
                        for page in pages_of(&write, PAGE_BYTES) {
                            if let Some(judged) = judged.get_mut(&page) {
                                judged.allow(page, &write);
                            }
                        }
                    });
                }
            }
            batch.iter().find_map(|&page| {
                let judged = &judged[&page];
                let at = judged.first_unexplained(self.model.page(page))?;
                Some(mismatch(&self.model, seen.pass, page, at, &judged.found))
            })
        })
    }

    /// Notes which steps this pass's harvest may have cut.
    fn open_steps<C: ?Sized>(&mut self, seen: &Observation<'_, C>) {
        for (vcpu, open) in self.open.iter_mut().enumerate() {
            let completed = seen.completed[vcpu];
            open.iter_mut().for_each(|open| open.steps.start = open.steps.start.max(completed));
            open.retain(|open| !open.steps.is_empty());
            let steps = self.started[vcpu].max(completed)..seen.started_harvest[vcpu];
            if !steps.is_empty() {
                open.push(OpenSteps { steps, seen: seen.harvested.clone() });
            }
            self.started[vcpu] = seen.started_harvest[vcpu];
        }
    }
}

/// Indices of the pages of `page_bytes` that a write touches.
fn pages_of(write: &Write, page_bytes: u64) -> Range<u64> {
    write.offset / page_bytes..write.end().div_ceil(page_bytes)
}

/// A page of the copy that differs from the model, and what writes under way allow it to hold.
#[derive(Debug)]
struct PageAhead {
    found: [u8; PAGE],
    /// Bytes that some write under way would leave as found.
    allowed: [bool; PAGE],
    /// Sum of what writes under way add, by offset of the word in the page.
    addends: HashMap<usize, u64>,
}

impl PageAhead {
    fn new(found: [u8; PAGE]) -> Self {
        Self { found, allowed: [false; PAGE], addends: HashMap::new() }
    }

    /// Allows what `write` would leave in the page with index `page`.
    fn allow(&mut self, page: u64, write: &Write) {
        let start = write.offset.max(page * PAGE_BYTES);
        let end = write.end().min((page + 1) * PAGE_BYTES);
        let at = (start - page * PAGE_BYTES) as usize;
        let len = (end - start) as usize;
        if let Data::Add(addend) = write.data {
            let sum = self.addends.entry(at).or_default();
            *sum = sum.saturating_add(addend);
            return;
        }
        let mut bytes = [0; PAGE];
        let bytes = &mut bytes[..len];
        write.fill((start - write.offset) as u32, bytes);
        for ((allowed, found), byte) in self.allowed[at..][..len].iter_mut().zip(&self.found[at..]).zip(bytes) {
            *allowed |= *found == *byte;
        }
    }

    /// Offset of the first byte that is neither the model's nor allowed.
    fn first_unexplained(&self, model: &[u8]) -> Option<usize> {
        let mut explained = self.found;
        for (at, byte) in explained.iter_mut().enumerate() {
            if self.allowed[at] {
                *byte = model[at];
            }
        }
        for (&at, &sum) in &self.addends {
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
            if word(&self.found).wrapping_sub(word(model)) <= sum {
                explained[at..at + 8].copy_from_slice(&model[at..at + 8]);
            }
        }
        first_difference(model, &explained)
    }
}
