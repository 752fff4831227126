//! Integer arithmetic and logic: handlers generic over the operand width (`X`: 64 bits) and what else lowering knows.

use crate::cpu::Cpu;
use crate::exec::leave;
use crate::op::{Flow, Op, next};

/// No shift, for the `SHIFT` parameter of the shifted-register forms; 0 to 3 are LSL, LSR, ASR, ROR.
pub(crate) const NO_SHIFT: u8 = 4;

/// The logical operations, as `opc:N` of the shifted-register forms without the flag-setting.
pub(crate) mod logic {
    pub(crate) const AND: u8 = 0;
    pub(crate) const BIC: u8 = 1;
    pub(crate) const ORR: u8 = 2;
    pub(crate) const ORN: u8 = 3;
    pub(crate) const EOR: u8 = 4;
    pub(crate) const EON: u8 = 5;
}

/// By condition (DDI 0487 C1.2.4), the set of NZCV values that satisfy it, as a bit per value.
pub(crate) const CONDITIONS: [u16; 16] = conditions();

const fn conditions() -> [u16; 16] {
    let mut table = [0; 16];
    let mut cond = 0;
    while cond < 16 {
        let mut nzcv = 0;
        while nzcv < 16 {
            let (n, z, c, v) = (nzcv & 8 != 0, nzcv & 4 != 0, nzcv & 2 != 0, nzcv & 1 != 0);
            let holds = match cond >> 1 {
                0 => z,
                1 => c,
                2 => n,
                3 => v,
                4 => c && !z,
                5 => n == v,
                6 => n == v && !z,
                _ => true,
            };
            // The low bit inverts, except for 0b1111, which is "always" too.
            if holds != (cond & 1 != 0 && cond != 15) {
                table[cond] |= 1 << nzcv;
            }
            nzcv += 1;
        }
        cond += 1;
    }
    table
}

/// Whether condition `cond` (0 to 15) holds.
#[inline(always)]
pub(crate) fn holds(cpu: &Cpu, cond: u8) -> bool {
    CONDITIONS[usize::from(cond & 15)] >> (cpu.pstate.nzcv & 15) & 1 != 0
}

/// Cuts `value` to the operand width.
#[inline(always)]
pub(crate) const fn cut<const X: bool>(value: u64) -> u64 {
    if X { value } else { value & 0xffff_ffff }
}

/// N and Z of a result.
#[inline(always)]
fn nz<const X: bool>(value: u64) -> u8 {
    let negative = if X { value >> 63 } else { value >> 31 & 1 };
    (negative as u8) << 3 | u8::from(cut::<X>(value) == 0) << 2
}

/// `AddWithCarry` of the pseudocode: the result and NZCV.
#[inline(always)]
pub(crate) fn add_with_carry<const X: bool>(a: u64, b: u64, carry: bool) -> (u64, u8) {
    if X {
        let (sum, carry_a) = a.overflowing_add(b);
        let (sum, carry_b) = sum.overflowing_add(u64::from(carry));
        let overflow = ((a ^ sum) & (b ^ sum)) >> 63;
        (sum, nz::<X>(sum) | u8::from(carry_a | carry_b) << 1 | overflow as u8)
    } else {
        let wide = u64::from(a as u32) + u64::from(b as u32) + u64::from(carry);
        let overflow = ((a ^ wide) & (b ^ wide)) >> 31 & 1;
        (cut::<X>(wide), nz::<X>(wide) | ((wide >> 32) as u8) << 1 | overflow as u8)
    }
}

/// A shifted operand; `SHIFT` as in the encoding, or [`NO_SHIFT`].
#[inline(always)]
pub(crate) fn shifted<const X: bool, const SHIFT: u8>(value: u64, amount: u64) -> u64 {
    if X {
        let amount = amount as u32 & 63;
        match SHIFT {
            0 => value << amount,
            1 => value >> amount,
            2 => ((value as i64) >> amount) as u64,
            3 => value.rotate_right(amount),
            _ => value,
        }
    } else {
        let (value, amount) = (value as u32, amount as u32 & 31);
        u64::from(match SHIFT {
            0 => value << amount,
            1 => value >> amount,
            2 => ((value as i32) >> amount) as u32,
            3 => value.rotate_right(amount),
            _ => value,
        })
    }
}

