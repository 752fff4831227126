//! Data processing, against values worked out by hand from the pseudocode (DDI 0487 J1) and against wide arithmetic.

use proptest::prelude::*;

use crate::exec::testing::Bench;

const MAX: u64 = u64::MAX;
const MIN: u64 = 1 << 63;

/// Executes `word` with x1, x2, x3 and NZCV; x0 starts as all ones. Returns x0 and NZCV.
fn execute(word: u32, x: [u64; 3], nzcv: u8) -> (u64, u8) {
    let mut bench = Bench::new(&[word]);
    bench.cpu.x[0] = MAX;
    bench.cpu.x[1..4].copy_from_slice(&x);
    bench.cpu.pstate.nzcv = nzcv;
    bench.step(1);
    assert_eq!(bench.cpu.pc, crate::exec::testing::BASE + 4, "{word:#x} took an exception");
    (bench.cpu.x[0], bench.cpu.pstate.nzcv)
}

/// What `word` makes of x1 and x2, flags aside.
fn value(word: u32, x1: u64, x2: u64) -> u64 {
    execute(word, [x1, x2, 0], 0).0
}

#[test]
fn additions_and_subtractions_set_flags() {
    let adds = 0xab02_0020;
    assert_eq!(execute(adds, [MAX, 1, 0], 0), (0, 0b0110));
    assert_eq!(execute(adds, [MIN - 1, 1, 0], 0), (MIN, 0b1001));
    assert_eq!(execute(adds, [MIN, MIN, 0], 0), (0, 0b0111));
    let subs_w = 0x6b02_0020;
    assert_eq!(execute(subs_w, [5, 5, 0], 0), (0, 0b0110));
    assert_eq!(execute(subs_w, [0, 1, 0], 0), (0xffff_ffff, 0b1000));
    assert_eq!(execute(subs_w, [0x8000_0000, 1, 0], 0), (0x7fff_ffff, 0b0011));
    let adcs = 0xba02_0020;
    assert_eq!(execute(adcs, [MAX, 0, 0], 0b0010), (0, 0b0110));
    assert_eq!(execute(adcs, [MAX, MAX, 0], 0b0010), (MAX, 0b1010));
    let sbcs_w = 0x7a02_0020;
    assert_eq!(execute(sbcs_w, [3, 3, 0], 0), (0xffff_ffff, 0b1000));
    assert_eq!(execute(sbcs_w, [3, 3, 0], 0b0010), (0, 0b0110));
    // cmp x1, #1, lsl #12
    assert_eq!(execute(0xf140_043f, [4096, 0, 0], 0), (MAX, 0b0110));
    // adds x0, sp, w2, sxtb #2 with SP at BASE + 0x9000
    assert_eq!(value(0xab22_8be0, 0, 0x1ff), crate::exec::testing::BASE + 0x9000 - 4);
}

#[test]
fn logic_masks_shifts_and_inverts() {
    assert_eq!(execute(0x7201_0020, [0xffff_ffff_8000_0000, 0, 0], 0b0011), (0x8000_0000, 0b1000));
    assert_eq!(execute(0xeae2_1c20, [0xff, 0x7f, 0], 0), (0xff, 0));
    assert_eq!(value(0x4aa2_0c20, 0, 0x8000_0000), 0x0fff_ffff);
    assert_eq!(value(0xaa22_13e0, 0, 1), !0x10);
    assert_eq!(value(0x52bf_ffe0, 0, 0), 0xffff_0000);
    assert_eq!(value(0x12a0_0240, 0, 0), 0xffed_ffff);
    assert_eq!(value(0xf2d7_dde0, 0, 0), 0xffff_beef_ffff_ffff);
}

#[test]
fn bitfields_move_and_extend() {
    assert_eq!(value(0x937c_fc20, 0x9000_0000_0000_0000, 0), !0x6);
    assert_eq!(value(0x1304_0c20, 0xf9, 0), 0x9000_0000);
    assert_eq!(value(0xd340_fc20, MAX, 0), MAX);
    assert_eq!(value(0xb378_3c20, 0x1234, 0), 0xffff_ffff_ff12_34ff);
    assert_eq!(value(0x3304_2c20, 0x0000_0550, 0), 0xffff_ff55);
    assert_eq!(value(0x9340_7c20, 0x8000_0000, 0), 0xffff_ffff_8000_0000);
    assert_eq!(value(0x93c2_3020, 0xabc, 0x1234_5678_9abc_d000), 0xabc1_2345_6789_abcd);
    assert_eq!(value(0x1381_7c20, 0x4000_0001, 0), 0x8000_0002);
}

