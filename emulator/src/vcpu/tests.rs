//! Whole vCPUs: short guest programs under both clocks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::*;
use crate::ram::testing::HostPages;
use crate::vm::Machine;
use crate::vm::testing::{RAM, machine_with};

const ICOUNT: ClockMode = ClockMode::Icount { ns_per_instruction: 16 };
const BRANCH_TO_SELF: u32 = 0x1400_0000;
const WFI_LOOP: [u32; 2] = [0xd503_207f, 0x17ff_ffff];

/// Sets the virtual timer to 1000 ticks, waits in WFI, then reports INTID and ticks waited by a hypercall.
#[rustfmt::skip]
const TIMER: &[u32] = &[
    0xd2a10001, // mov x1, #134217728
    0x52800042, // mov w2, #2
    0xb9000022, // str w2, [x1]
    0xd2a10161, // mov x1, #134938624
    0x52a10002, // mov w2, #134217728
    0xb9010022, // str w2, [x1, #256]
    0xd2801f02, // mov x2, #248
    0xd5184602, // msr ICC_PMR_EL1, x2
    0xd2800022, // mov x2, #1
    0xd518cce2, // msr ICC_IGRPEN1_EL1, x2
    0xd2807d02, // mov x2, #1000
    0xd51be302, // msr CNTV_TVAL_EL0, x2
    0xd53be043, // mrs x3, CNTVCT_EL0
    0xd2800022, // mov x2, #1
    0xd51be322, // msr CNTV_CTL_EL0, x2
    0xd503207f, // wfi
    0xd53be044, // mrs x4, CNTVCT_EL0
    0xd538cc01, // mrs x1, ICC_IAR1_EL1
    0xcb030082, // sub x2, x4, x3
    0x52b8c000, // mov w0, #-973078528
    0xd4000002, // hvc #0
    0x14000000, // b 0x54
];

/// vCPU 0 turns vCPU 1 on; both stir the counter into one word at RAM + 0x8_0000; vCPU 0 waits for the other to be off.
#[rustfmt::skip]
const STIR: &[u32] = &[
    0x52b88000, // mov w0, #-1006632960
    0x72800060, // movk w0, #3
    0xd2800021, // mov x1, #1
    0x100000a2, // adr x2, #20
    0xd28009a3, // mov x3, #77
    0xd4000002, // hvc #0
    0xd2800009, // mov x9, #0
    0x14000002, // b 0x24
    0xaa0003e9, // mov x9, x0
    0xd2a8010a, // mov x10, #1074266112
    0xd2803e8b, // mov x11, #500
    0xf940014c, // ldr x12, [x10]
    0xd53be04d, // mrs x13, CNTVCT_EL0
    0x8b0c158c, // add x12, x12, x12, lsl #5
    0x8b0d018c, // add x12, x12, x13
    0xca09018c, // eor x12, x12, x9
    0xf900014c, // str x12, [x10]
    0xf100056b, // subs x11, x11, #1
    0x54ffff21, // b.ne 0x2c
    0xb4000089, // cbz x9, 0x5c
    0x52b08000, // mov w0, #-2080374784
    0x72800040, // movk w0, #2
    0xd4000002, // hvc #0
    0x52b88000, // mov w0, #-1006632960
    0x72800080, // movk w0, #4
    0xd2800021, // mov x1, #1
    0xd2800002, // mov x2, #0
    0xd4000002, // hvc #0
    0xf100041f, // cmp x0, #1
    0x54ffff41, // b.ne 0x5c
    0x52b08000, // mov w0, #-2080374784
    0x72800100, // movk w0, #8
    0xd4000002, // hvc #0
    0x14000000, // b 0x84
];

