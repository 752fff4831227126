//! Blocks of system instructions: registers and the PSRs ([`system`]), exceptions and returns from them ([`exception`]).
//!
//! Left out, since the host and the emulator may differ by rule: values of ID registers and counters (overwritten after they are
//! read); registers of translation, which are the monitor's and are varied by the record instead; HVC and SMC at EL1, which are
//! KVM's; returns to T32; WFI and WFE.

use emulator::a32::Mode;
use emulator::a32::mode::slot;

use super::asm::*;
use super::data::{Draw, MODES, START, aim, mode, psr, set_mode};
use super::monitor::{FP_ENABLED, FP_OPEN, field, spsr};
use crate::verify::cpu::block::{Block, Group, once_in, one_of, operand};

/// Registers that may be written with any value of these bits and read back.
const WRITABLE: [(Register, u64); 10] = [
    ((0, 13, 0, 2), 0xffff_ffff),
    ((0, 13, 0, 3), 0xffff_ffff),
    ((0, 13, 0, 4), 0xffff_ffff),
    ((0, 13, 0, 1), 0xffff_ffff),
    ((0, 5, 0, 0), 0x3eff),
    ((0, 5, 0, 1), 0x160f),
    ((0, 6, 0, 0), 0xffff_ffff),
    ((0, 6, 0, 2), 0xffff_ffff),
    ((0, 14, 1, 0), 0x3ff),
    ((2, 0, 0, 0), 0),
];

/// Registers whose value says nothing of the processor: TTBCR, TTBR0, DACR, ISR.
const READABLE: [Register; 4] = [(0, 2, 0, 2), (0, 2, 0, 0), (0, 3, 0, 0), (0, 12, 1, 0)];

/// Registers of which only the access is compared: MIDR, CTR, MPIDR, ID_PFR0, ID_DFR0, ID_MMFR0, ID_ISAR0, CCSIDR, CLIDR, ACTLR,
/// CNTFRQ.
const OPAQUE: [Register; 11] = [
    (0, 0, 0, 0),
    (0, 0, 0, 1),
    (0, 0, 0, 5),
    (0, 0, 1, 0),
    (0, 0, 1, 2),
    (0, 0, 1, 4),
    (0, 0, 2, 0),
    (1, 0, 0, 0),
    (1, 0, 0, 1),
    (0, 1, 0, 1),
    (0, 14, 0, 0),
];

/// Modes that exist beside User mode.
const PRIVILEGED: [Mode; 5] = [Mode::Supervisor, Mode::System, Mode::Abort, Mode::Undefined, Mode::Fiq];
/// Modes with an SPSR.
const BANKED: [Mode; 4] = [Mode::Supervisor, Mode::Abort, Mode::Undefined, Mode::Fiq];

fn make_el1(draw: &mut Draw, registers: &mut [u64]) {
    if mode(registers) == Mode::User {
        set_mode(registers, one_of(&mut draw.random, &PRIVILEGED));
    }
}

/// Puts a block in a mode with an SPSR.
fn make_banked(draw: &mut Draw, registers: &mut [u64]) {
    set_mode(registers, one_of(&mut draw.random, &BANKED));
}

/// A register from R0 to R7.
fn general(draw: &mut Draw) -> u32 {
    draw.random.below(8) as u32
}

