//! Memslots and the dirty logs on them: [`Tracker`].
//!
//! | log | reset by | first harvest |
//! |---|---|---|
//! | bitmap | KVM_GET_DIRTY_LOG itself (kvm/api.rst 4.8) | exact |
//! | manual | KVM_CLEAR_DIRTY_LOG of the pages just fetched (4.117) | exact |
//! | initset | the same, with every bit set at the start (7.18) | every page |
//! | ring | KVM_RESET_DIRTY_RINGS, with a bitmap for writes that no vCPU made (8.29) | exact |
//!
//! What the VMM writes is in none of them: [`Tracker::mark`] notes it here, and so do full rings that a vCPU had to empty
//! between two harvests. A harvest is the kernel's set united with these notes.
//!
//! # Order
//! Every reset protects the pages again before the call returns, and the copy comes after it: a write before the reset is
//! in memory when the copy reads, one after it faults and is in the next harvest. The ring is read after
//! KVM_GET_DIRTY_LOG of its bitmap, which takes the MMU's lock: a page that one vCPU has mapped writable, but not yet
//! put into its ring, is put there under that lock, so another vCPU's write through the same mapping cannot escape.
#![expect(unsafe_code, reason = "memslots are host addresses; ioctls that kvm-ioctls has not")]

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use abi::GuestRange;
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::refused;
use super::ring::{self, Ring};
use crate::backend::{Accelerator, BackendError, KvmLog};
use crate::memory::{GuestMemory, SlotId};

// include/uapi/linux/kvm.h
const KVM_GET_DIRTY_LOG: u64 = 0x4010_ae42;
const KVM_CLEAR_DIRTY_LOG: u64 = 0xc018_aec0;
const KVM_RESET_DIRTY_RINGS: u64 = 0xaec7;
const _: () = assert!(size_of::<kvm_dirty_log>() == 0x10 && size_of::<kvm_clear_dirty_log>() == 0x18);

/// Pages that one KVM_CLEAR_DIRTY_LOG clears at most: a multiple of 64, few enough that the call does not hold the MMU's
/// lock against the vCPUs for long.
const CLEAR_CHUNK_PAGES: u64 = 4096;

/// The memslot by which [`Tracker::forget_translations`] does it, and where: neither is used otherwise.
const FLUSH_SLOT: u32 = 16;
const FLUSH_GPA: u64 = 0;
const _: () = assert!(SlotId::COUNT <= FLUSH_SLOT as usize);

/// The memslots of a machine and their dirty log.
pub(super) struct Tracker {
    vm: Arc<VmFd>,
    log: KvmLog,
    memory: GuestMemory,
    logging: AtomicBool,
    /// By slot: whether its writes are logged.
    logged: [AtomicBool; SlotId::ALL.len()],
    /// Nanoseconds that the last harvest spent in KVM_CLEAR_DIRTY_LOG or KVM_RESET_DIRTY_RINGS.
    last_reset_ns: AtomicU64,
    /// Written by the VMM, or taken from a ring, since the last harvest: a bit a page, by slot.
    noted: Vec<Vec<AtomicU64>>,
    /// By slot: whether there is a bit in `noted`. Set after the bit, cleared before the bits are taken.
    any_noted: [AtomicBool; SlotId::ALL.len()],
    rings: Mutex<Vec<Ring>>,
    /// Entries were collected and not yet reset. Changes under the lock of `rings`.
    reset_due: AtomicBool,
}

