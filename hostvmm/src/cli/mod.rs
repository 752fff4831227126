//! The command line: parses it, runs what it asks for, and turns every ending into one line and an exit status.
//!
//! - [`args`], [`common`], [`scenario`], [`tuning`]: what clap sees; [`spec`], [`migrations`], [`instance`]: from options to a run; [`remote`]: clients of one; [`mod@ending`]: exit statuses; [`quantity`]:
//!   numbers.
//!
//! Exit status: 0 verified, 1 a check failed, 2 usage or bad input, 4 skipped.

mod args;
mod colo;
mod common;
mod cpu;
mod cross;
mod ending;
mod instance;
mod kernel;
mod migrations;
mod points;
mod quantity;
mod registers;
mod remote;
mod replicate;
mod scenario;
mod spec;
mod tuning;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use abi::packet::GuestOutput;
use abi::{Arch, Granule, Tables, VaBits};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use workload::{Geometry, Pattern, Workload};

use self::args::{Cli, Command, OutletArgs, ReportArgs, RunArgs, TlsKeygenArgs, VerifyArgs};
use self::common::{CommonArgs, EagerSplit, Format, GranuleArg, TablesArg};
use self::ending::{Ending, say, tell};
use self::scenario::Scenario;
use crate::colo::outlet::{JsonLines, OutletServer, Sink};
use crate::machine::devicetree;
use crate::migrate::transport::tls::keygen;
use crate::report::{self, Ledger, Progress, Verdict};
use crate::verify::{self, Axes, Interrupt, RunError, Spec};

/// Parses the process's arguments, runs the command, and reports.
pub fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches().and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Probe(args) => crate::probe::run(args.json.as_deref()).map_err(Ending::input),
        Command::Run(args) => run(&args),
        Command::Verify(args) => verify(&args, matches.subcommand_matches("verify")),
        Command::Replicate(args) => replicate::run(&args),
        Command::Report(args) => show(&args),
        Command::Migrate(args) => remote::migrate(&args),
        Command::MigrateCancel(args) => remote::cancel(&args),
        Command::Info(args) => remote::info(&args),
        Command::Relay(args) => remote::relay(&args),
        Command::TlsKeygen(args) => tls_keygen(&args),
        Command::Outlet(args) => outlet(&args),
    };
    match result {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(ending) => ending.report(),
    }
}

/// clap's complaint in one line; help and version go to standard output and are no error.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody is left to tell if standard output is gone.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let paragraph: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let hint =
        text.lines().map(str::trim).find(|line| line.starts_with("[possible values") || line.starts_with("tip:"));
    let line = paragraph.join(" ");
    let name = Cli::command().get_name().to_owned();
    match hint {
        Some(hint) if !line.contains(hint) => tell(&format!("{line} ({hint}); see `{name} --help`")),
        _ => tell(&format!("{line}; see `{name} --help`")),
    }
    ExitCode::from(2)
}

/// Ctrl-C and SIGTERM ask for a clean end; a second one ends the process at once.
fn interrupt_on_signals() -> Result<Arc<Interrupt>, Ending> {
    let interrupt = Arc::new(Interrupt::default());
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Ending::failed)?;
    let raised = Arc::clone(&interrupt);
    std::thread::spawn(move || {
        for _ in &mut signals {
            if raised.is_raised() {
                std::process::exit(i32::from(Verdict::Fail.exit_code()));
            }
            raised.raise();
        }
    });
    Ok(interrupt)
}

