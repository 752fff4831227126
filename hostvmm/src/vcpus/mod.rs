//! Executes a machine's vCPUs and is their remote control: [`Vcpus`].
//!
//! With the wall clock each vCPU has a thread ([`wall`]); with the instruction clock one thread gives them turns of a
//! fixed number of instructions ([`turns`]). Either way a vCPU is in one of these states, kept under one lock
//! ([`control`]):
//!
//! ```text
//!             NEXT                 command()                not paused
//!   Running ────────▶ Parked ─────────────────▶ Held ◀────────────────▶ Running
//!      │                                               pause(): kicked
//!      └── exception, panic, SYSTEM_OFF, error ──▶ Ended
//! ```
//!
//! A parked vCPU is one whose hypercall has not been answered: it executes nothing. `pause` stops the others between two
//! instructions, and then its registers are the controller's to read and write: [`Vcpus::save`], [`Vcpus::restore`]
//! ([`state`]). What the guest does is told by [`Event`]s. In icount mode a run repeats bit for bit if commands are given
//! only while every vCPU is parked or paused; [`Vcpus::command_all`] waits for that by itself and gives several
//! commands at once, so that no vCPU starts before the others are commanded.
//!
//! Neighbours: [`crate::machine`] makes what runs here; `pass` and `verify` are the controllers; [`crate::device`]
//! judges what a guest asks for.

mod control;
mod exits;
#[cfg(test)]
mod guest_tests;
mod mailbox;
#[cfg(test)]
mod script;
mod stamps;
pub mod state;
#[cfg(test)]
mod tests;
mod throttle;
mod turns;
mod wall;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use abi::hypercall::{Command, ExceptionReport, Outcome, PROGRESS_COMPLETED, PROGRESS_STARTED, PROGRESS_STOP};
use abi::points::Point;
use abi::{Arch, Gpa, GuestRange};

use crate::backend::{BackendError, Skew, Skewed, Vcpu};
use crate::colo::output::Tap;
use crate::heartbeat::{GuestHeartbeat, ReadError};
use crate::machine::{Clock, Frame, Machine};
use crate::memory::MemoryError;
use crate::migrate::HostTime;
use control::Shared;
pub use mailbox::Wait;
pub use stamps::Stay;

/// Something that a guest did.
#[derive(Debug)]
pub enum Event {
    /// A vCPU handed over the outcome of its last command and waits for the next one.
    Parked {
        /// Which.
        vcpu: usize,
        /// Of what.
        outcome: Outcome,
    },
    /// The machine was given another guest's state: what was told before of parked vCPUs holds no longer, and each that is
    /// parked now is told of next.
    Restored,
    /// The guest asks to be moved: [`Vcpus::asked`] has where.
    Asked,
    /// A line on the console, where no tap takes it.
    Console(String),
    /// Something odd that the guest did and was told no, or that had no effect. Bounded in number.
    Diagnostic(String),
    /// An unexpected exception in the guest; the vCPU is dead.
    Exception(Box<GuestException>),
    /// A panic of the firmware; the vCPU is dead.
    Panic {
        /// Which vCPU.
        vcpu: usize,
        /// What it said.
        text: String,
    },
    /// The guest turned this vCPU off.
    CpuOff {
        /// Which.
        vcpu: usize,
    },
    /// The guest turned the machine off.
    SystemOff,
    /// The guest asked for a reset.
    SystemReset,
    /// The accelerator cannot run this vCPU on.
    Error {
        /// Which.
        vcpu: usize,
        /// Why.
        error: BackendError,
    },
}

impl Event {
    /// Whether a guest can cause any number of them without being commanded.
    fn is_line(&self) -> bool {
        matches!(self, Self::Console(_) | Self::Diagnostic(_) | Self::CpuOff { .. })
    }
}

/// Where a guest asked to be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The vCPU that asked.
    pub vcpu: usize,
    /// At which point. Unless it goes on from there by itself the machine is paused, right behind the vCPU's store.
    pub point: Point,
}

