//! Tests of [`super::Vcpus`] against scripted vCPUs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use abi::hypercall::{Command, HVC_FUNCTION, Outcome, REG_POINT};
use abi::points::Point;
use abi::{Arch, Gpa, map};

use super::control::Shared;
use super::script::{ScriptVm, Stage};
use super::state::Counters;
use super::{Asked, Event, SliceEnd, Stay, Vcpus, VcpusError, Wait};
use crate::backend::Exit;
use crate::colo::output::StreamId;
use crate::machine::Clock;
use crate::migrate::HostTime;

/// Only reached by a test that has already failed.
const LIVENESS: Duration = Duration::from_secs(20);

fn start(vm: &Arc<ScriptVm>, clock: Clock, vcpus: usize) -> Vcpus {
    let handle: Arc<dyn crate::backend::Vm> = Arc::clone(vm) as _;
    let shared = Shared::with(handle, vm.memory().clone(), "none.elf".into(), Arch::Aarch64, vcpus);
    Vcpus::start_on(Arc::new(shared), clock, vcpus, None).unwrap()
}

fn event(vcpus: &Vcpus) -> Event {
    match vcpus.wait_event(Some(LIVENESS)) {
        Wait::Event(event) => event,
        other => panic!("{other:?}"),
    }
}

fn parked(vcpus: &Vcpus, count: usize) -> Vec<(usize, Outcome)> {
    let mut outcomes: Vec<_> = (0..count)
        .map(|_| match event(vcpus) {
            Event::Parked { vcpu, outcome } => (vcpu, outcome),
            other => panic!("{other:?}"),
        })
        .collect();
    outcomes.sort_by_key(|(vcpu, _)| *vcpu);
    outcomes
}

/// A guest that obeys: says Ready, answers RunSteps by Ran, and turns itself off on Stop.
fn obedient() -> Box<dyn FnMut(&mut Stage<'_>) -> Exit + Send> {
    let mut called = false;
    Box::new(move |stage| {
        if !called {
            called = true;
            let progress = stage.progress_slot();
            return stage.next(Outcome::Ready { progress });
        }
        match stage.command() {
            Command::RunSteps { first, count } => {
                stage.memory.store_u64(stage.progress_slot(), first + count).unwrap();
                let completed = stage.progress_slot().checked_add(8).unwrap();
                stage.memory.store_u64(completed, first + count).unwrap();
                stage.next(Outcome::Ran { next: first + count })
            }
            _ if stage.vcpu == 0 => Exit::SystemOff,
            _ => Exit::CpuOff,
        }
    })
}

fn both_clocks(test: impl Fn(Clock)) {
    test(Clock::Wall);
    test(Clock::Icount);
}

#[test]
fn vcpus_park_are_commanded_and_stop() {
    both_clocks(|clock| {
        let vm = ScriptVm::new(vec![obedient(), obedient(), obedient()]);
        let mut vcpus = start(&vm, clock, 3);
        for (_, outcome) in parked(&vcpus, 3) {
            assert!(matches!(outcome, Outcome::Ready { .. }));
        }
        let command = Command::RunSteps { first: 4, count: 3 };
        vcpus.command_all(&[(0, command), (1, command), (2, command)]).unwrap();
        assert_eq!(parked(&vcpus, 3), (0..3).map(|vcpu| (vcpu, Outcome::Ran { next: 7 })).collect::<Vec<_>>());
        let progress = vcpus.progress(2).unwrap();
        assert_eq!((progress.started, progress.completed), (7, 7));
        vcpus.command_all(&[(0, Command::Stop)]).unwrap();
        assert!(matches!(event(&vcpus), Event::SystemOff));
        vcpus.shutdown();
        assert!(!vm.marked.lock().unwrap().is_empty(), "the host's own writes are told to the dirty log");
    });
}

