//! The loop of every vCPU: hand over the last outcome, obey the next command. Or, on a machine without a host to ask, the
//! plan's steps without end.
#![expect(unsafe_code, reason = "a digest reads memory that the host names")]

use core::sync::atomic::{AtomicU64, Ordering};

use abi::hypercall::{
    Command, Outcome, PROGRESS_COMPLETED, PROGRESS_HEARTBEAT, PROGRESS_STARTED, PROGRESS_STOP, ProgressSlot,
};
use abi::map::MAX_VCPUS;
use abi::{Gpa, GuestRange};
use workload::PAGE_BYTES;
use workload::digest::RegionDigest;

use crate::guest::arch::cpu;
use crate::guest::clock::ClockLine;
use crate::guest::pattern::Executor;
use crate::guest::psci::Conduit;
use crate::guest::{Machine, console, heartbeat, hypercall, points, selfcheck, timer};

/// One vCPU's [`ProgressSlot`], as the atomics it is made of.
#[repr(C, align(64))]
struct Progress {
    started: AtomicU64,
    completed: AtomicU64,
    stop: AtomicU64,
    heartbeat: AtomicU64,
    reserved: [u64; 4],
}

const _: () = assert!(
    size_of::<Progress>() == size_of::<ProgressSlot>()
        && core::mem::offset_of!(Progress, started) as u64 == PROGRESS_STARTED
        && core::mem::offset_of!(Progress, completed) as u64 == PROGRESS_COMPLETED
        && core::mem::offset_of!(Progress, stop) as u64 == PROGRESS_STOP
        && core::mem::offset_of!(Progress, heartbeat) as u64 == PROGRESS_HEARTBEAT
);

impl Progress {
    const fn new() -> Self {
        Self {
            started: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            stop: AtomicU64::new(0),
            heartbeat: AtomicU64::new(0),
            reserved: [0; 4],
        }
    }
}

static PROGRESS: [Progress; MAX_VCPUS] = [const { Progress::new() }; MAX_VCPUS];

/// Obeys the host until it says stop.
pub(crate) fn run(machine: &'static Machine, vcpu: usize) -> ! {
    let progress = &PROGRESS[vcpu];
    let mut worker = Worker::new(machine, vcpu);
    let mut outcome = Outcome::Ready { progress: Gpa::new(core::ptr::from_ref(progress) as u64) };
    loop {
        outcome = match hypercall::next(vcpu, outcome) {
            Command::RunSteps { first, count } => worker.run_steps(first, count),
            Command::Digest { range, pass } => Outcome::Digest { value: digest(machine, range, pass) },
            Command::SelfCheck { steps } => selfcheck::run(machine, steps),
            Command::Stop => machine.devices.psci.off(vcpu),
        };
    }
}

/// Executes the plan's steps on its own, from step 0 on and without end. What cannot go on is said on the console.
pub(crate) fn run_alone(machine: &'static Machine, vcpu: usize) -> ! {
    let outcome = Worker::new(machine, vcpu).run_steps(0, u64::MAX);
    console::say(format_args!("vCPU {vcpu} ends: {outcome:?}\n"));
    loop {
        cpu::wait_for_interrupt();
    }
}

/// Answers every command with `outcome` until the host says stop: this machine cannot do what was asked for.
pub(crate) fn refuse(vcpu: usize, psci: Conduit, outcome: Outcome) -> ! {
    while hypercall::next(vcpu, outcome) != Command::Stop {}
    psci.off(vcpu)
}

/// What one vCPU executes steps with.
struct Worker {
    machine: &'static Machine,
    vcpu: usize,
    executor: Executor,
    progress: &'static Progress,
    clock: ClockLine,
    sleep_ms: u64,
}

impl Worker {
    fn new(machine: &'static Machine, vcpu: usize) -> Self {
        let progress = &PROGRESS[vcpu];
        if machine.boot.heartbeat_us != 0 {
            progress.heartbeat.store(heartbeat::block(vcpu).raw(), Ordering::Release);
        }
        Self {
            machine,
            vcpu,
            executor: Executor::new(machine, vcpu),
            progress,
            clock: ClockLine::new(machine, vcpu),
            sleep_ms: machine.plan.sleep_ms(),
        }
    }

    /// Executes steps and publishes each; ends early at a step's boundary once the host asks for it.
    fn run_steps(&mut self, first: u64, count: u64) -> Outcome {
        let progress = self.progress;
        let end = first.saturating_add(count);
        let mut step = first;
        while step < end && progress.stop.load(Ordering::Acquire) == 0 {
            progress.started.store(step + 1, Ordering::Release);
            // Release orders what came before; that no write of the step overtakes `started` takes a fence.
            core::sync::atomic::fence(Ordering::SeqCst);
            if let Err(outcome) = self.executor.step(step) {
                return outcome;
            }
            if self.vcpu == 0 {
                points::in_step(self.machine, step);
            }
            step += 1;
            progress.completed.store(step, Ordering::Release);
            self.clock.look();
            if self.sleep_ms != 0 {
                timer::sleep(self.sleep_ms, &progress.stop, || self.clock.look());
            }
        }
        Outcome::Ran { next: step }
    }
}

/// The digest of `range`, read through an alias of it.
///
/// # Panics
/// If the range is neither in the region nor in RAM, or not made of whole pages: the host checks both.
fn digest(machine: &Machine, range: GuestRange, pass: u64) -> u64 {
    let whole = range.start().is_aligned(PAGE_BYTES) && range.len_bytes().is_multiple_of(PAGE_BYTES);
    assert!(whole, "{range} is not made of whole pages");
    let view = machine.space.view(range).unwrap_or_else(|| panic!("{range} is neither in the region nor in RAM"));
    let mut digest = RegionDigest::new(pass);
    for offset in (0..range.len_bytes()).step_by(PAGE_BYTES as usize) {
        let page = (view + offset) as *const u8;
        // SAFETY: the page is mapped for reading. The host asks for a digest of the region while all vCPUs are parked
        // or digest, so nobody writes it meanwhile.
        let bytes = unsafe { core::slice::from_raw_parts(page, PAGE_BYTES as usize) };
        let gpa = range.start().checked_add(offset).expect("the range does not wrap");
        digest.add_page(gpa, bytes);
    }
    digest.value()
}
