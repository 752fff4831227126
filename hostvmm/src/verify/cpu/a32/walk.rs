//! Blocks that walk translation tables: [`walk`], of short descriptors or of long ones.
//!
//! TTBCR, TTBR0, DACR, SCTLR's AFE, TRE, WXN and UWXN, PRRR and NMRR or MAIR, and the tables of the lower addresses are random. The block
//! asks for the translation by ATS1C*, and where the output lies in its own frame also loads, stores or fetches there. PAR, the
//! exception with its fault registers, and memory afterwards are compared.
//!
//! Left out: supersections of more than 32 bits of address, the contiguous bit, reserved SH and memory types.

use emulator::a32::Mode;
use workload::SplitMix64;

use super::asm::{ISB, UDF, bx, mcr, mrrc};
use super::data::{Draw, LONG_WALKS, LOWER_BITS, SHORT_WALKS, domains, remap, sctlr, set_mode, upper};
use super::monitor::{field, map};
use crate::verify::cpu::block::{Block, Group, once_in, one_of};

/// Bytes of data that are watched, around the address that is accessed.
const DATA_BYTES: u64 = 64;
/// Offsets in a walk's frame: second level, third level, data.
const SECOND: u64 = 0x4000;
const THIRD: u64 = 0x5000;
const DATA: u64 = 0x8000;

/// What a walk is made of.
struct Walk {
    va: u64,
    /// Offset in RAM, bytes.
    entries: Vec<(u64, Vec<u8>)>,
}

/// A walk.
pub(super) fn walk(mut draw: Draw) -> Block {
    let mut registers = draw.registers();
    let frame = map::FRAMES + draw.slot() * map::FRAME_BYTES;
    let emulated = draw.emulated;
    let random = &mut draw.random;
    let long = once_in(random, 2);
    let accessed = !once_in(random, 3);
    let data = frame + DATA + random.below(0x8000 / DATA_BYTES) * DATA_BYTES;
    let output = if accessed { map::RAM + data } else { random.next_u64() & 0xffff_ffff };
    let size = one_of(random, &[2, 2, 3, 4, 5, 7]);
    let mut control = sctlr::ON;
    // QEMU 7.2 knows neither with short descriptors.
    if long || !emulated {
        for bit in [sctlr::WXN, sctlr::UWXN] {
            control |= if once_in(random, 6) { bit } else { 0 };
        }
    }
    if !long {
        control |= if once_in(random, 3) { sctlr::AFE } else { 0 };
        control |= if once_in(random, 3) { sctlr::TRE } else { 0 };
    }
    let walk = if long {
        long_walk(random, frame, size, output, accessed, emulated)
    } else {
        short_walk(random, frame, size, output, accessed, control, emulated)
    };
    registers[field::SCTLR] = control;
    registers[field::TTBCR] = if long { LONG_WALKS | size } else { size };
    // EPD0, PD0.
    if once_in(random, 24) {
        registers[field::TTBCR] |= if long { 1 << 7 } else { 1 << 4 };
    }
    registers[field::TTBR0] = map::RAM + frame + if long { 0 } else { SHORT_WALKS };
    registers[field::TTBR0 + 1] = if long { random.below(256) << 16 } else { 0 };
    registers[field::TTBR1] = upper(long);
    (registers[field::MAIR0], registers[field::MAIR1]) = if long { mair(random) } else { remap(random) };
    // Clients, mostly; the monitor's domain always.
    // QEMU 7.2 looks at the domain and XN before the access flag and the second level, which the architecture has first (G5.4).
    let invalid = walk.entries.len() == 2 && walk.entries[1].1[0] & 3 == 0;
    let clients = emulated && (invalid || control & sctlr::AFE != 0);
    registers[field::DACR] = if once_in(random, 3) && !clients { domains(random) } else { 0x5555_5555 };
    registers[field::CLEAN] = map::WRITE + data;
    registers[0] = walk.va;
    let el0 = accessed && once_in(random, 4);
    set_mode(&mut registers, if el0 { Mode::User } else { Mode::Supervisor });
    let words = words(random, el0, accessed, long, emulated);
    // What a fetch finds there ends the block.
    let line: Vec<u8> = (0..DATA_BYTES / 4).flat_map(|_| UDF.to_le_bytes()).collect();
    let mut block = draw.finish(Group::Walk, words, registers);
    block.memory.truncate(1);
    block.watched = walk.entries.iter().map(|(at, bytes)| *at..*at + bytes.len() as u64).collect();
    block.watched.push(data..data + DATA_BYTES);
    block.memory.extend(walk.entries);
    block.memory.push((data, line));
    block
}

