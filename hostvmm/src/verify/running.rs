//! A running machine as the passes see it: [`RunningGuest`] is [`Guest`] over [`Vcpus`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::GuestRange;
use abi::hypercall::{Command, Outcome};

use workload::PAGE_BYTES;

use super::interrupt::{Attached, Interrupt};
use crate::backend::VmHandle;
use crate::heartbeat::HeartbeatEntry;
use crate::machine::{Clock, Machine};
use crate::pass::{Guest, GuestError};
use crate::report::Progress;
use crate::vcpus::{Event, SliceEnd, Vcpus, VcpusError, Wait};

/// With the instruction clock: how many instructions are executed between two looks at the guest's time. Any number
/// does, but it must not change within a run.
const SLICE_INSTRUCTIONS: u64 = 20_000;

/// After so long without a word the user is told what is waited for.
const SILENCE: Duration = Duration::from_secs(10);

/// A guest on real vCPUs.
pub(crate) struct RunningGuest<'a> {
    vcpus: Arc<Vcpus>,
    vm: VmHandle,
    clock: Clock,
    /// What each parked vCPU answered last; `None` while it executes a command.
    outcomes: Vec<Option<Outcome>>,
    /// A kernel of its own, whose vCPUs come and go as it likes.
    is_kernel: bool,
    /// Lets the user's wish to end the run reach `vcpus`.
    _attached: Attached<'a>,
    progress: &'a Progress,
}

impl<'a> RunningGuest<'a> {
    /// Starts the machine's vCPUs and waits until each has called for its first command.
    ///
    /// # Errors
    /// [`GuestError`] where one does something else.
    pub(super) fn start(
        machine: &Machine,
        interrupt: &'a Interrupt,
        progress: &'a Progress,
    ) -> Result<Self, GuestError> {
        let vcpus = Arc::new(Vcpus::start(machine).map_err(control_error)?);
        let mut guest = Self::over(vcpus, machine, interrupt, progress);
        guest.wait_parked(None)?;
        for (vcpu, outcome) in guest.outcomes.iter().enumerate() {
            match outcome {
                Some(Outcome::Ready { .. }) | None => {}
                Some(outcome) => return Err(GuestError::from_outcome(vcpu, *outcome)),
            }
        }
        Ok(guest)
    }

    /// What the heartbeat of every vCPU says now; empty for a guest without one.
    ///
    /// # Errors
    /// [`GuestError::Heartbeat`] where the guest names a place where none can be.
    pub(crate) fn heartbeats(&self) -> Result<Vec<HeartbeatEntry>, GuestError> {
        let mut entries = Vec::new();
        for vcpu in 0..self.outcomes.len() {
            if let Some(heartbeat) = self.vcpus.heartbeat(vcpu)? {
                entries.push(HeartbeatEntry::new(vcpu, &heartbeat.read()?));
            }
        }
        Ok(entries)
    }

    /// The guest of `machine` on `vcpus`, which were started or restored; nothing has been heard of it yet.
    pub(crate) fn over(vcpus: Arc<Vcpus>, machine: &Machine, interrupt: &'a Interrupt, progress: &'a Progress) -> Self {
        let attached = interrupt.attach(vcpus.interrupter());
        let config = machine.config();
        Self {
            vcpus,
            vm: machine.vm(),
            clock: config.clock,
            outcomes: vec![None; config.vcpus],
            is_kernel: config.kernel.is_some(),
            _attached: attached,
            progress,
        }
    }

    /// Waits for the next thing that the guest does, and takes note of it.
    ///
    /// # Errors
    /// [`GuestError`] where it cannot go on; [`GuestError::Interrupted`] where the wait was ended from outside.
    pub(crate) fn wait_next(&mut self) -> Result<(), GuestError> {
        match self.vcpus.wait_event(None) {
            Wait::Event(event) => self.take(event),
            Wait::TimedOut => Ok(()),
            Wait::Interrupted => Err(GuestError::Interrupted),
        }
    }

