//! Migrations that are called off beside a destination that has fallen silent, and threads that panic: the guest runs on at
//! once, with everything that it had.

use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::thread;

use serde_json::json;

use super::fixture::{Burst, TestVm, migrate, migrate_by};
use super::hostile::{honest, read, welcome};
use crate::memory::SlotId;
use crate::migrate::transport::Uri;
use crate::migrate::wire::{FrameDecoder, FrameEncoder, Message, Tag};
use crate::migrate::{Action, Boundary, Change, FaultPlan, MigrateError, Monitor, Phase, send};

/// No test waits so long: what is to end at once would not end.
const FOR_EVER_MS: u64 = 3_600_000;

fn restless() -> TestVm {
    TestVm::with_guest().writing((0..50_u8).map(|byte| -> Burst { (0..300).map(|page| (page, byte + 1)).collect() }))
}

/// A monitor whose migration waits for ever, of `vm`'s guest, which is seen to run before anybody is told that it was cancelled.
fn patient(vm: &Arc<TestVm>) -> Monitor {
    let seen = Arc::downgrade(vm);
    let monitor = Monitor::new().watched(move |change| {
        if change == Change::Phase(Phase::Cancelled) {
            let vm = seen.upgrade().unwrap();
            assert!(vm.runs());
            vm.assert_healthy();
        }
    });
    let for_ever = json!(FOR_EVER_MS);
    monitor.set_parameters([("x-switchover-timeout", &for_ever), ("x-silence-timeout", &for_ever)]).unwrap();
    monitor
}

/// Waits until the other side has hung up, and reads nothing meanwhile.
fn take_nothing(stream: &UnixStream) {
    let mut polled = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::RDHUP)];
    rustix::event::poll(&mut polled, None).unwrap();
}

/// Cancels at the moment when the destination, which is honest until then, has read the `count`th `tag` and will neither read nor say
/// anything more.
fn cancelled_at(tag: Tag, count: usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let vm = Arc::new(restless());
    let monitor = patient(&vm);
    let before = vm.bytes().len();
    let error = thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            welcome(&mut stream);
            let (mut decoder, mut encoder) = (FrameDecoder::new(), FrameEncoder::new());
            let mut left = count;
            loop {
                let message = read(&mut stream, &mut decoder).expect("it does not end by itself");
                left -= usize::from(message.tag() == tag);
                if left == 0 {
                    break;
                }
                honest(&message).iter().for_each(|answer| stream.write_all(&encoder.frame(answer)).unwrap());
            }
            monitor.cancel().unwrap();
            take_nothing(&stream);
        });
        send(vm.as_ref(), &Uri::Unix(path.clone()), &monitor).unwrap_err()
    });
    assert!(matches!(error, MigrateError::Cancelled(_)), "{tag}: {error}");
    assert_eq!(monitor.phase(), Phase::Cancelled);
    assert!(vm.runs() && vm.bytes().len() == before);
    vm.assert_healthy();
    let second = TestVm::empty();
    migrate(&vm, &second, &Monitor::new(), &Monitor::new()).source.unwrap();
    assert!(second.bytes() == vm.bytes(), "{tag}: bytes were lost");
}

#[test]
fn a_cancel_waits_for_no_destination_that_has_fallen_silent_whatever_the_step() {
    for (tag, count) in [
        (Tag::Offer, 1),
        (Tag::Pages, 1),
        (Tag::PassEnd, 1),
        (Tag::PassEnd, 2),
        (Tag::Stopped, 1),
        (Tag::Section, 1),
        (Tag::Digest, 1),
    ] {
        cancelled_at(tag, count);
    }
}

#[test]
fn a_cancel_waits_for_no_page_channel_that_takes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let vm = Arc::new(restless());
    let monitor = patient(&vm);
    monitor.set_capabilities([("multifd", true)]).unwrap();
    let channels = monitor.parameters().multifd_channels;
    let error = thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            welcome(&mut stream);
            let offer = read(&mut stream, &mut FrameDecoder::new()).unwrap();
            let mut encoder = FrameEncoder::new();
            honest(&offer).iter().for_each(|answer| stream.write_all(&encoder.frame(answer)).unwrap());
            let page_channels: Vec<_> = (0..channels)
                .map(|_| {
                    let (mut stream, _) = listener.accept().unwrap();
                    welcome(&mut stream);
                    stream
                })
                .collect();
            monitor.cancel().unwrap();
            take_nothing(&stream);
            page_channels.iter().for_each(take_nothing);
        });
        send(vm.as_ref(), &Uri::Unix(path.clone()), &monitor).unwrap_err()
    });
    assert!(matches!(error, MigrateError::Cancelled(_)), "{error}");
    assert!(vm.runs());
    vm.assert_healthy();
}

#[test]
fn a_destination_that_listens_is_told_of_the_cancel() {
    let (vm, to) = (Arc::new(restless()), TestVm::empty());
    let monitor = Arc::new_cyclic(|weak: &Weak<Monitor>| {
        let weak = weak.clone();
        Monitor::new().watched(move |change| {
            if change == Change::Phase(Phase::Device) {
                weak.upgrade().unwrap().cancel().unwrap();
            }
        })
    });
    let outcome = migrate(&vm, &to, &monitor, &Monitor::new());
    assert!(matches!(outcome.source, Err(MigrateError::Cancelled(_))));
    let told = outcome.destination.unwrap_err();
    assert!(matches!(&told, MigrateError::Source { text } if text.as_str().contains("cancelled")), "{told}");
    vm.assert_healthy();
}