/// An unexpected exception in the guest, with names for its addresses.
#[derive(Clone, Debug)]
pub struct GuestException {
    /// Which vCPU.
    pub vcpu: usize,
    /// The guest's architecture, which names the registers.
    pub arch: Arch,
    /// As the guest reported it.
    pub report: ExceptionReport,
    /// Where it happened and the callers, innermost first.
    pub backtrace: Vec<Frame>,
}

impl fmt::Display for GuestException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        let (vector, esr, far) = (report.vector.get(), report.esr.get(), report.far.get());
        write!(f, "unexpected exception on vCPU {}: vector {vector:#05x} ", self.vcpu)?;
        match self.arch {
            Arch::Aarch64 => write!(f, "ESR {esr:#010x} (EC {:#04x}) FAR {far:#x} ELR ", esr >> 26 & 0x3f)?,
            Arch::Armv7 => write!(f, "({}) FSR {esr:#x} FAR {far:#x} PC ", armv7_vector(vector))?,
        }
        writeln!(f, "{:#x} SPSR {:#x} SP {:#x}", report.elr.get(), report.spsr.get(), report.sp.get())?;
        let (letter, digits, registers) = match self.arch {
            Arch::Aarch64 => ('x', 18, &report.x[..]),
            Arch::Armv7 => ('r', 10, &report.x[..15]),
        };
        for (row, registers) in registers.chunks(4).enumerate() {
            for (column, value) in registers.iter().enumerate() {
                write!(f, "  {letter}{:<2} {:#0digits$x}", row * 4 + column, value.get())?;
            }
            writeln!(f)?;
        }
        for (depth, frame) in self.backtrace.iter().enumerate() {
            writeln!(f, "  #{depth} {frame}")?;
        }
        Ok(())
    }
}

/// What is taken at this offset of an ARMv7 vector table (DDI 0406 B1.8.1).
const fn armv7_vector(offset: u64) -> &'static str {
    match offset {
        0x04 => "undefined instruction",
        0x08 => "SVC",
        0x0c => "prefetch abort",
        0x10 => "data abort",
        0x18 => "IRQ",
        0x1c => "FIQ",
        _ => "no such vector",
    }
}

/// A control call that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum VcpusError {
    /// There is no such vCPU, or it is already run by someone else.
    #[error("there is no vCPU {vcpu} to run")]
    NoVcpu {
        /// Which.
        vcpu: usize,
    },
    /// A command for a vCPU that does not wait for one.
    #[error("vCPU {vcpu} is not parked, it cannot be given {command:?}")]
    NotParked {
        /// Which.
        vcpu: usize,
        /// The command.
        command: Command,
    },
    /// A vCPU that has not told where its progress slot is.
    #[error("vCPU {vcpu} has not reported where its progress is published")]
    NoProgress {
        /// Which.
        vcpu: usize,
    },
    /// Only the instruction clock has slices.
    #[error("running for a number of instructions needs --clock icount")]
    NeedsIcount,
    /// State is read and written of paused vCPUs only.
    #[error("the vCPUs are not paused")]
    NotPaused,
    /// A vCPU whose guest has come to an end has no state to go on from.
    #[error("vCPU {vcpu} has ended and cannot go on elsewhere")]
    Ended {
        /// Which.
        vcpu: usize,
    },
    /// A state of another number of vCPUs.
    #[error("the state is of {theirs} vCPUs, the machine has {ours}")]
    Count {
        /// The machine's.
        ours: usize,
        /// The state's.
        theirs: usize,
    },
    /// A state with a register that the vCPU here does not have.
    #[error(
        "vCPU {vcpu}: the state has register {register:#018x} (KVM_GET_REG_LIST), which the accelerator here lacks; use the same accelerator and kernel on both sides"
    )]
    NoRegister {
        /// Which vCPU.
        vcpu: usize,
        /// KVM's id.
        register: u64,
    },
    /// A state that claims what cannot be.
    #[error("vCPU {vcpu}: the state is no vCPU's: {reason}")]
    BadState {
        /// Which.
        vcpu: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A register that could not be read or written.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A share of time that leaves the guest none, or a clock that cannot be held up.
    #[error("cannot throttle the vCPUs by {percent} %: {reason}")]
    Throttle {
        /// What was asked for.
        percent: u8,
        /// Why not.
        reason: &'static str,
    },
    /// The wait was interrupted from outside.
    #[error("interrupted")]
    Interrupted,
    /// Guest memory refused an access that had been checked.
    #[error("vCPU {vcpu}: {source}")]
    Memory {
        /// Which.
        vcpu: usize,
        /// Why.
        source: MemoryError,
    },
    /// The host refused a thread.
    #[error("cannot start a thread for vCPU {vcpu}: {source}")]
    Thread {
        /// Which.
        vcpu: usize,
        /// Why.
        source: std::io::Error,
    },
}

