//! How many threads a copy or a digest uses, and how the work is shared out: [`Threads`].

use std::ops::Range;
use std::thread;

/// More than this many threads only wait for the same memory channels.
const MOST: usize = 8;

/// A number of threads, at least one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threads(usize);

impl Threads {
    /// `count` threads; zero counts as one.
    pub fn new(count: usize) -> Self {
        Self(count.max(1))
    }

    /// As many as the host runs at once, within reason.
    pub fn of_host() -> Self {
        Self::new(thread::available_parallelism().map_or(1, |count| count.get().min(MOST)))
    }

    /// The number.
    pub fn count(self) -> usize {
        self.0
    }

    /// Splits `ranges` into at most one share a thread, of about equal size and none below `worth_bytes` but the only one.
    /// Ranges are cut at multiples of `unit_bytes`.
    pub(crate) fn share_out(self, ranges: &[Range<u64>], unit_bytes: u64, worth_bytes: u64) -> Vec<Vec<Range<u64>>> {
        let total: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let shares = (total / worth_bytes).clamp(1, self.0 as u64);
        let quota = total.div_ceil(shares).next_multiple_of(unit_bytes);
        let mut out = vec![Vec::new()];
        let mut left = quota;
        for range in ranges {
            let mut start = range.start;
            while start < range.end {
                if left == 0 {
                    out.push(Vec::new());
                    left = quota;
                }
                let end = range.end.min(start + left);
                left -= end - start;
                out.last_mut().expect("there is always a share").push(start..end);
                start = end;
            }
        }
        out
    }

    /// Runs `work` on each share: a single one on this thread, more each on a thread of its own. (With the first of several on
    /// this thread, the scheduler is now and then slow to move the others to a processor of their own: such a copy was up to a
    /// fifth slower.)
    ///
    /// # Panics
    /// If `work` panics.
    pub(crate) fn run<S: Sync, R: Send>(self, shares: &[S], work: impl Fn(&S) -> R + Sync) -> Vec<R> {
        if let [only] = shares {
            return vec![work(only)];
        }
        thread::scope(|scope| {
            let threads: Vec<_> = shares.iter().map(|share| scope.spawn(|| work(share))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a copying thread does not panic")).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_cover_the_ranges_in_order_and_no_more_than_the_threads(
            lens in prop::collection::vec((0_u64..50, 1_u64..50), 0..20),
            threads in 1_usize..6,
            worth in 1_u64..40,
        ) {
            let mut at = 0;
            let ranges: Vec<_> = lens.iter().map(|(gap, len)| {
                let start = at + gap;
                at = start + len;
                start * 4096..at * 4096
            }).collect();
            let shares = Threads::new(threads).share_out(&ranges, 4096, worth * 4096);
            prop_assert!(shares.len() <= threads);
            let pages = |ranges: &[Range<u64>]| ranges.iter().cloned().flat_map(|range| range.step_by(4096)).collect::<Vec<_>>();
            prop_assert_eq!(pages(&shares.concat()), pages(&ranges));
            let sums = Threads::new(threads).run(&shares, |share| pages(share).len());
            prop_assert_eq!(sums.into_iter().sum::<usize>(), pages(&ranges).len());
        }
    }
}
