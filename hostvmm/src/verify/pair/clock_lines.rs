//! The line `clock N s` that a guest prints every second: it must go on across migrations as if nothing had happened.
//!
//! A line says its number, its second and the counter from which the guest took it. So what is lost, said twice, or of another
//! second than its counter shows up in the lines alone, however long a host let them wait. When they were printed the hosts
//! bound: the guest's counter is read as it stops and before it runs on ([`HandOver`]), which tells what it can have shown
//! at any moment ([`CounterReading`]); a line that was read was printed before that; and a vCPU that was seen to complete two
//! steps has looked at its counter in between ([`Stay::due`]). Nothing here depends on how fast a host is.

use std::fmt;

use abi::heartbeat::ticks_to_ns;

use crate::migrate::{CounterReading, HostTime};
use crate::report::ledger::{CounterEntry, GuestClockEntry};

/// One line as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::verify) struct ClockLine {
    /// Lines that the guest had printed before.
    pub(in crate::verify) number: u64,
    /// Seconds since the guest's first line, by its counter.
    pub(in crate::verify) seconds: u64,
    /// The counter, in ticks.
    pub(in crate::verify) counter: u64,
    /// When it had been read.
    pub(in crate::verify) seen: HostTime,
}

impl ClockLine {
    /// The line in `text`, as `hostvmm run` echoes the guest's console: `guest: clock 3 s, counter 187512345 (line 3)`. One
    /// that was cut short as its guest moved away is none: it is printed whole where the guest went.
    pub(in crate::verify) fn parse(text: &str, seen: HostTime) -> Option<Self> {
        let (seconds, rest) = text.strip_prefix("guest: clock ")?.split_once(" s, counter ")?;
        let (counter, number) = rest.strip_suffix(')')?.split_once(" (line ")?;
        let [seconds, counter, number] = [seconds, counter, number].map(|word| word.parse().ok());
        Some(Self { number: number?, seconds: seconds?, counter: counter?, seen })
    }
}

/// What a guest's counter showed on either side of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::verify) struct HandOver {
    /// As the last vCPU left the guest at the source.
    pub(in crate::verify) stopped: CounterReading,
    /// At the destination, before the first entered it there.
    pub(in crate::verify) arrived: CounterReading,
}

impl HandOver {
    /// That of which the destination has told in its ledger; `None` for a guest without heartbeats, of which nothing is told.
    /// All VMs of `verify migrate` have one host's clock.
    pub(in crate::verify) fn told(entry: &GuestClockEntry) -> Option<Self> {
        let reading = |of: &CounterEntry| CounterReading {
            ticks: of.ticks,
            at: HostTime::from_ns(of.at_ns),
            uncertainty_ns: of.uncertainty_ns,
            hz: entry.counter_hz,
        };
        Some(Self { stopped: reading(entry.stopped.as_ref()?), arrived: reading(entry.arrived.as_ref()?) })
    }
}

/// What a guest printed in one VM.
#[derive(Clone, Debug, Default)]
pub(in crate::verify) struct Stay {
    /// The VM's name.
    pub(in crate::verify) vm: &'static str,
    /// Its lines, in the order in which they were read.
    pub(in crate::verify) lines: Vec<ClockLine>,
    /// vCPU 0 completed at least two steps after this moment and before it left: it has looked at its counter, and printed
    /// every second that was due by then.
    pub(in crate::verify) due: Option<HostTime>,
}

/// Something that a clock which goes on does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::verify) enum Jump {
    /// A line follows one that is not the one before: lines were lost, or said twice.
    Number {
        /// Its number.
        found: u64,
        /// What it should have been.
        expected: u64,
    },
    /// The counter or its second is no later than in the line before.
    Back {
        /// The line's number.
        line: u64,
        /// The counter there, in ticks.
        counter: u64,
        /// In the line before.
        before: u64,
    },
    /// The second is not what the counter says.
    Second {
        /// The line's number.
        line: u64,
        /// The second that it says.
        seconds: u64,
        /// By its counter.
        expected: u64,
    },
    /// The counter is further than it can have been when the line had been read.
    Ahead {
        /// The line's number.
        line: u64,
        /// By how much, in ns of the counter.
        by_ns: u64,
    },
    /// The counter is of a time at which this VM did not run the guest.
    Elsewhere {
        /// The line's number.
        line: u64,
        /// The VM.
        vm: &'static str,
        /// By how much, in ns of the counter.
        by_ns: u64,
    },
    /// No line says a second that was due: the counter stands still for the guest, or lines were lost.
    Missing {
        /// The VM.
        vm: &'static str,
        /// The second.
        due: u64,
        /// The last that was said.
        last: Option<u64>,
    },
}

impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Number { found, expected } => write!(f, "line {found} where line {expected} should be"),
            Self::Back { line, counter, before } => write!(f, "line {line}: counter {counter} after {before}"),
            Self::Second { line, seconds, expected } => {
                write!(f, "line {line} says second {seconds}, its counter {expected}")
            }
            Self::Ahead { line, by_ns } => write!(f, "line {line}: its counter is {by_ns} ns ahead of what it can be"),
            Self::Elsewhere { line, vm, by_ns } => {
                write!(f, "line {line}: its counter is {by_ns} ns off the time in which VM {vm} ran the guest")
            }
            Self::Missing { vm, due, last: Some(last) } => {
                write!(f, "VM {vm} has shown no second {due}, the last was {last}")
            }
            Self::Missing { vm, due, last: None } => write!(f, "VM {vm} has shown no second {due}, and none before"),
        }
    }
}

/// Everything in the lines of `stays`, in the order in which the guest was there, that a clock which goes on does not do; at
/// most one finding a line. `hand_overs` lie between two stays each; what the hosts know nothing of is not judged by them.
pub(in crate::verify) fn jumps(stays: &[Stay], hand_overs: &[Option<HandOver>]) -> Vec<Jump> {
    let mut judge = Judge::default();
    for (index, stay) in stays.iter().enumerate() {
        let of = |index: Option<usize>| index.and_then(|index| *hand_overs.get(index)?);
        judge.stay(stay, of(index.checked_sub(1)), of(Some(index)));
    }
    judge.found
}

/// What the lines so far came to.
#[derive(Debug, Default)]
struct Judge {
    /// The counter at the first line of all.
    epoch: Option<u64>,
    before: Option<ClockLine>,
    found: Vec<Jump>,
}

impl Judge {
    fn stay(&mut self, stay: &Stay, came: Option<HandOver>, left: Option<HandOver>) {
        let known: Vec<CounterReading> =
            came.map(|came| came.arrived).into_iter().chain(left.map(|left| left.stopped)).collect();
        let hz = known.first().map(|reading| reading.hz);
        for (index, line) in stay.lines.iter().enumerate() {
            if self.before.is_none() && line.number == 0 {
                self.epoch = Some(line.counter);
            }
            let found = self.order(line, hz).or_else(|| {
                let most = known.iter().map(|reading| reading.most_at(line.seen)).min();
                let ahead = most.and_then(|most| by_ns(line.counter, most, hz));
                let ahead = ahead.map(|by_ns| Jump::Ahead { line: line.number, by_ns });
                ahead.or_else(|| elsewhere(stay.vm, line, index == 0, came, left))
            });
            self.found.extend(found);
            self.before = Some(*line);
        }
        self.missing(stay, &known);
    }

    /// Whether `line` follows the one before.
    fn order(&self, line: &ClockLine, hz: Option<u64>) -> Option<Jump> {
        let expected = self.before.map_or(0, |before| before.number.saturating_add(1));
        if line.number != expected {
            return Some(Jump::Number { found: line.number, expected });
        }
        if let Some(before) = self.before
            && (line.counter <= before.counter || line.seconds <= before.seconds)
        {
            return Some(Jump::Back { line: line.number, counter: line.counter, before: before.counter });
        }
        let expected = line.counter.checked_sub(self.epoch?)?.checked_div(hz?)?;
        (line.seconds != expected).then_some(Jump::Second { line: line.number, seconds: line.seconds, expected })
    }

