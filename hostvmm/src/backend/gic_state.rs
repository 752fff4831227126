//! The state of a machine's GICv3, by the keys of KVM's device attributes: [`GicState`], and which keys there are, in
//! which order: [`keys`].
//!
//! A key is a group and an attribute as KVM_GET_DEVICE_ATTR takes them (kvm/devices/arm-vgic-v3.rst). The order is that in
//! which a state is restored:
//!
//! 1. GICD_IIDR, whose revision decides how the kernel reads the rest; GICD_CTLR, since what becomes pending while the
//!    distributor is off stays unnoticed in the kernel, even when it is turned on;
//! 2. each vCPU's private interrupts and then the shared ones: first what is configured, then the level of the lines,
//!    then what is pending and what is active. Pending is the latch alone: with the line's level apart, each can be had back;
//! 3. each vCPU's CPU interface: ICC_CTLR_EL1 before what its width of priorities and CBPR decide.
//!
//! Registers that have no state are left out: identification, GICR_CTLR and GICR_WAKER without LPIs, STATUSR.
//! 64-bit registers are two words. LPIs do not exist here.

use super::{Accelerator, BackendError};

/// KVM_DEV_ARM_VGIC_GRP_DIST_REGS: attribute = offset in the distributor; 32 bits.
pub(super) const DISTRIBUTOR: u32 = 1;
/// KVM_DEV_ARM_VGIC_GRP_REDIST_REGS: attribute = vCPU's affinity << 32 | offset in its redistributor; 32 bits.
pub(super) const REDISTRIBUTOR: u32 = 5;
/// KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS: attribute = vCPU's affinity << 32 | encoding of the register; 64 bits.
pub(super) const CPU_INTERFACE: u32 = 6;
/// KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO: attribute = vCPU's affinity << 32 | VGIC_LEVEL_INFO_LINE_LEVEL | first INTID; 32 bits.
pub(super) const LINE_LEVEL: u32 = 7;

/// Interrupts that a machine has: 32 of each vCPU's, the others shared.
pub(super) const INTERRUPTS: u32 = 128;

/// ICC_CTLR_EL1; bits 10:8 are the number of priority bits less one.
pub(super) const ICC_CTLR: u64 = sysreg(12, 12, 4);
const ICC_PMR: u64 = sysreg(4, 6, 0);
const ICC_BPR0: u64 = sysreg(12, 8, 3);
const ICC_AP0R0: u64 = sysreg(12, 8, 4);
const ICC_AP1R0: u64 = sysreg(12, 9, 0);
const ICC_BPR1: u64 = sysreg(12, 12, 3);
const ICC_SRE: u64 = sysreg(12, 12, 5);
const ICC_IGRPEN0: u64 = sysreg(12, 12, 6);
const ICC_IGRPEN1: u64 = sysreg(12, 12, 7);

/// Op0 3, Op1 0: bits 15:14, 13:11, 10:7, 6:3, 2:0.
const fn sysreg(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

const GICD_CTLR: u64 = 0;
const GICD_IIDR: u64 = 8;
const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ISPENDR: u64 = 0x200;
pub(super) const ISACTIVER: u64 = 0x300;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const GICD_IROUTER: u64 = 0x6000;
/// The redistributor's frame of private interrupts.
pub(super) const SGI_FRAME: u64 = 0x1_0000;

/// One register of the GIC's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct GicKey {
    /// Group of device attributes.
    pub group: u32,
    /// Attribute in the group.
    pub attr: u64,
}

impl GicKey {
    /// Bytes of its value.
    pub fn bytes(self) -> usize {
        if self.group == CPU_INTERFACE { 8 } else { 4 }
    }
}

/// All state of a machine's GIC, in the order in which it is restored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GicState {
    /// Keys and values.
    pub registers: Vec<(GicKey, u64)>,
}

