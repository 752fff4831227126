//! A vCPU as it was made, for what nothing else takes back: [`Reset`].
//!
//! From a vCPU's first run on the interrupts of its timers are tied to the host's own. What userspace then writes to
//! GICR_ISACTIVER0 and GICR_ICACTIVER0 changes nothing for them (Linux, vgic-mmio.c, `vgic_hw_irq_change_active`): one that was
//! active stays so, and a guest that is not in its handler never ends it, and is never interrupted by that timer again.
//! KVM_ARM_VCPU_INIT, as for a reboot (kvm/api.rst 4.82), makes them inactive.
#![expect(unsafe_code, reason = "an ioctl on a descriptor of our own; duplicates it")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::VcpuFd;

/// `_IOW(KVMIO, 0xae, struct kvm_vcpu_init)`, of include/uapi/linux/kvm.h.
const KVM_ARM_VCPU_INIT: u64 = 0x4020_aeae;

/// Resets one vCPU, whoever runs it.
#[derive(Debug)]
pub(super) struct Reset {
    vcpu: OwnedFd,
    /// As the vCPU was made: the kernel refuses other features.
    init: kvm_vcpu_init,
}

impl Reset {
    /// For `vcpu`, which was made with `init`.
    ///
    /// # Errors
    /// Where the host has no descriptor left.
    pub(super) fn new(vcpu: &VcpuFd, init: kvm_vcpu_init) -> io::Result<Self> {
        // SAFETY: the descriptor is open as long as `vcpu` lives, which is longer than the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        Ok(Self { vcpu: fd.try_clone_to_owned()?, init })
    }

    /// Every register and the power of the vCPU are as it was made; so are its timers and their interrupts. It is not to be
    /// inside KVM_RUN.
    ///
    /// # Errors
    /// The kernel's words.
    pub(super) fn reset(&self) -> io::Result<()> {
        // SAFETY: the kernel reads a `kvm_vcpu_init`, which lives on.
        let result =
            unsafe { libc::ioctl(self.vcpu.as_raw_fd(), KVM_ARM_VCPU_INIT as libc::Ioctl, &raw const self.init) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
