//! The instance as a migration sees it: a guest that moves away ([`SourceVm`]), a machine that waits for one
//! ([`DestinationVm`]), and the threads that drive both.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::heartbeat::{Arrival, Departure};
use super::log::LogUser;
use super::sections::Luggage;
use super::{End, Instance, InstanceError, Order, constants, lock, tell};
use crate::backend::{Accelerator, try_log_with_walker};
use crate::control::types::RunState;
use crate::cpustate;
use crate::dirty::PageBitmap;
use crate::machine::state::{CounterState, MachineState, Translations};
use crate::memory::{Backing, GuestMemory, SlotId};
use crate::migrate::transport::tls::Role;
use crate::migrate::transport::{TlsCreds, TransportError, Uri};
use crate::migrate::wire::{Description, Section};
use crate::migrate::{self, ClockOffset, CounterPolicy, DestinationVm, Inbound, Moment, Phase, SourceVm, VmError};
use crate::vcpus::VcpusError;

/// How long a guest that arrives has to enter its first vCPU. One whose vCPUs all wait for a command enters none.
const ENTRY: Duration = Duration::from_millis(200);
/// How long the end of one migration is waited for before the next is refused.
pub(super) const FAREWELL: Duration = Duration::from_secs(40);

impl Instance {
    pub(super) fn description(&self) -> Description {
        let vm = self.machine.vm();
        Description {
            accelerator: vm.accelerator(),
            boot: self.machine.config().boot_info(self.machine.layout()),
            page_bytes: vm.log_page_bytes() as u32,
            counter_hz: vm.ticks_per_second(),
            track_dirty: self.options.track_dirty,
        }
    }

    /// Begins to move the guest to `uri`, on a thread of its own. Returns once `query-migrate` shows it.
    ///
    /// # Errors
    /// In words for the operator, where there is no guest to move or another migration is under way.
    pub(super) fn send(self: &Arc<Self>, uri: Uri) -> Result<(), String> {
        let control = *self.control();
        match control.state() {
            RunState::Inmigrate => return Err("Guest is waiting for an incoming migration".to_owned()),
            RunState::Postmigrate => {
                return Err("Can't migrate the vm that was paused due to previous migration".to_owned());
            }
            RunState::Shutdown | RunState::InternalError => {
                return Err("There is no guest left that could be migrated".to_owned());
            }
            _ if control.is_undecided() => {
                return Err(
                    "The guest may run at the destination of the last migration; `cont` takes it back".to_owned()
                );
            }
            _ => {}
        }
        if !self.wait_verified(FAREWELL) {
            return Err("The guest is still being verified after its arrival; it may be stopped".to_owned());
        }
        // The migration by which the guest came may still be taking leave of its source.
        let patience = if self.monitor.phase().has_ended() { FAREWELL } else { Duration::ZERO };
        let Some(before) = self.migrations.enter(patience) else {
            return Err("There's a migration process in progress".to_owned());
        };
        let busy = Busy { instance: Arc::clone(self), ends_with_guest: false };
        let spawned = std::thread::Builder::new().name("migrate".to_owned()).spawn(move || {
            let instance = &busy.instance;
            let result = migrate::send(instance.as_ref(), &uri, &instance.monitor);
            instance.sent(&uri, result.map(drop).map_err(|error| error.to_string()));
        });
        if let Err(error) = spawned {
            return Err(format!("cannot start a thread for the migration: {error}"));
        }
        self.migrations.wait_begun(before);
        Ok(())
    }

    fn sent(&self, uri: &Uri, result: Result<(), String>) {
        self.control().forsake();
        let phase = self.monitor.phase();
        if let (Phase::Completed, Err(error)) = (phase, &result) {
            self.agenda().complaint = Some(format!("the guest has moved, but: {error}"));
        }
        let end = match (phase, result) {
            (Phase::Cancelled, _) => format!("the migration to {uri} was cancelled"),
            (_, Ok(())) => format!("the guest has moved to {uri}"),
            (Phase::Completed, Err(error)) => format!("the guest has moved to {uri}, but: {error}"),
            (_, Err(error)) => format!("the migration to {uri} failed: {error}"),
        };
        tell(&end);
    }

