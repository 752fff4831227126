//! The loom model: the protocol's own source over loom's atomics, with a dirty bit and a write tag as the emulator uses
//! them.

mod sync {
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

    pub(super) fn relax(_rounds: u32) {
        loom::thread::yield_now();
    }
}

#[path = "protocol.rs"]
mod protocol;

use self::protocol::{Safepoints, Work};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

/// A page, its dirty bit and one vCPU's write tag, as the emulator uses them.
struct Machine {
    safepoints: Safepoints,
    bit: AtomicU64,
    page: AtomicU64,
    turn: AtomicU64,
}

impl Machine {
    fn new(vcpus: usize) -> Arc<Self> {
        let [bit, page, turn] = [0; 3].map(AtomicU64::new);
        Arc::new(Self { safepoints: Safepoints::new(vcpus), bit, page, turn })
    }

    /// A point where loom tries every order of the threads. Loom remembers only the last access to each atomic, so it overlooks that an
    /// update races with another thread's load when the updating thread has loaded in between, as `store` does. An update
    /// by every thread shows it each race, and, being relaxed, orders nothing.
    fn turn(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// One guest store: mark unless the tag says it is marked, then write; relaxed, as the emulator does it.
    fn store(&self, tag: &mut bool, value: u64) {
        if !*tag {
            self.turn();
            if self.bit.load(Ordering::Relaxed) == 0 {
                self.turn();
                self.bit.fetch_or(1, Ordering::Relaxed);
            }
            *tag = true;
        }
        self.turn();
        self.page.store(value, Ordering::Relaxed);
    }

    /// One harvest and copy, as the VMM does them. Returns the copy if the page was reported.
    fn harvest(&self) -> Option<u64> {
        self.turn();
        let dirty = if self.bit.load(Ordering::Relaxed) == 0 { 0 } else { self.bit.swap(0, Ordering::AcqRel) };
        self.turn();
        self.safepoints.request(Work::DROP_WRITE_TAGS, |_| ());
        self.turn();
        (dirty != 0).then(|| self.page.load(Ordering::Relaxed))
    }
}

fn drop_tag(tag: &mut bool) -> impl FnMut(Work) {
    move |work| {
        assert!(work.contains(Work::DROP_WRITE_TAGS) && !work.is_empty());
        *tag = false;
    }
}

#[test]
fn no_store_escapes_a_harvest_in_any_interleaving() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let machine = Machine::new(1);
        let guest = Arc::clone(&machine);
        let vcpu = thread::spawn(move || {
            let mut tag = false;
            guest.safepoints.enter(0, drop_tag(&mut tag));
            guest.store(&mut tag, 1);
            guest.safepoints.poll(0, drop_tag(&mut tag));
            guest.store(&mut tag, 2);
            guest.safepoints.leave(0);
        });
        let mut copy = machine.harvest().unwrap_or(0);
        vcpu.join().unwrap();
        if let Some(page) = machine.harvest() {
            copy = page;
        }
        assert_eq!(copy, 2, "the last harvest leaves the copy equal to the page");
    });
}

#[test]
fn two_stores_between_boundaries_are_copied_together() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let machine = Machine::new(1);
        let guest = Arc::clone(&machine);
        let vcpu = thread::spawn(move || {
            let mut tag = false;
            guest.safepoints.enter(0, drop_tag(&mut tag));
            guest.store(&mut tag, 1);
            guest.store(&mut tag, 2);
            guest.safepoints.leave(0);
        });
        let mut copy = machine.harvest().unwrap_or(0);
        vcpu.join().unwrap();
        if let Some(page) = machine.harvest() {
            copy = page;
        }
        assert_eq!(copy, 2, "a harvest that took the bit waited for both stores");
    });
}

#[test]
fn a_vcpu_that_leaves_and_enters_again_meets_the_request() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let machine = Machine::new(1);
        let guest = Arc::clone(&machine);
        let vcpu = thread::spawn(move || {
            let mut tag = false;
            for value in 1..=2 {
                guest.safepoints.enter(0, drop_tag(&mut tag));
                guest.store(&mut tag, value);
                guest.safepoints.leave(0);
            }
        });
        let mut copy = machine.harvest().unwrap_or(0);
        vcpu.join().unwrap();
        if let Some(page) = machine.harvest() {
            copy = page;
        }
        assert_eq!(copy, 2);
    });
}

#[test]
fn two_vcpus_that_request_of_each_other_both_finish() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let safepoints = Arc::new(Safepoints::new(2));
        let run = |vcpu: usize, work: Work, expected: Work| {
            let safepoints = Arc::clone(&safepoints);
            move || {
                let mut perform = move |work: Work| assert!(work.contains(expected));
                safepoints.enter(vcpu, &mut perform);
                safepoints.request_from(vcpu, work, |_| (), &mut perform);
                safepoints.leave(vcpu);
            }
        };
        let other = thread::spawn(run(1, Work::FLUSH_CODE, Work::FLUSH_TLB));
        run(0, Work::FLUSH_TLB, Work::FLUSH_CODE)();
        other.join().unwrap();
    });
}
