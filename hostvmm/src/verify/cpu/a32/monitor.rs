//! The program in the guest that runs blocks: [`image`]; where everything lies in the guest: [`map`]; what it loads and saves:
//! [`field`].
//!
//! As on AArch64, but that a block also has the format of its tables: the monitor turns translation off between two blocks, changes
//! TTBCR, TTBR0, TTBR1, MAIR and DACR, and turns it on again. So it lies where it is without translation, in
//! RAM, which TTBR1 maps in both formats. It enters a block by an exception return from IRQ mode, which blocks leave alone,
//! and saves the registers of every mode.

use emulator::a32::Mode;
use emulator::a32::mode::slot;

use super::asm::*;

/// Where things lie. All are offsets in RAM unless they say otherwise.
pub(super) mod map {
    /// Blocks of one run of the monitor.
    pub(in crate::verify::cpu) const SLOTS: u64 = 256;
    /// First-level table of short descriptors of TTBR1.
    pub(in crate::verify::cpu) const UPPER_SHORT: u64 = 0x1_0000;
    /// Address of the current record, address behind the last one: just before the monitor, which loads it relative to PC.
    pub(in crate::verify::cpu) const CONTROL: u64 = 0x1_ff80;
    /// The monitor.
    pub(in crate::verify::cpu) const MONITOR: u64 = 0x2_0000;
    /// First-level table of long descriptors of TTBR1.
    pub(in crate::verify::cpu) const UPPER_LONG: u64 = 0x3_0000;
    /// First-level table of short descriptors of instruction blocks, then the second level.
    pub(in crate::verify::cpu) const LOWER_SHORT: u64 = 0x4_0000;
    /// Second-level table of long descriptors of instruction blocks, then the third level.
    pub(in crate::verify::cpu) const LOWER_LONG: u64 = 0x5_0000;
    /// Records.
    pub(in crate::verify::cpu) const RECORDS: u64 = 0x10_0000;
    /// Bytes of a record: what is loaded, then what was saved.
    pub(in crate::verify::cpu) const RECORD_BYTES: u64 = 0x800;
    /// Offset in a record of what was saved.
    pub(in crate::verify::cpu) const SAVED: u64 = 0x400;
    /// Code of blocks.
    pub(in crate::verify::cpu) const CODE: u64 = 0x20_0000;
    /// Bytes of code of a block; all but the block's are UDF.
    pub(in crate::verify::cpu) const CODE_BYTES: u64 = 0x100;
    /// Data pages of instruction blocks.
    pub(in crate::verify::cpu) const DATA: u64 = 0x80_0000;
    /// Bytes of the data pages of a block.
    pub(in crate::verify::cpu) const DATA_BYTES: u64 = 0x8000;
    /// Tables and data of walks.
    pub(in crate::verify::cpu) const FRAMES: u64 = 0x100_0000;
    /// Bytes of a walk's: 16 KiB of first level, a page each for a second and a third, and data.
    pub(in crate::verify::cpu) const FRAME_BYTES: u64 = 0x1_0000;
    /// Bytes of RAM.
    pub(in crate::verify::cpu) const RAM_BYTES: u64 = FRAMES + SLOTS * FRAME_BYTES;

    /// Guest physical address of RAM, where it is also mapped read-only and executable at both levels.
    pub(in crate::verify::cpu) const RAM: u64 = abi::map::RAM_BASE.raw();
    /// RAM, writable at EL1.
    pub(in crate::verify::cpu) const WRITE: u64 = 0x8000_0000;
    /// Devices.
    pub(in crate::verify::cpu) const DEVICES: u64 = 0xc000_0000;
    /// The data pages, by TTBR0.
    pub(in crate::verify::cpu) const DATA_VA: u64 = 0x1000_0000;
}

/// The words of a record. The first 31 are the general registers by the number that AArch64 gives them.
pub(super) mod field {
    use super::*;