/// `ExtendReg` of the pseudocode: `option` 0 to 7 is UXTB to SXTX, then a left shift by 0 to 4.
#[inline(always)]
pub(crate) fn extended(value: u64, option: u16, shift: u8) -> u64 {
    let wide = match option & 7 {
        0 => value & 0xff,
        1 => value & 0xffff,
        2 => value & 0xffff_ffff,
        4 => value as i8 as u64,
        5 => value as i16 as u64,
        6 => value as i32 as u64,
        _ => value,
    };
    wide << (shift & 7)
}

#[inline(always)]
fn reg(cpu: &Cpu, index: u8) -> u64 {
    cpu.x[usize::from(index)]
}

#[inline(always)]
fn set(cpu: &mut Cpu, index: u8, value: u64) {
    cpu.x[usize::from(index)] = value;
}

/// MOVZ, MOVN, ADR, ADRP, and ORR of an immediate with ZR: the value is known.
pub(crate) fn mov_imm(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    set(cpu, op.rd, op.imm);
    next(cpu, rest)
}

/// ORR with ZR as first source and no shift.
pub(crate) fn mov_reg<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    set(cpu, op.rd, cut::<X>(reg(cpu, op.rm)));
    next(cpu, rest)
}

/// MOVK: `imm` is in place, `ra` is its shift.
pub(crate) fn movk<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let hole = !(0xffff_u64 << (op.ra & 63));
    set(cpu, op.rd, cut::<X>(reg(cpu, op.rd_source()) & hole | op.imm));
    next(cpu, rest)
}

/// ADD and SUB (immediate) without flags; a subtraction's immediate is negated.
pub(crate) fn add_imm<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    set(cpu, op.rd, cut::<X>(reg(cpu, op.rn).wrapping_add(op.imm)));
    next(cpu, rest)
}

/// ADDS and SUBS (immediate); a subtraction's immediate is inverted.
pub(crate) fn adds_imm<const X: bool, const SUB: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (sum, nzcv) = add_with_carry::<X>(reg(cpu, op.rn), op.imm, SUB);
    set(cpu, op.rd, sum);
    cpu.pstate.nzcv = nzcv;
    next(cpu, rest)
}

/// Goes on behind an op that set NZCV to `nzcv` and is followed by B.cond, which is executed right here.
#[inline(always)]
fn branch_on(cpu: &mut Cpu, rest: &[Op], nzcv: u8) -> Flow {
    // A budget may end between the two.
    let Some((branch, rest)) = rest.split_first() else { return Flow::Next };
    if CONDITIONS[usize::from(branch.ra & 15)] >> (nzcv & 15) & 1 != 0 {
        leave(cpu, rest, branch.imm)
    } else {
        next(cpu, rest)
    }
}

/// [`adds_imm`] and the B.cond behind it.
pub(crate) fn adds_imm_branch<const X: bool, const SUB: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (sum, nzcv) = add_with_carry::<X>(reg(cpu, op.rn), op.imm, SUB);
    set(cpu, op.rd, sum);
    cpu.pstate.nzcv = nzcv;
    branch_on(cpu, rest, nzcv)
}

/// SUBS (register, no shift) and the B.cond behind it.
pub(crate) fn subs_branch<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (sum, nzcv) = add_with_carry::<X>(reg(cpu, op.rn), !reg(cpu, op.rm), true);
    set(cpu, op.rd, sum);
    cpu.pstate.nzcv = nzcv;
    branch_on(cpu, rest, nzcv)
}

