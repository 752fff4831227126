//! Loads, stores, exclusives and atomics: values, write-back, page crossings and aborts.

use crate::cpu::{Cpu, Stop};
use crate::exec;
use crate::exec::testing::{BASE, Bench, DATA, SYNC};

/// ESR_EL1 of a data abort from EL1: `write`, fault status `code`.
fn data_abort(write: bool, code: u64) -> u64 {
    0x25 << 26 | 1 << 25 | u64::from(write) << 6 | code
}

const ALIGNMENT: u64 = 0x21;

/// A bench that executes `word` with x1 at `at`, x2 and x3 as given and 16 bytes of memory there.
fn bench(word: u32, at: u64, x2: u64, x3: u64, memory: u128) -> Bench {
    let mut bench = Bench::new(&[word]);
    bench.cpu.sys.cpacr = 3 << 20;
    bench.cpu.x[1] = at;
    (bench.cpu.x[2], bench.cpu.x[3]) = (x2, x3);
    bench.write(at, &memory.to_le_bytes());
    bench
}

#[test]
fn loads_extend_and_write_back() {
    let memory = 0x8877_6655_8483_8281;
    let run = |word: u32, x2: u64| {
        let mut bench = bench(word, DATA, x2, 0, memory);
        bench.step(1);
        (bench.cpu.x[0], bench.cpu.x[1])
    };
    assert_eq!(run(0x39c0_0020, 0), (0xffff_ff81, DATA));
    assert_eq!(run(0xb89f_c420, 0), (0xffff_ffff_8483_8281, DATA - 4));
    assert_eq!(run(0x78a2_d820, 0xdead_0000_0000), (0xffff_ffff_ffff_8281, DATA));
    assert_eq!(run(0xf862_7820, 0), (memory as u64, DATA));
}

#[test]
fn pairs_load_and_store() {
    let mut pair = bench(0x29ff_0c20, DATA, 0, 0, 0);
    pair.write(DATA - 8, &0x1111_2222_3333_4444_u64.to_le_bytes());
    pair.step(1);
    assert_eq!((pair.cpu.x[0], pair.cpu.x[3], pair.cpu.x[1]), (0x3333_4444, 0x1111_2222, DATA - 8));
    let mut signed = bench(0x6940_0c20, DATA, 0, 0, 0x8000_0000_0000_0001);
    signed.step(1);
    assert_eq!((signed.cpu.x[0], signed.cpu.x[3]), (1, 0xffff_ffff_8000_0000));
}

