//! The command line as clap sees it: subcommands, options, defaults and help.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::instance::InstanceArgs;
use super::quantity;
use super::remote::{InfoArgs, MigrateArgs, MigrateCancelArgs};
use super::tuning::TuningArgs;
use crate::dirty::DirtyLogKind;
use crate::machine::Heartbeat;
use crate::memory::{Backing, host_page_bytes};
use crate::verify::cpu::Group;
use crate::verify::{Kill, Moment, Way};

/// Proves, byte for byte, that a hypervisor's dirty-page log and what rests on it deliver every byte.
#[derive(Debug, Parser)]
#[command(
    name = "hostvmm",
    version,
    max_term_width = 110,
    after_help = "Exit status: 0 verified, 1 a check failed, \
    2 usage or bad input, 4 skipped (the host lacks what was asked for).\n\nExample:\n  hostvmm verify passes --workload \
    dirtyram:pages=2048,step=40 --passes 10 --json ledger.json"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell what this host offers: accelerators, dirty logs, page sizes.
    #[command(after_help = "Example:\n  hostvmm probe --json probe.json")]
    Probe(ProbeArgs),
    /// Run the firmware under a dirty log, copy it pass by pass, and verify; or serve an outside replicator.
    #[command(after_help = "Examples:\n  hostvmm run --seed 7 --passes 5\n  hostvmm run --share /dev/shm/aeshmem \
        --bitmap-file /tmp/dirty_bitmap --workload tstaeshm --passes 200\n  hostvmm run --workload \
        dirtyram:pages=2048,step=40 --qmp unix:/tmp/a.qmp\n  hostvmm run --workload dirtyram:pages=2048,step=40 --qmp \
        unix:/tmp/b.qmp --incoming tcp:0:4321")]
    Run(RunArgs),
    /// Move a running VM's guest to where another one waits for it, and say how that went.
    #[command(
        after_help = "Examples:\n  hostvmm migrate tcp:127.0.0.1:4321 --qmp unix:/tmp/a.qmp\n  hostvmm migrate -d \
        unix:/tmp/b.mig --qmp unix:/tmp/a.qmp --downtime-limit 30 --max-bandwidth 100M\n  hostvmm migrate fd:/tmp/b.mig --qmp \
        unix:/tmp/a.qmp\n\nThe other one is started with the same options and --incoming URI. Exit status: 0 the guest has moved, 1 it \
        has not, 2 no such VM. Ctrl-C ends the waiting, not the migration."
    )]
    Migrate(MigrateArgs),
    /// Cancel the migration of a running VM: its guest runs on where it is.
    #[command(after_help = "Example:\n  hostvmm migrate-cancel --qmp unix:/tmp/a.qmp")]
    MigrateCancel(MigrateCancelArgs),
    /// Show the migration of a running VM, or how far its guest is.
    #[command(
        after_help = "Examples:\n  hostvmm info migrate --qmp unix:/tmp/a.qmp --watch\n  hostvmm info status --qmp \
        unix:/tmp/a.qmp --json"
    )]
    Info(InfoArgs),
    /// Run a scenario and check everything in it.
    #[command(after_help = "Examples:\n  hostvmm verify passes --granule 64k --va-bits 42 --workload mixed --vcpus 4 \
        --json ledger.json\n  hostvmm verify passes --arch armv7 --tables lpae --workload mixed\n  hostvmm verify matrix --format \
        ktap\n  hostvmm verify hugepages --backing hugetlb:2M --region-size 32M --vcpus 4\n  hostvmm verify cpu --count 4000 --seed 7\n  \
        hostvmm verify migrate --workload dirtyram:pages=409600,step=2048,sleep_ms=50 --region-size 1600M --ram 64M\n  hostvmm verify \
        cancel --kills some\n  hostvmm verify chain --hops 100")]
    Verify(VerifyArgs),
    /// Keep a file, or a peer, equal to a running guest's region; ends when the guest's writers have stopped.
    #[command(
        after_help = "Examples:\n  hostvmm replicate --share /dev/shm/aeshmem --bitmap-file /tmp/dirty_bitmap --dest \
        /tmp/dest_aeshmem\n  hostvmm replicate --listen tcp:127.0.0.1:4321 --dest /tmp/dest_aeshmem"
    )]
    Replicate(ReplicateArgs),
    /// Show a ledger again, in any format.
    #[command(after_help = "Example:\n  hostvmm report ledger.json --format junit > junit.xml")]
    Report(ReportArgs),
    /// Make a directory of TLS credentials for tests: an authority's, a server's and a client's.
    #[command(
        after_help = "Example:\n  hostvmm tls-keygen /tmp/pki --host node-b\n\nThe files are those of QEMU's tls-creds-x509."
    )]
    TlsKeygen(TlsKeygenArgs),
}

