//! Post-copy in one process, with a real userfaultfd: threads that touch missing pages, and a whole guest that does.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use abi::hypercall::{Command, Outcome};
use abi::{Gpa, GuestRange, map};

use super::*;
use crate::backend::Accelerator;
use crate::dirty::PageBitmap;
use crate::machine::state::MachineState;
use crate::machine::state::tests::{FIRMWARE, STEPS, config, load, parked};
use crate::machine::{Machine, Transport};
use crate::memory::{Backing, GuestMemory, host_page_bytes};
use crate::migrate::pages::Content;
use crate::migrate::{ClockOffset, CounterPolicy};
use crate::vcpus::{Event, Vcpus, Wait};

/// Only reached by a test that has already failed.
const LIVENESS: Duration = Duration::from_secs(60);
const PAGES: u64 = 64;

fn memory(backing: Backing) -> Option<GuestMemory> {
    let range = |base| GuestRange::new(base, PAGES * host_page_bytes()).unwrap();
    let memory = match GuestMemory::on(backing, range(map::RAM_BASE), range(map::REGION_BASE)) {
        Ok(memory) => memory,
        Err(MemoryError::Lacks(reason)) => {
            println!("skipped: {reason}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    is_possible(&memory).then_some(memory)
}

fn is_possible(memory: &GuestMemory) -> bool {
    match MissingPages::check(memory, Accelerator::Emulator) {
        Ok(()) => true,
        Err(reason) => {
            println!("skipped: {reason}");
            false
        }
    }
}

fn bitmaps(memory: &GuestMemory, missing: impl Fn(SlotId, u64) -> bool) -> [PageBitmap; SlotId::COUNT] {
    SlotId::ALL.map(|slot| {
        let mut bitmap = PageBitmap::covering(memory.slot(slot).range().len_bytes(), host_page_bytes());
        (0..bitmap.pages()).filter(|page| missing(slot, *page)).for_each(|page| bitmap.set(page));
        bitmap
    })
}

fn gpa(slot: SlotId, page: u64) -> Gpa {
    let base = if slot == SlotId::Ram { map::RAM_BASE } else { map::REGION_BASE };
    base.checked_add(page * host_page_bytes()).unwrap()
}

fn content(slot: SlotId, page: u64) -> Vec<u8> {
    vec![(page as u8).wrapping_mul(3).wrapping_add(1 + 100 * slot.index() as u8); host_page_bytes() as usize]
}

fn begin(memory: &GuestMemory, missing: impl Fn(SlotId, u64) -> bool) -> (MissingPages, Receiver<(SlotId, u64)>) {
    let (sender, requests) = channel();
    let request = Box::new(move |slot, page| sender.send((slot, page)).map_err(std::io::Error::other));
    let missing = MissingPages::begin(memory, &bitmaps(memory, missing), Accelerator::Emulator, request).unwrap();
    (missing, requests)
}

#[test]
fn whoever_touches_a_missing_page_finds_what_came_and_nothing_older() {
    for backing in [Backing::Memfd, Backing::Anonymous, Backing::Thp] {
        let Some(memory) = memory(backing) else { continue };
        // Older contents everywhere but in the last pages, which are zero on both sides; every third page is missing.
        let is_missing = |_: SlotId, page: u64| page < PAGES - 8 && page.is_multiple_of(3);
        for slot in SlotId::ALL {
            for page in 0..PAGES - 8 {
                let bytes = if is_missing(slot, page) { vec![0xee; 4096] } else { content(slot, page) };
                memory.write(gpa(slot, page), &bytes).unwrap();
            }
        }
        let (missing, requests) = begin(&memory, is_missing);
        let left = missing.left();
        std::thread::scope(|scope| {
            for first in 0..4 {
                let memory = &memory;
                scope.spawn(move || {
                    for at in 0..PAGES {
                        let page = (at * 7 + first * 16) % PAGES;
                        for slot in SlotId::ALL {
                            let mut bytes = vec![0; host_page_bytes() as usize];
                            memory.read(gpa(slot, page), &mut bytes).unwrap();
                            let expected = if page < PAGES - 8 { content(slot, page) } else { vec![0; bytes.len()] };
                            assert!(bytes == expected, "{backing}: page {page} of the {slot}");
                        }
                    }
                });
            }
            while missing.left() > 0 {
                let (slot, page) = requests.recv_timeout(LIVENESS).unwrap();
                assert!(is_missing(slot, page), "{backing}: nobody asks for what is here");
                missing.place(slot, page..page + 1, Content::Bytes(&content(slot, page))).unwrap();
            }
        });
        assert!(requests.try_recv().is_err(), "{backing}: each page was asked for once");
        assert!(missing.failure().is_none());
        let report = missing.finish().map_err(|(_, error)| error).unwrap();
        assert_eq!(report.pages, left);
        assert!(report.faults >= left && report.longest_wait_ns > 0, "{report:?}");
        assert!(report.zero_faults > 0, "{report:?}");
        // Ordinary memory again.
        memory.write(gpa(SlotId::Ram, 0), &[7]).unwrap();
        memory.punch(SlotId::Ram, 0..host_page_bytes()).unwrap();
        assert_eq!(memory.read_obj::<u8>(gpa(SlotId::Ram, 0)).unwrap(), 0);
    }
}

#[test]
fn pages_that_come_unasked_are_not_asked_for_and_none_is_overwritten() {
    let Some(memory) = memory(Backing::Memfd) else { return };
    let (missing, requests) = begin(&memory, |slot, page| slot == SlotId::Region && page < 10);
    let run: Vec<u8> = (2..6).flat_map(|page| content(SlotId::Region, page)).collect();
    missing.place(SlotId::Region, 2..6, Content::Bytes(&run)).unwrap();
    missing.place(SlotId::Region, 6..10, Content::Zero).unwrap();
    for page in 2..6 {
        let found = memory.read_obj::<u8>(gpa(SlotId::Region, page)).unwrap();
        assert_eq!(found, content(SlotId::Region, page)[0]);
    }
    assert_eq!(memory.read_obj::<u8>(gpa(SlotId::Region, 9)).unwrap(), 0);
    memory.write(gpa(SlotId::Region, 3), &[0xaa]).unwrap();
    let error = missing.place(SlotId::Region, 3..4, Content::Bytes(&content(SlotId::Region, 3))).unwrap_err();
    assert!(matches!(error, PostcopyError::Twice { slot: SlotId::Region, page: 3 }), "{error}");
    let error = missing.place(SlotId::Ram, 0..1, Content::Zero).unwrap_err();
    assert!(matches!(error, PostcopyError::Twice { slot: SlotId::Ram, page: 0 }), "{error}");
    assert_eq!(memory.read_obj::<u8>(gpa(SlotId::Region, 3)).unwrap(), 0xaa);
    for pages in [PAGES..PAGES + 1, u64::MAX - 1..u64::MAX] {
        let error = missing.place(SlotId::Region, pages, Content::Zero).unwrap_err();
        assert!(matches!(error, PostcopyError::NoPage { pages: PAGES, .. }), "{error}");
    }
    let (missing, error) = missing.finish().unwrap_err();
    assert!(matches!(error, PostcopyError::Incomplete { left: 2 }), "{error}");
    missing.place(SlotId::Region, 0..2, Content::Zero).unwrap();
    missing.finish().map_err(|(_, error)| error).unwrap();
    assert!(requests.try_recv().is_err());
}

#[test]
fn a_guest_whose_source_is_lost_is_let_go_of_and_paused() {
    let Some(memory) = memory(Backing::Memfd) else { return };
    let (missing, requests) = begin(&memory, |slot, page| slot == SlotId::Ram && page == 5);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| memory.read_obj::<u8>(gpa(SlotId::Ram, 5)).unwrap());
        assert_eq!(requests.recv_timeout(LIVENESS), Ok((SlotId::Ram, 5)));
        assert!(!waits.is_finished());
        let mut paused = false;
        missing.abandon(|| paused = true);
        assert!(paused);
        assert_eq!(waits.join().unwrap(), 0);
    });
}

