//! Translating one vCPU's state: to the same kernel, to another, to the registers that the emulator has, and back.

use std::collections::BTreeSet;
use std::hint::black_box;

use abi::Arch;
use criterion::{Criterion, criterion_group, criterion_main};
use hostvmm::cpustate::{Destination, MissingFeatures, Policy, Snapshot, Source, translate};

const OLD: &str = include_str!("../src/cpustate/fixtures/kvm-6.1-aarch64.txt");
const NEW: &str = include_str!("../src/cpustate/fixtures/kvm-6.12-aarch64.txt");
const NEW_ARMV7: &str = include_str!("../src/cpustate/fixtures/kvm-6.12-armv7.txt");

/// What of a list the emulator has. The features are those of the list: none is missing, so none is named.
fn emulated(list: &Snapshot) -> Snapshot {
    let ids: BTreeSet<u64> = emulator::Vcpu::reg_ids().into_iter().collect();
    let registers = list.registers.iter().filter(|(id, _)| ids.contains(id)).copied().collect();
    Snapshot { registers, ..Snapshot::default() }
}

fn translating(criterion: &mut Criterion) {
    let [old, new, armv7] = [OLD, NEW, NEW_ARMV7].map(|text| Snapshot::parse(text).expect("a list of KVM's"));
    let (ours, ours_armv7) = (emulated(&new), emulated(&armv7));
    let policy = Policy { features: MissingFeatures::Name, ..Policy::default() };
    let mut group = criterion.benchmark_group("translate one vCPU");
    for (name, arch, from, to) in [
        ("6.12 to 6.12", Arch::Aarch64, &new, &new),
        ("6.1 to 6.12", Arch::Aarch64, &old, &new),
        ("6.12 to the emulator", Arch::Aarch64, &new, &ours),
        ("the emulator to 6.12", Arch::Aarch64, &ours, &new),
        ("ARMv7: 6.12 to the emulator", Arch::Armv7, &armv7, &ours_armv7),
        ("ARMv7: the emulator to 6.12", Arch::Armv7, &ours_armv7, &armv7),
    ] {
        let source = Source { arch, registers: &from.registers, wider: &[] };
        let destination = Destination { registers: &to.registers, writable: &to.writable };
        group.bench_function(name, |bencher| {
            bencher.iter(|| translate(black_box(&source), black_box(&destination), policy).expect("by the rules"));
        });
    }
    group.finish();
}

criterion_group!(benches, translating);
criterion_main!(benches);
