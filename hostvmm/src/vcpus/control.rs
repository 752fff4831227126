//! The state of every vCPU under one lock, shared by the controller and the threads that execute: [`Shared`].

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use abi::hypercall::{Command, Outcome, Status};
use abi::points::Point;
use abi::{Arch, Gpa};

use super::mailbox::{Mailbox, Wait};
use super::stamps::{Exits, Stamps};
use super::turns::Turn;
use super::{Asked, Event, VcpusError, Word};
use crate::backend::{BackendError, Vm, VmHandle};
use crate::colo::output::{StreamId, Tap};
use crate::device::hypercall::{Phase, answer};
use crate::device::log_budget::LogBudget;
use crate::device::pl011::{Pl011, console_text};
use crate::machine::Machine;
use crate::memory::GuestMemory;
use crate::migrate::HostTime;

/// Lines that each vCPU can make the host log.
const LOG_LINES: u32 = 16;

/// How a hypercall came, and so how its answer returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Via {
    /// A store to the doorbell: the answer is in the block.
    Doorbell,
    /// HVC: the status goes to x0, too.
    Hvc,
    /// HVC made in the machine that this one was restored from: the accelerator here knows of no call to complete, so the
    /// registers themselves are written.
    HvcElsewhere,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// A thread executes it, or is about to.
    Running,
    /// It may run as soon as nothing is paused; an HVC is to be completed first.
    Held { complete: Option<Via> },
    /// Its hypercall waits for an answer.
    Parked { request: Gpa, via: Via, outcome: Outcome },
    /// It executes nothing any more.
    Ended,
}

#[derive(Debug)]
pub(super) struct Seat {
    pub(super) state: State,
    pub(super) phase: Phase,
    pub(super) progress: Option<Gpa>,
    pub(super) log: LogBudget,
    /// When it first entered the guest since the machine was started or its counter was set.
    pub(super) entered: Option<HostTime>,
}

#[derive(Debug)]
pub(super) struct Control {
    pub(super) seats: Vec<Seat>,
    pub(super) paused: bool,
    pub(super) stopping: bool,
    /// The throttle's share of time in which nobody executes ([`super::throttle`]).
    pub(super) throttled: bool,
    /// That share in percent; 0 is none.
    pub(super) throttle_percent: u8,
    pub(super) stamps: Stamps,
    /// Icount: whose turn it is.
    pub(super) turn: Turn,
    /// Icount: instructions left before everything pauses.
    pub(super) slice: Option<u64>,
    /// Icount: the thread has nothing to execute and waits.
    pub(super) quiescent: bool,
    /// Icount: the next turn is vCPU 0's, whole.
    pub(super) fresh_turn: bool,
    /// Where the guest last asked to be moved: until it goes on from there, or is told of elsewhere.
    pub(super) asked: Option<Asked>,
}

impl Control {
    /// Whether no vCPU may enter the guest now.
    pub(super) fn is_blocked(&self) -> bool {
        self.paused || self.throttled
    }

    /// Notes that `vcpu` is about to enter the guest; whether it is the first since the machine was paused.
    pub(super) fn note_entry(&mut self, vcpu: usize) -> bool {
        let first = self.stamps.first_entry.is_none();
        let entered = &mut self.seats[vcpu].entered;
        if first || entered.is_none() {
            let now = HostTime::now();
            entered.get_or_insert(now);
            self.stamps.first_entry.get_or_insert(now);
        }
        first
    }

    /// Whether nothing executes and nothing will before the controller says so.
    pub(super) fn is_still(&self) -> bool {
        self.quiescent || self.stopping || self.seats.iter().all(|seat| self.is_seat_still(seat))
    }

    fn is_seat_still(&self, seat: &Seat) -> bool {
        match seat.state {
            State::Running => false,
            State::Held { .. } => self.paused,
            State::Parked { .. } | State::Ended => true,
        }
    }
}

