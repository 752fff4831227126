//! The live oracle against a simulated guest, log and copier: silent when they are right, and not when they are not.
//!
//! Everything happens one 64-bit piece at a time, interleaved by a seeded scheduler: vCPUs store, the log is harvested with
//! stores in flight, pages are copied while they are written. The log works as one with cached write permissions does:
//! the first store of a vCPU to a page sets the bit, later ones do not until a harvest has taken the permission away.

use std::collections::VecDeque;

use abi::{GuestRange, Tables, VaBits, map};
use proptest::prelude::*;
use workload::{Data, Geometry, Pattern, Plan, SplitMix64, Workload, Write};

use super::live::{LiveOracle, LiveVerdict, Observation};
use super::{Circumstances, PAGE};
use crate::dirty::PageBitmap;
use crate::pass::PageSource;
use crate::verify::model::Model;

const HOST_PAGE: u64 = 4096;

/// What goes wrong, once, in the pass `Simulation::faulty_pass`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    /// The harvest loses the bit of a page.
    DroppedBit,
    /// The harvest has a page that nobody wrote.
    ExtraBit,
    /// The harvest leaves one vCPU's permission to write a page.
    StaleTag,
    /// The copier leaves out a page.
    SkippedPage,
    /// The copier exchanges two pages.
    SwappedPages,
    /// The copier copies a page before the harvest instead of after it.
    EarlyCopy,
}

#[derive(Clone)]
enum Piece {
    Store { offset: usize, bytes: Vec<u8> },
    Add { offset: usize, addend: u64 },
}

fn pieces(write: &Write) -> Vec<Piece> {
    if let Data::Add(addend) = write.data {
        return vec![Piece::Add { offset: write.offset as usize, addend }];
    }
    let mut bytes = vec![0; write.len as usize];
    write.fill(0, &mut bytes);
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let offset = write.offset as usize + at;
        let len = (8 - offset % 8).min(bytes.len() - at);
        pieces.push(Piece::Store { offset, bytes: bytes[at..at + len].to_vec() });
        at += len;
    }
    pieces
}

fn bytes_of(model: &Model) -> Vec<u8> {
    let mut bytes = vec![0; model.len_bytes() as usize];
    model.read(0, &mut bytes);
    bytes
}

struct Vcpu {
    started: u64,
    completed: u64,
    todo: VecDeque<Piece>,
    /// Pages that it may write without telling the log.
    tags: PageBitmap,
    /// Pages that the steps completed since `completed` was last observed have written.
    written: PageBitmap,
}

struct Simulation {
    plan: Plan,
    random: SplitMix64,
    memory: Vec<u8>,
    copy: Vec<u8>,
    log: PageBitmap,
    vcpus: Vec<Vcpu>,
    fault: Fault,
    faulty_pass: u64,
}

impl Simulation {
    /// The guest after step 0 and an exact pass 0, with the oracle that takes over: for odd seeds one that judges only the
    /// pages that moved.
    fn new(plan: &Plan, seed: u64, fault: Fault) -> (Self, LiveOracle) {
        let mut model = Model::new(plan.clone());
        model.advance_all(1, HOST_PAGE);
        let len_bytes = plan.geometry().region.len_bytes();
        let clean = PageBitmap::covering(len_bytes, HOST_PAGE);
        let vcpus = (0..plan.geometry().vcpus).map(|_| Vcpu {
            started: 1,
            completed: 1,
            todo: VecDeque::new(),
            tags: clean.clone(),
            written: clean.clone(),
        });
        let memory = bytes_of(&model);
        let simulation = Self {
            plan: plan.clone(),
            random: SplitMix64::new(seed),
            copy: memory.clone(),
            memory,
            log: clean.clone(),
            vcpus: vcpus.collect(),
            fault,
            faulty_pass: 3,
        };
        let oracle = LiveOracle::new(model);
        (simulation, if seed.is_multiple_of(2) { oracle } else { oracle.judging_only_what_moved() })
    }

    fn tick(&mut self, index: usize) {
        let vcpu = &mut self.vcpus[index];
        if let Some(piece) = vcpu.todo.pop_front() {
            let offset = match &piece {
                Piece::Store { offset, bytes } => {
                    self.memory[*offset..][..bytes.len()].copy_from_slice(bytes);
                    *offset
                }
                Piece::Add { offset, addend } => {
                    let word = &mut self.memory[*offset..*offset + 8];
                    let sum = u64::from_le_bytes(word.try_into().unwrap()).wrapping_add(*addend);
                    word.copy_from_slice(&sum.to_le_bytes());
                    *offset
                }
            };
            let page = offset as u64 / HOST_PAGE;
            if !vcpu.tags.test(page) {
                self.log.set(page);
                vcpu.tags.set(page);
            }
        } else if vcpu.started > vcpu.completed {
            self.plan.for_each_write(index as u32, vcpu.completed, |write| {
                vcpu.written.set_bytes(write.offset, u64::from(write.len));
            });
            vcpu.completed += 1;
        } else {
            self.plan.for_each_write(index as u32, vcpu.started, |write| vcpu.todo.extend(pieces(&write)));
            vcpu.started += 1;
        }
    }

