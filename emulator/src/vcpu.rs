//! One virtual CPU as the host sees it: [`Vcpu`], and the loop around the core.
//!
//! Each turn of the loop first takes the attention flags, then looks at what they may have announced (kick, power,
//! timers, interrupt line), then lets the core execute until it stops. Every look is after the take, so what changes
//! later is flagged for the next turn (see `signal`). Between two turns the vCPU counts as outside for safepoints.
//!
//! In wall mode a vCPU that is off or waits sleeps in here. In icount mode nothing sleeps: [`Exit::Idle`] hands the
//! decision to the host's scheduler, and the core's budget ends exactly at the next timer's deadline.
//!
//! Neighbours: `vm` hands vCPUs out, `exec` executes, `psci` answers hypercalls, `exit` says why it came back.

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests32;

use std::fmt;
use std::sync::Arc;

use abi::Gpa;

use crate::a32;
use crate::config::{ClockMode, ExecutionState};
use crate::cpu::{Cpu, DAIF_I, Exclusive, MmioState, Pstate, Stop};
use crate::exception;
use crate::exec;
use crate::exit::{ErrorReason, Exit, VcpuError};
use crate::pmu::Pmu;
use crate::psci::{self, Outcome, PowerState};
use crate::regs::{self, RegError};
use crate::safepoint::Work;
use crate::shared::Shared;
use crate::signal;
use crate::sysreg::SysRegs;
use crate::timer;

const ALL_BUT_KICK: u32 = !signal::KICK;

/// What the vCPU is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Executing.
    Executing,
    /// In WFI or CPU_SUSPEND.
    Waiting,
    /// The host owes an answer to an MMIO exit.
    Mmio,
    /// The host owes an answer to a hypercall exit.
    Hvc,
}

/// One vCPU. Owned by the thread that runs it; between two runs its registers may be read and written.
pub struct Vcpu {
    cpu: Box<Cpu>,
    shared: Arc<Shared>,
    index: usize,
    doing: Doing,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, index, doing, .. } = self;
        write!(f, "Vcpu {{ index: {index}, pc: {:#x}, doing: {doing:?} }}", cpu.pc)
    }
}

impl Vcpu {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Self {
        Self { cpu: Box::new(Cpu::new(index, Arc::clone(&shared))), shared, index, doing: Doing::Executing }
    }

    /// Index of this vCPU, which is also its MPIDR's Aff0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Completes an answered MMIO access without executing more, and resets a vCPU that PSCI has just turned on, so that
    /// the registers are those between two instructions. What completing the access led to instead, if it did: the next
    /// exit.
    pub fn settle(&mut self) -> Option<Exit> {
        if matches!(self.doing, Doing::Mmio | Doing::Hvc) || !self.is_on() || self.cpu.mmio.reply.is_none() {
            return None;
        }
        let start = self.cpu.retired;
        self.cpu.timers.synchronise(&self.shared.clock, start);
        let exit = self.begin();
        if self.shared.clock.mode() != ClockMode::Wall {
            self.shared.clock.advance(self.cpu.retired - start);
        }
        exit
    }

    /// As [`Self::settle`], and drops the exclusive monitor and the event register, which no register shows: what is left is
    /// registers, power and [`Self::is_waiting`]. A store-exclusive may fail at any time, and the guest tries again.
    pub fn quiesce(&mut self) -> Option<Exit> {
        let exit = self.settle();
        self.forget_hidden();
        exit
    }

    /// Drops whatever the vCPU is in the middle of, answered or not, and what no register shows: the next thing is that
    /// another state is put in its place. It executes nothing.
    pub fn discard(&mut self) {
        self.doing = Doing::Executing;
        self.cpu.mmio = MmioState::default();
        self.forget_hidden();
    }

    /// What no register shows and a guest must expect to lose: exclusive monitor and event register. WFE may end at any
    /// time here, so that an event that is lost holds nobody up.
    fn forget_hidden(&mut self) {
        self.take_events();
        self.cpu.excl = Exclusive::default();
        self.cpu.event = false;
    }

    /// Whether the vCPU waits for an interrupt, in WFI or CPU_SUSPEND.
    pub fn is_waiting(&self) -> bool {
        self.doing == Doing::Waiting
    }

