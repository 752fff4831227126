//! What this host's KVM offers ([`probe`], [`probe_log`]), where it runs ([`is_nested_in_emulation`]), and the counter that
//! the guest's time is taken from.
#![expect(unsafe_code, reason = "reads the counter's registers")]

use std::arch::asm;
use std::io;

use abi::hypercall::{HVC_FUNCTION, HVC_FUNCTION_32};
use abi::{Arch, GuestRange};
use kvm_bindings::{
    KVM_API_VERSION, KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE,
    KVM_CAP_ARM_EL1_32BIT, KVM_CAP_ARM_PSCI_0_2, KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES, KVM_CAP_BINARY_STATS_FD,
    KVM_CAP_DEVICE_CTRL, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, KVM_CAP_IMMEDIATE_EXIT,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_ONE_REG, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_device_attr, kvm_enable_cap, kvm_smccc_filter,
    kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER,
};
use kvm_ioctls::{Kvm, VmFd};

use super::gic;
use crate::backend::{KvmLog, Unavailable};
use crate::memory::Size;

/// Bits of guest physical address where the host cannot be asked (Linux before 4.20).
const DEFAULT_ADDRESS_BITS: u32 = 40;

/// How often signals may interrupt KVM_CREATE_VM before it is reported.
const INTERRUPTED_CREATIONS: u32 = 1000;

const INSTEAD: &str = "--accel emulator";

/// Opens `/dev/kvm`.
pub(super) fn device() -> Result<Kvm, Unavailable> {
    Kvm::new().map_err(|error| {
        let error = io::Error::from_raw_os_error(error.errno());
        match error.kind() {
            io::ErrorKind::PermissionDenied => Unavailable::Permission,
            _ => Unavailable::NoDevice { reason: error.to_string() },
        }
    })
}

/// Whether KVM can run our machines here: the device, its version, its capabilities, and a virtual GICv3.
///
/// # Errors
/// [`Unavailable`]: the first thing missing.
pub(in crate::backend) fn probe() -> Result<(), Unavailable> {
    let kvm = device()?;
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Err(Unavailable::Lacks { what: "API of version 12", instead: INSTEAD });
    }
    for (capability, what) in [
        (KVM_CAP_ONE_REG, "access to single registers (KVM_CAP_ONE_REG)"),
        (KVM_CAP_ARM_PSCI_0_2, "PSCI 0.2 (KVM_CAP_ARM_PSCI_0_2)"),
        (KVM_CAP_IMMEDIATE_EXIT, "immediate exits (KVM_CAP_IMMEDIATE_EXIT)"),
        (KVM_CAP_DEVICE_CTRL, "device attributes (KVM_CAP_DEVICE_CTRL)"),
    ] {
        if kvm.check_extension_raw(capability.into()) <= 0 {
            return Err(Unavailable::Lacks { what, instead: INSTEAD });
        }
    }
    let vm = create_vm(&kvm, address_bits(&kvm).min(DEFAULT_ADDRESS_BITS))
        .map_err(|error| Unavailable::NoVm { reason: error.to_string() })?;
    // The machine and its device are gone as soon as they are dropped.
    match vm.create_device(&mut gic::request()) {
        Ok(_) => Ok(()),
        Err(_) => Err(Unavailable::Lacks { what: "virtual GICv3", instead: INSTEAD }),
    }
}

/// Whether this host's KVM runs guests of `arch`: those of ARMv7 need AArch32 at EL1, which many CPUs no longer have
/// (kvm/api.rst 4.82).
///
/// # Errors
/// [`Unavailable`]: why there is no KVM, or no such guest.
pub(in crate::backend) fn probe_guest(arch: Arch) -> Result<(), Unavailable> {
    probe()?;
    if arch == Arch::Armv7 && device()?.check_extension_raw(KVM_CAP_ARM_EL1_32BIT.into()) <= 0 {
        return Err(Unavailable::Lacks {
            what: "AArch32 at EL1 (KVM_CAP_ARM_EL1_32BIT: the CPU must have it), which ARMv7 guests need",
            instead: "--accel emulator or --arch aarch64",
        });
    }
    Ok(())
}

/// Whether this host's KVM has the dirty log `log`.
///
/// # Errors
/// [`Unavailable`]: why there is no KVM, or no such log.
pub(in crate::backend) fn probe_log(log: KvmLog) -> Result<(), Unavailable> {
    probe()?;
    let kvm = device()?;
    let value = |capability: u32| kvm.check_extension_raw(capability.into());
    let flags = value(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) as u32;
    let instead = "--dirty-log bitmap";
    match log {
        KvmLog::Manual if flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE == 0 => Err(Unavailable::Lacks {
            what: "manual-protect dirty log (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, Linux 5.2)",
            instead,
        }),
        KvmLog::Initset if flags & KVM_DIRTY_LOG_INITIALLY_SET == 0 => Err(Unavailable::Lacks {
            what: "initially set dirty log (KVM_DIRTY_LOG_INITIALLY_SET, Linux 5.7)",
            instead,
        }),
        KvmLog::Ring if value(KVM_CAP_DIRTY_LOG_RING_ACQ_REL) <= 0 => {
            Err(Unavailable::Lacks { what: "dirty ring (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, Linux 6.2 on arm64)", instead })
        }
        KvmLog::Ring if value(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) <= 0 => Err(Unavailable::Lacks {
            what: "backup bitmap of the dirty ring (KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, Linux 6.2)",
            instead,
        }),
        _ => Ok(()),
    }
}

