//! A block's inputs and outputs in AArch32 User mode: [`State`], [`inputs`].
//!
//! As for A64, base registers are chosen so that an access falls into the window, and branch targets so that they fall into the
//! block's slot.

use crate::oracle::state::{Digest, Outcome, Random, SLOT_WORDS, START_WORD, WINDOW_BYTES};
use twox_hash::XxHash3_64;

/// Address of the first slot: not A64's, where a 32-bit process has its stack.
pub(crate) const CODE: u64 = 0x6010_0000;
/// Address of the data window. It crosses a page.
pub(crate) const WINDOW: u64 = 0x6001_0e00;

/// BKPT #0.
pub(crate) const BKPT: u32 = 0xe120_0070;

/// N, Z, C, V, Q and GE: what of the CPSR is compared.
pub(crate) const CPSR_FLAGS: u32 = 0xf80f_0000;

const SLOT_BYTES: u32 = 4 * SLOT_WORDS as u32;

/// Address of block `index`.
fn block_address(index: usize) -> u64 {
    CODE + index as u64 * u64::from(SLOT_BYTES) + 4 * START_WORD as u64
}

/// The code of `blocks`, as it is to be at [`CODE`].
pub(crate) fn code<'a>(blocks: impl Iterator<Item = &'a [u32]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for words in blocks {
        let mut slot = [BKPT; SLOT_WORDS];
        slot[START_WORD..][..words.len()].copy_from_slice(words);
        bytes.extend(slot.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes
}

/// Everything a block may read or write.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) r: [u32; 15],
    pub(crate) pc: u32,
    /// The bits of [`CPSR_FLAGS`].
    pub(crate) cpsr: u32,
    pub(crate) outcome: Outcome,
    pub(crate) d: [u64; 32],
    pub(crate) window: Vec<u8>,
}

impl State {
    /// Bytes of the general part of [`State::to_bytes`].
    const GENERAL_BYTES: usize = 18 * 4;
    /// Bytes of [`State::to_bytes`].
    pub(crate) const BYTES: usize = Self::GENERAL_BYTES + 32 * 8 + WINDOW_BYTES;

    /// The layout of `struct state` in harness.c.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        for value in self.r.iter().chain([&self.pc, &self.cpsr, &(self.outcome as u32)]) {
            bytes.extend(value.to_le_bytes());
        }
        for value in self.d {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(&self.window);
        bytes
    }

    /// What the file keeps of the outputs.
    pub(crate) fn digest(&self) -> Digest {
        let bytes = self.to_bytes();
        let (general, rest) = bytes.split_at(Self::GENERAL_BYTES);
        let (vectors, window) = rest.split_at(32 * 8);
        let part = |bytes: &[u8]| XxHash3_64::oneshot(bytes) as u32;
        Digest { general: part(general), vectors: part(vectors), window: part(window) }
    }

    /// The registers that differ from `other`'s, and the bytes of the window, for people.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut compare = |name: String, before: u64, after: u64| {
            if before != after {
                lines.push(format!("{name}: {before:#x} -> {after:#x}"));
            }
        };
        for index in 0..15 {
            compare(format!("r{index}"), self.r[index].into(), other.r[index].into());
        }
        compare("pc".into(), self.pc.into(), other.pc.into());
        compare("cpsr".into(), self.cpsr.into(), other.cpsr.into());
        for index in 0..32 {
            compare(format!("d{index}"), self.d[index], other.d[index]);
        }
        for index in 0..WINDOW_BYTES {
            compare(format!("window[{index:#x}]"), self.window[index].into(), other.window[index].into());
        }
        if self.outcome != other.outcome {
            lines.push(format!("outcome: {:?} -> {:?}", self.outcome, other.outcome));
        }
        lines
    }
}