    /// SPSR of SVC, ABT, UND, IRQ and FIQ.
    pub(in crate::verify::cpu) const SPSR: usize = 31;
    /// Where the block starts; LR of the exception afterwards.
    pub(in crate::verify::cpu) const PC: usize = 36;
    /// CPSR of the block; SPSR of the exception afterwards.
    pub(in crate::verify::cpu) const PSR: usize = 37;
    /// Only saved: which of the eight vectors.
    pub(in crate::verify::cpu) const VECTOR: usize = 38;
    /// Only saved: CPSR in the vector.
    pub(in crate::verify::cpu) const HANDLER: usize = 39;
    /// Only loaded: an address whose line is cleaned, for blocks that are fetched from data.
    pub(in crate::verify::cpu) const CLEAN: usize = 40;
    pub(in crate::verify::cpu) const SCTLR: usize = 41;
    pub(in crate::verify::cpu) const TTBCR: usize = 42;
    pub(in crate::verify::cpu) const MAIR0: usize = 43;
    pub(in crate::verify::cpu) const MAIR1: usize = 44;
    pub(in crate::verify::cpu) const DACR: usize = 45;
    /// TTBR0, and its upper half.
    pub(in crate::verify::cpu) const TTBR0: usize = 46;
    pub(in crate::verify::cpu) const TTBR1: usize = 48;
    pub(in crate::verify::cpu) const PAR: usize = 49;
    pub(in crate::verify::cpu) const PAR_HIGH: usize = 50;
    pub(in crate::verify::cpu) const CPACR: usize = 51;
    pub(in crate::verify::cpu) const FPEXC: usize = 52;
    pub(in crate::verify::cpu) const FPSCR: usize = 53;
    pub(in crate::verify::cpu) const CONTEXTIDR: usize = 54;
    pub(in crate::verify::cpu) const DFSR: usize = 55;
    pub(in crate::verify::cpu) const IFSR: usize = 56;
    pub(in crate::verify::cpu) const DFAR: usize = 57;
    pub(in crate::verify::cpu) const IFAR: usize = 58;
    pub(in crate::verify::cpu) const TPIDRURW: usize = 59;
    pub(in crate::verify::cpu) const TPIDRURO: usize = 60;
    pub(in crate::verify::cpu) const CNTKCTL: usize = 61;
    pub(in crate::verify::cpu) const CSSELR: usize = 62;
    /// d0 to d31.
    pub(in crate::verify::cpu) const VECTORS: usize = 64;
    /// Words in all.
    pub(in crate::verify::cpu) const WORDS: usize = 96;

    /// The words that are registers of translation, loaded while it is off.
    pub(super) const REGIME: [(usize, Register, &str); 4] = [
        (TTBCR, (0, 2, 0, 2), "ttbcr"),
        (MAIR0, (0, 10, 2, 0), "mair0"),
        (MAIR1, (0, 10, 2, 1), "mair1"),
        (DACR, (0, 3, 0, 0), "dacr"),
    ];

    /// The words that are other registers of CP15.
    pub(super) const REGISTERS: [(usize, Register, &str); 9] = [
        (CONTEXTIDR, (0, 13, 0, 1), "contextidr"),
        (DFSR, (0, 5, 0, 0), "dfsr"),
        (IFSR, (0, 5, 0, 1), "ifsr"),
        (DFAR, (0, 6, 0, 0), "dfar"),
        (IFAR, (0, 6, 0, 2), "ifar"),
        (TPIDRURW, (0, 13, 0, 2), "tpidrurw"),
        (TPIDRURO, (0, 13, 0, 3), "tpidruro"),
        (CNTKCTL, (0, 14, 1, 0), "cntkctl"),
        (CSSELR, (2, 0, 0, 0), "csselr"),
    ];

