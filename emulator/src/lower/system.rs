//! Lowering of branches, exceptions and system instructions.

use super::{Insn, Lowered, sink};
use crate::exec::system::field;
use crate::exec::{alu, atomic, branch, loadstore, system as run, trap};
use crate::op::{CONDITIONAL, Handler, Op};

/// B, BL.
pub(super) fn branch_imm(insn: Insn) -> Lowered {
    let run: Handler = if insn.bit(31) { branch::bl } else { branch::b };
    Lowered::Last(Op { imm: insn.target(insn.signed(0, 26) << 2), ..insn.op(run) })
}

/// B.cond.
pub(super) fn branch_cond(insn: Insn) -> Lowered {
    let run: Handler = match insn.field(0, 4) {
        0 => branch::b_cond::<0>,
        1 => branch::b_cond::<1>,
        2 => branch::b_cond::<2>,
        3 => branch::b_cond::<3>,
        4 => branch::b_cond::<4>,
        5 => branch::b_cond::<5>,
        6 => branch::b_cond::<6>,
        7 => branch::b_cond::<7>,
        8 => branch::b_cond::<8>,
        9 => branch::b_cond::<9>,
        10 => branch::b_cond::<10>,
        11 => branch::b_cond::<11>,
        12 => branch::b_cond::<12>,
        13 => branch::b_cond::<13>,
        14 => branch::b_cond::<14>,
        _ => branch::b_cond::<15>,
    };
    let imm = insn.target(insn.signed(5, 19) << 2);
    Lowered::Op(Op { imm, ra: insn.field(0, 4) as u8, aux: CONDITIONAL, ..insn.op(run) })
}

/// CBZ, CBNZ: the register is where a destination usually is.
pub(super) fn compare_branch(insn: Insn) -> Lowered {
    let run: Handler = match (insn.is_64(), insn.bit(24)) {
        (false, false) => branch::cbz::<false, false>,
        (false, true) => branch::cbz::<false, true>,
        (true, false) => branch::cbz::<true, false>,
        (true, true) => branch::cbz::<true, true>,
    };
    Lowered::Op(Op { rn: insn.rd(), imm: insn.target(insn.signed(5, 19) << 2), ..insn.op(run) })
}

/// TBZ, TBNZ.
pub(super) fn test_branch(insn: Insn) -> Lowered {
    let run: Handler = if insn.bit(24) { branch::tbz::<true> } else { branch::tbz::<false> };
    let bit = insn.field(31, 1) << 5 | insn.field(19, 5);
    Lowered::Op(Op { rn: insn.rd(), ra: bit as u8, imm: insn.target(insn.signed(5, 14) << 2), ..insn.op(run) })
}

/// BR, BLR, RET, ERET.
pub(super) fn branch_register(insn: Insn, name: &str) -> Lowered {
    Lowered::Last(insn.op(match name {
        "br" | "ret" => branch::br::<false>,
        "blr" => branch::br::<true>,
        "eret" => run::eret,
        // DRPS outside Debug state is UNDEFINED.
        _ => return Lowered::Reserved,
    }))
}

/// SVC, HVC, BRK. SMC is UNDEFINED without EL3, HLT and DCPSn without an external debugger.
pub(super) fn exception(insn: Insn, name: &str) -> Lowered {
    let run: Handler = match name {
        "svc" => trap::svc,
        "hvc" => trap::hvc,
        "brk" => trap::brk,
        _ => return Lowered::Reserved,
    };
    Lowered::Last(Op { imm: u64::from(insn.field(5, 16)), ..insn.op(run) })
}

/// `op0:op1:CRn:CRm:op2` of DC ZVA.
const DC_ZVA: u64 = 0b01 << 14 | 3 << 11 | 7 << 7 | 4 << 3 | 1;

/// Barriers, hints, PSTATE, system registers and system instructions.
pub(super) fn system(insn: Insn, name: &str) -> Lowered {
    // op0:op1:CRn:CRm:op2 packed as in KVM_REG_ARM64_SYSREG; op0 is bits 20:19.
    let encoding = u64::from(insn.field(5, 16));
    // Rt is the destination of MRS and the source of the others; `ra` keeps its number for a syndrome.
    let register = |run: Handler| Op { rn: insn.rd(), ra: insn.rd(), imm: encoding, ..insn.op(run) };
    match name {
        "mrs" => Lowered::Last(register(run::mrs)),
        "msr" if insn.field(19, 2) == 0 => pstate(insn, encoding),
        "msr" => Lowered::Last(register(run::msr)),
        "sys" if encoding == DC_ZVA => Lowered::Op(register(run::dc_zva)),
        "sys" => Lowered::Last(register(run::sys)),
        "dmb" | "dsb" => Lowered::Op(insn.op(run::barrier)),
        "isb" | "sb" => Lowered::Last(insn.op(trap::synchronise)),
        "clrex" => Lowered::Op(insn.op(atomic::clear_exclusive)),
        "hint" => hint(insn),
        "cfinv" => Lowered::Op(insn.op(alu::cfinv)),
        "rmif" => Lowered::Op(Op { ra: insn.field(15, 6) as u8, aux: insn.field(0, 4) as u16, ..insn.op(alu::rmif) }),
        "setf8" => Lowered::Op(Op { ra: 8, ..insn.op(alu::setf) }),
        "setf16" => Lowered::Op(Op { ra: 16, ..insn.op(alu::setf) }),
        _ => Lowered::Unknown,
    }
}

/// MSR (immediate).
fn pstate(insn: Insn, encoding: u64) -> Lowered {
    let which = (insn.field(16, 3) << 3 | insn.field(5, 3)) as u8;
    match which {
        field::PAN | field::SPSEL | field::DAIF_SET | field::DAIF_CLR => {
            let aux = insn.field(8, 4) as u16;
            Lowered::Last(Op { ra: which, aux, imm: encoding, ..insn.op(run::msr_imm) })
        }
        _ => Lowered::Unknown,
    }
}

/// The hint space: what is not WFE, WFI, SEV or SEVL does nothing, as every hint may.
fn hint(insn: Insn) -> Lowered {
    match insn.field(5, 7) {
        2 => Lowered::Last(insn.op(run::wfe)),
        3 => Lowered::Last(insn.op(run::wfi)),
        4 => Lowered::Op(insn.op(run::sev)),
        5 => Lowered::Op(insn.op(run::sevl)),
        _ => Lowered::Op(Op { rd: sink(31), ..insn.op(loadstore::nothing) }),
    }
}
