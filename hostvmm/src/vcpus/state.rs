//! The state of paused vCPUs, to go on elsewhere: [`VcpuState`], its registers and its [`SeatState`].
//!
//! A seat is where the host is with a vCPU in the hypercall protocol, and moves with it: a call that waits for a command
//! waits at the destination too, and is told there again ([`Event::Parked`]), so that no outcome is lost with the
//! source's queue of events. What an exit asked for and was answered is completed before registers are read; so is an
//! HVC whose command was given and that has not run on. An HVC that still waits is answered in the restored vCPU's
//! registers.
//!
//! What a state claims is checked as a guest's claims are: it may come from a peer. Everything of every seat is
//! checked before anything is changed; a register that is refused leaves the machine half restored, to be thrown away.

use std::collections::BTreeSet;
use std::sync::MutexGuard;

use abi::hypercall::{Command, Outcome, ProgressSlot, REQUEST_ALIGN, Request};
use abi::{Arch, Gpa, GuestRange};

use super::control::{Control, Seat, State, Via};
use super::exits::complete;
use super::turns::{TURN_INSTRUCTIONS, Turn};
use super::{Event, Vcpus, VcpusError, lock};
use crate::backend::Vcpu;
use crate::cpustate::{Lack, Snapshot, features};
use crate::device::hypercall::Phase;
use crate::device::pl011::{Pl011, Pl011State};
use crate::machine::Transport;
use crate::memory::{GuestMemory, SlotId};
use crate::migrate::HostTime;

/// KVM_REG_ARM_TIMER_CNT: the virtual counter.
const TIMER_CNT: u64 = 0x6030_0000_0013_df1a;
/// KVM_REG_ARM_PTIMER_CNT: the physical counter.
const PTIMER_CNT: u64 = 0x6030_0000_0013_df01;

/// Most registers that a state can have: Linux 6.12 lists 259 of a vCPU like ours, kvm-ioctls takes 500.
pub const MAX_REGISTERS: usize = 1024;

/// A counter is read, and set, up to so often, since a thread may be interrupted in between: what is not known of the
/// guest's time is how long the best try took.
pub const TRIES: u32 = 4;
/// A try that took no longer, in ns, is good enough. What a try took is known, so nothing depends on it but precision.
const QUICK_NS: u64 = 2_000;

/// One vCPU between two instructions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VcpuState {
    /// Every register of KVM_GET_REG_LIST but the counters, which belong to the machine; in the list's order.
    pub registers: Vec<(u64, u128)>,
    /// Whether PSCI has it on, and whether it waits for an interrupt.
    pub power: VcpuPower,
    /// Where it is in the hypercall protocol.
    pub seat: SeatState,
}

/// Whether a vCPU executes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VcpuPower {
    /// PSCI has it off.
    Off,
    /// It executes.
    On,
    /// It waits for an interrupt. KVM never says so: there a vCPU that is moved wakes once without reason.
    Waiting,
}

/// What the host knows of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeatState {
    /// Its last call.
    pub call: CallState,
    /// Where it publishes its progress, once it has said so.
    pub progress: Option<Gpa>,
}

/// A vCPU's last hypercall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallState {
    /// It has made none.
    Fresh,
    /// It waits for a command.
    Parked {
        /// The block to answer in.
        request: Gpa,
        /// How it called.
        transport: Transport,
        /// What it said.
        outcome: Outcome,
    },
    /// It was given this command.
    Executing(Command),
}

/// Whose turn it is on the instruction clock ([`super::turns`]), so that a run goes on bit for bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TurnState {
    /// Which vCPU's.
    pub vcpu: usize,
    /// Instructions left of it.
    pub left: u64,
    /// Turns in a row that had nothing to execute.
    pub idle: usize,
}

/// The counters of a machine, which are one for all its vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counters {
    /// CNTVCT.
    pub virtual_ticks: u64,
    /// CNTPCT, where the accelerator lets it be moved.
    pub physical_ticks: Option<u64>,
}

