//! Crossings simulated tick by tick, right ones and ones with a planted wrong counter.

use proptest::prelude::*;

use super::*;
use crate::migrate::HostTime;

const HZ: u64 = 62_500_000;
const PERIOD_NS: u64 = 1_000_000;

fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(HZ) / 1_000_000_000) as u64
}

/// A crossing of some vCPUs: each beat last `early_ns` before the guest stopped and first `late_ns` after it resumed. At the
/// destination the counter is wrong by `wrong_ticks`.
fn crossing(policy: CounterPolicy, down_ns: u64, vcpus: &[(u64, u64)], wrong_ticks: i64) -> (Crossing, Vec<VcpuGaps>) {
    let at = 5_000_000_000;
    let stopped = Moment { at: HostTime::from_ns(at), counter: 10 * HZ };
    let shown = if policy == CounterPolicy::RunsOn { ticks(down_ns) } else { 0 };
    let counter = (stopped.counter + shown).wrapping_add_signed(wrong_ticks);
    let resumed = Moment { at: HostTime::from_ns(at + down_ns), counter };
    let usual = Histogram::of(vec![PERIOD_NS; 5000]);
    let gaps = vcpus.iter().enumerate().map(|(vcpu, (early_ns, late_ns))| VcpuGaps {
        vcpu,
        before: usual.clone(),
        during: usual.clone(),
        after: usual.clone(),
        crossing: Some(Gap {
            start: stopped.counter - ticks(*early_ns),
            end: counter.wrapping_add(ticks(*late_ns)),
            cycles: Some(7),
        }),
    });
    (Crossing { stopped, resumed, uncertainty_ns: 0, counter_hz: HZ, policy }, gaps.collect())
}

const USUAL_VCPUS: [(u64, u64); 2] = [(300_000, 900_000), (PERIOD_NS, 0)];

#[test]
fn a_counter_that_runs_on_shows_the_downtime_and_one_that_stops_does_not() {
    let (host, gaps) = crossing(CounterPolicy::RunsOn, 30_000_000, &USUAL_VCPUS, 0);
    let downtime = reconcile(&host, &gaps);
    assert_eq!(downtime.disagreements, []);
    assert_eq!((downtime.host_ns, downtime.guest_ns, downtime.vcpu), (30_000_000, Some(31_200_000), Some(0)));
    assert_eq!((downtime.resolution_ns, downtime.gap_cycles), (1 << 20, Some(7)));
    assert_eq!(downtime.guest_error_ns(host.policy), Some(1_200_000));
    assert_eq!((downtime.counter_error_ns, downtime.counter_error_ppm), (0, 0.0));

    let (host, gaps) = crossing(CounterPolicy::Stops, 30_000_000, &USUAL_VCPUS, 0);
    let downtime = reconcile(&host, &gaps);
    assert_eq!((downtime.disagreements.len(), downtime.guest_ns), (0, Some(1_200_000)));
}

#[test]
fn a_counter_of_the_wrong_policy_is_found() {
    let (mut host, gaps) = crossing(CounterPolicy::RunsOn, 80_000_000, &USUAL_VCPUS, 0);
    host.policy = CounterPolicy::Stops;
    let found = reconcile(&host, &gaps).disagreements;
    assert!(found.contains(&Disagreement::CounterOff { error_ns: 80_000_000 }), "{found:?}");
    assert!(matches!(found[1], Disagreement::GapLong { vcpu: 0, .. }), "{found:?}");

    let (mut host, gaps) = crossing(CounterPolicy::Stops, 80_000_000, &USUAL_VCPUS, 0);
    host.policy = CounterPolicy::RunsOn;
    let found = reconcile(&host, &gaps).disagreements;
    assert!(found.contains(&Disagreement::CounterOff { error_ns: -80_000_000 }), "{found:?}");
    assert!(matches!(found[1], Disagreement::GapShort { downtime_ns: 80_000_000, .. }), "{found:?}");
}

