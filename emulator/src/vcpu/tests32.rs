//! Whole AArch32 vCPUs: short guest programs under both clocks.

use super::*;
use crate::a32::Mode;
use crate::a32::tests::{RAM, machine};
use crate::ram::testing::HostPages;
use crate::vm::Machine;

const ICOUNT: ClockMode = ClockMode::Icount { ns_per_instruction: 16 };

/// Goes from SVC to USR by an exception return, and takes there an SVC, an undefined instruction, a misaligned load and a forbidden
/// MRC; then reports the SPSR.
#[rustfmt::skip]
const MODES: &[u32] = &[
    0xe28f00f8, // add r0, pc, #248
    0xee0c0f10, // mcr 15, 0, r0, cr12, cr0, {0}
    0xf102001f, // cps #31
    0xe3a0dc01, // mov sp, #256
    0xf1020013, // cps #19
    0xe3a0dc02, // mov sp, #512
    0xe3a00010, // mov r0, #16
    0xe16ff000, // msr SPSR_fsxc, r0
    0xe28fe000, // add lr, pc, #0
    0xe1b0f00e, // movs pc, lr
    0xe1a0400d, // mov r4, sp
    0xef000012, // svc 0x00000012
    0xe7f000f0, // .word 0xe7f000f0
    0xe51450ff, // ldr r5, [r4, #-255]
    0xee115f10, // mrc 15, 0, r5, cr1, cr0, {0}
    0xeafffffe, // b 3c
];

/// The vectors of [`MODES`] and their handlers: SP_svc and the SVC into r6 and r7, undefined instructions counted in r8, DFSR and DFAR into r9
/// and r10.
#[rustfmt::skip]
const VECTORS: &[u32] = &[
    0xeafffffe, // b 100
    0xea000008, // b 12c
    0xea000004, // b 120
    0xeafffffe, // b 10c
    0xea000009, // b 13c
    0xeafffffe, // b 114
    0xeafffffe, // b 118
    0xeafffffe, // b 11c
    0xe1a0600d, // mov r6, sp
    0xe51e7004, // ldr r7, [lr, #-4]
    0xe1b0f00e, // movs pc, lr
    0xe2888001, // add r8, r8, #1
    0xe3580002, // cmp r8, #2
    0x0a000003, // beq 148
    0xe1b0f00e, // movs pc, lr
    0xee159f10, // mrc 15, 0, r9, cr5, cr0, {0}
    0xee16af10, // mrc 15, 0, sl, cr6, cr0, {0}
    0xe25ef004, // subs pc, lr, #4
    0xe14f1000, // mrs r1, SPSR
    0xe3000000, // movw r0, #0
    0xe34c0600, // movt r0, #50688
    0xe1400070, // hvc 0
];

/// Counts loops in r5 until the IRQ handler, at RAM + 0x118, has taken five timer interrupts, then reports CPSR and loops.
#[rustfmt::skip]
const INTERRUPTED: &[u32] = &[
    0xe28f10f8, // add r1, pc, #248
    0xee0c1f10, // mcr 15, 0, r1, cr12, cr0, {0}
    0xe3a01302, // mov r1, #134217728
    0xe3a02002, // mov r2, #2
    0xe5812000, // str r2, [r1]
    0xe3001000, // movw r1, #0
    0xe340180b, // movt r1, #2059
    0xe3a02302, // mov r2, #134217728
    0xe5812100, // str r2, [r1, #256]
    0xe3a020f8, // mov r2, #248
    0xee042f16, // mcr 15, 0, r2, cr4, cr6, {0}
    0xe3a02001, // mov r2, #1
    0xee0c2ffc, // mcr 15, 0, r2, cr12, cr12, {7}
    0xe3a02032, // mov r2, #50
    0xee0e2f13, // mcr 15, 0, r2, cr14, cr3, {0}
    0xe3a02001, // mov r2, #1
    0xee0e2f33, // mcr 15, 0, r2, cr14, cr3, {1}
    0xf57ff06f, // isb sy
    0xf1080080, // cpsie i
    0xe2855001, // add r5, r5, #1
    0xe3560005, // cmp r6, #5
    0x3afffffc, // bcc 4c
    0xe10f1000, // mrs r1, CPSR
    0xe1a02005, // mov r2, r5
    0xe3000000, // movw r0, #0
    0xe34c0600, // movt r0, #50688
    0xe1400070, // hvc 0
];

