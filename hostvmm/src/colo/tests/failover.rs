//! Either side lost at every step: exactly one goes on, what it is is whole, and everything was seen once.

use std::thread;

use super::fixture::{Both, Pair, TestVm, monitor, quick};
use crate::colo::outlet::{JsonLines, OwnOutlet};
use crate::colo::{
    ColoBoundary, ColoError, ColoFault, ColoPhase, Ending, ExitReason, Peer, Side, Voice, protect, shadow,
};
use crate::migrate::Action;
use crate::migrate::transport::{Listener, Uri};

impl std::fmt::Debug for Both {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "primary {:?}, secondary {:?}", self.primary, self.secondary)
    }
}

/// Exactly one goes on, with all of its memory.
fn assert_one(pair: &Pair, both: &Both, what: &str) {
    let is_alone = |ending: Ending| matches!(ending, Ending::Alone { .. });
    assert_ne!(is_alone(both.primary.ending), is_alone(both.secondary.ending), "{what}: {both:?}");
    assert_eq!(pair.primary.runs(), is_alone(both.primary.ending), "{what}: {both:?}");
    assert_eq!(pair.secondary.runs(), is_alone(both.secondary.ending), "{what}: {both:?}");
    let (survivor, side, other) = if pair.primary.runs() {
        (&pair.primary, Side::Primary, &pair.secondary)
    } else {
        (&pair.secondary, Side::Secondary, &pair.primary)
    };
    assert_eq!(survivor.survived(), Some(side), "{what}");
    assert!(!survivor.is_fenced() && other.is_fenced(), "{what}: {both:?}");
    survivor.check();
    pair.world.check(0);
}

#[test]
fn a_channel_cut_at_any_boundary_leaves_exactly_one() {
    for boundary in ColoBoundary::ALL {
        for checkpoint in [1, 3] {
            let mut pair = Pair::new(Some([b'a', b'b']), &quick());
            let plan = ColoFault { boundary, action: Action::Cut, checkpoint };
            let fault = Some(plan);
            if boundary.is_primary() {
                pair.primary_monitor = monitor(&quick()).with_faults(fault, None);
            } else {
                pair.secondary_monitor = monitor(&quick()).with_faults(fault, None);
            }
            let both = pair.run(|_| ());
            assert_one(&pair, &both, &plan.to_string());
        }
    }
}

#[test]
fn a_step_that_fails_leaves_a_pair_or_exactly_one() {
    for boundary in ColoBoundary::ALL {
        let mut pair = Pair::new(None, &quick());
        let fault = Some(ColoFault { boundary, action: Action::Fail, checkpoint: 2 });
        if boundary.is_primary() {
            pair.primary_monitor = monitor(&quick()).with_faults(fault, None);
        } else {
            pair.secondary_monitor = monitor(&quick()).with_faults(fault, None);
        }
        let both = pair.run(|pair| {
            let has_ended = |phase| matches!(phase, ColoPhase::Alone | ColoPhase::Fenced);
            let phase = pair.primary_monitor.wait_until(|info| info.checkpoint >= 4 || has_ended(info.phase));
            if !has_ended(phase) {
                // It was tried again.
                assert!(pair.primary_monitor.info().abandoned > 0 || boundary == ColoBoundary::SecondaryResumed);
                let _ = pair.secondary_monitor.stop();
            }
        });
        let alone = matches!(both.primary.ending, Ending::Alone { .. });
        if both.secondary.ending == Ending::Stopped {
            assert!(alone, "{boundary}: {both:?}");
            pair.primary.check();
        } else {
            assert_one(&pair, &both, boundary.name());
        }
    }
}

#[test]
fn a_primary_that_stands_still_is_replaced_by_its_secondary() {
    let pair = Pair::new(None, &quick());
    let both = pair.run(|pair| {
        pair.primary_monitor.wait_until(|info| info.checkpoint >= 3);
        pair.primary_monitor.stop().unwrap();
    });
    assert_eq!(both.primary.ending, Ending::Stopped);
    assert_eq!(both.secondary.ending, Ending::Alone { epoch: 2 });
    assert!(pair.secondary.runs() && !pair.primary.runs());
    assert_eq!(pair.secondary_monitor.status().reason, ExitReason::Error);
    pair.secondary.check();
    pair.world.check(1);
}

#[test]
fn a_primary_that_is_refused_at_a_commit_never_runs_again() {
    // Guests that never say the same: everything is delivered at a commit.
    let pair = Pair::new(Some([b'a', b'b']), &quick());
    let both = pair.run(|pair| {
        pair.primary_monitor.wait_until(|info| info.accepted >= 1);
        pair.world.hand_to_secondary();
    });
    assert_eq!(both.primary.ending, Ending::Fenced, "{both:?}");
    assert_one(&pair, &both, "refused");
}

