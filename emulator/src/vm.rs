//! A machine: guest RAM, vCPUs, interrupt controller and clock, as the host sees them. Main type: [`Machine`].
//!
//! Neighbours: `config` (its shape), `vcpu` (what runs on it), `shared` (what the vCPUs share).
#![expect(unsafe_code, reason = "takes over the promise that guest RAM stays mapped")]

use std::sync::{Arc, Mutex, PoisonError};

use abi::Gpa;

use crate::config::{Config, ConfigError, RamSlot};
use crate::dirty::{DirtyLog, HarvestError};
use crate::gic::{Gic, GicError, GicState};
use crate::ram::Ram;
use crate::safepoint::Work;
use crate::shared::Shared;
use crate::signal;
use crate::timer;
use crate::vcpu::Vcpu;

/// One machine. Its vCPUs are taken out once, each to be run by whoever took it.
#[derive(Debug)]
pub struct Machine {
    shared: Arc<Shared>,
    vcpus: Mutex<Vec<Option<Vcpu>>>,
}

impl Machine {
    /// Builds a machine: vCPU 0 is on, the others wait for PSCI CPU_ON. A slot's index in `slots` is its number.
    ///
    /// # Errors
    /// [`ConfigError`] where the configuration or a slot is impossible.
    ///
    /// # Safety
    /// As long as the machine or one of its vCPUs lives, each slot's memory must stay mapped readable and writable, and
    /// whoever else touches it must do so by atomics, volatile accesses or system calls, never through a reference.
    pub unsafe fn new(config: Config, slots: &[RamSlot]) -> Result<Arc<Self>, ConfigError> {
        config.check(slots)?;
        let frames = config.gic_frames()?;
        // SAFETY: the caller promises the same for longer.
        let ram = unsafe { Ram::new(slots) }?;
        let dirty = DirtyLog::new(config.log_page_shift, slots.iter().map(|slot| (slot.gpa, slot.len_bytes)))?;
        let shared = Arc::new(Shared::new(config, ram, dirty, frames));
        let vcpus = (0..shared.config.vcpus).map(|index| Some(Vcpu::new(Arc::clone(&shared), index))).collect();
        Ok(Arc::new(Self { shared, vcpus: Mutex::new(vcpus) }))
    }

