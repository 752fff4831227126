//! One virtual CPU as the host sees it: [`Vcpu`].
//!
//! Neighbours: `vm` hands it out; `exit` says why it came back.

use std::sync::Arc;

use crate::exit::Exit;
use crate::shared::Shared;
use crate::signal;

/// One vCPU. Owned by the thread that runs it; between two runs its registers may be read and written.
#[derive(Debug)]
pub struct Vcpu {
    shared: Arc<Shared>,
    index: usize,
}

impl Vcpu {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Self {
        Self { shared, index }
    }

    /// Index of this vCPU, which is also its MPIDR's Aff0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Wall clock: runs until something needs the host. A vCPU that is off or waits for an interrupt sleeps inside.
    pub fn run(&mut self) -> Exit {
        let signal = &self.shared.signals[self.index];
        while signal.take(signal::KICK) == 0 {
            signal.sleep(None);
        }
        Exit::Kicked
    }

    /// Icount: executes at most `instructions` instructions, exactly that many for [`Exit::Budget`].
    pub fn run_for(&mut self, instructions: u64) -> Exit {
        let _ = instructions;
        Exit::Idle
    }

    /// Answers [`Exit::MmioRead`] with `data` in the low bytes, or [`Exit::MmioWrite`] with anything.
    pub fn complete_mmio(&mut self, data: u64) {
        let _ = data;
    }

    /// Answers [`Exit::Hvc`] with x0 to x3.
    pub fn complete_hvc(&mut self, results: [u64; 4]) {
        let _ = results;
    }
}
