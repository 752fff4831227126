//! Live: the guest runs on while pages are harvested and copied; staleness is bounded, and the final pass is exact.
//!
//! Pass 0 is a lockstep pass over step 0, so that copy and model start equal. The last pass is a stop-and-copy.

use std::time::Duration;

use abi::hypercall::Command;

use super::lockstep::pass_with;
use super::{PassError, Session};
use crate::dirty::PageBitmap;
use crate::verify::SelfCheck;
use crate::verify::model::Model;
use crate::verify::oracle::live::{LiveOracle, Observation};

/// The guest's self-check replays every step from the first, in the guest's time. A live guest that never sleeps makes
/// more than that many; its memory is then proven by the digest alone.
pub(crate) const SELF_CHECK_STEPS: u64 = 200;

/// How many passes, at what distance.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    /// Passes after pass 0; the last one is made with the guest parked.
    pub passes: u64,
    /// How long the guest runs before each harvest, in its own time.
    pub interval: Duration,
    /// When the guest checks itself; only after the last pass does it stand still.
    pub self_check: SelfCheck,
}

impl Live {
    /// Runs all passes.
    ///
    /// # Errors
    /// [`PassError`] where guest or host cannot go on; failed checks are in the ledger.
    pub fn run(&self, session: &mut Session<'_>, mut model: Model) -> Result<(), PassError> {
        pass_with(session, &mut model, 0, 0..1)?;
        if self.passes == 0 {
            return session.conclude(0);
        }
        let mut oracle = LiveOracle::new(model);
        session.log.set_parked(false);
        session.guest.start_all(Command::RunSteps { first: 1, count: u64::MAX })?;
        for pass in 1..=self.passes {
            (session.before_pass)(pass)?;
            session.guest.run_for(self.interval)?;
            if pass == self.passes {
                session.guest.stop_steps()?;
                session.log.set_parked(true);
            }
            live_pass(session, &mut oracle, pass, pass == self.passes)?;
        }
        let steps = session.guest.completed()?.into_iter().max().unwrap_or(1);
        if self.self_check != SelfCheck::Off && steps <= SELF_CHECK_STEPS {
            session.self_check(self.passes, steps)?;
        }
        session.conclude(self.passes)
    }
}

/// One pass over a guest that runs, or that has just been parked: harvest, copy, judge. Returns what was harvested.
pub(super) fn live_pass(
    session: &mut Session<'_>,
    oracle: &mut LiveOracle,
    pass: u64,
    parked: bool,
) -> Result<PageBitmap, PassError> {
    let completed = session.guest.completed()?;
    let mut copied = session.harvest(pass)?;
    let started_harvest = session.guest.started()?;
    session.copy(&mut copied)?;
    let started_copy = session.guest.started()?;
    // Judging replays every step the guest has made. If it ran on meanwhile, a guest that is faster than the replay would
    // make each pass longer than the last.
    session.guest.hold();
    let verdict = oracle.observe(&Observation {
        pass,
        completed: &completed,
        started_harvest: &started_harvest,
        started_copy: &started_copy,
        harvested: &copied.harvested,
        copy: session.target,
        circumstances: session.circumstances(pass),
    })?;
    let mut entry = copied.entry;
    entry.predicted = verdict.surely_written.count();
    session.judge(&mut entry, &verdict.sets);
    if let Some(wrong) = verdict.mismatch {
        session.fail_byte("staleness", pass, wrong.gpa, wrong.expected, wrong.found);
    }
    if parked {
        session.guest.release();
        session.check_digests(oracle.model_mut(), &mut entry)?;
    } else {
        session.digest_copy(&mut entry)?;
    }
    session.finish(entry);
    session.guest.release();
    Ok(copied.harvested)
}
