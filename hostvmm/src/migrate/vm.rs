//! What a migration needs of a virtual machine: [`SourceVm`] and [`DestinationVm`].
//!
//! A migration sees memory, a dirty log, and a guest that can be stopped, saved, loaded and let run; what the state is made
//! of is a matter between the two machines, which it carries as [`Section`]s. Tests implement both over memory and a loop.

use std::error::Error;
use std::fs::File;

use serde::Serialize;

use super::clock::{ClockOffset, HostTime};
use super::parameters::CounterPolicy;
use super::wire::{Description, Section};
use crate::backend::Accelerator;
use crate::dirty::PageBitmap;
use crate::memory::{GuestMemory, SlotId};

/// Something a machine could not do for its migration.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct VmError {
    /// What, as in "cannot …".
    pub what: &'static str,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}

impl VmError {
    /// That `what` failed for `source`.
    pub fn new(what: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { what, source: source.into() }
    }
}

/// When a guest stopped or ran on, by the host's clock and by its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Moment {
    /// On its host's clock.
    pub at: HostTime,
    /// What the guest's counter showed.
    pub counter: u64,
}

/// A guest that is to move away.
///
/// A migration calls [`Self::pause`] at most once before [`Self::resume`] or [`Self::moved`], and ends what it began: the log is
/// stopped and the throttle 0 whatever happens.
pub trait SourceVm: Send + Sync {
    /// What both sides must have alike.
    fn describe(&self) -> Description;

    /// Of a vCPU's registers those that are compared before anything moves ([`crate::cpustate::constants`]).
    fn cpu(&self) -> Vec<(u64, u128)> {
        Vec::new()
    }

    /// Its memory.
    fn memory(&self) -> &GuestMemory;

    /// Bytes of a page of the dirty log, which is the page that is sent.
    fn log_page_bytes(&self) -> u64;

    /// The dirty log's name.
    fn log_name(&self) -> String;

    /// How the log loses writes on this host, where that is known. Asked for once it has lost one: it may take milliseconds.
    fn log_flaw(&self) -> Option<String> {
        None
    }

    /// Starts logging writes to all slots, with every page clean.
    ///
    /// # Errors
    /// What the log says.
    fn start_log(&self) -> Result<(), VmError>;

    /// Fetches and resets: `dirty` becomes the pages of `slot` written since the last harvest. What else wants to know of
    /// them, as a history of all writes, has been told when this returns.
    ///
    /// # Errors
    /// What the log says.
    fn harvest(&self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), VmError>;

    /// Stops logging.
    ///
    /// # Errors
    /// What the log says.
    fn stop_log(&self) -> Result<(), VmError>;

    /// `pages` of `slot` were harvested and are not at a destination that runs the guest: whoever keeps dirty bits
    /// beyond a migration has them back.
    fn redirty(&self, slot: SlotId, pages: &PageBitmap);

    /// Stops the guest. Returns when its last vCPU left it, at once if it was not running.
    ///
    /// # Errors
    /// [`VmError`] where it cannot be stopped; then it runs.
    fn pause(&self) -> Result<Moment, VmError>;

    /// Lets the guest run on after [`Self::pause`], if it ran before.
    fn resume(&self);

    /// The state of the stopped machine, and what else moves with it.
    ///
    /// # Errors
    /// What cannot be had.
    fn save(&self) -> Result<Vec<Section>, VmError>;

    /// Takes `percent` of their time from the vCPUs; 0 ends that.
    fn throttle(&self, percent: u8);

    /// The guest is elsewhere now, and is never to run here again.
    fn moved(&self);

    /// The guest is in `file`, from which nobody has loaded it yet. It stands still here, and may run on by the operator's will.
    fn saved(&self, file: File);
}

/// A machine that waits for a guest.
pub trait DestinationVm: Send + Sync {
    /// What both sides must have alike.
    fn describe(&self) -> Description;

    /// Whether a guest of `source` whose vCPUs have these `constants`, of [`SourceVm::cpu`], can run here.
    ///
    /// # Errors
    /// Every reason why not, for people on both sides.
    fn check_cpu(&self, source: Accelerator, constants: &[(u64, u128)]) -> Result<(), String> {
        let _ = (source, constants);
        Ok(())
    }

    /// Its memory: all zeroes.
    fn memory(&self) -> &GuestMemory;

    /// Bytes of a page of its dirty log.
    fn log_page_bytes(&self) -> u64;

    /// Takes over the state that [`SourceVm::save`] gave. Writes no guest memory.
    ///
    /// # Errors
    /// What does not fit.
    fn load(&self, sections: &[Section]) -> Result<(), VmError>;

    /// Lets the loaded guest run, unless it was stopped at the source before. `stopped` is when it stopped there, `source`
    /// how that host's clock relates to ours. Returns when the first vCPU entered the guest.
    ///
    /// # Errors
    /// [`VmError`] where it cannot run; then it does not.
    fn run(&self, counter: CounterPolicy, stopped: Moment, source: ClockOffset) -> Result<Moment, VmError>;

    /// The guest runs, or is about to, and has lost memory that was still at the source: stops it for good. It is called on
    /// any thread, more than once, and returns when nothing executes.
    fn lost(&self);
}
