//! KVM behind the traits: [`open`] makes a machine of `/dev/kvm`'s.
//!
//! - [`choices`]: what of a vCPU's identification can be chosen;
//! - [`host`]: what this host's KVM offers, where it runs, and the guest's time;
//! - [`vcpu`]: the ioctls of a vCPU, which `kvm_run` runs by KVM's protocol;
//! - [`gic`]: the in-kernel GICv3;
//! - [`log`]: memslots and the four dirty logs on them; [`ring`]: the dirty ring's memory;
//! - [`reset`]: a vCPU as it was made;
//! - [`stage2`]: faults counted, tables seen.
//!
//! The kernel has the GIC, the timers, PSCI and the PMU; the PL011 and the doorbell are MMIO exits. docs/kvm.md says which
//! ioctl serves what.
//!
//! Order of creation (kvm/api.rst 4.82, devices/arm-vgic-v3.rst, devices/vcpu.rst): capabilities, memslots, vCPUs,
//! GIC and its init, PMU and its init, registers.

mod choices;
mod gic;
mod host;
mod log;
mod reset;
mod ring;
mod stage2;
#[cfg(test)]
mod tests;
mod vcpu;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use abi::GuestRange;
use kvm_bindings::{KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_CAP_ARM_PMU_V3};
use kvm_ioctls::VmFd;

use self::gic::Gic;
pub(super) use self::host::{
    is_nested_in_emulation, probe, probe_eager_split, probe_fault_counts, probe_guest, probe_log,
};
use self::log::Tracker;
use self::reset::Reset;
use self::stage2::FaultCounter;
use self::vcpu::KvmVcpu;
use super::kvm_run::Kick;
use super::{Accelerator, BackendError, GicState, PlantedFault, Unavailable, Vcpu, Vm, VmHandle};
use crate::machine::{BuildError, Clock, MachineConfig, PHYSICAL_ADDRESS_BITS, Start, Transport};
use crate::memory::{GuestMemory, Slot, SlotId};

/// A machine of KVM's.
struct KvmVm {
    fd: Arc<VmFd>,
    tracker: Arc<Tracker>,
    vcpus: Mutex<Vec<Option<KvmVcpu>>>,
    kicks: Vec<Arc<Kick>>,
    /// By vCPU.
    resets: Vec<Reset>,
    /// By vCPU; empty where the kernel has no statistics.
    faults: Vec<FaultCounter>,
    /// The thread that made the machine.
    maker: i32,
    gic: Gic,
    /// The host's counter at the guest's zero.
    counter_offset: AtomicU64,
}

/// Makes the machine that `config` describes, on the slots of `memory`.
///
/// # Errors
/// [`BuildError::Unavailable`] for what this host's KVM lacks, [`BuildError::Backend`] where it refuses.
pub(super) fn open(config: &MachineConfig, memory: &GuestMemory, start: Start) -> Result<VmHandle, BuildError> {
    if config.clock == Clock::Icount {
        return Err(Unavailable::Lacks {
            what: "clock that counts instructions",
            instead: "--clock wall or --accel emulator",
        }
        .into());
    }
    probe_log(config.kvm_log)?;
    probe_guest(start.arch)?;
    let kvm = host::device()?;
    host::check_vcpus(config.vcpus, kvm.get_max_vcpus())?;
    let bits = host::address_bits(&kvm).min(PHYSICAL_ADDRESS_BITS);
    host::check_ranges(memory.slots().iter().map(Slot::range), bits)?;
    let fd = Arc::new(host::create_vm(&kvm, bits).map_err(|error| refused(format!("KVM_CREATE_VM: {error}")))?);
    if config.transport == Transport::Hvc {
        host::forward_hvc(&fd)?;
    }
    if let Some(chunk_bytes) = config.eager_split {
        host::enable_eager_split(&kvm, &fd, chunk_bytes)?;
    }
    let tracker = Arc::new(Tracker::new(Arc::clone(&fd), config.kvm_log, memory)?);
    let pmu = fd.check_extension_raw(KVM_CAP_ARM_PMU_V3.into()) > 0;
    let mut vcpus = Vec::new();
    for index in 0..config.vcpus {
        vcpus.push(vcpu::create(&fd, index, start.arch, pmu, &tracker, memory)?);
    }
    let gic = Gic::create(&fd, config.vcpus)?;
    for vcpu in &mut vcpus {
        vcpu.finish(pmu)?;
    }
    vcpus[0].start_at(start)?;
    let guest_ticks = vcpus[0].counter()?;
    let counter_offset = AtomicU64::new(host::counter().wrapping_sub(guest_ticks));
    let kicks = vcpus.iter().map(KvmVcpu::kick).collect();
    let resets = vcpus.iter().map(KvmVcpu::resetter).collect::<Result<_, _>>()?;
    let faults = vcpus.iter().map(KvmVcpu::fault_counter).collect::<Result<_, _>>().unwrap_or_default();
    let vcpus = Mutex::new(vcpus.into_iter().map(Some).collect());
    let maker = stage2::thread_id();
    Ok(Arc::new(KvmVm { fd, tracker, vcpus, kicks, resets, faults, maker, gic, counter_offset }))
}

