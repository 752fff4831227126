//! `verify cross`: from options to a guest between accelerators.

use std::time::Duration;

use super::args::VerifyArgs;
use super::common::{Accel, CommonArgs};
use super::ending::Ending;
use super::migrations;
use super::points::PointsArg;
use super::registers::{CpuArg, MissingArg};
use crate::backend::Skew;
use crate::machine::Heartbeat;
use crate::report::{Ledger, Progress};
use crate::verify::{self, CrossSpec, Interrupt, MigrateSpec, Way};

/// Moves unless the command line says otherwise.
const MOVES: u64 = 4;
/// The guest is moved within this time after it has arrived and made a step, unless `--settle-ms` says otherwise.
const WITHIN: Duration = Duration::from_millis(50);
/// Microseconds between two heartbeats: interrupts are pending and timers due at the moments of moves.
const HEARTBEAT_US: u32 = 1000;

/// `verify cross`.
///
/// # Errors
/// An [`Ending`] by what is wrong with the options, or what this host lacks.
pub(super) fn run(args: &VerifyArgs, interrupt: &Interrupt) -> Result<Ledger, Ending> {
    let options = &args.cross;
    let skew = match options.skew.as_deref() {
        None => None,
        Some("all") => Some(None),
        Some(name) => Some(Some(name.parse().map_err(|why| Ending::usage(format!("--skew: {why}")))?)),
    };
    if args.common.accel != Accel::Auto {
        return Err(Ending::usage("verify cross has --from and --to in place of --accel".to_owned()));
    }
    let points = options.points.as_ref();
    let (from, to) = match skew {
        Some(_) => (Accel::Emulator, Accel::Emulator),
        None => (options.from.unwrap_or(Accel::Emulator), options.to.unwrap_or(Accel::Kvm)),
    };
    if (skew.is_some() || options.points.is_some()) && args.common.kernel.is_asked() {
        return Err(Ending::usage(
            "--skew and --points need the firmware, which does what is asked of it; leave out --kernel".to_owned(),
        ));
    }
    let mut spec = CrossSpec { from: side(args, from)?, to: side(args, to)?, moves: options.moves.unwrap_or(MOVES) };
    spec.to.via.clone_from(&options.to_via);
    for side in [&spec.from, &spec.to] {
        if matches!(side.way, Way::File | Way::Fd | Way::Given(_)) {
            return Err(Ending::usage(format!("--uri {}: a move needs a way of its own, like unix or tcp", side.way)));
        }
    }
    let ends = (spec.from.base.machine.accelerator, spec.to.base.machine.accelerator);
    spec.from.flags += &match (&options.skew, points) {
        (Some(name), _) => format!(" --skew {name}"),
        (None, Some(points)) => format!(" --from {} --to {} --points {points}", ends.0, ends.1),
        (None, None) => format!(" --from {} --to {} --moves {}", ends.0, ends.1, spec.moves),
    };
    if let Some(via) = &options.to_via {
        spec.from.flags += &format!(" --to-via '{via}'");
    }
    if options.plant_unfaithful {
        spec.to.options.extend(["--skew-registers", Skew::Unfaithful.name()].map(str::to_owned));
        spec.from.flags += " --plant-unfaithful";
    }
    if options.missing_features == MissingArg::Name {
        spec.from.flags += " --missing-features name";
    }
    if options.cpu == CpuArg::Baseline {
        spec.from.flags += " --cpu baseline";
    }
    if let Some(skew) = skew {
        if verify::skew_count(skew) == 0 {
            return Err(Ending::usage("--skew: a guest must read its registers to find that; see --points".to_owned()));
        }
        let progress = Progress::new("moves", verify::skew_count(skew));
        return verify::run_skews(&spec, skew, interrupt, &progress).map_err(super::ending);
    }
    if let Some(points) = points.map(PointsArg::points) {
        let progress = Progress::new("moves", points.len() as u64);
        return verify::run_points(&spec, points, interrupt, &progress).map_err(super::ending);
    }
    let progress = Progress::new("moves", spec.moves + 1);
    verify::run_cross(&spec, interrupt, &progress).map_err(super::ending)
}

/// The guest on `accel`.
fn side(args: &VerifyArgs, accel: Accel) -> Result<MigrateSpec, Ending> {
    let mut common: CommonArgs = args.common.clone();
    common.accel = accel;
    if !common.kernel.is_asked() {
        common.heartbeat.get_or_insert(Heartbeat::Timer { period_us: HEARTBEAT_US });
    }
    let mut spec = migrations::spec(args, &common, "cross", WITHIN)?;
    if args.cross.missing_features == MissingArg::Name {
        spec.options.extend(["--missing-features", "name"].map(str::to_owned));
    }
    if let Some(points) = &args.cross.points {
        spec.options.extend(["--points".to_owned(), points.to_string()]);
    }
    if args.cross.cpu == CpuArg::Baseline {
        spec.options.extend(["--cpu", "baseline"].map(str::to_owned));
    }
    Ok(spec)
}