    /// What a word of a record is called.
    pub(in crate::verify::cpu) fn name(index: usize) -> String {
        let registers = REGIME.iter().chain(&REGISTERS);
        let known = registers.into_iter().find(|(word, ..)| *word == index).map(|(_, _, name)| *name);
        match index {
            0..8 => format!("r{index}"),
            8..=14 => format!("r{index}_usr"),
            16..=23 => {
                let mode = ["irq", "svc", "abt", "und"][(index - 16) / 2];
                format!("{}_{mode}", if index.is_multiple_of(2) { "lr" } else { "sp" })
            }
            24..31 => format!("r{}_fiq", index - 16),
            SPSR..36 => format!("spsr_{}", ["svc", "abt", "und", "irq", "fiq"][index - SPSR]),
            PC => "lr of the exception".into(),
            PSR => "spsr of the exception".into(),
            VECTOR => "vector".into(),
            HANDLER => "cpsr in the vector".into(),
            SCTLR => "sctlr".into(),
            TTBR0 => "ttbr0".into(),
            PAR => "par".into(),
            PAR_HIGH => "par (high half)".into(),
            CPACR => "cpacr".into(),
            FPEXC => "fpexc".into(),
            FPSCR => "fpscr".into(),
            VECTORS.. => format!("d{}", index - VECTORS),
            _ => known.map_or_else(|| format!("word {index}"), str::to_owned),
        }
    }
}

const SCTLR: Register = (0, 1, 0, 0);
const CPACR: Register = (0, 1, 0, 2);
const TPIDRPRW: Register = (0, 13, 0, 4);
const DCCMVAU: Register = (0, 7, 11, 1);
const ICIALLU: Register = (0, 7, 5, 0);
const TLBIALL: Register = (0, 8, 7, 0);
/// CRm of TTBR0, TTBR1 (opc1 1) and PAR as 64-bit registers.
const WIDE_TTBR: u32 = 2;
const WIDE_PAR: u32 = 7;

/// CPACR: cp10 and cp11 at both levels.
pub(super) const FP_OPEN: u64 = 0xf << 20;
/// FPEXC.EN.
pub(super) const FP_ENABLED: u64 = 1 << 30;
/// SCTLR while translation is off.
const SCTLR_OFF: u64 = emulator::sysreg::id::SCTLR32_RES1 | 1 << 12 | 1 << 16 | 1 << 18;

/// Modes whose R13, R14 and SPSR are their own.
const BANKED: [Mode; 5] = [Mode::Supervisor, Mode::Abort, Mode::Undefined, Mode::Fiq, Mode::Irq];

/// The monitor, to be put at [`map::MONITOR`], and the offset of its entry.
pub(super) fn image() -> (Vec<u32>, u64) {
    const VECTORS: usize = 8;
    const STUB: usize = 5;
    let leave = VECTORS + VECTORS * STUB;
    let mut code: Vec<u32> = (0..VECTORS).map(|vector| b(vector, VECTORS + vector * STUB)).collect();
    for vector in 0..VECTORS {
        let at = code.len();
        code.extend([
            mcr(TPIDRPRW, 0),
            ldr_before(0, map::MONITOR + 4 * (at as u64 + 1) - map::CONTROL),
            str(1, 0, map::SAVED + 8),
            mov(1, vector as u32),
            b(at + 4, leave),
        ]);
    }
    code.extend(save());
    code.extend(constant(1, map::WRITE + map::CONTROL));
    code.extend([add(0, 0, 2, 22), str(0, 1, 0), ldr(2, 1, 8), cmp(0, 2)]);
    let to_next = code.len();
    code.push(NOP);
    code.extend(constant(3, map::DEVICES + abi::map::DOORBELL_BASE.raw()));
    // The exit.
    code.push(str(0, 3, 0));
    let entry = code.len();
    code.extend(constant(1, map::WRITE + map::CONTROL));
    // The host has written new code: clean it to the point of unification, then forget what was fetched.
    code.extend(constant(2, map::WRITE + map::CODE));
    code.extend(constant(3, map::WRITE + map::CODE + map::SLOTS * map::CODE_BYTES));
    let line = code.len();
    code.extend([mcr(DCCMVAU, 2), add(2, 2, 32, 0), cmp(2, 3)]);
    code.push(b_lo(code.len(), line));
    code.extend([DSB, mcr(ICIALLU, 2), DSB, ISB, ldr(0, 1, 0)]);
    code[to_next] = b_lo(to_next, code.len());
    code.extend(load());
    (code, 4 * entry as u64)
}