fn run(args: &RunArgs) -> Result<Verdict, Ending> {
    if let Some(path) = &args.dump_dtb {
        return dump_devicetree(args, path);
    }
    if let Some(stray) = args.instance.stray().filter(|_| !args.common.kernel.is_asked()) {
        return Err(Ending::usage(format!("{stray} is for a VM under remote control; add --qmp unix:PATH")));
    }
    if args.instance.is_asked() || args.common.kernel.is_asked() {
        if args.bitmap_file.is_some() {
            return Err(Ending::usage(
                "--bitmap-file makes passes, which a VM under remote control does not".to_owned(),
            ));
        }
        let outcome = instance::run(&args.instance, &args.common, args.plant_exception);
        return publish(outcome, "run", &args.common);
    }
    let interrupt = interrupt_on_signals()?;
    let outcome = args.common.spec("run").and_then(|mut spec| {
        spec.machine.plant_exception = args.plant_exception;
        let progress = Progress::new("passes", spec.passes + 1);
        match &args.bitmap_file {
            Some(bitmap) => verify::run_served(&spec, bitmap, &interrupt, &progress),
            None => verify::run_passes(&spec, &interrupt, &progress),
        }
        .map_err(ending)
    });
    publish(outcome, "run", &args.common)
}

/// Writes the devicetree of a guest on its own, and says what it is of.
fn dump_devicetree(args: &RunArgs, path: &std::path::Path) -> Result<Verdict, Ending> {
    if args.common.kernel.is_asked() {
        return Err(Ending::usage("--dump-dtb is of the firmware's machine; leave out --kernel".to_owned()));
    }
    let mut machine = args.common.spec("run")?.machine;
    if machine.output != GuestOutput::Off {
        return Err(Ending::usage("--guest-output needs a host to send to; leave it out with --dump-dtb".to_owned()));
    }
    machine.standalone = true;
    let layout = machine.layout().map_err(Ending::input)?;
    let blob = devicetree::build(&machine.boot_info(&layout)).map_err(Ending::failed)?;
    std::fs::write(path, blob).map_err(|error| Ending::usage(format!("--dump-dtb {}: {error}", path.display())))?;
    say(&format!("devicetree: {}, RAM {}, region {}", path.display(), layout.ram(), layout.region()));
    Ok(Verdict::Pass)
}

fn verify(args: &VerifyArgs, given: Option<&ArgMatches>) -> Result<Verdict, Ending> {
    let interrupt = interrupt_on_signals()?;
    let common = &args.common;
    let is_given = |option: &&str| given.and_then(|given| given.value_source(option)) == Some(ValueSource::CommandLine);
    if let Some(stray) = args.scenario.unused_options().iter().copied().find(is_given) {
        let option = stray.replace('_', "-");
        return Err(Ending::usage(format!("--{option} is no option of this scenario; see `hostvmm verify --help`")));
    }
    if args.scenario != Scenario::Cpu && !args.cpu.is_empty() {
        return Err(Ending::usage("--count, --block and --group are options of verify cpu".to_owned()));
    }
    if let Some(stray) = args.migration.stray(args.scenario) {
        return Err(Ending::usage(format!("{stray} is no option of this scenario; see `hostvmm verify --help`")));
    }
    if args.scenario != Scenario::Colo && !args.colo.is_empty() {
        return Err(Ending::usage("--checkpoints, --interval and --failover are options of verify colo".to_owned()));
    }
    if args.scenario != Scenario::Cross && !args.cross.is_empty() {
        return Err(Ending::usage(
            "--from, --to, --moves, --skew, --cpu and --missing-features are options of verify cross".to_owned(),
        ));
    }
    match args.scenario {
        Scenario::Cross => publish(cross::run(args, &interrupt), "cross", common),
        Scenario::Colo => publish(colo::run(args, &interrupt), "colo", common),
        Scenario::Migrate => publish(migrations::migrate(args, &interrupt), "migrate", common),
        Scenario::Cancel => publish(migrations::cancel(args, &interrupt), "cancel", common),
        Scenario::Chain => publish(migrations::chain(args, &interrupt), "chain", common),
        Scenario::Cpu => publish(cpu::run(args, &interrupt), "cpu", common),
        Scenario::Passes => {
            let outcome = common.spec("passes").and_then(|spec| {
                let progress = Progress::new("passes", spec.passes + 1);
                verify::run_passes(&spec, &interrupt, &progress).map_err(ending)
            });
            publish(outcome, "passes", common)
        }
        Scenario::Matrix => {
            let outcome = translations(common).and_then(|translations| {
                // The options' own regime may be none where only one of the two is named: any that fits will do here.
                let (first, firmware) = &translations[0];
                let mut any = common.clone();
                (any.granule, any.va_bits) = (Some(GranuleArg::from(first.granule())), Some(first.va_bits()));
                any.tables = TablesArg::of(*first);
                any.firmware = Some(firmware.clone());
                let spec = any.spec("matrix")?;
                let axes = axes(common, &spec, translations)?;
                let progress = Progress::new("matrix", axes.cells(&spec).len() as u64);
                verify::run_matrix(&spec, &axes, &interrupt, &progress).map_err(ending)
            });
            publish(outcome, "matrix", common)
        }
        Scenario::Faults => {
            let outcome = common.spec("faults").and_then(|spec| {
                let progress = Progress::new("faults", verify::fault_count());
                verify::run_faults(&spec, &interrupt, &progress).map_err(ending)
            });
            publish(outcome, "faults", common)
        }
        Scenario::Hugepages => {
            let options = common.for_hugepages()?;
            let outcome = options.spec("hugepages").and_then(|spec| {
                let progress = Progress::new("passes", spec.passes + 1);
                let both = options.eager_split == EagerSplit::Auto;
                verify::run_hugepages(&spec, both, &interrupt, &progress).map_err(ending)
            });
            publish(outcome, "hugepages", &options)
        }
    }
}

