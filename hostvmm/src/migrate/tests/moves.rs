//! Migrations that go well, and those that are cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use super::fixture::{Burst, TestVm, assert_exactly_one, migrate, migrate_by, region_page};
use crate::migrate::transport::{Listener, Uri};
use crate::migrate::{
    Action, Boundary, Change, DigestMode, FaultPlan, Inbound, MigrateError, Monitor, Phase, receive, send,
};

/// A monitor that stops the guest only with nothing left to send.
fn patient() -> Monitor {
    with(&[("downtime-limit", json!(0))])
}

fn with(parameters: &[(&str, serde_json::Value)]) -> Monitor {
    let monitor = Monitor::new();
    monitor.set_parameters(parameters.iter().map(|(name, value)| (*name, value))).unwrap();
    monitor
}

fn burst(pages: impl IntoIterator<Item = u64>, byte: u8) -> Burst {
    pages.into_iter().map(|page| (page, byte)).collect()
}

#[test]
fn a_guest_that_writes_moves_with_all_its_bytes() {
    let from = TestVm::with_guest().writing([burst(0..300, 5), burst(10..20, 6), burst([3, 500], 0), burst([511], 9)]);
    let to = TestVm::empty();
    let (source, destination) = (patient(), Monitor::new());
    let outcome = migrate(&from, &to, &source, &destination);
    let (sent, received) = (outcome.source.unwrap(), outcome.destination.unwrap());
    assert!(to.runs() && !from.runs() && from.has_moved());
    assert_exactly_one(&from, &to, &from.bytes());
    assert_eq!((sent.status, received.status), (Phase::Completed, Phase::Completed));
    assert_eq!(sent.passes.len(), 6, "four bursts, each a pass, between the first and the last");
    assert!(sent.passes.last().unwrap().stopped && sent.passes.last().unwrap().pages == 0);
    assert_eq!(sent.passes.iter().map(|pass| pass.pages).skip(1).collect::<Vec<_>>(), [300, 10, 2, 1, 0]);
    let digest = sent.digest.unwrap();
    assert!(digest.equal && digest.source == digest.destination && digest.source == received.digest.unwrap().source);
    assert_eq!(digest.passes, 6);
    let split = sent.downtime_split.unwrap();
    let parts =
        split.final_pass_ns + split.state_ns + split.digest_ns + split.transfer_ns + split.verify_ns + split.load_ns;
    let apart_ns = (parts + split.resume_ns).abs_diff(split.total_ns);
    assert!(apart_ns <= split.uncertainty_ns, "the parts follow each other, as far as the clocks are known: {split:?}");
    let ram = sent.ram.unwrap();
    assert_eq!(ram.normal + ram.duplicate, 1024 + 313);
    assert_eq!(ram.remaining, 0);
}

#[test]
fn what_is_left_within_the_limit_is_sent_with_the_guest_stopped() {
    let from = TestVm::with_guest().writing([burst(0..5, 5), burst(3..5, 7)]);
    let to = TestVm::empty();
    let outcome = migrate(&from, &to, &with(&[("downtime-limit", json!(60_000))]), &Monitor::new());
    let sent = outcome.source.unwrap();
    assert_eq!(sent.passes.len(), 2);
    assert_eq!(sent.passes[1].pages, 5, "so few that no pass more pays, however slow the host is");
    let estimate = sent.estimate.unwrap();
    assert_eq!(estimate.passes, Some(2), "as it was foretold");
    assert_exactly_one(&from, &to, &from.bytes());
}

