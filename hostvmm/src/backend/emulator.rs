//! The emulator behind the traits: [`EmulatorVm`].
//!
//! A thin layer: names and errors are translated, nothing is decided here. It keeps a clone of [`GuestMemory`] wherever
//! the emulator keeps pointers into it, so the mappings outlive the machine.
#![expect(unsafe_code, reason = "hands the memslots' host pointers to the emulator")]

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use abi::{Arch, GuestRange};
use emulator::config::{ClockMode, Config, DEFAULT_CNTFRQ_HZ, ExecutionState, RamSlot};
use emulator::exit::Exit as EmulatorExit;
use emulator::psci::PowerState;
use emulator::vm::Machine;

use super::gic_state::{self, GicKey, GicState};
use super::{Accelerator, BackendError, Exit, PlantedFault, Vcpu, VcpuDump, Vm, boot};
use crate::machine::{Clock, Layout, MachineConfig, Start};
use crate::memory::{GuestMemory, SlotId};

/// Guest nanoseconds per instruction with the instruction clock: a 1 GHz machine that retires one a cycle.
const NS_PER_INSTRUCTION: u32 = 1;

/// Priority bits of the emulator's GIC.
const GIC_PRIORITY_BITS: u32 = 5;

fn gic_error(key: GicKey, error: &emulator::gic::GicError) -> BackendError {
    BackendError::Gic { accelerator: Accelerator::Emulator, key, reason: error.to_string() }
}

/// A machine of the embedded emulator.
pub struct EmulatorVm {
    machine: Arc<Machine>,
    memory: GuestMemory,
    start: Start,
    logging: AtomicBool,
}

impl EmulatorVm {
    /// The machine that `config` and `layout` describe, on the slots of `memory`.
    ///
    /// # Errors
    /// [`BackendError::Refused`] in the emulator's own words.
    pub fn new(
        config: &MachineConfig,
        layout: &Layout,
        memory: &GuestMemory,
        start: Start,
    ) -> Result<Self, BackendError> {
        let emulator_config = Config {
            vcpus: config.vcpus,
            clock: match config.clock {
                Clock::Wall => ClockMode::Wall,
                Clock::Icount => ClockMode::Icount { ns_per_instruction: NS_PER_INSTRUCTION },
            },
            execution_state: match start.arch {
                Arch::Aarch64 => ExecutionState::Aarch64,
                Arch::Armv7 => ExecutionState::Aarch32,
            },
            log_page_shift: layout.log_page_bytes().trailing_zeros(),
            cntfrq_hz: config.counter_hz.map_or(DEFAULT_CNTFRQ_HZ, NonZeroU32::get),
            ..Config::default()
        };
        let slots = SlotId::ALL.map(|id| {
            let slot = memory.slot(id);
            RamSlot { gpa: slot.range().start(), len_bytes: slot.range().len_bytes(), host: slot.host_base() }
        });
        // SAFETY: each slot's pointer is its mapping of that length; the mappings live as long as `memory`, of which
        // this machine and each of its vCPUs keep a clone; nothing makes Rust references into them.
        let machine = unsafe { Machine::new(emulator_config, &slots) }
            .map_err(|error| BackendError::Refused { accelerator: Accelerator::Emulator, reason: error.to_string() })?;
        Ok(Self { machine, memory: memory.clone(), start, logging: AtomicBool::new(false) })
    }

    fn gic_keys(&self) -> impl Iterator<Item = GicKey> {
        gic_state::keys(self.machine.config().vcpus, GIC_PRIORITY_BITS)
    }

    fn dirty_log_error(reason: impl Into<String>) -> BackendError {
        BackendError::DirtyLog { accelerator: Accelerator::Emulator, reason: reason.into() }
    }
}

impl Vm for EmulatorVm {
    fn accelerator(&self) -> Accelerator {
        Accelerator::Emulator
    }

    fn take_vcpu(&self, index: usize) -> Option<Box<dyn Vcpu>> {
        let vcpu = self.machine.take_vcpu(index)?;
        let mut vcpu = EmulatorVcpu {
            vcpu,
            icount: matches!(self.machine.config().clock, ClockMode::Icount { .. }),
            unanswered_write: false,
            found: None,
            arch: self.start.arch,
            memory: self.memory.clone(),
        };
        if index == 0 {
            for (register, value) in boot::registers(self.start) {
                vcpu.set_reg(register, value.into()).ok()?;
            }
        }
        Some(Box::new(vcpu))
    }

    fn kick(&self, index: usize) {
        self.machine.kick(index);
    }

    fn set_irq_line(&self, intid: u32, level: bool) {
        // The PL011's line is the only one and is an SPI; the emulator refuses others.
        let _ = self.machine.set_spi(intid, level);
    }