/// The translation tables that the options leave open, each with the firmware that builds them: at least one.
fn translations(common: &CommonArgs) -> Result<Vec<(Tables, PathBuf)>, Ending> {
    let granule = common.granule.map(Granule::from);
    let is_open = |tables: &Tables| {
        granule.is_none_or(|granule| tables.granule() == granule)
            && common.va_bits.is_none_or(|bits| tables.va_bits() == bits)
            && common.tables.is_none_or(|named| TablesArg::of(*tables) == Some(named))
    };
    let of = |arch: Arch| -> Result<Vec<(Tables, PathBuf)>, Ending> {
        let open: Vec<Tables> = match arch {
            Arch::Aarch64 => VaBits::ALL.into_iter().map(Tables::V8).filter(is_open).collect(),
            Arch::Armv7 => Tables::ARMV7.into_iter().filter(is_open).collect(),
        };
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let firmware = common.firmware(arch)?;
        Ok(open.into_iter().map(|tables| (tables, firmware.clone())).collect())
    };
    let asked = common.arch()?;
    let mut translations = of(asked)?;
    let both = common.arch.is_none() && common.firmware.is_none() && common.tables.is_none();
    if both {
        match of(Arch::Armv7) {
            Ok(more) => translations.extend(more),
            Err(ending) => tell(&format!("the matrix has no ARMv7 rows: {}", ending.message())),
        }
    }
    if translations.is_empty() {
        // The options' own regime is none, and the words for that are those of any other run.
        return Err(match common.spec("matrix") {
            Err(ending) => ending,
            Ok(_) => Ending::usage(
                "no translation tables are left to range over; leave out --granule or --va-bits".to_owned(),
            ),
        });
    }
    Ok(translations)
}

/// What the matrix ranges over: everything that the options leave open.
fn axes(common: &CommonArgs, spec: &Spec, translations: Vec<(Tables, PathBuf)>) -> Result<Axes, Ending> {
    let workloads: Vec<Workload> = match &common.workload {
        Some(text) => vec![spec::parse_workload(text)?],
        // dirtyram's default sleep is the original's; a matrix has no time for it.
        None => Pattern::ALL
            .into_iter()
            .map(|pattern| {
                if pattern == Pattern::Dirtyram {
                    spec::parse_workload("dirtyram:sleep_ms=0")
                } else {
                    Ok(Workload::new(pattern))
                }
            })
            .collect::<Result<_, _>>()?,
    };
    let vcpus = common.vcpus.map_or_else(|| vec![1, 2, 4], |vcpus| vec![vcpus as usize]);
    let modes = match common.mode {
        Some(_) => vec![spec.mode],
        None => vec![verify::Mode::Lockstep, verify::Mode::Live],
    };
    let axes = Axes { translations, workloads, vcpus, modes };
    for cell in axes.cells(spec) {
        let layout = cell.machine.layout().map_err(Ending::input)?;
        let geometry =
            Geometry { region: layout.region(), tables: cell.machine.tables, vcpus: cell.machine.vcpus as u32 };
        spec::check_plan(&cell.workload, cell.machine.seed, geometry)?;
    }
    Ok(axes)
}