/// vCPU 0 turns vCPU 1 on and sends it SGI 5 2000 times, each answered with SGI 6; both wait in WFI.
#[rustfmt::skip]
const SGI: &[u32] = &[
    0xd53800b4, // mrs x20, MPIDR_EL1
    0x92401e94, // and x20, x20, #0xff
    0xd2a10001, // mov x1, #134217728
    0x52800042, // mov w2, #2
    0xb9000022, // str w2, [x1]
    0xd2a10161, // mov x1, #134938624
    0x8b144421, // add x1, x1, x20, lsl #17
    0x529fffe2, // mov w2, #65535
    0xb9010022, // str w2, [x1, #256]
    0xd2801f02, // mov x2, #248
    0xd5184602, // msr ICC_PMR_EL1, x2
    0xd2800022, // mov x2, #1
    0xd518cce2, // msr ICC_IGRPEN1_EL1, x2
    0xd280fa15, // mov x21, #2000
    0xb50002b4, // cbnz x20, 0x8c
    0x52b88000, // mov w0, #-1006632960
    0x72800060, // movk w0, #3
    0xd2800021, // mov x1, #1
    0xd2a80002, // mov x2, #1073741824
    0xd2800003, // mov x3, #0
    0xd4000002, // hvc #0
    0xd2800042, // mov x2, #2
    0xf2a0a002, // movk x2, #1280, lsl #16
    0xd518cba2, // msr ICC_SGI1R_EL1, x2
    0xd503207f, // wfi
    0xd538cc02, // mrs x2, ICC_IAR1_EL1
    0xf100185f, // cmp x2, #6
    0x54ffffa1, // b.ne 0x60
    0xd518cc22, // msr ICC_EOIR1_EL1, x2
    0xf10006b5, // subs x21, x21, #1
    0x54fffee1, // b.ne 0x54
    0x52b08000, // mov w0, #-2080374784
    0x72800100, // movk w0, #8
    0xd4000002, // hvc #0
    0x14000000, // b 0x88
    0xd503207f, // wfi
    0xd538cc02, // mrs x2, ICC_IAR1_EL1
    0xf100145f, // cmp x2, #5
    0x54ffffa1, // b.ne 0x8c
    0xd518cc22, // msr ICC_EOIR1_EL1, x2
    0xd2800022, // mov x2, #1
    0xf2a0c002, // movk x2, #1536, lsl #16
    0xd518cba2, // msr ICC_SGI1R_EL1, x2
    0x17fffff8, // b 0x8c
];

/// Stores 0x1234 to 0x900_0004 as a halfword, loads the word at 0x900_0008, adds 1, calls 0xc600_0000.
#[rustfmt::skip]
const MMIO: &[u32] = &[
    0xd2a12001, // mov x1, #150994944
    0x52824682, // mov w2, #4660
    0x79000822, // strh w2, [x1, #4]
    0xb9400823, // ldr w3, [x1, #8]
    0x91000463, // add x3, x3, #1
    0x52b8c000, // mov w0, #-973078528
    0xd4000002, // hvc #0
    0xaa0003e4, // mov x4, x0
    0x14000000, // b 0x20
];

/// Counts loops in x5 until the handler at RAM + 0xa80 has taken five timer interrupts, then reports the loops in x2.
#[rustfmt::skip]
const INTERRUPTED: &[u32] = &[
    0x10004001, // adr x1, #2048
    0xd518c001, // msr VBAR_EL1, x1
    0xd2a10001, // mov x1, #134217728
    0x52800042, // mov w2, #2
    0xb9000022, // str w2, [x1]
    0xd2a10161, // mov x1, #134938624
    0x52a10002, // mov w2, #134217728
    0xb9010022, // str w2, [x1, #256]
    0xd2801f02, // mov x2, #248
    0xd5184602, // msr ICC_PMR_EL1, x2
    0xd2800022, // mov x2, #1
    0xd518cce2, // msr ICC_IGRPEN1_EL1, x2
    0xd2800642, // mov x2, #50
    0xd51be302, // msr CNTV_TVAL_EL0, x2
    0xd2800022, // mov x2, #1
    0xd51be322, // msr CNTV_CTL_EL0, x2
    0xd5033fdf, // isb
    0xd50342ff, // msr DAIFClr, #2
    0x910004a5, // add x5, x5, #1
    0xf10014df, // cmp x6, #5
    0x54ffffc3, // b.lo 0x48: by the wall clock, interrupts may follow each other with no turn of the loop between
    0xd53b4221, // mrs x1, DAIF
    0xaa0503e2, // mov x2, x5
    0x52b8c000, // mov w0, #-973078528
    0xd4000002, // hvc #0
];

