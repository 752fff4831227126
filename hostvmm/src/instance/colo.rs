//! The instance in a COLO pair: [`ColoVm`] over it, and the threads that drive either side.
//!
//! The guest of a pair is stopped, saved and loaded while the instance's main thread gives it its steps. The two meet at a
//! [`Gate`]: from the stop for a checkpoint until the guest runs on, nobody gives steps, for that writes guest memory; and
//! a guest that was loaded meanwhile is looked at anew.
//!
//! Neighbours: [`crate::colo`] drives the pair, [`super::vm`] is the same for migrations.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::log::LogUser;
use super::{End, Instance, InstanceError, Migrations, Order, lock, tell};
use crate::colo::outlet::{JsonLines, OutletAddress, OutletClient, OutletError, OwnOutlet};
use crate::colo::output::Tap;
use crate::colo::{
    self, ColoFault, ColoMonitor, ColoPhase, ColoVm, Ending, Outcome, Peer, PlantedOmission, Side, Voice,
};
use crate::control::Events;
use crate::control::types::RunState;
use crate::dirty::PageBitmap;
use crate::machine::state::{CounterState, MachineState};
use crate::memory::{GuestMemory, SlotId};
use crate::migrate::transport::tls::Role;
use crate::migrate::transport::{Listener, Uri};
use crate::migrate::wire::{Description, Section, Session};
use crate::migrate::{ClockOffset, CounterPolicy, Moment, VmError};

/// How long an answer of the outlet is waited for.
const OUTLET: Duration = Duration::from_secs(1);
/// How often the voice is tried for at the end, each time after [`LISTEN`].
const LAST_TRIES: u32 = 20;
/// How long output is waited for before it is looked whether there is still somebody who emits it.
const LISTEN: Duration = Duration::from_millis(20);

fn unreachable_waits(error: OutletError) -> Result<(), OutletError> {
    if matches!(error, OutletError::Unreachable(_)) { Ok(()) } else { Err(error) }
}

/// What is asked of an instance about pairs.
#[derive(Clone, Debug, Default)]
pub struct ColoOptions {
    /// The part that it begins with.
    pub side: Option<Side>,
    /// Of a primary: the secondary's address, for a pair that begins as soon as the guest runs.
    pub peer: Option<Uri>,
    /// Where output goes, and who says which side goes on.
    pub outlet: Option<OutletAddress>,
    /// A fault planted in every pair.
    pub fault: Option<ColoFault>,
    /// A lie about dirty pages planted in every pair.
    pub omission: Option<PlantedOmission>,
}

/// Closed while the guest stands still for a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    /// Closes it, once whoever is inside has left.
    fn close(&self) {
        *lock(&self.closed) = true;
    }

    fn open(&self) {
        *lock(&self.closed) = false;
        self.opened.notify_all();
    }

    /// Waits until it is open, and keeps it so until what is returned is dropped; `None` where `patience` is over.
    pub(super) fn pass(&self, patience: Duration) -> Option<MutexGuard<'_, bool>> {
        let wait = self.opened.wait_timeout_while(lock(&self.closed), patience, |closed| *closed);
        let (guard, wait) = wait.unwrap_or_else(PoisonError::into_inner);
        (!wait.timed_out()).then_some(guard)
    }
}

/// A monitor that tells clients of the end of each pair, as QEMU does, and `migrations` of each begin.
pub(super) fn watched(events: &Events, options: &ColoOptions, migrations: &Arc<Migrations>) -> Arc<ColoMonitor> {
    let (events, migrations) = (events.clone(), Arc::clone(migrations));
    Arc::new_cyclic(|monitor: &std::sync::Weak<ColoMonitor>| {
        let monitor = std::sync::Weak::clone(monitor);
        let watcher = move |phase| {
            if phase == ColoPhase::Setup {
                migrations.begin();
            }
            let ended = matches!(phase, ColoPhase::Alone | ColoPhase::Fenced | ColoPhase::Discarded);
            if let (true, Some(monitor)) = (ended, monitor.upgrade()) {
                let status = monitor.status();
                events.emit("COLO_EXIT", Some(json!({ "mode": status.last_mode, "reason": status.reason })));
            }
        };
        ColoMonitor::new().watched(watcher).with_faults(options.fault, options.omission)
    })
}

