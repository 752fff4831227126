//! What is shown of a vCPU that cannot go on: [`VcpuDump`].

use std::fmt;

use abi::{Arch, GuestRange};

use crate::memory::{GuestMemory, SlotId};

/// KVM register ids: `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE` and the offset in `struct kvm_regs` / 4.
const X0: u64 = 0x6030_0000_0010_0000;

/// What is shown besides x0 to x30.
const SPECIAL: [(&str, u64); 9] = [
    ("pc", X0 + 64),
    ("pstate", X0 + 66),
    ("sp_el0", X0 + 62),
    ("sp_el1", X0 + 68),
    ("elr_el1", X0 + 70),
    ("spsr_el1", X0 + 72),
    ("esr_el1", 0x6030_0000_0013_c290),
    ("far_el1", 0x6030_0000_0013_c300),
    ("sctlr_el1", 0x6030_0000_0013_c080),
];

/// The same of an AArch32 guest, besides r0 to r14: its CP15 registers are parts of AArch64's (DDI 0487 G1.22), DFAR and IFAR
/// the low and high half of FAR_EL1; lr and sp of SVC mode are X18 and X19.
const SPECIAL_32: [(&str, u64); 9] = [
    ("pc", X0 + 64),
    ("cpsr", X0 + 66),
    ("sp_svc", X0 + 2 * 19),
    ("lr_svc", X0 + 2 * 18),
    ("spsr_svc", X0 + 72),
    ("dfsr", 0x6030_0000_0013_c290),
    ("ifsr", 0x6030_0000_0013_e281),
    ("ifar_dfar", 0x6030_0000_0013_c300),
    ("sctlr", 0x6030_0000_0013_c080),
];

/// The machine's memslots, and as many of the vCPU's registers as could be read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VcpuDump {
    slots: Vec<(SlotId, GuestRange)>,
    registers: Vec<(String, u64)>,
}

impl VcpuDump {
    /// The slots of `memory`, and the registers that `read` gives for their KVM ids, by the names of `arch`.
    pub(super) fn new(arch: Arch, memory: &GuestMemory, mut read: impl FnMut(u64) -> Option<u64>) -> Self {
        let (letter, count, special) = match arch {
            Arch::Aarch64 => ('x', 31, &SPECIAL),
            Arch::Armv7 => ('r', 15, &SPECIAL_32),
        };
        let special = special.iter().map(|(name, id)| ((*name).to_owned(), *id));
        let general = (0..count).map(|number| (format!("{letter}{number}"), X0 + 2 * number));
        Self {
            slots: memory.slots().iter().map(|slot| (slot.id(), slot.range())).collect(),
            registers: special.chain(general).filter_map(|(name, id)| Some((name, read(id)?))).collect(),
        }
    }
}

impl fmt::Display for VcpuDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (slot, range)) in self.slots.iter().enumerate() {
            write!(f, "{}{slot} {range}", if number == 0 { "; memslots " } else { ", " })?;
        }
        for (number, (name, value)) in self.registers.iter().enumerate() {
            write!(f, "{}{name}={value:#x}", if number == 0 { "; " } else { " " })?;
        }
        Ok(())
    }
}
