//! What everybody may see of a pair and do to it: [`ColoMonitor`].
//!
//! A monitor lives as long as its machine, and is used by one pair after the other: it keeps [`ColoParameters`], shows
//! [`ColoInfo`], carries the operator's wishes to the thread that drives the pair, and tells a watcher of each change.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::Side;
use super::error::ColoError;
use super::faults::{ColoBoundary, ColoFault, Omission, PlantedOmission};
use super::info::{CheckpointReport, ColoInfo, ColoMode, ColoPhase, ColoStatus, ExitReason};
use super::parameters::ColoParameters;
use crate::migrate::ParameterError;
use crate::migrate::faults::Planted;

/// Reports of checkpoints that are kept: the last ones, and some more.
const REPORTS: usize = 20_000;
/// Reports that are forgotten at a time.
const FORGOTTEN: usize = 1000;

/// How a VM came out of a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It is the only one, and runs on. It owns `epoch` of the outlet.
    Alone {
        /// Which.
        epoch: u64,
    },
    /// The other side goes on: it never runs again.
    Fenced,
    /// A secondary that had nothing to take over.
    Discarded,
    /// Somebody has ended the pair on this side for good: its process ends, or it was never decided who goes on. Its guest
    /// stands still.
    Stopped,
}

/// There is no pair that could be told something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the VM is in no COLO pair")]
pub struct NoPair;

/// What an operator wants of the thread that drives a pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Wishes {
    /// A checkpoint.
    pub(super) checkpoint: bool,
    /// The other side is lost: go on alone.
    pub(super) lost_heartbeat: bool,
    /// Give up.
    pub(super) stop: bool,
}

type Watcher = Box<dyn Fn(ColoPhase) + Send + Sync>;
type Hook = Box<dyn Fn() + Send + Sync>;

/// Sees and steers the pairs of one machine.
pub struct ColoMonitor {
    state: Mutex<State>,
    changed: Condvar,
    watcher: Option<Watcher>,
    fault: Option<ColoFault>,
    omission: Option<PlantedOmission>,
}

#[derive(Default)]
struct State {
    info: ColoInfo,
    parameters: ColoParameters,
    wishes: Wishes,
    /// Tells the thread that drives the pair that there is a wish.
    wake: Option<Hook>,
    /// Shuts the pair's channel down: for planted faults.
    cut: Option<Hook>,
    /// The omission was planted.
    is_planted: bool,
}

impl fmt::Debug for ColoMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColoMonitor").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

impl Default for ColoMonitor {
    fn default() -> Self {
        Self::new()
    }
}

