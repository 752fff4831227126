//! Every rule, by lists that are skewed on purpose; KVM's real lists; properties.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::id::{self, core, cp15, cp15_wide, firmware, services, sve_p, sve_z, sysreg, vector};
use super::rule::NEVER_WRITTEN;
use super::*;

const NAMED: Policy = Policy { unknown: UnknownRegisters::Refuse, features: MissingFeatures::Name };
/// In KVM's space of system registers, and not the architecture's.
const UNHEARD_OF: u64 = sysreg(3, 7, 15, 15, 7);
const SCTLR: u64 = sysreg(3, 0, 1, 0, 0);
const TCR: u64 = sysreg(3, 0, 2, 0, 2);
const FAR: u64 = sysreg(3, 0, 6, 0, 0);
const MIDR: u64 = sysreg(3, 0, 0, 0, 0);
const MPIDR: u64 = sysreg(3, 0, 0, 0, 5);
const ISAR0: u64 = sysreg(3, 0, 0, 6, 0);

type Registers = Vec<(u64, u128)>;

fn both(
    arch: Arch,
    source: &[(u64, u128)],
    destination: &[(u64, u128)],
    policy: Policy,
) -> Result<Translation, Refusal> {
    let source = Source { arch, registers: source, wider: &[] };
    translate(&source, &Destination { registers: destination, writable: &[] }, policy)
}

/// Of an AArch64 guest, by the strictest policy.
fn a64(source: &[(u64, u128)], destination: &[(u64, u128)]) -> Result<Translation, Refusal> {
    both(Arch::Aarch64, source, destination, Policy::default())
}

fn a32(source: &[(u64, u128)], destination: &[(u64, u128)]) -> Result<Translation, Refusal> {
    both(Arch::Armv7, source, destination, Policy::default())
}

fn said(translation: &Translation) -> Vec<String> {
    translation.notes.iter().map(Note::to_string).collect()
}

fn refused(result: Result<Translation, Refusal>) -> String {
    result.unwrap_err().to_string()
}

fn arch_of(snapshot: &Snapshot) -> Arch {
    if snapshot.origin.contains("AArch32") { Arch::Armv7 } else { Arch::Aarch64 }
}

/// KVM's lists, but for the one with SVE.
fn lists() -> Vec<Snapshot> {
    fixtures::kvm().filter(|snapshot| !snapshot.origin.contains("SVE")).collect()
}

/// `registers` after `writes`, as a vCPU without constants would have them.
fn after(registers: &[(u64, u128)], writes: &[(u64, u128)]) -> Registers {
    let mut after = registers.to_vec();
    for (id, value) in writes {
        if let Some(register) = after.iter_mut().find(|(found, _)| found == id) {
            register.1 = *value;
        }
    }
    after
}

fn is_clearing(id: u64) -> bool {
    lookup(id).is_some_and(|entry| matches!(entry.rule, Rule::Clears { .. }))
}

#[test]
fn the_same_vcpu_becomes_itself() {
    for snapshot in lists() {
        let translation =
            both(arch_of(&snapshot), &snapshot.registers, &snapshot.registers, Policy::default()).unwrap();
        assert_eq!(translation.notes, [], "{}", snapshot.origin);
        let writes: Vec<_> = translation.writes.iter().filter(|(id, _)| !is_clearing(*id)).copied().collect();
        assert_eq!(after(&snapshot.registers, &writes), snapshot.registers, "{}", snapshot.origin);
        assert!(writes.len() > 200 && translation.writes.len() - writes.len() == 3, "{}", snapshot.origin);
    }
}

