//! Element functions: what one lane of each operation computes, on integers without bounds as the pseudocode has them.

use super::{Lane, mask};

/// Computes one element. The caller cuts the result to [`Lane::bits`].
pub(crate) type Element = fn(&mut Lane) -> u64;

fn all_ones(condition: bool) -> u64 {
    if condition { u64::MAX } else { 0 }
}

/// ADD, ADDP, ADDV.
pub(crate) fn add(lane: &mut Lane) -> u64 {
    lane.a.wrapping_add(lane.b)
}
/// SUB.
pub(crate) fn sub(lane: &mut Lane) -> u64 {
    lane.a.wrapping_sub(lane.b)
}
/// MUL.
pub(crate) fn mul(lane: &mut Lane) -> u64 {
    lane.a.wrapping_mul(lane.b)
}
/// MLA.
pub(crate) fn mla(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(mul(lane))
}
/// MLS.
pub(crate) fn mls(lane: &mut Lane) -> u64 {
    lane.d.wrapping_sub(mul(lane))
}
/// `PolynomialMult` of the pseudocode.
pub(crate) fn pmul(lane: &mut Lane) -> u64 {
    (0..8).filter(|bit| lane.b >> bit & 1 != 0).fold(0, |sum, bit| sum ^ lane.a << bit)
}

/// CMEQ.
pub(crate) fn cmeq(lane: &mut Lane) -> u64 {
    all_ones(lane.a == lane.b)
}
/// CMGE.
pub(crate) fn cmge(lane: &mut Lane) -> u64 {
    all_ones(lane.sa() >= lane.sb())
}
/// CMGT.
pub(crate) fn cmgt(lane: &mut Lane) -> u64 {
    all_ones(lane.sa() > lane.sb())
}
/// CMLE.
pub(crate) fn cmle(lane: &mut Lane) -> u64 {
    all_ones(lane.sa() <= lane.sb())
}
/// CMLT.
pub(crate) fn cmlt(lane: &mut Lane) -> u64 {
    all_ones(lane.sa() < lane.sb())
}
/// CMHI.
pub(crate) fn cmhi(lane: &mut Lane) -> u64 {
    all_ones(lane.a > lane.b)
}
/// CMHS.
pub(crate) fn cmhs(lane: &mut Lane) -> u64 {
    all_ones(lane.a >= lane.b)
}
/// CMTST.
pub(crate) fn cmtst(lane: &mut Lane) -> u64 {
    all_ones(lane.a & lane.b != 0)
}

/// SMAX.
pub(crate) fn smax(lane: &mut Lane) -> u64 {
    lane.sa().max(lane.sb()) as u64
}
/// SMIN.
pub(crate) fn smin(lane: &mut Lane) -> u64 {
    lane.sa().min(lane.sb()) as u64
}
/// UMAX.
pub(crate) fn umax(lane: &mut Lane) -> u64 {
    lane.a.max(lane.b)
}
/// UMIN.
pub(crate) fn umin(lane: &mut Lane) -> u64 {
    lane.a.min(lane.b)
}
/// SABD, SABDL.
pub(crate) fn sabd(lane: &mut Lane) -> u64 {
    (lane.sa() - lane.sb()).unsigned_abs() as u64
}
/// UABD, UABDL.
pub(crate) fn uabd(lane: &mut Lane) -> u64 {
    lane.a.abs_diff(lane.b)
}
/// SABA, SABAL.
pub(crate) fn saba(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(sabd(lane))
}
/// UABA, UABAL.
pub(crate) fn uaba(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(uabd(lane))
}

/// SHADD.
pub(crate) fn shadd(lane: &mut Lane) -> u64 {
    ((lane.sa() + lane.sb()) >> 1) as u64
}
/// UHADD.
pub(crate) fn uhadd(lane: &mut Lane) -> u64 {
    ((lane.ua() + lane.ub()) >> 1) as u64
}
/// SRHADD.
pub(crate) fn srhadd(lane: &mut Lane) -> u64 {
    ((lane.sa() + lane.sb() + 1) >> 1) as u64
}
/// URHADD.
pub(crate) fn urhadd(lane: &mut Lane) -> u64 {
    ((lane.ua() + lane.ub() + 1) >> 1) as u64
}
/// SHSUB.
pub(crate) fn shsub(lane: &mut Lane) -> u64 {
    ((lane.sa() - lane.sb()) >> 1) as u64
}
/// UHSUB.
pub(crate) fn uhsub(lane: &mut Lane) -> u64 {
    ((lane.ua() - lane.ub()) >> 1) as u64
}