#[inline(always)]
fn add_sub<const X: bool, const SUB: bool, const FLAGS: bool>(cpu: &mut Cpu, op: &Op, b: u64) {
    let a = reg(cpu, op.rn);
    if FLAGS {
        let (sum, nzcv) = add_with_carry::<X>(a, if SUB { !b } else { b }, SUB);
        set(cpu, op.rd, sum);
        cpu.pstate.nzcv = nzcv;
    } else {
        let sum = if SUB { a.wrapping_sub(b) } else { a.wrapping_add(b) };
        set(cpu, op.rd, cut::<X>(sum));
    }
}

/// ADD, SUB, ADDS, SUBS (shifted register): amount in `ra`.
pub(crate) fn add_shifted<const X: bool, const SUB: bool, const FLAGS: bool, const SHIFT: u8>(
    cpu: &mut Cpu,
    op: &Op,
    rest: &[Op],
) -> Flow {
    let b = shifted::<X, SHIFT>(reg(cpu, op.rm), u64::from(op.ra));
    add_sub::<X, SUB, FLAGS>(cpu, op, b);
    next(cpu, rest)
}

/// ADD, SUB, ADDS, SUBS (extended register): option in `aux`, amount in `ra`.
pub(crate) fn add_extended<const X: bool, const SUB: bool, const FLAGS: bool>(
    cpu: &mut Cpu,
    op: &Op,
    rest: &[Op],
) -> Flow {
    let b = extended(reg(cpu, op.rm), op.aux, op.ra);
    add_sub::<X, SUB, FLAGS>(cpu, op, b);
    next(cpu, rest)
}

/// ADC, ADCS, SBC, SBCS.
pub(crate) fn add_carry<const X: bool, const SUB: bool, const FLAGS: bool>(
    cpu: &mut Cpu,
    op: &Op,
    rest: &[Op],
) -> Flow {
    let b = reg(cpu, op.rm);
    let carry = cpu.pstate.nzcv & 2 != 0;
    let (sum, nzcv) = add_with_carry::<X>(reg(cpu, op.rn), if SUB { !b } else { b }, carry);
    set(cpu, op.rd, sum);
    if FLAGS {
        cpu.pstate.nzcv = nzcv;
    }
    next(cpu, rest)
}

#[inline(always)]
fn logical<const X: bool, const OP: u8, const FLAGS: bool>(cpu: &mut Cpu, op: &Op, b: u64) {
    let a = reg(cpu, op.rn);
    let result = cut::<X>(match OP {
        logic::AND => a & b,
        logic::BIC => a & !b,
        logic::ORR => a | b,
        logic::ORN => a | !b,
        logic::EOR => a ^ b,
        _ => a ^ !b,
    });
    set(cpu, op.rd, result);
    if FLAGS {
        cpu.pstate.nzcv = nz::<X>(result);
    }
}

/// AND, ORR, EOR, ANDS (immediate).
pub(crate) fn logic_imm<const X: bool, const OP: u8, const FLAGS: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    logical::<X, OP, FLAGS>(cpu, op, op.imm);
    next(cpu, rest)
}

/// The logical operations (shifted register): amount in `ra`.
pub(crate) fn logic_shifted<const X: bool, const OP: u8, const FLAGS: bool, const SHIFT: u8>(
    cpu: &mut Cpu,
    op: &Op,
    rest: &[Op],
) -> Flow {
    let b = shifted::<X, SHIFT>(reg(cpu, op.rm), u64::from(op.ra));
    logical::<X, OP, FLAGS>(cpu, op, b);
    next(cpu, rest)
}

/// UBFM: rotation in `ra`, the bits to keep in `imm`.
pub(crate) fn ubfm<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    set(cpu, op.rd, shifted::<X, 3>(reg(cpu, op.rn), u64::from(op.ra)) & op.imm);
    next(cpu, rest)
}

/// BFM: rotation in `ra`, the bits to insert in `imm`.
pub(crate) fn bfm<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let field = shifted::<X, 3>(reg(cpu, op.rn), u64::from(op.ra)) & op.imm;
    set(cpu, op.rd, cut::<X>(reg(cpu, op.rd_source()) & !op.imm | field));
    next(cpu, rest)
}