#[test]
fn kvm_s_vcpus_move_between_its_versions() {
    for arch in ["aarch64", "armv7"] {
        let (old, new) = (fixtures::named(&format!("6.1-{arch}")), fixtures::named(&format!("6.12-{arch}")));
        let up = both(arch_of(&old), &old.registers, &new.registers, Policy::default()).unwrap();
        let log = said(&up).join("\n");
        // What 6.1 does not list: the physical timer, extended translation control, permissions; seven kinds of caches more.
        for line in [
            "CNTP_CTL_EL0: the source has none, it gets its reset value 0x4",
            "TCR2_EL1: the source has none",
            "CCSIDR[13]",
        ] {
            assert!(log.contains(line), "{line} in\n{log}");
        }
        let back = both(arch_of(&old), &new.registers, &old.registers, NAMED).unwrap();
        let log = said(&back).join("\n");
        for line in
            ["PIR_EL1: 0x1de7ec7edbadc0de is left behind: it is as after a reset", "CNTP_CVAL_EL0: 0x0 is left behind"]
        {
            assert!(log.contains(line), "{line} in\n{log}");
        }
        let strict = both(arch_of(&old), &new.registers, &old.registers, Policy::default());
        assert!(refused(strict).contains("FEAT_PMUv3p5"));
    }
}

#[test]
fn copied_registers_come_in_order() {
    let source = [
        (id::PMCR_EL0, 1),
        (id::TIMER_CTL, 1),
        (id::TIMER_CVAL, 9),
        (core(3), 3),
        (id::PSTATE, 0x3c5),
        (firmware(0), 0x1_0000),
    ];
    let zero = source.map(|(id, _)| (id, if id == firmware(0) { 0x1_0001 } else { 0 }));
    let translation = a64(&source, &zero).unwrap();
    let order: Vec<_> = translation.writes.iter().map(|(id, _)| *id).collect();
    assert_eq!(order, [firmware(0), id::PSTATE, core(3), id::PMCR_EL0, id::TIMER_CVAL, id::TIMER_CTL]);
    assert_eq!(translation.notes, []);
}

#[test]
fn the_virtual_timer_s_ids_are_swapped_and_counters_are_set_elsewhere() {
    let list = |count, compare| vec![(id::TIMER_CNT, count), (id::TIMER_CVAL, compare), (id::PTIMER_CNT, count)];
    let translation = a64(&list(1000, 2000), &list(7, 0)).unwrap();
    assert_eq!(translation.writes, [(0x6030_0000_0013_df02, 2000)]);
    assert_eq!(
        said(&translation)[0],
        "TIMER_CNT: 0x3e8 is not written over 0x7: the machine's counter is set once, last, by the rule for its time"
    );
}

#[test]
fn masked_bits_stay_the_destination_s() {
    // ISTATUS follows from the counter.
    let translation = a64(&[(id::TIMER_CTL, 0b101)], &[(id::TIMER_CTL, 0b010)]).unwrap();
    assert_eq!(translation.writes, [(id::TIMER_CTL, 0b001)]);
    assert_eq!(said(&translation), ["CNTV_CTL_EL0: bits 0x4 stay the destination's: ISTATUS follows from the counter"]);
    // A destination with more counters keeps its number of them.
    let translation = a64(&[(id::PMCR_EL0, 2 << 11 | 0x41)], &[(id::PMCR_EL0, 6 << 11)]).unwrap();
    assert_eq!(translation.writes, [(id::PMCR_EL0, 6 << 11 | 0x41)]);
    // One with fewer lacks them.
    let fewer = a64(&[(id::PMCR_EL0, 6 << 11)], &[(id::PMCR_EL0, 2 << 11)]);
    assert!(refused(fewer).contains("PMCR_EL0.N: the guest may rely on 0x6, the destination offers 0x2"));
}

#[test]
fn counters_that_the_destination_lacks_are_not_enabled_there() {
    let list = |enabled: u128, counters: u128| vec![(id::PMCNTENSET_EL0, enabled), (id::PMCR_EL0, counters << 11)];
    let translation = both(Arch::Aarch64, &list(0x8000_001e, 6), &list(0, 0), NAMED).unwrap();
    assert_eq!(translation.writes[0], (id::PMCNTENSET_EL0, 0x8000_0000));
    assert!(said(&translation).iter().any(|line| line.starts_with("PMCNTENSET_EL0: bits 0x1e stay the destination's")));
    let translation = both(Arch::Aarch64, &list(0x8000_001e, 6), &list(0, 3), NAMED).unwrap();
    assert_eq!(translation.writes[0], (id::PMCNTENSET_EL0, 0x8000_0006));
}

