//! Loads and stores of general and SIMD&FP registers: handlers generic over data type and addressing mode.
//!
//! The base register is written back only after the access succeeded, so an aborted instruction leaves no trace.

use crate::cpu::{Cpu, Trap};
use crate::exec::alu::extended;
use crate::exec::host::Word;
use crate::exec::trap::trap;
use crate::op::{Flow, Op, next};

/// Addressing modes, for the `MODE` parameter. The offset is in `imm`, except for [`mode::REG`] (`rm` shifted left by
/// `ra`) and [`mode::EXT`] (`rm` extended as `aux` says, then shifted).
pub(crate) mod mode {
    pub(crate) const OFFSET: u8 = 0;
    pub(crate) const PRE: u8 = 1;
    pub(crate) const POST: u8 = 2;
    pub(crate) const REG: u8 = 3;
    pub(crate) const EXT: u8 = 4;
}

/// How a loaded value fills its register, for the `SIGN` parameter.
pub(crate) mod sign {
    pub(crate) const ZERO: u8 = 0;
    /// Sign-extended to 32 bits.
    pub(crate) const WORD: u8 = 1;
    /// Sign-extended to 64 bits.
    pub(crate) const DOUBLE: u8 = 2;
}

#[inline(always)]
fn address<const MODE: u8>(cpu: &Cpu, op: &Op) -> u64 {
    let base = cpu.x[usize::from(op.rn)];
    match MODE {
        mode::OFFSET | mode::PRE => base.wrapping_add(op.imm),
        mode::POST => base,
        mode::REG => base.wrapping_add(cpu.x[usize::from(op.rm)] << (op.ra & 7)),
        _ => base.wrapping_add(extended(cpu.x[usize::from(op.rm)], op.aux, op.ra)),
    }
}

#[inline(always)]
fn write_back<const MODE: u8>(cpu: &mut Cpu, op: &Op) {
    if MODE == mode::PRE || MODE == mode::POST {
        let base = &mut cpu.x[usize::from(op.rn)];
        *base = base.wrapping_add(op.imm);
    }
}

#[inline(always)]
fn fill<T: Word, const SIGN: u8>(value: T) -> u64 {
    let wide = value.wide();
    let unused = 64 - (8 << T::SHIFT);
    match SIGN {
        sign::WORD => u64::from((((wide << unused) as i64) >> unused) as u32),
        sign::DOUBLE => (((wide << unused) as i64) >> unused) as u64,
        _ => wide,
    }
}

/// LDR, LDRB, LDRSH, LDUR and so on. A miss of the TLB is a tail call too: with no other call in it, the handler has no
/// prologue.
pub(crate) fn load<T: Word, const SIGN: u8, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load_hit::<T>(address::<MODE>(cpu, op)) {
        Some(value) => {
            write_back::<MODE>(cpu, op);
            cpu.x[usize::from(op.rd)] = fill::<T, SIGN>(value);
            next(cpu, rest)
        }
        None => load_missed::<T, SIGN, MODE>(cpu, op, rest),
    }
}

