//! The guest's time across a pause: [`CounterState`], and what it becomes by a [`CounterPolicy`].

use crate::machine::Machine;
use crate::migrate::{ClockOffset, CounterPolicy, CounterReading, HostTime};
use crate::vcpus::state::CountersRead;
use crate::vcpus::{Vcpus, VcpusError};

const NS_PER_S: u128 = 1_000_000_000;

/// What the guest's counters showed, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterState {
    /// CNTVCT.
    pub ticks: u64,
    /// CNTPCT, where the accelerator lets it be moved.
    pub physical: Option<u64>,
    /// Ticks per second.
    pub hz: u64,
    /// When, by the clock of the host that saved it: as the last vCPU left the guest.
    pub at: HostTime,
}

/// What a restored machine's counter was set to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterSet {
    /// CNTVCT.
    pub ticks: u64,
    /// When, by our clock; it runs from then on.
    pub at: HostTime,
    /// It ran no more than so much later, in ns.
    pub took_ns: u64,
    /// The policy that was followed: the instruction clock always stops.
    pub policy: CounterPolicy,
}

impl CounterState {
    /// What the paused guest's counters showed as its last vCPU left the guest (the wall clock runs on in a pause), and the
    /// reading that tells it.
    ///
    /// # Errors
    /// [`VcpusError::NotPaused`], [`VcpusError::Backend`].
    pub fn read(machine: &Machine, vcpus: &Vcpus) -> Result<(Self, CounterReading), VcpusError> {
        let CountersRead { counters, at, uncertainty_ns } = vcpus.counters()?;
        let hz = machine.vm().ticks_per_second();
        let now = Self { ticks: counters.virtual_ticks, physical: counters.physical_ticks, hz, at };
        let stands_still = machine.vm().elapsed_instructions().is_some();
        let reading = CounterReading { ticks: now.ticks, at, uncertainty_ns, hz: if stands_still { 0 } else { hz } };
        let left = vcpus.last_exit();
        Ok((if stands_still { Self { at: left, ..now } } else { now.back_to(left) }, reading))
    }

    /// What they showed at the earlier moment `at`.
    fn back_to(self, at: HostTime) -> Self {
        let back = self.ticks_in(self.at.since(at).as_nanos()).wrapping_neg();
        Self { at: at.min(self.at), ..self.moved_by(back) }
    }

    /// What they are to show at our moment `now`, at a host of whose clock `source` is known.
    pub(super) fn shown_at(self, now: HostTime, policy: CounterPolicy, source: ClockOffset) -> Self {
        match policy {
            CounterPolicy::Stops => self,
            CounterPolicy::RunsOn => self.moved_by(self.ticks_in(now.since(source.to_ours(self.at)).as_nanos())),
        }
    }

    fn ticks_in(&self, ns: u128) -> u64 {
        // To the nearest. It does not saturate with a frequency that a restore has accepted.
        (ns.saturating_mul(self.hz.into()).saturating_add(NS_PER_S / 2) / NS_PER_S) as u64
    }

    /// Counters wrap (DDI 0487 D11.1.2).
    fn moved_by(self, ticks: u64) -> Self {
        let physical = self.physical.map(|physical| physical.wrapping_add(ticks));
        Self { ticks: self.ticks.wrapping_add(ticks), physical, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: CounterState =
        CounterState { ticks: 1_000_000, physical: Some(5), hz: 62_500_000, at: HostTime::from_ns(2_000_000_000) };

    #[test]
    fn a_counter_read_late_is_that_of_the_moment_when_the_guest_stopped() {
        let saved = SAVED.back_to(HostTime::from_ns(2_000_000_000 - 1600));
        assert_eq!(
            (saved.ticks, saved.physical, saved.at.ns()),
            (999_900, Some(5_u64.wrapping_sub(100)), 1_999_998_400)
        );
        assert_eq!(SAVED.back_to(HostTime::from_ns(3_000_000_000)), SAVED, "never forward");
    }

    #[test]
    fn the_counter_shows_the_pause_or_does_not() {
        let now = HostTime::from_ns(2_000_000_000 + 8_000_000);
        let runs_on = SAVED.shown_at(now, CounterPolicy::RunsOn, ClockOffset::SAME);
        assert_eq!((runs_on.ticks, runs_on.physical), (1_500_000, Some(500_005)));
        assert_eq!(SAVED.shown_at(now, CounterPolicy::Stops, ClockOffset::SAME), SAVED);
    }

    #[test]
    fn the_pause_between_two_hosts_is_told_by_one_clock() {
        // The source's clock is a second ahead of ours.
        let source = ClockOffset { offset_ns: 1_000_000_000, uncertainty_ns: 0 };
        let now = HostTime::from_ns(1_000_000_000 + 8_000_000);
        assert_eq!(SAVED.shown_at(now, CounterPolicy::RunsOn, source).ticks, 1_500_000);
    }
}