#[test]
fn a_pmu_is_cleared_before_it_is_set_and_counts_last() {
    let clear = sysreg(3, 3, 9, 12, 2);
    let cycles = sysreg(3, 3, 9, 13, 0);
    let list = |value: u128, count| {
        vec![(id::PMCR_EL0, value & 1), (id::PMCNTENSET_EL0, value << 31), (clear, value << 31), (cycles, count)]
    };
    let translation = a64(&list(1, 500), &list(0, 0)).unwrap();
    let all = u128::from(u64::MAX);
    assert_eq!(translation.writes, [(clear, all), (cycles, 500), (id::PMCR_EL0, 1), (id::PMCNTENSET_EL0, 1 << 31)]);
    // A destination without the views that clear.
    let without = [(id::PMCNTENSET_EL0, 0), (id::PMCR_EL0, 0), (cycles, 0)];
    let translation = a64(&list(1, 500), &without).unwrap();
    assert_eq!(translation.writes, [(cycles, 500), (id::PMCNTENSET_EL0, 1 << 31), (id::PMCR_EL0, 1)]);
    // A source that has nothing but them: they read the same.
    let translation = a64(&[(clear, 1 << 31)], &without[..1]).unwrap();
    assert_eq!(translation.writes, [(id::PMCNTENSET_EL0, 1 << 31)]);
    assert_eq!(said(&translation), ["PMCNTENSET_EL0: made of PMCNTENCLR_EL0"]);
    // A destination that has nothing but them cannot be set.
    assert!(
        refused(a64(&[(id::PMCNTENSET_EL0, 1 << 31)], &[(clear, 0)])).contains("cannot be set by a view that clears")
    );
    assert_eq!(a64(&[(id::PMCNTENSET_EL0, 0)], &[(clear, 0)]).unwrap().writes, [(clear, all)]);
}

#[test]
fn constants_must_be_equal_or_are_named() {
    assert_eq!(
        refused(a64(&[(MPIDR, 0x8000_0001)], &[(MPIDR, 0x8000_0000)])),
        "the vCPU's registers cannot be moved: MPIDR_EL1: 0x80000001 at the source and 0x80000000 at the destination, which must be the same"
    );
    assert_eq!(a64(&[(MPIDR, 1)], &[(MPIDR, 1)]).unwrap(), Translation::default());
    let translation = a64(&[(MIDR, 0x410f_d0c1)], &[(MIDR, 0xf_7d11)]).unwrap();
    assert_eq!(translation.writes, []);
    assert_eq!(
        said(&translation),
        [
            "MIDR_EL1: 0x410fd0c1 is not written over 0xf7d11: names the implementation, which differs between hosts and accelerators"
        ]
    );
    // Where the destination lets it be chosen, it is.
    let (source, destination) = ([(MIDR, 0x410f_d0c1)], [(MIDR, 0xf_7d11)]);
    let source = Source { arch: Arch::Aarch64, registers: &source, wider: &[] };
    let chosen = Destination { registers: &destination, writable: &[(MIDR, u64::MAX)] };
    let translation = translate(&source, &chosen, Policy::default()).unwrap();
    assert_eq!((translation.writes, translation.notes), (vec![(MIDR, 0x410f_d0c1)], vec![]));
}

#[test]
fn features_that_are_lacking_refuse_or_are_named_and_surplus_ones_are_hidden_where_possible() {
    let (lse, more) = ([(ISAR0, 2 << 20)], [(ISAR0, 2 << 20 | 1 << 16)]);
    let reason = "ID_AA64ISAR0_EL1.CRC32: the guest may rely on FEAT_CRC32 (0x1), which the destination lacks (0x0)";
    assert!(refused(a64(&more, &lse)).contains(reason));
    let translation = both(Arch::Aarch64, &more, &lse, NAMED).unwrap();
    assert_eq!(translation.writes, []);
    assert_eq!(
        said(&translation),
        [reason, "ID_AA64ISAR0_EL1: the guest was shown 0x210000 and will be shown 0x200000"]
    );
    // More than the guest was shown: hidden where that can be chosen, else named.
    assert_eq!(
        said(&a64(&lse, &more).unwrap()),
        ["ID_AA64ISAR0_EL1: the guest was shown 0x200000 and will be shown 0x210000"]
    );
    let source = Source { arch: Arch::Aarch64, registers: &lse, wider: &[] };
    let chosen = Destination { registers: &more, writable: &[(ISAR0, 0xf << 16)] };
    let translation = translate(&source, &chosen, Policy::default()).unwrap();
    assert_eq!((translation.writes, translation.notes), (vec![(ISAR0, 2 << 20)], vec![]));
    // An AArch32 guest cannot read it.
    assert_eq!(a32(&more, &lse).unwrap().writes, []);
}