/// Registers and the PSRs.
pub(super) fn system(mut draw: Draw) -> Block {
    let mut registers = draw.registers();
    let (from, to) = (general(&mut draw), general(&mut draw));
    let words = match draw.random.below(14) {
        0..=2 => {
            make_el1(&mut draw, &mut registers);
            let (register, bits) = one_of(&mut draw.random, &WRITABLE);
            registers[from as usize] &= bits;
            vec![mcr(register, from), ISB, mrc(to, register)]
        }
        3 => {
            make_el1(&mut draw, &mut registers);
            vec![mrc(to, one_of(&mut draw.random, &READABLE))]
        }
        4 => {
            make_el1(&mut draw, &mut registers);
            vec![mrc(to, one_of(&mut draw.random, &OPAQUE)), mov(to, 0)]
        }
        // In User mode: what it has, what it may only read, what it has not.
        5 => {
            set_mode(&mut registers, Mode::User);
            let (register, bits) = one_of(&mut draw.random, &WRITABLE);
            registers[from as usize] &= bits;
            vec![if once_in(&mut draw.random, 2) { mcr(register, from) } else { mrc(to, register) }]
        }
        6 => {
            set_mode(&mut registers, Mode::User);
            vec![mrc(to, one_of(&mut draw.random, &OPAQUE[..9]))]
        }
        // CP15's barriers are User mode's too.
        7 => {
            let barriers = [(0, 7, 5, 4), (0, 7, 10, 4), (0, 7, 10, 5)];
            vec![mcr(one_of(&mut draw.random, &barriers), from)]
        }
        // CPSR: flags in any mode, masks, modes.
        8 | 9 => {
            registers[from as usize] = psr(&mut draw.random);
            let fields = one_of(&mut draw.random, &[1, 8, 9, 15, 4, 12]);
            vec![msr_cpsr(fields, from), mrs_cpsr(to), without_features(to)]
        }
        10 => {
            make_banked(&mut draw, &mut registers);
            registers[from as usize] = psr(&mut draw.random);
            vec![msr_spsr(from), mrs_spsr(to)]
        }
        11 => {
            let masks = 1 + draw.random.below(7) as u32;
            let with_mode = once_in(&mut draw.random, 2);
            let to_mode = if with_mode { 1 << 17 | one_of(&mut draw.random, &MODES).bits() } else { 0 };
            let enables = if once_in(&mut draw.random, 2) { 2 } else { 3 };
            vec![0xf100_0000 | enables << 18 | to_mode | masks << 6]
        }
        12 => {
            // MRS and MSR of a banked register of another mode: r13, r14, SPSR.
            make_el1(&mut draw, &mut registers);
            let own = mode(&registers);
            let others = [(Mode::Supervisor, 0x12), (Mode::Abort, 0x14), (Mode::Undefined, 0x16), (Mode::Irq, 0x10)];
            let others: Vec<u32> =
                others.into_iter().filter(|(other, _)| *other != own).map(|(_, encoding)| encoding).collect();
            let encoding = one_of(&mut draw.random, &others) + draw.random.below(2) as u32;
            let spsr = u32::from(encoding & 1 == 0 && once_in(&mut draw.random, 2));
            registers[from as usize] = if spsr == 1 { psr(&mut draw.random) } else { registers[from as usize] };
            let place = spsr << 22 | (encoding & 15) << 16 | (encoding >> 4) << 8;
            let (read, write) = (0xe100_0200 | place | to << 12, 0xe120_f200 | place | from);
            if once_in(&mut draw.random, 2) { vec![read] } else { vec![write, read] }
        }
        // FPSCR and FPEXC.
        _ => {
            registers[from as usize] = draw.random.next_u64() & (0x1f << 27 | 0x9f);
            if once_in(&mut draw.random, 3) {
                make_el1(&mut draw, &mut registers);
                registers[from as usize] = draw.random.next_u64() & FP_ENABLED;
                vec![vmsr(8, from), vmrs(to, 1)]
            } else {
                vec![vmsr(1, from), vmrs(to, 1), vmrs(15, 1)]
            }
        }
    };
    draw.finish(Group::System, words, registers)
}

/// BIC of what CPSR may hold of other features (PAN, SSBS, DIT): 23:21.
fn without_features(register: u32) -> u32 {
    // #0xe00000 is 0x0e rotated right by 12.
    0xe3c0_0000 | register << 16 | register << 12 | 6 << 8 | 0x0e
}