#[test]
fn every_way_to_send_pages_moves_the_same_bytes() {
    type Way<'a> = (&'a [(&'a str, serde_json::Value)], &'a [(&'a str, bool)]);
    let ways: [Way<'_>; 6] = [
        (&[("x-digest", json!("deferred"))], &[]),
        (&[("multifd-channels", json!(3))], &[("multifd", true)]),
        (&[("multifd-compression", json!("zstd"))], &[]),
        (&[("xbzrle-cache-size", json!(1 << 20))], &[("xbzrle", true)]),
        (&[("max-bandwidth", json!(200 << 20))], &[]),
        (
            &[("multifd-compression", json!("zstd")), ("multifd-channels", json!(16)), ("x-digest", json!("deferred"))],
            &[("multifd", true), ("xbzrle", true)],
        ),
    ];
    for (parameters, capabilities) in ways {
        let bursts = (0..9_u8).map(|byte| burst(u64::from(byte) * 17..300, byte));
        let from = TestVm::with_guest().writing(bursts);
        let to = TestVm::empty();
        let source = patient();
        source.set_parameters(parameters.iter().map(|(name, value)| (*name, value))).unwrap();
        source.set_capabilities(capabilities.iter().copied()).unwrap();
        let outcome = migrate(&from, &to, &source, &Monitor::new());
        let sent = outcome.source.unwrap_or_else(|error| panic!("{parameters:?} {capabilities:?}: {error}"));
        outcome.destination.unwrap();
        assert_exactly_one(&from, &to, &from.bytes());
        let ram = sent.ram.unwrap();
        if capabilities.contains(&("multifd", true)) {
            assert!(ram.multifd_bytes > 0);
        } else {
            assert_eq!(ram.multifd_bytes, 0);
        }
    }
}

#[test]
fn memory_is_handed_over_without_a_copy() {
    for mode in ["full", "deferred"] {
        let directory = tempfile::tempdir().unwrap();
        let uri: Uri = format!("fd:{}", directory.path().join("socket").display()).parse().unwrap();
        let (from, to) = (TestVm::with_guest(), TestVm::empty());
        let before = from.bytes();
        let outcome = migrate_by(&uri, &from, &to, &with(&[("x-digest", json!(mode))]), &Monitor::new());
        let sent = outcome.source.unwrap();
        outcome.destination.unwrap();
        assert_exactly_one(&from, &to, &before);
        assert_eq!((sent.passes.len(), from.harvests()), (0, 0));
        assert!(sent.digest.unwrap().equal);
    }
}

#[test]
fn a_guest_is_saved_to_a_file_and_runs_on_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let uri: Uri = format!("file:{},offset=65536", path.display()).parse().unwrap();
    let from = TestVm::with_guest().writing([burst(0..300, 5), burst(10..20, 6), burst([511], 9)]);
    let sent = send(&from, &uri, &patient()).unwrap();
    assert!(from.has_moved() && !from.runs());
    assert_eq!((sent.status, sent.passes.len()), (Phase::Completed, 5));
    let (to, monitor) = (TestVm::empty(), Monitor::new());
    assert!(!from.is_loaded_elsewhere());
    let received = receive(&to, Inbound::open(&uri, None).unwrap(), &monitor).unwrap();
    assert!(from.is_loaded_elsewhere(), "for as long as that machine lives");
    drop(monitor);
    assert!(!from.is_loaded_elsewhere());
    assert_exactly_one(&from, &to, &from.bytes());
    assert_eq!(received.digest.unwrap().source, sent.digest.unwrap().source);
    let missing = Uri::File { path: directory.path().join("none"), offset: 0 };
    let error = receive(&TestVm::empty(), Inbound::open(&missing, None).unwrap(), &Monitor::new()).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn a_save_that_fails_leaves_the_guest_running() {
    let directory = tempfile::tempdir().unwrap();
    let uri = Uri::File { path: directory.path().join("guest"), offset: 0 };
    for boundary in Boundary::ALL.into_iter().filter(|boundary| boundary.is_source() && !boundary.is_committed()) {
        let fault = FaultPlan { boundary, action: Action::DiskFull };
        let from = TestVm::with_guest();
        let result = send(&from, &uri, &Monitor::new().with_fault(Some(fault)));
        if boundary < Boundary::SourceLoaded {
            assert!(result.is_err(), "{boundary}");
            assert!(from.runs());
            from.assert_healthy();
            assert!(receive(&TestVm::empty(), Inbound::open(&uri, None).unwrap(), &Monitor::new()).is_err());
        }
    }
}

#[test]
fn a_guest_goes_on_from_host_to_host() {
    let mut from = TestVm::with_guest();
    let before = from.bytes();
    for _ in 0..5 {
        let to = TestVm::empty();
        let outcome = migrate(&from, &to, &Monitor::new(), &Monitor::new());
        outcome.source.unwrap();
        outcome.destination.unwrap();
        assert_exactly_one(&from, &to, &before);
        from = to;
    }
}

#[test]
fn a_thread_that_writes_all_the_time_loses_nothing() {
    let (from, to) = (TestVm::with_guest(), TestVm::empty());
    let ends = AtomicBool::new(false);
    let (source, destination) = (with(&[("downtime-limit", json!(1000))]), Monitor::new());
    source.set_capabilities([("multifd", true)]).unwrap();
    let outcome = thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 1_u64;
            while !ends.load(Ordering::Relaxed) {
                at = at.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                if !from.try_write(at >> 55, (at >> 40) as u8) {
                    thread::yield_now();
                }
            }
        });
        let outcome = migrate(&from, &to, &source, &destination);
        ends.store(true, Ordering::Relaxed);
        outcome
    });
    outcome.source.unwrap();
    outcome.destination.unwrap();
    assert_exactly_one(&from, &to, &from.bytes());
}

