//! Lockstep: all vCPUs park at a barrier each pass, and everything is checked exactly.

use abi::hypercall::Command;

use super::{PassError, Session};
use crate::dirty::PageBitmap;
use crate::verify::SelfCheck;
use crate::verify::model::Model;
use crate::verify::oracle::judge_sets;

/// How many passes, of how much work.
#[derive(Clone, Copy, Debug)]
pub struct Lockstep {
    /// Passes after pass 0.
    pub passes: u64,
    /// Steps of every vCPU in each.
    pub steps_per_pass: u64,
    /// When the guest checks itself.
    pub self_check: SelfCheck,
}

impl Lockstep {
    /// Runs all passes.
    ///
    /// # Errors
    /// [`PassError`] where guest or host cannot go on; failed checks are in the ledger.
    pub fn run(&self, session: &mut Session<'_>, model: &mut Model) -> Result<(), PassError> {
        let mut first = 0;
        for pass in 0..=self.passes {
            let count = if pass == 0 { 1 } else { self.steps_per_pass };
            pass_with(session, model, pass, first..first + count)?;
            first += count;
            if self.self_check == SelfCheck::Every && pass < self.passes {
                session.self_check(pass, first)?;
            }
        }
        if self.self_check != SelfCheck::Off {
            session.self_check(self.passes, first)?;
        }
        session.conclude(self.passes)
    }
}

/// One pass over `steps`: run, harvest, copy, compare sets and digests. Returns what was harvested.
pub(super) fn pass_with(
    session: &mut Session<'_>,
    model: &mut Model,
    pass: u64,
    steps: std::ops::Range<u64>,
) -> Result<PageBitmap, PassError> {
    let written = write(session, model, pass, steps)?;
    check(session, model, pass, &written)
}

/// What a guest has done in a pass.
pub(super) struct Written {
    /// The pages that the plan writes in its steps.
    pub(super) pages: PageBitmap,
    /// How long it took.
    run_ns: u64,
}

/// The guest's part of a pass: it executes `steps`.
pub(super) fn write(
    session: &mut Session<'_>,
    model: &mut Model,
    pass: u64,
    steps: std::ops::Range<u64>,
) -> Result<Written, PassError> {
    (session.before_pass)(pass)?;
    let start = session.guest.now();
    session.guest.run_all(Command::RunSteps { first: steps.start, count: steps.end - steps.start })?;
    let run_ns = session.guest.now().saturating_sub(start).as_nanos() as u64;
    Ok(Written { pages: model.advance_all(steps.end, session.page_bytes()), run_ns })
}

/// The host's part: harvest, copy, compare sets and digests. Returns what was harvested.
pub(super) fn check(
    session: &mut Session<'_>,
    model: &mut Model,
    pass: u64,
    written: &Written,
) -> Result<PageBitmap, PassError> {
    let mut copied = session.harvest(pass)?;
    session.copy(&mut copied)?;
    let verdict = judge_sets(&written.pages, &copied.harvested, &session.circumstances(pass));
    let mut entry = copied.entry;
    entry.predicted = written.pages.count();
    entry.run_ns = written.run_ns;
    session.judge(&mut entry, &verdict);
    session.check_digests(model, &mut entry)?;
    session.finish(entry);
    Ok(copied.harvested)
}
