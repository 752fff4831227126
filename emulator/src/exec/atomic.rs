//! Acquire and release, exclusives, and the LSE atomics.
//!
//! A store-exclusive compares and swaps against the value that the load-exclusive saw. A monitor would also notice a
//! change and a change back (ABA); software for LL/SC that also runs on CAS does not depend on that, and the architecture lets
//! a monitor forget but never lets software see that it did not.

use crate::cpu::{Cpu, Exclusive, REG_ZERO, Trap};
use crate::exec::host::{self, AtomicWord, Rmw, Word};
use crate::exec::trap::trap;
use crate::op::{Flow, Op, next};

#[inline(always)]
fn finish(cpu: &mut Cpu, op: &Op, rest: &[Op], done: Result<(), Trap>) -> Flow {
    match done {
        Ok(()) => next(cpu, rest),
        Err(cause) => trap(cpu, op, rest, cause),
    }
}

/// LDAR, LDLAR, LDAPR (`imm` is the offset of LDAPUR).
pub(crate) fn load_acquire<T: Word>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = cpu.x[usize::from(op.rn)].wrapping_add(op.imm);
    let done = cpu.load_acquire::<T>(va).map(|value| cpu.x[usize::from(op.rd)] = value.wide());
    finish(cpu, op, rest, done)
}

/// STLR, STLLR (`imm` is the offset of STLUR).
pub(crate) fn store_release<T: Word>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = cpu.x[usize::from(op.rn)].wrapping_add(op.imm);
    let value = T::cut(cpu.x[usize::from(op.rd)]);
    let done = cpu.store_release::<T>(va, value);
    finish(cpu, op, rest, done)
}

/// LDXR, LDAXR.
pub(crate) fn load_exclusive<T: Word>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = cpu.x[usize::from(op.rn)];
    let done = cpu.ordered_host(va, T::SHIFT, false).and_then(|address| {
        let value = T::load_acquire(address).wide();
        let gpa = cpu.physical(va)?;
        cpu.excl = Exclusive { valid: true, gpa, size_bytes: 1 << T::SHIFT, value: u128::from(value) };
        cpu.x[usize::from(op.rd)] = value;
        Ok(())
    });
    finish(cpu, op, rest, done)
}

/// STXR, STLXR: status register in `rm`.
pub(crate) fn store_exclusive<T: AtomicWord>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = cpu.x[usize::from(op.rn)];
    let new = T::cut(cpu.x[usize::from(op.rd)]);
    let armed = std::mem::take(&mut cpu.excl);
    let done = cpu.exclusive_host(va, T::SHIFT, armed).map(|address| {
        let old = T::cut(armed.value as u64);
        let stored = address.is_some_and(|address| T::compare_and_swap(address, old, new) == old);
        cpu.x[usize::from(op.rm)] = u64::from(!stored);
    });
    finish(cpu, op, rest, done)
}

/// LDXP, LDAXP (`X`: of two doublewords): second destination in `ra`.
pub(crate) fn load_exclusive_pair<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = cpu.x[usize::from(op.rn)];
    let shift = if X { 4 } else { 3 };
    let done = cpu.ordered_host(va, shift, false).and_then(|address| {
        let value = if X { host::load_u128(address) } else { u128::from(u64::load_acquire(address)) };
        let gpa = cpu.physical(va)?;
        cpu.excl = Exclusive { valid: true, gpa, size_bytes: 1 << shift, value };
        let (first, second) =
            if X { (value as u64, (value >> 64) as u64) } else { (u64::from(value as u32), (value >> 32) as u64) };
        cpu.x[usize::from(op.rd)] = first;
        cpu.x[usize::from(op.ra)] = second;
        Ok(())
    });
    finish(cpu, op, rest, done)
}

/// STXP, STLXP: status register in `rm`, second source in `ra`.
pub(crate) fn store_exclusive_pair<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = cpu.x[usize::from(op.rn)];
    let new = pair::<X>(cpu, op.rd, op.ra);
    let armed = std::mem::take(&mut cpu.excl);
    let done = cpu.exclusive_host(va, if X { 4 } else { 3 }, armed).map(|address| {
        let stored = address.is_some_and(|address| swap_pair::<X>(address, armed.value, new) == armed.value);
        cpu.x[usize::from(op.rm)] = u64::from(!stored);
    });
    finish(cpu, op, rest, done)
}

/// CLREX.
pub(crate) fn clear_exclusive(cpu: &mut Cpu, _op: &Op, rest: &[Op]) -> Flow {
    cpu.excl.valid = false;
    next(cpu, rest)
}

