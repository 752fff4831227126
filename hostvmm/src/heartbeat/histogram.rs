//! Gaps by the logarithm of their length: [`Histogram`].

use abi::heartbeat::{BUCKETS, bucket};
use serde::{Deserialize, Serialize};

/// How many gaps there were of `[2^b, 2^(b+1))` ns, for each `b`; the first bucket also has those of 0 ns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram {
    /// Counts by bucket, without the empty ones at the end; at most [`BUCKETS`].
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new([0; BUCKETS])
    }
}

impl Histogram {
    /// The histogram of these counts.
    pub fn new(counts: [u64; BUCKETS]) -> Self {
        let used = counts.iter().rposition(|count| *count != 0).map_or(0, |last| last + 1);
        Self { counts: counts[..used].to_vec() }
    }

    /// The histogram of gaps of these lengths, in ns.
    pub fn of(gaps_ns: impl IntoIterator<Item = u64>) -> Self {
        let mut counts = [0; BUCKETS];
        gaps_ns.into_iter().for_each(|ns| counts[bucket(ns)] += 1);
        Self::new(counts)
    }

    /// Counts by bucket, the shortest gaps first.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Number of gaps.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The gaps since `earlier`, a reading of the same heartbeat.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.combine(earlier, u64::saturating_sub)
    }

    /// The gaps of both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// This without one gap of `ns`, which it holds.
    #[must_use]
    pub fn without(&self, ns: u64) -> Self {
        self.since(&Self::of([ns]))
    }

    /// An upper bound of the longest gap in ns: the end of the last bucket that has any. Zero where there is none.
    pub fn longest_ns(&self) -> u64 {
        self.counts.iter().rposition(|count| *count != 0).map_or(0, bucket_end)
    }

    /// An upper bound in ns of all but `fraction` of the gaps, as a histogram can tell it. Zero where there is none.
    pub fn quantile_ns(&self, fraction: f64) -> u64 {
        let within = (self.total() as f64 * fraction).ceil() as u64;
        let mut seen = 0_u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= within && *count != 0 {
                return bucket_end(bucket);
            }
        }
        self.longest_ns()
    }

    fn combine(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        let count = |histogram: &Self, bucket: usize| histogram.counts.get(bucket).copied().unwrap_or_default();
        Self::new(std::array::from_fn(|bucket| of(count(self, bucket), count(other, bucket))))
    }
}

/// First length past the bucket, in ns.
fn bucket_end(bucket: usize) -> u64 {
    2_u64.checked_shl(bucket as u32).filter(|end| *end != 0).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_counted_by_the_power_of_two_below_them() {
        let histogram = Histogram::of([0, 1, 5, 1023, 1024]);
        assert_eq!(histogram.counts(), [2, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((histogram.total(), histogram.longest_ns()), (5, 2048));
        assert_eq!((histogram.quantile_ns(0.5), histogram.quantile_ns(0.8)), (8, 1024));
    }

    #[test]
    fn two_readings_of_one_heartbeat_give_what_came_between() {
        let earlier = Histogram::of([10, 20]);
        let later = Histogram::of([10, 20, 3000]);
        assert_eq!(later.since(&earlier), Histogram::of([3000]));
        assert_eq!(earlier.and(&Histogram::of([3000])), later);
        assert_eq!(later.without(3000), earlier);
        // Nonsense from a guest is no panic.
        assert_eq!(earlier.since(&later), Histogram::default());
    }

    #[test]
    fn no_gap_has_no_length_and_the_longest_no_end() {
        assert_eq!((Histogram::default().longest_ns(), Histogram::default().quantile_ns(0.99)), (0, 0));
        assert_eq!(Histogram::of([u64::MAX]).longest_ns(), u64::MAX);
    }
}
