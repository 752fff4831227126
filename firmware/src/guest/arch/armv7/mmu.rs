//! ARMv7's address space: where it has what, tables in the memory behind the image, and the registers that put them to
//! use.
//!
//! ```text
//!   0           devices: identity
//!   0x0c000000  room for aliases of the region
//!   0x40000000  RAM: identity, guards below stacks read-only
//!   end of RAM  more room for aliases
//! ```
//!
//! 4 GiB hold everything by TTBR0 alone. The region's aliases are put into the two rooms in the order of need: one
//! that is written through, one that is executed where the plan writes functions, a second one that is written through.
//! A large region has to do without the last. RAM has no read-only alias, so guards are readable where it is mapped to
//! itself; what overruns a stack, writes.
//!
//! Neighbours: [`crate::guest::mmu`] says what is mapped how, `pagetable` writes the descriptors.
#![expect(
    unsafe_code,
    reason = "translation tables are raw memory; translation registers change the meaning of every address"
)]

use core::arch::asm;

use abi::boot::BootInfo;
use abi::points::Point;
use abi::{Armv7Aliases, Gpa, GuestRange, Tables};
use pagetable::{Attributes, MapError, Sizes, Va, lpae, short};
use workload::{Pattern, Plan};

use super::entry::{SCTLR_MMU_AND_CACHES, SCTLR_MMU_OFF};
use super::features::Features;
use super::points::Record;

/// SCTLR: MMU, data and instruction caches on; what is writable is never executable (WXN).
const SCTLR_MMU_ON: u32 = SCTLR_MMU_OFF | SCTLR_MMU_AND_CACHES | 1 << 19;

/// Register values of the shared translation.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TranslationRegisters {
    /// PRRR, or MAIR0 with LPAE: the same register.
    pub(crate) mair0: u32,
    /// NMRR, or MAIR1 with LPAE.
    pub(crate) mair1: u32,
    pub(crate) dacr: u32,
    pub(crate) ttbcr: u32,
    /// The low half of TTBR0; the high one, which exists with LPAE, is zero.
    pub(crate) ttbr0: u32,
    pub(crate) sctlr: u32,
}

impl TranslationRegisters {
    /// Leaves the boot table for these, on the primary. The format may change, so the MMU is off in between: no data is
    /// touched meanwhile but the record of `asks`, and instructions are fetched from the same addresses before, in between, and
    /// after. With `asks` this is where it asks to be moved: where, and the record.
    pub(crate) fn switch_to(&self, asks: Option<(Gpa, *mut Record)>) {
        let (register, record) = asks.map_or((0, core::ptr::null_mut()), |(at, record)| (at.raw() as u32, record));
        // SAFETY: what this code can reach is mapped to itself by the boot table and by the new ones, which are
        // complete.
        unsafe {
            asm!(
                "dsb",
                "mcr p15, 0, {zero}, c1, c0, 0",
                "isb",
                "mov {zero}, #0",
                "mcr p15, 0, {mair0}, c10, c2, 0",
                "mcr p15, 0, {mair1}, c10, c2, 1",
                "mcr p15, 0, {dacr}, c3, c0, 0",
                "mcr p15, 0, {ttbcr}, c2, c0, 2",
                "isb",
                "tst {ttbcr}, #0x80000000", // EAE: TTBR0 has 64 bits
                "mcrrne p15, 0, {ttbr0}, {zero}, c2",
                "mcreq p15, 0, {ttbr0}, c2, c0, 0",
                "isb",
                "mcr p15, 0, {zero}, c8, c7, 0", // TLBIALL
                "dsb",
                "isb",
                "cmp r3, #0",
                "beq 3f",
                "bl point_ask",
                "3:",
                "mcr p15, 0, {on}, c1, c0, 0",
                "isb",
                mair0 = in(reg) self.mair0,
                mair1 = in(reg) self.mair1,
                dacr = in(reg) self.dacr,
                ttbcr = in(reg) self.ttbcr,
                ttbr0 = in(reg) self.ttbr0,
                zero = inout(reg) SCTLR_MMU_OFF => _,
                on = in(reg) self.sctlr,
                in("r2") Point::TableSwitch.number(),
                in("r3") register,
                in("r12") record,
                out("lr") _,
                options(nostack)
            );
        }
    }
}

/// Where the region has its aliases.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    first: u64,
    second: Option<u64>,
    code: Option<u64>,
}

impl Layout {
    /// The layout for what the host and the plan ask for; `ram` is the part in use.
    ///
    /// # Panics
    /// If there is no room for the aliases that it takes.
    pub(crate) fn new(boot: &BootInfo, ram: GuestRange, plan: &Plan) -> Self {
        let mut aliases = Armv7Aliases::new(ram, boot.region);
        let none = || panic!("4 GiB have no room for RAM {ram} and aliases of the region {}", boot.region);
        let first = aliases.next().unwrap_or_else(none);
        let executes = plan.patterns().any(|pattern| pattern == Pattern::Code);
        let code = executes.then(|| aliases.next().unwrap_or_else(none));
        Self { first, second: aliases.next(), code }
    }

    /// The region's first writable alias.
    pub(crate) fn region_first(&self) -> u64 {
        self.first
    }

