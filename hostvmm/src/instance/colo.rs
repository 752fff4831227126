//! The instance in a COLO pair: [`ColoVm`] over it.
//!
//! The guest of a pair is stopped, saved and loaded while the instance's main thread gives it its steps. The two meet at a
//! [`Gate`]: from the stop for a checkpoint until the guest runs on, nobody gives steps, for that writes guest memory; and
//! a guest that was loaded meanwhile is looked at anew.
//!
//! Neighbours: [`crate::colo`] drives the pair, [`super::vm`] is the same for migrations.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::log::LogUser;
use super::sections::Luggage;
use super::{Instance, Order, lock, tell};
use crate::colo::output::Tap;
use crate::colo::{ColoFault, ColoMonitor, ColoPhase, ColoVm, PlantedOmission, Side};
use crate::control::Events;
use crate::dirty::PageBitmap;
use crate::machine::state::{CounterState, MachineState};
use crate::memory::{GuestMemory, SlotId};
use crate::migrate::wire::{Description, Section};
use crate::migrate::{ClockOffset, CounterPolicy, Moment, VmError};

/// What is asked of an instance about pairs.
#[derive(Clone, Debug, Default)]
pub struct ColoOptions {
    /// The part that it begins with.
    pub side: Option<Side>,
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

/// A monitor that tells clients of the end of each pair, as QEMU does.
pub(super) fn watched(events: &Events, options: &ColoOptions) -> Arc<ColoMonitor> {
    let events = events.clone();
    Arc::new_cyclic(|monitor: &std::sync::Weak<ColoMonitor>| {
        let monitor = std::sync::Weak::clone(monitor);
        let watcher = move |phase| {
            let ended = matches!(phase, ColoPhase::Alone | ColoPhase::Fenced | ColoPhase::Discarded);
            if let (true, Some(monitor)) = (ended, monitor.upgrade()) {
                let status = monitor.status();
                events.emit("COLO_EXIT", Some(json!({ "mode": status.last_mode, "reason": status.reason })));
            }
        };
        ColoMonitor::new().watched(watcher).with_faults(options.fault, options.omission)
    })
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
        let counter = CounterState::read(&self.machine, &self.vcpus).map_err(|error| {
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
        let history =
            self.log.seen_by(LogUser::History).map_err(|error| VmError::new("read the dirty history", error))?;
        Ok(Luggage { state, running: self.control().is_wanted(), history, heartbeat: None }.encode())
    }

    fn load(&self, sections: &[Section], _: Moment, primary: ClockOffset) -> Result<(), VmError> {
        let bad = |error| VmError::new("read the guest's state", error);
        let mut luggage = Luggage::decode(sections, &self.log.clean(), self.options.track_dirty)
            .map_err(|error| bad(Box::<dyn std::error::Error + Send + Sync>::from(error)))?;
        self.machine.vm().forget_memory().map_err(|error| VmError::new("make the guest forget its memory", error))?;
        luggage
            .state
            .restore(&self.machine, &self.vcpus)
            .map_err(|error| VmError::new("restore the machine's state", error))?;
        if let Some(history) = luggage.history.take() {
            self.log.set(LogUser::History, history).map_err(|error| VmError::new("keep the dirty history", error))?;
        }
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
