//! The backend on this host's KVM, with a guest of a few instructions. Without KVM each test says that it is skipped.
//!
//! Nothing here assumes a size of the host's pages.

mod refusals;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use abi::{Arch, Gpa, GuestRange, map};

use crate::backend::store_guest::StoreGuest;
use crate::backend::{Accelerator, Exit, KvmLog, VmHandle, why_no_kvm_log};
use crate::machine::{MachineConfig, Start};
use crate::memory::{GuestMemory, SlotId, host_page_bytes};

/// More than a ring has entries, and no multiple of 64.
const PAGES: u64 = 5003;

fn machine(log: KvmLog) -> Option<(VmHandle, GuestMemory)> {
    machine_of(log, PAGES)
}

/// A machine whose region has `pages` pages.
fn machine_of(log: KvmLog, pages: u64) -> Option<(VmHandle, GuestMemory)> {
    if let Some(reason) = why_no_kvm_log(log) {
        println!("skipped: {reason}");
        return None;
    }
    let page = host_page_bytes();
    let ram = GuestRange::new(map::RAM_BASE, 16 * page).unwrap();
    let memory = GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, pages * page).unwrap(), None).unwrap();
    let config = MachineConfig { accelerator: Accelerator::Kvm, kvm_log: log, ..MachineConfig::default() };
    let start = Start { arch: Arch::Aarch64, entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None };
    Some((super::open(&config, &memory, start).unwrap(), memory))
}

fn page(index: u64) -> Gpa {
    Gpa::new(map::REGION_BASE.raw() + index * host_page_bytes())
}

fn harvest(vm: &VmHandle) -> Vec<u64> {
    harvest_of(vm, PAGES)
}

fn harvest_of(vm: &VmHandle, pages: u64) -> Vec<u64> {
    let mut words = vec![0; pages.div_ceil(64) as usize];
    vm.harvest_dirty(SlotId::Region, &mut words).unwrap();
    // Past the slot's end there is nothing to be dirty.
    assert!(pages.is_multiple_of(64) || words[words.len() - 1] >> (pages % 64) == 0);
    (0..pages).filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 != 0).collect()
}

#[test]
fn every_log_reports_what_the_guest_stored_and_no_more() {
    for log in [KvmLog::Bitmap, KvmLog::Manual, KvmLog::Initset, KvmLog::Ring] {
        let Some((vm, memory)) = machine(log) else { continue };
        let mut guest = StoreGuest::load(&vm, &memory);
        guest.store(page(0), 1, host_page_bytes(), PAGES);
        vm.start_dirty_log(&SlotId::ALL).unwrap();
        if log == KvmLog::Initset {
            assert_eq!(harvest(&vm).len() as u64, PAGES);
        }
        assert_eq!(harvest(&vm), [0; 0], "{log:?}");
        for value in 2..4 {
            guest.store(page(7), value, 200 * host_page_bytes(), 20);
            guest.store(page(PAGES - 1), value, 1, 1);
            let expected: Vec<u64> = (0..20).map(|index| 7 + 200 * index).chain([PAGES - 1]).collect();
            assert_eq!(harvest(&vm), expected, "{log:?}");
        }
        assert_eq!(harvest(&vm), [0; 0], "{log:?}");
        assert!(vm.start_dirty_log(&SlotId::ALL).is_err());
        vm.stop_dirty_log().unwrap();
        assert!(vm.harvest_dirty(SlotId::Region, &mut vec![0; PAGES.div_ceil(64) as usize]).is_err());
    }
}

#[test]
fn a_ring_that_runs_full_loses_nothing() {
    let Some((vm, memory)) = machine(KvmLog::Ring) else { return };
    let mut guest = StoreGuest::load(&vm, &memory);
    vm.start_dirty_log(&SlotId::ALL).unwrap();
    for value in 1..3 {
        // More pages than entries, in one run: it cannot end without the ring having been emptied on the way.
        guest.store(page(0), value, host_page_bytes(), PAGES);
        assert_eq!(harvest(&vm), (0..PAGES).collect::<Vec<_>>());
    }
    assert_eq!(harvest(&vm), [0; 0]);
}