/// A monitor whose watcher panics as `phase` is entered.
fn panicking_at(phase: Phase) -> Monitor {
    Monitor::new().watched(move |change| assert!(change != Change::Phase(phase), "a planted panic"))
}

#[test]
fn a_source_that_panics_leaves_its_guest_running_and_no_migration_under_way() {
    for phase in [Phase::Active, Phase::Device] {
        let (from, to) = (restless(), TestVm::empty());
        let (source, destination) = (panicking_at(phase), Monitor::new());
        let moved = std::panic::catch_unwind(AssertUnwindSafe(|| migrate(&from, &to, &source, &destination)));
        assert!(moved.is_err(), "the panic is told");
        assert_eq!(source.phase(), Phase::Failed);
        assert!(source.info().error_desc.unwrap().contains("panicked"));
        assert!(from.runs() && !to.runs());
        if phase == Phase::Device {
            from.assert_healthy();
        }
    }
}

#[test]
fn a_destination_that_panics_beside_page_channels_ends_them_and_the_source_goes_on() {
    let (from, to) = (Arc::new(restless()), TestVm::empty());
    let (source, destination) = (patient(&from), panicking_at(Phase::Device));
    source.set_capabilities([("multifd", true)]).unwrap();
    let moved = std::panic::catch_unwind(AssertUnwindSafe(|| migrate(&from, &to, &source, &destination)));
    assert!(moved.is_err(), "the panic is told");
    assert_eq!((source.phase(), destination.phase()), (Phase::Failed, Phase::Failed));
    assert!(from.runs() && !to.runs());
    from.assert_healthy();
}

#[test]
fn requests_without_end_are_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let vm = restless();
    let monitor = Arc::new_cyclic(|weak: &Weak<Monitor>| {
        let weak = weak.clone();
        Monitor::new().watched(move |change| {
            if change == Change::Pass(1) {
                weak.upgrade().unwrap().start_postcopy().unwrap();
            }
        })
    });
    monitor.set_parameters([("downtime-limit", &json!(0)), ("x-switchover-timeout", &json!(2_000))]).unwrap();
    monitor.set_capabilities([("postcopy-ram", true)]).unwrap();
    let error = thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Nobody answers who asks later what has become of the guest.
            drop(listener);
            welcome(&mut stream);
            let (mut decoder, mut encoder) = (FrameDecoder::new(), FrameEncoder::new());
            loop {
                let message = read(&mut stream, &mut decoder).unwrap();
                let answers = match &message {
                    Message::Digest(None) => vec![super::hostile::loaded_without_digests()],
                    Message::PostcopyRun => break,
                    other => honest(other),
                };
                answers.iter().for_each(|answer| stream.write_all(&encoder.frame(answer)).unwrap());
            }
            let reader = stream.try_clone().unwrap();
            thread::scope(|scope| {
                // Whatever comes is taken.
                scope.spawn(move || std::io::copy(&mut { reader }, &mut std::io::sink()));
                let request = Message::PageRequest { slot: SlotId::Region, page: 3 };
                while stream.write_all(&encoder.frame(&request)).is_ok() {}
            });
        });
        send(&vm, &Uri::Unix(path.clone()), &monitor).unwrap_err()
    });
    assert!(matches!(error, MigrateError::TakenBack { .. }), "{error}");
    assert!(vm.runs());
}

/// Moves a guest by `uri` to a destination that lets it run and then is gone, before it could say so.
fn to_a_destination_that_vanishes(uri: &Uri, path: &std::path::Path) -> (MigrateError, TestVm, TestVm) {
    let (from, to) = (TestVm::with_guest(), TestVm::empty());
    let path = path.to_owned();
    let destination = Monitor::new()
        .with_fault(Some(FaultPlan { boundary: Boundary::DestinationResumed, action: Action::Fail }))
        .watched(move |change| {
            if change == Change::Phase(Phase::Completed) {
                // Nobody finds it any more.
                std::fs::remove_file(&path).unwrap();
            }
        });
    let outcome = migrate_by(uri, &from, &to, &Monitor::new(), &destination);
    (outcome.source.unwrap_err(), from, to)
}

#[test]
fn a_guest_that_ran_on_shared_memory_is_not_taken_back_with_an_older_state() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let uri = format!("fd:{}", path.display()).parse().unwrap();
    let (error, from, to) = to_a_destination_that_vanishes(&uri, &path);
    assert!(matches!(error, MigrateError::SharedLost { .. }), "{error}");
    assert!(to.runs() && !from.runs() && !from.has_moved());
}

#[test]
fn a_guest_whose_copy_ran_and_is_gone_is_taken_back_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (error, from, _) = to_a_destination_that_vanishes(&Uri::Unix(path.clone()), &path);
    assert!(matches!(error, MigrateError::TakenBack { .. }), "{error}");
    assert!(from.runs());
}

#[test]
fn a_destination_of_shared_memory_that_never_ran_the_guest_gives_it_back() {
    let directory = tempfile::tempdir().unwrap();
    let uri = format!("fd:{}", directory.path().join("socket").display()).parse().unwrap();
    let (from, to) = (TestVm::with_guest(), TestVm::empty());
    let fault = FaultPlan { boundary: Boundary::DestinationCommitted, action: Action::Fail };
    let outcome = migrate_by(&uri, &from, &to, &Monitor::new(), &Monitor::new().with_fault(Some(fault)));
    assert!(matches!(outcome.source, Err(MigrateError::TakenBack { .. })));
    assert!(from.runs() && !to.runs());
}
