//! Translating one vCPU's state: to the same kernel, to another, and to the registers that the emulator has.

use std::collections::BTreeSet;
use std::hint::black_box;

use abi::Arch;
use criterion::{Criterion, criterion_group, criterion_main};
use hostvmm::cpustate::{Destination, MissingFeatures, Policy, Snapshot, Source, translate};

const OLD: &str = include_str!("../src/cpustate/fixtures/kvm-6.1-aarch64.txt");
const NEW: &str = include_str!("../src/cpustate/fixtures/kvm-6.12-aarch64.txt");

fn translating(criterion: &mut Criterion) {
    let [old, new] = [OLD, NEW].map(|text| Snapshot::parse(text).expect("a list of KVM's"));
    let ids: BTreeSet<u64> = emulator::Vcpu::reg_ids().into_iter().collect();
    let registers = new.registers.iter().filter(|(id, _)| ids.contains(id)).copied().collect();
    let emulated = Snapshot { registers, ..Snapshot::default() };
    let policy = Policy { features: MissingFeatures::Name, ..Policy::default() };
    let mut group = criterion.benchmark_group("translate one vCPU");
    for (name, from, to) in
        [("6.12 to 6.12", &new, &new), ("6.1 to 6.12", &old, &new), ("6.12 to the emulator's", &new, &emulated)]
    {
        let source = Source { arch: Arch::Aarch64, registers: &from.registers, wider: &[] };
        let destination = Destination { registers: &to.registers, writable: &to.writable };
        group.bench_function(name, |bencher| {
            bencher.iter(|| translate(black_box(&source), black_box(&destination), policy).expect("by the rules"));
        });
    }
    group.finish();
}

criterion_group!(benches, translating);
criterion_main!(benches);
