//! The state of a run over its passes ([`Session`]), and the part of a pass that lockstep and live mode share.
//!
//! ```text
//!   start ─▶ pass 0 ─▶ pass 1 ─▶ … ─▶ pass N ─▶ conclude
//!              │          └ harvest ─▶ copy dirty runs ─▶ check
//!              └ harvest ─▶ copy everything ─▶ check
//! ```
//!
//! A session only observes and records: every failed check becomes a [`Mismatch`] of the ledger, and the run goes on, so
//! that one bug's whole trace is seen. Only a guest that cannot go on, or a host that fails, ends it early.

use std::thread;
use std::time::Instant;

use abi::Gpa;

use super::{CopyTarget, Guest, GuestError, Interference, SlotView, Threads, copy_all, copy_dirty};
use super::{first_difference, region_digest, sum_r};
use crate::backend::BackendError;
use crate::dirty::{DirtyLog, DirtyLogError, FirstHarvest, PageBitmap, SeveralLogs};
use crate::memory::{GuestMemory, MemoryError, SlotId};
use crate::replicate::{BitmapFileError, ServeError};
use crate::report::{Ledger, Mismatch, PassEntry, Progress};
use crate::verify::oracle::live::LiveError;
use crate::verify::oracle::{self, Circumstances, SetVerdict};

/// Most pages of one kind that one pass lists in the ledger; the counts are always whole.
const LISTED_PAGES: usize = 8;

