//! What is done around handlers: conditions, reads and writes of the program counter, exception returns, and what is refused.

use crate::a32::exception;
use crate::a32::lower::describe;
use crate::cpu::{Cpu, DAIF_I, Stop, Trap};
use crate::exec::alu::holds;
use crate::exec::leave;
use crate::exec::trap::trap;
use crate::op::{Flow, Handler, Op, next};

/// Index in [`Cpu::x`] of the program counter as a source: what the instruction reads, its address and 8.
pub(in crate::a32) const REG_PC: u8 = 200;
/// Index in [`Cpu::x`] of the program counter as a destination, before the branch.
pub(in crate::a32) const REG_PC_OUT: u8 = 201;

/// In [`Op::aux`], whose low byte is the handler's: the op reads [`REG_PC`]. Bits 15:12 are the condition then.
pub(in crate::a32) const READS_PC: u16 = 1 << 9;
/// In [`Op::aux`]: the op writes [`REG_PC_OUT`].
pub(in crate::a32) const WRITES_PC: u16 = 1 << 10;
/// In [`Op::aux`]: writing the program counter is an exception return.
pub(in crate::a32) const RETURNS: u16 = 1 << 11;

/// The check of condition `cond` before [`Op::then`].
pub(in crate::a32) fn when(cond: u32) -> Handler {
    match cond {
        0 => conditional::<0>,
        1 => conditional::<1>,
        2 => conditional::<2>,
        3 => conditional::<3>,
        4 => conditional::<4>,
        5 => conditional::<5>,
        6 => conditional::<6>,
        7 => conditional::<7>,
        8 => conditional::<8>,
        9 => conditional::<9>,
        10 => conditional::<10>,
        11 => conditional::<11>,
        12 => conditional::<12>,
        13 => conditional::<13>,
        _ => conditional::<14>,
    }
}

fn conditional<const COND: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if holds(cpu, COND) { (op.then)(cpu, op, rest) } else { next(cpu, rest) }
}

/// The check of the condition in [`Op::aux`], the program counter as a source, [`Op::then`], and the branch.
pub(in crate::a32) fn with_pc(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if !holds(cpu, (op.aux >> 12) as u8) {
        return next(cpu, rest);
    }
    if op.aux & READS_PC != 0 {
        cpu.x[usize::from(REG_PC)] = u64::from((cpu.op_pc(op) as u32).wrapping_add(8));
    }
    if op.aux & WRITES_PC == 0 {
        return (op.then)(cpu, op, rest);
    }
    // UNPREDICTABLE where there is no SPSR.
    let spsr = cpu.spsr32();
    if op.aux & RETURNS != 0 && spsr.is_none() {
        return trap(cpu, op, rest, Trap::Undefined);
    }
    // Executed as if it ended its block: what comes back says whether it completed.
    match (op.then)(cpu, op, &[]) {
        Flow::Next => {
            let target = cpu.x[usize::from(REG_PC_OUT)] as u32;
            match spsr {
                Some(spsr) if op.aux & RETURNS != 0 => exception_return(cpu, rest, target, spsr),
                _ => branch_exchange(cpu, op, rest, target),
            }
        }
        stopped => {
            cpu.retired -= rest.len() as u64;
            stopped
        }
    }
}

/// Goes to `target` with `psr` as CPSR. The caller has checked that the mode has an SPSR.
pub(in crate::a32) fn exception_return(cpu: &mut Cpu, rest: &[Op], target: u32, psr: u32) -> Flow {
    cpu.retired -= rest.len() as u64;
    exception::return_to(cpu, target, psr);
    if cpu.pstate.daif & DAIF_I == 0 {
        cpu.stop = Stop::Attention;
        return Flow::Stop;
    }
    Flow::Sync
}

/// `BXWritePC` of the pseudocode: bit 0 asks for T32.
#[inline(always)]
pub(in crate::a32) fn branch_exchange(cpu: &mut Cpu, op: &Op, rest: &[Op], target: u32) -> Flow {
    if target & 1 == 0 { leave(cpu, rest, u64::from(target)) } else { refuse_t32(cpu, op, rest) }
}

#[cold]
#[inline(never)]
fn refuse_t32(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    cpu.shared.note_unimplemented("a branch to T32 code");
    trap(cpu, op, rest, Trap::Undefined)
}

/// An instruction that exists but is not modelled: UNDEFINED to the guest, and a line in the machine's log.
pub(in crate::a32) fn unimplemented(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    cpu.shared.note_unimplemented(&describe(op.imm as u32));
    trap(cpu, op, rest, Trap::Undefined)
}