#[test]
fn conditions_select_and_compare() {
    let csinc_eq = 0x9a82_0420;
    assert_eq!(execute(csinc_eq, [7, 9, 0], 0b0100).0, 7);
    assert_eq!(execute(csinc_eq, [7, MAX, 0], 0).0, 0);
    let csneg_w_lt = 0x5a82_b420;
    assert_eq!(execute(csneg_w_lt, [7, 9, 0], 0b1000).0, 7);
    assert_eq!(execute(csneg_w_lt, [7, 9, 0], 0b1001).0, 0xffff_fff7);
    let csetm_ls = 0xda9f_8020;
    assert_eq!(execute(csetm_ls, [5, 0, 0], 0b0010).0, 5);
    assert_eq!(execute(csetm_ls, [5, 0, 0], 0b0110).0, MAX);
    // ccmp x1, x2, #5, ne; ccmn w1, #31, #10, ge
    assert_eq!(execute(0xfa42_1025, [1, 1, 0], 0).1, 0b0110);
    assert_eq!(execute(0xfa42_1025, [1, 1, 0], 0b0100).1, 5);
    assert_eq!(execute(0x3a5f_a82a, [0xffff_ffe1, 0, 0], 0).1, 0b0110);
    assert_eq!(execute(0x3a5f_a82a, [0xffff_ffe1, 0, 0], 0b1000).1, 10);
}

#[test]
fn every_condition_agrees_with_its_definition() {
    for cond in 0..16_u32 {
        for flags in 0..16_u8 {
            let (n, z, c, v) = (flags & 8 != 0, flags & 4 != 0, flags & 2 != 0, flags & 1 != 0);
            let expected = match cond {
                0 => z,
                1 => !z,
                2 => c,
                3 => !c,
                4 => n,
                5 => !n,
                6 => v,
                7 => !v,
                8 => c && !z,
                9 => !c || z,
                10 => n == v,
                11 => n != v,
                12 => !z && n == v,
                13 => z || n != v,
                _ => true,
            };
            // csel x0, x1, x2, cond
            let (result, _) = execute(0x9a82_0020 | cond << 12, [1, 2, 0], flags);
            assert_eq!(result == 1, expected, "condition {cond}, flags {flags:#06b}");
        }
    }
}

#[test]
fn divisions_by_zero_and_overflow_are_defined() {
    let (sdiv, sdiv_w, udiv) = (0x9ac2_0c20, 0x1ac2_0c20, 0x9ac2_0820);
    assert_eq!(value(sdiv, 7, 0), 0);
    assert_eq!(value(sdiv, MIN, MAX), MIN);
    assert_eq!(value(sdiv, (-7_i64) as u64, 2), (-3_i64) as u64);
    assert_eq!(value(sdiv_w, 0x8000_0000, 0xffff_ffff), 0x8000_0000);
    assert_eq!(value(udiv, MAX, 0), 0);
    assert_eq!(value(udiv, MAX, 2), MAX >> 1);
}

#[test]
fn bits_and_bytes_are_reversed_and_counted() {
    let word = 0x0123_4567_89ab_cdef;
    assert_eq!(value(0xdac0_0420, word, 0), 0x2301_6745_ab89_efcd);
    assert_eq!(value(0xdac0_0820, word, 0), 0x6745_2301_efcd_ab89);
    assert_eq!(value(0x5ac0_0820, word, 0), 0xefcd_ab89);
    assert_eq!(value(0x5ac0_0020, 1, 0), 0x8000_0000);
    assert_eq!(value(0xdac0_1420, MAX, 0), 63);
    assert_eq!(value(0xdac0_1420, 1, 0), 62);
    assert_eq!(value(0x5ac0_1420, 0xf000_0000, 0), 3);
    assert_eq!(value(0x1ac2_2820, 0x8000_0000, 33), 0xc000_0000);
}

/// The check value of both CRCs is over "123456789", with initial value and final inversion of all ones.
#[test]
fn checksums_have_their_published_check_values() {
    let crc = |word: u32, bytes: &[u8]| {
        let step = |crc, &byte: &u8| execute(word, [crc, u64::from(byte), 0], 0).0;
        bytes.iter().fold(0xffff_ffff, step) ^ 0xffff_ffff
    };
    // crc32b, crc32cb w0, w1, w2
    assert_eq!(crc(0x1ac2_4020, b"123456789"), 0xcbf4_3926);
    assert_eq!(crc(0x1ac2_5020, b"123456789"), 0xe306_9283);
    // crc32x takes eight bytes at once.
    let eight = value(0x9ac2_4c20, 0xffff_ffff, u64::from_le_bytes(*b"12345678")) ^ 0xffff_ffff;
    assert_eq!(eight, crc(0x1ac2_4020, b"12345678"));
}

