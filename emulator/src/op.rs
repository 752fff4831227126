//! One lowered instruction: [`Op`], the function that executes it, and [`Flow`], how that function ends.
//!
//! Each handler ends with [`next`], a call in tail position that the optimiser turns into a jump: no dispatch loop sits between
//! two instructions. A block is at most `code::BLOCK_OPS` long, so that even without that optimisation the stack is bounded.

use crate::cpu::{Cpu, REG_SINK, REG_ZERO};

/// How a run of ops ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Flow {
    /// The slice of ops is used up: go on behind its last op.
    Next,
    /// `cpu.pc` holds the next address.
    Jump,
    /// `cpu.pc` holds the next address, and what blocks and translations depend on may have changed.
    Sync,
    /// `cpu.pc` holds the next address, and `run` returns `cpu.stop`.
    Stop,
}

/// Executes the op and goes on with the first of the rest.
pub type Handler = fn(&mut Cpu, &Op, &[Op]) -> Flow;

/// One lowered instruction.
#[derive(Clone, Copy)]
pub struct Op {
    /// Executes it.
    pub run: Handler,
    /// Where `run` is a check (the stack pointer's alignment, access to SIMD&FP): the handler behind the check. For an op that
    /// [`FUSES`]: the handler that executes the next op too.
    pub then: Handler,
    /// Immediate, absolute branch target, offset: the handler knows.
    pub imm: u64,
    /// Destination, register 31 resolved.
    pub rd: u8,
    /// First source.
    pub rn: u8,
    /// Second source.
    pub rm: u8,
    /// Third source, second destination, condition or shift amount.
    pub ra: u8,
    /// Offset of the instruction in its 4 KiB page, in bytes.
    pub offset: u16,
    /// A further small operand: the handler knows.
    pub aux: u16,
}

impl Op {
    /// The destination as a source, for the instructions that change a part of it.
    #[inline(always)]
    pub fn rd_source(&self) -> u8 {
        if self.rd == REG_SINK { REG_ZERO } else { self.rd }
    }
}

/// In [`Op::aux`] of an op that sets flags: with [`CONDITIONAL`] behind it, [`Op::then`] executes both.
///
/// Both marks are unlike any other use of the field: numbers in the tables of SIMD and shapes of structures are less than
/// 0x2000, and A32's guards of the program counter set one of bits 9 to 11.
pub(crate) const FUSES: u16 = 0x6000;
/// In [`Op::aux`] of B.cond.
pub(crate) const CONDITIONAL: u16 = 0x6001;

/// Fuses what can be fused in a block: comparing and branching is the end of nearly every loop.
pub(crate) fn fuse(block: &mut [Op]) {
    for index in 1..block.len() {
        if block[index - 1].aux == FUSES && block[index].aux == CONDITIONAL {
            block[index - 1].run = block[index - 1].then;
        }
    }
}

/// Goes on with the next op of the block.
#[inline(always)]
pub fn next(cpu: &mut Cpu, rest: &[Op]) -> Flow {
    match rest.split_first() {
        Some((op, rest)) => (op.run)(cpu, op, rest),
        None => Flow::Next,
    }
}
