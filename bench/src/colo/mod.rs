//! COLO measured, on the emulator: `bench colo`. Everything is measured by turns within one run, and only ratios within it say
//! something about another machine.
//!
//! - [`pair`]: two processes made a pair, and the outlet, which is in this process;
//! - [`rate`]: checkpoints one after the other of a guest that writes a known share of its memory: how often, how long the guest
//!   stands still for one, and for what; and what the secondary takes of memory;
//! - [`speed`]: a guest whose outputs are in step, beside the same guest alone;
//! - [`report`]: the tables, and what is required.
//!
//! The flush beside a plain copy is measured by the benchmark `colo_flush`; `scripts/bench colo` runs it and passes on what it found.

mod pair;
mod rate;
mod report;
mod speed;

use crate::Arguments;
use crate::measure::BenchError;
use crate::vmm::Program;
pub(crate) use report::Report;

/// Shares of memory that the guest writes between two checkpoints, in percent.
const SHARES: [u64; 2] = [1, 10];

/// Everything, by turns.
///
/// # Errors
/// [`BenchError`].
pub(crate) fn run(arguments: &Arguments) -> Result<Report, BenchError> {
    let directory = tempfile::tempdir().map_err(BenchError::Directory)?;
    let program = Program::hostvmm(arguments);
    let mut report = Report::new(arguments);
    for round in 0..arguments.rounds {
        eprintln!("bench: speed, round {} of {}", round + 1, arguments.rounds);
        let speed = speed::measure(&program, directory.path())?;
        eprintln!("bench:   {speed}");
        report.speeds.push(speed);
    }
    for share in SHARES {
        for digest in ["full", "deferred"] {
            eprintln!("bench: checkpoints of a guest that writes {share} % between two, digest {digest}");
            let rate = rate::measure(&program, share, digest, arguments.checkpoints, directory.path())?;
            eprintln!("bench:   {rate}");
            report.rates.push(rate);
        }
    }
    Ok(report)
}
