//! The options that `run` and `verify` share, and what can be chosen by them: [`CommonArgs`].

use std::path::PathBuf;
use std::time::Duration;

use abi::packet::GuestOutput;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::kernel::KernelArgs;
use super::quantity::{self, milliseconds};
use crate::dirty::DirtyLogKind;
use crate::machine::Heartbeat;
use crate::memory::{Backing, host_page_bytes};

/// Options that `run` and `verify` share.
#[derive(Clone, Debug, Args)]
pub(crate) struct CommonArgs {
    /// The guest's ELF file [default: the built firmware for --arch].
    #[arg(long, value_name = "ELF")]
    pub(crate) firmware: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) kernel: KernelArgs,
    /// What executes the guest.
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    pub(crate) accel: Accel,
    /// Dirty log; several joined by commas are compared page by page.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "auto", value_name = "LOG[,LOG]")]
    pub(crate) dirty_log: Vec<LogChoice>,
    /// The guest's architecture [default: that of --firmware, else aarch64; matrix takes both].
    #[arg(long, value_enum)]
    pub(crate) arch: Option<Arch>,
    /// Format of an ARMv7 guest's translation tables [default: short].
    #[arg(long, value_enum)]
    pub(crate) tables: Option<TablesArg>,
    /// The guest's stage-1 page size; on ARMv7 4k, or 64k with short tables [default: 4k].
    #[arg(long, value_enum)]
    pub(crate) granule: Option<GranuleArg>,
    /// Virtual address bits of the guest: 39 or 48 with 4k, 36, 47 or 48 with 16k, 42 or 48 with 64k [default: 48]; on
    /// ARMv7 32.
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(crate) va_bits: Option<u32>,
    /// Number of vCPUs, 1 to 8 [default: 1].
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(crate) vcpus: Option<u32>,
    /// How every vCPU shows that it runs: by its timer's interrupt every US microseconds, or also by looking at the counter
    /// all the time that it sleeps. What it leaves in its RAM tells how long it did not run [default: off; timer in verify
    /// migrate].
    #[arg(long, value_name = "off|timer[:US]|spin[:US]")]
    pub(crate) heartbeat: Option<Heartbeat>,
    /// The guest prints its counter every second: `clock N s, counter T (line K)`. In verify migrate it always does.
    #[arg(long)]
    pub(crate) clock_line: bool,
    /// What the guest sends on its virtual link: a packet a step and vCPU with a digest of what it wrote (steps), and of its
    /// counter, coarsely (drift) or as it is (counter); two guests with the same workload send the same with steps alone
    /// [default: off].
    #[arg(long, value_enum, default_value_t = OutputArg::Off, hide_default_value = true)]
    pub(crate) guest_output: OutputArg,
    /// Guest RAM, 16M or more.
    #[arg(long, allow_negative_numbers = true, value_name = "SIZE", default_value = "256M", value_parser = quantity::size)]
    pub(crate) ram: u64,
    /// Guest physical address of the region [default: 0x20000000, or above RAM for a region that does not fit there].
    #[arg(long, allow_negative_numbers = true, value_name = "ADDR", value_parser = quantity::address)]
    pub(crate) region_base: Option<u64>,
    /// Size of the region.
    #[arg(long, allow_negative_numbers = true, value_name = "SIZE", default_value = "8M", value_parser = quantity::size)]
    pub(crate) region_size: u64,
    /// What the guest writes, as NAME[:key=value,…]. Names: dirtyram, tstaeshm, stream, hotcold, full, unaligned, pair,
    /// exclusive, code, shared, readonly, mixed, and on aarch64 lse, dczva, tablewalk [default: dirtyram].
    #[arg(long, value_name = "NAME[:k=v,…]")]
    pub(crate) workload: Option<String>,
    /// Seed of the plan; the same seed gives the same writes.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1, value_parser = seed)]
    pub(crate) seed: u64,
    /// Passes after pass 0, which copies everything.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    pub(crate) passes: u64,
    /// Steps of the plan that each vCPU executes in a lockstep pass.
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) steps_per_pass: u64,
    /// lockstep: vCPUs park at a barrier each pass. live: the guest runs on while pages are harvested and copied
    /// [default: lockstep].
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,
    /// In live mode, the guest runs this long between two harvests.
    #[arg(long, allow_negative_numbers = true, value_name = "MS", default_value = "20", value_parser = milliseconds)]
    pub(crate) interval_ms: Duration,
    /// wall: guest time follows the host. icount: guest time is instructions executed; a run repeats bit for bit.
    #[arg(long, value_enum, default_value_t = Clock::Wall)]
    pub(crate) clock: Clock,
    /// Bytes of memory that one bit of the emulator's dirty log stands for [default: the host's page].
    #[arg(long, value_enum)]
    pub(crate) host_page: Option<GranuleArg>,
    /// How the guest maps the region: pages of the granule, or the largest blocks that fit.
    #[arg(long, value_enum, default_value_t = RegionMap::Pages)]
    pub(crate) region_map: RegionMap,
    /// How the guest makes hypercalls.
    #[arg(long, value_enum, default_value_t = Transport::Mmio)]
    pub(crate) hypercall: Transport,
    /// When the guest checks its own memory against the plan.
    #[arg(long, value_enum, default_value_t = SelfCheck::Final)]
    pub(crate) self_check: SelfCheck,
    /// What memory is mapped on: memfd, anon (private anonymous), thp (anonymous with transparent huge pages), or
    /// hugetlb or hugetlb:SIZE (reserved huge pages) [default: memfd; thp for `verify hugepages`].
    #[arg(long, value_name = "KIND", value_parser = backing)]
    pub(crate) backing: Option<Backing>,
    /// Let KVM split block mappings into pages when the dirty log starts, SIZE bytes at a time, rather than when the guest
    /// writes: off, or one of the host's block sizes, like 2M. auto is off, but `verify hugepages` measures both.
    #[arg(long, value_name = "SIZE|off|auto", default_value = "auto", value_parser = eager_split)]
    pub(crate) eager_split: EagerSplit,
    /// Back the region with FILE, which must exist and have the region's size; its contents are cleared.
    #[arg(long, value_name = "FILE")]
    pub(crate) share: Option<PathBuf>,
    /// Copy into FILE, which must exist and have the region's size [default: anonymous memory].
    #[arg(long, value_name = "FILE")]
    pub(crate) dest: Option<PathBuf>,
    /// Write the ledger to FILE; - is standard output, and then no table is printed there.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the ledger, every format and an HTML page with plots into DIR.
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// `--eager-split`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EagerSplit {
    /// Off, unless the scenario is about it.
    Auto,
    /// Blocks are split by writes.
    Off,
    /// Blocks are split when the log starts, so many bytes at a time.
    Chunk(u64),
}

