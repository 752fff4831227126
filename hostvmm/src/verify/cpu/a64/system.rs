//! Blocks of system instructions: registers and PSTATE ([`system`]), maintenance ([`maintenance`]), exceptions ([`exception`]).
//!
//! Left out, since the host and the emulator may differ by rule: values of ID registers, counters and event registers (they are
//! read into XZR); EL0's accesses to the PMU, which KVM makes UNDEFINED where the architecture traps them; AArch32 at
//! EL0; HVC and SMC at EL1, which are KVM's; WFI and WFE that would wait; set/way maintenance beside a few, which is
//! slow on KVM. And what QEMU 7.2, below a nested KVM, gets wrong: said where it is avoided.

use emulator::sysreg::enc::*;

use super::asm::{BRK, CLREX, DSB, ERET, ISB, NOP, R31, mrs, msr};
use super::data::{Draw, START, aim};
use super::monitor::field;
use crate::verify::cpu::block::{Block, Group, once_in, one_of, operand};

/// Registers that may be written with any value of these bits and read back: register, bits, and the bits that are always set.
const WRITABLE: [(u16, u64, u64); 22] = [
    (TPIDR_EL0, u64::MAX, 0),
    (TPIDRRO_EL0, u64::MAX, 0),
    (TPIDR_EL1, u64::MAX, 0),
    (CONTEXTIDR_EL1, 0xffff_ffff, 0),
    (ELR_EL1, u64::MAX, 0),
    (SPSR_EL1, 0xf03f_03cf & !(3 << 20 | 0xf << 16), 0),
    (ESR_EL1, 0xffff_ffff, 0),
    (FAR_EL1, u64::MAX, 0),
    (PAR_EL1, 0xff00_0fff_ffff_f001 & !1, 1 << 11),
    (MAIR_EL1, 0xffff_ffff_ffff_ff00, 0xff),
    (CNTKCTL_EL1, 0x3ff, 0),
    (CPACR_EL1, 3 << 20, 0),
    (SP_EL0, u64::MAX, 0),
    (FPCR, 0x07c0_0000, 0),
    (FPSR, 1 << 27 | 0x9f, 0),
    (NZCV, 0xf << 28, 0),
    (DAIF, 0xf << 6, 0),
    (CNTV_CVAL_EL0, u64::MAX, 0),
    (CNTP_CVAL_EL0, u64::MAX, 0),
    (CNTV_CTL_EL0, 2, 0),
    (PMSELR_EL0, 0, 0x1f),
    (PMUSERENR_EL0, 0xf, 0),
];

/// Registers whose value says nothing of the processor.
const READABLE: [u16; 14] = [
    CURRENT_EL,
    SPSEL,
    NZCV,
    DAIF,
    FPCR,
    FPSR,
    SCTLR_EL1,
    TCR_EL1,
    TTBR0_EL1,
    TTBR1_EL1,
    VBAR_EL1,
    AFSR0_EL1,
    ISR_EL1,
    CNTKCTL_EL1,
];

/// Registers of which only the access is compared.
const OPAQUE: [u16; 26] = [
    MIDR_EL1,
    MPIDR_EL1,
    REVIDR_EL1,
    ID_AA64PFR0_EL1,
    ID_AA64DFR0_EL1,
    ID_AA64ISAR0_EL1,
    ID_AA64ISAR1_EL1,
    ID_AA64MMFR0_EL1,
    ID_AA64MMFR1_EL1,
    ID_AA64MMFR2_EL1,
    CCSIDR_EL1,
    CLIDR_EL1,
    AIDR_EL1,
    ACTLR_EL1,
    AMAIR_EL1,
    CTR_EL0,
    DCZID_EL0,
    CNTFRQ_EL0,
    CNTVCT_EL0,
    CNTPCT_EL0,
    CNTV_TVAL_EL0,
    CNTP_TVAL_EL0,
    PMCCNTR_EL0,
    PMCR_EL0,
    OSLSR_EL1,
    ICC_PMR_EL1,
];

/// Registers of EL0's own, whose access EL1 may trap: not the PMU's.
const EL0_SPACE: [u16; 15] = [
    CTR_EL0,
    DCZID_EL0,
    NZCV,
    DAIF,
    FPCR,
    FPSR,
    TPIDR_EL0,
    TPIDRRO_EL0,
    CNTFRQ_EL0,
    CNTVCT_EL0,
    CNTPCT_EL0,
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
    CNTP_CTL_EL0,
    CNTP_CVAL_EL0,
];

const EL1H: u64 = 5;

fn at_el0(registers: &[u64]) -> bool {
    registers[field::PSTATE] & 0xf == 0
}

/// Sets the mode to EL1h or EL1t.
fn make_el1(registers: &mut [u64]) {
    if at_el0(registers) {
        registers[field::PSTATE] |= EL1H;
    }
}

/// Puts a block at EL0.
fn make_el0(registers: &mut [u64]) {
    registers[field::PSTATE] &= !0xf;
}

/// A register from x0 to x29.
fn general(draw: &mut Draw<'_>) -> u32 {
    draw.random.below(30) as u32
}

