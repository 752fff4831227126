//! Downtime, measured twice and reconciled: by the hosts' clocks and by the guest's own counter ([`reconcile`]).
//!
//! ```text
//!   source       ──beat── left │ read ┊
//!   destination                       ┊ set, read │ entered ──beat──────beat│ looked at
//!   guest             └──────────── its gap ───────────────┘
//! ```
//!
//! Both hosts read the guest's counter while it stands still, and know how long that took ([`CounterReading`]). So they know
//! what it showed at any moment, within bounds: the last beat at the source was no later than the vCPU left the guest there,
//! the first at the destination no earlier than it entered, and the latest no later than it was looked at; and from one
//! reading to the other the counter moved as its policy says. Whatever cannot be is a [`Disagreement`]. How long a host takes
//! to run a thread widens a gap and is no disagreement: no bound depends on a host's speed (docs/adr, "a counter is judged
//! by measured bounds").
//!
//! Pure: [`crate::heartbeat`] reads the gaps, the moments come from both machines.

use std::fmt;

use abi::heartbeat::ticks_to_ns;

use super::{CounterPolicy, CounterReading, HostTime, Moment};
use crate::heartbeat::{Gap, Histogram};

/// The gaps that count as usual: all but one of a thousand.
const USUAL: f64 = 0.999;

/// How the guest crossed from one host to another, by the hosts; all moments on the source's clock.
#[derive(Clone, Copy, Debug)]
pub struct Crossing {
    /// The last vCPU left the guest at the source.
    pub stopped: Moment,
    /// By how much the counter may have shown something else then, in ns.
    pub stopped_doubt_ns: u64,
    /// The first vCPU entered the guest at the destination.
    pub resumed: Moment,
    /// The counter was set at the destination.
    pub set_at: HostTime,
    /// It showed what it was set to no more than so much later, in ns.
    pub set_took_ns: u64,
    /// As it was read after that.
    pub reading: CounterReading,
    /// By how much the two hosts' clocks may disagree, in ns.
    pub clocks_doubt_ns: u64,
    /// Ticks of the guest's counter in a second.
    pub counter_hz: u64,
    /// What the guest's counter was to show.
    pub policy: CounterPolicy,
}

impl Crossing {
    /// Downtime by the hosts' clocks, in ns.
    pub fn downtime_ns(&self) -> u64 {
        u64::try_from(self.resumed.at.since(self.stopped.at).as_nanos()).unwrap_or(u64::MAX)
    }

    /// What the counter was to show as it was read at the destination: it runs on from the moment that its policy says.
    fn expected(&self) -> CounterReading {
        let (at, uncertainty_ns) = match self.policy {
            CounterPolicy::RunsOn => (self.stopped.at, self.stopped_doubt_ns.saturating_add(self.clocks_doubt_ns)),
            CounterPolicy::Stops => (self.set_at, self.stopped_doubt_ns),
        };
        let uncertainty_ns = uncertainty_ns.saturating_add(self.reading.uncertainty_ns);
        CounterReading { ticks: self.stopped.counter, at, uncertainty_ns, hz: self.reading.hz }
    }

    /// What the counter shows beyond what it should, in ns; negative where it shows less.
    fn counter_error_ns(&self) -> i64 {
        let expected = self.expected().shown_at(self.reading.at);
        let error = self.reading.ticks.wrapping_sub(expected).cast_signed();
        signed(ticks_to_ns(error.unsigned_abs(), self.counter_hz)).saturating_mul(error.signum())
    }

    /// Whether the counter went wrong from one host to the other.
    fn judge_counter(&self) -> Option<Disagreement> {
        let expected = self.expected();
        let most = expected.most_at(self.reading.at);
        // It was set to what it should show as that was reckoned, and runs from a little later.
        let reckoned_ns = self.reading.at.ns().saturating_sub(self.set_took_ns);
        let least = expected.least_at(HostTime::from_ns(reckoned_ns));
        if (least..=most).contains(&self.reading.ticks) {
            return None;
        }
        let error_ns = self.counter_error_ns();
        Some(if self.reading.ticks < self.stopped.counter {
            let by_ns = ticks_to_ns(self.stopped.counter - self.reading.ticks, self.counter_hz);
            Disagreement::CounterBack { by_ns }
        } else {
            Disagreement::CounterOff { error_ns }
        })
    }
}

