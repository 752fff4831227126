//! AArch64's address space: where it has what, tables in the memory behind the image, and the registers that put them
//! to use.
//!
//! ```text
//!   low half (TTBR0), 2^n bytes              high half (TTBR1), from -2^n
//!     0      devices, RAM: identity            n-3   live tables of the vCPUs (`tablewalk`), one after the other
//!     n-1    region, written through           n-2   region, written through
//!     n-2+n-1  region, read-only, executable   n-2+n-1  RAM, read-only, guards included
//! ```
//!
//! (`n-1` means 2^(n-1) up in the half.) The two writable aliases are used in turn. Guards below stacks are not mapped.
//! The tables of `tablewalk` are linked from the start, while they are all zeroes.
//!
//! Neighbours: [`crate::guest::mmu`] says what is mapped how, `pagetable` writes the descriptors.
#![expect(
    unsafe_code,
    reason = "translation tables are raw memory; translation registers change the meaning of every address"
)]

use core::arch::asm;

use abi::boot::BootInfo;
use abi::points::Point;
use abi::{Gpa, GuestRange, Tables, VaBits};
use pagetable::{Attributes, MapError, Mapper, Sizes, TableMemory, Va, tcr_el1};
use workload::Plan;

use super::entry::{SCTLR_MMU_AND_CACHES, SCTLR_MMU_OFF};
use super::features::Features;
use super::points::Record;

/// SCTLR_EL1: MMU, data and instruction caches on; what is writable is never executable (WXN).
const SCTLR_MMU_ON: u64 = SCTLR_MMU_OFF | SCTLR_MMU_AND_CACHES | 1 << 19;
/// An alias has the alignment of what it maps up to this, so that every block size fits it as it fits the original.
const ALIAS_ALIGN: u64 = 1 << 30;

/// Register values of the shared translation, in the order they are loaded.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TranslationRegisters {
    pub(crate) mair: u64,
    pub(crate) tcr: u64,
    pub(crate) ttbr0: u64,
    pub(crate) ttbr1: u64,
    pub(crate) sctlr: u64,
}