/// The handler of [`INTERRUPTED`]: sets the timer 100 ticks ahead and counts in x6.
#[rustfmt::skip]
const HANDLER: &[u32] = &[
    0xd538cc07, // mrs x7, ICC_IAR1_EL1
    0xd2800c88, // mov x8, #100
    0xd51be308, // msr CNTV_TVAL_EL0, x8
    0xd518cc27, // msr ICC_EOIR1_EL1, x7
    0x910004c6, // add x6, x6, #1
    0xd69f03e0, // eret
];

/// Stores a rising number to 64 pages from RAM + 0x4_0000, round and round.
#[rustfmt::skip]
const WRITER: &[u32] = &[
    0xd2800002, // mov x2, #0
    0x91000442, // add x2, x2, #1
    0xd2a80081, // mov x1, #1074003968
    0xd2800803, // mov x3, #64
    0xf9000022, // str x2, [x1]
    0x91400421, // add x1, x1, #1, lsl #12 // =4096
    0xf1000463, // subs x3, x3, #1
    0x54ffffa1, // b.ne 0x10
    0x17fffff9, // b 0x4
];

fn load(machine: &Machine, code: &[u32]) {
    let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    machine.shared().ram.write_bytes(Gpa::new(RAM), &bytes).unwrap();
}

fn start(vcpus: usize, clock: ClockMode, code: &[u32]) -> (Vec<Vcpu>, Arc<Machine>, HostPages) {
    let (machine, ram) = machine_with(vcpus, clock);
    load(&machine, code);
    let mut list: Vec<_> = (0..vcpus).map(|index| machine.take_vcpu(index).unwrap()).collect();
    list[0].cpu().pc = RAM;
    (list, machine, ram)
}