/// The handler of [`INTERRUPTED`]: sets the timer 100 ticks ahead and counts in r6.
#[rustfmt::skip]
const HANDLER: &[u32] = &[
    0xee1c7f1c, // mrc 15, 0, r7, cr12, cr12, {0}
    0xe3a08064, // mov r8, #100
    0xee0e8f13, // mcr 15, 0, r8, cr14, cr3, {0}
    0xee0c7f3c, // mcr 15, 0, r7, cr12, cr12, {1}
    0xe2866001, // add r6, r6, #1
    0xe25ef004, // subs pc, lr, #4
];

/// vCPU 0 turns vCPU 1 on; both stir the counter into one word at RAM + 0x8_0000; vCPU 0 waits for the other to be off.
#[rustfmt::skip]
const STIR: &[u32] = &[
    0xe3000003, // movw r0, #3
    0xe3480400, // movt r0, #33792
    0xe3a01001, // mov r1, #1
    0xe28f200c, // add r2, pc, #12
    0xe3a0304d, // mov r3, #77
    0xe1400070, // hvc 0
    0xe3a09000, // mov r9, #0
    0xea000000, // b 24
    0xe1a09000, // mov r9, r0
    0xe300a000, // movw sl, #0
    0xe344a008, // movt sl, #16392
    0xe300b1f4, // movw fp, #500
    0xe59ac000, // ldr ip, [sl]
    0xec554f1e, // mrrc 15, 1, r4, r5, cr14
    0xe08cc28c, // add ip, ip, ip, lsl #5
    0xe08cc004, // add ip, ip, r4
    0xe02cc009, // eor ip, ip, r9
    0xe58ac000, // str ip, [sl]
    0xe25bb001, // subs fp, fp, #1
    0x1afffff7, // bne 30
    0xe3590000, // cmp r9, #0
    0x0a000002, // beq 64
    0xe3000002, // movw r0, #2
    0xe3480400, // movt r0, #33792
    0xe1400070, // hvc 0
    0xe3000004, // movw r0, #4
    0xe3480400, // movt r0, #33792
    0xe3a01001, // mov r1, #1
    0xe3a02000, // mov r2, #0
    0xe1400070, // hvc 0
    0xe3500001, // cmp r0, #1
    0x1afffff8, // bne 64
    0xe3000008, // movw r0, #8
    0xe3480400, // movt r0, #33792
    0xe1400070, // hvc 0
    0xeafffffe, // b 8c
];

/// Stores 0x1234 to 0x900_0004 as a halfword, loads the word at 0x900_0008, adds 1, calls 0xc600_0000.
#[rustfmt::skip]
const MMIO: &[u32] = &[
    0xe3a01409, // mov r1, #150994944
    0xe3012234, // movw r2, #4660
    0xe1c120b4, // strh r2, [r1, #4]
    0xe5913008, // ldr r3, [r1, #8]
    0xe2833001, // add r3, r3, #1
    0xe3e04000, // mvn r4, #0
    0xe3000000, // movw r0, #0
    0xe34c0600, // movt r0, #50688
    0xe1400070, // hvc 0
    0xe1a04000, // mov r4, r0
    0xeafffffe, // b 28
];

fn write(machine: &Machine, offset: u64, code: &[u32]) {
    let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    machine.shared().ram.write_bytes(Gpa::new(RAM + offset), &bytes).unwrap();
}

fn start(vcpus: usize, clock: ClockMode, code: &[u32]) -> (Vec<Vcpu>, Arc<Machine>, HostPages) {
    let (machine, ram) = machine(vcpus, clock);
    write(&machine, 0, code);
    let mut list: Vec<_> = (0..vcpus).map(|index| machine.take_vcpu(index).unwrap()).collect();
    list[0].cpu().pc = RAM;
    (list, machine, ram)
}

fn run(vcpu: &mut Vcpu, clock: ClockMode) -> Exit {
    if clock == ClockMode::Wall { vcpu.run() } else { vcpu.run_for(1000) }
}

