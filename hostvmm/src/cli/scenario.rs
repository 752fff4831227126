//! What `verify` can be asked for, and the options that single scenarios have: [`Scenario`], [`MigrationArgs`], [`CpuArgs`].

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::common::Accel;
use super::points::PointsArg;
use super::quantity::milliseconds;
use super::registers::{CpuArg, MissingArg};
use crate::colo::PlantedOmission;
use crate::verify::cpu::Group;
use crate::verify::{Failover, Kill, Moment, Way};

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
    #[arg(long, conflicts_with_all = ["workload", "region_size", "pairs"])]
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
    /// Of verify migrate, chain, cross and colo: how long the guest runs before its migration and after it [default: 1200 in verify
    /// migrate].
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
        let pair = is(&[Scenario::Colo, Scenario::Cross]);
        let stray = [
            ("--uri", self.uri.is_some(), any || pair),
            ("--pairs", self.pairs.is_some(), is(&[Scenario::Migrate])),
            ("--originals", self.originals, is(&[Scenario::Migrate])),
            ("--hops", self.hops.is_some(), is(&[Scenario::Chain])),
            ("--at", !self.at.is_empty(), is(&[Scenario::Cancel])),
            ("--kills", !self.kills.is_empty(), is(&[Scenario::Cancel, Scenario::Colo])),
            ("--verify-guest", self.verify_guest, any),
            ("--settle-ms", self.settle_ms.is_some(), scenario != Scenario::Cancel && (any || pair)),
            ("--patience-ms", self.patience_ms.is_some(), any || pair),
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

/// Options of `verify colo` alone.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of verify colo (--uri, --kills and --patience-ms as well)")]
pub(crate) struct ColoArgs {
    /// Checkpoints before the pair ends [default: 20].
    #[arg(long, conflicts_with = "kills", allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) checkpoints: Option<u64>,
    /// Milliseconds from one checkpoint to the next at the latest [default: 20].
    #[arg(long, allow_negative_numbers = true, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=3_600_000))]
    pub(crate) interval: Option<u64>,
    /// Which side is killed in the end: primary, secondary, or none, where the secondary is told to leave [default: none].
    #[arg(long, value_name = "SIDE", conflicts_with = "kills", value_parser = failover)]
    pub(crate) failover: Option<Failover>,
    /// Plant a lie about dirty pages at the side that can tell it, as omit-primary@3: it must be found.
    #[arg(long, value_name = "OMISSION@CHECKPOINT", conflicts_with = "kills", hide = true)]
    pub(crate) plant_colo_fault: Option<PlantedOmission>,
}

impl ColoArgs {
    /// Whether none is given.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { checkpoints, interval, failover, plant_colo_fault } = self;
        checkpoints.is_none() && interval.is_none() && failover.is_none() && plant_colo_fault.is_none()
    }
}

fn failover(text: &str) -> Result<Failover, String> {
    text.parse()
}

/// Options of `verify cross` alone.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of verify cross (--uri, --settle-ms and --patience-ms as well)")]
pub(crate) struct CrossArgs {
    /// What executes the guest first [default: emulator].
    #[arg(long, value_enum, value_name = "ACCEL")]
    pub(crate) from: Option<Accel>,
    /// What it is moved to, and back from [default: kvm].
    #[arg(long, value_enum, value_name = "ACCEL")]
    pub(crate) to: Option<Accel>,
    /// VMs of --to are on another host, which COMMAND reaches: it executes there a line of shell that is added to it, as `ssh HOST`
    /// does, and finds hostvmm there by its name.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) to_via: Option<String>,
    /// Moves between the two [default: 4].
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) moves: Option<u64>,
    /// Move between emulators of which one lists other registers than it has: added, added-zero, missing, missing-in-use, renamed,
    /// constant-different, affinity-different, feature-more, view-alone, masked-bit, reserved-bit, or all.
    #[arg(long, value_name = "SKEW|all", conflicts_with_all = ["from", "to", "to_via", "moves", "cpu", "missing_features", "settle_ms"])]
    pub(crate) skew: Option<String>,
    /// Move the guest at points where it asks for it, as of `run`, once at each, and compare every register that it reads before and after.
    #[arg(long, value_name = "LIST|all", conflicts_with_all = ["moves", "skew"])]
    pub(crate) points: Option<PointsArg>,
    /// Have --to list a register that is not what the guest reads.
    #[arg(long, requires = "points", hide = true)]
    pub(crate) plant_unfaithful: bool,
    /// What of the CPU the guest is shown, as of `run`.
    #[arg(long, value_enum, value_name = "MODEL", default_value_t = CpuArg::Host, hide_default_value = true)]
    pub(crate) cpu: CpuArg,
    /// Name features that the other accelerator lacks and move the guest, rather than refuse it: the firmware uses none of them.
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = MissingArg::Refuse, hide_default_value = true)]
    pub(crate) missing_features: MissingArg,
}

