//! What COLO needs of a virtual machine: [`ColoVm`].
//!
//! It is the view of [`crate::migrate::SourceVm`] and [`crate::migrate::DestinationVm`] in one, because both sides run, stop
//! and log, and because a state is loaded again and again. Tests implement it over memory and a loop that writes.

use super::Side;
use super::output::Tap;
use crate::dirty::PageBitmap;
use crate::memory::{GuestMemory, SlotId};
use crate::migrate::wire::{Description, Section};
use crate::migrate::{ClockOffset, Moment, VmError};

/// A guest that runs, stops, is saved and loaded as often as its pair needs that.
pub trait ColoVm: Send + Sync {
    /// What both sides must have alike.
    fn describe(&self) -> Description;

    /// Its memory. A secondary's is all zeroes before its first checkpoint.
    fn memory(&self) -> &GuestMemory;

    /// Bytes of a page of the dirty log, which is the page that is sent and flushed.
    fn log_page_bytes(&self) -> u64;

    /// Starts logging writes to all slots, with every page clean.
    ///
    /// # Errors
    /// What the log says.
    fn start_log(&self) -> Result<(), VmError>;

    /// Fetches and resets: `dirty` becomes the pages of `slot` written since the last harvest.
    ///
    /// # Errors
    /// What the log says.
    fn harvest(&self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), VmError>;

    /// Stops logging.
    ///
    /// # Errors
    /// What the log says.
    fn stop_log(&self) -> Result<(), VmError>;

    /// Stops the guest. Returns when its last vCPU left it, at once if it was not running.
    ///
    /// # Errors
    /// [`VmError`] where it cannot be stopped; then it runs.
    fn pause(&self) -> Result<Moment, VmError>;

    /// Lets the guest run on after [`Self::pause`], or from the state that was loaded since, unless an operator has stopped
    /// it meanwhile.
    fn resume(&self);

    /// The state of the stopped machine, and what else belongs to the guest. Writes no guest memory.
    ///
    /// # Errors
    /// What cannot be had.
    fn save(&self) -> Result<Vec<Section>, VmError>;

    /// Takes over the state that [`Self::save`] gave at the primary; again and again, on a paused machine whose memory is
    /// already that of the checkpoint. The guest's counter runs on from the primary's: `stopped` is when the primary's guest
    /// stopped, on the primary's clock, and `primary` is that clock less ours.
    ///
    /// # Errors
    /// What does not fit.
    fn load(&self, sections: &[Section], stopped: Moment, primary: ClockOffset) -> Result<(), VmError>;

    /// Where what its guest emits is taken.
    fn output(&self) -> &Tap;

    /// It is the only VM of its pair now, and has been `side` so far. It runs, or is about to.
    fn survive(&self, side: Side);

    /// The other VM of its pair goes on, or nobody knows which: its guest stands still and never runs here again.
    fn fenced(&self);
}
