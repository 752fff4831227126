//! The guest's address space: tables in the memory behind the image, and the registers that put them to use.
//!
//! ```text
//!   low half (TTBR0), 2^n bytes              high half (TTBR1), from -2^n
//!     0      devices, RAM: identity            n-3   live tables of the vCPUs (`tablewalk`), one after the other
//!     n-1    region, written through           n-2   region, written through
//!     n-2+n-1  region, read-only, executable   n-2+n-1  RAM, read-only, guards included
//! ```
//!
//! (`n-1` means 2^(n-1) up in the half.) The region is never at its physical address, and its two writable aliases are
//! used in turn. Image parts have permissions of their own; guards below stacks are not mapped. All is mapped before
//! any of it is used, while the boot table maps everything to itself; the tables of `tablewalk` are linked from the
//! start, while they are all zeroes.
//!
//! Neighbours: `pagetable` writes the descriptors, [`crate::guest::image`] knows the parts.
#![expect(
    unsafe_code,
    reason = "translation tables are raw memory; translation registers change the meaning of every address"
)]

use core::arch::asm;

use abi::boot::{BootInfo, FLAG_REGION_BLOCKS};
use abi::map::{DEVICE_ALIGN, MAX_VCPUS};
use abi::{Gpa, GuestRange, Tables, VaBits};
use pagetable::{Attributes, Mapper, Sizes, TableMemory, Va, tcr_el1};
use workload::Plan;