#[test]
fn a_connection_that_takes_no_requests_is_told_as_a_failure() {
    let Some(memory) = memory(Backing::Memfd) else { return };
    let (missing, requests) = begin(&memory, |slot, page| slot == SlotId::Ram && page == 5);
    drop(requests);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| memory.read_obj::<u8>(gpa(SlotId::Ram, 5)).unwrap());
        let error = loop {
            match missing.failure() {
                Some(error) => break error,
                None => std::thread::yield_now(),
            }
        };
        assert!(error.to_string().contains("ask for a page"), "{error}");
        missing.abandon(|| {});
        waits.join().unwrap();
    });
}

#[test]
fn backings_of_huge_pages_are_refused_by_name() {
    let range = |base| GuestRange::new(base, 4 << 20).unwrap();
    let backing = Backing::Hugetlb { page_bytes: None };
    match GuestMemory::on(backing, range(map::RAM_BASE), range(map::REGION_BASE)) {
        Ok(memory) => {
            let error = MissingPages::check(&memory, Accelerator::Emulator).unwrap_err();
            assert!(matches!(error, PostcopyUnavailable::HugePages { .. }), "{error}");
        }
        Err(MemoryError::Lacks(reason)) => println!("skipped: {reason}"),
        Err(error) => panic!("{error}"),
    }
}

