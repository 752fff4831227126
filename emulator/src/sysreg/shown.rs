//! Identification registers that show less than the processor has: [`Shown`]. Who runs a guest that is to move to a lesser processor hides
//! from it what that one lacks, as KVM lets its users do (kvm/api.rst 4.139); instructions that are hidden still work.
//!
//! A field may be lowered, or be 0b1111 where that means "none". What this processor has not it never shows. Neighbours: `access` asks
//! here before [`super::constant`]; [`crate::regs`] takes what is to be shown.

use std::collections::BTreeMap;

use super::constant;
use super::enc::{CTR_EL0, ID_AA64MMFR0_EL1, ID_AA64PFR0_EL1};
use super::id;
use crate::config::ExecutionState;

/// What identification registers show in place of their own values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown(BTreeMap<u16, u64>);

impl Shown {
    /// What `enc` shows, where that is not its own value.
    pub fn get(&self, enc: u16) -> Option<u64> {
        self.0.get(&enc).copied()
    }

    /// Makes `enc` show `value` on a vCPU in `state`; `false` where that would promise what the processor has not, or is not to be
    /// hidden.
    pub fn set(&mut self, state: ExecutionState, enc: u16, value: u64) -> bool {
        let Some(own) = constant(state, enc) else { return false };
        let writable = writable(state, enc);
        let possible = (own ^ value) & !writable == 0
            && (0..64).step_by(4).all(|low| {
                let (own, given) = (own >> low & 0xf, value >> low & 0xf);
                let lowers = given < own || (given == 0xf && none_at(enc) >> low & 1 != 0);
                given == own || lowers
            });
        if possible && value == own {
            self.0.remove(&enc);
        } else if possible {
            self.0.insert(enc, value);
        }
        possible
    }
}

/// Fields, by their lowest bit, whose 0b1111 is "none" and less than 0: FP and AdvSIMD; the granules of 64K and 4K.
const fn none_at(enc: u16) -> u64 {
    match enc {
        ID_AA64PFR0_EL1 => 1 << 20 | 1 << 16,
        ID_AA64MMFR0_EL1 => 1 << 28 | 1 << 24,
        _ => 0,
    }
}

/// The bits of `enc` that may show less than the processor has; of what is no feature register 0, but for CTR_EL0.IDC. Exception levels and
/// the GIC's registers are not to be hidden.
pub fn writable(state: ExecutionState, enc: u16) -> u64 {
    if enc == CTR_EL0 {
        return 1 << 28;
    }
    let Some(own) = constant(state, enc).filter(|_| id::is_feature_space(enc)) else { return 0 };
    let kept = if enc == ID_AA64PFR0_EL1 { 0xf << 24 | 0xffff } else { 0 };
    let fields = (0..64).step_by(4).filter(|low| own >> low & 0xf != 0 || none_at(enc) >> low & 1 != 0);
    fields.fold(0, |bits, low| bits | 0xf << low) & !kept
}

#[cfg(test)]
mod tests {
    use super::super::enc::{ID_AA64ISAR0_EL1, MIDR_EL1};
    use super::*;

    const A64: ExecutionState = ExecutionState::Aarch64;

    #[test]
    fn features_can_be_hidden_and_none_be_made_up() {
        let mut shown = Shown::default();
        let lse = 0xf << 20;
        assert!(shown.set(A64, ID_AA64ISAR0_EL1, id::ISAR0 & !lse));
        assert_eq!(shown.get(ID_AA64ISAR0_EL1), Some(id::ISAR0 & !lse));
        for more in [id::ISAR0 | 1 << 40, id::ISAR0 | 0xf << 20, id::ISAR0 | 0xf << 60] {
            assert!(!shown.set(A64, ID_AA64ISAR0_EL1, more), "{more:#x}");
        }
        assert!(shown.set(A64, ID_AA64PFR0_EL1, id::PFR0 | 0xff << 16), "no FP, no AdvSIMD");
        assert!(!shown.set(A64, ID_AA64PFR0_EL1, id::PFR0 & !0xf0), "there is an EL1");
        assert!(!shown.set(A64, MIDR_EL1, 0), "a name is no feature");
        assert!(shown.set(A64, CTR_EL0, id::CTR & !(1 << 28)) && !shown.set(A64, CTR_EL0, 0), "IDC alone");
        assert!(!shown.set(A64, super::super::enc::SCTLR_EL1, 0));
    }

    #[test]
    fn who_shows_what_it_has_is_as_it_was_made() {
        let mut shown = Shown::default();
        assert!(shown.set(A64, ID_AA64ISAR0_EL1, 0) && shown.set(A64, ID_AA64ISAR0_EL1, id::ISAR0));
        assert_eq!(shown, Shown::default());
    }

    #[test]
    fn what_is_writable_can_be_cleared_or_is_none() {
        for state in [ExecutionState::Aarch64, ExecutionState::Aarch32] {
            for crm in 1..=7 {
                for op2 in 0..=7 {
                    let enc = super::super::enc::enc(3, 0, 0, crm, op2);
                    let own = constant(state, enc).expect("it is in the space");
                    assert!(Shown::default().set(state, enc, own & !writable(state, enc)), "{enc:#x}");
                }
            }
        }
    }
}
