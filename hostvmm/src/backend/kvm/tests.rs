//! The backend on this host's KVM, with a guest of a few instructions. Without KVM each test says that it is skipped.

use std::thread;

use abi::{Arch, Gpa, GuestRange, map};

use crate::backend::store_guest::StoreGuest;
use crate::backend::{Accelerator, Exit, KvmLog, VmHandle, why_no_kvm_log};
use crate::machine::{MachineConfig, Start};
use crate::memory::{GuestMemory, SlotId, host_page_bytes};

/// More than a ring has entries, and no multiple of 64.
const PAGES: u64 = 5003;

fn machine(log: KvmLog) -> Option<(VmHandle, GuestMemory)> {
    if let Some(reason) = why_no_kvm_log(log) {
        println!("skipped: {reason}");
        return None;
    }
    let page = host_page_bytes();
    let ram = GuestRange::new(map::RAM_BASE, 16 * page).unwrap();
    let memory = GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, PAGES * page).unwrap(), None).unwrap();
    let config = MachineConfig { accelerator: Accelerator::Kvm, kvm_log: log, ..MachineConfig::default() };
    let start = Start { arch: Arch::Aarch64, entry: map::RAM_BASE, devicetree: map::RAM_BASE };
    Some((super::open(&config, &memory, start).unwrap(), memory))
}

fn page(index: u64) -> Gpa {
    Gpa::new(map::REGION_BASE.raw() + index * host_page_bytes())
}

fn harvest(vm: &VmHandle) -> Vec<u64> {
    let mut words = vec![0; PAGES.div_ceil(64) as usize];
    vm.harvest_dirty(SlotId::Region, &mut words).unwrap();
    (0..PAGES).filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 != 0).collect()
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
fn an_access_is_completed_before_registers_are_read() {
    let Some((vm, memory)) = machine(KvmLog::Bitmap) else { return };
    let mut guest = StoreGuest::load(&vm, &memory);
    guest.store(page(0), 1, 1, 1);
    // Past the store to the doorbell, and a kick that came meanwhile is still reported.
    vm.kick(0);
    let mut vcpu = guest.into_vcpu();
    assert_eq!(vcpu.get_reg(0x6030_0000_0010_0040).unwrap(), u128::from(map::RAM_BASE.raw() + 20));
    assert_eq!(vcpu.run(None).unwrap(), Exit::Kicked);
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
    assert!(error.contains("vCPU 0") && error.contains("pc=0x40000000"), "{error}");
}