/// What the controller and the executing threads share.
pub(super) struct Shared {
    vm: VmHandle,
    memory: GuestMemory,
    firmware: PathBuf,
    arch: Arch,
    /// Whether the guest can call: a kernel of somebody else's has no doorbell, and its HVCs are not ours.
    calls: bool,
    /// The points at which its guest may ask to be moved.
    points: u32,
    control: Mutex<Control>,
    changed: Condvar,
    /// Wakes the throttle's thread alone.
    throttle_changed: Condvar,
    uart: Mutex<Pl011>,
    tap: Tap,
    mailbox: Mailbox,
    exits: Exits,
}

impl Shared {
    pub(super) fn new(machine: &Machine) -> Self {
        let config = machine.config();
        let (memory, firmware) = (machine.memory().clone(), machine.firmware().to_owned());
        let shared = Self::with(machine.vm(), memory, firmware, config.tables.arch(), config.vcpus);
        Self { calls: config.kernel.is_none(), ..shared }.with_points(config.points)
    }

    /// The guest may ask to be moved at these points, bits of a mask.
    pub(super) fn with_points(self, points: u32) -> Self {
        Self { points, ..self }
    }

    pub(super) fn with(vm: VmHandle, memory: GuestMemory, firmware: PathBuf, arch: Arch, vcpus: usize) -> Self {
        let seat = || Seat {
            state: State::Held { complete: None },
            phase: Phase::Fresh,
            progress: None,
            log: LogBudget::new(LOG_LINES),
            entered: None,
        };
        let seats = (0..vcpus).map(|_| seat()).collect();
        let control = Control {
            seats,
            paused: false,
            stopping: false,
            throttled: false,
            throttle_percent: 0,
            stamps: Stamps::default(),
            turn: Turn::FIRST,
            slice: None,
            quiescent: false,
            fresh_turn: false,
            asked: None,
        };
        Self {
            vm,
            memory,
            firmware,
            arch,
            calls: true,
            points: 0,
            control: Mutex::new(control),
            changed: Condvar::new(),
            throttle_changed: Condvar::new(),
            uart: Mutex::default(),
            tap: Tap::default(),
            mailbox: Mailbox::default(),
            exits: Exits::new(vcpus),
        }
    }

    pub(super) fn vm(&self) -> &dyn Vm {
        self.vm.as_ref()
    }

    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub(super) fn firmware(&self) -> &std::path::Path {
        &self.firmware
    }

    pub(super) fn arch(&self) -> Arch {
        self.arch
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn takes_calls(&self) -> bool {
        self.calls
    }

    pub(super) fn exits(&self) -> &Exits {
        &self.exits
    }

    pub(super) fn uart(&self) -> MutexGuard<'_, Pl011> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tap(&self) -> &Tap {
        &self.tap
    }

