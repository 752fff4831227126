//! What every [`DirtyLog`] must do, run for every kind that this host has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use abi::{Arch, Gpa, GuestRange, map};

use super::{
    AcceleratorLog, DirtyLog, DirtyLogError, DirtyLogKind, FirstHarvest, PageBitmap, PagemapScanLog, SeveralLogs,
};
use crate::backend::store_guest::StoreGuest;
use crate::backend::{Accelerator, BackendError, GicState, PlantedFault, Vcpu, Vm, VmHandle, open, why_no_kvm_log};
use crate::machine::{MachineConfig, Start};
use crate::memory::{Backing, GuestMemory, MemoryError, SlotId, host_page_bytes};

/// Pages of the region: no multiple of 64.
const PAGES: u64 = 203;

/// The emulator's log without its vCPUs: what the VMM's own writes go through.
struct LogOnly {
    log: emulator::dirty::DirtyLog,
}

impl Vm for LogOnly {
    fn accelerator(&self) -> Accelerator {
        Accelerator::Emulator
    }
    fn take_vcpu(&self, _: usize) -> Option<Box<dyn Vcpu>> {
        None
    }
    fn kick(&self, _: usize) {}
    fn set_irq_line(&self, _: u32, _: bool) {}
    fn save_gic(&self) -> Result<GicState, BackendError> {
        unreachable!("the suite saves nothing")
    }
    fn restore_gic(&self, _: &GicState) -> Result<(), BackendError> {
        unreachable!("the suite restores nothing")
    }
    fn mark_dirty(&self, range: GuestRange) {
        self.log.mark_range(range.start(), range.len_bytes());
    }
    fn log_page_bytes(&self) -> u64 {
        1 << self.log.page_shift()
    }
    fn start_dirty_log(&self, _: &[SlotId]) -> Result<(), BackendError> {
        self.log.start();
        Ok(())
    }
    fn stop_dirty_log(&self) -> Result<(), BackendError> {
        self.log.stop();
        Ok(())
    }
    fn harvest_dirty(&self, slot: SlotId, bitmap: &mut [u64]) -> Result<(), BackendError> {
        self.log
            .harvest(slot.index(), bitmap)
            .map(drop)
            .map_err(|error| BackendError::DirtyLog { accelerator: Accelerator::Emulator, reason: error.to_string() })
    }
    fn plant(&self, _: PlantedFault) -> Result<(), BackendError> {
        unreachable!("the suite plants nothing")
    }
    fn now_ticks(&self) -> u64 {
        0
    }
    fn ticks_per_second(&self) -> u64 {
        1
    }
    fn warp_to_next_deadline(&self) -> Result<bool, BackendError> {
        Ok(false)
    }
}

/// Who writes the memory that a log watches: the VMM, which tells the log, or a guest.
#[derive(Clone)]
struct Writer {
    memory: GuestMemory,
    vm: VmHandle,
    guest: Option<Arc<Mutex<StoreGuest>>>,
}

impl Writer {
    /// Single bytes are stored by the guest where there is one, so that both kinds of write are in the log.
    fn write(&self, slot: SlotId, offset: u64, bytes: &[u8]) {
        let gpa = self.memory.slot(slot).range().start().checked_add(offset).unwrap();
        match (&self.guest, bytes) {
            (Some(guest), [byte]) => guest.lock().unwrap().store(gpa, *byte, 1, 1),
            _ => {
                self.memory.write(gpa, bytes).unwrap();
                self.vm.mark_dirty(GuestRange::new(gpa, bytes.len() as u64).unwrap());
            }
        }
    }
}

/// A log with who writes what it watches.
struct Rig {
    writer: Writer,
    log: Box<dyn DirtyLog>,
}

impl Rig {
    fn write(&self, slot: SlotId, offset: u64, bytes: &[u8]) {
        self.writer.write(slot, offset, bytes);
    }