/// Whether this host's KVM can split blocks in chunks of `chunk_bytes` as a dirty log starts.
///
/// # Errors
/// [`Unavailable`]: why there is no KVM, or what it offers instead.
pub(in crate::backend) fn probe_eager_split(chunk_bytes: u64) -> Result<(), Unavailable> {
    probe()?;
    offers_eager_split(&device()?, chunk_bytes)
}

/// A bit for each block size (kvm/api.rst 8.42); the chunk's own capability only tells what is set.
fn offers_eager_split(kvm: &Kvm, chunk_bytes: u64) -> Result<(), Unavailable> {
    let sizes = kvm.check_extension_raw(KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES.into()).max(0) as u64;
    if chunk_bytes.is_power_of_two() && sizes & chunk_bytes != 0 {
        return Ok(());
    }
    let offered: Vec<String> =
        (0..31).map(|bit| 1 << bit).filter(|size| sizes & size != 0).map(|size| Size(size).to_string()).collect();
    Err(Unavailable::EagerSplit { chunk_bytes, offered: offered.join(", ") })
}

/// Lets `vm`, which has no memslots yet, split blocks in chunks of `chunk_bytes` as a dirty log starts (kvm/api.rst 7.34).
///
/// # Errors
/// [`Unavailable::EagerSplit`].
pub(super) fn enable_eager_split(kvm: &Kvm, vm: &VmFd, chunk_bytes: u64) -> Result<(), Unavailable> {
    offers_eager_split(kvm, chunk_bytes)?;
    let capability =
        kvm_enable_cap { cap: KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE, args: [chunk_bytes, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&capability).map_err(|error| Unavailable::EagerSplit { chunk_bytes, offered: error.to_string() })
}

/// Whether this host's KVM counts what its vCPUs do.
///
/// # Errors
/// [`Unavailable`].
pub(in crate::backend) fn probe_fault_counts() -> Result<(), Unavailable> {
    probe()?;
    match device()?.check_extension_raw(KVM_CAP_BINARY_STATS_FD.into()) {
        1.. => Ok(()),
        _ => Err(Unavailable::Lacks {
            what: "statistics that count faults (KVM_CAP_BINARY_STATS_FD, Linux 5.14)",
            instead: "verify passes",
        }),
    }
}

/// Bits of guest physical address that a machine can have.
pub(super) fn address_bits(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.get_host_ipa_limit()).ok().filter(|bits| *bits > 0).unwrap_or(DEFAULT_ADDRESS_BITS)
}

/// Refuses more vCPUs than a machine of KVM's can have.
///
/// # Errors
/// [`Unavailable::Vcpus`].
pub(super) fn check_vcpus(vcpus: usize, most: usize) -> Result<(), Unavailable> {
    if vcpus > most { Err(Unavailable::Vcpus { vcpus, most }) } else { Ok(()) }
}

/// Refuses memory past `bits` of guest physical address.
///
/// # Errors
/// [`Unavailable::AddressBits`] with the first range that is.
pub(super) fn check_ranges(ranges: impl Iterator<Item = GuestRange>, bits: u32) -> Result<(), Unavailable> {
    let mut past = ranges.filter(|range| range.end().raw() > 1 << bits);
    past.next().map_or(Ok(()), |range| Err(Unavailable::AddressBits { range, bits }))
}

/// A machine with `bits` of guest physical address.
pub(super) fn create_vm(kvm: &Kvm, bits: u32) -> Result<VmFd, kvm_ioctls::Error> {
    // 0 is 40 bits, which a kernel that cannot be asked has, too (kvm/api.rst 4.2).
    let kind = if bits == DEFAULT_ADDRESS_BITS { 0 } else { bits.into() };
    let mut attempts = 0;
    loop {
        // Signals interrupt it (Linux registers an MMU notifier on the way, which can be killed and interrupted).
        match kvm.create_vm_with_type(kind) {
            Err(error) if error.errno() == libc::EINTR && attempts < INTERRUPTED_CREATIONS => attempts += 1,
            result => return result,
        }
    }
}

