//! Blocks that walk translation tables: [`walk`].
//!
//! TCR_EL1, TTBR0_EL1 and the tables of the lower half are random: granule, size, levels, blocks and pages, table attributes,
//! access flag and dirty state by hardware or not. The block asks for the translation by AT, and where the output lies in
//! its own frame also loads, stores, updates atomically or fetches there. PAR_EL1, the exception, and the descriptors afterwards are
//! compared.
//!
//! Left out as CONSTRAINED UNPREDICTABLE or later than what is compared: sizes out of range, the contiguous bit, reserved SH,
//! blocks at level 0 and those at level 1 of large granules (FEAT_LPA, FEAT_LPA2), guarded pages.

use emulator::sysreg::enc::*;

use super::asm::{BRK, ISB, mrs, msr};
use super::data::{Draw, LOWER_WALKS, TBI0, UPPER_TCR};
use super::monitor::{field, map};
use crate::verify::cpu::block::{Block, Group, once_in, one_of};

/// A granule: log2 of its bytes and TCR_EL1.TG0.
const GRANULES: [(u32, u64); 3] = [(12, 0), (14, 2), (16, 1)];
/// Bytes of data that are watched, around the address that is accessed.
const DATA_BYTES: u64 = 64;

/// TCR_EL1 bits.
mod tcr {
    pub(super) const EPD0: u64 = 1 << 7;
    pub(super) const AS: u64 = 1 << 36;
    pub(super) const HA: u64 = 1 << 39;
    pub(super) const HD: u64 = 1 << 40;
    pub(super) const HPD0: u64 = 1 << 41;
}

/// The shape of a walk.
struct Shape {
    /// log2 of the granule's bytes.
    page: u32,
    input_bits: u32,
    start: u32,
}

impl Shape {
    /// log2 of what an entry of `level` maps.
    fn shift(&self, level: u32) -> u32 {
        self.page + (self.page - 3) * (3 - level)
    }

    /// The entry of `va` in a table of `level`.
    fn index(&self, level: u32, va: u64) -> u64 {
        let top = if level == self.start { self.input_bits } else { self.shift(level - 1) };
        va >> self.shift(level) & ((1 << (top - self.shift(level))) - 1)
    }
}

/// A walk.
pub(super) fn walk(mut draw: Draw<'_>) -> Block {
    let mut registers = draw.registers();
    let features = *draw.features;
    let frames = map::FRAMES + draw.slot() * map::FRAMES_EACH * map::FRAME_BYTES;
    let random = &mut draw.random;
    let granules: Vec<_> = GRANULES
        .into_iter()
        .filter(|(page, _)| match page {
            14 => features.granule16,
            16 => features.granule64,
            _ => true,
        })
        .collect();
    let (page, tg0) = one_of(random, &granules);
    let size = 16 + random.below(24);
    let input_bits = 64 - size as u32;
    let start = 4 - (input_bits - page).div_ceil(page - 3);
    let can_block = |level: u32| level < 3 && (page == 12 && level >= 1 || level == 2);
    let leaf = (start..=3).find(|&level| level == 3 || can_block(level) && once_in(random, 4)).unwrap_or(3);
    let shape = Shape { page, input_bits, start };

    // Where it leads: to the data frame, or, if it is only asked for, anywhere.
    let accessed = !once_in(random, 3);
    let data = frames + 4 * map::FRAME_BYTES + random.below(map::FRAME_BYTES / DATA_BYTES) * DATA_BYTES;
    let within = (1_u64 << shape.shift(leaf)) - 1;
    let output_size = random.below(features.output_size + 1);
    let output = if accessed { map::RAM + data } else { random.next_u64() & 0x0000_ffff_ffff_ffff };
    let range = (1_u64 << input_bits) - 1;
    let mut va = random.next_u64() & range & !within | output & within & !7;
    let mut tag = 0;
    let tbi = once_in(random, 3);
    match random.below(16) {
        0 | 1 => tag = random.next_u64() << 56,
        // Out of range, unless the tag is ignored.
        2 => va |= 1 << (input_bits + random.below(u64::from(55 - input_bits)) as u32),
        _ => {}
    }

    // The entries on the way.
    let mut memory = Vec::new();
    let mut watched = Vec::new();
    let limits = |random: &mut workload::SplitMix64| if once_in(random, 5) { random.next_u64() & 0xf << 59 } else { 0 };
    let mut table = frames;
    let base = map::RAM + table;
    for level in start..=leaf {
        let at = table + 8 * shape.index(level, va);
        let entry = if once_in(random, 16) {
            // Invalid, or reserved where it is no block. QEMU 7.2 takes one at level 0 for a block.
            let reserved = u64::from(level == 3 || level == 0 && !features.emulated);
            random.next_u64() & !3 & 0x0000_ffff_ffff_ffff | reserved & random.next_u64()
        } else if level < leaf {
            let next = frames + u64::from(level - start + 1) * map::FRAME_BYTES;
            table = next + random.below(map::FRAME_BYTES >> page) * (1 << page);
            (map::RAM + table) | limits(random) | 3
        } else {
            leaf_descriptor(random, accessed, features.emulated, output & !within, level == 3)
        };
        memory.push((at, entry.to_le_bytes().to_vec()));
        watched.push(at..at + 8);
    }
    // What a fetch finds there ends the block.
    let line: Vec<u8> = (0..DATA_BYTES / 4).flat_map(|_| BRK.to_le_bytes()).collect();
    memory.push((data, line));
    watched.push(data..data + DATA_BYTES);

    let mut control = UPPER_TCR | LOWER_WALKS | size | tg0 << 14 | output_size << 32;
    let choices = [
        (tcr::EPD0, once_in(random, 24)),
        (TBI0, tbi),
        (tcr::AS, features.asid16 && once_in(random, 2)),
        (tcr::HA, features.access_flag && once_in(random, 2)),
        (tcr::HD, features.dirty_state && once_in(random, 2)),
        (tcr::HPD0, features.hpds && once_in(random, 4)),
    ];
    control |= choices.iter().filter(|(_, set)| *set).map(|(bit, _)| bit).fold(0, |all, bit| all | bit);
    registers[field::TCR] = control;
    registers[field::TTBR0] = base | random.next_u64() << 48;
    registers[field::MAIR] = mair(random);
    registers[field::SCTLR] &= !(1 << 1);
    registers[field::SCTLR] |= if once_in(random, 6) { 1 << 19 } else { 0 };
    registers[field::CLEAN] = map::WRITE + data;
    registers[0] = va | tag;
    let el0 = accessed && once_in(random, 4);
    registers[field::PSTATE] = registers[field::PSTATE] & !0xf | if el0 { 0 } else { 5 };
    let dirty_state = control & tcr::HD != 0 && features.emulated;
    // QEMU 7.2 judges a fetch without dirty state: AP of a page that hardware may make writable (the pseudocode's
    // "effective value of AP[2]") says to it that EL1 may execute. So with HD set nothing is fetched on it.
    let words = words(random, &features, el0, accessed, dirty_state);
    let mut block = draw.finish(Group::Walk, words, registers);
    // The code, and what the walk needs; no window.
    block.memory.truncate(1);
    block.memory.extend(memory);
    block.watched = watched;
    block
}

