//! The registers that a machine's first vCPU starts with, by KVM register id: the same on every accelerator.
//!
//! An ARMv7 guest is AArch32 at EL1; its R0 to R14 are the low halves of X0 to X14 (DDI 0487 D1.21), and KVM names them so.

use abi::Arch;

use crate::machine::Start;

/// `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE` and the offset in `struct kvm_regs` / 4.
const CORE: u64 = 0x6030_0000_0010_0000;
const PC: u64 = CORE + 0x40;
const PSTATE: u64 = CORE + 0x42;

/// SVC mode with asynchronous aborts, IRQ and FIQ masked, in A32: how Linux wants a kernel entered
/// (Documentation/arch/arm/booting.rst).
const SVC_MASKED: u64 = 0x1d3;
/// r1 of a kernel that finds its machine in the devicetree.
const NO_MACHINE_TYPE: u64 = 0xffff_ffff;

const fn general(number: u64) -> u64 {
    CORE + 2 * number
}

/// What vCPU 0 starts with, in the order in which it must be set: the mode decides what the other registers are.
pub(super) fn registers(start: Start) -> Vec<(u64, u64)> {
    let (entry, devicetree) = (start.entry.raw(), start.devicetree.raw());
    let mut registers = match start.arch {
        Arch::Aarch64 => vec![(PC, entry), (general(0), devicetree)],
        Arch::Armv7 => vec![
            (PSTATE, SVC_MASKED),
            (PC, entry),
            (general(0), 0),
            (general(1), NO_MACHINE_TYPE),
            (general(2), devicetree),
        ],
    };
    registers.extend(start.point.map(|point| (general(3), point.raw())));
    registers
}

#[cfg(test)]
mod tests {
    use abi::{Gpa, map};

    use super::*;

    #[test]
    fn each_architecture_starts_as_its_boot_protocol_says() {
        let start = |arch| Start { arch, entry: map::FIRMWARE_BASE, devicetree: map::RAM_BASE, point: None };
        let (x0, pc) = (0x6030_0000_0010_0000, 0x6030_0000_0010_0040);
        assert_eq!(registers(start(Arch::Aarch64)), [(pc, 0x4020_0000), (x0, 0x4000_0000)]);
        let pstate = pc + 2;
        assert_eq!(
            registers(start(Arch::Armv7)),
            [(pstate, 0x1d3), (pc, 0x4020_0000), (x0, 0), (x0 + 2, 0xffff_ffff), (x0 + 4, 0x4000_0000)]
        );
    }

    #[test]
    fn a_guest_that_is_to_ask_at_once_is_told_where() {
        for arch in [Arch::Aarch64, Arch::Armv7] {
            let point = Some(Gpa::new(0x0b00_000c));
            let start = Start { arch, entry: map::FIRMWARE_BASE, devicetree: map::RAM_BASE, point };
            assert_eq!(registers(start).last(), Some(&(0x6030_0000_0010_0006, 0x0b00_000c)));
        }
    }
}