/// Lets the hypercall's HVC exit to us instead of being refused by the kernel (kvm/devices/vm.rst 5, Linux 6.4).
///
/// # Errors
/// [`Unavailable::Lacks`].
pub(super) fn forward_hvc(vm: &VmFd) -> Result<(), Unavailable> {
    for base in [HVC_FUNCTION, HVC_FUNCTION_32] {
        let filter = kvm_smccc_filter {
            base,
            nr_functions: 1,
            action: kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER as u8,
            pad: [0; 15],
        };
        let attribute = kvm_device_attr {
            flags: 0,
            group: KVM_ARM_VM_SMCCC_CTRL,
            attr: KVM_ARM_VM_SMCCC_FILTER.into(),
            addr: (&raw const filter).expose_provenance() as u64,
        };
        vm.set_device_attr(&attribute).map_err(|_| Unavailable::Lacks {
            what: "SMCCC filter (Linux 6.4), which HVC hypercalls need",
            instead: "--hypercall mmio",
        })?;
    }
    Ok(())
}

/// Whether the CPU below this host is certainly an emulated one, so that times say nothing about hardware.
///
/// Two things tell: the CPU's implementer code is 0, which the architecture reserves for software (MIDR_EL1, DDI 0487
/// D24.2.122; QEMU's `max`); or the machine is QEMU's `virt` and offers EL2 on a core that in hardware has no nested
/// virtualisation, so that it cannot be a guest of KVM. Anything else passes as hardware.
pub(in crate::backend) fn is_nested_in_emulation() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let compatible = std::fs::read("/proc/device-tree/compatible").unwrap_or_default();
    let model = Model { implementer: field(&cpuinfo, "CPU implementer"), part: field(&cpuinfo, "CPU part") };
    model.is_emulated(compatible.split(|byte| *byte == 0).any(|name| name == b"linux,dummy-virt"))
}

/// A CPU by MIDR_EL1.
struct Model {
    implementer: Option<u32>,
    part: Option<u32>,
}

/// Arm's cores of the architecture's versions 8.0 to 8.2, before nested virtualisation: Cortex-A53, A35, A55, A57, A72,
/// A73, A75, A76, Neoverse N1.
const CORES_WITHOUT_NESTING: [u32; 9] = [0xd03, 0xd04, 0xd05, 0xd07, 0xd08, 0xd09, 0xd0a, 0xd0b, 0xd0c];
const ARM: u32 = 0x41;

impl Model {
    fn is_emulated(&self, qemu_virt: bool) -> bool {
        let old_core =
            self.implementer == Some(ARM) && self.part.is_some_and(|part| CORES_WITHOUT_NESTING.contains(&part));
        self.implementer == Some(0) || (qemu_virt && old_core)
    }
}

/// The number of the first `name : 0x…` line.
fn field(cpuinfo: &str, name: &str) -> Option<u32> {
    let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
    u32::from_str_radix(line.split(':').nth(1)?.trim().trim_start_matches("0x"), 16).ok()
}

/// The host's virtual counter, which Linux leaves without an offset for its processes.
pub(super) fn counter() -> u64 {
    let ticks: u64;
    // SAFETY: Linux lets every process read the counter; the read has no effect.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags)) };
    ticks
}

/// Ticks of the counter per second.
pub(super) fn counter_hz() -> u64 {
    let hz: u64;
    // SAFETY: as above.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hz, options(nomem, nostack, preserves_flags)) };
    hz
}

#[cfg(test)]
mod tests {
    use abi::Gpa;

    use super::*;

    fn is_emulated(cpuinfo: &str, qemu_virt: bool) -> bool {
        Model { implementer: field(cpuinfo, "CPU implementer"), part: field(cpuinfo, "CPU part") }
            .is_emulated(qemu_virt)
    }

    #[test]
    fn what_kvm_cannot_hold_is_refused_with_what_it_can() {
        assert_eq!(check_vcpus(4, 4), Ok(()));
        let text = check_vcpus(8, 4).unwrap_err().to_string();
        assert!(text.contains("4 vCPUs a machine, not 8") && text.contains("--vcpus 4"), "{text}");
        let range = |start, len| GuestRange::new(Gpa::new(start), len).unwrap();
        assert_eq!(check_ranges([range(0, 1 << 20), range(1 << 35, 1 << 35)].into_iter(), 36), Ok(()));
        let text = check_ranges([range(0, 1 << 20), range(1 << 36, 1)].into_iter(), 36).unwrap_err().to_string();
        assert!(text.contains("36 bits") && text.contains("--accel emulator"), "{text}");
    }

    #[test]
    fn software_cpus_and_old_cores_on_a_virtual_machine_are_emulated() {
        assert!(is_emulated("processor\t: 0\nCPU implementer\t: 0x00\nCPU part\t: 0x051\n", false));
        assert!(is_emulated("CPU implementer\t: 0x41\nCPU part\t: 0xd07\n", true));
    }

    #[test]
    fn cores_that_may_be_hardware_pass_as_hardware() {
        assert!(!is_emulated("CPU implementer\t: 0x41\nCPU part\t: 0xd08\n", false));
        assert!(!is_emulated("CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n", true));
        assert!(!is_emulated("", true));
    }
}
