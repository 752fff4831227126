//! Blocks of the encodings in the table: [`block`], an exclusive pair, and the map of the lower half that they run under.
//!
//! Each slot has eight pages: two that are read-write, with the window across their border, then one read-only, one for EL1
//! alone, one not mapped, one without its access flag, one that is a device's, one read-only for EL1 alone. Base registers are
//! pointed into the window; some, on purpose, elsewhere.

use emulator::lower::blocks;
use workload::SplitMix64;

use super::asm::{BRK, NOP};
use super::encodings::{Encoding, Reach};
use super::features::Features;
use super::monitor::{FP_OPEN, field, map};
use crate::verify::cpu::block::{Block, Group, once_in, one_of, operand};

/// Words before a block.
pub(super) const START: usize = 8;
/// Most words of a block.
const WORDS_MAX: u64 = 8;
/// Bytes of a data page.
const PAGE: u64 = 0x1000;
/// Bytes of the window on each side of the border of the first two pages.
const HALF_WINDOW: u64 = 512;

/// Pages of a slot, by what is allowed.
mod page {
    pub(super) const BORDER: u64 = 1;
    pub(super) const READ_ONLY: u64 = 2;
    pub(super) const EL1_ONLY: u64 = 3;
    pub(super) const DEVICE: u64 = 6;
    pub(super) const COUNT: u64 = 8;
}

/// Descriptor bits.
mod bits {
    pub(super) const PAGE: u64 = 3;
    pub(super) const DEVICE: u64 = 1 << 2;
    pub(super) const EL0: u64 = 1 << 6;
    pub(super) const READ_ONLY: u64 = 1 << 7;
    pub(super) const INNER: u64 = 3 << 8;
    pub(super) const ACCESS: u64 = 1 << 10;
    pub(super) const NEVER_EXECUTED: u64 = 3 << 53;
}

/// The tables of the lower half, by offset in RAM.
pub(super) fn lower_tables() -> Vec<(u64, Vec<u8>)> {
    let level2 = map::LOWER_TABLE + PAGE;
    let level3 = level2 + PAGE;
    let pages = map::SLOTS * page::COUNT;
    let mut tables = vec![(map::LOWER_TABLE, ((map::RAM + level2) | 3).to_le_bytes().to_vec())];
    for index in 0..pages.div_ceil(512) {
        let at = level2 + 8 * ((map::DATA_VA >> 21) + index);
        tables.push((at, ((map::RAM + level3 + index * PAGE) | 3).to_le_bytes().to_vec()));
    }
    let descriptors = (0..pages).flat_map(|index| {
        let kind = match index % page::COUNT {
            0 | page::BORDER => bits::EL0 | bits::ACCESS,
            page::READ_ONLY => bits::EL0 | bits::READ_ONLY | bits::ACCESS,
            page::EL1_ONLY => bits::ACCESS,
            4 => return [0; 8],
            5 => bits::EL0,
            page::DEVICE => bits::EL0 | bits::ACCESS | bits::DEVICE,
            _ => bits::READ_ONLY | bits::ACCESS,
        };
        let output = map::RAM + map::DATA + index * PAGE;
        (output | kind | bits::INNER | bits::NEVER_EXECUTED | bits::PAGE).to_le_bytes()
    });
    tables.push((level3, descriptors.collect()));
    tables
}

/// What a block is drawn from.
pub(super) struct Draw<'a> {
    pub(super) random: SplitMix64,
    pub(super) features: &'a Features,
    pub(super) number: u64,
}