#[test]
fn flags_are_built_from_registers() {
    // rmif x1, #60, #15; setf8 w1; cfinv
    assert_eq!(execute(0xba1e_042f, [0xa << 60, 0, 0], 0).1, 0xa);
    assert_eq!(execute(0x3a00_082d, [0x80, 0, 0], 0b0010).1, 0b1011);
    assert_eq!(execute(0xd500_401f, [0; 3], 0b1001).1, 0b1011);
}

/// `DecodeBitMasks` the slow way: bit by bit.
fn naive_bitmask(n: u32, imms: u32, immr: u32) -> Option<u64> {
    let len = (0..7).rev().find(|&bit| (n << 6 | !imms & 0x3f) >> bit & 1 != 0)?;
    let size = 1_u32 << len;
    let (ones, rotation) = (imms & (size - 1), immr & (size - 1));
    if len == 0 || ones == size - 1 {
        return None;
    }
    Some((0..64).filter(|bit| (bit % size + rotation) % size <= ones).map(|bit| 1_u64 << bit).sum())
}

#[test]
fn every_logical_immediate_is_decoded() {
    for n in 0..2 {
        for imms in 0..64 {
            for immr in 0..64 {
                // orr x0, xzr, #imm
                let word = 0xb200_03e0 | n << 22 | immr << 16 | imms << 10;
                let (op, _) = crate::lower::lower(word, 0);
                let undefined = op.run as usize == crate::exec::trap::undefined as *const () as usize;
                match naive_bitmask(n, imms, immr) {
                    Some(mask) => assert_eq!(op.imm, mask, "{word:#x}"),
                    None => assert!(undefined, "{word:#x} is reserved"),
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn arithmetic_agrees_with_wide_integers(a: u64, b: u64, c: u64, carry: bool) {
        let nzcv = u8::from(carry) << 1;
        let (sum, flags) = execute(0xba02_0020, [a, b, 0], nzcv);
        let wide = u128::from(a) + u128::from(b) + u128::from(carry);
        let signed = i128::from(a as i64) + i128::from(b as i64) + i128::from(carry);
        prop_assert_eq!(sum, wide as u64);
        let expected = u8::from((sum as i64) < 0) << 3
            | u8::from(sum == 0) << 2
            | u8::from(wide >> 64 != 0) << 1
            | u8::from(signed != i128::from(sum as i64));
        prop_assert_eq!(flags, expected);
        prop_assert_eq!(value(0x9bc2_7c20, a, b), ((u128::from(a) * u128::from(b)) >> 64) as u64);
        prop_assert_eq!(value(0x9b42_7c20, a, b), ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
        prop_assert_eq!(execute(0x1b02_0c20, [a, b, c], 0).0, (a as u32).wrapping_mul(b as u32).wrapping_add(c as u32).into());
        let product = i128::from(a as i32) * i128::from(b as i32);
        prop_assert_eq!(execute(0x9b22_8c20, [a, b, c], 0).0, (i128::from(c as i64) - product) as u64);
    }

    /// UBFM, SBFM and BFM over every pair of fields, against the words of the pseudocode: a field moved and extended.
    #[test]
    fn bitfields_agree_with_shifts(value_in: u64, old: u64, r in 0_u32..64, s in 0_u32..64) {
        let (width, at) = if s >= r { (s - r + 1, 0) } else { (s + 1, 64 - r) };
        let from = if s >= r { r } else { 0 };
        let field = u128::from(value_in) >> from & ((1 << width) - 1);
        let sign = field >> (width - 1) & 1;
        let mask = ((1_u128 << width) - 1) << at;
        let fields = r << 16 | s << 10;
        prop_assert_eq!(value(0xd340_0020 | fields, value_in, 0), (field << at) as u64);
        let extended = field.wrapping_sub(sign << width);
        prop_assert_eq!(value(0x9340_0020 | fields, value_in, 0), (extended << at) as u64);
        // bfm x2, x1
        let mut bench = Bench::new(&[0xb340_0022 | fields]);
        (bench.cpu.x[1], bench.cpu.x[2]) = (value_in, old);
        bench.step(1);
        prop_assert_eq!(bench.cpu.x[2], (u128::from(old) & !mask | field << at) as u64);
    }
}

#[test]
fn a_loop_of_one_block_executes_exactly_its_budget() {
    // add x1, x1, #1; add x2, x2, #1; b .-8
    for budget in (1..400).chain([1 << 16]) {
        let mut bench = Bench::new(&[0x9100_0421, 0x9100_0442, 0x17ff_fffe]);
        bench.step(budget);
    }
}