/// Instructions that take exceptions on purpose or return from them, and states in which any instruction does.
pub(super) fn exception(mut draw: Draw) -> Block {
    let mut registers = draw.registers();
    let imm = draw.random.below(0x1_0000) as u32;
    let words = match draw.random.below(12) {
        0 | 1 => {
            // SVC, on some condition.
            let condition = draw.random.below(15) as u32;
            vec![condition << 28 | 0x0f00_0000 | imm]
        }
        2 => vec![0xe120_0070 | (imm >> 4) << 8 | imm & 15],
        3 => vec![UDF | (imm >> 4) << 8 | imm & 15],
        4 => {
            set_mode(&mut registers, Mode::User);
            // HVC, RFE, MSR of masks, which is ignored.
            vec![one_of(&mut draw.random, &[0xe140_0070, 0xf890_0a00, msr_cpsr(1, 0), cps(Mode::Supervisor.bits())])]
        }
        // SIMD&FP that is closed: VMOV R0, S0; VMOV.I32 D0, #0; VLDR D0, [SP].
        5 | 6 => {
            registers[field::CPACR] = one_of(&mut draw.random, &[0, 5 << 20, FP_OPEN]);
            registers[field::FPEXC] = if once_in(&mut draw.random, 2) { 0 } else { FP_ENABLED };
            vec![one_of(&mut draw.random, &[0xee10_0a10, 0xf280_0010, 0xed9d_0b00, vmrs(0, 1)])]
        }
        // MOVS PC, LR; SUBS PC, LR, #4.
        7 | 8 => {
            make_banked(&mut draw, &mut registers);
            let to = return_address(&mut draw);
            let own = mode(&registers);
            registers[slot(own, 14)] = to;
            registers[spsr(own)] = psr(&mut draw.random);
            if once_in(&mut draw.random, 2) {
                vec![MOVS_PC_LR]
            } else {
                registers[slot(own, 14)] = to + 4;
                vec![0xe25e_f004]
            }
        }
        // LDMIA Rn!, {…, PC}^ and RFEIA Rn!.
        9 | 10 => {
            make_banked(&mut draw, &mut registers);
            let own = mode(&registers);
            let base = general(&mut draw);
            let at = draw.data() + 0x1000 - 8 * draw.random.below(8);
            registers[base as usize] = at;
            registers[spsr(own)] = psr(&mut draw.random);
            let to = return_address(&mut draw) as u32;
            let rfe = once_in(&mut draw.random, 2);
            let write_back = u32::from(once_in(&mut draw.random, 2)) << 21;
            let (word, place, second) = if rfe {
                (0xf890_0a00 | write_back | base << 16, at, Some(psr(&mut draw.random) as u32))
            } else {
                // One register, other than the base, and PC.
                let register = (base + 1) % 8;
                (0xe8d0_8000 | write_back | base << 16 | 1 << register, at + 4, None)
            };
            let offset = |address: u64| address - super::monitor::map::DATA_VA + super::monitor::map::DATA;
            let mut memory = vec![(offset(place), to.to_le_bytes().to_vec())];
            memory.extend(second.map(|word| (offset(place + 4), word.to_le_bytes().to_vec())));
            let mut block = draw.finish(Group::Exception, vec![word], registers);
            block.memory.extend(memory);
            return block;
        }
        // SRS to another mode's stack, or its own.
        _ => {
            make_banked(&mut draw, &mut registers);
            let stack = one_of(&mut draw.random, &BANKED);
            registers[slot(stack, 13)] = draw.data() + 0x1000 + 4 * draw.random.below(64) - 128;
            let addressing = draw.random.below(4) as u32;
            let write_back = u32::from(once_in(&mut draw.random, 2)) << 21;
            vec![0xf84d_0500 | addressing << 23 | write_back | stack.bits()]
        }
    };
    draw.finish(Group::Exception, words, registers)
}

/// Where an exception return goes: behind the block, or rarely somewhere else.
fn return_address(draw: &mut Draw) -> u64 {
    let within = START + 4 + draw.random.below(4) as usize;
    let elsewhere = [draw.data(), draw.code(within), operand(&mut draw.random) & 0x3fff_fffc];
    if once_in(&mut draw.random, 5) { one_of(&mut draw.random, &elsewhere) } else { draw.code(within) }
}

/// Maintenance of caches and TLBs, which has no effect that is compared but the exception that it may take.
pub(super) fn maintenance(mut draw: Draw) -> Block {
    let mut registers = draw.registers();
    let base = general(&mut draw);
    let words = match draw.random.below(4) {
        // By address: to a page that every level may write.
        0 => {
            registers[base as usize] = draw.data() + draw.random.below(0x2000);
            make_el1(&mut draw, &mut registers);
            // DCCMVAC, DCCMVAU, DCCIMVAC, ICIMVAU.
            let operations = [(0, 7, 10, 1), (0, 7, 11, 1), (0, 7, 14, 1), (0, 7, 5, 1)];
            vec![mcr(one_of(&mut draw.random, &operations), base)]
        }
        1 => {
            make_el1(&mut draw, &mut registers);
            // ICIALLUIS, BPIALLIS, ICIALLU, BPIALL, BPIMVA.
            let operations = [(0, 7, 1, 0), (0, 7, 1, 6), (0, 7, 5, 0), (0, 7, 5, 6), (0, 7, 5, 7)];
            vec![mcr(one_of(&mut draw.random, &operations), base), DSB, ISB]
        }
        2 => {
            make_el1(&mut draw, &mut registers);
            let crm = one_of(&mut draw.random, &[3, 7]);
            let operation = one_of(&mut draw.random, &[0, 1, 2, 3, 5, 7]);
            let load = 0xe590_0000 | (base ^ 1) << 16;
            aim(&mut draw, &mut registers, &mut Vec::new(), load, false);
            vec![mcr((0, 8, crm, operation), base), DSB, ISB, load]
        }
        _ => {
            set_mode(&mut registers, Mode::User);
            let privileged = [(0, 7, 5, 0), (0, 7, 14, 1), (0, 8, 7, 0), (0, 7, 8, 0)];
            vec![mcr(one_of(&mut draw.random, &privileged), base)]
        }
    };
    draw.finish(Group::Maintenance, words, registers)
}
