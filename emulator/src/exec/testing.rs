//! A vCPU with a little RAM, for tests: [`Bench`].

use std::sync::Arc;

use abi::Gpa;

use crate::config::{Config, ExecutionState};
use crate::cpu::{Cpu, Stop};
use crate::dirty::DirtyLog;
use crate::exec;
use crate::ram::Ram;
use crate::ram::testing::HostPages;
use crate::shared::Shared;

/// Where a bench's RAM starts, and its code with it.
pub(crate) const BASE: u64 = 0x4000_0000;
/// Where tests keep their data.
pub(crate) const DATA: u64 = BASE + 0x1_0000;
/// Bytes of RAM.
pub(crate) const RAM_BYTES: u64 = 0x4_0000;
/// Where the exception vectors are; a synchronous exception from EL1h comes to [`SYNC`].
pub(crate) const VECTORS: u64 = BASE + 0x8000;
/// The vector of a synchronous exception from the current exception level with its own stack pointer.
pub(crate) const SYNC: u64 = VECTORS + 0x200;

/// A vCPU at EL1 with the MMU on a flat map of 1 GiB blocks, Normal memory, and its code at [`BASE`].
pub(crate) struct Bench {
    pub(crate) cpu: Cpu,
    pub(crate) shared: Arc<Shared>,
    _pages: HostPages,
}

impl Bench {
    /// A bench with `code` at [`BASE`].
    pub(crate) fn new(code: &[u32]) -> Self {
        let mut bench = Self::reset(ExecutionState::Aarch64, code);
        bench.map_flat();
        bench.cpu.set_sp(1, BASE + 0x9000);
        bench
    }

    /// A bench for A32: in Supervisor mode, with sections mapped flat, accessible from every mode. The vectors are at
    /// [`VECTORS`], as for A64.
    pub(crate) fn a32(code: &[u32]) -> Self {
        let mut bench = Self::reset(ExecutionState::Aarch32, code);
        // First-level table of 4096 words at the end of RAM: sections, Normal memory, full access, domain 0.
        const TABLE: u64 = BASE + RAM_BYTES - 0x4000;
        for section in 0..4096_u32 {
            let descriptor = section << 20 | 1 << 12 | 3 << 10 | 3 << 2 | 2;
            bench.write(TABLE + 4 * u64::from(section), &descriptor.to_le_bytes());
        }
        let sys = &mut bench.cpu.sys;
        sys.ttbr[0] = TABLE;
        sys.dacr = 1;
        sys.sctlr |= 1;
        bench.cpu.translation_changed();
        bench
    }

    fn reset(execution_state: ExecutionState, code: &[u32]) -> Self {
        let pages = HostPages::new(RAM_BYTES);
        let slots = [pages.slot(BASE)];
        let config = Config { vcpus: 2, execution_state, ..Config::default() };
        let frames = config.gic_frames().expect("the default frames");
        // SAFETY: the pages live as long as the bench that owns both.
        let ram = unsafe { Ram::new(&slots) }.expect("one good slot");
        let dirty = DirtyLog::new(12, slots.iter().map(|slot| (slot.gpa, slot.len_bytes))).expect("4K pages");
        dirty.start();
        let shared = Arc::new(Shared::new(config, ram, dirty, frames));
        let mut bench = Self { cpu: Cpu::new(0, Arc::clone(&shared)), shared, _pages: pages };
        bench.code(code);
        bench.cpu.pc = BASE;
        bench.cpu.sys.vbar = VECTORS;
        bench
    }

    /// A level-1 table of 1 GiB blocks at the end of RAM, 39-bit addresses, accessible from EL1 only.
    fn map_flat(&mut self) {
        const TABLE: u64 = BASE + RAM_BYTES - 0x1000;
        for gib in 0..4_u64 {
            // Block, AttrIndx 0, AP EL1 read-write, inner shareable, AF.
            let descriptor = gib << 30 | 1 << 10 | 3 << 8 | 1;
            self.write(TABLE + 8 * gib, &descriptor.to_le_bytes());
        }
        self.cpu.sys.mair = 0xff;
        // T0SZ 25, TTBR1 walks off, 44-bit output.
        self.cpu.sys.tcr = 25 | 1 << 23 | 4 << 32;
        self.cpu.sys.ttbr = [TABLE; 2];
        self.cpu.sys.sctlr |= 1;
        self.cpu.translation_changed();
    }

    /// Puts `code` at [`BASE`], as a loader does.
    pub(crate) fn code(&mut self, code: &[u32]) {
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(BASE, &bytes);
    }

    /// Writes guest memory from outside.
    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.shared.ram.write_bytes(Gpa::new(gpa), bytes).expect("inside RAM");
    }

    /// The doubleword at `gpa`.
    pub(crate) fn read_u64(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.shared.ram.read_bytes(Gpa::new(gpa), &mut bytes).expect("inside RAM");
        u64::from_le_bytes(bytes)
    }

    /// Another vCPU of the same machine, with the same registers.
    pub(crate) fn sibling(&self) -> Cpu {
        let mut sibling = Cpu::new(1, Arc::clone(&self.shared));
        (sibling.x, sibling.pc, sibling.pstate, sibling.sys) =
            (self.cpu.x, self.cpu.pc, self.cpu.pstate, self.cpu.sys.clone());
        sibling.translation_changed();
        sibling
    }

    /// Executes exactly `count` instructions.
    pub(crate) fn step(&mut self, count: u64) {
        let before = self.cpu.retired;
        assert_eq!(exec::run(&mut self.cpu, count), Stop::Budget);
        assert_eq!(self.cpu.retired - before, count);
    }
}