/// The gaps between one vCPU's heartbeats, and the hosts' bounds for their ends.
#[derive(Clone, Debug, Default)]
pub struct VcpuGaps {
    /// Which vCPU.
    pub vcpu: usize,
    /// Before the migration began.
    pub before: Histogram,
    /// From then until the guest stopped.
    pub during: Histogram,
    /// Since it resumed, without the gap in which it did.
    pub after: Histogram,
    /// The gap in which it was moved; `None` where the vCPU has not beaten since.
    pub crossing: Option<Gap>,
    /// The most that the counter can have shown as the vCPU left the guest at the source, in ticks.
    pub left: u64,
    /// The least that it can have shown as the vCPU entered the guest at the destination; `None` if it never did.
    pub entered: Option<u64>,
    /// Its latest beat at the destination; `None` where the hosts' clocks say nothing of it.
    pub latest: Option<Latest>,
}

/// A beat as it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latest {
    /// The counter at the beat, in ticks.
    pub beat: u64,
    /// The most that the counter can have shown as the host looked, in ticks.
    pub limit: u64,
}

/// What two measurements of a downtime came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Downtime {
    /// By the hosts: last vCPU out of the guest to first vCPU in, in ns.
    pub host_ns: u64,
    /// By the guest: the longest gap in which a vCPU was moved, in ns. `None` for a guest without heartbeats.
    pub guest_ns: Option<u64>,
    /// The vCPU whose gap that is.
    pub vcpu: Option<usize>,
    /// Cycles counted in that gap; `None` without a cycle counter.
    pub gap_cycles: Option<u64>,
    /// A gap is known no better than this, in ns: the usual gaps are shorter.
    pub resolution_ns: u64,
    /// What the counter shows at the destination beyond what it should, in ns.
    pub counter_error_ns: i64,
    /// The same in millionths of the host's downtime; zero without one.
    pub counter_error_ppm: f64,
    /// So much of that error may be the measurement's own, in ns.
    pub counter_doubt_ns: u64,
    /// Everything that does not fit together; empty is what it should be.
    pub disagreements: Vec<Disagreement>,
}

/// Two things about a downtime that cannot both be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disagreement {
    /// The counter showed less at the destination than at the source.
    CounterBack {
        /// By how much, in ns.
        by_ns: u64,
    },
    /// The counter did not move as its policy says.
    CounterOff {
        /// What it moved too far, in ns; negative: too little.
        error_ns: i64,
    },
    /// A vCPU saw the counter go back between two beats.
    GapBack {
        /// Which vCPU.
        vcpu: usize,
    },
    /// A vCPU has no gap in which it was moved.
    NoGap {
        /// Which vCPU.
        vcpu: usize,
    },
    /// A vCPU's last beat at the source is later than it left the guest there.
    BeatAfterExit {
        /// Which vCPU.
        vcpu: usize,
        /// By how much more than can be, in ns of its counter.
        by_ns: u64,
    },
    /// A vCPU's first beat at the destination is earlier than it entered the guest there: its clock stands back.
    BeatBeforeEntry {
        /// Which vCPU.
        vcpu: usize,
        /// By how much more than can be, in ns of its counter.
        by_ns: u64,
    },
    /// A vCPU has beaten at a time that had not come yet: its clock jumped forward.
    BeatAhead {
        /// Which vCPU.
        vcpu: usize,
        /// By how much more than can be, in ns of its counter.
        by_ns: u64,
    },
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CounterBack { by_ns } => write!(f, "the guest's counter went back by {by_ns} ns"),
            Self::CounterOff { error_ns } => write!(f, "the guest's counter is off by {error_ns} ns"),
            Self::GapBack { vcpu } => write!(f, "vCPU {vcpu} saw the counter go back"),
            Self::NoGap { vcpu } => write!(f, "vCPU {vcpu} has no gap between heartbeats around the hand-over"),
            Self::BeatAfterExit { vcpu, by_ns } => {
                write!(f, "vCPU {vcpu} beat at the source {by_ns} ns after it can have left the guest there")
            }
            Self::BeatBeforeEntry { vcpu, by_ns } => {
                write!(f, "vCPU {vcpu} beat at the destination {by_ns} ns before it can have entered the guest there")
            }
            Self::BeatAhead { vcpu, by_ns } => write!(f, "vCPU {vcpu}'s clock is {by_ns} ns ahead of what it can be"),
        }
    }
}

