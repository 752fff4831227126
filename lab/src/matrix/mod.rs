//! The matrix: every guest on every host kernel under every dirty log of KVM's, one boot a host, one table.
//!
//! - [`axes`]: what there is to combine; [`cell`]: what became of one; [`report`]: table, KTAP, JSON.

mod axes;
mod cell;
mod report;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{fs, thread};

use clap::ValueEnum;

use self::axes::{Coordinates, Guest, Log, Work};
use self::cell::{Outcome, Verdict};
use self::report::{Host, Matrix, Row};
use crate::batch::{self, Job};
use crate::cache::Cache;
use crate::cross::{self, Programs};
use crate::error::Error;
use crate::guest::{self, Contents};
use crate::kernel::{self, KernelChoice};
use crate::progress::Progress;
use crate::qemu::{Clock, CpuModel, Machine};
use crate::run;

/// Seconds for a guest's boot and end, beyond its cells.
const BOOT_SECONDS: u64 = 60;

/// Exit status: nothing could be run.
pub(crate) const SKIPPED: u8 = 4;

/// Options of `matrix`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these guests.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "GUEST[,GUEST]")]
    guest: Vec<Guest>,
    /// Only these host kernels, or others, as --kernel of `run` [default: 4k39,4k48,16k,64k42,64k48].
    #[arg(long, value_delimiter = ',', value_name = "KERNEL[,KERNEL]")]
    host: Vec<KernelChoice>,
    /// Dirty logs.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bitmap,manual,ring", value_name = "LOG[,LOG]")]
    log: Vec<Log>,
    /// Only the pairs of guest and host of the original ARMv8 test.
    #[arg(long)]
    original: bool,
    #[command(flatten)]
    work: Work,
    /// Seconds that one cell may take.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    cell_timeout: u64,
    /// How the matrix is printed.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Write the matrix to FILE as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put each cell's ledger and output, and each guest's console, into DIR/HOST.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Use the kernels that are there; cells of others are skipped.
    #[arg(long)]
    no_fetch: bool,
    /// Use the programs as they were built last, and the kernels that are there.
    #[arg(long)]
    no_build: bool,
    /// Say nothing of what is being done.
    #[arg(long)]
    quiet: bool,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for people.
    Text,
    /// The kernel's test protocol.
    Ktap,
}

/// Runs the matrix, prints it, and gives the exit status: 0 what ran has passed, 1 a cell failed, 4 nothing was run.
///
/// # Errors
/// If the programs for the guest cannot be built, or results not be written.
pub(crate) fn run_matrix(checkout: &Path, options: &Options) -> Result<u8, Error> {
    let progress = Progress::new(options.quiet);
    let guests = if options.guest.is_empty() { Guest::value_variants() } else { &options.guest };
    let hosts = if options.host.is_empty() { axes::all_hosts() } else { options.host.clone() };
    let mut cells = axes::cells(guests, &hosts, &options.log);
    cells.retain(|cell| cell.original || !options.original);

    run::is_available()?;
    let cache = Cache::open(&checkout.join(".tidemark/lab"))?;
    let programs = cross::programs(checkout, !options.no_build, progress)?;
    let scratch = crate::cli::work_directory()?;
    let out = options.out.as_deref().unwrap_or(scratch.path());
    let mut matrix = Matrix { hosts: Vec::new(), rows: Vec::new() };
    thread::scope(|scope| {
        // The kernel of the next host is fetched or built while one runs.
        let ready = |index: usize| match options.no_fetch || options.no_build {
            true => Ok(()),
            false => kernel::ensure(&cache, checkout, &hosts[index], progress),
        };
        let mut coming = (!hosts.is_empty()).then(|| scope.spawn(move || ready(0)));
        for (index, host) in hosts.iter().enumerate() {
            let came = coming.take().expect("one is always coming").join().expect("fetching does not panic");
            coming = (index + 1 < hosts.len()).then(|| scope.spawn(move || ready(index + 1)));
            let own: Vec<&Coordinates> = cells.iter().filter(|cell| cell.host == index).collect();
            let directory = out.join(host_directory(index, &host.to_string()));
            let outcomes = if own.is_empty() {
                Vec::new()
            } else {
                let run =
                    came.and_then(|()| boot(checkout, &cache, &programs, host, &own, (options, progress), &directory));
                outcomes(run, &own, &options.work, &directory)
            };
            matrix.hosts.push(Host { name: host.to_string(), release: batch::kernel(&directory) });
            matrix.rows.extend(own.into_iter().cloned().zip(outcomes).map(|(cell, outcome)| Row { cell, outcome }));
        }
    });
    // Rows in the order of the cells: guest by guest, not boot by boot.
    matrix.rows.sort_by_key(|row| cells.iter().position(|cell| *cell == row.cell));

    if let Some(path) = &options.json {
        fs::write(path, matrix.json()).map_err(Error::file("write", path))?;
    }
    let rendering = match options.format {
        Format::Text => matrix.text(),
        Format::Ktap => matrix.ktap(),
    };
    // A reader that closed the pipe early has seen what it wanted.
    let _ = io::stdout().write_all(rendering.as_bytes());
    Ok(match matrix.verdict() {
        Verdict::Pass => 0,
        Verdict::Fail => 1,
        Verdict::Skip => SKIPPED,
    })
}

