//! What of the CPU the guest is shown: [`CpuModel`], and what [`CpuModel::Baseline`] holds a vCPU against ([`other_side`]).

use abi::Arch;
use emulator::config::ExecutionState;

use crate::backend::Accelerator;
use crate::cpustate::Snapshot;

/// `--cpu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CpuModel {
    /// All that the accelerator has.
    #[default]
    Host,
    /// What KVM and the emulator both have, as far as the accelerator lets features be hidden, so that the guest can move either way.
    Baseline,
}

/// What KVM lists on a Cortex-A57, an Armv8.0 processor: arm64 hosts have no less.
const KVM_AARCH64: &str = include_str!("../cpustate/fixtures/kvm-6.12-aarch64-a57.txt");
/// What it lists of a vCPU that executes AArch32.
const KVM_ARMV7: &str = include_str!("../cpustate/fixtures/kvm-6.12-armv7.txt");

/// The registers of a guest of `arch` on the accelerator that is not `accelerator`: of the emulator its own, of KVM those of the least host.
pub fn other_side(accelerator: Accelerator, arch: Arch) -> Vec<(u64, u128)> {
    match (accelerator, arch) {
        (Accelerator::Kvm, _) => {
            let state = match arch {
                Arch::Aarch64 => ExecutionState::Aarch64,
                Arch::Armv7 => ExecutionState::Aarch32,
            };
            emulator::regs::constants(state).into_iter().map(|(id, value)| (id, value.into())).collect()
        }
        (Accelerator::Emulator, Arch::Aarch64) => listed(KVM_AARCH64),
        (Accelerator::Emulator, Arch::Armv7) => listed(KVM_ARMV7),
    }
}

fn listed(text: &str) -> Vec<(u64, u128)> {
    Snapshot::parse(text).expect("a list that is checked in is one, as a test says").registers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpustate::features;

    #[test]
    fn both_sides_have_lists_and_neither_is_within_the_other() {
        for arch in [Arch::Aarch64, Arch::Armv7] {
            let [kvm, emulator] =
                [Accelerator::Emulator, Accelerator::Kvm].map(|accelerator| other_side(accelerator, arch));
            assert!(!features::compare(&kvm, &emulator, arch).is_empty(), "{arch}: KVM's has more");
            let lowest = features::baseline(&kvm, &emulator, arch);
            let lowest: Vec<_> = lowest.registers.iter().map(|(id, value)| (*id, u128::from(*value))).collect();
            assert!(features::compare(&lowest, &emulator, arch).is_empty(), "{arch}");
            assert!(features::compare(&lowest, &kvm, arch).is_empty(), "{arch}");
        }
    }
}
