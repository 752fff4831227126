//! A running VM under remote control: [`Instance`], what `hostvmm run --qmp` and `--incoming` make.
//!
//! The guest writes its workload without end: step 0 on all vCPUs up to a barrier, so that every page has been touched, then
//! steps from 1 on. It stops when it is told to: then the vCPUs catch up with each other, and guest, host and model are
//! compared ([`verify`]).
//!
//! - [`control`]: run states, and who may change them; [`commands`]: what a client of the control socket can ask for;
//! - [`vm`]: the instance as a migration sees it; [`sections`]: what moves beside memory; [`log`]: one dirty log for several users;
//!   [`migrations`]: one at a time, and who is told of them;
//! - [`colo`]: the instance in a COLO pair;
//! - [`heartbeat`]: what the guest itself noticed of its move; [`rate`]: `calc-dirty-rate`.
//!
//! Threads: this one waits for the guest's events and gives it its steps; each client of the control socket has its own, and
//! a migration has one. They meet under the lock of the run state, which no vCPU takes.
//!
//! Neighbours: [`crate::migrate`] moves the guest, [`crate::control`] carries the commands, [`crate::vcpus`] executes.

mod colo;
mod commands;
mod control;
mod heartbeat;
mod log;
mod migrations;
mod rate;
mod sections;
mod verify;
mod vm;

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use workload::Plan;

pub use self::colo::ColoOptions;
use self::colo::Gate;
use self::commands::Remote;
use self::control::{Order, RunControl};
use self::heartbeat::GapWatch;
use self::log::{LogUser, SharedLog};
use self::migrations::{Migrations, watched};
use self::rate::DirtyRate;
use self::sections::Luggage;
use crate::backend::Accelerator;
use crate::colo::{ColoMonitor, ColoPhase, Side, Voice};
use crate::control::types::{RunState, Verification};
use crate::control::{Address, Events, Server, ServerError};
use crate::cpustate::{self, Policy};
use crate::dirty::DirtyLogKind;
use crate::machine::state::CounterState;
use crate::machine::{BuildError, CpuModel, Image, LoadError, Machine, other_side};
use crate::migrate::file::is_loaded;
use crate::migrate::transport::{TransportError, Uri};
use crate::migrate::{FaultPlan, Monitor, Parameters, Phase};
use crate::pass::GuestError;
use crate::report::ledger::{ColoEntry, MigrationEntry};
use crate::report::{Ledger, Progress, Verdict};
use crate::vcpus::{Interrupter, Progress as Steps, Vcpus, VcpusError};
use crate::verify::passes::{blank_ledger, plan};
use crate::verify::running::RunningGuest;
use crate::verify::{Interrupt, RunError, Spec};

/// How often a main thread that waits for the end of a checkpoint looks whether it is to end.
const GATE_LOOK: Duration = Duration::from_millis(50);

/// What is said of a guest whose memory nothing here foretells.
const UNPLANNED: &str = "the guest is a kernel of its own, which follows no plan: only its moves were checked";

/// Where a guest comes from.
#[derive(Clone, Debug)]
pub enum Incoming {
    /// `migrate-incoming` will say.
    Defer,
    /// From a source that connects here.
    From(Uri),
}

/// What is asked of an instance beside its machine.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where its control socket is.
    pub qmp: Option<Address>,
    /// Whether, and whence, a guest arrives; without it one starts here.
    pub incoming: Option<Incoming>,
    /// Do not run before `cont`.
    pub paused: bool,
    /// Remember every page that the guest ever dirtied after its first step.
    pub track_dirty: bool,
    /// Verify a guest as soon as it has arrived.
    pub verify_guest: bool,
    /// Certificates for migrations.
    pub tls_creds: Option<PathBuf>,
    /// A fault planted in every migration.
    pub fault: Option<FaultPlan>,
    /// What becomes of an arriving guest's registers where the table of rules does not say.
    pub registers: Policy,
    /// About COLO pairs.
    pub colo: ColoOptions,
}