#[test]
fn a_firmware_s_versions_and_services_are_features_that_can_be_chosen() {
    let list = |psci, trng| vec![(firmware(0), psci), (services(0), trng)];
    let translation = a64(&list(0x1_0000, 0), &list(0x1_0001, 1)).unwrap();
    assert_eq!((translation.writes, translation.notes), (list(0x1_0000, 0), vec![]));
    let reasons = refused(a64(&list(0x1_0003, 1), &list(0x1_0001, 0)));
    assert!(reasons.contains("PSCI_VERSION.version") && reasons.contains("SMCCC TRNG"), "{reasons}");
    // A machine that lists none has PSCI 1.1 and no services.
    let translation = a64(&list(0x1_0001, 0), &[]).unwrap();
    assert_eq!(translation.notes.len(), 2);
    assert!(refused(a64(&list(0x1_0001, 1), &[])).contains("STD_BMAP.TRNG_V1_0"));
    let translation = a64(&[], &list(0x1_0003, 1)).unwrap();
    assert_eq!(translation.writes, list(0x1_0001, 0));
    // Workarounds: a host that needs none is as good as one that has it; the levels of a source without are not written.
    assert!(a64(&[(firmware(1), 1)], &[(firmware(1), 2)]).unwrap().writes.is_empty());
    assert!(refused(a64(&[(firmware(1), 1)], &[(firmware(1), 0)])).contains("SMCCC_ARCH_WORKAROUND_1.level"));
    assert_eq!(a64(&[], &[(firmware(3), 1)]).unwrap().writes, []);
    assert!(a64(&[(firmware(2), 3)], &[]).is_ok());
}

#[test]
fn ids_that_nobody_knows_follow_the_policy() {
    let with = |unknown| Policy { unknown, ..Policy::default() };
    let by = |unknown, source: &[(u64, u128)], destination: &[(u64, u128)]| {
        both(Arch::Aarch64, source, destination, with(unknown))
    };
    let (zero, one, none): (Registers, Registers, Registers) = (vec![(UNHEARD_OF, 0)], vec![(UNHEARD_OF, 1)], vec![]);
    use UnknownRegisters::{Ignore, IgnoreZero, Refuse};
    for (source, destination) in [(&zero, &none), (&none, &zero), (&one, &one)] {
        assert!(refused(by(Refuse, source, destination)).contains("is unknown, its value"));
        for unknown in [IgnoreZero, Ignore] {
            let translation = by(unknown, source, destination).unwrap();
            assert_eq!(translation.writes, []);
            assert!(
                said(&translation)[0].contains("0x603000000013ffff: unknown and left alone"),
                "{:?}",
                said(&translation)
            );
        }
    }
    for (source, destination) in [(&one, &none), (&none, &one), (&one, &zero), (&zero, &one)] {
        assert!(by(IgnoreZero, source, destination).is_err());
        assert_eq!(by(Ignore, source, destination).unwrap().notes.len(), 1);
    }
}

#[test]
fn what_the_source_lacks_gets_its_reset_value() {
    let garbage = |id| (id, u128::from(NEVER_WRITTEN));
    let translation =
        a64(&[], &[garbage(SCTLR), garbage(id::PSTATE), garbage(core(5)), (id::TIMER_CTL, 0b111)]).unwrap();
    assert_eq!(translation.writes, [(id::PSTATE, 0x3c5), (SCTLR, 0x30d0_0980), (core(5), 0), (id::TIMER_CTL, 0b100)]);
    assert_eq!(said(&translation)[0], "SCTLR_EL1: the source has none, it gets its reset value 0x30d00980");
    // Constants stay.
    let translation = a64(&[], &[(MIDR, 7), (ISAR0, 1 << 20)]).unwrap();
    assert_eq!(translation.writes, []);
    assert_eq!(said(&translation)[0], "MIDR_EL1: the source has none, 0x7 stays: a constant of the destination");
}

