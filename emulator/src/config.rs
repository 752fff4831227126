//! What a machine is made of: [`Config`] and the checks on it and on its RAM.
//!
//! Neighbours: `vm` builds the machine from a checked configuration; `clock` interprets [`ClockMode`].

use std::ptr::NonNull;

use abi::{Gpa, GuestRange, map};
use thiserror::Error;

use crate::dirty::DirtyLogError;
use crate::ram::RamError;

/// Counter frequency of the common `virt` machine, in Hz.
pub const DEFAULT_CNTFRQ_HZ: u32 = 62_500_000;

/// Where the counter's time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockMode {
    /// The counter follows the host's monotonic clock; each vCPU runs on a host thread of its own.
    Wall,
    /// The counter is the number of instructions that the machine has retired, each taking `ns_per_instruction` of
    /// guest time; one host thread interleaves the vCPUs and a run repeats bit for bit.
    Icount {
        /// Guest nanoseconds per instruction, not zero.
        ns_per_instruction: u32,
    },
}

/// The execution state of every vCPU of a machine at EL1; EL0 has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ExecutionState {
    /// AArch64.
    #[default]
    Aarch64,
    /// AArch32 as Armv8 has it, a superset of Armv7-A: what KVM gives with `KVM_ARM_VCPU_EL1_32BIT`.
    Aarch32,
}

/// The shape of a machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of vCPUs, 1 to [`map::MAX_VCPUS`].
    pub vcpus: usize,
    /// Source of time.
    pub clock: ClockMode,
    /// What the vCPUs execute.
    pub execution_state: ExecutionState,
    /// Frequency of the counter in Hz, not zero.
    pub cntfrq_hz: u32,
    /// log2 of the dirty log's page size in bytes: 12, 14 or 16.
    pub log_page_shift: u32,
    /// The GIC distributor's 64 KiB frame.
    pub gicd: Gpa,
    /// The first redistributor; each vCPU has two 64 KiB frames.
    pub gicr: Gpa,
    /// Instructions between two looks at the host's clock in [`ClockMode::Wall`], not zero. A timer's interrupt is
    /// late by at most the time that so many instructions take.
    pub quantum: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vcpus: 1,
            clock: ClockMode::Wall,
            execution_state: ExecutionState::Aarch64,
            cntfrq_hz: DEFAULT_CNTFRQ_HZ,
            log_page_shift: 12,
            gicd: map::GICD_BASE,
            gicr: map::GICR_BASE,
            quantum: 16_384,
        }
    }
}

/// One piece of guest RAM: `len_bytes` at `gpa`, held by the host at `host`.
#[derive(Clone, Copy, Debug)]
pub struct RamSlot {
    /// Guest physical address of the first byte, aligned to the dirty log's page.
    pub gpa: Gpa,
    /// Length in bytes, a multiple of the dirty log's page.
    pub len_bytes: u64,
    /// The host's mapping of the bytes, aligned to 4096.
    pub host: NonNull<u8>,
}

/// Why a machine could not be built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Zero or too many vCPUs.
    #[error("{vcpus} vCPUs: a machine has 1 to {max}", max = map::MAX_VCPUS)]
    Vcpus {
        /// Number asked for.
        vcpus: usize,
    },
    /// A clock that does not run.
    #[error("the clock would not run: cntfrq_hz, ns_per_instruction and quantum must not be zero")]
    Clock,
    /// A dirty log page that is none of 4K, 16K, 64K.
    #[error("a dirty log page of 2^{shift} bytes: must be 2^12, 2^14 or 2^16")]
    LogPage {
        /// log2 asked for.
        shift: u32,
    },
    /// No RAM at all.
    #[error("a machine needs at least one RAM slot")]
    NoRam,
    /// A slot that is empty, unaligned, or wraps.
    #[error("RAM slot {slot} at {gpa} with {len_bytes:#x} bytes is empty, unaligned to the dirty log's page, or wraps")]
    Slot {
        /// Index of the slot.
        slot: usize,
        /// Its address.
        gpa: Gpa,
        /// Its length.
        len_bytes: u64,
    },
    /// A slot that overlaps another one or a GIC frame.
    #[error("RAM slot {slot} at {gpa} overlaps {other}")]
    Overlap {
        /// Index of the slot.
        slot: usize,
        /// Its address.
        gpa: Gpa,
        /// What it overlaps.
        other: GuestRange,
    },
    /// GIC frames that overlap, wrap or are not aligned to 64 KiB.
    #[error("the GIC's frames at {gicd} and {gicr} overlap, wrap, or are not aligned to 64 KiB")]
    Gic {
        /// The distributor's address.
        gicd: Gpa,
        /// The redistributors' address.
        gicr: Gpa,
    },
    /// Slots that make no RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Slots that the dirty log cannot cover.
    #[error(transparent)]
    DirtyLog(#[from] DirtyLogError),
}

