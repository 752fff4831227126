//! Every boundary with every fault that a process survives: exactly one side runs the guest, with all its bytes.

use super::fixture::{Burst, TestVm, assert_exactly_one, migrate};
use crate::migrate::{Action, Boundary, FaultPlan, Monitor};

fn bursts() -> Vec<Burst> {
    (0..3_u8).map(|byte| (0..40).map(|page| (page * 11, byte + 1)).collect()).collect()
}

fn check(boundary: Boundary, action: Action, capabilities: &[(&str, bool)]) {
    let fault = Some(FaultPlan { boundary, action });
    let (source, destination) = if boundary.is_source() {
        (Monitor::new().with_fault(fault), Monitor::new())
    } else {
        (Monitor::new(), Monitor::new().with_fault(fault))
    };
    source.set_capabilities(capabilities.iter().copied()).unwrap();
    let (from, to) = (TestVm::with_guest().writing(bursts()), TestVm::empty());
    let outcome = migrate(&from, &to, &source, &destination);
    let outcome_is_good = outcome.source.is_ok();
    let what =
        format!("{boundary}={action}: source {:?}, destination {:?}", outcome.source.err(), outcome.destination.err());
    println!("{what}");
    assert_exactly_one(&from, &to, &from.bytes());
    // With nothing to cut yet, it succeeds.
    if !boundary.is_committed() && !outcome_is_good {
        assert!(from.runs(), "{what}: nothing was committed");
    }
    if from.runs() {
        let second = TestVm::empty();
        let again = migrate(&from, &second, &Monitor::new(), &Monitor::new());
        again.source.unwrap_or_else(|error| panic!("{what}: the second migration failed: {error}"));
        assert_exactly_one(&from, &second, &from.bytes());
    }
}

#[test]
fn a_connection_that_is_cut_at_any_boundary_leaves_one_guest() {
    Boundary::ALL.into_iter().for_each(|boundary| check(boundary, Action::Cut, &[]));
}

#[test]
fn a_step_that_fails_at_any_boundary_leaves_one_guest() {
    Boundary::ALL.into_iter().for_each(|boundary| check(boundary, Action::Fail, &[]));
}

#[test]
fn a_full_disk_at_any_boundary_leaves_one_guest() {
    Boundary::ALL.into_iter().for_each(|boundary| check(boundary, Action::DiskFull, &[]));
}

#[test]
fn side_by_side_channels_that_are_cut_or_fail_leave_one_guest() {
    for boundary in Boundary::ALL {
        check(boundary, Action::Cut, &[("multifd", true)]);
        check(boundary, Action::Fail, &[("multifd", true)]);
    }
}
