//! The program in the guest that runs blocks: [`image`]; where everything lies in the guest: [`map`]; what it loads and saves:
//! [`field`].
//!
//! For every record from *current* to *end* (two words in memory) it loads the registers, enters the block by ERET, and is
//! re-entered by the block's exception. It then stores the registers behind those it loaded, with the number of the vector,
//! and goes on with the next record; after the last it stores to the doorbell. So one exit is made for hundreds of
//! blocks, and what is compared is memory.
//!
//! It lies in the upper half of the address space, which blocks leave alone: the lower half is theirs, with registers
//! and tables of their own. The one register that it takes from them is TPIDR_EL1.

use emulator::sysreg::enc::*;

use super::asm::*;

/// Where things lie. All are offsets in RAM unless they say otherwise.
pub(super) mod map {
    /// Blocks of one run of the monitor.
    pub(in crate::verify::cpu) const SLOTS: u64 = 256;
    /// Table of the upper half: four blocks of 1 GiB.
    pub(in crate::verify::cpu) const UPPER_TABLE: u64 = 0x1_0000;
    /// First table of the lower half of instruction blocks; level 2 and the tables of level 3 follow.
    pub(in crate::verify::cpu) const LOWER_TABLE: u64 = 0x1_1000;
    /// The monitor.
    pub(in crate::verify::cpu) const MONITOR: u64 = 0x2_0000;
    /// Address of the current record, address behind the last one.
    pub(in crate::verify::cpu) const CONTROL: u64 = 0x3_0000;
    /// Records.
    pub(in crate::verify::cpu) const RECORDS: u64 = 0x10_0000;
    /// Bytes of a record: what is loaded, then what was saved.
    pub(in crate::verify::cpu) const RECORD_BYTES: u64 = 0x800;
    /// Offset in a record of what was saved.
    pub(in crate::verify::cpu) const SAVED: u64 = 0x400;
    /// Code of blocks.
    pub(in crate::verify::cpu) const CODE: u64 = 0x20_0000;
    /// Bytes of code of a block; all but the block's are BRK #0.
    pub(in crate::verify::cpu) const CODE_BYTES: u64 = 0x100;
    /// Data pages of instruction blocks.
    pub(in crate::verify::cpu) const DATA: u64 = 0x80_0000;
    /// Bytes of the data pages of a block.
    pub(in crate::verify::cpu) const DATA_BYTES: u64 = 0x8000;
    /// Tables and data of walks.
    pub(in crate::verify::cpu) const FRAMES: u64 = 0x100_0000;
    /// Bytes of a frame: a table of the largest granule, or a page of it.
    pub(in crate::verify::cpu) const FRAME_BYTES: u64 = 0x1_0000;
    /// Frames of a walk: one a level, and one of data.
    pub(in crate::verify::cpu) const FRAMES_EACH: u64 = 5;
    /// Bytes of RAM.
    pub(in crate::verify::cpu) const RAM_BYTES: u64 = 0x100_0000 + SLOTS * FRAMES_EACH * FRAME_BYTES;

    /// Guest physical address of RAM.
    pub(in crate::verify::cpu) const RAM: u64 = abi::map::RAM_BASE.raw();
    /// RAM in the upper half, read-only and executable at EL1.
    pub(in crate::verify::cpu) const RUN: u64 = 0xffff_ff80_0000_0000;
    /// RAM in the upper half, writable at EL1.
    pub(in crate::verify::cpu) const WRITE: u64 = RUN + (1 << 30);
    /// Devices in the upper half.
    pub(in crate::verify::cpu) const DEVICES: u64 = RUN + (2 << 30);
    /// RAM in the upper half, read-only and executable at EL1 and EL0: where blocks run.
    pub(in crate::verify::cpu) const BLOCKS: u64 = RUN + (3 << 30);
    /// The data pages in the lower half.
    pub(in crate::verify::cpu) const DATA_VA: u64 = 0x1000_0000;
}

/// The words of a record.
pub(super) mod field {
    use super::*;

