//! Tests of A32 through the whole core, of what a process under the recording oracle cannot do: the program counter as an
//! operand, modes, exceptions, aborts in the middle. Everything else is in `tests/vectors.rs`.

use crate::a32::{Mode, is_modelled};
use crate::cpu::Stop;
use crate::exec::run;
use crate::exec::testing::{BASE, Bench, DATA, RAM_BYTES, VECTORS};

const NOP: u32 = 0xe320_f000;
const UNDEFINED: u64 = VECTORS + 4;
const SUPERVISOR_CALL: u64 = VECTORS + 8;
const PREFETCH_ABORT: u64 = VECTORS + 0xc;
const DATA_ABORT: u64 = VECTORS + 0x10;
/// Where no RAM is, right behind it.
const BEYOND: u64 = BASE + RAM_BYTES;

fn read_u32(bench: &Bench, at: u64) -> u32 {
    bench.read_u64(at) as u32
}

#[test]
fn a_budget_is_kept_to_the_instruction() {
    // add r0, r0, #1 (three times); b .-12
    let mut bench = Bench::a32(&[0xe280_0001, 0xe280_0001, 0xe280_0001, 0xeaff_fffb]);
    for budget in [1, 2, 3, 4, 5, 7, 1000] {
        let before = bench.cpu.retired;
        assert_eq!(run(&mut bench.cpu, budget), Stop::Budget);
        assert_eq!(bench.cpu.retired - before, budget);
    }
    assert_eq!(bench.cpu.x[0], 1022 - 1022 / 4);
    assert_eq!(bench.cpu.pc, BASE + 4 * (1022 % 4));
}

#[test]
fn a_comparison_and_its_branch_are_two_instructions() {
    // subs r0, r0, #1; bne .-4
    let mut bench = Bench::a32(&[0xe250_0001, 0x1aff_fffd]);
    bench.cpu.x[0] = 5;
    bench.step(9);
    assert_eq!((bench.cpu.x[0], bench.cpu.pc), (0, BASE + 4));
    bench.step(1);
    assert_eq!(bench.cpu.pc, BASE + 8);
}

#[test]
fn the_program_counter_reads_as_the_instruction_after_the_next() {
    // mov r0, pc; add r1, pc, r2, lsl #1; str pc, [r3]; ldr r4, [pc, #-16]
    let mut bench = Bench::a32(&[0xe1a0_000f, 0xe08f_1082, 0xe583_f000, 0xe51f_4010]);
    (bench.cpu.x[2], bench.cpu.x[3]) = (0x10, DATA);
    bench.step(4);
    assert_eq!(bench.cpu.x[0], BASE + 8);
    assert_eq!(bench.cpu.x[1], BASE + 12 + 0x20);
    assert_eq!(u64::from(read_u32(&bench, DATA)), BASE + 16);
    assert_eq!(bench.cpu.x[4], 0xe08f_1082, "the literal at {:#x}", BASE + 4);
}

#[test]
fn writes_to_the_program_counter_branch() {
    for (word, set_up) in [
        (0xe1a0_f001_u32, 0_u64), // mov pc, r1
        (0xe12f_ff11, 0),         // bx r1
        (0xe592_f000, 1),         // ldr pc, [r2]
        (0xe8b2_8000, 1),         // ldmia r2!, {pc}
        (0xe081_f003, 0),         // add pc, r1, r3
        (0xe791_f003, 2),         // ldr pc, [r1, r3]
    ] {
        let mut bench = Bench::a32(&[word]);
        let target = BASE + 0x100;
        (bench.cpu.x[1], bench.cpu.x[2], bench.cpu.x[3]) = (target, DATA, 0);
        if set_up != 0 {
            bench.write(DATA, &(target as u32).to_le_bytes());
        }
        if set_up == 2 {
            bench.cpu.x[1] = DATA;
        }
        bench.step(1);
        assert_eq!(bench.cpu.pc, target, "{word:#010x}");
    }
}

#[test]
fn a_conditional_write_to_the_program_counter_that_does_not_happen_goes_on() {
    // movs r0, #0; movne pc, r1; ldmne sp, {r0, pc}; mov r2, #7
    let mut bench = Bench::a32(&[0xe3b0_0000, 0x11a0_f001, 0x189d_8001, 0xe3a0_2007]);
    bench.step(4);
    assert_eq!((bench.cpu.x[2], bench.cpu.pc), (7, BASE + 16));
}

