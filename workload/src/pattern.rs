//! The write patterns, the keys that each takes, and which architecture has which.

use abi::Arch;

/// A write pattern. The discriminant is its number in the boot block.
///
/// Step 0 is the initial touch of every page. The vCPUs are kept apart: `pages` is cut into contiguous shares, one a
/// vCPU, and the work of a step is divided likewise, so that the whole step does what the parameter says. The
/// exceptions: `exclusive`, `lse` and `shared` use the same pages on all vCPUs, and each vCPU does the full work;
/// `tablewalk` has its table, slots and work on each vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Pattern {
    /// Increments a counter in `step` evenly spaced pages of `pages` each step, the same ones every time.
    Dirtyram = 1,
    /// Updates words in `writes` randomly chosen pages.
    Tstaeshm = 2,
    /// Writes `step` whole pages one after the other, going on where the last step ended, and round.
    Stream = 3,
    /// Updates words in pages chosen by Zipf's law (`hot` percent of the `writes`) or evenly (the rest).
    Hotcold = 4,
    /// Fills `writes` randomly chosen pages.
    Full = 5,
    /// `writes` single stores that cross page and cache-line boundaries.
    Unaligned = 6,
    /// `writes` stores of register pairs and 128-bit vectors.
    Pair = 7,
    /// Exclusive load/store loops: each vCPU adds `writes` times to words that all share, and to words of its own.
    Exclusive = 8,
    /// AArch64's LSE atomics: as `exclusive`, and swaps and compare-and-swaps on words of its own.
    Lse = 9,
    /// Fills `writes` half pages, and zeroes by AArch64's DC ZVA those filled a step earlier.
    Dczva = 10,
    /// Accesses `writes` of `slots` pages through a live translation table in the region, whose access flags and dirty
    /// states the hardware updates. Each vCPU has a table of its own. AArch64 alone: ARMv7 has no dirty state.
    Tablewalk = 11,
    /// Writes `writes` functions and runs them.
    Code = 12,
    /// All vCPUs write the same `writes` pages, each in cache lines of its own.
    Shared = 13,
    /// `reads` loads; after step 0 nothing may be dirty.
    Readonly = 14,
    /// All others that the architecture has, each in a window of its own; two steps each time the seed chooses `runs` of them.
    Mixed = 15,
}

/// What a parameter means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Number of workload pages; by default all that there are.
    Pages,
    /// Amount of work of a step.
    Work,
    /// Pause after each step.
    SleepMs,
    /// Percentage.
    Hot,
    /// Pages under a live table.
    Slots,
    /// Patterns a step.
    Runs,
}

/// A parameter of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name on the command line.
    pub name: &'static str,
    pub(crate) role: Role,
}

impl Key {
    /// Least and greatest value.
    pub const fn bounds(&self) -> (u64, u64) {
        match self.role {
            Role::Pages => (1, 1 << 40),
            Role::Work => (1, 1 << 32),
            Role::SleepMs => (0, 3_600_000),
            Role::Hot => (0, 100),
            Role::Slots => (1, 8192),
            Role::Runs => (1, Pattern::WINDOWS as u64),
        }
    }
}

const fn key(name: &'static str, role: Role) -> Key {
    Key { name, role }
}

const PAGES: Key = key("pages", Role::Pages);
const STEP: Key = key("step", Role::Work);
const WRITES: Key = key("writes", Role::Work);
const SLEEP_MS: Key = key("sleep_ms", Role::SleepMs);
const HOT: Key = key("hot", Role::Hot);
const SLOTS: Key = key("slots", Role::Slots);
const READS: Key = key("reads", Role::Work);
const RUNS: Key = key("runs", Role::Runs);

impl Pattern {
    /// All patterns, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::Dirtyram,
        Self::Tstaeshm,
        Self::Stream,
        Self::Hotcold,
        Self::Full,
        Self::Unaligned,
        Self::Pair,
        Self::Exclusive,
        Self::Lse,
        Self::Dczva,
        Self::Tablewalk,
        Self::Code,
        Self::Shared,
        Self::Readonly,
        Self::Mixed,
    ];

    /// Most windows of [`Pattern::Mixed`]: one for every other pattern.
    pub(crate) const WINDOWS: usize = Self::ALL.len() - 1;

    /// Whether `arch` has what the pattern is about.
    pub const fn exists_on(self, arch: Arch) -> bool {
        match arch {
            Arch::Aarch64 => true,
            Arch::Armv7 => !matches!(self, Self::Lse | Self::Dczva | Self::Tablewalk),
        }
    }

    /// The patterns that `arch` has, in the order of their numbers.
    pub fn of(arch: Arch) -> impl Iterator<Item = Self> + Clone {
        Self::ALL.into_iter().filter(move |pattern| pattern.exists_on(arch))
    }

    /// The pattern's number in the boot block.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The pattern numbered `number`.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|pattern| pattern.number() == number)
    }

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dirtyram => "dirtyram",
            Self::Tstaeshm => "tstaeshm",
            Self::Stream => "stream",
            Self::Hotcold => "hotcold",
            Self::Full => "full",
            Self::Unaligned => "unaligned",
            Self::Pair => "pair",
            Self::Exclusive => "exclusive",
            Self::Lse => "lse",
            Self::Dczva => "dczva",
            Self::Tablewalk => "tablewalk",
            Self::Code => "code",
            Self::Shared => "shared",
            Self::Readonly => "readonly",
            Self::Mixed => "mixed",
        }
    }

    /// The pattern called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pattern| pattern.name() == name)
    }

    /// The keys that the pattern takes, in the order of the boot block's parameters.
    pub const fn keys(self) -> &'static [Key] {
        match self {
            Self::Dirtyram | Self::Stream => &[PAGES, STEP, SLEEP_MS],
            Self::Hotcold => &[PAGES, WRITES, SLEEP_MS, HOT],
            Self::Tablewalk => &[SLOTS, WRITES, SLEEP_MS],
            Self::Readonly => &[PAGES, READS, SLEEP_MS],
            Self::Mixed => &[RUNS, SLEEP_MS],
            _ => &[PAGES, WRITES, SLEEP_MS],
        }
    }
}

impl core::fmt::Display for Pattern {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.name())
    }
}