    /// Lets the vCPU wait as the saved one did, or not, and in icount mode makes known when its next timer is due: the
    /// last thing to restore, after the counter. Without effect on one that owes an answer.
    pub fn set_waiting(&mut self, waiting: bool) {
        if matches!(self.doing, Doing::Executing | Doing::Waiting) {
            self.doing = if waiting { Doing::Waiting } else { Doing::Executing };
        }
        self.publish_deadline();
    }

    /// The registers. In icount mode the counter they are read with is that of the whole machine.
    pub fn cpu(&mut self) -> &mut Cpu {
        self.cpu.timers.synchronise(&self.shared.clock, self.cpu.retired);
        &mut self.cpu
    }

    /// Reads the register with KVM's id `id`, zero-extended.
    ///
    /// # Errors
    /// [`RegError::NoSuchRegister`].
    pub fn get_reg(&mut self, id: u64) -> Result<u128, RegError> {
        regs::get(self.cpu(), id)
    }

    /// Writes the register with KVM's id `id`.
    ///
    /// # Errors
    /// [`RegError`]; then nothing changed.
    pub fn set_reg(&mut self, id: u64, value: u128) -> Result<(), RegError> {
        regs::set(self.cpu(), id, value)
    }

    /// KVM's ids of all registers, each once.
    pub fn reg_ids() -> Vec<u64> {
        regs::list()
    }

    /// Instructions retired by this vCPU since it was built.
    pub fn retired(&self) -> u64 {
        self.cpu.retired
    }

    /// Whether PSCI has this vCPU on, off or in between.
    pub fn power(&self) -> PowerState {
        self.shared.power.get(self.index)
    }

    /// Turns this vCPU on or off without PSCI, its registers unchanged: to restore a saved machine.
    pub fn set_power(&mut self, state: PowerState) {
        self.shared.power.set(self.index, state);
    }

    /// Wall clock: runs until something needs the host. A vCPU that is off or waits for an interrupt sleeps inside.
    pub fn run(&mut self) -> Exit {
        if self.shared.clock.mode() != ClockMode::Wall {
            return self.error(ErrorReason::WrongClock { call: "run" });
        }
        if let Some(exit) = self.begin() {
            return exit;
        }
        let shared = Arc::clone(&self.shared);
        let signal = &shared.signals[self.index];
        loop {
            if self.take_flags() {
                return Exit::Kicked;
            }
            if !self.is_on() {
                signal.sleep(None);
                continue;
            }
            let now = shared.clock.now_ticks();
            self.poll_timers(now);
            if self.doing == Doing::Waiting && !shared.gic.irq_pending(self.index) {
                let deadline = self.cpu.timers.deadline(shared.clock.cntvoff(), now);
                signal.sleep(if deadline == timer::NEVER { None } else { shared.clock.instant_at(deadline) });
                continue;
            }
            self.doing = Doing::Executing;
            self.take_interrupt();
            if let Some(exit) = self.execute(shared.config.quantum) {
                return exit;
            }
        }
    }

    /// Icount: executes at most `instructions` instructions, exactly that many for [`Exit::Budget`]. All vCPUs of the
    /// machine are to be run by one thread, one after the other. [`Exit::Idle`] while off or waiting.
    pub fn run_for(&mut self, instructions: u64) -> Exit {
        if self.shared.clock.mode() == ClockMode::Wall {
            return self.error(ErrorReason::WrongClock { call: "run_for" });
        }
        let shared = Arc::clone(&self.shared);
        let start = self.cpu.retired;
        self.cpu.timers.synchronise(&shared.clock, start);
        let exit = match self.begin() {
            Some(exit) => exit,
            None => self.slice(start.saturating_add(instructions)),
        };
        shared.clock.advance(self.cpu.retired - start);
        self.publish_deadline();
        exit
    }

    /// Icount: says when this vCPU's next timer is due, for when all idle.
    fn publish_deadline(&mut self) {
        let shared = Arc::clone(&self.shared);
        let cntvoff = shared.clock.cntvoff();
        let deadline =
            if self.is_on() { self.cpu.timers.deadline(cntvoff, shared.clock.now_ticks()) } else { timer::NEVER };
        shared.set_deadline(self.index, deadline);
    }