    /// Waits for a guest at `uri`, on a thread of its own; with `exit_on_error` the instance ends if it does not arrive.
    ///
    /// # Errors
    /// Where nobody could connect there.
    pub(super) fn receive(self: &Arc<Self>, uri: &Uri, exit_on_error: bool) -> Result<(), InstanceError> {
        let creds = self.creds(Role::Server)?;
        let inbound = Inbound::open(uri, creds.as_ref())?;
        // There is no other: a guest arrives once.
        self.migrations.enter(Duration::ZERO);
        let busy = Busy { instance: Arc::clone(self), ends_with_guest: exit_on_error };
        let spawned = std::thread::Builder::new().name("incoming".to_owned()).spawn(move || {
            let instance = &busy.instance;
            let result = migrate::receive(instance.as_ref(), inbound, &instance.monitor);
            if let Err(error) = result {
                instance.not_received(error.to_string(), exit_on_error);
            }
        });
        spawned
            .map(drop)
            .map_err(|source| InstanceError::Listen(TransportError::Io { what: "wait at", uri: uri.clone(), source }))
    }

    /// What this side proves itself by as `role`, if it is to.
    pub(super) fn creds(&self, role: Role) -> Result<Option<TlsCreds>, TransportError> {
        let creds = self.monitor.parameters().tls_creds;
        let creds = creds.map(|directory| TlsCreds::load(&directory, role)).transpose();
        creds.map_err(TransportError::Credentials)
    }

    /// Everything that moves beside memory of a guest whose machine is in `state`.
    pub(super) fn pack(&self, state: MachineState, heartbeat: Option<Departure>) -> Result<Vec<Section>, VmError> {
        let history =
            self.log.seen_by(LogUser::History).map_err(|error| VmError::new("read the dirty history", error))?;
        Ok(Luggage { state, running: self.control().is_wanted(), history, heartbeat }.encode())
    }

    /// What [`Self::pack`] made elsewhere. Changes nothing.
    pub(super) fn unpack(&self, sections: &[Section]) -> Result<Luggage, VmError> {
        Luggage::decode(sections, &self.log.clean(), self.options.track_dirty)
            .map_err(|error| VmError::new("read the guest's state", error))
    }

    /// The stopped machine becomes that of `luggage`, and its history ours.
    pub(super) fn put_in_place(&self, luggage: &mut Luggage) -> Result<(), VmError> {
        luggage
            .state
            .restore(&self.machine, &self.vcpus)
            .map_err(|error| VmError::new("restore the machine's state", error))?;
        if let Some(history) = luggage.history.take() {
            self.log.set(LogUser::History, history).map_err(|error| VmError::new("keep the dirty history", error))?;
        }
        Ok(())
    }

    /// What became of the registers of a guest that has just been loaded.
    fn tell_registers(&self, translations: &Translations) -> Result<(), VcpusError> {
        let report = translations.report(&self.vcpus)?;
        // Identification that could be chosen is the guest's now.
        *lock(&self.constants) = constants(&self.machine, &self.vcpus)?;
        let (from, to, notes) = (&report.from, &report.to, report.notes.len());
        tell(&format!("registers from {from} to {to}: {notes} notes, by `info migrate` and in the ledger"));
        self.monitor.show(|info| info.registers = Some(report));
        Ok(())
    }

    fn not_received(&self, error: String, exit_on_error: bool) {
        if self.run_state() != RunState::Inmigrate {
            // The guest is here and runs: what went wrong afterwards is no reason to end it.
            tell(&format!("incoming migration: {error}"));
            self.agenda().complaint = Some(format!("the guest has arrived, but: {error}"));
        } else if exit_on_error {
            self.ask_end(End::NotArrived(error));
        } else {
            tell(&format!("incoming migration failed: {error}"));
        }
    }
}