/// How far a vCPU is in its steps, counted from step 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Steps begun.
    pub started: u64,
    /// Steps completed: every byte of them is visible to who read this.
    pub completed: u64,
}

/// Why [`Vcpus::run_slice`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SliceEnd {
    /// Exactly so many instructions were executed; the vCPUs are paused.
    Instructions,
    /// Nothing is left to execute: every vCPU is parked, off, or ended.
    Quiescent,
}

/// A vCPU between its executing thread, which holds it only while it executes, and the controller.
type SharedVcpu = Arc<Mutex<Box<dyn Vcpu>>>;

fn lock(vcpu: &SharedVcpu) -> MutexGuard<'_, Box<dyn Vcpu>> {
    // A panic while executing is told and ends the run; what is left of the vCPU is only dropped.
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The vCPUs of a running machine. Dropping it stops and joins every thread.
pub struct Vcpus {
    shared: Arc<Shared>,
    vcpus: Vec<SharedVcpu>,
    threads: Vec<JoinHandle<()>>,
    clock: Clock,
}

/// Interrupts waits from another thread.
#[derive(Clone)]
pub struct Interrupter {
    shared: Arc<Shared>,
}

impl Interrupter {
    /// Makes the controller's current wait, or its next one, return as interrupted. Not for signal handlers
    /// themselves (it takes a lock): call it from the thread that waits for signals.
    pub fn interrupt(&self) {
        self.shared.interrupt();
    }
}

impl Vcpus {
    /// Starts every vCPU of `machine`. vCPU 0 begins at the firmware's entry, the others when it turns them on.
    ///
    /// # Errors
    /// [`VcpusError::NoVcpu`] where the machine's vCPUs run already, [`VcpusError::Thread`] where the host refuses.
    pub fn start(machine: &Machine) -> Result<Self, VcpusError> {
        let shared = Arc::new(Shared::new(machine));
        let config = machine.config();
        Self::start_on(shared, config.clock, config.vcpus, config.skew)
    }

    /// As [`Self::start`], but paused: nothing executes before [`Self::resume`], and a state can be restored. The vCPUs of
    /// an incoming machine are off until one is.
    ///
    /// # Errors
    /// As [`Self::start`]; [`VcpusError::Backend`] where a vCPU cannot be turned off.
    pub fn start_paused(machine: &Machine) -> Result<Self, VcpusError> {
        let shared = Shared::new(machine);
        shared.pause();
        let config = machine.config();
        let vcpus = Self::start_on(Arc::new(shared), config.clock, config.vcpus, config.skew)?;
        if machine.is_incoming() {
            vcpus.vcpus.iter().try_for_each(|vcpu| lock(vcpu).set_on(false))?;
        }
        Ok(vcpus)
    }

    fn start_on(shared: Arc<Shared>, clock: Clock, count: usize, skew: Option<Skew>) -> Result<Self, VcpusError> {
        let mut taken: Vec<SharedVcpu> = Vec::new();
        for vcpu in 0..count {
            let mut vcpu = shared.vm().take_vcpu(vcpu).ok_or(VcpusError::NoVcpu { vcpu })?;
            if let Some(skew) = skew {
                vcpu = Box::new(Skewed::new(vcpu, skew));
            }
            taken.push(Arc::new(Mutex::new(vcpu)));
        }
        let mut vcpus = Self { shared, vcpus: taken.clone(), threads: Vec::new(), clock };
        match clock {
            Clock::Wall => {
                for (index, vcpu) in taken.into_iter().enumerate() {
                    let shared = Arc::clone(&vcpus.shared);
                    vcpus.spawn(index, format!("vcpu{index}"), move || wall::run(&shared, index, &vcpu))?;
                }
                let shared = Arc::clone(&vcpus.shared);
                vcpus.spawn(0, "throttle".into(), move || throttle::run(&shared))?;
            }
            Clock::Icount => {
                let shared = Arc::clone(&vcpus.shared);
                vcpus.spawn(0, "vcpus".into(), move || turns::run(&shared, &taken))?;
            }
        }
        Ok(vcpus)
    }

