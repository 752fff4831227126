//! A vCPU that lists other registers than its accelerator does: [`Skewed`], by a [`Skew`]. The guest sees no difference, but for the one
//! that is planted for guests to find.
//!
//! Another kernel's or accelerator's list differs in ways that one host does not have: this has them on any host, so that every rule of
//! [`crate::cpustate`] is followed by real vCPUs in real migrations (`verify cross --skew`). Neighbours: [`crate::vcpus`] wraps the vCPUs
//! of a machine that is to be skewed.

use std::fmt;
use std::str::FromStr;

use super::{BackendError, Exit, Vcpu};

/// An id that no table knows: op0 3, op1 7, CRn 15, CRm 15, op2 7.
const UNKNOWN: u64 = 0x6030_0000_0013_ffff;
const TPIDRRO_EL0: u64 = 0x6030_0000_0013_de83;
const VBAR_EL1: u64 = 0x6030_0000_0013_c600;
const TTBR0_EL1: u64 = 0x6030_0000_0013_c100;
/// TTBR0 of CP15, 64 bits.
const CP15_TTBR0: u64 = 0x4030_0000_000f_0100;
const MIDR_EL1: u64 = 0x6030_0000_0013_c000;
const MPIDR_EL1: u64 = 0x6030_0000_0013_c005;
const SCTLR_EL1: u64 = 0x6030_0000_0013_c080;
const CSSELR_EL1: u64 = 0x6030_0000_0013_d000;
/// ID_AA64ISAR0_EL1, whose bits 43:40 are FEAT_SM4, which neither accelerator's guests use.
const ID_AA64ISAR0_EL1: u64 = 0x6030_0000_0013_c030;
/// ID_ISAR5_EL1, whose bits 7:4 are FEAT_AES of AArch32.
const ID_ISAR5_EL1: u64 = 0x6030_0000_0013_c015;

/// The bits in which a register is not what its list shows.
const UNFAITHFUL: u128 = 0x5eed;

/// In what the list differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Skew {
    /// A register more, which nobody knows and which is not zero.
    Added,
    /// A register more, which nobody knows and which is zero.
    AddedZero,
    /// A register less, TPIDRRO_EL0, which no guest here uses.
    Missing,
    /// A register less, VBAR_EL1, which every guest uses.
    MissingInUse,
    /// A register under an id that nobody knows: TPIDRRO_EL0.
    Renamed,
    /// Another constant that may differ: MIDR_EL1.
    ConstantDifferent,
    /// Another constant that may not: MPIDR_EL1.
    AffinityDifferent,
    /// A feature more.
    FeatureMore,
    /// A register by its view alone: TTBR0_EL1 by CP15's TTBR0.
    ViewAlone,
    /// A bit that is not held: SCTLR_EL1 with bit 63 set, on a list that is `Missing`'s, since one that is like the other side's is not
    /// translated.
    ReservedBit,
    /// A bit that a mask leaves to each side: CSSELR_EL1 with bit 31 set, on `Missing`'s list.
    MaskedBit,
    /// A register that is not what its list shows, and was set to: TPIDRRO_EL0. Only a guest that reads it can tell.
    Unfaithful,
}