/// A thread's turn at a migration, which ends with the thread, also where that panics or was never started.
struct Busy {
    instance: Arc<Instance>,
    /// Without a guest there is nothing that the instance lives for.
    ends_with_guest: bool,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.instance.control().forsake();
            if self.ends_with_guest {
                self.instance.not_received("its thread has panicked".to_owned(), true);
            }
        }
        self.instance.migrations.leave();
    }
}

impl SourceVm for Instance {
    fn describe(&self) -> Description {
        self.description()
    }

    fn cpu(&self) -> Vec<(u64, u128)> {
        lock(&self.constants).clone()
    }

    fn memory(&self) -> &GuestMemory {
        self.machine.memory()
    }

    fn log_page_bytes(&self) -> u64 {
        self.machine.vm().log_page_bytes()
    }

    fn log_name(&self) -> String {
        self.spec.logs.iter().map(|log| log.name()).collect::<Vec<_>>().join(",")
    }

    fn log_flaw(&self) -> Option<String> {
        let machine = &self.spec.machine;
        // Memory on base pages has no blocks: what it loses is lost otherwise.
        let has_blocks = machine.accelerator == Accelerator::Kvm && machine.backing != Backing::Memfd;
        Some(has_blocks.then(|| try_log_with_walker(machine.kvm_log))??.err()?.to_string())
    }

    fn start_log(&self) -> Result<(), VmError> {
        self.log.start(LogUser::Migration).map_err(|error| VmError::new("start the dirty log", error))?;
        self.gaps.begin(&self.vcpus, self.machine.config().vcpus, self.machine.vm().as_ref());
        Ok(())
    }

    fn harvest(&self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), VmError> {
        self.log.take(LogUser::Migration, slot, dirty).map_err(|error| VmError::new("harvest the dirty log", error))
    }

    fn stop_log(&self) -> Result<(), VmError> {
        // Huge pages come back by writes to protected pages: none may be made writable between the last harvest and the
        // log's end, so the guest is held for that moment.
        let control = self.control();
        let holds = self.spec.machine.backing.wants_huge_pages() && control.state() == RunState::Running;
        if holds {
            self.vcpus.pause();
        }
        let stopped = self.log.stop(LogUser::Migration);
        if holds {
            self.vcpus.resume();
        }
        drop(control);
        stopped.map_err(|error| VmError::new("stop the dirty log", error))
    }

    fn redirty(&self, slot: SlotId, pages: &PageBitmap) {
        // The history and the rate had them when the migration took them.
        self.log.add(LogUser::Migration, slot, pages);
    }

    fn pause(&self) -> Result<Moment, VmError> {
        let order = {
            let mut control = self.control();
            let order = control.pause();
            self.obey(order);
            if order != Order::Hold {
                // Stopped before, or never started: it executes nothing, and pausing says so to the vCPUs as well.
                self.vcpus.pause();
            }
            order
        };
        self.announce(order);
        // A guest that cannot be stopped as a whole is not left standing.
        let read = CounterState::read(&self.machine, &self.vcpus).inspect_err(|_| SourceVm::resume(self));
        let (counter, reading) = read.map_err(|error| VmError::new("read the guest's counter", error))?;
        *lock(&self.stopped_with) = Some(counter);
        let stopped = Moment { at: counter.at, counter: counter.ticks };
        // A guest that stood still before has no gap that would tell of its move.
        let count = if order == Order::Hold { self.machine.config().vcpus } else { 0 };
        self.gaps.stopped(&self.vcpus, count, self.machine.vm().as_ref(), stopped, reading);
        Ok(stopped)
    }

    fn resume(&self) {
        let order = {
            let mut control = self.control();
            let order = control.resume();
            self.obey(order);
            order
        };
        self.announce(order);
    }