/// An address below what TTBR0 covers, sometimes just above, that agrees with `output` within `shift` bits.
fn address(random: &mut SplitMix64, size: u64, output: u64, shift: u32) -> u64 {
    let range = if once_in(random, 16) { (1 << LOWER_BITS) - 1 } else { (1_u64 << (32 - size)) - 1 };
    let within = (1 << shift) - 1;
    (random.next_u64() & !within | output & within & !3) & range
}

/// Sections, supersections, large and small pages.
fn short_walk(
    random: &mut SplitMix64,
    frame: u64,
    size: u64,
    output: u64,
    accessed: bool,
    control: u64,
    emulated: bool,
) -> Walk {
    let shift = one_of(random, &[12, 12, 16, 20, 20, 24]);
    let va = address(random, size, output, shift);
    let any = random.next_u64();
    let afe = control & sctlr::AFE != 0;
    let ap = match any & 7 {
        // Reserved.
        4 => 3,
        ap if afe && !once_in(random, 5) => ap | 1,
        ap => ap,
    };
    // TEX, C, B: write-back where it is accessed, which with TRE is the monitor's region.
    let texcb = if accessed { 0b00111 } else { one_of(random, &[0, 1, 2, 3, 4, 7, 8, 16 + (any >> 8 & 15)]) };
    let (tex, cb) = (texcb >> 2, texcb & 3);
    let (s, ng) = (any >> 12 & 1, any >> 13 & 1);
    let executed = emulated && afe && ap & 1 == 0;
    let (xn, pxn) = (u64::from(!executed && once_in(random, 4)), u64::from(!executed && once_in(random, 6)));
    let domain = any >> 20 & 15;
    // The index is of the table that the address chooses; the bits above it are none of the table's.
    let first_at = frame + 4 * (va >> 20 & ((1 << (12 - size)) - 1));
    let base = output & !((1 << shift) - 1) & 0xffff_ffff;
    let mut entries = Vec::new();
    let mut push = |at: u64, entry: u64| entries.push((at, (entry as u32).to_le_bytes().to_vec()));
    if once_in(random, 16) {
        push(first_at, any & !3);
        return Walk { va, entries };
    }
    if shift >= 20 {
        let attributes = pxn | cb << 2 | xn << 4 | (ap & 3) << 10 | tex << 12 | (ap >> 2) << 15 | s << 16 | ng << 17;
        if shift == 24 {
            // Every entry of the supersection, though one is looked at.
            push(first_at, base | attributes | 1 << 18 | 2);
        } else {
            push(first_at, base | attributes | domain << 5 | 2);
        }
        return Walk { va, entries };
    }
    let second = frame + SECOND + 0x400 * (any >> 32 & 3);
    push(first_at, (map::RAM + second) | domain << 5 | pxn << 2 | 1);
    let common = cb << 2 | (ap & 3) << 4 | (ap >> 2) << 9 | s << 10 | ng << 11;
    let entry = if once_in(random, 16) {
        any & !3
    } else if shift == 16 {
        base | common | tex << 12 | xn << 15 | 1
    } else {
        base | common | tex << 6 | xn | 2
    };
    push(second + 4 * (va >> 12 & 0xff), entry);
    Walk { va, entries }
}