/// SBFM as a left shift by `ra` that brings the field's sign to the top, then an arithmetic right shift by `aux`.
pub(crate) fn sbfm<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let top = shifted::<X, 0>(reg(cpu, op.rn), u64::from(op.ra));
    set(cpu, op.rd, shifted::<X, 2>(top, u64::from(op.aux)));
    next(cpu, rest)
}

/// EXTR: least significant bit in `ra`.
pub(crate) fn extr<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (high, low) = (reg(cpu, op.rn), reg(cpu, op.rm));
    let result = if X {
        ((u128::from(high) << 64 | u128::from(low)) >> (op.ra & 63)) as u64
    } else {
        cut::<X>((high << 32 | cut::<X>(low)) >> (op.ra & 31))
    };
    set(cpu, op.rd, result);
    next(cpu, rest)
}

/// CSEL, CSINC, CSINV, CSNEG: condition in `ra`; `INV` and `INC` change the second source.
pub(crate) fn csel<const X: bool, const INV: bool, const INC: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let otherwise = reg(cpu, op.rm);
    let otherwise = if INV { !otherwise } else { otherwise };
    let otherwise = if INC { otherwise.wrapping_add(1) } else { otherwise };
    let result = if holds(cpu, op.ra) { reg(cpu, op.rn) } else { otherwise };
    set(cpu, op.rd, cut::<X>(result));
    next(cpu, rest)
}

/// CCMP and CCMN: condition in `ra`, NZCV in `aux`, the second operand from `rm` or `imm`.
pub(crate) fn ccmp<const X: bool, const SUB: bool, const IMM: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let b = if IMM { op.imm } else { reg(cpu, op.rm) };
    cpu.pstate.nzcv = if holds(cpu, op.ra) {
        add_with_carry::<X>(reg(cpu, op.rn), if SUB { !b } else { b }, SUB).1
    } else {
        op.aux as u8
    };
    next(cpu, rest)
}

/// MADD and MSUB.
pub(crate) fn madd<const X: bool, const SUB: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let product = reg(cpu, op.rn).wrapping_mul(reg(cpu, op.rm));
    let addend = reg(cpu, op.ra);
    let result = if SUB { addend.wrapping_sub(product) } else { addend.wrapping_add(product) };
    set(cpu, op.rd, cut::<X>(result));
    next(cpu, rest)
}

/// SMADDL, SMSUBL, UMADDL, UMSUBL.
pub(crate) fn maddl<const SIGNED: bool, const SUB: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let widen = |value: u64| if SIGNED { value as i32 as u64 } else { value & 0xffff_ffff };
    let product = widen(reg(cpu, op.rn)).wrapping_mul(widen(reg(cpu, op.rm)));
    let addend = reg(cpu, op.ra);
    set(cpu, op.rd, if SUB { addend.wrapping_sub(product) } else { addend.wrapping_add(product) });
    next(cpu, rest)
}

/// SMULH and UMULH.
pub(crate) fn mulh<const SIGNED: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (a, b) = (reg(cpu, op.rn), reg(cpu, op.rm));
    let result = if SIGNED {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    } else {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    };
    set(cpu, op.rd, result);
    next(cpu, rest)
}

/// UDIV and SDIV: by zero is zero, and the one overflow wraps (DDI 0487 C6.2.300).
pub(crate) fn div<const X: bool, const SIGNED: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (a, b) = (reg(cpu, op.rn), reg(cpu, op.rm));
    let result = match (X, SIGNED) {
        (true, false) => a.checked_div(b).unwrap_or(0),
        (true, true) if b == 0 => 0,
        (true, true) => (a as i64).wrapping_div(b as i64) as u64,
        (false, false) => u64::from((a as u32).checked_div(b as u32).unwrap_or(0)),
        (false, true) if b as u32 == 0 => 0,
        (false, true) => u64::from((a as i32).wrapping_div(b as i32) as u32),
    };
    set(cpu, op.rd, result);
    next(cpu, rest)
}