impl Skew {
    /// All that no guest sees, with the names that the command line has.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Added, "added"),
        (Self::AddedZero, "added-zero"),
        (Self::Missing, "missing"),
        (Self::MissingInUse, "missing-in-use"),
        (Self::Renamed, "renamed"),
        (Self::ConstantDifferent, "constant-different"),
        (Self::AffinityDifferent, "affinity-different"),
        (Self::FeatureMore, "feature-more"),
        (Self::ViewAlone, "view-alone"),
        (Self::ReservedBit, "reserved-bit"),
        (Self::MaskedBit, "masked-bit"),
    ];

    /// A fault for guests to find.
    const PLANTED: (Self, &'static str) = (Self::Unfaithful, "unfaithful");

    /// Its name.
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.into_iter().chain([Self::PLANTED]);
        all.find(|(skew, _)| *skew == self).map_or("", |(_, name)| name)
    }

    const fn hides(self, id: u64) -> bool {
        match self {
            Self::Missing | Self::Renamed | Self::ReservedBit | Self::MaskedBit => id == TPIDRRO_EL0,
            Self::MissingInUse => id == VBAR_EL1,
            Self::ViewAlone => id == TTBR0_EL1,
            _ => false,
        }
    }

    /// What is listed in addition.
    const fn adds(self) -> Option<u64> {
        match self {
            Self::Added | Self::AddedZero | Self::Renamed => Some(UNKNOWN),
            Self::ViewAlone => Some(CP15_TTBR0),
            _ => None,
        }
    }

    /// What is read of `id` where the vCPU has `value`.
    const fn shown(self, id: u64, value: u128) -> u128 {
        match (self, id) {
            (Self::ConstantDifferent, MIDR_EL1) => value ^ 0xf,
            (Self::AffinityDifferent, MPIDR_EL1) => value ^ 1 << 32,
            (Self::FeatureMore, ID_AA64ISAR0_EL1) => value | 1 << 40,
            (Self::FeatureMore, ID_ISAR5_EL1) => value | 1 << 4,
            (Self::ReservedBit, SCTLR_EL1) => value | 1 << 63,
            (Self::MaskedBit, CSSELR_EL1) => value | 1 << 31,
            (Self::Unfaithful, TPIDRRO_EL0) => value ^ UNFAITHFUL,
            _ => value,
        }
    }

    /// What the vCPU gets where `id` is set to `value`.
    const fn set(self, id: u64, value: u128) -> u128 {
        match (self, id) {
            (Self::Unfaithful, TPIDRRO_EL0) => value ^ UNFAITHFUL,
            _ => value,
        }
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Skew {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(|(_, name)| name).join(", ");
        let found = Self::ALL.into_iter().chain([Self::PLANTED]).find(|(_, name)| *name == text);
        found.map(|(skew, _)| skew).ok_or_else(|| format!("there is no skew {text:?}; there are {names}"))
    }
}

/// A vCPU with another list of registers.
pub struct Skewed {
    vcpu: Box<dyn Vcpu>,
    skew: Skew,
    /// What the register that nobody knows holds.
    added: u128,
}

impl Skewed {
    /// `vcpu`, skewed.
    pub fn new(vcpu: Box<dyn Vcpu>, skew: Skew) -> Self {
        let added = if skew == Skew::Added { 0x5eed } else { 0 };
        Self { vcpu, skew, added }
    }

    /// The vCPU's own register that `id` stands for; `None` for what only this list has.
    fn own(&self, id: u64) -> Option<u64> {
        match (self.skew, id) {
            (Skew::Added | Skew::AddedZero, UNKNOWN) => None,
            (Skew::Renamed, UNKNOWN) => Some(TPIDRRO_EL0),
            (Skew::ViewAlone, CP15_TTBR0) => Some(TTBR0_EL1),
            // An id that the vCPU refuses.
            (skew, id) if skew.hides(id) => Some(UNKNOWN),
            (_, id) => Some(id),
        }
    }
}

impl Vcpu for Skewed {
    fn index(&self) -> usize {
        self.vcpu.index()
    }

    fn run(&mut self, budget: Option<u64>) -> Result<Exit, BackendError> {
        self.vcpu.run(budget)
    }

    fn complete_mmio_read(&mut self, data: u64) {
        self.vcpu.complete_mmio_read(data);
    }

    fn complete_hvc(&mut self, results: [u64; 4]) {
        self.vcpu.complete_hvc(results);
    }

    fn reg_list(&mut self) -> Result<Vec<u64>, BackendError> {
        let list = self.vcpu.reg_list()?;
        Ok(list.into_iter().filter(|id| !self.skew.hides(*id)).chain(self.skew.adds()).collect())
    }