impl ColoMonitor {
    /// A monitor that has seen no pair.
    pub fn new() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), watcher: None, fault: None, omission: None }
    }

    /// Calls `watcher` at every change of phase, on the thread that makes it: it is to return soon, and may call the monitor.
    /// A VM that leaves a pair (QEMU's event COLO_EXIT) enters [`ColoPhase::Alone`], [`ColoPhase::Fenced`] or
    /// [`ColoPhase::Discarded`].
    #[must_use]
    pub fn watched(mut self, watcher: impl Fn(ColoPhase) + Send + Sync + 'static) -> Self {
        self.watcher = Some(Box::new(watcher));
        self
    }

    /// Plants faults in every pair.
    #[must_use]
    pub fn with_faults(mut self, fault: Option<ColoFault>, omission: Option<PlantedOmission>) -> Self {
        (self.fault, self.omission) = (fault, omission);
        self
    }

    /// Where the pair is.
    pub fn phase(&self) -> ColoPhase {
        self.lock().info.phase
    }

    /// The answer to `query-colo-status`.
    pub fn status(&self) -> ColoStatus {
        self.lock().info.status
    }

    /// Everything about the last pair.
    pub fn info(&self) -> ColoInfo {
        self.lock().info.clone()
    }

    /// Everything but the reports of each checkpoint.
    pub fn brief(&self) -> ColoInfo {
        let mut state = self.lock();
        let checkpoints = std::mem::take(&mut state.info.checkpoints);
        let brief = state.info.clone();
        state.info.checkpoints = checkpoints;
        brief
    }

    /// As [`Self::brief`], with the reports of the first `most` checkpoints after number `after`.
    pub fn after(&self, after: u64, most: usize) -> ColoInfo {
        let mut brief = self.brief();
        let state = self.lock();
        brief.checkpoints =
            state.info.checkpoints.iter().filter(|report| report.n > after).take(most).cloned().collect();
        brief
    }

    /// The parameters.
    pub fn parameters(&self) -> ColoParameters {
        self.lock().parameters.clone()
    }

    /// Sets one parameter, at any time.
    ///
    /// # Errors
    /// As [`ColoParameters::set`].
    pub fn set_parameter(&self, name: &str, value: &Value) -> Result<(), ParameterError> {
        self.lock().parameters.set(name, value)
    }

    /// Replaces all parameters.
    pub fn use_parameters(&self, parameters: ColoParameters) {
        self.lock().parameters = parameters;
    }

    /// Asks for a checkpoint now (`x-checkpoint`). A secondary's wish is of no effect.
    ///
    /// # Errors
    /// [`NoPair`], also before both sides have met: a wish ends the waiting for the other.
    pub fn request_checkpoint(&self) -> Result<(), NoPair> {
        if self.phase() == ColoPhase::Setup {
            return Err(NoPair);
        }
        self.wish(|wishes| wishes.checkpoint = true)
    }

    /// The operator knows that the other side is lost (`x-colo-lost-heartbeat`): this one is to go on alone.
    ///
    /// # Errors
    /// [`NoPair`].
    pub fn lost_heartbeat(&self) -> Result<(), NoPair> {
        self.wish(|wishes| wishes.lost_heartbeat = true)
    }

    /// Ends the pair on this side with its guest standing still: the process is about to end.
    ///
    /// # Errors
    /// [`NoPair`].
    pub fn stop(&self) -> Result<(), NoPair> {
        self.wish(|wishes| wishes.stop = true)
    }

    /// Waits until `is_reached` says so of what the monitor shows.
    pub fn wait_until(&self, is_reached: impl Fn(&ColoInfo) -> bool) -> ColoPhase {
        let state = self.lock();
        let waits = |state: &mut State| !is_reached(&state.info);
        self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner).info.phase
    }

    /// Begins a pair as `side`: what the last one left is forgotten. `wake` is called when there is a wish; it must not call
    /// the monitor.
    pub(super) fn begin(&self, side: Side, epoch: u64, wake: impl Fn() + Send + Sync + 'static) {
        {
            let mut state = self.lock();
            let status = ColoStatus {
                mode: match side {
                    Side::Primary => ColoMode::Primary,
                    Side::Secondary => ColoMode::Secondary,
                },
                last_mode: state.info.status.mode,
                reason: ExitReason::Processing,
            };
            state.info = ColoInfo { status, epoch, exact: true, ..ColoInfo::default() };
            state.wishes = Wishes::default();
            state.wake = Some(Box::new(wake));
            state.cut = None;
        }
        self.enter(ColoPhase::Setup);
    }

    /// Ends the pair.
    pub(super) fn end(&self, phase: ColoPhase, reason: ExitReason) {
        {
            let mut state = self.lock();
            let last_mode = state.info.status.mode;
            state.info.status = ColoStatus { mode: ColoMode::None, last_mode, reason };
            state.wake = None;
            state.cut = None;
        }
        self.enter(phase);
    }

    /// The pair is in `phase` now.
    pub(super) fn enter(&self, phase: ColoPhase) {
        let changes = std::mem::replace(&mut self.lock().info.phase, phase) != phase;
        self.changed.notify_all();
        if let (true, Some(watcher)) = (changes, &self.watcher) {
            watcher(phase);
        }
    }

    /// Changes what is shown.
    pub(super) fn show(&self, change: impl FnOnce(&mut ColoInfo)) {
        change(&mut self.lock().info);
        self.changed.notify_all();
    }

    /// A checkpoint was committed.
    pub(super) fn report(&self, report: CheckpointReport) {
        self.show(|info| {
            info.checkpoint = report.n;
            if info.checkpoints.len() >= REPORTS + FORGOTTEN {
                info.checkpoints.drain(..FORGOTTEN);
            }
            info.checkpoints.push(report);
        });
    }

    /// What is wished, once.
    pub(super) fn take_wishes(&self) -> Wishes {
        std::mem::take(&mut self.lock().wishes)
    }

    /// `cut` shuts the pair's channel down. It must not call the monitor.
    pub(super) fn set_cut(&self, cut: impl Fn() + Send + Sync + 'static) {
        self.lock().cut = Some(Box::new(cut));
    }

    /// The pair is at `boundary` of `checkpoint`: what is planted there happens.
    pub(super) fn at(&self, boundary: ColoBoundary, checkpoint: u64) -> Result<(), ColoError> {
        match self.fault.and_then(|fault| fault.strike(boundary, checkpoint)) {
            None => Ok(()),
            Some(Planted::Cut) => {
                if let Some(cut) = &self.lock().cut {
                    cut();
                }
                Ok(())
            }
            Some(Planted::Fail | Planted::DiskFull) => Err(ColoError::Planted { boundary }),
        }
    }

    /// Whether `omission` is to be planted in `checkpoint`; then the caller says [`Self::planted`] if there is such a page.
    pub(super) fn is_to_plant(&self, omission: Omission, checkpoint: u64) -> bool {
        self.omission.is_some_and(|plan| plan.omission == omission && plan.checkpoint <= checkpoint)
            && !self.lock().is_planted
    }

    /// The omission was planted: once is enough.
    pub(super) fn planted(&self) {
        self.lock().is_planted = true;
    }

    fn wish(&self, wish: impl FnOnce(&mut Wishes)) -> Result<(), NoPair> {
        let mut state = self.lock();
        let state = &mut *state;
        let wake = state.wake.as_ref().ok_or(NoPair)?;
        wish(&mut state.wishes);
        wake();
        Ok(())
    }

    /// Each change is made as a whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
