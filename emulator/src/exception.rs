//! Exception entry and return at EL1.
//!
//! [`take_sync`], [`take_irq`], [`take_fiq`] and [`take_serror`] move a vCPU into its EL1 vectors; [`eret`] returns from them. EL2 and EL3 are absent, so EL1 is
//! where every exception goes. A vCPU that executes AArch32 goes through [`crate::a32::exception`] instead. Which syndrome, is [`crate::fault`]'s matter; whether an interrupt is pending, the GIC's.

use crate::a32;
use crate::cpu::{Cpu, Pstate};
use crate::fault::FaultInfo;

/// SCTLR_EL1.SPAN: exception entry leaves PSTATE.PAN alone.
const SCTLR_SPAN: u64 = 1 << 23;
/// Offset between two kinds of exception in a group of four vectors.
const VECTOR_IRQ: u64 = 0x80;
const VECTOR_FIQ: u64 = 0x100;
const VECTOR_SERROR: u64 = 0x180;

/// Takes a synchronous exception with syndrome `fault`, whose preferred return address is `elr`: the faulting instruction, or
/// the one after SVC.
pub fn take_sync(cpu: &mut Cpu, fault: FaultInfo, elr: u64) {
    if cpu.is_aarch32() {
        return a32::exception::take_sync(cpu, fault, elr as u32);
    }
    enter(cpu, 0, elr);
    cpu.sys.esr = fault.esr();
    if let Some(far) = fault.far {
        cpu.sys.far = far;
    }
}

/// Takes an IRQ before the instruction at PC.
pub fn take_irq(cpu: &mut Cpu) {
    if cpu.is_aarch32() {
        return a32::exception::take_irq(cpu);
    }
    enter(cpu, VECTOR_IRQ, cpu.pc);
}

/// Takes an FIQ before the instruction at PC.
pub fn take_fiq(cpu: &mut Cpu) {
    if cpu.is_aarch32() {
        return a32::exception::take_fiq(cpu);
    }
    enter(cpu, VECTOR_FIQ, cpu.pc);
}

/// Takes an SError before the instruction at PC, with `iss` as its syndrome.
pub fn take_serror(cpu: &mut Cpu, iss: u32) {
    if cpu.is_aarch32() {
        return a32::exception::take_serror(cpu);
    }
    enter(cpu, VECTOR_SERROR, cpu.pc);
    cpu.sys.esr = FaultInfo { ec: crate::fault::ec::SERROR, iss, far: None, domain: 0 }.esr();
}

/// AArch64.TakeException() for EL1 (DDI 0487 D1.3.5, J1.1.1).
fn enter(cpu: &mut Cpu, kind: u64, elr: u64) {
    let from = cpu.pstate;
    let group = match (from.el, from.sp_sel) {
        (0, _) => 0x400,
        (_, true) => 0x200,
        (_, false) => 0x000,
    };
    cpu.sys.spsr = from.to_spsr();
    cpu.sys.elr = elr;
    let pan = from.pan || cpu.sys.sctlr & SCTLR_SPAN == 0;
    // NZCV survives; DAIF is masked; EL1h; UAO, IL and SS are cleared.
    cpu.set_pstate(Pstate {
        nzcv: from.nzcv,
        daif: 0b1111,
        el: 1,
        sp_sel: true,
        pan,
        uao: false,
        il: false,
        ss: false,
    });
    cpu.pc = cpu.sys.vbar & !0x7ff | group | kind;
}

/// ERET from EL1: to the state in SPSR_EL1 at ELR_EL1. A state that does not exist sets PSTATE.IL, stays at EL1, and the next
/// instruction takes an Illegal Execution state exception (DDI 0487 D1.3.8.5, "Illegal exception returns").
pub fn eret(cpu: &mut Cpu) {
    let spsr = cpu.sys.spsr;
    let target = cpu.sys.elr;
    cpu.excl.valid = false;
    // M[4]: AArch32, absent. M[3:0]: EL0t, EL1t, EL1h exist.
    let legal = matches!(spsr & 0x1f, 0b0_0000 | 0b0_0100 | 0b0_0101);
    let asked = Pstate::from_spsr(spsr);
    let next = if legal {
        // FEAT_UAO and software step are not implemented: those bits are RES0.
        Pstate { uao: false, ss: false, ..asked }
    } else {
        let now = cpu.pstate;
        Pstate { nzcv: asked.nzcv, daif: asked.daif, pan: asked.pan, il: true, ss: false, uao: false, ..now }
    };
    cpu.set_pstate(next);
    // AArch64.BranchAddr(): with the top byte ignored, a branch target's top byte is the sign extension of bit 55; an EL1
    // target likewise.
    cpu.pc = branch_target(cpu, target);
}

/// The address that a branch to `target` really goes to: TBI strips the tag (DDI 0487 D4.1, AArch64.BranchAddr()).
pub fn branch_target(cpu: &Cpu, target: u64) -> u64 {
    if !cpu.sys.regime().top_byte_ignored(target) {
        target
    } else if target >> 55 & 1 != 0 {
        target | 0xff << 56
    } else {
        target & !(0xff << 56)
    }
}
