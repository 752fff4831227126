//! Blocks of the emulator's table of encodings: [`block`], an exclusive pair, and the maps of the lower gibibyte that they run
//! under, of short descriptors or of long ones.
//!
//! Each slot has eight pages: two that are read-write, with the window across their border, then one read-only, one for EL1
//! alone, one not mapped, one without its access flag (short descriptors have one only with SCTLR.AFE), one that is a device's, one
//! read-only for EL1 alone. Base registers are pointed into the window; some, on purpose, elsewhere.

use emulator::a32::Mode;
use emulator::a32::mode::slot;
use workload::SplitMix64;

use super::asm::{NOP, UDF};
use super::encodings::{self, Encoding, Reach};
use super::monitor::{FP_ENABLED, FP_OPEN, field, map};
use crate::verify::cpu::block::{Block, Group, once_in, one_of, operand};

/// Words before a block.
pub(super) const START: usize = 8;
/// Most words of a block.
const WORDS_MAX: u64 = 8;
/// Bytes of a data page.
const PAGE: u64 = 0x1000;
/// Bytes of the window on each side of the border of the first two pages.
const HALF_WINDOW: u64 = 512;
/// log2 of the most bytes that translations of a block cover: a gibibyte, up to where RAM begins.
pub(super) const LOWER_BITS: u32 = 30;

/// Modes of blocks. IRQ is the monitor's.
pub(super) const MODES: [Mode; 6] =
    [Mode::User, Mode::Supervisor, Mode::System, Mode::Abort, Mode::Undefined, Mode::Fiq];

/// Pages of a slot, by what is allowed.
mod page {
    pub(super) const BORDER: u64 = 1;
    pub(super) const READ_ONLY: u64 = 2;
    pub(super) const EL1_ONLY: u64 = 3;
    pub(super) const DEVICE: u64 = 6;
    pub(super) const COUNT: u64 = 8;
}

/// SCTLR bits.
pub(super) mod sctlr {
    pub(in crate::verify::cpu) const A: u64 = 1 << 1;
    pub(in crate::verify::cpu) const NOT_WFI: u64 = 1 << 16;
    pub(in crate::verify::cpu) const NOT_WFE: u64 = 1 << 18;
    pub(in crate::verify::cpu) const WXN: u64 = 1 << 19;
    pub(in crate::verify::cpu) const UWXN: u64 = 1 << 20;
    pub(in crate::verify::cpu) const TRE: u64 = 1 << 28;
    pub(in crate::verify::cpu) const AFE: u64 = 1 << 29;
    /// Translation and caches on.
    pub(in crate::verify::cpu) const ON: u64 =
        emulator::sysreg::id::SCTLR32_RES1 | 1 | 1 << 2 | 1 << 12 | NOT_WFI | NOT_WFE;
}

/// TTBCR.EAE: long descriptors.
pub(super) const LONG: u64 = 1 << 31;
/// TTBCR of long descriptors with write-back, inner shareable walks of both halves.
pub(super) const LONG_WALKS: u64 = LONG | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 24 | 1 << 26 | 3 << 28;
/// TTBRn of short descriptors: write-back, shareable walks.
pub(super) const SHORT_WALKS: u64 = 1 << 6 | 1 << 3 | 1 << 1;

/// TTBR1, which is the monitor's.
pub(super) fn upper(long: bool) -> u64 {
    map::RAM + if long { map::UPPER_LONG } else { map::UPPER_SHORT | SHORT_WALKS }
}