/// A page or block, mostly accessible.
fn leaf_descriptor(random: &mut workload::SplitMix64, accessed: bool, emulated: bool, output: u64, page: bool) -> u64 {
    let any = random.next_u64();
    // AP, nG, PXN, UXN, DBM, and bits for software.
    let free = any & (3 << 6 | 1 << 11 | 3 << 53 | 1 << 51 | 0xf << 55);
    let free = if once_in(random, 2) { free & !(3 << 53) } else { free };
    let access = if once_in(random, 5) { 0 } else { 1 << 10 };
    // PAR_EL1 calls Device and Non-cacheable memory outer shareable (PAREncodeShareability), but QEMU 7.2 what is here.
    let shareability = if emulated && !accessed { 2 } else { one_of(random, &[0, 2, 3]) } << 8;
    // What is accessed is Normal write-back, as the host's mapping is.
    let attribute = if accessed { 0 } else { any >> 32 & 7 } << 2;
    output & 0x0000_ffff_ffff_f000 | free | access | shareability | attribute | if page { 3 } else { 1 }
}

/// MAIR_EL1 with every kind of memory; the first two are the monitor's.
fn mair(random: &mut workload::SplitMix64) -> u64 {
    let kinds = [0x00, 0x04, 0x08, 0x0c, 0x44, 0xff, 0xbb, 0xaa, 0x4f, 0xf4, 0xee];
    (2..8).fold(0x00ff, |mair, index| mair | one_of(random, &kinds) << (8 * index))
}

/// AND of a register with all but bits 10:9, which are UNKNOWN in PAR_EL1.
fn without_unknown(register: u32) -> u32 {
    // 62 ones, rotated right by 53.
    0x9240_0000 | 53 << 16 | 61 << 10 | register << 5 | register
}

/// AT and its answer, and an access.
fn words(
    random: &mut workload::SplitMix64,
    features: &super::features::Features,
    el0: bool,
    accessed: bool,
    records: bool,
) -> Vec<u32> {
    let mut words = Vec::new();
    if !el0 {
        let plain = [AT_S1E1R, AT_S1E1W, AT_S1E0R, AT_S1E0W, AT_S1E1RP, AT_S1E1WP];
        let known: Vec<u16> = plain
            .into_iter()
            .enumerate()
            .filter(|&(index, _)| features.pan2 || index < 4)
            // QEMU 7.2 records dirty state for AT of a write; only a store does (D8.5.2).
            .filter(|&(index, _)| !records || index % 2 == 0)
            .map(|(_, operation)| operation)
            .collect();
        for result in 1..=1 + random.below(2) as u32 {
            words.extend([msr(one_of(random, &known), 0), ISB, mrs(result, PAR_EL1), without_unknown(result)]);
        }
    }
    if accessed {
        // LDR X3, [X0]; STR X4, [X0]; LDTR X3, [X0]; STTR X4, [X0]; LDRB W3, [X0]; STP X4, X5, [X0]; BR X0.
        let accesses = [0xf940_0003, 0xf900_0004, 0xf840_0803, 0xf800_0804, 0x3940_0003, 0xa900_1404, 0xd61f_0000];
        let access = one_of(random, if records { &accesses[..6] } else { &accesses });
        // LDADD X4, X3, [X0]. QEMU 7.2 with several CPUs walks for its write alone, and marks no access where that is denied.
        let atomic = features.lse && once_in(random, 8) && !features.emulated_parallel;
        words.push(if atomic { 0xf824_0003 } else { access });
    }
    words
}
