//! What is run: [`Block`]; and what it did: [`Effect`].

use std::ops::Range;

use workload::SplitMix64;

/// Turns of the groups that are no encodings of the table, among sixteen blocks.
const TURNS: [Option<Group>; 16] = [
    None,
    None,
    Some(Group::Walk),
    None,
    None,
    Some(Group::System),
    None,
    None,
    Some(Group::Walk),
    None,
    None,
    Some(Group::Exception),
    None,
    Some(Group::Exclusive),
    Some(Group::Walk),
    Some(Group::Maintenance),
];

/// A kind of blocks, for counts and for `--group`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Group {
    /// Integer data processing.
    Integer,
    /// CRC32.
    Crc,
    /// Multiplication and division of AArch32.
    Multiply,
    /// Media instructions of AArch32: parallel, saturating, packing, bit fields.
    Media,
    /// Branches.
    Branch,
    /// Loads and stores.
    Memory,
    /// LDM and STM of AArch32.
    Multiple,
    /// Exclusives, acquire and release.
    Exclusive,
    /// LSE atomics.
    Atomic,
    /// SIMD and floating-point moves.
    Simd,
    /// System registers and PSTATE.
    System,
    /// Cache and TLB maintenance, barriers, hints.
    Maintenance,
    /// Instructions that take exceptions or return from them.
    Exception,
    /// Page-table walks.
    Walk,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Integer,
        Self::Crc,
        Self::Multiply,
        Self::Media,
        Self::Branch,
        Self::Memory,
        Self::Multiple,
        Self::Exclusive,
        Self::Atomic,
        Self::Simd,
        Self::System,
        Self::Maintenance,
        Self::Exception,
        Self::Walk,
    ];

    /// The group whose turn block `number` is, where that is no matter of encodings.
    pub(super) fn of_turn(number: u64) -> Option<Self> {
        TURNS[number as usize % TURNS.len()]
    }

    /// Its name on the command line and in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Crc => "crc",
            Self::Multiply => "multiply",
            Self::Media => "media",
            Self::Branch => "branch",
            Self::Memory => "memory",
            Self::Multiple => "multiple",
            Self::Exclusive => "exclusive",
            Self::Atomic => "atomic",
            Self::Simd => "simd",
            Self::System => "system",
            Self::Maintenance => "maintenance",
            Self::Exception => "exception",
            Self::Walk => "walk",
        }
    }

    /// Those that blocks of `arch` have.
    pub fn of(arch: abi::Arch) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |group| match group {
            Self::Atomic => arch == abi::Arch::Aarch64,
            Self::Multiply | Self::Media | Self::Multiple => arch == abi::Arch::Armv7,
            _ => true,
        })
    }

    /// The group called `name`.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.name() == name)
    }
}

/// Instructions with everything that they start from: a function of seed, number, group and the host's features.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) number: u64,
    pub(super) group: Group,
    pub(super) words: Vec<u32>,
    /// The words of its record.
    pub(super) registers: Vec<u64>,
    /// Memory to be written before it runs: offset in RAM, bytes.
    pub(super) memory: Vec<(u64, Vec<u8>)>,
    /// Memory that it may change, by offset in RAM: compared, then cleared.
    pub(super) watched: Vec<Range<u64>>,
}

/// What a block left behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Effect {
    /// The words of its record.
    pub(super) registers: Vec<u64>,
    /// What [`Block::watched`] holds, one after the other.
    pub(super) memory: Vec<u8>,
}

/// The numbers that block `number` is drawn from.
pub(super) fn random(seed: u64, number: u64) -> SplitMix64 {
    // Blocks must not be drawn from overlapping parts of one sequence.
    let mut mixed = SplitMix64::new(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
    SplitMix64::new(mixed.next_u64())
}

/// A value at which carries, signs, shifts and saturation may go wrong, or any.
pub(super) fn operand(random: &mut SplitMix64) -> u64 {
    let any = random.next_u64();
    match random.below(10) {
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

/// Whether something happens that does so once in `times`.
pub(super) fn once_in(random: &mut SplitMix64, times: u64) -> bool {
    random.below(times) == 0
}

/// One of `choices`.
pub(super) fn one_of<T: Copy>(random: &mut SplitMix64, choices: &[T]) -> T {
    choices[random.below(choices.len() as u64) as usize]
}