/// Descriptors of TTBR1 in both formats: RAM read-only, RAM writable, devices; by offset in RAM.
pub(super) fn upper_tables() -> Vec<(u64, Vec<u8>)> {
    const SECTION: u64 = 1 << 20;
    let doorbell = abi::map::DOORBELL_BASE.raw();
    let words = |words: Vec<u64>| words.iter().flat_map(|word| (*word as u32).to_le_bytes()).collect::<Vec<u8>>();
    let sections = |va: u64, pa: u64, bytes: u64, bits: u64| {
        let table = (0..bytes / SECTION).map(|index| (pa + index * SECTION) | bits | 2).collect();
        (map::UPPER_SHORT + 4 * (va / SECTION), words(table))
    };
    // TEX 001, C, B: write-back; S. AP[0] is set, which with SCTLR.AFE is the access flag.
    let (normal, never) = (1 << 12 | 3 << 2 | 1 << 16, 1 << 4);
    let short = [
        sections(map::RAM, map::RAM, map::RAM_BYTES, normal | 1 << 15 | 3 << 10),
        sections(map::WRITE, map::RAM, map::RAM_BYTES, normal | 1 << 10 | never),
        sections(map::DEVICES + doorbell, doorbell, SECTION, 1 << 2 | 1 << 10 | never),
    ];
    let (usable, el0, read_only, never) = (1 << 10 | 3 << 8 | 1, 1 << 6, 1 << 7, 1_u64 << 54);
    let mut tables = short.to_vec();
    let mut blocks = |va: u64, pa: u64, bytes: u64, bits: u64| {
        // A second level for each gibibyte.
        let (gib, second) = (va >> 30, map::UPPER_LONG + PAGE * (va >> 30));
        tables.push((map::UPPER_LONG + 8 * gib, ((map::RAM + second) | 3).to_le_bytes().to_vec()));
        let table = (0..bytes >> 21).flat_map(|index| ((pa + (index << 21)) | bits).to_le_bytes());
        tables.push((second + 8 * (va >> 21 & 0x1ff), table.collect()));
    };
    blocks(map::RAM, map::RAM, map::RAM_BYTES, usable | el0 | read_only);
    blocks(map::WRITE, map::RAM, map::RAM_BYTES, usable | never);
    blocks(map::DEVICES + doorbell, doorbell, 1 << 21, usable | 1 << 2 | never);
    tables
}

/// The tables of TTBR0 for instruction blocks, in both formats, by offset in RAM.
pub(super) fn lower_tables() -> Vec<(u64, Vec<u8>)> {
    let pages = map::SLOTS * page::COUNT;
    let output = |index: u64| map::RAM + map::DATA + index * PAGE;
    let mut tables = Vec::new();
    // A first level of 1024 words, for TTBCR.N = 2; a second level of 256 words a mebibyte.
    let second = map::LOWER_SHORT + 0x1000;
    for index in 0..pages / 256 {
        let entry = (map::RAM + second + index * 0x400) as u32 | 1;
        tables.push((map::LOWER_SHORT + 4 * ((map::DATA_VA >> 20) + index), entry.to_le_bytes().to_vec()));
    }
    let small = (0..pages).flat_map(|index| {
        // AP[2] is bit 9, AP[1:0] are bits 5:4; TEX 001, C, B, shareable and never executed, or a device's.
        let normal = 1 << 6 | 3 << 2 | 1 << 10;
        let bits: u64 = match index % page::COUNT {
            0 | page::BORDER => normal | 3 << 4,
            page::READ_ONLY => normal | 1 << 9 | 3 << 4,
            page::EL1_ONLY => normal | 1 << 4,
            4 => return [0; 4],
            5 => normal | 2 << 4,
            page::DEVICE => 1 << 2 | 3 << 4,
            _ => normal | 1 << 9 | 1 << 4,
        };
        ((output(index) | bits | 3) as u32).to_le_bytes()
    });
    tables.push((second, small.collect()));
    // A second level of 512 entries, for T0SZ = 2.
    let third = map::LOWER_LONG + PAGE;
    for index in 0..pages.div_ceil(512) {
        let at = map::LOWER_LONG + 8 * ((map::DATA_VA >> 21) + index);
        tables.push((at, ((map::RAM + third + index * PAGE) | 3).to_le_bytes().to_vec()));
    }
    let (el0, read_only, access) = (1 << 6, 1 << 7, 1 << 10);
    let long = (0..pages).flat_map(|index| {
        let kind = match index % page::COUNT {
            0 | page::BORDER => el0 | access,
            page::READ_ONLY => el0 | read_only | access,
            page::EL1_ONLY => access,
            4 => return [0; 8],
            5 => el0,
            page::DEVICE => el0 | access | 1 << 2,
            _ => read_only | access,
        };
        (output(index) | kind | 3 << 8 | 1 << 54 | 3).to_le_bytes()
    });
    tables.push((third, long.collect()));
    tables
}

