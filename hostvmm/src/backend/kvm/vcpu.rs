//! A vCPU of KVM's: [`KvmVcpu`] runs it, maps its exits, reads and writes its registers.
//!
//! An MMIO access is half done when `KVM_RUN` returns: the guest's PC still points at the instruction, and the next
//! `KVM_RUN` completes it (kvm/api.rst 5). So before registers are read or written, `settle` makes that run
//! with `immediate_exit` set, which completes the access and executes nothing.
#![expect(unsafe_code, reason = "unions in kvm_run; device attributes are passed by address")]

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use abi::{Arch, Gpa, map};
use kvm_bindings::{
    KVM_ARM_VCPU_EL1_32BIT, KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_EXIT_DIRTY_RING_FULL,
    KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_device_attr, kvm_run, kvm_vcpu_init,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::kick::Kick;
use super::log::Tracker;
use super::refused;
use super::stage2::FaultCounter;
use crate::backend::{Accelerator, BackendError, Exit, Vcpu, boot};
use crate::machine::Start;
use crate::memory::GuestMemory;

/// KVM register ids: `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE` and the offset in `struct kvm_regs` / 4.
const CORE: u64 = 0x6030_0000_0010_0000;
const PC: u64 = CORE + 64;
/// KVM_REG_ARM_TIMER_CNT.
const TIMER_CNT: u64 = 0x6030_0000_0013_df1a;
/// What a report of a vCPU that cannot go on shows besides x0 to x30.
const SHOWN: [(&str, u64); 9] = [
    ("pc", PC),
    ("pstate", CORE + 66),
    ("sp_el0", CORE + 62),
    ("sp_el1", CORE + 68),
    ("elr_el1", CORE + 70),
    ("spsr_el1", CORE + 72),
    ("esr_el1", 0x6030_0000_0013_c290),
    ("far_el1", 0x6030_0000_0013_c300),
    ("sctlr_el1", 0x6030_0000_0013_c080),
];

/// The same of an AArch32 guest, besides r0 to r14: its CP15 registers are parts of AArch64's (DDI 0487 G1.22), DFAR and IFAR
/// the low and high half of FAR_EL1; lr and sp of SVC mode are X18 and X19.
const SHOWN_32: [(&str, u64); 9] = [
    ("pc", PC),
    ("cpsr", CORE + 66),
    ("sp_svc", CORE + 2 * 19),
    ("lr_svc", CORE + 2 * 18),
    ("spsr_svc", CORE + 72),
    ("dfsr", 0x6030_0000_0013_c290),
    ("ifsr", 0x6030_0000_0013_e281),
    ("ifar_dfar", 0x6030_0000_0013_c300),
    ("sctlr", 0x6030_0000_0013_c080),
];

/// One vCPU.
pub(super) struct KvmVcpu {
    fd: VcpuFd,
    index: usize,
    arch: Arch,
    kick: Arc<Kick>,
    tracker: Arc<Tracker>,
    /// The last exit was an access that the next `KVM_RUN` completes.
    half_done: bool,
    /// The vCPU executes in it.
    _memory: GuestMemory,
}

/// What an exit comes to, without a borrow of the vCPU.
enum Found {
    Exit(Exit),
    Call(u64),
    RingFull,
    Stopped(String),
}

fn register(number: u64) -> u64 {
    CORE + 2 * number
}

impl KvmVcpu {
    /// Creates vCPU `index` of `vm`, powered off unless it is the first.
    ///
    /// # Errors
    /// [`BackendError::Refused`] with the call at fault.
    pub(super) fn new(
        vm: &VmFd,
        index: usize,
        arch: Arch,
        pmu: bool,
        tracker: &Arc<Tracker>,
        memory: &GuestMemory,
    ) -> Result<Self, BackendError> {
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
        let kick = Arc::new(Kick::new(immediate_exit));
        Ok(Self { fd, index, arch, kick, tracker: Arc::clone(tracker), half_done: false, _memory: memory.clone() })
    }

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
            self.fd
                .set_device_attr(&attribute)
                .map_err(|error| refused(format!("the PMU of vCPU {}: {error}", self.index)))?;
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

    /// What counts its stage-2 faults.
    ///
    /// # Errors
    /// Where the kernel has no statistics.
    pub(super) fn fault_counter(&self) -> io::Result<FaultCounter> {
        FaultCounter::new(&self.fd)
    }

    pub(super) fn kick(&self) -> Arc<Kick> {
        Arc::clone(&self.kick)
    }

    /// Completes a half-done access without executing anything.
    fn settle(&mut self) -> Result<(), BackendError> {
        if !std::mem::take(&mut self.half_done) {
            return Ok(());
        }
        let fd = &mut self.fd;
        let result = self.kick.without_running(|| fd.run().map(|_| ()));
        match result {
            Err(error) if error.errno() == libc::EINTR => Ok(()),
            Ok(()) => Err(self.stopped("the run that completes an access did not end at once".to_owned())),
            Err(error) => Err(self.stopped(format!("KVM_RUN to complete an access: {error}"))),
        }
    }

    fn exit(&mut self) -> Found {
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                Found::Exit(Exit::MmioRead { gpa: Gpa::new(gpa), len_bytes: data.len() as u8 })
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                let mut bytes = [0; 8];
                bytes[..data.len()].copy_from_slice(data);
                let data_len = data.len() as u8;
                Found::Exit(Exit::MmioWrite {
                    gpa: Gpa::new(gpa),
                    len_bytes: data_len,
                    data: u64::from_le_bytes(bytes),
                })
            }
            Ok(VcpuExit::Hypercall(call)) => Found::Call(call.nr),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Found::Exit(Exit::SystemOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Found::Exit(Exit::SystemReset),
            Ok(VcpuExit::SystemEvent(kind, _)) => Found::Stopped(format!("system event {kind} of the guest")),
            Ok(VcpuExit::Intr) => Found::Exit(Exit::Kicked),
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => Found::RingFull,
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                Found::Stopped(format!("entry failed on host CPU {cpu} with hardware reason {reason:#x}"))
            }
            Ok(exit) => {
                let mut text = format!("unexpected exit {exit:?}");
                self.add_internal_error(&mut text);
                Found::Stopped(text)
            }
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Found::Exit(Exit::Kicked),
                libc::ENOSYS => Found::Stopped(
                    "KVM_RUN: the guest accessed a device by an instruction that the hardware does not describe".into(),
                ),
                errno => Found::Stopped(format!("KVM_RUN: {}", io::Error::from_raw_os_error(errno))),
            },
        }
    }

    fn add_internal_error(&mut self, text: &mut String) {
        let run = self.fd.get_kvm_run();
        if run.exit_reason == kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
            // SAFETY: the exit reason says that this member of the union is the one written.
            let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
            let _ = write!(text, " with suberror {suberror}");
        }
    }

    /// The error of a vCPU that cannot go on, with its registers as far as they can be read.
    fn stopped(&mut self, mut reason: String) -> BackendError {
        let (letter, count, shown) = match self.arch {
            Arch::Aarch64 => ('x', 31, &SHOWN),
            Arch::Armv7 => ('r', 15, &SHOWN_32),
        };
        let general = (0..count).map(|number| (format!("{letter}{number}"), register(number)));
        let special = shown.iter().map(|(name, id)| ((*name).to_owned(), *id));
        for (name, id) in special.chain(general) {
            let mut bytes = [0; 8];
            if self.fd.get_one_reg(id, &mut bytes).is_ok() {
                let _ = write!(reason, " {name}={:#x}", u64::from_le_bytes(bytes));
            }
        }
        BackendError::Run { vcpu: self.index, reason }
    }

    fn register_error(&self, register: u64, reason: String) -> BackendError {
        BackendError::Register { vcpu: self.index, accelerator: Accelerator::Kvm, register, reason }
    }

    /// Bytes of the register `id`, where they fit our type.
    fn register_bytes(&self, id: u64) -> Result<usize, BackendError> {
        let bytes = kvm_ioctls::reg_size(id);
        if bytes <= size_of::<u128>() {
            return Ok(bytes);
        }
        Err(self.register_error(id, format!("it has {bytes} bytes, more than can be passed")))
    }
}

