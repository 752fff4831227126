//! A guest's counter as a host read it, between two looks at its own clock ([`CounterReading`]): what the counter can have
//! shown at other moments follows, with bounds that are measured and not assumed of the host's speed.

use super::HostTime;

const NS_PER_S: i128 = 1_000_000_000;
/// A host's clock may run faster or slower than its counter by so many millionths: as far as the kernel lets NTP turn it
/// (`MAXFREQ` in linux/timex.h).
const SLEW_PPM: i128 = 500;
/// A counter that is set and one that is read are each a whole number of ticks, and so is what is reckoned from them.
const ROUNDING_TICKS: i128 = 2;

/// What a guest's counter showed, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CounterReading {
    /// CNTVCT, in ticks.
    pub ticks: u64,
    /// When, by a host's clock: the middle of the time in which it was read.
    pub at: HostTime,
    /// It was read no more than so much earlier or later, in ns.
    pub uncertainty_ns: u64,
    /// Its ticks in a second of the host's clock; 0 where it counts instructions, of which none is executed meanwhile.
    pub hz: u64,
}

impl CounterReading {
    /// What it shows at `at`, if the reading was exact.
    pub fn shown_at(&self, at: HostTime) -> u64 {
        clamp(i128::from(self.ticks) + self.ticks_in(self.elapsed_ns(at)))
    }

    /// The least that it can show at `at`, in ticks.
    pub fn least_at(&self, at: HostTime) -> u64 {
        let moved = self.ticks_in(self.elapsed_ns(at) - i128::from(self.doubt_ns(at)));
        clamp(i128::from(self.ticks) + moved - ROUNDING_TICKS)
    }

    /// The most that it can show at `at`, in ticks.
    pub fn most_at(&self, at: HostTime) -> u64 {
        let moved = self.ticks_in(self.elapsed_ns(at) + i128::from(self.doubt_ns(at)));
        clamp(i128::from(self.ticks) + moved + ROUNDING_TICKS)
    }

    /// By how much what it shows at `at` is not known, in ns, but for whole ticks: how long it took to read it, and how
    /// much a host's clock may have been turned since.
    pub fn doubt_ns(&self, at: HostTime) -> u64 {
        let slew_ns = self.elapsed_ns(at).unsigned_abs() * SLEW_PPM.unsigned_abs() / 1_000_000;
        self.uncertainty_ns.saturating_add(u64::try_from(slew_ns).unwrap_or(u64::MAX))
    }

    fn elapsed_ns(&self, at: HostTime) -> i128 {
        i128::from(at.ns()) - i128::from(self.at.ns())
    }

    fn ticks_in(&self, ns: i128) -> i128 {
        ns.saturating_mul(self.hz.into()).div_euclid(NS_PER_S)
    }
}

fn clamp(ticks: i128) -> u64 {
    u64::try_from(ticks.max(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READ: CounterReading =
        CounterReading { ticks: 1_000_000, at: HostTime::from_ns(2_000_000_000), uncertainty_ns: 160, hz: 62_500_000 };

    #[test]
    fn bounds_are_the_bracket_and_the_slew_of_the_clock() {
        assert_eq!([READ.least_at(READ.at), READ.most_at(READ.at)], [1_000_000 - 12, 1_000_000 + 12]);
        let later = HostTime::from_ns(2_008_000_000);
        assert_eq!((READ.shown_at(later), READ.doubt_ns(later)), (1_500_000, 160 + 4_000));
        assert_eq!([READ.least_at(later), READ.most_at(later)], [1_500_000 - 262, 1_500_000 + 262]);
    }

    #[test]
    fn a_counter_of_instructions_stands_still() {
        let still = CounterReading { hz: 0, ..READ };
        assert_eq!(still.shown_at(HostTime::from_ns(9_000_000_000)), READ.ticks);
        assert_eq!(still.most_at(HostTime::from_ns(9_000_000_000)), READ.ticks + 2);
    }

    proptest! {
        #[test]
        fn a_counter_that_was_read_in_time_lies_within_its_bounds(
            offset_ns in 0_u64..1_000_000_000, before_ns in 0_u64..200_000, after_ns in 0_u64..200_000,
            elapsed_ns in -3_000_000_000_i64..3_000_000_000, slew_ppm in -499_i64..499, hz in 1_000_000_u64..1_000_000_000,
        ) {
            // The counter by a clock that the host's own runs away from.
            let true_at = |ns: i128| {
                let moved = ns + (ns - 5_000_000_000) * i128::from(slew_ppm) / 1_000_000;
                ((moved + i128::from(offset_ns)) * i128::from(hz) / NS_PER_S) as u64
            };
            let read_at = 5_000_000_000_u64;
            let at = read_at - before_ns + (before_ns + after_ns) / 2;
            let uncertainty_ns = (before_ns + after_ns).div_ceil(2);
            let read = CounterReading { ticks: true_at(read_at.into()), at: HostTime::from_ns(at), uncertainty_ns, hz };
            let then = HostTime::from_ns(at.saturating_add_signed(elapsed_ns));
            let truth = true_at(then.ns().into());
            prop_assert!((read.least_at(then)..=read.most_at(then)).contains(&truth));
        }

        #[test]
        fn no_numbers_are_a_panic(
            ticks in any::<u64>(), at in any::<u64>(), uncertainty_ns in any::<u64>(), hz in any::<u64>(),
            then in any::<u64>(),
        ) {
            let read = CounterReading { ticks, at: HostTime::from_ns(at), uncertainty_ns, hz };
            let then = HostTime::from_ns(then);
            prop_assert!(read.least_at(then) <= read.shown_at(then) && read.shown_at(then) <= read.most_at(then));
        }
    }
}