#[test]
fn no_store_made_during_a_harvest_is_lost() {
    for log in [KvmLog::Bitmap, KvmLog::Manual, KvmLog::Ring] {
        let Some((vm, memory)) = machine(log) else { continue };
        let mut guest = StoreGuest::load(&vm, &memory);
        vm.start_dirty_log(&SlotId::ALL).unwrap();
        let mut copy = vec![0; PAGES as usize];
        let mut value = [0];
        thread::scope(|scope| {
            let rounds =
                scope.spawn(move || (1..6).for_each(|value| guest.store(page(0), value, host_page_bytes(), PAGES)));
            loop {
                // Asked before the harvest, so that the last harvest comes after the last store.
                let last = rounds.is_finished();
                for index in harvest(&vm) {
                    memory.read(page(index), &mut value).unwrap();
                    copy[index as usize] = value[0];
                }
                if last {
                    break;
                }
            }
        });
        assert!(copy.iter().all(|value| *value == 5), "{log:?}: a store is missing from the copy");
    }
}

#[test]
fn slots_of_every_odd_size_are_logged_to_their_last_page() {
    for log in [KvmLog::Bitmap, KvmLog::Manual, KvmLog::Initset, KvmLog::Ring] {
        for pages in [1, 2, 63, 64, 65, 127, 129, 4095, 4096, 4097] {
            let Some((vm, memory)) = machine_of(log, pages) else { continue };
            let mut guest = StoreGuest::load(&vm, &memory);
            let all: Vec<u64> = (0..pages).collect();
            vm.start_dirty_log(&[SlotId::Region]).unwrap();
            if log == KvmLog::Initset {
                assert_eq!(harvest_of(&vm, pages), all, "{log:?}, {pages} pages");
            }
            for value in 1..3 {
                guest.store(page(pages - 1), value, 1, 1);
                assert_eq!(harvest_of(&vm, pages), [pages - 1], "{log:?}, {pages} pages: the last one alone");
                guest.store(page(0), value, host_page_bytes(), pages);
                assert_eq!(harvest_of(&vm, pages), all, "{log:?}, {pages} pages");
            }
            assert_eq!(harvest_of(&vm, pages), [0; 0], "{log:?}, {pages} pages");
        }
    }
}

#[test]
fn a_storm_of_kicks_and_signals_during_live_harvests_loses_and_adds_nothing() {
    /// Every third page is written.
    const STRIDE: u64 = 3;
    const WRITTEN: u64 = PAGES / STRIDE;
    const ROUNDS: u8 = 6;
    const KICKS: u32 = 2000;
    for log in [KvmLog::Bitmap, KvmLog::Manual, KvmLog::Ring] {
        let Some((vm, memory)) = machine(log) else { continue };
        let mut guest = StoreGuest::load(&vm, &memory);
        vm.start_dirty_log(&[SlotId::Region]).unwrap();
        let mut copy = vec![0; PAGES as usize];
        let mut found = vec![0_u32; PAGES as usize];
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let (sender, runner) = mpsc::channel();
            let (over, vm) = (&over, &vm);
            scope.spawn(move || {
                let _over = SetWhenDropped(over);
                sender.send(ThreadToSignal::this()).unwrap();
                let stride = STRIDE * host_page_bytes();
                (1..=ROUNDS).for_each(|value| guest.store(page(0), value, stride, WRITTEN));
            });
            let runner = runner.recv().unwrap();
            // Signals that no kick announces end the guest's run as well.
            scope.spawn(move || {
                // As many as leave a slow host time to run the guest between them.
                for _ in 0..KICKS {
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    vm.kick(0);
                    thread::yield_now();
                    runner.interrupt();
                    thread::yield_now();
                }
            });
            loop {
                let last = over.load(Ordering::SeqCst);
                for index in harvest(vm) {
                    let mut value = [0];
                    memory.read(page(index), &mut value).unwrap();
                    copy[index as usize] = value[0];
                    found[index as usize] += 1;
                }
                if last {
                    break;
                }
            }
        });
        for (index, (copied, found)) in copy.iter().zip(&found).enumerate() {
            let written = (index as u64).is_multiple_of(STRIDE) && index as u64 / STRIDE < WRITTEN;
            assert_eq!(*copied, if written { ROUNDS } else { 0 }, "{log:?}: page {index}");
            // A store that is interrupted after its fault faults again: a page may be found once more than it was written,
            // but none that was not.
            assert_eq!(*found > 0, written, "{log:?}: page {index} was dirty {found} times");
        }
        assert_eq!(harvest(&vm), [0; 0], "{log:?}");
    }
}

