//! Live migration and COLO measured, in turns on the same machine, so that only ratios within one run are compared. Started by
//! `scripts/bench migrate` and `scripts/bench colo`; docs/measurements.md keeps what was found.
//!
//! - [`vmm`]: a process that runs a guest, hostvmm's or QEMU's, driven by the same QMP client;
//! - [`guest`]: what is migrated: the firmware with a workload of the original test;
//! - [`measure`]: one migration between two of them; [`report`]: the table and what is required, beside QEMU;
//! - [`colo`]: the same of pairs, for which there is nothing beside.
//!
//! Exit status: 0, 1 a requirement is missed or something went wrong, 4 QEMU is missing.

mod colo;
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

/// hostvmm's live migration beside QEMU's: `bench migrate`; its COLO: `bench colo`.
#[derive(Debug, Parser)]
// What is said twice is meant as it is said last: scripts may have options of their own before the caller's.
#[command(name = "bench", args_override_self = true)]
struct Arguments {
    /// What to measure.
    #[arg(value_parser = ["migrate", "colo"])]
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
    /// Migrations of each kind, or measurements of a pair's speed; their median is compared.
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
    /// Of colo: checkpoints of each kind.
    #[arg(long, value_name = "N", default_value_t = 100)]
    checkpoints: u64,
    /// Of colo: the flush's speed, of a plain copy's, as the benchmark colo_flush has found it; each time that it has.
    #[arg(long, value_name = "RATIO")]
    flush: Vec<f64>,
    /// Of colo: write everything to FILE, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Arguments {
    fn accelerator(&self) -> Accelerator {
        if self.accel == "kvm" { Accelerator::Kvm } else { Accelerator::Emulator }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let is_met = match arguments.what.as_str() {
        "colo" => colo::run(&arguments).and_then(|report| {
            print!("{report}");
            if let Some(path) = &arguments.json {
                std::fs::write(path, format!("{:#}\n", report.json())).map_err(BenchError::Json)?;
            }
            Ok(report.is_met())
        }),
        _ => run(&arguments).map(|report| {
            print!("{report}");
            report.is_met()
        }),
    };
    match is_met {
        Ok(is_met) => ExitCode::from(u8::from(!is_met)),
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

/// All migrations, in turns: hostvmm, QEMU, hostvmm, QEMU.
fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let directory = tempfile::tempdir().map_err(BenchError::Directory)?;
    let hostvmm = Program::hostvmm(arguments);
    let qemu = Program::qemu(arguments)?;
    let mut report = Report::new(provenance(arguments.accelerator()), &qemu);
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