/// Why an instance could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// As for any run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The control socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The vCPUs.
    #[error(transparent)]
    Vcpus(#[from] VcpusError),
    /// The address for an incoming guest cannot be used.
    #[error("--incoming: {0}")]
    Listen(#[from] TransportError),
    /// The host gives no random bytes.
    #[error("cannot make a number for the pair: {0}")]
    Random(#[source] std::io::Error),
    /// The guest did not arrive.
    #[error("incoming migration failed: {0}")]
    Incoming(String),
    /// A log that is no accelerator's.
    #[error("a VM under remote control keeps one dirty log, the accelerator's own, not {0}; leave out --dirty-log")]
    Log(String),
}

impl From<BuildError> for InstanceError {
    fn from(error: BuildError) -> Self {
        Self::Run(error.into())
    }
}

impl From<LoadError> for InstanceError {
    fn from(error: LoadError) -> Self {
        Self::Run(error.into())
    }
}

/// Why an instance ends.
#[derive(Debug)]
enum End {
    /// `quit`.
    Quit,
    /// A signal.
    Signal,
    /// The guest turned itself off or cannot go on.
    Guest(GuestError),
    /// The guest did not arrive.
    NotArrived(String),
}

/// What the main thread is to do.
#[derive(Debug, Default)]
struct Agenda {
    end: Option<End>,
    /// The guest has arrived and is to be verified.
    verify: bool,
    /// The main thread waits for the guest alone, and is not to be interrupted.
    busy: bool,
    verified: Option<Verification>,
    /// What was found wrong with a migration after the guest ran at its destination.
    complaint: Option<String>,
}

/// A VM with its guest, or without one yet.
pub struct Instance {
    spec: Spec,
    plan: Plan,
    options: Options,
    machine: Machine,
    vcpus: Arc<Vcpus>,
    wake: Interrupter,
    control: Mutex<RunControl>,
    agenda: Mutex<Agenda>,
    /// Told as the main thread has done what was on the agenda.
    attended: Condvar,
    log: SharedLog,
    rate: Mutex<DirtyRate>,
    monitor: Monitor,
    /// Sees and steers its COLO pairs.
    colo: Arc<ColoMonitor>,
    /// Its way to the outside world, of whoever drives a pair while there is one.
    voice: Mutex<Voice>,
    /// Whether a thread delivers what the guest emits.
    speaks: AtomicBool,
    /// Whether the main thread may give the guest its steps.
    gate: Gate,
    migrations: Arc<Migrations>,
    /// Whether clients have asked for the events of migrations.
    migration_events: Arc<AtomicBool>,
    events: Events,
    /// What a guest brought along, between its arrival and its first instruction.
    luggage: Mutex<Option<Luggage>>,
    /// The file that the guest was last saved to.
    saved: Mutex<Option<File>>,
    /// How far each vCPU was as its state was last saved.
    leaves_at: Mutex<Vec<Steps>>,
    /// What the guest's counter showed as it was stopped to move away.
    stopped_with: Mutex<Option<CounterState>>,
    /// Of a vCPU's registers those that no guest changes.
    constants: Mutex<Vec<(u64, u128)>>,
    /// What executed the guest that is on its way here.
    comes_from: Mutex<Option<Accelerator>>,
    /// What its heartbeats tell of its move.
    gaps: GapWatch,
    started: Instant,
}

impl Instance {
    /// Makes the machine that `spec` asks for: at its first instruction, or empty for a guest that arrives.
    ///
    /// # Errors
    /// [`InstanceError`]; nothing runs.
    pub fn new(spec: &Spec, options: Options) -> Result<Arc<Self>, InstanceError> {
        let plan = plan(spec)?;
        let machine = match (&options.incoming, &spec.machine.kernel) {
            (Some(_), _) => Machine::build_incoming(&spec.machine, &spec.firmware)?,
            (None, Some(files)) => Machine::build_kernel(&spec.machine, files)?,
            (None, None) => Machine::build(&spec.machine, &Image::open(&spec.firmware)?)?,
        };
        let fits = |kind: &DirtyLogKind| *kind != DirtyLogKind::PagemapScan && machine.keeps(kind.kvm_log());
        if spec.logs.len() != 1 || !spec.logs.iter().all(fits) {
            let names: Vec<String> = spec.logs.iter().map(ToString::to_string).collect();
            return Err(InstanceError::Log(names.join(",")));
        }
        let vcpus = Arc::new(Vcpus::start_paused(&machine)?);
        hide_features(&machine, &vcpus)?;
        let is_set = spec.logs.contains(&DirtyLogKind::Initset);
        let is_huge = spec.machine.backing.wants_huge_pages();
        let log = SharedLog::new(machine.vm(), machine.memory(), is_set, is_huge);
        if options.track_dirty {
            log.start(LogUser::History).map_err(RunError::from)?;
        }
        let (events, migration_events, migrations) = (Events::default(), Arc::default(), Arc::default());
        let monitor = watched(&events, &migration_events, &migrations).with_fault(options.fault);
        monitor.use_parameters(Parameters { tls_creds: options.tls_creds.clone(), ..Parameters::default() });
        Ok(Arc::new(Self {
            spec: spec.clone(),
            plan,
            wake: vcpus.interrupter(),
            control: Mutex::new(RunControl::new(options.incoming.is_some(), !options.paused)),
            agenda: Mutex::default(),
            attended: Condvar::new(),
            saved: Mutex::default(),
            leaves_at: Mutex::default(),
            stopped_with: Mutex::default(),
            log,
            rate: Mutex::default(),
            monitor,
            colo: colo::watched(&events, &options.colo, &migrations),
            voice: Mutex::new(colo::voice(&options.colo).map_err(InstanceError::Random)?),
            speaks: AtomicBool::new(false),
            gate: Gate::default(),
            migrations,
            migration_events,
            events,
            luggage: Mutex::default(),
            constants: Mutex::new(constants(&machine, &vcpus)?),
            comes_from: Mutex::default(),
            gaps: GapWatch::default(),
            started: Instant::now(),
            machine,
            vcpus,
            options,
        }))
    }

    /// Runs until the end is asked for or comes by itself, then verifies the guest if it is here.
    ///
    /// # Errors
    /// [`InstanceError`] where it cannot begin, and [`InstanceError::Incoming`] where the guest did not arrive; what checks
    /// find is in the ledger.
    pub fn run(self: &Arc<Self>) -> Result<Ledger, InstanceError> {
        let remote = Arc::new(Remote(Arc::clone(self)));
        let server = match &self.options.qmp {
            Some(address) => Some(Server::start(address, remote, self.events.clone())?),
            None => None,
        };
        if self.options.colo.side.is_some() || self.options.colo.outlet.is_some() {
            self.speak().map_err(|source| VcpusError::Thread { vcpu: 0, source })?;
        }
        if let Some(Incoming::From(uri)) = &self.options.incoming {
            if self.options.colo.side == Some(Side::Secondary) { self.stand_by(uri)? } else { self.receive(uri, true)? }
        } else if self.options.incoming.is_none() && !self.options.paused {
            // A client may have said so already.
            let _ = self.cont();
            if let Some(peer) = &self.options.colo.peer {
                self.protect(peer.clone()).map_err(InstanceError::Incoming)?;
            }
        }
        let progress = Progress::lines();
        // Signals come by `end`.
        let nobody = Interrupt::default();
        let mut guest = RunningGuest::over(Arc::clone(&self.vcpus), &self.machine, &nobody, &progress);
        let end = self.attend(&mut guest, &progress);
        let reason = match &end {
            End::Quit => "host-qmp-quit",
            End::Signal => "host-signal",
            End::Guest(_) => "guest-shutdown",
            End::NotArrived(_) => "host-error",
        };
        let by_guest = matches!(end, End::Guest(_));
        self.events.emit("SHUTDOWN", Some(json!({ "guest": by_guest, "reason": reason })));
        self.agenda().busy = true;
        self.vcpus.forget_interrupt();
        self.end_pair();
        self.end_migration();
        // Clients have their last replies and see the end before the verification, which may take long.
        drop(server);
        let ledger = self.conclude(end, &mut guest, &progress);
        self.last_words();
        ledger
    }

    /// Asks for the end of [`Self::run`], as Ctrl-C does.
    pub fn end(&self) {
        self.ask_end(End::Signal);
    }

    fn ask_end(&self, end: End) {
        let mut agenda = self.agenda();
        agenda.end.get_or_insert(end);
        if !agenda.busy {
            self.wake.interrupt();
        } else if self.run_state() == RunState::Paused {
            // The verification of an arrival waits for a guest that was stopped meanwhile. There is another at the end.
            self.vcpus.resume();
        }
    }

    /// The main thread's work: gives parked vCPUs their next steps, and does what others put on the agenda.
    fn attend(&self, guest: &mut RunningGuest<'_>, progress: &Progress) -> End {
        loop {
            let verify = {
                let mut agenda = self.agenda();
                if let Some(end) = agenda.end.take() {
                    return end;
                }
                agenda.busy = std::mem::take(&mut agenda.verify);
                agenda.busy
            };
            let result = if verify {
                self.vcpus.forget_interrupt();
                self.verify_arrived(guest, progress)
            } else {
                guest.wait_next()
            };
            self.agenda().busy = false;
            self.attended.notify_all();
            self.stop_where_asked();
            let result = result.and_then(|()| self.give_steps(guest));
            match result {
                Ok(()) | Err(GuestError::Interrupted) => {}
                Err(error) => {
                    let off = matches!(error, GuestError::PoweredOff);
                    self.control().end(if off { RunState::Shutdown } else { RunState::InternalError });
                    return End::Guest(error);
                }
            }
        }
    }

    /// A guest that has asked to be moved stands still already: it is stopped as by `stop`, until whoever moves it has come.
    fn stop_where_asked(&self) {
        let asked = self.vcpus.asked().filter(|asked| !asked.point.goes_on());
        if asked.is_some() && self.run_state() == RunState::Running {
            self.stop();
        }
    }

    /// Where every vCPU is parked: lets them go on, over the barrier after the first touch or with the next steps.
    fn give_steps(&self, guest: &mut RunningGuest<'_>) -> Result<(), GuestError> {
        if guest.parked_at().is_none() {
            return Ok(());
        }
        let open = loop {
            if let Some(open) = self.gate.pass(GATE_LOOK) {
                break open;
            }
            if self.agenda().end.is_some() {
                return Ok(());
            }
        };
        // A checkpoint may have been loaded meanwhile.
        guest.catch_up()?;
        let given = self.give_steps_at(guest);
        drop(open);
        given
    }

    fn give_steps_at(&self, guest: &mut RunningGuest<'_>) -> Result<(), GuestError> {
        match guest.parked_at() {
            None => Ok(()),
            Some(next) if next.iter().all(|next| *next == 0) => guest.run_on(&next, 1),
            Some(next) => {
                self.begin_history(&next)?;
                guest.run_on(&next, u64::MAX)
            }
        }
    }

    /// The dirty history begins after the first touch: with the second step the `next` of every vCPU, nobody has written since.
    fn begin_history(&self, next: &[u64]) -> Result<(), GuestError> {
        if next.iter().all(|next| *next == 1) {
            self.log.set(LogUser::History, self.log.clean())?;
        }
        Ok(())
    }

    /// `stop`.
    fn stop(&self) {
        let order = {
            let mut control = self.control();
            let order = control.stop();
            self.obey(order);
            order
        };
        self.announce(order);
    }

    /// `cont`.
    fn cont(&self) -> Result<(), &'static str> {
        let order = {
            let mut control = self.control();
            if control.is_kept() && self.is_loaded_elsewhere() {
                return Err("The guest has been loaded from the file that it was saved to, and runs there");
            }
            let order = control.cont()?;
            self.obey(order);
            order
        };
        self.announce(order);
        Ok(())
    }

    /// Whether another process has loaded the guest that was saved last.
    fn is_loaded_elsewhere(&self) -> bool {
        // A lock that cannot be asked for tells nothing, and the operator has said what is wanted.
        lock(&self.saved).as_ref().is_some_and(|file| is_loaded(file).unwrap_or(false))
    }

    /// Called with the run state locked, so that orders are obeyed in the order in which they are given.
    fn obey(&self, order: Order) {
        match order {
            Order::Run => self.vcpus.resume(),
            Order::Hold => self.vcpus.pause(),
            Order::Nothing => {}
        }
    }

    fn announce(&self, order: Order) {
        match order {
            Order::Run => self.events.emit("RESUME", None),
            Order::Hold => self.events.emit("STOP", None),
            Order::Nothing => {}
        }
    }

    /// Ends the migration that is under way: by cancelling it, or where that is too late by waiting for its end.
    fn end_migration(&self) {
        // Refused where it has ended or cannot be cancelled any more; both end by themselves.
        let _ = self.monitor.cancel();
        if self.run_state() != RunState::Inmigrate {
            self.migrations.wait_idle(vm::FAREWELL);
        }
    }

    /// The verdict: of the guest if it is here, else of where it is.
    fn conclude(&self, end: End, guest: &mut RunningGuest<'_>, progress: &Progress) -> Result<Ledger, InstanceError> {
        let mut ledger = blank_ledger(&self.spec);
        "live".clone_into(&mut ledger.mode);
        let info = serde_json::to_value(self.monitor.info()).unwrap_or_default();
        if self.monitor.phase() != Phase::None {
            ledger.migration = Some(MigrationEntry::from_query(&info));
        }
        if let (Some(entry), Some(outcome)) =
            (&mut ledger.migration, self.gaps.outcome(&self.vcpus, self.run_state() != RunState::Postmigrate))
        {
            outcome.enter(entry);
            outcome.downtime.disagreements.iter().for_each(|found| progress.line(&format!("downtime: {found}")));
        }
        let pair = self.colo.info();
        if pair.phase != ColoPhase::None {
            ledger.colo = Some(ColoEntry::new(&pair));
        }
        let control = *self.control();
        let mut without_guest = |verdict, reason: &str| {
            ledger.verdict = verdict;
            ledger.reason = Some(reason.to_owned());
        };
        match end {
            End::NotArrived(text) => return Err(InstanceError::Incoming(text)),
            End::Guest(error @ GuestError::PoweredOff) if self.is_kernel() => {
                without_guest(Verdict::Pass, &error.reason());
            }
            End::Guest(error) => without_guest(Verdict::Fail, &verify::describe(&error, progress)),
            End::Quit | End::Signal => match control.state() {
                // Lines that the guest printed before it left; where it went they are not printed again.
                RunState::Postmigrate => drop(guest.catch_up()),
                RunState::Inmigrate => without_guest(Verdict::Skip, "no guest has arrived"),
                // The other side of the pair has it.
                _ if control.is_undecided() && ledger.colo.is_some() => {}
                state if control.is_undecided() || state == RunState::FinishMigrate => without_guest(
                    Verdict::Fail,
                    "the guest was handed over, and its destination has not said whether it runs",
                ),
                _ if self.is_kernel() => without_guest(Verdict::Pass, UNPLANNED),
                _ => {
                    self.vcpus.resume();
                    self.verify_at_end(guest, &mut ledger, progress);
                }
            },
        }
        if let Some(error) = ledger.migration.as_ref().and_then(|migration| migration.error.as_ref())
            && ledger.reason.is_none()
        {
            progress.line(&format!("the last migration failed: {error}"));
        }
        let agenda = self.agenda();
        let unverified = agenda.verified.as_ref().filter(|verified| !verified.passed);
        if let Some(reason) =
            agenda.complaint.clone().or_else(|| unverified.and_then(|verified| verified.reason.clone()))
        {
            ledger.verdict = Verdict::Fail;
            ledger.reason = Some(reason);
        }
        drop(agenda);
        Ok(ledger)
    }

    /// Whether the guest is a kernel of its own, which follows no plan.
    fn is_kernel(&self) -> bool {
        self.spec.machine.kernel.is_some()
    }

    /// Waits until a guest that has arrived was verified; returns whether it was in time.
    fn wait_verified(&self, patience: Duration) -> bool {
        let waits = |agenda: &mut Agenda| (agenda.verify || agenda.busy) && agenda.end.is_none();
        let wait = self.attended.wait_timeout_while(self.agenda(), patience, waits);
        let (mut agenda, _) = wait.unwrap_or_else(PoisonError::into_inner);
        !waits(&mut agenda)
    }

    /// How far each vCPU is, or was as the guest left: its memory may be the destination's by now.
    fn steps(&self) -> Vec<Steps> {
        if self.run_state() == RunState::Postmigrate { lock(&self.leaves_at).clone() } else { self.steps_now() }
    }

    fn steps_now(&self) -> Vec<Steps> {
        // One that has not booted yet has made no step.
        (0..self.spec.machine.vcpus).map(|vcpu| self.vcpus.progress(vcpu).unwrap_or_default()).collect()
    }

    /// A copy: a guard in a longer expression would outlive it, and lock out whoever comes next in it.
    fn run_state(&self) -> RunState {
        self.control().state()
    }

    fn control(&self) -> MutexGuard<'_, RunControl> {
        lock(&self.control)
    }

    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        lock(&self.agenda)
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("control", &*self.control()).field("monitor", &self.monitor).finish()
    }
}

/// Hides from the guest of `machine` what the other accelerator lacks, where that is asked for, and tells what cannot be hidden.
fn hide_features(machine: &Machine, vcpus: &Vcpus) -> Result<(), VcpusError> {
    let (vm, config) = (machine.vm(), machine.config());
    if config.cpu == CpuModel::Baseline {
        let arch = config.tables.arch();
        let other = other_side(vm.accelerator(), arch);
        let shown = vcpus.hide_features(&other, &vm.writable_features(), arch)?;
        shown.iter().for_each(|lack| tell(&format!("--cpu baseline: cannot be hidden: {lack}")));
    }
    Ok(())
}

/// Of the registers of `machine`'s first vCPU, which is paused, those that no guest changes; all vCPUs have the same but for their
/// affinity.
fn constants(machine: &Machine, vcpus: &Vcpus) -> Result<Vec<(u64, u128)>, VcpusError> {
    let registers = vcpus.registers()?.into_iter().next().unwrap_or_default();
    Ok(cpustate::constants(&registers, machine.config().tables.arch()))
}

/// Prints a line to standard error.
fn tell(line: &str) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic may have left half done ends with the process that told of it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