    /// Takes note of what the guest has done already.
    ///
    /// # Errors
    /// As [`Self::wait_next`].
    pub(crate) fn catch_up(&mut self) -> Result<(), GuestError> {
        while let Wait::Event(event) = self.vcpus.wait_event(Some(Duration::ZERO)) {
            self.take(event)?;
        }
        Ok(())
    }

    /// Where every vCPU is parked: the first step that each has not executed; all are 0 before the first command.
    pub(crate) fn parked_at(&self) -> Option<Vec<u64>> {
        let next = |outcome: &Option<Outcome>| match outcome {
            Some(Outcome::Ready { .. }) => Some(0),
            Some(Outcome::Ran { next }) => Some(*next),
            Some(_) | None => None,
        };
        self.outcomes.iter().map(next).collect()
    }

    /// Lets every parked vCPU execute steps from `first` on, `count` of them, which may be without end.
    ///
    /// # Errors
    /// As [`Guest::start_all`].
    pub(crate) fn run_on(&mut self, first: &[u64], count: u64) -> Result<(), GuestError> {
        let commands: Vec<_> =
            first.iter().enumerate().map(|(vcpu, &first)| (vcpu, Command::RunSteps { first, count })).collect();
        self.give(&commands)
    }

    /// Waits until every vCPU is parked, as [`Guest::run_all`] does.
    ///
    /// # Errors
    /// As [`Guest::run_all`].
    pub(crate) fn wait_all_parked(&mut self) -> Result<(), GuestError> {
        self.wait_parked(None).map(|_| ())
    }

    /// Ends the guest in an orderly way: it turns itself off.
    ///
    /// # Errors
    /// [`GuestError`] where it does something else.
    pub(super) fn power_off(mut self) -> Result<(), GuestError> {
        // vCPU 0 last: it turns the machine off.
        for vcpu in (0..self.outcomes.len()).rev() {
            self.give(&[(vcpu, Command::Stop)])?;
        }
        loop {
            match self.vcpus.wait_event(None) {
                Wait::Event(Event::SystemOff) => return Ok(()),
                Wait::Event(Event::CpuOff { .. }) => {}
                Wait::Event(event) => self.take(event)?,
                Wait::TimedOut => {}
                Wait::Interrupted => return Err(GuestError::Interrupted),
            }
        }
    }

    fn give(&mut self, commands: &[(usize, Command)]) -> Result<(), GuestError> {
        for &(vcpu, _) in commands {
            self.outcomes[vcpu] = None;
        }
        self.vcpus.command_all(commands).map_err(control_error)
    }

    /// Waits until all vCPUs are parked, or until `deadline`; returns whether they are.
    fn wait_parked(&mut self, deadline: Option<Instant>) -> Result<bool, GuestError> {
        let started = Instant::now();
        while let Some(silent) = self.outcomes.iter().position(Option::is_none) {
            let timeout = deadline.map_or(SILENCE, |deadline| deadline.saturating_duration_since(Instant::now()));
            match self.vcpus.wait_event(Some(timeout)) {
                Wait::Event(event) => self.take(event)?,
                Wait::TimedOut if deadline.is_some() => return Ok(false),
                // A guest may take its time, and only the user knows how much is too much.
                Wait::TimedOut => self.progress.line(&format!(
                    "vCPU {silent} has not asked for its next command for {} s; Ctrl-C ends the run",
                    started.elapsed().as_secs()
                )),
                Wait::Interrupted => return Err(GuestError::Interrupted),
            }
        }
        Ok(true)
    }

    fn take(&mut self, event: Event) -> Result<(), GuestError> {
        let unexpected = |vcpu, what: &str| Err(GuestError::Unexpected { vcpu, what: what.to_owned() });
        match event {
            Event::Parked { vcpu, outcome } => {
                self.outcomes[vcpu] = Some(outcome);
                Ok(())
            }
            // Whoever controls the machine looks where.
            Event::Asked => Ok(()),
            Event::Restored => {
                self.outcomes.fill(None);
                Ok(())
            }
            Event::Console(line) => {
                self.progress.line(&format!("guest: {line}"));
                Ok(())
            }
            Event::Diagnostic(line) => {
                self.progress.line(&line);
                Ok(())
            }
            Event::Exception(exception) => Err(GuestError::Exception(exception.to_string())),
            Event::Panic { vcpu, text } => Err(GuestError::Panic { vcpu, text }),
            Event::CpuOff { .. } if self.is_kernel => Ok(()),
            Event::CpuOff { vcpu } => unexpected(vcpu, "turned itself off"),
            Event::SystemOff => Err(GuestError::PoweredOff),
            Event::SystemReset => unexpected(0, "reset the machine"),
            Event::Error { error, .. } => Err(error.into()),
        }
    }