#[test]
fn what_the_destination_lacks_is_left_behind_only_when_unused() {
    let tcr2 = sysreg(3, 0, 2, 0, 3);
    assert!(a64(&[(tcr2, 0)], &[]).is_ok() && a64(&[(tcr2, NEVER_WRITTEN.into())], &[]).is_ok());
    assert_eq!(
        refused(a64(&[(tcr2, 1)], &[])),
        "the vCPU's registers cannot be moved: TCR2_EL1: the destination has none, and the guest's 0x1 is not its reset value"
    );
    // Breakpoints.
    let (value, control) = (sysreg(2, 0, 0, 9, 4), sysreg(2, 0, 0, 9, 5));
    assert!(a64(&[(value, 0x1000), (control, 0x1e4)], &[]).is_ok());
    assert!(refused(a64(&[(value, 0x1000), (control, 0x1e5)], &[])).contains("DBGBVR9_EL1: the destination has none"));
    // The physical timer.
    assert!(a64(&[(id::PTIMER_CTL, 4), (id::PTIMER_CVAL, 77)], &[]).is_ok());
    assert!(refused(a64(&[(id::PTIMER_CTL, 1), (id::PTIMER_CVAL, 77)], &[])).contains("CNTP_CVAL_EL0"));
    // Constants always.
    assert_eq!(a64(&[(id::cache(2), 0x700f_e01a)], &[]).unwrap().notes.len(), 1);
}

#[test]
fn event_counters_are_left_behind_unless_they_count() {
    let (counter, event) = (sysreg(3, 3, 14, 8, 1), id::event_type(1));
    let list = |control, enabled, event_number| {
        vec![(counter, 55), (event, event_number), (id::PMCR_EL0, control), (id::PMCNTENSET_EL0, enabled)]
    };
    let there = [(id::PMCR_EL0, 0), (id::PMCNTENSET_EL0, 0)];
    for unused in [list(0, 2, 0x11), list(1, 0x8000_0000, 0x11), list(1, 2, 0xc800_c0de), list(1, 2, 0xc800_00de)] {
        assert!(a64(&unused, &there).is_ok(), "{unused:x?}");
    }
    assert!(
        refused(a64(&list(1, 2, 0x11), &there))
            .contains("PMEVCNTR1_EL0: the destination has none, and the guest's 0x37 counts")
    );
}

fn source<'a>(registers: &'a [(u64, u128)], wider: &'a [u64]) -> Source<'a> {
    Source { arch: Arch::Aarch64, registers, wider }
}

#[test]
fn sve_is_dropped_if_it_was_never_used_and_refused_otherwise() {
    let with = fixtures::named("6.12-sve");
    let without = fixtures::named("6.12-aarch64");
    let destination = Destination { registers: &without.registers, writable: &[] };
    // The vectors' lower parts are state, which the other has as V0 to V31.
    let mut state = with.registers.clone();
    state.iter_mut().find(|(id, _)| *id == sve_z(7)).unwrap().1 = 0x77;
    let translation = translate(&source(&state, &[]), &destination, NAMED).unwrap();
    assert!(translation.writes.contains(&(vector(7), 0x77)));
    assert!(said(&translation).contains(&"Z7: 0x77 is left behind: SVE was never used".to_owned()));
    // It was shown to the guest all the same.
    assert!(refused(translate(&source(&state, &[]), &destination, Policy::default())).contains("FEAT_SVE"));
    // In use: an upper part, a predicate, or permission.
    assert!(refused(translate(&source(&state, &[sve_z(7)]), &destination, NAMED)).contains("upper parts"));
    for (id, value) in [(sve_p(3), 1), (id::CPACR_EL1, 1 << 16)] {
        let mut state = state.clone();
        state.iter_mut().find(|(found, _)| *found == id).unwrap().1 = value;
        assert!(refused(translate(&source(&state, &[]), &destination, NAMED)).contains("SVE_VLS"), "{id:#x}");
    }
    // A destination with SVE is not what a guest without it comes to.
    let to = Destination { registers: &with.registers, writable: &[] };
    assert!(refused(translate(&source(&without.registers, &[]), &to, NAMED)).contains("make the vCPU without SVE"));
}

