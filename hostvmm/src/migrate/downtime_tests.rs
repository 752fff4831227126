//! Crossings simulated on a time line of their own, right ones and ones with a planted wrong counter.

use proptest::prelude::*;

use super::*;

const HZ: u64 = 62_500_000;
const PERIOD_NS: u64 = 1_000_000;
/// When the guest stops, by the source's clock.
const STOPPED_NS: u64 = 5_000_000_000;
/// What a host takes to read or set a counter.
const BRACKET_NS: u64 = 2_000;
/// What is planted at least: ticks and brackets are some of it.
const LEAST_PLANTED_NS: u64 = 10_000;

fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(HZ) / 1_000_000_000) as u64
}

/// One vCPU on its way: ns from its last beat to its exit, from there until the last vCPU left, from the first vCPU's entry to
/// its own, from there to its first beat, and from a later beat until that is looked at.
#[derive(Clone, Copy, Debug)]
struct Way {
    beat_to_exit: u64,
    exit_to_stop: u64,
    resume_to_entry: u64,
    entry_to_beat: u64,
    beat_to_look: u64,
}

const USUAL_WAYS: [Way; 2] = [
    Way { beat_to_exit: 300_000, exit_to_stop: 0, resume_to_entry: 0, entry_to_beat: 900_000, beat_to_look: 0 },
    Way {
        beat_to_exit: 900_000,
        exit_to_stop: 100_000,
        resume_to_entry: 70_000_000,
        entry_to_beat: 0,
        beat_to_look: 300_000,
    },
];

/// The hosts' part of a crossing that was down for `down_ns`, and how the counter is read. At the destination it is wrong by
/// `wrong_ns` from the moment at which it is set; each read and set takes [`BRACKET_NS`].
struct Simulated {
    policy: CounterPolicy,
    down_ns: u64,
    wrong_ns: i64,
    /// The hosts know of the wrong counter what they were told, not what it shows.
    hosts_are_wrong: bool,
}

impl Simulated {
    fn set_ns(&self) -> u64 {
        STOPPED_NS + self.down_ns.saturating_sub(3 * BRACKET_NS)
    }

    /// What the counter shows at the source.
    fn source(at_ns: u64) -> u64 {
        ticks(at_ns) + 10 * HZ
    }

    /// What it shows at the destination: it was reckoned at `set_ns`, and runs a bracket later.
    fn destination(&self, at_ns: u64, wrong_ns: i64) -> u64 {
        let runs_from = self.set_ns() + BRACKET_NS;
        let set_to = match self.policy {
            CounterPolicy::RunsOn => Self::source(self.set_ns()),
            CounterPolicy::Stops => Self::source(STOPPED_NS),
        };
        let wrong = ticks(wrong_ns.unsigned_abs()).cast_signed() * wrong_ns.signum();
        (set_to + ticks(at_ns.saturating_sub(runs_from))).saturating_add_signed(wrong)
    }

    fn run(&self, ways: &[Way]) -> (Crossing, Vec<VcpuGaps>) {
        let read = |ticks, at_ns: u64| CounterReading {
            ticks,
            at: HostTime::from_ns(at_ns),
            uncertainty_ns: BRACKET_NS / 2,
            hz: HZ,
        };
        let known_ns = if self.hosts_are_wrong { 0 } else { self.wrong_ns };
        let at_source = read(Self::source(STOPPED_NS + BRACKET_NS / 2), STOPPED_NS + BRACKET_NS / 2);
        let read_ns = self.set_ns() + BRACKET_NS + BRACKET_NS / 2;
        let reading = read(self.destination(read_ns, known_ns), read_ns);
        let stopped_at = HostTime::from_ns(STOPPED_NS);
        let resumed_ns = STOPPED_NS + self.down_ns;
        let resumed_at = HostTime::from_ns(resumed_ns);
        let crossing = Crossing {
            stopped: Moment { at: stopped_at, counter: at_source.shown_at(stopped_at) },
            stopped_doubt_ns: at_source.doubt_ns(stopped_at),
            resumed: Moment { at: resumed_at, counter: reading.shown_at(resumed_at) },
            set_at: HostTime::from_ns(self.set_ns()),
            set_took_ns: BRACKET_NS,
            reading,
            clocks_doubt_ns: 0,
            counter_hz: HZ,
            policy: self.policy,
        };
        let usual = Histogram::of(vec![PERIOD_NS; 5000]);
        let gaps = ways.iter().enumerate().map(|(vcpu, way)| {
            let left_ns = STOPPED_NS - way.exit_to_stop;
            let entered_ns = resumed_ns + way.resume_to_entry;
            let first_ns = entered_ns + way.entry_to_beat;
            VcpuGaps {
                vcpu,
                before: usual.clone(),
                during: usual.clone(),
                after: usual.clone(),
                crossing: Some(Gap {
                    start: Self::source(left_ns - way.beat_to_exit),
                    end: self.destination(first_ns, self.wrong_ns),
                    cycles: Some(7),
                }),
                left: at_source.most_at(HostTime::from_ns(left_ns)),
                entered: Some(reading.least_at(HostTime::from_ns(entered_ns))),
                latest: Some(Latest {
                    beat: self.destination(first_ns, self.wrong_ns),
                    limit: reading.most_at(HostTime::from_ns(first_ns + way.beat_to_look)),
                }),
            }
        });
        (crossing, gaps.collect())
    }
}

