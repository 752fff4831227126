//! A GICv3 without LPIs and ITS, in one security state (`GICD_CTLR.DS` = 1), as KVM shows it to a guest.
//!
//! [`Gic`] is the whole controller behind one lock; [`Gic::irq_pending`] alone is lock-free, for the run loop asks it
//! often. Every change recomputes the interrupt lines it can have moved and, where a line rises, raises the vCPU's
//! [`signal::INTERRUPT`]. `state` holds the plain state and its rules ([`GicState`] is also the snapshot), `mmio` the
//! distributor's and redistributors' registers, `interface` the `ICC_*` system registers, `attributes` all of them by
//! KVM's device attributes, as state.
//!
//! All interrupts are in group 1: `GICD_IGROUPR` and `GICR_IGROUPR0` read as ones and ignore writes, group 0 cannot be
//! enabled and never has anything pending. Priorities have five bits, as on most hardware under KVM. 1-of-N routing is
//! not offered (`GICD_TYPER.No1N`).
//!
//! Neighbours: `timer` and the PMU drive PPIs, the host drives SPIs through `Machine::set_spi`, `sysreg` forwards `ICC_*`.

mod attributes;
mod interface;
mod mmio;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use abi::{Gpa, GuestRange};
use thiserror::Error;

use crate::signal::{self, Signal};
pub use state::{CpuInterface, GicState, INTIDS, Interrupt, SPURIOUS};

/// A request about an interrupt that does not exist, or state that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GicError {
    /// Not the INTID of an SPI of this controller.
    #[error("INTID {intid} is no SPI: those are 32 to {last}", last = INTIDS - 1)]
    NoSpi {
        /// INTID asked for.
        intid: u32,
    },
    /// A snapshot of a machine of another shape.
    #[error("the GIC state is that of {found} vCPUs with {intids} INTIDs, the machine has {expected} with {INTIDS}")]
    Shape {
        /// vCPUs of this machine.
        expected: usize,
        /// vCPUs in the snapshot.
        found: usize,
        /// INTIDs in the snapshot.
        intids: usize,
    },
    /// No such register (KVM: ENXIO, EINVAL).
    #[error("there is no GIC register {attr:#x} in group {group}")]
    NoAttribute {
        /// Group of device attributes.
        group: u32,
        /// Attribute in it.
        attr: u64,
    },
    /// A value that the register cannot have (KVM: EINVAL).
    #[error("GIC register {attr:#x} of group {group} is {now:#x} and cannot become {given:#x}")]
    AttributeValue {
        /// Group of device attributes.
        group: u32,
        /// Attribute in it.
        attr: u64,
        /// Its value.
        now: u64,
        /// The value given.
        given: u64,
    },
}

/// The interrupt controller of a machine.
#[derive(Debug)]
pub struct Gic {
    state: Mutex<GicState>,
    lines: Box<[AtomicBool]>,
    /// Counts restores: who caches what it drove must drive it again.
    generation: AtomicU64,
    signals: Arc<[Signal]>,
    distributor: GuestRange,
    redistributors: GuestRange,
}

impl Gic {
    /// A controller after reset, with one CPU interface for each of `signals`.
    pub fn new(signals: Arc<[Signal]>, distributor: GuestRange, redistributors: GuestRange) -> Self {
        Self {
            state: Mutex::new(GicState::new(signals.len())),
            lines: signals.iter().map(|_| AtomicBool::new(false)).collect(),
            generation: AtomicU64::new(0),
            signals,
            distributor,
            redistributors,
        }
    }

    /// Whether the IRQ line into `vcpu` is high: one acquire load. False for no such vCPU.
    #[inline]
    pub fn irq_pending(&self, vcpu: usize) -> bool {
        self.lines.get(vcpu).is_some_and(|line| line.load(Ordering::Acquire))
    }

    /// Drives the level of a private peripheral interrupt (INTID 16 to 31) of `vcpu`.
    ///
    /// # Panics
    /// If there is no such vCPU or `intid` is no PPI: both come from this crate only.
    pub(crate) fn set_ppi(&self, vcpu: usize, intid: u32, level: bool) {
        assert!((16..32).contains(&intid), "INTID {intid} is no PPI");
        let mut state = self.lock();
        state.private[vcpu][intid as usize].drive(level);
        self.publish(&state);
    }

    /// Drives the level of a shared peripheral interrupt.
    ///
    /// # Errors
    /// [`GicError::NoSpi`].
    pub fn set_spi(&self, intid: u32, level: bool) -> Result<(), GicError> {
        let mut state = self.lock();
        let spi = (intid as usize).checked_sub(32).and_then(|index| state.shared.get_mut(index));
        spi.ok_or(GicError::NoSpi { intid })?.drive(level);
        self.publish(&state);
        Ok(())
    }