/// LSLV, LSRV, ASRV, RORV.
pub(crate) fn shift_var<const X: bool, const SHIFT: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    set(cpu, op.rd, shifted::<X, SHIFT>(reg(cpu, op.rn), reg(cpu, op.rm)));
    next(cpu, rest)
}

/// The operations of one source, in the order of their opcode field.
pub(crate) mod unary {
    pub(crate) const RBIT: u8 = 0;
    pub(crate) const REV16: u8 = 1;
    pub(crate) const REV32: u8 = 2;
    pub(crate) const REV64: u8 = 3;
    pub(crate) const CLZ: u8 = 4;
    pub(crate) const CLS: u8 = 5;
}

/// RBIT, REV16, REV32, REV, CLZ, CLS.
pub(crate) fn one_source<const X: bool, const OP: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = reg(cpu, op.rn);
    let narrow = value as u32;
    let result = match (OP, X) {
        (unary::RBIT, true) => value.reverse_bits(),
        (unary::RBIT, false) => u64::from(narrow.reverse_bits()),
        (unary::REV16, _) => cut::<X>((value & 0x00ff_00ff_00ff_00ff) << 8 | value >> 8 & 0x00ff_00ff_00ff_00ff),
        (unary::REV32, true) => value.swap_bytes().rotate_right(32),
        (unary::REV32, false) => u64::from(narrow.swap_bytes()),
        (unary::REV64, _) => value.swap_bytes(),
        (unary::CLZ, true) => u64::from(value.leading_zeros()),
        (unary::CLZ, false) => u64::from(narrow.leading_zeros()),
        (_, true) => u64::from((value ^ ((value as i64) >> 63) as u64).leading_zeros() - 1),
        (_, false) => u64::from((narrow ^ ((narrow as i32) >> 31) as u32).leading_zeros() - 1),
    };
    set(cpu, op.rd, result);
    next(cpu, rest)
}

/// CRC32B to CRC32X (`C`: CRC32CB to CRC32CX): bit-serial over `BYTES`, reflected polynomials (DDI 0487 C6.2.76).
pub(crate) fn crc32<const C: bool, const BYTES: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let polynomial: u32 = if C { 0x82f6_3b78 } else { 0xedb8_8320 };
    let mut crc = reg(cpu, op.rn) as u32;
    let value = reg(cpu, op.rm);
    for index in 0..BYTES {
        crc ^= (value >> (8 * index)) as u32 & 0xff;
        for _ in 0..8 {
            crc = crc >> 1 ^ polynomial & (crc & 1).wrapping_neg();
        }
    }
    set(cpu, op.rd, u64::from(crc));
    next(cpu, rest)
}

/// CFINV.
pub(crate) fn cfinv(cpu: &mut Cpu, _op: &Op, rest: &[Op]) -> Flow {
    cpu.pstate.nzcv ^= 2;
    next(cpu, rest)
}

/// RMIF: rotation in `ra`, mask in `aux`.
pub(crate) fn rmif(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let flags = reg(cpu, op.rn).rotate_right(u32::from(op.ra & 63)) as u8 & 15;
    let mask = op.aux as u8 & 15;
    cpu.pstate.nzcv = cpu.pstate.nzcv & !mask | flags & mask;
    next(cpu, rest)
}

/// SETF8 and SETF16: `ra` is 8 or 16.
pub(crate) fn setf(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = reg(cpu, op.rn);
    let width = u32::from(op.ra);
    let sign = value >> (width - 1) & 1;
    let zero = value & ((1 << width) - 1) == 0;
    let overflow = (value >> width & 1) ^ sign;
    cpu.pstate.nzcv = cpu.pstate.nzcv & 2 | (sign as u8) << 3 | u8::from(zero) << 2 | overflow as u8;
    next(cpu, rest)
}