#[test]
fn a_guest_that_dirties_too_fast_is_throttled_until_it_does_not() {
    let many = (0..7_u8).map(|byte| burst(0..512, byte + 1));
    let from = TestVm::with_guest().writing(many);
    let to = TestVm::empty();
    let source = patient();
    source.set_capabilities([("auto-converge", true)]).unwrap();
    migrate(&from, &to, &source, &Monitor::new()).source.unwrap();
    assert_eq!(from.throttles(), [20, 30, 40, 0], "every second pass, and nothing is left of it");
}

#[test]
fn the_limit_holds_for_a_guest_that_writes_just_before_it_stops() {
    // Nothing to send, so it is stopped; then it turns out to have written. It runs on, and is stopped when it is quiet.
    let from = TestVm::with_guest().writing([burst([], 0), burst(0..5, 3)]);
    let late = Arc::new(from);
    let to = TestVm::empty();
    late.write_at_pause(burst(100..400, 8));
    let outcome = migrate(&late, &to, &patient(), &Monitor::new());
    let sent = outcome.source.unwrap();
    assert!(sent.passes.iter().any(|pass| !pass.stopped && pass.pages >= 300), "{:?}", sent.passes);
    assert_exactly_one(&late, &to, &late.bytes());
}

#[test]
fn a_page_that_the_log_forgets_is_named_and_the_guest_stays() {
    let from = TestVm::with_guest().forgetting(77).writing([burst([76, 77, 78], 99)]);
    let to = TestVm::empty();
    let outcome = migrate(&from, &to, &patient(), &Monitor::new());
    // The destination finds it and says so; the source knows which page.
    let error = outcome.source.unwrap_err();
    assert!(error.to_string().contains(&format!("the first at {}", region_page(77))), "{error}");
    let error = outcome.destination.unwrap_err();
    assert!(matches!(error, MigrateError::MemoryDigest { .. }), "{error}");
    assert_exactly_one(&from, &to, &from.bytes());
}

#[test]
fn a_page_that_the_log_forgets_is_found_afterwards_in_deferred_mode() {
    let from = TestVm::with_guest().forgetting(77).writing([burst([76, 77, 78], 99)]);
    let to = TestVm::empty();
    let (source, destination) = (patient(), Monitor::new());
    source.set_parameters([("x-digest", &json!("deferred"))]).unwrap();
    let outcome = migrate(&from, &to, &source, &destination);
    match outcome.source.unwrap_err() {
        MigrateError::MemoryDigest { lost, .. } => {
            let lost = lost.expect("the source looked");
            assert_eq!((lost.first, lost.pages, lost.log.as_str()), (region_page(77), 1, "of the test"));
        }
        other => panic!("{other}"),
    }
    assert!(outcome.destination.unwrap_err().to_string().contains("digest"));
    assert!(to.runs() && !from.runs(), "it was handed over");
    for monitor in [&source, &destination] {
        let info = monitor.info();
        assert_eq!(info.status, Phase::Completed);
        assert!(info.error_desc.is_some());
        let digest = info.digest.unwrap();
        assert!(!digest.equal && digest.mode == DigestMode::Deferred);
    }
}

#[test]
fn a_migration_is_cancelled_at_every_change_that_it_tells() {
    let mut cancelled = 0;
    for at in 1..30 {
        let seen = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let monitor = Arc::new_cyclic(|weak: &std::sync::Weak<Monitor>| {
            let (weak, seen) = (weak.clone(), Arc::clone(&seen));
            patient().watched(move |change| {
                let is_late = matches!(change, Change::Phase(phase) if phase.has_ended());
                if seen.fetch_add(1, Ordering::Relaxed) + 1 == at && !is_late {
                    // On a thread of its own, as the control socket does.
                    let monitor = weak.upgrade().unwrap();
                    let asking = thread::spawn({
                        let monitor = Arc::clone(&monitor);
                        move || {
                            let _ = monitor.cancel();
                        }
                    });
                    while monitor.phase() != Phase::Cancelling && !asking.is_finished() {
                        thread::yield_now();
                    }
                }
            })
        });
        let from = TestVm::with_guest().writing((0..5).map(|byte| burst(0..50, byte)));
        let to = TestVm::empty();
        let outcome = migrate(&from, &to, &monitor, &Monitor::new());
        assert_exactly_one(&from, &to, &from.bytes());
        match outcome.source {
            Ok(_) => assert!(to.runs()),
            Err(error) => {
                assert!(matches!(error, MigrateError::Cancelled(_)), "{error}");
                assert_eq!(monitor.phase(), Phase::Cancelled);
                assert!(outcome.destination.is_err());
                cancelled += 1;
                let second = TestVm::empty();
                migrate(&from, &second, &patient(), &Monitor::new()).source.unwrap();
                assert_exactly_one(&from, &second, &from.bytes());
            }
        }
    }
    assert!(cancelled >= 8, "{cancelled} of the changes came before the commit");
}