#[test]
fn a_command_for_a_vcpu_that_does_not_wait_is_refused_and_none_is_given() {
    let vm = ScriptVm::new(vec![obedient(), Box::new(|stage| stage.spin())]);
    let vcpus = start(&vm, Clock::Wall, 2);
    parked(&vcpus, 1);
    let error = vcpus.command_all(&[(0, Command::Stop), (1, Command::Stop)]).unwrap_err();
    assert!(matches!(error, VcpusError::NotParked { vcpu: 1, .. }));
    assert!(matches!(vcpus.command(7, Command::Stop), Err(VcpusError::NotParked { vcpu: 7, .. })));
    assert!(matches!(vcpus.progress(1), Err(VcpusError::NoProgress { vcpu: 1 })));
    vcpus.command(0, Command::Stop).unwrap();
}

#[test]
fn a_guest_in_an_endless_loop_is_paused_resumed_and_shut_down() {
    both_clocks(|clock| {
        let runs = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&runs);
        let spin = move |stage: &mut Stage<'_>| {
            counted.fetch_add(1, Ordering::SeqCst);
            stage.spin()
        };
        let vm = ScriptVm::new(vec![Box::new(spin)]);
        let mut vcpus = start(&vm, clock, 1);
        vcpus.pause();
        let seen = runs.load(Ordering::SeqCst);
        vcpus.pause();
        assert_eq!(runs.load(Ordering::SeqCst), seen, "nothing runs while paused");
        vcpus.resume();
        while runs.load(Ordering::SeqCst) == seen {
            std::thread::yield_now();
        }
        vcpus.shutdown();
    });
}

/// A machine whose vCPU 0 asks to be moved at `asks`, one after the other, and then parks, and whose vCPU 1 spins; its guest is to ask at
/// `allowed`.
fn asking(clock: Clock, asks: Vec<Point>, allowed: u32) -> Vcpus {
    let mut asks = asks.into_iter();
    let ask = move |stage: &mut Stage<'_>| {
        *stage.instructions += 1;
        match asks.next() {
            Some(point) => Exit::MmioWrite {
                gpa: map::DOORBELL_BASE.checked_add(REG_POINT).unwrap(),
                len_bytes: 4,
                data: point.number().into(),
            },
            None => stage.next(Outcome::Ready { progress: stage.progress_slot() }),
        }
    };
    let vm = ScriptVm::new(vec![Box::new(ask), Box::new(|stage| stage.spin())]);
    let handle: Arc<dyn crate::backend::Vm> = Arc::clone(&vm) as _;
    let shared = Shared::with(handle, vm.memory().clone(), "none.elf".into(), Arch::Aarch64, 2);
    Vcpus::start_on(Arc::new(shared.with_points(allowed)), clock, 2, None).unwrap()
}

#[test]
fn a_guest_stands_still_where_it_asks_to_be_moved_until_it_is_resumed() {
    both_clocks(|clock| {
        let asks = vec![Point::Handler, Point::Exclusives];
        let allowed = Point::Handler.bit() | Point::Exclusives.bit();
        let mut vcpus = asking(clock, asks.clone(), allowed);
        for point in asks {
            assert!(matches!(event(&vcpus), Event::Asked));
            assert_eq!(vcpus.asked(), Some(Asked { vcpu: 0, point }));
            vcpus.pause();
            assert!(vcpus.save().is_ok(), "its state is there to be moved");
            assert!(matches!(vcpus.wait_event(Some(Duration::ZERO)), Wait::TimedOut), "it does not go on");
            vcpus.resume();
        }
        parked(&vcpus, 1);
        assert_eq!(vcpus.asked(), None);
        vcpus.shutdown();
    });
}

