//! Auto-converge: a guest that dirties too fast is throttled, by QEMU's rule ([`AutoConverge`]).
//!
//! A pass is too fast if more than half as many bytes (`throttle-trigger-threshold`) were dirtied in it as were sent. The second
//! such pass throttles by `cpu-throttle-initial`, each second one after it by `cpu-throttle-increment` more, up to
//! `max-cpu-throttle` (migration/ram.c: `migration_trigger_throttle`, `mig_throttle_guest_down`).

use super::parameters::Parameters;

/// Fast passes that it takes.
const PATIENCE: u32 = 2;

/// Decides how much the guest is throttled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct AutoConverge {
    percent: u8,
    fast_passes: u32,
}

impl AutoConverge {
    /// A pass sent `sent_bytes` while the guest dirtied `dirtied_bytes`. The new throttle in percent, if it changes.
    pub(super) fn after_pass(&mut self, sent_bytes: u64, dirtied_bytes: u64, parameters: &Parameters) -> Option<u8> {
        let threshold = u128::from(sent_bytes) * u128::from(parameters.throttle_trigger_threshold) / 100;
        if u128::from(dirtied_bytes) <= threshold {
            return None;
        }
        self.fast_passes += 1;
        if self.fast_passes < PATIENCE {
            return None;
        }
        self.fast_passes = 0;
        let next = match self.percent {
            0 => parameters.cpu_throttle_initial,
            percent => percent.saturating_add(parameters.cpu_throttle_increment),
        };
        let next = next.min(parameters.max_cpu_throttle);
        (std::mem::replace(&mut self.percent, next) != next).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_pass_that_dirties_too_much_throttles_more() {
        let parameters = Parameters { max_cpu_throttle: 35, ..Parameters::default() };
        let mut converge = AutoConverge::default();
        let throttles: Vec<_> = (0..8).map(|_| converge.after_pass(100, 51, &parameters)).collect();
        assert_eq!(throttles, [None, Some(20), None, Some(30), None, Some(35), None, None]);
    }

    #[test]
    fn half_of_what_is_sent_is_not_too_much() {
        let mut converge = AutoConverge::default();
        assert!((0..9).all(|_| converge.after_pass(100, 50, &Parameters::default()).is_none()));
    }
}
