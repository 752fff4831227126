//! A scripted backend for tests: a vCPU is a closure from a call of `run` to its exit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use abi::GuestRange;
use abi::hypercall::{Command, Op, Outcome, REG_DOORBELL, REQUEST_MAGIC, Request, VERSION};
use abi::{Gpa, map};
use zerocopy::little_endian::U64;
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::backend::{Accelerator, BackendError, Exit, GicState, PlantedFault, Vcpu, Vm};
use crate::memory::{GuestMemory, SlotId};

/// What a scripted vCPU sees in a `run`.
pub(super) struct Stage<'a> {
    pub(super) memory: &'a GuestMemory,
    pub(super) vcpu: usize,
    pub(super) budget: Option<u64>,
    pub(super) instructions: &'a mut u64,
    kicked: &'a AtomicBool,
}

impl Stage<'_> {
    pub(super) fn request_block(&self) -> Gpa {
        Gpa::new(map::RAM_BASE.raw() + 0x1_0000 + 0x1000 * self.vcpu as u64)
    }

    pub(super) fn progress_slot(&self) -> Gpa {
        Gpa::new(map::RAM_BASE.raw() + 0x2_0000 + 0x1000 * self.vcpu as u64)
    }

    /// Fills the request block and rings the doorbell.
    pub(super) fn next(&mut self, outcome: Outcome) -> Exit {
        let mut request = Request::new_zeroed();
        request.magic = REQUEST_MAGIC.into();
        request.version = VERSION.into();
        request.op = (Op::Next as u16).into();
        request.args = outcome.encode().map(U64::new);
        self.memory.write(self.request_block(), request.as_bytes()).unwrap();
        *self.instructions += 1;
        let data = self.request_block().raw() >> 6;
        Exit::MmioWrite { gpa: Gpa::new(map::DOORBELL_BASE.raw() + REG_DOORBELL), len_bytes: 4, data }
    }

    pub(super) fn command(&self) -> Command {
        let request: Request = self.memory.read_obj(self.request_block()).unwrap();
        Command::decode(request.results.map(U64::get)).unwrap()
    }

    /// Executes instructions until the budget is used up or the vCPU is kicked.
    pub(super) fn spin(&mut self) -> Exit {
        match self.budget {
            Some(budget) => {
                *self.instructions += budget;
                Exit::Budget
            }
            None => {
                while !self.kicked.swap(false, Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                Exit::Kicked
            }
        }
    }

    /// Waits for an interrupt that never comes.
    pub(super) fn wait_for_interrupt(&mut self) -> Exit {
        if self.budget.is_some() { Exit::Idle } else { self.spin() }
    }
}

type Script = Box<dyn FnMut(&mut Stage<'_>) -> Exit + Send>;

/// A machine of scripted vCPUs.
pub(super) struct ScriptVm {
    memory: GuestMemory,
    kicks: Vec<Arc<AtomicBool>>,
    scripts: Mutex<Vec<Option<Script>>>,
    pub(super) marked: Mutex<Vec<GuestRange>>,
    pub(super) warps_left: AtomicU64,
}

impl ScriptVm {
    pub(super) fn new(scripts: Vec<Script>) -> Arc<Self> {
        let ram = GuestRange::new(map::RAM_BASE, 1 << 20).unwrap();
        let region = GuestRange::new(map::REGION_BASE, 0x1_0000).unwrap();
        Arc::new(Self {
            memory: GuestMemory::new(ram, region, None).unwrap(),
            kicks: scripts.iter().map(|_| Arc::default()).collect(),
            scripts: Mutex::new(scripts.into_iter().map(Some).collect()),
            marked: Mutex::default(),
            warps_left: AtomicU64::new(0),
        })
    }

    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

impl Vm for ScriptVm {
    fn accelerator(&self) -> Accelerator {
        Accelerator::Emulator
    }

    fn take_vcpu(&self, index: usize) -> Option<Box<dyn Vcpu>> {
        let script = self.scripts.lock().unwrap().get_mut(index)?.take()?;
        let kicked = Arc::clone(&self.kicks[index]);
        Some(Box::new(ScriptVcpu { index, script, kicked, memory: self.memory.clone(), instructions: 0 }))
    }

    fn kick(&self, index: usize) {
        self.kicks[index].store(true, Ordering::SeqCst);
    }

    fn set_irq_line(&self, _: u32, _: bool) {}

    fn save_gic(&self) -> Result<GicState, BackendError> {
        Ok(GicState::default())
    }

    fn restore_gic(&self, _: &GicState) -> Result<(), BackendError> {
        Ok(())
    }

    fn mark_dirty(&self, range: GuestRange) {
        self.marked.lock().unwrap().push(range);
    }

    fn log_page_bytes(&self) -> u64 {
        4096
    }

    fn start_dirty_log(&self, _: &[SlotId]) -> Result<(), BackendError> {
        Ok(())
    }

    fn stop_dirty_log(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn harvest_dirty(&self, _: SlotId, bitmap: &mut [u64]) -> Result<(), BackendError> {
        bitmap.fill(0);
        Ok(())
    }

    fn plant(&self, _: PlantedFault) -> Result<(), BackendError> {
        Ok(())
    }

    fn now_ticks(&self) -> u64 {
        0
    }

    fn ticks_per_second(&self) -> u64 {
        1
    }

    fn warp_to_next_deadline(&self) -> Result<bool, BackendError> {
        let left = self.warps_left.load(Ordering::SeqCst);
        self.warps_left.store(left.saturating_sub(1), Ordering::SeqCst);
        Ok(left > 0)
    }
}

struct ScriptVcpu {
    index: usize,
    script: Script,
    kicked: Arc<AtomicBool>,
    memory: GuestMemory,
    instructions: u64,
}

impl Vcpu for ScriptVcpu {
    fn index(&self) -> usize {
        self.index
    }

    fn run(&mut self, budget: Option<u64>) -> Result<Exit, BackendError> {
        if self.kicked.swap(false, Ordering::SeqCst) {
            return Ok(Exit::Kicked);
        }
        Ok((self.script)(&mut Stage {
            memory: &self.memory,
            vcpu: self.index,
            budget,
            instructions: &mut self.instructions,
            kicked: &self.kicked,
        }))
    }

    fn complete_mmio_read(&mut self, _: u64) {}

    fn complete_hvc(&mut self, _: [u64; 4]) {}

    fn reg_list(&mut self) -> Result<Vec<u64>, BackendError> {
        Ok(Vec::new())
    }

    fn get_reg(&mut self, _: u64) -> Result<u128, BackendError> {
        Ok(0)
    }

    fn set_reg(&mut self, _: u64, _: u128) -> Result<(), BackendError> {
        Ok(())
    }

    fn is_on(&mut self) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn set_on(&mut self, _: bool) -> Result<(), BackendError> {
        Ok(())
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.instructions)
    }
}
