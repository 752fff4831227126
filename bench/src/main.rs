//! Live migration measured: hostvmm beside QEMU, the same guest on the same machine in turns, so that only ratios within one run
//! are compared. Started by `scripts/bench migrate`; docs/measurements.md keeps what was found.
//!
//! - [`guest`]: what runs: the firmware with a workload of the original test;
//! - [`vmm`]: a process that runs it, hostvmm's or QEMU's, driven by the same QMP client;
//! - [`measure`]: one migration between two of them; [`report`]: the table and what is required.
//!
//! Exit status: 0, 1 a requirement is missed or a migration went wrong, 4 QEMU is missing.

mod guest;
mod measure;
mod report;
mod vmm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hostvmm::backend::{Accelerator, provenance};

use guest::Guest;
use measure::{BenchError, Migration};
use report::Report;
use vmm::{Program, Way};

/// hostvmm's live migration beside QEMU's: `bench migrate`.
#[derive(Debug, Parser)]
// What is said twice is meant as it is said last: scripts may have options of their own before the caller's.
#[command(name = "bench", args_override_self = true)]
struct Arguments {
    /// What to measure.
    #[arg(value_parser = ["migrate"])]
    what: String,
    /// The hostvmm to measure.
    #[arg(long, value_name = "FILE")]
    hostvmm: PathBuf,
    /// The firmware that runs in it, an ELF file for AArch64.
    #[arg(long, value_name = "ELF")]
    firmware: PathBuf,
    /// The QEMU to measure it beside.
    #[arg(long, value_name = "FILE", default_value = "qemu-system-aarch64")]
    qemu: PathBuf,
    /// The accelerator of both: `emulator` (QEMU's TCG) or `kvm`.
    #[arg(long, default_value = "emulator", value_parser = ["emulator", "kvm"])]
    accel: String,
    /// Migrations of each kind; their median is compared.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Migrations of the small guest that is moved again and again.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    hops: usize,
    /// Pages that the guest writes at first, and in turn afterwards; fewer than the original's for machines without 8 GiB.
    #[arg(long, value_name = "N", default_value_t = 409_600)]
    pages: u64,
    /// Measure only one of the two; then nothing is compared, and what is required of the ratio counts as missed.
    #[arg(long, value_name = "VMM", value_parser = ["hostvmm", "qemu"])]
    only: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(report) => {
            print!("{report}");
            ExitCode::from(u8::from(!report.is_met()))
        }
        Err(BenchError::NoQemu { program, source }) => {
            eprintln!("skipped: cannot run {}: {source}; install qemu-system-arm", program.display());
            ExitCode::from(4)
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Everything, in turns: hostvmm, QEMU, hostvmm, QEMU.
fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let directory = tempfile::tempdir().map_err(BenchError::Directory)?;
    let hostvmm = Program::hostvmm(arguments);
    let qemu = Program::qemu(arguments)?;
    let accelerator = if arguments.accel == "kvm" { Accelerator::Kvm } else { Accelerator::Emulator };
    let mut report = Report::new(provenance(accelerator), &qemu);
    for guest in Guest::originals(arguments.pages) {
        for round in 0..arguments.rounds {
            eprintln!("bench: {guest}, round {} of {}", round + 1, arguments.rounds);
            for (program, way) in
                [(&hostvmm, Way::Deferred), (&qemu, Way::Socket), (&hostvmm, Way::Full), (&hostvmm, Way::Descriptors)]
            {
                if arguments.only.as_ref().is_some_and(|only| *only != program.kind.to_string()) {
                    continue;
                }
                let migration = Migration::measure(program, &guest, way, directory.path())?;
                eprintln!("bench:   {migration}");
                if let Some(parts) = &migration.parts {
                    eprintln!("bench:     {parts}");
                }
                report.add(&guest, migration);
            }
        }
    }
    if arguments.hops > 0 {
        eprintln!("bench: a small guest, {} migrations", arguments.hops);
        report.chain = Some(measure::chain(&hostvmm, arguments.hops, directory.path())?);
    }
    Ok(report)
}
