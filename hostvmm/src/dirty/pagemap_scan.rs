//! The host kernel's page tables as a dirty log: [`PagemapScanLog`] (Linux 6.7 and later).
//!
//! A userfaultfd in asynchronous write-protect mode makes the kernel note the first write to each page of a mapping
//! without telling anyone; `PAGEMAP_SCAN` of `/proc/self/pagemap` reports the pages written and protects them again in one
//! call (Documentation/admin-guide/mm/pagemap.rst, userfaultfd.rst). It sees every write through the slot's mapping in this
//! process: the emulator's stores and the VMM's own alike, and under KVM the guest's, as protecting a page
//! invalidates its stage-2 entry. It does not see writes through another mapping or from another process, `pwrite` to the
//! backing file, or punched holes. The first scan reports every page, as none has been protected before.
//!
//! A transparent huge page is split by the first write to it that the scan is to notice, so pages are told one by one;
//! a page of hugetlb cannot be split, and the log is refused there.
//!
//! # Running vCPUs
//! The scan tests and protects each page under the page table's lock and flushes the TLBs before it lets go. A
//! store by another thread through a stale TLB entry therefore hits a page that this scan reports, and is complete
//! before the scan returns and the copy reads; a store after the flush faults, and is in the next scan.
#![expect(unsafe_code, reason = "raw ioctls: no crate wraps PAGEMAP_SCAN or userfaultfd's asynchronous mode")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use thiserror::Error;

use super::{DirtyLog, DirtyLogError, DirtyLogKind, FirstHarvest, PageBitmap, check_size};
use crate::memory::{Backing, GuestMemory, SlotId};

// include/uapi/linux/userfaultfd.h
const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const FEATURES: u64 = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;

// include/uapi/linux/fs.h
const PAGEMAP_SCAN: u64 = 0xc060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;

/// Regions that one call can report. A call that fills them is followed by another from where it stopped.
const REGIONS: usize = 512;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<UffdioApi>() == 0x18 && size_of::<UffdioRegister>() == 0x20);
const _: () = assert!(size_of::<PmScanArg>() == 0x60 && size_of::<PageRegion>() == 0x18);

/// Why this host has no PAGEMAP_SCAN log. Not a failure: exit status 4, "skipped".
#[derive(Debug, Error)]
pub enum PagemapScanUnavailable {
    /// userfaultfd(2) is refused.
    #[error(
        "pagemap-scan: userfaultfd is refused: {source}; it needs CONFIG_USERFAULTFD and no seccomp filter against it"
    )]
    Userfaultfd {
        /// Why.
        source: io::Error,
    },
    /// The kernel's userfaultfd has no asynchronous write protection.
    #[error(
        "pagemap-scan: userfaultfd has no asynchronous write protection of shared memory: {source}; it needs Linux 6.7 with CONFIG_PTE_MARKER_UFFD_WP"
    )]
    AsyncWriteProtect {
        /// Why.
        source: io::Error,
    },
    /// `/proc/self/pagemap` cannot be opened.
    #[error("pagemap-scan: cannot open /proc/self/pagemap: {source}; it needs a mounted /proc")]
    Pagemap {
        /// Why.
        source: io::Error,
    },
    /// The unit of its dirty state would be a huge page.
    #[error(
        "pagemap-scan: on --backing {backing} the kernel tells only whole huge pages as written; use --backing thp, anon or memfd"
    )]
    HugePages {
        /// What memory is mapped on.
        backing: Backing,
    },
    /// The kernel does not know the ioctl.
    #[error("pagemap-scan: PAGEMAP_SCAN is refused: {source}; it needs Linux 6.7")]
    Scan {
        /// Why.
        source: io::Error,
    },
}

/// A dirty log by PAGEMAP_SCAN of the slots' mappings.
#[derive(Debug)]
pub struct PagemapScanLog {
    memory: GuestMemory,
    slots: Vec<SlotId>,
    pagemap: File,
    /// While logging; closing it ends the registration.
    userfault: Option<OwnedFd>,
}

impl PagemapScanLog {
    /// A log of `slots` of `memory`, not yet started.
    ///
    /// # Errors
    /// [`PagemapScanUnavailable`]: the first thing that this host lacks.
    pub fn new(memory: &GuestMemory, slots: &[SlotId]) -> Result<Self, PagemapScanUnavailable> {
        let backing = memory.backing();
        if matches!(backing, Backing::Hugetlb { .. }) {
            return Err(PagemapScanUnavailable::HugePages { backing });
        }
        Ok(Self { memory: memory.clone(), slots: slots.to_vec(), pagemap: open_pagemap()?, userfault: None })
    }

    /// Whether this host has the log at all.
    ///
    /// # Errors
    /// [`PagemapScanUnavailable`]: the first thing that this host lacks.
    pub fn probe() -> Result<(), PagemapScanUnavailable> {
        open_pagemap().map(|_| ())
    }

    fn span(&self, slot: SlotId) -> (u64, u64) {
        let slot = self.memory.slot(slot);
        (slot.host_base().addr().get() as u64, slot.range().len_bytes())
    }

    fn failed(slot: SlotId, call: &'static str, source: io::Error) -> DirtyLogError {
        DirtyLogError::Kernel { kind: DirtyLogKind::PagemapScan, slot, call, source }
    }