/// MSR (immediate) of the field `op1:op2`.
fn msr_imm(op1: u32, op2: u32, value: u32) -> u32 {
    0xd500_401f | op1 << 16 | value << 8 | op2 << 5
}

/// Registers and PSTATE.
pub(super) fn system(mut draw: Draw<'_>) -> Block {
    let mut registers = draw.registers();
    let (from, to) = (general(&mut draw), general(&mut draw));
    let words = match draw.random.below(12) {
        0..=3 => {
            make_el1(&mut registers);
            let (register, free, set) = one_of(&mut draw.random, &WRITABLE);
            registers[from as usize] = operand(&mut draw.random) & free | set;
            vec![msr(register, from), ISB, mrs(to, register)]
        }
        4 => {
            make_el1(&mut registers);
            let register = one_of(&mut draw.random, &READABLE);
            vec![mrs(to, register), mrs(if to == 0 { 1 } else { 0 }, SP_EL0)]
        }
        5 => {
            make_el1(&mut registers);
            vec![mrs(R31, one_of(&mut draw.random, &OPAQUE))]
        }
        // A register that EL0 has, or one that it has not.
        6 | 7 => {
            make_el0(&mut registers);
            let register = one_of(&mut draw.random, &EL0_SPACE);
            let writes_value = matches!(register, NZCV | FPCR | FPSR | TPIDR_EL0 | DAIF);
            registers[from as usize] &= match register {
                FPCR => 0x07c0_0000,
                FPSR => 1 << 27 | 0x9f,
                NZCV => 0xf << 28,
                DAIF => 0xf << 6,
                _ => u64::MAX,
            };
            match draw.random.below(3) {
                0 if writes_value => vec![msr(register, from), mrs(to, register)],
                // Timers are left as they are: only a trap is seen.
                0 if !matches!(register, CNTV_CTL_EL0 | CNTV_CVAL_EL0 | CNTP_CTL_EL0 | CNTP_CVAL_EL0) => {
                    vec![msr(register, from)]
                }
                _ if writes_value || register == TPIDRRO_EL0 => vec![mrs(to, register)],
                _ => vec![mrs(R31, register)],
            }
        }
        8 => {
            make_el0(&mut registers);
            let register = one_of(&mut draw.random, &WRITABLE[4..12]).0;
            vec![if once_in(&mut draw.random, 2) { msr(register, from) } else { mrs(to, register) }]
        }
        // Read-only registers.
        9 => {
            make_el1(&mut registers);
            let register =
                one_of(&mut draw.random, &[MIDR_EL1, ID_AA64PFR0_EL1, CURRENT_EL, ISR_EL1, CTR_EL0, CNTVCT_EL0]);
            vec![msr(register, from)]
        }
        10 => {
            if once_in(&mut draw.random, 2) {
                make_el1(&mut registers);
            }
            // QEMU 7.2 has op1 and op2 the wrong way round in the syndrome of MSR (immediate) at EL0.
            if draw.features.emulated {
                registers[field::SCTLR] |= 1 << 9;
            }
            let imm = draw.random.below(16) as u32;
            let word = match draw.random.below(4) {
                0 => msr_imm(3, 6, imm),
                1 => msr_imm(3, 7, imm),
                2 if draw.features.pan => msr_imm(0, 4, imm & 1),
                _ => msr_imm(0, 5, imm & 1),
            };
            vec![word, mrs(to, if at_el0(&registers) { NZCV } else { SPSEL })]
        }
        // The control register, with translation left on.
        _ => {
            make_el1(&mut registers);
            registers[from as usize] = draw.registers()[field::SCTLR];
            let mut words = vec![msr(SCTLR_EL1, from), ISB, mrs(to, SCTLR_EL1)];
            // LDR Xto, [Xn], which may be misaligned.
            let load = 0xf940_0000 | (from ^ 1) << 5 | to;
            aim(&mut draw, &mut registers, load, false);
            words.push(load);
            words
        }
    };
    draw.finish(Group::System, words, registers)
}