/// From a block's exception: stores everything to the record at r0. r0 itself is in TPIDRPRW, r1 stored already and now
/// the vector's number.
fn save() -> Vec<u32> {
    let at = |word: usize| map::SAVED + 8 * word as u64;
    let mut code = vec![str(1, 0, at(field::VECTOR)), mrc(1, TPIDRPRW), str(1, 0, at(0))];
    code.extend((2..8).map(|register| str(register, 0, at(register as usize))));
    code.extend([mrs_cpsr(1), str(1, 0, at(field::HANDLER)), mrs_spsr(1), str(1, 0, at(field::PSR))]);
    code.push(str(14, 0, at(field::PC)));
    let general = |mode: Mode, registers: std::ops::Range<u8>| {
        registers.map(move |register| str(register.into(), 0, at(slot(mode, register))))
    };
    code.push(cps(Mode::System.bits()));
    code.extend(general(Mode::System, 8..15));
    for mode in BANKED {
        code.push(cps(mode.bits()));
        code.extend(general(mode, if mode == Mode::Fiq { 8..15 } else { 13..15 }));
        code.extend([mrs_spsr(1), str(1, 0, at(spsr(mode)))]);
    }
    code.push(cps(Mode::Supervisor.bits()));
    let single = [(field::SCTLR, SCTLR), (field::CPACR, CPACR)];
    let named = field::REGIME.iter().chain(&field::REGISTERS).map(|&(word, register, _)| (word, register));
    for (word, register) in single.into_iter().chain(named) {
        code.extend([mrc(1, register), str(1, 0, at(word))]);
    }
    code.extend([mrrc(1, 2, 0, WIDE_PAR), str(1, 0, at(field::PAR)), str(2, 0, at(field::PAR_HIGH))]);
    // The block may have closed SIMD&FP.
    code.extend(constant(1, FP_OPEN));
    code.extend([mcr(CPACR, 1), ISB, vmrs(1, 8), str(1, 0, at(field::FPEXC))]);
    code.extend(constant(1, FP_ENABLED));
    code.extend([vmsr(8, 1), vmrs(1, 1), str(1, 0, at(field::FPSCR))]);
    // ADD R1, R0, #0x600.
    code.extend([add(1, 0, 6, 24), vstm16(1, 0), vstm16(1, 16)]);
    code
}

