//! What every accelerator must do, run on those that this host has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use abi::{Arch, Gpa, GuestRange, Tables, map};

use super::store_guest::StoreGuest;
use super::{Accelerator, Exit, VmHandle, boot, open, why_no_kvm_guest};
use crate::machine::{MachineConfig, Start};
use crate::memory::{GuestMemory, host_page_bytes};

/// Runs `check` with a machine of each architecture on each accelerator.
fn on_every_accelerator(check: impl Fn(Arch, &VmHandle, &GuestMemory)) {
    for (arch, tables) in [(Arch::Aarch64, MachineConfig::default().tables), (Arch::Armv7, Tables::Lpae)] {
        for accelerator in [Accelerator::Emulator, Accelerator::Kvm] {
            if let (Accelerator::Kvm, Some(reason)) = (accelerator, why_no_kvm_guest(arch)) {
                println!("skipped: {reason}");
                continue;
            }
            let page = host_page_bytes();
            let ram = GuestRange::new(map::RAM_BASE, 16 * page).unwrap();
            let memory = GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, 64 * page).unwrap(), None).unwrap();
            let config = MachineConfig { accelerator, tables, ..MachineConfig::default() };
            let start = Start { arch, entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None };
            check(arch, &open(&config, &config.layout().unwrap(), &memory, start).unwrap(), &memory);
        }
    }
}

#[test]
fn a_vcpu_starts_as_its_architecture_s_boot_protocol_says() {
    on_every_accelerator(|arch, vm, _| {
        let mut vcpu = vm.take_vcpu(0).unwrap();
        let start = Start { arch, entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None };
        for (register, value) in boot::registers(start) {
            assert_eq!(vcpu.get_reg(register).unwrap(), value.into(), "{arch} {register:#x}");
        }
    });
}

#[test]
fn what_a_guest_stored_is_there_when_it_exits() {
    on_every_accelerator(|arch, vm, memory| {
        let mut guest = StoreGuest::load_for(arch, vm, memory);
        for value in 1..4 {
            let first = Gpa::new(map::REGION_BASE.raw() + 3);
            guest.store(first, value, host_page_bytes(), 64);
            let mut byte = [0];
            for page in 0..64 {
                memory.read(first.checked_add(page * host_page_bytes()).unwrap(), &mut byte).unwrap();
                assert_eq!(byte, [value]);
            }
        }
    });
}

#[test]
fn kicks_end_a_run_that_is_under_way_and_one_that_comes() {
    on_every_accelerator(|arch, vm, memory| {
        let mut guest = StoreGuest::load_for(arch, vm, memory);
        vm.kick(0);
        assert_eq!(guest.spin().run(None).unwrap(), Exit::Kicked);
        // Each kick is answered before the next is sent; they meet the vCPU at every point of its way in and out.
        let answered = Arc::new(AtomicU64::new(0));
        thread::scope(|scope| {
            let (kicks, vm) = (Arc::clone(&answered), Arc::clone(vm));
            scope.spawn(move || {
                for kick in 0..500 {
                    vm.kick(0);
                    while kicks.load(Ordering::SeqCst) <= kick {
                        thread::yield_now();
                    }
                }
            });
            while answered.load(Ordering::SeqCst) < 500 {
                assert_eq!(guest.spin().run(None).unwrap(), Exit::Kicked);
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    });
}