/// The inputs of block `index`, which consists of `words`.
pub(crate) fn inputs(seed: u64, index: usize, words: &[u32]) -> State {
    let mut random = Random(seed ^ (index as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95));
    let mut state = State {
        r: std::array::from_fn(|_| random.operand() as u32),
        pc: block_address(index) as u32,
        cpsr: (random.next() as u32) & CPSR_FLAGS,
        outcome: Outcome::Break,
        d: std::array::from_fn(|_| random.operand()),
        window: (0..WINDOW_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect(),
    };
    for &word in words.iter().rev() {
        aim(&mut state, word, &mut random);
    }
    state
}

/// An address in the block's slot, before its start.
fn slot_target(state: &State, random: &mut Random) -> u32 {
    (state.pc & !(SLOT_BYTES - 1)) + 4 * random.below(START_WORD as u64) as u32
}

/// Points the base register of `word`, if it has one, into the window, and what it loads as a branch target into the slot.
fn aim(state: &mut State, word: u32, random: &mut Random) {
    let field = |low: u32, len: u32| word >> low & ((1 << len) - 1);
    // BX, BXJ, BLX, and MOV to the program counter.
    if matches!(word & 0x0fff_fff0, 0x012f_ff10 | 0x012f_ff20 | 0x012f_ff30) || word & 0x0fff_fff0 == 0x01a0_f000 {
        let register = field(0, 4) as usize;
        if register != 15 {
            state.r[register] = slot_target(state, random);
        }
        return;
    }
    let Some(access) = Access::of(state, word) else { return };
    let base = field(16, 4) as usize;
    if base == 15 {
        return;
    }
    let target = (WINDOW + 256 + random.below(448)) as u32 & !(access.align - 1);
    state.r[base] = target.wrapping_sub(access.offset);
    if let Some(at) = access.target_at {
        let place = (target.wrapping_add(at) - WINDOW as u32) as usize;
        let target = slot_target(state, random);
        state.window[place..place + 4].copy_from_slice(&target.to_le_bytes());
    }
}

/// What is known of the addresses of a load or store.
struct Access {
    /// What it adds to its base register.
    offset: u32,
    /// What the address must be aligned to.
    align: u32,
    /// Where, from the address, the word lies that it loads into the program counter.
    target_at: Option<u32>,
}

impl Access {
    /// Of `word`; `None` for other instructions.
    fn of(state: &State, word: u32) -> Option<Self> {
        let field = |low: u32, len: u32| word >> low & ((1 << len) - 1);
        let (indexed, up) = (field(24, 1) == 1, field(23, 1) == 1);
        let signed = |offset: u32| match (indexed, up) {
            (false, _) => 0,
            (true, true) => offset,
            (true, false) => offset.wrapping_neg(),
        };
        let register = field(0, 4) as usize;
        let value = if register == 15 { 0 } else { state.r[register] };
        let to_pc = |at: u32| (field(20, 1) == 1 && field(12, 4) == 15).then_some(at);
        if word >> 28 == 15 {
            // Structures: all that may ask for alignment.
            return (field(24, 4) == 4 && field(20, 1) == 0).then_some(Self { offset: 0, align: 32, target_at: None });
        }
        let plain = |offset: u32, align: u32| Some(Self { offset: signed(offset), align, target_at: None });
        match field(25, 3) {
            0b000 if field(4, 4) == 0b1001 && field(24, 1) == 1 => Some(Self { offset: 0, align: 8, target_at: None }),
            0b000 if field(4, 1) == 1 && field(7, 1) == 1 && field(5, 2) != 0 => {
                let dual = field(20, 1) == 0 && field(6, 1) == 1;
                let offset = if field(22, 1) == 1 { field(8, 4) << 4 | field(0, 4) } else { value };
                plain(offset, if dual { 4 } else { 1 })
            }
            0b010 => {
                let align = if to_pc(0).is_some() { 4 } else { 1 };
                Some(Self { offset: signed(field(0, 12)), align, target_at: to_pc(0) })
            }
            0b011 if field(4, 1) == 0 => {
                let align = if to_pc(0).is_some() { 4 } else { 1 };
                let offset = shifted(value, field(5, 2), field(7, 5), state.cpsr >> 29 & 1);
                Some(Self { offset: signed(offset), align, target_at: to_pc(0) })
            }
            0b100 => {
                // The lowest address is what is aimed, or just beside it.
                let count = (field(0, 16)).count_ones();
                let loads_pc = field(20, 1) == 1 && field(15, 1) == 1;
                let lowest = match (indexed, up) {
                    (false, true) => 0,
                    (true, true) => 4,
                    (false, false) => 4_u32.wrapping_sub(4 * count),
                    (true, false) => (4 * count).wrapping_neg(),
                };
                let target_at = loads_pc.then(|| lowest.wrapping_add(4 * (count - 1)));
                Some(Self { offset: 0, align: 4, target_at })
            }
            // VLDR and VSTR; VLDM and VSTM start or end at the base.
            0b110 if field(9, 3) == 0b101 => plain(if field(21, 1) == 0 && indexed { field(0, 8) * 4 } else { 0 }, 4),
            _ => None,
        }
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