    /// The region's other writable alias; the first where there is no other.
    pub(crate) fn region_second(&self) -> u64 {
        self.second.unwrap_or(self.first)
    }

    /// The region's read-only, executable alias, where the plan asks for it.
    pub(crate) fn region_code(&self) -> Option<u64> {
        self.code
    }

    /// There is no alias of RAM.
    pub(crate) fn ram_view(&self) -> Option<u64> {
        None
    }
}

/// The tables being built.
pub(crate) struct Builder {
    mapper: Mapper,
    arena: Arena,
}

enum Mapper {
    Short(short::Mapper),
    Lpae(lpae::Mapper),
}

impl Builder {
    /// Empty tables in `memory`, which is taken from its start.
    ///
    /// # Panics
    /// If there is no room for a table, or the tables asked for are not ARMv7's.
    pub(crate) fn new(boot: &BootInfo, memory: GuestRange) -> Self {
        let mut arena = Arena { next: memory.start(), end: memory.end() };
        let mapper = match boot.tables {
            Tables::Short { pages } => short::Mapper::new(pages, &mut arena).map(Mapper::Short),
            Tables::Lpae => lpae::Mapper::new(&mut arena).map(Mapper::Lpae),
            Tables::V8(_) => panic!("{} tables are not ARMv7's", boot.tables),
        };
        Self { mapper: mapper.expect("RAM has room for a table"), arena }
    }

    /// Maps `range` at `va`.
    pub(crate) fn map(
        &mut self,
        va: u64,
        range: GuestRange,
        attributes: Attributes,
        sizes: Sizes,
    ) -> Result<(), MapError> {
        let (va, gpa, len_bytes) = (Va::new(va), range.start(), range.len_bytes());
        match &self.mapper {
            Mapper::Short(mapper) => mapper.map(&mut self.arena, va, gpa, len_bytes, attributes, sizes),
            Mapper::Lpae(mapper) => mapper.map(&mut self.arena, va, gpa, len_bytes, attributes, sizes),
        }
    }

    /// Gives the registers' values, and the first byte that is left of the memory. Layout and plan have nothing to add.
    pub(crate) fn finish(
        self,
        _layout: &Layout,
        _boot: &BootInfo,
        _features: &Features,
        _plan: &Plan,
    ) -> (TranslationRegisters, Gpa) {
        let registers = match self.mapper {
            Mapper::Short(mapper) => TranslationRegisters {
                mair0: short::PRRR,
                mair1: short::NMRR,
                dacr: short::DACR,
                ttbcr: short::TTBCR,
                ttbr0: short::ttbr0(mapper.root()),
                sctlr: SCTLR_MMU_ON,
            },
            Mapper::Lpae(mapper) => TranslationRegisters {
                mair0: lpae::MAIR0,
                mair1: lpae::MAIR1,
                dacr: 0,
                ttbcr: lpae::ttbcr(),
                ttbr0: mapper.ttbr0().raw() as u32,
                sctlr: SCTLR_MMU_ON,
            },
        };
        (registers, self.arena.next)
    }
}

/// Tables are taken from the memory behind the image, upwards.
struct Arena {
    next: Gpa,
    end: Gpa,
}

impl Arena {
    /// `len_bytes` zeroed bytes, aligned to as many.
    fn alloc(&mut self, len_bytes: u64) -> Option<Gpa> {
        let table = self.next.checked_align_up(len_bytes)?;
        let next = table.checked_add(len_bytes)?;
        if next > self.end {
            return None;
        }
        let first = table.raw() as *mut u8;
        // SAFETY: the table lies in RAM behind the image, which nothing else uses before the heap gets the rest.
        unsafe { first.write_bytes(0, len_bytes as usize) };
        self.next = next;
        Some(table)
    }
}

impl short::TableMemory for Arena {
    fn alloc_table(&mut self, len_bytes: u64) -> Option<Gpa> {
        self.alloc(len_bytes)
    }

    fn read(&self, gpa: Gpa) -> u32 {
        let entry = gpa.raw() as *const u32;
        // SAFETY: the entry lies in a table that `alloc_table` gave; the boot table maps it to itself.
        unsafe { entry.read_volatile() }
    }

    fn write(&mut self, gpa: Gpa, descriptor: u32) {
        let entry = gpa.raw() as *mut u32;
        // SAFETY: as in `read`.
        unsafe { entry.write_volatile(descriptor) };
    }
}

impl pagetable::TableMemory for Arena {
    fn alloc_table(&mut self) -> Option<Gpa> {
        self.alloc(abi::Granule::K4.bytes())
    }

    fn read(&self, gpa: Gpa) -> u64 {
        let entry = gpa.raw() as *const u64;
        // SAFETY: the entry lies in a table that `alloc_table` gave; the boot table maps it to itself.
        unsafe { entry.read_volatile() }
    }

    // Two stores are as good as one: the walker does not use the table yet.
    fn write(&mut self, gpa: Gpa, descriptor: u64) {
        let entry = gpa.raw() as *mut u64;
        // SAFETY: as in `read`.
        unsafe { entry.write_volatile(descriptor) };
    }
}