    fn not_logging(slot: SlotId) -> DirtyLogError {
        DirtyLogError::NotLogging { kind: DirtyLogKind::PagemapScan, slot }
    }
}

impl DirtyLog for PagemapScanLog {
    fn kind(&self) -> DirtyLogKind {
        DirtyLogKind::PagemapScan
    }

    fn page_bytes(&self) -> u64 {
        self.memory.host_page_bytes()
    }

    fn first_harvest(&self) -> FirstHarvest {
        FirstHarvest::AllSet
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        if self.userfault.is_some() {
            return Err(DirtyLogError::Running { kind: DirtyLogKind::PagemapScan });
        }
        let first = self.slots.first().copied().unwrap_or(SlotId::Region);
        let userfault = open_userfault()
            .map_err(|error| Self::failed(first, "userfaultfd", io::Error::other(error.to_string())))?;
        for slot in &self.slots {
            let (start, len) = self.span(*slot);
            let mut register = UffdioRegister { start, len, mode: UFFDIO_REGISTER_MODE_WP, ioctls: 0 };
            // SAFETY: the argument is the struct that the call reads and writes, of the size its number encodes. The range
            // is a mapping that `self.memory` keeps alive; in this mode the registration only delays first writes.
            let result =
                unsafe { libc::ioctl(userfault.as_raw_fd(), UFFDIO_REGISTER as libc::Ioctl, &raw mut register) };
            if result < 0 {
                return Err(Self::failed(*slot, "UFFDIO_REGISTER", io::Error::last_os_error()));
            }
        }
        self.userfault = Some(userfault);
        Ok(())
    }

    fn harvest(&mut self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), DirtyLogError> {
        if self.userfault.is_none() || !self.slots.contains(&slot) {
            return Err(Self::not_logging(slot));
        }
        let (base, len_bytes) = self.span(slot);
        check_size(DirtyLogKind::PagemapScan, slot, len_bytes, self.page_bytes(), dirty)?;
        dirty.clear_all();
        let mut regions = [PageRegion::default(); REGIONS];
        let end = base + len_bytes;
        let mut at = base;
        while at < end {
            let (found, walked) = scan(&self.pagemap, at, end, &mut regions)
                .map_err(|source| Self::failed(slot, "PAGEMAP_SCAN", source))?;
            for region in &regions[..found] {
                dirty.set_bytes(region.start - base, region.end - region.start);
            }
            if walked <= at {
                let source = io::Error::other("the scan does not advance");
                return Err(Self::failed(slot, "PAGEMAP_SCAN", source));
            }
            at = walked;
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        // Closing the descriptor unregisters every range and lifts the protection.
        match self.userfault.take() {
            Some(userfault) => {
                drop(userfault);
                Ok(())
            }
            None => Err(Self::not_logging(self.slots.first().copied().unwrap_or(SlotId::Region))),
        }
    }
}

/// A userfaultfd with asynchronous write protection.
/// Opens this process's pagemap, having made sure that all that the log needs is there.
fn open_pagemap() -> Result<File, PagemapScanUnavailable> {
    drop(open_userfault()?);
    let pagemap = File::open("/proc/self/pagemap").map_err(|source| PagemapScanUnavailable::Pagemap { source })?;
    // An empty range: only a kernel that does not know the call refuses it.
    let mut regions = [PageRegion::default(); 1];
    scan(&pagemap, 0, 0, &mut regions).map_err(|source| PagemapScanUnavailable::Scan { source })?;
    Ok(pagemap)
}

fn open_userfault() -> Result<OwnedFd, PagemapScanUnavailable> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
    // SAFETY: the call takes flags by value and touches no memory of ours.
    let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let raw = match i32::try_from(raw) {
        Ok(raw) if raw >= 0 => raw,
        _ => return Err(PagemapScanUnavailable::Userfaultfd { source: io::Error::last_os_error() }),
    };
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let userfault = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut api = UffdioApi { api: UFFD_API, features: FEATURES, ioctls: 0 };
    // SAFETY: the argument is the struct that the call reads and writes, of the size its number encodes.
    let result = unsafe { libc::ioctl(userfault.as_raw_fd(), UFFDIO_API as libc::Ioctl, &raw mut api) };
    if result < 0 {
        return Err(PagemapScanUnavailable::AsyncWriteProtect { source: io::Error::last_os_error() });
    }
    Ok(userfault)
}

/// Reports written pages of `[start, end)` in `regions` and protects them again: how many regions, and where the walk stopped.
fn scan(pagemap: &File, start: u64, end: u64, regions: &mut [PageRegion]) -> io::Result<(usize, u64)> {
    let mut arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        start,
        end,
        walk_end: 0,
        vec: regions.as_mut_ptr().expose_provenance() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: PAGE_IS_WRITTEN,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_WRITTEN,
    };
    // SAFETY: `arg` is the struct that the call reads and writes, of the size it names; `vec` is exclusively borrowed and
    // holds `vec_len` regions. The call changes page protections only where a userfaultfd is registered.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as libc::Ioctl, &raw mut arg) };
    match usize::try_from(found) {
        Ok(found) => Ok((found.min(regions.len()), arg.walk_end)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
