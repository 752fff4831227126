//! KVM on a host whose CPU cannot run arm64 guests: the same functions as the KVM backend's, each of which says why not.

use abi::Arch;

use super::{KvmLog, Unavailable, VmHandle};
use crate::machine::{BuildError, MachineConfig, Start};
use crate::memory::GuestMemory;

const NOT_ARM64: Unavailable = Unavailable::HostArch { host_arch: std::env::consts::ARCH };

pub(super) const fn probe() -> Result<(), Unavailable> {
    Err(NOT_ARM64)
}

pub(super) const fn probe_guest(_: Arch) -> Result<(), Unavailable> {
    Err(NOT_ARM64)
}

pub(super) const fn probe_log(_: KvmLog) -> Result<(), Unavailable> {
    Err(NOT_ARM64)
}

pub(super) const fn probe_eager_split(_: u64) -> Result<(), Unavailable> {
    Err(NOT_ARM64)
}

pub(super) const fn probe_fault_counts() -> Result<(), Unavailable> {
    Err(NOT_ARM64)
}

pub(super) const fn is_nested_in_emulation() -> bool {
    false
}

pub(super) fn open(_: &MachineConfig, _: &GuestMemory, _: Start) -> Result<VmHandle, BuildError> {
    Err(NOT_ARM64.into())
}
