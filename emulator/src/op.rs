//! One lowered instruction: [`Op`], the function that executes it, and [`Flow`], how that function ends.

use crate::cpu::Cpu;

/// How a run of ops ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Flow {
    /// The slice of ops is used up: go on behind its last op.
    Next,
    /// `cpu.pc` holds the next address.
    Jump,
    /// `cpu.pc` holds the next address, and `run` returns `cpu.stop`.
    Stop,
    /// The op did not complete; `cpu.pc` was set by the exception it took, or is at the op for MMIO.
    Trap,
}

/// Executes `ops[0]` and goes on to `ops[1]` by a call in tail position.
pub type Handler = fn(&mut Cpu, &[Op]) -> Flow;

/// One lowered instruction.
#[derive(Clone, Copy)]
pub struct Op {
    /// Executes it.
    pub run: Handler,
    /// Immediate, absolute branch target, offset: the handler knows.
    pub imm: u64,
    /// Destination, register 31 resolved.
    pub rd: u8,
    /// First source.
    pub rn: u8,
    /// Second source.
    pub rm: u8,
    /// Third source, second destination or shift amount.
    pub ra: u8,
    /// Offset of the instruction in its 4 KiB page, in bytes.
    pub offset: u16,
    /// Ops from here to the end of the block, this one included; 0 where nothing was lowered yet.
    pub left: u16,
}