    fn bitmap(&self, slot: SlotId) -> PageBitmap {
        PageBitmap::covering(self.writer.memory.slot(slot).range().len_bytes(), self.log.page_bytes())
    }

    fn harvest(&mut self) -> PageBitmap {
        let mut dirty = self.bitmap(SlotId::Region);
        self.log.harvest(SlotId::Region, &mut dirty).unwrap();
        dirty
    }

    fn pages(&mut self) -> Vec<u64> {
        self.harvest().iter().collect()
    }

    /// Starts the log and takes the first harvest of a log that reports every page in it.
    fn start(&mut self) {
        self.log.start().unwrap();
        if self.log.first_harvest() == FirstHarvest::AllSet {
            assert_eq!(self.harvest().count(), PAGES, "{}: the first harvest is every page", self.log.kind());
        }
    }
}

fn memory(backing: Backing) -> Result<GuestMemory, MemoryError> {
    let ram = GuestRange::new(map::RAM_BASE, 64 * host_page_bytes()).unwrap();
    GuestMemory::on(backing, ram, GuestRange::new(map::REGION_BASE, PAGES * host_page_bytes()).unwrap())
}

/// The emulator's log, without a guest.
fn emulated(memory: GuestMemory) -> Writer {
    let slots = memory.slots().iter().map(|slot| (slot.range().start(), slot.range().len_bytes()));
    let log = emulator::dirty::DirtyLog::new(host_page_bytes().trailing_zeros(), slots).unwrap();
    Writer { memory, vm: Arc::new(LogOnly { log }), guest: None }
}

/// A machine of KVM's that keeps the log `kind`, with a guest.
fn on_kvm(kind: DirtyLogKind) -> Option<Writer> {
    let kvm_log = kind.kvm_log()?;
    if let Some(reason) = why_no_kvm_log(kvm_log) {
        println!("skipped: {kind}: {reason}");
        return None;
    }
    let memory = memory(Backing::Memfd).unwrap();
    let config = MachineConfig { accelerator: Accelerator::Kvm, kvm_log, ..MachineConfig::default() };
    let start = Start { arch: Arch::Aarch64, entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None };
    let vm = open(&config, &config.layout().unwrap(), &memory, start).unwrap();
    let guest = Some(Arc::new(Mutex::new(StoreGuest::load(&vm, &memory))));
    Some(Writer { memory, vm, guest })
}

/// Runs `check` on a fresh rig of every kind of log that this host has, alone and beside PAGEMAP_SCAN.
fn on_every_log(check: impl Fn(&mut Rig)) {
    let slots = [SlotId::Region];
    let writer = |kind| {
        if kind == DirtyLogKind::Emulator { Some(emulated(memory(Backing::Memfd).unwrap())) } else { on_kvm(kind) }
    };
    let own = |kind, writer: &Writer| -> Box<dyn DirtyLog> {
        Box::new(AcceleratorLog::new(kind, writer.vm.clone(), &writer.memory, &slots))
    };
    for kind in DirtyLogKind::ALL {
        if kind == DirtyLogKind::PagemapScan {
            for backing in [Backing::Memfd, Backing::Anonymous, Backing::Thp] {
                let memory = match memory(backing) {
                    Ok(memory) => memory,
                    Err(error) => {
                        println!("skipped: {error}");
                        continue;
                    }
                };
                let writer = emulated(memory);
                match PagemapScanLog::new(&writer.memory, &slots) {
                    Ok(log) => check(&mut Rig { log: Box::new(log), writer }),
                    Err(error) => println!("skipped: {error}"),
                }
            }
            continue;
        }
        if let Some(writer) = writer(kind) {
            check(&mut Rig { log: own(kind, &writer), writer });
        }
        if let Some(writer) = writer(kind)
            && let Ok(beside) = PagemapScanLog::new(&writer.memory, &slots)
        {
            let logs = vec![own(kind, &writer), Box::new(beside)];
            check(&mut Rig { log: Box::new(SeveralLogs::new(&writer.memory, logs)), writer });
        }
    }
}

