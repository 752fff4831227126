//! Lowering of multiplications and divisions. Register 15 is UNPREDICTABLE in all of them.
//!
//! The registers are where the first multiplies of the architecture had them: Rd 19:16, Ra 15:12, Rm 11:8, Rn 3:0. A long result's
//! high half is in Rd, its low half in Ra.

use super::{Insn, Lowered};
use crate::a32::exec::multiply as run;
use crate::cpu::REG_ZERO;
use crate::exec::alu;
use crate::op::{Handler, Op};

/// Rd, Rn and Rm.
fn three(insn: Insn, run: Handler) -> Lowered {
    if insn.uses_pc(&[0, 8, 16]) {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { rd: insn.reg(16), rn: insn.reg(0), rm: insn.reg(8), ra: REG_ZERO, ..insn.op(run) })
}

/// Rd, Rn, Rm and Ra.
fn four(insn: Insn, run: Handler) -> Lowered {
    if insn.uses_pc(&[0, 8, 12, 16]) {
        return Lowered::Reserved;
    }
    Lowered::Op(Op { rd: insn.reg(16), rn: insn.reg(0), rm: insn.reg(8), ra: insn.reg(12), ..insn.op(run) })
}

/// As [`four`], with two destinations, which must differ.
fn two_results(insn: Insn, run: Handler) -> Lowered {
    if insn.reg(12) == insn.reg(16) { Lowered::Reserved } else { four(insn, run) }
}

/// With the variant bits for the handler in `aux`.
fn with(lowered: Lowered, aux: u32) -> Lowered {
    match lowered {
        Lowered::Op(op) => Lowered::Op(Op { aux: aux as u16, ..op }),
        other => other,
    }
}

/// MUL.
pub(in crate::a32) fn mul(insn: Insn) -> Lowered {
    three(insn, if insn.bit(20) { run::mla::<true> } else { run::mla::<false> })
}

/// MLA.
pub(in crate::a32) fn mla(insn: Insn) -> Lowered {
    four(insn, if insn.bit(20) { run::mla::<true> } else { run::mla::<false> })
}

/// MLS.
pub(in crate::a32) fn mls(insn: Insn) -> Lowered {
    four(insn, run::mls)
}

/// UMAAL.
pub(in crate::a32) fn umaal(insn: Insn) -> Lowered {
    two_results(insn, run::umaal)
}

/// UMULL, UMLAL, SMULL, SMLAL.
pub(in crate::a32) fn long(insn: Insn) -> Lowered {
    two_results(
        insn,
        match (insn.field(21, 2), insn.bit(20)) {
            (0, false) => run::long::<false, false, false>,
            (0, true) => run::long::<false, false, true>,
            (1, false) => run::long::<false, true, false>,
            (1, true) => run::long::<false, true, true>,
            (2, false) => run::long::<true, false, false>,
            (2, true) => run::long::<true, false, true>,
            (_, false) => run::long::<true, true, false>,
            (_, true) => run::long::<true, true, true>,
        },
    )
}

/// SMLABB and its kin: which halves, in bits 6:5.
pub(in crate::a32) fn halfword_accumulate(insn: Insn) -> Lowered {
    with(four(insn, run::halfword::<true>), insn.field(5, 2))
}

/// SMULBB and its kin.
pub(in crate::a32) fn halfword(insn: Insn) -> Lowered {
    with(three(insn, run::halfword::<false>), insn.field(5, 2))
}

/// SMLALBB and its kin.
pub(in crate::a32) fn halfword_accumulate_long(insn: Insn) -> Lowered {
    with(two_results(insn, run::halfword_long), insn.field(5, 2))
}

/// SMLAWB, SMLAWT.
pub(in crate::a32) fn word_by_halfword_accumulate(insn: Insn) -> Lowered {
    with(four(insn, run::word_by_halfword::<true>), insn.field(5, 2))
}

/// SMULWB, SMULWT.
pub(in crate::a32) fn word_by_halfword(insn: Insn) -> Lowered {
    with(three(insn, run::word_by_halfword::<false>), insn.field(5, 2))
}

/// SMLAD, SMLSD, SMUAD, SMUSD: subtraction in bit 6, the exchange of halves in bit 5. The last two have no accumulator.
pub(in crate::a32) fn dual(insn: Insn) -> Lowered {
    let lowered = if insn.reg(12) == 15 { three(insn, run::dual) } else { four(insn, run::dual) };
    with(lowered, insn.field(5, 2))
}

/// SMLALD, SMLSLD.
pub(in crate::a32) fn dual_long(insn: Insn) -> Lowered {
    with(two_results(insn, run::dual_long), insn.field(5, 2))
}

/// SMMLA, SMMLS and SMMUL, which is SMMLA without accumulator: rounding in bit 5.
pub(in crate::a32) fn most_significant(insn: Insn) -> Lowered {
    let subtracts = insn.bit(6);
    let lowered = match (subtracts, insn.reg(12) == 15) {
        (false, true) => three(insn, run::most_significant::<false>),
        (false, false) => four(insn, run::most_significant::<false>),
        (true, _) => four(insn, run::most_significant::<true>),
    };
    with(lowered, insn.field(5, 1))
}

/// SDIV and UDIV.
pub(in crate::a32) fn divide(insn: Insn) -> Lowered {
    three(insn, if insn.bit(21) { alu::div::<false, false> } else { alu::div::<false, true> })
}