    fn save_gic(&self) -> Result<GicState, BackendError> {
        let gic = self.machine.gic();
        let value = |key: GicKey| gic.attribute(key.group, key.attr).map_err(|error| gic_error(key, &error));
        let registers = self.gic_keys().map(|key| Ok((key, value(key)?))).collect::<Result<_, _>>()?;
        Ok(GicState { registers })
    }

    fn restore_gic(&self, state: &GicState) -> Result<(), BackendError> {
        state.check_shape(Accelerator::Emulator, self.gic_keys())?;
        let gic = self.machine.gic();
        state.registers.iter().try_for_each(|(key, value)| {
            gic.set_attribute(key.group, key.attr, *value).map_err(|error| gic_error(*key, &error))
        })
    }

    fn forget_memory(&self) -> Result<(), BackendError> {
        self.machine.forget_memory();
        Ok(())
    }

    fn mark_dirty(&self, range: GuestRange) {
        self.machine.mark_dirty(range.start(), range.len_bytes());
    }

    fn log_page_bytes(&self) -> u64 {
        1 << self.machine.config().log_page_shift
    }

    fn start_dirty_log(&self, _: &[SlotId]) -> Result<(), BackendError> {
        if self.logging.swap(true, Ordering::SeqCst) {
            return Err(Self::dirty_log_error("it runs already"));
        }
        self.machine.start_dirty_log();
        Ok(())
    }

    fn stop_dirty_log(&self) -> Result<(), BackendError> {
        if !self.logging.swap(false, Ordering::SeqCst) {
            return Err(Self::dirty_log_error("it does not run"));
        }
        self.machine.stop_dirty_log();
        Ok(())
    }

    fn harvest_dirty(&self, slot: SlotId, bitmap: &mut [u64]) -> Result<(), BackendError> {
        if !self.logging.load(Ordering::SeqCst) {
            return Err(Self::dirty_log_error("it does not run"));
        }
        self.machine.harvest(slot.index(), bitmap).map_err(|error| Self::dirty_log_error(error.to_string()))
    }

    fn plant(&self, fault: PlantedFault) -> Result<(), BackendError> {
        use emulator::dirty::PlantedFault as Planted;
        self.machine.dirty().plant(match fault {
            PlantedFault::SkipPage { gpa } => Planted::NeverMark { gpa },
            PlantedFault::StaleTag { gpa, harvest } => Planted::KeepStaleTag { gpa, harvest },
            PlantedFault::DropBit { gpa, harvest } => Planted::DropAtHarvest { gpa, harvest },
        });
        Ok(())
    }

    fn writable_features(&self) -> Vec<(u64, u64)> {
        emulator::regs::writable(self.machine.config().execution_state)
    }

    fn now_ticks(&self) -> u64 {
        self.machine.now_ticks().wrapping_sub(self.machine.counter_offset())
    }

    fn elapsed_instructions(&self) -> Option<u64> {
        matches!(self.machine.config().clock, ClockMode::Icount { .. }).then(|| self.machine.instructions())
    }

    fn set_elapsed_instructions(&self, total: u64) -> Result<(), BackendError> {
        if self.elapsed_instructions().is_none() {
            let what = "take up a time of instructions with the wall clock";
            return Err(BackendError::Unsupported { accelerator: Accelerator::Emulator, what });
        }
        self.machine.set_instructions(total);
        Ok(())
    }

    fn ticks_per_second(&self) -> u64 {
        u64::from(self.machine.counter_hz())
    }

    fn set_ticks_per_second(&self, hz: u64) -> Result<(), BackendError> {
        let given = u32::try_from(hz).ok().and_then(NonZeroU32::new);
        let what = "count at such a frequency: CNTFRQ_EL0 has 32 bits and is not zero";
        let unsupported = BackendError::Unsupported { accelerator: Accelerator::Emulator, what };
        self.machine.set_counter_hz(given.ok_or(unsupported)?);
        Ok(())
    }

    fn warp_to_next_deadline(&self) -> Result<bool, BackendError> {
        match self.machine.config().clock {
            ClockMode::Icount { .. } => Ok(self.machine.warp_to_next_deadline()),
            ClockMode::Wall => Err(BackendError::Unsupported {
                accelerator: Accelerator::Emulator,
                what: "move time that follows the host's clock",
            }),
        }
    }
}

/// One vCPU of the emulator.
struct EmulatorVcpu {
    vcpu: emulator::vcpu::Vcpu,
    icount: bool,
    /// The last exit was a store, which the emulator wants acknowledged before it goes on.
    unanswered_write: bool,
    arch: Arch,
    /// What completing an access before its state was read has led to: the next run's exit.
    found: Option<EmulatorExit>,
    /// The vCPU holds pointers into it.
    memory: GuestMemory,
}