#[test]
fn a_harvest_is_the_exact_set_and_leaves_the_log_clean() {
    on_every_log(|rig| {
        rig.start();
        assert_eq!(rig.pages(), [0; 0]);
        let page = rig.log.page_bytes();
        for index in [0, 1, 63, 64, 127, PAGES - 1] {
            rig.write(SlotId::Region, index * page + 8, &[1]);
        }
        assert_eq!(rig.pages(), [0, 1, 63, 64, 127, PAGES - 1]);
        assert_eq!(rig.pages(), [0; 0]);
    });
}

#[test]
fn the_first_harvest_is_as_declared() {
    on_every_log(|rig| {
        rig.log.start().unwrap();
        rig.write(SlotId::Region, 0, &[1]);
        let expected = if rig.log.first_harvest() == FirstHarvest::AllSet { PAGES } else { 1 };
        assert_eq!(rig.harvest().count(), expected);
    });
}

#[test]
fn a_page_written_again_is_dirty_again() {
    on_every_log(|rig| {
        rig.start();
        for value in 1..5 {
            rig.write(SlotId::Region, 70 * rig.log.page_bytes(), &[value]);
            assert_eq!(rig.pages(), [70]);
        }
    });
}

#[test]
fn a_write_across_a_page_border_dirties_both_and_reading_none() {
    on_every_log(|rig| {
        rig.start();
        let page = rig.log.page_bytes();
        rig.write(SlotId::Region, 10 * page - 2, &[1, 2, 3, 4]);
        let mut bytes = [0; 64];
        rig.writer.memory.copy_from_slot(SlotId::Region, 50 * page, &mut bytes).unwrap();
        assert_eq!(rig.pages(), [9, 10]);
    });
}

#[test]
fn a_harvest_replaces_what_the_bitmap_holds() {
    on_every_log(|rig| {
        rig.start();
        rig.write(SlotId::Region, 0, &[1]);
        let mut dirty = rig.bitmap(SlotId::Region);
        dirty.set(100);
        rig.log.harvest(SlotId::Region, &mut dirty).unwrap();
        assert_eq!(dirty.iter().collect::<Vec<_>>(), [0]);
    });
}

#[test]
fn writes_outside_the_slot_are_not_reported() {
    on_every_log(|rig| {
        rig.start();
        rig.write(SlotId::Ram, 4096, &[1]);
        rig.writer.vm.mark_dirty(GuestRange::new(Gpa::new(0x10_0000), 1 << 16).unwrap());
        assert_eq!(rig.pages(), [0; 0]);
    });
}

#[test]
fn writes_while_stopped_are_not_reported() {
    on_every_log(|rig| {
        rig.write(SlotId::Region, 0, &[1]);
        rig.start();
        assert_eq!(rig.pages(), [0; 0]);
        rig.write(SlotId::Region, 3 * rig.log.page_bytes(), &[1]);
        rig.log.stop().unwrap();
        rig.write(SlotId::Region, 4 * rig.log.page_bytes(), &[1]);
        rig.start();
        assert_eq!(rig.pages(), [0; 0]);
        rig.write(SlotId::Region, 5 * rig.log.page_bytes(), &[1]);
        assert_eq!(rig.pages(), [5]);
        rig.log.stop().unwrap();
    });
}

#[test]
fn use_in_the_wrong_state_is_refused() {
    on_every_log(|rig| {
        let mut dirty = rig.bitmap(SlotId::Region);
        assert!(rig.log.harvest(SlotId::Region, &mut dirty).is_err());
        assert!(rig.log.stop().is_err());
        rig.start();
        assert!(matches!(rig.log.start(), Err(DirtyLogError::Running { .. })));
        let mut short = PageBitmap::new(PAGES - 1, rig.log.page_bytes());
        assert!(matches!(rig.log.harvest(SlotId::Region, &mut short), Err(DirtyLogError::Size { .. })));
        let mut ram = rig.bitmap(SlotId::Ram);
        assert!(matches!(rig.log.harvest(SlotId::Ram, &mut ram), Err(DirtyLogError::NotLogging { .. })));
    });
}

