//! Two instances whose guests are made equal again and again through [`ColoVm`], as a pair's driver does it, but without one:
//! stop both, copy what either wrote, save, load, go on. Whichever goes on alone in the end, its guest is whole.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use abi::Arch;
use hostvmm::colo::{ColoVm as _, Side};
use hostvmm::dirty::{DirtyLogKind, PageBitmap};
use hostvmm::instance::{ColoOptions, Incoming, Instance, Options};
use hostvmm::machine::{MachineConfig, armv7_tables};
use hostvmm::memory::SlotId;
use hostvmm::migrate::ClockOffset;
use hostvmm::report::Verdict;
use hostvmm::verify::{Mode, SelfCheck, Spec};
use tests::{armv7_firmware_or_skip, firmware_or_skip};
use workload::Workload;

/// Checkpoints of a pair.
const CHECKPOINTS: u64 = 60;
/// How long the guests run between two: nothing depends on it but how much there is to do.
const RUN: Duration = Duration::from_millis(3);

fn spec(arch: Arch, vcpus: usize) -> Option<Spec> {
    let firmware = match arch {
        Arch::Aarch64 => firmware_or_skip(),
        Arch::Armv7 => armv7_firmware_or_skip(),
    }?;
    let workload = Workload::parse("dirtyram:pages=512,step=16,sleep_ms=1").unwrap();
    let (pattern, params) = workload.encode();
    let mut machine = MachineConfig { vcpus, pattern, params, seed: 7, ..MachineConfig::default() };
    (machine.ram_bytes, machine.region_bytes) = (16 << 20, 2 << 20);
    if arch == Arch::Armv7 {
        machine.tables = armv7_tables(true, abi::Granule::K4, 32).unwrap();
    }
    Some(Spec {
        scenario: "run",
        machine,
        firmware: firmware.to_owned(),
        workload,
        logs: vec![DirtyLogKind::Emulator],
        passes: 0,
        steps_per_pass: 1,
        mode: Mode::Live,
        interval: Duration::ZERO,
        self_check: SelfCheck::Final,
        dest: None,
    })
}

/// Makes the memory of `to` that of `from` where either has written since the last time; returns how many pages that is.
fn make_equal(from: &Instance, to: &Instance) -> u64 {
    let mut pages = 0;
    for slot in SlotId::ALL {
        let len_bytes = from.memory().slot(slot).range().len_bytes();
        let mut dirty = [from, to].map(|vm| {
            let mut dirty = PageBitmap::covering(len_bytes, vm.log_page_bytes());
            vm.harvest(slot, &mut dirty).unwrap();
            dirty
        });
        let [mine, theirs] = &mut dirty;
        mine.or(theirs);
        let mut bytes = vec![0; mine.page_bytes() as usize];
        for page in mine.iter() {
            from.memory().copy_from_slot(slot, page * mine.page_bytes(), &mut bytes).unwrap();
            to.memory().copy_to_slot(slot, page * mine.page_bytes(), &bytes).unwrap();
        }
        pages += mine.count();
        let mut whole = [vec![0; len_bytes as usize], vec![0; len_bytes as usize]];
        for (vm, bytes) in [from, to].into_iter().zip(&mut whole) {
            vm.memory().copy_from_slot(slot, 0, bytes).unwrap();
        }
        assert!(whole[0] == whole[1], "the {slot} differs though every dirty page was copied");
    }
    pages
}

fn pair(arch: Arch, vcpus: usize, survivor: Side) {
    let Some(spec) = spec(arch, vcpus) else { return };
    let options = |side| Options {
        incoming: (side == Side::Secondary).then_some(Incoming::Defer),
        colo: ColoOptions { side: Some(side), ..ColoOptions::default() },
        ..Options::default()
    };
    let [primary, secondary] =
        [Side::Primary, Side::Secondary].map(|side| Instance::new(&spec, options(side)).unwrap());
    // Before the guest's first instruction: then nothing was written that is not logged but the image, which is copied.
    for vm in [&primary, &secondary] {
        vm.start_log().unwrap();
    }
    for slot in SlotId::ALL {
        let len_bytes = primary.memory().slot(slot).range().len_bytes();
        let mut bytes = vec![0; len_bytes as usize];
        primary.memory().copy_from_slot(slot, 0, &mut bytes).unwrap();
        secondary.memory().copy_to_slot(slot, 0, &bytes).unwrap();
    }
    let runs = [&primary, &secondary].map(|vm| {
        let vm = Arc::clone(vm);
        thread::spawn(move || vm.run().unwrap())
    });
    let mut copied = Vec::new();
    for _ in 0..CHECKPOINTS {
        // Either may give its guest steps meanwhile, also the first ones.
        thread::sleep(RUN);
        secondary.pause().unwrap();
        let stopped = primary.pause().unwrap();
        copied.push(make_equal(&primary, &secondary));
        let sections = primary.save().unwrap();
        secondary.load(&sections, stopped, ClockOffset::SAME).unwrap();
        assert_eq!(
            make_equal(&primary, &secondary),
            0,
            "neither saving nor loading writes memory, nor counts as written"
        );
        primary.resume();
        secondary.resume();
    }
    println!("{arch} {vcpus} {survivor}: {copied:?}");
    let (stays, goes) = if survivor == Side::Primary { (primary, secondary) } else { (secondary, primary) };
    goes.pause().unwrap();
    goes.fenced();
    stays.survive(survivor);
    for vm in [&stays, &goes] {
        vm.stop_log().unwrap();
        vm.end();
    }
    let ledgers = runs.map(|run| run.join().unwrap());
    for ledger in &ledgers {
        assert_eq!(ledger.verdict, Verdict::Pass, "{:?} {:?}", ledger.reason, ledger.mismatches);
    }
    let checked = &ledgers[usize::from(survivor == Side::Secondary)];
    assert!(checked.passes.len() == 1 && checked.passes[0].pass > 1, "its guest was verified: {:?}", checked.passes);
    assert!(ledgers[usize::from(survivor == Side::Primary)].passes.is_empty(), "the other one's is not its own");
}

#[test]
fn an_aarch64_guest_is_followed_and_goes_on_at_either_side() {
    for (vcpus, survivor) in [(1, Side::Primary), (1, Side::Secondary), (4, Side::Secondary)] {
        pair(Arch::Aarch64, vcpus, survivor);
    }
}

#[test]
fn an_armv7_guest_is_followed_and_goes_on_at_either_side() {
    for (vcpus, survivor) in [(4, Side::Primary), (2, Side::Secondary)] {
        pair(Arch::Armv7, vcpus, survivor);
    }
}
