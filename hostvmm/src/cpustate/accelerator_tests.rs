//! The rules on real vCPUs: those of the accelerators that this host has, and KVM's lists restored on the emulator.
//!
//! With `TIDEMARK_PRINT_REGISTERS` set the vCPUs of this host are printed as the fixtures have them. To renew those:
//! `scripts/lab run --unit-tests [--kernel 6.1] [--cpu cortex-a57] -- sh -c 'TIDEMARK_PRINT_REGISTERS=1 /files/hostvmm-tests cpustate::accelerator --nocapture'`.

use std::collections::BTreeSet;

use abi::{GuestRange, map};

use super::*;
use crate::backend::{self, Accelerator, Vcpu};
use crate::machine::{MachineConfig, Start};
use crate::memory::{GuestMemory, host_page_bytes};

const LENIENT: Policy = Policy { unknown: UnknownRegisters::Refuse, features: MissingFeatures::Name };

fn accelerators_of(arch: Arch) -> Vec<Accelerator> {
    match backend::why_no_kvm_guest(arch) {
        None => vec![Accelerator::Emulator, Accelerator::Kvm],
        Some(reason) => {
            println!("skipped: {reason}");
            vec![Accelerator::Emulator]
        }
    }
}

/// A fresh vCPU, and what of it can be chosen.
fn with_choices<T>(accelerator: Accelerator, arch: Arch, act: impl FnOnce(&mut dyn Vcpu, Vec<(u64, u64)>) -> T) -> T {
    let page = host_page_bytes();
    let ram = GuestRange::new(map::RAM_BASE, 16 * page).unwrap();
    let memory = GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, page).unwrap(), None).unwrap();
    let config = MachineConfig { accelerator, vcpus: 1, ..MachineConfig::default() };
    let start = Start { arch, entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None };
    let vm = backend::open(&config, &config.layout().unwrap(), &memory, start).unwrap();
    act(&mut *vm.take_vcpu(0).unwrap(), vm.writable_features())
}

fn with_vcpu<T>(accelerator: Accelerator, arch: Arch, act: impl FnOnce(&mut dyn Vcpu) -> T) -> T {
    with_choices(accelerator, arch, |vcpu, _| act(vcpu))
}

fn registers(vcpu: &mut dyn Vcpu) -> Vec<(u64, u128)> {
    let ids = vcpu.reg_list().unwrap();
    ids.into_iter().map(|id| (id, vcpu.get_reg(id).unwrap())).collect()
}

/// Writes the translation, and what the vCPU does not hold of it.
fn restore(vcpu: &mut dyn Vcpu, translation: &Translation) -> Vec<Unheld> {
    vcpu.restore_regs(&translation.writes).unwrap();
    translation.unheld(&registers(vcpu))
}

fn translated(arch: Arch, from: &[(u64, u128)], to: &[(u64, u128)]) -> Translation {
    let source = Source { arch, registers: from, wider: &[] };
    translate(&source, &Destination { registers: to, writable: &[] }, LENIENT).unwrap()
}

fn names(unheld: &[Unheld]) -> BTreeSet<&str> {
    unheld.iter().map(|unheld| lookup(unheld.id).map_or("", |entry| entry.name.as_str())).collect()
}

#[test]
fn a_vcpu_of_this_host_is_known_and_becomes_itself() {
    for arch in [Arch::Aarch64, Arch::Armv7] {
        for accelerator in accelerators_of(arch) {
            with_choices(accelerator, arch, |vcpu, writable| {
                let saved = registers(vcpu);
                if std::env::var_os("TIDEMARK_PRINT_REGISTERS").is_some() {
                    let origin = format!("{accelerator}, {}, before its first instruction", arch.name());
                    print!("{}", Snapshot { origin, registers: saved.clone(), writable });
                }
                let translation = translated(arch, &saved, &registers(vcpu));
                // Counters run.
                let quiet = |note: &Note| [id::TIMER_CNT, id::PTIMER_CNT].contains(&note.id);
                assert!(translation.notes.iter().all(quiet), "{accelerator}: {:?}", translation.notes);
                // The timers' ISTATUS follows from the counter.
                let unheld = restore(vcpu, &translation);
                assert!(
                    names(&unheld).is_subset(&["CNTV_CTL_EL0", "CNTP_CTL_EL0"].into()),
                    "{accelerator}: {unheld:?}"
                );
            });
        }
    }
}

/// What the emulator does not hold of a vCPU of KVM's before its first instruction: reserved bits, and what KVM puts into registers
/// that are UNKNOWN at reset where the emulator implements nothing.
const NOT_HELD: [&str; 9] = [
    "AFSR0_EL1",
    "AFSR1_EL1",
    "CNTP_CTL_EL0",
    "CNTV_CTL_EL0",
    "DACR32_EL2",
    "ESR_EL1",
    "IFSR32_EL2",
    "PMCR_EL0",
    "SCTLR_EL1",
];

