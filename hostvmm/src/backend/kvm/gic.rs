//! The in-kernel GICv3 (kvm/devices/arm-vgic-v3.rst), at the addresses that the devicetree tells the guest.

use abi::map;
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::refused;
use crate::backend::BackendError;

/// Interrupts of the controller: 32 private ones and 32 SPIs, the fewest that KVM takes.
const INTERRUPTS: u32 = 64;

/// What a device attribute points to: integers of the size that the attribute has.
trait Value {}
impl Value for u32 {}
impl Value for u64 {}

/// What KVM is asked to create.
pub(super) fn request() -> kvm_create_device {
    kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 }
}

/// Creates and initialises the controller of a machine whose vCPUs have been created.
///
/// # Errors
/// [`BackendError::Refused`] with the attribute at fault.
pub(super) fn create(vm: &VmFd, vcpus: usize) -> Result<DeviceFd, BackendError> {
    let gic = vm.create_device(&mut request()).map_err(|error| refused(format!("KVM_CREATE_DEVICE: {error}")))?;
    let address = |kind: u32| (KVM_DEV_ARM_VGIC_GRP_ADDR, u64::from(kind));
    set(&gic, "the number of interrupts", (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0), &INTERRUPTS)?;
    set(&gic, "the distributor's address", address(KVM_VGIC_V3_ADDR_TYPE_DIST), &map::GICD_BASE.raw())?;
    // Bits 52 up: how many redistributors; bits 11 to 0: index of the region.
    let redistributors = (vcpus as u64) << 52 | map::GICR_BASE.raw();
    set(&gic, "the redistributors' address", address(KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION), &redistributors)?;
    let init = kvm_device_attr {
        flags: 0,
        group: KVM_DEV_ARM_VGIC_GRP_CTRL,
        attr: KVM_DEV_ARM_VGIC_CTRL_INIT.into(),
        addr: 0,
    };
    gic.set_device_attr(&init).map_err(|error| refused(format!("the GIC's initialisation: {error}")))?;
    Ok(gic)
}

fn set<T: Value>(gic: &DeviceFd, what: &str, (group, attr): (u32, u64), value: &T) -> Result<(), BackendError> {
    let attribute =
        kvm_device_attr { flags: 0, group, attr, addr: std::ptr::from_ref(value).expose_provenance() as u64 };
    gic.set_device_attr(&attribute).map_err(|error| refused(format!("{what} of the GIC: {error}")))
}