/// A refusal in KVM's words.
fn refused(reason: String) -> BackendError {
    BackendError::Refused { accelerator: Accelerator::Kvm, reason }
}

impl Vm for KvmVm {
    fn accelerator(&self) -> Accelerator {
        Accelerator::Kvm
    }

    fn take_vcpu(&self, index: usize) -> Option<Box<dyn Vcpu>> {
        let vcpu = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index)?.take()?;
        Some(Box::new(vcpu))
    }

    fn kick(&self, index: usize) {
        if let Some(kick) = self.kicks.get(index) {
            kick.kick();
        }
    }

    fn set_irq_line(&self, intid: u32, level: bool) {
        // The PL011's line is the only one and is an SPI; the kernel refuses others.
        let _ = self.fd.set_irq_line(KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | intid, level);
    }

    fn save_gic(&self) -> Result<GicState, BackendError> {
        self.gic.save()
    }

    fn restore_gic(&self, state: &GicState) -> Result<(), BackendError> {
        self.gic.restore(state, |vcpu| {
            let reset = self.resets.get(vcpu).map_or(Ok(()), Reset::reset);
            reset.map_err(|error| refused(format!("KVM_ARM_VCPU_INIT to reset vCPU {vcpu}: {error}")))
        })
    }

    fn forget_memory(&self) -> Result<(), BackendError> {
        self.tracker.forget_translations()
    }

    fn mark_dirty(&self, range: GuestRange) {
        self.tracker.mark(range);
    }

    fn log_page_bytes(&self) -> u64 {
        self.tracker.page_bytes()
    }

    fn start_dirty_log(&self, slots: &[SlotId]) -> Result<(), BackendError> {
        self.tracker.start(slots)
    }

    fn stop_dirty_log(&self) -> Result<(), BackendError> {
        self.tracker.stop()
    }

    fn harvest_dirty(&self, slot: SlotId, bitmap: &mut [u64]) -> Result<(), BackendError> {
        self.tracker.harvest(slot, bitmap)
    }

    fn last_reset(&self) -> Duration {
        self.tracker.last_reset()
    }

    fn plant(&self, _: PlantedFault) -> Result<(), BackendError> {
        Err(BackendError::Unsupported {
            accelerator: Accelerator::Kvm,
            what: "plant a fault in the kernel's dirty log",
        })
    }

    fn stage2_faults(&self) -> Result<u64, BackendError> {
        if self.faults.is_empty() {
            let what = "count stage-2 faults without statistics (KVM_CAP_BINARY_STATS_FD, Linux 5.14)";
            return Err(BackendError::Unsupported { accelerator: Accelerator::Kvm, what });
        }
        self.faults
            .iter()
            .map(FaultCounter::read)
            .sum::<Result<u64, _>>()
            .map_err(|error| BackendError::Statistics { accelerator: Accelerator::Kvm, reason: error.to_string() })
    }

    fn stage2_tables(&self) -> Option<String> {
        stage2::tables(&self.fd, self.maker)
    }

    fn writable_features(&self) -> Vec<(u64, u64)> {
        choices::writable(&self.fd)
    }

    fn now_ticks(&self) -> u64 {
        host::counter().wrapping_sub(self.counter_offset.load(Ordering::Relaxed))
    }

    fn counter_was_set(&self, ticks: u64) {
        self.counter_offset.store(host::counter().wrapping_sub(ticks), Ordering::Relaxed);
    }

    fn ticks_per_second(&self) -> u64 {
        host::counter_hz()
    }

    fn warp_to_next_deadline(&self) -> Result<bool, BackendError> {
        Err(BackendError::Unsupported {
            accelerator: Accelerator::Kvm,
            what: "move time that follows the host's clock",
        })
    }
}
