//! Two things measured in turn within one run, so that their ratio holds on a machine that does other work too.

use std::hint::black_box;
use std::time::{Duration, Instant};

fn median(mut samples: Vec<Duration>) -> f64 {
    samples.sort_unstable();
    samples[samples.len() / 2].as_secs_f64()
}

/// Rounds at least, and how long they take at least: what is over in a millisecond is looked at more often.
const ROUNDS: usize = 11;
const LEAST: Duration = Duration::from_millis(500);

/// Median times of two things, in seconds.
pub(crate) fn in_turn<A, B>(mut first: impl FnMut() -> A, mut second: impl FnMut() -> B) -> (f64, f64) {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while left.len() < ROUNDS || begun.elapsed() < LEAST {
        let start = Instant::now();
        black_box(first());
        left.push(start.elapsed());
        let start = Instant::now();
        black_box(second());
        right.push(start.elapsed());
    }
    (median(left), median(right))
}