/// SQADD.
pub(crate) fn sqadd(lane: &mut Lane) -> u64 {
    lane.signed_sat(lane.sa() + lane.sb())
}
/// UQADD.
pub(crate) fn uqadd(lane: &mut Lane) -> u64 {
    lane.unsigned_sat(lane.ua() + lane.ub())
}
/// SQSUB.
pub(crate) fn sqsub(lane: &mut Lane) -> u64 {
    lane.signed_sat(lane.sa() - lane.sb())
}
/// UQSUB.
pub(crate) fn uqsub(lane: &mut Lane) -> u64 {
    lane.unsigned_sat(lane.ua() - lane.ub())
}
/// SUQADD: the unsigned source is added to the signed destination.
pub(crate) fn suqadd(lane: &mut Lane) -> u64 {
    lane.signed_sat(lane.ua() + lane.sd())
}
/// USQADD: the signed source is added to the unsigned destination.
pub(crate) fn usqadd(lane: &mut Lane) -> u64 {
    lane.unsigned_sat(lane.sa() + lane.ud())
}
/// SQDMULH.
pub(crate) fn sqdmulh(lane: &mut Lane) -> u64 {
    lane.signed_sat((2 * lane.sa() * lane.sb()) >> lane.bits)
}
/// SQRDMULH.
pub(crate) fn sqrdmulh(lane: &mut Lane) -> u64 {
    lane.signed_sat((2 * lane.sa() * lane.sb() + (1 << (lane.bits - 1))) >> lane.bits)
}
/// SQDMULL.
pub(crate) fn sqdmull(lane: &mut Lane) -> u64 {
    lane.signed_sat(2 * lane.sa() * lane.sb())
}
/// SQDMLAL: the product saturates, then the sum.
pub(crate) fn sqdmlal(lane: &mut Lane) -> u64 {
    let product = sqdmull(lane) as i64;
    lane.signed_sat(lane.sd() + i128::from(product))
}
/// SQDMLSL: the product saturates, then the difference.
pub(crate) fn sqdmlsl(lane: &mut Lane) -> u64 {
    let product = sqdmull(lane) as i64;
    lane.signed_sat(lane.sd() - i128::from(product))
}

/// `value` shifted left by `shift`, or right by its negation; rounding adds half of what a right shift drops.
fn shifted(value: i128, shift: i32, round: bool) -> i128 {
    if shift >= 0 {
        return value << shift.min(64);
    }
    let right = -shift;
    // Elements have 64 bits at most: beyond 66 places only the sign is left, and rounding has nothing to add.
    let right = right.min(66);
    let half = if round { 1 << (right - 1) } else { 0 };
    (value + half) >> right
}

/// The shift of SSHL and its kin: the lowest byte of the second operand, signed.
fn shift(lane: &Lane) -> i32 {
    i32::from(lane.b as i8)
}

/// SSHL.
pub(crate) fn sshl(lane: &mut Lane) -> u64 {
    shifted(lane.sa(), shift(lane), false) as u64
}
/// USHL.
pub(crate) fn ushl(lane: &mut Lane) -> u64 {
    shifted(lane.ua(), shift(lane), false) as u64
}
/// SRSHL.
pub(crate) fn srshl(lane: &mut Lane) -> u64 {
    shifted(lane.sa(), shift(lane), true) as u64
}
/// URSHL.
pub(crate) fn urshl(lane: &mut Lane) -> u64 {
    shifted(lane.ua(), shift(lane), true) as u64
}
/// SQSHL (register).
pub(crate) fn sqshl(lane: &mut Lane) -> u64 {
    lane.signed_sat(shifted(lane.sa(), shift(lane), false))
}
/// UQSHL (register).
pub(crate) fn uqshl(lane: &mut Lane) -> u64 {
    unsigned_left(lane, false)
}
/// SQRSHL.
pub(crate) fn sqrshl(lane: &mut Lane) -> u64 {
    lane.signed_sat(shifted(lane.sa(), shift(lane), true))
}
/// UQRSHL.
pub(crate) fn uqrshl(lane: &mut Lane) -> u64 {
    unsigned_left(lane, true)
}