/// Which exit status an error of a run means.
fn ending(error: RunError) -> Ending {
    if error.is_unavailable() {
        Ending::unavailable(error)
    } else if error.is_input() {
        Ending::input(error)
    } else {
        Ending::failed(error)
    }
}

/// Prints a run's ledger and files it where the options say; a run that was skipped or failed to run has one, too.
fn publish(outcome: Result<Ledger, Ending>, scenario: &str, common: &CommonArgs) -> Result<Verdict, Ending> {
    let (ledger, ending) = match outcome {
        Ok(ledger) => (ledger, None),
        Err(ending) if ending.is_usage() => return Err(ending),
        Err(ending) => (common.ledger_without_run(scenario, &ending), Some(ending)),
    };
    if let Some(path) = &common.json {
        ledger.save(path).map_err(Ending::failed)?;
    }
    if let Some(directory) = &common.report {
        report::save_all(&ledger, directory).map_err(Ending::failed)?;
    }
    if let Some(ending) = ending {
        if common.format != Format::Text {
            print(&ledger, common.format);
        }
        return Err(ending);
    }
    // Standard output holds one document: a ledger asked for there is not followed by the table.
    if common.json.as_deref().is_some_and(report::ledger::is_stdout) && common.format == Format::Text {
        return Ok(ledger.verdict);
    }
    print(&ledger, common.format);
    if common.format == Format::Text {
        if let Some(path) = &common.json {
            say(&format!("ledger: {}", path.display()));
        }
        if let Some(directory) = &common.report {
            say(&format!("report: {}", directory.join("report.html").display()));
        }
    }
    Ok(ledger.verdict)
}

fn print(ledger: &Ledger, format: Format) {
    let rendering = match format {
        Format::Text => report::text(ledger),
        Format::Ktap => report::ktap(ledger),
        Format::Junit => report::junit(ledger),
    };
    // A reader that closed the pipe early has seen what it wanted.
    let _ = std::io::stdout().write_all(rendering.as_bytes());
}

fn tls_keygen(args: &TlsKeygenArgs) -> Result<Verdict, Ending> {
    keygen(&args.directory, &args.hosts).map_err(Ending::input)?;
    say(&format!("credentials: {}", args.directory.display()));
    Ok(Verdict::Pass)
}

fn outlet(args: &OutletArgs) -> Result<Verdict, Ending> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Ending::failed)?;
    let sink: Box<dyn Sink> = match &args.record {
        Some(path) => {
            let file = std::fs::File::options().create(true).append(true).open(path);
            let file = file.map_err(|error| Ending::usage(format!("--record {}: {error}", path.display())))?;
            Box::new(JsonLines::new(file))
        }
        None => Box::new(JsonLines::new(std::io::stdout())),
    };
    let server = OutletServer::start(&args.address, sink).map_err(Ending::input)?;
    tell(&format!("outlet: {}", args.address));
    signals.forever().next();
    drop(server);
    Ok(Verdict::Pass)
}

fn show(args: &ReportArgs) -> Result<Verdict, Ending> {
    let ledger = Ledger::load(&args.ledger).map_err(Ending::input)?;
    if let Some(directory) = &args.report {
        report::save_all(&ledger, directory).map_err(Ending::failed)?;
    }
    print(&ledger, args.format);
    Ok(ledger.verdict)
}
