//! Memory moves while the guest runs: pass 0 sends everything, each later one what was written during the one before it.
//!
//! ```text
//! pass 0 ─► harvest ─► can what is left be sent within the limit? ── yes ─► stop: still so? ── yes ─► on to the rest
//!              ▲                     │ no, or one pass more pays                 │ no: the guest runs on
//!              └── send what was harvested ◄─────────────────────────────────────┘
//! ```
//!
//! The harvest comes before the copy, so a page that is written while it is copied is in the next harvest.

use std::time::{Duration, Instant};

use super::Outgoing;
use super::hold::{Pages, bytes};
use super::stop::{self, Attempt, Stopped};
use crate::dirty::PageBitmap;
use crate::migrate::error::MigrateError;
use crate::migrate::estimate::PassReport;
use crate::migrate::faults::Boundary;
use crate::migrate::phase::{Active, Stage};

/// Bytes from which on a pass tells the bandwidth: what a few buffers swallow tells nothing.
const TELLING_BYTES: u64 = 4 << 20;

/// The least time between two harvests of a guest that may not be stopped: each costs it its write permissions.
const BREATH: Duration = Duration::from_millis(2);

/// Passes that are only made in the hope of a moment in which less is left take this part of the time that all took so far.
const PATIENCE: u32 = 16;

/// Moves memory until the guest can be stopped within the limit, or post-copy is wanted.
pub(super) fn run<'m>(out: &mut Outgoing<'_>, mut stage: Stage<'m, Active>) -> Result<Stopped<'m>, MigrateError> {
    let started = Instant::now();
    let (mut harvested_at, mut least, mut beyond) = (started, u64::MAX, Duration::ZERO);
    let report = out.send_everything()?;
    out.learn_bandwidth(&report);
    out.monitor.at(Boundary::SourcePass0End)?;
    loop {
        let mut dirty = out.hold.harvest()?;
        out.learn_dirty_rate(&dirty, std::mem::replace(&mut harvested_at, Instant::now()));
        out.monitor.at(Boundary::SourceHarvested)?;
        out.take_acknowledgements()?;
        let limit = out.monitor.parameters().downtime();
        let wants_postcopy = out.wants_postcopy();
        let mut could_stop = out.is_within(limit, &dirty);
        // What is foretold may not come: only passes that leave less and less are made beyond the limit, and for a while
        // any, since a guest that writes in bursts has a moment between two of them in which nothing is left.
        let remaining = out.observed.remaining;
        let pays = remaining < std::mem::replace(&mut least, remaining) && out.observed.pays(remaining as f64);
        let may_wait = out.observed.is_felt(remaining as f64) && beyond <= started.elapsed() / PATIENCE;
        if wants_postcopy || (could_stop && !pays && !may_wait) {
            // A destination that is not heard of gets no guest to stand still for, and what is on its way would be waited for.
            out.wait_for_every_pass()?;
            match stop::attempt(out, stage, &mut dirty, (!wants_postcopy).then_some(limit))? {
                Attempt::Stopped(stage, moment) => return Ok(Stopped { stage, moment, dirty, wants_postcopy }),
                Attempt::TooMuch(active) => (stage, could_stop) = (active, false),
            }
        }
        if !could_stop {
            out.slow_down_if_needed(&dirty);
        }
        let report = out.send_pass(&dirty, 0, false)?;
        out.learn_bandwidth(&report);
        out.take_acknowledgements()?;
        if could_stop {
            // What is still on its way would be waited for by a stopped guest.
            out.wait_for_acknowledgements(limit)?;
            beyond += harvested_at.elapsed().max(BREATH);
        }
        if harvested_at.elapsed() < BREATH && out.cancel.wait_until(harvested_at + BREATH) {
            out.monitor.check()?;
        }
    }
}

impl Outgoing<'_> {
    /// Pass 0: all that is not a hole.
    fn send_everything(&mut self) -> Result<PassReport, MigrateError> {
        let (pages, holes) = self.hold.everything()?;
        self.send_pass(&pages, holes, false)
    }

    fn learn_bandwidth(&mut self, report: &PassReport) {
        let seen = &mut self.observed;
        seen.passes = report.pass + 1;
        seen.sent += report.bytes;
        if report.bytes >= TELLING_BYTES || seen.bandwidth <= 0.0 {
            seen.bandwidth = report.bytes.max(1) as f64 / Duration::from_nanos(report.ns.max(1)).as_secs_f64();
        }
    }

    fn learn_dirty_rate(&mut self, dirty: &Pages, since: Instant) {
        let pages: u64 = dirty.iter().map(PageBitmap::count).sum();
        let seconds = since.elapsed().max(Duration::from_micros(1)).as_secs_f64();
        let page_bytes = self.page_bytes;
        let remaining = pages * page_bytes;
        self.observed.dirty_rate = remaining as f64 / seconds;
        self.observed.remaining = remaining;
        self.observed.working_set = self.observed.working_set.max(remaining);
        let estimate = self.observed.estimate(self.monitor.parameters().downtime());
        let expected = self.observed.downtime(remaining);
        self.monitor.show(|info| {
            info.estimate.get_or_insert(estimate);
            info.expected_downtime = Some(u64::try_from(expected.as_millis()).unwrap_or(u64::MAX));
            let ram = info.ram.get_or_insert_default();
            ram.dirty_pages_rate = (pages as f64 / seconds) as u64;
            ram.remaining = remaining;
        });
    }

    /// Whether `dirty` could be sent, and all the rest be done, within `limit`. With nothing left it does not get better.
    pub(super) fn is_within(&self, limit: Duration, dirty: &Pages) -> bool {
        let bytes = bytes(dirty);
        bytes == 0 || self.observed.downtime(bytes) <= limit
    }

    fn slow_down_if_needed(&mut self, dirty: &Pages) {
        if !self.monitor.capabilities().auto_converge {
            return;
        }
        let dirtied = bytes(dirty);
        let parameters = self.monitor.parameters();
        if let Some(percent) = self.converge.after_pass(self.last_pass_bytes, dirtied, &parameters) {
            self.hold.vm.throttle(percent);
            self.monitor.show(|info| info.cpu_throttle_percentage = Some(percent));
        }
    }

    fn wants_postcopy(&self) -> bool {
        self.features.has(crate::migrate::wire::Features::POSTCOPY) && self.monitor.is_postcopy_wanted()
    }
}
