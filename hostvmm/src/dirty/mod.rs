//! Dirty logs: what tells which pages were written since it was last asked.
//!
//! - [`DirtyLog`]: the trait; [`DirtyLogKind`]: the names on the command line;
//! - [`PageBitmap`]: the set of pages that a harvest yields;
//! - [`AcceleratorLog`]: the accelerator's own log, through [`crate::backend::Vm`];
//! - [`PagemapScanLog`]: the host kernel's page tables, an independent witness of the same writes;
//! - [`SeveralLogs`]: several logs at once, united for the copy and compared for the verdict.
//!
//! ```text
//!            start                    harvest (any number)
//! stopped ─────────► logging ───────────────────────────────► logging
//!    ▲                  │ stop
//!    └──────────────────┘
//! ```
//!
//! Order is the heart of it: a harvest resets the log *before* the caller copies, so a write that comes after the harvest
//! is in the next one, and a write that came before it is in memory when the copy reads.

mod accelerator;
mod bitmap;
#[cfg(test)]
mod conformance;
mod pagemap_scan;
mod several;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

pub use accelerator::AcceleratorLog;
pub use bitmap::{BitmapSizeError, PageBitmap, Runs};
pub use pagemap_scan::{PagemapScanLog, PagemapScanUnavailable};
pub use several::{Disagreement, SeveralLogs};
use thiserror::Error;

use crate::backend::{BackendError, KvmLog};
use crate::memory::SlotId;

/// A mechanism that records which pages of which slot were written.
pub trait DirtyLog: Send {
    /// Which mechanism it is.
    fn kind(&self) -> DirtyLogKind;

    /// Bytes that one bit stands for: a power of two.
    fn page_bytes(&self) -> u64;

    /// What the first harvest after [`Self::start`] reports.
    fn first_harvest(&self) -> FirstHarvest;

    /// Starts to log writes to every slot the log was made for.
    ///
    /// # Errors
    /// [`DirtyLogError::Backend`] or [`DirtyLogError::Kernel`] where the mechanism refuses, also because it runs already.
    fn start(&mut self) -> Result<(), DirtyLogError>;

    /// Fetches and resets: `dirty` becomes the set of pages of `slot` written since the last harvest, or since the start.
    ///
    /// When it returns, every write that a bit stands for is visible to the caller, and every later write is in a later
    /// harvest. vCPUs may run meanwhile.
    ///
    /// # Errors
    /// [`DirtyLogError::NotLogging`], [`DirtyLogError::Size`] where `dirty` is not of the slot's size in
    /// [`Self::page_bytes`], and what the mechanism reports.
    fn harvest(&mut self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), DirtyLogError>;

    /// How much of the last harvest went into resetting what had been fetched, where that is a call of its own.
    fn last_reset(&self) -> Duration {
        Duration::ZERO
    }

    /// Stops logging. What was not harvested is lost.
    ///
    /// # Errors
    /// [`DirtyLogError::NotLogging`], and what the mechanism reports.
    fn stop(&mut self) -> Result<(), DirtyLogError>;
}

/// What the first harvest of a log reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstHarvest {
    /// The pages written since the start, as any other.
    Exact,
    /// Every page: the rule `first-harvest-all-set`, which explains every extra page of that harvest.
    AllSet,
}