/// The machine's way to the outside world; without an outlet that is standard output.
///
/// # Errors
/// Where the host gives no random bytes, or no descriptor.
pub(super) fn voice(options: &ColoOptions) -> std::io::Result<Voice> {
    // Whose guest it is: an outlet that has another one's refuses.
    let pair = Session::random()?.raw();
    Ok(match &options.outlet {
        Some(address) => Voice::new(Box::new(OutletClient::new(address.clone(), OUTLET)?), true, pair),
        None => Voice::new(Box::new(OwnOutlet::new(Box::new(JsonLines::new(std::io::stdout())))), false, pair),
    })
}

impl Instance {
    /// Delivers what the guest emits while it is in no pair, on a thread of its own: whoever drives a pair has the voice. Once
    /// is enough.
    ///
    /// # Errors
    /// Where the host refuses a thread.
    pub(super) fn speak(self: &Arc<Self>) -> std::io::Result<()> {
        if self.speaks.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.vcpus.output().start();
        let owns = self.options.colo.side != Some(Side::Secondary);
        let instance = Arc::downgrade(self);
        let speak = move || {
            while let Some(instance) = instance.upgrade() {
                let Ok(mut voice) = instance.voice.try_lock() else {
                    std::thread::sleep(LISTEN);
                    continue;
                };
                let said = if voice.epoch() == 0 {
                    if owns { voice.claim(1, Side::Primary).or_else(unreachable_waits) } else { Ok(()) }
                } else if !voice.is_full() && instance.vcpus.output().wait(LISTEN) {
                    voice.say(instance.vcpus.output().take())
                } else {
                    voice.flush()
                };
                let owned = voice.epoch() > 0;
                drop(voice);
                match said {
                    Ok(()) if owned => {}
                    Ok(()) => std::thread::sleep(LISTEN),
                    Err(error) => {
                        tell(&format!("colo: {error}"));
                        if !matches!(error, OutletError::Fenced { .. }) {
                            instance.agenda().complaint.get_or_insert_with(|| error.to_string());
                        }
                        instance.fenced();
                        return;
                    }
                }
            }
        };
        std::thread::Builder::new().name("output".to_owned()).spawn(speak).map(drop)
    }

    /// Delivers what the guest has emitted until now, unless it is not this VM's to say.
    pub(super) fn last_words(&self) {
        if !self.speaks.load(Ordering::SeqCst) {
            return;
        }
        for _ in 0..LAST_TRIES {
            // Whoever drives a pair has it to the end.
            let Ok(mut voice) = self.voice.try_lock() else {
                std::thread::sleep(LISTEN);
                continue;
            };
            if voice.epoch() > 0
                && let Err(error) = voice.say(self.vcpus.output().take())
            {
                tell(&format!("colo: {error}"));
            }
            return;
        }
    }

    /// Gives the guest a secondary at `uri`, on a thread of its own.
    ///
    /// # Errors
    /// In words for the operator, where there is no guest to protect, or something else is under way.
    pub(super) fn protect(self: &Arc<Self>, uri: Uri) -> Result<(), String> {
        if self.is_kernel() {
            return Err("A pair runs the firmware: its output is compared, and a kernel of its own has none".to_owned());
        }
        let control = *self.control();
        match control.state() {
            RunState::Running | RunState::Paused if !control.is_undecided() => {}
            state => return Err(format!("A guest that is {} cannot be given a secondary", state.name())),
        }
        let tls = self.creds(Role::Client).map_err(|error| error.to_string())?;
        self.speak().map_err(|error| format!("cannot start a thread for the guest's output: {error}"))?;
        let peer = Peer { uri, tls };
        self.drive_pair("colo-primary", move |instance| {
            colo::protect(instance, &peer, &mut lock(&instance.voice), &instance.colo)
        })
    }

    /// Waits at `uri` for a primary, and runs beside it, on a thread of its own.
    ///
    /// # Errors
    /// [`InstanceError`] where nobody could connect there.
    pub(super) fn stand_by(self: &Arc<Self>, uri: &Uri) -> Result<(), InstanceError> {
        let creds = self.creds(Role::Server)?;
        let listener = Listener::bind(uri, creds.as_ref())?;
        self.drive_pair("colo-secondary", move |instance| {
            colo::shadow(instance, listener, &mut lock(&instance.voice), &instance.colo)
        })
        .map_err(InstanceError::Incoming)
    }