    /// Every vCPU has executed steps: the first that each has not.
    fn ran(&self) -> Result<Vec<u64>, GuestError> {
        let next = |(vcpu, outcome): (usize, &Option<Outcome>)| match outcome {
            Some(Outcome::Ran { next }) => Ok(*next),
            Some(outcome) => Err(GuestError::from_outcome(vcpu, *outcome)),
            None => Err(GuestError::Unexpected { vcpu, what: "is not parked".to_owned() }),
        };
        self.outcomes.iter().enumerate().map(next).collect()
    }

    /// Lets vCPUs 0 and up execute one of `commands` each, while the others stay parked.
    fn ask(&mut self, commands: impl Iterator<Item = Command>) -> Result<Vec<Outcome>, GuestError> {
        let before = self.outcomes.clone();
        let commands: Vec<_> = (0..).zip(commands).collect();
        self.give(&commands)?;
        self.wait_parked(None)?;
        // What the last steps came to stays known.
        let outcomes = std::mem::replace(&mut self.outcomes, before);
        Ok(outcomes.into_iter().take(commands.len()).flatten().collect())
    }

    fn progress_of(&self, what: fn(&crate::vcpus::Progress) -> u64) -> Result<Vec<u64>, GuestError> {
        (0..self.outcomes.len())
            .map(|vcpu| self.vcpus.progress(vcpu).map(|progress| what(&progress)).map_err(control_error))
            .collect()
    }
}