    pub(in crate::verify::cpu) const SP_EL0: usize = 31;
    pub(in crate::verify::cpu) const SP_EL1: usize = 32;
    /// Where the block starts; ELR_EL1 afterwards.
    pub(in crate::verify::cpu) const PC: usize = 33;
    /// PSTATE of the block; SPSR_EL1 afterwards.
    pub(in crate::verify::cpu) const PSTATE: usize = 34;
    pub(in crate::verify::cpu) const FPCR: usize = 35;
    pub(in crate::verify::cpu) const FPSR: usize = 36;
    /// Only saved: which of the sixteen vectors.
    pub(in crate::verify::cpu) const VECTOR: usize = 37;
    /// Only saved.
    pub(in crate::verify::cpu) const ESR: usize = 38;
    /// Only saved.
    pub(in crate::verify::cpu) const FAR: usize = 39;
    pub(in crate::verify::cpu) const SCTLR: usize = 40;
    pub(in crate::verify::cpu) const TCR: usize = 41;
    pub(in crate::verify::cpu) const TTBR0: usize = 42;
    pub(in crate::verify::cpu) const MAIR: usize = 43;
    pub(in crate::verify::cpu) const CPACR: usize = 44;
    pub(in crate::verify::cpu) const PAR: usize = 48;
    /// Only loaded: an address whose line is cleaned, for blocks that are fetched from data.
    pub(in crate::verify::cpu) const CLEAN: usize = 51;
    /// v0 to v31, low half first.
    pub(in crate::verify::cpu) const VECTORS: usize = 64;
    /// Words in all.
    pub(in crate::verify::cpu) const WORDS: usize = 128;

    /// The words that are system registers, loaded and saved.
    pub(in crate::verify::cpu) const REGISTERS: [(usize, u16, &str); 11] = [
        (SCTLR, SCTLR_EL1, "sctlr_el1"),
        (TCR, TCR_EL1, "tcr_el1"),
        (TTBR0, TTBR0_EL1, "ttbr0_el1"),
        (MAIR, MAIR_EL1, "mair_el1"),
        (CPACR, CPACR_EL1, "cpacr_el1"),
        (45, CONTEXTIDR_EL1, "contextidr_el1"),
        (46, TPIDR_EL0, "tpidr_el0"),
        (47, TPIDRRO_EL0, "tpidrro_el0"),
        (PAR, PAR_EL1, "par_el1"),
        (49, CNTKCTL_EL1, "cntkctl_el1"),
        (50, CSSELR_EL1, "csselr_el1"),
    ];

    /// What a word of a record is called.
    pub(in crate::verify::cpu) fn name(index: usize) -> String {
        match index {
            0..31 => format!("x{index}"),
            SP_EL0 => "sp_el0".into(),
            SP_EL1 => "sp_el1".into(),
            PC => "elr_el1".into(),
            PSTATE => "spsr_el1".into(),
            FPCR => "fpcr".into(),
            FPSR => "fpsr".into(),
            VECTOR => "vector".into(),
            ESR => "esr_el1".into(),
            FAR => "far_el1".into(),
            VECTORS.. => {
                let half = if index.is_multiple_of(2) { "low" } else { "high" };
                format!("v{} ({half} half)", (index - VECTORS) / 2)
            }
            _ => REGISTERS
                .iter()
                .find(|(word, ..)| *word == index)
                .map_or_else(|| format!("word {index}"), |(_, _, name)| (*name).to_owned()),
        }
    }
}

/// CPACR_EL1.FPEN: SIMD&FP at both levels.
pub(super) const FP_OPEN: u64 = 3 << 20;
/// Bytes between two vectors.
const VECTOR_BYTES: usize = 0x80;
const VECTOR_WORDS: usize = VECTOR_BYTES / 4;

/// The monitor, to be put at [`map::MONITOR`], and the offset of its entry.
pub(super) fn image() -> (Vec<u32>, u64) {
    let mut code = vec![BRK; 16 * VECTOR_WORDS];
    let leave = code.len();
    for vector in 0..16 {
        let at = vector * VECTOR_WORDS;
        let words = [
            msr(TPIDR_EL1, 0),
            ldr_literal(0, map::CONTROL - map::MONITOR - 4 * (at as u64 + 1)),
            str(1, 0, map::SAVED + 8),
            constant(1, vector as u64)[0],
            b(at + 4, leave),
        ];
        code[at..at + words.len()].copy_from_slice(&words);
    }
    code.extend(save());
    code.extend(constant(1, map::WRITE + map::CONTROL));
    code.extend([add(0, 0, map::RECORD_BYTES as u32), str(0, 1, 0), ldr(2, 1, 8), cmp(0, 2)]);
    let to_next = code.len();
    code.push(NOP);
    code.extend(constant(3, map::DEVICES + abi::map::DOORBELL_BASE.raw()));
    // STR WZR, [X3]: the exit.
    code.push(0xb900_007f);
    let entry = code.len();
    code.extend(constant(1, map::WRITE + map::CONTROL));
    // The host has written new code: clean it to the point of unification, then forget what was fetched.
    code.extend(constant(2, map::WRITE + map::CODE));
    code.extend(constant(3, map::WRITE + map::CODE + map::SLOTS * map::CODE_BYTES));
    let line = code.len();
    code.extend([msr(DC_CVAU, 2), add(2, 2, 32), cmp(2, 3)]);
    code.push(b_lo(code.len(), line));
    code.extend([DSB, msr(IC_IALLU, R31), DSB, ISB, ldr(0, 1, 0)]);
    code[to_next] = b_lo(to_next, code.len());
    code.extend(load());
    (code, 4 * entry as u64)
}