impl GicState {
    /// Refuses a state that has not exactly the keys `expected`, in their order: another number of vCPUs or interrupts,
    /// or another width of priorities.
    ///
    /// # Errors
    /// [`BackendError::Gic`] with the first key that differs.
    pub(super) fn check_shape(
        &self,
        accelerator: Accelerator,
        expected: impl IntoIterator<Item = GicKey>,
    ) -> Result<(), BackendError> {
        let differs =
            |key: GicKey, reason: &str| Err(BackendError::Gic { accelerator, key, reason: reason.to_owned() });
        let mut found = self.registers.iter().map(|(key, _)| *key);
        for key in expected {
            match found.next() {
                Some(found) if found == key => {}
                Some(found) => return differs(found, "the state has this register where the machine has another one"),
                None => return differs(key, "the state lacks this register of the machine's"),
            }
        }
        found.next().map_or(Ok(()), |key| differs(key, "the machine lacks this register of the state's"))
    }
}

/// What a vCPU's private interrupts are, and its CPU interface lets through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrivateInterrupts {
    /// What they are, and which INTIDs are.
    pub intids: [(&'static str, Vec<u32>); 4],
    /// ICC_PMR_EL1.
    pub priority_mask: u64,
    /// ICC_AP1R0_EL1.
    pub active_priorities: u64,
}

impl GicState {
    /// The private interrupts of `vcpu`; nothing where the state has no such vCPU.
    pub fn private(&self, vcpu: usize) -> PrivateInterrupts {
        let affinity = (vcpu as u64) << 32;
        let bits = |group, offset| intids(self.value(group, affinity | offset), 0);
        PrivateInterrupts {
            intids: [
                ("enabled", bits(REDISTRIBUTOR, SGI_FRAME | ISENABLER)),
                ("lines", bits(LINE_LEVEL, 0)),
                ("pending", bits(REDISTRIBUTOR, SGI_FRAME | ISPENDR)),
                ("active", bits(REDISTRIBUTOR, SGI_FRAME | ISACTIVER)),
            ],
            priority_mask: self.value(CPU_INTERFACE, affinity | ICC_PMR),
            active_priorities: self.value(CPU_INTERFACE, affinity | ICC_AP1R0),
        }
    }

    /// The shared interrupts whose lines are high, that are pending and that are active, where there are any.
    pub fn shared(&self) -> Vec<(&'static str, Vec<u32>)> {
        let words = 1..INTERRUPTS / 32;
        let of = |group, start: u64, step: u64| {
            let value = |word| intids(self.value(group, start + step * u64::from(word)), 32 * word);
            words.clone().flat_map(value).collect::<Vec<_>>()
        };
        let kinds = [
            ("lines", of(LINE_LEVEL, 0, 32)),
            ("pending", of(DISTRIBUTOR, ISPENDR, 4)),
            ("active", of(DISTRIBUTOR, ISACTIVER, 4)),
        ];
        kinds.into_iter().filter(|(_, intids)| !intids.is_empty()).collect()
    }

    /// The value of a register, zero where the state has it not.
    fn value(&self, group: u32, attr: u64) -> u64 {
        let key = GicKey { group, attr };
        self.registers.iter().find(|(found, _)| *found == key).map_or(0, |(_, value)| *value)
    }
}

/// The INTIDs whose bits are set in a word that begins with `first`.
fn intids(word: u64, first: u32) -> Vec<u32> {
    (0..32).filter(|bit| word >> bit & 1 != 0).map(|bit| first + bit).collect()
}

/// The keys of a machine of `vcpus` vCPUs, whose GIC has `priority_bits` bits of priority, in the order of restoring.
pub(super) fn keys(vcpus: usize, priority_bits: u32) -> impl Iterator<Item = GicKey> {
    let banks = [(IGROUPR, 1), (ICFGR, 2), (IPRIORITYR, 8), (ISENABLER, 1)];
    let words = |start: u64, bits: u64, intids: std::ops::Range<u64>| {
        (intids.start * bits / 32..intids.end * bits / 32).map(move |word| start + 4 * word)
    };
    let key = |group| move |attr| GicKey { group, attr };
    let affinities = (0..vcpus as u64).map(|vcpu| vcpu << 32);

    let private = affinities.clone().flat_map(move |affinity| {
        let word = move |offset: u64| GicKey { group: REDISTRIBUTOR, attr: affinity | SGI_FRAME | offset };
        let configured = banks.into_iter().flat_map(move |(start, bits)| words(start, bits, 0..32)).map(word);
        let line = GicKey { group: LINE_LEVEL, attr: affinity };
        configured.chain([line, word(ISPENDR), word(ISACTIVER)])
    });
    let spis = 32..u64::from(INTERRUPTS);
    let routes = spis.clone().flat_map(|intid| [8 * intid, 8 * intid + 4]).map(|offset| GICD_IROUTER + offset);
    let configured = {
        let spis = spis.clone();
        banks.into_iter().flat_map(move |(start, bits)| words(start, bits, spis.clone()))
    };
    let lines = spis.clone().step_by(32);
    let states = [ISPENDR, ISACTIVER].into_iter().flat_map(move |start| words(start, 1, spis.clone()));
    let shared = configured
        .chain(routes)
        .map(key(DISTRIBUTOR))
        .chain(lines.map(key(LINE_LEVEL)))
        .chain(states.map(key(DISTRIBUTOR)));
    let interfaces = affinities.flat_map(move |affinity| {
        let always = [ICC_SRE, ICC_CTLR, ICC_PMR, ICC_BPR0, ICC_BPR1, ICC_IGRPEN0, ICC_IGRPEN1];
        // A bit for each priority that can be active (IHI 0069 12.2.1): 32 a register.
        let active = 1_u64 << priority_bits.saturating_sub(5).min(2);
        let active = (0..active).flat_map(|n| [ICC_AP0R0 + n, ICC_AP1R0 + n]);
        always.into_iter().chain(active).map(move |encoding| GicKey { group: CPU_INTERFACE, attr: affinity | encoding })
    });
    let first = [GICD_IIDR, GICD_CTLR].map(key(DISTRIBUTOR));
    first.into_iter().chain(private).chain(shared).chain(interfaces)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_is_there_once_and_vcpus_add_their_own() {
        let one: Vec<_> = keys(1, 5).collect();
        let unique: BTreeSet<_> = one.iter().collect();
        assert_eq!(unique.len(), one.len());
        // 3 of one bit, 2 of configuration, 8 of priorities, the line, enable; 9 of the CPU interface.
        let private = 1 + 2 + 8 + 1 + 1 + 1 + 1;
        assert_eq!(keys(8, 5).count(), one.len() + 7 * (private + 9));
        assert_eq!(keys(1, 7).count(), one.len() + 6, "seven bits of priority have four pairs of active registers");
        assert_eq!(one[0].attr, GICD_IIDR);
        assert!(one.contains(&GicKey { group: DISTRIBUTOR, attr: 0x63fc }), "the last route's upper word");
        assert!(!one.contains(&GicKey { group: DISTRIBUTOR, attr: 0x6400 }));
    }

    #[test]
    fn interrupts_are_told_by_their_numbers() {
        let register = |group, attr, value| (GicKey { group, attr }, value);
        let state = GicState {
            registers: vec![
                register(REDISTRIBUTOR, 1 << 32 | SGI_FRAME | ISACTIVER, 1 << 27),
                register(LINE_LEVEL, 1 << 32, 1 << 27 | 1 << 30),
                register(CPU_INTERFACE, 1 << 32 | ICC_AP1R0, 0x10),
                register(DISTRIBUTOR, ISPENDR + 8, 1 << 3),
                register(LINE_LEVEL, 64, 1 << 3),
            ],
        };
        let private = state.private(1);
        let expected = [("enabled", vec![]), ("lines", vec![27, 30]), ("pending", vec![]), ("active", vec![27])];
        assert_eq!((private.intids, private.active_priorities), (expected, 0x10));
        assert!(state.private(0).intids.iter().all(|(_, intids)| intids.is_empty()));
        assert_eq!(state.shared(), [("lines", vec![67]), ("pending", vec![67])]);
    }

    #[test]
    fn a_state_of_another_shape_is_refused_by_the_key_that_differs() {
        let state = |vcpus, bits| GicState { registers: keys(vcpus, bits).map(|key| (key, 0)).collect() };
        let check = |state: GicState| state.check_shape(Accelerator::Emulator, keys(2, 5));
        assert!(check(state(2, 5)).is_ok());
        for (vcpus, bits) in [(1, 5), (3, 5), (2, 6)] {
            let error = check(state(vcpus, bits)).unwrap_err().to_string();
            assert!(error.contains("GIC register"), "{error}");
        }
        let mut longer = state(2, 5);
        longer.registers.push((GicKey { group: 9, attr: 9 }, 0));
        assert!(check(longer).unwrap_err().to_string().contains("lacks"));
    }
}