/// LDADD and its kin, and SWP: operand in `rm`. The kind is a number for want of enum parameters: see [`KINDS`].
pub(crate) fn rmw<T: AtomicWord, const KIND: usize>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = cpu.x[usize::from(op.rn)];
    let operand = T::cut(cpu.x[usize::from(op.rm)]);
    let done = cpu.rmw_host(va, T::SHIFT).map(|address| {
        cpu.x[usize::from(op.rd)] = T::rmw(address, KINDS[KIND], operand).wide();
    });
    finish(cpu, op, rest, done)
}

/// The kinds of read-modify-write, by `o3:opc` of the encoding.
pub(crate) const KINDS: [Rmw; 9] = [
    Rmw::Add,
    Rmw::Clear,
    Rmw::Eor,
    Rmw::Set,
    Rmw::SignedMax,
    Rmw::SignedMin,
    Rmw::UnsignedMax,
    Rmw::UnsignedMin,
    Rmw::Swap,
];

/// CAS: compared value and destination in `rm`, new value in `rd`.
pub(crate) fn cas<T: AtomicWord>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = cpu.x[usize::from(op.rn)];
    let old = T::cut(cpu.x[usize::from(source(op.rm))]);
    let new = T::cut(cpu.x[usize::from(op.rd)]);
    let done = cpu.rmw_host(va, T::SHIFT).map(|address| {
        cpu.x[usize::from(op.rm)] = T::compare_and_swap(address, old, new).wide();
    });
    finish(cpu, op, rest, done)
}

/// CASP: compared pair in `rm` and the next register, new pair in `rd` and the next.
pub(crate) fn casp<const X: bool>(cpu: &mut Cpu, op: &Op, rest: &[Op]) -> Flow {
    let va = cpu.x[usize::from(op.rn)];
    // Register 31 as the second of a pair is ZR: index 31 as a source, 32 as a destination.
    let old = pair::<X>(cpu, op.rm, op.rm + 1);
    let new = pair::<X>(cpu, op.rd, op.rd + 1);
    let done = cpu.rmw_host(va, if X { 4 } else { 3 }).map(|address| {
        let seen = swap_pair::<X>(address, old, new);
        let second = crate::lower::sink(op.rm + 1);
        cpu.x[usize::from(op.rm)] = if X { seen as u64 } else { u64::from(seen as u32) };
        cpu.x[usize::from(second)] = if X { (seen >> 64) as u64 } else { (seen >> 32) as u64 };
    });
    finish(cpu, op, rest, done)
}

fn source(register: u8) -> u8 {
    if register == crate::cpu::REG_SINK { REG_ZERO } else { register }
}

fn pair<const X: bool>(cpu: &Cpu, first: u8, second: u8) -> u128 {
    let (low, high) = (cpu.x[usize::from(first)], cpu.x[usize::from(second)]);
    if X { u128::from(high) << 64 | u128::from(low) } else { u128::from(high as u32) << 32 | u128::from(low as u32) }
}

fn swap_pair<const X: bool>(address: u64, old: u128, new: u128) -> u128 {
    if X {
        host::compare_and_swap_u128(address, old, new)
    } else {
        u128::from(u64::compare_and_swap(address, old as u64, new as u64))
    }
}

impl Cpu {
    /// A load-acquire of the size of `T`; a device's register is read as by [`Cpu::load`].
    fn load_acquire<T: Word>(&mut self, va: u64) -> Result<T, Trap> {
        match self.acquire_host(va, T::SHIFT, false)? {
            Some(address) => Ok(T::load_acquire(address)),
            None => self.load(va),
        }
    }

    /// A store-release of the size of `T`.
    fn store_release<T: Word>(&mut self, va: u64, value: T) -> Result<(), Trap> {
        match self.acquire_host(va, T::SHIFT, true)? {
            Some(address) => {
                T::store_release(address, value);
                Ok(())
            }
            None => self.store(va, value),
        }
    }

    /// Where a store-exclusive may store, or `None` where the monitor does not cover it.
    fn exclusive_host(&mut self, va: u64, shift: u32, armed: Exclusive) -> Result<Option<u64>, Trap> {
        if !armed.valid || armed.size_bytes != 1 << shift {
            return Ok(None);
        }
        let address = self.rmw_host(va, shift)?;
        Ok((self.physical(va)? == armed.gpa).then_some(address))
    }
}
