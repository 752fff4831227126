//! Instruction semantics through the whole core: encodings as words, effects on registers, memory and counts.

use super::testing::{BASE, Bench, DATA, SYNC};
use super::run;
use crate::cpu::Stop;

const NOP: u32 = 0xd503_201f;

#[test]
fn a_budget_is_kept_to_the_instruction() {
    // add x0, x0, #1 (three times); b .-12
    let mut bench = Bench::new(&[0x9100_0400, 0x9100_0400, 0x9100_0400, 0x17ff_fffd]);
    for budget in [1, 2, 3, 4, 5, 7, 1000] {
        let before = bench.cpu.retired;
        assert_eq!(run(&mut bench.cpu, budget), Stop::Budget);
        assert_eq!(bench.cpu.retired - before, budget);
    }
    assert_eq!(bench.cpu.retired, 1022);
    assert_eq!(bench.cpu.x[0], 1022 - 1022 / 4);
    assert_eq!(bench.cpu.pc, BASE + 4 * (1022 % 4));
}

#[test]
fn undefined_words_reach_the_guests_vector() {
    let mut bench = Bench::new(&[NOP, 0x0000_0000]);
    bench.step(2);
    assert_eq!(bench.cpu.pc, SYNC);
    assert_eq!(bench.cpu.sys.elr, BASE + 4);
    assert_eq!(bench.cpu.sys.esr, 1 << 25);
}

#[test]
fn unmodelled_instructions_are_named() {
    // fadd d0, d0, d0 would be SIMD&FP; mops: cpyfp [x0]!, [x1]!, x2!
    let mut bench = Bench::new(&[0x1901_0440]);
    bench.step(1);
    assert_eq!(bench.cpu.pc, SYNC);
    assert_eq!(bench.shared.unimplemented().len(), 1, "{:?}", bench.shared.unimplemented());
}

#[test]
fn an_aborted_store_leaves_its_base_alone() {
    // str x1, [x0], #8 to where no RAM is: an MMIO stop; stp x1, x2, [x0, #16]!: an external abort
    let mut bench = Bench::new(&[0xf800_8401, 0xa981_0801]);
    bench.cpu.x[0] = 0x0900_0000;
    bench.cpu.x[1] = 0x55;
    assert_eq!(run(&mut bench.cpu, 10), Stop::Mmio);
    assert_eq!(bench.cpu.retired, 0);
    assert_eq!(bench.cpu.x[0], 0x0900_0000);
    assert_eq!((bench.cpu.mmio.gpa, bench.cpu.mmio.size_bytes, bench.cpu.mmio.value), (0x0900_0000, 8, 0x55));
    bench.cpu.mmio.reply = Some(0);
    bench.step(1);
    assert_eq!(bench.cpu.x[0], 0x0900_0008);
    bench.step(1);
    assert_eq!(bench.cpu.pc, SYNC);
    assert_eq!(bench.cpu.x[0], 0x0900_0008);
    assert_eq!(bench.cpu.sys.far, 0x0900_0018);
}

#[test]
fn stores_mark_the_dirty_log_once_a_page() {
    // str x1, [x0]; ldr x2, [x0]
    let mut bench = Bench::new(&[0xf900_0001, 0xf940_0002]);
    bench.cpu.x[0] = DATA;
    bench.cpu.x[1] = 0x1122_3344_5566_7788;
    bench.step(2);
    assert_eq!(bench.read_u64(DATA), 0x1122_3344_5566_7788);
    assert_eq!(bench.cpu.x[2], 0x1122_3344_5566_7788);
    assert!(bench.shared.dirty.is_marked(abi::Gpa::new(DATA)));
    assert!(!bench.shared.dirty.is_marked(abi::Gpa::new(DATA + 0x1000)));
}