#[cold]
#[inline(never)]
fn load_missed<T: Word, const SIGN: u8, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load::<T>(address::<MODE>(cpu, op)) {
        Ok(value) => {
            write_back::<MODE>(cpu, op);
            cpu.x[usize::from(op.rd)] = fill::<T, SIGN>(value);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// STR, STRB, STUR and so on; `rd` is the source.
pub(crate) fn store<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = T::cut(cpu.x[usize::from(op.rd)]);
    if cpu.store_hit::<T>(address::<MODE>(cpu, op), value) {
        write_back::<MODE>(cpu, op);
        next(cpu, rest)
    } else {
        store_missed::<T, MODE>(cpu, op, rest)
    }
}

#[cold]
#[inline(never)]
fn store_missed<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = T::cut(cpu.x[usize::from(op.rd)]);
    match cpu.store::<T>(address::<MODE>(cpu, op), value) {
        Ok(()) => {
            write_back::<MODE>(cpu, op);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDR (literal): the address is in `imm`.
pub(crate) fn load_literal<T: Word, const SIGN: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load::<T>(op.imm) {
        Ok(value) => {
            cpu.x[usize::from(op.rd)] = fill::<T, SIGN>(value);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDTR and its kin.
pub(crate) fn load_unprivileged<T: Word, const SIGN: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load_unprivileged::<T>(address::<{ mode::OFFSET }>(cpu, op)) {
        Ok(value) => {
            cpu.x[usize::from(op.rd)] = fill::<T, SIGN>(value);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// STTR and its kin.
pub(crate) fn store_unprivileged<T: Word>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = T::cut(cpu.x[usize::from(op.rd)]);
    match cpu.store_unprivileged::<T>(address::<{ mode::OFFSET }>(cpu, op), value) {
        Ok(()) => next(cpu, rest),
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDP, LDNP, LDPSW: second destination in `ra`.
pub(crate) fn load_pair<T: Word, const SIGN: u8, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load_pair_hit::<T>(address::<MODE>(cpu, op)) {
        Some((first, second)) => {
            write_back::<MODE>(cpu, op);
            cpu.x[usize::from(op.rd)] = fill::<T, SIGN>(first);
            cpu.x[usize::from(op.ra)] = fill::<T, SIGN>(second);
            next(cpu, rest)
        }
        None => load_pair_missed::<T, SIGN, MODE>(cpu, op, rest),
    }
}

#[cold]
#[inline(never)]
fn load_pair_missed<T: Word, const SIGN: u8, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load_pair::<T>(address::<MODE>(cpu, op)) {
        Ok((first, second)) => {
            write_back::<MODE>(cpu, op);
            cpu.x[usize::from(op.rd)] = fill::<T, SIGN>(first);
            cpu.x[usize::from(op.ra)] = fill::<T, SIGN>(second);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// STP, STNP: second source in `ra`.
pub(crate) fn store_pair<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (first, second) = (T::cut(cpu.x[usize::from(op.rd)]), T::cut(cpu.x[usize::from(op.ra)]));
    if cpu.store_pair_hit::<T>(address::<MODE>(cpu, op), first, second) {
        write_back::<MODE>(cpu, op);
        next(cpu, rest)
    } else {
        store_pair_missed::<T, MODE>(cpu, op, rest)
    }
}

#[cold]
#[inline(never)]
fn store_pair_missed<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let (first, second) = (T::cut(cpu.x[usize::from(op.rd)]), T::cut(cpu.x[usize::from(op.ra)]));
    match cpu.store_pair::<T>(address::<MODE>(cpu, op), first, second) {
        Ok(()) => {
            write_back::<MODE>(cpu, op);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDR and LDUR of a SIMD&FP register of up to 64 bits, the rest cleared.
pub(crate) fn load_fp<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load::<T>(address::<MODE>(cpu, op)) {
        Ok(value) => {
            write_back::<MODE>(cpu, op);
            cpu.v[usize::from(op.rd & 31)] = u128::from(value.wide());
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// STR and STUR of a SIMD&FP register of up to 64 bits.
pub(crate) fn store_fp<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = T::cut(cpu.v[usize::from(op.rd & 31)] as u64);
    match cpu.store::<T>(address::<MODE>(cpu, op), value) {
        Ok(()) => {
            write_back::<MODE>(cpu, op);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDR and LDUR of Q: two doublewords, which is all the atomicity it has without LSE2.
pub(crate) fn load_q<const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match load_quad(cpu, address::<MODE>(cpu, op)) {
        Ok(value) => {
            write_back::<MODE>(cpu, op);
            cpu.v[usize::from(op.rd & 31)] = value;
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// STR and STUR of Q.
pub(crate) fn store_q<const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = cpu.v[usize::from(op.rd & 31)];
    let va = address::<MODE>(cpu, op);
    if !cpu.is_misaligned(va, 4) && cpu.store_pair_hit::<u64>(va, value as u64, (value >> 64) as u64) {
        write_back::<MODE>(cpu, op);
        next(cpu, rest)
    } else {
        store_q_missed::<MODE>(cpu, op, rest)
    }
}

#[cold]
#[inline(never)]
fn store_q_missed<const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = cpu.v[usize::from(op.rd & 31)];
    let va = address::<MODE>(cpu, op);
    let done =
        cpu.check_aligned(va, 4, true).and_then(|()| cpu.store_pair::<u64>(va, value as u64, (value >> 64) as u64));
    match done {
        Ok(()) => {
            write_back::<MODE>(cpu, op);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

#[inline(always)]
fn load_quad(cpu: &mut Cpu, va: u64) -> Result<u128, Trap> {
    cpu.check_aligned(va, 4, false)?;
    let (low, high) = cpu.load_pair::<u64>(va)?;
    Ok(u128::from(high) << 64 | u128::from(low))
}

/// LDR (literal) of a SIMD&FP register: the address is in `imm`.
pub(crate) fn load_literal_fp<T: Word>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load::<T>(op.imm) {
        Ok(value) => {
            cpu.v[usize::from(op.rd & 31)] = u128::from(value.wide());
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDR (literal) of Q.
pub(crate) fn load_literal_q(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match load_quad(cpu, op.imm) {
        Ok(value) => {
            cpu.v[usize::from(op.rd & 31)] = value;
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDP and LDNP of S and D.
pub(crate) fn load_pair_fp<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    match cpu.load_pair::<T>(address::<MODE>(cpu, op)) {
        Ok((first, second)) => {
            write_back::<MODE>(cpu, op);
            cpu.v[usize::from(op.rd & 31)] = u128::from(first.wide());
            cpu.v[usize::from(op.ra & 31)] = u128::from(second.wide());
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// STP and STNP of S and D.
pub(crate) fn store_pair_fp<T: Word, const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let value = |index: u8| T::cut(cpu.v[usize::from(index & 31)] as u64);
    let (first, second) = (value(op.rd), value(op.ra));
    match cpu.store_pair::<T>(address::<MODE>(cpu, op), first, second) {
        Ok(()) => {
            write_back::<MODE>(cpu, op);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDP and LDNP of Q.
pub(crate) fn load_pair_q<const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = address::<MODE>(cpu, op);
    let both = load_quad(cpu, va).and_then(|first| Ok((first, load_quad(cpu, va.wrapping_add(16))?)));
    match both {
        Ok((first, second)) => {
            write_back::<MODE>(cpu, op);
            cpu.v[usize::from(op.rd & 31)] = first;
            cpu.v[usize::from(op.ra & 31)] = second;
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// STP and STNP of Q: both pages must be writable before a byte is written.
pub(crate) fn store_pair_q<const MODE: u8>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = address::<MODE>(cpu, op);
    let (first, second) = (cpu.v[usize::from(op.rd & 31)], cpu.v[usize::from(op.ra & 31)]);
    let done = cpu.check_aligned(va, 4, true).and_then(|()| cpu.probe_store(va, 32)).and_then(|()| {
        cpu.store_pair::<u64>(va, first as u64, (first >> 64) as u64)?;
        cpu.store_pair::<u64>(va.wrapping_add(16), second as u64, (second >> 64) as u64)
    });
    match done {
        Ok(()) => {
            write_back::<MODE>(cpu, op);
            next(cpu, rest)
        }
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// PRFM and the hints: nothing.
pub(crate) fn nothing(cpu: &mut Cpu, _op: &Op, rest: &[Op]) -> Flow {
    next(cpu, rest)
}
