//! A migration to a file: pages go to their places while the guest runs, those that are written again are written again,
//! and once little enough is left the guest stops. It is in the file then, and is here as well: it runs on here only if the
//! operator says so.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hold::{Hold, Pages, bytes};
use super::pieces::Pieces;
use super::stop::sum;
use crate::migrate::clock::{ClockOffset, HostTime};
use crate::migrate::digest::memory_digest_unless;
use crate::migrate::error::MigrateError;
use crate::migrate::estimate::{Observed, PassReport};
use crate::migrate::faults::Boundary;
use crate::migrate::file::FileWriter;
use crate::migrate::info::{DigestReport, DowntimeSplit, RamInfo};
use crate::migrate::monitor::Monitor;
use crate::migrate::parameters::DigestMode;
use crate::migrate::phase::{Cancelled, Setup, Stage};
use crate::migrate::transport::{CancelToken, Pacer};
use crate::migrate::vm::SourceVm;
use crate::migrate::wire::{Features, Offer, Session};

/// Passes after which a guest that writes as fast as the disk is stopped nevertheless: nobody waits for it elsewhere.
const MOST_PASSES: u64 = 8;

/// Saves the guest of `vm` at `offset` of `path`.
pub(super) fn run(
    vm: &dyn SourceVm,
    path: &Path,
    offset: u64,
    stage: Stage<'_, Setup>,
    cancel: &CancelToken,
) -> Result<(), MigrateError> {
    let monitor = stage.monitor();
    monitor.at(Boundary::SourceSetup)?;
    let parameters = monitor.parameters();
    let random = Session::random().map_err(|source| MigrateError::Host { what: "get random bytes", source })?;
    let offer = Offer {
        description: vm.describe(),
        features: Features::NONE,
        page_channels: 0,
        digest: DigestMode::Full,
        counter: parameters.x_counter,
        salt: random.raw() as u64,
        clock: ClockOffset::SAME,
        cpu: vm.cpu(),
    };
    let file = FileWriter::create(path, offset, &offer)?;
    monitor.at(Boundary::SourceConnected)?;
    let total = vm.memory().slots().iter().map(|slot| slot.range().len_bytes()).sum();
    let page_size = vm.log_page_bytes();
    monitor.show(|info| info.ram = Some(RamInfo { total, remaining: total, page_size, ..RamInfo::default() }));
    let pacer = monitor.pacer().map_err(|source| MigrateError::Host { what: "pace the migration", source })?;
    let hold = Hold::new(vm, monitor);
    let mut saving = Saving { hold, pacer, cancel, monitor, file, observed: Observed::default(), pass: 0 };
    let stage = stage.activate()?;
    saving.hold.start_log()?;
    monitor.at(Boundary::SourceAccepted)?;
    let mut dirty = saving.while_it_runs()?;
    let stage = stage.stop()?;
    let moment = saving.hold.pause()?;
    monitor.at(Boundary::SourceStopped)?;
    for (all, last) in dirty.iter_mut().zip(saving.hold.harvest()?) {
        all.or(&last);
    }
    saving.write_pass(&dirty, 0, true)?;
    let pages_written = HostTime::now();
    monitor.at(Boundary::SourceFinalPass)?;
    let sections = vm.save()?;
    let saved = HostTime::now();
    monitor.at(Boundary::SourceState)?;
    let digests = memory_digest_unless(vm.memory(), offer.salt, &|| cancel.is_cancelled())?.ok_or(Cancelled)?;
    let digested = HostTime::now();
    monitor.at(Boundary::SourceDigest)?;
    let Saving { mut hold, file, .. } = saving;
    // Once the file is sealed the guest is in it, and whatever fails later must not let it run here as well.
    let stage = stage.commit()?;
    let file = file.finish(moment, &sections, digests)?;
    hold.give_away();
    vm.saved(file);
    hold.end();
    monitor.show(|info| {
        info.downtime_split = Some(DowntimeSplit {
            stopped_at: moment.at,
            final_pass_ns: pages_written.ns().saturating_sub(moment.at.ns()),
            state_ns: saved.ns().saturating_sub(pages_written.ns()),
            digest_ns: digested.ns().saturating_sub(saved.ns()),
            ..DowntimeSplit::default()
        });
        info.digest = Some(DigestReport {
            mode: DigestMode::Full,
            passes: 0,
            source: sum(digests),
            destination: 0,
            equal: true,
            took: digested.since(saved),
        });
    });
    stage.complete();
    Ok(())
}

struct Saving<'a> {
    hold: Hold<'a>,
    pacer: Arc<Pacer>,
    cancel: &'a CancelToken,
    monitor: &'a Monitor,
    file: FileWriter,
    observed: Observed,
    pass: u64,
}

impl Saving<'_> {
    /// Writes until what is left can be written within the limit. Returns what that is.
    fn while_it_runs(&mut self) -> Result<Pages, MigrateError> {
        let (all, holes) = self.hold.everything()?;
        self.write_pass(&all, holes, false)?;
        self.monitor.at(Boundary::SourcePass0End)?;
        loop {
            let dirty = self.hold.harvest()?;
            self.monitor.at(Boundary::SourceHarvested)?;
            let left = bytes(&dirty);
            let limit = self.monitor.parameters().downtime();
            if left == 0 || self.observed.downtime(left) <= limit || self.pass >= MOST_PASSES {
                return Ok(dirty);
            }
            self.write_pass(&dirty, 0, false)?;
        }
    }

    fn write_pass(&mut self, pages: &Pages, holes: u64, is_stopped: bool) -> Result<(), MigrateError> {
        let start = Instant::now();
        self.monitor.pass(self.pass);
        let memory = self.hold.vm.memory();
        let page_bytes = pages[0].page_bytes();
        let mut written = 0;
        let mut buffer = Vec::new();
        for (slot, piece) in Pieces::new(pages) {
            self.monitor.check()?;
            for run in piece {
                let at = run.start * page_bytes;
                buffer.resize(((run.end - run.start) * page_bytes) as usize, 0);
                memory.copy_from_slot(slot, at, &mut buffer)?;
                if !is_stopped {
                    self.pacer.acquire(buffer.len() as u64, self.cancel).map_err(MigrateError::lost)?;
                }
                written += self.file.write(slot, at, &buffer)?;
            }
            if self.pass == 0 {
                self.monitor.at(Boundary::SourcePass0)?;
            }
        }
        // What is on the disk now is not waited for when the guest stands still.
        self.file.sync()?;
        let count = pages.iter().map(crate::dirty::PageBitmap::count).sum::<u64>() + holes;
        let time = start.elapsed().max(Duration::from_nanos(1));
        let normal = written / page_bytes;
        let report = PassReport {
            pass: self.pass,
            stopped: is_stopped,
            pages: count,
            zero_pages: count.saturating_sub(normal),
            bytes: written,
            ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
        };
        self.pass += 1;
        self.observed.bandwidth = self.observed.bandwidth.max(written as f64 / time.as_secs_f64());
        self.monitor.show(|info| {
            info.passes.push(report);
            let ram = info.ram.get_or_insert_default();
            ram.normal += normal;
            ram.normal_bytes += written;
            ram.duplicate += report.zero_pages;
            ram.transferred += written;
            ram.remaining = 0;
            ram.mbps = written as f64 * 8.0 / 1e6 / time.as_secs_f64();
        });
        Ok(())
    }
}
