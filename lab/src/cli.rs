//! The command line.
//!
//! Exit status: the command's in the guest; 125 the lab failed, 126 something it needs is not on this machine, 2 usage;
//! of `matrix` as hostvmm's: 0 passed, 1 failed, 4 skipped.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use clap::{Args, Parser, Subcommand};

use crate::batch;
use crate::bench;
use crate::cache::{Cache, Item};
use crate::cross::{self, Programs};
use crate::crossing;
use crate::error::Error;
use crate::guest::{self, Contents};
use crate::kernel::{self, Configuration, KernelChoice, Packaged};
use crate::matrix;
use crate::outside::Outside;
use crate::peer;
use crate::progress::Progress;
use crate::qemu::{Clock, CpuModel, Machine};
use crate::run;
use crate::selftest;

/// Longest that all migrations of a boot may take; many times what they do.
const MIGRATIONS_WITHIN_SECONDS: u64 = 1800;

/// An arm64 Linux with a real /dev/kvm, to run hostvmm in.
#[derive(Debug, Parser)]
#[command(
    name = "lab",
    after_help = "Exit status: of `run`, the command's; 125 the lab failed, 126 something it needs is not on this \
                  machine, 2 usage.\n\nExample: scripts/lab run -- hostvmm probe"
)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fetch the newest of one of Debian's arm64 kernels, and busybox, into the cache.
    Fetch {
        /// Which one.
        #[arg(long, default_value = "6.12")]
        kernel: Packaged,
    },
    /// Build a kernel from Debian's source with one of the project's configurations (minutes), into the cache.
    Kernel {
        /// Host page size and bits of virtual address; p: with stage-2 tables in debugfs.
        configuration: Configuration,
    },
    /// Bring everything that `run` needs, unless it is there.
    Prepare {
        #[command(flatten)]
        machine: MachineOptions,
    },
    /// Boot, run COMMAND with hostvmm and the firmware inside, and bring its output, files and exit code back.
    Run(Run),
    /// Run every guest on every host kernel under every dirty log, one boot a host, and print one table.
    #[command(after_help = "Exit status: 0 what ran has passed, 1 a cell failed, 4 nothing could be run.\n\nExample: \
                            scripts/lab matrix --original --json matrix.json")]
    Matrix(matrix::Options),
    /// Measure what KVM's dirty log costs through hostvmm, beside the kernel's own dirty_log_perf_test, by the instruction clock.
    #[command(after_help = "Exit status: 0 what is required is met, 1 it is not.\n\nExample: scripts/bench kvm")]
    Bench {
        #[command(flatten)]
        machine: MachineOptions,
    },
    /// Measure hostvmm's live migration beside that of Debian's QEMU for arm64, both under KVM.
    #[command(after_help = "Exit status: of `bench migrate`: 0 what is required is met, 1 it is not.\n\nExample: \
                            scripts/bench migrate --lab --pages 16384")]
    BenchMigrate {
        #[command(flatten)]
        machine: MachineOptions,
        /// Options of `bench migrate`, in place of those for a guest of 32 MiB, one round and 20 hops.
        #[arg(last = true, value_name = "OPTION")]
        arguments: Vec<OsString>,
    },
    /// Write the initramfs of a Linux guest, whose program dirties memory and checks it, for hostvmm on a machine of its own.
    #[command(after_help = "Example: scripts/lab linux-initramfs /tmp/initramfs.cpio")]
    LinuxInitramfs {
        /// Where to.
        file: PathBuf,
    },
    /// Move a guest from KVM in the lab to the emulator on this machine, and back: `hostvmm verify cross` between the two.
    #[command(
        after_help = "Exit status: of `hostvmm verify cross`: 0 verified, 1 a check failed.\n\nExamples:\n  scripts/lab \
                            cross\n  scripts/lab cross --kernel 6.1 --json cross.json -- --arch armv7 --moves 6"
    )]
    Cross {
        #[command(flatten)]
        machine: MachineOptions,
        /// Write the ledger to FILE.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Options of `hostvmm verify cross`; what is not given is a small guest that is moved 4 times.
        #[arg(last = true, value_name = "OPTION")]
        arguments: Vec<OsString>,
    },
    /// Boot into a shell; `exit` or Ctrl-A x ends it.
    Shell {
        #[command(flatten)]
        machine: MachineOptions,
    },
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    machine: MachineOptions,
    /// Put the console's log and what COMMAND leaves in its directory here.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Carry a file into the guest, as /files/NAME. Repeatable.
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Run this.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct MachineOptions {
    /// 6.12, 6.1 or 16k: Debian's; 4k39, 4k48, 64k42, 64k48 or 4k48p: built by `kernel`; or the path of an arm64 Image.
    #[arg(long, default_value = "6.12")]
    kernel: KernelChoice,
    /// The CPU that QEMU models.
    #[arg(long, default_value = "max")]
    cpu: CpuModel,
    /// What the guest's time follows; icount makes runs the same to the tick.
    #[arg(long, default_value = "wall")]
    clock: Clock,
    /// CPUs of the lab's machine; 1 with icount.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    cpus: u8,
    /// MiB of memory. With 512 or less Linux leaves transparent huge pages off.
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Carry a kernel for a Linux guest of hostvmm's, one of those above, as /linux/Image, and an initramfs whose program dirties
    /// memory and checks it, as /linux/initramfs.cpio.
    #[arg(long, value_name = "KERNEL")]
    linux: Option<KernelChoice>,
    /// Carry hostvmm's unit tests into the guest, as /files/hostvmm-tests.
    #[arg(long, conflicts_with = "no_build")]
    unit_tests: bool,
    /// Use the kernels that are there, or end with status 126.
    #[arg(long)]
    no_fetch: bool,
    /// Use the programs as they were built last, and the kernels that are there.
    #[arg(long)]
    no_build: bool,
    /// Say nothing of what is being done.
    #[arg(long)]
    quiet: bool,
}

