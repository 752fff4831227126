//! The guest's address space: what is mapped, and with which permissions.
//!
//! RAM and devices are mapped to themselves. The region is never at its physical address: it has two writable aliases,
//! used in turn, where there is room for two, and a read-only executable one where the plan may need it. Image parts have permissions of their own;
//! guards below stacks cannot be written. All is mapped before any of it is used, while the boot table maps everything
//! to itself.
//!
//! Neighbours: [`crate::guest::arch::mmu`] builds the tables and says where the aliases lie,
//! [`crate::guest::image`] knows the parts.

use abi::boot::{BootInfo, FLAG_REGION_BLOCKS};
use abi::map::{DEVICE_ALIGN, MAX_VCPUS};
use abi::{Gpa, GuestRange};
use pagetable::{Attributes, Sizes};
use workload::Plan;

use crate::guest::arch::features::Features;
use crate::guest::arch::mmu::{Builder, Layout, TranslationRegisters};
use crate::guest::devicetree::Devices;
use crate::guest::image;

/// Where things are mapped.
pub(crate) struct AddressSpace {
    layout: Layout,
    registers: TranslationRegisters,
    region: GuestRange,
    ram: GuestRange,
}

impl AddressSpace {
    /// Values for a vCPU's translation registers.
    pub(crate) fn registers(&self) -> TranslationRegisters {
        self.registers
    }

    /// Where the aliases lie.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A read-only address of `range`, which lies in the region or in RAM; else `None`.
    pub(crate) fn view(&self, range: GuestRange) -> Option<u64> {
        let ram_view = self.layout.ram_view().unwrap_or(self.ram.start().raw());
        [(self.region, self.layout.region_second()), (self.ram, ram_view)]
            .into_iter()
            .find(|(mapped, _)| mapped.contains_range(range))
            .and_then(|(mapped, va)| Some(va + range.start().checked_offset_from(mapped.start())?))
    }
}

/// Builds the tables, under the boot table. Gives the address space and the RAM that is left.
///
/// # Panics
/// If RAM is too small for the tables, or the virtual address space for RAM and region.
pub(crate) fn build(
    boot: &BootInfo,
    devices: &Devices,
    features: &Features,
    plan: &Plan,
) -> (AddressSpace, GuestRange) {
    // The last few KiB of an odd-sized RAM are not used: no page of the largest granule fits there.
    let ram = GuestRange::new(boot.ram.start(), boot.ram.len_bytes() & !(DEVICE_ALIGN - 1))
        .expect("a shorter range does not wrap");
    assert!(ram.contains(image::start()) && ram.contains(image::end()), "the image lies in RAM {ram}");
    let layout = Layout::new(boot, ram, plan);
    let mut space = Space { builder: Builder::new(boot, range(image::end(), ram.end())) };

    let region_sizes = if boot.flags & FLAG_REGION_BLOCKS != 0 { Sizes::Largest } else { Sizes::Pages };
    space.map(layout.region_first(), boot.region, Attributes::DATA, region_sizes);
    if layout.region_second() != layout.region_first() {
        space.map(layout.region_second(), boot.region, Attributes::DATA, region_sizes);
    }
    if let Some(code) = layout.region_code() {
        space.map(code, boot.region, Attributes::TEXT, Sizes::Largest);
    }
    if let Some(view) = layout.ram_view() {
        space.map(view, ram, Attributes::CONSTANTS, Sizes::Largest);
    }

    space.identity(range(ram.start(), image::start()), Attributes::CONSTANTS); // the devicetree
    space.identity(image::text(), Attributes::TEXT);
    space.identity(image::rodata(), Attributes::CONSTANTS);
    space.identity(image::data(), Attributes::DATA);
    for vcpu in 0..MAX_VCPUS {
        space.identity(image::stack(vcpu), Attributes::DATA);
        space.identity(image::exception_stack(vcpu), Attributes::DATA);
        // A digest of RAM reads the guards too: where there is no other view of them, they are readable.
        if layout.ram_view().is_none() {
            image::guards(vcpu).into_iter().for_each(|guard| space.identity(guard, Attributes::CONSTANTS));
        }
    }
    space.identity(range(image::end(), ram.end()), Attributes::DATA);
    for window in devices.windows() {
        let start = Gpa::new(window.start().raw() & !(DEVICE_ALIGN - 1));
        let end = window.end().checked_align_up(DEVICE_ALIGN).expect("a device's registers do not wrap");
        space.identity(range(start, end), Attributes::DEVICE);
    }

    let (registers, free) = space.builder.finish(&layout, boot, features, plan);
    (AddressSpace { layout, registers, region: boot.region, ram }, range(free, ram.end()))
}

fn range(start: Gpa, end: Gpa) -> GuestRange {
    end.checked_offset_from(start)
        .and_then(|len_bytes| GuestRange::new(start, len_bytes))
        .expect("parts of RAM lie in order")
}

/// The tables being built, for callers that cannot go on without what they map.
struct Space {
    builder: Builder,
}

impl Space {
    fn map(&mut self, va: u64, range: GuestRange, attributes: Attributes, sizes: Sizes) {
        self.builder.map(va, range, attributes, sizes).unwrap_or_else(|error| panic!("cannot map {range}: {error}"));
    }

    fn identity(&mut self, range: GuestRange, attributes: Attributes) {
        self.map(range.start().raw(), range, attributes, Sizes::Largest);
    }
}
