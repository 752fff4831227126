//! Whole runs over a guest that is a loop in this file: right ones pass, and each planted fault is found where it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use abi::hypercall::Command;
use abi::{Gpa, GuestRange, Tables, VaBits, map};
use workload::{Geometry, Plan, Workload};

use super::{
    CopyTarget, Guest, GuestError, Interference, InterferenceKind, Live, Lockstep, Session, SlotView, Threads,
    region_digest,
};
use crate::dirty::{DirtyLog, DirtyLogError, DirtyLogKind, FirstHarvest, PageBitmap, SeveralLogs};
use crate::memory::{GuestMemory, SlotId};
use crate::report::{Ledger, Progress, Verdict};
use crate::verify::SelfCheck;
use crate::verify::model::Model;

const REGION_BYTES: u64 = 1 << 20;
const HOST_PAGE: u64 = 4096;
const VCPUS: usize = 2;
/// Steps that the guest makes between two live harvests.
const STEPS_PER_INTERVAL: u64 = 3;

/// A guest without a CPU: executes the plan by writing memory, and sets a bit for every page it writes.
struct LoopGuest {
    memory: GuestMemory,
    plan: Plan,
    /// One set for each log.
    bits: [Arc<Mutex<PageBitmap>>; 2],
    completed: u64,
    /// Where a live guest may run to.
    end: u64,
}

impl LoopGuest {
    fn step_to(&mut self, end: u64) {
        let base = self.memory.slot(SlotId::Region).range().start();
        for step in self.completed..end {
            for vcpu in 0..VCPUS as u32 {
                let Self { memory, plan, bits, .. } = &*self;
                plan.for_each_write(vcpu, step, |write| {
                    let at = base.checked_add(write.offset).unwrap();
                    let mut bytes = vec![0; write.len as usize];
                    memory.read(at, &mut bytes).unwrap();
                    write.apply_to(&mut bytes);
                    memory.write(at, &bytes).unwrap();
                    for bits in bits {
                        bits.lock().unwrap().set_bytes(write.offset, u64::from(write.len));
                    }
                });
            }
        }
        self.completed = self.completed.max(end);
    }
}