/// A saturating shift of an unsigned element. By 64 places a doubleword would reach bit 127, the sign of the intermediate.
fn unsigned_left(lane: &mut Lane, round: bool) -> u64 {
    let by = shift(lane);
    let value = if by > 62 && lane.a >> 1 != 0 { i128::MAX } else { shifted(lane.ua(), by, round) };
    lane.unsigned_sat(value)
}

/// SHL and USHLL, by an immediate in `b`.
pub(crate) fn shl(lane: &mut Lane) -> u64 {
    lane.a << lane.b
}
/// SSHLL.
pub(crate) fn sshll(lane: &mut Lane) -> u64 {
    (lane.sa() << lane.b) as u64
}
/// SSHR.
pub(crate) fn sshr(lane: &mut Lane) -> u64 {
    (lane.sa() >> lane.b) as u64
}
/// USHR, SHRN, XTN with a shift of zero.
pub(crate) fn ushr(lane: &mut Lane) -> u64 {
    (lane.ua() >> lane.b) as u64
}
/// SSRA.
pub(crate) fn ssra(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(sshr(lane))
}
/// USRA.
pub(crate) fn usra(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(ushr(lane))
}
/// Half of what a right shift by `b` drops.
fn half(lane: &Lane) -> i128 {
    1 << lane.b >> 1
}
/// SRSHR.
pub(crate) fn srshr(lane: &mut Lane) -> u64 {
    ((lane.sa() + half(lane)) >> lane.b) as u64
}
/// URSHR, RSHRN.
pub(crate) fn urshr(lane: &mut Lane) -> u64 {
    ((lane.ua() + half(lane)) >> lane.b) as u64
}
/// SRSRA.
pub(crate) fn srsra(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(srshr(lane))
}
/// URSRA.
pub(crate) fn ursra(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(urshr(lane))
}
/// SLI.
pub(crate) fn sli(lane: &mut Lane) -> u64 {
    let keep = mask(lane.b as u32);
    lane.a << lane.b | lane.d & keep
}
/// SRI.
pub(crate) fn sri(lane: &mut Lane) -> u64 {
    let moved = ((u128::from(mask(lane.bits))) >> lane.b) as u64;
    ushr(lane) | lane.d & !moved
}
/// SQSHL (immediate).
pub(crate) fn sqshl_imm(lane: &mut Lane) -> u64 {
    lane.signed_sat(lane.sa() << lane.b)
}
/// UQSHL (immediate).
pub(crate) fn uqshl_imm(lane: &mut Lane) -> u64 {
    lane.unsigned_sat(lane.ua() << lane.b)
}
/// SQSHLU.
pub(crate) fn sqshlu(lane: &mut Lane) -> u64 {
    lane.unsigned_sat(lane.sa() << lane.b)
}
/// SQSHRN, SQXTN with a shift of zero.
pub(crate) fn sqshrn(lane: &mut Lane) -> u64 {
    lane.signed_sat(lane.sa() >> lane.b)
}
/// UQSHRN, UQXTN with a shift of zero.
pub(crate) fn uqshrn(lane: &mut Lane) -> u64 {
    lane.unsigned_sat(lane.ua() >> lane.b)
}
/// SQSHRUN, SQXTUN with a shift of zero.
pub(crate) fn sqshrun(lane: &mut Lane) -> u64 {
    lane.unsigned_sat(lane.sa() >> lane.b)
}
/// SQRSHRN.
pub(crate) fn sqrshrn(lane: &mut Lane) -> u64 {
    lane.signed_sat((lane.sa() + half(lane)) >> lane.b)
}
/// UQRSHRN.
pub(crate) fn uqrshrn(lane: &mut Lane) -> u64 {
    lane.unsigned_sat((lane.ua() + half(lane)) >> lane.b)
}
/// SQRSHRUN.
pub(crate) fn sqrshrun(lane: &mut Lane) -> u64 {
    lane.unsigned_sat((lane.sa() + half(lane)) >> lane.b)
}