/// `--accel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// KVM where it works, else the emulator.
    Auto,
    /// /dev/kvm of an arm64 host.
    Kvm,
    /// The embedded emulator.
    Emulator,
}

/// `--dirty-log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogChoice {
    /// The accelerator's best one.
    Auto,
    /// This one.
    Named(DirtyLogKind),
}

impl ValueEnum for LogChoice {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Auto,
            Self::Named(DirtyLogKind::Bitmap),
            Self::Named(DirtyLogKind::Manual),
            Self::Named(DirtyLogKind::Initset),
            Self::Named(DirtyLogKind::Ring),
            Self::Named(DirtyLogKind::PagemapScan),
            Self::Named(DirtyLogKind::Emulator),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Auto => ("auto", "The accelerator's best one"),
            Self::Named(kind) => (kind.name(), kind.summary()),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// `--arch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// 64-bit guests.
    Aarch64,
    /// 32-bit guests.
    Armv7,
}

impl From<Arch> for abi::Arch {
    fn from(arg: Arch) -> Self {
        match arg {
            Arch::Aarch64 => Self::Aarch64,
            Arch::Armv7 => Self::Armv7,
        }
    }
}

/// `--tables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TablesArg {
    /// Short descriptors: 4K small pages or 64K large pages.
    Short,
    /// Long descriptors (LPAE), 4K pages.
    Lpae,
}

impl TablesArg {
    /// How to ask for `tables`; AArch64's are the granule's and need no asking.
    pub(crate) const fn of(tables: abi::Tables) -> Option<Self> {
        match tables {
            abi::Tables::V8(_) => None,
            abi::Tables::Short { .. } => Some(Self::Short),
            abi::Tables::Lpae => Some(Self::Lpae),
        }
    }
}

/// `--granule` and `--host-page`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GranuleArg {
    /// 4 KiB.
    #[value(name = "4k", alias = "4K")]
    K4,
    /// 16 KiB.
    #[value(name = "16k", alias = "16K")]
    K16,
    /// 64 KiB.
    #[value(name = "64k", alias = "64K")]
    K64,
}

