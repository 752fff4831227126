//! Migrations that are finished by post-copy, and those that are lost in it.

use std::sync::{Arc, Weak};

use serde_json::json;

use super::fixture::{Burst, TestVm, assert_exactly_one, migrate};
use crate::backend::Accelerator;
use crate::migrate::postcopy::MissingPages;
use crate::migrate::{Action, Boundary, Change, DestinationVm, FaultPlan, MigrateError, Monitor, MonitorError, Phase};

/// Says that the test is skipped where this host cannot do post-copy.
fn is_possible() -> bool {
    match MissingPages::check(DestinationVm::memory(&TestVm::empty()), Accelerator::Emulator) {
        Ok(()) => true,
        Err(reason) => {
            println!("skipped: {reason}");
            false
        }
    }
}

/// A guest that never converges.
fn restless() -> TestVm {
    TestVm::with_guest().writing((0..200_u8).map(|byte| -> Burst { (0..300).map(|page| (page, byte + 1)).collect() }))
}

/// A monitor of a migration that nothing but post-copy can end, and that is told to go on so as its second pass begins.
fn impatient(fault: Option<FaultPlan>) -> Arc<Monitor> {
    impatient_until(fault, || true)
}

/// As [`impatient`]; once the guest is handed over, its pages wait until `begins`.
fn impatient_until(fault: Option<FaultPlan>, begins: impl Fn() -> bool + Send + Sync + 'static) -> Arc<Monitor> {
    let monitor = Arc::new_cyclic(|weak: &Weak<Monitor>| {
        let weak = weak.clone();
        Monitor::new().with_fault(fault).watched(move |change| match change {
            Change::Pass(1) => weak.upgrade().unwrap().start_postcopy().unwrap(),
            Change::Pass(_) if weak.upgrade().unwrap().phase() == Phase::PostcopyActive => {
                while !begins() {
                    std::thread::yield_now();
                }
            }
            _ => {}
        })
    });
    monitor.set_parameters([("downtime-limit", &json!(0))]).unwrap();
    monitor.set_capabilities([("postcopy-ram", true)]).unwrap();
    monitor
}

#[test]
fn a_guest_that_never_converges_runs_before_its_memory_is_there() {
    if !is_possible() {
        return;
    }
    for capabilities in [&[][..], &[("multifd", true)], &[("xbzrle", true)]] {
        let (source, destination) = (impatient(None), Monitor::new());
        source.set_capabilities(capabilities.iter().copied()).unwrap();
        // It waits for a page before it can say that it runs.
        let (from, to) = (restless(), TestVm::empty().touching(250));
        let outcome = migrate(&from, &to, &source, &destination);
        let (sent, received) = (outcome.source.unwrap(), outcome.destination.unwrap());
        assert_eq!((sent.status, received.status), (Phase::Completed, Phase::Completed));
        assert!(to.runs() && from.has_moved());
        assert_exactly_one(&from, &to, &from.bytes());
        let digest = sent.digest.unwrap();
        assert!(digest.equal && digest.source == received.digest.unwrap().destination);
        let ram = sent.ram.unwrap();
        assert!(ram.postcopy_bytes > 0, "{ram:?}");
        assert_eq!(ram.remaining, 0);
        assert!(sent.downtime.is_some());
    }
}

#[test]
fn a_page_that_the_log_forgets_is_found_when_all_is_there() {
    if !is_possible() {
        return;
    }
    let (from, to) = (restless().forgetting(77), TestVm::empty());
    let (source, destination) = (impatient(None), Monitor::new());
    let outcome = migrate(&from, &to, &source, &destination);
    let error = outcome.source.unwrap_err();
    assert!(matches!(error, MigrateError::MemoryDigest { .. }), "{error}");
    assert!(outcome.destination.unwrap_err().to_string().contains("digest"));
    assert!(to.runs() && !from.runs(), "it was handed over");
    for monitor in [&*source, &destination] {
        assert_eq!(monitor.phase(), Phase::Completed);
        assert!(!monitor.info().digest.unwrap().equal);
    }
}

#[test]
fn a_guest_whose_connection_is_cut_while_pages_are_missing_is_stopped_where_it_ran() {
    if !is_possible() {
        return;
    }
    let fault = FaultPlan { boundary: Boundary::DestinationResumed, action: Action::Cut };
    let (from, to) = (restless(), TestVm::empty());
    let (source, destination) = (impatient(None), Monitor::new().with_fault(Some(fault)));
    // A second for what is missing: the cut comes long before its end.
    source.set_parameters([("max-bandwidth", &json!(1 << 20))]).unwrap();
    let outcome = migrate(&from, &to, &source, &destination);
    let error = outcome.destination.unwrap_err();
    assert!(matches!(error, MigrateError::PostcopyLost { .. }), "{error}");
    assert!(!to.runs());
    assert_eq!(destination.phase(), Phase::Failed);
    match outcome.source.unwrap_err() {
        // It was not told that the guest runs: either it asks in time, or nobody is there any more.
        MigrateError::PostcopyLost { .. } => assert!(!from.runs() && !from.has_moved()),
        MigrateError::TakenBack { .. } => assert!(from.runs()),
        other => panic!("{other}"),
    }
}