#[test]
fn a_child_without_its_generator_makes_it() {
    // As KVM on 32-bit hosts lists them: DFAR and IFAR are halves of FAR_EL1, TTBCR is the lower half of TCR_EL1.
    let (dfar, ifar, ttbcr) = (cp15(0, 6, 0, 0), cp15(0, 6, 0, 2), cp15(0, 2, 0, 2));
    let source = [(dfar, 0x1111), (ifar, 0x2222), (ttbcr, 0x8000_0000), (cp15_wide(0, 2), 0x4400_0000)];
    let translation = a32(&source, &[(FAR, 9), (TCR, 9), (sysreg(3, 0, 2, 0, 0), 9)]).unwrap();
    assert_eq!(translation.writes, [(FAR, 0x2222_0000_1111), (TCR, 0x8000_0000), (sysreg(3, 0, 2, 0, 0), 0x4400_0000)]);
    assert_eq!(
        said(&translation),
        [
            "FAR_EL1: made of DFAR, IFAR",
            "TCR_EL1: made of TTBCR, bits 0xffffffff00000000 of its reset value",
            "TTBR0_EL1: made of TTBR0"
        ]
    );
}

#[test]
fn a_generator_without_its_child_keeps_its_value() {
    let (sctlr, dfar) = (cp15(0, 1, 0, 0), cp15(0, 6, 0, 0));
    // The child exists at the destination only beside its generator: nothing overwrites that afterwards.
    let translation = a32(&[(SCTLR, 0xc5_187d)], &[(SCTLR, 0xc5_0078), (sctlr, 0xc5_0078)]).unwrap();
    assert_eq!((translation.writes, translation.notes), (vec![(SCTLR, 0xc5_187d)], vec![]));
    // The destination has the child alone.
    let translation = a32(&[(SCTLR, 0xc5_187d)], &[(sctlr, 0)]).unwrap();
    assert_eq!(translation.writes, [(sctlr, 0xc5_187d)]);
    assert_eq!(said(&translation), ["SCTLR_EL1: the destination has it as SCTLR"]);
    // A part of the generator has no place there.
    assert!(a32(&[(FAR, 0x1111)], &[(dfar, 0)]).is_ok());
    assert!(refused(a32(&[(FAR, 0x2222_0000_1111)], &[(dfar, 0)])).contains("FAR_EL1: the destination has none"));
    // Children on both sides, generators on none.
    let translation = a32(&[(sctlr, 5)], &[(sctlr, 0)]).unwrap();
    assert_eq!((translation.writes, translation.notes), (vec![(sctlr, 5)], vec![]));
}

#[test]
fn a_child_never_overrules_its_generator() {
    let sctlr = cp15(0, 1, 0, 0);
    for destination in [&[(SCTLR, 0), (sctlr, 0)][..], &[(SCTLR, 0)]] {
        let translation = a32(&[(sctlr, 0xbad), (SCTLR, 0x900d)], destination).unwrap();
        assert_eq!(translation.writes, [(SCTLR, 0x900d)]);
        assert_eq!(said(&translation), ["SCTLR: a view that says 0xbad, other than SCTLR_EL1, which counts"]);
    }
    let translation = a32(&[(sctlr, 0xbad), (SCTLR, 0x900d)], &[(sctlr, 0)]).unwrap();
    assert_eq!(translation.writes, [(sctlr, 0x900d)]);
    // In agreement there is nothing to say.
    assert_eq!(a32(&[(sctlr, 5), (SCTLR, 5)], &[(SCTLR, 0)]).unwrap().notes, []);
}

#[test]
fn a_renamed_register_is_one_that_is_missing_and_one_that_is_new() {
    let policy = Policy { unknown: UnknownRegisters::Ignore, ..Policy::default() };
    let renamed = both(Arch::Aarch64, &[(core(4), 44)], &[(UNHEARD_OF, 0)], policy);
    assert_eq!(refused(renamed).matches("X4: the destination has none, and the guest's 0x2c").count(), 1);
    let back = both(Arch::Aarch64, &[(UNHEARD_OF, 44)], &[(core(4), 7)], policy).unwrap();
    assert_eq!(back.writes, [(core(4), 0)]);
    assert_eq!(back.notes.len(), 2);
}

