//! Executes blocks on the emulator: [`Replayer`].
//!
//! The vCPU is in User mode in a flat map, as a process is under the oracle, and is stopped at its first exception.
#![expect(unsafe_code, reason = "gives a machine its RAM")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use abi::Gpa;
use emulator::a32::Mode;
use emulator::config::ExecutionState;
use emulator::{ClockMode, Config, Exit, Machine, RamSlot, Vcpu};

use super::state::{CODE, CPSR_FLAGS, State, WINDOW};
use crate::oracle::state::{Outcome, WINDOW_BYTES};

const BASE: u64 = 0x6000_0000;
const TABLE: u64 = BASE;
const VECTORS: u64 = BASE + 0x8000;
/// Offsets of the vectors from the first that a block may reach to the last.
const VECTOR_UNDEFINED: u64 = VECTORS + 0x04;
const VECTOR_PREFETCH: u64 = VECTORS + 0x0c;
const VECTOR_DATA: u64 = VECTORS + 0x10;
/// More steps than any block takes.
const STEPS_MAX: u32 = 64;
/// What a literal may reach behind the last block.
const LITERALS_BYTES: u64 = 0x2000;

/// A machine with the code of many blocks.
pub(crate) struct Replayer {
    vcpu: Vcpu,
    machine: Arc<Machine>,
    ram: NonNull<u8>,
    layout: Layout,
}

impl Drop for Replayer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`; nothing touches RAM after this, as nothing runs the vCPU.
        unsafe { dealloc(self.ram.as_ptr(), self.layout) };
    }
}

impl Replayer {
    /// A machine with `code` at [`CODE`].
    pub(crate) fn new(code: &[u8]) -> Self {
        let len = (CODE - BASE + code.len() as u64 + LITERALS_BYTES).next_multiple_of(0x1_0000);
        let layout = Layout::from_size_align(len as usize, 0x1_0000).expect("a small layout");
        // SAFETY: the layout is not empty.
        let Some(ram) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        let config = Config {
            clock: ClockMode::Icount { ns_per_instruction: 1 },
            execution_state: ExecutionState::Aarch32,
            ..Config::default()
        };
        let slots = [RamSlot { gpa: Gpa::new(BASE), len_bytes: len, host: ram }];
        // SAFETY: the RAM lives until the replayer, which alone runs the machine, is dropped.
        let machine = unsafe { Machine::new(config, &slots) }.expect("a valid machine");
        let mut vcpu = machine.take_vcpu(0).expect("vCPU 0");
        let write = |at: u64, bytes: &[u8]| {
            machine.shared().ram.write_bytes(Gpa::new(at), bytes).expect("inside RAM");
        };
        write(CODE, code);
        // Sections at their own addresses: Normal memory, read-write at EL1 and EL0, executable (DDI 0406 B3.5.1).
        for section in 0..len.div_ceil(1 << 20) {
            let at = BASE + (section << 20);
            let descriptor = at as u32 | 1 << 12 | 3 << 10 | 3 << 2 | 2;
            write(TABLE + 4 * (at >> 20), &descriptor.to_le_bytes());
        }
        let cpu = vcpu.cpu();
        cpu.sys.ttbr[0] = TABLE;
        // Every domain is a client.
        cpu.sys.dacr = 0x5555_5555;
        cpu.sys.sctlr |= 1;
        cpu.sys.vbar = VECTORS;
        cpu.sys.cpacr = 0xf << 20;
        cpu.sys.fpexc = 1 << 30;
        cpu.translation_changed();
        Self { vcpu, machine, ram, layout }
    }

    /// Executes from `inputs` to the first exception.
    pub(crate) fn run(&mut self, inputs: &State) -> State {
        let ram = &self.machine.shared().ram;
        ram.write_bytes(Gpa::new(WINDOW), &inputs.window).expect("inside RAM");
        let cpu = self.vcpu.cpu();
        cpu.set_mode(Mode::User);
        cpu.replace_cpsr(inputs.cpsr | Mode::User.bits()).expect("a good mode");
        for (register, &value) in cpu.x.iter_mut().zip(&inputs.r) {
            *register = value.into();
        }
        cpu.pc = inputs.pc.into();
        for (register, halves) in cpu.v.iter_mut().zip(inputs.d.chunks(2)) {
            *register = u128::from(halves[1]) << 64 | u128::from(halves[0]);
        }
        cpu.excl.valid = false;
        let mut steps = 0;
        let outcome = loop {
            let cpu = self.vcpu.cpu();
            match cpu.pc {
                VECTOR_UNDEFINED => break Outcome::Undefined,
                VECTOR_PREFETCH if cpu.sys.ifsr & 0x40f == 2 => break Outcome::Break,
                VECTOR_PREFETCH | VECTOR_DATA => break Outcome::Fault,
                _ => {}
            }
            assert!(matches!(self.vcpu.run_for(1), Exit::Budget), "a block leaves the machine");
            steps += 1;
            assert!(steps < STEPS_MAX, "the block at {:#x} does not end", inputs.pc);
        };
        let mut window = vec![0; WINDOW_BYTES];
        ram.read_bytes(Gpa::new(WINDOW), &mut window).expect("inside RAM");
        let cpu = self.vcpu.cpu();
        let back = if cpu.pc == VECTOR_DATA { 8 } else { 4 };
        State {
            r: std::array::from_fn(|index| cpu.banked(Mode::User, index as u8)),
            pc: (cpu.x[14] as u32).wrapping_sub(back),
            cpsr: cpu.spsr32().expect("a mode of exceptions has an SPSR") & CPSR_FLAGS,
            outcome,
            d: std::array::from_fn(|index| (cpu.v[index / 2] >> (64 * (index % 2))) as u64),
            window,
        }
    }
}