#[test]
fn whatever_fails_around_the_handover_no_two_guests_run() {
    if !is_possible() {
        return;
    }
    let boundaries = Boundary::ALL.into_iter().filter(|boundary| *boundary != Boundary::SourceSetup);
    for (boundary, action) in boundaries.flat_map(|boundary| [(boundary, Action::Cut), (boundary, Action::Fail)]) {
        let fault = Some(FaultPlan { boundary, action });
        let (source, destination) = if boundary.is_source() {
            (impatient(fault), Monitor::new())
        } else {
            (impatient(None), Monitor::new().with_fault(fault))
        };
        if boundary == Boundary::DestinationResumed {
            // With `fail` it is not told, and asks after that time.
            source.set_parameters([("x-switchover-timeout", &json!(500))]).unwrap();
        }
        let (from, to) = (restless(), TestVm::empty().touching(250));
        let outcome = migrate(&from, &to, &source, &destination);
        let (sent, received) = (outcome.source.err(), outcome.destination.err());
        let what = format!("{boundary}={action}: source {sent:?}, destination {received:?}");
        println!("{what}");
        assert!(!(from.runs() && to.runs()), "{what}");
        let is_lost = matches!(sent, Some(MigrateError::PostcopyLost { .. } | MigrateError::InDoubt { .. }))
            || matches!(received, Some(MigrateError::PostcopyLost { .. }));
        assert!(from.runs() || to.runs() || is_lost, "{what}");
        if from.runs() {
            from.assert_healthy();
        }
        if boundary == Boundary::SourceResumed || boundary >= Boundary::DestinationTold {
            // Every page was there.
            assert!(to.runs() && to.bytes() == from.bytes() && from.has_moved(), "{what}");
        }
    }
}

/// Whether the destination has read that the guest is its own: who asks before is told that it is discarded.
fn has_the_guest(destination: &Arc<Monitor>) -> impl Fn() -> bool + Send + Sync + 'static {
    let destination = Arc::clone(destination);
    move || !matches!(destination.phase(), Phase::Active | Phase::Device)
}

#[test]
fn a_connection_that_is_lost_after_the_last_page_loses_nothing() {
    if !is_possible() {
        return;
    }
    for action in [Action::Cut, Action::Fail] {
        let fault = FaultPlan { boundary: Boundary::SourceDigest, action };
        let (from, to) = (restless(), TestVm::empty().touching(250));
        let destination = Arc::new(Monitor::new());
        let source = impatient_until(Some(fault), has_the_guest(&destination));
        let outcome = migrate(&from, &to, &source, &destination);
        // By asking.
        let sent = outcome.source.unwrap();
        assert_eq!((sent.status, destination.phase()), (Phase::Completed, Phase::Completed), "{action}");
        let digest = sent.digest.unwrap();
        assert!(digest.equal && digest.source != 0, "{action}: it is compared all the same");
        assert_exactly_one(&from, &to, &from.bytes());
        outcome.destination.unwrap();
    }
}

#[test]
fn a_page_that_the_log_forgets_is_found_by_asking_as_well() {
    if !is_possible() {
        return;
    }
    let fault = FaultPlan { boundary: Boundary::SourceDigest, action: Action::Cut };
    let (from, to) = (restless().forgetting(77), TestVm::empty());
    let destination = Arc::new(Monitor::new());
    let source = impatient_until(Some(fault), has_the_guest(&destination));
    let error = migrate(&from, &to, &source, &destination).source.unwrap_err();
    assert!(matches!(error, MigrateError::MemoryDigest { .. }), "{error}");
    assert!(to.runs() && !from.runs() && from.has_moved());
    assert_eq!(source.phase(), Phase::Completed);
}

#[test]
fn a_destination_without_postcopy_is_found_out_at_once() {
    let (from, to) = (restless(), TestVm::empty());
    let monitor = Monitor::new();
    assert_eq!(monitor.start_postcopy(), Err(MonitorError::NotRunning));
    if !is_possible() {
        monitor.set_capabilities([("postcopy-ram", true)]).unwrap();
        let error = migrate(&from, &to, &monitor, &Monitor::new()).source.unwrap_err();
        assert!(error.to_string().contains("docs/postcopy.md"), "{error}");
        assert!(from.runs());
    }
}