/// A monitor that sets `max-bandwidth` to `rate` once pass 0 has begun. At a byte a second nothing comes to its end.
fn paced_anew(rate: u64) -> Arc<Monitor> {
    let monitor = Arc::new_cyclic(|weak: &std::sync::Weak<Monitor>| {
        let weak = weak.clone();
        patient().watched(move |change| {
            if change == Change::Pass(1) {
                weak.upgrade().unwrap().set_parameters([("max-bandwidth", &json!(rate))]).unwrap();
            }
        })
    });
    monitor.set_parameters([("max-bandwidth", &json!(1))]).unwrap();
    monitor
}

#[test]
fn a_bandwidth_that_is_set_while_memory_moves_holds_from_then_on() {
    let (from, to) = (TestVm::with_guest(), TestVm::empty());
    migrate(&from, &to, &paced_anew(0), &Monitor::new()).source.unwrap();
    assert_exactly_one(&from, &to, &from.bytes());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest");
    let vm = TestVm::with_guest();
    send(&vm, &Uri::File { path, offset: 0 }, &paced_anew(0)).unwrap();
}

#[test]
fn a_downtime_limit_that_is_set_while_memory_moves_is_the_one_that_counts() {
    // A guest that always writes is not stopped with a limit of 0; one of half an hour suits it.
    let bursts = (0..200_u8).map(|byte| burst(0..300, byte + 1));
    let (from, to) = (TestVm::with_guest().writing(bursts), TestVm::empty());
    let monitor = Arc::new_cyclic(|weak: &std::sync::Weak<Monitor>| {
        let weak = weak.clone();
        Monitor::new().watched(move |change| {
            if change == Change::Pass(4) {
                weak.upgrade().unwrap().set_parameters([("downtime-limit", &json!(2_000_000))]).unwrap();
            }
        })
    });
    monitor.set_parameters([("downtime-limit", &json!(0))]).unwrap();
    let sent = migrate(&from, &to, &monitor, &Monitor::new()).source.unwrap();
    assert!(sent.passes.last().unwrap().pages >= 300, "it was stopped while it wrote: {:?}", sent.passes.last());
    assert!(sent.passes.len() >= 4);
    assert_exactly_one(&from, &to, &from.bytes());
}

#[test]
fn a_guest_moves_over_commands_on_both_sides() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = directory.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        path
    };
    let (there, back) = (pipe("there"), pipe("back"));
    let command = |input: &std::path::Path, output: &std::path::Path| {
        Uri::Exec(format!("cat <'{}' & exec cat >'{}'", input.display(), output.display()))
    };
    let (from, to) = (TestVm::with_guest().writing([burst(0..40, 5), burst(7..90, 6)]), TestVm::empty());
    let (source, destination) = (patient(), Monitor::new());
    let listener = Listener::bind(&command(&there, &back), None).unwrap();
    let outcome = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&to, listener, &destination));
        let sent = send(&from, &command(&back, &there), &source);
        (sent, receiving.join().unwrap())
    });
    assert_eq!(outcome.0.unwrap().status, Phase::Completed);
    assert_eq!(outcome.1.unwrap().status, Phase::Completed);
    assert_exactly_one(&from, &to, &from.bytes());
}

#[test]
fn a_machine_that_fails_its_part_leaves_the_guest_where_it_was() {
    for what in ["start the log", "harvest", "pause", "save"] {
        let (from, to) = (TestVm::with_guest().failing(what), TestVm::empty());
        let outcome = migrate(&from, &to, &Monitor::new(), &Monitor::new());
        assert!(outcome.source.unwrap_err().to_string().contains(what));
        let told = outcome.destination.unwrap_err().to_string();
        assert!(told.contains(what), "the source says why: {told}");
        assert!(from.runs() && !to.runs());
    }
    for what in ["load", "run"] {
        let (from, to) = (TestVm::with_guest(), TestVm::empty().failing(what));
        let outcome = migrate(&from, &to, &Monitor::new(), &Monitor::new());
        assert!(outcome.source.unwrap_err().to_string().contains(what), "the destination says why");
        assert!(outcome.destination.is_err());
        assert_exactly_one(&from, &to, &from.bytes());
        let second = TestVm::empty();
        migrate(&from, &second, &Monitor::new(), &Monitor::new()).source.unwrap();
    }
}