    fn save(&self) -> Result<Vec<Section>, VmError> {
        // With fd: the destination works on the same memory once it runs.
        *lock(&self.leaves_at) = self.steps_now();
        let state = MachineState::save(&self.machine, &self.vcpus);
        let mut state = state.map_err(|error| VmError::new("save the machine's state", error))?;
        // One reading, whose error is known: what the destination sets is judged by it.
        state.counter = lock(&self.stopped_with).unwrap_or(state.counter);
        self.pack(state, self.gaps.departure())
    }

    fn throttle(&self, percent: u8) {
        // Refused on the instruction clock alone, where it would change nothing.
        let _ = self.vcpus.set_throttle(percent);
    }

    fn moved(&self) {
        self.control().moved();
    }

    fn saved(&self, file: File) {
        *lock(&self.saved) = Some(file);
        self.control().saved();
    }
}

impl DestinationVm for Instance {
    fn describe(&self) -> Description {
        self.description()
    }

    fn check_cpu(&self, source: Accelerator, theirs: &[(u64, u128)]) -> Result<(), String> {
        *lock(&self.comes_from) = Some(source);
        let ours = lock(&self.constants);
        let (writable, arch) = (self.machine.vm().writable_features(), self.machine.config().tables.arch());
        let checked = cpustate::check_constants(theirs, &ours, &writable, arch, self.options.registers);
        checked.map_err(|refusal| refusal.to_string())
    }

    fn memory(&self) -> &GuestMemory {
        self.machine.memory()
    }

    fn log_page_bytes(&self) -> u64 {
        self.machine.vm().log_page_bytes()
    }

    fn load(&self, sections: &[Section]) -> Result<(), VmError> {
        let mut luggage = self.unpack(sections)?;
        let from = lock(&self.comes_from).unwrap_or(self.machine.vm().accelerator());
        let translated = luggage.state.translate(from, &self.machine, &self.vcpus, self.options.registers);
        let translated = translated.map_err(|error| VmError::new("move the vCPUs' registers here", error))?;
        self.put_in_place(&mut luggage)?;
        if let Some(translations) = translated {
            self.tell_registers(&translations).map_err(|error| VmError::new("read the vCPUs' registers", error))?;
        }
        *lock(&self.luggage) = Some(luggage);
        Ok(())
    }

    fn run(&self, counter: CounterPolicy, _: Moment, source: ClockOffset) -> Result<Moment, VmError> {
        let luggage = lock(&self.luggage).take().ok_or_else(|| VmError::new("run the guest", "no state was loaded"))?;
        let (set, reading, order) = {
            let mut control = self.control();
            let set = luggage.state.set_counter(&self.vcpus, counter, source);
            let set = set.map_err(|error| VmError::new("set the guest's counter", error))?;
            let (_, reading) = CounterState::read(&self.machine, &self.vcpus)
                .map_err(|error| VmError::new("read the guest's counter", error))?;
            let order = control.arrive(luggage.running);
            self.obey(order);
            (set, reading, order)
        };
        let entered = self.vcpus.wait_entry(if order == Order::Run { ENTRY } else { Duration::ZERO });
        self.announce(order);
        if self.options.verify_guest && order == Order::Run {
            let mut agenda = self.agenda();
            agenda.verify = true;
            if !agenda.busy {
                self.wake.interrupt();
            }
        }
        let at = entered.unwrap_or(set.at);
        let resumed = Moment { at, counter: reading.shown_at(at) };
        if let Some(departure) = luggage.heartbeat.filter(|_| order == Order::Run) {
            // Reckoned on the source's clock, on which the guest's departure is.
            let arrival = Arrival {
                resumed: Moment { at: source.reversed().to_ours(resumed.at), ..resumed },
                set,
                reading,
                source,
                counter_hz: luggage.state.counter.hz,
            };
            self.gaps.arrived(departure, arrival);
        }
        Ok(resumed)
    }

    fn lost(&self) {
        self.control().end(RunState::InternalError);
        // A vCPU that waits for a page is let go of meanwhile; none executes once this returns.
        self.vcpus.pause();
        self.announce(Order::Hold);
    }
}