/// Options of `tls-keygen`.
#[derive(Debug, Args)]
pub(crate) struct TlsKeygenArgs {
    /// Where the files go; none of them may exist.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// A name or address that the server is called by, besides localhost, 127.0.0.1 and ::1; may be repeated.
    #[arg(long = "host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
}

/// Options of `probe`.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// Write what was found to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    /// Serve the file protocol of an outside replicator here; the file must have the bitmap's size. Needs --share.
    #[arg(long, value_name = "FILE", requires = "share")]
    pub(crate) bitmap_file: Option<PathBuf>,
    /// Test the report of an unexpected guest exception: the guest reads an unmapped address after it has booted.
    #[arg(long)]
    pub(crate) plant_exception: bool,
    /// Run nothing: write the devicetree of a guest that needs no hostvmm, for another VMM to load at the start of RAM. The
    /// guest runs the workload's steps without end.
    #[arg(long, value_name = "FILE")]
    pub(crate) dump_dtb: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) instance: InstanceArgs,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Which scenario.
    #[arg(value_enum, default_value_t = Scenario::Passes)]
    pub(crate) scenario: Scenario,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(flatten)]
    pub(crate) cpu: CpuArgs,
    #[command(flatten)]
    pub(crate) migration: MigrationArgs,
    #[command(flatten)]
    pub(crate) tuning: TuningArgs,
}

/// Options of `verify migrate`, `verify cancel` and `verify chain` alone.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of verify migrate, verify cancel and verify chain")]
pub(crate) struct MigrationArgs {
    /// How the guest travels: unix, tcp, fd, exec, file, or an address for both sides like tcp:127.0.0.1:4321 [default: unix].
    #[arg(long, value_name = "WAY")]
    pub(crate) uri: Option<Way>,
    /// Of verify migrate: so many guests at once, each with a seed of its own.
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(crate) pairs: Option<u64>,
    /// Of verify migrate: the original ARMv7 test's three workloads, one after the other.
    #[arg(long, conflicts_with_all = ["workload", "pairs"])]
    pub(crate) originals: bool,
    /// Of verify chain: how often the guest moves on [default: 10].
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) hops: Option<u64>,
    /// Of verify cancel: when to cancel, in milliseconds after the start or at boundaries between phases; `all` is each of them.
    #[arg(long, value_name = "MOMENT[,MOMENT]", value_delimiter = ',')]
    pub(crate) at: Vec<String>,
    /// Of verify cancel: do not cancel, but kill, stop, cut off or fail one side, as BOUNDARY=ACTION with kill, stop, cut, fail or
    /// disk-full; `some` is one action at each boundary, `all` is every action.
    #[arg(long, value_name = "KILL[,KILL]", value_delimiter = ',', conflicts_with = "at")]
    pub(crate) kills: Vec<String>,
    /// Verify the guest where it has arrived, before it runs on.
    #[arg(long)]
    pub(crate) verify_guest: bool,
    /// How long the guest runs before its migration and after it [default: 1200 in verify migrate].
    #[arg(long, allow_negative_numbers = true, value_name = "MS", value_parser = milliseconds)]
    pub(crate) settle_ms: Option<Duration>,
    /// How long anything is waited for [default: 120000].
    #[arg(long, allow_negative_numbers = true, value_name = "MS", value_parser = milliseconds)]
    pub(crate) patience_ms: Option<Duration>,
}

impl MigrationArgs {
    /// An option that is given and that `scenario` does not have.
    pub(crate) fn stray(&self, scenario: Scenario) -> Option<&'static str> {
        let is = |of: &[Scenario]| of.contains(&scenario);
        let any = is(&[Scenario::Migrate, Scenario::Cancel, Scenario::Chain]);
        let stray = [
            ("--uri", self.uri.is_some(), any),
            ("--pairs", self.pairs.is_some(), is(&[Scenario::Migrate])),
            ("--originals", self.originals, is(&[Scenario::Migrate])),
            ("--hops", self.hops.is_some(), is(&[Scenario::Chain])),
            ("--at", !self.at.is_empty(), is(&[Scenario::Cancel])),
            ("--kills", !self.kills.is_empty(), is(&[Scenario::Cancel])),
            ("--verify-guest", self.verify_guest, any),
            ("--settle-ms", self.settle_ms.is_some(), any),
            ("--patience-ms", self.patience_ms.is_some(), any),
        ];
        stray.into_iter().find(|(_, given, fits)| *given && !fits).map(|(name, ..)| name)
    }

    /// When to cancel.
    pub(crate) fn moments(&self) -> Result<Vec<Moment>, String> {
        match self.at.as_slice() {
            [] => Ok(Moment::SOME.to_vec()),
            [all] if all == "all" => Ok(Moment::all()),
            moments => moments.iter().map(|text| text.parse()).collect(),
        }
    }

    /// What to do to which side; nothing if migrations are to be cancelled.
    pub(crate) fn kills(&self) -> Result<Vec<Kill>, String> {
        match self.kills.as_slice() {
            [all] if all == "all" => Ok(Kill::all()),
            [some] if some == "some" => Ok(Kill::some()),
            kills => kills.iter().map(|text| text.parse()).collect(),
        }
    }
}