    fn drive_pair(
        self: &Arc<Self>,
        name: &str,
        drive: impl FnOnce(&Self) -> Outcome + Send + 'static,
    ) -> Result<(), String> {
        let Some(before) = self.migrations.enter(Duration::ZERO) else {
            return Err("There's a migration process in progress".to_owned());
        };
        let instance = Arc::clone(self);
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let outcome = drive(&instance);
            instance.left_pair(&outcome);
            instance.migrations.leave();
        });
        if let Err(error) = spawned {
            self.migrations.leave();
            return Err(format!("cannot start a thread for the pair: {error}"));
        }
        self.migrations.wait_begun(before);
        Ok(())
    }

    fn left_pair(&self, outcome: &Outcome) {
        let why = outcome.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
        match outcome.ending {
            Ending::Alone { epoch } => tell(&format!("colo: this VM goes on alone, in epoch {epoch}{why}")),
            Ending::Fenced => tell(&format!("colo: the other side goes on; this VM never runs again{why}")),
            Ending::Discarded => {
                self.ask_end(End::NotArrived(format!("there was nothing to take over{why}")));
            }
            Ending::Stopped => {
                tell(&format!("colo: the pair is over, and the guest stands still{why}"));
                self.control().doubt();
            }
        }
        self.gate.open();
    }

    /// Ends the pair that is under way, with the guest standing still if it is not known to be the only one.
    pub(super) fn end_pair(&self) {
        // There may be none.
        let _ = self.colo.stop();
    }
}

impl ColoVm for Instance {
    fn describe(&self) -> Description {
        self.description()
    }

    fn memory(&self) -> &GuestMemory {
        self.machine.memory()
    }

    fn log_page_bytes(&self) -> u64 {
        self.machine.vm().log_page_bytes()
    }

    fn start_log(&self) -> Result<(), VmError> {
        self.log.start(LogUser::Colo).map_err(|error| VmError::new("start the dirty log", error))
    }

    fn harvest(&self, slot: SlotId, dirty: &mut PageBitmap) -> Result<(), VmError> {
        self.log.take(LogUser::Colo, slot, dirty).map_err(|error| VmError::new("harvest the dirty log", error))
    }

    fn stop_log(&self) -> Result<(), VmError> {
        self.log.stop(LogUser::Colo).map_err(|error| VmError::new("stop the dirty log", error))
    }

    fn pause(&self) -> Result<Moment, VmError> {
        // Before the vCPUs stop: whoever gives steps is done, or waits until the guest runs on.
        self.gate.close();
        let order = {
            let mut control = self.control();
            let order = control.checkpoint();
            self.obey(order);
            order
        };
        if order != Order::Hold {
            // Stopped before, or without a guest yet: pausing says so to the vCPUs as well.
            self.vcpus.pause();
        }
        let (counter, _) = CounterState::read(&self.machine, &self.vcpus).map_err(|error| {
            ColoVm::resume(self);
            VmError::new("read the guest's counter", error)
        })?;
        Ok(Moment { at: counter.at, counter: counter.ticks })
    }

    fn resume(&self) {
        {
            let mut control = self.control();
            let order = control.resume_checkpoint();
            self.obey(order);
        }
        self.gate.open();
    }

    fn save(&self) -> Result<Vec<Section>, VmError> {
        let state = MachineState::save(&self.machine, &self.vcpus);
        let state = state.map_err(|error| VmError::new("save the machine's state", error))?;
        self.pack(state, None)
    }

    fn load(&self, sections: &[Section], _: Moment, primary: ClockOffset) -> Result<(), VmError> {
        // A secondary's first guest comes to a machine that nobody has paused. Steps that it were given here, where it arrives parked, would
        // be written to its memory before that has been compared.
        self.gate.close();
        let mut luggage = self.unpack(sections)?;
        self.machine.vm().forget_memory().map_err(|error| VmError::new("make the guest forget its memory", error))?;
        self.put_in_place(&mut luggage)?;
        luggage
            .state
            .set_counter(&self.vcpus, CounterPolicy::RunsOn, primary)
            .map_err(|error| VmError::new("set the guest's counter", error))?;
        self.control().follow(luggage.running);
        Ok(())
    }

    fn output(&self) -> &Tap {
        self.vcpus.output()
    }

    fn survive(&self, side: Side) {
        tell(&format!("colo: the {side} takes over"));
    }

    fn fenced(&self) {
        self.control().moved();
        self.vcpus.pause();
        self.gate.open();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_passes_a_closed_gate_and_nobody_closes_it_on_who_is_inside() {
        let gate = Gate::default();
        gate.close();
        assert!(gate.pass(Duration::from_millis(1)).is_none());
        gate.open();
        let inside = gate.pass(Duration::ZERO).expect("it is open");
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| gate.close());
            assert!(!*inside, "not while we are inside");
            drop(inside);
            closer.join().unwrap();
        });
        assert!(gate.pass(Duration::ZERO).is_none());
    }
}