#[test]
fn exceptions_come_and_go_between_user_and_privileged_modes() {
    for clock in [ClockMode::Wall, ICOUNT] {
        let (mut vcpus, machine, _ram) = start(1, clock, MODES);
        write(&machine, 0x100, VECTORS);
        let exit = run(&mut vcpus[0], clock);
        assert!(matches!(exit, Exit::Hvc { function: 0xc600_0000, args } if args[0] == 0x10), "{exit:?}");
        let cpu = vcpus[0].cpu();
        assert_eq!(cpu.mode(), Mode::Undefined);
        assert_eq!(cpu.x[4], 0x100, "SP_usr, set in SYS");
        assert_eq!(cpu.x[6..=10], [0x200, 0xef00_0012, 2, 0x001, 1], "SP_svc, SVC, two undefined, DFSR, DFAR");
        assert_eq!(cpu.banked(Mode::Abort, 14), RAM as u32 + 0x34 + 8);
        assert_eq!(cpu.banked(Mode::Supervisor, 14), RAM as u32 + 0x30);
        assert_eq!(cpu.x[14], RAM + 0x3c);
    }
}

#[test]
fn interrupts_are_taken_at_the_same_instruction_whatever_the_slices() {
    let loops = |clock: ClockMode, quantum: u64| {
        let (mut vcpus, machine, _ram) = start(1, clock, INTERRUPTED);
        write(&machine, 0x118, HANDLER);
        loop {
            match if clock == ClockMode::Wall { vcpus[0].run() } else { vcpus[0].run_for(quantum) } {
                Exit::Budget => {}
                Exit::Hvc { args, .. } => {
                    assert_eq!(args[0] & 0x1ff, 0x153, "back in SVC with IRQs open");
                    return args[1];
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let expected = loops(ICOUNT, 1_000_000);
    assert!(expected > 50, "{expected}");
    for quantum in [1, 7, 97, 1000] {
        assert_eq!(loops(ICOUNT, quantum), expected, "slices of {quantum}");
    }
    assert_ne!(loops(ClockMode::Wall, 0), 0);
}

#[test]
fn mmio_and_hypercalls_are_answered_in_32_bits() {
    for clock in [ClockMode::Wall, ICOUNT] {
        let (mut vcpus, machine, _ram) = start(1, clock, MMIO);
        let vcpu = &mut vcpus[0];
        let store = Exit::MmioWrite { gpa: Gpa::new(0x900_0004), len_bytes: 2, data: 0x1234 };
        assert_eq!(run(vcpu, clock), store);
        vcpu.complete_mmio(0);
        assert_eq!(run(vcpu, clock), Exit::MmioRead { gpa: Gpa::new(0x900_0008), len_bytes: 4 });
        vcpu.complete_mmio(0xdead_ffff_ffff);
        let exit = run(vcpu, clock);
        assert!(
            matches!(exit, Exit::Hvc { function: 0xc600_0000, args } if args[2] == 0 && args[3] == 0xffff_ffff),
            "the sum wraps at 32 bits: {exit:?}"
        );
        vcpu.complete_hvc([u64::MAX, 1, 2, 3]);
        machine.kick(0);
        assert_eq!(run(vcpu, clock), Exit::Kicked);
        assert_eq!(vcpu.cpu().x[..4], [0xffff_ffff, 1, 2, 3]);
    }
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
fn a_state_saved_in_the_middle_runs_on_elsewhere() {
    let (mut vcpus, machine, _ram) = start(1, ICOUNT, MODES);
    write(&machine, 0x100, VECTORS);
    // Behind the SVC's handler: in USR mode, with LR_svc and SPSR_svc of use no more, R6 and R7 set.
    let steps = 16;
    assert_eq!(vcpus[0].run_for(steps), Exit::Budget);
    let state: Vec<_> = Vcpu::reg_ids().into_iter().map(|id| (id, vcpus[0].get_reg(id).expect("listed"))).collect();
    let (mut others, other, _other_ram) = start(1, ICOUNT, MODES);
    write(&other, 0x100, VECTORS);
    for (id, value) in state {
        others[0].set_reg(id, value).expect("listed");
    }
    assert_eq!(others[0].cpu().mode(), vcpus[0].cpu().mode());
    let ends = [&mut vcpus[0], &mut others[0]].map(|vcpu| {
        let exit = vcpu.run_for(1000);
        let cpu = vcpu.cpu();
        (exit, cpu.x[..15].to_vec(), cpu.cpsr(), cpu.pc, cpu.a32.clone(), cpu.sys.clone())
    });
    assert_eq!(ends[0], ends[1]);
    assert!(matches!(ends[0].0, Exit::Hvc { .. }));
}