/// Loads everything from the record at r0 and enters the block.
fn load() -> Vec<u32> {
    let at = |word: usize| 8 * word as u64;
    // No access to memory while translation is off.
    let mut code = Vec::new();
    let regime = [field::TTBCR, field::MAIR0, field::MAIR1, field::DACR];
    code.extend(regime.iter().zip(1..).map(|(&word, register)| ldr(register, 0, at(word))));
    code.extend([ldr(5, 0, at(field::TTBR0)), ldr(6, 0, at(field::TTBR0 + 1)), ldr(7, 0, at(field::TTBR1))]);
    code.extend([ldr(8, 0, at(field::SCTLR)), mov(10, 0)]);
    code.extend(constant(9, SCTLR_OFF));
    code.extend([DSB, mcr(SCTLR, 9), ISB]);
    code.extend(field::REGIME.iter().zip(1..).map(|(&(_, register, _), from)| mcr(register, from)));
    code.extend([mcrr(0, WIDE_TTBR, 5, 6), mcrr(1, WIDE_TTBR, 7, 10), ISB]);
    // Tables of the last block are gone: so must be what was remembered of them.
    code.extend([mcr(TLBIALL, 1), DSB, ISB, mcr(SCTLR, 8), ISB]);
    code.extend([ldr(1, 0, at(field::CLEAN)), mcr(DCCMVAU, 1), DSB, mcr(ICIALLU, 1), DSB, ISB]);
    code.extend(constant(1, FP_OPEN));
    code.extend([mcr(CPACR, 1), ISB]);
    code.extend(constant(1, FP_ENABLED));
    code.extend([vmsr(8, 1), add(1, 0, 2, 24), vldm16(1, 0), vldm16(1, 16)]);
    code.extend([ldr(1, 0, at(field::FPSCR)), vmsr(1, 1), ldr(1, 0, at(field::FPEXC)), vmsr(8, 1)]);
    code.extend([ldr(1, 0, at(field::PAR)), ldr(2, 0, at(field::PAR_HIGH)), mcrr(0, WIDE_PAR, 1, 2)]);
    for (word, register, _) in field::REGISTERS {
        code.extend([ldr(1, 0, at(word)), mcr(register, 1)]);
    }
    code.extend([ldr(1, 0, at(field::CPACR)), mcr(CPACR, 1)]);
    let general = |mode: Mode, registers: std::ops::Range<u8>| {
        registers.map(move |register| ldr(register.into(), 0, at(slot(mode, register))))
    };
    code.push(cps(Mode::System.bits()));
    code.extend(general(Mode::System, 8..15));
    for mode in BANKED {
        code.push(cps(mode.bits()));
        code.extend(general(mode, if mode == Mode::Fiq { 8..15 } else { 13..15 }));
        code.extend([ldr(1, 0, at(spsr(mode))), msr_spsr(1)]);
    }
    // IRQ mode is the last.
    code.extend([ldr(14, 0, at(field::PC)), ldr(1, 0, at(field::PSR)), msr_spsr(1), DSB, ISB, CLREX]);
    code.extend((1..8).map(|register| ldr(register, 0, at(register as usize))));
    code.extend([ldr(0, 0, at(0)), MOVS_PC_LR]);
    code
}

/// The word of the SPSR of `mode`.
pub(super) fn spsr(mode: Mode) -> usize {
    field::SPSR + mode.spsr_index().expect("a mode with an SPSR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fits_where_it_lies() {
        let (code, entry) = image();
        assert!(map::MONITOR + 4 * code.len() as u64 <= map::UPPER_LONG);
        assert!(entry as usize / 4 < code.len());
        const {
            assert!(map::RECORDS + map::SLOTS * map::RECORD_BYTES <= map::CODE);
            assert!(map::CODE + map::SLOTS * map::CODE_BYTES <= map::DATA);
            assert!(map::DATA + map::SLOTS * map::DATA_BYTES <= map::FRAMES);
        }
        assert!(8 * field::WORDS as u64 <= map::SAVED);
        // What the monitor adds to r0.
        assert_eq!(map::RECORD_BYTES, 2 << 10);
        assert_eq!((map::SAVED + 8 * field::VECTORS as u64, 8 * field::VECTORS as u64), (6 << 8, 2 << 8));
        assert!(code.iter().all(|&word| emulator::a32::is_modelled(word) || word == UDF), "the monitor is A32");
    }

    #[test]
    fn every_word_of_a_record_has_one_name() {
        let unnamed = [15, field::CLEAN, field::TTBR0 + 1, field::TTBR1, 63];
        let names: Vec<String> = (0..field::WORDS).filter(|word| !unnamed.contains(word)).map(field::name).collect();
        let mut unlike = names.clone();
        unlike.sort();
        unlike.dedup();
        assert_eq!(unlike.len(), names.len());
        assert!(!names.iter().any(|name| name.starts_with("word")), "{names:?}");
    }
}