    /// Whether every second that was due in `stay` has been told by its end.
    fn missing(&mut self, stay: &Stay, known: &[CounterReading]) {
        let Some(looked) = stay.due else { return };
        let last = self.before.map(|line| line.seconds);
        let least = known.iter().map(|reading| reading.least_at(looked)).max();
        let hz = known.first().map(|reading| reading.hz);
        let second = |epoch| least?.saturating_sub(epoch).checked_div(hz?);
        // A guest that has looked at all has printed its first line.
        let due = self.epoch.and_then(second).unwrap_or(0);
        if last.is_none_or(|last| last < due) {
            self.found.push(Jump::Missing { vm: stay.vm, due, last });
        }
    }
}

/// Whether `line` is of a time at which its VM did not run the guest. The `first` line that a VM prints may have been begun
/// where the guest was before.
fn elsewhere(
    vm: &'static str,
    line: &ClockLine,
    first: bool,
    came: Option<HandOver>,
    left: Option<HandOver>,
) -> Option<Jump> {
    let late = left.and_then(|HandOver { stopped, .. }| {
        let most = stopped.most_at(stopped.at);
        by_ns(line.counter, most, Some(stopped.hz))
    });
    let early = came.and_then(|HandOver { stopped, arrived }| {
        let is_begun_before = first && line.counter <= stopped.most_at(stopped.at);
        let least = if is_begun_before { 0 } else { arrived.least_at(arrived.at) };
        by_ns(least, line.counter, Some(arrived.hz))
    });
    late.or(early).map(|by_ns| Jump::Elsewhere { line: line.number, vm, by_ns })
}