#[test]
fn a_guest_goes_on_where_it_only_tells_or_was_not_to_ask() {
    both_clocks(|clock| {
        let mut vcpus = asking(clock, vec![Point::Wfi, Point::Workload], Point::Wfi.bit());
        let Event::Diagnostic(line) = event(&vcpus) else { panic!("a store that was not asked for is told") };
        assert!(line.contains("0xc"), "{line}");
        parked(&vcpus, 1);
        vcpus.pause();
        vcpus.resume();
        let told = Some(Asked { vcpu: 0, point: Point::Wfi });
        assert_eq!(vcpus.asked(), told, "it is told for as long as this is the machine");
        vcpus.shutdown();
    });
}

#[test]
fn commands_given_while_paused_start_after_resume() {
    let vm = ScriptVm::new(vec![obedient()]);
    let vcpus = start(&vm, Clock::Wall, 1);
    parked(&vcpus, 1);
    vcpus.pause();
    vcpus.command(0, Command::RunSteps { first: 0, count: 1 }).unwrap();
    assert!(matches!(vcpus.wait_event(Some(Duration::ZERO)), Wait::TimedOut));
    vcpus.resume();
    assert_eq!(parked(&vcpus, 1), [(0, Outcome::Ran { next: 1 })]);
}

#[test]
fn a_slice_executes_exactly_its_instructions_in_turns() {
    let trace = Arc::new(Mutex::new(Vec::new()));
    let spinner = || {
        let trace = Arc::clone(&trace);
        Box::new(move |stage: &mut Stage<'_>| {
            trace.lock().unwrap().push((stage.vcpu, stage.budget.unwrap()));
            stage.spin()
        }) as Box<dyn FnMut(&mut Stage<'_>) -> Exit + Send>
    };
    let vm = ScriptVm::new(vec![spinner(), spinner()]);
    let handle: Arc<dyn crate::backend::Vm> = Arc::clone(&vm) as _;
    let shared = Arc::new(Shared::with(handle, vm.memory().clone(), "none.elf".into(), Arch::Aarch64, 2));
    shared.lock().paused = true;
    let mut vcpus = Vcpus::start_on(shared, Clock::Icount, 2, None).unwrap();
    assert_eq!(vcpus.run_slice(4_000).unwrap(), SliceEnd::Instructions);
    assert_eq!(vcpus.run_slice(18_000).unwrap(), SliceEnd::Instructions);
    vcpus.shutdown();
    let trace = trace.lock().unwrap();
    let executed = |vcpu| trace.iter().filter(|turn| turn.0 == vcpu).map(|turn| turn.1).sum::<u64>();
    assert_eq!((executed(0), executed(1)), (12_000, 10_000), "{trace:?}");
}

#[test]
fn a_slice_ends_early_when_every_vcpu_is_parked_or_idle() {
    let vm = ScriptVm::new(vec![obedient(), Box::new(|stage| stage.wait_for_interrupt())]);
    vm.warps_left.store(3, Ordering::SeqCst);
    let vcpus = start(&vm, Clock::Icount, 2);
    assert_eq!(vcpus.run_slice(1_000_000).unwrap(), SliceEnd::Quiescent);
    assert_eq!(vm.warps_left.load(Ordering::SeqCst), 0, "time was let to jump first");
    parked(&vcpus, 1);
    assert!(matches!(
        start(&ScriptVm::new(vec![obedient()]), Clock::Wall, 1).run_slice(1),
        Err(VcpusError::NeedsIcount)
    ));
}