    /// Whether `gpa` lies in a frame of the controller.
    #[inline]
    pub fn claims(&self, gpa: Gpa) -> bool {
        self.distributor.contains(gpa) || self.redistributors.contains(gpa)
    }

    /// Reads `size_bytes` (1, 2, 4 or 8) at `gpa`; `None` outside the controller's frames. Unknown registers are zero.
    pub fn mmio_read(&self, gpa: Gpa, size_bytes: u8) -> Option<u64> {
        let (frame, offset) = self.frame(gpa)?;
        Some(self.lock().frame_read(frame, offset, size_bytes))
    }

    /// Writes the low `size_bytes` (1, 2, 4 or 8) of `value` at `gpa`; `None` outside the controller's frames.
    pub fn mmio_write(&self, gpa: Gpa, size_bytes: u8, value: u64) -> Option<()> {
        let (frame, offset) = self.frame(gpa)?;
        let mut state = self.lock();
        state.frame_write(frame, offset, size_bytes, value);
        self.publish(&state);
        Some(())
    }

    /// Reads the `ICC_*` register `enc` (packed like KVM's system register ids) of `vcpu`; `None` where it is UNDEFINED.
    pub fn cpu_read(&self, vcpu: usize, enc: u16) -> Option<u64> {
        let mut state = self.lock();
        let value = state.interface_read(vcpu, enc)?;
        self.publish(&state);
        Some(value)
    }

    /// Writes the `ICC_*` register `enc` of `vcpu`; `None` where it is UNDEFINED.
    pub fn cpu_write(&self, vcpu: usize, enc: u16, value: u64) -> Option<()> {
        let mut state = self.lock();
        state.interface_write(vcpu, enc, value)?;
        self.publish(&state);
        Some(())
    }

    /// All state of the controller. The vCPUs should be outside their run loops.
    pub fn save(&self) -> GicState {
        self.lock().clone()
    }

    /// Replaces all state of the controller.
    ///
    /// # Errors
    /// [`GicError::Shape`]; nothing was changed.
    pub fn restore(&self, saved: &GicState) -> Result<(), GicError> {
        let mut state = self.lock();
        let (found, intids) = (saved.private.len(), saved.shared.len() + 32);
        let targets_exist = saved.shared.iter().all(|spi| spi.target.is_none_or(|target| target < found));
        if found != state.private.len() || found != saved.interfaces.len() || intids != INTIDS || !targets_exist {
            return Err(GicError::Shape { expected: state.private.len(), found, intids });
        }
        state.clone_from(saved);
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.publish(&state);
        Ok(())
    }

    /// Reads the register that KVM_GET_DEVICE_ATTR names by `group` and `attr`.
    ///
    /// # Errors
    /// [`GicError::NoAttribute`].
    pub fn attribute(&self, group: u32, attr: u64) -> Result<u64, GicError> {
        self.lock().attribute(group, attr)
    }

    /// Replaces what the register has that KVM_SET_DEVICE_ATTR names by `group` and `attr`. The vCPUs should be outside
    /// their run loops.
    ///
    /// # Errors
    /// [`GicError::NoAttribute`], [`GicError::AttributeValue`]; nothing was changed.
    pub fn set_attribute(&self, group: u32, attr: u64, value: u64) -> Result<(), GicError> {
        let mut state = self.lock();
        state.set_attribute(group, attr, value)?;
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.publish(&state);
        Ok(())
    }

    /// How often the state was replaced.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Resets the CPU interface of `vcpu`, which PSCI turns on.
    pub(crate) fn reset_interface(&self, vcpu: usize) {
        let mut state = self.lock();
        state.interfaces[vcpu] = CpuInterface::default();
        self.publish(&state);
    }

    fn lock(&self) -> MutexGuard<'_, GicState> {
        // Plain values: a panic elsewhere cannot leave them half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the lines to where `state` has them. Runs under the lock, so lines follow the order of changes.
    fn publish(&self, state: &GicState) {
        for (vcpu, line) in self.lines.iter().enumerate() {
            let high = state.signalled(vcpu).is_some();
            if line.load(Ordering::Relaxed) != high {
                line.store(high, Ordering::Release);
                if high {
                    self.signals[vcpu].raise(signal::INTERRUPT);
                }
            }
        }
    }

    fn frame(&self, gpa: Gpa) -> Option<(mmio::Frame, u64)> {
        if self.distributor.contains(gpa) {
            return Some((mmio::Frame::Distributor, gpa.checked_offset_from(self.distributor.start())?));
        }
        if !self.redistributors.contains(gpa) {
            return None;
        }
        let offset = gpa.checked_offset_from(self.redistributors.start())?;
        let vcpu = (offset / abi::map::GICR_STRIDE) as usize;
        let (half, offset) = (offset & 0x1_0000, offset & 0xffff);
        Some((if half == 0 { mmio::Frame::Redistributor(vcpu) } else { mmio::Frame::Private(vcpu) }, offset))
    }
}