impl From<GranuleArg> for abi::Granule {
    fn from(arg: GranuleArg) -> Self {
        match arg {
            GranuleArg::K4 => Self::K4,
            GranuleArg::K16 => Self::K16,
            GranuleArg::K64 => Self::K64,
        }
    }
}

impl From<abi::Granule> for GranuleArg {
    fn from(granule: abi::Granule) -> Self {
        match granule {
            abi::Granule::K4 => Self::K4,
            abi::Granule::K16 => Self::K16,
            abi::Granule::K64 => Self::K64,
        }
    }
}

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Barrier each pass.
    Lockstep,
    /// The guest runs on.
    Live,
}

/// `--clock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Clock {
    /// Host time.
    Wall,
    /// Instructions.
    Icount,
}

/// `--region-map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RegionMap {
    /// Pages of the granule.
    Pages,
    /// The largest blocks that fit.
    Blocks,
}

/// `--hypercall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// The doorbell page.
    Mmio,
    /// The HVC instruction.
    Hvc,
}

/// `--guest-output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputArg {
    /// Nothing.
    Off,
    /// The same as every guest that runs the workload.
    Steps,
    /// Another guest's packets differ now and then.
    Drift,
    /// Another guest's packets differ at once.
    Counter,
}

impl From<OutputArg> for GuestOutput {
    fn from(arg: OutputArg) -> Self {
        match arg {
            OutputArg::Off => Self::Off,
            OutputArg::Steps => Self::Steps,
            OutputArg::Drift => Self::Drift,
            OutputArg::Counter => Self::Counter,
        }
    }
}

/// `--self-check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SelfCheck {
    /// After every lockstep pass.
    Every,
    /// After the last pass.
    Final,
    /// Not at all.
    Off,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    Text,
    /// The kernel's test protocol.
    Ktap,
    /// JUnit XML for CI systems.
    Junit,
}

fn backing(text: &str) -> Result<Backing, String> {
    match text {
        "memfd" => Ok(Backing::Memfd),
        "anon" => Ok(Backing::Anonymous),
        "thp" => Ok(Backing::Thp),
        "hugetlb" => Ok(Backing::Hugetlb { page_bytes: None }),
        _ => {
            let size = text
                .strip_prefix("hugetlb:")
                .ok_or_else(|| format!("{text:?} is no backing; choose of memfd, anon, thp, hugetlb, hugetlb:SIZE"))?;
            let page_bytes = quantity::size(size)?;
            if !page_bytes.is_power_of_two() || page_bytes <= host_page_bytes() {
                return Err(format!("{size:?} is no size of a huge page; write a power of two like 2M or 1G"));
            }
            Ok(Backing::Hugetlb { page_bytes: Some(page_bytes) })
        }
    }
}

fn eager_split(text: &str) -> Result<EagerSplit, String> {
    match text {
        "auto" => Ok(EagerSplit::Auto),
        "off" => Ok(EagerSplit::Off),
        size => match quantity::size(size) {
            Ok(bytes) if bytes.is_power_of_two() => Ok(EagerSplit::Chunk(bytes)),
            _ => Err(format!("{size:?} is no block size; write auto, off, or a power of two like 2M")),
        },
    }
}

fn seed(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "");
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    }
    .map_err(|error| format!("{text:?} is not a 64-bit number ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backings_are_read_by_the_names_they_show() {
        let huge = |page_bytes| Backing::Hugetlb { page_bytes };
        for kind in
            [Backing::Memfd, Backing::Anonymous, Backing::Thp, huge(None), huge(Some(2 << 20)), huge(Some(1 << 30))]
        {
            assert_eq!(backing(&kind.to_string()), Ok(kind));
        }
        for bad in ["", "THP", "hugetlb:", "hugetlb:0", "hugetlb:3M", "hugetlb:1K", "hugetlb:-2M", "thp:2M"] {
            assert!(backing(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn chunks_of_eager_splitting_are_powers_of_two() {
        assert_eq!(eager_split("auto"), Ok(EagerSplit::Auto));
        assert_eq!(eager_split("off"), Ok(EagerSplit::Off));
        assert_eq!(eager_split("2M"), Ok(EagerSplit::Chunk(2 << 20)));
        for bad in ["", "on", "0", "3M", "-2M"] {
            assert!(eager_split(bad).is_err(), "{bad}");
        }
    }
}