/// Why a run ended before its last pass.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The guest cannot go on.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The dirty log failed.
    #[error(transparent)]
    Log(#[from] DirtyLogError),
    /// Memory could not be read or searched.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A replicator can be served no longer.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Its bitmap file can be read no longer.
    #[error(transparent)]
    BitmapFile(#[from] BitmapFileError),
    /// The accelerator refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// What the guest claims cannot be judged.
    #[error(transparent)]
    Live(#[from] LiveError),
}

/// A run over its passes.
pub struct Session<'a> {
    /// The guest.
    pub guest: &'a mut dyn Guest,
    /// Its memory.
    pub memory: &'a GuestMemory,
    /// Its dirty logs.
    pub log: SeveralLogs,
    /// Where the region is copied to.
    pub target: &'a CopyTarget,
    /// A fault of the VMM's, to be found.
    pub interference: Option<Interference>,
    /// Called before the steps of each pass with its number: where faults are planted in the accelerator.
    pub before_pass: &'a mut dyn FnMut(u64) -> Result<(), BackendError>,
    /// What is recorded.
    pub ledger: &'a mut Ledger,
    /// Who is shown.
    pub progress: &'a Progress,
    /// For copies and digests.
    pub threads: Threads,
}

/// What a pass harvested and copied.
pub(super) struct Copied {
    pub(super) harvested: PageBitmap,
    pub(super) entry: PassEntry,
}

impl Session<'_> {
    /// Bytes that one dirty bit stands for.
    pub(super) fn page_bytes(&self) -> u64 {
        self.log.page_bytes()
    }

    /// The region's address.
    pub(super) fn base(&self) -> Gpa {
        self.memory.slot(SlotId::Region).range().start()
    }

    /// Starts the dirty log, with the guest standing still.
    ///
    /// # Errors
    /// [`PassError::Log`].
    pub fn start(&mut self) -> Result<(), PassError> {
        self.log.set_parked(true);
        Ok(self.log.start()?)
    }

    /// Fetches and resets the log.
    pub(super) fn harvest(&mut self, pass: u64) -> Result<Copied, PassError> {
        let len_bytes = self.memory.slot(SlotId::Region).range().len_bytes();
        let mut harvested = PageBitmap::covering(len_bytes, self.page_bytes());
        let start = Instant::now();
        self.log.harvest(SlotId::Region, &mut harvested)?;
        let harvest_ns = start.elapsed().as_nanos() as u64;
        if let Some(interference) = &self.interference {
            interference.on_harvest(pass, &mut harvested);
        }
        let reset_ns = self.log.last_reset().as_nanos() as u64;
        let entry = PassEntry { pass, harvested: harvested.count(), harvest_ns, reset_ns, ..PassEntry::default() };
        Ok(Copied { harvested, entry })
    }

    /// Copies everything in pass 0, and what was harvested in any other.
    pub(super) fn copy(&mut self, copied: &mut Copied) -> Result<(), PassError> {
        let (pass, page_bytes) = (copied.entry.pass, self.page_bytes());
        let before =
            self.interference.and_then(|fault| Some((fault, fault.before_copy(pass, self.target, page_bytes)?)));
        let stats = if pass == 0 {
            copy_all(self.memory, SlotId::Region, self.target, self.threads)?
        } else {
            copy_dirty(self.memory, SlotId::Region, &copied.harvested, self.target, self.threads)?
        };
        if let Some((fault, before)) = before {
            fault.after_copy(&before, self.target, page_bytes);
            fault.on_memory(pass, self.memory, page_bytes)?;
        }
        copied.entry.pages_copied = if pass == 0 { copied.harvested.pages() } else { stats.pages };
        copied.entry.bytes_copied = stats.bytes + stats.zero_bytes;
        copied.entry.copy_ns = stats.ns;
        Ok(())
    }

    /// What may explain extra pages in `pass`.
    pub(super) fn circumstances(&self, pass: u64) -> Circumstances<'static> {
        let initially_all_set = pass == 0 && self.log.first_harvest() == FirstHarvest::AllSet;
        Circumstances { initially_all_set, ..Circumstances::plain(self.page_bytes()) }
    }

    /// Records how the harvested set compares with the plan.
    pub(super) fn judge(&mut self, entry: &mut PassEntry, verdict: &SetVerdict) {
        entry.missing = verdict.missing.count();
        entry.extra = verdict.extra.count();
        entry.extra_explained = verdict.explained_pages();
        entry.extra_rule = verdict.explained.first().map(|(rule, _)| rule.name().to_owned());
        for page in verdict.missing.iter().take(LISTED_PAGES) {
            self.fail_page("missing", entry.pass, page, "dirty", "clean");
        }
        for page in verdict.unexplained.iter().take(LISTED_PAGES) {
            self.fail_page("extra", entry.pass, page, "clean", "dirty");
        }
        for disagreement in self.log.take_disagreements().into_iter().take(LISTED_PAGES) {
            let expected = format!("in {} as in {}", disagreement.missing_from, disagreement.reported_by);
            self.fail_page("logs-agree", disagreement.harvest, disagreement.page, &expected, "not there");
        }
    }

    /// Digests the copy.
    pub(super) fn digest_copy(&mut self, entry: &mut PassEntry) -> Result<u64, PassError> {
        let start = Instant::now();
        let digest = region_digest(self.target, self.base(), entry.pass, self.threads)?;
        entry.digest_ns = start.elapsed().as_nanos() as u64;
        entry.digest_copy = Some(hex(digest));
        Ok(digest)
    }

    /// Compares the three digests of a guest that stands still; where they differ, finds out where memory does.
    pub(super) fn check_digests(
        &mut self,
        model: &mut crate::verify::model::Model,
        entry: &mut PassEntry,
    ) -> Result<(), PassError> {
        let pass = entry.pass;
        let region = self.memory.slot(SlotId::Region).range();
        let (target, threads, model_digest) = (self.target, self.threads, &mut *model);
        // The guest takes longer than the host, which works on memory of its own meanwhile.
        let (guest, copy, expected) = thread::scope(|scope| {
            let host = scope.spawn(move || {
                let start = Instant::now();
                let copy = region_digest(target, region.start(), pass, threads);
                (copy, start.elapsed(), model_digest.digest(pass, threads))
            });
            let guest = self.guest.digest(region, pass);
            let (copy, elapsed, expected) = host.join().expect("hashing does not panic");
            entry.digest_ns = elapsed.as_nanos() as u64;
            (guest, copy, expected)
        });
        let (guest, copy) = (guest?, copy?);
        entry.digest_copy = Some(hex(copy));
        entry.digest_model = Some(hex(expected));
        entry.digest_guest = Some(hex(guest));
        if copy != expected {
            self.fail("digest-copy", pass, hex(expected), hex(copy));
            if let Some(wrong) = oracle::first_mismatch(model, self.target, pass)? {
                self.fail_byte("copy", pass, wrong.gpa, wrong.expected, wrong.found);
            }
        }
        if guest != expected {
            self.fail("digest-guest", pass, hex(expected), hex(guest));
            let region = SlotView::new(self.memory, SlotId::Region);
            if let Some(wrong) = oracle::first_mismatch(model, &region, pass)? {
                self.fail_byte("region", pass, wrong.gpa, wrong.expected, wrong.found);
            }
        }
        Ok(())
    }

    /// Lets the guest check itself, and records what it finds.
    pub(super) fn self_check(&mut self, pass: u64, steps: u64) -> Result<(), PassError> {
        match self.guest.self_check(steps) {
            Ok(()) => Ok(()),
            Err(GuestError::SelfCheck { at, expected, found }) => {
                self.fail_byte("self-check", pass, at, expected, found);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Compares region and copy byte for byte, and takes the checksums of the original tests, with the guest parked.
    pub(super) fn conclude(&mut self, pass: u64) -> Result<(), PassError> {
        let region = SlotView::new(self.memory, SlotId::Region);
        let base = self.base();
        let (different, source, dest) = thread::scope(|scope| {
            let source = scope.spawn(|| sum_r(&region));
            let dest = scope.spawn(|| sum_r(self.target));
            let different = first_difference(&region, self.target, base);
            (different, source.join().expect("summing does not panic"), dest.join().expect("summing does not panic"))
        });
        self.ledger.region.equal = Some(different.is_none());
        self.ledger.region.sum_r_source = Some(source?.checksum());
        self.ledger.region.sum_r_dest = Some(dest?.checksum());
        if let Some(different) = different {
            self.fail_byte("equal", pass, different.gpa, different.expected, different.found);
        }
        Ok(())
    }

    /// Files a finished pass.
    pub(super) fn finish(&mut self, entry: PassEntry) {
        self.progress.advance(format!(
            "pass {}: {} dirty, {} copied{}",
            entry.pass,
            entry.harvested,
            entry.pages_copied,
            if self.ledger.mismatches.is_empty() { "" } else { ", MISMATCH" }
        ));
        self.ledger.passes.push(entry);
    }

    fn fail_page(&mut self, check: &str, pass: u64, page: u64, expected: &str, found: &str) {
        let gpa = self.base().checked_add(page * self.page_bytes()).map(Gpa::raw);
        let (expected, found) = (expected.to_owned(), found.to_owned());
        self.ledger.fail(Mismatch { check: check.to_owned(), pass, page: Some(page), gpa, expected, found });
    }

    pub(super) fn fail_byte(&mut self, check: &str, pass: u64, gpa: Gpa, expected: u8, found: u8) {
        let page = gpa.checked_offset_from(self.base()).map(|offset| offset / self.page_bytes());
        self.ledger.fail(Mismatch {
            check: check.to_owned(),
            pass,
            page,
            gpa: Some(gpa.raw()),
            expected: format!("{expected:#04x}"),
            found: format!("{found:#04x}"),
        });
    }

    fn fail(&mut self, check: &str, pass: u64, expected: String, found: String) {
        self.ledger.fail(Mismatch { check: check.to_owned(), pass, page: None, gpa: None, expected, found });
    }
}

fn hex(digest: u64) -> String {
    format!("{digest:#018x}")
}
