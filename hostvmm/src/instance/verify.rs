//! The guest compared with the plan: after it has arrived, and at the end. All vCPUs stop at the same step; then the
//! guest checks itself, and the digests of guest, host and model must agree, as must the dirty history and the plan.

use std::thread;

use abi::Gpa;

use super::Instance;
use super::log::LogUser;
use crate::control::types::Verification;
use crate::dirty::PageBitmap;
use crate::memory::SlotId;
use crate::pass::{Guest as _, GuestError, PageSource as _, SELF_CHECK_STEPS, SlotView, Threads, region_digest, sum_r};
use crate::report::ledger::PassEntry;
use crate::report::{Ledger, Mismatch, Progress, Verdict};
use crate::verify::SelfCheck;
use crate::verify::model::Model;
use crate::verify::oracle::first_mismatch;
use crate::verify::running::RunningGuest;

/// Pages named of each kind of error.
const LISTED_PAGES: usize = 8;

/// What a check found.
#[derive(Debug)]
struct Findings {
    entry: PassEntry,
    mismatches: Vec<Mismatch>,
}

impl Instance {
    /// Verifies a guest that has arrived, and lets it go on.
    pub(super) fn verify_arrived(&self, guest: &mut RunningGuest<'_>, progress: &Progress) -> Result<(), GuestError> {
        let findings = self.check(guest)?;
        let passed = findings.mismatches.is_empty();
        let reason = findings.mismatches.first().map(|wrong| {
            format!(
                "after its arrival the guest failed the check {}: {} instead of {}",
                wrong.check, wrong.found, wrong.expected
            )
        });
        let PassEntry { pass, digest_guest, digest_copy, digest_model, .. } = findings.entry;
        progress.line(&match &reason {
            None => format!("verified on arrival: {pass} steps, guest = host = plan"),
            Some(reason) => reason.clone(),
        });
        self.agenda().verified =
            Some(Verification { passed, steps: pass, reason, digest_guest, digest_host: digest_copy, digest_model });
        Ok(())
    }

    /// Verifies the guest and files what is found.
    pub(super) fn verify_at_end(&self, guest: &mut RunningGuest<'_>, ledger: &mut Ledger, progress: &Progress) {
        let findings = match self.check(guest) {
            Ok(findings) => findings,
            Err(GuestError::Unsupported(feature)) => {
                ledger.verdict = Verdict::Skip;
                ledger.reason = Some(GuestError::Unsupported(feature).to_string());
                return;
            }
            Err(error) => {
                ledger.verdict = Verdict::Fail;
                ledger.reason = Some(describe(&error, progress));
                return;
            }
        };
        ledger.heartbeat = guest.heartbeats().unwrap_or_default();
        ledger.passes.push(findings.entry);
        for mismatch in findings.mismatches {
            ledger.fail(mismatch);
        }
        let region = SlotView::new(self.machine.memory(), SlotId::Region);
        // Unreadable memory has failed the check above.
        ledger.region.sum_r_source = sum_r(&region).ok().map(|sum| sum.checksum());
    }

    /// Stops all vCPUs at the same step and checks everything.
    fn check(&self, guest: &mut RunningGuest<'_>) -> Result<Findings, GuestError> {
        self.park(guest)?;
        let steps = guest.completed()?.into_iter().max().unwrap_or(0);
        let mut findings =
            Findings { entry: PassEntry { pass: steps, ..PassEntry::default() }, mismatches: Vec::new() };
        if self.spec.self_check != SelfCheck::Off && steps <= SELF_CHECK_STEPS {
            self.self_check(guest, steps, &mut findings)?;
        }
        let (mut model, late) = self.replay(steps);
        self.check_digests(guest, &mut model, &mut findings)?;
        if let Some(history) = self.log.seen_by(LogUser::History)? {
            self.check_history(&history[SlotId::Region.index()], &late, &mut findings);
        }
        Ok(findings)
    }

    /// Brings the guest, wherever it is, to the end of a step that every vCPU has completed; at least of the first one.
    fn park(&self, guest: &mut RunningGuest<'_>) -> Result<(), GuestError> {
        if !guest.completed().is_ok_and(|steps| steps.iter().all(|steps| *steps > 0)) {
            // It boots, or touches its memory for the first time.
            guest.wait_all_parked()?;
            while let Some(next) = guest.parked_at().filter(|next| next.contains(&0)) {
                guest.run_on(&next, 1)?;
                guest.wait_all_parked()?;
            }
        }
        guest.stop_steps()?;
        // It may have been ended before it was given its second step.
        guest.parked_at().map_or(Ok(()), |next| self.begin_history(&next))
    }

