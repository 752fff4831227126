//! Guest memory by virtual address: loads and stores on [`Cpu`], with the slow path behind the software TLB.
//!
//! The fast path is one comparison and one host access. The slow path ([`Cpu::resolve`]) walks the tables, finds the RAM,
//! marks the dirty log before the store and installs the tag; it also does what the fast path refuses: misaligned and
//! page-crossing accesses, and devices. Nothing is written before every page of an access is known to be writable.

use abi::Gpa;

use crate::cpu::{Cpu, MmioState, Trap};
use crate::exec::host::Word;
use crate::fault::{Access, AccessKind, FaultInfo, Status};
use crate::mmu::{self, TableMemory};
use crate::tlb::{PAGE_BYTES, SubPage, USER};

/// SCTLR_EL1.A: every misaligned data access faults.
const SCTLR_A: u64 = 1 << 1;

/// What lies at an address.
enum Place {
    Ram(SubPage),
    Io { gpa: u64 },
}

impl Cpu {
    /// The part of [`Cpu::load`] that the TLB answers.
    #[inline(always)]
    pub(crate) fn load_hit<T: Word>(&self, va: u64) -> Option<T> {
        // A `T` has `1 << SHIFT` bytes; the match resolves at compile time.
        let host = match T::SHIFT {
            0 => self.tlb.read::<0>(va),
            1 => self.tlb.read::<1>(va),
            2 => self.tlb.read::<2>(va),
            _ => self.tlb.read::<3>(va),
        };
        host.map(T::load)
    }

    /// The part of [`Cpu::store`] that the TLB answers: whether it did.
    #[inline(always)]
    pub(crate) fn store_hit<T: Word>(&self, va: u64, value: T) -> bool {
        let host = match T::SHIFT {
            0 => self.tlb.write::<0>(va),
            1 => self.tlb.write::<1>(va),
            2 => self.tlb.write::<2>(va),
            _ => self.tlb.write::<3>(va),
        };
        host.map(|host| T::store(host, value)).is_some()
    }

    /// Loads a `T` from `va` as the current exception level.
    ///
    /// # Errors
    /// [`Trap`], with the details in [`Cpu::fault`] or [`Cpu::mmio`].
    #[inline(always)]
    pub fn load<T: Word>(&mut self, va: u64) -> Result<T, Trap> {
        if let Some(value) = self.load_hit(va) {
            return Ok(value);
        }
        self.load_slow(va, T::SHIFT, self.tlb.context())?;
        Ok(T::cut(self.slot))
    }

    /// Stores `value` to `va` as the current exception level.
    ///
    /// # Errors
    /// [`Trap`], with the details in [`Cpu::fault`] or [`Cpu::mmio`]; then nothing was written.
    #[inline(always)]
    pub fn store<T: Word>(&mut self, va: u64, value: T) -> Result<(), Trap> {
        if self.store_hit(va, value) {
            return Ok(());
        }
        self.store_slow(va, T::SHIFT, value.wide(), self.tlb.context())
    }

    /// Loads a `T` from `va` with EL0's permissions (LDTR).
    ///
    /// # Errors
    /// As [`Cpu::load`].
    pub fn load_unprivileged<T: Word>(&mut self, va: u64) -> Result<T, Trap> {
        self.load_slow(va, T::SHIFT, self.unprivileged_context())?;
        Ok(T::cut(self.slot))
    }

    /// Stores to `va` with EL0's permissions (STTR).
    ///
    /// # Errors
    /// As [`Cpu::store`].
    pub fn store_unprivileged<T: Word>(&mut self, va: u64, value: T) -> Result<(), Trap> {
        self.store_slow(va, T::SHIFT, value.wide(), self.unprivileged_context())
    }

    /// The part of [`Cpu::load_pair`] that the TLB answers.
    #[inline(always)]
    pub(crate) fn load_pair_hit<T: Word>(&self, va: u64) -> Option<(T, T)> {
        let host = if T::SHIFT == 3 { self.tlb.read_pair::<3>(va) } else { self.tlb.read_pair::<2>(va) };
        host.map(|host| (T::load(host), T::load(host + (1 << T::SHIFT))))
    }