    /// Waits until another thread has changed the control state.
    pub(super) fn wait_change<'a>(&self, control: MutexGuard<'a, Control>) -> MutexGuard<'a, Control> {
        self.changed.wait(control).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a vCPU enters the guest, at most for `timeout`.
    pub(super) fn wait_entry(&self, timeout: Duration) -> Option<HostTime> {
        let nobody = |control: &mut Control| control.stamps.first_entry.is_none() && !control.stopping;
        let control = self.changed.wait_timeout_while(self.lock(), timeout, nobody);
        control.unwrap_or_else(PoisonError::into_inner).0.stamps.first_entry
    }

    /// Waits until the throttle has something else to do, at most for `timeout`.
    pub(super) fn wait_throttle<'a>(
        &self,
        control: MutexGuard<'a, Control>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, Control> {
        match timeout {
            None => self.throttle_changed.wait(control).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.throttle_changed.wait_timeout(control, timeout).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Holds every vCPU out of the guest for `percent` of the time from now on.
    pub(super) fn set_throttle(&self, percent: u8) {
        let mut control = self.lock();
        control.throttle_percent = percent;
        if percent == 0 {
            control.throttled = false;
        }
        drop(control);
        self.announce();
        self.throttle_changed.notify_all();
    }

    /// Tells waiting threads that the control state has changed.
    pub(super) fn announce(&self) {
        self.changed.notify_all();
    }

    pub(super) fn post(&self, event: Event) {
        self.mailbox.post(event);
    }

    /// Drops what vCPUs have said and nobody has fetched, but for lines.
    pub(super) fn forget_events(&self) {
        self.mailbox.forget_events();
    }

    pub(super) fn wait_event(&self, timeout: Option<Duration>) -> Wait {
        self.mailbox.wait(timeout)
    }

    pub(super) fn interrupt(&self) {
        self.mailbox.interrupt();
        // Taken and released so that a waiter between its check and its wait cannot miss the announcement.
        drop(self.lock());
        self.announce();
    }

    pub(super) fn forget_interrupt(&self) {
        self.mailbox.take_interrupt();
    }

    pub(super) fn progress_slot(&self, vcpu: usize) -> Option<Gpa> {
        self.lock().seats.get(vcpu)?.progress
    }

    /// Waits until nothing executes.
    pub(super) fn wait_still(&self) -> Result<(), VcpusError> {
        let mut control = self.lock();
        while !control.is_still() {
            if self.mailbox.take_interrupt() {
                control.paused = true;
                drop(control);
                self.pause();
                return Err(VcpusError::Interrupted);
            }
            control = self.wait_change(control);
        }
        Ok(())
    }

    pub(super) fn command_all(&self, commands: &[(usize, Command)]) -> Result<(), VcpusError> {
        let mut control = self.lock();
        let parked = |control: &Control, vcpu: usize| match control.seats.get(vcpu).map(|seat| seat.state) {
            Some(State::Parked { request, via, .. }) => Some((request, via)),
            _ => None,
        };
        if let Some(&(vcpu, command)) = commands.iter().find(|(vcpu, _)| parked(&control, *vcpu).is_none()) {
            return Err(VcpusError::NotParked { vcpu, command });
        }
        // Whether the executing thread has noticed that all had parked is a matter of the host's time: whose turn it is
        // next must not depend on it.
        control.fresh_turn |=
            control.seats.iter().all(|seat| matches!(seat.state, State::Parked { .. } | State::Ended));
        for &(vcpu, command) in commands {
            let (request, via) = parked(&control, vcpu).ok_or(VcpusError::NotParked { vcpu, command })?;
            if let Some(slot) = control.seats[vcpu].progress {
                self.store_stop(vcpu, slot, 0)?;
            }
            let written = answer(&self.memory, request, Status::Ok, command.encode())
                .map_err(|source| VcpusError::Memory { vcpu, source })?;
            if let Some(range) = written {
                self.vm.mark_dirty(range);
            }
            let seat = &mut control.seats[vcpu];
            seat.phase = Phase::Executing(command);
            seat.state = State::Held { complete: Some(via) };
        }
        control.quiescent = false;
        drop(control);
        self.announce();
        Ok(())
    }

    pub(super) fn store_stop(&self, vcpu: usize, slot: Gpa, value: u64) -> Result<(), VcpusError> {
        let word = Word::stop(slot);
        self.memory.store_u64(word.gpa(vcpu)?, value).map_err(|source| VcpusError::Memory { vcpu, source })?;
        if let Some(range) = word.range(vcpu)? {
            self.vm.mark_dirty(range);
        }
        Ok(())
    }

    pub(super) fn pause(&self) {
        self.tap.set_pausing(true);
        let mut control = self.lock();
        if !std::mem::replace(&mut control.paused, true) {
            control.stamps.last_exit = HostTime::now();
        }
        control.slice = None;
        for vcpu in 0..control.seats.len() {
            self.vm.kick(vcpu);
        }
        self.announce();
        while !control.is_still() {
            control = self.wait_change(control);
        }
    }

    /// `vcpu` asks to be moved at `point`: it has executed nothing behind the store, and unless it is to wait by itself nobody executes
    /// anything any more. It is its own thread that calls, so no stop is waited for here. `false` where that was not to be asked.
    pub(super) fn ask(&self, vcpu: usize, point: Point) -> bool {
        if self.points & point.bit() == 0 {
            return false;
        }
        if !point.goes_on() {
            self.tap.set_pausing(true);
        }
        let mut control = self.lock();
        control.asked = Some(Asked { vcpu, point });
        if !point.goes_on() {
            if !std::mem::replace(&mut control.paused, true) {
                control.stamps.last_exit = HostTime::now();
            }
            control.slice = None;
            (0..control.seats.len()).filter(|other| *other != vcpu).for_each(|other| self.vm.kick(other));
        }
        drop(control);
        if !point.goes_on() {
            self.announce();
            // One for each resume: nobody executes before the next.
            self.post(Event::Asked);
        }
        true
    }

    pub(super) fn asked(&self) -> Option<Asked> {
        self.lock().asked
    }

    pub(super) fn resume(&self, slice: Option<u64>) {
        let mut control = self.lock();
        if std::mem::take(&mut control.paused) {
            control.stamps.first_entry = None;
        }
        control.asked = control.asked.filter(|asked| asked.point.goes_on());
        control.slice = slice;
        control.quiescent = false;
        drop(control);
        self.tap.set_pausing(false);
        self.announce();
        self.throttle_changed.notify_all();
    }

    /// Ends a slice; returns whether all its instructions were executed.
    pub(super) fn end_slice(&self) -> bool {
        let mut control = self.lock();
        let finished = control.slice == Some(0);
        control.slice = None;
        if !std::mem::replace(&mut control.paused, true) {
            control.stamps.last_exit = HostTime::now();
        }
        finished
    }

    pub(super) fn stop(&self) {
        self.tap.set_pausing(true);
        let mut control = self.lock();
        control.stopping = true;
        for vcpu in 0..control.seats.len() {
            self.vm.kick(vcpu);
        }
        drop(control);
        self.announce();
        self.throttle_changed.notify_all();
    }

    /// The thread that executed `vcpu` is gone, and with the instruction clock every other vCPU's as well.
    pub(super) fn abandon(&self, vcpu: usize, reason: String) {
        self.tap.set_pausing(true);
        let mut control = self.lock();
        control.stopping = true;
        control.seats.iter_mut().for_each(|seat| seat.state = State::Ended);
        for other in (0..control.seats.len()).filter(|other| *other != vcpu) {
            self.vm.kick(other);
        }
        drop(control);
        self.announce();
        self.throttle_changed.notify_all();
        self.post(Event::Error { vcpu, error: BackendError::Run { vcpu, reason, dump: Box::default() } });
    }

    pub(super) fn end_seat(&self, vcpu: usize) {
        self.lock().seats[vcpu].state = State::Ended;
        self.announce();
    }

    /// Posts a diagnostic if this vCPU's budget of lines allows.
    pub(super) fn diagnose(&self, vcpu: usize, text: impl FnOnce() -> String) {
        let line = self.lock().seats[vcpu].log.line(|| format!("vCPU {vcpu}: {}", text()));
        if let Some(line) = line {
            self.post(Event::Diagnostic(line));
        }
    }

    /// Hands on a line of the console. The caller holds the UART's lock, so that lines keep their order.
    pub(super) fn emit_line(&self, line: Vec<u8>) {
        if let Err(line) = self.tap.capture(StreamId::CONSOLE, line) {
            self.post(Event::Console(console_text(&line)));
        }
    }

    pub(super) fn flush_console(&self) {
        let mut uart = self.uart();
        if let Some(line) = uart.take_partial_line() {
            self.emit_line(line);
        }
    }
}