/// Counters that were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CountersRead {
    /// What they showed.
    pub counters: Counters,
    /// When: the middle of the time in which they were read.
    pub at: HostTime,
    /// They were read no more than so much earlier or later, in ns.
    pub uncertainty_ns: u64,
}

/// Counters that were set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CountersSet {
    /// To what.
    pub counters: Counters,
    /// When that was reckoned.
    pub at: HostTime,
    /// The virtual counter showed it no more than so much later, in ns.
    pub took_ns: u64,
}

impl Vcpus {
    /// The state of every vCPU. The machine can run on afterwards.
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`]; [`VcpusError::Ended`] where a guest has come to an end; [`VcpusError::Backend`] for
    /// a register that cannot be read.
    pub fn save(&self) -> Result<Vec<VcpuState>, VcpusError> {
        self.with_paused(|vcpus, control| {
            let mut states = Vec::new();
            for (index, vcpu) in vcpus.iter_mut().enumerate() {
                if let State::Held { complete: Some(via) } = control.seats[index].state {
                    complete(vcpu.as_mut(), via)?;
                    control.seats[index].state = State::Held { complete: None };
                }
                let before = vcpu.instructions();
                let waiting = vcpu.quiesce()?;
                let executed = before.zip(vcpu.instructions()).map_or(0, |(before, now)| now.saturating_sub(before));
                if control.turn.vcpu == index {
                    control.turn.left = control.turn.left.saturating_sub(executed);
                }
                let power = match (vcpu.is_on()?, waiting) {
                    (false, _) => VcpuPower::Off,
                    (true, false) => VcpuPower::On,
                    (true, true) => VcpuPower::Waiting,
                };
                let seat = seat_state(&control.seats[index]).ok_or(VcpusError::Ended { vcpu: index })?;
                states.push(VcpuState { registers: read_registers(vcpu.as_mut())?, power, seat });
            }
            Ok(states)
        })
    }

    /// Every register of every vCPU but the counters, as [`Self::save`] has them.
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`]; [`VcpusError::Backend`] for a register that cannot be read.
    pub fn registers(&self) -> Result<Vec<Vec<(u64, u128)>>, VcpusError> {
        self.with_paused(|vcpus, _| vcpus.iter_mut().map(|vcpu| read_registers(vcpu.as_mut())).collect())
    }

    /// Writes of each vCPU's `writes` the feature registers, and returns the ids of those that it refused: not every value that has no
    /// more than the vCPU is one that a kernel takes.
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`].
    pub fn choose_features<'a>(
        &self,
        writes: impl Iterator<Item = &'a [(u64, u128)]>,
    ) -> Result<Vec<Vec<u64>>, VcpusError> {
        self.with_paused(|vcpus, _| {
            let refused = vcpus.iter_mut().zip(writes).map(|(vcpu, writes)| {
                let features = writes.iter().filter(|(id, _)| features::is_feature(*id));
                features.filter(|(id, value)| vcpu.set_reg(*id, *value).is_err()).map(|(id, _)| *id).collect()
            });
            Ok(refused.collect())
        })
    }

    /// Hides from the guest, which has not run, what a machine with the registers `other` has not, by the bits `writable`. Returns what
    /// it is shown all the same, of the first vCPU: all have the same.
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`]; [`VcpusError::Backend`] for a register that cannot be read, or refuses.
    pub fn hide_features(
        &self,
        other: &[(u64, u128)],
        writable: &[(u64, u64)],
        arch: Arch,
    ) -> Result<Vec<Lack>, VcpusError> {
        self.with_paused(|vcpus, _| {
            let mut shown = Vec::new();
            for (index, vcpu) in vcpus.iter_mut().enumerate() {
                let registers = read_registers(vcpu.as_mut())?;
                let snapshot = Snapshot { registers, writable: writable.to_vec(), ..Snapshot::default() };
                let masks = features::baseline(&snapshot.registers, other, arch).masks(&snapshot, arch);
                // A value that the vCPU refuses hides nothing, and is among what is shown all the same.
                let refused: Vec<u64> = masks
                    .writes
                    .iter()
                    .filter(|(id, value)| vcpu.set_reg(*id, *value).is_err())
                    .map(|(id, _)| *id)
                    .collect();
                if index == 0 {
                    let left = features::compare(&read_registers(vcpu.as_mut())?, other, arch);
                    shown = masks.unmasked;
                    shown.extend(left.into_iter().filter(|lack| refused.contains(&lack.id)));
                }
            }
            Ok(shown)
        })
    }

    /// Makes every vCPU what `states` say, whatever it was and is in the middle of: a machine whose guest has run can be
    /// given a state as often as is wanted. They stay paused; the counter is to be set, then [`Self::restore_power`].
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`], [`VcpusError::Count`], [`VcpusError::NoRegister`] and [`VcpusError::BadState`]: nothing
    /// has changed. [`VcpusError::Backend`] for a value that is refused: the machine is useless.
    pub fn restore(&self, states: &[VcpuState]) -> Result<(), VcpusError> {
        let memory = self.shared.memory();
        self.with_paused(|vcpus, control| {
            let (ours, theirs) = (vcpus.len(), states.len());
            if ours != theirs {
                return Err(VcpusError::Count { ours, theirs });
            }
            for (index, (vcpu, state)) in vcpus.iter_mut().zip(states).enumerate() {
                if control.seats[index].state == State::Ended {
                    return Err(VcpusError::Ended { vcpu: index });
                }
                check_seat(memory, &state.seat)
                    .map_err(|reason| VcpusError::BadState { vcpu: index, reason: reason.to_owned() })?;
                check_registers(vcpu.as_mut(), &state.registers)?;
            }
            // What was told of the guest that was here before is not of this one.
            self.shared.forget_events();
            for (index, (vcpu, state)) in vcpus.iter_mut().zip(states).enumerate() {
                vcpu.discard()?;
                vcpu.set_on(state.power != VcpuPower::Off)?;
                vcpu.restore_regs(&state.registers)?;
                let seat = &mut control.seats[index];
                seat.progress = state.seat.progress;
                (seat.state, seat.phase) = match state.seat.call {
                    CallState::Fresh => (State::Held { complete: None }, Phase::Fresh),
                    CallState::Executing(command) => (State::Held { complete: None }, Phase::Executing(command)),
                    CallState::Parked { request, transport, outcome } => {
                        let via = match transport {
                            Transport::Mmio => Via::Doorbell,
                            Transport::Hvc => Via::HvcElsewhere,
                        };
                        (State::Parked { request, via, outcome }, Phase::Waiting)
                    }
                };
            }
            control.quiescent = false;
            self.shared.post(Event::Restored);
            for (vcpu, state) in states.iter().enumerate() {
                if let CallState::Parked { outcome, .. } = state.seat.call {
                    self.shared.post(Event::Parked { vcpu, outcome });
                }
            }
            Ok(())
        })
    }

    /// Lets vCPUs that waited for an interrupt wait on: the last step of restoring `states`, when the counter is set.
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`], [`VcpusError::Count`].
    pub fn restore_power(&self, states: &[VcpuState]) -> Result<(), VcpusError> {
        self.with_paused(|vcpus, _| {
            let (ours, theirs) = (vcpus.len(), states.len());
            if ours != theirs {
                return Err(VcpusError::Count { ours, theirs });
            }
            for (vcpu, state) in vcpus.iter_mut().zip(states) {
                vcpu.set_waiting(state.power == VcpuPower::Waiting);
            }
            Ok(())
        })
    }

    /// The machine's counters, and when they were read: the best of [`TRIES`].
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`], [`VcpusError::Backend`].
    pub fn counters(&self) -> Result<CountersRead, VcpusError> {
        self.with_paused(|vcpus, _| {
            let Some(vcpu) = vcpus.first_mut() else { return Err(VcpusError::NoVcpu { vcpu: 0 }) };
            let listed = vcpu.reg_list()?.contains(&PTIMER_CNT);
            let mut best: Option<CountersRead> = None;
            for _ in 0..TRIES {
                let before = HostTime::now();
                let physical_ticks = if listed { Some(vcpu.get_reg(PTIMER_CNT)? as u64) } else { None };
                let virtual_ticks = vcpu.get_reg(TIMER_CNT)? as u64;
                let took_ns = HostTime::now().since(before).as_nanos() as u64;
                let read = CountersRead {
                    counters: Counters { virtual_ticks, physical_ticks },
                    at: HostTime::from_ns(before.ns() + took_ns / 2),
                    uncertainty_ns: took_ns.div_ceil(2),
                };
                if best.is_none_or(|best| read.uncertainty_ns < best.uncertainty_ns) {
                    best = Some(read);
                }
                if took_ns <= QUICK_NS {
                    break;
                }
            }
            best.ok_or(VcpusError::NoVcpu { vcpu: 0 })
        })
    }

    /// Sets the machine's counters to what `counters` yields for the moment at which it is called, right before each is
    /// set; a try that took longer than it should is made again, up to [`TRIES`]. Returns what was set, and when.
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`], [`VcpusError::Backend`].
    pub fn set_counters(&self, counters: impl Fn(HostTime) -> Counters) -> Result<CountersSet, VcpusError> {
        self.with_paused(|vcpus, control| {
            let Some(vcpu) = vcpus.first_mut() else { return Err(VcpusError::NoVcpu { vcpu: 0 }) };
            let listed = vcpu.reg_list()?.contains(&PTIMER_CNT);
            if let Some(ticks) = counters(HostTime::now()).physical_ticks
                && listed
            {
                vcpu.set_reg(PTIMER_CNT, ticks.into())?;
            }
            let mut tries = 0;
            let set = loop {
                let at = HostTime::now();
                let counters = counters(at);
                vcpu.set_reg(TIMER_CNT, counters.virtual_ticks.into())?;
                let took_ns = HostTime::now().since(at).as_nanos() as u64;
                tries += 1;
                if took_ns <= QUICK_NS || tries == TRIES {
                    break CountersSet { counters, at, took_ns };
                }
            };
            self.shared.vm().counter_was_set(set.counters.virtual_ticks);
            // The guest's time begins here: what it showed before is no earlier moment of this guest.
            control.stamps.last_exit = HostTime::now();
            control.seats.iter_mut().for_each(|seat| seat.entered = None);
            self.shared.exits().forget();
            Ok(set)
        })
    }

    /// Whose turn it is on the instruction clock; `None` with the wall clock.
    pub fn turn(&self) -> Option<TurnState> {
        if self.clock != crate::machine::Clock::Icount {
            return None;
        }
        let control = self.shared.lock();
        // Whether the executing thread has noticed that all have parked is a matter of the host's time.
        let stands = control.seats.iter().all(|seat| matches!(seat.state, State::Parked { .. } | State::Ended));
        let Turn { vcpu, left, idle } = if stands { Turn::FIRST } else { control.turn };
        Some(TurnState { vcpu, left, idle })
    }

    /// Goes on with the turn of a saved machine.
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`], [`VcpusError::NeedsIcount`], [`VcpusError::BadState`] for a turn that there cannot be.
    pub fn restore_turn(&self, turn: TurnState) -> Result<(), VcpusError> {
        if self.clock != crate::machine::Clock::Icount {
            return Err(VcpusError::NeedsIcount);
        }
        self.with_paused(|vcpus, control| {
            let TurnState { vcpu, left, idle } = turn;
            if vcpu >= vcpus.len() || left > TURN_INSTRUCTIONS || idle > vcpus.len() {
                return Err(VcpusError::BadState {
                    vcpu,
                    reason: format!("a turn of {left} instructions, {idle} idle"),
                });
            }
            control.turn = Turn { vcpu, left, idle };
            control.fresh_turn = false;
            Ok(())
        })
    }

    /// The console's registers and the line that is being written.
    pub fn uart(&self) -> Pl011State {
        self.shared.uart().state()
    }

    /// Makes the console what it was elsewhere. Its interrupt line is the GIC's state.
    pub fn restore_uart(&self, state: Pl011) {
        *self.shared.uart() = state;
    }

    /// Calls `body` with every vCPU and the control state, while nothing executes or can begin to.
    fn with_paused<T>(
        &self,
        body: impl FnOnce(&mut [MutexGuard<'_, Box<dyn Vcpu>>], &mut Control) -> Result<T, VcpusError>,
    ) -> Result<T, VcpusError> {
        // Without the vCPUs' locks, so that one that is being executed is not waited for.
        if !self.shared.lock().paused {
            return Err(VcpusError::NotPaused);
        }
        // In the threads' order: a thread that has its vCPU takes the control lock.
        let mut vcpus: Vec<_> = self.vcpus.iter().map(lock).collect();
        let mut control = self.shared.lock();
        if !control.paused || !control.is_still() {
            return Err(VcpusError::NotPaused);
        }
        body(&mut vcpus, &mut control)
    }
}

/// `None` for a vCPU that has ended.
fn seat_state(seat: &Seat) -> Option<SeatState> {
    let call = match (seat.state, seat.phase) {
        (State::Parked { request, via, outcome }, _) => {
            let transport = if via == Via::Doorbell { Transport::Mmio } else { Transport::Hvc };
            CallState::Parked { request, transport, outcome }
        }
        (State::Running | State::Held { .. }, Phase::Fresh) => CallState::Fresh,
        (State::Running | State::Held { .. }, Phase::Executing(command)) => CallState::Executing(command),
        (State::Ended, _) | (_, Phase::Waiting | Phase::Dead) => return None,
    };
    Some(SeatState { call, progress: seat.progress })
}

fn read_registers(vcpu: &mut dyn Vcpu) -> Result<Vec<(u64, u128)>, VcpusError> {
    let ids = vcpu.reg_list()?;
    let ids = ids.into_iter().filter(|id| ![TIMER_CNT, PTIMER_CNT].contains(id));
    ids.map(|id| Ok((id, vcpu.get_reg(id)?))).collect()
}

fn check_registers(vcpu: &mut dyn Vcpu, registers: &[(u64, u128)]) -> Result<(), VcpusError> {
    let index = vcpu.index();
    let bad = |reason: String| VcpusError::BadState { vcpu: index, reason };
    if registers.len() > MAX_REGISTERS {
        return Err(bad(format!("{} registers, of which there are {MAX_REGISTERS} at most", registers.len())));
    }
    let ours: BTreeSet<u64> = vcpu.reg_list()?.into_iter().collect();
    let mut seen = BTreeSet::new();
    for (register, _) in registers {
        if [TIMER_CNT, PTIMER_CNT].contains(register) || !seen.insert(*register) {
            return Err(bad(format!("register {register:#018x} is a counter, or is there twice")));
        }
        if !ours.contains(register) {
            return Err(VcpusError::NoRegister { vcpu: index, register: *register });
        }
    }
    Ok(())
}

/// Checks what a seat claims about guest memory.
fn check_seat(memory: &GuestMemory, seat: &SeatState) -> Result<(), &'static str> {
    let in_ram = |gpa: Gpa, len_bytes: usize, align: u64| {
        let ram = memory.slot(SlotId::Ram).range();
        gpa.is_aligned(align) && GuestRange::new(gpa, len_bytes as u64).is_some_and(|claim| ram.contains_range(claim))
    };
    let progress_fits = |gpa: Gpa| in_ram(gpa, size_of::<ProgressSlot>(), align_of::<ProgressSlot>() as u64);
    if seat.progress.is_some_and(|gpa| !progress_fits(gpa)) {
        return Err("its progress slot is not in RAM, or not aligned");
    }
    match seat.call {
        CallState::Fresh if seat.progress.is_some() => Err("it has not called and yet has a progress slot"),
        CallState::Fresh | CallState::Executing(_) => Ok(()),
        CallState::Parked { request, .. } if !in_ram(request, size_of::<Request>(), REQUEST_ALIGN) => {
            Err("the request block that it waits in is not in RAM, or not aligned")
        }
        CallState::Parked { outcome: Outcome::Ready { progress }, .. } if seat.progress != Some(progress) => {
            Err("it is ready with another progress slot than its own")
        }
        CallState::Parked { .. } => Ok(()),
    }
}