fn reported(exit: &Exit) -> (u64, u64) {
    match exit {
        Exit::Hvc { function: 0xc600_0000, args } => (args[0], args[1]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn timer_wakes_wfi_by_the_host_clock() {
    let (mut vcpus, _machine, _ram) = start(1, ClockMode::Wall, TIMER);
    let (intid, ticks) = reported(&vcpus[0].run());
    assert_eq!(intid, 27);
    assert!(ticks >= 1000, "{ticks}");
}

#[test]
fn timer_wakes_wfi_at_the_exact_tick_when_time_is_warped() {
    let (mut vcpus, machine, _ram) = start(1, ICOUNT, TIMER);
    assert_eq!(vcpus[0].run_for(1_000_000), Exit::Idle);
    assert_eq!(vcpus[0].run_for(1_000_000), Exit::Idle, "nothing has changed");
    assert!(machine.warp_to_next_deadline());
    let (intid, ticks) = reported(&vcpus[0].run_for(1_000_000));
    // The program reads the counter one instruction after it set the timer, and one after it woke up.
    assert_eq!((intid, ticks), (27, 1000));
    assert!(!machine.warp_to_next_deadline(), "the timer has fired");
}

#[test]
fn time_is_not_warped_to_what_has_passed_while_a_vcpu_was_not_run() {
    let (mut vcpus, machine, _ram) = start(2, ICOUNT, TIMER);
    assert_eq!(vcpus[0].run_for(1_000_000), Exit::Idle);
    assert!(machine.warp_to_next_deadline());
    assert_eq!(vcpus[1].run_for(1_000_000), Exit::Idle);
    assert!(!machine.warp_to_next_deadline(), "nothing is left to wait for but the first vCPU, which has to be run");
    assert_eq!(reported(&vcpus[0].run_for(1_000_000)), (27, 1000));
}

#[test]
fn interrupts_are_taken_at_the_same_instruction_whatever_the_slices() {
    let loops = |clock: ClockMode, quantum: u64| {
        let (mut vcpus, machine, _ram) = start(1, clock, INTERRUPTED);
        let bytes: Vec<u8> = HANDLER.iter().flat_map(|word| word.to_le_bytes()).collect();
        machine.shared().ram.write_bytes(Gpa::new(RAM + 0xa80), &bytes).unwrap();
        loop {
            match if clock == ClockMode::Wall { vcpus[0].run() } else { vcpus[0].run_for(quantum) } {
                Exit::Budget => {}
                Exit::Hvc { args, .. } => return args[1],
                other => panic!("{other:?}"),
            }
        }
    };
    let expected = loops(ICOUNT, 1_000_000);
    assert!(expected > 100, "{expected}");
    for quantum in [1, 7, 97, 1000] {
        assert_eq!(loops(ICOUNT, quantum), expected, "slices of {quantum}");
    }
    // How many turns the loop makes is a matter of the host's speed; that the interrupts come is not.
    assert_ne!(loops(ClockMode::Wall, 0), 0);
}

#[test]
fn mmio_and_hypercalls_are_answered_and_continued() {
    for clock in [ClockMode::Wall, ICOUNT] {
        let (mut vcpus, machine, _ram) = start(1, clock, MMIO);
        let vcpu = &mut vcpus[0];
        let run = |vcpu: &mut Vcpu| if clock == ICOUNT { vcpu.run_for(1000) } else { vcpu.run() };
        let store = Exit::MmioWrite { gpa: Gpa::new(0x900_0004), len_bytes: 2, data: 0x1234 };
        assert_eq!(run(vcpu), store);
        let unanswered = ErrorReason::Unanswered { what: "MMIO access" };
        assert_eq!(run(vcpu), Exit::Error(VcpuError { vcpu: 0, pc: RAM + 8, reason: unanswered }));
        vcpu.complete_mmio(0);
        assert_eq!(run(vcpu), Exit::MmioRead { gpa: Gpa::new(0x900_0008), len_bytes: 4 });
        vcpu.complete_mmio(0xdead_0000_0041);
        machine.kick(0);
        assert_eq!(run(vcpu), Exit::Kicked);
        assert_eq!(vcpu.cpu().pc, RAM + 16, "the answered load was completed before the kick took effect");
        assert_eq!(vcpu.cpu().x[3], 0x41);
        assert!(matches!(run(vcpu), Exit::Hvc { function: 0xc600_0000, args } if args[2] == 0x42));
        assert!(matches!(run(vcpu), Exit::Error(_)), "the hypercall is unanswered");
        vcpu.complete_hvc([9, 1, 2, 3]);
        machine.kick(0);
        assert_eq!(run(vcpu), Exit::Kicked);
        assert_eq!(vcpu.cpu().x[..4], [9, 1, 2, 3]);
    }
}

#[test]
fn sleeping_vcpus_wake_each_other_without_loss() {
    let (mut vcpus, machine, _ram) = start(2, ClockMode::Wall, SGI);
    let mut second = vcpus.pop().unwrap();
    let thread = thread::spawn(move || second.run());
    assert_eq!(vcpus[0].run(), Exit::SystemOff);
    machine.kick(1);
    assert_eq!(thread.join().unwrap(), Exit::Kicked);
    assert_eq!(vcpus[0].power(), PowerState::Off);
}

#[test]
fn no_kick_is_lost() {
    for code in [&[BRANCH_TO_SELF][..], &WFI_LOOP, &[0]] {
        let (mut vcpus, machine, _ram) = start(1, ClockMode::Wall, code);
        let mut vcpu = vcpus.remove(0);
        machine.kick(0);
        assert_eq!(vcpu.run(), Exit::Kicked, "a kick before the entry");
        let kicks = Arc::new(AtomicU64::new(0));
        let returns = Arc::clone(&kicks);
        const ROUNDS: u64 = 500;
        let thread = thread::spawn(move || {
            for _ in 0..ROUNDS {
                assert_eq!(vcpu.run(), Exit::Kicked);
                returns.fetch_add(1, Ordering::Release);
            }
        });
        for round in 0..ROUNDS {
            machine.kick(0);
            while kicks.load(Ordering::Acquire) == round {
                thread::yield_now();
            }
        }
        thread.join().unwrap();
    }
}

#[test]
fn endless_faults_use_up_the_budget() {
    let (mut vcpus, _machine, _ram) = start(1, ICOUNT, &[]);
    vcpus[0].cpu().pc = 0x1000;
    assert_eq!(vcpus[0].run_for(100_000), Exit::Budget);
    assert_eq!(vcpus[0].retired(), 100_000);
}

#[test]
fn off_vcpu_is_idle_and_wrong_clock_is_an_error() {
    let (mut vcpus, machine, _ram) = start(2, ICOUNT, &[BRANCH_TO_SELF]);
    assert_eq!(vcpus[1].run_for(10), Exit::Idle);
    assert_eq!(vcpus[0].run_for(10), Exit::Budget);
    assert_eq!(vcpus[0].retired(), 10);
    assert_eq!(machine.now_ticks(), 10);
    assert!(matches!(vcpus[0].run(), Exit::Error(VcpuError { reason: ErrorReason::WrongClock { .. }, .. })));
    let (wall, _ram) = machine_with(1, ClockMode::Wall);
    assert!(matches!(wall.take_vcpu(0).unwrap().run_for(1), Exit::Error(_)));
    assert!(wall.take_vcpu(0).is_none(), "taken once");
}

/// Runs [`STIR`] with slices of `quantum` instructions: the word, the time, and what each vCPU has retired.
fn stir(quantum: u64) -> (u64, u64, u64, u64) {
    let (mut vcpus, machine, _ram) = start(2, ICOUNT, STIR);
    for turn in 0.. {
        assert!(turn < 1_000_000, "the program ends");
        match vcpus[turn % 2].run_for(quantum) {
            Exit::SystemOff => break,
            Exit::Budget | Exit::Idle | Exit::CpuOff => {}
            other => panic!("{other:?}"),
        }
    }
    let word = machine.shared().ram.load_u64(Gpa::new(RAM + 0x8_0000)).unwrap();
    (word, machine.now_ticks(), vcpus[0].retired(), vcpus[1].retired())
}

#[test]
fn interleaved_vcpus_repeat_bit_for_bit() {
    let first = stir(97);
    assert_eq!(stir(97), first);
    assert_eq!(first.1, first.2 + first.3, "one instruction is one tick here");
    assert_ne!(stir(61).0, first.0, "another interleaving stirs differently");
}

#[test]
fn copy_by_harvests_of_a_running_vcpu_ends_equal() {
    const PAGES: std::ops::Range<usize> = 64..128;
    let (mut vcpus, machine, _ram) = start(1, ClockMode::Wall, WRITER);
    let mut copy = [0; PAGES.end];
    let mut bitmap = vec![0; machine.dirty().words(0).unwrap()];
    let mut pass = |copy: &mut [u64]| {
        machine.harvest(0, &mut bitmap).unwrap();
        for page in PAGES.filter(|page| bitmap[page / 64] >> (page % 64) & 1 != 0) {
            copy[page] = machine.shared().ram.load_u64(Gpa::new(RAM + page as u64 * 4096)).unwrap();
        }
    };
    machine.start_dirty_log();
    let mut vcpu = vcpus.remove(0);
    let thread = thread::spawn(move || {
        let exit = vcpu.run();
        (vcpu, exit)
    });
    let word = |page: usize| machine.shared().ram.load_u64(Gpa::new(RAM + page as u64 * 4096)).unwrap();
    while word(PAGES.end - 1) == 0 {
        pass(&mut copy);
        thread::yield_now();
    }
    for _ in 0..500 {
        pass(&mut copy);
    }
    machine.kick(0);
    let (_vcpu, exit) = thread.join().unwrap();
    assert_eq!(exit, Exit::Kicked);
    pass(&mut copy);
    for page in PAGES {
        assert_eq!(copy[page], word(page), "page {page}");
    }
}
