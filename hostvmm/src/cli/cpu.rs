//! `verify cpu`: from options to blocks, and from what was found to a ledger.

use super::args::VerifyArgs;
use super::common::Accel;
use super::ending::Ending;
use crate::backend::{Accelerator, provenance};
use crate::machine::BuildError;
use crate::report::Progress;
use crate::report::ledger::{Ledger, MAX_MISMATCHES, Verdict};
use crate::verify::Interrupt;
use crate::verify::cpu::{CpuError, CpuReport, CpuSpec, Group, run_cpu};

/// Blocks unless the command line says otherwise.
const DEFAULT_COUNT: u64 = 100_000;

/// Compares, and gives the ledger.
///
/// # Errors
/// An [`Ending`] with status 2 for options that make no sense here, 4 where the host has no KVM, 1 for a block that is lost.
pub(super) fn run(args: &VerifyArgs, interrupt: &Interrupt) -> Result<Ledger, Ending> {
    let common = &args.common;
    common.check_outputs()?;
    if common.accel == Accel::Emulator {
        return Err(Ending::usage(
            "verify cpu compares KVM with the emulator: the emulator alone proves nothing; leave out --accel"
                .to_owned(),
        ));
    }
    let arch = common.arch()?;
    if let Some(group) = args.cpu.group
        && !Group::of(arch).any(|one| one == group)
    {
        let groups: Vec<&str> = Group::of(arch).map(Group::name).collect();
        return Err(Ending::usage(format!("no group {} on {arch}; it has {}", group.name(), groups.join(", "))));
    }
    let spec = CpuSpec {
        arch,
        seed: common.seed,
        first: args.cpu.block.unwrap_or(0),
        count: args.cpu.block.map_or_else(|| args.cpu.count.unwrap_or(DEFAULT_COUNT), |_| 1),
        group: args.cpu.group,
    };
    let progress = Progress::new("blocks", spec.count);
    let report = run_cpu(&spec, interrupt, &progress).map_err(|error| ending(&spec, error))?;
    Ok(ledger(args, &spec, report))
}

/// What repeats `block`, or the whole run without one.
fn reproduce(spec: &CpuSpec, block: Option<u64>) -> String {
    let group = spec.group.map_or_else(String::new, |group| format!(" --group {}", group.name()));
    let what = block.map_or_else(|| format!("--count {}", spec.count), |block| format!("--block {block}"));
    let arch = if spec.arch == abi::Arch::Aarch64 { "" } else { " --arch armv7" };
    format!("hostvmm verify cpu{arch} --seed {}{group} {what}", spec.seed)
}

fn ending(spec: &CpuSpec, error: CpuError) -> Ending {
    match error {
        CpuError::Build(BuildError::Unavailable(_)) => Ending::unavailable(error),
        CpuError::Lost { block, .. } => {
            Ending::failed_with(&error, &format!("reproduce: {}", reproduce(spec, Some(block))))
        }
        _ => Ending::failed(error),
    }
}

fn ledger(args: &VerifyArgs, spec: &CpuSpec, report: CpuReport) -> Ledger {
    let mut ledger = args.common.ledger_without_run("cpu", &Ending::skip(String::new()));
    ledger.verdict = Verdict::Pass;
    ledger.reason = None;
    ledger.accelerator = Accelerator::Kvm.to_string();
    provenance(Accelerator::Kvm).clone_into(&mut ledger.provenance);
    ledger.workload = "blocks".to_owned();
    ledger.dirty_log = "none".to_owned();
    ledger.groups = report.groups;
    ledger.mismatches = report.mismatches;
    ledger.mismatches.truncate(MAX_MISMATCHES);
    let first = ledger.mismatches.first().map(|mismatch| mismatch.pass);
    ledger.reproduce = reproduce(spec, first.or(args.cpu.block));
    if report.interrupted || !ledger.mismatches.is_empty() {
        ledger.verdict = Verdict::Fail;
        ledger.reason = report.interrupted.then(|| "interrupted".to_owned());
    }
    ledger
}