impl Tracker {
    /// Makes the slots of `memory` the machine's, with what `log` needs enabled. Before any vCPU is created.
    ///
    /// # Errors
    /// [`BackendError::Refused`] with the slot or capability at fault.
    pub(super) fn new(vm: Arc<VmFd>, log: KvmLog, memory: &GuestMemory) -> Result<Self, BackendError> {
        let words = |slot: SlotId| memory.slot(slot).host_pages().div_ceil(64) as usize;
        let noted = SlotId::ALL.map(|slot| (0..words(slot)).map(|_| AtomicU64::new(0)).collect());
        let tracker = Self {
            vm,
            log,
            memory: memory.clone(),
            logging: AtomicBool::new(false),
            logged: Default::default(),
            last_reset_ns: AtomicU64::new(0),
            noted: noted.into(),
            any_noted: Default::default(),
            rings: Mutex::default(),
            reset_due: AtomicBool::new(false),
        };
        match log {
            KvmLog::Bitmap => {}
            KvmLog::Manual => tracker.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)?,
            KvmLog::Initset => {
                let flags = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
                tracker.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags)?;
            }
            KvmLog::Ring => {
                tracker.enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, ring::BYTES as u32)?;
                tracker.enable(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0)?;
            }
        }
        for slot in SlotId::ALL {
            tracker.set_slot(slot, 0).map_err(|error| {
                refused(format!("memslot {slot} at {}: {error}", tracker.memory.slot(slot).range()))
            })?;
        }
        Ok(tracker)
    }

    /// Adopts the ring of a new vCPU, where the log is made of rings.
    ///
    /// # Errors
    /// [`BackendError::Refused`] where it cannot be mapped.
    pub(super) fn adopt(&self, index: usize, vcpu: &VcpuFd) -> Result<(), BackendError> {
        if self.log == KvmLog::Ring {
            let ring = Ring::map(vcpu).map_err(|error| refused(format!("the dirty ring of vCPU {index}: {error}")))?;
            self.rings().push(ring);
        }
        Ok(())
    }

    pub(super) fn page_bytes(&self) -> u64 {
        self.memory.host_page_bytes()
    }

    /// Notes that the VMM wrote `range`. After the write.
    pub(super) fn mark(&self, range: GuestRange) {
        if range.is_empty() || !self.logging.load(Ordering::SeqCst) {
            return;
        }
        let Ok((slot, offset)) = self.memory.locate(range.start(), range.len_bytes()) else { return };
        let page_bytes = self.page_bytes();
        for page in offset / page_bytes..(offset + range.len_bytes()).div_ceil(page_bytes) {
            self.note(slot.index(), page);
        }
    }

    fn note(&self, slot: usize, page: u64) {
        if let Some(word) = self.noted.get(slot).and_then(|words| words.get((page / 64) as usize)) {
            word.fetch_or(1 << (page % 64), Ordering::SeqCst);
            // After the bit: a harvest that sees the flag sees the bit.
            self.any_noted[slot].store(true, Ordering::SeqCst);
        }
    }

    pub(super) fn start(&self, slots: &[SlotId]) -> Result<(), BackendError> {
        if self.logging.load(Ordering::SeqCst) {
            return Err(failed("it runs already"));
        }
        // What is left in rings and notes is from before.
        if let Err(error) = self.log_slots(slots).and_then(|()| self.empty_rings()) {
            // It has not started: no slot is logged for nobody. That this fails as well says nothing new.
            let _ = self.stop_slots();
            return Err(error);
        }
        self.noted.iter().flatten().for_each(|word| word.store(0, Ordering::SeqCst));
        self.logging.store(true, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn stop(&self) -> Result<(), BackendError> {
        if !self.logging.swap(false, Ordering::SeqCst) {
            return Err(failed("it does not run"));
        }
        self.stop_slots()?;
        self.empty_rings()
    }

    fn log_slots(&self, slots: &[SlotId]) -> Result<(), BackendError> {
        slots.iter().try_for_each(|slot| {
            self.set_slot(*slot, KVM_MEM_LOG_DIRTY_PAGES).map_err(|error| failed_on(*slot, "start", &error))?;
            self.logged[slot.index()].store(true, Ordering::SeqCst);
            Ok(())
        })
    }

    fn stop_slots(&self) -> Result<(), BackendError> {
        SlotId::ALL
            .into_iter()
            .filter(|slot| self.logged[slot.index()].swap(false, Ordering::SeqCst))
            .try_for_each(|slot| self.set_slot(slot, 0).map_err(|error| failed_on(slot, "stop", &error)))
    }

    /// How much of the last harvest went into resetting: nothing where KVM_GET_DIRTY_LOG resets.
    pub(super) fn last_reset(&self) -> Duration {
        Duration::from_nanos(self.last_reset_ns.load(Ordering::Relaxed))
    }

    pub(super) fn harvest(&self, slot: SlotId, bitmap: &mut [u64]) -> Result<(), BackendError> {
        if !self.logged[slot.index()].load(Ordering::SeqCst) {
            return Err(failed(format!("it does not run for the {slot}")));
        }
        let noted = &self.noted[slot.index()];
        if bitmap.len() != noted.len() {
            return Err(failed(format!("the {slot} needs {} words of bitmap, not {}", noted.len(), bitmap.len())));
        }
        self.fetch(slot, bitmap)?;
        let reset = Instant::now();
        match self.log {
            KvmLog::Bitmap => {}
            // What is not cleared stays dirty in the kernel.
            KvmLog::Manual | KvmLog::Initset => self.clear(slot, bitmap)?,
            KvmLog::Ring => {
                if let Err(error) = self.empty_rings() {
                    // The backup bitmap is fetched and gone: the next harvest has it.
                    for (word, noted) in bitmap.iter().zip(noted) {
                        noted.fetch_or(*word, Ordering::SeqCst);
                    }
                    return Err(error);
                }
            }
        }
        self.last_reset_ns.store(reset.elapsed().as_nanos() as u64, Ordering::Relaxed);
        if self.any_noted[slot.index()].swap(false, Ordering::SeqCst) {
            for (word, noted) in bitmap.iter_mut().zip(noted) {
                if noted.load(Ordering::Relaxed) != 0 {
                    *word |= noted.swap(0, Ordering::SeqCst);
                }
            }
        }
        Ok(())
    }

    /// KVM_GET_DIRTY_LOG into `bitmap`, which has a bit for every page of the slot. kvm-ioctls' own call makes a vector each
    /// time, which costs as much as the fetch.
    fn fetch(&self, slot: SlotId, bitmap: &mut [u64]) -> Result<(), BackendError> {
        let get = kvm_dirty_log {
            slot: slot.index() as u32,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
        };
        // SAFETY: `get` is the struct that the call reads; its bitmap has room for what the call writes, a bit for
        // each page of the slot rounded up to 64.
        let result = unsafe { libc::ioctl(self.vm.as_raw_fd(), KVM_GET_DIRTY_LOG as libc::Ioctl, &raw const get) };
        if result < 0 {
            return Err(failed(format!("KVM_GET_DIRTY_LOG of the {slot}: {}", io::Error::last_os_error())));
        }
        Ok(())
    }

    /// Moves what is in the rings to the notes and makes room: in a harvest, and for a vCPU whose ring is full.
    ///
    /// # Errors
    /// [`BackendError::DirtyLog`] where the kernel refuses.
    pub(super) fn empty_rings(&self) -> Result<(), BackendError> {
        let mut rings = self.rings();
        let collected: u64 =
            rings.iter_mut().map(|ring| ring.collect(|slot, page| self.note(slot as usize, page))).sum();
        // Entries whose reset has failed are still to be reset.
        if collected == 0 && !self.reset_due.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.reset_due.store(true, Ordering::SeqCst);
        // SAFETY: the call has no argument; it protects pages and writes the rings' flags.
        let result = unsafe { libc::ioctl(self.vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS as libc::Ioctl, 0) };
        if result < 0 {
            return Err(failed(format!("KVM_RESET_DIRTY_RINGS: {}", io::Error::last_os_error())));
        }
        self.reset_due.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Clears the pages of `bitmap`, in chunks that begin at multiples of 64 pages and leave out what is clean.
    fn clear(&self, slot: SlotId, bitmap: &[u64]) -> Result<(), BackendError> {
        let pages = self.memory.slot(slot).host_pages();
        let chunk_words = (CLEAR_CHUNK_PAGES / 64) as usize;
        for (index, chunk) in bitmap.chunks(chunk_words).enumerate() {
            let Some(first) = chunk.iter().position(|word| *word != 0) else { continue };
            let last = chunk.iter().rposition(|word| *word != 0).unwrap_or(first);
            let words = &chunk[first..=last];
            let first_page = (index * chunk_words + first) as u64 * 64;
            let num_pages = (words.len() as u64 * 64).min(pages - first_page) as u32;
            self.clear_words(slot.index() as u32, first_page, num_pages, words).map_err(|error| {
                failed(format!("KVM_CLEAR_DIRTY_LOG of {num_pages} pages from {first_page} of the {slot}: {error}"))
            })?;
        }
        Ok(())
    }

    /// KVM_CLEAR_DIRTY_LOG of `num_pages` pages, of which `words` have a bit each.
    fn clear_words(&self, slot: u32, first_page: u64, num_pages: u32, words: &[u64]) -> io::Result<()> {
        let clear = kvm_clear_dirty_log {
            slot,
            num_pages,
            first_page,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: words.as_ptr().cast_mut().cast() },
        };
        // SAFETY: `clear` is the struct that the call reads; it points to a bit for each of `num_pages`.
        let result = unsafe { libc::ioctl(self.vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG as libc::Ioctl, &raw const clear) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Makes the CPUs forget the guest's translations of both stages. No ioctl is for that; KVM does it where the pages of a
    /// slot are protected for its log, mapped or not, so a slot of one page comes and goes again, logged.
    ///
    /// # Errors
    /// [`BackendError::Refused`] with the call at fault.
    pub(super) fn forget_translations(&self) -> Result<(), BackendError> {
        let page_bytes = self.page_bytes();
        let region = |flags, memory_size| kvm_userspace_memory_region {
            slot: FLUSH_SLOT,
            flags,
            guest_phys_addr: FLUSH_GPA,
            memory_size,
            userspace_addr: self.memory.slot(SlotId::Ram).host_base().expose_provenance().get() as u64,
        };
        let failed =
            |what: &str, error: &dyn std::fmt::Display| refused(format!("{what} of the flushing slot: {error}"));
        self.set_region(region(KVM_MEM_LOG_DIRTY_PAGES, page_bytes)).map_err(|error| failed("creation", &error))?;
        // With every page dirty at the start, pages are protected only as their bits are cleared.
        let cleared = if self.log == KvmLog::Initset { self.clear_words(FLUSH_SLOT, 0, 1, &[1]) } else { Ok(()) };
        let deleted = self.set_region(region(0, 0));
        cleared.map_err(|error| failed("KVM_CLEAR_DIRTY_LOG", &error))?;
        deleted.map_err(|error| failed("deletion", &error))
    }

    fn set_slot(&self, slot: SlotId, flags: u32) -> Result<(), kvm_ioctls::Error> {
        let backing = self.memory.slot(slot);
        self.set_region(kvm_userspace_memory_region {
            slot: slot.index() as u32,
            flags,
            guest_phys_addr: backing.range().start().raw(),
            memory_size: backing.range().len_bytes(),
            userspace_addr: backing.host_base().expose_provenance().get() as u64,
        })
    }

    /// KVM_SET_USER_MEMORY_REGION of memory that is one of ours.
    fn set_region(&self, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: the range is a mapping that `self.memory` keeps alive as long as the machine; nothing makes Rust
        // references into it.
        unsafe { self.vm.set_user_memory_region(region) }
    }

    fn enable(&self, capability: u32, argument: u32) -> Result<(), BackendError> {
        let cap = kvm_enable_cap { cap: capability, args: [argument.into(), 0, 0, 0], ..Default::default() };
        self.vm.enable_cap(&cap).map_err(|error| refused(format!("KVM_ENABLE_CAP of capability {capability}: {error}")))
    }

    fn rings(&self) -> MutexGuard<'_, Vec<Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(reason: impl Into<String>) -> BackendError {
    BackendError::DirtyLog { accelerator: Accelerator::Kvm, reason: reason.into() }
}

fn failed_on(slot: SlotId, what: &str, error: &kvm_ioctls::Error) -> BackendError {
    failed(format!("cannot {what} logging of the {slot}: KVM_SET_USER_MEMORY_REGION: {error}"))
}