#[test]
fn a_branch_to_t32_is_refused_by_name() {
    let mut bench = Bench::a32(&[NOP, 0xe12f_ff11]); // bx r1
    bench.cpu.x[1] = BASE + 0x101;
    bench.step(2);
    assert_eq!((bench.cpu.pc, bench.cpu.x[14]), (UNDEFINED, BASE + 8));
    assert_eq!(bench.shared.unimplemented(), ["a branch to T32 code"]);
}

#[test]
fn what_is_not_modelled_is_undefined_and_named() {
    let mut bench = Bench::a32(&[0xee30_0a20]); // vadd.f32 s0, s0, s1
    bench.step(1);
    assert_eq!(bench.cpu.pc, UNDEFINED);
    let noted = bench.shared.unimplemented();
    assert_eq!(noted, ["A32 instruction floating-point data processing, such as 0xee300a20"]);
    // A reserved encoding is not worth a line: udf #0.
    let mut bench = Bench::a32(&[0xe7f0_00f0]);
    bench.step(1);
    assert_eq!(bench.cpu.pc, UNDEFINED);
    assert!(bench.shared.unimplemented().is_empty());
}

#[test]
fn calls_enter_their_modes_with_their_return_addresses() {
    // svc #5, in User mode
    let mut bench = Bench::a32(&[NOP, 0xef00_0005]);
    bench.cpu.set_mode(Mode::User);
    bench.step(2);
    assert_eq!((bench.cpu.pc, bench.cpu.mode()), (SUPERVISOR_CALL, Mode::Supervisor));
    assert_eq!(bench.cpu.x[14], BASE + 8);
    assert_eq!(bench.cpu.spsr32().map(|spsr| spsr & 0x1f), Some(Mode::User.bits()));
    // bkpt #0
    let mut bench = Bench::a32(&[0xe120_0070]);
    bench.step(1);
    assert_eq!((bench.cpu.pc, bench.cpu.mode(), bench.cpu.x[14]), (PREFETCH_ABORT, Mode::Abort, BASE + 4));
    // hvc #3: to the host at EL1, UNDEFINED in User mode
    let mut bench = Bench::a32(&[0xe140_0073]);
    assert_eq!(run(&mut bench.cpu, 5), Stop::Hvc(3));
    assert_eq!(bench.cpu.pc, BASE + 4);
    bench.cpu.pc = BASE;
    bench.cpu.set_mode(Mode::User);
    bench.step(1);
    assert_eq!(bench.cpu.pc, UNDEFINED);
}

#[test]
fn exceptions_return_by_subs_ldm_and_rfe() {
    let target = BASE + 0x200;
    // subs pc, lr, #4; ldmia r1!, {r0, pc}^; rfeia r1!
    for word in [0xe25e_f004_u32, 0xe8f1_8001, 0xf8b1_0a00] {
        let mut bench = Bench::a32(&[word]);
        bench.cpu.set_spsr32(Mode::User.bits() | 0x6000_0000);
        bench.cpu.x[14] = target + 4;
        bench.cpu.x[1] = DATA;
        let second = if word >> 28 == 15 { Mode::User.bits() | 0x6000_0000 } else { target as u32 };
        let first = if word >> 28 == 15 { target as u32 } else { 77 };
        bench.write(DATA, &first.to_le_bytes());
        bench.write(DATA + 4, &second.to_le_bytes());
        // Interrupts are unmasked on the way: the run loop looks up.
        assert_eq!(run(&mut bench.cpu, 1), Stop::Attention, "{word:#010x}");
        assert_eq!((bench.cpu.pc, bench.cpu.mode(), bench.cpu.pstate.nzcv), (target, Mode::User, 6), "{word:#010x}");
        if word == 0xe8f1_8001 {
            assert_eq!((bench.cpu.x[0], bench.cpu.x[1]), (77, DATA + 8));
        }
    }
    // In System mode there is nothing to return to.
    let mut bench = Bench::a32(&[0xe25e_f004]);
    bench.cpu.set_mode(Mode::System);
    bench.step(1);
    assert_eq!(bench.cpu.pc, UNDEFINED);
}

