//! Fields, lacks and baselines, on what KVM lists and on the emulator's own values.

use super::*;
use crate::cpustate::fixtures;
use crate::cpustate::id::{CTR_EL0, PMCR_EL0, firmware, services, sysreg};

const PFR0: u64 = sysreg(3, 0, 0, 4, 0);
const DFR0: u64 = sysreg(3, 0, 0, 5, 0);
const ISAR0: u64 = sysreg(3, 0, 0, 6, 0);
const MMFR0: u64 = sysreg(3, 0, 0, 7, 0);

fn said(id: u64, arch: Arch, shown: u64, offered: u64) -> Vec<String> {
    lacks(id, arch, shown, offered).iter().map(Lack::to_string).collect()
}

fn said_a64(id: u64, shown: u64, offered: u64) -> Vec<String> {
    said(id, Arch::Aarch64, shown, offered)
}

#[test]
fn a_lack_names_field_and_features() {
    assert_eq!(
        said_a64(ISAR0, 2 << 20 | 2 << 4, 0),
        [
            "ID_AA64ISAR0_EL1.AES: the guest may rely on FEAT_AES, FEAT_PMULL (0x2), which the destination lacks (0x0)",
            "ID_AA64ISAR0_EL1.Atomic: the guest may rely on FEAT_LSE (0x2), which the destination lacks (0x0)",
        ]
    );
    // Only what is between the two is lacking.
    assert_eq!(lacks(ISAR0, Arch::Aarch64, 3 << 20, 2 << 20)[0].features, ["FEAT_LSE128"]);
    // More than was shown is no lack, nor is the same.
    assert!(said_a64(ISAR0, 2 << 20, 3 << 20).is_empty() && said_a64(ISAR0, 7, 7).is_empty());
    assert_eq!(
        said_a64(DFR0, 5 << 12, 1 << 12),
        ["ID_AA64DFR0_EL1.BRPs: the guest may rely on 0x5, the destination offers 0x1"]
    );
}

#[test]
fn fields_compare_by_their_own_signs() {
    // Floating point: 0b1111 is none, 0 is there, 1 is more.
    let fp = |value: u64| value << 16 | value << 20;
    assert!(said_a64(PFR0, fp(0xf), fp(0)).is_empty());
    assert_eq!(lacks(PFR0, Arch::Aarch64, fp(0), fp(0xf)).len(), 2);
    assert_eq!(lacks(PFR0, Arch::Aarch64, fp(1), fp(0))[0].features, ["FEAT_FP16"]);
    assert_eq!(lacks(PFR0, Arch::Aarch64, fp(1), fp(0xf))[0].features, ["FEAT_FP", "FEAT_FP16"]);
    // Granules: 4K and 64K are signed, 16K is not.
    assert_eq!(lacks(MMFR0, Arch::Aarch64, 0, 0xf << 28 | 0xf << 24).len(), 2);
    assert_eq!(lacks(MMFR0, Arch::Aarch64, 1 << 20, 0)[0].features, ["the 16K granule"]);
    // A PMU of the implementer's is none that the architecture knows.
    assert!(said_a64(DFR0, 0xf << 8, 0).is_empty());
    assert_eq!(lacks(DFR0, Arch::Aarch64, 4 << 8, 0xf << 8)[0].features, ["FEAT_PMUv3", "FEAT_PMUv3p1"]);
    // Cache lines may become longer, granules smaller; 0 tells nothing of a granule and is the worst.
    assert_eq!(lacks(CTR_EL0, Arch::Aarch64, 4, 3)[0].field, "IminLine");
    assert!(said_a64(CTR_EL0, 3 | 4 << 24, 4 | 3 << 24).is_empty());
    assert_eq!(lacks(CTR_EL0, Arch::Aarch64, 4 << 24, 0)[0].field, "CWG");
    assert_eq!(lacks(CTR_EL0, Arch::Armv7, 1 << 28, 0)[0].field, "IDC");
    assert_eq!(lacks(PMCR_EL0, Arch::Aarch64, 6 << 11 | 0x41, 0)[0].field, "N");
    // EL2, EL3 and EL1's AArch32 are nothing to an AArch64 guest without EL2; nor a trivial Jazelle to anybody.
    assert!(said_a64(PFR0, 0x2220, 0x10).is_empty());
    assert!(said(sysreg(3, 0, 0, 1, 0), Arch::Armv7, 1 << 8, 0).is_empty());
}

#[test]
fn what_has_no_name_yet_is_compared_as_well() {
    let reserved = sysreg(3, 0, 0, 7, 7);
    assert_eq!(
        said_a64(reserved, 0x30, 0x20),
        ["S3_0_C0_C7_7.bits 7:4: the guest may rely on 0x3, the destination offers 0x2"]
    );
    assert_eq!(lacks(ISAR0, Arch::Aarch64, 1, 0)[0].field, "bits 3:0");
    // Services of the firmware are bits, each by itself.
    assert_eq!(
        said_a64(services(0), 0b101, 0b110),
        [
            "STD_BMAP.TRNG_V1_0: the guest may rely on random numbers by SMCCC TRNG (0x1), which the destination lacks (0x0)"
        ]
    );
    assert_eq!(lacks(services(2), Arch::Aarch64, 0b1000, 0b0111)[0].field, "bits 3:3");
    assert_eq!(lacks(firmware(0), Arch::Aarch64, 0x1_0003, 0x1_0001)[0].field, "version");
}