#[test]
fn no_write_made_during_a_harvest_is_lost() {
    on_every_log(|rig| {
        rig.start();
        let page = rig.log.page_bytes();
        let mut copy = vec![0; (PAGES * page) as usize];
        let begun = Barrier::new(2);
        let ended = AtomicBool::new(false);
        let writer = rig.writer.clone();
        thread::scope(|scope| {
            scope.spawn(|| {
                begun.wait();
                for value in 0_u64..200_000 {
                    let index = value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                    writer.write(SlotId::Region, index % PAGES * page + 16, &value.to_le_bytes());
                }
                ended.store(true, Ordering::Release);
            });
            begun.wait();
            loop {
                // Asked before the harvest, so that the last harvest comes after the last write.
                let last = ended.load(Ordering::Acquire);
                let dirty = rig.harvest();
                for index in dirty.iter() {
                    let start = index * page;
                    let bytes = &mut copy[start as usize..][..page as usize];
                    rig.writer.memory.copy_from_slot(SlotId::Region, start, bytes).unwrap();
                }
                if last {
                    break;
                }
            }
        });
        let mut now = vec![0; copy.len()];
        rig.writer.memory.copy_from_slot(SlotId::Region, 0, &mut now).unwrap();
        assert!(now == copy, "{}: a write is missing from the copy", rig.log.kind());
    });
}

#[test]
fn this_host_says_why_a_log_is_missing() {
    match PagemapScanLog::new(&memory(Backing::Memfd).unwrap(), &[SlotId::Region]) {
        Ok(log) => assert_eq!(log.kind(), DirtyLogKind::PagemapScan),
        Err(error) => assert!(error.to_string().contains("needs")),
    }
}

#[test]
fn pagemap_scan_tells_a_transparent_huge_page_page_by_page_and_refuses_hugetlb() {
    let (page, block) = (host_page_bytes(), Backing::Thp.block_bytes());
    let ram = GuestRange::new(map::RAM_BASE, page).unwrap();
    let region = GuestRange::new(map::REGION_BASE, 2 * block).unwrap();
    for backing in [Backing::Thp, Backing::Hugetlb { page_bytes: None }] {
        let memory = match GuestMemory::on(backing, ram, region) {
            Ok(memory) if block <= 2 << 20 => memory,
            Ok(_) => continue,
            Err(error) => {
                println!("skipped: {error}");
                continue;
            }
        };
        let write = |index| memory.write(map::REGION_BASE.checked_add(index * page).unwrap(), &[1]).unwrap();
        (0..2 * block / page).for_each(write);
        let mut log = match (PagemapScanLog::new(&memory, &[SlotId::Region]), backing) {
            (Ok(log), Backing::Thp) => log,
            (Err(error), Backing::Hugetlb { .. }) => {
                assert!(error.to_string().contains("hugetlb"), "{error}");
                continue;
            }
            (Err(error), _) => {
                println!("skipped: {error}");
                continue;
            }
            (Ok(_), _) => panic!("pages of hugetlb cannot be told one by one"),
        };
        log.start().unwrap();
        let mut harvest = || {
            let mut dirty = PageBitmap::covering(region.len_bytes(), page);
            log.harvest(SlotId::Region, &mut dirty).unwrap();
            dirty.iter().collect::<Vec<_>>()
        };
        assert_eq!(harvest().len() as u64, 2 * block / page);
        for pages in [vec![3, 511, 512], vec![4], vec![], vec![0, 1023]] {
            pages.iter().for_each(|index| write(*index));
            assert_eq!(harvest(), pages);
        }
    }
}
