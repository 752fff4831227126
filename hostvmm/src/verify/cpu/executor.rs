//! A machine of one accelerator with the monitor in it: [`Executor`].

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use abi::{Gpa, map};

use super::block::{Block, Effect};
use super::isa::{Isa, Layout};
use crate::backend::{self, Accelerator, BackendError, Exit, Vcpu, VmHandle};
use crate::machine::{BuildError, MachineConfig, Start};
use crate::memory::{GuestMemory, MemoryError, SlotId, host_page_bytes};

/// No run of the monitor takes so long, by far.
const RUN_MAX: Duration = Duration::from_secs(20);
/// Bytes compared at a time at the end.
const CHUNK: u64 = 1 << 16;

/// Why blocks could not be run.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// No machine.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The accelerator refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Guest memory could not be accessed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A block did not come back to the monitor.
    #[error("block {block} {words:08x?} does not come back to the monitor on the {accelerator}: {why}")]
    Lost {
        /// Where.
        accelerator: Accelerator,
        /// Which.
        block: u64,
        /// Its instructions.
        words: Vec<u32>,
        /// What happened instead.
        why: String,
    },
}

/// One accelerator's machine.
pub(super) struct Executor {
    accelerator: Accelerator,
    vm: VmHandle,
    vcpu: Box<dyn Vcpu>,
    memory: GuestMemory,
    /// A fault planted in what this machine does.
    #[cfg(test)]
    pub(super) plant: Option<fn(&Block, &mut Effect)>,
}

impl Executor {
    /// A machine with `ram_bytes` of RAM and nothing in it.
    ///
    /// # Errors
    /// [`CpuError::Build`].
    pub(super) fn new(config: &MachineConfig) -> Result<Self, CpuError> {
        let layout = config.layout().map_err(BuildError::from)?;
        let memory = GuestMemory::new(layout.ram(), layout.region(), None)?;
        let start = Start { arch: config.tables.arch(), entry: map::RAM_BASE, devicetree: map::RAM_BASE, point: None };
        let vm = backend::open(config, &layout, &memory, start)?;
        let vcpu = vm.take_vcpu(0).expect("a machine has a vCPU that nobody has taken");
        Ok(Self {
            accelerator: config.accelerator,
            vm,
            vcpu,
            memory,
            #[cfg(test)]
            plant: None,
        })
    }

    /// Its vCPU.
    pub(super) fn vcpu(&mut self) -> &mut dyn Vcpu {
        self.vcpu.as_mut()
    }

    /// Puts the monitor in and the vCPU at its entry.
    ///
    /// # Errors
    /// [`CpuError`].
    pub(super) fn prepare(&mut self, isa: &dyn Isa) -> Result<(), CpuError> {
        let setup = isa.setup();
        for (at, bytes) in &setup.memory {
            self.memory.write(gpa(*at), bytes)?;
        }
        for (register, value) in setup.registers {
            self.vcpu.set_reg(register, value.into())?;
        }
        Ok(())
    }

    /// Runs `blocks`, whose slots follow each other, and clears what they may have written.
    ///
    /// # Errors
    /// [`CpuError::Lost`] with the block at fault.
    pub(super) fn run(&mut self, layout: &Layout, blocks: &[Block]) -> Result<Vec<Effect>, CpuError> {
        let Some(first) = blocks.first() else { return Ok(Vec::new()) };
        let slot = first.number % layout.slots;
        let offset = slot * layout.record_bytes;
        let mut records = vec![0; blocks.len() * layout.record_bytes as usize];
        for (block, record) in blocks.iter().zip(records.chunks_exact_mut(layout.record_bytes as usize)) {
            for (bytes, word) in record.chunks_exact_mut(8).zip(&block.registers) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            for (at, bytes) in &block.memory {
                self.memory.write(gpa(*at), bytes)?;
            }
        }
        self.memory.write(gpa(layout.records + offset), &records)?;
        let current = layout.records_va + offset;
        let end = current + records.len() as u64;
        self.memory.store_u64(gpa(layout.control), current)?;
        self.memory.store_u64(gpa(layout.control + 8), end)?;
        self.run_monitor().map_err(|why| self.lost(layout, blocks, why))?;
        self.memory.read(gpa(layout.records + offset), &mut records)?;
        blocks
            .iter()
            .zip(records.chunks_exact(layout.record_bytes as usize))
            .map(|(block, record)| {
                let saved = &record[layout.saved as usize..][..8 * layout.words];
                let registers = saved
                    .chunks_exact(8)
                    .map(|word| u64::from_le_bytes(word.try_into().expect("chunks of eight bytes")))
                    .collect();
                #[cfg_attr(not(test), expect(unused_mut, reason = "only tests plant faults"))]
                let mut effect = Effect { registers, memory: self.take_watched(block)? };
                #[cfg(test)]
                if let Some(plant) = self.plant {
                    plant(block, &mut effect);
                }
                Ok(effect)
            })
            .collect()
    }