#[test]
fn srs_stores_the_return_state_on_another_modes_stack() {
    let mut bench = Bench::a32(&[0xf96d_0513]); // srsdb sp!, #19
    bench.cpu.x[13] = DATA + 16;
    bench.cpu.set_mode(Mode::Irq);
    bench.cpu.x[14] = 0x1234_5678;
    bench.cpu.set_spsr32(0x6000_0010);
    bench.step(1);
    assert_eq!(bench.read_u64(DATA + 8), 0x6000_0010_1234_5678);
    assert_eq!(u64::from(bench.cpu.banked(Mode::Supervisor, 13)), DATA + 8);
}

#[test]
fn user_registers_are_loaded_and_stored_from_other_modes() {
    // stmia r0, {r13, r14}^; ldmib r0, {r13, r14}^
    let mut bench = Bench::a32(&[0xe8c0_6000, 0xe9d0_6000]);
    bench.cpu.set_banked(Mode::User, 13, 0x1111);
    bench.cpu.set_banked(Mode::User, 14, 0x2222);
    (bench.cpu.x[0], bench.cpu.x[13], bench.cpu.x[14]) = (DATA, 0xd, 0xe);
    bench.step(1);
    assert_eq!(bench.read_u64(DATA), 0x2222_0000_1111);
    bench.write(DATA + 8, &0x3333_u32.to_le_bytes());
    bench.step(1);
    assert_eq!((bench.cpu.banked(Mode::User, 13), bench.cpu.banked(Mode::User, 14)), (0x2222, 0x3333));
    assert_eq!((bench.cpu.x[13], bench.cpu.x[14]), (0xd, 0xe));
}

#[test]
fn banked_registers_are_moved_by_mrs_and_msr() {
    // mrs r0, sp_usr; msr lr_irq, r1; mrs r2, lr_irq; mrs r3, spsr_irq
    let mut bench = Bench::a32(&[0xe105_0200, 0xe120_f301, 0xe100_2300, 0xe140_3300]);
    bench.cpu.set_banked(Mode::User, 13, 0x1111);
    bench.cpu.set_banked_spsr(Mode::Irq, 0x1f);
    bench.cpu.x[1] = 0x4444;
    bench.step(4);
    assert_eq!((bench.cpu.x[0], bench.cpu.x[2], bench.cpu.x[3]), (0x1111, 0x4444, 0x1f));
    assert_eq!(bench.cpu.banked(Mode::Irq, 14), 0x4444);
    // A mode's own registers are not for MRS (banked): mrs r0, lr_svc
    let mut bench = Bench::a32(&[0xe102_0300]);
    bench.step(1);
    assert_eq!(bench.cpu.pc, UNDEFINED);
}

#[test]
fn cps_changes_mode_and_masks_and_does_nothing_in_user_mode() {
    // cpsid if, #18 (Irq); cpsie i
    let mut bench = Bench::a32(&[0xf10e_00d2, 0xf108_0080]);
    bench.cpu.pstate.daif = 0;
    bench.step(1);
    assert_eq!((bench.cpu.mode(), bench.cpu.cpsr() & 0x1c0), (Mode::Irq, 0xc0));
    assert_eq!(run(&mut bench.cpu, 1), Stop::Attention);
    assert_eq!(bench.cpu.cpsr() & 0x1c0, 0x40);
    let mut bench = Bench::a32(&[0xf10e_00d2]);
    bench.cpu.pstate.daif = 0;
    bench.cpu.set_mode(Mode::User);
    bench.step(1);
    assert_eq!((bench.cpu.mode(), bench.cpu.cpsr() & 0x1c0, bench.cpu.pc), (Mode::User, 0, BASE + 4));
}

#[test]
fn an_abort_in_the_middle_of_a_block_leaves_everything_alone() {
    let start = BEYOND - 8;
    // ldmia r4!, {r0-r3}; stmia r4!, {r0-r3}; vldmia r4!, {d0, d1}; vst1.8 {d0, d1}, [r4]!
    for word in [0xe8b4_000f_u32, 0xe8a4_000f, 0xecb4_0b04, 0xf404_0a0d] {
        let mut bench = Bench::a32(&[word]);
        bench.cpu.sys.cpacr = 0xf << 20;
        bench.cpu.sys.fpexc = 1 << 30;
        bench.write(start, &[0xaa; 8]);
        for register in 0..4 {
            bench.cpu.x[register] = register as u64;
        }
        bench.cpu.x[4] = start;
        bench.step(1);
        assert_eq!((bench.cpu.pc, bench.cpu.x[14]), (DATA_ABORT, BASE + 8), "{word:#010x}");
        assert_eq!(bench.cpu.x[..5], [0, 1, 2, 3, start], "{word:#010x}");
        assert_eq!(bench.cpu.v[0], 0);
        assert_eq!(bench.read_u64(start), 0xaaaa_aaaa_aaaa_aaaa, "{word:#010x}");
    }
}