/// Where the files of the host with this index and name go below `--out`.
fn host_directory(index: usize, name: &str) -> String {
    // A path's last part says most; the index keeps two of the same name apart.
    match Path::new(name).file_name().filter(|_| name.contains('/')) {
        Some(file) => format!("{index}-{}", file.to_string_lossy()),
        None => name.to_owned(),
    }
}

/// Runs a host's cells in one boot; what they left is then in `directory`.
fn boot(
    checkout: &Path,
    cache: &Cache,
    programs: &Programs,
    host: &KernelChoice,
    cells: &[&Coordinates],
    (options, progress): (&Options, Progress),
    directory: &Path,
) -> Result<(), Error> {
    let jobs: Vec<Job> = cells
        .iter()
        .map(|cell| Job {
            name: cell.file_name(),
            command: axes::command(cell, &options.work),
            seconds: options.cell_timeout,
        })
        .collect();
    let command = ["sh".into(), "-c".into(), batch::script(&jobs).into()];
    let work = crate::cli::work_directory()?;
    let (image, initramfs) = {
        let reader = cache.reader()?;
        let contents = Contents { programs, linux: None, files: &[], command: &command };
        guest::pack(&reader, checkout, host, &contents, work.path())?
    };
    let machine =
        Machine { image, initramfs, cpu: CpuModel::Max, clock: Clock::Wall, cpus: 1, memory_mib: 1024, outside: false };
    progress.step(format_args!("host {host}: {} cells", cells.len()));
    let seconds = BOOT_SECONDS + options.cell_timeout * cells.len() as u64;
    // An earlier matrix may have left its files here.
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(Error::file("remove", directory))?;
    }
    // What the script says of each cell is progress here; the table alone goes to standard output.
    let mut told = Told { progress, host: host.to_string() };
    run::run(&machine, work.path(), Some(directory), seconds, [&mut told, &mut io::stderr()]).map(drop)
}

/// The outcomes of a host's cells, in their order.
fn outcomes(run: Result<(), Error>, cells: &[&Coordinates], work: &Work, directory: &Path) -> Vec<Outcome> {
    let all = |outcome: Outcome| vec![outcome; cells.len()];
    match run {
        Ok(()) => cells.iter().map(|cell| cell::outcome(directory, cell, work)).collect(),
        Err(error) if error.is_unavailable() => all(Outcome::skipped(error.to_string())),
        Err(error) => all(Outcome::failed(error.to_string())),
    }
}

/// A guest's lines as progress.
struct Told {
    progress: Progress,
    host: String,
}

impl io::Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            self.progress.step(format_args!("host {}: {line}", self.host));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_not_to_be_had_is_skipped_and_one_that_panics_fails() {
        let cells = axes::cells(&[Guest::K4V39], &axes::all_hosts()[..1], &[Log::Bitmap, Log::Ring]);
        let cells: Vec<&Coordinates> = cells.iter().collect();
        let work = Work { passes: 1, workload: "mixed".to_owned(), vcpus: 1, seed: 1 };
        let of = |error| outcomes(Err(error), &cells, &work, Path::new("/nonexistent"));
        let missing = of(Error::NotCached { what: "kernel 4k39".to_owned(), remedy: "kernel 4k39".to_owned() });
        assert!(missing.iter().all(|outcome| outcome.verdict == Verdict::Skip) && missing.len() == 2);
        let panic = of(Error::EndedEarly { why: "Kernel panic".to_owned(), console: String::new() });
        assert!(panic.iter().all(|outcome| outcome.verdict == Verdict::Fail));
    }
}