    /// Runs until `end` instructions are retired.
    fn slice(&mut self, end: u64) -> Exit {
        let shared = Arc::clone(&self.shared);
        loop {
            if self.take_flags() {
                return Exit::Kicked;
            }
            if !self.is_on() {
                return Exit::Idle;
            }
            let now = self.cpu.timers.physical_count(&shared.clock, self.cpu.retired);
            self.poll_timers(now);
            if self.doing == Doing::Waiting && !shared.gic.irq_pending(self.index) {
                return Exit::Idle;
            }
            let left = end.saturating_sub(self.cpu.retired);
            if left == 0 {
                return Exit::Budget;
            }
            self.doing = Doing::Executing;
            self.take_interrupt();
            let deadline = self.cpu.timers.deadline(shared.clock.cntvoff(), now);
            let until_deadline = self.cpu.timers.instructions_until(&shared.clock, self.cpu.retired, deadline);
            if let Some(exit) = self.execute(left.min(until_deadline)) {
                return exit;
            }
        }
    }

    /// Answers [`Exit::MmioRead`] with `data` in the low bytes, or [`Exit::MmioWrite`] with anything. Without effect if
    /// no MMIO exit is pending.
    pub fn complete_mmio(&mut self, data: u64) {
        if self.doing == Doing::Mmio {
            let MmioState { size_bytes, .. } = self.cpu.mmio;
            self.cpu.mmio.reply = Some(data & (u64::MAX >> (64 - 8 * u32::from(size_bytes.clamp(1, 8)))));
            self.doing = Doing::Executing;
        }
    }

    /// Answers [`Exit::Hvc`] with x0 to x3; AArch32 gets their low halves in r0 to r3. Without effect if no hypercall exit is pending.
    pub fn complete_hvc(&mut self, results: [u64; 4]) {
        if self.doing == Doing::Hvc {
            for (reg, result) in results.into_iter().enumerate() {
                self.set_result(reg, result);
            }
            self.doing = Doing::Executing;
        }
    }

    /// Checks that the vCPU can run, and completes an answered MMIO access, so that a kick cannot leave it half done.
    fn begin(&mut self) -> Option<Exit> {
        match self.doing {
            Doing::Mmio => return Some(self.error(ErrorReason::Unanswered { what: "MMIO access" })),
            Doing::Hvc => return Some(self.error(ErrorReason::Unanswered { what: "hypercall" })),
            Doing::Executing | Doing::Waiting => {}
        }
        if self.cpu.pstate.el > 1 {
            let what = format!("exception level {}", self.cpu.pstate.el);
            return Some(self.error(ErrorReason::State { what }));
        }
        if self.cpu.mmio.reply.is_none() || !self.is_on() {
            return None;
        }
        let signal = &Arc::clone(&self.shared).signals[self.index];
        let exit = loop {
            let kicked = signal.take(signal::KICK) != 0;
            self.take_events();
            let before = self.cpu.retired;
            let exit = self.execute(1);
            if kicked {
                signal.raise(signal::KICK);
            }
            if let Some(exit) = exit {
                break Some(exit);
            }
            if self.cpu.mmio.reply.is_none() || self.cpu.retired != before {
                break None;
            }
        };
        // The re-executed instruction may have faulted instead of using the answer.
        self.cpu.mmio.reply = None;
        exit
    }

    /// Takes all flags. Whether a kick was among them.
    fn take_flags(&mut self) -> bool {
        self.take_events();
        self.shared.signals[self.index].take(signal::KICK) != 0
    }

    fn take_events(&mut self) {
        if self.shared.signals[self.index].take(ALL_BUT_KICK) & signal::EVENT != 0 {
            self.cpu.event = true;
        }
    }

    /// Whether the vCPU is on; one that was just turned on is reset first.
    fn is_on(&mut self) -> bool {
        if let Some((entry, context)) = self.shared.power.begin(self.index) {
            self.reset(entry, context);
        }
        self.shared.power.get(self.index) == PowerState::On
    }

