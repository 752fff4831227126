//! The interrupt controller: virtual timer on, everything else off. The driver is crate `arm-gic`.
//!
//! The primary sets up distributor and all redistributors before any secondary runs, so no lock is needed; each vCPU
//! then opens its own CPU interface, which is system registers.
#![expect(unsafe_code, reason = "the driver is given the devices' addresses")]

use core::ptr::NonNull;

use abi::map::VTIMER_INTID;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicV3};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};

use crate::guest::{Machine, timer};

/// Lowest priority there is: the CPU interface lets everything above it through.
const PRIORITY_MASK_OPEN: u8 = 0xff;

/// Sets up the controller for all vCPUs. On the primary, once.
///
/// # Panics
/// If the controller's layout is not that of a GICv3.
pub(crate) fn init(machine: &Machine) {
    let (gicd, gicr) = (machine.devices.gicd.start().raw(), machine.devices.gicr.start().raw());
    let gicd = NonNull::new(gicd as *mut Gicd).expect("no device lies at address 0");
    let gicr = NonNull::new(gicr as *mut GicrSgi).expect("no device lies at address 0");
    // SAFETY: the devicetree says that a distributor is there; it is mapped as device memory, and this is its only
    // user.
    let gicd = unsafe { UniqueMmioPointer::new(gicd) };
    let vcpus = machine.boot.vcpus as usize;
    // SAFETY: as above, for the redistributors, of which there is one for each vCPU.
    let mut gic = unsafe { GicV3::new(gicd, gicr, vcpus) }.expect("the redistributors are laid out as a GICv3's");
    gic.setup(0);
    for vcpu in 0..vcpus {
        // It may be awake already, which is as good.
        let _already_awake = gic.redistributor_mark_core_awake(vcpu);
        gic.enable_interrupt(timer_intid(), Some(vcpu), true).expect("the virtual timer's interrupt is a PPI");
    }
}

/// Opens this vCPU's CPU interface.
pub(crate) fn init_vcpu() {
    GicCpuInterface::enable_system_register_el1();
    GicCpuInterface::set_priority_mask(PRIORITY_MASK_OPEN);
    GicCpuInterface::enable_group1(true);
}

/// Handles the interrupt that is pending.
///
/// # Panics
/// If it is not the virtual timer's: nothing else was enabled.
pub(crate) fn handle_irq() {
    // None: it went away between the exception and here, which is no error.
    let Some(intid) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1) else { return };
    assert!(intid == timer_intid(), "interrupt {intid:?} was never enabled");
    timer::handle_irq();
    GicCpuInterface::end_interrupt(intid, InterruptGroup::Group1);
}

fn timer_intid() -> IntId {
    IntId::ppi(VTIMER_INTID - 16)
}