/// What a block is drawn from.
pub(super) struct Draw {
    pub(super) random: SplitMix64,
    pub(super) number: u64,
    /// The host's CPU is QEMU's.
    pub(super) emulated: bool,
}

/// The mode that a block starts in.
pub(super) fn mode(registers: &[u64]) -> Mode {
    Mode::from_psr(registers[field::PSR] as u32).expect("blocks start in modes that exist")
}

/// Lets a block start in `mode`.
pub(super) fn set_mode(registers: &mut [u64], mode: Mode) {
    registers[field::PSR] = registers[field::PSR] & !0x1f | u64::from(mode.bits());
}

/// Word of register `reg` in the mode that a block starts in.
pub(super) fn word_of(registers: &[u64], reg: u32) -> usize {
    slot(mode(registers), reg as u8)
}

impl Draw {
    pub(super) fn slot(&self) -> u64 {
        self.number % map::SLOTS
    }

    /// Address of word `index` of the slot's code, where blocks execute it.
    pub(super) fn code(&self, index: usize) -> u64 {
        map::RAM + map::CODE + self.slot() * map::CODE_BYTES + 4 * index as u64
    }

    /// Address of the slot's data pages.
    pub(super) fn data(&self) -> u64 {
        map::DATA_VA + self.slot() * map::DATA_BYTES
    }

    /// Registers of a block in a mode of its own choice, in the map of the lower gibibyte.
    pub(super) fn registers(&mut self) -> Vec<u64> {
        let code = self.code(START);
        let slot = self.slot();
        let window = self.data() + page::BORDER * PAGE;
        let random = &mut self.random;
        let mut words = vec![0; field::WORDS];
        let simple = [field::DFAR, field::IFAR, field::TPIDRURW, field::TPIDRURO, field::CONTEXTIDR];
        for index in (0..31).chain(simple) {
            words[index] = operand(random) & 0xffff_ffff;
        }
        for word in &mut words[field::VECTORS..] {
            *word = operand(random);
        }
        for word in &mut words[field::SPSR..field::SPSR + 5] {
            *word = psr(random);
        }
        words[field::PSR] = psr(random);
        words[field::PC] = code;
        let long = once_in(random, 2);
        words[field::SCTLR] = control(random, long);
        words[field::TTBCR] = if long { LONG_WALKS | 2 } else { 2 };
        words[field::TTBR0] = map::RAM + if long { map::LOWER_LONG } else { map::LOWER_SHORT | SHORT_WALKS };
        if long {
            words[field::TTBR0 + 1] = random.below(256) << 16;
        }
        words[field::TTBR1] = upper(long);
        (words[field::MAIR0], words[field::MAIR1]) = if long { (0xff, 0) } else { remap(random) };
        words[field::DACR] = domains(random);
        words[field::CPACR] = if once_in(random, 24) { one_of(random, &[0, 5 << 20, FP_OPEN]) } else { FP_OPEN };
        words[field::FPEXC] = if once_in(random, 24) { 0 } else { FP_ENABLED };
        words[field::FPSCR] = if once_in(random, 4) { random.next_u64() & (0x1f << 27 | 0x9f) } else { 0 };
        words[field::CNTKCTL] = random.next_u64() & 0x3ff;
        words[field::CLEAN] = map::WRITE + map::CODE + slot * map::CODE_BYTES;
        for mode in MODES {
            words[emulator::a32::mode::slot(mode, 13)] = window;
        }
        words
    }