    /// The configuration that the machine was built with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// What the vCPUs share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Takes vCPU `index` out, to be run. `None` if there is none or it was taken already.
    pub fn take_vcpu(&self, index: usize) -> Option<Vcpu> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index)?.take()
    }

    /// Makes vCPU `index` leave its run loop with `Exit::Kicked`; if it is outside, its next run returns at once. Like
    /// KVM's `immediate_exit`, but an MMIO access that was answered is completed first.
    pub fn kick(&self, index: usize) {
        if let Some(signal) = self.shared.signals.get(index) {
            signal.raise(signal::KICK);
        }
    }

    /// Drives the level of a shared peripheral interrupt.
    ///
    /// # Errors
    /// [`GicError::NoSpi`].
    pub fn set_spi(&self, intid: u32, level: bool) -> Result<(), GicError> {
        self.shared.gic.set_spi(intid, level)
    }

    /// The dirty log, to ask, mark and plant faults. Start and harvest it through the machine.
    pub fn dirty(&self) -> &DirtyLog {
        &self.shared.dirty
    }

    /// Starts the dirty log clean: a page written after this returns is in the next harvest.
    pub fn start_dirty_log(&self) {
        self.shared.dirty.start();
        self.shared.request(Work::DROP_WRITE_TAGS);
    }

    /// Stops the dirty log; what is in it stays for a last harvest.
    pub fn stop_dirty_log(&self) {
        self.shared.dirty.stop();
    }

    /// Marks the pages of `len_bytes` from `gpa` dirty, after the host has written there.
    pub fn mark_dirty(&self, gpa: Gpa, len_bytes: u64) {
        self.shared.dirty.mark_range(gpa, len_bytes);
    }

    /// Makes every vCPU forget what it has read of guest memory, translations and decoded code, before it executes on: the
    /// host has written there, and no instruction of the guest's tells of it. Not to be called from a thread that is
    /// inside a vCPU's run.
    pub fn forget_memory(&self) {
        self.shared.request(Work::FLUSH_TLB);
        self.shared.request(Work::FLUSH_CODE);
    }

    /// Fetches and clears the dirty bitmap of `slot` into `bitmap` (`dirty().words(slot)` words, bit i of word w is page
    /// 64 w + i). When it returns, every store to a page that is not in the bitmap will be in the next one. Not to be
    /// called from a thread that is inside a vCPU's run.
    ///
    /// # Errors
    /// [`HarvestError`]; nothing was cleared.
    pub fn harvest(&self, slot: usize, bitmap: &mut [u64]) -> Result<(), HarvestError> {
        self.shared.dirty.harvest(slot, bitmap)?;
        self.shared.request(Work::DROP_WRITE_TAGS);
        Ok(())
    }

    /// The physical counter in ticks of `cntfrq_hz`; in icount mode as of the last slice's end.
    pub fn now_ticks(&self) -> u64 {
        self.shared.clock.now_ticks()
    }

    /// CNTFRQ_EL0 in Hz: that of the configuration, or of the machine whose state was restored.
    pub fn counter_hz(&self) -> u32 {
        self.shared.clock.cntfrq_hz()
    }

    /// Makes the counter tick at `hz`: to restore a machine saved elsewhere, before its counters are set. No vCPU may be inside its run
    /// loop.
    pub fn set_counter_hz(&self, hz: std::num::NonZeroU32) {
        self.shared.clock.set_cntfrq_hz(hz);
    }

    /// CNTVOFF in ticks: the virtual counter is the physical one less this.
    pub fn counter_offset(&self) -> u64 {
        self.shared.clock.cntvoff()
    }

    /// Sets CNTVOFF, for all vCPUs. They should be outside their run loops.
    pub fn set_counter_offset(&self, ticks: u64) {
        self.shared.clock.set_cntvoff(ticks);
    }

    /// Icount: instructions retired by all vCPUs and skipped while idle.
    pub fn instructions(&self) -> u64 {
        self.shared.clock.instructions()
    }

    /// Icount: goes on from the total of a machine saved elsewhere. To be called before the vCPUs' registers are restored.
    pub fn set_instructions(&self, total: u64) {
        self.shared.clock.set_instructions(total);
    }

    /// Icount, when every vCPU's last `Vcpu::run_for` was [`crate::Exit::Idle`]: moves the counter to the next timer's
    /// deadline. `false` where no timer is set: only the host can then wake the machine.
    pub fn warp_to_next_deadline(&self) -> bool {
        let deadline = self.shared.next_deadline();
        if deadline == timer::NEVER {
            return false;
        }
        self.shared.clock.warp_to(deadline);
        true
    }

    /// All state of the interrupt controller. The vCPUs should be outside their run loops.
    pub fn gic_state(&self) -> GicState {
        self.shared.gic.save()
    }

    /// Replaces all state of the interrupt controller. The vCPUs should be outside their run loops.
    ///
    /// # Errors
    /// [`GicError::Shape`].
    pub fn set_gic_state(&self, state: &GicState) -> Result<(), GicError> {
        self.shared.gic.restore(state)
    }

    /// The interrupt controller, whose state goes by KVM's device attributes.
    pub fn gic(&self) -> &Gic {
        &self.shared.gic
    }

    /// Names of what the guest has tried that exists in the architecture but not here; it took each as UNDEFINED.
    pub fn unimplemented(&self) -> Vec<String> {
        self.shared.unimplemented()
    }
}

/// Machines for tests.
#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Arc;

    use super::Machine;
    use crate::config::{ClockMode, Config};
    use crate::ram::testing::HostPages;

    /// Where [`machine`] has its RAM.
    pub(crate) const RAM: u64 = 0x4000_0000;

    /// A wall clock machine with 1 MiB of RAM at [`RAM`], to be dropped before its memory.
    pub(crate) fn machine(vcpus: usize) -> (Arc<Machine>, HostPages) {
        machine_with(vcpus, ClockMode::Wall)
    }

    /// As [`machine`], with any clock.
    pub(crate) fn machine_with(vcpus: usize, clock: ClockMode) -> (Arc<Machine>, HostPages) {
        let pages = HostPages::new(1 << 20);
        let config = Config { vcpus, clock, ..Config::default() };
        // SAFETY: a pair's first field is dropped first, and the memory is used by the machine alone.
        let machine = unsafe { Machine::new(config, &[pages.slot(RAM)]) }.expect("a good configuration");
        (machine, pages)
    }
}
