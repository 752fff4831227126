//! A guest that was saved to a file is loaded and runs on here.

use std::path::Path;
use std::time::Instant;

use crate::migrate::error::MigrateError;
use crate::migrate::faults::Boundary;
use crate::migrate::file::FileReader;
use crate::migrate::info::{DigestReport, MigrationInfo, RamInfo};
use crate::migrate::monitor::Monitor;
use crate::migrate::parameters::DigestMode;
use crate::migrate::phase::{Setup, Stage};
use crate::migrate::vm::DestinationVm;

/// Runs the guest at `offset` of `path` in `vm`.
pub(super) fn run(
    vm: &dyn DestinationVm,
    path: &Path,
    offset: u64,
    stage: Stage<'_, Setup>,
) -> Result<MigrationInfo, MigrateError> {
    let monitor: &Monitor = stage.monitor();
    monitor.at(Boundary::DestinationConnected)?;
    let file = FileReader::open(path, offset)?;
    monitor.at(Boundary::DestinationOffered)?;
    if let Some(mismatch) = super::mismatch(vm, file.offer()) {
        return Err(MigrateError::Refused(mismatch));
    }
    let stage = stage.activate()?;
    monitor.at(Boundary::DestinationAccepted)?;
    let start = Instant::now();
    let loaded = file.load_memory(vm.memory())?;
    let took = start.elapsed();
    let clock = file.source_clock();
    let page_size = vm.log_page_bytes();
    let sum = loaded.digests.into_iter().fold(0, u64::wrapping_add);
    monitor.show(|info| {
        info.clock = Some(clock);
        info.ram = Some(RamInfo { normal: loaded.pages, page_size, ..RamInfo::default() });
        info.digest =
            Some(DigestReport { mode: DigestMode::Full, passes: 0, source: sum, destination: sum, equal: true, took });
    });
    let stage = stage.stop()?;
    monitor.at(Boundary::DestinationState)?;
    vm.load(file.sections())?;
    monitor.at(Boundary::DestinationLoaded)?;
    let stage = stage.commit()?;
    monitor.at(Boundary::DestinationCommitted)?;
    let resumed = vm.run(file.offer().counter, file.stopped(), clock)?;
    let downtime = resumed.at.since(clock.to_ours(file.stopped().at));
    monitor.show(|info| info.downtime = Some(u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX)));
    // The lock tells whoever has saved it that it runs here.
    monitor.hold(file.into_file());
    stage.complete();
    Ok(monitor.info())
}