    /// A block of `words` that starts from `registers`, with fresh contents of the window.
    pub(super) fn finish(mut self, group: Group, words: Vec<u32>, registers: Vec<u64>) -> Block {
        let slot = self.slot();
        let mut code = vec![UDF; map::CODE_BYTES as usize / 4];
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
            watched: vec![page(0)..page(page::READ_ONLY), page(page::EL1_ONLY)..page(4), page(5)..page(7)],
        }
    }
}

/// A PSR of a mode of blocks: flags, Q, GE, masks.
pub(super) fn psr(random: &mut SplitMix64) -> u64 {
    let any = random.next_u64();
    let mode = one_of(random, &MODES);
    any & (0x1f << 27 | 0xf << 16 | 7 << 6) | u64::from(mode.bits())
}

/// SCTLR with translation and caches on, and what blocks may find either way.
fn control(random: &mut SplitMix64, long: bool) -> u64 {
    let either = sctlr::A | sctlr::WXN | sctlr::UWXN | if long { 0 } else { sctlr::TRE | sctlr::AFE };
    let waits = sctlr::NOT_WFI | sctlr::NOT_WFE;
    if once_in(random, 3) { sctlr::ON ^ random.next_u64() & (either | waits) } else { sctlr::ON }
}

/// PRRR and NMRR, in which the monitor's memory (TEX\[0\], C and B all ones) and its devices (B alone) are what they are without.
pub(super) fn remap(random: &mut SplitMix64) -> (u64, u64) {
    let (mut prrr, mut nmrr) = (0, random.next_u64() & 0xffff_ffff);
    for region in 0..8 {
        prrr |= match region {
            7 => 2,
            1 => 1,
            _ => random.below(3),
        } << (2 * region);
    }
    // What S means, and NOS of each region.
    prrr |= random.next_u64() & 0xff0f_0000;
    // Region 7: write-back, write-allocate at both levels.
    nmrr = nmrr & !(3 << 14 | 3 << 30) | 1 << 14 | 1 << 30;
    (prrr, nmrr)
}

/// DACR: the monitor's domain 0 is a client's; of the others there is no reserved access.
pub(super) fn domains(random: &mut SplitMix64) -> u64 {
    (1..16).fold(1, |dacr, domain| dacr | one_of(random, &[0, 1, 1, 3]) << (2 * domain))
}

/// A block whose last instruction is of `primary`, behind data processing of `others`.
pub(super) fn block(mut draw: Draw, primary: &Encoding, others: &[Encoding]) -> Option<Block> {
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
    // What the last one computes its address from, the others leave alone.
    let last = words[words.len() - 1];
    if !matches!(primary.group, Group::Integer | Group::Crc | Group::Multiply | Group::Media) {
        for word in words.iter_mut().rev().skip(1) {
            let written = [*word >> 12 & 15, *word >> 16 & 15];
            if written.contains(&(last >> 16 & 15)) || written.contains(&(last & 15)) {
                *word = NOP;
            }
        }
    }
    // LDM and STM of User mode's registers are UNPREDICTABLE without a mode that has others.
    let has_bank = !matches!(mode(&registers), Mode::User | Mode::System);
    if words.iter().any(|&word| encodings::is_multiple(word) && word >> 22 & 1 == 1) && !has_bank {
        let mode = one_of(&mut draw.random, &[Mode::Supervisor, Mode::Abort, Mode::Undefined, Mode::Fiq]);
        set_mode(&mut registers, mode);
    }
    let mut targets = Vec::new();
    for &word in words.iter().rev() {
        aim(&mut draw, &mut registers, &mut targets, word, words.len() == 1);
    }
    let mut block = draw.finish(primary.group, words, registers);
    block.memory.extend(targets);
    Some(block)
}