/// Why a log could not be started, harvested or stopped.
#[derive(Debug, Error)]
pub enum DirtyLogError {
    /// The accelerator's own log failed.
    #[error("dirty log {kind}: {source}")]
    Backend {
        /// Which mechanism.
        kind: DirtyLogKind,
        /// Why; names the slot.
        source: BackendError,
    },
    /// The host kernel refused a call.
    #[error("dirty log {kind}: {call} on the {slot} failed: {source}")]
    Kernel {
        /// Which mechanism.
        kind: DirtyLogKind,
        /// For which slot.
        slot: SlotId,
        /// Which call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The log was used before it was started, after it was stopped, or for a slot that it does not watch.
    #[error("dirty log {kind}: the {slot} is not being logged; start the log for it first")]
    NotLogging {
        /// Which mechanism.
        kind: DirtyLogKind,
        /// For which slot.
        slot: SlotId,
    },
    /// The log was started twice.
    #[error("dirty log {kind}: already started; stop it first")]
    Running {
        /// Which mechanism.
        kind: DirtyLogKind,
    },
    /// The bitmap is not of the slot's size.
    #[error(
        "dirty log {kind}: the {slot} has {expected_pages} pages of {page_bytes} bytes, the bitmap has {given_pages} of {given_page_bytes}"
    )]
    Size {
        /// Which mechanism.
        kind: DirtyLogKind,
        /// For which slot.
        slot: SlotId,
        /// Pages of the slot.
        expected_pages: u64,
        /// The log's page.
        page_bytes: u64,
        /// Pages of the bitmap.
        given_pages: u64,
        /// The bitmap's page.
        given_page_bytes: u64,
    },
}

/// A kind of dirty log, by the name that `--dirty-log` takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum DirtyLogKind {
    /// KVM_GET_DIRTY_LOG.
    Bitmap,
    /// KVM_CLEAR_DIRTY_LOG, with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    Manual,
    /// As `manual`, with every page dirty at the start.
    Initset,
    /// KVM's per-vCPU dirty ring.
    Ring,
    /// PAGEMAP_SCAN of this process's own page tables.
    PagemapScan,
    /// The emulator's own log.
    Emulator,
}

impl DirtyLogKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Bitmap, Self::Manual, Self::Initset, Self::Ring, Self::PagemapScan, Self::Emulator];

    /// The name on the command line and in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bitmap => "bitmap",
            Self::Manual => "manual",
            Self::Initset => "initset",
            Self::Ring => "ring",
            Self::PagemapScan => "pagemap-scan",
            Self::Emulator => "emulator",
        }
    }

    /// What it is, in a phrase for help texts.
    pub const fn summary(self) -> &'static str {
        match self {
            Self::Bitmap => "KVM_GET_DIRTY_LOG",
            Self::Manual => "KVM's manual-protect log",
            Self::Initset => "KVM's manual-protect log, initially all set",
            Self::Ring => "KVM's dirty ring",
            Self::PagemapScan => "PAGEMAP_SCAN with asynchronous write-protection, from the host's side",
            Self::Emulator => "The emulator's own log",
        }
    }

    /// Which of KVM's logs it is; `None` for what is not KVM's.
    pub const fn kvm_log(self) -> Option<KvmLog> {
        match self {
            Self::Bitmap => Some(KvmLog::Bitmap),
            Self::Manual => Some(KvmLog::Manual),
            Self::Initset => Some(KvmLog::Initset),
            Self::Ring => Some(KvmLog::Ring),
            Self::PagemapScan | Self::Emulator => None,
        }
    }
}

impl fmt::Display for DirtyLogKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no dirty log's.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("there is no dirty log {name:?}; choose of bitmap, manual, initset, ring, pagemap-scan, emulator")]
pub struct UnknownDirtyLog {
    /// The name given.
    pub name: String,
}

impl FromStr for DirtyLogKind {
    type Err = UnknownDirtyLog;

    fn from_str(name: &str) -> Result<Self, UnknownDirtyLog> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownDirtyLog { name: name.to_owned() })
    }
}

/// Checks that `dirty` covers `len_bytes` of `slot` in pages of `page_bytes`.
fn check_size(
    kind: DirtyLogKind,
    slot: SlotId,
    len_bytes: u64,
    page_bytes: u64,
    dirty: &PageBitmap,
) -> Result<(), DirtyLogError> {
    let expected_pages = len_bytes.div_ceil(page_bytes);
    if (dirty.pages(), dirty.page_bytes()) == (expected_pages, page_bytes) {
        return Ok(());
    }
    Err(DirtyLogError::Size {
        kind,
        slot,
        expected_pages,
        page_bytes,
        given_pages: dirty.pages(),
        given_page_bytes: dirty.page_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for kind in DirtyLogKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("Bitmap".parse::<DirtyLogKind>().unwrap_err().to_string().contains("pagemap-scan"));
    }
}