/// Every page of a guest is at the source when it starts to run here: the first to touch one is the host itself, which
/// answers the call that it waits in.
#[test]
fn a_guest_runs_on_while_its_memory_comes_and_the_host_s_own_accesses_wait_as_well() {
    let config = config(Accelerator::Emulator, Transport::Mmio);
    let machine = load(&config).unwrap();
    let mut vcpus = Vcpus::start(&machine).unwrap();
    parked(&vcpus);
    vcpus.pause();
    let state = MachineState::save(&machine, &vcpus).unwrap();
    vcpus.shutdown();
    let there = Machine::build_incoming(&config, std::path::Path::new(FIRMWARE)).unwrap();
    if !is_possible(there.memory()) {
        return;
    }
    let queue = Arc::new(PageQueue::new(bitmaps(there.memory(), |_, _| true)));
    let asked = Arc::new(Mutex::new(0_u64));
    let request = {
        let (queue, asked) = (Arc::clone(&queue), Arc::clone(&asked));
        Box::new(move |slot, page| {
            *asked.lock().unwrap() += 1;
            queue.request(slot, page).map_err(std::io::Error::other)
        })
    };
    let all = bitmaps(there.memory(), |_, _| true);
    let missing = MissingPages::begin(there.memory(), &all, Accelerator::Emulator, request).unwrap();
    let new = Vcpus::start_paused(&there).unwrap();
    state.restore(&there, &new).unwrap();
    state.set_counter(&new, CounterPolicy::RunsOn, ClockOffset::SAME).unwrap();
    new.resume();
    parked(&new);
    let page_bytes = host_page_bytes();
    let push = || {
        // The background waits until three pages were asked for: the block, the progress slot, the code.
        let mut answered = 0;
        while *asked.lock().unwrap() < 3 {
            if queue.requests() > answered {
                answered += 1;
                send(&queue, &missing, machine.memory(), 1, page_bytes);
            } else {
                std::thread::yield_now();
            }
        }
        while queue.left() > 0 {
            send(&queue, &missing, machine.memory(), 16, page_bytes);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(push);
        new.command(0, Command::RunSteps { first: 0, count: STEPS }).unwrap();
        assert_eq!(parked(&new), Outcome::Ran { next: STEPS });
    });
    let report = missing.finish().map_err(|(_, error)| error).unwrap();
    let pages: u64 = there.memory().slots().iter().map(|slot| slot.host_pages()).sum();
    assert!(report.faults >= 3 && report.pages == pages, "{report:?}");
    for step in 0..STEPS {
        let page = Gpa::new(map::REGION_BASE.raw() + step * 4096);
        assert_eq!(there.memory().read_obj::<u64>(page).unwrap(), step + 1);
    }
    new.command(0, Command::Stop).unwrap();
    assert!(matches!(new.wait_event(Some(LIVENESS)), Wait::Event(Event::SystemOff)));
}

fn send(queue: &PageQueue, missing: &MissingPages, source: &GuestMemory, most: u64, page_bytes: u64) {
    let Some((slot, pages, _)) = queue.next(most) else { return };
    let mut bytes = vec![0; ((pages.end - pages.start) * page_bytes) as usize];
    source.copy_from_slot(slot, pages.start * page_bytes, &mut bytes).unwrap();
    if bytes.iter().all(|byte| *byte == 0) {
        missing.place(slot, pages, Content::Zero).unwrap();
    } else {
        missing.place(slot, pages, Content::Bytes(&bytes)).unwrap();
    }
}
