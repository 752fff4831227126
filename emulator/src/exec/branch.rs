//! Branches. A branch that is not taken goes on within its block; a taken one leaves it.

use crate::cpu::Cpu;
use crate::exec::{alu, leave};
use crate::op::{Flow, Op, next};

/// B.
pub(crate) fn b(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    leave(cpu, rest, op.imm)
}

/// BL.
pub(crate) fn bl(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    cpu.x[30] = cpu.op_pc(op).wrapping_add(4);
    leave(cpu, rest, op.imm)
}

/// BR and RET (`LINK`: BLR).
pub(crate) fn br<const LINK: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let target = cpu.branch_target(cpu.x[usize::from(op.rn)]);
    if LINK {
        cpu.x[30] = cpu.op_pc(op).wrapping_add(4);
    }
    leave(cpu, rest, target)
}

/// B.cond: condition in `ra`.
pub(crate) fn b_cond<const COND: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if alu::holds(cpu, COND) { leave(cpu, rest, op.imm) } else { next(cpu, rest) }
}

/// CBZ and CBNZ.
pub(crate) fn cbz<const X: bool, const NOT: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let zero = alu::cut::<X>(cpu.x[usize::from(op.rn)]) == 0;
    if zero != NOT { leave(cpu, rest, op.imm) } else { next(cpu, rest) }
}

/// TBZ and TBNZ: bit number in `ra`.
pub(crate) fn tbz<const NOT: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let zero = cpu.x[usize::from(op.rn)] >> (op.ra & 63) & 1 == 0;
    if zero != NOT { leave(cpu, rest, op.imm) } else { next(cpu, rest) }
}