#[test]
fn kvm_s_vcpus_start_on_the_emulator_and_go_back() {
    for snapshot in fixtures::kvm().filter(|snapshot| !snapshot.origin.contains("SVE")) {
        let arch = if snapshot.origin.contains("AArch32") { Arch::Armv7 } else { Arch::Aarch64 };
        with_vcpu(Accelerator::Emulator, arch, |vcpu| {
            let translation = translated(arch, &snapshot.registers, &registers(vcpu));
            let unheld = restore(vcpu, &translation);
            println!("{}: not held: {:?}", snapshot.origin, names(&unheld));
            assert!(names(&unheld).is_subset(&NOT_HELD.into()), "{}: {unheld:?}", snapshot.origin);
            let back = translated(arch, &registers(vcpu), &snapshot.registers);
            assert!(back.writes.iter().all(|(id, _)| snapshot.value(*id).is_some()));
        });
    }
}

#[test]
fn vcpus_of_both_accelerators_become_each_other() {
    for arch in [Arch::Aarch64, Arch::Armv7] {
        let [emulator, kvm] = accelerators_of(arch)[..] else { continue };
        let mark = |vcpu: &mut dyn Vcpu| {
            for number in 0..31 {
                vcpu.set_reg(id::core(number), u128::from(0x1000 + number)).unwrap();
                vcpu.set_reg(id::vector(number), u128::from(number) << 64 | 7).unwrap();
            }
            registers(vcpu)
        };
        for (from, to) in [(emulator, kvm), (kvm, emulator)] {
            let source = with_vcpu(from, arch, mark);
            with_vcpu(to, arch, |vcpu| {
                let translation = translated(arch, &source, &registers(vcpu));
                let unheld = restore(vcpu, &translation);
                println!("{from} to {to}: not held: {:?}", names(&unheld));
                assert!(names(&unheld).is_subset(&NOT_HELD.into()), "{from} to {to}: {unheld:?}");
                for number in 0..31 {
                    assert_eq!(vcpu.get_reg(id::core(number)).unwrap(), u128::from(0x1000 + number), "{from} to {to}");
                    assert_eq!(vcpu.get_reg(id::vector(number)).unwrap(), u128::from(number) << 64 | 7);
                }
            });
        }
    }
}

#[test]
fn a_vcpu_can_be_made_to_show_a_baseline() {
    for accelerator in accelerators_of(Arch::Aarch64) {
        let other = with_vcpu(Accelerator::Emulator, Arch::Aarch64, registers);
        with_choices(accelerator, Arch::Aarch64, |vcpu, writable| {
            let snapshot = Snapshot { registers: registers(vcpu), writable, ..Snapshot::default() };
            let baseline = features::baseline(&snapshot.registers, &other, Arch::Aarch64);
            let masks = baseline.masks(&snapshot, Arch::Aarch64);
            let beyond: Vec<_> =
                masks.unmasked.iter().map(|lack| format!("{}.{}", lack.register, lack.field)).collect();
            println!("{accelerator}: {} registers chosen, shown beyond the baseline: {beyond:?}", masks.writes.len());
            for (id, value) in &masks.writes {
                vcpu.set_reg(*id, *value).unwrap();
                assert_eq!(vcpu.get_reg(*id).unwrap(), *value, "{accelerator}");
            }
            let left = features::compare(&registers(vcpu), &other, Arch::Aarch64);
            assert!(left.iter().all(|lack| masks.unmasked.iter().any(|unmasked| unmasked.id == lack.id)), "{left:?}");
        });
    }
}

#[test]
fn kvm_s_vcpus_and_the_emulator_s_have_a_baseline() {
    for (arch, name) in
        [(Arch::Aarch64, "6.12-aarch64"), (Arch::Aarch64, "6.12-aarch64-a57"), (Arch::Armv7, "6.12-armv7")]
    {
        let kvm = fixtures::named(name);
        let emulator = with_vcpu(Accelerator::Emulator, arch, registers);
        let masks = features::baseline(&kvm.registers, &emulator, arch).masks(&kvm, arch);
        assert!(!masks.writes.is_empty(), "{name}");
        let chosen = |id| masks.writes.iter().find(|(found, _)| *found == id).map(|(_, value)| *value);
        let shown: Vec<_> = kvm.registers.iter().map(|&(id, value)| (id, chosen(id).unwrap_or(value))).collect();
        let lacks = features::compare(&shown, &emulator, arch);
        assert!(lacks.iter().all(|lack| masks.unmasked.contains(lack)), "{name}: {lacks:?}");
    }
}