    /// The part of [`Cpu::store_pair`] that the TLB answers: whether it did.
    #[inline(always)]
    pub(crate) fn store_pair_hit<T: Word>(&self, va: u64, first: T, second: T) -> bool {
        let host = if T::SHIFT == 3 { self.tlb.write_pair::<3>(va) } else { self.tlb.write_pair::<2>(va) };
        let store = |host| {
            T::store(host, first);
            T::store(host + (1 << T::SHIFT), second);
        };
        host.map(store).is_some()
    }

    /// Loads two adjacent `T` from `va`, each aligned on its own.
    ///
    /// # Errors
    /// As [`Cpu::load`]. A pair in a device's registers is an external abort: one answer of the host cannot carry it.
    #[inline(always)]
    pub(crate) fn load_pair<T: Word>(&mut self, va: u64) -> Result<(T, T), Trap> {
        if let Some(both) = self.load_pair_hit(va) {
            return Ok(both);
        }
        self.load_pair_slow(va, T::SHIFT)?;
        Ok((T::cut(self.slot), T::cut(self.slot_high)))
    }

    /// Stores two adjacent `T` to `va`.
    ///
    /// # Errors
    /// As [`Cpu::load_pair`]; then nothing was written.
    #[inline(always)]
    pub(crate) fn store_pair<T: Word>(&mut self, va: u64, first: T, second: T) -> Result<(), Trap> {
        if self.store_pair_hit(va, first, second) {
            return Ok(());
        }
        self.store_pair_slow(va, T::SHIFT, first.wide(), second.wide())
    }

    /// The host address of the `1 << shift` bytes at `va` for an atomic update or an acquire or release: naturally
    /// aligned, in RAM that is not Device; for `write`, marked dirty.
    ///
    /// # Errors
    /// [`Trap`]. Misalignment is an alignment fault whatever SCTLR_EL1.A, Device memory an unsupported atomic.
    pub(crate) fn ordered_host(&mut self, va: u64, shift: u32, write: bool) -> Result<u64, Trap> {
        let context = self.tlb.context();
        if va & ((1 << shift) - 1) != 0 {
            return Err(self.abort(Status::Alignment, va, write, context));
        }
        match self.resolve(va, write, context)? {
            Place::Ram(page) if !page.device => {
                if write {
                    self.mark(va, page, context);
                }
                Ok(page.host)
            }
            _ => Err(self.abort(Status::UnsupportedAtomic, va, write, context)),
        }
    }

    /// The host address of the `1 << shift` bytes at `va` for an acquire or a release, marked dirty for `write`; `None`
    /// where a device answers.
    ///
    /// # Errors
    /// [`Trap`]. Misalignment is an alignment fault whatever SCTLR_EL1.A.
    pub(crate) fn acquire_host(&mut self, va: u64, shift: u32, write: bool) -> Result<Option<u64>, Trap> {
        let context = self.tlb.context();
        if va & ((1 << shift) - 1) != 0 {
            return Err(self.abort(Status::Alignment, va, write, context));
        }
        Ok(match self.resolve(va, write, context)? {
            Place::Ram(page) => {
                if write {
                    self.mark(va, page, context);
                }
                Some(page.host)
            }
            Place::Io { .. } => None,
        })
    }

    /// The host address of the 64-byte block of `va`, to be zeroed by DC ZVA, marked dirty.
    ///
    /// # Errors
    /// As [`Cpu::store`], with `va` itself in the syndrome; Device memory is an alignment fault (DDI 0487 C6.2, DC ZVA).
    pub(crate) fn zero_host(&mut self, va: u64) -> Result<u64, Trap> {
        let context = self.tlb.context();
        match self.resolve(va, true, context)? {
            Place::Ram(page) if !page.device => {
                self.mark(va, page, context);
                Ok(page.host & !63)
            }
            _ => Err(self.abort(Status::Alignment, va, true, context)),
        }
    }