impl TranslationRegisters {
    /// Leaves the boot table for these, on the primary. Granule and VA size may change, so the MMU is off in between:
    /// no data is touched meanwhile but the record of `asks`, and instructions are fetched from the same addresses before, in
    /// between, and after. With `asks` this is where it asks to be moved: where, and the record.
    pub(crate) fn switch_to(&self, asks: Option<(Gpa, *mut Record)>) {
        let (register, record) = asks.map_or((0, core::ptr::null_mut()), |(at, record)| (at.raw(), record));
        // SAFETY: what this code can reach is mapped to itself by the boot table and by the new ones, which are
        // complete.
        unsafe {
            asm!(
                "dsb ish",
                "msr sctlr_el1, {off}",
                "isb",
                "msr mair_el1, {mair}",
                "msr tcr_el1, {tcr}",
                "msr ttbr0_el1, {ttbr0}",
                "msr ttbr1_el1, {ttbr1}",
                "isb",
                "tlbi vmalle1",
                "dsb nsh",
                "isb",
                "cbz x27, 3f",
                "bl point_ask",
                "3:",
                "msr sctlr_el1, {on}",
                "isb",
                off = in(reg) SCTLR_MMU_OFF,
                mair = in(reg) self.mair,
                tcr = in(reg) self.tcr,
                ttbr0 = in(reg) self.ttbr0,
                ttbr1 = in(reg) self.ttbr1,
                on = in(reg) self.sctlr,
                in("x26") Point::TableSwitch.number(),
                in("x27") register,
                in("x28") record,
                out("x30") _,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Where region and RAM have their aliases.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    va: VaBits,
    region: GuestRange,
    ram: GuestRange,
}

impl Layout {
    /// The layout for what the host asks for; `ram` is the part in use. The plan makes no difference.
    ///
    /// # Panics
    /// If the tables asked for are not AArch64's.
    pub(crate) fn new(boot: &BootInfo, ram: GuestRange, _plan: &Plan) -> Self {
        Self { va: va_bits(boot), region: boot.region, ram }
    }

    /// The region's writable alias in the high half.
    pub(crate) fn region_first(&self) -> u64 {
        alias(Va::high_base(self.va).raw() + (1 << (self.va.bits() - 2)), self.region)
    }

    /// The region's writable alias in the low half.
    pub(crate) fn region_second(&self) -> u64 {
        alias(1 << (self.va.bits() - 1), self.region)
    }

    /// The region's read-only, executable alias.
    pub(crate) fn region_code(&self) -> Option<u64> {
        Some(alias(0b11 << (self.va.bits() - 2), self.region))
    }

    /// All of RAM, read-only.
    pub(crate) fn ram_view(&self) -> Option<u64> {
        Some(alias(Va::high_base(self.va).raw() + (0b11 << (self.va.bits() - 2)), self.ram))
    }

    /// First address that the live table of `vcpu` translates.
    pub(crate) fn table_window(&self, vcpu: usize) -> u64 {
        let granule = self.va.granule().bytes();
        let window_bytes = granule / size_of::<u64>() as u64 * granule;
        Va::high_base(self.va).raw() + (1 << (self.va.bits() - 3)) + vcpu as u64 * window_bytes
    }
}

fn va_bits(boot: &BootInfo) -> VaBits {
    let Tables::V8(va) = boot.tables else { panic!("{} tables are not AArch64's", boot.tables) };
    va
}

/// `base`, plus what of the original's address an alias keeps.
fn alias(base: u64, original: GuestRange) -> u64 {
    base + original.start().raw() % ALIAS_ALIGN
}

/// The tables being built.
pub(crate) struct Builder {
    mapper: Mapper,
    arena: Arena,
}

impl Builder {
    /// Empty tables in `memory`, which is taken from its start.
    ///
    /// # Panics
    /// If there is no room for two tables.
    pub(crate) fn new(boot: &BootInfo, memory: GuestRange) -> Self {
        let va = va_bits(boot);
        let mut arena = Arena { granule_bytes: va.granule().bytes(), next: memory.start(), end: memory.end() };
        let mapper = Mapper::new(va, &mut arena).expect("RAM has room for two tables");
        Self { mapper, arena }
    }

    /// Maps `range` at `va`.
    pub(crate) fn map(
        &mut self,
        va: u64,
        range: GuestRange,
        attributes: Attributes,
        sizes: Sizes,
    ) -> Result<(), MapError> {
        self.mapper.map(&mut self.arena, Va::new(va), range.start(), range.len_bytes(), attributes, sizes)
    }

    /// Links the plan's live tables. Gives the registers' values, and the first byte that is left of the memory.
    pub(crate) fn finish(
        mut self,
        layout: &Layout,
        boot: &BootInfo,
        features: &Features,
        plan: &Plan,
    ) -> (TranslationRegisters, Gpa) {
        for vcpu in 0..boot.vcpus {
            if let Some(live) = plan.tablewalk_layout(vcpu) {
                let va = Va::new(layout.table_window(vcpu as usize));
                self.mapper
                    .hook_table(&mut self.arena, va, live.table)
                    .unwrap_or_else(|error| panic!("cannot link the live table at {}: {error}", live.table));
            }
        }
        let registers = TranslationRegisters {
            mair: pagetable::MAIR_EL1,
            tcr: tcr_el1(self.mapper.va_bits(), features.pa_size(), features.hardware_update),
            ttbr0: self.mapper.ttbr0().raw(),
            ttbr1: self.mapper.ttbr1().raw(),
            sctlr: SCTLR_MMU_ON,
        };
        (registers, self.arena.next)
    }
}

/// Tables are taken from the memory behind the image, upwards.
struct Arena {
    granule_bytes: u64,
    next: Gpa,
    end: Gpa,
}

impl TableMemory for Arena {
    fn alloc_table(&mut self) -> Option<Gpa> {
        let table = self.next;
        let next = table.checked_add(self.granule_bytes)?;
        if next > self.end {
            return None;
        }
        let first = table.raw() as *mut u64;
        // SAFETY: the granule lies in RAM behind the image, which nothing else uses before the heap gets the rest.
        unsafe { first.write_bytes(0, self.granule_bytes as usize / size_of::<u64>()) };
        self.next = next;
        Some(table)
    }

    fn read(&self, gpa: Gpa) -> u64 {
        let entry = gpa.raw() as *const u64;
        // SAFETY: the entry lies in a table that `alloc_table` gave; the boot table maps it to itself.
        unsafe { entry.read_volatile() }
    }

    fn write(&mut self, gpa: Gpa, descriptor: u64) {
        let entry = gpa.raw() as *mut u64;
        // SAFETY: as in `read`.
        unsafe { entry.write_volatile(descriptor) };
    }
}
