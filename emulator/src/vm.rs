//! A machine: guest RAM, vCPUs, interrupt controller and clock, as the host sees them. Main type: [`Machine`].
//!
//! Neighbours: `config` (its shape), `vcpu` (what runs on it), `shared` (what the vCPUs share).

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Config, ConfigError, RamSlot};
use crate::shared::Shared;
use crate::signal::{self, Signal};
use crate::vcpu::Vcpu;

/// One machine. Its vCPUs are taken out once, each to be run by whoever took it.
#[derive(Debug)]
pub struct Machine {
    shared: Arc<Shared>,
    vcpus: Mutex<Vec<Option<Vcpu>>>,
}

impl Machine {
    /// Builds a machine: vCPU 0 is on, the others wait for PSCI CPU_ON.
    ///
    /// # Errors
    /// [`ConfigError`] where the configuration or a slot is impossible.
    pub fn new(config: Config, slots: &[RamSlot]) -> Result<Arc<Self>, ConfigError> {
        config.check(slots)?;
        let signals = (0..config.vcpus).map(|_| Signal::default()).collect();
        let shared = Arc::new(Shared { config, signals });
        let vcpus = (0..shared.config.vcpus).map(|index| Some(Vcpu::new(Arc::clone(&shared), index))).collect();
        Ok(Arc::new(Self { shared, vcpus: Mutex::new(vcpus) }))
    }

    /// The configuration that the machine was built with.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Takes vCPU `index` out, to be run. `None` if there is none or it was taken already.
    pub fn take_vcpu(&self, index: usize) -> Option<Vcpu> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index)?.take()
    }

    /// Makes vCPU `index` leave its run loop with `Exit::Kicked`; if it is outside, its next run returns at once.
    pub fn kick(&self, index: usize) {
        if let Some(signal) = self.shared.signals.get(index) {
            signal.raise(signal::KICK);
        }
    }
}
