//! Checkpoints: exact, again and again, in all four cases; planted omissions of each; divergences.

use super::fixture::{Pair, monitor, quick};
use crate::colo::{Cause, ColoError, ColoMonitor, ColoParameters, ColoPhase, Ending, Omission, PlantedOmission};
use crate::migrate::DigestMode;

/// Runs until the primary has committed `count` checkpoints, then loses the secondary.
fn until(count: u64) -> impl FnOnce(&Pair) {
    move |pair| {
        let phase = pair
            .primary_monitor
            .wait_until(|info| info.checkpoint >= count || matches!(info.phase, ColoPhase::Alone | ColoPhase::Fenced));
        assert!(!matches!(phase, ColoPhase::Alone | ColoPhase::Fenced), "{:?}", pair.primary_monitor.brief());
        pair.secondary_monitor.stop().unwrap();
    }
}

fn assert_exact(monitor: &ColoMonitor, is_digested: bool) {
    let info = monitor.info();
    assert!(info.exact, "{:?}", info.error);
    for (report, n) in info.checkpoints.iter().zip(1..) {
        assert_eq!(report.n, n);
        assert_eq!(report.pages.flushed, report.pages.union(), "{report:?}");
        assert!(!is_digested || report.digests.are_equal(), "{report:?}");
    }
}

#[test]
fn a_thousand_checkpoints_are_exact_in_all_four_cases() {
    let pair = Pair::new(None, &ColoParameters { x_checkpoint_delay: 0, ..quick() });
    let both = pair.run(until(1000));
    assert!(matches!(both.primary.ending, Ending::Alone { epoch: 2 }), "{both:?}");
    assert_exact(&pair.primary_monitor, true);
    let reports = pair.primary_monitor.info().checkpoints;
    let has =
        |case: &dyn Fn(&crate::colo::DirtyCounts) -> bool| reports.iter().skip(1).any(|report| case(&report.pages));
    assert!(has(&|pages| pages.primary_dirty > pages.both_dirty), "none was dirty on the primary alone");
    assert!(has(&|pages| pages.secondary_dirty > pages.both_dirty), "none was dirty on the secondary alone");
    assert!(has(&|pages| pages.both_dirty > 0), "none was dirty on both");
    assert!(has(&|pages| pages.union() < 2 * super::fixture::PAGES), "all were dirty");
    assert!(pair.primary.runs() && !pair.secondary.runs());
    pair.primary.check();
    pair.world.check(10);
}

#[test]
fn guests_in_step_need_no_checkpoint_but_the_first() {
    let pair = Pair::new(None, &ColoParameters { x_checkpoint_delay: 600_000, ..quick() });
    pair.run(|pair| {
        pair.primary_monitor.wait_until(|info| info.compared > 50);
        pair.secondary_monitor.stop().unwrap();
    });
    let info = pair.primary_monitor.info();
    assert_eq!((info.checkpoint, info.divergences), (1, 0), "{info:?}");
    pair.world.check(50);
}

#[test]
fn guests_that_differ_are_made_one_again_at_once_and_nothing_is_lost() {
    let pair = Pair::new(Some([b'a', b'b']), &ColoParameters { x_checkpoint_delay: 600_000, ..quick() });
    pair.run(until(20));
    let info = pair.primary_monitor.info();
    assert!(info.divergences >= 10, "{info:?}");
    let differs = |cause: &Cause| matches!(cause, Cause::Divergence(found) if found.stream == 0 && found.offset > 4);
    assert!(info.checkpoints.iter().filter(|report| differs(&report.cause)).count() >= 10);
    assert!(info.checkpoints.iter().any(|report| report.released.records > 0));
    assert_exact(&pair.primary_monitor, true);
    pair.primary.check();
    pair.world.check(10);
}

#[test]
fn without_comparison_the_secondary_stands_still_and_checkpoints_release() {
    let parameters = ColoParameters { x_colo_compare: false, ..quick() };
    let pair = Pair::new(Some([b'a', b'b']), &parameters);
    pair.run(|pair| {
        pair.primary_monitor.wait_until(|info| info.checkpoint >= 30);
        assert!(!pair.secondary.runs());
        pair.secondary_monitor.stop().unwrap();
    });
    assert_exact(&pair.primary_monitor, true);
    let info = pair.primary_monitor.info();
    assert!(info.checkpoints.iter().all(|report| report.pages.secondary_dirty == 0));
    assert_eq!(info.compared, 0);
    pair.world.check(10);
}

#[test]
fn what_was_sent_is_enough_of_a_digest_where_time_is_short() {
    let pair = Pair::new(None, &ColoParameters { x_colo_digest: DigestMode::Deferred, ..quick() });
    pair.run(until(30));
    assert_exact(&pair.primary_monitor, false);
    let report = pair.primary_monitor.info().checkpoints.pop().unwrap();
    assert_eq!(report.digests.primary, report.digests.cache);
    assert_eq!(report.digests.secondary, None);
}

#[test]
fn held_output_is_bounded_by_checkpoints() {
    let parameters =
        ColoParameters { x_checkpoint_delay: 600_000, x_colo_held_records: 4, x_colo_compare: false, ..quick() };
    let pair = Pair::new(None, &parameters);
    pair.run(until(10));
    let info = pair.primary_monitor.info();
    assert!(info.checkpoints.iter().filter(|report| report.cause == Cause::HeldFull).count() >= 8, "{info:?}");
}

#[test]
fn an_operator_s_wish_is_a_cause() {
    let pair = Pair::new(None, &ColoParameters { x_checkpoint_delay: 600_000, ..quick() });
    pair.run(|pair| {
        pair.primary_monitor.wait_until(|info| info.checkpoint == 1);
        pair.primary_monitor.request_checkpoint().unwrap();
        pair.primary_monitor.wait_until(|info| info.checkpoint == 2);
        pair.secondary_monitor.stop().unwrap();
    });
    assert_eq!(pair.primary_monitor.info().checkpoints[1].cause, Cause::Requested);
    assert!(pair.primary_monitor.request_checkpoint().is_err(), "there is no pair any more");
}

#[test]
fn every_planted_omission_is_found_and_the_primary_goes_on() {
    for omission in Omission::ALL {
        let mut pair = Pair::new(Some([b'a', b'b']), &quick());
        let plan = Some(PlantedOmission { omission, checkpoint: 3 });
        if matches!(omission, Omission::Primary | Omission::Both) {
            pair.primary_monitor = monitor(&quick()).with_faults(None, plan);
        }
        if !matches!(omission, Omission::Primary) {
            pair.secondary_monitor = monitor(&quick()).with_faults(None, plan);
        }
        let both = pair.run(|_| ());
        assert!(matches!(both.primary.ending, Ending::Alone { .. }), "{omission}: {both:?}");
        assert_eq!(both.secondary.ending, Ending::Discarded, "{omission}: {both:?}");
        assert!(!pair.primary_monitor.info().exact, "{omission}");
        let named = match &both.secondary.error {
            Some(ColoError::Cache { .. }) => {
                // The primary knows which page it was.
                matches!(&both.primary.error, Some(ColoError::Unlogged { .. }))
                    && matches!(omission, Omission::Primary | Omission::Both)
            }
            Some(ColoError::Flush { page: Some(_), .. }) => matches!(omission, Omission::Secondary | Omission::Flush),
            Some(ColoError::Pages { page: Some(_), .. }) => omission == Omission::Extra,
            _ => false,
        };
        assert!(named, "{omission}: {both:?}");
        pair.primary.check();
        pair.world.check(1);
    }
}