/// Parses the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the checkout");
    match act(checkout, Cli::parse().action) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::from(error.status())
        }
    }
}

fn act(checkout: &Path, action: Action) -> Result<u8, Error> {
    let cache = || Cache::open(&checkout.join(".tidemark/lab"));
    match action {
        Action::Fetch { kernel } => {
            kernel::fetch(&cache()?, kernel, Progress::new(false))?.iter().for_each(announce);
            Ok(0)
        }
        Action::Kernel { configuration } => {
            announce(&kernel::build(&cache()?, checkout, configuration, Progress::new(false))?);
            Ok(0)
        }
        Action::Prepare { machine } => {
            let progress = machine.progress();
            bring(checkout, &cache()?, &machine, progress)?;
            progress.step(format_args!("all is there"));
            Ok(0)
        }
        Action::Run(options) => {
            let work = work_directory()?;
            let machine = prepare(checkout, &options.machine, &options.file, &options.command, work.path())?;
            let sinks: [&mut dyn io::Write; 2] = [&mut io::stdout(), &mut io::stderr()];
            run::run(&machine, work.path(), options.out.as_deref(), options.timeout, sinks)
        }
        Action::Matrix(options) => match matrix::run_matrix(checkout, &options) {
            Err(error) if error.is_unavailable() => {
                eprintln!("lab: {error}");
                Ok(matrix::SKIPPED)
            }
            ended => ended,
        },
        Action::Bench { machine } => measure(checkout, MachineOptions { clock: Clock::Icount, ..machine }),
        Action::BenchMigrate { machine, arguments } => measure_migration(checkout, &machine, &arguments),
        Action::LinuxInitramfs { file } => {
            let programs = cross::programs(checkout, true, Progress::new(false))?;
            let bytes = guest::linux_initramfs(&programs.dirtyram)?;
            fs::write(&file, bytes).map_err(Error::file("write", &file))?;
            Ok(0)
        }
        Action::Cross { machine, json, arguments } => move_between(checkout, &machine, json.as_deref(), &arguments),
        Action::Shell { machine } => {
            let work = work_directory()?;
            let machine = prepare(checkout, &machine, &[], &[], work.path())?;
            run::shell(&machine).map(|()| 0)
        }
    }
}

/// Fetches the kernel and builds the programs, side by side, unless they must be as they are.
fn bring(checkout: &Path, cache: &Cache, options: &MachineOptions, progress: Progress) -> Result<Programs, Error> {
    run::is_available()?;
    thread::scope(|scope| {
        let kernel = scope.spawn(|| match options.no_fetch || options.no_build {
            true => Ok(()),
            false => {
                let linux = options.linux.iter();
                linux.chain([&options.kernel]).try_for_each(|choice| kernel::ensure(cache, checkout, choice, progress))
            }
        });
        // What is missing anyway is said before minutes of building.
        if options.no_fetch || matches!(options.kernel, KernelChoice::Image(_)) {
            kernel::find(&cache.reader()?, checkout, &options.kernel)?;
        }
        let programs = cross::programs(checkout, !options.no_build, progress).and_then(|programs| {
            let unit_tests = options.unit_tests.then(|| cross::unit_tests(checkout, progress)).transpose()?;
            Ok(Programs { unit_tests, ..programs })
        });
        kernel.join().expect("fetching does not panic")?;
        programs
    })
}