#[test]
fn aarch32_s_own_registers_are_left_alone_in_aarch64_guests() {
    let (spsr_abt, dacr) = (core(37), sysreg(3, 4, 3, 0, 0));
    let (source, destination) = ([(spsr_abt, 0x1d3), (dacr, 0x5555_5555)], [(spsr_abt, 0), (dacr, 0)]);
    let translation = a64(&source, &destination).unwrap();
    assert_eq!((translation.writes.len(), translation.notes.len()), (0, 2));
    assert_eq!(a32(&source, &destination).unwrap().writes, source);
}

#[test]
fn lists_that_are_none_are_refused() {
    assert!(refused(a64(&[(core(0), 1), (core(0), 2)], &[])).contains("X0 is listed twice by the source"));
    assert!(refused(a64(&[], &[(core(0), 1), (core(0), 1)])).contains("by the destination"));
    assert!(refused(a64(&[(core(0), 1 << 64)], &[])).contains("X0 of the source cannot be 0x10000000000000000"));
    let many: Registers = (0..=MAX_REGISTERS as u64).map(|id| (id, 0)).collect();
    assert!(refused(a64(&many, &[])).contains("2049 registers"));
}

#[test]
fn what_a_destination_does_not_hold_is_named() {
    let translation =
        Translation { writes: vec![(SCTLR, 0b11), (core(1), 1), (sysreg(3, 3, 9, 12, 2), 9)], notes: vec![] };
    let unheld = translation.unheld(&[(SCTLR, 0b01), (core(1), 1)]);
    assert_eq!(unheld, [Unheld { id: SCTLR, written: 0b11, holds: Some(0b01) }]);
    assert_eq!(unheld[0].to_string(), "SCTLR_EL1: 0x3 was written, it holds 0x1");
}

/// What is done to a list: which one it is, registers taken away, changed, and added that nobody knows.
#[derive(Clone, Debug)]
struct Skew {
    which: Index,
    removed: Vec<Index>,
    changed: Vec<(Index, u64)>,
    unknown: BTreeMap<u64, u64>,
}

fn skews() -> impl Strategy<Value = Skew> {
    let removed = proptest::collection::vec(any::<Index>(), 0..40);
    let changed = proptest::collection::vec((any::<Index>(), any::<u64>()), 0..20);
    let unknown = proptest::collection::btree_map(0..8_u64, any::<u64>(), 0..3);
    (any::<Index>(), removed, changed, unknown).prop_map(|(which, removed, changed, unknown)| Skew {
        which,
        removed,
        changed,
        unknown,
    })
}

/// One of `lists`, with some views of CP15's, skewed.
fn skew(lists: &[&Snapshot], Skew { which, removed, changed, unknown }: Skew) -> Registers {
    let mut list = lists[which.index(lists.len())].registers.clone();
    let views = table().iter().filter(|entry| entry.meaning == "a view of CP15's");
    list.extend(views.map(|entry| (entry.id, 0)).take(removed.len()));
    for index in removed {
        list.remove(index.index(list.len()));
    }
    for (index, value) in changed {
        let at = index.index(list.len());
        list[at].1 = u128::from(value) & id::bits(list[at].0);
    }
    list.extend(unknown.into_iter().map(|(op2, value)| (sysreg(3, 7, 15, 14, op2), value.into())));
    list
}

