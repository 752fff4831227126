//! The in-kernel GICv3 (kvm/devices/arm-vgic-v3.rst), at the addresses that the devicetree tells the guest: [`Gic`].
#![expect(unsafe_code, reason = "device attributes are read to an address")]

use abi::map;
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::refused;
use crate::backend::gic_state::{self, GicKey, GicState, ICC_CTLR, INTERRUPTS, ISACTIVER, SGI_FRAME};
use crate::backend::{Accelerator, BackendError};

/// Offsets of the registers that clear ISENABLER and ISACTIVER.
const ICENABLER: u64 = 0x180;
const ICACTIVER: u64 = 0x380;
/// ICC_CTLR_EL1.CBPR, which hides ICC_BPR1_EL1.
const CBPR: u64 = 1;

/// What a device attribute points to: integers of the size that the attribute has.
trait Value {}
impl Value for u32 {}
impl Value for u64 {}

/// What KVM is asked to create.
pub(super) fn request() -> kvm_create_device {
    kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 }
}

/// The interrupt controller of a machine.
pub(super) struct Gic {
    device: DeviceFd,
    vcpus: usize,
}

impl Gic {
    /// Creates and initialises the controller of a machine whose vCPUs have been created.
    ///
    /// # Errors
    /// [`BackendError::Refused`] with the attribute at fault.
    pub(super) fn create(vm: &VmFd, vcpus: usize) -> Result<Self, BackendError> {
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
        Ok(Self { device: gic, vcpus })
    }

    /// All state, in the order in which it is restored.
    ///
    /// # Errors
    /// [`BackendError::Gic`]; EBUSY where a vCPU runs.
    pub(super) fn save(&self) -> Result<GicState, BackendError> {
        let hidden = self.uncover_binary_points()?;
        let registers = self.keys()?.map(|key| {
            let hidden = hidden.iter().find_map(|(hidden, ctlr)| (*hidden == key).then_some(*ctlr));
            Ok((key, hidden.map_or_else(|| self.get(key), Ok)?))
        });
        let state = registers.collect::<Result<_, _>>().map(|registers| GicState { registers });
        hidden.iter().try_for_each(|(key, ctlr)| self.set(*key, *ctlr))?;
        state
    }

    /// Replaces all state. A vCPU of which an interrupt stays active that is not to be is given to `reset`, which makes it
    /// what it was before its first run ([`super::reset`]).
    ///
    /// # Errors
    /// [`BackendError::Gic`]; EBUSY where a vCPU runs, EINVAL for what this host's GIC cannot have. Those of `reset`.
    pub(super) fn restore(
        &self,
        state: &GicState,
        reset: impl Fn(usize) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        state.check_shape(Accelerator::Kvm, self.keys()?)?;
        // ISENABLER and ISACTIVER only set: what is set already goes first.
        for start in [ICENABLER, ICACTIVER] {
            for vcpu in 0..self.vcpus as u64 {
                let attr = vcpu << 32 | SGI_FRAME | start;
                self.set(GicKey { group: gic_state::REDISTRIBUTOR, attr }, 0xffff_ffff)?;
            }
            for word in 1..u64::from(INTERRUPTS) / 32 {
                self.set(GicKey { group: gic_state::DISTRIBUTOR, attr: start + 4 * word }, 0xffff_ffff)?;
            }
        }
        for vcpu in 0..self.vcpus {
            let attr = (vcpu as u64) << 32 | SGI_FRAME | ISACTIVER;
            let active = GicKey { group: gic_state::REDISTRIBUTOR, attr };
            let wanted = state.registers.iter().find(|(key, _)| *key == active).map_or(0, |(_, value)| *value);
            if self.get(active)? & !wanted != 0 {
                reset(vcpu)?;
            }
        }
        for (key, value) in &state.registers {
            // ICC_BPR1_EL1 follows, and takes a value only without CBPR.
            self.set(*key, if is_ctlr(*key) { value & !CBPR } else { *value })?;
        }
        state.registers.iter().filter(|(key, _)| is_ctlr(*key)).try_for_each(|(key, ctlr)| self.set(*key, *ctlr))
    }

    fn keys(&self) -> Result<impl Iterator<Item = GicKey>, BackendError> {
        let ctlr = self.get(GicKey { group: gic_state::CPU_INTERFACE, attr: ICC_CTLR })?;
        let priority_bits = (ctlr >> 8 & 7) as u32 + 1;
        Ok(gic_state::keys(self.vcpus, priority_bits))
    }

    /// Clears CBPR wherever it is set, so that ICC_BPR1_EL1 shows itself; returns each ICC_CTLR_EL1 as it was.
    fn uncover_binary_points(&self) -> Result<Vec<(GicKey, u64)>, BackendError> {
        let mut hidden = Vec::new();
        for vcpu in 0..self.vcpus as u64 {
            let key = GicKey { group: gic_state::CPU_INTERFACE, attr: vcpu << 32 | ICC_CTLR };
            let ctlr = self.get(key)?;
            if ctlr & CBPR != 0 {
                self.set(key, ctlr & !CBPR)?;
                hidden.push((key, ctlr));
            }
        }
        Ok(hidden)
    }

    fn get(&self, key: GicKey) -> Result<u64, BackendError> {
        // Little-endian, as the host is: four bytes written are the low half.
        let mut value = 0_u64;
        let mut attribute = kvm_device_attr {
            flags: 0,
            group: key.group,
            attr: key.attr,
            addr: (&raw mut value).expose_provenance() as u64,
        };
        // SAFETY: the kernel writes 4 or 8 bytes to `value`, which has 8 and lives until the call is over.
        let result = unsafe { self.device.get_device_attr(&mut attribute) };
        result.map(|()| value).map_err(|error| failed(key, &error))
    }

    fn set(&self, key: GicKey, value: u64) -> Result<(), BackendError> {
        if key.bytes() == 4 && value >> 32 != 0 {
            let reason = format!("{value:#x} does not fit its 4 bytes");
            return Err(BackendError::Gic { accelerator: Accelerator::Kvm, key, reason });
        }
        let attribute = kvm_device_attr {
            flags: 0,
            group: key.group,
            attr: key.attr,
            addr: (&raw const value).expose_provenance() as u64,
        };
        self.device.set_device_attr(&attribute).map_err(|error| failed(key, &error))
    }
}

fn is_ctlr(key: GicKey) -> bool {
    key.group == gic_state::CPU_INTERFACE && key.attr & 0xffff == ICC_CTLR
}

fn failed(key: GicKey, error: &kvm_ioctls::Error) -> BackendError {
    BackendError::Gic { accelerator: Accelerator::Kvm, key, reason: error.to_string() }
}

fn set<T: Value>(gic: &DeviceFd, what: &str, (group, attr): (u32, u64), value: &T) -> Result<(), BackendError> {
    let attribute =
        kvm_device_attr { flags: 0, group, attr, addr: std::ptr::from_ref(value).expose_provenance() as u64 };
    gic.set_device_attr(&attribute).map_err(|error| refused(format!("{what} of the GIC: {error}")))
}
