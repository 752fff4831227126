//! Executes blocks on the emulator: [`Replayer`].
//!
//! The vCPU is at EL0 in a flat map, as a process is under the oracle, and is stopped at its first exception to EL1.
#![expect(unsafe_code, reason = "gives a machine its RAM")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use abi::Gpa;
use emulator::cpu::Pstate;
use emulator::{ClockMode, Config, Exit, Machine, RamSlot, Vcpu};

use super::state::{CODE, Outcome, State, WINDOW, WINDOW_BYTES};

const BASE: u64 = 0x4000_0000;
const TABLE: u64 = BASE;
const VECTORS: u64 = BASE + 0x8000;
/// Where a synchronous exception from EL0 goes.
const SYNC_EL0: u64 = VECTORS + 0x400;
/// More steps than any block takes.
const STEPS_MAX: u32 = 64;

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
        let len = (CODE - BASE + code.len() as u64).next_multiple_of(0x1_0000);
        let layout = Layout::from_size_align(len as usize, 0x1_0000).expect("a small layout");
        // SAFETY: the layout is not empty.
        let Some(ram) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        let config = Config { clock: ClockMode::Icount { ns_per_instruction: 1 }, ..Config::default() };
        let slots = [RamSlot { gpa: Gpa::new(BASE), len_bytes: len, host: ram }];
        // SAFETY: the RAM lives until the replayer, which alone runs the machine, is dropped.
        let machine = unsafe { Machine::new(config, &slots) }.expect("a valid machine");
        let mut vcpu = machine.take_vcpu(0).expect("vCPU 0");
        let write = |at: u64, bytes: &[u8]| {
            machine.shared().ram.write_bytes(Gpa::new(at), bytes).expect("inside RAM");
        };
        write(CODE, code);
        // A block of 1 GiB at its own address: Normal memory, EL1 and EL0 read-write, executable at EL0.
        let descriptor = BASE | 1 << 10 | 3 << 8 | 1 << 6 | 1;
        write(TABLE + 8, &descriptor.to_le_bytes());
        let cpu = vcpu.cpu();
        cpu.sys.mair = 0xff;
        // T0SZ 25, TTBR1 walks off, TBI0, 44-bit output.
        cpu.sys.tcr = 25 | 1 << 23 | 1 << 37 | 4 << 32;
        cpu.sys.ttbr = [TABLE; 2];
        cpu.sys.sctlr |= 1;
        cpu.sys.vbar = VECTORS;
        cpu.sys.cpacr = 3 << 20;
        cpu.translation_changed();
        Self { vcpu, machine, ram, layout }
    }

    /// Executes from `inputs` to the first exception.
    pub(crate) fn run(&mut self, inputs: &State) -> State {
        let ram = &self.machine.shared().ram;
        ram.write_bytes(Gpa::new(WINDOW), &inputs.window).expect("inside RAM");
        let cpu = self.vcpu.cpu();
        cpu.set_pstate(Pstate { el: 0, sp_sel: false, nzcv: inputs.nzcv as u8, ..Pstate::RESET });
        cpu.x[..31].copy_from_slice(&inputs.x);
        cpu.set_sp(0, inputs.sp);
        cpu.pc = inputs.pc;
        cpu.fpsr = inputs.fpsr;
        cpu.v = inputs.v;
        cpu.excl.valid = false;
        let mut steps = 0;
        while self.vcpu.cpu().pc != SYNC_EL0 {
            assert!(matches!(self.vcpu.run_for(1), Exit::Budget), "a block leaves the machine");
            steps += 1;
            assert!(steps < STEPS_MAX, "the block at {:#x} does not end", inputs.pc);
        }
        let mut window = vec![0; WINDOW_BYTES];
        ram.read_bytes(Gpa::new(WINDOW), &mut window).expect("inside RAM");
        let cpu = self.vcpu.cpu();
        let mut x = [0; 31];
        x.copy_from_slice(&cpu.x[..31]);
        State {
            x,
            sp: cpu.sp(0),
            pc: cpu.sys.elr,
            nzcv: (cpu.sys.spsr >> 28) as u32,
            fpsr: cpu.fpsr,
            outcome: match cpu.sys.esr >> 26 {
                0x3c => Outcome::Break,
                0 => Outcome::Undefined,
                _ => Outcome::Fault,
            },
            v: cpu.v,
            window,
        }
    }
}
