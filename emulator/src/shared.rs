//! What the vCPUs of one machine share: [`Shared`].
//!
//! Neighbours: `vm` builds it; every vCPU, the GIC, PSCI and the safepoints reach each other through it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use abi::Gpa;

use crate::clock::Clock;
use crate::config::Config;
use crate::dirty::DirtyLog;
use crate::gic::Gic;
use crate::psci::Power;
use crate::ram::Ram;
use crate::safepoint::{Safepoints, Work};
use crate::signal::{self, Signal};
use crate::timer;

/// The machine's shared parts. Every field is safe to use from any vCPU's thread.
#[derive(Debug)]
pub struct Shared {
    /// The checked configuration.
    pub config: Config,
    /// Guest RAM.
    pub ram: Ram,
    /// The dirty log.
    pub dirty: DirtyLog,
    /// How vCPUs are made to forget what they cache.
    pub safepoints: Safepoints,
    /// The interrupt controller.
    pub gic: Gic,
    /// The system counter.
    pub clock: Clock,
    /// Who is on.
    pub power: Power,
    /// Attention flags, one per vCPU.
    pub signals: Arc<[Signal]>,
    /// Icount: by vCPU, the physical count of its next timer, as of its last slice's end.
    deadlines: Box<[AtomicU64]>,
    unimplemented: Mutex<BTreeSet<String>>,
}

impl Shared {
    /// The parts of a machine whose configuration was checked.
    pub(crate) fn new(config: Config, ram: Ram, dirty: DirtyLog, gic: (abi::GuestRange, abi::GuestRange)) -> Self {
        let signals: Arc<[Signal]> = (0..config.vcpus).map(|_| Signal::default()).collect();
        Self {
            ram,
            dirty,
            safepoints: Safepoints::new(config.vcpus),
            gic: Gic::new(Arc::clone(&signals), gic.0, gic.1),
            clock: Clock::new(config.clock, config.cntfrq_hz),
            power: Power::new(config.vcpus),
            deadlines: signals.iter().map(|_| AtomicU64::new(timer::NEVER)).collect(),
            signals,
            unimplemented: Mutex::default(),
            config,
        }
    }

    /// Reads from a device of the machine itself, by `vcpu`; `None` where there is none.
    pub fn device_read(&self, _vcpu: usize, gpa: Gpa, size_bytes: u8) -> Option<u64> {
        self.gic.mmio_read(gpa, size_bytes)
    }

    /// Writes to a device of the machine itself, by `vcpu`; `false` where there is none.
    pub fn device_write(&self, _vcpu: usize, gpa: Gpa, size_bytes: u8, value: u64) -> bool {
        self.gic.mmio_write(gpa, size_bytes, value).is_some()
    }

    /// Notes an instruction or register that exists but is not modelled; the guest takes it as UNDEFINED.
    pub fn note_unimplemented(&self, what: &str) {
        let mut noted = self.unimplemented.lock().unwrap_or_else(PoisonError::into_inner);
        if !noted.contains(what) && noted.len() < UNIMPLEMENTED_MAX {
            noted.insert(what.to_owned());
        }
    }

    /// What was noted, in alphabetical order.
    pub fn unimplemented(&self) -> Vec<String> {
        self.unimplemented.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// From outside every run loop: makes all vCPUs do `work` before they execute on, and waits until each has or will.
    pub fn request(&self, work: Work) {
        self.safepoints.request(work, |vcpu| self.signals[vcpu].raise(signal::SAFEPOINT));
    }

    pub(crate) fn set_deadline(&self, vcpu: usize, ticks: u64) {
        self.deadlines[vcpu].store(ticks, Ordering::Relaxed);
    }

    /// The earliest deadline of all vCPUs that is yet to come, or [`timer::NEVER`]. One that has passed is that of a vCPU
    /// which is not run meanwhile: it will find its timer's interrupt when it is.
    pub(crate) fn next_deadline(&self) -> u64 {
        let now = self.clock.now_ticks();
        let deadlines = self.deadlines.iter().map(|deadline| deadline.load(Ordering::Relaxed));
        deadlines.filter(|deadline| *deadline > now).min().unwrap_or(timer::NEVER)
    }
}

/// Most different things noted as unimplemented: a hostile guest must not fill the host's memory with them.
const UNIMPLEMENTED_MAX: usize = 256;
