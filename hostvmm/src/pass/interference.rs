//! Faults planted between the log and the copy, to prove that the checkers find them: [`Interference`].
//!
//! Faults inside the accelerator's log and TLB are planted through [`crate::backend::Vm`]; these here stand for bugs of a
//! VMM: a harvest merged wrongly, a copier that loses, mixes up or damages pages, a device that writes behind the log.

use workload::PAGE_BYTES;

use super::{CopyTarget, PageSource};
use crate::dirty::PageBitmap;
use crate::memory::{GuestMemory, MemoryError, SlotId};

/// A fault of the VMM, in one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interference {
    /// The pass in which it strikes.
    pub pass: u64,
    /// The host page that it strikes.
    pub page: u64,
    /// What it does.
    pub kind: InterferenceKind,
}

/// What an [`Interference`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterferenceKind {
    /// The harvested set lacks the page.
    LoseBit,
    /// The harvested set has the page though nobody wrote it.
    AddBit,
    /// The copier leaves the page as it was.
    SkipPage,
    /// The copier swaps the page with this other one.
    SwapPages {
        /// The other host page.
        other: u64,
    },
    /// The copier flips one bit in the page's middle.
    FlipBit,
    /// The copier leaves the last eight bytes of the page as they were.
    LeaveTail,
    /// A device writes one byte of the page, and the log is not told.
    WriteBehindTheLog,
}

impl Interference {
    /// Strikes the harvested set.
    pub(super) fn on_harvest(&self, pass: u64, harvested: &mut PageBitmap) {
        match self.kind {
            _ if self.pass != pass => {}
            InterferenceKind::LoseBit => harvested.clear(self.page),
            InterferenceKind::AddBit => harvested.set(self.page),
            _ => {}
        }
    }

    /// What is to be kept of the destination before the copy, for [`Self::after_copy`].
    pub(super) fn before_copy(&self, pass: u64, target: &CopyTarget, page_bytes: u64) -> Option<Vec<u8>> {
        (self.pass == pass).then(|| read(target, self.page * page_bytes, page_bytes))
    }

    /// Strikes the copy. `before` is the page as it was before it was copied.
    pub(super) fn after_copy(&self, before: &[u8], target: &CopyTarget, page_bytes: u64) {
        let at = self.page * page_bytes;
        let tail = before.len() - 8;
        match self.kind {
            InterferenceKind::SkipPage => target.write(at, before),
            InterferenceKind::LeaveTail => target.write(at + tail as u64, &before[tail..]),
            InterferenceKind::FlipBit => {
                let middle = at + page_bytes / 2;
                let byte = read(target, middle, 1)[0];
                target.write(middle, &[byte ^ 0x10]);
            }
            InterferenceKind::SwapPages { other } => {
                let other = other * page_bytes;
                let (here, there) = (read(target, at, page_bytes), read(target, other, page_bytes));
                target.write(at, &there);
                target.write(other, &here);
            }
            InterferenceKind::LoseBit | InterferenceKind::AddBit | InterferenceKind::WriteBehindTheLog => {}
        }
    }

    /// Strikes the guest's memory, after harvest and copy.
    ///
    /// # Errors
    /// [`MemoryError`] where the page lies outside the region.
    pub(super) fn on_memory(&self, pass: u64, memory: &GuestMemory, page_bytes: u64) -> Result<(), MemoryError> {
        if self.pass != pass || self.kind != InterferenceKind::WriteBehindTheLog {
            return Ok(());
        }
        let region = memory.slot(SlotId::Region).range();
        let offset = self.page * page_bytes + PAGE_BYTES / 2;
        let at = region.start().checked_add(offset).unwrap_or(region.end());
        let mut byte = [0];
        memory.read(at, &mut byte)?;
        memory.write(at, &[byte[0] ^ 0x10])
    }
}

fn read(target: &CopyTarget, offset: u64, len_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes as usize];
    target.read(offset, &mut bytes);
    bytes
}
