//! Calls that the kernel refuses, by a filter on the thread that makes them: seccomp answers an ioctl with an errno of the
//! test's choice, before KVM sees it. So every call's failure is met as the kernel would report it.
#![expect(unsafe_code, reason = "system calls that restrict the calling thread alone")]

use std::thread;

use abi::{Arch, GuestRange, map};

use crate::backend::{Accelerator, KvmLog, Unavailable, VmHandle, why_no_kvm, why_no_kvm_log};
use crate::machine::{BuildError, MachineConfig, Start};
use crate::memory::{GuestMemory, SlotId, host_page_bytes};

// include/uapi/linux/kvm.h
const KVM_CREATE_VM: u32 = 0xae01;
const KVM_CREATE_VCPU: u32 = 0xae41;
const KVM_GET_DIRTY_LOG: u32 = 0x4010_ae42;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_ARM_VCPU_INIT: u32 = 0x4020_aeae;
const KVM_ARM_PREFERRED_TARGET: u32 = 0x8020_aeaf;
const KVM_ENABLE_CAP: u32 = 0x4068_aea3;
const KVM_CREATE_DEVICE: u32 = 0xc00c_aee0;
const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;
const KVM_SET_ONE_REG: u32 = 0x4010_aeac;
const KVM_GET_ONE_REG: u32 = 0x4010_aeab;
const KVM_RUN: u32 = 0xae80;
const KVM_CLEAR_DIRTY_LOG: u32 = 0xc018_aec0;
const KVM_RESET_DIRTY_RINGS: u32 = 0xaec7;

/// Makes every system call `call` of the calling thread fail with `errno`; with `ioctl`, only that ioctl. False where the
/// kernel has no filters. There is no way back: for threads that end.
fn forbid(call: libc::c_long, ioctl: Option<u32>, errno: i32) -> bool {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let unless =
        |k: u32, jf: u8| libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let leave = libc::BPF_RET | libc::BPF_K;
    // struct seccomp_data: nr at 0, args[1]'s low half at 24.
    let mut program = vec![statement(load, 0)];
    match ioctl {
        Some(request) => program.extend([unless(call as u32, 3), statement(load, 24), unless(request, 1)]),
        None => program.push(unless(call as u32, 1)),
    }
    program.push(statement(leave, libc::SECCOMP_RET_ERRNO | errno as u32));
    program.push(statement(leave, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: it only takes rights away from the calling thread.
    let confined = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0;
    // SAFETY: `filter` and what it points to live through the call, which copies them.
    confined && unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) } == 0
}

/// Runs `check` on a thread whose ioctl `request` fails with `errno`; where the kernel has no filters, says so.
fn without_ioctl(request: u32, errno: i32, check: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            if forbid(libc::SYS_ioctl, Some(request), errno) {
                check();
            } else {
                println!("skipped: no seccomp filters");
            }
        });
    });
}

fn memory() -> GuestMemory {
    let page = host_page_bytes();
    let ram = GuestRange::new(map::RAM_BASE, 16 * page).unwrap();
    GuestMemory::new(ram, GuestRange::new(map::REGION_BASE, 70 * page).unwrap(), None).unwrap()
}

fn open(memory: &GuestMemory, kvm_log: KvmLog) -> Result<VmHandle, BuildError> {
    let config = MachineConfig { accelerator: Accelerator::Kvm, vcpus: 2, kvm_log, ..MachineConfig::default() };
    super::super::open(
        &config,
        memory,
        Start { arch: Arch::Aarch64, entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None },
    )
}

/// Whether this host has KVM's log `log`.
fn has(log: KvmLog) -> bool {
    why_no_kvm_log(log).inspect(|reason| println!("skipped: {reason}")).is_none()
}

#[test]
fn a_machine_that_cannot_be_made_names_the_call() {
    if !has(KvmLog::Bitmap) {
        return;
    }
    for (request, words) in [
        (KVM_CREATE_VCPU, ["KVM_CREATE_VCPU of vCPU 0", "os error 12"]),
        (KVM_ARM_PREFERRED_TARGET, ["KVM_ARM_PREFERRED_TARGET of vCPU 0", "os error 12"]),
        (KVM_ARM_VCPU_INIT, ["KVM_ARM_VCPU_INIT of vCPU 0", "os error 12"]),
        (KVM_SET_USER_MEMORY_REGION, ["memslot RAM at ", "os error 12"]),
        (KVM_SET_DEVICE_ATTR, ["of the GIC", "os error 12"]),
        (KVM_SET_ONE_REG, ["vCPU 0", "os error 12"]),
        (KVM_GET_ONE_REG, ["vCPU 0", "os error 12"]),
    ] {
        without_ioctl(request, libc::ENOMEM, || {
            let error = open(&memory(), KvmLog::Bitmap).err().expect("a refusal").to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
        });
    }
    for (request, errno) in
        [(KVM_CREATE_VM, libc::ENOMEM), (KVM_CREATE_VM, libc::EINTR), (KVM_CREATE_DEVICE, libc::ENODEV)]
    {
        without_ioctl(request, errno, || {
            let error = open(&memory(), KvmLog::Bitmap).err().expect("a refusal");
            assert!(matches!(error, BuildError::Unavailable(_)), "{error}");
            assert!(error.to_string().contains("--accel emulator"), "{error}");
        });
    }
    // Nothing is left over that would stop the next machine.
    open(&memory(), KvmLog::Bitmap).unwrap();
}