impl EmulatorVcpu {
    /// Completes an access that was answered, as KVM does before state is read or written.
    fn settle(&mut self) -> &mut emulator::vcpu::Vcpu {
        if std::mem::take(&mut self.unanswered_write) {
            self.vcpu.complete_mmio(0);
        }
        if self.found.is_none() {
            self.found = self.vcpu.settle();
        }
        &mut self.vcpu
    }

    fn stopped(&mut self, reason: String) -> BackendError {
        let dump = VcpuDump::new(self.arch, &self.memory, |id| self.vcpu.get_reg(id).ok().map(|value| value as u64));
        BackendError::Run { vcpu: self.vcpu.index(), reason, dump: Box::new(dump) }
    }

    fn register_error(&self, register: u64, reason: String) -> BackendError {
        BackendError::Register { vcpu: self.vcpu.index(), accelerator: Accelerator::Emulator, register, reason }
    }
}

impl Vcpu for EmulatorVcpu {
    fn index(&self) -> usize {
        self.vcpu.index()
    }

    fn run(&mut self, budget: Option<u64>) -> Result<Exit, BackendError> {
        if std::mem::take(&mut self.unanswered_write) {
            self.vcpu.complete_mmio(0);
        }
        let exit = match (budget, self.icount) {
            _ if self.found.is_some() => self.found.take().unwrap_or(EmulatorExit::Kicked),
            (Some(instructions), true) => self.vcpu.run_for(instructions),
            (None, false) => self.vcpu.run(),
            (Some(_), false) => {
                let what = "count instructions with the wall clock";
                return Err(BackendError::Unsupported { accelerator: Accelerator::Emulator, what });
            }
            (None, true) => {
                let what = "run without a budget with the instruction clock";
                return Err(BackendError::Unsupported { accelerator: Accelerator::Emulator, what });
            }
        };
        Ok(match exit {
            EmulatorExit::MmioRead { gpa, len_bytes } => Exit::MmioRead { gpa, len_bytes },
            EmulatorExit::MmioWrite { gpa, len_bytes, data } => {
                self.unanswered_write = true;
                Exit::MmioWrite { gpa, len_bytes, data }
            }
            EmulatorExit::Hvc { function, args } => Exit::Hvc { function: u64::from(function), args },
            EmulatorExit::Kicked => Exit::Kicked,
            EmulatorExit::Budget => Exit::Budget,
            EmulatorExit::Idle => Exit::Idle,
            EmulatorExit::SystemOff => Exit::SystemOff,
            EmulatorExit::SystemReset => Exit::SystemReset,
            EmulatorExit::CpuOff => Exit::CpuOff,
            EmulatorExit::Error(error) => {
                return Err(self.stopped(error.to_string()));
            }
        })
    }

    fn complete_mmio_read(&mut self, data: u64) {
        self.vcpu.complete_mmio(data);
    }

    fn complete_hvc(&mut self, results: [u64; 4]) {
        self.vcpu.complete_hvc(results);
    }

    fn reg_list(&mut self) -> Result<Vec<u64>, BackendError> {
        Ok(emulator::vcpu::Vcpu::reg_ids())
    }

    fn get_reg(&mut self, register: u64) -> Result<u128, BackendError> {
        self.settle().get_reg(register).map_err(|error| self.register_error(register, error.to_string()))
    }

    fn set_reg(&mut self, register: u64, value: u128) -> Result<(), BackendError> {
        self.settle().set_reg(register, value).map_err(|error| self.register_error(register, error.to_string()))
    }

    fn is_on(&mut self) -> Result<bool, BackendError> {
        Ok(self.settle().power() != PowerState::Off)
    }

    fn set_on(&mut self, on: bool) -> Result<(), BackendError> {
        self.settle().set_power(if on { PowerState::On } else { PowerState::Off });
        Ok(())
    }

    fn discard(&mut self) -> Result<(), BackendError> {
        (self.unanswered_write, self.found) = (false, None);
        self.vcpu.discard();
        Ok(())
    }

    fn quiesce(&mut self) -> Result<bool, BackendError> {
        self.settle();
        if let Some(exit) = self.vcpu.quiesce() {
            self.found = Some(exit);
        }
        Ok(self.vcpu.is_waiting())
    }

    fn set_waiting(&mut self, waiting: bool) {
        self.settle().set_waiting(waiting);
    }

    fn instructions(&self) -> Option<u64> {
        self.icount.then(|| self.vcpu.retired())
    }
}
