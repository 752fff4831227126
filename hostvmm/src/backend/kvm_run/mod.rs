//! KVM's protocol for a vCPU, apart from the ioctls: [`ProtocolVcpu`] runs it and keeps its state whole, on anything that
//! answers as KVM does ([`Kernel`]): `kvm::vcpu` is `/dev/kvm`'s, the tests have one that fails on command.
//!
//! An MMIO access is half done when `KVM_RUN` returns: the guest's PC still points at the instruction, and the next
//! `KVM_RUN` completes it (kvm/api.rst 5). So before state is read or written, `settle` makes that run
//! with `immediate_exit` set, which completes the access and executes nothing.

mod kick;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use abi::{Arch, Gpa};

pub(super) use self::kick::Kick;
use super::{Accelerator, BackendError, Exit, Vcpu, VcpuDump};
use crate::memory::GuestMemory;

/// KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE: x0; a register's offset in `struct kvm_regs` / 4 comes on top.
const X0: u64 = 0x6030_0000_0010_0000;

/// What `KVM_RUN` came back with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// KVM_EXIT_MMIO, a load.
    MmioRead { gpa: u64, len_bytes: u8 },
    /// KVM_EXIT_MMIO, a store.
    MmioWrite { gpa: u64, len_bytes: u8, data: [u8; 8] },
    /// KVM_EXIT_HYPERCALL.
    Hypercall { function: u64 },
    /// KVM_EXIT_SYSTEM_EVENT, shutdown.
    Shutdown,
    /// KVM_EXIT_SYSTEM_EVENT, reset.
    Reset,
    /// KVM_EXIT_SYSTEM_EVENT of another kind.
    SystemEvent { kind: u32 },
    /// KVM_EXIT_INTR.
    Interrupted,
    /// KVM_EXIT_DIRTY_RING_FULL.
    RingFull,
    /// KVM_EXIT_FAIL_ENTRY.
    FailEntry { reason: u64, cpu: u32 },
    /// KVM_EXIT_INTERNAL_ERROR.
    InternalError { suberror: u32, data: Vec<u64> },
    /// KVM_EXIT_MEMORY_FAULT.
    MemoryFault { flags: u64, gpa: u64, len_bytes: u64 },
    /// Any other, by its number and as far as it has a name.
    Other { reason: u32, name: String },
}

/// The ioctls of one vCPU. Errors carry the call's errno.
pub(super) trait Kernel: Send {
    /// KVM_RUN.
    fn run(&mut self) -> io::Result<Report>;

    /// Puts `data` where KVM_RUN looks for what a device answered.
    fn answer(&mut self, data: [u8; 8]);

    /// KVM_GET_ONE_REG, into as many bytes as the id says.
    fn get_one_reg(&self, id: u64, value: &mut [u8]) -> io::Result<()>;

    /// KVM_SET_ONE_REG.
    fn set_one_reg(&self, id: u64, value: &[u8]) -> io::Result<()>;

    /// KVM_GET_REG_LIST.
    fn reg_list(&self) -> io::Result<Vec<u64>>;

    /// KVM_GET_MP_STATE: whether it is KVM_MP_STATE_STOPPED.
    fn is_stopped(&self) -> io::Result<bool>;

    /// KVM_SET_MP_STATE to KVM_MP_STATE_STOPPED or KVM_MP_STATE_RUNNABLE.
    fn set_stopped(&self, stopped: bool) -> io::Result<()>;

    /// Makes room in the machine's dirty rings.
    fn empty_rings(&self) -> Result<(), BackendError>;
}

/// One vCPU of KVM's.
pub(super) struct ProtocolVcpu<K: Kernel> {
    pub(super) kernel: K,
    index: usize,
    arch: Arch,
    kick: Arc<Kick>,
    /// The last exit was an access that the next `KVM_RUN` completes.
    half_done: bool,
    /// The vCPU executes in it.
    memory: GuestMemory,
}

/// What a report comes to.
enum Found {
    Exit(Exit),
    Call(u64),
    RingFull,
    Stopped(String),
}

