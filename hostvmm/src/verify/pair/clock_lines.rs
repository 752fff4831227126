//! The line `clock N s` that a guest prints every second: it must go on across a migration as if nothing had happened.

use std::time::{Duration, Instant};

/// By how much the guest's seconds may differ from the host's between two lines: lines are whole seconds, printed
/// between two steps, and read by a thread of a host that has other things to do.
const TOLERANCE: Duration = Duration::from_millis(1500);

/// One line as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::verify) struct ClockLine {
    /// Seconds since the guest's first line, by its counter.
    pub(in crate::verify) seconds: u64,
    /// When it was read.
    pub(in crate::verify) seen: Instant,
}

impl ClockLine {
    /// The line in `text`, as `hostvmm run` echoes the guest's console: `guest: clock 3 s, counter 187512345`.
    pub(in crate::verify) fn parse(text: &str, seen: Instant) -> Option<Self> {
        let (seconds, _) = text.strip_prefix("guest: clock ")?.split_once(" s, counter ")?;
        Some(Self { seconds: seconds.parse().ok()?, seen })
    }
}

/// How many of `lines`, in the order in which the guest printed them, did not follow the one before as time did. The guest
/// may have lost up to `lost` where its counter stops for a migration.
pub(in crate::verify) fn jumps(lines: &[ClockLine], lost: Duration) -> u64 {
    let jumped = |pair: &[ClockLine]| {
        let [before, after] = pair else { return false };
        let host = after.seen.saturating_duration_since(before.seen);
        let Some(guest) = after.seconds.checked_sub(before.seconds).map(Duration::from_secs) else { return true };
        guest.is_zero() || guest > host + TOLERANCE || guest + lost + TOLERANCE < host
    };
    lines.windows(2).filter(|pair| jumped(pair)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(of: &[(u64, u64)]) -> Vec<ClockLine> {
        let start = Instant::now();
        of.iter().map(|&(seconds, ms)| ClockLine { seconds, seen: start + Duration::from_millis(ms) }).collect()
    }

    #[test]
    fn the_guests_line_is_read_among_others() {
        let now = Instant::now();
        let line = ClockLine::parse("guest: clock 3 s, counter 187512345", now).unwrap();
        assert_eq!((line.seconds, line.seen), (3, now));
        for other in ["guest: clock", "clock 3 s, counter 1", "guest: clock x s, counter 1", "migration: active"] {
            assert_eq!(ClockLine::parse(other, now), None, "{other}");
        }
    }

    #[test]
    fn time_that_goes_on_has_no_jumps() {
        assert_eq!(jumps(&lines(&[(0, 10), (1, 1005), (2, 2400), (3, 3010)]), Duration::ZERO), 0);
        assert_eq!(
            jumps(&lines(&[(0, 0), (7, 7200)]), Duration::ZERO),
            0,
            "a host that was busy printed nothing meanwhile"
        );
    }

    #[test]
    fn time_that_stands_goes_back_or_leaps_is_found() {
        assert_eq!(jumps(&lines(&[(5, 0), (5, 1000)]), Duration::ZERO), 1);
        assert_eq!(jumps(&lines(&[(5, 0), (4, 1000)]), Duration::ZERO), 1);
        assert_eq!(jumps(&lines(&[(5, 0), (900, 1000)]), Duration::ZERO), 1);
        assert_eq!(jumps(&lines(&[(5, 0), (6, 9000)]), Duration::ZERO), 1);
        assert_eq!(jumps(&lines(&[(5, 0), (6, 9000)]), Duration::from_secs(8)), 0, "the counter stopped for so long");
    }
}
