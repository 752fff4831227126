//! The scenario without KVM: two machines of the emulator agree, and a fault planted in one is found where it is.

use abi::Arch;

use super::*;

fn machine(isa: &dyn Isa) -> Executor {
    let mut machine = Executor::new(&executor::config(Accelerator::Emulator, &isa.layout())).unwrap();
    machine.prepare(isa).unwrap();
    machine
}

/// Compares two machines, of which the second does `plant`.
fn compare_with(spec: CpuSpec, plant: Option<fn(&Block, &mut Effect)>) -> CpuReport {
    let isa: Box<dyn Isa> = match spec.arch {
        Arch::Aarch64 => Box::new(A64::of_the_emulator()),
        Arch::Armv7 => Box::new(A32::with(false)),
    };
    let layout = isa.layout();
    let (kvm, mut emulator) = (machine(isa.as_ref()), machine(isa.as_ref()));
    emulator.plant = plant;
    compare(&spec, isa.as_ref(), &mut Pair { kvm, emulator, layout }, &Interrupt::default(), &Progress::hidden())
        .unwrap()
}

const SPEC: CpuSpec = CpuSpec { arch: Arch::Aarch64, seed: 5, first: 0, count: 700, group: None };

#[test]
fn two_machines_that_are_alike_agree_on_every_group() {
    for arch in [Arch::Aarch64, Arch::Armv7] {
        let report = compare_with(CpuSpec { arch, ..SPEC }, None);
        assert!(report.mismatches.is_empty(), "{:?}", report.mismatches);
        assert_eq!(report.groups.iter().map(|entry| entry.blocks).sum::<u64>(), SPEC.count);
        assert!(report.groups.len() > 8, "{:?}", report.groups);
    }
}

#[test]
fn a_wrong_register_is_found_in_its_block_and_shrunk_to_its_instruction() {
    // A CRC32 that sets a bit too many: of x30, which is saved like any other.
    let plant = |block: &Block, effect: &mut Effect| {
        if block.words.iter().any(|word| word & 0x7fe0_e000 == 0x1ac0_4000) {
            effect.registers[30] ^= 1 << 40;
        }
    };
    let report = compare_with(CpuSpec { group: Some(Group::Crc), count: 3, ..SPEC }, Some(plant));
    assert_eq!(report.mismatches.len(), 3);
    let first = &report.mismatches[0];
    assert_eq!((first.pass, first.check.as_str()), (0, "crc x30"));
    assert_eq!(report.groups[0].disagreements, 3);
    let again = compare_with(CpuSpec { group: Some(Group::Crc), first: 2, count: 1, ..SPEC }, Some(plant));
    assert_eq!(again.mismatches, report.mismatches[2..]);
}

#[test]
fn a_wrong_byte_of_a_table_is_found_by_its_address() {
    let plant = |block: &Block, effect: &mut Effect| {
        if block.number == 4 {
            effect.memory[1] ^= 4;
        }
    };
    let report = compare_with(CpuSpec { group: Some(Group::Walk), count: 8, ..SPEC }, Some(plant));
    assert_eq!(report.mismatches.len(), 1);
    assert_eq!(report.mismatches[0].pass, 4);
    assert!(report.mismatches[0].check.starts_with("walk byte 0x4"), "{}", report.mismatches[0].check);
}

#[test]
fn blocks_shrink_to_what_disagrees() {
    let isa = A64::of_the_emulator();
    let layout = isa.layout();
    let mut pair = Pair { kvm: machine(&isa), emulator: machine(&isa), layout };
    let block = (0..).map(|number| isa.block(1, number, Some(Group::Crc))).find(|block| block.words.len() > 3).unwrap();
    let crc = |block: &Block| block.words.iter().filter(|word| **word & 0x7fe0_e000 == 0x1ac0_4000).count();
    let plant = |block: &Block, effect: &mut Effect| {
        if block.words.iter().any(|word| word & 0x7fe0_e000 == 0x1ac0_4000) {
            effect.registers[30] ^= 1;
        }
    };
    pair.emulator.plant = Some(plant);
    let found = pair.disagrees(&isa, &block).unwrap().unwrap();
    let (smallest, _) = shrink::shrink(&mut pair, &isa, &block, found).unwrap().unwrap();
    assert_eq!(crc(&smallest), 1);
    assert_eq!(smallest.words.iter().filter(|word| **word == isa.nop()).count(), smallest.words.len() - 1);
}

#[test]
fn a_wrong_register_of_aarch32_is_found_and_shrunk_to_its_instruction() {
    // CRC32 that sets a bit too many of LR_usr.
    let crc = |word: u32| word & 0x0f90_00f0 == 0x0100_0040;
    let plant: fn(&Block, &mut Effect) = |block, effect| {
        if block.words.iter().any(|word| word & 0x0f90_00f0 == 0x0100_0040) {
            effect.registers[14] ^= 1 << 20;
        }
    };
    let spec = CpuSpec { arch: Arch::Armv7, group: Some(Group::Crc), count: 3, ..SPEC };
    let report = compare_with(spec, Some(plant));
    assert_eq!(report.mismatches.len(), 3);
    assert_eq!((report.mismatches[0].pass, report.mismatches[0].check.as_str()), (0, "crc r14_usr"));
    let isa = A32::with(false);
    let layout = isa.layout();
    let mut pair = Pair { kvm: machine(&isa), emulator: machine(&isa), layout };
    pair.emulator.plant = Some(plant);
    let block = (0..).map(|number| isa.block(1, number, Some(Group::Crc))).find(|block| block.words.len() > 3).unwrap();
    let found = pair.disagrees(&isa, &block).unwrap().unwrap();
    let (smallest, _) = shrink::shrink(&mut pair, &isa, &block, found).unwrap().unwrap();
    assert_eq!(smallest.words.iter().filter(|word| crc(**word)).count(), 1);
    assert_eq!(smallest.words.iter().filter(|word| **word == isa.nop()).count(), smallest.words.len() - 1);
}