    fn spawn(&mut self, vcpu: usize, name: String, body: impl FnOnce() + Send + 'static) -> Result<(), VcpusError> {
        let shared = Arc::clone(&self.shared);
        // A panic of ours must end the run with a word, not leave the controller waiting for a thread that is gone.
        let guarded = move || {
            if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(body)) {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
                shared.abandon(vcpu, format!("hostvmm's own thread panicked, which is a bug in hostvmm: {text}"));
            }
        };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(guarded)
            .map_err(|source| VcpusError::Thread { vcpu, source })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where the guest's output can be taken as it is emitted.
    pub fn output(&self) -> &Tap {
        self.shared.tap()
    }

    /// Waits for the next event. A timeout is for noticing a guest that no longer lives, not for synchronisation.
    pub fn wait_event(&self, timeout: Option<Duration>) -> Wait {
        self.shared.wait_event(timeout)
    }

    /// Something that interrupts this controller's waits.
    pub fn interrupter(&self) -> Interrupter {
        Interrupter { shared: Arc::clone(&self.shared) }
    }

    /// Forgets an [`Interrupter::interrupt`] that no wait has seen yet.
    pub fn forget_interrupt(&self) {
        self.shared.forget_interrupt();
    }

    /// Gives a parked vCPU its next command. It runs on at once, or after [`Vcpus::resume`] where paused.
    ///
    /// # Errors
    /// As [`Vcpus::command_all`].
    pub fn command(&self, vcpu: usize, command: Command) -> Result<(), VcpusError> {
        self.command_all(&[(vcpu, command)])
    }

    /// Gives several parked vCPUs their next commands at once: none runs on before all have theirs.
    ///
    /// # Errors
    /// [`VcpusError::NotParked`] where one does not wait for a command (then none is given any),
    /// [`VcpusError::Interrupted`] where another vCPU still runs on the instruction clock and the wait for it was
    /// interrupted, [`VcpusError::Memory`] for a request block that is gone.
    pub fn command_all(&self, commands: &[(usize, Command)]) -> Result<(), VcpusError> {
        if self.clock == Clock::Icount {
            self.shared.wait_still()?;
        }
        self.shared.command_all(commands)
    }

    /// Where the guest last asked to be moved: until it is resumed from there, or for as long as it was told of a point behind which the
    /// guest goes on. Only the points of the machine's configuration are.
    pub fn asked(&self) -> Option<Asked> {
        self.shared.asked()
    }

    /// Stops every vCPU between two instructions and returns when none executes anything.
    pub fn pause(&self) {
        self.shared.pause();
    }

    /// Lets paused vCPUs run on.
    pub fn resume(&self) {
        self.shared.resume(None);
    }

    /// When the last vCPU left the guest in the last pause: its thread's first step after `run`. Where none was inside, when
    /// the pause was asked for.
    pub fn last_exit(&self) -> HostTime {
        self.shared.lock().stamps.last_exit
    }

    /// When the first vCPU entered the guest after the last [`Self::resume`]: its thread's last step before `run`. `None`
    /// until one has.
    pub fn first_entry(&self) -> Option<HostTime> {
        self.shared.lock().stamps.first_entry
    }

    /// Waits for [`Self::first_entry`]; `None` where no vCPU enters in `timeout`, as when all are parked or off.
    pub fn wait_entry(&self, timeout: Duration) -> Option<HostTime> {
        self.shared.wait_entry(timeout)
    }