/// Blocks of two sizes and pages.
fn long_walk(random: &mut SplitMix64, frame: u64, size: u64, output: u64, accessed: bool, emulated: bool) -> Walk {
    // 30 bits and less start at level 2.
    let page = !once_in(random, 3);
    let shift = if page { 12 } else { 21 };
    let va = address(random, size, output, shift);
    let any = random.next_u64();
    let output = if accessed { output } else { output | (any >> 56) << 32 };
    let base = output & !((1 << shift) - 1);
    let limits = if once_in(random, 5) { any & 0xf << 59 } else { 0 };
    let invalid = once_in(random, 16);
    let top = 32 - size;
    let second_at = frame + 8 * (va >> 21 & ((1 << (top - 21)) - 1));
    let mut entries = Vec::new();
    let mut push = |at: u64, entry: u64| entries.push((at, entry.to_le_bytes().to_vec()));
    // AP, nG, PXN, XN, and bits for software.
    let free = any & (3 << 6 | 1 << 11 | 0xf << 55);
    let never = if once_in(random, 3) { any & 3 << 53 } else { 0 };
    let access = if once_in(random, 5) { 0 } else { 1 << 10 };
    // PAR calls Device and Non-cacheable memory outer shareable, but QEMU 7.2 what is here.
    let shareability = if emulated && !accessed { 2 } else { one_of(random, &[0, 2, 3]) } << 8;
    let attribute = if accessed { 0 } else { any >> 32 & 7 } << 2;
    let leaf = base & 0xff_ffff_f000 | free | never | access | shareability | attribute;
    if invalid && once_in(random, 2) {
        push(second_at, any & 0xff_ffff_fffc);
    } else if page {
        let third = frame + THIRD;
        push(second_at, (map::RAM + third) | limits | 3);
        push(third + 8 * (va >> 12 & 0x1ff), if invalid { any & 0xff_ffff_fffc | any >> 63 } else { leaf | 3 });
    } else {
        push(second_at, leaf | 1);
    }
    Walk { va, entries }
}

/// MAIR0 and MAIR1 with every kind of memory; the first two are the monitor's.
fn mair(random: &mut SplitMix64) -> (u64, u64) {
    let kinds = [0x00, 0x04, 0x44, 0xff, 0xbb, 0xaa, 0x4f, 0xf4, 0xee];
    let all = (2..8).fold(0x00ff, |mair, index| mair | one_of(random, &kinds) << (8 * index));
    (all & 0xffff_ffff, all >> 32)
}

/// ATS1C* and its answer, and an access.
fn words(random: &mut SplitMix64, el0: bool, accessed: bool, long: bool, emulated: bool) -> Vec<u32> {
    let mut words = Vec::new();
    if !el0 {
        for result in [1, 3].into_iter().take(1 + random.below(2) as usize) {
            let operation = random.below(4) as u32;
            words.extend([mcr((0, 7, 8, operation), 0), ISB, mrrc(result, result + 1, 0, 7)]);
            // What is UNKNOWN in PAR where there is no fault, as `rules` has it: TST and two BICEQ.
            let unknown = unknown_in_par(long, emulated);
            let clear = 0x03c0_0000 | result << 16 | result << 12;
            words.push(0xe310_0001 | result << 16);
            words.extend([clear | 12 << 8 | unknown >> 8, clear | 15 << 8 | unknown >> 2 & 0x3f]);
        }
    }
    if accessed {
        // LDR R5, [R0]; STR R6, [R0]; LDRT R5, [R0]; STRT R6, [R0]; LDRB R5, [R0]; STMIA R0, {R4, R6}; BX R0.
        let accesses = [0xe590_5000, 0xe580_6000, 0xe4b0_5000, 0xe4a0_6000, 0xe5d0_5000, 0xe880_0050, bx(0)];
        words.push(one_of(random, &accesses));
    }
    words
}

/// Bits 10:2 of PAR's low word that are not compared where there is no fault.
pub(super) fn unknown_in_par(long: bool, emulated: bool) -> u32 {
    match (long, emulated) {
        // NS, and bit 10 of the long format.
        (true, _) => 0x600,
        // QEMU 7.2 leaves the attributes of the short format out.
        (false, true) => 0x7fc,
        // NS, and bit 8, which is implementation defined.
        (false, false) => 0x300,
    }
}
