//! A block's inputs and outputs: [`State`], [`inputs`], and where code and data lie.
//!
//! Inputs are a function of the file's seed, the block's number and its words: the files hold no inputs. Where a word is a
//! load, a store or a branch to a register, the base register is chosen so that the access falls into the window and the
//! branch into the block's slot.

use twox_hash::XxHash3_64;

/// Address of the first slot.
pub(crate) const CODE: u64 = 0x4010_0000;
/// Words of the slot that each block has to itself; all but the block's are BRK #0.
pub(crate) const SLOT_WORDS: usize = 32;
/// Position of the block in its slot, in words.
pub(crate) const START_WORD: usize = 8;
/// BRK #0.
pub(crate) const BRK: u32 = 0xd420_0000;
/// Address of the data window. It crosses a page.
pub(crate) const WINDOW: u64 = 0x4001_0e00;
/// Bytes of the data window.
pub(crate) const WINDOW_BYTES: usize = 1024;

const SLOT_BYTES: u64 = 4 * SLOT_WORDS as u64;

/// Address of block `index`.
pub(crate) fn block_address(index: usize) -> u64 {
    CODE + index as u64 * SLOT_BYTES + 4 * START_WORD as u64
}

/// The code of `blocks`, as it is to be at [`CODE`].
pub(crate) fn code<'a>(blocks: impl Iterator<Item = &'a [u32]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for words in blocks {
        let mut slot = [BRK; SLOT_WORDS];
        slot[START_WORD..][..words.len()].copy_from_slice(words);
        bytes.extend(slot.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes
}

/// How a block ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// At a BRK.
    Break,
    /// With an undefined instruction.
    Undefined,
    /// With any other exception.
    Fault,
}

/// Everything a block may read or write.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) x: [u64; 31],
    pub(crate) sp: u64,
    pub(crate) pc: u64,
    pub(crate) nzcv: u32,
    pub(crate) fpsr: u32,
    pub(crate) outcome: Outcome,
    pub(crate) v: [u128; 32],
    pub(crate) window: Vec<u8>,
}

impl State {
    /// Bytes of [`State::to_bytes`].
    pub(crate) const BYTES: usize = 36 * 8 + 32 * 16 + WINDOW_BYTES;

    /// The layout of `struct state` in harness.c.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        for value in self.x.iter().chain([&self.sp, &self.pc]) {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(self.nzcv.to_le_bytes());
        bytes.extend(self.fpsr.to_le_bytes());
        bytes.extend((self.outcome as u64).to_le_bytes());
        bytes.extend([0; 8]);
        for value in self.v {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(&self.window);
        bytes
    }

    /// What the file keeps of the outputs.
    pub(crate) fn digest(&self) -> Digest {
        let bytes = self.to_bytes();
        let (general, rest) = bytes.split_at(36 * 8);
        let (vectors, window) = rest.split_at(32 * 16);
        let part = |bytes: &[u8]| XxHash3_64::oneshot(bytes) as u32;
        Digest { general: part(general), vectors: part(vectors), window: part(window) }
    }