impl Downtime {
    /// What the guest measured beyond what the hosts did, in ns, by the counter's policy; `None` without heartbeats.
    pub fn guest_error_ns(&self, policy: CounterPolicy) -> Option<i64> {
        let expected = match policy {
            CounterPolicy::RunsOn => self.host_ns,
            CounterPolicy::Stops => 0,
        };
        self.guest_ns.map(|guest_ns| signed(guest_ns).saturating_sub(signed(expected)))
    }
}

/// Compares what the hosts say of a downtime with what every vCPU saw.
pub fn reconcile(crossing: &Crossing, vcpus: &[VcpuGaps]) -> Downtime {
    let host_ns = crossing.downtime_ns();
    let usual = vcpus.iter().fold(Histogram::default(), |all, vcpu| all.and(&vcpu.during).and(&vcpu.after));
    let error_ns = crossing.counter_error_ns();
    let mut disagreements: Vec<Disagreement> = crossing.judge_counter().into_iter().collect();
    disagreements.extend(vcpus.iter().flat_map(|vcpu| judge(crossing, vcpu)));
    let gaps = vcpus.iter().filter_map(|vcpu| Some((vcpu.vcpu, vcpu.crossing?)));
    let longest = gaps.max_by_key(|(_, gap)| gap.ticks());
    Downtime {
        host_ns,
        guest_ns: longest.map(|(_, gap)| gap.ns(crossing.counter_hz)),
        vcpu: longest.map(|(vcpu, _)| vcpu),
        gap_cycles: longest.and_then(|(_, gap)| gap.cycles),
        resolution_ns: usual.quantile_ns(USUAL),
        counter_error_ns: error_ns,
        counter_error_ppm: if host_ns == 0 { 0.0 } else { error_ns as f64 / host_ns as f64 * 1e6 },
        counter_doubt_ns: crossing.expected().doubt_ns(crossing.reading.at).saturating_add(crossing.set_took_ns),
        disagreements,
    }
}

/// What is wrong with the beats of one vCPU.
fn judge(crossing: &Crossing, of: &VcpuGaps) -> Vec<Disagreement> {
    let vcpu = of.vcpu;
    let by_ns = |later: u64, earlier: u64| {
        let ticks = later.checked_sub(earlier).filter(|ticks| *ticks > 0);
        ticks.map(|ticks| ticks_to_ns(ticks, crossing.counter_hz).max(1))
    };
    let ahead = of.latest.and_then(|latest| by_ns(latest.beat, latest.limit));
    let ahead = ahead.map(|by_ns| Disagreement::BeatAhead { vcpu, by_ns });
    let Some(gap) = of.crossing else {
        return std::iter::once(Disagreement::NoGap { vcpu }).chain(ahead).collect();
    };
    let back = (gap.end < gap.start).then_some(Disagreement::GapBack { vcpu });
    let left = by_ns(gap.start, of.left).map(|by_ns| Disagreement::BeatAfterExit { vcpu, by_ns });
    let entered = of.entered.and_then(|entered| by_ns(entered, gap.end));
    let entered = entered.map(|by_ns| Disagreement::BeatBeforeEntry { vcpu, by_ns });
    [back, left, entered, ahead].into_iter().flatten().collect()
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "downtime_tests.rs"]
mod tests;