impl Config {
    /// The distributor's frame and the redistributors' frames.
    ///
    /// # Errors
    /// [`ConfigError::Gic`].
    pub(crate) fn gic_frames(&self) -> Result<(GuestRange, GuestRange), ConfigError> {
        let bad = ConfigError::Gic { gicd: self.gicd, gicr: self.gicr };
        let gicd = GuestRange::new(self.gicd, map::GICD_SIZE);
        let gicr = GuestRange::new(self.gicr, self.vcpus as u64 * map::GICR_STRIDE);
        let (Some(gicd), Some(gicr)) = (gicd, gicr) else { return Err(bad) };
        let aligned = self.gicd.is_aligned(map::DEVICE_ALIGN) && self.gicr.is_aligned(map::DEVICE_ALIGN);
        if !aligned || gicd.overlaps(gicr) { Err(bad) } else { Ok((gicd, gicr)) }
    }

    /// Checks the configuration together with the RAM it is to be built with.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn check(&self, slots: &[RamSlot]) -> Result<(), ConfigError> {
        if !(1..=map::MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus { vcpus: self.vcpus });
        }
        let stopped = matches!(self.clock, ClockMode::Icount { ns_per_instruction: 0 });
        if self.cntfrq_hz == 0 || self.quantum == 0 || stopped {
            return Err(ConfigError::Clock);
        }
        if ![12, 14, 16].contains(&self.log_page_shift) {
            return Err(ConfigError::LogPage { shift: self.log_page_shift });
        }
        let (gicd, gicr) = self.gic_frames()?;
        let mut taken = vec![gicd, gicr];
        let page_bytes = 1_u64 << self.log_page_shift;
        for (index, slot) in slots.iter().enumerate() {
            let &RamSlot { gpa, len_bytes, host } = slot;
            let range = GuestRange::new(gpa, len_bytes).filter(|range| {
                !range.is_empty()
                    && gpa.is_aligned(page_bytes)
                    && len_bytes.is_multiple_of(page_bytes)
                    && host.addr().get().is_multiple_of(4096)
            });
            let Some(range) = range else {
                return Err(ConfigError::Slot { slot: index, gpa, len_bytes });
            };
            if let Some(&other) = taken.iter().find(|other| other.overlaps(range)) {
                return Err(ConfigError::Overlap { slot: index, gpa, other });
            }
            taken.push(range);
        }
        if slots.is_empty() { Err(ConfigError::NoRam) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(gpa: u64, len_bytes: u64) -> RamSlot {
        RamSlot { gpa: Gpa::new(gpa), len_bytes, host: NonNull::without_provenance(4096.try_into().unwrap()) }
    }

    #[test]
    fn good_machine_is_accepted() {
        let slots = [slot(0x4000_0000, 1 << 28), slot(0x2000_0000, 8 << 20)];
        assert_eq!(Config::default().check(&slots), Ok(()));
    }

    #[test]
    fn bad_slots_are_named() {
        let config = Config::default();
        assert_eq!(config.check(&[]), Err(ConfigError::NoRam));
        for bad in [slot(0x4000_0000, 0), slot(0x4000_0001, 4096), slot(0x4000_0000, 100), slot(!0xfff, 0x2000)] {
            assert!(matches!(config.check(&[bad]), Err(ConfigError::Slot { slot: 0, .. })), "{bad:?}");
        }
        let over_gic = slot(0x0800_0000, 4096);
        assert!(matches!(config.check(&[over_gic]), Err(ConfigError::Overlap { slot: 0, .. })));
        let twice = [slot(0x4000_0000, 8192), slot(0x4000_1000, 4096)];
        assert!(matches!(config.check(&twice), Err(ConfigError::Overlap { slot: 1, .. })));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let ram = [slot(0x4000_0000, 1 << 20)];
        let check = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check(&ram)
        };
        assert_eq!(check(|c| c.vcpus = 0), Err(ConfigError::Vcpus { vcpus: 0 }));
        assert_eq!(check(|c| c.vcpus = 9), Err(ConfigError::Vcpus { vcpus: 9 }));
        assert_eq!(check(|c| c.clock = ClockMode::Icount { ns_per_instruction: 0 }), Err(ConfigError::Clock));
        assert_eq!(check(|c| c.log_page_shift = 13), Err(ConfigError::LogPage { shift: 13 }));
        assert!(matches!(check(|c| c.gicr = c.gicd), Err(ConfigError::Gic { .. })));
        assert!(matches!(check(|c| c.gicr = Gpa::new(!0xffff)), Err(ConfigError::Gic { .. })));
    }
}