    /// Holds every vCPU out of the guest for `percent` of each 10 ms; 0 ends it.
    ///
    /// # Errors
    /// [`VcpusError::Throttle`] past 99 percent, and with the instruction clock, where time is what the guest executes.
    pub fn set_throttle(&self, percent: u8) -> Result<(), VcpusError> {
        if percent > throttle::MAX_PERCENT {
            return Err(VcpusError::Throttle { percent, reason: "the guest must go on; 99 is the most" });
        }
        if self.clock == Clock::Icount && percent > 0 {
            let reason = "with --clock icount time is what the guest executes, and holding it up changes nothing";
            return Err(VcpusError::Throttle { percent, reason });
        }
        self.shared.set_throttle(percent);
        Ok(())
    }

    /// Runs the vCPUs for exactly `instructions` in total, then pauses them: the deterministic way to let a live guest
    /// run between two harvests.
    ///
    /// # Errors
    /// [`VcpusError::NeedsIcount`] with the wall clock, [`VcpusError::Interrupted`] (then the vCPUs are paused).
    pub fn run_slice(&self, instructions: u64) -> Result<SliceEnd, VcpusError> {
        if self.clock != Clock::Icount {
            return Err(VcpusError::NeedsIcount);
        }
        self.shared.resume(Some(instructions));
        let still = self.shared.wait_still();
        let finished = self.shared.end_slice();
        still?;
        Ok(if finished { SliceEnd::Instructions } else { SliceEnd::Quiescent })
    }

    /// How far `vcpu` is.
    ///
    /// # Errors
    /// [`VcpusError::NoProgress`] before its first call.
    pub fn progress(&self, vcpu: usize) -> Result<Progress, VcpusError> {
        let slot = self.progress_slot(vcpu)?;
        // `completed` first: the guest may finish the step in between, and `completed <= started` must hold.
        let completed = self.load(vcpu, slot, PROGRESS_COMPLETED)?;
        let started = self.load(vcpu, slot, PROGRESS_STARTED)?;
        Ok(Progress { started, completed })
    }

    /// Where `vcpu` leaves its heartbeat; `None` before its first call, and for a guest without one.
    ///
    /// # Errors
    /// [`ReadError`] where the guest names a place where none can be.
    pub fn heartbeat(&self, vcpu: usize) -> Result<Option<GuestHeartbeat>, ReadError> {
        match self.shared.progress_slot(vcpu) {
            Some(slot) => GuestHeartbeat::find(self.shared.memory(), slot),
            None => Ok(None),
        }
    }

    /// Asks `vcpu` to end its steps at the next step's boundary. The next command withdraws it.
    ///
    /// # Errors
    /// [`VcpusError::NoProgress`] before its first call.
    pub fn request_stop(&self, vcpu: usize) -> Result<(), VcpusError> {
        let slot = self.progress_slot(vcpu)?;
        self.shared.store_stop(vcpu, slot, 1)
    }

    /// Stops and joins every thread, also of a guest that loops without end. Events left are still there to fetch.
    pub fn shutdown(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.shared.post(Event::Diagnostic("a vCPU thread panicked".into()));
            }
        }
        self.shared.flush_console();
    }

    fn progress_slot(&self, vcpu: usize) -> Result<Gpa, VcpusError> {
        self.shared.progress_slot(vcpu).ok_or(VcpusError::NoProgress { vcpu })
    }

    fn load(&self, vcpu: usize, slot: Gpa, offset: u64) -> Result<u64, VcpusError> {
        let word = Word { slot, offset };
        self.shared.memory().load_u64(word.gpa(vcpu)?).map_err(|source| VcpusError::Memory { vcpu, source })
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// A 64-bit word of a progress slot.
#[derive(Clone, Copy)]
struct Word {
    slot: Gpa,
    offset: u64,
}

impl Word {
    const fn stop(slot: Gpa) -> Self {
        Self { slot, offset: PROGRESS_STOP }
    }

    fn gpa(self, vcpu: usize) -> Result<Gpa, VcpusError> {
        self.slot.checked_add(self.offset).ok_or(VcpusError::Memory {
            vcpu,
            source: MemoryError::OutOfBounds { gpa: self.slot, len_bytes: self.offset },
        })
    }

    fn range(self, vcpu: usize) -> Result<Option<GuestRange>, VcpusError> {
        Ok(GuestRange::new(self.gpa(vcpu)?, 8))
    }
}
