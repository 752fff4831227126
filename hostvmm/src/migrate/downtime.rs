//! Downtime, measured twice and reconciled: by the hosts' clocks and by the guest's own counter ([`reconcile`]).
//!
//! ```text
//!   host     ────────────── stopped ░░░░░░░░░░░░░░░░░ resumed ─────────────▶
//!   vCPU 0   beat  beat  beat      ·                 ·   beat  beat
//!                        └─────────── its gap ───────────┘
//! ```
//!
//! The last vCPU left the guest at `stopped` and the first one entered it at `resumed`. With a counter that runs on every
//! vCPU's gap contains the downtime, and is longer by no more than the vCPU's usual gaps and what a host takes to wake it;
//! with one that stops no gap contains it. Whatever disagrees is a [`Disagreement`]: a wrong counter offset shows as one.
//!
//! Pure: [`crate::heartbeat`] reads the gaps, [`super::Moment`]s come from both machines. [`check_clock`] judges the lines
//! that the guest prints of its clock.

use std::fmt;

use abi::heartbeat::ticks_to_ns;

use super::{CounterPolicy, Moment};
use crate::heartbeat::{Gap, Histogram};

/// Between reading a host's clock and the guest's counter, which are two reads, a thread may be interrupted for so long.
const READING_NS: u64 = 1_000_000;
/// A host's scheduler may take so long to let the last of several vCPU threads run, when all become runnable at once.
const SCHEDULING_NS: u64 = 20_000_000;
/// The gaps that count as usual: all but one of a thousand.
const USUAL: f64 = 0.999;

/// How the guest crossed from one host to another, by the hosts.
#[derive(Clone, Copy, Debug)]
pub struct Crossing {
    /// The last vCPU left the guest at the source.
    pub stopped: Moment,
    /// The first vCPU entered it at the destination, on the source's clock.
    pub resumed: Moment,
    /// By how much the two hosts' clocks may disagree, in ns.
    pub uncertainty_ns: u64,
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

    /// What the counter moved beyond what it should have, in ns; negative where it moved less, or back.
    fn counter_error_ns(&self) -> i64 {
        let moved = self.resumed.counter.wrapping_sub(self.stopped.counter).cast_signed();
        let moved_ns = signed(ticks_to_ns(moved.unsigned_abs(), self.counter_hz)).saturating_mul(moved.signum());
        let expected_ns = match self.policy {
            CounterPolicy::RunsOn => self.downtime_ns(),
            CounterPolicy::Stops => 0,
        };
        moved_ns.saturating_sub(signed(expected_ns))
    }
}

/// The gaps between one vCPU's heartbeats.
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
    /// The most by which host and guest may disagree, in ns.
    pub tolerance_ns: u64,
    /// What the counter moved from one host to the other beyond what it should have, in ns.
    pub counter_error_ns: i64,
    /// The same in millionths of the host's downtime; zero without one.
    pub counter_error_ppm: f64,
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
    /// A vCPU has no gap around the moment at which the guest stopped.
    NoGap {
        /// Which vCPU.
        vcpu: usize,
    },
    /// A vCPU's gap is shorter than the time in which no vCPU ran.
    GapShort {
        /// Which vCPU.
        vcpu: usize,
        /// Its gap in ns.
        gap_ns: u64,
        /// What it should contain, in ns.
        downtime_ns: u64,
    },
    /// A vCPU's gap is longer than the downtime explains: its clock jumped.
    GapLong {
        /// Which vCPU.
        vcpu: usize,
        /// Its gap in ns.
        gap_ns: u64,
        /// The longest that is explained, in ns.
        explained_ns: u64,
    },
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CounterBack { by_ns } => write!(f, "the guest's counter went back by {by_ns} ns"),
            Self::CounterOff { error_ns } => write!(f, "the guest's counter is off by {error_ns} ns"),
            Self::GapBack { vcpu } => write!(f, "vCPU {vcpu} saw the counter go back"),
            Self::NoGap { vcpu } => write!(f, "vCPU {vcpu} has no gap between heartbeats around the hand-over"),
            Self::GapShort { vcpu, gap_ns, downtime_ns } => {
                write!(f, "vCPU {vcpu}'s gap of {gap_ns} ns is shorter than the downtime of {downtime_ns} ns")
            }
            Self::GapLong { vcpu, gap_ns, explained_ns } => {
                write!(
                    f,
                    "vCPU {vcpu}'s clock jumped: its gap of {gap_ns} ns is longer than the {explained_ns} ns explained"
                )
            }
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
    let reading_ns = crossing.uncertainty_ns.saturating_add(READING_NS);
    let tolerance_ns = usual.longest_ns().saturating_add(reading_ns).saturating_add(SCHEDULING_NS);
    let error_ns = crossing.counter_error_ns();
    let mut disagreements = Vec::new();

    let moved = crossing.resumed.counter.wrapping_sub(crossing.stopped.counter).cast_signed();
    if moved < 0 {
        let by_ns = ticks_to_ns(moved.unsigned_abs(), crossing.counter_hz);
        disagreements.push(Disagreement::CounterBack { by_ns });
    } else if error_ns.unsigned_abs() > reading_ns {
        disagreements.push(Disagreement::CounterOff { error_ns });
    }
    let mut longest: Option<(usize, Gap)> = None;
    for VcpuGaps { vcpu, crossing: gap, .. } in vcpus {
        match judge(crossing, *vcpu, *gap, reading_ns, tolerance_ns) {
            Ok(gap) if longest.is_none_or(|(_, other)| gap.ticks() > other.ticks()) => longest = Some((*vcpu, gap)),
            Ok(_) => {}
            Err(disagreement) => {
                disagreements.push(disagreement);
                let gap = gap.filter(|gap| longest.is_none_or(|(_, other)| gap.ticks() > other.ticks()));
                longest = gap.map(|gap| (*vcpu, gap)).or(longest);
            }
        }
    }
    Downtime {
        host_ns,
        guest_ns: longest.map(|(_, gap)| gap.ns(crossing.counter_hz)),
        vcpu: longest.map(|(vcpu, _)| vcpu),
        gap_cycles: longest.and_then(|(_, gap)| gap.cycles),
        resolution_ns: usual.quantile_ns(USUAL),
        tolerance_ns,
        counter_error_ns: error_ns,
        counter_error_ppm: if host_ns == 0 { 0.0 } else { error_ns as f64 / host_ns as f64 * 1e6 },
        disagreements,
    }
}