#[test]
fn vectors_load_misaligned_and_in_pairs() {
    let mut one = bench(0x3cc0_1020, DATA, 0, 0, 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
    one.step(1);
    assert_eq!(one.cpu.v[0], 0x000f_0e0d_0c0b_0a09_0807_0605_0403_0201);
    let mut two = bench(0xad41_0420, DATA, 0, 0, 0);
    two.write(DATA + 32, &7_u128.to_le_bytes());
    two.write(DATA + 48, &9_u128.to_le_bytes());
    two.step(1);
    assert_eq!((two.cpu.v[0], two.cpu.v[1]), (7, 9));
}

#[test]
fn a_store_across_pages_marks_both_or_none() {
    // str x2, [x1]
    let mut both = bench(0xf900_0022, DATA + 0xffc, 0x1122_3344_5566_7788, 0, 0);
    both.shared.dirty.start();
    both.step(1);
    assert_eq!(both.read_u64(DATA + 0xff8), 0x5566_7788_0000_0000);
    assert_eq!(both.read_u64(DATA + 0x1000), 0x1122_3344);
    for page in [DATA, DATA + 0x1000] {
        assert!(both.shared.dirty.is_marked(abi::Gpa::new(page)));
    }
    // The second page is beyond RAM.
    let end = BASE + crate::exec::testing::RAM_BYTES;
    let mut none = bench(0xf900_0022, DATA, MARK, 0, 0);
    none.cpu.x[1] = end - 4;
    none.step(1);
    assert_eq!((none.cpu.pc, none.cpu.sys.far), (SYNC, end));
    assert_eq!(none.read_u64(end - 8), 0);
    assert!(!none.shared.dirty.is_marked(abi::Gpa::new(end - 8)));
}

const MARK: u64 = 0x5555_5555_5555_5555;

#[test]
fn misaligned_accesses_fault_where_they_must() {
    // SCTLR_EL1.A: ldr x0, [x1, x2, lsl #3]
    let mut checked = bench(0xf862_7820, DATA + 1, 0, 0, 0);
    checked.cpu.sys.sctlr |= 2;
    checked.step(1);
    assert_eq!((checked.cpu.sys.esr, checked.cpu.sys.far), (data_abort(false, ALIGNMENT), DATA + 1));
    // ldxr, ldadd, casp, stlr: whatever SCTLR_EL1.A.
    for (word, write) in [(0xc85f_7c20, false), (0xf8e2_0020, false), (0x4862_fc24, false), (0x889f_fc22, true)] {
        let mut always = bench(word, DATA + 2, 0, 0, 0);
        always.step(1);
        assert_eq!(always.cpu.sys.esr & !(1 << 6), data_abort(false, ALIGNMENT), "{word:#x}");
        assert!(write || always.cpu.pc == SYNC);
    }
}

#[test]
fn exclusives_succeed_once_and_fail_after_a_change() {
    // ldxr x0, [x1]; stxr w3, x2, [x1]; stxr w3, x2, [x1]
    let mut bench = Bench::new(&[0xc85f_7c20, 0xc803_7c22, 0xc803_7c22]);
    bench.cpu.x[1] = DATA;
    bench.cpu.x[2] = 42;
    bench.step(2);
    assert_eq!((bench.cpu.x[3], bench.read_u64(DATA)), (0, 42));
    bench.step(1);
    assert_eq!(bench.cpu.x[3], 1);
    bench.cpu.pc = BASE;
    bench.step(1);
    bench.write(DATA, &77_u64.to_le_bytes());
    bench.cpu.x[2] = 43;
    bench.step(1);
    assert_eq!((bench.cpu.x[0], bench.cpu.x[3], bench.read_u64(DATA)), (42, 1, 77));
}

#[test]
fn exclusive_pairs_swap_sixteen_bytes() {
    // ldaxp x0, x3, [x1]; stlxp w4, x2, x5, [x1]
    let mut bench = Bench::new(&[0xc87f_8c20, 0xc824_9422]);
    bench.cpu.x[1] = DATA;
    (bench.cpu.x[2], bench.cpu.x[5]) = (1, 2);
    bench.write(DATA, &(4_u128 << 64 | 3).to_le_bytes());
    bench.step(2);
    assert_eq!((bench.cpu.x[0], bench.cpu.x[3], bench.cpu.x[4]), (3, 4, 0));
    assert_eq!((bench.read_u64(DATA), bench.read_u64(DATA + 8)), (1, 2));
}

#[test]
fn atomics_return_the_old_value_and_keep_their_width() {
    let old = 0xffff_ffff_ffff_ff80;
    let run = |word: u32, x2: u64| {
        let mut bench = bench(word, DATA, x2, 0, u128::from(old));
        bench.step(1);
        (bench.cpu.x[0], bench.read_u64(DATA))
    };
    assert_eq!(run(0xf8e2_0020, 0x81), (old, 1));
    // ldsminb, ldumaxh, ldclr (32), swp
    assert_eq!(run(0x3822_5020, 0x7f), (0x80, old));
    assert_eq!(run(0x7822_6020, 0xffff), (0xff80, MAX));
    assert_eq!(run(0xb822_1020, 0xff), (0xffff_ff80, 0xffff_ffff_ffff_ff00));
    assert_eq!(run(0xf822_8020, 5), (old, 5));
}

const MAX: u64 = u64::MAX;

#[test]
fn compare_and_swap_stores_only_what_it_expected() {
    // casal x0, x2, [x1]
    let mut equal = bench(0xc8e0_fc22, DATA, 9, 0, 5);
    equal.cpu.x[0] = 5;
    equal.step(1);
    assert_eq!((equal.cpu.x[0], equal.read_u64(DATA)), (5, 9));
    let mut other = bench(0xc8e0_fc22, DATA, 9, 0, 6);
    other.cpu.x[0] = 5;
    other.step(1);
    assert_eq!((other.cpu.x[0], other.read_u64(DATA)), (6, 6));
    // caspal x2, x3, x4, x5, [x1]; casp w2, w3, w4, w5, [x1]
    let mut pair = bench(0x4862_fc24, DATA, 7, 8, 8 << 64 | 7);
    (pair.cpu.x[4], pair.cpu.x[5]) = (1, 2);
    pair.step(1);
    assert_eq!((pair.cpu.x[2], pair.cpu.x[3]), (7, 8));
    assert_eq!((pair.read_u64(DATA), pair.read_u64(DATA + 8)), (1, 2));
    let mut words = bench(0x0822_7c24, DATA, 7, 8, 8 << 32 | 7);
    (words.cpu.x[4], words.cpu.x[5]) = (1, 2);
    words.step(1);
    assert_eq!(words.read_u64(DATA), 2 << 32 | 1);
}

#[test]
fn a_block_is_zeroed() {
    // dc zva, x1
    let mut zero = bench(0xd50b_7421, DATA + 64, 0, 0, u128::MAX);
    zero.write(DATA + 56, &MAX.to_le_bytes());
    zero.write(DATA + 128, &MAX.to_le_bytes());
    zero.cpu.x[1] = DATA + 67;
    zero.step(1);
    assert_eq!((zero.read_u64(DATA + 56), zero.read_u64(DATA + 64), zero.read_u64(DATA + 128)), (MAX, 0, MAX));
}

#[test]
fn unprivileged_accesses_heed_el0s_permissions() {
    // ldtr x0, [x1]; the flat map is for EL1 only
    let mut bench = bench(0xf840_0820, DATA, 0, 0, 0);
    bench.step(1);
    assert_eq!(bench.cpu.pc, SYNC);
    assert_eq!(bench.cpu.sys.esr, data_abort(false, 0b00_1101));
}

#[test]
fn literals_are_found_relative_to_the_instruction() {
    // ldr x0, .+16
    let mut bench = Bench::new(&[0x5800_0080]);
    bench.write(BASE + 16, &MARK.to_le_bytes());
    bench.step(1);
    assert_eq!(bench.cpu.x[0], MARK);
}

#[test]
fn a_dropped_write_tag_marks_the_page_again() {
    // str x2, [x1]; b .-4
    let mut bench = Bench::new(&[0xf900_0022, 0x17ff_ffff]);
    bench.cpu.x[1] = DATA;
    bench.step(2);
    bench.shared.dirty.start();
    bench.step(2);
    assert!(!bench.shared.dirty.is_marked(abi::Gpa::new(DATA)), "the tag is still valid");
    bench.cpu.tlb.drop_write_tags();
    bench.step(2);
    assert!(bench.shared.dirty.is_marked(abi::Gpa::new(DATA)));
}

#[test]
fn vcpus_in_threads_lose_no_increment() {
    const TURNS: u64 = 50_000;
    // ldxr x0, [x1]; add x0, x0, #1; stxr w3, x0, [x1]; cbnz w3, .-12; add x4, x1, #8; ldadd x2, x5, [x4];
    // subs x6, x6, #1; b.ne .-28; wfi
    let mut bench = Bench::new(&[
        0xc85f_7c20,
        0x9100_0400,
        0xc803_7c20,
        0x35ff_ffa3,
        0x9100_2024,
        0xf822_0085,
        0xf100_04c6,
        0x54ff_ff21,
        0xd503_207f,
    ]);
    bench.cpu.x[1] = DATA;
    (bench.cpu.x[2], bench.cpu.x[6]) = (1, TURNS);
    let mut sibling = bench.sibling();
    let until_done = |cpu: &mut Cpu| while exec::run(cpu, 1000) != Stop::Wfi {};
    std::thread::scope(|scope| {
        scope.spawn(|| until_done(&mut sibling));
        until_done(&mut bench.cpu);
    });
    assert_eq!((bench.read_u64(DATA), bench.read_u64(DATA + 8)), (2 * TURNS, 2 * TURNS));
}
