//! The scenario `run --bitmap-file`: an outside replicator is served while every harvest is judged.

use std::path::Path;

use super::Spec;
use super::interrupt::Interrupt;
use super::passes::{RunError, execute};
use crate::memory::SlotId;
use crate::pass::Served;
use crate::replicate::{BitmapFile, FileServer};
use crate::report::{Ledger, Progress};

/// Runs `spec` and serves replicators through the file `bitmap`, until the guest has made all its steps and a replicator has
/// received a clean bitmap.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_served(spec: &Spec, bitmap: &Path, interrupt: &Interrupt, progress: &Progress) -> Result<Ledger, RunError> {
    let page_bytes = spec.machine.layout()?.log_page_bytes();
    let open = || BitmapFile::open(bitmap, spec.machine.region_bytes, page_bytes);
    let file = open()?;
    let mut server = FileServer::new(open()?, SlotId::Region)?;
    let served = Served { steps: spec.passes.saturating_mul(spec.steps_per_pass), self_check: spec.self_check };
    execute(spec, None, interrupt, progress, |session, model, _| {
        session.start()?;
        served.run(session, model, &file, &mut server)
    })
}