/// By how much `later` is more than `earlier`, in ns; `None` if it is not.
fn by_ns(later: u64, earlier: u64, hz: Option<u64>) -> Option<u64> {
    let ticks = later.checked_sub(earlier).filter(|ticks| *ticks > 0)?;
    Some(ticks_to_ns(ticks, hz?).max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HZ: u64 = 62_500_000;
    const S: u64 = 1_000_000_000;
    const VMS: [&str; 3] = ["A", "B", "C"];

    fn reading(ticks: u64, at_ns: u64) -> CounterReading {
        CounterReading { ticks, at: HostTime::from_ns(at_ns), uncertainty_ns: 0, hz: HZ }
    }

    /// A guest as the firmware has it: what it prints as it looks at its counter.
    #[derive(Default)]
    struct Guest {
        started: Option<(u64, u64)>,
        number: u64,
    }

    impl Guest {
        fn look(&mut self, now: u64) -> Option<(u64, u64, u64)> {
            let (epoch, last) = match self.started {
                None => (now, now),
                Some((_, last)) if now.wrapping_sub(last) < HZ => return None,
                Some((epoch, _)) => (epoch, now - now.saturating_sub(epoch) % HZ),
            };
            self.started = Some((epoch, last));
            self.number += 1;
            Some((self.number - 1, now.saturating_sub(epoch) / HZ, now))
        }
    }

    /// A look at the counter: so long after the one before, and read by the host so much later if it prints.
    type Look = (u64, u64);

    /// Three stays of a guest, with looks in each; its counter stops for migrations or runs on. What the guest sees of the
    /// counter at a moment is `shown(counter, moment)`.
    fn simulate(
        stays: &[Vec<Look>],
        stops: bool,
        shown: impl Fn(u64, u64) -> u64,
    ) -> (Vec<Stay>, Vec<Option<HandOver>>) {
        let (mut guest, mut now, mut read, mut lost_ns) = (Guest::default(), 5 * S, 0, 0);
        let (mut found, mut hand_overs) = (Vec::new(), Vec::new());
        let counter = |now: u64, lost_ns: u64| 1_000_000 + (now - lost_ns) / 16;
        for (looks, vm) in stays.iter().zip(VMS) {
            let mut stay = Stay { vm, ..Stay::default() };
            for (gap_ns, late_ns) in looks {
                now += gap_ns;
                // A pipe keeps the order of what it carries.
                read = read.max(now + late_ns);
                if let Some((number, seconds, counter)) = guest.look(shown(counter(now, lost_ns), now)) {
                    stay.lines.push(ClockLine { number, seconds, counter, seen: HostTime::from_ns(read) });
                }
                stay.due = Some(HostTime::from_ns(now));
            }
            found.push(stay);
            let stopped = reading(counter(now, lost_ns), now);
            now += S / 3;
            lost_ns += if stops { S / 3 } else { 0 };
            hand_overs.push(Some(HandOver { stopped, arrived: reading(counter(now, lost_ns), now) }));
        }
        hand_overs.pop();
        (found, hand_overs)
    }

    /// Ten looks a second for four seconds in each VM, read at once.
    fn steady() -> Vec<Vec<Look>> {
        vec![vec![(S / 10, 1000); 40]; 3]
    }

    #[test]
    fn the_guests_line_is_read_among_others() {
        let seen = HostTime::from_ns(7);
        let line = ClockLine::parse("guest: clock 3 s, counter 187512345 (line 2)", seen);
        assert_eq!(line, Some(ClockLine { number: 2, seconds: 3, counter: 187_512_345, seen }));
        for other in [
            "guest: clock",
            "clock 3 s, counter 1 (line 3)",
            "guest: clock x s, counter 1 (line 3)",
            "guest: clock 13 s, counter 187512345 (line 1",
            "guest: clock 13 s, counter 1875",
            "migration: active",
        ] {
            assert_eq!(ClockLine::parse(other, seen), None, "{other}");
        }
    }

    #[test]
    fn a_clock_that_goes_on_has_no_jumps() {
        for stops in [false, true] {
            let (stays, hand_overs) = simulate(&steady(), stops, |counter, _| counter);
            assert!(stays.iter().all(|stay| stay.lines.len() >= 3));
            assert_eq!(jumps(&stays, &hand_overs), []);
        }
    }

    #[test]
    fn a_line_that_was_begun_before_the_move_is_no_jump() {
        let (mut stays, hand_overs) = simulate(&steady(), false, |counter, _| counter);
        let begun = stays[0].lines.pop().unwrap();
        stays[0].due = None;
        let seen = stays[1].lines[0].seen;
        stays[1].lines.insert(0, ClockLine { seen, ..begun });
        assert_eq!(jumps(&stays, &hand_overs), []);
    }

    #[test]
    fn a_counter_that_leaps_is_found_in_the_first_line_after_it() {
        // Forwards and back, in the middle of a stay and across a move.
        for (since, by_ns) in [(7 * S, 300_000_000), (10 * S, 300_000_000), (16 * S, 2_000_000)] {
            let (stays, hand_overs) =
                simulate(&steady(), false, |counter, now| if now > since { counter + by_ns / 16 } else { counter });
            let found = jumps(&stays, &hand_overs);
            assert!(matches!(found[0], Jump::Ahead { .. } | Jump::Elsewhere { .. }), "{since}: {found:?}");
        }
        for (since, by_ns) in [(7 * S, 3 * S), (10 * S, 3 * S), (7 * S, 40 * S)] {
            let (stays, hand_overs) =
                simulate(
                    &steady(),
                    false,
                    |counter, now| {
                        if now > since { counter.saturating_sub(by_ns / 16) } else { counter }
                    },
                );
            let found = jumps(&stays, &hand_overs);
            assert!(!found.is_empty(), "{since} {by_ns}");
        }
    }

    #[test]
    fn a_counter_that_stands_still_is_found() {
        for since in [7 * S, 10 * S] {
            let still = 1_000_000 + since / 16;
            let (stays, hand_overs) = simulate(&steady(), false, |counter, _| counter.min(still));
            let found = jumps(&stays, &hand_overs);
            assert!(matches!(found[0], Jump::Missing { last: Some(_), .. }), "{found:?}");
        }
        let (mut stays, hand_overs) = simulate(&steady(), false, |counter, _| counter);
        let again = stays[1].lines[1];
        stays[1].lines[2] = ClockLine { number: again.number + 1, ..again };
        assert!(matches!(jumps(&stays, &hand_overs)[0], Jump::Back { .. }));
    }

    #[test]
    fn lines_that_are_lost_or_said_twice_are_found() {
        let (stays, hand_overs) = simulate(&steady(), false, |counter, _| counter);
        for (vm, line) in [(0, 0), (0, 2), (1, 0), (1, 1), (2, 2)] {
            let mut lost = stays.clone();
            let gone = lost[vm].lines.remove(line).number;
            let found = Jump::Number { found: gone + 1, expected: gone };
            assert_eq!(jumps(&lost, &hand_overs)[0], found);
            let mut twice = stays.clone();
            twice[vm].lines.insert(line, stays[vm].lines[line]);
            assert_eq!(jumps(&twice, &hand_overs)[0], Jump::Number { found: gone, expected: gone + 1 });
        }
        let mut end = stays.clone();
        let last = end[2].lines.pop().unwrap().seconds;
        assert_eq!(jumps(&end, &hand_overs), [Jump::Missing { vm: "C", due: last, last: Some(last - 1) }]);
        let silent = Stay { vm: "A", lines: Vec::new(), due: stays[0].due };
        assert_eq!(jumps(&[silent], &[]), [Jump::Missing { vm: "A", due: 0, last: None }]);
    }

    #[test]
    fn a_second_that_is_not_its_counters_is_found() {
        let (mut stays, hand_overs) = simulate(&steady(), false, |counter, _| counter);
        let line = &mut stays[1].lines[2];
        line.seconds += 1;
        let found = Jump::Second { line: line.number, seconds: line.seconds, expected: line.seconds - 1 };
        assert_eq!(jumps(&stays, &hand_overs)[0], found);
    }

    #[test]
    fn without_readings_lines_are_judged_by_themselves() {
        let (mut stays, _) = simulate(&steady(), false, |counter, _| counter);
        assert_eq!(jumps(&stays, &[None, None]), []);
        stays[1].lines.remove(1);
        assert_eq!(jumps(&stays, &[None, None]).len(), 1);
    }

    fn looks() -> impl Strategy<Value = Vec<Look>> {
        // A host that is busy lets a guest stand for seconds, and reads what it prints seconds later.
        let ns = || prop_oneof![1_u64..S / 20, 1..7 * S];
        prop::collection::vec((ns(), ns()), 1..30)
    }

    proptest! {
        #[test]
        fn no_host_is_too_slow(stays in prop::collection::vec(looks(), 1..=3), stops in any::<bool>()) {
            let (stays, hand_overs) = simulate(&stays, stops, |counter, _| counter);
            prop_assert_eq!(jumps(&stays, &hand_overs), []);
        }

        #[test]
        fn on_no_host_a_lost_line_goes_unnoticed(
            stays in prop::collection::vec(looks(), 3), which in any::<prop::sample::Index>(),
        ) {
            let (mut stays, hand_overs) = simulate(&stays, false, |counter, _| counter);
            let count: usize = stays.iter().map(|stay| stay.lines.len()).sum();
            let mut index = which.index(count);
            for stay in &mut stays {
                if index < stay.lines.len() {
                    stay.lines.remove(index);
                    break;
                }
                index -= stay.lines.len();
            }
            prop_assert!(!jumps(&stays, &hand_overs).is_empty());
        }

        #[test]
        fn no_lines_are_a_panic(numbers in prop::collection::vec(any::<[u64; 4]>(), 0..6), of in any::<[u64; 6]>()) {
            let lines = numbers.iter().map(|&[number, seconds, counter, seen]| ClockLine {
                number, seconds, counter, seen: HostTime::from_ns(seen),
            });
            let stay = Stay { vm: "A", lines: lines.collect(), due: Some(HostTime::from_ns(of[0])) };
            let hand_over = HandOver {
                stopped: CounterReading { uncertainty_ns: of[1], ..reading(of[2], of[3]) },
                arrived: CounterReading { hz: of[1], ..reading(of[4], of[5]) },
            };
            drop(jumps(&[stay.clone(), stay], &[Some(hand_over)]));
        }
    }
}
