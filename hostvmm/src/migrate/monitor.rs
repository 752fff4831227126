//! What everybody may see of a migration and do to it while it is under way: [`Monitor`].
//!
//! A monitor lives as long as its machine and is used by one migration after the other: it keeps [`Parameters`] and
//! [`Capabilities`], shows [`MigrationInfo`], cancels, starts the post-copy, and tells who asked of each change of phase and each
//! pass. The migration itself writes to it through the `pub(super)` half, its moves through [`super::phase::Stage`].

use std::fmt;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::error::MigrateError;
use super::faults::{Boundary, FaultPlan, Planted};
use super::info::MigrationInfo;
use super::parameters::{Capabilities, ParameterError, Parameters};
use super::phase::{Cancelled, Phase, Setup, Stage};
use super::transport::{CancelToken, Handle, Pacer};

/// Why a migration cannot be begun, cancelled, or switched to post-copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MonitorError {
    /// One is under way.
    #[error("a migration is in progress (phase {phase}); cancel it or wait for its end")]
    Running {
        /// Where it is.
        phase: Phase,
    },
    /// None is under way.
    #[error("no migration is in progress")]
    NotRunning,
    /// The guest may run at the destination already.
    #[error(
        "the migration cannot be cancelled any more: the destination has been told to run the guest; \
         if it is known to be gone, `cont` takes the guest back"
    )]
    Committed,
    /// The process has no descriptor left.
    #[error("cannot begin a migration: {reason}")]
    NoDescriptor {
        /// As the host says.
        reason: std::io::ErrorKind,
    },
    /// Post-copy was not agreed on at the start.
    #[error("post-copy must be enabled before the migration starts (capability postcopy-ram)")]
    NoPostcopy,
}

/// What a watcher is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The migration has entered this phase: QEMU's event MIGRATION.
    Phase(Phase),
    /// This pass begins, counted from 1 as in QEMU's event MIGRATION_PASS.
    Pass(u64),
}

type Watcher = Box<dyn Fn(Change) + Send + Sync>;
type Hook = Box<dyn Fn() + Send + Sync>;

/// Sees and steers the migrations of one machine.
pub struct Monitor {
    state: Mutex<State>,
    changed: Condvar,
    watcher: Option<Watcher>,
    fault: Option<FaultPlan>,
}