/// From a block's exception: stores everything to the record at x0. x0 itself is in TPIDR_EL1, x1 stored already and now
/// the vector's number.
fn save() -> Vec<u32> {
    let at = |word: usize| map::SAVED + 8 * word as u64;
    let mut code = vec![str(1, 0, at(field::VECTOR)), mrs(1, TPIDR_EL1), str(1, 0, at(0))];
    code.extend((2..31).map(|register| str(register, 0, at(register as usize))));
    for (word, register, _) in field::REGISTERS {
        code.extend([mrs(1, register), str(1, 0, at(word))]);
    }
    // The block may have closed SIMD&FP.
    code.extend(constant(1, FP_OPEN));
    code.extend([msr(CPACR_EL1, 1), ISB]);
    let others = [
        (field::SP_EL0, SP_EL0),
        (field::PC, ELR_EL1),
        (field::PSTATE, SPSR_EL1),
        (field::ESR, ESR_EL1),
        (field::FAR, FAR_EL1),
        (field::FPCR, FPCR),
        (field::FPSR, FPSR),
    ];
    for (word, register) in others {
        code.extend([mrs(1, register), str(1, 0, at(word))]);
    }
    // Exceptions are taken to EL1h: SP is SP_EL1.
    code.extend([add(1, R31, 0), str(1, 0, at(field::SP_EL1))]);
    code.extend((0..32).map(|register| str_q(register, 0, at(field::VECTORS + 2 * register as usize))));
    code
}

/// Loads everything from the record at x0 and enters the block.
fn load() -> Vec<u32> {
    let at = |word: usize| 8 * word as u64;
    let mut code = constant(1, FP_OPEN).to_vec();
    code.extend([msr(CPACR_EL1, 1), ISB, ldr(1, 0, at(field::CLEAN)), msr(DC_CVAU, 1)]);
    code.extend((0..32).map(|register| ldr_q(register, 0, at(field::VECTORS + 2 * register as usize))));
    let others = [
        (field::FPCR, FPCR),
        (field::FPSR, FPSR),
        (field::SP_EL0, SP_EL0),
        (field::PC, ELR_EL1),
        (field::PSTATE, SPSR_EL1),
    ];
    let registers = field::REGISTERS.iter().map(|&(word, register, _)| (word, register));
    for (word, register) in others.into_iter().chain(registers) {
        code.extend([ldr(1, 0, at(word)), msr(register, 1)]);
    }
    // Tables of the last block are gone: so must be what was remembered of them.
    code.extend([ldr(1, 0, at(field::SP_EL1)), add(R31, 1, 0), DSB, msr(TLBI_VMALLE1, R31), DSB, ISB, CLREX]);
    code.extend((1..31).map(|register| ldr(register, 0, at(register as usize))));
    code.extend([ldr(0, 0, at(0)), ERET]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fits_where_it_lies() {
        let (code, entry) = image();
        assert!(map::MONITOR + 4 * code.len() as u64 <= map::CONTROL);
        assert!(entry as usize / 4 < code.len());
        const {
            assert!(map::RECORDS + map::SLOTS * map::RECORD_BYTES <= map::CODE);
            assert!(map::CODE + map::SLOTS * map::CODE_BYTES <= map::DATA);
            assert!(map::DATA + map::SLOTS * map::DATA_BYTES <= map::FRAMES);
        }
        assert_eq!(map::RECORD_BYTES, 16 * field::WORDS as u64);
    }

    #[test]
    fn every_word_of_a_record_has_one_name() {
        let names: Vec<String> = (0..field::CLEAN).chain(field::VECTORS..field::WORDS).map(field::name).collect();
        let mut unlike = names.clone();
        unlike.sort();
        unlike.dedup();
        assert_eq!(unlike.len(), names.len());
        assert!(!names.iter().any(|name| name.starts_with("word")), "{names:?}");
    }
}