impl CrossArgs {
    /// Whether none is given.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { from, to, to_via, moves, skew, points, plant_unfaithful, missing_features, cpu } = self;
        let given = [from.is_some(), to.is_some(), to_via.is_some(), moves.is_some(), skew.is_some(), points.is_some()];
        given == [false; 6] && !plant_unfaithful && *missing_features == MissingArg::Refuse && *cpu == CpuArg::Host
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

/// Options of [`CommonArgs`](super::common::CommonArgs), by their ids, that only passes have.
const OF_PASSES: [&str; 4] = ["passes", "steps_per_pass", "interval_ms", "self_check"];
/// Those that only machines have, which `verify cpu` makes by itself, and those of passes.
const OF_MACHINES: [&str; 29] = [
    "firmware",
    "kernel",
    "initrd",
    "append",
    "dirty_log",
    "tables",
    "granule",
    "va_bits",
    "vcpus",
    "heartbeat",
    "clock_line",
    "guest_output",
    "ram",
    "region_base",
    "region_size",
    "workload",
    "passes",
    "steps_per_pass",
    "mode",
    "interval_ms",
    "clock",
    "host_page",
    "region_map",
    "hypercall",
    "self_check",
    "backing",
    "eager_split",
    "share",
    "dest",
];
/// Options of [`TuningArgs`](super::tuning::TuningArgs), by their ids.
const OF_MIGRATIONS: [&str; 8] = [
    "downtime_limit",
    "max_bandwidth",
    "multifd_channels",
    "compress",
    "auto_converge",
    "postcopy",
    "digest",
    "counter",
];

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
    /// Move a guest between accelerators, there and back: every register of its vCPUs differs after a move only as the table of rules
    /// says (docs/registers.md), and the guest is whole.
    Cross,
    /// Run a guest in two processes at once, made equal by checkpoints: memories are equal, what is flushed is exactly what
    /// either side wrote, and whichever side is lost, the outside world sees each output once.
    Colo,
}

impl Scenario {
    /// Ids of options that every scenario is given, and that this one has no use for.
    pub(crate) fn unused_options(self) -> Vec<&'static str> {
        match self {
            Self::Passes | Self::Matrix | Self::Faults | Self::Hugepages => OF_MIGRATIONS.to_vec(),
            Self::Cpu => [&OF_MACHINES[..], &OF_MIGRATIONS].concat(),
            Self::Migrate | Self::Cancel | Self::Chain | Self::Cross => OF_PASSES.to_vec(),
            Self::Colo => [&OF_PASSES[..], &OF_MIGRATIONS].concat(),
        }
    }
}

fn group(text: &str) -> Result<Group, String> {
    Group::by_name(text)
        .ok_or_else(|| format!("there is no group {text:?}; there are {}", Group::ALL.map(Group::name).join(", ")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::args::Cli;
    use super::*;

    #[test]
    fn options_that_scenarios_do_not_use_are_there() {
        let command = Cli::command();
        let verify = command.find_subcommand("verify").unwrap();
        let ids: Vec<&str> = verify.get_arguments().map(|argument| argument.get_id().as_str()).collect();
        for scenario in Scenario::value_variants() {
            for unused in scenario.unused_options() {
                assert!(ids.contains(&unused), "{scenario:?}: {unused}");
            }
        }
    }
}