#[derive(Default)]
struct State {
    info: MigrationInfo,
    parameters: Parameters,
    capabilities: Capabilities,
    begun: Option<Instant>,
    committed: bool,
    postcopy_wanted: bool,
    /// Ends whatever waits for the peer or for time.
    cancel: Option<CancelToken>,
    /// Tell the migration's own thread that someone has cancelled.
    wakes: Vec<Hook>,
    /// Shut a channel of the migration down: for planted faults.
    cuts: Vec<Hook>,
    /// Holds the migration to its bandwidth.
    pacer: Option<Arc<Pacer>>,
    /// Of its channels.
    channels: Vec<Handle>,
    /// What is held on to for as long as the guest is here.
    held: Option<File>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

impl Default for Monitor {
    fn default() -> Self {
        Self::new()
    }
}

impl Monitor {
    /// A monitor that has seen no migration.
    pub fn new() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), watcher: None, fault: None }
    }

    /// Calls `watcher` at every change, on the thread that makes it: it is to return soon, and may call the monitor.
    #[must_use]
    pub fn watched(mut self, watcher: impl Fn(Change) + Send + Sync + 'static) -> Self {
        self.watcher = Some(Box::new(watcher));
        self
    }

    /// Plants a fault in every migration.
    #[must_use]
    pub fn with_fault(mut self, fault: Option<FaultPlan>) -> Self {
        self.fault = fault;
        self
    }

    /// Where the last migration is.
    pub fn phase(&self) -> Phase {
        self.lock().info.status
    }

    /// Everything about the last migration.
    pub fn info(&self) -> MigrationInfo {
        let state = self.lock();
        let mut info = state.info.clone();
        if let (Some(begun), true) = (state.begun, info.status.is_running()) {
            info.total_time = Some(millis(begun.elapsed()));
            info.silent = state.channels.iter().map(Handle::silence).min().map(millis);
        }
        info
    }

    /// The parameters.
    pub fn parameters(&self) -> Parameters {
        self.lock().parameters.clone()
    }

    /// Sets the parameters named, all or none. A bandwidth is held from now on, also by a migration that is under way.
    ///
    /// # Errors
    /// [`ParameterError::Busy`] for one that is fixed while a migration is under way; [`ParameterError::Host`]; else as
    /// [`Parameters::set`].
    pub fn set_parameters<'a>(
        &self,
        values: impl IntoIterator<Item = (&'a str, &'a Value)>,
    ) -> Result<(), ParameterError> {
        let mut state = self.lock();
        let mut parameters = state.parameters.clone();
        for (name, value) in values {
            if state.info.status.is_running() && !Parameters::is_live(name) {
                return Err(ParameterError::Busy { name: name.to_owned() });
            }
            parameters.set(name, value)?;
        }
        if let Some(pacer) = &state.pacer
            && parameters.max_bandwidth != state.parameters.max_bandwidth
        {
            let failed = |error: std::io::Error| ParameterError::Host { reason: error.kind() };
            pacer.set_rate(parameters.max_bandwidth).map_err(failed)?;
        }
        state.parameters = parameters;
        Ok(())
    }

    /// Replaces all parameters.
    pub fn use_parameters(&self, parameters: Parameters) {
        self.lock().parameters = parameters;
    }

    /// The capabilities.
    pub fn capabilities(&self) -> Capabilities {
        self.lock().capabilities
    }

    /// Sets the capabilities named, all or none.
    ///
    /// # Errors
    /// [`ParameterError::Busy`] while a migration is under way; else as [`Capabilities::set`].
    pub fn set_capabilities<'a>(
        &self,
        states: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> Result<(), ParameterError> {
        let mut state = self.lock();
        let mut capabilities = state.capabilities;
        for (name, on) in states {
            if state.info.status.is_running() {
                return Err(ParameterError::Busy { name: name.to_owned() });
            }
            capabilities.set(name, on)?;
        }
        state.capabilities = capabilities;
        Ok(())
    }

    /// Cancels the migration that is under way: whatever it waits for, it waits no longer. Returns once it is on its way
    /// back; [`Self::wait_for_end`] tells when the guest is known to run on here.
    ///
    /// # Errors
    /// [`MonitorError::NotRunning`], and [`MonitorError::Committed`] once the destination may run the guest.
    pub fn cancel(&self) -> Result<(), MonitorError> {
        {
            let mut state = self.lock();
            match state.info.status {
                Phase::Cancelling => return Ok(()),
                phase if !phase.is_running() => return Err(MonitorError::NotRunning),
                _ if state.committed => return Err(MonitorError::Committed),
                _ => state.info.status = Phase::Cancelling,
            }
        }
        // Told before the migration can have ended, so that its end is told after it.
        self.tell(Change::Phase(Phase::Cancelling));
        let state = self.lock();
        // It may have noticed by itself, and another one have begun.
        if state.info.status == Phase::Cancelling {
            state.wakes.iter().for_each(|wake| wake());
            state.cancel.iter().for_each(CancelToken::cancel);
        }
        Ok(())
    }

    /// Lets the migration switch to post-copy as soon as it can.
    ///
    /// # Errors
    /// [`MonitorError::NotRunning`], [`MonitorError::NoPostcopy`].
    pub fn start_postcopy(&self) -> Result<(), MonitorError> {
        let mut state = self.lock();
        if !state.info.status.is_running() {
            return Err(MonitorError::NotRunning);
        }
        if !state.capabilities.postcopy_ram {
            return Err(MonitorError::NoPostcopy);
        }
        state.postcopy_wanted = true;
        Ok(())
    }

    /// Waits until no migration is under way, and says how the last one ended.
    pub fn wait_for_end(&self) -> Phase {
        let state = self.lock();
        let running = |state: &mut State| state.info.status.is_running();
        self.changed.wait_while(state, running).unwrap_or_else(PoisonError::into_inner).info.status
    }

    /// Begins a migration: what the last one left is forgotten.
    pub(super) fn begin(&self) -> Result<(Stage<'_, Setup>, CancelToken), MonitorError> {
        let cancel = CancelToken::new().map_err(|error| MonitorError::NoDescriptor { reason: error.kind() })?;
        {
            let mut state = self.lock();
            if state.info.status.is_running() {
                return Err(MonitorError::Running { phase: state.info.status });
            }
            state.info = MigrationInfo { status: Phase::Setup, ..MigrationInfo::default() };
            state.begun = Some(Instant::now());
            state.committed = false;
            state.postcopy_wanted = false;
            state.wakes.clear();
            state.cuts.clear();
            state.channels.clear();
            state.pacer = None;
            state.cancel = Some(cancel.clone());
        }
        self.tell(Change::Phase(Phase::Setup));
        Ok((Stage::of(self), cancel))
    }

    /// A move of [`Stage`].
    pub(super) fn enter(&self, phase: Phase, committed: bool) -> Result<(), Cancelled> {
        let changes = {
            let mut state = self.lock();
            if state.info.status == Phase::Cancelling {
                return Err(Cancelled);
            }
            if state.info.status == Phase::Setup {
                state.info.setup_time = state.begun.map(|begun| millis(begun.elapsed()));
            }
            state.committed |= committed;
            std::mem::replace(&mut state.info.status, phase) != phase
        };
        if changes {
            self.tell(Change::Phase(phase));
        }
        Ok(())
    }

    /// Ends the migration: as `phase`, or as cancelled if someone has cancelled it and it is not complete.
    pub(super) fn end(&self, phase: Phase, error: Option<String>) {
        let phase = {
            let mut state = self.lock();
            let cancelled = state.info.status == Phase::Cancelling && phase != Phase::Completed;
            let phase = if cancelled { Phase::Cancelled } else { phase };
            state.info.total_time = state.begun.map(|begun| millis(begun.elapsed()));
            state.info.cpu_throttle_percentage = None;
            state.info.expected_downtime = None;
            state.info.error_desc = error.filter(|_| phase != Phase::Cancelled);
            state.info.status = phase;
            state.wakes.clear();
            state.cuts.clear();
            state.channels.clear();
            state.pacer = None;
            state.cancel = None;
            phase
        };
        self.changed.notify_all();
        self.tell(Change::Phase(phase));
    }

    /// Ends a migration for `error`. Returns it, or that someone has cancelled: whatever was cut off says something else then.
    pub(super) fn fail(&self, error: MigrateError) -> MigrateError {
        let error = self.check().err().map_or(error, Into::into);
        if self.phase().is_running() {
            self.end(Phase::Failed, Some(error.to_string()));
        }
        error
    }

    /// Ends the migration, when it is dropped, if its thread panics: nobody waits for ever for one that nobody drives.
    pub(super) fn watch_thread(&self) -> impl Drop + '_ {
        Driver { monitor: self }
    }

    /// Whether someone has cancelled.
    pub(super) fn check(&self) -> Result<(), Cancelled> {
        if self.phase() == Phase::Cancelling { Err(Cancelled) } else { Ok(()) }
    }

    /// Whether someone wants post-copy.
    pub(super) fn is_postcopy_wanted(&self) -> bool {
        self.lock().postcopy_wanted
    }

    /// A peer has come: time counts from now.
    pub(super) fn restart_clock(&self) {
        self.lock().begun = Some(Instant::now());
    }

    /// `wake` is called when someone cancels, at once if someone has. It must not call the monitor.
    pub(super) fn add_wake(&self, wake: impl Fn() + Send + Sync + 'static) {
        let mut state = self.lock();
        if state.info.status == Phase::Cancelling {
            wake();
        }
        state.wakes.push(Box::new(wake));
    }

    /// The migration has this channel: it is shut down where a fault says so, and its silence is shown.
    pub(super) fn add_channel(&self, handle: Handle) {
        let mut state = self.lock();
        state.cuts.push(Box::new({
            let handle = handle.clone();
            move || handle.shutdown()
        }));
        state.channels.push(handle);
    }

    /// What holds the migration to `max-bandwidth`, now and as it is changed.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub(super) fn pacer(&self) -> std::io::Result<Arc<Pacer>> {
        let mut state = self.lock();
        let pacer = Arc::new(Pacer::new(state.parameters.max_bandwidth)?);
        state.pacer = Some(Arc::clone(&pacer));
        Ok(pacer)
    }

    /// Keeps `file`, and with it the lock on it, for as long as the machine lives.
    pub(super) fn hold(&self, file: File) {
        self.lock().held = Some(file);
    }

    /// Shuts down every channel of the migration.
    pub(super) fn cut(&self) {
        self.lock().cuts.iter().for_each(|cut| cut());
    }

    /// Changes what is shown.
    pub(crate) fn show(&self, change: impl FnOnce(&mut MigrationInfo)) {
        change(&mut self.lock().info);
    }

    /// A pass begins.
    pub(super) fn pass(&self, pass: u64) {
        self.tell(Change::Pass(pass + 1));
    }

    /// Carries out what is planned at `boundary`.
    pub(super) fn at(&self, boundary: Boundary) -> Result<(), PlantedFailure> {
        match self.fault.and_then(|fault| fault.strike(boundary)) {
            None => Ok(()),
            Some(Planted::Cut) => {
                self.cut();
                Ok(())
            }
            Some(Planted::Fail) => Err(PlantedFailure { boundary, disk_full: false }),
            Some(Planted::DiskFull) => Err(PlantedFailure { boundary, disk_full: true }),
        }
    }

    fn tell(&self, change: Change) {
        if let Some(watcher) = &self.watcher {
            watcher(change);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that drives a migration.
struct Driver<'m> {
    monitor: &'m Monitor,
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && self.monitor.phase().is_running() {
            self.monitor.end(Phase::Failed, Some("a thread of the migration has panicked".to_owned()));
        }
    }
}