impl Guest for RunningGuest<'_> {
    fn vcpus(&self) -> usize {
        self.outcomes.len()
    }

    fn now(&self) -> Duration {
        let ns = u128::from(self.vm.now_ticks()) * 1_000_000_000 / u128::from(self.vm.ticks_per_second());
        Duration::from_nanos(ns as u64)
    }

    fn run_all(&mut self, command: Command) -> Result<(), GuestError> {
        self.start_all(command)?;
        if self.clock == Clock::Icount {
            self.vcpus.resume();
        }
        self.wait_parked(None)?;
        self.ran().map(|_| ())
    }

    fn start_all(&mut self, command: Command) -> Result<(), GuestError> {
        if self.clock == Clock::Icount {
            // Nothing runs before `run_for` says for how long.
            self.vcpus.pause();
        }
        let commands: Vec<_> = (0..self.outcomes.len()).map(|vcpu| (vcpu, command)).collect();
        self.give(&commands)
    }

    fn run_for(&mut self, interval: Duration) -> Result<bool, GuestError> {
        if self.outcomes.iter().all(Option::is_some) {
            // Nothing executes; the caller waits for somebody else, and may be interrupted.
            return match self.vcpus.wait_event(Some(interval)) {
                Wait::Event(event) => self.take(event).map(|()| true),
                Wait::TimedOut => Ok(true),
                Wait::Interrupted => Err(GuestError::Interrupted),
            };
        }
        match self.clock {
            Clock::Wall => self.wait_parked(Some(Instant::now() + interval)),
            Clock::Icount => {
                let ticks = interval.as_nanos() * u128::from(self.vm.ticks_per_second()) / 1_000_000_000;
                let deadline = self.vm.now_ticks().saturating_add(ticks as u64);
                loop {
                    let end = self.vcpus.run_slice(SLICE_INSTRUCTIONS).map_err(control_error)?;
                    let parked = self.wait_parked(Some(Instant::now()))?;
                    if parked || end == SliceEnd::Quiescent || self.vm.now_ticks() >= deadline {
                        return Ok(parked);
                    }
                }
            }
        }
    }

    fn hold(&mut self) {
        // With the instruction clock the vCPUs are paused already, outside `run_for`.
        if self.clock == Clock::Wall {
            self.vcpus.pause();
        }
    }

    fn release(&mut self) {
        if self.clock == Clock::Wall {
            self.vcpus.resume();
        }
    }

    fn stop_steps(&mut self) -> Result<(), GuestError> {
        for vcpu in 0..self.outcomes.len() {
            self.vcpus.request_stop(vcpu).map_err(control_error)?;
        }
        if self.clock == Clock::Icount {
            self.vcpus.resume();
        }
        self.wait_parked(None)?;
        let next = self.ran()?;
        let most = next.iter().copied().max().unwrap_or(0);
        let behind: Vec<_> = next
            .iter()
            .enumerate()
            .filter(|&(_, &next)| next < most)
            .map(|(vcpu, &next)| (vcpu, Command::RunSteps { first: next, count: most - next }))
            .collect();
        self.give(&behind)?;
        self.wait_parked(None)?;
        self.ran().map(|_| ())
    }

    fn started(&self) -> Result<Vec<u64>, GuestError> {
        self.progress_of(|progress| progress.started)
    }

    fn completed(&self) -> Result<Vec<u64>, GuestError> {
        self.progress_of(|progress| progress.completed)
    }

    fn digest(&mut self, range: GuestRange, pass: u64) -> Result<u64, GuestError> {
        let shares = match self.clock {
            Clock::Wall => shares(range, self.outcomes.len() as u64),
            // One thread executes all vCPUs.
            Clock::Icount => vec![range],
        };
        let outcomes = self.ask(shares.into_iter().map(|range| Command::Digest { range, pass }))?;
        let value = |(vcpu, outcome): (usize, &Outcome)| match *outcome {
            Outcome::Digest { value } => Ok(value),
            outcome => Err(GuestError::from_outcome(vcpu, outcome)),
        };
        // Digests of parts add up to the whole's.
        outcomes.iter().enumerate().try_fold(0_u64, |sum, outcome| Ok(sum.wrapping_add(value(outcome)?)))
    }

    fn self_check(&mut self, steps: u64) -> Result<(), GuestError> {
        let outcomes = self.ask(std::iter::once(Command::SelfCheck { steps }))?;
        match outcomes.first() {
            Some(&outcome) if outcome != Outcome::SelfCheckPassed => Err(GuestError::from_outcome(0, outcome)),
            _ => Ok(()),
        }
    }
}

/// `range`, whole pages, in at most `most` parts of about equal size.
fn shares(range: GuestRange, most: u64) -> Vec<GuestRange> {
    let share = range.len_bytes().div_ceil(most).next_multiple_of(PAGE_BYTES);
    let starts = (0..range.len_bytes()).step_by(share as usize);
    let part = |start| {
        let len_bytes = share.min(range.len_bytes() - start);
        GuestRange::new(range.start().checked_add(start)?, len_bytes)
    };
    starts.filter_map(part).collect()
}

fn control_error(error: VcpusError) -> GuestError {
    match error {
        VcpusError::Interrupted => GuestError::Interrupted,
        VcpusError::Memory { source, .. } => GuestError::Memory(source),
        error => GuestError::Control(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_whole_pages_that_cover_the_range() {
        for (pages, most, count) in [(1, 4, 1), (4, 4, 4), (5, 4, 3), (2048, 3, 3), (2048, 1, 1)] {
            let range = GuestRange::new(abi::map::REGION_BASE, pages * PAGE_BYTES).unwrap();
            let shares = shares(range, most);
            assert_eq!(shares.len(), count);
            let mut next = range.start();
            for share in &shares {
                assert_eq!((share.start(), share.len_bytes() % PAGE_BYTES), (next, 0));
                next = next.checked_add(share.len_bytes()).unwrap();
            }
            assert_eq!(next.checked_offset_from(range.start()), Some(range.len_bytes()));
        }
    }
}
