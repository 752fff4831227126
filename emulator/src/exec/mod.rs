//! Execution: [`run`] and, by file, the handlers of each group of instructions.
//!
//! [`alu`], [`branch`], [`loadstore`], [`atomic`], [`simd`], [`fp`] and [`system`] hold handlers, [`trap`] what they do when they cannot complete,
//! [`access`] guest memory by virtual address, [`host`] the accesses to the host's memory.
#![expect(unsafe_code, reason = "runs blocks that the vCPU itself owns")]

mod access;
pub(crate) mod alu;
pub(crate) mod atomic;
pub(crate) mod branch;
pub(crate) mod fp;
pub(crate) mod host;
pub(crate) mod loadstore;
pub(crate) mod simd;
pub(crate) mod system;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod trap;

use std::sync::Arc;

use crate::a32;
use crate::code::{BLOCK_OPS, Block};
use crate::cpu::{Cpu, Stop};
use crate::exception;
use crate::exec::host::Word;
use crate::fault::{Access, AccessKind, FaultInfo, Status};
use crate::lower::lower;
use crate::mmu::{self, TableMemory};
use crate::op::{Flow, Op, fuse, next};
use crate::tlb::PAGE_BYTES;

/// How often a block that branches to its own start is repeated before the run loop looks at attention and budget again.
const REPEATS: u32 = 16;

/// The block that is running, and how often it may be repeated on the spot.
#[derive(Clone, Copy)]
pub(crate) struct Repeat {
    block: Block,
    left: u32,
}

/// Leaves the block for `target`, what is `rest` of it not executed; or, where that is its own start, repeats it on the spot if
/// the run loop allowed that.
#[inline(always)]
pub(crate) fn leave(cpu: &mut Cpu, rest: &[Op], target: u64) -> Flow {
    let retired = cpu.retired.wrapping_sub(rest.len() as u64);
    // Within a block PC is its start.
    if target == cpu.pc
        && let Some(Repeat { block, left }) = &mut cpu.repeat
        && *left != 0
    {
        *left -= 1;
        // SAFETY: the block is running, called by the run loop, which alone lets `cpu.code` settle.
        let ops = unsafe { block.ops() };
        cpu.retired = retired.wrapping_add(ops.len() as u64);
        return next(cpu, ops);
    }
    cpu.retired = retired;
    cpu.pc = target;
    Flow::Jump
}

/// Executes at most `budget` instructions, exactly. An exception taken by an instruction counts as its execution.
///
/// The attention word of the vCPU is looked at before each block (a block that loops on itself, every [`REPEATS`] turns), and
/// before the budget: with attention raised, nothing is executed.
pub fn run(cpu: &mut Cpu, budget: u64) -> Stop {
    let shared = Arc::clone(&cpu.shared);
    let signal = &shared.signals[cpu.index];
    let end = cpu.retired.saturating_add(budget);
    loop {
        cpu.code.settle(cpu.tlb.generation());
        // The block that ran last, for loops of one block. Forgotten whenever code or translations may have changed.
        let mut last: (u64, Option<Block>) = (0, None);
        loop {
            if signal.any() {
                return Stop::Attention;
            }
            let left = end - cpu.retired;
            if left == 0 {
                return Stop::Budget;
            }
            let block = match last.1 {
                Some(block) if last.0 == cpu.pc => block,
                _ => {
                    let Some(block) = fetch(cpu) else {
                        // The exception of the fetch.
                        cpu.retired += 1;
                        break;
                    };
                    last = (cpu.pc, Some(block));
                    block
                }
            };
            // SAFETY: `cpu.code` settles above and nowhere else, and lives as long as `cpu`.
            let ops = unsafe { block.ops() };
            let length = ops.len() as u64;
            let ops = if left < length { &ops[..left as usize] } else { ops };
            // Once, and as often again.
            let repeats = if left >= length * (1 + u64::from(REPEATS)) { REPEATS } else { 0 };
            cpu.repeat = Some(Repeat { block, left: repeats });
            let Some((op, rest)) = ops.split_first() else { unreachable!("a block has at least one op") };
            // Counted in advance; who leaves the block early takes back the rest.
            cpu.retired += ops.len() as u64;
            match (op.run)(cpu, op, rest) {
                Flow::Jump => {}
                Flow::Next => cpu.pc = cpu.pc.wrapping_add(4 * ops.len() as u64),
                Flow::Sync => break,
                Flow::Stop => return cpu.stop,
            }
        }
    }
}

/// The block at PC, lowered if need be, or `None` if an exception was taken instead.
#[inline(always)]
fn fetch(cpu: &mut Cpu) -> Option<Block> {
    let user = cpu.tlb.context();
    if let Some(page) = cpu.code.page(cpu.pc, user)
        && cpu.pc & 3 == 0
        && !cpu.pstate.il
        && let Some(block) = cpu.code.block(page, cpu.pc)
    {
        return Some(block);
    }
    match fetch_slow(cpu) {
        Ok(block) => Some(block),
        Err(fault) => {
            exception::take_sync(cpu, fault, cpu.pc);
            None
        }
    }
}

#[cold]
#[inline(never)]
fn fetch_slow(cpu: &mut Cpu) -> Result<Block, FaultInfo> {
    if cpu.is_aarch32() {
        // Behind the last instruction of the address space is the first.
        cpu.pc &= 0xffff_ffff;
    }
    let pc = cpu.pc;
    // PC alignment has priority over an abort of the fetch, that over an illegal state (DDI 0487 D1.3.5.5).
    if pc & 3 != 0 {
        return Err(FaultInfo::pc_alignment(pc));
    }
    let user = cpu.tlb.context();
    let page = match cpu.code.page(pc, user) {
        Some(page) => page,
        None => {
            let access = Access::new(AccessKind::Fetch, cpu.pstate.el, cpu.pstate.pan);
            let memory = TableMemory { ram: &cpu.shared.ram, dirty: &cpu.shared.dirty };
            let translation = mmu::translate(&cpu.sys.regime(), pc, access, &memory)?;
            let Some(located) = cpu.shared.ram.locate(translation.pa, 4) else {
                return Err(FaultInfo::abort(Status::External, access, pc));
            };
            let byte = located.host.as_ptr().expose_provenance() as u64;
            let within = PAGE_BYTES - 1;
            cpu.code.map_page(pc, user, translation.pa.raw() & !within, byte - (pc & within))
        }
    };
    if cpu.pstate.il {
        return Err(FaultInfo::ILLEGAL_STATE);
    }
    if let Some(block) = cpu.code.block(page, pc) {
        return Ok(block);
    }
    let lower = if cpu.is_aarch32() { a32::lower } else { lower };
    let host = cpu.code.host(page);
    let mut ops = Vec::with_capacity(16);
    let mut at = pc;
    loop {
        let (op, ends) = lower(u32::load(host + at % PAGE_BYTES), at);
        ops.push(op);
        at = at.wrapping_add(4);
        if ends || at.is_multiple_of(PAGE_BYTES) || ops.len() == BLOCK_OPS {
            break;
        }
    }
    fuse(&mut ops);
    Ok(cpu.code.insert(page, pc, ops))
}