    /// Checks that a store of `len` bytes (at most a page) to `va` would find RAM or fault, without marking anything.
    ///
    /// # Errors
    /// As [`Cpu::store`].
    pub(crate) fn probe_store(&mut self, va: u64, len: u64) -> Result<(), Trap> {
        self.probe(va, len, true)
    }

    /// Checks that a load of `len` bytes (at most a page) from `va` would find RAM or fault.
    ///
    /// # Errors
    /// As [`Cpu::load`].
    pub(crate) fn probe_load(&mut self, va: u64, len: u64) -> Result<(), Trap> {
        self.probe(va, len, false)
    }

    fn probe(&mut self, va: u64, len: u64, write: bool) -> Result<(), Trap> {
        let context = self.tlb.context();
        // A fault on the second page is reported at its start (D24.2.42).
        let room = PAGE_BYTES - va % PAGE_BYTES;
        let last = if len > room { va.wrapping_add(room) } else { va };
        for at in [va, last] {
            if let Place::Io { .. } = self.resolve(at, write, context)? {
                return Err(self.abort(Status::External, at, write, context));
            }
        }
        Ok(())
    }

    /// The host address of the `1 << shift` bytes at `va` for an atomic update. A fault that a read would have taken too
    /// is reported as a read (DDI 0487 D24.2.40, WnR).
    ///
    /// # Errors
    /// As [`Cpu::ordered_host`].
    #[inline]
    pub(crate) fn rmw_host(&mut self, va: u64, shift: u32) -> Result<u64, Trap> {
        let known = self.tlb.find(va, self.tlb.context(), true);
        match known {
            Some(page) if page.marked && !page.device && va & ((1 << shift) - 1) == 0 => Ok(page.host),
            _ => {
                self.ordered_host(va, shift, false)?;
                self.ordered_host(va, shift, true)
            }
        }
    }

    /// The guest physical address of `va`, for which a load just succeeded.
    pub(crate) fn physical(&mut self, va: u64) -> Result<u64, Trap> {
        Ok(match self.resolve(va, false, self.tlb.context())? {
            Place::Ram(page) => page.gpa,
            Place::Io { gpa } => gpa,
        })
    }

    fn unprivileged_context(&self) -> u64 {
        if self.pstate.uao { self.tlb.context() } else { USER }
    }

    /// Records an abort of a data access.
    pub(crate) fn abort(&mut self, status: Status, va: u64, write: bool, context: u64) -> Trap {
        self.fault = FaultInfo::abort(status, self.data_access(write, context), va);
        Trap::Exception
    }

    fn data_access(&self, write: bool, context: u64) -> Access {
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        let access = Access::new(kind, self.pstate.el, self.pstate.pan);
        Access { unprivileged: context == USER, ..access }
    }

    /// Finds what is at `va`, walking the tables if the TLB does not know.
    fn resolve(&mut self, va: u64, write: bool, context: u64) -> Result<Place, Trap> {
        if let Some(page) = self.tlb.find(va, context, write) {
            return Ok(Place::Ram(page));
        }
        let access = self.data_access(write, context);
        let memory = TableMemory { ram: &self.shared.ram, dirty: &self.shared.dirty };
        let translation = match mmu::translate(&self.sys.regime(), va, access, &memory) {
            Ok(translation) => translation,
            Err(fault) => {
                self.fault = fault;
                return Err(Trap::Exception);
            }
        };
        let gpa = translation.pa.raw();
        let Some(located) = self.shared.ram.locate(translation.pa, 1) else { return Ok(Place::Io { gpa }) };
        let page = SubPage {
            host: located.host.as_ptr().expose_provenance() as u64,
            gpa,
            device: translation.is_device(),
            marked: false,
        };
        let writable = translation.permissions.allow(self.data_access(true, context));
        self.tlb.install(va, context, page, writable);
        Ok(Place::Ram(page))
    }

    /// Marks the page dirty and validates its write tag, before the store.
    fn mark(&mut self, va: u64, page: SubPage, context: u64) {
        if !page.marked {
            self.shared.dirty.mark(Gpa::new(page.gpa));
            self.tlb.marked(va, context);
        }
    }