#[test]
fn a_vcpu_that_has_not_beaten_since_or_elsewhere_has_no_gap() {
    let (host, mut gaps) = crossing(CounterPolicy::RunsOn, 30_000_000, &USUAL_VCPUS, 0);
    gaps[0].crossing = None;
    let elsewhere = Gap { start: 5, end: 6, cycles: None };
    gaps[1].crossing = Some(elsewhere);
    let no_gap = |vcpu| Disagreement::NoGap { vcpu };
    assert_eq!(reconcile(&host, &gaps).disagreements, [no_gap(0), no_gap(1)]);
    assert_eq!(reconcile(&host, &[]).guest_ns, None);
}

#[test]
fn lines_that_jump_stand_still_or_go_back_are_found() {
    let line = |second, ns: u64| ClockReading { second, counter: ticks(ns) };
    let second = 1_000_000_000;
    let good: Vec<ClockReading> = (0..5).map(|n| line(n, n * second + 3_000_000 * (n % 2))).collect();
    assert_eq!(check_clock(&good, HZ, 5_000_000), []);
    let with = |index: usize, wrong| {
        let mut lines = good.clone();
        lines[index] = wrong;
        check_clock(&lines, HZ, 5_000_000)
    };
    assert!(matches!(with(4, line(4, 4 * second + 40_000_000))[..], [ClockJump::Counter { .. }]));
    assert!(matches!(with(4, line(5, 4 * second))[..], [ClockJump::Second { .. }]));
    assert!(matches!(with(4, line(4, second))[..], [ClockJump::Back { .. }]));
    assert_eq!(check_clock(&[], HZ, 0), []);
}

proptest! {
    #[test]
    fn a_right_crossing_agrees_whatever_the_beats(
        stops in any::<bool>(), down_ns in 0_u64..2_000_000_000,
        vcpus in prop::collection::vec((0..PERIOD_NS, 0..PERIOD_NS), 1..8),
    ) {
        let policy = if stops { CounterPolicy::Stops } else { CounterPolicy::RunsOn };
        let (host, gaps) = crossing(policy, down_ns, &vcpus, 0);
        let downtime = reconcile(&host, &gaps);
        prop_assert_eq!(&downtime.disagreements, &[]);
        prop_assert!(downtime.counter_error_ns.abs() <= 16, "a tick");
        let error = downtime.guest_error_ns(policy).unwrap();
        prop_assert!((-32..=2 * PERIOD_NS as i64).contains(&error), "{error}");
    }

    #[test]
    fn a_planted_wrong_offset_is_found(
        stops in any::<bool>(), down_ns in 0_u64..2_000_000_000, back in any::<bool>(),
        wrong_ns in 2_000_000_u64..60_000_000_000,
    ) {
        let policy = if stops { CounterPolicy::Stops } else { CounterPolicy::RunsOn };
        let wrong = ticks(wrong_ns).cast_signed() * if back { -1 } else { 1 };
        let (host, gaps) = crossing(policy, down_ns, &USUAL_VCPUS, wrong);
        prop_assert!(!reconcile(&host, &gaps).disagreements.is_empty());
        // The guest alone finds it as well, where a host says that its counter was right.
        let honest = crossing(policy, down_ns, &USUAL_VCPUS, 0).0;
        if wrong_ns > 30_000_000 {
            prop_assert!(!reconcile(&honest, &gaps).disagreements.is_empty());
        }
    }

    #[test]
    fn nothing_that_a_guest_leaves_in_its_ram_is_a_panic(
        counters in prop::array::uniform4(any::<u64>()), at in prop::array::uniform2(any::<u64>()),
        hz in any::<u64>(), uncertainty_ns in any::<u64>(), cycles in any::<Option<u64>>(),
    ) {
        let [stopped, resumed, start, end] = counters;
        let host = Crossing {
            stopped: Moment { at: HostTime::from_ns(at[0]), counter: stopped },
            resumed: Moment { at: HostTime::from_ns(at[1]), counter: resumed },
            uncertainty_ns,
            counter_hz: hz,
            policy: CounterPolicy::RunsOn,
        };
        let gaps = VcpuGaps { crossing: Some(Gap { start, end, cycles }), ..VcpuGaps::default() };
        let downtime = reconcile(&host, &[gaps]);
        prop_assert!(downtime.disagreements.iter().all(|found| !found.to_string().is_empty()));
    }
}