impl Draw<'_> {
    pub(super) fn slot(&self) -> u64 {
        self.number % map::SLOTS
    }

    /// Address of word `index` of the slot's code, where blocks execute it.
    pub(super) fn code(&self, index: usize) -> u64 {
        map::BLOCKS + map::CODE + self.slot() * map::CODE_BYTES + 4 * index as u64
    }

    /// Address of the slot's data pages.
    pub(super) fn data(&self) -> u64 {
        map::DATA_VA + self.slot() * map::DATA_BYTES
    }

    /// Registers of a block at an exception level of its own choice, in the map of the lower half.
    pub(super) fn registers(&mut self) -> Vec<u64> {
        let features = self.features;
        let code = self.code(START);
        let slot = self.slot();
        let random = &mut self.random;
        let mut words = vec![0; field::WORDS];
        for index in (0..31).chain(field::VECTORS..field::WORDS).chain([45, 46, 47]) {
            words[index] = operand(random);
        }
        words[45] &= 0xffff_ffff;
        // EL1h, EL1t or EL0t.
        let mode = one_of(random, &[5, 5, 5, 4, 0, 0, 0]);
        let pan = if features.pan && once_in(random, 4) { 1 << 22 } else { 0 };
        words[field::PSTATE] = random.below(16) << 28 | pan | random.below(16) << 6 | mode;
        words[field::PC] = code;
        words[field::SCTLR] = control(random, features.emulated);
        words[field::TCR] = tcr(random);
        words[field::TTBR0] = (map::RAM + map::LOWER_TABLE) | (random.below(256) << 48);
        words[field::MAIR] = 0xff;
        words[field::CPACR] = if once_in(random, 24) { random.below(4) << 20 } else { FP_OPEN };
        words[49] = random.next_u64() & 0x3ff;
        words[field::FPCR] = if once_in(random, 4) { random.next_u64() & 0x07c0_0000 } else { 0 };
        words[field::FPSR] = if once_in(random, 4) { random.next_u64() & (1 << 27 | 0x9f) } else { 0 };
        words[field::CLEAN] = map::WRITE + map::CODE + slot * map::CODE_BYTES;
        let window = self.data() + page::BORDER * PAGE;
        words[field::SP_EL0] = window;
        words[field::SP_EL1] = window;
        words
    }

    /// A block of `words` that starts from `registers`, with fresh contents of the window.
    pub(super) fn finish(mut self, group: Group, words: Vec<u32>, registers: Vec<u64>) -> Block {
        let slot = self.slot();
        let mut code = vec![BRK; map::CODE_BYTES as usize / 4];
        code[START..START + words.len()].copy_from_slice(&words);
        let code = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        let data = map::DATA + slot * map::DATA_BYTES;
        let window = (0..2 * HALF_WINDOW / 8).flat_map(|_| self.random.next_u64().to_le_bytes()).collect();
        let page = |index: u64| data + index * PAGE;
        Block {
            number: self.number,
            group,
            words,
            registers,
            memory: vec![(map::CODE + slot * map::CODE_BYTES, code), (page(page::BORDER) - HALF_WINDOW, window)],
            watched: vec![page(0)..page(page::READ_ONLY), page(page::EL1_ONLY)..page(4), page(page::DEVICE)..page(7)],
        }
    }
}

/// SCTLR_EL1 with translation and caches on, and what blocks may find either way.
fn control(random: &mut SplitMix64, emulated: bool) -> u64 {
    const ON: u64 = emulator::sysreg::id::SCTLR_RES1 | 1 | 1 << 2 | 1 << 12;
    const USUAL: u64 = 1 << 3 | 1 << 4 | 1 << 14 | 1 << 15 | 1 << 23 | 1 << 26;
    // A, SA, SA0, UMA, DZE, UCT, nTWI, nTWE, SPAN, UCI.
    const EITHER: u64 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 9 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 18 | 1 << 23 | 1 << 26;
    let chosen = if once_in(random, 3) { random.next_u64() & EITHER } else { USUAL };
    // QEMU 7.2 never checks the alignment of SP.
    let unknown = if emulated { 1 << 3 | 1 << 4 } else { 0 };
    ON | chosen & !unknown
}

/// TCR_EL1 of the upper half, with nothing of the lower: 39 bits, 4K, write-back, inner shareable.
pub(super) const UPPER_TCR: u64 = 25 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30;
/// Write-back, inner shareable walks of the lower half.
pub(super) const LOWER_WALKS: u64 = 1 << 8 | 1 << 10 | 3 << 12;
/// TCR_EL1.TBI0.
pub(super) const TBI0: u64 = 1 << 37;

fn tcr(random: &mut SplitMix64) -> u64 {
    UPPER_TCR | LOWER_WALKS | 25 | 2 << 32 | if once_in(random, 4) { TBI0 } else { 0 }
}

/// A block whose last instruction is of `primary`, behind data processing of `others`.
pub(super) fn block(mut draw: Draw<'_>, primary: &Encoding, others: &[Encoding]) -> Option<Block> {
    let mut registers = draw.registers();
    let ahead = if once_in(&mut draw.random, 2) { 0 } else { 1 + draw.random.below(WORDS_MAX - 1) };
    let mut words = Vec::new();
    for position in 0..=ahead {
        let reach = reach(words.len());
        if position == ahead {
            words.push(primary.word(&mut draw.random, reach)?);
        } else {
            let other = one_of(&mut draw.random, others);
            words.push(other.word(&mut draw.random, reach).unwrap_or(NOP));
        }
    }
    // Table lookups are about small indices.
    if once_in(&mut draw.random, 4) {
        let index = field::VECTORS + 2 * (words[0] >> 16 & 31) as usize;
        registers[index] = 0x1f3f_0708_0110_2030;
        registers[index + 1] = draw.random.next_u64() & 0x5f5f_5f5f_5f5f_5f5f;
    }
    for &word in words.iter().rev() {
        aim(&mut draw, &mut registers, word, words.len() == 1);
    }
    Some(draw.finish(primary.group, words, registers))
}

