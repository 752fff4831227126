//! The ioctls of a vCPU of `/dev/kvm`'s: [`VcpuIoctls`], behind [`KvmVcpu`], which runs it by KVM's protocol.
#![expect(unsafe_code, reason = "unions in kvm_run; device attributes are passed by address")]

use std::io;
use std::sync::Arc;

use abi::{Arch, map};
use kvm_bindings::{
    KVM_ARM_VCPU_EL1_32BIT, KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_EXIT_DIRTY_RING_FULL,
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, RegList,
    kvm_device_attr, kvm_mp_state, kvm_run, kvm_vcpu_init,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::log::Tracker;
use super::refused;
use super::reset::Reset;
use super::stage2::FaultCounter;
use crate::backend::kvm_run::{Kernel, Kick, ProtocolVcpu, Report};
use crate::backend::{BackendError, Vcpu as _, boot};
use crate::machine::Start;
use crate::memory::GuestMemory;

/// KVM_REG_ARM_TIMER_CNT.
const TIMER_CNT: u64 = 0x6030_0000_0013_df1a;
/// Ids that a list has room for: kvm-ioctls' limit. Linux 6.12 has 259 for a vCPU like ours.
const REG_LIST_IDS: usize = 500;

/// One vCPU.
pub(super) type KvmVcpu = ProtocolVcpu<VcpuIoctls>;

/// Its file and what its exits need.
pub(super) struct VcpuIoctls {
    fd: VcpuFd,
    init: kvm_vcpu_init,
    tracker: Arc<Tracker>,
}

/// Creates vCPU `index` of `vm`, powered off unless it is the first.
///
/// # Errors
/// [`BackendError::Refused`] with the call at fault.
pub(super) fn create(
    vm: &VmFd,
    index: usize,
    arch: Arch,
    pmu: bool,
    tracker: &Arc<Tracker>,
    memory: &GuestMemory,
) -> Result<KvmVcpu, BackendError> {
    let failed = |call: &str, error| refused(format!("{call} of vCPU {index}: {error}"));
    let mut fd = vm.create_vcpu(index as u64).map_err(|error| failed("KVM_CREATE_VCPU", error))?;
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(|error| failed("KVM_ARM_PREFERRED_TARGET", error))?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    if arch == Arch::Armv7 {
        init.features[0] |= 1 << KVM_ARM_VCPU_EL1_32BIT;
    }
    if pmu {
        init.features[0] |= 1 << KVM_ARM_VCPU_PMU_V3;
    }
    if index > 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    fd.vcpu_init(&init).map_err(|error| failed("KVM_ARM_VCPU_INIT", error))?;
    tracker.adopt(index, &fd)?;
    let run: *mut kvm_run = fd.get_kvm_run();
    // SAFETY: the pointer is of a mapped `kvm_run`; only the address of its field is taken.
    let immediate_exit = unsafe { &raw mut (*run).immediate_exit };
    let ioctls = VcpuIoctls { fd, init, tracker: Arc::clone(tracker) };
    Ok(ProtocolVcpu::new(ioctls, index, arch, Kick::new(immediate_exit), memory))
}

impl KvmVcpu {
    /// Does what needs the machine's GIC: the PMU, whose interrupt goes there (kvm/devices/vcpu.rst 1).
    ///
    /// # Errors
    /// [`BackendError::Refused`].
    pub(super) fn finish(&mut self, pmu: bool) -> Result<(), BackendError> {
        if !pmu {
            return Ok(());
        }
        let intid = map::PMU_INTID;
        let irq = (&raw const intid).expose_provenance() as u64;
        for (attr, addr) in [(KVM_ARM_VCPU_PMU_V3_IRQ, irq), (KVM_ARM_VCPU_PMU_V3_INIT, 0)] {
            let attribute = kvm_device_attr { flags: 0, group: KVM_ARM_VCPU_PMU_V3_CTRL, attr: attr.into(), addr };
            let result = self.kernel.fd.set_device_attr(&attribute);
            result.map_err(|error| refused(format!("the PMU of vCPU {}: {error}", self.index())))?;
        }
        Ok(())
    }

    /// Sets what the first vCPU starts with.
    ///
    /// # Errors
    /// [`BackendError::Register`].
    pub(super) fn start_at(&mut self, start: Start) -> Result<(), BackendError> {
        boot::registers(start).into_iter().try_for_each(|(register, value)| self.set_reg(register, value.into()))
    }

    /// The guest's virtual counter.
    ///
    /// # Errors
    /// [`BackendError::Register`].
    pub(super) fn counter(&mut self) -> Result<u64, BackendError> {
        self.get_reg(TIMER_CNT).map(|ticks| ticks as u64)
    }

    /// What makes it as it was made.
    ///
    /// # Errors
    /// [`BackendError::Refused`].
    pub(super) fn resetter(&self) -> Result<Reset, BackendError> {
        let reset = Reset::new(&self.kernel.fd, self.kernel.init);
        reset.map_err(|error| refused(format!("another descriptor of vCPU {}: {error}", self.index())))
    }

    /// What counts its stage-2 faults.
    ///
    /// # Errors
    /// Where the kernel has no statistics.
    pub(super) fn fault_counter(&self) -> io::Result<FaultCounter> {
        FaultCounter::new(&self.kernel.fd)
    }
}

impl VcpuIoctls {
    /// The members of `kvm_run` that kvm-ioctls leaves to its callers.
    fn internal_error(&mut self) -> Report {
        // SAFETY: only called after KVM_EXIT_INTERNAL_ERROR, which says that this member of the union is the one written.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let data = internal.data.iter().take(internal.ndata as usize).copied().collect();
        Report::InternalError { suberror: internal.suberror, data }
    }
}

impl Kernel for VcpuIoctls {
    fn run(&mut self) -> io::Result<Report> {
        let exit = self.fd.run().map_err(errno)?;
        Ok(match exit {
            VcpuExit::MmioRead(gpa, data) => Report::MmioRead { gpa, len_bytes: data.len() as u8 },
            VcpuExit::MmioWrite(gpa, data) => {
                let mut bytes = [0; 8];
                bytes[..data.len()].copy_from_slice(data);
                Report::MmioWrite { gpa, len_bytes: data.len() as u8, data: bytes }
            }
            VcpuExit::Hypercall(call) => Report::Hypercall { function: call.nr },
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Report::Shutdown,
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Report::Reset,
            VcpuExit::SystemEvent(kind, _) => Report::SystemEvent { kind },
            VcpuExit::Intr => Report::Interrupted,
            VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => Report::RingFull,
            VcpuExit::FailEntry(reason, cpu) => Report::FailEntry { reason, cpu },
            VcpuExit::MemoryFault { flags, gpa, size } => Report::MemoryFault { flags, gpa, len_bytes: size },
            VcpuExit::InternalError => self.internal_error(),
            exit => {
                let name = format!("{exit:?}");
                Report::Other { reason: self.fd.get_kvm_run().exit_reason, name }
            }
        })
    }

    fn answer(&mut self, data: [u8; 8]) {
        // SAFETY: only called after an MMIO exit, whose member of the union this is; any bytes are valid in it.
        let mmio = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.mmio };
        mmio.data = data;
    }

    fn get_one_reg(&self, id: u64, value: &mut [u8]) -> io::Result<()> {
        self.fd.get_one_reg(id, value).map(drop).map_err(errno)
    }

    fn set_one_reg(&self, id: u64, value: &[u8]) -> io::Result<()> {
        self.fd.set_one_reg(id, value).map(drop).map_err(errno)
    }

    fn reg_list(&self) -> io::Result<Vec<u64>> {
        let mut list = RegList::new(REG_LIST_IDS).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.fd.get_reg_list(&mut list).map_err(errno)?;
        Ok(list.as_slice().to_vec())
    }

    fn is_stopped(&self) -> io::Result<bool> {
        self.fd.get_mp_state().map(|state| state.mp_state == KVM_MP_STATE_STOPPED).map_err(errno)
    }

    fn set_stopped(&self, stopped: bool) -> io::Result<()> {
        let mp_state = if stopped { KVM_MP_STATE_STOPPED } else { KVM_MP_STATE_RUNNABLE };
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(errno)
    }

    fn empty_rings(&self) -> Result<(), BackendError> {
        self.tracker.empty_rings()
    }
}

fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
