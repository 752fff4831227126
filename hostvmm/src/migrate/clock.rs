//! Moments on a host's clock ([`HostTime`]), and how the clocks of two hosts relate ([`ClockOffset`]).
//!
//! Times are CLOCK_MONOTONIC, which every process of a host shares. Between hosts the offset is measured as NTP does
//! (RFC 5905, section 8): the source notes when it asked and when the answer came, the destination what its clock said
//! in between; the answer is off by no more than half of the round trip.

use std::fmt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// A moment on this host's CLOCK_MONOTONIC, or on another's where it says so: nanoseconds since its boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash, Serialize)]
#[serde(transparent)]
pub struct HostTime(u64);

impl HostTime {
    /// Now.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// The moment `ns` nanoseconds after boot.
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since boot.
    pub const fn ns(self) -> u64 {
        self.0
    }

    /// From `earlier` to this; zero if it was not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for HostTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09} s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// What a peer's clock shows beyond ours, and how sure that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClockOffset {
    /// The peer's clock less ours, in nanoseconds.
    pub offset_ns: i64,
    /// By how much that may be wrong, in nanoseconds.
    pub uncertainty_ns: u64,
}

impl ClockOffset {
    /// Two processes of one host.
    pub const SAME: Self = Self { offset_ns: 0, uncertainty_ns: 0 };

    /// Within what two clocks may be the same one: no two hosts were booted so close to each other.
    const SAME_WITHIN_NS: u64 = 10_000_000;

    /// Measured: `asked` and `answered` are ours, `theirs` is the peer's clock in between. Exactly zero if that can be.
    pub fn measured(asked: HostTime, theirs: HostTime, answered: HostTime) -> Self {
        let uncertainty_ns = answered.0.saturating_sub(asked.0).div_ceil(2);
        let middle = asked.0 + uncertainty_ns;
        let offset_ns = theirs.0.wrapping_sub(middle).cast_signed();
        if offset_ns.unsigned_abs() <= uncertainty_ns && uncertainty_ns <= Self::SAME_WITHIN_NS {
            return Self::SAME;
        }
        Self { offset_ns, uncertainty_ns }
    }

    /// As the peer has it.
    pub const fn reversed(self) -> Self {
        Self { offset_ns: self.offset_ns.wrapping_neg(), uncertainty_ns: self.uncertainty_ns }
    }

    /// The peer's moment `theirs` on our clock.
    pub const fn to_ours(self, theirs: HostTime) -> HostTime {
        HostTime(theirs.0.wrapping_sub(self.offset_ns.cast_unsigned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_of_one_host_are_the_same() {
        let (asked, theirs, answered) = (HostTime::now(), HostTime::now(), HostTime::now());
        assert_eq!(ClockOffset::measured(asked, theirs, answered), ClockOffset::SAME);
    }

    #[test]
    fn another_host_s_moments_are_put_on_our_clock() {
        let offset = ClockOffset::measured(HostTime(1_000), HostTime(900_001_100), HostTime(1_200));
        assert_eq!(offset, ClockOffset { offset_ns: 900_000_000, uncertainty_ns: 100 });
        assert_eq!(offset.to_ours(HostTime(900_001_500)), HostTime(1_500));
        assert_eq!(offset.reversed().to_ours(HostTime(1_500)), HostTime(900_001_500));
        let behind = ClockOffset::measured(HostTime(900_000_000), HostTime(50), HostTime(900_000_100));
        assert_eq!(behind.to_ours(HostTime(50)), HostTime(900_000_050));
    }
}