/// Maintenance of caches and TLBs, barriers and hints.
pub(super) fn maintenance(mut draw: Draw<'_>) -> Block {
    let mut registers = draw.registers();
    let base = general(&mut draw);
    // By address: always to a page that every level may write, since a fault is for the implementation to choose.
    let by_address = [DC_CVAC, DC_CVAU, DC_CIVAC, IC_IVAU];
    let tlb = [
        TLBI_VMALLE1,
        TLBI_VAE1,
        TLBI_ASIDE1,
        TLBI_VAAE1,
        TLBI_VALE1,
        TLBI_VAALE1,
        TLBI_VMALLE1IS,
        TLBI_VAE1IS,
        TLBI_ASIDE1IS,
        TLBI_VAAE1IS,
        TLBI_VALE1IS,
        TLBI_VAALE1IS,
    ];
    let words = match draw.random.below(12) {
        0..=2 => {
            let pan = 1 << 22;
            registers[field::PSTATE] &= !pan;
            registers[base as usize] = draw.data() + draw.random.below(0x2000);
            let operation = if draw.features.dpb && once_in(&mut draw.random, 5) {
                DC_CVAP
            } else {
                one_of(&mut draw.random, &by_address)
            };
            vec![msr(operation, base)]
        }
        3 | 4 if draw.features.zeroes_64_bytes => {
            // As a store of 64 bytes, wherever that goes.
            let store = 0xf900_0000 | base << 5;
            aim(&mut draw, &mut registers, store, false);
            vec![msr(DC_ZVA, base)]
        }
        5 | 6 => vec![msr(one_of(&mut draw.random, &tlb), base), DSB, ISB],
        7 => vec![msr(one_of(&mut draw.random, &[IC_IALLU, IC_IALLUIS]), R31), DSB, ISB],
        8 => {
            make_el1(&mut registers);
            registers[base as usize] = draw.data() + draw.random.below(0x2000);
            registers[field::PSTATE] &= !(1 << 22);
            vec![msr(DC_IVAC, base)]
        }
        9 => {
            // DSB, DMB and ISB with every option; CLREX.
            let option = draw.random.below(16) as u32 | 1;
            let barrier = one_of(&mut draw.random, &[0xd503_309f, 0xd503_30bf, 0xd503_30df, CLREX]);
            vec![if barrier == CLREX { CLREX } else { barrier | option << 8 }]
        }
        10 => {
            // Hints that wait for nothing; SEV and SEVL; WFI where EL1 traps it.
            make_el0(&mut registers);
            let waits_trap = registers[field::SCTLR] >> 16 & 1 == 0;
            let hint = one_of(&mut draw.random, &[0, 1, 4, 5, 6, 20]);
            let hint = if waits_trap && once_in(&mut draw.random, 2) { 3 } else { hint };
            vec![NOP | hint << 5]
        }
        _ => {
            make_el0(&mut registers);
            let privileged = [DC_IVAC, DC_ISW, DC_CSW, DC_CISW, IC_IALLU, TLBI_VMALLE1, AT_S1E1R];
            vec![msr(one_of(&mut draw.random, &privileged), base)]
        }
    };
    draw.finish(Group::Maintenance, words, registers)
}

/// Instructions that take exceptions on purpose or return from them, and states in which any instruction does.
pub(super) fn exception(mut draw: Draw<'_>) -> Block {
    let mut registers = draw.registers();
    let imm = draw.random.below(0x1_0000) as u32;
    let (a, b) = (general(&mut draw), general(&mut draw));
    let words = match draw.random.below(12) {
        0 | 1 => vec![0xd400_0001 | imm << 5],
        2 => vec![BRK | imm << 5],
        3 => vec![imm],
        4 => {
            make_el0(&mut registers);
            vec![one_of(&mut draw.random, &[0xd400_0002, 0xd400_0003, ERET])]
        }
        // HLT and DCPS1 outside Debug state.
        5 => vec![one_of(&mut draw.random, &[0xd440_0000, 0xd4a0_0001])],
        6 => {
            registers[field::PSTATE] |= 1 << 20;
            vec![NOP]
        }
        7 => {
            registers[field::PC] += 1 + draw.random.below(3);
            vec![NOP]
        }
        8..=10 if a != b => {
            make_el1(&mut registers);
            let modes = [0, 0, 4, 5, 5, 1, 8, 9, 12, 13];
            let illegal = if once_in(&mut draw.random, 6) { 1 << 20 } else { 0 };
            let mode = one_of(&mut draw.random, &modes);
            // An illegal return takes PAN from SPSR_EL1 (SetPSTATEFromPSR), but QEMU 7.2 leaves it.
            let legal = matches!(mode, 0 | 4 | 5);
            let pan =
                if legal && draw.features.pan { draw.random.next_u64() } else { registers[field::PSTATE] } & 1 << 22;
            registers[a as usize] = draw.random.below(16) << 28 | pan | illegal | draw.random.below(16) << 6 | mode;
            let within = START + 4 + draw.random.below(4) as usize;
            let elsewhere = [draw.data(), draw.code(within) + 2, operand(&mut draw.random)];
            registers[b as usize] =
                if once_in(&mut draw.random, 5) { one_of(&mut draw.random, &elsewhere) } else { draw.code(within) };
            if !legal && draw.features.emulated {
                // It strips the tag of ELR_EL1 (AArch64.ExceptionReturn), which QEMU 7.2 leaves as well.
                registers[b as usize] = ((registers[b as usize] << 8) as i64 >> 8) as u64;
            }
            vec![msr(SPSR_EL1, a), msr(ELR_EL1, b), ERET]
        }
        // SIMD&FP that CPACR_EL1 may have closed: FMOV D0, D0; and a stack pointer that is not aligned.
        _ => {
            registers[field::CPACR] = draw.random.below(4) << 20;
            registers[field::SP_EL0] += draw.random.below(16);
            registers[field::SP_EL1] += draw.random.below(16);
            vec![one_of(&mut draw.random, &[0x1e60_4000, 0xf940_03e0, 0xfd40_03e0])]
        }
    };
    draw.finish(Group::Exception, words, registers)
}