    fn self_check(&self, guest: &mut RunningGuest<'_>, steps: u64, findings: &mut Findings) -> Result<(), GuestError> {
        match guest.self_check(steps) {
            Ok(()) => Ok(()),
            Err(GuestError::SelfCheck { at, expected, found }) => {
                findings.byte("self-check", at, expected, found);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The model after `steps`, and the pages of the region that steps after the first wrote.
    fn replay(&self, steps: u64) -> (Model, PageBitmap) {
        let mut model = Model::new(self.plan.clone());
        let mut late = PageBitmap::covering(model.len_bytes(), self.machine.vm().log_page_bytes());
        let to = vec![steps; model.frontier().len()];
        model.advance(&to, |_, step, write| {
            if step > 0 {
                late.set_bytes(write.offset, u64::from(write.len));
            }
        });
        (model, late)
    }

    fn check_digests(
        &self,
        guest: &mut RunningGuest<'_>,
        model: &mut Model,
        findings: &mut Findings,
    ) -> Result<(), GuestError> {
        let pass = findings.entry.pass;
        let region = SlotView::new(self.machine.memory(), SlotId::Region);
        let range = self.machine.layout().region();
        let (by_guest, by_host, by_model) = thread::scope(|scope| {
            let threads = Threads::of_host();
            let replayed = &mut *model;
            let host = scope
                .spawn(move || (region_digest(&region, range.start(), pass, threads), replayed.digest(pass, threads)));
            let by_guest = guest.digest(range, pass);
            let (by_host, by_model) = host.join().expect("hashing does not panic");
            (by_guest, by_host, by_model)
        });
        let (by_guest, by_host) = (by_guest?, by_host?);
        findings.entry.digest_guest = Some(hex(by_guest));
        findings.entry.digest_copy = Some(hex(by_host));
        findings.entry.digest_model = Some(hex(by_model));
        for (check, found) in [("digest-guest", by_guest), ("digest-host", by_host)] {
            if found != by_model {
                findings.fail(check, None, hex(by_model), hex(found));
            }
        }
        if by_host != by_model
            && let Some(wrong) = first_mismatch(model, &SlotView::new(self.machine.memory(), SlotId::Region), pass)?
        {
            findings.byte("region", wrong.gpa, wrong.expected, wrong.found);
        }
        Ok(())
    }

    /// Everything that was written after the first step is in the history, and nothing else.
    fn check_history(&self, history: &PageBitmap, written: &PageBitmap, findings: &mut Findings) {
        let (missing, extra) = (written.without(history), history.without(written));
        let entry = &mut findings.entry;
        (entry.predicted, entry.harvested) = (written.count(), history.count());
        (entry.missing, entry.extra) = (missing.count(), extra.count());
        for (check, pages, expected, found) in
            [("history-missing", &missing, "dirty", "clean"), ("history-extra", &extra, "clean", "dirty")]
        {
            for page in pages.iter().take(LISTED_PAGES) {
                let gpa = self.machine.layout().region().start().checked_add(page * history.page_bytes());
                findings.fail(check, gpa, expected.to_owned(), found.to_owned());
            }
        }
    }
}

impl Findings {
    fn fail(&mut self, check: &str, gpa: Option<Gpa>, expected: String, found: String) {
        let (check, pass) = (check.to_owned(), self.entry.pass);
        self.mismatches.push(Mismatch { check, pass, page: None, gpa: gpa.map(Gpa::raw), expected, found });
    }

    fn byte(&mut self, check: &str, gpa: Gpa, expected: u8, found: u8) {
        self.fail(check, Some(gpa), format!("{expected:#04x}"), format!("{found:#04x}"));
    }
}

/// Why a guest cannot go on, in a line; all of an exception's registers are printed.
pub(super) fn describe(error: &GuestError, progress: &Progress) -> String {
    if let GuestError::Exception(text) = error {
        progress.line(text.trim_end());
    }
    error.reason()
}

fn hex(digest: u64) -> String {
    format!("{digest:#018x}")
}
