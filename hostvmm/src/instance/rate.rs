//! `calc-dirty-rate`: how fast the guest writes, by the dirty log and so exact: [`DirtyRate`].

use std::time::Duration;

use crate::control::types::{DirtyRateInfo, TimeUnit};

/// The last measurement.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DirtyRate {
    state: State,
    time: Duration,
    /// Seconds since the VM's start.
    started_s: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Unstarted,
    Measuring,
    Measured {
        mib_per_s: u64,
    },
}

impl DirtyRate {
    /// How long `time` of `unit` is.
    pub(super) fn duration(time: u64, unit: TimeUnit) -> Duration {
        match unit {
            TimeUnit::Second => Duration::from_secs(time),
            TimeUnit::Millisecond => Duration::from_millis(time),
        }
    }

    /// Begins a measurement, unless one is under way.
    pub(super) fn begin(&mut self, time: Duration, started_s: u64) -> bool {
        let idle = self.state != State::Measuring;
        if idle {
            *self = Self { state: State::Measuring, time, started_s };
        }
        idle
    }

    /// So many `bytes` were dirtied in `elapsed`; `None` where the log failed.
    pub(super) fn end(&mut self, dirtied: Option<(u64, Duration)>) {
        self.state = match dirtied {
            Some((bytes, elapsed)) => {
                let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
                State::Measured { mib_per_s: (bytes.saturating_mul(1000) / ms) >> 20 }
            }
            None => State::Unstarted,
        };
    }

    /// As `query-dirty-rate` answers.
    pub(super) fn info(&self, unit: TimeUnit) -> DirtyRateInfo {
        let (status, dirty_rate) = match self.state {
            State::Unstarted => ("unstarted", None),
            State::Measuring => ("measuring", None),
            State::Measured { mib_per_s } => ("measured", Some(mib_per_s)),
        };
        DirtyRateInfo {
            dirty_rate,
            status: status.to_owned(),
            start_time: self.started_s,
            calc_time: match unit {
                TimeUnit::Second => self.time.as_secs(),
                TimeUnit::Millisecond => u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX),
            },
            calc_time_unit: unit,
            sample_pages: 0,
            mode: "dirty-bitmap".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_in_mib_a_second() {
        let mut rate = DirtyRate::default();
        assert_eq!(rate.info(TimeUnit::Second).status, "unstarted");
        assert!(rate.begin(DirtyRate::duration(500, TimeUnit::Millisecond), 3));
        assert!(!rate.begin(Duration::from_secs(1), 4), "one at a time");
        assert_eq!(rate.info(TimeUnit::Second).status, "measuring");
        rate.end(Some((8 << 20, Duration::from_millis(500))));
        let info = rate.info(TimeUnit::Millisecond);
        assert_eq!((info.dirty_rate, info.calc_time, info.start_time), (Some(16), 500, 3));
    }
}
