//! Which fault comes first, and what it reports. Found by `hostvmm verify cpu`.

use crate::exec::testing::{BASE, Bench, DATA, RAM_BYTES, SYNC};

/// ESR_EL1 of a data abort from EL1: a store with fault status `code`.
fn store_abort(code: u64) -> u64 {
    0x25 << 26 | 1 << 25 | 1 << 6 | code
}

const ALIGNMENT: u64 = 0x21;
/// Where the flat map ends.
const MAPPED_END: u64 = 4 << 30;

/// A bench about to execute `word` with x1 at `at`.
fn bench(word: u32, at: u64) -> Bench {
    let mut bench = Bench::new(&[word]);
    bench.cpu.sys.cpacr = 3 << 20;
    bench.cpu.x[1] = at;
    bench
}

#[test]
fn misaligned_structures_and_quads_fault_before_they_are_translated() {
    // st2 {v0.h, v1.h}[0], [x1]; st1 {v0.8h}, [x1]; str q0, [x1]; stp q0, q1, [x1]
    for (word, offset) in [(0x0d20_4020, 1), (0x4c00_7420, 1), (0x3d80_0020, 8), (0xad00_0420, 8)] {
        let mut checked = bench(word, MAPPED_END + offset);
        checked.cpu.sys.sctlr |= 2;
        checked.step(1);
        assert_eq!(
            (checked.cpu.sys.esr, checked.cpu.sys.far),
            (store_abort(ALIGNMENT), MAPPED_END + offset),
            "{word:#x}"
        );
        let mut aligned = bench(word, DATA);
        aligned.cpu.sys.sctlr |= 2;
        aligned.step(1);
        assert_eq!(aligned.cpu.pc, BASE + 4, "{word:#x}");
        // A fast path that has been there before must look again.
        aligned.cpu.pc = BASE;
        aligned.cpu.x[1] = DATA + offset;
        aligned.step(1);
        assert_eq!(aligned.cpu.sys.esr, store_abort(ALIGNMENT), "{word:#x}");
    }
}

#[test]
fn a_fault_on_the_second_page_is_reported_at_its_start() {
    let end = BASE + RAM_BYTES;
    // st3 {v0.s, v1.s, v2.s}[0], [x1]; stp q0, q1, [x1]
    for (word, before) in [(0x0d00_a020, 5), (0xad00_0420, 9)] {
        let mut bench = bench(word, end - before);
        bench.step(1);
        assert_eq!((bench.cpu.pc, bench.cpu.sys.far), (SYNC, end), "{word:#x}");
    }
}

#[test]
fn an_abort_of_the_fetch_comes_before_an_illegal_state() {
    let mut bench = Bench::new(&[0xd503_201f]);
    bench.cpu.pstate.il = true;
    bench.cpu.pc = MAPPED_END;
    bench.step(1);
    assert_eq!(bench.cpu.sys.esr >> 26, 0x21);
    bench.cpu.pstate.il = true;
    bench.cpu.pc = BASE;
    bench.step(1);
    assert_eq!(bench.cpu.sys.esr >> 26, 0x0e);
}