fn reach(position: usize) -> Reach {
    let at = (START + position) as i32;
    Reach { back: (-at, -(position as i32) - 1), forward: (map::CODE_BYTES / 4) as i32 - at }
}

/// A load-exclusive and the store-exclusive to it.
pub(super) fn exclusive_pair(mut draw: Draw) -> Block {
    use super::asm::ALWAYS;
    let mut registers = draw.registers();
    loop {
        let any = draw.random.next_u64() as u32;
        let (size, acquire, release) = (any & 3, any >> 2 & 1, any >> 3 & 1);
        let (rn, rt, source, status) = (any >> 4 & 15, any >> 8 & 15, any >> 12 & 15, any >> 16 & 15);
        let load = ALWAYS | 0x0190_0c9f | (1 - acquire) << 8 | 1 << 9 | size << 21 | rn << 16 | rt << 12;
        let store = ALWAYS | 0x0180_0c90 | (1 - release) << 8 | 1 << 9 | size << 21 | rn << 16 | status << 12 | source;
        let kept = rt != rn && !(size == 1 && rt | 1 == rn);
        if kept && emulator::a32::is_modelled(load) && emulator::a32::is_modelled(store) {
            aim(&mut draw, &mut registers, &mut Vec::new(), load, false);
            return draw.finish(Group::Exclusive, vec![load, store], registers);
        }
    }
}

/// Memory to be written: offset in RAM, bytes.
type Targets = Vec<(u64, Vec<u8>)>;

/// Points the base register of `word`, if it has one, to a place of the slot. To the device's page only if it is `alone`: then
/// the address is surely aligned. A load of the program counter gets its target into `targets`.
pub(super) fn aim(draw: &mut Draw, registers: &mut [u64], targets: &mut Targets, word: u32, alone: bool) {
    // BX, BXJ, BLX, and MOV to the program counter.
    if matches!(word & 0x0fff_fff0, 0x012f_ff10 | 0x012f_ff20 | 0x012f_ff30 | 0x01a0_f000) {
        let register = word & 15;
        if register != 15 {
            let index = draw.random.below(START as u64) as usize;
            let to_code = draw.code(index);
            let anywhere = [draw.data(), map::DEVICES, map::WRITE, 0xffff_fffc];
            let elsewhere = once_in(&mut draw.random, 6);
            registers[word_of(registers, register)] =
                if elsewhere { one_of(&mut draw.random, &anywhere) } else { to_code };
        }
        return;
    }
    let Some(access) = Access::of(registers, word) else { return };
    let base = word >> 16 & 15;
    if base == 15 {
        return;
    }
    let target = if access.target_at.is_some() {
        draw.data() + page::BORDER * PAGE - HALF_WINDOW + 256 + draw.random.below(448)
    } else {
        target(draw, alone && access.single)
    };
    // Mostly as aligned as it should be.
    let misaligned = access.target_at.is_none() && once_in(&mut draw.random, 8);
    let target = if misaligned && !access.exclusive { target } else { target & !(access.align - 1) };
    registers[word_of(registers, base)] = target.wrapping_sub(access.offset) & 0xffff_ffff;
    if let Some(at) = access.target_at {
        let place = target.wrapping_add(at) & 0xffff_ffff;
        let index = draw.random.below(START as u64) as usize;
        let to = draw.code(index) as u32;
        targets.push((place - map::DATA_VA + map::DATA, to.to_le_bytes().to_vec()));
    }
}

/// An address to be accessed.
fn target(draw: &mut Draw, device: bool) -> u64 {
    let (data, random) = (draw.data(), &mut draw.random);
    let within = 256 + random.below(448);
    match random.below(16) {
        // Anywhere in any page that is no device's, or across the end of the read-write ones.
        0 | 1 => data + one_of(random, &[0, 1, 2, 3, 4, 5, 7]) * PAGE + 256 + random.below(PAGE - 512),
        2 => data + page::READ_ONLY * PAGE - random.below(64),
        3 if device => data + page::DEVICE * PAGE + (within & !63),
        _ => data + page::BORDER * PAGE - HALF_WINDOW + within,
    }
}

