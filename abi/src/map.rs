//! The guest's physical address space, laid out like the common `virt` machine.
//!
//! Every device window is a multiple of 64 KiB so that a guest with 64K pages can map each on its own. The region of the
//! original tests lies below RAM; one that does not fit there goes to the first 1 GiB boundary above RAM.

use crate::addr::{Gpa, GuestRange};

/// Most vCPUs a machine has.
pub const MAX_VCPUS: usize = 8;

/// GICv3 distributor, 64 KiB.
pub const GICD_BASE: Gpa = Gpa::new(0x0800_0000);
/// Bytes of the distributor's window.
pub const GICD_SIZE: u64 = 0x1_0000;
/// GICv3 redistributors: two 64 KiB frames (RD, SGI) for each vCPU, one after the other.
pub const GICR_BASE: Gpa = Gpa::new(0x080A_0000);
/// Bytes of one vCPU's redistributor.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// PL011 UART. 4 KiB of registers in a 64 KiB window.
pub const PL011_BASE: Gpa = Gpa::new(0x0900_0000);
/// Bytes of the PL011's registers.
pub const PL011_SIZE: u64 = 0x1000;
/// The PL011's interrupt: SPI 1, INTID 33, as on `virt`.
pub const PL011_INTID: u32 = 33;
/// Hypercall doorbell page. The guest takes it from the devicetree, not from here.
pub const DOORBELL_BASE: Gpa = Gpa::new(0x0B00_0000);
/// Bytes of the doorbell's registers.
pub const DOORBELL_SIZE: u64 = 0x1000;
/// Every device window is rounded up to this.
pub const DEVICE_ALIGN: u64 = 0x1_0000;

/// Start of the shared region unless the command line says otherwise.
pub const REGION_BASE: Gpa = Gpa::new(0x2000_0000);
/// Size of the shared region unless the command line says otherwise: 8 MiB, as in the original test.
pub const REGION_SIZE: u64 = 8 << 20;
/// A region that does not fit below RAM goes to the first multiple of this above RAM.
pub const HIGH_REGION_ALIGN: u64 = 1 << 30;

/// Start of RAM. The devicetree blob lies here, at most [`DTB_MAX_BYTES`] long.
pub const RAM_BASE: Gpa = Gpa::new(0x4000_0000);
/// Room for the devicetree blob at the start of RAM.
pub const DTB_MAX_BYTES: u64 = 0x1_0000;
/// Where the firmware is linked to run: 2 MiB into RAM.
pub const FIRMWARE_BASE: Gpa = Gpa::new(0x4020_0000);
/// Least RAM a machine has.
pub const RAM_MIN: u64 = 16 << 20;

/// INTID of the EL1 virtual timer's PPI.
pub const VTIMER_INTID: u32 = 27;
/// INTID of the EL1 physical timer's PPI.
pub const PTIMER_INTID: u32 = 30;
/// INTID of the PMU's PPI.
pub const PMU_INTID: u32 = 23;

/// The redistributor window of a machine with `vcpus` vCPUs.
///
/// # Panics
/// If `vcpus` is above [`MAX_VCPUS`].
pub const fn gicr_range(vcpus: usize) -> GuestRange {
    assert!(vcpus <= MAX_VCPUS, "at most MAX_VCPUS vCPUs");
    match GuestRange::new(GICR_BASE, vcpus as u64 * GICR_STRIDE) {
        Some(range) => range,
        None => panic!("the redistributors lie far below 2^64"),
    }
}

/// The device windows of a machine with [`MAX_VCPUS`] vCPUs, each rounded up to [`DEVICE_ALIGN`], with its name.
pub fn device_windows() -> [(&'static str, GuestRange); 4] {
    let window = |base, size: u64| {
        GuestRange::new(base, size.next_multiple_of(DEVICE_ALIGN)).expect("device windows lie far below 2^64")
    };
    [
        ("GIC distributor", window(GICD_BASE, GICD_SIZE)),
        ("GIC redistributors", gicr_range(MAX_VCPUS)),
        ("PL011", window(PL011_BASE, PL011_SIZE)),
        ("hypercall doorbell", window(DOORBELL_BASE, DOORBELL_SIZE)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_windows_do_not_overlap() {
        let windows = device_windows();
        for (i, (name_a, a)) in windows.iter().enumerate() {
            for (name_b, b) in &windows[i + 1..] {
                assert!(!a.overlaps(*b), "{name_a} overlaps {name_b}");
            }
            assert!(a.end() <= REGION_BASE, "{name_a} reaches into the region");
        }
    }
}