    /// The state that CPU_ON starts a vCPU in: as after a reset, at EL1h or in SVC mode, everything masked, MMU off (DEN 0022 6.4.1).
    fn reset(&mut self, entry: u64, context: u64) {
        let cpu = &mut self.cpu;
        match cpu.sys.execution_state {
            ExecutionState::Aarch64 => cpu.set_pstate(Pstate::RESET),
            ExecutionState::Aarch32 => {
                cpu.set_mode(a32::Mode::Supervisor);
                cpu.pstate = Pstate::RESET;
            }
        }
        cpu.x = [0; 256];
        cpu.a32 = a32::State::default();
        cpu.sp_bank = [0; 2];
        cpu.v = [0; 32];
        cpu.fpcr = 0;
        cpu.fpsr = 0;
        let shown = std::mem::take(&mut cpu.sys.shown);
        cpu.sys = SysRegs { shown, ..SysRegs::new(self.index, self.shared.config.execution_state) };
        cpu.excl = Exclusive::default();
        cpu.mmio = MmioState::default();
        cpu.event = false;
        cpu.pmu = Pmu::default();
        cpu.timers.reset(&self.shared.gic, self.index);
        cpu.translation_changed();
        cpu.pc = entry;
        cpu.x[0] = context;
        self.shared.gic.reset_interface(self.index);
        self.doing = Doing::Executing;
    }

    fn poll_timers(&mut self, now: u64) {
        self.cpu.timers.poll(&self.shared.gic, self.index, self.shared.clock.cntvoff(), now);
    }

    fn take_interrupt(&mut self) {
        if self.cpu.pstate.daif & DAIF_I == 0 && self.shared.gic.irq_pending(self.index) {
            exception::take_irq(&mut self.cpu);
        }
    }

    /// Lets the core execute at most `budget` instructions; what it stopped for, if the host must know.
    fn execute(&mut self, budget: u64) -> Option<Exit> {
        let shared = Arc::clone(&self.shared);
        shared.safepoints.enter(self.index, |work| perform(&mut self.cpu, work));
        let stop = exec::run(&mut self.cpu, budget);
        shared.safepoints.leave(self.index);
        match stop {
            Stop::Budget | Stop::Attention => None,
            Stop::Mmio => {
                self.doing = Doing::Mmio;
                let MmioState { gpa, size_bytes: len_bytes, write, value: data, .. } = self.cpu.mmio;
                let gpa = Gpa::new(gpa);
                Some(if write { Exit::MmioWrite { gpa, len_bytes, data } } else { Exit::MmioRead { gpa, len_bytes } })
            }
            Stop::Hvc(_) => self.hypercall(),
            Stop::Wfi => {
                self.doing = Doing::Waiting;
                None
            }
            Stop::Wfe => {
                // WFE may end at any time (DDI 0487 D1.7.1); whoever polls with it gets a fair share of the host.
                if shared.clock.mode() == ClockMode::Wall {
                    std::thread::yield_now();
                }
                None
            }
        }
    }

    /// Sets a register that a hypercall returns a value in.
    fn set_result(&mut self, reg: usize, value: u64) {
        self.cpu.x[reg] = if self.cpu.is_aarch32() { value & 0xffff_ffff } else { value };
    }

    fn hypercall(&mut self) -> Option<Exit> {
        let x = &self.cpu.x;
        match psci::call(&self.shared, self.index, [x[0], x[1], x[2], x[3]]) {
            Outcome::Return(value) => {
                self.set_result(0, value);
                None
            }
            Outcome::Suspend => {
                self.cpu.x[0] = 0;
                self.doing = Doing::Waiting;
                None
            }
            Outcome::CpuOff => Some(Exit::CpuOff),
            Outcome::SystemOff(value) => {
                self.set_result(0, value);
                Some(Exit::SystemOff)
            }
            Outcome::SystemReset(value) => {
                self.set_result(0, value);
                Some(Exit::SystemReset)
            }
            Outcome::Host => {
                self.doing = Doing::Hvc;
                let function = x[0] as u32;
                Some(Exit::Hvc { function, args: [x[1], x[2], x[3], x[4], x[5], x[6], x[7]] })
            }
        }
    }

    fn error(&self, reason: ErrorReason) -> Exit {
        Exit::Error(VcpuError { vcpu: self.index, pc: self.cpu.pc, reason })
    }
}

/// Does what a safepoint asks of a vCPU.
pub(crate) fn perform(cpu: &mut Cpu, work: Work) {
    if work.contains(Work::DROP_WRITE_TAGS) {
        let dirty = &cpu.shared.dirty;
        if dirty.has_stale_tag_fault() {
            cpu.tlb.drop_write_tags_but(|gpa| dirty.keeps_stale_tag(Gpa::new(gpa)));
        } else {
            cpu.tlb.drop_write_tags();
        }
    }
    if work.contains(Work::FLUSH_TLB) {
        cpu.tlb.flush();
    }
    if work.contains(Work::FLUSH_CODE) {
        cpu.code.flush();
    }
}
