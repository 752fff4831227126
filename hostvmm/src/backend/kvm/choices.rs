//! Which bits of identification registers the kernel lets software choose before a vCPU first runs ([`writable`]; kvm/api.rst 4.139,
//! KVM_ARM_GET_REG_WRITABLE_MASKS, since Linux 6.7).
#![expect(unsafe_code, reason = "an ioctl that kvm-ioctls has not")]

use std::os::fd::AsRawFd as _;

use kvm_bindings::{KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES, reg_mask_range};
use kvm_ioctls::VmFd;

/// `_IOR(KVMIO, 0xb6, struct reg_mask_range)`, of include/uapi/linux/kvm.h.
const KVM_ARM_GET_REG_WRITABLE_MASKS: u64 = 0x8040_aeb6;
/// KVM_ARM_FEATURE_ID_RANGE: op0 3, op1 0, 1 or 3, CRn 0, CRm 0 to 7, op2 0 to 7.
const FEATURE_ID_RANGE: u32 = 0;
const RANGE_REGISTERS: usize = 3 * 8 * 8;
/// KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG with op0 3.
const SYSREG_3: u64 = 0x6030_0000_0013_c000;

/// Id and bits of every register with bits that can be chosen; empty where the kernel lets none be chosen.
pub(super) fn writable(vm: &VmFd) -> Vec<(u64, u64)> {
    let ranges = vm.check_extension_raw(KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES.into());
    if ranges <= 0 || ranges & (1 << FEATURE_ID_RANGE) == 0 {
        return Vec::new();
    }
    let mut masks = [0_u64; RANGE_REGISTERS];
    let addr = (&raw mut masks).expose_provenance() as u64;
    let range = reg_mask_range { addr, range: FEATURE_ID_RANGE, reserved: [0; 13] };
    // SAFETY: the kernel reads `range` and writes as many masks as `masks` has, whose address `range` holds; both live on.
    let result =
        unsafe { libc::ioctl(vm.as_raw_fd(), KVM_ARM_GET_REG_WRITABLE_MASKS as libc::Ioctl, &raw const range) };
    if result < 0 {
        return Vec::new();
    }
    let register = |(index, bits): (usize, u64)| {
        let (op1, crm, op2) = ([0, 1, 3][index >> 6], index as u64 >> 3 & 7, index as u64 & 7);
        (SYSREG_3 | op1 << 11 | crm << 3 | op2, bits)
    };
    masks.into_iter().enumerate().filter(|(_, bits)| *bits != 0).map(register).collect()
}
