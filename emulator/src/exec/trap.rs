//! Leaving the straight path: a handler that cannot complete, and instructions that take exceptions on purpose.

use crate::cpu::{Cpu, REG_SP, Stop, Trap};
use crate::exception;
use crate::fault::FaultInfo;
use crate::op::{Flow, Op};

impl Cpu {
    /// The address of `op`, within its block.
    #[inline(always)]
    pub(crate) fn op_pc(&self, op: &Op) -> u64 {
        self.pc & !0xfff | u64::from(op.offset)
    }

    /// Where a branch to `target` really goes: with the top byte ignored it is replaced by copies of bit 55
    /// (DDI 0487 J1.1, `BranchAddr`).
    #[inline(always)]
    pub(crate) fn branch_target(&self, target: u64) -> u64 {
        // Addresses whose top byte already is a sign extension, as nearly all are, need no look at TCR_EL1.
        let extended = ((target << 8) as i64 >> 8) as u64;
        if target == extended { target } else { self.strip_top_byte(target, extended) }
    }

    #[cold]
    fn strip_top_byte(&self, target: u64, extended: u64) -> u64 {
        if self.sys.regime().top_byte_ignored(target) { extended } else { target }
    }
}

/// Ends a block at an op that did not complete.
#[cold]
#[inline(never)]
pub(crate) fn trap(cpu: &mut Cpu, op: &Op, rest: &[Op], trap: Trap) -> Flow {
    let pc = cpu.op_pc(op);
    // The op itself stays counted if it takes an exception, so that a loop of faults uses up a budget.
    cpu.retired -= rest.len() as u64;
    match trap {
        Trap::Mmio => {
            cpu.retired -= 1;
            cpu.pc = pc;
            cpu.stop = Stop::Mmio;
            return Flow::Stop;
        }
        Trap::Exception => exception::take_sync(cpu, cpu.fault, pc),
        Trap::Undefined => exception::take_sync(cpu, FaultInfo::UNDEFINED, pc),
    }
    Flow::Sync
}

/// An exception whose return address is the op itself.
pub(crate) fn exception_at(cpu: &mut Cpu, op: &Op, rest: &[Op], fault: FaultInfo) -> Flow {
    cpu.fault = fault;
    trap(cpu, op, rest, Trap::Exception)
}

/// UNDEFINED.
pub(crate) fn undefined(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    trap(cpu, op, rest, Trap::Undefined)
}

/// An instruction that exists but is not modelled: UNDEFINED to the guest, and a line in the machine's log.
pub(crate) fn unimplemented(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    cpu.shared.note_unimplemented(&crate::lower::describe(op.imm as u32));
    trap(cpu, op, rest, Trap::Undefined)
}

/// SVC.
pub(crate) fn svc(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let behind = cpu.op_pc(op).wrapping_add(4);
    cpu.retired -= rest.len() as u64;
    exception::take_sync(cpu, FaultInfo::svc(op.imm as u16), behind);
    Flow::Sync
}

/// BRK.
pub(crate) fn brk(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    exception_at(cpu, op, rest, FaultInfo::brk(op.imm as u16))
}

/// HVC, for the host; UNDEFINED at EL0.
pub(crate) fn hvc(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if cpu.pstate.el == 0 {
        return trap(cpu, op, rest, Trap::Undefined);
    }
    stop(cpu, op, rest, Stop::Hvc(op.imm as u16))
}

/// Ends the run behind the op.
pub(crate) fn stop(cpu: &mut Cpu, op: &Op, rest: &[Op], stop: Stop) -> Flow {
    cpu.retired -= rest.len() as u64;
    cpu.pc = cpu.op_pc(op).wrapping_add(4);
    cpu.stop = stop;
    Flow::Stop
}

/// Goes on behind the op in a new block: what blocks and translations depend on may have changed.
pub(crate) fn synchronise(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    cpu.retired -= rest.len() as u64;
    cpu.pc = cpu.op_pc(op).wrapping_add(4);
    Flow::Sync
}

/// The check before an access whose base is the stack pointer (SCTLR_EL1.SA, SA0).
pub(crate) fn sp_checked(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if cpu.x[usize::from(REG_SP)] & 15 != 0 && sp_must_be_aligned(cpu) {
        return exception_at(cpu, op, rest, FaultInfo::SP_ALIGNMENT);
    }
    (op.then)(cpu, op, rest)
}

/// The check before a SIMD&FP instruction (CPACR_EL1.FPEN), and of the stack pointer if that is the base.
pub(crate) fn fp_checked<const SP: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    if !cpu.sys.fp_enabled(cpu.pstate.el) {
        return exception_at(cpu, op, rest, FaultInfo::FP_ACCESS);
    }
    if SP && cpu.x[usize::from(REG_SP)] & 15 != 0 && sp_must_be_aligned(cpu) {
        return exception_at(cpu, op, rest, FaultInfo::SP_ALIGNMENT);
    }
    (op.then)(cpu, op, rest)
}

#[cold]
fn sp_must_be_aligned(cpu: &Cpu) -> bool {
    let bit = if cpu.pstate.el == 0 { 4 } else { 3 };
    cpu.sys.regime().sctlr >> bit & 1 != 0
}
