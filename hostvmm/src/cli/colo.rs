//! `verify colo`: from options to a pair of VMs.

use std::time::Duration;

use serde_json::json;

use super::args::VerifyArgs;
use super::common::OutputArg;
use super::ending::Ending;
use super::migrations;
use crate::report::{Ledger, Progress};
use crate::verify::{self, ColoKill, ColoSpec, Failover, Interrupt, Way};

/// Checkpoints unless the command line says otherwise.
const CHECKPOINTS: u64 = 20;
/// Milliseconds between two of them unless it does.
const INTERVAL_MS: u64 = 20;

/// `verify colo`, with `--kills` or without.
///
/// # Errors
/// An [`Ending`] by what is wrong with the options, or what this host lacks.
pub(super) fn run(args: &VerifyArgs, interrupt: &Interrupt) -> Result<Ledger, Ending> {
    let kills = kills(&args.migration.kills).map_err(|why| Ending::usage(format!("--kills: {why}")))?;
    let mut common = args.common.clone();
    if common.guest_output == OutputArg::Off {
        // There must be something to compare.
        common.guest_output = OutputArg::Steps;
    }
    let mut pair = migrations::spec(args, &common, "colo", Duration::ZERO)?;
    if matches!(pair.way, Way::File | Way::Fd) || (matches!(pair.way, Way::Given(_)) && !kills.is_empty()) {
        let way = pair.way;
        return Err(Ending::usage(format!("--uri {way}: a pair needs a way with two live ends, like unix")));
    }
    let options = &args.colo;
    let checkpoints = options.checkpoints.unwrap_or(CHECKPOINTS);
    let interval = options.interval.unwrap_or(INTERVAL_MS);
    let failover = options.failover.unwrap_or(Failover::None);
    pair.flags += &format!(" --interval {interval}");
    if kills.is_empty() {
        pair.flags += &format!(" --checkpoints {checkpoints} --failover {failover}");
    } else if args.migration.settle_ms.is_some() {
        return Err(Ending::usage(
            "--settle-ms: a pair that is broken on purpose runs until that, and as long after".to_owned(),
        ));
    }
    pair.parameters.insert("x-checkpoint-delay".to_owned(), json!(interval));
    let spec = ColoSpec { pair, checkpoints, failover, omission: options.plant_colo_fault };
    if kills.is_empty() {
        let progress = Progress::new("checkpoints", checkpoints);
        verify::run_colo(&spec, interrupt, &progress).map_err(super::ending)
    } else {
        let progress = Progress::new("kills", kills.len() as u64);
        verify::run_colo_kills(&spec, &kills, interrupt, &progress).map_err(super::ending)
    }
}

fn kills(words: &[String]) -> Result<Vec<ColoKill>, String> {
    match words {
        [all] if all == "all" => Ok(ColoKill::all()),
        [some] if some == "some" => Ok(ColoKill::some()),
        kills => kills.iter().map(|text| text.parse()).collect(),
    }
}