impl Guest for LoopGuest {
    fn vcpus(&self) -> usize {
        VCPUS
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn run_all(&mut self, command: Command) -> Result<(), GuestError> {
        self.start_all(command)?;
        self.step_to(self.end);
        Ok(())
    }

    fn start_all(&mut self, command: Command) -> Result<(), GuestError> {
        let Command::RunSteps { first, count } = command else { panic!("{command:?} is no work for all") };
        assert_eq!(first, self.completed, "steps follow each other");
        self.end = first.saturating_add(count);
        Ok(())
    }

    fn run_for(&mut self, _interval: Duration) -> Result<bool, GuestError> {
        self.step_to(self.end.min(self.completed + STEPS_PER_INTERVAL));
        Ok(self.completed == self.end)
    }

    fn hold(&mut self) {}

    fn release(&mut self) {}

    fn stop_steps(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn started(&self) -> Result<Vec<u64>, GuestError> {
        self.completed()
    }

    fn completed(&self) -> Result<Vec<u64>, GuestError> {
        Ok(vec![self.completed; VCPUS])
    }

    fn digest(&mut self, range: GuestRange, pass: u64) -> Result<u64, GuestError> {
        let region = SlotView::new(&self.memory, SlotId::Region);
        Ok(region_digest(&region, range.start(), pass, Threads::new(1))?)
    }

    fn self_check(&mut self, steps: u64) -> Result<(), GuestError> {
        let mut model = Model::new(self.plan.clone());
        model.advance_all(steps, HOST_PAGE);
        let region = SlotView::new(&self.memory, SlotId::Region);
        match crate::verify::oracle::first_mismatch(&model, &region, 0)? {
            None => Ok(()),
            Some(wrong) => Err(GuestError::SelfCheck { at: wrong.gpa, expected: wrong.expected, found: wrong.found }),
        }
    }
}

/// A log of a [`LoopGuest`].
struct LoopLog {
    bits: Arc<Mutex<PageBitmap>>,
    /// A page that it never reports.
    blind: Option<u64>,
}

impl DirtyLog for LoopLog {
    fn kind(&self) -> DirtyLogKind {
        DirtyLogKind::Emulator
    }

    fn page_bytes(&self) -> u64 {
        HOST_PAGE
    }

    fn first_harvest(&self) -> FirstHarvest {
        FirstHarvest::Exact
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        self.bits.lock().unwrap().clear_all();
        Ok(())
    }

    fn harvest(&mut self, _slot: SlotId, dirty: &mut PageBitmap) -> Result<(), DirtyLogError> {
        let mut bits = self.bits.lock().unwrap();
        if let Some(page) = self.blind {
            bits.clear(page);
        }
        dirty.clone_from(&bits);
        bits.clear_all();
        Ok(())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

fn plan(workload: &str) -> Plan {
    let region = GuestRange::new(map::REGION_BASE, REGION_BYTES).unwrap();
    let geometry = Geometry { region, tables: Tables::V8(VaBits::ALL[1]), vcpus: VCPUS as u32 };
    Plan::new(&Workload::parse(workload).unwrap(), 9, geometry).unwrap()
}

/// Runs `passes` over the workload, with a fault, under two logs the second of which is blind to a page.
fn run_with(
    workload: &str,
    blind: Option<u64>,
    interference: Option<Interference>,
    passes: impl FnOnce(&mut Session<'_>, Model),
) -> Ledger {
    let plan = plan(workload);
    let ram = GuestRange::new(map::RAM_BASE, map::RAM_MIN).unwrap();
    let memory = GuestMemory::new(ram, plan.geometry().region, None).unwrap();
    let bits = [(); 2].map(|()| Arc::new(Mutex::new(PageBitmap::covering(REGION_BYTES, HOST_PAGE))));
    let mut guest = LoopGuest { memory: memory.clone(), plan: plan.clone(), bits: bits.clone(), completed: 0, end: 0 };
    let [first, second] = bits;
    let logs: Vec<Box<dyn DirtyLog>> =
        vec![Box::new(LoopLog { bits: first, blind: None }), Box::new(LoopLog { bits: second, blind })];
    let target = CopyTarget::anonymous(REGION_BYTES).unwrap();
    let mut ledger = crate::report::sample_ledger();
    ledger.passes.clear();
    let mut session = Session {
        guest: &mut guest,
        memory: &memory,
        log: SeveralLogs::new(&memory, logs),
        target: &target,
        interference,
        before_pass: &mut |_| Ok(()),
        ledger: &mut ledger,
        progress: &Progress::hidden(),
        threads: Threads::new(1),
    };
    session.start().unwrap();
    passes(&mut session, Model::new(plan));
    ledger
}

fn lockstep(workload: &str, interference: Option<Interference>) -> Ledger {
    run_with(workload, None, interference, |session, mut model| {
        let passes = Lockstep { passes: 4, steps_per_pass: 2, self_check: SelfCheck::Every };
        passes.run(session, &mut model).unwrap();
    })
}

fn live(workload: &str, interference: Option<Interference>) -> Ledger {
    run_with(workload, None, interference, |session, model| {
        let passes = Live { passes: 4, interval: Duration::ZERO, self_check: SelfCheck::Final };
        passes.run(session, model).unwrap();
    })
}

#[test]
fn a_right_run_passes_in_both_modes() {
    for workload in ["full:writes=8", "lse", "mixed", "readonly"] {
        for ledger in [lockstep(workload, None), live(workload, None)] {
            assert_eq!(ledger.verdict, Verdict::Pass, "{workload}: {:?}", ledger.mismatches);
            assert_eq!(ledger.passes.len(), 5);
            assert_eq!(ledger.region.equal, Some(true));
            assert_eq!(ledger.region.sum_r_source, ledger.region.sum_r_dest);
            assert!(ledger.passes.iter().all(|pass| pass.missing == 0 && pass.extra == 0));
        }
    }
}

/// Two host pages that `full` writes in the last steps of pass 2 and not in pass 3, and one that it never writes there.
fn pages_of_pass_2() -> ([u64; 2], u64) {
    let mut model = Model::new(plan("full:writes=8"));
    model.advance_all(3, HOST_PAGE);
    let written = model.advance_all(5, HOST_PAGE);
    let mut pages = written.iter();
    let clean = (0..written.pages()).find(|&page| !written.test(page)).unwrap();
    ([pages.next().unwrap(), pages.next().unwrap()], clean)
}

#[track_caller]
fn expect_found(ledger: &Ledger, check: &str, page: u64) {
    assert_eq!(ledger.verdict, Verdict::Fail);
    let found = ledger.mismatches.iter().find(|found| found.check == check);
    let found = found.unwrap_or_else(|| panic!("{check} found nothing: {:?}", ledger.mismatches));
    assert_eq!((found.pass, found.page), (2, Some(page)));
    let gpa = Gpa::new(found.gpa.unwrap());
    assert_eq!(gpa.checked_offset_from(map::REGION_BASE).unwrap() / HOST_PAGE, page);
}

#[test]
fn each_fault_is_found_by_its_checker_at_its_page_and_pass() {
    let ([first, second], clean) = pages_of_pass_2();
    for (kind, page, check) in [
        (InterferenceKind::LoseBit, first, "missing"),
        (InterferenceKind::LoseBit, first, "copy"),
        (InterferenceKind::AddBit, clean, "extra"),
        (InterferenceKind::SkipPage, first, "copy"),
        (InterferenceKind::SwapPages { other: second }, first, "copy"),
        (InterferenceKind::FlipBit, first, "copy"),
        (InterferenceKind::LeaveTail, first, "copy"),
        (InterferenceKind::WriteBehindTheLog, clean, "region"),
        (InterferenceKind::WriteBehindTheLog, clean, "self-check"),
    ] {
        let ledger = lockstep("full:writes=8", Some(Interference { pass: 2, page, kind }));
        expect_found(&ledger, check, page);
    }
}

#[test]
fn a_digest_that_differs_is_recorded_beside_the_byte() {
    let ([page, _], _) = pages_of_pass_2();
    let ledger = lockstep("full:writes=8", Some(Interference { pass: 2, page, kind: InterferenceKind::FlipBit }));
    assert!(ledger.mismatches.iter().any(|found| found.check == "digest-copy" && found.pass == 2));
    let pass = &ledger.passes[2];
    assert_ne!(pass.digest_copy, pass.digest_model);
    assert_eq!(pass.digest_guest, pass.digest_model);
}

#[test]
fn live_faults_are_found_too() {
    // In live mode pass 2 executes steps 4 to 6 of this guest.
    let mut model = Model::new(plan("full:writes=8"));
    model.advance_all(4, HOST_PAGE);
    let written = model.advance_all(7, HOST_PAGE);
    let page = written.iter().next().unwrap();
    for (kind, check) in [
        (InterferenceKind::LoseBit, "missing"),
        (InterferenceKind::SkipPage, "staleness"),
        (InterferenceKind::FlipBit, "staleness"),
    ] {
        let ledger = live("full:writes=8", Some(Interference { pass: 2, page, kind }));
        expect_found(&ledger, check, page);
    }
}

#[test]
fn what_one_log_reports_and_another_does_not_fails_the_run() {
    let ([page, _], _) = pages_of_pass_2();
    let ledger = run_with("full:writes=8", Some(page), None, |session, mut model| {
        let passes = Lockstep { passes: 4, steps_per_pass: 2, self_check: SelfCheck::Final };
        passes.run(session, &mut model).unwrap();
    });
    assert_eq!(ledger.verdict, Verdict::Fail);
    assert!(ledger.mismatches.iter().all(|found| found.check == "logs-agree" && found.page == Some(page)));
    assert!(ledger.mismatches.iter().any(|found| found.pass == 2), "{:?}", ledger.mismatches);
}

#[test]
fn a_copy_that_ends_unequal_is_recorded_by_the_last_comparison() {
    let page = 5;
    let kind = InterferenceKind::FlipBit;
    let ledger = lockstep("full:writes=8", Some(Interference { pass: 4, page, kind }));
    assert_eq!(ledger.region.equal, Some(false));
    assert_ne!(ledger.region.sum_r_source, ledger.region.sum_r_dest);
    let found = ledger.mismatches.iter().find(|found| found.check == "equal").expect("the comparison found it");
    assert_eq!((found.pass, found.page), (4, Some(page)));
}