    /// The registers that differ from `other`'s, and the bytes of the window, for people.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut compare = |name: String, before: u128, after: u128| {
            if before != after {
                lines.push(format!("{name}: {before:#x} -> {after:#x}"));
            }
        };
        for index in 0..31 {
            compare(format!("x{index}"), self.x[index].into(), other.x[index].into());
        }
        compare("sp".into(), self.sp.into(), other.sp.into());
        compare("pc".into(), self.pc.into(), other.pc.into());
        compare("nzcv".into(), self.nzcv.into(), other.nzcv.into());
        compare("fpsr".into(), self.fpsr.into(), other.fpsr.into());
        for index in 0..32 {
            compare(format!("v{index}"), self.v[index], other.v[index]);
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

/// The low halves of XXH3_64 of three parts of the outputs, so that a mismatch says where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Digest {
    /// x0 to x30, SP, PC, NZCV, FPSR, outcome.
    pub(crate) general: u32,
    /// v0 to v31.
    pub(crate) vectors: u32,
    /// The data window.
    pub(crate) window: u32,
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Less than `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A value at which carries, signs, shifts and saturation may go wrong, or any.
    pub(crate) fn operand(&mut self) -> u64 {
        let any = self.next();
        match self.below(10) {
            0 => any & 0xff,
            1 => (any & 0xff).wrapping_neg(),
            2 => 1 << (any & 63),
            3 => (1_u64 << (any & 63)).wrapping_sub(1),
            4 => any & 0xffff_ffff,
            5 => {
                // Each byte an extreme.
                let extremes = [0x00, 0x7f, 0x80, 0xff];
                u64::from_le_bytes(std::array::from_fn(|index| extremes[(any >> (2 * index) & 3) as usize]))
            }
            _ => any,
        }
    }
}

/// The inputs of block `index`, which consists of `words`.
pub(crate) fn inputs(seed: u64, index: usize, words: &[u32]) -> State {
    let mut random = Random(seed ^ (index as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95));
    let mut state = State {
        x: std::array::from_fn(|_| random.operand()),
        sp: WINDOW,
        pc: block_address(index),
        nzcv: random.below(16) as u32,
        fpsr: 0,
        outcome: Outcome::Break,
        v: std::array::from_fn(|_| u128::from(random.operand()) << 64 | u128::from(random.operand())),
        window: (0..WINDOW_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect(),
    };
    // Table lookups are about small indices.
    if random.below(4) == 0 {
        state.v[(words[0] >> 16 & 31) as usize] =
            u128::from(random.next()) << 64 & (0x5f5f_5f5f << 80) | 0x1f3f_0708_0110_2030;
    }
    for &word in words.iter().rev() {
        aim(&mut state, word, &mut random);
    }
    state
}

/// Points the base register of `word`, if it has one, into the window or into the slot.
fn aim(state: &mut State, word: u32, random: &mut Random) {
    let base = (word >> 5 & 31) as usize;
    // BR, BLR, RET.
    if matches!(word & 0xffff_fc1f, 0xd61f_0000 | 0xd63f_0000 | 0xd65f_0000) {
        if base != 31 {
            state.x[base] = (state.pc & !(SLOT_BYTES - 1)) + 4 * random.below(START_WORD as u64);
        }
        return;
    }
    let Some((offset, aligned)) = offset(state, word) else { return };
    let target = WINDOW + 256 + random.below(448);
    let target = if aligned { target & !15 } else { target };
    let value = target.wrapping_sub(offset);
    if base == 31 {
        state.sp = value;
    } else {
        state.x[base] = value;
    }
}

/// What a load or store adds to its base register, and whether its address must be aligned; `None` for other words.
fn offset(state: &State, word: u32) -> Option<(u64, bool)> {
    let field = |low: u32, len: u32| word >> low & ((1 << len) - 1);
    let signed = |low: u32, len: u32| i64::from((word << (32 - low - len)) as i32 >> (32 - len)) as u64;
    if word >> 25 & 0b101 != 0b100 {
        return None;
    }
    let vector = field(26, 1) == 1;
    match field(27, 3) {
        // Structures, exclusives.
        0b001 => Some((0, !vector)),
        0b101 => {
            let scale = if vector { 2 + field(30, 2) } else { 2 + field(31, 1) };
            let post_index = field(23, 2) == 1;
            Some((if post_index { 0 } else { signed(15, 7) << scale }, false))
        }
        0b111 => {
            let size = if vector && field(23, 1) == 1 { 4 } else { field(30, 2) };
            if field(24, 1) == 1 {
                return Some((u64::from(field(10, 12)) << size, false));
            }
            match (field(21, 1), field(10, 2)) {
                (0, 1) => Some((0, false)),
                (0, _) => Some((signed(12, 9), false)),
                (_, 2) => Some((register_offset(state, word, size), false)),
                _ => Some((0, true)),
            }
        }
        _ => None,
    }
}

fn register_offset(state: &State, word: u32, size: u32) -> u64 {
    let register = (word >> 16 & 31) as usize;
    let value = if register == 31 { 0 } else { state.x[register] };
    let extended = match word >> 13 & 7 {
        2 => value & 0xffff_ffff,
        6 => value as i32 as u64,
        _ => value,
    };
    if word >> 12 & 1 == 1 { extended << size } else { extended }
}
