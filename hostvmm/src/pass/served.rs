//! Live passes at the pace of an outside replicator, which asks for each bitmap by the file protocol.
//!
//! hostvmm makes its own copy beside the replicator's, so that every harvest is judged as in live mode. What is harvested
//! is kept for the replicator until its next answer, from the guest's first write on: a replicator may start at any time.
//!
//! To the replicator a clean bitmap means "finished". So a request is answered once there is something to copy, or once
//! the guest's writers have stopped; never with a clean bitmap while they only sleep.

use abi::hypercall::Command;

use super::live::{SELF_CHECK_STEPS, live_pass};
use super::lockstep::pass_with;
use super::{PassError, Session};
use crate::dirty::{DirtyLog, DirtyLogError, DirtyLogKind, FirstHarvest, PageBitmap};
use crate::memory::SlotId;
use crate::replicate::{BitmapFile, FileServer, POLL};
use crate::verify::SelfCheck;
use crate::verify::model::Model;
use crate::verify::oracle::live::LiveOracle;

/// How much the guest writes while it is replicated.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Steps of every vCPU, step 0 not counted.
    pub steps: u64,
    /// When the guest checks itself.
    pub self_check: SelfCheck,
}

impl Served {
    /// Runs until the guest's writers have stopped and the replicator has received a clean bitmap.
    ///
    /// # Errors
    /// [`PassError`] where guest or host cannot go on, or the user interrupts; failed checks are in the ledger.
    pub fn run(
        &self,
        session: &mut Session<'_>,
        mut model: Model,
        file: &BitmapFile,
        server: &mut FileServer,
    ) -> Result<(), PassError> {
        let mut owed = Owed {
            kind: session.log.kind(),
            page_bytes: session.page_bytes(),
            pages: pass_with(session, &mut model, 0, 0..1)?,
        };
        let mut oracle = LiveOracle::new(model);
        let mut pass = 0;
        session.log.set_parked(false);
        session.guest.start_all(Command::RunSteps { first: 1, count: self.steps })?;
        let mut stopped = false;
        loop {
            if session.guest.run_for(POLL)? && !stopped {
                stopped = true;
                session.log.set_parked(true);
                pass += 1;
                owed.pages.or(&live_pass(session, &mut oracle, pass, true)?);
                session
                    .progress
                    .line("the guest's writers have stopped; waiting for the replicator to fetch a clean bitmap");
            }
            let asked = file.header()?.r2r == 1;
            if asked && !stopped && owed.pages.is_clean() {
                pass += 1;
                owed.pages.or(&live_pass(session, &mut oracle, pass, false)?);
            }
            if asked && !stopped && owed.pages.is_clean() {
                continue;
            }
            if let Some(answered) = server.poll(&mut owed)?
                && stopped
                && answered.pages == 0
            {
                break;
            }
        }
        if self.self_check != SelfCheck::Off && self.steps < SELF_CHECK_STEPS {
            session.self_check(pass, self.steps + 1)?;
        }
        session.conclude(pass)
    }
}

/// Pages harvested and not yet given to the replicator, as the log that [`FileServer`] fetches from.
struct Owed {
    kind: DirtyLogKind,
    page_bytes: u64,
    pages: PageBitmap,
}

impl DirtyLog for Owed {
    fn kind(&self) -> DirtyLogKind {
        self.kind
    }

    fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    fn first_harvest(&self) -> FirstHarvest {
        FirstHarvest::Exact
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn harvest(&mut self, _slot: SlotId, dirty: &mut PageBitmap) -> Result<(), DirtyLogError> {
        dirty.clone_from(&self.pages);
        self.pages.clear_all();
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}