    /// Up to `most` pieces of work of vCPUs chosen at random.
    fn run(&mut self, most: u64) {
        let count = self.random.below(most + 1);
        self.run_exactly(count);
    }

    fn run_exactly(&mut self, count: u64) {
        for _ in 0..count {
            let index = self.random.below(self.vcpus.len() as u64) as usize;
            self.tick(index);
        }
    }

    /// Lets every vCPU finish its step.
    fn park(&mut self) {
        for index in 0..self.vcpus.len() {
            while self.vcpus[index].started > self.vcpus[index].completed {
                self.tick(index);
            }
        }
    }

    /// The page that vCPU 0 is about to write.
    fn page_under_way(&self) -> Option<u64> {
        self.vcpus[0].todo.front().map(|piece| match piece {
            Piece::Store { offset, .. } | Piece::Add { offset, .. } => *offset as u64 / HOST_PAGE,
        })
    }

    fn completed(&self) -> Vec<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.completed).collect()
    }

    fn started(&self) -> Vec<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.started).collect()
    }

    fn copy_page(&mut self, from: u64, to: u64, busy: u64) {
        for at in (0..PAGE).step_by(8) {
            if self.random.below(16) == 0 {
                self.run(busy);
            }
            let (from, to) = (from as usize * PAGE + at, to as usize * PAGE + at);
            self.copy[to..to + 8].copy_from_slice(&self.memory[from..from + 8]);
        }
    }

    /// One pass; while it harvests and copies, the guest does up to `busy` pieces of work now and then.
    fn pass(&mut self, oracle: &mut LiveOracle, pass: u64, busy: u64) -> LiveVerdict {
        let fault = if pass == self.faulty_pass { self.fault } else { Fault::None };
        let completed = self.completed();
        // A page written for certain since the last harvest: faults there cannot hide.
        let mut sure = PageBitmap::covering(self.memory.len() as u64, HOST_PAGE);
        for vcpu in &mut self.vcpus {
            sure.or(&vcpu.written);
            vcpu.written.clear_all();
        }
        self.run(busy);
        while fault == Fault::EarlyCopy && !(1..20).contains(&self.vcpus[0].todo.len()) {
            self.tick(0);
        }
        let clean = PageBitmap::covering(self.memory.len() as u64, HOST_PAGE);
        let mut harvested = std::mem::replace(&mut self.log, clean.clone());
        let target = match fault {
            Fault::EarlyCopy => self.page_under_way(),
            _ => sure.iter().find(|&page| harvested.test(page)),
        };
        if fault == Fault::EarlyCopy
            && let Some(page) = target
        {
            self.copy_page(page, page, 0);
            (0..20).for_each(|_| self.tick(0));
        }
        self.run(busy);
        for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
            let kept = target.filter(|&page| fault == Fault::StaleTag && index == 0 && vcpu.tags.test(page));
            vcpu.tags.clear_all();
            kept.into_iter().for_each(|page| vcpu.tags.set(page));
        }
        match (fault, target) {
            (Fault::DroppedBit, Some(page)) => harvested.clear(page),
            (Fault::ExtraBit, _) => harvested.set(harvested.pages() - 1),
            _ => {}
        }
        self.run(busy);
        let started_harvest = self.started();
        let swapped = target.and_then(|page| harvested.iter().find(|&other| other > page).map(|other| (page, other)));
        for page in harvested.iter() {
            match (fault, swapped) {
                (Fault::SkippedPage | Fault::EarlyCopy, _) if Some(page) == target => {}
                (Fault::SwappedPages, Some((one, other))) if page == one => self.copy_page(other, one, busy),
                (Fault::SwappedPages, Some((one, other))) if page == other => self.copy_page(one, other, busy),
                _ => self.copy_page(page, page, busy),
            }
        }
        let started_copy = self.started();
        let observation = Observation {
            pass,
            completed: &completed,
            started_harvest: &started_harvest,
            started_copy: &started_copy,
            harvested: &harvested,
            copy: self.copy.as_slice(),
            circumstances: Circumstances::plain(HOST_PAGE),
        };
        oracle.observe(&observation).expect("the simulation's progress is possible")
    }
}

