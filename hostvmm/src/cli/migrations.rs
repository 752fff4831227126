//! `verify migrate`, `verify cancel` and `verify chain`: from options to VMs that migrate.

use std::time::Duration;

use super::args::VerifyArgs;
use super::common::{Clock, CommonArgs, Mode};
use super::ending::Ending;
use crate::machine::Heartbeat;
use crate::report::{Ledger, Progress};
use crate::verify::{self, Interrupt, MigrateSpec, Way};

/// The original ARMv7 test's workloads, `dirtyram PAGES STEP SLEEP`, with the pages of each.
const ORIGINALS: [(&str, u64); 3] = [
    ("dirtyram:pages=102580,step=812,sleep_ms=30", 102_580),
    ("dirtyram:pages=409600,step=2048,sleep_ms=50", 409_600),
    ("dirtyram:pages=409600,step=8192,sleep_ms=5", 409_600),
];
/// Bytes of a page in these.
const PAGE_BYTES: u64 = 4096;
/// A region's size is a multiple of this.
const REGION_UNIT: u64 = 2 << 20;
/// Hops unless the command line says otherwise.
const DEFAULT_HOPS: u64 = 10;
/// How long anything is waited for unless the command line says otherwise.
const PATIENCE: Duration = Duration::from_secs(120);
/// Microseconds between two heartbeats unless the command line says otherwise.
const HEARTBEAT_US: u32 = 1000;
/// How long a guest runs before and after a migration that is measured: more than a second, so that its clock is seen to go on.
const SETTLE: Duration = Duration::from_millis(1200);

/// `verify migrate`.
///
/// # Errors
/// An [`Ending`] by what is wrong with the options, or what this host lacks.
pub(super) fn migrate(args: &VerifyArgs, interrupt: &Interrupt) -> Result<Ledger, Ending> {
    let mut specs = Vec::new();
    if args.migration.originals {
        for (workload, pages) in ORIGINALS {
            let mut common = args.common.clone();
            common.workload = Some(workload.to_owned());
            common.region_size = (pages * PAGE_BYTES).next_multiple_of(REGION_UNIT);
            specs.push(spec(args, &common.measured(), "migrate", SETTLE)?);
        }
    } else {
        let one = spec(args, &args.common.measured(), "migrate", SETTLE)?;
        for pair in 0..args.migration.pairs.unwrap_or(1) {
            let mut spec = one.clone();
            spec.base.machine.seed = one.base.machine.seed.wrapping_add(pair);
            specs.push(spec);
        }
        if let (Way::Given(uri), 2..) = (&one.way, specs.len()) {
            return Err(Ending::usage(format!(
                "--uri {uri} is one address; with --pairs write --uri unix or --uri tcp"
            )));
        }
    }
    let progress = Progress::new("migrations", specs.len() as u64);
    verify::run_migrations(&specs, args.migration.pairs.is_some(), interrupt, &progress).map_err(super::ending)
}

/// `verify cancel`, with `--kills` or without.
///
/// # Errors
/// As [`migrate`].
pub(super) fn cancel(args: &VerifyArgs, interrupt: &Interrupt) -> Result<Ledger, Ending> {
    let usage = |option: &'static str| move |why: String| Ending::usage(format!("{option}: {why}"));
    let moments = args.migration.moments().map_err(usage("--at"))?;
    let kills = args.migration.kills().map_err(usage("--kills"))?;
    let spec = spec(args, &args.common, "cancel", Duration::ZERO)?;
    if matches!(spec.way, Way::File | Way::Given(_)) {
        return Err(Ending::usage(format!(
            "--uri {}: verify cancel needs a way with two live ends, like unix",
            spec.way
        )));
    }
    if !kills.is_empty() && !matches!(spec.way, Way::Unix | Way::Tcp) {
        return Err(Ending::usage(format!(
            "--uri {}: a side that was cut off calls again, with --kills write --uri unix or --uri tcp",
            spec.way
        )));
    }
    if kills.is_empty() {
        let progress = Progress::new("cancelled migrations", moments.len() as u64);
        verify::run_cancel(&spec, &moments, interrupt, &progress).map_err(super::ending)
    } else {
        let progress = Progress::new("kills", kills.len() as u64);
        verify::run_kills(&spec, &kills, interrupt, &progress).map_err(super::ending)
    }
}

/// `verify chain`.
///
/// # Errors
/// As [`migrate`].
pub(super) fn chain(args: &VerifyArgs, interrupt: &Interrupt) -> Result<Ledger, Ending> {
    let hops = args.migration.hops.unwrap_or(DEFAULT_HOPS);
    let spec = spec(args, &args.common, "chain", Duration::ZERO)?;
    if let Way::Given(uri) = &spec.way {
        return Err(Ending::usage(format!(
            "--uri {uri} is one address; a chain needs one a hop: write --uri unix or --uri tcp"
        )));
    }
    let progress = Progress::new("hops", hops);
    verify::run_chain(&spec, hops, interrupt, &progress).map_err(super::ending)
}

impl CommonArgs {
    /// The options with what `verify migrate` has by default: a heartbeat, and a clock line.
    fn measured(&self) -> Self {
        let mut options = self.clone();
        if options.kernel.is_asked() {
            // It prints its clock itself, and beats for nobody.
            return options;
        }
        options.heartbeat.get_or_insert(Heartbeat::Timer { period_us: HEARTBEAT_US });
        options.clock_line = true;
        options
    }
}

pub(super) fn spec(
    args: &VerifyArgs,
    common: &CommonArgs,
    scenario: &'static str,
    settle: Duration,
) -> Result<MigrateSpec, Ending> {
    let migration = &args.migration;
    if common.mode == Some(Mode::Lockstep) || common.clock == Clock::Icount {
        return Err(Ending::usage(format!(
            "verify {scenario} moves a guest that runs by the host's clock; leave out --mode lockstep and --clock icount"
        )));
    }
    for (option, given) in [("--share", common.share.is_some()), ("--dest", common.dest.is_some())] {
        if given {
            return Err(Ending::usage(format!(
                "verify {scenario} has several VMs; {option} is a file for one: leave it out"
            )));
        }
    }
    if migration.verify_guest && common.kernel.is_asked() {
        return Err(Ending::usage(
            "--verify-guest compares the guest with the plan, which a kernel does not follow; leave it out".to_owned(),
        ));
    }
    let base = common.spec(scenario)?;
    let way = migration.uri.clone().unwrap_or(Way::Unix);
    let mut flags = vec![format!("--uri {way}"), args.tuning.flags()];
    if migration.verify_guest {
        flags.push("--verify-guest".to_owned());
    }
    flags.extend(migration.hops.map(|hops| format!("--hops {hops}")));
    for (option, list) in [("--at", &migration.at), ("--kills", &migration.kills)] {
        if !list.is_empty() {
            flags.push(format!("{option} {}", list.join(",")));
        }
    }
    flags.retain(|flag| !flag.is_empty());
    Ok(MigrateSpec {
        base,
        way,
        via: None,
        parameters: args.tuning.parameters(),
        capabilities: args.tuning.capabilities(),
        verify_guest: migration.verify_guest,
        settle: migration.settle_ms.unwrap_or(settle),
        timeout: migration.patience_ms.unwrap_or(PATIENCE),
        options: Vec::new(),
        flags: flags.join(" "),
    })
}