fn right(policy: CounterPolicy, down_ns: u64) -> Simulated {
    Simulated { policy, down_ns, wrong_ns: 0, hosts_are_wrong: false }
}

#[test]
fn a_counter_that_runs_on_shows_the_downtime_and_one_that_stops_does_not() {
    let (host, gaps) = right(CounterPolicy::RunsOn, 30_000_000).run(&USUAL_WAYS[..1]);
    let downtime = reconcile(&host, &gaps);
    assert_eq!(downtime.disagreements, []);
    // The counter is behind by what it took to set it, but for a tick.
    assert_eq!((downtime.host_ns, downtime.guest_ns, downtime.vcpu), (30_000_000, Some(31_198_000), Some(0)));
    assert_eq!((downtime.resolution_ns, downtime.gap_cycles), (1 << 20, Some(7)));
    assert_eq!(downtime.guest_error_ns(host.policy), Some(1_198_000));
    assert_eq!((downtime.counter_error_ns, downtime.counter_error_ppm.round()), (-1984, -66.0));
    assert!((BRACKET_NS..40_000).contains(&downtime.counter_doubt_ns), "{downtime:?}");

    let (host, gaps) = right(CounterPolicy::Stops, 30_000_000).run(&USUAL_WAYS[..1]);
    let downtime = reconcile(&host, &gaps);
    assert_eq!(downtime.disagreements, []);
    assert_eq!(downtime.guest_ns, Some(300_000 + 2 * BRACKET_NS + 900_000));
}

#[test]
fn a_host_that_takes_its_time_to_run_a_thread_is_no_disagreement() {
    let late = Way { resume_to_entry: 900_000_000, entry_to_beat: 4_000_000_000, ..USUAL_WAYS[0] };
    for policy in [CounterPolicy::RunsOn, CounterPolicy::Stops] {
        let (host, gaps) = right(policy, 5_000_000).run(&[USUAL_WAYS[0], late]);
        let downtime = reconcile(&host, &gaps);
        assert_eq!((downtime.disagreements.len(), downtime.vcpu), (0, Some(1)), "{downtime:?}");
    }
}

#[test]
fn a_counter_of_the_wrong_policy_is_found() {
    for (policy, other) in
        [(CounterPolicy::RunsOn, CounterPolicy::Stops), (CounterPolicy::Stops, CounterPolicy::RunsOn)]
    {
        let (mut host, gaps) = right(policy, 80_000_000).run(&USUAL_WAYS);
        host.policy = other;
        let found = reconcile(&host, &gaps).disagreements;
        assert!(
            matches!(found[..], [Disagreement::CounterOff { error_ns }] if error_ns.abs() > 79_000_000),
            "{found:?}"
        );
    }
}

#[test]
fn a_vcpu_that_has_not_beaten_since_or_elsewhere_has_no_gap() {
    let (host, mut gaps) = right(CounterPolicy::RunsOn, 30_000_000).run(&USUAL_WAYS);
    gaps[0].crossing = None;
    gaps[1].crossing = Some(Gap { start: 5, end: 6, cycles: None });
    let found = reconcile(&host, &gaps).disagreements;
    assert!(
        matches!(found[..], [Disagreement::NoGap { vcpu: 0 }, Disagreement::BeatBeforeEntry { vcpu: 1, .. }]),
        "{found:?}"
    );
    assert_eq!(reconcile(&host, &[]).guest_ns, None);
    gaps[1].crossing = Some(Gap { start: host.resumed.counter, end: 6, cycles: None });
    let found = reconcile(&host, &gaps[1..]).disagreements;
    assert!(found.contains(&Disagreement::GapBack { vcpu: 1 }), "{found:?}");
    assert!(found.iter().any(|found| matches!(found, Disagreement::BeatAfterExit { vcpu: 1, .. })), "{found:?}");
}

