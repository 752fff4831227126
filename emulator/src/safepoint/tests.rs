//! The protocol alone, and its stress test with a dirty log on real threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use abi::addr::Gpa;

use super::{Safepoints, Work};
use crate::dirty::DirtyLog;

#[test]
fn work_asked_of_a_vcpu_outside_is_done_as_it_enters() {
    let safepoints = Safepoints::new(2);
    safepoints.request(Work::FLUSH_TLB, |vcpu| panic!("vCPU {vcpu} does not run"));
    safepoints.request(Work::DROP_WRITE_TAGS, |vcpu| panic!("vCPU {vcpu} does not run"));
    let mut done = Vec::new();
    safepoints.enter(1, |work| done.push(work));
    safepoints.poll(1, |work| done.push(work));
    assert_eq!(done.len(), 1);
    assert!(done[0].contains(Work::FLUSH_TLB) && done[0].contains(Work::DROP_WRITE_TAGS));
    assert!(!done[0].contains(Work::FLUSH_CODE));
}

/// Every vCPU stores growing values into all pages through write tags and now and then broadcasts; the host harvests and
/// copies throughout. In the end the copy must equal the pages, and no copy may ever run backwards.
#[test]
fn stress_leaves_the_copy_equal_to_the_pages() {
    const VCPUS: usize = 3;
    const PAGES: usize = 70;
    const ROUNDS: u64 = 4_000;
    let log = Arc::new(DirtyLog::new(12, [(Gpa::new(0), (PAGES as u64) << 12)]).expect("a good slot"));
    log.start();
    let safepoints = Arc::new(Safepoints::new(VCPUS));
    let attention: Arc<Vec<AtomicBool>> = Arc::new((0..VCPUS).map(|_| AtomicBool::new(false)).collect());
    let pages: Arc<Vec<[AtomicU64; VCPUS]>> = Arc::new((0..PAGES).map(|_| Default::default()).collect());
    let start = Arc::new(Barrier::new(VCPUS + 1));
    let threads: Vec<_> = (0..VCPUS)
        .map(|vcpu| {
            let (log, safepoints, attention) = (Arc::clone(&log), Arc::clone(&safepoints), Arc::clone(&attention));
            let (pages, start) = (Arc::clone(&pages), Arc::clone(&start));
            thread::spawn(move || {
                start.wait();
                let mut tags = [false; PAGES];
                safepoints.enter(vcpu, |_| tags.fill(false));
                for round in 1..=ROUNDS {
                    for (page, cells) in pages.iter().enumerate() {
                        if !tags[page] {
                            log.mark(Gpa::new((page as u64) << 12));
                            tags[page] = true;
                        }
                        cells[vcpu].store(round, Ordering::Relaxed);
                        if attention[vcpu].load(Ordering::Relaxed) && attention[vcpu].swap(false, Ordering::AcqRel) {
                            safepoints.poll(vcpu, |_| tags.fill(false));
                        }
                    }
                    if round % 64 == vcpu as u64 {
                        let raise = |other: usize| attention[other].store(true, Ordering::Release);
                        safepoints.request_from(vcpu, Work::FLUSH_TLB, raise, |_| tags.fill(false));
                    }
                    if round % 100 == 0 {
                        safepoints.leave(vcpu);
                        safepoints.enter(vcpu, |_| tags.fill(false));
                    }
                }
                safepoints.leave(vcpu);
            })
        })
        .collect();
    let mut copy = vec![[0; VCPUS]; PAGES];
    let mut words = vec![0; log.words(0).expect("a slot")];
    let mut harvest = || {
        log.harvest(0, &mut words).expect("a buffer of the right length");
        safepoints.request(Work::DROP_WRITE_TAGS, |vcpu| attention[vcpu].store(true, Ordering::Release));
        for page in (0..PAGES).filter(|page| words[page / 64] >> (page % 64) & 1 == 1) {
            for vcpu in 0..VCPUS {
                let seen = pages[page][vcpu].load(Ordering::Relaxed);
                assert!(seen >= copy[page][vcpu], "page {page} ran backwards");
                copy[page][vcpu] = seen;
            }
        }
    };
    start.wait();
    while threads.iter().any(|thread| !thread.is_finished()) {
        harvest();
    }
    for thread in threads {
        thread.join().expect("no vCPU panics");
    }
    harvest();
    assert!(copy.iter().all(|page| page.iter().all(|value| *value == ROUNDS)), "a store escaped the log");
}