use crate::guest::devicetree::Devices;
use crate::guest::entry::{SCTLR_MMU_AND_CACHES, SCTLR_MMU_OFF};
use crate::guest::features::Features;
use crate::guest::image;

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
    /// no data is touched meanwhile, and instructions are fetched from the same addresses before, in between, and
    /// after.
    pub(crate) fn switch_to(&self) {
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
                "msr sctlr_el1, {on}",
                "isb",
                off = in(reg) SCTLR_MMU_OFF,
                mair = in(reg) self.mair,
                tcr = in(reg) self.tcr,
                ttbr0 = in(reg) self.ttbr0,
                ttbr1 = in(reg) self.ttbr1,
                on = in(reg) self.sctlr,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Where things are mapped.
pub(crate) struct AddressSpace {
    va: VaBits,
    registers: TranslationRegisters,
    region: GuestRange,
    ram: GuestRange,
}

impl AddressSpace {
    /// Values for a vCPU's translation registers.
    pub(crate) fn registers(&self) -> TranslationRegisters {
        self.registers
    }

    /// The region's writable alias in the high half.
    pub(crate) fn region_high(&self) -> u64 {
        region_high(self.va, self.region)
    }

    /// The region's writable alias in the low half.
    pub(crate) fn region_low(&self) -> u64 {
        region_low(self.va, self.region)
    }

    /// The region's read-only, executable alias.
    pub(crate) fn region_code(&self) -> u64 {
        region_code(self.va, self.region)
    }

    /// First address that the live table of `vcpu` translates.
    pub(crate) fn table_window(&self, vcpu: usize) -> u64 {
        table_window(self.va, vcpu)
    }

    /// A read-only address of `range`, which lies in the region or in RAM; else `None`.
    pub(crate) fn view(&self, range: GuestRange) -> Option<u64> {
        [(self.region, self.region_low()), (self.ram, ram_view(self.va, self.ram))]
            .into_iter()
            .find(|(mapped, _)| mapped.contains_range(range))
            .and_then(|(mapped, va)| Some(va + range.start().checked_offset_from(mapped.start())?))
    }
}

/// `2^n` bytes up, plus what of the original's address an alias keeps.
fn alias(base: u64, original: GuestRange) -> u64 {
    base + original.start().raw() % ALIAS_ALIGN
}

fn region_high(va: VaBits, region: GuestRange) -> u64 {
    alias(Va::high_base(va).raw() + (1 << (va.bits() - 2)), region)
}

fn region_low(va: VaBits, region: GuestRange) -> u64 {
    alias(1 << (va.bits() - 1), region)
}

fn region_code(va: VaBits, region: GuestRange) -> u64 {
    alias(0b11 << (va.bits() - 2), region)
}

fn ram_view(va: VaBits, ram: GuestRange) -> u64 {
    alias(Va::high_base(va).raw() + (0b11 << (va.bits() - 2)), ram)
}

fn table_window(va: VaBits, vcpu: usize) -> u64 {
    let granule = va.granule().bytes();
    let window_bytes = granule / size_of::<u64>() as u64 * granule;
    Va::high_base(va).raw() + (1 << (va.bits() - 3)) + vcpu as u64 * window_bytes
}

/// Builds the tables, under the boot table. Gives the address space and the RAM that is left.
///
/// # Panics
/// If RAM is too small for the tables, or the VA size for RAM and region.
pub(crate) fn build(
    boot: &BootInfo,
    devices: &Devices,
    features: &Features,
    plan: &Plan,
) -> (AddressSpace, GuestRange) {
    let Tables::V8(va) = boot.tables else { panic!("{} tables are not AArch64's", boot.tables) };
    // The last few KiB of an odd-sized RAM are not used: no page of the largest granule fits there.
    let ram = GuestRange::new(boot.ram.start(), boot.ram.len_bytes() & !(DEVICE_ALIGN - 1))
        .expect("a shorter range does not wrap");
    assert!(ram.contains(image::start()) && ram.contains(image::end()), "the image lies in RAM {ram}");
    let mut arena = Arena { granule_bytes: va.granule().bytes(), next: image::end(), end: ram.end() };
    let mapper = Mapper::new(va, &mut arena).expect("RAM has room for two tables");
    let mut space = Builder { mapper, arena: &mut arena };

    let region_sizes = if boot.flags & FLAG_REGION_BLOCKS != 0 { Sizes::Largest } else { Sizes::Pages };
    space.map(region_high(va, boot.region), boot.region, Attributes::DATA, region_sizes);
    space.map(region_low(va, boot.region), boot.region, Attributes::DATA, region_sizes);
    space.map(region_code(va, boot.region), boot.region, Attributes::TEXT, Sizes::Largest);
    space.map(ram_view(va, ram), ram, Attributes::CONSTANTS, Sizes::Largest);

    space.identity(range(ram.start(), image::start()), Attributes::CONSTANTS); // the devicetree
    space.identity(image::text(), Attributes::TEXT);
    space.identity(image::rodata(), Attributes::CONSTANTS);
    space.identity(image::data(), Attributes::DATA);
    for vcpu in 0..MAX_VCPUS {
        space.identity(image::stack(vcpu), Attributes::DATA);
        space.identity(image::exception_stack(vcpu), Attributes::DATA);
    }
    space.identity(range(image::end(), ram.end()), Attributes::DATA);
    for window in devices.windows() {
        let start = Gpa::new(window.start().raw() & !(DEVICE_ALIGN - 1));
        let end = window.end().checked_align_up(DEVICE_ALIGN).expect("a device's registers do not wrap");
        space.identity(range(start, end), Attributes::DEVICE);
    }
    for vcpu in 0..boot.vcpus {
        if let Some(layout) = plan.tablewalk_layout(vcpu) {
            space.hook(table_window(va, vcpu as usize), layout.table);
        }
    }

    let registers = TranslationRegisters {
        mair: pagetable::MAIR_EL1,
        tcr: tcr_el1(va, features.pa_size(), features.hardware_update),
        ttbr0: mapper.ttbr0().raw(),
        ttbr1: mapper.ttbr1().raw(),
        sctlr: SCTLR_MMU_ON,
    };
    (AddressSpace { va, registers, region: boot.region, ram }, range(arena.next, ram.end()))
}

fn range(start: Gpa, end: Gpa) -> GuestRange {
    end.checked_offset_from(start)
        .and_then(|len_bytes| GuestRange::new(start, len_bytes))
        .expect("parts of RAM lie in order")
}

/// The tables being built.
struct Builder<'a> {
    mapper: Mapper,
    arena: &'a mut Arena,
}

impl Builder<'_> {
    fn map(&mut self, va: u64, range: GuestRange, attributes: Attributes, sizes: Sizes) {
        self.mapper
            .map(self.arena, Va::new(va), range.start(), range.len_bytes(), attributes, sizes)
            .unwrap_or_else(|error| panic!("cannot map {range}: {error}"));
    }

    fn identity(&mut self, range: GuestRange, attributes: Attributes) {
        self.map(range.start().raw(), range, attributes, Sizes::Largest);
    }

    fn hook(&mut self, va: u64, table: Gpa) {
        self.mapper
            .hook_table(self.arena, Va::new(va), table)
            .unwrap_or_else(|error| panic!("cannot link the live table at {table}: {error}"));
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