    fn get_reg(&mut self, register: u64) -> Result<u128, BackendError> {
        match self.own(register) {
            Some(own) => Ok(self.skew.shown(register, self.vcpu.get_reg(own)?)),
            None => Ok(self.added),
        }
    }

    fn set_reg(&mut self, register: u64, value: u128) -> Result<(), BackendError> {
        match self.own(register) {
            Some(own) => self.vcpu.set_reg(own, self.skew.set(register, value)),
            None => {
                self.added = value;
                Ok(())
            }
        }
    }

    fn is_on(&mut self) -> Result<bool, BackendError> {
        self.vcpu.is_on()
    }

    fn set_on(&mut self, on: bool) -> Result<(), BackendError> {
        self.vcpu.set_on(on)
    }

    fn discard(&mut self) -> Result<(), BackendError> {
        self.vcpu.discard()
    }

    fn quiesce(&mut self) -> Result<bool, BackendError> {
        self.vcpu.quiesce()
    }

    fn set_waiting(&mut self, waiting: bool) {
        self.vcpu.set_waiting(waiting);
    }

    fn instructions(&self) -> Option<u64> {
        self.vcpu.instructions()
    }
}

#[cfg(test)]
mod tests {
    use abi::{Arch, GuestRange, map};

    use super::*;
    use crate::backend::{self, Accelerator};
    use crate::machine::{MachineConfig, Start};
    use crate::memory::{GuestMemory, host_page_bytes};

    fn skewed(skew: Skew) -> Skewed {
        let page = host_page_bytes();
        let ram = GuestRange::new(map::RAM_BASE, 16 * page).unwrap();
        let memory = GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, page).unwrap(), None).unwrap();
        let config = MachineConfig { accelerator: Accelerator::Emulator, vcpus: 1, ..MachineConfig::default() };
        let start = Start { arch: Arch::Aarch64, entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None };
        let vm = backend::open(&config, &config.layout().unwrap(), &memory, start).unwrap();
        Skewed::new(vm.take_vcpu(0).unwrap(), skew)
    }

    #[test]
    fn every_skew_has_a_name_and_a_list_whose_registers_can_be_read() {
        for (skew, name) in Skew::ALL {
            assert_eq!(name.parse(), Ok(skew));
            let mut vcpu = skewed(skew);
            let list = vcpu.reg_list().unwrap();
            list.iter().for_each(|id| assert!(vcpu.get_reg(*id).is_ok(), "{name} {id:#x}"));
        }
        assert!("sideways".parse::<Skew>().is_err());
    }

    #[test]
    fn an_unfaithful_register_shows_what_it_was_set_to_and_is_something_else() {
        let mut vcpu = skewed("unfaithful".parse().unwrap());
        vcpu.set_reg(TPIDRRO_EL0, 7).unwrap();
        assert_eq!(vcpu.get_reg(TPIDRRO_EL0).unwrap(), 7);
        assert_eq!(vcpu.vcpu.get_reg(TPIDRRO_EL0).unwrap(), 7 ^ UNFAITHFUL);
        assert_eq!(Skew::Unfaithful.to_string(), "unfaithful");
    }

    #[test]
    fn a_hidden_register_is_none_and_a_view_is_its_generator() {
        let mut vcpu = skewed(Skew::ViewAlone);
        assert!(vcpu.get_reg(TTBR0_EL1).is_err() && vcpu.set_reg(TTBR0_EL1, 0).is_err());
        vcpu.set_reg(CP15_TTBR0, 0x4123_4000).unwrap();
        assert_eq!(vcpu.vcpu.get_reg(TTBR0_EL1).unwrap(), 0x4123_4000);
        let list = vcpu.reg_list().unwrap();
        assert!(list.contains(&CP15_TTBR0) && !list.contains(&TTBR0_EL1));
    }
}
