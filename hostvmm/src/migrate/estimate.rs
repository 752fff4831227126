//! What will come of a pre-copy: [`Estimate`], from what the passes so far have shown ([`PassReport`]).
//!
//! A pass that takes the time *t* leaves what the guest dirties in *t*. With *R* bytes remaining, a bandwidth *B* and a dirty
//! rate *D*, the next pass takes *R/B* and leaves *D·R/B* bytes, but no more than the guest's working set *W*, for which the
//! largest harvest so far stands. So the passes are played forward until what remains can be sent within the limit, or
//! until they stop to shrink: then it never ends by itself, and throttling or post-copy must help.

use std::time::Duration;

use serde::Serialize;

/// More passes than this are as good as none.
const MOST_PASSES: u64 = 1000;
/// A pass that leaves more than this part of what the one before left does not shrink.
const SHRINKS: f64 = 0.99;
/// A pass more pays if it leaves no more than this part of what there is to send,
const PAYS: f64 = 0.3;
/// and if the guest would wait so long for that.
const WORTH_A_PASS: Duration = Duration::from_millis(2);

/// One pass, as it happened.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PassReport {
    /// Its number; 0 sends everything.
    pub pass: u64,
    /// Whether the guest was stopped.
    pub stopped: bool,
    /// Pages it was to move.
    pub pages: u64,
    /// Of these, pages of zeroes.
    pub zero_pages: u64,
    /// Bytes on the wire.
    pub bytes: u64,
    /// From its harvest to its last byte.
    pub ns: u64,
}

/// What the passes so far foretell.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Estimate {
    /// Bytes a second that were sent.
    pub bandwidth: u64,
    /// Bytes a second that were dirtied.
    pub dirty_rate: u64,
    /// Bytes remaining when it was made.
    pub remaining: u64,
    /// Passes in all, the last one with the guest stopped included; none if it does not converge.
    pub passes: Option<u64>,
    /// Bytes in all that will have been sent.
    pub bytes: Option<u64>,
    /// How long the guest will stand still, in nanoseconds, as far as it depends on when it is stopped: last pass,
    /// state, transfer and resume. Digesting all memory comes on top ([`super::DigestMode::Full`]); waiting would not shorten it.
    pub downtime_ns: Option<u64>,
}

/// What an estimate is made from.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Observed {
    /// Bytes a second.
    pub(super) bandwidth: f64,
    /// Bytes a second.
    pub(super) dirty_rate: f64,
    /// Bytes harvested and not sent.
    pub(super) remaining: u64,
    /// The largest harvest so far, in bytes.
    pub(super) working_set: u64,
    /// Bytes sent so far.
    pub(super) sent: u64,
    /// Passes so far.
    pub(super) passes: u64,
    /// What a stop costs beside its pages.
    pub(super) overhead: Duration,
}

impl Observed {
    /// How long the guest would stand still if it were stopped now with `bytes` to send.
    pub(super) fn downtime(&self, bytes: u64) -> Duration {
        self.overhead.saturating_add(self.time(bytes as f64))
    }

    /// Whether one pass more, before the guest is stopped, shortens what it waits for `bytes` so much that it pays.
    pub(super) fn pays(&self, bytes: f64) -> bool {
        self.is_felt(bytes) && self.left_after(bytes) <= bytes * PAYS
    }

    /// Whether a stopped guest that waits for `bytes` waits for long.
    pub(super) fn is_felt(&self, bytes: f64) -> bool {
        self.time(bytes) >= WORTH_A_PASS
    }

    /// What is dirty after a pass of `remaining` bytes.
    fn left_after(&self, remaining: f64) -> f64 {
        (self.dirty_rate * self.time(remaining).as_secs_f64()).min(self.working_set as f64)
    }

    /// Plays the passes forward until one is within `limit`, and none more pays.
    pub(super) fn estimate(&self, limit: Duration) -> Estimate {
        let known = Estimate {
            bandwidth: self.bandwidth as u64,
            dirty_rate: self.dirty_rate as u64,
            remaining: self.remaining,
            ..Estimate::default()
        };
        if self.bandwidth <= 0.0 {
            return known;
        }
        let mut remaining = self.remaining as f64;
        let mut sent = self.sent as f64;
        for pass in 1..=MOST_PASSES {
            sent += remaining;
            let downtime = self.overhead.saturating_add(self.time(remaining));
            if downtime <= limit && !self.pays(remaining) {
                return Estimate {
                    passes: Some(self.passes + pass),
                    bytes: Some(sent as u64),
                    downtime_ns: Some(u64::try_from(downtime.as_nanos()).unwrap_or(u64::MAX)),
                    ..known
                };
            }
            let left = self.left_after(remaining);
            if left > remaining * SHRINKS {
                break;
            }
            remaining = left;
        }
        known
    }

    fn time(&self, bytes: f64) -> Duration {
        if self.bandwidth <= 0.0 {
            return if bytes > 0.0 { Duration::MAX } else { Duration::ZERO };
        }
        Duration::try_from_secs_f64(bytes / self.bandwidth).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    fn observed(dirty_rate: f64) -> Observed {
        Observed {
            bandwidth: 1000.0 * MB as f64,
            dirty_rate,
            remaining: 800 * MB,
            working_set: 800 * MB,
            sent: 1600 * MB,
            passes: 1,
            overhead: Duration::from_millis(5),
        }
    }

    #[test]
    fn a_guest_that_dirties_half_of_what_is_sent_halves_what_remains_each_pass() {
        let estimate = observed(500.0 * MB as f64).estimate(Duration::from_millis(60));
        // 800, 400, 200, 100, and 50 MB within 60 ms.
        assert_eq!(estimate.passes, Some(6));
        assert_eq!(estimate.bytes, Some((1600 + 800 + 400 + 200 + 100 + 50) * MB));
        assert_eq!(estimate.downtime_ns, Some(55_000_000));
    }

    #[test]
    fn a_guest_that_dirties_as_fast_as_is_sent_never_converges() {
        let estimate = observed(1000.0 * MB as f64).estimate(Duration::from_millis(300));
        assert_eq!((estimate.passes, estimate.bytes, estimate.downtime_ns), (None, None, None));
        assert_eq!(estimate.remaining, 800 * MB);
    }

    #[test]
    fn a_limit_that_what_remains_meets_stops_at_once() {
        let estimate = observed(5000.0 * MB as f64).estimate(Duration::from_secs(1));
        assert_eq!(estimate.passes, Some(2));
        assert_eq!(estimate.downtime_ns, Some(805_000_000));
    }

    #[test]
    fn nothing_measured_foretells_nothing() {
        let nothing = Observed { remaining: 1, ..Observed::default() };
        assert_eq!(nothing.estimate(Duration::from_secs(1)).passes, None);
        assert_eq!(nothing.downtime(1), Duration::MAX);
    }
}