#[test]
fn a_secondary_without_a_checkpoint_takes_over_nothing() {
    let parameters = quick();
    let mut pair = Pair::new(None, &parameters);
    let fault = ColoFault { boundary: ColoBoundary::SecondaryRequested, action: Action::Cut, checkpoint: 1 };
    pair.secondary_monitor = monitor(&parameters).with_faults(Some(fault), None);
    let both = pair.run(|_| ());
    assert_eq!(both.primary.ending, Ending::Alone { epoch: 1 }, "no claim is needed");
    assert_eq!(both.secondary.ending, Ending::Discarded);
}

#[test]
fn who_cannot_reach_the_outlet_stands_still_until_it_can() {
    let pair = Pair::new(None, &quick());
    let both = pair.run(|pair| {
        pair.primary_monitor.wait_until(|info| info.checkpoint >= 2);
        pair.world.set_away(true);
        pair.primary_monitor.lost_heartbeat().unwrap();
        for monitor in [&pair.primary_monitor, &pair.secondary_monitor] {
            monitor.wait_until(|info| info.phase == ColoPhase::Claiming);
        }
        assert!(!pair.primary.runs() && !pair.secondary.runs());
        pair.world.set_away(false);
    });
    assert_one(&pair, &both, "away");
}

#[test]
fn without_an_arbiter_an_operator_decides() {
    let pair = Pair::new(None, &quick());
    let outlet = || OwnOutlet::new(Box::new(JsonLines::new(std::io::sink())));
    let voices = [(); 2].map(|()| Voice::new(Box::new(outlet()), false, 5));
    let both = pair.run_with(voices, |pair| {
        pair.primary_monitor.wait_until(|info| info.checkpoint >= 2);
        pair.primary_monitor.stop().unwrap();
        pair.secondary_monitor.wait_until(|info| info.phase == ColoPhase::Claiming);
        assert!(!pair.secondary.runs());
        pair.secondary_monitor.lost_heartbeat().unwrap();
    });
    assert_eq!(both.secondary.ending, Ending::Alone { epoch: 2 }, "{both:?}");
    assert_eq!(pair.secondary_monitor.status().reason, ExitReason::Request);
    pair.secondary.check();
}

#[test]
fn a_survivor_is_protected_again_and_may_be_replaced_once_more() {
    let (pair, third_vm) = (Pair::new(None, &quick()), TestVm::new(None));
    let (first, third) = (&pair, &third_vm);
    let (mut voices, directory) = ([first.world.voice(), first.world.voice()], tempfile::tempdir().unwrap());
    let third_monitor = monitor(&quick());
    let mut third_voice = first.world.voice();
    let bind = |name| {
        let uri = Uri::Unix(directory.path().join(name));
        (Listener::bind(&uri, None).unwrap(), Peer { uri, tls: None })
    };
    let [ours, theirs] = &mut voices;
    first.primary.start();
    thread::scope(|scope| {
        for vm in [&first.primary, &first.secondary, third] {
            scope.spawn(|| vm.execute());
        }
        let (listener, peer) = bind("first");
        let secondary = scope.spawn(|| {
            let outcome = shadow(&first.secondary, listener, theirs, &first.secondary_monitor);
            assert_eq!(outcome.ending, Ending::Alone { epoch: 2 });
            let (listener, peer) = bind("second");
            let third_side = scope.spawn(|| shadow(third, listener, &mut third_voice, &third_monitor));
            let outcome = protect(&first.secondary, &peer, theirs, &first.secondary_monitor);
            assert_eq!(outcome.ending, Ending::Stopped, "{outcome:?}");
            third_side.join().unwrap()
        });
        let primary = scope.spawn(move || protect(&first.primary, &peer, ours, &first.primary_monitor));
        first.primary_monitor.wait_until(|info| info.checkpoint >= 2);
        first.primary_monitor.stop().unwrap();
        primary.join().unwrap();
        third_monitor.wait_until(|info| info.checkpoint >= 2);
        first.secondary_monitor.stop().unwrap();
        let outcome = secondary.join().unwrap();
        assert_eq!(outcome.ending, Ending::Alone { epoch: 3 }, "{outcome:?}");
        assert!(third.runs() && !first.secondary.runs());
        [&first.primary, &first.secondary, third].into_iter().for_each(TestVm::end);
    });
    third.check();
    first.world.check(1);
}

#[test]
fn a_guest_that_cannot_be_protected_runs_on() {
    let pair = Pair::new(None, &quick());
    pair.world.set_away(true);
    let both = pair.run(|pair| {
        pair.primary_monitor.wait_until(|info| info.phase == ColoPhase::Alone);
        // It may not have begun to wait yet.
        pair.secondary_monitor.wait_until(|info| info.phase == ColoPhase::Setup);
        pair.secondary_monitor.stop().unwrap();
    });
    assert!(matches!(both.primary.error, Some(ColoError::Outlet(_))), "{both:?}");
    assert!(pair.primary.runs(), "a guest that cannot be protected runs on");
    assert_eq!(both.secondary.ending, Ending::Discarded);
}