#[test]
fn waits_are_interrupted_from_another_thread() {
    let vm = ScriptVm::new(vec![Box::new(|stage: &mut Stage<'_>| stage.spin())]);
    let vcpus = start(&vm, Clock::Icount, 1);
    let interrupter = vcpus.interrupter();
    let thread = std::thread::spawn(move || interrupter.interrupt());
    assert!(matches!(vcpus.wait_event(Some(LIVENESS)), Wait::Interrupted));
    thread.join().unwrap();
    vcpus.interrupter().interrupt();
    assert!(matches!(vcpus.run_slice(u64::MAX), Err(VcpusError::Interrupted)));
}

#[test]
fn a_flood_of_nonsense_is_answered_and_logged_with_a_bound() {
    both_clocks(|clock| {
        let mut call = 0u64;
        let hostile = move |stage: &mut Stage<'_>| {
            call += 1;
            *stage.instructions += 1;
            let wild = Gpa::new(call.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0xff_ffff_ffff);
            match (call, call % 4) {
                (10_001, _) => Exit::SystemOff,
                (_, 0) => Exit::MmioRead { gpa: wild, len_bytes: 8 },
                (_, 1) => Exit::MmioWrite { gpa: wild, len_bytes: 8, data: call },
                (_, 2) => {
                    let gpa = Gpa::new(map::DOORBELL_BASE.raw() + 8);
                    Exit::MmioWrite { gpa, len_bytes: 4, data: wild.raw() & 0xffff_ffff }
                }
                _ => Exit::Hvc { function: u64::from(HVC_FUNCTION), args: [wild.raw(); 7] },
            }
        };
        let vm = ScriptVm::new(vec![Box::new(hostile)]);
        let vcpus = start(&vm, clock, 1);
        let mut lines = 0;
        loop {
            match event(&vcpus) {
                Event::Diagnostic(_) => lines += 1,
                Event::SystemOff => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(lines, 16);
    });
}

#[test]
fn a_panic_of_the_executing_thread_is_told_and_ends_the_run() {
    both_clocks(|clock| {
        let scripts = (0..2).map(|_| {
            Box::new(|stage: &mut Stage<'_>| {
                assert!(stage.vcpu == 1, "planted by this test");
                stage.spin()
            }) as _
        });
        let vm = ScriptVm::new(scripts.collect());
        let vcpus = start(&vm, clock, 2);
        match event(&vcpus) {
            Event::Error { vcpu: 0, error } => assert!(error.to_string().contains("planted by this test"), "{error}"),
            other => panic!("{other:?}"),
        }
        vcpus.pause();
    });
}

#[test]
fn a_throttled_guest_is_paused_at_once_and_runs_on_when_released() {
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let spin = move |stage: &mut Stage<'_>| {
        counted.fetch_add(1, Ordering::SeqCst);
        stage.spin()
    };
    let vm = ScriptVm::new(vec![Box::new(spin)]);
    let mut vcpus = start(&vm, Clock::Wall, 1);
    vcpus.set_throttle(99).unwrap();
    // Kicked out of the guest and let in again, over and over: nobody else here kicks it.
    let seen = runs.load(Ordering::SeqCst);
    while runs.load(Ordering::SeqCst) < seen + 5 {
        std::thread::yield_now();
    }
    vcpus.pause();
    let seen = runs.load(Ordering::SeqCst);
    vcpus.set_throttle(50).unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), seen, "paused is paused");
    vcpus.resume();
    while runs.load(Ordering::SeqCst) < seen + 5 {
        std::thread::yield_now();
    }
    vcpus.set_throttle(0).unwrap();
    assert!(matches!(vcpus.set_throttle(100), Err(VcpusError::Throttle { percent: 100, .. })));
    vcpus.shutdown();
    let vm = ScriptVm::new(vec![obedient()]);
    let error = start(&vm, Clock::Icount, 1).set_throttle(20).unwrap_err().to_string();
    assert!(error.contains("--clock icount"), "{error}");
}