/// All verdicts of a run: passes 1 to `passes` with the guest running, one more with it parked.
fn verdicts(plan: &Plan, seed: u64, fault: Fault, passes: u64, between: u64, busy: u64) -> Vec<LiveVerdict> {
    let (mut simulation, mut oracle) = Simulation::new(plan, seed, fault);
    let mut verdicts = Vec::new();
    for pass in 1..=passes {
        simulation.run_exactly(between);
        verdicts.push(simulation.pass(&mut oracle, pass, busy));
    }
    simulation.park();
    verdicts.push(simulation.pass(&mut oracle, passes + 1, 0));
    if fault == Fault::None {
        assert!(simulation.memory == bytes_of(oracle.model()), "the simulation executes the plan");
        assert!(simulation.memory == simulation.copy);
    }
    verdicts
}

fn plan(text: &str, vcpus: u32, len_bytes: u64) -> Plan {
    let region = GuestRange::new(map::REGION_BASE, len_bytes).unwrap();
    Plan::new(&Workload::parse(text).unwrap(), 11, Geometry { region, tables: Tables::V8(VaBits::ALL[1]), vcpus })
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(120) })]

    #[test]
    fn a_correct_log_and_copier_raise_no_alarm(
        seed: u64,
        pattern in proptest::sample::select(Pattern::ALL.to_vec()),
        vcpus in 1..=3_u32,
        between in 0..4000_u64,
        busy in 0..40_u64,
    ) {
        let plan = plan(pattern.name(), vcpus, 1 << 20);
        for verdict in verdicts(&plan, seed, Fault::None, 5, between, busy) {
            prop_assert!(verdict.is_clean(), "{pattern}: {verdict:?}");
        }
    }

    #[test]
    fn every_planted_fault_is_caught(
        seed: u64,
        fault in proptest::sample::select(vec![
            Fault::DroppedBit, Fault::ExtraBit, Fault::StaleTag, Fault::SkippedPage, Fault::SwappedPages,
        ]),
        vcpus in 1..=3_u32,
        busy in 0..10_u64,
    ) {
        // Stamped pages with a counter: every step of every vCPU writes the same pages, and never the last one.
        let plan = plan("dirtyram:pages=60,step=12", vcpus, 1 << 18);
        let verdicts = verdicts(&plan, seed, fault, 5, 600, busy);
        let (before, after) = verdicts.split_at(2);
        prop_assert!(before.iter().all(LiveVerdict::is_clean), "alarm before the fault");
        prop_assert!(after.iter().any(|verdict| !verdict.is_clean()), "{fault:?} was not caught");
        match fault {
            Fault::DroppedBit => prop_assert!(after[0].first_missing.is_some() && !after[0].sets.missing.is_clean()),
            Fault::ExtraBit => prop_assert_eq!(after[0].sets.unexplained.iter().collect::<Vec<_>>(), [63]),
            Fault::SkippedPage | Fault::SwappedPages => prop_assert!(after[0].mismatch.is_some()),
            _ => {}
        }
    }
}

/// The page is copied while a vCPU fills it and still holds the permission to: what it stores next is neither in the copy
/// nor in a harvest, unless it comes back to the page by chance.
#[test]
fn a_copy_taken_before_the_harvest_has_ended_is_caught() {
    let plan = plan("full:pages=256,writes=2", 2, 1 << 20);
    let caught = (0..20)
        .filter(|&seed| verdicts(&plan, seed, Fault::EarlyCopy, 5, 600, 2).iter().any(|verdict| !verdict.is_clean()));
    assert!(caught.count() > 15);
}

#[test]
fn pages_caught_in_flight_are_counted_and_judged_again() {
    let plan = plan("full:pages=8,writes=4", 1, 1 << 15);
    let verdicts = verdicts(&plan, 1, Fault::None, 8, 3000, 100);
    assert!(verdicts.iter().any(|verdict| verdict.pages_ahead > 0));
    assert_eq!(verdicts.last().map(|verdict| verdict.pages_ahead), Some(0));
}

#[test]
fn impossible_progress_is_an_error() {
    let plan = plan("dirtyram:pages=8", 1, 1 << 15);
    let (simulation, oracle) = Simulation::new(&plan, 1, Fault::None);
    let harvested = PageBitmap::covering(1 << 15, HOST_PAGE);
    for (completed, started_harvest, started_copy) in
        [(0, 1, 1), (2, 1, 2), (1, 3, 2), (1, 1, u64::MAX), (u64::MAX, u64::MAX, u64::MAX)]
    {
        let observation = Observation {
            pass: 1,
            completed: &[completed],
            started_harvest: &[started_harvest],
            started_copy: &[started_copy],
            harvested: &harvested,
            copy: simulation.copy.as_slice(),
            circumstances: Circumstances::plain(HOST_PAGE),
        };
        assert!(oracle.clone().observe(&observation).is_err(), "{completed} {started_harvest} {started_copy}");
    }
}
