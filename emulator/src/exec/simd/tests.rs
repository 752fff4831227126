//! SIMD instructions through the whole core, assembled by hand; `tests/vectors.rs` replays the recorded bulk.

use crate::exec::testing::{BASE, Bench, DATA, SYNC};

fn bench(code: &[u32]) -> Bench {
    let mut bench = Bench::new(code);
    bench.cpu.sys.cpacr = 3 << 20;
    bench
}

#[test]
fn immediates_expand() {
    // movi v0.16b, #0x5a; movi d1, #0xff00ff00ff00ff00; mvni v2.4s, #0x12, lsl #8; fmov v3.2d, #1.0; fmov d4, #-2.5; fmov s5, #0.5
    let mut bench = bench(&[0x4f02_e740, 0x2f05_e541, 0x6f00_2642, 0x6f03_f603, 0x1e70_9004, 0x1e2c_1005]);
    bench.cpu.v = [u128::MAX; 32];
    bench.step(6);
    let v = &bench.cpu.v;
    assert_eq!(v[0], 0x5a5a_5a5a_5a5a_5a5a_5a5a_5a5a_5a5a_5a5a);
    assert_eq!(v[1], 0xff00_ff00_ff00_ff00);
    assert_eq!(v[2], 0xffff_edff_ffff_edff_ffff_edff_ffff_edff);
    assert_eq!(v[3], u128::from(1.0_f64.to_bits()) << 64 | u128::from(1.0_f64.to_bits()));
    assert_eq!(v[4], (-2.5_f64).to_bits().into());
    assert_eq!(v[5], 0.5_f32.to_bits().into());
}

#[test]
fn elements_move_between_registers() {
    // dup v6.4s, w1; mov v6.s[2], w2; mov w3, v6.s[2]; smov x4, v6.h[1]; fmov v13.d[1], x1
    let mut bench = bench(&[0x4e04_0c26, 0x4e14_1c46, 0x0e14_3cc3, 0x4e06_2cc4, 0x9eaf_002d]);
    (bench.cpu.x[1], bench.cpu.x[2]) = (0xffff_ffff_8765_4321, 0x1122_3344);
    bench.cpu.v[13] = u128::MAX;
    bench.step(5);
    assert_eq!(bench.cpu.v[6], 0x8765_4321_1122_3344_8765_4321_8765_4321);
    assert_eq!(bench.cpu.x[3], 0x1122_3344);
    assert_eq!(bench.cpu.x[4], 0xffff_ffff_ffff_8765);
    assert_eq!(bench.cpu.v[13], 0xffff_ffff_8765_4321_ffff_ffff_ffff_ffff);
}

#[test]
fn structures_interleave() {
    // st1 {v0.16b, v1.16b}, [x0], #32; ld2 {v10.8b, v11.8b}, [x5]
    let mut bench = bench(&[0x4c9f_a000, 0x0c40_80aa]);
    (bench.cpu.v[0], bench.cpu.v[1]) = (0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100, 1);
    (bench.cpu.x[0], bench.cpu.x[5]) = (DATA + 3, DATA + 3);
    bench.step(2);
    assert_eq!(bench.cpu.x[0], DATA + 35);
    assert_eq!(bench.cpu.v[10], 0x0e0c_0a08_0604_0200);
    assert_eq!(bench.cpu.v[11], 0x0f0d_0b09_0705_0301);
}

#[test]
fn an_aborted_structure_store_writes_nothing() {
    // st1 {v0.16b, v1.16b}, [x0], #32 over the end of RAM
    let mut bench = bench(&[0x4c9f_a000]);
    let end = BASE + crate::exec::testing::RAM_BYTES;
    bench.write(end - 8, &[0x77; 8]);
    bench.cpu.x[0] = end - 8;
    bench.step(1);
    assert_eq!(bench.cpu.pc, SYNC);
    assert_eq!(bench.cpu.x[0], end - 8);
    assert_eq!(bench.read_u64(end - 8), 0x7777_7777_7777_7777);
}

#[test]
fn access_traps_and_reserved_encodings_do_not() {
    // add v7.4s, v6.4s, v6.4s with FPEN 0: EC 0x07. mul v0.2d, v0.2d, v0.2d is reserved: EC 0.
    for (word, ec) in [(0x4ea6_84c7, 7), (0x4ee0_9c00, 0)] {
        let mut bench = Bench::new(&[word]);
        bench.step(1);
        assert_eq!(bench.cpu.pc, SYNC);
        assert_eq!(bench.cpu.sys.esr >> 26, ec);
    }
}

#[test]
fn unmodelled_instructions_are_named() {
    // sqrdmlah v0.4s, v1.4s, v2.4s
    let mut bench = bench(&[0x6e82_8420]);
    bench.step(1);
    assert_eq!(bench.cpu.sys.esr >> 26, 0);
    assert_eq!(bench.shared.unimplemented().len(), 1);
}