fn reach(position: usize) -> Reach {
    let at = (START + position) as i32;
    Reach { back: (-at, -(position as i32) - 1), forward: (map::CODE_BYTES / 4) as i32 - at }
}

/// A load-exclusive and the store-exclusive to it.
pub(super) fn exclusive_pair(mut draw: Draw<'_>) -> Block {
    let mut registers = draw.registers();
    let words = blocks::exclusive_pair(|| draw.random.next_u64() as u32);
    aim(&mut draw, &mut registers, words[0], false);
    draw.finish(Group::Exclusive, words.to_vec(), registers)
}

/// Points the base register of `word`, if it has one, to a place of the slot. To the device's page only if it is `alone`: then
/// the address is surely aligned.
pub(super) fn aim(draw: &mut Draw<'_>, registers: &mut [u64], word: u32, alone: bool) {
    let base = (word >> 5 & 31) as usize;
    // BR, BLR, RET.
    if matches!(word & 0xffff_fc1f, 0xd61f_0000 | 0xd63f_0000 | 0xd65f_0000) {
        if base != 31 && !once_in(&mut draw.random, 16) {
            let index = draw.random.below(START as u64) as usize;
            let to_code = draw.code(index);
            let anywhere = [to_code + 2, draw.data(), map::RUN + map::MONITOR, to_code | 1 << 55];
            registers[base] = if once_in(&mut draw.random, 6) { one_of(&mut draw.random, &anywhere) } else { to_code };
        }
        return;
    }
    let Some(Base { offset, aligned }) = base_of(registers, word) else { return };
    let target = target(draw, aligned, alone && !aligned && base != 31);
    let value = target.wrapping_sub(offset);
    if base != 31 {
        registers[base] = value;
        return;
    }
    let stack = if registers[field::PSTATE] & 5 == 5 { field::SP_EL1 } else { field::SP_EL0 };
    registers[stack] = if once_in(&mut draw.random, 8) { value } else { value & !15 };
}

/// An address to be accessed.
fn target(draw: &mut Draw<'_>, aligned: bool, device: bool) -> u64 {
    let (data, random) = (draw.data(), &mut draw.random);
    let within = 256 + random.below(512);
    let at = match random.below(16) {
        // Anywhere in any page that is no device's, or across the end of the read-write ones.
        0 | 1 => data + one_of(random, &[0, 1, 2, 3, 4, 5, 7]) * PAGE + random.below(PAGE - 256),
        2 => data + page::READ_ONLY * PAGE - random.below(64),
        3 if device => return data + page::DEVICE * PAGE + (within & !63),
        _ => data + page::BORDER * PAGE - HALF_WINDOW + within,
    };
    if aligned { at & !15 } else { at }
}

/// What a load or store adds to its base register, and whether its address must be aligned.
struct Base {
    offset: u64,
    aligned: bool,
}

/// `None` for words that are no loads or stores with a base register.
fn base_of(registers: &[u64], word: u32) -> Option<Base> {
    let field = |low: u32, len: u32| word >> low & ((1 << len) - 1);
    let signed = |low: u32, len: u32| i64::from((word << (32 - low - len)) as i32 >> (32 - len)) as u64;
    let free = |offset: u64| Some(Base { offset, aligned: false });
    if word >> 25 & 0b101 != 0b100 {
        return None;
    }
    let vector = field(26, 1) == 1;
    match field(27, 3) {
        // Structures; exclusives, acquire and release.
        0b001 => Some(Base { offset: 0, aligned: !vector }),
        0b101 => {
            let scale = if vector { 2 + field(30, 2) } else { 2 + field(31, 1) };
            let post_index = field(23, 2) == 1;
            free(if post_index { 0 } else { signed(15, 7) << scale })
        }
        0b111 => {
            let size = if vector && field(23, 1) == 1 { 4 } else { field(30, 2) };
            if field(24, 1) == 1 {
                return free(u64::from(field(10, 12)) << size);
            }
            match (field(21, 1), field(10, 2)) {
                (0, 1) => free(0),
                (0, _) => free(signed(12, 9)),
                (_, 2) => free(register_offset(registers, word, size)),
                // Atomics.
                _ => Some(Base { offset: 0, aligned: true }),
            }
        }
        _ => None,
    }
}

fn register_offset(registers: &[u64], word: u32, size: u32) -> u64 {
    let register = (word >> 16 & 31) as usize;
    let value = if register == 31 { 0 } else { registers[register] };
    let extended = match word >> 13 & 7 {
        2 => value & 0xffff_ffff,
        6 => value as i32 as u64,
        _ => value,
    };
    if word >> 12 & 1 == 1 { extended << size } else { extended }
}