/// Ends its thread's companions, however the thread ends.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The thread that runs the guest, to be interrupted by the signal that kicks use, without a kick.
#[derive(Clone, Copy)]
struct ThreadToSignal {
    process: libc::pid_t,
    thread: libc::pid_t,
}

impl ThreadToSignal {
    #[expect(unsafe_code, reason = "asks for the thread's number")]
    fn this() -> Self {
        // SAFETY: they have no preconditions.
        let (process, thread) = (unsafe { libc::getpid() }, unsafe { libc::gettid() });
        Self { process, thread }
    }

    #[expect(unsafe_code, reason = "sends a signal")]
    fn interrupt(self) {
        // SAFETY: by the thread's number in this process, so that a thread that has ended is an error and no harm; the
        // backend has installed a handler that does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, libc::SIGRTMIN()) };
    }
}

#[test]
fn what_does_not_fit_is_refused_in_so_many_words() {
    let Some((vm, memory)) = machine(KvmLog::Bitmap) else { return };
    assert!(vm.warp_to_next_deadline().unwrap_err().to_string().contains("kvm cannot"));
    let mut vcpu = vm.take_vcpu(0).unwrap();
    assert!(vm.take_vcpu(0).is_none());
    assert!(vcpu.run(Some(1)).unwrap_err().to_string().contains("count instructions"));
    let error = vcpu.get_reg(0x6030_0000_0013_ffff).unwrap_err().to_string();
    assert!(error.contains("vCPU 0") && error.contains("0x603000000013ffff"), "{error}");
    // An LDP of a device: the hardware does not describe such an access.
    memory.write(map::RAM_BASE, &0xa940_0440_u32.to_le_bytes()).unwrap();
    vcpu.set_reg(0x6030_0000_0010_0004, map::DOORBELL_BASE.raw().into()).unwrap();
    let error = vcpu.run(None).unwrap_err().to_string();
    for word in ["vCPU 0", "pc=0x40000000", "x2=0xb000000", "memslots RAM ", "sctlr_el1="] {
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_state_that_cannot_be_entered_is_refused_and_the_vcpu_lives_on() {
    let Some((vm, memory)) = machine(KvmLog::Bitmap) else { return };
    let mut guest = StoreGuest::load(&vm, &memory);
    let mut vcpu = guest.spin();
    for mode in [0x9_u128, 0xd, 0x3ff] {
        let error = vcpu.set_reg(0x6030_0000_0010_0042, mode).unwrap_err().to_string();
        assert!(error.contains("vCPU 0") && error.contains("os error 22"), "{mode:#x}: {error}");
    }
    vm.kick(0);
    assert_eq!(vcpu.run(None).unwrap(), Exit::Kicked);
    vcpu = guest.spin();
    vm.kick(0);
    assert_eq!(vcpu.run(None).unwrap(), Exit::Kicked);
}

#[test]
fn the_gic_s_state_is_not_to_be_had_while_a_vcpu_runs() {
    let Some((vm, memory)) = machine(KvmLog::Bitmap) else { return };
    let mut guest = StoreGuest::load(&vm, &memory);
    let stop = AtomicBool::new(false);
    let error = thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(guest.spin().run(None).unwrap(), Exit::Kicked);
            }
        });
        let error = loop {
            // Until the vCPU is found inside its run.
            if let Err(error) = vm.save_gic() {
                break error;
            }
            thread::yield_now();
        };
        stop.store(true, Ordering::SeqCst);
        vm.kick(0);
        error
    });
    assert!(error.to_string().contains("GIC register") && error.to_string().contains("os error 16"), "{error}");
    vm.save_gic().unwrap();
}