/// What is known of the addresses of a load or store.
struct Access {
    /// What it adds to its base register.
    offset: u64,
    /// What the address should be aligned to.
    align: u64,
    /// Where, from the address, the word lies that it loads into the program counter.
    target_at: Option<u64>,
    /// A single general register.
    single: bool,
    exclusive: bool,
}

impl Access {
    /// Of `word`; `None` for other instructions.
    fn of(registers: &[u64], word: u32) -> Option<Self> {
        let field = |low: u32, len: u32| word >> low & ((1 << len) - 1);
        let (indexed, up) = (field(24, 1) == 1, field(23, 1) == 1);
        let signed = |offset: u32| {
            u64::from(match (indexed, up) {
                (false, _) => 0,
                (true, true) => offset,
                (true, false) => offset.wrapping_neg(),
            })
        };
        let register = field(0, 4);
        let value = || if register == 15 { 0 } else { registers[word_of(registers, register)] as u32 };
        let to_pc = (field(20, 1) == 1 && field(12, 4) == 15).then_some(0);
        let word_align = if to_pc.is_some() { 4 } else { 1 };
        let plain = |offset: u64, align: u64| Self { offset, align, target_at: None, single: false, exclusive: false };
        if word >> 28 == 15 {
            // Structures: all that may ask for alignment.
            return (field(24, 4) == 4 && field(20, 1) == 0).then(|| plain(0, 32));
        }
        Some(match field(25, 3) {
            0b000 if field(4, 4) == 0b1001 && field(24, 1) == 1 => Self { exclusive: true, ..plain(0, 8) },
            0b000 if field(4, 1) == 1 && field(7, 1) == 1 && field(5, 2) != 0 => {
                let dual = field(20, 1) == 0 && field(6, 1) == 1;
                let offset = if field(22, 1) == 1 { field(8, 4) << 4 | field(0, 4) } else { value() };
                Self { single: !dual, ..plain(signed(offset), if dual { 4 } else { 1 }) }
            }
            0b010 => Self { target_at: to_pc, single: true, ..plain(signed(field(0, 12)), word_align) },
            0b011 if field(4, 1) == 0 => {
                let carry = (registers[field::PSR] >> 29 & 1) as u32;
                let offset = shifted(value(), field(5, 2), field(7, 5), carry);
                Self { target_at: to_pc, single: true, ..plain(signed(offset), word_align) }
            }
            0b100 => {
                // The lowest address is what is aimed, or just beside it.
                let count = u64::from(field(0, 16).count_ones());
                let loads_pc = field(20, 1) == 1 && field(15, 1) == 1;
                let lowest = match (indexed, up) {
                    (false, true) => 0,
                    (true, true) => 4,
                    (false, false) => 4_u64.wrapping_sub(4 * count),
                    (true, false) => (4 * count).wrapping_neg(),
                };
                let target_at = loads_pc.then(|| lowest.wrapping_add(4 * (count - 1)));
                Self { target_at, ..plain(0, 4) }
            }
            // VLDR and VSTR; VLDM and VSTM start or end at the base.
            0b110 if field(9, 3) == 0b101 => {
                plain(if field(21, 1) == 0 && indexed { signed(field(0, 8) * 4) } else { 0 }, 4)
            }
            _ => return None,
        })
    }
}

/// A register shifted by an immediate.
fn shifted(value: u32, kind: u32, amount: u32, carry: u32) -> u32 {
    match (kind, amount) {
        (0, _) => value << amount,
        (1, 0) => 0,
        (1, _) => value >> amount,
        (2, 0) => (value as i32 >> 31) as u32,
        (2, _) => (value as i32 >> amount) as u32,
        (_, 0) => value >> 1 | carry << 31,
        (_, _) => value.rotate_right(amount),
    }
}