impl Vcpu for KvmVcpu {
    fn index(&self) -> usize {
        self.index
    }

    fn run(&mut self, budget: Option<u64>) -> Result<Exit, BackendError> {
        if budget.is_some() {
            return Err(BackendError::Unsupported { accelerator: Accelerator::Kvm, what: "count instructions" });
        }
        loop {
            self.kick.enter();
            let found = self.exit();
            self.kick.leave();
            self.half_done = false;
            match found {
                Found::Exit(exit) => {
                    self.half_done = matches!(exit, Exit::MmioRead { .. } | Exit::MmioWrite { .. });
                    if exit == Exit::Kicked {
                        self.kick.acknowledge();
                    }
                    return Ok(exit);
                }
                Found::Call(function) => {
                    let mut args = [0; 7];
                    for (number, arg) in (1..).zip(&mut args) {
                        *arg = self.get_reg(register(number))? as u64;
                    }
                    return Ok(Exit::Hvc { function, args });
                }
                Found::RingFull => self.tracker.empty_rings()?,
                Found::Stopped(reason) => return Err(self.stopped(reason)),
            }
        }
    }

    fn complete_mmio_read(&mut self, data: u64) {
        // SAFETY: only called after an MMIO exit, whose member of the union this is; any bytes are valid in it.
        let mmio = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.mmio };
        mmio.data = data.to_le_bytes();
    }

    fn complete_hvc(&mut self, results: [u64; 4]) {
        for (number, result) in (0..).zip(results) {
            // x0 to x3 are there on every vCPU that made the call.
            let _ = self.set_reg(register(number), result.into());
        }
    }

    fn get_reg(&mut self, register: u64) -> Result<u128, BackendError> {
        self.settle()?;
        let bytes = self.register_bytes(register)?;
        let mut value = [0; size_of::<u128>()];
        self.fd
            .get_one_reg(register, &mut value[..bytes])
            .map_err(|error| self.register_error(register, error.to_string()))?;
        Ok(u128::from_le_bytes(value))
    }

    fn set_reg(&mut self, register: u64, value: u128) -> Result<(), BackendError> {
        self.settle()?;
        let bytes = self.register_bytes(register)?;
        self.fd
            .set_one_reg(register, &value.to_le_bytes()[..bytes])
            .map(drop)
            .map_err(|error| self.register_error(register, error.to_string()))
    }

    fn instructions(&self) -> Option<u64> {
        None
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kick.detach();
    }
}