#[test]
fn blocks_cross_pages() {
    // stmia r4, {r0-r3}; ldmia r4, {r5-r8}; strd r0, r1, [r9]; ldrd r10, r11, [r9]
    let mut bench = Bench::a32(&[0xe884_000f, 0xe894_01e0, 0xe1c9_00f0, 0xe1c9_a0d0]);
    for register in 0..4 {
        bench.cpu.x[register] = 0x1111 * (register as u64 + 1);
    }
    bench.cpu.x[4] = DATA + 0x1000 - 8;
    bench.cpu.x[9] = DATA + 0x3000 - 4;
    bench.step(4);
    assert_eq!(bench.cpu.x[5..9], [0x1111, 0x2222, 0x3333, 0x4444]);
    assert_eq!(bench.cpu.x[10..12], [0x1111, 0x2222]);
}

#[test]
fn misaligned_words_are_fine_where_single_and_fault_where_several() {
    // ldr r0, [r4]; then one of ldm, ldrd, vldr, ldrex
    for word in [0xe894_0003_u32, 0xe1c4_00d0, 0xed94_0b00, 0xe194_0f9f] {
        let mut bench = Bench::a32(&[0xe594_0000, word]);
        bench.cpu.sys.cpacr = 0xf << 20;
        bench.cpu.sys.fpexc = 1 << 30;
        bench.write(DATA, &[1, 2, 3, 4, 5]);
        bench.cpu.x[4] = DATA + 1;
        bench.step(1);
        assert_eq!(bench.cpu.x[0], 0x0504_0302);
        bench.step(1);
        assert_eq!(bench.cpu.pc, DATA_ABORT, "{word:#010x}");
        assert_eq!(bench.cpu.sys.far as u32, DATA as u32 + 1);
    }
    // SCTLR.A refuses single ones too.
    let mut bench = Bench::a32(&[0xe594_0000]);
    bench.cpu.sys.sctlr |= 2;
    bench.cpu.x[4] = DATA + 1;
    bench.step(1);
    assert_eq!(bench.cpu.pc, DATA_ABORT);
}

#[test]
fn a_device_answers_single_accesses_only() {
    // str r1, [r4], #4; ldmia r4, {r0, r1}
    let mut bench = Bench::a32(&[0xe484_1004, 0xe894_0003]);
    (bench.cpu.x[1], bench.cpu.x[4]) = (0x55, 0x0900_0000);
    assert_eq!(run(&mut bench.cpu, 10), Stop::Mmio);
    assert_eq!((bench.cpu.mmio.gpa, bench.cpu.mmio.size_bytes, bench.cpu.mmio.value), (0x0900_0000, 4, 0x55));
    assert_eq!((bench.cpu.retired, bench.cpu.x[4], bench.cpu.pc), (0, 0x0900_0000, BASE));
    bench.cpu.mmio.reply = Some(0);
    bench.step(1);
    assert_eq!(bench.cpu.x[4], 0x0900_0004);
    bench.step(1);
    assert_eq!(bench.cpu.pc, DATA_ABORT);
}

#[test]
fn exclusives_notice_another_store() {
    // ldrexd r0, r1, [r4]; strexd r5, r2, r3, [r4]
    let mut bench = Bench::a32(&[0xe1b4_0f9f, 0xe1a4_5f92]);
    (bench.cpu.x[2], bench.cpu.x[3], bench.cpu.x[4]) = (0x22, 0x33, DATA);
    bench.step(2);
    assert_eq!((bench.cpu.x[5], bench.read_u64(DATA)), (0, 0x33_0000_0022));
    bench.cpu.pc = BASE;
    bench.step(1);
    assert_eq!(bench.cpu.x[..2], [0x22, 0x33]);
    bench.write(DATA + 4, &[0x44]);
    bench.step(1);
    assert_eq!((bench.cpu.x[5], bench.read_u64(DATA)), (1, 0x44_0000_0022));
}