#[test]
fn every_field_lies_in_its_register_and_beside_the_others() {
    for entry in table::table() {
        for arch in [Arch::Aarch64, Arch::Armv7] {
            let Some(fields) = fields(entry.id, arch) else { continue };
            let mut taken = 0;
            for field in fields {
                assert_eq!(field.mask() & taken, 0, "{}.{} overlaps", entry.name, field.name);
                taken |= field.mask();
                assert!(
                    field.promises.windows(2).all(|pair| field.rank(pair[0].0.into()) < field.rank(pair[1].0.into())),
                    "{}.{}",
                    entry.name,
                    field.name
                );
            }
        }
    }
}

#[test]
fn aarch32_counts_where_it_can_be_executed() {
    let isar0_32 = sysreg(3, 0, 0, 2, 0);
    let with = |el0: u128, divide: u128| vec![(PFR0, el0), (isar0_32, divide << 24)];
    let fields = |lacks: Vec<Lack>| lacks.into_iter().map(|lack| lack.field).collect::<Vec<_>>();
    assert_eq!(fields(compare(&with(2, 2), &with(2, 1), Arch::Aarch64)), ["Divide"]);
    assert_eq!(fields(compare(&with(2, 2), &with(1, 0), Arch::Aarch64)), ["EL0"], "the one lack that says it all");
    assert!(compare(&with(1, 2), &with(1, 0), Arch::Aarch64).is_empty());
    assert_eq!(fields(compare(&with(2, 2), &with(2, 1), Arch::Armv7)), ["Divide"]);
    // What AArch64 registers say is nothing to a guest that cannot read them.
    assert!(compare(&[(ISAR0, 2 << 20)], &[(ISAR0, 0)], Arch::Armv7).is_empty());
}

#[test]
fn newer_cpus_lack_nothing_of_older_ones() {
    let (old, new) = (fixtures::named("6.12-aarch64-a57"), fixtures::named("6.12-aarch64"));
    let lacks = compare(&old.registers, &new.registers, Arch::Aarch64);
    assert!(lacks.is_empty(), "{}", lacks.iter().map(Lack::to_string).collect::<Vec<_>>().join("\n"));
    let back = compare(&new.registers, &old.registers, Arch::Aarch64);
    for feature in ["FEAT_LSE", "FEAT_RAS", "FEAT_PAN", "FEAT_FP16", "FEAT_DotProd"] {
        assert!(back.iter().any(|lack| lack.features.contains(&feature)), "{feature}");
    }
}

/// A vCPU that shows `value` for each register of `of`.
fn masked(of: &Snapshot, masks: &Masks) -> Vec<(u64, u128)> {
    let written = |id| masks.writes.iter().find(|(found, _)| *found == id).map(|(_, value)| *value);
    of.registers.iter().map(|&(id, value)| (id, written(id).unwrap_or(value))).collect()
}

#[test]
fn under_a_baseline_either_way_works() {
    let all: Vec<_> = fixtures::kvm().filter(|snapshot| !snapshot.origin.contains("AArch32")).collect();
    for one in &all {
        for other in &all {
            let baseline = baseline(&one.registers, &other.registers, Arch::Aarch64);
            assert!(baseline.registers.windows(2).all(|pair| pair[0].0 < pair[1].0));
            // As if both let software choose every bit.
            let free = |snapshot: &Snapshot| Snapshot {
                writable: snapshot.registers.iter().map(|(id, _)| (*id, u64::MAX)).collect(),
                ..snapshot.clone()
            };
            let masks = [one, other].map(|snapshot| baseline.masks(&free(snapshot), Arch::Aarch64));
            assert!(masks.iter().all(|masks| masks.unmasked.is_empty()));
            let [one, other] = [masked(one, &masks[0]), masked(other, &masks[1])];
            assert!(compare(&one, &other, Arch::Aarch64).is_empty());
            assert!(compare(&other, &one, Arch::Aarch64).is_empty());
        }
    }
}

#[test]
fn a_baseline_says_what_a_kernel_does_not_let_it_hide() {
    let (old, new) = (fixtures::named("6.12-aarch64-a57"), fixtures::named("6.12-aarch64"));
    let baseline = baseline(&new.registers, &old.registers, Arch::Aarch64);
    let masks = baseline.masks(&new, Arch::Aarch64);
    let hidden = |id| masks.writes.iter().find(|(found, _)| *found == id).map(|(_, value)| *value as u64);
    let offered = |id| old.value(id).unwrap() as u64;
    assert_eq!(hidden(ISAR0), Some(offered(ISAR0)), "all of it can be chosen");
    let names: Vec<_> = masks.unmasked.iter().map(|lack| format!("{}.{}", lack.register, lack.field)).collect();
    // Linux 6.12 does not let these be chosen.
    for field in ["ID_AA64PFR0_EL1.FP", "ID_AA64PFR0_EL1.RAS"] {
        assert!(names.iter().any(|name| name == field), "{field} in {names:?}");
    }
    // 6.1 lets nothing be chosen.
    let older = fixtures::named("6.1-aarch64");
    let masks = baseline.masks(&older, Arch::Aarch64);
    assert!(masks.writes.is_empty() && masks.unmasked.len() > 20);
}
