//! Runs that have nothing to do with each other, as many at a time as the host has CPUs: [`side_by_side`].

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::Interrupt;

/// Makes a `run` of each of `items`, a few side by side, until there is none left or `interrupt` is raised. Returns what was
/// made, in the order of `items`, each with its index.
pub(super) fn side_by_side<T: Sync, R: Send>(
    items: &[T],
    interrupt: &Interrupt,
    run: impl Fn(usize, &T) -> R + Sync,
) -> Vec<(usize, R)> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(items.len()).max(1);
    let work = || {
        while !interrupt.is_raised() {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            let result = run(index, item);
            results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
        }
    };
    thread::scope(|scope| {
        (1..workers).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_run_once_and_results_are_in_order() {
        let items: Vec<usize> = (0..100).collect();
        let results = side_by_side(&items, &Interrupt::default(), |index, item| index + item);
        assert_eq!(results, items.iter().map(|item| (*item, 2 * item)).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_is_begun_once_interrupted() {
        let interrupt = Interrupt::default();
        interrupt.raise();
        assert!(side_by_side(&[1, 2, 3], &interrupt, |index, _| index).is_empty());
    }
}