/// SADDL, SADDW, SADDLP, SADDLV.
pub(crate) fn saddl(lane: &mut Lane) -> u64 {
    (lane.sa() + lane.sb()) as u64
}
/// UADDL, UADDW, UADDLP, UADDLV.
pub(crate) fn uaddl(lane: &mut Lane) -> u64 {
    (lane.ua() + lane.ub()) as u64
}
/// SSUBL, SSUBW.
pub(crate) fn ssubl(lane: &mut Lane) -> u64 {
    (lane.sa() - lane.sb()) as u64
}
/// USUBL, USUBW.
pub(crate) fn usubl(lane: &mut Lane) -> u64 {
    (lane.ua() - lane.ub()) as u64
}
/// SADALP.
pub(crate) fn sadalp(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(saddl(lane))
}
/// UADALP.
pub(crate) fn uadalp(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(uaddl(lane))
}
/// SMULL.
pub(crate) fn smull(lane: &mut Lane) -> u64 {
    (lane.sa() * lane.sb()) as u64
}
/// SMLAL.
pub(crate) fn smlal(lane: &mut Lane) -> u64 {
    lane.d.wrapping_add(smull(lane))
}
/// SMLSL.
pub(crate) fn smlsl(lane: &mut Lane) -> u64 {
    lane.d.wrapping_sub(smull(lane))
}
/// ADDHN: the upper half of the sum.
pub(crate) fn addhn(lane: &mut Lane) -> u64 {
    lane.a.wrapping_add(lane.b) >> lane.bits & mask(lane.bits)
}
/// RADDHN.
pub(crate) fn raddhn(lane: &mut Lane) -> u64 {
    lane.a.wrapping_add(lane.b).wrapping_add(1 << (lane.bits - 1)) >> lane.bits
}
/// SUBHN.
pub(crate) fn subhn(lane: &mut Lane) -> u64 {
    lane.a.wrapping_sub(lane.b) >> lane.bits
}
/// RSUBHN.
pub(crate) fn rsubhn(lane: &mut Lane) -> u64 {
    lane.a.wrapping_sub(lane.b).wrapping_add(1 << (lane.bits - 1)) >> lane.bits
}

/// ABS.
pub(crate) fn abs(lane: &mut Lane) -> u64 {
    lane.sa().unsigned_abs() as u64
}
/// NEG.
pub(crate) fn neg(lane: &mut Lane) -> u64 {
    lane.a.wrapping_neg()
}
/// SQABS.
pub(crate) fn sqabs(lane: &mut Lane) -> u64 {
    lane.signed_sat(lane.sa().abs())
}
/// SQNEG.
pub(crate) fn sqneg(lane: &mut Lane) -> u64 {
    lane.signed_sat(-lane.sa())
}
/// CLZ.
pub(crate) fn clz(lane: &mut Lane) -> u64 {
    u64::from(lane.a.leading_zeros()) - u64::from(64 - lane.bits)
}
/// CLS.
pub(crate) fn cls(lane: &mut Lane) -> u64 {
    let sign = lane.sa();
    u64::from(((sign ^ sign >> 127) as u64).leading_zeros()) - u64::from(64 - lane.bits) - 1
}
/// CNT.
pub(crate) fn cnt(lane: &mut Lane) -> u64 {
    u64::from(lane.a.count_ones())
}
/// NOT.
pub(crate) fn not(lane: &mut Lane) -> u64 {
    !lane.a
}
/// RBIT.
pub(crate) fn rbit(lane: &mut Lane) -> u64 {
    lane.a.reverse_bits() >> (64 - lane.bits)
}
/// SHLL: by the width of the narrow element.
pub(crate) fn shll(lane: &mut Lane) -> u64 {
    lane.a << lane.a_bits
}