/// Ways of a vCPU of any host, however slow.
fn any_ways() -> impl Strategy<Value = Vec<Way>> {
    let ns = || prop_oneof![0..10_000_u64, 0..PERIOD_NS, 0..900_000_000_u64];
    let way = (ns(), ns(), ns(), ns(), ns()).prop_map(
        |(beat_to_exit, exit_to_stop, resume_to_entry, entry_to_beat, beat_to_look)| Way {
            beat_to_exit,
            exit_to_stop,
            resume_to_entry,
            entry_to_beat,
            beat_to_look,
        },
    );
    prop::collection::vec(way, 1..8)
}

fn policies() -> impl Strategy<Value = CounterPolicy> {
    prop_oneof![Just(CounterPolicy::RunsOn), Just(CounterPolicy::Stops)]
}

proptest! {
    #[test]
    fn a_right_crossing_agrees_whatever_the_beats_and_however_slow_the_hosts(
        policy in policies(), down_ns in 3 * BRACKET_NS..2_000_000_000, ways in any_ways(),
    ) {
        let (host, gaps) = right(policy, down_ns).run(&ways);
        let downtime = reconcile(&host, &gaps);
        prop_assert_eq!(&downtime.disagreements, &[]);
        prop_assert!(downtime.counter_error_ns.unsigned_abs() <= downtime.counter_doubt_ns + 48, "{downtime:?}");
    }

    /// Microseconds are enough, beyond what a clock may have been turned in the downtime.
    #[test]
    fn a_planted_wrong_offset_is_found(
        policy in policies(), down_ns in 3 * BRACKET_NS..2_000_000_000, back in any::<bool>(), ways in any_ways(),
        wrong_ns in prop_oneof![LEAST_PLANTED_NS..50_000, LEAST_PLANTED_NS..60_000_000_000],
    ) {
        let slew_ns = if policy == CounterPolicy::RunsOn { down_ns / 2000 } else { 0 };
        let wrong_ns = (wrong_ns + slew_ns).cast_signed() * if back { -1 } else { 1 };
        let (host, gaps) = Simulated { policy, down_ns, wrong_ns, hosts_are_wrong: false }.run(&ways);
        let downtime = reconcile(&host, &gaps);
        prop_assert!(
            downtime.disagreements.iter().any(|found| {
                matches!(found, Disagreement::CounterBack { .. } | Disagreement::CounterOff { .. })
            }),
            "{downtime:?}"
        );
    }

    /// A host may be told that its counter was right, and the guest sees another: its beats tell.
    #[test]
    fn a_guest_whose_counter_is_not_the_host_s_is_found_by_its_beats(
        policy in policies(), down_ns in 3 * BRACKET_NS..100_000_000, back in any::<bool>(),
        wrong_ns in 50_000_u64..60_000_000_000, vcpu in 0_usize..2,
    ) {
        // One vCPU beats as it enters, the other was looked at as it beat: within microseconds.
        let mut ways = USUAL_WAYS;
        ways[vcpu] = Way { entry_to_beat: 0, beat_to_look: 0, resume_to_entry: 0, ..ways[vcpu] };
        let wrong_ns = wrong_ns.cast_signed() * if back { -1 } else { 1 };
        let (host, gaps) = Simulated { policy, down_ns, wrong_ns, hosts_are_wrong: true }.run(&ways);
        let found = reconcile(&host, &gaps).disagreements;
        let told = |found: &Disagreement| match *found {
            Disagreement::BeatBeforeEntry { vcpu: of, .. } => back && of == vcpu,
            Disagreement::BeatAhead { vcpu: of, .. } => !back && of == vcpu,
            _ => false,
        };
        prop_assert!(found.iter().any(told), "{found:?}");
    }

    #[test]
    fn nothing_that_a_guest_leaves_in_its_ram_is_a_panic(
        counters in prop::array::uniform9(any::<u64>()), at in prop::array::uniform4(any::<u64>()),
        hz in any::<u64>(), doubt_ns in any::<u64>(), cycles in any::<Option<u64>>(), policy in policies(),
    ) {
        let [stopped, resumed, start, end, read, left, entered, beat, limit] = counters;
        let at = at.map(HostTime::from_ns);
        let host = Crossing {
            stopped: Moment { at: at[0], counter: stopped },
            stopped_doubt_ns: doubt_ns,
            resumed: Moment { at: at[1], counter: resumed },
            set_at: at[2],
            set_took_ns: doubt_ns,
            reading: CounterReading { ticks: read, at: at[3], uncertainty_ns: doubt_ns, hz },
            clocks_doubt_ns: doubt_ns,
            counter_hz: hz,
            policy,
        };
        let gaps = VcpuGaps {
            crossing: Some(Gap { start, end, cycles }),
            left,
            entered: Some(entered),
            latest: Some(Latest { beat, limit }),
            ..VcpuGaps::default()
        };
        let downtime = reconcile(&host, &[gaps]);
        prop_assert!(downtime.disagreements.iter().all(|found| !found.to_string().is_empty()));
    }
}