impl<K: Kernel> ProtocolVcpu<K> {
    /// vCPU `index`, behind `kernel` and stopped by `kick`, of the machine that has `memory` and executes `arch`.
    pub(super) fn new(kernel: K, index: usize, arch: Arch, kick: Kick, memory: &GuestMemory) -> Self {
        Self { kernel, index, arch, kick: Arc::new(kick), half_done: false, memory: memory.clone() }
    }

    pub(super) fn kick(&self) -> Arc<Kick> {
        Arc::clone(&self.kick)
    }

    /// Completes a half-done access without executing anything.
    fn settle(&mut self) -> Result<(), BackendError> {
        if !std::mem::take(&mut self.half_done) {
            return Ok(());
        }
        let kernel = &mut self.kernel;
        let result = self.kick.without_running(|| kernel.run());
        match result {
            Err(error) if is_interruption(&error) => Ok(()),
            Ok(Report::Interrupted) => Ok(()),
            Ok(report) => {
                Err(self.stopped(format!("the run that completes an access did not end at once, but with {report:?}")))
            }
            Err(error) => Err(self.stopped(format!("KVM_RUN to complete an access: {error}"))),
        }
    }

    fn found(&self, report: io::Result<Report>) -> Found {
        match report {
            Ok(Report::MmioRead { gpa, len_bytes }) => Found::Exit(Exit::MmioRead { gpa: Gpa::new(gpa), len_bytes }),
            Ok(Report::MmioWrite { gpa, len_bytes, data }) => {
                Found::Exit(Exit::MmioWrite { gpa: Gpa::new(gpa), len_bytes, data: u64::from_le_bytes(data) })
            }
            Ok(Report::Hypercall { function }) => Found::Call(function),
            Ok(Report::Shutdown) => Found::Exit(Exit::SystemOff),
            Ok(Report::Reset) => Found::Exit(Exit::SystemReset),
            Ok(Report::SystemEvent { kind }) => Found::Stopped(format!("system event {kind} of the guest")),
            Ok(Report::Interrupted) => Found::Exit(Exit::Kicked),
            Ok(Report::RingFull) => Found::RingFull,
            Ok(Report::FailEntry { reason, cpu }) => Found::Stopped(format!(
                "KVM_EXIT_FAIL_ENTRY: the guest could not be entered on host CPU {cpu}, hardware reason {reason:#x}"
            )),
            Ok(Report::InternalError { suberror, data }) => {
                Found::Stopped(format!("KVM_EXIT_INTERNAL_ERROR: suberror {suberror}, data {data:#x?}"))
            }
            Ok(Report::MemoryFault { flags, gpa, len_bytes }) => Found::Stopped(format!(
                "KVM_EXIT_MEMORY_FAULT: {len_bytes} bytes at {}, in {}, flags {flags:#x}",
                Gpa::new(gpa),
                self.place(gpa)
            )),
            Ok(Report::Other { reason, name }) => Found::Stopped(format!("unexpected exit {reason} ({name})")),
            Err(error) if is_interruption(&error) => Found::Exit(Exit::Kicked),
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Found::Stopped(
                "KVM_RUN: the guest accessed a device by an instruction that the hardware does not describe".to_owned(),
            ),
            Err(error) => Found::Stopped(format!("KVM_RUN: {error}")),
        }
    }

    /// The memslot that has `gpa`, by name.
    fn place(&self, gpa: u64) -> String {
        self.memory
            .locate(Gpa::new(gpa), 1)
            .map_or_else(|_| "no memslot".to_owned(), |(slot, _)| format!("memslot {slot}"))
    }

    /// The error of a vCPU that cannot go on, with the machine's memslots and what can be read of its registers.
    fn stopped(&self, reason: String) -> BackendError {
        let dump = VcpuDump::new(self.arch, &self.memory, |id| {
            let mut bytes = [0; 8];
            self.kernel.get_one_reg(id, &mut bytes).is_ok().then(|| u64::from_le_bytes(bytes))
        });
        BackendError::Run { vcpu: self.index, reason, dump: Box::new(dump) }
    }