/// Runs the benchmark's programs in one boot and prints how they compare.
fn measure(checkout: &Path, options: MachineOptions) -> Result<u8, Error> {
    let cache = Cache::open(&checkout.join(".tidemark/lab"))?;
    let (source, selftest) = selftest::dirty_log_perf_test(&cache, options.progress())?;
    let (work, results) = (work_directory()?, work_directory()?);
    let jobs = bench::jobs();
    let command = ["sh", "-c", &batch::script(&jobs)].map(OsString::from);
    let machine = prepare(checkout, &options, &[selftest], &command, work.path())?;
    let seconds = jobs.iter().map(|job| job.seconds).sum();
    let mut sinks = [io::sink(), io::sink()];
    let [stdout, stderr] = sinks.each_mut().map(|sink| sink as &mut dyn io::Write);
    run::run(&machine, work.path(), Some(results.path()), seconds, [stdout, stderr])?;
    let (table, met) = bench::judge(results.path(), &format!("{} {}", source.package, source.version))?;
    print!("{table}");
    Ok(u8::from(!met))
}

/// Runs `bench migrate` in one boot; it prints its table itself.
fn measure_migration(checkout: &Path, options: &MachineOptions, arguments: &[OsString]) -> Result<u8, Error> {
    let (cache, may_build) = (Cache::open(&checkout.join(".tidemark/lab"))?, !options.no_build);
    let mut files = peer::files(&cache, may_build && !options.no_fetch, options.progress())?;
    files.push(cross::bench(checkout, may_build, options.progress())?);
    let work = work_directory()?;
    let command = peer::command(options.clock, arguments);
    let machine = prepare(checkout, options, &files, &command, work.path())?;
    let sinks: [&mut dyn io::Write; 2] = [&mut io::stdout(), &mut io::stderr()];
    run::run(&machine, work.path(), None, MIGRATIONS_WITHIN_SECONDS, sinks)
}

/// Runs `hostvmm verify cross` in a boot whose guest has a shell outside; it prints its table itself.
fn move_between(
    checkout: &Path,
    options: &MachineOptions,
    json: Option<&Path>,
    arguments: &[OsString],
) -> Result<u8, Error> {
    let hostvmm = cross::own_hostvmm(checkout, !options.no_build, options.progress())?;
    let (work, results) = (work_directory()?, work_directory()?);
    let machine = prepare(checkout, options, &[], &crossing::command(arguments), work.path())?;
    let memory_mib = machine.memory_mib.max(crossing::MEMORY_MIB);
    let machine = Machine { outside: true, memory_mib, ..machine };
    let outside = Outside::listen(work.path(), hostvmm.parent().unwrap_or(checkout))?;
    let sinks: [&mut dyn io::Write; 2] = [&mut io::stdout(), &mut io::stderr()];
    let code = run::run(&machine, work.path(), Some(results.path()), crossing::SECONDS, sinks);
    drop(outside);
    if let Some(to) = json {
        // There is none where the run could not begin, which its exit status says.
        let from = results.path().join(crossing::LEDGER);
        if from.is_file() {
            fs::copy(&from, to).map_err(Error::file("write", to))?;
        }
    }
    code
}

/// Brings kernel and programs, and packs them with the command.
fn prepare(
    checkout: &Path,
    options: &MachineOptions,
    files: &[PathBuf],
    command: &[OsString],
    work: &Path,
) -> Result<Machine, Error> {
    let progress = options.progress();
    let cache = Cache::open(&checkout.join(".tidemark/lab"))?;
    let programs = bring(checkout, &cache, options, progress)?;
    let reader = cache.reader()?;
    let linux = options.linux.as_ref().map(|choice| kernel::find(&reader, checkout, choice)).transpose()?;
    let linux = linux.as_ref().map(|kernel| kernel.image.as_path());
    let contents = Contents { programs: &programs, linux, files, command };
    let (image, initramfs) = guest::pack(&reader, checkout, &options.kernel, &contents, work)?;
    progress.step(format_args!("booting kernel {}", options.kernel));
    Ok(Machine {
        image,
        initramfs,
        cpu: options.cpu,
        clock: options.clock,
        cpus: options.cpus,
        memory_mib: options.memory,
        outside: false,
    })
}

impl MachineOptions {
    fn progress(&self) -> Progress {
        Progress::new(self.quiet)
    }
}

fn announce(item: &Item) {
    eprintln!("lab: {} {} sha256 {}", item.package, item.version, item.sha256);
}

pub(crate) fn work_directory() -> Result<tempfile::TempDir, Error> {
    tempfile::Builder::new().prefix("tidemark-lab-").tempdir().map_err(Error::file("create", &std::env::temp_dir()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_after_the_command_are_the_commands() {
        let cli = Cli::parse_from(["lab", "run", "--clock", "icount", "--", "hostvmm", "probe", "--cpu", "x"]);
        let Action::Run(run) = cli.action else { panic!("{cli:?}") };
        assert_eq!(run.machine.clock, Clock::Icount);
        assert_eq!(run.command, ["hostvmm", "probe", "--cpu", "x"]);
    }
}
