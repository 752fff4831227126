//! The scenario `passes`: one machine, one workload, harvest, copy and check pass by pass.

use abi::Arch;
use abi::packet::GuestOutput;
use workload::{Geometry, Plan, PlanError};

use super::interrupt::Interrupt;
use super::model::Model;
use super::pair::PairError;
use super::running::RunningGuest;
use super::{Mode, Spec};
use crate::backend::{BackendError, PlantedFault, Unavailable, Vm, VmHandle};
use crate::dirty::{AcceleratorLog, DirtyLog, DirtyLogKind, PagemapScanLog, PagemapScanUnavailable, SeveralLogs};
use crate::machine::{BuildError, Clock, ConfigError, Heartbeat, Image, LoadError, Machine, Transport};
use crate::memory::{Backing, MemoryError, Size, SlotId, host_page_bytes};
use crate::pass::{CopyTarget, GuestError, Interference, Live, Lockstep, PassError, Session, TargetError, Threads};
use crate::replicate::{BitmapFileError, ServeError};
use crate::report::ledger::KERNEL;
use crate::report::{Ledger, Mismatch, Progress, RegionEntry, Verdict};

/// Why a run could not be made, or not be finished for a reason that no check found.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine asked for is none.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The firmware is none.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The machine could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The workload does not fit the region.
    #[error("the workload does not fit: {0}")]
    Plan(PlanError),
    /// This host cannot show what the scenario is about.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// This host has no PAGEMAP_SCAN.
    #[error(transparent)]
    PagemapScan(#[from] PagemapScanUnavailable),
    /// The accelerator has no such dirty log.
    #[error("the dirty log {0} is not available here")]
    NoSuchLog(DirtyLogKind),
    /// The destination cannot be used.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The bitmap file cannot be used.
    #[error(transparent)]
    BitmapFile(#[from] BitmapFileError),
    /// A replicator cannot be served any more.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The accelerator refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Memory could not be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A VM of a scenario with several could not be what was asked for.
    #[error(transparent)]
    Pair(#[from] PairError),
}

impl RunError {
    /// Whether the host lacks what was asked for: nothing is proven and nothing failed.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_)
                | Self::PagemapScan(_)
                | Self::NoSuchLog(_)
                | Self::Build(BuildError::Unavailable(_) | BuildError::Memory(MemoryError::Lacks(_)))
        ) || matches!(self, Self::Pair(error) if error.exit_code() == Some(4))
    }

    /// Whether the user asked for something that cannot be.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Config(_) | Self::Load(_) | Self::Build(_) | Self::Plan(_) | Self::Target(_) | Self::BitmapFile(_)
        ) || matches!(self, Self::Pair(error) if error.exit_code() == Some(2))
    }
}

/// A fault to plant in a run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plant {
    /// In the accelerator's log or TLB, before the steps of this pass.
    Log {
        /// Which pass.
        before_pass: u64,
        /// What.
        fault: PlantedFault,
    },
    /// In the VMM.
    Vmm(Interference),
}

/// Runs `spec` and checks every pass.
///
/// # Errors
/// [`RunError`] where the run cannot be made; what checks find is in the ledger.
pub fn run_passes(spec: &Spec, interrupt: &Interrupt, progress: &Progress) -> Result<Ledger, RunError> {
    run_with(spec, None, interrupt, progress)
}