    fn register_error(&self, register: u64, reason: String) -> BackendError {
        BackendError::Register { vcpu: self.index, accelerator: Accelerator::Kvm, register, reason }
    }

    fn state_error(&self, call: &'static str, error: &io::Error) -> BackendError {
        BackendError::State { vcpu: self.index, accelerator: Accelerator::Kvm, reason: format!("{call}: {error}") }
    }

    /// Bytes of the register `id`, where they fit our type.
    fn register_bytes(&self, id: u64) -> Result<usize, BackendError> {
        let bytes = super::register_bytes(id);
        if bytes <= size_of::<u128>() {
            return Ok(bytes);
        }
        let reason = format!("it has {bytes} bytes, as only vCPUs with SVE have them, and this one was made without");
        Err(self.register_error(id, reason))
    }
}

/// Whether a signal ended the call: `KVM_RUN` says EINTR, and EAGAIN where it had not begun.
fn is_interruption(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

impl<K: Kernel> Vcpu for ProtocolVcpu<K> {
    fn index(&self) -> usize {
        self.index
    }

    fn run(&mut self, budget: Option<u64>) -> Result<Exit, BackendError> {
        if budget.is_some() {
            return Err(BackendError::Unsupported { accelerator: Accelerator::Kvm, what: "count instructions" });
        }
        loop {
            self.kick.enter();
            let report = self.kernel.run();
            self.kick.leave();
            self.half_done = false;
            match self.found(report) {
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
                        *arg = self.get_reg(X0 + 2 * number)? as u64;
                    }
                    return Ok(Exit::Hvc { function, args });
                }
                Found::RingFull => self.kernel.empty_rings()?,
                Found::Stopped(reason) => return Err(self.stopped(reason)),
            }
        }
    }

    fn complete_mmio_read(&mut self, data: u64) {
        self.kernel.answer(data.to_le_bytes());
    }

    fn complete_hvc(&mut self, results: [u64; 4]) {
        for (number, result) in (0..).zip(results) {
            // x0 to x3 are there on every vCPU that made the call.
            let _ = self.set_reg(X0 + 2 * number, result.into());
        }
    }

    fn reg_list(&mut self) -> Result<Vec<u64>, BackendError> {
        self.settle()?;
        self.kernel.reg_list().map_err(|error| self.state_error("KVM_GET_REG_LIST", &error))
    }

    fn get_reg(&mut self, register: u64) -> Result<u128, BackendError> {
        self.settle()?;
        let bytes = self.register_bytes(register)?;
        let mut value = [0; size_of::<u128>()];
        self.kernel
            .get_one_reg(register, &mut value[..bytes])
            .map_err(|error| self.register_error(register, error.to_string()))?;
        Ok(u128::from_le_bytes(value))
    }

    fn set_reg(&mut self, register: u64, value: u128) -> Result<(), BackendError> {
        self.settle()?;
        let bytes = self.register_bytes(register)?;
        let value = value.to_le_bytes();
        if value[bytes..].iter().any(|byte| *byte != 0) {
            return Err(self.register_error(register, format!("the value does not fit its {bytes} bytes")));
        }
        self.kernel
            .set_one_reg(register, &value[..bytes])
            .map_err(|error| self.register_error(register, error.to_string()))
    }

    fn is_on(&mut self) -> Result<bool, BackendError> {
        self.settle()?;
        self.kernel.is_stopped().map(|stopped| !stopped).map_err(|error| self.state_error("KVM_GET_MP_STATE", &error))
    }

    fn set_on(&mut self, on: bool) -> Result<(), BackendError> {
        self.settle()?;
        self.kernel.set_stopped(!on).map_err(|error| self.state_error("KVM_SET_MP_STATE", &error))
    }

    fn discard(&mut self) -> Result<(), BackendError> {
        // The kernel has no way to give an access up: it ends in registers that are replaced, and writes no memory.
        self.settle()
    }

    fn instructions(&self) -> Option<u64> {
        None
    }
}

impl<K: Kernel> Drop for ProtocolVcpu<K> {
    fn drop(&mut self) {
        self.kick.detach();
    }
}