#[test]
fn a_pause_is_stamped_from_the_last_exit_to_the_first_entry() {
    both_clocks(|clock| {
        let vm = ScriptVm::new(vec![Box::new(|stage: &mut Stage<'_>| stage.spin())]);
        let vcpus = start(&vm, clock, 1);
        let first = vcpus.wait_entry(LIVENESS).expect("it is entered");
        let before = HostTime::now();
        vcpus.pause();
        let left = vcpus.last_exit();
        assert!(first <= before && before <= left && left <= HostTime::now());
        vcpus.pause();
        assert_eq!(vcpus.last_exit(), left, "a pause of a paused machine is none");
        assert_eq!(vcpus.first_entry(), Some(first));
        vcpus.resume();
        let entered = vcpus.wait_entry(LIVENESS).expect("it is entered again");
        assert!(left <= entered);
    });
}

/// A guest that prints a line with each store: the byte, then the line's end.
fn chatty() -> Box<dyn FnMut(&mut Stage<'_>) -> Exit + Send> {
    let mut ends = false;
    Box::new(move |stage| {
        *stage.instructions += 1;
        ends = !ends;
        let data = u64::from(if ends { b'x' } else { b'\n' });
        Exit::MmioWrite { gpa: map::PL011_BASE, len_bytes: 4, data }
    })
}

#[test]
fn a_tap_takes_the_console_before_a_pause_returns_and_nothing_else_hears_it() {
    both_clocks(|clock| {
        let vm = ScriptVm::new(vec![chatty()]);
        let handle: Arc<dyn crate::backend::Vm> = Arc::clone(&vm) as _;
        let shared = Shared::with(handle, vm.memory().clone(), "none.elf".into(), Arch::Aarch64, 1);
        shared.tap().start();
        let mut vcpus = Vcpus::start_on(Arc::new(shared), clock, 1, None).unwrap();
        assert!(vcpus.output().wait(LIVENESS));
        vcpus.pause();
        let positions = vcpus.output().positions();
        let records = vcpus.output().take();
        assert_eq!(records.len() as u64, positions.get(StreamId::CONSOLE));
        for (sequence, record) in (0..).zip(&records) {
            assert_eq!((record.stream, record.sequence, &record.bytes[..]), (StreamId::CONSOLE, sequence, &b"x\n"[..]));
        }
        assert!(matches!(vcpus.wait_event(Some(Duration::ZERO)), Wait::TimedOut));
        vcpus.shutdown();
    });
}

#[test]
fn a_guest_whose_output_nobody_takes_stands_still_and_can_be_paused_and_ended() {
    both_clocks(|clock| {
        let vm = ScriptVm::new(vec![chatty()]);
        let mut vcpus = start(&vm, clock, 1);
        vcpus.output().start();
        while !vcpus.output().is_full() {
            std::thread::yield_now();
        }
        vcpus.pause();
        let stood = vcpus.output().positions();
        assert!(vcpus.output().is_full());
        vcpus.output().take();
        vcpus.resume();
        assert!(vcpus.output().wait(LIVENESS));
        vcpus.shutdown();
        let next = vcpus.output().take().first().map(|record| record.sequence);
        assert_eq!(next, Some(stood.get(StreamId::CONSOLE)), "none was dropped");
    });
}

#[test]
fn each_vcpu_is_stamped_as_it_first_enters_and_last_leaves() {
    both_clocks(|clock| {
        let vm = ScriptVm::new(vec![Box::new(|stage: &mut Stage<'_>| stage.spin())]);
        let vcpus = start(&vm, clock, 1);
        let first = vcpus.wait_entry(LIVENESS).expect("it is entered");
        assert_eq!(vcpus.stays(), [Stay { entered: Some(first), left: None }], "it may be inside");
        vcpus.pause();
        let [Stay { entered: Some(entered), left: Some(left) }] = vcpus.stays()[..] else { panic!("it was inside") };
        assert!(entered == first && entered <= left && left <= vcpus.last_exit());
        vcpus.resume();
        vcpus.wait_entry(LIVENESS).expect("it is entered again");
        vcpus.pause();
        let [again] = vcpus.stays()[..] else { panic!("one vCPU") };
        assert!(again.entered == Some(first) && again.left > Some(left));
        vcpus.set_counters(|_| Counters { virtual_ticks: 7, physical_ticks: None }).unwrap();
        assert_eq!(vcpus.stays(), [Stay::default()], "the guest's time began anew");
    });
}