/// Judges the gap in which one vCPU was moved.
fn judge(
    crossing: &Crossing,
    vcpu: usize,
    gap: Option<Gap>,
    reading_ns: u64,
    tolerance_ns: u64,
) -> Result<Gap, Disagreement> {
    let gap = gap.ok_or(Disagreement::NoGap { vcpu })?;
    if gap.end < gap.start {
        return Err(Disagreement::GapBack { vcpu });
    }
    if !gap.spans(crossing.stopped.counter) {
        return Err(Disagreement::NoGap { vcpu });
    }
    let (gap_ns, downtime_ns) = (gap.ns(crossing.counter_hz), crossing.downtime_ns());
    let contained_ns = match crossing.policy {
        CounterPolicy::RunsOn => downtime_ns,
        CounterPolicy::Stops => 0,
    };
    let explained_ns = contained_ns.saturating_add(tolerance_ns);
    if gap_ns.saturating_add(reading_ns) < contained_ns {
        Err(Disagreement::GapShort { vcpu, gap_ns, downtime_ns })
    } else if gap_ns > explained_ns {
        Err(Disagreement::GapLong { vcpu, gap_ns, explained_ns })
    } else {
        Ok(gap)
    }
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// A line that the guest printed of its clock: `clock 3 s, counter 187512345`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// Seconds since its first line.
    pub second: u64,
    /// Its counter.
    pub counter: u64,
}

/// Two clock lines that do not follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockJump {
    /// The second is not the next one.
    Second {
        /// The line before.
        from: ClockReading,
        /// The line.
        to: ClockReading,
    },
    /// The counter went back.
    Back {
        /// The line before.
        from: ClockReading,
        /// The line.
        to: ClockReading,
    },
    /// The counter did not move by a second, within the tolerance.
    Counter {
        /// The line before.
        from: ClockReading,
        /// The line.
        to: ClockReading,
        /// What it moved, in ns.
        moved_ns: u64,
    },
}

/// Checks that clock lines follow one another: consecutive seconds, a second of the counter apart. A line is late by up to
/// `late_ns`: the longest step of vCPU 0 and, for a counter that runs on, the downtime; so two lines are apart by up to as
/// much more or less than a second.
pub fn check_clock(lines: &[ClockReading], counter_hz: u64, late_ns: u64) -> Vec<ClockJump> {
    const SECOND_NS: u64 = 1_000_000_000;
    let judge = |pair: &[ClockReading]| {
        let (from, to) = (*pair.first()?, *pair.get(1)?);
        let moved_ns = ticks_to_ns(to.counter.saturating_sub(from.counter), counter_hz);
        if to.counter < from.counter {
            Some(ClockJump::Back { from, to })
        } else if to.second != from.second.wrapping_add(1) {
            Some(ClockJump::Second { from, to })
        } else if moved_ns.abs_diff(SECOND_NS) > late_ns {
            Some(ClockJump::Counter { from, to, moved_ns })
        } else {
            None
        }
    };
    lines.windows(2).filter_map(judge).collect()
}

#[cfg(test)]
#[path = "downtime_tests.rs"]
mod tests;
