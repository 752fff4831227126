//! The memory of a vCPU's dirty ring ([`Ring`], kvm/api.rst 8.29).
//!
//! ```text
//!   kernel: page written          here: collect()           kernel: KVM_RESET_DIRTY_RINGS
//!   clean ───────────────▶ DIRTY ──────────────▶ RESET ──────────────────────▶ clean, page protected again
//! ```
//!
//! An entry's flags hand it over: they are loaded with acquire before the rest of it is read, and stored with release
//! afterwards (KVM_CAP_DIRTY_LOG_RING_ACQ_REL).
#![expect(unsafe_code, reason = "the ring is memory that the kernel writes")]

use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::VcpuFd;

use crate::memory::host_page_bytes;

/// Entries of a ring: the fewest whose memory is whole pages on every host, so that a ring runs full in common tests.
const ENTRIES: usize = 4096;

/// Bytes of a ring: what KVM_ENABLE_CAP is told.
pub(super) const BYTES: usize = ENTRIES * size_of::<kvm_dirty_gfn>();

const DIRTY: u32 = 1;
const RESET: u32 = 2;

/// A mapped ring.
pub(super) struct Ring {
    base: NonNull<kvm_dirty_gfn>,
    next: usize,
}

// SAFETY: the mapping belongs to the process; only `&mut self` reads and writes it.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring of `vcpu`, which exists where the machine's capability is enabled.
    pub(super) fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * host_page_bytes();
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast()).map(|base| Self { base, next: 0 }).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Hands every dirty entry to `found` as (slot, page), in order, and marks it for reset; returns how many.
    pub(super) fn collect(&mut self, mut found: impl FnMut(u32, u64)) -> u64 {
        let mut collected = 0;
        loop {
            // SAFETY: `next` is below ENTRIES, and the mapping has as many.
            let entry = unsafe { self.base.as_ptr().add(self.next) };
            // SAFETY: the entry is mapped; no reference is made.
            let flags = unsafe { &raw mut (*entry).flags };
            // SAFETY: aligned, mapped as long as `self`, and shared with the kernel, which uses atomics, too.
            let flags = unsafe { AtomicU32::from_ptr(flags) };
            if flags.load(Ordering::Acquire) & DIRTY == 0 {
                return collected;
            }
            // SAFETY: mapped and aligned; the kernel writes it no more once it is DIRTY.
            let kvm_dirty_gfn { slot, offset, .. } = unsafe { entry.read_volatile() };
            found(slot, offset);
            flags.store(RESET, Ordering::Release);
            self.next = (self.next + 1) % ENTRIES;
            collected += 1;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: `map` made this mapping; nothing points into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), BYTES) };
    }
}