/// Two lists of KVM's for guests of one architecture.
fn skewed() -> impl Strategy<Value = (Arch, Registers, Registers)> {
    let lists = lists();
    (any::<bool>(), skews(), skews()).prop_map(move |(aarch32, source, destination)| {
        let arch = if aarch32 { Arch::Armv7 } else { Arch::Aarch64 };
        let of_arch: Vec<_> = lists.iter().filter(|list| arch_of(list) == arch).collect();
        (arch, skew(&of_arch, source), skew(&of_arch, destination))
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let unknown =
        prop_oneof![Just(UnknownRegisters::Refuse), Just(UnknownRegisters::IgnoreZero), Just(UnknownRegisters::Ignore)];
    let features = prop_oneof![Just(MissingFeatures::Refuse), Just(MissingFeatures::Name), Just(MissingFeatures::Name)];
    (unknown, features).prop_map(|(unknown, features)| Policy { unknown, features })
}

/// Ids that a translation has said something of, by themselves or as views.
fn accounted(translation: &Translation) -> BTreeSet<u64> {
    let of_note = |note: &Note| {
        let mut ids = vec![note.id];
        match &note.kind {
            NoteKind::Composed { views, .. } | NoteKind::Split { views } => ids.extend(views),
            NoteKind::Overruled { generator, .. } => ids.push(*generator),
            _ => {}
        }
        ids
    };
    translation.notes.iter().flat_map(of_note).chain(translation.writes.iter().map(|(id, _)| *id)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_dropped_without_a_word((arch, source, destination) in skewed(), policy in policies()) {
        let result = both(arch, &source, &destination, policy);
        let Ok(translation) = result else {
            prop_assert!(!result.unwrap_err().reasons.is_empty());
            return Ok(());
        };
        let accounted = accounted(&translation);
        let value = |list: &Registers, id: u64| list.iter().find(|(found, _)| *found == id).map(|(_, value)| *value);
        let written: BTreeMap<_, _> = translation.writes.iter().copied().collect();
        prop_assert_eq!(written.len(), translation.writes.len(), "each id once");
        for id in written.keys() {
            prop_assert!(value(&destination, *id).is_some(), "{:#x} does not exist there", id);
        }
        for (id, of_source) in &source {
            let view_of = lookup(*id).and_then(|entry| match entry.rule(arch) {
                Rule::Derive { generator, .. } | Rule::Clears { generator } => Some(generator),
                _ => None,
            });
            let same = value(&destination, *id) == Some(*of_source);
            // A view is accounted for by its generator.
            let by_generator = view_of.is_some_and(|of| accounted.contains(&of) || value(&source, of).is_some());
            prop_assert!(accounted.contains(id) || same || by_generator, "{:#x} of the source", id);
        }
        for (id, _) in &destination {
            let view = lookup(*id).is_some_and(|entry| matches!(entry.rule(arch), Rule::Derive { .. }));
            prop_assert!(accounted.contains(id) || view || value(&source, *id) == value(&destination, *id), "{:#x} of the destination", id);
        }
        let stages: Vec<_> = translation.writes.iter().map(|(id, _)| lookup(*id).map(|entry| entry.stage)).collect();
        prop_assert!(stages.is_sorted(), "in the order of a restore");
    }

    #[test]
    fn there_and_back_is_where_it_was((arch, source, _) in skewed()) {
        // To a destination with the same list and other values, whose constants can be chosen.
        let elsewhere: Registers = source.iter().map(|(id, value)| match lookup(*id).map(|entry| entry.rule(arch)) {
            Some(Rule::Copy) => (*id, !value & id::bits(*id)),
            _ => (*id, *value),
        }).collect();
        let policy = Policy { unknown: UnknownRegisters::Ignore, features: MissingFeatures::Refuse };
        let there = both(arch, &source, &elsewhere, policy);
        let Ok(there) = there else { return Ok(()) };
        let writes: Vec<_> = there.writes.iter().filter(|(id, _)| !is_clearing(*id)).copied().collect();
        let arrived = after(&elsewhere, &writes);
        let differ: Vec<_> = arrived.iter().zip(&source).filter(|(arrived, source)| arrived != source).collect();
        let masked = |id: u64| there.notes.iter().any(|note| note.id == id);
        prop_assert!(differ.iter().all(|((id, _), _)| masked(*id)), "{:x?}", differ);
    }

    #[test]
    fn arbitrary_lists_are_no_panic(
        source in proptest::collection::vec((any::<u64>(), any::<u128>()), 0..40),
        destination in proptest::collection::vec((any::<Index>(), any::<u64>()), 0..40),
        policy in policies(),
    ) {
        let some: Registers = destination.iter().map(|(index, value)| (table()[index.index(table().len())].id, u128::from(*value))).collect();
        let _either = both(Arch::Aarch64, &source, &some, policy);
        let _either = both(Arch::Armv7, &some, &source, policy);
    }
}