/// A planted fault that lets its step fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("planted fault at {boundary}{}", if *.disk_full { ": no space left on device" } else { "" })]
pub struct PlantedFailure {
    /// Where.
    pub boundary: Boundary,
    /// As if the disk were full.
    pub disk_full: bool,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_migration_goes_through_its_phases_and_tells_each() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&seen);
        let monitor = Monitor::new().watched(move |change| told.lock().unwrap().push(change));
        let (stage, _) = monitor.begin().unwrap();
        let stage = stage.activate().unwrap().stop().unwrap().resume().unwrap().stop().unwrap();
        stage.commit().unwrap().complete();
        let phases = [Phase::Setup, Phase::Active, Phase::Device, Phase::Active, Phase::Device, Phase::Completed];
        assert_eq!(*seen.lock().unwrap(), phases.map(Change::Phase));
        assert_eq!(monitor.cancel(), Err(MonitorError::NotRunning));
        assert!(monitor.begin().is_ok(), "a second one may begin");
        assert_eq!(monitor.begin().unwrap_err(), MonitorError::Running { phase: Phase::Setup });
    }

    #[test]
    fn a_cancelled_migration_moves_nowhere_but_to_its_end() {
        let monitor = Monitor::new();
        let (stage, cancel) = monitor.begin().unwrap();
        let stage = stage.activate().unwrap();
        let woken = Arc::new(Mutex::new(0));
        let count = Arc::clone(&woken);
        monitor.add_wake(move || *count.lock().unwrap() += 1);
        monitor.cancel().unwrap();
        assert_eq!(*woken.lock().unwrap(), 1);
        assert!(cancel.is_cancelled(), "what waits for a peer is freed");
        assert_eq!(stage.stop().unwrap_err(), Cancelled);
        monitor.end(Phase::Failed, Some("connection lost".to_owned()));
        assert_eq!((monitor.phase(), monitor.info().error_desc), (Phase::Cancelled, None));
    }

    #[test]
    fn a_committed_migration_cannot_be_cancelled() {
        let monitor = Monitor::new();
        let stage = monitor.begin().unwrap().0.activate().unwrap().stop().unwrap().commit().unwrap();
        assert_eq!(monitor.cancel(), Err(MonitorError::Committed));
        stage.complete();
        assert_eq!(monitor.phase(), Phase::Completed);
    }

    #[test]
    fn parameters_change_all_or_none_and_some_not_now() {
        let monitor = Monitor::new();
        let (limit, bad) = (json!(10), json!(-1));
        assert!(monitor.set_parameters([("downtime-limit", &limit), ("max-bandwidth", &bad)]).is_err());
        assert_eq!(monitor.parameters(), Parameters::default());
        let _stage = monitor.begin().unwrap();
        monitor.set_parameters([("downtime-limit", &limit)]).unwrap();
        assert_eq!(monitor.parameters().downtime_limit, 10);
        let error = monitor.set_parameters([("multifd-channels", &limit)]).unwrap_err();
        assert!(matches!(error, ParameterError::Busy { .. }));
        assert!(monitor.set_capabilities([("xbzrle", true)]).is_err());
        assert_eq!(monitor.start_postcopy(), Err(MonitorError::NoPostcopy));
    }

    #[test]
    fn info_has_qemu_s_names() {
        let monitor = Monitor::new();
        let _stage = monitor.begin().unwrap();
        monitor.show(|info| info.ram = Some(crate::migrate::RamInfo { total: 7, ..Default::default() }));
        let info = serde_json::to_value(monitor.info()).unwrap();
        assert_eq!(info["status"], "setup");
        for name in ["transferred", "dirty-sync-count", "postcopy-requests", "normal-bytes", "mbps"] {
            assert!(info["ram"].get(name).is_some(), "{name}");
        }
        assert!(info.get("error-desc").is_none());
    }
}