    /// The watched memory of `block`, which is cleared.
    fn take_watched(&self, block: &Block) -> Result<Vec<u8>, MemoryError> {
        let mut all = Vec::new();
        for range in &block.watched {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.memory.read(gpa(range.start), &mut bytes)?;
            if bytes.iter().any(|&byte| byte != 0) {
                self.memory.write(gpa(range.start), &vec![0; bytes.len()])?;
            }
            all.append(&mut bytes);
        }
        Ok(all)
    }

    /// Runs until the doorbell.
    fn run_monitor(&mut self) -> Result<(), String> {
        let (vm, vcpu) = (&self.vm, &mut self.vcpu);
        thread::scope(|scope| {
            let (done, waits) = mpsc::channel::<()>();
            scope.spawn(move || {
                if waits.recv_timeout(RUN_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                    vm.kick(0);
                }
            });
            let exit = vcpu.run(None);
            drop(done);
            match exit {
                Ok(Exit::MmioWrite { gpa, .. }) if gpa == map::DOORBELL_BASE => Ok(()),
                Ok(Exit::Kicked) => Err(format!("it still runs after {} s", RUN_MAX.as_secs())),
                Ok(exit) => Err(format!("{exit:?}")),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn lost(&self, layout: &Layout, blocks: &[Block], why: String) -> CpuError {
        let current = self.memory.load_u64(gpa(layout.control)).unwrap_or_default();
        let slot = current.wrapping_sub(layout.records_va) / layout.record_bytes;
        let block = blocks.iter().find(|block| block.number % layout.slots == slot).or(blocks.first());
        let (number, words) = block.map_or((0, Vec::new()), |block| (block.number, block.words.clone()));
        CpuError::Lost { accelerator: self.accelerator, block: number, words, why }
    }
}

/// The first byte of RAM that differs between two machines, records and control words aside.
///
/// # Errors
/// [`MemoryError`].
pub(super) fn first_stray(layout: &Layout, one: &Executor, other: &Executor) -> Result<Option<Gpa>, MemoryError> {
    let records = layout.records..layout.records + layout.slots * layout.record_bytes;
    let mut extents = one.memory.data_extents(SlotId::Ram, 0..layout.ram_bytes)?;
    extents.extend(other.memory.data_extents(SlotId::Ram, 0..layout.ram_bytes)?);
    for extent in extents {
        let mut at = extent.start;
        while at < extent.end {
            let len = CHUNK.min(extent.end - at);
            let (mut left, mut right) = (vec![0; len as usize], vec![0; len as usize]);
            one.memory.copy_from_slot(SlotId::Ram, at, &mut left)?;
            other.memory.copy_from_slot(SlotId::Ram, at, &mut right)?;
            if left != right {
                let differs = |index: &usize| {
                    let offset = at + *index as u64;
                    let ours = records.contains(&offset) || offset & !15 == layout.control;
                    left[*index] != right[*index] && !ours
                };
                if let Some(index) = (0..left.len()).find(differs) {
                    return Ok(Some(gpa(at + index as u64)));
                }
            }
            at += len;
        }
    }
    Ok(None)
}

/// The configuration of a machine for `accelerator`.
pub(super) fn config(accelerator: Accelerator, layout: &Layout) -> MachineConfig {
    let page = host_page_bytes().max(1 << 16);
    MachineConfig {
        accelerator,
        tables: layout.tables,
        ram_bytes: layout.ram_bytes.next_multiple_of(page),
        region_bytes: page,
        ..MachineConfig::default()
    }
}

fn gpa(offset: u64) -> Gpa {
    Gpa::new(map::RAM_BASE.raw() + offset)
}
