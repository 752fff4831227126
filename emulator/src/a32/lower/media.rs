//! Lowering of saturation, extension, packing, reversal, bit fields and parallel arithmetic. Register 15 is UNPREDICTABLE in
//! all of them, but where it stands for "none".

use super::{Insn, Lowered};
use crate::a32::exec::{media as run, parallel};
use crate::cpu::REG_ZERO;
use crate::exec::alu::{self, unary};
use crate::op::{Handler, Op};

/// Rd at 15:12, Rn at 19:16, Rm at 3:0.
fn three(insn: Insn, run: Handler) -> Lowered {
    if insn.uses_pc(&[0, 12, 16]) {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { rd: insn.reg(12), rn: insn.reg(16), rm: insn.reg(0), ..insn.op(run) })
}

/// Rd at 15:12 and a source at 3:0.
fn two(insn: Insn, run: Handler) -> Lowered {
    if insn.uses_pc(&[0, 12]) {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { rd: insn.reg(12), rn: insn.reg(0), rm: insn.reg(0), ..insn.op(run) })
}

/// The op with further operands.
fn with(lowered: Lowered, further: impl Fn(Op) -> Op) -> Lowered {
    match lowered {
        Lowered::Op(op) => Lowered::Op(further(op)),
        other => other,
    }
}

/// CLZ.
pub(in crate::a32) fn clz(insn: Insn) -> Lowered {
    two(insn, alu::one_source::<false, { unary::CLZ }>)
}

/// REV, REV16, RBIT, REVSH.
pub(in crate::a32) fn reverse(insn: Insn) -> Lowered {
    two(
        insn,
        match (insn.bit(22), insn.bit(7)) {
            (false, false) => alu::one_source::<false, { unary::REV32 }>,
            (false, true) => alu::one_source::<false, { unary::REV16 }>,
            (true, false) => alu::one_source::<false, { unary::RBIT }>,
            (true, true) => run::reverse_signed_half,
        },
    )
}

/// QADD, QSUB, QDADD, QDSUB: which, in bits 22:21. The first operand is Rm.
pub(in crate::a32) fn saturating_add(insn: Insn) -> Lowered {
    with(three(insn, run::saturating_add), |op| Op { aux: insn.field(21, 2) as u16, ..op })
}

/// The parallel additions and subtractions: how the sums are treated in bits 22:20, the operation in 7:5.
pub(in crate::a32) fn parallel(insn: Insn) -> Lowered {
    match parallel::handler(insn.field(20, 3), insn.field(5, 3)) {
        Some(run) => three(insn, run),
        None => Lowered::Reserved,
    }
}

/// PKHBT, and PKHTB if bit 6 is set.
pub(in crate::a32) fn pack(insn: Insn) -> Lowered {
    let (amount, top) = (insn.field(7, 5) as u8, insn.bit(6));
    let amount = if top && amount == 0 { 32 } else { amount };
    with(three(insn, run::pack), |op| Op { ra: amount, aux: u16::from(top), ..op })
}

/// SEL.
pub(in crate::a32) fn select(insn: Insn) -> Lowered {
    three(insn, run::select)
}

/// SSAT and USAT: the shift in `ra`, an arithmetic right shift if bit 7 of `aux` is set, and the bits to saturate to in `aux`.
pub(in crate::a32) fn saturate(insn: Insn) -> Lowered {
    let (unsigned, right) = (insn.bit(22), insn.bit(6));
    let amount = insn.field(7, 5) as u8;
    let amount = if right && amount == 0 { 32 } else { amount };
    let bits = insn.field(16, 5) as u16 + u16::from(!unsigned);
    let run: Handler = if unsigned { run::saturate::<false> } else { run::saturate::<true> };
    with(two(insn, run), |op| Op { ra: amount, aux: bits | u16::from(right) << 7, ..op })
}

/// SSAT16 and USAT16.
pub(in crate::a32) fn saturate_halves(insn: Insn) -> Lowered {
    let unsigned = insn.bit(22);
    let bits = insn.field(16, 4) as u16 + u16::from(!unsigned);
    let run: Handler = if unsigned { run::saturate_halves::<false> } else { run::saturate_halves::<true> };
    with(two(insn, run), |op| Op { aux: bits, ..op })
}

/// SXTB, SXTAB and their kin: Rn 15 is "nothing to add".
pub(in crate::a32) fn extend(insn: Insn) -> Lowered {
    let run: Handler = match insn.field(20, 3) {
        0 => run::extend::<{ run::SXTB16 }>,
        2 => run::extend::<{ run::SXTB }>,
        3 => run::extend::<{ run::SXTH }>,
        4 => run::extend::<{ run::UXTB16 }>,
        6 => run::extend::<{ run::UXTB }>,
        _ => run::extend::<{ run::UXTH }>,
    };
    let addend = if insn.reg(16) == 15 { REG_ZERO } else { insn.reg(16) };
    with(two(insn, run), |op| Op { rn: addend, ra: 8 * insn.field(10, 2) as u8, ..op })
}

/// USADA8, and USAD8 where Ra is 15.
pub(in crate::a32) fn absolute_differences(insn: Insn) -> Lowered {
    if insn.uses_pc(&[0, 8, 16]) {
        return Lowered::Reserved;
    }
    let ra = if insn.reg(12) == 15 { REG_ZERO } else { insn.reg(12) };
    let op = insn.op(run::absolute_differences);
    Lowered::Op(Op { rd: insn.reg(16), rn: insn.reg(0), rm: insn.reg(8), ra, ..op })
}

/// SBFX and UBFX.
pub(in crate::a32) fn bitfield_extract(insn: Insn) -> Lowered {
    let (lsb, width) = (insn.field(7, 5), insn.field(16, 5) + 1);
    if lsb + width > 32 {
        return Lowered::Reserved;
    }
    if insn.bit(22) {
        let mask = (1_u64 << width) - 1;
        return with(two(insn, alu::ubfm::<false>), |op| Op { ra: lsb as u8, imm: mask, ..op });
    }
    let up = 32 - width - lsb;
    with(two(insn, alu::sbfm::<false>), |op| Op { ra: up as u8, aux: (32 - width) as u16, ..op })
}

/// BFI, and BFC where Rn is 15.
pub(in crate::a32) fn bitfield_insert(insn: Insn) -> Lowered {
    let (lsb, msb) = (insn.field(7, 5), insn.field(16, 5));
    if msb < lsb || insn.uses_pc(&[12]) {
        return Lowered::Reserved;
    }
    let mask = ((1_u64 << (msb - lsb + 1)) - 1) << lsb;
    let rn = if insn.reg(0) == 15 { REG_ZERO } else { insn.reg(0) };
    let rotation = (32 - lsb) % 32;
    Lowered::Op(Op { rd: insn.reg(12), rn, ra: rotation as u8, imm: mask, ..insn.op(alu::bfm::<false>) })
}