#[test]
fn capabilities_that_cannot_be_enabled_are_named() {
    if !has(KvmLog::Manual) {
        return;
    }
    without_ioctl(KVM_ENABLE_CAP, libc::EINVAL, || {
        let error = open(&memory(), KvmLog::Manual).err().expect("a refusal").to_string();
        assert!(error.contains("KVM_ENABLE_CAP") && error.contains("os error 22"), "{error}");
    });
}

#[test]
fn a_log_whose_calls_fail_names_the_slot_and_can_be_started_again() {
    for (log, request, at_start) in [
        (KvmLog::Bitmap, KVM_SET_USER_MEMORY_REGION, true),
        (KvmLog::Bitmap, KVM_GET_DIRTY_LOG, false),
        (KvmLog::Manual, KVM_CLEAR_DIRTY_LOG, false),
        (KvmLog::Ring, KVM_RESET_DIRTY_RINGS, false),
    ] {
        if !has(log) {
            continue;
        }
        let memory = memory();
        let vm = open(&memory, log).unwrap();
        let mut guest = crate::backend::store_guest::StoreGuest::load(&vm, &memory);
        let mut words = [0; 2];
        if !at_start {
            vm.start_dirty_log(&SlotId::ALL).unwrap();
            guest.store(map::REGION_BASE, 1, host_page_bytes(), 70);
        }
        without_ioctl(request, libc::ENOMEM, || {
            let result =
                if at_start { vm.start_dirty_log(&SlotId::ALL) } else { vm.harvest_dirty(SlotId::Region, &mut words) };
            let error = result.unwrap_err().to_string();
            let place = if at_start {
                "RAM"
            } else if log == KvmLog::Ring {
                "RINGS"
            } else {
                "region"
            };
            assert!(error.contains(place) && error.contains("os error 12"), "{log:?}: {error}");
        });
        if at_start {
            assert!(vm.harvest_dirty(SlotId::Region, &mut [0; 2]).is_err(), "it does not run");
            vm.start_dirty_log(&SlotId::ALL).unwrap();
            guest.store(map::REGION_BASE, 1, host_page_bytes(), 70);
        }
        // Whatever failed, no page is forgotten.
        let mut again = [0; 2];
        vm.harvest_dirty(SlotId::Region, &mut again).unwrap();
        let found = words.iter().zip(again).map(|(first, second)| (first | second).count_ones()).sum::<u32>();
        assert_eq!(found, 70, "{log:?}");
    }
}

#[test]
fn a_run_that_the_kernel_refuses_is_reported_with_slots_and_registers() {
    if !has(KvmLog::Bitmap) {
        return;
    }
    for (errno, words) in [(libc::ENOMEM, "os error 12"), (libc::ENOEXEC, "os error 8")] {
        let memory = memory();
        let vm = open(&memory, KvmLog::Bitmap).unwrap();
        let mut vcpu = vm.take_vcpu(0).unwrap();
        without_ioctl(KVM_RUN, errno, || {
            let error = vcpu.run(None).unwrap_err().to_string();
            for word in ["vCPU 0", words, "memslots RAM ", "region ", "pc=0x40000000"] {
                assert!(error.contains(word), "{word}: {error}");
            }
        });
    }
}

#[test]
fn a_device_that_cannot_be_opened_is_a_reason_to_skip() {
    if why_no_kvm().is_some() {
        return;
    }
    for (errno, permission) in [(libc::EACCES, true), (libc::EPERM, true), (libc::ENOENT, false), (libc::ENXIO, false)]
    {
        thread::scope(|scope| {
            scope.spawn(move || {
                if !forbid(libc::SYS_openat, None, errno) {
                    println!("skipped: no seccomp filters");
                    return;
                }
                let reason = why_no_kvm().expect("a reason");
                assert_eq!(reason == Unavailable::Permission, permission, "{reason}");
                assert!(reason.to_string().contains("--accel emulator"), "{reason}");
            });
        });
    }
}