/// [`run_passes`] with a fault planted.
pub(super) fn run_with(
    spec: &Spec,
    plant: Option<Plant>,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Ledger, RunError> {
    execute(spec, plant, interrupt, progress, |session, mut model, _| {
        session.start()?;
        let &Spec { passes, steps_per_pass, interval, self_check, .. } = spec;
        match spec.mode {
            Mode::Lockstep => Lockstep { passes, steps_per_pass, self_check }.run(session, &mut model),
            Mode::Live => Live { passes, interval, self_check }.run(session, model),
        }
    })
}

/// Makes machine, log and destination of `spec`, lets `passes` run over them, which start the log, and ends the guest.
pub(super) fn execute(
    spec: &Spec,
    plant: Option<Plant>,
    interrupt: &Interrupt,
    progress: &Progress,
    passes: impl FnOnce(&mut Session<'_>, Model, &dyn Vm) -> Result<(), PassError>,
) -> Result<Ledger, RunError> {
    let model = Model::new(plan(spec)?);
    let image = Image::open(&spec.firmware)?;
    image.check_fits(spec.machine.layout()?.ram())?;
    let target = target(spec)?;
    let machine = Machine::build(&spec.machine, &image)?;
    let log = logs(spec, &machine)?;
    let mut ledger = blank_ledger(spec);
    let vm = machine.vm();
    let mut before_pass = |pass: u64| plant_in_log(&vm, plant, pass);
    let result = RunningGuest::start(&machine, interrupt, progress).map_err(PassError::from).and_then(|mut guest| {
        let mut session = Session {
            guest: &mut guest,
            memory: machine.memory(),
            log,
            target: &target,
            interference: match plant {
                Some(Plant::Vmm(interference)) => Some(interference),
                _ => None,
            },
            before_pass: &mut before_pass,
            ledger: &mut ledger,
            progress,
            threads: Threads::of_host(),
        };
        passes(&mut session, model, vm.as_ref())?;
        drop(session);
        ledger.heartbeat = guest.heartbeats()?;
        Ok(guest.power_off()?)
    });
    if let Err(error) = result {
        conclude_early(&mut ledger, &error, progress);
    }
    target.sync()?;
    Ok(ledger)
}

fn plant_in_log(vm: &VmHandle, plant: Option<Plant>, pass: u64) -> Result<(), BackendError> {
    match plant {
        Some(Plant::Log { before_pass, fault }) if before_pass == pass => vm.plant(fault),
        _ => Ok(()),
    }
}

/// The verdict of a run that ended before its last pass.
pub(super) fn conclude_early(ledger: &mut Ledger, error: &PassError, progress: &Progress) {
    ledger.verdict = Verdict::Fail;
    ledger.reason = Some(with_causes(error));
    let pass = ledger.passes.len() as u64;
    match error {
        PassError::Guest(GuestError::Unsupported(_)) => ledger.verdict = Verdict::Skip,
        PassError::Guest(GuestError::WrongResult { at, expected, found, .. }) => ledger.fail(Mismatch {
            check: "executed-code".to_owned(),
            pass,
            page: None,
            gpa: Some(at.raw()),
            expected: format!("{expected:#x}"),
            found: format!("{found:#x}"),
        }),
        PassError::Guest(GuestError::Interrupted) => {
            ledger.reason = Some(match (ledger.passes.len(), ledger.mismatches.len()) {
                (0, _) => "interrupted before the first pass".to_owned(),
                (done, 0) => format!("interrupted; every check held in the {done} passes made so far"),
                (done, _) => format!("interrupted after {done} passes"),
            });
        }
        PassError::Guest(error @ GuestError::Exception(text)) => {
            progress.line(text.trim_end());
            ledger.reason = Some(error.reason());
        }
        _ => {}
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The plan that guest and model execute.
pub(crate) fn plan(spec: &Spec) -> Result<Plan, RunError> {
    let machine = &spec.machine;
    let geometry = Geometry { region: machine.layout()?.region(), tables: machine.tables, vcpus: machine.vcpus as u32 };
    Plan::new(&spec.workload, machine.seed, geometry).map_err(RunError::Plan)
}

fn target(spec: &Spec) -> Result<CopyTarget, RunError> {
    let len_bytes = spec.machine.region_bytes;
    let Some(path) = &spec.dest else { return Ok(CopyTarget::anonymous(len_bytes)?) };
    if let Some(share) = spec.machine.share.as_ref().and_then(|share| std::fs::File::open(share).ok()) {
        CopyTarget::check_not(path, &share)?;
    }
    Ok(CopyTarget::file(path, len_bytes)?)
}

/// The logs that `spec` asks for, all stopped.
pub(super) fn logs(spec: &Spec, machine: &Machine) -> Result<SeveralLogs, RunError> {
    let make = |&kind: &DirtyLogKind| -> Result<Box<dyn DirtyLog>, RunError> {
        match kind {
            DirtyLogKind::PagemapScan => Ok(Box::new(PagemapScanLog::new(machine.memory(), &[SlotId::Region])?)),
            kind if machine.keeps(kind.kvm_log()) => {
                Ok(Box::new(AcceleratorLog::new(kind, machine.vm(), machine.memory(), &[SlotId::Region])))
            }
            kind => Err(RunError::NoSuchLog(kind)),
        }
    };
    let logs = spec.logs.iter().map(make).collect::<Result<_, _>>()?;
    Ok(SeveralLogs::new(machine.memory(), logs))
}

/// The ledger of a run that has not begun: what was asked for.
pub(crate) fn blank_ledger(spec: &Spec) -> Ledger {
    let machine = &spec.machine;
    let layout = machine.layout().ok();
    let kinds: Vec<String> = spec.logs.iter().map(ToString::to_string).collect();
    Ledger {
        schema: crate::report::ledger::SCHEMA.to_owned(),
        verdict: Verdict::Pass,
        reason: None,
        scenario: spec.scenario.to_owned(),
        accelerator: machine.accelerator.to_string(),
        provenance: crate::backend::provenance(machine.accelerator).to_owned(),
        arch: machine.tables.arch().to_string(),
        granule: machine.tables.granule().to_string(),
        va_bits: machine.tables.va_bits(),
        tables: machine.tables.name().to_owned(),
        host_page: layout.map_or(0, |layout| layout.log_page_bytes()),
        vcpus: machine.vcpus as u32,
        dirty_log: kinds.join(","),
        backing: machine.backing.to_string(),
        workload: if machine.kernel.is_some() { KERNEL.to_owned() } else { spec.workload.to_string() },
        seed: machine.seed,
        mode: spec.mode.name().to_owned(),
        clock: clock_name(machine.clock).to_owned(),
        region: layout.map_or_else(
            || RegionEntry::unmeasured(0, machine.region_bytes),
            |layout| {
                let range = if machine.kernel.is_some() { layout.ram() } else { layout.region() };
                RegionEntry::unmeasured(range.start().raw(), range.len_bytes())
            },
        ),
        passes: Vec::new(),
        migration: None,
        colo: None,
        faults: Vec::new(),
        hugepages: None,
        groups: Vec::new(),
        heartbeat: Vec::new(),
        mismatches: Vec::new(),
        cells: Vec::new(),
        reproduce: reproduce(spec),
    }
}

const fn clock_name(clock: Clock) -> &'static str {
    match clock {
        Clock::Wall => "wall",
        Clock::Icount => "icount",
    }
}

/// A command line that repeats the run.
fn reproduce(spec: &Spec) -> String {
    let scenario = if spec.scenario == "run" { "run".to_owned() } else { format!("verify {}", spec.scenario) };
    let mut line = format!(
        "hostvmm {scenario} {} --passes {} --steps-per-pass {} --mode {}",
        machine_options(spec),
        spec.passes,
        spec.steps_per_pass,
        spec.mode.name(),
    );
    if spec.scenario == "hugepages" && spec.machine.backing == Backing::default() {
        line.push_str(&format!(" --backing {}", spec.machine.backing));
    }
    if spec.scenario == "hugepages" && spec.machine.eager_split.is_none() {
        line.push_str(" --eager-split off");
    }
    if spec.mode == Mode::Live {
        line.push_str(&format!(" --interval-ms {}", spec.interval.as_millis()));
    }
    line
}

/// The options that make the same machine with the same guest and workload, its file or files aside; no value has a space in it.
pub(super) fn machine_options(spec: &Spec) -> String {
    let machine = &spec.machine;
    let kinds: Vec<String> = spec.logs.iter().map(ToString::to_string).collect();
    let has_plan = machine.kernel.is_none();
    let mut line = format!("--accel {} --dirty-log {}", machine.accelerator, kinds.join(","));
    if has_plan {
        line.push_str(&format!(" --granule {} --va-bits {}", machine.tables.granule(), machine.tables.va_bits()));
    }
    let (ram, region) = (machine.ram_bytes, machine.region_bytes);
    line.push_str(&format!(" --vcpus {} --ram {ram} --region-size {region}", machine.vcpus));
    if has_plan {
        line.push_str(&format!(" --workload {} --seed {}", spec.workload, machine.seed));
    }
    line.push_str(&format!(" --clock {}", clock_name(machine.clock)));
    if machine.tables.arch() == Arch::Armv7 {
        line.push_str(&format!(" --arch armv7 --tables {}", machine.tables.name()));
    }
    if let Some(base) = machine.region_base {
        line.push_str(&format!(" --region-base {base}"));
    }
    if machine.backing != Backing::default() {
        line.push_str(&format!(" --backing {}", machine.backing));
    }
    if let Some(bytes) = machine.eager_split {
        line.push_str(&format!(" --eager-split {}", Size(bytes)));
    }
    if let Some(bytes) = machine.log_page_bytes.filter(|&bytes| bytes != host_page_bytes()) {
        line.push_str(&format!(" --host-page {}k", bytes >> 10));
    }
    if machine.region_blocks {
        line.push_str(" --region-map blocks");
    }
    if machine.transport == Transport::Hvc {
        line.push_str(" --hypercall hvc");
    }
    if machine.heartbeat != Heartbeat::Off {
        line.push_str(&format!(" --heartbeat {}", machine.heartbeat));
    }
    if machine.output != GuestOutput::Off {
        line.push_str(&format!(" --guest-output {}", machine.output.name()));
    }
    if machine.clock_line {
        line.push_str(" --clock-line");
    }
    line
}
