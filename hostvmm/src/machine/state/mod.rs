//! Everything of a machine but its memory, to go on elsewhere: [`MachineState`].
//!
//! - [`MachineState::save`] and [`MachineState::restore`]: from and to a machine whose vCPUs are paused;
//! - [`MachineState::translate`]: a state of another accelerator's machine ([`translate`]);
//! - [`CounterState`]: the guest's time, which goes on or stands still while nobody executes ([`counter`]);
//! - [`MachineState::standing`]: where its vCPUs are, in words;
//! - [`MachineState::encode`] and [`MachineState::decode`]: its bytes, for an outside that is not trusted ([`codec`]).
//!
//! Order of a restore, and why: the time of instructions, since registers are read against it; the GIC, whose lines the
//! vCPUs' timers then drive; the vCPUs and the console; last, right before they run, the counter
//! ([`MachineState::set_counter`]), since it runs from then on.
//!
//! What a save changes: an access that was answered is completed, an HVC that was answered has its results, and
//! exclusive monitors are dropped. On the instruction clock the machine that was saved and the one that was restored go
//! on equally, bit for bit.
//!
//! Neighbours: [`crate::vcpus::state`] has the vCPUs' part, [`crate::backend`] the GIC's; `migrate` sends it.

mod codec;
mod counter;
#[cfg(test)]
mod cross_tests;
mod standing;
#[cfg(test)]
pub(crate) mod tests;
mod translate;

pub use self::codec::BadSection;
pub use self::counter::{CounterSet, CounterState};
pub use self::translate::{RegistersReport, Translations};
use super::Machine;
#[cfg(doc)]
use crate::backend::Vm;
use crate::backend::{BackendError, GicState};
use crate::device::pl011::{BadPl011, Pl011, Pl011State};
use crate::migrate::{ClockOffset, CounterPolicy};
use crate::vcpus::state::{Counters, CountersSet, TurnState, VcpuState};
use crate::vcpus::{Vcpus, VcpusError};

/// A paused machine's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineState {
    /// By vCPU.
    pub vcpus: Vec<VcpuState>,
    /// The interrupt controller.
    pub gic: GicState,
    /// The console.
    pub uart: Pl011State,
    /// The guest's time.
    pub counter: CounterState,
    /// Where the instruction clock stands, on a machine that has one.
    pub icount: Option<IcountState>,
}

/// The instruction clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcountState {
    /// Instructions executed by all vCPUs and skipped while idle.
    pub instructions: u64,
    /// Whose turn it is.
    pub turn: TurnState,
}

/// Why a machine's state could not be had, or not be taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The vCPUs' part.
    #[error(transparent)]
    Vcpus(#[from] VcpusError),
    /// The accelerator's.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Bytes of an outside.
    #[error(transparent)]
    Section(#[from] BadSection),
    /// Registers of a vCPU that cannot be moved here.
    #[error("vCPU {vcpu}: {source}")]
    Registers {
        /// Which.
        vcpu: usize,
        /// Every reason.
        source: crate::cpustate::Refusal,
    },
    /// The console's.
    #[error(transparent)]
    Uart(#[from] BadPl011),
    /// A counter of another frequency: the guest read it once and relies on it.
    #[error(
        "the guest's counter ran at {theirs} Hz and runs at {ours} Hz here (CNTFRQ_EL0); use a host of the same frequency, or the emulator on both sides"
    )]
    CounterRate {
        /// Here.
        ours: u64,
        /// Of the state.
        theirs: u64,
    },
    /// One machine's time is instructions, the other's is not.
    #[error("the state is of a machine with --clock {theirs}, this one has --clock {ours}")]
    Clock {
        /// Here.
        ours: &'static str,
        /// Of the state.
        theirs: &'static str,
    },
}

impl MachineState {
    /// The state of `machine`, whose `vcpus` are paused. They can run on afterwards.
    ///
    /// # Errors
    /// [`StateError::Vcpus`] where they are not paused, or one has ended; [`StateError::Backend`] for a register that cannot
    /// be read.
    pub fn save(machine: &Machine, vcpus: &Vcpus) -> Result<Self, StateError> {
        let vm = machine.vm();
        // First: it completes what is half done.
        let states = vcpus.save()?;
        let (counter, _) = CounterState::read(machine, vcpus)?;
        let icount =
            vm.elapsed_instructions().zip(vcpus.turn()).map(|(instructions, turn)| IcountState { instructions, turn });
        Ok(Self { vcpus: states, gic: vm.save_gic()?, uart: vcpus.uart(), counter, icount })
    }

    /// Makes `machine` what this state says, but for the counter, whether it is new or its guest has run. Its `vcpus` are
    /// paused and stay so. Where its memory was written as well since it ran: [`Vm::forget_memory`] first.
    ///
    /// # Errors
    /// [`StateError`]; the machine is useless then, unless it is [`StateError::CounterRate`], [`StateError::Clock`] or
    /// [`StateError::Uart`].
    pub fn restore(&self, machine: &Machine, vcpus: &Vcpus) -> Result<(), StateError> {
        let vm = machine.vm();
        let (ours, theirs) = (vm.ticks_per_second(), self.counter.hz);
        let rate = (ours != theirs).then_some(StateError::CounterRate { ours, theirs });
        let name = |icount: bool| if icount { "icount" } else { "wall" };
        let (ours, theirs) = (vm.elapsed_instructions().is_some(), self.icount.is_some());
        if ours != theirs {
            return Err(StateError::Clock { ours: name(ours), theirs: name(theirs) });
        }
        let uart = Pl011::try_from(&self.uart)?;
        // The emulator goes on at the guest's frequency.
        if let Some(refusal) = rate {
            vm.set_ticks_per_second(self.counter.hz).map_err(|_| refusal)?;
        }
        if let Some(IcountState { instructions, turn }) = self.icount {
            vcpus.restore_turn(turn)?;
            vm.set_elapsed_instructions(instructions)?;
        }
        vm.restore_gic(&self.gic)?;
        vcpus.restore(&self.vcpus)?;
        vcpus.restore_uart(uart);
        Ok(())
    }

    /// Sets the restored machine's counter by `policy`, the last thing before its vCPUs run. `source` is the clock of the
    /// host that saved it, as ours knows it.
    ///
    /// # Errors
    /// [`StateError::Vcpus`] where the vCPUs are not paused or refuse.
    pub fn set_counter(
        &self,
        vcpus: &Vcpus,
        policy: CounterPolicy,
        source: ClockOffset,
    ) -> Result<CounterSet, StateError> {
        // Time that is instructions stands still while nobody executes.
        let policy = if self.icount.is_some() { CounterPolicy::Stops } else { policy };
        let CountersSet { counters, at, took_ns } = vcpus.set_counters(|now| {
            let CounterState { ticks, physical, .. } = self.counter.shown_at(now, policy, source);
            Counters { virtual_ticks: ticks, physical_ticks: physical }
        })?;
        vcpus.restore_power(&self.vcpus)?;
        Ok(CounterSet { ticks: counters.virtual_ticks, at, took_ns, policy })
    }
}