    /// Whether a misaligned access at `va` must fault before any translation.
    fn refuses_misaligned(&self) -> bool {
        self.sys.regime().sctlr & SCTLR_A != 0
    }

    /// Whether an access in units of `1 << shift` bytes at `va` is misaligned and SCTLR_EL1.A forbids that.
    #[inline(always)]
    pub(crate) fn is_misaligned(&self, va: u64, shift: u32) -> bool {
        va & ((1 << shift) - 1) != 0 && self.sys.sctlr & SCTLR_A != 0
    }

    /// Checks the alignment of an access in units of `1 << shift` bytes, which comes before any translation.
    ///
    /// # Errors
    /// [`Trap`].
    #[inline(always)]
    pub(crate) fn check_aligned(&mut self, va: u64, shift: u32, write: bool) -> Result<(), Trap> {
        if self.is_misaligned(va, shift) {
            return Err(self.abort(Status::Alignment, va, write, self.tlb.context()));
        }
        Ok(())
    }

    /// A load of `1 << shift` bytes into `slot`.
    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, va: u64, shift: u32, context: u64) -> Result<(), Trap> {
        let misaligned = va & ((1 << shift) - 1) != 0;
        if misaligned && self.refuses_misaligned() {
            return Err(self.abort(Status::Alignment, va, false, context));
        }
        match self.resolve(va, false, context)? {
            Place::Ram(page) if misaligned => {
                let mut bytes = [0; 8];
                self.load_bytes(va, page, &mut bytes[..1 << shift], context)?;
                self.slot = u64::from_le_bytes(bytes);
            }
            Place::Ram(page) => {
                self.slot = match shift {
                    0 => u8::load(page.host).wide(),
                    1 => u16::load(page.host).wide(),
                    2 => u32::load(page.host).wide(),
                    _ => u64::load(page.host),
                };
            }
            Place::Io { .. } if misaligned => return Err(self.abort(Status::Alignment, va, false, context)),
            Place::Io { gpa } => self.slot = self.io(gpa, shift, None)?,
        }
        Ok(())
    }

    /// A store of `1 << shift` bytes.
    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, va: u64, shift: u32, value: u64, context: u64) -> Result<(), Trap> {
        let misaligned = va & ((1 << shift) - 1) != 0;
        if misaligned && self.refuses_misaligned() {
            return Err(self.abort(Status::Alignment, va, true, context));
        }
        match self.resolve(va, true, context)? {
            Place::Ram(page) if misaligned => {
                self.store_bytes(va, page, &value.to_le_bytes()[..1 << shift], context)?;
            }
            Place::Ram(page) => {
                self.mark(va, page, context);
                match shift {
                    0 => u8::store(page.host, value as u8),
                    1 => u16::store(page.host, value as u16),
                    2 => u32::store(page.host, value as u32),
                    _ => u64::store(page.host, value),
                }
            }
            Place::Io { .. } if misaligned => return Err(self.abort(Status::Alignment, va, true, context)),
            Place::Io { gpa } => {
                self.io(gpa, shift, Some(value))?;
            }
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn load_pair_slow(&mut self, va: u64, shift: u32) -> Result<(), Trap> {
        let context = self.tlb.context();
        let step = 1_u64 << shift;
        if va & (step - 1) != 0 && self.refuses_misaligned() {
            return Err(self.abort(Status::Alignment, va, false, context));
        }
        let Place::Ram(page) = self.resolve(va, false, context)? else {
            return Err(self.abort(Status::External, va, false, context));
        };
        if va & (step - 1) == 0 && va % PAGE_BYTES + 2 * step <= PAGE_BYTES {
            let one = |host| if shift == 3 { u64::load(host) } else { u32::load(host).wide() };
            (self.slot, self.slot_high) = (one(page.host), one(page.host + step));
            return Ok(());
        }
        let mut bytes = [0; 16];
        self.load_bytes(va, page, &mut bytes[..2 << shift], context)?;
        let both = u128::from_le_bytes(bytes);
        let high = both >> (8 * step);
        self.slot = if shift == 3 { both as u64 } else { u64::from(both as u32) };
        self.slot_high = high as u64;
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn store_pair_slow(&mut self, va: u64, shift: u32, first: u64, second: u64) -> Result<(), Trap> {
        let context = self.tlb.context();
        let step = 1_u64 << shift;
        if va & (step - 1) != 0 && self.refuses_misaligned() {
            return Err(self.abort(Status::Alignment, va, true, context));
        }
        let Place::Ram(page) = self.resolve(va, true, context)? else {
            return Err(self.abort(Status::External, va, true, context));
        };
        if va & (step - 1) == 0 && va % PAGE_BYTES + 2 * step <= PAGE_BYTES {
            self.mark(va, page, context);
            for (host, value) in [(page.host, first), (page.host + step, second)] {
                if shift == 3 { u64::store(host, value) } else { u32::store(host, value as u32) }
            }
            return Ok(());
        }
        let both = u128::from(second) << (8 * step) | u128::from(first);
        self.store_bytes(va, page, &both.to_le_bytes()[..2 << shift], context)
    }

    /// Loads bytes one by one from `va`, which is at `page`; they may cross into the next page.
    fn load_bytes(&mut self, va: u64, page: SubPage, out: &mut [u8], context: u64) -> Result<(), Trap> {
        let (page, second) = self.both_pages(va, page, out.len() as u64, false, context)?;
        let room = (PAGE_BYTES - va % PAGE_BYTES) as usize;
        for (index, byte) in out.iter_mut().enumerate() {
            let host = if index < room { page.host + index as u64 } else { second.host + (index - room) as u64 };
            *byte = u8::load(host);
        }
        Ok(())
    }

    /// Stores bytes one by one, once every page is known to be writable.
    fn store_bytes(&mut self, va: u64, page: SubPage, bytes: &[u8], context: u64) -> Result<(), Trap> {
        let (page, second) = self.both_pages(va, page, bytes.len() as u64, true, context)?;
        let room = (PAGE_BYTES - va % PAGE_BYTES) as usize;
        self.mark(va, page, context);
        if bytes.len() > room {
            self.mark(va.wrapping_add(room as u64), second, context);
        }
        for (index, &byte) in bytes.iter().enumerate() {
            let host = if index < room { page.host + index as u64 } else { second.host + (index - room) as u64 };
            u8::store(host, byte);
        }
        Ok(())
    }

    /// The pages of a misaligned access of `len` bytes at `va`: `page` and, where it crosses, the one behind.
    fn both_pages(
        &mut self,
        va: u64,
        page: SubPage,
        len: u64,
        write: bool,
        context: u64,
    ) -> Result<(SubPage, SubPage), Trap> {
        let room = PAGE_BYTES - va % PAGE_BYTES;
        let second = if len > room {
            let next = va.wrapping_add(room);
            match self.resolve(next, write, context)? {
                Place::Ram(second) => second,
                Place::Io { .. } => return Err(self.abort(Status::External, next, write, context)),
            }
        } else {
            page
        };
        if page.device || second.device {
            return Err(self.abort(Status::Alignment, va, write, context));
        }
        Ok((page, second))
    }

    /// An access to what is not RAM: a device of the machine itself answers at once, else the host must.
    fn io(&mut self, gpa: u64, shift: u32, store: Option<u64>) -> Result<u64, Trap> {
        let size_bytes = 1_u8 << shift;
        let address = Gpa::new(gpa);
        let answered = match store {
            Some(value) => self.shared.device_write(self.index, address, size_bytes, value).then_some(0),
            None => self.shared.device_read(self.index, address, size_bytes),
        };
        if let Some(value) = answered {
            return Ok(value);
        }
        let write = store.is_some();
        let same = self.mmio.gpa == gpa && self.mmio.size_bytes == size_bytes && self.mmio.write == write;
        if let Some(reply) = self.mmio.reply.take().filter(|_| same) {
            return Ok(reply);
        }
        self.mmio = MmioState { gpa, size_bytes, write, value: store.unwrap_or(0), reply: None };
        Err(Trap::Mmio)
    }
}