#[test]
fn advanced_simd_needs_both_enables() {
    let store = 0xf404_0a8d; // vst1.32 {d0, d1}, [r4]!
    for (cpacr, fpexc, runs) in [(0xf << 20, 1 << 30, true), (0, 1 << 30, false), (0xf << 20, 0, false)] {
        let mut bench = Bench::a32(&[store]);
        (bench.cpu.sys.cpacr, bench.cpu.sys.fpexc) = (cpacr, fpexc);
        bench.cpu.x[4] = DATA;
        bench.cpu.v[0] = 0x1111_2222_3333_4444_5555_6666_7777_8888;
        bench.step(1);
        if runs {
            assert_eq!(bench.cpu.x[4], DATA + 16);
            assert_eq!(bench.read_u64(DATA + 8), 0x1111_2222_3333_4444);
        } else {
            assert_eq!(bench.cpu.pc, UNDEFINED);
        }
    }
}

#[test]
fn stores_mark_the_dirty_log() {
    // stmia r4, {r0, r1}; strd r0, r1, [r5]; vst1.8 {d0}, [r6]
    let mut bench = Bench::a32(&[0xe884_0003, 0xe1c5_00f0, 0xf406_070f]);
    bench.cpu.sys.cpacr = 0xf << 20;
    bench.cpu.sys.fpexc = 1 << 30;
    (bench.cpu.x[4], bench.cpu.x[5], bench.cpu.x[6]) = (DATA + 0xffc, DATA + 0x4000, DATA + 0x8000);
    let mut words = [0];
    bench.shared.dirty.harvest(0, &mut words).expect("slot 0");
    bench.step(3);
    bench.shared.dirty.harvest(0, &mut words).expect("slot 0");
    // Pages from 16: both of the first store, then one each.
    assert_eq!(words[0] >> 16, 1 << 0 | 1 << 1 | 1 << 4 | 1 << 8);
}

#[test]
fn unpredictable_operands_are_not_modelled() {
    for word in [
        0xe591_1000_u32 | 1 << 21, // ldr r1, [r1]!
        0xe8b1_0002,               // ldmia r1!, {r1}
        0xe890_0000,               // ldm of nothing
        0xe1c0_10d0,               // ldrd r1, ...
        0xe184_4f95,               // strex r4, r5, [r4]
        0xe7c0_0f90,               // bfi whose end is below its start
        0xe100_0090,               // swp
        0xf101_0000,               // setend le: UNDEFINED, as SCTLR.SED says
        0xf101_0200,               // setend be
    ] {
        assert!(!is_modelled(word), "{word:#010x}");
    }
}

#[test]
fn no_word_breaks_the_machine() {
    // SplitMix64.
    let mut state = 0x7469_6465_u64;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
    };
    for round in 0..120 {
        let words: Vec<u32> =
            (0..512).map(|_| random() as u32 | if random() & 1 == 0 { 14 << 28 } else { 0 }).collect();
        let mut bench = Bench::a32(&words);
        bench.cpu.sys.cpacr = 0xf << 20;
        bench.cpu.sys.fpexc = 1 << 30;
        let (cpsr, sys) = (bench.cpu.cpsr(), bench.cpu.sys.clone());
        for (index, word) in words.iter().enumerate() {
            bench.cpu.sys = sys.clone();
            bench.cpu.translation_changed();
            bench.cpu.replace_cpsr(cpsr).expect("a mode that exists");
            bench.cpu.set_mode(Mode::ALL[round % Mode::ALL.len()]);
            bench.cpu.pc = BASE + 4 * index as u64;
            for register in 0..15 {
                bench.cpu.x[register] =
                    if random() & 1 == 0 { DATA + (random() & 0xffff) } else { random() & 0xffff_ffff };
            }
            let before = bench.cpu.retired;
            let stop = run(&mut bench.cpu, 1);
            let executed = bench.cpu.retired - before;
            assert_eq!(executed, u64::from(stop != Stop::Mmio), "{word:#010x}: {stop:?}");
            assert!(bench.cpu.x[..15].iter().all(|&value| value >> 32 == 0), "{word:#010x} leaves an upper half");
            assert!(bench.cpu.pc >> 32 <= 1, "{word:#010x} goes to {:#x}", bench.cpu.pc);
        }
    }
}