/// Options of `verify cpu` alone.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of verify cpu")]
pub(crate) struct CpuArgs {
    /// Blocks of instructions to compare [default: 100000].
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) count: Option<u64>,
    /// Compare only this block, as a disagreement names it.
    #[arg(long, allow_negative_numbers = true, value_name = "N", conflicts_with = "count", value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    pub(crate) block: Option<u64>,
    /// Compare blocks of this group only: integer, crc, branch, memory, exclusive, simd, system, maintenance, exception,
    /// walk; atomic on AArch64; multiply, media, multiple on ARMv7.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub(crate) group: Option<Group>,
}

impl CpuArgs {
    /// Whether none is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.is_none() && self.block.is_none() && self.group.is_none()
    }
}

/// Scenarios of `verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Passes of harvest, copy and check of one workload.
    Passes,
    /// Every kind of translation tables, pattern and vCPU count that the host can run. Narrow it with --arch, --tables,
    /// --granule, --va-bits, --workload, --vcpus, --mode.
    Matrix,
    /// Plant every kind of fault in the log, the copier and the TLB, and show which checker finds it.
    Faults,
    /// On KVM with huge pages: block mappings before logging, dissolved page by page while the log is exact, rebuilt after.
    Hugepages,
    /// Run random blocks of instructions and page-table walks on KVM and on the emulator, and compare every register and byte.
    /// Of the common options it takes --arch, --seed, --json, --report and --format.
    Cpu,
    /// Move a guest that dirties memory from one process to another, and prove that it is whole, that its clock went on, and how
    /// long it stood still.
    Migrate,
    /// Call migrations off, or kill one side, at every moment: exactly one side has the guest, whole and at full speed.
    Cancel,
    /// Move a guest from process to process, there and back, its dirty history with it.
    Chain,
}

/// Options of `replicate`.
#[derive(Debug, Args)]
pub(crate) struct ReplicateArgs {
    /// The file that backs the running guest's region.
    #[arg(long, value_name = "FILE", required_unless_present = "listen", conflicts_with = "listen")]
    pub(crate) share: Option<PathBuf>,
    /// The bitmap file that `hostvmm run --bitmap-file` serves.
    #[arg(long, value_name = "FILE", required_unless_present = "listen", conflicts_with = "listen")]
    pub(crate) bitmap_file: Option<PathBuf>,
    /// Where the copy goes: an existing file of the region's size, tcp:HOST:PORT or unix:PATH.
    #[arg(long, value_name = "FILE|PEER")]
    pub(crate) dest: String,
    /// Receive from a peer at tcp:HOST:PORT or unix:PATH instead; --dest is then a file.
    #[arg(long, value_name = "PEER")]
    pub(crate) listen: Option<String>,
    /// Pause between two requests.
    #[arg(long, allow_negative_numbers = true, value_name = "MS", default_value = "100", value_parser = milliseconds)]
    pub(crate) interval_ms: Duration,
    /// Give up when the VMM has not answered for this long.
    #[arg(long, allow_negative_numbers = true, value_name = "MS", default_value = "10000", value_parser = milliseconds)]
    pub(crate) timeout_ms: Duration,
}

/// Options of `report`.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// A ledger written by --json.
    #[arg(value_name = "LEDGER")]
    pub(crate) ledger: PathBuf,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Write the ledger, every format and an HTML page with plots into DIR.
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
}

/// Options that `run` and `verify` share.
#[derive(Clone, Debug, Args)]
pub(crate) struct CommonArgs {
    /// The guest's ELF file [default: the built firmware for --arch].
    #[arg(long, value_name = "ELF")]
    pub(crate) firmware: Option<PathBuf>,
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
    /// The guest prints its counter every second: `clock N s, counter T`. In verify migrate it always does.
    #[arg(long)]
    pub(crate) clock_line: bool,
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

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(ms) if ms <= 86_400_000 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("{text:?} is not a number of milliseconds up to one day")),
    }
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

fn group(text: &str) -> Result<Group, String> {
    Group::by_name(text)
        .ok_or_else(|| format!("there is no group {text:?}; there are {}", Group::ALL.map(Group::name).join(", ")))
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
